"""`planner calibrate`: what ksmd's work costs on this host, fitted to timed experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from planner.errors import UsageError
from planner.ksm import BUILTIN_UNMEASURED, CostModel
from planner.ksm.timings import FORMAT_VERSION, KIND
from planner.live import host
from planner.live.control import KsmControl
from planner.live.experiments import all_experiments, check_experiment
from planner.live.fit import UNSCALED, Fit, Row, fit_costs

__all__ = ["Calibration", "calibrate"]

#: Costs no experiment here can tell: a synchronous call needs the Selective KSM kernel.
_NOT_MEASURED = ("call_ns",)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The document to write; `costs` and `intervals` in ns, `errors` as shares of a row's time."""

    document: dict[str, Any]
    rows: tuple[Row, ...]
    fit: Fit
    check: tuple[tuple[str, float], ...]


def calibrate(pages_to_scan: Sequence[int], sleep_millisecs: Sequence[int], *,
              n_repeats: int = 3, force: bool = False,
              announce: Callable[[str], None] = lambda text: None,
              progress: Callable[[str, float], None] = lambda what, share: None) -> Calibration:
    """Measure and fit. Drives ksmd for minutes, in turns of seconds; everything is put back.

    Raises MachineError without KSM or rights, or where KSM is in use (unless `force`).
    """
    if not pages_to_scan or not sleep_millisecs or min(*pages_to_scan, *sleep_millisecs, 1) < 1:
        raise UsageError("batch sizes and sleeps must be at least 1", where="planner calibrate",
                         instead="such as --pages-to-scan 100 --sleep-millisecs 20")
    rhythms = [(pages, sleep) for pages in sorted(set(pages_to_scan))
               for sleep in sorted(set(sleep_millisecs))]
    knobs = KsmControl().knobs()
    rows: list[Row] = []
    callers = []
    for turn in range(n_repeats):
        def part(what: str, share: float, turn: int = turn) -> None:
            progress(f"{what}, turn {turn + 1} of {n_repeats}",
                     (turn + share) / (n_repeats + 0.5))

        callers.append(all_experiments(rows, rhythms, force=force, announce=announce,
                                       progress=part))
    other: list[Row] = []
    progress("check", n_repeats / (n_repeats + 0.5))
    check_experiment(other, _between(rhythms), force=force, announce=announce)
    fit = fit_costs(rows)
    cow_ns, unmerge_ns = np.median(np.array(callers), axis=0).tolist()
    costs = {name: round(cost) for name, cost in fit.costs.items()}
    costs |= {"cow_break_ns": round(cow_ns), "unmerge_ns": round(unmerge_ns)}
    intervals = {name: [round(low), round(high)] for name, (low, high) in fit.intervals.items()}
    for index, name in enumerate(("cow_break_ns", "unmerge_ns")):
        seen = [each[index] for each in callers]
        intervals[name] = [round(min(seen)), round(max(seen))]
    not_measured = []
    for field in fields(CostModel):
        if field.name != "name" and field.name not in costs:
            costs[field.name] = getattr(BUILTIN_UNMEASURED, field.name)
            not_measured.append(field.name)
    costs["batch_ns"] = max(costs["batch_ns"], 1)
    check = tuple((row.label, _predicted_ns(row, costs) / row.ns - 1) for row in other)
    document = {
        "format_version": FORMAT_VERSION, "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.facts(), "knobs_found": knobs,
        "pages_to_scan": sorted(set(pages_to_scan)),
        "sleep_millisecs": sorted(set(sleep_millisecs)), "n_repeats": n_repeats,
        "costs_ns": dict(sorted(costs.items())), "intervals_ns": dict(sorted(intervals.items())),
        "not_measured": not_measured,
        "residual_rms": float(np.sqrt(np.mean(np.square(fit.errors)))),
        "residual_worst": float(np.max(np.abs(fit.errors))),
        "rows": [{"label": row.label, "measured_ns": row.ns, "error": round(error, 4)}
                 for row, error in zip(rows, fit.errors, strict=True)],
        "check": [{"label": label, "error": round(error, 4)} for label, error in check],
    }
    return Calibration(document, tuple(rows), fit, check)


def _between(rhythms: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Batch sizes halfway (in proportion) between those fitted, at the first sleep of each."""
    sizes = sorted({pages for pages, _ in rhythms})
    sleep = rhythms[0][1]
    if len(sizes) == 1:
        return [(sizes[0] * 3, sleep)]
    return [(round((a * b) ** 0.5), sleep) for a, b in pairwise(sizes)]


def _predicted_ns(row: Row, costs: dict[str, int]) -> float:
    factor = 1 + costs["cold_percent"] / 100 * row.cold_share(costs["cold_pages"])
    return sum(costs[name] * count * (1 if name in UNSCALED else factor)
               for name, count in row.counts.items())
