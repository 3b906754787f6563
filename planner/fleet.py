"""The fleet of a scenario: hosts with their guests, mms and sites, built from traces.

A *site* is one page of one mm, `(mm, vpn)`, that any snapshot of the capture holds. Sites are in
scan order: mm list order, then ascending vpn. What happened to a site between two snapshots
becomes an event at a time drawn uniformly within the epoch, from a Philox stream keyed by seed
and identity: every policy meets the same writes at the same times.

Plain objects and numpy arrays; no simulation here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from planner.errors import DataError
from planner.scenario.spec import HostSpec, Scenario, WorkloadSpec
from planner.trace import (
    PageColumns,
    PageFlag,
    Region,
    RegionFlag,
    Trace,
    is_ksm_compatible,
)

__all__ = ["FleetGuest", "FleetHost", "FleetMm", "MemoryNeed", "SiteClass", "build_host",
           "random_stream"]

#: Pages that hold no anonymous frame: they are no sites.
_NOT_FOLLOWED = np.uint32(PageFlag.ZERO_PAGE | PageFlag.FILE | PageFlag.SHMEM | PageFlag.HUGETLB
                          | PageFlag.GONE)


class MemoryNeed(Protocol):
    """Memory of a host that is needed otherwise for a time, half-open."""

    @property
    def start_ns(self) -> int:
        """From when on."""

    @property
    def end_ns(self) -> int:
        """Until when."""

    @property
    def bytes(self) -> int:
        """How much."""


#: `site_content` and `site_frame` at some time.
Memory = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class FleetGuest:
    """A guest on a host; `domain` is its security domain, `group` the group that domain is in."""

    name: str
    domain: str
    group: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FleetMm:
    """An mm of a guest (index into the host's guests), known to the model by `pid`."""

    guest: int
    pid: int
    start_vpn: int
    end_vpn: int


@dataclass(frozen=True, slots=True)
class SiteClass:
    """Sites of one guest whose regions carry the same labels: the unit that policies see."""

    guest: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class FleetHost:
    """One host before any policy, as arrays over its sites and events.

    Sites: `site_mm` i32, `site_vpn` i64, `site_class` i32 (index into `classes`),
    `site_eligible` u8, `site_content` i32 (dense content id, -1 absent), `site_frame` i32,
    `site_huge` u8 (part of a huge page when first seen), `site_node` i8 (the NUMA node of its
    frame then; 0 where it is not known).
    Contents: `content_is_zero` u8. Events, by ascending time: `event_time_ns` i64, `event_site`
    i32, `event_content` i32 (-1: the page is gone), `event_frame` i32 (the site's frame from
    then on). Equal frame ids are one frame: what fork already shares.

    Pages that KSM had merged when they were captured have a frame each: the base of every
    comparison is the host without merging. `n_premerged_frames` is how many frames that merging
    saved at the first snapshot, so that a report can say what today's KSM does already.

    Guests may come and go: `guest_start_ns`, `guest_end_ns` i64, half-open, and `guest_cause` i8
    (how the stay began, planner.timeline.Cause). Empty: all booted at 0 and stay. A guest that
    comes twice is two guests. `pressure`: when memory of the host is needed otherwise.

    `content_hash` u64: the trace's hash of each content, empty for drawn hosts, whose contents
    may be nobody's. `content_share`: the share of all pages that the arrays hold a sample of. A
    page that is there, but no part of the sample for now, has the content -3
    (`planner.ksm.records.UNSEEN`).
    `content_group` u8 (0..31): a random number of each content, the same on every host, by which
    a sample can be divided; empty where nothing was sampled.
    """

    spec: HostSpec
    guests: tuple[FleetGuest, ...]
    mms: tuple[FleetMm, ...]
    classes: tuple[SiteClass, ...]
    domains: tuple[str, ...]
    site_mm: npt.NDArray[np.int32]
    site_vpn: npt.NDArray[np.int64]
    site_class: npt.NDArray[np.int32]
    site_eligible: npt.NDArray[np.uint8]
    site_content: npt.NDArray[np.int32]
    site_frame: npt.NDArray[np.int32]
    site_huge: npt.NDArray[np.uint8]
    site_node: npt.NDArray[np.int8]
    content_is_zero: npt.NDArray[np.uint8]
    event_time_ns: npt.NDArray[np.int64]
    event_site: npt.NDArray[np.int32]
    event_content: npt.NDArray[np.int32]
    event_frame: npt.NDArray[np.int32]
    n_frames: int
    n_premerged_frames: int
    content_hash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    guest_start_ns: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    guest_end_ns: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    guest_cause: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    content_share: float = 1.0
    content_group: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    pressure: tuple[MemoryNeed, ...] = ()

    def memory_at(self, times_ns: Sequence[int]) -> list[Memory]:
        """Content and frame of every site at each of the times, which ascend."""
        content, frame = self.site_content.copy(), self.site_frame.copy()
        ends = np.searchsorted(self.event_time_ns, np.asarray(times_ns, np.int64), side="right")
        found, start = [], 0
        for end in ends.tolist():
            site = self.event_site[start:end]
            # Of several events of one site the last assignment stays.
            content[site] = self.event_content[start:end]
            frame[site] = self.event_frame[start:end]
            found.append((content.copy(), frame.copy()))
            start = end
        return found

    def memory_at_the_end(self) -> Memory:
        """Content and frame of every site after all events."""
        return self.memory_at([np.iinfo(np.int64).max])[0]


def random_stream(seed: int, *identity: str | int) -> np.random.Generator:
    """A random stream tied to `seed` and an identity, not to the order of creation."""
    text = "\x1f".join(str(part) for part in (seed, *identity))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def build_host(scenario: Scenario, spec: HostSpec, traces: Mapping[str, Trace]) -> FleetHost:
    """The host `spec` with the guests that its workloads place there.

    `traces` maps a workload's trace path to the opened trace; time 0 of the simulation is the
    end of each trace's first snapshot. Raises DataError when no page of the host's guests was
    captured or none is eligible.
    """
    by_trace: dict[str, list[WorkloadSpec]] = {}
    for workload in scenario.workloads:
        if workload.host == spec.name:
            by_trace.setdefault(workload.trace, []).append(workload)
    host = _HostArrays()
    for path, workloads in by_trace.items():
        _Replay(host, traces[path], workloads, scenario.seed).run(scenario.horizon_ns)
    return host.finish(spec)


def _followed(pages: PageColumns) -> npt.NDArray[np.bool_]:
    """Pages that hold an anonymous frame with a known content."""
    followed: npt.NDArray[np.bool_] = pages.has_hash & ((pages.flags & _NOT_FOLLOWED) == 0)
    return followed


def _unmerged_frame_ids(pages: PageColumns) -> npt.NDArray[np.int32]:
    """Frame ids as if KSM had merged nothing: its pages have a frame each."""
    is_ksm = (pages.flags & np.uint32(PageFlag.KSM)) != 0
    ids: npt.NDArray[np.int32] = np.where(is_ksm, np.int32(-1), pages.frame_id)
    return ids


def _is_eligible(mergeable: str, flags: int) -> bool:
    if mergeable == "none" or not is_ksm_compatible(flags):
        return False
    return mergeable == "all" or bool(flags & RegionFlag.ADVISED)


@dataclass(slots=True)
class _HostArrays:
    """What the host holds so far; lists of arrays are concatenated by `finish`."""

    guests: list[FleetGuest] = field(default_factory=list)
    mms: list[FleetMm] = field(default_factory=list)
    classes: list[SiteClass] = field(default_factory=list)
    class_ids: dict[tuple[int, tuple[tuple[str, str], ...]], int] = field(default_factory=dict)
    zero_hashes: set[int] = field(default_factory=set)
    n_sites: int = 0
    n_frames: int = 0
    n_premerged_frames: int = 0
    sites: dict[str, list[npt.NDArray[np.generic]]] = field(default_factory=dict)
    events: dict[str, list[npt.NDArray[np.generic]]] = field(default_factory=dict)

    def class_id(self, guest: int, region_labels: Mapping[str, str]) -> int:
        """The class of a guest's regions with these labels; the guest's own labels win."""
        labels = {**region_labels, **self.guests[guest].labels}
        key = (guest, tuple(sorted(labels.items())))
        if key not in self.class_ids:
            self.class_ids[key] = len(self.classes)
            self.classes.append(SiteClass(guest, labels))
        return self.class_ids[key]

    def finish(self, spec: HostSpec) -> FleetHost:
        """The finished host, with contents renumbered densely."""
        sites = {name: np.concatenate(parts) for name, parts in self.sites.items()}
        if not self.n_sites:
            raise DataError(f"the guests of host {spec.name!r} have no captured page",
                            where="traces", instead="capture running guests")
        if not sites["eligible"].any():
            raise DataError(
                f"no page on host {spec.name!r} is eligible for merging (no region is advised "
                "with MADV_MERGEABLE or PR_SET_MEMORY_MERGE)", where="traces",
                instead="see `planner trace info`, or set `mergeable: all` on the workload to ask "
                        "what advising it would save")
        events = {name: np.concatenate(parts) for name, parts in self.events.items()}
        order = np.lexsort((events["site"], events["time_ns"]))
        events = {name: column[order] for name, column in events.items()}
        n_sites = self.n_sites
        present = np.concatenate([sites["present"], events["present"]])
        hashes = np.concatenate([sites["hash"], events["hash"]])
        contents, dense = np.unique(hashes[present], return_inverse=True)
        content = np.full(len(hashes), -1, np.int32)
        content[present] = dense
        zero = np.isin(contents, np.array(sorted(self.zero_hashes), np.uint64))
        return FleetHost(
            spec=spec, guests=tuple(self.guests), mms=tuple(self.mms),
            classes=tuple(self.classes),
            domains=tuple(sorted({guest.domain for guest in self.guests})),
            site_mm=sites["mm"], site_vpn=sites["vpn"], site_class=sites["class"],
            site_eligible=sites["eligible"], site_content=content[:n_sites],
            site_frame=sites["frame"], site_huge=sites["huge"],
            site_node=sites["node"],
            content_is_zero=zero.astype(np.uint8),
            event_time_ns=events["time_ns"], event_site=events["site"],
            event_content=content[n_sites:], event_frame=events["frame"],
            n_frames=self.n_frames, n_premerged_frames=self.n_premerged_frames,
            content_hash=contents)


class _RegionIndex:
    """Looks up the regions of many pages of one mm in one snapshot at once."""

    def __init__(self, regions: tuple[Region, ...]) -> None:
        self.regions = regions
        self._starts = np.array([region.start_vpn for region in regions], np.int64)
        self._ends = np.array([region.end_vpn for region in regions], np.int64)

    def of(self, vpn: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Index of each page's region, -1 where it lies in none."""
        if not self.regions:
            return np.full(len(vpn), -1, np.intp)
        at = np.searchsorted(self._starts, vpn, side="right") - 1
        inside = (at >= 0) & (vpn < self._ends[np.maximum(at, 0)])
        return np.where(inside, at, -1)


@dataclass(frozen=True, slots=True, eq=False)
class _MmSites:
    """One mm of a trace: its rows per snapshot and the vpns of its sites from `base` on."""

    name: str
    first_snapshot: int
    end_snapshot: int
    stored: list[PageColumns]
    base: int
    vpn: npt.NDArray[np.int64]


class _Replay:
    """Turns the snapshots of one trace into sites and events of a host.

    Arrays are over this trace's sites: `_hash` and `_present` are their state in the snapshot
    that was applied last, `_frame` the host frame, `_frame_id` the trace's own frame id.
    """

    def __init__(self, host: _HostArrays, trace: Trace, workloads: list[WorkloadSpec],
                 seed: int) -> None:
        self._host = host
        self._trace = trace
        self._seed = seed
        self._first_site = host.n_sites
        self._mms: list[_MmSites] = []
        host.zero_hashes.add(trace.hash_info.zero_hash)
        guest_of: dict[int, tuple[int, WorkloadSpec]] = {}
        for workload in workloads:
            for guest in workload.guests:
                guest_of[guest.trace_guest_id] = (len(host.guests), workload)
                host.guests.append(FleetGuest(guest.name, guest.domain, guest.group,
                                              dict(guest.labels)))
        n_sites = 0
        for mm in trace.mms:
            if mm.guest_id in guest_of:
                n_sites += self._add_mm(mm.mm_id, mm.first_snapshot, mm.end_snapshot,
                                        *guest_of[mm.guest_id], base=n_sites)
        host.n_sites += n_sites
        self._hash = np.zeros(n_sites, np.uint64)
        self._present = np.zeros(n_sites, bool)
        self._frame = np.full(n_sites, -1, np.int64)
        self._frame_id = np.full(n_sites, -1, np.int32)
        self._is_merged = np.zeros(n_sites, bool)

    def _add_mm(self, mm_id: int, first: int, end: int, guest: int, workload: WorkloadSpec, *,
                base: int) -> int:
        host, trace = self._host, self._trace
        stored = [trace.stored_rows(snapshot, mm_id) for snapshot in range(first, end)]
        vpn = np.unique(np.concatenate([rows.vpn[_followed(rows)] for rows in stored]))
        class_of = np.full(len(vpn), -1, np.int32)
        eligible = np.zeros(len(vpn), np.uint8)
        huge = np.zeros(len(vpn), np.uint8)
        node = np.zeros(len(vpn), np.int8)
        for offset, rows in enumerate(stored):
            index = _RegionIndex(trace.mm_regions(first + offset, mm_id))
            followed = _followed(rows)
            at = np.searchsorted(vpn, rows.vpn[followed])
            is_new = class_of[at] < 0  # a page keeps the region it was first seen in
            huge[at[is_new]] = (rows.flags[followed][is_new] & np.uint32(PageFlag.THP)) != 0
            node[at[is_new]] = np.maximum(rows.numa_node[followed][is_new], 0)
            at = at[is_new]
            region = index.of(vpn[at])
            ids = [host.class_id(guest, r.labels) for r in index.regions]
            if (region < 0).any():
                ids.append(host.class_id(guest, {}))  # index -1
            class_of[at] = np.array(ids, np.int32)[region]
            eligible[at] = np.array([_is_eligible(workload.mergeable, r.flags)
                                     for r in index.regions] + [False], np.uint8)[region]
        bounds = (int(vpn[0]), int(vpn[-1]) + 1) if len(vpn) else (0, 0)
        name = f"{host.guests[guest].name}/{sum(m.guest == guest for m in host.mms)}"
        # The model's own pids: those of different captures may collide.
        host.mms.append(FleetMm(guest, 1000 + len(host.mms), *bounds))
        self._mms.append(_MmSites(name, first, end, stored, base, vpn))
        for column, values in (("mm", np.full(len(vpn), len(host.mms) - 1, np.int32)),
                               ("vpn", vpn), ("class", class_of), ("eligible", eligible),
                               ("huge", huge), ("node", node)):
            host.sites.setdefault(column, []).append(values)
        return len(vpn)

    def run(self, horizon_ns: int) -> None:
        """Apply every snapshot: the first gives the sites' state, later ones make events."""
        snapshots = self._trace.snapshots
        origin_ns = snapshots[0].end_ns
        self._apply(0)
        self._host.n_premerged_frames += self._count_premerged()
        add = self._host.sites.setdefault
        for column, values in (("hash", self._hash), ("present", self._present),
                               ("frame", self._frame.astype(np.int32))):
            add(column, []).append(values.copy())
        for before, after in pairwise(snapshots):
            site = self._apply(after.snapshot_id)
            time_ns = self._draw_times(site, after.snapshot_id, before.end_ns - origin_ns,
                                       after.start_ns - origin_ns)
            self._add_events(site[time_ns <= horizon_ns], time_ns[time_ns <= horizon_ns])
        self._add_events(np.empty(0, np.int64), np.empty(0, np.int64))

    def _count_premerged(self) -> int:
        """Frames that KSM saved in the first snapshot."""
        ids = [mm.stored[0].frame_id[(mm.stored[0].flags & np.uint32(PageFlag.KSM)) != 0]
               for mm in self._mms if mm.first_snapshot == 0]
        merged = np.concatenate([*ids, np.empty(0, np.int32)])
        merged = merged[merged >= 0]
        return len(merged) - len(np.unique(merged))

    def _add_events(self, site: npt.NDArray[np.int64], time_ns: npt.NDArray[np.int64]) -> None:
        for column, values in (
                ("time_ns", time_ns), ("site", (site + self._first_site).astype(np.int32)),
                ("hash", self._hash[site]), ("present", self._present[site]),
                ("frame", self._frame[site].astype(np.int32))):
            self._host.events.setdefault(column, []).append(values)

    def _apply(self, snapshot_id: int) -> npt.NDArray[np.int64]:
        """Bring the state to a snapshot; returns the sites that were written, ascending.

        Those are the sites whose content changed, and those that left a shared or merged frame with
        the same content: such a page is copied by any write, and reference counts for example go
        up and come down again.
        """
        touched: list[npt.NDArray[np.int64]] = []
        hashes: list[npt.NDArray[np.uint64]] = []
        present: list[npt.NDArray[np.bool_]] = []
        frame_ids: list[npt.NDArray[np.int32]] = []
        merged: list[npt.NDArray[np.bool_]] = []
        for mm in self._mms:
            if snapshot_id == mm.end_snapshot:
                at = np.arange(len(mm.vpn))
                hashes.append(np.zeros(len(at), np.uint64))
                present.append(np.zeros(len(at), bool))
                frame_ids.append(np.full(len(at), -1, np.int32))
                merged.append(np.zeros(len(at), bool))
            elif mm.first_snapshot <= snapshot_id < mm.end_snapshot and len(mm.vpn):
                rows = mm.stored[snapshot_id - mm.first_snapshot]
                at = np.minimum(np.searchsorted(mm.vpn, rows.vpn), len(mm.vpn) - 1)
                rows, at = rows.take(mm.vpn[at] == rows.vpn), at[mm.vpn[at] == rows.vpn]
                held = self._held_by_ksm(rows, at + mm.base)
                hashes.append(np.where(held, self._hash[at + mm.base], rows.hash))
                present.append(held | _followed(rows))
                frame_ids.append(np.where(held, self._frame_id[at + mm.base],
                                          _unmerged_frame_ids(rows)))
                merged.append((rows.flags & np.uint32(PageFlag.KSM)) != 0)
            else:
                continue
            touched.append(at + mm.base)
        if not touched:
            return np.empty(0, np.int64)
        site = np.concatenate(touched)
        new_hash, new_present = np.concatenate(hashes), np.concatenate(present)
        old_id = self._frame_id[site]
        self._frame_id[site] = np.where(new_present, np.concatenate(frame_ids), -1)
        changed = (new_present != self._present[site]) \
            | (new_present & (new_hash != self._hash[site]))
        moved: npt.NDArray[np.int64] = site[changed]
        self._hash[moved], self._present[moved] = new_hash[changed], new_present[changed]
        self._assign_frames(moved)
        stayed = ~changed & new_present
        parted = self._part_frames(site[stayed], old_id[stayed])
        is_merged = np.concatenate(merged)
        copied = np.setdiff1d(site[stayed & self._is_merged[site] & ~is_merged], parted)
        self._frame[copied] = self._new_frames(len(copied))
        self._is_merged[site] = is_merged
        written: npt.NDArray[np.int64] = np.union1d(np.union1d(moved, parted), copied)
        return written

    def _held_by_ksm(self, rows: PageColumns, site: npt.NDArray[np.int64]
                     ) -> npt.NDArray[np.bool_]:
        """Whether only KSM changed these pages since the last snapshot.

        It merges a page without writing to it; and a page that was all zero, and maps the shared
        zero page now, was made to by a merge or by the split of its huge page. Without merging
        either would have its frame still.
        """
        flags, zero_hash = rows.flags, np.uint64(self._trace.hash_info.zero_hash)
        was_zero = self._hash[site] == zero_hash
        is_merged = ((flags & np.uint32(PageFlag.KSM)) != 0) & rows.has_hash \
            & (rows.hash == self._hash[site])
        is_zero_page = (flags & np.uint32(PageFlag.ZERO_PAGE | PageFlag.GONE)) \
            == np.uint32(PageFlag.ZERO_PAGE)
        held: npt.NDArray[np.bool_] = self._present[site] & (
            is_merged | (was_zero & is_zero_page))
        return held

    def _assign_frames(self, changed: npt.NDArray[np.int64]) -> None:
        """Give changed sites their frames: shared where the snapshot says so, else new ones.

        A site that now shares its frame with an unchanged one (a fork child) joins that frame.
        """
        self._frame[changed] = -1
        here = changed[self._present[changed]]
        own = here[self._frame_id[here] < 0]
        self._frame[own] = self._new_frames(len(own))
        shared = here[self._frame_id[here] >= 0]
        if not len(shared):
            return
        frame_of_id = np.full(int(self._frame_id.max()) + 1, -1, np.int64)
        donors = np.flatnonzero((self._frame_id >= 0) & (self._frame >= 0))
        frame_of_id[self._frame_id[donors]] = self._frame[donors]
        missing = np.unique(self._frame_id[shared])
        missing = missing[frame_of_id[missing] < 0]
        frame_of_id[missing] = self._new_frames(len(missing))
        self._frame[shared] = frame_of_id[self._frame_id[shared]]

    def _part_frames(self, stayed: npt.NDArray[np.int64], old_id: npt.NDArray[np.int32]
                     ) -> npt.NDArray[np.int64]:
        """Give new frames to sites of equal content that no longer share one; returns them.

        Of the sites that shared frame id f and now have others, those with one id are one frame
        still. One of these parts keeps the frame if nobody has f any more (the last mapping left,
        or the frame was migrated); every other part was copied.
        """
        is_other = (old_id >= 0) & (self._frame_id[stayed] != old_id)
        if not is_other.any():
            return np.empty(0, np.int64)
        site, old = stayed[is_other], old_id[is_other].astype(np.int64)
        new = self._frame_id[site].astype(np.int64)
        new[new < 0] = -1 - site[new < 0]  # mapped once: a part of its own
        order = np.lexsort((site, new, old))
        site, old, new = site[order], old[order], new[order]
        is_part = np.append(True, (np.diff(old) != 0) | (np.diff(new) != 0))
        part = np.cumsum(is_part) - 1
        part_old, part_site = old[is_part], np.minimum.reduceat(site, np.flatnonzero(is_part))
        by_age = np.lexsort((part_site, part_old))
        is_first = np.zeros(len(part_old), bool)
        is_first[by_age[np.append(True, np.diff(part_old[by_age]) != 0)]] = True
        keeps = is_first & ~np.isin(part_old, self._frame_id)
        frame_of_part = np.full(len(part_old), -1, np.int64)
        frame_of_part[~keeps] = self._new_frames(int((~keeps).sum()))
        copied = ~keeps[part]
        self._frame[site[copied]] = frame_of_part[part[copied]]
        parted: npt.NDArray[np.int64] = np.sort(site[copied])
        return parted

    def _new_frames(self, n_frames: int) -> npt.NDArray[np.int64]:
        first = self._host.n_frames
        self._host.n_frames += n_frames
        return np.arange(first, first + n_frames, dtype=np.int64)

    def _draw_times(self, site: npt.NDArray[np.int64], snapshot_id: int, start_ns: int,
                    end_ns: int) -> npt.NDArray[np.int64]:
        """Times in [start_ns, end_ns) for the changes that a snapshot shows, per mm."""
        parts = []
        for mm in self._mms:
            n_changed = int(np.diff(np.searchsorted(site, [mm.base, mm.base + len(mm.vpn)]))[0])
            stream = random_stream(self._seed, mm.name, snapshot_id)
            parts.append(start_ns + (stream.random(n_changed) * (end_ns - start_ns)))
        drawn: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        return drawn
