from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from planner.capture import device as device_module
from planner.capture.procfs import Pagemap, ProcRoot, TargetExitedError
from planner.cli import main
from planner.doctor import Diagnosis, examine
from planner.errors import MachineError
from tests.fakeproc import PRESENT, FakeProc

ALL_CAPS, NO_PTRACE = "000001ffffffffff", "000001fffff7ffff"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    """A machine on which everything is as a capture wants it, without the module."""
    (tmp_path / "fake").mkdir()
    made = FakeProc(tmp_path / "fake")
    (made.root.proc / "meminfo").write_text(
        "MemTotal:       8388608 kB\nMemAvailable:   4194304 kB\nAnonPages:  1000 kB\n"
        "AnonHugePages:       250 kB\nHugePages_Total:       0\n")
    thp = made.root.sys / "kernel/mm/transparent_hugepage"
    thp.mkdir()
    (thp / "enabled").write_text("always [madvise] never\n")
    write_caps(made, ALL_CAPS)
    made.add(os.getpid(), [])
    monkeypatch.setattr(Pagemap, "read", lambda self, start, end: [PRESENT | 77])
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "release", lambda: "6.12.1-test")
    return made


def write_caps(fake: FakeProc, caps: str) -> None:
    folder = fake.root.proc / "self"
    folder.mkdir(exist_ok=True)
    (folder / "status").write_text(f"Name:\tpython\nCapEff:\t{caps}\nCapBnd:\t{ALL_CAPS}\n")


class FakeDevice:
    """A device that lets this process start a dump, or does not."""

    def __init__(self, problem: Exception | None = None, on_open: Exception | None = None) -> None:
        self.abi = (1, 4)
        self.problem, self.on_open = problem, on_open
        self.started: list[tuple[int, int]] = []

    def __call__(self, path: Path) -> FakeDevice:
        if self.on_open:
            raise self.on_open
        return self

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def start(self, pid: int, key: bytes, flags: int = 0) -> None:
        self.started.append((pid, flags))
        if self.problem:
            raise self.problem


def plug(fake: FakeProc, monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> FakeDevice:
    (fake.root.sys / "module/ksm_planner").mkdir(parents=True)
    fake.root.device.touch()
    monkeypatch.setattr(device_module, "PagehashDevice", device)
    return device


def texts(diagnosis: Diagnosis) -> dict[str, str]:
    return {f.name: f"{f.text}; {f.instead}" if f.instead else f.text for f in diagnosis.findings}


def test_a_machine_with_everything_but_the_module_captures_through_proc(fake: FakeProc) -> None:
    (fake.root.sys / "kernel/mm/ksm/pages_to_scan").write_text("100\n")
    (fake.root.sys / "kernel/mm/ksm/advisor_mode").write_text("[none] scan-time\n")
    diagnosis = examine(fake.root)
    said = texts(diagnosis)
    assert diagnosis.sources == ("proc",)
    assert not any(f.is_problem for f in diagnosis.findings)
    assert said["system"] == (f"Linux 6.12.1-test, {platform.machine()}, {os.cpu_count()} CPUs, "
                              "8.00 GiB memory (4.00 GiB available)")
    assert said["KSM"] == "run=1, pages_to_scan=100, advisor_mode=none"
    assert said["KSM counters"] == "general_profit absent, cow_ksm present, pages_sharing 5"
    assert said["huge pages"].startswith("transparent huge pages madvise; 25.0 % of anonymous")
    assert said["module ksm_planner"].startswith("not loaded: a capture goes through /proc")
    assert said["capture"] == "possible, source proc"
    assert diagnosis.facts["memory_bytes"] == 8 << 30
    assert diagnosis.facts["ksm"] == {"run": 1, "pages_to_scan": 100, "advisor_mode": "none"}
    assert diagnosis.facts["huge_share_of_anon"] == 0.25


def test_the_module_comes_first_and_is_asked_whether_it_would_dump(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = plug(fake, monkeypatch, FakeDevice())
    diagnosis = examine(fake.root)
    assert diagnosis.sources == ("kmod", "proc")
    assert diagnosis.facts["module_abi"] == [1, 4]
    assert texts(diagnosis)["module ksm_planner"] == "loaded, ABI 1.4"
    assert texts(diagnosis)["capture"] == "possible, source kmod or proc"
    # Listing only, of this very process.
    assert device.started == [(os.getpid(), 1)]


@pytest.mark.parametrize(("device", "message"), [
    (FakeDevice(MachineError("it is locked down", instead="use --source proc")),
     "loaded, not usable: it is locked down; use --source proc"),
    (FakeDevice(on_open=MachineError("no permission to open it", instead="run as root")),
     "loaded, not usable: no permission to open it; run as root"),
    (FakeDevice(TargetExitedError()), "it does not find this process; capture with --source proc"),
])
def test_a_module_that_cannot_be_used_leaves_proc_and_says_so(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch, device: FakeDevice, message: str
) -> None:
    plug(fake, monkeypatch, device)
    diagnosis = examine(fake.root)
    assert diagnosis.sources == ("proc",)
    assert message in texts(diagnosis)["module ksm_planner"]
    assert texts(diagnosis)["capture"] == "possible, source proc (with --source proc)"


def test_without_rights_each_missing_one_is_named_and_the_exit_code_is_3(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_caps(fake, NO_PTRACE)
    for name in ("kpageflags", "kpagecount"):
        (fake.root.proc / name).unlink()
    monkeypatch.setattr(Pagemap, "read", lambda self, start, end: [PRESENT])
    diagnosis = examine(fake.root)
    said = texts(diagnosis)
    assert not diagnosis.can_capture
    assert "the kernel hides frame numbers" in said["pagemap"]
    assert "CONFIG_PROC_PAGE_MONITOR" in said["kpageflags"]
    assert said["process memory"].endswith("run as root or with CAP_SYS_PTRACE")
    assert said["capture"] == "not possible here; run as root"
    monkeypatch.setattr("planner.doctor.ProcRoot", lambda: fake.root)
    assert main(["doctor"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:].split("  ")[0] for line in lines if line.startswith("!")] == [
        "pagemap", "kpageflags", "process memory", "capture"]


def test_one_missing_right_is_enough_to_make_a_capture_through_proc_impossible(
    fake: FakeProc
) -> None:
    assert examine(fake.root).can_capture
    write_caps(fake, NO_PTRACE)
    diagnosis = examine(fake.root)
    assert [f.name for f in diagnosis.findings if f.is_problem] == ["process memory", "capture"]


def test_the_module_alone_makes_a_capture_possible(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(fake, monkeypatch, FakeDevice())
    (fake.root.proc / "kpageflags").unlink()
    assert examine(fake.root).sources == ("kmod",)


def test_a_kernel_without_ksm_or_huge_pages_can_be_captured(fake: FakeProc) -> None:
    for path in (fake.root.sys / "kernel/mm/ksm").iterdir():
        path.unlink()
    (fake.root.sys / "kernel/mm/transparent_hugepage/enabled").unlink()
    (fake.root.proc / "meminfo").unlink()
    diagnosis = examine(fake.root)
    assert diagnosis.can_capture
    assert texts(diagnosis)["KSM"].startswith("not in this kernel (CONFIG_KSM)")
    assert texts(diagnosis)["huge pages"] == "no transparent huge pages in this kernel"
    assert diagnosis.facts["memory_bytes"] is None


def test_elsewhere_than_on_linux_it_says_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert main(["doctor"]) == 3
    assert "captures need Linux; traces can be read and scenarios run here" in (
        capsys.readouterr().out)


def test_the_document_is_the_same_diagnosis(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("planner.doctor.ProcRoot", lambda: fake.root)
    assert main(["doctor", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    diagnosis = examine(fake.root)
    assert document == json.loads(json.dumps(diagnosis.document()))
    assert (document["kind"], document["version"], document["can_capture"]) == (
        "planner.doctor", 1, True)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(document["findings"])
    for line, finding in zip(shown, document["findings"], strict=True):
        assert finding["name"] in line
        assert finding["text"] in line


@pytest.mark.skipif(platform.system() != "Linux", reason="looks at the real machine")
def test_the_real_machine_is_examined_without_writing_anything() -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": f"{home}/config"}
        done = subprocess.run([sys.executable, "-m", "planner", "doctor", "--json"], cwd=home,
                              env=environment, capture_output=True, text=True, check=False)
        assert os.listdir(home) == []
    assert done.returncode in (0, 3), done.stderr
    document = json.loads(done.stdout)
    assert document["facts"]["kernel"] == platform.release()
    assert document["can_capture"] == (done.returncode == 0)


@pytest.mark.skipif(platform.system() != "Linux" or os.geteuid() != 0, reason="drops root's rights")
def test_a_plain_user_is_told_to_run_it_as_root() -> None:
    code = ("import json, os; from planner.doctor import examine\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "print(json.dumps(examine().document()))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["sources"] == []
    wrong = {f["name"] for f in document["findings"] if f["is_problem"]}
    assert {"pagemap", "kpageflags", "process memory", "capture"} <= wrong


def test_the_root_given_for_tests_is_the_only_one_looked_at(fake: FakeProc) -> None:
    empty = ProcRoot(fake.root.proc / "none", fake.root.sys / "none", fake.root.proc / "none")
    diagnosis = examine(empty)
    assert not diagnosis.can_capture
    assert diagnosis.facts["memory_bytes"] is None
    assert diagnosis.facts["ksm"] is None
