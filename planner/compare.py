"""Two results side by side: what changed in the inputs, and what that changed for each policy.

A result is one run, so a difference has no interval: where both ran the same guests, writes and
seed it is exact for this model, and `is_paired` says so; else it mixes the change with another
draw. `interval` stays None until runs have replicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

from planner.metrics import Result

__all__ = ["FORMAT_VERSION", "METRICS", "Change", "Comparison", "Difference", "compare"]

#: Version of the document that `Comparison.to_json` gives.
FORMAT_VERSION = 1
#: Columns of the summary table that are compared, in order.
METRICS = ("saved_bytes", "saved_zero_bytes", "saved_share", "merge_cpu_ns", "time_to_90_ns",
           "cow_breaks", "cross_domain_pages", "cross_domain_sensitive_pages", "unmerge_bytes")
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

    `interval` will hold the bounds of `change` where runs have replicates; None: one run each.
    """

    policy: str
    metric: str
    before: float | None
    after: float | None
    change: float | None
    interval: tuple[float, float] | None = None


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
        """Whether any input or any figure differs."""
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
    return Comparison(
        digests=(str(before.run["digest"]), str(after.run["digest"])),
        names=(str(before.scenario["name"]), str(after.scenario["name"])),
        is_paired=_pairing(before) == _pairing(after),
        changes=tuple(changes[:MAX_CHANGES]), n_changes=len(changes),
        differences=tuple(_difference(name, metric, rows[0][name], rows[1][name])
                          for name in both for metric in METRICS),
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


def _difference(policy: str, metric: str, before: Mapping[str, Any],
                after: Mapping[str, Any]) -> Difference:
    old, new = before[metric], after[metric]
    change = new - old if old is not None and new is not None else None
    return Difference(policy, metric, old, new, change)
