"""Reports: a `planner.metrics.Result` as HTML, terminal text or JSON. Pure: nothing is written.

Importing this package is cheap; jinja2 is loaded when the first page is rendered.
"""

from __future__ import annotations

from planner.report.html import render_html
from planner.report.text import render_json, render_text

__all__ = ["render_html", "render_json", "render_text"]
