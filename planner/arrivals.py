"""Arrivals: who comes when, for how long, and how large, in one Parquet table.

One row a guest, in order of time. A guest whose end was not seen, because the record ended
first, is *censored*: it has no duration, and instead the time for which it had run at least.
Times are those of the record's own clock. `docs/importing.md` says where each value comes from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planner.errors import DataError
from planner.inventory import refuse_existing, write_private
from planner.tables import UNREADABLE, TableKind, read_table, unreadable
from planner.units import format_count, format_duration

__all__ = ["ARRIVALS", "ArrivalTable", "arrival_table", "read_arrivals", "write_arrivals"]

ARRIVALS = TableKind("planner.arrivals", 1, 0, pa.schema([
    pa.field("time_ns", pa.int64(), nullable=False),
    pa.field("duration_ns", pa.int64()),
    pa.field("censored_ns", pa.int64()),
    pa.field("memory_bytes", pa.int64(), nullable=False),
    pa.field("cores", pa.float64(), nullable=False),
    pa.field("tenant", pa.int32(), nullable=False),
    pa.field("flavour", pa.string(), nullable=False),
]), delta_columns=("time_ns",))

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

#: A span without arrivals is a gap from so many times the mean span on. Of n arrivals that come
#: independently of each other the longest span is about ln(n) times the mean: 13 of 400,000.
_GAP_MEANS = 30
#: No host has as much; a larger guest is a mistake of units.
_MAX_MEMORY_BYTES = 1 << 50
_MAX_CORES = 1 << 20
_MAX_FLAVOUR = 256


@dataclass(frozen=True, eq=False)
class ArrivalTable:
    """All arrivals of one record: n guests, ascending by `time_ns`.

    - `path`: where the table was read from, or will be written
    - `time_ns` i64[n]: when the guest comes, at least 0, on the record's own clock
    - `duration_ns` i64[n]: how long it stays, at least 1; -1 where it is censored
    - `censored_ns` i64[n]: how long a censored guest had run when the record ended, at least 0;
      -1 where the end is known
    - `memory_bytes` i64[n], at least 1; `cores` f64[n] (0: not stated)
    - `tenant` i32[n]: guests of one number were started together by one tenant; -1: not known
    - `flavour` i32[n]: index into `flavours`, the names in use in ascending order
    - `provenance`: the source, and the rules that made numbers of it
    """

    path: str
    time_ns: I64
    duration_ns: I64
    censored_ns: I64
    memory_bytes: I64
    cores: npt.NDArray[np.float64]
    tenant: I32
    flavour: I32
    flavours: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def is_censored(self) -> npt.NDArray[np.bool_]:
        """bool[n]: the record ended before the guest did."""
        return self.censored_ns >= 0

    @property
    def span_ns(self) -> int:
        """From the first arrival to the last."""
        return int(self.time_ns[-1] - self.time_ns[0])

    @property
    def n_batches(self) -> int:
        """Batches of guests that one tenant started together; guests without are not counted."""
        return len(np.unique(self.tenant[self.tenant >= 0]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the values, whatever wrote the file."""
        total = hashlib.sha256(f"{ARRIVALS.kind} {ARRIVALS.major}\n".encode())
        for column, form in ((self.time_ns, "<i8"), (self.duration_ns, "<i8"),
                             (self.censored_ns, "<i8"), (self.memory_bytes, "<i8"),
                             (self.cores, "<f8"), (self.tenant, "<i4"), (self.flavour, "<i4")):
            total.update(np.ascontiguousarray(column, form).tobytes())
        for name in self.flavours:
            total.update(b"\0" + name.encode())
        return total.hexdigest()

    def gaps(self) -> I64:
        """Spans in which nobody comes though many should have: i64[k, 2], first and next arrival.

        A gap is `_GAP_MEANS` times the mean span between arrival times, or longer.
        """
        times = np.unique(self.time_ns)
        if len(times) < 2:
            return np.empty((0, 2), np.int64)
        spans = np.diff(times)
        at = np.flatnonzero(spans > _GAP_MEANS * spans.mean())
        return np.column_stack([times[at], times[at + 1]]).astype(np.int64)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what a user should know of the data before planning with it."""
        found = []
        gaps = self.gaps()
        if len(gaps):
            start, end = gaps[np.argmax(gaps[:, 1] - gaps[:, 0])].tolist()
            found.append(
                f"{len(gaps)} span(s) without arrivals, the longest of "
                f"{format_duration(end - start)}, {format_duration(start - self.origin_ns)} after "
                "the first arrival: is a part of the record missing?")
        n_censored = int(self.is_censored.sum())
        if n_censored == len(self):
            found.append("every guest was still running when the record ended: it says nothing "
                         "of how long guests stay")
        return tuple(found)

    @property
    def origin_ns(self) -> int:
        """The time of the first arrival."""
        return int(self.time_ns[0])

    def summary(self) -> str:
        """One line: how many, over what span, of how much memory."""
        return (f"{format_count(len(self))} arrivals in {format_count(self.n_batches)} batches "
                f"over {format_duration(self.span_ns)}, {format_count(int(self.is_censored.sum()))}"
                f" of them still running at its end, {len(self.flavours)} flavour(s)")


def arrival_table(path: str, columns: Mapping[str, Any], flavours: Sequence[str],
                  provenance: Mapping[str, Any]) -> tuple[ArrivalTable, int]:
    """The table of `columns` (the array fields of ArrivalTable, in any order of time), and how
    many rows stood before one that came earlier. Equal times keep their order.

    Raises DataError, naming the first row (from 0) that cannot be, and where there are no rows.
    """
    time_ns = np.asarray(columns["time_ns"], np.int64)
    n_late = int((np.diff(time_ns) < 0).sum())
    order = np.argsort(time_ns, kind="stable") if n_late else slice(None)
    index = np.asarray(columns["flavour"], np.int64)
    # A name that no guest has is not part of the table: no file could tell of it.
    used = {flavours[number] for number in np.unique(index).tolist()}
    names = sorted(used)
    position = {name: number for number, name in enumerate(names)}
    flavour = np.array([position.get(name, -1) for name in flavours], np.int32)[index]
    table = ArrivalTable(
        path, time_ns[order],
        np.asarray(columns["duration_ns"], np.int64)[order],
        np.asarray(columns["censored_ns"], np.int64)[order],
        np.asarray(columns["memory_bytes"], np.int64)[order],
        np.asarray(columns["cores"], np.float64)[order],
        np.asarray(columns["tenant"], np.int32)[order],
        flavour[order], tuple(names), dict(provenance))
    _check(table)
    return table, n_late


def _check(table: ArrivalTable) -> None:
    if not len(table):
        raise DataError("holds no arrivals", where=table.path,
                        instead="give a record with at least one guest")
    is_ended, length_ns = ~table.is_censored, np.maximum(table.duration_ns, table.censored_ns)
    faults = (
        (table.time_ns < 0, "time_ns", table.time_ns, "is negative"),
        ((table.duration_ns < 1) & is_ended, "duration_ns", table.duration_ns,
         "is not positive, and the guest is not censored"),
        (~is_ended & (table.duration_ns != -1), "duration_ns", table.duration_ns,
         "is given, and censored_ns as well"),
        (table.time_ns > np.iinfo(np.int64).max - np.maximum(length_ns, 0), "time_ns",
         table.time_ns, "and the duration leave 64 bits"),
        ((table.memory_bytes < 1) | (table.memory_bytes > _MAX_MEMORY_BYTES), "memory_bytes",
         table.memory_bytes, f"is not between 1 and {_MAX_MEMORY_BYTES}"),
        (~((table.cores >= 0) & (table.cores <= _MAX_CORES)), "cores", table.cores,
         f"is not between 0 and {_MAX_CORES}"),
        (table.tenant < -1, "tenant", table.tenant, "is below -1"),
    )
    for is_wrong, name, values, why in faults:
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise DataError(f"{name} {values[row]} {why}", where=f"{table.path}: row {row}",
                            instead="import the arrivals again")
    for name in table.flavours:
        if len(name) > _MAX_FLAVOUR or not name.isprintable():
            raise DataError(f"flavour {name[:40]!r} is no short text", where=table.path,
                            instead="import the arrivals again")


def write_arrivals(path: Path, table: ArrivalTable, *, force: bool = False) -> None:
    """Write a table to a new file at `path` (mode 0600), aside and renamed.

    Raises UsageError where the file is there and `force` is not given, DataError where it
    cannot be written.
    """
    refuse_existing(path, force)

    def nullable(values: I64) -> pa.Array:
        return pa.array(values, mask=values < 0)

    names = pa.array([*table.flavours], pa.string())
    write_private(path, ARRIVALS, pa.table({
        "time_ns": table.time_ns, "duration_ns": nullable(table.duration_ns),
        "censored_ns": nullable(table.censored_ns), "memory_bytes": table.memory_bytes,
        "cores": table.cores, "tenant": table.tenant,
        "flavour": pa.DictionaryArray.from_arrays(pa.array(table.flavour), names),
    }), table.provenance)


def read_arrivals(path: Path) -> ArrivalTable:
    """The table at `path`.

    Raises DataError where it is none, is not in order of time, or holds a row that cannot be.
    """
    table, metadata = read_table(path, ARRIVALS)

    def column(name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = table.column(name).fill_null(-1).to_numpy()
        return values

    for one, other in (("duration_ns", "censored_ns"), ("censored_ns", "duration_ns")):
        # A null in one is what says that the other counts; -1 as a value would be taken for it.
        values = column(one)
        if ((values < 0) & table.column(one).is_valid().to_numpy()).any():
            raise DataError(f"{one} is negative", where=str(path),
                            instead=f"leave it null where {other} is given")
    encoded = table.column("flavour").combine_chunks().dictionary_encode()
    try:
        names = encoded.dictionary.to_pylist()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    provenance = metadata.get("provenance")
    found, n_late = arrival_table(
        str(path), {name: column(name) for name in ARRIVALS.schema.names if name != "flavour"}
        | {"flavour": encoded.indices.to_numpy(zero_copy_only=False)},
        names, provenance if isinstance(provenance, dict) else {})
    if n_late:
        raise DataError(f"{n_late} row(s) come before the row above them", where=str(path),
                        instead="import the arrivals again")
    return found
