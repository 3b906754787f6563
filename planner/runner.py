"""One function per thing a user does with scenarios: load one, run one.

`run` joins the parts: traces become hosts, every policy is replayed over every host, what the
recorder holds becomes a Result.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import planner
from planner import scenario as scenarios
from planner.arrivals import read_arrivals
from planner.cases import CaseFolder
from planner.engine import simulate_host
from planner.errors import DataError, InterruptedRunError
from planner.executor import Progress, open_pool
from planner.fleet import FleetHost, build_host
from planner.forecast.fleet import FleetRun, run_fleet
from planner.forecast.replay import Replayed, run_replay
from planner.forecast.world import replicate_of
from planner.inventory import read_inventory
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.ksm.timings import read_timings
from planner.metrics import (
    EVENTS,
    HOSTS,
    PARTITIONS,
    REPLICATES,
    SERIES,
    SUMMARY,
    Recorder,
    Result,
    summarise,
)
from planner.planning import Outcome, plan, summary_row
from planner.policies.partition import partition_text
from planner.policies.timing import timing_text
from planner.results import scenario_digest
from planner.scenario.spec import (
    ArrivalFacts,
    FleetFacts,
    GuestFacts,
    PolicySpec,
    Scenario,
    TraceFacts,
    to_json,
)
from planner.scenario.spec import (
    FleetHost as ListedHost,
)
from planner.scenario.sweep import Case as SweepCase
from planner.trace import PAGE_BYTES, Trace, open_trace
from planner.units import format_size

__all__ = ["TraceStore", "build_hosts", "costs_of", "load_cases", "load_scenario", "run",
           "run_digest"]

#: What a reader of the numbers must know of the model; the report prints it.
ASSUMPTIONS = (
    "Guests are exactly those captured, over the time of the capture; nothing is extrapolated.",
    "A page that differs between two snapshots is written once, at a random time between them; "
    "writes that left no trace in a snapshot are not seen, so COW breaks are a lower bound.",
    "ksmd is the kernel's, visit for visit, of the version that the host runs "
    "(docs/ksm-model.md); writes during a batch come after it; pages stay on their NUMA node.",
    "Huge pages are split by the first attempt to merge a part of them; on kernels from 6.12 on "
    "the split itself frees zero-filled parts, which saved_zero counts. No new ones are made.",
    "Counters such as pages_sharing describe pages as of their last visit, as the kernel's do; "
    "what is saved is exact at every time.",
    "Synchronous merging follows the proposal of January 2025 for Selective KSM: one call merges, "
    "without a checksum gate, and the caller pays its CPU time.",
    "saved is frames freed of non-zero content minus all metadata (64 bytes a rmap item, 64 a "
    "stable node, 48 an mm); what fork already shares is not a saving.",
)

#: In place of the first assumption, where guests are drawn.
DRAWN_ASSUMPTIONS = (
    "Guests are drawn like the captured ones, with contents in common as often as those had and "
    "private contents of their own; the capture is passed through again and again.",
    "All strategies meet the same guests, placements, writes and incidents; replicates differ in "
    "all of them.",
)
SAMPLED_ASSUMPTIONS = (
    "Only a share of the contents, or of the hosts, was simulated; totals are estimated with the "
    "standard errors told. Figures of the worst host and of 99 % of hosts are of the simulated "
    "hosts only, and what happened to huge pages is the least certain.",
)
#: Machines of a fleet that `build_hosts` builds, and pages that they have together.
MOST_DRAWN_HOSTS = 4
_MOST_DRAWN_PAGES = 4_000_000


class TraceStore:
    """Opens each trace once, however many workloads name it."""

    def __init__(self) -> None:
        self._traces: dict[str, Trace] = {}

    def open(self, path: str | Path) -> Trace:
        """The trace at `path`, checked when first opened."""
        key = str(path)
        if key not in self._traces:
            self._traces[key] = open_trace(path)
        return self._traces[key]

    def facts(self, path: Path) -> TraceFacts:
        """What scenarios need to know of the trace at `path`."""
        trace = self.open(path)
        if not trace.snapshots:
            raise DataError("the trace has no finished snapshot", where=str(path),
                            instead="capture again")
        if trace.provenance.get("page_ids") is False and len(trace.snapshots) > 1:
            raise DataError(
                "the trace has no page ids, so nobody can tell which page of one snapshot became "
                "which page of the next, and writes cannot be replayed", where=str(path),
                instead="capture the guests with planner capture for a scenario; planner trace "
                        "info counts every snapshot of this one")
        n_pages = _frames_of_guests(trace)
        values: dict[str, set[str]] = {}
        for region in trace.regions:
            for label, value in region.labels.items():
                values.setdefault(label, set()).add(value)
        return TraceFacts(
            str(path), trace.digest, trace.span_ns, len(trace.snapshots),
            tuple(GuestFacts(guest.guest_id, guest.name, guest.kind, guest.labels,
                             guest.memory_bytes, n_pages[guest.guest_id])
                  for guest in trace.guests),
            frozenset(values), {label: frozenset(found) for label, found in values.items()},
            trace.hash_info.key_id, trace.hash_info.algorithm)


def _frames_of_guests(trace: Trace) -> dict[int, int]:
    """The most frames that each guest held in any snapshot; shared frames count once a guest."""
    own: Counter[tuple[int, int]] = Counter()
    shared: dict[tuple[int, int], set[int]] = {}
    for mm in trace.mms:
        for snapshot_id, pages in trace.mm_history(mm.mm_id):
            place = (mm.guest_id, snapshot_id)
            own[place] += int((pages.frame_id < 0).sum())
            shared.setdefault(place, set()).update(pages.frame_id[pages.frame_id >= 0].tolist())
    most = {guest.guest_id: 0 for guest in trace.guests}
    for (guest_id, snapshot_id), n_own in own.items():
        most[guest_id] = max(most[guest_id], n_own + len(shared[guest_id, snapshot_id]))
    return most


def load_scenario(path: Path | str, overrides: Sequence[str] = (), *,
                  store: TraceStore | None = None, notes: list[str] | None = None) -> Scenario:
    """Read, check and resolve a scenario file.

    `overrides` are `key=value` texts that replace values of the file. What of its inventory is
    not used is added to `notes`. Raises ScenarioError with all problems, or DataError for a
    trace or an inventory that cannot be used.

    >>> import planner
    >>> scenario = planner.load_scenario("small.yaml", ["seed=7"])
    >>> scenario.seed, [policy.name for policy in scenario.policies]
    (7, ['off', 'ksmd', 'domain'])
    >>> scenario.workloads[0].guests[2].domain
    'blue'
    """
    return scenarios.load_scenario(Path(path), (store or TraceStore()).facts, overrides,
                                   fleet_facts, notes, arrival_facts)


def load_cases(path: Path | str, overrides: Sequence[str] = (), *,
               store: TraceStore | None = None, notes: list[str] | None = None
               ) -> list[SweepCase]:
    """The scenario of a file in every case of its sweep; one case where it has none.

    Arguments and errors as for `load_scenario`.
    """
    return scenarios.load_cases(Path(path), (store or TraceStore()).facts, overrides,
                                fleet_facts, notes, arrival_facts)


def fleet_facts(path: Path) -> FleetFacts:
    """What scenarios need to know of the inventory at `path`."""
    found = read_inventory(path)
    return FleetFacts(
        str(path), tuple(ListedHost(row.name, row.memory_bytes, row.cpus) for row in found.hosts),
        tuple((row.name, row.all_labels()) for row in found.guests))


def arrival_facts(path: Path) -> ArrivalFacts:
    """What scenarios need to know of the arrival table at `path`."""
    table = read_arrivals(path)
    return ArrivalFacts(
        str(path), table.digest, len(table), len(np.unique(table.tenant[table.tenant >= 0])),
        int(table.time_ns[0]) if len(table) else 0, int(table.time_ns[-1]) if len(table) else 0,
        int(table.memory_bytes.max(initial=0)))


def run_digest(scenario: Scenario, costs: Mapping[str, CostModel] | None = None) -> str:
    """The digest that names a scenario's result: scenario, traces, calibrations and program
    version. A calibration counts by what it says, not by where it lies.

    `costs` are those of `costs_of`, if they were read already. Raises DataError as that does.
    """
    costs = costs_of(scenario) if costs is None else costs
    form = to_json(scenario)
    for host in form["hosts"]:
        if host["timings"] != BUILTIN_UNMEASURED.name:
            host["timings"] = str(costs[host["timings"]].costs_ns())
    arrivals = (form.get("fleet") or {}).get("arrivals")
    if arrivals is not None:  # it counts by its digest
        arrivals["table"] = ""
    return scenario_digest(form, planner.__version__)


def costs_of(scenario: Scenario) -> dict[str, CostModel]:
    """The cost models that the hosts name: built in, or calibrations (DataError if one is none)."""
    return {name: BUILTIN_UNMEASURED if name == BUILTIN_UNMEASURED.name
            else read_timings(Path(name))
            for name in sorted({host.timings for host in scenario.hosts})}


def run(scenario: Scenario | Path | str, *, progress: Progress | None = None,
        store: TraceStore | None = None, workers: int = 1, cluster: str | None = None,
        cases: Path | None = None) -> Result:
    """Simulate every policy of the scenario over its hosts.

    `progress(what, share)` is called as work is done, with the share of all of it. `workers`: local
    processes; more than one need a program guarded by `if __name__ == "__main__":`. `cluster`: the
    address of a dask scheduler instead, such as `tcp://10.0.0.1:8786`. `cases`: a folder that
    keeps what is finished of a run of several cases (drawn guests, several replicates), from
    which a rerun goes on; the caller removes it once the result is saved.

    Raises ScenarioError or DataError, MachineError for processes or a cluster that cannot do it,
    and InterruptedRunError on Ctrl-C, whose `partial` is the Result over the policies of a replay
    that were finished.

    >>> import planner
    >>> result = planner.run("small.yaml")
    >>> for row in result.summary.select(["policy", "pages_sharing"]).to_pylist():
    ...     print(row["policy"], row["pages_sharing"])
    off 0
    ksmd 3
    domain 2
    """
    store = store or TraceStore()
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, store=store)
    started = time.perf_counter()
    traces = _traces(scenario, store)
    costs = costs_of(scenario)
    record = _Record(scenario, run_digest(scenario, costs), traces, costs, started)
    if not scenario.is_fleet and scenario.replicates == 1 and workers == 1 and cluster is None:
        return _replayed_here(record, build_hosts(scenario, store), progress)
    folder = CaseFolder(cases) if cases is not None else None
    try:
        with open_pool(workers, cluster) as pool:
            if scenario.is_fleet:
                return _fleet_result(record, run_fleet(scenario, record.digest, pool,
                                                       folder=folder, progress=progress))
            return _replay_result(record, run_replay(scenario, record.digest, pool,
                                                     folder=folder, progress=progress))
    except KeyboardInterrupt:
        n_kept = len(folder.finished()) if folder is not None else 0
        raise InterruptedRunError(
            f"interrupted; {n_kept} finished cases are kept in {cases}" if n_kept
            else "interrupted before a case was finished; nothing was written",
            instead="run again to go on" if n_kept else "") from None


def _traces(scenario: Scenario, store: TraceStore) -> dict[str, Trace]:
    """The traces by path. Raises DataError for one that was changed since."""
    traces = {workload.trace: store.open(workload.trace) for workload in scenario.workloads}
    for workload in scenario.workloads:
        if traces[workload.trace].digest != workload.trace_digest:
            raise DataError("the trace is not the one that the scenario was resolved with",
                            where=workload.trace, instead="resolve the scenario again")
    return traces


def build_hosts(scenario: Scenario, store: TraceStore) -> list[FleetHost]:
    """The scenario's hosts with their guests. Raises DataError where a trace does not fit.

    Where guests are drawn: up to `MOST_DRAWN_HOSTS` machines of the first replicate, evenly over
    those with guests, with all contents where that is not too much and else with a share
    (`content_share`).
    """
    traces = _traces(scenario, store)
    if scenario.is_fleet:
        return _drawn_hosts(scenario)
    return [build_host(scenario, spec, traces) for spec in scenario.hosts]


def _drawn_hosts(scenario: Scenario) -> list[FleetHost]:
    replicate = replicate_of(json.dumps(to_json(scenario)), 0)
    used = np.unique(replicate.timeline.stay_host)
    if not len(used):
        raise DataError("no guest found room on any host", where=f"scenario {scenario.name!r}",
                        instead="give the fleet larger hosts, or smaller guests")
    at = np.unique(np.linspace(0, len(used) - 1, MOST_DRAWN_HOSTS).round().astype(np.int64))
    stays = replicate.timeline.stay_guest
    n_pages = int(replicate.requests.memory_bytes[stays].sum()) // PAGE_BYTES
    share = min(1.0, _MOST_DRAWN_PAGES / max(1, n_pages * len(at) // len(used)))
    return [replicate.build(int(used[index]), float(f"{share:.3g}")) for index in at]


# ---- replays ------------------------------------------------------------------------------------


def _replayed_here(record: _Record, hosts: Sequence[FleetHost], progress: Progress | None
                   ) -> Result:
    """A replay in this process, policy by policy: what is finished outlives an interrupt."""
    scenario = record.scenario
    recorder = Recorder()
    finished: list[PolicySpec] = []

    def result(status: str) -> Result:
        rows = {name: _rows_of(recorder.table(kind), {policy.name for policy in finished})
                for name, kind in _KINDS.items()}
        return _replay_result(record, Replayed.of_one(scenario, hosts, rows), finished, status)

    try:
        for policy in scenario.policies:
            _run_policy(record, policy, hosts, recorder, progress, len(finished))
            finished.append(policy)
    except KeyboardInterrupt:
        if not finished:
            raise InterruptedRunError(
                "interrupted before the first policy was finished; nothing was written") from None
        raise InterruptedRunError(
            f"interrupted after {len(finished)} of {len(scenario.policies)} policies",
            partial=result("partial")) from None
    return result("complete")


def _run_policy(record: _Record, policy: PolicySpec, hosts: Sequence[FleetHost],
                recorder: Recorder, progress: Progress | None, n_finished: int) -> None:
    scenario = record.scenario
    for index, host in enumerate(hosts):
        step = n_finished * len(hosts) + index
        report = _step_progress(progress, policy.name, step,
                                len(scenario.policies) * len(hosts), scenario.horizon_ns)
        simulate_host(host, policy, sensitive=scenario.domains.sensitive,
                      horizon_ns=scenario.horizon_ns,
                      sample_every_ns=scenario.output.sample_every_ns,
                      cost=record.costs[host.spec.timings], recorder=recorder, progress=report)


def _step_progress(progress: Progress | None, policy: str, step: int, n_steps: int,
                   horizon_ns: int) -> Callable[[int], None] | None:
    if progress is None:
        return None

    def report(now_ns: int) -> None:
        done = now_ns / horizon_ns if horizon_ns else 1.0
        progress(policy, (step + done) / n_steps)

    return report


def _rows_of(table: Any, policies: set[str]) -> Any:
    names = table.column("policy").to_pylist()
    return table.take(np.array([index for index, name in enumerate(names) if name in policies],
                               np.int64))


def _replay_result(record: _Record, replayed: Replayed,
                   policies: Sequence[PolicySpec] | None = None,
                   status: str = "complete") -> Result:
    """The Result over the finished policies: tables of the first replicate."""
    scenario = record.scenario
    recorder = Recorder()
    for policy in scenario.policies if policies is None else policies:
        rows = {name: _rows_of(table, {policy.name}) for name, table in replayed.rows.items()}
        recorder.add(SUMMARY, summarise(_texts(policy), rows["hosts"], rows["partitions"],
                                        scenario.horizon_ns))
    machines = replayed.machines
    warnings = [
        f"KSM had merged pages on {machine['name']} when it was captured and saved "
        f"{format_size(machine['premerged_bytes'])} there. They are replayed unmerged: "
        "compare the strategies with one another; savings are against no merging, not against "
        "what the host does today."
        for machine in machines if machine["premerged_bytes"]]
    return record.result(replayed.rows, recorder, replayed.outcomes, machines=machines,
                         warnings=warnings, assumptions=ASSUMPTIONS, status=status)


def _texts(policy: PolicySpec) -> dict[str, str]:
    return {"policy": policy.name, "merge": timing_text(policy),
            "partition_by": partition_text(policy)}


# ---- fleets -------------------------------------------------------------------------------------


def _fleet_result(record: _Record, fleet: FleetRun) -> Result:
    scenario = record.scenario
    recorder = Recorder()
    for policy in scenario.policies:
        mine = [each for each in fleet.outcomes if each.row["policy"] == policy.name]
        recorder.add(SUMMARY, summary_row(_texts(policy), mine,
                                          scenario.horizon_ns - scenario.warm_up_ns))
    rows = {"hosts": fleet.hosts, "partitions": fleet.partitions, "events": fleet.events}
    assumptions = [*DRAWN_ASSUMPTIONS, *ASSUMPTIONS[1:]]
    if fleet.sampling["is_sampled"]:
        assumptions += SAMPLED_ASSUMPTIONS
    return record.result(rows, recorder, fleet.outcomes, machines=fleet.machines,
                         warnings=fleet.warnings, assumptions=assumptions,
                         notes=fleet.notes, sampling=fleet.sampling,
                         replicates=list(fleet.facts))


# ---- the result ---------------------------------------------------------------------------------

_KINDS = {"hosts": HOSTS, "partitions": PARTITIONS, "events": EVENTS}


@dataclass(frozen=True, slots=True)
class _Record:
    """What is recorded of every run."""

    scenario: Scenario
    digest: str
    traces: Mapping[str, Trace]
    costs: Mapping[str, CostModel]
    started_s: float

    def result(self, rows: Mapping[str, Any], recorder: Recorder, outcomes: Sequence[Outcome], *,
               machines: Sequence[Mapping[str, Any]], warnings: Sequence[str],
               assumptions: Sequence[str], notes: Sequence[str] = (), status: str = "complete",
               **facts: Any) -> Result:
        """The Result from rows by kind, a recorder with the summary, and all outcomes."""
        for each in outcomes:
            recorder.add(REPLICATES, each.row)
            if each.row["resample"] < 0:
                for row in each.series:
                    recorder.add(SERIES, row)
        document = plan(self.scenario, outcomes, digest=self.digest, notes=notes)
        run = {**self._of_any_run(), "hosts": list(machines), "warnings": list(warnings),
               "assumptions": list(assumptions), **facts, "status": status}
        return Result(to_json(self.scenario), run, recorder.table(SUMMARY), rows["hosts"],
                      rows["partitions"], rows["events"], recorder.table(REPLICATES),
                      recorder.table(SERIES), document)

    def _of_any_run(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "digest": self.digest,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "elapsed_s": round(time.perf_counter() - self.started_s, 3),
            "seed": self.scenario.seed,
            "timings": list(self.costs),
            # What they said then: a calibration may be made anew, or be moved.
            "costs_ns": {name: cost.costs_ns() for name, cost in self.costs.items()},
            "validated": False,
            "versions": {
                "planner": planner.__version__, "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "numba", "pyarrow", "simpy")}},
            "traces": [{
                "path": path, "digest": trace.digest, "status": trace.status,
                "n_guests": len(trace.guests), "n_snapshots": len(trace.snapshots),
                "n_pages": trace.snapshots[0].n_pages, "span_ns": trace.span_ns,
                "hash": trace.hash_info.algorithm, "key_id": trace.hash_info.key_id,
                "source": str(trace.provenance.get("source", "unknown")),
            } for path, trace in self.traces.items()],
        }
