"""`planner trace info` for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from planner.report.columns import Column, render_table, table_width
from planner.report.facts import MemoryUnit, clean, memory_unit
from planner.units import format_count, format_duration, format_share

__all__ = ["render_trace_info"]

#: Guests listed at most; the JSON form has all.
MAX_GUESTS = 40
_MAX_LABEL = 24

Document = Mapping[str, Any]


def _figures(unit: MemoryUnit, document: Document, n_pages: int) -> str:
    return unit.figures(n_pages * int(document["page_bytes"]))


def _column(head: tuple[str, ...], rows: Sequence[Any], cell: Callable[[Any], str], *,
            is_left: bool = False) -> Column:
    return Column(head, tuple(map(cell, rows)), is_left=is_left)


def _guest_columns(document: Document, unit: MemoryUnit, width: int) -> list[Column]:
    """The trace as a whole first, then its largest guests; label columns as far as they fit."""
    guests = list(document["guests"])
    if len(guests) > MAX_GUESTS:
        guests = sorted(guests, key=lambda guest: -guest["n_counted"])[:MAX_GUESTS]
    labels = ("*", *(clean(guest["name"], _MAX_LABEL) for guest in guests))
    rows: list[Document] = [document["total"], *guests]

    def share(name: str) -> Callable[[Document], str]:
        return lambda row: format_share(row[name])

    def in_label(key: str) -> Callable[[Document], str]:
        return lambda row: format_share(row["twins_in_label_share"][key])

    def changed(row: Document) -> str:
        value = row["changed_per_minute"]
        return "–" if value is None else format_share(value)

    before = [
        Column(("", "GUEST"), labels, is_left=True),
        _column(("COUNTED", unit.name), rows,
                lambda row: _figures(unit, document, row["n_counted"])),
        _column(("SHARED", "ALREADY"), rows, lambda row: format_share(
            row["n_already_shared"] / row["n_counted"] if row["n_counted"] else 0.0)),
        _column(("", "ZERO"), rows, share("zero_share")),
        _column(("", "HUGE"), rows, share("thp_share")),
        _column(("", "UNIQUE"), rows, share("unique_share")),
        _column(("TWIN IN", "GUEST"), rows, share("twins_in_guest_share")),
    ]
    after = [
        _column(("TWIN", "ANYWHERE"), rows, share("twins_share")),
        _column(("CHANGED", "a minute"), rows, changed),
    ]
    for boundary in document["boundaries"]:
        key = boundary["label"]
        if key == "guest" or boundary["n_values"] < 2:
            continue
        column = _column(("IN SAME", clean(key, 16)), rows, in_label(key))
        if table_width([*before, column, *after]) > width:
            break
        before.append(column)
    return [*before, *after]


def _boundary_columns(document: Document, unit: MemoryUnit) -> list[Column]:
    counts = document["counts"]
    one_space = {
        "label": "(none)", "n_values": 1, "n_duplicates_kept": counts["n_duplicates"],
        "n_duplicates_lost": 0, "lost_share": 0.0,
        "n_zero_duplicates_kept": counts["n_zero_duplicates"], "n_zero_duplicates_lost": 0}
    rows: list[Document] = [one_space, *document["boundaries"]]

    def size(head: tuple[str, ...], name: str) -> Column:
        return _column((*head, unit.name), rows, lambda row: _figures(unit, document, row[name]))

    return [
        _column(("", "BOUNDARY", "along"), rows, lambda row: clean(row["label"], _MAX_LABEL),
                is_left=True),
        _column(("MERGE", "SPACES"), rows, lambda row: format_count(row["n_values"])),
        size(("", "FREED"), "n_duplicates_kept"),
        size(("", "LOST"), "n_duplicates_lost"),
        _column(("LOST", "of all"), rows, lambda row: format_share(row["lost_share"])),
        size(("ZERO", "FREED"), "n_zero_duplicates_kept"),
        size(("ZERO", "LOST"), "n_zero_duplicates_lost"),
    ]


def _eligibility_columns(document: Document, unit: MemoryUnit) -> list[Column]:
    found = document["eligibility"]
    rows: list[tuple[str, int]] = [
        ("could merge, advised", found["n_advised"]),
        ("could merge if advised", found["n_not_advised"]),
        ("not anonymous", found["n_not_anonymous"]),
        ("kernel's shared zero page", found["n_zero_page"]),
        *((f"no hash: {clean(reason).replace('_', ' ')}", n)
          for reason, n in sorted(found["no_hash"].items())),
        *((f"VMA cannot merge: {clean(reason).replace('_', ' ')}", n)
          for reason, n in sorted(found["incompatible"].items())),
    ]
    rows = [row for row in rows if row[1]]
    total = max(found["n_pages"], 1)
    return [
        _column(("PAGES OF THE SNAPSHOT",), rows, lambda row: row[0], is_left=True),
        _column(("pages",), rows, lambda row: format_count(row[1])),
        _column((unit.name,), rows, lambda row: _figures(unit, document, row[1])),
        _column(("share",), rows, lambda row: format_share(row[1] / total)),
    ]


def _part_columns(head: str, parts: Sequence[Document], unit: MemoryUnit,
                  width: int) -> list[Column]:
    longest = max(len(head), width - 20)
    return [
        _column((head,), parts, lambda part: clean(part["text"], longest), is_left=True),
        _column((unit.name,), parts, lambda part: unit.figures(part["n_bytes"])),
        _column(("share",), parts, lambda part: format_share(part["share"])),
    ]


def _diagnosis(document: Document, unit: MemoryUnit, width: int) -> list[str]:
    """Why memory would not merge, and what it is."""
    found = document["diagnosis"]
    lines: list[str] = []
    if found["obstacles"]:
        columns = _part_columns("WHAT KEEPS MEMORY FROM MERGING (may overlap)",
                                found["obstacles"], unit, width)
        lines += render_table(columns, width=width, colour=False)
        most = max(found["obstacles"], key=lambda part: part["n_bytes"])
        if most["instead"]:
            lines += textwrap.wrap(f"{most['text'][0].upper()}{most['text'][1:]}: "
                                   f"{most['instead']}.", width)
        lines.append("")
    if found["contents"]:
        columns = _part_columns("WHAT THE MEMORY THAT COULD MERGE IS", found["contents"], unit,
                                width)
        lines += render_table(columns, width=width, colour=False)
        lines.append("")
    return lines


def _head(document: Document) -> str:
    snapshot, digest = document["snapshot"], clean(document["digest"], 80)
    n_snapshots, n_guests = document["n_snapshots"], len(document["guests"])
    began = datetime.fromtimestamp(snapshot["start_ns"] // 10**9, UTC)
    took = format_duration(snapshot["end_ns"] - snapshot["start_ns"])
    status = "" if document["status"] == "complete" else f" ({clean(document['status'], 24)})"
    partial = ", which is partial" if snapshot["is_partial"] else ""
    several = "s" if n_snapshots != 1 else ""
    return (f"{clean(document['path'], 200)}{status}: {n_guests} guest{'s'[:n_guests != 1]}, "
            f"{n_snapshots} snapshot{several} over {format_duration(document['span_ns'])}. Counted "
            f"is snapshot {snapshot['snapshot_id']}{partial}, begun {began:%Y-%m-%d %H:%M:%S} UTC, "
            f"taken in {took}. Hash {clean(document['hash']['algorithm'])}, "
            f"{document['hash']['bits']} bits, key {clean(document['hash']['key_id'])}. "
            f"Digest {digest}."
            + ("" if document.get("has_page_ids", True) else " The trace has no page ids (it is of "
               "hash lists), so what changed between snapshots is not known."))


def _definitions(document: Document) -> str:
    advised = " in advised VMAs" if document["is_advised_only"] else ", advised or not"
    return (f"COUNTED: anonymous pages with a hash that KSM could merge{advised}; SHARED ALREADY: "
            "of these, what fork or KSM shares. Other shares are of frames, HUGE of counted pages. "
            "TWIN: a frame with another copy of its content, in the guest, under the same label, "
            "anywhere; zero pages stand apart. FREED: frames that merging would free now, with one "
            "merge space per value of a label, before KSM's own records; LOST: what the boundary "
            "costs beside one space for all.")


def _closing(document: Document, unit: MemoryUnit) -> str:
    counts, total = document["counts"], document["total"]
    n_frames = total["n_frames"]
    if not n_frames:
        return "Nothing in this snapshot could be merged."
    freed = counts["n_duplicates"]
    text = (f"One merge space for all would free {_figures(unit, document, freed)} {unit.name} "
            f"({format_share(freed / n_frames)} of {_figures(unit, document, n_frames)} "
            f"{unit.name}), and {_figures(unit, document, counts['n_zero_duplicates'])} "
            f"{unit.name} of zero pages")
    prices = [f"{clean(boundary['label'], _MAX_LABEL)} {format_share(boundary['lost_share'])}"
              for boundary in document["boundaries"] if boundary["n_values"] > 1]
    if freed and prices:
        text += f"; of the first, a boundary costs along {', '.join(prices)}"
    return text + "."


def render_trace_info(document: Document, width: int) -> str:
    """The document of `planner.traceinfo.TraceInfo.to_json` for a terminal of `width` columns.

    Guests with the trace as a whole first, boundaries, which pages could merge, definitions and
    one closing sentence. Names are shown without control characters.
    """
    unit = memory_unit(document["total"]["n_counted"] * int(document["page_bytes"]))
    lines = [*textwrap.wrap(_head(document), width), ""]
    lines += render_table(_guest_columns(document, unit, width), width=width, colour=False)
    left_out = len(document["guests"]) - MAX_GUESTS
    if left_out > 0:
        lines.append(f"and {format_count(left_out)} more guests, in --json")
    lines.append("")
    lines += render_table(_boundary_columns(document, unit), width=width, colour=False)
    lines.append("")
    lines += render_table(_eligibility_columns(document, unit), width=width, colour=False)
    lines.append("")
    lines += _diagnosis(document, unit, width)
    lines += textwrap.wrap(_definitions(document), width)
    lines.append("")
    lines += textwrap.wrap(_closing(document, unit), width)
    return "\n".join(lines) + "\n"
