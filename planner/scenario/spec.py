"""The resolved scenario: frozen plain dataclasses, every value explicit, nothing to guess.

Times are integer nanoseconds, sizes integer bytes. `to_json` gives the resolved form: a
mapping marked `resolved: 1` whose integer keys carry their unit as a suffix. It is stored in
every result and is accepted back wherever a scenario file is; resolving it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

__all__ = [
    "DomainsSpec",
    "FleetFacts",
    "FleetHost",
    "GuestFacts",
    "GuestSpec",
    "HostSpec",
    "Kernel",
    "Ksmd",
    "Labels",
    "Merge",
    "Never",
    "OutputSpec",
    "PolicySpec",
    "Scenario",
    "Sync",
    "TraceFacts",
    "Trigger",
    "WorkloadSpec",
    "to_json",
]

#: Linux versions whose KSM is modelled.
Kernel = Literal["6.1", "6.12", "6.18"]

#: Labels sorted by key.
Labels = tuple[tuple[str, str], ...]

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
class Never:
    """No merging at all."""


@dataclass(frozen=True, slots=True)
class Ksmd:
    """The kernel's scanner thread; names and defaults of /sys/kernel/mm/ksm.

    None: what the host's kernel has by default.
    """

    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    max_page_sharing: int = 256
    stable_node_chains_prune_millisecs: int = 2000
    use_zero_pages: bool = False
    smart_scan: bool | None = None
    advisor_mode: Literal["none", "scan-time"] | None = None
    advisor_max_cpu: int | None = None
    advisor_target_scan_time: int | None = None
    advisor_min_pages_to_scan: int | None = None
    advisor_max_pages_to_scan: int | None = None
    merge_across_nodes: bool | None = None

    def given(self) -> dict[str, Any]:
        """The values that are not left to the kernel, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Trigger:
    """When a synchronous merge is asked for.

    `boot`: once, `after_ns` after a guest starts. `every`: each `every_ns` from the start.
    """

    kind: Literal["boot", "every", "restore", "pressure", "idle"]
    after_ns: int = 0
    every_ns: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Sync:
    """Synchronous merging (ksm_merge of the Selective KSM proposal) at given times.

    `longest_call_ns`: the caller stops then and goes on where it stopped at the next trigger; 0:
    no limit. `stagger_ns`: guests whose triggers come at one time are called this much apart.
    `advisor`: None, or what adapts interval and ranges of each partition.
    """

    at: tuple[Trigger, ...]
    longest_call_ns: int = 0
    stagger_ns: int = 0
    advisor: SyncAdvisor | None = None


@dataclass(frozen=True, slots=True)
class SyncAdvisor:
    """An advisor for Selective KSM (the proposal's later work).

    It calls each partition again after an interval between the two bounds: half as long where the
    last call freed more than `target_bytes_per_cpu_s` a CPU second, twice as long where it freed
    less; ranges that gave nothing `drop_after` times in a row are left out until the interval
    reaches its longest.
    """

    shortest_ns: int
    longest_ns: int
    target_bytes_per_cpu_s: int
    drop_after: int = 3


@dataclass(frozen=True, slots=True)
class Ksmtuned:
    """ksmtuned's loop as its shell script does it; keys of ksmtuned.conf.

    Every `monitor_interval_s` it sets pages_to_scan and sleep_millisecs, run 0 or 1.
    """

    monitor_interval_s: int = 60
    sleep_msec: int = 10
    npages_boost: int = 300
    npages_decay: int = -50
    npages_min: int = 64
    npages_max: int = 1250
    thres_coef: int = 20
    thres_const: int = 2048


@dataclass(frozen=True, slots=True)
class KubeVirt:
    """virt-handler's KSM loop, every 10 minutes, with its overrides."""

    pages_boost: int = 300
    pages_decay: int = -50
    pages_min: int = 64
    pages_max: int = 1250
    pages_init: int = 100
    sleep_ms_baseline: int = 10
    free_percent: float = 0.2
    interval_ns: int = 600_000_000_000


@dataclass(frozen=True, slots=True)
class FreePages:
    """No merging: guests give zero-filled and free pages back to the host.

    By free-page reporting (`reporting`: at once, continually) or a balloon (`balloon`: every
    `every_ns`). A baseline: what merging zero pages saves, this gives without KSM.
    """

    kind: Literal["reporting", "balloon"]
    every_ns: int = 0


Merge = Never | Ksmd | Sync | Ksmtuned | KubeVirt | FreePages


@dataclass(frozen=True, slots=True)
class PartitionRule:
    """An explicit partition: what matches all labels of any entry belongs to it.

    `merge` None: timed as the policy says.
    """

    name: str
    match: tuple[Labels, ...]
    merge: Merge | None = None


@dataclass(frozen=True, slots=True)
class Cooperation:
    """What guests tell the host.

    `none`: the host sees every page. `ranges`: guests name ranges by content class, only regions
    that match an entry of `ranges` are candidates. `full`: besides, free pages and pages that the
    guest knows to be volatile are left out.
    """

    kind: Literal["none", "ranges", "full"] = "none"
    ranges: tuple[Labels, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What may merge with what, and when.

    `partition_by` empty means one merge space. `partitions` come first: what matches none of
    them falls to `partition_by`. `exclude`: a guest or region that matches all labels of one
    entry never merges.
    """

    name: str
    partition_by: tuple[str, ...]
    exclude: tuple[Labels, ...]
    merge: Merge
    partitions: tuple[PartitionRule, ...] = ()
    cooperation: Cooperation = Cooperation()


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

    `placement`: a class of planner.placement. `overcommit`: guests may hold this times the
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

    `metric`: a name of planner.planning.METRICS. One of the bounds is given, in the metric's base
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
    """The resolved form: dicts, lists, strings and integers only, in a fixed order."""
    return {
        "resolved": 1,
        "planner": scenario.format,
        "name": scenario.name,
        "seed": scenario.seed,
        "horizon_ns": scenario.horizon_ns,
        "hosts": [
            {
                "name": host.name,
                "memory_bytes": host.memory_bytes,
                "reserved_bytes": host.reserved_bytes,
                "cores": host.cores,
                "hz": host.hz,
                "timings": host.timings,
                "kernel": host.kernel,
            }
            for host in scenario.hosts
        ],
        "workloads": [
            {
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
                        "labels": {
                            key: value for key, value in guest.labels if key not in OWN_LABELS
                        },
                    }
                    for guest in workload.guests
                ],
            }
            for workload in scenario.workloads
        ],
        "domains": {
            "groups": {name: list(members) for name, members in scenario.domains.groups},
            "sensitive": list(scenario.domains.sensitive),
        },
        "policies": [
            {
                "name": policy.name,
                "partition_by": list(policy.partition_by),
                "exclude": [dict(labels) for labels in policy.exclude],
                "merge": _merge_json(policy.merge),
            }
            for policy in scenario.policies
        ],
        "output": {
            "folder": scenario.output.folder,
            "sample_every_ns": scenario.output.sample_every_ns,
        },
    }


def _merge_json(merge: Merge) -> str | dict[str, Any]:
    if isinstance(merge, Never):
        return "never"
    if isinstance(merge, Ksmd):
        return {"ksmd": merge.given()}
    return {
        "sync": {
            "at": [
                {"boot": {"after_ns": trigger.after_ns}}
                if trigger.kind == "boot"
                else {"every_ns": trigger.every_ns}
                for trigger in merge.at
            ]
        }
    }
