"""A whole machine under a kernel's KSM: processes that map, write, fork and exit beside ksmd.

The same visits as in a replay (`planner.ksm.space`), on the kernel's red-black trees: counters
and frames are the kernel's after every scan. Contents are numbers, 0 the page of zeroes. There is
no NUMA, and no time but what `wait` lets pass (only the pruning of chains looks at it).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from planner.kernels import ksm as kernels
from planner.kernels import ksmcalls
from planner.kernels import ksmstate as k
from planner.ksm.knobs import KernelVersion, check_kernel
from planner.ksm.memory import PARTITION, Memory, Mm

__all__ = ["Machine"]

_PAGE_BYTES, _ITEM_BYTES = 4096, 64
_MAX_BATCH = 1 << 30


class Machine:
    """One machine that runs Linux `kernel`, with ksmd stopped but for `full_scan`, `scan_pages`.

    Processes are named by numbers, pages by (process, vpn); ranges must be mapped. `key` orders
    content numbers as memcmp orders their pages (by default as numbers), which decides the shape
    of the trees. Methods that a kernel could refuse return the name of the errno, or None.
    """

    def __init__(self, kernel: KernelVersion = "6.18", *, hz: int = 250,
                 key: Callable[[int], int] = int) -> None:
        check_kernel(kernel)
        self._is_6_1 = kernel == "6.1"
        version = {"6.1": (6, 1), "6.12": (6, 12), "6.18": (6, 18)}[kernel]
        self._memory = Memory(version, key, hz)
        self._mms: dict[int, Mm] = {}
        self._run = 0
        self._merge_across_nodes = 1
        self._now_ns = 0
        part = self._part
        part[k.P_MAX_SHARING] = 256
        part[k.P_SMART_SCAN] = not self._is_6_1
        self.set_knob("stable_node_chains_prune_millisecs", 2000)

    @property
    def _part(self) -> k.Array:
        return self._memory.w.parts[PARTITION]

    # ---- processes and memory -----------------------------------------------------------------

    def spawn(self, p: int) -> None:
        """A process with nothing mapped."""
        self._mms[p] = self._memory.new_mm()

    def map(self, p: int, vpn: int, n: int, huge: bool) -> None:
        """Private anonymous memory, with MADV_HUGEPAGE or MADV_NOHUGEPAGE."""
        self._memory.map(self._mms[p], vpn, vpn + n, huge)

    def write(self, p: int, vpn: int, contents: Sequence[int]) -> None:
        """Give page vpn + i content contents[i]."""
        for i, content in enumerate(contents):
            self._memory.write(self._mms[p], vpn + i, content)

    def read(self, p: int, vpn: int, n: int) -> None:
        """Read faults: absent pages map the shared zero page."""
        for at in range(vpn, vpn + n):
            self._memory.read(self._mms[p], at)

    def unmap(self, p: int, vpn: int, n: int) -> None:
        """munmap."""
        self._memory.unmap(self._mms[p], vpn, vpn + n)

    def dontneed(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_DONTNEED)."""
        self._memory.dontneed(self._mms[p], vpn, vpn + n)

    def advise(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_MERGEABLE), `ksm_madvise`."""
        mm, memory = self._mms[p], self._memory
        for vma, start, end in mm.parts(vpn, vpn + n):
            if not vma.is_mergeable:
                self._enter(mm)
                memory.isolate(mm, vma, start, end).is_mergeable = True
                memory.join(mm)

    def unadvise(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_UNMERGEABLE): merged pages are copied now, items go later."""
        mm, memory = self._mms[p], self._memory
        for vma, start, end in mm.parts(vpn, vpn + n):
            if vma.is_mergeable:
                self._break(mm, start, end)
                memory.isolate(mm, vma, start, end).is_mergeable = False
                memory.join(mm)

    def mremap(self, p: int, vpn: int, n: int, new_vpn: int) -> str | None:
        """mremap(MREMAP_MAYMOVE | MREMAP_FIXED), mapping by mapping; `new_vpn` as far into 2 MiB.

        Refused (EINVAL) when the ranges overlap.
        """
        if vpn < new_vpn + n and new_vpn < vpn + n:
            return errno.errorcode[errno.EINVAL]
        mm = self._mms[p]
        self._memory.unmap(mm, new_vpn, new_vpn + n)
        for _, start, end in mm.parts(vpn, vpn + n):
            self._break(mm, start, end)
            self._memory.move(mm, start, end, new_vpn + start - vpn)
        return None

    def fork(self, parent: int, child: int) -> None:
        """`dup_mmap`, then `ksm_fork`."""
        old = self._mms[parent]
        shown = self.process_counters(parent)
        new, n_zero = self._memory.copy(old)
        self._mms[child] = new
        is_registered = self._state(old) != k.UNREGISTERED
        if self._is_6_1 or not is_registered:  # counters begin as copies of the parent's
            new.items_ahead = shown["ksm_rmap_items"]
            new.merging_ahead = shown["ksm_merging_pages"]
        if is_registered:
            self._part[k.P_ZERO] += n_zero
            self._enter(new)

    def exit(self, p: int) -> None:
        """`ksm_exit`, then `exit_mmap`."""
        mm = self._mms.pop(p)
        memory = self._memory
        if self._state(mm) != k.UNREGISTERED:
            memory.settle_order()
            ksmcalls.exit_mm(mm.slot, PARTITION, memory.w)
        memory.release(mm)

    def _state(self, mm: Mm) -> int:
        return int(self._memory.w.slots[mm.slot, k.L_STATE])

    def _enter(self, mm: Mm) -> None:
        """`__ksm_enter`: before the cursor; at the end while `run` is 2."""
        if self._state(mm) != k.UNREGISTERED:
            return
        part = self._part
        at = int(part[k.P_SLOT])
        if self._run & 2:
            part[k.P_SLOT] = part[k.P_HEAD]
        ksmcalls.enter_mm(mm.slot, PARTITION, self._now_ns, self._memory.w)
        part[k.P_SLOT] = at

    def _break(self, mm: Mm, start: int, end: int) -> None:
        """`unmerge_ksm_pages`: the caller copies the merged pages of mergeable mappings."""
        first, last = self._memory.order_range(mm, start, end)
        self._part[k.P_COW] += ksmcalls.break_range(PARTITION, first, last, self._memory.w)

    # ---- knobs --------------------------------------------------------------------------------

    def set_knob(self, name: str, value: int) -> str | None:
        """Write a file of /sys/kernel/mm/ksm (but `run` and those of pace)."""
        part = self._part
        if name == "smart_scan" and self._is_6_1:
            return errno.errorcode[errno.ENOENT]
        if name in ("smart_scan", "use_zero_pages", "merge_across_nodes"):
            is_valid = value in (0, 1)
        elif name == "max_page_sharing":
            is_valid = 2 <= value < 1 << 31
        elif name == "stable_node_chains_prune_millisecs":
            is_valid = 0 <= value < 1 << 32
        else:
            return errno.errorcode[errno.ENOENT]
        if not is_valid:
            return errno.errorcode[errno.EINVAL]
        if name == "smart_scan":
            part[k.P_SMART_SCAN] = value
        elif name == "use_zero_pages":
            part[k.P_USE_ZERO] = value
        elif name == "stable_node_chains_prune_millisecs":
            hz = 10**9 // int(self._memory.w.host[k.H_JIFFY_NS])
            part[k.P_PRUNE_JIFFIES] = -(-value * hz // 1000)
        elif value != (part[k.P_MAX_SHARING] if name == "max_page_sharing"
                       else self._merge_across_nodes):
            if part[k.P_SHARED] or not ksmcalls.remove_all_nodes(PARTITION, self._memory.w):
                return errno.errorcode[errno.EBUSY]
            if name == "max_page_sharing":
                part[k.P_MAX_SHARING] = value
            else:
                self._merge_across_nodes = value
        return None

    def set_run(self, value: int) -> str | None:
        """Write `run`. Of 1 nothing comes before `full_scan`; 2 unmerges everything."""
        if value not in (0, 1, 2):
            return errno.errorcode[errno.EINVAL]
        if value != self._run:
            self._run = value
            if value == 2:
                self._unmerge_all()
        return None

    def _unmerge_all(self) -> None:
        """`unmerge_and_remove_all_rmap_items`."""
        self._memory.settle_order()
        w, part = self._memory.w, self._part
        at = int(w.slots[part[k.P_HEAD], k.L_NEXT])
        while at != part[k.P_HEAD]:
            after = int(w.slots[at, k.L_NEXT])
            first, count = w.slots[at, [k.L_START, k.L_COUNT]].tolist()
            is_exited = w.slots[at, k.L_STATE] == k.EXITED
            if not is_exited:
                part[k.P_COW] += ksmcalls.break_range(PARTITION, first, first + count, w)
            ksmcalls.forget_range(PARTITION, first, first + count, w)
            if is_exited:
                w.slots[w.slots[at, k.L_PREV], k.L_NEXT] = after
                w.slots[after, k.L_PREV] = w.slots[at, k.L_PREV]
                w.slots[at, k.L_STATE] = k.UNREGISTERED
            at = after
        part[k.P_SLOT], part[k.P_INDEX] = part[k.P_HEAD], 0
        ksmcalls.remove_all_nodes(PARTITION, w)
        part[k.P_FULL_SCANS] = 0

    # ---- scanning and time --------------------------------------------------------------------

    def full_scan(self) -> None:
        """Scan to the end of the full scan that is under way or begins now."""
        self.scan_pages(_MAX_BATCH)

    def scan_pages(self, n: int) -> None:
        """One batch of n pages; it ends early with the full scan."""
        self._memory.prepare_scan()
        part = self._part
        part[k.P_PAGES] = n
        part[k.P_IS_RUNNING] = 1
        part[k.P_NEXT_NS] = self._now_ns
        kernels.advance(self._now_ns + 1, self._memory.w)

    def wait(self, ms: int) -> None:
        """Let time pass."""
        self._now_ns += ms * 1_000_000

    # ---- what is shown ------------------------------------------------------------------------

    @property
    def cow_ksm(self) -> int:
        """`cow_ksm` of /proc/vmstat."""
        return int(self._part[k.P_COW])

    def counters(self) -> dict[str, int]:
        """The counter files that this kernel has."""
        part: list[int] = self._part.tolist()
        shared, sharing, unshared = part[k.P_SHARED], part[k.P_SHARING], part[k.P_UNSHARED]
        shown = {
            "pages_shared": shared,
            "pages_sharing": sharing,
            "pages_unshared": unshared,
            "pages_volatile": max(0, part[k.P_ITEMS] - shared - sharing - unshared),
            "full_scans": part[k.P_FULL_SCANS],
            "stable_node_chains": part[k.P_CHAINS],
            "stable_node_dups": part[k.P_DUPS],
        }
        if not self._is_6_1:
            shown["pages_scanned"] = part[k.P_SCANNED]
            shown["pages_skipped"] = part[k.P_SKIPPED]
            shown["ksm_zero_pages"] = part[k.P_ZERO]
            shown["general_profit"] = ((sharing + part[k.P_ZERO]) * _PAGE_BYTES
                                       - part[k.P_ITEMS] * _ITEM_BYTES)
        return shown

    def process_counters(self, p: int) -> dict[str, int]:
        """The numbers of /proc/PID/ksm_stat (6.1: and of ksm_merging_pages)."""
        mm = self._mms[p]
        n_items, n_merging, n_zero = self._memory.count(mm)
        n_items, n_merging = n_items + mm.items_ahead, n_merging + mm.merging_ahead
        shown = {"ksm_rmap_items": n_items, "ksm_merging_pages": n_merging}
        if not self._is_6_1:
            shown["ksm_zero_pages"] = n_zero
            shown["ksm_process_profit"] = ((n_merging + n_zero) * _PAGE_BYTES
                                           - n_items * _ITEM_BYTES)
        return shown

    def frames(self, p: int, vpn: int, n: int) -> list[int]:
        """Each page's frame; -1 where none is mapped, -2 for the shared zero page."""
        return [self._memory.frame_at(self._mms[p], at) for at in range(vpn, vpn + n)]

    def physical_frames(self) -> int:
        """Frames that are mapped: the truth that no counter of KSM shows."""
        return int(self._part[k.P_LIVE_PHYS])
