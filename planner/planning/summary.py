"""The summary row of a fleet run: medians over replicates, so that every report reads one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from planner.metrics import SUMMARY
from planner.planning.outcomes import Outcome

__all__ = ["summary_row"]


def summary_row(policy: Mapping[str, str], outcomes: Sequence[Outcome], window_ns: int,
                ) -> dict[str, Any]:
    """One row of SUMMARY from the outcomes of a policy; those of refits do not count.

    `policy` gives the texts `policy`, `merge` and `partition_by`. Levels are means over time after
    the warm-up, counters what they rose by since; each is the median of the replicates in which it
    is known. Raises ValueError where there is no replicate.
    """
    found = [{**each.row, **each.counters, "merge_cpu_share":
              each.row["merge_cpu_ns"] / window_ns if window_ns else 0.0}
             for each in outcomes if each.row["resample"] < 0]
    if not found:
        raise ValueError(f"policy {policy['policy']}: no replicate")
    row: dict[str, Any] = dict(policy)
    for field in SUMMARY.schema:
        if field.name not in row:
            known = [each[field.name] for each in found if each.get(field.name) is not None]
            middle = median(known) if known else None
            row[field.name] = middle if middle is None or isinstance(known[0], float) \
                else round(middle)
    return row
