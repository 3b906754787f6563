"""Placement policies: which host a guest goes to.

Each is a filter and a weigher, as OpenDC has them. The filter is the same for all: a host that
takes guests and has room. The weigher is the policy's own: the host of the greatest weight takes
the guest, the first of equals in the order of hosts. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from planner.errors import DataError, UsageError
from planner.kernels import placing
from planner.timeline.records import Requests, Sketches
from planner.units import format_size

__all__ = ["PLACEMENTS", "BestFit", "FirstFit", "Fleet", "PackByDomain", "Placement",
           "SharingAware", "Spread", "placement_named"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Placement:
    """A policy: its name in scenarios, its weight, and whom the weight counts as a guest's kin.

    `is_steady`: one more host at the end of the order changes nothing as long as everybody finds
    room without it.
    """

    name: ClassVar[str]
    weight: ClassVar[int]
    is_steady: ClassVar[bool] = True

    def groups(self, requests: Requests, sketches: Sketches | None) -> I32 | None:
        """The group of each guest, i32 (n,), -1 for none; None where the weight asks for none."""
        return None

    def templates(self, requests: Requests, sketches: Sketches | None,
                  ) -> tuple[I32, npt.NDArray[np.uint64]] | None:
        """The template of each guest and the contents of templates; None where not asked for."""
        return None


class FirstFit(Placement):
    """The first host with room."""

    name = "first-fit"
    weight = placing.FIRST


class BestFit(Placement):
    """The host with the least room left."""

    name = "best-fit"
    weight = placing.FULLEST


class Spread(Placement):
    """The host with the most room."""

    name = "spread"
    weight = placing.EMPTIEST
    is_steady = False


class PackByDomain(Placement):
    """The host with the most guests of the same domain; where none has any, the first with room."""

    name = "pack-by-domain"
    weight = placing.KIN

    def groups(self, requests: Requests, sketches: Sketches | None) -> I32 | None:
        """The guests' domains."""
        return requests.domain


class SharingAware(Placement):
    """The host whose guests hold the most of the guest's contents, of those it may merge with.

    Memory Buddies (VEE'09) with sketches of sampled common contents, within the partition that
    the guest would merge in. Where no host holds any of them, the first with room.
    """

    name = "sharing-aware"
    weight = placing.OVERLAP

    def groups(self, requests: Requests, sketches: Sketches | None) -> I32 | None:
        """The partitions that guests merge in."""
        return self._known(sketches).partition

    def templates(self, requests: Requests, sketches: Sketches | None,
                  ) -> tuple[I32, npt.NDArray[np.uint64]] | None:
        """The sketches' templates."""
        known = self._known(sketches)
        return known.template, known.bits

    def _known(self, sketches: Sketches | None) -> Sketches:
        if sketches is None:
            raise UsageError("sharing-aware placement needs sketches of the guests' contents",
                             where="placement", instead="choose another placement")
        return sketches


PLACEMENTS: dict[str, Placement] = {
    policy.name: policy
    for policy in (FirstFit(), BestFit(), Spread(), PackByDomain(), SharingAware())}


def placement_named(name: str) -> Placement:
    """The policy of this name. Raises UsageError where there is none."""
    if name not in PLACEMENTS:
        raise UsageError(f"there is no placement {name!r}", where="placement",
                         instead=f"choose one of {', '.join(PLACEMENTS)}")
    return PLACEMENTS[name]


class Fleet:
    """Hosts with room and the guests that come and go on them, under one policy.

    `room_bytes` (h,): what guests may hold on each host; `charge_bytes` i64 (n,): what admission
    counts of each guest. The flow of arrivals and departures runs compiled (`run_until`); single
    guests are moved by hand. Raises DataError where a guest is larger than every host.
    """

    def __init__(self, placement: Placement, requests: Requests, room_bytes: Sequence[int],
                 charge_bytes: I64, sketches: Sketches | None = None) -> None:
        _check(requests, room_bytes, charge_bytes)
        self._weight = placement.weight
        self._state = _state(placement, requests, room_bytes, charge_bytes, sketches)

    @property
    def host(self) -> I32:
        """Where each guest is now, i32 (n,), -1: nowhere."""
        host: I32 = self._state.host
        return host

    @property
    def first_host(self) -> I32:
        """Where each guest was put when it came, i32 (n,), -1: nowhere."""
        first_host: I32 = self._state.first_host
        return first_host

    @property
    def free_bytes(self) -> I64:
        """Room on each host, i64 (h,); negative where pressure takes more than there is."""
        free: I64 = self._state.free
        return free

    @property
    def n_used(self) -> int:
        """How many of the hosts ever held a guest, counted up to the last that did."""
        used = np.flatnonzero(self._state.used)
        return int(used[-1]) + 1 if len(used) else 0

    def run_until(self, until_ns: int) -> int:
        """Arrivals before and departures up to this time; returns how many found no room."""
        return int(placing.run_until(self._state, self._weight, until_ns, len(self._state.need)))

    def has_room_until(self, until_ns: int) -> bool:
        """Whether all arrivals before this time find room; stops at the first that does not."""
        return int(placing.run_until(self._state, self._weight, until_ns, 0)) == 0

    def choose(self, guest: int, except_host: int = -1) -> int:
        """The host that the policy gives a guest, -1 where none has room."""
        return int(placing.choose(self._state, self._weight, guest, except_host))

    def enter(self, guest: int, host: int) -> None:
        """Put a guest that is nowhere on a host."""
        placing.enter(self._state, guest, host)

    def leave(self, guest: int) -> None:
        """Take a guest off its host."""
        placing.leave(self._state, guest)

    def guests_on(self, host: int) -> list[int]:
        """The guests on a host now, ascending."""
        return np.flatnonzero(self.host == host).tolist()

    def reserve(self, host: int, n_bytes: int) -> None:
        """Take room on a host away (or, negative, give it back)."""
        self._state.free[host] -= n_bytes

    def close(self, host: int) -> None:
        """Take no guests on a host until it is opened as often as it was closed."""
        self._state.n_closed[host] += 1

    def open(self, host: int) -> None:
        """Undo one `close`."""
        self._state.n_closed[host] -= 1

    def is_open(self, host: int) -> bool:
        """Whether a host takes guests."""
        return bool(self._state.n_closed[host] == 0)


def _check(requests: Requests, room_bytes: Sequence[int], charge_bytes: I64) -> None:
    if len(charge_bytes) != len(requests) or (charge_bytes < 0).any():
        raise UsageError("charges are not one for each guest, at least 0", where="placement",
                         instead="take them from SafeSaving.charge_bytes")
    largest = max(room_bytes, default=0)
    too_large = np.flatnonzero(charge_bytes > largest)
    if len(too_large):
        guest = int(too_large[0])
        raise DataError(
            f"{len(too_large)} guest(s) fit no host even when it is empty: the first, "
            f"{requests.name[guest]}, counts as {format_size(int(charge_bytes[guest]))}, and no "
            f"host has more than {format_size(largest)} for guests", where="hosts",
            instead="give larger hosts, less `reserved`, or smaller guests")


def _most_at_once(requests: Requests) -> int:
    """The most guests that are there at one time."""
    starts, ends = np.sort(requests.start_ns), np.sort(requests.end_ns)
    n_gone = np.searchsorted(ends, starts, side="right")
    return int((np.arange(1, len(starts) + 1) - n_gone).max(initial=0))


def _state(placement: Placement, requests: Requests, room_bytes: Sequence[int],
           charge_bytes: I64, sketches: Sketches | None) -> placing.PlacingState:
    n, n_hosts = len(requests), len(room_bytes)
    group = placement.groups(requests, sketches)
    group = np.full(n, -1, np.int32) if group is None else np.ascontiguousarray(group, np.int32)
    known = placement.templates(requests, sketches)
    template, bits = known or (np.zeros(n, np.int32), np.zeros((0, 0), np.uint64))
    template = np.ascontiguousarray(template, np.int32)
    bits = np.ascontiguousarray(bits, np.uint64)
    if len(group) != n or len(template) != n or (
            known and (template.min(initial=0) < 0 or template.max(initial=-1) >= len(bits))):
        raise UsageError("sketches do not fit the guests", where="placement",
                         instead="draw them for these requests")
    n_groups = int(group.max(initial=-1)) + 1
    # A moving guest is in one slot only; each host and group has one at most.
    n_slots = min(_most_at_once(requests), n_hosts * n_groups)
    links = np.arange(1, n_slots + 1, dtype=np.int32)
    return placing.PlacingState(
        free=np.array(room_bytes, np.int64), n_closed=np.zeros(n_hosts, np.int32),
        used=np.zeros(n_hosts, np.uint8), need=np.ascontiguousarray(charge_bytes, np.int64),
        start=np.ascontiguousarray(requests.start_ns),
        end=np.ascontiguousarray(requests.end_ns), group=group, template=template,
        host=np.full(n, -1, np.int32), slot=np.full(n, -1, np.int32),
        first_host=np.full(n, -1, np.int32),
        by_end=np.argsort(requests.end_ns, kind="stable").astype(np.int32),
        head=np.full(n_groups, -1, np.int32), next=links, previous=np.full(n_slots, -1, np.int32),
        slot_host=np.full(n_slots, -1, np.int32), slot_group=np.full(n_slots, -1, np.int32),
        slot_guests=np.zeros(n_slots, np.int32),
        slot_templates=np.zeros((n_slots, len(bits)), np.int32),
        overlap=np.full((n_slots, len(bits)), -1, np.int32),
        union=np.zeros((n_slots, bits.shape[1]), np.uint64), bits=bits,
        cursor=np.zeros(3, np.int64))
