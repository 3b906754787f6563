"""The two file forms of a scenario as pydantic models, their JSON Schema and their help text.

Allowed keys, types, ranges and descriptions come from the models below and from nowhere else:
`load` finds unknown keys with them, `json_schema` feeds editors, `describe` the terminal.
Knobs of the kernel are bare integers with the kernel's own names; everything else carries a
unit (`planner.units`).
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from planner.errors import UsageError
from planner.units import (
    DURATION_PATTERN,
    SHARE_PATTERN,
    SIZE_PATTERN,
    parse_duration,
    parse_share,
    parse_size,
)

__all__ = [
    "Box",
    "ResolvedDocument",
    "ScenarioDocument",
    "alternatives_of",
    "describe",
    "json_schema",
    "type_of",
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAX_POLICIES = 64
_MAX_TEXT = 256
_INT64_MAX = 2**63 - 1
_SYSFS = "/sys/kernel/mm/ksm/"


# ---- values ---------------------------------------------------------------------------------


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("expected text, got an empty one")
    if len(value) > _MAX_TEXT:
        raise ValueError(f"text of {len(value)} characters; at most {_MAX_TEXT} are accepted")
    if not value.isprintable():
        raise ValueError(f"{value!r} holds a character that cannot be printed")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(NAME_PATTERN[1:-1], value, re.ASCII):
        raise ValueError(
            f"{value[:80]!r} is not a name; use up to 64 letters, digits, '-', '_' and '.', "
            "starting with a letter or digit"
        )
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scalar(value: object, kind: str) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return str(value)
    raise ValueError(f"expected {kind}, got {what_is(value)}")


def _duration(value: object) -> int:
    # A bare number is refused by parse_duration, which says what unit to write.
    return parse_duration(_scalar(value, "a duration such as 15min"))


def _positive_duration(value: object) -> int:
    duration_ns = _duration(value)
    if duration_ns == 0:
        raise ValueError("must be longer than zero")
    return duration_ns


def _horizon(value: object) -> int | str:
    if value == "captured":
        return "captured"
    try:
        return _positive_duration(value)
    except ValueError as error:
        hint = ", or captured" if "write" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None


def _size(value: object) -> int:
    size_bytes = parse_size(_scalar(value, "a size such as 512GiB"))
    if size_bytes == 0:
        raise ValueError("must be larger than zero")
    return size_bytes


def _reserved(value: object) -> int | float:
    if isinstance(value, str) and "%" in value:
        share = parse_share(value)
        if share >= 1:
            raise ValueError(f"{value!r} leaves nothing for guests; write less than 100%")
        return share
    try:
        return parse_size(_scalar(value, "a size such as 24GiB"))
    except ValueError as error:
        raise ValueError(f"{error}, or a share such as 8%") from None


def _not_true(value: object) -> object:
    """Python takes True for 1 and 1.0 for 1; a file means something else by them."""
    if isinstance(value, bool | float):
        raise ValueError(f"expected a whole number, got {what_is(value)}")
    return value


def _knob(value: object) -> object:
    """Kernel knobs: a bare integer, as written to sysfs."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.match(r"[0-9]+", str(value)) if isinstance(value, str | float) else None
    hint = f"; write {match.group()}" if match else ""
    raise ValueError(
        f"expected a whole number without a unit, as in {_SYSFS[:-1]}, got {what_is(value)}{hint}"
    )


def _flag(value: object) -> object:
    """Kernel switches: true or false, or 0 or 1 as written to sysfs."""
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError(f"expected true or false, or 0 or 1 as in {_SYSFS[:-1]}, got {what_is(value)}")


def _kernel(value: object) -> object:
    # Unquoted in YAML 6.1 is a number, and 6.10 the same as 6.1.
    if isinstance(value, float):
        raise ValueError(f'expected a quoted version, such as "6.18", got {what_is(value)}')
    return value


def _mergeable(value: object) -> object:
    return {True: "all", False: "none"}[value] if isinstance(value, bool) else value


def _listed(value: object) -> object:
    """One text or mapping where a list is meant."""
    return [value] if isinstance(value, str | dict) else value


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


def what_is(value: object) -> str:
    """A value in words for an error message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    text = str(value)
    return repr(text[:64] + "..." if len(text) > 64 else value)


_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": SIZE_PATTERN},
    ],
    "x-type": "size",
    "examples": ["512GiB"],
}
_DURATION_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": DURATION_PATTERN,
    "x-type": "duration",
    "examples": ["15min"],
}

Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN, "x-type": "name"}),
]
Text = Annotated[
    str,
    AfterValidator(_text),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _MAX_TEXT}),
]
Format = Annotated[Literal[1], BeforeValidator(_not_true)]
TimerHz = Annotated[Literal[100, 250, 300, 1000], BeforeValidator(_not_true)]
KernelName = Annotated[Literal["6.1", "6.12", "6.18"], BeforeValidator(_kernel)]
Size = Annotated[int, BeforeValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Duration = Annotated[int, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
PositiveDuration = Annotated[
    int, BeforeValidator(_positive_duration), WithJsonSchema(_DURATION_SCHEMA)
]
Horizon = Annotated[
    int | Literal["captured"],
    BeforeValidator(_horizon),
    WithJsonSchema({
        "anyOf": [{"const": "captured"}, _DURATION_SCHEMA],
        "x-type": "duration, or captured",
        "examples": ["captured", "15min"],
    }),
]
Reserved = Annotated[
    int | float,
    BeforeValidator(_reserved),
    WithJsonSchema({
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": SIZE_PATTERN},
            {"type": "string", "pattern": SHARE_PATTERN},
        ],
        "x-type": "size or share",
        "examples": ["24GiB", "8%"],
    }),
]
_LABELS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "string", "minLength": 1, "maxLength": _MAX_TEXT},
    "minProperties": 1,
    "x-type": "mapping of label keys to values",
    "examples": [{"role": "database"}],
}
LabelMap = Annotated[dict[Text, Text], WithJsonSchema(_LABELS_SCHEMA)]
NotEmptyLabelMap = Annotated[LabelMap, Field(min_length=1)]


def _box_or(text: str, tag: str) -> Any:
    """A discriminator: mappings go to the box, everything else is compared with `text`."""

    def tag_of(value: object) -> str:
        return tag if isinstance(value, dict | Box) else f"<{text}>"

    return Discriminator(tag_of)


# ---- the form people write ------------------------------------------------------------------


class Strict(BaseModel):
    """No unknown keys, no conversions. `later`: keys this version knows of but cannot serve."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()


class Box(Strict):
    """A mapping of which exactly one key is given."""

    @model_validator(mode="after")
    def _one_key(self) -> Box:
        if len(self.model_fields_set) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one of: {names}")
        return self


class KsmdModel(Strict):
    """The kernel's own scanner; knobs have the names, defaults and ranges of sysfs."""

    pages_to_scan: Annotated[int, BeforeValidator(_knob)] = Field(
        default=100, ge=1, le=2**32 - 1, title="Pages to scan",
        description="Pages ksmd visits between two sleeps.",
        json_schema_extra={"x-kernel-file": _SYSFS + "pages_to_scan"},
    )
    sleep_millisecs: Annotated[int, BeforeValidator(_knob)] = Field(
        default=20, ge=0, le=2**32 - 1, title="Sleep in milliseconds",
        description="How long ksmd sleeps between two batches, in milliseconds.",
        json_schema_extra={"x-kernel-file": _SYSFS + "sleep_millisecs"},
    )
    max_page_sharing: Annotated[int, BeforeValidator(_knob)] = Field(
        default=256, ge=2, le=2**31 - 1, title="Sharing limit of one page",
        description="Sites that may share one KSM page; a further site starts a duplicate "
        "on the page's chain.",
        json_schema_extra={"x-kernel-file": _SYSFS + "max_page_sharing"},
    )
    stable_node_chains_prune_millisecs: Annotated[int, BeforeValidator(_knob)] = Field(
        default=2000, ge=0, le=2**32 - 1, title="Time between prunings of a chain",
        description="How long a chain of KSM pages of one content goes before stale ones are "
        "sought throughout, in milliseconds.",
        json_schema_extra={"x-kernel-file": _SYSFS + "stable_node_chains_prune_millisecs"},
    )
    use_zero_pages: Annotated[bool, BeforeValidator(_flag)] = Field(
        default=False, title="Use zero pages",
        description="Merge pages of zeroes with the shared zero page.",
        json_schema_extra={"x-kernel-file": _SYSFS + "use_zero_pages"},
    )
    smart_scan: Annotated[bool, BeforeValidator(_flag)] | None = Field(
        default=None, title="Smart scan",
        description="Skip pages that could not be merged before, more often as they age. On "
        "unless said otherwise; kernel 6.1 does not have it.",
        json_schema_extra={"x-kernel-file": _SYSFS + "smart_scan"},
    )
    advisor_mode: Literal["none", "scan-time"] | None = Field(
        default=None, title="Advisor",
        description="scan-time: after each full scan the kernel sets pages_to_scan itself, to "
        "scan everything within a target time. Kernel 6.1 does not have it.",
        json_schema_extra={"x-kernel-file": _SYSFS + "advisor_mode"},
    )
    advisor_max_cpu: Annotated[int, BeforeValidator(_knob)] | None = Field(
        default=None, ge=0, le=2**32 - 1, title="Most CPU by the advisor",
        description="Upper limit of ksmd's CPU use in per cent of one CPU; the kernel's "
        "default is 70.",
        json_schema_extra={"x-kernel-file": _SYSFS + "advisor_max_cpu"},
    )
    advisor_target_scan_time: Annotated[int, BeforeValidator(_knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Target of the advisor",
        description="Seconds that a full scan shall take; the kernel's default is 200.",
        json_schema_extra={"x-kernel-file": _SYSFS + "advisor_target_scan_time"},
    )
    advisor_min_pages_to_scan: Annotated[int, BeforeValidator(_knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Start of the advisor",
        description="The pages_to_scan that the advisor starts from (no lower limit, despite "
        "its name); the kernel's default is 500.",
        json_schema_extra={"x-kernel-file": _SYSFS + "advisor_min_pages_to_scan"},
    )
    advisor_max_pages_to_scan: Annotated[int, BeforeValidator(_knob)] | None = Field(
        default=None, ge=1, le=2**32 - 1, title="Most pages by the advisor",
        description="Upper limit of pages_to_scan; the kernel's default is 30000.",
        json_schema_extra={"x-kernel-file": _SYSFS + "advisor_max_pages_to_scan"},
    )
    merge_across_nodes: Annotated[bool, BeforeValidator(_flag)] | None = Field(
        default=None, title="Merge across NUMA nodes",
        description="Off: pages merge with pages of their own node only. Needs a trace that tells "
        "the nodes of pages; a page stays on the node it was first seen on. On unless said "
        "otherwise.",
        json_schema_extra={"x-kernel-file": _SYSFS + "merge_across_nodes"},
    )


class BootModel(Strict):
    """A merge some time after a guest starts."""

    after: Duration = Field(
        default=60_000_000_000, title="Delay after the start",
        description="Time from the start of a guest to its merge.",
        json_schema_extra={"default": "60s"},
    )


class TriggerModel(Box):
    """One moment or rhythm of synchronous merging."""

    later: ClassVar[frozenset[str]] = frozenset({"when_free_below", "when_idle_above"})

    boot: BootModel | None = Field(
        default=None, title="After a guest starts",
        description="Merge each guest once, some time after it starts.",
    )
    every: PositiveDuration | None = Field(
        default=None, title="Periodically",
        description="Merge all guests again after each such time, counted from the start.",
    )


TriggerChoice = Annotated[
    Annotated[Literal["boot"], Tag("<boot>")] | Annotated[TriggerModel, Tag("<trigger>")],
    _box_or("boot", "<trigger>"),
]


class SyncModel(Strict):
    """Merging on request, as ksm_merge of the Selective KSM proposal does."""

    later: ClassVar[frozenset[str]] = frozenset({"regions", "longest_call"})

    at: list[TriggerChoice] = Field(
        min_length=1, title="When to merge",
        description="Moments at which guests are merged: boot (60 s after a guest starts), "
        "boot: {after: 10s}, every: 30min.",
    )


class MergeModel(Box):
    """How merging is timed."""

    later: ClassVar[frozenset[str]] = frozenset({"ksmtuned"})

    ksmd: KsmdModel | None = Field(
        default=None, title="The kernel's scanner",
        description="A scanner thread visits pages at a steady pace, as ksmd does in mainline.",
    )
    sync: SyncModel | None = Field(
        default=None, title="Synchronous merging",
        description="Guests are merged in one call at chosen moments, as in Selective KSM.",
    )


MergeChoice = Annotated[
    Annotated[Literal["never"], Tag("<never>")] | Annotated[MergeModel, Tag("<merge>")],
    _box_or("never", "<merge>"),
]


class PolicyModel(Strict):
    """One strategy to compare."""

    name: Name = Field(title="Policy name", description="Name of the strategy in every table.")
    partition_by: Annotated[
        list[Text],
        AfterValidator(_partition_by),
        BeforeValidator(_listed),
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
    exclude: Annotated[
        list[NotEmptyLabelMap],
        BeforeValidator(_listed),
        WithJsonSchema({
            "anyOf": [_LABELS_SCHEMA, {"type": "array", "items": _LABELS_SCHEMA}],
            "x-type": "mapping of labels, or a list of them",
        }),
    ] = Field(
        default=[], title="Never merged",
        description="Guests and regions with these labels never merge; with a list, those "
        "that match all labels of one entry.",
    )
    merge: MergeChoice = Field(
        title="Merge timing", description="When pages are merged: never, ksmd or sync.",
    )


class HostModel(Strict):
    """One machine."""

    later: ClassVar[frozenset[str]] = frozenset({"numa_nodes"})

    name: Name = Field(title="Host name", description="Name by which workloads refer to it.")
    memory: Size = Field(title="Memory", description="Installed memory.")
    reserved: Reserved = Field(
        default=0.08, title="Reserved memory",
        description="What the host itself needs (kernel, page tables, spare): a size or a "
        "share of its memory.",
        json_schema_extra={"default": "8%"},
    )
    cores: int = Field(
        default=2, ge=1, le=65536, title="Cores", description="Processor cores of the host.",
    )
    hz: TimerHz = Field(
        default=250, title="Timer frequency",
        description="The host kernel's CONFIG_HZ; sleeps of ksmd are whole ticks of it.",
    )
    kernel: KernelName = Field(
        default="6.18", title="Kernel",
        description="The Linux version whose KSM the host runs, in quotes: 6.1 (up to 6.6), 6.12 "
        "(6.11 to 6.17) or 6.18 (later). 6.7 to 6.10 lie between: 6.12 but for when a page is "
        "hashed.",
    )
    timings: Text = Field(
        default="builtin:unmeasured", title="Cost timings",
        description="What scanning, merging and breaking pages costs in CPU time: "
        "builtin:unmeasured, or a file that planner calibrate wrote, relative to this one.",
    )
    count: int = Field(
        default=1, ge=1, title="Hosts of this kind",
        description="Only 1 in this version: hosts and guests stand as captured.",
    )


class FleetReference(Strict):
    """Takes hosts, and labels of guests, from an inventory."""

    from_: Text = Field(
        alias="from", title="Inventory",
        description="File of hosts and guests made by planner import inventory, relative to the "
        "scenario file. Its hosts are the hosts; captured guests get the labels of its guests of "
        "the same name.",
    )


def _hosts_tag(value: object) -> str:
    """One host written without its list is a fault of the list, not of the reference."""
    is_reference = isinstance(value, FleetReference) or (
        isinstance(value, dict) and not {"name", "memory"} & set(value))
    return "<fleet>" if is_reference else "<hosts>"


HostsChoice = Annotated[
    Annotated[list[HostModel], Field(min_length=1), Tag("<hosts>")]
    | Annotated[FleetReference, Tag("<fleet>")],
    Discriminator(_hosts_tag),
]


class LabelReference(Strict):
    """Takes the value of a label of each guest."""

    label: Text = Field(title="Label key", description="Key of the guest's label to use.")


DomainChoice = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[LabelReference, Tag("<label>")],
    Discriminator(lambda value: "<label>" if isinstance(value, dict) else "<text>"),
]


class WorkloadModel(Strict):
    """Guests taken from one trace."""

    later: ClassVar[frozenset[str]] = frozenset({"arrivals", "lifetime", "huge_pages", "memory"})

    name: Name = Field(title="Workload name", description="Name of this set of guests.")
    trace: Text = Field(
        title="Trace", description="Folder of a trace, relative to the scenario file.",
    )
    host: Name | None = Field(
        default=None, title="Host", description="Host its guests run on; default the only host.",
    )
    select: NotEmptyLabelMap = Field(
        default={}, title="Selected guests",
        description="Only guests of the trace with all these labels; guest stands for the "
        "guest's name. Default all.",
    )
    count: int | None = Field(
        default=None, ge=1, title="Number of guests",
        description="Take the first guests by id; default all selected. Never more than were "
        "captured.",
    )
    domain: DomainChoice | None = Field(
        default=None, title="Security domain",
        description="A name, a pattern such as tenant-{1..3} dealt out in turn, or "
        "{label: KEY}. Default: the guest's label domain, else tenant, else its own name.",
    )
    image: Text | None = Field(
        default=None, title="Image", description="Replaces the guests' label image.",
    )
    labels: NotEmptyLabelMap = Field(
        default={}, title="Labels",
        description="Labels to add to the guests, or to replace.",
    )
    mergeable: Annotated[
        Literal["captured", "all", "none"],
        BeforeValidator(_mergeable),
        WithJsonSchema({
            "enum": ["captured", "all", "none", True, False],
            "x-type": "captured, all (true) or none (false)",
        }),
    ] = Field(
        default="captured", title="Mergeable memory",
        description="Which regions are offered for merging: those advised when captured, all "
        "that KSM accepts, or none.",
    )


class DomainsModel(Strict):
    """Relations between security domains."""

    groups: Annotated[
        dict[Name, Annotated[list[Text], Field(min_length=1)]],
        WithJsonSchema({
            "type": "object",
            "additionalProperties": {
                "type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1},
            },
            "propertyNames": {"pattern": NAME_PATTERN},
            "x-type": "mapping of group names to lists of domains",
        }),
    ] = Field(
        default={}, title="Groups",
        description="Domains that trust one another; partition_by: group lets them share.",
    )
    sensitive: list[Text] = Field(
        default=[], title="Sensitive domains",
        description="Domains whose sharing with others is reported apart.",
    )


class OutputModel(Strict):
    """Where results go."""

    later: ClassVar[frozenset[str]] = frozenset({"keep", "report"})

    folder: Text = Field(
        default="results", title="Results folder",
        description="Results go to FOLDER/<name>-<digest>/, relative to the working directory.",
    )
    sample_every: PositiveDuration | None = Field(
        default=None, title="Sampling interval",
        description="How often hosts are sampled for the time series; default about a "
        "hundredth of the horizon.",
    )


class ScenarioDocument(Strict):
    """A scenario of the KSM planner: hosts, guests from traces, and policies to compare."""

    model_config = ConfigDict(title="KSM planner scenario")
    later: ClassVar[frozenset[str]] = frozenset(
        {"replicates", "warm_up", "costs", "require", "sweep", "placement", "include"}
    )

    planner: Format = Field(
        title="Format", description="Version of the scenario format; must be 1.",
    )
    name: Name = Field(
        title="Scenario name", description="Names the scenario and its results folder.",
    )
    seed: int = Field(
        default=0, ge=0, le=_INT64_MAX, title="Seed",
        description="Seed of every random choice; all policies meet the same ones.",
    )
    horizon: Horizon = Field(
        default="captured", title="Simulated time",
        description="How long to simulate; captured is the longest time all traces cover.",
    )
    hosts: HostsChoice = Field(
        title="Hosts",
        description="The machines guests run on: a list, or {from: FILE} to take them from an "
        "inventory.",
    )
    workloads: list[WorkloadModel] = Field(
        min_length=1, title="Workloads", description="The guests, by the trace they come from.",
    )
    domains: DomainsModel = Field(
        default=DomainsModel(), title="Security domains",
        description="Groups of domains that trust one another, and sensitive domains.",
    )
    policies: list[PolicyModel] = Field(
        min_length=1, max_length=MAX_POLICIES, title="Policies",
        description="Strategies compared side by side; the first is the baseline.",
    )
    output: OutputModel = Field(
        default=OutputModel(), title="Output",
        description="Where results go and how often hosts are sampled.",
    )


# ---- the resolved form ----------------------------------------------------------------------

_Positive = Annotated[int, Field(ge=1, le=_INT64_MAX)]
_NotNegative = Annotated[int, Field(ge=0, le=_INT64_MAX)]


class ResolvedHost(Strict):
    """See HostSpec."""

    name: Name
    memory_bytes: _Positive
    reserved_bytes: _NotNegative
    cores: int = Field(ge=1, le=65536)
    hz: TimerHz
    timings: Text
    kernel: KernelName


class ResolvedGuest(Strict):
    """See GuestSpec."""

    trace_guest_id: _NotNegative
    name: Text
    domain: Text
    group: Text
    labels: LabelMap


class ResolvedWorkload(Strict):
    """See WorkloadSpec."""

    name: Name
    trace: Text
    trace_digest: Text
    host: Name
    select: LabelMap
    mergeable: Literal["captured", "all", "none"]
    guests: list[ResolvedGuest] = Field(min_length=1)


class ResolvedDomains(Strict):
    """See DomainsSpec."""

    groups: dict[Name, Annotated[list[Text], Field(min_length=1)]]
    sensitive: list[Text]


class ResolvedKsmd(Strict):
    """See Ksmd."""

    pages_to_scan: int = Field(ge=1, le=2**32 - 1)
    sleep_millisecs: int = Field(ge=0, le=2**32 - 1)
    max_page_sharing: int = Field(ge=2, le=2**31 - 1)
    stable_node_chains_prune_millisecs: int = Field(ge=0, le=2**32 - 1)
    use_zero_pages: bool
    smart_scan: bool | None = None
    advisor_mode: Literal["none", "scan-time"] | None = None
    advisor_max_cpu: int | None = Field(default=None, ge=0, le=2**32 - 1)
    advisor_target_scan_time: int | None = Field(default=None, ge=1, le=2**32 - 1)
    advisor_min_pages_to_scan: int | None = Field(default=None, ge=1, le=2**32 - 1)
    advisor_max_pages_to_scan: int | None = Field(default=None, ge=1, le=2**32 - 1)
    merge_across_nodes: bool | None = None


class ResolvedBoot(Strict):
    """See Trigger."""

    after_ns: _NotNegative


class ResolvedTrigger(Box):
    """See Trigger."""

    boot: ResolvedBoot | None = None
    every_ns: _Positive | None = None


class ResolvedSync(Strict):
    """See Sync."""

    at: list[ResolvedTrigger] = Field(min_length=1)


class ResolvedMerge(Box):
    """See Merge."""

    ksmd: ResolvedKsmd | None = None
    sync: ResolvedSync | None = None


class ResolvedPolicy(Strict):
    """See PolicySpec."""

    name: Name
    partition_by: list[Text]
    exclude: list[NotEmptyLabelMap]
    merge: Annotated[
        Annotated[Literal["never"], Tag("<never>")] | Annotated[ResolvedMerge, Tag("<merge>")],
        _box_or("never", "<merge>"),
    ]


class ResolvedOutput(Strict):
    """See OutputSpec."""

    folder: Text
    sample_every_ns: _Positive


class ResolvedDocument(Strict):
    """See Scenario and `planner.scenario.spec.to_json`."""

    resolved: Format
    planner: Format
    name: Name
    seed: _NotNegative
    horizon_ns: _Positive
    hosts: list[ResolvedHost] = Field(min_length=1)
    workloads: list[ResolvedWorkload] = Field(min_length=1)
    domains: ResolvedDomains
    policies: list[ResolvedPolicy] = Field(min_length=1, max_length=MAX_POLICIES)
    output: ResolvedOutput


# ---- for editors and terminals --------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the form people write, with a description per key."""
    schema = _without_null(ScenarioDocument.model_json_schema(by_alias=True))
    assert isinstance(schema, dict)
    for definition in schema["$defs"].values():
        definition.pop("title", None)  # the class names of this module
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null(node: Any) -> Any:
    """Nulls are never accepted: drop them from the schema of optional keys."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _without_null(value) for key, value in node.items()
              if not (key == "default" and value is None)}
    choices = [choice for choice in result.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1 and len(choices) < len(result["anyOf"]):
        del result["anyOf"]
        result = {**choices[0], **result}
    elif choices:
        result["anyOf"] = choices
    if result.get("title") in {box.__name__ for box in Box.__subclasses__()}:
        result |= {"minProperties": 1, "maxProperties": 1}
    return result


def describe(key_path: str) -> str:
    """What a key such as `policies.merge.ksmd` means: text, type, default, kernel file, keys.

    List positions and names are left out (`policies[0].merge` is read as `policies.merge`);
    an empty path describes the whole file. Raises UsageError for an unknown key.
    """
    schema = json_schema()
    parts = [part for part in re.sub(r"\[[^\]]*\]", "", key_path).split(".") if part]
    node: dict[str, Any] = schema
    for position, part in enumerate(parts):
        keys = _properties(schema, node)
        if part not in keys:
            place = ".".join(parts[:position])
            close = difflib.get_close_matches(part, keys, n=1)
            if close:
                instead = f"did you mean {'.'.join([*parts[:position], close[0]])!r}?"
            elif keys:
                instead = f"known here: {', '.join(keys)}"
            else:
                instead = f"{place!r} has no keys of its own"
            raise UsageError(f"unknown setting {part!r}", where=place, instead=instead)
        node = keys[part]
    lines = [".".join(parts) or "scenario", f"  {node.get('description', '')}"]
    if parts:
        lines.append(f"  type: {type_of(schema, node)}")
        is_required = parts[-1] in _required(schema, parts[:-1])
        if "default" in node and not isinstance(node["default"], dict | list):
            lines.append(f"  default: {node['default']}")
        elif is_required:
            lines.append("  required")
    if "examples" in node:
        lines.append(f"  example: {', '.join(map(str, node['examples']))}")
    if "x-kernel-file" in node:
        lines.append(f"  kernel file: {node['x-kernel-file']}")
    keys = _properties(schema, node)
    if keys:
        lines.append("  keys:")
        width = max(map(len, keys))
        lines += [f"    {key:{width}}  {keys[key].get('description', '')}" for key in keys]
    return "\n".join(lines)


def alternatives_of(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """A node and all it refers to: references, alternatives and list items."""
    found = [node]
    if "$ref" in node:
        found += alternatives_of(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    for choice in [*node.get("anyOf", []), *node.get("oneOf", [])]:
        found += alternatives_of(schema, choice)
    if isinstance(node.get("items"), dict):
        found += alternatives_of(schema, node["items"])
    return found


def _properties(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for choice in alternatives_of(schema, node):
        found |= choice.get("properties", {})
    return found


def _required(schema: dict[str, Any], parts: list[str]) -> set[str]:
    node = schema
    for part in parts:
        node = _properties(schema, node)[part]
    return {key for choice in alternatives_of(schema, node) for key in choice.get("required", [])}


def type_of(schema: dict[str, Any], node: dict[str, Any]) -> str:
    """The type of a node in words: "duration", "whole number, 1 to 9", "list of: text"."""
    if "x-type" in node:
        return str(node["x-type"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return " or ".join(map(str, node["enum"]))
    if "$ref" in node:
        return type_of(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    if "anyOf" in node or "oneOf" in node:
        choices = node.get("anyOf") or node["oneOf"]
        return " or ".join(dict.fromkeys(type_of(schema, choice) for choice in choices))
    if node.get("type") == "array":
        return f"list of: {type_of(schema, node['items'])}"
    if node.get("type") == "integer":
        low, high = node.get("minimum"), node.get("maximum")
        return f"whole number{f', {low}' if low is not None else ''}" + (
            f" to {high}" if high is not None else " or more" if low is not None else ""
        )
    if node.get("type") == "object":
        return "mapping"
    return {"string": "text", "boolean": "true or false"}.get(str(node.get("type")), "value")
