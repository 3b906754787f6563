"""The log of ksmtuned (DEBUG=1 and LOGFILE in ksmtuned.conf): its decisions over time.

Lines are `DATE: TEXT` with what `date` prints. The C locale (`Mon Nov 23 02:49:31 UTC 2026`) and
en_US (`Mon 23 Nov 2026 02:49:31 AM UTC`) are read. A time zone other than UTC and GMT is an
abbreviation that names no offset, so it has to be given. Sizes in the log are kB.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from planner.counters import Sample
from planner.importers.counters import Options, Read, unix_ns
from planner.importers.textfile import Source, fault, shown, whole_number

__all__ = ["read"]

_MONTHS = {name: number for number, name in enumerate(
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1)}
_C_DATE = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) {1,2}([0-9]{1,2}) "
                     r"([0-9]{2}):([0-9]{2}):([0-9]{2}) (\S{1,8}) ([0-9]{4})")
_US_DATE = re.compile(r"[A-Z][a-z]{2} ([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) "
                      r"([0-9]{2}):([0-9]{2}):([0-9]{2}) ([AP])M (\S{1,8})")
_LINE = re.compile(r"(.{20,60}?): (\S.*)")
_COMMITTED = re.compile(r"committed ([0-9]{1,18}) free ([0-9]{1,18})")
_START = re.compile(r"KSMCTL start ([0-9]{1,18}) ([0-9]{1,18})")


def read(source: Source, options: Options) -> Read:
    """Samples of `run`, `pages_to_scan` and `sleep_millisecs` as ksmtuned wrote them, and of
    committed and free memory as it saw them."""
    found = Read()
    last_ns = 0
    for number, line in source.lines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise fault(source, f"expected `DATE: TEXT`, got {shown(line)}", number)
        time_ns = _time_ns(source, match[1], options, number)
        if time_ns < last_ns:
            found.skipped["line whose clock went back"] += 1
            continue
        last_ns = time_ns
        for counter, value in _values(match[2]):
            if value is None:
                raise fault(source, f"a number that is too large: {shown(line)}", number)
            found.add(source, Sample(time_ns, options.host, counter, value), number)
        if not _values(match[2]):
            found.skipped["line that states no decision"] += 1
    return found


def _values(text: str) -> list[tuple[str, int | None]]:
    match = _COMMITTED.fullmatch(text)
    if match:
        return [("ksmtuned_committed_bytes", whole_number(match[1], 1024)),
                ("ksmtuned_free_bytes", whole_number(match[2], 1024))]
    match = _START.fullmatch(text)
    if match:
        return [("run", 1), ("pages_to_scan", whole_number(match[1])),
                ("sleep_millisecs", whole_number(match[2]))]
    return [("run", 0)] if text == "KSMCTL stop" or text.endswith(", stop ksm") else []


def _time_ns(source: Source, text: str, options: Options, line: int) -> int:
    match = _C_DATE.fullmatch(text)
    if match:
        month, day, hour, minute, second, zone, year = match.groups()
        half = ""
    else:
        match = _US_DATE.fullmatch(text)
        if match is None:
            raise fault(source, f"{shown(text)} is not a date that is read", line,
                        "run ksmtuned with LC_ALL=C")
        day, month, year, hour, minute, second, half, zone = match.groups()
    if month not in _MONTHS:
        raise fault(source, f"{shown(month)} is no English month", line,
                    "run ksmtuned with LC_ALL=C")
    offset = _offset(source, zone, options, line)
    hours = int(hour) if not half else int(hour) % 12 + (12 if half == "P" else 0)
    try:
        time = datetime(int(year), _MONTHS[month], int(day), hours, int(minute), int(second),
                        tzinfo=timezone(offset))
        found = unix_ns(int(time.astimezone(UTC).timestamp()), 1)
    except (ValueError, OverflowError) as error:
        raise fault(source, f"{shown(text)} is no date: {error}", line) from None
    if found is None:
        raise fault(source, f"{shown(text)} is not between 2000 and 2200", line)
    return found


def _offset(source: Source, zone: str, options: Options, line: int) -> timedelta:
    if zone in ("UTC", "GMT"):
        return timedelta(0)
    match = re.fullmatch(r"([+-])([0-9]{2}):?([0-9]{2})?", zone)
    if match and int(match[2]) < 24:
        offset = timedelta(hours=int(match[2]), minutes=int(match[3] or 0))
        return offset if match[1] == "+" else -offset
    if options.utc_offset is None:
        raise fault(source, f"time zone {shown(zone)} names no offset", line,
                    "give it as --utc-offset +01:00, or log with TZ=UTC")
    return options.utc_offset
