"""The resolved form of a scenario as pydantic models: every value explicit, units in the names.

It is what `planner.scenario.form.to_json` writes. Keys that may be missing came with later
versions and then stand for what a scenario without them says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from planner.scenario.schema_fleet import MAX_HOSTS
from planner.scenario.schema_values import (
    MAX_POLICIES,
    MAX_REPLICATES,
    Box,
    Format,
    Fraction,
    KernelName,
    LabelMap,
    Name,
    NotEmptyLabelMap,
    NotNegative,
    Positive,
    Strict,
    Text,
    TimerHz,
    box_or,
)

__all__ = ["ResolvedDocument", "ResolvedMerge", "ResolvedPolicy", "ResolvedTrigger"]

Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ResolvedLoad(Strict):
    """See LoadSpec."""

    low: Fraction
    high: Fraction
    period_ns: Positive


class ResolvedHost(Strict):
    """See HostSpec."""

    name: Name
    memory_bytes: Positive
    reserved_bytes: NotNegative
    cores: int = Field(ge=1, le=65536)
    hz: TimerHz
    timings: Text
    kernel: KernelName
    count: int = Field(default=1, ge=1, le=MAX_HOSTS)
    load: ResolvedLoad | None = None


class ResolvedGuest(Strict):
    """See GuestSpec."""

    trace_guest_id: NotNegative
    name: Text
    domain: Text
    group: Text
    labels: LabelMap


class ResolvedLifetime(Strict):
    """See LifetimeSpec."""

    median_ns: Positive
    p95_ns: Positive


class ResolvedDraw(Strict):
    """See DrawSpec."""

    count: NotNegative
    arrivals_per_hour: Finite
    table_share: Fraction
    lifetime: ResolvedLifetime | None = None
    memory_bytes: Positive | None = None
    fill: Literal["private", "proportional", "none"]
    domains: list[Text]
    image: Text | None = None
    huge_share: Fraction | None = None
    is_restored: bool


class ResolvedWorkload(Strict):
    """See WorkloadSpec."""

    name: Name
    trace: Text
    trace_digest: Text
    host: Name | Literal[""]
    select: LabelMap
    mergeable: Literal["captured", "all", "none"]
    guests: list[ResolvedGuest] = Field(min_length=1)
    draw: ResolvedDraw | None = None


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

    after_ns: NotNegative


class ResolvedLimit(Strict):
    """See Trigger."""

    share: Fraction
    every_ns: NotNegative


class ResolvedTrigger(Box):
    """See Trigger."""

    boot: ResolvedBoot | None = None
    every_ns: Positive | None = None
    restore: ResolvedBoot | None = None
    pressure: ResolvedLimit | None = None
    idle: ResolvedLimit | None = None


class ResolvedAdvisor(Strict):
    """See SyncAdvisor."""

    shortest_ns: Positive
    longest_ns: Positive
    target_bytes_per_cpu_s: Positive
    drop_after: int = Field(ge=1)


class ResolvedSync(Strict):
    """See Sync."""

    at: list[ResolvedTrigger] = Field(min_length=1)
    longest_call_ns: NotNegative = 0
    stagger_ns: NotNegative = 0
    advisor: ResolvedAdvisor | None = None


class ResolvedKsmtuned(Strict):
    """See Ksmtuned."""

    monitor_interval_s: Positive
    sleep_msec: Positive
    npages_boost: NotNegative
    npages_decay: int = Field(le=0)
    npages_min: Positive
    npages_max: Positive
    thres_coef: NotNegative
    thres_const: NotNegative


class ResolvedKubeVirt(Strict):
    """See KubeVirt."""

    pages_boost: NotNegative
    pages_decay: int = Field(le=0)
    pages_min: Positive
    pages_max: Positive
    pages_init: Positive
    sleep_ms_baseline: Positive
    free_percent: Fraction
    interval_ns: Positive


class ResolvedReporting(Strict):
    """See FreePages."""


class ResolvedBalloon(Strict):
    """See FreePages."""

    every_ns: Positive


class ResolvedMerge(Box):
    """See Merge."""

    ksmd: ResolvedKsmd | None = None
    sync: ResolvedSync | None = None
    ksmtuned: ResolvedKsmtuned | None = None
    kubevirt: ResolvedKubeVirt | None = None
    free_page_reporting: ResolvedReporting | None = None
    balloon: ResolvedBalloon | None = None


ResolvedMergeChoice = Annotated[
    Annotated[Literal["never"], Tag("<never>")] | Annotated[ResolvedMerge, Tag("<merge>")],
    box_or("never", "<merge>"),
]


class ResolvedPartition(Strict):
    """See PartitionRule."""

    name: Name
    match: list[NotEmptyLabelMap] = Field(min_length=1)
    merge: ResolvedMergeChoice | None = None


class ResolvedCooperation(Strict):
    """See Cooperation."""

    kind: Literal["none", "ranges", "full"]
    ranges: list[NotEmptyLabelMap]


class ResolvedPolicy(Strict):
    """See PolicySpec."""

    name: Name
    partition_by: list[Text]
    exclude: list[NotEmptyLabelMap]
    merge: ResolvedMergeChoice
    partitions: list[ResolvedPartition] = Field(default=[])
    cooperation: ResolvedCooperation | None = None


class ResolvedArrivals(Strict):
    """See ArrivalsSpec."""

    table: Text
    digest: Text
    from_ns: NotNegative
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    limit: NotNegative


class ResolvedIncident(Strict):
    """See IncidentSpec."""

    kind: Literal["drain", "fail", "pressure", "migrate"]
    at_ns: NotNegative
    for_ns: NotNegative
    host: str
    n_hosts: NotNegative
    n_guests: NotNegative
    bytes: NotNegative


class ResolvedFleet(Strict):
    """See FleetSpec."""

    placement: Literal["first-fit", "best-fit", "spread", "pack-by-domain", "sharing-aware"]
    overcommit: Annotated[float, Field(ge=1, le=100)]
    confidence: Fraction
    arrivals: ResolvedArrivals | None = None
    incidents: list[ResolvedIncident]
    migration_bytes_per_s: Positive


class ResolvedPrecision(Strict):
    """See PrecisionSpec."""

    error: Fraction
    content_share: Fraction | None = None
    n_hosts: NotNegative


class ResolvedCosts(Strict):
    """See CostsSpec."""

    currency: Text
    host_price: Finite | None = None
    host_lifetime_ns: Positive | None = None
    host_power_w: Finite | None = None
    electricity_price: Finite | None = None
    cpu_price: Finite | None = None
    memory_price: Finite | None = None
    huge_page_slowdown: Fraction | None = None


class ResolvedRequire(Strict):
    """See RequireSpec."""

    policy: Name
    metric: Text
    at_least: Finite | None = None
    at_most: Finite | None = None
    is_share: bool
    confidence: Fraction


class ResolvedOutput(Strict):
    """See OutputSpec."""

    folder: Text
    sample_every_ns: Positive


class ResolvedDocument(Strict):
    """See Scenario and `planner.scenario.spec.to_json`."""

    resolved: Format
    planner: Format
    name: Name
    seed: NotNegative
    horizon_ns: Positive
    hosts: list[ResolvedHost] = Field(min_length=1)
    workloads: list[ResolvedWorkload] = Field(min_length=1)
    domains: ResolvedDomains
    policies: list[ResolvedPolicy] = Field(min_length=1, max_length=MAX_POLICIES)
    output: ResolvedOutput
    replicates: int = Field(default=1, ge=1, le=MAX_REPLICATES)
    warm_up_ns: NotNegative = 0
    fleet: ResolvedFleet | None = None
    precision: ResolvedPrecision | None = None
    costs: ResolvedCosts | None = None
    require: list[ResolvedRequire] = Field(default=[])
