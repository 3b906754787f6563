"""Processes, VMAs, page tables and page frames, as far as KSM sees or changes them.

mm/memory.c, mm/huge_memory.c, mm/migrate.c (the zero pages of a split), mm/madvise.c, mm/mremap.c,
kernel/fork.c. Pages are named by vpn; a range is [start, end). One THP is 512 pages. Left out:
swap, migration, files, khugepaged, pins, and the references that per-CPU LRU batches hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.oracles.kernel_ksm.ksm import MmSlot, StableNode

#: Pages of one PMD entry.
PMD_PAGES = 512


class Folio:
    """A small page or a THP. `n_pmd_maps`: PMD entries that map it whole."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self.n_pmd_maps = 0
        self.pages: list[Page] = []

    @property
    def is_large(self) -> bool:
        return self.n_pages > 1

    @property
    def mapcount(self) -> int:
        """folio_mapcount: PMD mappings count once, PTE mappings each."""
        return self.n_pmd_maps + sum(page.n_pte_maps for page in self.pages)


class Page:
    """A page frame. `node`: its stable node.

    `is_ksm` without one: inside a merge, or what a merge that failed half-way left to a fork.
    """

    __slots__ = ("content", "folio", "index", "is_exclusive", "is_free", "is_ksm", "n_pte_maps",
                 "node", "pfn")

    def __init__(self, folio: Folio, index: int, pfn: int) -> None:
        self.folio, self.index, self.pfn = folio, index, pfn
        self.content = 0
        self.n_pte_maps = 0
        self.is_ksm = False
        self.node: StableNode | None = None
        self.is_exclusive = True
        self.is_free = False


@dataclass(eq=False, slots=True)
class Pte:
    """A present PTE. Without a page it maps the shared zero page; `is_ksm_zero`: ksmd put it."""

    page: Page | None
    is_ksm_zero: bool = False


@dataclass(eq=False, slots=True)
class HugePmd:
    """A PMD entry that maps a THP, or the huge zero page."""

    folio: Folio | None


class PteTable(dict[int, Pte]):
    """A page table: present PTEs by vpn. An empty one still keeps its PMD from becoming huge."""


class AnonVma:
    """struct anon_vma: only whether there is one, and whether two VMAs have the same."""


@dataclass(eq=False)
class Vma:
    start: int
    end: int
    is_huge: bool
    is_mergeable: bool = False
    anon_vma: AnonVma | None = None

    def part(self, start: int, end: int) -> Vma:
        """A VMA over [start, end) with everything else alike."""
        return Vma(start, end, self.is_huge, self.is_mergeable, self.anon_vma)


@dataclass(eq=False)
class Mm:
    """struct mm_struct. `is_registered` is MMF_VM_MERGEABLE, `is_merge_any` MMF_VM_MERGE_ANY."""

    number: int
    vmas: list[Vma] = field(default_factory=list)
    pmds: dict[int, PteTable | HugePmd] = field(default_factory=dict)
    is_exited: bool = False
    is_registered: bool = False
    is_merge_any: bool = False
    slot: MmSlot | None = None
    ksm_rmap_items: int = 0
    ksm_merging_pages: int = 0
    ksm_zero_pages: int = 0

    def vma_at(self, vpn: int) -> Vma | None:
        return next((vma for vma in self.vmas if vma.start <= vpn < vma.end), None)

    def pte_at(self, vpn: int) -> Pte | None:
        """The PTE, or None if not present or inside a huge PMD."""
        table = self.pmds.get(vpn // PMD_PAGES)
        return table.get(vpn) if isinstance(table, PteTable) else None

    def page_at(self, vpn: int) -> Page | None:
        """The anonymous page mapped there (vm_normal_page): None for holes and zero pages."""
        entry = self.pmds.get(vpn // PMD_PAGES)
        if isinstance(entry, HugePmd):
            return entry.folio.pages[vpn % PMD_PAGES] if entry.folio is not None else None
        pte = entry.get(vpn) if entry is not None else None
        return pte.page if pte is not None else None

    def first_page(self, start: int, end: int) -> tuple[int, Page] | None:
        """The first anonymous page in [start, end): ksm_next_page_pmd_entry over a VMA."""
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            entry = self.pmds.get(number)
            low = max(start, number * PMD_PAGES)
            high = min(end, (number + 1) * PMD_PAGES)
            if isinstance(entry, HugePmd):
                if entry.folio is not None:
                    return low, entry.folio.pages[low % PMD_PAGES]
            elif entry:
                for vpn in range(low, high):
                    pte = entry.get(vpn)
                    if pte is not None and pte.page is not None:
                        return vpn, pte.page
        return None


class Memory:
    """All mms and page frames of one machine.

    `kernel` is (6, 1), (6, 12) or (6, 18). Counts `cow_ksm`, `ksm_zero_pages` and frames in use.
    """

    def __init__(self, kernel: tuple[int, int]) -> None:
        self.kernel = kernel
        self.mms: list[Mm] = []
        self.cow_ksm = 0
        self.ksm_zero_pages = 0
        self.n_frames = 0
        self._pfns = itertools.count()

    # ---- frames -------------------------------------------------------------------------------

    def alloc(self, n_pages: int, content: int = 0) -> Folio:
        folio = Folio(n_pages)
        folio.pages = [Page(folio, i, next(self._pfns)) for i in range(n_pages)]
        for page in folio.pages:
            page.content = content
        self.n_frames += n_pages
        return folio

    def map_pte(self, page: Page) -> Pte:
        page.n_pte_maps += 1
        return Pte(page)

    def unmap_pte(self, page: Page) -> None:
        page.n_pte_maps -= 1
        self._free_unmapped(page.folio)

    def unmap_pmd(self, folio: Folio) -> None:
        folio.n_pmd_maps -= 1
        self._free_unmapped(folio)

    def _free_unmapped(self, folio: Folio) -> None:
        if folio.mapcount == 0:
            self.n_frames -= folio.n_pages
            for page in folio.pages:
                page.is_free = True

    # ---- splitting ----------------------------------------------------------------------------

    def split_pmd(self, mm: Mm, number: int) -> None:
        """__split_huge_pmd: the mapping becomes PTEs, the folio stays whole."""
        entry = mm.pmds[number]
        assert isinstance(entry, HugePmd)
        table = PteTable()
        folio = entry.folio
        for i in range(PMD_PAGES):
            if folio is None:
                table[number * PMD_PAGES + i] = Pte(None)
            else:
                page = folio.pages[i]
                page.is_exclusive = folio.pages[0].is_exclusive
                table[number * PMD_PAGES + i] = self.map_pte(page)
        if folio is not None:
            folio.n_pmd_maps -= 1
        mm.pmds[number] = table

    def split_pmd_inside(self, mm: Mm, vpn: int) -> None:
        """split_huge_pmd_if_needed: no VMA may end inside a huge PMD."""
        if vpn % PMD_PAGES and isinstance(mm.pmds.get(vpn // PMD_PAGES), HugePmd):
            self.split_pmd(mm, vpn // PMD_PAGES)

    def split_folio(self, folio: Folio, n_extra_refs: int) -> bool:
        """split_huge_page with this many references besides the mappings (the caller has one).

        Since 6.12 zero-filled pages are then mapped to the shared zero page in every mm that maps
        them (try_to_map_unused_to_zeropage), uncounted by KSM. Pages nobody maps are freed.
        """
        if n_extra_refs != 1:
            return False
        for mm in self.mms:
            for number, entry in list(mm.pmds.items()):
                if isinstance(entry, HugePmd) and entry.folio is folio:
                    self.split_pmd(mm, number)
        if self.kernel >= (6, 12):
            for mm in self.mms:
                for entry in mm.pmds.values():
                    if isinstance(entry, PteTable):
                        for pte in entry.values():
                            page = pte.page
                            if page is not None and page.folio is folio and page.content == 0:
                                pte.page = None
                                page.n_pte_maps -= 1
        self.n_frames -= folio.n_pages
        for page in folio.pages:
            page.folio = Folio(1)
            page.folio.pages = [page]
            page.index = 0
            page.is_free = page.n_pte_maps == 0
            self.n_frames += page.n_pte_maps > 0
        return True

    # ---- faults -------------------------------------------------------------------------------

    def _is_thp_suitable(self, vma: Vma, number: int) -> bool:
        start = number * PMD_PAGES
        return vma.is_huge and vma.start <= start and start + PMD_PAGES <= vma.end

    def _table(self, mm: Mm, vpn: int) -> PteTable:
        table = mm.pmds.setdefault(vpn // PMD_PAGES, PteTable())
        assert isinstance(table, PteTable)
        return table

    @staticmethod
    def _anon_vma_prepare(vma: Vma) -> None:
        if vma.anon_vma is None:
            vma.anon_vma = AnonVma()

    def _map_new_thp(self, mm: Mm, number: int) -> Folio:
        folio = self.alloc(PMD_PAGES)
        folio.n_pmd_maps = 1
        mm.pmds[number] = HugePmd(folio)
        return folio

    def fault_write(self, mm: Mm, vpn: int) -> Page:
        """Make [vpn] writable; the page to write to."""
        vma = mm.vma_at(vpn)
        assert vma is not None, f"{vpn:#x} is not mapped"
        number = vpn // PMD_PAGES
        self._anon_vma_prepare(vma)
        entry = mm.pmds.get(number)
        if entry is None and self._is_thp_suitable(vma, number):
            return self._map_new_thp(mm, number).pages[vpn % PMD_PAGES]
        if isinstance(entry, HugePmd):
            folio = entry.folio
            if folio is None and self.kernel >= (6, 18) and self._is_thp_suitable(vma, number):
                return self._map_new_thp(mm, number).pages[vpn % PMD_PAGES]  # do_huge_zero_wp_pmd
            if folio is not None:  # do_huge_pmd_wp_page
                if folio.mapcount == 1:
                    folio.pages[0].is_exclusive = True
                if folio.pages[0].is_exclusive:
                    return folio.pages[vpn % PMD_PAGES]
            self.split_pmd(mm, number)
        table = self._table(mm, vpn)
        pte = table.get(vpn)
        if pte is None:
            page = self.alloc(1).pages[0]
            table[vpn] = self.map_pte(page)
            return page
        if pte.page is not None and self._can_reuse(mm, pte.page):
            pte.page.is_exclusive = True
            return pte.page
        return self._wp_page_copy(mm, pte)

    def _can_reuse(self, mm: Mm, page: Page) -> bool:
        """do_wp_page, wp_can_reuse_anon_folio. A KSM page is always copied."""
        if page.is_ksm:
            return False
        if page.is_exclusive or not page.folio.is_large:
            return page.is_exclusive or page.n_pte_maps == 1
        if self.kernel >= (6, 18):
            return all(other is mm for other in self._mappers(page.folio))
        return self.kernel < (6, 12) and page.folio.mapcount == 1

    def _mappers(self, folio: Folio) -> Iterator[Mm]:
        for mm in self.mms:
            for entry in mm.pmds.values():
                if isinstance(entry, HugePmd):
                    if entry.folio is folio:
                        yield mm
                elif any(pte.page is not None and pte.page.folio is folio
                         for pte in entry.values()):
                    yield mm

    def _wp_page_copy(self, mm: Mm, pte: Pte) -> Page:
        """wp_page_copy of a shared, KSM or zero page."""
        old = pte.page
        new = self.alloc(1, old.content if old is not None else 0).pages[0]
        new.n_pte_maps = 1
        pte.page = new
        if old is None:
            self._forget_ksm_zero(mm, pte)
        else:
            self.cow_ksm += old.is_ksm
            self.unmap_pte(old)
        return new

    def _forget_ksm_zero(self, mm: Mm, pte: Pte) -> None:
        """ksm_might_unmap_zero_page (6.6+; earlier kernels do not mark such PTEs)."""
        if pte.is_ksm_zero:
            pte.is_ksm_zero = False
            mm.ksm_zero_pages -= 1
            self.ksm_zero_pages -= 1

    def fault_read(self, mm: Mm, vpn: int) -> None:
        vma = mm.vma_at(vpn)
        assert vma is not None, f"{vpn:#x} is not mapped"
        number = vpn // PMD_PAGES
        if number not in mm.pmds and self._is_thp_suitable(vma, number):
            self._anon_vma_prepare(vma)
            mm.pmds[number] = HugePmd(None)
        if not isinstance(mm.pmds.get(number), HugePmd):
            self._table(mm, vpn).setdefault(vpn, Pte(None))

    def break_ksm(self, mm: Mm, vpn: int) -> None:
        """Copy a KSM page (and since 6.6 a zero page that ksmd placed) in the caller's context."""
        pte = mm.pte_at(vpn)
        if pte is not None and (pte.is_ksm_zero or (pte.page is not None and pte.page.is_ksm)):
            self._wp_page_copy(mm, pte)

    # ---- mappings -----------------------------------------------------------------------------

    def parts(self, mm: Mm, start: int, end: int) -> list[tuple[Vma, int, int]]:
        """The VMAs over [start, end), each with the stretch inside."""
        return [(vma, max(start, vma.start), min(end, vma.end)) for vma in mm.vmas
                if vma.start < end and start < vma.end]

    def mmap(self, mm: Mm, start: int, end: int, is_huge: bool) -> Vma:
        assert not self.parts(mm, start, end), "mapped already"
        vma = Vma(start, end, is_huge)
        mm.vmas = sorted([*mm.vmas, vma], key=lambda one: one.start)
        return vma

    def isolate(self, mm: Mm, vma: Vma, start: int, end: int) -> Vma:
        """split_vma on both sides: the VMA that is exactly [start, end)."""
        pieces = [vma.part(low, high) for low, high in
                  ((vma.start, start), (start, end), (end, vma.end)) if low < high]
        at = mm.vmas.index(vma)
        mm.vmas[at : at + 1] = pieces
        for edge in (start, end):
            if vma.start < edge < vma.end:
                self.split_pmd_inside(mm, edge)
        return next(piece for piece in pieces if piece.start == start)

    def join(self, mm: Mm) -> None:
        """vma_merge: neighbours that are alike become one."""
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

    def zap(self, mm: Mm, start: int, end: int) -> None:
        """zap_page_range: PTEs go; a huge PMD goes whole or is split first."""
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            entry = mm.pmds.get(number)
            low, high = max(start, number * PMD_PAGES), min(end, (number + 1) * PMD_PAGES)
            if isinstance(entry, HugePmd):
                if high - low == PMD_PAGES:
                    del mm.pmds[number]
                    if entry.folio is not None:
                        self.unmap_pmd(entry.folio)
                    continue
                self.split_pmd(mm, number)
                entry = mm.pmds[number]
            if isinstance(entry, PteTable):
                for vpn in [vpn for vpn in entry if low <= vpn < high]:
                    pte = entry.pop(vpn)
                    if pte.page is None:
                        self._forget_ksm_zero(mm, pte)
                    else:
                        self.unmap_pte(pte.page)

    def munmap(self, mm: Mm, start: int, end: int) -> None:
        for vma, low, high in self.parts(mm, start, end):
            mm.vmas.remove(self.isolate(mm, vma, low, high))
            self.zap(mm, low, high)
        self._free_tables(mm, start, end)

    def _free_tables(self, mm: Mm, start: int, end: int) -> None:
        """free_pgtables: a table goes when no VMA reaches into its 2 MiB."""
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            if number in mm.pmds and not self.parts(
                    mm, number * PMD_PAGES, (number + 1) * PMD_PAGES):
                del mm.pmds[number]

    def dontneed(self, mm: Mm, start: int, end: int) -> None:
        for _, low, high in self.parts(mm, start, end):
            self.zap(mm, low, high)
            if self.kernel >= (6, 18):  # CONFIG_PT_RECLAIM frees tables zapped as a whole
                for number in range(-(-low // PMD_PAGES), high // PMD_PAGES):
                    mm.pmds.pop(number, None)

    def move(self, mm: Mm, start: int, end: int, new_start: int) -> None:
        """mremap(MAYMOVE|FIXED) of pages of one VMA, whose KSM pages are broken already."""
        offset = new_start - start
        assert offset % PMD_PAGES == 0
        ((vma, low, high),) = self.parts(mm, start, end)
        assert (low, high) == (start, end), "one VMA"
        old = self.isolate(mm, vma, start, end)
        for number in range(start // PMD_PAGES, (end - 1) // PMD_PAGES + 1):
            entry = mm.pmds.get(number)
            if isinstance(entry, HugePmd):
                mm.pmds[number + offset // PMD_PAGES] = mm.pmds.pop(number)
            elif entry is not None:
                for vpn in [vpn for vpn in entry if start <= vpn < end]:
                    self._table(mm, vpn + offset)[vpn + offset] = entry.pop(vpn)
        mm.vmas.remove(old)
        mm.vmas = sorted([*mm.vmas, old.part(new_start, new_start + end - start)],
                         key=lambda one: one.start)
        self._free_tables(mm, start, end)
        self.join(mm)

    # ---- processes ----------------------------------------------------------------------------

    def new_mm(self, number: int) -> Mm:
        mm = Mm(number)
        self.mms.append(mm)
        return mm

    def copy_mm(self, parent: Mm, number: int) -> Mm:
        """dup_mmap: a VMA that has an anon_vma has its page tables copied (vma_needs_copy)."""
        child = self.new_mm(number)
        for vma in parent.vmas:
            copy = vma.part(vma.start, vma.end)
            child.vmas.append(copy)
            if vma.anon_vma is None:
                continue
            copy.anon_vma = AnonVma()
            for index in range(vma.start // PMD_PAGES, (vma.end - 1) // PMD_PAGES + 1):
                entry = parent.pmds.get(index)
                if isinstance(entry, HugePmd):
                    child.pmds[index] = HugePmd(entry.folio)
                    if entry.folio is not None:
                        entry.folio.n_pmd_maps += 1
                        entry.folio.pages[0].is_exclusive = False
                elif entry is not None:
                    table = self._table(child, index * PMD_PAGES)
                    for vpn, pte in entry.items():
                        if not vma.start <= vpn < vma.end:
                            continue
                        if pte.page is None:
                            table[vpn] = Pte(None, pte.is_ksm_zero)
                        else:
                            pte.page.is_exclusive = False
                            table[vpn] = self.map_pte(pte.page)
        return child

    def exit_mmap(self, mm: Mm) -> None:
        """Free everything the mm maps."""
        for vma in list(mm.vmas):
            self.munmap(mm, vma.start, vma.end)
        self.mms.remove(mm)
