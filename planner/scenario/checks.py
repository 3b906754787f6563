"""Cross-checks of a resolved scenario, whichever form it was written in.

Every problem is added to the RawScenario with its place, what is merely worth knowing to the
notes. What only scenarios with drawn guests have is in `checks_fleet`.
"""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.measures import METRICS
from planner.scenario.checks_fleet import check_fleet, check_merges
from planner.scenario.load import Part, RawScenario
from planner.scenario.spec import (
    OWN_LABELS,
    HostSpec,
    Labels,
    PolicySpec,
    Scenario,
    TraceFacts,
    WorkloadSpec,
)
from planner.scenario.words import did_you_mean
from planner.units import format_duration, format_size

__all__ = ["check_scenario"]

_PAGE_BYTES = 4096
_TIMINGS = "builtin:unmeasured"
#: Beyond these a run would only fill the disk.
_MAX_SAMPLES = 100_000
Facts = Sequence[TraceFacts | None]


def check_scenario(raw: RawScenario, scenario: Scenario, facts: Facts,
                   notes: list[str]) -> None:
    """Add every fault of the scenario to `raw`, and what a reader should know to `notes`."""
    _check_names(raw, scenario)
    _check_hosts(raw, scenario)
    _check_traces(raw, scenario, facts)
    if scenario.is_fleet:
        check_fleet(raw, scenario, facts, notes)
    else:
        _check_replay(raw, scenario, facts)
        _check_horizon(raw, scenario, facts)
    _check_times(raw, scenario)
    _check_domains(raw, scenario, facts)
    _check_policies(raw, scenario, facts, notes)
    _check_require(raw, scenario)


def _check_names(raw: RawScenario, scenario: Scenario) -> None:
    lists: tuple[tuple[str, Sequence[HostSpec | WorkloadSpec | PolicySpec]], ...] = (
        ("hosts", scenario.hosts),
        ("workloads", scenario.workloads),
        ("policies", scenario.policies),
    )
    for kind, entries in lists:
        seen: set[str] = set()
        for index, entry in enumerate(entries):
            path = (kind, index, "name")
            if entry.name in seen and not raw.is_doubtful(*path):
                raw.fault(path, f"{entry.name!r} is already the name of one of {kind}")
            seen.add(entry.name)


def _check_hosts(raw: RawScenario, scenario: Scenario) -> None:
    for index, host in enumerate(scenario.hosts):
        if host.timings != _TIMINGS and not os.path.isfile(host.timings):
            raw.fault(
                ("hosts", index, "timings"),
                f"there is no calibration {os.path.relpath(host.timings, raw.base.absolute())!r}; "
                f"write {_TIMINGS}, or name a file that planner calibrate wrote",
            )
        if not raw.is_doubtful("hosts", index, "memory") and \
                host.memory_bytes <= host.reserved_bytes:
            raw.fault(
                ("hosts", index, "reserved"),
                f"reserves {format_size(host.reserved_bytes)} of "
                f"{format_size(host.memory_bytes)}; nothing is left for guests",
            )
        if host.load is not None and host.load.low > host.load.high:
            raw.fault(("hosts", index, "load", "low"), "the least load is above the most")


def _check_replay(raw: RawScenario, scenario: Scenario, facts: Facts) -> None:
    """Captured guests are on a host that is there and has room for them."""
    names = [host.name for host in scenario.hosts]
    # Without its inventory the hosts are not known; that fault is told already.
    is_naming_sure = bool(names) and not any(
        raw.is_doubtful("hosts", index, "name") for index in range(len(names))
    )
    need_bytes: Counter[str] = Counter()
    for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
        if workload.host not in names and is_naming_sure:
            raw.fault(
                ("workloads", index, "host"),
                f"no host is named {workload.host!r}{did_you_mean(workload.host, names)}",
            )
        if trace is not None:
            pages = {guest.guest_id: guest.n_pages for guest in trace.guests}
            need_bytes[workload.host] += _PAGE_BYTES * sum(
                pages.get(guest.trace_guest_id, 0) for guest in workload.guests
            )
    for index, host in enumerate(scenario.hosts):
        left_bytes = host.memory_bytes - host.reserved_bytes
        if 0 < left_bytes < need_bytes[host.name] and not raw.is_doubtful("hosts", index, "memory"):
            raw.fault(
                ("hosts", index, "memory"),
                f"the guests of host {host.name!r} hold "
                f"{format_size(need_bytes[host.name])} as captured, but only "
                f"{format_size(left_bytes)} are left after "
                f"{format_size(host.reserved_bytes)} reserved",
            )


def _check_traces(raw: RawScenario, scenario: Scenario, facts: Facts) -> None:
    first: TraceFacts | None = None
    user_of: dict[tuple[str, int], str] = {}
    for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
        if trace is None:
            continue
        first = first or trace
        path = ("workloads", index, "trace")
        if trace.algorithm != first.algorithm:
            raw.fault(
                path,
                f"hashed with {trace.algorithm}, but {short_name(first)} with {first.algorithm}: "
                "their pages cannot be compared; capture both alike",
            )
        elif trace.key_id != first.key_id:
            raw.fault(
                path,
                f"hashed under key {trace.key_id}, but {short_name(first)} under "
                f"{first.key_id}: their pages cannot be compared; capture both with one key",
            )
        if workload.draw is not None:
            continue  # drawn guests only resemble the captured ones
        taken: dict[str, list[str]] = {}
        for guest in workload.guests:
            user = user_of.setdefault((trace.digest, guest.trace_guest_id), workload.name)
            if user != workload.name:
                name = next((g.name for g in trace.guests
                             if g.guest_id == guest.trace_guest_id), guest.name)
                taken.setdefault(user, []).append(name)
        for user, guests in taken.items():
            shown = ", ".join(guests[:3]) + (", ..." if len(guests) > 3 else "")
            raw.fault(
                ("workloads", index),
                f"workload {workload.name!r} takes guests that {user!r} has already "
                f"({shown}); a captured guest stands once, so narrow one with select",
            )


def _check_horizon(raw: RawScenario, scenario: Scenario, facts: Facts) -> None:
    if raw.is_doubtful("horizon"):
        return
    known = [(trace.span_ns, index) for index, trace in enumerate(facts) if trace is not None]
    if not known:
        return
    span_ns, index = min(known)
    shortest = facts[index]
    assert shortest is not None
    if span_ns <= 0:
        raw.fault(
            ("workloads", index, "trace"),
            f"the trace spans no time ({shortest.n_snapshots} snapshot"
            f"{'s' if shortest.n_snapshots != 1 else ''}), so nothing can happen in it; "
            "capture at least two snapshots (planner capture --snapshots 2 --every 30s)",
        )
    elif scenario.horizon_ns > span_ns:
        raw.fault(
            ("horizon_ns" if "horizon_ns" in raw.root.value else "horizon",),
            f"{format_duration(scenario.horizon_ns)} is beyond the capture: {short_name(shortest)} "
            f"spans {format_duration(span_ns)} ({span_ns} ns); write captured or a shorter "
            "time, or capture for longer",
        )


def _check_domains(raw: RawScenario, scenario: Scenario, facts: Facts) -> None:
    domains = {domain for workload in scenario.workloads for domain in _domains_of(workload)}
    is_known = None not in facts and not _has_unknown_domains(scenario) and not any(
        raw.is_doubtful("workloads", index, key)
        for index in range(len(scenario.workloads))
        for key in ("domain", "select", "count", "labels")
    )
    groups = dict(scenario.domains.groups)
    group_of: dict[str, str] = {}
    for name, members in groups.items():
        if name in domains and name not in members:
            raw.fault(
                ("domains", "groups", name),
                f"group {name!r} has the name of a domain that is not in it; rename the group",
                at_key=True,
            )
        for position, domain in enumerate(members):
            path: tuple[Part, ...] = ("domains", "groups", name, position)
            if domain in group_of:
                fault = ("twice in this group" if group_of[domain] == name
                         else f"in group {group_of[domain]!r} already; a domain has one group")
                raw.fault(path, f"domain {domain!r} is {fault}")
            group_of.setdefault(domain, name)
            if is_known and domain not in domains:
                raw.fault(path, _no_domain(domain, domains, groups))
    for position, domain in enumerate(scenario.domains.sensitive):
        path = ("domains", "sensitive", position)
        if domain in scenario.domains.sensitive[:position]:
            raw.fault(path, f"domain {domain!r} is given twice")
        elif is_known and domain not in domains:
            raw.fault(path, _no_domain(domain, domains, groups))


def _domains_of(workload: WorkloadSpec) -> Iterable[str]:
    if workload.draw is not None and workload.draw.domains:
        return workload.draw.domains
    return (guest.domain for guest in workload.guests)


def _has_unknown_domains(scenario: Scenario) -> bool:
    """Tenants of an arrival table are domains that only the table knows."""
    return any(workload.draw is not None and workload.draw.table_share > 0
               and not workload.draw.domains for workload in scenario.workloads)


@dataclass(frozen=True, slots=True)
class _KnownLabels:
    """Values by label key of all guests and regions; `open_keys` have more than are listed."""

    values: dict[str, set[str]]
    open_keys: set[str]

    def check(self, raw: RawScenario, path: tuple[Part, ...], labels: Labels) -> None:
        if raw.is_doubtful(*path):
            return
        for key, value in labels:
            if key not in self.values:
                raw.fault((*path, key), f"no guest or region has a label {key!r}"
                          f"{did_you_mean(key, self.values)}", at_key=True)
            elif value not in self.values[key] and key not in self.open_keys:
                raw.fault((*path, key), f"no guest or region has {key}={value}"
                          f"{did_you_mean(value, self.values[key])}")


def _known_labels(scenario: Scenario, facts: Facts) -> _KnownLabels:
    values: dict[str, set[str]] = {}
    for workload in scenario.workloads:
        for guest in workload.guests:
            for key, value in guest.labels:
                values.setdefault(key, set()).add(value)
        if workload.draw is not None:
            for domain in workload.draw.domains:
                values.setdefault("domain", set()).add(domain)
    open_keys: set[str] = set()
    for trace in facts:
        if trace is not None:
            open_keys |= trace.region_label_keys - set(trace.region_labels)
            for key in trace.region_label_keys:
                values.setdefault(key, set()).update(trace.region_labels.get(key, ()))
    if scenario.is_fleet:
        # Names of drawn guests, and groups and domains that only the draw gives them.
        open_keys |= {"guest", "group"} | ({"domain"} if _has_unknown_domains(scenario) else set())
    return _KnownLabels(values, open_keys)


def _check_policies(raw: RawScenario, scenario: Scenario, facts: Facts,
                    notes: list[str]) -> None:
    known = _known_labels(scenario, facts)
    is_known = None not in facts and not any(
        raw.is_doubtful("workloads", index, key)
        for index in range(len(scenario.workloads))
        for key in ("domain", "select", "count", "labels", "image")
    )
    for index, policy in enumerate(scenario.policies):
        at = ("policies", index)
        if is_known:
            for position, key in enumerate(policy.partition_by):
                if key not in known.values and key not in OWN_LABELS:
                    raw.fault(
                        (*at, "partition_by", position),
                        f"no guest or region has a label {key!r}"
                        f"{did_you_mean(key, {'none', *OWN_LABELS, *known.values})}",
                    )
                else:
                    notes += _lacking(policy, key, scenario, facts)
            for position, labels in enumerate(policy.exclude):
                known.check(raw, (*at, "exclude", position), labels)
            for number, rule in enumerate(policy.partitions):
                for position, labels in enumerate(rule.match):
                    known.check(raw, (*at, "partitions", number, "match", position), labels)
            inside = (policy.cooperation.kind,) if policy.cooperation.kind == "full" else ()
            for position, labels in enumerate(policy.cooperation.ranges):
                known.check(raw, (*at, "cooperation", *inside, "ranges", position), labels)
        check_merges(raw, scenario, index)


def _lacking(policy: PolicySpec, key: str, scenario: Scenario, facts: Facts) -> list[str]:
    """A note where some guests, but not all, lack the label that separates partitions."""
    if any(trace is not None and key in trace.region_label_keys for trace in facts):
        return []
    guests = [guest for workload in scenario.workloads for guest in workload.guests]
    without = [guest.name for guest in guests if key not in dict(guest.labels)]
    if not without or len(without) == len(guests):
        return []
    shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    return [f"policy {policy.name!r}: {len(without)} of {len(guests)} captured guests have no "
            f"label {key!r} ({shown}); each of them gets a partition of its own"]


def _check_times(raw: RawScenario, scenario: Scenario) -> None:
    n_samples = scenario.horizon_ns // scenario.output.sample_every_ns
    if n_samples > _MAX_SAMPLES:
        raw.fault(
            ("output", "sample_every"),
            f"{n_samples} samples of each host; at most {_MAX_SAMPLES}, so sample less often",
        )
    if scenario.warm_up_ns and scenario.warm_up_ns >= scenario.horizon_ns \
            and not raw.is_doubtful("horizon"):
        raw.fault(
            ("warm_up_ns" if "warm_up_ns" in raw.root.value else "warm_up",),
            f"{format_duration(scenario.warm_up_ns)} leaves nothing to count of "
            f"{format_duration(scenario.horizon_ns)}; warm up for less, or simulate for longer",
        )


def _check_require(raw: RawScenario, scenario: Scenario) -> None:
    names = [policy.name for policy in scenario.policies]
    for index, required in enumerate(scenario.require):
        if required.policy not in names and not any(
                raw.is_doubtful("policies", position, "name") for position in range(len(names))):
            raw.fault(("require", index, "policy"),
                      f"no policy is named {required.policy!r}"
                      f"{did_you_mean(required.policy, names)}")
        if required.metric not in METRICS:
            raw.fault(("require", index, "metric"),
                      f"no metric is named {required.metric!r}"
                      f"{did_you_mean(required.metric, METRICS)}")
        elif required.is_share and not METRICS[required.metric].whole_column:
            bound = "at_least" if required.at_least is not None else "at_most"
            raw.fault(("require", index, bound),
                      f"{required.metric!r} is a share of nothing; write a number with its unit")
        if (required.at_least is None) == (required.at_most is None) \
                and not raw.is_doubtful("require", index):
            raw.fault(("require", index), "expected exactly one of: at_least, at_most")


def short_name(trace: TraceFacts) -> str:
    """The folder of a trace, for messages."""
    return os.path.basename(trace.path) or trace.path


def _no_domain(domain: str, domains: Iterable[str], groups: Iterable[str]) -> str:
    if domain in groups:
        return f"{domain!r} is a group; name its domains"
    return f"no workload has a domain {domain!r}{did_you_mean(domain, domains)}"
