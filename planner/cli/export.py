"""`planner export settings | metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import emit

app = typer.Typer(no_args_is_help=True,
                  help="From a result to settings and forecasts that other software takes. "
                       "Prints; nothing is applied.")

ResultPath = Annotated[Path, typer.Argument(help="The results folder.", metavar="RESULT")]
Output = Annotated[Path | None, typer.Option(
    "-o", "--output", help="File to write; default: standard output.", metavar="FILE")]
Json = Annotated[bool, typer.Option(
    "--json", help="Print one JSON document that holds the text.")]


@app.command()
def settings(
    result: ResultPath,
    policy: Annotated[str, typer.Option("--policy", help="The policy to export.")],
    kind: Annotated[str, typer.Option(
        "--as", help="sysfs, tmpfiles, ksmtuned, kubevirt, proxmox, libvirt, systemd, ansible, "
                     "selective-ksm, overcommit or alerts.", metavar="KIND")],
    host: Annotated[str | None, typer.Option(
        "--host", help="Host of the scenario to write it for; needed where hosts differ in "
                       "memory.")] = None,
    output: Output = None,
    as_json: Json = False,
) -> int:
    """Print the settings that make a host behave as a policy did, and how to undo them.

    Each kind says what it changes, from which run, and what to expect; it refuses a policy that
    it cannot express. docs/settings.md has one section a kind.

    Example: planner export settings results/quickstart-0fba35 --policy ksmd-fast --as tmpfiles
    """
    from planner.exporters import current_settings, export_settings
    from planner.results import load

    text = export_settings(load(result), policy, kind, current=current_settings(), host=host)
    emit(text, output, as_json, "planner.settings", {"as": kind, "policy": policy})
    return 0


@app.command()
def metrics(
    result: ResultPath,
    policy: Annotated[str | None, typer.Option(
        "--policy", help="Only this policy; default all.")] = None,
    start: Annotated[str | None, typer.Option(
        "--start", help="When the forecast starts, such as 2026-01-31T12:00:00Z: all samples "
                        "with their times; default the last values without times.")] = None,
    output: Output = None,
    as_json: Json = False,
) -> int:
    """Print the forecast as OpenMetrics text, to draw it beside what hosts report.

    Example: planner export metrics results/quickstart-0fba35 --policy ksmd-fast -o forecast.prom
    """
    from datetime import datetime

    from planner.errors import UsageError
    from planner.exporters.metrics import export_metrics
    from planner.results import load

    start_ns = None
    if start is not None:
        try:
            at = datetime.fromisoformat(start)
            if at.tzinfo is None:
                raise ValueError("no offset")
        except ValueError:
            raise UsageError(f"{start[:80]!r} is not a time with an offset", where="--start",
                             instead="write 2026-01-31T12:00:00Z") from None
        start_ns = int(at.timestamp()) * 10**9
    text = export_metrics(load(result), policy, start_ns=start_ns)
    emit(text, output, as_json, "planner.metrics", {"policy": policy})
    return 0


