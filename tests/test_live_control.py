"""Driving KSM: what is refused, and that everything is put back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from planner.capture.procfs import ProcRoot
from planner.errors import MachineError, UsageError
from planner.live.control import KsmControl, driven, examine, mergeable_processes

FILES = {
    "run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "max_page_sharing": "256",
    "merge_across_nodes": "1", "use_zero_pages": "0", "smart_scan": "1",
    "stable_node_chains_prune_millisecs": "2000", "advisor_mode": "[none] scan-time",
    "advisor_max_cpu": "70", "advisor_target_scan_time": "200",
    "advisor_min_pages_to_scan": "500", "advisor_max_pages_to_scan": "30000",
    "pages_shared": "0",
}


@pytest.fixture
def root(tmp_path: Path) -> ProcRoot:
    folder = tmp_path / "sys/kernel/mm/ksm"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text + "\n")
    (tmp_path / "proc").mkdir()
    return ProcRoot(tmp_path / "proc", tmp_path / "sys", tmp_path / "none")


def add_process(root: ProcRoot, pid: int, comm: str, ksm_stat: str, smaps: str = "") -> None:
    folder = root.proc / str(pid)
    folder.mkdir()
    for name, text in (("comm", comm + "\n"), ("ksm_stat", ksm_stat), ("smaps", smaps)):
        (folder / name).write_text(text)


def settings(root: ProcRoot) -> dict[str, int | str]:
    return KsmControl(root).knobs()


class StopError(Exception):
    """What a test raises inside."""


@pytest.mark.parametrize("end", ["none", "error", "ctrl-c", "term", "hup"])
def test_every_setting_is_put_back_however_it_ends(root: ProcRoot, end: str) -> None:
    found, said = settings(root), list[str]()
    try:
        with driven({1}, root=root, announce=said.append) as control:
            control.apply({"pages_to_scan": 5, "smart_scan": 0, "use_zero_pages": 1})
            control["run"] = 1
            assert settings(root) != found
            if end == "error":
                raise StopError
            if end == "ctrl-c":
                raise KeyboardInterrupt
            if end in ("term", "hup"):
                os.kill(os.getpid(), signal.SIGTERM if end == "term" else signal.SIGHUP)
    except (StopError, KeyboardInterrupt):
        assert end != "none"
    else:
        assert end == "none"
    assert settings(root) == found
    assert said[-1].startswith("putting back")


def test_further_signals_do_not_stop_the_restoring(root: ProcRoot) -> None:
    found = settings(root)

    def again(text: str) -> None:
        if text.startswith("putting back"):
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted() -> None:
        with driven({1}, root=root, announce=again) as control:
            control["run"] = 1
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert settings(root) == found


def test_handlers_of_signals_are_put_back(root: ProcRoot) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with driven((), root=root):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("file", "value", "said"), [
    ("run", "1", "ksmd is running"), ("pages_shared", "7", "7 pages are merged")])
def test_a_ksm_in_use_is_refused_unless_forced(root: ProcRoot, file: str, value: str,
                                               said: str) -> None:
    (KsmControl(root).folder / file).write_text(value + "\n")
    with pytest.raises(MachineError, match=said), driven((), root=root):
        pass
    assert KsmControl(root).text(file) == value
    with driven((), root=root, force=True) as control:
        assert control["run"] == 0
    assert KsmControl(root).text(file) == value


def test_what_others_had_merged_stays_merged(root: ProcRoot) -> None:
    control = KsmControl(root)
    (control.folder / "pages_shared").write_text("7\n")
    written: list[str] = []
    original = KsmControl.__setitem__

    def note(self: KsmControl, name: str, value: int | str) -> None:
        written.append(f"{name}={value}")
        original(self, name, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KsmControl, "__setitem__", note)
        with driven((), root=root, force=True):
            pass
    assert "run=2" not in written


def test_mergeable_processes_that_are_no_targets_are_refused_and_named(root: ProcRoot) -> None:
    add_process(root, 10, "mine", "ksm_merge_any: yes\nksm_mergeable: yes\n")
    add_process(root, 11, "theirs", "ksm_merge_any: no\nksm_mergeable: yes\n")
    add_process(root, 12, "plain", "ksm_merge_any: no\nksm_mergeable: no\n")
    add_process(root, 13, "older", "ksm_rmap_items 0\n", "VmFlags: rd wr mg\n")
    assert [one.pid for one in mergeable_processes(root)] == [10, 11, 13]
    with pytest.raises(MachineError, match="theirs 11, older 13") as found, \
            driven({10}, root=root):
        pass
    assert "mine" not in str(found.value)
    assert found.value.exit_code == 3


def test_a_kernel_without_ksm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no KSM"):
        examine(KsmControl(ProcRoot(tmp_path, tmp_path, tmp_path)))


def test_two_drivers_never_meet(root: ProcRoot) -> None:
    with driven((), root=root), pytest.raises(MachineError, match="another driver"), \
            driven((), root=root, lock_wait_s=0.05):
        pass


def test_a_setting_this_kernel_lacks_is_a_fault_of_the_request(root: ProcRoot) -> None:
    (KsmControl(root).folder / "smart_scan").unlink()
    with pytest.raises(UsageError, match="no such setting"), driven((), root=root) as control:
        control.apply({"smart_scan": 0})
