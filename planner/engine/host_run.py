"""One host under one policy, from 0 to the horizon: who acts on it, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.engine.calls import SyncCaller
from planner.engine.columns import sample_columns
from planner.engine.cooperation import name_ranges, tell_free_and_volatile
from planner.engine.free_pages import GivenBack
from planner.engine.scanners import knobs_of, start_scanners, steer
from planner.engine.spaces import merge_spaces
from planner.engine.stage import Stage
from planner.fleet import FleetHost
from planner.ksm.cost import CostModel
from planner.ksm.knobs import Knobs
from planner.ksm.records import FullScan
from planner.ksm.selective import SelectiveKsm
from planner.ksm.space import MergeSpaces, Trees
from planner.metrics import HOSTS, PARTITIONS, Recorder
from planner.policies.controllers import controller_of
from planner.policies.partition import kernel_names, merges_of, partition_classes
from planner.scenario.spec import (
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Merge,
    PolicySpec,
    Sync,
)
from planner.tables import TableKind

__all__ = ["HostRun"]


class HostRun:
    """One host, one policy: the merge spaces and the processes that act on them."""

    def __init__(self, host: FleetHost, policy: PolicySpec, sensitive: tuple[str, ...],
                 cost: CostModel, recorder: Recorder,
                 knobs: Callable[[Knobs], Knobs] | None) -> None:
        partitions = partition_classes(host, policy)
        partition_of_site = partitions.of_class[host.site_class]
        merges = [partitions.merge_of(policy, index) for index in range(len(partitions.names))]
        # Calls are a proposal: how its trees would be searched, nobody has decided. In a sample
        # nearly no page meets on its way what it would meet.
        is_scanned = any(isinstance(merge, Ksmd | Ksmtuned | KubeVirt)
                         for merge in merges_of(policy))
        trees: Trees = "auto" if is_scanned and host.content_share >= 1.0 else "tables"
        spaces = merge_spaces(
            host, partition_of_site, sensitive=sensitive, cost=cost, trees=trees,
            is_by_node=np.array([isinstance(merge, Ksmd) and merge.merge_across_nodes is False
                                 for merge in merges], bool))
        self._recorder = recorder
        self._names = kernel_names(partitions.names)
        self._given_back: list[GivenBack] = []
        self._sampled_at_ns = -1
        self._stage = Stage(host, policy, partitions, partition_of_site, spaces,
                            simpy.Environment(initial_time=0), recorder, self._advance,
                            self._take_sample, knobs or (lambda given: given))
        # Partitions that share a timing are served together.
        self._groups: dict[int, tuple[Merge, list[int]]] = {}
        for index, merge in enumerate(merges):
            rule = partitions.rules[index]
            is_own = rule >= 0 and policy.partitions[rule].merge is not None
            self._groups.setdefault(rule if is_own else -1, (merge, []))[1].append(index)

    def run(self, horizon_ns: int, sample_every_ns: int, progress: Callable[[int], None] | None,
            at_end: Callable[[MergeSpaces], None] | None) -> None:
        """Let it happen; at most one sample a time, the last at the horizon."""
        stage = self._stage
        cooperation = stage.policy.cooperation.kind
        if cooperation != "none":
            stage.env.process(name_ranges(stage))
        if cooperation == "full":
            stage.env.process(tell_free_and_volatile(stage))
        for merge, mine in self._groups.values():
            self._start(merge, mine, horizon_ns)
        stage.env.process(self._sample(sample_every_ns, progress))
        stage.env.process(self._sample_changes())
        # simpy keeps an integer clock only for a Python int. What would begin at the horizon does
        # not: the last sample and the partitions are of one state.
        stage.env.run(until=int(horizon_ns))
        self._take_sample()
        if progress is not None:
            progress(horizon_ns)
        self._record_partitions()
        if at_end is not None:
            at_end(stage.spaces)

    def _start(self, merge: Merge, mine: list[int], horizon_ns: int) -> None:
        """Start whoever merges these partitions."""
        stage = self._stage
        if isinstance(merge, Ksmd):
            start_scanners(stage, merge, mine, self._names, self._selective(merge))
        elif isinstance(merge, Ksmtuned | KubeVirt):
            stage.env.process(steer(stage, controller_of(merge), mine))
        elif isinstance(merge, Sync):
            SyncCaller(stage, merge, mine, self._names, self._selective(Ksmd()),
                       horizon_ns).start()
        elif isinstance(merge, FreePages):
            given_back = GivenBack(stage, merge, mine)
            self._given_back.append(given_back)
            stage.env.process(given_back.process())

    def _selective(self, merge: Ksmd) -> SelectiveKsm:
        stage = self._stage
        pids = {mm.pid: index for index, mm in enumerate(stage.host.mms)}
        return SelectiveKsm(stage.spaces, self._names, pids, knobs=knobs_of(stage, merge),
                            max_open=len(self._names) + 1)

    def _advance(self) -> None:
        for scan in self._stage.spaces.advance(self._stage.now_ns):
            self._record_scan(scan)

    def _sample(self, every_ns: int, progress: Callable[[int], None] | None,
                ) -> Generator[simpy.Event, Any, None]:
        while True:
            now_ns = self._take_sample()
            if progress is not None:
                progress(now_ns)
            yield self._stage.env.timeout(every_ns)

    def _sample_changes(self) -> Generator[simpy.Event, Any, None]:
        """A sample whenever a guest comes or goes: between samples the earlier one holds, and
        those that calls take after a guest came would make it stay for too long."""
        host, env = self._stage.host, self._stage.env
        for time_ns in np.unique([*host.guest_start_ns, *host.guest_end_ns]).tolist():
            if time_ns > env.now:
                yield env.timeout(time_ns - env.now)
                self._take_sample()

    def _take_sample(self) -> int:
        """Record the host's counters now; returns the time. At most one sample a time."""
        self._advance()
        stage = self._stage
        now_ns = stage.now_ns
        if now_ns != self._sampled_at_ns:
            self._sampled_at_ns = now_ns
            freed = int(self._freed_frames().sum())
            columns = sample_columns(stage.spaces.counters(), freed,
                                     sum(each.fault_ns for each in self._given_back))
            self._recorder.add(HOSTS, {
                "policy": stage.policy.name, "host": stage.host.spec.name, "time_ns": now_ns,
                "n_guests": stage.n_guests(),
                "available_bytes": stage.available_bytes(),
                **_of_kind(HOSTS, columns)})
        return now_ns

    def _freed_frames(self) -> npt.NDArray[np.int64]:
        """Frames that guests have given back now, by partition."""
        freed = np.zeros(len(self._names), np.int64)
        for given_back in self._given_back:
            given_back.update()
            freed += given_back.freed_frames()
        return freed

    def _record_scan(self, scan: FullScan) -> None:
        stage = self._stage
        stage.record("full_scan", time_ns=scan.time_ns,
                     partition=stage.map.names[scan.partition])

    def _record_partitions(self) -> None:
        stage = self._stage
        host = stage.host
        n_eligible = np.bincount(host.site_class[host.site_eligible != 0],
                                 minlength=len(host.classes))
        guests_of: list[set[int]] = [set() for _ in self._names]
        for item, partition, n_sites in zip(host.classes, stage.map.of_class.tolist(),
                                            n_eligible.tolist(), strict=True):
            if partition >= 0 and n_sites:
                guests_of[partition].add(item.guest)
        freed = self._freed_frames()
        most_cross = stage.spaces.most_cross_domain_pages()
        for index, counters in enumerate(stage.spaces.partition_counters()):
            guests = guests_of[index]
            domains = sorted({host.guests[guest].domain for guest in guests})
            columns = sample_columns(counters, int(freed[index]), 0)
            self._recorder.add(PARTITIONS, {
                "policy": stage.policy.name, "host": host.spec.name,
                "partition": stage.map.names[index], "n_domains": len(domains),
                "domains": domains, "n_guests": len(guests),
                "eligible_pages": counters.eligible_pages,
                "most_cross_domain_pages": most_cross[index],
                **_of_kind(PARTITIONS, columns)})


def _of_kind(kind: TableKind, columns: Mapping[str, int]) -> dict[str, int]:
    return {name: columns[name] for name in kind.schema.names if name in columns}
