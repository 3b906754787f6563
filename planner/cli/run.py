"""`planner run`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import say, tell, write_text

if TYPE_CHECKING:
    from planner.metrics import Result
    from planner.runner import TraceStore


def run(
    scenario: Annotated[Path, typer.Argument(help="The scenario file (YAML).", metavar="FILE")],
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="Folder for results; default: the scenario's output.folder.",
        metavar="DIR")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print the result as one JSON document.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario, such as "
                      "policies.ksmd.merge.ksmd.pages_to_scan=1000.", metavar="KEY=VALUE")] = None,
    again: Annotated[bool, typer.Option(
        "--again", help="Simulate again even if this very scenario has a result.")] = False,
    without_details: Annotated[bool, typer.Option(
        "--no-details", help="Leave out of the report what takes a second look at the traces: "
                             "where the memory went, who shares with whom.")] = False,
) -> int:
    """Compare the scenario's strategies and write a report.

    Replays every policy of the scenario over the captured guests, prints a table, and writes
    results/NAME-DIGEST/ with the report and all tables as Parquet.

    Example: planner run scenarios/quickstart.yaml
    """
    from planner.cli.progress import ProgressLine
    from planner.errors import InterruptedRunError
    from planner.metrics import Result
    from planner.report.html import render_html
    from planner.report.text import render_json, render_text
    from planner.results import result_path, save
    from planner.runner import TraceStore, load_scenario, run_digest
    from planner.runner import run as run_scenario

    store = TraceStore()
    notes: list[str] = []
    resolved = load_scenario(scenario, settings or (), store=store, notes=notes)
    for note in notes:
        tell(f"note: {note}")
    folder = output if output is not None else Path(resolved.output.folder)
    digest = run_digest(resolved)
    path = result_path(folder, resolved.name, digest)
    known = None if again else _earlier(path, digest)
    if known is not None:
        result = known
        tell(f"{path}: this scenario was run before; --again simulates it anew")
    else:
        def kept(finished: Result, at: Path) -> Path:
            return save(finished, at, texts={"scenario.yaml": scenario.read_text("utf-8"),
                                             "report.html": render_html(finished)})

        line = ProgressLine()
        try:
            result = run_scenario(resolved, progress=line.update, store=store)
        except InterruptedRunError as interruption:
            if isinstance(interruption.partial, Result):
                partial = kept(interruption.partial, path.with_name(path.name + "-partial"))
                interruption.instead = f"their results are in {partial}"
            raise
        finally:
            line.done()
        kept(result, path)
        if not without_details:
            _add_details(result, path, store)
    if as_json:
        typer.echo(json.dumps(render_json(result), indent=1))
        return 0
    width = shutil.get_terminal_size((100, 24)).columns
    typer.echo(render_text(result, width=max(60, width), colour=sys.stdout.isatty()))
    say(f"Report: {path / 'report.html'}")
    return 0


def _add_details(result: Result, path: Path, store: TraceStore) -> None:
    """Work out the details, keep them with the result, and write the report with them."""
    from planner.cli.progress import ProgressLine
    from planner.details import FILE_NAME, details_of
    from planner.errors import DataError, InterruptedRunError
    from planner.report.html import render_html

    line = ProgressLine()
    try:
        details = details_of(result, store=store, progress=line.update)
    except DataError as error:
        tell(f"note: the report is without details: {error}")
        return
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted while the details of the report were worked out", where=str(path),
            instead="the result is whole; planner report RESULT --details does the rest") from None
    finally:
        line.done()
    write_text(path / FILE_NAME, json.dumps(details, indent=1) + "\n")
    write_text(path / "report.html", render_html(result, details))


def _earlier(path: Path, digest: str) -> Result | None:
    """The whole result of this very scenario, if it was run before."""
    from planner.errors import DataError
    from planner.results import load

    if not path.exists():
        return None
    try:
        result = load(path)
        if result.run.get("digest") == digest and (path / "report.html").is_file():
            return result
        problem = "it is not whole"
    except DataError as error:
        problem = str(error)
    tell(f"{path}: the earlier result cannot be used ({problem}); simulating again")
    return None
