"""`planner validate live`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from planner.ksm import CostModel
    from planner.live.compare import Comparison
    from planner.live.session import LiveResult


def live(
    pids: Annotated[list[int] | None, typer.Option(
        "--pid", help="A process; give it several times for several.", metavar="PID")] = None,
    cgroups: Annotated[list[Path] | None, typer.Option(
        "--cgroup", help="A cgroup directory: all its processes.", metavar="DIR")] = None,
    qemu: Annotated[bool, typer.Option(
        "--qemu", help="Every QEMU process of the host.")] = False,
    duration: Annotated[str, typer.Option(
        "--for", help="How long ksmd is watched.")] = "60s",
    every: Annotated[str | None, typer.Option(
        "--every", help="Time between snapshots; default a twelfth of --for.")] = None,
    before: Annotated[int, typer.Option(
        "--before", help="Snapshots before ksmd starts.", min=1)] = 3,
    drive_ksm: Annotated[bool, typer.Option(
        "--drive-ksm", help="Set knobs and start ksmd; every setting is put back.")] = False,
    knobs: Annotated[list[str] | None, typer.Option(
        "--knob", help="With --drive-ksm: a file of /sys/kernel/mm/ksm and its value, such as "
                       "pages_to_scan=1000; the others stay as found.",
        metavar="NAME=VALUE")] = None,
    timings: Annotated[Path | None, typer.Option(
        "--timings", help="A calibration of this host; default builtin:unmeasured.",
        metavar="FILE")] = None,
    describe: Annotated[str, typer.Option(
        "--describe", help="What runs there, for reports.", metavar="TEXT")] = "live workload",
    within: Annotated[str | None, typer.Option(
        "--within", help="Exit with 4 where pages_shared, pages_sharing or the memory freed is "
                         "further off than this at rest, such as 1%.")] = None,
    trace: Annotated[Path | None, typer.Option(
        "--keep-trace", help="Keep the snapshots as a trace in this folder.",
        metavar="DIR")] = None,
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The validation to write.",
        metavar="FILE")] = Path("validation.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    force: Annotated[bool, typer.Option(
        "--force", help="Drive KSM though others use it.")] = False,
) -> int:
    """Forecast and replay what ksmd does to running processes, and compare with its counters.

    Snapshots taken before ksmd starts give the forecast; snapshots taken along the way give the
    replay. Without --drive-ksm nothing is written: a ksmd that runs already is followed.

    Example: sudo planner validate live --qemu --drive-ksm --knob pages_to_scan=1000 --for 60s
    """
    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.ksm import BUILTIN_UNMEASURED
    from planner.ksm.timings import read_timings
    from planner.live.session import LiveRequest, validate_live
    from planner.units import parse_duration, parse_share
    from planner.validations import write_json

    try:
        where = "--for"
        duration_ns = parse_duration(duration)
        where = "--every"
        every_ns = parse_duration(every) if every is not None else max(duration_ns // 12, 1)
        where = "--within"
        limit = None if within is None else parse_share(within)
    except ValueError as error:
        raise UsageError(str(error), where=where) from None
    if not (pids or cgroups or qemu):
        raise UsageError("nothing to watch", where="planner validate live",
                         instead="give --pid, --cgroup or --qemu")
    if knobs and not drive_ksm:
        raise UsageError("settings are written only when KSM is driven", where="--knob",
                         instead="add --drive-ksm")
    cost: CostModel = BUILTIN_UNMEASURED if timings is None else read_timings(timings)
    request = LiveRequest(
        pids=tuple(pids or ()), cgroups=tuple(str(path) for path in cgroups or ()), qemu=qemu,
        duration_ns=duration_ns, every_ns=every_ns, n_before=before,
        knobs=_knobs(knobs or []) if drive_ksm else None, cost=cost, force=force, trace=trace,
        description=describe)
    line = ProgressLine()
    try:
        result = validate_live(request, progress=line.update,
                               announce=lambda text: typer.echo(text, err=True))
    finally:
        line.done()
    write_json(output, result.document)
    if as_json:
        typer.echo(json.dumps(result.document, indent=1))
    else:
        _print(result)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"Written: {output} ({result.document['status']})", err=True)
    return _exit_code(result, limit, within)


def _exit_code(result: LiveResult, limit: float | None, within: str | None) -> int:
    if result.is_partial:
        return 130 if any("interrupted" in note for note in result.notes) else 3
    if limit is None:
        return 0
    at_rest = ("pages_shared", "pages_sharing", "freed_pages")
    off = [f"{name} of the {what}" for what, rows in (("forecast", result.forecast),
                                                       ("replay", result.replay))
           for row in rows if (name := row.counter) in at_rest
           and (row.last_error is None or abs(row.last_error) > limit)]
    if off:
        typer.echo(f"beyond {within}: {', '.join(off)}", err=True)
        return 4
    return 0


def _knobs(texts: list[str]) -> dict[str, int | str]:
    from planner.errors import UsageError
    from planner.live.control import KNOBS

    found: dict[str, int | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in (*KNOBS, "advisor_mode"):
            raise UsageError(f"{text!r} is no setting of ksmd", where="--knob",
                             instead="write NAME=VALUE with one of advisor_mode, "
                                     + ", ".join(KNOBS))
        if name == "advisor_mode":
            found[name] = value
        elif value.isdecimal():
            found[name] = int(value)
        else:
            raise UsageError(f"{value!r} is not a whole number", where=f"--knob {name}",
                             instead="write digits")
    return found


def _print(result: LiveResult) -> None:
    from planner.units import format_duration

    typer.echo(f"{'COUNTER':15} {'KERNEL':>13} {'FORECAST':>13} {'AT REST':>8} {'OVER TIME':>9} "
               f"{'REPLAY':>13} {'AT REST':>8} {'OVER TIME':>9} {'BIAS':>8}")
    forecast = {row.counter: row for row in result.forecast}
    for row in result.replay:
        other = forecast[row.counter]
        typer.echo(f"{row.counter:15} {row.measured_last:13d} {other.model_last:13d} "
                   f"{_signed(other.last_error):>8} {_plain(other):>9} {row.model_last:13d} "
                   f"{_signed(row.last_error):>8} {_plain(row):>9} {_signed(row.bias):>8}")
    for name, rows in result.times.items():
        for each in rows:
            if each.measured_ns is not None and each.model_ns is not None:
                typer.echo(f"{each.counter} reached {each.share:.0%} of its last value after "
                           f"{format_duration(each.measured_ns)}; {name} "
                           f"{format_duration(each.model_ns)} ({_signed(each.error)})")
    typer.echo("Rising counters count from ksmd's start; freed_pages are frames of 4 KiB. At "
               "rest: the last values; over time: mean absolute difference, and bias the mean "
               "difference, as shares of the mean measured value.")


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{share:+.1%}"


def _plain(row: Comparison) -> str:
    return "-" if row.error is None else f"{row.error:.1%}"
