"""A whole fleet run: which cases are to be done, and what their outcomes come to.

First every replicate is *surveyed*: who comes, who stands where, and what every machine would
save at rest. Then machines are simulated: all of them with all contents, or so many and so much
as the wanted precision asks for, which a pilot on the first replicate tells. Estimates of the whole
fleet follow, then the hosts it needs, and, from refits on resampled captured guests, how far the
capture itself may mislead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from planner.cases import CaseFolder
from planner.executor import Pool, Progress
from planner.forecast.cases import Cases, replicate_name
from planner.forecast.work import HostTask, NeedTask, SurveyTask
from planner.planning import Fleet, Outcome, outcome, safe_shares
from planner.planning.samples import read_samples
from planner.sampling import (
    Design,
    Groups,
    Observed,
    Total,
    choose,
    estimate_total,
    first_design,
    sampled_hosts,
    work_pages,
)
from planner.scenario.spec import FreePages, Never, PolicySpec, Scenario
from planner.units import format_share

__all__ = ["FleetRun", "run_fleet"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

#: Times at which savings at rest are told, at most; of a refit.
_N_TIMES = 24
_N_REFIT_TIMES = 4
#: Refits on resampled captured guests.
N_RESAMPLES = 20
#: A stated error that misses the wanted one by so much asks for more hosts, so many times.
_SLACK = 1.1
_ENLARGEMENTS = 2
#: Events that tell when guests were merged.
_TELLING = ("guest_merged", "sync_merge", "full_scan")


@dataclass(frozen=True, slots=True, eq=False)
class FleetRun:
    """What a fleet run came to. Tables are of the simulated machines of the first replicate.

    `sampling` says what was simulated and with which stated errors, `facts` what befell the
    fleet in each replicate; `notes` how far the run extrapolates; `warnings` for its reader.
    """

    outcomes: tuple[Outcome, ...]
    hosts: pa.Table
    partitions: pa.Table
    events: pa.Table
    machines: tuple[dict[str, Any], ...]
    sampling: dict[str, Any]
    facts: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Survey:
    """A replicate surveyed. `memory`, and `at_rest` by policy, f64[n_hosts, n_times] in bytes."""

    replicate: int
    facts: Mapping[str, Any]
    memory: F64
    at_rest: Mapping[str, F64]

    @property
    def used(self) -> I64:
        """Machines on which guests ever are."""
        return np.flatnonzero(np.array(self.facts["is_used"], bool))


@dataclass(slots=True, eq=False)
class _Simulated:
    """Machines of one replicate that were simulated, by number."""

    facts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    tables: dict[int, Mapping[str, pa.Table]] = field(default_factory=dict)

    def table(self, name: str, policy: str | None = None) -> pa.Table:
        """One kind of rows of all machines, of one policy."""
        whole = pa.concat_tables(tables[name] for _, tables in sorted(self.tables.items()))
        return whole if policy is None else whole.filter(
            pc.equal(whole.column("policy"), policy))


class _Run(Cases):
    """The cases of a fleet run."""

    def times_ns(self) -> tuple[int, ...]:
        """Multiples of the sampling interval from the warm-up to the horizon, evenly."""
        scenario = self.scenario
        step_ns = scenario.output.sample_every_ns
        first, last = -(-scenario.warm_up_ns // step_ns), scenario.horizon_ns // step_ns
        steps = np.unique(np.linspace(first, max(first, last), _N_TIMES).astype(np.int64))
        return tuple((steps * step_ns).tolist())

    def refit_times_ns(self) -> tuple[int, ...]:
        times = self.times_ns()
        at = np.unique(np.linspace(0, len(times) - 1, _N_REFIT_TIMES + 2).astype(np.int64)[1:-1])
        return tuple(times[index] for index in at)

    def survey_tasks(self) -> list[SurveyTask]:
        return [SurveyTask(self.text, self.versions, replicate, self.times_ns())
                for replicate in range(self.scenario.replicates)]

    def host_tasks(self, replicate: int, hosts: Iterable[int], share: float) -> list[HostTask]:
        # What is exact needs no auxiliary variable.
        return [HostTask(self.text, self.versions, replicate, int(host), share, self.times_ns())
                for host in hosts]


def run_fleet(scenario: Scenario, digest: str, pool: Pool, *, folder: CaseFolder | None = None,
              progress: Progress | None = None) -> FleetRun:
    """Run a scenario whose guests are drawn.

    `digest` names the run: cases that `folder` holds of it are not done again. Which process does
    what makes no difference. Raises what the cases raise, and MachineError as pools do.
    """
    run = _Run(scenario, digest, pool, folder, progress)
    surveys = _survey(run)
    design, done = _design(run, surveys[0])
    simulated = _simulate(run, surveys, design, done)
    totals = [_totals(run, survey, machines, design.share)
              for survey, machines in zip(surveys, simulated, strict=True)]
    outcomes = [each for survey, machines, of_policy in zip(surveys, simulated, totals, strict=True)
                for each in _outcomes(run, survey, machines, of_policy, design.share)]
    outcomes = _with_needs(run, outcomes)
    outcomes += _refits(run, surveys[0], outcomes)
    first = simulated[0]
    return FleetRun(
        tuple(outcomes), first.table("hosts"), first.table("partitions"), first.table("events"),
        tuple({"name": facts["host"], "n_guests": facts["n_guests"], "n_mms": facts["n_mms"],
               "n_sites": facts["n_sites"], "n_events": facts["n_events"],
               "premerged_bytes": 0} for _, facts in sorted(first.facts.items())),
        _sampling_record(run, surveys, simulated, design, totals),
        tuple({name: survey.facts[name] for name in (
            "n_guests", "n_rejected", "n_lost", "rejected", "incidents")}
            | {"replicate": survey.replicate, "hosts_used": len(survey.used)}
            for survey in surveys),
        tuple(surveys[0].facts["notes"]),
        (*_warnings(surveys), *_misses(scenario.precision.error, totals)))


def _survey(run: _Run) -> list[_Survey]:
    tasks = run.survey_tasks()
    found = run.do(tasks, [replicate_name(task.replicate, "survey") for task in tasks], (0.0, 0.1))
    return [_surveyed(run, task.replicate, facts, tables["hosts"])
            for task, (facts, tables) in zip(tasks, found, strict=True)]


def _surveyed(run: _Run, replicate: int, facts: Mapping[str, Any], table: pa.Table) -> _Survey:
    n_hosts = len(facts["hosts"])

    def columns(name: str) -> F64:
        return np.asarray(table.column(name).to_numpy(), np.float64).reshape(n_hosts, -1)

    at_rest = {policy.name: columns(f"at_rest_{index}")
               for index, policy in enumerate(run.scenario.policies)
               if f"at_rest_{index}" in table.column_names}
    return _Survey(replicate, facts, columns("memory_bytes"), at_rest)


# ---- how much is simulated ----------------------------------------------------------------------


def _design(run: _Run, survey: _Survey) -> tuple[Design, dict[int, _Simulated]]:
    """The design for the wanted precision, and the machines of the pilot."""
    precision = run.scenario.precision
    n_used = len(survey.used)
    if not precision.error:
        return Design(min(precision.n_hosts or n_used, n_used),
                      precision.content_share or 1.0), {}
    pages = work_pages(survey.facts["n_pages"] / n_used, survey.facts["n_writes"] / n_used) \
        if n_used else 0.0
    pilot = first_design(n_used, pages)
    design = Design(min(precision.n_hosts, n_used) or pilot.n_hosts,
                    precision.content_share or _rounded(pilot.share))
    machines = _Simulated()
    for step in range(_ENLARGEMENTS + 1):
        _simulate_more(run, survey, machines, design, (0.1 + 0.1 * step, 0.2 + 0.1 * step))
        totals = list(_totals(run, survey, machines, design.share).values())
        wanted = choose(totals, design, n_used, pages, precision.error,
                        fixed_hosts=precision.n_hosts, fixed_share=precision.content_share)
        wanted = Design(wanted.n_hosts, _rounded(wanted.share))
        if wanted == design or (step and _worst(totals) <= precision.error * _SLACK):
            break
        if wanted.share != design.share:
            machines = _Simulated()
        design = wanted
    _simulate_more(run, survey, machines, design, (0.3, 0.4))
    return design, {survey.replicate: machines}


def _rounded(share: float) -> float:
    """Three digits are enough, and make a share that can be told."""
    return min(1.0, float(f"{share:.3g}"))


def _worst(totals: Iterable[Total]) -> float:
    """The largest relative error of any total, of those that save much."""
    totals = list(totals)
    floor = 0.1 * max((abs(total.mean) for total in totals), default=0.0)
    return max((total.error / max(abs(total.mean), floor) for total in totals if floor),
               default=0.0)


def _simulate_more(run: _Run, survey: _Survey, machines: _Simulated, design: Design,
                   span: tuple[float, float]) -> None:
    """Simulate the machines of a replicate that the design asks for and that are not there."""
    hosts = sampled_hosts(run.scenario.seed, survey.replicate, survey.used, design.n_hosts)
    missing = [int(host) for host in hosts if int(host) not in machines.facts]
    names = [replicate_name(survey.replicate, str(survey.facts["hosts"][host])) for host in missing]
    tasks = run.host_tasks(survey.replicate, missing, design.share)
    for host, (facts, tables) in zip(missing, run.do(tasks, names, span), strict=True):
        machines.facts[host], machines.tables[host] = facts, tables


def _simulate(run: _Run, surveys: Sequence[_Survey], design: Design,
              done: Mapping[int, _Simulated]) -> list[_Simulated]:
    """The machines of all replicates: as many as the design says, and more where a replicate
    misses the wanted error by chance."""
    found = []
    fixed_hosts = run.scenario.precision.n_hosts
    wanted = 0.0 if fixed_hosts else run.scenario.precision.error
    # All machines of the first replicate are no limit to those of others.
    is_every = design.n_hosts >= len(surveys[0].used)
    for index, survey in enumerate(surveys):
        machines = done.get(survey.replicate, _Simulated())
        span = (0.4 + 0.5 * index / len(surveys), 0.4 + 0.5 * (index + 1) / len(surveys))
        n_used = len(survey.used)
        n_hosts = min(fixed_hosts or n_used, n_used) if is_every else design.n_hosts
        _simulate_more(run, survey, machines, Design(n_hosts, design.share), span)
        for _ in range(_ENLARGEMENTS if wanted else 0):
            n_hosts = len(machines.facts)
            worst = _worst(_totals(run, survey, machines, design.share).values())
            if worst <= wanted * _SLACK or n_hosts >= len(survey.used):
                break
            # Not many more at once: an error of few hosts is itself a rough figure.
            factor = min(4.0, (worst / wanted) ** 2)
            more = Design(min(len(survey.used), math.ceil(n_hosts * factor)), design.share)
            _simulate_more(run, survey, machines, more, (span[1], span[1]))
        found.append(machines)
    return found


# ---- what it comes to ---------------------------------------------------------------------------


def _is_merging(policy: PolicySpec) -> bool:
    return not isinstance(policy.merge, Never | FreePages) or bool(policy.partitions)


def _totals(run: _Run, survey: _Survey, machines: _Simulated, share: float) -> dict[str, Total]:
    """Estimates of the fleet's saving, by policy that merges."""
    if not machines.facts:
        return {}
    times = np.array(run.times_ns(), np.int64)
    weights = np.diff(np.append(times, run.scenario.horizon_ns)).astype(np.float64)
    weights = weights / weights.sum() if weights.sum() else np.full(len(times), 1 / len(times))
    numbers = sorted(machines.facts)
    names = [machines.facts[number]["host"] for number in numbers]
    found = {}
    for index, policy in enumerate(run.scenario.policies):
        if not _is_merging(policy):
            continue
        samples = read_samples(machines.table("hosts", policy.name), {}, run.scenario.horizon_ns)
        order = [samples.hosts.index(name) for name in names]
        values = samples.grid("saved_bytes", times)[order].astype(np.float64)
        facts = [machines.facts[number]["policies"][index] for number in numbers]
        if policy.name in survey.at_rest:
            everywhere = survey.at_rest[policy.name]
            auxiliary = np.array([each["at_rest"] for each in facts], np.float64)
        else:
            everywhere, auxiliary = survey.memory, survey.memory[numbers]
        groups = tuple(Groups(np.array(each["groups"]["saved"]),
                              np.array(each["groups"]["at_rest"]))
                       for each in facts) if share < 1 else ()
        found[policy.name] = estimate_total(
            Observed(values, auxiliary, groups, share), everywhere[survey.used], weights)
    return found


def _outcomes(run: _Run, survey: _Survey, machines: _Simulated, totals: Mapping[str, Total],
              share: float) -> list[Outcome]:
    """One outcome a policy, over all machines."""
    scenario = run.scenario
    spec_of = [scenario.hosts[number] for number in survey.facts["host_spec"]]
    numbers = sorted(machines.facts)
    of_sample = survey.memory[numbers].sum()
    weight = float(survey.memory.sum() / of_sample) if of_sample else 1.0
    starts = tuple((facts["host"], guest, int(start_ns))
                   for _, facts in sorted(machines.facts.items()) for guest, start_ns in zip(
                       facts["guests"], facts["guest_start_ns"], strict=True))
    assert scenario.fleet is not None, "outcomes are of fleets"
    fleet = Fleet(
        n_machines=len(spec_of), n_cores=sum(spec.cores for spec in spec_of),
        weights={machines.facts[number]["host"]: weight for number in numbers},
        available_bytes={machines.facts[number]["host"]: spec_of[number].memory_bytes
                         - spec_of[number].reserved_bytes for number in numbers},
        warm_up_ns=scenario.warm_up_ns, horizon_ns=scenario.horizon_ns,
        sample_every_ns=scenario.output.sample_every_ns, is_drawn=True,
        confidence=scenario.fleet.confidence, content_share=share,
        n_guests=survey.facts["n_guests"], rejected_guests=survey.facts["n_rejected"],
        hosts_used=len(survey.used), starts=starts)
    is_exact = share >= 1 and len(numbers) == len(survey.used)
    found = []
    for policy in scenario.policies:
        events = machines.table("events", policy.name)
        telling = events.filter(pc.is_in(events.column("kind"), pa.array(_TELLING)))
        each = outcome(policy.name, survey.replicate, fleet,
                       machines.table("hosts", policy.name),
                       partitions=machines.table("partitions", policy.name).to_pylist(),
                       events=telling.to_pylist())
        total = totals.get(policy.name)
        found.append(each if is_exact or total is None
                     else _estimated(each, total, weight, machines, run, policy.name))
    return found


def _estimated(each: Outcome, total: Total, weight: float, machines: _Simulated, run: _Run,
               policy: str) -> Outcome:
    """The outcome with the better estimate of the saving, and of what follows from it."""
    samples = read_samples(machines.table("hosts", policy), {}, run.scenario.horizon_ns)
    times = np.array(run.times_ns(), np.int64)
    weights = np.diff(np.append(times, run.scenario.horizon_ns)).astype(np.float64)
    plain = float((samples.grid("saved_bytes", times).sum(axis=0) * weights).sum()
                  / max(weights.sum(), 1)) * weight
    factor = total.mean / plain if plain > 0 and total.mean > 0 else 1.0
    saved = each.row["saved_bytes"] * factor
    error = total.error * (saved / total.mean if total.mean else 1.0)
    better = each.with_saved(saved, error if np.isfinite(error) else abs(saved)).with_columns(
        saved_end_bytes=round(each.row["saved_end_bytes"] * factor),
        saved_peak_bytes=round(each.row["saved_peak_bytes"] * factor))
    return replace(better, series=tuple(
        {**row, "saved_bytes": round(row["saved_bytes"] * factor)} for row in each.series))


def _with_needs(run: _Run, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the hosts that each replicate's guests need under each policy."""
    scenario = run.scenario
    assert scenario.fleet is not None, "needs are of fleets"
    safe = safe_shares(outcomes, scenario.fleet.confidence)
    policies = [policy.name for policy in scenario.policies]
    shares = tuple(float(safe[policy]) for policy in policies)
    tasks = [NeedTask(run.text, run.versions, replicate, shares)
             for replicate in range(scenario.replicates)]
    names = [replicate_name(task.replicate, "hosts needed") for task in tasks]
    found = run.do(tasks, names, (0.9, 0.94))
    needed = {(task.replicate, policy): count
              for task, (facts, _) in zip(tasks, found, strict=True)
              for policy, count in zip(policies, facts["needed"], strict=True)}
    return [each.with_columns(hosts_needed=needed[each.row["replicate"], each.row["policy"]])
            for each in outcomes]


def _refits(run: _Run, survey: _Survey, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of the first replicate as refits on resampled captured guests would change them.

    Savings at rest stand for savings: what a resample changes is which contents guests share.
    """
    mine = [each for each in outcomes if each.row["replicate"] == survey.replicate
            and each.row["policy"] in survey.at_rest]
    times = run.refit_times_ns()
    tasks = [SurveyTask(run.text, run.versions, survey.replicate, times, resample)
             for resample in range(N_RESAMPLES)]
    found = run.do(tasks, [f"refit {task.resample + 1}" for task in tasks], (0.94, 1.0))
    at = [run.times_ns().index(time) for time in times]
    refits = []
    for task, (facts, tables) in zip(tasks, found, strict=True):
        refit = _surveyed(run, survey.replicate, facts, tables["hosts"])
        for each in mine:
            policy = each.row["policy"]
            whole = survey.at_rest[policy][:, at].sum()
            if whole > 0 and policy in refit.at_rest:
                factor = float(refit.at_rest[policy].sum() / whole)
                refits.append(replace(each.with_saved(
                    each.row["saved_bytes"] * factor, each.row["saved_error_bytes"]).with_columns(
                        resample=task.resample), series=(), storms=()))
    return refits


def _sampling_record(run: _Run, surveys: Sequence[_Survey], simulated: Sequence[_Simulated],
                     design: Design, totals: Sequence[Mapping[str, Total]]) -> dict[str, Any]:
    """What was simulated of the fleet, for run.json."""
    n_used = len(surveys[0].used)
    return {
        "content_share": design.share, "n_hosts": design.n_hosts, "n_hosts_with_guests": n_used,
        "n_machines": len(surveys[0].facts["hosts"]),
        "is_sampled": design.share < 1 or any(
            len(machines.facts) < len(survey.used)
            for survey, machines in zip(surveys, simulated, strict=True)),
        "wanted_error": run.scenario.precision.error,
        "n_hosts_of_replicates": [len(machines.facts) for machines in simulated],
        "n_pages_simulated": sum(int(facts["n_sites"]) for machines in simulated
                                 for facts in machines.facts.values()),
        "errors": [{"replicate": survey.replicate, "policy": policy,
                    "error_share": _finite(total.error / abs(total.mean)) if total.mean else None,
                    "host_error_bytes": _finite(total.host_error),
                    "content_error_bytes": _finite(total.content_error)}
                   for survey, of_policy in zip(surveys, totals, strict=True)
                   for policy, total in of_policy.items()],
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _misses(wanted: float, totals: Sequence[Mapping[str, Total]]) -> list[str]:
    """A warning where the stated error is larger than the wanted one."""
    worst = max((_worst(each.values()) for each in totals), default=0.0)
    if not wanted or worst <= wanted * _SLACK:
        return []
    return [f"the wanted standard error of {format_share(wanted)} was not reached: it is up to "
            f"{format_share(worst)} in a replicate; precision: {{contents: SHARE}} simulates more"]


def _warnings(surveys: Sequence[_Survey]) -> tuple[str, ...]:
    """What a reader must know, without repeats: of replicates, the first that says it."""
    found: dict[str, None] = {}
    for survey in surveys:
        facts = survey.facts
        for text in facts["warnings"]:
            found.setdefault(text)
    rejected = [survey.facts["n_rejected"] for survey in surveys]
    if any(rejected):
        n_guests = sum(survey.facts["n_guests"] for survey in surveys)
        found.setdefault(
            f"the fleet is too small: {format_share(sum(rejected) / max(n_guests, 1))} of all "
            f"guests found no room (up to {max(rejected)} in a replicate) and are left out of "
            "every figure")
    return tuple(found)
