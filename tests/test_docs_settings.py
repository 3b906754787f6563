"""Every command of docs/settings.md, and the plan file as the page describes it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from planner.cli import main
from planner.exporters import KINDS
from planner.results import save
from planner.runner import run
from planner.scenario.spec import Ksmd, PolicySpec, Sync, Trigger
from tests.scenario_builder import NEVER, SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "settings.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the policies that the page names."""
    folder = tmp_path_factory.mktemp("docs")
    trace = build_trace(folder / "trace", [
        GuestPlan(f"g{i}", {"tenant": ("red", "red", "blue")[i]},
                  [MmPlan([pages_of([*range(1, 300), 400 + i])] * 2)]) for i in range(3)])
    return save(run(scenario_for(trace, (
        NEVER, PolicySpec("ksmd-fast", (), (), Ksmd(2000, 20)),
        PolicySpec("domain-at-boot", ("domain",), (),
                   Sync((Trigger("boot", SECOND, 0),)))))), folder / "result", texts={})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_works(
        command: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command.replace("$RESULT", str(result)))
    assert program == "planner"
    assert main(arguments) == 0
    written = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(written) == arguments.count("-o")
    assert all(written)
    assert bool(capsys.readouterr().out) != bool(written)


def test_the_page_has_every_kind_and_the_refusal_it_shows(
        result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) >= 12
    for kind in KINDS:
        assert f"| `{kind}` |" in PAGE
    assert main(["export", "settings", str(result), "--policy", "domain-at-boot", "--as",
                 "sysfs"]) == 2
    shown = re.search(r"^error: --as sysfs.*?ksmd$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert capsys.readouterr().err.split() == shown[0].split()


def test_the_page_names_every_key_of_the_plan(result: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "settings", str(result), "--policy", "domain-at-boot", "--as",
                 "selective-ksm"]) == 0
    plan = json.loads(capsys.readouterr().out)
    partition = plan["partitions"][0]
    for key in (*plan, *plan["expected"], *partition, *partition["members"][0],
                *plan["triggers"][0]):
        assert f"`{key}`" in PAGE or f'"{key}"' in PAGE, key
