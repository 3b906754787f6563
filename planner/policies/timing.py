"""Merge timing: when synchronous merging is triggered."""

from __future__ import annotations

from planner.scenario.spec import Sync

__all__ = ["merge_times"]


def merge_times(sync: Sync, horizon_ns: int) -> tuple[int, ...]:
    """Times in ns, ascending and without repeats, at which the policy calls `ksm_merge`.

    Captured guests run since before the capture, so their boot is time 0: `boot` fires once,
    after its delay. `every` fires at each whole multiple of its period, not at 0.
    """
    times: set[int] = set()
    for trigger in sync.at:
        if trigger.kind == "boot":
            times.add(trigger.after_ns)
        else:
            times.update(range(trigger.every_ns, horizon_ns + 1, trigger.every_ns))
    return tuple(sorted(time for time in times if time <= horizon_ns))
