"""What a trace holds: copies by guest and by label, and what a boundary along a label costs.

Counted are the pages that KSM could merge: anonymous, with a hash, not on the kernel's shared
zero page, in a VMA that `vma_ksm_compatible` (mm/ksm.c) accepts, advised or not. Counts are
frames, not pages: what fork or KSM shares already is no saving. All-zero frames stand apart.

Pages are read mm by mm. When the hashes of a snapshot would not fit in the memory allowed they
go to files by their top bits, and the files are counted one after the other: equal contents are
in one file, so the counts add up. A page takes its labels from its guest and its region; where
both have a key, the guest's value counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from planner.diagnosis import Diagnosis, DiagnosisCounter
from planner.errors import DataError, TraceAlteredError, UsageError
from planner.kernels.dedup import Column, DedupCounts, SegmentCounts, count_segments
from planner.trace import (
    PAGE_BYTES,
    PageColumns,
    PageFlag,
    Region,
    RegionFlag,
    Trace,
    empty_pages,
    is_ksm_compatible,
)

__all__ = [
    "FORMAT_VERSION",
    "Boundary",
    "BoundaryValue",
    "Eligibility",
    "PageSums",
    "TraceInfo",
    "trace_info",
]

#: Version of the document that `TraceInfo.to_json` gives.
FORMAT_VERSION = 1
#: Bytes that counting takes per page: the hash, its frame id, the kernel's word, and slack.
_BYTES_PER_PAGE = 24
_MAX_FILES = 256
_NS_PER_MINUTE = 60_000_000_000
#: A page out of core.
_RECORD = np.dtype([("hash", "<u8"), ("run", "<u4"), ("frame", "<i4")])

#: Why a VMA is incompatible; of several reasons the first one named here counts.
_REGION_REASONS = (
    RegionFlag.HUGETLB, RegionFlag.DAX, RegionFlag.PFNMAP, RegionFlag.IO, RegionFlag.MIXEDMAP,
    RegionFlag.DONTEXPAND, RegionFlag.DROPPABLE, RegionFlag.SHARED, RegionFlag.MAYSHARE,
)
_NO_HASH_REASONS = (
    PageFlag.SWAPPED, PageFlag.MIGRATION, PageFlag.UNREADABLE, PageFlag.NOT_HASHED,
)


@dataclass(slots=True)
class Eligibility:
    """All pages of the snapshot, each in one class (`n_pages` is their sum).

    A VMA's own incompatibility comes first, by reason (`shared`, `hugetlb`, ..., `no_region`
    where no VMA is known); then a missing hash by reason, the shared zero page, pages that are
    not anonymous; the rest KSM could merge: in advised VMAs, or if they were advised.
    """

    n_pages: int = 0
    n_advised: int = 0
    n_not_advised: int = 0
    n_not_anonymous: int = 0
    n_zero_page: int = 0
    no_hash: dict[str, int] = field(default_factory=dict)
    incompatible: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class PageSums:
    """One guest, or the whole trace.

    `n_pages` records, of them `n_counted` counted, of these `n_advised` in advised VMAs and
    `n_thp` in transparent huge pages. Frames: `n_frames` = `n_counted` - `n_already_shared`
    = `n_zero` + `n_unique` + `n_twins`, where twins have another copy anywhere; of the twins
    `n_twins_in_guest` have another copy in the guest, and `n_twins_in_label[key]` one under
    the same value of that label. A frame of several guests belongs to the first that maps it.

    Of `n_compared` anonymous pages with a hash in two consecutive snapshots (summed over all
    snapshots) `n_changed` had another one; `changed_per_minute` is the share that changed per
    minute between the snapshots' starts, None where nothing could be compared.
    """

    n_pages: int = 0
    n_counted: int = 0
    n_advised: int = 0
    n_thp: int = 0
    n_already_shared: int = 0
    n_frames: int = 0
    n_zero: int = 0
    n_unique: int = 0
    n_twins: int = 0
    n_twins_in_guest: int = 0
    n_twins_in_label: dict[str, int] = field(default_factory=dict)
    n_compared: int = 0
    n_changed: int = 0
    compared_minutes: float = 0.0

    @property
    def changed_per_minute(self) -> float | None:
        """Share of pages that changed per minute."""
        return self.n_changed / self.compared_minutes if self.compared_minutes else None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, with shares: of frames, but `thp_share` of counted pages."""
        document = asdict(self)
        del document["compared_minutes"]
        return {
            **document,
            "zero_share": _share(self.n_zero, self.n_frames),
            "thp_share": _share(self.n_thp, self.n_counted),
            "unique_share": _share(self.n_unique, self.n_frames),
            "twins_share": _share(self.n_twins, self.n_frames),
            "twins_in_guest_share": _share(self.n_twins_in_guest, self.n_frames),
            "twins_in_label_share": {
                key: _share(n, self.n_frames) for key, n in self.n_twins_in_label.items()},
            "changed_per_minute": self.changed_per_minute,
        }


@dataclass(frozen=True, slots=True)
class BoundaryValue:
    """Pages under one value of a label (None: pages without it), in a merge space of their own.

    `n_duplicates_kept` frames would be freed there, and `n_zero_duplicates_kept` zero frames.
    """

    value: str | None
    n_guests: int
    n_counted: int
    n_frames: int
    n_zero: int
    n_duplicates_kept: int
    n_zero_duplicates_kept: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """What merge spaces along a label cost, beside one space for all; "guest" is the strictest.

    `counts.n_duplicates` frames are freed by one space; `n_duplicates_kept` with a space per
    value, and `n_duplicates_lost` are the boundary's price.
    """

    label: str
    counts: DedupCounts
    values: tuple[BoundaryValue, ...]

    @property
    def n_duplicates_kept(self) -> int:
        """Frames freed with a space per value."""
        return self.counts.n_duplicates_in_label

    @property
    def n_duplicates_lost(self) -> int:
        """Frames that only one space would free."""
        return self.counts.n_other_label

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `lost_share` is of the duplicates of one space."""
        counts = self.counts
        return {
            "label": self.label,
            "n_values": len(self.values),
            "n_duplicates": counts.n_duplicates,
            "n_duplicates_kept": self.n_duplicates_kept,
            "n_duplicates_lost": self.n_duplicates_lost,
            "lost_share": _share(self.n_duplicates_lost, counts.n_duplicates),
            "n_shared": counts.n_shared,
            "n_shared_kept": counts.n_shared_in_label,
            "n_zero_duplicates": counts.n_zero_duplicates,
            "n_zero_duplicates_kept": counts.n_zero_same_guest + counts.n_zero_same_label,
            "n_zero_duplicates_lost": counts.n_zero_other_label,
            "counts": counts._asdict(),
            "values": [asdict(value) for value in self.values],
        }


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """What `planner trace info` shows of one snapshot.

    `guests` are (name, kind, labels, sums) in the order of guest ids; `boundaries` start with
    "guest".
    """

    path: str
    digest: str
    status: str
    hash_algorithm: str
    hash_bits: int
    key_id: str
    snapshot_id: int
    start_ns: int
    end_ns: int
    is_partial: bool
    n_snapshots: int
    span_ns: int
    is_advised_only: bool
    is_out_of_core: bool
    eligibility: Eligibility
    total: PageSums
    guests: tuple[tuple[str, str, Mapping[str, str], PageSums], ...]
    counts: DedupCounts
    boundaries: tuple[Boundary, ...]
    diagnosis: Diagnosis
    #: False for hash lists: pages of two snapshots cannot be compared.
    has_page_ids: bool = True

    def to_json(self) -> dict[str, Any]:
        """A document of plain numbers and strings, with `format_version`."""
        return {
            "format_version": FORMAT_VERSION,
            "path": self.path,
            "digest": self.digest,
            "status": self.status,
            "hash": {"algorithm": self.hash_algorithm, "bits": self.hash_bits,
                     "key_id": self.key_id},
            "page_bytes": PAGE_BYTES,
            "snapshot": {"snapshot_id": self.snapshot_id, "start_ns": self.start_ns,
                         "end_ns": self.end_ns, "is_partial": self.is_partial},
            "n_snapshots": self.n_snapshots,
            "span_ns": self.span_ns,
            "is_advised_only": self.is_advised_only,
            "has_page_ids": self.has_page_ids,
            "eligibility": asdict(self.eligibility),
            "total": self.total.to_json(),
            "guests": [{"name": name, "kind": kind, "labels": dict(labels), **sums.to_json()}
                       for name, kind, labels, sums in self.guests],
            "diagnosis": self.diagnosis.to_json(),
            "counts": self.counts._asdict(),
            "boundaries": [boundary.to_json() for boundary in self.boundaries],
        }


def has_page_ids(trace: Trace) -> bool:
    """Whether a page of one snapshot can be found in the next (not so in imported hash lists)."""
    return trace.provenance.get("page_ids") is not False


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


class _Unit(NamedTuple):
    """Pages of one guest under the same labels."""

    guest_id: int
    labels: tuple[tuple[str, str], ...]


class _Run(NamedTuple):
    """Pages of one mm and unit, which lie together."""

    unit: int
    n_pages: int


class _Chunk(NamedTuple):
    """Pages to count: run r holds `[starts[r], ends[r])`."""

    hashes: npt.NDArray[np.uint64]
    frames: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


class _InMemory:
    """All pages in two arrays."""

    def __init__(self, n_pages: int) -> None:
        self._hashes = np.empty(n_pages, np.uint64)
        self._frames = np.full(n_pages, -1, np.int32)
        self._n_pages = 0
        self._has_frames = False

    def add(self, first_run: int, runs: Sequence[_Run], hashes: npt.NDArray[np.uint64],
            frames: npt.NDArray[np.int32]) -> None:
        """Append the pages of `runs`."""
        end = self._n_pages + len(hashes)
        self._hashes[self._n_pages:end] = hashes
        self._frames[self._n_pages:end] = frames
        self._has_frames = self._has_frames or bool(np.any(frames >= 0))
        self._n_pages = end

    def chunks(self, runs: Sequence[_Run]) -> Iterator[_Chunk]:
        """Everything at once."""
        edges = np.concatenate([[0], np.cumsum([run.n_pages for run in runs], dtype=np.int64)])
        frames = self._frames[:self._n_pages] if self._has_frames else np.empty(0, np.int32)
        yield _Chunk(self._hashes[:self._n_pages], frames, edges[:-1], edges[1:])


class _OutOfCore:
    """Pages in files by the top bits of a mixed hash; one file in memory at a time.

    A file is larger than its share only by the copies of its most frequent content; zero pages
    with a frame of their own, which could be a third of all pages, are counted and not kept.
    """

    def __init__(self, stack: ExitStack, n_pages: int, memory_bytes: int,
                 zero_hash: int) -> None:
        wanted = 2 * n_pages * _BYTES_PER_PAGE // max(memory_bytes, 1)
        self._bits = (min(max(wanted, 2), _MAX_FILES) - 1).bit_length()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-")))
        self._paths = [folder / f"{index:03d}" for index in range(1 << self._bits)]
        self._files: list[BinaryIO] = [
            stack.enter_context(path.open("wb")) for path in self._paths]
        self._zero_hash = np.uint64(zero_hash)
        self.zero_of_run: list[int] = []

    def add(self, first_run: int, runs: Sequence[_Run], hashes: npt.NDArray[np.uint64],
            frames: npt.NDArray[np.int32]) -> None:
        """Append the pages of `runs` to the files of their hashes, in order."""
        records = np.empty(len(hashes), _RECORD)
        records["hash"] = hashes
        records["run"] = np.repeat(np.arange(first_run, first_run + len(runs)),
                                   [run.n_pages for run in runs])
        records["frame"] = frames
        is_zero = (hashes == self._zero_hash) & (frames < 0)
        self.zero_of_run += np.bincount(
            records["run"][is_zero] - np.uint32(first_run), minlength=len(runs)).tolist()
        records = records[~is_zero]
        # Multiplied: the top bits of a foreign hash may all be equal.
        index = (records["hash"] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - self._bits)
        order = np.argsort(index, kind="stable")
        edges = np.searchsorted(index[order], np.arange(len(self._files) + 1))
        records = records[order]
        for file, start, end in zip(self._files, edges[:-1], edges[1:], strict=True):
            file.write(records[start:end].tobytes())

    def chunks(self, runs: Sequence[_Run]) -> Iterator[_Chunk]:
        """File after file."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            records = np.fromfile(path, _RECORD)
            path.unlink()
            if len(records):
                edges = np.searchsorted(records["run"], np.arange(len(runs) + 1))
                yield _Chunk(np.ascontiguousarray(records["hash"]),
                             np.ascontiguousarray(records["frame"]), edges[:-1], edges[1:])


class _FrameHashes:
    """The hash of each shared frame: the first one read.

    A frame has one content; where its pages were read at different times they may disagree.
    """

    def __init__(self) -> None:
        self._hash = np.zeros(1024, np.uint64)
        self._known = np.zeros(1024, bool)

    def settle(self, hashes: npt.NDArray[np.uint64], frames: npt.NDArray[np.int32]) -> None:
        """Replace, in place, the hashes of pages on frames known before."""
        at = np.flatnonzero(frames >= 0)
        if not len(at):
            return
        ids = frames[at]
        size = int(ids.max()) + 1
        if size > len(self._hash):
            size = max(size, 2 * len(self._hash))
            self._hash = np.concatenate([self._hash, np.zeros(size - len(self._hash), np.uint64)])
            self._known = np.concatenate([self._known, np.zeros(size - len(self._known), bool)])
        new = np.flatnonzero(~self._known[ids])[::-1]  # assigned backwards: the first one stays
        self._hash[ids[new]] = hashes[at[new]]
        self._known[ids[new]] = True
        hashes[at] = self._hash[ids]


def _reason(flags: int) -> str:
    return next(str(flag.name).lower() for flag in _REGION_REASONS if flags & flag)


def _add_to(counts: dict[str, int], reason: str, n: int) -> None:
    if n:
        counts[reason] = counts.get(reason, 0) + n


class _Survey:
    """One pass over the trace: eligibility, changes, and the pages to count."""

    def __init__(self, trace: Trace, snapshot_id: int, is_advised_only: bool,
                 store: _InMemory | _OutOfCore) -> None:
        self.trace = trace
        self.snapshot_id = snapshot_id
        self.is_advised_only = is_advised_only
        self.store = store
        self.eligibility = Eligibility()
        self.diagnosis = DiagnosisCounter()
        self.sums = [PageSums() for _ in trace.guests]
        self.units: dict[_Unit, int] = {}
        self.runs: list[_Run] = []
        self._n_expected = trace.snapshots[snapshot_id].n_pages
        self._frame_hashes = _FrameHashes()
        self._minutes = [0.0] + [
            (after.start_ns - before.start_ns) / _NS_PER_MINUTE
            for before, after in pairwise(trace.snapshots)]

    def run(self, progress: Callable[[str, float], None] | None) -> None:
        """Read each mm through all its snapshots."""
        for done, mm in enumerate(self.trace.mms):
            if progress is not None:
                progress("reading", done / len(self.trace.mms))
            before = empty_pages()
            for snapshot_id, pages in self.trace.mm_history(mm.mm_id):
                if snapshot_id > mm.first_snapshot and has_page_ids(self.trace):
                    n_compared, n_changed = self._compare(
                        self.sums[mm.guest_id], before, pages, self._minutes[snapshot_id])
                    if snapshot_id == self.snapshot_id:
                        self.diagnosis.n_compared += n_compared
                        self.diagnosis.n_changed += n_changed
                if snapshot_id == self.snapshot_id:
                    self._collect(mm.guest_id, pages,
                                  self.trace.mm_regions(snapshot_id, mm.mm_id))
                before = pages
        if self.eligibility.n_pages < self._n_expected:
            raise self._altered()

    def _altered(self) -> TraceAlteredError:
        return TraceAlteredError(
            f"snapshot {self.snapshot_id} does not hold the {self._n_expected} pages written",
            where=str(self.trace.path), instead="restore the trace from where it came")

    @staticmethod
    def _compare(sums: PageSums, before: PageColumns, after: PageColumns,
                 minutes: float) -> tuple[int, int]:
        """Pages compared, and of these those that changed."""
        if not len(before) or not len(after):
            return 0, 0
        at = np.minimum(np.searchsorted(before.vpn, after.vpn), len(before) - 1)
        both = (before.vpn[at] == after.vpn) & _is_mergeable(before)[at] & _is_mergeable(after)
        n_compared = int(both.sum())
        n_changed = int((both & (before.hash[at] != after.hash)).sum())
        sums.n_compared += n_compared
        sums.n_changed += n_changed
        sums.compared_minutes += n_compared * minutes
        return n_compared, n_changed

    def _collect(self, guest_id: int, pages: PageColumns, regions: Sequence[Region]) -> None:
        sums = self.sums[guest_id]
        n_pages = len(pages)
        self.eligibility.n_pages += n_pages
        sums.n_pages += n_pages
        if self.eligibility.n_pages > self._n_expected:
            raise self._altered()
        if not n_pages:
            return
        # The region of each page; -1 where there is none.
        starts = np.array([region.start_vpn for region in regions], np.int64)
        ends = np.array([region.end_vpn for region in regions] or [0], np.int64)
        region_of = np.searchsorted(starts, pages.vpn, side="right") - 1
        region_of[(region_of < 0) | (pages.vpn >= ends[region_of])] = -1

        is_compatible = np.array(
            [is_ksm_compatible(region.flags) for region in regions] + [False])
        is_advised = np.array(
            [bool(region.flags & RegionFlag.ADVISED) for region in regions] + [False])
        self._classify(pages, regions, region_of, is_compatible, is_advised)
        counted = is_compatible[region_of] & _is_mergeable(pages)
        self.diagnosis.add(pages, regions, region_of, counted)
        sums.n_advised += int((counted & is_advised[region_of]).sum())
        if self.is_advised_only:
            counted &= is_advised[region_of]
        sums.n_counted += int(counted.sum())
        sums.n_thp += int((counted & ((pages.flags & np.uint32(PageFlag.THP)) != 0)).sum())

        unit_of = np.array([self._unit(guest_id, region) for region in regions] or [0])
        at = np.flatnonzero(counted)
        if not len(at):
            return
        unit = unit_of[region_of[at]]
        order = np.argsort(unit, kind="stable")
        at, unit = at[order], unit[order]
        hashes, frames = pages.hash[at], pages.frame_id[at]
        self._frame_hashes.settle(hashes, frames)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(unit)) + 1, [len(unit)]])
        runs = [_Run(int(unit[start]), int(end - start))
                for start, end in pairwise(edges)]
        self.store.add(len(self.runs), runs, hashes, frames)
        self.runs += runs

    def _unit(self, guest_id: int, region: Region) -> int:
        labels = {**region.labels, **self.trace.guests[guest_id].labels}
        return self.units.setdefault(_Unit(guest_id, tuple(sorted(labels.items()))),
                                     len(self.units))

    def _classify(self, pages: PageColumns, regions: Sequence[Region],
                  region_of: npt.NDArray[np.intp], is_compatible: npt.NDArray[np.bool_],
                  is_advised: npt.NDArray[np.bool_]) -> None:
        found = self.eligibility
        per_region = np.bincount(region_of + 1, minlength=len(regions) + 1)
        _add_to(found.incompatible, "no_region", int(per_region[0]))
        for region, n in zip(regions, per_region[1:], strict=True):
            if not is_ksm_compatible(region.flags):
                _add_to(found.incompatible, _reason(region.flags), int(n))
        rest = is_compatible[region_of]
        for flag in _NO_HASH_REASONS:
            chosen = rest & ((pages.flags & np.uint32(flag)) != 0)
            _add_to(found.no_hash, str(flag.name).lower(), int(chosen.sum()))
            rest = rest & ~chosen
        zero_page = rest & ((pages.flags & np.uint32(PageFlag.ZERO_PAGE)) != 0)
        found.n_zero_page += int(zero_page.sum())
        rest = rest & ~zero_page
        anonymous = rest & ((pages.flags & np.uint32(PageFlag.ANON)) != 0)
        found.n_not_anonymous += int((rest & ~anonymous).sum())
        n_advised = int((anonymous & is_advised[region_of]).sum())
        found.n_advised += n_advised
        found.n_not_advised += int(anonymous.sum()) - n_advised


def _is_mergeable(pages: PageColumns) -> npt.NDArray[np.bool_]:
    """Anonymous pages with a hash, not on the kernel's zero page."""
    wanted = np.uint32(PageFlag.ANON)
    flags = pages.flags & np.uint32(PageFlag.ANON | PageFlag.ZERO_PAGE)
    mergeable: npt.NDArray[np.bool_] = pages.has_hash & (flags == wanted)
    return mergeable


class _Boundaries:
    """Counts along several labels, added up chunk by chunk."""

    def __init__(self, survey: _Survey, keys: Sequence[str]) -> None:
        self.zero_hash = survey.trace.hash_info.zero_hash
        self.keys = keys
        units = list(survey.units)
        unit_of_run = np.array([run.unit for run in survey.runs], np.int64)
        guest_of_unit = np.array([unit.guest_id for unit in units], np.int32)
        self.values: list[list[str | None]] = []
        self._order: list[npt.NDArray[np.intp]] = []
        self._label: list[npt.NDArray[np.int32]] = []
        self._guest: list[npt.NDArray[np.int32]] = []
        self.sums: list[SegmentCounts | None] = [None] * len(keys)
        for key in keys:
            if key == "guest":
                found: list[str | None] = [survey.trace.guests[unit.guest_id].name
                                           for unit in units]
                codes = guest_of_unit
                names: list[str | None] = [guest.name for guest in survey.trace.guests]
            else:
                found = [dict(unit.labels).get(key) for unit in units]
                names = [*sorted({value for value in found if value is not None})]
                names += [None] if None in found else []
                code_of = {value: code for code, value in enumerate(names)}
                codes = np.array([code_of[value] for value in found], np.int32)
            label, guest = codes[unit_of_run], guest_of_unit[unit_of_run]
            order = np.lexsort((guest, label))
            self.values.append(names)
            self._order.append(order)
            self._label.append(label[order])
            self._guest.append(guest[order])

    def add(self, chunk: _Chunk) -> None:
        """Count a chunk along every label."""
        for k, order in enumerate(self._order):
            counted = count_segments(
                chunk.hashes, chunk.frames, chunk.starts[order], self._label[k], self._guest[k],
                self.zero_hash, segment_ends=chunk.ends[order])
            before = self.sums[k]
            if before is not None:
                counted.counts[:] += before.counts
            self.sums[k] = counted

    def add_zero(self, zero_of_run: Sequence[int]) -> None:
        """Count zero pages with a frame of their own, so many per run."""
        empty = _Chunk(np.empty(0, np.uint64), np.empty(0, np.int32),
                       np.zeros(len(zero_of_run), np.int64), np.zeros(len(zero_of_run), np.int64))
        self.add(empty)  # so that every pair has its row
        for k, order in enumerate(self._order):
            counted = self.sums[k]
            assert counted is not None
            label, guest = self._label[k], self._guest[k]
            is_first = np.ones(len(label), bool)
            is_first[1:] = (np.diff(label) != 0) | (np.diff(guest) != 0)
            row = np.cumsum(is_first) - 1
            zero = np.array(zero_of_run, np.int64)[order]
            for column in (Column.PAGES, Column.ZERO):
                np.add.at(counted.counts[:, column], row, zero)

    def boundary(self, k: int) -> Boundary:
        """The boundary along label number k."""
        counted = self.sums[k]
        assert counted is not None
        codes, first = np.unique(counted.label, return_index=True)
        per_value = (np.add.reduceat(counted.counts, first, axis=0) if len(codes)
                     else counted.counts)
        n_guests = np.diff(np.append(first, len(counted.label)))
        values = []
        for code, guests, row in zip(codes, n_guests, per_value, strict=True):
            n_zero = int(row[Column.ZERO])
            values.append(BoundaryValue(
                value=self.values[k][code],
                n_guests=int(guests),
                n_counted=int(row[Column.PAGES]),
                n_frames=int(row[Column.PAGES] - row[Column.ALREADY_SHARED]),
                n_zero=n_zero,
                n_duplicates_kept=int(row[Column.SAME_LABEL] + row[Column.SAME_GUEST]),
                n_zero_duplicates_kept=max(n_zero - 1, 0)))
        return Boundary(self.keys[k], counted.total(), tuple(values))

    def fill(self, sums: Sequence[PageSums]) -> None:
        """Write what the counts say of each guest; key number 0 is "guest"."""
        for k, key in enumerate(self.keys):
            counted = self.sums[k]
            assert counted is not None
            per_guest = np.zeros((len(sums), len(Column)), np.int64)
            np.add.at(per_guest, counted.guest, counted.counts)
            for guest, row in zip(sums, per_guest, strict=True):
                n = [int(value) for value in row]
                if k:
                    guest.n_twins_in_label[key] = n[Column.TWINS_IN_LABEL]
                    continue
                guest.n_already_shared = n[Column.ALREADY_SHARED]
                guest.n_frames = n[Column.PAGES] - n[Column.ALREADY_SHARED]
                guest.n_zero = n[Column.ZERO]
                guest.n_twins = n[Column.TWINS]
                guest.n_twins_in_guest = n[Column.TWINS_IN_GUEST]
                guest.n_unique = guest.n_frames - guest.n_zero - guest.n_twins


def _total(sums: Sequence[PageSums], keys: Sequence[str]) -> PageSums:
    total = PageSums(n_twins_in_label={
        key: sum(guest.n_twins_in_label[key] for guest in sums) for key in keys})
    for name in ("n_pages", "n_counted", "n_advised", "n_thp", "n_already_shared", "n_frames",
                 "n_zero", "n_unique", "n_twins", "n_twins_in_guest", "n_compared", "n_changed",
                 "compared_minutes"):
        setattr(total, name, sum(getattr(guest, name) for guest in sums))
    return total


def label_keys(trace: Trace) -> tuple[str, ...]:
    """Label keys of the trace's guests and regions, sorted; "guest" is not one of them."""
    keys = {key for guest in trace.guests for key in guest.labels}
    keys.update(key for region in trace.regions for key in region.labels)
    return tuple(sorted(keys - {"guest"}))


def trace_info(trace: Trace, *, snapshot: int | None = None,
               labels: Sequence[str] | None = None, advised_only: bool = False,
               memory_bytes: int = 1 << 30,
               progress: Callable[[str, float], None] | None = None) -> TraceInfo:
    """Count a snapshot (default: the last) by guest and along labels (default: every key).

    `memory_bytes` bounds what page hashes take at a time; beyond it they are kept in temporary
    files (where TMPDIR says, 16 bytes a page). On top comes the largest mm, and 9 bytes a frame
    that is mapped more than once. `progress` is called with what is done and its share.

    Raises UsageError for a snapshot or label that is not there, DataError for a trace without
    snapshots, and what reading a trace raises.
    """
    if not trace.snapshots:
        raise DataError("the trace holds no snapshot", where=str(trace.path),
                        instead="capture it again")
    snapshot_id = len(trace.snapshots) - 1 if snapshot is None else snapshot
    if not 0 <= snapshot_id < len(trace.snapshots):
        raise UsageError(f"there is no snapshot {snapshot_id}", where=str(trace.path),
                         instead=f"choose 0 to {len(trace.snapshots) - 1}")
    known = label_keys(trace)
    for key in labels or ():
        if key not in known:
            raise UsageError(f"no guest or region has the label {key!r}", where=str(trace.path),
                             instead=f"choose from {', '.join(known) or 'none'}")
    keys = tuple(known if labels is None else dict.fromkeys(labels))
    info = trace.snapshots[snapshot_id]
    is_out_of_core = info.n_pages * _BYTES_PER_PAGE > memory_bytes
    with ExitStack() as stack:
        store: _InMemory | _OutOfCore
        if is_out_of_core:
            store = _OutOfCore(stack, info.n_pages, memory_bytes, trace.hash_info.zero_hash)
        else:
            store = _InMemory(info.n_pages)
        survey = _Survey(trace, snapshot_id, advised_only, store)
        survey.run(progress)
        boundaries = _Boundaries(survey, ("guest", *keys))
        for chunk in store.chunks(survey.runs):
            boundaries.add(chunk)
        if isinstance(store, _OutOfCore):
            boundaries.add_zero(store.zero_of_run)
    boundaries.fill(survey.sums)
    found = tuple(boundaries.boundary(k) for k in range(len(keys) + 1))
    return TraceInfo(
        path=str(trace.path), digest=trace.digest, status=trace.status,
        hash_algorithm=trace.hash_info.algorithm, hash_bits=trace.hash_info.bits,
        key_id=trace.hash_info.key_id, snapshot_id=snapshot_id, start_ns=info.start_ns,
        end_ns=info.end_ns, is_partial=info.is_partial, n_snapshots=len(trace.snapshots),
        span_ns=trace.span_ns, is_advised_only=advised_only, is_out_of_core=is_out_of_core,
        eligibility=survey.eligibility, total=_total(survey.sums, keys),
        guests=tuple((guest.name, guest.kind, guest.labels, sums)
                     for guest, sums in zip(trace.guests, survey.sums, strict=True)),
        counts=found[0].counts, boundaries=found, has_page_ids=has_page_ids(trace),
        diagnosis=survey.diagnosis.finish(
            (guest.kind, sums.n_frames, sums.n_zero, sums.n_twins)
            for guest, sums in zip(trace.guests, survey.sums, strict=True)))
