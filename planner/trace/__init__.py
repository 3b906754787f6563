"""Page-hash traces: the versioned Parquet format, its writer and its reader."""

from planner.trace.reader import Trace, open_trace
from planner.trace.schema import (
    ADVISORY_FLAGS,
    NO_HASH,
    PAGE_BYTES,
    Guest,
    HashInfo,
    Mm,
    PageColumns,
    PageFlag,
    Region,
    RegionFlag,
    RegionInput,
    SnapshotInfo,
    empty_pages,
    is_ksm_compatible,
)
from planner.trace.writer import TraceWriter

__all__ = [
    "ADVISORY_FLAGS", "NO_HASH", "PAGE_BYTES", "Guest", "HashInfo", "Mm", "PageColumns",
    "PageFlag", "Region", "RegionFlag", "RegionInput", "SnapshotInfo", "Trace", "TraceWriter",
    "empty_pages", "is_ksm_compatible", "open_trace",
]
