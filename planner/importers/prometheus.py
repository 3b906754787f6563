"""node_exporter's text and the JSON of Prometheus' `query_range` and `query`.

Counters: `node_ksmd_*` (collector ksmd, off by default; its sleep is in seconds), `cow_ksm` and
`ksm_swpin_copy` of the vmstat collector where its filter lets them through, and the CPU time of
ksmd from process-exporter (`namedprocess_namegroup_cpu_seconds_total{groupname="ksmd"}`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from planner.counters import Sample
from planner.importers.counters import Options, Read, counter_of, unix_ns
from planner.importers.textfile import Source, fault, parse_json, shown, whole_number

__all__ = ["read"]

_NS = 10**9
_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+(-?[0-9]{1,20}))?\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(,|$)')
_NOT_FINITE = frozenset({"NaN", "+Inf", "-Inf", "Inf"})


def _counter(metric: str, labels: Mapping[str, str]) -> tuple[str, int] | None:
    """The counter that a metric stands for, and what one unit of it is worth."""
    name = metric.removeprefix("node_ksmd_")
    if name != metric:
        if name == "sleep_seconds":
            return "sleep_millisecs", 1000
        if name == "general_profit_bytes":
            return "general_profit", 1
        known = counter_of(name.removesuffix("_total"))
        return (known, 1) if known else None
    if metric in ("node_vmstat_cow_ksm", "node_vmstat_ksm_swpin_copy"):
        return metric.removeprefix("node_vmstat_"), 1
    if metric == "namedprocess_namegroup_cpu_seconds_total" and labels.get("groupname") == "ksmd" \
            and labels.get("mode") == "system":
        return "ksmd_cpu_ns", _NS  # a kernel thread has no user time
    return None


def read(source: Source, options: Options) -> Read:
    """Samples of one file in either form."""
    found = Read()
    if source.text.lstrip().startswith(("{", "[")):
        _json(source, options, found)
    else:
        _text(source, options, found)
    return found


def _labels(source: Source, text: str | None, line: int) -> dict[str, str]:
    labels: dict[str, str] = {}
    position = 0
    while text and position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise fault(source, f"labels are malformed: {shown(text[position:])}", line)
        if match[1] in labels:
            raise fault(source, f"label {match[1]} is given twice", line)
        labels[match[1]] = match[2]
        position = match.end()
    return labels


def _text(source: Source, options: Options, found: Read) -> None:
    seen: set[tuple[str, int]] = set()
    for number, line in source.lines():
        # Other metrics are none of our business, however they are written.
        if not line.startswith(("node_ksmd_", "node_vmstat_", "namedprocess_")):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise fault(source, f"expected `name{{labels}} value`, got {shown(line)}", number)
        metric, label_text, value_text, stamp = match.groups()
        known = _counter(metric, _labels(source, label_text, number))
        if known is None:
            found.skipped["metric that is no KSM counter"] += 1
            continue
        if value_text in _NOT_FINITE:
            found.skipped["value that is not finite"] += 1
            continue
        value = whole_number(value_text, known[1])
        if value is None:
            raise fault(source, f"{metric} is {shown(value_text)}, expected a number", number)
        time_ns = unix_ns(stamp, 1000) if stamp else source.mtime_ns
        if time_ns is None:
            raise fault(source, f"time {stamp} is not in milliseconds since 1970", number)
        if not time_ns:
            raise fault(source, "the text has no times", number,
                        "save it to a file, whose time is taken, or use query_range")
        if (known[0], time_ns) in seen:
            raise fault(source, f"{metric} is given twice", number)
        seen.add((known[0], time_ns))
        if not stamp and not found.notes:
            found.notes.append("the text has no times: each file's own time (mtime) is taken")
        found.add(source, Sample(time_ns, options.host, known[0], value), number)


def _json(source: Source, options: Options, found: Read) -> None:
    document = parse_json(source)
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or document.get("status") != "success":
        raise fault(source, "not a successful answer of Prometheus",
                    instead="save the answer of /api/v1/query_range")
    result = data.get("result")
    if data.get("resultType") not in ("matrix", "vector") or not isinstance(result, list):
        raise fault(source, f"resultType is {shown(data.get('resultType'))}, expected matrix",
                    instead="use /api/v1/query_range")
    for index, series in enumerate(result):
        where = f"data.result[{index}]"
        metric = series.get("metric") if isinstance(series, dict) else None
        if not isinstance(metric, dict) or not all(
                isinstance(value, str) for value in metric.values()):
            raise fault(source, f"{where}.metric is no object of texts")
        known = _counter(metric.get("__name__", ""), metric)
        if known is None:
            found.skipped["metric that is no KSM counter"] += 1
            continue
        host = re.sub(r":[0-9]+$", "", metric.get("node") or metric.get("instance")
                      or options.host)
        values = series.get("values", [series["value"]] if "value" in series else [])
        if not isinstance(values, list):
            raise fault(source, f"{where}.values is no list")
        for position, pair in enumerate(values):
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], str):
                raise fault(source, f"{where}.values[{position}] is no [time, \"value\"]")
            if pair[1] in _NOT_FINITE:
                found.skipped["value that is not finite"] += 1
                continue
            time_ns, value = unix_ns(pair[0], 1), whole_number(pair[1], known[1])
            if time_ns is None or value is None:
                raise fault(source, f"{where}.values[{position}] is [{shown(pair[0])}, "
                            f"{shown(pair[1])}], expected a Unix time and a number")
            found.add(source, Sample(time_ns, host, known[0], value))
