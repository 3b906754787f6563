"""LiME: ranges of physical memory, each behind a header of 32 bytes.

The header (LiME's documentation, "LiME memory range header version 1", packed, little-endian):
u32 magic 0x4C694D45, u32 version 1, u64 first address, u64 last address (inclusive), 8 reserved
bytes. The range's bytes follow. LiME's padded and raw modes have no headers: format raw.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from planner.importers.common import ImportReport, LabelSource
from planner.importers.images import (
    MAX_EXTENTS,
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

__all__ = ["HEADER_BYTES", "LIME_MAGIC", "import_lime", "read_header"]

LIME_MAGIC = 0x4C694D45
HEADER_BYTES = 32


def read_header(source: Source, offset: int, magics: dict[tuple[int, int], str]
                ) -> tuple[str, int, int]:
    """The range header at `offset`: (what `magics` calls it, first address, length in bytes)."""
    magic, version, first, last = struct.unpack_from("<IIQQ", source.read(offset, HEADER_BYTES))
    name = magics.get((magic, version))
    if name is None:
        if not offset:
            known = {magic for magic, _ in magics}
            if magic not in known:
                raise source.expect("a file of LiME ranges",
                                    "import raw memory with --format raw")
        raise source.error(f"no range header: magic {magic:#010x}, version {version}", offset)
    if last < first:
        raise source.error(f"a range from {first:#x} to {last:#x}", offset)
    return name, first, last - first + 1


def _load_lime(source: Source, hasher: PageHasher) -> Layout:
    skipped: Counter[str] = Counter()
    extents: list[Extent] = []
    offset = n_ranges = 0
    while offset < source.size_bytes:
        _, first, n_bytes = read_header(source, offset, {(LIME_MAGIC, 1): "plain"})
        start = offset + HEADER_BYTES
        if n_bytes > source.size_bytes - start:
            raise source.error(f"the file ends early: a range of {n_bytes} bytes begins here and "
                               f"the file has {source.size_bytes} bytes", start)
        extent = page_extent(first, n_bytes, start, skipped)
        if extent is not None:
            extents.append(extent)
        offset = start + n_bytes
        n_ranges += 1
        if n_ranges > MAX_EXTENTS:
            raise source.error(f"more than {MAX_EXTENTS} ranges", offset)
    extents = arranged(extents, skipped)
    if not extents:
        raise source.error("the file holds no whole page", 0, "dump again")
    read_extents(source, extents, hasher, skipped)
    return ram_layout(extents, skipped)


def import_lime(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
                force: bool, progress: Progress | None) -> ImportReport:
    """LiME dumps (`format=lime`): page ids are guest frame numbers."""
    return import_images(files, _load_lime, form="lime", out=out, labels=labels, key=key,
                         force=force, progress=progress)
