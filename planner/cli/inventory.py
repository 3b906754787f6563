"""`planner import inventory | metrics`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell

app = typer.Typer(no_args_is_help=True,
                  help="Bring in what other tools know: inventories of hosts and guests, metrics.")

Files = Annotated[list[Path], typer.Argument(help="Files to read; - is standard input.",
                                             metavar="FILE...")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def _remarks(skipped: Mapping[str, int], notes: Sequence[str]) -> None:
    for reason, count in skipped.items():
        tell(f"left out: {count} x {reason}")
    for note in notes:
        tell(f"note: {note}")


@app.command()
def inventory(
    files: Files,
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The inventory to write (Parquet).", metavar="FILE")],
    format_name: Annotated[str, typer.Option(
        "--format", help="auto, proxmox, libvirt, kubernetes, openstack or csv.")] = "auto",
    host: Annotated[str | None, typer.Option(
        "--host", help="Host of guests whose listing names none (libvirt).")] = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Read listings of hosts and guests into one inventory that scenarios can name.

    A scenario takes its hosts from it with hosts: {from: fleet.parquet}; captured guests get
    the labels of the listed guests of the same name.

    Example: planner import inventory resources.json 101.conf -o fleet.parquet
    """
    from planner.importers.inventory import import_inventory

    report = import_inventory(files, out=output, format_name=format_name, host=host, force=force)
    if as_json:
        document("planner.inventory-import", path=str(report.path), n_hosts=report.n_hosts,
                 n_guests=report.n_guests, skipped=dict(report.skipped),
                 notes=list(report.notes))
        return 0
    say(f"{report.path}: {report.n_hosts} host(s), {report.n_guests} guest(s)")
    _remarks(report.skipped, report.notes)
    tell(f"next: hosts: {{from: {output}}} in a scenario")
    return 0


@app.command()
def metrics(
    files: Files,
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The table of counters to write (Parquet).", metavar="FILE")],
    format_name: Annotated[str, typer.Option(
        "--format", help="auto, node_exporter, prometheus, telegraf, metricbeat or "
                         "ksmtuned.")] = "auto",
    host: Annotated[str, typer.Option(
        "--host", help="Host of samples that do not name theirs.")] = "host",
    utc_offset: Annotated[str | None, typer.Option(
        "--utc-offset", help="Offset of ksmtuned's dates, such as +01:00, where their time zone "
                             "is not UTC.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Read KSM counters that a monitoring system kept into one table over time.

    Example: planner import metrics query_range.json -o counters.parquet
    """
    from planner.importers.counters import Options, import_metrics

    report = import_metrics(files, out=output, format_name=format_name,
                            options=Options(host, _offset(utc_offset)), force=force)
    if as_json:
        document("planner.metrics-import", path=str(report.path), n_samples=report.n_samples,
                 counters=list(report.counters), hosts=list(report.hosts),
                 skipped=dict(report.skipped), notes=list(report.notes))
        return 0
    say(f"{report.path}: {report.n_samples} samples of {len(report.counters)} counters, host(s) "
        f"{', '.join(report.hosts)}")
    _remarks(report.skipped, report.notes)
    return 0


def _offset(text: str | None) -> timedelta | None:
    from planner.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"([+-])([01][0-9]):([0-5][0-9])", text)
    if match is None:
        raise UsageError(f"{text!r} is not an offset", where="--utc-offset",
                         instead="write +01:00")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return -offset if match[1] == "-" else offset
