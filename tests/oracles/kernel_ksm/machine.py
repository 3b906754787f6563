"""The twin as a whole: processes, knobs and counters by the kernel's names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tests.conformance.script import checksum, content_key
from tests.oracles.kernel_ksm.ksm import PAGE_BYTES, RMAP_ITEM_BYTES, Ksm
from tests.oracles.kernel_ksm.memory import HugePmd, Memory, Mm

#: What `frames` says where no frame is: not present, shared zero page.
ABSENT, ZERO_PAGE = -1, -2

_checksum = cache(checksum)
_order = cache(content_key)


class Machine:
    """One machine running kernel "6.1", "6.12" or "6.18", one NUMA node, without swap.

    Methods that a kernel could refuse return the name of the errno, or None. Contents are those
    of tests/conformance/script.py. `hz` only serves the interface: there is no time but `wait`.
    """

    def __init__(self, kernel: str = "6.18", *, hz: int = 250) -> None:
        major, minor = kernel.split(".")
        self.version = (int(major), int(minor))
        self.hz = hz
        self.memory = Memory(self.version)
        self.ksm = Ksm(self.memory, checksum=_checksum, order=_order)
        self.pages_to_scan = 100
        self.sleep_millisecs = 20
        self.merge_across_nodes = 1
        self._mms: dict[int, Mm] = {}

    # ---- processes and memory -----------------------------------------------------------------

    def spawn(self, p: int) -> None:
        """A process with nothing mapped (in the windows that scripts use)."""
        assert p not in self._mms
        self._mms[p] = self.memory.new_mm(p)

    def map(self, p: int, vpn: int, n: int, huge: bool) -> None:
        """mmap of private anonymous memory, then MADV_HUGEPAGE or MADV_NOHUGEPAGE."""
        mm = self._mms[p]
        vma = self.memory.mmap(mm, vpn, vpn + n, huge)
        if mm.is_merge_any:
            vma.is_mergeable = True
            if not mm.is_registered:
                self.ksm.ksm_enter(mm)
        self.memory.join(mm)

    def write(self, p: int, vpn: int, contents: Sequence[int]) -> None:
        """Give page vpn + i content contents[i]."""
        for i, content in enumerate(contents):
            self.memory.fault_write(self._mms[p], vpn + i).content = content

    def read(self, p: int, vpn: int, n: int) -> None:
        for at in range(vpn, vpn + n):
            self.memory.fault_read(self._mms[p], at)

    def unmap(self, p: int, vpn: int, n: int) -> None:
        self.memory.munmap(self._mms[p], vpn, vpn + n)

    def dontneed(self, p: int, vpn: int, n: int) -> None:
        self.memory.dontneed(self._mms[p], vpn, vpn + n)

    def advise(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_MERGEABLE), ksm_madvise."""
        mm = self._mms[p]
        for vma, start, end in self.memory.parts(mm, vpn, vpn + n):
            if not vma.is_mergeable:
                if not mm.is_registered:
                    self.ksm.ksm_enter(mm)
                self.memory.isolate(mm, vma, start, end).is_mergeable = True
                self.memory.join(mm)

    def unadvise(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_UNMERGEABLE): the caller copies the KSM pages; items go later."""
        mm = self._mms[p]
        for vma, start, end in self.memory.parts(mm, vpn, vpn + n):
            if vma.is_mergeable:
                self.ksm.unmerge_ksm_pages(vma, mm, start, end)
                self.memory.isolate(mm, vma, start, end).is_mergeable = False
                self.memory.join(mm)

    def prctl(self, p: int, value: int) -> str | None:
        """prctl(PR_SET_MEMORY_MERGE, value), 6.4+."""
        mm = self._mms[p]
        if self.version < (6, 4):
            return "EINVAL"
        if value and not mm.is_merge_any:
            if not mm.is_registered:
                self.ksm.ksm_enter(mm)
            mm.is_merge_any = True
            for vma in mm.vmas:
                vma.is_mergeable = True
        elif not value and mm.is_merge_any:
            for vma in mm.vmas:
                self.ksm.unmerge_ksm_pages(vma, mm, vma.start, vma.end)
                vma.is_mergeable = False
            mm.is_merge_any = False
        return None

    def mremap(self, p: int, vpn: int, n: int, new_vpn: int) -> str | None:
        """mremap(MREMAP_MAYMOVE | MREMAP_FIXED), VMA by VMA (6.17+ would take them all at once)."""
        if vpn < new_vpn + n and new_vpn < vpn + n:
            return "EINVAL"
        mm = self._mms[p]
        self.memory.munmap(mm, new_vpn, new_vpn + n)
        for vma, start, end in self.memory.parts(mm, vpn, vpn + n):
            self.ksm.unmerge_ksm_pages(vma, mm, start, end)
            self.memory.move(mm, start, end, new_vpn + start - vpn)
        return None

    def fork(self, parent: int, child: int) -> None:
        assert child not in self._mms
        self._mms[child] = self.memory.copy_mm(self._mms[parent], child)
        self.ksm.ksm_fork(self._mms[child], self._mms[parent])

    def exit(self, p: int) -> None:
        self._mmput(self._mms.pop(p))

    def _mmput(self, mm: Mm) -> None:
        mm.is_exited = True
        self.ksm.ksm_exit(mm)
        self.memory.exit_mmap(mm)

    def exec(self, p: int) -> None:
        """execve: the new mm is registered before the old one goes, if all of it is to merge."""
        old = self._mms.pop(p)
        new = self._mms[p] = self.memory.new_mm(p)
        new.is_merge_any = old.is_merge_any
        if new.is_merge_any:
            self.ksm.ksm_enter(new)
        self._mmput(old)

    # ---- knobs --------------------------------------------------------------------------------

    def set_knob(self, name: str, value: int) -> str | None:
        """Write a file of /sys/kernel/mm/ksm (but `run`, and the advisor's: see advisor.py)."""
        ksm = self.ksm
        if name == "max_page_sharing":
            if not 2 <= value < 1 << 31:
                return "EINVAL"
            if value != ksm.max_page_sharing:
                if ksm.pages_shared or not ksm.remove_all_stable_nodes():
                    return "EBUSY"
                ksm.max_page_sharing = value
        elif name == "merge_across_nodes":
            if value > 1:
                return "EINVAL"
            if value != self.merge_across_nodes:
                if ksm.pages_shared or not ksm.remove_all_stable_nodes():
                    return "EBUSY"
                self.merge_across_nodes = value
        elif name in ("use_zero_pages", "smart_scan"):
            if name == "smart_scan" and self.version < (6, 7):
                return "ENOENT"
            if value not in (0, 1):
                return "EINVAL"
            setattr(ksm, name, value)
        elif name in ("stable_node_chains_prune_millisecs", "pages_to_scan", "sleep_millisecs"):
            if not 0 <= value < 1 << 32:
                return "EINVAL"
            if name == "stable_node_chains_prune_millisecs":
                ksm.prune_ms = value
            else:
                setattr(self, name, value)
        else:
            raise ValueError(f"{name} is not modelled")
        return None

    def set_run(self, value: int) -> str | None:
        """Write `run`; scanning is up to `full_scan` and `scan_pages`."""
        if value not in (0, 1, 2):
            return "EINVAL"
        if value != self.ksm.run:
            self.ksm.run = value
            if value == 2:
                self.ksm.unmerge_and_remove_all_rmap_items()
        return None

    # ---- scanning and time --------------------------------------------------------------------

    def full_scan(self) -> None:
        """Scan to the end of the full scan that is under way or begins now."""
        while not self.ksm.ksm_do_scan(1 << 30):
            pass

    def scan_pages(self, n: int) -> None:
        """One batch of n pages; it ends early with the full scan."""
        self.ksm.ksm_do_scan(n)

    def wait(self, ms: int) -> None:
        """Let time pass: only the pruning of chains looks at the clock."""
        self.ksm.now_ms += ms

    # ---- what is shown ------------------------------------------------------------------------

    @property
    def cow_ksm(self) -> int:
        """/proc/vmstat cow_ksm."""
        return self.memory.cow_ksm

    def counters(self) -> dict[str, int]:
        """The counter files this kernel has."""
        ksm = self.ksm
        shown = {
            "pages_shared": ksm.pages_shared,
            "pages_sharing": ksm.pages_sharing,
            "pages_unshared": ksm.pages_unshared,
            "pages_volatile": max(0, ksm.rmap_items - ksm.pages_shared - ksm.pages_sharing
                                  - ksm.pages_unshared),
            "full_scans": ksm.seqnr,
            "stable_node_chains": ksm.n_chains,
            "stable_node_dups": ksm.n_dups,
        }
        if not ksm.is_m61:
            shown["pages_scanned"] = ksm.pages_scanned
            shown["pages_skipped"] = ksm.pages_skipped
            shown["ksm_zero_pages"] = self.memory.ksm_zero_pages
            shown["general_profit"] = (
                (ksm.pages_sharing + self.memory.ksm_zero_pages) * PAGE_BYTES
                - ksm.rmap_items * RMAP_ITEM_BYTES)
        return shown

    def process_counters(self, p: int) -> dict[str, int]:
        """Numbers of /proc/PID/ksm_stat (6.1: and of ksm_merging_pages)."""
        mm = self._mms[p]
        shown = {"ksm_rmap_items": mm.ksm_rmap_items, "ksm_merging_pages": mm.ksm_merging_pages}
        if not self.ksm.is_m61:
            shown["ksm_zero_pages"] = mm.ksm_zero_pages
            shown["ksm_process_profit"] = (
                (mm.ksm_merging_pages + mm.ksm_zero_pages) * PAGE_BYTES
                - mm.ksm_rmap_items * RMAP_ITEM_BYTES)
        return shown

    def ksm_stat_flags(self, p: int) -> dict[str, bool]:
        """The yes/no lines of /proc/PID/ksm_stat (6.14+)."""
        mm = self._mms[p]
        if self.version < (6, 14):
            return {}
        return {"ksm_merge_any": mm.is_merge_any,
                "ksm_mergeable": any(vma.is_mergeable for vma in mm.vmas)}

    def frames(self, p: int, vpn: int, n: int) -> list[int]:
        """The page frame number of each page, or ABSENT or ZERO_PAGE."""
        mm = self._mms[p]
        found = []
        for at in range(vpn, vpn + n):
            page = mm.page_at(at)
            if page is not None:
                found.append(page.pfn)
            else:
                is_mapped = mm.pte_at(at) is not None or isinstance(
                    mm.pmds.get(at // 512), HugePmd)
                found.append(ZERO_PAGE if is_mapped else ABSENT)
        return found

    def physical_frames(self) -> int:
        """Page frames in use: the truth that no counter of KSM shows."""
        return self.memory.n_frames
