"""What a run remembers: the recorder, the result tables and the Result itself.

Table schemas are versioned like traces. All times are ns since the start of the simulation,
all sizes bytes, all `pages_*` counts as in /sys/kernel/mm/ksm.

`saved_bytes` is the headline: frames freed of non-zero content minus all metadata (rmap items,
stable nodes, mm slots). `saved_zero_bytes` is what merging zero pages freed, apart.
`general_profit_bytes` is the kernel's own formula and belongs in counter tables only.

A nullable column is null where it was not counted. In a fleet run `hosts`, `partitions` and
`events` are of the hosts simulated in the first replicate; `replicates` and `series` have all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from planner.tables import TableKind

__all__ = ["CPU_KINDS", "EVENTS", "HOSTS", "PARTITIONS", "REPLICATES", "SERIES", "SUMMARY",
           "Recorder", "Result", "summarise"]

RESULT_VERSION = (3, 0)

_I64 = pa.int64()
_TEXT = pa.string()
_COUNTERS = (
    ("pages_shared", _I64), ("pages_sharing", _I64), ("pages_unshared", _I64),
    ("pages_volatile", _I64),
)
_PROGRESS = (("pages_scanned", _I64), ("pages_skipped", _I64), ("ksm_zero_pages", _I64))
_EXPOSURE = (("cross_domain_pages", _I64), ("cross_domain_sensitive_pages", _I64))
#: Who spent CPU time: ksmd (`scanner`) and callers of a synchronous merge (`caller`) make up
#: `merge_cpu_ns`; visits that merged a page (`merging`) and splitting huge pages are part of it.
#: Writers pay for COW breaks (`cow`) and whoever switches merging off or stops a guest's for
#: copying pages out (`unmerge`): not in it.
CPU_KINDS = ("scanner_cpu_ns", "caller_cpu_ns", "merging_cpu_ns", "split_cpu_ns",
             "unmerge_cpu_ns", "cow_cpu_ns")
_WORK = (*((name, _I64) for name in CPU_KINDS), ("huge_splits", _I64))
_WORK_NAMES = tuple(name for name, _ in _WORK)


def _kind(name: str, columns: list[tuple[str, pa.DataType]],
          nullable: tuple[str, ...] = ()) -> TableKind:
    major, minor = RESULT_VERSION
    return TableKind(f"planner.result.{name}", major, minor, pa.schema(
        [pa.field(column, kind, nullable=column in nullable) for column, kind in columns]),
        oldest_major=major)


SUMMARY = _kind("summary", [
    ("policy", _TEXT), ("merge", _TEXT), ("partition_by", _TEXT), ("n_partitions", _I64),
    ("guest_memory_bytes", _I64), ("eligible_bytes", _I64), ("saved_bytes", _I64),
    ("saved_zero_bytes", _I64), ("saved_share", pa.float64()), ("metadata_bytes", _I64),
    *_COUNTERS, *_PROGRESS, ("general_profit_bytes", _I64), ("full_scans", _I64),
    ("merge_cpu_ns", _I64), ("merge_cpu_share", pa.float64()), ("time_to_90_ns", _I64),
    ("cow_breaks", _I64), *_EXPOSURE, ("unmerge_bytes", _I64), ("saved_peak_bytes", _I64),
    ("saved_mean_bytes", _I64), *_WORK,
], nullable=("time_to_90_ns", *_WORK_NAMES))

HOSTS = _kind("hosts", [
    ("policy", _TEXT), ("host", _TEXT), ("time_ns", _I64), ("guest_memory_bytes", _I64),
    ("eligible_bytes", _I64), ("saved_bytes", _I64), ("saved_zero_bytes", _I64),
    ("metadata_bytes", _I64), *_COUNTERS, *_PROGRESS, ("stable_node_chains", _I64),
    ("stable_node_dups", _I64), ("pages_to_scan", _I64), ("general_profit_bytes", _I64),
    ("full_scans", _I64), ("merge_cpu_ns", _I64), ("cow_breaks", _I64), *_EXPOSURE,
    ("unmerge_bytes", _I64), *_WORK, ("n_guests", _I64),
    # memory that guests may have: without what the host reserves, and without pressure now
    ("available_bytes", _I64),
], nullable=(*_WORK_NAMES, "n_guests", "available_bytes"))

PARTITIONS = _kind("partitions", [
    ("policy", _TEXT), ("host", _TEXT), ("partition", _TEXT), ("n_domains", _I64),
    ("domains", pa.list_(_TEXT)), ("n_guests", _I64), ("eligible_pages", _I64), *_COUNTERS,
    ("saved_bytes", _I64), ("saved_zero_bytes", _I64), *_EXPOSURE, ("merge_cpu_ns", _I64),
    # at any sample, while all else is of the end
    ("most_cross_domain_pages", _I64),
], nullable=("most_cross_domain_pages",))

EVENTS = _kind("events", [
    ("policy", _TEXT), ("host", _TEXT), ("time_ns", _I64), ("kind", _TEXT),
    ("partition", _TEXT), ("guest", _TEXT), ("tried_pages", _I64), ("merged_pages", _I64),
    ("candidate_pages", _I64), ("cpu_ns", _I64),
])

#: One row per policy and replicate over the whole fleet, after the warm-up (`planner.planning`).
REPLICATES = _kind("replicates", [
    ("policy", _TEXT), ("replicate", _I64),
    # which resampling of the captured guests the population was fitted on; -1: all of them
    ("resample", _I64),
    ("n_machines", _I64), ("n_hosts", _I64), ("content_share", pa.float64()),
    ("guest_memory_bytes", _I64), ("guest_pages", _I64), ("eligible_bytes", _I64),
    ("saved_bytes", _I64), ("saved_error_bytes", _I64), ("saved_zero_bytes", _I64),
    ("saved_share", pa.float64()), ("saved_end_bytes", _I64), ("saved_peak_bytes", _I64),
    ("saved_per_core_hour_bytes", _I64), ("metadata_bytes", _I64), ("pages_shared", _I64),
    ("pages_sharing", _I64), ("merge_cpu_ns", _I64), ("core_time_ns", pa.float64()), *_WORK,
    # of the memory that guests came with, also before the warm-up
    ("huge_split_share", pa.float64()),
    ("time_to_90_ns", _I64), ("merged_after_p50_ns", _I64), ("merged_after_p95_ns", _I64),
    ("cow_breaks", _I64), ("cow_p99_per_s", pa.float64()), ("cow_worst_per_s", pa.float64()),
    ("cow_worst_host", _TEXT), ("cow_worst_time_ns", _I64), ("storm_ns", _I64),
    *_EXPOSURE, ("exposed_domain_pairs", _I64),
    ("unmerge_p50_bytes", _I64), ("unmerge_p99_bytes", _I64), ("unmerge_worst_bytes", _I64),
    ("headroom_p50_bytes", _I64), ("headroom_p99_bytes", _I64), ("headroom_worst_bytes", _I64),
    ("headroom_worst_host", _TEXT), ("headroom_worst_time_ns", _I64),
    ("free_worst_bytes", _I64), ("free_worst_host", _TEXT), ("free_worst_time_ns", _I64),
    ("safe_share", pa.float64()), ("safe_overcommit", pa.float64()),
    ("hosts_used", _I64), ("hosts_needed", _I64), ("n_guests", _I64), ("rejected_guests", _I64),
], nullable=("saved_per_core_hour_bytes", *_WORK_NAMES, "huge_split_share", "time_to_90_ns",
             "merged_after_p50_ns", "merged_after_p95_ns", "cow_worst_host", "cow_worst_time_ns",
             "exposed_domain_pairs",
             "headroom_p50_bytes", "headroom_p99_bytes", "headroom_worst_bytes",
             "headroom_worst_host", "headroom_worst_time_ns", "free_worst_bytes",
             "free_worst_host", "free_worst_time_ns", "hosts_needed"))

#: The fleet over time, one row per policy, replicate and time.
SERIES = _kind("series", [
    ("policy", _TEXT), ("replicate", _I64), ("time_ns", _I64), ("n_guests", _I64),
    ("guest_memory_bytes", _I64), ("saved_bytes", _I64), ("saved_zero_bytes", _I64),
    ("metadata_bytes", _I64), ("merge_cpu_ns", _I64), ("cow_breaks", _I64), *_EXPOSURE,
    ("unmerge_bytes", _I64),
], nullable=("n_guests",))


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished comparison: the resolved scenario, how it was run, and its Arrow tables.

    `scenario` is the resolved form and `run` a JSON-able record (versions, seed, traces,
    timings, assumptions). `summary` has one row a policy in scenario order, `hosts` one row per
    policy, host and sample, `partitions` one row per policy, host and merge partition at the
    end, `events` the merge calls and full scans. `replicates` has one row per policy and
    replicate, `series` the fleet over time in each; `plan` is what `planner.planning` made of
    them (plan.json), None where nothing was.
    """

    scenario: dict[str, Any]
    run: dict[str, Any]
    summary: pa.Table
    hosts: pa.Table
    partitions: pa.Table
    events: pa.Table
    replicates: pa.Table = field(default_factory=REPLICATES.schema.empty_table)
    series: pa.Table = field(default_factory=SERIES.schema.empty_table)
    plan: dict[str, Any] | None = None


@dataclass(slots=True)
class Recorder:
    """Append-only columns; `table(kind)` gives what was recorded in the order it came."""

    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: TableKind, row: Mapping[str, Any]) -> None:
        """Record one row; every column of the kind must be there (unless null) and no other."""
        odd = sorted(name for name in set(row) ^ set(kind.schema.names)
                     if name in row or not kind.schema.field(name).nullable)
        if odd:
            raise ValueError(f"{kind.kind}: columns differ: {', '.join(odd)}")
        self._rows.setdefault(kind.kind, []).append(dict(row))

    def table(self, kind: TableKind) -> pa.Table:
        """All rows of one kind."""
        return pa.Table.from_pylist(self._rows.get(kind.kind, []), schema=kind.schema)


def summarise(policy: Mapping[str, str], samples: pa.Table, partitions: pa.Table,
              horizon_ns: int) -> dict[str, Any]:
    """One summary row from the samples and partitions of one policy, added up over hosts.

    `policy` gives the texts `policy`, `merge` and `partition_by`. Time to 90 % is the first
    sample at which the saving reached 90 % of its last value, and is null where nothing was
    saved in the end.
    """
    times, saved, last = _over_hosts(samples)
    memory_bytes = last["guest_memory_bytes"]
    reached = (time for time, value in zip(times, saved, strict=True) if value >= 0.9 * saved[-1])
    return {
        **policy,
        "n_partitions": partitions.num_rows,
        **{name: value for name, value in last.items() if name in SUMMARY.schema.names},
        "saved_share": last["saved_bytes"] / memory_bytes if memory_bytes else 0.0,
        "merge_cpu_share": last["merge_cpu_ns"] / horizon_ns if horizon_ns else 0.0,
        "time_to_90_ns": next(reached) if saved[-1] > 0 else None,
        "saved_peak_bytes": max(saved),
        "saved_mean_bytes": _time_mean(times, saved),
    }


_SUMMED = tuple(name for name in HOSTS.schema.names if name not in ("policy", "host", "time_ns"))


def _over_hosts(samples: pa.Table) -> tuple[list[int], list[int], dict[str, int]]:
    """Times of all samples, `saved_bytes` over all hosts at each, and all columns at the end.

    Hosts are sampled at times of their own as well; between two samples the earlier one holds.
    """
    latest: dict[str, dict[str, int]] = {}
    saved: dict[int, int] = {}
    for row in sorted(samples.to_pylist(), key=lambda row: int(row["time_ns"])):
        latest[row["host"]] = row
        saved[row["time_ns"]] = sum(host["saved_bytes"] for host in latest.values())
    last = {name: sum(host[name] for host in latest.values()) for name in _SUMMED
            if all(host[name] is not None for host in latest.values())}
    return list(saved), list(saved.values()), last


def _time_mean(times_ns: list[int], values: list[int]) -> int:
    """Mean over time of a step function given by its samples."""
    span_ns = times_ns[-1] - times_ns[0]
    if not span_ns:
        return values[-1]
    steps = zip(times_ns, times_ns[1:], values, strict=False)
    return round(sum((end - start) * value for start, end, value in steps) / span_ns)
