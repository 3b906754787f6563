"""`planner init`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import document, say, tell, write_text

if TYPE_CHECKING:
    from planner.scenario.draft import Source


def init(
    sources: Annotated[list[Path], typer.Argument(
        help="Trace folders, and at most one inventory (Parquet, of planner import inventory).",
        metavar="TRACE|INVENTORY...")],
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="The scenario to write; default NAME.yaml after the first trace.",
        metavar="FILE")] = None,
    name: Annotated[str | None, typer.Option(
        "--name", help="Name of the scenario; default that of the first trace.")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Write a first scenario, with comments, for what was captured. It passes planner check.

    Hosts come from the inventory where one is given, else from the machine that was captured.

    Example: planner init traces/qemu-guests fleet.parquet -o my.yaml
    """
    from planner.errors import DataError, ScenarioError, UsageError
    from planner.escape import file_name
    from planner.runner import TraceStore, fleet_facts, load_scenario
    from planner.scenario.draft import draft_scenario

    for path in sources:
        if not path.exists():
            raise DataError("there is no such file or folder", where=str(path)[:400],
                            instead="name a trace folder or an inventory")
    traces = [path for path in sources if path.is_dir()]
    inventories = [path for path in sources if not path.is_dir()]
    if len(inventories) > 1:
        raise UsageError("two inventories", where="planner init",
                         instead="import all listings into one")
    if not traces:
        raise UsageError("a scenario needs a trace: an inventory tells who runs where, not what "
                         "is in memory", where="planner init",
                         instead="capture on a host (sudo planner capture --qemu -o traces/host1), "
                                 "then name that folder as well")
    stem = name or file_name(traces[0].resolve().name, "scenario")
    path = output or Path(f"{file_name(stem, 'scenario')}.yaml")
    if (path.exists() or path.is_symlink()) and not force:
        raise UsageError("the file exists", where=str(path)[:400],
                         instead="choose another name with -o, or replace it with --force")
    store = TraceStore()
    fleet = fleet_facts(inventories[0]) if inventories else None
    base = path.resolve().parent
    for trace in traces:
        if not store.facts(trace.resolve()).span_ns:
            raise DataError("the trace spans no time (one snapshot), so nothing can happen in it",
                            where=str(trace), instead="capture at least two snapshots (planner "
                            "capture --snapshots 2 --every 30s); planner trace info tells what "
                            "one snapshot would save")
    text = draft_scenario(stem, [_source(store, trace, base) for trace in traces], fleet,
                          os.path.relpath(inventories[0].resolve(), base) if inventories else "")
    notes: list[str] = []
    # Beside its place, where what it names is found, so that a file that stands passes its check.
    aside = path.with_name(f".{path.name}.partial")
    try:
        write_text(aside, text)
        load_scenario(aside, store=store, notes=notes)
        aside.replace(path)
    except ScenarioError as error:
        first = error.problems[0].what if error.problems else error.what
        raise DataError(f"what was captured makes no scenario by itself: {first}",
                        where=", ".join(map(str, sources))[:400],
                        instead="name fewer traces, or write the scenario by hand: "
                                "planner schema") from None
    finally:
        aside.unlink(missing_ok=True)
    if as_json:
        document("planner.init", path=str(path), notes=notes)
        return 0
    for note in notes:
        tell(f"note: {note}")
    say(f"{path}: written")
    tell(f"next: look at hosts and domain in it, then planner run {path}")
    return 0


def _source(store: object, path: Path, base: Path) -> Source:
    from planner.runner import TraceStore
    from planner.scenario.draft import Source
    from planner.trace import RegionFlag, is_ksm_compatible

    assert isinstance(store, TraceStore)
    trace = store.open(path.resolve())
    known = trace.provenance
    host_bytes, n_cpus = (value if isinstance(value, int) and value > 0 else None
                          for value in (known.get("memory_bytes"), known.get("n_cpus")))
    return Source(
        os.path.relpath(path.resolve(), base), store.facts(path.resolve()), host_bytes, n_cpus,
        is_advised=any(region.flags & RegionFlag.ADVISED and is_ksm_compatible(region.flags)
                       for region in trace.regions))
