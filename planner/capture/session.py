"""A capture: snapshots of the targets, on schedule, from one source into one trace.

It never writes to a target, stops it, or brings in a page that is not in memory. What a target
can notice: its mmap lock is taken for reading, and, with the source /proc, the accessed bits of
its pages are set.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planner.capture.procfs import (
    NumaMap,
    ProcRoot,
    TargetExitedError,
    Vma,
    ksm_counters,
    read_int,
)
from planner.capture.sources import SOURCES, Source, open_source
from planner.capture.targets import Process, Target, guest_ram, processes_of, resolve_targets
from planner.errors import DataError, InterruptedRunError, MachineError, UsageError
from planner.sitekey import SiteKey
from planner.trace import PAGE_BYTES, RegionFlag, RegionInput, TraceWriter

__all__ = ["CaptureRequest", "capture"]

INCLUDES = ("advised", "anon", "all")


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """What to capture, how often and where to.

    `every_ns` is the time from one snapshot's start to the next, counted from the first start.
    `cpu_limit` is the share of one CPU to use while a snapshot is taken (None: no limit).
    `include` is "advised" (pages KSM merges now), "anon" (pages KSM could merge, advised or not)
    or "all" (file and shared pages,
    too). `labels_csv` has columns pid, cgroup or name, and labels. `source` is "kmod" (the device
    of the module ksm_planner), "proc", or "auto" (the module where its device is there).
    """

    key: SiteKey
    out: Path
    pids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()
    qemu: bool = False
    labels_csv: Path | None = None
    snapshots: int = 1
    every_ns: int = 0
    cpu_limit: float | None = None
    include: str = "anon"
    source: str = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be; raises UsageError."""
        if self.snapshots < 1:
            raise UsageError(f"{self.snapshots} snapshots", where="--snapshots",
                             instead="ask for at least 1")
        if self.every_ns < 0 or (self.snapshots > 1 and not self.every_ns):
            raise UsageError("several snapshots need a time between them", where="--every",
                             instead="write for example --every 60s")
        if self.cpu_limit is not None and not 0 < self.cpu_limit <= 1:
            raise UsageError(f"{self.cpu_limit * 100:g} % of one CPU", where="--cpu-limit",
                             instead="write a share such as 10%")
        for option, value, known in (("--include", self.include, INCLUDES),
                                     ("--source", self.source, SOURCES)):
            if value not in known:
                raise UsageError(f"{value!r} is none of {', '.join(known)}", where=option,
                                 instead="choose one of them")


@dataclass(slots=True)
class _Pace:
    """Keeps the process's CPU time within a share of one CPU, counted from `begin`."""

    share: float | None
    began_cpu: float = 0.0
    began: float = 0.0

    def begin(self) -> None:
        self.began_cpu, self.began = time.process_time(), time.monotonic()

    def wait(self) -> None:
        if self.share is not None:
            used = time.process_time() - self.began_cpu
            ahead = used / self.share - (time.monotonic() - self.began)
            # Less than the timer's own slack is carried over to the next call.
            if ahead > 0.001:
                time.sleep(ahead)


@dataclass(slots=True)
class _Session:
    """The state that lasts over the snapshots of one capture."""

    request: CaptureRequest
    root: ProcRoot
    targets: list[Target]
    writer: TraceWriter
    source: Source
    pace: _Pace
    report: Callable[[str, float], None]
    after_snapshot: Callable[[int], None]
    guest_ids: dict[int, int] = field(default_factory=dict)
    mm_ids: dict[Process, int] = field(default_factory=dict)
    lost: set[Process] = field(default_factory=set)
    missed: set[int] = field(default_factory=set)
    snapshot: int = 0
    pages_done: int = 0
    pages_total: int = 0

    def take(self, late_ns: int) -> bool:
        """Take one snapshot; False when no target is left (nothing is written then)."""
        present = [(i, process) for i, target in enumerate(self.targets)
                   for process in processes_of(self.root, target)]
        # An mm that missed a snapshot is not the same mm any more: a process is lost once.
        present = [(i, process) for i, process in present if process not in self.lost]
        if not present:
            return False
        skipped = self.source.skipped = Counter()
        if late_ns:
            skipped["late_ns"] = late_ns
        gone = set(self.mm_ids) - {process for _, process in present} - self.lost
        self.lost |= gone
        is_partial = self._note_exits(gone, {i for i, _ in present}, skipped)
        self.pages_done = 0
        self.pages_total = sum(_resident_pages(self.root, process.pid, self.request.include)
                               for _, process in present)
        self.source.begin_snapshot()
        self.pace.begin()
        counters = ksm_counters(self.root)
        self.writer.begin_snapshot(time.time_ns())
        # Known mms first, in their order: the format wants ascending mm ids.
        present.sort(key=lambda item: self.mm_ids.get(item[1], len(self.mm_ids)))
        n_written = 0
        for index, process in present:
            is_whole, is_written = self._take_mm(index, process, skipped)
            is_partial |= not is_whole
            n_written += is_written
        if not n_written:
            return False
        self.writer.end_snapshot(max(time.time_ns(), 0), skipped=dict(+skipped),
                                 counters=counters, is_partial=is_partial)
        return True

    def _note_exits(self, gone: set[Process], there: set[int], skipped: Counter[str]) -> bool:
        """Count what is gone since the last snapshot; True when a whole guest is missing.

        A process of a container that ended is the container's own business; a guest without any
        process left is missing from the snapshot.
        """
        skipped["exited_processes"] += len(gone)
        missing = set(range(len(self.targets))) - there - self.missed
        self.missed |= missing
        skipped["exited_guests"] += len(missing)
        return bool(missing)

    def _take_mm(self, index: int, process: Process, skipped: Counter[str]) -> tuple[bool, bool]:
        """Capture one process: (all of it was captured, something was written)."""
        target = self.targets[index]
        try:
            found = self.source.capture(process)
        except TargetExitedError:
            self._note_loss(process, skipped)
            return False, False
        if found is None:
            skipped["shared_mms"] += 1
            return True, False
        if not found.is_whole:
            self._note_loss(process, skipped)
        self.writer.write_mm(self._mm_id(index, process), found.pages,
                             _regions(target, found.vmas))
        self.pace.wait()
        return found.is_whole, True

    def _note_loss(self, process: Process, skipped: Counter[str]) -> None:
        skipped["exited_processes"] += 1
        self.lost.add(process)

    def _mm_id(self, index: int, process: Process) -> int:
        if process not in self.mm_ids:
            target = self.targets[index]
            if index not in self.guest_ids:
                self.guest_ids[index] = self.writer.add_guest(
                    target.name, target.kind, target.labels, target.memory_bytes)
            self.mm_ids[process] = self.writer.add_mm(self.guest_ids[index], process.pid,
                                                      process.comm)
        return self.mm_ids[process]

    def on_pages(self, n_pages: int) -> None:
        """After each chunk: show progress, keep to the CPU limit."""
        self.pages_done += n_pages
        # The total is an estimate (shared pages, zero pages): the share must still not pass 1.
        self.show("snapshot", self.pages_done / max(self.pages_total, self.pages_done, 1))
        self.pace.wait()

    def show(self, what: str, share: float) -> None:
        """Report the share of the whole capture, given that of the snapshot at hand."""
        n_snapshots = self.request.snapshots
        self.report(f"{what} {self.snapshot + 1} of {n_snapshots}",
                    (self.snapshot + share) / n_snapshots)


def capture(request: CaptureRequest, progress: Callable[[str, float], None] | None = None, *,
            root: ProcRoot | None = None,
            after_snapshot: Callable[[int], None] | None = None) -> Path:
    """Capture the requested guests and return the path of the finished trace.

    `progress` is called with what is being done and the share done (0 to 1), often;
    `after_snapshot` with the number of snapshots finished so far, after each.
    A trace that lacks snapshots because every target ended has status "partial". Raises UsageError
    for a request that cannot be, MachineError without permission, without targets, or when the
    trace cannot be written, DataError when the module's dump is not what it should be, and
    InterruptedRunError after Ctrl-C: snapshots finished by then are kept in a trace of status
    "partial", if it can be written. Nothing is left behind otherwise.
    """
    root = root or ProcRoot()
    targets = resolve_targets(root, pids=request.pids, cgroups=request.cgroups, qemu=request.qemu,
                              labels_csv=request.labels_csv)
    with open_source(request.source, root, request.key, request.include) as source:
        if not any(processes_of(root, target) for target in targets):
            raise MachineError("none of the targets has a process",
                               instead="check that the cgroup is the one that runs them")
        try:
            return _write(request, root, targets, source, progress, after_snapshot)
        except OSError as error:
            raise _explained(request, error) from error


def _write(request: CaptureRequest, root: ProcRoot, targets: list[Target], source: Source,
           progress: Callable[[str, float], None] | None,
           after_snapshot: Callable[[int], None] | None) -> Path:
    provenance = _provenance(request, root, source)
    with TraceWriter(request.out, hash_info=source.hash_info, provenance=provenance,
                     force=request.force) as writer:
        pace = _Pace(request.cpu_limit)
        session = _Session(request, root, targets, writer, source, pace,
                           progress or (lambda what, share: None),
                           after_snapshot or (lambda n_done: None))
        source.pace = session.on_pages
        try:
            status = _run(session)
        except KeyboardInterrupt:
            raise _interrupted(request, writer) from None
        except (DataError, MachineError, OSError) as error:
            raise _failed(request, writer, error) from error
        if not writer.n_snapshots:
            raise MachineError("every target ended before a snapshot was finished",
                               instead="capture processes that stay")
        return writer.finish(status)


def _run(session: _Session) -> str:
    """All snapshots on schedule; returns the status of the trace."""
    request = session.request
    first = time.monotonic_ns()
    for snapshot in range(request.snapshots):
        session.snapshot = snapshot
        late_ns = 0
        wait_ns = first + snapshot * request.every_ns - time.monotonic_ns()
        if snapshot and wait_ns > 0:
            session.show("waiting for snapshot", 0.0)
            time.sleep(wait_ns / 1e9)
        elif snapshot:
            late_ns = -wait_ns
        if not session.take(late_ns):
            return "partial"
        session.after_snapshot(snapshot + 1)
    return "complete"


def _interrupted(request: CaptureRequest, writer: TraceWriter) -> InterruptedRunError:
    """Keep the finished snapshots after Ctrl-C, and say so."""
    n_done = writer.n_snapshots
    if not n_done:
        writer.abort()
        return InterruptedRunError("interrupted before the first snapshot was finished",
                                   instead="nothing was kept")
    path = writer.finish("partial")
    return InterruptedRunError(f"interrupted; {n_done} of {request.snapshots} snapshots are kept",
                               where=str(path))


def _failed(request: CaptureRequest, writer: TraceWriter,
            error: DataError | MachineError | OSError) -> DataError | MachineError:
    """Keep the finished snapshots when the source or the output failed, and say so."""
    problem = _explained(request, error) if isinstance(error, OSError) else error
    if not writer.n_snapshots:
        return problem
    path = writer.finish("partial")
    kind = MachineError if isinstance(problem, MachineError) else DataError
    return kind(f"{problem.what}; {writer.n_snapshots} of {request.snapshots} snapshots are kept "
                f"in {path}", where=problem.where, instead=problem.instead)


def _explained(request: CaptureRequest, error: OSError) -> MachineError:
    if isinstance(error, PermissionError):
        return MachineError(f"no permission: {error}", where=str(error.filename or ""),
                            instead="run as root, and check the output folder")
    return MachineError(f"the capture failed: {error.strerror or error}",
                        where=str(error.filename or request.out),
                        instead="check the space and permissions there")


def _regions(target: Target, vmas: Sequence[Vma]) -> list[RegionInput]:
    """Every mapping as a region of the trace, labelled with what it holds."""
    ram = guest_ram(vmas, target.memory_bytes) if target.kind == "vm" else None
    regions = []
    for vma in vmas:
        flags = vma.flags | (RegionFlag.GUEST_RAM if vma is ram else 0)
        regions.append(RegionInput(vma.start_vpn, vma.end_vpn, int(flags), vma.name,
                                   {"content": _content(int(flags), vma.name)}))
    return regions


def _content(flags: int, name: str) -> str:
    if flags & RegionFlag.GUEST_RAM:
        return "guest-ram"
    if flags & (RegionFlag.PFNMAP | RegionFlag.IO) or name in ("[vdso]", "[vvar]"):
        return "special"
    if flags & RegionFlag.HUGETLB:
        return "hugetlb"
    if flags & RegionFlag.FILE:
        return "file-shared" if flags & RegionFlag.MAYSHARE else "file-private"
    if flags & RegionFlag.MAYSHARE:
        return "shmem"
    if flags & RegionFlag.HEAP:
        return "heap"
    return "stack" if flags & RegionFlag.STACK else "anon"


def _resident_pages(root: ProcRoot, pid: int, include: str) -> int:
    """About how many pages a process has to list, from statm; 0 when it is gone."""
    try:
        fields = root.of(pid, "statm").read_text().split()
        return int(fields[1]) - (0 if include == "all" else int(fields[2]))
    except (OSError, ValueError, IndexError):
        return 0


def _provenance(request: CaptureRequest, root: ProcRoot, source: Source) -> Mapping[str, Any]:
    """Where a trace comes from; neither the host's name nor any path."""
    try:
        software = version("ksm-planner")
    except PackageNotFoundError:
        software = "unknown"
    ksm = root.sys / "kernel" / "mm" / "ksm"
    settings = {name: value for name in (
        "run", "pages_to_scan", "sleep_millisecs", "max_page_sharing", "merge_across_nodes",
        "use_zero_pages", "smart_scan") if (value := read_int(ksm / name)) is not None}
    try:
        thp = (root.sys / "kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        thp = ""
    chosen = thp[thp.find("[") + 1:thp.find("]")] if "[" in thp else "unknown"
    return {
        "software": f"ksm-planner {software}",
        "source": source.name,
        **source.details(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "page_bytes": PAGE_BYTES,
        "transparent_hugepage": chosen,
        "ksm": settings,
        "n_cpus": os.cpu_count() or 0,
        "n_numa_nodes": NumaMap(root).n_nodes,
        "memory_bytes": _memory_bytes(root),
        "cpu_limit": request.cpu_limit,
        "every_ns": request.every_ns,
        "include": request.include,
    }


def _memory_bytes(root: ProcRoot) -> int | None:
    try:
        for line in (root.proc / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
