"""Validates the model on real workloads of this host and writes a table.

    sudo env PYTHONPATH=. python -m tests.validation --out validation/ [--only python,jvm]
        [--guests WORK] [--timings calibration.json] [--knob pages_to_scan=2000] [--for 40s]

WORK is a folder that traces/recipes/qemu-guests/run.py build filled. KSM is driven: each workload
is mergeable only while this program holds KSM's lock.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from planner.errors import PlannerError
from planner.ksm import BUILTIN_UNMEASURED
from planner.ksm.timings import read_timings
from planner.live.control import mergeable_processes
from planner.live.session import LiveRequest, LiveResult, validate_live
from planner.units import parse_duration
from planner.validations import write_json
from tests.validation import workloads

KSM = "/sys/kernel/mm/ksm"
Workload = Callable[[], contextlib.AbstractContextManager[list[int]]]
PROCESSES: dict[str, tuple[str, Workload]] = {
    "python": ("6 Python services, 20 requests/s each", workloads.python),
    "node": ("4 Node services, 20 requests/s each", workloads.node),
    "jvm": ("3 JVM services, 20 requests/s each", workloads.jvm),
    "postgres": ("PostgreSQL, pgbench with 6 clients, 60 transactions/s", workloads.postgres),
    "python-idle": ("6 Python services, no requests", lambda: workloads.python(rate=0)),
    "node-idle": ("4 Node services, no requests", lambda: workloads.node(rate=0)),
    "jvm-idle": ("3 JVM services, no requests", lambda: workloads.jvm(rate=0)),
    "mix": ("2 Python, 2 Node, 1 JVM, PostgreSQL with 3 clients", workloads.mix),
}


def validate(name: str, what: str, start: Workload, args: argparse.Namespace) -> LiveResult:
    """One workload: started under KSM's lock, which the validation takes over."""
    with contextlib.ExitStack() as held, contextlib.ExitStack() as stack:
        lock = os.open(KSM, os.O_RDONLY | os.O_DIRECTORY)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        while mergeable_processes():  # somebody's machines: let them end
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(2)
            fcntl.flock(lock, fcntl.LOCK_EX)
        pids = stack.enter_context(start())
        if name != "qemu":
            time.sleep(args.settle)
        knobs: dict[str, int | str] = {"pages_to_scan": 2000, "sleep_millisecs": 20}
        for text in args.knob:
            key, _, value = text.partition("=")
            knobs[key] = int(value)

        def announce(text: str) -> None:
            if text.startswith("putting back"):
                stack.close()  # nothing mergeable is left when the lock is given back

        request = LiveRequest(
            pids=tuple(pids), cgroups=(), qemu=False, duration_ns=parse_duration(args.duration),
            every_ns=parse_duration(args.every), n_before=args.before, knobs=knobs,
            cost=read_timings(args.timings) if args.timings else BUILTIN_UNMEASURED,
            description=what, trace=Path(args.traces) / name if args.traces else None)
        held.close()
        result = validate_live(request, announce=announce)
    write_json(Path(args.out) / f"{name}.json", result.document)
    return result


def row(name: str, result: LiveResult) -> str:
    """A line of the table in docs/validation.md."""
    def at_rest(what: str, counter: str) -> str:
        found = {each.counter: each for each in getattr(result, what)}[counter]
        return "-" if found.last_error is None else f"{found.last_error:+.1%}"

    def over_time(counter: str) -> str:
        found = {each.counter: each for each in result.replay}[counter]
        return "-" if found.error is None else f"{found.error:.1%}"

    reached = result.times["replay"][0].error
    document = result.document
    cells = [name, str(document["workload"]["n_pages"])]
    cells += [at_rest(what, counter) for what in ("forecast", "replay")
              for counter in ("pages_shared", "pages_sharing", "freed_pages")]
    cells += [over_time("pages_sharing"), "-" if reached is None else f"{reached:+.1%}",
              at_rest("replay", "ksmd_cpu_ns"), f"{document['ksmd_wait_share']:.0%}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Run what was asked for; 1 if any workload failed."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="validation")
    parser.add_argument("--only", default="")
    parser.add_argument("--guests", type=Path)
    parser.add_argument("--timings", type=Path)
    parser.add_argument("--traces")
    parser.add_argument("--knob", action="append", default=[])
    parser.add_argument("--for", dest="duration", default="40s")
    parser.add_argument("--every", default="2s")
    parser.add_argument("--attempts", type=int, default=5)
    parser.add_argument("--before", type=int, default=6)
    parser.add_argument("--settle", type=float, default=30.0,
                        help="seconds before the first snapshot")
    args = parser.parse_args()
    # The contexts end what was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan: dict[str, tuple[str, Workload]] = dict(PROCESSES)
    guests = None
    if args.guests:
        guests = workloads.Guests(args.guests, workloads.GUEST_ROLES)
        plan["qemu"] = ("3 QEMU guests of 320 MiB with huge pages: nginx, redis, postgres",
                        guests.mergeable)
    chosen = args.only.split(",") if args.only else list(plan)
    print("| workload | pages | forecast: shared | sharing | freed | replay: shared | sharing | "
          "freed | sharing over time | time to 90 % | ksmd CPU | ksmd waited |\n"
          "|" + "---|" * 12, flush=True)
    is_failed = False
    try:
        if guests is not None and "qemu" in chosen:
            guests.wait()
            time.sleep(args.settle)  # not mergeable yet, so without the lock
        for name in chosen:
            what, start = plan[name]
            try:
                for _ in range(args.attempts):
                    result = validate(name, what, start, args)
                    if not any("not among the targets" in note for note in result.notes):
                        break
                    print(f"{name}: others became mergeable meanwhile; once more",
                          file=sys.stderr)
            except (PlannerError, RuntimeError, OSError) as error:
                print(f"| {name} | failed: {error} |", flush=True)
                is_failed = True
                continue
            print(row(name, result), flush=True)
            for note in result.notes:
                print(f"{name}: {note}", file=sys.stderr)
    finally:
        if guests is not None:
            guests.close()
    return int(is_failed)


if __name__ == "__main__":
    sys.exit(main())
