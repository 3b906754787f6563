"""`planner compare` for terminals and for pull requests."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from planner.escape import clean
from planner.report.columns import GREEN, RED, Column, render_table, short_count
from planner.report.facts import MemoryUnit, distinct, memory_unit
from planner.report.markdown import markdown_head, markdown_text
from planner.units import format_duration, format_share, format_size

__all__ = ["render_comparison_markdown", "render_comparison_text"]

#: Changed inputs listed at most; the JSON form has all.
MAX_LISTED = 40
_MAX_VALUE = 60

Document = Mapping[str, Any]
Formatter = Callable[[float], str]


def _formats(unit: MemoryUnit) -> dict[str, tuple[tuple[str, ...], Formatter, int]]:
    """Metric to heading, formatter of an amount, and whether more is better (1), worse (-1)."""

    def size(value: float) -> str:
        return unit.figures(int(value))

    def duration(value: float) -> str:
        return format_duration(int(value))

    def count(value: float) -> str:
        return short_count(int(value))

    return {
        "saved_bytes": (("SAVED", unit.name), size, 1),
        "saved_share": (("OF", "MEMORY"), format_share, 1),
        "saved_zero_bytes": (("ZERO", unit.name), size, 1),
        "merge_cpu_ns": (("MERGE", "CPU"), duration, -1),
        "time_to_90_ns": (("90 %", "AFTER"), duration, -1),
        "cow_breaks": (("COW", "breaks"), count, -1),
        "cross_domain_pages": (("CROSS-", "DOMAIN"), count, -1),
        "unmerge_bytes": (("IF UN-", "MERGED"), size, -1),
        "hosts_needed": (("HOSTS",), lambda value: f"{value:g}", -1),
        "headroom_worst_bytes": (("HEADROOM", "worst"), size, 1),
    }


def _known(by_policy: Mapping[str, Mapping[str, Document]], unit: MemoryUnit,
           ) -> dict[str, tuple[tuple[str, ...], Formatter, int]]:
    """The formats of the metrics that the document has and something is known of."""
    return {metric: how for metric, how in _formats(unit).items()
            if any(metric in found and (found[metric]["before"], found[metric]["after"])
                   != (None, None) for found in by_policy.values())
            or metric == "time_to_90_ns"}


def _signed(change: float | None, write: Formatter) -> str:
    if change is None:
        return "–"
    if change == 0:
        return "="
    amount = write(abs(change))
    # Too little for the figures shown is neither nothing nor an amount.
    return ("+" if change > 0 else "-") + amount if set(amount) & set("123456789") else "~"


def _change(each: Document, write: Formatter) -> str:
    """The change; of replicates with its interval, or that none is shown."""
    text = _signed(each["change"], write)
    if not each.get("interval") or text == "=":
        return text
    if each["verdict"] == "no difference shown":
        return "~"
    low, high = each["interval"]
    return f"{text} [{_signed(low, write)}, {_signed(high, write)}]"


def _goodness(each: Document, good: int) -> float:
    """Above zero for a change to the better, below for one to the worse, 0 for none shown."""
    if each.get("verdict") == "no difference shown":
        return 0.0
    return float(each["change"] or 0) * good


def _unit(document: Document) -> MemoryUnit:
    values = [abs(each[side] or 0) for each in document["differences"]
              if each["metric"] == "saved_bytes" for side in ("before", "after")]
    return memory_unit(int(max(values, default=0)))


def _by_policy(document: Document) -> dict[str, dict[str, Document]]:
    found: dict[str, dict[str, Document]] = {}
    for each in document["differences"]:
        found.setdefault(each["policy"], {})[each["metric"]] = each
    return found


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "(not there)"
    if isinstance(value, int) and not isinstance(value, bool):
        if key.endswith("_ns"):
            return format_duration(value)
        if key.endswith("_bytes"):
            return format_size(value)
    return clean(value if isinstance(value, str) else json.dumps(value, sort_keys=True),
                 _MAX_VALUE)


def _changes(document: Document) -> list[tuple[str, str, str]]:
    """Key, before and after of the changes to list; those of many guests on one line.

    Whole policies that only one result has are named below the table.
    """
    gone = {f"policies.{name}" for name in (*document["only_before"], *document["only_after"])}
    lines: dict[tuple[str, str, str], int] = {}
    for change in document["changes"]:
        if change["key"] in gone:
            continue
        workload, is_of_guest, rest = change["key"].partition(".guests.")
        key = f"{workload}.guests.*.{rest.rpartition('.')[2]}" if is_of_guest else change["key"]
        line = (clean(key, 120), _shown(key, change["before"]), _shown(key, change["after"]))
        lines[line] = lines.get(line, 0) + 1
    return [(f"{key} ({n} guests)" if n > 1 else key, before, after)
            for (key, before, after), n in lines.items()]


def _head(document: Document) -> str:
    names = [clean(name) for name in document["names"]]
    name = names[0] if names[0] == names[1] else " and ".join(names)
    first, second = (clean(digest)[:12] for digest in document["digests"])
    return f"{name}: {second} against {first}"


def _closing(document: Document) -> str:
    n = document["n_changes"]
    changed = "no input differs" if not n else f"{n} input{'s'[:n != 1]} differ{'s'[:n == 1]}"
    by_policy = _by_policy(document)
    moved = [name for name, found in by_policy.items()
             if any(each["before"] != each["after"] for each in found.values())]
    result = f"{len(moved)} of {len(by_policy)} policies in both came out otherwise" if moved \
        else f"all {len(by_policy)} policies in both came out alike"
    sure = ("Both replay the same guests, writes and seed, so a difference is the inputs' doing; "
            if document["is_paired"] else
            "They do not replay the same guests with the same seed, so a difference is partly "
            "another draw; ")
    return f"{changed[0].upper()}{changed[1:]}; {result}. {sure}{_worth(document)}"


def _worth(document: Document) -> str:
    """What intervals there are, and what was shown of what is saved."""
    n = max((each.get("n_replicates", 1) for each in document["differences"]), default=1)
    if n < 2:
        return "one run each: no interval."
    saved = [each for each in document["differences"]
             if each["metric"] == "saved_bytes" and each.get("verdict") and each["change"]]
    shown = ", ".join(f"{clean(each['policy'])} "
                      + (each["verdict"] if each["verdict"] == "no difference shown"
                         else f"{each['verdict']} (95 %)") for each in saved)
    return (f"[ ] is the mean change over {n} paired replicates at 95 %, ~ no difference shown."
            + (f" Saved: {shown}." if shown else ""))


def _missing(document: Document) -> list[str]:
    lines = []
    for key, which in (("only_before", "first"), ("only_after", "second")):
        if document[key]:
            lines.append(f"Only in the {which}: "
                         + ", ".join(clean(name) for name in document[key]))
    return lines


def render_comparison_text(document: Document, *, width: int, colour: bool) -> str:
    """The document of `planner.compare.Comparison.to_json` for a terminal."""
    lines = [_head(document), ""]
    changes = _changes(document)
    lines.append("Changed inputs:" if changes else "Changed inputs: none")
    lines += [f"  {key}  {before} -> {after}" for key, before, after in changes[:MAX_LISTED]]
    if len(changes) > MAX_LISTED:
        lines.append(f"  and {len(changes) - MAX_LISTED} more, in --format json")
    lines.append("")
    by_policy = _by_policy(document)
    if by_policy:
        lines += render_table(_columns(document, by_policy), width=width, colour=colour)
        lines.append("")
    lines += _missing(document)
    lines += textwrap.wrap(_closing(document), width)
    return "\n".join(lines) + "\n"


def _columns(document: Document, by_policy: Mapping[str, Mapping[str, Document]]) -> list[Column]:
    labels = distinct(by_policy)
    columns = [Column(("", "POLICY"), tuple(labels[name] for name in by_policy), is_left=True)]
    for metric, (head, write, good) in _known(by_policy, _unit(document)).items():
        cells, styles = [], []
        for found in by_policy.values():
            each = found[metric]
            value = "–" if each["after"] is None else write(each["after"])
            cells.append(f"{value} {_change(each, write)}")
            change = _goodness(each, good)
            styles.append(GREEN if change > 0 else RED if change < 0 else "")
        columns.append(Column(head, tuple(cells), tuple(styles)))
    return columns


def render_comparison_markdown(document: Document) -> str:
    """The same as Markdown, for a pull request."""
    lines = [f"### {markdown_text(_head(document))}", ""]
    changes = _changes(document)
    if changes:
        lines += ["| changed input | before | after |", "|---|---|---|"]
        lines += [f"| {markdown_text(key)} | {markdown_text(before)} | {markdown_text(after)} |"
                  for key, before, after in changes[:MAX_LISTED]]
        if len(changes) > MAX_LISTED:
            lines.append(f"| and {len(changes) - MAX_LISTED} more | | |")
    else:
        lines.append("Changed inputs: none.")
    by_policy = _by_policy(document)
    if by_policy:
        formats = _known(by_policy, _unit(document))
        heads = [markdown_head(head) for head, _, _ in formats.values()]
        lines += ["", "| policy | " + " | ".join(heads) + " |",
                  "|---|" + "---:|" * len(heads)]
        labels = distinct(by_policy)
        for name, found in by_policy.items():
            cells = [_markdown_cell(found[metric], write)
                     for metric, (_, write, _) in formats.items()]
            lines.append(f"| {markdown_text(labels[name])} | " + " | ".join(cells) + " |")
    lines += ["", *(markdown_text(line) for line in _missing(document)), _closing(document)]
    return "\n".join(lines) + "\n"


def _markdown_cell(each: Document, write: Formatter) -> str:
    def text(value: float | None) -> str:
        return "–" if value is None else write(value)

    if each["before"] == each["after"]:
        return markdown_text(text(each["after"]))
    return markdown_text(f"{text(each['before'])} → {text(each['after'])} "
                         f"({_change(each, write)})")
