"""A small fleet's result made by hand, for tests of the reports. Nothing here was measured.

Samples of hosts and events are made up; outcomes and plan are what `planner.planning` makes of
them, so that the page is tested against documents as they are written.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa

from planner.metrics import EVENTS, HOSTS, PARTITIONS, REPLICATES, SERIES, SUMMARY, Result
from planner.planning import Fleet, Outcome, outcome, plan, summary_row, sweep_document
from planner.scenario.spec import (
    CostsSpec,
    DomainsSpec,
    DrawSpec,
    FleetSpec,
    GuestSpec,
    HostSpec,
    IncidentSpec,
    Never,
    OutputSpec,
    PolicySpec,
    RequireSpec,
    Scenario,
    WorkloadSpec,
    to_json,
)
from tests.report_data import make_result

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
GIB = 1 << 30
HORIZON_NS = 3 * HOUR
WARM_UP_NS = HOUR // 2
STEP_NS = 5 * MINUTE
N_MACHINES = 4
ROOM = 64 * GIB
#: policy, merge, partition_by, share of guest memory saved, CPU s an hour and host, cross-domain
#: pages a host, hosts needed in the least replicate
POLICIES = [
    ("off", "never", "none", 0.0, 0.0, 0, 4),
    ("ksmd-global", "ksmd 1000/20ms", "none", 0.20, 90.0, 61_240, 2),
    ("sync-domain", "sync boot+60s", "domain", 0.12, 25.0, 0, 3),
]
NOTES = ("web: x1000 from 4 captured guests of 128 MiB over 6.00 min: they stand for 4 000",
         "web: x30 in time: guests live up to 3h00min")
INCIDENTS = [("drain", HOUR, "r750-0002", 12, 0), ("fail", 2 * HOUR, "r750-0004", 9, 2)]


def fleet_scenario(policies: list[tuple[Any, ...]], n_replicates: int, host: str,
                   domains: tuple[str, ...], require: tuple[RequireSpec, ...]) -> Scenario:
    """The scenario, with drawn guests on machines of one kind."""
    guests = tuple(GuestSpec(i, f"vm-{i}", domains[i % len(domains)], domains[i % len(domains)],
                             (("tenant", domains[i % len(domains)]),)) for i in range(4))
    return Scenario(
        format=1, name="made-up fleet", seed=1, horizon_ns=HORIZON_NS,
        hosts=(HostSpec(host, 68 * GIB, 4 * GIB, 32, 250, "builtin:unmeasured", count=N_MACHINES),),
        workloads=(WorkloadSpec("web", "traces/guests", "b3f2" * 16, "", (), guests, "captured",
                                DrawSpec(count=4000, domains=domains, image="debian13")),),
        domains=DomainsSpec((), (domains[0],)),
        policies=tuple(PolicySpec(each[0], (), (), Never()) for each in policies),
        output=OutputSpec("results", STEP_NS), warm_up_ns=WARM_UP_NS, replicates=n_replicates,
        fleet=FleetSpec(confidence=0.8,
                        incidents=(IncidentSpec("drain", HOUR, HOUR, f"{host}-0002"),)),
        costs=CostsSpec("EUR", 14_500.0, 4 * 365 * 24 * HOUR, 420.0, 0.24, 0.011, 3.1, 0.05),
        require=require)


def _samples(policy: tuple[Any, ...], hosts: tuple[str, ...], factor: float,
             guest_bytes: int) -> list[dict[str, Any]]:
    name, _, _, share, cpu_s, cross, _ = policy
    rows = []
    for number, host in enumerate(hosts):
        for step in range(HORIZON_NS // STEP_NS + 1):
            time_ns = step * STEP_NS
            reached = min(1.0, step / 4) * (0.7 if step == 24 and number == 1 else 1.0)
            saved = int(share * guest_bytes * factor * reached * (1 + 0.05 * number))
            cpu_ns = int(cpu_s * factor * time_ns / HOUR * SECOND)
            pages = saved // 4096
            rows.append({
                "policy": name, "host": host, "time_ns": time_ns,
                "guest_memory_bytes": guest_bytes, "eligible_bytes": guest_bytes * 9 // 10,
                "saved_bytes": saved, "saved_zero_bytes": guest_bytes // 40 if share else 0,
                "metadata_bytes": pages * 64, "pages_shared": pages // 5, "pages_sharing": pages,
                "pages_unshared": 0, "pages_volatile": 0, "pages_scanned": pages * step,
                "pages_skipped": 0, "ksm_zero_pages": 0, "stable_node_chains": 0,
                "stable_node_dups": 0, "pages_to_scan": 0, "general_profit_bytes": saved,
                "full_scans": step, "merge_cpu_ns": cpu_ns,
                # A storm on the second host after it was emptied and filled again.
                "cow_breaks": int(share * factor * 20_000) * step + (
                    900_000 if share and number == 1 and step > 24 else 0),
                "cross_domain_pages": int(cross * reached),
                "cross_domain_sensitive_pages": int(cross * reached) // 6,
                "unmerge_bytes": int(saved * 1.1), "n_guests": 100 + number,
                "scanner_cpu_ns": cpu_ns if "ksmd" in name else 0,
                "caller_cpu_ns": 0 if "ksmd" in name else cpu_ns,
                "merging_cpu_ns": cpu_ns // 5, "split_cpu_ns": cpu_ns // 8,
                "unmerge_cpu_ns": cpu_ns // 50, "cow_cpu_ns": cpu_ns // 10,
                "huge_splits": step * 40 if share else 0,
                "available_bytes": ROOM})
    return rows


def _partitions(policy: tuple[Any, ...], hosts: tuple[str, ...], domains: tuple[str, ...],
                ) -> list[dict[str, Any]]:
    name, _, by, share, _, cross, _ = policy
    counters = dict.fromkeys(("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile",
                              "cross_domain_sensitive_pages", "saved_zero_bytes"), 7)
    groups = [list(domains)] if by == "none" else [[domain] for domain in domains]
    return [{"policy": name, "host": host, "partition": "all" if by == "none" else found[0],
             "n_domains": len(found), "domains": found, "n_guests": 25, "eligible_pages": 1000,
             **counters, "saved_bytes": int(share * GIB), "cross_domain_pages": cross,
             "merge_cpu_ns": SECOND} for host in hosts for found in groups]


def _table(kind: Any, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=kind.schema)


@cache
def _outcomes(policies: tuple[tuple[Any, ...], ...], n_replicates: int, host: str,
              guest_bytes: int, share: float) -> tuple[Outcome, ...]:
    hosts = tuple(f"{host}-{number:04d}" for number in (1, 2, 4))
    starts = tuple((name, f"web-{i}", i * MINUTE) for i, name in enumerate(hosts * 8))
    fleet = Fleet(n_machines=N_MACHINES, n_cores=32 * N_MACHINES,
                  weights=dict.fromkeys(hosts, N_MACHINES / len(hosts)), available_bytes={},
                  warm_up_ns=WARM_UP_NS, horizon_ns=HORIZON_NS, sample_every_ns=STEP_NS,
                  is_drawn=True, confidence=0.8, content_share=share, n_guests=400,
                  hosts_used=N_MACHINES, starts=starts)
    found = []
    for policy in policies:
        for replicate in range(n_replicates):
            factor = 1 + 0.03 * ((replicate * 7) % 5 - 2)
            rows = _samples(policy, hosts, factor, guest_bytes)
            merged = [{"policy": policy[0], "host": name, "time_ns": start + (i + 1) * 7 * SECOND,
                       "kind": "guest_merged", "partition": "all", "guest": guest,
                       "tried_pages": 0, "merged_pages": 0, "candidate_pages": 0, "cpu_ns": 0}
                      for i, (name, guest, start) in enumerate(starts[:-2])] if policy[3] else []
            each = outcome(policy[0], replicate, fleet, _table(HOSTS, rows),
                           partitions=_partitions(policy, hosts, ("a", "b")), events=merged)
            saved = each.row["saved_bytes"]
            found.append(each.with_saved(saved, saved * 0.01).with_columns(
                hosts_needed=policy[6] + (replicate % 3 == 2)))
            if not replicate:
                found += [each.with_saved(saved * (1 + 0.02 * (b % 5 - 2)), 0).with_columns(
                    resample=b) for b in range(6)]
    return tuple(found)


def make_fleet(policies: list[tuple[Any, ...]] | None = None, *, n_replicates: int = 5,
               host: str = "r750", domains: tuple[str, ...] = ("tenant-a", "tenant-b"),
               guest_bytes: int = 50 * GIB, share: float = 0.05,
               require: tuple[RequireSpec, ...] | None = None,
               notes: tuple[str, ...] = NOTES, **run: Any) -> Result:
    """A result of 4 machines, 3 of them simulated; tuples as in POLICIES."""
    policies = POLICIES if policies is None else policies
    if require is None:
        require = tuple(each for each in (
            RequireSpec("sync-domain", "saved", at_least=0.05, is_share=True, confidence=0.8),
            RequireSpec("sync-domain", "cross_domain_pages", at_most=0.0),
            RequireSpec("ksmd-global", "cross_domain_pages", at_most=100.0))
            if each.policy in [policy[0] for policy in policies])
    scenario = fleet_scenario(policies, n_replicates, host, domains, require)
    outcomes = _outcomes(tuple(policies), n_replicates, host, guest_bytes, share)
    digest = "5e1f" * 16
    hosts = tuple(f"{host}-{number:04d}" for number in (1, 2, 4))
    summary = [summary_row({"policy": p[0], "merge": p[1], "partition_by": p[2]},
                           [o for o in outcomes if o.row["policy"] == p[0]],
                           HORIZON_NS - WARM_UP_NS) for p in policies]
    record = make_result().run | {
        "digest": digest, "warnings": list(notes),
        "assumptions": ["Guests are drawn like the captured ones."],
        "sampling": {"content_share": share, "n_hosts": 3, "n_hosts_with_guests": 4,
                     "n_machines": N_MACHINES, "is_sampled": True, "wanted_error": 0.01,
                     "n_pages_simulated": 1_234_567,
                     "errors": [{"replicate": 0, "policy": p[0], "error_share": 0.01,
                                 "host_error_bytes": 1e6, "content_error_bytes": None}
                                for p in policies if p[3]]},
        "replicates": [{
            "replicate": i, "n_guests": 400, "n_rejected": 0, "n_lost": 2, "hosts_used": 4,
            "rejected": ["web-400"], "incidents": [
                {"kind": kind, "time_ns": time_ns, "host": name.replace("r750", host),
                 "n_guests": n, "n_left": left} for kind, time_ns, name, n, left in INCIDENTS]}
            for i in range(n_replicates)], **run}
    events = [{"policy": p[0], "host": hosts[0], "time_ns": MINUTE, "kind": "guest_merged",
               "partition": "all", "guest": "web-1", "tried_pages": 1, "merged_pages": 1,
               "candidate_pages": 1, "cpu_ns": 1} for p in policies]
    return Result(
        to_json(scenario), record, _table(SUMMARY, summary),
        _table(HOSTS, [row for p in policies for row in _samples(p, hosts, 1.0, guest_bytes)]),
        _table(PARTITIONS, [row for p in policies for row in _partitions(p, hosts, domains)]),
        _table(EVENTS, events), _table(REPLICATES, [each.row for each in outcomes]),
        _table(SERIES, [row for each in outcomes if each.row["resample"] < 0
                        for row in each.series]),
        plan(scenario, outcomes, digest=digest, notes=notes))


def short_of_memory() -> Result:
    """A fleet that fits only while merged."""
    return make_fleet(guest_bytes=66 * GIB)


def make_sweep(result: Result) -> dict[str, Any]:
    """A sweep of two cases, of which `result` is the second."""
    assert result.plan is not None
    other: dict[str, Any] = {**result.plan, "digest": "other"}
    rows = result.replicates.to_pylist()
    less = [{**row, "saved_bytes": row["saved_bytes"] // 2} for row in rows]
    return sweep_document([
        ({"hosts.r750.count": 3, "policies.ksmd-global.merge": "slow"}, other, less),
        ({"hosts.r750.count": 4, "policies.ksmd-global.merge": "fast"}, result.plan, rows)])


def with_plan(result: Result, **changes: Any) -> Result:
    """The result with keys of its plan replaced."""
    return replace(result, plan={**(result.plan or {}), **changes})
