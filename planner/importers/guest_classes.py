"""What a guest uses its frames for (an agent's stream), joined to a host's trace of that guest."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.errors import DataError, UsageError
from planner.importers.agent_stream import (
    damaged,
    frames_of,
    head_document,
    int_of,
    unpacked,
)
from planner.importers.common import ImportReport, open_regular
from planner.trace import (
    PAGE_BYTES,
    Guest,
    PageColumns,
    Region,
    RegionFlag,
    RegionInput,
    TraceWriter,
    open_trace,
)

__all__ = ["GuestClasses", "join_classes", "read_classes"]

_MAX_CLASS_FRAMES = 1 << 16
#: Beyond this (16 TiB) a guest's frames are not believed.
_MAX_FRAMES = 1 << 32
_CLASS_HEAD = struct.Struct("<QI")
_FOUR_GIB_FRAMES = 1 << 20


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
        frames = frames_of(path, descriptor)
        first = next(frames, None)
        document = head_document(first, path, "guest-classes",
                                  "import captures with planner trace import --format agent")
        assert first is not None
        names = document.get("classes")
        if not isinstance(names, list) or not 0 < len(names) <= 256 or not all(
                isinstance(name, str) and name and name.isprintable() and len(name) <= 40
                for name in names):
            damaged(first.where, "classes is no list of names")
        n_frames = int_of(document, "n_frames", first.where, least=1, most=_MAX_FRAMES)
        if int_of(document, "page_bytes", first.where) != PAGE_BYTES:
            raise DataError("the guest has pages of another size than 4096 bytes",
                            where=str(path), instead="only guests with 4 KiB pages can be joined")
        start_ns = int_of(document, "start_ns", first.where)
        parts: list[npt.NDArray[np.uint8]] = []
        n_read, is_complete = 0, False
        for frame in frames:
            if frame.kind == b"DONE":
                is_complete = True
                continue
            if frame.kind != b"CLAS" or len(frame.payload) < _CLASS_HEAD.size or is_complete:
                damaged(frame.where, f"a frame of kind {frame.kind!r} stands here")
            at, count = _CLASS_HEAD.unpack_from(frame.payload)
            if at != n_read or not 0 < count <= _MAX_CLASS_FRAMES or at + count > n_frames:
                damaged(frame.where, "frames do not follow each other")
            raw = unpacked(memoryview(frame.payload)[_CLASS_HEAD.size:], count, frame.where)
            part = np.frombuffer(raw, np.uint8)
            if int(part.max()) >= len(names):
                damaged(frame.where, "a class has no name")
            parts.append(part)
            n_read += count
        if is_complete and n_read != n_frames:
            damaged(str(path), f"{n_read} frames of {n_frames}")
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
