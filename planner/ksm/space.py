"""Merge spaces of one host under one policy: who shares which frame, at integer nanoseconds.

`MergeSpaces` keeps two worlds at once. The *base* world is what memory would be without merging:
each site (a virtual page of one mm) has a base frame, and sites that fork made equal have the
same one. The *physical* world is what it is with merging. Saved frames are the difference of the
live frames, so sharing that fork already gave is never a saving.

Merging is the kernel's (docs/ksm-model.md), with its *lazy* bookkeeping: counters describe rmap
items as of their last visit; a write changes frames at once and counters when ksmd passes.
Contents are compared by id, and the bytes that order the kernel's trees are not in a trace. With
tables in place of trees a search meets the entries of its own content only. So, other than in the
kernel, an unstable tree is never mis-sorted by writes, a search is not ended by a vanished page of
another content, and stale stable nodes that no item names are noticed only by searches for their
content. The second matters where huge pages with zeroes are split (each leaves such a page in the
tree, at its left end); then trees in a made-up order serve.

Partitions never share: the frame of a page that several partitions were born sharing (by fork)
never becomes a KSM page; the first page merged on it is copied to a frame of its own instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import UsageError
from planner.kernels import fastforward, ksmcalls, ksmpages
from planner.kernels import ksm as kernels
from planner.kernels import ksmstate as k
from planner.kernels.fastforward import Marks, can_fast_forward, prepare, settle
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.ksm.knobs import KernelVersion, Knobs, check_kernel
from planner.ksm.records import (
    I32,
    I64,
    Counters,
    EventTable,
    FullScan,
    MergeCounts,
    SiteTable,
    UnmergeCounts,
    counters_of,
)
from planner.ksm.slots import close_ring, slots_of, with_arrivals

__all__ = ["MergeSpaces", "Trees", "next_wake_ns"]

_LOG_ROWS = 1024
_INT32_MAX = 2**31 - 1

#: How trees are kept, see `MergeSpaces`.
Trees = Literal["tables", "exact", "auto"]
_MAX_EXACT_SITES = 1 << 21
#: Full scans without a split after which no more are expected: smart_scan pauses for 9 at most.
_QUIET_SCANS = 16
#: Compiling the fast-forward takes about as long as so many visits.
_FAST_AFTER_VISITS = 1 << 26



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


def _check_contents(array: NDArray[np.generic], n_contents: int, what: str) -> None:
    _check_range(np.where(array == k.UNSEEN, k.ABSENT, array), k.ABSENT, n_contents, what)


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
    same time, each on a CPU of its own. `trees`: "tables" by content; "exact" for the kernel's
    red-black trees, with an order of contents made up but for zeroes, which come first: searches
    meet what lies on their way, at some ten times the cost; "auto" is "exact" while huge pages
    of a host that is not too large are split, and "tables" then. `content_is_zero` u8 or bool,
    shape (n_contents,); `domain_is_sensitive` likewise, shape (n_domains,). `exits`: when mms exit,
    in ns by their ids, by when their pages are gone: ksmd then forgets them as it passes; where
    there is none they are forgotten at once. They do not come back.

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
        kernel: KernelVersion = "6.18",
        hz: int = 250,
        cost: CostModel = BUILTIN_UNMEASURED,
        trees: Trees = "tables",
        exits: Mapping[int, int] | None = None,
    ) -> None:
        if n_partitions < 0:
            raise UsageError(f"expected at least 0, got {n_partitions}", where="n_partitions")
        if not 1 <= hz <= 10_000:
            raise UsageError(f"expected 1 to 10000 ticks a second, got {hz}", where="hz")
        check_kernel(kernel)
        self.kernel = kernel
        self.hz = hz
        self.cost = cost
        self._n_partitions = n_partitions
        self._most_cross = np.zeros(n_partitions + 1, np.int64)
        self._now_ns = 0
        n = len(sites)
        zero = _column(content_is_zero, np.uint8, "content_is_zero")
        sensitive = _column(domain_is_sensitive, np.uint8, "domain_is_sensitive")
        mm = _column(sites.mm, np.int32, "sites.mm", n).astype(np.int32)
        vpn = _column(sites.vpn, np.int64, "sites.vpn", n)
        domain = _column(sites.domain, np.int32, "sites.domain", n)
        partition = _column(sites.partition, np.int32, "sites.partition", n)
        eligible = _column(sites.is_eligible, np.uint8, "sites.is_eligible", n)
        first = np.empty((n, 2), dtype=np.int32)
        first[:, 0] = _column(sites.content, np.int32, "sites.content", n)
        first[:, 1] = _column(sites.frame, np.int32, "sites.frame", n)
        n_events = len(events)
        event_time = _column(events.time_ns, np.int64, "events.time_ns", n_events).astype(np.int64)
        rows = np.empty((n_events, 3), dtype=np.int32)
        rows[:, 0] = _column(events.site, np.int32, "events.site", n_events)
        rows[:, 1] = _column(events.content, np.int32, "events.content", n_events)
        rows[:, 2] = _column(events.frame, np.int32, "events.frame", n_events)
        _check_range(domain, 0, len(sensitive), "sites.domain")
        _check_range(partition, -1, n_partitions, "sites.partition")
        _check_contents(first[:, 0], len(zero), "sites.content")
        _check_range(rows[:, 0], 0, n, "events.site")
        _check_contents(rows[:, 1], len(zero), "events.content")
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
        huge = _column(np.zeros(n, np.uint8) if sites.is_huge is None else sites.is_huge,
                       np.uint8, "sites.is_huge", n)
        self._vpn, self._eligible, self._domain = vpn, eligible, domain
        self._sensitive = sensitive
        self._n_base_contents = len(zero)

        # Calloc'ed where zero will do: pages of these tables that are never used stay unmapped.
        rows_of_sites = np.full((n, k.SITE_FIELDS), -1, dtype=np.int32)
        rows_of_sites[:, k.S_META] = np.where(eligible != 0, k.M_VMA, 0)
        rows_of_sites[huge != 0, k.S_META] |= k.M_BORN_HUGE
        rows_of_sites[:, k.S_PART] = partition + 1
        # A site maps one frame, and for a moment a second one while it moves.
        frames = np.zeros((n_base + n + 1, k.FRAME_FIELDS), dtype=np.int32)
        frames[:n_base, k.F_NODE] = k.NO_NODE
        frames[:n_base, k.F_SITE] = -1
        parts = np.zeros((n_partitions + 1, k.PART_FIELDS), dtype=np.int64)
        parts[:, k.P_PLAN] = parts[:, k.P_HEAD] = parts[:, k.P_SLOT] = np.arange(n_partitions + 1)
        parts[:, k.P_MAX_SHARING] = 256
        parts[:, k.P_PRUNE_JIFFIES] = sleep_jiffies(2000, hz)
        served = np.where(eligible != 0, partition, -1)
        order = np.argsort(served, kind="stable").astype(np.int32)
        order = order[int((served < 0).sum()) :]
        slots, slot_of = slots_of(order, served, mm, n_partitions)
        self._slot_of = {(int(served[order[slots[at, k.L_START]]]) + 1, int(slots[at, k.L_MM])): at
                         for at in range(n_partitions + 1, len(slots))}
        event_time, rows = with_arrivals(slots, slot_of, order, served, first[:, 0],
                                         event_time, rows)
        self._has_exits = bool(exits)
        if exits:
            event_time, rows = self._with_exits(exits, event_time, rows)
        host = np.zeros(k.HOST_FIELDS, dtype=np.int64)
        host[[k.H_NODE_FREE, k.H_POOL_FREE]] = -1
        host[k.H_POOL_TOP] = host[k.H_N_BASE] = n_base
        host[k.H_JIFFY_NS] = 10**9 // hz
        host[k.H_N_ROWS] = len(zero)
        host[k.H_HASH_FIRST] = kernel != "6.1"
        host[k.H_SPLIT_ZEROES] = kernel != "6.1"
        is_exact = trees == "exact" or (
            trees == "auto" and n <= _MAX_EXACT_SITES and bool((huge[eligible != 0] != 0).any()))
        host[k.H_EXACT] = is_exact
        # Only huge pages that are split make the difference worth its time.
        self._is_exact_for_now = is_exact and trees == "auto"
        self._quiet = (0, 0)
        self._marks: Marks | None = None
        self._n_calls = 0
        n_linked = is_exact * n, is_exact * len(zero)
        parts[:, [k.P_STABLE_ROOT, k.P_UNSTABLE_ROOT]] = -1
        self._w = k.World(
            sites=rows_of_sites, frames=frames, contents=self._empty_contents(),
            nodes=np.zeros((2 * n + 2, k.NODE_FIELDS), dtype=np.int32), slots=slots, parts=parts,
            host=host, order=order, zero=zero, cost=cost.as_array(), mm=mm, vpn=vpn,
            event_time=event_time, events=rows, log=np.zeros((_LOG_ROWS, 3), dtype=np.int64),
            unstable_tree=np.zeros((n_linked[0], k.TREE_FIELDS), dtype=np.int32),
            stable_tree=np.zeros((n_linked[1], k.TREE_FIELDS), dtype=np.int32),
            keys=_content_keys(zero[: n_linked[1]]))
        ksmpages.initialize(first, self._w)

    def _with_exits(self, exits: Mapping[int, int], event_time: I64, rows: I32,
                    ) -> tuple[I64, I32]:
        """The events with those of mms that exit: after all else at their times."""
        leaving = sorted((exits[mm], at, row) for (row, mm), at in self._slot_of.items()
                         if mm in exits)
        times = np.array([time_ns for time_ns, _, _ in leaving], np.int64)
        new = np.array([(~at, k.EXITED, row) for _, at, row in leaving], np.int32).reshape(-1, 3)
        at = np.searchsorted(event_time, times, side="right")
        return (np.insert(event_time, at, times),
                np.ascontiguousarray(np.insert(rows, at, new, axis=0), dtype=np.int32))

    def _empty_contents(self) -> I32:
        rows = np.full((self._n_base_contents, k.CONTENT_FIELDS), -1, dtype=np.int32)
        rows[:, k.C_NODES] = 0
        return rows

    @property
    def world(self) -> k.World:
        """The tables as they are now; not to be changed."""
        self._settle()
        return self._w

    @property
    def now_ns(self) -> int:
        """The time up to which everything has happened."""
        return self._now_ns

    @property
    def n_partitions(self) -> int:
        """Partitions of the plan (not those that `renew_partition` made)."""
        return self._n_partitions

    def _row(self, partition: int) -> int:
        if not 0 <= partition < len(self._w.parts) - 1:
            raise UsageError(f"there is no partition {partition}", where="partition")
        return partition + 1

    def start_scanner(self, partition: int, knobs: Knobs | None = None) -> None:
        """Let a ksmd serve this partition from now on; its first batch starts at once.

        `knobs` are the kernel's defaults where None. Changing the knobs of a running scanner keeps
        its cursor. `pages_to_scan` 0 scans nothing. Raises `UsageError` for `max_page_sharing` as
        `set_max_page_sharing` does, and for `merge_across_nodes` 0: nodes are kept apart by
        numbering the contents of each apart, as planner.engine does.
        """
        row = self._row(partition)
        self._settle()
        knobs = knobs or Knobs.of_kernel(self.kernel)
        if not knobs.merge_across_nodes:
            raise UsageError("nodes of pages are not known here", where="merge_across_nodes",
                             instead="number the contents of each node apart")
        if self.kernel == "6.1" and (knobs.smart_scan or knobs.advisor_mode != "none"):
            raise UsageError("Linux 6.1 has neither smart_scan nor an advisor", where="knobs")
        self.set_max_page_sharing(partition, knobs.max_page_sharing)
        part = self._w.parts[row]
        is_advised = knobs.advisor_mode != "none"
        if is_advised and not part[k.P_ADVISOR]:
            part[[k.P_ADVISOR_SCAN_S, k.P_ADVISOR_CHANGE, k.P_ADVISOR_CPU_NS]] = 0
            part[k.P_PAGES] = knobs.advisor_min_pages_to_scan
        elif not is_advised:
            part[k.P_PAGES] = knobs.pages_to_scan
        part[k.P_ADVISOR] = is_advised
        part[k.P_MAX_CPU] = knobs.advisor_max_cpu
        part[k.P_TARGET_S] = knobs.advisor_target_scan_time
        part[k.P_MAX_PAGES] = knobs.advisor_max_pages_to_scan
        part[k.P_SMART_SCAN] = knobs.smart_scan
        part[k.P_USE_ZERO] = knobs.use_zero_pages
        part[k.P_SLEEP_JIFFIES] = sleep_jiffies(knobs.sleep_millisecs, self.hz)
        part[k.P_PRUNE_JIFFIES] = sleep_jiffies(
            knobs.stable_node_chains_prune_millisecs, self.hz)
        if not part[k.P_IS_RUNNING] or part[k.P_NEXT_NS] < self._now_ns:
            part[k.P_NEXT_NS] = self._now_ns
        part[k.P_IS_RUNNING] = int(part[k.P_PAGES] > 0)
        part[k.P_HAS_SCANNER] = 1

    def stop_scanner(self, partition: int) -> None:
        """`run=0` for this partition: what is merged stays merged."""
        self._w.parts[self._row(partition), k.P_IS_RUNNING] = 0

    def set_max_page_sharing(self, partition: int, max_page_sharing: int) -> None:
        """Pages per KSM page, at least 2; changed only while nothing is merged (as the kernel)."""
        self._settle()
        part = self._w.parts[self._row(partition)]
        if not 2 <= max_page_sharing <= _INT32_MAX:
            raise UsageError(
                f"expected at least 2, got {max_page_sharing}", where="max_page_sharing"
            )
        if part[k.P_MAX_SHARING] == max_page_sharing:
            return
        if part[k.P_NODES]:
            raise UsageError("cannot change while pages are merged", where="max_page_sharing")
        part[k.P_MAX_SHARING] = max_page_sharing

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
            w = self._w
            if not w.parts[:, k.P_IS_RUNNING].any():
                self._settle()
                kernels.apply_events(until_ns, w)
                break
            if self._is_exact_for_now:
                w = w._replace(log=w.log[:_QUIET_SCANS])
            n = self._visit_until(until_ns, w)
            scans.extend(
                FullScan(time_ns, int(w.parts[row, k.P_PLAN]) - 1, seq)
                for time_ns, row, seq in w.log[:n].tolist()
            )
            if self._is_exact_for_now:
                self._end_exactness(n)
            if n < len(w.log):
                break
        self._now_ns = until_ns
        return scans

    def _visit_until(self, until_ns: int, w: k.World) -> int:
        """`kernels.advance`, by the fast-forward once there have been so many visits."""
        if self._marks is None:
            n_visits = w.parts[:, [k.P_SCANNED, k.P_SKIPPED]].sum()
            if n_visits < _FAST_AFTER_VISITS or self._n_calls or not can_fast_forward(w):
                return int(kernels.advance(until_ns, w))
            self._marks = prepare(w)
        return int(fastforward.advance(until_ns, w, self._marks))

    def _settle(self) -> None:
        """Let all tables be as `kernels.advance` leaves them; they are about to be changed."""
        if self._marks is not None:
            settle(self._w, self._marks)
            self._marks = None

    def _end_exactness(self, n_scans: int) -> None:
        """Go on with tables once no huge page was split for some full scans."""
        host = self._w.host
        n_splits, n_quiet = self._quiet
        n_quiet = n_quiet + n_scans if n_splits == host[k.H_SPLITS] else 0
        self._quiet = int(host[k.H_SPLITS]), n_quiet
        n_running = int((self._w.parts[:, k.P_IS_RUNNING] != 0).sum())
        if n_quiet < _QUIET_SCANS * n_running or not n_running:
            return
        self._is_exact_for_now = False
        host[k.H_EXACT] = 0
        sites, parts = self._w.sites, self._w.parts
        of_site = sites[:, k.S_PART]
        in_tree = np.flatnonzero((sites[:, k.S_META] & k.M_UNSTABLE != 0)
                                 & (sites[:, k.S_SEQ] == parts[of_site, k.P_EPOCH]))
        rows = sites[in_tree, k.S_OLD] + parts[of_site[in_tree], k.P_CONTENT_OFFSET]
        self._w.contents[rows, k.C_SITE] = in_tree
        self._w.contents[rows, k.C_EPOCH] = sites[in_tree, k.S_SEQ]

    def _range(self, row: int, mm: int, start_vpn: int, end_vpn: int) -> tuple[int, int]:
        """The part of `order` that holds the sites of the partition in the range."""
        if not 0 <= start_vpn <= end_vpn:
            raise UsageError(f"not a range of pages: [{start_vpn}, {end_vpn})", where="vpn")
        if mm not in self._mm_sites:
            raise UsageError(f"there is no mm {mm}", where="mm")
        slot = self._slot_of.get((row, mm))
        if slot is None:
            return 0, 0
        start, count = self._w.slots[slot, [k.L_START, k.L_COUNT]].tolist()
        vpn = self._vpn[self._w.order[start : start + count]]
        bounds = np.searchsorted(vpn, [min(start_vpn, 2**62), min(end_vpn, 2**62)])
        return start + int(bounds[0]), start + int(bounds[1])

    def merge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int,
                    longest_ns: int = 0) -> MergeCounts:
        """Merge the pages [start_vpn, end_vpn) of `mm` now, within `partition`.

        No checksum gate: one call merges. Pages without a partner become candidates and stay so
        until matched, written or unmerged. Pages of other partitions and absent pages are left.
        The call stops after the page with which its CPU time reaches `longest_ns`, if not 0.
        Raises `UsageError` for an unknown partition or mm.
        """
        row = self._row(partition)
        first, last = self._range(row, mm, start_vpn, end_vpn)
        self._settle()
        self._n_calls += 1
        outcomes = np.zeros(k.N_OUTCOMES, dtype=np.int64)
        self._w.host[k.H_NOW_JIFFY] = self._now_ns // self._w.host[k.H_JIFFY_NS]
        cost_ns, after = ksmcalls.merge(row, first, last, int(longest_ns), outcomes, self._w)
        seen = outcomes.tolist()
        return MergeCounts(
            requested_pages=end_vpn - start_vpn,
            tried_pages=sum(seen) - seen[k.HOLE],
            merged_pages=seen[k.MERGED] + seen[k.PAIRED] + seen[k.INHERITED] + seen[k.ZEROED],
            candidate_pages=seen[k.UNIQUE],
            already_pages=seen[k.QUICK],
            twin_pages=seen[k.TWIN],
            refused_pages=seen[k.FOREIGN],
            failed_pages=seen[k.FAILED] + seen[k.GAVE_UP],
            cost_ns=int(cost_ns),
            next_vpn=end_vpn if after == last else int(self._vpn[self._w.order[after]]),
        )

    def leave_out(self, sites: I32, is_out: bool) -> int:
        """Make pages of these sites no candidates (MADV_UNMERGEABLE), or candidates again.

        `sites`: rows of the site table that are eligible. Pages that are merged now stay merged
        and are left alone; others lose their rmap item at once. Counters of eligible pages do not
        change. Returns how many pages changed.
        """
        self._settle()
        self._n_calls += 1
        return int(ksmcalls.leave_out(np.ascontiguousarray(sites, np.int32), is_out, self._w))

    def book(self, partition: int, cpu_ns: int) -> None:
        """Add a caller's CPU time that merges nothing itself, such as naming ranges."""
        self._w.parts[self._row(partition), k.P_BOOKED_NS] += cpu_ns

    def live_frames(self) -> tuple[int, int]:
        """Frames in use without merging and with it; cheap."""
        parts = self._w.parts
        return int(parts[:, k.P_LIVE_BASE].sum()), int(parts[:, k.P_LIVE_PHYS].sum())

    def unmerge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> UnmergeCounts:
        """Give each merged page of the range its own frame and forget its rmap item.

        Candidates of the range are forgotten too. Not a write: no COW break is counted. Raises
        `UsageError` for an unknown partition or mm.
        """
        row = self._row(partition)
        first, last = self._range(row, mm, start_vpn, end_vpn)
        return self._unmerge(row, first, last, end_vpn - start_vpn)

    def _unmerge(self, row: int, first: int, last: int, requested_pages: int) -> UnmergeCounts:
        self._settle()
        self._n_calls += 1
        part = self._w.parts[row]
        n_zero = int(part[k.P_ZERO])
        n_unmerged = int(ksmcalls.break_range(row, first, last, self._w))
        ksmcalls.forget_range(row, first, last, self._w)
        n_unmerged += n_zero - int(part[k.P_ZERO])
        cost_ns = self.cost.call_ns + n_unmerged * self.cost.unmerge_ns
        part[[k.P_CPU_NS, k.P_UNMERGE_NS]] += cost_ns
        return UnmergeCounts(requested_pages, n_unmerged, cost_ns)

    def reset_partition(self, partition: int) -> UnmergeCounts:
        """End a partition: stop its scanner, unmerge all of its pages, forget all of its items."""
        row = self._row(partition)
        part = self._w.parts[row]
        part[k.P_IS_RUNNING] = 0
        part[k.P_SLOT] = part[k.P_HEAD]
        part[k.P_INDEX] = 0
        mine = [at for (of_row, _), at in self._slot_of.items() if of_row == row]
        if not mine:
            return self._unmerge(row, 0, 0, 0)
        ranges = self._w.slots[mine][:, [k.L_START, k.L_COUNT]]
        first, last = int(ranges[:, 0].min()), int(ranges.sum(axis=1).max())
        return self._unmerge(row, first, last, last - first)

    def renew_partition(self, partition: int) -> int:
        """A further, empty partition for the pages of `partition`; returns its number.

        For a name that was unlinked and created again while the old object is still open. Pages
        the old one has merged stay its own until unmerged. Its counters are part of those of the
        planned partition it renews. Raises `UsageError` where mms exit: only the planned
        partitions hear of it.
        """
        if self._has_exits:
            raise UsageError("a partition whose mms exit cannot be renewed", where="partition",
                             instead="leave `exits` out")
        self._settle()
        row, w = self._row(partition), self._w
        mine = [(mm, at) for (of_row, mm), at in self._slot_of.items() if of_row == row]
        head, new_row = len(w.slots), len(w.parts)
        slots = np.zeros((1 + len(mine), k.SLOT_FIELDS), dtype=np.int32)
        slots[1:] = w.slots[[at for _, at in mine]]
        close_ring(slots, np.arange(len(slots)), head)
        self._slot_of |= {(new_row, mm): head + 1 + index for index, (mm, _) in enumerate(mine)}
        new = np.zeros((1, k.PART_FIELDS), dtype=np.int64)
        new[0, k.P_PLAN] = w.parts[row, k.P_PLAN]
        new[0, k.P_HEAD] = new[0, k.P_SLOT] = head
        new[0, k.P_MAX_SHARING] = 256
        new[0, k.P_PRUNE_JIFFIES] = sleep_jiffies(2000, self.hz)
        new[0, k.P_CONTENT_OFFSET] = len(w.contents)
        if len(w.contents) + self._n_base_contents > _INT32_MAX:
            raise UsageError("too many renewed partitions", where="partition")
        new[0, [k.P_STABLE_ROOT, k.P_UNSTABLE_ROOT]] = -1
        self._w = w._replace(contents=np.concatenate([w.contents, self._empty_contents()]),
                             stable_tree=np.resize(w.stable_tree, (
                                 len(w.stable_tree) + len(w.keys), k.TREE_FIELDS)),
                             parts=np.concatenate([w.parts, new]),
                             slots=np.concatenate([w.slots, slots]))
        return new_row - 1

    def _sample(self) -> tuple[I64, I64]:
        """Copies of the partition table and of what `ksmcalls.sample` counts, by row."""
        w = self._w
        n_nodes = int(w.host[k.H_NODE_TOP])
        out = np.zeros((len(w.parts), k.OUT_FIELDS), dtype=np.int64)
        ksmcalls.sample(
            self._eligible,
            self._domain,
            self._sensitive,
            np.zeros(n_nodes, dtype=np.int32),
            np.zeros(n_nodes, dtype=np.uint8),
            np.zeros(len(w.parts), dtype=np.int64),
            out,
            w,
        )
        return w.parts.copy(), out

    def counters(self) -> Counters:
        """The host's counters now; O(sites)."""
        parts, out = self._sample()
        cross = np.zeros_like(self._most_cross)
        np.add.at(cross, parts[:, k.P_PLAN], out[:, k.OUT_CROSS])
        np.maximum(self._most_cross, cross, out=self._most_cross)
        mm_slots = int(out[0, k.OUT_MM_SLOTS])
        total = out.sum(axis=0)
        total[k.OUT_MM_SLOTS] = mm_slots
        return counters_of(parts, total, self.cost.split_ns)

    def most_cross_domain_pages(self) -> list[int]:
        """By partition of the plan the most `cross_domain_pages` of any moment at which `counters`
        were asked for: guests that left have nothing on shared frames any more."""
        most: list[int] = self._most_cross[1:].tolist()
        return most

    def partition_counters(self) -> list[Counters]:
        """Counters of each partition of the plan, in order; O(sites)."""
        parts, out = self._sample()
        plan = self._w.parts[:, k.P_PLAN]
        return [counters_of(parts[plan == row], out[plan == row].sum(axis=0), self.cost.split_ns)
                for row in range(1, self._n_partitions + 1)]

    def one_partition_counters(self, partition: int) -> Counters:
        """Counters of one partition alone, also of a renewed one; O(sites).

        Frames and eligible pages are those of the plan: 0 for a renewed partition.
        """
        row = self._row(partition)
        parts, out = self._sample()
        return counters_of(parts[row : row + 1], out[row], self.cost.split_ns)


def _content_keys(zero: NDArray[np.generic]) -> NDArray[np.uint64]:
    """An order of contents as good as that of their bytes: any, but zeroes come first."""
    ids = np.arange(len(zero), dtype=np.uint64)
    key = (ids + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(zero != 0, ids, (key ^ (key >> np.uint64(31))) | np.uint64(1 << 63))
