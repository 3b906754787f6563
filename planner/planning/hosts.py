"""How many hosts a strategy needs, and how far memory may be overcommitted.

A saving can be counted on only as far as it is safe: `safe_share` is what a machine saves of its
guests' memory (zero pages included) at nearly every moment. Guests that need M bytes then fit where
M x (1 - safe share) bytes are, so the safe overcommit ratio is 1 / (1 - safe share).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planner.planning.samples import Fleet, HostSamples, weighted_quantile

__all__ = ["fit_shares", "hosts_needed", "overcommit", "safe_over_replicates", "safe_share"]

#: Beyond this, merging would have to free nearly all memory of guests.
_MOST_SHARE = 0.99


def safe_share(hosts: HostSamples, fleet: Fleet) -> float:
    """The share of its guests' memory that a machine saves at least, in 0 .. 0.99.

    It is the lower quantile, at `fleet.confidence`, over machines and time after the warm-up (each
    moment of each machine counts as long as it lasted). Machines without guests do not count.
    """
    memory = hosts["guest_memory_bytes"]
    held = hosts.held_ns(fleet.warm_up_ns, fleet.horizon_ns).astype(np.float64)
    if not held.any():
        held[hosts.last] = 1.0
    weights = np.where(memory > 0, held * hosts.weight[hosts.host], 0.0)
    if not weights.any():
        return 0.0
    shares = (hosts["saved_bytes"] + hosts["saved_zero_bytes"]) / np.maximum(memory, 1)
    low = -weighted_quantile(-shares, weights, fleet.confidence)
    return float(min(max(low, 0.0), _MOST_SHARE))


def safe_over_replicates(shares: Sequence[float], confidence: float) -> float:
    """The share that is safe in `confidence` of the replicates: an order statistic, so with fewer
    than 1 / (1 - confidence) replicates it is the least of them."""
    if not shares:
        return 0.0
    return -weighted_quantile(-np.asarray(shares, np.float64), np.ones(len(shares)), confidence)


def overcommit(safe: float) -> float:
    """Guest memory per byte of host memory, with the safe share `safe` < 1 counted on."""
    return 1.0 / (1.0 - min(max(safe, 0.0), _MOST_SHARE))


def hosts_needed(needed: Sequence[int], confidence: float) -> int | None:
    """The fewest whole hosts that were enough in at least `confidence` of the replicates."""
    if not needed:
        return None
    return sorted(needed)[max(math.ceil(confidence * len(needed) * (1 - 1e-12)), 1) - 1]


def fit_shares(needed: Sequence[int]) -> list[tuple[int, float]]:
    """By number of hosts the share of replicates that fit on so many: from one too few for any
    to enough for all."""
    if not needed:
        return []
    return [(n, sum(each <= n for each in needed) / len(needed))
            for n in range(max(min(needed) - 1, 0), max(needed) + 1)]
