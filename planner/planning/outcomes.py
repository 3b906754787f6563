"""What one policy came to in one replicate: a row of the table of replicates, and what goes along.

Everything is over the whole fleet and after the warm-up. Means are over time; what may hurt
(exposure, memory needed to undo merges) is the worst of any sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.metrics import CPU_KINDS, REPLICATES
from planner.planning.hosts import overcommit, safe_share
from planner.planning.merging import Merged, merged_after
from planner.planning.samples import F64, Fleet, HostSamples, read_samples, weighted_quantile
from planner.planning.storms import Storm, storms

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_SERIES", "Outcome", "outcome"]

_BYTES_PER_PAGE = 4096
_HUGE_BYTES = 2 << 20
_CORE_HOUR_NS = 3_600_000_000_000
#: Times of the series kept at most.
MAX_SERIES = 500
_SERIES = ("n_guests", "guest_memory_bytes", "saved_bytes", "saved_zero_bytes", "metadata_bytes",
           "merge_cpu_ns", "cow_breaks", "cross_domain_pages", "cross_domain_sensitive_pages",
           "unmerge_bytes")
_WORK = (*CPU_KINDS, "huge_splits")
#: What the summary tells besides: states, and counters that only rise.
_LEVELS = ("pages_unshared", "pages_volatile", "ksm_zero_pages", "general_profit_bytes")
_RISING = ("pages_scanned", "pages_skipped", "full_scans")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One policy in one replicate: `row` is one of REPLICATES, `series` those of SERIES.

    `counters` has what only the summary tells, over the whole fleet.
    """

    row: dict[str, Any]
    counters: dict[str, int]
    series: tuple[dict[str, Any], ...]
    merged: Merged
    storms: tuple[Storm, ...]

    def with_columns(self, **columns: Any) -> Outcome:
        """The same with columns of the row replaced; raises ValueError for an unknown one."""
        odd = sorted(set(columns) - set(REPLICATES.schema.names))
        if odd:
            raise ValueError(f"no columns of replicates: {', '.join(odd)}")
        return replace(self, row={**self.row, **columns})

    def with_saved(self, saved_bytes: float, error_bytes: float) -> Outcome:
        """The same with a better estimate of the saving and its standard error; what follows from
        the saving follows."""
        row = {**self.row, "saved_bytes": round(saved_bytes),
               "saved_error_bytes": round(error_bytes)}
        return replace(self, row={**row, **_ratios(row)})


def outcome(policy: str, replicate: int, fleet: Fleet, samples: pa.Table, *,
            partitions: Iterable[Mapping[str, Any]] = (),
            events: Iterable[Mapping[str, Any]] = (), resample: int = -1) -> Outcome:
    """The outcome from the samples (HOSTS), partitions and events of one policy and replicate.

    Rows are of simulated hosts, already scaled to all contents where contents were sampled;
    `fleet.weights` scales them to all machines.
    """
    if not samples.num_rows:
        raise ValueError(f"policy {policy}: no samples")
    hosts = read_samples(samples, fleet.weights, fleet.horizon_ns)
    start_ns, end_ns = fleet.warm_up_ns, fleet.horizon_ns

    def mean(name: str) -> int:
        return round(hosts.mean(name, start_ns, end_ns))

    def level(name: str) -> int:
        return mean(name) if fleet.is_drawn else round(hosts.end(name))

    partitions = list(partitions)
    burst = storms(hosts, fleet)
    merged = merged_after(events, fleet)
    safe = safe_share(hosts, fleet)
    row: dict[str, Any] = {
        "policy": policy, "replicate": replicate, "resample": resample,
        "n_machines": fleet.n_machines, "n_hosts": len(hosts.hosts),
        "content_share": fleet.content_share,
        "guest_memory_bytes": level("guest_memory_bytes"),
        "guest_pages": level("guest_memory_bytes") // _BYTES_PER_PAGE,
        "eligible_bytes": level("eligible_bytes"),
        "saved_bytes": level("saved_bytes"), "saved_error_bytes": 0,
        "saved_zero_bytes": level("saved_zero_bytes"),
        "saved_end_bytes": round(hosts.end("saved_bytes")),
        "saved_peak_bytes": _largest(hosts, "saved_bytes", fleet),
        "metadata_bytes": level("metadata_bytes"), "pages_shared": level("pages_shared"),
        "pages_sharing": level("pages_sharing"),
        "merge_cpu_ns": round(hosts.risen("merge_cpu_ns", start_ns)),
        # A fleet's cores for some days are more ns than 63 bits hold.
        "core_time_ns": float(fleet.n_cores) * fleet.window_ns,
        **{name: round(hosts.risen(name, start_ns)) if hosts.has(name) else None
           for name in _WORK},
        "huge_split_share": _split_share(hosts, fleet),
        "time_to_90_ns": _time_to_90(hosts, level("saved_bytes")),
        "merged_after_p50_ns": merged.quantile(0.5), "merged_after_p95_ns": merged.quantile(0.95),
        "cow_breaks": round(hosts.risen("cow_breaks", start_ns)),
        "cow_p99_per_s": burst.p99_per_s, "cow_worst_per_s": burst.worst_per_s,
        "cow_worst_host": burst.worst_host, "cow_worst_time_ns": burst.worst_time_ns,
        "storm_ns": burst.storm_ns,
        "cross_domain_pages": _largest(hosts, "cross_domain_pages", fleet),
        "cross_domain_sensitive_pages": _largest(hosts, "cross_domain_sensitive_pages", fleet),
        "exposed_domain_pairs": _exposed_pairs(partitions),
        **_undone(hosts, fleet),
        "safe_share": safe, "safe_overcommit": overcommit(safe),
        "hosts_used": fleet.hosts_used, "hosts_needed": None,
        "n_guests": fleet.n_guests, "rejected_guests": fleet.rejected_guests,
    }
    counters = {
        "n_partitions": round(sum(fleet.weights.get(each["host"], 1.0) for each in partitions)),
        **{name: level(name) for name in _LEVELS if hosts.has(name)},
        **{name: round(hosts.risen(name, start_ns)) for name in _RISING if hosts.has(name)},
        "unmerge_bytes": _largest(hosts, "unmerge_bytes", fleet),
        "saved_mean_bytes": mean("saved_bytes"),
    }
    return Outcome({**row, **_ratios(row)}, counters, _series(policy, replicate, hosts, fleet),
                   merged, burst.listed)


def _ratios(row: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the saving."""
    memory, cpu, saved = row["guest_memory_bytes"], row["merge_cpu_ns"], row["saved_bytes"]
    return {"saved_share": saved / memory if memory else 0.0,
            "saved_per_core_hour_bytes": round(saved * _CORE_HOUR_NS / cpu) if cpu else None}


def _largest(hosts: HostSamples, name: str, fleet: Fleet) -> int:
    """The fleet's largest total at any time after the warm-up."""
    times, totals = hosts.totals(name)
    first = max(int(np.searchsorted(times, fleet.warm_up_ns, side="right")) - 1, 0)
    return round(float(np.max(totals[first:])))


def _time_to_90(hosts: HostSamples, saved_bytes: int) -> int | None:
    """The first time with 90 % of the saving told; None where nothing was saved."""
    if saved_bytes <= 0:
        return None
    times, totals = hosts.totals("saved_bytes")
    reached = np.flatnonzero(totals >= 0.9 * saved_bytes)
    return int(times[reached[0]]) if len(reached) else None


def _split_share(hosts: HostSamples, fleet: Fleet) -> float | None:
    """The share of all memory that guests came with that is in split 2 MiB pages when they leave.

    What was split stays split as long as its guest is there, so splits count from the very start,
    and against the memory of everybody who ever came: as many times a guest's mean memory as
    there were stays.
    """
    if not (hosts.has("huge_splits") and hosts.has("n_guests")) or not fleet.starts:
        return None
    n_stays = sum(fleet.weights.get(host, 1.0) for host, *_ in fleet.starts)
    memory, n_guests = (hosts.mean(name, 0, fleet.horizon_ns)
                        for name in ("guest_memory_bytes", "n_guests"))
    if memory <= 0 or n_guests <= 0:
        return None
    return min(1.0, hosts.end("huge_splits") * _HUGE_BYTES / (memory / n_guests * n_stays))


def _exposed_pairs(partitions: Iterable[Mapping[str, Any]]) -> int | None:
    """Distinct pairs of domains in one partition of a host in which they may have been merged.

    Which domains shared which page is not recorded, so every pair of such a partition counts: an
    upper bound. Partitions are of the end, when guests may have left: what counts is the most
    they ever shared, where that is told. None where no partition was recorded.
    """
    groups: set[frozenset[str]] = set()
    n_partitions = 0
    for row in partitions:
        n_partitions += 1
        most = row.get("most_cross_domain_pages")
        if (row["cross_domain_pages"] if most is None else most) > 0:
            groups.add(frozenset(row["domains"]))
    if not n_partitions:
        return None
    return len({pair for group in groups for pair in combinations(sorted(group), 2)})


def _undone(hosts: HostSamples, fleet: Fleet) -> dict[str, Any]:
    """Memory needed if every merge broke, what then is left of free memory, and what is free while
    merged.

    By host the worst moment after the warm-up; p50 and p99 are over machines: half, and 99 %, of
    them need no more, and have no less left.
    """
    counts = hosts.held_ns(fleet.warm_up_ns, fleet.horizon_ns + 1) > 0
    needed = hosts["unmerge_bytes"]
    most = np.maximum.reduceat(np.where(counts, needed, 0), hosts.first)
    found: dict[str, Any] = {
        "unmerge_p50_bytes": _quantile(most, hosts.weight, 0.5),
        "unmerge_p99_bytes": _quantile(most, hosts.weight, 0.99),
        "unmerge_worst_bytes": int(most.max())}
    room = _available(hosts, fleet)
    if room is None:
        return {**found, **dict.fromkeys((
            "headroom_p50_bytes", "headroom_p99_bytes", "headroom_worst_bytes",
            "headroom_worst_host", "headroom_worst_time_ns", "free_worst_bytes",
            "free_worst_host", "free_worst_time_ns"))}
    in_use = hosts["guest_memory_bytes"] - hosts["saved_bytes"] - hosts["saved_zero_bytes"]
    free = np.where(counts, room - in_use, np.iinfo(np.int64).max)
    left = np.where(counts, free - needed, np.iinfo(np.int64).max)
    least = np.minimum.reduceat(left, hosts.first)

    def worst(name: str, values: Any) -> dict[str, Any]:
        row = int(np.argmin(values))
        return {f"{name}_bytes": int(values[row]),
                f"{name}_host": hosts.hosts[int(hosts.host[row])],
                f"{name}_time_ns": max(int(hosts.time_ns[row]), fleet.warm_up_ns)}

    return {
        **found, **worst("headroom_worst", left), **worst("free_worst", free),
        "headroom_p50_bytes": -_quantile(-least, hosts.weight, 0.5),
        "headroom_p99_bytes": -_quantile(-least, hosts.weight, 0.99)}


def _quantile(values: Any, weights: F64, share: float) -> int:
    return int(weighted_quantile(values, weights, share))


def _available(hosts: HostSamples, fleet: Fleet) -> Any:
    """What guests may have, by row; None where it is not known of some host."""
    if "available_bytes" in hosts.columns and hosts.has("available_bytes"):
        return hosts["available_bytes"]
    if any(host not in fleet.available_bytes for host in hosts.hosts):
        return None
    return np.array([fleet.available_bytes[host] for host in hosts.hosts], np.int64)[hosts.host]


def _series(policy: str, replicate: int, hosts: HostSamples, fleet: Fleet,
            ) -> tuple[dict[str, Any], ...]:
    """The fleet at most MAX_SERIES times, evenly, from the start to the horizon."""
    step_ns = max(1, fleet.sample_every_ns, -(-fleet.horizon_ns // (MAX_SERIES - 1)))
    times = np.arange(0, fleet.horizon_ns + 1, step_ns, dtype=np.int64)
    if times[-1] != fleet.horizon_ns:
        times = np.append(times, fleet.horizon_ns)
    lines = {name: np.rint(hosts.weight @ hosts.grid(name, times)).astype(np.int64).tolist()
             if hosts.has(name) else [None] * len(times) for name in _SERIES}
    return tuple({"policy": policy, "replicate": replicate, "time_ns": time_ns,
                  **{name: line[index] for name, line in lines.items()}}
                 for index, time_ns in enumerate(times.tolist()))
