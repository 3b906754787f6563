"""ELF cores: QEMU `dump-guest-memory`, `virsh dump --memory-only`, gdb's `gcore`.

Layouts follow elf(5): the header, program headers (PT_LOAD holds memory, PT_NOTE tells who wrote
it), and the note NT_FILE of a process, which lists its file mappings.
"""

from __future__ import annotations

import bisect
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.errors import DataError
from planner.importers.common import ImportReport, LabelSource
from planner.importers.images import (
    MAX_EXTENTS,
    RAM_NOTE,
    Extent,
    Layout,
    PageHasher,
    Progress,
    Source,
    arranged,
    import_images,
    page_extent,
    ram_layout,
    read_extents,
)
from planner.sitekey import SiteKey
from planner.trace import PAGE_BYTES, PageFlag, RegionFlag, RegionInput

__all__ = ["import_elf", "import_qemu"]

_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF
_NT_FILE = 0x46494C45
#: Notes larger than this are not read: they name threads and files, not memory.
_MAX_NOTES_BYTES = 64 << 20
_PROCESS_NOTE = ("a core of a process does not say what was advised or shared: its writable "
                 "memory counts as advised anonymous memory")


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    virtual: int
    physical: int
    file_bytes: int
    memory_bytes: int


@dataclass(slots=True)
class _Notes:
    names: set[bytes] = field(default_factory=set)
    #: address ranges that map files, u64[n, 2] each
    files: list[npt.NDArray[np.uint64]] = field(default_factory=list)


def _segments(source: Source) -> tuple[str, bool, list[_Segment]]:
    """Byte order ("<" or ">"), whether it is 64-bit, and the program headers."""
    if source.size_bytes < 64 or source.read(0, 4) != b"\x7fELF":
        raise source.expect("an ELF core", "name the file that the dump wrote")
    ident = source.read(0, 16)
    if ident[4] not in (1, 2) or ident[5] not in (1, 2) or ident[6] != 1:
        raise source.error(f"damaged ELF header: class {ident[4]}, byte order {ident[5]}, "
                           f"version {ident[6]}", 4)
    is_wide, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    head = struct.unpack(order + ("HHIQQQIHHHHHH" if is_wide else "HHIIIIIHHHHHH"),
                         source.read(16, 48 if is_wide else 36))
    e_type, table, sections, entry_bytes, n_entries = head[0], head[4], head[5], head[8], head[9]
    if e_type != _ET_CORE:
        raise source.error(f"an ELF file of type {e_type}, not a core (type 4)", 16,
                           "name a memory dump")
    if entry_bytes != (56 if is_wide else 32):
        raise source.error(f"program headers of {entry_bytes} bytes", 54 if is_wide else 42)
    if n_entries == _PN_XNUM:
        # More program headers than fit: the first section header's sh_info has their number.
        at = sections + (44 if is_wide else 28)
        n_entries = struct.unpack(order + "I", source.read(at, 4))[0]
    if n_entries > MAX_EXTENTS:
        raise source.error(f"{n_entries} program headers", 56 if is_wide else 44)
    raw = source.read(table, n_entries * entry_bytes)
    found = []
    for values in struct.iter_unpack(order + ("IIQQQQQQ" if is_wide else "IIIIIIII"), raw):
        if is_wide:
            kind, flags, offset, virtual, physical, file_bytes, memory_bytes, _ = values
        else:
            kind, offset, virtual, physical, file_bytes, memory_bytes, flags, _ = values
        segment = _Segment(kind, flags, offset, virtual, physical, file_bytes, memory_bytes)
        if kind == _PT_LOAD:
            _check_segment(source, segment)
        found.append(segment)
    return order, is_wide, found


def _check_segment(source: Source, segment: _Segment) -> None:
    n_bytes = max(segment.file_bytes, segment.memory_bytes)
    if segment.offset + segment.file_bytes > source.size_bytes:
        raise source.error(
            f"the file ends early: a segment of {segment.file_bytes} bytes begins here and the "
            f"file has {source.size_bytes} bytes", segment.offset)
    if max(segment.virtual, segment.physical) + n_bytes > 1 << 64:
        raise source.error(f"a segment of {n_bytes} bytes passes the end of memory",
                           segment.offset)


def _notes(source: Source, segments: Sequence[_Segment], order: str, is_wide: bool) -> _Notes:
    """Who wrote the core and which addresses map files; notes beyond 64 MiB are not looked at."""
    found = _Notes()
    n_left = _MAX_NOTES_BYTES
    for segment in segments:
        if segment.kind != _PT_NOTE or n_left <= 0:
            continue
        raw = source.read(segment.offset, min(segment.file_bytes, n_left))
        n_left -= len(raw)
        at = 0
        while at + 12 <= len(raw):
            name_bytes, desc_bytes, kind = struct.unpack_from(order + "III", raw, at)
            name_at = at + 12
            desc_at = name_at + (name_bytes + 3) // 4 * 4
            at = desc_at + (desc_bytes + 3) // 4 * 4
            if at > len(raw) + 3:
                raise source.error("a note passes the end of its segment",
                                   segment.offset + name_at - 12)
            name = raw[name_at:name_at + name_bytes].rstrip(b"\0")
            found.names.add(name)
            if name == b"CORE" and kind == _NT_FILE:
                found.files.append(
                    _mapped_files(raw[desc_at:desc_at + desc_bytes], order, is_wide))
    return found


def _mapped_files(raw: bytes, order: str, is_wide: bool) -> npt.NDArray[np.uint64]:
    """NT_FILE: count and page size, then (start, end, offset) each; returns u64[n, 2]."""
    word = 8 if is_wide else 4
    values = np.frombuffer(raw[:len(raw) // word * word], f"{order}u{word}").astype(np.uint64)
    if len(values) < 2:
        return np.empty((0, 2), np.uint64)
    count = min(int(values[0]), (len(values) - 2) // 3)
    return values[2:2 + 3 * count].reshape(-1, 3)[:, :2]


def _load_physical(source: Source, hasher: PageHasher, segments: Sequence[_Segment]) -> Layout:
    """A dump of a machine: page ids are guest frame numbers (p_paddr)."""
    skipped: Counter[str] = Counter()
    extents = []
    for segment in segments:
        if segment.kind != _PT_LOAD:
            continue
        skipped["pages_not_in_file"] += \
            max(0, segment.memory_bytes - segment.file_bytes) // PAGE_BYTES
        extent = page_extent(segment.physical, segment.file_bytes, segment.offset, skipped)
        if extent is not None:
            extents.append(extent)
    extents = arranged(extents, skipped)
    if not extents:
        raise source.error("the core holds no memory", 0, "dump again")
    read_extents(source, extents, hasher, skipped)
    return ram_layout(extents, skipped)


def _load_process(source: Source, hasher: PageHasher, segments: Sequence[_Segment],
                  notes: _Notes) -> Layout:
    """A core of a process: page ids are virtual page numbers, each segment is a region."""
    skipped: Counter[str] = Counter()
    files = _FileRanges(notes.files)
    extents: list[Extent] = []
    regions: list[RegionInput] = []
    for segment in sorted((s for s in segments if s.kind == _PT_LOAD), key=lambda s: s.virtual):
        n_missing = max(0, segment.memory_bytes - segment.file_bytes) // PAGE_BYTES
        skipped["pages_not_in_file"] += n_missing
        start = -(-segment.virtual // PAGE_BYTES)
        end = (segment.virtual + max(segment.file_bytes, segment.memory_bytes)) // PAGE_BYTES
        if regions:
            start = max(start, regions[-1].end_vpn)
        is_file = files.overlap(segment.virtual, segment.virtual + segment.memory_bytes)
        is_writable = bool(segment.flags & 2)
        if start < end:
            regions.append(_region(start, end, segment.flags, is_file))
        flags = PageFlag.FILE if is_file and not is_writable else PageFlag.ANON
        extent = page_extent(segment.virtual, segment.file_bytes, segment.offset, skipped,
                             int(flags))
        if extent is not None:
            extents.append(extent)
    extents = arranged(extents, skipped)
    if not extents:
        raise source.error("the core holds no memory", 0, "dump again")
    read_extents(source, extents, hasher, skipped)
    return Layout(regions, "process", None, skipped)


class _FileRanges:
    """Address ranges `[start, end)` that map files."""

    def __init__(self, parts: Sequence[npt.NDArray[np.uint64]]) -> None:
        ranges = np.concatenate([np.empty((0, 2), np.uint64), *parts])
        ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
        self._starts = ranges[:, 0].tolist()
        # The furthest end of all ranges up to each.
        self._ends = np.maximum.accumulate(ranges[:, 1]).tolist()

    def overlap(self, start: int, end: int) -> bool:
        """Whether a range has an address of `[start, end)`."""
        at = bisect.bisect_left(self._starts, end)
        return at > 0 and self._ends[at - 1] > start


def _region(start: int, end: int, elf_flags: int, is_file: bool) -> RegionInput:
    flags = RegionFlag(0)
    for bit, flag in ((4, RegionFlag.READ), (2, RegionFlag.WRITE), (1, RegionFlag.EXEC)):
        if elf_flags & bit:
            flags |= flag
    flags |= RegionFlag.FILE if is_file else RegionFlag.ADVISED
    return RegionInput(start, end, int(flags), "",
                       {"content": "file-private" if is_file else "anon"})


def _is_machine(notes: _Notes) -> bool:
    """Whether a core is a dump of a machine, whose physical addresses count."""
    return bool(notes.names & {b"QEMU", b"VMCOREINFO"})


def _load_elf(source: Source, hasher: PageHasher) -> Layout:
    order, is_wide, segments = _segments(source)
    notes = _notes(source, segments, order, is_wide)
    if _is_machine(notes):
        return _load_physical(source, hasher, segments)
    return _load_process(source, hasher, segments, notes)


def _load_qemu(source: Source, hasher: PageHasher) -> Layout:
    order, is_wide, segments = _segments(source)
    if not _is_machine(_notes(source, segments, order, is_wide)):
        raise DataError("a core of a process, not a dump of a machine (it has no QEMU note)",
                        where=str(source.path), instead="import it with --format elf")
    return _load_physical(source, hasher, segments)


def import_qemu(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
                force: bool, progress: Progress | None) -> ImportReport:
    """QEMU `dump-guest-memory` and `virsh dump --memory-only`: page ids are guest frames."""
    return import_images(files, _load_qemu, form="qemu", out=out, labels=labels, key=key,
                         force=force, progress=progress)


def import_elf(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
               force: bool, progress: Progress | None) -> ImportReport:
    """Any ELF core: of a machine (as `import_qemu`), else of a process by virtual page."""
    return import_images(files, _load_elf, form="elf", out=out, labels=labels, key=key,
                         force=force, progress=progress, notes=(RAM_NOTE, _PROCESS_NOTE))
