"""Strategies of a scenario file: what may merge with what, and when.

Knobs of the kernel and of controllers are bare numbers with their own names; everything else
carries a unit.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from planner.scenario.schema_rates import ByteYield
from planner.scenario.schema_values import (
    LABELS_SCHEMA,
    SYSFS,
    Box,
    Duration,
    Name,
    NotEmptyLabelMap,
    PositiveDuration,
    PositiveShare,
    Strict,
    Text,
    box_or,
    flag,
    knob,
    listed,
)

__all__ = [
    "CooperationModel",
    "KsmtunedModel",
    "MergeModel",
    "PartitionModel",
    "PolicyModel",
    "SyncModel",
    "TriggerModel",
]

_INT31_MAX = 2**31 - 1


def _partition_by(value: list[str]) -> list[str]:
    if value == ["none"]:
        return []
    if not value:
        raise ValueError("expected a key or a list of keys; write none for one merge space")
    if "none" in value:
        raise ValueError("'none' stands alone; leave it out of the list")
    for position, key in enumerate(value):
        if key in value[:position]:
            raise ValueError(f"{key!r} is given twice")
    return value


class KsmdModel(Strict):
    """The kernel's own scanner; knobs have the names, defaults and ranges of sysfs."""

    pages_to_scan: Annotated[int, BeforeValidator(knob)] = Field(
        default=100, ge=1, le=2**32 - 1, title="Pages to scan",
        description="Pages ksmd visits between two sleeps.",
        json_schema_extra={"x-kernel-file": SYSFS + "pages_to_scan"},
    )
    sleep_millisecs: Annotated[int, BeforeValidator(knob)] = Field(
        default=20, ge=0, le=2**32 - 1, title="Sleep in milliseconds",
        description="How long ksmd sleeps between two batches, in milliseconds.",
        json_schema_extra={"x-kernel-file": SYSFS + "sleep_millisecs"},
    )
    max_page_sharing: Annotated[int, BeforeValidator(knob)] = Field(
        default=256, ge=2, le=2**31 - 1, title="Sharing limit of one page",
        description="Sites that may share one KSM page; a further site starts a duplicate "
        "on the page's chain.",
        json_schema_extra={"x-kernel-file": SYSFS + "max_page_sharing"},
    )
    stable_node_chains_prune_millisecs: Annotated[int, BeforeValidator(knob)] = Field(
        default=2000, ge=0, le=2**32 - 1, title="Time between prunings of a chain",
        description="How long a chain of KSM pages of one content goes before stale ones are "
        "sought throughout, in milliseconds.",
        json_schema_extra={"x-kernel-file": SYSFS + "stable_node_chains_prune_millisecs"},
    )
    use_zero_pages: Annotated[bool, BeforeValidator(flag)] = Field(
        default=False, title="Use zero pages",
        description="Merge pages of zeroes with the shared zero page.",
        json_schema_extra={"x-kernel-file": SYSFS + "use_zero_pages"},
    )
    smart_scan: Annotated[bool, BeforeValidator(flag)] | None = Field(
        default=None, title="Smart scan",
        description="Skip pages that could not be merged before, more often as they age. On "
        "unless said otherwise; kernel 6.1 does not have it.",
        json_schema_extra={"x-kernel-file": SYSFS + "smart_scan"},
    )
    advisor_mode: Literal["none", "scan-time"] | None = Field(
        default=None, title="Advisor",
        description="scan-time: after each full scan the kernel sets pages_to_scan itself, to "
        "scan everything within a target time. Kernel 6.1 does not have it.",
        json_schema_extra={"x-kernel-file": SYSFS + "advisor_mode"},
    )
    advisor_max_cpu: Annotated[int, BeforeValidator(knob)] | None = Field(
        default=None, ge=0, le=2**32 - 1, title="Most CPU by the advisor",
        description="Upper limit of ksmd's CPU use in per cent of one CPU; the kernel's "
        "default is 70.",
        json_schema_extra={"x-kernel-file": SYSFS + "advisor_max_cpu"},
    )
    advisor_target_scan_time: Annotated[int, BeforeValidator(knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Target of the advisor",
        description="Seconds that a full scan shall take; the kernel's default is 200.",
        json_schema_extra={"x-kernel-file": SYSFS + "advisor_target_scan_time"},
    )
    advisor_min_pages_to_scan: Annotated[int, BeforeValidator(knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Start of the advisor",
        description="The pages_to_scan that the advisor starts from (no lower limit, despite "
        "its name); the kernel's default is 500.",
        json_schema_extra={"x-kernel-file": SYSFS + "advisor_min_pages_to_scan"},
    )
    advisor_max_pages_to_scan: Annotated[int, BeforeValidator(knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Most pages by the advisor",
        description="Upper limit of pages_to_scan; the kernel's default is 30000.",
        json_schema_extra={"x-kernel-file": SYSFS + "advisor_max_pages_to_scan"},
    )
    merge_across_nodes: Annotated[bool, BeforeValidator(flag)] | None = Field(
        default=None, title="Merge across NUMA nodes",
        description="Off: pages merge with pages of their own node only. Needs a trace that tells "
        "the nodes of pages; a page stays on the node it was first seen on. On unless said "
        "otherwise.",
        json_schema_extra={"x-kernel-file": SYSFS + "merge_across_nodes"},
    )


class BootModel(Strict):
    """A merge some time after a guest starts."""

    after: Duration = Field(
        default=60_000_000_000, title="Delay after the start",
        description="Time from the start of a guest to its merge.",
        json_schema_extra={"default": "60s"},
    )


class RestoreModel(Strict):
    """A merge some time after a guest starts from a snapshot of a running one."""

    after: Duration = Field(
        default=0, title="Delay after the restore",
        description="Time from the restore of a guest to its merge.",
        json_schema_extra={"default": "0s"},
    )


class RepeatedShare(Strict):
    """A limit, and what happens while it is passed."""

    share: PositiveShare = Field(
        title="Limit", description="Share at which it fires.")
    every: PositiveDuration | None = Field(
        default=None, title="Repeat",
        description="Merge again each such time as long as the limit is passed; default once.",
    )


#: A bare share, or a share with a repeat.
LimitChoice = Annotated[
    Annotated[PositiveShare, Tag("<share>")] | Annotated[RepeatedShare, Tag("<limit>")],
    Discriminator(lambda value: "<limit>" if isinstance(value, dict | RepeatedShare)
                  else "<share>"),
]


class TriggerModel(Box):
    """One moment or rhythm of synchronous merging."""

    boot: BootModel | None = Field(
        default=None, title="After a guest starts",
        description="Merge each guest once, some time after it starts.",
    )
    restore: RestoreModel | None = Field(
        default=None, title="After a guest is restored",
        description="Merge each guest once, some time after it starts from a snapshot.",
    )
    every: PositiveDuration | None = Field(
        default=None, title="Periodically",
        description="Merge all guests again after each such time, counted from the start.",
    )
    when_free_below: LimitChoice | None = Field(
        default=None, title="Under pressure",
        description="Merge when less than this share of the host's memory is free: 12%, or {share: "
        "12%, every: 5min} to repeat as long as it is.",
    )
    when_idle_above: LimitChoice | None = Field(
        default=None, title="When idle",
        description="Merge when more than this share of the host's CPUs is idle: 60%, or {share: "
        "60%, every: 5min} to repeat as long as it is. Needs load of every host.",
    )


TriggerChoice = Annotated[
    Annotated[Literal["boot", "restore"], Tag("<boot>")]
    | Annotated[TriggerModel, Tag("<trigger>")],
    box_or("boot", "<trigger>"),
]


class SyncAdvisorModel(Strict):
    """Adapts interval and ranges of each partition to the saving found per CPU second."""

    shortest: PositiveDuration = Field(
        default=30_000_000_000, title="Shortest interval",
        description="A partition is never called again sooner than this.",
        json_schema_extra={"default": "30s"},
    )
    longest: PositiveDuration = Field(
        default=3_600_000_000_000, title="Longest interval",
        description="A partition is called again at the latest after this time.",
        json_schema_extra={"default": "1h"},
    )
    target: ByteYield = Field(
        default=1 << 30, title="Wanted saving",
        description="Called half as long after where a call freed more than this per CPU second, "
        "twice as long after where it freed less.",
        json_schema_extra={"default": "1GiB/core-s"},
    )
    drop_after: int = Field(
        default=3, ge=1, le=1000, title="Fruitless calls",
        description="Ranges that gave nothing in so many calls one after another are left out "
        "until the interval is at its longest.",
    )


class SyncModel(Strict):
    """Merging on request, as ksm_merge of the Selective KSM proposal does."""

    later: ClassVar[frozenset[str]] = frozenset({"regions"})

    at: list[TriggerChoice] = Field(
        min_length=1, title="When to merge",
        description="Moments at which guests are merged: boot (60 s after a guest starts), "
        "boot: {after: 10s}, every: 30min, restore, when_free_below: 12%, when_idle_above: 60%.",
    )
    longest_call: PositiveDuration | None = Field(
        default=None, title="Longest call",
        description="The caller stops after this time and goes on where it stopped at the next "
        "trigger. Default: no limit.",
        json_schema_extra={"examples": ["250ms"]},
    )
    stagger: PositiveDuration | None = Field(
        default=None, title="Stagger",
        description="Guests whose triggers come at one time are called this much apart. Default: "
        "one straight after the other.",
        json_schema_extra={"examples": ["10ms"]},
    )
    advisor: SyncAdvisorModel | None = Field(
        default=None, title="Advisor",
        description="Calls each partition again in an interval that follows what the calls "
        "save per CPU second, besides the moments given.",
    )


class KsmtunedModel(Strict):
    """ksmtuned's loop; keys of ksmtuned.conf by their own names, beside those of a file."""

    file: Text | None = Field(
        default=None, title="Configuration file",
        description="A ksmtuned.conf to take keys from, relative to the scenario; keys given here "
        "go before.",
    )
    monitor_interval_s: int | None = Field(
        alias="KSM_MONITOR_INTERVAL", default=None, ge=1, le=86400, title="Interval",
        description="Seconds between two looks at the memory; ksmtuned's default is 60.",
    )
    sleep_msec: int | None = Field(
        alias="KSM_SLEEP_MSEC", default=None, ge=1, le=_INT31_MAX, title="Sleep",
        description="Milliseconds between two batches on a host of 16 GiB, less on larger ones, "
        "never below 10; ksmtuned's default is 10.",
    )
    npages_boost: int | None = Field(
        alias="KSM_NPAGES_BOOST", default=None, ge=0, le=_INT31_MAX, title="Boost",
        description="Pages added to a batch at each look under pressure; ksmtuned's default is "
        "300.",
    )
    npages_decay: int | None = Field(
        alias="KSM_NPAGES_DECAY", default=None, ge=-_INT31_MAX, le=0, title="Decay",
        description="Pages, below zero, added to a batch at each look without pressure; "
        "ksmtuned's default is -50.",
    )
    npages_min: int | None = Field(
        alias="KSM_NPAGES_MIN", default=None, ge=1, le=_INT31_MAX, title="Smallest batch",
        description="Pages in a batch at the least; ksmtuned's default is 64.",
    )
    npages_max: int | None = Field(
        alias="KSM_NPAGES_MAX", default=None, ge=1, le=_INT31_MAX, title="Largest batch",
        description="Pages in a batch at the most; ksmtuned's default is 1250.",
    )
    thres_coef: int | None = Field(
        alias="KSM_THRES_COEF", default=None, ge=0, le=100, title="Threshold in per cent",
        description="Per cent of memory that must be free, else there is pressure; ksmtuned's "
        "default is 20.",
    )
    thres_const: int | None = Field(
        alias="KSM_THRES_CONST", default=None, ge=0, le=2**53, title="Threshold in kB",
        description="kB that must be free, whatever the manuals say of MB; ksmtuned's default is "
        "2048.",
    )


class KubeVirtModel(Strict):
    """virt-handler's loop; what its node annotations override, such as ksm-pages-boost-override."""

    pages_boost: int = Field(
        default=300, ge=0, le=_INT31_MAX, title="Boost",
        description="Pages added to a batch at each look under pressure "
        "(kubevirt.io/ksm-pages-boost-override).",
    )
    pages_decay: int = Field(
        default=-50, ge=-_INT31_MAX, le=0, title="Decay",
        description="Pages, below zero, added to a batch at each look without pressure "
        "(kubevirt.io/ksm-pages-decay-override).",
    )
    pages_min: int = Field(
        default=64, ge=1, le=_INT31_MAX, title="Smallest batch",
        description="Pages in a batch at the least; below it merging stops "
        "(kubevirt.io/ksm-pages-min-override).",
    )
    pages_max: int = Field(
        default=1250, ge=1, le=_INT31_MAX, title="Largest batch",
        description="Pages in a batch at the most (kubevirt.io/ksm-pages-max-override).",
    )
    pages_init: int = Field(
        default=100, ge=1, le=_INT31_MAX, title="First batch",
        description="Pages in the first batches (kubevirt.io/ksm-pages-init-override).",
    )
    sleep_ms_baseline: int = Field(
        default=100, ge=1, le=_INT31_MAX, title="Sleep",
        description="Milliseconds between two batches with 16 GiB in use, less with more, never "
        "below 10 (kubevirt.io/ksm-sleep-ms-baseline-override).",
    )
    free_percent: PositiveShare = Field(
        default=0.2, title="Threshold",
        description="Share of memory that must be available, else there is pressure "
        "(kubevirt.io/ksm-free-percent-override).",
        json_schema_extra={"default": "20%"},
    )
    interval: PositiveDuration = Field(
        default=600_000_000_000, title="Interval",
        description="Time between two looks at the memory.",
        json_schema_extra={"default": "10min"},
    )


class ReportingModel(Strict):
    """Free-page reporting has no settings."""


class BalloonModel(Strict):
    """A balloon that takes free pages."""

    every: PositiveDuration = Field(
        default=60_000_000_000, title="Interval",
        description="How often the balloon takes what is free.",
        json_schema_extra={"default": "1min"},
    )


class MergeModel(Box):
    """How merging is timed."""

    ksmd: KsmdModel | None = Field(
        default=None, title="The kernel's scanner",
        description="A scanner thread visits pages at a steady pace, as ksmd does in mainline.",
    )
    sync: SyncModel | None = Field(
        default=None, title="Synchronous merging",
        description="Guests are merged in one call at chosen moments, as in Selective KSM.",
    )
    ksmtuned: KsmtunedModel | None = Field(
        default=None, title="ksmtuned",
        description="The daemon of many distributions sets ksmd's pace by free memory.",
    )
    kubevirt: KubeVirtModel | None = Field(
        default=None, title="KubeVirt",
        description="KubeVirt's virt-handler sets ksmd's pace by available memory.",
    )
    free_page_reporting: ReportingModel | None = Field(
        default=None, title="Free-page reporting",
        description="No merging: guests give free and zero-filled pages back to the host at once. "
        "Written with {}.",
    )
    balloon: BalloonModel | None = Field(
        default=None, title="Balloon",
        description="No merging: a balloon gives the guests' free and zero-filled pages back to "
        "the host every so often.",
    )


MergeChoice = Annotated[
    Annotated[Literal["never"], Tag("<never>")] | Annotated[MergeModel, Tag("<merge>")],
    box_or("never", "<merge>"),
]
LabelMaps = Annotated[
    list[NotEmptyLabelMap],
    BeforeValidator(listed),
    WithJsonSchema({
        "anyOf": [LABELS_SCHEMA, {"type": "array", "items": LABELS_SCHEMA}],
        "x-type": "mapping of labels, or a list of them",
    }),
]
NotEmptyLabelMaps = Annotated[
    list[NotEmptyLabelMap],
    Field(min_length=1),
    BeforeValidator(listed),
    WithJsonSchema({
        "anyOf": [LABELS_SCHEMA, {"type": "array", "items": LABELS_SCHEMA, "minItems": 1}],
        "x-type": "mapping of labels, or a list of them",
    }),
]


class PartitionModel(Strict):
    """One partition by name."""

    name: Name = Field(
        title="Partition name", description="Name of the partition in every table.")
    match: NotEmptyLabelMaps = Field(
        title="What belongs to it",
        description="Guests and regions with these labels; with a list, those that match all "
        "labels of one entry.",
    )
    merge: MergeChoice | None = Field(
        default=None, title="Merge timing",
        description="When its pages are merged, written as merge of the policy; default as the "
        "policy says.",
        json_schema_extra={"x-as": "policies.merge", "x-type": "never or mapping"},
    )


class FullCooperationModel(Strict):
    """Guests that tell all they know."""

    ranges: NotEmptyLabelMaps | None = Field(
        default=None, title="Named ranges",
        description="Labels of the regions that guests name; default all.",
    )


class CooperationModel(Box):
    """What guests tell the host."""

    ranges: NotEmptyLabelMaps | None = Field(
        default=None, title="Named ranges",
        description="Guests name ranges by content class: only regions with these labels are "
        "candidates.",
    )
    full: FullCooperationModel | None = Field(
        default=None, title="Full",
        description="Guests name ranges, and leave out pages that are free or that they know to "
        "be volatile.",
    )


CooperationChoice = Annotated[
    Annotated[Literal["none", "full"], Tag("<none>")]
    | Annotated[CooperationModel, Tag("<cooperation>")],
    box_or("none", "<cooperation>"),
]


class PolicyModel(Strict):
    """One strategy to compare."""

    name: Name = Field(title="Policy name", description="Name of the strategy in every table.")
    partition_by: Annotated[
        list[Text],
        AfterValidator(_partition_by),
        BeforeValidator(listed),
        WithJsonSchema({
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ],
            "x-type": "none, a key, or a list of keys",
            "examples": ["none", "domain", ["group", "image"]],
        }),
    ] = Field(
        default=[], title="Merge partitions",
        description="What separates merge partitions: none (one merge space per host), guest, "
        "domain, group, or any label of guests or regions; a list separates by all its keys.",
        json_schema_extra={"default": "none"},
    )
    partitions: list[PartitionModel] = Field(
        default=[], title="Named partitions",
        description="Partitions by what belongs to them, tried in order before partition_by: what "
        "matches none falls to partition_by. Each may have its own timing.",
    )
    exclude: LabelMaps = Field(
        default=[], title="Never merged",
        description="Guests and regions with these labels never merge; with a list, those "
        "that match all labels of one entry.",
    )
    cooperation: CooperationChoice = Field(
        default="none", title="Cooperation",
        description="What guests tell the host: none (it sees every page), {ranges: [{LABEL: "
        "VALUE}]} (guests name what is worth merging), or full (they also leave out free and "
        "volatile pages).",
    )
    merge: MergeChoice = Field(
        title="Merge timing",
        description="When pages are merged: never, ksmd, sync, ksmtuned or kubevirt; or instead of "
        "merging free_page_reporting or balloon.",
    )
