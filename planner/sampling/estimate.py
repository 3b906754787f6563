"""Totals of a fleet from the hosts and contents that were simulated, with their standard errors.

What merging would save at rest, if every page were merged at once, is known for every host and all
contents without simulating anything (`planner.population.at_rest`). It goes with what a simulation
finds as a host's length goes with its weight, so totals are estimated by their ratio (Cochran,
Sampling Techniques, 3rd ed., ch. 6; Saerndal, Swensson and Wretman, Model Assisted Survey Sampling,
ch. 7). Both samples, of hosts and of contents, are in the ratio: it is taken between the saving
simulated in the sample and the saving at rest *of the same sample*.

Contents are drawn anew on every host, so how hosts differ from the ratio holds both: how hosts
differ, and the chance of which contents (the linearised variance, Cochran eq. 6.13; hosts as
ultimate clusters). The part of the contents is told apart: they are split into 32 groups by their
hash, and one group after the other is left out (delete-a-group jackknife, Wolter, Introduction to
Variance Estimation, ch. 4). Where every host was simulated that part is all of the error; the
other part alone gets the finite population correction. A ratio of few hosts is biased by 1 / n;
below 5 hosts the stated error is itself a rough estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost
from planner.kernels import ksmstate as k
from planner.ksm.records import BYTES_PER_PAGE
from planner.ksm.space import MergeSpaces

__all__ = ["N_GROUPS", "Groups", "Observed", "Total", "estimate_total", "saved_by_group"]

#: Groups of contents of `FleetHost.content_group`.
N_GROUPS = 32

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Bytes of each content group on one host at the end, at full size; f64[N_GROUPS] each.

    `saved`: that merging saves (non-zero contents, no metadata); `at_rest`: that it would save if
    all equal pages of a partition were one.
    """

    saved: F64
    at_rest: F64


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was simulated of n hosts at T times: the variable, and its auxiliary in the sample.

    `values`, `auxiliary` f64[n, T] at full size; `groups` one a host, or empty where every content
    was simulated; `share` of contents.
    """

    values: F64
    auxiliary: F64
    groups: tuple[Groups, ...]
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """The fleet's total: f64[T] over time, and its weighted mean over time.

    `error` is the standard error of `mean`; `host_error` and `content_error` are its parts, of
    the choice of hosts (that of contents apart) and of contents. How replicates differ is in none.
    """

    series: F64
    mean: float
    host_error: float
    content_error: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(np.hypot(self.host_error, self.content_error))


def estimate_total(observed: Observed, everywhere: F64, weights: F64) -> Total:
    """The total over all N hosts.

    `everywhere` f64[N, T] is the auxiliary variable of every host, exact over all contents;
    `weights` f64[T] of the times in the mean, which add up to 1. At times when the auxiliary is 0
    in the whole sample, the mean of the sampled hosts stands for all. The error is infinite
    where one host of several was simulated.
    """
    values, auxiliary = observed.values, observed.auxiliary
    n, n_all = len(values), len(everywhere)
    sums, of_sample, of_all = values.sum(axis=0), auxiliary.sum(axis=0), everywhere.sum(axis=0)
    has_ratio = of_sample > 0
    # By hosts alone, the auxiliary is 1 for each.
    auxiliary = np.where(has_ratio, auxiliary, 1.0)
    of_sample = np.where(has_ratio, of_sample, float(n))
    of_all = np.where(has_ratio, of_all, float(n_all))
    ratio = sums / of_sample
    series = ratio * of_all
    mean = float((series * weights).sum())
    influence = ((values - ratio * auxiliary) * (weights * of_all / of_sample)).sum(axis=1)
    content_error = abs(mean) * _content_error(observed, is_ratio=bool(has_ratio.any()))
    if n >= n_all:
        host_error = 0.0
    elif n < 2:
        host_error = float("inf")
    else:
        # Of both: what the contents do by chance is taken out before the correction.
        both = n / (n - 1) * float((influence**2).sum())
        host_error = float(np.sqrt((1 - n / n_all) * max(0.0, both - content_error**2)))
    return Total(series, mean, host_error, content_error)


def _content_error(observed: Observed, *, is_ratio: bool) -> float:
    """Relative standard error by the choice of contents."""
    if observed.share >= 1 or not observed.groups:
        return 0.0
    saved = np.sum([groups.saved for groups in observed.groups], axis=0)
    at_rest = np.sum([groups.at_rest for groups in observed.groups], axis=0)
    if not is_ratio or not at_rest.any():
        at_rest = np.ones(len(saved))
    if saved.sum() == 0:
        return 0.0
    rest = at_rest.sum() - at_rest
    # A group that holds everything leaves nothing to compare with.
    without = np.divide(saved.sum() - saved, rest, out=np.zeros_like(rest), where=rest > 0)
    relative = without / (saved.sum() / at_rest.sum()) - 1
    n = len(saved)
    return float(np.sqrt((1 - observed.share) * (n - 1) / n * (relative**2).sum()))


# ---- what a simulated host saves, by content group ----------------------------------------------


def saved_by_group(host: FleetHost, partition_of_site: npt.NDArray[np.int32],
                   spaces: MergeSpaces) -> Groups:
    """Split what `spaces`, at the end of `host`'s events, save over the groups of contents."""
    world = spaces.world
    content, frame = host.memory_at_the_end()
    sites = np.flatnonzero((content >= 0) & (world.sites[:, k.S_CONTENT] >= 0))
    sites = sites[host.content_is_zero[content[sites]] == 0]
    group = host.content_group[content[sites]]
    merged = _distinct(world.sites[sites, k.S_FRAME], group)
    base = _distinct(frame[sites], group)
    eligible = (partition_of_site[sites] >= 0) & (host.site_eligible[sites] != 0)
    # Frames that cannot merge are the same in both figures.
    mine = sites[eligible]
    pair = partition_of_site[mine].astype(np.int64) * len(host.content_is_zero) + content[mine]
    at_rest = _distinct(frame[mine], group[eligible]) - _distinct(pair, group[eligible])
    full = BYTES_PER_PAGE / host.content_share
    return Groups((base - merged) * full, at_rest * full)


def _distinct(keys: npt.NDArray[np.generic], group: npt.NDArray[np.uint8]) -> F64:
    """How many distinct keys each group has; a key belongs to one group."""
    _, first = np.unique(keys, return_index=True)
    return np.bincount(group[first], minlength=N_GROUPS).astype(np.float64)
