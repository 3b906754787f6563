"""From outcomes to what is told: requirements, money, sensitivity, the plan, its text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.errors import DataError, UsageError
from planner.measures import METRICS
from planner.metrics import REPLICATES, SERIES
from planner.planning import (
    effects,
    inputs_of,
    outcome,
    plan,
    points_of,
    safe_shares,
    sweep_document,
)
from planner.planning.money import HOURS_PER_YEAR, Use, money, slowdown_share
from planner.planning.requirements import check, value_of
from planner.planning.sensitivity import AtRest, Point, at_rest_effects, at_rest_of
from planner.report.plan_text import found_text
from planner.report.sweep_text import render_sweep_text
from planner.report.text import render_json, render_text
from planner.results import load, save
from planner.scenario.spec import CostsSpec, RequireSpec
from tests.planning_data import GIB, HOUR, fleet, fleet_scenario, sample, samples, simple_outcome
from tests.report_data import make_result, table

YEAR_NS = int(HOURS_PER_YEAR * HOUR)


def rows(*saved: int, **columns: Any) -> list[dict[str, Any]]:
    return [simple_outcome("p", i, each, **columns).row for i, each in enumerate(saved)]


def require(metric: str = "saved", **bounds: Any) -> RequireSpec:
    return RequireSpec("p", metric, **bounds)


def test_every_metric_is_a_column_of_the_table_and_so_is_its_whole() -> None:
    names = set(REPLICATES.schema.names)
    for name, measure in METRICS.items():
        assert measure.column in names, name
        assert not measure.whole_column or measure.whole_column in names, name


def test_a_requirement_holds_where_enough_replicates_meet_it() -> None:
    found = rows(*(i * GIB for i in range(20)))
    held = check(require(at_least=2 * GIB, confidence=0.95), found)
    assert held.is_held
    assert (held.n_held, held.n_replicates) == (19, 20)
    assert held.sure_of == 2 * GIB
    assert held.value == 19 * GIB
    assert (held.worst, held.worst_replicate) == (0, 0)
    assert not check(require(at_least=2 * GIB + 1, confidence=0.95), found).is_held
    assert check(require(at_most=36 * GIB, confidence=0.95), found).sure_of == 36 * GIB
    assert not check(require(at_most=36 * GIB, confidence=1.0), found).is_held


def test_a_share_is_of_the_metrics_whole() -> None:
    found = rows(GIB)
    assert value_of(found[0], "saved", is_share=True) == pytest.approx(1 / 8)
    assert check(require(at_least=0.12, is_share=True), found).is_held
    assert not check(require(at_least=0.13, is_share=True), found).is_held
    with pytest.raises(UsageError, match="no share"):
        value_of(found[0], "cow_breaks", is_share=True)
    with pytest.raises(UsageError, match="no metric"):
        value_of(found[0], "profit")
    with pytest.raises(UsageError, match="bound"):
        check(require(), found)


def test_what_is_not_known_does_not_hold() -> None:
    found = rows(GIB, GIB)
    found[1]["time_to_90_ns"] = None
    verdict = check(require("time_to_90", at_most=HOUR, confidence=1.0), found)
    assert not verdict.is_held
    assert verdict.worst is None
    assert verdict.worst_replicate == 1
    assert not check(require(at_least=0), []).is_held


USE = Use(hosts_saved=3, saved_bytes=100 * GIB, merge_cpu_ns=HOUR // 10, core_time_ns=8 * HOUR,
          window_ns=HOUR, split_share=0.25)


def test_money_counts_whole_hosts_and_power_less_cpu() -> None:
    costs = CostsSpec(host_price=4000, host_lifetime_ns=4 * YEAR_NS, host_power_w=500,
                      electricity_price=0.2, cpu_price=0.01, memory_price=4)
    found = money(costs, USE)
    assert found is not None
    assert found.hosts == pytest.approx(3000)
    assert found.power == pytest.approx(3 * 0.5 * HOURS_PER_YEAR * 0.2)
    assert found.cpu == pytest.approx(-0.1 * HOURS_PER_YEAR * 0.01)
    assert found.memory == pytest.approx(100)
    assert found.power is not None
    assert found.cpu is not None
    # The memory is in the hosts already.
    assert found.net == pytest.approx(3000 + found.power + found.cpu)


def test_memory_counts_where_hosts_have_no_price_or_number() -> None:
    costs = CostsSpec(host_price=4000, host_lifetime_ns=4 * YEAR_NS, memory_price=4)
    found = money(costs, replace(USE, hosts_saved=None))
    assert found is not None
    assert found.hosts is None
    assert found.net == pytest.approx(100)


def test_nothing_is_told_where_a_price_is_missing() -> None:
    assert money(CostsSpec(), USE) is None
    assert money(CostsSpec(host_price=4000), USE) is None
    only_cpu = money(CostsSpec(cpu_price=0.01), USE)
    assert only_cpu is not None
    assert only_cpu.net is None


def test_split_huge_pages_slow_guests_down_in_proportion() -> None:
    costs = CostsSpec(cpu_price=0.01, huge_page_slowdown=0.08)
    assert slowdown_share(costs, USE) == pytest.approx(0.02)
    found = money(costs, USE)
    assert found is not None
    assert found.slowdown == pytest.approx(-0.02 * 8 * HOURS_PER_YEAR * 0.01)
    assert slowdown_share(CostsSpec(), USE) is None
    assert slowdown_share(costs, replace(USE, split_share=None)) is None


def test_main_effects_rank_what_was_swept() -> None:
    cases = [Point({"count": n, "scan": scan}, {"p": 10.0 * n + scan / 100})
             for n in (1, 2, 4) for scan in (100, 200)]
    found = effects(cases)
    assert [effect.input for effect in found] == ["count", "scan"]
    assert found[0].swing == pytest.approx(30)
    assert (found[0].low_at, found[0].high_at) == (1, 4)
    assert found[1].swing == pytest.approx(1)
    power = effects([Point({"x": x}, {"p": 3 * x**0.5}) for x in (1, 2, 9)])
    assert power[0].elasticity == pytest.approx(0.5)
    words = effects([Point({"by": by}, {"p": v}) for by, v in (("none", 2.0), ("domain", 1.0))])
    assert words[0].elasticity is None
    assert effects([Point({"x": 1}, {"p": 1.0})]) == []


def test_the_closed_form_is_what_pencil_and_paper_give() -> None:
    base = AtRest(memory_bytes=4096 * 1e6, common_share=0.4, copies=4, write_rate_per_s=0.01,
                  merge_delay_s=100, huge_share=0.5)
    # Half is offered, 0.2 of all is common, merged half of the time, of four copies one stays.
    records = 0.5e6 * 64 + 0.2e6 / 4 * 64
    assert base.saved_bytes == pytest.approx(4096 * 1e6 * 0.2 / 2 * 3 / 4 - records)
    found = {effect.input: effect for effect in at_rest_effects("p", base)}
    assert next(iter(found)) in ("common_share", "huge_share")
    assert found["common_share"].elasticity is not None
    assert found["common_share"].elasticity > 1
    assert found["write_rate_per_s"].elasticity == pytest.approx(-0.5, abs=0.15)


def test_the_closed_form_agrees_with_the_row_it_stands_for() -> None:
    row = {**simple_outcome("p", 0, GIB).row, "pages_shared": 10_000, "pages_sharing": 400_000,
           "cow_breaks": 5_000}
    base = at_rest_of(row, HOUR)
    assert base is not None
    assert base.saved_bytes == pytest.approx(row["saved_bytes"], rel=1e-6)
    assert base.copies == 41
    assert at_rest_of({**row, "pages_shared": 0}, HOUR) is None
    assert at_rest_of({**row, "saved_bytes": row["guest_memory_bytes"]}, HOUR) is None


def make_outcomes(n: int = 10) -> list[Any]:
    found = []
    for i in range(n):
        found += [
            simple_outcome("off", i, 0, hosts_needed=40),
            simple_outcome("domain", i, (10 + i) << 26, hosts_needed=36 + i % 2),
            simple_outcome("all", i, (12 + i) << 26, hosts_needed=35 if i else 37, memory=10 * GIB,
                           headroom_worst_bytes=-GIB if i == 3 else GIB,
                           cross_domain_pages=500, huge_splits=300)]
    found += [simple_outcome("domain", 0, (40 + i) << 26, resample=i) for i in range(5)]
    return found


COSTS = CostsSpec(host_price=4000, host_lifetime_ns=4 * YEAR_NS, huge_page_slowdown=0.1)


def make_plan(n: int = 10, **changes: Any) -> dict[str, Any]:
    scenario = fleet_scenario("off", "domain", "all", **{
        "costs": COSTS,
        "require": (RequireSpec("domain", "saved", at_least=0.05, is_share=True),
                    RequireSpec("all", "unmerge_headroom", at_least=0.0),
                    RequireSpec("domain", "cross_domain_pages", at_most=0.0)), **changes})
    return plan(scenario, make_outcomes(n), digest="4f1c9a" * 10 + "0000",
                notes=["x1000 from 128 MiB guests over 6 minutes"])


def policy_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["policies"] if each["policy"] == name)
    return found


def test_a_plan_tells_hosts_money_and_what_is_safe() -> None:
    document = make_plan()
    domain = policy_of(document, "domain")
    assert domain["metrics"]["saved"]["median"] == 14.5 * (2 << 26)
    assert domain["metrics"]["saved"]["low"] < domain["metrics"]["saved"]["high"]
    assert domain["hosts"]["needed"] == 37
    assert domain["hosts"]["fit"] == [[35, 0.0], [36, 0.5], [37, 1.0]]
    assert domain["hosts"]["safe_share"] == pytest.approx(10 / 128)
    assert domain["money"]["hosts_saved"] == 3
    assert domain["money"]["net"] == pytest.approx(3000)
    # Ten replicates bear out ten elevenths.
    assert domain["hosts"]["confidence"] == pytest.approx(10 / 11)
    assert not domain["hosts"]["is_backed"]
    low, high = domain["saved_capture_interval_bytes"]
    assert low < domain["metrics"]["saved"]["median"] < high
    # No captured guests are named here: plain quantiles of the refits.
    assert high - low == pytest.approx(0.9 * 4 * (2 << 26))
    assert policy_of(document, "all")["headroom"] == {
        "worst_bytes": -GIB, "host": "a", "time_ns": HOUR // 2, "replicate": 3, "n_short": 1}
    assert policy_of(document, "off")["headroom"] is None
    assert not document["is_sampled"]
    assert json.loads(json.dumps(document)) == document


def test_safe_shares_are_the_least_of_few_replicates() -> None:
    shares = safe_shares(make_outcomes(), 0.95)
    assert shares["off"] == 0
    assert shares["domain"] == pytest.approx(10 / 128)
    assert shares["all"] == pytest.approx(12 / 160)


def test_differences_are_paired_by_replicate() -> None:
    found = {(each["first"], each["second"], each["metric"]): each
             for each in make_plan()["differences"]}
    each = found["all", "domain", "saved"]
    assert each["mean"] == 2 * (2 << 26)
    assert each["low"] == each["high"] == each["mean"]
    assert each["verdict"] == "better"
    assert found["all", "off", "hosts_needed"]["verdict"] == "better"
    alone = make_plan(1)["differences"][0]
    assert (alone["low"], alone["verdict"]) == (None, "no difference shown")


def make_told(n: int = 10, **changes: Any) -> Any:
    policies = [("off", "never", "none", 0, 0, 0, 0, 0.0, None),
                ("domain", "sync boot+60s", "domain", 1856, 0, 0, 0, 3.1, 75),
                ("all", "ksmd", "none", 2112, 0, 500, 0, 3.1, 75)]
    document = make_plan(n, **changes)
    outcomes = make_outcomes(n)
    return replace(
        make_result(policies, guest_mib=16 << 10, sensitive=()), plan=document,
        replicates=table(REPLICATES, [each.row for each in outcomes]),
        series=table(SERIES, [row for each in outcomes for row in each.series]))


def test_the_terminal_tells_intervals_hosts_money_and_requirements() -> None:
    text = render_text(make_told(), width=160, colour=False)
    flat = " ".join(text.split())
    assert "10 replicates" in flat
    assert "6 guests on 2 hosts" in flat
    line = next(line for line in text.splitlines() if line.startswith("domain"))
    assert "928 [" in line
    assert " 37 " in line
    assert "3 000" in line
    assert "-1024 !" in next(line for line in text.splitlines() if line.startswith("all "))
    assert "✓ domain saved >= 5.00 % 11.3 % (in 10 replicates >= 7.81 %)" in flat
    assert "✗ all" in flat
    assert "at 90.9 % confidence (too few replicates for 95.0 %)" in flat
    assert "failed in 1 of 10 replicates, a, at 30.0 min" in flat
    assert "! all could not undo its merges within free memory (-1.00 GiB, a" in flat
    assert "3 policies compared, 1 of 3 requirements failed." in flat
    assert "leaves guests without" not in flat
    assert "x1000 from 128 MiB guests" in flat
    assert "all saves 256 MiB [256 MiB, 256 MiB] more than domain" in flat
    assert "splits 300 huge pages (600 MiB)" in flat
    assert "this is one run" not in flat


def test_what_was_never_reached_took_longer_than_all_else() -> None:
    def told(*times: int | None) -> dict[str, Any]:
        found: dict[str, Any] = plan(fleet_scenario("off"), [
            simple_outcome("off", i, GIB, merged_after_p95_ns=each)
            for i, each in enumerate(times)])["policies"][0]["metrics"]["time_to_merge"]
        return found

    assert told(1, 2, 3)["median"] == 2
    assert told(1, 2, 3)["low"] is not None
    found = told(2, 4, None)
    assert (found["median"], found["low"], found["high"], found["n"]) == (4, None, None, 2)
    assert told(2, 4, 6, None)["median"] == 5
    assert told(2, None)["median"] is None
    assert told(2, None, None)["median"] is None


def test_nobody_is_sure_of_more_than_the_replicates_bear_out() -> None:
    found = check(require(at_least=0, confidence=0.95), rows(*(GIB for _ in range(19))))
    assert found_text(found.to_json()) == "2.00 GiB (95.0 % sure of >= 2.00 GiB)"
    found = check(require(at_least=0, confidence=0.95), rows(*(GIB for _ in range(18))))
    assert found_text(found.to_json()) == "2.00 GiB (in 18 replicates >= 2.00 GiB)"


def test_a_fleet_that_does_not_fit_even_while_merged_is_told() -> None:
    told = make_told()
    told.plan["policies"][0]["free"] = {
        "worst_bytes": -GIB, "host": "a", "time_ns": HOUR, "replicate": 0}
    text = render_text(told, width=160, colour=False)
    assert "! off leaves guests without the memory that they use (-1.00 GiB, a, at 60.0 min)." \
        in text


def test_what_was_sampled_is_told_with_its_error() -> None:
    told = make_told()
    for outcome_row in told.plan["policies"]:
        outcome_row["saved_error_bytes"] = 10 << 20
    told.plan.update(n_hosts=1, content_share=0.25, is_sampled=True)
    flat = " ".join(render_text(told, width=160, colour=False).split())
    assert "Simulated: 1 of 2 hosts with guests, 25.0 % of contents; standard error of what is " \
           "saved at most 0.54 %." in flat
    assert "Simulated:" not in render_text(make_told(), width=160, colour=False)


def test_a_single_replay_looks_as_it_does_without_a_plan() -> None:
    result = make_result()
    scenario = fleet_scenario("off", fleet=None, warm_up_ns=0)
    document = plan(scenario, [simple_outcome("off", 0, 0)])
    told = render_text(replace(result, plan=document), width=100, colour=False)
    assert told == render_text(result, width=100, colour=False)
    wanted = plan(replace(scenario, require=(RequireSpec("off", "saved", at_least=1.0),)),
                  [simple_outcome("off", 0, 0)])
    text = render_text(replace(result, plan=wanted), width=100, colour=False)
    assert "✗ off  saved >= 1 B  0 B" in text
    assert "1 policy compared, its requirement failed." in text


def test_a_plan_is_kept_with_its_result(tmp_path: Path) -> None:
    result = make_told()
    again = load(save(result, tmp_path / "r", texts={}))
    assert again.plan == result.plan
    assert again.replicates.equals(result.replicates)
    assert again.series.equals(result.series)
    assert render_json(again)["plan"] == result.plan
    without = load(save(replace(result, plan=None), tmp_path / "s", texts={}))
    assert without.plan is None


@pytest.mark.parametrize("change", [
    {"format_version": 9}, {"policies": [{}]}, {"requirements": ["x"]}, {"differences": None}])
def test_an_altered_plan_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save(make_told(), tmp_path / "r", texts={})
    document = json.loads((path / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(DataError, match="plan"):
        load(path)


def test_a_sweep_is_a_table_and_a_ranking() -> None:
    swept = [(inputs_of([f"hosts.a.count={n}", "seed=x"]), make_plan(2),
              rows(n * GIB, 3 * n * GIB)) for n in (32, 36)]
    document = json.loads(json.dumps(sweep_document(swept)))
    assert [(row["inputs"], row["policy"]) for row in document["cases"]] == [
        ({"hosts.a.count": n, "seed": "x"}, policy)
        for n in (32, 36) for policy in ("off", "domain", "all")]
    assert [row["n_failed"] for row in document["cases"]][:3] == [0, 0, 0]
    assert document["cases"][1]["metrics"]["hosts_needed"]["median"] == 36.5
    assert [effect["input"] for effect in document["effects"]] == ["hosts.a.count"]
    text = render_sweep_text(document, width=160, colour=False)
    assert "2 cases." in text
    assert "p: hosts.a.count 32 -> 36: 128 GiB -> 144 GiB (+1.00 % per 1 %)" in text
    assert next(line for line in text.splitlines() if line.startswith("domain")).split()[1] == "32"


def test_effects_need_a_value_in_every_replicate() -> None:
    known = rows(GIB, 3 * GIB)
    assert points_of([({"n": 1}, known)])[0].values == {"p": 4 * GIB}
    assert points_of([({"n": 1}, known)], "hosts_needed")[0].values == {}
    assert inputs_of(["a=1", "b=2.5", "c=1GiB", "d=x=y"]) == {
        "a": 1, "b": 2.5, "c": "1GiB", "d": "x=y"}


def test_a_warm_up_that_is_too_short_is_told() -> None:
    rising = outcome("off", 0, fleet(horizon_ns=3 * HOUR), samples(*(
        sample("a", i * HOUR // 2, guest_memory_bytes=8 * GIB, saved_bytes=i * GIB)
        for i in range(7))))
    scenario = fleet_scenario("off", horizon_ns=3 * HOUR)
    assert any("still rise" in note for note in plan(scenario, [rising])["notes"])
    assert plan(scenario, [simple_outcome("off", 0, GIB)])["notes"] == []


def test_a_policy_that_was_not_run_fails_its_requirements() -> None:
    document = plan(fleet_scenario("off", "late", require=(
        RequireSpec("late", "saved", at_least=0.0),)), [simple_outcome("off", 0, 0)])
    assert [each["policy"] for each in document["policies"]] == ["off"]
    assert not document["requirements"][0]["is_held"]
    empty = plan(fleet_scenario("off"), [])
    assert (empty["policies"], empty["n_replicates"]) == ([], 0)
