"""`planner report`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.output import tell, write_text

if TYPE_CHECKING:
    from planner.metrics import Result

_FORMATS = ("text", "html", "md")


def report(
    result: Annotated[Path, typer.Argument(help="The results folder.", metavar="RESULT")],
    form: Annotated[str | None, typer.Option(
        "--format", help="text, html or md; default: text, with --static html.")] = None,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="File to write; default: standard output.",
        metavar="FILE")] = None,
    is_static: Annotated[bool, typer.Option(
        "--static", help="HTML whose charts are drawings: it holds no script.")] = False,
    is_redacted: Annotated[bool, typer.Option(
        "--redact", help="Labels such as guest-3 for guests, domains and hosts.")] = False,
    with_details: Annotated[bool, typer.Option(
        "--details", help="Work out from the traces where the memory went and who shares with "
                          "whom, and keep that with the result.")] = False,
    traces: Annotated[list[Path] | None, typer.Option(
        "--trace", help="Where a trace is now, if it was moved; found by its digest.",
        metavar="DIR")] = None,
    validation: Annotated[list[Path] | None, typer.Option(
        "--validation", help="A record of planner validate to show in HTML.",
        metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print the result as one JSON document, as planner run --json does.")] =
    False,
) -> int:
    """Report a result again: as the terminal's table, one HTML file, or Markdown.

    Example: planner report results/quickstart-0fba35 --format html -o report.html
    """
    from planner.errors import UsageError
    from planner.report.redact import redacted
    from planner.results import load

    form = form or ("html" if is_static else "text")
    if form not in _FORMATS:
        raise UsageError(f"unknown format {form[:80]!r}", where="--format",
                         instead=f"choose {', '.join(_FORMATS)}")
    for option, is_given in (("--static", is_static), ("--validation", bool(validation))):
        if is_given and (form != "html" or as_json):
            raise UsageError("only HTML has it", where=option, instead="add --format html")
    loaded = load(result)
    folder = result.parent if result.is_file() else result
    if form == "html" and not as_json:
        if output is None and sys.stdout.isatty():
            raise UsageError("a page of HTML cannot go to a terminal", where="--format html",
                             instead="name a file with -o")
        text = _page(loaded, _details(loaded, folder, with_details, traces or []),
                     validation or [], _sweep(folder), is_static, is_redacted)
    else:
        if with_details:
            _details(loaded, folder, with_details, traces or [])
        if is_redacted:
            loaded = redacted(loaded, None, [])[0]
        text = _text(loaded, "json" if as_json else form, output is None and sys.stdout.isatty())
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        tell(f"{output}: written")
    return 0


def _text(result: Result, form: str, is_terminal: bool) -> str:
    from planner.report.markdown import render_markdown
    from planner.report.text import render_json, render_text

    if form == "json":
        return json.dumps(render_json(result), indent=1) + "\n"
    if form == "md":
        return render_markdown(result)
    width = shutil.get_terminal_size((100, 24)).columns
    return render_text(result, width=max(60, width), colour=is_terminal)


def _sweep(folder: Path) -> dict[str, Any] | None:
    """The sweep that the result is a case of; None where it is none of any."""
    from planner.errors import DataError

    path = folder.absolute().parent / "sweep.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path),
                        instead="run the sweep again") from error
    if not isinstance(found, dict) or found.get("kind") != "planner.sweep":
        raise DataError("is no sweep", where=str(path), instead="run the sweep again")
    return found


def _page(result: Result, details: dict[str, Any] | None, validation: list[Path],
          sweep: dict[str, Any] | None, is_static: bool, is_redacted: bool) -> str:
    from planner.errors import DataError
    from planner.report.html import render_html

    records = []
    for path in validation:
        try:
            record = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot be read ({error})", where=str(path),
                            instead="name a file that planner validate wrote") from error
        if not isinstance(record, dict):
            raise DataError("is not a JSON object", where=str(path),
                            instead="name a file that planner validate wrote")
        records.append(record)
    return render_html(result, details, validation=records, sweep=sweep, is_static=is_static,
                       is_redacted=is_redacted)


def _details(result: Result, folder: Path, is_asked_for: bool,
             traces: list[Path]) -> dict[str, Any] | None:
    """The details kept with the result; made anew, and kept, where they are asked for."""
    from planner.cli.progress import ProgressLine
    from planner.details import FILE_NAME, details_of, read_details

    if not is_asked_for:
        return read_details(folder, str(result.run["digest"]))
    line = ProgressLine()
    try:
        details = details_of(result, traces=traces, progress=line.update)
    finally:
        line.done()
    write_text(folder / FILE_NAME, json.dumps(details, indent=1) + "\n")
    return details
