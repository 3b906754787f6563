"""From the listings of cluster tools to one fleet inventory.

Each format module has `read(sources, host) -> Found`; `import_inventory` finds out which format
each file is in, calls them and puts the rows together. The documented CSV is read here.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from planner.errors import UsageError
from planner.importers.textfile import (
    Source,
    fault,
    parse_json,
    read_source,
    shown,
    whole_number,
)
from planner.inventory import InventoryRow, label_problem, write_inventory
from planner.units import parse_size

__all__ = ["FORMATS", "Found", "InventoryReport", "clean_labels", "import_inventory",
           "memory_of", "positive"]

#: Where each format is read.
FORMATS = {
    "proxmox": "planner.importers.proxmox", "libvirt": "planner.importers.libvirt",
    "kubernetes": "planner.importers.kubernetes", "openstack": "planner.importers.openstack",
    "csv": "planner.importers.inventory",
}
MAX_LABELS = 256
MAX_ROWS = 200_000


@dataclass(slots=True)
class Found:
    """What one format gave: rows, what was left out (reason to number), and remarks."""

    rows: list[InventoryRow] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Source, row: InventoryRow, line: int = 0) -> None:
        """Keep a row whose texts are usable; raise DataError for one that has no usable name."""
        problem = label_problem(row.name)
        if problem:
            raise fault(source, f"name {shown(row.name)} {problem}", line)
        if len(self.rows) >= MAX_ROWS:
            raise fault(source, f"more than {MAX_ROWS} hosts and guests", line,
                        "import a part of the fleet")
        self.rows.append(row)


@dataclass(frozen=True, slots=True)
class InventoryReport:
    """What an import wrote, and what it left out and why."""

    path: Path
    n_hosts: int
    n_guests: int
    skipped: dict[str, int]
    notes: list[str]


def text_of(value: object) -> str | None:
    """`value` as the text of a column; None where it is no usable text."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    if not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return None if label_problem(text) else text


def clean_labels(found: Found, values: Any) -> dict[str, str]:
    """The usable labels of a mapping; empty values are left out, unusable ones counted."""
    labels: dict[str, str] = {}
    if not isinstance(values, dict):
        return labels
    for key, value in values.items():
        if value is None or value == "":
            continue
        text, name = text_of(value), text_of(key)
        if text is None or name is None or len(labels) >= MAX_LABELS:
            found.skipped["label that is no short text"] += 1
        else:
            labels[name] = text
    return labels


def memory_of(source: Source, value: object, what: str, scale: int = 1,
              line: int = 0) -> int | None:
    """Bytes of a number times `scale`; None for nothing or zero, DataError for nonsense."""
    if value is None or value == "":
        return None
    number = whole_number(value, scale)
    if number is None or number < 0:
        raise fault(source, f"{what} is {shown(value)}, expected a number", line)
    return number or None


def positive(source: Source, value: object, what: str, line: int = 0) -> int | None:
    """A count such as a number of CPUs; see `memory_of`."""
    return memory_of(source, value, what, line=line)


def detect(source: Source) -> str:
    """Which format a file is in, by its content; raises DataError where none fits."""
    text = source.text.lstrip()
    head = text[:4096]
    if head[:1] in "[{" and head:
        return _json_kind(source)
    if head.startswith("<"):
        return "libvirt"
    lines = [line.strip() for line in head.splitlines()
             if line.strip() and not line.startswith("#")]
    if any(line.startswith(("Domain: '", "CPU model:", "Memory size:")) for line in lines):
        return "libvirt"
    if lines and "name" in [cell.strip() for cell in lines[0].split(",")]:
        return "csv"
    if any(line.startswith(("memory:", "cores:", "boot:", "name:")) for line in lines):
        return "proxmox"
    raise fault(source, "its format is not recognised", instead="give --format, one of "
                + ", ".join(FORMATS))


def _json_kind(source: Source) -> str:
    document = parse_json(source)
    first = document[0] if isinstance(document, list) and document else document
    keys = set(first) if isinstance(first, dict) else set()
    if isinstance(document, dict) and ({"apiVersion", "kind"} & keys):
        return "kubernetes"
    if keys & {"ID", "Name", "Hypervisor Hostname", "Flavor Name"}:
        return "openstack"
    if keys & {"type", "vmid", "memory", "digest", "boot", "node"}:
        return "proxmox"
    raise fault(source, "its format is not recognised", instead="give --format, one of "
                + ", ".join(FORMATS))


def import_inventory(files: Sequence[Path], *, out: Path, format_name: str = "auto",
                     host: str | None = None, force: bool = False) -> InventoryReport:
    """Read listings and write one inventory file at `out`.

    `host` is the host of guests whose listing names none. Raises UsageError for a format that
    is not known or an `out` that is there, DataError with file and line for unusable input.
    """
    if format_name != "auto" and format_name not in FORMATS:
        raise UsageError(f"no format {shown(format_name)}", where="--format",
                         instead="use auto, " + ", ".join(FORMATS))
    if not files:
        raise UsageError("no file given", where="planner import inventory")
    if host is not None and label_problem(host):
        raise UsageError(f"{label_problem(host)}", where="--host", instead="give a host's name")
    sources = [read_source(path) for path in files]
    grouped: dict[str, list[Source]] = {}
    for source in sources:
        name = detect(source) if format_name == "auto" else format_name
        grouped.setdefault(name, []).append(source)
    total = Found()
    for name, group in grouped.items():
        read: Callable[[Sequence[Source], str | None], Found] = import_module(FORMATS[name]).read
        found = read(group, host)
        total.rows += found.rows
        total.skipped += found.skipped
        total.notes += found.notes
    rows = _once(total)
    if not rows:
        raise fault(sources[0], "no host and no guest in it", instead="check the command that "
                    "made it (docs/importing.md)")
    write_inventory(out, rows, {
        "source": "planner import inventory",
        "files": [{"name": Path(source.name).name, "format": name}
                  for name, group in grouped.items() for source in group],
        "skipped": dict(total.skipped)}, force=force)
    n_hosts = sum(row.is_host for row in rows)
    return InventoryReport(out, n_hosts, len(rows) - n_hosts, dict(total.skipped), total.notes)


def _once(found: Found) -> list[InventoryRow]:
    """Rows without repetitions: a host stands once, and so does a guest on its host."""
    seen: dict[tuple[Any, ...], InventoryRow] = {}
    for row in found.rows:
        key = (True, row.name) if row.is_host else (
            False, row.name, row.host, row.domain, row.labels.get("id"))
        if key in seen and seen[key] != row:
            found.skipped["listed more than once, first kept"] += 1
        seen.setdefault(key, row)
    return list(seen.values())


# ---- the documented CSV -----------------------------------------------------------------------

_COLUMNS = ("row_kind", "name", "host", "memory", "memory_bytes", "cpus", "domain", "image",
            "mergeable")
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read(sources: Sequence[Source], host: str | None) -> Found:
    """CSV with a header: `name` and any of row_kind (host or guest; default guest), host, memory
    (a size such as 4GiB) or memory_bytes, cpus, domain, image, mergeable; others are labels."""
    found = Found()
    for source in sources:
        reader = csv.reader(io.StringIO(source.text, newline=""), strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            if "name" not in header:
                raise fault(source, "no column 'name'", 1, "name the columns in the first line")
            for position, column in enumerate(header):
                if not column or column in header[:position]:
                    raise fault(source, f"column {position + 1} has no name of its own", 1)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    found.add(source, _csv_row(source, reader.line_num, header, cells, host,
                                               found), reader.line_num)
        except csv.Error as error:
            raise fault(source, f"not CSV: {error}", reader.line_num) from None
    return found


def _csv_row(source: Source, line: int, header: list[str], cells: list[str], host: str | None,
             found: Found) -> InventoryRow:
    if len(cells) != len(header):
        raise fault(source, f"{len(cells)} cells, but {len(header)} columns", line)
    row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    kind = row.get("row_kind") or "guest"
    if kind not in ("host", "guest"):
        raise fault(source, f"row_kind is {shown(kind)}", line, "write host or guest")
    memory_bytes = memory_of(source, row.get("memory_bytes"), "memory_bytes", line=line)
    if row.get("memory"):
        try:
            memory_bytes = parse_size(row["memory"]) or None
        except ValueError as error:
            raise fault(source, str(error), line) from None
    word = row.get("mergeable", "").lower()
    if word and word not in _BOOLS:
        raise fault(source, f"mergeable is {shown(word)}", line, "write true or false")
    texts = {}
    for column in ("host", "domain", "image"):
        value = row.get(column) or None
        if value and label_problem(value):
            raise fault(source, f"{column} {label_problem(value)}", line)
        texts[column] = value
    labels = clean_labels(found, {key: value for key, value in row.items()
                                  if key not in _COLUMNS})
    is_host = kind == "host"
    return InventoryRow(is_host, row["name"], texts["host"] or (None if is_host else host),
                        memory_bytes, positive(source, row.get("cpus"), "cpus", line),
                        texts["domain"], texts["image"], _BOOLS.get(word), labels)
