"""Tables that a replay is made of, and what it tells: counters, finished scans, calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.kernels import ksmstate as k

__all__ = ["BYTES_PER_PAGE", "UNSEEN", "Counters", "EventTable", "FullScan", "MergeCounts",
           "SiteTable", "UnmergeCounts", "counters_of"]

BYTES_PER_PAGE = 4096
#: The content of a page that is there, but no part of a sample of the host's pages now.
UNSEEN = k.UNSEEN
#: Sizes of the kernel's records on x86-64: struct ksm_rmap_item, ksm_stable_node, ksm_mm_slot.
RMAP_ITEM_BYTES = 64
STABLE_NODE_BYTES = 64
MM_SLOT_BYTES = 48

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class SiteTable:
    """Every page that ever exists, in scan order: mm list order, then ascending vpn.

    All columns have shape (n_sites,). `mm` i32: any ids, but the sites of one mm lie together.
    `vpn` i64 ascending within a mm. `domain` i32: index into `domain_is_sensitive`.
    `partition` i32: 0..n_partitions-1, or -1 for none. `is_eligible` u8: merging may touch it
    (advised, compatible, not excluded); never visited otherwise, though its frame counts.
    `content` i32: content at time 0, -1 = absent, `UNSEEN` = there, but not in a sample. Ids are
    dense over the host and numbered within partitions: equal (partition, content) <=> equal id
    (sites of partition -1 have ids of their own too, or any id of the right zero-ness); numbering
    them in scan order is fastest.
    `frame` i32: base frame at time 0, equal for sites that share by fork, ignored where absent.
    `is_huge` u8 (None: nowhere): the page is part of a transparent huge page when it appears; all
    such sites of one mm and 2 MiB are the same one.
    """

    mm: I32
    vpn: I64
    domain: I32
    partition: I32
    is_eligible: U8
    content: I32
    frame: I32
    is_huge: U8 | None = None

    def __len__(self) -> int:
        return len(self.mm)


@dataclass(frozen=True, eq=False)
class EventTable:
    """Writes, births and deaths of pages: columns of shape (n_events,), ascending `time_ns`.

    `time_ns` i64 (at equal times the order of the table holds), `site` i32, `content` i32
    (-1 = the page goes, `UNSEEN` = it leaves the sample), `frame` i32: the base frame after the
    write. A fresh id for an ordinary write; one id for sites born sharing; the id of the page's
    current base frame means "written in place" (by all that share it, at the same time) or, for a
    site that appears, "born by fork from the page that has it": it then shares that page's
    physical frame, merged or not.
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

    tried = merged + candidates + already merged + fork-shared twins + refused + failed (sub-pages
    of one huge page, zero pages that a split took, searches that met a vanished page).
    `requested_pages`
    is the length of the range; tried are those present, eligible and of the partition.
    `merged_pages`: now share a KSM page because of this call (the candidate that a page was
    paired with was counted when it became one). `candidate_pages`: wait for a partner.
    `twin_pages`: their only partner so far is mapped to the very same frame. `refused_pages`:
    still held by an unlinked partition. `cost_ns` is the caller's CPU time. `next_vpn`: where a
    call goes on that was stopped, else the end of the range.
    """

    requested_pages: int
    tried_pages: int
    merged_pages: int
    candidate_pages: int
    already_pages: int
    twin_pages: int
    refused_pages: int
    failed_pages: int
    cost_ns: int
    next_vpn: int


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
      `pages_skipped`, `full_scans`, `ksm_zero_pages`, `stable_node_chains`, `stable_node_dups`,
      `general_profit_bytes`: the kernel's files of those names (mm/ksm.c); shared + sharing +
      unshared + volatile = `rmap_items`. Pages a synchronous merge visited count as scanned
    - `pages_to_scan`: the file's value now, which an advisor moves (the largest of several)
    - `stable_nodes`: those in the tree (chain members counted, heads not)
    - `mm_slots`: mms with a rmap item (the kernel also counts those not scanned yet)
    - `metadata_bytes`: 64 per rmap item, 64 per stable node and chain head, 48 per mm slot
    - `merge_cpu_ns`: ksmd (`scanner_cpu_ns`), calls that merge or tell the kernel something
      (`caller_cpu_ns`) and calls that unmerge (`unmerge_cpu_ns`); of the first two,
      `merging_cpu_ns` went into visits that merged a page and `split_cpu_ns` into splitting
      `huge_splits` huge pages; `cow_cpu_ns`: paid by writers, not in it
    - `cow_breaks`: writes to merged pages
    - `cross_domain_pages`: pages mapping a KSM page whose sharers belong to more than one domain;
      `cross_domain_sensitive_pages`: those with a sharer in a sensitive domain
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
    pages_skipped: int
    full_scans: int
    ksm_zero_pages: int
    general_profit_bytes: int
    pages_to_scan: int
    rmap_items: int
    stable_nodes: int
    stable_node_chains: int
    stable_node_dups: int
    mm_slots: int
    metadata_bytes: int
    merge_cpu_ns: int
    cow_breaks: int
    cow_cpu_ns: int
    cross_domain_pages: int
    cross_domain_sensitive_pages: int
    unmerge_frames: int
    scanner_cpu_ns: int
    caller_cpu_ns: int
    merging_cpu_ns: int
    split_cpu_ns: int
    unmerge_cpu_ns: int
    huge_splits: int


def counters_of(parts: I64, out: I64, split_ns: int) -> Counters:
    """Sums over rows of `parts`; `out`, what `ksmcalls.sample` counted, is summed already.

    `split_ns`: the cost of splitting one huge page.
    """
    p: list[int] = parts.sum(axis=0).tolist()
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
        pages_skipped=p[k.P_SKIPPED],
        full_scans=p[k.P_FULL_SCANS],
        ksm_zero_pages=p[k.P_ZERO],
        general_profit_bytes=(sharing + p[k.P_ZERO]) * BYTES_PER_PAGE - items * RMAP_ITEM_BYTES,
        pages_to_scan=int(parts[:, k.P_PAGES].max(initial=0)),
        rmap_items=items,
        stable_nodes=nodes,
        stable_node_chains=chains,
        stable_node_dups=p[k.P_DUPS],
        mm_slots=mm_slots,
        metadata_bytes=items * RMAP_ITEM_BYTES
        + (nodes + chains) * STABLE_NODE_BYTES
        + mm_slots * MM_SLOT_BYTES,
        merge_cpu_ns=p[k.P_CPU_NS] + p[k.P_BOOKED_NS],
        cow_breaks=p[k.P_COW],
        cow_cpu_ns=p[k.P_COW_NS],
        cross_domain_pages=o[k.OUT_CROSS],
        cross_domain_sensitive_pages=o[k.OUT_CROSS_SENSITIVE],
        unmerge_frames=o[k.OUT_UNMERGE],
        scanner_cpu_ns=p[k.P_CPU_NS] - p[k.P_CALL_NS] - p[k.P_UNMERGE_NS],
        caller_cpu_ns=p[k.P_CALL_NS] + p[k.P_BOOKED_NS],
        merging_cpu_ns=p[k.P_MERGING_NS],
        split_cpu_ns=p[k.P_SPLITS] * split_ns,
        unmerge_cpu_ns=p[k.P_UNMERGE_NS],
        huge_splits=p[k.P_SPLITS],
    )
