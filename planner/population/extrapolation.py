"""How far a fleet goes beyond what was captured, in plain words for reports."""

from __future__ import annotations

import numpy as np

from planner.population.model import Population, WorkloadModel
from planner.scenario.spec import Scenario
from planner.timeline import Requests
from planner.units import format_count, format_duration, format_size

__all__ = ["notes"]


def notes(population: Population, scenario: Scenario, requests: Requests) -> list[str]:
    """Sentences for each workload, those that matter most first.

    From how many captured guests, of which size and over which time, how many were drawn, of
    which size and for how long; and what cannot be known from so few guests or snapshots.
    """
    found = []
    for index, model in enumerate(population.workloads):
        mine = requests.workload == index
        n_drawn = int(mine.sum())
        if not n_drawn:
            continue
        found.append(_reach(population, model, n_drawn))
        found += _doubts(model)
        lives = np.minimum(requests.end_ns[mine], scenario.horizon_ns) - requests.start_ns[mine]
        found += _beyond(population, model, int(lives.max()),
                         int(requests.memory_bytes[mine].max()))
    return found


def _factor(whole: float, part: float) -> str:
    times = whole / part
    return f"x{format_count(round(times))}" if times >= 10 else f"x{times:.1f}"


def _sizes(population: Population, model: WorkloadModel) -> tuple[int, int]:
    sizes = [population.templates[number].memory_bytes for number in model.templates]
    return min(sizes), max(sizes)


def _reach(population: Population, model: WorkloadModel, n_drawn: int) -> str:
    n_captured = len(model.templates)
    smallest, largest = _sizes(population, model)
    size = format_size(largest) if smallest == largest \
        else f"{format_size(smallest)} to {format_size(largest)}"
    span_ns = int(model.clock.offset_ns[-1])
    over = f"over {format_duration(span_ns)}" if span_ns else "in one snapshot"
    guests = "guest" if n_captured == 1 else "guests"
    return (f"{model.name}: {_factor(n_drawn, n_captured)} from {n_captured} captured {guests} of "
            f"{size} {over}: they stand for {format_count(n_drawn)}")


def _doubts(model: WorkloadModel) -> list[str]:
    n_captured, found = len(model.templates), []
    if n_captured == 1:
        found.append(f"{model.name}: WARNING: from one captured guest nobody can tell what guests "
                     "have in common; savings between its guests are taken from the other "
                     "workloads, or nothing without any; capture three or more")
    elif n_captured == 2:
        found.append(f"{model.name}: WARNING: two captured guests do not show what only some "
                     "guests have in common, nor how unlike guests are; capture three or more")
    if not model.clock.period_ns:
        found.append(f"{model.name}: WARNING: captured in one snapshot, its guests never write; "
                     "merges that break are not foreseen")
    return found


def _beyond(population: Population, model: WorkloadModel, life_ns: int, memory_bytes: int
            ) -> list[str]:
    found = []
    span_ns, (_, largest) = int(model.clock.offset_ns[-1]), _sizes(population, model)
    if span_ns and life_ns > span_ns:
        found.append(f"{model.name}: {_factor(life_ns, span_ns)} in time: guests live up to "
                     f"{format_duration(life_ns)}; they pass through what was captured again and "
                     "again, with private contents that are new each time")
    if largest and memory_bytes > largest:
        found.append(f"{model.name}: {_factor(memory_bytes, largest)} in size: guests of up to "
                     f"{format_size(memory_bytes)} from captured ones of {format_size(largest)}; "
                     "what the rest holds is the scenario's `fill`, not measured")
    return found
