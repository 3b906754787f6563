"""`planner calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="The calibration to write; default calibration/HOST.json.",
        metavar="FILE")] = None,
    pages_to_scan: Annotated[list[int] | None, typer.Option(
        "--pages-to-scan", help="A batch size that will run; give it several times. Default 100, "
                                "1000 and 10000.", min=1)] = None,
    sleep_millisecs: Annotated[list[int] | None, typer.Option(
        "--sleep-millisecs", help="A sleep between batches that will run. Default 20.",
        min=1)] = None,
    repeats: Annotated[int, typer.Option(
        "--repeats", help="How often each experiment is made; intervals need at least 2.",
        min=1, max=20)] = 3,
    force: Annotated[bool, typer.Option(
        "--force", help="Drive KSM though others use it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Measure what ksmd's work costs on this host, for scenarios to name as their timings.

    Drives ksmd over memory of its own for a few minutes (needs root, Linux 6.6 or later, and a
    KSM nobody uses) and puts every setting back. Write `timings: calibration/HOST.json` at a host
    of a scenario to use what was found.

    Example: sudo planner calibrate --pages-to-scan 100 --pages-to-scan 1000 -o calibration/a.json
    """
    import json
    import platform

    from planner.cli.progress import ProgressLine
    from planner.live.calibrate import calibrate as run_calibration
    from planner.units import format_share
    from planner.validations import write_json

    path = output or Path("calibration") / f"{platform.node() or 'host'}.json"
    typer.echo("drives ksmd over memory of this program: writes run, pages_to_scan, "
               "sleep_millisecs, smart_scan, use_zero_pages, max_page_sharing and "
               "merge_across_nodes; every setting is put back after each experiment", err=True)
    line = ProgressLine()
    try:
        found = run_calibration(tuple(pages_to_scan or (100, 1000, 10_000)),
                                tuple(sleep_millisecs or (20,)), n_repeats=repeats, force=force,
                                progress=line.update)
    finally:
        line.done()
    write_json(path, found.document)
    if as_json:
        typer.echo(json.dumps(found.document, indent=1))
        typer.echo(f"Written: {path}", err=True)
        return 0
    intervals = found.document["intervals_ns"]
    missing = found.document["not_measured"]
    typer.echo(f"{'COST':18} {'NS':>8}  90 % INTERVAL")
    for name, cost in found.document["costs_ns"].items():
        low_high = intervals.get(name)
        text = "not measured: the builtin figure" if name in missing else \
            "" if low_high is None else f"{low_high[0]} to {low_high[1]}"
        typer.echo(f"{name.removesuffix('_ns'):18} {cost:8d}  {text}")
    for label, error in found.check:
        sign = "+" if error >= 0 else "-"
        typer.echo(f"check, not fitted: {label}: {sign}{format_share(abs(error))}")
    typer.echo(f"Residuals: {format_share(found.document['residual_rms'])} (root mean square), "
               f"largest {format_share(found.document['residual_worst'])}. Written: {path}")
    return 0
