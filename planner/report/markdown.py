"""A result as Markdown: for wikis, tickets and pull requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.report.facts import gather
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
    kept = ("MiB", "GiB", "CPU", "COW")
    return " ".join(word if word in kept else word.lower() for word in words.split())


def render_markdown(result: Result) -> str:
    """The verdict, the table of strategies, its definitions and the run's warnings."""
    facts = gather(result)
    lines = [f"# {markdown_text(facts.title)}", ""]
    lines += [markdown_text(sentence) for sentence in verdict(facts)]
    columns = result_columns(facts, 48)
    heads = [markdown_head(column.head) for column in columns]
    lines += ["", "| " + " | ".join(heads) + " |",
              "|---|" + "---:|" * (len(columns) - 1)]
    for i in range(len(facts.strategies)):
        lines.append("| " + " | ".join(markdown_text(column.cells[i]) for column in columns)
                     + " |")
    lines += ["", markdown_text(definitions(facts))]
    if not facts.is_measured:
        lines += ["", f"Timings: {markdown_text(', '.join(facts.timings) or 'not stated')}; CPU "
                      "and times were not measured on your machine."]
    lines += [f"\nNote: {markdown_text(warning)}" for warning in facts.warnings]
    lines += ["", f"Scenario digest {markdown_text(facts.digest)}."]
    return "\n".join(lines) + "\n"
