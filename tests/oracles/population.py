"""A slow twin of planner.population.fit: who holds which content, page by page, in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planner.scenario.spec import Scenario
from planner.trace import PageFlag, Trace

_NO_FRAME = int(PageFlag.ZERO_PAGE | PageFlag.FILE | PageFlag.SHMEM | PageFlag.HUGETLB
                | PageFlag.GONE)


@dataclass
class Sight:
    """How one guest holds one content: in which snapshots, with how many frames at most, and
    whether a page holds it in the first and the last snapshot."""

    snapshots: set[int] = field(default_factory=set)
    n_frames: int = 0
    is_lasting: bool = False


def sights(trace: Trace, guest_id: int) -> dict[int, Sight]:
    """Every content hash that a guest holds."""
    found: dict[int, Sight] = {}
    places: dict[tuple[int, int], dict[int, int]] = {}
    for snapshot in range(len(trace.snapshots)):
        frames: dict[int, set[object]] = {}
        for mm in trace.mms:
            if mm.guest_id != guest_id:
                continue
            pages = trace.mm_pages(snapshot, mm.mm_id)
            for vpn, value, flags, frame, hashed in zip(
                    pages.vpn.tolist(), pages.hash.tolist(), pages.flags.tolist(),
                    pages.frame_id.tolist(), pages.has_hash.tolist(), strict=True):
                if not hashed or flags & _NO_FRAME:
                    continue
                name = frame if frame >= 0 else (mm.mm_id, vpn)
                frames.setdefault(value, set()).add(name)
                places.setdefault((mm.mm_id, vpn), {})[snapshot] = value
        for value, names in frames.items():
            sight = found.setdefault(value, Sight())
            sight.snapshots.add(snapshot)
            sight.n_frames = max(sight.n_frames, len(names))
    last = len(trace.snapshots) - 1
    for held in places.values():
        if 0 in held and held.get(last) == held[0]:
            found[held[0]].is_lasting = True
    return found


@dataclass(frozen=True)
class Classes:
    """Contents by hash. `kind`: zero, image, across, repeated or private (as if none were rare
    common); `incidence` by workload name; `lasting`; `shares`: rare share by workload of three
    guests and more and (snapshots: one, some, all; repeated)."""

    kind: Mapping[int, str]
    incidence: Mapping[str, Mapping[int, int]]
    lasting: frozenset[int]
    shares: Mapping[str, Mapping[tuple[str, bool], float]]


def classes(scenario: Scenario, traces: Mapping[str, Trace]) -> Classes:
    """All contents of the scenario's captured guests."""
    holders: dict[int, dict[tuple[str, int], list[tuple[str, str, Sight]]]] = {}
    incidence: dict[str, Counter[int]] = {}
    zeros, lasting = set(), set()
    sizes = {workload.name: len(workload.guests) for workload in scenario.workloads}
    for workload in scenario.workloads:
        trace = traces[workload.trace]
        zeros.add(trace.hash_info.zero_hash)
        incidence[workload.name] = Counter()
        for guest in workload.guests:
            image = dict(guest.labels).get("image", f"workload {workload.name}")
            for value, sight in sights(trace, guest.trace_guest_id).items():
                if sight.is_lasting:
                    lasting.add(value)
                if value in zeros:
                    holders.setdefault(value, {})
                    continue
                incidence[workload.name][value] += 1
                holders.setdefault(value, {}).setdefault(
                    (trace.digest, guest.trace_guest_id), []).append(
                        (workload.name, image, sight))
    n_snapshots = {workload.name: len(traces[workload.trace].snapshots)
                   for workload in scenario.workloads}
    kind: dict[int, str] = {}
    counts: Counter[tuple[str, tuple[str, bool], int]] = Counter()
    for value, by_guest in holders.items():
        entries = [entry for each in by_guest.values() for entry in each]
        kind[value] = _kind(value in zeros, len(by_guest), entries)
        for workload_name, _, sight in entries:
            stratum = _stratum(sight, n_snapshots[workload_name])
            counts[workload_name, stratum, len(by_guest)] += 1
    strata = [(span, repeated) for span in ("one", "some", "all") for repeated in (False, True)]
    shares = {name: {stratum: min(counts[name, stratum, 2] / 2
                                  / max(counts[name, stratum, 1], 1), 1.0)
                     for stratum in strata}
              for name, size in sizes.items() if size >= 3}
    return Classes(kind, incidence, frozenset(lasting), shares)


def _kind(is_zero: bool, n_guests: int, entries: Sequence[tuple[str, str, Sight]]) -> str:
    if is_zero:
        return "zero"
    if n_guests > 1:
        return "image" if len({image for _, image, _ in entries}) == 1 else "across"
    return "repeated" if entries[0][2].n_frames > 1 else "private"


def _stratum(sight: Sight, n_snapshots: int) -> tuple[str, bool]:
    n_seen = len(sight.snapshots)
    span = "all" if n_seen == n_snapshots else "one" if n_seen == 1 else "some"
    return span, sight.n_frames > 1
