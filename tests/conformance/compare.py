"""A model beside a kernel: the same scripts on both, and the shortest script that tells them apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from planner.ksm.knobs import KernelVersion
from planner.ksm.machine import Machine as Product
from tests.conformance.driver import CannotServeError, Outcome
from tests.conformance.live import run_on_host
from tests.conformance.qemu import SERIES, run_in_machine
from tests.conformance.script import (
    Machine,
    Script,
    compile_script,
    content_key,
    first_difference,
    run_script,
)
from tests.conformance.shrink import shrunk
from tests.oracles.kernel_ksm import Machine as Twin

#: Kernels there is a model of.
MODELLED = ("6.1", "6.12", "6.18")
#: The plain model, and the planner's own.
MODELS: dict[str, Callable[[str], Machine]] = {
    "twin": Twin, "planner": lambda kernel: Product(cast(KernelVersion, kernel), key=content_key)}


@dataclass(frozen=True)
class Mismatch:
    """A script that shows a model to differ from a kernel."""

    model: str
    kernel: str
    script: Script
    difference: str

    def __str__(self) -> str:
        steps = "\n".join(f"  {line}" for line in
                          compile_script(self.script, "").splitlines()[1:-1])
        return (f"{self.model} differs from Linux {self.kernel} (observed: the kernel; expected: "
                f"the model):\n{self.difference}\n{steps}")


def host_series() -> str:
    """The series of this kernel; CannotServeError if no model knows it."""
    series = ".".join(os.uname().release.split(".")[:2])
    if series not in MODELLED:
        raise CannotServeError(f"no model of Linux {series}: there are {', '.join(MODELLED)}")
    return series


def run_on(kernel: str, scripts: Sequence[Script], wait_s: float = 300) -> list[Outcome]:
    """Run scripts on this kernel if it is of that series (`live.exclusive_ksm` says what
    `wait_s` is), otherwise in a machine.
    """
    if kernel == ".".join(os.uname().release.split(".")[:2]):
        return run_on_host(scripts, wait_s=wait_s)
    if kernel not in SERIES:
        raise CannotServeError(f"Linux {kernel} is neither this kernel nor one of "
                               f"{', '.join(SERIES)}")
    return run_in_machine(kernel, scripts)


def difference(model: str, kernel: str, script: Script, outcome: Outcome) -> str | None:
    """How a model differs from what a kernel did; None when it does not."""
    if outcome.status != "ok":
        return f"the kernel could not do it: {outcome.status}"
    try:
        expected = run_script(MODELS[model](kernel), script)
    except Exception as error:  # A model that fails differs from a kernel that does not.
        return f"the model failed: {type(error).__name__}: {error}"
    return first_difference(outcome.observations, expected)


def mismatches(model: str, kernel: str, scripts: Sequence[Script],
               done: Sequence[Outcome]) -> Iterator[Mismatch]:
    """Those of some scripts that show a difference, as they are."""
    for script, outcome in zip(scripts, done, strict=True):
        found = difference(model, kernel, script, outcome)
        if found is not None:
            yield Mismatch(model, kernel, script, found)


def shortest(mismatch: Mismatch) -> Mismatch:
    """The shortest script that shows a difference, found by running more on the kernel.

    One that alone shows none is given back as it is, and said to be so: it needs what ran before.
    """
    def fails(candidates: Sequence[Script]) -> list[bool]:
        done = run_on(mismatch.kernel, candidates)
        return [outcome.status == "ok"
                and difference(mismatch.model, mismatch.kernel, script, outcome) is not None
                for script, outcome in zip(candidates, done, strict=True)]

    if not fails([mismatch.script])[0]:
        return replace(mismatch, difference=f"(not when run alone) {mismatch.difference}")
    script = shrunk(mismatch.script, fails)
    [outcome] = run_on(mismatch.kernel, [script])
    found = difference(mismatch.model, mismatch.kernel, script, outcome)
    return replace(mismatch, script=script, difference=found or mismatch.difference)
