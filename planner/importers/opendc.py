"""The tasks of an OpenDC workload (docs/importing.md): Parquet, all versions of its schema.

OpenDC's readers take `submission_time` or, in old traces, `submissionTime`, and likewise
`cpu_count` or `maxCores` and `mem_capacity` or `requiredMemory`; the oldest traces have an end
instead of a duration. Times are timestamps or integer milliseconds of the Unix clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planner.errors import DataError
from planner.importers.arrivals import Found, Options
from planner.importers.common import open_regular
from planner.tables import UNREADABLE, unreadable
from planner.units import format_size

__all__ = ["read"]

_START = ("submission_time", "submissionTime", "start_time", "startTime")
_END = ("stop_time", "stopTime", "end_time", "endTime")
_CORES = ("cpu_count", "maxCores")
_MEMORY = ("mem_capacity", "requiredMemory")
_NS_PER_MS = 10**6
_MAX_ROWS = 20_000_000
_MAX_MEMORY_BYTES = 1 << 46

I64 = npt.NDArray[np.int64]


def read(path: Path, options: Options) -> Found:
    """The tasks of a file, or of `tasks.parquet` in a folder. Memory counts in
    `options.memory_unit_bytes`."""
    file = path / "tasks.parquet" if path.is_dir() else path
    table = _columns(file)
    names = table.column_names
    time_ns = _times(file, table, _one_of(file, names, _START))
    if "duration" in names:
        duration_ns = _times(file, table, "duration")
    else:
        duration_ns = _times(file, table, _one_of(file, names, ("duration", *_END))) - time_ns
    memory = _numbers(file, table, _one_of(file, names, _MEMORY))
    cores = _numbers(file, table, _one_of(file, names, _CORES))
    for name, values in (("duration", duration_ns), ("memory", memory), ("cores", cores),
                         ("submission time", time_ns)):
        if (values < 0).any():
            row = int(np.argmax(values < 0))
            raise DataError(f"{name} {values[row]} is negative", where=f"{file}: row {row}",
                            instead="correct the trace")
    is_too_large = memory > _MAX_MEMORY_BYTES / options.memory_unit_bytes
    if is_too_large.any():
        row = int(np.argmax(is_too_large))
        raise DataError(f"memory {memory[row]:g} would be more than "
                        f"{format_size(_MAX_MEMORY_BYTES)}", where=f"{file}: row {row}",
                        instead="say with --memory-unit what it counts in, such as 1KiB or 1B")
    memory_bytes = memory * options.memory_unit_bytes
    skipped = {"task without memory": int((memory_bytes < 1).sum()),
               "task that takes no time": int(((duration_ns < 1) & (memory_bytes >= 1)).sum())}
    kept = (memory_bytes >= 1) & (duration_ns >= 1)
    if len(kept) and not kept.any():
        raise DataError("no task has both memory and a duration", where=str(file),
                        instead="give a trace with mem_capacity and duration")
    sizes, flavour = np.unique(np.column_stack([cores[kept], memory_bytes[kept]]), axis=0,
                               return_inverse=True)
    n_kept = int(kept.sum())
    return Found({
        "time_ns": time_ns[kept], "duration_ns": duration_ns[kept],
        "censored_ns": np.full(n_kept, -1), "memory_bytes": memory_bytes[kept].astype(np.int64),
        "cores": cores[kept], "tenant": np.full(n_kept, -1), "flavour": flavour.reshape(-1),
    }, [f"{one:g}vcpu-{other / 2**20:g}mib" for one, other in sizes.tolist()], {
        "files": [file.name], "clock": "Unix time",
        "memory_unit_bytes": options.memory_unit_bytes,
    }, {reason: count for reason, count in skipped.items() if count},
        ["tasks name no tenants: every guest comes by itself"])


def _columns(file: Path) -> pa.Table:
    wanted = {*_START, *_END, *_CORES, *_MEMORY, "duration"}
    with open_regular(file) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        try:
            with pq.ParquetFile(stream) as handle:
                names = [name for name in handle.schema_arrow.names if name in wanted]
                if handle.metadata.num_rows > _MAX_ROWS:
                    raise DataError(f"more than {_MAX_ROWS} tasks", where=str(file),
                                    instead="import a part of the trace")
                if len(set(names)) != len(names):
                    raise DataError("two columns have one name", where=str(file),
                                    instead="correct the trace")
                return handle.read(columns=names)
        except UNREADABLE as error:
            raise unreadable(file, error) from error


def _one_of(file: Path, names: Iterable[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise DataError(f"no column {' or '.join(wanted[:2])}", where=str(file),
                    instead="name the tasks of an OpenDC workload, not its fragments")


def _filled(file: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise DataError(f"{name} is empty", where=f"{file}: row {row}",
                        instead="correct the trace")
    return column


def _times(file: Path, table: pa.Table, name: str) -> I64:
    """Nanoseconds of timestamps or durations of any unit, or of integer milliseconds."""
    column = _filled(file, table, name)
    kind = column.type
    try:
        if pa.types.is_timestamp(kind):
            column = column.cast(pa.timestamp("ns", kind.tz)).cast(pa.int64())
        elif pa.types.is_duration(kind):
            column = column.cast(pa.duration("ns")).cast(pa.int64())
        elif pa.types.is_integer(kind):
            column = pc.multiply_checked(column.cast(pa.int64()), _NS_PER_MS)
        else:
            raise DataError(f"{name} is {kind}, expected a time or integer milliseconds",
                            where=str(file), instead="correct the trace")
    except (pa.ArrowException, ValueError):
        raise DataError(f"{name} holds times beyond 64 bits of nanoseconds", where=str(file),
                        instead="correct the trace") from None
    values: I64 = column.to_numpy()
    return values


def _numbers(file: Path, table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = _filled(file, table, name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{name} is {column.type}, expected a number", where=str(file),
                        instead="correct the trace")
    values: npt.NDArray[np.float64] = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise DataError(f"{name} is {values[row]}", where=f"{file}: row {row}",
                        instead="correct the trace")
    return values
