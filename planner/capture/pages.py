"""One address space: which pages to list, reading and hashing them, and what moved meanwhile.

The pages of a mapping are taken a chunk at a time:

    pagemap -> kpageflags, kpagecount -> read and hash -> pagemap again

A page whose entry changed in between (another frame, swapped out, gone) is done once more, and is
listed as unreadable when it changed again. So a hash belongs to the frame it is listed with, but
for a page that left its frame and came back between two looks; and a page that is written while
it is read has the hash of a mixture, as in any reader that does not stop its target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from planner.capture.procfs import (
    FIRST_SPECIAL_SWAP_TYPE,
    KPF_ANON,
    KPF_ANON_EXCLUSIVE,
    KPF_COMPOUND,
    KPF_HUGE,
    KPF_KSM,
    KPF_LOCKED,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    KPF_THP,
    KPF_ZERO_PAGE,
    PM_EXCLUSIVE,
    PM_FILE,
    PM_FRAME,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_TYPE,
    SWAP_TYPE_MARKER,
    U64,
    FrameTable,
    NumaMap,
    Pagemap,
    Vma,
)
from planner.capture.reader import PageReader
from planner.kernels.frameids import EMPTY, number_keys
from planner.kernels.pagehash import hash_pages, zero_hash
from planner.trace.schema import (
    PAGE_BYTES,
    PageColumns,
    PageFlag,
    RegionFlag,
    empty_pages,
    is_ksm_compatible,
)

__all__ = ["FrameIds", "PageCapture", "content_pages", "joined"]

U32 = npt.NDArray[np.uint32]

#: Pages between two looks at the pagemap: 16 MiB, some milliseconds.
_CHUNK_PAGES = 4096
#: Pages read at once and hashed while they are in the cache: 2 MiB.
_BATCH_PAGES = 512
#: Pages looked over at once where nothing is present.
_STRIDE_PAGES = 1 << 16
_ATTEMPTS = 2

_SMALLEST_TABLE = 1 << 12
_MIX = np.uint64(0x9E3779B97F4A7C15)
_PLACE = PM_PRESENT | PM_SWAP | PM_FRAME
_KPF_TO_FLAG = (
    (KPF_ANON, PageFlag.ANON), (KPF_KSM, PageFlag.KSM), (KPF_THP, PageFlag.THP),
    (KPF_COMPOUND, PageFlag.COMPOUND), (KPF_HUGE, PageFlag.HUGETLB),
    (KPF_LOCKED, PageFlag.LOCKED), (KPF_SWAPCACHE, PageFlag.SWAPCACHE),
    (KPF_ZERO_PAGE, PageFlag.ZERO_PAGE),
)  # fmt: skip


class FrameIds:
    """Small numbers for frames that are mapped more than once, stable from snapshot to snapshot.

    A frame keeps its number as long as every snapshot meets it with the same content. Only the
    frames of two snapshots are remembered, and the frame number itself leaves through nothing.
    """

    def __init__(self) -> None:
        self._before = _IdTable(_SMALLEST_TABLE)
        self._now = _IdTable(_SMALLEST_TABLE)
        self._next_id = 0
        # Compiles the kernel before the first snapshot's clock starts.
        self.of(np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def begin_snapshot(self) -> None:
        """Forget the frames that the last snapshot did not meet."""
        self._before, self._now = self._now, _IdTable(_SMALLEST_TABLE)

    def of(self, pfns: U64, hashes: U64) -> npt.NDArray[np.int32]:
        """Ids i32[n] of frames u64[n] with these contents u64[n]."""
        # Keyed by frame and content: a frame freed and used again for something else within one
        # snapshot, which is no sharing, does not make two different pages look like one.
        keys = pfns * _MIX ^ hashes
        self._now = self._now.with_room_for(len(keys))
        ids = np.empty(len(keys), np.int32)
        with np.errstate(over="ignore"):
            next_id = int(number_keys(keys, self._now.keys, self._now.ids, self._before.keys,
                                      self._before.ids, self._next_id, ids))
        self._now.n_used += len(keys)
        self._next_id = next_id
        return ids


class _IdTable:
    """The arrays of planner.kernels.frameids: `keys` u64[t], `ids` i32[t]."""

    def __init__(self, n_places: int) -> None:
        self.keys = np.zeros(n_places, np.uint64)
        self.ids = np.full(n_places, EMPTY, np.int32)
        #: At most this many places are taken (keys met again are counted again).
        self.n_used = 0

    def with_room_for(self, n_keys: int) -> _IdTable:
        """This table, or a larger copy, at most half full after `n_keys` more."""
        if 2 * (self.n_used + n_keys) <= len(self.ids):
            return self
        taken = self.ids != EMPTY
        self.n_used = int(taken.sum())
        n_places = len(self.ids)
        while 2 * (self.n_used + n_keys) > n_places:
            n_places *= 2
        if n_places == len(self.ids):
            return self
        # Twice the room needed, so that tables are rarely rebuilt.
        larger = _IdTable(2 * n_places)
        number_keys(self.keys[taken], larger.keys, larger.ids, self.keys, self.ids, 0,
                    np.empty(self.n_used, np.int32))
        larger.n_used = self.n_used
        return larger


def content_pages(vma: Vma, include: str) -> bool:
    """Whether the pages of a mapping are listed at all.

    With `include` "advised", those are the mappings KSM merges in now; with "anon", those it may
    merge in, advised or not; with "all", every mapping of memory (not of devices).
    """
    if vma.flags & (RegionFlag.PFNMAP | RegionFlag.IO):
        return False
    if include == "advised" and not vma.flags & RegionFlag.ADVISED:
        return False
    return include == "all" or is_ksm_compatible(vma.flags)


@dataclass(slots=True)
class PageCapture:
    """Captures the pages of address spaces, one after another, with the same settings.

    `keys` are the key words of planner.kernels.pagehash, `pace` is called with the number of pages
    done after each chunk and may sleep. `is_ksm_exact` is `marks_ksm_exactly` of this kernel.
    `skipped` counts pages by reason.
    """

    frames: FrameTable
    numa: NumaMap
    frame_ids: FrameIds
    keys: U64
    include: str
    pace: Callable[[int], None]
    is_ksm_exact: bool = True
    skipped: Counter[str] = field(default_factory=Counter)
    _buffer: npt.NDArray[np.uint8] = field(
        default_factory=lambda: np.zeros((_BATCH_PAGES, PAGE_BYTES), np.uint8))

    def capture(self, pagemap: Pagemap, reader: PageReader, vmas: Sequence[Vma],
                parts: list[PageColumns]) -> None:
        """Append the listed pages of `vmas` to `parts`, chunk by chunk.

        Raises TargetExitedError; then `parts` holds what was done before.
        """
        for vma in vmas:
            if not content_pages(vma, self.include):
                continue
            at = vma.start_vpn
            while at < vma.end_vpn:
                end = min(at + _CHUNK_PAGES, vma.end_vpn)
                part = self._chunk(pagemap, reader, vma, at, end)
                at = end
                if part is not None:
                    parts.append(part)
                    self.pace(len(part))
                else:
                    at = self._next_listed(pagemap, vma, at)
                    self.pace(0)

    def _next_listed(self, pagemap: Pagemap, vma: Vma, start: int) -> int:
        """The first page to list from `start` on: steps over the holes of sparse mappings."""
        for at in range(start, vma.end_vpn, _STRIDE_PAGES):
            index = self._listed(vma, pagemap.read(at, min(at + _STRIDE_PAGES, vma.end_vpn)))
            if len(index):
                return at + int(index[0])
        return vma.end_vpn

    def _listed(self, vma: Vma, entries: U64) -> npt.NDArray[np.intp]:
        """Indices of the entries that stand for a page to list (with others, see `_is_asked`)."""
        present = (entries & PM_PRESENT) != 0
        is_swap = (entries & PM_SWAP) != 0
        if is_swap.any():
            is_swap &= (entries & PM_SWAP_TYPE) != SWAP_TYPE_MARKER
        # Pagemap takes the huge zero page for a file's. There, only anonymous memory has it.
        if self.include == "all" or not vma.flags & (RegionFlag.FILE | RegionFlag.MAYSHARE):
            return np.flatnonzero(present | is_swap)
        return np.flatnonzero((present | is_swap) & ((entries & PM_FILE) == 0))

    def _is_asked(self, pages: PageColumns) -> npt.NDArray[np.bool_]:
        """Whether pages are of a kind that was asked for, by their flags."""
        if self.include == "all":
            return np.ones(len(pages), np.bool_)
        is_asked: npt.NDArray[np.bool_] = (
            pages.flags & np.uint32(PageFlag.FILE | PageFlag.SHMEM)) == 0
        return is_asked

    def _chunk(self, pagemap: Pagemap, reader: PageReader, vma: Vma, start: int, end: int
               ) -> PageColumns | None:
        entries = pagemap.read(start, end)
        index = self._listed(vma, entries)
        if not len(index):
            return None
        vpn = start + index
        entries = entries[index]
        n_pages = len(vpn)
        pages = PageColumns(vpn, np.zeros(n_pages, np.uint64), np.zeros(n_pages, np.uint32),
                            np.full(n_pages, -1, np.int32), np.full(n_pages, -1, np.int8))
        is_shared = np.zeros(n_pages, np.bool_)
        todo = np.arange(n_pages)
        # process_vm_readv, unlike /proc/PID/mem, obeys the mapping's protection.
        may_pin = bool(vma.flags & RegionFlag.READ)
        for attempt in range(_ATTEMPTS):
            self._fill(reader, vma, pages, entries, todo, is_shared, may_pin and attempt == 0)
            after = pagemap.read(start, end)[index]
            has_moved = ((after ^ entries)[todo] & _PLACE) != 0
            is_bad = (pages.flags[todo] & PageFlag.UNREADABLE) != 0
            if not (has_moved | is_bad).any():
                break
            if attempt + 1 < _ATTEMPTS:
                todo = todo[has_moved | is_bad]
                entries = after
            else:
                # Moved each time: what was read cannot be said to belong to a frame.
                moved = todo[has_moved]
                pages.flags[moved] = (pages.flags[moved] & PageFlag.ANON) | PageFlag.UNREADABLE
                is_shared[moved] = False
                self.skipped["moved_pages"] += len(moved)
                self.skipped["unreadable_pages"] += int((is_bad & ~has_moved).sum())
        pages.hash[~pages.has_hash] = 0
        if is_shared.any():
            pages.frame_id[is_shared] = self.frame_ids.of(entries[is_shared] & PM_FRAME,
                                                          pages.hash[is_shared])
        # Unmapped while the chunk was read: no page any more.
        still_there = np.zeros(n_pages, np.bool_)
        still_there[self._listed(vma, entries)] = True
        still_there &= self._is_asked(pages)
        return pages if still_there.all() else pages.take(still_there)

    def _fill(self, reader: PageReader, vma: Vma, pages: PageColumns, entries: U64,
              todo: npt.NDArray[np.intp], is_shared: npt.NDArray[np.bool_], may_pin: bool
              ) -> None:
        """Flags, frames and hashes of the pages `todo`, as their entries say."""
        todo_entries = entries[todo]
        is_present = (todo_entries & PM_PRESENT) != 0
        if not is_present.all():
            away = todo[~is_present]
            pages.flags[away] = _flags_of_absent(entries[away])
            pages.numa_node[away] = -1
            is_shared[away] = False
        here = todo[is_present]
        present = entries[here]
        pfns = present & PM_FRAME
        kpf = self.frames.flags(pfns)
        if not self.is_ksm_exact:
            kpf = _without_false_ksm(kpf, vma)
        found = np.zeros(len(here), np.uint32)
        for bit, flag in _KPF_TO_FLAG:
            found |= np.where(kpf & bit, np.uint32(flag), np.uint32(0))
        is_zero_page = (kpf & KPF_ZERO_PAGE) != 0
        is_file = ((present & PM_FILE) != 0) & ~is_zero_page
        if is_file.any():
            is_shmem = is_file & ((kpf & KPF_SWAPBACKED) != 0)
            found[is_file] |= np.uint32(PageFlag.FILE)
            found[is_shmem] ^= np.uint32(PageFlag.FILE | PageFlag.SHMEM)
        # Bit 56 says "mapped once" (kpagecount 1) exactly for small pages, which need no counting
        # then. All pages of a huge mapping have the bit of its first page.
        is_once = (present & PM_EXCLUSIVE) != 0
        is_many = ~is_once & ~is_zero_page
        counted = np.flatnonzero(kpf & KPF_COMPOUND)
        if len(counted):
            n_mappings = self.frames.n_mappings(pfns[counted])
            is_once[counted] = n_mappings == 1
            is_many[counted] = (n_mappings > 1) & ~is_zero_page[counted]
        found[is_once] |= np.uint32(PageFlag.EXCLUSIVE)
        # An exclusive page of another mapping's making (its fork has exited) may be unshared by
        # pinning: the page's own mark is asked as well as the number of mappings.
        may_be_pinned = is_once & ((present & PM_EXCLUSIVE) != 0) & (
            (kpf & (KPF_ANON | KPF_KSM | KPF_ANON_EXCLUSIVE)) == (KPF_ANON | KPF_ANON_EXCLUSIVE))
        if not may_pin:
            may_be_pinned[:] = False
        pages.hash[here[is_zero_page]] = zero_hash(self.keys)
        found[is_zero_page] |= np.uint32(PageFlag.ZERO)
        pages.flags[here] = found
        is_shared[here] = is_many
        pages.numa_node[here] = self.numa.node_of(pfns)
        self._hash(reader, pages, here[may_be_pinned], pin=True)
        self._hash(reader, pages, here[~may_be_pinned & ~is_zero_page], pin=False)

    def _hash(self, reader: PageReader, pages: PageColumns, wanted: npt.NDArray[np.intp], *,
              pin: bool) -> None:
        """Read and hash the pages at the indices `wanted`, a batch at a time."""
        for at in range(0, len(wanted), _BATCH_PAGES):
            batch = wanted[at:at + _BATCH_PAGES]
            is_read = reader.read(pages.vpn[batch], self._buffer, pin=pin)
            pages.hash[batch], is_zero = hash_pages(self._buffer[:len(batch)], self.keys)
            pages.flags[batch[is_zero & is_read]] |= np.uint32(PageFlag.ZERO)
            pages.flags[batch[~is_read]] |= np.uint32(PageFlag.UNREADABLE)


def _without_false_ksm(kpf: U64, vma: Vma) -> U64:
    """KPF bits u64[n] without KPF_KSM where a page of this mapping cannot be merged.

    For kernels that set it on every anonymous page. Merged pages are small and never marked
    exclusive, and smaps says how much of a mapping they are. What fork shares in a mapping that has
    merged pages, too, keeps the bit: nothing in /proc tells it apart.
    """
    is_false = (kpf & (KPF_ANON_EXCLUSIVE | KPF_COMPOUND)) != 0
    if vma.ksm_bytes == 0:
        is_false[:] = True
    return np.where(is_false, kpf & ~KPF_KSM, kpf)


def _flags_of_absent(entries: U64) -> U32:
    """Flags u32[n] of pages that are not in memory (swapped) or on their way (migration)."""
    special = (entries & PM_SWAP_TYPE) >= FIRST_SPECIAL_SWAP_TYPE
    flags = np.where(special, np.uint32(PageFlag.MIGRATION), np.uint32(PageFlag.SWAPPED))
    kind = np.where(entries & PM_FILE, np.uint32(PageFlag.FILE), np.uint32(PageFlag.ANON))
    return (flags | kind).astype(np.uint32)


def joined(parts: Sequence[PageColumns]) -> PageColumns:
    """Parts of one mm, ascending, as one."""
    if not parts:
        return empty_pages()
    return PageColumns(*(np.concatenate([getattr(part, name) for part in parts])
                         for name in ("vpn", "hash", "flags", "frame_id", "numa_node")))
