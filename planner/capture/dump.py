"""A page-hash dump from bytes to checked arrays.

The format is kmod/include/uapi/planner/pagehash.h. Nothing of a dump is believed before it is
checked: a dump that was cut short, damaged or made by another version gives a DataError that says
what is wrong, never a smaller or another dump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.capture import abi
from planner.capture.procfs import Vma
from planner.errors import DataError
from planner.trace.schema import NO_HASH, PageFlag

__all__ = ["Dump", "DumpDecoder", "DumpHeader", "DumpPages"]

_PAGE_SHIFT = 12
#: No header, slot or trailer of a later minor is larger: more is damage.
_MOST_BYTES = 1 << 16
_NAME_BYTES = abi.NAME["text"].itemsize
#: Longest name of a mapping: a file name (255 bytes), with room for what the kernel puts around.
_LONGEST_NAME = 4096
#: Never set by the module, and not to be taken from it.
_FOREIGN_FLAGS = PageFlag.GONE | PageFlag.HUGETLB


@dataclass(frozen=True, slots=True)
class DumpHeader:
    """What a dump says of itself before its pages.

    `abi` is (major, minor). `key_id` is 8 hex digits, `zero_hash` the hash of a page of zeros.
    Frame ids of dumps compare where `session_id` is equal; two dumps of a session with one `mm_id`
    are of one address space. `flags` are StartFlag bits, `start_ns` is Unix time.
    """

    abi: tuple[int, int]
    key_id: str
    zero_hash: int
    session_id: int
    mm_id: int
    start: int
    end: int
    start_ns: int
    pid: int
    flags: int


@dataclass(frozen=True, slots=True, eq=False)
class DumpPages:
    """Pages of a dump: equally long arrays, `vpn` ascending.

    `vpn` i64, `hash` u64 (0 where there is none), `flags` u32 (PageFlag), `frame_id` u64 (equal
    on one frame, 0 where it is mapped once or there is none), `numa_node` i8 (-1 unknown).
    """

    vpn: npt.NDArray[np.int64]
    hash: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint32]
    frame_id: npt.NDArray[np.uint64]
    numa_node: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.vpn)


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """A whole, checked dump of one address space.

    `vmas` ascend and do not overlap; every page lies in one. `is_complete` is false when the
    address space went away. `skipped` counts pages left out by reason (lower-case names of
    abi.Skip). Times in ns: the walk's end (Unix time), the longest and the total hold of the
    mmap lock, which was taken `n_locks` times.
    """

    header: DumpHeader
    vmas: tuple[Vma, ...]
    pages: DumpPages
    is_complete: bool
    skipped: Mapping[str, int]
    end_ns: int
    walked_to: int
    lock_max_ns: int
    lock_total_ns: int
    n_locks: int


@dataclass(slots=True)
class _OpenVma:
    """A mapping slot and what came of its name."""

    start: int
    end: int
    flags: int
    n_names: int
    n_named: int = 0
    length: int = 0
    text: bytearray = field(default_factory=bytearray)


class DumpDecoder:
    """Takes a dump's bytes in pieces of any size and checks them as they come.

    `feed` each piece, then `finish`. `where` names the dump in errors. Raises DataError for a
    dump that is cut short, damaged or of another version; nothing of it is to be used then.
    """

    def __init__(self, where: str = "page-hash dump") -> None:
        self._where = where
        self._pending = bytearray()
        self._sizes = (abi.HEADER_SIZE, abi.RECORD_SIZE, abi.TRAILER_SIZE)
        #: Whether all of the dump's minor version is known here.
        self._is_known_minor = True
        self.header: DumpHeader | None = None
        self._vmas: list[_OpenVma] = []
        self._parts: list[DumpPages] = []
        self._n_pages = self._n_names = self._n_hashed = 0
        #: Of the last slot: its address, and whether it was a page.
        self._last_address = -1
        self._last_is_page = False

    def feed(self, data: bytes | bytearray | memoryview) -> int:
        """Take the next bytes of the stream; returns how many pages they completed."""
        self._pending += data
        if self.header is None:
            if len(self._pending) < abi.HEADER_SIZE:
                return 0
            self.header = self._read_header()
            if len(self._pending) < self._sizes[0]:
                self.header = None
                return 0
            del self._pending[:self._sizes[0]]
        _, record_size, trailer_size = self._sizes
        # What may be the trailer is kept back: its later slots have no type of their own.
        n_slots = (len(self._pending) - trailer_size) // record_size
        if n_slots <= 0:
            return 0
        n_bytes = n_slots * record_size
        raw = np.frombuffer(bytes(self._pending[:n_bytes]), np.uint8).reshape(n_slots, record_size)
        del self._pending[:n_bytes]
        slots = np.ascontiguousarray(raw[:, :abi.RECORD_SIZE]).view(abi.PAGE)[:, 0]
        return self._take_slots(slots)

    def finish(self) -> Dump:
        """The dump, after its last byte."""
        trailer_size = self._sizes[2]
        if self.header is None or len(self._pending) != trailer_size:
            raise self._cut_short()
        trailer = np.frombuffer(bytes(self._pending[:abi.TRAILER_SIZE]), abi.TRAILER)[0]
        if trailer["magic"] != abi.TRAILER_MAGIC or trailer["type"] != abi.SlotType.TRAILER:
            raise self._cut_short()
        self._end_of_names()
        self._check_trailer(self.header, trailer)
        skipped = {reason.name.lower(): int(trailer["skipped"][reason]) for reason in abi.Skip
                   if trailer["skipped"][reason]}
        parts = self._parts or [_pages_of(np.zeros(0, abi.PAGE))]
        pages = DumpPages(*(np.concatenate([getattr(part, name) for part in parts])
                            for name in ("vpn", "hash", "flags", "frame_id", "numa_node")))
        return Dump(
            self.header, tuple(self._cut_vmas()), pages,
            int(trailer["status"]) == abi.Status.COMPLETE, skipped, int(trailer["end_ns"]),
            int(trailer["walked_to"]), int(trailer["lock_max_ns"]), int(trailer["lock_total_ns"]),
            int(trailer["n_locks"]))

    def _read_header(self) -> DumpHeader:
        raw = np.frombuffer(bytes(self._pending[:abi.HEADER_SIZE]), abi.HEADER)[0]
        if raw["magic"] != abi.MAGIC:
            raise self._error("not a page-hash dump (its first eight bytes are others)",
                              "read it from the device of the module ksm_planner")
        version = (int(raw["abi_major"]), int(raw["abi_minor"]))
        if version[0] != abi.ABI_MAJOR:
            side = "ksm-planner" if version[0] > abi.ABI_MAJOR else "the module ksm_planner"
            raise self._error(
                f"a dump of ABI {version[0]}.{version[1]}; this version reads {abi.ABI_MAJOR}.x",
                f"upgrade {side}, so that both have one major version")
        self._is_known_minor = version[1] <= abi.ABI_MINOR
        self._sizes = sizes = (int(raw["header_size"]), int(raw["record_size"]),
                               int(raw["trailer_size"]))
        least = (abi.HEADER_SIZE, abi.RECORD_SIZE, abi.TRAILER_SIZE)
        are_sane = sizes[1] > 0 and all(
            low <= size <= _MOST_BYTES and size % sizes[1] == 0
            for low, size in zip(least, sizes, strict=True))
        if not are_sane or (self._is_known_minor and sizes != least):
            raise self._damaged("sizes of header, slots and trailer {}, {} and {}".format(*sizes))
        if (raw["algorithm"] != abi.ALGORITHM_XXH64_SIPHASH24 or raw["hash_bits"] != abi.HASH_BITS
                or raw["page_bytes"] != abi.PAGE_BYTES):
            raise self._error(
                f"hash algorithm {raw['algorithm']} of {raw['hash_bits']} bits over "
                f"{raw['page_bytes']} bytes is not known",
                "use the module that belongs to this version of ksm-planner")
        start, end = int(raw["start"]), int(raw["end"])
        if (start | end) % abi.PAGE_BYTES or start > end or end >= 1 << 63:
            raise self._damaged(f"range {start:#x}-{end:#x}")
        if self._is_known_minor and (
                raw["reserved"].any() or int(raw["flags"]) & ~abi.START_ALL):
            raise self._damaged("bits of the header that this version does not have")
        return DumpHeader(
            version, f"{int(raw['key_id']):08x}", int(raw["zero_hash"]), int(raw["session_id"]),
            int(raw["mm_id"]), start, end, int(raw["start_ns"]), int(raw["pid"]),
            int(raw["flags"]))

    def _take_slots(self, slots: npt.NDArray[Any]) -> int:
        """Check and keep whole slots (of dtype abi.PAGE, whatever they are)."""
        types = slots["type"]
        known = (types >= abi.SlotType.PAGE) & (types <= abi.SlotType.NAME)
        if not known.all():
            odd = int(types[~known][0])
            if self._is_known_minor or odd in (0, abi.SlotType.TRAILER):
                raise self._damaged(f"a slot of type {odd} amid the pages")
            slots, types = slots[known], types[known]
        is_page = types == abi.SlotType.PAGE
        is_vma = types == abi.SlotType.VMA
        first_vma = len(self._vmas)
        self._take_names(slots, np.flatnonzero(~is_page))
        # A name's bytes are no address.
        has_place = is_page | is_vma
        self._check_order(slots["address"][has_place], is_page[has_place])
        pages = slots[is_page]
        if len(pages):
            vmas = self._vmas[max(first_vma - 1, 0):]
            which = np.cumsum(is_vma)[is_page] - (1 if first_vma == 0 else 0)
            self._check_pages(pages, vmas, which)
            self._parts.append(_pages_of(pages))
            self._n_pages += len(pages)
        return len(pages)

    def _take_names(self, slots: npt.NDArray[Any], others: npt.NDArray[np.intp]) -> None:
        """Mappings and their names, at the indices `others` among the slots."""
        assert self.header is not None
        expected = 0
        for at in others.tolist():
            is_naming = bool(self._vmas) and self._vmas[-1].n_named < self._vmas[-1].n_names
            if is_naming and at != expected:
                raise self._damaged("a page where the rest of a name should be")
            slot = slots[at:at + 1]
            if slot["type"][0] == abi.SlotType.VMA:
                if is_naming:
                    raise self._damaged("a mapping where the rest of a name should be")
                self._begin_vma(slot.view(abi.VMA)[0])
            else:
                if not is_naming:
                    raise self._damaged("a name that belongs to no mapping")
                self._take_name(self._vmas[-1], slot.view(abi.NAME)[0])
            expected = at + 1
        is_naming = bool(self._vmas) and self._vmas[-1].n_named < self._vmas[-1].n_names
        if is_naming and expected < len(slots):
            raise self._damaged("a page where the rest of a name should be")

    def _begin_vma(self, raw: Any) -> None:
        assert self.header is not None
        self._end_of_names()
        start, end, flags = int(raw["start"]), int(raw["end"]), int(raw["flags"])
        if (start | end) % abi.PAGE_BYTES or not (
                self.header.start <= start < end <= self.header.end):
            raise self._damaged(f"a mapping {start:#x}-{end:#x}")
        if self._is_known_minor and (raw["reserved"] or flags & ~abi.VMA_ALL):
            raise self._damaged("bits of a mapping that this version does not have")
        self._vmas.append(_OpenVma(start, end, flags & abi.VMA_ALL, int(raw["n_names"])))

    def _take_name(self, vma: _OpenVma, raw: Any) -> None:
        length = int(raw["length"])
        if raw["index"] != vma.n_named or (vma.n_named and length != vma.length):
            raise self._damaged("the parts of a name do not belong together")
        if not 0 < length <= _LONGEST_NAME or -(-length // _NAME_BYTES) != vma.n_names:
            raise self._damaged(f"a name of {length} bytes in {vma.n_names} slots")
        vma.length = length
        vma.n_named += 1
        vma.text += raw["text"].tobytes()
        self._n_names += 1

    def _end_of_names(self) -> None:
        """The last mapping's name is whole."""
        if self._vmas:
            vma = self._vmas[-1]
            if vma.n_named < vma.n_names or any(vma.text[vma.length:]):
                raise self._damaged("a name is not whole")

    def _check_order(self, addresses: npt.NDArray[np.uint64],
                     is_page: npt.NDArray[np.bool_]) -> None:
        """Pages and mappings ascend strictly, but for a mapping's first page at its start."""
        if not len(addresses):
            return
        # All are below 2^63: mappings were checked, and pages are compared with theirs after.
        here = addresses.astype(np.int64)
        before = np.concatenate([[self._last_address], here[:-1]])
        was_page = np.concatenate([[self._last_is_page], is_page[:-1]])
        ascends = (here > before) | ((here == before) & is_page & ~was_page)
        if not ascends.all():
            at = int(np.flatnonzero(~ascends)[0])
            raise self._damaged(f"address {int(addresses[at]):#x} is out of order")
        self._last_address, self._last_is_page = int(here[-1]), bool(is_page[-1])

    def _check_pages(self, pages: npt.NDArray[Any], vmas: list[_OpenVma],
                     which: npt.NDArray[np.intp]) -> None:
        """Pages of dtype abi.PAGE[n], each in the mapping `vmas[which]`."""
        if not vmas or int(which[0]) < 0:
            raise self._damaged("a page before the first mapping")
        address, flags = pages["address"], pages["flags"]
        starts = np.array([vma.start for vma in vmas], np.uint64)
        ends = np.array([vma.end for vma in vmas], np.uint64)
        is_inside = (address >= starts[which]) & (address < ends[which])
        if not is_inside.all() or (address % np.uint64(abi.PAGE_BYTES)).any():
            raise self._damaged("a page that is not in its mapping")
        foreign = int(_FOREIGN_FLAGS) | ~abi.PAGE_ALL & 0xFFFFFFFF
        if not self._is_known_minor:
            foreign = int(PageFlag.GONE)
        if (flags & np.uint32(foreign)).any():
            raise self._damaged("a page with a flag that it cannot have")
        has_no_hash = (flags & np.uint32(NO_HASH)) != 0
        if (pages["hash"][has_no_hash] != 0).any():
            raise self._damaged("a page that was not hashed and has a hash")
        self._n_hashed += len(pages) - int(has_no_hash.sum())

    def _check_trailer(self, header: DumpHeader, trailer: Any) -> None:
        found = {"n_pages": self._n_pages, "n_vmas": len(self._vmas), "n_names": self._n_names,
                 "n_hashed": self._n_hashed, "start_ns": header.start_ns}
        for name, n_found in found.items():
            if int(trailer[name]) != n_found:
                raise self._damaged(f"its end says {name} {int(trailer[name])}, it has {n_found}")
        walked_to = int(trailer["walked_to"])
        if walked_to % abi.PAGE_BYTES or not header.start <= walked_to <= header.end:
            raise self._damaged(f"its end says it goes to {walked_to:#x}")
        if self._parts and int(self._parts[-1].vpn[-1]) >= walked_to >> _PAGE_SHIFT:
            raise self._damaged("it has pages beyond where it says it ends")
        if int(trailer["status"]) not in (abi.Status.COMPLETE, abi.Status.EXITED):
            raise self._damaged(f"status {int(trailer['status'])}")
        if self._is_known_minor and (trailer["reserved0"] or trailer["skipped"][abi.SKIP_N:].any()):
            raise self._damaged("bits of the trailer that this version does not have")
        if (trailer["skipped"] >> np.uint64(63)).any():
            raise self._damaged("a count of skipped pages")

    def _cut_vmas(self) -> list[Vma]:
        """The mappings, each cut where the next one begins: it changed while it was walked."""
        cut = []
        for i, vma in enumerate(self._vmas):
            end = min(vma.end, self._vmas[i + 1].start) if i + 1 < len(self._vmas) else vma.end
            name = bytes(vma.text[:vma.length]).decode(errors="replace")
            cut.append(Vma(vma.start >> _PAGE_SHIFT, end >> _PAGE_SHIFT, vma.flags, name))
        return cut

    def _cut_short(self) -> DataError:
        return self._error("the dump is cut short: it has no end mark", "take it again")

    def _damaged(self, what: str) -> DataError:
        return self._error(f"the dump is damaged: {what}",
                           "take it again, and report it if it is so again")

    def _error(self, what: str, instead: str) -> DataError:
        return DataError(what, where=self._where, instead=instead)


def _pages_of(slots: npt.NDArray[Any]) -> DumpPages:
    """Columns of page slots (of dtype abi.PAGE)."""
    node = slots["node"]
    return DumpPages(
        (slots["address"] >> np.uint64(_PAGE_SHIFT)).astype(np.int64),
        slots["hash"].astype(np.uint64), slots["flags"].astype(np.uint32) & np.uint32(abi.PAGE_ALL),
        slots["frame_id"].astype(np.uint64),
        # The trace keeps nodes in a signed byte; UNKNOWN is above it.
        np.where(node <= 127, node, 0xFFFF).astype(np.uint16).astype(np.int16).astype(np.int8))
