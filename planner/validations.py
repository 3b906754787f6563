"""validation.json: what `planner validate live` measured, for later reports to quote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import DataError

__all__ = ["FORMAT_VERSION", "KIND", "ValidationRecord", "find_validations", "read_validation",
           "write_json"]

FORMAT_VERSION = 1
KIND = "planner.validation.live"
#: What a report quotes first.
_QUOTED = ("pages_shared", "pages_sharing", "freed_pages", "ksmd_cpu_ns")


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """One validation, as far as a report quotes it.

    `forecast` and `replay` map a counter to its error at rest and its mean error over time, both
    as shares of what was measured (None: measured zero).
    """

    path: str
    created: str
    kernel: str
    workload: str
    timings: str
    is_partial: bool
    forecast: Mapping[str, tuple[float | None, float | None]]
    replay: Mapping[str, tuple[float | None, float | None]]

    def sentence(self) -> str:
        """One line for a report: what was compared and how far off the model was."""
        parts = []
        for name, found in (("forecast", self.forecast), ("replay", self.replay)):
            errors = ", ".join(
                f"{counter} {found[counter][0]:+.1%}" for counter in _QUOTED
                if counter in found and found[counter][0] is not None)
            parts.append(f"{name} at rest: {errors or 'nothing measured'}")
        partial = " (partial)" if self.is_partial else ""
        return f"{self.workload} on Linux {self.kernel}{partial}: " + "; ".join(parts)


def read_validation(path: Path) -> ValidationRecord:
    """The validation at `path`; raises DataError where there is none of a known version."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path),
                        instead="run planner validate live again") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise DataError("is no record of planner validate live", where=str(path),
                        instead="name another file")
    if document.get("format_version") != FORMAT_VERSION:
        raise DataError(f"has format_version {document.get('format_version')!r}, this version "
                        f"reads {FORMAT_VERSION}", where=str(path), instead="validate again")
    try:
        return ValidationRecord(
            str(path), str(document["created"]), str(document["host"]["kernel"]),
            str(document["workload"]["description"]), str(document["timings"]),
            document["status"] != "complete", _errors(document["forecast"]),
            _errors(document["replay"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"lacks or misstates {error}", where=str(path),
                        instead="validate again") from error


def _errors(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    def number(value: Any) -> float | None:
        return None if value is None else float(value)

    return {counter: (number(each["last_error"]), number(each["error"]))
            for counter, each in found.items()}


def find_validations(folder: Path) -> Sequence[ValidationRecord]:
    """All live validations in a folder, oldest first; files of other kinds are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found.append(read_validation(path))
        except DataError:
            continue
    return tuple(sorted(found, key=lambda record: record.created))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document aside and rename it; raises DataError where it cannot be."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(f"cannot be written: {error.strerror or error}", where=str(path),
                        instead="check the folder and its permissions") from None
