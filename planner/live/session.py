"""One live validation: capture, forecast, ksmd at work, replay, comparison.

ksmd's time is what it has when it gets a CPU at once. On a busy host it waits; that is taken out
of the time axis (schedstat tells it to the nanosecond), so that the model is not blamed for the
load of others. The share it waited is part of the result.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.capture import CaptureRequest, capture
from planner.capture.procfs import ProcRoot
from planner.capture.targets import Process, processes_of, resolve_targets
from planner.errors import InterruptedRunError, MachineError, UsageError
from planner.fleet import FleetHost
from planner.ksm import CostModel
from planner.live import compare, host
from planner.live.control import KsmControl, driven, examine, mergeable_processes
from planner.live.model import (
    Setting,
    forecast_host,
    host_of,
    kernel_of,
    replay_host,
    run_model,
    warm_up_ns,
)
from planner.live.observe import Observation, Watch
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from planner.validations import FORMAT_VERSION, KIND

__all__ = ["LiveRequest", "LiveResult", "validate_live"]

I64 = npt.NDArray[np.int64]

#: Counters of the kernel that only rise: compared by their rise since ksmd's start.
_RISING = ("pages_scanned", "pages_skipped", "full_scans", "ksmd_cpu_ns")
_SETTING = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile",
            "ksm_zero_pages")
_TIMED = ("pages_sharing", "pages_shared")
_POINTS = 240
#: Beyond this share of waiting the time axis is a guess.
_MUCH_WAITING = 0.5

NOT_KSMD = ("ksmd's CPU time is what schedstat counts for its thread. Not in it: copies on write "
            "to merged pages (paid by the writer), interrupts that flush other CPUs' TLBs, "
            "refaults of guests' second-level tables, MADV_UNMERGEABLE and run=2 (paid by the "
            "caller), khugepaged")


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What to watch and how.

    `duration_ns` is how long ksmd is watched, `every_ns` the time between snapshots, `n_before`
    how many are taken before ksmd starts (in following: before the watching starts). `knobs` are
    settings to drive KSM with (those not named stay as found); None follows a ksmd that runs.
    """

    pids: tuple[int, ...]
    cgroups: tuple[str, ...]
    qemu: bool
    duration_ns: int
    every_ns: int
    n_before: int
    knobs: Mapping[str, int | str] | None
    cost: CostModel
    key: SiteKey | None = None
    force: bool = False
    trace: Path | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be; raises UsageError."""
        if self.n_before < 1:
            raise UsageError(f"{self.n_before} snapshots", where="--before",
                             instead="ask for at least 1, or 2 to see what changes")
        if not 0 < self.every_ns <= self.duration_ns:
            raise UsageError("the time between snapshots must be above 0 and within --for",
                             where="--every", instead="write for example --for 60s --every 5s")

    @property
    def n_snapshots(self) -> int:
        """All of them, before and along the way."""
        return self.n_before + -(-self.duration_ns // self.every_ns)


@dataclass(frozen=True, slots=True)
class LiveResult:
    """The document to write, and what to print of it."""

    document: Mapping[str, Any]
    forecast: tuple[compare.Comparison, ...]
    replay: tuple[compare.Comparison, ...]
    times: Mapping[str, tuple[compare.TimeTo, ...]]
    notes: tuple[str, ...]
    is_partial: bool


@dataclass(slots=True)
class _Run:
    """What one run of ksmd left behind."""

    knobs: dict[str, int | str] = field(default_factory=dict)
    started_ns: int = 0  # CLOCK_MONOTONIC
    ended_ns: int = 0
    wall_offset_ns: int = 0  # time.time_ns() - time.monotonic_ns()
    seen: Observation | None = None
    notes: list[str] = field(default_factory=list)
    interrupted: str = ""
    missed: list[Process] = field(default_factory=list)


def validate_live(request: LiveRequest, *, progress: Callable[[str, float], None] | None = None,
                  announce: Callable[[str], None] = lambda text: None,
                  root: ProcRoot | None = None) -> LiveResult:
    """Capture the targets, watch ksmd, run the model twice and compare.

    `announce` is told every setting that is written. Raises MachineError without KSM, rights or
    targets, or where KSM is in use; InterruptedRunError when stopped before there was anything to
    compare. When stopped later, or when targets exit, what was seen is compared and marked.
    """
    root = root or ProcRoot()
    control = KsmControl(root)
    examine(control)
    targets = resolve_targets(root, pids=request.pids, cgroups=request.cgroups, qemu=request.qemu)
    processes = [process for target in targets for process in processes_of(root, target)]
    pids = {process.pid for process in processes}
    run = _Run()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-live-")))
        out = request.trace or folder / "trace"
        if request.knobs is None:
            if control["run"] != 1:
                raise MachineError("ksmd does not run here, so there is nothing to follow",
                                   where=str(control.folder / "run"),
                                   instead="use --drive-ksm to let it run for this long")
            _capture(request, run, out, Watching(control, run, None, announce), root, progress)
            _note_others(run, root, pids)
        else:
            changed = dict(request.knobs)
            with driven(pids, force=request.force, root=root, announce=announce) as mine:
                announce("writing " + ", ".join(
                    f"{k}={v}" for k, v in changed.items()) + ", run=1; all of it is put back")
                mine.apply(changed)
                _capture(request, run, out, Watching(mine, run, 1, announce), root, progress)
                _note_others(run, root, pids)
        if run.seen is None:
            raise InterruptedRunError("stopped before ksmd was watched", instead="nothing was kept")
        trace = open_trace(out, verify=False)
        seen_pids = {mm.pid for mm in trace.mms}
        run.missed = [each for each in processes if each.pid not in seen_pids]
        return _compared(request, run, trace)


class Watching:
    """Starts ksmd (where it is ours) and the watch after the snapshots before, ends both after."""

    def __init__(self, control: KsmControl, run: _Run, run_value: int | None,
                 announce: Callable[[str], None]) -> None:
        self._control = control
        self._run = run
        self._run_value = run_value
        self._announce = announce
        self._watch: Watch | None = None

    def start(self, root: ProcRoot) -> None:
        """Start; call once."""
        self._run.knobs = self._control.knobs()
        self._watch = Watch(root=root)
        self._run.wall_offset_ns = time.time_ns() - time.monotonic_ns()
        self._watch.__enter__()
        self._run.started_ns = time.monotonic_ns()
        if self._run_value is not None:
            self._control["run"] = self._run_value

    def stop(self) -> None:
        """End what was started, also after an error."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            self._run.ended_ns = time.monotonic_ns()
            watch.__exit__(None, None, None)
            self._run.seen = watch.result()


def _note_others(run: _Run, root: ProcRoot, pids: set[int]) -> None:
    others = [one for one in mergeable_processes(root) if one.pid not in pids]
    if others:
        run.notes.append(f"{len(others)} mergeable processes are not among the targets; KSM's "
                         "counters include them, the model does not")


def _capture(request: LiveRequest, run: _Run, out: Path, watching: Watching, root: ProcRoot,
             progress: Callable[[str, float], None] | None) -> None:
    key = request.key
    if key is None:
        secret = os.urandom(16)
        key = SiteKey(secret, key_id_of(secret), Path(os.devnull))

    def after(n_done: int) -> None:
        if n_done == request.n_before:
            watching.start(root)

    try:
        capture(CaptureRequest(
            key=key, out=out, pids=request.pids, cgroups=request.cgroups, qemu=request.qemu,
            snapshots=request.n_snapshots, every_ns=request.every_ns, include="advised",
            force=True), progress, root=root, after_snapshot=after)
    except InterruptedRunError as error:
        # The finished snapshots are kept; compare them if ksmd ran meanwhile.
        run.interrupted = str(error)
    finally:
        watching.stop()


def _compared(request: LiveRequest, run: _Run, trace: Trace) -> LiveResult:
    notes = list(run.notes)
    is_partial = _find_losses(request, run, trace, notes)
    whole = host_of(trace, host.timer_hz())
    setting = Setting.of_files(kernel_of(platform.release()), run.knobs, request.cost)
    seen = run.seen
    assert seen is not None
    time_ns, measured = _aligned(seen, run)
    origin_ns = trace.snapshots[0].end_ns
    start_ns = run.started_ns + run.wall_offset_ns - origin_ns
    before_ns = trace.snapshots[min(request.n_before, len(trace.snapshots)) - 1].end_ns - origin_ns
    wait = _Clock(seen, run)
    waited = wait.share()
    if waited > 0.02:
        notes.append(f"ksmd waited {waited:.0%} of the time for a CPU; that is taken out of the "
                     "time axis")
    replayed = wait.of_events(replay_host(whole, start_ns))
    foretold = forecast_host(whole, start_ns, before_ns=before_ns,
                             duration_ns=int(time_ns[-1]) + 1)
    if request.knobs is None:
        shift_ns = warm_up_ns(replayed, setting)
        replayed, foretold = _later(replayed, shift_ns), _later(foretold, shift_ns)
        notes.append("ksmd ran before: the model was run in over the first contents for "
                     f"{shift_ns / 1e9:.0f} s of simulated time")
    else:
        shift_ns = 0
    found: dict[str, tuple[compare.Comparison, ...]] = {}
    times: dict[str, tuple[compare.TimeTo, ...]] = {}
    series: dict[str, Any] = {"time_ns": time_ns.tolist(),
                              "measured": {k: v.tolist() for k, v in measured.items()}}
    snapshots = [each for each in range(len(trace.snapshots))
                 if trace.snapshots[each].start_ns >= origin_ns + start_ns]
    at_ns = wait.of(np.array([(trace.snapshots[i].start_ns + trace.snapshots[i].end_ns) // 2
                              - origin_ns - start_ns for i in snapshots], np.int64))
    frames = np.array([_frames(trace, i) for i in snapshots], np.int64)
    base_frames: I64 | None = None
    for name, model_host in (("replay", replayed), ("forecast", foretold)):
        wanted = np.union1d(time_ns, at_ns)
        # The first row is ksmd's start, or where the watching of a running one began.
        rows_ns = np.concatenate([np.array([0], np.int64), wanted]) + shift_ns
        whole_run = run_model(model_host, setting, rows_ns)
        first = {counter: int(whole_run[counter][0]) for counter in _RISING}
        model = {counter: values[1:] for counter, values in whole_run.items()}
        here = np.searchsorted(wanted, time_ns)
        rows = []
        for counter in (*_SETTING, *_RISING):
            if counter in measured:
                values = model[counter][here]
                if counter in _RISING:
                    values = values - first[counter]
                rows.append(compare.compare(counter, measured[counter], values))
                series.setdefault(name, {})[counter] = values.tolist()
        if len(snapshots):
            there = np.searchsorted(wanted, at_ns)
            if base_frames is None:  # the replay's: without merging, and with the writes seen
                base_frames = model["base_frames"][there]
            rows.append(compare.compare("freed_pages", base_frames - frames,
                                        (model["base_frames"] - model["frames"])[there]))
        found[name] = tuple(rows)
        if request.knobs is not None:
            times[name] = tuple(compare.time_to(counter, 0.9, time_ns, measured[counter],
                                                model[counter][here]) for counter in _TIMED)
    document = {
        "format_version": FORMAT_VERSION, "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "partial" if is_partial else "complete",
        "host": host.facts(), "kernel_modelled": setting.kernel,
        "knobs": run.knobs, "is_driven": request.knobs is not None,
        "timings": request.cost.name, "workload": _workload(request, trace, whole),
        "duration_ns": run.ended_ns - run.started_ns, "ksmd_wait_share": waited,
        "n_snapshots_before": request.n_before, "n_snapshots": len(trace.snapshots),
        **{name: {row.counter: compare.to_json(row) for row in rows}
           for name, rows in found.items()},
        "time_to_90_percent": {name: {row.counter: compare.to_json(row) for row in rows}
                               for name, rows in times.items()},
        "forecast_assumes": "contents of the last snapshot before ksmd's start stay; pages that "
                            "changed between those snapshots go on changing at that pace, each "
                            "time to a content found nowhere else",
        "not_in_ksmd_cpu": NOT_KSMD, "notes": notes, "series": series,
    }
    return LiveResult(document, found["forecast"], found["replay"], times, tuple(notes),
                      is_partial)


def _find_losses(request: LiveRequest, run: _Run, trace: Trace, notes: list[str]) -> bool:
    """Note what is missing; True when anything is."""
    n_snapshots = len(trace.snapshots)
    if run.interrupted:
        notes.append(f"partial: {run.interrupted}")
    elif n_snapshots < request.n_snapshots:
        notes.append(f"partial: every target had ended after {n_snapshots} of "
                     f"{request.n_snapshots} snapshots")
    cgroup_guests = {guest.guest_id for guest in trace.guests if guest.kind == "container"}
    ended = [mm for mm in trace.mms
             if mm.end_snapshot < n_snapshots and mm.guest_id not in cgroup_guests]
    names = [f"{mm.comm} {mm.pid}" for mm in ended]
    names += [f"{process.comm} {process.pid}" for process in run.missed]
    if names:
        notes.append("partial: ended midway: " + ", ".join(names[:8]))
    return bool(run.interrupted or names or n_snapshots < request.n_snapshots)


class _Clock:
    """Turns time since ksmd's start into the time it would have been without waiting."""

    def __init__(self, seen: Observation, run: _Run) -> None:
        self._at = seen.time_ns - run.started_ns
        self._waited = seen.values["ksmd_wait_ns"] - seen.values["ksmd_wait_ns"][0]

    def share(self) -> float:
        """Waiting as a share of the whole time."""
        return float(self._waited[-1] / max(int(self._at[-1]), 1))

    def of(self, time_ns: I64) -> I64:
        """`time_ns` i64[n] without the waiting, i64[n], rising where the input rises."""
        shorter: I64 = np.maximum(
            time_ns - np.interp(time_ns, self._at, self._waited).astype(np.int64), 0)
        return np.maximum.accumulate(shorter) if len(shorter) else shorter

    def of_events(self, found: FleetHost) -> FleetHost:
        """The host with its events at those times."""
        return replace(found, event_time_ns=self.of(found.event_time_ns))


def _later(found: FleetHost, shift_ns: int) -> FleetHost:
    return replace(found, event_time_ns=found.event_time_ns + shift_ns)


def _aligned(seen: Observation, run: _Run) -> tuple[I64, dict[str, I64]]:
    """Times since ksmd's start without waiting, thinned to _POINTS, and the counters at them."""
    clock = _Clock(seen, run)
    since = seen.time_ns - run.started_ns
    last = int(np.searchsorted(since, run.ended_ns - run.started_ns, side="right"))
    first = int(np.searchsorted(since, 0, side="right"))
    if last - first < 2:
        raise InterruptedRunError("stopped before ksmd was watched long enough to compare",
                                  instead="nothing was kept")
    rows = np.unique(np.linspace(first, last - 1, min(_POINTS, last - first)).astype(np.int64))
    measured = {}
    for name in (*_SETTING, *_RISING):
        if name in seen.values:
            values = seen.values[name]
            measured[name] = values[rows] - values[0] if name in _RISING else values[rows]
    return clock.of(since[rows]), measured


def _frames(trace: Trace, snapshot_id: int) -> int:
    """Frames of anonymous memory that the targets hold in a snapshot, each counted once."""
    not_held = np.uint32(PageFlag.ZERO_PAGE | PageFlag.FILE | PageFlag.SHMEM | PageFlag.HUGETLB
                         | PageFlag.GONE)
    n_own, shared = 0, [np.zeros(0, np.int32)]
    for _, pages in trace.iter_mm_pages(snapshot_id):
        held = pages.has_hash & ((pages.flags & not_held) == 0)
        ids = pages.frame_id[held]
        n_own += int((ids < 0).sum())
        shared.append(np.unique(ids[ids >= 0]))
    return n_own + len(np.unique(np.concatenate(shared)))


def _workload(request: LiveRequest, trace: Trace, whole: FleetHost) -> dict[str, Any]:
    n_pages, n_huge, n_zero = 0, 0, 0
    for _, pages in trace.iter_mm_pages(0):
        n_pages += len(pages)
        n_huge += int(((pages.flags & np.uint32(PageFlag.THP)) != 0).sum())
        n_zero += int((pages.hash == np.uint64(trace.hash_info.zero_hash)).sum())
    advised = sum(bool(region.flags & RegionFlag.ADVISED) for region in trace.regions)
    return {
        "description": request.description, "n_guests": len(trace.guests),
        "n_mms": len(trace.mms), "n_mergeable_regions": advised,
        "guests": [{"name": guest.name, "kind": guest.kind} for guest in trace.guests[:100]],
        "n_pages": n_pages, "n_huge_pages_of_4k": n_huge, "n_zero_pages": n_zero,
        "n_eligible_sites": int(whole.site_eligible.sum()),
        "n_events": len(whole.event_time_ns),
    }
