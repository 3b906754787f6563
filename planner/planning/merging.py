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
    """By guest the time from its start until merged (ns, NEVER), int64 of shape (n,)."""

    after_ns: NDArray[np.int64]
    is_bound: bool

    def quantile(self, share: float) -> int | None:
        """When `share` of all guests were merged; None where fewer ever were."""
        n = len(self.after_ns)
        reached = np.sort(self.after_ns[self.after_ns >= 0])
        place = int(np.ceil(share * n * (1 - 1e-12))) - 1
        return int(reached[max(place, 0)]) if n and place < len(reached) else None


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
    return Merged(after, is_bound=not by_guest and bool(scans))


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
    after = np.concatenate([each.after_ns for each in found]) if found \
        else np.zeros(0, np.int64)
    if not len(after):
        return None
    pooled = Merged(after, any(each.is_bound for each in found))
    pairs = [(share, pooled.quantile(share)) for share in _SHARES]
    return {"n_guests": len(after), "n_merged": int(np.sum(after >= 0)),
            "is_bound": pooled.is_bound,
            "quantiles": [[share, after_ns] for share, after_ns in pairs if after_ns is not None]}
