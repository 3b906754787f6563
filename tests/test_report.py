from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.metrics import Result
from planner.report import render_html, render_json, render_text
from planner.report.chart_base import look
from planner.report.charts import charts, frontier, shortfall_bytes
from planner.report.facts import Strategy, best, clean, distinct, gather
from planner.report.page import script_json
from planner.report.sections import MAX_PARTITIONS
from planner.report.series import (
    MAX_RATES,
    MAX_TIMES,
    bursts,
    headrooms,
    rate_times,
    reached,
    read_samples,
)
from planner.report.text import render_trace_info
from planner.report.verdict import verdict
from planner.trace import open_trace
from planner.traceinfo import trace_info
from tests.report_data import HORIZON_NS, MIB, POLICIES, make_details, make_result
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

HERE = Path(__file__).parent
ROOT = HERE.parent
#: The Vega-Lite that is vendored for the reports.
VEGA_LITE = "6.4"
HOSTILE = "<script>alert(1)</script>"
NASTY = ["</script><script>alert(1)</script>", "../../etc/passwd", "\x1b[31mred\x07\r\n", "‮evil",
         "x" * 10_240, "x" * 10_241, '"><img src=x onerror=alert(1)>', "\x00", "{{ 7 * 7 }}"]


def hostile_result() -> Result:
    """Every text that a capture or a scenario can choose is hostile here."""
    policies = [(name, *POLICIES[1][1:]) for name in NASTY]
    result = make_result(policies, name=HOSTILE + "y" * 10_240, guest=HOSTILE,
                         timings=HOSTILE, assumptions=[HOSTILE, NASTY[4]])
    result.run["traces"][0]["path"] = "../\x1b" + HOSTILE
    result.run["versions"][HOSTILE] = HOSTILE
    names = result.partitions.to_pylist()
    for row in names:
        row.update(partition=HOSTILE, host="../\x1b" + HOSTILE, domains=[HOSTILE, *NASTY])
    partitions = type(result.partitions).from_pylist(names, schema=result.partitions.schema)
    return Result(result.scenario, result.run, result.summary, result.hosts, partitions,
                  result.events)


class Page(HTMLParser):
    """The elements of a page: `scripts`, `tables` as rows of cell texts, `text` without scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._raw = ""
        self._in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._raw = tag
            if tag == "script":
                self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == self._raw:
            self._raw = ""
        elif tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.text += data
            if self._in_cell:
                self.tables[-1][-1][-1] += data.strip()


def compiled(spec: dict[str, Any]) -> str:
    """The chart as SVG; raises ValueError where Vega-Lite or Vega refuse it."""
    return vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)


RESULTS = {
    "usual": make_result(),
    "one policy": make_result(POLICIES[:1]),
    "no policy": make_result([]),
    "no sample": make_result(n_samples=0),
    "twenty policies": make_result([(f"p{i}", *POLICIES[1][1:]) for i in range(20)]),
    "less than nothing": make_result([POLICIES[0], ("loss", "ksmd", "none", -3, 0, 0, 0, 1.0,
                                                    None)]),
    "hostile": hostile_result(),
}


def details_for(result: Result) -> dict[str, Any]:
    rows = result.summary.to_pylist()
    return make_details([(row["policy"], row["merge"], row["partition_by"],
                          row["saved_bytes"] / MIB, row["saved_zero_bytes"] // MIB)
                         for row in rows], members=tuple(NASTY), text=HOSTILE)


@pytest.mark.parametrize("name", RESULTS)
def test_every_chart_compiles(name: str) -> None:
    result = RESULTS[name]
    specs = charts(result, details=details_for(result))
    assert {"over-time", "exposure", "where", "cpu", "progress", "undone"} <= set(specs)
    for spec in specs.values():
        svg = compiled(spec)
        assert svg.startswith("<svg")
        assert "NaN" not in svg


def test_a_result_with_all_there_is_has_all_charts() -> None:
    assert list(charts(make_result(), details=make_details())) == [
        "over-time", "exposure", "where", "cpu", "waterfall-1", "waterfall-2", "waterfall-3",
        "progress", "undone", "headroom"]


def test_compiling_a_broken_chart_fails() -> None:
    spec = charts(make_result())["over-time"]
    broken = copy.deepcopy(spec)
    broken["mark"]["type"] = "no-such-mark"
    with pytest.raises(ValueError, match="conversion failed"):
        compiled(broken)
    # A selection repeated by layers is what once stopped a whole page.
    layer = {"mark": "line", "encoding": spec["encoding"], "params": spec["params"]}
    with pytest.raises(ValueError, match=r"[Dd]uplicate signal"):
        compiled({"data": spec["data"], "layer": [layer, copy.deepcopy(layer)]})


def test_the_vendored_vega_lite_is_the_one_the_charts_are_compiled_with() -> None:
    script = (ROOT / "planner/report/assets/vega-lite.min.js").read_text()
    assert f'"{VEGA_LITE}.' in script


def test_a_policy_has_one_colour_on_the_whole_page() -> None:
    result = make_result()
    facts = gather(result)
    expected = {s.label: look(s.index).colour for s in facts.strategies}
    assert len(set(expected.values())) == len(expected)
    n_scales = 0
    for spec in charts(result, details=make_details()).values():
        for layer in (spec, *spec.get("layer", ())):
            for channel in ("color", "fill", "stroke"):
                scale = layer.get("encoding", {}).get(channel, {}).get("scale")
                if scale:
                    n_scales += 1
                    assert dict(zip(scale["domain"], scale["range"], strict=True)) == expected
    assert n_scales == 10
    drawn = charts(result, details=make_details())["waterfall-2"]["layer"][0]["mark"]
    assert drawn["fill"] == expected["sync-domain"]
    html = render_html(result, make_details())
    for label, colour in expected.items():
        found = re.findall(r'background:(#\w+)"></i>' + re.escape(label), html)
        assert set(found) == {colour}


def test_policies_beyond_the_palette_still_look_different() -> None:
    looks = [(look(i).colour, tuple(look(i).dash)) for i in range(25)]
    assert len(set(looks)) == 25


def test_memory_axes_start_at_zero() -> None:
    specs = charts(make_result(), details=make_details())
    for name, axis in (("over-time", "y"), ("exposure", "y"), ("exposure", "x"), ("where", "x"),
                       ("cpu", "y")):
        assert specs[name]["encoding"][axis]["scale"]["zero"] is True
    for name in ("headroom", "waterfall-1"):
        assert specs[name]["layer"][0]["encoding"]["x"]["scale"]["zero"] is True


def test_an_axis_of_zeros_starts_at_zero_too() -> None:
    specs = charts(make_result(POLICIES[:1]))
    for name, axis in (("over-time", "y"), ("undone", "y"), ("cpu", "y"), ("exposure", "x")):
        assert specs[name]["encoding"][axis]["scale"] == {"zero": True, "domain": [0, 1]}


def test_of_many_waterfalls_the_recommended_one_and_the_greatest_are_drawn() -> None:
    policies = [POLICIES[0], ("small", "sync", "domain", 100, 0, 0, 0, 1.0, 9),
                *((f"p{i}", *POLICIES[1][1:3], 200 + i, *POLICIES[1][4:]) for i in range(9))]
    drawn = [name for name in charts(make_result(policies), details=make_details(policies))
             if name.startswith("waterfall")]
    assert drawn == ["waterfall-1", *(f"waterfall-{i}" for i in range(6, 11))]
    assert gather(make_result(policies)).strategies[1].name == "small"


def test_savings_over_time_are_added_up_over_hosts_and_thinned_evenly() -> None:
    result = make_result(n_samples=1000)
    rows = result.hosts.to_pylist()
    both = [*rows, *({**row, "host": "second"} for row in rows)]
    doubled = Result(result.scenario, result.run, result.summary,
                     type(result.hosts).from_pylist(both, schema=result.hosts.schema),
                     result.partitions, result.events)
    times, saved = read_samples(doubled, gather(doubled)).over_time(gather(doubled), "saved_bytes")
    assert len(times) == MAX_TIMES
    assert (times[0], times[-1]) == (rows[0]["time_ns"], rows[-1]["time_ns"])
    assert saved["ksmd-global"][times[-1]] == 2 * 412 * 2**20


def test_the_shortfall_is_taken_from_the_strategy_that_gets_most() -> None:
    mib = [n // 2**20 for n in shortfall_bytes(gather(make_result()))]
    assert mib == [508, 0, 181, 114]


def test_between_samples_of_its_own_a_host_keeps_its_last_value() -> None:
    result = make_result(POLICIES[:2], n_samples=3)
    rows = [{**row, "saved_bytes": value, "host": host, "time_ns": time_ns}
            for row in result.hosts.to_pylist()[:1] for host, time_ns, value in (
                ("a", 0, 0), ("b", 0, 0), ("a", 10, 5), ("b", 20, 7), ("a", 30, 6))]
    hosts = type(result.hosts).from_pylist(rows, schema=result.hosts.schema)
    read = Result(result.scenario, result.run, result.summary, hosts, result.partitions,
                  result.events)
    facts = gather(read)
    line = read_samples(read, facts).total("never", "saved_bytes")
    assert line == {0: 0, 10: 5, 20: 12, 30: 13}
    assert [reached(line, share) for share in (0.5, 0.9, 1.0)] == [20, 20, 30]
    assert reached({0: 0, 5: 3, 9: -1}, 0.5) is None


def with_samples(values: list[dict[str, int]], **options: Any) -> Result:
    """A result whose second policy has these values at even times, and one sample more."""
    result = make_result(POLICIES[:2], **options)
    row = result.hosts.to_pylist()[0]
    last = len(values) - 1
    rows = [{**row, "policy": "ksmd-global", "time_ns": HORIZON_NS * i // last, **each}
            for i, each in enumerate(values)]
    hosts = type(result.hosts).from_pylist(rows, schema=result.hosts.schema)
    return Result(result.scenario, result.run, result.summary, hosts, result.partitions,
                  result.events)


def test_a_storm_is_the_interval_with_most_breaks_not_two_samples_close_together() -> None:
    result = with_samples([{"cow_breaks": n} for n in (0, 10, 20, 120, 130, 140, 150)])
    rows = result.hosts.to_pylist()
    # A sample a microsecond after the second one: five breaks there would be a huge rate.
    rows.insert(2, {**rows[1], "time_ns": rows[1]["time_ns"] + 1000, "cow_breaks": 15})
    hosts = type(result.hosts).from_pylist(rows, schema=result.hosts.schema)
    result = Result(result.scenario, result.run, result.summary, hosts, result.partitions,
                    result.events)
    facts = gather(result)
    samples = read_samples(result, facts)
    (burst,) = bursts(samples, facts)
    assert (burst.start_ns, burst.end_ns) == (HORIZON_NS // 6 * 2, HORIZON_NS // 6 * 3)
    assert (burst.n_breaks, burst.n_all) == (100, 150)
    assert burst.per_second == pytest.approx(100 / 60)


def test_rates_are_told_of_whole_sampling_intervals() -> None:
    result = make_result(n_samples=361)
    times = rate_times(read_samples(result, gather(result)), HORIZON_NS)
    assert len(times) <= MAX_RATES + 1
    assert {end - start for start, end in itertools.pairwise(times)} == {6 * 10**9}
    assert rate_times(read_samples(make_result([]), gather(make_result([]))), HORIZON_NS) == []


def test_the_headroom_is_that_of_the_worst_moment() -> None:
    result = with_samples([
        {"guest_memory_bytes": 1000, "saved_bytes": 100 * i, "saved_zero_bytes": 10 * i,
         "unmerge_bytes": need} for i, need in enumerate((0, 100, 290, 320))])
    result.scenario["hosts"][0].update(memory_bytes=1500, reserved_bytes=450)
    (room,) = headrooms(read_samples(result, gather(result)), result, gather(result))
    assert (room.host, room.time_ns) == ("lab", HORIZON_NS // 3 * 2)
    assert (room.in_use_bytes, room.needed_bytes, room.left_bytes) == (780, 290, -20)
    assert "! only while merged" in render_html(result)
    assert "! only while merged" not in render_html(make_result())


def test_the_frontier_holds_what_no_other_strategy_beats_in_both() -> None:
    facts = gather(make_result([POLICIES[0], *POLICIES[1:],
                                ("worse", "ksmd", "none", 290, 0, 30_000, 0, 1.0, None)]))
    assert [s.name for s in frontier(facts)] == ["sync-domain", "sync-group", "ksmd-global"]


# --- verdict ---------------------------------------------------------------------------------


def sentences(*policies: tuple[Any, ...], **options: Any) -> str:
    return " ".join(verdict(gather(make_result([POLICIES[0], *policies], **options))))


GLOBAL, DOMAIN = POLICIES[1], POLICIES[2]


def test_the_verdict_names_the_best_safe_policy_and_what_the_unsafe_one_adds() -> None:
    text = sentences(GLOBAL, DOMAIN)
    assert text.startswith("sync-domain saves 231 MiB (12.5 %) of the 1853 MiB")
    assert "ksmd-global would save 181 MiB more, but shares 61 240 guest pages" in text
    assert "9 120 of them with a sensitive domain" in text
    assert "undone at once, 231 MiB of free memory" in text
    assert "not validated" in text


def test_the_verdict_says_do_not_enable_below_one_percent() -> None:
    text = sentences((*DOMAIN[:3], 18, 0, *DOMAIN[5:]))
    assert text.startswith("Do not enable merging here: the best strategy, sync-domain, saves only")
    assert "18.0 MiB (0.97 %)" in text
    assert sentences((*DOMAIN[:3], 19, 0, *DOMAIN[5:])).startswith("sync-domain saves 19.0 MiB")


def test_the_verdict_of_a_run_that_saves_nothing_says_so() -> None:
    assert sentences().startswith("Do not enable merging here: no strategy saves any memory.")
    assert sentences(("loss", "ksmd", "none", -3, 0, 0, 0, 1.0, None)).startswith("Do not enable")


def test_the_verdict_points_to_ballooning_when_only_zero_pages_are_worth_it() -> None:
    text = sentences((*DOMAIN[:3], 0, 200, *DOMAIN[5:]))
    assert "Zero pages would give back 200 MiB under sync-domain, which ballooning" in text


def test_the_verdict_refuses_when_only_sharing_across_domains_saves() -> None:
    text = sentences(GLOBAL, (*DOMAIN[:3], 3, *DOMAIN[4:]))
    assert text.startswith("Do not enable merging unless domains may share pages: the best "
                           "strategy that keeps them apart, sync-domain, saves only 3.00 MiB")
    assert "ksmd-global saves 412 MiB (22.2 %)" in text
    assert sentences(GLOBAL).startswith("Do not enable merging unless domains may share pages: no ")


def test_the_verdict_says_when_sharing_across_domains_does_not_pay() -> None:
    text = sentences((*GLOBAL[:3], 200, *GLOBAL[4:]), DOMAIN)
    assert "Sharing across domains would not pay: ksmd-global" in text
    assert "No strategy compared here shares pages across domains." in sentences(DOMAIN)


def test_the_verdict_has_at_most_three_sentences() -> None:
    for result in RESULTS.values():
        assert 1 <= len(verdict(gather(result))) <= 3


# --- names -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.one_of(st.text(), st.sampled_from(NASTY)), max_size=12))
def test_names_become_short_printable_and_stay_distinct(names: list[str]) -> None:
    labels = distinct(names)
    assert set(labels) == set(names)
    assert len(set(labels.values())) == len(set(names))
    for label in labels.values():
        assert 0 < len(label) <= 48
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in label)


def test_an_ordinary_name_is_left_alone() -> None:
    assert clean("web-größe_1") == "web-größe_1"
    assert clean("x" * 48) == "x" * 48
    assert clean("x" * 49) == "x" * 47 + "…"


@given(st.recursive(st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(
    st.text(), x)))
def test_json_in_a_script_element_cannot_leave_it(value: Any) -> None:
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


# --- HTML ------------------------------------------------------------------------------------


def test_the_page_allows_no_network_and_names_no_resource() -> None:
    html = render_html(make_result())
    page = Page(html)
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
                        "style-src 'unsafe-inline'; img-src data:"]
    assert not [(tag, a) for tag, a in page.tags if {"src", "href", "action", "data"} & set(a)]
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "base"}
    assert "sourceMappingURL" not in html


def test_the_page_reads_without_scripts() -> None:
    result = make_result()
    page = Page(render_html(result))
    facts = gather(result)
    samples = read_samples(result, facts)
    times, saved = samples.over_time(facts, "saved_bytes")
    cpu = samples.over_time(facts, "merge_cpu_ns")[1]
    table, cpu_table, undone_table = (t for t in page.tables if t[0][0] == "timemin")
    assert table[0][1:] == [s.label for s in facts.strategies]
    assert [[row[0], *row[1:]] for row in table[1:]] == [
        [f"{t / 60e9:g}", *(facts.unit.figures(saved[s.label][t]) for s in facts.strategies)]
        for t in times]
    assert [row[1:] for row in cpu_table[1:]] == [
        [f"{cpu[s.label][t] / 1e9:g}" for s in facts.strategies] for t in times]
    assert undone_table[-1][1:] == ["0", "2 636", "1 478", "1 907"]
    strategies, counters = page.tables[0], next(t for t in page.tables if "eligibleMiB" in t[0])
    row = dict(zip(strategies[0], strategies[2], strict=True))
    assert row == {
        "strategy": "ksmd-global", "merges": "ksmd 1000/20ms", "partitions": "1by none",
        "savedMiB": "412", "of guest memory": "22.2 %", "saved_zeroMiB": "96.0",
        "cross-domainpages": "61 240", "sensitivepages": "9 120", "merge CPU": "9.40 s2.61 %",
        "time to 90 %": "3.50 min", "COW breaks": "2 636", "if unmergedMiB": "412"}
    assert [r[counters[0].index("less than bestMiB")] for r in counters[1:]] == [
        "508", "0", "181", "114"]


def test_the_page_is_the_same_bytes_for_the_same_result() -> None:
    code = ("import hashlib; from tests.report_data import make_result;"
            "from planner.report import render_html;"
            "from tests.report_data import make_details;"
            "print(hashlib.sha256(render_html(make_result(), make_details()).encode())"
            ".hexdigest())")
    digests = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True,
                              capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed,
                                                        "TZ": zone}).stdout.strip()
               for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))}
    assert digests == {hashlib.sha256(
        render_html(make_result(), make_details()).encode()).hexdigest()}


def test_hostile_names_stay_text_in_the_page() -> None:
    result = hostile_result()
    details = details_for(result)
    details["diagnosis"][0]["trace"] = HOSTILE
    details["sharing"][0]["key"] = HOSTILE
    facts = gather(result)
    usual = Page(render_html(
        make_result([(f"p{i}", *POLICIES[1][1:]) for i in range(len(NASTY))]),
        make_details([(f"p{i}", *POLICIES[1][1:]) for i in range(len(NASTY))])))
    page = Page(html := render_html(result, details))
    assert len(page.scripts) == len(usual.scripts)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in usual.tags}
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    own = html.split("<script>")[0]
    assert not [c for c in own if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
    assert max(map(len, own.split("\n"))) < 20_000
    html.encode()
    specs = charts(result, facts, details)
    assert [json.loads(text) for text in page.scripts[:len(specs)]] == list(specs.values())


def test_the_page_says_in_red_that_nothing_was_validated() -> None:
    def warnings(result: Result) -> list[str]:
        return re.findall(r'class="warning".*?</section>', render_html(result), re.DOTALL)

    (warning,) = warnings(make_result())
    assert "Not validated on your hardware" in warning
    assert "builtin:unmeasured" in warning
    assert "None was done on your hardware" in render_html(make_result())
    (half,) = warnings(make_result(timings="calibration/lab.json"))
    assert "Timings not measured" not in half
    assert warnings(make_result(timings="calibration/lab.json", validated=True)) == []


def test_the_page_shows_the_largest_partitions_and_counts_the_rest() -> None:
    html = render_html(make_result(n_partitions=25))
    page = Page(html)
    (table,) = (t for t in page.tables if t[0][1] == "partition")
    shown = [row for row in table if row[0] == "sync-domain"]
    assert len(shown) == MAX_PARTITIONS
    saved = [float(row[table[0].index("savedMiB")]) for row in shown]
    assert saved == sorted(saved, reverse=True)
    assert "15 more of 25 partitions of sync-domain" in page.text


def test_the_page_of_an_odd_result_is_still_a_page() -> None:
    for result in RESULTS.values():
        assert Page(render_html(result)).tags[-1][0] == "script"
        assert Page(render_html(result, details_for(result))).tags[-1][0] == "script"


# --- text and JSON ---------------------------------------------------------------------------


def golden(name: str, text: str) -> None:
    path = HERE / "golden" / name
    if os.environ.get("PLANNER_ACCEPT"):
        path.write_text(text)
    assert text == path.read_text(), f"accept with: PLANNER_ACCEPT=1 pytest {Path(__file__).name}"


def test_the_terminal_report_is_the_golden_one() -> None:
    golden("report-100.txt", render_text(make_result(), width=100, colour=False))
    golden("report-72.txt", render_text(make_result(), width=72, colour=False))


@pytest.mark.parametrize("width", [1, 40, 60, 80, 100, 120, 200])
def test_the_terminal_report_fits_its_width(width: int) -> None:
    for result in RESULTS.values():
        lines = render_text(result, width=width, colour=False).splitlines()
        assert max(map(len, lines)) <= max(width, 40)


def test_the_terminal_report_is_one_table_in_100_columns() -> None:
    text = render_text(make_result(), width=100, colour=False)
    assert sum(line.startswith("POLICY") for line in text.splitlines()) == 1


def test_hostile_names_send_nothing_to_the_terminal() -> None:
    text = render_text(hostile_result(), width=100, colour=False)
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]


def test_colours_change_nothing_but_the_colour() -> None:
    for result in RESULTS.values():
        coloured = render_text(result, width=100, colour=True)
        assert re.sub(r"\x1b\[\d+m", "", coloured) == render_text(result, width=100, colour=False)
        assert "\x1b[" in coloured


def test_the_json_report_is_json_with_a_version() -> None:
    result = make_result()
    rows = result.summary.to_pylist()
    rows[1]["saved_share"] = float("nan")
    table = type(result.summary).from_pylist(rows, schema=result.summary.schema)
    document = render_json(Result(result.scenario, result.run, table, result.hosts,
                                  result.partitions, result.events))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["format_version"] == 1
    assert [p["policy"] for p in document["policies"]] == [p[0] for p in POLICIES]
    assert document["policies"][1]["saved_share"] is None
    assert document["policies"][2]["saved_bytes"] == 231 * 2**20
    assert document["policies"][0]["time_to_90_ns"] is None


# --- package ---------------------------------------------------------------------------------


def test_importing_the_reports_loads_no_heavy_library() -> None:
    code = ("import sys, planner.report; "
            "print(sorted({'jinja2', 'numba', 'pyarrow', 'numpy', 'rich', 'vl_convert'} "
            "& set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True,
                          capture_output=True)
    assert done.stdout.strip() == "[]"


def vendor_check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / ".ci/vendor_js", "--check", folder],
                          check=False, text=True, capture_output=True)


def test_the_vendored_scripts_are_the_pinned_ones_and_have_licences(tmp_path: Path) -> None:
    assets = ROOT / "planner/report/assets"
    assert vendor_check(assets).returncode == 0
    scripts = {p.name.removesuffix(".min.js") for p in assets.glob("*.min.js")}
    assert scripts == {"vega", "vega-lite", "vega-embed"}
    assert scripts <= {p.name.removeprefix("LICENSE-") for p in assets.glob("LICENSE-*")}
    copied = tmp_path / "assets"
    shutil.copytree(assets, copied)
    with (copied / "vega.min.js").open("a") as file:
        file.write(" ")
    (copied / "LICENSE-d3").unlink()
    done = vendor_check(copied)
    assert done.returncode == 1
    assert "vega.min.js: altered" in done.stderr
    assert "LICENSE-d3: missing" in done.stderr


def test_vendored_scripts_cannot_end_their_element() -> None:
    for path in (ROOT / "planner/report/assets").glob("*.js"):
        assert not re.search(r"</script|<!--", path.read_text(encoding="utf-8"), re.IGNORECASE)


def test_a_second_run_differs_in_the_date_of_the_header_alone() -> None:
    first = render_html(make_result())
    assert render_html(make_result(elapsed_s=77.7)) == first
    later = render_html(make_result(created="2027-01-01T00:00:00+00:00"))
    changed = [(a, b) for a, b in zip(first.splitlines(), later.splitlines(), strict=True)
               if a != b]
    assert len(changed) == 1
    assert "2027-01-01" in changed[0][1]


# --- trace info ------------------------------------------------------------------------------


def info_document(name: str = "vm", n_guests: int = 3) -> dict[str, Any]:
    """A document of `planner trace info --json` as far as the text reads it, made by hand."""
    sums = {"n_pages": 2600, "n_counted": 2560, "n_already_shared": 256, "n_frames": 2304,
            "zero_share": 0.125, "thp_share": 0.25, "unique_share": 0.5, "twins_share": 0.375,
            "twins_in_guest_share": 0.0625, "changed_per_minute": None,
            "twins_in_label_share": {"tenant": 0.3125, "role": 0.375}}
    total = {**sums, "n_counted": n_guests * 2560, "n_frames": n_guests * 2304,
             "changed_per_minute": 0.02}
    boundary = {"n_values": 3, "n_duplicates_kept": 512, "n_duplicates_lost": 256,
                "lost_share": 1 / 3, "n_zero_duplicates_kept": 128, "n_zero_duplicates_lost": 0}
    return {
        "path": f"traces/{name}", "digest": "b3f2" * 16, "status": "complete",
        "hash": {"algorithm": "xxh64-siphash24", "bits": 64, "key_id": "5c1f09aa"},
        "page_bytes": 4096, "n_snapshots": 4, "span_ns": 180 * 10**9, "is_advised_only": False,
        "snapshot": {"snapshot_id": 3, "start_ns": 1_795_000_000 * 10**9,
                     "end_ns": 1_795_000_001 * 10**9, "is_partial": False},
        "eligibility": {"n_pages": n_guests * 2600, "n_advised": n_guests * 2560,
                        "n_not_advised": 0, "n_not_anonymous": n_guests * 30, "n_zero_page": 0,
                        "no_hash": {"swapped": n_guests * 10}, "incompatible": {}},
        "total": total,
        "diagnosis": {
            "n_bytes": n_guests * 2600 * 4096, "notes": [],
            "obstacles": [{"key": "thp", "n_bytes": n_guests * 2000 * 4096, "share": 0.769,
                           "text": "in huge pages", "instead": "split them"}] * (n_guests > 0),
            "contents": [{"key": name, "n_bytes": n_guests * 2560 * 4096, "share": 1.0,
                          "text": name, "instead": ""}] * (n_guests > 0)},
        "guests": [{"name": f"{name}-{i}", **sums} for i in range(n_guests)],
        "counts": {"n_duplicates": 768, "n_zero_duplicates": 128},
        "boundaries": [{"label": "guest", **boundary, "lost_share": 1.0},
                       {"label": "role", **boundary, "n_values": 1, "lost_share": 0.0},
                       {"label": "tenant", **boundary}],
    }


def test_trace_info_is_the_golden_one() -> None:
    golden("trace-info-100.txt", render_trace_info(info_document(), width=100))


def test_trace_info_counts_what_it_leaves_out_and_fits() -> None:
    text = render_trace_info(info_document(n_guests=55), width=80)
    assert "and 15 more guests, in --json" in text
    assert max(map(len, text.splitlines())) <= 80


def test_trace_info_of_nothing_says_so() -> None:
    document = info_document(n_guests=0)
    document["counts"] = {"n_duplicates": 0, "n_zero_duplicates": 0}
    document["boundaries"] = []
    text = render_trace_info(document, width=80)
    assert text.endswith("Nothing in this snapshot could be merged.\n")


def test_hostile_names_in_trace_info_send_nothing_to_the_terminal() -> None:
    for name in NASTY:
        document = info_document(name)
        document["boundaries"][2]["label"] = name
        document["total"]["twins_in_label_share"][name] = 0.1
        for guest in document["guests"]:
            guest["twins_in_label_share"][name] = 0.1
        document["eligibility"]["no_hash"][name] = 7
        text = render_trace_info(document, width=100)
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
        assert len(text) < 10_000


def test_trace_info_reads_what_the_count_writes(tmp_path: Path) -> None:
    guests = [GuestPlan(f"vm{i}", {"tenant": "ab"[i % 2]}, [MmPlan([pages_of(
        [*range(1, 11), *range(100 * (i % 2) + 100, 100 * (i % 2) + 105), 9000 + i, 0])] * 2)])
        for i in range(4)]
    document = trace_info(open_trace(build_trace(tmp_path / "t", guests))).to_json()
    text = render_trace_info(json.loads(json.dumps(document)), width=100)
    row = {line.split()[0]: line.split() for line in text.splitlines() if line}
    # 4 guests hold 10 common pages, pairs hold 5 more: 30 + 10 duplicates of 60 + 4 + 4 frames.
    assert row["*"][1:3] == [f"{68 / 256:.2f}", "0"]
    kib = 4096 / 2**20
    assert row["(none)"][1:4] == ["1", f"{40 * kib:.2f}", "0"]
    assert row["tenant"][1:4] == ["2", f"{30 * kib:.2f}", f"{10 * kib:.2f}"]
    assert row["guest"][1:4] == ["4", "0", f"{40 * kib:.2f}"]


def test_of_nearly_equal_savings_the_cheapest_in_cpu_is_preferred() -> None:
    def strategy(name: str, saved: int, cpu: int) -> Strategy:
        return Strategy(name, name, 0, {"saved_bytes": saved, "merge_cpu_ns": cpu})

    most, near, far = strategy("most", 1000, 900), strategy("near", 960, 5), \
        strategy("far", 900, 1)
    assert best([most, near, far]) is near
    assert best([most, far]) is most
    assert best([strategy("none", 0, 0), strategy("worse", -5, 0)]) is None
