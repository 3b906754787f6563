"""A plan and its tables read once: what the page draws and tables of fleets and replicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from planner.report.facts import Facts, MemoryUnit, Strategy, memory_unit
from planner.report.plan_text import is_told
from planner.report.series import MAX_RATES, MAX_TIMES

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["Band", "PlanView", "plan_view", "spread_of"]

#: Bounds of the bands over replicates, as the intervals of the table.
_LOW, _HIGH = 0.05, 0.95
#: Kinds of incidents in words.
_INCIDENTS = {"drain": "drained", "fail": "failed", "pressure": "under pressure",
              "migrate": "guests migrated"}

Plan = Mapping[str, Any]


def _quantile(ascending: Sequence[float], share: float) -> float:
    """Linear between the values, as numpy's quantile."""
    place = share * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Band:
    """Median over replicates, and the bounds of 90 % of them (equal to it of one replicate)."""

    low: float
    median: float
    high: float


def spread_of(values: Sequence[float]) -> Band:
    """The band of at least one value."""
    found = sorted(values)
    return Band(*(_quantile(found, share) for share in (_LOW, 0.5, _HIGH)))


@dataclass(frozen=True, slots=True)
class Incident:
    """What befell the first replicate's fleet: `what` in words, on `host` (may be empty)."""

    kind: str
    what: str
    time_ns: int
    host: str
    n_guests: int
    n_left: int


@dataclass(frozen=True, slots=True)
class PlanView:
    """The plan with the strategies it is of, in scenario order.

    `rows` are those of the table of replicates by policy, refits left out. `lines` has by policy
    label and replicate the rows of the series, by time.
    """

    facts: Facts
    plan: Plan
    policies: tuple[tuple[Strategy, Plan], ...]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    lines: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
    incidents: tuple[Incident, ...]
    costs: Mapping[str, Any]

    @property
    def unit(self) -> MemoryUnit:
        """The unit of all savings of the fleet."""
        return memory_unit(max((abs(int(bound)) for _, each in self.policies
                                for bound in (each["metrics"]["saved"][name]
                                              for name in ("median", "low", "high"))
                                if bound is not None), default=0))

    @property
    def horizon_ns(self) -> int:
        """When the run ends."""
        return int(self.plan["horizon_ns"])

    @property
    def warm_up_ns(self) -> int:
        """What comes before does not count."""
        return int(self.plan["warm_up_ns"])

    @property
    def n_machines(self) -> int:
        """Machines of the fleet."""
        return max(int(self.plan["n_machines"]), 1)

    def metric(self, each: Plan, name: str) -> Mapping[str, Any]:
        """Median and interval of a metric of one policy."""
        found: Mapping[str, Any] = each["metrics"].get(name) or {"median": None}
        return found

    def column(self, strategy: Strategy, name: str) -> list[float]:
        """A column of the table of replicates, where it is known."""
        return [float(row[name]) for row in self.rows.get(strategy.name, ())
                if row[name] is not None]

    def bands(self, column: str) -> tuple[list[int], dict[str, list[Band]]]:
        """Times (ns, at most MAX_TIMES, evenly) and by policy label the band at each."""
        return self._bands(MAX_TIMES, lambda row, _: float(row[column]), with_first=True)

    def rates(self, column: str) -> tuple[list[int], dict[str, list[Band]]]:
        """Ends of evenly spaced intervals (ns) and by policy the band of the rate a second."""
        def rate(row: Mapping[str, Any], before: Mapping[str, Any]) -> float:
            span_ns = int(row["time_ns"]) - int(before["time_ns"])
            return (int(row[column]) - int(before[column])) * 1e9 / span_ns if span_ns else 0.0

        return self._bands(MAX_RATES, rate, with_first=False)

    def _bands(self, n_most: int, value: Callable[[Mapping[str, Any], Mapping[str, Any]], float],
               *, with_first: bool) -> tuple[list[int], dict[str, list[Band]]]:
        times: list[int] = []
        found: dict[str, list[Band]] = {}
        for label, replicates in self.lines.items():
            n = min(map(len, replicates), default=0)
            kept = range(n) if n <= n_most else sorted(
                {round(i * (n - 1) / (n_most - 1)) for i in range(n_most)})
            pairs = list(pairwise(kept))
            if with_first and n:
                pairs.insert(0, (0, 0))
            times = [int(replicates[0][index]["time_ns"]) for _, index in pairs]
            found[label] = [spread_of([value(rows[index], rows[before]) for rows in replicates])
                            for before, index in pairs]
        return times, found


def plan_view(result: Result, facts: Facts) -> PlanView | None:
    """The view of a result with a plan worth telling; None of a single replay."""
    plan = facts.plan
    if plan is None or not is_told(plan):
        return None
    by_name = {each["policy"]: each for each in plan["policies"]}
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in result.replicates.to_pylist():
        if row["resample"] < 0:
            rows.setdefault(row["policy"], []).append(row)
    return PlanView(
        facts, plan,
        tuple((s, by_name[s.name]) for s in facts.strategies if s.name in by_name), rows,
        _lines(result, facts), tuple(_incidents(result.run)),
        dict(result.scenario.get("costs") or {}))


def _lines(result: Result, facts: Facts) -> dict[str, list[list[Mapping[str, Any]]]]:
    found: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in sorted(result.series.to_pylist(), key=lambda row: int(row["time_ns"])):
        label = facts.labels.get(row["policy"])
        if label is not None:
            found.setdefault(label, {}).setdefault(int(row["replicate"]), []).append(row)
    return {s.label: [rows for _, rows in sorted(found[s.label].items())]
            for s in facts.strategies if s.label in found}


def _incidents(run: Mapping[str, Any]) -> list[Incident]:
    replicates = run.get("replicates") or ()
    return [Incident(str(each["kind"]), _INCIDENTS.get(each["kind"], str(each["kind"])),
                     int(each["time_ns"]), str(each["host"]), int(each["n_guests"]),
                     int(each.get("n_left", 0)))
            for each in (replicates[0].get("incidents", ()) if replicates else ())]
