"""AVML: LiME version 1 ranges, or the same with compressed ranges (version 2).

Version 2 has the header of LiME with the magic `AVML` and version 2; then the range as a stream
of the Snappy framing format (framing_format.txt of Snappy: chunks of one type byte and a 24-bit
length; type 0x00 compressed and 0x01 plain, both behind a CRC-32C, each at most 65,536 bytes of
memory; 0xff the stream identifier; 0x80 to 0xfe may be skipped), then a u64 with the length of
that stream. The CRC-32C of the chunks is not checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planner.importers.common import ImportReport, LabelSource
from planner.importers.images import (
    BUFFER_BYTES,
    MAX_EXTENTS,
    Extent,
    Layout,
    PageHasher,
    Progress,
    Source,
    import_images,
    page_extent,
    ram_layout,
    read_extents,
)
from planner.importers.lime import HEADER_BYTES, LIME_MAGIC, read_header
from planner.sitekey import SiteKey
from planner.trace import PAGE_BYTES

__all__ = ["AVML_MAGIC", "import_avml"]

AVML_MAGIC = int.from_bytes(b"AVML", "little")
_MAGICS = {(LIME_MAGIC, 1): "plain", (AVML_MAGIC, 2): "snappy"}
_CHUNK_BYTES = 65536
#: The most that Snappy makes of 65,536 bytes (32 + n + n / 6), and the CRC-32C before it.
_MAX_STORED_BYTES = 4 + 32 + _CHUNK_BYTES + _CHUNK_BYTES // 6
_IDENTIFIER = b"sNaPpY"
_READ_BYTES = 1 << 20


class _Window:
    """Small reads of a file out of larger ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._raw = memoryview(b"")

    def read(self, offset: int, n_bytes: int) -> memoryview:
        at = offset - self._start
        if not 0 <= at <= at + n_bytes <= len(self._raw):
            size = min(max(n_bytes, _READ_BYTES), max(0, self._source.size_bytes - offset))
            # Too short a rest is the source's error, with its offset.
            self._raw = memoryview(self._source.read(offset, max(size, n_bytes)))
            self._start, at = offset, 0
        return self._raw[at:at + n_bytes]


def _block_bytes(source: Source, raw: memoryview, offset: int) -> int:
    """The length that a Snappy block says it has (a varint), at most 65,536."""
    value = 0
    for index, byte in enumerate(raw[:4]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value > _CHUNK_BYTES:
                break
            return value
    raise source.error("a Snappy chunk of more than 65,536 bytes", offset)


def _chunks(source: Source, window: _Window, offset: int, n_bytes: int
            ) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Pieces of a Snappy stream that holds `n_bytes`, each with the offset behind it."""
    codec = pa.Codec("snappy")
    done = 0
    has_identifier = False
    while done < n_bytes:
        head = window.read(offset, 4)
        kind, stored = head[0], int.from_bytes(head[1:], "little")
        body = offset + 4
        if not has_identifier and kind != 0xFF:
            raise source.error("no Snappy stream where one should begin", offset)
        if kind == 0xFF:
            if stored != len(_IDENTIFIER) or window.read(body, stored) != _IDENTIFIER:
                raise source.error("no Snappy stream where one should begin", offset)
            has_identifier = True
        elif kind in (0x00, 0x01):
            if not 4 <= stored <= _MAX_STORED_BYTES:
                raise source.error(f"a Snappy chunk of {stored} stored bytes", offset)
            raw = window.read(body, stored)[4:]
            if kind == 0x01:
                piece = np.frombuffer(raw, np.uint8)
                if len(piece) > _CHUNK_BYTES:
                    raise source.error("a Snappy chunk of more than 65,536 bytes", offset)
            else:
                size = _block_bytes(source, raw, offset)
                try:
                    piece = np.frombuffer(codec.decompress(pa.py_buffer(raw), size), np.uint8)
                except (pa.ArrowException, OSError, ValueError):
                    raise source.error("a Snappy chunk is damaged", offset) from None
                if len(piece) != size:
                    raise source.error("a Snappy chunk is damaged", offset)
            done += len(piece)
            if done > n_bytes:
                raise source.error("a Snappy stream holds more than its range", offset)
            yield piece, body + stored
        elif kind < 0x80:
            raise source.error(f"a Snappy chunk of the unknown type {kind:#04x}", offset)
        elif body + stored > source.size_bytes:
            raise source.error(f"the file ends early: a chunk of {stored} bytes", offset)
        offset = body + stored


def _read_stream(source: Source, window: _Window, address: int, n_bytes: int, offset: int,
                 hasher: PageHasher, extent: Extent | None) -> int:
    """Hash the whole pages of one compressed range; returns the offset behind its stream."""
    buffer = hasher.buffer
    vpn = extent.vpn if extent is not None else 0
    # Bytes before the first whole page, and of the pages from there on.
    to_drop = -address % PAGE_BYTES
    to_keep = extent.n_pages * PAGE_BYTES if extent is not None else 0
    filled = 0
    end = offset
    for data, end in _chunks(source, window, offset, n_bytes):
        if to_drop:
            n_dropped = min(to_drop, len(data))
            to_drop -= n_dropped
            data = data[n_dropped:]
        data = data[:to_keep]
        to_keep -= len(data)
        buffer[filled:filled + len(data)] = data
        filled += len(data)
        if extent is not None and (filled + _CHUNK_BYTES > BUFFER_BYTES or not to_keep):
            n_pages = filled // PAGE_BYTES
            if n_pages:
                hasher.add(vpn, buffer[:n_pages * PAGE_BYTES], extent.flags)
                vpn += n_pages
                rest = filled - n_pages * PAGE_BYTES
                buffer[:rest] = buffer[n_pages * PAGE_BYTES:filled].copy()
                filled = rest
            source.advance(end)
    return end


def _load_avml(source: Source, hasher: PageHasher) -> Layout:
    skipped: Counter[str] = Counter()
    extents: list[Extent] = []
    window = _Window(source)
    offset = 0
    n_ranges = 0
    while offset < source.size_bytes:
        form, first, n_bytes = read_header(source, offset, _MAGICS)
        start = offset + HEADER_BYTES
        if form == "plain" and n_bytes > source.size_bytes - start:
            raise source.error(f"the file ends early: a range of {n_bytes} bytes begins here and "
                               f"the file has {source.size_bytes} bytes", start)
        extent = page_extent(first, n_bytes, start, skipped)
        if extent is not None:
            extents.append(extent)
        if form == "plain":
            if extent is not None:
                read_extents(source, [extent], hasher, skipped)
            offset = start + n_bytes
        else:
            end = _read_stream(source, window, first, n_bytes, start, hasher, extent)
            stored = int.from_bytes(source.read(end, 8), "little")
            if stored != end - start:
                raise source.error(f"a compressed range of {end - start} bytes says that it has "
                                   f"{stored}", end)
            offset = end + 8
        n_ranges += 1
        if n_ranges > MAX_EXTENTS:
            raise source.error(f"more than {MAX_EXTENTS} ranges", offset)
    if not extents:
        raise source.error("the file holds no whole page", 0, "dump again")
    return ram_layout(extents, skipped)


def import_avml(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
                force: bool, progress: Progress | None) -> ImportReport:
    """AVML dumps, compressed or not: page ids are guest frame numbers."""
    return import_images(files, _load_avml, form="avml", out=out, labels=labels, key=key,
                         force=force, progress=progress)
