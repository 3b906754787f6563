"""What every page of ours has: vendored scripts, style, charts, and templates that escape.

A page is one HTML file that opens from disk and loads nothing: its content security policy of
`default-src 'none'` makes the browser itself enforce that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from planner.report.chart_base import Spec
from planner.report.static import chart_svgs

__all__ = ["render_page", "script_json"]

#: Templates that others import.
_PARTS = ("parts.html", "plan.html")
_SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")

#: What a script element may not contain unescaped, and what old engines read as a line end.
_SCRIPT_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026",
                   0x2028: "\\u2028", 0x2029: "\\u2029"}


def script_json(value: object) -> str:
    """JSON that stays inside its script element whatever the strings in it hold."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"),
                      allow_nan=False)
    return text.translate(_SCRIPT_ESCAPES)


def _asset(name: str) -> str:
    return (resources.files("planner.report") / "assets" / name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """A vendored script without its source map line, which browsers would try to load."""
    lines = _asset(name).splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL="))


def render_page(template: str, shown: Mapping[str, Any], specs: Mapping[str, Spec], *,
                is_static: bool) -> str:
    """The page of the asset `template` over the values `shown`, with its charts by their ids.

    With `is_static` charts are SVG and the page holds no script. Raises MachineError where a
    static page lacks its extra.
    """
    from markupsafe import Markup

    page: str = _template(template).render({
        **shown,
        "is_static": is_static,
        # Everything below is our own, or JSON or SVG that escapes what it quotes.
        "specs": {} if is_static else {key: Markup(script_json(spec))
                                       for key, spec in specs.items()},
        "drawings": {key: Markup(svg) for key, svg in chart_svgs(specs).items()}
        if is_static else {},
        "chart_ids": list(specs),
        "style": Markup(_asset("report.css")),
        "vendored": [] if is_static else [Markup(_script(name)) for name in _SCRIPTS],
        "draw": "" if is_static else Markup(_asset("report.js")),
    })
    return page


@cache
def _template(name: str) -> Any:
    """The template of the asset `name`; compiled once, as that takes half the time of a page."""
    # Loading jinja2 takes longer than all the rest of a terminal report.
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({part: _asset(part) for part in (name, *_PARTS)}), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)
    return environment.get_template(name)
