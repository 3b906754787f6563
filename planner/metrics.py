"""What a run remembers: the recorder, the result tables and the Result itself.

Table schemas are versioned like traces. All times are ns since the start of the simulation,
all sizes bytes, all `pages_*` counts as in /sys/kernel/mm/ksm.

`saved_bytes` is the headline: frames freed of non-zero content minus all metadata (rmap items,
stable nodes, mm slots). `saved_zero_bytes` is what merging zero pages freed, apart.
`general_profit_bytes` is the kernel's own formula and belongs in counter tables only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from planner.tables import TableKind

__all__ = ["EVENTS", "HOSTS", "PARTITIONS", "SUMMARY", "Recorder", "Result", "summarise"]

RESULT_VERSION = (2, 0)

_I64 = pa.int64()
_TEXT = pa.string()
_COUNTERS = (
    ("pages_shared", _I64), ("pages_sharing", _I64), ("pages_unshared", _I64),
    ("pages_volatile", _I64),
)
_PROGRESS = (("pages_scanned", _I64), ("pages_skipped", _I64), ("ksm_zero_pages", _I64))
_EXPOSURE = (("cross_domain_pages", _I64), ("cross_domain_sensitive_pages", _I64))


def _kind(name: str, columns: list[tuple[str, pa.DataType]],
          nullable: tuple[str, ...] = ()) -> TableKind:
    major, minor = RESULT_VERSION
    return TableKind(f"planner.result.{name}", major, minor, pa.schema(
        [pa.field(column, kind, nullable=column in nullable) for column, kind in columns]))


SUMMARY = _kind("summary", [
    ("policy", _TEXT), ("merge", _TEXT), ("partition_by", _TEXT), ("n_partitions", _I64),
    ("guest_memory_bytes", _I64), ("eligible_bytes", _I64), ("saved_bytes", _I64),
    ("saved_zero_bytes", _I64), ("saved_share", pa.float64()), ("metadata_bytes", _I64),
    *_COUNTERS, *_PROGRESS, ("general_profit_bytes", _I64), ("full_scans", _I64),
    ("merge_cpu_ns", _I64), ("merge_cpu_share", pa.float64()), ("time_to_90_ns", _I64),
    ("cow_breaks", _I64), *_EXPOSURE, ("unmerge_bytes", _I64), ("saved_peak_bytes", _I64),
    ("saved_mean_bytes", _I64),
], nullable=("time_to_90_ns",))

HOSTS = _kind("hosts", [
    ("policy", _TEXT), ("host", _TEXT), ("time_ns", _I64), ("guest_memory_bytes", _I64),
    ("eligible_bytes", _I64), ("saved_bytes", _I64), ("saved_zero_bytes", _I64),
    ("metadata_bytes", _I64), *_COUNTERS, *_PROGRESS, ("stable_node_chains", _I64),
    ("stable_node_dups", _I64), ("pages_to_scan", _I64), ("general_profit_bytes", _I64),
    ("full_scans", _I64), ("merge_cpu_ns", _I64), ("cow_breaks", _I64), *_EXPOSURE,
    ("unmerge_bytes", _I64),
])

PARTITIONS = _kind("partitions", [
    ("policy", _TEXT), ("host", _TEXT), ("partition", _TEXT), ("n_domains", _I64),
    ("domains", pa.list_(_TEXT)), ("n_guests", _I64), ("eligible_pages", _I64), *_COUNTERS,
    ("saved_bytes", _I64), ("saved_zero_bytes", _I64), *_EXPOSURE, ("merge_cpu_ns", _I64),
])

EVENTS = _kind("events", [
    ("policy", _TEXT), ("host", _TEXT), ("time_ns", _I64), ("kind", _TEXT),
    ("partition", _TEXT), ("guest", _TEXT), ("tried_pages", _I64), ("merged_pages", _I64),
    ("candidate_pages", _I64), ("cpu_ns", _I64),
])


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished comparison: the resolved scenario, how it was run, and four Arrow tables.

    `scenario` is the resolved form and `run` a JSON-able record (versions, seed, traces,
    timings, assumptions). `summary` has one row a policy in scenario order, `hosts` one row per
    policy, host and sample, `partitions` one row per policy, host and merge partition at the
    end, `events` the merge calls and full scans.
    """

    scenario: dict[str, Any]
    run: dict[str, Any]
    summary: pa.Table
    hosts: pa.Table
    partitions: pa.Table
    events: pa.Table


@dataclass(slots=True)
class Recorder:
    """Append-only columns; `table(kind)` gives what was recorded in the order it came."""

    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: TableKind, row: Mapping[str, Any]) -> None:
        """Record one row; every column of the kind must be there and no other."""
        if set(row) != set(kind.schema.names):
            odd = sorted(set(row) ^ set(kind.schema.names))
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
    last = {name: sum(host[name] for host in latest.values()) for name in _SUMMED}
    return list(saved), list(saved.values()), last


def _time_mean(times_ns: list[int], values: list[int]) -> int:
    """Mean over time of a step function given by its samples."""
    span_ns = times_ns[-1] - times_ns[0]
    if not span_ns:
        return values[-1]
    steps = zip(times_ns, times_ns[1:], values, strict=False)
    return round(sum((end - start) * value for start, end, value in steps) / span_ns)
