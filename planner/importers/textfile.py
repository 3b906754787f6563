"""Text that other tools wrote: read whole, bounded, and never from a pipe or a device.

JSON is read strictly: no duplicate keys, no NaN, no nesting that the interpreter cannot follow.
Every fault is a DataError that names the file and, where there is one, the line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import DataError, UsageError

__all__ = ["MAX_TEXT_BYTES", "Source", "check_format", "fault", "not_recognised", "parse_json",
           "read_source", "shown", "source_of", "whole_number"]

#: Lists of ten thousand guests take a few MiB, a day of metrics every 10 s about as much. Parsed
#: JSON can take twenty times its text in memory, which bounds what is sensible.
MAX_TEXT_BYTES = 32 << 20
_INT64_MAX = 2**63 - 1
_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """One input: `name` is shown in errors, `stem` is its file name without folder and suffix,
    `mtime_ns` when it was last written (0 where that is not known)."""

    name: str
    stem: str
    text: str
    mtime_ns: int = 0

    def lines(self) -> Iterator[tuple[int, str]]:
        """Line numbers from 1, and lines without their ends."""
        for number, line in enumerate(self.text.split("\n"), start=1):
            yield number, line.removesuffix("\r")


def check_format(name: str, formats: Iterable[str]) -> None:
    """Raise UsageError where `name` is neither `auto` nor one of `formats`."""
    if name != "auto" and name not in formats:
        raise UsageError(f"no format {shown(name)}", where="--format",
                         instead="use auto, " + ", ".join(formats))


def not_recognised(source: Source, formats: Iterable[str]) -> DataError:
    """The error for a file that looks like none of `formats`."""
    return fault(source, "its format is not recognised",
                 instead="give --format, one of " + ", ".join(formats))


def fault(source: Source, what: str, line: int = 0, instead: str = "") -> DataError:
    """The error for `what` at a line of `source` (0: the whole file)."""
    return DataError(what, where=f"{source.name}:{line}" if line else source.name,
                     instead=instead)


def shown(value: object) -> str:
    """A value for an error message: short, and without control characters."""
    text = str(value) if not isinstance(value, dict | list) else type(value).__name__
    return repr(text if len(text) <= 60 else text[:60] + "...")


def read_source(path: Path) -> Source:
    """The text of a regular file of at most `MAX_TEXT_BYTES`, or of standard input for `-`.

    Raises DataError.
    """
    where = str(path)
    if where == "-":
        return source_of(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input", "stdin",
                         time.time_ns())
    try:
        # Looked at before opening: opening a pipe or a device may wait or act.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("not a regular file", where=where, instead="name a file")
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DataError("not a regular file", where=where, instead="name a file")
            data = stream.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise DataError("no such file", where=where, instead="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be read: {reason}", where=where,
                        instead="check the path and its permissions") from None
    return source_of(data, where, path.stem, found.st_mtime_ns)


def source_of(data: bytes, name: str, stem: str, mtime_ns: int = 0) -> Source:
    """The source of bytes that came from `name`; UTF-8 only."""
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"larger than {MAX_TEXT_BYTES >> 20} MiB", where=name,
                        instead="split it into several files")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"byte 0x{data[error.start]:02x} is not UTF-8", where=f"{name}:{line}",
                        instead="save the file as UTF-8") from None
    position = text.find("\0")
    if position >= 0:
        raise DataError("holds a NUL byte", where=f"{name}:{text.count(chr(10), 0, position) + 1}",
                        instead="name the text that the tool printed, not a binary file")
    return Source(name, stem, text, mtime_ns)


class _RefusedError(ValueError):
    """JSON that is well formed but not accepted."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"key {shown(key)} is given twice in one object")
            seen.add(key)
    return result


def _constant(word: str) -> Any:
    raise _RefusedError(f"{word} is not a JSON number")


def parse_json(source: Source, text: str | None = None, line: int = 0) -> Any:
    """The JSON document of a source, or of one of its lines."""
    try:
        return json.loads(source.text if text is None else text, object_pairs_hook=_pairs,
                          parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise fault(source, f"not JSON: {error.msg} (column {error.colno})",
                    line or error.lineno) from None
    except RecursionError:
        raise fault(source, "nested too deep", line) from None
    except ValueError as error:
        raise fault(source, str(error).splitlines()[0][:200], line) from None


def whole_number(value: object, scale: int = 1) -> int | None:
    """`value` (an int, a float or decimal text) times `scale`, rounded, as a signed 64-bit
    integer; None where it is no finite number or does not fit."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return None
        value = int(value) if value.lstrip("+-").isdecimal() else float(value)
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) * scale >= 2.0**63:
            return None
        result = round(value * scale)
    elif isinstance(value, int):
        result = value * scale
    else:
        return None
    return result if abs(result) <= _INT64_MAX else None
