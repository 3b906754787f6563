"""Two results side by side: what changed in the inputs, and what that changed for each policy.

Where both ran the same guests, writes and seed (`is_paired`), a difference of two single runs is
exact for this model and has no interval; with replicates it is paired replicate by replicate, and
`interval` and `verdict` say what it is worth. Results that are not paired mix the change with
another draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner.measures import METRICS as MEASURES
from planner.metrics import Result
from planner.planning.intervals import difference

__all__ = ["FORMAT_VERSION", "METRICS", "Change", "Comparison", "Difference", "compare"]

#: Version of the document that `Comparison.to_json` gives.
FORMAT_VERSION = 1
#: Columns of the summary table that are compared, in order.
METRICS = ("saved_bytes", "saved_zero_bytes", "saved_share", "merge_cpu_ns", "time_to_90_ns",
           "cow_breaks", "cross_domain_pages", "cross_domain_sensitive_pages", "unmerge_bytes")
#: Columns of the table of replicates that are compared besides, where both have replicates.
REPLICATE_METRICS = ("hosts_needed", "headroom_worst_bytes")
_IS_MORE_BETTER = {measure.column: measure.is_more_better for measure in MEASURES.values()}
#: Changes listed at most; a comparison of two unrelated results has thousands.
MAX_CHANGES = 1000
#: Keys of lists whose entries have names: compared by name, not by place.
_NAMED = frozenset({"hosts", "workloads", "policies", "guests"})
#: Places in a file system: traces count by their digests.
_PLACES = frozenset({"trace", "folder"})


@dataclass(frozen=True, slots=True)
class Change:
    """An input that differs: its dotted key, and both values (None: not there)."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one policy in both results; `change` is after - before.

    `interval` holds the bounds, at 95 %, of the mean change by replicate, of which there are
    `n_replicates`; None where the results are not paired, or are one run each. `verdict` is then
    `better`, `worse`, or `no difference shown`.
    """

    policy: str
    metric: str
    before: float | None
    after: float | None
    change: float | None
    interval: tuple[float, float] | None = None
    verdict: str | None = None
    n_replicates: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two results. Policies are in the order of the second, then the first.

    `is_paired`: both replayed the same traces with the same seed for the same time.
    """

    digests: tuple[str, str]
    names: tuple[str, str]
    is_paired: bool
    changes: tuple[Change, ...]
    n_changes: int
    differences: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def is_different(self) -> bool:
        """Whether any input or any figure differs (shown or not)."""
        return bool(self.n_changes or self.only_before or self.only_after
                    or any(each.change != 0 and each.before != each.after
                           for each in self.differences))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings, with `format_version`."""
        return {"format_version": FORMAT_VERSION, "kind": "planner.comparison",
                "is_different": self.is_different, **asdict(self)}


def compare(before: Result, after: Result) -> Comparison:
    """Compare `after` with `before`."""
    # Of timings that only one went by the name says enough.
    in_both = set(_costs(before)) & set(_costs(after))
    changes = list(_changes("", _inputs(before, in_both), _inputs(after, in_both)))
    rows = [{row["policy"]: row for row in result.summary.to_pylist()}
            for result in (before, after)]
    both = [name for name in rows[1] if name in rows[0]]
    is_paired = _pairing(before) == _pairing(after)
    replicates = [_replicates(result) for result in (before, after)]
    metrics = METRICS if min(map(len, replicates)) == 0 else (*METRICS, *REPLICATE_METRICS)
    return Comparison(
        digests=(str(before.run["digest"]), str(after.run["digest"])),
        names=(str(before.scenario["name"]), str(after.scenario["name"])),
        is_paired=is_paired,
        changes=tuple(changes[:MAX_CHANGES]), n_changes=len(changes),
        differences=tuple(
            _difference(name, metric, (rows[0][name], rows[1][name]),
                        (replicates[0].get(name, {}), replicates[1].get(name, {})), is_paired)
            for name in both for metric in metrics),
        only_before=tuple(name for name in rows[0] if name not in rows[1]),
        only_after=tuple(name for name in rows[1] if name not in rows[0]))


def _costs(result: Result) -> dict[str, Any]:
    """What each of the timings said when the result was made."""
    costs = result.run.get("costs_ns")
    return costs if isinstance(costs, dict) else {}


def _inputs(result: Result, timings: Set[str]) -> dict[str, Any]:
    """All that decides a result: the scenario, what ran it, what it was timed with."""
    run = result.run
    return {**result.scenario, "run": {
        "planner": run["versions"].get("planner"), "timings": sorted(map(str, run["timings"])),
        "costs_ns": {name: costs for name, costs in _costs(result).items() if name in timings}}}


def _pairing(result: Result) -> tuple[Any, ...]:
    return (result.scenario.get("seed"), result.scenario.get("horizon_ns"),
            sorted(str(workload.get("trace_digest")) for workload in result.scenario["workloads"]
                   if isinstance(workload, dict)))


def _changes(key: str, before: Any, after: Any) -> Iterator[Change]:
    """Depth first, keys of the first value before those only the second one has."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            if name not in _PLACES:
                yield from _changes(f"{key}.{name}" if key else str(name), before.get(name),
                                    after.get(name))
    elif isinstance(before, list) and isinstance(after, list) \
            and key.rpartition(".")[2] in _NAMED:
        yield from _changes(key, _by_name(before), _by_name(after))
    elif before != after:
        yield Change(key, before, after)


def _by_name(entries: list[Any]) -> dict[str, Any]:
    return {str(entry.get("name", index)) if isinstance(entry, dict) else str(index): entry
            for index, entry in enumerate(entries)}


def _replicates(result: Result) -> dict[str, dict[int, Mapping[str, Any]]]:
    """By policy the rows of more than one replicate, by number; refits left out."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in result.replicates.to_pylist():
        if row["resample"] < 0:
            found.setdefault(row["policy"], {})[row["replicate"]] = row
    return {policy: rows for policy, rows in found.items() if len(rows) > 1}


def _difference(policy: str, metric: str, rows: tuple[Mapping[str, Any], Mapping[str, Any]],
                replicates: tuple[Mapping[int, Mapping[str, Any]],
                                  Mapping[int, Mapping[str, Any]]], is_paired: bool) -> Difference:
    before, after = (row[metric] if metric in row else _middle(found, metric)
                     for row, found in zip(rows, replicates, strict=True))
    change = after - before if before is not None and after is not None else None
    plain = Difference(policy, metric, before, after, change)
    pairs = [(replicates[1][number].get(metric), replicates[0][number].get(metric))
             for number in sorted(set(replicates[0]) & set(replicates[1]))] if is_paired else []
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    found = difference(np.array([a for a, _ in known], np.float64),
                       np.array([b for _, b in known], np.float64),
                       identity=f"compare/{policy}/{metric}")
    if found is None or found.low is None or found.high is None:
        return plain
    return Difference(policy, metric, before, after, found.mean, (found.low, found.high),
                      found.verdict(_IS_MORE_BETTER.get(metric, False)), found.n)


def _middle(rows: Mapping[int, Mapping[str, Any]], metric: str) -> float | None:
    """The median over replicates in which it is known."""
    known = [row[metric] for row in rows.values() if row[metric] is not None]
    return float(np.median(known)) if known else None
