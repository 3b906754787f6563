"""Comparing two results: inputs first, differences per policy, the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from planner.cli import main
from planner.compare import compare
from planner.metrics import REPLICATES, Result
from planner.report.compare_text import render_comparison_markdown, render_comparison_text
from planner.results import save
from tests.planning_data import simple_outcome
from tests.report_data import POLICIES, make_result, table


def changed(result: Result, policy: str, **columns: Any) -> Result:
    rows = [{**row, **columns} if row["policy"] == policy else row
            for row in result.summary.to_pylist()]
    return replace(result, summary=pa.Table.from_pylist(rows, schema=result.summary.schema))


def with_scenario(result: Result, **keys: Any) -> Result:
    return replace(result, scenario={**result.scenario, **keys})


def test_a_result_does_not_differ_from_itself() -> None:
    found = compare(make_result(), make_result())
    assert not found.is_different
    assert found.is_paired
    assert found.changes == ()
    assert {each.change for each in found.differences} <= {0, None}
    text = render_comparison_text(found.to_json(), width=100, colour=False)
    assert "Changed inputs: none" in text
    assert "all 4 policies in both came out alike" in text


def test_differences_are_after_minus_before() -> None:
    found = compare(make_result(), changed(make_result(), "sync-domain", saved_bytes=300 << 20,
                                           time_to_90_ns=None))
    by = {(each.policy, each.metric): each for each in found.differences}
    assert by["sync-domain", "saved_bytes"].change == (300 - 231) << 20
    assert by["sync-domain", "saved_bytes"].interval is None
    assert by["sync-domain", "time_to_90_ns"].change is None
    assert by["sync-group", "saved_bytes"].change == 0
    assert found.is_different
    text = render_comparison_text(found.to_json(), width=120, colour=False)
    assert "300 +69.0" in text
    assert "1 of 4 policies in both came out otherwise" in text
    assert "one run each: no interval" in text


def test_a_difference_too_small_to_show_is_not_shown_as_nothing() -> None:
    before = make_result()
    row = before.summary.to_pylist()[2]
    found = compare(before, changed(before, "sync-domain",
                                    saved_share=row["saved_share"] + 1e-6))
    line = next(line for line in render_comparison_text(found.to_json(), width=150,
                                                        colour=False).splitlines()
                if line.startswith("sync-domain"))
    assert "12.5 % ~" in line
    assert "231 =" in line


def test_changed_inputs_are_listed_by_name_not_by_place() -> None:
    before = make_result()
    policies = [{"name": "new"}, *reversed(before.scenario["policies"])]
    hosts = [{**before.scenario["hosts"][0], "memory_bytes": 16 << 30}]
    found = compare(before, with_scenario(before, policies=policies, hosts=hosts, seed=2))
    assert [(c.key, c.before, c.after) for c in found.changes] == [
        ("seed", 1, 2), ("hosts.lab.memory_bytes", 8 << 30, 16 << 30),
        ("policies.new", None, {"name": "new"})]
    assert not found.is_paired
    text = render_comparison_text(found.to_json(), width=100, colour=False)
    assert "hosts.lab.memory_bytes  8.00 GiB -> 16.0 GiB" in text
    assert "partly another draw" in text.replace("\n", " ")


def test_where_a_trace_lies_is_no_difference() -> None:
    before = make_result()
    workload = {**before.scenario["workloads"][0], "trace": "/elsewhere/guests"}
    assert not compare(before, with_scenario(before, workloads=[workload])).is_different


def test_policies_of_one_result_only_are_named() -> None:
    found = compare(make_result(POLICIES[:3]), make_result(POLICIES[1:]))
    assert (found.only_before, found.only_after) == (("never",), ("sync-group",))
    text = render_comparison_text(found.to_json(), width=100, colour=False)
    assert "Only in the first: never" in text
    assert "Only in the second: sync-group" in text


def test_a_change_of_many_guests_is_one_line() -> None:
    before = make_result()
    workload = dict(before.scenario["workloads"][0])
    workload["guests"] = [{**guest, "domain": "other"} for guest in workload["guests"]]
    found = compare(before, with_scenario(before, workloads=[workload]))
    assert found.n_changes == 12
    text = render_comparison_text(found.to_json(), width=100, colour=False)
    assert "workloads.guests.*.domain (4 guests)  tenant-a -> other" in text


def test_markdown_is_a_table_and_foreign_names_stay_text() -> None:
    nasty = "a|b<script>`x`\x1b[31m[y](z)"
    policies = [(nasty, *POLICIES[0][1:]), *POLICIES[1:]]
    before = make_result(policies, name=nasty)
    text = render_comparison_markdown(compare(
        before, changed(before, "sync-domain", saved_bytes=1)).to_json())
    assert "<" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert "| sync-domain | 231 → &#60;0.01 (-231) |" in text


@pytest.mark.parametrize(("form", "start"), [("text", "quickstart"), ("md", "###"), ("json", "{")])
def test_the_command_has_three_forms_and_an_exit_code(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, start: str) -> None:
    first = str(save(make_result(), tmp_path / "a", texts={}))
    second = str(save(changed(make_result(), "sync-domain", cow_breaks=1), tmp_path / "b",
                      texts={}))
    assert main(["compare", first, second, "--format", form]) == 0
    assert capsys.readouterr().out.startswith(start)
    assert main(["compare", first, second, "--format", form, "--exit-code"]) == 5
    assert main(["compare", first, first, "--exit-code"]) == 0


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(make_result(), tmp_path / "a", texts={}))
    assert main(["compare", path, path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format_version"], document["is_different"]) == (1, False)
    assert main(["compare", path, path, "--format", "xml"]) == 2
    assert "choose text, md, json" in capsys.readouterr().err


def with_replicates(result: Result, saved: list[int], policy: str = "sync-domain") -> Result:
    outcomes = [simple_outcome(policy, i, each, hosts_needed=40 - i % 2)
                for i, each in enumerate(saved)]
    return replace(result, replicates=table(REPLICATES, [each.row for each in outcomes]))


def test_replicates_make_a_difference_sure_or_not() -> None:
    saved = [(200 + 17 * (i % 5)) << 20 for i in range(10)]
    before = with_replicates(make_result(), saved)
    more = with_replicates(changed(make_result(), "sync-domain", saved_bytes=300 << 20),
                           [each + ((60 + i % 3) << 20) for i, each in enumerate(saved)])
    found = {each.metric: each for each in compare(before, more).differences
             if each.policy == "sync-domain"}
    saved_more = found["saved_bytes"]
    # Two hosts each save so much more.
    assert saved_more.change == pytest.approx(2 * 60.9 * (1 << 20))
    assert saved_more.interval is not None
    assert 2 * 60 << 20 < saved_more.interval[0] < saved_more.interval[1] < 2 * 62 << 20
    assert (saved_more.verdict, saved_more.n_replicates) == ("better", 10)
    assert found["hosts_needed"].change == 0
    text = render_comparison_text(compare(before, more).to_json(), width=200, colour=False)
    assert "300 +122 [+121, +123]" in text
    assert "10 paired replicates" in " ".join(text.split())
    assert "sync-domain better (95 %)" in " ".join(text.split())
    worse = {each.metric: each for each in compare(more, before).differences
             if each.policy == "sync-domain"}
    assert worse["saved_bytes"].verdict == "worse"


def test_a_difference_within_the_noise_is_not_shown() -> None:
    saved = [(200 + 17 * (i % 5)) << 20 for i in range(10)]
    noisy = [each + ((30 if i % 2 else -29) << 20) for i, each in enumerate(saved)]
    before = with_replicates(make_result(), saved)
    after = with_replicates(changed(make_result(), "sync-domain", saved_bytes=232 << 20), noisy)
    document = compare(before, after).to_json()
    assert "sync-domain no difference shown" in " ".join(
        render_comparison_text(document, width=200, colour=False).split())
    markdown = render_comparison_markdown(document)
    assert "231 → 232 (~)" in markdown
    assert "better" not in markdown


def test_results_that_are_not_paired_have_no_interval() -> None:
    saved = [(200 + i) << 20 for i in range(5)]
    before = with_replicates(make_result(), saved)
    after = with_scenario(with_replicates(make_result(), saved), seed=9)
    found = compare(before, after)
    assert not found.is_paired
    assert all(each.interval is None for each in found.differences)
    one = compare(before, make_result())
    assert all(each.interval is None for each in one.differences)
    assert {each.metric for each in one.differences}.isdisjoint({"hosts_needed"})
