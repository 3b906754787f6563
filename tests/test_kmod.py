"""The kernel module: built with -Werror and run in QEMU on Debian's kernels; and its test runner.

What needs machines is marked `kernel`: it downloads kernels with apt-get into the user's cache and
loads the module there and nowhere else. kmod/tests/run.py does the work and can be run by itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

KMOD = REPOSITORY / "kmod"
sys.path.insert(0, str(KMOD / "tests"))

import faults  # noqa: E402  (scripts' neighbours, not of the package)
import packages  # noqa: E402
import run  # noqa: E402

SERIES = ("6.1", "6.12")
MACHINES = [f"{series}: {group[0]}" for series in SERIES
            for group in run.machines(run.ALL)]
MACHINES += [f"{series}: dump only" for series in SERIES]

HEALTHY_CONSOLE = """\
[    0.000000] Command line: console=ttyS0 oops=panic panic=-1 slub_debug=FZP
[    0.100000] Spectre V2 : Mitigation: Retpolines
[    2.400000] ksm_planner: loading out-of-tree module taints kernel.
[    2.500000] Memory failure: 0x29ea: recovery action for dirty LRU page: Recovered
[    3.000000] reboot: Power down
"""
HEALTHY_TAP = """\
init reached
swap on
insmod ok
test t_abi
ok 1 - a check
# something to say
ok 2 - another # SKIP not on this kernel
1..2
exit t_abi 0
rmmod ok
taint 12288
done
"""


def judged(console: str = HEALTHY_CONSOLE, tap: str = HEALTHY_TAP, *, is_timed_out: bool = False
           ) -> list[str]:
    return run.judge(run.Boot(console, tap, is_timed_out, 1.0), ["t_abi"])


def test_the_runner_finds_nothing_wrong_with_a_healthy_machine() -> None:
    assert judged() == []


@pytest.mark.parametrize("message", [
    "WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1 free_pages+0x1/0x2",
    "kernel BUG at mm/slub.c:1!",
    "BUG: unable to handle page fault for address: ffff888000000000",
    "BUG: Bad page state in process t_abi  pfn:01234",
    "BUG: Bad rss-counter state mm:0 type:MM_ANONPAGES val:1",
    "BUG: non-zero pgtables_bytes on freeing mm: 4096",
    "BUG ksm_planner_dump (Tainted: G OE): Objects remaining in ksm_planner_dump",
    "kmem_cache_destroy ksm_planner_dump: Slab cache still has objects",
    "BUG kmalloc-4k (Tainted: G OE): Poison overwritten",
    "BUG kmalloc-4k (Tainted: G OE): Right Redzone overwritten",
    "general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
    "Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
    "INFO: task t_abi:100 blocked for more than 120 seconds.",
    "list_del corruption. prev->next should be 0",
    "Kernel panic - not syncing: Fatal exception",
    "refcount_t: underflow; use-after-free.",
])
def test_the_runner_fails_on_complaints_of_the_kernel(message: str) -> None:
    problems = judged(HEALTHY_CONSOLE + f"[    2.900000] {message}\n")
    assert [problem for problem in problems if message in problem]


@pytest.mark.parametrize(("old", "new", "problem"), [
    ("ok 1 -", "not ok 1 -", "not ok 1"),
    ("1..2", "1..3", "2 checks, plan 1..3"),
    ("1..2\n", "", "plan missing"),
    ("ok 1 - a check\n# something to say\nok 2 - another # SKIP not on this kernel\n1..2", "1..0",
     "0 checks"),
    ("exit t_abi 0", "exit t_abi 139", "exit code 139"),
    ("test t_abi", "test t_other", "t_abi: did not run"),
    ("taint 12288", "taint 12800", "taint is 12800, expected 12288"),
    ("taint 12288", "taint 4096", "taint is 4096"),
    ("taint 12288\n", "", "taint is unknown"),
    ("rmmod ok\n", "", "no 'rmmod ok'"),
    ("insmod ok\n", "", "no 'insmod ok'"),
    ("swap on\n", "", "no 'swap on'"),
    ("done\n", "", "no 'done'"),
])
def test_the_runner_fails_on_what_tests_say(old: str, new: str, problem: str) -> None:
    assert HEALTHY_TAP.count(old) == 1
    problems = judged(tap=HEALTHY_TAP.replace(old, new))
    assert [found for found in problems if problem in found]


def test_the_runner_fails_when_a_machine_does_not_stop() -> None:
    assert judged(is_timed_out=True) == ["the machine did not stop in time"]


def test_the_runner_tries_again_only_when_init_was_not_reached(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = run.Kernel("6.12", "6.12.0", tmp_path)
    lost = run.Boot("int3 Oops", "", False, 1.0)
    bad = run.Boot("BUG", "init reached\n", False, 1.0)
    good = run.Boot(HEALTHY_CONSOLE, HEALTHY_TAP, False, 1.0)
    for outcomes, used in (([lost, good], good), ([lost, lost], lost), ([bad, good], bad)):
        left = iter(outcomes)
        monkeypatch.setattr(run, "_boot_once", lambda *_, left=left: next(left))
        assert run.boot(kernel, tmp_path / "initramfs", ["t_abi"]) is used


GROUP_TAP = """\
init reached
swap on
module fault-0
insmod ok
test t_abi
not ok 1 - a check
exit t_abi 1
rmmod ok
module fault-1
insmod ok
test t_key
ok 1 - another
1..1
exit t_key 0
rmmod ok
taint 12288
done
"""
PARTS = {"a": ("fault-0", ("t_abi",)), "b": ("fault-1", ("t_key",))}


def test_modules_that_share_a_machine_are_judged_apart() -> None:
    found = run.judge_group(run.Boot(HEALTHY_CONSOLE, GROUP_TAP, False, 1.0), PARTS)
    assert found == {"a": ["t_abi: exit code 1", "t_abi: not ok 1 - a check",
                           "t_abi: 1 checks, plan missing"], "b": []}


@pytest.mark.parametrize(("console", "old", "new", "problem", "who"), [
    ("[ 1.0] BUG: Bad page state in process t_abi\n", "", "", "Bad page", "ab"),
    ("", "done\n", "", "did not stop", "ab"),
    ("", "module fault-1\ninsmod ok\n", "module fault-1\n", "no 'insmod ok'", "b"),
    ("", "exit t_abi 1\nrmmod ok\n", "exit t_abi 1\n", "no 'rmmod ok'", "a"),
    ("", "test t_key\n", "", "t_key: did not run", "b"),
])
def test_a_machine_that_was_damaged_proves_nothing_of_the_modules_in_it(
        console: str, old: str, new: str, problem: str, who: str) -> None:
    tap = GROUP_TAP.replace(old, new, 1)
    found = run.judge_group(run.Boot(HEALTHY_CONSOLE + console, tap, False, 1.0), PARTS)
    for name in who:
        assert [line for line in found[name] if problem in line]
        assert not [line for line in found[name] if "not ok" in line]


def test_each_fault_and_each_breakage_is_in_one_machine() -> None:
    groups = run.fault_groups()
    assert sorted(fault.name for group in groups for fault in group) == sorted(
        fault.name for fault in run.FAULTS)
    for group in groups:
        states = [fault.leaves for fault in group]
        assert set(states) <= {"whole", "spent", "broken"}
        assert states == sorted(states, reverse=True)
        assert len(group) == 1 or "broken" not in states
    assert sorted(how for group in faults.BREAKAGE_GROUPS for how in group) == sorted(
        faults.BREAKAGES)


def test_a_job_that_fails_is_a_problem_of_all_its_names() -> None:
    def broken() -> dict[str, list[str]]:
        raise run.RunnerError("no compiler")

    assert run.in_parallel([run.Job(("a", "b"), broken), run.Job(("c",), lambda: {"c": []})]) == {
        "a": ["runner: no compiler"], "b": ["runner: no compiler"], "c": []}


@pytest.mark.parametrize("fault", run.FAULTS, ids=lambda fault: fault.name)
def test_each_fault_has_its_place_in_the_sources(fault: faults.Fault) -> None:
    text = (KMOD / fault.file).read_text()
    assert fault.seed(text) != text
    assert set(fault.tests) <= set(run.ALL)
    with pytest.raises(ValueError, match="has the text 0 times"):
        fault.seed("")


def test_kernel_versions_appear_in_the_compat_file_only() -> None:
    sources = [path for path in KMOD.glob("*.[ch]") if not path.name.endswith(".mod.c")]
    assert {"main.c", "chardev.c", "walk.c", "hash.c", "compat.h"} <= {p.name for p in sources}
    for path in sources:
        text = path.read_text()
        assert "LINUX_VERSION_CODE" not in text, path.name
        assert "KERNEL_VERSION" not in text, path.name
        assert path.name == "compat.h" or "PLANNER_HAVE_" not in text, path.name


@pytest.fixture(scope="module")
def bench() -> Iterator[run.Bench]:
    with run.build_folder("pytest") as folder:
        yield run.Bench(folder)


@pytest.fixture(scope="module")
def suites(bench: run.Bench) -> dict[str, list[str]]:
    """Problems of all suites on all kernels, by machine."""
    return run.in_parallel(run.suite_jobs(bench, SERIES, run.ALL))


@pytest.fixture(scope="module")
def seeded(bench: run.Bench) -> dict[str, list[str]]:
    """Problems with seeded faults and broken machines: those that went unnoticed."""
    return run.in_parallel(run.fault_jobs(bench, SERIES[-1]))


@pytest.mark.kernel
@pytest.mark.parametrize("machine", MACHINES)
def test_the_module_passes_all_suites(suites: dict[str, list[str]], machine: str) -> None:
    assert suites[machine] == []


@pytest.mark.kernel
@pytest.mark.parametrize("fault", run.FAULTS, ids=lambda fault: fault.name)
def test_the_suites_catch_a_seeded_fault(seeded: dict[str, list[str]], fault: faults.Fault) -> None:
    assert seeded[f"fault: {fault.name}"] == []


@pytest.mark.kernel
@pytest.mark.parametrize("how", faults.BREAKAGES)
def test_the_runner_notices_a_broken_machine(seeded: dict[str, list[str]], how: str) -> None:
    assert seeded[f"broken: {how}"] == []


@pytest.mark.kernel
def test_the_runner_notices_nothing_on_a_machine_that_is_not_broken(
        seeded: dict[str, list[str]]) -> None:
    assert seeded["not broken"] == []


def planted(tmp_path: Path, text: str) -> Path:
    """A copy of the module's sources with something added to main.c."""
    sources = tmp_path / "sources"
    shutil.copytree(KMOD, sources)
    with (sources / "main.c").open("a") as file:
        file.write(text)
    return sources


@pytest.mark.kernel
@pytest.mark.parametrize("series", SERIES)
def test_sparse_has_nothing_to_say(bench: run.Bench, series: str) -> None:
    bench.check(series)


@pytest.mark.kernel
def test_sparse_is_heard(bench: run.Bench, tmp_path: Path) -> None:
    sources = planted(tmp_path, "int planted(int __user *at);\n"
                                "int planted(int __user *at) { return *at; }\n")
    with pytest.raises(run.RunnerError, match="dereference of noderef"):
        bench.check("6.12", sources)


@pytest.mark.kernel
def test_a_warning_stops_the_build(bench: run.Bench, tmp_path: Path) -> None:
    sources = planted(tmp_path, "static int planted(void) { int unused; return 0; }\n")
    with pytest.raises(run.RunnerError, match="unused"):
        bench.check("6.12", sources)


def checked_style(sources: Path) -> tuple[str, int]:
    """What checkpatch says of sources of the module, and the exit code."""
    done = subprocess.run(
        ["make", "-s", "-C", str(sources), "style", f"CHECKPATCH={packages.get_checkpatch()}"],
        capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


@pytest.mark.kernel
def test_checkpatch_has_nothing_to_say() -> None:
    assert checked_style(KMOD) == ("", 0)


@pytest.mark.kernel
def test_checkpatch_is_heard(tmp_path: Path) -> None:
    said, code = checked_style(planted(tmp_path, "static int planted( void ){ return 0; }\n"))
    assert "main.c" in said
    assert code
