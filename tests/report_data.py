"""A small result made by hand, for tests of the reports. No number here was ever measured."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from planner.metrics import EVENTS, HOSTS, PARTITIONS, SUMMARY, Result
from planner.tables import TableKind

MIB = 1 << 20
SECOND = 10**9
HORIZON_NS = 360 * SECOND

#: policy, merge, partition_by, saved MiB, zero MiB, cross-domain, sensitive, CPU s, 90 % after s
POLICIES = [
    ("never", "never", "none", 0, 0, 0, 0, 0.0, None),
    ("ksmd-global", "ksmd 1000/20ms", "none", 412, 96, 61_240, 9_120, 9.4, 210),
    ("sync-domain", "sync boot+60s", "domain", 231, 96, 0, 0, 3.1, 75),
    ("sync-group", "sync boot+60s, every 2 min", "group", 298, 96, 20_410, 0, 5.8, 190),
]


def table(kind: TableKind, rows: list[dict[str, Any]]) -> pa.Table:
    """`rows` as a table of `kind`; columns not given are 0, empty or null."""
    blank = {field.name: 0 if pa.types.is_integer(field.type) else
             0.0 if pa.types.is_floating(field.type) else
             "" if pa.types.is_string(field.type) else []
             for field in kind.schema}
    return pa.Table.from_pylist([{**blank, **row} for row in rows], schema=kind.schema)


def make_result(policies: list[tuple[Any, ...]] | None = None, *, guest_mib: int = 1853,
                n_samples: int = 25, name: str = "quickstart", n_partitions: int = 3,
                timings: str = "builtin:unmeasured", sensitive: tuple[str, ...] = ("tenant-a",),
                guest: str = "vm", **run: Any) -> Result:
    """A result of one host with the given policies (tuples as in `POLICIES`)."""
    policies = POLICIES if policies is None else policies
    summary, hosts, partitions, events = [], [], [], []
    for policy, merge, by, saved, zero, cross, cross_sensitive, cpu_s, after_s in policies:
        pages = int(saved) * 256
        counters = {
            "pages_shared": pages // 4, "pages_sharing": pages, "pages_unshared": 180_000,
            "pages_volatile": 21_000,
        }
        now = {
            "guest_memory_bytes": guest_mib * MIB, "saved_bytes": int(saved * MIB),
            "saved_zero_bytes": zero * MIB, "metadata_bytes": pages * 64, **counters,
            "full_scans": 4 if merge.startswith("ksmd") else 0,
            "merge_cpu_ns": int(cpu_s * SECOND), "cow_breaks": pages // 40,
            "cross_domain_pages": cross, "cross_domain_sensitive_pages": cross_sensitive,
            "unmerge_bytes": pages * 4096, "eligible_bytes": 1500 * MIB,
            "general_profit_bytes": pages * 4096 - pages * 64,
        }
        summary.append({
            "policy": policy, "merge": merge, "partition_by": by,
            "n_partitions": 1 if by == "none" else n_partitions, **now,
            "saved_share": saved / guest_mib, "merge_cpu_share": cpu_s / 360,
            "time_to_90_ns": None if after_s is None else after_s * SECOND,
            "saved_peak_bytes": int(saved * MIB), "saved_mean_bytes": int(saved * MIB * 0.7),
        })
        for i in range(n_samples):
            time_ns = HORIZON_NS * i // max(n_samples - 1, 1)
            reached = min(1.0, time_ns / ((after_s or 1) * SECOND))
            hosts.append({"policy": policy, "host": "lab", "time_ns": time_ns, **now,
                          "saved_bytes": int(saved * MIB * reached)})
        for i in range(1 if by == "none" else n_partitions):
            domains = [f"tenant-{c}" for c in ("abc" if by == "none" else "abc"[i % 3])]
            partitions.append({
                "policy": policy, "host": "lab",
                "partition": "all" if by == "none" else f"{by}-{i}",
                "n_domains": len(domains), "domains": domains, "n_guests": 4,
                "eligible_pages": 128_000, **counters, "saved_bytes": int(saved * MIB / (i + 2)),
                "cross_domain_pages": cross, "cross_domain_sensitive_pages": cross_sensitive,
                "merge_cpu_ns": int(cpu_s * SECOND / 3),
            })
        events.append({"policy": policy, "host": "lab", "time_ns": 60 * SECOND,
                       "kind": "snapshot"})
    scenario = {
        "format": 1, "name": name, "seed": 1, "horizon_ns": HORIZON_NS,
        "hosts": [{"name": "lab", "memory_bytes": 8 << 30, "timings": timings}],
        "workloads": [{"name": "guests", "trace": "traces/guests", "host": "lab",
                       "guests": [{"name": f"{guest}-{i}", "domain": f"tenant-{'abc'[i % 3]}"}
                                  for i in range(12)]}],
        "domains": {"groups": [], "sensitive": list(sensitive)},
        "policies": [{"name": p[0]} for p in policies],
    }
    record = {
        "format_version": 1, "status": "complete", "digest": "4f1c9a" * 10 + "0000",
        "validated": False, "warnings": [],
        "versions": {"planner": "0.1.0", "python": "3.11.2", "numpy": "2.4.6"}, "seed": 1,
        "traces": [{"path": "traces/guests", "status": "complete", "digest": "b3f2" * 16,
                    "n_guests": 12, "n_snapshots": 5, "n_pages": 474_368,
                    "span_ns": HORIZON_NS, "hash": "xxh64-siphash24", "key_id": "5c1f09aa",
                    "source": "procfs"}],
        "timings": [timings], "created": "2026-11-23T01:02:03+00:00", "elapsed_s": 9.123,
        "assumptions": ["Changes between two snapshots happen at the end of the epoch.",
                        "Swap, migration and huge page splits are not simulated."],
        **run,
    }
    return Result(scenario, record, table(SUMMARY, summary), table(HOSTS, hosts),
                  table(PARTITIONS, partitions), table(EVENTS, events))
