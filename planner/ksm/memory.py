"""Processes, mappings and page tables of a whole machine, as far as KSM sees or changes them.

Pages are rows of a `World`; here is what decides which frame they map: faults, fork, huge pages
(mm/memory.c, mm/huge_memory.c, mm/madvise.c, mm/mremap.c, kernel/fork.c). A range is [start, end)
of vpns. Left out: swap, migration, files, khugepaged, pins and the references of LRU batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.kernels import ksmstate as k

__all__ = ["Memory", "Mm", "Vma"]

#: Pages that one PMD entry maps.
PMD_PAGES = 512
#: F_FOLIO of a page of its own is its frame; huge pages are numbered from here.
_FIRST_FOLIO = 1 << 30
_EXCLUSIVE = 1 << 8  # in F_FLAGS: PageAnonExclusive, kept for pages of huge pages
#: The only partition: all mms of a machine may merge with one another.
PARTITION = 1


class AnonVma:
    """struct anon_vma: only whether there is one, and whether two mappings have the same."""


@dataclass(eq=False, slots=True)
class Vma:
    """A mapping: [start, end) of vpns."""

    start: int
    end: int
    is_huge: bool
    is_mergeable: bool = False
    anon_vma: AnonVma | None = None

    def part(self, start: int, end: int) -> Vma:
        """A mapping of [start, end) with everything else alike."""
        return Vma(start, end, self.is_huge, self.is_mergeable, self.anon_vma)


@dataclass(eq=False, slots=True)
class Mm:
    """A process's memory. `sites`: row of each vpn that ever had a page; `pmds`: by vpn // 512.

    A PMD entry is None (a page table), the number of a huge page, or -1 (the huge zero page).
    `slot` is its row of `World.slots`; `items_ahead` and `merging_ahead` are counted too much
    (6.1 copies a parent's counters).
    """

    slot: int
    vmas: list[Vma] = field(default_factory=list)
    pmds: dict[int, int | None] = field(default_factory=dict)
    sites: dict[int, int] = field(default_factory=dict)
    items_ahead: int = 0
    merging_ahead: int = 0

    def vma_at(self, vpn: int) -> Vma:
        """The mapping there; StopIteration if there is none."""
        return next(vma for vma in self.vmas if vma.start <= vpn < vma.end)

    def parts(self, start: int, end: int) -> list[tuple[Vma, int, int]]:
        """The mappings over [start, end), each with the stretch inside."""
        return [(vma, max(start, vma.start), min(end, vma.end)) for vma in self.vmas
                if vma.start < end and start < vma.end]


class Memory:
    """All mms and frames of one machine on a growing `World` (`w`) with exact trees.

    `kernel` is (6, 1), (6, 12) or (6, 18); `key` orders content numbers as memcmp orders their
    pages, and content 0 is all zero.
    """

    def __init__(self, kernel: tuple[int, int], key: Callable[[int], int], hz: int) -> None:
        self.kernel = kernel
        self._key = key
        self._ids: dict[int, int] = {}
        self._n_sites = 0
        self._n_slots = 2
        self._n_folios = 0
        self._mms: list[Mm] = []
        self._pmd_maps: dict[int, int] = {}
        self._is_order_old = False
        self.w = _empty_world(hz)
        self.w.host[k.H_HASH_FIRST] = self.w.host[k.H_SPLIT_ZEROES] = kernel >= (6, 11)
        self.content_id(0)

    # ---- tables -------------------------------------------------------------------------------

    def content_id(self, content: int) -> int:
        """The row of a content number, made when first seen."""
        found = self._ids.get(content)
        if found is None:
            found = self._ids[content] = len(self._ids)
            self._reserve("contents", found + 1)
            self._reserve("stable_tree", found + 1)
            self._reserve("keys", found + 1)
            self._reserve("zero", found + 1)
            self.w.contents[found] = -1
            self.w.contents[found, k.C_NODES] = 0
            self.w.keys[found] = self._key(content)
            self.w.zero[found] = content == 0
            self.w.host[k.H_N_ROWS] = found + 1
        return found

    def _reserve(self, name: str, n_rows: int) -> None:
        table: NDArray[np.generic] = getattr(self.w, name)
        if len(table) < n_rows:
            grown = np.zeros((max(n_rows, 2 * len(table)), *table.shape[1:]), table.dtype)
            grown[: len(table)] = table
            self.w = self.w._replace(**{name: grown})

    def _site(self, mm: Mm, vpn: int) -> int:
        """The row of a page, made when first needed."""
        found = mm.sites.get(vpn)
        if found is None:
            found = mm.sites[vpn] = self._n_sites
            self._n_sites += 1
            for name in ("sites", "unstable_tree", "mm", "vpn"):
                self._reserve(name, self._n_sites + 1)
            self._reserve("frames", 2 * self._n_sites + 2)
            self.w.sites[found] = -1
            self.w.sites[found, k.S_META] = k.M_VMA if mm.vma_at(vpn).is_mergeable else 0
            self.w.sites[found, k.S_PART] = PARTITION
            self.w.mm[found] = mm.slot
            self.w.vpn[found] = vpn
            self._is_order_old = True
        return found

    def settle_order(self) -> None:
        """Bring `order` and the slots' ranges up to date; the cursor keeps its address."""
        if not self._is_order_old:
            return
        self._is_order_old = False
        w = self.w
        part = w.parts[PARTITION]
        index, at = int(part[k.P_INDEX]), int(part[k.P_SLOT])
        start = int(w.slots[at, k.L_START])
        last_vpn = int(w.vpn[w.order[start + index - 1]]) if index else -1
        n = self._n_sites
        order = np.lexsort((w.vpn[:n], w.mm[:n])).astype(np.int32)
        slots, starts = np.unique(w.mm[order], return_index=True)
        w.slots[:, k.L_COUNT] = 0
        w.slots[slots, k.L_START] = starts
        w.slots[slots, k.L_COUNT] = np.diff(np.append(starts, n))
        self.w = w._replace(order=order)
        if index:
            start, count = w.slots[at, [k.L_START, k.L_COUNT]].tolist()
            vpns = w.vpn[order[start : start + count]]
            part[k.P_INDEX] = int(np.searchsorted(vpns, last_vpn, side="right"))

    def order_range(self, mm: Mm, start: int, end: int) -> tuple[int, int]:
        """Where in `order` the pages of [start, end) are."""
        self.settle_order()
        first, count = self.w.slots[mm.slot, [k.L_START, k.L_COUNT]].tolist()
        vpns = self.w.vpn[self.w.order[first : first + count]]
        return first + int(np.searchsorted(vpns, start)), first + int(np.searchsorted(vpns, end))

    def prepare_scan(self) -> None:
        """Make the tables ready for ksmd, with room for nodes that nobody notices are stale."""
        self.settle_order()
        self._reserve("nodes", int(self.w.host[k.H_NODE_TOP]) + self._n_sites + 2)

    def count(self, mm: Mm) -> tuple[int, int, int]:
        """Items of an mm, those of them in the stable tree, and its zero pages placed by KSM."""
        site = self.w.sites[list(mm.sites.values())]
        meta = site[:, k.S_META]
        nodes = site[meta & k.M_STABLE != 0, k.S_NODE]
        return (int((meta & k.M_ITEM != 0).sum()),
                int((self.w.nodes[nodes, k.N_FRAME] != k.REMOVED).sum()),
                int((meta & k.M_KSM_ZERO != 0).sum()))

    # ---- frames -------------------------------------------------------------------------------

    def _new_frame(self) -> int:
        host, frames = self.w.host, self.w.frames
        f = int(host[k.H_POOL_FREE])
        if f >= 0:
            host[k.H_POOL_FREE] = frames[f, k.F_SITE]
        else:
            f = int(host[k.H_POOL_TOP])
            host[k.H_POOL_TOP] = f + 1
        frames[f] = 0
        frames[f, k.F_NODE], frames[f, k.F_SITE] = k.NO_NODE, -1
        frames[f, k.F_OWNER] = PARTITION
        frames[f, k.F_FOLIO] = f
        return f

    def _map(self, s: int, f: int, content: int) -> None:
        """Let a page without a frame map frame f."""
        site = self.w.sites[s]
        site[k.S_CONTENT], site[k.S_FRAME] = content, f
        frame = self.w.frames[f]
        if frame[k.F_PHYS] == 0:
            self.w.parts[PARTITION, k.P_LIVE_PHYS] += 1
        frame[k.F_PHYS] += 1
        if frame[k.F_FOLIO] >= _FIRST_FOLIO:
            site[k.S_META] |= k.M_HUGE

    def _unmap(self, s: int) -> None:
        """Take the page of s away, whatever it maps."""
        w, site = self.w, self.w.sites[s]
        if site[k.S_META] & k.M_KSM_ZERO:
            w.parts[PARTITION, k.P_ZERO] -= 1
        if site[k.S_CONTENT] >= 0:
            f = int(site[k.S_FRAME])
            frame = w.frames[f]
            frame[k.F_PHYS] -= 1
            if frame[k.F_PHYS] == 0:
                w.parts[PARTITION, k.P_LIVE_PHYS] -= 1
                if frame[k.F_NODE] >= 0:
                    w.nodes[frame[k.F_NODE], k.N_FRAME] = k.STALE
                frame[k.F_NODE] = k.NO_NODE
                frame[k.F_SITE] = w.host[k.H_POOL_FREE]
                w.host[k.H_POOL_FREE] = f
        site[k.S_META] &= ~(k.M_MERGED | k.M_HUGE | k.M_KSM_ZERO)
        site[k.S_CONTENT], site[k.S_FRAME] = k.ABSENT, -1

    def _map_zero(self, s: int, is_by_ksm: bool = False) -> None:
        site = self.w.sites[s]
        site[k.S_CONTENT], site[k.S_FRAME] = k.ZERO_MAPPED, self.content_id(0)
        if is_by_ksm:
            site[k.S_META] |= k.M_KSM_ZERO

    def _content(self, mm: Mm, vpn: int) -> int:
        """S_CONTENT of a page, ABSENT where there is none."""
        s = mm.sites.get(vpn)
        return k.ABSENT if s is None else int(self.w.sites[s, k.S_CONTENT])

    # ---- huge pages ---------------------------------------------------------------------------

    def _pmd(self, mm: Mm, number: int) -> int | None:
        """The PMD entry, which is a page table since ksmd split the huge page."""
        folio = mm.pmds[number]
        if folio is not None and folio >= 0:
            s = mm.sites[number * PMD_PAGES]
            if not self.w.sites[s, k.S_META] & k.M_HUGE:
                mm.pmds[number] = folio = None
        return folio

    def _map_huge(self, mm: Mm, number: int) -> None:
        folio = _FIRST_FOLIO + self._n_folios
        self._n_folios += 1
        self._pmd_maps[folio] = 1
        mm.pmds[number] = folio
        zero = self.content_id(0)
        for vpn in range(number * PMD_PAGES, (number + 1) * PMD_PAGES):
            s = self._site(mm, vpn)
            f = self._new_frame()
            self.w.frames[f, k.F_FOLIO] = folio
            self.w.frames[f, k.F_FLAGS] = _EXCLUSIVE
            self._map(s, f, zero)

    def _split_pmd(self, mm: Mm, number: int) -> None:
        """`__split_huge_pmd`: the mapping becomes page table entries, the huge page stays."""
        folio = mm.pmds[number]
        assert folio is not None
        mm.pmds[number] = None
        if folio >= 0:
            self._pmd_maps[folio] -= 1
            return
        for vpn in range(number * PMD_PAGES, (number + 1) * PMD_PAGES):
            self._map_zero(self._site(mm, vpn))

    def _split_pmd_inside(self, mm: Mm, vpn: int) -> None:
        number = vpn // PMD_PAGES
        if vpn % PMD_PAGES and number in mm.pmds and self._pmd(mm, number) is not None:
            self._split_pmd(mm, number)

    def _mappers(self, folio: int) -> Iterator[int]:
        """Rows of pages that map a part of a huge page."""
        sites = self.w.sites[: self._n_sites]
        of_huge = np.flatnonzero(sites[:, k.S_META] & k.M_HUGE)
        frames = sites[of_huge, k.S_FRAME]
        yield from of_huge[self.w.frames[frames, k.F_FOLIO] == folio].tolist()

    def _mapcount(self, folio: int) -> int:
        """`folio_mapcount`: PMD entries count once, page table entries each."""
        n_maps = len(list(self._mappers(folio)))
        return n_maps - self._pmd_maps[folio] * (PMD_PAGES - 1)

    # ---- faults -------------------------------------------------------------------------------

    def write(self, mm: Mm, vpn: int, content: int) -> None:
        """A write fault (if need be), then a page of this content number."""
        self._fault_write(mm, vpn)
        self.w.sites[mm.sites[vpn], k.S_CONTENT] = self.content_id(content)

    def _is_huge_suitable(self, vma: Vma, number: int) -> bool:
        start = number * PMD_PAGES
        return vma.is_huge and vma.start <= start and start + PMD_PAGES <= vma.end

    def _fault_write(self, mm: Mm, vpn: int) -> None:
        vma = mm.vma_at(vpn)
        vma.anon_vma = vma.anon_vma or AnonVma()
        number = vpn // PMD_PAGES
        is_suitable = self._is_huge_suitable(vma, number)
        if number not in mm.pmds:
            if is_suitable:
                return self._map_huge(mm, number)
            mm.pmds[number] = None
        folio = self._pmd(mm, number)
        if folio is not None:
            if folio < 0:
                if self.kernel >= (6, 18) and is_suitable:  # do_huge_zero_wp_pmd
                    return self._map_huge(mm, number)
            else:  # do_huge_pmd_wp_page
                frames = self._frames_of_pmd(mm, number)
                if self._mapcount(folio) == 1:
                    self.w.frames[frames, k.F_FLAGS] |= _EXCLUSIVE
                if self.w.frames[frames[0], k.F_FLAGS] & _EXCLUSIVE:
                    return None
            self._split_pmd(mm, number)
        s = self._site(mm, vpn)
        if self.w.sites[s, k.S_CONTENT] < 0 or not self._can_reuse(mm, s):
            self._copy(s)
        return None

    def _frames_of_pmd(self, mm: Mm, number: int) -> NDArray[np.int32]:
        rows = [mm.sites[number * PMD_PAGES + i] for i in range(PMD_PAGES)]
        frames: NDArray[np.int32] = self.w.sites[rows, k.S_FRAME]
        return frames

    def _can_reuse(self, mm: Mm, s: int) -> bool:
        """`do_wp_page`, `wp_can_reuse_anon_folio`; a KSM page is always copied."""
        frame = self.w.frames[self.w.sites[s, k.S_FRAME]]
        if frame[k.F_NODE] != k.NO_NODE:
            return False
        if not self.w.sites[s, k.S_META] & k.M_HUGE:
            return bool(frame[k.F_PHYS] == 1)
        is_reused = bool(frame[k.F_FLAGS] & _EXCLUSIVE)
        if not is_reused and self.kernel >= (6, 18):
            slots = self.w.mm
            is_reused = all(slots[t] == mm.slot for t in self._mappers(int(frame[k.F_FOLIO])))
        elif not is_reused and self.kernel < (6, 12):
            is_reused = self._mapcount(int(frame[k.F_FOLIO])) == 1
        if is_reused:
            frame[k.F_FLAGS] |= _EXCLUSIVE
        return is_reused

    def _copy(self, s: int) -> None:
        """`wp_page_copy`, or a first page."""
        content = int(self.w.sites[s, k.S_CONTENT])
        if content >= 0 and self.w.frames[self.w.sites[s, k.S_FRAME], k.F_NODE] != k.NO_NODE:
            self.w.parts[PARTITION, k.P_COW] += 1
        self._unmap(s)
        self._map(s, self._new_frame(), max(content, self.content_id(0)))

    def read(self, mm: Mm, vpn: int) -> None:
        """A read fault: an absent page maps the shared zero page."""
        vma = mm.vma_at(vpn)
        number = vpn // PMD_PAGES
        if number not in mm.pmds:
            if self._is_huge_suitable(vma, number):
                vma.anon_vma = vma.anon_vma or AnonVma()
                mm.pmds[number] = -1
            else:
                mm.pmds[number] = None
        if self._pmd(mm, number) is None and self._content(mm, vpn) == k.ABSENT:
            self._map_zero(self._site(mm, vpn))

    def frame_at(self, mm: Mm, vpn: int) -> int:
        """The frame of a page; ABSENT, or ZERO_MAPPED."""
        if mm.pmds.get(vpn // PMD_PAGES) == -1:
            return k.ZERO_MAPPED
        content = self._content(mm, vpn)
        return content if content < 0 else int(self.w.sites[mm.sites[vpn], k.S_FRAME])

    # ---- mappings -----------------------------------------------------------------------------

    def map(self, mm: Mm, start: int, end: int, is_huge: bool) -> None:
        """A private anonymous mapping where nothing is mapped."""
        mm.vmas = sorted([*mm.vmas, Vma(start, end, is_huge)], key=lambda vma: vma.start)
        self.join(mm)

    def isolate(self, mm: Mm, vma: Vma, start: int, end: int) -> Vma:
        """`split_vma` on both sides: the mapping that is exactly [start, end)."""
        pieces = [vma.part(low, high) for low, high in
                  ((vma.start, start), (start, end), (end, vma.end)) if low < high]
        at = mm.vmas.index(vma)
        mm.vmas[at : at + 1] = pieces
        for edge in (start, end):
            if vma.start < edge < vma.end:
                self._split_pmd_inside(mm, edge)
        return next(piece for piece in pieces if piece.start == start)

    def join(self, mm: Mm) -> None:
        """`vma_merge`: neighbours that are alike become one; pages are told where they lie."""
        joined: list[Vma] = []
        for vma in mm.vmas:
            last = joined[-1] if joined else None
            if (last is not None and last.end == vma.start and last.is_huge == vma.is_huge
                    and last.is_mergeable == vma.is_mergeable
                    and (last.anon_vma is vma.anon_vma or None in (last.anon_vma, vma.anon_vma))):
                last.end = vma.end
                last.anon_vma = last.anon_vma or vma.anon_vma
            else:
                joined.append(vma)
        mm.vmas = joined
        self._mark_mergeable(mm)

    def _mark_mergeable(self, mm: Mm) -> None:
        vpns = np.fromiter(mm.sites.keys(), np.int64, len(mm.sites))
        rows = np.fromiter(mm.sites.values(), np.int64, len(mm.sites))
        inside = np.zeros(len(vpns), bool)
        for vma in mm.vmas:
            if vma.is_mergeable:
                inside |= (vpns >= vma.start) & (vpns < vma.end)
        meta = self.w.sites[rows, k.S_META]
        self.w.sites[rows, k.S_META] = np.where(inside, meta | k.M_VMA, meta & ~k.M_VMA)
        self.w.slots[mm.slot, k.L_MERGEABLE] = any(vma.is_mergeable for vma in mm.vmas)

    def zap(self, mm: Mm, start: int, end: int) -> None:
        """Page table entries go; a huge PMD entry goes whole or is split first."""
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            if number not in mm.pmds:
                continue
            low, high = max(start, number * PMD_PAGES), min(end, (number + 1) * PMD_PAGES)
            folio = self._pmd(mm, number)
            if folio is not None:
                if high - low == PMD_PAGES:
                    del mm.pmds[number]
                    if folio < 0:
                        continue
                    self._pmd_maps[folio] -= 1
                else:
                    self._split_pmd(mm, number)
            for vpn in range(low, high):
                if self._content(mm, vpn) != k.ABSENT:
                    self._unmap(mm.sites[vpn])

    def unmap(self, mm: Mm, start: int, end: int) -> None:
        """munmap."""
        for vma, low, high in mm.parts(start, end):
            mm.vmas.remove(self.isolate(mm, vma, low, high))
            self.zap(mm, low, high)
        self._free_tables(mm, start, end)
        self._mark_mergeable(mm)

    def _free_tables(self, mm: Mm, start: int, end: int) -> None:
        """A page table goes when no mapping reaches into its 2 MiB."""
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            if not mm.parts(number * PMD_PAGES, (number + 1) * PMD_PAGES):
                mm.pmds.pop(number, None)

    def dontneed(self, mm: Mm, start: int, end: int) -> None:
        """MADV_DONTNEED; 6.18 (CONFIG_PT_RECLAIM) frees page tables zapped as a whole."""
        for _, low, high in mm.parts(start, end):
            self.zap(mm, low, high)
            if self.kernel >= (6, 18):
                for number in range(-(-low // PMD_PAGES), high // PMD_PAGES):
                    mm.pmds.pop(number, None)

    def move(self, mm: Mm, start: int, end: int, new_start: int) -> None:
        """mremap to a free place, of pages of one mapping without KSM pages."""
        offset = new_start - start
        (vma, *_), = mm.parts(start, end)
        old = self.isolate(mm, vma, start, end)
        new = old.part(new_start, new_start + end - start)
        mm.vmas = sorted([*mm.vmas, new], key=lambda one: one.start)
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            if number not in mm.pmds:
                continue
            there = number + offset // PMD_PAGES
            folio = self._pmd(mm, number)
            if folio is not None:
                mm.pmds[there] = folio
                del mm.pmds[number]
            else:
                mm.pmds.setdefault(there, None)
            for vpn in range(max(start, number * PMD_PAGES), min(end, (number + 1) * PMD_PAGES)):
                if self._content(mm, vpn) != k.ABSENT:
                    self._move_page(mm.sites[vpn], self._site(mm, vpn + offset))
        mm.vmas.remove(old)
        self._free_tables(mm, start, end)
        self.join(mm)

    def _move_page(self, s: int, t: int) -> None:
        """The page of s is at t now; items stay where they are."""
        kept = k.M_HUGE | k.M_KSM_ZERO
        old, new = self.w.sites[s], self.w.sites[t]
        new[k.S_CONTENT], new[k.S_FRAME] = old[k.S_CONTENT], old[k.S_FRAME]
        new[k.S_META] |= old[k.S_META] & kept
        old[k.S_CONTENT], old[k.S_FRAME] = k.ABSENT, -1
        old[k.S_META] &= ~(kept | k.M_MERGED)

    # ---- processes ----------------------------------------------------------------------------

    def new_mm(self) -> Mm:
        """An mm with nothing mapped, not registered."""
        mm = Mm(self._n_slots)
        self._n_slots += 1
        self._reserve("slots", self._n_slots)
        self._mms.append(mm)
        return mm

    def copy(self, parent: Mm) -> tuple[Mm, int]:
        """fork: the child, and how many zero pages that KSM placed it maps.

        Mappings that never had an anonymous page are not copied.
        """
        child = self.new_mm()
        n_zero = 0
        for vma in parent.vmas:
            copy = vma.part(vma.start, vma.end)
            child.vmas.append(copy)
            if vma.anon_vma is None:
                continue
            copy.anon_vma = AnonVma()
            for number in range(vma.start // PMD_PAGES, (vma.end - 1) // PMD_PAGES + 1):
                if number not in parent.pmds:
                    continue
                folio = self._pmd(parent, number)
                child.pmds[number] = folio
                if folio is not None and folio >= 0:
                    self._pmd_maps[folio] += 1
                for vpn in range(max(vma.start, number * PMD_PAGES),
                                 min(vma.end, (number + 1) * PMD_PAGES)):
                    content = self._content(parent, vpn)
                    if content == k.ABSENT:
                        continue
                    s, t = parent.sites[vpn], self._site(child, vpn)
                    if content >= 0:
                        f = int(self.w.sites[s, k.S_FRAME])
                        self._map(t, f, content)
                        self.w.frames[f, k.F_FLAGS] &= ~_EXCLUSIVE
                        if not self.w.sites[s, k.S_META] & k.M_HUGE:
                            self.w.sites[t, k.S_META] &= ~k.M_HUGE
                    else:
                        is_by_ksm = bool(self.w.sites[s, k.S_META] & k.M_KSM_ZERO)
                        self._map_zero(t, is_by_ksm)
                        n_zero += is_by_ksm
        self._mark_mergeable(child)
        return child, n_zero

    def release(self, mm: Mm) -> None:
        """`exit_mmap`."""
        for vma in list(mm.vmas):
            self.unmap(mm, vma.start, vma.end)
        self._mms.remove(mm)


def _empty_world(hz: int) -> k.World:
    """A machine without a page; partition 1 has the ring of mm slots."""
    i32, i64 = np.int32, np.int64
    host = np.zeros(k.HOST_FIELDS, i64)
    host[[k.H_NODE_FREE, k.H_POOL_FREE]] = -1
    host[k.H_JIFFY_NS] = 10**9 // hz
    host[[k.H_EXACT, k.H_FOLIOS]] = 1
    parts = np.zeros((PARTITION + 1, k.PART_FIELDS), i64)
    parts[PARTITION, [k.P_PLAN, k.P_HEAD, k.P_SLOT]] = PARTITION
    parts[PARTITION, [k.P_STABLE_ROOT, k.P_UNSTABLE_ROOT]] = -1
    slots = np.zeros((64, k.SLOT_FIELDS), i32)
    slots[PARTITION, [k.L_NEXT, k.L_PREV]] = PARTITION
    cost = np.zeros(k.COST_FIELDS, i64)
    cost[k.COST_BATCH] = 1

    def table(n_columns: int) -> NDArray[np.int32]:
        return np.zeros((64, n_columns), i32)

    return k.World(
        sites=table(k.SITE_FIELDS), frames=table(k.FRAME_FIELDS),
        contents=table(k.CONTENT_FIELDS), nodes=table(k.NODE_FIELDS), slots=slots, parts=parts,
        host=host, order=np.zeros(0, i32), zero=np.zeros(64, np.uint8), cost=cost,
        mm=np.zeros(64, i32), vpn=np.zeros(64, i64), event_time=np.zeros(0, i64),
        events=np.zeros((0, 3), i32), log=np.zeros((4, 3), i64),
        unstable_tree=table(k.TREE_FIELDS), stable_tree=table(k.TREE_FIELDS),
        keys=np.zeros(64, np.uint64))
