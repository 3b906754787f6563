"""Replays as outcomes: captured guests on their own hosts, once or in several replicates.

Replicates of a replay differ in when pages are written between two snapshots, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from planner.cases import CaseFolder
from planner.executor import Pool, Progress
from planner.fleet import FleetHost
from planner.forecast.cases import Cases, replicate_name
from planner.forecast.work import HostTask
from planner.ksm.records import BYTES_PER_PAGE
from planner.planning import Fleet, Outcome, outcome
from planner.scenario.spec import Scenario

__all__ = ["Replayed", "run_replay"]

_KINDS = ("hosts", "partitions", "events")


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What a replay came to: rows by kind, and machines, of the first replicate; all outcomes."""

    rows: Mapping[str, pa.Table]
    machines: tuple[dict[str, Any], ...]
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of_one(cls, scenario: Scenario, hosts: Sequence[FleetHost], rows: Mapping[str, pa.Table]
               ) -> Replayed:
        """From the rows of one replicate, of the policies that are in them."""
        starts = tuple((host.spec.name, guest.name, 0) for host in hosts for guest in host.guests)
        machines = tuple({
            "name": host.spec.name, "n_guests": len(host.guests), "n_mms": len(host.mms),
            "n_sites": len(host.site_mm), "n_events": len(host.event_time_ns),
            "premerged_bytes": host.n_premerged_frames * BYTES_PER_PAGE} for host in hosts)
        return cls(rows, machines, tuple(_outcomes(scenario, 0, rows, starts)))


def run_replay(scenario: Scenario, digest: str, pool: Pool, *, folder: CaseFolder | None = None,
               progress: Progress | None = None) -> Replayed:
    """Replay every machine in every replicate, each as a case; see `planner.forecast.fleet`."""
    run = Cases(scenario, digest, pool, folder, progress)
    tasks = [HostTask(run.text, run.versions, replicate, host)
             for replicate in range(scenario.replicates) for host in range(len(scenario.hosts))]
    names = [replicate_name(task.replicate, scenario.hosts[task.host].name) for task in tasks]
    found = run.do(tasks, names, (0.0, 1.0))
    outcomes: list[Outcome] = []
    rows: dict[str, pa.Table] = {}
    for replicate in range(scenario.replicates):
        mine = [each for task, each in zip(tasks, found, strict=True)
                if task.replicate == replicate]
        whole = {kind: _by_policy(scenario, [tables[kind] for _, tables in mine])
                 for kind in _KINDS}
        rows = rows or whole
        starts = tuple((facts["host"], guest, 0) for facts, _ in mine for guest in facts["guests"])
        outcomes += _outcomes(scenario, replicate, whole, starts)
    machines = tuple({"name": facts["host"], **{name: facts[name] for name in (
        "n_guests", "n_mms", "n_sites", "n_events", "premerged_bytes")}}
        for task, (facts, _) in zip(tasks, found, strict=True) if not task.replicate)
    return Replayed(rows, machines, tuple(outcomes))


def _by_policy(scenario: Scenario, tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all machines in the order of a run in one process: policies, then machines."""
    whole = pa.concat_tables(tables)
    return pa.concat_tables([whole.filter(pc.equal(whole.column("policy"), policy.name))
                             for policy in scenario.policies]).combine_chunks()


def _outcomes(scenario: Scenario, replicate: int, rows: Mapping[str, pa.Table],
              starts: tuple[tuple[str, str, int], ...]) -> list[Outcome]:
    """One outcome a policy that has rows."""
    fleet = Fleet(
        n_machines=len(scenario.hosts), n_cores=sum(host.cores for host in scenario.hosts),
        weights={}, available_bytes={host.name: host.memory_bytes - host.reserved_bytes
                                     for host in scenario.hosts},
        warm_up_ns=scenario.warm_up_ns, horizon_ns=scenario.horizon_ns,
        sample_every_ns=scenario.output.sample_every_ns, is_drawn=False, n_guests=len(starts),
        hosts_used=len(scenario.hosts), starts=starts)
    found = []
    for policy in scenario.policies:
        mine = {kind: rows[kind].filter(pc.equal(rows[kind].column("policy"), policy.name))
                for kind in _KINDS}
        if mine["hosts"].num_rows:
            found.append(outcome(policy.name, replicate, fleet, mine["hosts"],
                                 partitions=mine["partitions"].to_pylist(),
                                 events=mine["events"].to_pylist()))
    return found
