"""Selective KSM by the rules of the kernel module, page by page.

What `kmod/merge.c` and `kmod/partition_table.c` do on a machine at rest: no page is busy, pinned
or in swap, nothing is written during a call, memory does not run out, and max_pages is not
reached. docs/selective-ksm.md lists how these rules differ from the kernel's
(`planner.ksm.selective`), by which planning goes.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, overload

from planner.ksm.partition_memory import Frame, FrameKind, ModuleMemory, Place, Process
from planner.ksm.partition_names import Credentials, Descriptor, Partition, Partitions, Rules, fail
from planner.ksm.selective import SelectiveKsm
from planner.ksm.space import MergeSpaces

__all__ = ["KERNEL_THREAD", "ModuleKsm", "RangeCounts", "partition_object"]

#: A pid that `ModuleKsm` takes for a kernel thread's.
KERNEL_THREAD = 2
_STEP_PAGES = 512
_EQUAL_MAX = 16
#: Rounds of a scanner after which nothing changes any more: seen, candidate, merged, and to spare.
_ROUNDS = 4


@dataclass(slots=True)
class RangeCounts:
    """Pages of a call by what became of them, as `struct ksm_partition_counts`.

    `refused` counts by reason: the names of the files in sysfs.
    """

    n_requested: int = 0
    n_absent: int = 0
    n_already: int = 0
    n_merged: int = 0
    n_candidates: int = 0
    n_volatile: int = 0
    n_partners: int = 0
    n_unmerged: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Site:
    """A page that was looked at and not merged; `content` is what it was when last looked at."""

    process: Process
    vpn: int
    content: int = 0
    is_candidate: bool = False


@dataclass(slots=True, eq=False)
class _Range:
    process: Process
    start_vpn: int
    end_vpn: int


@dataclass(slots=True, eq=False)
class Table:
    """What a partition knows: merged frames by content, sites by place, candidates by content.

    `fresh` are frames made in the current step, which nobody maps yet.
    """

    has_scanner: bool
    frames: dict[int, Frame] = field(default_factory=dict)
    sites: dict[tuple[Process, int], _Site] = field(default_factory=dict)
    candidates: dict[int, list[_Site]] = field(default_factory=dict)
    ranges: list[_Range] = field(default_factory=list)
    fresh: set[Frame] = field(default_factory=set)
    n_scanned: int = 0
    n_merged: int = 0
    n_unmerged: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def set(self, site: _Site, content: int, is_candidate: bool) -> None:
        """What has been seen at a site; it becomes the last of the equal candidates."""
        if site.is_candidate:
            self.candidates[site.content].remove(site)
        site.content, site.is_candidate = content, is_candidate
        if is_candidate:
            self.candidates.setdefault(content, []).append(site)

    def take(self, site: _Site) -> None:
        """Take a site out."""
        self.set(site, site.content, False)
        del self.sites[site.process, site.vpn]

    def forget(self, process: Process, start_vpn: int, end_vpn: int) -> None:
        """Drop all sites of a range."""
        for site in list(self.sites.values()):
            if site.process is process and start_vpn <= site.vpn < end_vpn:
                self.take(site)

    def reap(self) -> None:
        """Forget frames without mapping and sites of processes that are gone."""
        self.frames = {content: frame for content, frame in self.frames.items() if frame.mappers}
        for site in list(self.sites.values()):
            if not site.process.is_alive:
                self.take(site)

    def add(self, counts: RangeCounts) -> None:
        """Add what a call did to what the partition tells."""
        self.n_merged += counts.n_merged + counts.n_partners
        self.n_unmerged += counts.n_unmerged
        self.refused += counts.refused


class ModuleKsm(Partitions[Table]):
    """The calls of the module on the processes of `memory`; pids are the memory's numbers.

    `own_process` is the caller's, which may change its own memory without CAP_SYS_PTRACE.
    Scanners do their work in `scan` only.
    """

    rules: Rules = "module"

    def __init__(self, memory: ModuleMemory, *, credentials: Credentials | None = None,
                 own_process: int | None = None, max_open: int = 1024) -> None:
        super().__init__(credentials, max_open)
        self.is_merging_allowed = True
        self._memory = memory
        self._own_process = own_process

    def ksm_open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """As `Partitions.ksm_open`; EPERM before all else while merging is off."""
        if not self.is_merging_allowed:
            fail(errno.EPERM, "allow_merge is 0")
        return super().ksm_open(name, flags, mode)

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> RangeCounts:
        """Merge [addr, addr + size) of process `pid` in the partition.

        Raises `OSError`: EBADF; EACCES (opened O_RDONLY); EOPNOTSUPP (not opened with KSM_SYNC);
        EINVAL (the range, a kernel thread); ESRCH; EPERM.
        """
        partition, start_vpn, end_vpn = self._range(fd, addr, size)
        process = self._process(pid, is_merge=True)
        partition.n_calls += 1
        counts = RangeCounts()
        _merge(partition.kept, process, start_vpn, end_vpn, counts, is_gated=False)
        partition.kept.add(counts)
        return counts

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> RangeCounts:
        """Give merged pages of the range frames of their own; errno as for `ksm_merge`."""
        partition, start_vpn, end_vpn = self._range(fd, addr, size)
        process = self._process(pid, is_merge=False)
        partition.n_calls += 1
        counts = RangeCounts()
        _unmerge(partition.kept, process, start_vpn, end_vpn, counts)
        partition.kept.add(counts)
        return counts

    def ksm_attach(self, fd: int, pid: int, addr: int, size: int) -> None:
        """Let the partition's scanner look at a range.

        Raises `OSError` as `ksm_merge`, EOPNOTSUPP where there is no scanner (any more).
        """
        table, process, start_vpn, end_vpn = self._scanned(fd, pid, addr, size, is_merge=True)
        _cut(table, process, start_vpn, end_vpn)
        table.ranges.append(_Range(process, start_vpn, end_vpn))

    def ksm_detach(self, fd: int, pid: int, addr: int, size: int) -> None:
        """Let the scanner look at a range no longer; errno as for `ksm_attach`."""
        table, process, start_vpn, end_vpn = self._scanned(fd, pid, addr, size, is_merge=False)
        _cut(table, process, start_vpn, end_vpn)
        table.forget(process, start_vpn, end_vpn)

    def ksm_unlink(self, name: str) -> None:
        """As `Partitions.ksm_unlink`; the scanner ends with the name."""
        partition = self._by_name.get(name)
        super().ksm_unlink(name)
        if partition is not None:
            partition.kept.has_scanner = False
            partition.kept.ranges.clear()

    def scan(self, name: str) -> None:
        """Let the scanner of a partition go round until nothing changes any more."""
        table = self._by_name[name].kept
        for _ in range(_ROUNDS):
            table.ranges = [each for each in table.ranges if each.process.is_alive]
            for each in table.ranges:
                _merge(table, each.process, each.start_vpn, each.end_vpn, RangeCounts(),
                       is_gated=True)

    def counters(self, fd: int) -> dict[str, int]:
        """COUNTERS of a descriptor; EBADF, EACCES (opened O_WRONLY)."""
        return self._counters(self._readable(fd).partition)

    def files(self, name: str) -> dict[str, int]:
        """The files of a partition's directory; `KeyError` when there is none."""
        return self._counters(self._by_name[name])

    @staticmethod
    def _counters(partition: Partition[Table]) -> dict[str, int]:
        table = partition.kept
        table.reap()
        n_candidates = sum(map(len, table.candidates.values()))
        return {
            "owner": partition.uid, "group": partition.gid, "mode": partition.mode,
            "sync": int(partition.is_sync),
            "pages_shared": len(table.frames),
            "pages_sharing": sum(len(frame.mappers) - 1 for frame in table.frames.values()),
            "pages_unshared": n_candidates, "pages_volatile": len(table.sites) - n_candidates,
            "pages_scanned": table.n_scanned, "calls": partition.n_calls,
            "n_merged": table.n_merged, "n_unmerged": table.n_unmerged,
            **{f"refused_{reason}": number for reason, number in sorted(table.refused.items())},
        }

    def _begin(self, name: str, is_sync: bool) -> Table:
        del name
        return Table(has_scanner=not is_sync)

    def _end(self, partition: Partition[Table]) -> None:
        """The table is dropped; what is merged stays so, and belongs to nobody."""
        partition.kept.sites.clear()

    def _process(self, pid: int, *, is_merge: bool) -> Process:
        if pid == KERNEL_THREAD:
            fail(errno.EINVAL, f"pid {pid} is a kernel thread")
        process = self._memory.processes.get(pid)
        if process is None:
            fail(errno.ESRCH, f"pid {pid}")
        is_own = pid == self._own_process
        if (is_merge and not self.is_merging_allowed) or not (
                is_own or self.credentials.has_cap_sys_ptrace):
            fail(errno.EPERM, f"pid {pid}")
        return process

    def _scanned(self, fd: int, pid: int, addr: int, size: int, *,
                 is_merge: bool) -> tuple[Table, Process, int, int]:
        descriptor: Descriptor[Table] = self._writable(fd)
        if descriptor.partition.is_sync:
            fail(errno.EOPNOTSUPP, "the partition is synchronous")
        start_vpn, end_vpn = self._vpns(addr, size)
        process = self._process(pid, is_merge=is_merge)
        if not descriptor.partition.kept.has_scanner:
            fail(errno.EOPNOTSUPP, "the partition has been unlinked")
        return descriptor.partition.kept, process, start_vpn, end_vpn


def _refusal_of_mapping(place: Place) -> str | None:
    """`planner_vma_refusal`."""
    if place.is_shared or place.is_wiped_on_fork:
        return "mapping"
    if place.is_locked:
        return "locked"
    return "mergeable" if place.is_mergeable else None


def _refusal_of_frame(frame: Frame) -> str | None:
    """`planner_pte_refusal` of a page that is not merged."""
    if frame.kind is FrameKind.ZERO:
        return "zero_page"
    if frame.kind is FrameKind.HUGE:
        return "thp"
    if frame.is_locked:
        return "locked"
    return "shared" if len(frame.mappers) > 1 else None


def _eligible(site: _Site) -> Place | None:
    """`planner_page_get`: the place of a site, if its page may be merged now."""
    place = site.process.places.get(site.vpn) if site.process.is_alive else None
    if place is None or place.frame is None or place.frame.kind is FrameKind.MERGED:
        return None
    refusal = _refusal_of_mapping(place) or _refusal_of_frame(place.frame)
    return None if refusal else place


def _present(process: Process, start_vpn: int, end_vpn: int) -> Iterator[int]:
    """The vpns of [start, end) where something is mapped, ascending."""
    if end_vpn - start_vpn <= len(process.places):
        yield from (vpn for vpn in range(start_vpn, end_vpn) if vpn in process.places)
    else:
        yield from sorted(vpn for vpn in process.places if start_vpn <= vpn < end_vpn)


def _merge(table: Table, process: Process, start_vpn: int, end_vpn: int, counts: RangeCounts, *,
           is_gated: bool) -> None:
    """`planner_run` of `planner_merge_step`: steps of 512 pages that may be merged."""
    vpns = list(_present(process, start_vpn, end_vpn))
    counts.n_requested += end_vpn - start_vpn
    counts.n_absent += end_vpn - start_vpn - len(vpns)
    at = iter(vpns)
    while items := _collect(table, process, at, counts):
        table.fresh.clear()
        matched = [(vpn, _match(table, process, vpn, counts, is_gated)) for vpn in items]
        partners = []
        for vpn, match in matched:
            if match is None:
                continue
            frame, partner = match
            process.places[vpn].put(frame)
            counts.n_merged += 1
            if partner is not None:
                partners.append((partner, frame))
        for partner, frame in partners:
            # One that was an item of this step, too, has been merged as such.
            place = _eligible(partner)
            if place is not None:
                place.put(frame)
                counts.n_partners += 1


def _collect(table: Table, process: Process, vpns: Iterator[int],
             counts: RangeCounts) -> list[int]:
    """`planner_collect`: the next pages that may be merged; others are counted."""
    items: list[int] = []
    for vpn in vpns:
        place = process.places[vpn]
        frame = place.frame
        refusal = _refusal_of_mapping(place)
        if refusal:
            counts.refused[refusal] += 1
        elif frame is None:
            counts.n_absent += 1
        elif frame.kind is FrameKind.MERGED:
            if frame.merged_by is table:
                counts.n_already += 1
            else:
                counts.refused["foreign"] += 1
        elif refusal := _refusal_of_frame(frame):
            counts.refused[refusal] += 1
        else:
            items.append(vpn)
            if len(items) == _STEP_PAGES:
                break
    return items


def _match(table: Table, process: Process, vpn: int, counts: RangeCounts,
           is_gated: bool) -> tuple[Frame, _Site | None] | None:
    """`planner_match_item`: the frame to map, and the candidate that is to map it, too."""
    frame = process.places[vpn].frame
    assert frame is not None
    content = frame.content
    table.n_scanned += 1
    site = table.sites.get((process, vpn))
    merged = table.frames.get(content)
    if merged is not None and not merged.mappers and merged not in table.fresh:
        merged = None
    if merged is not None:
        if site is not None:
            table.take(site)
        return merged, None
    partner = None
    is_candidate = not is_gated or (site is not None and site.content == content)
    if is_candidate:
        partner = _partner(table, process, vpn, content, is_gated)
    if partner is None:
        if site is None:
            site = table.sites[process, vpn] = _Site(process, vpn)
        table.set(site, content, is_candidate)
        if is_candidate:
            counts.n_candidates += 1
        else:
            counts.n_volatile += 1
        return None
    merged = Frame(content, FrameKind.MERGED, table)
    table.frames[content] = merged
    table.fresh.add(merged)
    if site is not None:
        table.take(site)
    return merged, partner


def _partner(table: Table, process: Process, vpn: int, content: int,
             is_gated: bool) -> _Site | None:
    """`planner_match_candidate`: an equal candidate, taken out; stale ones are put right."""
    for site in list(islice(table.candidates.get(content, ()), _EQUAL_MAX)):
        if site.process is process and site.vpn == vpn:
            continue
        place = _eligible(site)
        if place is None or place.frame is None:
            table.take(site)
        elif place.frame.content != content:
            table.set(site, place.frame.content, not is_gated)
        else:
            table.take(site)
            return site
    return None


def _unmerge(table: Table, process: Process, start_vpn: int, end_vpn: int,
             counts: RangeCounts) -> None:
    """`planner_run` of `planner_unmerge_step`."""
    vpns = list(_present(process, start_vpn, end_vpn))
    counts.n_requested += end_vpn - start_vpn
    counts.n_absent += end_vpn - start_vpn - len(vpns)
    for vpn in vpns:
        place = process.places[vpn]
        frame = place.frame
        if place.is_shared:
            counts.n_already += 1
        elif frame is None:
            counts.n_absent += 1
        elif frame.kind is not FrameKind.MERGED:
            counts.n_already += 1
        elif frame.merged_by is not table:
            counts.refused["foreign"] += 1
        else:
            place.own(frame.content)
            counts.n_unmerged += 1
    table.forget(process, start_vpn, end_vpn)


def _cut(table: Table, process: Process, start_vpn: int, end_vpn: int) -> None:
    """`planner_range_cut`: take [start, end) out of the ranges of a process."""
    left = []
    for each in table.ranges:
        if each.process is not process:
            left.append(each)
            continue
        left += [_Range(process, start, end) for start, end in (
            (each.start_vpn, min(each.end_vpn, start_vpn)),
            (max(each.start_vpn, end_vpn), each.end_vpn)) if start < end]
    table.ranges = left


@overload
def partition_object(host: MergeSpaces, *, rules: Literal["kernel"] = ..., names: Sequence[str],
                     mms: Mapping[int, int],
                     credentials: Credentials | None = ...) -> SelectiveKsm: ...


@overload
def partition_object(host: ModuleMemory, *, rules: Literal["module"],
                     credentials: Credentials | None = ...) -> ModuleKsm: ...


def partition_object(
    host: MergeSpaces | ModuleMemory, *, rules: Rules = "kernel", names: Sequence[str] = (),
    mms: Mapping[int, int] | None = None, credentials: Credentials | None = None,
) -> SelectiveKsm | ModuleKsm:
    """The calls of Selective KSM on a host, by the rules of the kernel's KSM or of the module.

    Planning takes the former, over the merge spaces of a replay; `names` and `mms` are those of
    `SelectiveKsm`. The module's rules need processes that map, write and fork. `TypeError` when
    host and rules do not fit.
    """
    if rules == "kernel" and isinstance(host, MergeSpaces):
        return SelectiveKsm(host, names, mms or {}, credentials=credentials)
    if rules == "module" and isinstance(host, ModuleMemory):
        return ModuleKsm(host, credentials=credentials)
    raise TypeError(f"rules {rules!r} do not go with {type(host).__name__}")
