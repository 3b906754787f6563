"""Page-hash dumps byte by byte, from the layout in the header's text (struct, no dtypes)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAGIC, END_MAGIC = b"PAGEHASH", b"PHASHEND"
PAGE, VMA, NAME, TRAILER = 1, 2, 3, 4


def page(address: int, digest: int = 1, flags: int = 1, frame_id: int = 0, node: int = 0) -> bytes:
    return struct.pack("<QQQIHH", address, digest, frame_id, flags, PAGE, node)


def vma(start: int, end: int, flags: int = 0x180000, n_names: int = 0) -> bytes:
    return struct.pack("<QQQIHH", start, end, 0, flags, VMA, n_names)


def name(text: bytes) -> list[bytes]:
    """The slots of a name."""
    return [struct.pack("<24sIHH", text[at:at + 24], len(text), NAME, index)
            for index, at in enumerate(range(0, len(text), 24))]


@dataclass
class DumpBuilder:
    """A dump of `slots`; every field of header and trailer can be set wrong."""

    slots: list[bytes] = field(default_factory=list)
    magic: bytes = MAGIC
    abi: tuple[int, int] = (1, 0)
    #: Bytes that a later minor appends to the header, each slot and the trailer.
    longer: tuple[int, int, int] = (0, 0, 0)
    page_bytes: int = 4096
    algorithm: int = 1
    hash_bits: int = 64
    key_id: int = 0x0958525D
    zero_hash: int = 0xB57E91CF4CD4465D
    session_id: int = 77
    mm_id: int = 5
    start: int = 0
    end: int = 1 << 47
    start_ns: int = 1_700_000_000_000_000_000
    end_ns: int = 1_700_000_000_100_000_000
    pid: int = 7
    flags: int = 0
    header_reserved: int = 0
    end_magic: bytes = END_MAGIC
    status: int = 0
    trailer_type: int = TRAILER
    trailer_reserved: int = 0
    walked_to: int | None = None
    skipped: dict[int, int] = field(default_factory=dict)
    #: Added to what the trailer counts.
    off: dict[str, int] = field(default_factory=dict)

    def map(self, start: int, end: int, *pages: bytes, flags: int = 0x180000,
            text: bytes = b"") -> DumpBuilder:
        """A mapping with its name and pages."""
        names = name(text)
        self.slots += [vma(start, end, flags, len(names)), *names, *pages]
        return self

    def header(self) -> bytes:
        more = self.longer
        return struct.pack(
            "<8sHHIIIIIIIQQQQQQII4Q", self.magic, *self.abi, 128 + more[0], 32 + more[1],
            192 + more[2], self.page_bytes, self.algorithm, self.hash_bits, self.key_id,
            self.zero_hash, self.session_id, self.mm_id, self.start, self.end, self.start_ns,
            self.pid, self.flags, self.header_reserved, 0, 0, 0) + b"\xa5" * more[0]

    def trailer(self) -> bytes:
        types = [struct.unpack_from("<H", slot, 28)[0] for slot in self.slots]
        n_hashed = sum(not struct.unpack_from("<I", slot, 24)[0] & 0x8380
                       for slot, kind in zip(self.slots, types, strict=True) if kind == PAGE)
        counts = {"n_pages": types.count(PAGE), "n_hashed": n_hashed, "n_vmas": types.count(VMA),
                  "n_names": types.count(NAME)}
        for key, by in self.off.items():
            counts[key] += by
        walked_to = self.end if self.walked_to is None else self.walked_to
        return struct.pack(
            "<8sQQIHHQQQQQQQQ12Q", self.end_magic, self.end_ns, counts["n_pages"], self.status,
            self.trailer_type, self.trailer_reserved, self.start_ns, walked_to,
            counts["n_hashed"], counts["n_vmas"], counts["n_names"], 160_000, 400_000, 9,
            *(self.skipped.get(i, 0) for i in range(12))) + b"\x5a" * self.longer[2]

    def build(self) -> bytes:
        return self.header() + b"".join(
            slot + b"\xc3" * self.longer[1] for slot in self.slots) + self.trailer()
