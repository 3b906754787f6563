"""The charts of a report: Vega-Lite v6 specifications as plain dicts.

One colour per policy in every chart and table (Okabe-Ito, safe for colour-blind readers); the
first policy, the baseline, is grey. Text and axes use a middle grey that reads on light and on
dark; the page's style sheet sharpens them. All memory axes start at zero.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.report.facts import Facts, gather

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = [
    "Look",
    "Spec",
    "charts",
    "exposure_chart",
    "look",
    "over_time_chart",
    "saved_over_time",
    "shortfall_bytes",
    "where_chart",
]

Spec = dict[str, Any]

_BASELINE = "#8c8c8c"
#: Okabe and Ito's palette without black and yellow, which vanish on dark and on light.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
#: Neighbours differ in their dashes too, so that a line under another of the same saving shows.
_DASHES = ([1, 0], [7, 4], [3, 3], [9, 3, 2, 3])
#: Times drawn (and tabled) at most; all samples stay in hosts.parquet.
MAX_TIMES = 120
_HEIGHT = 300
_GREY = "#7d7d7d"
#: Opacity comes with the data: Vega-Lite makes a scale of opacities for names a point scale,
#: which has no legend and spreads its values, so the captions in the page say what is what.
_FILLED_AS_GIVEN = {"field": "filled", "type": "quantitative", "scale": None, "legend": None}

_TIME_UNITS = (("h", 3600 * 10**9, 2 * 3600 * 10**9), ("min", 60 * 10**9, 120 * 10**9),
               ("s", 10**9, 0))


@dataclass(frozen=True, slots=True)
class Look:
    """How one policy looks everywhere: `colour` as #rrggbb, `dash` as a Vega stroke dash."""

    colour: str
    dash: list[int]


def look(index: int) -> Look:
    """The look of the policy at `index` of the scenario (0 is the baseline)."""
    if index == 0:
        return Look(_BASELINE, _DASHES[0])
    turn, place = divmod(index - 1, len(_OKABE_ITO))
    # Each turn through the colours begins at another dash: 24 looks before one comes again.
    return Look(_OKABE_ITO[place], _DASHES[(place + 3 * turn) % len(_DASHES)])


def time_unit(horizon_ns: int) -> tuple[str, int]:
    """Name and nanoseconds of the unit of a time axis that ends at `horizon_ns`."""
    for name, n_ns, least_ns in _TIME_UNITS:
        if horizon_ns >= least_ns:
            return name, n_ns
    raise AssertionError("the last unit takes everything")


def saved_over_time(result: Result, facts: Facts) -> tuple[list[int], dict[str, dict[int, int]]]:
    """Times drawn (ns, ascending) and, by policy label, saved bytes of all hosts at each time.

    At most `MAX_TIMES` times, evenly spread over the samples, the first and last among them.
    """
    columns = result.hosts.select(["policy", "time_ns", "saved_bytes"]).to_pydict()
    saved: dict[str, dict[int, int]] = {s.label: defaultdict(int) for s in facts.strategies}
    for policy, time_ns, n_bytes in zip(columns["policy"], columns["time_ns"],
                                        columns["saved_bytes"], strict=True):
        saved[facts.labels[policy]][time_ns] += n_bytes
    times = sorted({time_ns for series in saved.values() for time_ns in series})
    if len(times) > MAX_TIMES:
        last = len(times) - 1
        times = [times[round(i * last / (MAX_TIMES - 1))] for i in range(MAX_TIMES)]
    return times, {label: {t: series[t] for t in times if t in series}
                   for label, series in saved.items()}


def shortfall_bytes(facts: Facts) -> list[int]:
    """By policy: how much less it saves (zero pages included) than the one that saves most."""
    totals = [max(s.saved_bytes, 0) + int(s.row["saved_zero_bytes"]) for s in facts.strategies]
    most = max(totals, default=0)
    return [most - total for total in totals]


def _base(description: str, facts: Facts, values: list[dict[str, Any]]) -> Spec:
    axis = {"labelColor": _GREY, "titleColor": _GREY, "domainColor": _GREY, "tickColor": _GREY,
            "gridColor": _GREY, "gridOpacity": 0.25, "titleFontWeight": "normal",
            "labelFontSize": 12, "titleFontSize": 12, "titlePadding": 8}
    longest = max((len(s.label) for s in facts.strategies), default=0)
    # Legends do not wrap: as many columns as fit half a page.
    columns = next(n for n, width in ((4, 10), (3, 16), (2, 28), (1, longest)) if longest <= width)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": _HEIGHT,
        "background": None,
        "data": {"values": values},
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": axis,
            "legend": {"orient": "bottom", "columns": columns,
                       "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
                       "labelColor": _GREY, "titleColor": _GREY, "titleFontWeight": "normal",
                       "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 320,
                       "symbolStrokeWidth": 2.5},
        },
    }


def _from_zero(values: list[dict[str, Any]]) -> Spec:
    """Scale of an axis that starts at zero, also where there is nothing to draw."""
    return {"zero": True} if values else {"zero": True, "domain": [0, 1]}


def _colour_scale(facts: Facts) -> Spec:
    return {"domain": [s.label for s in facts.strategies],
            "range": [look(s.index).colour for s in facts.strategies]}


def _policy_dashes(facts: Facts) -> Spec:
    return {"field": "policy", "type": "nominal", "title": None, "sort": None,
            "scale": {"domain": [s.label for s in facts.strategies],
                      "range": [look(s.index).dash for s in facts.strategies]}}


def over_time_chart(result: Result, facts: Facts) -> Spec:
    """Saved memory over time, one step line per policy; zero pages are not in it."""
    unit, (time_name, time_ns) = facts.unit, time_unit(facts.horizon_ns)
    times, saved = saved_over_time(result, facts)
    values = [{"policy": label, "time": round(t / time_ns, 4), "saved": unit.value(series[t])}
              for label, series in saved.items() for t in times if t in series]
    spec = _base("Saved memory over time, one line per strategy", facts, values)
    spec["params"] = [{"name": "picked", "bind": "legend",
                       "select": {"type": "point", "fields": ["policy"]}}]
    spec["mark"] = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5}
    spec["encoding"] = {
        "x": {"field": "time", "type": "quantitative", "title": f"time ({time_name})",
              "scale": _from_zero(values) | {"nice": False}},
        "y": {"field": "saved", "type": "quantitative",
              "title": f"saved, zero pages not counted ({unit.name})", "scale": _from_zero(values)},
        "color": {"field": "policy", "type": "nominal", "title": None, "sort": None,
                  "scale": _colour_scale(facts), "legend": {"symbolSize": 500}},
        "strokeDash": _policy_dashes(facts),
        "opacity": {"condition": {"param": "picked", "value": 1}, "value": 0.15},
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": "time", "type": "quantitative", "title": time_name},
                    {"field": "saved", "type": "quantitative", "title": f"saved {unit.name}"}],
    }
    return spec


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
    spec = _base("Saved memory against pages shared across domains, one point per strategy", facts,
                 values)
    spec["mark"] = {"type": "point", "filled": True, "strokeWidth": 2, "strokeOpacity": 1,
                    "opacity": 1, "clip": False}
    colour = {"field": "policy", "type": "nominal", "sort": None, "scale": _colour_scale(facts)}
    most_cpu_s: float = max((float(v["cpu_s"]) for v in values), default=0.0) or 1.0
    grey = {"symbolFillColor": _GREY, "symbolStrokeColor": _GREY}
    spec["encoding"] = {
        "x": {"field": "pages", "type": "quantitative", "title": "cross-domain pages",
              "scale": _from_zero(values), "axis": {"tickMinStep": 1}},
        "y": {"field": "saved", "type": "quantitative",
              "title": f"saved, zero pages not counted ({unit.name})", "scale": _from_zero(values)},
        "fill": colour | {"title": None},
        "stroke": colour | {"title": None},
        "fillOpacity": _FILLED_AS_GIVEN,
        "size": {"field": "cpu_s", "type": "quantitative", "title": "merge CPU (s)",
                 "scale": {"type": "linear", "domain": [0, most_cpu_s], "range": [40, 900]},
                 "legend": grey | {"columns": 3, "format": ".3~r", "values": [
                     0, float(f"{most_cpu_s / 2:.2g}"), float(f"{most_cpu_s:.2g}")]}},
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": "saved", "type": "quantitative", "title": f"saved {unit.name}"},
                    {"field": "pages", "type": "quantitative", "title": "cross-domain pages"},
                    {"field": "counted", "type": "nominal"},
                    {"field": "cpu_s", "type": "quantitative", "title": "merge CPU s"}],
    }
    if len(facts.strategies) > 1 + len(_OKABE_ITO):
        spec["encoding"]["strokeDash"] = _policy_dashes(facts)
    return spec


#: What a bar of `where_chart` is made of, from the axis outwards.
PARTS = ("saved", "saved, zero pages", "less than the best strategy here")
#: How opaque each part is filled.
_FILLED = (0.95, 0.4, 0)


def where_chart(facts: Facts) -> Spec:
    """Where the duplicate memory is: saved, saved as zero pages, and missed by each policy."""
    unit = facts.unit
    values: list[dict[str, Any]] = []
    for strategy, missed in zip(facts.strategies, shortfall_bytes(facts), strict=True):
        parts = (strategy.saved_bytes, int(strategy.row["saved_zero_bytes"]), missed)
        values += [{"policy": strategy.label, "part": name, "order": i, "filled": filled,
                    "memory": unit.value(n)}
                   for i, (name, filled, n) in enumerate(zip(PARTS, _FILLED, parts, strict=True))]
    spec = _base("Memory saved, saved as zero pages, and missed, by strategy", facts, values)
    spec["height"] = 34 * max(len(facts.strategies), 1)
    spec["mark"] = {"type": "bar", "strokeWidth": 1.5}
    colour = {"field": "policy", "type": "nominal", "sort": None, "scale": _colour_scale(facts),
              "legend": None}
    spec["encoding"] = {
        "y": {"field": "policy", "type": "nominal", "title": None, "sort": None,
              "axis": {"labelLimit": 200}},
        "x": {"field": "memory", "type": "quantitative",
              "title": f"memory at the end ({unit.name})", "stack": "zero",
              "scale": _from_zero(values)},
        "fill": colour,
        "stroke": colour,
        "fillOpacity": _FILLED_AS_GIVEN,
        "strokeDash": {"field": "part", "type": "nominal", "sort": None, "legend": None,
                       "scale": {"domain": list(PARTS), "range": [[1, 0], [1, 0], [4, 3]]}},
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": "part", "type": "nominal"},
                    {"field": "memory", "type": "quantitative", "title": unit.name}],
    }
    return spec


def charts(result: Result, facts: Facts | None = None) -> dict[str, Spec]:
    """All charts by their id in the page, in page order."""
    facts = facts or gather(result)
    return {
        "over-time": over_time_chart(result, facts),
        "exposure": exposure_chart(facts),
        "where": where_chart(facts),
    }
