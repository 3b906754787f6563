"""The shortest script that still fails: steps taken out (ddmin), then writes made smaller.

Candidates are judged many at once, since a kernel in QEMU takes seconds to boot and then runs
hundreds of scripts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tests.conformance.script import Script, Step, n_observations, repaired

#: Which of some scripts fail.
Judge = Callable[[Sequence[Script]], Sequence[bool]]


def shrunk(script: Script, fails: Judge) -> Script:
    """A script that fails like `script` does, from which no single step can be taken."""
    steps: list[Step] = [list(step) for step in script]
    n_parts = 2
    while True:
        candidate = _first_failing(_without_parts(steps, n_parts), fails)
        if candidate is not None:
            steps = candidate
            n_parts = max(2, min(n_parts - 1, len(steps)))
        elif n_parts < len(steps):
            n_parts = min(len(steps), n_parts * 2)
        else:
            smaller = _first_failing(_with_less(steps), fails)
            if smaller is None:
                return steps
            steps = smaller


def _first_failing(candidates: list[list[Step]], fails: Judge) -> list[Step] | None:
    worth = [one for one in candidates if n_observations(one)]
    for candidate, is_failing in zip(worth, fails(worth) if worth else (), strict=True):
        if is_failing:
            return candidate
    return None


def _without_parts(steps: list[Step], n_parts: int) -> list[list[Step]]:
    """The script without each of its parts in turn; what cannot be done then goes too."""
    bounds = [len(steps) * i // n_parts for i in range(n_parts + 1)]
    found = [repaired(steps[:first] + steps[end:])
             for first, end in itertools.pairwise(bounds)]
    return [one for one in found if len(one) < len(steps)]


def _with_less(steps: list[Step]) -> list[list[Step]]:
    """The script with one step on fewer pages; each is smaller, so that this ends."""
    found = []
    for index, step in enumerate(steps):
        for less in _smaller(step):
            candidate = repaired([*steps[:index], less, *steps[index + 1:]])
            if len(candidate) == len(steps):
                found.append(candidate)
    return found


def _smaller(step: Step) -> list[Step]:
    op = step[0]
    if op == "write":
        _, p, vpn, contents = step
        half = len(contents) // 2
        return [[op, p, vpn, contents[:half]], [op, p, vpn + half, contents[half:]]] if half else []
    if op in ("dontneed", "unmap", "read", "advise", "unadvise"):
        _, p, vpn, n = step
        return [[op, p, vpn, n // 2], [op, p, vpn + n // 2, n - n // 2]] if n > 1 else []
    if op == "map" and step[3] > 1 and step[4] == "small":
        # Whatever uses the pages is left out by whoever repairs; see the length above.
        return [[*step[:3], step[3] // 2, step[4]]]
    return []
