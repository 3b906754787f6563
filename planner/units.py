"""Sizes, durations and shares: parsed from text and formatted for people.

Decimal and binary size units are both read and never guessed (`GB` is 10^9, `GiB` and `Gi`
are 2^30, a bare `G` is refused); a bare integer is bytes. Durations always carry a unit and
become integer nanoseconds. Shares end in `%`. All parsers raise `ValueError` with a sentence
that says what to write instead.
"""

from __future__ import annotations

import re

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
_DURATION_RE = re.compile(rf" ?({_NUMBER}) ?(ns|us|ms|s|min|m|h|d)", re.ASCII)
_SHARE_RE = re.compile(rf"({_NUMBER}) ?%", re.ASCII)

#: JSON Schema patterns of what the parsers accept.
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|[kKMGTP]B|[KMGTP]i|[KMGTP]iB)?$"
DURATION_PATTERN = (
    r"^[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|min|h|d)( ?[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|min|h|d))*$"
)
SHARE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?%$"

_SIZE_HINT = "write 512GiB (or 512GB for decimal, 512Gi as in Kubernetes)"
_DURATION_HINT = "write 20ms, 90s, 15min, 6h or 3d"
#: More digits than any real size or time has; keeps arithmetic small on hostile input.
_MAX_TEXT = 64
#: Sizes and times are kept in signed 64-bit columns.
_MAX_VALUE = 2**63 - 1


def _quoted(text: object) -> str:
    shown = str(text)
    if isinstance(text, int | float):
        return shown
    return repr(shown if len(shown) <= _MAX_TEXT else shown[:_MAX_TEXT] + "...")


def _ratio(number: str) -> tuple[int, int]:
    """Exact numerator and denominator of digits with an optional decimal part."""
    whole, _, fraction = number.partition(".")
    return int(whole + fraction), 10 ** len(fraction)


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `512GiB`, `512Gi`, `512GB` or `4096`."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{_quoted(text)} is not a size; sizes are not negative")
        value = text
    else:
        match = _SIZE_RE.fullmatch(text) if len(text) <= _MAX_TEXT else None
        if match is None:
            raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
        number, unit = match.groups()
        if unit in ("K", "k", "M", "G", "T", "P"):
            raise ValueError(
                f"{_quoted(text)} is ambiguous; write {number}{unit.upper()}iB (binary) "
                f"or {number}{unit.upper()}B (decimal)"
            )
        if unit not in _SIZE_UNITS:
            raise ValueError(f"{_quoted(text)} is not a size; {_SIZE_HINT}")
        numerator, denominator = _ratio(number)
        value, rest = divmod(numerator * _SIZE_UNITS[unit], denominator)
        if rest:
            raise ValueError(f"{_quoted(text)} is not a whole number of bytes")
    if value > _MAX_VALUE:
        raise ValueError(f"{_quoted(text)} is too large; sizes stay below 8192PiB")
    return value


def parse_duration(text: str | int) -> int:
    """Nanoseconds of a duration such as `20ms`, `90s`, `15min` or `1h30min`.

    Parts go from the larger unit to the smaller, each unit at most once.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"{_quoted(text)} has no unit; {_DURATION_HINT}")
    if not isinstance(text, str) or not text or len(text) > _MAX_TEXT:
        raise ValueError(f"{_quoted(text)} is not a duration; {_DURATION_HINT}")
    total, position, last_unit_ns = 0, 0, _MAX_VALUE
    while position < len(text):
        match = _DURATION_RE.match(text, position)
        if match is None or (position == 0 and text[0] == " "):
            has_no_unit = position == 0 and re.fullmatch(_NUMBER, text, re.ASCII) is not None
            fault = "has no unit" if has_no_unit else "is not a duration"
            raise ValueError(f"{_quoted(text)} {fault}; {_DURATION_HINT}")
        number, unit = match.groups()
        if unit == "m":
            raise ValueError(f"{_quoted(text)}: 'm' may be minutes or months; write {number}min")
        unit_ns = _DURATION_UNITS[unit]
        if unit_ns >= last_unit_ns:
            raise ValueError(
                f"{_quoted(text)} is not a duration; units go from large to small, as in 1h30min"
            )
        numerator, denominator = _ratio(number)
        part, rest = divmod(numerator * unit_ns, denominator)
        if rest:
            raise ValueError(f"{_quoted(text)} is not a whole number of nanoseconds")
        total += part
        last_unit_ns = unit_ns
        position = match.end()
    if total > _MAX_VALUE:
        raise ValueError(f"{_quoted(text)} is too long; durations stay below 292 years")
    return total


def parse_share(text: str) -> float:
    """Fraction (1.0 is the whole) of a share such as `12%`."""
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise ValueError(f"{_quoted(text)} is not a share; write 12%")
    match = _SHARE_RE.fullmatch(text)
    if match is None:
        raise ValueError(f"{_quoted(text)} is not a share; write 12%")
    numerator, denominator = _ratio(match.group(1))
    return numerator / (100 * denominator)


def _three_figures(value: float) -> str:
    if value == 0:
        return "0"
    for digits in (2, 1):
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 10 ** (3 - digits):  # 9.999 rounds to 10.0, not to 10.00
            return text
    return f"{value:.0f}"


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
