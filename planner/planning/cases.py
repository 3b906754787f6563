"""Sweeps: the cases of one as a table, and as what sensitivities are worked out from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.planning.requirements import value_of
from planner.planning.sensitivity import Case

__all__ = ["case_rows", "cases_of"]

#: Metrics of a case in a table, in order.
CASE_METRICS = ("saved", "saved_zero", "merge_cpu", "hosts_needed", "unmerge_headroom",
                "cow_breaks", "cross_domain_pages")

Swept = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def case_rows(swept: Swept) -> list[dict[str, Any]]:
    """One row per case and policy from pairs of (inputs set, plan of the case).

    `inputs` holds what was set, `policy` the policy, `metrics` by name the median and interval, and
    `n_failed` how many requirements on the policy failed.
    """
    rows = []
    for inputs, plan in swept:
        for policy in plan["policies"]:
            failed = sum(not verdict["is_held"] for verdict in plan["requirements"]
                         if verdict["policy"] == policy["policy"])
            rows.append({
                "inputs": dict(inputs), "policy": policy["policy"], "n_failed": failed,
                "metrics": {name: policy["metrics"][name] for name in CASE_METRICS
                            if name in policy["metrics"]}})
    return rows


def cases_of(swept: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
             metric: str = "saved") -> list[Case]:
    """Cases for `effects` from pairs of (inputs set, rows of the table of replicates): the mean
    of a metric over replicates by policy, where it is known in all."""
    cases = []
    for inputs, rows in swept:
        values: dict[str, list[float | None]] = {}
        for row in rows:
            if row["resample"] < 0:
                values.setdefault(row["policy"], []).append(value_of(row, metric))
        cases.append(Case(dict(inputs), {
            policy: sum(known) / len(known) for policy, found in values.items()
            if (known := [value for value in found if value is not None])
            and len(known) == len(found)}))
    return cases
