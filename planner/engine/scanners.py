"""ksmd on a host: left alone with its knobs, or steered by a daemon that watches free memory."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import simpy

from planner.engine.stage import Stage
from planner.ksm.knobs import Knobs
from planner.ksm.selective import KSM_CREAT, KSM_EXCL, SelectiveKsm
from planner.policies.controllers import Controller, Settings
from planner.policies.partition import is_mainline
from planner.scenario.spec import Ksmd

__all__ = ["knobs_of", "start_scanners", "steer"]

_O_RDWR = 2


def knobs_of(stage: Stage, merge: Ksmd) -> Knobs:
    """The knobs of a policy's scanner on the host's kernel."""
    # The contents of the spaces are apart by node already.
    given = {name: value for name, value in merge.given().items()
             if name != "merge_across_nodes"}
    return stage.knobs(Knobs.of_kernel(stage.host.spec.kernel, **given))


def start_scanners(stage: Stage, merge: Ksmd, mine: Sequence[int], names: Sequence[str],
                   selective: SelectiveKsm) -> None:
    """Serve the partitions: mainline has one ksmd; opened without KSM_SYNC each has its own."""
    if is_mainline(stage.policy):
        stage.spaces.start_scanner(0, knobs_of(stage, merge))
        return
    for partition in mine:
        selective.ksm_open(names[partition], KSM_CREAT | KSM_EXCL | _O_RDWR)


def steer(stage: Stage, controller: Controller, mine: Sequence[int],
          ) -> Generator[simpy.Event, Any, None]:
    """The daemon's loop. Scanners start stopped; those of all partitions follow the same files."""
    now = Settings()
    yield stage.env.timeout(controller.first_ns)
    while True:
        stage.advance()
        before, now = now, controller.decide(stage.memory(), now)
        if now.is_running and now != before:
            knobs = stage.knobs(Knobs.of_kernel(
                stage.host.spec.kernel, pages_to_scan=now.pages_to_scan,
                sleep_millisecs=now.sleep_millisecs))
            for partition in mine:
                stage.spaces.start_scanner(partition, knobs)
            stage.record("knobs_changed" if before.is_running else "scanner_started")
        elif before.is_running and not now.is_running:
            for partition in mine:
                stage.spaces.stop_scanner(partition)
            stage.record("scanner_stopped")
        yield stage.env.timeout(controller.every_ns)
