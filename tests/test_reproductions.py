"""The quick ones of the published results: docs/reproductions.md shows what the command prints."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from planner.ksm.timings import read_timings
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/reproductions.md"
SCRIPT = REPOSITORY / "scenarios/reproductions/reproduce.py"
BEGIN, END = "<!-- figures: printed by the command above -->\n", "\n<!-- end -->"


def printed(*names: str) -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True,
                          check=True, cwd=REPOSITORY,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    return done.stdout.rstrip("\n").split("\n")


def test_the_page_shows_what_the_command_prints() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    shown, after = rest.split(END)
    if os.environ.get("PLANNER_ACCEPT") == "1":
        PAGE.write_text(before + BEGIN + "\n".join(printed()) + END + after)
        return
    lines = printed("smart-scan", "xlh")
    assert len(lines) > 4
    assert set(lines) <= set(shown.split("\n"))


def test_a_result_that_is_not_there_is_named() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "neither"], capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2
    assert "there are cmd, barker" in done.stderr


@pytest.mark.parametrize("name", ["comparisons", "hundredfold"])
def test_the_cost_files_are_made_from_the_built_in_costs(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    synthesise = importlib.import_module("synthesise")
    document = json.loads((SCRIPT.parent / f"{name}.json").read_text())
    assert document["costs_ns"] == synthesise.costs(name)
    assert read_timings(SCRIPT.parent / f"{name}.json").batch_ns > 0
