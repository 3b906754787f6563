"""Fits a population to captured guests: which contents others of the population would hold, too.

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
Which of the contents are the rare common ones is drawn by each one's hash.

With two guests or one that count holds all the image, and is no estimate. The share is then what
the scenario's other workloads would have shown with so few guests, 0 without any, and resamples
draw it from all that is possible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import numpy.typing as npt

from planner.fleet import random_stream
from planner.population.guests import mix64
from planner.population.model import (
    Clock,
    ContentKind,
    Contents,
    Population,
    Template,
    WorkloadModel,
)
from planner.population.templates import CapturedWorkload, capture_workload
from planner.scenario.spec import Scenario, WorkloadSpec
from planner.trace import Trace

__all__ = ["Captured", "capture_population", "fit_population"]

_NOBODY: Mapping[str, Collection[str]] = {}
#: Contents seen in one snapshot, several, all of them; and the same for repeated ones.
_N_STRATA = 6
#: Guests of a workload from which on contents seen twice can be told from those of the image.
_ENOUGH = 3


def fit_population(scenario: Scenario, traces: Mapping[str, Trace], *,
                   leave: Mapping[str, Collection[str]] = _NOBODY,
                   resample: int | None = None) -> Population:
    """The population that the workloads' captured guests were drawn from.

    `traces` maps a workload's trace path to the opened trace. `leave`: names of captured guests
    to leave out, by workload. `resample`: see `Captured.population`. Raises DataError when a
    workload has no captured guest, or none of its pages is eligible.
    """
    return capture_population(scenario, traces, leave=leave).population(resample)


def capture_population(scenario: Scenario, traces: Mapping[str, Trace], *,
                       leave: Mapping[str, Collection[str]] = _NOBODY) -> Captured:
    """All that is read from the traces; arguments and errors as of `fit_population`."""
    parts = [capture_workload(scenario, index, traces[workload.trace],
                              frozenset(leave.get(workload.name, ())))
             for index, workload in enumerate(scenario.workloads)]
    hashes = np.unique(np.concatenate([part.hash for part in parts]))
    is_zero = np.isin(hashes, np.concatenate([part.hash[part.is_zero] for part in parts]))
    templates = tuple(
        replace(template, content=_renumbered(template.content, part.hash, hashes))
        for part in parts for template in part.templates)
    seen = _Sightings.of(templates, parts, is_zero)
    estimates = _estimate(seen, [len(part.templates) for part in parts])
    contents = Contents(hashes, _kinds(scenario, templates, seen, is_zero),
                        _incidence(seen, len(parts), len(hashes)),
                        _lasting(templates, len(hashes)))
    return Captured(scenario, tuple(part.clock for part in parts), templates, contents, seen,
                    tuple(estimates))


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """The captured guests, counted. Populations are made of it quickly, one a resample."""

    scenario: Scenario
    clocks: tuple[Clock, ...]
    templates: tuple[Template, ...]
    contents: Contents
    seen: _Sightings
    estimates: tuple[_Estimate, ...]

    def population(self, resample: int | None = None) -> Population:
        """The population, or what it might be if other guests had been captured.

        `resample`: the number of a resample, None for the best estimate. All have the same
        templates and contents; resamples differ in the templates' weights (k - 1 of k guests with
        replacement, whose variance is that of drawing k others: Rao and Wu 1988) and in how many
        of the contents are rare common ones. They depend on seed, number and workload only.
        """
        workloads, shares = [], []
        for index, (spec, estimate) in enumerate(
                zip(self.scenario.workloads, self.estimates, strict=True)):
            own = tuple(number for number, template in enumerate(self.templates)
                        if template.workload == index)
            stream = None if resample is None else \
                random_stream(self.scenario.seed, "resample", resample, spec.name)
            share = estimate.drawn(stream) * _together(self.scenario, spec, len(own))
            shares.append(share)
            workloads.append(WorkloadModel(
                spec.name, own, _weights(len(own), stream), self.clocks[index],
                estimate.overall(share), estimate.error))
        kind = self.contents.kind.copy()
        kind[self._rare(np.stack(shares))] = ContentKind.RARE_COMMON
        return Population(tuple(workloads), self.templates, replace(self.contents, kind=kind))

    def _rare(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        """The rare common contents, with these shares of those seen once."""
        seen = self.seen
        uniform = _uniform(self.contents.hash, self.scenario.seed)[seen.content]
        is_rare = (seen.n_holders == 1) & (uniform < shares[seen.workload, seen.stratum])
        rare: npt.NDArray[np.int32] = seen.content[is_rare]
        return rare


def _together(scenario: Scenario, workload: WorkloadSpec, size: int) -> float:
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


def _renumbered(content: npt.NDArray[np.int32], old: npt.NDArray[np.uint64],
                new: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    place = np.append(np.searchsorted(new, old), -1).astype(np.int32)
    return place[content]


def _weights(size: int, stream: np.random.Generator | None) -> npt.NDArray[np.float64]:
    if stream is None or size == 1:
        return np.full(size, 1 / size)
    n_drawn = size - 1
    return stream.multinomial(n_drawn, np.full(size, 1 / size)) / n_drawn


def _lasting(templates: Sequence[Template], n_contents: int) -> npt.NDArray[np.bool_]:
    lasting = np.zeros(n_contents, bool)
    for template in templates:
        first, last = template.content[0], template.content[-1]
        lasting[first[(first == last) & (first >= 0)]] = True
    return lasting


@dataclass(frozen=True, slots=True, eq=False)
class _Sightings:
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
           is_zero: npt.NDArray[np.bool_]) -> _Sightings:
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
class _Estimate:
    """Share of rare common contents among those seen once, f64[_N_STRATA].

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


def _by_stratum(seen: _Sightings, which: npt.NDArray[np.bool_],
                weight: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    counted = np.bincount(seen.stratum[which], minlength=_N_STRATA,
                          weights=None if weight is None else weight[which])
    return counted.astype(np.float64)


def _estimate(seen: _Sightings, sizes: Sequence[int]) -> list[_Estimate]:
    """An estimate a workload: those of three guests and more by themselves, then the others."""
    found: dict[int, _Estimate] = {}
    for workload, size in enumerate(sizes):
        if size >= _ENOUGH:
            once = _by_stratum(seen, (seen.workload == workload) & (seen.n_holders == 1))
            # Half a count at each of its two holders.
            twice = _by_stratum(seen, (seen.workload == workload) & (seen.n_holders == 2)) / 2
            share = np.minimum(twice / np.maximum(once, 1.0), 1.0)
            found[workload] = _Estimate(share, np.ones(_N_STRATA), once,
                                        _error(seen, workload, size, once.sum()), True)
    known = dict(found)
    for workload, size in enumerate(sizes):
        if workload in known:
            continue
        is_here = seen.workload == workload
        once = _by_stratum(seen, is_here & (seen.n_holders == 1))
        twice = _by_stratum(seen, is_here & (seen.n_holders == 2)) / 2
        most = np.minimum(twice / np.maximum(once, 1.0), 1.0) if size == 2 \
            else np.ones(_N_STRATA)
        share = np.minimum(_borrowed(seen, known, sizes, size), most)
        found[workload] = _Estimate(
            share, most, once,
            float((most * once).sum() / max(once.sum(), 1.0) / np.sqrt(12)), False)
    return [found[workload] for workload in range(len(sizes))]


def _error(seen: _Sightings, workload: int, size: int, n_once: float) -> float:
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


def _borrowed(seen: _Sightings, known: Mapping[int, _Estimate], sizes: Sequence[int],
              size: int) -> npt.NDArray[np.float64]:
    """What workloads with enough guests would show of rare common contents with `size` guests.

    Of the contents that a subset of `size` of their guests shows once: the share that others of
    them hold, and of the rest what is rare common by their own estimate.
    """
    once, common = np.zeros(_N_STRATA), np.zeros(_N_STRATA)
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


def _kinds(scenario: Scenario, templates: Sequence[Template], seen: _Sightings,
           is_zero: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """ContentKind of every content, as if none were rare common."""
    kind = np.full(len(is_zero), ContentKind.PRIVATE, np.uint8)
    kind[seen.content[seen.stratum >= _N_STRATA // 2]] = ContentKind.REPEATED_PRIVATE
    image = _images(scenario, templates)[seen.template]
    lowest, highest = np.full(len(kind), len(templates)), np.full(len(kind), -1)
    np.minimum.at(lowest, seen.content, image)
    np.maximum.at(highest, seen.content, image)
    common = seen.content[seen.n_holders > 1]
    kind[common] = np.where(lowest[common] == highest[common], ContentKind.COMMON_IMAGE,
                            ContentKind.COMMON_ACROSS)
    kind[is_zero] = ContentKind.ZERO
    return kind


def _images(scenario: Scenario, templates: Sequence[Template]) -> npt.NDArray[np.int64]:
    """A number for each template, equal for one image: the scenario's, the guest's label, or else
    the workload's own."""
    names = []
    for template in templates:
        workload = scenario.workloads[template.workload]
        image = workload.draw.image if workload.draw else None
        image = image or template.guest.labels.get("image")
        names.append((image is None, image or workload.name))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _uniform(hashes: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """A uniform number in [0, 1) for each content, by its hash and the seed."""
    salt = hashlib.blake2b(f"rare common\x1f{seed}".encode(), digest_size=8).digest()
    mixed = mix64(hashes ^ np.uint64(int.from_bytes(salt, "little")))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _incidence(seen: _Sightings, n_workloads: int, n_contents: int) -> npt.NDArray[np.int16]:
    incidence = np.zeros((n_workloads, n_contents), np.int16)
    incidence[seen.workload, seen.content] = seen.n_here
    return incidence
