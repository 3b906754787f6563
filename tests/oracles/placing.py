"""Slow twin of planner/kernels/placing.py and planner/timeline/clock.py: an event at a time.

Hosts hold Python lists of guests, contents are Python sets, every arrival, departure, failure and
spell of pressure is an entry of one sorted list of events, and every choice looks at all hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: At one time guests leave first, then incidents act, then guests come.
LEAVES, INCIDENT, COMES = range(3)


@dataclass
class Guest:
    start_ns: int
    end_ns: int
    need: int
    domain: int = 0
    partition: int = 0
    contents: frozenset[int] = frozenset()


@dataclass
class Host:
    room: int
    guests: list[int] = field(default_factory=list)
    n_closed: int = 0


@dataclass
class World:
    """`stays` are (guest, host, start, end, how it began)."""

    guests: Sequence[Guest]
    hosts: list[Host]
    policy: str
    stays: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    since: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    rejected: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def free(self, host: Host) -> int:
        return host.room - sum(self.guests[guest].need for guest in host.guests)

    def weight(self, host: Host, guest: Guest) -> int:
        others = [self.guests[other] for other in host.guests]
        if self.policy == "best-fit":
            return -self.free(host)
        if self.policy == "spread":
            return self.free(host)
        if self.policy == "pack-by-domain":
            return sum(other.domain == guest.domain for other in others)
        if self.policy == "sharing-aware" and guest.partition >= 0:
            held = frozenset[int]().union(*(other.contents for other in others
                                            if other.partition == guest.partition))
            return len(held & guest.contents)
        return 0

    def put(self, index: int, now_ns: int, cause: str) -> bool:
        guest = self.guests[index]
        fits = [number for number, host in enumerate(self.hosts)
                if not host.n_closed and self.free(host) >= guest.need]
        if not fits:
            return False
        best = max(fits, key=lambda number: (self.weight(self.hosts[number], guest), -number))
        self.hosts[best].guests.append(index)
        self.since[index] = (best, now_ns, cause)
        return True

    def take(self, index: int, now_ns: int) -> None:
        host, start_ns, cause = self.since.pop(index)
        self.hosts[host].guests.remove(index)
        self.stays.append((index, host, start_ns, now_ns, cause))

    def fail(self, host: Host, now_ns: int) -> None:
        host.n_closed += 1
        guests = sorted(host.guests)
        for index in guests:
            self.take(index, now_ns)
        for index in guests:
            if not self.put(index, now_ns, "RESTART"):
                self.lost.append(index)


def simulate(guests: Sequence[Guest], rooms: Sequence[int], policy: str, horizon_ns: int,
             incidents: Sequence[tuple[str, int, int, int, int]] = ()) -> World:
    """Everything until the horizon; incidents are (fail | pressure, host, from, to, bytes)."""
    world = World(guests, [Host(room) for room in rooms], policy)
    events: list[tuple[int, int, int, str, int, int]] = []
    for number, guest in enumerate(guests):
        events += [(guest.start_ns, COMES, number, "comes", number, 0),
                   (guest.end_ns, LEAVES, number, "leaves", number, 0)]
    for number, (kind, host, from_ns, to_ns, n_bytes) in enumerate(incidents):
        events += [(from_ns, INCIDENT, number, kind, host, n_bytes),
                   (to_ns, INCIDENT, -1, f"end of {kind}", host, n_bytes)]
    for now_ns, _, _, what, index, n_bytes in sorted(events, key=lambda event: event[:3]):
        if now_ns >= horizon_ns:
            break
        if what == "comes" and not world.put(index, now_ns, "BOOT"):
            world.rejected.append(index)
        elif what == "leaves" and index in world.since:
            world.take(index, now_ns)
        elif what == "fail":
            world.fail(world.hosts[index], now_ns)
        elif what == "end of fail":
            world.hosts[index].n_closed -= 1
        elif what == "pressure":
            world.hosts[index].room -= n_bytes
        elif what == "end of pressure":
            world.hosts[index].room += n_bytes
    for index in list(world.since):
        world.take(index, guests[index].end_ns)
    return world


def fewest_hosts(guests: Sequence[Guest], room: int, policy: str) -> int:
    """By counting up."""
    last_ns = max(guest.start_ns for guest in guests) + 1
    count = 1
    while simulate(guests, [room] * count, policy, last_ns).rejected:
        count += 1
    return count
