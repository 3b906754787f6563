"""When things happen: simpy processes that drive one host under one policy.

The engine decides *when* (samples, merge triggers, the time a call takes), the policies decided
*what*, `planner.ksm` knows what happens, the recorder remembers. The clock is integer
nanoseconds since the start; nothing reads the wall clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.fleet import FleetHost
from planner.ksm.cost import CostModel
from planner.ksm.knobs import Knobs
from planner.ksm.records import BYTES_PER_PAGE, Counters, EventTable, FullScan, SiteTable
from planner.ksm.selective import KSM_CREAT, KSM_EXCL, KSM_SYNC, SelectiveKsm
from planner.ksm.space import MergeSpaces, Trees
from planner.metrics import EVENTS, HOSTS, PARTITIONS, Recorder
from planner.policies.partition import PartitionMap, kernel_names, partition_classes
from planner.policies.timing import merge_times
from planner.scenario.spec import Ksmd, PolicySpec, Sync

__all__ = ["simulate_host"]

_O_RDWR = 2


def simulate_host(host: FleetHost, policy: PolicySpec, *, sensitive: tuple[str, ...],
                  horizon_ns: int, sample_every_ns: int, cost: CostModel, recorder: Recorder,
                  progress: Callable[[int], None] | None = None) -> None:
    """Replay `host` under `policy` from 0 to `horizon_ns` and record samples and events.

    `sensitive` names domains whose exposure is counted apart. `progress` is called with the
    simulated time in ns at each sample. Everything goes to `recorder`.
    """
    _HostRun(host, policy, sensitive, cost, recorder).run(horizon_ns, sample_every_ns, progress)


@dataclass(frozen=True, slots=True)
class _Call:
    """One `ksm_merge` that a trigger makes: a partition's pages of one mm lie in this range."""

    partition: int
    mm: int
    start_vpn: int
    end_vpn: int


class _HostRun:
    """One host, one policy: the merge spaces and the processes that act on them."""

    def __init__(self, host: FleetHost, policy: PolicySpec, sensitive: tuple[str, ...],
                 cost: CostModel, recorder: Recorder) -> None:
        self._host = host
        self._policy = policy
        self._recorder = recorder
        self._map = partition_classes(host, policy)
        self._names = kernel_names(self._map.names)
        self._partition_of_site = self._map.of_class[host.site_class]
        # Calls are a proposal: how its trees would be searched, nobody has decided.
        trees: Trees = "auto" if isinstance(policy.merge, Ksmd) else "tables"
        self._spaces = _merge_spaces(host, self._map, self._partition_of_site, sensitive, cost,
                                     trees, is_by_node=isinstance(policy.merge, Ksmd)
                                     and policy.merge.merge_across_nodes is False)
        self._env = simpy.Environment(initial_time=0)
        self._sampled_at_ns = -1

    def run(self, horizon_ns: int, sample_every_ns: int,
            progress: Callable[[int], None] | None) -> None:
        self._start_merging(horizon_ns)
        self._env.process(self._sample(sample_every_ns, progress))
        # simpy keeps an integer clock only for a Python int. What would begin at the horizon does
        # not: the last sample and the partitions are of one state.
        self._env.run(until=int(horizon_ns))
        self._take_sample()
        if progress is not None:
            progress(horizon_ns)
        self._record_partitions()

    def _start_merging(self, horizon_ns: int) -> None:
        merge = self._policy.merge
        if isinstance(merge, Ksmd) and not self._policy.partition_by:
            # Mainline: one ksmd and one merge space a host.
            self._spaces.start_scanner(0, self._knobs(merge))
        elif isinstance(merge, Ksmd):
            # Opened without KSM_SYNC, each partition is served by a scanner of its own.
            selective = self._selective(self._knobs(merge))
            for name in self._names:
                selective.ksm_open(name, KSM_CREAT | KSM_EXCL | _O_RDWR)
        elif isinstance(merge, Sync):
            self._env.process(self._merge_at(merge_times(merge, horizon_ns)))

    def _knobs(self, merge: Ksmd) -> Knobs:
        # The contents of the spaces are apart by node already.
        given = {name: value for name, value in merge.given().items()
                 if name != "merge_across_nodes"}
        return Knobs.of_kernel(self._host.spec.kernel, **given)

    def _selective(self, knobs: Knobs) -> SelectiveKsm:
        pids = {mm.pid: index for index, mm in enumerate(self._host.mms)}
        return SelectiveKsm(self._spaces, self._names, pids, knobs=knobs,
                            max_open=len(self._names) + 1)

    def _advance(self) -> None:
        for scan in self._spaces.advance(int(self._env.now)):
            self._record_scan(scan)

    def _sample(self, every_ns: int, progress: Callable[[int], None] | None,
                ) -> Generator[simpy.Event, Any, None]:
        while True:
            now_ns = self._take_sample()
            if progress is not None:
                progress(now_ns)
            yield self._env.timeout(every_ns)

    def _take_sample(self) -> int:
        """Record the host's counters now; returns the time. At most one sample a time."""
        self._advance()
        now_ns = int(self._env.now)
        if now_ns != self._sampled_at_ns:
            self._sampled_at_ns = now_ns
            self._recorder.add(HOSTS, {
                "policy": self._policy.name, "host": self._host.spec.name, "time_ns": now_ns,
                **_sample_columns(self._spaces.counters())})
        return now_ns

    def _merge_at(self, times_ns: tuple[int, ...]) -> Generator[simpy.Event, Any, None]:
        """The synchronous caller: at each trigger, every partition's ranges one after another.

        A call takes its CPU time; a trigger that comes while calls still run waits for them.
        """
        selective = self._selective(self._knobs(Ksmd()))
        fds = [selective.ksm_open(name, KSM_SYNC | KSM_CREAT | KSM_EXCL | _O_RDWR)
               for name in self._names]
        calls = _merge_calls(self._host, self._partition_of_site)
        for time_ns in times_ns:
            yield self._env.timeout(max(0, time_ns - int(self._env.now)))
            for call in calls:
                self._advance()
                mm = self._host.mms[call.mm]
                done = selective.ksm_merge(
                    fds[call.partition], mm.pid, call.start_vpn * BYTES_PER_PAGE,
                    (call.end_vpn - call.start_vpn) * BYTES_PER_PAGE)
                self._recorder.add(EVENTS, {
                    "policy": self._policy.name, "host": self._host.spec.name,
                    "time_ns": int(self._env.now), "kind": "sync_merge",
                    "partition": self._map.names[call.partition],
                    "guest": self._host.guests[mm.guest].name, "tried_pages": done.tried_pages,
                    "merged_pages": done.merged_pages, "candidate_pages": done.candidate_pages,
                    "cpu_ns": done.cost_ns})
                yield self._env.timeout(done.cost_ns)
            self._take_sample()

    def _record_scan(self, scan: FullScan) -> None:
        self._recorder.add(EVENTS, {
            "policy": self._policy.name, "host": self._host.spec.name, "time_ns": scan.time_ns,
            "kind": "full_scan", "partition": self._map.names[scan.partition], "guest": "",
            "tried_pages": 0, "merged_pages": 0, "candidate_pages": 0, "cpu_ns": 0})

    def _record_partitions(self) -> None:
        host = self._host
        guest_of_site = np.array([mm.guest for mm in host.mms], np.int64)[host.site_mm]
        for index, counters in enumerate(self._spaces.partition_counters()):
            mine = (self._partition_of_site == index) & (host.site_eligible != 0)
            guests = np.unique(guest_of_site[mine])
            domains = sorted({host.guests[guest].domain for guest in guests})
            columns = _sample_columns(counters)
            self._recorder.add(PARTITIONS, {
                "policy": self._policy.name, "host": host.spec.name,
                "partition": self._map.names[index], "n_domains": len(domains),
                "domains": domains, "n_guests": len(guests),
                "eligible_pages": counters.eligible_pages,
                **{name: columns[name] for name in PARTITIONS.schema.names if name in columns}})


def _sample_columns(counters: Counters) -> dict[str, int]:
    """The columns of HOSTS that counters give (policy, host and time apart)."""
    saved_frames = counters.saved_frames
    return {
        "guest_memory_bytes": counters.base_frames * BYTES_PER_PAGE,
        "eligible_bytes": counters.eligible_pages * BYTES_PER_PAGE,
        "saved_bytes": saved_frames * BYTES_PER_PAGE - counters.metadata_bytes,
        "saved_zero_bytes": counters.saved_zero_frames * BYTES_PER_PAGE,
        "metadata_bytes": counters.metadata_bytes,
        "pages_shared": counters.pages_shared,
        "pages_sharing": counters.pages_sharing,
        "pages_unshared": counters.pages_unshared,
        "pages_volatile": counters.pages_volatile,
        "general_profit_bytes": counters.general_profit_bytes,
        "pages_scanned": counters.pages_scanned,
        "pages_skipped": counters.pages_skipped,
        "ksm_zero_pages": counters.ksm_zero_pages,
        "stable_node_chains": counters.stable_node_chains,
        "stable_node_dups": counters.stable_node_dups,
        "pages_to_scan": counters.pages_to_scan,
        "full_scans": counters.full_scans,
        "merge_cpu_ns": counters.merge_cpu_ns,
        "cow_breaks": counters.cow_breaks,
        "cross_domain_pages": counters.cross_domain_pages,
        "cross_domain_sensitive_pages": counters.cross_domain_sensitive_pages,
        "unmerge_bytes": counters.unmerge_frames * BYTES_PER_PAGE,
    }


def _merge_spaces(host: FleetHost, partitions: PartitionMap,
                  partition_of_site: npt.NDArray[np.int32], sensitive: tuple[str, ...],
                  cost: CostModel, trees: Trees, *, is_by_node: bool) -> MergeSpaces:
    """The host's sites and events as the KSM model wants them, contents numbered in partitions.

    With `is_by_node` (merge_across_nodes 0) the same content is another one on each NUMA node:
    each node has trees of its own.
    """
    space_of_site = partition_of_site
    if is_by_node:
        n_nodes = int(host.site_node.max(initial=0)) + 1
        space_of_site = np.where(partition_of_site >= 0,
                                 partition_of_site * n_nodes + host.site_node,
                                 -1).astype(np.int32)
    content, zero = _contents_in_spaces(host, space_of_site)
    domain_ids = {domain: index for index, domain in enumerate(host.domains)}
    domain_of_mm = np.array([domain_ids[host.guests[mm.guest].domain] for mm in host.mms],
                            np.int32)
    n_sites = len(host.site_mm)
    return MergeSpaces(
        SiteTable(host.site_mm, host.site_vpn, domain_of_mm[host.site_mm], partition_of_site,
                  np.where(partition_of_site >= 0, host.site_eligible, 0).astype(np.uint8),
                  content[:n_sites], host.site_frame, host.site_huge),
        EventTable(host.event_time_ns, host.event_site, content[n_sites:], host.event_frame),
        n_partitions=len(partitions.names), content_is_zero=zero,
        domain_is_sensitive=np.array([domain in sensitive for domain in host.domains], np.uint8),
        kernel=host.spec.kernel, hz=host.spec.hz, cost=cost, trees=trees)


def _contents_in_spaces(host: FleetHost, space_of_site: npt.NDArray[np.int32],
                        ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Dense ids of (space, content) for sites, then events, and whether each is zero.

    Ids count in the order of first appearance, which is scan order for the sites.
    """
    content = np.concatenate([host.site_content, host.event_content]).astype(np.int64)
    space = np.concatenate([space_of_site, space_of_site[host.event_site]])
    present = content >= 0
    n_contents = len(host.content_is_zero)
    pair = (space[present].astype(np.int64) + 1) * n_contents + content[present]
    pairs, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(pairs), np.int32)
    rank[order] = np.arange(len(pairs), dtype=np.int32)
    ids = np.full(len(content), -1, np.int32)
    ids[present] = rank[inverse]
    zero = np.asarray(host.content_is_zero[pairs[order] % n_contents], np.uint8)
    return ids, zero


def _merge_calls(host: FleetHost, partition_of_site: npt.NDArray[np.int32]) -> list[_Call]:
    """For each partition and mm the range that holds its eligible pages, in that order."""
    index = np.flatnonzero((host.site_eligible != 0) & (partition_of_site >= 0))
    order = index[np.lexsort((host.site_vpn[index], host.site_mm[index],
                              partition_of_site[index]))]
    key = partition_of_site[order].astype(np.int64) * len(host.mms) + host.site_mm[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    ends = np.append(starts[1:], len(order))
    return [_Call(int(partition_of_site[order[start]]), int(host.site_mm[order[start]]),
                  int(host.site_vpn[order[start]]), int(host.site_vpn[order[end - 1]]) + 1)
            for start, end in zip(starts, ends, strict=True)]
