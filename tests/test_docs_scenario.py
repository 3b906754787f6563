"""docs/scenario.md is made from the schema."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from planner.cli import main
from planner.measures import METRICS
from planner.scenario.reference import reference_markdown
from planner.scenario.schema import json_schema
from tests.test_scenario import key_paths

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scenario.md"


def test_the_page_is_what_the_schema_says() -> None:
    text = reference_markdown()
    if os.environ.get("PLANNER_ACCEPT"):
        PAGE.write_text(text)
    assert text == PAGE.read_text(), f"accept with: PLANNER_ACCEPT=1 pytest {Path(__file__).name}"


def test_every_key_has_a_row_in_the_section_of_its_mapping() -> None:
    sections = dict(re.findall(r"^## `?(.*?)`?\n(.*?)(?=^## |\Z)", PAGE.read_text(),
                               re.MULTILINE | re.DOTALL))
    for path, node in key_paths(json_schema()).items():
        parent, _, name = path.rpartition(".")
        rows = re.findall(rf"^\| `{name}` \| (.*)\|$", sections[parent or "The file"],
                          re.MULTILINE)
        assert len(rows) == 1, path
        assert rows[0].startswith(node["description"].replace("<", "\\<")), path
    metrics = sections.pop("Metrics")
    assert sum(text.count("\n| `") for text in sections.values()) == len(key_paths(json_schema()))
    assert re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE) == list(METRICS)


def test_schema_prints_the_page_and_refuses_other_forms(
        capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--format", "md"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()
    assert main(["schema", "--format", "html"]) == 2
    assert "write json or md" in capsys.readouterr().err
    assert main(["schema", "seed", "--format", "md"]) == 2
    assert "leave out --format, or the key" in capsys.readouterr().err
