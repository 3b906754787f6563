"""Raw guest memory, and what every import of memory shares: hashing while streaming.

A format's loader finds where the pages lie in a file and feeds them to a `PageHasher`; files are
read in buffers of 2 MiB, holes of sparse files are not read. What stays in memory is the columns
of the pages of one guest (about 60 bytes a page while they are written).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.errors import DataError, MachineError, UsageError
from planner.importers.common import (
    GuestFile,
    ImportReport,
    LabelSource,
    guest_files,
    import_provenance,
    open_regular,
    snapshot_times,
)
from planner.kernels.pagehash import ALGORITHM, HASH_BITS, hash_pages, key_words, zero_hash
from planner.sitekey import SiteKey
from planner.trace import (
    PAGE_BYTES,
    HashInfo,
    PageColumns,
    PageFlag,
    RegionFlag,
    RegionInput,
    TraceWriter,
    empty_pages,
)

__all__ = [
    "Extent", "Layout", "PageHasher", "Source", "arranged", "bare_pages", "import_firecracker",
    "import_images", "import_raw", "known_kind", "page_extent", "ram_layout", "ram_region",
    "read_extents", "write_snapshots",
]

Progress = Callable[[str, float], None]

#: Read at once: large enough that calls cost nothing, small enough for a core's outer cache.
BUFFER_BYTES = 2 << 20
#: More ranges than this in one file are damage, not memory.
MAX_EXTENTS = 1 << 19

_MAX_COUNT = 1 << 62

#: What a guest's RAM is to KSM. Files do not say whether the host advises it; a host that
#: deduplicates does, and without ADVISED a scenario would have nothing to merge.
RAM_FLAGS = RegionFlag.GUEST_RAM | RegionFlag.ADVISED | RegionFlag.READ | RegionFlag.WRITE
RAM_NOTE = ("imported memory counts as advised (MADV_MERGEABLE) anonymous memory: a file does not "
            "say what the host does")

#: How known files begin, what they are, and what to do with them.
_KNOWN = (
    (b"\x7fELF", "an ELF file", "import it with --format elf"),
    (b"EMiL", "a LiME file", "import it with --format lime"),
    (b"AVML", "an AVML file", "import it with --format avml"),
    (b"KDUMP   ", "a kdump-compressed file",
     "dump again without compression (dump-guest-memory without -z, -l, -s)"),
    (b"DISKDUMP", "a kdump-compressed file", "write it with makedumpfile -E, or dump again"),
    (b"makedumpfile", "a flattened makedumpfile file", "rearrange it with makedumpfile -R"),
    (b"LibvirtQemudSave", "a libvirt save file", "dump again with virsh dump --memory-only"),
    (b"QEVM", "a QEMU migration stream", "dump again with dump-guest-memory or pmemsave"),
    (b"QFI\xfb", "a qcow2 disk image", "give a file of memory"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "decompress it first"),
    (b"\x1f\x8b", "a gzip file", "decompress it first"),
    (b"\xfd7zXZ\x00", "an xz file", "decompress it first"),
    (b"PAR1", "a Parquet file", "give a file of memory"),
)


def known_kind(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with `head` is, and what to do with it; None when unknown."""
    for magic, what, instead in _KNOWN:
        if head.startswith(magic):
            return what, instead
    return None


@dataclass(slots=True)
class Source:
    """An opened file: `size_bytes` long; `advance` reports how far it is done."""

    descriptor: int
    path: Path
    size_bytes: int
    advance: Callable[[int], None]

    def error(self, what: str, offset: int, instead: str = "copy or dump it again") -> DataError:
        """A DataError at a byte offset of this file."""
        return DataError(f"{what} (byte {offset})", where=str(self.path), instead=instead)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Exactly `n_bytes` from `offset`; DataError where the file ends before."""
        if not 0 <= offset <= offset + n_bytes <= self.size_bytes:
            raise self.error(f"the file ends early: {n_bytes} bytes are missing", offset)
        raw = os.pread(self.descriptor, n_bytes, offset)
        if len(raw) != n_bytes:
            raise self.error("the file became shorter while it was read", offset)
        return raw

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`."""
        while view:
            n_bytes = os.preadv(self.descriptor, [view], offset)
            if not n_bytes:
                raise self.error("the file became shorter while it was read", offset)
            view = view[n_bytes:]
            offset += n_bytes

    def expect(self, what: str, instead: str) -> DataError:
        """The error for a file that is not `what`; names what it is where that is known."""
        known = known_kind(self.read(0, min(16, self.size_bytes)))
        is_known = known[0] if known else "something else"
        return self.error(f"not {what} but {is_known}", 0, known[1] if known else instead)


class Extent(NamedTuple):
    """Pages `[vpn, vpn + n_pages)` lie at byte `offset` of a file; `flags` are PageFlag bits."""

    vpn: int
    n_pages: int
    offset: int
    flags: int = int(PageFlag.ANON)


@dataclass(slots=True)
class Layout:
    """What a loader found besides the pages: regions, guest kind and size, what it left out."""

    regions: list[RegionInput]
    kind: str = "vm"
    memory_bytes: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)


class PageHasher:
    """Hashes pages as they come and keeps their columns."""

    def __init__(self, keys: npt.NDArray[np.uint64]) -> None:
        self._keys = keys
        self._parts: list[PageColumns] = []
        #: Runs (vpn, n_pages) of the pages that wait in the buffer, and their PageFlag bits.
        self._runs: list[tuple[int, int]] = []
        self._flags = 0
        self._n_waiting = 0
        self.buffer = np.empty(BUFFER_BYTES, np.uint8)

    def add(self, vpn: int, pages: npt.NDArray[np.uint8], flags: int) -> None:
        """Hash whole pages u8[n * 4096] from page `vpn` on."""
        self._hash(np.arange(vpn, vpn + pages.size // PAGE_BYTES, dtype=np.int64), pages, flags)

    def fill(self, source: Source, vpn: int, n_pages: int, offset: int, flags: int) -> int:
        """Read at most `n_pages` from `offset`, to be hashed when the buffer is full.

        Returns how many. Short runs of a fragmented file are so hashed together; `flush` is last.
        """
        if flags != self._flags:
            self.flush()
            self._flags = flags
        start = self._n_waiting * PAGE_BYTES
        n_pages = min(n_pages, (BUFFER_BYTES - start) // PAGE_BYTES)
        source.read_into(self.buffer.data[start:start + n_pages * PAGE_BYTES], offset)
        self._runs.append((vpn, n_pages))
        self._n_waiting += n_pages
        if self._n_waiting * PAGE_BYTES == BUFFER_BYTES:
            self.flush()
        return n_pages

    def flush(self) -> None:
        """Hash what waits in the buffer."""
        if not self._runs:
            return
        first, counts = np.array(self._runs, np.int64).T
        before = np.cumsum(counts) - counts
        vpn = np.repeat(first - before, counts) + np.arange(self._n_waiting)
        self._hash(vpn, self.buffer[:self._n_waiting * PAGE_BYTES], self._flags)
        self._runs.clear()
        self._n_waiting = 0

    def _hash(self, vpn: npt.NDArray[np.int64], pages: npt.NDArray[np.uint8], flags: int) -> None:
        hashes, is_zero = hash_pages(pages, self._keys)
        bits = np.where(is_zero, np.uint32(flags | PageFlag.ZERO), np.uint32(flags))
        self._parts.append(bare_pages(vpn, hashes, bits))

    def columns(self, source: Source) -> PageColumns:
        """All pages by vpn; DataError when one came twice."""
        parts = sorted(self._parts, key=lambda part: int(part.vpn[0]))
        self._parts = []
        if not parts:
            return empty_pages()
        for before, after in pairwise(parts):
            if before.vpn[-1] >= after.vpn[0]:
                raise source.error(f"page {int(after.vpn[0]):#x} is there twice", 0)
        return PageColumns(*(np.concatenate([getattr(part, name) for part in parts])
                             for name in ("vpn", "hash", "flags", "frame_id", "numa_node")))


def bare_pages(vpn: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64],
               flags: npt.NDArray[np.uint32]) -> PageColumns:
    """Page columns of which neither frame nor node is known."""
    return PageColumns(vpn, hashes, flags, np.full(len(vpn), -1, np.int32),
                       np.full(len(vpn), -1, np.int8))


def page_extent(address: int, n_bytes: int, offset: int, skipped: Counter[str],
                flags: int = int(PageFlag.ANON)) -> Extent | None:
    """The whole pages of bytes `[address, address + n_bytes)` at `offset`; None without any.

    Pages that are there in part only are counted as `partial_pages`.
    """
    vpn = -(-address // PAGE_BYTES)
    end_vpn = (address + n_bytes) // PAGE_BYTES
    if address % PAGE_BYTES and n_bytes:
        skipped["partial_pages"] += 1
    if (address + n_bytes) % PAGE_BYTES and n_bytes and end_vpn >= vpn:
        skipped["partial_pages"] += 1
    if end_vpn <= vpn:
        return None
    return Extent(vpn, end_vpn - vpn, offset + vpn * PAGE_BYTES - address, flags)


def arranged(extents: Sequence[Extent], skipped: Counter[str]) -> list[Extent]:
    """Extents by vpn without overlaps: of a page that lies in two, the first by vpn is kept.

    What is dropped is counted as `repeated_pages` (a dump by virtual address holds frames twice).
    """
    result: list[Extent] = []
    end_vpn = 0
    for extent in sorted(extents):
        n_repeated = min(extent.n_pages, max(0, end_vpn - extent.vpn)) if result else 0
        if n_repeated:
            skipped["repeated_pages"] += n_repeated
        if n_repeated < extent.n_pages:
            result.append(Extent(extent.vpn + n_repeated, extent.n_pages - n_repeated,
                                 extent.offset + n_repeated * PAGE_BYTES, extent.flags))
            end_vpn = extent.vpn + extent.n_pages
    return result


def _data_ranges(source: Source, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of `[offset, end)` that are no holes, ascending; all of it where unknown."""
    at = offset
    while at < end:
        try:
            start = os.lseek(source.descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole up to the end of the file
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                yield at, end  # this file system does not tell
                return
            raise
        if start >= end:
            return
        at = min(end, os.lseek(source.descriptor, start, os.SEEK_HOLE))
        if at <= start:
            return
        yield start, at


def read_extents(source: Source, extents: Sequence[Extent], hasher: PageHasher,
                 skipped: Counter[str]) -> None:
    """Hash the pages of `extents`; pages that lie wholly in a hole are left out (`hole_pages`).

    Raises DataError for extents that are larger than the file: some of its bytes would be there
    many times.
    """
    n_pages = sum(extent.n_pages for extent in extents)
    if n_pages * PAGE_BYTES > source.size_bytes:
        raise source.error(f"{n_pages} pages in a file of {source.size_bytes} bytes: ranges share "
                           "bytes of the file", 0)
    for extent in extents:
        done = 0
        for start, end in _data_ranges(source, extent.offset,
                                       extent.offset + extent.n_pages * PAGE_BYTES):
            first = max(done, (start - extent.offset) // PAGE_BYTES)
            last = -(-(end - extent.offset) // PAGE_BYTES)
            skipped["hole_pages"] += first - done
            while first < last:
                offset = extent.offset + first * PAGE_BYTES
                first += hasher.fill(source, extent.vpn + first, last - first, offset,
                                     extent.flags)
                source.advance(offset)
            done = max(done, last)
        skipped["hole_pages"] += extent.n_pages - done
    hasher.flush()


def ram_layout(extents: Sequence[Extent], skipped: Counter[str]) -> Layout:
    """Guest RAM: one region for each run of frames that the file holds."""
    regions: list[RegionInput] = []
    start = end = 0
    for extent in sorted(extents):
        if extent.vpn != end:
            if start < end:
                regions.append(ram_region(start, end))
            start = extent.vpn
        end = extent.vpn + extent.n_pages
    regions.append(ram_region(start, end))
    n_pages = sum(extent.n_pages for extent in extents)
    return Layout(regions, "vm", n_pages * PAGE_BYTES, skipped)


def ram_region(start_vpn: int, end_vpn: int) -> RegionInput:
    """A region of a guest's RAM, frames `[start_vpn, end_vpn)`."""
    return RegionInput(start_vpn, end_vpn, int(RAM_FLAGS), "guest-ram", {"content": "guest-ram"})


Loader = Callable[[Source, PageHasher], Layout]


def import_images(files: Sequence[Path], load: Loader, *, form: str, out: Path,
                  labels: LabelSource, key: SiteKey | None, force: bool,
                  progress: Progress | None, notes: Sequence[str] = (RAM_NOTE,)) -> ImportReport:
    """Import files of memory of one format; `load` reads one of them.

    Raises UsageError, DataError (with file and byte) or MachineError; then nothing is left.
    """
    if key is None:
        raise UsageError("memory is hashed under a site key, and there is none",
                         where=f"--format {form}", instead="name a key file with --key")
    keys = key_words(key.key)

    def one(item: GuestFile, source: Source) -> tuple[PageColumns, Layout]:
        hasher = PageHasher(keys)
        layout = load(source, hasher)
        return hasher.columns(source), layout

    info = HashInfo(ALGORITHM, HASH_BITS, key.key_id, zero_hash(keys))
    return write_snapshots(guest_files(files), one, form=form, info=info, out=out, labels=labels,
                           force=force, progress=progress, notes=notes)


def write_snapshots(items: Sequence[GuestFile],
                    load: Callable[[GuestFile, Source], tuple[PageColumns, Layout]], *, form: str,
                    info: HashInfo, out: Path, labels: LabelSource, force: bool,
                    progress: Progress | None, notes: Sequence[str] = (),
                    provenance: Mapping[str, object] | None = None) -> ImportReport:
    """Write one trace of files in the order of `guest_files`, each read by `load`.

    Every file is opened once before anything is written, so that a wrong name costs no time.
    """
    sizes = {}
    for item in items:
        with open_regular(item.path) as descriptor:
            sizes[item.path] = os.fstat(descriptor).st_size
    spans, known_by = snapshot_times(items)
    notes = [*notes]
    if len(spans) > 1 and known_by == "assumed":
        notes.append("the files' times do not tell the snapshots apart: they count as 60 s apart")
    record = import_provenance(form, [item.path for item in items], snapshot_times=known_by,
                               **(provenance or {}))
    total: Counter[str] = Counter()
    n_pages = 0
    done_bytes, all_bytes = 0, max(1, sum(sizes[item.path] for item in items))
    try:
        with TraceWriter(out, hash_info=info, provenance=record, force=force) as writer:
            guests: dict[str, int] = {}
            mms: dict[str, int] = {}
            for snapshot, (start_ns, end_ns) in enumerate(spans):
                present = [item for item in items if item.snapshot == snapshot]
                # An mm that missed a snapshot is another mm from then on.
                mms = {name: mm for name, mm in mms.items()
                       if name in {item.name for item in present}}
                present.sort(key=lambda item: mms.get(item.name, _MAX_COUNT))
                skipped: Counter[str] = Counter()
                writer.begin_snapshot(start_ns)
                for item in present:
                    def advance(offset: int, item: GuestFile = item,
                                done: int = done_bytes) -> None:
                        if progress is not None:
                            progress(item.name, min(1.0, (done + offset) / all_bytes))

                    with open_regular(item.path) as descriptor:
                        size_bytes = os.fstat(descriptor).st_size
                        source = Source(descriptor, item.path, size_bytes, advance)
                        if not size_bytes:
                            raise source.error("the file is empty", 0)
                        advance(0)
                        pages, layout = load(item, source)
                    if item.name not in guests:
                        guests[item.name] = writer.add_guest(
                            item.name, layout.kind, labels.labels_of(item.name),
                            layout.memory_bytes)
                    if item.name not in mms:
                        mms[item.name] = writer.add_mm(guests[item.name], 0, item.name)
                    writer.write_mm(mms[item.name], pages, layout.regions)
                    n_pages += len(pages)
                    skipped += layout.skipped
                    done_bytes += sizes[item.path]
                counts = {name: min(count, _MAX_COUNT) for name, count in skipped.items()}
                total += skipped
                writer.end_snapshot(end_ns, skipped=counts, counters={})
            path = writer.finish()
    except OSError as error:
        raise MachineError(f"the trace cannot be written: {error.strerror or error}",
                           where=str(error.filename or out),
                           instead="check the space and permissions there") from error
    return ImportReport(path, len(guests), len(spans), n_pages, dict(total),
                        [*notes, *labels.notes()])


def _load_raw(source: Source, hasher: PageHasher) -> Layout:
    """Raw memory: page k of the file is page k of the guest's RAM."""
    known = known_kind(source.read(0, min(16, source.size_bytes)))
    if known is not None:
        raise source.error(f"not raw memory but {known[0]}", 0, known[1])
    if source.size_bytes % PAGE_BYTES:
        raise source.error("the file does not end with a whole page of 4096 bytes",
                           source.size_bytes, "copy or dump it again; it may be cut short")
    skipped: Counter[str] = Counter()
    extents = [Extent(0, source.size_bytes // PAGE_BYTES, 0)]
    read_extents(source, extents, hasher, skipped)
    return ram_layout(extents, skipped)


def import_raw(files: Sequence[Path], *, out: Path, labels: LabelSource, key: SiteKey | None,
               force: bool, progress: Progress | None) -> ImportReport:
    """Raw memory: QEMU `pmemsave`, a memory-backend-file, Cloud Hypervisor, crosvm, ...

    Page ids are offsets in the file: the guest's frame numbers below the first gap of its map.
    """
    return import_images(files, _load_raw, form="raw", out=out, labels=labels, key=key,
                         force=force, progress=progress)


def import_firecracker(files: Sequence[Path], *, out: Path, labels: LabelSource,
                       key: SiteKey | None, force: bool, progress: Progress | None
                       ) -> ImportReport:
    """The memory file of a Firecracker snapshot: raw, its regions one after the other.

    A diff snapshot is sparse; its holes are pages that did not change, which it does not hold.
    """
    return import_images(
        files, _load_raw, form="firecracker", out=out, labels=labels, key=key, force=force,
        progress=progress,
        notes=(RAM_NOTE, "holes count as pages that the host does not back: import full "
                         "snapshots, not diff snapshots"))
