"""Results folders: `<folder>/<name>-<digest>/`, written aside and renamed when whole."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import DataError, ScenarioError, TraceTooOldError, UsageError
from planner.metrics import (
    EVENTS,
    HOSTS,
    PARTITIONS,
    REPLICATES,
    RESULT_VERSION,
    SERIES,
    SUMMARY,
    Result,
)
from planner.scenario.spec import Scenario
from planner.tables import TableKind, read_table, write_table

__all__ = ["load", "policy_row", "result_path", "save", "scenario_digest",
           "scenario_of"]

_RENAME_ATTEMPTS = 32
_AGAIN = "run the scenario again"
#: Version of run.json.
RUN_FORMAT_VERSION = 1
#: What every reader of a result relies on.
_SCENARIO_KEYS: dict[str, type] = {"name": str, "horizon_ns": int, "policies": list,
                                   "workloads": list, "hosts": list, "domains": dict}
_RUN_KEYS: dict[str, type] = {"format_version": int, "digest": str, "timings": list,
                              "validated": bool, "warnings": list, "versions": dict,
                              "traces": list}
#: What `planner.planning` made of the replicates, in a results folder.
PLAN_FILE = "plan.json"
PLAN_FORMAT_VERSION = 1
_PLAN_KEYS: dict[str, type] = {
    "format_version": int, "policies": list, "requirements": list, "differences": list,
    "n_replicates": int, "n_resamples": int, "confidence": float, "is_drawn": bool,
    "n_guests": int, "n_machines": int, "n_hosts": int, "n_hosts_used": int, "notes": list}
_PLAN_POLICY_KEYS: dict[str, type] = {"policy": str, "metrics": dict, "hosts": dict,
                                      "storms": dict, "cpu": dict}
_VERDICT_KEYS: dict[str, type] = {"policy": str, "metric": str, "unit": str, "n_held": int,
                                  "n_replicates": int, "is_held": bool, "is_share": bool}
_DIFFERENCE_KEYS: dict[str, type] = {"first": str, "second": str, "metric": str, "verdict": str,
                                     "mean": float, "n": int}
TABLES: dict[str, TableKind] = {"summary": SUMMARY, "hosts": HOSTS, "partitions": PARTITIONS,
                                "events": EVENTS, "replicates": REPLICATES, "series": SERIES}


def scenario_digest(scenario: Mapping[str, Any], version: str) -> str:
    """SHA-256 in hex of everything that decides a result.

    That is the resolved scenario without its places in the file system (traces count by their
    digests), and the version of the program.
    """
    workloads = [{key: value for key, value in workload.items() if key != "trace"}
                 for workload in scenario["workloads"]]
    body = {**scenario, "workloads": workloads,
            "output": {"sample_every_ns": scenario["output"]["sample_every_ns"]}}
    text = json.dumps([version, RESULT_VERSION, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def result_path(folder: Path, name: str, digest: str) -> Path:
    """Where the result of a scenario belongs."""
    return folder / f"{name}-{digest[:6]}"


def save(result: Result, path: Path, *, texts: Mapping[str, str]) -> Path:
    """Write a result folder at `path`, replacing one that is there.

    `texts` are further files by name (`report.html`, `scenario.yaml`).
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another run of the same scenario may be writing, too.
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial",
                                        dir=path.parent))
        partial.chmod(0o777 & ~_umask())
        for name, kind in TABLES.items():
            write_table(partial / f"{name}.parquet", kind, getattr(result, name), {})
        documents = {"scenario.resolved.json": result.scenario, "run.json": result.run}
        if result.plan is not None:
            documents[PLAN_FILE] = result.plan
        for name, document in documents.items():
            (partial / name).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        for name, text in texts.items():
            (partial / name).write_text(text, "utf-8")
        _replace(path, partial)
    except OSError as error:
        raise DataError(f"cannot write the result ({error.strerror or error})",
                        where=str(error.filename or path),
                        instead="choose another folder with -o") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _replace(path: Path, partial: Path) -> None:
    """Rename `partial` to `path`; an older result moves aside first and goes last.

    Another run may put its result there in between: then it is that one which moves aside.
    """
    for attempt in range(_RENAME_ATTEMPTS):
        aside = partial.with_name(f"{partial.name}.old{attempt}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) \
                    or attempt + 1 == _RENAME_ATTEMPTS:
                if aside.exists() and not path.exists():
                    aside.rename(path)
                raise
        else:
            return
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def load(path: Path | str) -> Result:
    """Open a results folder, or the folder of a file in it such as its `report.html`.

    >>> import planner
    >>> result = planner.load("results/small")
    >>> result.summary.column("policy").to_pylist()
    ['off', 'ksmd', 'domain']
    >>> result.summary.schema.field("saved_bytes").type
    DataType(int64)
    >>> result.run["status"]
    'complete'

    Raises DataError and its children where it is not whole, or of another version.
    """
    path = Path(path)
    if path.is_file():
        path = path.parent
    if not (path / "run.json").is_file():
        raise _no_result(path)
    documents = [_document(path / name, required) for name, required in (
        ("scenario.resolved.json", _SCENARIO_KEYS), ("run.json", _RUN_KEYS))]
    scenario, run = documents
    if run["format_version"] != RUN_FORMAT_VERSION:
        raise DataError(
            f"format_version is {run['format_version']!r}; this planner reads "
            f"{RUN_FORMAT_VERSION}", where=str(path / "run.json"),
            instead="use the planner that made it, or run the scenario again")
    try:
        tables = {name: read_table(path / f"{name}.parquet", kind)[0]
                  for name, kind in TABLES.items()}
    except TraceTooOldError as error:
        error.instead = "run the scenario again, or use the planner that made it"
        raise
    named = [policy.get("name") if isinstance(policy, dict) else None
             for policy in scenario["policies"]]
    found = tables["summary"].column("policy").to_pylist()
    if [name for name in named if name in found] != found or not found:
        raise DataError("the policies are not those of scenario.resolved.json",
                        where=str(path / "summary.parquet"), instead=_AGAIN)
    return Result(scenario, run, **tables, plan=_plan(path / PLAN_FILE))


def _plan(path: Path) -> dict[str, Any] | None:
    """What planning made of the replicates; None where nothing was."""
    if not path.exists():
        return None
    plan = _document(path, _PLAN_KEYS)
    if plan["format_version"] != PLAN_FORMAT_VERSION:
        raise DataError(
            f"format_version is {plan['format_version']!r}; this planner reads "
            f"{PLAN_FORMAT_VERSION}", where=str(path), instead=_AGAIN)
    for key, required in (("policies", _PLAN_POLICY_KEYS), ("requirements", _VERDICT_KEYS),
                          ("differences", _DIFFERENCE_KEYS)):
        if not all(isinstance(each, dict) and all(isinstance(each.get(name), kind)
                                                  for name, kind in required.items())
                   for each in plan[key]):
            raise DataError(f"{key} are not as they were written", where=str(path),
                            instead=_AGAIN)
    return plan


def _no_result(path: Path) -> DataError:
    """The error for a folder that holds no result, naming the results that lie in it."""
    if not path.exists():
        what = "there is no such folder"
    elif (path / "manifest.parquet").exists() or (path / "guests.parquet").exists():
        what = "this is a trace, not a result"
    elif path.name.endswith(".partial"):
        what = "this is no results folder (an unfinished run)"
    else:
        what = "this is no results folder"
    inside = sorted(found.parent.name for found in path.glob("*/run.json")) if path.is_dir() else []
    if inside:
        return DataError(what, where=str(path), instead="it holds some; name one, such as "
                         + str(path / inside[-1]))
    return DataError(what, where=str(path), instead="name a folder that `planner run` made, or "
                                                    "run the scenario again")


def _document(path: Path, required: Mapping[str, type]) -> dict[str, Any]:
    """One JSON file of a result with the keys that every reader relies on."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), instead=_AGAIN) from error
    if not isinstance(document, dict):
        raise DataError("is not a JSON object", where=str(path), instead=_AGAIN)
    for key, kind in required.items():
        if not isinstance(document.get(key), kind):
            what = "is missing" if key not in document else f"is no {kind.__name__}"
            raise DataError(f"{key} {what}: the file was altered, or cut short",
                            where=str(path), instead=_AGAIN)
    return document


def scenario_of(result: Result) -> Scenario:
    """The resolved scenario of a result; raises DataError where it is none that can be used."""
    from planner.scenario.resolve import from_json

    try:
        return from_json(result.scenario)
    except ScenarioError as error:
        first = error.problems[0].what if error.problems else error.what
        raise DataError(f"cannot be used ({first[:200]})", where="scenario.resolved.json",
                        instead="run the scenario again; where a name holds characters that "
                                "cannot be printed, rename it in the trace first") from None


def policy_row(result: Result, policy: str) -> dict[str, Any]:
    """The summary of one policy; raises UsageError, with the names there are, for another."""
    rows = {row["policy"]: row for row in result.summary.to_pylist()}
    if policy not in rows:
        close = difflib.get_close_matches(policy[:200], rows, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"no policy is named {policy[:80]!r}", where="--policy",
                         instead=f"{hint}it has {', '.join(rows)}")
    row: dict[str, Any] = rows[policy]
    return row
