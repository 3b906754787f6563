"""Merge timing: when synchronous merging is triggered."""

from __future__ import annotations

from planner.scenario.spec import Ksmd, Merge, Never, Sync
from planner.units import format_duration

__all__ = ["merge_text", "merge_times"]


def merge_times(sync: Sync, horizon_ns: int) -> tuple[int, ...]:
    """Times in ns below the horizon, ascending, without repeats, at which `ksm_merge` is called.

    Captured guests run since before the capture, so their boot is time 0: `boot` fires once,
    after its delay. `every` fires at each whole multiple of its period, not at 0.
    """
    times: set[int] = set()
    for trigger in sync.at:
        if trigger.kind == "boot":
            times.add(trigger.after_ns)
        else:
            times.update(range(trigger.every_ns, horizon_ns, trigger.every_ns))
    return tuple(sorted(time for time in times if time < horizon_ns))


def merge_text(merge: Merge) -> str:
    """A merge timing in words, such as `ksmd 100 pages / 20 ms`."""
    if isinstance(merge, Never):
        return "never"
    if isinstance(merge, Ksmd):
        return f"ksmd {merge.pages_to_scan} pages / {merge.sleep_millisecs} ms"
    words = [f"boot + {format_duration(trigger.after_ns)}" if trigger.kind == "boot"
             else f"every {format_duration(trigger.every_ns)}" for trigger in merge.at]
    return "sync " + ", ".join(words)
