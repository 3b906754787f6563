"""What a host may hold: its memory without its own need, times the overcommit, and how much of a
guest counts.

Merged memory can come apart again at any time, so admission counts on it only up to a share that
is safe at a stated confidence: a guest is charged `memory x (1 - safe share)`. The safe share is
taken from outcomes, without an assumption on how they are distributed: of n outcomes that could
as well have come in any order, the next one is below the k-th lowest with probability
k / (n + 1). Where there are too few for the confidence asked for, the lowest is taken, and
`confidence` says what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.errors import UsageError
from planner.scenario.spec import HostSpec
from planner.timeline.records import Requests

__all__ = ["SafeSaving", "capacity_bytes"]


def capacity_bytes(host: HostSpec, overcommit: float = 1.0) -> int:
    """How much memory guests may hold on a machine of this kind."""
    return int((host.memory_bytes - host.reserved_bytes) * overcommit)


@dataclass(frozen=True, slots=True, eq=False)
class SafeSaving:
    """The share of their memory that guests of each workload save at least, at a confidence.

    `share` f64 (n_workloads,), in [0, 1); with one entry it is that of all guests. `confidence`:
    what the outcomes bear out; it may be less than `wanted`.
    """

    share: npt.NDArray[np.float64]
    confidence: float
    wanted: float

    @classmethod
    def of_outcomes(cls, saved_shares: Sequence[Sequence[float]] | npt.NDArray[np.float64],
                    confidence: float) -> SafeSaving:
        """From outcomes f64 (n_outcomes, n_workloads), or (n_outcomes, 1) for all guests alike:
        the share that each saved at its lowest.

        An outcome is whatever admission must hold for: a host in a replicate, where each host
        must be safe. Raises UsageError for a confidence outside [0, 1) and where there are no
        outcomes.
        """
        outcomes = np.asarray(saved_shares, np.float64)
        if not 0 <= confidence < 1:
            raise UsageError(f"a confidence of {confidence} cannot be reached",
                             where="confidence", instead="give a share below 1")
        if outcomes.ndim != 2 or not len(outcomes):
            raise UsageError("no outcome to learn a safe saving from", where="outcomes",
                             instead="simulate at least one replicate")
        n = len(outcomes)
        # A hair more, or (1 - 0.95) * 20 would not be 1.
        rank = max(1, min(n, int((1 - confidence) * (n + 1) + 1e-9)))
        lowest = np.sort(outcomes, axis=0)[rank - 1]
        return cls(np.clip(lowest, 0.0, np.nextafter(1.0, 0.0)), 1 - rank / (n + 1), confidence)

    @property
    def is_backed(self) -> bool:
        """Whether there are enough outcomes for the confidence that was asked for."""
        return self.confidence >= self.wanted - 1e-9

    def charge_bytes(self, requests: Requests) -> npt.NDArray[np.int64]:
        """What admission counts of each guest, i64 (n,), rounded up."""
        share = self.share if len(self.share) == 1 else self.share[requests.workload]
        charge: npt.NDArray[np.int64] = np.ceil(
            requests.memory_bytes * (1.0 - share)).astype(np.int64)
        return charge
