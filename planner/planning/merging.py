"""How long it takes from a guest's start until it was merged.

Where the engine tells (`guest_merged` events) that is used. A synchronous policy has merged a guest
when the first call on it after its start is done. ksmd has at the latest when the second full scan
after the start ends: the first one only takes checksums, and a partition may be any of the
host's, so the slowest counts. That is an upper bound, and `is_bound` says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.planning.samples import Fleet

__all__ = ["NEVER", "Merged", "distribution", "merged_after"]

#: A guest that was not merged while it lived, or while time was simulated.
NEVER = -1
_SHARES = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """By guest the time from its start until merged (ns, NEVER), int64 of shape (n,).

    `limit_ns` is how long after its start the simulation ended: what would have come later is
    not known. A guest that ended before it was merged never was.
    """

    after_ns: NDArray[np.int64]
    limit_ns: NDArray[np.int64]
    is_bound: bool

    def curve(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ascending times, and the share of guests merged by each (Kaplan and Meier 1958)."""
        is_merged = self.after_ns >= 0
        seen_ns = np.where(is_merged, self.after_ns, np.maximum(self.limit_ns, 0))
        times, n_merged = np.unique(self.after_ns[is_merged], return_counts=True)
        n_at_risk = len(seen_ns) - np.searchsorted(np.sort(seen_ns), times, side="left")
        merged = 1 - np.cumprod(1 - n_merged / np.maximum(n_at_risk, 1))
        return times, np.asarray(merged, np.float64)

    def quantile(self, share: float) -> int | None:
        """When `share` of guests were merged; None where that is not reached."""
        times, merged = self.curve()
        place = int(np.searchsorted(merged, share - 1e-9, side="left"))
        return int(times[place]) if place < len(times) else None


def merged_after(events: Iterable[Mapping[str, Any]], fleet: Fleet) -> Merged:
    """Time to merge of the guests in `fleet.starts`, from the events of one policy."""
    told: dict[tuple[str, str], list[int]] = defaultdict(list)
    called: dict[tuple[str, str], list[int]] = defaultdict(list)
    scans: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        kind, host, time_ns = event["kind"], event["host"], int(event["time_ns"])
        if kind == "guest_merged":
            told[host, event["guest"]].append(time_ns)
        elif kind == "sync_merge":
            called[host, event["guest"]].append(time_ns + int(event["cpu_ns"]))
        elif kind == "full_scan":
            scans[host][event["partition"]].append(time_ns)
    by_guest = told or called
    after = np.full(len(fleet.starts), NEVER, np.int64)
    for index, (host, guest, start_ns) in enumerate(fleet.starts):
        if by_guest:
            ends = [_nth(by_guest.get((host, guest), []), start_ns, 1)]
        else:
            ends = [_nth(times, start_ns, 2) for times in scans.get(host, {}).values()]
        if ends and all(end is not None for end in ends):
            after[index] = max(end for end in ends if end is not None) - start_ns
    limit = np.array([fleet.horizon_ns - start for *_, start in fleet.starts], np.int64)
    return Merged(after, limit, is_bound=not by_guest and bool(scans))


def _nth(times_ns: list[int], start_ns: int, n: int) -> int | None:
    """The n-th time (ascending list) not before `start_ns`."""
    place = bisect_left(times_ns, start_ns) + n - 1
    return times_ns[place] if place < len(times_ns) else None


def distribution(found: Iterable[Merged]) -> dict[str, Any] | None:
    """The distribution over the guests of all replicates; None where no guest was timed.

    `quantiles` pairs a share of the guests with the time (ns) by which they were merged, as far
    as it goes: guests that never were count as guests.
    """
    found = list(found)
    if not sum(len(each.after_ns) for each in found):
        return None
    pooled = Merged(np.concatenate([each.after_ns for each in found]),
                    np.concatenate([each.limit_ns for each in found]),
                    any(each.is_bound for each in found))
    pairs = [(share, pooled.quantile(share)) for share in _SHARES]
    return {"n_guests": len(pooled.after_ns), "n_merged": int(np.sum(pooled.after_ns >= 0)),
            "is_bound": pooled.is_bound,
            "quantiles": [[share, after_ns] for share, after_ns in pairs if after_ns is not None]}
