"""`planner compare`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

#: With --exit-code, where the results differ (planner.errors).
DIFFER = 5
_FORMATS = ("text", "md", "json")


def compare(
    before: Annotated[Path, typer.Argument(help="The earlier results folder.", metavar="A")],
    after: Annotated[Path, typer.Argument(help="The later results folder.", metavar="B")],
    form: Annotated[str, typer.Option(
        "--format", help="text, md (for pull requests) or json.")] = "text",
    as_json: Annotated[bool, typer.Option(
        "--json", help="The same as --format json.")] = False,
    exit_code: Annotated[bool, typer.Option(
        "--exit-code", help="Exit with 5 where the results differ, else 0.")] = False,
) -> int:
    """Compare two results: changed inputs first, then every policy that is in both.

    Example: planner compare results/quickstart-0fba35 results/quickstart-1c22d0 --format md
    """
    from planner.compare import compare as compare_results
    from planner.errors import UsageError
    from planner.report.compare_text import render_comparison_markdown, render_comparison_text
    from planner.results import load

    if form not in _FORMATS:
        raise UsageError(f"unknown format {form[:80]!r}", where="--format",
                         instead=f"choose {', '.join(_FORMATS)}")
    found = compare_results(load(before), load(after))
    if as_json or form == "json":
        typer.echo(json.dumps(found.to_json(), indent=1))
    elif form == "md":
        typer.echo(render_comparison_markdown(found.to_json()), nl=False)
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        typer.echo(render_comparison_text(found.to_json(), width=max(60, width),
                                          colour=sys.stdout.isatty()), nl=False)
    return DIFFER if exit_code and found.is_different else 0
