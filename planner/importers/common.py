"""What all importers share: which files are which guests, labels, safe opening, the report."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from planner.errors import DataError, UsageError

__all__ = [
    "GuestFile", "ImportReport", "LabelSource", "clean_name", "guest_files", "import_provenance",
    "load_labels", "open_regular", "snapshot_times",
]

#: A CSV of labels larger than this is a mistake.
_MAX_LABELS_BYTES = 16 << 20
#: The time between snapshots where the files' own times do not tell.
ASSUMED_EVERY_NS = 60 * 10**9
#: Far beyond any true time, and far enough from the end of 64 bits.
_MAX_TIME_NS = 1 << 62
#: A file of one of several snapshots of a guest: `NAME@K.EXT`.
SNAPSHOT_FILE = re.compile(r"(?P<name>.+)@(?P<snapshot>[0-9]{1,9})(?:\.[^.@]*)?")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import wrote: `skipped` counts by reason, `notes` are sentences for the user."""

    path: Path
    n_guests: int
    n_snapshots: int
    n_pages: int
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LabelSource:
    """Labels by guest name: those for all guests, then those of its row of the CSV.

    `unused` holds the names of the CSV that no guest has asked for.
    """

    common: Mapping[str, str] = field(default_factory=dict)
    by_name: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unused: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unused = set(self.by_name)

    def labels_of(self, name: str) -> dict[str, str]:
        """The labels of the guest `name`."""
        self.unused.discard(name)
        return {**self.common, **self.by_name.get(name, {})}

    def notes(self) -> list[str]:
        """A sentence on rows of the CSV that name no imported guest; none when all were used."""
        if not self.unused:
            return []
        shown = ", ".join(sorted(self.unused)[:5]) + (" ..." if len(self.unused) > 5 else "")
        return [f"{len(self.unused)} name(s) of the labels file are no imported guest: {shown}"]


@dataclass(frozen=True, slots=True)
class GuestFile:
    """One file: what a guest held in one snapshot (snapshots count from 0)."""

    name: str
    snapshot: int
    path: Path


def load_labels(table: Path | None, pairs: Sequence[str]) -> LabelSource:
    """Labels of a CSV (a column `name`, one column a label) and of `KEY=VALUE` texts for all.

    Raises UsageError for a text that is no pair, DataError with file and line for a bad CSV.
    """
    common = {}
    for pair in pairs:
        label, separator, value = pair.partition("=")
        # What is no UTF-8 on the command line arrives as surrogates, which no table can hold.
        if not separator or not label.strip() or not _is_text(pair):
            raise UsageError(f"{pair!r} is not KEY=VALUE", where="--label",
                             instead="write for example --label tenant=a")
        common[label.strip()] = value.strip()
    return LabelSource(common, _read_labels(table) if table is not None else {})


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_labels(path: Path) -> dict[str, dict[str, str]]:
    with open_regular(path) as descriptor:
        if os.fstat(descriptor).st_size > _MAX_LABELS_BYTES:
            raise DataError("the labels file is larger than 16 MiB", where=str(path),
                            instead="give a CSV with one row a guest")
        raw = _read_all(descriptor, _MAX_LABELS_BYTES)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 (byte {error.start})", where=f"{path}:{line}",
                        instead="save the labels as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, dict[str, str]] = {}
    columns: list[str] | None = None
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if columns is None:
                columns = _label_columns(cells, where)
                continue
            if len(cells) != len(columns):
                raise DataError(f"{len(cells)} cells under {len(columns)} columns", where=where,
                                instead="give every row as many cells as the first")
            values = dict(zip(columns, cells, strict=True))
            name = values.pop("name")
            if not name:
                raise DataError("the name is empty", where=where, instead="name the guest")
            if name in found:
                raise DataError(f"a second row for {name!r}", where=where, instead="keep one")
            found[name] = {label: value for label, value in values.items() if value}
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{path}:{reader.line_num}",
                        instead="save the labels as CSV") from None
    if columns is None:
        raise DataError("the labels file is empty", where=str(path),
                        instead="give a header with a column name and one column a label")
    return found


def _label_columns(cells: list[str], where: str) -> list[str]:
    if "name" not in cells:
        raise DataError("there is no column name", where=where,
                        instead="give a header such as name,tenant,image")
    if "" in cells or len(set(cells)) != len(cells):
        raise DataError("a column has no name, or two have one name", where=where,
                        instead="name every column once")
    return cells


def _read_all(descriptor: int, limit: int) -> bytes:
    parts: list[bytes] = []
    n_bytes = 0
    while n_bytes <= limit and (part := os.read(descriptor, 1 << 20)):
        parts.append(part)
        n_bytes += len(part)
    return b"".join(parts)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a regular file for reading: a descriptor, closed afterwards.

    Raises DataError for what is missing, may not be read, or is a directory, FIFO, socket or
    device (a symlink to one as well); it never waits for a writer.
    """
    try:
        # Looked at before it is opened: opening a device may do something.
        _check_regular(path, path.stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path),
                        instead="check the path and its permissions") from None
    except ValueError:
        raise DataError("this cannot be the name of a file", where=repr(str(path)),
                        instead="check the path") from None
    try:
        _check_regular(path, os.fstat(descriptor))
        yield descriptor
    except OSError as error:
        raise DataError(f"reading failed: {error.strerror or error}", where=str(path),
                        instead="check the disk and copy the file again") from error
    finally:
        os.close(descriptor)


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
             stat.S_IFBLK: "a block device", stat.S_IFCHR: "a character device"}
    raise DataError(f"this is {kinds.get(stat.S_IFMT(status.st_mode), 'no regular file')}",
                    where=str(path), instead="name a regular file")


def clean_name(text: str, *, where: str) -> str:
    """A guest name as it may stand in a trace: printable, no slash, at most 200 characters.

    Unprintable characters become `?`. Raises UsageError for a name that is empty, a path or too
    long.
    """
    name = "".join(character if character.isprintable() else "?" for character in text).strip()
    if not name or name in (".", "..") or "/" in name or "\\" in name or len(name) > 200:
        raise UsageError(f"{name[:40]!r} is no guest name", where=where,
                         instead="use 1 to 200 characters without slashes")
    return name


def guest_files(files: Sequence[Path], *, numbered: re.Pattern[str] = SNAPSHOT_FILE
                ) -> list[GuestFile]:
    """Which file is which snapshot of which guest, in order of (snapshot, first mention).

    `NAME=FILE` names the guest; the same name again is its next snapshot. A plain file named
    `NAME@K.EXT` is snapshot K of guest NAME (K are ranked over all files). Any other file is one
    guest, named after the file without its extension. Raises UsageError for no files, two plain
    files of one name, or a mix that leaves a snapshot twice.
    """
    if not files:
        raise UsageError("no files are named", where="planner trace import",
                         instead="name the files to import")
    found: list[GuestFile] = []
    n_named: dict[str, int] = {}
    for file in files:
        text = str(file)
        name, separator, rest = text.partition("=")
        # A file that is there under the whole text is meant, whatever its name looks like.
        if separator and rest and "/" not in name and not os.path.lexists(text):
            name = clean_name(name, where=text)
            found.append(GuestFile(name, n_named.get(name, 0), Path(rest)))
            n_named[name] = n_named.get(name, 0) + 1
            continue
        match = numbered.fullmatch(file.name)
        if match:
            found.append(GuestFile(clean_name(match["name"], where=text),
                                   int(match["snapshot"]), file))
        else:
            found.append(GuestFile(clean_name(file.stem, where=text), 0, file))
    return ranked(found)


def ranked(found: Sequence[GuestFile]) -> list[GuestFile]:
    """The files with snapshot numbers made 0, 1, 2, ... and sorted; raises UsageError."""
    seen: dict[tuple[str, int], Path] = {}
    for item in found:
        other = seen.setdefault((item.name, item.snapshot), item.path)
        if other is not item.path:
            raise UsageError(f"{other.name} and {item.path.name} are both guest {item.name!r}",
                             where=str(item.path),
                             instead="write NAME=FILE for each; one name twice means two "
                                     "snapshots of one guest")
    rank = {number: index for index, number in enumerate(sorted({f.snapshot for f in found}))}
    order = {name: index for index, name in enumerate(dict.fromkeys(f.name for f in found))}
    return sorted((GuestFile(f.name, rank[f.snapshot], f.path) for f in found),
                  key=lambda f: (f.snapshot, order[f.name]))


def snapshot_times(files: Sequence[GuestFile]) -> tuple[list[tuple[int, int]], str]:
    """Per snapshot (start_ns, end_ns), and how it is known: "file times" or "assumed".

    A file's time is when it was last changed. Where these do not ascend from snapshot to snapshot
    (copied files), snapshots are put `ASSUMED_EVERY_NS` apart, starting at the first file's.
    """
    times: dict[int, list[int]] = {}
    for item in files:
        try:
            changed_ns = min(max(0, item.path.stat().st_mtime_ns), _MAX_TIME_NS)
        except (OSError, ValueError):
            changed_ns = 0  # the error comes, with its reason, when the file is opened
        times.setdefault(item.snapshot, []).append(changed_ns)
    spans = [(min(found), max(found)) for _, found in sorted(times.items())]
    if all(a[1] < b[0] for a, b in pairwise(spans)):
        return spans, "file times"
    first_ns = spans[0][0]
    return [(first_ns + index * ASSUMED_EVERY_NS,) * 2 for index in range(len(spans))], "assumed"


def import_provenance(source: str, files: Sequence[Path], **more: Any) -> dict[str, Any]:
    """The provenance of an imported trace: `source` is "import", `format` the format's name.

    Of the files, base names and sizes are recorded, no folders.
    """
    try:
        software = version("ksm-planner")
    except PackageNotFoundError:
        software = "unknown"
    sizes = {}
    for file in files:
        try:
            sizes[file.name] = file.stat().st_size
        except (OSError, ValueError):
            continue
    return {"software": f"ksm-planner {software}", "source": "import", "format": source,
            "page_bytes": 4096, "files": sizes, **more}
