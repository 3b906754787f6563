"""Processes with private memory, as far as the kernel module's partitions look at it.

A process is a table of places (its pages, mapped or not yet present), a place maps a frame, and a
frame knows who maps it. Contents are numbers, 0 the page of zeroes. This is not
`planner.ksm.memory`, which follows the kernel's KSM: the module has no items, no trees and no
ksmd, but refuses by what a mapping is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Frame", "FrameKind", "ModuleMemory", "Place", "Process"]

#: Pages of a huge page.
_HUGE_PAGES = 512


class FrameKind(Enum):
    """What a frame is to the module."""

    ANON = "anon"
    HUGE = "huge"
    ZERO = "zero"
    MERGED = "merged"


@dataclass(slots=True, eq=False)
class Frame:
    """One page frame; `merged_by` is the table of the partition that made it, if one did."""

    content: int
    kind: FrameKind = FrameKind.ANON
    merged_by: object = None
    mappers: set[Place] = field(default_factory=set)

    @property
    def is_locked(self) -> bool:
        """Mapped where memory is locked (PG_mlocked)."""
        return any(place.is_locked for place in self.mappers)


@dataclass(slots=True, eq=False)
class Place:
    """One page of a mapping: its frame, if it is present, and the mapping's properties."""

    frame: Frame | None = None
    is_shared: bool = False
    is_huge: bool = False
    is_writable: bool = True
    is_locked: bool = False
    is_mergeable: bool = False
    is_wiped_on_fork: bool = False

    def put(self, frame: Frame | None) -> None:
        """Map another frame here, or none."""
        if self.frame is not None:
            self.frame.mappers.discard(self)
        self.frame = frame
        if frame is not None:
            frame.mappers.add(self)

    def own(self, content: int) -> None:
        """Map a frame of its own here."""
        self.put(Frame(content))


@dataclass(slots=True, eq=False)
class Process:
    """An address space: places by vpn, and the 2 MiB blocks that have a table of small pages."""

    places: dict[int, Place] = field(default_factory=dict)
    tables: set[int] = field(default_factory=set)
    is_alive: bool = True


class ModuleMemory:
    """The processes of a machine without memory pressure, named by numbers.

    Ranges are [vpn, vpn + n) and mapped, where nothing else is said; pages written are writable.
    What would fail in a kernel is the caller's to avoid.
    """

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}

    def spawn(self, p: int) -> None:
        """A process with nothing mapped."""
        self.processes[p] = Process()

    def exit(self, p: int) -> None:
        """The process and its memory go."""
        process = self.processes.pop(p)
        self._drop(process, list(process.places))
        process.is_alive = False

    def fork(self, parent: int, child: int) -> None:
        """A copy: present pages are shared until written, locks are not inherited.

        The parent has no huge pages.
        """
        new = Process()
        for vpn, old in self.processes[parent].places.items():
            place = Place(None, old.is_shared, old.is_huge, old.is_writable, False,
                          old.is_mergeable, old.is_wiped_on_fork)
            if not old.is_wiped_on_fork:
                place.put(old.frame)
            new.places[vpn] = place
        self.processes[child] = new

    def map(self, p: int, vpn: int, n: int, *, huge: bool = False, shared: bool = False) -> None:
        """New private (or shared) anonymous memory where nothing is mapped."""
        for at in range(vpn, vpn + n):
            self.processes[p].places[at] = Place(is_shared=shared, is_huge=huge)

    def unmap(self, p: int, vpn: int, n: int) -> None:
        """munmap; holes are passed over."""
        process = self.processes[p]
        self._drop(process, [at for at in range(vpn, vpn + n) if at in process.places])

    def write(self, p: int, vpn: int, contents: Sequence[int]) -> None:
        """Give page vpn + i content contents[i]."""
        for i, content in enumerate(contents):
            self._write(self.processes[p], vpn + i, content)

    def read(self, p: int, vpn: int, n: int) -> None:
        """Read faults: absent private small pages map the shared zero page."""
        for place in self._range(p, vpn, n):
            if place.frame is None and not place.is_shared:
                place.put(Frame(0, FrameKind.ZERO))

    def dontneed(self, p: int, vpn: int, n: int) -> None:
        """madvise(MADV_DONTNEED); a huge page that is not dropped whole is split in its table."""
        process = self.processes[p]
        for block in range(vpn // _HUGE_PAGES, (vpn + n - 1) // _HUGE_PAGES + 1):
            start, end = block * _HUGE_PAGES, (block + 1) * _HUGE_PAGES
            if (start < vpn or end > vpn + n) and any(
                    place.frame is not None and place.frame.kind is FrameKind.HUGE
                    for place in map(process.places.get, range(start, end)) if place is not None):
                process.tables.add(block)
        for place in self._range(p, vpn, n):
            place.put(None)

    def lock(self, p: int, vpn: int, n: int) -> None:
        """mlock: every page becomes present, and a writable one the process's own."""
        for place in self._range(p, vpn, n):
            place.is_locked = True
            self._populate(place)

    def unlock(self, p: int, vpn: int, n: int) -> None:
        """munlock."""
        for place in self._range(p, vpn, n):
            place.is_locked = False

    def protect(self, p: int, vpn: int, n: int, *, is_writable: bool) -> None:
        """mprotect; locked memory that becomes writable is the process's own at once."""
        for place in self._range(p, vpn, n):
            place.is_writable = is_writable
            if place.is_locked:
                self._populate(place)

    def advise(self, p: int, vpn: int, n: int, *, is_mergeable: bool) -> None:
        """MADV_MERGEABLE, MADV_UNMERGEABLE; ksmd does not run."""
        for place in self._range(p, vpn, n):
            place.is_mergeable = is_mergeable

    def wipe_on_fork(self, p: int, vpn: int, n: int, *, is_wiped: bool) -> None:
        """MADV_WIPEONFORK, MADV_KEEPONFORK."""
        for place in self._range(p, vpn, n):
            place.is_wiped_on_fork = is_wiped

    def move(self, p: int, vpn: int, n: int, new_vpn: int) -> None:
        """mremap of small pages to a place that does not overlap; what was there goes."""
        places = self.processes[p].places
        self.unmap(p, new_vpn, n)
        for i in range(n):
            places[new_vpn + i] = places.pop(vpn + i)

    def _range(self, p: int, vpn: int, n: int) -> list[Place]:
        places = self.processes[p].places
        return [places[at] for at in range(vpn, vpn + n)]

    @staticmethod
    def _drop(process: Process, vpns: Sequence[int]) -> None:
        for vpn in vpns:
            process.places.pop(vpn).put(None)

    @staticmethod
    def _populate(place: Place) -> None:
        """`populate_vma_page_range`: a write fault where writing is allowed, else a read fault."""
        frame = place.frame
        if not place.is_writable:
            if frame is None:
                place.put(Frame(0, FrameKind.ZERO))
        elif frame is None:
            place.own(0)
        elif frame.kind in (FrameKind.ZERO, FrameKind.MERGED) or len(frame.mappers) > 1:
            place.own(frame.content)

    @staticmethod
    def _write(process: Process, vpn: int, content: int) -> None:
        place = process.places[vpn]
        if place.is_shared:
            return
        block = vpn // _HUGE_PAGES
        if place.is_huge and place.frame is None and block not in process.tables:
            for at in range(block * _HUGE_PAGES, (block + 1) * _HUGE_PAGES):
                process.places[at].put(Frame(0, FrameKind.HUGE))
        frame = place.frame
        if frame is None or frame.kind in (FrameKind.ZERO, FrameKind.MERGED) \
                or len(frame.mappers) > 1:
            place.own(content)
        else:
            frame.content = content
