"""Selective KSM: partitions as named objects with the calls of the proposal of January 2025.

`ksm_open`, `ksm_unlink`, `ksm_merge` and `ksm_unmerge` behave as the proposal says, with errno as
`OSError`. One deviation: the proposal puts both the access mode and the permission bits into
`mode`, where they collide; here the access mode is in the low two bits of `flags`, as for
shm_open(3), and `mode` holds permission bits only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.ksm.space import MergeCounts, MergeSpaces, UnmergeCounts

__all__ = ["KSM_CREAT", "KSM_EXCL", "KSM_SYNC", "Credentials", "SelectiveKsm"]

KSM_SYNC = 0x10
KSM_CREAT = 0x20
KSM_EXCL = 0x40


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who calls: ids, supplementary groups, the two capabilities that matter, and the umask."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    has_cap_dac_override: bool = True
    has_cap_fowner: bool = True
    umask: int = 0o022


class SelectiveKsm:
    """The Selective KSM calls on one host, over its `MergeSpaces`.

    `names[i]` is the name under which partition i of the spaces is opened; another name creates
    a partition that no page belongs to. `mms` maps pids to mm ids of the site table and is looked
    up at each call. Partitions opened without KSM_SYNC are served by a scanner with
    `pages_to_scan` and `sleep_millisecs`.
    """

    def __init__(
        self,
        spaces: MergeSpaces,
        names: Sequence[str],
        mms: Mapping[int, int],
        *,
        credentials: Credentials = Credentials(),
        pages_to_scan: int = 100,
        sleep_millisecs: int = 20,
        max_page_sharing: int = 256,
        max_open: int = 1024,
    ) -> None: ...

    def ksm_open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open or (KSM_CREAT) create the partition `name`; returns a descriptor.

        ENOENT no such name, EEXIST with KSM_CREAT|KSM_EXCL, EINVAL bad name, flags or mode,
        ENAMETOOLONG above 63 bytes, EACCES by the permission bits, EMFILE, EOPNOTSUPP when
        KSM_SYNC is asked of a partition created without it.
        """

    def ksm_unlink(self, name: str) -> None:
        """Remove the name now, the partition with its last descriptor. ENOENT, EACCES, ..."""

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> MergeCounts:
        """Merge [addr, addr + size) of process `pid` within the partition, before returning.

        EBADF, EACCES (descriptor is O_RDONLY), EOPNOTSUPP (not opened with KSM_SYNC), EINVAL
        (not page aligned, size 0, wraps), ESRCH.
        """

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> UnmergeCounts:
        """Undo merging in [addr, addr + size) of process `pid`; errno as for `ksm_merge`."""

    def close(self, fd: int) -> None:
        """Close a descriptor; the last one of an unlinked partition ends it (unmerges). EBADF."""

    def counters(self, fd: int) -> dict[str, int]:
        """The files of /sys/kernel/mm/ksm/partition/<name>/. EBADF, EACCES (O_WRONLY)."""
