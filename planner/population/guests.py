"""Guests of a fleet as their stays need them: template, phase, size, identity, labels.

Everything here follows from the scenario, the requests and a guest's own name: it is the same on
every host, under every policy and placement.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetGuest
from planner.population.model import Population, Template
from planner.scenario.spec import DomainsSpec, DrawSpec, Scenario
from planner.timeline import Cause, Requests, Timeline

__all__ = ["Guests", "Lives", "distinct", "drawn_guest", "guest_key", "guests_of", "in_part",
           "lives_of", "mix64", "resident_pages"]

_PAGE_BYTES = 4096
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Guests:
    """The guests of all requests, arrays of one entry each.

    `template` i32 (index into the population's), `phase_ns` i64. A guest holds `n_copies` i64
    whole copies of its template's pages, then the sites of one more that `in_part` gives for
    `part` f64 in [0, 1), and `n_fill` i64 private pages.
    """

    template: npt.NDArray[np.int32]
    phase_ns: npt.NDArray[np.int64]
    n_copies: npt.NDArray[np.int64]
    part: npt.NDArray[np.float64]
    n_fill: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Lives:
    """What the stays of a timeline continue, arrays of one entry a stay.

    `origin_ns` i64: when the guest's own time began, by booting, being restored or restarting;
    a migration goes on with it. `number` i64: how often the guest had been started before.
    """

    origin_ns: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]


def distinct(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """The distinct values, ascending, i64.

    By sorting: numpy's `unique` of integers puts them into a hash table, where codes like
    `a * n + b` collide.
    """
    ordered: npt.NDArray[np.int64] = np.sort(values.astype(np.int64, copy=False), axis=None)
    is_first = np.append(True, ordered[1:] != ordered[:-1])[:len(ordered)]
    found: npt.NDArray[np.int64] = ordered[is_first]
    return found


def mix64(values: U64) -> U64:
    """The finalizer of splitmix64: a bijection that leaves no pattern, u64 of the same shape."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def guest_key(*identity: str | int) -> np.uint64:
    """64 random bits tied to an identity, for hashes that many numbers share."""
    text = "\x1f".join(str(part) for part in identity)
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(),
                                    "little"))


def guests_of(population: Population, scenario: Scenario, requests: Requests, replicate: int
              ) -> Guests:
    """All guests of the requests.

    Memory beyond the captured is filled as `DrawSpec.fill` says. `proportional`: with further
    copies of the captured pages, where copy r of a common content is a content of its own that
    every guest large enough holds as well (a larger guest has more of the same kind, not the same
    again), and zero pages are zero pages. A guest smaller than the captured one has a part of the
    first copy. Guests of a workload that names no memory are as large as their templates.
    """
    return _guests_of(population, requests, scenario.seed, replicate,
                      tuple(workload.draw or DrawSpec() for workload in scenario.workloads))


@lru_cache(maxsize=2)
def _guests_of(population: Population, requests: Requests, seed: int, replicate: int,
               draws: tuple[DrawSpec, ...]) -> Guests:
    template = np.zeros(len(requests), np.int32)
    phase_ns = np.zeros(len(requests), np.int64)
    fill = np.zeros(len(requests), np.int8)
    captured = np.array([each.memory_bytes for each in population.templates], np.int64)
    memory_bytes = requests.memory_bytes.copy()
    for index, draw in enumerate(draws):
        mine = np.flatnonzero(requests.workload == index)
        template[mine], phase_ns[mine] = population.draw(
            seed, replicate, index, [requests.name[guest] for guest in mine])
        fill[mine] = ("none", "private", "proportional").index(draw.fill)
        if draw.memory_bytes is None and len(mine):
            # Room is asked for the largest captured guest; each has what its own template has.
            largest = captured[list(population.workloads[index].templates)].max()
            as_captured = mine[memory_bytes[mine] == largest]
            memory_bytes[as_captured] = captured[template[as_captured]]
    captured = captured[template]
    ratio = memory_bytes / captured
    ratio = np.where(fill == 2, ratio, np.minimum(ratio, 1.0))
    n_copies = np.floor(ratio).astype(np.int64)
    n_fill = np.where(fill == 1, (memory_bytes - captured) // _PAGE_BYTES, 0)
    return Guests(template, phase_ns, n_copies, ratio - n_copies, np.maximum(n_fill, 0))


@lru_cache(maxsize=2)
def lives_of(timeline: Timeline) -> Lives:
    """Which own time of its guest each stay of the timeline belongs to."""
    order = np.lexsort((timeline.stay_start_ns, timeline.stay_guest))
    guest = timeline.stay_guest[order]
    is_first = np.diff(guest, prepend=-1) != 0
    is_new = is_first | (timeline.stay_cause[order] != Cause.MIGRATION)
    begun = np.flatnonzero(is_new)
    of_stay = np.cumsum(is_new) - 1
    first_of_guest = of_stay[is_first][np.cumsum(is_first) - 1]
    origin_ns, number = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    origin_ns[order] = timeline.stay_start_ns[order][begun][of_stay]
    number[order] = of_stay - first_of_guest
    return Lives(origin_ns, number)


def in_part(template: Template, part: float) -> npt.NDArray[np.bool_]:
    """Which sites of a template a partial copy holds, bool (n_sites,).

    The same ones for all guests; those of a smaller part are among those of a larger one.
    """
    drawn = mix64(np.arange(template.n_sites, dtype=np.uint64))
    held: npt.NDArray[np.bool_] = drawn < np.uint64(part * 2.0**64)
    return held


def drawn_guest(scenario: Scenario, requests: Requests, guest: int, template: Template
                ) -> FleetGuest:
    """A drawn guest: the captured guest's labels, with its own name, domain, group and image."""
    name, domain = requests.name[guest], requests.domains[int(requests.domain[guest])]
    group = _group_of(scenario.domains).get(domain, domain)
    labels = {**template.guest.labels, "domain": domain, "group": group, "guest": name}
    draw = scenario.workloads[int(requests.workload[guest])].draw
    if draw is not None and draw.image is not None:
        labels["image"] = draw.image
    return FleetGuest(name, domain, group, labels)


@lru_cache(maxsize=8)
def _group_of(domains: DomainsSpec) -> dict[str, str]:
    return {member: name for name, members in domains.groups for member in members}


def resident_pages(population: Population, guests: Guests) -> npt.NDArray[np.float64]:
    """Frames that each guest holds without merging, as a mean over the captured snapshots, f64."""
    captured = np.array([
        np.mean([len(distinct(frame[frame >= 0])) for frame in template.frame])
        for template in population.templates])
    pages: npt.NDArray[np.float64] = (
        captured[guests.template] * (guests.n_copies + guests.part) + guests.n_fill)
    return pages
