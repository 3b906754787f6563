"""Streams of the capture agent: captures into a trace, and guest classes joined to one.

A stream is `PLNAGNT1` and then frames: kind (4 bytes), payload bytes u32, number u64 (from 0), the
payload, and 8 bytes of BLAKE2b over all of it; little-endian. docs/importing.md lists the kinds.
A stream that was cut is read up to its last whole snapshot; one that was altered is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from planner.errors import DataError, UsageError
from planner.importers.common import ImportReport, LabelSource, import_provenance, open_regular
from planner.sitekey import SiteKey
from planner.trace import (
    PAGE_BYTES,
    Guest,
    HashInfo,
    PageColumns,
    Region,
    RegionFlag,
    RegionInput,
    TraceWriter,
    empty_pages,
    open_trace,
)

__all__ = ["ALGORITHM", "GuestClasses", "import_agent", "join_classes", "key_id_of",
           "read_classes"]

ALGORITHM = "blake2b-64"
_MAGIC = b"PLNAGNT1"
_FORMAT = 1
_HEADER = struct.Struct("<4sIQ")
_SUM_BYTES = 8
_MAX_PAYLOAD_BYTES = 4 << 20
_MAX_CHUNK_PAGES = 4096
_MAX_CLASS_FRAMES = 1 << 16
#: Beyond this (16 TiB) a guest's frames are not believed.
_MAX_FRAMES = 1 << 32
_PAGE_HEAD = struct.Struct("<IQ")
_CLASS_HEAD = struct.Struct("<QI")
_GUEST_KINDS = ("vm", "container", "process")
_MAX_VPN = 1 << 52
_FOUR_GIB_FRAMES = 1 << 20
_AGAIN = "copy the stream again, or capture again"


def key_id_of(key: bytes) -> str:
    """Eight hex digits that name a key of the algorithm blake2b-64 (docs/page-hash.md)."""
    digest = hashlib.blake2b(b"pagehash-v1-kyid", digest_size=8, key=key).digest()
    return f"{int.from_bytes(digest, 'little') & 0xFFFFFFFF:08x}"


@dataclass(frozen=True, slots=True)
class _Frame:
    """A whole frame; `where` is its file and byte offset, for errors; `end` is behind it."""

    kind: bytes
    payload: bytes
    where: str
    end: int

    def document(self) -> dict[str, Any]:
        """The JSON object that it holds; raises DataError."""
        document = _json(self)
        if not isinstance(document, dict):
            _damaged(self.where, "not a JSON object")
        return document


def _damaged(where: str, what: str) -> NoReturn:
    raise DataError(f"the stream is damaged: {what}", where=where, instead=_AGAIN)


def _json(frame: _Frame) -> Any:
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON")

    try:
        return json.loads(frame.payload.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        _damaged(frame.where, "not JSON")


def _frames(path: Path, descriptor: int) -> Iterator[_Frame]:
    """The whole frames from the start; ends at the end of the file, also amid a frame.

    Raises DataError for what is no stream, and for a frame whose number or checksum is wrong.
    """
    with io.FileIO(descriptor, "rb", closefd=False) as raw, \
            io.BufferedReader(raw, 1 << 20) as stream:
        stream.seek(0)
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise DataError("not a stream of the capture agent", where=str(path),
                            instead="name a file that agent.pyz wrote")
        at, number = len(_MAGIC), 0
        while True:
            where = f"{path}:byte {at}"
            head = stream.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return
            kind, n_bytes, found = _HEADER.unpack(head)
            if n_bytes > _MAX_PAYLOAD_BYTES or found != number:
                _damaged(where, "no frame begins here")
            body = stream.read(n_bytes + _SUM_BYTES)
            if len(body) < n_bytes + _SUM_BYTES:
                return
            total = hashlib.blake2b(head, digest_size=_SUM_BYTES)
            total.update(memoryview(body)[:n_bytes])
            if total.digest() != body[n_bytes:]:
                _damaged(where, "a checksum does not fit")
            at += _HEADER.size + len(body)
            number += 1
            yield _Frame(kind, body[:n_bytes], where, at)


def _int(document: Mapping[str, Any], name: str, where: str, *, least: int = 0,
         most: int = (1 << 63) - 1) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        _damaged(where, f"{name} is no number from {least} to {most}")
    return value


def _clean(text: str) -> str:
    """At most 200 printable characters (no lone surrogates, no control characters)."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def _text(document: Mapping[str, Any], name: str, where: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        _damaged(where, f"{name} is no text")
    return _clean(value)


def _counts(document: Mapping[str, Any], name: str, where: str) -> dict[str, int]:
    value = document.get(name)
    if not isinstance(value, dict) or len(value) > 1000:
        _damaged(where, f"{name} is no table of numbers")
    return {_clean(key): _int(value, key, where, least=-(1 << 63)) for key in value}


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


def _head_document(frame: _Frame | None, path: Path, kind: str, instead: str) -> dict[str, Any]:
    if frame is None:
        raise DataError("the stream was cut before its first frame", where=str(path),
                        instead=_AGAIN)
    if frame.kind != b"HEAD":
        _damaged(frame.where, "it does not begin with its description")
    document = frame.document()
    form = _int(document, "format", frame.where)
    if form != _FORMAT:
        raise DataError(f"a stream of format {form}; this version reads {_FORMAT}",
                        where=str(path), instead="use the agent and the planner of one version")
    found = _text(document, "kind", frame.where)
    if found != kind:
        raise DataError(f"a stream of kind {found}, not {kind}", where=str(path), instead=instead)
    return document


def _capture_head(frame: _Frame | None, path: Path) -> _Head:
    document = _head_document(frame, path, "capture",
                              "join guest classes to a trace with planner trace join")
    assert frame is not None
    where = frame.where
    if document.get("algorithm") != ALGORITHM or _int(document, "bits", where) != 64:
        raise DataError("its page hashes are of an unknown algorithm", where=str(path),
                        instead="use the agent and the planner of one version")
    key_id, zero = _text(document, "key_id", where), _text(document, "zero_hash", where)
    provenance = document.get("provenance")
    if not isinstance(provenance, dict):
        _damaged(where, "provenance is no table")
    try:
        if len(key_id) != 8 or len(zero) != 16:
            raise ValueError
        int(key_id, 16)
        info = HashInfo(ALGORITHM, 64, key_id, int(zero, 16))
    except ValueError:
        _damaged(where, "the key id or the zero hash is not in hex")
    return _Head(info, {_clean(str(name)): value for name, value in provenance.items()})


def _survey(path: Path, descriptor: int) -> _Survey:
    frames = _frames(path, descriptor)
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
            frames = _frames(path, descriptor)
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
                _damaged(str(path), str(error))
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

    def take(self, frame: _Frame, writer: TraceWriter) -> None:
        """One frame; raises DataError, ValueError from the writer."""
        step = {b"GUST": self._guest, b"SNAP": self._snapshot, b"MMBG": self._begin_mm,
                b"REGN": self._region, b"PAGE": self._page, b"MMEN": self._end_mm,
                b"SNEN": self._end_snapshot}.get(frame.kind)
        if step is None:
            _damaged(frame.where, f"a frame of kind {frame.kind!r} stands here")
        if (frame.kind != b"SNAP") != self._is_open:
            _damaged(frame.where, "a snapshot begins or ends twice")
        if (frame.kind in (b"REGN", b"PAGE", b"MMEN")) != (self._mm >= 0):
            _damaged(frame.where, "an address space begins or ends twice")
        step(frame, writer)

    def _guest(self, frame: _Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        number = _int(document, "guest", where)
        kind = _text(document, "kind", where)
        if number in self.guests or kind not in _GUEST_KINDS:
            _damaged(where, "a guest stands twice, or is of no known kind")
        memory = (None if document.get("memory_bytes") is None
                  else _int(document, "memory_bytes", where))
        name = _text(document, "name", where)
        self.guests[number] = writer.add_guest(name, kind, self.labels.labels_of(name), memory)

    def _snapshot(self, frame: _Frame, writer: TraceWriter) -> None:
        document = frame.document()
        self._counters = _counts(document, "counters", frame.where)
        start_ns = _int(document, "start_ns", frame.where)
        if start_ns < self._last_ns:
            self.notes.append("the host's clock was set back between two snapshots; the later "
                              "one is put at the end of the one before")
        self._start_ns = max(start_ns, self._last_ns)
        self._is_open, self._n_snapshot_pages = True, 0
        writer.begin_snapshot(self._start_ns)

    def _begin_mm(self, frame: _Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        number, guest = _int(document, "mm", where), _int(document, "guest", where)
        if guest not in self.guests:
            _damaged(where, f"guest {guest} is not described before")
        if number not in self.mms:
            self.mms[number] = writer.add_mm(
                self.guests[guest], _int(document, "pid", where, most=(1 << 31) - 1),
                _text(document, "comm", where))
        self._mm, self._n_mm_pages = self.mms[number], 0
        self._regions, self._parts = [], []

    def _region(self, frame: _Frame, writer: TraceWriter) -> None:
        rows = _json(frame)
        if not isinstance(rows, list):
            _damaged(frame.where, "not a list of regions")
        for row in rows:
            if not isinstance(row, list) or len(row) != 5:
                _damaged(frame.where, "a region has not five values")
            cells = dict(zip(("start", "end", "flags", "name", "content"), row, strict=True))
            self._regions.append(RegionInput(
                _int(cells, "start", frame.where, most=_MAX_VPN),
                _int(cells, "end", frame.where, most=_MAX_VPN),
                _int(cells, "flags", frame.where, most=(1 << 32) - 1),
                _text(cells, "name", frame.where),
                {"content": _text(cells, "content", frame.where)}))

    def _page(self, frame: _Frame, writer: TraceWriter) -> None:
        pages = _pages_of(frame)
        self._parts.append(pages)
        self._n_mm_pages += len(pages)

    def _end_mm(self, frame: _Frame, writer: TraceWriter) -> None:
        document = frame.document()
        if _int(document, "n_pages", frame.where) != self._n_mm_pages:
            _damaged(frame.where, "pages are missing")
        try:
            writer.write_mm(self._mm, _joined(self._parts), self._regions)
        except ValueError as error:
            _damaged(frame.where, str(error))
        self._mm, self._parts = -1, []
        self._n_snapshot_pages += self._n_mm_pages

    def _end_snapshot(self, frame: _Frame, writer: TraceWriter) -> None:
        document, where = frame.document(), frame.where
        if _int(document, "n_pages", where) != self._n_snapshot_pages:
            _damaged(where, "pages are missing")
        skipped = _counts(document, "skipped", where)
        for reason, count in skipped.items():
            if reason != "late_ns":
                self.skipped[reason] = self.skipped.get(reason, 0) + count
        self._last_ns = max(_int(document, "end_ns", where), self._start_ns)
        writer.end_snapshot(self._last_ns, skipped=skipped, counters=self._counters,
                            is_partial=document.get("is_partial") is True)
        self._is_open = False
        self.n_pages += self._n_snapshot_pages


def _unpacked(data: memoryview, n_bytes: int, where: str) -> bytes:
    """Exactly `n_bytes` from zlib data, whatever it claims."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, n_bytes + 1)
    except zlib.error:
        _damaged(where, "packed data cannot be unpacked")
    if len(raw) != n_bytes or not unpacker.eof or unpacker.unused_data:
        _damaged(where, "packed data has another length")
    return raw


def _pages_of(frame: _Frame) -> PageColumns:
    """Pages of a PAGE frame: count u32, first vpn u64, hashes u64[n], then packed u16[n] steps,
    u32[n] flags, i32[n] frame ids, i8[n] nodes."""
    if len(frame.payload) < _PAGE_HEAD.size:
        _damaged(frame.where, "too short for pages")
    n_pages, first = _PAGE_HEAD.unpack_from(frame.payload)
    at = _PAGE_HEAD.size + 8 * n_pages
    if not 0 < n_pages <= _MAX_CHUNK_PAGES or len(frame.payload) < at or first >= _MAX_VPN:
        _damaged(frame.where, "no such number of pages")
    hashes = np.frombuffer(frame.payload, "<u8", n_pages, _PAGE_HEAD.size)
    raw = _unpacked(memoryview(frame.payload)[at:], 11 * n_pages, frame.where)
    steps = np.frombuffer(raw, "<u2", n_pages).astype(np.int64)
    if steps[0] or (n_pages > 1 and not steps[1:].all()):
        _damaged(frame.where, "pages do not ascend")
    flags = np.frombuffer(raw, "<u4", n_pages, 2 * n_pages)
    frame_ids = np.frombuffer(raw, "<i4", n_pages, 6 * n_pages)
    nodes = np.frombuffer(raw, "i1", n_pages, 10 * n_pages)
    if frame_ids.min() < -1 or nodes.min() < -1:
        _damaged(frame.where, "a frame id or a node is negative")
    return PageColumns(first + np.cumsum(steps), hashes.astype(np.uint64),
                       flags.astype(np.uint32), frame_ids.astype(np.int32),
                       nodes.astype(np.int8))


def _joined(parts: Sequence[PageColumns]) -> PageColumns:
    if not parts:
        return empty_pages()
    return PageColumns(*(np.concatenate([getattr(part, name) for part in parts])
                         for name in ("vpn", "hash", "flags", "frame_id", "numa_node")))


@dataclass(frozen=True, slots=True, eq=False)
class GuestClasses:
    """What the frames of a guest were used for: `numbers` u8[n] by guest frame, into `names`.

    `start_ns` is the Unix time of the look; `is_complete` is False for a stream that was cut, whose
    last frames are unknown (class 0, `names[0]`).
    """

    names: tuple[str, ...]
    numbers: npt.NDArray[np.uint8]
    start_ns: int
    is_complete: bool


def read_classes(path: Path) -> GuestClasses:
    """Read a stream of `agent.pyz --guest-classes`.

    Raises DataError with file and byte for what is none or was altered.
    """
    with open_regular(path) as descriptor:
        frames = _frames(path, descriptor)
        first = next(frames, None)
        document = _head_document(first, path, "guest-classes",
                                  "import captures with planner trace import --format agent")
        assert first is not None
        names = document.get("classes")
        if not isinstance(names, list) or not 0 < len(names) <= 256 or not all(
                isinstance(name, str) and name and name.isprintable() and len(name) <= 40
                for name in names):
            _damaged(first.where, "classes is no list of names")
        n_frames = _int(document, "n_frames", first.where, least=1, most=_MAX_FRAMES)
        if _int(document, "page_bytes", first.where) != PAGE_BYTES:
            raise DataError("the guest has pages of another size than 4096 bytes",
                            where=str(path), instead="only guests with 4 KiB pages can be joined")
        start_ns = _int(document, "start_ns", first.where)
        parts: list[npt.NDArray[np.uint8]] = []
        n_read, is_complete = 0, False
        for frame in frames:
            if frame.kind == b"DONE":
                is_complete = True
                continue
            if frame.kind != b"CLAS" or len(frame.payload) < _CLASS_HEAD.size or is_complete:
                _damaged(frame.where, f"a frame of kind {frame.kind!r} stands here")
            at, count = _CLASS_HEAD.unpack_from(frame.payload)
            if at != n_read or not 0 < count <= _MAX_CLASS_FRAMES or at + count > n_frames:
                _damaged(frame.where, "frames do not follow each other")
            raw = _unpacked(memoryview(frame.payload)[_CLASS_HEAD.size:], count, frame.where)
            part = np.frombuffer(raw, np.uint8)
            if int(part.max()) >= len(names):
                _damaged(frame.where, "a class has no name")
            parts.append(part)
            n_read += count
        if is_complete and n_read != n_frames:
            _damaged(str(path), f"{n_read} frames of {n_frames}")
        if not n_read:
            raise DataError("the stream was cut before its first frames", where=str(path),
                            instead="run agent.pyz --guest-classes in the guest again")
    return GuestClasses(tuple(names), np.concatenate(parts), start_ns, is_complete)


def join_classes(trace: Path, guest: str, stream: Path, out: Path, *,
                 offset_bytes: int | None = None, force: bool = False) -> ImportReport:
    """Copy a host's trace with the RAM of one guest split by what the guest uses it for.

    Guest frame g lies `offset_bytes + g * 4096` into the guest-ram region; above 4 GiB of guest
    addresses, RAM goes on behind what lies below the PCI hole, whose size is told by where the
    guest's RAM ends. The parts are regions with the label `content` = `guest-` and the class;
    pages are unchanged. `offset_bytes` must be given where the region is not exactly as large as
    the guest's memory (the kernel may join neighbouring mappings).

    Raises UsageError for an unknown guest or an output that exists, DataError for a damaged
    stream, and for classes that cannot belong to that guest.
    """
    opened = open_trace(trace)
    found = [item for item in opened.guests if item.name == guest]
    if len(found) != 1:
        names = ", ".join(item.name for item in opened.guests[:8])
        raise UsageError(f"{len(found) or 'no'} guest(s) named {guest!r}", where=str(trace),
                         instead=f"choose one of {names}" if not found else
                                 "join a trace whose guests have names of their own")
    classes = read_classes(stream)
    notes = [] if classes.is_complete else ["the classes stream was cut; the last frames of the "
                                            "guest keep the class of a frame that is not there"]
    provenance = {**opened.provenance, "guest_classes": {
        **opened.provenance.get("guest_classes", {}),
        guest: {"start_ns": classes.start_ns, "n_frames": len(classes.numbers)}}}
    n_split = n_pages = 0
    with TraceWriter(out, hash_info=opened.hash_info, provenance=provenance,
                     force=force) as writer:
        for item in opened.guests:
            writer.add_guest(item.name, item.kind, item.labels, item.memory_bytes)
        new_id = {mm.mm_id: writer.add_mm(mm.guest_id, mm.pid, mm.comm) for mm in opened.mms}
        guest_of = {mm.mm_id: mm.guest_id for mm in opened.mms}
        histories = {mm.mm_id: opened.mm_history(mm.mm_id) for mm in opened.mms}
        for info in opened.snapshots:
            writer.begin_snapshot(info.start_ns)
            for mm_id in opened.mm_ids(info.snapshot_id):
                _, pages = next(histories[mm_id])
                regions = opened.mm_regions(info.snapshot_id, mm_id)
                inputs = []
                for region in regions:
                    if (guest_of[mm_id] == found[0].guest_id
                            and region.flags & RegionFlag.GUEST_RAM
                            and region.labels.get("content") == "guest-ram"):
                        parts = _split(region, classes, found[0], offset_bytes, stream)
                        n_split += 1
                        if info.snapshot_id == 0:
                            notes.append(_fit_note(parts, pages))
                    else:
                        parts = [RegionInput(region.start_vpn, region.end_vpn, region.flags,
                                             region.name, region.labels)]
                    inputs.extend(parts)
                writer.write_mm(new_id[mm_id], pages, inputs)
            writer.end_snapshot(info.end_ns, skipped=info.skipped, counters=info.counters,
                                is_partial=info.is_partial)
            n_pages += info.n_pages
        if not n_split:
            raise DataError(f"guest {guest!r} has no region guest-ram (or was joined before)",
                            where=str(trace), instead="capture the host with --qemu")
        written = writer.finish(opened.status)
    return ImportReport(written, len(opened.guests), len(opened.snapshots), n_pages, {}, notes)


def _split(region: Region, classes: GuestClasses, guest: Guest, offset_bytes: int | None,
           stream: Path) -> list[RegionInput]:
    """The region in parts of one class each; what no guest frame lies on stays guest-ram."""
    n_region = region.end_vpn - region.start_vpn
    if offset_bytes is None:
        memory_bytes = guest.memory_bytes or n_region * PAGE_BYTES
        if memory_bytes != n_region * PAGE_BYTES:
            raise DataError(
                f"the mapping of guest {guest.name!r} has {n_region * PAGE_BYTES} bytes, its "
                f"memory {memory_bytes}: where in it the memory begins is not known",
                where=str(stream), instead="say it with --offset (0 where it begins with it)")
        offset, n_ram = 0, n_region
    else:
        offset = offset_bytes // PAGE_BYTES
        n_ram = (guest.memory_bytes or 0) // PAGE_BYTES or n_region - offset
        if offset_bytes < 0 or offset_bytes % PAGE_BYTES or offset + n_ram > n_region:
            raise UsageError(f"{offset_bytes} is no offset of its memory in {n_region} pages",
                             where="--offset", instead="give a multiple of 4096 that fits")
    numbers = classes.numbers
    n_frames = len(numbers)
    is_there = numbers != classes.names.index("absent") if "absent" in classes.names \
        else np.ones(n_frames, np.bool_)
    n_low = min(n_frames, _FOUR_GIB_FRAMES)
    n_high = n_frames - n_low
    if n_high:
        # RAM above 4 GiB ends where memory ends, so what is left lies below the hole.
        n_low = n_ram - n_high
    last_low = int(np.flatnonzero(is_there[:_FOUR_GIB_FRAMES]).max(initial=-1)) + 1
    if n_low < last_low or n_low > _FOUR_GIB_FRAMES or n_low + n_high > n_ram:
        raise DataError(
            f"these classes tell of RAM up to frame {n_frames} ({last_low} below 4 GiB), guest "
            f"{guest.name!r} has {n_ram} pages", where=str(stream),
            instead="name the guest they were written in, and the capture of that run of it")
    whole = np.full(n_region, -1, np.int16)
    whole[offset:offset + n_low] = numbers[:n_low]
    whole[offset + n_low:offset + n_low + n_high] = numbers[_FOUR_GIB_FRAMES:]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(whole)) + 1])
    ends = np.append(starts[1:], n_region)
    parts = []
    for start, end, number in zip(starts.tolist(), ends.tolist(), whole[starts].tolist(),
                                  strict=True):
        content = "guest-ram" if number < 0 else f"guest-{classes.names[number]}"
        parts.append(RegionInput(region.start_vpn + start, region.start_vpn + end, region.flags,
                                 region.name, {**region.labels, "content": content}))
    return parts


def _fit_note(parts: Sequence[RegionInput], pages: PageColumns) -> str:
    """How many frames that the guest uses have a page in the host's trace: tells a wrong join."""
    n_used = n_found = 0
    for part in parts:
        if part.labels["content"] in ("guest-anon", "guest-page-cache", "guest-slab",
                                      "guest-kernel-text", "guest-page-tables"):
            first, last = np.searchsorted(pages.vpn, [part.start_vpn, part.end_vpn])
            n_used += part.end_vpn - part.start_vpn
            n_found += int(last - first)
    share = n_found / n_used if n_used else 0.0
    return (f"{n_found} of {n_used} frames that the guest uses ({share:.1%}) are in the host's "
            f"trace; {len(parts)} regions" + ("" if share > 0.9 else
                                              "; check that both are of one run of the guest"))
