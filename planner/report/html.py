"""The report as one HTML file that opens from disk and loads nothing.

A content security policy of `default-src 'none'` makes the browser itself enforce that. Every
figure a chart draws also stands in a table, for readers without scripts. The same result gives
the same bytes: there is no clock and no random id here, dates come from the run's own record.
"""

from __future__ import annotations

import json
import re
import unicodedata
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any

from planner.report.charts import charts, look, saved_over_time, shortfall_bytes, time_unit
from planner.report.facts import UNPRINTABLE, Facts, clean, gather, memory_unit, verdict
from planner.units import format_count, format_duration, format_share

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["render_html", "script_json"]

#: Partitions shown per policy; all of them stay in partitions.parquet.
MAX_PARTITIONS = 10
_MAX_DOMAINS = 5
#: What differs between two runs of one scenario; the date stands in the header alone.
_VOLATILE = frozenset({"created", "elapsed_s"})
#: Longest text shown in the folded scenario.
_MAX_VALUE = 300
_SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")

#: What a script element may not contain unescaped, and what old engines read as a line end.
_SCRIPT_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026",
                   0x2028: "\\u2028", 0x2029: "\\u2029"}


def script_json(value: object) -> str:
    """JSON that stays inside its script element whatever the strings in it hold."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"),
                      allow_nan=False)
    return text.translate(_SCRIPT_ESCAPES)


def _asset(name: str) -> str:
    return (resources.files("planner.report") / "assets" / name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """A vendored script without its source map line, which browsers would try to load."""
    lines = _asset(name).splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL="))


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


def _per_core_hour(facts: Facts, saved_bytes: int, cpu_ns: int) -> str:
    if cpu_ns <= 0 or saved_bytes <= 0:
        return "–"
    unit = memory_unit(round(saved_bytes * 3600e9 / cpu_ns))
    return unit.text(round(saved_bytes * 3600e9 / cpu_ns))


def _strategy_rows(facts: Facts) -> list[dict[str, Any]]:
    unit, rows = facts.unit, []
    for strategy, missed in zip(facts.strategies, shortfall_bytes(facts), strict=True):
        row, style = strategy.row, look(strategy.index)
        time_to_90_ns = row["time_to_90_ns"]
        rows.append({
            "label": strategy.label,
            "colour": style.colour,
            "is_baseline": strategy.index == 0,
            "is_safe": strategy.is_safe,
            "merge": clean(row["merge"], 80),
            "partition_by": clean(row["partition_by"], 80),
            "n_partitions": format_count(int(row["n_partitions"])),
            "saved": unit.figures(strategy.saved_bytes),
            "share": format_share(strategy.saved_share),
            "zero": unit.figures(int(row["saved_zero_bytes"])),
            "missed": unit.figures(missed),
            "cross": format_count(int(row["cross_domain_pages"])),
            "sensitive": format_count(int(row["cross_domain_sensitive_pages"])),
            "is_sensitive_shared": int(row["cross_domain_sensitive_pages"]) > 0,
            "cpu": format_duration(int(row["merge_cpu_ns"])),
            "cpu_share": format_share(float(row["merge_cpu_share"])),
            "to_90": "–" if time_to_90_ns is None else format_duration(int(time_to_90_ns)),
            "cow": format_count(int(row["cow_breaks"])),
            "unmerge": unit.figures(int(row["unmerge_bytes"])),
            "guest_memory": unit.figures(int(row["guest_memory_bytes"])),
            "eligible": unit.figures(int(row["eligible_bytes"])),
            "shared": format_count(int(row["pages_shared"])),
            "sharing": format_count(int(row["pages_sharing"])),
            "unshared": format_count(int(row["pages_unshared"])),
            "volatile": format_count(int(row["pages_volatile"])),
            "full_scans": format_count(int(row["full_scans"])),
            "profit": unit.figures(int(row["general_profit_bytes"])),
            "metadata": unit.figures(int(row["metadata_bytes"])),
            "peak": unit.figures(int(row["saved_peak_bytes"])),
            "mean": unit.figures(int(row["saved_mean_bytes"])),
            "per_core_hour": _per_core_hour(facts, strategy.saved_bytes,
                                            int(row["merge_cpu_ns"])),
        })
    return rows


def _time_table(result: Result, facts: Facts) -> dict[str, Any]:
    """The figures of the chart over time: a row a time, a column a policy."""
    name, unit_ns = time_unit(facts.horizon_ns)
    times, saved = saved_over_time(result, facts)
    rows = [[f"{t / unit_ns:.2f}".rstrip("0").rstrip(".")]
            + [facts.unit.figures(saved[s.label].get(t)) for s in facts.strategies]
            for t in times]
    return {"unit": name, "rows": rows}


def _domains(row: dict[str, Any]) -> str:
    names = [clean(name, 32) for name in (row["domains"] or [])[:_MAX_DOMAINS]]
    more = int(row["n_domains"]) - len(names)
    return ", ".join(names) + (f" and {format_count(more)} more" if more > 0 and names else "")


def _partition_groups(result: Result, facts: Facts) -> list[dict[str, Any]]:
    """By policy: the partitions that save most, largest first."""
    unit = facts.unit
    order = {s.name: s.index for s in facts.strategies}
    rows = sorted(result.partitions.to_pylist(),
                  key=lambda r: (order[r["policy"]], -r["saved_bytes"], r["host"], r["partition"]))
    groups = []
    for policy, members in groupby(rows, key=lambda r: r["policy"]):
        found = list(members)
        groups.append({
            "label": facts.labels[policy],
            "colour": look(order[policy]).colour,
            "n_partitions": format_count(len(found)),
            "n_left_out": max(len(found) - MAX_PARTITIONS, 0),
            "rows": [{
                "host": clean(row["host"]),
                "partition": clean(row["partition"]),
                "domains": _domains(row),
                "guests": format_count(row["n_guests"]),
                "eligible": format_count(row["eligible_pages"]),
                "saved": unit.figures(row["saved_bytes"]),
                "zero": unit.figures(row["saved_zero_bytes"]),
                "shared": format_count(row["pages_shared"]),
                "sharing": format_count(row["pages_sharing"]),
                "cross": format_count(row["cross_domain_pages"]),
                "sensitive": format_count(row["cross_domain_sensitive_pages"]),
                "cpu": format_duration(row["merge_cpu_ns"]),
            } for row in found[:MAX_PARTITIONS]],
        })
    return groups


def _trace_rows(result: Result) -> list[dict[str, str]]:
    return [{
        "path": clean(trace["path"], 200),
        "status": clean(trace["status"], 24),
        "digest": clean(trace["digest"], 80),
        "guests": format_count(trace["n_guests"]),
        "snapshots": format_count(trace["n_snapshots"]),
        "pages": format_count(trace["n_pages"]),
        "span": format_duration(trace["span_ns"]),
        "hash": clean(f"{trace['hash']}, key {trace['key_id']}", 60),
    } for trace in result.run["traces"]]


def render_html(result: Result) -> str:
    """The report of `result` as one HTML document.

    Reads the template, style and vendored scripts of this package and nothing else.
    """
    # Loading jinja2 takes longer than all the rest of a terminal report.
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    facts = gather(result)
    run = result.run
    environment = Environment(
        loader=DictLoader({"report.html": _asset("report.html")}), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)
    shown = {
        "title": facts.title,
        "digest": facts.digest,
        "started": clean(run["created"], 40),
        "versions": ", ".join(f"{clean(k, 24)} {clean(v, 40)}" for k, v in run["versions"].items()),
        "seed": clean(run["seed"], 24),
        "n_guests": format_count(facts.n_guests),
        "n_hosts": format_count(facts.n_hosts),
        "horizon": format_duration(facts.horizon_ns),
        "unit": facts.unit.name,
        "verdict": [_unbroken(sentence) for sentence in verdict(facts)],
        "has_sensitive": facts.has_sensitive,
        "has_validation": facts.has_validation,
        "is_measured": facts.is_measured,
        "warnings": facts.warnings,
        "timings": facts.timings,
        "strategies": _strategy_rows(facts),
        "over_time": _time_table(result, facts),
        "partitions": _partition_groups(result, facts),
        "assumptions": [clean(text, 1000) for text in run["assumptions"]],
        "traces": _trace_rows(result),
        "scenario": _shown_json(result.scenario),
        "run": _shown_json({key: value for key, value in run.items() if key not in _VOLATILE}),
        # Everything below is our own, or JSON that cannot leave its element.
        "specs": {key: Markup(script_json(spec))
                  for key, spec in charts(result, facts).items()},
        "style": Markup(_asset("report.css")),
        "vendored": [Markup(_script(name)) for name in _SCRIPTS],
        "draw": Markup(_asset("report.js")),
    }
    return environment.get_template("report.html").render(shown)
