"""What the sections of the page hold: plain texts, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from planner.report.chart_base import look, time_unit
from planner.report.charts import (
    STEP_NAMES,
    drawn_waterfalls,
    frontier,
    shortfall_bytes,
    waterfalls,
)
from planner.report.explain_text import waterfall_sentence
from planner.report.facts import (
    MIN_SAVED_SHARE,
    Facts,
    Strategy,
    best,
    clean,
    distinct,
    memory_unit,
    recommended,
)
from planner.report.series import Burst, Headroom, Samples, bursts, headrooms, reached
from planner.units import format_count, format_duration, format_share, format_size

if TYPE_CHECKING:
    from planner.metrics import Result

__all__ = ["MAX_PARTITIONS", "burst_rows", "diagnosis_parts", "headroom_rows", "matrices",
           "partition_groups", "reach_rows", "reasons", "strategy_rows", "time_table",
           "trace_rows", "waterfall_table"]

#: Partitions shown per policy; all of them stay in partitions.parquet.
MAX_PARTITIONS = 10
_MAX_DOMAINS = 5
#: Shares of the last saving of which the first time is told.
_REACHED = (0.5, 0.9, 0.99)
#: Steps of a waterfall that are no share of what guests use.
_NO_SHARE = ("host_memory", "cow_broken")

Details = Mapping[str, Any] | None


def _named(strategy: Strategy) -> dict[str, Any]:
    return {"label": strategy.label, "colour": look(strategy.index).colour}


def _per_core_hour(saved_bytes: int, cpu_ns: int) -> str:
    if cpu_ns <= 0 or saved_bytes <= 0:
        return "–"
    unit = memory_unit(round(saved_bytes * 3600e9 / cpu_ns))
    return unit.text(round(saved_bytes * 3600e9 / cpu_ns))


def strategy_rows(facts: Facts) -> list[dict[str, Any]]:
    """One row a policy with every figure of its summary."""
    unit, rows, chosen = facts.unit, [], recommended(facts)
    on_frontier = frontier(facts)
    for strategy, missed in zip(facts.strategies, shortfall_bytes(facts), strict=True):
        row = strategy.row
        time_to_90_ns = row["time_to_90_ns"]
        rows.append({
            **_named(strategy),
            "is_baseline": strategy.index == 0,
            "is_recommended": strategy is chosen,
            "is_on_frontier": strategy in on_frontier,
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
            "per_core_hour": _per_core_hour(strategy.saved_bytes, int(row["merge_cpu_ns"])),
        })
    return rows


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def time_table(samples: Samples, facts: Facts) -> dict[str, Any]:
    """The figures of the charts over time: a row a time, for each policy three columns.

    Cells are saved memory, merge CPU in seconds and COW breaks, each since the start.
    """
    name, unit_ns = time_unit(facts.horizon_ns)
    times, saved = samples.over_time(facts, "saved_bytes")
    cpu = samples.over_time(facts, "merge_cpu_ns")[1]
    undone = samples.over_time(facts, "cow_breaks")[1]

    def table(cell: Any) -> list[list[str]]:
        return [[_plain(t / unit_ns)] + [cell(s.label, t) for s in facts.strategies]
                for t in times]

    def seconds(label: str, t: int) -> str:
        return _plain(cpu[label][t] / 1e9) if t in cpu[label] else "–"

    def count(label: str, t: int) -> str:
        return format_count(undone[label][t]) if t in undone[label] else "–"

    return {"unit": name,
            "saved": table(lambda label, t: facts.unit.figures(saved[label].get(t))),
            "cpu": table(seconds), "undone": table(count)}


def reach_rows(samples: Samples, facts: Facts) -> list[dict[str, Any]]:
    """By policy that saves anything: when it first had 50, 90 and 99 % of its last saving."""
    rows = []
    for strategy in facts.strategies:
        line = samples.total(strategy.label, "saved_bytes")
        times = [reached(line, share) for share in _REACHED]
        if times[0] is not None:
            rows.append({**_named(strategy),
                         "times": [format_duration(t) for t in times if t is not None]})
    return rows


def burst_rows(samples: Samples, facts: Facts) -> list[dict[str, Any]]:
    """By policy: the interval in which most merges a second were undone."""
    def row(burst: Burst) -> dict[str, Any]:
        return {**_named(burst.strategy), "host": clean(burst.host),
                "start": format_duration(burst.start_ns), "end": format_duration(burst.end_ns),
                "n": format_count(burst.n_breaks), "rate": format_count(round(burst.per_second)),
                "share": format_share(burst.n_breaks / burst.n_all) if burst.n_all else "–"}

    return [row(burst) for burst in bursts(samples, facts)]


def headroom_rows(samples: Samples, result: Result, facts: Facts) -> list[dict[str, Any]]:
    """By policy: what undoing every merge would need on its worst host at its worst moment."""
    def row(room: Headroom) -> dict[str, Any]:
        return {**_named(room.strategy), "host": clean(room.host),
                "time": format_duration(room.time_ns), "needed": format_size(room.needed_bytes),
                "in_use": format_size(room.in_use_bytes),
                "available": format_size(room.available_bytes),
                "left": format_size(room.left_bytes), "fits": room.left_bytes >= 0}

    return [row(room) for room in headrooms(samples, result, facts)]


def _domains(row: Mapping[str, Any]) -> str:
    names = [clean(name, 32) for name in (row["domains"] or [])[:_MAX_DOMAINS]]
    more = int(row["n_domains"]) - len(names)
    return ", ".join(names) + (f" and {format_count(more)} more" if more > 0 and names else "")


def partition_groups(result: Result, facts: Facts) -> list[dict[str, Any]]:
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


def trace_rows(result: Result) -> list[dict[str, str]]:
    """What was replayed."""
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


def waterfall_table(details: Details, facts: Facts) -> dict[str, Any] | None:
    """Where the memory went under each policy that merges: a row a step, a column a policy."""
    found = waterfalls(details, facts)
    if not found:
        return None
    unit = memory_unit(max((abs(int(step["n_bytes"])) for _, document in found
                            for step in document["steps"] if step["key"] != "host_memory"),
                           default=0))
    # Documents leave out steps of zero bytes: the order is that of all steps there can be.
    rows: dict[str, dict[str, Any]] = {
        key: {} for key in ("host_memory", *STEP_NAMES)}
    for part in ("steps", "memos"):
        for _, document in found:
            for step in document[part]:
                rows[step["key"]] = {
                    "key": step["key"], "text": clean(_without_count(step), 100),
                    "is_total": bool(step["is_total"]), "is_memo": part == "memos"}
    rows = {key: row for key, row in rows.items() if row}
    for row in rows.values():
        row["cells"] = [_step_cell(document, str(row["key"]), unit) for _, document in found]
    return {"unit": unit.name, "strategies": [_named(strategy) for strategy, _ in found],
            "rows": list(rows.values()),
            "sentences": [clean(waterfall_sentence({**document, "policy": strategy.label}), 1000)
                          for strategy, document in drawn_waterfalls(details, facts)]}


def _without_count(step: Mapping[str, Any]) -> str:
    """The text of a step without what differs by policy."""
    text = str(step["text"])
    return text.rsplit(":", 1)[0] if step["key"] == "cow_broken" else text


def _step_cell(document: Mapping[str, Any], key: str, unit: Any) -> dict[str, str]:
    steps = [*document["steps"], *document["memos"]]
    in_use = next((int(s["n_bytes"]) for s in steps if s["key"] == "in_use"), 0)
    n_bytes = next((int(s["n_bytes"]) for s in steps if s["key"] == key), None)
    if n_bytes is None:
        return {"text": "0", "share": ""}
    share = format_share(abs(n_bytes) / in_use) if in_use and key not in _NO_SHARE else ""
    return {"text": unit.figures(n_bytes), "share": share}


def matrices(details: Details) -> list[dict[str, Any]]:
    """Who shares with whom; `heat` is a cell's percentage of the greatest between two."""
    shown = []
    for matrix in (details or {}).get("sharing", ()):
        labels = distinct(matrix["members"], 24)
        names = [labels[str(name)] for name in matrix["members"]]
        cells = matrix["cells"]
        unit = memory_unit(max(matrix["held_bytes"], default=0))
        between = [n for i, row in enumerate(cells) for j, n in enumerate(row) if i != j]
        most = max([*between, *(cells[i][i] for i in range(len(cells)))], default=0) or 1
        shown.append({
            "key": clean(matrix["key"]), "unit": unit.name, "names": names,
            "n_left_out": int(matrix["n_left_out"]),
            "has_apart": any(any(row) for row in matrix["is_apart"]),
            "rows": [{"name": name, "held": unit.figures(held), "cells": [
                {"text": unit.figures(n), "heat": round(100 * n / most),
                 "is_own": i == j, "is_apart": bool(matrix["is_apart"][i][j])}
                for j, n in enumerate(row)]}
                for i, (name, held, row) in enumerate(zip(
                    names, matrix["held_bytes"], cells, strict=True))],
        })
    return shown


def _trace_name(path: object) -> str:
    """The name of a trace's folder; the whole path stands under the inputs."""
    return clean(str(path).rstrip("/").rsplit("/", 1)[-1], 80)


def diagnosis_parts(details: Details) -> list[dict[str, Any]]:
    """By trace: why memory would not merge, and what it is."""
    def rows(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        return [{"text": clean(part["text"], 160), "size": format_size(int(part["n_bytes"])),
                 "share": format_share(float(part["share"])),
                 "instead": clean(part["instead"], 200) if part["instead"] else ""}
                for part in parts]

    return [{"trace": _trace_name(each["trace"]), "size": format_size(int(each["n_bytes"])),
             "obstacles": rows(each["obstacles"]), "contents": rows(each["contents"]),
             "notes": [clean(note, 400) for note in each["notes"]]}
            for each in (details or {}).get("diagnosis", ())]


def reasons(details: Details, facts: Facts) -> list[str]:
    """Where nothing is worth enabling: what the memory is instead, most first."""
    safe = best(s for s in facts.strategies if s.is_safe)
    if recommended(facts) is not None or (
            safe is not None and safe.saved_share >= MIN_SAVED_SHARE):
        return []
    found = waterfalls(details, facts)
    told = []
    if found:
        strategy, document = max(found, key=lambda each: each[0].saved_bytes)
        in_use = next((int(s["n_bytes"]) for s in document["steps"] if s["key"] == "in_use"), 0)
        losses = sorted((s for s in document["steps"] if s["n_bytes"] < 0),
                        key=lambda s: int(s["n_bytes"]))
        told += [f"{format_size(-int(s['n_bytes']))} "
                 f"({format_share(-int(s['n_bytes']) / in_use if in_use else 0.0)}) of the memory "
                 f"under {strategy.label}: {clean(s['text'], 120)}." for s in losses[:3]]
    for each in (details or {}).get("diagnosis", ()):
        most = max(each["obstacles"], key=lambda part: int(part["n_bytes"]), default=None)
        if most is not None:
            advice = f"; {clean(most['instead'], 200)}" if most["instead"] else ""
            told.append(f"{format_size(int(most['n_bytes']))} ({format_share(most['share'])}) of "
                        f"the trace {_trace_name(each['trace'])} is "
                        f"{clean(most['text'], 160)}{advice}.")
    return told
