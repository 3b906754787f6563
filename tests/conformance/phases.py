"""Pairs that never merge: the distance at which two equal pages were first seen decides.

    sudo python -m tests.conformance.phases -o docs/images/never-merge.svg

For every distance d, one page is first seen in some scan and its equal copy d full scans later,
with smart scan on. The scans it takes them to share a frame are counted on this kernel, in the
planner's model and from the visits that smart scan makes, and printed side by side; `-o` draws
them. Exit code 0: all the same; 1: not; 3: this machine cannot do it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.report.static import VEGA_LITE
from tests.conformance.compare import MODELS, host_series, run_on
from tests.conformance.driver import CannotServeError
from tests.conformance.script import Observation, Step, run_script, slot, validate

DISTANCES = range(1, 33)
N_SCANS = 75
#: The visits, in scans since the first one, that smart scan lets a page have (should_skip_rmap_item
#: and skip_age) and in which it may merge: the first one only stores the checksum.
VISITS = frozenset((1, 2, 3, 5, 8, *range(13, N_SCANS, 9)))
_FIRST, _SECOND = slot(0), slot(1)

#: Scans from the copy's first sight to the merge by distance; None: not within the script.
Merges = dict[int, int | None]


def phases_script() -> list[Step]:
    """All distances at once: pages d - 1 of processes 1 and 2 hold content d.

    Those of process 1 are all seen in scan 0, page d - 1 of process 2 is in scan d.
    """
    n = len(DISTANCES)
    steps: list[Step] = [("knob", "smart_scan", 1)]
    for p, start in ((1, _FIRST), (2, _SECOND)):
        steps += [("spawn", p), ("map", p, start, n, "small"), ("advise", p, start, n)]
    steps.append(("write", 1, _FIRST, list(DISTANCES)))
    for scan in range(N_SCANS):
        if scan in DISTANCES:
            steps.append(("write", 2, _SECOND + scan - 1, [scan]))
        steps.append(("scan",))
    validate(steps)
    return steps


def merges(observations: Sequence[Observation]) -> Merges:
    """When each pair first had one frame, from what was seen after every scan."""
    found: Merges = {}
    for d in DISTANCES:
        together = (scan for scan, seen in enumerate(observations)
                    if 0 <= seen["frames"][1][_FIRST + d - 1]
                    == seen["frames"][2][_SECOND + d - 1])
        scan = next(together, None)
        found[d] = None if scan is None else scan - d
    return found


def merges_by_rule() -> Merges:
    """When each pair meets in the unstable tree: the first scan that visits both."""
    return {d: min((t for t in VISITS if t + d in VISITS), default=None) for d in DISTANCES}


def table(columns: dict[str, Merges]) -> str:
    """A Markdown table, a row for each distance; '-' is never."""
    titles = ["d", *columns]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for d in DISTANCES:
        values = [found[d] for found in columns.values()]
        lines.append(f"| {d} | " + " | ".join("-" if t is None else str(t) for t in values) + " |")
    return "\n".join(lines)


def chart(kernel: str, observed: Merges, modelled: Merges) -> dict[str, Any]:
    """The Vega-Lite chart: kernel hollow, model filled, pairs that never merge in a band on top."""
    longest = max((t for found in (observed, modelled) for t in found.values() if t is not None),
                  default=1)
    low, high = longest + 1, longest + 3
    names = (f"Linux {kernel}, live", "planner's model")
    rows = [{"d": d, "scans": low + 1 if t is None else t, "of": name}
            for name, found in zip(names, (observed, modelled), strict=True)
            for d, t in found.items()]
    x = {"field": "d", "type": "quantitative", "title": "distance d: scans from the first sight of "
         "a page to that of its copy", "scale": {"domain": [0, DISTANCES[-1] + 1]},
         "axis": {"values": [1, *range(4, DISTANCES[-1] + 1, 4)], "grid": False}}
    y = {"field": "scans", "type": "quantitative", "title": "scans from the copy's first sight "
         "to the merge", "scale": {"domain": [0, high], "nice": False},
         "axis": {"values": list(range(0, low, 2))}}
    band = {"y": {"datum": low}, "y2": {"datum": high}}
    shown = [{"mark": {"type": "point", "shape": "circle", "filled": is_filled, "size": size,
                       "opacity": 1, "strokeWidth": 1.5},
              "transform": [{"filter": {"field": "of", "equal": name}}],
              "encoding": {"x": x, "y": y,
                           "color": {"field": "of", "type": "nominal", "title": None,
                                     "scale": {"domain": list(names),
                                               "range": ["#b3470a", "#1f4e79"]},
                                     "legend": {"orient": "bottom", "symbolType": "circle"}}}}
             for name, is_filled, size in zip(names, (False, True), (110, 30), strict=True)]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white", "width": 620, "height": 280, "data": {"values": rows},
        "title": {"text": "Which pairs of equal pages merge, and when (smart scan on)",
                  "subtitle": f"{N_SCANS} full scans; hollow: the kernel, filled: the model"},
        "layer": [{"data": {"values": [{}]}, "mark": {"type": "rect", "color": "#f3dcd2"},
                   "encoding": band},
                  {"data": {"values": [{}]},
                   "mark": {"type": "text", "text": "never", "align": "left", "dx": 4,
                            "fontWeight": "bold", "color": "#7a2e06"},
                   "encoding": {"x": {"datum": 0}, "y": {"datum": low + 1}}},
                  *shown]}


def draw(spec: dict[str, Any], path: Path) -> None:
    """Write a chart as SVG, whole or not at all."""
    import vl_convert

    part = path.with_name(path.name + ".part")
    part.write_text(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    part.replace(path)


def main() -> int:
    """Parse arguments, run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="SVG to draw")
    parser.add_argument("--wait", type=float, default=300,
                        help="seconds to wait for KSM while others use it")
    options = parser.parse_args()
    kernel = host_series()
    if kernel == "6.1":
        raise CannotServeError("Linux 6.1 has no smart scan")
    script = phases_script()
    [outcome] = run_on(kernel, [script], options.wait)
    if outcome.status != "ok":
        raise CannotServeError(f"the kernel could not do it: {outcome.status}")
    observed = merges(outcome.observations)
    modelled = merges(run_script(MODELS["planner"](kernel), script))
    columns = {f"Linux {kernel}": observed, "model": modelled, "rule": merges_by_rule()}
    print(table(columns))
    if options.output is not None:
        draw(chart(kernel, observed, modelled), options.output)
    return 0 if all(found == observed for found in columns.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotServeError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
