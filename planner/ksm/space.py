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
    in place" or, for a site that appears, "born by fork from the page that has it".
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
    ) -> None: ...

    @property
    def now_ns(self) -> int:
        """The time up to which everything has happened."""

    @property
    def n_partitions(self) -> int:
        """Partitions of the plan (not those that `renew_partition` made)."""

    def start_scanner(
        self,
        partition: int,
        *,
        pages_to_scan: int = 100,
        sleep_millisecs: int = 20,
        max_page_sharing: int = 256,
    ) -> None:
        """Let a ksmd serve this partition from now on; its first batch starts at once.

        Changing the knobs of a running scanner keeps its cursor. Raises `UsageError` for knobs
        the kernel would refuse, or for `max_page_sharing` changed while pages are merged.
        """

    def stop_scanner(self, partition: int) -> None:
        """`run=0` for this partition: what is merged stays merged."""

    def set_max_page_sharing(self, partition: int, max_page_sharing: int) -> None:
        """Pages per KSM page, at least 2; only while nothing is merged (as the kernel)."""

    def advance(self, until_ns: int) -> list[FullScan]:
        """Let time pass to `until_ns`: writes up to and at it, batches that start before it.

        All in order of time; at equal times writes come first, then partitions in order. A batch
        happens whole at its start and costs CPU time until its end. Returns the full scans that
        were completed, in order of their batches. Raises `UsageError` if time would go backwards.
        """

    def merge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> MergeCounts:
        """Merge the pages [start_vpn, end_vpn) of `mm` now, within `partition`.

        No checksum gate: one call merges. Pages without a partner become candidates and stay so
        until matched, written or unmerged. Pages of other partitions and absent pages are left.
        """

    def unmerge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> UnmergeCounts:
        """Give each merged page of the range its own frame and forget its rmap item."""

    def counters(self) -> Counters:
        """The host's counters now; O(sites)."""

    def partition_counters(self) -> list[Counters]:
        """Counters of each partition of the plan, in order; O(sites)."""
