"""Costs from timed experiments."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from planner.errors import DataError
from planner.ksm import BUILTIN_UNMEASURED, CostModel
from planner.ksm.timings import FORMAT_VERSION, KIND, read_timings
from planner.live.experiments import FAR_LEVEL, _levels
from planner.live.fit import Row, fit_costs, nnls


def best_of_all_subsets(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest error over every choice of which costs are zero."""
    n = matrix.shape[1]
    best, best_error = np.zeros(n), float((target**2).sum())
    for size in range(1, n + 1):
        for chosen in map(list, itertools.combinations(range(n), size)):
            x = np.zeros(n)
            x[chosen] = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            error = float(((matrix @ x - target) ** 2).sum())
            if (x >= 0).all() and error < best_error - 1e-12:
                best, best_error = x, error
    return best


@pytest.mark.parametrize("seed", range(40))
def test_least_squares_without_negative_costs_equal_the_best_subset(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(8, 4))
    target = random.normal(size=8)
    found = nnls(matrix, target)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, best_of_all_subsets(matrix, target), atol=1e-8)


def rows_of(costs: dict[str, float], percent: int, pages: int, noise: float = 0.0) -> list[Row]:
    random = np.random.default_rng(3)
    rows = []
    for n, size in itertools.product((500, 4000, 30_000), (100, 1000, 8000)):
        for name in ("volatile_ns", "unique_ns", "quick_ns", "skip_ns"):
            batches = [] if name == "skip_ns" else [min(size, n)] * max(n // size, 1)
            counts = {name: float(sum(batches) or n), "batch_ns": float(len(batches) or 1)}
            cold = 1 + percent / 100 * Row("", 1, {}, batches).cold_share(pages)
            ns = sum(costs[key] * count * (cold if key in ("volatile_ns", "unique_ns", "quick_ns")
                                           else 1) for key, count in counts.items())
            for _ in range(2):
                rows.append(Row(f"{name} {n} {size}", round(ns * (1 + noise * random.normal())),
                                counts, batches))
    return rows


COSTS = {"volatile_ns": 700.0, "unique_ns": 2500.0, "quick_ns": 340.0, "skip_ns": 250.0,
         "batch_ns": 20_000.0}


def test_known_costs_are_found_again() -> None:
    fit = fit_costs(rows_of(COSTS, 30, 500), n_resamples=1)
    for name, cost in COSTS.items():
        assert fit.costs[name] == pytest.approx(cost, rel=0.01)
    assert (fit.costs["cold_percent"], fit.costs["cold_pages"]) == (30, 500)
    assert max(map(abs, fit.errors)) < 0.01


def test_one_disturbed_row_does_not_spoil_the_rest_and_intervals_hold_the_cost() -> None:
    rows = rows_of(COSTS, 30, 500, noise=0.03)
    rows[4] = Row(rows[4].label, rows[4].ns * 5, rows[4].counts, rows[4].batches)
    fit = fit_costs(rows, n_resamples=20)
    for name in ("unique_ns", "quick_ns", "skip_ns"):
        assert fit.costs[name] == pytest.approx(COSTS[name], rel=0.08)
        low, high = fit.intervals[name]
        assert low <= fit.costs[name] <= high
        assert high - low < 0.5 * COSTS[name]


def test_levels_are_bit_lengths_and_far_ones_count_again() -> None:
    sizes = range(1, 5000)
    found = _levels("unstable", sizes)
    assert found["unstable_level_ns"] == sum(size.bit_length() for size in sizes)
    assert found["unstable_far_ns"] == sum(max(size.bit_length() - FAR_LEVEL, 0)
                                           for size in sizes)


def calibration(path: Path, **changes: object) -> Path:
    costs = {name: getattr(BUILTIN_UNMEASURED, name) for name in CostModel.__slots__
             if name != "name"}
    path.write_text(json.dumps({"kind": KIND, "format_version": FORMAT_VERSION,
                                "costs_ns": {**costs, "quick_ns": 77}} | changes))
    return path


def test_a_calibration_is_a_cost_model(tmp_path: Path) -> None:
    model = read_timings(calibration(tmp_path / "c.json"), "calibration/c.json")
    assert (model.name, model.quick_ns, model.skip_ns) == (
        "calibration/c.json", 77, BUILTIN_UNMEASURED.skip_ns)


@pytest.mark.parametrize(("changes", "said"), [
    ({"kind": "other"}, "no calibration"), ({"format_version": 9}, "format_version 9"),
    ({"costs_ns": {"quick_ns": 1}}, "lacks costs"), ({"costs_ns": None}, "lacks costs")])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, changes: dict[str, object],
                                                  said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_timings(calibration(tmp_path / "c.json", **changes))


def test_negative_costs_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = calibration(tmp_path / "c.json")
    path.write_text(path.read_text().replace("77", "-77"))
    with pytest.raises(DataError, match="at least 0"):
        read_timings(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_timings(tmp_path / "none.json")
