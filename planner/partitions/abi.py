"""The bytes of Selective KSM's ioctls: kmod/include/uapi/planner/ksm_partition.h in Python.

The header is the definition and the document; this file mirrors it and holds no logic.
tests/test_partition_abi.py compiles the header and compares every size, offset and constant. All
integers are little-endian.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

__all__ = [
    "ABI_MAJOR", "ABI_MINOR", "COST_MAX", "COST_N", "COUNTERS", "COUNTERS_SIZE", "COUNTS",
    "COUNTS_SIZE", "IOC_ABI", "IOC_ATTACH", "IOC_COUNTERS", "IOC_DETACH", "IOC_MERGE", "IOC_OPEN",
    "IOC_UNLINK", "IOC_UNMERGE", "IS_ALL", "KSM_CREAT", "KSM_EXCL", "KSM_SYNC", "MAX", "NAME_MAX",
    "OPEN", "OPEN_SIZE", "PAGE_BYTES", "RANGE", "RANGE_SIZE", "REFUSED_MAX", "REFUSED_N", "UNLINK",
    "UNLINK_SIZE", "Cost", "Refusal", "State",
]

ABI_MAJOR = 1
ABI_MINOR = 0

PAGE_BYTES = 4096
NAME_MAX = 63
MAX = 1024

KSM_SYNC = 0x10
KSM_CREAT = 0x20
KSM_EXCL = 0x40

IOC_ABI = 0xB940
IOC_OPEN = 0xB941
IOC_UNLINK = 0xB942
IOC_MERGE = 0xB943
IOC_UNMERGE = 0xB944
IOC_ATTACH = 0xB945
IOC_DETACH = 0xB946
IOC_COUNTERS = 0xB947


class Refusal(IntEnum):
    """Why a page was not merged: index into `refused`."""

    MAPPING = 0
    HUGETLB = 1
    LOCKED = 2
    USERFAULTFD = 3
    MERGEABLE = 4
    THP = 5
    SHARED = 6
    ZERO_PAGE = 7
    SWAPPED = 8
    PINNED = 9
    BUSY = 10
    CHANGED = 11
    FOREIGN = 12
    SPECIAL = 13
    LIMIT = 14
    MEMORY = 15


REFUSED_N = 16
REFUSED_MAX = 20


class Cost(IntEnum):
    """What takes time: index into `cost_n` and `cost_ns`."""

    WALK = 0
    HASH = 1
    COMPARE = 2
    COPY = 3
    MERGE = 4
    REFUSE = 5
    UNMERGE = 6


COST_N = 7
COST_MAX = 8


class State(IntFlag):
    """`flags` of the counters."""

    SYNC = 1 << 0
    LINKED = 1 << 1


IS_ALL = 0x3

OPEN = np.dtype([
    ("size", "<u4"), ("flags", "<u4"), ("mode", "<u4"), ("reserved", "<u4"), ("name", "<u8"),
])
UNLINK = np.dtype([("size", "<u4"), ("flags", "<u4"), ("name", "<u8")])
RANGE = np.dtype([
    ("size", "<u4"), ("pid", "<u4"), ("address", "<u8"), ("length", "<u8"), ("flags", "<u4"),
    ("counts_size", "<u4"), ("counts", "<u8"),
])
COUNTS = np.dtype([
    ("walked_to", "<u8"), ("n_requested", "<u8"), ("n_absent", "<u8"), ("n_already", "<u8"),
    ("n_merged", "<u8"), ("n_candidates", "<u8"), ("n_volatile", "<u8"), ("n_partners", "<u8"),
    ("n_unmerged", "<u8"), ("n_killed", "<u8"), ("total_ns", "<u8"),
    ("refused", "<u8", REFUSED_MAX), ("cost_n", "<u8", COST_MAX), ("cost_ns", "<u8", COST_MAX),
])
COUNTERS = np.dtype([
    ("size", "<u4"), ("flags", "<u4"), ("owner", "<u4"), ("group", "<u4"), ("mode", "<u4"),
    ("pages_to_scan", "<u4"), ("sleep_millisecs", "<u4"), ("n_ranges", "<u4"),
    ("pages_shared", "<u8"), ("pages_sharing", "<u8"), ("pages_unshared", "<u8"),
    ("pages_volatile", "<u8"), ("pages_scanned", "<u8"), ("full_scans", "<u8"), ("calls", "<u8"),
    ("n_merged", "<u8"), ("n_unmerged", "<u8"), ("n_killed", "<u8"),
    ("refused", "<u8", REFUSED_MAX), ("cost_n", "<u8", COST_MAX), ("cost_ns", "<u8", COST_MAX),
])

OPEN_SIZE = 24
UNLINK_SIZE = 16
RANGE_SIZE = 40
COUNTS_SIZE = 376
COUNTERS_SIZE = 400
