"""The population model: few captured guests of a workload class stand for many drawn ones.

`model` says what a population is, `fit` makes one from traces, `extrapolation` tells how far it
goes beyond them.
"""

from planner.population.extrapolation import notes
from planner.population.fit import Captured, capture_population, fit_population
from planner.population.model import Population

__all__ = ["Captured", "Population", "capture_population", "fit_population", "notes"]
