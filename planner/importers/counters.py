"""From what monitoring systems keep to one table of counters.

Each format module has `read(source, options) -> Read`; `import_metrics` finds out which format a
file is in.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path

from planner.counters import KNOWN, Sample, write_counters
from planner.errors import DataError, UsageError
from planner.importers.textfile import (
    MAX_TEXT_BYTES,
    Source,
    check_format,
    fault,
    not_recognised,
    read_source,
    shown,
    source_of,
    whole_number,
)
from planner.inventory import label_problem

__all__ = ["FORMATS", "MetricsReport", "Options", "Read", "counter_of", "import_metrics",
           "iso_time_ns", "read_metrics", "unix_ns"]

#: Where each format is read.
FORMATS = {
    "node_exporter": "planner.importers.prometheus", "prometheus": "planner.importers.prometheus",
    "telegraf": "planner.importers.telegraf", "metricbeat": "planner.importers.metricbeat",
    "ksmtuned": "planner.importers.ksmtuned",
}
MAX_SAMPLES = 2_000_000
_TIMEOUT_S = 10
#: The year 2000 to the year 2200: times beyond are in another unit.
_EARLIEST_S, _LATEST_S = 946_684_800, 7_258_118_400


@dataclass(frozen=True, slots=True)
class Options:
    """`host` names the host of samples that do not; `utc_offset` is that of times without one."""

    host: str = "host"
    utc_offset: timedelta | None = None


@dataclass(slots=True)
class Read:
    """Samples, and what was left out (reason to number)."""

    samples: list[Sample] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Source, sample: Sample, line: int = 0) -> None:
        """Keep a sample; raises DataError where its host has no usable name or all is too much."""
        problem = label_problem(sample.host)
        if problem:
            raise fault(source, f"host {shown(sample.host)} {problem}", line)
        if len(self.samples) >= MAX_SAMPLES:
            raise fault(source, f"more than {MAX_SAMPLES} samples", line,
                        "import a shorter time or fewer hosts")
        self.samples.append(sample)


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """What an import wrote, and what it left out and why."""

    path: Path
    n_samples: int
    hosts: list[str]
    counters: list[str]
    skipped: dict[str, int]
    notes: list[str]


def counter_of(name: str) -> str | None:
    """`name` where it is a counter of the kernel, else None."""
    return name if name in KNOWN else None


def unix_ns(value: object, scale: int) -> int | None:
    """A Unix time in units of 1/scale s as ns; None where it is none, or far off."""
    number = whole_number(value, 10**9 // scale)
    return number if number is not None and _EARLIEST_S * 10**9 <= number < _LATEST_S * 10**9 \
        else None


def iso_time_ns(text: object) -> int | None:
    """Unix ns of an ISO 8601 time with an offset; None for anything else."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    # datetime keeps microseconds; further digits are below any sampling interval.
    trimmed = re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)
    try:
        time = datetime.fromisoformat(trimmed)
        if time.tzinfo is None:
            return None
        seconds = int(time.replace(microsecond=0).timestamp())
    except (ValueError, OverflowError):
        return None
    return unix_ns(seconds * 1_000_000 + time.microsecond, 1_000_000)


def detect(source: Source) -> str:
    """Which format a file is in, by its first lines; raises DataError where none fits."""
    lines = [line for _, line in source.lines() if line.strip()][:50]
    first = lines[0].lstrip() if lines else ""
    if first.startswith("{"):
        return "metricbeat" if '"@timestamp"' in first or '"linux"' in first else "prometheus"
    if any(re.match(r"# (HELP|TYPE) |[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? [-+0-9.eEInfNa]+( \d+)?$",
                    line) for line in lines):
        return "node_exporter"
    if re.search(r": (total|sleep|thres|committed|KSMCTL|start|[0-9]+ [<>])", first):
        return "ksmtuned"
    if re.match(r"(\\.|[^\s\\])+ [^\s=]+=", first):
        return "telegraf"
    if any(re.search(r": (committed [0-9]+ free|KSMCTL )", line) for line in lines):
        return "ksmtuned"
    raise not_recognised(source, FORMATS)


def _fetch(url: str) -> Source:
    """What an http or https address answers, within a time and a size."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data = answer.read(MAX_TEXT_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(f"cannot be fetched: {str(error)[:200]}", where=url,
                        instead="check the address, or save the answer to a file") from None
    return source_of(data, url, "metrics")


def read_metrics(places: Sequence[str | Path], options: Options,
                 format_name: str = "auto") -> Read:
    """Samples of files and of http(s) addresses; see `import_metrics`."""
    check_format(format_name, FORMATS)
    total = Read()
    for place in places:
        is_url = str(place).startswith(("http://", "https://"))
        source = _fetch(str(place)) if is_url else read_source(Path(place))
        name = detect(source) if format_name == "auto" else format_name
        read: Callable[[Source, Options], Read] = import_module(FORMATS[name]).read
        found = read(source, options)
        total.samples += found.samples
        total.skipped += found.skipped
        total.notes += [note for note in found.notes if note not in total.notes]
        if not found.samples:
            raise fault(source, "no KSM counter in it", instead="see docs/importing.md for what "
                        "to switch on (node_exporter needs --collector.ksmd)")
    return total


def import_metrics(files: Sequence[Path], *, out: Path, format_name: str = "auto",
                   options: Options | None = None, force: bool = False) -> MetricsReport:
    """Read metrics files and write one table of counters at `out`.

    Raises UsageError for a format that is not known or an `out` that is there, DataError with
    file and line for unusable input.
    """
    if not files:
        raise UsageError("no file given", where="planner import metrics")
    found = read_metrics(files, options or Options(), format_name)
    n_samples = write_counters(out, found.samples, {
        "source": "planner import metrics", "files": [path.name for path in files],
        "format": format_name, "skipped": dict(found.skipped)}, force=force)
    return MetricsReport(out, n_samples, sorted({s.host for s in found.samples}),
                         sorted({s.counter for s in found.samples}), dict(found.skipped),
                         found.notes)
