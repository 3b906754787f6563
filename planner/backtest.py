"""A forecast held against the counters of the host that it was made for.

The simulated host starts with nothing merged, as a host does whose KSM is switched on at that
moment. Simulated values are interpolated to the times of the measured ones. Counters that only
rise are compared by what they rose since the first sample compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.counters import CounterTable
from planner.errors import DataError
from planner.metrics import Result

__all__ = ["FORMAT_VERSION", "PAIRS", "Comparison", "Validation", "backtest", "to_json"]

FORMAT_VERSION = 1
#: Measured counter, column of the simulated host's samples, whether it only rises.
PAIRS = (
    ("pages_shared", "pages_shared", False),
    ("pages_sharing", "pages_sharing", False),
    ("full_scans", "full_scans", True),
    ("cow_ksm", "cow_breaks", True),
    ("ksmd_cpu_ns", "merge_cpu_ns", True),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One counter over `n_samples` times.

    `error` is the mean absolute difference and `bias` the mean difference (simulated minus
    measured), both as shares of the mean measured value; None where that is zero and the
    simulated one is not.
    """

    counter: str
    n_samples: int
    measured_mean: float
    simulated_mean: float
    measured_last: int
    simulated_last: int
    error: float | None
    bias: float | None


@dataclass(frozen=True, slots=True)
class Validation:
    """All counters of one policy on one host; `missing` are those that were not measured."""

    policy: str
    host: str
    metrics_host: str
    start_ns: int
    aligned_by: str
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def _start(table: CounterTable, host: str, capture_start_ns: int, horizon_ns: int,
           start_ns: int | None) -> tuple[int, str]:
    if start_ns is not None:
        return start_ns, "the time given"
    times = [sample.time_ns for sample in table.samples if sample.host == host]
    if min(times) < capture_start_ns + horizon_ns and max(times) > capture_start_ns:
        return capture_start_ns, "the time of the capture"
    return min(times), "the first sample (the capture is from another time)"


def backtest(result: Result, policy: str, host: str, table: CounterTable, metrics_host: str, *,
             capture_start_ns: int, start_ns: int | None = None) -> Validation:
    """Compare one policy's simulated host with one measured host.

    Simulated time 0 is `start_ns` (Unix ns) if given, else the start of the capture where the
    samples overlap it, else the first sample. Raises DataError where fewer than two measured
    times of any counter fall within the simulated time.
    """
    rows = [row for row in result.hosts.to_pylist()
            if row["policy"] == policy and row["host"] == host]
    if not rows or metrics_host not in table.hosts:
        raise DataError(f"no samples of host {metrics_host!r}", where=table.path,
                        instead="its hosts: " + ", ".join(table.hosts[:12]))
    rows.sort(key=lambda row: int(row["time_ns"]))
    simulated_ns = np.array([row["time_ns"] for row in rows], np.int64)
    horizon_ns = int(simulated_ns[-1])
    origin_ns, aligned_by = _start(table, metrics_host, capture_start_ns, horizon_ns, start_ns)
    comparisons, missing, notes = [], [], []
    for counter, column, is_rising in PAIRS:
        times_ns, measured = table.series(metrics_host, counter)
        is_within = (times_ns >= origin_ns) & (times_ns - origin_ns <= horizon_ns)
        if is_within.sum() < 2:
            missing.append(counter)
            continue
        at_ns, values = times_ns[is_within] - origin_ns, measured[is_within].astype(np.float64)
        model = np.interp(at_ns, simulated_ns, [float(row[column]) for row in rows])
        if counter == "pages_sharing" and values[0] > 0 and model[0] == 0:
            notes.append(f"the host shared {int(values[0])} pages already at the start; the "
                         "simulation starts with none")
        if is_rising:
            if (np.diff(values) < 0).any():
                notes.append(f"{counter} fell: the host was restarted or the counter reset")
            values, model = values - values[0], model - model[0]
        comparisons.append(_compared(counter, values, model))
    if not comparisons:
        raise DataError("fewer than two samples of any counter fall within the simulated time",
                        where=table.path, instead="give --start, or metrics of that time")
    return Validation(policy, host, metrics_host, origin_ns, aligned_by, tuple(comparisons),
                      tuple(missing), tuple(notes))


def _compared(counter: str, measured: np.ndarray, simulated: np.ndarray) -> Comparison:
    scale = float(np.abs(measured).mean())
    difference = simulated - measured
    if not scale:
        agrees = 0.0 if not simulated.any() else None
        return Comparison(counter, len(measured), 0.0, float(simulated.mean()), 0,
                          round(float(simulated[-1])), agrees, agrees)
    return Comparison(
        counter, len(measured), float(measured.mean()), float(simulated.mean()),
        int(measured[-1]), round(float(simulated[-1])),
        float(np.abs(difference).mean()) / scale, float(difference.mean()) / scale)


def to_json(validation: Validation, run: Mapping[str, Any]) -> dict[str, Any]:
    """The validation as a JSON document; `run` is the record of the simulated run."""
    return {
        "format_version": FORMAT_VERSION, "kind": "planner.validation.metrics",
        "digest": run.get("digest"), "versions": run.get("versions"),
        "policy": validation.policy, "host": validation.host,
        "metrics_host": validation.metrics_host, "start_ns": validation.start_ns,
        "aligned_by": validation.aligned_by,
        "counters": {each.counter: {
            "n_samples": each.n_samples, "measured_mean": each.measured_mean,
            "simulated_mean": each.simulated_mean, "measured_last": each.measured_last,
            "simulated_last": each.simulated_last, "error": each.error, "bias": each.bias,
        } for each in validation.comparisons},
        "missing": list(validation.missing), "notes": list(validation.notes),
    }
