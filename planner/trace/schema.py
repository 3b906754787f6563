"""The trace schema: flags, identifiers and the Parquet tables of a page-hash trace.

docs/trace-format.md is the document; this file is its machine-readable half. Flag values and
column meanings are frozen: append only, never reuse a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planner.tables import TableKind

__all__ = [
    "ADVISORY_FLAGS", "KINDS", "NO_HASH", "PAGE_BYTES", "SCHEMA_VERSION", "Guest", "HashInfo",
    "Mm", "PageColumns", "PageFlag", "Region", "RegionFlag", "RegionInput", "SnapshotInfo",
    "empty_pages", "is_ksm_compatible",
]

PAGE_BYTES = 4096
SCHEMA_VERSION = (1, 0)
#: Page hash algorithms that traces may name; two of them never mix in one comparison.
ALGORITHMS = ("xxh64-siphash24", "blake2b-64", "superfasthash-32")


class PageFlag(IntFlag):
    """What is known of one page; bits 16 to 18 are advisory (they alone make no change record)."""

    ANON = 1 << 0
    FILE = 1 << 1
    SHMEM = 1 << 2
    ZERO = 1 << 3  # content is all zero
    ZERO_PAGE = 1 << 4  # maps the kernel's shared zero page: no frame of its own
    THP = 1 << 5  # part of a transparent huge page
    KSM = 1 << 6  # merged by KSM
    SWAPPED = 1 << 7
    UNREADABLE = 1 << 8  # could not be read, or changed place while it was read
    MIGRATION = 1 << 9
    SWAPCACHE = 1 << 10
    LOCKED = 1 << 11  # mlocked or unevictable
    COMPOUND = 1 << 12
    HUGETLB = 1 << 13
    EXCLUSIVE = 1 << 14  # mapped exactly once
    NOT_HASHED = 1 << 15  # listed, not read on purpose
    YOUNG = 1 << 16
    DIRTY = 1 << 17
    WRITABLE = 1 << 18
    GONE = 1 << 31  # in files only: the page of the snapshot before is no more


#: Exactly the pages with one of these bits have no hash.
NO_HASH = PageFlag.SWAPPED | PageFlag.UNREADABLE | PageFlag.MIGRATION | PageFlag.NOT_HASHED
ADVISORY_FLAGS = PageFlag.YOUNG | PageFlag.DIRTY | PageFlag.WRITABLE


class RegionFlag(IntFlag):
    """Eligibility of a VMA; names in comments are the VmFlags of /proc/PID/smaps."""

    ADVISED = 1 << 0  # mg: VM_MERGEABLE
    SHARED = 1 << 1  # sh
    MAYSHARE = 1 << 2  # ms
    PFNMAP = 1 << 3  # pf
    IO = 1 << 4  # io
    DONTEXPAND = 1 << 5  # de
    HUGETLB = 1 << 6  # ht
    MIXEDMAP = 1 << 7  # mm
    DROPPABLE = 1 << 8  # dp
    DAX = 1 << 9
    LOCKED = 1 << 10  # lo
    HUGEPAGE = 1 << 11  # hg
    NOHUGEPAGE = 1 << 12  # nh
    USERFAULTFD = 1 << 13  # um uw ui
    WIPEONFORK = 1 << 14  # wf
    FILE = 1 << 15  # file-backed mapping
    STACK = 1 << 16
    HEAP = 1 << 17
    GUEST_RAM = 1 << 18
    READ = 1 << 19
    WRITE = 1 << 20
    EXEC = 1 << 21


#: A VMA with one of these is never merged (vma_ksm_compatible, mm/ksm.c).
KSM_INCOMPATIBLE = (RegionFlag.SHARED | RegionFlag.MAYSHARE | RegionFlag.PFNMAP | RegionFlag.IO
                    | RegionFlag.DONTEXPAND | RegionFlag.HUGETLB | RegionFlag.MIXEDMAP
                    | RegionFlag.DROPPABLE | RegionFlag.DAX)


def is_ksm_compatible(flags: int) -> bool:
    """Whether KSM may merge in a VMA with these RegionFlag bits (vma_ksm_compatible)."""
    return not flags & KSM_INCOMPATIBLE


@dataclass(frozen=True, slots=True)
class HashInfo:
    """How page hashes were made; hashes compare only when all four fields are equal."""

    algorithm: str
    bits: int
    key_id: str
    zero_hash: int


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM, container or process; labels are free-form (tenant, domain, image, role, ...)."""

    guest_id: int
    name: str
    kind: str
    labels: Mapping[str, str]
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Mm:
    """One address space of a guest, present in snapshots `[first_snapshot, end_snapshot)`."""

    mm_id: int
    guest_id: int
    pid: int
    comm: str
    first_snapshot: int
    end_snapshot: int


@dataclass(frozen=True, slots=True)
class RegionInput:
    """A VMA as a capture reports it: pages `[start_vpn, end_vpn)` with RegionFlag bits."""

    start_vpn: int
    end_vpn: int
    flags: int
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Region:
    """A VMA of one mm, with the same extent, flags and labels in `[first_snapshot, end_snapshot)`.

    Pages are `[start_vpn, end_vpn)`.
    """

    region_id: int
    mm_id: int
    start_vpn: int
    end_vpn: int
    flags: int
    name: str
    labels: Mapping[str, str]
    first_snapshot: int
    end_snapshot: int


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot: a set of page hashes read between `start_ns` and `end_ns` (Unix time).

    `n_stored` rows are in its file, `n_pages` in the snapshot itself. `skipped` counts pages
    left out by reason; `counters` are the host's KSM counters when the snapshot began.
    """

    snapshot_id: int
    start_ns: int
    end_ns: int
    n_pages: int
    n_stored: int
    is_partial: bool
    skipped: Mapping[str, int]
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class PageColumns:
    """Pages of one mm: equally long arrays in ascending `vpn`.

    `vpn` i64, `hash` u64 (0 where there is none), `flags` u32 (PageFlag), `frame_id` i32 (equal
    on one physical frame within a snapshot, -1 where the frame is mapped once), `numa_node` i8
    (-1 unknown).
    """

    vpn: npt.NDArray[np.int64]
    hash: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint32]
    frame_id: npt.NDArray[np.int32]
    numa_node: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.vpn)

    @property
    def has_hash(self) -> npt.NDArray[np.bool_]:
        """True where the page has a hash."""
        hashed: npt.NDArray[np.bool_] = (self.flags & np.uint32(NO_HASH)) == 0
        return hashed

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> PageColumns:
        """The pages at `index`, in that order."""
        return PageColumns(self.vpn[index], self.hash[index], self.flags[index],
                           self.frame_id[index], self.numa_node[index])


def empty_pages() -> PageColumns:
    """No pages."""
    return PageColumns(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint32),
                       np.empty(0, np.int32), np.empty(0, np.int8))


def _column(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


_LABELS = pa.map_(pa.string(), pa.string())
_COUNTS = pa.map_(pa.string(), pa.int64())


def _kind(name: str, columns: list[pa.Field], *, delta_columns: tuple[str, ...] = (),
          plain_columns: tuple[str, ...] = ()) -> TableKind:
    major, minor = SCHEMA_VERSION
    return TableKind(f"planner.trace.{name}", major, minor, pa.schema(columns),
                     delta_columns=delta_columns, plain_columns=plain_columns)


INDEX = _kind("index", [
    _column("file", pa.string()),
    _column("kind", pa.string()),
    _column("n_rows", pa.int64()),
    _column("n_bytes", pa.int64()),
    _column("sha256", pa.string()),
])
GUESTS = _kind("guests", [
    _column("guest_id", pa.int32()),
    _column("name", pa.string()),
    _column("kind", pa.string()),
    _column("labels", _LABELS),
    _column("memory_bytes", pa.int64(), nullable=True),
])
MMS = _kind("mms", [
    _column("mm_id", pa.int32()),
    _column("guest_id", pa.int32()),
    _column("pid", pa.int32()),
    _column("comm", pa.string()),
    _column("first_snapshot", pa.int32()),
    _column("end_snapshot", pa.int32()),
])
REGIONS = _kind("regions", [
    _column("region_id", pa.int32()),
    _column("mm_id", pa.int32()),
    _column("start_vpn", pa.int64()),
    _column("end_vpn", pa.int64()),
    _column("flags", pa.uint32()),
    _column("name", pa.string()),
    _column("labels", _LABELS),
    _column("first_snapshot", pa.int32()),
    _column("end_snapshot", pa.int32()),
])
SNAPSHOTS = _kind("snapshots", [
    _column("snapshot_id", pa.int32()),
    _column("start_ns", pa.int64()),
    _column("end_ns", pa.int64()),
    _column("n_pages", pa.int64()),
    _column("n_stored", pa.int64()),
    _column("is_partial", pa.bool_()),
    _column("skipped", _COUNTS),
    _column("counters", _COUNTS),
])
PAGES = _kind("pages", [
    _column("mm_id", pa.int32()),
    _column("vpn", pa.int64()),
    _column("hash", pa.uint64(), nullable=True),
    _column("flags", pa.uint32()),
    _column("frame_id", pa.int32(), nullable=True),
    _column("numa_node", pa.int8(), nullable=True),
], delta_columns=("mm_id", "vpn", "frame_id"), plain_columns=("hash",))

KINDS = {kind.kind: kind for kind in (INDEX, GUESTS, MMS, REGIONS, SNAPSHOTS, PAGES)}


def pages_file(snapshot_id: int) -> str:
    """The name of a snapshot's page file."""
    return f"pages-{snapshot_id:04d}.parquet"
