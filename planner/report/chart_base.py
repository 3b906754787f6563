"""What all charts share: the look of each policy, axes, legends and their colours.

One colour per policy in every chart and table (Okabe-Ito, safe for colour-blind readers); the
first policy, the baseline, is grey. Text and axes use a middle grey that reads on light and on
dark; the page's style sheet sharpens them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.report.facts import Facts

__all__ = ["FILLED_AS_GIVEN", "GREY", "N_COLOURS", "Look", "Spec", "base", "colour_scale", "frame",
           "from_zero", "look", "policy_bars", "policy_dashes", "policy_lines", "time_unit"]

Spec = dict[str, Any]

_BASELINE = "#8c8c8c"
#: Okabe and Ito's palette without black and yellow, which vanish on dark and on light.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
#: Policies beside the baseline that have a colour of their own.
N_COLOURS = len(_OKABE_ITO)
#: Neighbours differ in their dashes too, so that a line under another of the same saving shows.
_DASHES = ([1, 0], [7, 4], [3, 3], [9, 3, 2, 3])
_HEIGHT = 300
#: Of text and axes: reads on light and on dark.
GREY = "#7d7d7d"
#: Opacity comes with the data: Vega-Lite makes a scale of opacities for names a point scale,
#: which has no legend and spreads its values, so the captions in the page say what is what.
FILLED_AS_GIVEN: Spec = {"field": "filled", "type": "quantitative", "scale": None, "legend": None}

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


def base(description: str, facts: Facts, values: list[dict[str, Any]]) -> Spec:
    """A chart of policies without marks: its legends have room for their labels."""
    return frame(description, values, [s.label for s in facts.strategies])


def frame(description: str, values: list[dict[str, Any]], labels: Sequence[str]) -> Spec:
    """A chart without marks: its data, size, and the colours of text, axes and legends, which
    show `labels`."""
    axis = {"labelColor": GREY, "titleColor": GREY, "domainColor": GREY, "tickColor": GREY,
            "gridColor": GREY, "gridOpacity": 0.25, "titleFontWeight": "normal",
            "labelFontSize": 12, "titleFontSize": 12, "titlePadding": 8}
    longest = max(map(len, labels), default=0)
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
            # No commas between thousands: the page groups with thin spaces.
            "numberFormat": ".12~r",
            "view": {"stroke": None},
            "axis": axis,
            "legend": {"orient": "bottom", "columns": columns,
                       "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
                       "labelColor": GREY, "titleColor": GREY, "titleFontWeight": "normal",
                       "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 320,
                       "symbolStrokeWidth": 2.5},
        },
    }


def from_zero(values: list[dict[str, Any]], field: str) -> Spec:
    """Scale of the axis of `field` that starts at zero, also where all of it is zero."""
    if any(value[field] for value in values):
        return {"zero": True}
    return {"zero": True, "domain": [0, 1]}


def colour_scale(facts: Facts) -> Spec:
    """The colours of all policies by label."""
    return {"domain": [s.label for s in facts.strategies],
            "range": [look(s.index).colour for s in facts.strategies]}


def policy_dashes(facts: Facts) -> Spec:
    """Dashes by policy."""
    return {"field": "policy", "type": "nominal", "title": None, "sort": None,
            "scale": {"domain": [s.label for s in facts.strategies],
                      "range": [look(s.index).dash for s in facts.strategies]}}


def policy_lines(description: str, facts: Facts, values: list[dict[str, Any]], *,
                 x: Spec, y: Spec, interpolate: str = "step-after") -> Spec:
    """One line a policy over the fields `x` and `y` name; a click on a legend's name picks one.

    `x` and `y` are encodings with field, title and scale; `values` hold `policy` and both fields.
    """
    spec = base(description, facts, values)
    spec["params"] = [{"name": "picked", "bind": "legend",
                       "select": {"type": "point", "fields": ["policy"]}}]
    spec["mark"] = {"type": "line", "interpolate": interpolate, "strokeWidth": 2.5}
    spec["encoding"] = {
        "x": {"type": "quantitative", **x},
        "y": {"type": "quantitative", **y},
        "color": {"field": "policy", "type": "nominal", "title": None, "sort": None,
                  "scale": colour_scale(facts), "legend": {"symbolSize": 500}},
        "strokeDash": policy_dashes(facts),
        "opacity": {"condition": {"param": "picked", "value": 1}, "value": 0.15},
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": x["field"], "type": "quantitative", "title": x["title"]},
                    {"field": y["field"], "type": "quantitative", "title": y["title"]}],
    }
    return spec


def policy_bars(description: str, facts: Facts, values: list[dict[str, Any]],
                 parts: Sequence[str], title: str) -> Spec:
    """One stacked bar a policy; `values` hold policy, part, order, filled and memory."""
    spec = base(description, facts, values)
    hollow = {v["part"] for v in values if not v["filled"]}
    spec["height"] = 34 * max(len({v["policy"] for v in values}), 1)
    spec["mark"] = {"type": "bar", "strokeWidth": 1.5}
    colour = {"field": "policy", "type": "nominal", "sort": None, "scale": colour_scale(facts),
              "legend": None}
    spec["encoding"] = {
        "y": {"field": "policy", "type": "nominal", "title": None, "sort": None,
              "axis": {"labelLimit": 200}},
        "x": {"field": "memory", "type": "quantitative", "title": title, "stack": "zero",
              "scale": from_zero(values, "memory")},
        "fill": colour,
        "stroke": colour,
        "fillOpacity": FILLED_AS_GIVEN,
        "strokeDash": {"field": "part", "type": "nominal", "sort": None, "legend": None,
                       "scale": {"domain": list(parts), "range": [
                           [4, 3] if part in hollow else [1, 0] for part in parts]}},
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": [{"field": "policy", "type": "nominal", "title": "strategy"},
                    {"field": "part", "type": "nominal"},
                    {"field": "memory", "type": "quantitative", "title": title}],
    }
    return spec
