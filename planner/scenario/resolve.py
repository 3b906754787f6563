"""Defaults, references and cross-checks with the traces: from a checked file to a Scenario.

Every problem is reported, not the first. A trace that cannot be read is a DataError with the
line that names it, raised only when the scenario itself has no fault.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import DataError
from planner.scenario.load import (
    Part,
    RawScenario,
    check_values,
    did_you_mean,
    read_scenario,
)
from planner.scenario.schema import (
    NAME_PATTERN,
    DomainsModel,
    FleetReference,
    HostModel,
    LabelReference,
    PolicyModel,
    ResolvedDocument,
    ResolvedPolicy,
    ResolvedTrigger,
    ScenarioDocument,
    TriggerModel,
    WorkloadModel,
)
from planner.scenario.spec import (
    OWN_LABELS,
    DomainsSpec,
    FleetFacts,
    GuestFacts,
    GuestSpec,
    HostSpec,
    Ksmd,
    Labels,
    Merge,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
    Sync,
    TraceFacts,
    Trigger,
    WorkloadSpec,
)
from planner.units import format_duration, format_size

__all__ = ["from_json", "load_scenario", "resolve"]

FactsOf = Callable[[Path], TraceFacts]
FleetOf = Callable[[Path], FleetFacts]

_PAGE_BYTES = 4096
_TIMINGS = "builtin:unmeasured"
#: Beyond these a run would only fill the disk.
_MAX_SAMPLES = 100_000
_MAX_TRIGGERS = 100_000
_MAX_DEALT = 10_000
#: Default sampling: the longest of these that gives at least a hundred samples.
_SAMPLE_STEPS_S = (3600, 1800, 900, 600, 300, 120, 60, 30, 15, 10, 5, 2, 1)
_RANGE = re.compile(r"(.*)\{([0-9]{1,6})\.\.([0-9]{1,6})\}(.*)", re.ASCII | re.DOTALL)


def load_scenario(
    path: str | Path, facts_of: FactsOf, overrides: Sequence[str] = (),
    fleet_of: FleetOf | None = None, notes: list[str] | None = None,
) -> Scenario:
    """The resolved scenario of a file in either form.

    `facts_of` is called once for each trace, with its absolute path, and raises DataError
    where the trace cannot be used; `fleet_of` likewise for the inventory of `hosts: {from:}`.
    `overrides` are `KEY.PATH=VALUE` texts. What of the inventory has no effect is said in
    `notes`, which is added to. Raises ScenarioError with every problem, or DataError.
    """
    return resolve(read_scenario(path, overrides), facts_of, fleet_of, notes)


def resolve(raw: RawScenario, facts_of: FactsOf, fleet_of: FleetOf | None = None,
            notes: list[str] | None = None) -> Scenario:
    """Fill defaults, follow references and check against the traces; see `load_scenario`."""
    if raw.document is None:
        raise raw.error()
    resolver = _Resolver(raw, facts_of, fleet_of)
    scenario = resolver.scenario(raw.document)
    if raw.found:
        raise raw.error()
    if resolver.data_error is not None:
        raise resolver.data_error
    if notes is not None:
        notes += resolver.notes
    return scenario


def from_json(form: Mapping[str, Any]) -> Scenario:
    """The scenario of a resolved form (`to_json`), without looking at its traces.

    Raises ScenarioError where the form is not one.
    """
    raw = check_values(form, "resolved scenario")
    if not raw.found and not isinstance(raw.document, ResolvedDocument):
        raw.fault((), "expected the resolved form, marked `resolved: 1`")
    if raw.found or not isinstance(raw.document, ResolvedDocument):
        raise raw.error()
    return _Resolver(raw, _no_facts).resolved(raw.document)


def _no_facts(path: Path) -> TraceFacts:
    raise DataError("not looked at", where=str(path))


def _labels(mapping: Mapping[str, str]) -> Labels:
    return tuple(sorted(mapping.items()))


def _guest(
    guest_id: int, name: str, domain: str, group: str, labels: Mapping[str, str]
) -> GuestSpec:
    own = {"domain": domain, "group": group, "guest": name}
    return GuestSpec(guest_id, name, domain, group, _labels({**labels, **own}))


class _Resolver:
    """One pass over one document. Problems go to `raw`, the first bad trace to `data_error`."""

    def __init__(self, raw: RawScenario, facts_of: FactsOf,
                 fleet_of: FleetOf | None = None) -> None:
        self.raw = raw
        self.facts_of = facts_of
        self.fleet_of = fleet_of
        self.notes: list[str] = []
        self.data_error: DataError | None = None
        self._known: dict[str, TraceFacts | None] = {}

    def scenario(self, document: ScenarioDocument | ResolvedDocument) -> Scenario:
        if isinstance(document, ResolvedDocument):
            scenario = self.resolved(document)
            facts = [
                self._facts(workload.trace, index)
                for index, workload in enumerate(scenario.workloads)
            ]
            self._check_guests_stand(scenario, facts)
        else:
            scenario, facts = self.human(document)
        self._check(scenario, facts)
        return scenario

    # -- traces

    def _facts(self, path: str, index: int) -> TraceFacts | None:
        where = ("workloads", index, "trace")
        if self.raw.is_doubtful(*where):
            return None
        if path not in self._known:
            self._known[path] = None
            try:
                facts = self.facts_of(Path(path))
                if not facts.guests:
                    raise DataError("the trace holds no guest", where=path,
                                    instead="capture again while the guests run")
                self._known[path] = facts
            except DataError as error:
                if self.data_error is None:
                    error.where = f"{self.raw.place_of(where)}: {error.where}".rstrip(": ")
                    self.data_error = error
            except OSError as error:
                if self.data_error is None:
                    self.data_error = DataError(
                        f"cannot be read: {error.strerror or error}",
                        where=f"{self.raw.place_of(where)}: {path}",
                    )
        return self._known[path]

    # -- the inventory

    def _fleet(self, reference: FleetReference) -> FleetFacts | None:
        where = ("hosts", "from")
        path = os.path.abspath(self.raw.base / reference.from_)
        if self.fleet_of is None:
            self.raw.doubt(where, "no inventory can be read here; list the hosts")
            return None
        try:
            return self.fleet_of(Path(path))
        except DataError as error:
            if self.data_error is None:
                error.where = f"{self.raw.place_of(where)}: {error.where}".rstrip(": ")
                self.data_error = error
            return None

    def _fleet_hosts(self, fleet: FleetFacts | None) -> tuple[HostSpec, ...]:
        """The hosts of an inventory with the defaults of hosts that are written."""
        fields = HostModel.model_fields
        hosts = []
        for host in fleet.hosts if fleet is not None else ():
            if not re.fullmatch(NAME_PATTERN[1:-1], host.name, re.ASCII):
                self.raw.doubt(("hosts", "from"), f"host {host.name[:80]!r} of the inventory is "
                               "not a name that a scenario can use; rename it there")
            elif host.memory_bytes is None:
                self.raw.doubt(("hosts", "from"), f"the memory of host {host.name!r} is not in "
                               "the inventory; import it again with what tells it")
            else:
                hosts.append(HostSpec(
                    host.name, host.memory_bytes,
                    int(host.memory_bytes * fields["reserved"].default),
                    min(host.cpus or fields["cores"].default, 65536), fields["hz"].default,
                    _TIMINGS, fields["kernel"].default))
        if fleet is not None and not fleet.hosts:
            self.raw.doubt(("hosts", "from"), "the inventory lists no host; list the hosts here, "
                           "or import it again with the hosts' listing")
        return tuple(hosts)

    def _labelled(self, facts: list[TraceFacts | None],
                  fleet: FleetFacts) -> list[TraceFacts | None]:
        """Traces whose guests have the labels of the listed guests of the same name."""
        counts = Counter(name for name, _ in fleet.guests)
        labels_of = {name: labels for name, labels in fleet.guests if counts[name] == 1}
        used: set[str] = set()
        labelled: list[TraceFacts | None] = []
        for trace in facts:
            if trace is None:
                labelled.append(None)
                continue
            used |= {guest.name for guest in trace.guests} & set(labels_of)
            labelled.append(replace(trace, guests=tuple(
                replace(guest, labels={**guest.labels, **labels_of.get(guest.name, {})})
                for guest in trace.guests)))
        n_twice = sum(count for count in counts.values() if count > 1)
        n_other = len(labels_of) - len(used)
        self.notes.append(f"{fleet.path}: {len(fleet.hosts)} host(s); {len(used)} captured "
                          "guest(s) take labels from it")
        if n_other:
            self.notes.append(f"{n_other} listed guest(s) were not captured: not used in this "
                              "version, which replays captured guests only")
        if n_twice:
            self.notes.append(f"{n_twice} listed guest(s) share a name: not used, as it is open "
                              "which is meant")
        return labelled

    # -- the form people write

    def human(self, document: ScenarioDocument) -> tuple[Scenario, list[TraceFacts | None]]:
        fleet = None
        if isinstance(document.hosts, FleetReference):
            fleet = self._fleet(document.hosts)
            hosts = self._fleet_hosts(fleet)
        else:
            hosts = tuple(self._host(index, host) for index, host in enumerate(document.hosts))
        paths = [
            os.path.abspath(self.raw.base / workload.trace) for workload in document.workloads
        ]
        facts = [self._facts(path, index) for index, path in enumerate(paths)]
        if fleet is not None:
            facts = self._labelled(facts, fleet)
        chosen = [
            self._selected(index, workload, trace_facts)
            for index, (workload, trace_facts) in enumerate(
                zip(document.workloads, facts, strict=True)
            )
        ]
        names = _guest_names(
            [(workload.name, guests)
             for workload, guests in zip(document.workloads, chosen, strict=True)]
        )
        group_of = _group_of(document.domains)
        workloads = tuple(
            WorkloadSpec(
                name=workload.name,
                trace=paths[index],
                trace_digest=trace_facts.digest if trace_facts else "",
                host=self._host_of(index, workload, hosts),
                select=_labels(workload.select),
                guests=self._guests(index, workload, chosen[index], names[index], group_of),
                mergeable=workload.mergeable,
            )
            for index, (workload, trace_facts) in enumerate(
                zip(document.workloads, facts, strict=True)
            )
        )
        horizon_ns = self._horizon(document, facts)
        return Scenario(
            format=1,
            name=document.name,
            seed=document.seed,
            horizon_ns=horizon_ns,
            hosts=hosts,
            workloads=workloads,
            domains=_domains(document.domains.groups, document.domains.sensitive),
            policies=tuple(map(_policy, document.policies)),
            output=OutputSpec(
                document.output.folder,
                document.output.sample_every or _sample_step(horizon_ns),
            ),
        ), facts

    def _host(self, index: int, host: Any) -> HostSpec:
        reserved_bytes = (
            int(host.memory * host.reserved) if isinstance(host.reserved, float) else host.reserved
        )
        if host.count > 1 and not self.raw.is_doubtful("hosts", index, "count"):
            self.raw.fault(
                ("hosts", index, "count"),
                f"count {host.count}: hosts and guests stand as captured in this version; "
                "placing guests on copies of a host arrives with the population model",
            )
        return HostSpec(host.name, host.memory, reserved_bytes, host.cores, host.hz,
                        self._timings(host.timings), host.kernel)

    def _shown(self, timings: str) -> str:
        """Timings as the file names them."""
        return (timings if timings.startswith("builtin:")
                else os.path.relpath(timings, os.path.abspath(self.raw.base)))

    def _timings(self, timings: str) -> str:
        """The name of built-in timings, or the absolute path of a calibration."""
        return (timings if timings.startswith("builtin:")
                else os.path.abspath(self.raw.base / timings))

    def _host_of(
        self, index: int, workload: WorkloadModel, hosts: tuple[HostSpec, ...]
    ) -> str:
        if workload.host is not None:
            return workload.host
        is_open = len({host.name for host in hosts}) > 1
        if is_open and not self.raw.is_doubtful("workloads", index, "host"):
            self.raw.fault(
                ("workloads", index),
                f"workload {workload.name!r} does not say which host; write host: "
                + " or ".join(host.name for host in hosts[:12]),
            )
        return hosts[0].name if hosts else "none"

    def _selected(
        self, index: int, workload: WorkloadModel, facts: TraceFacts | None
    ) -> list[GuestFacts]:
        """The captured guests of a workload, by id."""
        if facts is None:
            return []
        guests = sorted(facts.guests, key=lambda guest: guest.guest_id)
        fault_before = len(self.raw.found)
        for key, value in workload.select.items():
            path = ("workloads", index, "select", key)
            values = {_label(guest, key) for guest in facts.guests} - {None}
            if not values:
                known = {"guest"}.union(*(guest.labels for guest in facts.guests))
                self.raw.doubt(
                    path,
                    f"no guest of the trace has a label {key!r}{did_you_mean(key, known)}",
                    at_key=True,
                )
            elif value not in values:
                self.raw.doubt(
                    path,
                    f"no guest of the trace has {key}={value}"
                    f"{did_you_mean(value, (v for v in values if v is not None))}",
                )
            guests = [guest for guest in guests if _label(guest, key) == value]
        if not guests and len(self.raw.found) == fault_before:
            self.raw.doubt(
                ("workloads", index, "select"),
                "no guest of the trace has all these labels; each of them alone is known",
            )
        if workload.count is not None and guests:
            if workload.count > len(guests):
                self.raw.doubt(
                    ("workloads", index, "count"),
                    f"count {workload.count} is more than the {len(guests)} captured: copies of "
                    "a captured guest would turn its private pages into duplicates, so more "
                    "guests need a population model, which this version does not have",
                )
            guests = guests[: workload.count]
        return guests

    def _guests(
        self,
        index: int,
        workload: WorkloadModel,
        guests: list[GuestFacts],
        names: list[str],
        group_of: Mapping[str, str],
    ) -> tuple[GuestSpec, ...]:
        for key in OWN_LABELS:
            if key in workload.labels:
                instead = f"write {key}: beside labels:" if key == "domain" else "it is given"
                self.raw.doubt(("workloads", index, "labels", key),
                               f"label {key!r} cannot be set here; {instead}", at_key=True)
        added = dict(workload.labels)
        if workload.image is not None:
            if "image" in added:
                self.raw.doubt(("workloads", index, "labels", "image"),
                               "label 'image' is given by image: too; keep one", at_key=True)
            added["image"] = workload.image
        dealt = self._dealt(index, workload)
        specs = []
        missing: list[str] = []
        for position, (guest, name) in enumerate(zip(guests, names, strict=True)):
            labels = {**guest.labels, **added}
            if isinstance(workload.domain, LabelReference):
                domain = labels.get(workload.domain.label, "")
                if not domain:
                    missing.append(guest.name)
                    domain = name
            elif dealt:
                domain = dealt[position % len(dealt)]
            else:
                domain = labels.get("domain") or labels.get("tenant") or name
            specs.append(
                _guest(guest.guest_id, name, domain, group_of.get(domain, domain), labels)
            )
        if missing and isinstance(workload.domain, LabelReference):
            key = workload.domain.label
            known = set(added).union(*(guest.labels for guest in guests))
            hint = did_you_mean(key, known - {key})
            who = f"guest {missing[0]!r} has"
            if len(missing) > 1:
                who = f"{len(missing)} guests have"
            self.raw.doubt(("workloads", index, "domain", "label"),
                           f"{who} no label {key!r}{hint}")
        return tuple(specs)

    def _dealt(self, index: int, workload: WorkloadModel) -> list[str]:
        """The domains of a name or a pattern such as `tenant-{1..3}`, in turn."""
        text = workload.domain
        if not isinstance(text, str):
            return []
        if not re.search(r"[{}]", text):
            return [text]
        path = ("workloads", index, "domain")
        match = _RANGE.fullmatch(text)
        if match is None or re.search(r"[{}]", match.group(1) + match.group(4)):
            self.raw.doubt(path, f"{text!r} is not a pattern; write tenant-{{1..3}}, "
                           "with one range of whole numbers")
            return []
        before, first, last, after = match.groups()
        if not 0 <= int(last) - int(first) < _MAX_DEALT:
            self.raw.doubt(path, f"{text!r}: the range must rise, and give at most {_MAX_DEALT} "
                           "domains")
            return []
        width = len(first) if first.startswith("0") else 0
        return [f"{before}{i:0{width}}{after}" for i in range(int(first), int(last) + 1)]

    def _horizon(self, document: ScenarioDocument, facts: Sequence[TraceFacts | None]) -> int:
        if document.horizon != "captured":
            return int(document.horizon)
        return min((trace.span_ns for trace in facts if trace is not None), default=0)

    # -- the resolved form

    def resolved(self, document: ResolvedDocument) -> Scenario:
        return Scenario(
            format=document.planner,
            name=document.name,
            seed=document.seed,
            horizon_ns=document.horizon_ns,
            hosts=tuple(
                HostSpec(h.name, h.memory_bytes, h.reserved_bytes, h.cores, h.hz,
                         self._timings(h.timings), h.kernel)
                for h in document.hosts
            ),
            workloads=tuple(
                WorkloadSpec(
                    name=w.name,
                    trace=os.path.abspath(self.raw.base / w.trace),
                    trace_digest=w.trace_digest,
                    host=w.host,
                    select=_labels(w.select),
                    guests=tuple(
                        _guest(g.trace_guest_id, g.name, g.domain, g.group, g.labels)
                        for g in w.guests
                    ),
                    mergeable=w.mergeable,
                )
                for w in document.workloads
            ),
            domains=_domains(document.domains.groups, document.domains.sensitive),
            policies=tuple(map(_policy, document.policies)),
            output=OutputSpec(document.output.folder, document.output.sample_every_ns),
        )

    def _check_guests_stand(
        self, scenario: Scenario, facts: Sequence[TraceFacts | None]
    ) -> None:
        """The explicit guests, groups and digests of a resolved form must still be true."""
        group_of = {
            domain: name for name, members in scenario.domains.groups for domain in members
        }
        for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
            if trace is not None and trace.digest != workload.trace_digest:
                self.raw.fault(
                    ("workloads", index, "trace_digest"),
                    f"the trace's digest is {trace.digest[:16]} now; it is not the one this "
                    "scenario was resolved with",
                )
            ids = {guest.guest_id for guest in trace.guests} if trace is not None else None
            for position, guest in enumerate(workload.guests):
                path = ("workloads", index, "guests", position)
                if ids is not None and guest.trace_guest_id not in ids:
                    self.raw.fault((*path, "trace_guest_id"),
                                   f"the trace has no guest {guest.trace_guest_id}")
                if guest.group != group_of.get(guest.domain, guest.domain):
                    self.raw.fault(
                        (*path, "group"),
                        f"domain {guest.domain!r} belongs to "
                        f"{group_of.get(guest.domain, guest.domain)!r}, not to {guest.group!r}",
                    )
        counts = Counter(guest.name for w in scenario.workloads for guest in w.guests)
        for index, workload in enumerate(scenario.workloads):
            for position, guest in enumerate(workload.guests):
                if counts[guest.name] > 1:
                    self.raw.fault(("workloads", index, "guests", position, "name"),
                                   f"more than one guest is named {guest.name!r}")

    # -- checks of both forms

    def _check(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        self._check_names(scenario)
        self._check_hosts(scenario, facts)
        self._check_traces(scenario, facts)
        self._check_horizon(scenario, facts)
        self._check_domains(scenario, facts)
        self._check_policies(scenario, facts)
        n_samples = scenario.horizon_ns // scenario.output.sample_every_ns
        if n_samples > _MAX_SAMPLES:
            self.raw.fault(
                ("output", "sample_every"),
                f"{n_samples} samples of each host; at most {_MAX_SAMPLES}, so sample less often",
            )

    def _check_names(self, scenario: Scenario) -> None:
        lists: tuple[tuple[str, Sequence[HostSpec | WorkloadSpec | PolicySpec]], ...] = (
            ("hosts", scenario.hosts),
            ("workloads", scenario.workloads),
            ("policies", scenario.policies),
        )
        for kind, entries in lists:
            seen: set[str] = set()
            for index, entry in enumerate(entries):
                path = (kind, index, "name")
                if entry.name in seen and not self.raw.is_doubtful(*path):
                    self.raw.fault(path, f"{entry.name!r} is already the name of one of {kind}")
                seen.add(entry.name)

    def _check_hosts(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        names = [host.name for host in scenario.hosts]
        # Without its inventory the hosts are not known; that fault is told already.
        is_naming_sure = bool(names) and not any(
            self.raw.is_doubtful("hosts", index, "name") for index in range(len(names))
        )
        need_bytes: Counter[str] = Counter()
        for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
            if workload.host not in names and is_naming_sure:
                self.raw.fault(
                    ("workloads", index, "host"),
                    f"no host is named {workload.host!r}{did_you_mean(workload.host, names)}",
                )
            if trace is not None:
                pages = {guest.guest_id: guest.n_pages for guest in trace.guests}
                need_bytes[workload.host] += _PAGE_BYTES * sum(
                    pages.get(guest.trace_guest_id, 0) for guest in workload.guests
                )
        for index, host in enumerate(scenario.hosts):
            if host.timings != _TIMINGS and not os.path.isfile(host.timings):
                self.raw.fault(
                    ("hosts", index, "timings"),
                    f"there is no calibration {self._shown(host.timings)!r}; write {_TIMINGS}, "
                    "or name a file that planner calibrate wrote",
                )
            if self.raw.is_doubtful("hosts", index, "memory"):
                continue
            left_bytes = host.memory_bytes - host.reserved_bytes
            if left_bytes <= 0:
                self.raw.fault(
                    ("hosts", index, "reserved"),
                    f"reserves {format_size(host.reserved_bytes)} of "
                    f"{format_size(host.memory_bytes)}; nothing is left for guests",
                )
            elif need_bytes[host.name] > left_bytes:
                self.raw.fault(
                    ("hosts", index, "memory"),
                    f"the guests of host {host.name!r} hold "
                    f"{format_size(need_bytes[host.name])} as captured, but only "
                    f"{format_size(left_bytes)} are left after "
                    f"{format_size(host.reserved_bytes)} reserved",
                )

    def _check_traces(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        first: TraceFacts | None = None
        user_of: dict[tuple[str, int], str] = {}
        for index, (workload, trace) in enumerate(zip(scenario.workloads, facts, strict=True)):
            if trace is None:
                continue
            first = first or trace
            path = ("workloads", index, "trace")
            if trace.algorithm != first.algorithm:
                self.raw.fault(
                    path,
                    f"hashed with {trace.algorithm}, but {_short(first)} with {first.algorithm}: "
                    "their pages cannot be compared; capture both alike",
                )
            elif trace.key_id != first.key_id:
                self.raw.fault(
                    path,
                    f"hashed under key {trace.key_id}, but {_short(first)} under "
                    f"{first.key_id}: their pages cannot be compared; capture both with one key",
                )
            taken: dict[str, list[str]] = {}
            for guest in workload.guests:
                user = user_of.setdefault((trace.digest, guest.trace_guest_id), workload.name)
                if user != workload.name:
                    name = next((g.name for g in trace.guests
                                 if g.guest_id == guest.trace_guest_id), guest.name)
                    taken.setdefault(user, []).append(name)
            for user, guests in taken.items():
                shown = ", ".join(guests[:3]) + (", ..." if len(guests) > 3 else "")
                self.raw.fault(
                    ("workloads", index),
                    f"workload {workload.name!r} takes guests that {user!r} has already "
                    f"({shown}); a captured guest stands once, so narrow one with select",
                )

    def _check_horizon(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        if self.raw.is_doubtful("horizon"):
            return
        known = [(trace.span_ns, index) for index, trace in enumerate(facts) if trace is not None]
        if not known:
            return
        span_ns, index = min(known)
        shortest = facts[index]
        assert shortest is not None
        if span_ns <= 0:
            self.raw.fault(
                ("workloads", index, "trace"),
                f"the trace spans no time ({shortest.n_snapshots} snapshot"
                f"{'s' if shortest.n_snapshots != 1 else ''}), so nothing can happen in it; "
                "capture at least two snapshots (planner capture --snapshots 2 --every 30s)",
            )
        elif scenario.horizon_ns > span_ns:
            self.raw.fault(
                ("horizon_ns" if "horizon_ns" in self.raw.root.value else "horizon",),
                f"{format_duration(scenario.horizon_ns)} is beyond the capture: {_short(shortest)} "
                f"spans {format_duration(span_ns)} ({span_ns} ns); write captured or a shorter "
                "time, or capture for longer",
            )

    def _check_domains(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        domains = {guest.domain for w in scenario.workloads for guest in w.guests}
        is_known = None not in facts and not any(
            self.raw.is_doubtful("workloads", index, key)
            for index in range(len(scenario.workloads))
            for key in ("domain", "select", "count", "labels")
        )
        groups = dict(scenario.domains.groups)
        group_of: dict[str, str] = {}
        for name, members in groups.items():
            if name in domains and name not in members:
                self.raw.fault(
                    ("domains", "groups", name),
                    f"group {name!r} has the name of a domain that is not in it; rename the group",
                    at_key=True,
                )
            for position, domain in enumerate(members):
                path: tuple[Part, ...] = ("domains", "groups", name, position)
                if domain in group_of:
                    fault = ("twice in this group" if group_of[domain] == name
                             else f"in group {group_of[domain]!r} already; a domain has one group")
                    self.raw.fault(path, f"domain {domain!r} is {fault}")
                group_of.setdefault(domain, name)
                if is_known and domain not in domains:
                    self.raw.fault(path, _no_domain(domain, domains, groups))
        for position, domain in enumerate(scenario.domains.sensitive):
            path = ("domains", "sensitive", position)
            if domain in scenario.domains.sensitive[:position]:
                self.raw.fault(path, f"domain {domain!r} is given twice")
            elif is_known and domain not in domains:
                self.raw.fault(path, _no_domain(domain, domains, groups))

    def _check_policies(self, scenario: Scenario, facts: list[TraceFacts | None]) -> None:
        values: dict[str, set[str]] = {}
        for workload in scenario.workloads:
            for guest in workload.guests:
                for key, value in guest.labels:
                    values.setdefault(key, set()).add(value)
        open_keys: set[str] = set()
        for trace in facts:
            if trace is not None:
                open_keys |= trace.region_label_keys - set(trace.region_labels)
                for key in trace.region_label_keys:
                    values.setdefault(key, set()).update(trace.region_labels.get(key, ()))
        is_known = None not in facts and not any(
            self.raw.is_doubtful("workloads", index, key)
            for index in range(len(scenario.workloads))
            for key in ("domain", "select", "count", "labels", "image")
        )
        for index, policy in enumerate(scenario.policies):
            if is_known:
                for position, key in enumerate(policy.partition_by):
                    if key not in values and key not in OWN_LABELS:
                        self.raw.fault(
                            ("policies", index, "partition_by", position),
                            f"no guest or region has a label {key!r}"
                            f"{did_you_mean(key, {'none', *OWN_LABELS, *values})}",
                        )
                for position, labels in enumerate(policy.exclude):
                    for key, value in labels:
                        path = ("policies", index, "exclude", position, key)
                        if key not in values:
                            self.raw.fault(
                                path,
                                f"no guest or region has a label {key!r}"
                                f"{did_you_mean(key, values)}",
                                at_key=True,
                            )
                        elif value not in values[key] and key not in open_keys:
                            self.raw.fault(path, f"no guest or region has {key}={value}"
                                           f"{did_you_mean(value, values[key])}")
            if isinstance(policy.merge, Ksmd):
                self._check_knobs(index, policy.merge, scenario.hosts)
            if isinstance(policy.merge, Sync) and scenario.horizon_ns > 0:
                self._check_triggers(index, policy.merge, scenario.horizon_ns)

    def _check_knobs(self, index: int, ksmd: Ksmd, hosts: tuple[HostSpec, ...]) -> None:
        old = [host.name for host in hosts if host.kernel == "6.1"]
        for name in sorted(ksmd.given()):
            if old and (name == "smart_scan" or name.startswith("advisor_")):
                self.raw.fault(("policies", index, "merge", "ksmd", name),
                               f"kernel 6.1 of host {old[0]!r} has no {name}", at_key=True)

    def _check_triggers(self, index: int, merge: Sync, horizon_ns: int) -> None:
        at = ("policies", index, "merge", "sync", "at")
        if self.raw.is_doubtful(*at) or self.raw.is_doubtful("horizon"):
            return
        for position, trigger in enumerate(merge.at):
            if trigger in merge.at[:position]:
                self.raw.fault((*at, position), "the same trigger is given twice")
            if trigger.kind == "every" and horizon_ns // trigger.every_ns > _MAX_TRIGGERS:
                self.raw.fault(
                    (*at, position),
                    f"{horizon_ns // trigger.every_ns} merges within the horizon; at most "
                    f"{_MAX_TRIGGERS}, so merge less often",
                )
        if all(max(trigger.after_ns, trigger.every_ns) > horizon_ns for trigger in merge.at):
            self.raw.fault(
                at,
                f"no merge falls within the horizon of {format_duration(horizon_ns)}; "
                "trigger earlier, such as boot: {after: 5s}, or simulate for longer",
            )


def _label(guest: GuestFacts, key: str) -> str | None:
    return guest.name if key == "guest" else guest.labels.get(key)


def _short(trace: TraceFacts) -> str:
    return os.path.basename(trace.path) or trace.path


def _no_domain(domain: str, domains: Iterable[str], groups: Iterable[str]) -> str:
    if domain in groups:
        return f"{domain!r} is a group; name its domains"
    return f"no workload has a domain {domain!r}{did_you_mean(domain, domains)}"


def _guest_names(workloads: list[tuple[str, list[GuestFacts]]]) -> list[list[str]]:
    """Names unique in the scenario: the captured ones where they are, else qualified."""
    counts = Counter(guest.name for _, guests in workloads for guest in guests)
    names = [
        [guest.name if counts[guest.name] == 1 else f"{workload}/{guest.name}" for guest in guests]
        for workload, guests in workloads
    ]
    counts = Counter(name for row in names for name in row)
    return [
        [
            name if counts[name] == 1 else f"{name}#{guest.guest_id}"
            for name, guest in zip(row, guests, strict=True)
        ]
        for row, (_, guests) in zip(names, workloads, strict=True)
    ]


def _group_of(domains: DomainsModel) -> dict[str, str]:
    return {domain: name for name, members in domains.groups.items() for domain in members}


def _domains(groups: Mapping[str, Sequence[str]], sensitive: Sequence[str]) -> DomainsSpec:
    return DomainsSpec(
        tuple((name, tuple(members)) for name, members in groups.items()), tuple(sensitive)
    )


def _policy(policy: PolicyModel | ResolvedPolicy) -> PolicySpec:
    merge: Merge = Never()
    if not isinstance(policy.merge, str):
        if policy.merge.ksmd is not None:
            merge = Ksmd(**policy.merge.ksmd.model_dump())
        elif policy.merge.sync is not None:
            merge = Sync(tuple(map(_trigger, policy.merge.sync.at)))
    return PolicySpec(
        policy.name, tuple(policy.partition_by), tuple(map(_labels, policy.exclude)), merge
    )


def _trigger(trigger: str | TriggerModel | ResolvedTrigger) -> Trigger:
    if isinstance(trigger, str):
        return Trigger("boot", 60_000_000_000, 0)
    if isinstance(trigger, TriggerModel):
        if trigger.boot is not None:
            return Trigger("boot", trigger.boot.after, 0)
        return Trigger("every", 0, trigger.every or 0)
    if trigger.boot is not None:
        return Trigger("boot", trigger.boot.after_ns, 0)
    return Trigger("every", 0, trigger.every_ns or 0)


def _sample_step(horizon_ns: int) -> int:
    """A round sampling interval that gives about a hundred samples."""
    for step_s in _SAMPLE_STEPS_S:
        if horizon_ns >= step_s * 100 * 10**9:
            return step_s * 10**9
    return max(horizon_ns // 100, 10**6)


