"""Errors of the package: one small tree, every member carries data and an exit code.

Only `planner.cli.main` maps them to exit codes; no library module prints or exits.
Exit codes: 1 our bug, 2 usage or scenario fault, 3 the machine or the data cannot serve,
4 a requirement failed, 5 two results differ, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = [
    "DataError",
    "InterruptedRunError",
    "MachineError",
    "NotATraceError",
    "PlannerError",
    "Problem",
    "ScenarioError",
    "TraceAlteredError",
    "TraceTooNewError",
    "TraceTooOldError",
    "TraceTruncatedError",
    "UsageError",
]


class PlannerError(Exception):
    """What went wrong, where, and what to do instead.

    Parameters: `what` is a sentence without a full stop, `where` a path or option (may be
    empty), `instead` the next step (may be empty).
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", instead: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.instead = instead

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.instead}" if self.instead else text


class UsageError(PlannerError):
    """The command line or a call asks for something that cannot be."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a scenario file.

    `line` and `column` count from 1; 0 where the fault has no place in the file.
    `source_line` is the text of that line, for the caret.
    """

    what: str
    line: int = 0
    column: int = 0
    source_line: str = ""
    hints: Sequence[str] = field(default=())


class ScenarioError(UsageError):
    """All problems of one scenario file, in file order."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column)))
        super().__init__(f"{len(self.problems)} problem(s)", where=path)

    def __str__(self) -> str:
        parts = []
        for problem in self.problems:
            place = f":{problem.line}:{problem.column}" if problem.line else ""
            parts.append(f"{self.path}{place}: error: {problem.what}")
            if problem.line and problem.source_line:
                parts.append(f"{problem.line:6d} | {problem.source_line}")
                parts.append(f"       | {' ' * (problem.column - 1)}^")
            parts.extend(f"       = {hint}" for hint in problem.hints)
        return "\n".join(parts)


class DataError(PlannerError):
    """A trace or a result is missing or cannot be used."""

    exit_code = 3


class NotATraceError(DataError):
    """The path holds no trace (or not the kind of file that was asked for)."""


class TraceTooOldError(DataError):
    """Written by a schema older than this version reads."""


class TraceTooNewError(DataError):
    """Written by a schema newer than this version reads."""


class TraceTruncatedError(DataError):
    """A file of the trace is missing or shorter than it was written."""


class TraceAlteredError(DataError):
    """A file of the trace is not what was written."""


class MachineError(PlannerError):
    """This machine cannot serve: no permission, no KSM, no such process."""

    exit_code = 3


class InterruptedRunError(PlannerError):
    """Stopped by the user; says what was kept. `partial` is what was finished, if anything."""

    exit_code = 130

    def __init__(self, what: str, *, where: str = "", instead: str = "",
                 partial: object = None) -> None:
        super().__init__(what, where=where, instead=instead)
        self.partial = partial
