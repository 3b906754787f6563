"""Content sketches of guests, by which placement sees who would share with whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.population.guest_partitions import guest_partitions
from planner.population.guests import distinct, guest_key, guests_of, mix64
from planner.population.model import ContentKind, Population
from planner.scenario.spec import PolicySpec, Scenario
from planner.timeline import Requests

__all__ = ["GuestSketches", "guest_sketches"]

_N_WORDS = 64


@dataclass(frozen=True, slots=True, eq=False)
class GuestSketches:
    """Which of a sample of the common contents each guest holds.

    `bits` u64 (n_templates, n_words); `template` i32 (n_requests,): each guest's row; `partition`
    i32 (n_requests,): guests of equal numbers, from 0 without gaps, may merge with one another, -1
    merges with no other guest. Each bit stands for `contents_per_bit` contents. A content that a
    template holds in some snapshots only is in its sketch if it is there in half of them or more.
    """

    bits: npt.NDArray[np.uint64]
    template: npt.NDArray[np.int32]
    partition: npt.NDArray[np.int32]
    contents_per_bit: float


def guest_sketches(population: Population, scenario: Scenario, requests: Requests,
                   policy: PolicySpec, replicate: int, *, n_words: int = _N_WORDS
                   ) -> GuestSketches:
    """Sketches of all guests, with their partitions under `policy`.

    Where the policy parts the regions of one guest, guests of equal domain are taken to be those
    that may merge. Contents are sampled by their hash; the zero page is none of them.
    """
    contents = population.contents
    is_common = (contents.kind <= ContentKind.RARE_COMMON) & (contents.kind != ContentKind.ZERO)
    common = np.flatnonzero(is_common)
    salt = guest_key(scenario.seed, "sketch")
    sampled = common[np.argsort(mix64(contents.hash[common] ^ salt), kind="stable")]
    sampled = sampled[:64 * n_words]
    held = np.zeros((len(population.templates), 64 * n_words), bool)
    for index, template in enumerate(population.templates):
        use = template.site_eligible != 0
        n_snapshots = np.zeros(len(contents), np.int64)
        for content in template.content:
            n_snapshots[distinct(content[use & (content >= 0)])] += 1
        held[index, :len(sampled)] = 2 * n_snapshots[sampled] >= len(template.content)
    partitions = guest_partitions(population, scenario, requests, policy, replicate)
    partition = requests.domain.astype(np.int64) if partitions is None else partitions.partition
    found, dense, n_guests = np.unique(partition, return_inverse=True, return_counts=True)
    is_shared = (found >= 0) & (n_guests > 1)
    number = np.where(is_shared, np.cumsum(is_shared) - 1, -1)
    return GuestSketches(
        np.ascontiguousarray(np.packbits(held, axis=1)).view(np.uint64),
        guests_of(population, scenario, requests, replicate).template,
        number[dense].astype(np.int32), len(common) / max(len(sampled), 1))
