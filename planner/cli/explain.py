"""`planner explain`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer


def explain(
    result: Annotated[Path, typer.Argument(help="The results folder.", metavar="RESULT")],
    policy: Annotated[str, typer.Option("--policy", help="The policy to explain.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    traces: Annotated[list[Path] | None, typer.Option(
        "--trace", help="Where a trace is now, if it was moved; found by its digest.",
        metavar="DIR")] = None,
) -> int:
    """Say where the memory went: from what guests use, step by step, to what a policy saves.

    Replays the policy's final memory from the traces of the result, which must be there
    unchanged. Takes about as long as the policy took to run.

    Example: planner explain results/quickstart-0fba35 --policy domain-at-boot
    """
    from planner.cli.progress import ProgressLine
    from planner.explain import explain as explain_policy
    from planner.report.explain_text import render_waterfall
    from planner.results import load

    loaded = load(result)
    line = ProgressLine()
    try:
        found = explain_policy(loaded, policy, traces=traces or (), progress=line.update)
    finally:
        line.done()
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        typer.echo(render_waterfall(found.to_json(), width=max(60, width),
                                    colour=sys.stdout.isatty()), nl=False)
    return 0
