"""A result as Markdown: for wikis, tickets and pull requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.report.facts import clean, gather
from planner.report.plan_text import (
    is_told,
    plan_columns,
    plan_definitions,
    plan_notes,
    requirement_lines,
)
from planner.report.text import definitions, result_columns
from planner.report.verdict import verdict

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["markdown_head", "markdown_text", "render_markdown"]

_MARKS = {ord(mark): "\\" + mark for mark in "\\`*_[]"} | {
    ord(mark): f"&#{ord(mark)};" for mark in "<>&|"}


def markdown_text(text: str) -> str:
    """Text without a meaning in Markdown: no markup, no HTML, no further column."""
    return text.translate(_MARKS)


def markdown_head(head: tuple[str, ...]) -> str:
    """The lines of a terminal's heading as one, in lower case but for units and abbreviations."""
    words = " ".join(part for part in head if part).replace("UN- ", "UN").replace("- ", "-")
    kept = ("MiB", "GiB", "CPU", "COW", "EUR", "USD")
    return " ".join(word if word.partition("/")[0] in kept else word.lower()
                    for word in words.split())


def render_markdown(result: Result) -> str:
    """The verdict, the table of strategies, its definitions, requirements and warnings."""
    facts = gather(result)
    plan = facts.plan
    is_planned = plan is not None and is_told(plan)
    lines = [f"# {markdown_text(facts.title)}", ""]
    lines += [markdown_text(sentence) for sentence in verdict(facts)]
    columns = plan_columns(facts, plan, 48) if plan is not None and is_planned \
        else result_columns(facts, 48)
    heads = [markdown_text(markdown_head(column.head)) for column in columns]
    lines += ["", "| " + " | ".join(heads) + " |",
              "|---|" + "---:|" * (len(columns) - 1)]
    for i in range(len(columns[0].cells)):
        lines.append("| " + " | ".join(markdown_text(column.cells[i]) for column in columns)
                     + " |")
    told = plan_definitions(facts, plan) if plan is not None and is_planned \
        else definitions(facts)
    lines += ["", markdown_text(told)]
    if plan is not None and plan["requirements"]:
        lines += ["", *(f"- {markdown_text(' '.join(line.split()))}"
                        for line in requirement_lines(facts, plan, colour=False))]
    if plan is not None and is_planned:
        lines += [f"\n{markdown_text(note)}" for note in plan_notes(facts, plan)]
    if not facts.is_measured:
        lines += ["", f"Timings: {markdown_text(', '.join(facts.timings) or 'not stated')}; CPU "
                      "and times were not measured on your machine."]
    notes = [clean(note, 1000) for note in (plan or {}).get("notes", ())] if is_planned else []
    lines += [f"\nNote: {markdown_text(warning)}"
              for warning in dict.fromkeys((*notes, *facts.warnings))]
    lines += ["", f"Scenario digest {markdown_text(facts.digest)}."]
    return "\n".join(lines) + "\n"
