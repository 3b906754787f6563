"""Live kernels and the models, counter for counter: 6.18 if it runs here, 6.1 and 6.12 in QEMU.

By hand, for more: python -m tests.conformance --kernel 6.12 --scans 10000 --seed 1
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.casebook import unexpected, written
from tests.conformance.cases import CASES
from tests.conformance.compare import MODELS, host_series, mismatches, shortest
from tests.conformance.driver import CannotServeError, Outcome
from tests.conformance.live import KHUGEPAGED, QUIET_KHUGEPAGED, run_on_host
from tests.conformance.qemu import run_in_machine
from tests.conformance.random_scripts import random_scripts
from tests.conformance.script import Script
from tests.conformance.vectors import VECTORS
from tests.kernel.conftest import KNOBS, KSM, advised_processes

pytestmark = pytest.mark.kernel

SEED, N_SCANS = 20_250_321, 300
KERNELS = ("host", "6.1", "6.12")
BOOK = VECTORS | CASES

Outcomes = Mapping[str, Future[list[Outcome]]]


def series(kernel: str) -> str:
    return host_series() if kernel == "host" else kernel


def scripts_of(kernel: str) -> list[Script]:
    """Vectors and cases, then random scripts."""
    book = [written(write, series(kernel))[0] for write in BOOK.values()]
    return book + list(random_scripts(SEED, N_SCANS))


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """What all kernels did; the machines run side by side."""
    with ThreadPoolExecutor(2) as pool:
        told = {kernel: pool.submit(run_in_machine, kernel, scripts_of(kernel))
                for kernel in KERNELS if kernel != "host"}
        # Here, where a signal lets it put back what it changed.
        host: Future[list[Outcome]] = Future()
        try:
            host.set_result(run_on_host(scripts_of("host"), wait_s=60))
        except Exception as error:
            host.set_exception(error)
    return told | {"host": host}


def done_by(outcomes: Outcomes, kernel: str) -> list[Outcome]:
    """What a kernel did. No other kernel can be put in the place of this one: skip."""
    try:
        return outcomes[kernel].result()
    except CannotServeError as error:
        if kernel == "host":
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_shows_what_was_worked_out_by_hand(outcomes: Outcomes, kernel: str) -> None:
    done = done_by(outcomes, kernel)
    wrong = {}
    for (name, write), outcome in zip(BOOK.items(), done, strict=False):
        expected = written(write, series(kernel))[1]
        found = (unexpected(outcome.observations, expected) if outcome.status == "ok"
                 else outcome.status)
        if found is not None:
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_counter_and_frame_of_a_model_is_the_kernels_after_every_scan(
        outcomes: Outcomes, kernel: str, model: str) -> None:
    done = done_by(outcomes, kernel)
    assert {outcome.status for outcome in done} == {"ok"}
    found = list(mismatches(model, series(kernel), scripts_of(kernel), done))
    assert not found, f"{len(found)} scripts differ; the first, made short: {shortest(found[0])}"


@contextlib.contextmanager
def exclusive_or_skip() -> Iterator[None]:
    """KSM's lock, and nothing changed; skips when others have mergeable memory."""
    lock = os.open(KSM, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if advised_processes():
            pytest.skip("processes of others may be merged")
        yield
    finally:
        os.close(lock)


def test_a_run_that_is_terminated_puts_everything_back() -> None:
    places = [KSM / name for name in (*KNOBS, "run") if (KSM / name).exists()]
    places += [KHUGEPAGED / name for name in QUIET_KHUGEPAGED]
    with exclusive_or_skip():
        before = {place: place.read_text() for place in places}
    program = subprocess.Popen(
        [sys.executable, "-c", "from tests.conformance.live import run_on_host\n"
         "run_on_host([[['check']] * 10 ** 5], wait_s=60)"],
        stderr=subprocess.PIPE, text=True)
    try:
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
        end = time.monotonic() + 90
        # Its driver, which it starts when it has KSM.
        while not children.read_text():
            if program.poll() is not None:
                pytest.skip(program.communicate()[1].splitlines()[-1])
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.5)
        assert int((KSM / "sleep_millisecs").read_text()) >= 3_600_000
        program.terminate()
        assert program.wait(30) == 128 + signal.SIGTERM
    finally:
        program.kill()
        program.communicate()
    with exclusive_or_skip():
        assert {place: place.read_text() for place in places} == before
