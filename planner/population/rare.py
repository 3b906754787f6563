"""How many of the contents that one captured guest shows would be held by others, too.

Contents are told apart by how many captured guests hold them, in any snapshot: seen in two or
more they are common. Most contents seen in one guest are its own, but some are held by other
guests that were not captured. Their share is estimated as in capture-recapture counts of species
by quadrats, where a content is a species and a guest a quadrat (Chao 1987; Gotelli and Colwell
2011): what is known of contents that k guests would show once is in those that they show twice.
Contents of memory are of two sorts, though: those of the image, which nearly all guests hold,
and those of one guest alone. So extrapolation by all counts (Good and Toulmin 1956), and
estimates of how many contents there are in all (Chao's, the jackknife's), have no meaning for
them. Here those of the image are set aside (they are seen in more than two of k >= 3 guests),
and of the rest every prevalence in between is taken to be as likely as any other. k guests then
show as many of them once as twice, for any k, so

    rare share = (contents seen in two guests) / (contents seen in one).

It is estimated apart for contents that stay, that come or go and that pass (seen in all
snapshots, in several, in one), and for repeated ones: those that pass are nearly all private.

With two guests or one that count holds all the image, and is no estimate. The share is then what
the scenario's other workloads would have shown with so few guests, 0 without any, and resamples
draw it from all that is possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from planner.population.model import Template
from planner.population.templates import CapturedWorkload
from planner.scenario.spec import Scenario, WorkloadSpec

__all__ = ["N_STRATA", "Estimate", "Sightings", "estimate_rare", "together"]

#: Contents seen in one snapshot, several, all of them; and the same for repeated ones.
N_STRATA = 6
#: Guests of a workload from which on contents seen twice can be told from those of the image.
_ENOUGH = 3


@dataclass(frozen=True, slots=True, eq=False)
class Sightings:
    """One entry for each content and template that holds it, in any snapshot; zeros left out.

    `content`, `template`, `workload`, `stratum` i32[n]; `n_holders` i32[n]: captured guests that
    hold it, in all workloads; `n_here` i32[n]: those of this workload.
    """

    content: npt.NDArray[np.int32]
    template: npt.NDArray[np.int32]
    workload: npt.NDArray[np.int32]
    stratum: npt.NDArray[np.int32]
    n_holders: npt.NDArray[np.int32]
    n_here: npt.NDArray[np.int32]

    @classmethod
    def of(cls, templates: Sequence[Template], parts: Sequence[CapturedWorkload],
           is_zero: npt.NDArray[np.bool_]) -> Sightings:
        """What the templates of all workloads hold; `parts` tell which of them are one guest."""
        sources = [source for part in parts for source in part.sources]
        n_contents = len(is_zero)
        found: list[tuple[npt.NDArray[np.int32], ...]] = []
        holders = np.zeros(n_contents, np.int32)
        here = np.zeros((len(parts), n_contents), np.int32)
        for number, template in enumerate(templates):
            content, stratum = _strata(template, is_zero)
            if sources.index(sources[number]) == number:
                # A captured guest that two workloads draw from is one holder.
                holders[content] += 1
            here[template.workload, content] += 1
            found.append((content, np.full_like(content, number),
                          np.full_like(content, template.workload), stratum))
        content, owner, workload, stratum = (np.concatenate(column)
                                             for column in zip(*found, strict=True))
        return cls(content, owner, workload, stratum, holders[content], here[workload, content])


def _strata(template: Template, is_zero: npt.NDArray[np.bool_]
            ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The contents a template holds, ascending, and the stratum of each."""
    n_snapshots, n_contents = len(template.content), len(is_zero)
    n_seen = np.zeros(n_contents + 1, np.int32)
    is_repeated = np.zeros(n_contents + 1, bool)
    for content, frame in zip(template.content, template.frame, strict=True):
        # One site a frame: pages that fork shares are no repetition.
        site_of_frame = np.full(template.n_frames + 1, -1, np.int64)
        site_of_frame[frame] = np.arange(len(frame))
        own = content[site_of_frame[:-1][site_of_frame[:-1] >= 0]]
        counts = np.bincount(own, minlength=n_contents + 1)
        n_seen += counts > 0
        is_repeated |= counts > 1
    n_seen[:-1][is_zero] = 0
    held = np.flatnonzero(n_seen[:-1])
    span = np.where(n_seen[held] == n_snapshots, 2, np.where(n_seen[held] == 1, 0, 1))
    return held.astype(np.int32), (span + 3 * is_repeated[held]).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Share of rare common contents among those seen once, f64[N_STRATA].

    `most`: the most it can be, likewise. `n_once`: contents seen once, likewise. `error`:
    standard error of the overall share; `is_known`: from counts of this workload.
    """

    share: npt.NDArray[np.float64]
    most: npt.NDArray[np.float64]
    n_once: npt.NDArray[np.float64]
    error: float
    is_known: bool

    def overall(self, share: npt.NDArray[np.float64]) -> float:
        """The share over all strata."""
        return float((share * self.n_once).sum() / max(self.n_once.sum(), 1.0))

    def drawn(self, stream: np.random.Generator | None) -> npt.NDArray[np.float64]:
        """The estimate itself, or with a stream another within its error."""
        if stream is None:
            return self.share
        if not self.is_known:
            return self.most * stream.random()
        whole = self.overall(self.share)
        factor = 1 + stream.standard_normal() * self.error / whole if whole else 1.0
        return np.clip(self.share * factor, 0.0, 1.0)


def _by_stratum(seen: Sightings, which: npt.NDArray[np.bool_],
                weight: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    counted = np.bincount(seen.stratum[which], minlength=N_STRATA,
                          weights=None if weight is None else weight[which])
    return counted.astype(np.float64)


def estimate_rare(seen: Sightings, sizes: Sequence[int]) -> list[Estimate]:
    """An estimate a workload: those of three guests and more by themselves, then the others."""
    found: dict[int, Estimate] = {}
    for workload, size in enumerate(sizes):
        if size >= _ENOUGH:
            once = _by_stratum(seen, (seen.workload == workload) & (seen.n_holders == 1))
            # Half a count at each of its two holders.
            twice = _by_stratum(seen, (seen.workload == workload) & (seen.n_holders == 2)) / 2
            share = np.minimum(twice / np.maximum(once, 1.0), 1.0)
            found[workload] = Estimate(share, np.ones(N_STRATA), once,
                                       _error(seen, workload, size, once.sum()), True)
    known = dict(found)
    for workload, size in enumerate(sizes):
        if workload in known:
            continue
        is_here = seen.workload == workload
        once = _by_stratum(seen, is_here & (seen.n_holders == 1))
        twice = _by_stratum(seen, is_here & (seen.n_holders == 2)) / 2
        most = np.minimum(twice / np.maximum(once, 1.0), 1.0) if size == 2 \
            else np.ones(N_STRATA)
        share = np.minimum(_borrowed(seen, known, sizes, size), most)
        found[workload] = Estimate(
            share, most, once,
            float((most * once).sum() / max(once.sum(), 1.0) / np.sqrt(12)), False)
    return [found[workload] for workload in range(len(sizes))]


def _error(seen: Sightings, workload: int, size: int, n_once: float) -> float:
    """Standard error of the share, from how unlike the pairs of guests are."""
    here = (seen.workload == workload) & (seen.n_holders == 2) & (seen.n_here == 2)
    order = np.argsort(seen.content[here], kind="stable")
    holders = np.unique(seen.template[here], return_inverse=True)[1][order].reshape(-1, 2)
    n_pairs = comb(size, 2)
    pairs = np.bincount(holders.min(axis=1) * size + holders.max(axis=1)) \
        if len(holders) else np.zeros(1)
    total = float(pairs.sum())
    squares = float((pairs.astype(np.float64) ** 2).sum())
    variance = max((squares - total**2 / n_pairs) / (n_pairs - 1), total / n_pairs)
    return float(np.sqrt(n_pairs * variance) / max(n_once, 1.0))


def _borrowed(seen: Sightings, known: Mapping[int, Estimate], sizes: Sequence[int],
              size: int) -> npt.NDArray[np.float64]:
    """What workloads with enough guests would show of rare common contents with `size` guests.

    Of the contents that a subset of `size` of their guests shows once: the share that others of
    them hold, and of the rest what is rare common by their own estimate.
    """
    once, common = np.zeros(N_STRATA), np.zeros(N_STRATA)
    for workload, estimate in known.items():
        n_guests = sizes[workload]
        is_here = seen.workload == workload
        # That of a content's holders only this one is in the subset.
        chance = np.array([comb(n_guests - max(held, 1), size - 1) / comb(n_guests, size)
                           for held in range(n_guests + 1)])[np.minimum(seen.n_here, n_guests)]
        is_single = is_here & (seen.n_here == 1)
        once += _by_stratum(seen, is_here, chance)
        common += _by_stratum(seen, is_here & ~is_single, chance)
        common += _by_stratum(seen, is_single, chance * estimate.share[seen.stratum])
    return np.minimum(common / np.maximum(once, 1e-9), 1.0)


def together(scenario: Scenario, workload: WorkloadSpec, size: int) -> float:
    """Of the rare share, what lets n drawn guests show as many contents as n others would.

    Guests drawn from one template have all of its common contents alike, other guests only some
    of theirs; n of them together show fewer contents, which the private ones make up for. With
    every prevalence p as likely, R contents seen once and R seen in each greater number of the k
    templates, (k + 1) R n / (n + 1) is how many n guests show of all; what is left to be private
    follows. n is how many of the workload's guests run on a host when all starts. 1 for large n,
    where n is not known, and for shares that are not of this estimate.
    """
    draw, k = workload.draw, size
    if (k < _ENOUGH or draw is None or not draw.count or draw.arrivals_per_hour
            or draw.table_share):
        return 1.0
    n = max(round(draw.count / sum(host.count for host in scenario.hosts)), 2)
    each = n / k
    repeated = sum(1 - (1 - held / k) ** n for held in range(2, k + 1))
    factor = (each + repeated - (k + 1) * n / (n + 1)) / (each - 1 + (1 - 1 / k) ** n)
    return min(max(factor, 0.0), 1.0)
