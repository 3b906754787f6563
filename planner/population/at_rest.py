"""What merging saves at rest: frames minus contents, of every machine of a fleet at once.

No page is made: each template at each snapshot is a set of common contents, as bits, and a few
counts; a machine's contents are the union of its guests' sets.

A guest counts as in the snapshot it passed last: the writes of the epoch it is in have not begun.
So figures differ from those of a machine built with `build_drawn_host` by part of one epoch's
writes, and are equal where nothing is being written. Pages that only a policy's `cooperation:
full` leaves out are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost
from planner.kernels.bitsets import union_sizes
from planner.policies.partition import partition_classes
from planner.population.guest_partitions import GuestPartitions, guest_partitions
from planner.population.guests import Guests, distinct, guests_of, in_part, lives_of
from planner.population.model import ContentKind, Population
from planner.scenario.spec import PolicySpec, Scenario
from planner.timeline import Timeline

__all__ = ["AtRest", "at_rest_of_host", "at_rest_saved"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class AtRest:
    """Frames that merging within partitions frees, i64 (n_hosts, n_times) each.

    `saved`: frames of non-zero content minus distinct contents, over all partitions. `zero`:
    frames of zero content beyond one a partition. Of pages that are eligible and not left out;
    KSM's own records and its max_page_sharing are not counted.
    """

    saved: I64
    zero: I64


def at_rest_saved(population: Population, scenario: Scenario, timeline: Timeline,
                  policy: PolicySpec, times_ns: Sequence[int], replicate: int) -> AtRest | None:
    """The saving of every machine of the timeline at each of the times, over all contents.

    None where the policy parts the regions of one guest from one another.
    """
    requests = timeline.requests
    partitions = guest_partitions(population, scenario, requests, policy, replicate)
    if partitions is None:
        return None
    guests = guests_of(population, scenario, requests, replicate)
    rows = _Rows(population, guests, partitions)
    partition = partitions.partition[timeline.stay_guest]
    order = np.lexsort((partition, timeline.stay_host))
    order = order[partition[order] >= 0]
    found = AtRest(*(np.zeros((len(timeline.hosts), len(times_ns)), np.int64) for _ in range(2)))
    for column, time_ns in enumerate(times_ns):
        end_ns = timeline.stay_end_ns[order]
        is_there = (timeline.stay_start_ns[order] <= time_ns) & (
            (time_ns < end_ns) | (end_ns >= scenario.horizon_ns))
        _count(found, column, rows, population, timeline, guests, partition, order[is_there],
               int(time_ns))
    return found


def _count(found: AtRest, column: int, rows: _Rows, population: Population, timeline: Timeline,
           guests: Guests, partition: I64, stay: I64, time_ns: int) -> None:
    """Fill a column of `found`: `stay` are those at that time, by host and partition."""
    guest = timeline.stay_guest[stay]
    snapshot = _snapshots(population, guests, guest, time_ns - lives_of(timeline).origin_ns[stay])
    whole = rows.whole[guest] + snapshot
    part = np.where(rows.part[guest] >= 0, rows.part[guest] + snapshot, -1)
    n_copies = guests.n_copies[guest]
    host = timeline.stay_host[stay]
    is_first = (np.diff(host, prepend=-1) != 0) | (np.diff(partition[stay], prepend=-1) != 0)
    starts = np.flatnonzero(is_first)
    if not len(starts):
        return
    distinct = union_sizes(rows.bits, np.append(starts, len(stay)), whole, part, n_copies)
    surplus = rows.surplus[whole] * n_copies + np.where(part >= 0, rows.surplus[part], 0)
    zero = rows.zero[whole] * n_copies + np.where(part >= 0, rows.zero[part], 0)
    np.add.at(found.saved[:, column], host[starts], np.add.reduceat(surplus, starts) - distinct)
    np.add.at(found.zero[:, column], host[starts],
              np.maximum(np.add.reduceat(zero, starts) - 1, 0))


def _snapshots(population: Population, guests: Guests, guest: npt.NDArray[np.int32], age_ns: I64
               ) -> I64:
    """The snapshot each guest passed last."""
    workload_of = np.array([each.workload for each in population.templates], np.int64)
    workload = workload_of[guests.template[guest]]
    snapshot = np.zeros(len(guest), np.int64)
    for index in np.unique(workload):
        mine = workload == index
        snapshot[mine] = population.workloads[index].clock.at(
            guests.phase_ns[guest[mine]], age_ns[mine])[1]
    return snapshot


class _Rows:
    """What each template holds at each snapshot, whole and in parts, by which classes take part.

    `bits` u64 (n_rows, n_words): common contents but zero. `surplus` i64 (n_rows,): frames of
    non-zero content minus distinct private contents. `zero` i64 (n_rows,): frames of zero content.
    `whole`, `part` i64 (n_guests,): each guest's row at the first snapshot, those of the others
    follow; -1 in `part` for guests without one.
    """

    def __init__(self, population: Population, guests: Guests, partitions: GuestPartitions
                 ) -> None:
        kind = population.contents.kind
        is_common = (kind <= ContentKind.RARE_COMMON) & (kind != ContentKind.ZERO)
        self._population = population
        self._rank = np.cumsum(is_common) - 1
        self._is_common = is_common
        self._bits: list[npt.NDArray[np.uint8]] = []
        self._counts: list[tuple[int, int]] = []
        starts: dict[tuple[int, float], int] = {}
        keys, of_guest = np.unique(np.stack([partitions.variant.astype(np.float64), guests.part]),
                                   axis=1, return_inverse=True)
        whole, part = np.empty(keys.shape[1], np.int64), np.full(keys.shape[1], -1, np.int64)
        for index, (number, share) in enumerate(keys.T.tolist()):
            template, included = partitions.variants[int(number)]
            for column, size in ((whole, 1.0), (part, share)):
                if size == 0:
                    continue
                if (int(number), size) not in starts:
                    starts[int(number), size] = len(self._counts)
                    self._add(template, included, size)
                column[index] = starts[int(number), size]
        self.whole, self.part = whole[of_guest.ravel()], part[of_guest.ravel()]
        packed = np.stack(self._bits)
        self.bits = np.ascontiguousarray(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))).view(
            np.uint64)
        self.surplus, self.zero = np.array(self._counts, np.int64).T.copy()

    def _add(self, index: int, included: npt.NDArray[np.bool_], size: float) -> None:
        template = self._population.templates[index]
        kind = self._population.contents.kind
        use = (template.site_eligible != 0) & included[template.site_class]
        if size < 1:
            use &= in_part(template, size)
        for content, frame in zip(template.content, template.frame, strict=True):
            held = use & (content >= 0)
            is_zero = kind[content[held]] == ContentKind.ZERO
            contents, frames = content[held][~is_zero], frame[held]
            common = self._is_common[contents]
            n_private = len(distinct(contents[~common]))
            n_zero = len(distinct(frames[is_zero]))
            self._counts.append((len(distinct(frames[~is_zero])) - n_private, n_zero))
            row = np.zeros(int(self._is_common.sum()), bool)
            row[self._rank[contents[common]]] = True
            self._bits.append(np.packbits(row))


def at_rest_of_host(host: FleetHost, policy: PolicySpec, times_ns: Sequence[int]) -> AtRest:
    """The saving of one host from its arrays, replayed or drawn, a sample or whole; any policy.

    Of a sample the figures are the sample's, to be divided by its share. Shapes (1, n_times).
    """
    partition = partition_classes(host, policy).of_class[host.site_class].astype(np.int64)
    is_usable = (host.site_eligible != 0) & (partition >= 0)
    found = AtRest(*(np.zeros((1, len(times_ns)), np.int64) for _ in range(2)))
    for column, (content, frame) in enumerate(host.memory_at(times_ns)):
        site = np.flatnonzero(is_usable & (content >= 0))
        is_zero = host.content_is_zero[content[site]] != 0
        others, zeros = site[~is_zero], site[is_zero]
        n_contents = len(host.content_is_zero)
        found.saved[0, column] = len(distinct(partition[others] * host.n_frames + frame[others])
                                     ) - len(distinct(partition[others] * n_contents
                                                       + content[others]))
        found.zero[0, column] = len(distinct(partition[zeros] * host.n_frames + frame[zeros])
                                    ) - len(distinct(partition[zeros]))
    return found
