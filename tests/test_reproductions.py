"""The quick ones of the published results: docs/reproductions.md shows what the command prints."""

from __future__ import annotations

import os
import subprocess
import sys

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
