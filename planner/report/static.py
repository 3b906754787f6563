"""Charts as SVG, drawn here instead of by scripts in the page (the extra `static`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from planner.errors import MachineError
from planner.report.chart_base import Spec

__all__ = ["VEGA_LITE", "chart_svgs"]

#: The Vega-Lite that is vendored for pages with scripts.
VEGA_LITE = "6.4"
_WIDTH = 520
#: Labels are measured with fonts of vl-convert's and shown with the reader's, which may be wider.
_PADDING = {"left": 36, "right": 12, "top": 5, "bottom": 5}


def chart_svgs(specs: Mapping[str, Spec]) -> dict[str, str]:
    """Each chart as an SVG element; ids in it start with the chart's own.

    Raises MachineError where vl-convert is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise MachineError("vl-convert-python is not installed", where="--static",
                           instead="pip install 'ksm-planner[static]'") from None
    svgs = {}
    for name, spec in specs.items():
        sized = {**spec, "width": _WIDTH, "padding": _PADDING}
        text: str = vl_convert.vegalite_to_svg(sized, vl_version=VEGA_LITE)
        # Ids are numbered from 0 in every chart, and a page has many.
        text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
        text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
        svgs[name] = re.sub(r'(?<=xlink:href="#)', f"{name}-", text)
    return svgs
