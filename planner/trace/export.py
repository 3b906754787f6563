"""A snapshot as one flat table, for other tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from planner.trace.reader import Trace

__all__ = ["FORMATS", "export_pages"]

FORMATS = ("csv", "arrow")
_SCHEMA = pa.schema([
    ("snapshot_id", pa.int32()), ("guest", pa.string()), ("mm_id", pa.int32()),
    ("vpn", pa.int64()), ("hash", pa.uint64()), ("flags", pa.uint32()),
    ("frame_id", pa.int32()), ("numa_node", pa.int8()),
])


def export_pages(trace: Trace, snapshot_id: int, form: str, stream: IO[bytes]) -> int:
    """Write the pages of a snapshot to `stream` as `csv` or `arrow`; returns how many.

    One mm is in memory at a time. Null is an empty CSV field: a page without a hash, a frame
    that is mapped once, an unknown NUMA node.
    """
    n_pages = 0
    make = pa_csv.CSVWriter if form == "csv" else pa.ipc.new_file
    with make(stream, _SCHEMA) as writer:
        for batch in _batches(trace, snapshot_id):
            writer.write_batch(batch)
            n_pages += batch.num_rows
    return n_pages


def _batches(trace: Trace, snapshot_id: int) -> Iterator[pa.RecordBatch]:
    names = {mm.mm_id: trace.guests[mm.guest_id].name for mm in trace.mms}
    for mm_id, pages in trace.iter_mm_pages(snapshot_id):
        n_pages = len(pages)
        yield pa.record_batch([
            pa.array(np.full(n_pages, snapshot_id, np.int32)),
            pa.array([names[mm_id]] * n_pages, pa.string()),
            pa.array(np.full(n_pages, mm_id, np.int32)),
            pa.array(pages.vpn), pa.array(pages.hash, mask=~pages.has_hash),
            pa.array(pages.flags), pa.array(pages.frame_id, mask=pages.frame_id < 0),
            pa.array(pages.numa_node, mask=pages.numa_node < 0),
        ], schema=_SCHEMA)
