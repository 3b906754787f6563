"""Selective KSM: partitions as named objects with the calls of the proposal of January 2025.

`ksm_open`, `ksm_unlink`, `ksm_merge` and `ksm_unmerge` take and refuse what the proposal's calls
do, with errno as `OSError`. Where the proposal is silent: one deviation and three readings of it.

- The proposal puts both the access mode and the permission bits into `mode`, where they collide.
  Here, as for shm_open(3), the access mode (O_RDONLY, O_WRONLY, O_RDWR) is in the low two bits of
  `flags`, and `mode` holds permission bits only.
- KSM_SYNC when a partition is created makes it synchronous; created without, it is served by a
  background scanner of its own. A descriptor may merge if it was opened with KSM_SYNC, which a
  partition with a scanner refuses.
- A partition without descriptors lives on until it is unlinked, like a POSIX shared memory
  object. An unlinked one ends with its last descriptor: its pages are unmerged, because a merged
  page without its stable node could not be kept account of.
- A name that is created again while the unlinked partition is still open is another partition.
  Pages that the old one has merged are refused by the new one until they are unmerged.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from planner.ksm.knobs import Knobs
from planner.ksm.records import BYTES_PER_PAGE, MergeCounts, UnmergeCounts
from planner.ksm.space import MergeSpaces

__all__ = ["KSM_CREAT", "KSM_EXCL", "KSM_SYNC", "Credentials", "SelectiveKsm"]

KSM_SYNC = 0x10
KSM_CREAT = 0x20
KSM_EXCL = 0x40

_ALL_FLAGS = os.O_ACCMODE | os.O_CLOEXEC | KSM_SYNC | KSM_CREAT | KSM_EXCL
_NAME_BYTES_MAX = 63
_FIRST_FD = 3
_READ, _WRITE = 4, 2
_NEEDED = {os.O_RDONLY: _READ, os.O_WRONLY: _WRITE, os.O_RDWR: _READ | _WRITE}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who calls: ids, supplementary groups, the two capabilities that matter, and the umask."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    has_cap_dac_override: bool = True
    has_cap_fowner: bool = True
    umask: int = 0o022


@dataclass(slots=True)
class _Partition:
    """One partition object. `index` is its number in the spaces, None if no page belongs to it."""

    name: str
    index: int | None
    is_sync: bool
    mode: int
    uid: int
    gid: int
    n_open: int = 0
    n_calls: int = 0
    is_unlinked: bool = False


@dataclass(frozen=True, slots=True)
class _Descriptor:
    partition: _Partition
    access: int
    is_sync: bool


def _fail(number: int, what: str) -> NoReturn:
    raise OSError(number, f"{os.strerror(number)}: {what}")


class SelectiveKsm:
    """The Selective KSM calls on one host, over its `MergeSpaces`.

    `names[i]` is the name under which partition i of the spaces is opened; any other name creates
    a partition that no page belongs to. `mms` maps pids to mm ids of the site table and is looked
    up at each call, so that the caller may keep it up to date. `credentials` are those of the
    caller and may be replaced between calls. Partitions created without KSM_SYNC are served from
    the spaces' current time on by a scanner with `knobs` (the kernel's defaults where None); all
    have its `max_page_sharing`. Raises `ValueError` when names are not unique or more than the
    partitions.
    """

    def __init__(
        self,
        spaces: MergeSpaces,
        names: Sequence[str],
        mms: Mapping[int, int],
        *,
        credentials: Credentials | None = None,
        knobs: Knobs | None = None,
        max_open: int = 1024,
    ) -> None:
        if len(set(names)) != len(names) or len(names) > spaces.n_partitions:
            raise ValueError("expected one name of its own per partition of the spaces")
        self.credentials = credentials or Credentials()
        self._spaces = spaces
        self._planned = {name: index for index, name in enumerate(names)}
        self._mms = mms
        self._knobs = knobs or Knobs.of_kernel(spaces.kernel)
        self._max_open = max_open
        self._by_name: dict[str, _Partition] = {}
        self._descriptors: dict[int, _Descriptor] = {}
        self._in_use: set[int] = set()

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
            _fail(errno.EINVAL, f"flags {flags:#x}")
        if mode & ~0o777:
            _fail(errno.EINVAL, f"mode {mode:#o}")
        is_sync = bool(flags & KSM_SYNC)
        partition = self._by_name.get(name)
        if partition is None:
            if not flags & KSM_CREAT:
                _fail(errno.ENOENT, name)
        else:
            if flags & KSM_CREAT and flags & KSM_EXCL:
                _fail(errno.EEXIST, name)
            if not self._may(partition, _NEEDED[access]):
                _fail(errno.EACCES, name)
            if is_sync and not partition.is_sync:
                _fail(errno.EOPNOTSUPP, f"{name} has a background scanner")
        if len(self._descriptors) >= self._max_open:
            _fail(errno.EMFILE, name)
        if partition is None:
            partition = self._create(name, is_sync, mode & ~self.credentials.umask)
        fd = _FIRST_FD
        while fd in self._descriptors:
            fd += 1
        self._descriptors[fd] = _Descriptor(partition, _NEEDED[access], is_sync)
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
            _fail(errno.ENOENT, name)
        if self.credentials.uid != partition.uid and not self.credentials.has_cap_fowner:
            _fail(errno.EACCES, name)
        del self._by_name[name]
        partition.is_unlinked = True
        self._end_if_unused(partition)

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> MergeCounts:
        """Merge [addr, addr + size) of process `pid` within the partition, before returning.

        Pages of the range that belong to other partitions are left alone and not tried.
        Raises `OSError`: EBADF; EACCES (opened O_RDONLY); EOPNOTSUPP (not opened with KSM_SYNC);
        EINVAL (not page aligned, size 0, wraps around); ESRCH.
        """
        partition, mm, start_vpn, end_vpn = self._range(fd, pid, addr, size)
        partition.n_calls += 1
        if partition.index is None:
            return MergeCounts(end_vpn - start_vpn, 0, 0, 0, 0, 0, 0, 0,
                               self._spaces.cost.call_ns)
        return self._spaces.merge_range(partition.index, mm, start_vpn, end_vpn)

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> UnmergeCounts:
        """Undo merging in [addr, addr + size) of process `pid`; errno as for `ksm_merge`."""
        partition, mm, start_vpn, end_vpn = self._range(fd, pid, addr, size)
        partition.n_calls += 1
        if partition.index is None:
            return UnmergeCounts(end_vpn - start_vpn, 0, self._spaces.cost.call_ns)
        return self._spaces.unmerge_range(partition.index, mm, start_vpn, end_vpn)

    def close(self, fd: int) -> None:
        """Close a descriptor; the last one of an unlinked partition ends it. `OSError` EBADF."""
        partition = self._descriptor(fd).partition
        del self._descriptors[fd]
        partition.n_open -= 1
        self._end_if_unused(partition)

    def counters(self, fd: int) -> dict[str, int]:
        """The files of /sys/kernel/mm/ksm/partition/<name>/, read through a descriptor.

        Raises `OSError`: EBADF; EACCES (opened O_WRONLY).
        """
        descriptor = self._descriptor(fd)
        if not descriptor.access & _READ:
            _fail(errno.EACCES, f"descriptor {fd} is write-only")
        partition = descriptor.partition
        files = {
            "calls": partition.n_calls,
            "owner": partition.uid,
            "group": partition.gid,
            "mode": partition.mode,
        }
        names = (
            "pages_shared",
            "pages_sharing",
            "pages_unshared",
            "pages_volatile",
            "pages_scanned",
            "full_scans",
        )
        if partition.index is None:
            return {**files, **dict.fromkeys(names, 0), "general_profit": 0}
        counters = self._spaces.one_partition_counters(partition.index)
        files |= {name: getattr(counters, name) for name in names}
        return {**files, "general_profit": counters.general_profit_bytes}

    def _check_name(self, name: str) -> None:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            _fail(errno.EINVAL, f"partition name {name!r}")
        if len(os.fsencode(name)) > _NAME_BYTES_MAX:
            _fail(errno.ENAMETOOLONG, f"partition name {name!r}")

    def _may(self, partition: _Partition, needed: int) -> bool:
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

    def _create(self, name: str, is_sync: bool, mode: int) -> _Partition:
        index = self._planned.get(name)
        if index is not None:
            if index in self._in_use:
                index = self._spaces.renew_partition(index)
            self._in_use.add(index)
            self._spaces.set_max_page_sharing(index, self._knobs.max_page_sharing)
            if not is_sync:
                self._spaces.start_scanner(index, self._knobs)
        who = self.credentials
        partition = _Partition(name, index, is_sync, mode, who.uid, who.gid)
        self._by_name[name] = partition
        return partition

    def _end_if_unused(self, partition: _Partition) -> None:
        if partition.is_unlinked and partition.n_open == 0 and partition.index is not None:
            self._spaces.reset_partition(partition.index)
            self._in_use.discard(partition.index)

    def _descriptor(self, fd: int) -> _Descriptor:
        descriptor = self._descriptors.get(fd)
        if descriptor is None:
            _fail(errno.EBADF, f"descriptor {fd}")
        return descriptor

    def _range(self, fd: int, pid: int, addr: int, size: int) -> tuple[_Partition, int, int, int]:
        descriptor = self._descriptor(fd)
        if not descriptor.access & _WRITE:
            _fail(errno.EACCES, f"descriptor {fd} is read-only")
        if not descriptor.is_sync:
            _fail(errno.EOPNOTSUPP, f"descriptor {fd} was opened without KSM_SYNC")
        if addr < 0 or addr % BYTES_PER_PAGE or size % BYTES_PER_PAGE or size <= 0:
            _fail(errno.EINVAL, f"range {addr:#x}+{size:#x}")
        if addr + size > 2**64:
            _fail(errno.EINVAL, f"range {addr:#x}+{size:#x} wraps around")
        mm = self._mms.get(pid)
        if mm is None:
            _fail(errno.ESRCH, f"pid {pid}")
        return descriptor.partition, mm, addr // BYTES_PER_PAGE, (addr + size) // BYTES_PER_PAGE
