"""Quantiles, intervals and paired differences against closed forms and known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.planning.hosts import fit_shares, hosts_needed, overcommit, safe_over_replicates
from planner.planning.intervals import (
    bootstrap_mean,
    difference,
    shifted,
    spread,
    student_quantile,
)
from planner.planning.samples import weighted_quantile


@pytest.mark.parametrize(("n_free", "expected"), [
    (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)])
def test_quantiles_of_students_t_are_those_of_the_tables(n_free: int, expected: float) -> None:
    assert student_quantile(0.975, n_free) == pytest.approx(expected, rel=1e-5)
    assert student_quantile(0.025, n_free) == pytest.approx(-expected, rel=1e-5)


def test_a_spread_is_the_median_and_the_bounds_of_nine_in_ten() -> None:
    found = spread(list(range(101)))
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((50, 5, 95))
    assert found.n == 101


def test_one_replicate_has_no_interval_and_none_has_nothing() -> None:
    one = spread([7])
    assert one is not None
    assert (one.median, one.low, one.high) == (7, None, None)
    assert spread([]) is None
    alone = difference(np.array([3.0]), np.array([1.0]))
    assert alone is not None
    assert (alone.mean, alone.low, alone.is_shown) == (2, None, False)
    assert alone.verdict(True) == "no difference shown"
    assert difference(np.array([]), np.array([])) is None


def test_refits_scatter_about_the_estimate_wherever_their_own_middle_lies() -> None:
    assert shifted(50, [100 + i for i in range(101)]) == pytest.approx((5, 95))
    assert shifted(50, [100]) is None
    # Student's t with two degrees of freedom, 2.92, of a deviation of 1.
    assert shifted(50, [99, 100, 101], 2) == pytest.approx((50 - 2.91999, 50 + 2.91999))


@pytest.mark.parametrize(("n", "draw", "mean"), [
    (3, "normal", 0.0), (7, "normal", 0.0), (8, "normal", 0.0), (20, "normal", 0.0),
    (20, "exponential", 1.0)])
def test_intervals_of_a_mean_cover_it_at_their_rate(n: int, draw: str, mean: float) -> None:
    rng = np.random.default_rng(5)
    n_tries = 300
    values = getattr(rng, draw)(size=(n_tries, n))
    hits = 0
    for i in range(n_tries):
        low, high = bootstrap_mean(values[i], 0.95, str(i))
        hits += low <= mean <= high
    # Three standard deviations of a share of 0.95 in so many tries are 0.038; a skewed
    # distribution costs a few per cent in small samples.
    assert hits / n_tries > (0.91 if draw == "normal" else 0.87)
    assert hits / n_tries < 0.995


def test_a_paired_difference_takes_out_what_replicates_share() -> None:
    rng = np.random.default_rng(1)
    world = rng.normal(0, 100, 10)
    first = world + 3 + rng.normal(0, 0.5, 10)
    found = difference(first, world)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low > 2
    assert found.high < 4
    assert found.verdict(True) == "better"
    assert found.verdict(False) == "worse"
    none = difference(world + rng.normal(0, 5, 10), world)
    assert none is not None
    assert none.verdict(True) == "no difference shown"


def test_an_interval_is_the_same_in_every_run() -> None:
    values = np.random.default_rng(2).normal(size=12)
    assert bootstrap_mean(values, 0.95, "a") == bootstrap_mean(values, 0.95, "a")
    assert bootstrap_mean(values, 0.95, "a") != bootstrap_mean(values, 0.95, "b")


def test_equal_differences_are_a_point() -> None:
    found = difference(np.arange(9.0) + 2, np.arange(9.0))
    assert found is not None
    assert (found.low, found.high, found.is_shown) == (2, 2, True)
    few = difference(np.arange(5.0) + 2, np.arange(5.0))
    assert few is not None
    assert (few.low, few.high, few.is_shown) == (2, 2, False)
    zero = difference(np.arange(9.0), np.arange(9.0))
    assert zero is not None
    assert not zero.is_shown


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_a_quantile_of_equal_weights_is_an_order_statistic(values: list[int],
                                                           share: float) -> None:
    found = weighted_quantile(np.array(values), np.ones(len(values)), share)
    assert found in values
    n_below = sum(value <= found for value in values)
    assert n_below >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=12),
       st.floats(0.0, 1.0))
def test_whole_weights_count_like_repeated_values(pairs: list[tuple[int, int]],
                                                  share: float) -> None:
    repeated = [value for value, weight in pairs for _ in range(weight)]
    values, weights = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if not repeated:
        with pytest.raises(ValueError, match="weight"):
            weighted_quantile(values, weights, share)
        return
    assert weighted_quantile(values, weights, share) == weighted_quantile(
        np.array(repeated), np.ones(len(repeated)), share)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0.5, 0.99))
def test_hosts_needed_are_enough_for_the_next_replicate_at_that_confidence(
        needed: list[int], confidence: float) -> None:
    n = hosts_needed(needed, confidence)
    assert n in needed
    # The next of equally likely orders is above the k-th highest with probability k / (n + 1).
    n_not_fewer = sum(each >= n for each in needed)
    n_more = sum(each > n for each in needed)
    assert n == max(needed) or n_more / (len(needed) + 1) <= 1 - confidence + 1e-9
    assert (n_not_fewer + 1) / (len(needed) + 1) > 1 - confidence - 1e-9
    shares = fit_shares(needed)
    assert [count for count, _ in shares] == list(range(min(needed) - 1, max(needed) + 1))
    assert shares[0][1] == 0
    assert shares[-1][1] == 1


def test_nobody_needs_hosts_that_nobody_counted() -> None:
    assert hosts_needed([], 0.95) is None
    assert fit_shares([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 0.9), min_size=1, max_size=60))
def test_what_is_safe_is_saved_in_nearly_all_replicates(shares: list[float]) -> None:
    safe = safe_over_replicates(shares, 0.95)
    assert sum(share >= safe.share for share in shares) >= 0.95 * len(shares) - 1e-9
    assert safe.is_backed == (len(shares) >= 19)
    assert safe.confidence <= len(shares) / (len(shares) + 1) + 1e-9
    assert overcommit(safe.share) == pytest.approx(1 / (1 - safe.share))


def test_overcommit_of_nothing_and_of_half() -> None:
    assert overcommit(0) == 1
    assert overcommit(0.5) == 2
    assert math.isfinite(overcommit(1.0))
