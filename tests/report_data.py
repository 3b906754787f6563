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


def make_details(policies: list[tuple[Any, ...]] | None = None, *, guest_mib: int = 1853,
                 members: tuple[str, ...] = ("tenant-a", "tenant-b", "tenant-c"),
                 trace: str = "traces/guests", text: str = "in huge pages") -> dict[str, Any]:
    """Details of `make_result` with the same policies, in the form of `planner.details`."""
    waterfalls = []
    for policy, merge, by, saved, zero, *_ in POLICIES if policies is None else policies:
        if merge == "never":
            continue
        metadata = int(saved * 256) * 64
        apart = 0 if by == "none" else 90 * MIB
        eligible = guest_mib * MIB
        saved_bytes = int(saved * MIB)
        could = saved_bytes + metadata + 12 * MIB
        steps = [
            ("host_memory", 8 << 30, "memory of the hosts", True),
            ("in_use", eligible, "in use by guests", True),
            ("eligible", eligible, "eligible", True),
            ("zero", -zero * MIB, "zero pages (counted apart)", False),
            ("unique", -(eligible - zero * MIB - apart - could), "content found nowhere else",
             False),
            ("other_domain", -apart, "twin is in another domain's partition", False),
            ("could_merge", could, "has a twin it may merge with", True),
            ("written", -12 * MIB, "written before it could merge, or after", False),
            ("metadata", -metadata, "KSM's own records", False),
            ("saved", saved_bytes, "saved", True)]
        waterfalls.append({
            "format_version": 1, "kind": "planner.waterfall", "policy": policy, "digest": "d",
            "steps": [dict(zip(("key", "n_bytes", "text", "is_total"), step, strict=True))
                      for step in steps if step[1] or step[3]],
            "memos": [{"key": "cow_broken", "n_bytes": 40_960, "is_total": False,
                       "text": "merged, then written to (COW), over the whole run: 10 pages"}]})
    n = len(members)
    parts = [{"key": "thp", "n_bytes": 900 * MIB, "share": 0.486, "text": text,
              "instead": "split them"}]
    return {
        "format_version": 1, "kind": "planner.details", "digest": "4f1c9a" * 10 + "0000",
        "waterfalls": waterfalls,
        "sharing": [{
            "key": "domain", "members": list(members), "held_bytes": [600 * MIB] * n,
            "cells": [[(100 if i == j else 40 + i + j) * MIB for j in range(n)] for i in range(n)],
            "is_apart": [[i != j and 2 in (i, j) for j in range(n)] for i in range(n)],
            "n_left_out": 0}],
        "diagnosis": [{"trace": trace, "snapshot_id": 4, "n_bytes": guest_mib * MIB,
                       "obstacles": parts, "contents": parts, "notes": ["A note."]}],
    }


def make_validation(kind: str = "live", host: str = "lab-7") -> dict[str, Any]:
    """A record as `planner validate live` or `planner validate metrics` writes it."""
    if kind == "live":
        counters = {"pages_sharing": {
            "counter": "pages_sharing", "n_samples": 40, "measured_last": 1000, "model_last": 990,
            "last_error": -0.01, "error": 0.02, "bias": -0.015}}
        return {"format_version": 1, "kind": "planner.validation.live", "status": "complete",
                "created": "2026-11-20T10:00:00+00:00",
                "host": {"name": host, "kernel": "6.12.1"}, "knobs": {"pages_to_scan": 1000},
                "timings": "lab.json", "workload": {"description": "four guests of " + host},
                "forecast": counters, "replay": {}, "notes": ["loaded " + host]}
    return {"format_version": 1, "kind": "planner.validation.metrics", "policy": "ksmd-global",
            "host": "lab", "metrics_host": host, "aligned_by": "the time given",
            "counters": {"ksmd_cpu_ns": {
                "n_samples": 9, "measured_mean": 4e9, "simulated_mean": 3e9,
                "measured_last": 8_000_000_000, "simulated_last": 6_000_000_000, "error": 0.25,
                "bias": -0.25}}, "missing": ["cow_ksm"], "notes": []}
