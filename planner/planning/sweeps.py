"""Sweeps: the cases of one as a table, and which of the swept inputs matter most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from planner.planning.requirements import value_of
from planner.planning.sensitivity import Point, effects

__all__ = ["FORMAT_VERSION", "inputs_of", "points_of", "sweep_document"]

FORMAT_VERSION = 1
#: Metrics of a case in the table, in order.
CASE_METRICS = ("saved", "saved_zero", "merge_cpu", "hosts_needed", "unmerge_headroom",
                "cow_breaks", "cross_domain_pages")

Inputs = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def inputs_of(overrides: Iterable[str]) -> dict[str, Any]:
    """What `KEY=VALUE` texts set: numbers as numbers, all else as text."""
    found: dict[str, Any] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        found[key.strip()] = _number(value.strip())
    return found


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sweep_document(cases: Sequence[tuple[Inputs, Mapping[str, Any], Rows]]) -> dict[str, Any]:
    """All cases of a sweep in one document, from their inputs, plans and rows of REPLICATES.

    `cases` holds one entry per case and policy: `inputs` what was set, `metrics` by name the median
    and interval, `n_failed` how many requirements on the policy failed. `effects` ranks the
    inputs by what they do to the saving.
    """
    return {
        "format_version": FORMAT_VERSION, "kind": "planner.sweep",
        "cases": [row for inputs, plan, _ in cases for row in _case_rows(inputs, plan)],
        "effects": [effect.to_json() for effect in effects(
            points_of([(inputs, rows) for inputs, _, rows in cases]))],
    }


def _case_rows(inputs: Inputs, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{
        "inputs": dict(inputs), "digest": plan["digest"], "policy": policy["policy"],
        "n_failed": sum(not verdict["is_held"] for verdict in plan["requirements"]
                        if verdict["policy"] == policy["policy"]),
        "metrics": {name: policy["metrics"][name] for name in CASE_METRICS},
    } for policy in plan["policies"]]


def points_of(cases: Sequence[tuple[Inputs, Rows]], metric: str = "saved") -> list[Point]:
    """Cases for `effects`: by policy the mean of a metric over replicates, where it is known in
    all of them."""
    points = []
    for inputs, rows in cases:
        values: dict[str, list[float | None]] = {}
        for row in rows:
            if row["resample"] < 0:
                values.setdefault(row["policy"], []).append(value_of(row, metric))
        points.append(Point(dict(inputs), {
            policy: sum(known) / len(known) for policy, found in values.items()
            if (known := [value for value in found if value is not None])
            and len(known) == len(found)}))
    return points
