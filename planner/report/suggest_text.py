"""Partitionings worth looking at, for the terminal: a table with a bar of each one's saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.escape import clean
from planner.report.columns import Column, render_table
from planner.units import format_share, format_size

__all__ = ["render_suggestion"]

_ROWS = 16
_BAR = 20


def render_suggestion(document: Mapping[str, Any], width: int = 100) -> str:
    """The frontier of `planner suggest --json` as a table of at most 16 rows, with bars."""
    everything = document["frontier"]
    step = max(1, -(-len(everything) // _ROWS))
    rows = [everything[index] for index in range(0, len(everything), step)]
    if rows[-1] is not everything[-1]:
        rows.append(everything[-1])
    one = document["one_merge_space"]
    top = max(one["saved_bytes"], 1)

    def groups(row: Mapping[str, Any]) -> str:
        joined = [" + ".join(group) for group in row["groups"] if len(group) > 1]
        return clean("; ".join(joined) or f"every {document['by']} alone", max(20, width - 62))

    def span(row: Mapping[str, Any]) -> str:
        saved = row["saved_bytes"]
        return f"{format_size(saved['lowest'])} to {format_size(saved['highest'])}"

    columns = [
        Column(("EXPOSED", "PAIRS"), tuple(str(row["exposed_domain_pairs"]) for row in rows)),
        Column(("SAVED", "mean"), tuple(format_size(row["saved_bytes"]["mean"]) for row in rows)),
        Column(("OVER THE", "SNAPSHOTS"), tuple(map(span, rows))),
        Column(("OF ONE", "MERGE SPACE"), tuple(
            format_share(row["saved_bytes"]["mean"] / top) for row in rows)),
        Column(("", ""), tuple("#" * round(_BAR * row["saved_bytes"]["mean"] / top)
                               for row in rows), is_left=True),
        Column(("", "JOINED"), tuple(map(groups, rows)), is_left=True),
    ]
    lines = render_table(columns, width=width, colour=False)
    lines += ["", f"One merge space over all {len(document['members'])} would save "
              f"{format_size(one['saved_bytes'])} and expose {one['exposed_domain_pairs']} domain "
              "pairs.",
              "Savings are frames of non-zero content at rest, each content merged once, without "
              "the kernel's own records;", "planner run tests a partitioning with timing, writes "
              "and limits."]
    if document["alone"]:
        lines.append("Kept alone: " + clean(", ".join(document["alone"]), width - 12) + ".")
    return "\n".join(lines)
