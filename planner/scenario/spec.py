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
    """Guests of one trace on one host. `trace` is an absolute path."""

    name: str
    trace: str
    trace_digest: str
    host: str
    select: Labels
    guests: tuple[GuestSpec, ...]
    mergeable: Literal["captured", "all", "none"]


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

    kind: Literal["boot", "every"]
    after_ns: int
    every_ns: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Synchronous merging (ksm_merge of the Selective KSM proposal) at given times."""

    at: tuple[Trigger, ...]


Merge = Never | Ksmd | Sync


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What may merge with what, and when.

    `partition_by` empty means one merge space. `exclude`: a guest or region that matches all
    labels of one entry never merges.
    """

    name: str
    partition_by: tuple[str, ...]
    exclude: tuple[Labels, ...]
    merge: Merge


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
