"""Partitionings worth looking at as one HTML page: a chart of saving against exposure, a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.escape import clean
from planner.report.chart_base import GREY, Spec, frame, from_zero, look
from planner.report.facts import MemoryUnit, memory_unit
from planner.report.page import render_page
from planner.report.suggest_text import joined_text, notes
from planner.units import format_count, format_duration, format_share

__all__ = ["pareto_chart", "render_suggestion_html"]

#: Longest list of joined names in a tooltip, and in the table.
_TIP, _CELL = 120, 4000
_COLOUR = look(1).colour


def _unit(document: Mapping[str, Any]) -> MemoryUnit:
    return memory_unit(max(document["one_merge_space"]["saved_bytes"], *(
        row["saved_bytes"]["highest"] for row in document["frontier"])))


def pareto_chart(document: Mapping[str, Any]) -> Spec:
    """Saving against exposed domain pairs: what no other partitioning beats, as steps with a
    point each and the span over the moments, and one merge space over all as a ring."""
    unit = _unit(document)
    values: list[dict[str, Any]] = [{
        "pairs": row["exposed_domain_pairs"], "saved": unit.value(row["saved_bytes"]["mean"]),
        "low": unit.value(row["saved_bytes"]["lowest"]),
        "high": unit.value(row["saved_bytes"]["highest"]),
        "cpu": round(row["merge_cpu_ns"] / 1e9, 3),
        "joined": joined_text(document, row, _TIP),
    } for row in document["frontier"]]
    one = document["one_merge_space"]
    ring: dict[str, Any] = {
        "pairs": one["exposed_domain_pairs"], "saved": unit.value(one["saved_bytes"]),
        "cpu": round(one["merge_cpu_ns"] / 1e9, 3), "joined": "one merge space over all"}
    spec = frame("Saved memory against exposed domain pairs, one point per partitioning", values,
                 [])
    x: Spec = {"field": "pairs", "type": "quantitative", "title": "exposed domain pairs",
               "scale": from_zero([*values, ring], "pairs"),
               "axis": {"tickMinStep": 1, "tickCount": 6}}
    title = f"saved at rest, zero pages not counted ({unit.name})"
    y: Spec = {"field": "saved", "type": "quantitative", "title": title,
               "scale": from_zero([*values, ring], "saved")}
    tooltip = [{"field": "joined", "type": "nominal"},
               {"field": "pairs", "type": "quantitative", "title": "exposed pairs"},
               {"field": "saved", "type": "quantitative", "title": f"saved {unit.name}"},
               {"field": "cpu", "type": "quantitative", "title": "merging, CPU s"}]
    spec["encoding"] = {"x": x}
    spec["layer"] = [
        {"mark": {"type": "line", "interpolate": "step-after", "color": GREY,
                  "strokeDash": [4, 4], "strokeWidth": 1.5},
         "encoding": {"y": y, "order": {"field": "pairs", "type": "quantitative"}}},
        {"mark": {"type": "rule", "color": _COLOUR, "strokeWidth": 2, "opacity": 0.5},
         "encoding": {"y": {"field": "low", "type": "quantitative", "title": title},
                      "y2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "color": _COLOUR, "size": 70, "opacity": 1},
         "encoding": {"y": y, "tooltip": tooltip}},
        {"data": {"values": [ring]},
         "mark": {"type": "point", "filled": False, "color": GREY, "size": 110, "opacity": 1,
                  "strokeWidth": 2},
         "encoding": {"y": y, "tooltip": tooltip}},
    ]
    return spec


def render_suggestion_html(document: Mapping[str, Any], *, is_static: bool = False) -> str:
    """The page of a document of `planner suggest --json`.

    With `is_static` the chart is SVG and the page holds no script; raises MachineError where its
    extra is missing. The same document gives the same bytes.
    """
    unit = _unit(document)
    one = document["one_merge_space"]
    top = max(one["saved_bytes"], 1)
    rows = [{
        "pairs": format_count(row["exposed_domain_pairs"]),
        "mean": unit.figures(row["saved_bytes"]["mean"]),
        "lowest": unit.figures(row["saved_bytes"]["lowest"]),
        "highest": unit.figures(row["saved_bytes"]["highest"]),
        "share": format_share(row["saved_bytes"]["mean"] / top),
        "merge": format_duration(row["merge_cpu_ns"]),
        "again": format_duration(row["further_pass_cpu_ns"]),
        "joined": joined_text(document, row, _CELL),
    } for row in document["frontier"]]
    rows.append({
        "pairs": format_count(one["exposed_domain_pairs"]), "mean": unit.figures(
            one["saved_bytes"]), "lowest": "–", "highest": "–",
        "share": format_share(one["saved_bytes"] / top),
        "merge": format_duration(one["merge_cpu_ns"]),
        "again": format_duration(one["further_pass_cpu_ns"]),
        "joined": "one merge space over all (for comparison)"})
    return render_page("suggest.html", {
        "title": clean(document["title"], 200), "by": clean(document["by"], 80),
        "n_members": format_count(len(document["members"])),
        "n_hosts": format_count(document["n_machines"]), "n_moments": document["n_moments"],
        "unit": unit.name, "rows": rows, "notes": notes(document),
        "costs": clean(document["costs"], 200),
        "looked_at": unit.text(one["looked_at_bytes"]),
        "alone": clean(", ".join(document["alone"]), _CELL) if document["alone"] else "",
    }, {"pareto": pareto_chart(document)}, is_static=is_static)
