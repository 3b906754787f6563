"""`planner trace info | check | export`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell

app = typer.Typer(no_args_is_help=True, help="Look at a page-hash trace, check it, export it.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TracePath = Annotated[Path, typer.Argument(help="The trace folder.", metavar="TRACE")]


@app.command()
def info(
    trace: TracePath,
    as_json: Json = False,
    snapshot: Annotated[int | None, typer.Option(
        "--snapshot", help="Which snapshot to count; default: the last.")] = None,
    advised_only: Annotated[bool, typer.Option(
        "--advised-only", help="Count only pages in regions that are advised.")] = False,
    memory: Annotated[str, typer.Option(
        "--memory", help="Memory for page hashes; beyond it, work goes out of core.")] = "1GiB",
) -> int:
    """Show what a trace holds and what a boundary along each label would cost.

    Example: planner trace info traces/qemu-guests
    """
    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.report.text import render_trace_info
    from planner.trace import open_trace
    from planner.traceinfo import trace_info
    from planner.units import parse_size

    try:
        memory_bytes = parse_size(memory)
    except ValueError as error:
        raise UsageError(str(error), where="--memory") from None
    opened = open_trace(trace)
    if snapshot is not None and not 0 <= snapshot < len(opened.snapshots):
        raise UsageError(f"there is no snapshot {snapshot}", where="--snapshot",
                         instead=f"choose 0 to {len(opened.snapshots) - 1}")
    line = ProgressLine()
    try:
        found = trace_info(opened, snapshot=snapshot, advised_only=advised_only,
                           memory_bytes=memory_bytes, progress=line.update).to_json()
    finally:
        line.done()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        typer.echo(render_trace_info(found, width=max(60, width)))
    return 0


@app.command()
def check(trace: TracePath, as_json: Json = False) -> int:
    """Read everything in a trace and say whether it is whole.

    Example: planner trace check traces/qemu-guests
    """
    from planner.cli.progress import ProgressLine
    from planner.trace import open_trace
    from planner.units import format_duration

    opened = open_trace(trace)
    n_pages = 0
    line = ProgressLine()
    for done, mm in enumerate(opened.mms):
        line.update("reading", done / len(opened.mms))
        n_pages += sum(len(pages) for _, pages in opened.mm_history(mm.mm_id))
    line.done()
    expected = sum(snapshot.n_pages for snapshot in opened.snapshots)
    if n_pages != expected:
        from planner.errors import TraceAlteredError

        raise TraceAlteredError(f"the snapshots hold {n_pages} pages, {expected} were written",
                                where=str(trace), instead="restore the trace from where it came")
    partial = [snapshot.snapshot_id for snapshot in opened.snapshots if snapshot.is_partial]
    if as_json:
        document("planner.trace-check", path=str(trace), status=opened.status,
                 digest=opened.digest, n_guests=len(opened.guests),
                 n_snapshots=len(opened.snapshots), n_pages=n_pages, span_ns=opened.span_ns,
                 partial_snapshots=partial)
        return 0
    say(f"{trace}: ok ({opened.status}). {len(opened.guests)} guests, "
               f"{len(opened.snapshots)} snapshots over {format_duration(opened.span_ns)}, "
               f"{n_pages} page records; digest {opened.digest[:12]}")
    if partial:
        tell(f"snapshots with targets that exited meanwhile: {partial}")
    return 0


@app.command()
def export(
    trace: TracePath,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="File to write; default: standard output (CSV only).",
        metavar="FILE")] = None,
    form: Annotated[str, typer.Option("--format", help="csv or arrow.")] = "csv",
    snapshot: Annotated[int, typer.Option("--snapshot", help="Which snapshot.")] = 0,
) -> int:
    """Write the pages of one snapshot as CSV or an Arrow file.

    Example: planner trace export traces/qemu-guests --snapshot 1 -o pages.csv
    """
    from planner.errors import UsageError
    from planner.trace import open_trace
    from planner.trace.export import FORMATS, export_pages

    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", where="--format",
                         instead=f"choose {' or '.join(FORMATS)}")
    if output is None and form != "csv":
        raise UsageError("an Arrow file cannot go to a terminal", where="--format",
                         instead="name a file with -o")
    opened = open_trace(trace)
    if not 0 <= snapshot < len(opened.snapshots):
        raise UsageError(f"there is no snapshot {snapshot}", where="--snapshot",
                         instead=f"choose 0 to {len(opened.snapshots) - 1}")
    if output is None:
        export_pages(opened, snapshot, form, sys.stdout.buffer)
        return 0
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as stream:
            n_pages = export_pages(opened, snapshot, form, stream)
        partial.rename(output)
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=str(output),
                         instead="choose another file") from error
    finally:
        partial.unlink(missing_ok=True)
    tell(f"{output}: {n_pages} pages")
    return 0
