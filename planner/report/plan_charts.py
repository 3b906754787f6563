"""The charts of fleets and replicates: bands, error bars, distributions. Vega-Lite v6 dicts.

Lines are medians over replicates, bands and error bars hold 90 % of them. Axes of memory start at
zero. Every figure that a chart draws also stands in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.report.chart_base import (
    FILLED_AS_GIVEN,
    GREY,
    N_COLOURS,
    Spec,
    base,
    colour_scale,
    from_zero,
    policy_bars,
    policy_dashes,
    time_unit,
)
from planner.report.facts import memory_unit
from planner.report.plan_view import Band, PlanView

__all__ = ["CPU_PARTS", "INPUT_NAMES", "cpu_parts", "plan_charts", "plan_frontier"]

#: Opacity of a band.
_PALE = 0.16
#: Parts of CPU time, in the order of their stack, and how opaque each is.
CPU_PARTS = {"scanning": "scanning and comparing", "merging": "merging",
             "splitting": "splitting huge pages", "cow": "copying after writes",
             "unmerging": "undoing merges"}
_FILLED = {"scanning": 0.95, "merging": 0.7, "splitting": 0.45, "cow": 0.22, "unmerging": 0}
#: Inputs of the closed form that ranks them, in words.
INPUT_NAMES = {"common_share": "memory with common contents", "copies": "guests that hold each",
               "write_rate_per_s": "writes to merged pages", "merge_delay_s": "time until merged",
               "huge_share": "memory in whole huge pages"}
#: Least time drawn on a log axis.
_LEAST_S = 1e-3
_CORE_HOUR_NS = 3_600_000_000_000
#: Whole hosts named on an axis, about.
_MAX_TICKS = 10
#: Incidents marked at most.
_MAX_MARKS = 12


def _points(view: PlanView, times: list[int], bands: dict[str, list[Band]], unit_ns: int,
            scale: float, digits: int = 4) -> list[dict[str, Any]]:
    return [{"policy": label, "time": round(t / unit_ns, 4),
             "value": round(band.median / scale, digits), "low": round(band.low / scale, digits),
             "high": round(band.high / scale, digits)}
            for label, found in bands.items() for t, band in zip(times, found, strict=True)]


def _band_lines(description: str, view: PlanView, values: list[dict[str, Any]], *, name: str,
                title: str, interpolate: str, marks: Sequence[Spec] = ()) -> Spec:
    """A line a policy with its band; a click on a legend's name picks one."""
    facts = view.facts
    colour = {"field": "policy", "type": "nominal", "title": None, "sort": None,
              "scale": colour_scale(facts)}
    # Areas share the legend of lines, and would make its symbols theirs.
    legend = {"symbolType": "stroke", "symbolSize": 500, "symbolOpacity": 1}
    x = {"field": "time", "type": "quantitative", "title": f"time ({name})",
         "scale": from_zero(values, "time") | {"nice": False}}
    least = min((float(v["low"]) for v in values), default=0.0)
    y_scale = from_zero(values, "high") if least >= 0 else {"zero": True}
    picked = {"condition": {"param": "picked", "value": 1}, "value": 0.15}
    lines: Spec = {
        "params": [{"name": "picked", "bind": "legend",
                    "select": {"type": "point", "fields": ["policy"]}}],
        "mark": {"type": "line", "interpolate": interpolate, "strokeWidth": 2.5},
        "encoding": {
            "x": x, "y": {"field": "value", "type": "quantitative", "title": title,
                          "scale": y_scale},
            "color": colour | {"legend": legend},
            "strokeDash": policy_dashes(facts), "opacity": picked,
            "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                        {"field": "time", "type": "quantitative", "title": f"time ({name})"},
                        {"field": "value", "type": "quantitative", "title": "median"},
                        {"field": "low", "type": "quantitative", "title": "5 %"},
                        {"field": "high", "type": "quantitative", "title": "95 %"}]},
    }
    layers: list[Spec] = [*marks]
    if view.facts.n_replicates > 1:
        layers.append({
            "mark": {"type": "area", "interpolate": interpolate},
            "encoding": {
                "x": x, "y": {"field": "low", "type": "quantitative", "title": title,
                              "scale": y_scale},
                "y2": {"field": "high"}, "color": colour | {"legend": legend},
                "opacity": {"condition": {"param": "picked", "value": _PALE}, "value": 0.03}}})
    spec = base(description, facts, values)
    spec["layer"] = [*layers, lines]
    return spec


def _marks(view: PlanView, unit_ns: int) -> list[Spec]:
    """The warm-up as a shade, incidents as rules with their names."""
    found: list[Spec] = []
    if view.warm_up_ns > 0:
        found.append({
            "data": {"values": [{"from": 0, "to": round(view.warm_up_ns / unit_ns, 4)}]},
            "mark": {"type": "rect", "color": GREY, "opacity": 0.13},
            "encoding": {"x": {"field": "from", "type": "quantitative"},
                         "x2": {"field": "to"}}})
    times = dict.fromkeys((each.time_ns, each.what) for each in view.incidents)
    values = [{"time": round(t / unit_ns, 4), "what": what}
              for t, what in list(times)[:_MAX_MARKS] if 0 <= t <= view.horizon_ns]
    if values:
        x = {"field": "time", "type": "quantitative"}
        found.append({"data": {"values": values},
                      "mark": {"type": "rule", "color": GREY, "strokeDash": [2, 3]},
                      "encoding": {"x": x}})
        found.append({"data": {"values": values},
                      "mark": {"type": "text", "color": GREY, "fontSize": 11, "angle": 270,
                               "align": "right", "baseline": "top", "dx": -4, "dy": 3, "y": 0},
                      "encoding": {"x": x, "text": {"field": "what", "type": "nominal"}}})
    return found


def _savings(view: PlanView) -> Spec:
    name, unit_ns = time_unit(view.horizon_ns)
    times, bands = view.bands("saved_bytes")
    values = _points(view, times, bands, unit_ns, view.unit.n_bytes)
    return _band_lines(
        "Saved memory over time, one line and band per strategy", view, values, name=name,
        title=f"saved, zero pages not counted ({view.unit.name})", interpolate="step-after",
        marks=_marks(view, unit_ns))


def _undone(view: PlanView) -> Spec:
    name, unit_ns = time_unit(view.horizon_ns)
    times, bands = view.rates("cow_breaks")
    values = _points(view, times, bands, unit_ns, 1.0, digits=2)
    return _band_lines("Merged pages written to a second, one line and band per strategy", view,
                       values, name=name, title="COW breaks a second, whole fleet",
                       interpolate="step-before", marks=_marks(view, unit_ns))


def _bounds(found: Any, scale: float, digits: int = 4) -> dict[str, float]:
    """Median and interval of a metric; one replicate has its median three times."""
    median = found["median"] or 0
    low = found.get("low")
    high = found.get("high")
    return {"value": round(median / scale, digits),
            "low": round((median if low is None else low) / scale, digits),
            "high": round((median if high is None else high) / scale, digits)}


def plan_frontier(view: PlanView) -> list[str]:
    """Labels of the strategies that no other beats in both saving and exposure, medians."""
    found: list[tuple[str, float]] = []
    ranked = sorted(view.policies, key=lambda pair: (
        pair[1]["metrics"]["cross_domain_pages"]["median"] or 0,
        -(pair[1]["metrics"]["saved"]["median"] or 0), pair[0].index))
    for strategy, each in ranked:
        saved = float(each["metrics"]["saved"]["median"] or 0)
        if not found or saved > found[-1][1]:
            found.append((strategy.label, saved))
    return [label for label, _ in found]


def _pareto(view: PlanView) -> Spec:
    """Saving against pages shared across domains with error bars both ways; twins are hollow."""
    facts, unit = view.facts, view.unit
    values: list[dict[str, Any]] = []
    for strategy, each in view.policies:
        saved = _bounds(each["metrics"]["saved"], unit.n_bytes)
        cpu_s = round((each["metrics"]["merge_cpu"]["median"] or 0) / 1e9, 3)
        for counted, metric, filled in (
                ("all domains", "cross_domain_pages", 0.75),
                ("sensitive domains only", "cross_domain_sensitive_pages", 0)):
            if filled or facts.has_sensitive:
                pages = _bounds(each["metrics"][metric], 1, 1)
                values.append({
                    "policy": strategy.label, "saved": saved["value"], "saved_low": saved["low"],
                    "saved_high": saved["high"], "pages": pages["value"],
                    "pages_low": pages["low"], "pages_high": pages["high"], "cpu_s": cpu_s,
                    "counted": counted, "filled": filled})
    spec = base("Saved memory against pages shared across domains, with 90 % of replicates", facts,
                values)
    colour = {"field": "policy", "type": "nominal", "sort": None, "scale": colour_scale(facts)}
    most_cpu_s = max((float(v["cpu_s"]) for v in values), default=0.0) or 1.0
    x: Spec = {"field": "pages", "type": "quantitative", "title": "cross-domain pages",
               "scale": from_zero(values, "pages_high"),
               "axis": {"tickMinStep": 1, "tickCount": 6,
                        "labelExpr": "format(datum.value, '~s')"}}
    y: Spec = {"field": "saved", "type": "quantitative",
               "title": f"saved, zero pages not counted ({unit.name})",
               "scale": from_zero(values, "saved_high")}
    bar = {"type": "rule", "strokeWidth": 1.5, "opacity": 0.8}
    on_frontier = set(plan_frontier(view))
    points: Spec = {
        "mark": {"type": "point", "filled": True, "strokeWidth": 2, "strokeOpacity": 1,
                 "opacity": 1, "clip": False},
        "encoding": {
            "x": x, "y": y, "fill": colour | {"title": None}, "stroke": colour | {"title": None},
            "fillOpacity": FILLED_AS_GIVEN,
            "size": {"field": "cpu_s", "type": "quantitative", "title": "merge CPU (s)",
                     "scale": {"type": "linear", "domain": [0, most_cpu_s], "range": [40, 700]},
                     "legend": {"symbolFillColor": GREY, "symbolStrokeColor": GREY, "columns": 3,
                                "format": ".3~r", "values": [
                                    0, float(f"{most_cpu_s / 2:.2g}"),
                                    float(f"{most_cpu_s:.2g}")]}},
            "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                        {"field": "counted", "type": "nominal"},
                        *({"field": name, "type": "quantitative"} for name in (
                            "saved", "saved_low", "saved_high", "pages", "pages_low",
                            "pages_high", "cpu_s"))],
        },
    }
    if len(facts.strategies) > 1 + N_COLOURS:
        points["encoding"]["strokeDash"] = policy_dashes(facts)
    spec["layer"] = [
        {"data": {"values": [v for v in values if v["policy"] in on_frontier and v["filled"]]},
         "mark": {"type": "line", "color": GREY, "strokeDash": [4, 4], "strokeWidth": 1.5},
         "encoding": {"x": x, "y": y, "order": {"field": "pages", "type": "quantitative"}}},
        {"mark": bar, "encoding": {
            "x": x, "y": y | {"field": "saved_low"}, "y2": {"field": "saved_high"},
            "stroke": colour | {"title": None}}},
        {"mark": bar, "encoding": {
            "x": x | {"field": "pages_low"}, "x2": {"field": "pages_high"}, "y": y,
            "stroke": colour | {"title": None}}},
        points]
    return spec


def _hosts_needed(view: PlanView) -> Spec | None:
    """By number of hosts the share of replicates that fit on so many."""
    known = [(strategy, each["hosts"]["fit"]) for strategy, each in view.policies
             if each["hosts"].get("fit")]
    if not known:
        return None
    first = min(int(fit[0][0]) for _, fit in known)
    last = max(int(fit[-1][0]) for _, fit in known) + 1
    values = []
    for strategy, fit in known:
        shares = {int(n): float(share) for n, share in fit}
        share = 0.0
        for n in range(first, last + 1):
            share = shares.get(n, share)
            values.append({"policy": strategy.label, "n": n, "share": round(100 * share, 2)})
    spec = base("Share of replicates that fit, by number of hosts, one line per strategy",
                view.facts, values)
    x: Spec = {"field": "n", "type": "quantitative", "title": "hosts",
               "scale": {"zero": False, "nice": False, "domain": [first, last]},
               "axis": {"format": "d", "labelOverlap": False, "values": list(range(
                   first, last + 1, max(1, (last - first) // _MAX_TICKS)))}}
    y: Spec = {"field": "share", "type": "quantitative", "title": "replicates that fit (%)",
               "scale": {"domain": [0, 104], "nice": False},
               "axis": {"values": [0, 20, 40, 60, 80, 100]}}
    colour = {"field": "policy", "type": "nominal", "title": None, "sort": None,
              "scale": colour_scale(view.facts)}
    spec["layer"] = [
        {"data": {"values": [{"share": round(100 * float(view.plan["confidence"]), 2)}]},
         "mark": {"type": "rule", "color": GREY, "strokeWidth": 1.5, "strokeDash": [6, 3]},
         "encoding": {"y": y}},
        {"mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5},
         "encoding": {"x": x, "y": y, "color": colour | {"legend": {"symbolSize": 500}},
                      "strokeDash": policy_dashes(view.facts),
                      "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                                  {"field": "n", "type": "quantitative", "title": "hosts"},
                                  {"field": "share", "type": "quantitative",
                                   "title": "replicates that fit (%)"}]}}]
    return spec


def cpu_parts(cpu: Any) -> dict[str, float]:
    """CPU time (ns) by the parts of CPU_PARTS, where it was counted by kind.

    Merging and splitting are part of what ksmd and callers spend, so they come off the first part.
    """
    if cpu.get("scanner_cpu_ns") is None and cpu.get("caller_cpu_ns") is None:
        return {}
    spent = (cpu.get("scanner_cpu_ns") or 0) + (cpu.get("caller_cpu_ns") or 0)
    split = min(cpu.get("split_cpu_ns") or 0, spent)
    merging = min(cpu.get("merging_cpu_ns") or 0, spent - split)
    return {"scanning": spent - split - merging, "merging": merging, "splitting": split,
            "cow": cpu.get("cow_cpu_ns") or 0,
            "unmerging": cpu.get("unmerge_cpu_ns") or 0}


def _cpu_kinds(view: PlanView) -> Spec | None:
    values = [{"policy": strategy.label, "part": CPU_PARTS[part], "order": i,
               "filled": _FILLED[part], "memory": round(n_ns / _CORE_HOUR_NS, 5)}
              for strategy, each in view.policies
              for i, (part, n_ns) in enumerate(cpu_parts(each["cpu"]).items())]
    if not any(v["memory"] for v in values):
        return None
    return policy_bars("CPU time by what it went into, one bar per strategy", view.facts, values,
                       list(CPU_PARTS.values()), "CPU after the warm-up (core-hours)")


def _per_core_hour(view: PlanView) -> Spec | None:
    known = [(strategy, each["metrics"]["saved_per_core_hour"]) for strategy, each in view.policies
             if (each["metrics"]["saved_per_core_hour"]["median"] or 0) > 0]
    if not known:
        return None
    unit = memory_unit(max(round(found["median"]) for _, found in known))
    values = [{"policy": strategy.label, **_bounds(found, unit.n_bytes)}
              for strategy, found in known]
    spec = base("Saved memory per core-hour of merge CPU, with 90 % of replicates", view.facts,
                values)
    spec["height"] = 34 * max(len(values), 1)
    y = {"field": "policy", "type": "nominal", "title": None, "sort": None,
         "axis": {"labelLimit": 200}}
    x: Spec = {"field": "value", "type": "quantitative",
               "title": f"saved per core-hour of merge CPU ({unit.name})",
               "scale": from_zero(values, "high")}
    colour = {"field": "policy", "type": "nominal", "sort": None, "legend": None,
              "scale": colour_scale(view.facts)}
    spec["layer"] = [
        {"mark": {"type": "bar"}, "encoding": {"y": y, "x": x, "fill": colour}},
        {"mark": {"type": "rule", "color": GREY, "strokeWidth": 2},
         "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}}}]
    return spec


def _time_to_merge(view: PlanView) -> Spec | None:
    """Share of guests that were merged by a time after their start, on a log axis."""
    values: list[dict[str, Any]] = []
    for strategy, each in view.policies:
        found = each.get("time_to_merge")
        if found:
            values += [{"policy": strategy.label, "time": round(max(ns / 1e9, _LEAST_S), 4),
                        "value": round(100 * share, 2)} for share, ns in found["quantiles"]]
    if not values:
        return None
    times = [float(v["time"]) for v in values]
    spec = base("Share of guests merged, by time after their start, one line per strategy",
                view.facts, values)
    spec["mark"] = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5,
                    "point": {"size": 18}}
    spec["encoding"] = {
        "x": {"field": "time", "type": "quantitative", "title": "after its start (s), log scale",
              "scale": {"type": "log", "nice": False,
                        "domain": [min(times), max(max(times), min(times) * 1.01)]},
              "axis": {"format": "~r", "tickCount": 5, "labelOverlap": "greedy"}},
        "y": {"field": "value", "type": "quantitative", "title": "guests merged (%)",
              "scale": {"domain": [0, 104], "nice": False},
              "axis": {"values": [0, 20, 40, 60, 80, 100]}},
        "color": {"field": "policy", "type": "nominal", "title": None, "sort": None,
                  "scale": colour_scale(view.facts),
                  "legend": {"symbolType": "stroke", "symbolSize": 500}},
        "strokeDash": policy_dashes(view.facts),
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": "time", "type": "quantitative", "title": "after its start (s)"},
                    {"field": "value", "type": "quantitative", "title": "guests merged (%)"}],
    }
    return spec


def _headroom(view: PlanView) -> Spec | None:
    """Free memory left if every merge broke: median, 99 % and worst host, and the line of none."""
    rows = []
    for strategy, _ in view.policies:
        columns = [view.column(strategy, f"headroom_{name}_bytes")
                   for name in ("p50", "p99", "worst")]
        if all(columns) and any(view.column(strategy, "unmerge_worst_bytes")):
            rows.append((strategy, spread_median(columns[0]), spread_median(columns[1]),
                         min(columns[2])))
    if not rows:
        return None
    unit = memory_unit(round(max(abs(n) for _, *found in rows for n in found)))
    values: list[dict[str, Any]] = [
        {"policy": s.label, "p50": unit.value(round(p50)), "p99": unit.value(round(p99)),
         "worst": unit.value(round(worst))} for s, p50, p99, worst in rows]
    spec = base("Free memory left if every merge were undone: median, 99 % and worst host",
                view.facts, values)
    spec["height"] = 34 * len(values)
    least = min(float(v["worst"]) for v in values)
    most = max(float(v["p50"]) for v in values)
    room = 0.04 * (max(most, 0) - min(least, 0) or 1.0)
    y = {"field": "policy", "type": "nominal", "title": None, "sort": None,
         "axis": {"labelLimit": 200}}
    x: Spec = {"field": "p50", "type": "quantitative",
               "title": f"free memory left on a host ({unit.name})",
               "scale": {"domain": [min(least, 0) - (room if least < 0 else 0),
                                    max(most, 0) + room], "nice": False}}
    colour = {"field": "policy", "type": "nominal", "sort": None, "legend": None,
              "scale": colour_scale(view.facts)}
    tooltip = [{"field": "policy", "type": "nominal", "title": "strategy"},
               *({"field": name, "type": "quantitative", "title": f"{title} ({unit.name})"}
                 for name, title in (("p50", "median host"), ("p99", "99 % of hosts"),
                                     ("worst", "worst host")))]
    mark = {"strokeWidth": 2, "opacity": 1}
    spec["layer"] = [
        {"data": {"values": [{"p50": 0}]},
         "mark": {"type": "rule", "color": GREY, "strokeWidth": 2.5}, "encoding": {"x": x}},
        {"mark": {"type": "rule", "strokeWidth": 2},
         "encoding": {"y": y, "x": x | {"field": "worst"}, "x2": {"field": "p50"},
                      "stroke": colour}},
        {"mark": {"type": "point", "filled": True, "size": 130, **mark},
         "encoding": {"y": y, "x": x, "fill": colour, "tooltip": tooltip}},
        {"mark": {"type": "tick", "thickness": 3, "size": 20, **mark},
         "encoding": {"y": y, "x": x | {"field": "p99"}, "color": colour, "tooltip": tooltip}},
        {"mark": {"type": "point", "shape": "triangle-left", "size": 110, **mark},
         "encoding": {"y": y, "x": x | {"field": "worst"}, "stroke": colour,
                      "tooltip": tooltip}}]
    return spec


def spread_median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    found = sorted(values)
    return (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2


def _turned_around(view: PlanView, policy: str) -> float:
    """The saving that inputs were turned around: of the replicate in the middle."""
    saved = sorted(int(row["saved_bytes"]) for row in view.rows.get(policy, ()))
    return float(saved[len(saved) // 2]) if saved else 0.0


def _sensitivity(view: PlanView) -> Spec | None:
    """What each input does to the saving, in per cent of it, turned down and up."""
    labels = {strategy.name: strategy.label for strategy, _ in view.policies}
    values: list[dict[str, Any]] = []
    for effect in view.plan.get("sensitivity", ()):
        label = labels.get(effect["policy"])
        middle = 0.0 if label is None else _turned_around(view, effect["policy"])
        if label is not None and middle > 0:
            values.append({
                "policy": label,
                "input": INPUT_NAMES.get(effect["input"], str(effect["input"])[:40]),
                "low": round(100 * (float(effect["low"]) / middle - 1), 2),
                "high": round(100 * (float(effect["high"]) / middle - 1), 2)})
    if not values:
        return None
    swing: dict[str, float] = {}
    for v in values:
        swing[v["input"]] = max(swing.get(v["input"], 0.0), float(v["high"]) - float(v["low"]))
    order = sorted(swing, key=lambda name: -swing[name])
    spec = base("What a quarter more or less of each input does to the saving", view.facts, values)
    n_policies = len({v["policy"] for v in values})
    spec["height"] = max(60, (12 + 12 * n_policies) * len(order))
    spec["layer"] = [
        {"mark": {"type": "bar"},
         "encoding": {
             "y": {"field": "input", "type": "nominal", "title": None, "sort": order,
                   "axis": {"labelLimit": 220}, "scale": {"paddingInner": 0.25}},
             "yOffset": {"field": "policy", "type": "nominal",
                         "sort": [s.label for s, _ in view.policies]},
             "x": {"field": "low", "type": "quantitative", "title": "change of the saving (%)"},
             "x2": {"field": "high"},
             "color": {"field": "policy", "type": "nominal", "title": None, "sort": None,
                       "scale": colour_scale(view.facts)},
             "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                         {"field": "input", "type": "nominal"},
                         {"field": "low", "type": "quantitative", "title": "least (%)"},
                         {"field": "high", "type": "quantitative", "title": "most (%)"}]}},
        {"data": {"values": [{"low": 0}]},
         "mark": {"type": "rule", "color": GREY, "strokeWidth": 1.5},
         "encoding": {"x": {"field": "low", "type": "quantitative"}}}]
    return spec


def plan_charts(view: PlanView) -> dict[str, Spec]:
    """The charts by their ids in the page; those without data are left out."""
    found = {
        "over-time": _savings(view), "exposure": _pareto(view),
        "hosts-needed": _hosts_needed(view), "cpu-kinds": _cpu_kinds(view),
        "per-core-hour": _per_core_hour(view), "time-to-merge": _time_to_merge(view),
        "undone": _undone(view), "headroom": _headroom(view), "sensitivity": _sensitivity(view),
    }
    return {name: spec for name, spec in found.items() if spec is not None}
