"""A capture in an agent's stream (planner/importers/agent_stream.py) becomes a trace.

A stream that was cut is read up to its last whole snapshot; one that was altered is refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from planner.errors import DataError, UsageError
from planner.importers.agent_stream import (
    Frame,
    clean,
    counts_of,
    damaged,
    frames_of,
    head_document,
    int_of,
    json_of,
    text_of,
    unpacked,
)
from planner.importers.common import ImportReport, LabelSource, import_provenance, open_regular
from planner.sitekey import SiteKey
from planner.trace import HashInfo, PageColumns, RegionInput, TraceWriter, empty_pages

__all__ = ["ALGORITHM", "import_agent", "key_id_of"]

ALGORITHM = "blake2b-64"
_MAX_CHUNK_PAGES = 4096
_PAGE_HEAD = struct.Struct("<IQ")
_GUEST_KINDS = ("vm", "container", "process")
_MAX_VPN = 1 << 52


def key_id_of(key: bytes) -> str:
    """Eight hex digits that name a key of the algorithm blake2b-64 (docs/page-hash.md)."""
    digest = hashlib.blake2b(b"pagehash-v1-kyid", digest_size=8, key=key).digest()
    return f"{int.from_bytes(digest, 'little') & 0xFFFFFFFF:08x}"


@dataclass(frozen=True, slots=True)
class _Head:
    """The first frame of a capture."""

    hash_info: HashInfo
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a first pass found: where the last whole snapshot ends, and how the stream does."""

    head: _Head
    n_snapshots: int
    end: int
    is_complete: bool


def _capture_head(frame: Frame | None, path: Path) -> _Head:
    document = head_document(frame, path, "capture",
                              "join guest classes to a trace with planner trace join")
    assert frame is not None
    where = frame.where
    if document.get("algorithm") != ALGORITHM or int_of(document, "bits", where) != 64:
        raise DataError("its page hashes are of an unknown algorithm", where=str(path),
                        instead="use the agent and the planner of one version")
    key_id, zero = text_of(document, "key_id", where), text_of(document, "zero_hash", where)
    provenance = document.get("provenance")
    if not isinstance(provenance, dict):
        damaged(where, "provenance is no table")
    try:
        if len(key_id) != 8 or len(zero) != 16:
            raise ValueError
        int(key_id, 16)
        info = HashInfo(ALGORITHM, 64, key_id, int(zero, 16))
    except ValueError:
        damaged(where, "the key id or the zero hash is not in hex")
    return _Head(info, {clean(str(name)): value for name, value in provenance.items()})


def _survey(path: Path, descriptor: int) -> _Survey:
    frames = frames_of(path, descriptor)
    head = _capture_head(next(frames, None), path)
    n_snapshots, end, is_complete = 0, 0, False
    for frame in frames:
        if frame.kind == b"SNEN":
            n_snapshots += 1
            end = frame.end
        elif frame.kind == b"DONE":
            is_complete = frame.document().get("status") == "complete"
    return _Survey(head, n_snapshots, end, is_complete)


def import_agent(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
                 force: bool, progress: Callable[[str, float], None] | None) -> ImportReport:
    """Write the capture in one agent stream as a trace; the report says what was left out.

    The stream is read twice: checked as a whole, then copied up to its last whole snapshot. With
    a `key`, the stream must have been made with it. Raises DataError with file and byte for what
    is no stream, altered, or without a whole snapshot; UsageError for several files or another
    key.
    """
    if len(files) != 1:
        raise UsageError(f"{len(files)} streams", where="planner trace import",
                         instead="import one stream at a time: a trace is one host's")
    path = Path(files[0])
    notes: list[str] = []
    with open_regular(path) as descriptor:
        survey = _survey(path, descriptor)
        info = survey.head.hash_info
        if key is not None and key_id_of(key.key) != info.key_id:
            raise UsageError(f"the stream was made with the key {info.key_id}, this one is "
                             f"{key_id_of(key.key)}", where=str(path),
                             instead="name the key of that host, or leave --key out")
        n_bytes = os.fstat(descriptor).st_size
        if not survey.n_snapshots:
            raise DataError("the stream was cut before its first snapshot was finished",
                            where=f"{path}:byte {n_bytes}",
                            instead="go on with it: agent.pyz --resume, or capture again")
        if not survey.is_complete:
            notes.append(f"the stream ends early; {survey.n_snapshots} whole snapshot(s), up to "
                         f"byte {survey.end} of {n_bytes}, were imported")
        provenance = {**survey.head.provenance, **import_provenance(
            "agent", files, agent=str(survey.head.provenance.get("software", "unknown")))}
        replay = _Replay(path, labels, notes)
        with TraceWriter(out, hash_info=info, provenance=provenance, force=force) as writer:
            frames = frames_of(path, descriptor)
            next(frames)
            try:
                for frame in frames:
                    if frame.end > survey.end:
                        break
                    replay.take(frame, writer)
                    if progress is not None and frame.kind == b"MMEN":
                        progress("importing", frame.end / survey.end)
                written = writer.finish("complete" if survey.is_complete else "partial")
            except (ValueError, OverflowError) as error:
                # The writer's own checks of ids, order and ranges.
                damaged(str(path), str(error))
    return ImportReport(written, len(replay.guests), survey.n_snapshots, replay.n_pages,
                        dict(replay.skipped), [*notes, *labels.notes()])


@dataclass(slots=True)
class _Replay:
    """Writes frames to a trace in order, checking each."""

    path: Path
    labels: LabelSource
    notes: list[str]
    guests: dict[int, int] = field(default_factory=dict)
    mms: dict[int, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    n_pages: int = 0
    _start_ns: int = 0
    _last_ns: int = 0
    _counters: dict[str, int] = field(default_factory=dict)
    _is_open: bool = False
    _mm: int = -1
    _regions: list[RegionInput] = field(default_factory=list)
    _parts: list[PageColumns] = field(default_factory=list)
    _n_mm_pages: int = 0
    _n_snapshot_pages: int = 0

    def take(self, frame: Frame, writer: TraceWriter) -> None:
        """One frame; raises DataError, ValueError from the writer."""
        step = {b"GUST": self._guest, b"SNAP": self._snapshot, b"MMBG": self._begin_mm,
                b"REGN": self._region, b"PAGE": self._page, b"MMEN": self._end_mm,
                b"SNEN": self._end_snapshot}.get(frame.kind)
        if step is None:
            damaged(frame.where, f"a frame of kind {frame.kind!r} stands here")
        if (frame.kind != b"SNAP") != self._is_open:
            damaged(frame.where, "a snapshot begins or ends twice")
        if (frame.kind in (b"REGN", b"PAGE", b"MMEN")) != (self._mm >= 0):
            damaged(frame.where, "an address space begins or ends twice")
        step(frame, writer)

    def _guest(self, frame: Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        number = int_of(document, "guest", where)
        kind = text_of(document, "kind", where)
        if number in self.guests or kind not in _GUEST_KINDS:
            damaged(where, "a guest stands twice, or is of no known kind")
        memory = (None if document.get("memory_bytes") is None
                  else int_of(document, "memory_bytes", where))
        name = text_of(document, "name", where)
        self.guests[number] = writer.add_guest(name, kind, self.labels.labels_of(name), memory)

    def _snapshot(self, frame: Frame, writer: TraceWriter) -> None:
        document = frame.document()
        self._counters = counts_of(document, "counters", frame.where)
        start_ns = int_of(document, "start_ns", frame.where)
        if start_ns < self._last_ns:
            self.notes.append("the host's clock was set back between two snapshots; the later "
                              "one is put at the end of the one before")
        self._start_ns = max(start_ns, self._last_ns)
        self._is_open, self._n_snapshot_pages = True, 0
        writer.begin_snapshot(self._start_ns)

    def _begin_mm(self, frame: Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        number, guest = int_of(document, "mm", where), int_of(document, "guest", where)
        if guest not in self.guests:
            damaged(where, f"guest {guest} is not described before")
        if number not in self.mms:
            self.mms[number] = writer.add_mm(
                self.guests[guest], int_of(document, "pid", where, most=(1 << 31) - 1),
                text_of(document, "comm", where))
        self._mm, self._n_mm_pages = self.mms[number], 0
        self._regions, self._parts = [], []

    def _region(self, frame: Frame, writer: TraceWriter) -> None:
        rows = json_of(frame)
        if not isinstance(rows, list):
            damaged(frame.where, "not a list of regions")
        for row in rows:
            if not isinstance(row, list) or len(row) != 5:
                damaged(frame.where, "a region has not five values")
            cells = dict(zip(("start", "end", "flags", "name", "content"), row, strict=True))
            self._regions.append(RegionInput(
                int_of(cells, "start", frame.where, most=_MAX_VPN),
                int_of(cells, "end", frame.where, most=_MAX_VPN),
                int_of(cells, "flags", frame.where, most=(1 << 32) - 1),
                text_of(cells, "name", frame.where),
                {"content": text_of(cells, "content", frame.where)}))

    def _page(self, frame: Frame, writer: TraceWriter) -> None:
        pages = _pages_of(frame)
        self._parts.append(pages)
        self._n_mm_pages += len(pages)

    def _end_mm(self, frame: Frame, writer: TraceWriter) -> None:
        document = frame.document()
        if int_of(document, "n_pages", frame.where) != self._n_mm_pages:
            damaged(frame.where, "pages are missing")
        try:
            writer.write_mm(self._mm, _joined(self._parts), self._regions)
        except ValueError as error:
            damaged(frame.where, str(error))
        self._mm, self._parts = -1, []
        self._n_snapshot_pages += self._n_mm_pages

    def _end_snapshot(self, frame: Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        if int_of(document, "n_pages", where) != self._n_snapshot_pages:
            damaged(where, "pages are missing")
        skipped = counts_of(document, "skipped", where)
        for reason, count in skipped.items():
            if reason != "late_ns":
                self.skipped[reason] = self.skipped.get(reason, 0) + count
        self._last_ns = max(int_of(document, "end_ns", where), self._start_ns)
        writer.end_snapshot(self._last_ns, skipped=skipped, counters=self._counters,
                            is_partial=document.get("is_partial") is True)
        self._is_open = False
        self.n_pages += self._n_snapshot_pages


def _pages_of(frame: Frame) -> PageColumns:
    """Pages of a PAGE frame: count u32, first vpn u64, hashes u64[n], then packed u16[n] steps,
    u32[n] flags, i32[n] frame ids, i8[n] nodes."""
    if len(frame.payload) < _PAGE_HEAD.size:
        damaged(frame.where, "too short for pages")
    n_pages, first = _PAGE_HEAD.unpack_from(frame.payload)
    at = _PAGE_HEAD.size + 8 * n_pages
    if not 0 < n_pages <= _MAX_CHUNK_PAGES or len(frame.payload) < at or first >= _MAX_VPN:
        damaged(frame.where, "no such number of pages")
    hashes = np.frombuffer(frame.payload, "<u8", n_pages, _PAGE_HEAD.size)
    raw = unpacked(memoryview(frame.payload)[at:], 11 * n_pages, frame.where)
    steps = np.frombuffer(raw, "<u2", n_pages).astype(np.int64)
    if steps[0] or (n_pages > 1 and not steps[1:].all()):
        damaged(frame.where, "pages do not ascend")
    flags = np.frombuffer(raw, "<u4", n_pages, 2 * n_pages)
    frame_ids = np.frombuffer(raw, "<i4", n_pages, 6 * n_pages)
    nodes = np.frombuffer(raw, "i1", n_pages, 10 * n_pages)
    if frame_ids.min() < -1 or nodes.min() < -1:
        damaged(frame.where, "a frame id or a node is negative")
    return PageColumns(first + np.cumsum(steps), hashes.astype(np.uint64),
                       flags.astype(np.uint32), frame_ids.astype(np.int32),
                       nodes.astype(np.int8))


def _joined(parts: Sequence[PageColumns]) -> PageColumns:
    if not parts:
        return empty_pages()
    return PageColumns(*(np.concatenate([getattr(part, name) for part in parts])
                         for name in ("vpn", "hash", "flags", "frame_id", "numa_node")))
