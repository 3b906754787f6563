"""`planner report`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import tell, write_text

_FORMATS = ("text", "html", "md")


def report(
    result: Annotated[Path, typer.Argument(help="The results folder.", metavar="RESULT")],
    form: Annotated[str, typer.Option("--format", help="text, html or md.")] = "text",
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="File to write; default: standard output.",
        metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print the result as one JSON document, as planner run --json does.")] =
    False,
) -> int:
    """Report a result again: as the terminal's table, one HTML file, or Markdown.

    Example: planner report results/quickstart-0fba35 --format html -o report.html
    """
    from planner.errors import UsageError
    from planner.report.html import render_html
    from planner.report.markdown import render_markdown
    from planner.report.text import render_json, render_text
    from planner.results import load

    if form not in _FORMATS:
        raise UsageError(f"unknown format {form[:80]!r}", where="--format",
                         instead=f"choose {', '.join(_FORMATS)}")
    loaded = load(result)
    if as_json:
        text = json.dumps(render_json(loaded), indent=1) + "\n"
    elif form == "html":
        if output is None and sys.stdout.isatty():
            raise UsageError("a page of HTML cannot go to a terminal", where="--format html",
                             instead="name a file with -o")
        text = render_html(loaded)
    elif form == "md":
        text = render_markdown(loaded)
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        text = render_text(loaded, width=max(60, width),
                           colour=output is None and sys.stdout.isatty())
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        tell(f"{output}: written")
    return 0
