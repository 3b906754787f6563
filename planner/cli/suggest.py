"""`planner suggest`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
    most_cpu: Annotated[str | None, typer.Option(
        "--most-cpu", help="At most so much CPU time, over all hosts, for the pass that merges "
                           "everything, such as 30s.", metavar="TIME")] = None,
    with_sensitive: Annotated[bool, typer.Option(
        "--join-sensitive", help="Let sensitive domains join too.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario.", metavar="KEY=VALUE")] = None,
    policy: Annotated[Path | None, typer.Option(
        "--policy-file", help="Write the last (largest) partitioning as scenario lines.",
        metavar="FILE")] = None,
    html: Annotated[Path | None, typer.Option(
        "--html", help="Write a page with a chart and a table of all of them.",
        metavar="FILE")] = None,
    is_static: Annotated[bool, typer.Option(
        "--static", help="A page whose chart is a drawing: it holds no script.")] = False,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print one JSON document.")] = False,
) -> int:
    """Find which domains to join for the greatest saving at each number of exposed pairs.

    Exact on the captured hashes: what every subset of domains holds in common is counted, not
    only pairs. Sensitive domains stay alone.

    Example: planner suggest scenarios/quickstart.yaml --most-exposed 1
    """
    from planner.errors import UsageError
    from planner.report.suggest_page import render_suggestion_html
    from planner.report.suggest_text import render_suggestion
    from planner.runner import TraceStore, build_hosts, costs_of, load_scenario
    from planner.suggest import Wishes, drawn_machines
    from planner.suggest import suggest as find
    from planner.units import parse_duration, parse_size

    if policy is not None and policy.exists():
        raise UsageError("it exists already", where=str(policy), instead="choose another name")
    if is_static and html is None:
        raise UsageError("only the page has it", where="--static", instead="add --html FILE")
    wishes = Wishes(
        by=by, alone=tuple(alone or ()),
        apart=tuple(tuple(name.strip() for name in names.split(",")) for names in apart or ()),
        most_exposed_pairs=most_exposed,
        most_unmerge_bytes=_number(parse_size, most_unmerge, "--most-unmerge"),
        most_merge_ns=_number(parse_duration, most_cpu, "--most-cpu"),
        may_join_sensitive=with_sensitive)
    store = TraceStore()
    resolved = load_scenario(scenario, settings or (), store=store)
    if resolved.fleet is None:
        found = find(resolved, build_hosts(resolved, store), wishes, costs_of(resolved))
    else:
        machines, n_machines = drawn_machines(resolved)
        found = find(resolved, machines, wishes, costs_of(resolved), n_machines)
    if as_json:
        document("suggestion", **found.to_json())
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        for line in render_suggestion(found.to_json(), max(80, width)).splitlines():
            say(line)
    if policy is not None:
        write_text(policy, found.policy_yaml(len(found.partitionings) - 1))
        tell(f"{policy}: lines for a scenario")
    if html is not None:
        write_text(html, render_suggestion_html(found.to_json(), is_static=is_static))
        tell(f"{html}: written")
    return 0


def _number(parse: Callable[[str], int], text: str | None, option: str) -> int | None:
    from planner.errors import UsageError

    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(str(error), where=option) from None
