"""What a run would take, from what the scenario says alone: orders of magnitude, not promises.

The rates are rounded figures of one machine (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planner.ksm.records import BYTES_PER_PAGE
from planner.sampling.design import PILOT_HOSTS, PILOT_PAGES
from planner.scenario.spec import Ksmd, Scenario

__all__ = ["Effort", "effort"]

#: A page's tables and events, and what building it takes.
_PAGE_MEMORY_BYTES = 400
_PAGE_NS = 3_000
#: A page in a sample of the counters; a visit of ksmd.
_COUNT_NS = 20
_VISIT_NS = 20
#: A process with all its libraries; a machine in a survey.
_PROCESS_BYTES = 300 << 20
_SURVEY_NS = 5_000_000


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of a run. `n_hosts` machines are simulated in each replicate, with `n_pages` pages of
    each; `is_least`: a pilot may ask for more. `time_ns` and `memory_bytes` are rough, over all
    workers."""

    n_policies: int
    n_replicates: int
    n_machines: int
    n_hosts: int
    n_pages: int
    n_cases: int
    is_least: bool
    time_ns: int
    memory_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def effort(scenario: Scenario, workers: int) -> Effort:
    """The effort of a scenario on so many local workers."""
    n_machines = sum(host.count for host in scenario.hosts)
    pages = _pages_per_host(scenario, n_machines)
    n_hosts, share, is_least, notes = n_machines, 1.0, False, []
    precision = scenario.precision
    if scenario.is_fleet:
        n_hosts = min(precision.n_hosts or n_machines, n_machines)
        share = precision.content_share or 1.0
        if precision.error:
            is_least = not (precision.n_hosts and precision.content_share)
            n_hosts = precision.n_hosts or min(n_machines, PILOT_HOSTS)
            share = precision.content_share or min(1.0, PILOT_PAGES / max(pages, 1))
            notes.append("a pilot on the first replicate decides how many machines, and which "
                         "share of their contents, the wanted error needs")
        elif n_hosts * pages > 1 << 26:
            notes.append("every page of every machine is simulated; precision: 1 % samples both")
    simulated = max(1, round(pages * share))
    n_samples = scenario.horizon_ns // scenario.output.sample_every_ns + 2
    host_ns = simulated * _PAGE_NS
    for policy in scenario.policies:
        host_ns += simulated * n_samples * _COUNT_NS
        if isinstance(policy.merge, Ksmd):
            cycle_ns = max(policy.merge.sleep_millisecs * 1_000_000, 1_000_000)
            visits = scenario.horizon_ns / cycle_ns * policy.merge.pages_to_scan * share
            host_ns += round(visits * _VISIT_NS)
    n_replicates = scenario.replicates
    total_ns = host_ns * n_hosts * n_replicates
    if scenario.is_fleet:
        total_ns += n_machines * _SURVEY_NS * n_replicates * len(scenario.policies)
    return Effort(
        len(scenario.policies), n_replicates, n_machines, n_hosts, simulated,
        n_replicates * (n_hosts + (2 if scenario.is_fleet else 0)), is_least,
        round(total_ns / max(1, workers)),
        workers * (simulated * _PAGE_MEMORY_BYTES + _PROCESS_BYTES), tuple(notes))


def _pages_per_host(scenario: Scenario, n_machines: int) -> float:
    """Pages that guests hold on a machine: in a fleet at most what fits, on an average."""
    room = sum((host.memory_bytes - host.reserved_bytes) * host.count for host in scenario.hosts)
    if not scenario.is_fleet:
        return room / n_machines / BYTES_PER_PAGE
    assert scenario.fleet is not None, "a fleet"
    asked = sum(workload.draw.count * (workload.draw.memory_bytes or 0)
                for workload in scenario.workloads if workload.draw is not None)
    is_known = all(workload.draw is not None and workload.draw.memory_bytes
                   and not workload.draw.arrivals_per_hour and not workload.draw.table_share
                   for workload in scenario.workloads)
    room = round(room * scenario.fleet.overcommit)
    return (min(asked, room) if is_known else room) / n_machines / BYTES_PER_PAGE
