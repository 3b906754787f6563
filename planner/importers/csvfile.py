"""The documented CSV of hosts and guests (docs/importing.md)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from planner.importers.inventory import Found, clean_labels, memory_of, positive
from planner.importers.textfile import Source, fault, shown
from planner.inventory import InventoryRow, label_problem
from planner.units import parse_size

__all__ = ["read"]

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
