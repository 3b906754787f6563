"""The population model: few captured guests of a workload class stand for many drawn ones.

`planner.population.model` says what a population is, `fit` makes one from traces.
"""
