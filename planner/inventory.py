"""The fleet inventory: hosts and guests as other tools list them, in one Parquet table.

One row a host and one a guest. What has no column of its own is kept in `labels`. Sizes are
bytes; what is not known is null. `docs/importing.md` says where each value comes from.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from planner.errors import DataError, UsageError
from planner.tables import TableKind, read_table, write_table

__all__ = ["INVENTORY", "Inventory", "InventoryRow", "label_problem", "read_inventory",
           "refuse_existing", "write_inventory", "write_private"]

_TEXT = pa.string()
INVENTORY = TableKind("planner.fleet.inventory", 1, 0, pa.schema([
    pa.field("row_kind", _TEXT, nullable=False),
    pa.field("name", _TEXT, nullable=False),
    pa.field("host", _TEXT),
    pa.field("memory_bytes", pa.int64()),
    pa.field("cpus", pa.int64()),
    pa.field("domain", _TEXT),
    pa.field("image", _TEXT),
    pa.field("mergeable", pa.bool_()),
    pa.field("labels", pa.map_(_TEXT, _TEXT), nullable=False),
]))
#: As for texts of a scenario (`planner.scenario.schema`).
MAX_LABEL = 256


@dataclass(frozen=True, slots=True)
class InventoryRow:
    """A host (`is_host`) or a guest.

    `host` is where a guest runs; `mergeable` whether its memory may be merged as far as its
    configuration says; `labels` everything else.
    """

    is_host: bool
    name: str
    host: str | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    domain: str | None = None
    image: str | None = None
    mergeable: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def all_labels(self) -> dict[str, str]:
        """`labels` and, under their column names, domain, image, host and mergeable (true or
        false) where they are known."""
        found = dict(self.labels)
        for key in ("domain", "image", "host"):
            value = getattr(self, key)
            if value is not None:
                found[key] = value
        if self.mergeable is not None:
            found["mergeable"] = "true" if self.mergeable else "false"
        return found


@dataclass(frozen=True, slots=True)
class Inventory:
    """The rows of one file, hosts first, and what its metadata says of their source."""

    path: str
    rows: tuple[InventoryRow, ...]
    provenance: Mapping[str, Any]

    @property
    def hosts(self) -> list[InventoryRow]:
        """Rows of hosts."""
        return [row for row in self.rows if row.is_host]

    @property
    def guests(self) -> list[InventoryRow]:
        """Rows of guests."""
        return [row for row in self.rows if not row.is_host]


def label_problem(text: str) -> str:
    """Why `text` cannot be a name, a label's key or its value; empty where it can."""
    if not text.strip():
        return "is empty"
    if len(text) > MAX_LABEL:
        return f"is longer than {MAX_LABEL} characters"
    if not text.isprintable():
        return "holds a character that cannot be printed"
    return ""


def _check(row: InventoryRow, where: str) -> None:
    texts = [row.name, *row.labels, *row.labels.values(),
             *(text for text in (row.host, row.domain, row.image) if text is not None)]
    for text in texts:
        problem = label_problem(text)
        if problem:
            raise DataError(f"{text[:40]!r} {problem}", where=where,
                            instead="import the inventory again")
    for name, number in (("memory_bytes", row.memory_bytes), ("cpus", row.cpus)):
        if number is not None and not 0 < number < 2**63:
            raise DataError(f"{name} of {row.name!r} is {number}", where=where,
                            instead="import the inventory again")


def write_inventory(path: Path, rows: Sequence[InventoryRow], provenance: Mapping[str, Any], *,
                    force: bool = False) -> Path:
    """Write `rows` to a new file at `path` (mode 0600), aside and renamed; hosts come first.

    Raises UsageError where the file is there and `force` is not given, DataError for a row
    that no scenario could use.
    """
    refuse_existing(path, force)
    for row in rows:
        _check(row, str(path))
    ordered = [row for row in rows if row.is_host] + [row for row in rows if not row.is_host]
    table = pa.Table.from_pylist([{
        "row_kind": "host" if row.is_host else "guest", "name": row.name, "host": row.host,
        "memory_bytes": row.memory_bytes, "cpus": row.cpus, "domain": row.domain,
        "image": row.image, "mergeable": row.mergeable, "labels": sorted(row.labels.items()),
    } for row in ordered], schema=INVENTORY.schema)
    write_private(path, INVENTORY, table, provenance)
    return path


def refuse_existing(path: Path, force: bool) -> None:
    """Raise UsageError where `path` is there and may not be replaced, or can never be."""
    if path.is_dir():
        raise UsageError("is a folder", where=str(path), instead="name a file to write")
    if os.path.lexists(path) and not (force and path.is_file()):
        raise UsageError("the file exists", where=str(path),
                         instead="choose another name, or replace it with --force")


def write_private(path: Path, kind: TableKind, table: pa.Table,
                  provenance: Mapping[str, Any]) -> None:
    """Write a table aside with mode 0600 and rename it; raises DataError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, kind, table, {"provenance": dict(provenance)}, mode=0o600)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", where=str(path),
                        instead="check the folder and its permissions") from None


def read_inventory(path: Path) -> Inventory:
    """The inventory at `path`; raises DataError where it is none or holds unusable rows."""
    table, metadata = read_table(path, INVENTORY)
    rows = []
    for number, record in enumerate(table.to_pylist()):
        where = f"{path}: row {number}"
        kind = record.pop("row_kind")
        if kind not in ("host", "guest"):
            raise DataError(f"row_kind is {kind[:40]!r}, expected host or guest", where=where,
                            instead="import the inventory again")
        pairs = record.pop("labels")
        labels = {key: value for key, value in pairs if value is not None}
        if len(labels) != len(pairs):
            raise DataError("a label is given twice or has no value", where=where,
                            instead="import the inventory again")
        row = InventoryRow(is_host=kind == "host", labels=labels, **record)
        _check(row, where)
        rows.append(row)
    twice = [name for name, count in Counter(r.name for r in rows if r.is_host).items()
             if count > 1]
    if twice:
        raise DataError(f"host {twice[0]!r} is listed twice", where=str(path),
                        instead="import the inventory again")
    provenance = metadata.get("provenance")
    return Inventory(str(path), tuple(rows), provenance if isinstance(provenance, dict) else {})
