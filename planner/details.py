"""What a report says beside the tables of a result: made from the traces, kept with the result.

One plain document, `details.json` in the results folder: where the memory went under each policy,
who shares with whom, and why memory would not merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from planner.errors import DataError
from planner.explain import explain, scenario_of_traces
from planner.metrics import Result
from planner.runner import TraceStore, build_hosts
from planner.sharing import sharing_matrices
from planner.traceinfo import trace_info

__all__ = ["FILE_NAME", "FORMAT_VERSION", "details_of", "read_details"]

#: Its name in a results folder.
FILE_NAME = "details.json"
FORMAT_VERSION = 1

#: What every reader of the document relies on.
_KEYS: dict[str, dict[str, type]] = {
    "waterfalls": {"policy": str, "steps": list, "memos": list},
    "sharing": {"key": str, "members": list, "held_bytes": list, "cells": list, "is_apart": list,
                "n_left_out": int},
    "diagnosis": {"trace": str, "n_bytes": int, "obstacles": list, "contents": list,
                  "notes": list},
}
_STEP_KEYS: dict[str, type] = {"key": str, "n_bytes": int, "text": str, "is_total": bool}

Progress = Callable[[str, float], None]


def details_of(result: Result, *, traces: Iterable[Path] = (), store: TraceStore | None = None,
               progress: Progress | None = None) -> dict[str, Any]:
    """The document for `result`, as JSON-able numbers and strings.

    `traces` are folders to look in, by digest, for traces that are not where the result says.
    Takes about as long as the run took. Where guests were drawn, waterfalls and sharing are empty:
    they are of captured guests on their hosts. Raises DataError as `planner.explain.explain` does.
    """
    store, traces = store or TraceStore(), tuple(traces)
    scenario = scenario_of_traces(result, traces, store)
    hosts = [] if scenario.is_fleet else build_hosts(scenario, store)
    policies = [row["policy"] for row in result.summary.to_pylist()
                if row["merge"] != "never" and not scenario.is_fleet]
    n_steps = len(policies) + 1
    waterfalls = []
    for index, policy in enumerate(policies):
        if progress is not None:
            progress(f"explaining {policy}", index / n_steps)
        waterfalls.append(explain(result, policy, traces=traces, store=store,
                                  hosts=hosts).to_json())
    if progress is not None:
        progress("who shares with whom", len(policies) / n_steps)
    paths = {workload.trace_digest: workload.trace for workload in scenario.workloads}
    recorded = {record.get("digest"): record.get("path") for record in result.run["traces"]}
    diagnosis = []
    for digest, path in paths.items():
        info = trace_info(store.open(path))
        diagnosis.append({"trace": recorded.get(digest) or path, "snapshot_id": info.snapshot_id,
                          **info.diagnosis.to_json()})
    return {
        "format_version": FORMAT_VERSION, "kind": "planner.details",
        "digest": result.run["digest"], "waterfalls": waterfalls,
        "sharing": [matrix.to_json() for matrix in sharing_matrices(scenario, hosts)]
        if hosts else [],
        "diagnosis": diagnosis,
    }


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
    for key, required in _KEYS.items():
        found = document.get(key)
        if not isinstance(found, list) or not all(_has(each, required) for each in found):
            raise DataError(f"{key} is missing or not as it was written", where=str(path),
                            instead=again)
    if not all(_has(step, _STEP_KEYS) for each in document["waterfalls"]
               for part in ("steps", "memos") for step in each[part]):
        raise DataError("waterfalls are not as they were written", where=str(path), instead=again)
    return document


def _has(found: object, required: Mapping[str, type]) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(key), kind) for key, kind in required.items())
