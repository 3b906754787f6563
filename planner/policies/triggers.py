"""Triggers of synchronous merging: when `ksm_merge` is called, and for which guests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.scenario.spec import LoadSpec, Sync, Trigger

__all__ = ["HYSTERESIS", "POLL_NS", "Round", "Stay", "Watch", "idle_share", "timed_rounds"]

#: How often pressure and idleness are looked at.
POLL_NS = 10_000_000_000
#: A trigger that has fired is armed again this share of the whole beyond its threshold.
HYSTERESIS = 0.02


@dataclass(frozen=True, slots=True)
class Stay:
    """A guest's time on the host, half-open, and whether it came restored from a snapshot."""

    start_ns: int
    end_ns: int
    is_restored: bool


@dataclass(frozen=True, slots=True)
class Round:
    """A time at which guests' memory is to be merged; `guests` None: that of all there are."""

    time_ns: int
    guests: frozenset[int] | None


def timed_rounds(sync: Sync, stays: Sequence[Stay], horizon_ns: int) -> tuple[Round, ...]:
    """The rounds below the horizon that are known beforehand, by ascending time, one a time.

    `boot` fires for each guest, so long after it came to the host (booted, moved in or restarted;
    captured guests run since before the capture, so theirs is time 0), `restore` for those that
    came from a snapshot. `every` fires at each whole multiple of its period, not at 0.
    """
    rounds: dict[int, frozenset[int] | None] = {}
    for trigger in sync.at:
        if trigger.kind in ("boot", "restore"):
            for guest, stay in enumerate(stays):
                time_ns = stay.start_ns + trigger.after_ns
                if stay.is_restored == (trigger.kind == "restore") and time_ns < stay.end_ns:
                    others = rounds.get(time_ns, frozenset())
                    rounds[time_ns] = None if others is None else others | {guest}
        elif trigger.kind == "every":
            rounds.update(dict.fromkeys(range(trigger.every_ns, horizon_ns, trigger.every_ns)))
    return tuple(Round(time, rounds[time]) for time in sorted(rounds) if time < horizon_ns)


def idle_share(load: LoadSpec | None, time_ns: int) -> float:
    """Share of the host's CPUs that is idle at a time; all of it where no load is given."""
    if load is None:
        return 1.0
    wave = (1.0 - math.cos(2.0 * math.pi * (time_ns % load.period_ns) / load.period_ns)) / 2.0
    return 1.0 - (load.low + (load.high - load.low) * wave)


class Watch:
    """A `pressure` or `idle` trigger: it fires when its state begins.

    Pressure is a share of free memory below the trigger's, idleness a share of idle CPU time above
    it. The state ends `HYSTERESIS` beyond the threshold. With `every_ns` it fires again each
    `every_ns` while the state lasts.
    """

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._is_on = False
        self._fired_ns = 0

    def fires(self, time_ns: int, share: float) -> bool:
        """Whether the trigger fires at this look; `share`: of free memory, or of idle CPU time."""
        beyond = share - self._trigger.share
        if self._trigger.kind == "pressure":
            beyond = -beyond
        was_on = self._is_on
        self._is_on = beyond > (-HYSTERESIS if was_on else 0.0)
        every_ns = self._trigger.every_ns
        is_again = was_on and 0 < every_ns <= time_ns - self._fired_ns
        if not self._is_on or (was_on and not is_again):
            return False
        self._fired_ns = time_ns
        return True
