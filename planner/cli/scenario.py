"""`planner check` and `planner schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import document, say, tell

if TYPE_CHECKING:
    from planner.scenario.spec import Scenario


def check(
    scenario: Annotated[Path, typer.Argument(help="The scenario file (YAML).", metavar="FILE")],
    resolved: Annotated[bool, typer.Option(
        "--resolved", help="Print the scenario with every default and reference filled in; "
                           "the output is itself a scenario.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario.", metavar="KEY=VALUE")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print one JSON document: the resolved scenario and what was assumed.")] =
    False,
) -> int:
    """Check a scenario file by the same rules as `run`, and report every fault at once.

    Example: planner check --resolved scenarios/quickstart.yaml
    """
    from planner.runner import TraceStore, build_hosts, load_cases
    from planner.scenario.spec import to_json

    store = TraceStore()
    notes: list[str] = []
    cases = load_cases(scenario, settings or (), store=store, notes=notes)
    for case in cases:
        if not case.scenario.is_fleet:
            build_hosts(case.scenario, store)
    loaded = cases[0].scenario
    if len(cases) > 1:
        notes.append(f"a sweep of {len(cases)} cases; what follows is the first of them, "
                     f"{cases[0].name}")
    for note in notes:
        tell(f"note: {note}")
    if resolved:
        typer.echo(json.dumps(to_json(loaded), indent=1))
        return 0
    assumed = [f"hosts.{host.name}.timings = builtin:unmeasured (not calibrated on your machine)"
               for host in loaded.hosts if host.timings == "builtin:unmeasured"]
    if as_json:
        document("planner.check", scenario=to_json(loaded), notes=notes, defaults_used=assumed,
                 cases=[case.name for case in cases if case.name])
        return 0
    say(f"{scenario}: ok. {_extent(loaded)}")
    for default in assumed:
        tell(f"default used: {default}")
    return 0


def _extent(scenario: Scenario) -> str:
    """How much there is of a scenario, in words."""
    from planner.units import format_duration

    n_hosts = sum(host.count for host in scenario.hosts)
    draws = [workload.draw for workload in scenario.workloads if workload.draw is not None]
    if draws:
        n_first = sum(draw.count for draw in draws)
        rate = sum(draw.arrivals_per_hour for draw in draws)
        sources = {f"{n_first} at the start": n_first, f"{rate:g} an hour": rate,
                   "those of a table": any(draw.table_share for draw in draws)}
        guests = f"drawn guests: {' and '.join(text for text, some in sources.items() if some)}"
    else:
        guests = f"{sum(len(workload.guests) for workload in scenario.workloads)} guests"
    replicates = f", {scenario.replicates} replicates" if scenario.replicates > 1 else ""
    return (f"{len(scenario.policies)} policies, {n_hosts} host(s), {guests}, "
            f"{format_duration(scenario.horizon_ns)}{replicates}")


def schema(
    key: Annotated[str | None, typer.Argument(
        help="A key to explain, such as policies.merge.ksmd.", metavar="[KEY]")] = None,
    form: Annotated[str | None, typer.Option(
        "--format", help="Of the whole: json (JSON Schema, the default) or md (a page of all "
                         "keys).")] = None,
) -> int:
    """Print the scenario's JSON Schema, or explain one key.

    Example: planner schema policies.merge.ksmd
    """
    from planner.errors import UsageError
    from planner.scenario.reference import reference_markdown
    from planner.scenario.schema import describe, json_schema

    if form not in (None, "json", "md"):
        raise UsageError(f"unknown format {form[:80]!r}", where="--format",
                         instead="write json or md")
    if key is not None and form is not None:
        raise UsageError("a key is explained in words only", where="--format",
                         instead="leave out --format, or the key")
    if key is not None:
        typer.echo(describe(key))
    elif form == "md":
        typer.echo(reference_markdown(), nl=False)
    else:
        typer.echo(json.dumps(json_schema(), indent=1))
    return 0
