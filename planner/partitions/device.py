"""/dev/ksm_partition: Selective KSM's calls on this machine. Linux with the module ksm_planner.

The methods have the names, arguments and errno of `planner.ksm.selective.SelectiveKsm`, the model.
The interface is kmod/include/uapi/planner/ksm_partition.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from planner.errors import MachineError
from planner.partitions import abi
from planner.partitions.abi import Cost, Refusal, State

__all__ = [
    "DEVICE",
    "REFUSAL_RULES",
    "CallCounts",
    "InterruptedCallError",
    "PartitionCounters",
    "PartitionDevice",
]

DEVICE = Path("/dev/ksm_partition")

#: What the module refuses, in words: the rules by which it differs from the kernel's own KSM.
REFUSAL_RULES: Mapping[Refusal, str] = MappingProxyType({
    Refusal.MAPPING: "the mapping is a file's, shared, a device's, or special (WIPEONFORK, "
                     "DONTEXPAND, MIXEDMAP, DROPPABLE, a shadow stack); counts its extent",
    Refusal.HUGETLB: "the mapping is of hugetlbfs; counts its extent",
    Refusal.LOCKED: "the mapping is mlocked (counts its extent), or the page is",
    Refusal.USERFAULTFD: "the mapping is registered with userfaultfd; counts its extent",
    Refusal.MERGEABLE: "the mapping is VM_MERGEABLE (counts its extent), or KSM has the page",
    Refusal.THP: "the page is part of a huge page",
    Refusal.SHARED: "the page is mapped more than once, since a fork",
    Refusal.ZERO_PAGE: "it is the kernel's shared page of zeros",
    Refusal.SWAPPED: "the page is in swap or being moved",
    Refusal.PINNED: "the page is pinned for DMA",
    Refusal.BUSY: "the page is locked, or has a reference of somebody else's; try again",
    Refusal.CHANGED: "the page was written, or went away, during the call",
    Refusal.FOREIGN: "the page is merged in another partition",
    Refusal.SPECIAL: "what is mapped there is no anonymous memory, or is bad",
    Refusal.LIMIT: "there are max_pages merged pages",
    Refusal.MEMORY: "there is no memory, or none left in the caller's cgroup",
})


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What a call did. Pages of the range up to `walked_to`:

    requested = absent + already + merged + candidate + volatile + unmerged + sum of `refused`.
    `partner_pages` are earlier candidates that were merged along. `costs` maps what took time to
    (how often, ns in all); `total_ns` is the time of the call.
    """

    walked_to: int
    requested_pages: int
    absent_pages: int
    already_pages: int
    merged_pages: int
    candidate_pages: int
    volatile_pages: int
    partner_pages: int
    unmerged_pages: int
    killed_processes: int
    total_ns: int
    refused: dict[Refusal, int]
    costs: dict[Cost, tuple[int, int]]

    @property
    def refused_pages(self) -> int:
        """Pages refused for whatever reason."""
        return sum(self.refused.values())


@dataclass(frozen=True, slots=True)
class PartitionCounters:
    """A partition since it was created, as the files of its directory have it."""

    is_sync: bool
    is_linked: bool
    owner: int
    group: int
    mode: int
    pages_to_scan: int
    sleep_millisecs: int
    n_ranges: int
    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    pages_scanned: int
    full_scans: int
    calls: int
    merged_pages: int
    unmerged_pages: int
    killed_processes: int
    refused: dict[Refusal, int]
    costs: dict[Cost, tuple[int, int]]


class InterruptedCallError(OSError):
    """A call that failed on its way (EINTR, ENOMEM, ESRCH); `counts` is what it had done."""

    def __init__(self, number: int, what: str, counts: CallCounts) -> None:
        super().__init__(number, what)
        self.counts = counts


def _refused_of(row: np.void) -> dict[Refusal, int]:
    return {reason: int(row["refused"][reason]) for reason in Refusal if row["refused"][reason]}


def _costs_of(row: np.void) -> dict[Cost, tuple[int, int]]:
    return {cost: (int(row["cost_n"][cost]), int(row["cost_ns"][cost]))
            for cost in Cost if row["cost_n"][cost]}


def _counts_of(row: np.void) -> CallCounts:
    return CallCounts(
        walked_to=int(row["walked_to"]),
        requested_pages=int(row["n_requested"]),
        absent_pages=int(row["n_absent"]),
        already_pages=int(row["n_already"]),
        merged_pages=int(row["n_merged"]),
        candidate_pages=int(row["n_candidates"]),
        volatile_pages=int(row["n_volatile"]),
        partner_pages=int(row["n_partners"]),
        unmerged_pages=int(row["n_unmerged"]),
        killed_processes=int(row["n_killed"]),
        total_ns=int(row["total_ns"]),
        refused=_refused_of(row),
        costs=_costs_of(row),
    )


def _counters_of(row: np.void) -> PartitionCounters:
    state = State(int(row["flags"]))
    return PartitionCounters(
        is_sync=State.SYNC in state,
        is_linked=State.LINKED in state,
        owner=int(row["owner"]),
        group=int(row["group"]),
        mode=int(row["mode"]),
        pages_to_scan=int(row["pages_to_scan"]),
        sleep_millisecs=int(row["sleep_millisecs"]),
        n_ranges=int(row["n_ranges"]),
        pages_shared=int(row["pages_shared"]),
        pages_sharing=int(row["pages_sharing"]),
        pages_unshared=int(row["pages_unshared"]),
        pages_volatile=int(row["pages_volatile"]),
        pages_scanned=int(row["pages_scanned"]),
        full_scans=int(row["full_scans"]),
        calls=int(row["calls"]),
        merged_pages=int(row["n_merged"]),
        unmerged_pages=int(row["n_unmerged"]),
        killed_processes=int(row["n_killed"]),
        refused=_refused_of(row),
        costs=_costs_of(row),
    )


def _fail(number: int, what: str) -> OSError:
    return OSError(number, f"{os.strerror(number)}: {what}")


def _argument(dtype: np.dtype[np.void], **fields: int) -> npt.NDArray[np.void]:
    """An argument of one row, its size filled in."""
    array = np.zeros(1, dtype)
    array["size"] = dtype.itemsize
    for name, value in fields.items():
        array[name] = value
    return array


def _name_buffer(name: str) -> npt.NDArray[np.uint8]:
    """A name as the kernel wants it; EINVAL with a NUL, which would end it early."""
    text = os.fsencode(name)
    if b"\0" in text:
        raise _fail(errno.EINVAL, f"partition name {name!r}")
    return np.frombuffer(text + b"\0", np.uint8).copy()


class PartitionDevice:
    """The module's device: a context manager with the four calls and those of our own.

    `abi` is the module's (major, minor). Raises MachineError where the device cannot serve: it is
    not there, may not be opened, or its ABI has another major version. The calls raise OSError
    with the errno that the header lists, InterruptedCallError where part of the work is done.
    """

    def __init__(self, path: Path = DEVICE) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise MachineError("there is no Selective KSM here", where=str(path),
                               instead="load the module ksm_planner, built with "
                               "CONFIG_SELECTIVE_KSM=y (kmod/README.md)") from error
        except OSError as error:
            raise MachineError(f"cannot open it: {error.strerror}", where=str(path),
                               instead="look at the device's permissions") from error
        try:
            self.abi = self._read_abi()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> PartitionDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._fd)

    def _read_abi(self) -> tuple[int, int]:
        try:
            version = fcntl.ioctl(self._fd, abi.IOC_ABI)
        except OSError as error:
            raise MachineError("it is not ksm_planner's device", where=str(self.path),
                               instead="give the path of /dev/ksm_partition") from error
        major, minor = version >> 16, version & 0xFFFF
        if major != abi.ABI_MAJOR:
            raise MachineError(
                f"the module speaks ABI {major}.{minor}, this program {abi.ABI_MAJOR}.x",
                where=str(self.path),
                instead="upgrade " + ("this program" if major > abi.ABI_MAJOR else "the module"))
        return major, minor

    def ksm_open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open or (KSM_CREAT) create the partition `name`; returns a descriptor.

        `flags`: O_RDONLY, O_WRONLY or O_RDWR, with KSM_SYNC, KSM_CREAT, KSM_EXCL; O_CLOEXEC is
        always on. `mode`: permission bits of a new partition, less the umask.
        """
        text = _name_buffer(name)
        if not 0 <= flags < 2**32 or not 0 <= mode < 2**32:
            raise _fail(errno.EINVAL, f"flags {flags:#x}, mode {mode:#o}")
        argument = _argument(abi.OPEN, flags=flags, mode=mode, name=text.ctypes.data)
        fd: int = fcntl.ioctl(self._fd, abi.IOC_OPEN, argument.data.cast("B"))
        return fd

    def ksm_unlink(self, name: str) -> None:
        """Remove the name at once; the partition ends with its last descriptor."""
        text = _name_buffer(name)
        argument = _argument(abi.UNLINK, name=text.ctypes.data)
        fcntl.ioctl(self._fd, abi.IOC_UNLINK, argument.data.cast("B"))

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Merge [addr, addr + size) of process `pid` within the partition, before returning."""
        return self._range(abi.IOC_MERGE, fd, pid, addr, size)

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Undo merging in [addr, addr + size) of process `pid`."""
        return self._range(abi.IOC_UNMERGE, fd, pid, addr, size)

    def ksm_attach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Let the scanner of a partition without KSM_SYNC look at a range. Our own."""
        return self._range(abi.IOC_ATTACH, fd, pid, addr, size)

    def ksm_detach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Let it look at a range no longer; what is merged stays merged. Our own."""
        return self._range(abi.IOC_DETACH, fd, pid, addr, size)

    def close(self, fd: int) -> None:
        """Close a partition's descriptor; OSError EBADF."""
        os.close(fd)

    def counters(self, fd: int) -> PartitionCounters:
        """The partition's counters; OSError EACCES where it was opened O_WRONLY."""
        argument = _argument(abi.COUNTERS)
        fcntl.ioctl(fd, abi.IOC_COUNTERS, argument.data.cast("B"))
        return _counters_of(argument[0])

    def _range(self, command: int, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        if not 0 <= addr < 2**64 or not 0 <= size < 2**64:
            raise _fail(errno.EINVAL, f"range {addr:#x}+{size:#x}")
        counts = np.zeros(1, abi.COUNTS)
        argument = _argument(abi.RANGE, pid=pid & 0xFFFFFFFF, address=addr, length=size,
                             counts_size=counts.nbytes, counts=counts.ctypes.data)
        try:
            fcntl.ioctl(fd, command, argument.data.cast("B"))
        except OSError as error:
            if error.errno is not None and counts[0]["walked_to"]:
                raise InterruptedCallError(error.errno, os.strerror(error.errno),
                                           _counts_of(counts[0])) from error
            raise
        return _counts_of(counts[0])
