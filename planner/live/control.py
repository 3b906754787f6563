"""Takes KSM for a while and puts every setting back, also when interrupted or terminated.

Who drives KSM holds an exclusive flock on its directory, so that two drivers of this program
never meet. Nothing else in Linux knows that lock: what else uses KSM is looked for and refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from planner.capture.procfs import ProcRoot
from planner.errors import MachineError, UsageError

__all__ = ["KsmControl", "Mergeable", "driven", "examine", "mergeable_processes"]

#: Put back in this order after everything is unmerged (some refuse while pages are merged).
KNOBS = ("max_page_sharing", "merge_across_nodes", "use_zero_pages", "smart_scan",
         "stable_node_chains_prune_millisecs", "advisor_max_cpu", "advisor_target_scan_time",
         "advisor_min_pages_to_scan", "advisor_max_pages_to_scan", "pages_to_scan",
         "sleep_millisecs")
_LOCK_WAIT_S = 120.0
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Mergeable:
    """A process whose memory KSM scans."""

    pid: int
    comm: str


class KsmControl:
    """The files of /sys/kernel/mm/ksm, read and written by name."""

    def __init__(self, root: ProcRoot | None = None) -> None:
        self.folder = (root or ProcRoot()).sys / "kernel" / "mm" / "ksm"

    def has(self, name: str) -> bool:
        """Whether this kernel has the file."""
        return (self.folder / name).exists()

    def text(self, name: str) -> str:
        """What a file holds; of several choices, the chosen one."""
        text = (self.folder / name).read_text().strip()
        match = re.search(r"\[([a-z-]+)\]", text)
        return match[1] if match else text

    def __getitem__(self, name: str) -> int:
        return int(self.text(name))

    def __setitem__(self, name: str, value: int | str) -> None:
        try:
            (self.folder / name).write_text(f"{value}\n")
        except OSError as error:
            raise MachineError(f"the kernel refuses {value}: {error.strerror}",
                               where=str(self.folder / name),
                               instead="see Documentation/admin-guide/mm/ksm.rst") from error

    def knobs(self) -> dict[str, int | str]:
        """All settings as they are: `run`, `advisor_mode` where there is one, and KNOBS."""
        found: dict[str, int | str] = {
            name: self[name] for name in ("run", *KNOBS) if self.has(name)}
        if self.has("advisor_mode"):
            found["advisor_mode"] = self.text("advisor_mode")
        return found

    def apply(self, knobs: Mapping[str, int | str]) -> None:
        """Write the given settings, those that depend on others last; `run` is left alone."""
        advisor = knobs.get("advisor_mode")
        if self.has("advisor_mode"):
            # While the advisor is on, the kernel refuses pages_to_scan.
            self._set("advisor_mode", "none")
        for name in KNOBS:
            if name in knobs:
                self._set(name, knobs[name])
        if advisor is not None and advisor != "none":
            self._set("advisor_mode", advisor)

    def _set(self, name: str, value: int | str) -> None:
        """Write where it differs: some files refuse even their own value while pages are merged."""
        if not self.has(name):
            raise UsageError("this kernel has no such setting", where=str(self.folder / name),
                             instead="leave it out")
        if self.text(name) != str(value):
            self[name] = value


def mergeable_processes(root: ProcRoot | None = None) -> list[Mergeable]:
    """Processes with memory that KSM scans, by pid; needs root to see those of others."""
    root = root or ProcRoot()
    found = []
    for name in sorted((n for n in os.listdir(root.proc) if n.isdigit()), key=int):
        pid = int(name)
        try:
            if _is_mergeable(root, pid):
                comm = root.of(pid, "comm").read_text(errors="replace").rstrip("\n")
                found.append(Mergeable(pid, comm))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _is_mergeable(root: ProcRoot, pid: int) -> bool:
    stat = root.of(pid, "ksm_stat")
    text = stat.read_text() if stat.exists() else ""
    if "ksm_mergeable" in text:  # since 6.14
        return "ksm_mergeable: yes" in text
    smaps = root.of(pid, "smaps").read_text(errors="replace")
    return re.search(r"^VmFlags:.* mg\b", smaps, re.MULTILINE) is not None


def examine(control: KsmControl) -> None:
    """Raise MachineError where KSM is missing or its settings cannot be written by this user."""
    if not control.has("run"):
        raise MachineError("this kernel has no KSM", where=str(control.folder),
                           instead="use a kernel with CONFIG_KSM")
    if not os.access(control.folder / "run", os.W_OK):
        raise MachineError("KSM's settings cannot be written by this user",
                           where=str(control.folder), instead="run as root")


def _refuse_shared_use(control: KsmControl, found: Mapping[str, int | str],
                       others: list[Mergeable]) -> None:
    seen = []
    if found["run"] == 1:
        seen.append("ksmd is running (run=1)")
    if control["pages_shared"]:
        seen.append(f"{control['pages_shared']} pages are merged (pages_shared)")
    if others:
        names = ", ".join(f"{one.comm} {one.pid}" for one in others[:8])
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        seen.append(f"{len(others)} mergeable processes are not the targets: {names}{more}")
    if seen:
        raise MachineError("KSM is in use: " + "; ".join(seen), where=str(control.folder),
                           instead="leave it alone, or use --force to drive it all the same")


def _lock(control: KsmControl, wait_s: float) -> int:
    lock = os.open(control.folder, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > end:
                    raise MachineError("another driver of KSM holds its lock",
                                       where=str(control.folder),
                                       instead="try again when it has ended") from None
                time.sleep(0.1)
    except BaseException:
        os.close(lock)
        raise


class _Once:
    """Signals that end the drive: the first raises KeyboardInterrupt, later ones are ignored.

    So nothing interrupts the restoring, and what keeps partial data after Ctrl-C does so after
    SIGTERM, too.
    """

    def __init__(self) -> None:
        self._was_raised = False
        self._found: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._was_raised:
            return
        self._was_raised = True
        raise KeyboardInterrupt

    def __enter__(self) -> _Once:
        # Python delivers signals to the main thread alone, and only it may say how.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_SIGNALS):
                self._found[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._found.items():
            signal.signal(number, handler)


@contextmanager
def driven(targets: Collection[int], *, force: bool = False, root: ProcRoot | None = None,
           lock_wait_s: float = _LOCK_WAIT_S,
           announce: Callable[[str], None] = lambda text: None) -> Iterator[KsmControl]:
    """KSM to oneself: stopped, nothing merged, and everything as found afterwards.

    `targets` are the processes that may be mergeable; others are refused, like a ksmd that runs
    or pages that are merged, unless `force`. With `force`, what was merged before stays merged.
    SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does; further signals are ignored
    until all is restored. Raises MachineError without KSM or rights, where it is in
    use, or where the lock cannot be had in `lock_wait_s`.
    """
    control = KsmControl(root)
    examine(control)
    lock = _lock(control, lock_wait_s)
    try:
        found = control.knobs()
        if not force:
            others = [one for one in mergeable_processes(root) if one.pid not in targets]
            _refuse_shared_use(control, found, others)
        was_merged = control["pages_shared"] > 0
        state = {"is_restored": False}

        def restore() -> None:
            if state["is_restored"]:
                return
            announce("putting back " + ", ".join(f"{k}={v}" for k, v in found.items()))
            try:
                # Stops; where all merges are ours, undoes them and waits for it.
                control["run"] = 0 if was_merged else 2
                control.apply({k: v for k, v in found.items() if k != "run"})
            finally:
                control["run"] = found["run"]
            state["is_restored"] = True

        with _Once():
            # Twice: an interruption may arrive between the two words of the inner `finally`.
            try:
                try:
                    control["run"] = 0 if was_merged else 2
                    control["run"] = 0
                    yield control
                finally:
                    restore()
            finally:
                restore()
    finally:
        os.close(lock)
