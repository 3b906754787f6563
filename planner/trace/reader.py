"""Reading a page-hash trace: checks first, then pages mm by mm with deltas applied."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from planner.errors import (
    DataError,
    NotATraceError,
    TraceAlteredError,
    TraceTruncatedError,
)
from planner.tables import UNREADABLE, TableKind, open_table, read_table, unreadable
from planner.trace.schema import (
    ALGORITHMS,
    GUESTS,
    INDEX,
    KINDS,
    MMS,
    NO_HASH,
    PAGE_BYTES,
    PAGES,
    REGIONS,
    SNAPSHOTS,
    Guest,
    HashInfo,
    Mm,
    PageColumns,
    PageFlag,
    Region,
    SnapshotInfo,
    empty_pages,
    pages_file,
)
from planner.trace.writer import GUEST_KINDS, index_digest, sha256_of

__all__ = ["Trace", "open_trace"]

_RESTORE = "restore the trace from where it came"


@dataclass(frozen=True, slots=True)
class _PageRows:
    """Where the rows of each mm are in one page file: row groups and their mm_id bounds."""

    path: Path
    first_mm: tuple[int, ...]
    last_mm: tuple[int, ...]


class Trace:
    """An opened trace. Made by `open_trace`; all attributes are read-only.

    `path`, `digest` (hex), `status` ("complete" or "partial"), `hash_info`, `provenance`, and
    tuples `guests`, `mms`, `regions`, `snapshots`. Pages are read mm by mm, best in ascending
    mm_id; no file stays open.
    """

    def __init__(self, path: Path, document: dict[str, Any], guests: tuple[Guest, ...],
                 mms: tuple[Mm, ...], regions: tuple[Region, ...],
                 snapshots: tuple[SnapshotInfo, ...], page_rows: tuple[_PageRows, ...]) -> None:
        self.path = path
        self.digest: str = document["digest"]
        self.status: str = document["status"]
        self.provenance: dict[str, Any] = document["provenance"]
        fields = document["hash"]
        self.hash_info = HashInfo(fields["algorithm"], fields["bits"], fields["key_id"],
                                  int(fields["zero_hash"], 16))
        self.guests = guests
        self.mms = mms
        self.regions = regions
        self.snapshots = snapshots
        self._page_rows = page_rows
        self._last_group: dict[int, tuple[int, pa.Table, npt.NDArray[np.int32]]] = {}
        self._mm_of = {mm.mm_id: mm for mm in mms}
        self._regions_of: dict[int, list[Region]] = {}
        for region in regions:
            self._regions_of.setdefault(region.mm_id, []).append(region)

    def __repr__(self) -> str:
        return (f"Trace({str(self.path)!r}, {len(self.guests)} guests, "
                f"{len(self.snapshots)} snapshots)")

    @property
    def span_ns(self) -> int:
        """Time from the end of the first snapshot to the end of the last, in ns."""
        return self.snapshots[-1].end_ns - self.snapshots[0].end_ns if self.snapshots else 0

    def mm_ids(self, snapshot_id: int) -> tuple[int, ...]:
        """The mms present in a snapshot, ascending."""
        self._check_snapshot(snapshot_id)
        return tuple(mm.mm_id for mm in self.mms
                     if mm.first_snapshot <= snapshot_id < mm.end_snapshot)

    def mm_regions(self, snapshot_id: int, mm_id: int) -> tuple[Region, ...]:
        """The VMAs of an mm in a snapshot, ascending and disjoint."""
        self._check_snapshot(snapshot_id)
        found = [region for region in self._regions_of.get(mm_id, ())
                 if region.first_snapshot <= snapshot_id < region.end_snapshot]
        return tuple(sorted(found, key=lambda region: region.start_vpn))

    def mm_pages(self, snapshot_id: int, mm_id: int) -> PageColumns:
        """The pages of an mm in a snapshot, deltas applied; empty when it is not there."""
        self._check_snapshot(snapshot_id)
        for at, pages in self.mm_history(mm_id):
            if at == snapshot_id:
                return pages
        return empty_pages()

    def mm_history(self, mm_id: int) -> Iterator[tuple[int, PageColumns]]:
        """Pairs (snapshot_id, pages) of an mm over its snapshots, each delta read once."""
        mm = self._mm_of[mm_id]
        pages = empty_pages()
        for snapshot_id in range(mm.first_snapshot, mm.end_snapshot):
            pages = apply_changes(pages, self.stored_rows(snapshot_id, mm_id))
            yield snapshot_id, pages

    def iter_mm_pages(self, snapshot_id: int) -> Iterator[tuple[int, PageColumns]]:
        """Pairs (mm_id, pages) of a snapshot, ascending; one mm in memory at a time."""
        for mm_id in self.mm_ids(snapshot_id):
            yield mm_id, self.mm_pages(snapshot_id, mm_id)

    def stored_rows(self, snapshot_id: int, mm_id: int) -> PageColumns:
        """What a snapshot's file stores of an mm: all pages in its first snapshot, then changes.

        Pages that are no more carry PageFlag.GONE.
        """
        self._check_snapshot(snapshot_id)
        rows = self._page_rows[snapshot_id]
        start = bisect.bisect_left(rows.last_mm, mm_id)
        end = bisect.bisect_right(rows.first_mm, mm_id)
        parts = []
        for group in range(start, end):
            table, ids = self._row_group(snapshot_id, group)
            first, last = np.searchsorted(ids, [mm_id, mm_id + 1])
            parts.append(table.slice(first, last - first))
        return _page_columns(rows.path, pa.concat_tables(parts)) if parts else empty_pages()

    def _row_group(self, snapshot_id: int, group: int) -> tuple[pa.Table, npt.NDArray[np.int32]]:
        """One row group and its mm_id column; the last one of each snapshot is kept."""
        kept = self._last_group.get(snapshot_id)
        if kept is None or kept[0] != group:
            path = self._page_rows[snapshot_id].path
            with open_table(path, PAGES) as handle:
                try:
                    table = handle.read_row_group(group, PAGES.schema.names)
                except UNREADABLE as error:
                    raise unreadable(path, error) from error
            kept = (group, table, table.column("mm_id").to_numpy())
            self._last_group[snapshot_id] = kept
        return kept[1], kept[2]

    def _check_snapshot(self, snapshot_id: int) -> None:
        if not 0 <= snapshot_id < len(self.snapshots):
            raise IndexError(f"snapshot {snapshot_id} of {len(self.snapshots)}")


def apply_changes(pages: PageColumns, changes: PageColumns) -> PageColumns:
    """The snapshot after `changes` (rows as stored, GONE included) on the snapshot before."""
    gone = (changes.flags & np.uint32(PageFlag.GONE)) != 0
    if not len(pages):
        return changes.take(~gone) if gone.any() else changes
    if not len(changes):
        return pages
    at = np.minimum(np.searchsorted(changes.vpn, pages.vpn), len(changes) - 1)
    kept = pages.take(changes.vpn[at] != pages.vpn)
    new = changes.take(~gone)
    vpn = np.concatenate([kept.vpn, new.vpn])
    order = np.argsort(vpn, kind="stable")
    return PageColumns(
        vpn, np.concatenate([kept.hash, new.hash]), np.concatenate([kept.flags, new.flags]),
        np.concatenate([kept.frame_id, new.frame_id]),
        np.concatenate([kept.numa_node, new.numa_node])).take(order)


def _filled(table: pa.Table, name: str, fill: int) -> npt.NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        column = column.fill_null(fill)
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _page_columns(path: Path, table: pa.Table) -> PageColumns:
    for name in ("mm_id", "vpn", "flags"):
        if table.column(name).null_count:
            raise TraceAlteredError(f"column {name} has nulls", where=str(path), instead=_RESTORE)
    columns = PageColumns(
        _filled(table, "vpn", 0), _filled(table, "hash", 0), _filled(table, "flags", 0),
        _filled(table, "frame_id", -1), _filled(table, "numa_node", -1))
    if len(columns) and np.any(np.diff(columns.vpn) <= 0):
        raise TraceAlteredError("vpn does not ascend within an mm", where=str(path),
                                instead=_RESTORE)
    hashless = (columns.flags & np.uint32(NO_HASH | PageFlag.GONE)) != 0
    if int(hashless.sum()) != table.column("hash").null_count:
        raise TraceAlteredError("hash is null for other pages than the flags say",
                                where=str(path), instead=_RESTORE)
    return columns


def open_trace(path: Path | str, *, verify: bool = True) -> Trace:
    """Open a trace folder and check that it is whole and unaltered.

    `verify=False` leaves out the SHA-256 of every file (sizes, versions and Parquet page
    checksums are checked all the same). Raises NotATraceError, TraceTooOldError,
    TraceTooNewError, TraceTruncatedError, TraceAlteredError or DataError.

    >>> import planner
    >>> trace = planner.open_trace("trace")
    >>> [guest.name for guest in trace.guests], len(trace.snapshots)
    (['a', 'b', 'c'], 2)
    >>> for mm_id, pages in trace.iter_mm_pages(0):
    ...     print(mm_id, len(pages), pages.hash[:2].tolist())
    0 3 [1, 2]
    1 3 [1, 3]
    2 3 [1, 2]
    """
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such trace", where=str(path),
                        instead="check the path; `planner capture` makes traces")
    if not path.is_dir() or not (path / "index.parquet").exists():
        partial = path.with_name(path.name + ".partial")
        raise NotATraceError(
            "a trace is a folder with an index.parquet", where=str(path),
            instead="name such a folder" + (
                f" ({partial.name} is an unfinished capture)" if partial.exists() else ""))
    index_path = path / "index.parquet"
    table, document = read_table(index_path, INDEX)
    rows = table.to_pylist()
    _check_index(index_path, document, rows)
    for row in rows:
        _check_file(path, row, verify)
    try:
        guests, mms, regions, snapshots = (
            _read_rows(path / f"{kind.kind.rsplit('.', 1)[1]}.parquet", kind)
            for kind in (GUESTS, MMS, REGIONS, SNAPSHOTS))
        parts = (
            tuple(Guest(**{**row, "labels": dict(row["labels"])}) for row in guests),
            tuple(Mm(**row) for row in mms),
            tuple(Region(**{**row, "labels": dict(row["labels"])}) for row in regions),
            tuple(SnapshotInfo(**{**row, "skipped": dict(row["skipped"]),
                                  "counters": dict(row["counters"])}) for row in snapshots))
    except (TypeError, ValueError) as error:
        raise unreadable(path, error) from error
    _check_references(path, *parts)
    page_rows = tuple(_page_rows(path / pages_file(s.snapshot_id), s) for s in parts[3])
    return Trace(path, document, *parts, page_rows)


def _read_rows(path: Path, kind: TableKind) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(path, kind)[0].to_pylist()
    return rows


def _check_index(path: Path, document: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    def altered(what: str) -> TraceAlteredError:
        return TraceAlteredError(what, where=str(path), instead=_RESTORE)

    if document.get("digest") != index_digest(document, rows):
        raise altered("the index does not match its own digest")
    hash_fields = document.get("hash")
    if not isinstance(hash_fields, dict) or document.get("page_bytes") != PAGE_BYTES \
            or not isinstance(document.get("provenance"), dict) \
            or document.get("status") not in ("complete", "partial"):
        raise altered("the index metadata lacks page_bytes, hash, provenance or status")
    if hash_fields.get("algorithm") not in ALGORITHMS:
        raise altered(f"unknown page hash algorithm {hash_fields.get('algorithm')!r}")
    named = {row["file"] for row in rows}
    missing = {"guests.parquet", "mms.parquet", "regions.parquet", "snapshots.parquet"} - named
    if missing:
        raise altered(f"the index does not list {', '.join(sorted(missing))}")
    for name in named:
        if "/" in name or "\\" in name or name.startswith("."):
            raise altered(f"the index names a file outside the folder: {name!r}")


def _check_file(path: Path, row: dict[str, Any], verify: bool) -> None:
    file = path / row["file"]
    if row["kind"] not in KINDS:
        raise TraceAlteredError(f"the index lists a file of unknown kind {row['kind']!r}",
                                where=str(file), instead=_RESTORE)
    try:
        size_bytes = file.stat().st_size
        if size_bytes < row["n_bytes"]:
            raise TraceTruncatedError(
                f"the file has {size_bytes} of {row['n_bytes']} bytes", where=str(file),
                instead="copy or capture it again")
        altered = size_bytes > row["n_bytes"] or (verify and sha256_of(file) != row["sha256"])
    except FileNotFoundError:
        raise TraceTruncatedError("the file is missing", where=str(file),
                                  instead=_RESTORE) from None
    except OSError as error:
        raise DataError(error.strerror or str(error), where=str(file),
                        instead="check its permissions") from error
    if altered:
        # A newer or older schema is the better explanation of a file that was swapped in.
        open_table(file, KINDS[row["kind"]]).close()
        raise TraceAlteredError("the file is not the one that was captured (its SHA-256 differs)",
                                where=str(file), instead=_RESTORE)


def _check_references(path: Path, guests: tuple[Guest, ...], mms: tuple[Mm, ...],
                      regions: tuple[Region, ...], snapshots: tuple[SnapshotInfo, ...]) -> None:
    def ids_run(ids: list[int]) -> bool:
        return ids == list(range(len(ids)))

    n_snapshots = len(snapshots)
    mm_ids = {mm.mm_id for mm in mms}
    sound = (
        ids_run([g.guest_id for g in guests]) and all(g.kind in GUEST_KINDS for g in guests)
        and [m.mm_id for m in mms] == sorted(mm_ids)
        and all(0 <= m.guest_id < len(guests)
                and 0 <= m.first_snapshot < m.end_snapshot <= n_snapshots for m in mms)
        and ids_run([r.region_id for r in regions])
        and ids_run([s.snapshot_id for s in snapshots])
        and all(s.start_ns <= s.end_ns for s in snapshots)
        and all(a.end_ns <= b.start_ns for a, b in pairwise(snapshots))
        and all(r.mm_id in mm_ids and r.start_vpn < r.end_vpn
                and 0 <= r.first_snapshot < r.end_snapshot <= n_snapshots for r in regions))
    if not sound:
        raise TraceAlteredError("ids or intervals of its tables do not fit together",
                                where=str(path), instead=_RESTORE)


def _page_rows(path: Path, info: SnapshotInfo) -> _PageRows:
    with open_table(path, PAGES) as handle:
        metadata: pq.FileMetaData = handle.metadata
        if metadata.num_rows != info.n_stored:
            raise TraceTruncatedError(
                f"the file has {metadata.num_rows} of {info.n_stored} rows", where=str(path),
                instead=_RESTORE)
        bounds = []
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(0).statistics
            if statistics is None or not statistics.has_min_max:
                raise TraceAlteredError("a row group has no mm_id statistics", where=str(path),
                                        instead=_RESTORE)
            bounds.append((int(statistics.min), int(statistics.max)))
    flat = [bound for pair in bounds for bound in pair]
    if flat != sorted(flat):
        raise TraceAlteredError("mm_id does not ascend", where=str(path), instead=_RESTORE)
    return _PageRows(path, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))
