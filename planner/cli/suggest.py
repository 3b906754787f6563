"""`planner suggest`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell, write_text


def suggest(
    scenario: Annotated[Path, typer.Argument(help="The scenario file (YAML).", metavar="FILE")],
    by: Annotated[str, typer.Option(
        "--by", help="What may be joined: domain, group, guest, or a label such as image.",
        metavar="KEY")] = "domain",
    alone: Annotated[list[str] | None, typer.Option(
        "--alone", help="Joins nobody; several times for several.", metavar="NAME")] = None,
    apart: Annotated[list[str] | None, typer.Option(
        "--never-together", help="Names that must stay apart, with commas between.",
        metavar="A,B")] = None,
    most_exposed: Annotated[int | None, typer.Option(
        "--most-exposed", help="At most so many domain pairs share a partition.", min=0,
        metavar="N")] = None,
    most_unmerge: Annotated[str | None, typer.Option(
        "--most-unmerge", help="Merge no more than could be given back at once, such as 20GiB.",
        metavar="SIZE")] = None,
    with_sensitive: Annotated[bool, typer.Option(
        "--join-sensitive", help="Let sensitive domains join too.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario.", metavar="KEY=VALUE")] = None,
    policy: Annotated[Path | None, typer.Option(
        "--policy-file", help="Write the last (largest) partitioning as scenario lines.",
        metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print one JSON document.")] = False,
) -> int:
    """Find which domains to join for the greatest saving at each number of exposed pairs.

    Exact on the captured hashes: what every subset of domains holds in common is counted, not
    only pairs. Sensitive domains stay alone.

    Example: planner suggest scenarios/quickstart.yaml --most-exposed 1
    """
    from planner.errors import UsageError
    from planner.report.suggest_text import render_suggestion
    from planner.runner import TraceStore, build_hosts, load_scenario
    from planner.suggest import Wishes
    from planner.suggest import suggest as find
    from planner.units import parse_size

    try:
        most_bytes = None if most_unmerge is None else parse_size(most_unmerge)
    except ValueError as error:
        raise UsageError(str(error), where="--most-unmerge") from None
    if policy is not None and policy.exists():
        raise UsageError("it exists already", where=str(policy), instead="choose another name")
    store = TraceStore()
    resolved = load_scenario(scenario, settings or (), store=store)
    found = find(resolved, build_hosts(resolved, store), Wishes(
        by, tuple(alone or ()), tuple(tuple(name.strip() for name in names.split(","))
                                      for names in apart or ()),
        most_exposed, most_bytes, with_sensitive))
    if as_json:
        document("suggestion", **found.to_json())
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        for line in render_suggestion(found.to_json(), max(80, width)).splitlines():
            say(line)
    if policy is not None:
        write_text(policy, found.policy_yaml(len(found.partitionings) - 1))
        tell(f"{policy}: lines for a scenario")
    return 0
