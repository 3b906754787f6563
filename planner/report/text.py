"""Reports for the terminal and for programs: plain text and one JSON document."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planner.report.columns import (
    DIM,
    GREEN,
    RED,
    YELLOW,
    Column,
    render_table,
    sgr,
    short_count,
    table_width,
)
from planner.report.facts import MIN_SAVED_SHARE, Facts, Strategy, best, clean, gather
from planner.report.plan_text import (
    is_told,
    plan_closing,
    plan_columns,
    plan_definitions,
    plan_notes,
    requirement_lines,
)
from planner.report.trace_text import render_trace_info
from planner.report.verdict import verdict
from planner.units import format_duration, format_share

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["JSON_FORMAT_VERSION", "definitions", "render_json", "render_text",
           "render_trace_info", "result_columns"]

#: Minor grows when keys are added, major when any changes its meaning or goes.
JSON_FORMAT_VERSION = 1

_MIN_WIDTH = 40


def _cross(strategy: Strategy, facts: Facts) -> str:
    text = short_count(int(strategy.row["cross_domain_pages"]))
    sensitive = int(strategy.row["cross_domain_sensitive_pages"])
    return f"{text} ({short_count(sensitive)})" if not strategy.is_safe and facts.has_sensitive \
        else text


def result_columns(facts: Facts, policy_width: int) -> list[Column]:
    """The table of strategies; names of policies are at most `policy_width` long."""
    strategies, unit = facts.strategies, facts.unit
    recommended = best(s for s in strategies
                       if s.is_safe and s.saved_share >= MIN_SAVED_SHARE)

    def column(head: tuple[str, ...], cell: Callable[[Strategy], str],
               style: Callable[[Strategy], str] = lambda _: "", is_left: bool = False) -> Column:
        return Column(head, tuple(map(cell, strategies)), tuple(map(style, strategies)), is_left)

    def size(head: str, name: str, *more: str) -> Column:
        return column((head, *more, unit.name), lambda s: unit.figures(int(s.row[name])))

    def count(head: tuple[str, ...], name: str) -> Column:
        return column(head, lambda s: short_count(int(s.row[name])))

    return [
        column(("", "POLICY"), lambda s: clean(s.label, policy_width),
               lambda s: GREEN if s is recommended else "", is_left=True),
        column(("SAVED", unit.name), lambda s: unit.figures(s.saved_bytes),
               lambda s: GREEN if s is recommended else ""),
        column(("OF", "MEMORY"), lambda s: format_share(s.saved_share)),
        size("ZERO", "saved_zero_bytes"),
        count(("SHARED", "pages"), "pages_shared"),
        count(("SHARING", "pages"), "pages_sharing"),
        size("PROFIT", "general_profit_bytes"),
        column(("MERGE", "CPU"), lambda s: format_duration(int(s.row["merge_cpu_ns"]))),
        column(("90 %", "AFTER"), lambda s: "–" if s.row["time_to_90_ns"] is None
               else format_duration(int(s.row["time_to_90_ns"]))),
        count(("COW", "breaks"), "cow_breaks"),
        column(("CROSS-", "DOMAIN", "pages"), lambda s: _cross(s, facts),
               lambda s: "" if s.is_safe else
               RED if int(s.row["cross_domain_sensitive_pages"]) else YELLOW),
        size("IF UN-", "unmerge_bytes", "MERGED"),
    ]


def definitions(facts: Facts) -> str:
    """What the table's headings mean."""
    sensitive = ", in brackets those with a sensitive domain" if facts.has_sensitive else ""
    return ("SAVED: frames freed of non-zero content, minus all of KSM's own records; OF MEMORY: "
            "of the captured anonymous memory; ZERO: freed by merging zero pages, apart; PROFIT: "
            "the kernel's general_profit; 90 % AFTER: from the start to the first sample with 90 % "
            "of the last SAVED; CROSS-DOMAIN: guest pages on merged frames of more than one "
            f"domain{sensitive}; IF UNMERGED: memory needed if every merge were undone at once. At "
            "the end of the run.")


def render_text(result: Result, *, width: int, colour: bool) -> str:
    """The strategies as a terminal table of `width` columns, its definitions, and the verdict.

    ANSI colours only with `colour`. Names are shown without control characters.
    """
    width = max(width, _MIN_WIDTH)
    facts = gather(result)
    guests = "guest" if facts.n_guests == 1 else "guests"
    hosts = "host" if facts.n_hosts == 1 else "hosts"
    baseline = f", baseline {facts.strategies[0].label}" if facts.strategies else ""
    head = (f"{facts.title}: {facts.n_guests} {guests} on {facts.n_hosts} {hosts}, "
            f"{format_duration(facts.horizon_ns)}{baseline}")
    plan = result.plan
    has_plan = plan is not None and is_told(plan)
    if plan is not None and has_plan and facts.n_replicates > 1:
        head += f", {facts.n_replicates} replicates"
    lines = [*textwrap.wrap(head, width), ""]
    lines += _table(lambda policy_width: plan_columns(facts, plan, policy_width) if plan is not None
                    and has_plan else result_columns(facts, policy_width), width, colour)
    lines.append("")
    told = plan_definitions(facts, plan) if plan is not None and has_plan else definitions(facts)
    lines += [sgr(line, DIM, colour) for line in textwrap.wrap(told, width)]
    if plan is not None and has_plan:
        for note in plan["notes"]:
            if note not in result.run["warnings"]:
                lines += [sgr(line, YELLOW, colour)
                          for line in textwrap.wrap(f"! {clean(note, 1000)}", width)]
        for note in plan_notes(facts, plan):
            lines += textwrap.wrap(note, width)
    if not facts.is_measured:
        note = (f"Timings: {', '.join(facts.timings) or 'not stated'}; CPU and times were not "
                "measured on your machine.")
        lines += [sgr(line, YELLOW, colour) for line in textwrap.wrap(note, width)]
    for warning in facts.warnings:
        lines += [sgr(line, YELLOW, colour) for line in textwrap.wrap(f"Note: {warning}", width)]
    lines.append("")
    if plan is not None and (plan["requirements"] or has_plan):
        lines += [*requirement_lines(facts, plan, colour), ""]
    for sentence in verdict(facts):
        lines += textwrap.wrap(sentence, width)
    if plan is not None and (plan["requirements"] or has_plan):
        lines += textwrap.wrap(plan_closing(plan), width)
    return "\n".join(lines) + "\n"


def _table(columns_of: Callable[[int], list[Column]], width: int, colour: bool) -> list[str]:
    """The table with policy names as long as fits without splitting it, if any length does."""
    for policy_width, gap in ((48, 2), (24, 2), (24, 1), (16, 1)):
        columns = columns_of(policy_width)
        if table_width(columns, gap) <= width:
            return render_table(columns, width=width, colour=colour, gap=gap)
    return render_table(columns_of(16), width=width, colour=colour)


def render_json(result: Result) -> dict[str, Any]:
    """The result for programs: `format_version`, what ran, the verdict, one object a policy.

    Keys and units are those of the summary table (bytes, pages, ns); names are as given.
    """
    facts = gather(result)
    rows = [{key: None if isinstance(value, float) and not math.isfinite(value) else value
             for key, value in strategy.row.items()} for strategy in facts.strategies]
    return {
        "format_version": JSON_FORMAT_VERSION,
        "kind": "planner.result",
        "name": result.scenario.get("name", ""),
        "scenario_digest": facts.digest,
        "horizon_ns": facts.horizon_ns,
        "run": result.run,
        "is_validated": facts.has_validation,
        "is_measured": facts.is_measured,
        "verdict": list(verdict(facts)),
        "policies": rows,
        "plan": result.plan,
    }
