"""Requirements held against replicates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from planner.errors import UsageError
from planner.measures import METRICS
from planner.scenario.spec import RequireSpec

__all__ = ["Verdict", "check", "value_of"]

#: Where the worst of a replicate was: columns of host and time, by metric.
_PLACES = {"unmerge_headroom": ("headroom_worst_host", "headroom_worst_time_ns"),
           "free_memory": ("free_worst_host", "free_worst_time_ns"),
           "cow_rate": ("cow_worst_host", "cow_worst_time_ns")}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One requirement: values in the metric's unit, or shares of its whole with `is_share`.

    `value`: median over the replicates in which it is known; `sure_of`: what holds in at least
    `confidence` of all replicates. `worst` is the worst replicate, with the host and time where
    the table tells them. `is_held`: the bound held in at least `confidence` of the replicates.
    """

    policy: str
    metric: str
    at_least: float | None
    at_most: float | None
    is_share: bool
    unit: str
    confidence: float
    value: float | None
    sure_of: float | None
    n_replicates: int
    n_held: int
    is_held: bool
    worst: float | None
    worst_replicate: int | None
    worst_host: str | None
    worst_time_ns: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def value_of(row: Mapping[str, Any], metric: str, is_share: bool = False) -> float | None:
    """A metric of one row of the table of replicates; None where it is not known.

    Raises UsageError for a metric that there is none of, or a share of what has no whole.
    """
    measure = METRICS.get(metric)
    if measure is None:
        raise UsageError(f"no metric is named {metric[:80]!r}", where="require",
                         instead=f"choose one of {', '.join(METRICS)}")
    value = row[measure.column]
    if not is_share or value is None:
        return None if value is None else float(value)
    if not measure.whole_column:
        raise UsageError(f"{metric} is no share of anything", where="require",
                         instead="give its bound as an amount")
    whole = row[measure.whole_column]
    return value / whole if whole else 0.0


def check(require: RequireSpec, rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Hold one requirement against the rows of its policy. A value that is not known fails."""
    measure = METRICS.get(require.metric)
    values = [value_of(row, require.metric, require.is_share) for row in rows]
    is_lower = require.at_least is not None
    bound = require.at_least if require.at_least is not None else require.at_most
    if bound is None or measure is None:
        raise UsageError("a requirement needs a bound", where="require",
                         instead="give at_least or at_most")
    # Sorted from best to worst, with what is not known last.
    order = sorted(range(len(rows)), key=lambda i: _badness(values[i], is_lower))
    n_held = sum(value is not None and (value >= bound if is_lower else value <= bound)
                 for value in values)
    n_needed = max(math.ceil(require.confidence * len(rows) * (1 - 1e-12)), 1)
    known = [value for value in values if value is not None]
    worst = rows[order[-1]] if rows else None
    host, time = _PLACES.get(require.metric, ("", ""))
    return Verdict(
        policy=require.policy, metric=require.metric, at_least=require.at_least,
        at_most=require.at_most, is_share=require.is_share, unit=measure.unit,
        confidence=require.confidence, value=median(known) if known else None,
        sure_of=values[order[n_needed - 1]] if rows else None, n_replicates=len(rows),
        n_held=n_held, is_held=bool(rows) and n_held >= n_needed,
        worst=values[order[-1]] if rows else None,
        worst_replicate=None if worst is None else int(worst["replicate"]),
        worst_host=worst.get(host) if worst is not None and host else None,
        worst_time_ns=worst.get(time) if worst is not None and time else None)


def _badness(value: float | None, is_lower_bound: bool) -> tuple[bool, float]:
    return (True, 0.0) if value is None else (False, -value if is_lower_bound else value)
