"""What a report says beside the tables of a result: made from the traces, kept with the result.

One plain document, `details.json` in the results folder: where the memory went under each policy,
who shares with whom, and why memory would not merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import DataError
from planner.explain import explain
from planner.metrics import Result
from planner.results import scenario_of
from planner.runner import TraceStore, build_hosts
from planner.scenario.spec import Scenario
from planner.sharing import sharing_matrices
from planner.traceinfo import trace_info

__all__ = ["FILE_NAME", "FORMAT_VERSION", "details_of", "read_details"]

#: Its name in a results folder.
FILE_NAME = "details.json"
FORMAT_VERSION = 1

Progress = Callable[[str, float], None]


def details_of(result: Result, *, traces: Iterable[Path] = (), store: TraceStore | None = None,
               progress: Progress | None = None) -> dict[str, Any]:
    """The document for `result`, as JSON-able numbers and strings.

    `traces` are folders to look in, by digest, for traces that are not where the result says.
    Takes about as long as the run took. Raises DataError as `planner.explain.explain` does.
    """
    store = store or TraceStore()
    traces = tuple(traces)
    policies = [row["policy"] for row in result.summary.to_pylist() if row["merge"] != "never"]
    waterfalls = []
    for index, policy in enumerate(policies):
        if progress is not None:
            progress(f"explaining {policy}", index / (len(policies) + 1))
        waterfalls.append(explain(result, policy, traces=traces, store=store).to_json())
    if progress is not None:
        progress("who shares with whom", len(policies) / (len(policies) + 1))
    scenario = scenario_of(result)
    elsewhere = {store.open(path).digest: path for path in traces}
    found = [elsewhere.get(record["digest"], Path(record["path"]))
             for record in result.run["traces"]]
    hosts = build_hosts(_at(scenario, elsewhere), store)
    return {
        "format_version": FORMAT_VERSION, "kind": "planner.details",
        "digest": result.run["digest"], "waterfalls": waterfalls,
        "sharing": [matrix.to_json() for matrix in sharing_matrices(scenario, hosts)],
        "diagnosis": [{"trace": record["path"], "snapshot_id": info.snapshot_id,
                       **info.diagnosis.to_json()}
                      for record, path in zip(result.run["traces"], found, strict=True)
                      for info in [trace_info(store.open(path))]],
    }


def _at(scenario: Scenario, elsewhere: Mapping[str, Path]) -> Scenario:
    """The scenario with its traces where they are now."""
    return replace(scenario, workloads=tuple(
        replace(each, trace=str(elsewhere.get(each.trace_digest, each.trace)))
        for each in scenario.workloads))


def read_details(folder: Path, digest: str) -> dict[str, Any] | None:
    """The document kept in a results folder, or None where there is none.

    Raises DataError where it cannot be read, or is not of the run `digest`.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    again = "make it again with planner report RESULT --details"
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), instead=again) from error
    if not isinstance(document, dict) or document.get("kind") != "planner.details" \
            or document.get("format_version") != FORMAT_VERSION:
        raise DataError(f"is not of format_version {FORMAT_VERSION}", where=str(path),
                        instead=again)
    if document.get("digest") != digest:
        raise DataError("is of another run", where=str(path), instead=again)
    if not all(isinstance(document.get(key), list)
               for key in ("waterfalls", "sharing", "diagnosis")):
        raise DataError("was altered, or cut short", where=str(path), instead=again)
    return document
