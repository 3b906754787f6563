"""Partitions as named objects: names, flags, permission bits, descriptors and lifetimes.

What the calls of the proposal of January 2025 take and refuse, with errno as `OSError`, whatever
the rules by which pages are merged (`planner.ksm.selective`: those of the kernel's KSM;
`planner.ksm.partition_rules`: those of the kernel module). Where the proposal is silent: one
deviation and three readings of it.

- The proposal puts both the access mode and the permission bits into `mode`, where they collide.
  Here, as for shm_open(3), the access mode (O_RDONLY, O_WRONLY, O_RDWR) is in the low two bits of
  `flags`, and `mode` holds permission bits only.
- KSM_SYNC when a partition is created makes it synchronous; created without, it is served by a
  background scanner of its own. A descriptor may merge if it was opened with KSM_SYNC, which a
  partition with a scanner refuses.
- A partition without descriptors lives on until it is unlinked, like a POSIX shared memory
  object. An unlinked one ends with its last descriptor.
- A name that is created again while the unlinked partition is still open is another partition.
  Pages that the old one has merged are refused by the new one until they are unmerged.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar

from planner.ksm.records import BYTES_PER_PAGE

__all__ = ["KSM_CREAT", "KSM_EXCL", "KSM_SYNC", "Credentials", "Descriptor", "Partition",
           "Partitions", "Rules", "fail"]

#: By whose rules pages of a partition are merged: the kernel's KSM, as planning does, or the
#: kernel module's. docs/selective-ksm.md lists the differences.
Rules = Literal["kernel", "module"]

KSM_SYNC = 0x10
KSM_CREAT = 0x20
KSM_EXCL = 0x40

_ALL_FLAGS = os.O_ACCMODE | os.O_CLOEXEC | KSM_SYNC | KSM_CREAT | KSM_EXCL
_NAME_BYTES_MAX = 63
_FIRST_FD = 3
READ, WRITE = 4, 2
_NEEDED = {os.O_RDONLY: READ, os.O_WRONLY: WRITE, os.O_RDWR: READ | WRITE}

#: What the rules keep of a partition.
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who calls: ids, supplementary groups, the capabilities that matter, and the umask."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    has_cap_dac_override: bool = True
    has_cap_fowner: bool = True
    umask: int = 0o022
    has_cap_sys_ptrace: bool = True


@dataclass(slots=True)
class Partition(Generic[Kept]):
    """One partition object; `kept` is what its rules know of it."""

    name: str
    kept: Kept
    is_sync: bool
    mode: int
    uid: int
    gid: int
    n_open: int = 0
    n_calls: int = 0
    is_unlinked: bool = False


@dataclass(frozen=True, slots=True)
class Descriptor(Generic[Kept]):
    """An open partition: `access` is READ | WRITE, `is_sync` whether KSM_SYNC was given."""

    partition: Partition[Kept]
    access: int
    is_sync: bool


def fail(number: int, what: str) -> NoReturn:
    """Raise the `OSError` of an errno."""
    raise OSError(number, f"{os.strerror(number)}: {what}")


class Partitions(ABC, Generic[Kept]):
    """The partitions of one host by name and by descriptor.

    `rules` names those by which pages are merged. `credentials` are those of the caller and may
    be replaced between calls.
    """

    rules: Rules

    def __init__(self, credentials: Credentials | None, max_open: int) -> None:
        self.credentials = credentials or Credentials()
        self._max_open = max_open
        self._by_name: dict[str, Partition[Kept]] = {}
        self._descriptors: dict[int, Descriptor[Kept]] = {}

    @abstractmethod
    def _begin(self, name: str, is_sync: bool) -> Kept:
        """What the rules keep of a new partition."""

    @abstractmethod
    def _end(self, partition: Partition[Kept]) -> None:
        """A partition has lost its name and its last descriptor."""

    @property
    def partition_names(self) -> tuple[str, ...]:
        """The directories below /sys/kernel/mm/ksm/partition/, sorted."""
        return tuple(sorted(self._by_name))

    def ksm_open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open or (KSM_CREAT) create the partition `name`; returns the lowest free descriptor.

        `flags`: O_RDONLY, O_WRONLY or O_RDWR, with KSM_SYNC, KSM_CREAT, KSM_EXCL (no effect
        without KSM_CREAT) and O_CLOEXEC. `mode`: permission bits of a new partition, less the
        umask; its creator gets the access asked for whatever they say.

        Raises `OSError`: EINVAL for a bad name, unknown flags or `mode` beyond 0777;
        ENAMETOOLONG above 63 bytes; ENOENT no such name; EEXIST with KSM_CREAT | KSM_EXCL;
        EACCES by the permission bits; EOPNOTSUPP when KSM_SYNC is asked of a partition with a
        scanner; EMFILE.
        """
        self._check_name(name)
        access = flags & os.O_ACCMODE
        if flags & ~_ALL_FLAGS or access not in _NEEDED:
            fail(errno.EINVAL, f"flags {flags:#x}")
        if mode & ~0o777:
            fail(errno.EINVAL, f"mode {mode:#o}")
        is_sync = bool(flags & KSM_SYNC)
        partition = self._by_name.get(name)
        if partition is None:
            if not flags & KSM_CREAT:
                fail(errno.ENOENT, name)
        else:
            if flags & KSM_CREAT and flags & KSM_EXCL:
                fail(errno.EEXIST, name)
            if not self._may(partition, _NEEDED[access]):
                fail(errno.EACCES, name)
            if is_sync and not partition.is_sync:
                fail(errno.EOPNOTSUPP, f"{name} has a background scanner")
        if len(self._descriptors) >= self._max_open:
            fail(errno.EMFILE, name)
        if partition is None:
            partition = self._create(name, is_sync, mode & ~self.credentials.umask)
        fd = _FIRST_FD
        while fd in self._descriptors:
            fd += 1
        self._descriptors[fd] = Descriptor(partition, _NEEDED[access], is_sync)
        partition.n_open += 1
        return fd

    def ksm_unlink(self, name: str) -> None:
        """Remove the name at once; the partition ends with its last descriptor.

        Raises `OSError`: EINVAL or ENAMETOOLONG for a bad name, ENOENT, EACCES (neither the owner
        nor CAP_FOWNER).
        """
        self._check_name(name)
        partition = self._by_name.get(name)
        if partition is None:
            fail(errno.ENOENT, name)
        if self.credentials.uid != partition.uid and not self.credentials.has_cap_fowner:
            fail(errno.EACCES, name)
        del self._by_name[name]
        partition.is_unlinked = True
        self._end_if_unused(partition)

    def close(self, fd: int) -> None:
        """Close a descriptor; the last one of an unlinked partition ends it. `OSError` EBADF."""
        partition = self._descriptor(fd).partition
        del self._descriptors[fd]
        partition.n_open -= 1
        self._end_if_unused(partition)

    def _check_name(self, name: str) -> None:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            fail(errno.EINVAL, f"partition name {name!r}")
        if len(os.fsencode(name)) > _NAME_BYTES_MAX:
            fail(errno.ENAMETOOLONG, f"partition name {name!r}")

    def _may(self, partition: Partition[Kept], needed: int) -> bool:
        """The permission bits of the first class that fits: owner, group, others."""
        who = self.credentials
        if who.has_cap_dac_override:
            return True
        if who.uid == partition.uid:
            shift = 6
        elif partition.gid == who.gid or partition.gid in who.groups:
            shift = 3
        else:
            shift = 0
        return needed & ~(partition.mode >> shift) == 0

    def _create(self, name: str, is_sync: bool, mode: int) -> Partition[Kept]:
        who = self.credentials
        kept = self._begin(name, is_sync)
        partition = Partition(name, kept, is_sync, mode, who.uid, who.gid)
        self._by_name[name] = partition
        return partition

    def _end_if_unused(self, partition: Partition[Kept]) -> None:
        if partition.is_unlinked and partition.n_open == 0:
            self._end(partition)

    def _descriptor(self, fd: int) -> Descriptor[Kept]:
        descriptor = self._descriptors.get(fd)
        if descriptor is None:
            fail(errno.EBADF, f"descriptor {fd}")
        return descriptor

    def _range(self, fd: int, addr: int, size: int) -> tuple[Partition[Kept], int, int]:
        """The partition and [start_vpn, end_vpn) of a call to merge or unmerge."""
        descriptor = self._writable(fd)
        if not descriptor.is_sync:
            fail(errno.EOPNOTSUPP, f"descriptor {fd} was opened without KSM_SYNC")
        return descriptor.partition, *self._vpns(addr, size)

    def _writable(self, fd: int) -> Descriptor[Kept]:
        descriptor = self._descriptor(fd)
        if not descriptor.access & WRITE:
            fail(errno.EACCES, f"descriptor {fd} is read-only")
        return descriptor

    def _readable(self, fd: int) -> Descriptor[Kept]:
        descriptor = self._descriptor(fd)
        if not descriptor.access & READ:
            fail(errno.EACCES, f"descriptor {fd} is write-only")
        return descriptor

    def _vpns(self, addr: int, size: int) -> tuple[int, int]:
        if addr < 0 or addr % BYTES_PER_PAGE or size % BYTES_PER_PAGE or size <= 0:
            fail(errno.EINVAL, f"range {addr:#x}+{size:#x}")
        if addr + size > 2**64:
            fail(errno.EINVAL, f"range {addr:#x}+{size:#x} wraps around")
        return addr // BYTES_PER_PAGE, (addr + size) // BYTES_PER_PAGE
