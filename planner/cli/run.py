"""`planner run`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import document, say, tell, write_text

if TYPE_CHECKING:
    from planner.cases import CaseFolder
    from planner.metrics import Result
    from planner.runner import TraceStore
    from planner.scenario.sweep import Case

#: Exit code where a requirement of the scenario does not hold.
REQUIREMENT_FAILED = 4


def run(
    scenario: Annotated[Path, typer.Argument(help="The scenario file (YAML).", metavar="FILE")],
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="Folder for results; default: the scenario's output.folder.",
        metavar="DIR")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print the result as one JSON document.")] = False,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="Replace a value of the scenario, such as "
                      "policies.ksmd.merge.ksmd.pages_to_scan=1000.", metavar="KEY=VALUE")] = None,
    again: Annotated[bool, typer.Option(
        "--again", help="Simulate again even if this very scenario has a result.")] = False,
    without_details: Annotated[bool, typer.Option(
        "--no-details", help="Leave out of the report what takes a second look at the traces: "
                             "where the memory went, who shares with whom.")] = False,
    workers: Annotated[int | None, typer.Option(
        "--workers", min=1, help="Processes of this machine that simulate; default: as many as "
                                 "CPUs where there are several cases, else one.",
        metavar="N")] = None,
    cluster: Annotated[str | None, typer.Option(
        "--cluster", help="Simulate on the dask cluster whose scheduler is there, such as "
                          "tcp://10.0.0.1:8786.", metavar="ADDRESS")] = None,
    plan: Annotated[bool, typer.Option(
        "--plan", help="Say what would run, what is kept of it, and what it takes; simulate "
                       "nothing.")] = False,
    without_sweep: Annotated[bool, typer.Option(
        "--no-sweep", help="Leave out the cases of the scenario's sweep.")] = False,
) -> int:
    """Compare the scenario's strategies and write a report.

    Simulates every policy of the scenario over its guests, prints a table, and writes
    results/NAME-DIGEST/ with the report and all tables as Parquet. Of a run that was stopped, what
    was finished is kept beside it, and running it again goes on there. Exit code 4: a requirement
    of the scenario (`require`) does not hold.

    Example: planner run scenarios/quickstart.yaml
    """
    from planner.runner import TraceStore, load_cases, load_scenario
    from planner.scenario.sweep import Case

    store = TraceStore()
    notes: list[str] = []
    if without_sweep:
        cases = [Case("", tuple(settings or ()),
                      load_scenario(scenario, settings or (), store=store, notes=notes))]
    else:
        cases = load_cases(scenario, settings or (), store=store, notes=notes)
    for note in notes:
        tell(f"note: {note}")
    folder = output if output is not None else Path(cases[0].scenario.output.folder)
    is_sweep = len(cases) > 1 or bool(cases[0].name)
    if is_sweep:
        folder = _sweep_folder(folder, cases)
    jobs = [_Job.of(case, folder, workers, cluster) for case in cases]
    if plan:
        return _tell_plan(jobs, as_json)
    results = [_result(job, store, scenario.read_text("utf-8"), again=again,
                       with_details=not without_details) for job in jobs]
    if is_sweep:
        _tell_sweep(folder, jobs, results, as_json)
    elif as_json:
        from planner.report.text import render_json

        typer.echo(json.dumps(render_json(results[0]), indent=1))
    else:
        from planner.report.text import render_text

        typer.echo(render_text(results[0], width=_width(), colour=sys.stdout.isatty()))
        say(f"Report: {jobs[0].path / 'report.html'}")
    is_failed = any(not verdict["is_held"] for result in results
                    for verdict in (result.plan or {}).get("requirements", ()))
    return REQUIREMENT_FAILED if is_failed else 0


def _width() -> int:
    return max(60, shutil.get_terminal_size((100, 24)).columns)


@dataclass(frozen=True, slots=True)
class _Job:
    """One scenario to run: where its result goes, and who does the work."""

    case: Case
    digest: str
    path: Path
    workers: int
    cluster: str | None

    @classmethod
    def of(cls, case: Case, folder: Path, workers: int | None, cluster: str | None) -> _Job:
        from planner.results import result_path
        from planner.runner import run_digest

        scenario = case.scenario
        digest = run_digest(scenario)
        if workers is None:
            is_many = scenario.is_fleet or scenario.replicates > 1
            workers = _n_cpus() if is_many else 1
        return cls(case, digest, result_path(folder, scenario.name, digest), workers, cluster)

    @property
    def kept(self) -> CaseFolder:
        """Where finished cases are kept until the result is whole."""
        from planner.cases import CaseFolder

        return CaseFolder(self.path.with_name(self.path.name + ".cases"))


def _n_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _result(job: _Job, store: TraceStore, text: str, *, again: bool, with_details: bool) -> Result:
    """The result of a job: an earlier one, or one that is simulated and saved now."""
    from planner.cli.progress import ProgressLine
    from planner.errors import InterruptedRunError
    from planner.metrics import Result
    from planner.report.html import render_html
    from planner.results import save
    from planner.runner import run as run_scenario

    scenario, path = job.case.scenario, job.path
    if again:
        job.kept.remove()
    known = None if again else _earlier(path, job.digest)
    if known is not None:
        tell(f"{path}: this scenario was run before; --again simulates it anew")
        return known

    def kept(finished: Result, at: Path) -> Path:
        return save(finished, at, texts={"scenario.yaml": text,
                                         "report.html": render_html(finished)})

    line = ProgressLine()
    label = f"{job.case.name}: " if job.case.name else ""
    try:
        result = run_scenario(scenario, store=store, workers=job.workers, cluster=job.cluster,
                              progress=lambda what, share: line.update(label + what, share),
                              cases=job.kept.path)
    except InterruptedRunError as interruption:
        if isinstance(interruption.partial, Result):
            partial = kept(interruption.partial, path.with_name(path.name + "-partial"))
            interruption.instead = f"their results are in {partial}"
        raise
    finally:
        line.done()
    kept(result, path)
    job.kept.remove()
    if with_details:
        _add_details(result, path, store)
    return result


# ---- sweeps -------------------------------------------------------------------------------------


def _sweep_folder(folder: Path, cases: Sequence[Case]) -> Path:
    """Where the results of a sweep lie: one folder for all of its cases."""
    import hashlib

    from planner.results import result_path
    from planner.runner import run_digest

    digests = [[case.name, run_digest(case.scenario)] for case in cases]
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return result_path(folder, f"{cases[0].scenario.name}-sweep", digest)


def _tell_sweep(folder: Path, jobs: Sequence[_Job], results: Sequence[Result], as_json: bool
                ) -> None:
    """Write sweep.json beside the cases and into their reports, and print it."""
    from planner.details import read_details
    from planner.planning import inputs_of, sweep_document
    from planner.report.html import render_html
    from planner.report.sweep_text import render_sweep_text

    found = sweep_document([
        (inputs_of(_own(job)), result.plan or {}, result.replicates.to_pylist())
        for job, result in zip(jobs, results, strict=True)])
    text = json.dumps(found, indent=1)
    write_text(folder / "sweep.json", text + "\n")
    for job, result in zip(jobs, results, strict=True):
        details = read_details(job.path, job.digest)
        write_text(job.path / "report.html", render_html(result, details, sweep=found))
    if as_json:
        typer.echo(text)
        return
    typer.echo(render_sweep_text(found, width=_width(), colour=sys.stdout.isatty()))
    say(f"Results of all cases: {folder}")


def _own(job: _Job) -> tuple[str, ...]:
    """What the case itself sets."""
    n_own = len(job.case.name.split(", ")) if job.case.name else 0
    return job.case.overrides[len(job.case.overrides) - n_own:]


# ---- plans --------------------------------------------------------------------------------------


def _tell_plan(jobs: Sequence[_Job], as_json: bool) -> int:
    """What would run, as text or JSON."""
    from planner.forecast.effort import effort
    from planner.units import format_count, format_duration, format_size

    rows = []
    for job in jobs:
        found = effort(job.case.scenario, job.workers)
        rows.append({"case": job.case.name, "path": str(job.path), "digest": job.digest,
                     "has_result": (job.path / "run.json").is_file(),
                     "cases_kept": len(job.kept.finished()), "workers": job.workers,
                     "cluster": job.cluster, **found.to_json()})
    if as_json:
        document("planner.run-plan", jobs=rows)
        return 0
    for row in rows:
        if row["case"]:
            say(f"{row['case']}:")
        if row["has_result"]:
            say(f"{row['path']}: run before; nothing would be simulated without --again")
            continue
        where = row["cluster"] or (f"{row['workers']} processes" if row["workers"] > 1
                                   else "this process")
        say(f"{row['n_policies']} policies, {row['n_replicates']} replicate(s), "
            f"{format_count(row['n_hosts'])} of {format_count(row['n_machines'])} machines each"
            f"{' at least' if row['is_least'] else ''}, "
            f"{format_count(row['n_pages'])} pages of a machine: "
            f"{format_count(row['n_cases'])} cases, {row['cases_kept']} kept, in {where}")
        say(f"roughly {format_duration(row['time_ns'])}, and {format_size(row['memory_bytes'])} "
            "of memory")
        for note in row["notes"]:
            say(f"note: {note}")
    return 0


def _add_details(result: Result, path: Path, store: TraceStore) -> None:
    """Work out the details, keep them with the result, and write the report with them."""
    from planner.cli.progress import ProgressLine
    from planner.details import FILE_NAME, details_of
    from planner.errors import DataError, InterruptedRunError
    from planner.report.html import render_html

    line = ProgressLine()
    try:
        details = details_of(result, store=store, progress=line.update)
    except DataError as error:
        tell(f"note: the report is without details: {error}")
        return
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted while the details of the report were worked out", where=str(path),
            instead="the result is whole; planner report RESULT --details does the rest") from None
    finally:
        line.done()
    write_text(path / FILE_NAME, json.dumps(details, indent=1) + "\n")
    write_text(path / "report.html", render_html(result, details))


def _earlier(path: Path, digest: str) -> Result | None:
    """The whole result of this very scenario, if it was run before."""
    from planner.errors import DataError
    from planner.results import load

    if not path.exists():
        return None
    try:
        result = load(path)
        if result.run.get("digest") == digest and (path / "report.html").is_file():
            return result
        problem = "it is not whole"
    except DataError as error:
        problem = str(error)
    tell(f"{path}: the earlier result cannot be used ({problem}); simulating again")
    return None
