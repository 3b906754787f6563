"""The charts of a report: Vega-Lite v6 specifications as plain dicts.

All axes of memory start at zero. Every figure that a chart draws also stands in a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planner.report.chart_base import (
    FILLED_AS_GIVEN,
    GREY,
    N_COLOURS,
    Spec,
    base,
    colour_scale,
    from_zero,
    look,
    policy_bars,
    policy_dashes,
    policy_lines,
    time_unit,
)
from planner.report.facts import Facts, Strategy, gather, memory_unit, recommended
from planner.report.plan_charts import plan_charts
from planner.report.plan_view import plan_view
from planner.report.series import (
    Headroom,
    Samples,
    headrooms,
    rate_times,
    rates,
    read_samples,
)

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["MAX_WATERFALLS", "STEP_NAMES", "charts", "drawn_waterfalls", "exposure_chart",
           "frontier", "headroom_chart", "shortfall_bytes", "waterfall_chart", "waterfalls",
           "where_chart"]

#: Waterfalls drawn; the table has all of them.
MAX_WATERFALLS = 6
#: Short names of the steps of `planner.explain`, for the axis; the table has them in full.
STEP_NAMES = {
    "in_use": "in use by guests", "cannot_merge": "cannot merge", "not_advised": "not offered",
    "excluded": "excluded", "eligible": "eligible", "zero": "zero pages",
    "unique": "found nowhere else", "stays": "the copy that stays",
    "other_partition": "twin in other partition", "other_domain": "twin in other domain",
    "could_merge": "could merge", "written": "written", "not_merged": "not merged",
    "metadata": "KSM's own records", "saved": "saved",
}


def shortfall_bytes(facts: Facts) -> list[int]:
    """By policy: how much less it saves (zero pages included) than the one that saves most."""
    totals = [max(s.saved_bytes, 0) + int(s.row["saved_zero_bytes"]) for s in facts.strategies]
    most = max(totals, default=0)
    return [most - total for total in totals]


def _over_time(samples: Samples, facts: Facts, column: str, scale: float,
               ) -> tuple[str, list[dict[str, Any]]]:
    """Name of the time's unit, and points with `policy`, `time` and `value`."""
    name, unit_ns = time_unit(facts.horizon_ns)
    times, lines = samples.over_time(facts, column)
    return name, [{"policy": label, "time": round(t / unit_ns, 4),
                   "value": round(line[t] / scale, 4)}
                  for label, line in lines.items() for t in times if t in line]


def _time_axis(name: str, values: list[dict[str, Any]]) -> Spec:
    return {"field": "time", "title": f"time ({name})",
            "scale": from_zero(values, "time") | {"nice": False}}


def over_time_chart(samples: Samples, facts: Facts) -> Spec:
    """Saved memory over time, one step line per policy; zero pages are not in it."""
    unit = facts.unit
    name, values = _over_time(samples, facts, "saved_bytes", unit.n_bytes)
    return policy_lines(
        "Saved memory over time, one line per strategy", facts, values,
        x=_time_axis(name, values),
        y={"field": "value", "title": f"saved, zero pages not counted ({unit.name})",
           "scale": from_zero(values, "value")})


def cpu_chart(samples: Samples, facts: Facts) -> Spec:
    """Merge CPU since the start, one line per policy."""
    name, values = _over_time(samples, facts, "merge_cpu_ns", 1e9)
    return policy_lines(
        "CPU time spent scanning and merging since the start, one line per strategy", facts, values,
        x=_time_axis(name, values),
        y={"field": "value", "title": "merge CPU since the start (s)",
           "scale": from_zero(values, "value")}, interpolate="linear")


def progress_chart(samples: Samples, facts: Facts) -> Spec:
    """Share of the last saving that was reached, over time on a log axis."""
    name, unit_ns = time_unit(facts.horizon_ns)
    times, lines = samples.over_time(facts, "saved_bytes")
    values: list[dict[str, Any]] = []
    for label, line in lines.items():
        last = line[max(line)] if line else 0
        values += [{"policy": label, "time": round(t / unit_ns, 4),
                    "value": round(line[t] / last * 100, 2)}
                   for t in times if t > 0 and t in line and last > 0]
    drawn = [float(v["time"]) for v in values] or [0.1, 1.0]
    return policy_lines(
        "Share of the last saving that was reached, one line per strategy", facts, values,
        x={"field": "time", "title": f"time ({name}), log scale",
           "scale": {"type": "log", "domain": [min(drawn), max(max(drawn), min(drawn) * 1.01)],
                     "nice": False},
           "axis": {"format": "~r", "tickCount": 5, "labelOverlap": "greedy"}},
        y={"field": "value", "title": "of its last saving (%)",
           "scale": from_zero(values, "value")})


def undone_chart(samples: Samples, facts: Facts) -> Spec:
    """COW breaks a second over all hosts, between evenly spaced times."""
    name, unit_ns = time_unit(facts.horizon_ns)
    times = rate_times(samples, facts.horizon_ns)
    values = [{"policy": s.label, "time": round(end / unit_ns, 4),
               "value": round(n * 1e9 / (end - start), 2)}
              for s in facts.strategies
              for start, end, n in rates(samples.total(s.label, "cow_breaks"), times)]
    return policy_lines(
        "Merged pages written to a second, one line per strategy", facts, values,
        x=_time_axis(name, values),
        y={"field": "value", "title": "COW breaks a second", "scale": from_zero(values, "value")},
        interpolate="step-before")


def frontier(facts: Facts) -> list[Strategy]:
    """Strategies that no other beats in both, by pages shared across domains ascending."""
    found: list[Strategy] = []
    for strategy in sorted(facts.strategies, key=lambda s: (
            int(s.row["cross_domain_pages"]), -s.saved_bytes, s.index)):
        if not found or strategy.saved_bytes > found[-1].saved_bytes:
            found.append(strategy)
    return found


def exposure_chart(facts: Facts) -> Spec:
    """Saving against pages shared across domains; hollow twins count sensitive domains only."""
    unit = facts.unit
    kinds = ("all domains", "sensitive domains only")
    values: list[dict[str, Any]] = []
    for strategy in facts.strategies:
        row = strategy.row
        point = {"policy": strategy.label, "saved": unit.value(strategy.saved_bytes),
                 "cpu_s": round(int(row["merge_cpu_ns"]) / 1e9, 3)}
        values.append(point | {"pages": int(row["cross_domain_pages"]), "counted": kinds[0],
                               "filled": 0.75})
        if facts.has_sensitive:
            values.append(point | {"pages": int(row["cross_domain_sensitive_pages"]),
                                   "counted": kinds[1], "filled": 0})
    spec = base("Saved memory against pages shared across domains, one point per strategy", facts,
                values)
    colour = {"field": "policy", "type": "nominal", "sort": None, "scale": colour_scale(facts)}
    most_cpu_s: float = max((float(v["cpu_s"]) for v in values), default=0.0) or 1.0
    grey = {"symbolFillColor": GREY, "symbolStrokeColor": GREY}
    spec["encoding"] = {
        "x": {"field": "pages", "type": "quantitative", "title": "cross-domain pages",
              "scale": from_zero(values, "pages"), "axis": {
                  "tickMinStep": 1, "tickCount": 6, "labelExpr": "format(datum.value, '~s')"}},
        "y": {"field": "saved", "type": "quantitative",
              "title": f"saved, zero pages not counted ({unit.name})",
              "scale": from_zero(values, "saved")},
    }
    points: Spec = {
        "mark": {"type": "point", "filled": True, "strokeWidth": 2, "strokeOpacity": 1,
                 "opacity": 1, "clip": False},
        "encoding": {
            "fill": colour | {"title": None},
            "stroke": colour | {"title": None},
            "fillOpacity": FILLED_AS_GIVEN,
            "size": {"field": "cpu_s", "type": "quantitative", "title": "merge CPU (s)",
                     "scale": {"type": "linear", "domain": [0, most_cpu_s], "range": [40, 900]},
                     "legend": grey | {"columns": 3, "format": ".3~r", "values": [
                         0, float(f"{most_cpu_s / 2:.2g}"), float(f"{most_cpu_s:.2g}")]}},
            "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                        {"field": "saved", "type": "quantitative", "title": f"saved {unit.name}"},
                        {"field": "pages", "type": "quantitative", "title": "cross-domain pages"},
                        {"field": "counted", "type": "nominal"},
                        {"field": "cpu_s", "type": "quantitative", "title": "merge CPU s"}],
        },
    }
    if len(facts.strategies) > 1 + N_COLOURS:
        points["encoding"]["strokeDash"] = policy_dashes(facts)
    line: Spec = {
        "data": {"values": [{"pages": int(s.row["cross_domain_pages"]),
                             "saved": unit.value(s.saved_bytes)} for s in frontier(facts)]},
        "mark": {"type": "line", "color": GREY, "strokeDash": [4, 4], "strokeWidth": 1.5},
        "encoding": {"order": {"field": "pages", "type": "quantitative"}},
    }
    spec["layer"] = [line, points]
    return spec


#: What a bar of `where_chart` is made of, from the axis outwards.
PARTS = ("saved", "saved, zero pages", "less than the best strategy here")
#: How opaque each part is filled.
_FILLED = (0.95, 0.4, 0)


def where_chart(facts: Facts, when: str = "at the end") -> Spec:
    """Where the duplicate memory is: saved, saved as zero pages, and missed by each policy."""
    unit = facts.unit
    values: list[dict[str, Any]] = []
    for strategy, missed in zip(facts.strategies, shortfall_bytes(facts), strict=True):
        parts = (strategy.saved_bytes, int(strategy.row["saved_zero_bytes"]), missed)
        values += [{"policy": strategy.label, "part": name, "order": i, "filled": filled,
                    "memory": unit.value(n)}
                   for i, (name, filled, n) in enumerate(zip(PARTS, _FILLED, parts, strict=True))]
    return policy_bars("Memory saved, saved as zero pages, and missed, by strategy", facts,
                        values, PARTS, f"memory {when} ({unit.name})")


def headroom_chart(found: Sequence[Headroom], facts: Facts) -> Spec:
    """What guests use while merged and what undoing every merge would add, on the worst host."""
    unit = memory_unit(max((h.in_use_bytes + h.needed_bytes for h in found), default=0))
    parts = ("in use while merged", "would come back")
    values = [{"policy": each.strategy.label, "part": name, "order": i, "filled": _FILLED[i],
               "memory": unit.value(n)}
              for each in found
              for i, (name, n) in enumerate(zip(
                  parts, (each.in_use_bytes, each.needed_bytes), strict=True))]
    bars = policy_bars("Memory in use while merged and once every merge is undone, by strategy",
                        facts, values, parts, f"memory of the worst host ({unit.name})")
    layer = {"mark": bars.pop("mark"), "encoding": bars.pop("encoding")}
    ends = [{"policy": each.strategy.label, "memory": unit.value(each.available_bytes)}
            for each in found]
    rule: Spec = {
        "data": {"values": ends},
        "mark": {"type": "tick", "color": GREY, "opacity": 1, "thickness": 4, "size": 28},
        "encoding": {"y": layer["encoding"]["y"],
                     "x": {"field": "memory", "type": "quantitative"},
                     "tooltip": [{"field": "memory", "type": "quantitative",
                                  "title": f"the host has {unit.name}"}]},
    }
    bars["layer"] = [layer, rule]
    return bars


def waterfall_chart(document: Mapping[str, Any], strategy: Strategy, facts: Facts) -> Spec:
    """Bars from what guests use, step by step, to what one policy saves."""
    steps = [step for step in document["steps"] if step["key"] in STEP_NAMES]
    unit = memory_unit(max((abs(int(step["n_bytes"])) for step in steps), default=0))
    values: list[dict[str, Any]] = []
    level = 0
    for step in steps:
        n_bytes = int(step["n_bytes"])
        start, level = (0, n_bytes) if step["is_total"] else (level, level + n_bytes)
        values.append({"step": STEP_NAMES[step["key"]], "from": unit.value(min(start, level)),
                       "to": unit.value(max(start, level)), "text": unit.figures(n_bytes),
                       "filled": 0.9 if step["is_total"] else 0.3})
    spec = base(f"Where the memory went under {strategy.label}", facts, values)
    spec["height"] = 22 * max(len(values), 1)
    y = {"field": "step", "type": "nominal", "title": None, "sort": None,
         "axis": {"labelLimit": 200}}
    colour = look(strategy.index).colour
    title = f"memory at the end ({unit.name})"
    most = max((v["to"] for v in values), default=0) or 1
    spec["encoding"] = {"y": y}
    spec["layer"] = [
        {"mark": {"type": "bar", "fill": colour, "stroke": colour, "strokeWidth": 1},
         "encoding": {
             "x": {"field": "from", "type": "quantitative", "title": title,
                   "scale": {"zero": True, "domain": [0, most * 1.14], "nice": False},
                   "axis": {"tickCount": 5}},
             "x2": {"field": "to"},
             "fillOpacity": FILLED_AS_GIVEN,
             "tooltip": [{"field": "step", "type": "nominal"},
                         {"field": "text", "type": "nominal", "title": unit.name}]}},
        {"mark": {"type": "text", "align": "left", "dx": 4, "color": GREY, "fontSize": 11},
         "encoding": {"x": {"field": "to", "type": "quantitative"},
                      "text": {"field": "text", "type": "nominal"}}},
    ]
    return spec


def waterfalls(details: Mapping[str, Any] | None, facts: Facts,
               ) -> list[tuple[Strategy, Mapping[str, Any]]]:
    """The strategies that `details` explain, each with its document."""
    by_name = {s.name: s for s in facts.strategies}
    return [(by_name[each["policy"]], each) for each in (details or {}).get("waterfalls", ())
            if each["policy"] in by_name]


def drawn_waterfalls(details: Mapping[str, Any] | None, facts: Facts,
                     ) -> list[tuple[Strategy, Mapping[str, Any]]]:
    """Of the waterfalls those drawn, in scenario order: the recommended one and the greatest."""
    found = waterfalls(details, facts)
    chosen = recommended(facts)
    kept = sorted(found, key=lambda each: (each[0] is not chosen, -each[0].saved_bytes,
                                           each[0].index))[:MAX_WATERFALLS]
    return sorted(kept, key=lambda each: each[0].index)


def charts(result: Result, facts: Facts | None = None,
           details: Mapping[str, Any] | None = None) -> dict[str, Spec]:
    """All charts by their id in the page, in page order; `details` as of `planner.details`."""
    facts = facts or gather(result)
    drawn = {f"waterfall-{strategy.index}": waterfall_chart(document, strategy, facts)
             for strategy, document in drawn_waterfalls(details, facts)}
    view = plan_view(result, facts)
    if view is not None:
        planned = plan_charts(view)
        # In the order of the page.
        first: dict[str, Spec] = {name: planned.pop(name) for name in ("over-time", "exposure")}
        where: dict[str, Spec] = {"where": where_chart(facts, "on average over time")}
        costs: dict[str, Spec] = {
            name: planned.pop(name) for name in ("hosts-needed", "cpu-kinds", "per-core-hour")
            if name in planned}
        return {**first, **where, **costs, **drawn, **planned}
    samples = read_samples(result, facts)
    found = {
        "over-time": over_time_chart(samples, facts),
        "exposure": exposure_chart(facts),
        "where": where_chart(facts),
        "cpu": cpu_chart(samples, facts),
    }
    found |= drawn
    found["progress"] = progress_chart(samples, facts)
    found["undone"] = undone_chart(samples, facts)
    rooms = headrooms(samples, result, facts)
    if rooms:
        found["headroom"] = headroom_chart(rooms, facts)
    return found
