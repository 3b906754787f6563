"""`planner validate live` and the experiments of `planner calibrate` on this kernel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.errors import MachineError
from planner.ksm import BUILTIN_UNMEASURED
from planner.live import control
from planner.live.control import KsmControl, mergeable_processes
from planner.live.experiments import Bench, equal_pages, merged_pages, unique_pages
from planner.live.fit import Row
from planner.live.session import LiveRequest, LiveResult, validate_live
from planner.validations import read_validation, write_json
from tests.kernel.conftest import Ksm
from tests.kernel.test_prediction_live import WORKLOAD, _prepare

pytestmark = pytest.mark.kernel

SECOND = 1_000_000_000
DRIVEN: dict[str, int | str] = {"pages_to_scan": 10_000, "sleep_millisecs": 20}


#: Runs the command line while the test holds KSM's lock, whose descriptor is the first word.
AS_COMMAND = """
import os, sys
from planner.live import control
lock = int(sys.argv[1])
control._lock = lambda ksm, wait_s: os.dup(lock)
from planner.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def idle_ksm(ksm: Ksm, monkeypatch: pytest.MonkeyPatch) -> KsmControl:
    """KSM in nobody's use; the lock that guards it serves the code under test, too."""
    monkeypatch.setattr(control, "_lock", lambda ksm_control, wait_s: os.dup(ksm.lock))
    return KsmControl()


@contextlib.contextmanager
def interpreters(n: int = 3) -> Iterator[list[int]]:
    started = [subprocess.Popen(
        [sys.executable, "-c", WORKLOAD, ("sql", "rows")[seed % 2], str(seed)],
        preexec_fn=_prepare, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "1"}) for seed in range(n)]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def watch(pids: list[int], **changes: object) -> LiveResult:
    request = LiveRequest(
        pids=tuple(pids), cgroups=(), qemu=False, duration_ns=6 * SECOND, every_ns=2 * SECOND,
        n_before=2, knobs=DRIVEN, cost=BUILTIN_UNMEASURED, description="Python interpreters")
    return validate_live(type(request)(**{
        name: changes.get(name, getattr(request, name)) for name in request.__slots__}))


def test_a_live_validation_is_close_at_rest_and_restores_everything(
        idle_ksm: KsmControl, tmp_path: Path) -> None:
    found = idle_ksm.knobs()
    with interpreters() as pids:
        result = watch(pids)
    assert idle_ksm.knobs() == found
    assert idle_ksm["pages_shared"] == 0
    assert not result.is_partial
    for rows in (result.forecast, result.replay):
        by_name = {row.counter: row for row in rows}
        print({name: (row.measured_last, row.model_last) for name, row in by_name.items()})
        assert by_name["pages_sharing"].measured_last > 1000
        for name in ("pages_shared", "pages_sharing", "freed_pages"):
            assert by_name[name].last_error == pytest.approx(0, abs=0.02), name
    write_json(tmp_path / "v.json", result.document)
    assert "Python interpreters" in read_validation(tmp_path / "v.json").sentence()


def test_processes_that_exit_midway_leave_partial_data(idle_ksm: KsmControl) -> None:
    found = idle_ksm.knobs()
    with interpreters(2) as pids:
        def kill_when_ksmd_runs() -> None:
            end = time.monotonic() + 120
            while idle_ksm["run"] != 1 and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(1)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_when_ksmd_runs)
        killer.start()
        try:
            result = watch(pids, duration_ns=8 * SECOND)
        finally:
            killer.join()
    assert result.is_partial
    assert result.document["status"] == "partial"
    assert any("ended midway" in note and str(pids[0]) in note for note in result.notes)
    assert idle_ksm.knobs() == found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_validation_that_is_ended_restores_everything_and_keeps_what_it_has(
        ksm: Ksm, idle_ksm: KsmControl, tmp_path: Path, number: signal.Signals) -> None:
    found, out = idle_ksm.knobs(), tmp_path / "v.json"
    with interpreters(2) as pids:
        command = [sys.executable, "-c", AS_COMMAND, str(ksm.lock), "validate", "live",
                   "--drive-ksm",
                   "--knob", "pages_to_scan=5000", "--for", "60s", "--every", "1s",
                   "--before", "2", "-o", str(out)]
        process = subprocess.Popen(
            [*command, *(word for pid in pids for word in ("--pid", str(pid)))],
            stderr=subprocess.PIPE, text=True, pass_fds=(ksm.lock,))
        end = time.monotonic() + 60
        while idle_ksm["run"] != 1:
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(4)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert idle_ksm.knobs() == found
    assert idle_ksm["pages_shared"] == 0
    assert process.returncode == 130, said
    assert json.loads(out.read_text())["status"] == "partial"


def test_mergeable_processes_of_others_are_refused_and_nothing_is_touched(
        idle_ksm: KsmControl) -> None:
    found = idle_ksm.knobs()
    with interpreters(2) as pids:
        with pytest.raises(MachineError, match=f"python.* {pids[1]}"):
            watch(pids[:1])
        assert {one.pid for one in mergeable_processes()} >= set(pids)
    assert idle_ksm.knobs() == found


def test_a_ksmd_that_runs_is_followed_and_not_disturbed(idle_ksm: KsmControl) -> None:
    with interpreters() as pids:
        with pytest.raises(MachineError, match="nothing to follow"):
            watch(pids, knobs=None)
        idle_ksm.apply({"pages_to_scan": 10_000})
        idle_ksm["run"] = 1
        before = idle_ksm.knobs()
        time.sleep(4)
        result = watch(pids, knobs=None)
        assert idle_ksm.knobs() == before
        idle_ksm["run"] = 2
    replay = {row.counter: row for row in result.replay}
    assert replay["pages_sharing"].measured_last > 1000
    assert replay["pages_sharing"].last_error == pytest.approx(0, abs=0.02)
    assert result.times == {}


def test_experiments_meet_what_they_prepared(ksm: Ksm) -> None:
    from planner.live.regions import RegionProcess

    rows: list[Row] = []
    for number, experiment in enumerate((
            lambda b: unique_pages(b, 1000, ()), lambda b: merged_pages(b, 1000, ()),
            lambda b: equal_pages(b, 1000))):
        with RegionProcess() as child:
            experiment(Bench(KsmControl(), child, rows))
            if number == 1:
                assert ksm["pages_shared"] == 1000
                assert ksm["pages_sharing"] == 2000
                assert ksm["pages_unshared"] == 1000
        ksm["run"] = 2
    by_label: dict[str, list[int]] = {}
    for row in rows:
        by_label.setdefault(row.label.split(": ")[1], []).append(row.ns)
    assert set(by_label) == {"first sight", "searched", "changed", "skipped", "paired", "merged",
                             "merged already", "others searched", "zero", "holes"}
    # A search costs more than a hash, a merge more than a visit of what is merged.
    assert min(by_label["searched"]) > min(by_label["changed"]) > min(by_label["skipped"])
    assert min(by_label["merged"]) > min(by_label["merged already"])
