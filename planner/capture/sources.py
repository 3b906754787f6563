"""Where pages come from: the kernel module's device or /proc. A session drives either.

A source answers one question: what are the mappings and pages of this process now. Both give the
same hashes, frame ids and flags; docs/capture.md names the flags that only one of them can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from planner.capture import abi
from planner.capture.dump import Dump, DumpDecoder
from planner.capture.pages import FrameIds, PageCapture, joined
from planner.capture.procfs import (
    FrameTable,
    NumaMap,
    Pagemap,
    ProcRoot,
    TargetExitedError,
    Vma,
    marks_ksm_exactly,
    read_vmas,
    start_ticks,
)
from planner.capture.reader import PageReader
from planner.capture.targets import Process
from planner.errors import DataError
from planner.kernels.pagehash import (
    ALGORITHM,
    HASH_BITS,
    PAGE_BYTES,
    hash_pages,
    key_words,
    zero_hash,
)
from planner.sitekey import SiteKey
from planner.trace.schema import HashInfo, PageColumns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.capture.device import PagehashDevice

__all__ = ["SOURCES", "KmodSource", "MmPages", "ProcSource", "Source", "open_source"]

#: What --source takes: the module where it is loaded else /proc, or one of them.
SOURCES = ("auto", "kmod", "proc")

#: Bytes of a dump read at once: the records of 16 MiB, some milliseconds.
_READ_BYTES = 4096 * abi.RECORD_SIZE
#: What the module left out that a reader may miss. The others are what was not asked for, and
#: places that hold no page.
_REPORTED_SKIPS = ("hugetlb", "secret", "special", "device", "busy")
_START_FLAGS = {
    "advised": abi.StartFlag.ANON | abi.StartFlag.COMPATIBLE | abi.StartFlag.ADVISED,
    "anon": abi.StartFlag.ANON | abi.StartFlag.COMPATIBLE,
    "all": abi.StartFlag(0),
}


@dataclass(frozen=True, slots=True)
class MmPages:
    """One address space: its mappings and listed pages; `is_whole` unless it went away."""

    vmas: Sequence[Vma]
    pages: PageColumns
    is_whole: bool


class Source(Protocol):
    """What a session needs of a source.

    `name` and `details` go into the trace's provenance, `hash_info` says how pages are hashed.
    `pace` is called with the number of pages done after each piece of work and may sleep.
    `skipped` counts pages left out by reason.
    """

    name: str
    hash_info: HashInfo
    pace: Callable[[int], None]
    skipped: Counter[str]

    def details(self) -> Mapping[str, Any]:
        """More for the provenance."""

    def begin_snapshot(self) -> None:
        """Call before the processes of each snapshot."""

    def capture(self, process: Process) -> MmPages | None:
        """The pages of a process; None when its address space was captured in this snapshot.

        Raises TargetExitedError when it is gone and nothing of it was read, MachineError without
        permission, DataError when the source answers nonsense.
        """


class ProcSource:
    """Through /proc: smaps, pagemap, kpageflags, kpagecount and mem."""

    name = "proc"

    def __init__(self, root: ProcRoot, frames: FrameTable, key: SiteKey, include: str) -> None:
        self._root = root
        keys = key_words(key.key)
        self.hash_info = HashInfo(ALGORITHM, HASH_BITS, key.key_id, zero_hash(keys))
        self._pages = PageCapture(frames, NumaMap(root), FrameIds(), keys, include,
                                  lambda n_pages: self.pace(n_pages),
                                  marks_ksm_exactly(root, frames))
        self.pace: Callable[[int], None] = lambda n_pages: None
        self.skipped: Counter[str] = Counter()
        # Compile before the first snapshot's clock starts.
        hash_pages(np.zeros((1, PAGE_BYTES), np.uint8), keys)

    def details(self) -> Mapping[str, Any]:
        """Nothing: /proc has no version."""
        return {}

    def begin_snapshot(self) -> None:
        """Frame ids of the snapshot before the last are forgotten."""
        self._pages.skipped = self.skipped
        self._pages.frame_ids.begin_snapshot()

    def capture(self, process: Process) -> MmPages | None:
        """The pages of a process; never None, /proc does not tell who shares an address space."""
        root, parts = self._root, list[PageColumns]()
        vmas = read_vmas(root, process.pid)
        try:
            with Pagemap(root, process.pid) as pagemap, \
                    PageReader(root, process.pid, may_pin=root.proc == Path("/proc")) as reader:
                # Opened files stay with the address space they were opened on, so a pid that was
                # given away before now would show here.
                if start_ticks(root, process.pid) != process.start_ticks:
                    raise TargetExitedError
                self._pages.capture(pagemap, reader, vmas, parts)
        except TargetExitedError:
            if not parts:
                raise
            return MmPages(vmas, joined(parts), is_whole=False)
        return MmPages(vmas, joined(parts), is_whole=True)


class KmodSource:
    """Through the device of the module ksm_planner: one dump a process."""

    name = "kmod"

    def __init__(self, root: ProcRoot, device: PagehashDevice, key: SiteKey, include: str) -> None:
        self._root = root
        self._device = device
        self._key = key.key
        self.hash_info = HashInfo(ALGORITHM, HASH_BITS, key.key_id, zero_hash(key_words(key.key)))
        self._flags = int(_START_FLAGS[include])
        self._frame_ids = FrameIds()
        self._seen_mms: set[int] = set()
        self.pace: Callable[[int], None] = lambda n_pages: None
        self.skipped: Counter[str] = Counter()

    def details(self) -> Mapping[str, Any]:
        """The ABI version of the module."""
        return {"abi": list(self._device.abi)}

    def begin_snapshot(self) -> None:
        """Frame ids of the snapshot before the last are forgotten."""
        self._seen_mms = set()
        self._frame_ids.begin_snapshot()

    def capture(self, process: Process) -> MmPages | None:
        """The pages of a process; None when another process with its memory was captured."""
        device = self._device
        device.start(process.pid, self._key, self._flags)
        # The dump holds the address space the pid had then: a pid given away shows here.
        if start_ticks(self._root, process.pid) != process.start_ticks:
            raise TargetExitedError
        where = f"{device.path}, process {process.pid}"
        decoder = DumpDecoder(where)
        while data := device.read(_READ_BYTES):
            n_pages = decoder.feed(data)
            header = decoder.header
            if header is not None and header.mm_id in self._seen_mms:
                return None
            self.pace(n_pages)
        dump = decoder.finish()
        expected = (self.hash_info.key_id, self.hash_info.zero_hash)
        if (dump.header.key_id, dump.header.zero_hash) != expected:
            raise DataError("the module hashes otherwise than ksm-planner (its zero hash or key "
                            "id differ)", where=where, instead="report it; use --source proc")
        self._seen_mms.add(dump.header.mm_id)
        if not dump.is_complete and not len(dump.pages):
            raise TargetExitedError
        for reason in _REPORTED_SKIPS:
            if reason in dump.skipped:
                self.skipped[f"{reason}_pages"] += dump.skipped[reason]
        return MmPages(dump.vmas, self._columns(dump), dump.is_complete)

    def _columns(self, dump: Dump) -> PageColumns:
        pages = dump.pages
        frame_id = np.full(len(pages), -1, np.int32)
        is_shared = pages.frame_id != 0
        if is_shared.any():
            frame_id[is_shared] = self._frame_ids.of(pages.frame_id[is_shared],
                                                     pages.hash[is_shared])
        return PageColumns(pages.vpn, pages.hash, pages.flags, frame_id, pages.numa_node)


@contextmanager
def open_source(wanted: str, root: ProcRoot, key: SiteKey, include: str) -> Iterator[Source]:
    """The source `wanted` (of SOURCES), open for the time of a capture.

    Raises MachineError when it cannot serve here. "auto" is the module where its device exists; it
    does not fall back when the device cannot be used, so that nobody takes one for the other.
    """
    if wanted == "kmod" or (wanted == "auto" and root.device.exists()):
        # Not imported where there is no such device: it needs Linux.
        from planner.capture.device import PagehashDevice

        with PagehashDevice(root.device) as device:
            yield KmodSource(root, device, key, include)
    else:
        with FrameTable(root) as frames:
            yield ProcSource(root, frames, key, include)
