"""`planner capture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell


def capture(
    what: Annotated[str | None, typer.Argument(
        help="agent: write the stdlib-only agent for other hosts; counters: sample KSM's "
             "counters into one file; default: hash pages into a trace.",
        metavar="[WHAT]")] = None,
    pids: Annotated[list[int] | None, typer.Option(
        "--pid", help="A process; give it several times for several.", metavar="PID")] = None,
    cgroups: Annotated[list[Path] | None, typer.Option(
        "--cgroup", help="A cgroup directory: all its processes are one guest.",
        metavar="DIR")] = None,
    qemu: Annotated[bool, typer.Option(
        "--qemu", help="Every QEMU process of the host, one guest each.")] = False,
    labels: Annotated[Path | None, typer.Option(
        "--labels", help="CSV with a column pid, cgroup or name, and one column a label; "
                         "alone, its rows are what is captured.",
        metavar="FILE")] = None,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="The trace folder to make, or the file of counters; default: "
                               "trace, or counters.parquet.",
        metavar="PATH")] = None,
    snapshots: Annotated[int, typer.Option("--snapshots", help="How many.", min=1)] = 1,
    every: Annotated[str | None, typer.Option(
        "--every", help="Time from the start of one snapshot (default 60s) or sample of counters "
                        "(10s) to the next.")] = None,
    count: Annotated[int, typer.Option(
        "--count", help="counters: how many samples.", min=1)] = 1,
    processes: Annotated[bool, typer.Option(
        "--processes", help="counters: those of every process (ksm_stat) as well.")] = False,
    cpu_limit: Annotated[str | None, typer.Option(
        "--cpu-limit", help="Share of one CPU to use at most, such as 10%.")] = None,
    include: Annotated[str, typer.Option(
        "--include", help="advised: pages that KSM merges now; anon: pages that it could ever "
                          "merge; all: file and shared pages as well.")] = "anon",
    source: Annotated[str, typer.Option(
        "--source", help="kmod: the module ksm_planner; proc: /proc; auto: the module where it "
                         "is loaded.")] = "auto",
    key: Annotated[Path | None, typer.Option(
        "--key", help="Site key file; default: ~/.config/planner/site.key, made on first use.",
        metavar="FILE")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a trace that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Hash the memory of running processes or guests into a trace, by module or /proc.

    Needs root. Reads no page that is absent or swapped, and leaves merged pages merged. Page
    contents never leave the host: only keyed 64-bit hashes are written.

    Example: sudo planner capture --qemu --snapshots 5 --every 60s --cpu-limit 20% -o traces/host1
    """
    from planner.capture.session import CaptureRequest
    from planner.capture.session import capture as run_capture
    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.sitekey import load_site_key
    from planner.trace import open_trace
    from planner.units import parse_duration, parse_share

    if what == "counters":
        from planner.cli.counters import capture_counters

        return capture_counters(output or Path("counters.parquet"), every or "10s", count,
                                processes, force)
    if what == "agent":
        from planner.cli.agent import write_agent

        if pids or cgroups or qemu or labels:
            raise UsageError("this writes the agent itself", where="planner capture agent",
                             instead="pass --pid, --cgroup and --qemu to agent.pyz on its host")
        return write_agent(output, force=force)
    if what is not None:
        raise UsageError(f"nothing known to capture as {what!r}", where="planner capture",
                         instead="use agent or counters, or --pid, --cgroup or --qemu")
    if not (pids or cgroups or qemu or labels):
        raise UsageError("nothing to capture", where="planner capture",
                         instead="give --pid, --cgroup or --qemu")
    try:
        every_ns = parse_duration(every or "60s")
    except ValueError as error:
        raise UsageError(str(error), where="--every") from None
    try:
        limit = None if cpu_limit is None else parse_share(cpu_limit)
    except ValueError as error:
        raise UsageError(str(error), where="--cpu-limit") from None
    site_key = load_site_key(key)
    request = CaptureRequest(
        pids=tuple(pids or ()), cgroups=tuple(str(path) for path in cgroups or ()), qemu=qemu,
        labels_csv=labels, out=output or Path("trace"), snapshots=snapshots, every_ns=every_ns,
        cpu_limit=limit, include=include, source=source, key=site_key, force=force)
    line = ProgressLine()
    try:
        path = run_capture(request, line.update)
    finally:
        line.done()
    if site_key.is_new:
        tell(f"made a new site key, id {site_key.key_id}, in {site_key.path}: hosts that "
             "are to be compared must share it")
    trace = open_trace(path)
    n_pages = sum(snapshot.n_pages for snapshot in trace.snapshots)
    if as_json:
        document("planner.capture", path=str(path), digest=trace.digest, status=trace.status,
                 n_guests=len(trace.guests), n_snapshots=len(trace.snapshots), n_pages=n_pages,
                 source=str(trace.provenance["source"]), key_id=site_key.key_id,
                 skipped=[dict(snapshot.skipped) for snapshot in trace.snapshots])
        return 0 if len(trace.snapshots) == snapshots else 3
    say(f"{path}: {len(trace.guests)} guests, {len(trace.snapshots)} snapshot(s), "
        f"{n_pages} page records, source {trace.provenance['source']}, "
        f"key id {site_key.key_id}, mode 0600")
    for snapshot in trace.snapshots:
        if snapshot.is_partial or snapshot.skipped:
            reasons = ", ".join(f"{count} {name}" for name, count in snapshot.skipped.items())
            tell(f"snapshot {snapshot.snapshot_id}: "
                 f"{'partial' if snapshot.is_partial else 'complete'} ({reasons})")
    tell(f"next: planner trace info {path}")
    if len(trace.snapshots) < snapshots:
        tell(f"partial: {len(trace.snapshots)} of {snapshots} snapshots, since no target "
             "was left")
        return 3
    return 0
