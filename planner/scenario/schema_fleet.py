"""Hosts, workloads and what befalls them, as a scenario file says it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)

from planner.scenario.schema_rates import ArrivalRate, Number
from planner.scenario.schema_values import (
    NAME_PATTERN,
    Box,
    Duration,
    KernelName,
    Name,
    NotEmptyLabelMap,
    PositiveDuration,
    Reserved,
    Share,
    Size,
    Strict,
    Text,
    TimerHz,
)

__all__ = [
    "MAX_GUESTS",
    "MAX_HOSTS",
    "ArrivalsModel",
    "DomainsModel",
    "FleetReference",
    "HostModel",
    "HostsChoice",
    "IncidentModel",
    "LabelReference",
    "WorkloadModel",
]

MAX_HOSTS = 100_000
MAX_GUESTS = 10_000_000


def _mergeable(value: object) -> object:
    return {True: "all", False: "none"}[value] if isinstance(value, bool) else value


class LoadModel(Strict):
    """A cosine from low (at the start) to high and back."""

    low: Share = Field(title="Least load", description="Share of the CPUs that is busy at the "
                       "quietest time, which is the start.")
    high: Share = Field(title="Most load", description="Share of the CPUs that is busy at the "
                        "busiest time.")
    period: PositiveDuration = Field(
        default=86_400_000_000_000, title="Period",
        description="Time from one quietest time to the next.",
        json_schema_extra={"default": "1d"},
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
        default=1, ge=1, le=MAX_HOSTS, title="Hosts of this kind",
        description="More than one, and guests are drawn and placed: the machines are then "
        "named NAME-0001 and on.",
    )
    load: LoadModel | None = Field(
        default=None, title="CPU load",
        description="How busy the host's CPUs are with other things, for when_idle_above.",
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


def _domain_tag(value: object) -> str:
    if isinstance(value, dict | LabelReference):
        return "<label>"
    return "<domains>" if isinstance(value, list) else "<text>"


DomainChoice = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[LabelReference, Tag("<label>")]
    | Annotated[list[Text], Field(min_length=1), Tag("<domains>")],
    Discriminator(_domain_tag),
]


class LifetimeModel(Strict):
    """How long guests live: log-normal, by its median and 95th percentile."""

    median: PositiveDuration = Field(
        title="Median", description="Half of the guests live longer than this.",
        json_schema_extra={"examples": ["9h"]},
    )
    p95: PositiveDuration = Field(
        title="95th percentile", description="One guest in twenty lives longer than this.",
        json_schema_extra={"examples": ["3d"]},
    )


class WorkloadModel(Strict):
    """Guests taken from one trace."""

    name: Name = Field(title="Workload name", description="Name of this set of guests.")
    trace: Text = Field(
        title="Trace", description="Folder of a trace, relative to the scenario file.",
    )
    host: Name | None = Field(
        default=None, title="Host",
        description="Host that replayed guests run on; default the only host.",
    )
    select: NotEmptyLabelMap = Field(
        default={}, title="Selected guests",
        description="Only guests of the trace with all these labels; guest stands for the "
        "guest's name. Default all.",
    )
    count: int | None = Field(
        default=None, ge=1, le=MAX_GUESTS, title="Number of guests",
        description="Replayed: take the first guests by id; default all selected. Drawn: so many "
        "guests run at the start.",
    )
    arrivals: ArrivalRate | None = Field(
        default=None, title="Arrivals",
        description="Drawn guests that come one by one (Poisson). Default: none.",
    )
    share: Share | None = Field(
        default=None, title="Share of the arrival table",
        description="How much of the table under arrivals becomes guests of this workload; the "
        "shares of all workloads add up to 100%.",
    )
    lifetime: LifetimeModel | None = Field(
        default=None, title="Lifetime",
        description="How long drawn guests live: log-normal, as {median: 9h, p95: 3d}. Default: to "
        "the end, or as the arrival table says.",
    )
    start: Literal["boot", "restored"] = Field(
        default="boot", title="Start",
        description="Drawn guests boot, or are restored from a snapshot of a running guest (the "
        "trigger restore).",
    )
    memory: Size | None = Field(
        default=None, title="Memory of a guest",
        description="Memory of each drawn guest, at least what was captured; default as captured, "
        "or as the arrival table says.",
        json_schema_extra={"examples": ["4GiB"]},
    )
    fill: Literal["private", "proportional", "none"] = Field(
        default="private", title="Memory beyond the capture",
        description="What fills memory that no captured guest has: pages that nobody else has "
        "(private), more of the captured mix (proportional), or nothing (never touched).",
    )
    huge_pages: Share | None = Field(
        default=None, title="Huge pages",
        description="Share of the guests' memory in transparent huge pages; default as captured.",
        json_schema_extra={"examples": ["40%"]},
    )
    domain: DomainChoice | None = Field(
        default=None, title="Security domain",
        description="A name, a pattern such as tenant-{1..3}, a list of both, dealt out in turn, "
        "or {label: KEY}. Default: the guest's label domain, else tenant, else its own name; with "
        "an arrival table, its tenants.",
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


class ArrivalsModel(Strict):
    """Guests as a record of a real cluster says."""

    table: Text = Field(
        title="Arrival table",
        description="A table of arrivals that planner import wrote, relative to the scenario "
        "file.",
    )
    from_: Duration = Field(
        default=0, alias="from", title="Start in the table",
        description="Time of the table's clock at which the simulation starts.",
        json_schema_extra={"default": "0s"},
    )
    speed: Number = Field(
        default=1.0, title="Speed",
        description="How many times as fast as the table's clock time passes: guests come, and "
        "go, the faster.",
    )
    limit: int | None = Field(
        default=None, ge=1, title="Most guests",
        description="Take so many rows at the most; default all.",
    )


class AffectedModel(Strict):
    """Hosts, a time, and for how long."""

    host: Text | None = Field(
        default=None, title="Host",
        description="The machine it befalls; default drawn at random.",
    )
    hosts: int | None = Field(
        default=None, ge=1, title="Number of hosts",
        description="How many drawn machines it befalls instead of a named one; default 1.",
    )
    at: Duration = Field(title="Time", description="When it happens, from the start.")
    for_: PositiveDuration | None = Field(
        default=None, alias="for", title="Duration",
        description="How long it lasts; default to the end.",
    )


class PressureModel(AffectedModel):
    """Memory that is needed otherwise."""

    memory: Size = Field(
        title="Memory", description="How much of each host's memory is needed otherwise.",
        json_schema_extra={"examples": ["64GiB"]},
    )


class MigrateModel(Strict):
    """Guests on the move."""

    guests: int = Field(
        ge=1, le=MAX_GUESTS, title="Number of guests",
        description="How many drawn guests move to another host, one after another.",
    )
    at: Duration = Field(title="Time", description="When it happens, from the start.")


class IncidentModel(Box):
    """One thing that befalls hosts."""

    drain: AffectedModel | None = Field(
        default=None, title="Drain",
        description="Guests migrate away one after another; the host comes back empty.",
    )
    fail: AffectedModel | None = Field(
        default=None, title="Failure",
        description="Guests of the host are lost and start anew on others.",
    )
    pressure: PressureModel | None = Field(
        default=None, title="Pressure",
        description="A part of the host's memory is needed otherwise.",
    )
    migrate: MigrateModel | None = Field(
        default=None, title="Migration",
        description="Guests migrate to other hosts; what was merged of them has to be found again.",
    )
