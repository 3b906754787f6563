"""Cross-checks of what came with drawn guests: their memory, incidents, and timings of policies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from planner.scenario.load import Part, RawScenario
from planner.scenario.schema_fleet import MAX_GUESTS, MAX_HOSTS
from planner.scenario.spec import (
    ArrivalFacts,
    FreePages,
    HostSpec,
    IncidentSpec,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Merge,
    Scenario,
    Sync,
    TraceFacts,
    Trigger,
    WorkloadSpec,
)
from planner.scenario.words import did_you_mean
from planner.units import format_duration, format_size

__all__ = ["check_arrivals", "check_fleet", "check_merges"]

_PAGE_BYTES = 4096
_HOUR_NS = 3600 * 10**9
#: Near words are sought among so many machines.
_MAX_NEAR = 1000
_MAX_TRIGGERS = 100_000
Facts = Sequence[TraceFacts | None]
Path = tuple[Part, ...]


def check_fleet(raw: RawScenario, scenario: Scenario, facts: Facts, notes: list[str]) -> None:
    """Drawn guests fit a host and their captures; incidents befall what is there."""
    _check_machines(raw, scenario.hosts)
    rooms = [host.memory_bytes - host.reserved_bytes
             for index, host in enumerate(scenario.hosts)
             if not raw.is_doubtful("hosts", index, "memory")]
    for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
        if trace is None:
            continue
        _check_memory(raw, index, workload, trace, max(rooms, default=None))
        if workload.guests:
            notes += _extrapolations(workload, trace)
    n_hosts = sum(host.count for host in scenario.hosts)
    if scenario.precision.n_hosts > n_hosts:
        raw.fault(("precision", "hosts"), f"{scenario.precision.n_hosts} hosts are more than the "
                  f"{n_hosts} there are")
    n_guests = sum(_expected_guests(workload, scenario.horizon_ns)
                   for workload in scenario.workloads)
    if n_guests > MAX_GUESTS and not raw.is_doubtful("horizon"):
        raw.fault(("workloads",), f"{n_guests} guests are expected within the horizon; at most "
                  f"{MAX_GUESTS}", at_key=True)
    if scenario.fleet is not None and scenario.fleet.incidents:
        machines = {name for host in scenario.hosts for name in host.names} \
            if n_hosts <= MAX_HOSTS else set()
        for index, incident in enumerate(scenario.fleet.incidents):
            _check_incident(raw, _incident_path(raw, index, incident), incident, scenario,
                            machines, n_hosts)


def _expected_guests(workload: WorkloadSpec, horizon_ns: int) -> int:
    draw = workload.draw
    return 0 if draw is None else draw.count + int(draw.arrivals_per_hour * horizon_ns / _HOUR_NS)


def _check_machines(raw: RawScenario, hosts: Sequence[HostSpec]) -> None:
    n_hosts = sum(host.count for host in hosts)
    if n_hosts > MAX_HOSTS:
        raw.fault(("hosts",), f"{n_hosts} hosts; at most {MAX_HOSTS}", at_key=True)
        return
    owner: dict[str, str] = {}
    for index, host in enumerate(hosts if len(hosts) > 1 else ()):
        for name in host.names:
            if owner.setdefault(name, host.name) != host.name:
                raw.fault(("hosts", index, "name"),
                          f"machine {name!r} would be one of {host.name!r} and of "
                          f"{owner[name]!r}; rename one of them")
                break


def _captured_bytes(workload: WorkloadSpec, trace: TraceFacts) -> int:
    """The memory of the largest captured guest of the workload: what it has, else what it held."""
    taken = {guest.trace_guest_id for guest in workload.guests}
    return max((guest.memory_bytes or guest.n_pages * _PAGE_BYTES for guest in trace.guests
                if guest.guest_id in taken), default=0)


def _check_memory(raw: RawScenario, index: int, workload: WorkloadSpec, trace: TraceFacts,
                  room_bytes: int | None) -> None:
    draw = workload.draw
    if draw is None or raw.is_doubtful("workloads", index, "memory"):
        return
    captured = _captured_bytes(workload, trace)
    at: Path = ("workloads", index, "memory")
    if draw.memory_bytes is not None and draw.memory_bytes < captured:
        raw.fault(at, f"{format_size(draw.memory_bytes)} is less than the {format_size(captured)} "
                  "of a captured guest; give more, or leave memory out for as captured")
    elif room_bytes is not None:
        need = draw.memory_bytes or captured
        if need > room_bytes > 0:
            raw.fault(at if draw.memory_bytes else at[:2],
                      f"a guest of {format_size(need)} fits no host: the largest has "
                      f"{format_size(room_bytes)} for guests")


def _extrapolations(workload: WorkloadSpec, trace: TraceFacts) -> list[str]:
    found = []
    if len(workload.guests) == 1:
        found.append(f"workload {workload.name!r} is drawn from one captured guest: what its "
                     "guests have in common is a guess then, with a wide interval; capture three "
                     "or more alike")
    if trace.span_ns <= 0:
        found.append(f"workload {workload.name!r} is drawn from one snapshot: its guests write "
                     "nothing after their start; capture several snapshots for that")
    return found


# ---- incidents and arrivals -----------------------------------------------------------------


def _incident_path(raw: RawScenario, index: int, incident: IncidentSpec) -> Path:
    if isinstance(raw.root.value, dict) and "fleet" in raw.root.value:
        return ("fleet", "incidents", index)
    return ("incidents", index, incident.kind)


def _check_incident(raw: RawScenario, at: Path, incident: IncidentSpec, scenario: Scenario,
                    machines: Collection[str], n_hosts: int) -> None:
    if incident.at_ns >= scenario.horizon_ns and not raw.is_doubtful("horizon"):
        raw.fault((*at, "at"), f"{format_duration(incident.at_ns)} is not before the end of the "
                  f"simulation, {format_duration(scenario.horizon_ns)}")
    if incident.host and machines and incident.host not in machines:
        raw.fault((*at, "host"), f"no machine is named {incident.host!r}"
                  f"{_machine_hint(incident.host, scenario.hosts, machines)}")
    if incident.kind != "migrate" and incident.n_hosts > n_hosts:
        raw.fault((*at, "hosts"), f"{incident.n_hosts} hosts are more than the {n_hosts} there are")
    if incident.kind == "pressure":
        sizes = [host.memory_bytes - host.reserved_bytes for index, host in
                 enumerate(scenario.hosts) if not raw.is_doubtful("hosts", index, "memory")
                 and (not incident.host or incident.host in host.names)]
        if sizes and incident.bytes > max(sizes):
            raw.fault((*at, "memory"), f"{format_size(incident.bytes)} is more than any such host "
                      f"has for guests, {format_size(max(sizes))}")


def _machine_hint(name: str, hosts: Sequence[HostSpec], machines: Collection[str]) -> str:
    for host in hosts:
        if host.name == name:
            return f"; its machines are {host.names[0]} to {host.names[-1]}"
    if len(machines) <= _MAX_NEAR:
        return did_you_mean(name, machines)
    spans = [f"{host.names[0]} to {host.names[-1]}" if host.count > 1 else host.name
             for host in hosts[:12]]
    return f"; known: {', '.join(spans)}"


def check_arrivals(raw: RawScenario, scenario: Scenario, table: ArrivalFacts,
                   notes: list[str]) -> None:
    """Rows of the arrival table come within the horizon, and fit a host."""
    if scenario.fleet is None or scenario.fleet.arrivals is None:
        return
    arrivals = scenario.fleet.arrivals
    is_resolved = isinstance(raw.root.value, dict) and "fleet" in raw.root.value
    at: Path = ("fleet", "arrivals") if is_resolved else ("arrivals",)
    if arrivals.digest != table.digest:
        raw.fault((*at, "digest"), f"the table's digest is {table.digest[:16]} now; it is not the "
                  "one this scenario was resolved with")
    end_ns = arrivals.from_ns + int(scenario.horizon_ns * arrivals.speed)
    if (table.last_ns < arrivals.from_ns or table.first_ns >= end_ns) \
            and not raw.is_doubtful("horizon") and not raw.is_doubtful(*at):
        raw.fault(
            (*at, "from_ns" if is_resolved else "from"),
            f"no row of the table comes within the horizon: its rows are from "
            f"{_clock(table.first_ns)} to {_clock(table.last_ns)} of its clock, looked at from "
            f"{_clock(arrivals.from_ns)} to {_clock(end_ns)}; write from: {_clock(table.first_ns)}",
        )
    rooms = [host.memory_bytes - host.reserved_bytes for host in scenario.hosts]
    if rooms and table.most_memory_bytes > max(rooms):
        notes.append(f"{table.path}: rows of more memory than any host has for guests "
                     f"({format_size(max(rooms))}) are left out; the largest has "
                     f"{format_size(table.most_memory_bytes)}")


def _clock(n_ns: int) -> str:
    """A time as a scenario can say it."""
    for unit, unit_ns in (("d", 86400 * 10**9), ("h", 3600 * 10**9), ("min", 60 * 10**9),
                          ("s", 10**9), ("ms", 10**6)):
        if n_ns and n_ns % unit_ns == 0:
            return f"{n_ns // unit_ns}{unit}"
    return f"{n_ns}ns" if n_ns else "0s"


# ---- timings of policies --------------------------------------------------------------------


def check_merges(raw: RawScenario, scenario: Scenario, index: int) -> None:
    """The timings of a policy and of its partitions can happen on these hosts, in this time."""
    policy = scenario.policies[index]
    at: Path = ("policies", index)
    _check_merge(raw, scenario, (*at, "merge"), policy.merge)
    seen: set[str] = set()
    for number, rule in enumerate(policy.partitions):
        place = (*at, "partitions", number)
        if rule.name in seen:
            raw.fault((*place, "name"), f"{rule.name!r} is already the name of a partition")
        elif rule.name == "rest":
            raw.fault((*place, "name"), "'rest' is the name of what belongs to no partition named "
                      "here; choose another")
        seen.add(rule.name)
        if isinstance(rule.merge, Ksmtuned | KubeVirt | FreePages):
            raw.fault((*place, "merge"), "this acts on a host as a whole, not on a partition; "
                      "write never, ksmd or sync, or make it the merge of the policy")
        elif rule.merge is not None:
            _check_merge(raw, scenario, (*place, "merge"), rule.merge)
    if isinstance(policy.merge, FreePages):
        parted = {"partition_by": policy.partition_by, "partitions": policy.partitions}
        for key, value in parted.items():
            if value:
                raw.fault((*at, key), "nothing is merged by this policy, so nothing is parted; "
                          f"leave {key} out", at_key=True)


def _check_merge(raw: RawScenario, scenario: Scenario, at: Path, merge: Merge) -> None:
    if isinstance(merge, Ksmd):
        old = [host.name for host in scenario.hosts if host.kernel == "6.1"]
        for name in sorted(merge.given()):
            if old and (name == "smart_scan" or name.startswith("advisor_")):
                raw.fault((*at, "ksmd", name), f"kernel 6.1 of host {old[0]!r} has no {name}",
                          at_key=True)
    elif isinstance(merge, Sync):
        _check_triggers(raw, scenario, (*at, "sync"), merge)
    elif isinstance(merge, Ksmtuned) and merge.npages_min > merge.npages_max:
        raw.fault((*at, "ksmtuned"), f"KSM_NPAGES_MIN {merge.npages_min} is above KSM_NPAGES_MAX "
                  f"{merge.npages_max}")
    elif isinstance(merge, KubeVirt) and merge.pages_min > merge.pages_max:
        raw.fault((*at, "kubevirt"), f"pages_min {merge.pages_min} is above pages_max "
                  f"{merge.pages_max}")


def _check_triggers(raw: RawScenario, scenario: Scenario, sync: Path, merge: Sync) -> None:
    at = (*sync, "at")
    horizon_ns = scenario.horizon_ns
    if merge.advisor is not None and merge.advisor.shortest_ns > merge.advisor.longest_ns:
        raw.fault((*sync, "advisor"), "the shortest interval, "
                  f"{format_duration(merge.advisor.shortest_ns)}, is above the longest, "
                  f"{format_duration(merge.advisor.longest_ns)}")
    if raw.is_doubtful(*at):
        return
    for position, trigger in enumerate(merge.at):
        if trigger in merge.at[:position]:
            raw.fault((*at, position), "the same trigger is given twice")
        _check_trigger(raw, scenario, (*at, position), trigger)
    if raw.is_doubtful("horizon") or horizon_ns <= 0:
        return
    for position, trigger in enumerate(merge.at):
        if trigger.every_ns and horizon_ns // trigger.every_ns > _MAX_TRIGGERS:
            raw.fault(
                (*at, position),
                f"{horizon_ns // trigger.every_ns} merges within the horizon; at most "
                f"{_MAX_TRIGGERS}, so merge less often",
            )
    if merge.advisor is None and all(
            max(trigger.after_ns, trigger.every_ns) > horizon_ns
            for trigger in merge.at if trigger.kind in ("boot", "restore", "every")) and not any(
            trigger.kind in ("pressure", "idle") for trigger in merge.at):
        raw.fault(
            at,
            f"no merge falls within the horizon of {format_duration(horizon_ns)}; "
            "trigger earlier, such as boot: {after: 5s}, or simulate for longer",
        )


def _check_trigger(raw: RawScenario, scenario: Scenario, at: Path, trigger: Trigger) -> None:
    """The scenario has what the trigger looks at."""
    if trigger.kind == "idle":
        without = [host.name for host in scenario.hosts if host.load is None]
        if without:
            raw.fault(at, f"nothing says how busy host {without[0]!r} is, so nobody can tell when "
                      "it is idle; give it a load, such as load: {low: 10%, high: 60%}")
    if trigger.kind == "restore" and not any(
            workload.draw is not None and workload.draw.is_restored
            for workload in scenario.workloads):
        raw.fault(at, "no guest of this scenario is restored; write start: restored in a workload "
                  "whose guests are drawn, or trigger at boot")
