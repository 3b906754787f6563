"""Tasks of one run as cases: keys, names, and a pool that does them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from planner.cases import CaseFolder, unpack
from planner.executor import Case, Pool, Progress, run_cases, versions_here
from planner.forecast.work import Task, work
from planner.scenario.spec import Scenario, to_json

__all__ = ["Cases", "replicate_name"]


def replicate_name(replicate: int, what: str) -> str:
    """A case in words."""
    return f"replicate {replicate + 1}, {what}"


class Cases:
    """A scenario on a pool. `text` and `versions` are what every task of it carries.

    `digest` names the run: what `folder` holds of it is not done again.
    """

    def __init__(self, scenario: Scenario, digest: str, pool: Pool,
                 folder: CaseFolder | None = None, progress: Progress | None = None) -> None:
        self.scenario = scenario
        self.text = json.dumps(to_json(scenario))
        self.versions = tuple(versions_here().items())
        self._digest = digest
        self._pool = pool
        self._folder = folder
        self._progress = progress

    def do(self, tasks: Sequence[Task], names: Sequence[str], span: tuple[float, float]
           ) -> list[tuple[dict[str, Any], dict[str, pa.Table]]]:
        """Facts and tables of each task, in order.

        `span`: the shares of all work that is done before and after them.
        """
        cases = [self.case(task, name) for task, name in zip(tasks, names, strict=True)]
        start, end = span

        def report(name: str, share: float) -> None:
            if self._progress is not None:
                self._progress(name, start + (end - start) * share)

        found = run_cases(work, cases, self._pool, folder=self._folder, progress=report)
        return [unpack(found[case.key]) for case in cases]

    def case(self, task: Task, name: str) -> Case:
        """A task with its key: what its outcome follows from."""
        what = {field: getattr(task, field) for field in task.__slots__
                if field not in ("scenario", "versions")}
        text = json.dumps([self._digest, self.versions, type(task).__name__, what])
        return Case(hashlib.sha256(text.encode()).hexdigest()[:32], name, task)
