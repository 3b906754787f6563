"""How many hosts of one kind hold all guests, in whole hosts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.scenario.spec import HostSpec
from planner.timeline.admission import capacity_bytes
from planner.timeline.placement import Fleet, Placement, placement_named
from planner.timeline.records import Requests, Sketches

__all__ = ["fewest_hosts"]

I64 = npt.NDArray[np.int64]


def fewest_hosts(requests: Requests, spec: HostSpec, placement: str, *,
                 charge_bytes: I64 | None = None, overcommit: float = 1.0,
                 sketches: Sketches | None = None) -> int:
    """The fewest machines of the kind `spec` on which every guest finds room when it comes.

    Guests come and go as `requests` say, no incident befalls a host (spare hosts for those are
    the planner's to add). `charge_bytes` i64 (n,): what admission counts of each guest; its memory
    where not given. Raises DataError where a guest is larger than a host.

    Most policies are steady: a host more, at the end of the order, is used only when no other
    has room. One run on enough hosts then tells the answer, the last host that was used. `spread`
    uses them all: there the number is found by bisection, and as a host more can do worse (where
    few large guests fill a host), the one above it must hold everybody too.
    """
    policy = placement_named(placement)
    charge = requests.memory_bytes if charge_bytes is None else charge_bytes
    room = capacity_bytes(spec, overcommit)
    low = max(1, -(-_peak_bytes(requests, charge) // room)) if room > 0 else 1
    high = low
    while not (run := _Attempt(policy, requests, room, charge, sketches, high)).is_enough:
        low, high = high + 1, high + max(1, high // 4)
    if policy.is_steady:
        return run.n_used
    while low < high:
        middle = (low + high) // 2
        if _Attempt(policy, requests, room, charge, sketches, middle).is_enough:
            high = middle
        else:
            low = middle + 1
    while not _Attempt(policy, requests, room, charge, sketches, high + 1).is_enough:
        high += 2
        while not _Attempt(policy, requests, room, charge, sketches, high).is_enough:
            high += 1
    return high


class _Attempt:
    """All guests on so many hosts."""

    def __init__(self, policy: Placement, requests: Requests, room: int, charge: I64,
                 sketches: Sketches | None, n_hosts: int) -> None:
        fleet = Fleet(policy, requests, [room] * n_hosts, charge, sketches)
        last_ns = int(requests.start_ns[-1]) + 1 if len(requests) else 0
        self.is_enough = fleet.has_room_until(last_ns)
        self.n_used = fleet.n_used


def _peak_bytes(requests: Requests, charge: I64) -> int:
    """The most that all guests together count at one time."""
    times = np.concatenate([requests.end_ns, requests.start_ns])
    change = np.concatenate([-charge, charge])
    # Stable: at one time guests leave before others come.
    return int(np.cumsum(change[np.argsort(times, kind="stable")]).max(initial=0))
