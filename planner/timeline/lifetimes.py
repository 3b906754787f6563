"""How long guests stay: log-normal by two numbers, and what a record that ended first leaves open.

A record of arrivals ends while guests still run: their durations are censored. To take them for
ended would make lives too short, to drop them as well (long lives are the ones cut off). So a
censored guest lives on by the product-limit estimate of Kaplan and Meier (1958) over the whole
record, given that it has lived that long; beyond the longest life whose end was seen nothing is
known, and a guest drawn there stays.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from planner.scenario.spec import LifetimeSpec

__all__ = ["FOREVER_NS", "log_normal", "residual_lives", "survival"]

#: A life without a known end; sums with any time of a simulation stay below 2**63.
FOREVER_NS = 2**62

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def log_normal(lifetime: LifetimeSpec | None, n: int, stream: np.random.Generator) -> I64:
    """Lives of `n` guests in ns, at least 1; None: for ever.

    The first k of n numbers are those of a draw of k.
    """
    if lifetime is None:
        return np.full(n, FOREVER_NS, np.int64)
    spread = math.log(lifetime.p95_ns / lifetime.median_ns) / NormalDist().inv_cdf(0.95)
    lives = lifetime.median_ns * np.exp(spread * stream.standard_normal(n))
    found: I64 = np.clip(lives, 1, FOREVER_NS).astype(np.int64)
    return found


def survival(duration_ns: I64, censored_ns: I64) -> tuple[I64, F64]:
    """Kaplan and Meier's estimate: ascending times at which lives ended, and the share that
    lives longer than each.

    `duration_ns` are lives whose end was seen, `censored_ns` how long the others lived at least.
    A life cut off at the time of an end counts as at risk there.
    """
    times, n_ended = np.unique(duration_ns, return_counts=True)
    n_at_risk = (len(duration_ns) - np.searchsorted(np.sort(duration_ns), times)
                 + len(censored_ns) - np.searchsorted(np.sort(censored_ns), times))
    alive: F64 = np.cumprod(1.0 - n_ended / n_at_risk, dtype=np.float64)
    return times, alive


def residual_lives(duration_ns: I64, censored_ns: I64, uniform: F64) -> I64:
    """Whole lives of the censored, each beyond what was seen of it; FOREVER_NS where unknown.

    `uniform` in [0, 1): one number for each of `censored_ns`.
    """
    times, alive = survival(duration_ns, censored_ns)
    if not len(times):
        return np.full(len(censored_ns), FOREVER_NS, np.int64)
    before = np.concatenate([[1.0], alive])[np.searchsorted(times, censored_ns, side="right")]
    at = np.searchsorted(-alive, -uniform * before, side="left")
    lives: I64 = np.append(times, FOREVER_NS)[at]
    return lives
