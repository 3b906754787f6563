"""From the listings of cluster tools to one fleet inventory.

Each format module has `read(sources, host) -> Found`; `import_inventory` finds out which format
each file is in, calls them and puts the rows together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from planner.errors import UsageError
from planner.importers.textfile import (
    Source,
    check_format,
    fault,
    not_recognised,
    parse_json,
    read_source,
    shown,
    whole_number,
)
from planner.inventory import InventoryRow, label_problem, write_inventory

__all__ = ["FORMATS", "Found", "InventoryReport", "clean_labels", "import_inventory",
           "memory_of", "positive"]

#: Where each format is read.
FORMATS = {
    "proxmox": "planner.importers.proxmox", "libvirt": "planner.importers.libvirt",
    "kubernetes": "planner.importers.kubernetes", "openstack": "planner.importers.openstack",
    "csv": "planner.importers.csvfile",
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
    raise not_recognised(source, FORMATS)


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
    raise not_recognised(source, FORMATS)


def import_inventory(files: Sequence[Path], *, out: Path, format_name: str = "auto",
                     host: str | None = None, force: bool = False) -> InventoryReport:
    """Read listings and write one inventory file at `out`.

    `host` is the host of guests whose listing names none. Raises UsageError for a format that
    is not known or an `out` that is there, DataError with file and line for unusable input.
    """
    check_format(format_name, FORMATS)
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
