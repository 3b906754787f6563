"""Partitionings worth looking at, for the terminal: a table with a bar of each one's saving."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from planner.escape import clean
from planner.report.columns import Column, render_table
from planner.units import format_duration, format_share, format_size

__all__ = ["joined_text", "notes", "render_suggestion"]

_ROWS = 16
_BAR = 8
#: Width of all columns but the names of what is joined.
_OTHERS = 70


def joined_text(document: Mapping[str, Any], row: Mapping[str, Any], limit: int) -> str:
    """The groups of a row of the frontier that have several members, in at most `limit`."""
    joined = [" + ".join(group) for group in row["groups"] if len(group) > 1]
    return clean("; ".join(joined) or f"every {document['by']} alone", limit)


def notes(document: Mapping[str, Any]) -> list[str]:
    """Sentences on what the figures are, and are not."""
    found = ["Savings are frames of non-zero content at rest, each content merged once, without "
             "the kernel's own records; planner run tests a partitioning with timing, writes and "
             "limits.",
             "CPU is that of one pass that merges everything, over all hosts, and of a further "
             f"pass where nothing changed, by {clean(document['costs'], 80)}"
             + (", which is no measurement of your machine." if "unmeasured" in document["costs"]
                else ".")]
    n_hosts, n_machines = document["n_hosts"], document["n_machines"]
    if document["content_share"] < 1 or n_hosts < n_machines:
        found.append(f"All figures are scaled up from {format_share(document['content_share'])} "
                     f"of the contents of {n_hosts} of {n_machines} host(s).")
    return found


def render_suggestion(document: Mapping[str, Any], width: int = 100) -> str:
    """The frontier of `planner suggest --json` as a table of at most 16 rows, with bars."""
    everything = document["frontier"]
    step = max(1, -(-len(everything) // _ROWS))
    rows = [everything[index] for index in range(0, len(everything), step)]
    if rows[-1] is not everything[-1]:
        rows.append(everything[-1])
    one = document["one_merge_space"]
    top = max(one["saved_bytes"], 1)

    def span(row: Mapping[str, Any]) -> str:
        saved = row["saved_bytes"]
        return f"{format_size(saved['lowest'])} to {format_size(saved['highest'])}"

    columns = [
        Column(("EXPOSED", "PAIRS"), tuple(str(row["exposed_domain_pairs"]) for row in rows)),
        Column(("SAVED", "mean"), tuple(format_size(row["saved_bytes"]["mean"]) for row in rows)),
        Column(("OVER THE", "MOMENTS"), tuple(map(span, rows))),
        Column(("OF ONE", "SPACE"), tuple(
            format_share(row["saved_bytes"]["mean"] / top) for row in rows)),
        Column(("MERGE", "CPU"), tuple(format_duration(row["merge_cpu_ns"]) for row in rows)),
        Column(("", ""), tuple("#" * round(_BAR * row["saved_bytes"]["mean"] / top)
                               for row in rows), is_left=True),
        Column(("", "JOINED"), tuple(
            joined_text(document, row, max(20, width - _OTHERS)) for row in rows), is_left=True),
    ]
    lines = render_table(columns, width=width, colour=False)
    sentences = [f"One merge space over all {len(document['members'])} would save "
                 f"{format_size(one['saved_bytes'])}, take {format_duration(one['merge_cpu_ns'])} "
                 f"of CPU time to merge, and expose {one['exposed_domain_pairs']} domain pairs.",
                 *notes(document)]
    if document["alone"]:
        sentences.append("Kept alone: " + clean(", ".join(document["alone"]), width - 12) + ".")
    wrapped = [line for sentence in sentences for line in textwrap.wrap(sentence, width)]
    return "\n".join([*lines, "", *wrapped])
