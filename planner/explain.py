"""Where the memory went: one policy's saving, taken apart step by step.

The final memory of every host is built again from the traces, whose digests must be those of the
result, and each frame is put into one class. What only the model knows, how much of the memory
that has a twin in its partition was not merged, is told apart by a second run over memory that is
from the start what it was in the end: what that run saves more was lost to writes.

All figures are of the last moment of the run. They add up exactly to `saved_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import planner
from planner.engine import simulate_host
from planner.errors import DataError, UsageError
from planner.fleet import FleetHost
from planner.ksm.cost import CostModel
from planner.ksm.timings import cost_model
from planner.metrics import HOSTS, Recorder, Result
from planner.policies.partition import partition_classes
from planner.policies.timing import merges_nothing
from planner.results import policy_row, scenario_of
from planner.runner import TraceStore, build_hosts
from planner.scenario.spec import FreePages, PolicySpec, Scenario

__all__ = ["FORMAT_VERSION", "Step", "Waterfall", "explain", "scenario_of_traces"]

#: Version of the document that `Waterfall.to_json` gives.
FORMAT_VERSION = 1
_PAGE_BYTES = 4096

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One line: `n_bytes` of a total (`is_total`), or what is added to the total before it.

    `key` stays the same between versions, `text` is for people.
    """

    key: str
    n_bytes: int
    text: str
    is_total: bool = False


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The steps from the hosts' memory to what `policy` saves, and figures beside them.

    From the total `in_use` on, each total is the one before plus the steps between. `memos` are
    counters of the whole run that are no part of the sum.
    """

    policy: str
    digest: str
    steps: tuple[Step, ...]
    memos: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings, with `format_version`."""
        return {"format_version": FORMAT_VERSION, "kind": "planner.waterfall",
                "policy": self.policy, "digest": self.digest,
                "steps": [asdict(step) for step in self.steps],
                "memos": [asdict(step) for step in self.memos]}


@dataclass(slots=True)
class _Frames:
    """Frames by what became of them, added up over hosts."""

    in_use: int = 0
    cannot: int = 0
    not_offered: int = 0
    excluded: int = 0
    zero: int = 0
    alone: int = 0
    stays: int = 0
    apart_same_domain: int = 0
    apart: int = 0
    twins: int = 0
    offered_pages: int = 0

    def add(self, other: _Frames) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def explain(result: Result, policy: str, *, traces: Iterable[Path] = (),
            store: TraceStore | None = None, hosts: Sequence[FleetHost] | None = None,
            progress: Progress | None = None) -> Waterfall:
    """Take the saving of `policy` apart.

    `traces` are folders to look in, by digest, for traces that are not where the result says;
    `hosts` the result's hosts, if they were built already.
    Raises UsageError for a policy that is not there, and for a result of drawn guests; DataError
    for a result of another version, or where a trace is missing or not the one that was run.
    """
    row = policy_row(result, policy)
    if result.scenario.get("fleet") is not None:
        raise UsageError("guests of a fleet are drawn: there is no memory as captured to take "
                         "its saving apart by", where="result",
                         instead="explain a result of replayed guests, or see planner report")
    store = store or TraceStore()
    scenario = scenario_of_traces(result, traces, store)
    spec = next(each for each in scenario.policies if each.name == policy)
    hosts = build_hosts(scenario, store) if hosts is None else hosts
    frames = _Frames()
    could_merge = _could_merge(scenario, hosts, store)
    for host, could in zip(hosts, could_merge, strict=True):
        frames.add(_classify(_at_the_end(host), spec, could))
    _verify(result, policy, frames)
    saved = (int(row["saved_bytes"]) + int(row["metadata_bytes"])) // _PAGE_BYTES
    missed = frames.twins - saved
    written = 0
    if missed and not merges_nothing(spec):
        costs = _costs_of(result, {host.timings for host in scenario.hosts})
        written = _saved_without_writes(scenario, spec, hosts, costs, progress) - saved
    return Waterfall(policy, str(result.run["digest"]),
                     _steps(scenario, spec, frames, row, written, missed - written),
                     _memos(spec, row))


def scenario_of_traces(result: Result, traces: Iterable[Path], store: TraceStore) -> Scenario:
    """The scenario of the result, its traces where they are now.

    Raises DataError for a result of another version, or where a trace is missing.
    """
    made_by = result.run.get("versions", {}).get("planner")
    if made_by != planner.__version__:
        raise DataError(f"the result is of planner {made_by}, this is {planner.__version__}: the "
                        "model may differ", where="run.json",
                        instead="run the scenario again, or explain it with that version")
    scenario = scenario_of(result)
    elsewhere = {store.open(path).digest: str(path) for path in traces}
    workloads = []
    for workload in scenario.workloads:
        path = elsewhere.get(workload.trace_digest, workload.trace)
        if path == workload.trace and not Path(path).is_dir():
            raise DataError("the trace is not there any more", where=path,
                            instead="put it back, or say where it is with --trace DIR")
        workloads.append(replace(workload, trace=path))
    return replace(scenario, workloads=tuple(workloads))


def _costs_of(result: Result, names: Iterable[str]) -> dict[str, CostModel]:
    """The costs that the run went by: its calibrations may say something else by now."""
    recorded = result.run.get("costs_ns")
    again = "run the scenario again with --again"
    if not isinstance(recorded, dict):
        recorded = {}
    return {name: cost_model(name, recorded.get(name), where="run.json", instead=again)
            for name in names}


def _could_merge(scenario: Scenario, hosts: Sequence[FleetHost], store: TraceStore,
                 ) -> list[npt.NDArray[np.bool_]]:
    """By host and site: whether KSM would take the page if it were offered."""
    if all(host.site_eligible.all() for host in hosts):
        return [np.ones(len(host.site_mm), bool) for host in hosts]
    offered = replace(scenario, workloads=tuple(
        replace(workload, mergeable="all") for workload in scenario.workloads))
    return [host.site_eligible != 0 for host in build_hosts(offered, store)]


def _at_the_end(host: FleetHost) -> FleetHost:
    """The host as if its memory had been from the start what it was in the end."""
    content, frame = host.memory_at_the_end()
    none = slice(0, 0)
    return replace(host, site_content=content, site_frame=frame,
                   event_time_ns=host.event_time_ns[none], event_site=host.event_site[none],
                   event_content=host.event_content[none], event_frame=host.event_frame[none])


def _classify(host: FleetHost, policy: PolicySpec, could: npt.NDArray[np.bool_]) -> _Frames:
    """Each live frame of the host in one class; one that fork shares belongs to its first page."""
    partition_of_site = partition_classes(host, policy).of_class[host.site_class]
    domain_ids = {domain: index for index, domain in enumerate(host.domains)}
    domain_of_mm = np.array([domain_ids[host.guests[mm.guest].domain] for mm in host.mms],
                            np.int64)
    present = np.flatnonzero(host.site_content >= 0)
    eligible = host.site_eligible[present] != 0
    offered = eligible & (partition_of_site[present] >= 0)
    # Pages that were offered first, so that a frame is what its first offered page makes it.
    rank = np.where(offered, 0, np.where(eligible, 1, np.where(could[present], 2, 3)))
    order = np.lexsort((present, rank))
    _, first = np.unique(host.site_frame[present[order]], return_index=True)
    site, rank = present[order][first], rank[order][first]
    content = host.site_content[site]
    zero = (host.content_is_zero[content] != 0) & (rank == 0)
    merges = (rank == 0) & ~zero
    content, partition = content[merges].astype(np.int64), partition_of_site[site[merges]]
    domain = domain_of_mm[host.site_mm[site[merges]]]
    n_copies = np.unique(content, return_counts=True)[1]
    n_partitions = _values_per_content(content, partition.astype(np.int64))
    n_domains = _values_per_content(content, domain)
    same_domain = np.maximum(n_partitions - n_domains, 0)
    return _Frames(
        in_use=len(site), cannot=int((rank == 3).sum()), not_offered=int((rank == 2).sum()),
        excluded=int((rank == 1).sum()), zero=int(zero.sum()), alone=int((n_copies == 1).sum()),
        stays=int((n_copies > 1).sum()), apart_same_domain=int(same_domain.sum()),
        apart=int((n_partitions - 1 - same_domain).sum()),
        twins=int((n_copies - n_partitions).sum()), offered_pages=int(offered.sum()))


def _values_per_content(content: npt.NDArray[np.int64],
                        value: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many different values each content (ascending) has."""
    pairs = np.unique(content * (1 + int(value.max(initial=0))) + value)
    counts: npt.NDArray[np.int64] = np.unique(
        pairs // (1 + int(value.max(initial=0))), return_counts=True)[1]
    return counts


def _verify(result: Result, policy: str, frames: _Frames) -> None:
    """The traces, replayed again, must give the memory that the result holds."""
    row = policy_row(result, policy)
    found = (frames.in_use * _PAGE_BYTES, frames.offered_pages * _PAGE_BYTES)
    expected = (int(row["guest_memory_bytes"]), int(row["eligible_bytes"]))
    if found != expected:
        raise DataError(
            f"replaying the traces gives {found[0]} bytes of memory, {found[1]} of them eligible; "
            f"the result holds {expected[0]} and {expected[1]}", where=policy,
            instead="the result was altered: run the scenario again with --again")


def _saved_without_writes(scenario: Scenario, policy: PolicySpec, hosts: Sequence[FleetHost],
                          costs: Mapping[str, CostModel], progress: Progress | None) -> int:
    """Frames of content that `policy` would have saved had nothing been written."""
    n_frames = 0
    for index, host in enumerate(hosts):
        recorder = Recorder()

        def report(now_ns: int, index: int = index) -> None:
            if progress is not None:
                progress(policy.name, (index + now_ns / scenario.horizon_ns) / len(hosts))

        simulate_host(_at_the_end(host), policy, sensitive=scenario.domains.sensitive,
                      horizon_ns=scenario.horizon_ns,
                      # Only the last sample is of use; these keep the progress moving.
                      sample_every_ns=max(scenario.horizon_ns // 10, 1),
                      cost=costs[host.spec.timings], recorder=recorder, progress=report)
        last = max(recorder.table(HOSTS).to_pylist(), key=lambda row: int(row["time_ns"]))
        n_frames += (int(last["saved_bytes"]) + int(last["metadata_bytes"])) // _PAGE_BYTES
    return n_frames


def _steps(scenario: Scenario, policy: PolicySpec, frames: _Frames, row: dict[str, Any],
           n_written: int, n_not_reached: int) -> tuple[Step, ...]:
    offered = frames.in_use - frames.cannot - frames.not_offered - frames.excluded

    def minus(key: str, n_frames: int, text: str) -> Step:
        return Step(key, -n_frames * _PAGE_BYTES, text)

    never = merges_nothing(policy)
    steps = [
        Step("host_memory", sum(host.memory_bytes for host in scenario.hosts),
             "memory of the hosts", True),
        Step("in_use", frames.in_use * _PAGE_BYTES, "in use by guests (captured, anonymous)", True),
        minus("cannot_merge", frames.cannot, "of a kind that KSM cannot merge (shared, huge TLB)"),
        minus("not_advised", frames.not_offered, "not offered to KSM (not advised)"),
        minus("excluded", frames.excluded, "excluded by the policy"),
        Step("eligible", offered * _PAGE_BYTES, "eligible", True),
        minus("zero", frames.zero, "zero pages (counted apart)"),
        minus("unique", frames.alone, "content found nowhere else on the host"),
        minus("stays", frames.stays, "the one copy that stays of each content"),
        minus("other_partition", frames.apart_same_domain,
              "twin is in another partition of its domain"),
        minus("other_domain", frames.apart,
              "twin is in another domain's partition: the price of partitioning"),
        Step("could_merge", frames.twins * _PAGE_BYTES, "has a twin it may merge with", True),
        minus("written", n_written, "written before it could merge, or after"),
        minus("never", n_not_reached, "the policy never merges") if never else
        minus("not_merged", n_not_reached,
              "not reached by the end, or kept apart by max_page_sharing"),
        Step("metadata", -int(row["metadata_bytes"]), "KSM's own records"),
        Step("saved", int(row["saved_bytes"]), "saved", True),
    ]
    return tuple(step for step in steps if step.n_bytes or step.is_total)


def _memos(policy: PolicySpec, row: dict[str, Any]) -> tuple[Step, ...]:
    zero = ("zero pages that guests gave back, apart" if isinstance(policy.merge, FreePages) else
            "freed by merging zero pages, apart")
    return (
        Step("saved_zero", int(row["saved_zero_bytes"]), zero),
        Step("cow_broken", int(row["cow_breaks"]) * _PAGE_BYTES,
             f"merged, then written to (COW), over the whole run: {row['cow_breaks']} pages"),
        Step("unmerge", int(row["unmerge_bytes"]), "needed if every merge were undone at once"),
    )
