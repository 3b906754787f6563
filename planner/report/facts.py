"""What all reports say about a result: safe names, one memory unit, what is to be preferred.

Names come from captures and scenarios and may hold anything; they leave this module without
control characters, short, and distinct. Escaping for HTML is the template's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.escape import MAX_NAME, UNPRINTABLE, clean

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = [
    "MIN_SAVED_SHARE",
    "UNPRINTABLE",
    "Facts",
    "MemoryUnit",
    "Strategy",
    "clean",
    "distinct",
    "gather",
    "is_lacking",
    "is_short",
    "memory_unit",
    "recommended",
    "refused",
]

#: A strategy that saves less than this share of guest memory is not worth enabling.
MIN_SAVED_SHARE = 0.01
#: Strategies within 5 % of the greatest saving count as equal; CPU decides among them.
NEARLY = 0.95
_UNMEASURED = "unmeasured"


def distinct(names: Iterable[object], limit: int = MAX_NAME) -> dict[str, str]:
    """Cleaned name of every given name, in order; names that became equal are numbered."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for name in map(str, names):
        if name in labels:
            continue
        label, n = clean(name, limit), 1
        while label in taken:
            n += 1
            label = f"{clean(name, limit - len(str(n)) - 1)}~{n}"
        taken.add(label)
        labels[name] = label
    return labels


@dataclass(frozen=True, slots=True)
class MemoryUnit:
    """The one unit of memory of a report: `name` (MiB or GiB) is `n_bytes` bytes."""

    name: str
    n_bytes: int

    def value(self, n_bytes: int) -> float:
        """`n_bytes` in this unit, to three decimals."""
        return round(n_bytes / self.n_bytes, 3)

    def figures(self, n_bytes: int | None) -> str:
        """`n_bytes` in this unit with three figures, without the unit; a dash for none."""
        if n_bytes is None:
            return "–"
        value = n_bytes / self.n_bytes
        if n_bytes == 0:
            return "0"
        if abs(value) < 0.005:
            return "<0.01" if value > 0 else "-<0.01"
        digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
        return f"{value:.{digits}f}"

    def text(self, n_bytes: int) -> str:
        """`n_bytes` in this unit, with it."""
        return f"{self.figures(n_bytes)} {self.name}"


def memory_unit(largest_bytes: int) -> MemoryUnit:
    """GiB where the largest figure is 2 GiB or more, else MiB."""
    if largest_bytes >= 2 << 30:
        return MemoryUnit("GiB", 1 << 30)
    return MemoryUnit("MiB", 1 << 20)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One policy: `label` is its name made safe, `row` its row of the summary table.

    `most_cross` is the most pages across domains of any replicate.
    """

    name: str
    label: str
    index: int
    row: Mapping[str, Any]
    most_cross: int = 0

    @property
    def saved_bytes(self) -> int:
        """Frames freed of non-zero content minus all metadata, at the end."""
        return int(self.row["saved_bytes"])

    @property
    def saved_share(self) -> float:
        """`saved_bytes` per byte of guest memory; 0 where there is no guest memory."""
        memory_bytes = int(self.row["guest_memory_bytes"])
        return self.saved_bytes / memory_bytes if memory_bytes > 0 else 0.0

    @property
    def is_safe(self) -> bool:
        """No merged page has sharers of more than one domain, in any replicate."""
        return max(int(self.row["cross_domain_pages"]), self.most_cross) == 0


@dataclass(frozen=True, slots=True)
class Facts:
    """A result read once: the strategies in scenario order and what goes with them."""

    title: str
    digest: str
    strategies: tuple[Strategy, ...]
    labels: Mapping[str, str]
    unit: MemoryUnit
    horizon_ns: int
    n_guests: int
    n_hosts: int
    timings: tuple[str, ...]
    has_sensitive: bool
    has_validation: bool
    warnings: tuple[str, ...]
    #: replicates of a fleet, or of a replay with more than one; 1: a single run
    n_replicates: int = 1
    #: what `planner.planning` made of the replicates (plan.json)
    plan: Mapping[str, Any] | None = None

    def plan_of(self, strategy: Strategy) -> Mapping[str, Any] | None:
        """What the plan says of one policy."""
        return next((each for each in (self.plan or {}).get("policies", ())
                     if each["policy"] == strategy.name), None)

    @property
    def is_measured(self) -> bool:
        """All timings come from a calibration."""
        return bool(self.timings) and not any(_UNMEASURED in label for label in self.timings)


def gather(result: Result) -> Facts:
    """Read what every report needs from `result`."""
    rows = result.summary.to_pylist()
    labels = distinct(row["policy"] for row in rows)
    crossed: dict[str, int] = {}
    found = result.replicates.select(["policy", "cross_domain_pages"]).to_pydict()
    for policy, n in zip(found["policy"], found["cross_domain_pages"], strict=True):
        crossed[policy] = max(crossed.get(policy, 0), int(n))
    strategies = tuple(Strategy(row["policy"], labels[row["policy"]], i, row,
                                crossed.get(row["policy"], 0)) for i, row in enumerate(rows))
    scenario = result.scenario
    largest = max((max(abs(int(r["saved_bytes"])), int(r["saved_peak_bytes"] or 0),
                       int(r["saved_zero_bytes"])) for r in rows), default=0)
    workloads = scenario.get("workloads", ())
    n_guests = sum(len(w.get("guests", ())) for w in workloads)
    domains = scenario.get("domains") or {}
    n_hosts, plan = len(scenario.get("hosts", ())), result.plan or {}
    if plan.get("is_drawn"):
        n_guests, n_hosts = int(plan["n_guests"]), int(plan["n_machines"])
    return Facts(
        title=clean(scenario.get("name", ""), 80),
        digest=clean(result.run["digest"], 80),
        strategies=strategies,
        labels=labels,
        unit=memory_unit(largest),
        horizon_ns=int(scenario.get("horizon_ns", 0)),
        n_guests=n_guests,
        n_hosts=n_hosts,
        timings=tuple(clean(label) for label in result.run["timings"]),
        has_sensitive=bool(domains.get("sensitive"))
        or any(int(r["cross_domain_sensitive_pages"]) for r in rows),
        has_validation=bool(result.run["validated"]),
        warnings=tuple(clean(text, 1000) for text in result.run["warnings"]),
        n_replicates=max(int(plan.get("n_replicates", 1)), 1),
        plan=result.plan,
    )


def best(strategies: Iterable[Strategy]) -> Strategy | None:
    """The strategy to prefer; none where none saves anything.

    Of those that save nearly as much as the one that saves most (NEARLY), it is the one that
    takes the least merge CPU: a few pages more are not worth many times the work.
    """
    saving = [s for s in strategies if s.saved_bytes > 0]
    most = max((s.saved_bytes for s in saving), default=0)
    near = [s for s in saving if s.saved_bytes >= NEARLY * most]
    return min(near, key=lambda s: (int(s.row["merge_cpu_ns"]), -s.saved_bytes), default=None)


def is_short(planned: Mapping[str, Any]) -> bool:
    """Whether some host could not undo all merges of a policy of the plan: it only fits while
    merged."""
    found = planned.get("headroom")
    return found is not None and int(found["worst_bytes"]) < 0


def is_lacking(planned: Mapping[str, Any]) -> bool:
    """Whether the guests of some host lack memory under a policy of the plan, even merged."""
    found = planned.get("free")
    return found is not None and int(found["worst_bytes"]) < 0


def refused(facts: Facts) -> dict[str, str]:
    """By name the policies that the plan speaks against, with what: a requirement that failed, or
    money that they lose."""
    plan = facts.plan or {}
    found: dict[str, str] = {}
    for verdict in plan.get("requirements", ()):
        if not verdict["is_held"]:
            found.setdefault(verdict["policy"], "requirement")
    for each in plan.get("policies", ()):
        net = (each.get("money") or {}).get("net")
        if net is not None and round(net) < 0:
            found.setdefault(each["policy"], "money")
    return found


def recommended(facts: Facts) -> Strategy | None:
    """The best strategy that keeps domains apart, where it saves enough to be enabled and nothing
    in the plan speaks against it; one under which all guests fit, where there is one."""
    against = refused(facts)
    found = [s for s in facts.strategies if s.is_safe and s.name not in against]
    fitting = [s for s in found if s.saved_share >= MIN_SAVED_SHARE
               and not is_lacking(facts.plan_of(s) or {})]
    safe = best(fitting or found)
    return None if safe is None or safe.saved_share < MIN_SAVED_SHARE else safe
