"""Cases in this process, in local processes and on a dask cluster: same outcomes, nothing lost."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner import executor
from planner.cases import CaseFolder
from planner.errors import DataError, MachineError, ScenarioError, UsageError
from planner.executor import Case, open_pool, require_versions, run_cases, versions_here
from tests.local_cluster import local_cluster


def square(task: Any) -> bytes:
    return str(task * task).encode()


def square_but_die_once(task: tuple[int, str]) -> bytes:
    """Ends its process with the first task it meets while the marker is not there."""
    number, marker = task
    if number == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def die(task: int) -> bytes:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(task)


def refuse(task: int) -> bytes:
    if task == 2:
        raise DataError("the trace is not there", where="web.trace", instead="copy it")
    if task == 3:
        raise ScenarioError("web.yaml", [])
    return square(task)


def cases(tasks: list[Any]) -> list[Case]:
    return [Case(f"case{index}", f"case {index}", task) for index, task in enumerate(tasks)]


SQUARES = {f"case{n}": square(n) for n in range(8)}


def test_local_processes_give_what_one_process_gives_in_the_order_of_the_cases() -> None:
    with open_pool(1) as here:
        alone = run_cases(square, cases(list(range(8))), here)
    with open_pool(2) as pool:
        found = run_cases(square, cases(list(range(8))), pool)
    assert alone == found == SQUARES
    assert list(found) == list(SQUARES)


def test_a_killed_process_costs_no_case(tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path / "died")) for number in range(8)]
    with open_pool(2) as pool:
        found = run_cases(square_but_die_once, cases(tasks), pool)
    assert (tmp_path / "died").exists()
    assert found == SQUARES


def test_a_case_that_always_ends_its_process_is_named_and_the_others_are_kept(
        tmp_path: Path) -> None:
    folder = CaseFolder(tmp_path / "cases")
    with pytest.raises(MachineError, match=r"case 1: the process .* ended 4 times"), \
            open_pool(2) as pool:
        run_cases(die, cases([0, 1, 2]), pool, folder=folder)
    assert "case1" not in folder.finished()
    assert folder.get("case0") == b"0"


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_a_case_cross_processes_whole(workers: int, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, open_pool(workers) as pool:
        run_cases(refuse, cases([0, 2]), pool)
    assert str(caught.value) == "web.trace: the trace is not there; copy it"


def test_an_error_that_cannot_cross_becomes_one_that_can() -> None:
    with pytest.raises(DataError), open_pool(2) as pool:
        run_cases(refuse, cases([3]), pool)


def test_kept_cases_are_not_done_again(tmp_path: Path) -> None:
    folder = CaseFolder(tmp_path / "cases")
    folder.put("case1", b"kept")
    heard: list[tuple[str, float]] = []
    with open_pool(1) as pool:
        found = run_cases(square, cases([0, 1, 2]), pool, folder=folder,
                          progress=lambda name, share: heard.append((name, round(share, 2))))
    assert found == {"case0": b"0", "case1": b"kept", "case2": b"4"}
    assert heard == [("case 0", 0.67), ("case 2", 1.0)]
    assert folder.finished() == {"case0", "case1", "case2"}
    folder.remove()
    assert folder.finished() == set()


@pytest.mark.parametrize("damage", [lambda found: found[:-1], lambda found: b"",
                                    lambda found: found[:-1] + b"?"])
def test_a_damaged_case_is_done_again(damage: Any, tmp_path: Path) -> None:
    folder = CaseFolder(tmp_path)
    folder.put("case2", b"4444")
    file = tmp_path / "case2.case"
    file.write_bytes(damage(file.read_bytes()))
    assert folder.get("case2") is None
    with open_pool(1) as pool:
        assert run_cases(square, cases([0, 1, 2]), pool, folder=folder)["case2"] == b"4"
    assert folder.get("case2") == b"4"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot keep a finished case"):
        CaseFolder(tmp_path / "file" / "cases").put("case0", b"")


INTERRUPTED = """
import sys
from pathlib import Path
from planner.cases import CaseFolder
from planner.executor import Case, open_pool, run_cases
from tests.test_executor import linger

if __name__ == "__main__":
    made = [Case(f"case{n}", "", n) for n in range(3)]
    with open_pool(2) as pool:
        run_cases(linger, made, pool, folder=CaseFolder(Path(sys.argv[1])))
"""


def linger(task: int) -> bytes:
    if task:
        time.sleep(60)
    return square(task)


def test_an_interrupt_keeps_what_is_finished_and_ends_the_workers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    folder = CaseFolder(tmp_path / "cases")
    root = str(Path(__file__).parent.parent)
    run = subprocess.Popen([sys.executable, str(program), str(folder.path)], cwd=root,
                           env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not folder.finished() and time.monotonic() < deadline:
            time.sleep(0.05)
        started = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.wait(20)
        assert time.monotonic() - started < 15
    finally:
        run.kill()
        _, told = run.communicate()
    assert b"KeyboardInterrupt" in told
    assert folder.get("case0") == b"0"


# ---- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as made:
        yield made


def test_a_cluster_gives_what_one_process_gives_and_survives_a_lost_worker(
        cluster: Any, tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path / "died")) for number in range(8)]
    with open_pool(cluster=cluster.scheduler_address) as pool:
        assert pool.n_workers == 2
        found = run_cases(square_but_die_once, cases(tasks), pool)
    assert (tmp_path / "died").exists()
    assert found == SQUARES


def test_errors_of_a_case_come_back_from_a_cluster(cluster: Any) -> None:
    with pytest.raises(DataError, match="the trace is not there"), \
            open_pool(cluster=cluster.scheduler_address) as pool:
        run_cases(refuse, cases([0, 2]), pool)


def test_workers_of_another_version_are_refused_before_any_work(
        cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "versions_here",
                        lambda: {**versions_here(), "planner": "99.0"})
    with pytest.raises(MachineError, match=r"worker tcp:.* has ksm-planner 0\.\d+\.\d+, this "
                                           r"program has 99\.0.*; install the same versions"):
        open_pool(cluster=cluster.scheduler_address)


def test_a_task_refuses_a_process_of_another_version() -> None:
    require_versions(versions_here())
    with pytest.raises(DataError, match=r"this program has 1\.0"):
        require_versions({**versions_here(), "numpy": "1.0"})


def test_a_cluster_that_does_not_answer_is_told_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    monkeypatch.setattr(executor, "CONNECT_S", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(MachineError, match="no scheduler of dask answers there"):
        open_pool(cluster=f"tcp://127.0.0.1:{port}")
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("address", ["nonsense", "tcp://host", "http://host:1", "tcp://:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match="is no address"):
        open_pool(cluster=address)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'ksm-planner\[cluster\]'"):
        open_pool(cluster="tcp://127.0.0.1:8786")


def test_fewer_than_one_worker_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        open_pool(0)
