"""The bytes of a page-hash dump: kmod/include/uapi/planner/pagehash.h in Python.

The header is the definition and the document; this file mirrors it and holds no logic.
tests/test_abi.py compiles the header and compares every size, offset and constant. All integers
are little-endian. The bits of pages and mappings are PageFlag and RegionFlag of the trace schema.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

__all__ = [
    "ABI_MAJOR", "ABI_MINOR", "ALGORITHM_XXH64_SIPHASH24", "END_OF_MEMORY", "HASH_BITS", "HEADER",
    "HEADER_SIZE", "IOC_ABI", "IOC_START", "MAGIC", "NAME", "NODE_UNKNOWN", "PAGE", "PAGE_ALL",
    "PAGE_BYTES", "PAGE_NO_HASH", "RECORD_SIZE", "SKIP_MAX", "SKIP_N", "START", "START_ALL",
    "START_SIZE", "TRAILER", "TRAILER_MAGIC", "TRAILER_SIZE", "VMA", "VMA_ALL",
    "VMA_INCOMPATIBLE", "Skip", "SlotType", "StartFlag", "Status",
]

ABI_MAJOR = 1
ABI_MINOR = 0

MAGIC = 0x4853414845474150
TRAILER_MAGIC = 0x444E454853414850
PAGE_BYTES = 4096
HASH_BITS = 64
ALGORITHM_XXH64_SIPHASH24 = 1

IOC_ABI = 0xB900
IOC_START = 0xB901
END_OF_MEMORY = 0xFFFFFFFFFFFFF000


class StartFlag(IntFlag):
    """`flags` of START: what to leave out."""

    NO_HASH = 1 << 0
    ANON = 1 << 1
    COMPATIBLE = 1 << 2
    ADVISED = 1 << 3


START_ALL = 0xF


class SlotType(IntEnum):
    """What a slot is."""

    PAGE = 1
    VMA = 2
    NAME = 3
    TRAILER = 4


PAGE_ALL = 0x8007FFFF
PAGE_NO_HASH = 0x00008380
VMA_ALL = 0x003FFFFF
VMA_INCOMPATIBLE = 0x000003FE
NODE_UNKNOWN = 0xFFFF


class Status(IntEnum):
    """`status` of the trailer."""

    COMPLETE = 0
    EXITED = 1


class Skip(IntEnum):
    """Index into `skipped` of the trailer."""

    HUGETLB = 0
    PFNMAP = 1
    SECRET = 2
    REQUEST = 3
    FILE = 4
    MARKER = 5
    SPECIAL = 6
    DEVICE = 7
    BUSY = 8


SKIP_N = 9
SKIP_MAX = 12

START = np.dtype([
    ("size", "<u4"), ("flags", "<u4"), ("pid", "<u4"), ("reserved0", "<u4"), ("start", "<u8"),
    ("end", "<u8"), ("key", "u1", 16), ("reserved", "<u8", 2),
])
HEADER = np.dtype([
    ("magic", "<u8"), ("abi_major", "<u2"), ("abi_minor", "<u2"), ("header_size", "<u4"),
    ("record_size", "<u4"), ("trailer_size", "<u4"), ("page_bytes", "<u4"), ("algorithm", "<u4"),
    ("hash_bits", "<u4"), ("key_id", "<u4"), ("zero_hash", "<u8"), ("session_id", "<u8"),
    ("mm_id", "<u8"), ("start", "<u8"), ("end", "<u8"), ("start_ns", "<u8"), ("pid", "<u4"),
    ("flags", "<u4"), ("reserved", "<u8", 4),
])
PAGE = np.dtype([
    ("address", "<u8"), ("hash", "<u8"), ("frame_id", "<u8"), ("flags", "<u4"), ("type", "<u2"),
    ("node", "<u2"),
])
VMA = np.dtype([
    ("start", "<u8"), ("end", "<u8"), ("reserved", "<u8"), ("flags", "<u4"), ("type", "<u2"),
    ("n_names", "<u2"),
])
NAME = np.dtype([("text", "u1", 24), ("length", "<u4"), ("type", "<u2"), ("index", "<u2")])
TRAILER = np.dtype([
    ("magic", "<u8"), ("end_ns", "<u8"), ("n_pages", "<u8"), ("status", "<u4"), ("type", "<u2"),
    ("reserved0", "<u2"), ("start_ns", "<u8"), ("walked_to", "<u8"), ("n_hashed", "<u8"),
    ("n_vmas", "<u8"), ("n_names", "<u8"), ("lock_max_ns", "<u8"), ("lock_total_ns", "<u8"),
    ("n_locks", "<u8"), ("skipped", "<u8", SKIP_MAX),
])

START_SIZE = 64
HEADER_SIZE = 128
RECORD_SIZE = 32
TRAILER_SIZE = 192
