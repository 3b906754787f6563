"""`planner doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from planner.cli.output import say

#: The machine or its rights do not allow a capture (planner.errors).
_NOT_POSSIBLE = 3


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON document.")] = False,
) -> int:
    """Tell what this machine can do: kernel, KSM, module, permissions.

    Writes nothing. The exit code is 0 where a capture is possible, else 3.

    Example: sudo planner doctor
    """
    from planner.doctor import examine

    diagnosis = examine()
    if as_json:
        typer.echo(json.dumps(diagnosis.document(), indent=1))
    else:
        width = max(len(finding.name) for finding in diagnosis.findings)
        for finding in diagnosis.findings:
            mark = "!" if finding.is_problem else " "
            line = f"{mark} {finding.name.ljust(width)}  {finding.text}"
            say(f"{line}; {finding.instead}" if finding.instead else line)
    return 0 if diagnosis.can_capture else _NOT_POSSIBLE
