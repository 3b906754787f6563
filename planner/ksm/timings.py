"""Calibrations: what `planner calibrate` measured on a host, as a cost model."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from planner.errors import DataError, UsageError
from planner.ksm.cost import CostModel

__all__ = ["FORMAT_VERSION", "KIND", "cost_model", "read_timings"]

FORMAT_VERSION = 1
KIND = "planner.calibration"


def read_timings(path: Path, name: str | None = None) -> CostModel:
    """The cost model of the calibration at `path`, called `name` (default: the path).

    Raises DataError where the file holds none of a known version.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path),
                        instead="make it with planner calibrate") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise DataError("is no calibration", where=str(path),
                        instead="name a file that planner calibrate wrote")
    if document.get("format_version") != FORMAT_VERSION:
        raise DataError(f"has format_version {document.get('format_version')!r}, this version "
                        f"reads {FORMAT_VERSION}", where=str(path), instead="calibrate again")
    return cost_model(name or str(path), document.get("costs_ns"), where=str(path),
                      instead="calibrate again")


def cost_model(name: str, costs: object, *, where: str, instead: str) -> CostModel:
    """The cost model of figures by name, as `CostModel.costs_ns` gives them; others are ignored.

    Raises DataError, at `where` and with what to do instead, where they are not whole.
    """
    wanted = [field.name for field in fields(CostModel) if field.name != "name"]
    if not isinstance(costs, dict) or set(wanted) - set(costs):
        raise DataError("lacks costs that the model needs", where=where, instead=instead)
    try:
        return CostModel(name=name, **{each: costs[each] for each in wanted})
    except UsageError as error:
        raise DataError(error.what, where=f"{where}: {error.where}", instead=instead) from error
