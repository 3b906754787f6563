"""The cases of a sweep, and which swept input matters most, as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import DataError
from planner.report.facts import clean
from planner.report.plan_text import metric_text
from planner.units import format_size

__all__ = ["elasticity_text", "sweep_view"]

#: Rows shown at most; sweep.json has all.
MAX_ROWS = 400
_HEADS = {"saved": "saved", "saved_zero": "saved_zero", "merge_cpu": "merge CPU",
          "hosts_needed": "hosts needed", "unmerge_headroom": "left if unmerged, worst host",
          "cow_breaks": "COW breaks", "cross_domain_pages": "cross-domain pages"}


def sweep_view(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """The texts of a sweep document (`planner.planning.sweep_document`); rows of the run `digest`
    are marked.

    Raises DataError for a document that is none.
    """
    if document.get("kind") != "planner.sweep" or document.get("format_version") != 1:
        raise DataError("is not the document of a sweep", where="sweep.json",
                        instead="run the sweep again")
    try:
        return _view(document, digest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"is not as it was written ({type(error).__name__}: {error})",
                        where="sweep.json", instead="run the sweep again") from error


def _view(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    cases = list(document["cases"])
    keys = list(dict.fromkeys(key for row in cases for key in row["inputs"]))
    known = [metric for metric in _HEADS
             if any((row["metrics"].get(metric) or {}).get("median") is not None
                    for row in cases)]
    return {
        "inputs": [clean(key, 80) for key in keys],
        "heads": [_HEADS[metric] for metric in known],
        "n_left_out": max(len(cases) - MAX_ROWS, 0),
        "rows": [{"policy": clean(row["policy"]), "is_here": row["digest"] == digest,
                  "inputs": [clean(row["inputs"].get(key, "–"), 40) for key in keys],
                  "cells": [_cell(metric, row["metrics"].get(metric)) for metric in known],
                  "n_failed": int(row["n_failed"])} for row in cases[:MAX_ROWS]],
        "effects": [{
            "policy": clean(each["policy"]), "input": clean(each["input"], 80),
            "low_at": clean(each["low_at"], 40), "high_at": clean(each["high_at"], 40),
            "low": format_size(round(each["low"])), "high": format_size(round(each["high"])),
            "elasticity": elasticity_text(each["elasticity"])} for each in document["effects"]
            if each["swing"]],
    }


def elasticity_text(elasticity: float | None) -> str:
    """Per cent of the saving per per cent of an input; a dash where it is not known."""
    if elasticity is None:
        return "–"
    return f"{elasticity:+.2f} %" if abs(elasticity) >= 0.005 else "0 %"


def _cell(metric: str, found: Mapping[str, Any] | None) -> dict[str, str]:
    """The median, and apart from it the interval where there is one."""
    if found is None or found["median"] is None:
        return {"text": "–", "interval": ""}
    text = metric_text(metric, found["median"])
    if found.get("low") is None:
        return {"text": text, "interval": ""}
    low, high = (metric_text(metric, found[bound]) for bound in ("low", "high"))
    return {"text": text, "interval": "" if low == high else f"[{low}, {high}]"}
