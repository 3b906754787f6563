"""Resolved scenarios for tests, made without a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.scenario.spec import (
    DomainsSpec,
    GuestSpec,
    HostSpec,
    Kernel,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
    WorkloadSpec,
)
from planner.trace import open_trace

SECOND = 1_000_000_000
NEVER = PolicySpec("off", (), (), Never())
#: A scenario file of a trace in the same folder: never, ksmd, and a partition a domain.
SMALL_YAML = """\
planner: 1
name: small
hosts:
  - {name: host, memory: 1GiB}
workloads:
  - {name: all, trace: trace}
policies:
  - {name: off, merge: never}
  - {name: ksmd, merge: {ksmd: {pages_to_scan: 1000}}}
  - {name: domain, partition_by: domain, merge: {sync: {at: [{boot: {after: 1s}}]}}}
output: {sample_every: 5s}
"""


def scenario_for(trace: Path, policies: Sequence[PolicySpec] = (NEVER,), *,
                 horizon_ns: int | None = None, mergeable: str = "captured", seed: int = 1,
                 sensitive: tuple[str, ...] = (), sample_every_ns: int = SECOND,
                 kernel: Kernel = "6.18") -> Scenario:
    """All guests of a trace on one host; a guest's domain is its tenant label, else its name."""
    opened = open_trace(trace)
    guests = []
    for guest in opened.guests:
        domain = guest.labels.get("tenant", guest.name)
        own = {"domain": domain, "group": domain, "guest": guest.name}
        guests.append(GuestSpec(guest.guest_id, guest.name, domain, domain,
                                tuple(sorted({**guest.labels, **own}.items()))))
    return Scenario(
        1, "test", seed, opened.span_ns if horizon_ns is None else horizon_ns,
        (HostSpec("host", 1 << 34, 1 << 30, 2, 250, "builtin:unmeasured", kernel),),
        (WorkloadSpec("all", str(trace), opened.digest, "host", (), tuple(guests),
                      mergeable),),
        DomainsSpec((), sensitive), tuple(policies), OutputSpec("results", sample_every_ns))
