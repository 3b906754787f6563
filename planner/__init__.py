"""Capacity planner for Linux memory deduplication: KSM, Selective KSM, merge partitions.

The library's front door; names are imported when first used:

- `load_scenario(path)`: read, check and resolve a scenario file
- `run(scenario)`: replay its policies, returns a `Result`
- `load(path)`: open a results folder
- `open_trace(path)`: open a page-hash trace
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.errors import PlannerError
    from planner.metrics import Result
    from planner.results import load
    from planner.runner import load_scenario, run
    from planner.trace import Trace, open_trace

__version__ = "0.1.0"

__all__ = ["PlannerError", "Result", "Trace", "__version__", "load", "load_scenario",
           "open_trace", "run"]

_HOMES = {
    "PlannerError": "planner.errors",
    "Result": "planner.metrics",
    "Trace": "planner.trace",
    "load": "planner.results",
    "load_scenario": "planner.runner",
    "open_trace": "planner.trace",
    "run": "planner.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
