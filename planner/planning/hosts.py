"""How many hosts a strategy needs, and how far memory may be overcommitted.

A saving can be counted on only as far as it is safe: `safe_share` is what a machine saves of its
guests' memory (zero pages included) at nearly every moment. Guests that need M bytes then fit where
M x (1 - safe share) bytes are, so the safe overcommit ratio is 1 / (1 - safe share).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.planning.samples import Fleet, HostSamples, weighted_quantile
from planner.timeline.admission import SafeSaving

__all__ = ["Safe", "fit_shares", "hosts_needed", "overcommit", "safe_over_replicates", "safe_share"]

#: Beyond this, merging would have to free nearly all memory of guests.
_MOST_SHARE = 0.99


def safe_share(hosts: HostSamples, fleet: Fleet) -> float:
    """The share of its guests' memory that a machine saves at least, in 0 .. 0.99.

    It is the lower quantile, at `fleet.confidence`, over machines and time after the warm-up: each
    moment of each machine counts as long as it lasted, and by the memory of its guests, because an
    almost empty machine saves little and need not.
    """
    memory = hosts["guest_memory_bytes"]
    held = hosts.held_ns(fleet.warm_up_ns, fleet.horizon_ns).astype(np.float64)
    if not held.any():
        held[hosts.last] = 1.0
    weights = np.maximum(memory, 0) * held * hosts.weight[hosts.host]
    if not weights.any():
        return 0.0
    shares = (hosts["saved_bytes"] + hosts["saved_zero_bytes"]) / np.maximum(memory, 1)
    low = -weighted_quantile(-shares, weights, fleet.confidence)
    return float(min(max(low, 0.0), _MOST_SHARE))


def overcommit(safe: float) -> float:
    """Guest memory per byte of host memory, with the safe share `safe` < 1 counted on."""
    return 1.0 / (1.0 - min(max(safe, 0.0), _MOST_SHARE))


@dataclass(frozen=True, slots=True)
class Safe:
    """What replicates bear out: `share` of guest memory that is saved at least in the next one
    with probability `confidence`; `is_backed` where that is as much as was asked for."""

    share: float
    confidence: float
    is_backed: bool


def safe_over_replicates(shares: Sequence[float], confidence: float) -> Safe:
    """The safe share over replicates, as admission takes it: with too few of them for the
    confidence it is the least, and the confidence what so few bear out."""
    if not shares:
        return Safe(0.0, 0.0, False)
    found = SafeSaving.of_outcomes(np.asarray(shares, np.float64)[:, None], confidence)
    return Safe(min(float(found.share[0]), _MOST_SHARE), found.confidence, found.is_backed)


def hosts_needed(needed: Sequence[int], confidence: float) -> int | None:
    """Whole hosts that will be enough at `confidence`, by the same rule."""
    if not needed:
        return None
    most = max(needed) + 1
    spare = SafeSaving.of_outcomes(1 - np.asarray(needed, np.float64)[:, None] / most, confidence)
    return round((1 - float(spare.share[0])) * most)


def fit_shares(needed: Sequence[int]) -> list[tuple[int, float]]:
    """By number of hosts the share of replicates that fit on so many: from one too few for any
    to enough for all."""
    if not needed:
        return []
    return [(n, sum(each <= n for each in needed) / len(needed))
            for n in range(max(min(needed) - 1, 0), max(needed) + 1)]
