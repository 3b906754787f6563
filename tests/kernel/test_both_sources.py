"""The module and /proc give one trace, in a machine of each supported kernel."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from planner.trace import PageColumns, PageFlag
from tests.kernel.both_sources import page_differences
from tests.kernel.machine import Outcome, load_runner, program, run_machine

N_ROUNDS = 2
#: A seed for each kernel.
SEEDS = {"6.1": 100, "6.12": 200}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Outcome]]:
    """What the machines printed, by kernel; both run at a time."""
    def outcome(series: str) -> Outcome:
        return run_machine(series, program(
            f"-m tests.kernel.both_sources {SEEDS[series]} {N_ROUNDS}"),
            tmp_path_factory.mktemp(f"machine-{series}"))

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        return {series: pool.submit(outcome, series) for series in SEEDS}


@pytest.mark.kernel
@pytest.mark.parametrize("series", SEEDS)
def test_module_and_proc_give_one_trace_of_quiet_processes(
    outcomes: dict[str, Future[Outcome]], series: str
) -> None:
    outcome = outcomes[series].result()
    lines = outcome.output.splitlines()
    print(outcome.output)
    assert [line for line in lines if line.startswith("not ok")] == []
    n_ok = sum(line.startswith("ok ") for line in lines)
    assert n_ok == 2 + 8 * N_ROUNDS
    runner = load_runner()
    for wanted in (f"1..{n_ok}", "insmod ok", "exit 0", "rmmod ok", f"taint {runner.TAINT}",
                   "done"):
        assert wanted in lines
    assert [line for line in outcome.console.splitlines()
            if runner._COMPLAINTS.search(line) and not runner._HARMLESS.search(line)] == []
    # Not vacuous: hashes, and more than the interpreters' own pages.
    assert all(int(n) > 500 for n in re.findall(r"(\d+) pages; kmod", outcome.output))


def pages() -> PageColumns:
    f = PageFlag
    return PageColumns(
        np.arange(10, 16), np.arange(6, dtype=np.uint64),
        np.array([f.ANON, f.ANON | f.KSM, f.ANON | f.KSM, f.FILE, f.ANON, f.ANON | f.SWAPPED],
                 np.uint32),
        np.array([-1, 4, 4, 7, 9, -1], np.int32), np.zeros(6, np.int8))


def test_other_numbers_for_the_same_frames_and_advisory_flags_are_no_difference() -> None:
    one = pages()
    other = replace(one, frame_id=np.array([-1, 1, 1, 0, 4, -1], np.int32),
                    flags=one.flags | np.uint32(PageFlag.YOUNG | PageFlag.DIRTY))
    assert list(page_differences(one, other, {}, {})) == []


def changed(name: str, index: int, value: int) -> PageColumns:
    column = getattr(pages(), name).copy()
    column[index] = value
    return replace(pages(), **{name: column})


@pytest.mark.parametrize("other", [
    changed("hash", 3, 99), changed("flags", 0, PageFlag.ANON | PageFlag.KSM),
    changed("flags", 5, PageFlag.ANON), changed("frame_id", 0, 3), changed("frame_id", 3, -1),
    changed("frame_id", 2, 5), changed("frame_id", 3, 4), changed("numa_node", 1, 1),
    changed("vpn", 5, 17), pages().take(slice(0, 5)), pages().take(slice(1, 6)),
])
def test_the_comparison_sees_every_kind_of_difference(other: PageColumns) -> None:
    assert list(page_differences(pages(), other, {}, {})) != []
    assert list(page_differences(other, pages(), {}, {})) != []
