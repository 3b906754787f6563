"""docs/tutorial.md in a shell: every command of its `sh` blocks, in order, on a shipped trace.

Its `text` blocks are outputs: each line stands in what the commands above it printed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", PAGE,
                                           re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


@dataclass(frozen=True, slots=True)
class Walk:
    """What the commands of the page did: the folder, and of each command exit code and output."""

    folder: Path
    codes: list[int]
    outputs: list[str]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("tutorial")
    logs = tmp_path_factory.mktemp("logs")
    shutil.copytree(ROOT / "traces" / "kmod-host", folder / "traces" / "kmod-host")
    script = [f'planner() {{ "{sys.executable}" -m planner "$@"; }}']
    for number, command in enumerate(COMMANDS):
        script += [f"{{ {command}", f"}} > {logs}/{number}.out 2> {logs}/{number}.err",
                   f"echo $? > {logs}/{number}.code"]
    subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, check=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"})
    return Walk(folder, [int((logs / f"{n}.code").read_text()) for n in range(len(COMMANDS))],
                [(logs / f"{n}.out").read_text() + (logs / f"{n}.err").read_text()
                 for n in range(len(COMMANDS))])


def test_every_command_succeeds(walk: Walk) -> None:
    assert len(COMMANDS) >= 20
    for command, code, output in zip(COMMANDS, walk.codes, walk.outputs, strict=True):
        # Whether this machine can capture is not ours to say.
        allowed = (0, 3) if command == "planner doctor" else (0,)
        assert code in allowed, f"{command}\n{output}"


def test_the_outputs_shown_are_those_of_the_commands_above_them(walk: Walk) -> None:
    printed = ""
    number = 0
    n_lines = 0
    for kind, block in BLOCKS:
        if kind == "sh":
            n_commands = len(block.splitlines())
            printed += "\n".join(walk.outputs[number:number + n_commands])
            number += n_commands
            continue
        assert kind == "text"
        for line in block.splitlines():
            if line != "...":
                assert line in printed, line
                n_lines += 1
    assert number == len(COMMANDS)
    assert n_lines >= 30


def test_the_walk_leaves_what_it_promises(walk: Walk) -> None:
    assert "Where the memory went under domain-at-boot" in (walk.folder / "report.html").read_text()
    redacted = (walk.folder / "for-others.html").read_text()
    assert "<script" not in redacted
    assert not re.search("acme|birch|cedar", redacted)
    assert json.loads((walk.folder / "plan.json").read_text())["kind"] == "planner.selective-ksm"
    assert "acme" in (walk.folder / "joined.yaml").read_text()
    assert (walk.folder / "forecast.prom").read_text().endswith("# EOF\n")
    (first,) = (walk.folder / "results").iterdir()
    digest = json.loads((first / "run.json").read_text())["digest"]
    for name in ("ksm.sh", "ksm.yml", "plan.json"):
        assert digest in (walk.folder / name).read_text()


def test_the_page_names_each_step_of_the_way() -> None:
    for words in ("doctor", "trace info", "init", "check", "run", "report", "explain", "compare",
                  "suggest", "validate live", "calibrate", "export settings", "apply"):
        assert re.search(rf"^(sudo )?planner {words}\b", PAGE, re.MULTILINE), words
