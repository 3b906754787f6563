"""Who comes to a fleet when, with what memory and domain: drawn from a scenario.

Guests are there at the start (`count`), come at random (`arrivals_per_hour`, Poisson) or as an
arrival table says. Each of these has Philox streams of its own, keyed by seed, replicate and the
workload's name, and number k of a stream belongs to guest k: no other workload, host or policy
and no longer horizon changes a guest's numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.arrivals import ArrivalTable
from planner.errors import DataError
from planner.fleet import random_stream
from planner.scenario.spec import ArrivalsSpec, DrawSpec, Scenario, WorkloadSpec
from planner.timeline.admission import capacity_bytes
from planner.timeline.lifetimes import FOREVER_NS, log_normal, residual_lives
from planner.timeline.records import Requests
from planner.units import format_duration, format_size

__all__ = ["draw_requests"]

_HOUR_NS = 3_600_000_000_000

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


def draw_requests(scenario: Scenario, captured_bytes: Sequence[int], replicate: int,
                  arrivals: ArrivalTable | None) -> Requests:
    """The guests of one replicate of a fleet scenario, by ascending start.

    `captured_bytes`: per workload the memory of a captured guest. `arrivals`: the table of
    `scenario.fleet.arrivals`; None where the scenario has none. Lives count from a guest's own
    start, also for those that are there at the start. A row of the table has the row's memory and
    life, and if the record ended before the guest did, a life beyond that (`lifetimes`); only
    where the table knows no end at all the workload's `lifetime` says it. Guests of equal start
    are in the order: workloads' `count`, workloads' Poisson arrivals, the table's rows.

    Raises DataError where the scenario asks for a table and none is given, where no row of it
    can be used, where nobody comes at all, and where two guests would have one name.
    """
    draws = [(number, workload, workload.draw)
             for number, workload in enumerate(scenario.workloads) if workload.draw is not None]
    parts: list[_Part] = []
    for number, workload, draw in draws:
        memory = _memory_bytes(workload, draw, captured_bytes[number])
        parts += [_at_start(scenario, number, workload, draw, memory, replicate),
                  _poisson(scenario, number, workload, draw, memory, replicate)]
    notes: list[str] = []
    fleet = scenario.fleet
    if any(draw.table_share > 0 for _, _, draw in draws):
        if fleet is None or fleet.arrivals is None or arrivals is None:
            raise DataError("workloads take a share of an arrival table, and there is none",
                            where=f"scenario {scenario.name!r}", instead="name it by `arrivals`")
        rows = _Rows(scenario, fleet.arrivals, arrivals, replicate)
        notes += rows.notes
        parts += [rows.of_workload(number, workload, draw) for number, workload, draw in draws
                  if draw.table_share > 0]
    return _joined(parts, scenario.horizon_ns, tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Guests from one source; `domain` indexes `domains`, `row` orders equal starts of tables."""

    workload: int
    names: list[str]
    domains: Sequence[str]
    domain: I64
    memory_bytes: I64
    start_ns: I64
    life_ns: I64
    is_restored: bool
    batch: I32
    row: I64


def _stream(scenario: Scenario, replicate: int, *identity: str) -> np.random.Generator:
    return random_stream(scenario.seed, replicate, "requests", *identity)


def _memory_bytes(workload: WorkloadSpec, draw: DrawSpec, captured_bytes: int) -> int:
    memory = captured_bytes if draw.memory_bytes is None else draw.memory_bytes
    if memory <= 0:
        raise DataError(f"how much memory a guest of workload {workload.name!r} has is not known",
                        where=workload.trace, instead="give the workload's `memory`")
    return int(memory)


def _domains(workload: WorkloadSpec, draw: DrawSpec) -> tuple[str, ...]:
    """The domains that a workload's guests are dealt in turn."""
    return draw.domains or tuple(guest.domain for guest in workload.guests)


def _drawn(number: int, workload: WorkloadSpec, draw: DrawSpec, infix: str, memory: int,
           start_ns: I64, life_ns: I64) -> _Part:
    n, domains = len(start_ns), _domains(workload, draw)
    return _Part(number, [f"{workload.name}{infix}-{k}" for k in range(1, n + 1)], domains,
                 np.arange(n) % len(domains), np.full(n, memory, np.int64), start_ns, life_ns,
                 draw.is_restored, np.full(n, -1, np.int32), np.zeros(n, np.int64))


def _at_start(scenario: Scenario, number: int, workload: WorkloadSpec, draw: DrawSpec,
              memory: int, replicate: int) -> _Part:
    lives = log_normal(draw.lifetime, draw.count,
                       _stream(scenario, replicate, workload.name, "start", "lifetimes"))
    return _drawn(number, workload, draw, "", memory, np.zeros(draw.count, np.int64), lives)


def _poisson(scenario: Scenario, number: int, workload: WorkloadSpec, draw: DrawSpec,
             memory: int, replicate: int) -> _Part:
    starts = np.empty(0, np.int64)
    if draw.arrivals_per_hour > 0:
        # Spans in units of the mean span: another rate stretches the same pattern.
        until = scenario.horizon_ns * draw.arrivals_per_hour / _HOUR_NS
        stream = _stream(scenario, replicate, workload.name, "later", "times")
        spans = stream.standard_exponential(int(until + 5 * until**0.5) + 16)
        while (times := np.cumsum(spans))[-1] <= until:
            spans = np.append(spans, stream.standard_exponential(1024))
        starts = (times[times < until] * (_HOUR_NS / draw.arrivals_per_hour)).astype(np.int64)
        starts = np.minimum(starts, scenario.horizon_ns - 1)  # rounding
    lives = log_normal(draw.lifetime, len(starts),
                       _stream(scenario, replicate, workload.name, "later", "lifetimes"))
    return _drawn(number, workload, draw, "-later", memory, starts, lives)


class _Rows:
    """The rows of an arrival table that come, and what each of them is dealt.

    Numbers are drawn for every row and tenant of the table, also those that do not come: which
    of them come changes nobody's numbers.
    """

    def __init__(self, scenario: Scenario, spec: ArrivalsSpec, table: ArrivalTable,
                 replicate: int) -> None:
        self._scenario = scenario
        self._spec = spec
        self._table = table
        self._replicate = replicate
        self.notes: list[str] = []
        self._rows = self._choose()
        # A tenant's batch is of one kind: it goes to one workload as a whole. A guest whose
        # tenant is not known is a batch, and a domain, of its own.
        alone = int(table.tenant.max()) + 1 + np.arange(len(table), dtype=np.int64)
        _, first, unit = np.unique(np.where(table.tenant >= 0, table.tenant, alone),
                                   return_index=True, return_inverse=True)
        self._first_row, self._unit = first, unit
        shares = np.array([workload.draw.table_share if workload.draw else 0.0
                           for workload in scenario.workloads])
        picked = np.searchsorted(np.cumsum(shares) / shares.sum(),
                                 self._stream("workloads").random(len(first)), side="right")
        self._workload_of_unit = np.minimum(picked, np.flatnonzero(shares)[-1])

    def _stream(self, use: str) -> np.random.Generator:
        return _stream(self._scenario, self._replicate, "arrival table", use)

    def _choose(self) -> I64:
        """Rows that come before the horizon, no more than the limit, that a host could hold."""
        table, spec = self._table, self._spec
        start_ns = self._scaled(table.time_ns - spec.from_ns)
        comes = (table.time_ns >= spec.from_ns) & (start_ns < self._scenario.horizon_ns)
        overcommit = self._scenario.fleet.overcommit if self._scenario.fleet else 1.0
        largest = max(capacity_bytes(host, overcommit) for host in self._scenario.hosts)
        rows = np.flatnonzero(comes & (table.memory_bytes <= largest))
        n_large = int((comes & (table.memory_bytes > largest)).sum())
        if n_large:
            self.notes.append(
                f"{n_large} of {int(comes.sum())} arrivals of the table need more memory than "
                f"any host has for guests ({format_size(largest)}) and do not come")
        if spec.limit:
            rows = rows[:spec.limit]
        if not len(rows):
            raise DataError(
                f"none of its {len(table)} arrivals can be used: the table's clock goes from "
                f"{format_duration(int(table.time_ns[0]))} to "
                f"{format_duration(int(table.time_ns[-1]))}, the scenario starts at "
                f"{format_duration(spec.from_ns)}, and hosts hold guests of at most "
                f"{format_size(largest)}", where=table.path,
                instead="give another start (`from`), a longer horizon or larger hosts")
        return rows

    def _scaled(self, time_ns: I64) -> I64:
        """A span of the table's clock on the simulation's."""
        if self._spec.speed == 1.0:
            return time_ns
        return np.minimum(time_ns / self._spec.speed, FOREVER_NS).astype(np.int64)

    def _lives(self, workload: WorkloadSpec, draw: DrawSpec) -> I64:
        """Of every row of the table, on the simulation's clock."""
        if self._table.is_censored.all():
            return log_normal(draw.lifetime, len(self._table),
                              self._stream(f"lifetimes of {workload.name}"))
        return self._recorded_lives

    @cached_property
    def _recorded_lives(self) -> I64:
        table, is_open = self._table, self._table.is_censored
        lives = table.duration_ns.copy()
        lives[is_open] = residual_lives(table.duration_ns[~is_open], table.censored_ns[is_open],
                                        self._stream("lifetimes").random(len(table))[is_open])
        is_known = lives < FOREVER_NS
        lives[is_known] = np.maximum(self._scaled(lives[is_known]), 1)
        return lives

    def of_workload(self, number: int, workload: WorkloadSpec, draw: DrawSpec) -> _Part:
        table = self._table
        is_mine = self._workload_of_unit == number
        rows = self._rows[is_mine[self._unit[self._rows]]]
        unit = self._unit[rows]
        if draw.domains:
            # In turn by the order in which this workload's batches come in the table.
            mine = np.flatnonzero(is_mine)
            turn = np.empty(len(is_mine), np.int64)
            turn[mine[np.argsort(self._first_row[mine])]] = np.arange(len(mine))
            domains: Sequence[str] = draw.domains
            domain = turn[unit] % len(domains)
        else:
            used, domain = np.unique(unit, return_inverse=True)
            domains = [self._tenant_name(row) for row in self._first_row[used].tolist()]
        return _Part(
            number, [f"{workload.name}-row-{row}" for row in rows.tolist()], domains, domain,
            table.memory_bytes[rows], self._scaled(table.time_ns[rows] - self._spec.from_ns),
            self._lives(workload, draw)[rows], draw.is_restored, table.tenant[rows], rows)

    def _tenant_name(self, row: int) -> str:
        tenant = int(self._table.tenant[row])
        return f"tenant-{tenant}" if tenant >= 0 else f"tenant-of-row-{row}"


def _joined(parts: Sequence[_Part], horizon_ns: int, notes: tuple[str, ...]) -> Requests:
    parts = [part for part in parts if part.names]
    if not parts:
        raise DataError("no guest comes before the horizon", where="workloads",
                        instead="give a `count`, `arrivals` or a longer horizon")
    start_ns = np.concatenate([part.start_ns for part in parts])
    # Of equal starts: those at the start before Poisson arrivals cannot be (a Poisson arrival at
    # time 0 has probability 0); rows of a table in its order, whatever their workloads.
    order = np.lexsort((np.concatenate([part.row for part in parts]), start_ns))
    ids: dict[str, int] = {}
    domain = np.concatenate([
        np.array([ids.setdefault(name, len(ids)) for name in part.domains], np.int32)[part.domain]
        for part in parts])
    sizes = [len(part.names) for part in parts]
    names = [name for part in parts for name in part.names]
    life_ns = np.concatenate([part.life_ns for part in parts])
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"two guests would be called {twice!r}", where="workloads",
                        instead="give the workloads other names")
    return Requests(
        name=tuple(names[at] for at in order.tolist()),
        workload=np.repeat(np.array([p.workload for p in parts], np.int32), sizes)[order],
        domain=domain[order], domains=tuple(ids),
        memory_bytes=np.concatenate([part.memory_bytes for part in parts])[order],
        start_ns=start_ns[order],
        end_ns=np.minimum(start_ns + np.minimum(life_ns, FOREVER_NS), horizon_ns)[order],
        is_restored=np.repeat(np.array([p.is_restored for p in parts], bool), sizes)[order],
        batch=np.concatenate([part.batch for part in parts])[order], notes=notes)
