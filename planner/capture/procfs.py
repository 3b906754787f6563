"""What /proc says about address spaces and frames: smaps, pagemap, kpageflags, kpagecount.

Formats: Documentation/admin-guide/mm/pagemap.rst and Documentation/filesystems/proc.rst of the
kernel. Everything here only looks: no page is read, faulted in or pinned.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from planner.errors import MachineError
from planner.trace.schema import RegionFlag

__all__ = [
    "FrameTable",
    "NumaMap",
    "Pagemap",
    "ProcRoot",
    "TargetExitedError",
    "Vma",
    "marks_ksm_exactly",
    "parse_smaps",
    "read_vmas",
    "start_ticks",
]

U64 = npt.NDArray[np.uint64]

#: Bits of a pagemap entry.
PM_PRESENT = np.uint64(1 << 63)
PM_SWAP = np.uint64(1 << 62)
PM_FILE = np.uint64(1 << 61)
PM_EXCLUSIVE = np.uint64(1 << 56)
PM_FRAME = np.uint64((1 << 55) - 1)
PM_SWAP_TYPE = np.uint64(31)

#: Swap types from here on are no swap files but migration, poison and device entries
#: (include/linux/swap.h: the special types take at most nine of 32), ...
FIRST_SPECIAL_SWAP_TYPE = np.uint64(23)
#: ... and the last one marks places without a page (guard regions, write-protect markers).
SWAP_TYPE_MARKER = np.uint64(31)

#: Bits of a kpageflags entry (include/uapi/linux/kernel-page-flags.h).
KPF_ANON = np.uint64(1 << 12)
KPF_SWAPCACHE = np.uint64(1 << 13)
KPF_SWAPBACKED = np.uint64(1 << 14)
KPF_COMPOUND = np.uint64(1 << 15 | 1 << 16)
KPF_HUGE = np.uint64(1 << 17)
KPF_LOCKED = np.uint64(1 << 18 | 1 << 33)  # unevictable, mlocked
KPF_KSM = np.uint64(1 << 21)
KPF_THP = np.uint64(1 << 22)
KPF_ZERO_PAGE = np.uint64(1 << 24)
#: PG_anon_exclusive shows here for anonymous pages (5.19 and later; never set before). Of a
#: large folio it is the head's.
KPF_ANON_EXCLUSIVE = np.uint64(1 << 34)

_VM_FLAGS = {
    "mg": RegionFlag.ADVISED, "sh": RegionFlag.SHARED, "ms": RegionFlag.MAYSHARE,
    "pf": RegionFlag.PFNMAP, "io": RegionFlag.IO, "de": RegionFlag.DONTEXPAND,
    "ht": RegionFlag.HUGETLB, "mm": RegionFlag.MIXEDMAP, "dp": RegionFlag.DROPPABLE,
    "lo": RegionFlag.LOCKED, "hg": RegionFlag.HUGEPAGE, "nh": RegionFlag.NOHUGEPAGE,
    "um": RegionFlag.USERFAULTFD, "uw": RegionFlag.USERFAULTFD, "ui": RegionFlag.USERFAULTFD,
    "wf": RegionFlag.WIPEONFORK, "rd": RegionFlag.READ, "wr": RegionFlag.WRITE,
    "ex": RegionFlag.EXEC,
}  # fmt: skip

_HEADER = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)"
)
_PAGE_SHIFT = 12
#: Frames between two wanted ones that are cheaper to read along than to skip.
_FRAME_GAP = 12


class TargetExitedError(Exception):
    """The process is gone, or its address space is; the capture goes on without it."""


@dataclass(frozen=True, slots=True)
class ProcRoot:
    """Where procfs, sysfs and the module's device are; tests point it at crafted files."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    device: Path = Path("/dev/ksm_planner")

    def of(self, pid: int, name: str) -> Path:
        """The path of a file of a process."""
        return self.proc / str(pid) / name


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping: pages `[start_vpn, end_vpn)`, RegionFlag bits, and its name.

    `name` is the file's name without its folder, a kernel name such as `[heap]`, or empty.
    `ksm_bytes` is how much of it KSM has merged, None where the source does not tell.
    """

    start_vpn: int
    end_vpn: int
    flags: int
    name: str
    ksm_bytes: int | None = None

    @property
    def n_pages(self) -> int:
        """Its length in pages, present or not."""
        return self.end_vpn - self.start_vpn


def parse_smaps(text: str) -> list[Vma]:
    """The mappings of /proc/PID/smaps, ascending; the vsyscall gate is no mapping and left out.

    Raises ValueError when a mapping has no VmFlags line (not smaps, or cut short).
    """
    vmas: list[Vma] = []
    header: re.Match[str] | None = None
    ksm_bytes: int | None = None
    for line in text.splitlines():
        if line.startswith("VmFlags:"):
            if header is None:
                raise ValueError("VmFlags without a mapping")
            vma = _vma(header, line[len("VmFlags:"):].split(), ksm_bytes)
            if vma is not None:
                vmas.append(vma)
            header = ksm_bytes = None
        elif line.startswith("KSM:"):
            ksm_bytes = int(line.split()[1]) * 1024
        elif line[:1] in "0123456789abcdef" and (match := _HEADER.fullmatch(line)):
            if header is not None:
                raise ValueError(f"mapping {header[1]} has no VmFlags")
            header = match
    if header is not None:
        raise ValueError(f"mapping {header[1]} has no VmFlags")
    return vmas


def _vma(header: re.Match[str], vm_flags: list[str], ksm_bytes: int | None) -> Vma | None:
    start, end, _, inode, path = header.groups()
    if path == "[vsyscall]":
        return None
    flags = 0
    for name in vm_flags:
        flags |= _VM_FLAGS.get(name, 0)
    if inode != "0" or path.startswith("/"):
        flags |= RegionFlag.FILE
        path = path.removesuffix(" (deleted)").rpartition("/")[2]
    elif path == "[heap]":
        flags |= RegionFlag.HEAP
    elif path.startswith("[stack"):
        flags |= RegionFlag.STACK
    return Vma(int(start, 16) >> _PAGE_SHIFT, int(end, 16) >> _PAGE_SHIFT, int(flags), path,
               ksm_bytes)


def read_vmas(root: ProcRoot, pid: int) -> list[Vma]:
    """The mappings of a process.

    Raises TargetExitedError when it is gone or has no address space (a zombie, a kernel thread),
    MachineError without permission.
    """
    path = root.of(pid, "smaps")
    try:
        text = path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetExitedError from None
    except PermissionError as error:
        raise no_permission(path) from error
    if not text:
        raise TargetExitedError
    try:
        return parse_smaps(text)
    except ValueError:
        # The file ends in the middle of a mapping when the process exits while it is read.
        raise TargetExitedError from None


def start_ticks(root: ProcRoot, pid: int) -> int:
    """When a process started, in clock ticks since boot: tells a reused pid.

    Raises TargetExitedError when there is no such process or it is a zombie.
    """
    try:
        stat = root.of(pid, "stat").read_text(errors="replace")
        # The second field is the command in parentheses and may hold anything.
        fields = stat[stat.rindex(")") + 2:].split()
        if fields[0] in ("Z", "X"):
            raise TargetExitedError
        return int(fields[19])
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        raise TargetExitedError from None


def no_permission(path: Path) -> MachineError:
    """The error of a /proc file that may not be read."""
    return MachineError(
        "no permission to read it", where=str(path),
        instead="run as root, or with CAP_SYS_PTRACE (other processes' memory) and "
        "CAP_SYS_ADMIN (frame numbers)")


class Pagemap:
    """/proc/PID/pagemap of one process. A context manager."""

    def __init__(self, root: ProcRoot, pid: int) -> None:
        self._path = root.of(pid, "pagemap")
        try:
            self._fd = os.open(self._path, os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):
            raise TargetExitedError from None
        except PermissionError as error:
            raise no_permission(self._path) from error

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, start_vpn: int, end_vpn: int) -> U64:
        """Entries u64[n] of the pages `[start_vpn, end_vpn)`.

        Raises TargetExitedError when the address space is gone, MachineError when frame numbers are
        hidden from this user.
        """
        n_bytes = (end_vpn - start_vpn) * 8
        try:
            raw = os.pread(self._fd, n_bytes, start_vpn * 8)
        except ProcessLookupError:
            raise TargetExitedError from None
        if len(raw) != n_bytes:
            raise TargetExitedError
        entries = np.frombuffer(raw, np.uint64)
        # Frame 0 is never given to a process: a present page there means a censored entry.
        if np.any(entries & (PM_PRESENT | PM_FRAME) == PM_PRESENT):
            raise MachineError("the kernel hides frame numbers", where=str(self._path),
                               instead="run as root or with CAP_SYS_ADMIN")
        return entries


class FrameTable:
    """/proc/kpageflags and /proc/kpagecount, read by runs of frames. A context manager."""

    def __init__(self, root: ProcRoot) -> None:
        self._fds: dict[str, int] = {}
        for name in ("kpageflags", "kpagecount"):
            path = root.proc / name
            try:
                self._fds[name] = os.open(path, os.O_RDONLY)
            except FileNotFoundError as error:
                self.close()
                raise MachineError("this kernel has no such file", where=str(path),
                                   instead="capture on a kernel with CONFIG_PROC_PAGE_MONITOR"
                                   ) from error
            except PermissionError as error:
                self.close()
                raise no_permission(path) from error

    def __enter__(self) -> FrameTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def flags(self, pfns: U64) -> U64:
        """KPF bits u64[n] of the frames u64[n], which may repeat and come in any order."""
        return self._read("kpageflags", pfns)

    def n_mappings(self, pfns: U64) -> U64:
        """How often each frame is mapped, u64[n]; for a page of a large folio, that page."""
        return self._read("kpagecount", pfns)

    def _read(self, name: str, pfns: U64) -> U64:
        """Sort, join what lies close, one pread a run; frames past the end of memory give 0."""
        if not len(pfns):
            return np.zeros(0, np.uint64)
        order = np.argsort(pfns)
        frames = pfns[order].astype(np.int64)
        is_start = np.concatenate([[True], frames[1:] - frames[:-1] > _FRAME_GAP])
        starts = np.flatnonzero(is_start)
        first = frames[starts]
        lengths = frames[np.append(starts[1:], len(frames)) - 1] - first + 1
        ends = np.cumsum(lengths)
        # One C loop over the runs: they are short where memory is fragmented.
        raw = b"".join(map(os.pread, itertools.repeat(self._fds[name]), (lengths * 8).tolist(),
                           (first * 8).tolist()))
        # Only the last run can be short: past the end of memory.
        words = np.zeros(int(ends[-1]), np.uint64)
        words[:len(raw) // 8] = np.frombuffer(raw, np.uint64)
        shift = (ends - lengths - first)[np.cumsum(is_start) - 1]
        values = np.empty(len(pfns), np.uint64)
        values[order] = words[frames + shift]
        return values


def marks_ksm_exactly(root: ProcRoot, frames: FrameTable) -> bool:
    """Whether kpageflags tells merged pages from other anonymous ones.

    Some kernels (Debian's 6.12 is one) set KPF_KSM on every anonymous page: `stable_page_flags`
    of fs/proc/page.c asks for either of the two mapping bits of a KSM page there. Found out with
    a page of this process that cannot have been merged.
    """
    with mmap.mmap(-1, 1 << _PAGE_SHIFT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:16] = os.urandom(16)
        vpn = np.frombuffer(memory, np.uint8).ctypes.data >> _PAGE_SHIFT
        try:
            with Pagemap(root, os.getpid()) as pagemap:
                pfns = pagemap.read(vpn, vpn + 1) & PM_FRAME
        except TargetExitedError:
            return True
        # While the page is still there.
        return not int(frames.flags(pfns)[0] & KPF_KSM)


class NumaMap:
    """The NUMA node of a frame, from the zones of /proc/zoneinfo; unknown (-1) without it."""

    def __init__(self, root: ProcRoot) -> None:
        try:
            text = (root.proc / "zoneinfo").read_text()
        except OSError:
            text = ""
        spans: list[tuple[int, int, int]] = []
        node, n_spanned = -1, 0
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["Node"]:
                node, n_spanned = int(words[1].rstrip(",")), 0
            elif words[:1] == ["spanned"]:
                n_spanned = int(words[1])
            elif words[:1] == ["start_pfn:"] and n_spanned:
                spans.append((int(words[1]), int(words[1]) + n_spanned, node))
        spans.sort()
        self._starts = np.array([start for start, _, _ in spans], np.uint64)
        self._ends = np.array([end for _, end, _ in spans], np.uint64)
        self._nodes = np.array([node for _, _, node in spans], np.int8)
        # Nodes whose memory interleaves cannot be told apart by zone: then nothing is claimed.
        if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
            self._nodes = self._nodes[:0]

    @property
    def n_nodes(self) -> int:
        """How many nodes have memory; 0 when unknown."""
        return len(set(self._nodes.tolist()))

    def node_of(self, pfns: U64) -> npt.NDArray[np.int8]:
        """Nodes i8[n] of the frames u64[n]."""
        if not len(self._nodes):
            return np.full(len(pfns), -1, np.int8)
        at = np.searchsorted(self._starts, pfns, side="right") - 1
        inside = (at >= 0) & (pfns < self._ends[at])
        return np.where(inside, self._nodes[at], np.int8(-1)).astype(np.int8)


def read_int(path: Path) -> int | None:
    """The integer a small file holds, None when there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def ksm_counters(root: ProcRoot) -> dict[str, int]:
    """All integers of /sys/kernel/mm/ksm, and `cow_ksm` and `ksm_swpin_copy` of /proc/vmstat."""
    counters: dict[str, int] = {}
    folder = root.sys / "kernel" / "mm" / "ksm"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    for name in names:
        value = read_int(folder / name)
        if value is not None:
            counters[name] = value
    try:
        vmstat = (root.proc / "vmstat").read_text()
    except OSError:
        vmstat = ""
    for line in vmstat.splitlines():
        name, _, text = line.partition(" ")
        if name in ("cow_ksm", "ksm_swpin_copy") and text.isdigit():
            counters[name] = int(text)
    return counters


