"""Scripts on the kernel this runs on: KSM for ourselves, and put back as it was found."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tests.conformance.driver import CannotServeError, Outcome, build_driver, compiled, outcomes
from tests.conformance.script import Script
from tests.kernel.conftest import KNOBS, KSM, advised_processes

KHUGEPAGED = Path("/sys/kernel/mm/transparent_hugepage/khugepaged")
#: khugepaged collapses nothing that has an empty, shared or swapped page, and hardly runs.
QUIET_KHUGEPAGED = {"max_ptes_none": 0, "max_ptes_shared": 0, "max_ptes_swap": 0,
                    "pages_to_scan": 1, "scan_sleep_millisecs": 3_600_000}
#: Scripts of one holding of KSM, so that others get their turn.
N_AT_ONCE = 100
#: The driver's exit code for that.
_DISTURBED = 4


class DisturbedError(CannotServeError):
    """Memory of others became mergeable while scripts ran."""


def _value(path: Path) -> str:
    text = path.read_text().strip()
    return text.split("[")[1].split("]")[0] if "[" in text else text


def _terminated(number: int, frame: FrameType | None) -> None:
    # A second one does not interrupt what the first one made us put back.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM leaves like an exception, so that what was changed is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _why_not(lock: int) -> str | None:
    """Take the lock if KSM is nobody's; else why not, without it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "another user of KSM holds its lock"
    advised = advised_processes()
    if _value(KSM / "run") != "1" and _value(KSM / "pages_shared") == "0" and not advised:
        return None
    fcntl.flock(lock, fcntl.LOCK_UN)
    return (f"KSM is in use: run is {_value(KSM / 'run')}, and {len(advised)} processes of others "
            "may be merged")


def _put_back(found: dict[Path, str], run: str) -> None:
    """Unmerge all and write every setting that was found; OSError after all if one was refused."""
    refused: OSError | None = None
    for place, text in found.items():
        # While pages are merged some are refused; and they stay so for as long as a process that
        # has them takes to exit.
        for _ in range(100):
            (KSM / "run").write_text("2")
            try:
                place.write_text(text)
                break
            except OSError as error:
                failure = error
                time.sleep(0.1)
        else:
            refused = failure
    (KSM / "run").write_text(run)
    if refused is not None:
        raise refused


@contextlib.contextmanager
def exclusive_ksm(wait_s: float = 300) -> Iterator[None]:
    """Hold KSM alone, stopped and with nothing merged; every setting is put back afterwards.

    CannotServeError when there is no KSM, no root, somebody else's lock for longer than `wait_s`
    seconds, or memory of others is merged or may be.
    """
    if not os.access(KSM / "run", os.W_OK) or os.geteuid() != 0:
        raise CannotServeError("scripts need root and a kernel with KSM")
    lock = os.open(KSM, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + wait_s
        while (reason := _why_not(lock)) is not None:
            if time.monotonic() > end:
                raise CannotServeError(reason)
            time.sleep(0.2)
        places = [KSM / name for name in KNOBS] + [KHUGEPAGED / name for name in QUIET_KHUGEPAGED]
        found = {place: _value(place) for place in places if place.exists()}
        run = _value(KSM / "run")
        with _sigterm_unwinds():
            try:
                for name, value in QUIET_KHUGEPAGED.items():
                    (KHUGEPAGED / name).write_text(str(value))
                yield
            finally:
                _put_back(found, run)
    finally:
        os.close(lock)


def _run_once(scripts: Sequence[Script], timeout_s: float) -> list[Outcome]:
    """Run scripts now; KSM is held."""
    ksmd = _affinity_of_ksmd()
    with tempfile.TemporaryDirectory() as folder:
        source, told = Path(folder) / "scripts", Path(folder) / "told"
        source.write_text(compiled(scripts))
        driver = subprocess.Popen([build_driver(), source, told], stderr=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL, text=True)
        try:
            _, errors = driver.communicate(timeout=timeout_s)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
            if driver.returncode:
                _wait_for_workers()
                os.sched_setaffinity(*ksmd)
        if driver.returncode:
            reason = errors.strip() or f"driver: exit code {driver.returncode}"
            raise (DisturbedError if driver.returncode == _DISTURBED else CannotServeError)(reason)
        return outcomes(told.read_text(), len(scripts))


def _affinity_of_ksmd() -> tuple[int, set[int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (folder / "comm").read_text() == "ksmd\n" and not (folder / "cmdline").read_text():
                return int(folder.name), os.sched_getaffinity(int(folder.name))
    raise CannotServeError("there is no ksmd")


def _wait_for_workers() -> None:
    """A killed driver's workers get killed by the kernel; wait until they have gone."""
    end = time.monotonic() + 10
    while advised_processes() and time.monotonic() < end:
        time.sleep(0.05)


def run_on_host(scripts: Sequence[Script], *, n_at_once: int = N_AT_ONCE, wait_s: float = 300,
                timeout_s: float = 110) -> list[Outcome]:
    """Run scripts on this kernel, `n_at_once` for each holding of KSM; outcomes in their order.

    What others disturbed, by memory that became mergeable meanwhile, is run again.
    CannotServeError as `exclusive_ksm` says; `wait_s` holds for each part.
    """
    done: list[Outcome] = []
    for first in range(0, len(scripts), n_at_once):
        end = time.monotonic() + wait_s
        while len(done) == first:
            try:
                with exclusive_ksm(end - time.monotonic()):
                    done += _run_once(scripts[first:first + n_at_once], timeout_s)
            except DisturbedError:
                if time.monotonic() > end:
                    raise
    return done
