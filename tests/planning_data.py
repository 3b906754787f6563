"""Samples, fleets and scenarios made by hand, for tests of planning. Nothing here was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from planner.metrics import HOSTS
from planner.planning import Fleet, Outcome, outcome
from planner.scenario.spec import (
    DomainsSpec,
    FleetSpec,
    HostSpec,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
)

SECOND = 10**9
HOUR = 3600 * SECOND
GIB = 1 << 30
PAGE = 4096


def fleet(**changes: Any) -> Fleet:
    """Two machines of 10 GiB and 4 cores each, an hour counted after half an hour."""
    return replace(Fleet(
        n_machines=2, n_cores=8, weights={}, available_bytes={"a": 10 * GIB, "b": 10 * GIB},
        warm_up_ns=HOUR // 2, horizon_ns=HOUR + HOUR // 2, sample_every_ns=HOUR // 2,
        is_drawn=True, n_guests=6, hosts_used=2), **changes)


def sample(host: str, time_ns: int, **columns: int) -> dict[str, Any]:
    """A row of HOSTS; columns not given are 0, or null where they may be."""
    blank = {field.name: None if field.nullable else 0 for field in HOSTS.schema}
    return {**blank, "policy": "p", "host": host, "time_ns": time_ns, **columns}


def samples(*rows: dict[str, Any]) -> pa.Table:
    """Rows as a table of samples."""
    return pa.Table.from_pylist(list(rows), schema=HOSTS.schema)


def simple_outcome(policy: str, replicate: int, saved: int, *, resample: int = -1,
                   memory: int = 8 * GIB, **columns: Any) -> Outcome:
    """Two hosts that save `saved` bytes of `memory` each, all the time."""
    rows = [sample(host, 0, guest_memory_bytes=memory, eligible_bytes=memory, saved_bytes=saved,
                   unmerge_bytes=saved, merge_cpu_ns=0) for host in "ab"]
    rows += [{**row, "time_ns": HOUR, "merge_cpu_ns": 36 * SECOND if saved else 0}
             for row in rows]
    found = outcome(policy, replicate, fleet(), samples(*rows), resample=resample)
    return found.with_columns(**columns)


def fleet_scenario(*policies: str, **changes: Any) -> Scenario:
    """A scenario of a fleet with policies of these names."""
    return replace(Scenario(
        format=1, name="made-up", seed=1, horizon_ns=HOUR + HOUR // 2,
        hosts=(HostSpec("host", 10 * GIB, 0, 4, 250, "builtin:unmeasured", count=2),),
        workloads=(), domains=DomainsSpec((), ()),
        policies=tuple(PolicySpec(name, (), (), Never()) for name in policies),
        output=OutputSpec("results", HOUR // 2), warm_up_ns=HOUR // 2,
        fleet=FleetSpec(confidence=0.95)), **changes)
