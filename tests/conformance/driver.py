"""The driver program: compiled, given scripts, and what it tells read back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.script import Observation, Script, compile_script, dense_frames, validate

_SOURCE = Path(__file__).resolve().with_name("driver.c")


@dataclass(frozen=True)
class Outcome:
    """What a script did on a kernel: `status` is "ok" or why it could not be done there."""

    status: str
    observations: list[Observation]


class CannotServeError(Exception):
    """This machine, as it is, cannot run scripts; the message says why."""


def cache_folder() -> Path:
    """Where the compiled driver is kept; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "ksm-planner" / "conformance"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_driver() -> Path:
    """The static driver program, compiled unless it was before."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    program = cache_folder() / f"driver-{digest}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            part = Path(folder) / "driver"
            done = subprocess.run(
                ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror",
                 "-static", "-o", part, _SOURCE], capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotServeError(f"the driver does not compile:\n{done.stderr}")
            part.rename(program)
    return program


def compiled(scripts: Sequence[Script]) -> str:
    """Scripts in the driver's language, named by their place; ScriptError if one is not valid."""
    for script in scripts:
        validate(script)
    return "".join(compile_script(script, str(i)) for i, script in enumerate(scripts))


def _observation(told: dict[str, Any]) -> Observation:
    return {
        "counters": told["counters"], "cow_ksm": told["cow_ksm"],
        "processes": {int(p): counters for p, counters in told["processes"].items()},
        "frames": dense_frames({int(p): [(vpn, ids) for vpn, ids in stretches]
                                for p, stretches in told["frames"].items()}),
        "errors": told["errors"], "step": told["step"]}


def outcomes(told: str, n_scripts: int) -> list[Outcome]:
    """What the driver told of scripts, in order; CannotServeError if it stopped before the end."""
    found = []
    for number, line in enumerate(told.splitlines()):
        one = json.loads(line)
        assert one["script"] == str(number), f"script {number} expected, not {one['script']}"
        found.append(Outcome(one["status"], [_observation(each) for each in one["observations"]]))
    if len(found) != n_scripts:
        raise CannotServeError(f"the driver told of {len(found)} of {n_scripts} scripts")
    return found
