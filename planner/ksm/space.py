"""Merge spaces of one host under one policy: who shares which frame, at integer nanoseconds.

`MergeSpaces` keeps two worlds at once. The *base* world is what memory would be without merging:
each site (a virtual page of one mm) has a base frame, and sites that fork made equal have the
same one. The *physical* world is what it is with merging. Saved frames are the difference of the
live frames, so sharing that fork already gave is never a saving.

Simply put in this version: no smart scan, no splitting of huge pages, no use_zero_pages, no
NUMA trees, no pruning of chains by age, contents compared by id (so no missed matches in an
unstable tree that was mis-sorted by writes). Bookkeeping is *immediate*, where the kernel's is
lazy: a write or a page that goes leaves the trees and the counters at once, not when ksmd passes
by; a rmap item of a page that went is freed at once.

Partitions never share: the frame of a page that several partitions were born sharing (by fork)
never becomes a KSM page; the first page merged on it is copied to a frame of its own instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import UsageError
from planner.kernels import ksm as kernels
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel

__all__ = [
    "BYTES_PER_PAGE",
    "Counters",
    "EventTable",
    "FullScan",
    "MergeCounts",
    "MergeSpaces",
    "SiteTable",
    "UnmergeCounts",
    "next_wake_ns",
]

BYTES_PER_PAGE = 4096
#: Sizes of the kernel's records on x86-64: struct ksm_rmap_item, ksm_stable_node, ksm_mm_slot.
RMAP_ITEM_BYTES = 64
STABLE_NODE_BYTES = 64
MM_SLOT_BYTES = 48

_LOG_ROWS = 1024
_INT32_MAX = 2**31 - 1

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


def _column(values: ArrayLike, dtype: type, what: str, n: int | None = None) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim != 1 or (n is not None and len(array) != n):
        expected = "one dimension" if n is None else f"shape ({n},)"
        raise UsageError(f"expected {expected}, got shape {array.shape}", where=what)
    if len(array) and array.dtype.kind not in "iub":
        raise UsageError(f"expected integers, got {array.dtype}", where=what)
    info = np.iinfo(dtype)
    if len(array) and (array.min() < info.min or array.max() > info.max):
        raise UsageError(f"values do not fit {np.dtype(dtype)}", where=what)
    return np.ascontiguousarray(array, dtype=dtype)


def _check_range(array: NDArray[np.generic], low: int, high: int, what: str) -> None:
    if len(array) and (int(array.min()) < low or int(array.max()) >= high):
        raise UsageError(
            f"expected values from {low} to {high - 1}, got {array.min()} to {array.max()}",
            where=what,
        )


@dataclass(frozen=True, eq=False)
class SiteTable:
    """Every page that ever exists, in scan order: mm list order, then ascending vpn.

    All columns have shape (n_sites,). `mm` i32: any ids, but the sites of one mm lie together.
    `vpn` i64 ascending within a mm. `domain` i32: index into `domain_is_sensitive`.
    `partition` i32: 0..n_partitions-1, or -1 for none. `is_eligible` u8: merging may touch it
    (advised, compatible, not excluded); never visited otherwise, though its frame counts.
    `content` i32: content at time 0, -1 = absent. Ids are dense over the host and numbered within
    partitions: equal (partition, content) <=> equal id (sites of partition -1 have ids of their
    own too, or any id of the right zero-ness); numbering them in scan order is fastest.
    `frame` i32: base frame at time 0, equal for sites that share by fork, ignored where absent.
    """

    mm: I32
    vpn: I64
    domain: I32
    partition: I32
    is_eligible: U8
    content: I32
    frame: I32

    def __len__(self) -> int:
        return len(self.mm)


@dataclass(frozen=True, eq=False)
class EventTable:
    """Writes, births and deaths of pages: columns of shape (n_events,), ascending `time_ns`.

    `time_ns` i64 (at equal times the order of the table holds), `site` i32, `content` i32
    (-1 = the page goes), `frame` i32: the base frame after the write. A fresh id for an ordinary
    write; one id for sites born sharing; the id of the page's current base frame means "written
    in place" (by all that share it, at the same time) or, for a site that appears, "born by fork
    from the page that has it": it then shares that page's physical frame, merged or not.
    """

    time_ns: I64
    site: I32
    content: I32
    frame: I32

    @classmethod
    def empty(cls) -> EventTable:
        """No change at all."""
        i32 = np.zeros(0, dtype=np.int32)
        return cls(np.zeros(0, dtype=np.int64), i32, i32, i32)

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True, slots=True)
class FullScan:
    """ksmd of `partition` finished its full scan number `seq` (from 1) at `time_ns`."""

    time_ns: int
    partition: int
    seq: int


@dataclass(frozen=True, slots=True)
class MergeCounts:
    """What a synchronous merge did. Pages of the range:

    tried = merged + candidates + already merged + fork-shared twins + refused. `requested_pages`
    is the length of the range; tried are those present, eligible and of the partition.
    `merged_pages`: now share a KSM page because of this call (the candidate that a page was
    paired with was counted when it became one). `candidate_pages`: wait for a partner.
    `twin_pages`: their only partner so far is mapped to the very same frame. `refused_pages`:
    still held by an unlinked partition. `cost_ns` is the caller's CPU time.
    """

    requested_pages: int
    tried_pages: int
    merged_pages: int
    candidate_pages: int
    already_pages: int
    twin_pages: int
    refused_pages: int
    cost_ns: int


@dataclass(frozen=True, slots=True)
class UnmergeCounts:
    """What an unmerge did: pages that got a frame of their own, and the caller's CPU time."""

    requested_pages: int
    unmerged_pages: int
    cost_ns: int


@dataclass(frozen=True, slots=True)
class Counters:
    """State of a partition, or of the host (sums of its partitions and of pages in none).

    - `base_frames`: live frames without merging; `frames`: live frames now
    - `saved_frames`, `saved_zero_frames`: the difference, contents not zero and all zero apart;
      metadata is *not* taken off. A frame that fork shares across partitions belongs to the
      partition of its first site, so a partition's part of such a frame is a convention; sums are
      exact
    - `eligible_pages`: present pages merging may touch
    - `pages_shared`, `pages_sharing`, `pages_unshared`, `pages_volatile`, `pages_scanned`,
      `full_scans`, `general_profit_bytes`: the kernel's files of those names (mm/ksm.c);
      shared + sharing + unshared + volatile = `rmap_items`. Pages a synchronous merge visited
      count as scanned
    - `stable_nodes` (chain members counted, heads not), `stable_chains`: chain heads
    - `mm_slots`: mms with a rmap item (the kernel also counts those not scanned yet)
    - `metadata_bytes`: 64 per rmap item, 64 per stable node and chain head, 48 per mm slot
    - `merge_cpu_ns`: ksmd and synchronous calls; `cow_cpu_ns`: paid by writers, not in it
    - `cow_breaks`: writes to merged pages
    - `cross_domain_pages`: merged pages (the KSM page's first one included) whose sharers belong
      to more than one domain; `cross_domain_sensitive_pages`: those with a sharer in a sensitive
      domain
    - `unmerge_frames`: frames needed in addition if every merged page got its own
    """

    base_frames: int
    frames: int
    saved_frames: int
    saved_zero_frames: int
    eligible_pages: int
    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    pages_scanned: int
    full_scans: int
    general_profit_bytes: int
    rmap_items: int
    stable_nodes: int
    stable_chains: int
    mm_slots: int
    metadata_bytes: int
    merge_cpu_ns: int
    cow_breaks: int
    cow_cpu_ns: int
    cross_domain_pages: int
    cross_domain_sensitive_pages: int
    unmerge_frames: int


def sleep_jiffies(sleep_millisecs: int, hz: int) -> int:
    """`msecs_to_jiffies`: milliseconds in timer ticks, rounded up."""
    return -(-sleep_millisecs * hz // 1000)


def next_wake_ns(end_ns: int, sleep_millisecs: int, hz: int) -> int:
    """When ksmd runs again after a batch that ended at `end_ns` (timer wheel, kernel/time/timer.c).

    A sleep of n jiffies armed in jiffy j ends at jiffy j + n + 1; from 63 jiffies on the wheel's
    coarser levels round up to multiples of 8, 64, 512, ... A sleep of 0 is none.
    """
    return int(kernels.next_wake(end_ns, sleep_jiffies(sleep_millisecs, hz), 10**9 // hz))


class MergeSpaces:
    """Sites, frames and merge partitions of one host; changed by writes, ksmd and calls.

    Time only moves forward, by `advance`. A partition merges by a scanner of its own
    (`start_scanner`: ksmd), by calls (`merge_range`), or not at all; several scanners run at the
    same time, each on a CPU of its own. `content_is_zero` u8 or bool, shape (n_contents,);
    `domain_is_sensitive` likewise, shape (n_domains,).

    Raises `UsageError` when tables do not fit together.
    """

    def __init__(
        self,
        sites: SiteTable,
        events: EventTable,
        *,
        n_partitions: int,
        content_is_zero: ArrayLike,
        domain_is_sensitive: ArrayLike,
        hz: int = 250,
        cost: CostModel = BUILTIN_UNMEASURED,
    ) -> None:
        if n_partitions < 0:
            raise UsageError(f"expected at least 0, got {n_partitions}", where="n_partitions")
        if not 1 <= hz <= 10_000:
            raise UsageError(f"expected 1 to 10000 ticks a second, got {hz}", where="hz")
        self.hz = hz
        self.cost = cost
        self._n_partitions = n_partitions
        self._now_ns = 0
        n = len(sites)
        zero = _column(content_is_zero, np.uint8, "content_is_zero")
        sensitive = _column(domain_is_sensitive, np.uint8, "domain_is_sensitive")
        mm = _column(sites.mm, np.int32, "sites.mm", n)
        vpn = _column(sites.vpn, np.int64, "sites.vpn", n)
        domain = _column(sites.domain, np.int32, "sites.domain", n)
        partition = _column(sites.partition, np.int32, "sites.partition", n)
        eligible = _column(sites.is_eligible, np.uint8, "sites.is_eligible", n)
        first = np.empty((n, 2), dtype=np.int32)
        first[:, 0] = _column(sites.content, np.int32, "sites.content", n)
        first[:, 1] = _column(sites.frame, np.int32, "sites.frame", n)
        n_events = len(events)
        event_time = _column(events.time_ns, np.int64, "events.time_ns", n_events)
        rows = np.empty((n_events, 3), dtype=np.int32)
        rows[:, 0] = _column(events.site, np.int32, "events.site", n_events)
        rows[:, 1] = _column(events.content, np.int32, "events.content", n_events)
        rows[:, 2] = _column(events.frame, np.int32, "events.frame", n_events)
        _check_range(domain, 0, len(sensitive), "sites.domain")
        _check_range(partition, -1, n_partitions, "sites.partition")
        _check_range(first[:, 0], -1, len(zero), "sites.content")
        _check_range(rows[:, 0], 0, n, "events.site")
        _check_range(rows[:, 1], -1, len(zero), "events.content")
        present = first[first[:, 0] >= 0, 1]
        written = rows[rows[:, 1] >= 0, 2]
        _check_range(present, 0, _INT32_MAX, "sites.frame")
        _check_range(written, 0, _INT32_MAX, "events.frame")
        if n_events and (event_time[0] < 0 or (np.diff(event_time) < 0).any()):
            raise UsageError("expected ascending times from 0", where="events.time_ns")
        # Where each mm's sites lie; one run of sites per mm.
        starts = np.flatnonzero(np.diff(mm, prepend=mm[:1] - 1)) if n else np.zeros(0, np.int64)
        ends = np.append(starts[1:], n)
        self._mm_sites = {
            int(mm[a]): (int(a), int(b)) for a, b in zip(starts, ends, strict=False) if b > a
        }
        if len(self._mm_sites) != len(starts):
            raise UsageError("the sites of one mm must lie together", where="sites.mm")
        is_step = np.diff(mm) == 0
        if (np.diff(vpn)[is_step] <= 0).any():
            raise UsageError("expected ascending page numbers in each mm", where="sites.vpn")

        n_base = int(max(present.max(initial=-1), written.max(initial=-1))) + 1
        if n_base + n >= _INT32_MAX:
            raise UsageError(f"{n_base + n} frames do not fit 31 bits", where="sites.frame")
        self._site_mm, self._vpn, self._eligible = mm, vpn, eligible
        self._sensitive, self._zero = sensitive, zero
        self._event_time, self._events = event_time, rows
        self._n_base_contents = len(zero)

        # Calloc'ed where zero will do: pages of these tables that are never used stay unmapped.
        k = kernels
        self._sites = np.full((n, k.SITE_FIELDS), -1, dtype=np.int32)
        self._sites[:, k.S_META] = 0
        self._sites[:, k.S_PART] = partition + 1
        self._sites[:, k.S_DOMAIN] = domain
        self._contents = self._empty_contents()
        self._nodes = np.zeros((n + 1, k.NODE_FIELDS), dtype=np.int32)
        # A site maps one frame, and for a moment a second one while it moves.
        self._frames = np.zeros((n_base + n + 1, k.FRAME_FIELDS), dtype=np.int32)
        self._frames[:n_base, k.F_NODE] = -1
        self._frames[:n_base, k.F_SITE] = -1
        self._parts = np.zeros((n_partitions + 1, k.PART_FIELDS), dtype=np.int64)
        self._parts[:, k.P_PLAN] = np.arange(n_partitions + 1)
        self._parts[:, k.P_MAX_SHARING] = 256
        served = np.where(eligible != 0, partition, -1)
        self._order = np.argsort(served, kind="stable").astype(np.int32)
        counts = np.bincount(served + 1, minlength=n_partitions + 1)
        self._parts[:, k.P_COUNT] = counts
        self._parts[:, k.P_START] = np.cumsum(counts) - counts
        self._host = np.zeros(k.HOST_FIELDS, dtype=np.int64)
        self._host[[k.H_NODE_FREE, k.H_POOL_FREE]] = -1
        self._host[k.H_POOL_TOP] = self._host[k.H_N_BASE] = n_base
        self._host[k.H_JIFFY_NS] = 10**9 // hz
        self._cost = cost.as_array()
        self._log = np.zeros((_LOG_ROWS, 3), dtype=np.int64)
        kernels.initialize(
            self._sites,
            self._contents,
            self._nodes,
            self._frames,
            self._parts,
            self._host,
            self._zero,
            self._cost,
            first,
            rows,
        )

    def _empty_contents(self) -> I32:
        rows = np.full((self._n_base_contents, kernels.CONTENT_FIELDS), -1, dtype=np.int32)
        rows[:, kernels.C_NODES] = 0
        return rows

    @property
    def now_ns(self) -> int:
        """The time up to which everything has happened."""
        return self._now_ns

    @property
    def n_partitions(self) -> int:
        """Partitions of the plan (not those that `renew_partition` made)."""
        return self._n_partitions

    def _row(self, partition: int) -> int:
        if not 0 <= partition < len(self._parts) - 1:
            raise UsageError(f"there is no partition {partition}", where="partition")
        return partition + 1

    def start_scanner(
        self,
        partition: int,
        *,
        pages_to_scan: int = 100,
        sleep_millisecs: int = 20,
        max_page_sharing: int = 256,
    ) -> None:
        """Let a ksmd serve this partition from now on; its first batch starts at once.

        Changing the knobs of a running scanner keeps its cursor. `pages_to_scan` 0 scans nothing.
        Raises `UsageError` for knobs the kernel would refuse.
        """
        row = self._row(partition)
        for name, value in (("pages_to_scan", pages_to_scan), ("sleep_millisecs", sleep_millisecs)):
            if not 0 <= value < 2**32:
                raise UsageError(f"expected 0 to 2^32 - 1, got {value}", where=name)
        self.set_max_page_sharing(partition, max_page_sharing)
        k = kernels
        part = self._parts[row]
        part[k.P_PAGES] = pages_to_scan
        part[k.P_JIFFIES] = sleep_jiffies(sleep_millisecs, self.hz)
        if not part[k.P_IS_RUNNING] or part[k.P_NEXT_NS] < self._now_ns:
            part[k.P_NEXT_NS] = self._now_ns
        # Without a registered mm ksmd sleeps.
        part[k.P_IS_RUNNING] = int(pages_to_scan > 0 and part[k.P_COUNT] > 0)

    def stop_scanner(self, partition: int) -> None:
        """`run=0` for this partition: what is merged stays merged."""
        self._parts[self._row(partition), kernels.P_IS_RUNNING] = 0

    def set_max_page_sharing(self, partition: int, max_page_sharing: int) -> None:
        """Pages per KSM page, at least 2; changed only while nothing is merged (as the kernel)."""
        part = self._parts[self._row(partition)]
        if not 2 <= max_page_sharing <= _INT32_MAX:
            raise UsageError(
                f"expected at least 2, got {max_page_sharing}", where="max_page_sharing"
            )
        if part[kernels.P_MAX_SHARING] == max_page_sharing:
            return
        if part[kernels.P_NODES]:
            raise UsageError("cannot change while pages are merged", where="max_page_sharing")
        part[kernels.P_MAX_SHARING] = max_page_sharing

    def advance(self, until_ns: int) -> list[FullScan]:
        """Let time pass to `until_ns`: writes up to and at it, batches that start before it.

        All in order of time; at equal times writes come first, then partitions in order. A batch
        happens whole at its start and costs CPU time until its end. Returns the full scans that
        were completed, in order of their batches; the last ones may end after `until_ns`. Raises
        `UsageError` if time would go backwards.
        """
        until_ns = int(until_ns)
        if until_ns < self._now_ns:
            raise UsageError(
                f"time cannot go back from {self._now_ns} ns to {until_ns} ns", where="advance"
            )
        scans: list[FullScan] = []
        while True:
            n = kernels.advance(
                until_ns,
                self._sites,
                self._contents,
                self._nodes,
                self._frames,
                self._parts,
                self._host,
                self._order,
                self._zero,
                self._cost,
                self._event_time,
                self._events,
                self._log,
            )
            scans.extend(
                FullScan(time_ns, int(self._parts[row, kernels.P_PLAN]) - 1, seq)
                for time_ns, row, seq in self._log[:n].tolist()
            )
            if n < _LOG_ROWS:
                break
        self._now_ns = until_ns
        return scans

    def _range(self, row: int, mm: int, start_vpn: int, end_vpn: int) -> tuple[int, int]:
        """The part of `order` that holds the sites of the partition in the range."""
        if not 0 <= start_vpn <= end_vpn:
            raise UsageError(f"not a range of pages: [{start_vpn}, {end_vpn})", where="vpn")
        if mm not in self._mm_sites:
            raise UsageError(f"there is no mm {mm}", where="mm")
        low, high = self._mm_sites[mm]
        vpn = self._vpn[low:high]
        bounds = low + np.searchsorted(vpn, [min(start_vpn, 2**62), min(end_vpn, 2**62)])
        start = int(self._parts[row, kernels.P_START])
        mine = self._order[start : start + int(self._parts[row, kernels.P_COUNT])]
        first, last = (start + np.searchsorted(mine, bounds.astype(np.int32))).tolist()
        return first, last

    def merge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> MergeCounts:
        """Merge the pages [start_vpn, end_vpn) of `mm` now, within `partition`.

        No checksum gate: one call merges. Pages without a partner become candidates and stay so
        until matched, written or unmerged. Pages of other partitions and absent pages are left.
        Raises `UsageError` for an unknown partition or mm.
        """
        row = self._row(partition)
        first, last = self._range(row, mm, start_vpn, end_vpn)
        outcomes = np.zeros(kernels.N_OUTCOMES, dtype=np.int64)
        cost_ns = kernels.merge(
            row,
            first,
            last,
            self._sites,
            self._contents,
            self._nodes,
            self._frames,
            self._parts,
            self._host,
            self._order,
            self._zero,
            self._cost,
            outcomes,
        )
        seen = outcomes.tolist()
        return MergeCounts(
            requested_pages=end_vpn - start_vpn,
            tried_pages=sum(seen) - seen[kernels.HOLE],
            merged_pages=seen[kernels.MERGED] + seen[kernels.PAIRED] + seen[kernels.INHERITED],
            candidate_pages=seen[kernels.UNIQUE],
            already_pages=seen[kernels.QUICK],
            twin_pages=seen[kernels.TWIN],
            refused_pages=seen[kernels.FOREIGN],
            cost_ns=int(cost_ns),
        )

    def unmerge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> UnmergeCounts:
        """Give each merged page of the range its own frame and forget its rmap item.

        Candidates of the range are forgotten too. Not a write: no COW break is counted. Raises
        `UsageError` for an unknown partition or mm.
        """
        row = self._row(partition)
        first, last = self._range(row, mm, start_vpn, end_vpn)
        return self._unmerge(row, first, last, end_vpn - start_vpn)

    def _unmerge(self, row: int, first: int, last: int, requested_pages: int) -> UnmergeCounts:
        n_unmerged = kernels.unmerge(
            row,
            first,
            last,
            self._sites,
            self._contents,
            self._nodes,
            self._frames,
            self._parts,
            self._host,
            self._order,
            self._zero,
        )
        cost_ns = self.cost.call_ns + n_unmerged * self.cost.unmerge_ns
        self._parts[row, kernels.P_CPU_NS] += cost_ns
        return UnmergeCounts(requested_pages, int(n_unmerged), cost_ns)

    def reset_partition(self, partition: int) -> UnmergeCounts:
        """End a partition: stop its scanner, unmerge all of its pages, forget all of its items."""
        row = self._row(partition)
        part = self._parts[row]
        part[kernels.P_IS_RUNNING] = 0
        part[kernels.P_CURSOR] = 0
        first, n = int(part[kernels.P_START]), int(part[kernels.P_COUNT])
        return self._unmerge(row, first, first + n, n)

    def renew_partition(self, partition: int) -> int:
        """A further, empty partition for the pages of `partition`; returns its number.

        For a name that was unlinked and created again while the old object is still open. Pages
        the old one has merged stay its own until unmerged. Its counters are part of those of the
        planned partition it renews.
        """
        row = self._row(partition)
        k = kernels
        new = np.zeros((1, k.PART_FIELDS), dtype=np.int64)
        for column in (k.P_START, k.P_COUNT, k.P_PLAN):
            new[0, column] = self._parts[row, column]
        new[0, k.P_MAX_SHARING] = 256
        new[0, k.P_CONTENT_OFFSET] = len(self._contents)
        if len(self._contents) + self._n_base_contents > _INT32_MAX:
            raise UsageError("too many renewed partitions", where="partition")
        self._contents = np.concatenate([self._contents, self._empty_contents()])
        self._parts = np.concatenate([self._parts, new])
        return len(self._parts) - 2

    def _sample(self) -> tuple[I64, I64]:
        """Copies of the partition table and of what `kernels.sample` counts, by row."""
        n_nodes = int(self._host[kernels.H_NODE_TOP])
        out = np.zeros((len(self._parts), kernels.OUT_FIELDS), dtype=np.int64)
        kernels.sample(
            self._sites,
            self._nodes,
            self._frames,
            self._parts,
            self._host,
            self._site_mm,
            self._eligible,
            self._sensitive,
            np.zeros(n_nodes, dtype=np.int32),
            np.zeros(n_nodes, dtype=np.uint8),
            np.zeros(len(self._parts), dtype=np.int64),
            out,
        )
        return self._parts.copy(), out

    def counters(self) -> Counters:
        """The host's counters now; O(sites)."""
        parts, out = self._sample()
        mm_slots = int(out[0, kernels.OUT_MM_SLOTS])
        total = out.sum(axis=0)
        total[kernels.OUT_MM_SLOTS] = mm_slots
        return _counters(parts.sum(axis=0), total)

    def partition_counters(self) -> list[Counters]:
        """Counters of each partition of the plan, in order; O(sites)."""
        parts, out = self._sample()
        plan = self._parts[:, kernels.P_PLAN]
        n = self._n_partitions + 1
        if len(parts) > n:
            for row in range(n, len(parts)):
                parts[plan[row]] += parts[row]
                out[plan[row]] += out[row]
        return [_counters(parts[row], out[row]) for row in range(1, n)]

    def one_partition_counters(self, partition: int) -> Counters:
        """Counters of one partition alone, also of a renewed one; O(sites).

        Frames and eligible pages are those of the plan: 0 for a renewed partition.
        """
        row = self._row(partition)
        parts, out = self._sample()
        return _counters(parts[row], out[row])


def _counters(part: I64, out: I64) -> Counters:
    k = kernels
    p: list[int] = part.tolist()
    o: list[int] = out.tolist()
    items, nodes, chains = p[k.P_ITEMS], p[k.P_NODES], p[k.P_CHAINS]
    mm_slots = o[k.OUT_MM_SLOTS]
    saved = p[k.P_LIVE_BASE] - p[k.P_LIVE_PHYS]
    saved_zero = p[k.P_LIVE_BASE_ZERO] - p[k.P_LIVE_PHYS_ZERO]
    sharing, shared, unshared = p[k.P_SHARING], p[k.P_SHARED], p[k.P_UNSHARED]
    return Counters(
        base_frames=p[k.P_LIVE_BASE],
        frames=p[k.P_LIVE_PHYS],
        saved_frames=saved - saved_zero,
        saved_zero_frames=saved_zero,
        eligible_pages=o[k.OUT_ELIGIBLE],
        pages_shared=shared,
        pages_sharing=sharing,
        pages_unshared=unshared,
        pages_volatile=items - shared - sharing - unshared,
        pages_scanned=p[k.P_SCANNED],
        full_scans=p[k.P_FULL_SCANS],
        general_profit_bytes=sharing * BYTES_PER_PAGE - items * RMAP_ITEM_BYTES,
        rmap_items=items,
        stable_nodes=nodes,
        stable_chains=chains,
        mm_slots=mm_slots,
        metadata_bytes=items * RMAP_ITEM_BYTES
        + (nodes + chains) * STABLE_NODE_BYTES
        + mm_slots * MM_SLOT_BYTES,
        merge_cpu_ns=p[k.P_CPU_NS],
        cow_breaks=p[k.P_COW],
        cow_cpu_ns=p[k.P_COW_NS],
        cross_domain_pages=o[k.OUT_CROSS],
        cross_domain_sensitive_pages=o[k.OUT_CROSS_SENSITIVE],
        unmerge_frames=o[k.OUT_UNMERGE],
    )
