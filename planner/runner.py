"""One function per thing a user does with scenarios: load one, run one.

`run` joins the parts: traces become hosts, every policy is replayed over every host, what the
recorder holds becomes a Result.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import planner
from planner import scenario as scenarios
from planner.engine import simulate_host
from planner.errors import DataError, InterruptedRunError
from planner.fleet import FleetHost, build_host
from planner.inventory import read_inventory
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.ksm.timings import read_timings
from planner.metrics import EVENTS, HOSTS, PARTITIONS, SUMMARY, Recorder, Result, summarise
from planner.policies.partition import partition_text
from planner.policies.timing import merge_text
from planner.results import scenario_digest
from planner.scenario.spec import (
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
from planner.trace import PAGE_BYTES, Trace, open_trace
from planner.units import format_size

__all__ = ["TraceStore", "build_hosts", "costs_of", "load_scenario", "run", "run_digest"]

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

Progress = Callable[[str, float], None]


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
                                   fleet_facts, notes)


def fleet_facts(path: Path) -> FleetFacts:
    """What scenarios need to know of the inventory at `path`."""
    found = read_inventory(path)
    return FleetFacts(
        str(path), tuple(ListedHost(row.name, row.memory_bytes, row.cpus) for row in found.hosts),
        tuple((row.name, row.all_labels()) for row in found.guests))


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
    return scenario_digest(form, planner.__version__)


def costs_of(scenario: Scenario) -> dict[str, CostModel]:
    """The cost models that the hosts name: built in, or calibrations (DataError if one is none)."""
    return {name: BUILTIN_UNMEASURED if name == BUILTIN_UNMEASURED.name
            else read_timings(Path(name))
            for name in sorted({host.timings for host in scenario.hosts})}


def run(scenario: Scenario | Path | str, *, progress: Progress | None = None,
        store: TraceStore | None = None) -> Result:
    """Replay every policy of the scenario over its hosts.

    `progress(policy, share)` is called as simulated time passes, with the share of all work that
    is done. Raises ScenarioError or DataError, and InterruptedRunError on Ctrl-C, whose `partial`
    is the Result over the policies that were finished.

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
    traces = {workload.trace: store.open(workload.trace) for workload in scenario.workloads}
    costs = costs_of(scenario)
    hosts = build_hosts(scenario, store)
    recorder = Recorder()
    finished: list[PolicySpec] = []
    try:
        for policy in scenario.policies:
            _run_policy(scenario, policy, hosts, costs, recorder, progress, len(finished))
            finished.append(policy)
    except KeyboardInterrupt:
        if not finished:
            raise InterruptedRunError(
                "interrupted before the first policy was finished; nothing was written") from None
        partial = _result(scenario, finished, recorder, traces, hosts, costs, started, "partial")
        raise InterruptedRunError(
            f"interrupted after {len(finished)} of {len(scenario.policies)} policies",
            partial=partial) from None
    return _result(scenario, finished, recorder, traces, hosts, costs, started, "complete")


def build_hosts(scenario: Scenario, store: TraceStore) -> list[FleetHost]:
    """The scenario's hosts with their guests. Raises DataError where a trace does not fit."""
    traces = {workload.trace: store.open(workload.trace) for workload in scenario.workloads}
    for workload in scenario.workloads:
        if traces[workload.trace].digest != workload.trace_digest:
            raise DataError("the trace is not the one that the scenario was resolved with",
                            where=workload.trace, instead="resolve the scenario again")
    return [build_host(scenario, spec, traces) for spec in scenario.hosts]


def _run_policy(scenario: Scenario, policy: PolicySpec, hosts: Sequence[FleetHost],
                costs: Mapping[str, CostModel], recorder: Recorder, progress: Progress | None,
                n_finished: int) -> None:
    for index, host in enumerate(hosts):
        step = n_finished * len(hosts) + index
        report = _step_progress(progress, policy.name, step,
                                len(scenario.policies) * len(hosts), scenario.horizon_ns)
        simulate_host(host, policy, sensitive=scenario.domains.sensitive,
                      horizon_ns=scenario.horizon_ns,
                      sample_every_ns=scenario.output.sample_every_ns,
                      cost=costs[host.spec.timings], recorder=recorder, progress=report)


def _result(scenario: Scenario, policies: Sequence[PolicySpec], recorder: Recorder,
            traces: dict[str, Trace], hosts: Sequence[FleetHost], costs: Mapping[str, CostModel],
            started: float, status: str) -> Result:
    """The Result over the finished policies."""
    names = {policy.name for policy in policies}
    samples, partitions, events = (_rows_of(recorder.table(kind), names)
                                   for kind in (HOSTS, PARTITIONS, EVENTS))
    for policy in policies:
        texts = {"policy": policy.name, "merge": merge_text(policy.merge),
                 "partition_by": partition_text(policy)}
        recorder.add(SUMMARY, summarise(texts, _rows_of(samples, {policy.name}),
                                        _rows_of(partitions, {policy.name}),
                                        scenario.horizon_ns))
    record = _run_record(scenario, traces, hosts, costs, time.perf_counter() - started)
    return Result(to_json(scenario), {**record, "status": status}, recorder.table(SUMMARY),
                  samples, partitions, events)


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


def _warnings(hosts: Sequence[FleetHost]) -> list[str]:
    """What a reader must know before believing the table, beyond the standing assumptions."""
    return [
        f"KSM had merged pages on {host.spec.name} when it was captured and saved "
        f"{format_size(host.n_premerged_frames * PAGE_BYTES)} there. They are replayed unmerged: "
        "compare the strategies with one another; savings are against no merging, not against "
        "what the host does today."
        for host in hosts if host.n_premerged_frames]


def _run_record(scenario: Scenario, traces: dict[str, Trace], hosts: Sequence[FleetHost],
                costs: Mapping[str, CostModel], elapsed_s: float) -> dict[str, Any]:
    return {
        "format_version": 1,
        "digest": run_digest(scenario, costs),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_s": round(elapsed_s, 3),
        "seed": scenario.seed,
        "timings": list(costs),
        # What they said then: a calibration may be made anew, or be moved.
        "costs_ns": {name: cost.costs_ns() for name, cost in costs.items()},
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
        } for path, trace in traces.items()],
        "hosts": [{
            "name": host.spec.name, "n_guests": len(host.guests), "n_mms": len(host.mms),
            "n_sites": len(host.site_mm), "n_events": len(host.event_time_ns),
            "premerged_bytes": host.n_premerged_frames * PAGE_BYTES,
        } for host in hosts],
        "warnings": _warnings(hosts),
        "assumptions": list(ASSUMPTIONS),
    }
