"""The waterfall: it adds up, its lines are what a hand count gives, and it refuses other data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import planner
from planner.cli import main
from planner.errors import DataError, UsageError
from planner.explain import Waterfall, explain
from planner.metrics import Result
from planner.report.explain_text import render_waterfall
from planner.results import save
from planner.runner import run
from planner.scenario.spec import Ksmd, PolicySpec, Sync, Trigger
from planner.trace import PageColumns
from tests.scenario_builder import NEVER, SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

PAGE = 4096
AT_ONCE = Sync((Trigger("boot", 0, 0),))
POLICIES = (
    NEVER,
    PolicySpec("one", (), (), AT_ONCE),
    PolicySpec("domain", ("domain",), (), AT_ONCE),
    PolicySpec("guest", ("guest",), (), AT_ONCE),
    PolicySpec("without-blue", ("domain",), ((("domain", "blue"),),), AT_ONCE),
    PolicySpec("ksmd", (), (), Ksmd(pages_to_scan=1000, sleep_millisecs=20)),
)


def guests(*pages: list[PageColumns], region_flags: int | None = None) -> list[GuestPlan]:
    more: dict[str, Any] = {} if region_flags is None else {"region_flags": region_flags}
    return [GuestPlan(f"g{i}", {"tenant": ("red", "red", "blue")[i]}, [MmPlan(each, **more)])
            for i, each in enumerate(pages)]


@pytest.fixture
def result(tmp_path: Path) -> Result:
    """Guests g0, g1 of red and g2 of blue; page 5 of g0 becomes 6 between the snapshots."""
    path = build_trace(tmp_path / "trace", guests(
        [pages_of([1, 2, 0, 10, 5]), pages_of([1, 2, 0, 10, 6])],
        [pages_of([1, 3, 0, 11, 6])] * 2,
        [pages_of([1, 2, 0, 12, 1])] * 2))
    return run(scenario_for(path, POLICIES))


def pages(found: Waterfall) -> dict[str, int]:
    """Steps in pages; those in bytes that are no whole pages stay out."""
    return {step.key: step.n_bytes // PAGE for step in found.steps
            if step.key not in ("metadata", "saved", "host_memory")}


def test_every_line_is_what_a_count_by_hand_gives(result: Result) -> None:
    # In the end: 1 four times (g0, g1, g2, g2), 2 twice (g0, g2), 6 twice (g0, g1), three zero
    # pages, and 3, 10, 11, 12 once each.
    assert pages(explain(result, "one")) == {
        "in_use": 15, "eligible": 15, "zero": -3, "unique": -4, "stays": -3, "could_merge": 5,
        "written": -1}
    # Red and blue apart: 1 in g0, g1 | g2 twice; 2 in g0 | g2; 6 in g0, g1.
    assert pages(explain(result, "domain")) == {
        "in_use": 15, "eligible": 15, "zero": -3, "unique": -4, "stays": -3, "other_domain": -2,
        "could_merge": 3, "written": -1}
    # Every guest apart: of 1, the pair g0 - g1 is within a domain; of 6 as well.
    assert pages(explain(result, "guest")) == {
        "in_use": 15, "eligible": 15, "zero": -3, "unique": -4, "stays": -3,
        "other_partition": -2, "other_domain": -2, "could_merge": 1}
    # Blue's five pages are out: 2, 3, 10, 11 are alone then, 1 and 6 are pairs.
    assert pages(explain(result, "without-blue")) == {
        "in_use": 15, "excluded": -5, "eligible": 10, "zero": -2, "unique": -4, "stays": -2,
        "could_merge": 2, "written": -1}
    assert pages(explain(result, "off")) == {
        "in_use": 15, "eligible": 15, "zero": -3, "unique": -4, "stays": -3, "could_merge": 5,
        "never": -5}


@pytest.mark.parametrize("policy", [policy.name for policy in POLICIES])
def test_the_steps_add_up_to_what_the_result_says_was_saved(result: Result, policy: str) -> None:
    steps = explain(result, policy).steps
    row = next(r for r in result.summary.to_pylist() if r["policy"] == policy)
    start = next(i for i, step in enumerate(steps) if step.key == "in_use")
    total = steps[start].n_bytes
    for step in steps[start + 1:]:
        if step.is_total:
            assert step.n_bytes == total, step.key
        else:
            total += step.n_bytes
    assert total == row["saved_bytes"]
    assert steps[-1].key == "saved"
    assert steps[start].n_bytes == row["guest_memory_bytes"]


def test_what_was_not_advised_and_what_cannot_merge_stand_apart(tmp_path: Path) -> None:
    from planner.trace import RegionFlag

    plans = guests([pages_of([1, 2])], region_flags=int(RegionFlag.ADVISED))
    plans += [GuestPlan("plain", {"tenant": "red"}, [MmPlan([pages_of([1, 2, 3])],
                                                           region_flags=0)]),
              GuestPlan("shared", {"tenant": "red"}, [MmPlan(
                  [pages_of([1])], region_flags=int(RegionFlag.MAYSHARE | RegionFlag.ADVISED))])]
    path = build_trace(tmp_path / "t", plans)
    found = pages(explain(run(scenario_for(path, POLICIES[:2], horizon_ns=SECOND)), "one"))
    assert (found["in_use"], found["not_advised"], found["cannot_merge"], found["eligible"]) == (
        6, -3, -1, 2)


def test_the_limit_of_sharing_is_not_taken_for_writes(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", guests([pages_of([7] * 10)] * 2))
    few = PolicySpec("few", (), (), Ksmd(pages_to_scan=1000, sleep_millisecs=20,
                                         max_page_sharing=2))
    found = pages(explain(run(scenario_for(path, (NEVER, few))), "few"))
    assert found["could_merge"] == 9
    assert "written" not in found
    assert found["not_merged"] == -4  # ten pages in chains of two: five frames stay


def test_a_trace_that_moved_is_found_by_its_digest(result: Result, tmp_path: Path) -> None:
    shutil.move(tmp_path / "trace", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"not there any more.*--trace DIR"):
        explain(result, "one")
    assert explain(result, "one", traces=[tmp_path / "elsewhere"]).steps[-1].key == "saved"


def test_another_trace_in_its_place_is_refused(result: Result, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "trace")
    build_trace(tmp_path / "trace", guests([pages_of([1])] * 2, [pages_of([1])] * 2,
                                           [pages_of([1])] * 2))
    with pytest.raises(DataError, match="not the one that the scenario was resolved with"):
        explain(result, "one")


def test_a_result_of_another_version_is_refused(result: Result) -> None:
    other = replace(result, run={**result.run, "versions": {"planner": "9.9"}})
    with pytest.raises(DataError, match=r"planner 9\.9, this is .*run the scenario again"):
        explain(other, "one")


def test_a_result_whose_figures_were_changed_is_refused(result: Result) -> None:
    rows = result.summary.to_pylist()
    for row in rows:
        row["guest_memory_bytes"] += PAGE
    other = replace(result, summary=pa.Table.from_pylist(rows, schema=result.summary.schema))
    with pytest.raises(DataError, match="the result was altered"):
        explain(other, "one")


def test_a_policy_that_is_not_there_is_a_usage_error(result: Result) -> None:
    with pytest.raises(UsageError, match="did you mean 'domain'"):
        explain(result, "domian")


def test_the_command_prints_the_waterfall_and_its_json(
        result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(result, tmp_path / "r", texts={})
    assert main(["explain", str(path), "--policy", "domain"]) == 0
    out = capsys.readouterr().out
    assert "twin is in another domain's partition: the price of partitioning" in out
    assert "Most of what another policy could change" in out
    assert main(["explain", str(path), "--policy", "domain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format_version"], document["kind"]) == (1, "planner.waterfall")
    assert render_waterfall(document, width=100, colour=False) == out
    assert main(["explain", str(path), "--policy", "none"]) == 2
    assert main(["explain", str(path.parent), "--policy", "none"]) == 3
    assert "name one, such as" in capsys.readouterr().err


def test_the_shipped_guests_lose_to_the_tenant_boundary_what_the_trace_says(
        tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    from planner.traceinfo import trace_info

    trace = planner.open_trace(root / "traces" / "container-host")
    scenario = scenario_for(trace.path, (NEVER, PolicySpec("t", ("tenant",), (), AT_ONCE)),
                            horizon_ns=trace.span_ns)
    found = pages(explain(run(scenario), "t"))
    counts = next(b for b in trace_info(trace, advised_only=True).boundaries
                  if b.label == "tenant")
    # Pages that come and go within the capture keep the frame they had: within 1 %.
    assert -found["other_domain"] == pytest.approx(counts.n_duplicates_lost, rel=0.01)
    assert found["could_merge"] == pytest.approx(counts.n_duplicates_kept, rel=0.01)


@pytest.mark.parametrize("costs", [None, "x", {}, {"builtin:unmeasured": {"unique_ns": 1}}])
def test_a_result_without_its_costs_is_refused(result: Result, costs: object) -> None:
    assert explain(result, "one").policy == "one"
    altered = replace(result, run={**result.run, "costs_ns": costs, "timings": [{"a": 1}]})
    with pytest.raises(DataError, match="lacks costs"):
        explain(altered, "one")
