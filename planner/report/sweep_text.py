"""A sweep for the terminal: its cases, and which input matters most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.escape import clean
from planner.report.columns import RED, Column, render_table
from planner.report.plan_text import metric_text
from planner.units import format_size

__all__ = ["render_sweep_text"]

_HEADS = {"saved": ("SAVED",), "saved_zero": ("ZERO",), "merge_cpu": ("MERGE", "CPU"),
          "hosts_needed": ("HOSTS",), "unmerge_headroom": ("HEADROOM", "worst"),
          "cow_breaks": ("COW", "breaks"), "cross_domain_pages": ("CROSS-", "DOMAIN")}
#: Effects listed at most.
MAX_EFFECTS = 10


def render_sweep_text(document: Mapping[str, Any], *, width: int, colour: bool) -> str:
    """The document of `planner.planning.sweep_document`: a table, and the inputs ranked."""
    rows = document["cases"]
    keys = list(dict.fromkeys(key for row in rows for key in row["inputs"]))
    columns = [Column((key.rpartition(".")[2][:24],),
                      tuple(clean(str(row["inputs"].get(key, "–")), 24) for row in rows),
                      is_left=True) for key in keys]
    columns.insert(0, Column(("POLICY",), tuple(clean(row["policy"], 24) for row in rows),
                             is_left=True))
    for metric, head in _HEADS.items():
        cells = tuple(_cell(metric, row["metrics"].get(metric)) for row in rows)
        if set(cells) - {"–"}:
            columns.append(Column(head, cells))
    failed = tuple(str(row["n_failed"] or "") for row in rows)
    if any(failed):
        columns.append(Column(("FAILED",), failed, tuple(RED if each else "" for each in failed)))
    lines = render_table(columns, width=width, colour=colour)
    ranked = [each for each in document["effects"] if each["swing"]]
    if ranked:
        lines += ["", "What the swept inputs do to the saving:"]
        lines += [f"  {_effect(each)}" for each in ranked[:MAX_EFFECTS]]
    n_cases = len({tuple(map(str, row["inputs"].items())) for row in rows})
    n_failed = sum(bool(row["n_failed"]) for row in rows)
    lines += ["", f"{n_cases} {'case' if n_cases == 1 else 'cases'}"
              + (f"; in {n_failed} of {len(rows)} rows a requirement failed." if n_failed
                 else ".")]
    return "\n".join(lines) + "\n"


def _cell(metric: str, found: Mapping[str, Any] | None) -> str:
    if found is None or found["median"] is None:
        return "–"
    text = metric_text(metric, found["median"])
    return text if found.get("low") is None or found["low"] == found["high"] else \
        f"{text} [{metric_text(metric, found['low'])}, {metric_text(metric, found['high'])}]"


def _effect(each: Mapping[str, Any]) -> str:
    sense = "" if each["elasticity"] is None else f" ({each['elasticity']:+.2f} % per 1 %)"
    return (f"{clean(each['policy'], 24)}: {clean(each['input'], 60)} "
            f"{clean(str(each['low_at']), 24)} -> {clean(str(each['high_at']), 24)}: "
            f"{format_size(round(each['low']))} -> {format_size(round(each['high']))}{sense}")
