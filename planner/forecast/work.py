"""One case of a forecast, as any process does it: tasks are small, outcomes are bytes.

A task names everything by the scenario's text and by numbers; what it needs is found anew in each
process, once (`planner.forecast.world`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planner.cases import pack
from planner.engine import simulate_host
from planner.executor import require_versions
from planner.fleet import FleetHost
from planner.forecast.world import Replicate, World, replayed_host, replicate_of, world_of
from planner.ksm.records import BYTES_PER_PAGE
from planner.ksm.space import MergeSpaces
from planner.metrics import EVENTS, HOSTS, PARTITIONS
from planner.policies.partition import partition_classes
from planner.population.at_rest import at_rest_of_host, at_rest_saved
from planner.population.extrapolation import notes
from planner.population.guests import guests_of, resident_pages
from planner.population.sample import template_facts
from planner.sampling import (
    FullSizeRecorder,
    Groups,
    saved_by_group,
    scale_of,
    scaled_cost,
    scaled_knobs,
    scaled_policy,
)
from planner.scenario.spec import PolicySpec
from planner.timeline.fewest import fewest_hosts

__all__ = ["HostTask", "NeedTask", "SurveyTask", "Task", "work"]

I64 = npt.NDArray[np.int64]
#: Pages and writes of a machine whose memory is worth letting go at once.
_MANY = 500_000
Versions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HostTask:
    """Machine number `host` in a replicate, with a share of its contents, under every policy.

    `scenario` is resolved JSON text; `versions` are those of who sends the task. `times_ns`:
    when its saving at rest is told.
    """

    scenario: str
    versions: Versions
    replicate: int
    host: int
    content_share: float = 1.0
    times_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SurveyTask:
    """All machines of a replicate without simulating any: who stands where, savings at rest.

    `resample`: of the captured guests on which the population is fitted; -1 for all of them.
    """

    scenario: str
    versions: Versions
    replicate: int
    times_ns: tuple[int, ...]
    resample: int = -1


@dataclass(frozen=True, slots=True)
class NeedTask:
    """How many machines would hold the guests of a replicate, by safe share of their memory."""

    scenario: str
    versions: Versions
    replicate: int
    safe_shares: tuple[float, ...]


Task = HostTask | SurveyTask | NeedTask


def work(task: Task) -> bytes:
    """Do a task. Raises DataError for other versions, and where a trace cannot be used."""
    require_versions(dict(task.versions))
    world = world_of(task.scenario)
    if isinstance(task, HostTask):
        if world.scenario.is_fleet:
            replicate = replicate_of(task.scenario, task.replicate)
            host = replicate.build(task.host, task.content_share)
            memory = _given_memory(replicate, task.host) if task.content_share < 1 else None
            return simulated(world, host, task.times_ns, memory=memory)
        host = replayed_host(world, task.host, task.replicate)
        return simulated(world, host, task.times_ns)
    replicate = replicate_of(task.scenario, task.replicate,
                             task.resample if isinstance(task, SurveyTask) else -1)
    if isinstance(task, SurveyTask):
        return _surveyed(replicate, task.times_ns)
    return _needed(replicate, task.safe_shares)


# ---- one machine --------------------------------------------------------------------------------


def simulated(world: World, host: FleetHost, times_ns: tuple[int, ...],
              progress: Callable[[str, int], None] | None = None, *,
              memory: Callable[[I64], npt.NDArray[np.float64]] | None = None) -> bytes:
    """`host` under every policy: rows at full size, and what estimates need of a sample.

    `progress(policy, time_ns)` hears of each sample. `memory(times_ns)`: bytes that the guests of a
    sampled host really hold without merging; the sample's own sum would be off by its error.
    """
    tables: dict[str, list[pa.Table]] = {"hosts": [], "partitions": [], "events": []}
    policies: list[dict[str, Any]] = []
    for policy in world.scenario.policies:
        rows, facts = _simulated(world, host, policy, times_ns, progress)
        if memory is not None:
            rows["hosts"] = _with_memory(rows["hosts"], memory)
        for name, table in rows.items():
            tables[name].append(table)
        policies.append(facts)
        # A simulation is a ring of a few objects that hold many arrays: nobody else would let
        # them go before the next one needs as much again.
        if len(host.site_mm) + len(host.event_site) > _MANY:
            gc.collect()
    facts = {
        "host": host.spec.name, "n_sites": len(host.site_mm), "n_events": len(host.event_time_ns),
        "n_guests": len(host.guests), "n_mms": len(host.mms),
        "premerged_bytes": host.n_premerged_frames * BYTES_PER_PAGE,
        "guests": [guest.name for guest in host.guests],
        "guest_start_ns": host.guest_start_ns.tolist() or [0] * len(host.guests),
        "policies": policies}
    return pack(facts, {name: pa.concat_tables(parts) for name, parts in tables.items()})


def _simulated(world: World, host: FleetHost, policy: PolicySpec, times_ns: tuple[int, ...],
               progress: Callable[[str, int], None] | None
               ) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    scenario = world.scenario
    scale = scale_of(host, policy)
    recorder = FullSizeRecorder(scale)
    found: list[Groups] = []

    def at_end(spaces: MergeSpaces) -> None:
        of_class = partition_classes(host, policy).of_class
        found.append(saved_by_group(host, of_class[host.site_class], spaces))

    def report(now_ns: int) -> None:
        if progress is not None:
            progress(policy.name, now_ns)

    simulate_host(
        replace(host, spec=replace(host.spec, hz=scale.hz)), scaled_policy(policy, scale),
        sensitive=scenario.domains.sensitive, horizon_ns=scenario.horizon_ns,
        sample_every_ns=scenario.output.sample_every_ns,
        cost=scaled_cost(world.costs[host.spec.timings], scale), recorder=recorder,
        progress=report, at_end=at_end if scale.share < 1 else None,
        knobs=lambda knobs: scaled_knobs(knobs, scale))
    facts: dict[str, Any] = {"policy": policy.name, "hz": scale.hz}
    if scale.share < 1:
        facts["groups"] = {"saved": found[0].saved.tolist(),
                           "at_rest": found[0].at_rest.tolist()}
    if times_ns:
        facts["at_rest"] = _at_rest_of(host, policy, times_ns)
    return {name: recorder.table(kind) for name, kind in (
        ("hosts", HOSTS), ("partitions", PARTITIONS), ("events", EVENTS))}, facts


def _at_rest_of(host: FleetHost, policy: PolicySpec, times_ns: tuple[int, ...]) -> list[float]:
    """Bytes that the host, as sampled and brought to full size, would save at rest."""
    frames = at_rest_of_host(host, policy, times_ns).saved[0].tolist()
    return [each * BYTES_PER_PAGE / host.content_share for each in frames]


def _with_memory(rows: pa.Table, memory: Callable[[I64], npt.NDArray[np.float64]]) -> pa.Table:
    """The rows of a sampled host with the memory that is known to be there at each time.

    Of a part in a thousand of all pages the sum is off by a per cent, on some machine at some time
    by several: enough to say that guests do not fit.
    """
    sampled, eligible = (rows.column(name).to_numpy().astype(np.float64)
                         for name in ("guest_memory_bytes", "eligible_bytes"))
    if not sampled.any():
        return rows
    known = memory(rows.column("time_ns").to_numpy())
    for name, values in (("guest_memory_bytes", known),
                         ("eligible_bytes", known * (eligible.sum() / sampled.sum()))):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name),
                               pa.array(np.rint(values).astype(np.int64)))
    return rows


def _given_memory(replicate: Replicate, host: int) -> Callable[[I64], npt.NDArray[np.float64]]:
    """Bytes that the guests of a machine hold at given times, if nothing is merged."""
    scenario, timeline = replicate.world.scenario, replicate.timeline
    stays = timeline.stays_on(host)
    guests = guests_of(replicate.population, scenario, replicate.requests, replicate.number)
    size = resident_pages(replicate.population, guests)[timeline.stay_guest[stays]]
    start_ns, end_ns = timeline.stay_start_ns[stays], timeline.stay_end_ns[stays]
    end_ns = np.where(end_ns < scenario.horizon_ns, end_ns, np.iinfo(np.int64).max)

    def at(times_ns: I64) -> npt.NDArray[np.float64]:
        begun = np.sort(start_ns), np.argsort(start_ns, kind="stable")
        ended = np.sort(end_ns), np.argsort(end_ns, kind="stable")
        come, gone = (np.concatenate([[0.0], np.cumsum(size[order])])[
            np.searchsorted(times, times_ns, side="right")]
            for times, order in (begun, ended))
        held: npt.NDArray[np.float64] = (come - gone) * BYTES_PER_PAGE
        return held

    return at


# ---- all machines -------------------------------------------------------------------------------


def _surveyed(replicate: Replicate, times_ns: tuple[int, ...]) -> bytes:
    scenario, timeline = replicate.world.scenario, replicate.timeline
    times = np.array(times_ns, np.int64)
    n_hosts = len(timeline.hosts)
    columns: dict[str, I64] = {"memory_bytes": _memory(replicate, times).ravel()}
    for index, policy in enumerate(scenario.policies):
        found = at_rest_saved(replicate.population, scenario, timeline, policy, times_ns,
                              replicate.number)
        if found is not None:
            columns[f"at_rest_{index}"] = found.saved.ravel() * BYTES_PER_PAGE
    is_used = np.zeros(n_hosts, bool)
    is_used[timeline.stay_host] = True
    facts = {
        "hosts": list(timeline.hosts), "host_spec": timeline.host_spec.tolist(),
        "is_used": is_used.tolist(), "n_guests": len(replicate.requests),
        "n_rejected": len(timeline.rejected), "n_lost": len(timeline.lost),
        "rejected": [replicate.requests.name[guest] for guest in timeline.rejected[:20]],
        "warnings": list(timeline.warnings), "notes": _notes(replicate),
        "incidents": [{"kind": each.kind, "time_ns": each.time_ns,
                       "host": timeline.hosts[each.host] if each.host >= 0 else "",
                       "n_guests": each.n_guests, "n_left": each.n_left}
                      for each in timeline.incidents],
        **_amounts(replicate),
    }
    return pack(facts, {"hosts": pa.table(columns)})


def _notes(replicate: Replicate) -> list[str]:
    return [*notes(replicate.population, replicate.world.scenario, replicate.requests),
            *replicate.requests.notes]


def _amounts(replicate: Replicate) -> dict[str, int]:
    """Pages of all stays on all machines, and writes to them, about."""
    population, timeline = replicate.population, replicate.timeline
    guests = guests_of(population, replicate.world.scenario, replicate.requests, replicate.number)
    n_templates = len(population.templates)
    n_sites, writes_per_ns = np.zeros(n_templates), np.zeros(n_templates)
    for index, template in enumerate(population.templates):
        n_sites[index] = template.n_sites
        period_ns = population.workloads[template.workload].clock.period_ns
        if period_ns:
            n_a_pass = template_facts(population.contents, template).is_written.sum()
            writes_per_ns[index] = n_a_pass / period_ns
    here = timeline.stay_guest
    template_of, copies = guests.template[here], guests.n_copies[here] + guests.part[here]
    lived_ns = timeline.stay_end_ns - timeline.stay_start_ns
    return {"n_pages": int((n_sites[template_of] * copies + guests.n_fill[here]).sum()),
            "n_writes": int((writes_per_ns[template_of] * copies * lived_ns).sum())}


def _memory(replicate: Replicate, times_ns: I64) -> I64:
    """Bytes that guests were given on each machine at each time: i64[n_hosts, n_times]."""
    timeline = replicate.timeline
    size = replicate.requests.memory_bytes[timeline.stay_guest]
    out = np.zeros((len(timeline.hosts), len(times_ns)), np.int64)
    for index, time_ns in enumerate(times_ns.tolist()):
        here = (timeline.stay_start_ns <= time_ns) & (time_ns < timeline.stay_end_ns)
        # Those who live on are there at the end.
        here |= (timeline.stay_end_ns == time_ns) & (time_ns >= replicate.world.scenario.horizon_ns)
        np.add.at(out[:, index], timeline.stay_host[here], size[here])
    return out


def _needed(replicate: Replicate, safe_shares: tuple[float, ...]) -> bytes:
    scenario = replicate.world.scenario
    assert scenario.fleet is not None, "needs are of fleets"
    memory = replicate.requests.memory_bytes
    found: Mapping[float, int] = {
        share: fewest_hosts(
            replicate.requests, scenario.hosts[0], scenario.fleet.placement,
            charge_bytes=np.ceil(memory * (1.0 - share)).astype(np.int64),
            sketches=replicate.sketches)
        for share in sorted(set(safe_shares))}
    return pack({"needed": [found[share] for share in safe_shares]}, {})
