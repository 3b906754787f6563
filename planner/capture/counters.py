"""KSM's own counters of this host over time; reads only.

Sources: every file of /sys/kernel/mm/ksm, `cow_ksm` and `ksm_swpin_copy` of /proc/vmstat, the
CPU time of the ksmd thread (first field of /proc/PID/schedstat, ns), and with `processes` the
/proc/PID/ksm_stat of every process that has one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.counters import Sample, write_counters
from planner.errors import MachineError, UsageError
from planner.inventory import refuse_existing

__all__ = ["CountersReport", "capture_counters", "sample_counters"]

_KSM = Path("sys/kernel/mm/ksm")
_VMSTAT = ("cow_ksm", "ksm_swpin_copy")
_MAX_COUNT = 1_000_000


@dataclass(frozen=True, slots=True)
class CountersReport:
    """What was written: `counters` are the names found, `is_interrupted` whether Ctrl-C ended
    the capture before its last sample."""

    path: Path
    n_times: int
    n_samples: int
    counters: list[str]
    is_interrupted: bool


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return None


def _ksmd_pid(root: Path) -> str | None:
    """The kernel thread ksmd: its name, and no command line (a process could take the name)."""
    for entry in (root / "proc").iterdir():
        if entry.name.isdigit() and _text(entry / "comm") == "ksmd\n" \
                and _text(entry / "cmdline") == "":
            return entry.name
    return None


def _number(name: str, text: str) -> int | None:
    text = text.strip()
    if name == "advisor_mode":
        match = re.search(r"\[([a-z-]+)\]", text)
        return {"none": 0, "scan-time": 1}.get(match[1]) if match else None
    return int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else None


def sample_counters(host: str, *, processes: bool = False, root: Path = Path("/"),
                    ksmd_pid: str | None = None) -> list[Sample]:
    """All counters now; raises MachineError on a host without KSM."""
    folder = root / _KSM
    now_ns = time.time_ns()
    samples: list[Sample] = []
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise MachineError(f"KSM's files cannot be read: {error.strerror}", where=str(folder),
                           instead="use a kernel with CONFIG_KSM") from None
    for name in names:
        text = _text(folder / name)
        value = _number(name, text) if text is not None else None
        if value is not None:
            samples.append(Sample(now_ns, host, name, value))
    for line in (_text(root / "proc/vmstat") or "").splitlines():
        name, _, text = line.partition(" ")
        if name in _VMSTAT:
            value = _number(name, text)
            if value is not None:
                samples.append(Sample(now_ns, host, name, value))
    pid = ksmd_pid or _ksmd_pid(root)
    fields = (_text(root / "proc" / pid / "schedstat") or "").split() if pid else []
    if fields and fields[0].isdigit():
        samples.append(Sample(now_ns, host, "ksmd_cpu_ns", int(fields[0])))
    return samples + (_processes(root, host, now_ns) if processes else [])


def _processes(root: Path, host: str, now_ns: int) -> list[Sample]:
    samples = []
    for entry in (root / "proc").iterdir():
        text = _text(entry / "ksm_stat") if entry.name.isdigit() else None
        for line in (text or "").splitlines():
            name, _, value = line.rpartition(" ")
            number = _number("", value)
            if number and name:  # zeros of processes that KSM never met are no news
                samples.append(Sample(now_ns, host, name.rstrip(":"), number, entry.name))
    return samples


def capture_counters(out: Path, *, host: str, every_ns: int, count: int, processes: bool = False,
                     force: bool = False, progress: Callable[[str, float], None] | None = None,
                     root: Path = Path("/"), sleep: Callable[[float], None] = time.sleep,
                     ) -> CountersReport:
    """Sample all counters `count` times, `every_ns` apart, into a file at `out`.

    Ctrl-C ends the capture early and keeps what was sampled. Raises MachineError without KSM,
    UsageError for an `out` that is there.
    """
    if not 1 <= count <= _MAX_COUNT:
        raise UsageError(f"{count} samples", where="--count", instead=f"use 1 to {_MAX_COUNT}")
    refuse_existing(out, force)
    pid = _ksmd_pid(root)
    samples: list[Sample] = []
    started = time.monotonic()
    n_times = 0
    is_interrupted = False
    try:
        for index in range(count):
            if index:
                sleep(max(0.0, started + index * every_ns / 1e9 - time.monotonic()))
            samples += sample_counters(host, processes=processes, root=root, ksmd_pid=pid)
            n_times += 1
            if progress is not None:
                progress("counters", n_times / count)
    except KeyboardInterrupt:
        if not samples:
            raise
        is_interrupted = True
    provenance = {"source": "planner capture counters", "every_ns": every_ns, "count": count,
                  "is_interrupted": is_interrupted}
    n_samples = write_counters(out, samples, provenance, force=force)
    return CountersReport(out, n_times, n_samples, sorted({s.counter for s in samples}),
                          is_interrupted)
