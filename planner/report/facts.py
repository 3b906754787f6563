"""What all reports say about a result: safe names, one memory unit, the verdict.

Names come from captures and scenarios and may hold anything; they leave this module without
control characters, short, and distinct. Escaping for HTML is the template's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.escape import MAX_NAME, UNPRINTABLE, clean
from planner.units import format_count, format_duration, format_share

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
    "memory_unit",
    "recommended",
    "verdict",
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
    """One policy: `label` is its name made safe, `row` its row of the summary table."""

    name: str
    label: str
    index: int
    row: Mapping[str, Any]

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
        """No merged page has sharers of more than one domain."""
        return int(self.row["cross_domain_pages"]) == 0


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

    @property
    def is_measured(self) -> bool:
        """All timings come from a calibration."""
        return bool(self.timings) and not any(_UNMEASURED in label for label in self.timings)


def gather(result: Result) -> Facts:
    """Read what every report needs from `result`."""
    rows = result.summary.to_pylist()
    labels = distinct(row["policy"] for row in rows)
    strategies = tuple(Strategy(row["policy"], labels[row["policy"]], i, row)
                       for i, row in enumerate(rows))
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
    )


def _saves(facts: Facts, strategy: Strategy) -> str:
    return (f"{facts.unit.text(strategy.saved_bytes)} "
            f"({format_share(strategy.saved_share)}) of the "
            f"{_memory(facts, strategy)} its guests use")


def _memory(facts: Facts, strategy: Strategy) -> str:
    return memory_unit(int(strategy.row["guest_memory_bytes"])).text(
        int(strategy.row["guest_memory_bytes"]))


def _exposure(strategy: Strategy) -> str:
    text = f"{format_count(int(strategy.row['cross_domain_pages']))} guest pages across domains"
    sensitive = int(strategy.row["cross_domain_sensitive_pages"])
    return f"{text}, {format_count(sensitive)} of them with a sensitive domain" if sensitive \
        else text


def best(strategies: Iterable[Strategy]) -> Strategy | None:
    """The strategy to prefer; none where none saves anything.

    Of those that save nearly as much as the one that saves most (NEARLY), it is the one that
    takes the least merge CPU: a few pages more are not worth many times the work.
    """
    saving = [s for s in strategies if s.saved_bytes > 0]
    most = max((s.saved_bytes for s in saving), default=0)
    near = [s for s in saving if s.saved_bytes >= NEARLY * most]
    return min(near, key=lambda s: (int(s.row["merge_cpu_ns"]), -s.saved_bytes), default=None)


def recommended(facts: Facts) -> Strategy | None:
    """The best strategy that keeps domains apart, where it saves enough to be enabled."""
    safe = best(s for s in facts.strategies if s.is_safe)
    return None if safe is None or safe.saved_share < MIN_SAVED_SHARE else safe


def verdict(facts: Facts) -> tuple[str, ...]:
    """One to three plain sentences: what to enable if anything, at what price, what is unknown."""
    if not facts.strategies:
        return ("Nothing was compared.",)
    safe = best(s for s in facts.strategies if s.is_safe)
    unsafe = best(s for s in facts.strategies if not s.is_safe)
    top = best(s for s in (safe, unsafe) if s is not None)
    chosen = recommended(facts)
    sentences: list[str] = []
    if top is None or top.saved_share < MIN_SAVED_SHARE:
        found = "no strategy saves any memory" if top is None else \
            f"the best strategy, {top.label}, saves only {_saves(facts, top)}"
        sentences.append(f"Do not enable merging here: {found}.")
        zero = max(facts.strategies, key=lambda s: int(s.row["saved_zero_bytes"]))
        zero_bytes = int(zero.row["saved_zero_bytes"])
        if zero_bytes > MIN_SAVED_SHARE * int(zero.row["guest_memory_bytes"]):
            sentences.append(
                f"Zero pages would give back {facts.unit.text(zero_bytes)} under {zero.label}, "
                "which ballooning or free-page reporting returns without merging.")
    elif safe is None or chosen is None:
        found = "no strategy that keeps domains apart saves any memory" if safe is None else \
            f"the best strategy that keeps them apart, {safe.label}, saves only " \
            f"{_saves(facts, safe)}"
        sentences.append(f"Do not enable merging unless domains may share pages: {found}.")
        sentences.append(f"{top.label} saves {_saves(facts, top)}, but shares {_exposure(top)}.")
    else:
        cpu = format_duration(int(safe.row["merge_cpu_ns"]))
        sentences.append(f"{safe.label} saves {_saves(facts, safe)} and shares no page across "
                         f"domains, for {cpu} of merge CPU in {format_duration(facts.horizon_ns)}.")
        if unsafe is None:
            sentences.append("No strategy compared here shares pages across domains.")
        elif unsafe.saved_bytes <= safe.saved_bytes:
            sentences.append(f"Sharing across domains would not pay: {unsafe.label}, the best that "
                             f"does, saves {facts.unit.text(unsafe.saved_bytes)} and shares "
                             f"{_exposure(unsafe)}.")
        else:
            more = unsafe.saved_bytes - safe.saved_bytes
            sentences.append(f"{unsafe.label} would save {facts.unit.text(more)} more, but shares "
                             f"{_exposure(unsafe)}.")
    sentences.append(_unknown(facts, chosen))
    return tuple(sentences)


def _unknown(facts: Facts, chosen: Strategy | None) -> str:
    unknown = ["the spread between runs (this is one run)"] if facts.n_replicates == 1 else []
    if not facts.is_measured:
        unknown.insert(0, "CPU and times on your machine (its timings were not measured)")
    if not facts.has_validation:
        unknown.insert(0, "how close the model is to your hosts (not validated there)")
    listed = " and ".join([*([", ".join(unknown[:-1])] if unknown[1:] else []), *unknown[-1:]])
    if chosen is None:
        return f"Not known: {listed}." if unknown else "Measured and validated on your hosts."
    needed = facts.unit.text(int(chosen.row["unmerge_bytes"]))
    return (f"If every merge of {chosen.label} were undone at once, {needed} of free memory "
            f"would be needed{'; not known: ' if unknown else ''}{listed}.")
