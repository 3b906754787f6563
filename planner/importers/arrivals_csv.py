"""The documented CSV of arrivals (docs/importing.md)."""

from __future__ import annotations

import csv
import io
import math
from array import array
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from planner.importers.arrivals import Found, Options
from planner.importers.textfile import Source, fault, read_source, shown, whole_number
from planner.inventory import label_problem
from planner.units import parse_duration, parse_size

__all__ = ["read"]

_NS = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Either column of a pair may be there, not both.
_PAIRS = (("time", "time_s"), ("duration", "duration_s"), ("memory", "memory_bytes"))
_COLUMNS = frozenset(name for pair in _PAIRS for name in pair) | {
    "running_for", "cores", "tenant", "flavour"}


def read(path: Path, options: Options) -> Found:
    """CSV with a header: `time` or `time_s`, `duration` or `duration_s`, `memory` or
    `memory_bytes`, and any of running_for, cores, tenant, flavour. `-` is standard input."""
    del options
    source = read_source(path)
    reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
    rows = _Rows(source)
    try:
        header = _header(source, [cell.strip() for cell in next(reader, [])])
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.add(reader.line_num, header, cells)
    except csv.Error as error:
        raise fault(source, f"not CSV: {error}", reader.line_num) from None
    unknown = [name for name in header if name not in _COLUMNS]
    return rows.found(["no use for column(s) " + ", ".join(map(shown, unknown[:5]))]
                      if unknown else [])


def _header(source: Source, header: list[str]) -> list[str]:
    for position, column in enumerate(header):
        if not column or column in header[:position]:
            raise fault(source, f"column {position + 1} has no name of its own", 1)
    for pair in _PAIRS:
        n_given = sum(name in header for name in pair)
        if n_given == 2:
            raise fault(source, f"both {pair[0]} and {pair[1]}", 1, "keep one of the columns")
        if not n_given:
            raise fault(source, f"no column {pair[0]!r} or {pair[1]!r}", 1,
                        "name the columns in the first line (docs/importing.md)")
    return header


class _Rows:
    """The rows of one file so far."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._time, self._duration, self._running = array("q"), array("q"), array("q")
        self._memory, self._cores = array("q"), array("d")
        self._tenant, self._flavour = array("q"), array("q")
        self._tenants: dict[str, int] = {}
        self._flavours: dict[str, int] = {}
        self._is_dated: bool | None = None

    def add(self, line: int, header: list[str], cells: list[str]) -> None:
        """One more row; raises DataError with its line for what cannot be used."""
        source = self._source
        if len(cells) != len(header):
            raise fault(source, f"{len(cells)} cells, but {len(header)} columns", line)
        row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
        time_ns = self._when(line, row)
        duration_ns = self._span(line, row, "duration", "duration_s")
        running_ns = self._span(line, row, "running_for", "")
        if duration_ns >= 0 and running_ns >= 0:
            raise fault(source, "both a duration and running_for", line,
                        "leave the duration empty where the guest was still running")
        if duration_ns == 0:
            raise fault(source, "the duration is 0", line,
                        "leave it empty where the guest was still running")
        longest_ns = max(duration_ns, running_ns, 0)
        if time_ns > 2**63 - 1 - longest_ns:
            raise fault(source, "time and duration leave 64 bits", line)
        self._time.append(time_ns)
        self._duration.append(duration_ns)
        self._running.append(running_ns)
        self._memory.append(self._size(line, row))
        self._cores.append(self._cores_of(line, row))
        self._tenant.append(self._number(line, row, "tenant", self._tenants))
        self._flavour.append(self._number(line, row, "flavour", self._flavours))

    def found(self, notes: list[str]) -> Found:
        """All rows. A guest without duration and running_for ran to the end of the record: the
        last time that any row names."""
        time_ns = np.array(self._time, np.int64)
        duration_ns = np.array(self._duration, np.int64)
        running_ns = np.array(self._running, np.int64)
        is_open = (duration_ns < 0) & (running_ns < 0)
        if is_open.any():
            end_ns = int((time_ns + np.maximum(np.maximum(duration_ns, running_ns), 0)).max())
            running_ns = np.where(is_open, end_ns - time_ns, running_ns)
        flavour = np.array(self._flavour, np.int64)
        names = [*self._flavours, ""]
        return Found({
            "time_ns": time_ns, "duration_ns": duration_ns, "censored_ns": running_ns,
            "memory_bytes": np.array(self._memory, np.int64),
            "cores": np.array(self._cores, np.float64),
            "tenant": np.array(self._tenant, np.int64),
            "flavour": np.where(flavour < 0, len(names) - 1, flavour),
        }, names if (flavour < 0).any() else names[:-1], {
            "files": [Path(self._source.name).name],
            "clock": "Unix time" if self._is_dated else "time since the record began",
        }, notes=notes)

    def _when(self, line: int, row: dict[str, str]) -> int:
        if "time_s" in row:
            time_ns = whole_number(row["time_s"], _NS)
            if time_ns is None or time_ns < 0:
                raise fault(self._source, f"time_s is {shown(row['time_s'])}, expected seconds",
                            line)
            return time_ns
        text = row["time"]
        # Durations have letters only behind digits, and neither of these.
        is_dated = "-" in text or ":" in text
        if self._is_dated not in (None, is_dated):
            raise fault(self._source, f"time {shown(text)}: dates and times since the start are "
                                      "mixed", line, "give all rows in one form")
        self._is_dated = is_dated
        try:
            return _date_ns(text) if is_dated else _duration_ns(text)
        except (ValueError, OverflowError) as error:
            reason = "is no date of ISO 8601" if is_dated else str(error)
            raise fault(self._source, f"time {shown(text)} {reason}" if is_dated else reason,
                        line) from None

    def _span(self, line: int, row: dict[str, str], column: str, seconds: str) -> int:
        """Nanoseconds, -1 for an empty cell."""
        if row.get(column):
            try:
                return _duration_ns(row[column])
            except ValueError as error:
                raise fault(self._source, f"{column}: {error}", line) from None
        if row.get(seconds):
            number = whole_number(row[seconds], _NS)
            if number is None or number < 0:
                raise fault(self._source, f"{seconds} is {shown(row[seconds])}, expected seconds",
                            line)
            return number
        return -1

    def _size(self, line: int, row: dict[str, str]) -> int:
        if "memory_bytes" in row:
            memory_bytes = whole_number(row["memory_bytes"])
            if memory_bytes is None or memory_bytes < 1:
                raise fault(self._source, f"memory_bytes is {shown(row['memory_bytes'])}, "
                                          "expected a number above 0", line)
            return memory_bytes
        try:
            memory_bytes = _size_bytes(row["memory"])
        except ValueError as error:
            raise fault(self._source, f"memory: {error}", line) from None
        if memory_bytes < 1:
            raise fault(self._source, "the memory is 0", line)
        return memory_bytes

    def _cores_of(self, line: int, row: dict[str, str]) -> float:
        text = row.get("cores")
        if not text:
            return 0.0
        try:
            cores = float(text)
        except ValueError:
            cores = math.nan
        if not 0 < cores <= 2**20:
            raise fault(self._source, f"cores is {shown(text)}, expected a number above 0", line)
        return cores

    def _number(self, line: int, row: dict[str, str], column: str, known: dict[str, int]) -> int:
        text = row.get(column)
        if not text:
            return -1
        problem = label_problem(text)
        if problem:
            raise fault(self._source, f"{column} {problem}", line)
        return known.setdefault(text, len(known))


@lru_cache(4096)
def _duration_ns(text: str) -> int:
    return parse_duration(text)


@lru_cache(4096)
def _size_bytes(text: str) -> int:
    return parse_size(text)


def _date_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    time_ns = ((since.days * 86400 + since.seconds) * 10**6 + since.microseconds) * 1000
    if not 0 <= time_ns < 2**63:
        raise ValueError("before 1970, or too late")
    return time_ns
