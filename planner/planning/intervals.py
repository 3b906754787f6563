"""Intervals over replicates, and paired differences between policies.

Replicates are equally likely worlds; all policies meet the same ones, so a difference is taken
replicate by replicate. Its interval is of the *mean* difference: the bootstrap, bias-corrected and
accelerated (BCa: Efron 1987), with percentiles widened for small samples as Hesterberg (2015)
does. Of fewer than eight values there are too few different resamplings for that, and it is
Student's t. The random stream is keyed, so an interval never changes from run to run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIFFERENCE_LEVEL", "SPREAD_LEVEL", "Difference", "Interval", "bootstrap_mean",
           "difference", "shifted", "spread", "student_quantile"]

F64 = NDArray[np.float64]

#: Share of replicates inside the interval of a figure.
SPREAD_LEVEL = 0.90
#: Confidence of a difference.
DIFFERENCE_LEVEL = 0.95
_RESAMPLES = 2000
_FEW = 8
_FEWEST_EQUAL = 6
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """Median of `n` replicates and the bounds of SPREAD_LEVEL of them; one replicate has none."""

    median: float
    low: float | None
    high: float | None
    n: int


def spread(values: NDArray[Any] | list[float]) -> Interval | None:
    """Median and 5 % to 95 % quantiles of the values (linear between them); None of nothing."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return None
    tail = (1 - SPREAD_LEVEL) / 2
    low, median, high = np.quantile(found, [tail, 0.5, 1 - tail])
    if len(found) == 1:
        return Interval(float(median), None, None, 1)
    return Interval(float(median), float(low), float(high), len(found))


def shifted(estimate: float, values: NDArray[Any] | list[float], n_free: int = 0,
            ) -> tuple[float, float] | None:
    """The interval of `estimate` from refits on resampled guests; None of fewer than two.

    Guests that are drawn twice look more alike than guests are, so refits are off on one side.
    What counts is how they scatter, put at the estimate. Few captured guests scatter too little in
    their resamples: `n_free` (captured guests less one of each workload) widens the interval by
    Student's t, which covers known truths at its rate where quantiles of refits do not. With
    none, of workloads captured once each, the quantiles about the median say what may be.
    """
    found = spread(values)
    if found is None or found.low is None or found.high is None:
        return None
    if n_free < 1:
        return estimate + found.low - found.median, estimate + found.high - found.median
    half = student_quantile((1 + SPREAD_LEVEL) / 2, n_free) * float(np.std(values, ddof=1))
    return estimate - half, estimate + half


Verdict = Literal["better", "worse", "different", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences (first minus second) over `n` replicates with its interval.

    One replicate has no interval; `is_shown` tells whether the interval leaves out zero.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval lies wholly on one side of zero.

        Equal differences have a point for one: of fewer than six that is no proof (of so many a
        sign test at 5 % shows nothing either).
        """
        return self.low is not None and self.high is not None \
            and (self.low > 0 or self.high < 0) \
            and (self.low < self.high or self.n >= _FEWEST_EQUAL)

    def verdict(self, is_more_better: bool) -> Verdict:
        """What the difference says of the first policy."""
        if not self.is_shown:
            return "no difference shown"
        return "better" if (self.mean > 0) == is_more_better else "worse"


def difference(first: F64, second: F64, *, identity: str = "") -> Difference | None:
    """Paired difference of two figures by replicate (equal shapes); None of no replicate.

    `identity` keys the random stream. Where all differences are equal the interval is a point.
    """
    paired = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if not len(paired):
        return None
    mean = float(np.mean(paired))
    if len(paired) == 1:
        return Difference(mean, None, None, 1)
    low, high = bootstrap_mean(paired, DIFFERENCE_LEVEL, identity)
    return Difference(mean, low, high, len(paired))


def bootstrap_mean(values: F64, level: float, identity: str = "") -> tuple[float, float]:
    """Interval of the mean of at least two independent values at confidence `level`."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        raise ValueError("one value has no interval")
    if not np.ptp(values):
        return mean, mean
    t = student_quantile((1 + level) / 2, n - 1)
    if n < _FEW:
        half = t * float(np.std(values, ddof=1)) / math.sqrt(n)
        return mean - half, mean + half
    rng = _stream(identity)
    means = np.sort(np.mean(values[rng.integers(0, n, (_RESAMPLES, n))], axis=1))
    # Hesterberg: as if by Student's t, and for the variance that resampling understates.
    z = math.sqrt(n / (n - 1)) * t
    below = (np.sum(means < mean) + np.sum(means == mean) / 2) / _RESAMPLES
    bias = _NORMAL.inv_cdf(min(max(below, 1e-6), 1 - 1e-6))
    # The acceleration of a mean: its skewness (jackknife values are means without one value).
    centred = values - mean
    accel = float(np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5))
    bounds = []
    for side in (-z, z):
        at = bias + side
        share = _NORMAL.cdf(bias + at / (1 - accel * at)) if accel * at < 1 else float(side > 0)
        bounds.append(float(np.quantile(means, share)))
    return min(bounds), max(bounds)


def _stream(identity: str) -> np.random.Generator:
    key = np.frombuffer(identity.encode()[:4096].ljust(8, b"\0"), np.uint8)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key.tolist())))


def student_quantile(share: float, n_free: int) -> float:
    """Quantile of Student's t with `n_free` >= 1 degrees of freedom.

    By bisection of the finite series for whole degrees (Abramowitz and Stegun 26.7.3, 26.7.4).
    """
    if share < 0.5:
        return -student_quantile(1 - share, n_free)
    low, high = 0.0, 1.0
    while _student_cdf(high, n_free) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, n_free) < share else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, n_free: int) -> float:
    """P(T <= t) for t >= 0."""
    angle = math.atan(t / math.sqrt(n_free))
    cos2 = math.cos(angle) ** 2
    is_odd = n_free % 2 == 1
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0 if n_free == 1 else term
    for i in range(2 if is_odd else 1, n_free - 2, 2):
        term *= cos2 * i / (i + 1)
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if is_odd \
        else math.sin(angle) * total
    return 0.5 + inside / 2
