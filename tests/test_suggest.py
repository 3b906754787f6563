"""`planner suggest` on shipped guests: what it prints, and that its policies run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from planner import suggest as search
from planner.cli import main
from planner.errors import UsageError
from planner.fleet import FleetHost
from planner.policies.partition import class_value, partition_classes
from planner.report.suggest_page import render_suggestion_html
from planner.report.suggest_text import render_suggestion
from planner.runner import TraceStore, build_hosts, load_scenario, run
from planner.scenario.spec import Scenario
from planner.suggest import Wishes, drawn_machines, suggest
from tests.test_report import Page

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


@pytest.fixture(scope="module")
def quickstart() -> tuple[Scenario, list[FleetHost]]:
    store = TraceStore()
    scenario = load_scenario(QUICKSTART, store=store)
    return scenario, build_hosts(scenario, store)


def test_wishes_are_kept_and_impossible_ones_refused(
        quickstart: tuple[Scenario, list[FleetHost]]) -> None:
    bold = Wishes(may_join_sensitive=True)
    apart = suggest(*quickstart, replace(bold, apart=(("acme", "borealis"),)))
    assert len(apart.partitionings) > 1
    assert all(not {"acme", "borealis"} <= set(group)
               for index in range(len(apart.partitionings)) for group in apart.groups(index))
    assert len(suggest(*quickstart, replace(bold, most_exposed_pairs=1)).partitionings) == 2
    for wishes, words in (
            (Wishes(alone=("nobody",)), "no domain named nobody"),
            (Wishes(most_unmerge_bytes=1 << 20), "even with every member alone, "),
            (Wishes(most_merge_ns=10**9),
             "even with every member alone, merging takes 2.89 s of CPU time, at most 1.00 s"),
            (Wishes(by="nothing"), "has a label 'nothing'")):
        with pytest.raises(UsageError, match=words):
            suggest(*quickstart, wishes)


def test_options_become_wishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--join-sensitive", "--never-together", "acme, borealis",
                     "--most-exposed", "1", "--alone", "borealis", "--most-unmerge", "1GiB",
                     "--most-cpu", "1min")
    assert found["alone"] == ["borealis"]
    assert found["frontier"][-1]["groups"] == [["acme", "cobalt"], ["borealis"]]
    assert found["frontier"][-1]["merge_cpu_ns"] > found["frontier"][-1]["further_pass_cpu_ns"] > 0
    assert main(["suggest", QUICKSTART, "--most-cpu", "1"]) == 2
    assert "--most-cpu: '1' has no unit" in capsys.readouterr().err
    assert main(["suggest", QUICKSTART, "--static"]) == 2
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
    # Trees grow while the pass goes on, and the first part of it meets cold caches.
    assert row["merge_cpu_ns"] == pytest.approx(promised.costs[-1].merge_ns, rel=0.15)
    # What writes since the merge have undone, and the kernel's records.
    assert 0.8 * low < row["saved_bytes"] <= high
    assert row["cross_domain_pages"] > 0
    assert row["cross_domain_sensitive_pages"] == 0


@pytest.mark.parametrize("by", ["guest", "role", "domain"])
def test_policies_of_any_key_part_guests_as_suggested(
        tmp_path: Path, quickstart: tuple[Scenario, list[FleetHost]], by: str) -> None:
    found = suggest(*quickstart, Wishes(by=by, may_join_sensitive=True))
    index = len(found.partitionings) - 1 if by == "guest" else len(found.partitionings) // 2
    lines = YAML(typ="safe").load(found.policy_yaml(index))
    whole = YAML(typ="safe").load(Path(QUICKSTART).read_text())
    whole["workloads"][0]["trace"] = str(Path("traces/qemu-guests").resolve())
    whole |= {"domains": lines["domains"],
              "policies": [{"name": "never", "merge": "never"}, *lines["policies"]]}
    path = tmp_path / "s.yaml"
    with path.open("w") as stream:
        YAML().dump(whole, stream)
    store = TraceStore()
    scenario = load_scenario(path, store=store)
    (host,) = build_hosts(scenario, store)
    parts = partition_classes(host, scenario.policies[1])
    groups: dict[int, set[str]] = {}
    for item, partition in zip(host.classes, parts.of_class.tolist(), strict=True):
        groups.setdefault(partition, set()).add(class_value(host, item, by))
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, found.groups(index)))
    assert max(map(len, groups.values())) > 1


def made(n_rows: int = 2, **changes: Any) -> dict[str, Any]:
    """A document as of `planner suggest --json`."""
    cost = {"looked_at_bytes": 4096, "merge_cpu_ns": 5, "further_pass_cpu_ns": 2}
    return {
        "title": "t", "by": "domain", "members": ["a", "b"], "n_hosts": 1, "n_machines": 1,
        "content_share": 1.0,
        "n_moments": 5, "alone": [], "costs": "builtin:unmeasured",
        "one_merge_space": {"saved_bytes": 9 << 20, "exposed_domain_pairs": 7, **cost},
        "frontier": [{"exposed_domain_pairs": index, "groups": [["a"], ["b"]],
                      "saved_bytes": {"lowest": index << 20, "mean": (index << 20) + 5,
                                      "highest": (index + 1) << 20}, **cost}
                     for index in range(n_rows)]} | changes


def test_the_page_shows_every_partitioning_in_a_chart_and_a_table(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    found = document(capsys, "--join-sensitive", "--html", str(path))
    html = path.read_text()
    page = Page(html)
    (table,) = page.tables
    assert [row[0] for row in table[1:]] == [
        str(row["exposed_domain_pairs"]) for row in found["frontier"]] + ["3"]
    assert [row[1] for row in table[1:]] == ["405", "470", "536", "536"]
    assert table[2][-1] == "acme + cobalt"
    assert "Kept alone" not in html
    assert "Kept alone: a." in render_suggestion_html(made(alone=["a"]))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'")
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html)
    spec = json.loads(text)
    assert [value["saved"] for value in spec["data"]["values"]] == [
        round(row["saved_bytes"]["mean"] / 2**20, 3) for row in found["frontier"]]
    assert spec["layer"][-1]["data"]["values"][0]["pairs"] == 3
    assert spec["layer"][0]["encoding"]["y"]["scale"]["zero"] is True


def test_a_static_page_has_a_drawing_and_no_script(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    page = Page(render_suggestion_html(made(), is_static=True))
    assert page.scripts == []
    assert [tag for tag, _ in page.tags].count("svg") == 1
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_hostile_names_stay_text_and_equal_documents_give_equal_pages() -> None:
    names = ["</script><script>alert(1)</script>", "a\u202eb\x1b[2J"]
    rows = made()["frontier"]
    rows[1]["groups"] = [names]
    hostile = made(title=names[0], members=names, alone=names, frontier=rows, costs=names[0])
    html = render_suggestion_html(hostile)
    assert html == render_suggestion_html(hostile)
    assert "<script>alert" not in html
    assert "\u202e" not in html
    assert "\x1b" not in html + render_suggestion(hostile)


def test_samples_and_measured_costs_are_told_apart() -> None:
    whole = render_suggestion(made())
    assert "no measurement of your machine" in whole
    assert "scaled up" not in whole
    part = render_suggestion(made(content_share=0.05, n_hosts=3, n_machines=8, costs="host.json"))
    assert "no measurement" not in part
    assert "scaled up from 5.00 % of the contents of 3 of 8 host(s)" in " ".join(part.split())
    assert all(len(line) <= 100 for line in part.splitlines())


def test_a_sample_of_the_contents_is_scaled_up(
        quickstart: tuple[Scenario, list[FleetHost]]) -> None:
    scenario, (host,) = quickstart
    whole = suggest(scenario, [host], Wishes())
    # What counts a whole host as a quarter must say four times as much.
    quarter = suggest(scenario, [replace(host, content_share=0.25)], Wishes())
    assert quarter.saved_bytes[-1] == pytest.approx([4 * n for n in whole.saved_bytes[-1]])
    assert quarter.costs[-1].n_pages == 4 * whole.costs[-1].n_pages
    fleet = suggest(scenario, iter([host]), Wishes(), n_machines=4)
    assert fleet.saved_bytes[-1] == pytest.approx([4 * n for n in whole.saved_bytes[-1]])
    assert fleet.costs[-1].merge_ns == pytest.approx(4 * whole.costs[-1].merge_ns)
    with pytest.raises(UsageError, match="samples of different shares"):
        suggest(scenario, [host, replace(host, content_share=0.25)], Wishes())
    limited = Wishes(most_unmerge_bytes=4 * whole.saved_bytes[-1][1] - 4096 * 8)
    assert len(suggest(scenario, [replace(host, content_share=0.25)], limited).saved_bytes) == 1


FLEET = """planner: 1
name: small-fleet
seed: 5
horizon: 10min
hosts: [{name: node, count: 3, memory: 4GiB, cores: 8}]
placement: spread
workloads:
  - {name: web, trace: TRACE, select: {role: nginx}, count: 9, memory: 256MiB,
     domain: "tenant-{1..2}"}
domains: {sensitive: [tenant-2]}
policies:
  - {name: off, merge: never}
  - {name: domain, partition_by: domain, merge: {sync: {at: [boot]}}}
"""


def test_a_fleet_of_drawn_guests_is_searched_by_a_sample_of_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace("TRACE", str(Path("traces/qemu-guests").resolve())))
    scenario = load_scenario(path)
    found = {}
    for most_pages in (10**9, 130_000):
        monkeypatch.setattr(search, "_PAGES", most_pages)
        machines, n_machines = drawn_machines(scenario)
        found[most_pages] = suggest(scenario, machines, Wishes(may_join_sensitive=True),
                                    n_machines=n_machines)
    whole, part = found.values()
    assert (whole.n_hosts, whole.n_machines, whole.content_share) == (3, 3, 1.0)
    assert 0.2 < part.content_share < 0.3
    assert [item.groups for item in part.partitionings] == [
        ((0,), (1,)), ((0, 1),)] == [item.groups for item in whole.partitionings]
    for (_, all_bytes, _), (_, some_bytes, _) in zip(whole.saved_bytes, part.saved_bytes,
                                                     strict=True):
        assert some_bytes == pytest.approx(all_bytes, rel=0.1)
    assert part.costs[0].merge_ns == pytest.approx(whole.costs[0].merge_ns, rel=0.1)
    monkeypatch.setattr(search, "_MACHINES", 2)
    machines, n_machines = drawn_machines(scenario)
    two = suggest(scenario, machines, Wishes(), n_machines=n_machines)
    assert (two.n_hosts, two.n_machines) == (2, 3)
    # Guests are spread evenly: any two machines stand for three.
    assert two.saved_bytes[0][1] == pytest.approx(whole.saved_bytes[0][1], rel=0.25)
