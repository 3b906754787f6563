"""A host of which only a share of the contents is simulated, at the pace of the whole host.

Of N pages, N * c are in the arrays (`FleetHost.content_share` = c). For a cursor that passes them
as it would pass all, a batch of n pages becomes one of n * c, each visit of which takes 1 / c
times as long: elapsed and CPU time stay what they are. Where n * c would be less than a page or
two, k batches become one: of n * c * k pages, with a timer tick k times as long, so that the sleep
between two batches, rounded up to ticks as the kernel does, is k times as long as well. The cursor
becomes continuous; nothing else looks at ticks but the age of chains, which is told in ticks, too.

Counts of pages and bytes are then 1 / c too small and are brought to full size in what is
recorded (`FullSizeRecorder`); times are right as they are. `max_page_sharing` stays: what frequent
contents save depends on the ratio of pages to KSM pages, which a share of the copies keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost
from planner.kernels import ksmstate as k
from planner.ksm.cost import NEAR_LEVELS, CostModel
from planner.ksm.knobs import Knobs
from planner.ksm.space import sleep_jiffies
from planner.metrics import Recorder
from planner.policies.partition import partition_classes
from planner.scenario.spec import Ksmd, Ksmtuned, KubeVirt, Merge, PolicySpec, Sync
from planner.tables import TableKind

__all__ = ["FullSizeRecorder", "Scale", "scale_of", "scaled_cost", "scaled_knobs",
           "scaled_policy"]

#: Pages of a batch that cover its fixed work; more make no run faster.
_BATCH_PAGES = 64
#: Batches per full scan of a partition, at least, when several become one.
_BATCHES_PER_SCAN = 20
#: Longest simulated time between two batches that are several in one.
_LONGEST_STEP_NS = 2_000_000_000
_HUGE_PAGES = 512


@dataclass(frozen=True, slots=True)
class Scale:
    """`share`: of contents (0 to 1]. `hz`: timer frequency to simulate with, of `real_hz`."""

    share: float = 1.0
    hz: int = 250
    real_hz: int = 250

    @property
    def n_batches(self) -> float:
        """How many batches of a scanner one simulated batch stands for."""
        return self.real_hz / self.hz

    @property
    def pages(self) -> float:
        """Pages of a simulated batch for each page of a real one."""
        return self.share * self.n_batches

    @property
    def huge(self) -> float:
        """Share of huge pages that have any page in the sample."""
        return 1.0 - (1.0 - self.share) ** _HUGE_PAGES if self.share < 1 else 1.0


# ---- how many batches in one --------------------------------------------------------------------


def scale_of(host: FleetHost, policy: PolicySpec) -> Scale:
    """How to simulate `host`, of which `content_share` is there, under `policy`."""
    share, hz = host.content_share, host.spec.hz
    if share >= 1:
        return Scale(1.0, hz, hz)
    batches = [n for n in _batch_pages(policy) if n > 0]
    if not batches:
        return Scale(share, hz, hz)
    most = min(_BATCH_PAGES / (min(batches) * share),
               _sites_per_partition(host, policy) / _BATCHES_PER_SCAN / (max(batches) * share),
               _LONGEST_STEP_NS / _cycle_ns(policy, hz))
    # Below a page a batch there is no pace at all.
    most = min(float(hz), max(most, 1.0, 1 / (min(batches) * share)))
    lowest_hz = math.ceil(hz / most)
    highest_hz = min(hz, max(lowest_hz, math.floor(hz / max(1.0, most / 4))))
    by_error = [(_rounding(batches, share * hz / each), each)
                for each in range(lowest_hz, highest_hz + 1)]
    # Of those that are as good as the best one, the one with the largest batches.
    best = min(error for error, _ in by_error)
    chosen = next(each for error, each in by_error if error <= max(best, 0.002))
    return Scale(share, chosen, hz)


def _rounding(batches: Iterable[int], pages: float) -> float:
    """The worst relative error of the pace when batches are whole pages."""
    return max(abs(max(1, round(n * pages)) / (n * pages) - 1) for n in batches)


def _merges(policy: PolicySpec) -> list[Merge]:
    return [policy.merge, *(rule.merge for rule in policy.partitions if rule.merge is not None)]


def _batch_pages(policy: PolicySpec) -> list[int]:
    """Pages of a batch that the scanners of a policy start with or come down to."""
    found: list[int] = []
    for merge in _merges(policy):
        if isinstance(merge, Ksmd):
            is_advised = merge.advisor_mode == "scan-time"
            found.append(_advised_pages(merge) if is_advised else merge.pages_to_scan)
        elif isinstance(merge, Ksmtuned):
            found.append(merge.npages_min)
        elif isinstance(merge, KubeVirt):
            found += [merge.pages_min, merge.pages_init]
    return found


def _advised_pages(merge: Ksmd) -> int:
    """Pages of a batch that the scan-time advisor starts from."""
    given = merge.advisor_min_pages_to_scan
    return Knobs().advisor_min_pages_to_scan if given is None else given


def _cycle_ns(policy: PolicySpec, hz: int) -> int:
    """The longest sleep of the policy's scanners, and a tick."""
    sleeps_ms = [merge.sleep_millisecs if isinstance(merge, Ksmd)
                 else merge.sleep_msec if isinstance(merge, Ksmtuned)
                 else merge.sleep_ms_baseline
                 for merge in _merges(policy) if isinstance(merge, Ksmd | Ksmtuned | KubeVirt)]
    return max(sleeps_ms, default=0) * 1_000_000 + 2 * 10**9 // hz


def _sites_per_partition(host: FleetHost, policy: PolicySpec) -> float:
    """Sampled pages of the partition that the middle eligible page belongs to."""
    of_class = partition_classes(host, policy).of_class
    of_site = of_class[host.site_class[host.site_eligible != 0]]
    sizes = np.sort(np.bincount(of_site[of_site >= 0]))
    if not sizes.sum():
        return 0.0
    # A tenth of the pages may lie in smaller ones.
    return float(sizes[np.searchsorted(np.cumsum(sizes), sizes.sum() / 10)])


# ---- knobs, policy and costs --------------------------------------------------------------------


def scaled_knobs(knobs: Knobs, scale: Scale) -> Knobs:
    """The files of a scanner as the sample needs them: fewer pages, longer sleeps.

    What scans something goes on doing so. Sleeps are as many of the longer ticks as they were of
    the host's own.
    """
    if scale.share >= 1:
        return knobs

    def pages(n: int) -> int:
        return max(min(n, 1), round(n * scale.pages))

    n_ticks = sleep_jiffies(knobs.sleep_millisecs, scale.real_hz)
    return replace(knobs, pages_to_scan=pages(knobs.pages_to_scan),
                   sleep_millisecs=n_ticks * 1000 // scale.hz,
                   advisor_min_pages_to_scan=pages(knobs.advisor_min_pages_to_scan),
                   advisor_max_pages_to_scan=pages(knobs.advisor_max_pages_to_scan))


def scaled_policy(policy: PolicySpec, scale: Scale) -> PolicySpec:
    """The policy with what it takes for a good saving a CPU second as the sample shows it."""
    if scale.share >= 1:
        return policy

    def scaled(merge: Merge) -> Merge:
        if not isinstance(merge, Sync) or merge.advisor is None:
            return merge
        target = round(merge.advisor.target_bytes_per_cpu_s * scale.share)
        return replace(merge, advisor=replace(merge.advisor, target_bytes_per_cpu_s=target))

    return replace(policy, merge=scaled(policy.merge), partitions=tuple(
        rule if rule.merge is None else replace(rule, merge=scaled(rule.merge))
        for rule in policy.partitions))


class _SampledCost(CostModel):
    """Costs of visits in a sample: of trees that are larger than those simulated."""

    __slots__ = ("_share",)
    _share: float

    def as_array(self) -> npt.NDArray[np.int64]:
        out = CostModel.as_array(self)
        levels = np.arange(k.MAX_LEVELS, dtype=np.float64)
        # A tree of n pages here has n / share in the whole host.
        real = np.where(levels > 0, levels - math.log2(self._share), 0.0)
        far = np.maximum(real - NEAR_LEVELS, 0.0)
        for first, level_ns, far_ns in (
                (k.COST_STABLE, self.stable_level_ns, self.stable_far_ns),
                (k.COST_UNSTABLE, self.unstable_level_ns, self.unstable_far_ns)):
            out[first:first + k.MAX_LEVELS] = np.rint(
                real * level_ns + far * far_ns).astype(np.int64)
        return out


#: Costs of one page each.
_PER_PAGE = ("hole_ns", "skip_ns", "quick_ns", "first_sight_ns", "volatile_ns", "unique_ns",
             "merge_ns", "pair_merge_ns", "zero_merge_ns", "stable_level_ns", "unstable_level_ns",
             "stable_far_ns", "unstable_far_ns", "unmerge_ns", "cow_break_ns")


def scaled_cost(cost: CostModel, scale: Scale) -> CostModel:
    """`cost` for a sample: each page stands for 1 / share, each batch for `n_batches`."""
    if scale.share >= 1:
        return cost
    costs = cost.costs_ns()
    figures = {
        **costs,
        **{name: round(costs[name] / scale.share) for name in _PER_PAGE},
        "split_ns": round(costs["split_ns"] / scale.huge),
        "batch_ns": max(1, round(costs["batch_ns"] * scale.n_batches)),
        "scan_ns": costs["scan_ns"],
        "cold_pages": round(costs["cold_pages"] * scale.pages),
    }
    sampled = _SampledCost(name=cost.name, **figures)
    object.__setattr__(sampled, "_share", scale.share)
    return sampled


# ---- what is recorded ---------------------------------------------------------------------------

#: Columns that the sample does not make smaller, beside texts and times.
_KEPT = frozenset({"full_scans", "n_guests", "n_domains", "available_bytes"})
#: Events whose `tried_pages` counts something else.
_NO_PAGES = frozenset({"ranges_named"})


class FullSizeRecorder(Recorder):
    """A recorder of rows at full size, from those of a host that is a sample."""

    __slots__ = ("_scale",)

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self._scale = scale

    def add(self, kind: TableKind, row: Mapping[str, Any]) -> None:
        """Record `row` with its counts of pages and bytes multiplied."""
        if self._scale.share >= 1:
            Recorder.add(self, kind, row)
            return
        kept = {"tried_pages"} if row.get("kind") in _NO_PAGES else set()
        Recorder.add(self, kind, {
            name: value if name in kept else self._full(name, value)
            for name, value in row.items()})

    def _full(self, name: str, value: Any) -> Any:
        if not isinstance(value, int | np.integer) or name.endswith("_ns") or name in _KEPT:
            return value
        share = {"pages_to_scan": self._scale.pages,
                 "huge_splits": self._scale.huge}.get(name, self._scale.share)
        return round(int(value) / share)
