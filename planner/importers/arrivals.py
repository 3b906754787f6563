"""From records of other tools to one table of arrivals.

Each format module has `read(path, options) -> Found`; `import_arrivals` finds out which format
the record is in, calls it, puts the rows in order and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from planner.arrivals import ArrivalTable, arrival_table, write_arrivals
from planner.errors import UsageError
from planner.importers.common import open_regular
from planner.importers.textfile import shown
from planner.inventory import refuse_existing
from planner.units import format_count, parse_size

__all__ = ["FORMATS", "ArrivalsReport", "Found", "Options", "import_arrivals"]

#: Where each format is read.
FORMATS = {
    "azure2017": "planner.importers.azure", "opendc": "planner.importers.opendc",
    "csv": "planner.importers.arrivals_csv",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a record does not say itself: the unit of OpenDC's memory, in bytes."""

    memory_unit_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What one format gave: the columns of `planner.arrivals.arrival_table`, what they were made
    from and by which rules, what was left out (reason to number), and remarks."""

    columns: Mapping[str, Any]
    flavours: list[str]
    provenance: Mapping[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ArrivalsReport:
    """What an import wrote, what it left out and why, and sentences for the user."""

    table: ArrivalTable
    format_name: str
    skipped: dict[str, int]
    notes: list[str]


def detect(path: Path) -> str:
    """Which format a record is in: a folder is azure2017, Parquet is opendc, text is csv."""
    if path.is_dir():
        return "opendc" if (path / "tasks.parquet").exists() else "azure2017"
    if str(path) == "-":
        return "csv"
    with open_regular(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        return "opendc" if stream.read(4) == b"PAR1" else "csv"


def import_arrivals(path: Path, *, out: Path, format_name: str = "auto",
                    memory_unit: str = "1MiB", force: bool = False) -> ArrivalsReport:
    """Read a record and write one table of arrivals at `out`.

    `memory_unit`: the size that OpenDC's mem_capacity counts in. Raises UsageError for a format
    that is not known or an `out` that is there, DataError with file and place for unusable input.
    """
    if format_name != "auto" and format_name not in FORMATS:
        raise UsageError(f"no format {shown(format_name)}", where="--from",
                         instead="use auto, " + ", ".join(FORMATS))
    try:
        unit_bytes = parse_size(memory_unit)
    except ValueError as error:
        raise UsageError(str(error), where="--memory-unit", instead="write 1MiB") from None
    if not unit_bytes:
        raise UsageError("memory cannot count in nothing", where="--memory-unit",
                         instead="write 1MiB")
    refuse_existing(out, force)
    name = detect(path) if format_name == "auto" else format_name
    read: Callable[[Path, Options], Found] = import_module(FORMATS[name]).read
    found = read(path, Options(unit_bytes))
    table, n_late = arrival_table(str(out), found.columns, found.flavours, {
        "source": "planner import arrivals", "format": name, **found.provenance,
        "skipped": found.skipped})
    write_arrivals(out, table, force=force)
    notes = list(found.notes)
    if n_late:
        notes.append(f"{format_count(n_late)} row(s) came before the row above them; all rows "
                     "are now in order of time")
    return ArrivalsReport(table, name, found.skipped, [*notes, *table.warnings])
