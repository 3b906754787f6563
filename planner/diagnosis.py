"""Why memory would not merge, and what it is: shares of the memory of a trace or of a host.

Obstacles may overlap (a page can be in a huge page and change all the time); the parts of what
the memory is do not, and add up to the memory that KSM could take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.trace import PAGE_BYTES, PageColumns, PageFlag, Region, RegionFlag

__all__ = ["OBSTACLES", "Diagnosis", "DiagnosisCounter", "Part", "parts_of"]

#: Obstacles by key, in the order they are told: what it is, and what can be done.
OBSTACLES = {
    "hugetlb": ("in hugetlb pages, which never merge",
                "back guests that should merge with small or transparent huge pages"),
    "shared": ("in shared mappings (memfd, tmpfs, vhost-user, virtiofs), which never merge",
               "back guests with private anonymous memory"),
    "device": ("device memory or special mappings, which never merge", ""),
    "encrypted": ("of encrypted guests (SEV, TDX), whose pages never equal another's",
                  "leave them out: ksmd would scan them for nothing"),
    "pinned": ("pinned (VFIO, RDMA), which never merges",
               "leave guests with passed-through devices out"),
    "not_advised": ("not offered to KSM",
                    "advise it: MADV_MERGEABLE, PR_SET_MEMORY_MERGE, or mem-merge=on for QEMU"),
    "thp": ("in transparent huge pages, which merge only once split",
            "ksmd splits what it finds equal; the rest of a split page costs TLB misses"),
    "churn": ("changed since the snapshot before: such pages fail ksmd's checksum gate",
              "merge rarely, or not here: writes would undo it"),
    "locked": ("locked (mlock), which merges, but pinned memory looks the same here and does not",
               "VmPin in /proc/PID/status tells pinned memory"),
    "file": ("page cache of mapped files, which never merges (the host shares it already)", ""),
    "swapped": ("swapped out: nothing is known of its content", ""),
    "not_read": ("could not be read", ""),
}
#: What pages of a `content` label are.
_CONTENTS = {
    "guest-ram": "memory of guests (planner trace join tells what they use it for)",
    "heap": "heap", "stack": "stacks", "anon": "anonymous mappings (heap of large allocations)",
    "file-private": "private copies of file pages",
    "file-shared": "shared file pages",
    "guest-page-cache": "page cache of guests",
    "guest-kernel-text": "kernel text of guests",
    "guest-kernel-rodata": "read-only data of guest kernels",
    "guest-kernel-data": "data of guest kernels",
    "guest-slab": "kernel objects of guests (slab)",
    "guest-page-tables": "page tables of guests",
    "guest-anon": "anonymous memory of guests' processes",
    "guest-free": "free memory of guests, not given back",
    "guest-kernel-other": "other memory of guest kernels",
    "guest-shmem": "shared memory of guests' processes",
    "guest-hugetlb": "hugetlb pages of guests",
    "guest-reserved": "reserved memory of guests",
    "guest-unflagged": "memory of guests of no known use",
}
_SPECIAL = RegionFlag.PFNMAP | RegionFlag.IO | RegionFlag.MIXEDMAP | RegionFlag.DONTEXPAND \
    | RegionFlag.DROPPABLE | RegionFlag.DAX
_NOT_SEEN = {"swapped": PageFlag.SWAPPED,
             "not_read": PageFlag.UNREADABLE | PageFlag.NOT_HASHED | PageFlag.MIGRATION}
#: A machine of so many pages, none zero and none with a twin, holds no plain memory.
_MIN_ENCRYPTED_PAGES = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """So many bytes, as a share of the whole; `key` stays, `text` and `instead` are for people."""

    key: str
    n_bytes: int
    share: float
    text: str
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Shares of `n_bytes`: `obstacles` of all memory, `contents` of what KSM could take.

    `notes` say what could not be seen.
    """

    n_bytes: int
    obstacles: tuple[Part, ...]
    contents: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        def plain(parts: Iterable[Part]) -> list[dict[str, Any]]:
            return [{"key": part.key, "n_bytes": part.n_bytes, "share": part.share,
                     "text": part.text, "instead": part.instead} for part in parts]

        return {"n_bytes": self.n_bytes, "obstacles": plain(self.obstacles),
                "contents": plain(self.contents), "notes": list(self.notes)}


def parts_of(n_bytes: Mapping[str, int], whole_bytes: int) -> tuple[Part, ...]:
    """The obstacles that hold any memory, in the order of `OBSTACLES`."""
    return tuple(Part(key, n_bytes[key], n_bytes[key] / whole_bytes if whole_bytes else 0.0, *told)
                 for key, told in OBSTACLES.items() if n_bytes.get(key, 0) > 0)


def region_obstacle(flags: int) -> str | None:
    """Why KSM refuses a VMA with these RegionFlag bits; None where it does not."""
    if flags & RegionFlag.HUGETLB:
        return "hugetlb"
    if flags & _SPECIAL:
        return "device"
    return "shared" if flags & (RegionFlag.SHARED | RegionFlag.MAYSHARE) else None


def content_of(region: Region) -> str:
    """What a region holds: its label `content`, else what its flags tell."""
    known = region.labels.get("content")
    if known is not None:
        return known
    for flag, name in ((RegionFlag.GUEST_RAM, "guest-ram"), (RegionFlag.HEAP, "heap"),
                       (RegionFlag.STACK, "stack"), (RegionFlag.FILE, "file-private")):
        if region.flags & flag:
            return name
    return "anon"


@dataclass(slots=True)
class DiagnosisCounter:
    """Counts the pages of one snapshot mm by mm; `finish` gives the shares."""

    n_pages: int = 0
    n_compared: int = 0
    n_changed: int = 0
    obstacles: Counter[str] = field(default_factory=Counter)
    contents: Counter[str] = field(default_factory=Counter)

    def add(self, pages: PageColumns, regions: Sequence[Region],
            region_of: npt.NDArray[np.intp], is_counted: npt.NDArray[np.bool_]) -> None:
        """Count the pages of one mm.

        `region_of` gives each page's region (-1: none), `is_counted` whether KSM could merge the
        page if it were advised.
        """
        self.n_pages += len(pages)
        n_places = len(regions) + 1
        place = region_of + 1
        counted_flags = pages.flags[is_counted]
        is_zero, is_huge = (_has(counted_flags, flag) for flag in (PageFlag.ZERO, PageFlag.THP))
        counted_place = place[is_counted]
        per_place = np.bincount(place, minlength=n_places)
        counted = np.bincount(counted_place, minlength=n_places)
        zero = np.bincount(counted_place[is_zero], minlength=n_places)
        for at in np.flatnonzero(per_place[1:]).tolist():
            region, n, n_zero = regions[at], int(counted[at + 1]), int(zero[at + 1])
            reason = region_obstacle(region.flags)
            if reason is not None:
                self.obstacles[reason] += int(per_place[at + 1])
            elif not region.flags & RegionFlag.ADVISED:
                self.obstacles["not_advised"] += n
            if n > n_zero:
                self.contents[content_of(region)] += n - n_zero
        n_zero_huge = int(np.count_nonzero(is_zero & is_huge))
        self.contents["zero-thp"] += n_zero_huge
        self.contents["zero"] += int(np.count_nonzero(is_zero)) - n_zero_huge
        self.obstacles["thp"] += int(np.count_nonzero(is_huge))
        self.obstacles["locked"] += int(np.count_nonzero(_has(counted_flags, PageFlag.LOCKED)))
        if len(counted_flags) < len(pages):
            for key, flag in _NOT_SEEN.items():
                self.obstacles[key] += int(np.count_nonzero(_has(pages.flags, flag)))

    def finish(self, guests: Iterable[tuple[str, int, int, int]]) -> Diagnosis:
        """The shares. `guests`: kind, frames, zero frames and frames with a twin of each guest."""
        n_bytes = {key: n * PAGE_BYTES for key, n in self.obstacles.items()}
        n_bytes["churn"] = self.n_changed * PAGE_BYTES
        n_bytes["encrypted"] = PAGE_BYTES * sum(
            n_frames for kind, n_frames, n_zero, n_twins in guests
            if kind == "vm" and n_frames >= _MIN_ENCRYPTED_PAGES and not n_zero and not n_twins)
        n_counted = self.contents.total()
        texts = {"zero-thp": "zero pages inside huge pages (what transparent huge pages waste)",
                 "zero": "zero pages", **_CONTENTS}
        contents = tuple(
            Part(key, n * PAGE_BYTES, n / n_counted, texts.get(key, key))
            for key, n in sorted(self.contents.items(), key=lambda item: (-item[1], item[0])) if n)
        notes = ["Whether memory is pinned or encrypted is not in a trace; planner doctor looks on "
                 "the host. A guest without any zero page or twin is taken for encrypted."]
        if not self.n_compared:
            notes.append("One snapshot alone does not tell what changes.")
        return Diagnosis(self.n_pages * PAGE_BYTES,
                         parts_of(n_bytes, self.n_pages * PAGE_BYTES), contents, tuple(notes))


def _has(flags: npt.NDArray[np.uint32], wanted: PageFlag) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (flags & np.uint32(wanted)) != 0
    return found
