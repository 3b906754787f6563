"""What the hosts of a scenario have in common: found once in each process that works on it.

A `World` is a resolved scenario with its traces, population and cost models; a `Replicate` adds who
comes when and stands where. Both are found from the scenario's text alone, so every process finds
the same ones. Processes open their own traces, and check that they are the ones meant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

from planner.arrivals import ArrivalTable, read_arrivals
from planner.errors import DataError
from planner.fleet import FleetHost, build_host
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.ksm.timings import read_timings
from planner.population.fit import Captured, capture_population
from planner.population.hosts import HostBuilder
from planner.population.model import Population
from planner.population.sketches import guest_sketches
from planner.scenario.resolve import from_json
from planner.scenario.spec import FreePages, Never, PolicySpec, Scenario
from planner.timeline import Requests, Sketches, Timeline
from planner.timeline.clock import place
from planner.timeline.requests import draw_requests
from planner.trace import Trace, open_trace

__all__ = ["Replicate", "World", "opened_trace", "replicate_of", "seed_of", "world_of"]

#: Of `resample`: the population as fitted on all captured guests.
AS_CAPTURED = -1
_LOCK = Lock()


def opened_trace(path: str, digest: str) -> Trace:
    """The trace at `path`; raises DataError where it is not the one with this digest."""
    trace = open_trace(path)
    if trace.digest != digest:
        raise DataError("the trace is not the one that the scenario was resolved with",
                        where=path, instead="resolve the scenario again")
    return trace


def seed_of(scenario: Scenario, replicate: int) -> int:
    """The seed of a replicate of a replay; the first one has the scenario's own."""
    if not replicate:
        return scenario.seed
    text = f"replicate\x1f{scenario.seed}\x1f{replicate}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


class World:
    """A resolved scenario and what it names; each part is found when first asked for."""

    def __init__(self, text: str) -> None:
        self.scenario: Scenario = from_json(json.loads(text))
        self._populations: dict[int, Population] = {}

    @cached_property
    def traces(self) -> Mapping[str, Trace]:
        """The traces by path."""
        found: dict[str, Trace] = {}
        for workload in self.scenario.workloads:
            if workload.trace not in found:
                found[workload.trace] = opened_trace(workload.trace, workload.trace_digest)
        return found

    @cached_property
    def costs(self) -> Mapping[str, CostModel]:
        """The cost models that the hosts name."""
        return {name: BUILTIN_UNMEASURED if name == BUILTIN_UNMEASURED.name
                else read_timings(Path(name))
                for name in sorted({host.timings for host in self.scenario.hosts})}

    @cached_property
    def arrivals(self) -> ArrivalTable | None:
        """The arrival table, where the scenario names one."""
        named = self.scenario.fleet.arrivals if self.scenario.fleet is not None else None
        if named is None:
            return None
        table = read_arrivals(Path(named.table))
        if table.digest != named.digest:
            raise DataError("the arrival table is not the one that the scenario was resolved with",
                            where=named.table, instead="resolve the scenario again")
        return table

    def population(self, resample: int = AS_CAPTURED) -> Population:
        """The population fitted on the captured guests, or on the resample of that number."""
        if resample not in self._populations:
            self._populations[resample] = self._captured.population(
                None if resample == AS_CAPTURED else resample)
        return self._populations[resample]

    @cached_property
    def _captured(self) -> Captured:
        return capture_population(self.scenario, self.traces)


class Replicate:
    """One replicate of a scenario whose guests are drawn."""

    def __init__(self, world: World, number: int, resample: int) -> None:
        self.world = world
        self.number = number
        self.population = world.population(resample)
        scenario = world.scenario
        self.requests: Requests = draw_requests(
            scenario, captured_bytes(self.population), number, world.arrivals)
        self.timeline: Timeline = place(scenario, self.requests, self.sketches, number)
        self._builders: dict[float, HostBuilder] = {}

    @cached_property
    def sketches(self) -> Sketches | None:
        """What sharing-aware placement knows: of the first policy that merges anything."""
        scenario = self.world.scenario
        policy = merging_policy(scenario)
        if scenario.fleet is None or scenario.fleet.placement != "sharing-aware" or policy is None:
            return None
        return guest_sketches(self.population, scenario, self.requests, policy, self.number)

    @property
    def names(self) -> tuple[str, ...]:
        """The machines, in the order of their numbers."""
        return self.timeline.hosts

    def build(self, host: int, content_share: float) -> FleetHost:
        """The machine of that number, with a share of its contents."""
        builder = self._builders.get(content_share)
        if builder is None:
            # One at a time: a builder remembers what it found of every template.
            self._builders = {content_share: HostBuilder(
                self.population, self.world.scenario, self.timeline, self.number, content_share)}
            builder = self._builders[content_share]
        return builder.build(host)


def captured_bytes(population: Population) -> tuple[int, ...]:
    """Per workload the memory of a captured guest: the largest."""
    return tuple(max(population.templates[index].memory_bytes for index in model.templates)
                 for model in population.workloads)


def merging_policy(scenario: Scenario) -> PolicySpec | None:
    """The first policy that merges anything."""
    return next((policy for policy in scenario.policies
                 if not isinstance(policy.merge, Never | FreePages) or any(
                     rule.merge is not None and not isinstance(rule.merge, Never | FreePages)
                     for rule in policy.partitions)), None)


def replayed_host(world: World, host: int, replicate: int) -> FleetHost:
    """Machine number `host` of a replay, with the writes of a replicate."""
    scenario = replace(world.scenario, seed=seed_of(world.scenario, replicate))
    return build_host(scenario, scenario.hosts[host], world.traces)


@lru_cache(maxsize=2)
def _world(text: str) -> World:
    return World(text)


@lru_cache(maxsize=2)
def _replicate(text: str, number: int, resample: int) -> Replicate:
    return Replicate(_world(text), number, resample)


def world_of(text: str) -> World:
    """The world of a resolved scenario's JSON text; remembered."""
    with _LOCK:  # workers of a cluster may have several threads
        return _world(text)


def replicate_of(text: str, number: int, resample: int = AS_CAPTURED) -> Replicate:
    """A replicate of it; remembered, the last two."""
    with _LOCK:
        return _replicate(text, number, resample)
