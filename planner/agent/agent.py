"""The capture agent: page hashes of running processes and machines, with the standard library only.

`planner capture agent` packs this file alone into a zipapp. It runs on Python 3.9 and later, on
hosts where nothing is to be installed, and takes the same care as `planner capture`: it reads
through /proc/PID/mem only pages that are in memory (nothing is faulted in, pinned or unshared),
looks at the page map again afterwards, and writes keyed hashes and never content, frame numbers or
host names. Run in a guest with --guest-classes it writes what each guest frame is used for.

Nothing here may be imported by the rest of the package, nor import it. docs/importing.md describes
the stream, planner/importers/agent.py and guest_classes.py read it.
"""

from __future__ import annotations

import argparse
import array
import bisect
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import signal
import stat
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

VERSION = "1.0"
MAGIC = b"PLNAGNT1"
FORMAT = 1
ALGORITHM = "blake2b-64"
KEY_ID_LABEL = b"pagehash-v1-kyid"
PAGE_BYTES = 4096
ZERO_PAGE = bytes(PAGE_BYTES)

#: Kind, payload bytes, number of the frame from 0; then the payload; then 8 bytes of BLAKE2b
#: over both.
FRAME_HEADER = struct.Struct("<4sIQ")
SUM_BYTES = 8

#: Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
PM_PRESENT, PM_SWAP, PM_FILE, PM_EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56
PM_FRAME = (1 << 55) - 1
PM_PLACE = PM_PRESENT | PM_SWAP | PM_FRAME
#: Swap types from here on are migration, poison and device entries; the last marks places
#: without a page (include/linux/swap.h).
FIRST_SPECIAL_SWAP_TYPE, SWAP_TYPE_MARKER = 23, 31

#: Bits of a kpageflags entry (include/uapi/linux/kernel-page-flags.h).
KPF_LRU, KPF_SLAB, KPF_BUDDY, KPF_MMAP, KPF_ANON = 1 << 5, 1 << 7, 1 << 10, 1 << 11, 1 << 12
KPF_SWAPCACHE, KPF_SWAPBACKED, KPF_COMPOUND = 1 << 13, 1 << 14, 1 << 15 | 1 << 16
KPF_HUGE, KPF_UNEVICTABLE, KPF_HWPOISON, KPF_NOPAGE = 1 << 17, 1 << 18, 1 << 19, 1 << 20
KPF_KSM, KPF_THP, KPF_OFFLINE, KPF_ZERO_PAGE = 1 << 21, 1 << 22, 1 << 23, 1 << 24
KPF_PGTABLE, KPF_RESERVED, KPF_MLOCKED = 1 << 26, 1 << 32, 1 << 33

#: Page flags of the trace (docs/trace-format.md).
ANON, FILE, SHMEM, ZERO, ZERO_PAGE_FLAG, THP, KSM, SWAPPED = (1 << bit for bit in range(8))
UNREADABLE, MIGRATION, SWAPCACHE, LOCKED, COMPOUND, HUGETLB, EXCLUSIVE = (
    1 << bit for bit in range(8, 15))
KPF_TO_FLAG = (
    (KPF_ANON, ANON), (KPF_KSM, KSM), (KPF_THP, THP), (KPF_COMPOUND, COMPOUND),
    (KPF_HUGE, HUGETLB), (KPF_UNEVICTABLE | KPF_MLOCKED, LOCKED), (KPF_SWAPCACHE, SWAPCACHE),
    (KPF_ZERO_PAGE, ZERO_PAGE_FLAG),
)  # fmt: skip

#: Region flags of the trace by VmFlags of /proc/PID/smaps.
VM_FLAGS = {
    "mg": 1 << 0, "sh": 1 << 1, "ms": 1 << 2, "pf": 1 << 3, "io": 1 << 4, "de": 1 << 5,
    "ht": 1 << 6, "mm": 1 << 7, "dp": 1 << 8, "lo": 1 << 10, "hg": 1 << 11, "nh": 1 << 12,
    "um": 1 << 13, "uw": 1 << 13, "ui": 1 << 13, "wf": 1 << 14, "rd": 1 << 19, "wr": 1 << 20,
    "ex": 1 << 21,
}  # fmt: skip
R_ADVISED, R_MAYSHARE, R_PFNMAP_IO, R_HUGETLB = 1 << 0, 1 << 2, 1 << 3 | 1 << 4, 1 << 6
R_FILE, R_STACK, R_HEAP, R_GUEST_RAM, R_WRITE = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 20
#: A mapping with one of these is never merged (vma_ksm_compatible, mm/ksm.c).
R_INCOMPATIBLE = 0x1FE | 1 << 9
INCLUDES = ("advised", "anon", "all")

#: What a guest frame can be used for; the stream names them by their place here.
CLASSES = ("absent", "free", "kernel-text", "kernel-rodata", "kernel-data", "slab", "page-tables",
           "page-cache", "shmem", "anon", "hugetlb", "zero-page", "offline", "reserved",
           "kernel-other", "unflagged")
IOMEM_CLASSES = {"Kernel code": "kernel-text", "Kernel rodata": "kernel-rodata",
                 "Kernel data": "kernel-data", "Kernel bss": "kernel-data"}

CHUNK_PAGES = 4096
BATCH_PAGES = 256
STRIDE_PAGES = 1 << 16
#: Frames between two wanted ones that are cheaper to read along than to skip.
FRAME_GAP = 12
ATTEMPTS = 2
CLASS_FRAMES = 1 << 16
REGIONS_A_FRAME = 1000

QEMU = re.compile(r"qemu-system-.+|qemu-kvm|kvm")
SMAPS_HEADER = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ (\d+) *(.*)")


class AgentError(Exception):
    """What cannot be done and what to do instead; `code` is the exit code (2 usage, 3 machine)."""

    def __init__(self, what: str, code: int = 3) -> None:
        super().__init__(what)
        self.code = code


class GoneError(Exception):
    """The process is gone, or its address space is; the capture goes on without it."""


# ---------------------------------------------------------------- the key


def default_key_path() -> str:
    """The path of the site key, as for `planner capture`."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base and os.path.isabs(base):
        return os.path.join(base, "planner", "site.key")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise AgentError("this user has no home directory to keep the site key in; name a key file "
                         "with --key")
    return os.path.join(home, ".config", "planner", "site.key")


def load_key(path: str) -> bytes:
    """The 16 bytes of a key file, made on first use with mode 0600."""
    if not os.path.lexists(path):
        make_key(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AgentError(f"{path}: cannot read the site key: {error.strerror}; run as its owner or "
                         "name another file with --key") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise AgentError(f"{path}: the site key is not a regular file; name a file with --key")
        if status.st_mode & 0o077:
            raise AgentError(f"{path}: others may access the site key (mode "
                             f"{stat.S_IMODE(status.st_mode):04o}); run chmod 600 {path}, and "
                             "replace the key if it may have been read")
        text = os.read(fd, 34)
    finally:
        os.close(fd)
    if not re.fullmatch(rb"[0-9a-fA-F]{32}\n?", text):
        state = "damaged: not one line of 32 hex digits" if text else "empty"
        raise AgentError(f"{path}: the site key file is {state}; restore it from another host of "
                         "the fleet, or move it away to have a new one made")
    return bytes.fromhex(text.decode().strip())


def make_key(path: str) -> None:
    """Write a new key aside and link it into place: nobody ever finds half a file."""
    folder = os.path.dirname(os.path.abspath(path))
    aside = os.path.join(folder, f".{os.path.basename(path)}.{secrets.token_hex(8)}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, secrets.token_bytes(16).hex().encode() + b"\n")
            os.fsync(fd)
            os.link(aside, path)
        except FileExistsError:
            return
        finally:
            os.close(fd)
            os.unlink(aside)
    except OSError as error:
        raise AgentError(f"{path}: cannot make the site key file: {error.strerror}; name another "
                         "file with --key") from None
    say(f"made the site key {path}; copy it to the other hosts of the fleet")


def hasher(key: bytes) -> Any:
    """BLAKE2b with 8 bytes of digest under `key`, to be copied for each page."""
    return hashlib.blake2b(digest_size=8, key=key)


def keyed(key: bytes, data: bytes) -> int:
    """The 64-bit hash of `data`."""
    state = hasher(key)
    state.update(data)
    return int.from_bytes(state.digest(), "little")


def key_id_of(key: bytes) -> str:
    """Eight hex digits that name a key of this algorithm."""
    return f"{keyed(key, KEY_ID_LABEL) & 0xFFFFFFFF:08x}"


# ---------------------------------------------------------------- /proc


class Root:
    """Where procfs and sysfs are."""

    def __init__(self, proc: str, sys_: str) -> None:
        self.proc, self.sys = proc, sys_

    def of(self, pid: int, name: str) -> str:
        """The path of a file of a process."""
        return f"{self.proc}/{pid}/{name}"


def read_text(path: str) -> str:
    """The text of a small file, whatever its encoding."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def read_int(path: str) -> int | None:
    """The integer a small file holds, None when there is none."""
    try:
        return int(read_text(path))
    except (OSError, ValueError):
        return None


def no_permission(path: str) -> AgentError:
    """The refusal of a /proc file that may not be read."""
    return AgentError(f"{path}: no permission to read it; run as root, or with CAP_SYS_PTRACE "
                      "(other processes' memory) and CAP_SYS_ADMIN (frame numbers)")


def open_of(path: str) -> int:
    """A descriptor of a file of a process."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise GoneError from None
    except PermissionError:
        raise no_permission(path) from None


def words_of(raw: bytes) -> array.array[int]:
    """Native 64-bit words."""
    words = array.array("Q")
    words.frombytes(raw)
    return words




def parse_smaps(text: str) -> list[tuple[int, int, int, str]]:
    """Mappings (start_vpn, end_vpn, flags, name); raises GoneError when the text is cut short."""
    vmas = []
    header: re.Match[str] | None = None
    for line in text.split("\n"):
        if line.startswith("VmFlags:"):
            if header is None:
                raise GoneError
            start, end, _, inode, path = header.groups()
            header = None
            if path == "[vsyscall]":
                continue
            flags = 0
            for name in line[len("VmFlags:"):].split():
                flags |= VM_FLAGS.get(name, 0)
            if inode != "0" or path.startswith("/"):
                flags |= R_FILE
                if path.endswith(" (deleted)"):
                    path = path[:-len(" (deleted)")]
                path = path.rpartition("/")[2]
            elif path == "[heap]":
                flags |= R_HEAP
            elif path.startswith("[stack"):
                flags |= R_STACK
            vmas.append((int(start, 16) >> 12, int(end, 16) >> 12, flags, path))
        elif line[:1] in tuple("0123456789abcdef"):
            match = SMAPS_HEADER.fullmatch(line)
            if match is not None:
                if header is not None:
                    raise GoneError
                header = match
    if header is not None:
        raise GoneError
    return vmas


def read_vmas(root: Root, pid: int) -> list[tuple[int, int, int, str]]:
    """The mappings of a process; raises GoneError when it has none (a zombie, a kernel thread)."""
    path = root.of(pid, "smaps")
    try:
        text = read_text(path)
    except (FileNotFoundError, ProcessLookupError):
        raise GoneError from None
    except PermissionError:
        raise no_permission(path) from None
    if not text:
        raise GoneError
    return parse_smaps(text)


def start_ticks(root: Root, pid: int) -> int:
    """When a process started, in clock ticks since boot: tells a reused pid."""
    try:
        text = read_text(root.of(pid, "stat"))
        fields = text[text.rindex(")") + 2:].split()
        if fields[0] in ("Z", "X"):
            raise GoneError
        return int(fields[19])
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        raise GoneError from None


class Pagemap:
    """/proc/PID/pagemap of one process."""

    def __init__(self, root: Root, pid: int) -> None:
        self.path = root.of(pid, "pagemap")
        self.fd = open_of(self.path)

    def read(self, start: int, end: int) -> bytes:
        """The raw entries of the pages [start, end)."""
        try:
            raw = os.pread(self.fd, (end - start) * 8, start * 8)
        except ProcessLookupError:
            raise GoneError from None
        if len(raw) != (end - start) * 8:
            raise GoneError
        return raw


class FrameTable:
    """/proc/kpageflags and /proc/kpagecount, read by runs of frames."""

    def __init__(self, root: Root) -> None:
        self.fds = []
        for name in ("kpageflags", "kpagecount"):
            path = f"{root.proc}/{name}"
            try:
                self.fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                raise AgentError(f"{path}: this kernel has no such file; capture on a kernel with "
                                 "CONFIG_PROC_PAGE_MONITOR") from None
            except PermissionError:
                raise no_permission(path) from None

    def close(self) -> None:
        """Close both files."""
        for fd in self.fds:
            os.close(fd)

    def flags(self, pfns: Iterable[int]) -> dict[int, int]:
        """KPF bits by frame."""
        return self._read(self.fds[0], pfns)

    def n_mappings(self, pfns: Iterable[int]) -> dict[int, int]:
        """How often each frame is mapped."""
        return self._read(self.fds[1], pfns)

    def _read(self, fd: int, pfns: Iterable[int]) -> dict[int, int]:
        """One pread a run; frames past the end of memory give 0."""
        frames = sorted(set(pfns))
        found: dict[int, int] = {}
        at = 0
        while at < len(frames):
            end = at + 1
            while end < len(frames) and frames[end] - frames[end - 1] <= FRAME_GAP:
                end += 1
            first = frames[at]
            words = words_of(os.pread(fd, (frames[end - 1] - first + 1) * 8, first * 8))
            n_words = len(words)
            for pfn in frames[at:end]:
                found[pfn] = words[pfn - first] if pfn - first < n_words else 0
            at = end
        return found


class NumaMap:
    """The NUMA node of a frame, from the zones of /proc/zoneinfo; -1 where unknown."""

    def __init__(self, root: Root) -> None:
        spans = []
        node, n_spanned = -1, 0
        try:
            text = read_text(f"{root.proc}/zoneinfo")
        except OSError:
            text = ""
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["Node"]:
                node, n_spanned = int(words[1].rstrip(",")), 0
            elif words[:1] == ["spanned"]:
                n_spanned = int(words[1])
            elif words[:1] == ["start_pfn:"] and n_spanned:
                spans.append((int(words[1]), int(words[1]) + n_spanned, node))
        spans.sort()
        # Nodes whose memory interleaves cannot be told apart by zone: then nothing is claimed.
        if any(spans[i][1] > spans[i + 1][0] for i in range(len(spans) - 1)):
            spans = []
        self.starts = [span[0] for span in spans]
        self.ends = [span[1] for span in spans]
        self.nodes = [span[2] for span in spans]
        self.n_nodes = len(set(self.nodes))

    def node_of(self, pfn: int) -> int:
        """The node of a frame."""
        at = bisect.bisect_right(self.starts, pfn) - 1
        return self.nodes[at] if at >= 0 and pfn < self.ends[at] else -1


def ksm_counters(root: Root) -> dict[str, int]:
    """All integers of /sys/kernel/mm/ksm, and `cow_ksm` and `ksm_swpin_copy` of /proc/vmstat."""
    folder = f"{root.sys}/kernel/mm/ksm"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    values = ((name, read_int(f"{folder}/{name}")) for name in names)
    counters = {name: value for name, value in values if value is not None}
    try:
        lines = read_text(f"{root.proc}/vmstat").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, text = line.partition(" ")
        if name in ("cow_ksm", "ksm_swpin_copy") and text.isdigit():
            counters[name] = int(text)
    return counters


# ---------------------------------------------------------------- whom to capture


class Target:
    """One guest: some processes, or all processes of a cgroup folder."""

    def __init__(self, name: str, kind: str, pids: Sequence[int] = (), cgroup: str | None = None,
                 memory_bytes: int | None = None) -> None:
        self.name, self.kind, self.pids = name, kind, pids
        self.cgroup, self.memory_bytes = cgroup, memory_bytes


def arguments_of(root: Root, pid: int) -> list[str]:
    """The command line of a process; empty when there is none."""
    try:
        with open(root.of(pid, "cmdline"), "rb") as stream:
            raw = stream.read()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")]


def is_qemu(root: Root, pid: int) -> bool:
    """Whether a process is a QEMU machine."""
    arguments = arguments_of(root, pid)
    return bool(arguments) and QEMU.fullmatch(os.path.basename(arguments[0])) is not None


def qemu_property(arguments: Sequence[str], option: str, key: str) -> str:
    """The property `key` of -option, which may also be its first bare value; the last one counts.

    QEMU writes a comma inside a value as two.
    """
    text = ""
    for i, argument in enumerate(arguments[:-1]):
        if argument in (f"-{option}", f"--{option}"):
            text = arguments[i + 1]
    found = {}
    for i, part in enumerate(text.replace(",,", "\0").split(",")):
        name, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            found[name] = value
        elif i == 0:
            found[key] = name
    return found.get(key, "")


def qemu_memory_bytes(arguments: Sequence[str]) -> int:
    """Bytes of -m: a bare number is MiB; k, M, G, T are binary."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgtBKMGT]?)", qemu_property(arguments, "m", "size"))
    if match is None:
        return 128 << 20
    power = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "": 20}[match[2].lower()]
    return int(float(match[1]) * (1 << power))


def process_target(root: Root, pid: int) -> Target:
    """The guest that a process is."""
    try:
        comm = process_of(root, pid)[2]
    except GoneError:
        raise AgentError(f"--pid {pid}: no such process; check the number, it may have exited"
                         ) from None
    if not is_qemu(root, pid):
        return Target(f"{comm}-{pid}", "process", (pid,))
    arguments = arguments_of(root, pid)
    name = qemu_property(arguments, "name", "guest") or f"{comm}-{pid}"
    return Target(name, "vm", (pid,), memory_bytes=qemu_memory_bytes(arguments))


def process_of(root: Root, pid: int) -> tuple[int, int, str]:
    """pid, start in clock ticks, command name."""
    ticks = start_ticks(root, pid)
    try:
        return pid, ticks, read_text(root.of(pid, "comm")).rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        raise GoneError from None


def cgroup_folder(root: Root, name: str) -> str:
    """The folder of a cgroup given as a path, or as a name below the cgroup hierarchies."""
    base = f"{root.sys}/fs/cgroup"
    tried = [name] if os.path.isabs(name) else []
    relative = name.lstrip("/")
    tried.append(os.path.join(base, relative))
    if os.path.isdir(base):
        tried.extend(os.path.join(base, place, relative) for place in sorted(os.listdir(base)))
    for path in tried:
        if os.path.exists(os.path.join(path, "cgroup.procs")):
            return os.path.realpath(path)
    raise AgentError(f"--cgroup {name}: no such cgroup; name a folder below {base} that has a "
                     "cgroup.procs file")


def cgroup_pids(folder: str) -> set[int]:
    """Processes of a cgroup and of those below it; empty when it is gone."""
    pids: set[int] = set()
    for place, _, files in os.walk(folder):
        if "cgroup.procs" in files:
            try:
                pids.update(int(word) for word in read_text(f"{place}/cgroup.procs").split())
            except OSError:
                # Removed meanwhile, or threaded (its processes are listed at the domain above).
                continue
    return pids


def resolve_targets(root: Root, pids: Sequence[int], cgroups: Sequence[str], qemu: bool
                    ) -> list[Target]:
    """The guests that the options name, each once."""
    if not (pids or cgroups or qemu):
        raise AgentError("nothing to capture is named; pass --pid, --cgroup or --qemu", 2)
    if os.getpid() in pids:
        raise AgentError(f"--pid {os.getpid()}: the capture cannot capture itself", 2)
    targets = [process_target(root, pid) for pid in dict.fromkeys(pids)]
    if qemu:
        every = sorted(int(name) for name in os.listdir(root.proc) if name.isdigit())
        machines = [pid for pid in every if pid not in pids and is_qemu(root, pid)]
        if not machines and not targets and not cgroups:
            raise AgentError("no QEMU process runs here (looked for qemu-system-*, qemu-kvm); "
                             "start the machines, or name processes with --pid")
        for pid in machines:
            try:
                targets.append(process_target(root, pid))
            except AgentError:
                continue  # ended meanwhile
    folders = list(dict.fromkeys(cgroup_folder(root, name) for name in cgroups))
    names = [os.path.basename(folder) for folder in folders]
    for folder, name in zip(folders, names):  # noqa: B905 (strict= came with Python 3.10)
        if names.count(name) > 1:
            # Two cgroups of the same name are told apart by their parents.
            name = f"{os.path.basename(os.path.dirname(folder))}/{name}"
        targets.append(Target(name, "container", cgroup=folder))
    return targets


def processes_of(root: Root, target: Target) -> list[tuple[int, int, str]]:
    """The living processes of a target now, by pid; never this one."""
    pids: Iterable[int] = target.pids
    if target.cgroup is not None:
        pids = sorted(cgroup_pids(target.cgroup) - {os.getpid()})
    found = []
    for pid in pids:
        try:
            found.append(process_of(root, pid))
        except GoneError:
            continue
    return found


def guest_ram(vmas: Sequence[tuple[int, int, int, str]], memory_bytes: int | None) -> int | None:
    """The start of the mapping of a machine's memory: private, anonymous, closest to -m."""
    fitting = [vma for vma in vmas if not vma[2] & (R_INCOMPATIBLE | R_FILE | R_HEAP | R_STACK)
               and vma[2] & R_WRITE]
    fitting = [vma for vma in fitting if vma[2] & R_ADVISED] or fitting
    wanted = (memory_bytes or 0) // PAGE_BYTES
    # The kernel may split a mapping, or join neighbours: half and twice are still its memory.
    near = [vma for vma in fitting if wanted <= 2 * (vma[1] - vma[0]) <= 4 * wanted]
    return min(near, key=lambda vma: abs(vma[1] - vma[0] - wanted))[0] if near else None


def content_of(flags: int, name: str) -> str:
    """What a mapping holds, as the label `content` says it."""
    if flags & R_GUEST_RAM:
        return "guest-ram"
    if flags & R_PFNMAP_IO or name in ("[vdso]", "[vvar]"):
        return "special"
    if flags & R_HUGETLB:
        return "hugetlb"
    if flags & R_FILE:
        return "file-shared" if flags & R_MAYSHARE else "file-private"
    if flags & R_MAYSHARE:
        return "shmem"
    if flags & R_HEAP:
        return "heap"
    return "stack" if flags & R_STACK else "anon"


# ---------------------------------------------------------------- pages


class FrameIds:
    """Small numbers for frames that are mapped more than once; frame numbers never leave.

    A frame keeps its number as long as every snapshot meets it with the same content.
    """

    def __init__(self) -> None:
        self.before: dict[tuple[int, int], int] = {}
        self.now: dict[tuple[int, int], int] = {}
        self.next_id = 0

    def begin_snapshot(self) -> None:
        """Forget the frames that the last snapshot did not meet."""
        self.before, self.now = self.now, {}

    def of(self, pfn: int, digest: int) -> int:
        """The number of a frame with this content."""
        key = (pfn, digest)
        found = self.now.get(key)
        if found is None:
            found = self.before.get(key)
            if found is None:
                found = self.next_id
                self.next_id += 1
            self.now[key] = found
        return found


class Chunk:
    """The listed pages of one stretch of a mapping, ascending; parallel lists."""

    def __init__(self, vpns: list[int], entries: list[int]) -> None:
        n_pages = len(vpns)
        self.vpns, self.entries = vpns, entries
        self.hashes, self.flags, self.is_shared = [0] * n_pages, [0] * n_pages, [False] * n_pages
        self.frame_ids, self.nodes = [-1] * n_pages, [-1] * n_pages


class Pages:
    """Captures the pages of address spaces, one after another, with the same settings."""

    def __init__(self, frames: FrameTable, numa: NumaMap, key: bytes, include: str,
                 pace: Callable[[], None]) -> None:
        self.frames, self.numa, self.include, self.pace = frames, numa, include, pace
        self.frame_ids = FrameIds()
        self.hasher = hasher(key)
        self.zero_hash = keyed(key, ZERO_PAGE)
        self.skipped: dict[str, int] = {}
        self.buffer = memoryview(bytearray(BATCH_PAGES * PAGE_BYTES))
        self.known_flags: dict[int, int] = {}

    def skip(self, reason: str, n_pages: int = 1) -> None:
        """Count pages (or processes) that were left out."""
        if n_pages:
            self.skipped[reason] = self.skipped.get(reason, 0) + n_pages

    def capture(self, pagemap: Pagemap, mem: int,
                vmas: Iterable[tuple[int, int, int, str]]) -> Iterator[Chunk]:
        """The listed pages, chunk by chunk; raises GoneError."""
        for start, end, flags, _ in vmas:
            if flags & R_PFNMAP_IO or (self.include == "advised" and not flags & R_ADVISED) or (
                    self.include != "all" and flags & R_INCOMPATIBLE):
                continue
            at = start
            while at < end:
                stop = min(at + CHUNK_PAGES, end)
                chunk = self.chunk(pagemap, mem, at, stop)
                at = stop
                if chunk is None:
                    at = self.next_listed(pagemap, at, end)
                elif chunk.vpns:
                    yield chunk
                self.pace()

    def next_listed(self, pagemap: Pagemap, start: int, end: int) -> int:
        """The first page to list in [start, end): steps over the holes of sparse mappings."""
        for at in range(start, end, STRIDE_PAGES):
            raw = pagemap.read(at, min(at + STRIDE_PAGES, end))
            if raw.count(0) == len(raw):
                continue
            for index, entry in enumerate(words_of(raw)):
                if entry and self.is_listed(entry):
                    return at + index
        return end

    def is_listed(self, entry: int) -> bool:
        """Whether a page map entry stands for a page to list."""
        if self.include != "all" and entry & PM_FILE:
            return False
        return bool(entry & PM_PRESENT) or (
            bool(entry & PM_SWAP) and entry & 31 != SWAP_TYPE_MARKER)

    def chunk(self, pagemap: Pagemap, mem: int, start: int, end: int) -> Chunk | None:
        """The pages of [start, end); None when none is listed.

        A page whose entry changed while it was read is done once more, and is listed as
        unreadable when it changed again.
        """
        entries = words_of(pagemap.read(start, end))
        index = [i for i, entry in enumerate(entries) if entry and self.is_listed(entry)]
        if not index:
            return None
        chunk = Chunk([start + i for i in index], [entries[i] for i in index])
        todo: Sequence[int] = range(len(index))
        for attempt in range(ATTEMPTS):
            self.fill(pagemap.path, mem, chunk, todo)
            after = words_of(pagemap.read(start, end))
            moved = {k for k in todo if (after[index[k]] ^ chunk.entries[k]) & PM_PLACE}
            bad = [k for k in todo if k in moved or chunk.flags[k] & UNREADABLE]
            if not bad:
                break
            if attempt + 1 < ATTEMPTS:
                todo = bad
                chunk.entries = [after[i] for i in index]
            else:
                # Moved each time: what was read cannot be said to belong to a frame.
                for k in moved:
                    chunk.flags[k] = chunk.flags[k] & ANON | UNREADABLE
                    chunk.is_shared[k] = False
                self.skip("moved_pages", len(moved))
                self.skip("unreadable_pages", len(bad) - len(moved))
        for k, flags in enumerate(chunk.flags):
            if flags & (SWAPPED | UNREADABLE | MIGRATION):
                chunk.hashes[k] = 0
            if chunk.is_shared[k]:
                chunk.frame_ids[k] = self.frame_ids.of(chunk.entries[k] & PM_FRAME,
                                                       chunk.hashes[k])
        if not all(map(self.is_listed, chunk.entries)):
            # Unmapped while the chunk was read: no page any more.
            kept = [k for k, entry in enumerate(chunk.entries) if self.is_listed(entry)]
            for name in ("vpns", "entries", "hashes", "flags", "is_shared", "frame_ids", "nodes"):
                column = getattr(chunk, name)
                setattr(chunk, name, [column[k] for k in kept])
        return chunk

    def fill(self, path: str, mem: int, chunk: Chunk, todo: Sequence[int]) -> None:
        """Flags, frames and hashes of the pages `todo`, as their entries say."""
        entries = chunk.entries
        present = []
        for k in todo:
            entry = entries[k]
            chunk.is_shared[k] = False
            if not entry & PM_PRESENT:
                special = entry & 31 >= FIRST_SPECIAL_SWAP_TYPE
                chunk.flags[k] = (MIGRATION if special else SWAPPED) | (
                    FILE if entry & PM_FILE else ANON)
                chunk.nodes[k] = -1
            elif not entry & PM_FRAME:
                # Frame 0 is never given to a process: this is a censored entry.
                raise AgentError(f"{path}: the kernel hides frame numbers; run as root or with "
                                 "CAP_SYS_ADMIN")
            else:
                present.append(k)
        if not present:
            return
        kpf_of = self.frames.flags(entries[k] & PM_FRAME for k in present)
        counts = self.frames.n_mappings(pfn for pfn, kpf in kpf_of.items() if kpf & KPF_COMPOUND)
        wanted = []
        for k in present:
            entry = entries[k]
            pfn = entry & PM_FRAME
            kpf = kpf_of[pfn]
            flags = self.known_flags.get(kpf)
            if flags is None:
                flags = 0
                for bit, flag in KPF_TO_FLAG:
                    if kpf & bit:
                        flags |= flag
                self.known_flags[kpf] = flags
            if entry & PM_FILE:
                flags |= SHMEM if kpf & KPF_SWAPBACKED else FILE
            # Bit 56 says "mapped once" exactly for small pages; those of large folios are counted.
            n_mappings = counts.get(pfn, 1 if entry & PM_EXCLUSIVE else 2)
            if n_mappings == 1:
                flags |= EXCLUSIVE
            if kpf & KPF_ZERO_PAGE:
                flags |= ZERO
                chunk.hashes[k] = self.zero_hash
            else:
                chunk.is_shared[k] = n_mappings > 1
                wanted.append(k)
            chunk.flags[k] = flags
            chunk.nodes[k] = self.numa.node_of(pfn)
        self.hash(mem, chunk, wanted)

    def hash(self, mem: int, chunk: Chunk, wanted: Sequence[int]) -> None:
        """Read and hash the pages at the indices `wanted`, runs of neighbours at once."""
        vpns, at = chunk.vpns, 0
        while at < len(wanted):
            end, first = at + 1, vpns[wanted[at]]
            while end < len(wanted) and end - at < BATCH_PAGES and (
                    vpns[wanted[end]] - first == end - at):
                end += 1
            try:
                n_bytes = os.preadv(mem, [self.buffer[:(end - at) * PAGE_BYTES]],
                                    first * PAGE_BYTES)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT, errno.ENOMEM):
                    raise
                n_bytes = 0
            n_read = n_bytes // PAGE_BYTES
            for i in range(n_read):
                view = self.buffer[i * PAGE_BYTES:(i + 1) * PAGE_BYTES]
                state = self.hasher.copy()
                state.update(view)
                digest = int.from_bytes(state.digest(), "little")
                k = wanted[at + i]
                chunk.hashes[k] = digest
                if digest == self.zero_hash and view == ZERO_PAGE:
                    chunk.flags[k] |= ZERO
            at += n_read
            if at < end:
                # One bad page ends a read early; those behind it are read on their own.
                chunk.flags[wanted[at]] |= UNREADABLE
                at += 1


# ---------------------------------------------------------------- the stream


class Stream:
    """Writes frames with lengths, numbers and checksums."""

    def __init__(self, out: BinaryIO, n_frames: int = 0) -> None:
        self.out, self.n_frames = out, n_frames
        if not n_frames:
            out.write(MAGIC)

    def write(self, kind: bytes, payload: bytes) -> None:
        """One frame."""
        head = FRAME_HEADER.pack(kind, len(payload), self.n_frames)
        total = hashlib.blake2b(head, digest_size=SUM_BYTES)
        total.update(payload)
        self.out.write(b"".join((head, payload, total.digest())))
        self.n_frames += 1

    def document(self, kind: bytes, document: Any) -> None:
        """One frame that holds JSON."""
        self.write(kind, json.dumps(document, separators=(",", ":")).encode())

    def pages(self, chunk: Chunk) -> None:
        """The pages of a chunk: count, first vpn, hashes, then the packed rest."""
        vpns, n_pages = chunk.vpns, len(chunk.vpns)
        steps = array.array("H", [0, *(vpns[i] - vpns[i - 1] for i in range(1, n_pages))])
        columns = [array.array("Q", chunk.hashes), steps, array.array("I", chunk.flags),
                   array.array("i", chunk.frame_ids)]
        if sys.byteorder == "big":
            for column in columns:
                column.byteswap()
        hashes, *rest = (column.tobytes() for column in columns)
        packed = zlib.compress(b"".join([*rest, array.array("b", chunk.nodes).tobytes()]), 1)
        self.write(b"PAGE", struct.pack("<IQ", n_pages, vpns[0]) + hashes + packed)

    def flush(self) -> None:
        """Everything written so far is on its way to the disk."""
        self.out.flush()
        try:
            os.fsync(self.out.fileno())
        except OSError:
            return  # a pipe


class Resumed:
    """What a stream that is there holds, up to its last whole snapshot."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.guests: list[dict[str, Any]] = []
        self.mms: dict[tuple[int, int, int], int] = {}
        self.last: set[int] = set()
        self.n_snapshots = self.end = self.n_frames = 0


def frames_of(stream: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, payload and end offset of the whole frames of a stream, up to the first that is not."""
    end = len(MAGIC)
    for number in itertools.count():
        head = stream.read(FRAME_HEADER.size)
        if len(head) < FRAME_HEADER.size:
            return
        kind, n_bytes, found = FRAME_HEADER.unpack(head)
        if found != number or n_bytes > 4 << 20:
            return
        payload = stream.read(n_bytes)
        total = hashlib.blake2b(head, digest_size=SUM_BYTES)
        total.update(payload)
        if stream.read(SUM_BYTES) != total.digest():
            return
        end += FRAME_HEADER.size + n_bytes + SUM_BYTES
        yield kind, payload, end


def read_resumed(stream: BinaryIO, path: str) -> Resumed:
    """Where to go on in a stream; raises AgentError when it is none."""
    found = Resumed()
    if stream.read(len(MAGIC)) != MAGIC:
        raise AgentError(f"{path}: not a stream of this agent; name another file with -o", 2)
    guests: list[dict[str, Any]] = []
    mms: dict[tuple[int, int, int], int] = {}
    seen: set[int] = set()
    for number, (kind, payload, end) in enumerate(frames_of(stream)):
        if kind == b"PAGE" or kind == b"REGN":
            continue
        document = json.loads(payload)
        if kind == b"HEAD":
            found.head = document
            found.end, found.n_frames = end, number + 1
        elif kind == b"GUST":
            guests.append(document)
        elif kind == b"SNAP":
            seen = set()
        elif kind == b"MMBG":
            mms[document["guest"], document["pid"], document["start_ticks"]] = document["mm"]
            seen.add(document["mm"])
        elif kind == b"SNEN":
            found.guests, found.mms, found.last = list(guests), dict(mms), set(seen)
            found.n_snapshots += 1
            found.end, found.n_frames = end, number + 1
    if not found.head:
        raise AgentError(f"{path}: it was cut before its first frame; remove it and start again", 2)
    return found


def open_output(path: str, resume: bool) -> BinaryIO:
    """The output, with mode 0600, locked: two agents never write one file."""
    if path == "-":
        if sys.stdout.isatty():
            raise AgentError("the stream cannot go to a terminal; name a file with -o", 2)
        if stat.S_ISREG(os.fstat(1).st_mode):
            os.fchmod(1, 0o600)
        return sys.stdout.buffer
    how = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (
        0 if resume else os.O_CREAT | os.O_EXCL)
    try:
        fd = os.open(path, how, 0o600)
    except FileExistsError:
        raise AgentError(f"{path}: it exists already; pass --resume to go on with it, or choose "
                         "another name", 2) from None
    except OSError as error:
        raise AgentError(f"{path}: cannot write: {error.strerror}; choose another file") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AgentError(f"{path}: not a regular file; choose another name", 2)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AgentError(f"{path}: another agent is writing it") from None
    os.fchmod(fd, 0o600)
    return os.fdopen(fd, "r+b")


def close_output(out: BinaryIO) -> None:
    """Close the output, unless it is not ours."""
    if out is not sys.stdout.buffer:
        out.close()


# ---------------------------------------------------------------- a capture


class Pace:
    """Keeps the process's CPU time within a share of one CPU, counted from `begin`."""

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.begin()

    def begin(self) -> None:
        """Start counting."""
        self.began_cpu, self.began = time.process_time(), time.monotonic()

    def wait(self) -> None:
        """Sleep as long as the share asks for."""
        if self.share is not None:
            ahead = (time.process_time() - self.began_cpu) / self.share - (
                time.monotonic() - self.began)
            if ahead > 0.001:
                time.sleep(ahead)


class Session:
    """The state that lasts over the snapshots of one capture."""

    def __init__(self, root: Root, targets: list[Target], stream: Stream, pages: Pages,
                 pace: Pace) -> None:
        self.root, self.targets, self.stream = root, targets, stream
        self.pages, self.pace = pages, pace
        self.guest_ids: dict[int, int] = {}
        self.n_guests = self.n_mms = 0
        #: Whole snapshots, and the end of the last as byte and frame; one value, so that a signal
        #: never meets half of it.
        self.kept = (0, 0, 0)
        #: (target, pid, start) -> mm
        self.mm_ids: dict[tuple[int, int, int], int] = {}
        self.lost: set[tuple[int, int, int]] = set()
        self.missed: set[int] = set()

    def go_on(self, found: Resumed) -> None:
        """Take over the guests and mms of a stream that is resumed."""
        by_name = {(guest["name"], guest["kind"]): guest["guest"] for guest in found.guests}
        for i, target in enumerate(self.targets):
            guest = by_name.get((target.name, target.kind))
            if guest is not None:
                self.guest_ids[i] = guest
        of_guest = {guest: i for i, guest in self.guest_ids.items()}
        for (guest, pid, ticks), mm in found.mms.items():
            # A guest that is not named this time is left out; its number stays taken.
            key = (of_guest.get(guest, -1 - guest), pid, ticks)
            self.mm_ids[key] = mm
            if mm not in found.last:
                self.lost.add(key)
        self.n_guests = len(found.guests)
        self.n_mms = 1 + max(found.mms.values(), default=-1)

    @property
    def n_done(self) -> int:
        """Whole snapshots so far."""
        return self.kept[0]

    def keep(self, n_done: int) -> None:
        """What is written so far is whole and holds `n_done` snapshots."""
        out = self.stream.out
        self.kept = (n_done, out.tell() if out.seekable() else 0, self.stream.n_frames)

    def take(self, late_ns: int) -> bool:
        """Take one snapshot; False when no target is left (nothing whole is written then)."""
        present = [((i, pid, ticks), comm) for i, target in enumerate(self.targets)
                   for pid, ticks, comm in processes_of(self.root, target)]
        # An mm that missed a snapshot is not the same mm any more: a process is lost once.
        present = [item for item in present if item[0] not in self.lost]
        if not present:
            return False
        pages = self.pages
        pages.skipped = {"late_ns": late_ns} if late_ns else {}
        gone = set(self.mm_ids) - {key for key, _ in present} - self.lost
        self.lost |= gone
        pages.skip("exited_processes", len(gone))
        missing = set(range(len(self.targets))) - {key[0] for key, _ in present} - self.missed
        self.missed |= missing
        pages.skip("exited_guests", len(missing))
        is_partial = bool(missing)
        pages.frame_ids.begin_snapshot()
        self.pace.begin()
        began = time.monotonic()
        self.stream.document(b"SNAP", {"snapshot": self.n_done, "start_ns": time.time_ns(),
                                       "counters": ksm_counters(self.root)})
        present.sort(key=lambda item: self.mm_ids.get(item[0], self.n_mms))
        n_pages = n_written = 0
        for key, comm in present:
            n_mm_pages, is_whole = self.take_mm(key, comm)
            n_pages += max(n_mm_pages, 0)
            n_written += n_mm_pages >= 0
            is_partial |= not is_whole
        if not n_written:
            return False
        self.stream.document(b"SNEN", {
            "snapshot": self.n_done, "end_ns": time.time_ns(), "is_partial": is_partial,
            "n_pages": n_pages, "skipped": pages.skipped})
        self.stream.flush()
        self.keep(self.n_done + 1)
        say(f"snapshot {self.n_done}: {n_pages} pages of {n_written} processes in "
            f"{time.monotonic() - began:.1f} s"
            + "".join(f", {count} {name}" for name, count in sorted(pages.skipped.items())))
        return True

    def take_mm(self, key: tuple[int, int, int], comm: str) -> tuple[int, bool]:
        """Capture one process: how many pages (-1: nothing was written), whether it is whole."""
        target, pid = self.targets[key[0]], key[1]
        fds: list[int] = []
        n_pages = -1
        is_whole = True
        try:
            vmas = read_vmas(self.root, pid)
            pagemap = Pagemap(self.root, pid)
            fds.append(pagemap.fd)
            mem = open_of(self.root.of(pid, "mem"))
            fds.append(mem)
            # Opened files stay with the address space they were opened on, so a pid that was
            # given away before now would show here.
            if start_ticks(self.root, pid) != key[2]:
                raise GoneError
            for chunk in self.pages.capture(pagemap, mem, vmas):
                if n_pages < 0:
                    n_pages = self.begin_mm(key, target, comm, vmas)
                self.stream.pages(chunk)
                n_pages += len(chunk.vpns)
            if n_pages < 0:
                n_pages = self.begin_mm(key, target, comm, vmas)
        except GoneError:
            is_whole = False
            self.pages.skip("exited_processes")
            self.lost.add(key)
        finally:
            for fd in fds:
                os.close(fd)
        if n_pages >= 0:
            self.stream.document(b"MMEN", {"mm": self.mm_ids[key], "n_pages": n_pages})
        self.pace.wait()
        return n_pages, is_whole

    def begin_mm(self, key: tuple[int, int, int], target: Target, comm: str,
                 vmas: Sequence[tuple[int, int, int, str]]) -> int:
        """Write what stands before the pages of a process; returns 0, the pages so far."""
        if key[0] not in self.guest_ids:
            self.guest_ids[key[0]] = self.n_guests
            self.stream.document(b"GUST", {
                "guest": self.n_guests, "name": target.name, "kind": target.kind,
                "memory_bytes": target.memory_bytes})
            self.n_guests += 1
        if key not in self.mm_ids:
            self.mm_ids[key] = self.n_mms
            self.n_mms += 1
        self.stream.document(b"MMBG", {
            "mm": self.mm_ids[key], "guest": self.guest_ids[key[0]], "pid": key[1], "comm": comm,
            "start_ticks": key[2]})
        ram = guest_ram(vmas, target.memory_bytes) if target.kind == "vm" else None
        rows = []
        for start, end, flags, name in vmas:
            flags |= R_GUEST_RAM if start == ram else 0
            rows.append([start, end, flags, name, content_of(flags, name)])
        for at in range(0, len(rows), REGIONS_A_FRAME):
            self.stream.document(b"REGN", rows[at:at + REGIONS_A_FRAME])
        return 0


def provenance_of(root: Root, numa: NumaMap, options: argparse.Namespace) -> dict[str, Any]:
    """Where a stream comes from; neither the host's name nor any path."""
    settings = {}
    for name in ("run", "pages_to_scan", "sleep_millisecs", "max_page_sharing",
                 "merge_across_nodes", "use_zero_pages", "smart_scan"):
        value = read_int(f"{root.sys}/kernel/mm/ksm/{name}")
        if value is not None:
            settings[name] = value
    chosen = memory_bytes = None
    try:
        match = re.search(r"\[(\w+)\]",
                          read_text(f"{root.sys}/kernel/mm/transparent_hugepage/enabled"))
        chosen = match[1] if match else None
    except OSError:
        pass
    try:
        match = re.search(r"^MemTotal:\s+(\d+)", read_text(f"{root.proc}/meminfo"), re.MULTILINE)
        memory_bytes = int(match[1]) * 1024 if match else None
    except OSError:
        pass
    return {
        "software": f"ksm-planner agent {VERSION}", "source": "agent",
        "kernel": platform.release(), "machine": platform.machine(),
        "python": platform.python_version(), "page_bytes": PAGE_BYTES,
        "transparent_hugepage": chosen or "unknown", "ksm": settings,
        "n_cpus": os.cpu_count() or 0, "n_numa_nodes": numa.n_nodes,
        "memory_bytes": memory_bytes, "cpu_limit": options.cpu_limit,
        "every_ns": options.every, "include": options.include,
    }


def boot_of(root: Root, key: bytes) -> str:
    """Tells two boots apart without naming one; empty where unknown."""
    try:
        return f"{keyed(key, read_text(f'{root.proc}/sys/kernel/random/boot_id').encode()):016x}"
    except OSError:
        return ""


def capture(options: argparse.Namespace) -> int:
    """Take the snapshots that the options ask for; returns the exit code."""
    root = Root(options.proc, options.sys)
    targets = resolve_targets(root, options.pid, options.cgroup, options.qemu)
    frames = FrameTable(root)
    if not any(processes_of(root, target) for target in targets):
        raise AgentError("none of the targets has a process; check that the cgroup is the one that "
                         "runs them")
    key = load_key(options.key or default_key_path())
    pace, numa = Pace(options.cpu_limit), NumaMap(root)
    pages = Pages(frames, numa, key, options.include, pace.wait)
    head = {
        "format": FORMAT, "kind": "capture", "algorithm": ALGORITHM, "bits": 64,
        "key_id": key_id_of(key), "zero_hash": f"{pages.zero_hash:016x}",
        "boot": boot_of(root, key), "provenance": provenance_of(root, numa, options),
    }
    out = open_output(options.output, options.resume)
    try:
        return write_capture(options, out, head, root, targets, pages, pace)
    finally:
        close_output(out)
        frames.close()


def write_capture(options: argparse.Namespace, out: BinaryIO, head: dict[str, Any], root: Root,
                  targets: list[Target], pages: Pages, pace: Pace) -> int:
    """Write all snapshots to `out` on schedule; returns the exit code."""
    if options.resume:
        try:
            found = read_resumed(out, options.output)
            check_resumed(found, head, options)
            stream = Stream(out, found.n_frames)
            session = Session(root, targets, stream, pages, pace)
            session.go_on(found)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise AgentError(f"{options.output}: not a stream of this version of the agent; "
                             "begin a new one", 2) from None
        out.seek(found.end)
        out.truncate()
        say(f"going on after {found.n_snapshots} snapshots")
    else:
        stream = Stream(out)
        stream.document(b"HEAD", head)
        session = Session(root, targets, stream, pages, pace)
    kept = None if options.output == "-" else out
    session.keep(found.n_snapshots if options.resume else 0)
    first, n_before = time.monotonic_ns(), session.n_done
    status = "complete"
    try:
        for k in range(options.snapshots - n_before):
            wait_ns = first + k * options.every - time.monotonic_ns()
            if k and wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            if not session.take(max(0, -wait_ns) if k else 0):
                status = "partial"
                break
    except KeyboardInterrupt:
        status = "interrupted"
    except AgentError:
        if kept and not session.n_done:
            os.unlink(options.output)
        raise
    if kept and status != "complete":
        # What was begun and not finished is taken back.
        out.seek(session.kept[1])
        out.truncate()
        stream.n_frames = session.kept[2]
    if not session.n_done:
        if kept:
            os.unlink(options.output)
        if status == "interrupted":
            say("interrupted before the first snapshot was finished; nothing was kept")
            return 130
        raise AgentError("every target ended before a snapshot was finished; capture processes "
                         "that stay")
    if kept or status != "interrupted":
        stream.document(b"DONE", {"status": "complete" if status == "complete" else "partial",
                                  "n_snapshots": session.n_done})
    stream.flush()
    if status == "interrupted":
        say(f"interrupted; {session.n_done} of {options.snapshots} snapshots are kept; pass "
            "--resume to go on")
        return 130
    say(f"{options.output}: {session.n_done} snapshots ({status}), key id {head['key_id']}; next: "
        "planner trace import --format agent")
    return 0


def check_resumed(found: Resumed, head: dict[str, Any], options: argparse.Namespace) -> None:
    """Refuse to go on with what would not be one capture."""
    old = found.head
    if old.get("kind") != "capture" or old.get("format") != FORMAT:
        raise AgentError(f"{options.output}: not a capture of this version of the agent", 2)
    if old.get("key_id") != head["key_id"]:
        raise AgentError(f"{options.output}: written with the key {old.get('key_id')}, this one is "
                         f"{head['key_id']}; name the same key with --key", 2)
    if old.get("boot") != head["boot"]:
        raise AgentError(f"{options.output}: this host was started again since; begin a new stream")
    if old.get("provenance", {}).get("include") != options.include:
        raise AgentError(f"{options.output}: written with --include "
                         f"{old.get('provenance', {}).get('include')}; pass the same", 2)
    if found.n_snapshots >= options.snapshots:
        raise AgentError(f"{options.output}: it holds {found.n_snapshots} snapshots already; ask "
                         "for more with --snapshots", 2)


# ---------------------------------------------------------------- in a guest


def iomem_ranges(root: Root) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """RAM as frame intervals, and the kernel's own parts with their classes.

    Both are empty where the file hides its addresses (all zero without CAP_SYS_ADMIN).
    """
    ram, parts = [], []
    try:
        lines = read_text(f"{root.proc}/iomem").splitlines()
    except OSError:
        lines = []
    for line in lines:
        match = re.fullmatch(r" *([0-9a-f]+)-([0-9a-f]+) : (.*)", line)
        if match is None:
            continue
        start, end = int(match[1], 16), int(match[2], 16) + 1
        if end == 1:
            continue
        if match[3] == "System RAM":
            ram.append((-(-start // PAGE_BYTES), end // PAGE_BYTES))
        elif match[3] in IOMEM_CLASSES:
            parts.append((start // PAGE_BYTES, -(-end // PAGE_BYTES),
                          CLASSES.index(IOMEM_CLASSES[match[3]])))
    return ram, parts


def class_of(kpf: int) -> int:
    """The class of a frame with these kpageflags."""
    if kpf & KPF_NOPAGE:
        name = "absent"
    elif kpf & (KPF_OFFLINE | KPF_HWPOISON):
        name = "offline"
    elif kpf & KPF_BUDDY:
        name = "free"
    elif kpf & KPF_SLAB:
        name = "slab"
    elif kpf & KPF_PGTABLE:
        name = "page-tables"
    elif kpf & KPF_ZERO_PAGE:
        name = "zero-page"
    elif kpf & KPF_HUGE:
        name = "hugetlb"
    elif kpf & KPF_ANON:
        name = "anon"
    elif kpf & (KPF_LRU | KPF_UNEVICTABLE | KPF_MMAP) and not kpf & KPF_RESERVED:
        name = "shmem" if kpf & KPF_SWAPBACKED else "page-cache"
    elif kpf & KPF_RESERVED:
        name = "reserved"
    else:
        # No flag at all: kernel allocations that show none, and free frames kept by a CPU.
        name = "kernel-other" if kpf else "unflagged"
    return CLASSES.index(name)


def guest_classes(options: argparse.Namespace) -> int:
    """Write the class of every frame of this machine; returns the exit code."""
    root = Root(options.proc, options.sys)
    frames, pace = FrameTable(root), Pace(options.cpu_limit)
    ram, parts = iomem_ranges(root)
    n_frames = 0
    if ram:
        n_frames = max(end for _, end in ram)
    else:
        ends = re.findall(r"spanned\s+(\d+)[^N]*?start_pfn:\s+(\d+)",
                          read_text(f"{root.proc}/zoneinfo"), re.DOTALL)
        n_frames = max((int(spanned) + int(start) for spanned, start in ends if int(spanned)),
                       default=0)
        ram = [(0, n_frames)]
        say("the memory map is hidden (/proc/iomem): kernel text is not told apart")
    if not n_frames:
        raise AgentError("neither /proc/iomem nor /proc/zoneinfo tells this machine's memory; run "
                         "as root")
    out = open_output(options.output, False)
    try:
        write_classes(out, frames, pace, n_frames, ram, parts)
    finally:
        close_output(out)
        frames.close()
    return 0


def write_classes(out: BinaryIO, frames: FrameTable, pace: Pace, n_frames: int,
                  ram: list[tuple[int, int]], parts: list[tuple[int, int, int]]) -> None:
    """Write the classes of the frames [0, n_frames), those outside of `ram` as absent."""
    stream = Stream(out)
    stream.document(b"HEAD", {
        "format": FORMAT, "kind": "guest-classes", "classes": list(CLASSES),
        "start_ns": time.time_ns(), "n_frames": n_frames, "page_bytes": PAGE_BYTES,
        "provenance": {"software": f"ksm-planner agent {VERSION}", "source": "agent",
                       "kernel": platform.release(), "machine": platform.machine()}})
    known: dict[int, int] = {}
    counts = [0] * len(CLASSES)
    for first in range(0, n_frames, CLASS_FRAMES):
        end = min(first + CLASS_FRAMES, n_frames)
        classes = bytearray(end - first)
        for start, stop in ram:
            start, stop = max(start, first), min(stop, end)
            if start >= stop:
                continue
            words = words_of(os.pread(frames.fds[0], (stop - start) * 8, start * 8))
            for i, kpf in enumerate(words, start - first):
                number = known.get(kpf)
                if number is None:
                    number = known[kpf] = class_of(kpf)
                classes[i] = number
        for start, stop, number in parts:
            start, stop = max(start, first) - first, min(stop, end) - first
            if start < stop:
                classes[start:stop] = bytes([number]) * (stop - start)
        for number in range(len(CLASSES)):
            counts[number] += classes.count(number)
        stream.write(b"CLAS", struct.pack("<QI", first, len(classes))
                     + zlib.compress(bytes(classes), 1))
        pace.wait()
    stream.document(b"DONE", {"status": "complete", "end_ns": time.time_ns()})
    stream.flush()
    say(", ".join(f"{count} {name}" for name, count in zip(CLASSES, counts)  # noqa: B905
                  if count) + "; next: planner trace join on the host's trace")


# ---------------------------------------------------------------- the command


def say(text: str) -> None:
    """A line on standard error, without characters that could drive a terminal."""
    sys.stderr.write("".join(c if c.isprintable() else "\ufffd" for c in text) + "\n")
    sys.stderr.flush()


def duration(text: str) -> int:
    """Nanoseconds of `90s`, `20ms`, `15min`, `6h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min|h)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 20ms, 90s, 15min, 6h")
    unit = {"ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}[match[2]]
    return int(float(match[1]) * unit)


def share(text: str) -> float:
    """The share that `20%` is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; write 20%")
    return float(match[1]) / 100


def positive(text: str) -> int:
    """A count of at least one."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, return the exit code."""
    parser = argparse.ArgumentParser(
        prog="agent.pyz", description="Hash the memory of running processes or guests into a "
        "stream that `planner trace import --format agent` reads. Needs root. Reads no page that "
        "is absent or swapped; only keyed 64-bit hashes are written.",
        epilog="example: sudo ./agent.pyz --qemu --snapshots 5 --every 60s --cpu-limit 20% "
        "-o host1.stream".replace("%", "%%"))
    add = parser.add_argument
    add("--pid", type=positive, action="append", default=[], help="a process; may be repeated")
    add("--cgroup", action="append", default=[], metavar="DIR",
        help="a cgroup: all its processes are one guest")
    add("--qemu", action="store_true", help="every QEMU process, one guest each")
    add("--guest-classes", action="store_true",
        help="in a guest: write what each of its frames is used for, no hashes")
    add("-o", "--output", required=True, metavar="FILE", help="the stream to write; - for a pipe")
    add("--snapshots", type=positive, default=1, metavar="N")
    add("--every", type=duration, default=60 * 10**9, metavar="TIME",
        help="from the start of one snapshot to the next (default 60s)")
    add("--cpu-limit", type=share, metavar="SHARE", help="of one CPU to use at most, such as 20%%")
    add("--include", choices=INCLUDES, default="anon",
        help="advised: pages KSM merges now; anon: pages it could ever merge; all: others, too")
    add("--key", metavar="FILE",
        help="site key file (default ~/.config/planner/site.key, made on first use)")
    add("--resume", action="store_true", help="go on with a stream that is there")
    add("--proc", default="/proc", help="where the host's /proc is (in a container)")
    add("--sys", default="/sys", help="where the host's /sys is (in a container)")
    add("--version", action="version", version=VERSION)
    options = parser.parse_args(arguments)
    if options.guest_classes and (options.pid or options.cgroup or options.qemu
                                  or options.resume):
        parser.error("--guest-classes takes neither targets nor --resume")
    if options.resume and options.output == "-":
        parser.error("--resume needs a file: pass -o FILE")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        return guest_classes(options) if options.guest_classes else capture(options)
    except AgentError as error:
        say(f"error: {error}")
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        say("error: the reader of the stream has gone")
        return 3
    except PermissionError as error:
        say(f"error: {error.filename or ''}: no permission; run as root")
        return 3
    except OSError as error:
        say(f"error: {error.filename or options.output}: {error.strerror or error}; a stream that "
            "was begun can be gone on with by --resume")
        return 3


if __name__ == "__main__":
    sys.exit(main())
