"""README.md and docs/: links lead somewhere, commands exist, the README's transcript is real."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from planner.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[list[str]]:
    """Arguments of each `planner` command line in the fenced blocks of a page."""
    found = []
    for block in _FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:sudo )?(?:\.venv/bin/)?planner (.*)", line)
            if match:
                found.append(shlex.split(match[1], comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_linked_from_the_readme() -> None:
    text = README.read_text()
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in text, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for arguments in commands_of(page):
        command: Any = typer.main.get_command(app)
        rest = list(arguments)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, arguments
            command = command.commands[rest.pop(0)]
        known = {"--help", "-h"} | {name for each in command.params for name in each.opts}
        assert {word for word in rest if re.match("--?[a-z]", word)} <= known, arguments


def test_the_pages_hold_commands() -> None:
    assert sum(len(commands_of(page)) for page in PAGES) >= 60
    assert len(commands_of(README)) >= 12


def test_the_readme_shows_what_the_quickstart_prints(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    path = "scenarios/quickstart.yaml"
    assert main(["run", str(ROOT / path), "--no-details"]) == 0
    # What the columns mean stands in the report; the README leaves it out.
    shown = re.sub(r"\nSAVED: .*?\n\n", "...\n", capsys.readouterr().out, flags=re.DOTALL)
    assert shown.count("...\n") == 1
    block = f"```console\n$ planner run {path}\n{shown}```\n"
    if os.environ.get("PLANNER_ACCEPT"):
        README.write_text(re.sub(r"```console\n\$ planner run .*?```\n", lambda _: block,
                                 README.read_text(), count=1, flags=re.DOTALL))
    assert block in README.read_text(), "accept with: PLANNER_ACCEPT=1 pytest test_docs_pages.py"
    (table,) = re.findall(r"^POLICY[^\n]*\n(.*?)^\.\.\.$", shown, re.MULTILINE | re.DOTALL)
    saved = {row.split()[0]: row.split()[1] for row in table.splitlines()}
    for name in ("ksmd-fast", "domain-at-boot", "ksmd-default"):
        assert f"{saved[name]} MiB" in README.read_text().partition(block)[2], name


def test_the_terms_of_the_glossary_are_sorted_and_stand_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "glossary.md").read_text(),
                      re.MULTILINE)
    terms = [term.lower() for term, _ in rows[1:]]
    assert len(terms) >= 45
    assert terms == sorted(set(terms))
