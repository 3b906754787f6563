"""`planner capture counters` and `planner validate metrics`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True,
                  help="Compare the model with a real host.")


@app.callback()
def _validate() -> None:
    """A group of its own, so that further kinds of validation can be added."""


def capture_counters(output: Path, every: str, count: int, processes: bool, force: bool) -> int:
    """Sample this host's KSM counters into `output`; the body of `planner capture counters`."""
    import platform

    from planner.capture.counters import capture_counters as run_capture
    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.units import parse_duration

    try:
        every_ns = parse_duration(every)
    except ValueError as error:
        raise UsageError(str(error), where="--every") from None
    line = ProgressLine()
    try:
        report = run_capture(output, host=platform.node() or "host", every_ns=every_ns,
                             count=count, processes=processes, force=force, progress=line.update)
    finally:
        line.done()
    typer.echo(f"{report.path}: {report.n_times} time(s), {report.n_samples} samples of "
               f"{len(report.counters)} counters, mode 0600")
    if report.is_interrupted:
        typer.echo("interrupted; what was sampled is kept", err=True)
        return 130
    return 0


@app.command()
def metrics(
    scenario: Annotated[Path, typer.Argument(help="The scenario file (YAML).", metavar="FILE")],
    policy: Annotated[str, typer.Option("--policy", help="The policy that the host ran.")],
    source: Annotated[str, typer.Option(
        "--metrics", help="A table of counters, a file of metrics in any format that planner "
                          "import metrics reads, or an http(s) address that answers with one.",
        metavar="FILE|URL")],
    host: Annotated[str | None, typer.Option(
        "--host", help="Host of the scenario; default the only one.")] = None,
    metrics_host: Annotated[str | None, typer.Option(
        "--metrics-host", help="Host in the metrics; default the one of the same name, or the "
                               "only one.")] = None,
    start: Annotated[str | None, typer.Option(
        "--start", help="When the simulation starts, such as 2026-01-31T12:00:00Z; default when "
                        "the capture did, or the first sample.")] = None,
    within: Annotated[str | None, typer.Option(
        "--within", help="Exit with 4 where any error is larger than this, such as 10%.")] = None,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="The validation to write; default validation/HOST.json.",
        metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario.", metavar="KEY=VALUE")] = None,
) -> int:
    """Run one policy of a scenario and compare the forecast with measured counters.

    Prints error and bias of pages_shared, pages_sharing, full_scans, cow_ksm and ksmd's CPU time,
    as shares of what was measured.

    Example: planner validate metrics scenario.yaml --policy ksmd --metrics counters.parquet
    """
    from dataclasses import replace

    from planner.backtest import backtest, to_json
    from planner.cli import printable
    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.runner import TraceStore, load_scenario
    from planner.runner import run as run_scenario
    from planner.units import format_share, parse_share
    from planner.validations import write_json

    try:
        limit = None if within is None else parse_share(within)
    except ValueError as error:
        raise UsageError(str(error), where="--within") from None
    start_ns = _start_ns(start)
    store = TraceStore()
    resolved = load_scenario(scenario, settings or (), store=store)
    chosen = [each for each in resolved.policies if each.name == policy]
    if not chosen:
        raise UsageError(f"no policy is named {policy!r}", where="--policy", instead="it has "
                         + ", ".join(each.name for each in resolved.policies))
    names = [each.name for each in resolved.hosts]
    host = host or (names[0] if len(names) == 1 else None)
    if host not in names:
        raise UsageError("which host?" if host is None else f"no host is named {host!r}",
                         where="--host", instead="it has " + ", ".join(names[:12]))
    assert host is not None
    table = _table(source, metrics_host or host)
    if metrics_host is None:
        metrics_host = host if host in table.hosts or len(table.hosts) > 1 else table.hosts[0]
    starts = [store.open(each.trace).snapshots[0].start_ns for each in resolved.workloads
              if each.host == host]
    if not starts:
        raise UsageError(f"no workload runs on host {host!r}", where="--host",
                         instead="name another host")
    line = ProgressLine()
    try:
        result = run_scenario(replace(resolved, policies=tuple(chosen)), progress=line.update,
                              store=store)
    finally:
        line.done()
    found = backtest(result, policy, host, table, metrics_host, capture_start_ns=min(starts),
                     start_ns=start_ns)
    document: dict[str, Any] = {**to_json(found, result.run), "metrics": source}
    path = output or Path("validation") / f"{host}.json"
    write_json(path, document)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        typer.echo(f"{'COUNTER':16} {'SAMPLES':>7} {'MEASURED':>16} {'SIMULATED':>16} "
                   f"{'ERROR':>8} {'BIAS':>8}")
        for each in found.comparisons:
            error_text = "-" if each.error is None else format_share(each.error)
            bias_text = "-" if each.bias is None else \
                ("+" if each.bias >= 0 else "-") + format_share(abs(each.bias))
            typer.echo(f"{each.counter:16} {each.n_samples:7d} {each.measured_last:16d} "
                       f"{each.simulated_last:16d} {error_text:>8} {bias_text:>8}")
        typer.echo("measured and simulated: last values, of rising counters since the first "
                   "sample. Error and bias: mean over all samples.")
    for counter in found.missing:
        typer.echo(f"not measured in that time: {counter}", err=True)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(printable(f"aligned by {found.aligned_by}. Written: {path}"), err=True)
    off = [each.counter for each in found.comparisons
           if limit is not None and (each.error is None or each.error > limit)]
    if off:
        typer.echo(f"beyond {within}: {', '.join(off)}", err=True)
        return 4
    return 0


def _start_ns(text: str | None) -> int | None:
    from planner.errors import UsageError
    from planner.importers.counters import iso_time_ns

    if text is None:
        return None
    start_ns = iso_time_ns(text)
    if start_ns is None:
        raise UsageError(f"{text!r} is not a time with an offset", where="--start",
                         instead="write 2026-01-31T12:00:00Z")
    return start_ns


def _table(source: str, host: str) -> Any:
    """Counters of a table, or of metrics in any known format."""
    from planner.counters import CounterTable, read_counters
    from planner.importers.counters import Options, read_metrics

    if not source.startswith(("http://", "https://")) and source.endswith(".parquet"):
        return read_counters(Path(source))
    samples = read_metrics([source], Options(host)).samples
    return CounterTable(source, tuple(sorted(samples, key=lambda each: each.time_ns)), {})
