"""Watches KSM's counters and ksmd's CPU time while it runs, from a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from planner.capture.procfs import ProcRoot
from planner.errors import MachineError

__all__ = ["COUNTERS", "Observation", "Watch", "ksmd_pid", "ksmd_times_ns"]

#: Files of /sys/kernel/mm/ksm that are read where the kernel has them.
COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned",
            "pages_skipped", "full_scans", "ksm_zero_pages", "general_profit")

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Observation:
    """Values over time: `time_ns` i64[n] (CLOCK_MONOTONIC, rising), `values` i64[n] by name.

    Names are COUNTERS as far as the kernel has them, `ksmd_cpu_ns` (time on a CPU) and
    `ksmd_wait_ns` (time it waited for one), both since boot, and `anon_pages` of /proc/meminfo.
    """

    time_ns: I64
    values: Mapping[str, I64]


def ksmd_pid(root: ProcRoot) -> int:
    """The kernel thread ksmd: its name, and no command line (a process could take the name)."""
    for name in os.listdir(root.proc):
        if not name.isdigit():
            continue
        try:
            if root.of(int(name), "comm").read_text() == "ksmd\n" \
                    and not root.of(int(name), "cmdline").read_bytes():
                return int(name)
        except OSError:
            continue
    raise MachineError("there is no thread ksmd", where=str(root.proc),
                       instead="use a kernel with CONFIG_KSM")


def ksmd_times_ns(root: ProcRoot, pid: int) -> tuple[int, int]:
    """ksmd's CPU time and the time it waited for a CPU, ns since boot (/proc/PID/schedstat)."""
    path = root.of(pid, "schedstat")
    try:
        cpu, wait = path.read_text().split()[:2]
    except (OSError, ValueError) as error:
        raise MachineError(f"ksmd's CPU time cannot be read ({error})", where=str(path),
                           instead="use a kernel with CONFIG_SCHED_INFO") from error
    return int(cpu), int(wait)


class Watch:
    """A context manager that samples every `every_ms` until it is left; then `result` is whole."""

    def __init__(self, *, every_ms: int = 50, root: ProcRoot | None = None) -> None:
        self._root = root or ProcRoot()
        self._every_s = every_ms / 1000
        self._ksmd = ksmd_pid(self._root)
        folder = self._root.sys / "kernel" / "mm" / "ksm"
        self._names = [name for name in COUNTERS if (folder / name).exists()]
        self._files = [os.open(folder / name, os.O_RDONLY) for name in self._names]
        self._rows: list[list[int]] = []
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ksm-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is None:
            self._sample()
        for file in self._files:
            os.close(file)
        if self._failure is not None and error is None:
            raise self._failure

    def result(self) -> Observation:
        """What was sampled so far."""
        table = np.array(self._rows, np.int64)
        names = [*self._names, "ksmd_cpu_ns", "ksmd_wait_ns", "anon_pages"]
        return Observation(table[:, 0], {name: table[:, 1 + i] for i, name in enumerate(names)})

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                self._sample()
        except BaseException as error:
            self._failure = error

    def _sample(self) -> None:
        values = [int(os.pread(file, 32, 0)) for file in self._files]
        self._rows.append([time.monotonic_ns(), *values,
                           *ksmd_times_ns(self._root, self._ksmd), _anon_pages(self._root)])


def _anon_pages(root: ProcRoot) -> int:
    try:
        for line in (root.proc / "meminfo").read_text().splitlines():
            if line.startswith("AnonPages:"):
                return int(line.split()[1]) // 4
    except (OSError, ValueError, IndexError):
        pass
    return 0
