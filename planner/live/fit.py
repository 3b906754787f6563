"""Costs per kind of visit from timed experiments: least squares without negative costs.

Rows weigh by their relative error: a figure that is wrong by a tenth is as bad in a short
experiment as in a long one. scipy is not needed for this: the method of Lawson and Hanson
("Solving Least Squares Problems", 1974, chapter 23) is thirty lines over numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["UNSCALED", "Fit", "Row", "fit_costs", "nnls"]

F64 = npt.NDArray[np.float64]

#: Candidates of `cold_pages` and `cold_percent`.
COLD_PAGES = (30, 60, 125, 250, 500, 1000, 2000, 4000, 8000)
COLD_PERCENTS = tuple(range(0, 105, 5))
#: Relative errors beyond this come from disturbances more than from the model.
_OUTLIER = 0.1
_N_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One timed experiment.

    `counts` says how often each cost was paid; `batches` how many visits each batch had that
    came after a sleep, so that those in cold caches can be told (empty: none did).
    """

    label: str
    ns: int
    counts: Mapping[str, float]
    batches: Sequence[int] = field(default=())

    def cold_share(self, cold_pages: int) -> float:
        """Share of the row's visits that are among the first `cold_pages` of their batch."""
        n_visits = sum(self.batches)
        if not n_visits:
            return 0.0
        return sum(min(n, cold_pages) for n in self.batches) / n_visits


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs by name, their intervals (5 % to 95 % of resampled rows), and each row's error.

    `errors[i]` is the fitted minus the measured time of row i, as a share of the measured one.
    """

    costs: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    errors: tuple[float, ...]


def nnls(matrix: F64, target: F64) -> F64:
    """The x >= 0, f64[n], that brings `matrix` (f64[m, n]) @ x closest to `target` (f64[m])."""
    n = matrix.shape[1]
    x = np.zeros(n)
    is_free = np.zeros(n, bool)
    scale = np.abs(matrix).max(initial=1.0) * np.abs(target).max(initial=1.0)
    for _ in range(3 * n + 10):
        gradient = matrix.T @ (target - matrix @ x)
        gradient[is_free] = -np.inf
        at = int(np.argmax(gradient))
        if is_free.all() or gradient[at] <= 1e-10 * scale:
            break
        is_free[at] = True
        while True:
            trial = np.zeros(n)
            trial[is_free] = np.linalg.lstsq(matrix[:, is_free], target, rcond=None)[0]
            is_bad = is_free & (trial <= 0)
            if not is_bad.any():
                x = trial
                break
            # Walk towards the trial point until the first cost becomes zero; fix it there.
            step = float(np.min(x[is_bad] / (x[is_bad] - trial[is_bad])))
            x = x + step * (trial - x)
            is_free &= x > 1e-12 * max(float(x.max()), 1e-300)
            x[~is_free] = 0.0
    return x


#: Visits that hash the page first, as one that finds it changed does: they cost that much more
#: than what is fitted for them alone, so no search is ever found to be free.
HASHING = ("first_sight_ns", "unique_ns", "merge_ns", "pair_merge_ns", "zero_merge_ns")
#: Never raised by cold caches in the model.
UNSCALED = frozenset({"hole_ns", "skip_ns", "batch_ns", "scan_ns", "split_ns"})


def _matrix(rows: Sequence[Row], names: Sequence[str], cold_percent: int, cold_pages: int) -> F64:
    """Counts over measured time, f64[len(rows), len(names)]: the target is one everywhere."""
    matrix = np.zeros((len(rows), len(names)))
    for i, row in enumerate(rows):
        factor = 1 + cold_percent / 100 * row.cold_share(cold_pages)
        hashed = sum(row.counts.get(name, 0) for name in HASHING)
        for j, name in enumerate(names):
            count = row.counts.get(name, 0) + (hashed if name == "volatile_ns" else 0)
            matrix[i, j] = count * (1 if name in UNSCALED else factor) / row.ns
    return matrix


def _robust(matrix: F64, target: F64) -> F64:
    """`nnls` in which a row further off than _OUTLIER (something else ran) weighs less."""
    weight = np.ones(len(target))
    for _ in range(_N_ROUNDS):
        x = nnls(matrix * weight[:, None], target * weight)
        off = np.abs(matrix @ x - target)
        weight = np.sqrt(np.minimum(1.0, _OUTLIER / np.maximum(off, 1e-12)))
    return x


def _best(rows: Sequence[Row], names: Sequence[str], percents: Sequence[int],
          pages: Sequence[int]) -> tuple[float, F64, int, int]:
    target = np.ones(len(rows))
    found: tuple[float, F64, int, int] | None = None
    for cold_pages in pages:
        for cold_percent in percents:
            matrix = _matrix(rows, names, cold_percent, cold_pages)
            scale = matrix.max(axis=0)  # costs of 5 ns and of 100 us in one solution
            x = _robust(matrix / scale, target) / scale
            # Huber's measure: far-off rows count by their distance, not its square.
            off = np.abs(matrix @ x - target)
            error = float(np.where(off < _OUTLIER, off**2,
                                   _OUTLIER * (2 * off - _OUTLIER)).sum())
            if found is None or error < found[0]:
                found = (error, x, cold_percent, cold_pages)
    assert found is not None
    return found


def fit_costs(rows: Sequence[Row], *, n_resamples: int = 100, seed: int = 1) -> Fit:
    """Fit all costs that `rows` name, and `cold_percent` and `cold_pages` by trying.

    Intervals come from `n_resamples` (at least 1) draws of rows of the same label, so repeat
    experiments.
    """
    names = sorted({name for row in rows for name in row.counts if row.counts[name]}
                   | {"volatile_ns"})
    _, x, percent, pages = _best(rows, names, COLD_PERCENTS, COLD_PAGES)
    errors = _matrix(rows, names, percent, pages) @ x - 1
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    random = np.random.default_rng(seed)
    near = [p for p in COLD_PERCENTS if abs(p - percent) <= 20]
    found = []
    for _ in range(n_resamples):
        drawn = [group[i] for group in groups.values()
                 for i in random.integers(0, len(group), len(group))]
        _, sample, sample_percent, _ = _best(drawn, names, near, (pages,))
        found.append([*sample, float(sample_percent)])
    samples = np.array(found)
    low, high = np.percentile(samples, [5, 95], axis=0)
    costs = dict(zip(names, x.tolist(), strict=True))
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
    for name in set(HASHING) & set(names):
        costs[name] += costs["volatile_ns"]
        both = samples[:, names.index(name)] + samples[:, names.index("volatile_ns")]
        intervals[name] = (float(np.percentile(both, 5)), float(np.percentile(both, 95)))
    costs["cold_percent"], costs["cold_pages"] = float(percent), float(pages)
    intervals["cold_percent"] = (float(low[-1]), float(high[-1]))
    return Fit(costs, intervals, tuple(errors.tolist()))
