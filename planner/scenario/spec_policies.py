"""Strategies as the resolved scenario holds them: frozen plain dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

__all__ = [
    "Cooperation",
    "FreePages",
    "Ksmd",
    "Ksmtuned",
    "KubeVirt",
    "Labels",
    "Merge",
    "Never",
    "PartitionRule",
    "PolicySpec",
    "Sync",
    "SyncAdvisor",
    "Trigger",
    "policy_json",
]

#: Labels sorted by key.
Labels = tuple[tuple[str, str], ...]


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

    `boot`: once, `after_ns` after a guest starts; `restore`: after it starts from a snapshot.
    `every`: each `every_ns` from the start. `pressure`: when less than `share` of the host's
    memory is free; `idle`: when more than `share` of its CPUs is idle; both again each `every_ns`
    as long as that lasts (0: once).
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
    sleep_ms_baseline: int = 100
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


def policy_json(policy: PolicySpec) -> dict[str, Any]:
    """The resolved form of a policy; keys of later versions only where they say something."""
    form: dict[str, Any] = {
        "name": policy.name,
        "partition_by": list(policy.partition_by),
        "exclude": [dict(labels) for labels in policy.exclude],
        "merge": _merge_json(policy.merge),
    }
    if policy.partitions:
        form["partitions"] = [
            {"name": rule.name, "match": [dict(labels) for labels in rule.match],
             **({} if rule.merge is None else {"merge": _merge_json(rule.merge)})}
            for rule in policy.partitions
        ]
    if policy.cooperation != Cooperation():
        form["cooperation"] = {"kind": policy.cooperation.kind,
                               "ranges": [dict(labels) for labels in policy.cooperation.ranges]}
    return form


def _merge_json(merge: Merge) -> str | dict[str, Any]:
    if isinstance(merge, Never):
        return "never"
    if isinstance(merge, Ksmd):
        return {"ksmd": merge.given()}
    if isinstance(merge, Sync):
        sync: dict[str, Any] = {"at": list(map(_trigger_json, merge.at))}
        if merge.longest_call_ns:
            sync["longest_call_ns"] = merge.longest_call_ns
        if merge.stagger_ns:
            sync["stagger_ns"] = merge.stagger_ns
        if merge.advisor is not None:
            sync["advisor"] = asdict(merge.advisor)
        return {"sync": sync}
    if isinstance(merge, Ksmtuned):
        return {"ksmtuned": asdict(merge)}
    if isinstance(merge, KubeVirt):
        return {"kubevirt": asdict(merge)}
    if merge.kind == "balloon":
        return {"balloon": {"every_ns": merge.every_ns}}
    return {"free_page_reporting": {}}


def _trigger_json(trigger: Trigger) -> dict[str, Any]:
    if trigger.kind in ("boot", "restore"):
        return {trigger.kind: {"after_ns": trigger.after_ns}}
    if trigger.kind == "every":
        return {"every_ns": trigger.every_ns}
    return {trigger.kind: {"share": trigger.share, "every_ns": trigger.every_ns}}
