"""Selective KSM by the rules of the kernel's KSM: what planning assumes of an implementation.

`ksm_open`, `ksm_unlink`, `ksm_merge` and `ksm_unmerge` take and refuse what the proposal's calls
do (`planner.ksm.partition_names`); pages are merged as ksmd would, within a partition. A
partition that ends has its pages unmerged, because a merged page without its stable node could
not be kept account of.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from planner.ksm.knobs import Knobs
from planner.ksm.partition_names import (
    KSM_CREAT,
    KSM_EXCL,
    KSM_SYNC,
    Credentials,
    Partition,
    Partitions,
    Rules,
    fail,
)
from planner.ksm.records import MergeCounts, UnmergeCounts
from planner.ksm.space import MergeSpaces

__all__ = ["KSM_CREAT", "KSM_EXCL", "KSM_SYNC", "Credentials", "SelectiveKsm"]


class SelectiveKsm(Partitions[int | None]):
    """The Selective KSM calls on one host, over its `MergeSpaces`.

    `names[i]` is the name under which partition i of the spaces is opened; any other name creates
    a partition that no page belongs to. `mms` maps pids to mm ids of the site table and is looked
    up at each call, so that the caller may keep it up to date. `credentials` are those of the
    caller and may be replaced between calls. Partitions created without KSM_SYNC are served from
    the spaces' current time on by a scanner with `knobs` (the kernel's defaults where None); all
    have its `max_page_sharing`. Raises `ValueError` when names are not unique or more than the
    partitions.
    """

    rules: Rules = "kernel"

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
        super().__init__(credentials, max_open)
        self._spaces = spaces
        self._planned = {name: index for index, name in enumerate(names)}
        self._mms = mms
        self._knobs = knobs or Knobs.of_kernel(spaces.kernel)
        self._in_use: set[int] = set()

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int,
                  longest_ns: int = 0) -> MergeCounts:
        """Merge [addr, addr + size) of process `pid` within the partition, before returning.

        Pages of the range that belong to other partitions are left alone and not tried. With
        `longest_ns` the call stops after that CPU time, as one ended by a signal would.
        Raises `OSError`: EBADF; EACCES (opened O_RDONLY); EOPNOTSUPP (not opened with KSM_SYNC);
        EINVAL (not page aligned, size 0, wraps around); ESRCH.
        """
        partition, start_vpn, end_vpn = self._range(fd, addr, size)
        mm = self._mm(pid)
        partition.n_calls += 1
        if partition.kept is None:
            return MergeCounts(end_vpn - start_vpn, 0, 0, 0, 0, 0, 0, 0,
                               self._spaces.cost.call_ns, end_vpn)
        return self._spaces.merge_range(partition.kept, mm, start_vpn, end_vpn, longest_ns)

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> UnmergeCounts:
        """Undo merging in [addr, addr + size) of process `pid`; errno as for `ksm_merge`."""
        partition, start_vpn, end_vpn = self._range(fd, addr, size)
        mm = self._mm(pid)
        partition.n_calls += 1
        if partition.kept is None:
            return UnmergeCounts(end_vpn - start_vpn, 0, self._spaces.cost.call_ns)
        return self._spaces.unmerge_range(partition.kept, mm, start_vpn, end_vpn)

    def counters(self, fd: int) -> dict[str, int]:
        """The files of /sys/kernel/mm/ksm/partition/<name>/, read through a descriptor.

        Raises `OSError`: EBADF; EACCES (opened O_WRONLY).
        """
        partition = self._readable(fd).partition
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
        if partition.kept is None:
            return {**files, **dict.fromkeys(names, 0), "general_profit": 0}
        counters = self._spaces.one_partition_counters(partition.kept)
        files |= {name: getattr(counters, name) for name in names}
        return {**files, "general_profit": counters.general_profit_bytes}

    def _begin(self, name: str, is_sync: bool) -> int | None:
        """The partition's number in the spaces, None if no page belongs to it."""
        index = self._planned.get(name)
        if index is None:
            return None
        if index in self._in_use:
            index = self._spaces.renew_partition(index)
        self._in_use.add(index)
        self._spaces.set_max_page_sharing(index, self._knobs.max_page_sharing)
        if not is_sync:
            self._spaces.start_scanner(index, self._knobs)
        return index

    def _end(self, partition: Partition[int | None]) -> None:
        if partition.kept is not None:
            self._spaces.reset_partition(partition.kept)
            self._in_use.discard(partition.kept)

    def _mm(self, pid: int) -> int:
        mm = self._mms.get(pid)
        if mm is None:
            fail(errno.ESRCH, f"pid {pid}")
        return mm
