"""What a scenario with drawn guests says of them, of their fleet and of the plan, resolved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from planner.measures import METRICS
from planner.scenario.load import Part, RawScenario
from planner.scenario.schema import ScenarioDocument
from planner.scenario.schema_fleet import IncidentModel, WorkloadModel
from planner.scenario.schema_planning import CostsModel, PrecisionModel, RequireModel
from planner.scenario.schema_resolved import (
    ResolvedDocument,
    ResolvedDraw,
    ResolvedFleet,
)
from planner.scenario.schema_values import share_of
from planner.scenario.spec import (
    ArrivalsSpec,
    CostsSpec,
    DrawSpec,
    FleetSpec,
    IncidentSpec,
    LifetimeSpec,
    PrecisionSpec,
    RequireSpec,
)
from planner.scenario.words import what_is
from planner.units import parse_duration, parse_size

__all__ = [
    "check_incidents",
    "costs_of",
    "dealt_domains",
    "draw_of",
    "fleet_reason",
    "fleet_shares",
    "fleet_spec",
    "precision_of",
    "require_of",
    "resolved_draw",
    "resolved_fleet",
    "resolved_plan",
]

Path = tuple[Part, ...]
_MAX_DEALT = 10_000
_RANGE = re.compile(r"(.*)\{([0-9]{1,6})\.\.([0-9]{1,6})\}(.*)", re.ASCII | re.DOTALL)
_DRAWN_KEYS = ("arrivals", "share", "lifetime", "start", "memory", "fill", "huge_pages")
_FLEET_KEYS = ("overcommit", "confidence", "arrivals", "incidents", "migration_rate")


def fleet_reason(document: ScenarioDocument) -> Path | None:
    """The first setting that asks for guests to be drawn and placed; None for a replay."""
    if document.placement not in (None, "as-recorded"):
        return ("placement",)
    for key in _FLEET_KEYS:
        if getattr(document, key):
            return (key,)
    if isinstance(document.hosts, list):
        for index, host in enumerate(document.hosts):
            if host.count > 1:
                return ("hosts", index, "count")
    for index, workload in enumerate(document.workloads):
        for key in _DRAWN_KEYS:
            if key in workload.model_fields_set and getattr(workload, key) is not None:
                return ("workloads", index, key)
    return None


# ---- drawn guests ---------------------------------------------------------------------------


def dealt_domains(raw: RawScenario, index: int, workload: WorkloadModel) -> list[str]:
    """The domains of names and patterns such as `tenant-{1..3}`, in the order to deal them."""
    given = workload.domain
    if isinstance(given, str):
        return _expanded(raw, ("workloads", index, "domain"), given)
    if not isinstance(given, list):
        return []
    dealt: list[str] = []
    for position, text in enumerate(given):
        dealt += _expanded(raw, ("workloads", index, "domain", position), text)
    if len(dealt) > _MAX_DEALT:
        raw.doubt(("workloads", index, "domain"), f"{len(dealt)} domains; at most {_MAX_DEALT}")
    return dealt


def _expanded(raw: RawScenario, path: Path, text: str) -> list[str]:
    if not re.search(r"[{}]", text):
        return [text]
    match = _RANGE.fullmatch(text)
    if match is None or re.search(r"[{}]", match.group(1) + match.group(4)):
        raw.doubt(path, f"{text!r} is not a pattern; write tenant-{{1..3}}, "
                  "with one range of whole numbers")
        return []
    before, first, last, after = match.groups()
    if not 0 <= int(last) - int(first) < _MAX_DEALT:
        raw.doubt(path, f"{text!r}: the range must rise, and give at most {_MAX_DEALT} "
                  "domains")
        return []
    width = len(first) if first.startswith("0") else 0
    return [f"{before}{i:0{width}}{after}" for i in range(int(first), int(last) + 1)]


def fleet_shares(raw: RawScenario, document: ScenarioDocument) -> list[float]:
    """The share of the arrival table that each workload takes."""
    given = [workload.share for workload in document.workloads]
    is_sure = not raw.is_doubtful("arrivals") and not any(
        raw.is_doubtful("workloads", index, "share") for index in range(len(given)))
    if document.arrivals is None:
        for index, share in enumerate(given):
            if share is not None and is_sure:
                raw.fault(("workloads", index, "share"), "there is no arrival table to take a "
                          "share of; write arrivals: {table: FILE} at the top, or leave share out",
                          at_key=True)
        return [0.0] * len(given)
    if len(given) == 1 and given[0] is None:
        return [1.0]
    shares = [share or 0.0 for share in given]
    if not is_sure:
        return shares
    if all(share is None for share in given):
        raw.fault(("arrivals",), "no workload takes a share of the table; write share in those "
                  "that do, adding up to 100%", at_key=True)
    elif abs(sum(shares) - 1) > 1e-9:
        last = max(index for index, share in enumerate(given) if share is not None)
        raw.fault(("workloads", last, "share"), "the shares of all workloads add up to "
                  f"{100 * sum(shares):g}%, not to 100%")
    return shares


def draw_of(raw: RawScenario, index: int, workload: WorkloadModel, reason: Path, share: float,
            domains: Sequence[str]) -> DrawSpec:
    """How guests of a workload are drawn; `reason` is what made the scenario draw them."""
    at: Path = ("workloads", index)
    if workload.host is not None:
        raw.fault((*at, "host"), "placement decides where drawn guests run "
                  f"({_where(raw, reason)}); leave host out", at_key=True)
    is_sure = not any(raw.is_doubtful(*at, key) for key in ("count", "arrivals", "share"))
    if workload.count is None and workload.arrivals is None and workload.share is None \
            and not share and is_sure:
        raw.fault(at, f"workload {workload.name!r} does not say how many guests: this scenario "
                  f"draws them ({_where(raw, reason)}) and does not replay captured ones beside "
                  "them; write count, arrivals or share")
    lifetime = None
    if workload.lifetime is not None:
        lifetime = LifetimeSpec(workload.lifetime.median, workload.lifetime.p95)
        if lifetime.p95_ns <= lifetime.median_ns and not raw.is_doubtful(*at, "lifetime"):
            raw.fault((*at, "lifetime", "p95"),
                      "the 95th percentile must be longer than the median")
    return DrawSpec(
        count=workload.count or 0,
        arrivals_per_hour=workload.arrivals or 0.0,
        table_share=share,
        lifetime=lifetime,
        memory_bytes=workload.memory,
        fill=workload.fill,
        domains=tuple(domains),
        image=workload.image,
        huge_share=workload.huge_pages,
        is_restored=workload.start == "restored",
    )


def _where(raw: RawScenario, reason: Path) -> str:
    """The setting that makes guests drawn, and where it stands."""
    words = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in reason)
    return f"{words[1:]}, {raw.place_of(reason).removeprefix(f'{raw.path}:')}"


# ---- the fleet ------------------------------------------------------------------------------


def fleet_spec(document: ScenarioDocument, arrivals: ArrivalsSpec | None) -> FleetSpec:
    """Placement and incidents of a scenario with drawn guests, with defaults."""
    default = FleetSpec()
    placement = document.placement
    return FleetSpec(
        placement=default.placement if placement is None or placement == "as-recorded"
        else placement,
        overcommit=document.overcommit or default.overcommit,
        confidence=document.confidence or default.confidence,
        arrivals=arrivals,
        incidents=tuple(map(_incident, document.incidents)),
        migration_bytes_per_s=document.migration_rate or default.migration_bytes_per_s,
    )


def _incident(incident: IncidentModel) -> IncidentSpec:
    if incident.migrate is not None:
        return IncidentSpec("migrate", incident.migrate.at, n_hosts=0,
                            n_guests=incident.migrate.guests)
    if incident.pressure is not None:
        given = incident.pressure
        return IncidentSpec("pressure", given.at, given.for_ or 0, given.host or "",
                            1 if given.host else given.hosts or 1, bytes=given.memory)
    for kind, affected in (("drain", incident.drain), ("fail", incident.fail)):
        if affected is not None:
            return IncidentSpec("drain" if kind == "drain" else "fail", affected.at,
                                affected.for_ or 0, affected.host or "",
                                1 if affected.host else affected.hosts or 1)
    raise AssertionError("a box has one key")


def check_incidents(raw: RawScenario, incidents: Sequence[IncidentModel]) -> None:
    """A host by name or a number of hosts, not both."""
    for index, incident in enumerate(incidents):
        for kind in ("drain", "fail", "pressure"):
            affected = getattr(incident, kind)
            if affected is not None and affected.host is not None and affected.hosts is not None:
                raw.fault(("incidents", index, kind, "hosts"),
                          "host names one machine, hosts says how many to draw; keep one",
                          at_key=True)


# ---- the plan -------------------------------------------------------------------------------


def precision_of(given: float | str | PrecisionModel | None) -> PrecisionSpec:
    """How exact the scenario is simulated; exact where it does not say."""
    if given is None or given == "exact":
        return PrecisionSpec()
    if isinstance(given, PrecisionModel):
        return PrecisionSpec(given.error or 0.0, given.contents, given.hosts or 0)
    return PrecisionSpec(float(given))


def costs_of(costs: CostsModel) -> CostsSpec:
    """Prices; what is not given stays None."""
    return CostsSpec(
        currency=costs.currency, host_price=costs.host.price, host_lifetime_ns=costs.host.lifetime,
        host_power_w=costs.host.power, electricity_price=costs.electricity, cpu_price=costs.cpu,
        memory_price=costs.memory, huge_page_slowdown=costs.huge_page_slowdown)


def require_of(raw: RawScenario, index: int, given: RequireModel) -> RequireSpec:
    """A requirement with its bound in the unit of the metric."""
    values: dict[str, float | None] = {"at_least": None, "at_most": None}
    is_share = False
    for key in values:
        bound = getattr(given, key)
        if bound is None or given.metric not in METRICS:
            continue
        try:
            values[key], is_share = _bound(bound, given.metric)
        except ValueError as error:
            raw.doubt(("require", index, key), str(error))
    if given.metric not in METRICS:  # told by the checks; any one bound will do here
        values["at_least"] = 0.0
    return RequireSpec(given.policy, given.metric, values["at_least"], values["at_most"], is_share,
                       given.confidence)


def _bound(value: float | str, metric: str) -> tuple[float, bool]:
    """The bound in the metric's base unit, or as a share; whether it is a share."""
    measure = METRICS[metric]
    if isinstance(value, str) and "%" in value:
        if not measure.whole_column:
            raise ValueError(f"{metric!r} is a share of nothing; write {_example(measure.unit)}")
        return share_of(value), True
    hint = f"{_example(measure.unit)}" + (" or a share such as 10%" if measure.whole_column else "")
    fault = f"{what_is(value)} is no bound for {metric!r}; write {hint}"
    if measure.unit in ("count", "ratio"):
        if isinstance(value, str) or value < 0 or not value < 1e18 or (
                measure.unit == "count" and value != int(value)):
            raise ValueError(fault)
        return float(value), False
    if not isinstance(value, str):
        raise ValueError(fault)
    try:
        return float(parse_size(value) if measure.unit == "bytes" else parse_duration(value)), False
    except ValueError:
        raise ValueError(fault) from None


def _example(unit: str) -> str:
    return {"bytes": "a size such as 16GiB", "ns": "a duration such as 10min",
            "count": "a whole number", "ratio": "a number such as 1.5"}[unit]


# ---- the resolved form ----------------------------------------------------------------------


def resolved_draw(draw: ResolvedDraw | None) -> DrawSpec | None:
    """The draw of a workload of the resolved form."""
    if draw is None:
        return None
    values: dict[str, Any] = draw.model_dump()
    lifetime = draw.lifetime
    if lifetime is not None:
        values["lifetime"] = LifetimeSpec(lifetime.median_ns, lifetime.p95_ns)
    return DrawSpec(**{**values, "domains": tuple(draw.domains)})


def resolved_fleet(fleet: ResolvedFleet | None, table: str) -> FleetSpec | None:
    """The fleet of the resolved form; `table` is the absolute path of its arrival table."""
    if fleet is None:
        return None
    arrivals = fleet.arrivals
    return FleetSpec(
        fleet.placement, fleet.overcommit, fleet.confidence,
        None if arrivals is None else ArrivalsSpec(
            table, arrivals.digest, arrivals.from_ns, arrivals.speed, arrivals.limit),
        tuple(IncidentSpec(**incident.model_dump()) for incident in fleet.incidents),
        fleet.migration_bytes_per_s)


def resolved_plan(document: ResolvedDocument) -> tuple[PrecisionSpec, CostsSpec,
                                                       tuple[RequireSpec, ...]]:
    """Precision, prices and requirements of the resolved form."""
    return (
        PrecisionSpec() if document.precision is None
        else PrecisionSpec(**document.precision.model_dump()),
        CostsSpec() if document.costs is None else CostsSpec(**document.costs.model_dump()),
        tuple(RequireSpec(**required.model_dump()) for required in document.require))
