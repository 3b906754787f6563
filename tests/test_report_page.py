"""Sections of the page: waterfall, matrices, validation, diagnosis; static and redacted pages."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from planner.errors import DataError, MachineError
from planner.metrics import Result
from planner.report import render_html
from planner.report.redact import redacted
from tests.report_data import POLICIES, make_details, make_result, make_validation
from tests.test_report import HOSTILE, NASTY, Page, details_for, hostile_result


def tables(html: str, first_head: str) -> list[list[list[str]]]:
    """The tables whose first heading begins so."""
    return [table for table in Page(html).tables if table[0][0].startswith(first_head)]


def section(html: str, name: str) -> str:
    (found,) = re.findall(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    return str(found)


def test_the_waterfall_stands_in_a_table_with_a_column_a_strategy() -> None:
    (table,) = tables(render_html(make_result(), make_details()), "step")
    assert table[0] == ["stepMiB", "ksmd-global", "sync-domain", "sync-group"]
    rows = {row[0]: row[1:] for row in table[1:]}
    assert list(rows) == [
        "memory of the hosts", "in use by guests", "eligible", "zero pages (counted apart)",
        "content found nowhere else", "twin is in another domain's partition",
        "has a twin it may merge with", "written before it could merge, or after",
        "KSM's own records", "saved", "merged, then written to (COW), over the whole run"]
    # What a document leaves out, as here for the strategy without partitions, is zero.
    assert rows["twin is in another domain's partition"] == ["0", "-90.04.86 %", "-90.04.86 %"]
    assert rows["saved"] == ["41222.2 %", "23112.5 %", "29816.1 %"]
    assert rows["memory of the hosts"] == ["8192"] * 3


def test_without_details_the_page_says_how_to_get_them() -> None:
    html = render_html(make_result())
    for name in ("waterfall", "sharing", "diagnosis"):
        assert "planner report RESULT --details" in section(html, name)
        assert "planner report RESULT --details" not in section(
            render_html(make_result(), make_details()), name)


def test_cells_between_domains_that_share_no_group_are_outlined() -> None:
    html = section(render_html(make_result(), make_details()), "sharing")
    cells = re.findall(r'<td class="n heat([^"]*)" style="--heat:(\d+)%">([^<]+)</td>', html)
    assert [("forbidden" in names, text) for names, _, text in cells] == [
        (False, "100"), (False, "41.0"), (True, "42.0"),
        (False, "41.0"), (False, "100"), (True, "43.0"),
        (True, "42.0"), (True, "43.0"), (False, "100")]
    assert [int(heat) for _, heat, _ in cells][:3] == [100, 41, 42]


def test_a_negative_result_says_why_on_top() -> None:
    loss = [POLICIES[0], ("ksmd", "ksmd 100/20ms", "none", 4, 3, 0, 0, 9.0, 100)]
    html = render_html(make_result(loss), make_details(loss))
    top = section(html, "verdict")
    assert "Do not enable merging here" in top
    assert 'class="verdict negative"' in top
    assert "of the memory under ksmd: content found nowhere else" in top
    assert "of the trace guests is in huge pages; split them." in top
    assert "negative" not in section(render_html(make_result(), make_details()), "verdict")


def test_validation_shows_both_kinds_of_records() -> None:
    html = render_html(make_result(), validation=[make_validation(), make_validation("metrics")])
    live, metrics = tables(html, "compared")
    assert live[1] == ["forecast", "pages_sharing", "1 000", "990", "-1.00 %", "2.00 %",
                       "-1.50 %", "40"]
    assert metrics[1] == ["simulated run", "ksmd_cpu_ns", "8.00 s", "6.00 s", "-25.0 %", "25.0 %",
                          "-25.0 %", "9"]
    text = section(html, "validation")
    assert "Linux 6.12.1" in text
    assert "not measured: cow_ksm" in text
    assert "Not validated on your hardware" not in html
    assert "not validated there" not in section(html, "verdict")


@pytest.mark.parametrize("damage", [
    {"kind": "planner.result"}, {"format_version": 2}, {"host": None, "policy": None},
    {"forecast": {"pages_shared": 7}}, {"forecast": {"pages_shared": {"measured_last": "x"}}}])
def test_a_record_that_is_none_is_refused(damage: dict[str, Any]) -> None:
    document = make_validation() | damage
    if damage.get("host", "") is None:
        del document["host"]
    with pytest.raises(DataError) as caught:
        render_html(make_result(), validation=[document])
    assert caught.value.where == "--validation"


def test_hostile_records_stay_text() -> None:
    document = make_validation(host=HOSTILE)
    document["forecast"] = {name: dict(document["forecast"]["pages_sharing"]) for name in NASTY}
    document["notes"] = [*NASTY]
    html = render_html(make_result(), validation=[document])
    assert "<script>alert" not in html
    own = html.split("<script>")[0]
    assert not [c for c in own if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]


def test_a_static_page_holds_drawings_and_no_script() -> None:
    html = render_html(make_result(), make_details(), is_static=True)
    page = Page(html)
    assert page.scripts == []
    assert [tag for tag, _ in page.tags].count("svg") == html.count('<figure class="figure"') == 10
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for used in re.findall(r"url\(#([^)]+)\)", html):
        assert used in ids
    assert "Click a name" not in html
    assert render_html(make_result(), make_details(), is_static=True) == html


def test_hostile_names_stay_text_in_drawings() -> None:
    result = hostile_result()
    html = render_html(result, details_for(result), is_static=True)
    assert "<script" not in html
    assert "<img" not in html


def test_a_static_page_without_its_extra_says_what_to_install(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MachineError, match="vl-convert-python is not installed") as caught:
        render_html(make_result(), is_static=True)
    assert caught.value.instead == "pip install 'ksm-planner[static]'"


SECRETS = ("acme-corp", "borealis-ag", "cobalt-gmbh", "rack17-node3", "payroll-db", "shop-eu",
           "gold-circle", "hypervisors")


def secret_result() -> Result:
    """A result in which every name that a company would hide is one of `SECRETS`."""
    result = make_result(sensitive=("cobalt-gmbh",), name="plan for acme-corp",
                         timings="cal/rack17-node3.json",
                         warnings=["KSM had merged pages on rack17-node3, of payroll-db-1."])
    domains = SECRETS[:3]
    scenario = result.scenario
    scenario["hosts"][0]["name"] = "rack17-node3"
    scenario["domains"]["groups"] = {"gold-circle": ["acme-corp", "borealis-ag"]}
    scenario["policies"].append({"name": "x", "exclude": [{"tenant": "shop-eu"}]})
    (workload,) = scenario["workloads"]
    workload.update(name="payroll-db", host="rack17-node3", select={"tenant": "shop-eu"},
                    trace="/srv/hypervisors/rack17-node3")
    for i, guest in enumerate(workload["guests"]):
        guest.update(name=f"payroll-db-{i}", domain=domains[i % 3], labels={"tenant": "shop-eu"})
    result.run["traces"][0]["path"] = "/srv/hypervisors/rack17-node3"

    def changed(table: Any, **columns: Any) -> Any:
        return type(table).from_pylist(
            [{**row, **{name: change(row) for name, change in columns.items()}}
             for row in table.to_pylist()], schema=table.schema)

    return replace(
        result,
        summary=changed(result.summary, partition_by=lambda row: row["partition_by"]
                        + ", without tenant=shop-eu"),
        hosts=changed(result.hosts, host=lambda row: "rack17-node3"),
        events=changed(result.events, host=lambda row: "rack17-node3",
                       guest=lambda row: "payroll-db-1"),
        partitions=changed(result.partitions, host=lambda row: "rack17-node3",
                           domains=lambda row: list(domains),
                           partition=lambda row: "gold-circle" if row["n_domains"] == 1 else "all"))


def secret_details() -> dict[str, Any]:
    details = make_details(members=SECRETS[:3], trace="/srv/hypervisors/rack17-node3")
    details["sharing"].append({**details["sharing"][0], "key": "label tenant",
                               "members": ["shop-eu", "acme-corp", "cobalt-gmbh"]})
    details["sharing"].append({**details["sharing"][0], "key": "workload",
                               "members": ["payroll-db", "payroll-db", "payroll-db"]})
    return details


def test_a_redacted_page_holds_no_name() -> None:
    records = [make_validation(host="rack17-node3"),
               make_validation("metrics", host="rack17-node3")]
    open_page = render_html(secret_result(), secret_details(), validation=records)
    for secret in SECRETS:
        assert secret in open_page
    for is_static in (False, True):
        html = render_html(secret_result(), secret_details(), validation=records,
                           is_redacted=True, is_static=is_static)
        for secret in (*SECRETS, "tenant=shop", "cal/"):
            assert secret not in html
    page = Page(html)
    assert "plan for domain-1" in page.text
    assert "KSM had merged pages on host-1, of guest-2." in page.text
    assert "without tenant=value-1" in page.text
    assert "trace-1" in page.text


def test_redacting_changes_no_number_and_is_stable() -> None:
    result, details, _ = redacted(secret_result(), secret_details(), [])
    again, _, _ = redacted(secret_result(), secret_details(), [])
    assert result.partitions.equals(again.partitions)
    for name in ("summary", "hosts", "partitions", "events"):
        before, after = getattr(secret_result(), name), getattr(result, name)
        assert before.schema == after.schema
        for field in before.schema:
            if str(field.type) in ("int64", "double"):
                assert before.column(field.name).equals(after.column(field.name))
    assert details is not None
    assert details["sharing"][0]["members"] == ["domain-1", "domain-2", "domain-3"]
    assert result.partitions.column("domains").to_pylist()[0] == [
        "domain-1", "domain-2", "domain-3"]


def test_names_in_names_of_strategies_are_redacted_everywhere() -> None:
    policies = [POLICIES[0], ("only-tenant-a", *POLICIES[2][1:])]
    html = render_html(make_result(policies), make_details(policies), is_redacted=True)
    assert "tenant-a" not in html
    assert "only-domain-1 saves" in html


def test_the_page_says_that_nothing_was_varied_or_extrapolated() -> None:
    text = section(render_html(make_result()), "extrapolation")
    assert "None: the 12 guests are those of the traces" in text
    assert "intervals over replicates, hosts needed, sensitivity" in text
    assert "One replay of what was captured, so no interval" in render_html(make_result())
