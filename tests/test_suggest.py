"""`planner suggest` on shipped guests: what it prints, and that its policies run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from planner.cli import main
from planner.runner import TraceStore, build_hosts, load_scenario, run
from planner.suggest import Wishes, suggest

QUICKSTART = "scenarios/quickstart.yaml"


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["suggest", QUICKSTART, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_sensitive_domains_stay_alone_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    careful = document(capsys)
    assert careful["alone"] == ["cobalt"]
    assert [item["groups"] for item in careful["frontier"]] == [
        [["acme"], ["borealis"], ["cobalt"]], [["acme", "borealis"], ["cobalt"]]]
    bold = document(capsys, "--join-sensitive")
    last = bold["frontier"][-1]
    assert last["groups"] == [["acme", "borealis", "cobalt"]]
    assert last["saved_bytes"]["mean"] == pytest.approx(
        bold["one_merge_space"]["saved_bytes"], abs=4096)
    assert last["exposed_domain_pairs"] == 3


def test_wishes_are_kept_and_impossible_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = document(capsys, "--join-sensitive", "--never-together", "acme,borealis")
    assert all(not {"acme", "borealis"} <= set(group)
               for item in apart["frontier"] for group in item["groups"])
    assert len(document(capsys, "--join-sensitive", "--most-exposed", "1")["frontier"]) == 2
    assert main(["suggest", QUICKSTART, "--alone", "nobody"]) == 2
    assert "no domain named nobody" in capsys.readouterr().err
    assert main(["suggest", QUICKSTART, "--most-unmerge", "1MiB"]) == 2
    assert "even with every member alone" in capsys.readouterr().err
    assert main(["suggest", QUICKSTART, "--by", "nothing"]) == 2
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    assert main(["suggest", QUICKSTART, "--policy-file", str(there)]) == 2
    assert there.read_text() == "mine"


def test_the_table_names_what_is_joined_and_what_it_is_measured_against(
    capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suggest", QUICKSTART]) == 0
    text = capsys.readouterr().out
    assert "acme + borealis" in text
    assert "Kept alone: cobalt." in text
    assert "One merge space over all 3 would save" in text


def test_a_written_policy_runs_and_saves_what_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert main(["suggest", QUICKSTART, "--policy-file", str(path)]) == 0
    lines = YAML(typ="safe").load(path)
    # Whoever joins or stays alone by request: what is sensitive stays so, and nothing else is.
    bold = tmp_path / "bold.yaml"
    assert main(["suggest", QUICKSTART, "--join-sensitive", "--alone", "acme",
                 "--policy-file", str(bold)]) == 0
    assert YAML(typ="safe").load(bold)["domains"]["sensitive"] == ["cobalt"]
    original = Path(QUICKSTART).read_text()
    whole = YAML(typ="safe").load(original)
    whole["workloads"][0]["trace"] = str(Path("traces/qemu-guests").resolve())
    whole |= {"domains": lines["domains"],
              "policies": [{"name": "never", "merge": "never"}, *lines["policies"]]}
    scenario_path = tmp_path / "s.yaml"
    with scenario_path.open("w") as stream:
        YAML().dump(whole, stream)
    store = TraceStore()
    scenario = load_scenario(scenario_path, store=store)
    promised = suggest(scenario, build_hosts(scenario, store), Wishes())
    row = run(scenario, store=store).summary.to_pylist()[1]
    low, _, high = promised.saved_bytes[-1]
    # What writes since the merge have undone, and the kernel's records.
    assert 0.8 * low < row["saved_bytes"] <= high
    assert row["cross_domain_pages"] > 0
    assert row["cross_domain_sensitive_pages"] == 0
