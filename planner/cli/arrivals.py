"""`planner import arrivals`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell


def arrivals(
    record: Annotated[Path, typer.Argument(
        help="The folder or file of the record; - is standard input (csv).", metavar="PATH")],
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The table of arrivals to write (Parquet).", metavar="FILE")],
    format_name: Annotated[str, typer.Option(
        "--from", "--format", help="auto, azure2017, opendc or csv.", metavar="FORMAT")] = "auto",
    memory_unit: Annotated[str, typer.Option(
        "--memory-unit", help="What mem_capacity of OpenDC counts in.", metavar="SIZE")] = "1MiB",
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Read who came when, and for how long, into a table that fleet scenarios can name.

    Example: planner import arrivals --from csv day.csv -o day.parquet
    """
    from planner.importers.arrivals import import_arrivals

    report = import_arrivals(record, out=output, format_name=format_name,
                             memory_unit=memory_unit, force=force)
    table = report.table
    if as_json:
        document("planner.arrivals-import", path=table.path, format=report.format_name,
                 n_arrivals=len(table), n_batches=table.n_batches,
                 n_censored=int(table.is_censored.sum()), first_ns=table.origin_ns,
                 span_ns=table.span_ns, flavours=list(table.flavours), digest=table.digest,
                 skipped=dict(report.skipped), notes=list(report.notes))
        return 0
    say(f"{table.path}: {table.summary()}")
    for reason, count in sorted(report.skipped.items()):
        tell(f"left out: {count} x {reason}")
    for note in report.notes:
        tell(f"note: {note}")
    tell(f"next: arrivals: {{table: {table.path}}} in a scenario")
    return 0
