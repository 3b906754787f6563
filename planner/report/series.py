"""Figures over time and the worst moments, read from the samples of the hosts.

Hosts are sampled at times of their own, too: between two samples of a host the earlier one holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import TYPE_CHECKING

from planner.report.facts import Facts, Strategy

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["MAX_TIMES", "Burst", "Headroom", "Samples", "bursts", "headrooms", "rate_times",
           "rates", "reached", "read_samples"]

#: Times drawn (and tabled) at most; all samples stay in hosts.parquet.
MAX_TIMES = 120
#: Intervals at most of which a rate is drawn.
MAX_RATES = 60
_COLUMNS = ("guest_memory_bytes", "saved_bytes", "saved_zero_bytes", "merge_cpu_ns",
            "cow_breaks", "unmerge_bytes")

#: Value of a column by time (ns, ascending).
Line = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples by policy label and host, each a list of (time_ns, values by column)."""

    by_host: Mapping[str, Mapping[str, list[tuple[int, Mapping[str, int]]]]]

    def total(self, label: str, column: str) -> Line:
        """`column` of one policy added up over its hosts, at every time any was sampled."""
        changes: list[tuple[int, int, int]] = []
        for number, rows in enumerate(self.by_host.get(label, {}).values()):
            changes += [(time_ns, number, values[column]) for time_ns, values in rows]
        latest: dict[int, int] = {}
        line: dict[int, int] = {}
        total = 0
        for time_ns, number, value in sorted(changes):
            total += value - latest.get(number, 0)
            latest[number] = value
            line[time_ns] = total
        return line

    def over_time(self, facts: Facts, column: str) -> tuple[list[int], dict[str, Line]]:
        """Times drawn (ns, ascending) and, by policy label, `column` over all hosts then.

        At most `MAX_TIMES` times, evenly spread over the samples, the first and last among them.
        """
        lines = {s.label: self.total(s.label, column) for s in facts.strategies}
        times = sorted({time_ns for line in lines.values() for time_ns in line})
        if len(times) > MAX_TIMES:
            last = len(times) - 1
            times = [times[round(i * last / (MAX_TIMES - 1))] for i in range(MAX_TIMES)]
        return times, {label: _held(line, times) for label, line in lines.items()}


def _held(line: Line, times: Iterable[int]) -> Line:
    """The line at `times`: the last value not after each; no value before its first."""
    found: dict[int, int] = {}
    rest, value = iter(line.items()), None
    upcoming = next(rest, None)
    for time_ns in times:
        while upcoming is not None and upcoming[0] <= time_ns:
            value, upcoming = upcoming[1], next(rest, None)
        if value is not None:
            found[time_ns] = value
    return found


def read_samples(result: Result, facts: Facts) -> Samples:
    """The samples of `result`."""
    columns = result.hosts.select(["policy", "host", "time_ns", *_COLUMNS]).to_pydict()
    found: dict[str, dict[str, list[tuple[int, Mapping[str, int]]]]] = {}
    values = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for policy, host, time_ns, row in zip(columns["policy"], columns["host"], columns["time_ns"],
                                          values, strict=True):
        found.setdefault(facts.labels[policy], {}).setdefault(host, []).append(
            (int(time_ns), dict(zip(_COLUMNS, row, strict=True))))
    for hosts in found.values():
        for rows in hosts.values():
            rows.sort(key=lambda row: row[0])
    return Samples(found)


def reached(line: Line, share: float) -> int | None:
    """When the line first had `share` of its last value; None where that is not above zero."""
    last = line[max(line)] if line else 0
    if last <= 0:
        return None
    return next(time_ns for time_ns, value in line.items() if value >= share * last)


def rate_times(samples: Samples, horizon_ns: int) -> list[int]:
    """Evenly spaced times between which rates are told, whole sampling intervals apart.

    Hosts are also sampled when something happens: between two samples that close to one another a
    single event would look like a storm.
    """
    gaps = [after[0] - before[0] for hosts in samples.by_host.values() for rows in hosts.values()
            for before, after in pairwise(rows)]
    if not gaps or horizon_ns <= 0:
        return []
    gap = max(median_low(gaps), 1)
    width = gap * max(1, -(-horizon_ns // (gap * MAX_RATES)))
    return list(range(0, horizon_ns + 1, width))


def rates(line: Line, times: list[int]) -> list[tuple[int, int, int]]:
    """Start, end and increase of the line in each interval between `times`."""
    held = _held(line, times)
    return [(start, end, held[end] - held[start]) for start, end in pairwise(times)
            if start in held]


@dataclass(frozen=True, slots=True)
class Burst:
    """The interval in which one host undid most merges, of all intervals of `rate_times`."""

    strategy: Strategy
    host: str
    start_ns: int
    end_ns: int
    n_breaks: int
    n_all: int

    @property
    def per_second(self) -> float:
        """COW breaks a second."""
        return self.n_breaks * 1e9 / (self.end_ns - self.start_ns)


def bursts(samples: Samples, facts: Facts) -> list[Burst]:
    """By policy the burst of its worst host; none where nothing was undone."""
    times = rate_times(samples, facts.horizon_ns)
    found = []
    for strategy in facts.strategies:
        worst = max((
            Burst(strategy, host, start_ns, end_ns, n_breaks, rows[-1][1]["cow_breaks"])
            for host, rows in samples.by_host.get(strategy.label, {}).items()
            for start_ns, end_ns, n_breaks in rates(
                {time_ns: values["cow_breaks"] for time_ns, values in rows}, times)),
            key=lambda burst: (burst.n_breaks, -burst.start_ns), default=None)
        if worst is not None and worst.n_breaks:
            found.append(worst)
    return found


@dataclass(frozen=True, slots=True)
class Headroom:
    """The moment at which undoing every merge would leave one host with least memory.

    Bytes: `needed` to undo every merge, `in_use` by guests while merged, `available` to guests
    (the host's memory without what it reserves for itself).
    """

    strategy: Strategy
    host: str
    time_ns: int
    needed_bytes: int
    in_use_bytes: int
    available_bytes: int

    @property
    def left_bytes(self) -> int:
        """What would be left; negative where it does not fit."""
        return self.available_bytes - self.in_use_bytes - self.needed_bytes


def headrooms(samples: Samples, result: Result, facts: Facts) -> list[Headroom]:
    """By policy that merges anything: its worst host at its worst moment."""
    available = {host["name"]: int(host["memory_bytes"]) - int(host.get("reserved_bytes", 0))
                 for host in result.scenario["hosts"]}
    found = []
    for strategy in facts.strategies:
        worst = min((
            Headroom(strategy, host, time_ns, values["unmerge_bytes"],
                     values["guest_memory_bytes"] - values["saved_bytes"]
                     - values["saved_zero_bytes"], available[host])
            for host, rows in samples.by_host.get(strategy.label, {}).items()
            if host in available
            for time_ns, values in rows if values["unmerge_bytes"]),
            key=lambda each: (each.left_bytes, each.time_ns), default=None)
        if worst is not None:
            found.append(worst)
    return found
