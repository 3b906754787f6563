"""Sizes, durations and shares: parsed from text and formatted for people.

Decimal and binary size units are both read and never guessed (`GB` is 10^9, `GiB` and `Gi`
are 2^30, a bare `G` is refused); a bare integer is bytes. Durations always carry a unit and
become integer nanoseconds. Shares end in `%`. All parsers raise `ValueError` with a sentence
that says what to write instead.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

__all__ = [
    "DURATION_PATTERN",
    "SHARE_PATTERN",
    "SIZE_PATTERN",
    "format_count",
    "format_duration",
    "format_share",
    "format_size",
    "parse_duration",
    "parse_share",
    "parse_size",
]

_SIZE_UNITS = {"B": 1, "": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _SIZE_UNITS[f"{_letter}B"] = 1000**_power
    _SIZE_UNITS[f"{_letter}iB"] = _SIZE_UNITS[f"{_letter}i"] = 1024**_power
_SIZE_UNITS["kB"] = 1000

_DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60 * 1_000_000_000,
    "h": 3600 * 1_000_000_000,
    "d": 86400 * 1_000_000_000,
}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE_RE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)", re.ASCII)
_DURATION_RE = re.compile(rf"({_NUMBER}) ?(ns|us|ms|s|min|m|h|d)", re.ASCII)
_SHARE_RE = re.compile(rf"({_NUMBER}) ?%", re.ASCII)

#: JSON Schema patterns of what the parsers accept.
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|[kKMGTP]B|[KMGTP]i|[KMGTP]iB)?$"
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)? ?(ns|us|ms|s|min|h|d))+$"
SHARE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?%$"

_SIZE_HINT = "write 512GiB (or 512GB for decimal, 512Gi as in Kubernetes)"
_DURATION_HINT = "write 20ms, 90s, 15min, 6h or 3d"
#: More digits than any real size or time has; keeps arithmetic small on hostile input.
_MAX_TEXT = 64


def _quoted(text: object) -> str:
    return repr(str(text)[:_MAX_TEXT])


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `512GiB`, `512Gi`, `512GB` or `4096`."""
    if isinstance(text, bool):
        raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{text} is not a size; sizes are not negative")
        return text
    match = _SIZE_RE.fullmatch(text.strip()) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
    number, unit = match.groups()
    if unit in ("K", "k", "M", "G", "T", "P"):
        raise ValueError(f"{_quoted(text)} is ambiguous; write {number}{unit.upper()}iB (binary) "
                         f"or {number}{unit.upper()}B (decimal)")
    if unit not in _SIZE_UNITS:
        raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
    value = Decimal(number) * _SIZE_UNITS[unit]
    if value != int(value):
        raise ValueError(f"{_quoted(text)} is not a whole number of bytes")
    return int(value)


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration such as `20ms`, `90s`, `15min` or `1h30min`."""
    if not isinstance(text, str):
        raise ValueError(f"{_quoted(text)} has no unit; {_DURATION_HINT}")
    rest = text.strip().replace(" ", "")
    if not rest or len(rest) > _MAX_TEXT:
        raise ValueError(f"{_quoted(text)} is not a duration; {_DURATION_HINT}")
    total = Decimal(0)
    while rest:
        match = _DURATION_RE.match(rest)
        if match is None:
            raise ValueError(f"{_quoted(text)} is not a duration; {_DURATION_HINT}")
        number, unit = match.groups()
        if unit == "m":
            raise ValueError(f"{_quoted(text)}: 'm' may be minutes or months; write {number}min")
        total += Decimal(number) * _DURATION_UNITS[unit]
        rest = rest[match.end() :]
    return int(total)


def parse_share(text: str) -> float:
    """Fraction (1.0 is the whole) of a share such as `12%`."""
    match = _SHARE_RE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or len(text) > _MAX_TEXT:
        raise ValueError(f"{_quoted(text)} is not a share; write 12%")
    try:
        return float(Decimal(match.group(1)) / 100)
    except InvalidOperation as error:  # pragma: no cover - the pattern admits numbers only
        raise ValueError(f"{_quoted(text)} is not a share; write 12%") from error


def _three_figures(value: float) -> str:
    if value == 0:
        return "0"
    magnitude = abs(value)
    digits = 2 if magnitude < 10 else 1 if magnitude < 100 else 0
    return f"{value:.{digits}f}"


def format_size(n_bytes: int) -> str:
    """A size in the binary unit that leaves three figures, such as `1.25 GiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000 or unit == "GiB":
            break
        value /= 1024
    if abs(value) >= 10_000 and unit == "GiB":
        return f"{_three_figures(value / 1024)} TiB"
    return f"{int(value)} B" if unit == "B" else f"{_three_figures(value)} {unit}"


def format_duration(n_ns: int) -> str:
    """A duration in the unit a person would choose, such as `24 ms` or `1h30min`."""
    for unit, limit in (("ns", 1_000), ("us", 1_000_000), ("ms", 1_000_000_000)):
        if n_ns < limit:
            return f"{_three_figures(n_ns / _DURATION_UNITS[unit])} {unit}" if n_ns else "0 s"
    seconds = n_ns / 1e9
    if seconds < 120:
        return f"{_three_figures(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{_three_figures(seconds / 60)} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}min"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def format_share(fraction: float) -> str:
    """A share such as `12.5 %`."""
    return f"{_three_figures(fraction * 100)} %"


def format_count(n: int) -> str:
    """A count with thin groups of three, such as `1 234 567`."""
    return f"{n:,}".replace(",", " ")
