"""The report as one HTML file that opens from disk and loads nothing.

A content security policy of `default-src 'none'` makes the browser itself enforce that. Every
figure a chart draws also stands in a table, for readers without scripts. The same result gives
the same bytes: there is no clock and no random id here, dates come from the run's own record.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.report import sections
from planner.report.charts import charts, drawn_waterfalls
from planner.report.facts import UNPRINTABLE, Facts, clean, gather, recommended
from planner.report.page import render_page
from planner.report.plan_sections import plan_page, requirement_rows, sampling_part
from planner.report.plan_text import is_told
from planner.report.plan_view import plan_view
from planner.report.redact import redacted, redacted_sweep
from planner.report.series import read_samples
from planner.report.sweep_section import sweep_view
from planner.report.validation import validation_view
from planner.report.verdict import verdict
from planner.units import format_count, format_duration

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["render_html"]

#: What differs between two runs of one scenario; the date stands in the header alone.
_VOLATILE = frozenset({"created", "elapsed_s"})
#: Longest text shown in the folded scenario.
_MAX_VALUE = 300

#: A space between a figure and its unit, where a line must not break.
_UNIT_SPACE = re.compile(r"(?<=[0-9]) (?=(?:[KMGT]iB|ns|us|ms|s|min)\b|%|[0-9])")


def _unbroken(sentence: str) -> str:
    return _UNIT_SPACE.sub("\N{NO-BREAK SPACE}", sentence)


def _shown_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {clean(key, _MAX_VALUE): _shown_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown_value(item) for item in value]
    if isinstance(value, str) and len(value) > _MAX_VALUE:
        return f"{value[:_MAX_VALUE]}… ({len(value)} characters)"
    return value


def _shown_json(value: Any) -> str:
    """Indented JSON for reading: long texts shortened, characters that print nothing escaped."""
    text = json.dumps(_shown_value(value), ensure_ascii=False, indent=1)
    return "".join(
        f"\\u{ord(c):04x}" if c != "\n" and unicodedata.category(c) in UNPRINTABLE else c
        for c in text)


def render_html(result: Result, details: Mapping[str, Any] | None = None, *,
                validation: Sequence[Mapping[str, Any]] = (),
                sweep: Mapping[str, Any] | None = None, is_static: bool = False,
                is_redacted: bool = False) -> str:
    """The report of `result` as one HTML document.

    `details` is the document of `planner.details`; without it the page says how to get what is
    missing. `validation` are records of `planner validate`, `sweep` the document (sweep.json) of
    the sweep that the run is a case of. With `is_static` charts are SVG and the page holds no
    script; with `is_redacted` guests, domains and hosts have labels for names.

    Reads the template, style and vendored scripts of this package and nothing else. Raises
    MachineError where a static page lacks its extra, DataError for a record that is none.
    """
    if is_redacted:
        sweep = None if sweep is None else redacted_sweep(sweep, result)
        result, details, validation = redacted(result, details, validation)
    validated = [validation_view(document) for document in validation]
    facts = gather(result)
    facts = replace(facts, has_validation=facts.has_validation or bool(validated))
    view = plan_view(result, facts)
    specs = charts(result, facts, details)
    shown = {
        **_run_facts(result, facts),
        "is_redacted": is_redacted,
        "unit": facts.unit.name,
        "verdict": [_unbroken(sentence) for sentence in verdict(facts)],
        "is_negative": bool(facts.strategies) and recommended(facts) is None,
        "reasons": [_unbroken(text) for text in sections.reasons(details, facts)],
        "has_details": details is not None,
        "validation": validated,
        "strategies": sections.strategy_rows(facts),
        "requirements": requirement_rows(facts),
        "plan": None if view is None else plan_page(view),
        "sampling": sampling_part(result.run, facts),
        "sweep": None if sweep is None else sweep_view(sweep, str(result.run["digest"])),
        "partitions": sections.partition_groups(result, facts),
        "waterfall": sections.waterfall_table(details, facts),
        "waterfall_charts": [(f"waterfall-{strategy.index}", strategy.label)
                             for strategy, _ in drawn_waterfalls(details, facts)],
        "matrices": sections.matrices(details),
        "diagnosis": sections.diagnosis_parts(details),
        "traces": sections.trace_rows(result),
        **({} if view is not None else _replay_parts(result, facts)),
    }
    return render_page("report.html", shown, specs, is_static=is_static)


def _replay_parts(result: Result, facts: Facts) -> dict[str, Any]:
    """What a single replay tells from the samples of its hosts."""
    samples = read_samples(result, facts)
    return {
        "over_time": sections.time_table(samples, facts),
        "reach": sections.reach_rows(samples, facts),
        "bursts": sections.burst_rows(samples, facts),
        "headroom": sections.headroom_rows(samples, result, facts),
    }


def _run_facts(result: Result, facts: Facts) -> dict[str, Any]:
    """What ran: the header, warnings, assumptions, inputs."""
    run = result.run
    # Extrapolations have a box of their own.
    told = {clean(note, 1000) for note in (facts.plan or {}).get("notes", ())} \
        if is_told(facts.plan) else set()
    span_ns = min((int(trace["span_ns"]) for trace in run["traces"]), default=0)
    return {
        "title": facts.title,
        "digest": facts.digest,
        "started": clean(run["created"], 40),
        "versions": ", ".join(f"{clean(k, 24)} {clean(v, 40)}" for k, v in run["versions"].items()),
        "seed": clean(run["seed"], 24),
        "n_guests": format_count(facts.n_guests),
        "n_hosts": format_count(facts.n_hosts),
        "horizon": format_duration(facts.horizon_ns),
        "span": format_duration(span_ns),
        "is_beyond_span": facts.horizon_ns > span_ns,
        "has_sensitive": facts.has_sensitive,
        "has_validation": facts.has_validation,
        "is_measured": facts.is_measured,
        "warnings": [text for text in facts.warnings if text not in told],
        "timings": facts.timings,
        "assumptions": [clean(text, 1000) for text in run["assumptions"]],
        "scenario": _shown_json(result.scenario),
        "run": _shown_json({key: value for key, value in run.items() if key not in _VOLATILE}),
    }
