"""What happens to the chosen pages of one drawn guest, over its own time.

The capture is passed through again and again, as `planner.population.model.Clock` says; every
epoch's writes come at uniform times within it, from the guest's own stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.population.model import Clock
from planner.population.sample import ranges

__all__ = ["Epochs", "Walk", "epochs_of", "walk"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Epochs:
    """`Clock.epochs` as arrays, i64 each: one entry an epoch."""

    before: I64
    after: I64
    after_pass: I64
    start_ns: I64
    end_ns: I64


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Writes to the chosen pages: by epoch, at random times in it; i64 each, one entry a write.

    `page`: which of the chosen. `before`, `after`: snapshots; the page becomes as in `after`,
    reached in pass `after_pass`.
    """

    time_ns: I64
    page: I64
    before: I64
    after: I64
    after_pass: I64


def epochs_of(clock: Clock, phase_ns: int, end_ns: int) -> Epochs:
    """The epochs of a guest of this phase from its start to `end_ns` of its own time."""
    if not clock.period_ns or end_ns <= 0:
        none = np.empty(0, np.int64)
        return Epochs(none, none, none, none, none)
    n_snapshots = len(clock.offset_ns)
    passes, snapshots = clock.at(phase_ns, 0)
    first = int(passes) * n_snapshots + int(snapshots)
    passes, snapshots = clock.at(phase_ns, end_ns - 1)
    step = np.arange(first, int(passes) * n_snapshots + int(snapshots) + 1)
    number, before = np.divmod(step, n_snapshots)
    start_ns = number * clock.period_ns + clock.offset_ns[before] - phase_ns
    after_pass, after = np.divmod(step + 1, n_snapshots)
    next_ns = after_pass * clock.period_ns + clock.offset_ns[after] - phase_ns
    return Epochs(before, after, after_pass, np.maximum(start_ns, 0), next_ns)


def walk(epochs: Epochs, is_written: npt.NDArray[np.bool_], stream: np.random.Generator) -> Walk:
    """All writes of the epochs. `is_written` (s, k): pages written on the way from a snapshot.

    Writes of the first epochs do not depend on how many follow.
    """
    source, page = np.nonzero(is_written)
    starts = np.searchsorted(source, np.arange(len(is_written) + 1))
    n_writes = np.diff(starts)[epochs.before]
    epoch = np.repeat(np.arange(len(epochs.before)), n_writes)
    at = ranges(starts[epochs.before], n_writes)
    length_ns = epochs.end_ns - epochs.start_ns
    time_ns = epochs.start_ns[epoch] + (stream.random(len(epoch)) * length_ns[epoch]).astype(
        np.int64)
    return Walk(time_ns, page[at], epochs.before[epoch], epochs.after[epoch],
                epochs.after_pass[epoch])
