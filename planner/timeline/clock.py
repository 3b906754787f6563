"""When guests come, go and move: simpy processes over the hosts of a fleet.

Incidents are processes; arrivals and departures between two of their steps run compiled, in one
stretch (`Fleet.run_until`), and give exactly what a process a guest would give. At one time
guests leave first, then incidents end, others begin, and guests come last. The clock is integer
nanoseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.errors import DataError
from planner.scenario.spec import IncidentSpec, Scenario
from planner.timeline.admission import capacity_bytes
from planner.timeline.moves import Moves
from planner.timeline.placement import Fleet, placement_named
from planner.timeline.records import Cause, Incident, Pressure, Requests, Sketches, Timeline

__all__ = ["place"]

_SECOND_NS = 1_000_000_000

I64 = npt.NDArray[np.int64]


def place(scenario: Scenario, requests: Requests, sketches: Sketches | None, replicate: int,
          charge_bytes: I64 | None = None) -> Timeline:
    """Put the guests of one replicate on the hosts of a fleet scenario, from 0 to its horizon.

    `sketches` are needed by sharing-aware placement only. `charge_bytes` i64 (n,): what admission
    counts of each guest; its memory where not given.

    Nobody is lost without a word: who finds no room is in `rejected` or `lost`, and `warnings`
    say it. Raises DataError where a guest fits no host even when it is empty, and where an
    incident names no machine of the scenario.
    """
    return _Run(scenario, requests, sketches, replicate,
                requests.memory_bytes if charge_bytes is None else charge_bytes).run()


class _Run:
    """One replicate: the hosts, the clock, and what befalls them."""

    def __init__(self, scenario: Scenario, requests: Requests, sketches: Sketches | None,
                 replicate: int, charge_bytes: I64) -> None:
        if scenario.fleet is None:
            raise DataError("its guests are replayed on the hosts that they were captured for",
                            where=f"scenario {scenario.name!r}", instead="draw them to place them")
        self._scenario = scenario
        self._fleet_spec = scenario.fleet
        self._requests = requests
        self._replicate = replicate
        self._need = charge_bytes
        self._names = [name for host in scenario.hosts for name in host.names]
        self._host_spec = np.repeat(np.arange(len(scenario.hosts), dtype=np.int32),
                                    [len(host.names) for host in scenario.hosts])
        room = [capacity_bytes(host, scenario.fleet.overcommit) for host in scenario.hosts]
        self._fleet = Fleet(placement_named(scenario.fleet.placement), requests,
                            [room[spec] for spec in self._host_spec.tolist()], charge_bytes,
                            sketches)
        self._env = simpy.Environment(initial_time=0)
        self._moves = Moves(requests)
        self._moving: dict[int, int] = {}  # guest: how often it had moved when this one began
        self._pressure: list[Pressure] = []
        self._incidents: list[Incident] = []
        self._n_rejected = 0

    def run(self) -> Timeline:
        horizon_ns = int(self._scenario.horizon_ns)
        seen: Counter[IncidentSpec] = Counter()
        for spec in self._fleet_spec.incidents:
            seen[spec] += 1
            hosts = self._hosts_of(spec, seen[spec])
            if spec.kind == "migrate":
                self._env.process(self._migrate(spec, hosts, seen[spec]))
            else:
                for host in hosts:
                    self._env.process(self._befall(spec, host))
        # What would begin at the horizon does not.
        self._env.run(until=horizon_ns)
        self._fleet.run_until(horizon_ns)
        return self._timeline()

    def _now(self) -> int:
        """The time, with all arrivals and departures up to it done."""
        now_ns = int(self._env.now)
        self._fleet.run_until(now_ns)
        return now_ns

    def _begin(self, at_ns: int) -> Generator[simpy.Event, Any, int]:
        """Wait until this time, and until what ends then has ended; returns the time."""
        yield self._env.timeout(at_ns)
        yield self._env.timeout(0)
        return self._now()

    def _hosts_of(self, spec: IncidentSpec, number: int) -> list[int]:
        """The hosts that an incident befalls; `number` counts incidents that are alike."""
        if spec.host:
            if spec.host not in self._names:
                raise DataError(f"there is no machine {spec.host!r}", where="incidents",
                                instead="name one of " + ", ".join(self._names[:5])
                                        + (", ..." if len(self._names) > 5 else ""))
            return [self._names.index(spec.host)]
        if spec.kind == "migrate":
            return list(range(len(self._names)))
        if spec.n_hosts > len(self._names):
            raise DataError(f"a {spec.kind} of {spec.n_hosts} hosts, and there are "
                            f"{len(self._names)}", where="incidents", instead="befall fewer")
        return sorted(self._drawn(spec, number, self._names)[:spec.n_hosts])

    def _drawn(self, spec: IncidentSpec, number: int, names: Sequence[str]) -> list[int]:
        """Positions of names in an order drawn by lot; a name's lot is its own."""
        identity = (self._scenario.seed, self._replicate, "incident", spec.kind, spec.at_ns,
                    number)
        key = blake2b("\x1f".join(map(str, identity)).encode(), digest_size=32).digest()
        lots = [blake2b(name.encode(), key=key, digest_size=8).digest() for name in names]
        return sorted(range(len(names)), key=lots.__getitem__)

    def _befall(self, spec: IncidentSpec, host: int) -> Generator[simpy.Event, Any, None]:
        """A drain, a failure or pressure on one host, and its end."""
        start_ns = yield from self._begin(spec.at_ns)
        if spec.kind == "pressure":
            self._fleet.reserve(host, spec.bytes)
        else:
            self._fleet.close(host)
        if spec.kind == "drain":
            yield from self._drain(host)
        elif spec.kind == "fail":
            self._fail(host)
        else:
            end_ns = min(start_ns + spec.for_ns, self._scenario.horizon_ns)
            self._pressure.append(Pressure(
                host, start_ns, end_ns if spec.for_ns else self._scenario.horizon_ns, spec.bytes))
            self._incidents.append(Incident(spec.kind, start_ns, host, 0))
        if not spec.for_ns:
            return
        # A drain that takes longer than it was given ends when it is done.
        yield self._env.timeout(max(0, start_ns + spec.for_ns - int(self._env.now)))
        self._now()
        if spec.kind == "pressure":
            self._fleet.reserve(host, -spec.bytes)
        else:
            self._fleet.open(host)

    def _fail(self, host: int) -> None:
        """The guests of a host are lost; they start anew where there is room, oldest first."""
        now_ns = int(self._env.now)
        guests, n_lost = self._fleet.guests_on(host), 0
        for guest in guests:
            self._fleet.leave(guest)
            self._moving.pop(guest, None)
        for guest in guests:
            target = self._fleet.choose(guest)
            if target >= 0:
                self._fleet.enter(guest, target)
            else:
                n_lost += 1
            self._moves.add(guest, now_ns, target, Cause.RESTART)
        self._incidents.append(Incident("fail", now_ns, host, len(guests) - n_lost, n_lost))

    def _drain(self, host: int) -> Generator[simpy.Event, Any, None]:
        """The guests of a host migrate away, one after another, oldest first.

        Who comes by a migration that had begun before is moved on as well.
        """
        start_ns, n_moved, tried = int(self._env.now), 0, set[int]()
        place_in_list = len(self._incidents)
        self._incidents.append(Incident("drain", start_ns, host, 0))
        while True:
            waiting = [guest for guest in self._fleet.guests_on(host)
                       if guest not in tried and guest not in self._moving]
            if not waiting:
                break
            tried.add(waiting[0])
            n_moved += yield from self._move(waiting[0])
            # So far: the horizon may cut a drain off.
            self._incidents[place_in_list] = Incident("drain", start_ns, host, n_moved)
        left = [guest for guest in self._fleet.guests_on(host) if guest not in self._moving]
        self._incidents[place_in_list] = Incident("drain", start_ns, host, n_moved, len(left))

    def _migrate(self, spec: IncidentSpec, hosts: Sequence[int], number: int,
                 ) -> Generator[simpy.Event, Any, None]:
        """Drawn guests move to another host, one after another."""
        start_ns = yield from self._begin(spec.at_ns)
        guests = np.flatnonzero(np.isin(self._fleet.host, hosts)).tolist()
        order = self._drawn(spec, number, [self._requests.name[guest] for guest in guests])
        chosen = [guests[position] for position in order[:spec.n_guests]]
        host = hosts[0] if spec.host else -1
        n_moved, n_left = 0, 0
        place_in_list = len(self._incidents)
        self._incidents.append(Incident("migrate", start_ns, host, 0))
        for guest in chosen:
            if self._fleet.host[guest] < 0 or guest in self._moving:
                continue
            is_moved = yield from self._move(guest)
            n_moved += is_moved
            n_left += not is_moved and bool(self._fleet.host[guest] >= 0)
            self._incidents[place_in_list] = Incident("migrate", start_ns, host, n_moved, n_left)

    def _move(self, guest: int) -> Generator[simpy.Event, Any, bool]:
        """Migrate a running guest: it holds room on both hosts until it has moved.

        Returns whether it did: it may find no room, leave meanwhile, or fail with its host. A
        target that fails or is drained meanwhile is given up for another.
        """
        source, n_before = int(self._fleet.host[guest]), self._moves.count(guest)
        need = int(self._need[guest])
        copy_ns = -(-int(self._requests.memory_bytes[guest]) * _SECOND_NS
                    // self._fleet_spec.migration_bytes_per_s)
        self._moving[guest] = n_before
        is_moved = False
        while not is_moved and (target := self._fleet.choose(guest, source)) >= 0:
            self._fleet.reserve(target, need)
            yield self._env.timeout(copy_ns)
            now_ns = self._now()
            self._fleet.reserve(target, -need)
            if self._moves.count(guest) != n_before or self._fleet.host[guest] != source:
                break
            if self._fleet.is_open(target):
                self._fleet.leave(guest)
                self._fleet.enter(guest, target)
                self._moves.add(guest, now_ns, target, Cause.MIGRATION)
                is_moved = True
        # Since its host failed another migration of it may have begun.
        if self._moving.get(guest) == n_before:
            del self._moving[guest]
        return is_moved

    def _timeline(self) -> Timeline:
        stays = self._moves.stays(self._fleet.first_host)
        rejected = np.flatnonzero(self._fleet.first_host < 0).astype(np.int32)
        lost = self._moves.lost()
        return Timeline(
            requests=self._requests, hosts=tuple(self._names), host_spec=self._host_spec,
            **stays, rejected=rejected, lost=lost,
            pressure=tuple(sorted(self._pressure, key=lambda p: (p.start_ns, p.host))),
            incidents=tuple(sorted(self._incidents, key=lambda i: i.time_ns)),
            warnings=self._warnings(rejected, lost))

    def _warnings(self, rejected: npt.NDArray[np.int32], lost: npt.NDArray[np.int32],
                  ) -> tuple[str, ...]:
        requests, found = self._requests, list(self._requests.notes)
        for guests, what in ((rejected[requests.start_ns[rejected] == 0], "at the start"),
                             (rejected[requests.start_ns[rejected] > 0], "when they came"),
                             (lost, "after their host had failed")):
            if len(guests):
                names = ", ".join(requests.name[guest] for guest in guests[:3].tolist())
                found.append(f"{len(guests)} of {len(requests)} guests found no room {what}: "
                             + names + (", ..." if len(guests) > 3 else ""))
        for incident in self._incidents:
            if incident.n_left and incident.kind != "fail":
                where = self._names[incident.host] if incident.host >= 0 else "the fleet"
                found.append(f"{incident.kind} of {where}: {incident.n_left} guest(s) could not "
                             "move, they stay where they are")
        return tuple(found)
