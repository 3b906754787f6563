"""Defaults, references and cross-checks with the traces: from a checked file to a Scenario.

Every problem is reported, not the first. A trace that cannot be read is a DataError with the
line that names it, raised only when the scenario itself has no fault.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import DataError
from planner.scenario.checks import check_scenario
from planner.scenario.checks_fleet import check_arrivals
from planner.scenario.load import (
    Part,
    RawScenario,
    check_values,
    read_scenario,
)
from planner.scenario.resolve_fleet import (
    check_incidents,
    costs_of,
    dealt_domains,
    draw_of,
    fleet_reason,
    fleet_shares,
    fleet_spec,
    precision_of,
    require_of,
)
from planner.scenario.resolve_form import (
    check_resolved,
    domains_spec,
    guest_spec,
    resolved_scenario,
    timings_of,
)
from planner.scenario.resolve_policies import labels_of, policy_of
from planner.scenario.schema import ScenarioDocument
from planner.scenario.schema_fleet import (
    DomainsModel,
    FleetReference,
    HostModel,
    LabelReference,
    WorkloadModel,
)
from planner.scenario.schema_resolved import ResolvedDocument
from planner.scenario.schema_values import NAME_PATTERN
from planner.scenario.spec import (
    OWN_LABELS,
    ArrivalFacts,
    ArrivalsSpec,
    DrawSpec,
    FleetFacts,
    GuestFacts,
    GuestSpec,
    HostSpec,
    LoadSpec,
    OutputSpec,
    Scenario,
    TraceFacts,
    WorkloadSpec,
)
from planner.scenario.words import did_you_mean

__all__ = ["ArrivalsOf", "FactsOf", "FleetOf", "attempt", "from_json", "load_scenario", "resolve"]

FactsOf = Callable[[Path], TraceFacts]
FleetOf = Callable[[Path], FleetFacts]

ArrivalsOf = Callable[[Path], ArrivalFacts]

_TIMINGS = "builtin:unmeasured"
_DRAWN_REPLICATES = 5
#: Default sampling: the longest of these that gives at least a hundred samples.
_SAMPLE_STEPS_S = (3600, 1800, 900, 600, 300, 120, 60, 30, 15, 10, 5, 2, 1)


def load_scenario(
    path: str | Path, facts_of: FactsOf, overrides: Sequence[str] = (),
    fleet_of: FleetOf | None = None, notes: list[str] | None = None,
    arrivals_of: ArrivalsOf | None = None,
) -> Scenario:
    """The resolved scenario of a file in either form.

    `facts_of` is called once for each trace, with its absolute path, and raises DataError
    where the trace cannot be used; `fleet_of` likewise for the inventory of `hosts: {from:}`,
    `arrivals_of` for an arrival table. `overrides` are `KEY.PATH=VALUE` texts. What has no effect,
    and what the reader of a result should know, is said in `notes`, which is added to; so is that
    the cases of a sweep are left out (see `load_cases`). Raises ScenarioError with every problem,
    or DataError.
    """
    return resolve(read_scenario(path, overrides), facts_of, fleet_of, notes, arrivals_of)


def resolve(raw: RawScenario, facts_of: FactsOf, fleet_of: FleetOf | None = None,
            notes: list[str] | None = None,
            arrivals_of: ArrivalsOf | None = None) -> Scenario:
    """Fill defaults, follow references and check against the traces; see `load_scenario`."""
    scenario, data_error, found_notes = attempt(raw, facts_of, fleet_of, arrivals_of)
    if raw.found or scenario is None:
        raise raw.error()
    if data_error is not None:
        raise data_error
    if notes is not None:
        notes += found_notes
    return scenario


def attempt(raw: RawScenario, facts_of: FactsOf, fleet_of: FleetOf | None,
            arrivals_of: ArrivalsOf | None) -> tuple[Scenario | None, DataError | None, list[str]]:
    """Resolve as far as it goes: faults go to `raw`; the first DataError, and the notes."""
    if raw.document is None:
        return None, None, []
    resolver = _Resolver(raw, facts_of, fleet_of, arrivals_of)
    return resolver.scenario(raw.document), resolver.data_error, resolver.notes


def from_json(form: Mapping[str, Any]) -> Scenario:
    """The scenario of a resolved form (`to_json`), without looking at its traces.

    Raises ScenarioError where the form is not one.
    """
    raw = check_values(form, "resolved scenario")
    if not raw.found and not isinstance(raw.document, ResolvedDocument):
        raw.fault((), "expected the resolved form, marked `resolved: 1`")
    if raw.found or not isinstance(raw.document, ResolvedDocument):
        raise raw.error()
    return resolved_scenario(raw, raw.document)


class _Resolver:
    """One pass over one document. Problems go to `raw`, the first bad trace to `data_error`."""

    def __init__(self, raw: RawScenario, facts_of: FactsOf, fleet_of: FleetOf | None = None,
                 arrivals_of: ArrivalsOf | None = None) -> None:
        self.raw = raw
        self.facts_of = facts_of
        self.fleet_of = fleet_of
        self.arrivals_of = arrivals_of
        self.table: ArrivalFacts | None = None
        self.notes: list[str] = []
        self.data_error: DataError | None = None
        self._known: dict[str, TraceFacts | None] = {}

    def scenario(self, document: ScenarioDocument | ResolvedDocument) -> Scenario:
        if isinstance(document, ResolvedDocument):
            scenario = resolved_scenario(self.raw, document)
            facts = [
                self._facts(workload.trace, index)
                for index, workload in enumerate(scenario.workloads)
            ]
            check_resolved(self.raw, scenario, facts)
            if scenario.fleet is not None and scenario.fleet.arrivals is not None:
                self._read_table(scenario.fleet.arrivals.table, ("fleet", "arrivals", "table"))
        else:
            scenario, facts = self.human(document)
        check_scenario(self.raw, scenario, facts, self.notes)
        if self.table is not None:
            check_arrivals(self.raw, scenario, self.table, self.notes)
        return scenario

    # -- traces

    def _facts(self, path: str, index: int) -> TraceFacts | None:
        where = ("workloads", index, "trace")
        if self.raw.is_doubtful(*where):
            return None
        if path not in self._known:
            self._known[path] = None
            with self._data_errors(where, path):
                facts = self.facts_of(Path(path))
                if not facts.guests:
                    raise DataError("the trace holds no guest", where=path,
                                    instead="capture again while the guests run")
                self._known[path] = facts
        return self._known[path]

    def _read_table(self, path: str, where: tuple[Part, ...]) -> ArrivalFacts | None:
        if self.arrivals_of is None:
            self.raw.doubt(where, "no arrival table can be read here; leave arrivals out")
            return None
        with self._data_errors(where, path):
            self.table = self.arrivals_of(Path(path))
        return self.table

    @contextmanager
    def _data_errors(self, where: tuple[Part, ...], path: str) -> Iterator[None]:
        """Keeps the first DataError, with the place that names the file."""
        try:
            yield
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

    # -- the inventory

    def _fleet(self, reference: FleetReference) -> FleetFacts | None:
        where = ("hosts", "from")
        path = os.path.abspath(self.raw.base / reference.from_)
        if self.fleet_of is None:
            self.raw.doubt(where, "no inventory can be read here; list the hosts")
            return None
        with self._data_errors(where, path):
            return self.fleet_of(Path(path))
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
            self.notes.append(f"{n_other} listed guest(s) were not captured: not used, as nobody "
                              "knows what is in their memory")
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
            hosts = tuple(map(self._host, document.hosts))
        paths = [
            os.path.abspath(self.raw.base / workload.trace) for workload in document.workloads
        ]
        facts = [self._facts(path, index) for index, path in enumerate(paths)]
        if fleet is not None:
            facts = self._labelled(facts, fleet)
        reason = fleet_reason(document)
        chosen = [
            self._selected(index, workload, trace_facts, is_drawn=reason is not None)
            for index, (workload, trace_facts) in enumerate(
                zip(document.workloads, facts, strict=True)
            )
        ]
        names = _guest_names(
            [(workload.name, guests)
             for workload, guests in zip(document.workloads, chosen, strict=True)]
        )
        self._check_choice(document, reason)
        if document.sweep:
            self.notes.append("the values of sweep are left out here: this is the scenario as it "
                              "stands without them")
        shares = fleet_shares(self.raw, document)
        group_of = _group_of(document.domains)
        workloads = []
        for index, (workload, trace_facts) in enumerate(
                zip(document.workloads, facts, strict=True)):
            domains = dealt_domains(self.raw, index, workload)
            draw = None
            if reason is not None:
                draw = draw_of(self.raw, index, workload, reason, shares[index], domains)
            workloads.append(WorkloadSpec(
                name=workload.name,
                trace=paths[index],
                trace_digest=trace_facts.digest if trace_facts else "",
                host=self._host_of(index, workload, hosts) if draw is None else "",
                select=labels_of(workload.select),
                guests=self._guests(index, workload, chosen[index], names[index], group_of,
                                    domains, draw),
                mergeable=workload.mergeable,
                draw=draw,
            ))
        horizon_ns = self._horizon(document, facts, reason)
        default_replicates = 1 if reason is None else _DRAWN_REPLICATES
        return Scenario(
            format=1,
            name=document.name,
            seed=document.seed,
            horizon_ns=horizon_ns,
            hosts=hosts,
            workloads=tuple(workloads),
            domains=domains_spec(document.domains.groups, document.domains.sensitive),
            policies=tuple(policy_of(self.raw, index, policy)
                           for index, policy in enumerate(document.policies)),
            output=OutputSpec(
                document.output.folder,
                document.output.sample_every or _sample_step(horizon_ns),
            ),
            replicates=document.replicates or default_replicates,
            warm_up_ns=document.warm_up,
            fleet=None if reason is None else fleet_spec(document, self._arrivals(document)),
            precision=precision_of(document.precision),
            costs=costs_of(document.costs),
            require=tuple(require_of(self.raw, index, required)
                          for index, required in enumerate(document.require)),
        ), facts

    def _check_choice(self, document: ScenarioDocument, reason: tuple[Part, ...] | None) -> None:
        """What only one of replay and draw can have."""
        check_incidents(self.raw, document.incidents)
        if reason is not None and document.placement == "as-recorded":
            what = ".".join(str(part) for part in reason if isinstance(part, str))
            self.raw.fault(("placement",), "as-recorded replays the captured guests, which do not "
                           f"go with {what}; write first-fit or another placement, or leave "
                           f"{what} out")
        if reason is None and document.precision not in (None, "exact"):
            self.raw.fault(("precision",), "replayed guests are simulated page by page; write "
                           "exact, or leave precision out", at_key=True)

    def _arrivals(self, document: ScenarioDocument) -> ArrivalsSpec | None:
        given = document.arrivals
        if given is None:
            return None
        path = os.path.abspath(self.raw.base / given.table)
        table = None
        if not self.raw.is_doubtful("arrivals", "table"):
            table = self._read_table(path, ("arrivals", "table"))
        return ArrivalsSpec(path, table.digest if table else "", given.from_, given.speed,
                            given.limit or 0)

    def _host(self, host: HostModel) -> HostSpec:
        reserved_bytes = (
            int(host.memory * host.reserved) if isinstance(host.reserved, float) else host.reserved
        )
        load = None if host.load is None else LoadSpec(host.load.low, host.load.high,
                                                       host.load.period)
        return HostSpec(host.name, host.memory, reserved_bytes, host.cores, host.hz,
                        timings_of(self.raw, host.timings), host.kernel, host.count, load)

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
        self, index: int, workload: WorkloadModel, facts: TraceFacts | None, *, is_drawn: bool
    ) -> list[GuestFacts]:
        """The captured guests of a workload, by id: replayed, or what others are drawn like."""
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
        if workload.count is not None and guests and not is_drawn:
            if workload.count > len(guests):
                self.raw.doubt(
                    ("workloads", index, "count"),
                    f"count {workload.count} is more than the {len(guests)} captured, and copies "
                    "of a captured guest would turn its private pages into duplicates; to draw "
                    "guests like the captured ones write placement: first-fit",
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
        dealt: Sequence[str],
        draw: DrawSpec | None,
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
        specs = []
        missing: list[str] = []
        alone: list[str] = []
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
                if domain == name:
                    alone.append(guest.name)
            specs.append(
                guest_spec(guest.guest_id, name, domain, group_of.get(domain, domain), labels)
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
        if alone and draw is not None and workload.domain is None and (
                draw.count or draw.arrivals_per_hour):
            self.raw.doubt(
                ("workloads", index),
                f"guest {alone[0]!r} has no label domain or tenant, and guests drawn like it "
                "cannot all be of one domain because of its name; write domain: tenant-{1..30}, "
                "or another name or pattern")
        return tuple(specs)

    def _horizon(self, document: ScenarioDocument, facts: Sequence[TraceFacts | None],
                 reason: tuple[Part, ...] | None) -> int:
        if document.horizon != "captured":
            return int(document.horizon)
        if reason is not None and not self.raw.is_doubtful("horizon"):
            is_given = "horizon" in document.model_fields_set
            self.raw.fault(("horizon",) if is_given else reason,
                           "drawn guests live on beyond the capture, so the scenario must say how "
                           "long to simulate: write horizon: 3d", at_key=not is_given)
            self.raw.doubtful.add(("horizon",))
        return min((trace.span_ns for trace in facts if trace is not None), default=0)


def _label(guest: GuestFacts, key: str) -> str | None:
    return guest.name if key == "guest" else guest.labels.get(key)


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


def _sample_step(horizon_ns: int) -> int:
    """A round sampling interval that gives about a hundred samples."""
    for step_s in _SAMPLE_STEPS_S:
        if horizon_ns >= step_s * 100 * 10**9:
            return step_s * 10**9
    return max(horizon_ns // 100, 10**6)


