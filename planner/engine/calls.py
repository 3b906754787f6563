"""The synchronous caller: rounds of `ksm_merge` over partitions that a policy merges so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.engine.stage import Stage
from planner.fleet import FleetHost
from planner.ksm.records import BYTES_PER_PAGE
from planner.ksm.selective import KSM_CREAT, KSM_EXCL, KSM_SYNC, SelectiveKsm
from planner.policies.advisor import PartitionAdvisor
from planner.policies.triggers import POLL_NS, Watch, idle_share, timed_rounds
from planner.scenario.spec import Sync, Trigger

__all__ = ["SyncCaller"]

_O_RDWR = 2
#: Pages of a range where an advisor decides which are called: 64 MiB.
_RANGE_PAGES = 16_384


@dataclass(frozen=True, slots=True)
class _Call:
    """One `ksm_merge` of a round: a partition's pages of one mm lie in this range."""

    partition: int
    mm: int
    start_vpn: int
    end_vpn: int


@dataclass(frozen=True, slots=True)
class _Due:
    """Calls, by index, that are to be made one after another; `advised`: by this advisor."""

    calls: tuple[int, ...]
    advised: int = -1


class SyncCaller:
    """One caller on a host, which serves the partitions `mine` as `sync` says.

    Calls come one after another and take their CPU time; a trigger that comes while calls still
    run waits for them. Guests that are not on the host are not called.
    """

    def __init__(self, stage: Stage, sync: Sync, mine: Sequence[int], names: Sequence[str],
                 selective: SelectiveKsm, horizon_ns: int) -> None:
        self._stage = stage
        self._sync = sync
        self._selective = selective
        self._fds = {partition: selective.ksm_open(names[partition],
                                                   KSM_SYNC | KSM_CREAT | KSM_EXCL | _O_RDWR)
                     for partition in mine}
        self._calls = _calls(stage.host, stage.partition_of_site, mine,
                             _RANGE_PAGES if sync.advisor is not None else 0)
        self._guest = [stage.host.mms[call.mm].guest for call in self._calls]
        self._from_vpn = [call.start_vpn for call in self._calls]
        self._number = itertools.count()
        self._due: list[tuple[int, int, _Due]] = []
        self._everything = _Due(tuple(range(len(self._calls))))
        for each in timed_rounds(sync, stage.stays, horizon_ns):
            self._add(each.time_ns, self._everything if each.guests is None else _Due(tuple(
                index for index, guest in enumerate(self._guest) if guest in each.guests)))
        self._advisors: dict[int, tuple[PartitionAdvisor, list[int]]] = {}
        if sync.advisor is not None:
            for partition in mine:
                ranges = [index for index, call in enumerate(self._calls)
                          if call.partition == partition]
                if ranges:
                    self._advisors[partition] = (PartitionAdvisor(sync.advisor, len(ranges)),
                                                 ranges)
                    self._add(sync.advisor.shortest_ns, _Due((), partition))
        self._watched = [trigger for trigger in sync.at if trigger.kind in ("pressure", "idle")]
        self._woken: simpy.Event | None = None

    def start(self) -> None:
        """Let the caller and what watches the host for it run."""
        env = self._stage.env
        env.process(self._serve())
        for trigger in self._watched:
            env.process(self._watch(trigger))

    def _add(self, time_ns: int, due: _Due) -> None:
        heapq.heappush(self._due, (time_ns, next(self._number), due))

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        env = self._stage.env
        while self._due or self._watched:
            if self._watched:
                # Something may come before what is known to come.
                while not self._due or self._due[0][0] > self._stage.now_ns:
                    self._woken = env.event()
                    waits = [self._woken]
                    if self._due:
                        waits.append(env.timeout(self._due[0][0] - self._stage.now_ns))
                    yield env.any_of(waits)
                time_ns, _, due = heapq.heappop(self._due)
            else:
                time_ns, _, due = heapq.heappop(self._due)
                yield env.timeout(max(0, time_ns - self._stage.now_ns))
            yield from self._round(time_ns, due)
            self._stage.sample()

    def _round(self, time_ns: int, due: _Due) -> Generator[simpy.Event, Any, None]:
        calls: Sequence[int] = due.calls
        advisor = None
        if due.advised >= 0:
            advisor, ranges = self._advisors[due.advised]
            chosen = advisor.ranges()
            of_call = {ranges[index]: index for index in chosen}
            calls = tuple(of_call)
        found = []
        for index, not_before_ns in self._staggered(calls, time_ns):
            if not_before_ns > self._stage.now_ns:
                yield self._stage.env.timeout(not_before_ns - self._stage.now_ns)
            if not self._stage.is_there(self._guest[index]):
                continue
            merged_pages, cpu_ns = self._call(index)
            if advisor is not None:
                found.append((of_call[index], merged_pages * BYTES_PER_PAGE, cpu_ns))
            yield self._stage.env.timeout(cpu_ns)
        if advisor is not None:
            advisor.learn(found)
            self._add(self._stage.now_ns + advisor.interval_ns, due)

    def _staggered(self, calls: Sequence[int], time_ns: int) -> list[tuple[int, int]]:
        """Calls with the time before which each may not start: guests one after another."""
        if not self._sync.stagger_ns:
            return [(index, time_ns) for index in calls]
        rank = {guest: n for n, guest in enumerate(sorted({self._guest[i] for i in calls}))}
        by_guest = sorted(calls, key=lambda index: (rank[self._guest[index]], index))
        return [(index, time_ns + rank[self._guest[index]] * self._sync.stagger_ns)
                for index in by_guest]

    def _call(self, index: int) -> tuple[int, int]:
        """One `ksm_merge`: pages merged and CPU time. One that was stopped goes on next time."""
        stage, call = self._stage, self._calls[index]
        stage.advance()
        mm = stage.host.mms[call.mm]
        start_vpn = self._from_vpn[index]
        done = self._selective.ksm_merge(
            self._fds[call.partition], mm.pid, start_vpn * BYTES_PER_PAGE,
            (call.end_vpn - start_vpn) * BYTES_PER_PAGE, self._sync.longest_call_ns)
        self._from_vpn[index] = (done.next_vpn if done.next_vpn < call.end_vpn
                                 else call.start_vpn)
        stage.record("sync_merge", partition=stage.map.names[call.partition],
                     guest=stage.host.guests[mm.guest].name, tried_pages=done.tried_pages,
                     merged_pages=done.merged_pages, candidate_pages=done.candidate_pages,
                     cpu_ns=done.cost_ns)
        return done.merged_pages, done.cost_ns

    def _watch(self, trigger: Trigger) -> Generator[simpy.Event, Any, None]:
        """Look at the host every `POLL_NS` and add a round of everything when it is time."""
        stage, watch = self._stage, Watch(trigger)
        while True:
            if trigger.kind == "pressure":
                stage.advance()
                memory = stage.memory()
                share = memory.free_kb / memory.total_kb
            else:
                share = idle_share(stage.host.spec.load, stage.now_ns)
            if watch.fires(stage.now_ns, share):
                stage.record(f"trigger_{trigger.kind}")
                self._add(stage.now_ns, self._everything)
                if self._woken is not None and not self._woken.triggered:
                    self._woken.succeed()
            yield stage.env.timeout(POLL_NS)


def _calls(host: FleetHost, partition_of_site: npt.NDArray[np.int32], mine: Sequence[int],
           most_pages: int) -> list[_Call]:
    """The ranges that hold the eligible pages of these partitions: one for each of its mms.

    With `most_pages` an mm's is divided after so many eligible pages.
    """
    index = np.flatnonzero((host.site_eligible != 0) & np.isin(partition_of_site, mine))
    order = index[np.lexsort((host.site_vpn[index], host.site_mm[index],
                              partition_of_site[index]))]
    key = partition_of_site[order].astype(np.int64) * len(host.mms) + host.site_mm[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if most_pages:
        in_mm = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        starts = np.flatnonzero(in_mm % most_pages == 0)
    ends = np.append(starts[1:], len(order))
    return [_Call(int(partition_of_site[order[start]]), int(host.site_mm[order[start]]),
                  int(host.site_vpn[order[start]]), int(host.site_vpn[order[end - 1]]) + 1)
            for start, end in zip(starts, ends, strict=True)]
