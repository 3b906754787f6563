"""The Azure 2017 record as flavours and duration bins, with tenant batches (docs/importing.md).

A folder holds `X.txt` (a line per 300 s: the flavours of the VMs that came, `|` after each
batch), `X.cSECONDS.txt` (the same shape: `U15` ended with a duration of bin 15, `C40` was still
running at SECONDS), `flav_map.txt` and a map from seconds to bins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.errors import DataError
from planner.importers.arrivals import Found, Options
from planner.importers.textfile import Source, fault, read_source, shown

__all__ = ["read"]

_NS = 10**9
#: Arrivals and durations are counted in steps of so many seconds.
_STEP_S = 300
_DURATIONS = re.compile(r"(?P<stem>.+)\.c(?P<end>[0-9]{1,12})\.txt")
_FLAVOUR = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,6})?),([0-9]{1,6}(?:\.[0-9]{1,6})?) (\S)")
_PAIR = re.compile(r"([0-9]{1,12}) ([0-9]{1,4})")
_MAX_FLAVOURS = 4096

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one record, and the second at which it ends."""

    flavours: Path
    intervals: Path
    arrivals: Path
    durations: Path
    end_s: int


def read(path: Path, options: Options) -> Found:
    """The arrivals of a folder, or of one `X.txt` in it.

    Batches of a line are spread evenly over its 300 s, in their order. A duration is the middle
    of its bin, as far as the guest can have ended before the record did; a guest that was still
    running has run from its arrival to the end of the record.
    """
    del options
    files = _files(path)
    sizes = _flavours(read_source(files.flavours))
    lower_s = _lower_bounds(read_source(files.intervals))
    arrivals, durations = read_source(files.arrivals), read_source(files.durations)
    rows, n_batches, n_missing = _rows(arrivals, durations, sizes, len(lower_s) - 1)
    time_ns, batch, flavour, is_censored, bins = rows
    left_ns = files.end_s * _NS - time_ns
    if (left_ns <= 0).any():
        raise fault(arrivals, f"arrivals after second {files.end_s}, when the record ends by "
                              f"the name of {files.durations.name}")
    low_ns, high_ns = lower_s[bins] * _NS, lower_s[bins + 1] * _NS
    # Seconds of the record are whole steps: what is left of the last one is no contradiction.
    is_over = low_ns > left_ns + _STEP_S * _NS
    if is_over.any():
        row = int(np.argmax(is_over))
        raise fault(durations, f"a guest that came at second {time_ns[row] // _NS} has bin "
                               f"{bins[row]}, longer than to the end of the record")
    middle_ns = (low_ns + np.maximum(np.minimum(high_ns, left_ns), low_ns)) // 2
    is_last = left_ns < high_ns
    columns = {
        "time_ns": time_ns, "tenant": batch, "flavour": flavour,
        "duration_ns": np.where(is_censored, -1, np.maximum(middle_ns, 1)),
        "censored_ns": np.where(is_censored, np.where(is_last, left_ns, low_ns), -1),
        "memory_bytes": np.array([size[1] for size in sizes.values()], np.int64)[flavour],
        "cores": np.array([size[0] for size in sizes.values()])[flavour],
    }
    notes = ([f"{n_missing} line(s) of {_STEP_S} s are missing between the first and the last"]
             if n_missing else [])
    names = [f"{cores:g}vcpu-{memory_bytes / 2**30:g}gib" for cores, memory_bytes in
             sizes.values()]
    return Found(columns, names, {
        "files": [files.arrivals.name, files.durations.name], "n_batches": n_batches,
        "clock": "seconds of the record", "record_end_s": files.end_s,
        "rules": "batches spread over their 300 s; durations are the middle of their bin"},
        notes=notes)


def _files(path: Path) -> _Files:
    folder, chosen = (path, "") if path.is_dir() else (path.parent, path.name)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(folder),
                        instead="name the folder of the record") from None
    pairs = [(match["stem"] + ".txt", name, int(match["end"])) for name in names
             if (match := _DURATIONS.fullmatch(name)) and match["stem"] + ".txt" in names]
    if chosen:
        pairs = [pair for pair in pairs if chosen in pair]
    if not pairs:
        raise DataError("no arrivals X.txt with durations X.cSECONDS.txt beside them",
                        where=str(path), instead="name the folder that holds both")
    if len(pairs) > 1:
        raise DataError(f"several records: {', '.join(pair[0] for pair in pairs[:5])}",
                        where=str(path), instead="name one of these files")
    arrivals, durations, end_s = pairs[0]
    maps = [name for name in names if name.endswith("interval_map.txt")]
    # Of several, the one that shares the version in its name, such as `v1.`.
    own = [name for name in maps if name.split(".")[0] == arrivals.split(".")[0]] or maps
    if len(own) != 1:
        raise DataError(f"{len(own) or 'no'} interval_map.txt fit {arrivals}", where=str(path),
                        instead="keep the one map of seconds to bins beside it")
    return _Files(folder / "flav_map.txt", folder / own[0], folder / arrivals, folder / durations,
                  end_s)


def _flavours(source: Source) -> dict[str, tuple[float, int]]:
    """Letter -> cores and bytes, in the order of the file. The map's GB are GiB, as Azure's."""
    found: dict[str, tuple[float, int]] = {}
    for number, line in _filled(source):
        match = _FLAVOUR.fullmatch(line)
        if match is None:
            raise fault(source, f"{shown(line)} is not 'vCPU,GB letter'", number)
        if match[3] in found or match[3] in "|,":
            raise fault(source, f"flavour {shown(match[3])} is taken", number)
        memory_bytes = round(float(match[2]) * 2**30)
        if not memory_bytes or len(found) >= _MAX_FLAVOURS:
            raise fault(source, "no memory, or too many flavours", number)
        found[match[3]] = (float(match[1]), memory_bytes)
    return found


def _lower_bounds(source: Source) -> I64:
    """i64[bins + 1]: the seconds at which each bin begins, and the end of the last one."""
    bounds: list[int] = []
    last_s = -1
    for number, line in _filled(source):
        match = _PAIR.fullmatch(line)
        if match is None:
            raise fault(source, f"{shown(line)} is not 'seconds bin'", number)
        second, interval = int(match[1]), int(match[2])
        if second <= last_s or interval not in (len(bounds) - 1, len(bounds)):
            raise fault(source, "seconds or bins are not in order", number)
        if interval == len(bounds):
            bounds.append(second)
        last_s = second
    if not bounds or bounds[0] != 0:
        raise fault(source, "no bin begins at second 0")
    return np.array([*bounds, last_s + _STEP_S], np.int64)


def _filled(source: Source) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in source.lines() if line.strip())


def _rows(arrivals: Source, durations: Source, sizes: dict[str, tuple[float, int]], n_bins: int
          ) -> tuple[tuple[I64, I64, I64, npt.NDArray[np.bool_], I64], int, int]:
    """Per VM: time (ns), batch, flavour, whether it is censored, bin; and the numbers of batches
    and of lines that are missing."""
    flavour_of = {letter: number for number, letter in enumerate(sizes)}
    # Ended guests have the numbers of their bins, censored ones come behind all bins.
    length_of = {f"{kind}{interval}": interval + (kind == "C") * n_bins
                 for kind in "UC" for interval in range(n_bins)}
    flavour: list[int] = []
    length: list[int] = []
    sizes_of_batches: list[int] = []
    times_of_batches: list[npt.NDArray[np.int64]] = []
    last_s, n_missing = None, 0
    others = _filled(durations)
    for number, line in _filled(arrivals):
        other_number, other = next(others, (0, ""))
        second_s, items, others_items = _line(arrivals, durations, number, line, other_number,
                                              other)
        if last_s is not None:
            steps, rest = divmod(second_s - last_s, _STEP_S)
            if steps < 1 or rest:
                raise fault(arrivals, f"second {second_s} after {last_s}", number,
                            f"lines are {_STEP_S} s apart")
            n_missing += steps - 1
        last_s = second_s
        if not items:
            continue
        before, start = len(sizes_of_batches), len(flavour)
        for item, length_item in zip(items, others_items, strict=True):
            if item == "|" == length_item:
                if len(flavour) == start:
                    raise fault(arrivals, "a batch of no guests", number)
                sizes_of_batches.append(len(flavour) - start)
                start = len(flavour)
                continue
            try:
                flavour.append(flavour_of[item])
            except KeyError:
                raise fault(arrivals, f"no flavour {shown(item)} in the map", number) from None
            try:
                length.append(length_of[length_item])
            except KeyError:
                raise fault(durations, f"{shown(length_item)} is no duration (U or C and one of "
                                       f"{n_bins} bins)", other_number) from None
        n_batches = len(sizes_of_batches) - before
        offsets = (np.arange(n_batches) * 2 + 1) * _STEP_S * _NS // (2 * n_batches)
        times_of_batches.append(second_s * _NS + offsets)
    left = next(others, None)
    if left is not None:
        raise fault(durations, "a line more than the arrivals have", left[0])
    counts = np.array(sizes_of_batches, np.int64)
    times = np.concatenate([np.empty(0, np.int64), *times_of_batches])
    lengths = np.array(length, np.int64)
    return ((np.repeat(times, counts), np.repeat(np.arange(len(counts)), counts),
             np.array(flavour, np.int64), lengths >= n_bins, lengths % n_bins),
            len(counts), n_missing)


def _line(arrivals: Source, durations: Source, number: int, line: str, other_number: int,
          other: str) -> tuple[int, list[str], list[str]]:
    """The second of a line, its items, and those of the line of durations."""
    if not other:
        raise fault(durations, f"no line for line {number} of the arrivals",
                    instead="copy both files again")
    second, _, rest = line.partition(" ")
    other_second, _, other_rest = other.partition(" ")
    if second != other_second:
        raise fault(durations, f"second {shown(other_second)} where line {number} of the "
                               f"arrivals has {shown(second)}", other_number)
    if not second.isascii() or not second.isdigit() or len(second) > 9:
        raise fault(arrivals, f"{shown(second)} is no second", number)
    items = rest.split(",") if rest else []
    other_items = other_rest.split(",") if other_rest else []
    if len(items) != len(other_items):
        raise fault(durations, f"{len(other_items)} items for {len(items)} of the arrivals",
                    other_number, "copy both files again")
    if items and (items[-1] != "|" or other_items[-1] != "|"):
        raise fault(arrivals if items[-1] != "|" else durations,
                    "the line does not end with the end of a batch, |", number,
                    "it may be cut: copy the file again")
    return int(second), items, other_items
