"""`planner sql`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import tell

#: Rows printed at most as text; --json has all.
MAX_ROWS = 1000
_MAX_CELL = 60


def sql(
    result: Annotated[Path, typer.Argument(help="The results folder.", metavar="RESULT")],
    statement: Annotated[str, typer.Argument(help="One SQL statement.", metavar="SQL")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Ask a result in SQL: tables summary, hosts, partitions, events, replicates, series.

    Needs DuckDB.

    Example: planner sql results/quickstart-0fba35 'select policy, saved_bytes from summary'
    """
    from planner.escape import clean
    from planner.report.columns import Column, render_table
    from planner.results import load
    from planner.sql import query

    table = query(load(result), statement)
    rows = table.to_pylist()
    if as_json:
        typer.echo(json.dumps({"format_version": 1, "kind": "planner.rows",
                               "columns": table.column_names, "rows": rows}, indent=1,
                              default=str))
        return 0
    columns = [Column((clean(name, _MAX_CELL),), tuple(
        "" if row[name] is None else clean(row[name], _MAX_CELL) for row in rows[:MAX_ROWS]))
        for name in table.column_names]
    for line in render_table(columns, width=10**6, colour=False):
        typer.echo(line)
    if len(rows) > MAX_ROWS:
        tell(f"and {len(rows) - MAX_ROWS} more rows, in --json")
    return 0
