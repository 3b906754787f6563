"""Forecasts: the hosts of a scenario, replicate by replicate, as cases for any executor.

- `world`: what the hosts of one replicate have in common, found once in each process
- `work`: one case, as any process does it
- `fleet`: a whole run: which cases, and what their outcomes come to
"""

from planner.forecast.work import HostTask, NeedTask, SurveyTask, work
from planner.forecast.world import Replicate, World, replicate_of, world_of

__all__ = ["HostTask", "NeedTask", "Replicate", "SurveyTask", "World", "replicate_of", "work",
           "world_of"]
