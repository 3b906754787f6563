"""What a planner tells of a comparison: the document that a results folder keeps as plan.json.

Keys carry their units (`_bytes`, `_ns`, `_share`); figures are medians over replicates with the
bounds of 90 % of them, differences are paired by replicate at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from planner.measures import METRICS
from planner.metrics import CPU_KINDS
from planner.planning.hosts import fit_shares, hosts_needed, overcommit, safe_over_replicates
from planner.planning.intervals import (
    DIFFERENCE_LEVEL,
    SPREAD_LEVEL,
    Interval,
    difference,
    shifted,
    spread,
)
from planner.planning.merging import distribution
from planner.planning.money import Use, money, slowdown_share
from planner.planning.outcomes import Outcome
from planner.planning.requirements import check, value_of
from planner.planning.sensitivity import at_rest_effects, at_rest_of
from planner.planning.storms import MAX_STORMS, STORM_SHARE_PER_MINUTE
from planner.scenario.spec import Scenario

__all__ = ["FORMAT_VERSION", "plan", "safe_shares"]

FORMAT_VERSION = 1
_DEFAULT_CONFIDENCE = 0.95
_HUGE_BYTES = 2 << 20
_PAGE_BYTES = 4096
#: A rise of the saving from the first to the second half of the counted time that is worth a word.
_SETTLED = 0.05

Row = Mapping[str, Any]


def plan(scenario: Scenario, outcomes: Iterable[Outcome], *, digest: str = "",
         notes: Sequence[str] = ()) -> dict[str, Any]:
    """The document for all outcomes of a run; those of refits on resampled guests (`resample` at
    least 0) only give the second interval of the saving.

    `notes` say how far the run extrapolates. Policies without an outcome (an interrupted run) are
    left out.
    """
    outcomes = list(outcomes)
    confidence = scenario.fleet.confidence if scenario.fleet else _DEFAULT_CONFIDENCE
    by_policy = {policy.name: [each for each in outcomes if each.row["policy"] == policy.name]
                 for policy in scenario.policies}
    rows = {name: sorted((each.row for each in found if each.row["resample"] < 0),
                         key=lambda row: int(row["replicate"]))
            for name, found in by_policy.items()}
    rows = {name: found for name, found in rows.items() if found}
    baseline = next(iter(rows), "")
    policies = [_policy(scenario, name, rows, baseline, by_policy[name], confidence)
                for name in rows]
    any_row = rows[baseline][0] if rows else {}
    return {
        "format_version": FORMAT_VERSION, "kind": "planner.plan", "digest": digest,
        "baseline": baseline, "confidence": float(confidence),
        "n_replicates": max((len(found) for found in rows.values()), default=0),
        "n_resamples": len({each.row["resample"] for each in outcomes
                            if each.row["resample"] >= 0}),
        "interval_level": SPREAD_LEVEL, "difference_level": DIFFERENCE_LEVEL,
        "warm_up_ns": scenario.warm_up_ns, "horizon_ns": scenario.horizon_ns,
        "is_drawn": scenario.is_fleet,
        "n_machines": any_row.get("n_machines", 0),
        "n_hosts": _middle([row["n_hosts"] for row in rows[baseline]]) if rows else 0,
        "n_hosts_used": _middle([row["hosts_used"] for row in rows[baseline]]) if rows else 0,
        "is_sampled": any(row["n_hosts"] < row["hosts_used"] or row["content_share"] < 1
                          for row in rows.get(baseline, ())),
        "content_share": any_row.get("content_share", 1.0),
        "n_guests": _middle([row["n_guests"] for row in rows[baseline]]) if rows else 0,
        "policies": policies,
        "differences": _pairs(rows, baseline),
        "requirements": [check(require, rows.get(require.policy, [])).to_json()
                         for require in scenario.require],
        "sensitivity": _sensitivity(scenario, rows),
        "notes": [*notes, *(_unsettled(scenario, outcomes) if scenario.is_fleet else ())],
    }


def safe_shares(outcomes: Iterable[Outcome], confidence: float) -> dict[str, float]:
    """By policy the share of guest memory that may be counted on at `confidence`: over machines
    and time in each replicate, then over replicates."""
    found: dict[str, list[float]] = {}
    for each in outcomes:
        if each.row["resample"] < 0:
            found.setdefault(each.row["policy"], []).append(each.row["safe_share"])
    return {policy: safe_over_replicates(shares, confidence).share
            for policy, shares in found.items()}


def _unsettled(scenario: Scenario, outcomes: Sequence[Outcome]) -> list[str]:
    """What to say where savings still rise when they count: the warm-up is too short.

    The second half of the counted time is held against the first, in the median replicate.
    """
    warm_up_ns = scenario.warm_up_ns
    middle_ns = warm_up_ns + (scenario.horizon_ns - warm_up_ns) // 2
    rises: dict[str, list[float]] = {}
    for each in outcomes:
        halves: tuple[list[int], list[int]] = ([], [])
        for row in each.series:
            if row["time_ns"] >= warm_up_ns:
                halves[row["time_ns"] >= middle_ns].append(row["saved_bytes"])
        if each.row["resample"] < 0 and each.row["saved_bytes"] > 0 and all(halves):
            rises.setdefault(each.row["policy"], []).append(
                float(np.mean(halves[1]) - np.mean(halves[0])) / each.row["saved_bytes"])
    rising = [policy for policy, found in rises.items() if float(np.median(found)) > _SETTLED]
    if not rising:
        return []
    return [f"Savings still rise after the warm-up, by more than {_SETTLED:.0%} from the first "
            f"half to the second, under {', '.join(rising)}: a longer warm_up tells what they come "
            "to."]


def _policy(scenario: Scenario, name: str, rows: Mapping[str, Sequence[Row]], baseline: str,
            outcomes: Sequence[Outcome], confidence: float) -> dict[str, Any]:
    mine = rows[name]
    saved = spread([row["saved_bytes"] for row in mine])
    refits = [each.row["saved_bytes"] for each in outcomes if each.row["resample"] >= 0]
    safe = safe_over_replicates([row["safe_share"] for row in mine], confidence)
    storms = sorted(((row, storm) for each in outcomes if (row := each.row)["resample"] < 0
                     for storm in each.storms), key=lambda pair: -pair[1].n_breaks)
    needed = _needed(mine)
    return {
        "policy": name,
        "metrics": {metric: _metric(mine, metric) for metric in METRICS},
        "saved_error_bytes": _middle([row["saved_error_bytes"] for row in mine]),
        "saved_capture_interval_bytes": None if saved is None or (
            bounds := shifted(saved.median, refits, _n_free(scenario))) is None
        else [round(each) for each in bounds],
        "hosts": {"needed": hosts_needed(needed, confidence), "safe_share": safe.share,
                  "safe_overcommit": overcommit(safe.share), "confidence": safe.confidence,
                  "is_backed": safe.is_backed,
                  "fit": [list(pair) for pair in fit_shares(needed)]},
        "headroom": _headroom(mine),
        "free": _free(mine),
        "storms": {"share_per_minute": STORM_SHARE_PER_MINUTE,
                   "storm_ns": _middle([row["storm_ns"] for row in mine]),
                   "listed": [{"replicate": row["replicate"], **storm.to_json()}
                              for row, storm in storms[:MAX_STORMS]]},
        "time_to_merge": distribution(each.merged for each in outcomes
                                      if each.row["resample"] < 0),
        "cpu": {kind: _middle([row[kind] for row in mine]) for kind in CPU_KINDS},
        "huge_pages": _huge_pages(scenario, mine),
        "cgroups": _cgroups(mine),
        "money": _money(scenario, rows, name, baseline, confidence),
    }


def _n_free(scenario: Scenario) -> int:
    """How many captured guests there are beyond the first of each workload."""
    return sum(max(len(workload.guests) - 1, 0) for workload in scenario.workloads)


def _metric(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Median and interval over the replicates in which it is known (`n`), and as a share.

    A time that is not known was not reached: it is longer than any other.
    """
    values = [value for row in rows if (value := value_of(row, metric)) is not None]
    found = _times([value_of(row, metric) for row in rows]) if METRICS[metric].unit == "ns" \
        else spread(values)
    document: dict[str, Any] = asdict(found) if found is not None \
        else {"median": None, "low": None, "high": None, "n": 0}
    if METRICS[metric].whole_column:
        shares = [value for row in rows
                  if (value := value_of(row, metric, is_share=True)) is not None]
        share = spread(shares)
        document["share"] = None if share is None else asdict(share)
    return document


def _times(values: Sequence[float | None]) -> Interval | None:
    """Median and interval of times of which some may never have come; None where half did not."""
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return spread(known)
    found = sorted(known) + [math.inf] * (len(values) - len(known))
    middle = found[len(found) // 2] if len(found) % 2 else \
        (found[len(found) // 2 - 1] + found[len(found) // 2]) / 2
    return Interval(middle, None, None, len(known)) if math.isfinite(middle) else None


def _middle(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(float(np.median(known))) if known else None


def _needed(rows: Sequence[Row]) -> list[int]:
    """Hosts needed by replicate; empty unless it is known of all."""
    needed = [row["hosts_needed"] for row in rows]
    return [] if any(each is None for each in needed) else needed


def _headroom(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The worst host over all replicates; `n_short`: replicates in which some host would not
    fit. None where nothing merged, or free memory is not known."""
    known = [row for row in rows if row["headroom_worst_bytes"] is not None]
    if not known or not any(row["unmerge_worst_bytes"] for row in known):
        return None
    worst = min(known, key=lambda row: int(row["headroom_worst_bytes"]))
    return {"worst_bytes": worst["headroom_worst_bytes"], "host": worst["headroom_worst_host"],
            "time_ns": worst["headroom_worst_time_ns"], "replicate": worst["replicate"],
            "n_short": sum(row["headroom_worst_bytes"] < 0 for row in known)}


def _free(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The least free memory of any host while merged; negative where guests do not fit even so.
    None where memory is not known."""
    known = [row for row in rows if row["free_worst_bytes"] is not None]
    if not known:
        return None
    worst = min(known, key=lambda row: int(row["free_worst_bytes"]))
    return {"worst_bytes": worst["free_worst_bytes"], "host": worst["free_worst_host"],
            "time_ns": worst["free_worst_time_ns"], "replicate": worst["replicate"]}


def _huge_pages(scenario: Scenario, rows: Sequence[Row]) -> dict[str, Any] | None:
    splits = _middle([row["huge_splits"] for row in rows])
    if splits is None:
        return None
    return {"n_split": splits, "split_bytes": splits * _HUGE_BYTES,
            "split_share": _split_share(rows),
            "slowdown_share": slowdown_share(scenario.costs, _use(rows, None, 1))}


def _cgroups(rows: Sequence[Row]) -> dict[str, Any]:
    """What merging does to memory cgroups (mm/ksm.c: stable page and duplicates).

    The page that became the shared one stays charged to the cgroup of its guest, for as long as
    anybody shares it; duplicates are uncharged from theirs, and a COW copy is charged to the
    writer. `is_across_domains`: a guest may be charged for a page that other domains use.
    """
    return {"charged_bytes": (_middle([row["pages_shared"] for row in rows]) or 0) * _PAGE_BYTES,
            "uncharged_bytes": (_middle([row["pages_sharing"] for row in rows]) or 0)
            * _PAGE_BYTES,
            "is_across_domains": any(row["cross_domain_pages"] > 0 for row in rows)}


def _use(rows: Sequence[Row], hosts_saved: int | None, window_ns: int) -> Use:
    def middle(name: str) -> int:
        return _middle([row[name] for row in rows]) or 0

    return Use(hosts_saved, middle("saved_bytes"), middle("merge_cpu_ns"), middle("core_time_ns"),
               window_ns, _split_share(rows))


def _split_share(rows: Sequence[Row]) -> float | None:
    known = [share for row in rows if (share := row["huge_split_share"]) is not None]
    return float(np.median(known)) if known else None


def _money(scenario: Scenario, rows: Mapping[str, Sequence[Row]], name: str, baseline: str,
           confidence: float) -> dict[str, Any] | None:
    """A year's money against the baseline."""
    needed = {policy: hosts_needed(_needed(rows[policy]), confidence)
              for policy in (baseline, name)}
    before, after = needed[baseline], needed[name]
    hosts_saved = None if before is None or after is None else before - after
    found = money(scenario.costs, _use(rows[name], hosts_saved,
                                       scenario.horizon_ns - scenario.warm_up_ns))
    return None if found is None else {"hosts_saved": hosts_saved, **found.to_json()}


def _pairs(rows: Mapping[str, Sequence[Row]], baseline: str) -> list[dict[str, Any]]:
    """Paired differences: every metric against the baseline, the saving between all others."""
    names = list(rows)
    found = []
    for i, second in enumerate(names):
        for first in names[i + 1:]:
            for metric, measure in METRICS.items():
                if second != baseline and metric not in ("saved", "hosts_needed"):
                    continue
                pairs = _paired(rows[first], rows[second], metric)
                each = difference(np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]),
                                  identity=f"{first}/{second}/{metric}")
                if each is not None:
                    found.append({"first": first, "second": second, "metric": metric,
                                  **asdict(each), "verdict": each.verdict(measure.is_more_better)})
    return found


def _paired(first: Sequence[Row], second: Sequence[Row], metric: str,
            ) -> list[tuple[float, float]]:
    """Values of both by replicate, where both are known."""
    others = {row["replicate"]: value_of(row, metric) for row in second}
    pairs = [(value_of(row, metric), others.get(row["replicate"])) for row in first]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _sensitivity(scenario: Scenario, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """The closed-form estimate of each policy's saving around its median replicate, ranked."""
    window_ns = scenario.horizon_ns - scenario.warm_up_ns
    found = []
    for name, mine in rows.items():
        middle = sorted(mine, key=lambda row: int(row["saved_bytes"]))[len(mine) // 2]
        base = at_rest_of(middle, window_ns)
        if base is not None:
            found += [effect.to_json() for effect in at_rest_effects(name, base)]
    return found
