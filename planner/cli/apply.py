"""`planner apply` and `planner validate plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import document, say, tell, write_text

if TYPE_CHECKING:
    from planner.apply import PartitionReport, PlanComparison, Report

PlanPath = Annotated[Path, typer.Argument(
    help="A plan of `planner export settings RESULT --policy NAME --as selective-ksm`.",
    metavar="PLAN")]


def apply(
    plan: PlanPath,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Find the members and say what would be done; call nothing.")] = False,
    undo: Annotated[bool, typer.Option(
        "--undo", help="Unmerge the members' memory and unlink the partitions.")] = False,
    host: Annotated[str | None, typer.Option(
        "--host", help="This host's name in the plan, where it spans several.")] = None,
    members: Annotated[list[str] | None, typer.Option(
        "--member", help="Where a member runs: a pid, or a cgroup as for planner capture. "
                         "Others are found by QEMU's -name, or by their labels vmid and unit.",
        metavar="GUEST=PLACE")] = None,
    skip_missing: Annotated[bool, typer.Option(
        "--skip-missing", help="Go on without members that are not running here.")] = False,
    split_huge: Annotated[bool, typer.Option(
        "--split-huge", help="Split huge pages first, which are not merged otherwise; needs "
                             "debugfs, and what was split is slower to walk.")] = False,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="Write the report as JSON, for planner validate plan.",
        metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Carry out a plan of Selective KSM on this host, once; needs root and the kernel module.

    Partitions are made, and the members' memory is merged (mode sync) or attached to a scanner
    (mode ksmd). For a plan with triggers, run it at each of them. docs/selective-ksm.md says what
    the module merges, what it refuses, and what becomes of merged memory.

    Example: sudo planner apply plan.json --member web-1=4711 --dry-run
    """
    from functools import partial

    from planner.apply import (
        carry_out,
        find_members,
        read_plan,
        split_huge_pages,
        steps_of,
        write_settings,
    )
    from planner.apply import undo as undo_plan
    from planner.capture.procfs import ProcRoot
    from planner.cli.progress import ProgressLine
    from planner.partitions import PartitionDevice

    wanted = read_plan(plan).on_host(host)
    root = ProcRoot()
    planned = [member for each in wanted.partitions for member in each.members]
    found = find_members(root, planned, _places(members or []), skip_missing=skip_missing or undo)
    steps = list(steps_of(wanted, found, is_undo=undo))
    missing = [member.guest for member in planned if member.guest not in found]
    if dry_run:
        if as_json:
            document("planner.selective-ksm-steps", steps=steps,
                     triggers=list(wanted.triggers), missing=missing)
        else:
            _say(steps, wanted.triggers, missing, as_json=False)
        return 0
    _say(steps, wanted.triggers, missing, as_json=as_json)
    line = ProgressLine()
    try:
        with PartitionDevice() as device:
            if undo:
                report = undo_plan(wanted, found, device, progress=line.update)
            else:
                report = carry_out(
                    wanted, found, device, progress=line.update,
                    split=partial(split_huge_pages, root.sys) if split_huge else None,
                    set_scanner=partial(write_settings, root.sys))
    finally:
        line.done()
    text = json.dumps(report.to_json(), indent=1) + "\n"
    if output is not None:
        write_text(output, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(report)
    _raise_failures(report)
    return 0


def validate_plan(
    plan: PlanPath,
    result: Annotated[Path, typer.Argument(
        help="What planner apply wrote with -o.", metavar="REPORT")],
    host: Annotated[str | None, typer.Option(
        "--host", help="The host that was applied to, where the plan spans several.")] = None,
    within: Annotated[str | None, typer.Option(
        "--within", help="Exit with 4 where a partition's freed memory is further off than this, "
                         "such as 1%.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Compare what a plan of Selective KSM promised with what merging on the host freed.

    Example: planner validate plan plan.json report.json --within 1%
    """
    from planner.apply import compare_plan, read_plan, read_report
    from planner.errors import UsageError
    from planner.units import parse_share

    try:
        limit = None if within is None else parse_share(within)
    except ValueError as error:
        raise UsageError(str(error), where="--within") from None
    rows = compare_plan(read_plan(plan).on_host(host), read_report(result))
    if as_json:
        document("planner.selective-ksm-comparison", partitions=[_row(row) for row in rows])
    else:
        _print_comparison(rows)
    if limit is None:
        return 0
    off = [row.name for row in rows if not row.is_within(limit)]
    if off:
        tell(f"beyond {within}, or without a number: {', '.join(off)}")
    return 4 if off else 0


def _places(texts: list[str]) -> dict[str, str]:
    from planner.errors import UsageError

    found: dict[str, str] = {}
    for text in texts:
        guest, equals, place = text.partition("=")
        if not (guest and equals and place):
            raise UsageError(f"{text!r} names no member and place", where="--member",
                             instead="write GUEST=PID or GUEST=CGROUP")
        if guest in found:
            raise UsageError(f"{guest!r} is named twice", where="--member",
                             instead="give each member one place")
        found[guest] = place
    return found


def _say(steps: list[str], triggers: tuple[str, ...], missing: list[str], *,
         as_json: bool) -> None:
    """What will be done; beside JSON on standard error."""
    put = tell if as_json else say
    for step in steps:
        put(step)
    if triggers:
        put("the plan merges " + ", ".join(triggers) + ": run this at each")
    for guest in missing:
        tell(f"note: {guest} is not running here")


def _print(report: Report) -> None:
    from planner.units import format_duration

    for part in report.partitions:
        say(f"{part.name}: " + _done(report.action, part))
        for call in part.calls:
            say(
                f"  {call.call} {call.guest} process {call.pid} {call.start:#x} {call.size} bytes: "
                + (f"merged {call.merged_pages} + {call.partner_pages}, "
                   f"candidates {call.candidate_pages}, already {call.already_pages}"
                   if call.call == "merge" else f"unmerged {call.unmerged_pages}"
                   if call.call == "unmerge" else "failed" if call.error else "done")
                + f", {format_duration(call.total_ns)}"
                + (f", {call.error}" if call.error else ""))
        if part.refused:
            reasons = ", ".join(f"{reason} {number}" for reason, number in part.refused.items())
            hint = " (--split-huge)" if "thp" in part.refused else ""
            typer.echo(f"  refused pages: {reasons}{hint}")


def _done(action: str, part: PartitionReport) -> str:
    from planner.units import format_duration

    if part.error and not part.calls:
        return part.error
    time = f"{len(part.calls)} calls, {format_duration(part.total_ns)}"
    if action == "undo":
        return f"{part.unmerged_pages} pages unmerged, {time}"
    if part.mode == "ksmd":
        return f"attached, {time}"
    freed = f"; {part.pages_sharing} pages freed" if part.pages_sharing is not None else ""
    expected = f" ({part.expected_pages} expected)" if part.expected_pages is not None else ""
    return f"{part.merged_pages} pages merged, {time}{freed}{expected}"


def _raise_failures(report: Report) -> None:
    """The error that stands for what went wrong, after all that was done has been told."""
    from planner.errors import InterruptedRunError, MachineError

    done = sum(part.merged_pages + part.unmerged_pages for part in report.partitions)
    if report.is_interrupted:
        raise InterruptedRunError(f"interrupted after {done} pages", instead="run it again to go "
                                  "on, or with --undo to take back what was done")
    if report.failures:
        raise MachineError(f"{len(report.failures)} failed, {done} pages were done: "
                           + "; ".join(report.failures[:3]), instead=_advice(report))


def _advice(report: Report) -> str:
    text = " ".join(report.failures)
    if "EPERM" in text or "EACCES" in text:
        return "run it as root, with allow_merge=1 in /sys/module/ksm_planner/parameters"
    if "ESRCH" in text:
        return "a member has ended; run it again with --skip-missing"
    return "planner apply PLAN --undo takes back what was done"


def _row(row: PlanComparison) -> dict[str, object]:
    return {"name": row.name, "expected_pages": row.expected_pages, "is_net": row.is_net,
            "measured_pages": row.measured_pages, "error": row.error,
            "refused_pages": row.explanations}


def _print_comparison(rows: list[PlanComparison]) -> None:
    typer.echo(f"{'PARTITION':30} {'EXPECTED':>12} {'FREED':>12} {'ERROR':>8}  REFUSED PAGES")
    for row in rows:
        reasons = ", ".join(f"{name} {number}" for name, number in row.explanations.items())
        expected, measured = (("-" if number is None else str(number))
                              for number in (row.expected_pages, row.measured_pages))
        error = "-" if row.error is None else f"{row.error:+.1%}"
        say(f"{row.name:30} {expected:>12} {measured:>12} {error:>8}  {reasons}")
    if any(row.is_net for row in rows):
        typer.echo("Expected frames are less the kernel's metadata, which the module does not "
                   "have.")
