"""Fits a population to captured guests: contents get their kinds, guests become templates.

Contents are common that two captured guests or more hold, in any snapshot; of those that one
holds, a share is taken to be common all the same (`planner.population.rare`). Which ones is drawn
by each content's hash, so that a larger share holds all of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

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
from planner.population.rare import N_STRATA, Estimate, Sightings, estimate_rare, together
from planner.population.templates import capture_workload
from planner.scenario.spec import Scenario
from planner.trace import Trace

__all__ = ["Captured", "capture_population", "fit_population"]

_NOBODY: Mapping[str, Collection[str]] = {}


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
    seen = Sightings.of(templates, parts, is_zero)
    estimates = estimate_rare(seen, [len(part.templates) for part in parts])
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
    seen: Sightings
    estimates: tuple[Estimate, ...]

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
            share = estimate.drawn(stream) * together(self.scenario, spec, len(own))
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


def _kinds(scenario: Scenario, templates: Sequence[Template], seen: Sightings,
           is_zero: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """ContentKind of every content, as if none were rare common."""
    kind = np.full(len(is_zero), ContentKind.PRIVATE, np.uint8)
    kind[seen.content[seen.stratum >= N_STRATA // 2]] = ContentKind.REPEATED_PRIVATE
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


def _incidence(seen: Sightings, n_workloads: int, n_contents: int) -> npt.NDArray[np.int16]:
    incidence = np.zeros((n_workloads, n_contents), np.int16)
    incidence[seen.workload, seen.content] = seen.n_here
    return incidence
