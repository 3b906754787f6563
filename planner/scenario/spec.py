"""The resolved scenario: frozen plain dataclasses, every value explicit, nothing to guess.

Times are integer nanoseconds, sizes integer bytes. `to_json` gives the resolved form: a
mapping marked `resolved: 1` whose integer keys carry their unit as a suffix. It is stored in
every result and is accepted back wherever a scenario file is; resolving it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from planner.scenario.spec_policies import (
    Cooperation,
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Labels,
    Merge,
    Never,
    PartitionRule,
    PolicySpec,
    Sync,
    SyncAdvisor,
    Trigger,
    policy_json,
)

__all__ = [
    "ArrivalFacts",
    "ArrivalsSpec",
    "Cooperation",
    "CostsSpec",
    "DomainsSpec",
    "DrawSpec",
    "FleetFacts",
    "FleetHost",
    "FleetSpec",
    "FreePages",
    "GuestFacts",
    "GuestSpec",
    "HostSpec",
    "IncidentSpec",
    "Kernel",
    "Ksmd",
    "Ksmtuned",
    "KubeVirt",
    "Labels",
    "LifetimeSpec",
    "LoadSpec",
    "Merge",
    "Never",
    "OutputSpec",
    "PartitionRule",
    "PolicySpec",
    "PrecisionSpec",
    "RequireSpec",
    "Scenario",
    "Sync",
    "SyncAdvisor",
    "TraceFacts",
    "Trigger",
    "WorkloadSpec",
    "to_json",
]

#: Linux versions whose KSM is modelled.
Kernel = Literal["6.1", "6.12", "6.18"]

#: Labels every simulated guest has; they follow from the other fields of its GuestSpec.
OWN_LABELS = ("domain", "group", "guest")


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One machine. `reserved_bytes` is what the host itself needs; `hz` its timer frequency.

    `timings`: `builtin:unmeasured`, or the absolute path of a calibration. `kernel`: the version
    whose KSM it runs.
    """

    name: str
    memory_bytes: int
    reserved_bytes: int
    cores: int
    hz: int
    timings: str
    kernel: Kernel = "6.18"
    count: int = 1
    load: LoadSpec | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The machines of this kind: its own name, or `name-0001` and on where there are more."""
        if self.count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number:04d}" for number in range(1, self.count + 1))


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """How busy a host's CPUs are: a cosine from `low` (at the start) to `high` and back."""

    low: float
    high: float
    period_ns: int


@dataclass(frozen=True, slots=True)
class LifetimeSpec:
    """How long guests live: log-normal, by its median and 95th percentile."""

    median_ns: int
    p95_ns: int


@dataclass(frozen=True, slots=True)
class DrawSpec:
    """Guests drawn from a workload class instead of those that were captured.

    `count` guests run at the start; `arrivals_per_hour` more come (Poisson); `table_share` of the
    scenario's arrival table (0 where it has none; shares of all workloads add up to 1).
    `lifetime` None: until the end. `memory_bytes` None: as captured; more than that is filled
    as `fill` says: `private` (pages nobody else has), `proportional` (the captured mix, more of
    it, fresh where it is private) or `none` (never touched). `domains` are dealt out in turn;
    empty: the captured guest's (`domain: {label}`), or the tenant of the arrival table.
    `image` is a label. `huge_share` None: as captured. `is_restored`: guests start from a
    snapshot of a running guest (the `restore` trigger), they do not boot.
    """

    count: int = 0
    arrivals_per_hour: float = 0.0
    table_share: float = 0.0
    lifetime: LifetimeSpec | None = None
    memory_bytes: int | None = None
    fill: Literal["private", "proportional", "none"] = "private"
    domains: tuple[str, ...] = ()
    image: str | None = None
    huge_share: float | None = None
    is_restored: bool = False


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """One simulated guest.

    `group` is the group its domain belongs to, or the domain itself. `labels` holds the
    trace's labels, those the scenario adds, and `domain`, `group` and `guest` (its name), so
    that every key of `partition_by` and `exclude` that concerns guests is found there.
    """

    trace_guest_id: int
    name: str
    domain: str
    group: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """Guests of one trace on one host. `trace` is an absolute path.

    With `draw` the guests listed are the captured ones that others are drawn like, and `host` is
    empty: placement decides.
    """

    name: str
    trace: str
    trace_digest: str
    host: str
    select: Labels
    guests: tuple[GuestSpec, ...]
    mergeable: Literal["captured", "all", "none"]
    draw: DrawSpec | None = None


@dataclass(frozen=True, slots=True)
class DomainsSpec:
    """Which security domains may share with one another, and which are watched apart."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    sensitive: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArrivalsSpec:
    """Arrivals from a table (`planner.arrivals`): its absolute path and digest.

    Rows from `from_ns` on (of the table's clock) come at `(time - from_ns) / speed`; at most
    `limit` of them (0: all). Only rows that fit a host are taken.
    """

    table: str
    digest: str
    from_ns: int = 0
    speed: float = 1.0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class IncidentSpec:
    """What befalls hosts: at `at_ns`, for `for_ns` (0: to the end).

    `drain`: its guests migrate away one after another, it comes back empty. `fail`: its guests
    are lost and start anew elsewhere. `pressure`: `bytes` of its memory are needed otherwise.
    `host` names a machine; empty: `n_hosts` are drawn. `migrate`: `n_guests` drawn guests move.
    """

    kind: Literal["drain", "fail", "pressure", "migrate"]
    at_ns: int
    for_ns: int = 0
    host: str = ""
    n_hosts: int = 1
    n_guests: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Choices of a scenario whose guests are drawn.

    `placement`: how guests find a host. `overcommit`: guests may hold this times the
    memory of a host (1.0: none). `confidence`: of what is safe to count on. `arrivals`: a table.
    `migration_bytes_per_s`: how fast guests move.
    """

    placement: Literal["first-fit", "best-fit", "spread", "pack-by-domain",
                       "sharing-aware"] = "first-fit"
    overcommit: float = 1.0
    confidence: float = 0.95
    arrivals: ArrivalsSpec | None = None
    incidents: tuple[IncidentSpec, ...] = ()
    migration_bytes_per_s: int = 1_250_000_000


@dataclass(frozen=True, slots=True)
class PrecisionSpec:
    """How exact a fleet is simulated.

    `error`: the wanted standard error of fleet-total savings as a share, 0 for every page of
    every host. `content_share` and `n_hosts`: fixed by hand, None or 0 where chosen for `error`.
    """

    error: float = 0.0
    content_share: float | None = None
    n_hosts: int = 0


@dataclass(frozen=True, slots=True)
class CostsSpec:
    """Prices. None: not given; what it would take part in is then not told.

    `host_lifetime_ns` spreads `host_price`; `cpu_price` per core-hour, `memory_price` per GiB (for
    the host's lifetime), `electricity_price` per kWh.
    """

    currency: str = "EUR"
    host_price: float | None = None
    host_lifetime_ns: int | None = None
    host_power_w: float | None = None
    electricity_price: float | None = None
    cpu_price: float | None = None
    memory_price: float | None = None
    huge_page_slowdown: float | None = None


@dataclass(frozen=True, slots=True)
class RequireSpec:
    """A requirement on a policy's result: exit code 4 where it fails.

    `metric`: a name of planner.measures.METRICS. One of the bounds is given, in the metric's base
    unit (bytes, ns, count) or, with `is_share`, as a share of the metric's whole. `confidence`:
    share of replicates in which it must hold.
    """

    policy: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    is_share: bool = False
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Where results go (relative to the working directory) and how often hosts are sampled."""

    folder: str
    sample_every_ns: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A resolved scenario; `policies[0]` is the baseline."""

    format: int
    name: str
    seed: int
    horizon_ns: int
    hosts: tuple[HostSpec, ...]
    workloads: tuple[WorkloadSpec, ...]
    domains: DomainsSpec
    policies: tuple[PolicySpec, ...]
    output: OutputSpec
    replicates: int = 1
    warm_up_ns: int = 0
    fleet: FleetSpec | None = None
    precision: PrecisionSpec = PrecisionSpec()
    costs: CostsSpec = CostsSpec()
    require: tuple[RequireSpec, ...] = ()

    @property
    def is_fleet(self) -> bool:
        """Whether guests are drawn and placed, instead of replayed as captured."""
        return self.fleet is not None


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What a scenario needs to know of a captured guest.

    `n_pages` is the most pages of 4 KiB the guest holds in any snapshot.
    """

    guest_id: int
    name: str
    kind: str
    labels: Mapping[str, str]
    memory_bytes: int | None
    n_pages: int


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """What a scenario needs to know of a trace.

    `span_ns` is the time from the first snapshot to the last, 0 for a single one. A key of
    `region_label_keys` missing from `region_labels` has too many values to list; its values
    are then not checked.
    """

    path: str
    digest: str
    span_ns: int
    n_snapshots: int
    guests: tuple[GuestFacts, ...]
    region_label_keys: frozenset[str]
    region_labels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    key_id: str = ""
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class ArrivalFacts:
    """What a scenario needs to know of an arrival table.

    `first_ns` and `last_ns` bound the times of its rows, by the table's own clock;
    `most_memory_bytes` is the largest guest's. `n_tenants`: 0 where it tells none.
    """

    path: str
    digest: str
    n_rows: int
    n_tenants: int
    first_ns: int
    last_ns: int
    most_memory_bytes: int


@dataclass(frozen=True, slots=True)
class FleetHost:
    """A host of an inventory; what is not known is None."""

    name: str
    memory_bytes: int | None
    cpus: int | None


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What a scenario needs to know of an inventory.

    `guests` holds (name, labels) of each listed guest; names may repeat.
    """

    path: str
    hosts: tuple[FleetHost, ...]
    guests: tuple[tuple[str, Mapping[str, str]], ...]


def to_json(scenario: Scenario) -> dict[str, Any]:
    """The resolved form: dicts, lists, strings and numbers only, in a fixed order.

    Keys that came after the first version are there only where they say something, so that the
    form (and with it the digest) of a scenario without them stays what it was.
    """
    form: dict[str, Any] = {
        "resolved": 1,
        "planner": scenario.format,
        "name": scenario.name,
        "seed": scenario.seed,
        "horizon_ns": scenario.horizon_ns,
        "hosts": list(map(_host_json, scenario.hosts)),
        "workloads": list(map(_workload_json, scenario.workloads)),
        "domains": {
            "groups": {name: list(members) for name, members in scenario.domains.groups},
            "sensitive": list(scenario.domains.sensitive),
        },
        "policies": list(map(policy_json, scenario.policies)),
        "output": {
            "folder": scenario.output.folder,
            "sample_every_ns": scenario.output.sample_every_ns,
        },
    }
    if scenario.replicates != 1:
        form["replicates"] = scenario.replicates
    if scenario.warm_up_ns:
        form["warm_up_ns"] = scenario.warm_up_ns
    if scenario.fleet is not None:
        form["fleet"] = _fleet_json(scenario.fleet)
    if scenario.precision != PrecisionSpec():
        form["precision"] = _given(scenario.precision)
    if scenario.costs != CostsSpec():
        form["costs"] = _given(scenario.costs)
    if scenario.require:
        form["require"] = list(map(_given, scenario.require))
    return form


def _given(spec: PrecisionSpec | CostsSpec | RequireSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if value is not None}


def _host_json(host: HostSpec) -> dict[str, Any]:
    form: dict[str, Any] = {
        "name": host.name,
        "memory_bytes": host.memory_bytes,
        "reserved_bytes": host.reserved_bytes,
        "cores": host.cores,
        "hz": host.hz,
        "timings": host.timings,
        "kernel": host.kernel,
    }
    if host.count != 1:
        form["count"] = host.count
    if host.load is not None:
        form["load"] = asdict(host.load)
    return form


def _workload_json(workload: WorkloadSpec) -> dict[str, Any]:
    form: dict[str, Any] = {
        "name": workload.name,
        "trace": workload.trace,
        "trace_digest": workload.trace_digest,
        "host": workload.host,
        "select": dict(workload.select),
        "mergeable": workload.mergeable,
        "guests": [
            {
                "trace_guest_id": guest.trace_guest_id,
                "name": guest.name,
                "domain": guest.domain,
                "group": guest.group,
                "labels": {key: value for key, value in guest.labels if key not in OWN_LABELS},
            }
            for guest in workload.guests
        ],
    }
    if workload.draw is not None:
        draw = {key: value for key, value in asdict(workload.draw).items() if value is not None}
        form["draw"] = {**draw, "domains": list(workload.draw.domains)}
    return form


def _fleet_json(fleet: FleetSpec) -> dict[str, Any]:
    form = asdict(fleet)
    if fleet.arrivals is None:
        del form["arrivals"]
    return {**form, "incidents": [asdict(incident) for incident in fleet.incidents]}
