"""The page, the Markdown and the verdict of fleets and replicates."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner.errors import DataError
from planner.metrics import Result
from planner.report import render_html, render_text
from planner.report.chart_base import look
from planner.report.charts import charts
from planner.report.facts import gather, recommended, refused
from planner.report.markdown import render_markdown
from planner.report.plan_charts import cpu_parts
from planner.report.plan_view import PlanView, plan_view
from planner.report.redact import redacted
from planner.report.series import MAX_TIMES
from planner.report.verdict import verdict
from planner.scenario.spec import RequireSpec
from tests.report_data import make_details, make_result
from tests.report_fleet_data import (
    HORIZON_NS,
    NOTES,
    POLICIES,
    make_fleet,
    make_sweep,
    short_of_memory,
    with_plan,
)
from tests.test_report import HOSTILE, NASTY, Page, compiled
from tests.test_report_page import section, tables

GIB = 1 << 30
CHARTS = ["over-time", "exposure", "where", "hosts-needed", "cpu-kinds", "per-core-hour",
          "waterfall-1", "waterfall-2", "time-to-merge", "undone", "headroom", "sensitivity"]


def details() -> dict[str, Any]:
    return make_details([(p[0], p[1], p[2], 400, 20) for p in POLICIES])


def viewed(result: Result) -> PlanView:
    view = plan_view(result, gather(result))
    assert view is not None
    return view


RESULTS = {
    "usual": make_fleet,
    "one replicate": lambda: make_fleet(n_replicates=1),
    "one policy": lambda: make_fleet(POLICIES[:1]),
    "twelve policies": lambda: make_fleet([POLICIES[0], *(
        (f"p{i}", *POLICIES[1][1:]) for i in range(11))], n_replicates=2),
    "saves less than nothing": lambda: make_fleet(
        [POLICIES[0], ("loss", "ksmd", "none", -0.05, 3.0, 0, 4)]),
    "fits only while merged": short_of_memory,
    "no samples in time": lambda: replace(make_fleet(), series=make_fleet().series.slice(0, 0)),
    "a replay with replicates": lambda: with_plan(
        make_fleet(notes=()), is_drawn=False, n_machines=1, is_sampled=False),
    "hostile": lambda: make_fleet([(name, *POLICIES[1][1:]) for name in NASTY[:4]],
                                  n_replicates=2, notes=tuple(NASTY)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_chart_of_a_fleet_compiles(name: str) -> None:
    specs = charts(RESULTS[name]())
    assert {"over-time", "exposure", "where", "undone"} <= set(specs)
    for spec in specs.values():
        svg = compiled(spec)
        assert svg.startswith("<svg")
        assert "NaN" not in svg


@pytest.mark.parametrize("name", RESULTS)
def test_every_fleet_has_a_page_with_the_charts_it_has(name: str) -> None:
    result = RESULTS[name]()
    html = render_html(result)
    page = Page(html)
    assert page.tags[-1][0] == "script"
    assert [attrs["id"] for tag, attrs in page.tags if tag == "figure"] == list(charts(result))
    cells = [cell for table in page.tables for row in table for cell in row]
    assert not [cell for cell in cells if re.search(r"None|nan\b|inf\b", cell)]


def test_a_fleet_with_all_there_is_has_all_charts_in_the_order_of_the_page() -> None:
    result = make_fleet()
    assert list(charts(result, details=details())) == CHARTS
    html = render_html(result, details())
    assert re.findall(r'<figure class="figure" id="([^"]+)"', html) == CHARTS


def test_a_policy_has_one_colour_in_all_charts_and_tables_of_a_fleet() -> None:
    result = make_fleet()
    expected = {s.label: look(s.index).colour for s in gather(result).strategies}
    n_scales = 0
    for spec in charts(result).values():
        for layer in (spec, *spec.get("layer", ())):
            for channel in ("color", "fill", "stroke"):
                scale = layer.get("encoding", {}).get(channel, {}).get("scale")
                if scale:
                    n_scales += 1
                    assert dict(zip(scale["domain"], scale["range"], strict=True)) == expected
    assert n_scales > 10
    html = render_html(result)
    for label, colour in expected.items():
        assert set(re.findall(r'background:(#\w+)"></i>' + re.escape(label), html)) == {colour}


def test_bands_hold_ninety_percent_of_the_replicates_at_each_time() -> None:
    result = make_fleet()
    times, bands = viewed(result).bands("saved_bytes")
    rows = result.series.to_pylist()
    assert times == sorted({row["time_ns"] for row in rows})
    for index in (1, len(times) // 2, len(times) - 1):
        values = [row["saved_bytes"] for row in rows
                  if row["policy"] == "sync-domain" and row["time_ns"] == times[index]]
        assert len(values) == 5
        band = bands["sync-domain"][index]
        assert [band.low, band.median, band.high] == pytest.approx(
            np.quantile(values, [0.05, 0.5, 0.95]))
    ends, rates = viewed(result).rates("cow_breaks")
    assert ends == times[1:]
    first = [row["cow_breaks"] for row in rows
             if row["policy"] == "ksmd-global" and row["replicate"] == 0]
    step_s = (times[1] - times[0]) / 1e9
    alone = type(result.series).from_pylist([row for row in rows if row["replicate"] == 0],
                                            schema=result.series.schema)
    one = viewed(replace(result, series=alone)).rates("cow_breaks")[1]
    assert [band.median for band in one["ksmd-global"]] == pytest.approx(np.diff(first) / step_s)
    assert len(rates["off"]) == len(ends)


def test_of_many_times_the_series_is_thinned_evenly() -> None:
    result = make_fleet(POLICIES[:2], n_replicates=1)
    rows = [{**row, "time_ns": row["time_ns"] * 40 + i * HORIZON_NS // 37}
            for row in result.series.to_pylist() for i in range(40)]
    long = replace(result, series=type(result.series).from_pylist(
        rows, schema=result.series.schema))
    times, bands = viewed(long).bands("saved_bytes")
    assert len(times) == MAX_TIMES == len(bands["off"])
    assert (times[0], times[-1]) == (min(r["time_ns"] for r in rows),
                                     max(r["time_ns"] for r in rows))


# --- page ------------------------------------------------------------------------------------


def test_the_strategies_of_a_fleet_stand_in_a_table_with_both_intervals() -> None:
    page = Page(render_html(make_fleet()))
    table = page.tables[0]
    row = dict(zip(table[0], table[3], strict=True))
    assert row["strategymerges, by partition"] == "sync-domainrecommendedsync boot+60s, by domain"
    found = re.fullmatch(r"([\d.]+)\[([\d.]+), ([\d.]+)\]capture \[([\d.]+), ([\d.]+)\]",
                         row["savedGiB"])
    assert found is not None
    plan = viewed(make_fleet()).policies[2][1]
    saved, captured = plan["metrics"]["saved"], plan["saved_capture_interval_bytes"]
    assert [float(each) for each in found.groups()] == pytest.approx(
        [each / GIB for each in (saved["median"], saved["low"], saved["high"], *captured)],
        abs=0.05)
    assert row["hosts needed"] == "4"
    assert row["required"] == "✓ 2"
    assert table[2][table[0].index("cross-domainpages")] == "244 9601 pair of domains"
    text = section(render_html(make_fleet()), "strategies")
    assert "[ ] holds 90 % of 5 replicates" in text
    assert "6 refits on guests drawn again from those captured" in text
    one = section(render_html(make_fleet(n_replicates=1)), "strategies")
    assert "One replicate, so no interval over replicates" in one


def test_a_fleet_reads_without_scripts() -> None:
    result = make_fleet()
    html = render_html(result)
    page = Page(html)
    heads = [table[0] for table in page.tables]
    times = next(table for table in page.tables if table[0][0] == "timeh")
    assert times[0][1:] == [p[0] for p in POLICIES]
    assert len(times) == 1 + len(viewed(result).bands("saved_bytes")[0])
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", times[-1][2])
    (hosts,) = tables(html, "strategy")[3:4]
    assert hosts[0][-1] == "replicates that fit, by hosts"
    assert hosts[2][-1] == "1: 0 %, 2: 80.0 %, 3: 100 %"
    assert any("net" in head for head in heads)
    assert "a host: 14500 EUR; written off over 4 years" in section(html, "hosts")
    merged = next(table for table in page.tables if "ever merged" in table[0])
    assert merged[1][:2] == ["ksmd-global", "84.0 s"]
    assert merged[1][-3:] == ["never", "91.7 %", "120"]
    storms = next(table for table in page.tables if "memory they took" in table[0])
    assert storms[1][1] == "r750-0002"
    effects = next(table for table in page.tables if "for 1 % more" in table[0])
    assert effects[1][:2] == ["ksmd-global", "memory with common contents"]
    cpu = next(table for table in page.tables if "callers" in table[0])
    assert cpu[2][1:3] == ["15.0 min", "0 s"]
    assert [row[3] for row in next(t for t in page.tables if "is uncharged" in t[0])[1:]] == [
        "yes", "no"]


def test_what_only_replays_can_tell_is_left_out_of_a_fleet_without_a_word() -> None:
    html, told = render_html(make_fleet()), render_html(make_fleet(), details())
    for name in ("waterfall", "sharing", "diagnosis"):
        assert f'<section id="{name}"' not in html
        assert f'<section id="{name}"' in told
    assert "--details" not in html


def test_requirements_have_ticks_also_in_a_single_replay() -> None:
    html = render_html(make_fleet())
    (table,) = (t for t in Page(html).tables if "required" in t[0] and "held" in t[0])
    assert [(row[0], row[1], row[2]) for row in table[1:]] == [
        ("sync-domain", "saved >= 5.00 %", "✓\N{NO-BREAK SPACE}yes"),
        ("sync-domain", "cross_domain_pages <= 0", "✓\N{NO-BREAK SPACE}yes"),
        ("ksmd-global", "cross_domain_pages <= 100", "✗\N{NO-BREAK SPACE}no")]
    single = make_fleet(n_replicates=1)
    replay = replace(make_result(), plan={**(single.plan or {}), "is_drawn": False})
    assert plan_view(replay, gather(replay)) is None
    text = render_html(replay)
    assert "✗\N{NO-BREAK SPACE}no" in section(text, "requirements")
    assert "One replay of what was captured, so no interval" in text
    assert 'id="requirements"' not in render_html(make_result())


def test_a_plan_of_one_replay_changes_nothing_else_on_its_page() -> None:
    plan = {**(make_fleet(n_replicates=1).plan or {}), "is_drawn": False, "requirements": [],
            "policies": []}
    assert render_html(replace(make_result(), plan=plan), make_details()) \
        == render_html(make_result(), make_details())


def test_how_far_a_fleet_is_extrapolated_and_sampled_stands_near_the_top() -> None:
    html = render_html(make_fleet())
    box = section(html, "reach")
    assert html.index('id="reach"') < html.index('id="warnings"') < html.index('id="strategies"')
    for note in NOTES:
        assert html.count(f"<li>{note}</li>") == 1
        assert note in box
    assert "3 of 4 hosts with guests, 5.00 % of contents" in box
    assert "99 % of hosts have, are of those simulated" in box
    assert "x1000" not in section(html, "warnings")
    bare = with_plan(make_fleet(notes=()), is_sampled=False)
    assert 'id="reach"' not in render_html(bare)
    (errors,) = (t for t in Page(html).tables if "standard error of saved" in t[0])
    assert errors[1] == ["ksmd-global", "1", "1.00 %", "977 KiB", "–"]


def test_incidents_are_marked_and_listed() -> None:
    result = make_fleet()
    layers = charts(result)["over-time"]["layer"]
    marked = [layer["data"]["values"] for layer in layers if layer["mark"]["type"] == "text"]
    assert marked == [[{"time": 1.0, "what": "drained"}, {"time": 2.0, "what": "failed"}]]
    shade = next(layer for layer in layers if layer["mark"]["type"] == "rect")
    assert shade["data"]["values"] == [{"from": 0, "to": 0.5}]
    (table,) = (t for t in Page(render_html(result)).tables if "incident" in t[0])
    assert table[1:] == [["60.0 min", "drained", "r750-0002", "12", "0"],
                         ["2h00min", "failed", "r750-0004", "9", "2"]]
    calm = replace(result, run={**result.run, "replicates": []})
    assert "Incidents" not in render_html(calm)


def test_splitting_is_taken_off_the_cpu_it_is_part_of() -> None:
    cpu = {"scanner_cpu_ns": 70, "caller_cpu_ns": 30, "split_cpu_ns": 12, "merging_cpu_ns": 8,
           "cow_cpu_ns": 5, "unmerge_cpu_ns": None}
    assert cpu_parts(cpu) == {"scanning": 80, "merging": 8, "splitting": 12, "cow": 5,
                              "unmerging": 0}
    assert cpu_parts(dict.fromkeys(cpu)) == {}
    assert "cpu-kinds" not in charts(with_plan(make_fleet(), policies=[
        {**each, "cpu": dict.fromkeys(cpu)} for each in (make_fleet().plan or {})["policies"]]))


def test_a_fleet_that_fits_only_while_merged_says_so_everywhere() -> None:
    result = short_of_memory()
    html = render_html(result)
    assert "the fleet fits only while merged" in section(html, "verdict")
    assert "! only while merged, in 5 of 5 replicates" in section(html, "unmerge")
    axis = charts(result)["headroom"]["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert axis[0] < 0 < axis[1]
    (table,) = (t for t in Page(html).tables if t[0][0] == "strategy" and "fits" in t[0])
    assert [row[-1][:20] for row in table[2:]] == ["! only while merged,"] * 2
    fits = render_html(make_fleet())
    assert "only while merged" not in section(fits, "verdict")
    assert "! only while merged" not in section(fits, "unmerge")


# --- verdict ---------------------------------------------------------------------------------


def test_the_verdict_of_a_fleet_tells_hosts_money_and_intervals() -> None:
    text = " ".join(verdict(gather(make_fleet())))
    assert re.match(r"sync-domain saves [\d.]+ GiB \[[\d.]+ GiB, [\d.]+ GiB\] \(12\.\d %\) of the "
                    r"200 GiB its guests use and shares no page across domains, for 0\.02 % of all "
                    "cores", text)
    assert "4 hosts are enough at 80.0 % confidence where off needs 5, and it brings " in text
    assert "1 of 3 requirements failed: ksmd-global cross_domain_pages <= 100" in text
    assert "the spread between runs" not in text
    assert "the worst host (r750-0004) would have" in text
    single = " ".join(verdict(gather(make_fleet(n_replicates=1))))
    assert "the spread between runs (this is one run)" in single


def test_a_strategy_that_fails_its_requirement_is_not_recommended() -> None:
    result = make_fleet(require=(
        RequireSpec("ksmd-global", "saved", at_least=0.9, is_share=True),
        RequireSpec("sync-domain", "saved", at_least=0.5, is_share=True)))
    facts = gather(result)
    assert refused(facts)["sync-domain"] == "requirement"
    assert recommended(facts) is None
    sentences = verdict(facts)
    assert sentences[0] == ("Do not enable merging as planned: sync-domain, the best strategy that "
                            "keeps domains apart, fails a requirement.")
    assert any(each.startswith("2 of 2 requirements failed: sync-domain saved >= 50.0 % (")
               for each in sentences)
    html = render_html(result, details())
    assert 'class="verdict negative"' in html
    assert "<h2>Why</h2>" not in html
    assert "recommended</small>" not in html


def test_a_strategy_that_costs_more_than_it_brings_is_not_recommended() -> None:
    result = make_fleet()
    plan = result.plan or {}
    lossy = [{**each, "money": {**each["money"], "net": -12.0}} for each in plan["policies"]]
    sentences = verdict(gather(with_plan(result, policies=lossy, requirements=[])))
    assert "costs more than it brings" in sentences[0]
    assert "and it costs 12 EUR a year" in sentences[2]
    nearly = [{**each, "money": {**each["money"], "net": -0.2}} for each in plan["policies"]]
    chosen = recommended(gather(with_plan(result, policies=nearly, requirements=[])))
    assert chosen is not None
    assert chosen.label == "sync-domain"


def test_where_guests_lack_memory_another_strategy_is_recommended() -> None:
    tight = (*POLICIES, ("tight", "sync boot+1s", "domain", 0.13, 20.0, 0, 3))
    result = make_fleet(policies=list(tight))
    plan = result.plan or {}
    assert (chosen := recommended(gather(result))) is not None
    assert chosen.label == "tight"

    def lacking(*names: str) -> list[dict[str, Any]]:
        return [{**each, "free": {**each["free"], "worst_bytes": -GIB}}
                if each["policy"] in names else each for each in plan["policies"]]

    chosen = recommended(gather(with_plan(result, policies=lacking("off", "tight"))))
    assert chosen is not None
    assert chosen.label == "sync-domain"
    # Where all lack memory, merging is still better than none.
    everywhere = gather(with_plan(result, policies=lacking("off", "tight", "sync-domain")))
    chosen = recommended(everywhere)
    assert chosen is not None
    assert chosen.label == "tight"
    assert any("the fleet does not fit" in each for each in verdict(everywhere))


def test_one_replicate_that_shares_across_domains_makes_a_strategy_unsafe() -> None:
    result = make_fleet()
    rows = result.replicates.to_pylist()
    for row in rows:
        if row["policy"] == "sync-domain" and row["replicate"] == 3:
            row["cross_domain_pages"] = 5
    changed = replace(result, replicates=type(result.replicates).from_pylist(
        rows, schema=result.replicates.schema))
    assert recommended(gather(result)) is not None
    assert recommended(gather(changed)) is None
    assert verdict(gather(changed))[0].startswith("Do not enable merging unless domains may share")


def test_terminal_and_markdown_give_the_same_verdict_and_ticks() -> None:
    result = make_fleet()
    terminal = " ".join(render_text(result, width=120, colour=False).split())
    markdown = render_markdown(result)
    for sentence in verdict(gather(result)):
        assert " ".join(sentence.split()) in terminal
    assert "| sync-domain | 6." in markdown
    assert "saved GiB/host" in markdown
    assert "- ✗ ksmd-global cross\\_domain\\_pages &#60;= 100 " in markdown
    assert markdown.count("Note: web: x1000") == 1


# --- sweeps ----------------------------------------------------------------------------------


def test_the_cases_of_a_sweep_stand_in_a_table_with_this_run_marked() -> None:
    result = make_fleet()
    html = render_html(result, sweep=make_sweep(result))
    (table,) = (t for t in Page(section(html, "sweep")).tables if "saved_zero" in t[0])
    assert table[0][:3] == ["strategy", "hosts.r750.count", "policies.ksmd-global.merge"]
    assert [row[:3] for row in table[1:]] == [
        *([p[0], "3", "slow"] for p in POLICIES),
        *([f"{p[0]}this run", "4", "fast"] for p in POLICIES)]
    assert table[1][-1] == "–"
    assert [row[-1] for row in table[4:]] == ["–", "1", "–"]
    assert "Which swept input matters most" in html
    assert 'id="sweep"' not in render_html(result)


@pytest.mark.parametrize("damage", [
    {"kind": "planner.plan"}, {"format_version": 2}, {"cases": 7}, {"cases": [{"inputs": {}}]},
    {"effects": [{}]}])
def test_a_document_that_is_no_sweep_is_refused(damage: dict[str, Any]) -> None:
    result = make_fleet()
    with pytest.raises(DataError, match="is not") as caught:
        render_html(result, sweep={**make_sweep(result), **damage})
    assert caught.value.where == "sweep.json"


# --- names, bytes, static --------------------------------------------------------------------

SECRETS = ("rack17", "acme-corp", "borealis-ag", "payroll")


def secret_fleet() -> Result:
    """A fleet whose machines, domains, workload and strategies bear names to be hidden."""
    result = make_fleet(
        [*POLICIES[:2], ("only-acme-corp", *POLICIES[2][1:])], host="rack17",
        domains=("acme-corp", "borealis-ag"), guest_bytes=66 * GIB,
        notes=("payroll: x1000 from 4 captured guests", "rack17-0003 stands for acme-corp"),
        require=(RequireSpec("only-acme-corp", "unmerge_headroom", at_least=0.0),))
    result.scenario["workloads"][0]["name"] = "payroll"
    result.run["replicates"][0]["rejected"] = ["payroll-later-1"]
    return result


def test_a_redacted_fleet_holds_no_name() -> None:
    sweep = make_sweep(secret_fleet())
    sweep["cases"][0]["inputs"] = {"hosts.rack17.count": 3,
                                   "workloads.payroll.image": "acme-corp"}
    open_page = render_html(secret_fleet(), sweep=sweep)
    for secret in SECRETS:
        assert secret in open_page
    for is_static in (False, True):
        html = render_html(secret_fleet(), sweep=sweep, is_redacted=True, is_static=is_static)
        for secret in SECRETS:
            assert secret not in html
    assert "host-1-0004" in section(html, "unmerge")
    assert "host-1-0002" in section(html, "savings")
    assert "host-1-0003 stands for domain-1" in section(html, "reach")
    assert "workload-1: x1000 from 4 captured guests" in section(html, "reach")
    assert "only-domain-1" in section(html, "requirements")
    assert "hosts.host-1.count" in section(html, "sweep")
    changed, _, _ = redacted(secret_fleet(), None, [])
    kept = [changed.plan, changed.run, changed.scenario, *(
        getattr(changed, name).to_pylist() for name in (
            "summary", "hosts", "partitions", "events", "replicates", "series"))]
    assert not any(secret in str(part) for secret in SECRETS for part in kept)
    assert changed.replicates.column("saved_bytes").equals(
        secret_fleet().replicates.column("saved_bytes"))
    for text in (render_text(changed, width=100, colour=False), render_markdown(changed)):
        assert not any(secret in text for secret in SECRETS)


def test_hostile_names_stay_text_in_the_page_of_a_fleet() -> None:
    policies = [(name, *POLICIES[1][1:]) for name in NASTY[:4]]
    result = make_fleet(policies, n_replicates=2, notes=(HOSTILE, *NASTY), require=(
        RequireSpec(NASTY[0], "saved", at_least=1.0),))
    run = result.run["replicates"][0]
    run["incidents"] = [{**each, "kind": HOSTILE, "host": "../\x1b" + HOSTILE}
                        for each in run["incidents"]]
    plan = result.plan or {}
    plan["policies"][0]["money"]["currency"] = HOSTILE
    for each in plan["policies"]:
        for storm in each["storms"]["listed"]:
            storm["host"] = NASTY[2] + HOSTILE
        each["headroom"]["host"] = HOSTILE
    plan["sensitivity"][0]["input"] = HOSTILE
    sweep = make_sweep(result)
    sweep["cases"][0]["inputs"] = {HOSTILE: NASTY[2]}
    html = render_html(result, sweep=sweep)
    own = html.split("<script>")[0]
    assert "<script>alert" not in html
    assert "<img" not in own
    assert not [c for c in own if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
    for is_static in (False, True):
        page = Page(render_html(result, is_static=is_static))
        assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]


def test_the_page_of_a_fleet_is_the_same_bytes_again_and_loads_nothing() -> None:
    html = render_html(make_fleet(), details(), sweep=make_sweep(make_fleet()))
    assert html == render_html(make_fleet(), details(), sweep=make_sweep(make_fleet()))
    page = Page(html)
    assert not [(tag, a) for tag, a in page.tags
                if {"src", "action", "data"} & set(a) or (a.get("href") or "#")[:1] != "#"]
    assert "default-src 'none'" in html
    static = Page(still := render_html(make_fleet(), details(), is_static=True))
    assert static.scripts == []
    assert [tag for tag, _ in static.tags].count("svg") == len(CHARTS)
    ids = re.findall(r'\bid="([^"]+)"', still)
    assert len(ids) == len(set(ids))
