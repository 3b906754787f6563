"""Writing a page-hash trace: snapshots in order, deltas against the one before.

Everything goes to `NAME.partial` and is renamed to `NAME` by `finish`. Files are 0600.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from planner.errors import UsageError
from planner.tables import METADATA_KEY, TableKind, open_private, write_table
from planner.trace.schema import (
    ADVISORY_FLAGS,
    ALGORITHMS,
    GUESTS,
    INDEX,
    MMS,
    NO_HASH,
    PAGES,
    REGIONS,
    SNAPSHOTS,
    Guest,
    HashInfo,
    Mm,
    PageColumns,
    PageFlag,
    Region,
    RegionInput,
    SnapshotInfo,
    empty_pages,
    pages_file,
)

__all__ = ["TraceWriter", "index_digest"]

GUEST_KINDS = ("vm", "container", "process")
#: Rows gathered before a row group is written: bounds memory, keeps footers small.
_ROW_GROUP_PAGES = 1 << 18
_COMPARED_FLAGS = np.uint32(~int(ADVISORY_FLAGS) & 0xFFFFFFFF)


def index_digest(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the index metadata (without its digest) and its rows: the trace's digest."""
    body = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps([body, list(rows)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class TraceWriter:
    """Writes one trace folder.

    Call `add_guest` and `add_mm` at any time, and per snapshot `begin_snapshot`, `write_mm` in
    ascending mm_id, `end_snapshot`; then `finish`. As a context manager, leaving with an
    exception removes what was written.

    Raises UsageError when `path` exists and `force` is false, ValueError when the calls or the
    columns break the format's rules.
    """

    def __init__(self, path: Path, *, hash_info: HashInfo, provenance: Mapping[str, Any],
                 force: bool = False) -> None:
        if hash_info.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown page hash algorithm {hash_info.algorithm!r}")
        self.path = Path(path)
        if self.path.exists() and not force:
            raise UsageError("it exists already", where=str(path),
                             instead="choose another name or pass --force to replace it")
        self._hash_info = hash_info
        self._provenance = dict(provenance)
        self._guests: list[Guest] = []
        self._mms: list[Mm] = []
        self._regions: list[Region] = []
        self._open_regions: dict[int, dict[tuple[Any, ...], int]] = {}
        self._snapshots: list[SnapshotInfo] = []
        self._previous: dict[int, PageColumns] = {}
        self._current: dict[int, PageColumns] | None = None
        self._start_ns = 0
        self._pending: list[pa.RecordBatch] = []
        self._n_pending = self._n_stored = 0
        self._pages: pq.ParquetWriter | None = None
        self._stream: Any = None
        self._folder = self.path.with_name(self.path.name + ".partial")
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(mode=0o700, parents=True)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()

    @property
    def n_snapshots(self) -> int:
        """Finished snapshots so far."""
        return len(self._snapshots)

    def add_guest(self, name: str, kind: str, labels: Mapping[str, str],
                  memory_bytes: int | None = None) -> int:
        """Register a guest; returns its id."""
        if kind not in GUEST_KINDS:
            raise ValueError(f"guest kind {kind!r} is none of {', '.join(GUEST_KINDS)}")
        guest = Guest(len(self._guests), name, kind, dict(labels), memory_bytes)
        self._guests.append(guest)
        return guest.guest_id

    def add_mm(self, guest_id: int, pid: int, comm: str) -> int:
        """Register an address space of a guest; returns its id."""
        if not 0 <= guest_id < len(self._guests):
            raise ValueError(f"no guest {guest_id}")
        mm_id = len(self._mms)
        self._mms.append(Mm(mm_id, guest_id, pid, comm, -1, -1))
        return mm_id

    def begin_snapshot(self, start_ns: int) -> None:
        """Start the next snapshot at Unix time `start_ns`.

        Snapshots never overlap: where the host's clock was set back meanwhile, the snapshot starts
        when the one before ended.
        """
        if self._current is not None:
            raise ValueError("the snapshot before has not been ended")
        self._current = {}
        self._start_ns = max([start_ns, *(info.end_ns for info in self._snapshots[-1:])])
        self._n_stored = 0
        schema = PAGES.schema.with_metadata(PAGES.metadata({}))
        self._stream = open_private(self._folder / pages_file(len(self._snapshots)), 0o600)
        self._pages = pq.ParquetWriter(self._stream, schema, **PAGES.parquet_options())

    def write_mm(self, mm_id: int, pages: PageColumns, regions: Sequence[RegionInput]) -> None:
        """Write one mm's pages and VMAs; mm_ids ascend within a snapshot."""
        if self._current is None:
            raise ValueError("begin_snapshot comes first")
        if not 0 <= mm_id < len(self._mms):
            raise ValueError(f"no mm {mm_id}")
        if self._current and mm_id <= next(reversed(self._current)):
            raise ValueError("mm_ids must ascend within a snapshot")
        pages = _checked(pages)
        snapshot_id = len(self._snapshots)
        self._current[mm_id] = pages
        mm = self._mms[mm_id]
        first = snapshot_id if mm.first_snapshot < 0 else mm.first_snapshot
        if mm.first_snapshot >= 0 and mm.end_snapshot != snapshot_id:
            raise ValueError(f"mm {mm_id} was absent from the snapshot before; add a new mm")
        self._mms[mm_id] = Mm(mm_id, mm.guest_id, mm.pid, mm.comm, first, snapshot_id + 1)
        self._write_regions(mm_id, regions, snapshot_id)
        self._store(mm_id, changes_between(self._previous.get(mm_id, empty_pages()), pages))

    def _write_regions(self, mm_id: int, regions: Sequence[RegionInput],
                       snapshot_id: int) -> None:
        last_end = 0
        still_open: dict[tuple[Any, ...], int] = {}
        before = self._open_regions.get(mm_id, {})
        for region in regions:
            if not last_end <= region.start_vpn < region.end_vpn:
                raise ValueError("regions must ascend, not overlap and not be empty")
            last_end = region.end_vpn
            key = (region.start_vpn, region.end_vpn, region.flags, region.name,
                   tuple(sorted(region.labels.items())))
            region_id = before.get(key)
            if region_id is None:
                region_id = len(self._regions)
                self._regions.append(Region(
                    region_id, mm_id, region.start_vpn, region.end_vpn, region.flags,
                    region.name, dict(region.labels), snapshot_id, snapshot_id + 1))
            else:
                old = self._regions[region_id]
                self._regions[region_id] = Region(
                    region_id, mm_id, old.start_vpn, old.end_vpn, old.flags, old.name,
                    old.labels, old.first_snapshot, snapshot_id + 1)
            still_open[key] = region_id
        self._open_regions[mm_id] = still_open

    def _store(self, mm_id: int, pages: PageColumns) -> None:
        n_pages = len(pages)
        if not n_pages:
            return
        no_hash = (pages.flags & np.uint32(NO_HASH | PageFlag.GONE)) != 0
        self._pending.append(pa.record_batch([
            pa.array(np.full(n_pages, mm_id, np.int32)),
            pa.array(pages.vpn),
            pa.array(pages.hash, mask=no_hash),
            pa.array(pages.flags),
            pa.array(pages.frame_id, mask=pages.frame_id < 0),
            pa.array(pages.numa_node, mask=pages.numa_node < 0),
        ], schema=PAGES.schema))
        self._n_pending += n_pages
        self._n_stored += n_pages
        if self._n_pending >= _ROW_GROUP_PAGES:
            self._flush()

    def _flush(self) -> None:
        if self._pending and self._pages is not None:
            table = pa.Table.from_batches(self._pending)
            self._pages.write_table(table.replace_schema_metadata(self._pages.schema.metadata),
                                    row_group_size=_ROW_GROUP_PAGES)
        self._pending.clear()
        self._n_pending = 0

    def end_snapshot(self, end_ns: int, *, skipped: Mapping[str, int],
                     counters: Mapping[str, int], is_partial: bool = False) -> None:
        """End the snapshot at Unix time `end_ns`."""
        if self._current is None:
            raise ValueError("begin_snapshot comes first")
        end_ns = max(end_ns, self._start_ns)
        self._flush()
        self._close_pages()
        self._snapshots.append(SnapshotInfo(
            len(self._snapshots), self._start_ns, end_ns,
            sum(len(pages) for pages in self._current.values()), self._n_stored, is_partial,
            dict(skipped), dict(counters)))
        self._previous = self._current
        self._current = None

    def _close_pages(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._stream.close()
        self._pages = self._stream = None

    def _drop_open_snapshot(self) -> None:
        """Undo what an unfinished snapshot left in the tables."""
        snapshot_id = len(self._snapshots)
        self._pending.clear()
        self._n_pending = 0
        self._close_pages()
        (self._folder / pages_file(snapshot_id)).unlink(missing_ok=True)
        self._mms = [Mm(mm.mm_id, mm.guest_id, mm.pid, mm.comm, mm.first_snapshot,
                        min(mm.end_snapshot, snapshot_id)) for mm in self._mms]
        self._regions = [
            Region(r.region_id, r.mm_id, r.start_vpn, r.end_vpn, r.flags, r.name, r.labels,
                   r.first_snapshot, min(r.end_snapshot, snapshot_id)) for r in self._regions]
        self._current = None

    def finish(self, status: str = "complete") -> Path:
        """Write the tables, rename the folder to its final name and return that name.

        `status` is "complete" or "partial". An unfinished snapshot is dropped.
        """
        if status not in ("complete", "partial"):
            raise ValueError(f"status {status!r} is neither complete nor partial")
        if self._current is not None:
            self._drop_open_snapshot()
        rows = [self._write("guests.parquet", GUESTS, [
            {"guest_id": g.guest_id, "name": g.name, "kind": g.kind,
             "labels": _items(g.labels), "memory_bytes": g.memory_bytes} for g in self._guests])]
        seen = [mm for mm in self._mms if mm.end_snapshot > mm.first_snapshot >= 0]
        rows.append(self._write("mms.parquet", MMS, [
            {name: getattr(mm, name) for name in MMS.schema.names} for mm in seen]))
        regions = [r for r in self._regions if r.end_snapshot > r.first_snapshot]
        rows.append(self._write("regions.parquet", REGIONS, [
            {"region_id": new_id, "mm_id": r.mm_id, "start_vpn": r.start_vpn,
             "end_vpn": r.end_vpn, "flags": r.flags, "name": r.name, "labels": _items(r.labels),
             "first_snapshot": r.first_snapshot, "end_snapshot": r.end_snapshot}
            for new_id, r in enumerate(regions)]))
        rows.append(self._write("snapshots.parquet", SNAPSHOTS, [
            {**{name: getattr(s, name) for name in SNAPSHOTS.schema.names},
             "skipped": _items(s.skipped), "counters": _items(s.counters)}
            for s in self._snapshots]))
        for info in self._snapshots:
            rows.append(self._row(pages_file(info.snapshot_id), PAGES, info.n_stored))
        self._write_index(rows, status)
        if self.path.exists():
            _remove(self.path)
        self._folder.rename(self.path)
        return self.path

    def _write(self, name: str, kind: TableKind, rows: list[dict[str, Any]]) -> dict[str, Any]:
        table = pa.Table.from_pylist(rows, schema=kind.schema)
        write_table(self._folder / name, kind, table, {}, mode=0o600)
        return self._row(name, kind, len(rows))

    def _row(self, name: str, kind: TableKind, n_rows: int) -> dict[str, Any]:
        path = self._folder / name
        return {"file": name, "kind": kind.kind, "n_rows": n_rows,
                "n_bytes": path.stat().st_size, "sha256": sha256_of(path)}

    def _write_index(self, rows: list[dict[str, Any]], status: str) -> None:
        info = self._hash_info
        extra: dict[str, Any] = {
            "page_bytes": 4096,
            "hash": {"algorithm": info.algorithm, "bits": info.bits, "key_id": info.key_id,
                     "zero_hash": f"{info.zero_hash:016x}"},
            "provenance": self._provenance,
            "status": status,
        }
        document = json.loads(INDEX.metadata(extra)[METADATA_KEY])
        extra["digest"] = index_digest(document, rows)
        write_table(self._folder / "index.parquet", INDEX,
                    pa.Table.from_pylist(rows, schema=INDEX.schema), extra, mode=0o600)

    def abort(self) -> None:
        """Remove everything written so far."""
        self._close_pages()
        shutil.rmtree(self._folder, ignore_errors=True)


def _items(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(mapping.items())


def _remove(path: Path) -> None:
    """Remove what `--force` replaces: a trace folder, and nothing else by accident."""
    if path.is_dir() and not path.is_symlink() and (path / "index.parquet").exists():
        shutil.rmtree(path)
        return
    raise UsageError("it exists and is not a trace folder, so --force does not replace it",
                     where=str(path), instead="choose another name")


def _checked(pages: PageColumns) -> PageColumns:
    """The pages with the schema's dtypes, after checking the format's rules."""
    lengths = {len(column) for column in (pages.vpn, pages.hash, pages.flags, pages.frame_id,
                                          pages.numa_node)}
    if len(lengths) != 1:
        raise ValueError("page columns differ in length")
    if len(pages) and (pages.vpn[0] < 0 or np.any(np.diff(pages.vpn) <= 0)):
        raise ValueError("vpn must ascend strictly and not be negative")
    if np.any(pages.flags & np.uint32(PageFlag.GONE)):
        raise ValueError("PageFlag.GONE is set by the writer only")
    columns = PageColumns(
        pages.vpn.astype(np.int64, copy=False), pages.hash.astype(np.uint64, copy=True),
        pages.flags.astype(np.uint32, copy=False), pages.frame_id.astype(np.int32, copy=False),
        pages.numa_node.astype(np.int8, copy=False))
    columns.hash[~columns.has_hash] = 0
    return columns


def changes_between(before: PageColumns, after: PageColumns) -> PageColumns:
    """What a delta stores: pages added or changed, and GONE records for pages no more there.

    A page counts as changed when its hash, its flags (advisory ones apart), its frame id or its
    NUMA node differ.
    """
    if not len(before):
        return after
    at = np.searchsorted(before.vpn, after.vpn)
    at_clipped = np.minimum(at, len(before) - 1)
    known = before.vpn[at_clipped] == after.vpn
    same = known & (before.hash[at_clipped] == after.hash) \
        & ((before.flags[at_clipped] & _COMPARED_FLAGS) == (after.flags & _COMPARED_FLAGS)) \
        & (before.frame_id[at_clipped] == after.frame_id) \
        & (before.numa_node[at_clipped] == after.numa_node)
    changed = after.take(~same)
    still_there = np.zeros(len(before), bool)
    still_there[at_clipped[known]] = True
    gone_vpn = before.vpn[~still_there]
    n_gone = len(gone_vpn)
    if not n_gone:
        return changed
    vpn = np.concatenate([changed.vpn, gone_vpn])
    order = np.argsort(vpn, kind="stable")
    return PageColumns(
        vpn, np.concatenate([changed.hash, np.zeros(n_gone, np.uint64)]),
        np.concatenate([changed.flags, np.full(n_gone, PageFlag.GONE, np.uint32)]),
        np.concatenate([changed.frame_id, np.full(n_gone, -1, np.int32)]),
        np.concatenate([changed.numa_node, np.full(n_gone, -1, np.int8)])).take(order)
