"""The resolved form of a scenario read back: little to fill in, much to hold against the traces."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence

from planner.scenario.load import RawScenario
from planner.scenario.resolve_fleet import resolved_draw, resolved_fleet, resolved_plan
from planner.scenario.resolve_policies import labels_of, resolved_policy
from planner.scenario.schema_resolved import ResolvedDocument
from planner.scenario.spec import (
    DomainsSpec,
    GuestSpec,
    HostSpec,
    LoadSpec,
    OutputSpec,
    Scenario,
    TraceFacts,
    WorkloadSpec,
)

__all__ = ["check_resolved", "domains_spec", "guest_spec", "resolved_scenario", "timings_of"]


def resolved_scenario(raw: RawScenario, document: ResolvedDocument) -> Scenario:
    """The scenario that a resolved form stands for."""
    precision, costs, require = resolved_plan(document)
    table = ""
    if document.fleet is not None and document.fleet.arrivals is not None:
        table = os.path.abspath(raw.base / document.fleet.arrivals.table)
    return Scenario(
        format=document.planner,
        name=document.name,
        seed=document.seed,
        horizon_ns=document.horizon_ns,
        hosts=tuple(
            HostSpec(h.name, h.memory_bytes, h.reserved_bytes, h.cores, h.hz,
                     timings_of(raw, h.timings), h.kernel, h.count,
                     None if h.load is None
                     else LoadSpec(h.load.low, h.load.high, h.load.period_ns))
            for h in document.hosts
        ),
        workloads=tuple(
            WorkloadSpec(
                name=w.name,
                trace=os.path.abspath(raw.base / w.trace),
                trace_digest=w.trace_digest,
                host=w.host,
                select=labels_of(w.select),
                guests=tuple(
                    guest_spec(g.trace_guest_id, g.name, g.domain, g.group, g.labels)
                    for g in w.guests
                ),
                mergeable=w.mergeable,
                draw=resolved_draw(w.draw),
            )
            for w in document.workloads
        ),
        domains=domains_spec(document.domains.groups, document.domains.sensitive),
        policies=tuple(map(resolved_policy, document.policies)),
        output=OutputSpec(document.output.folder, document.output.sample_every_ns),
        replicates=document.replicates,
        warm_up_ns=document.warm_up_ns,
        fleet=resolved_fleet(document.fleet, table),
        precision=precision,
        costs=costs,
        require=require,
    )


def check_resolved(raw: RawScenario, scenario: Scenario,
                   facts: Sequence[TraceFacts | None]) -> None:
    """The explicit guests, groups and digests of a resolved form must still be true."""
    group_of = {
        domain: name for name, members in scenario.domains.groups for domain in members
    }
    for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
        if trace is not None and trace.digest != workload.trace_digest:
            raw.fault(
                ("workloads", index, "trace_digest"),
                f"the trace's digest is {trace.digest[:16]} now; it is not the one this "
                "scenario was resolved with",
            )
        ids = {guest.guest_id for guest in trace.guests} if trace is not None else None
        for position, guest in enumerate(workload.guests):
            path = ("workloads", index, "guests", position)
            if ids is not None and guest.trace_guest_id not in ids:
                raw.fault((*path, "trace_guest_id"),
                               f"the trace has no guest {guest.trace_guest_id}")
            if guest.group != group_of.get(guest.domain, guest.domain):
                raw.fault(
                    (*path, "group"),
                    f"domain {guest.domain!r} belongs to "
                    f"{group_of.get(guest.domain, guest.domain)!r}, not to {guest.group!r}",
                )
    for index, workload in enumerate(scenario.workloads):
        if (workload.draw is not None) != scenario.is_fleet:
            raw.fault(("workloads", index), f"workload {workload.name!r} "
                      + ("does not say how its guests are drawn (draw)" if scenario.is_fleet else
                         "draws its guests, but no fleet is there to place them"))
    counts = Counter(guest.name for w in scenario.workloads for guest in w.guests)
    for index, workload in enumerate(scenario.workloads):
        for position, guest in enumerate(workload.guests):
            if counts[guest.name] > 1:
                raw.fault(("workloads", index, "guests", position, "name"),
                               f"more than one guest is named {guest.name!r}")


def guest_spec(guest_id: int, name: str, domain: str, group: str,
               labels: Mapping[str, str]) -> GuestSpec:
    """A guest with the labels that follow from its other fields."""
    own = {"domain": domain, "group": group, "guest": name}
    return GuestSpec(guest_id, name, domain, group, labels_of({**labels, **own}))


def domains_spec(groups: Mapping[str, Sequence[str]], sensitive: Sequence[str]) -> DomainsSpec:
    """Groups in the order given, and the sensitive domains."""
    return DomainsSpec(
        tuple((name, tuple(members)) for name, members in groups.items()), tuple(sensitive)
    )


def timings_of(raw: RawScenario, timings: str) -> str:
    """The name of built-in timings, or the absolute path of a calibration."""
    return (timings if timings.startswith("builtin:")
            else os.path.abspath(raw.base / timings))
