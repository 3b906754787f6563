from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.kernels import dedup
from planner.kernels.dedup import Column, DedupCounts, count_duplicates, count_segments
from tests.oracles.dedup import slow_counts, slow_twins

ZERO = 0x5EED5EED5EED5EED
#: Compiled or not: the lanes without the compiler run the same tests on less.
IS_SLOW = os.environ.get("NUMBA_DISABLE_JIT") == "1"

Page = tuple[int, int, int, int]  # label, guest, hash, frame id


def arrays(pages: list[Page]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32],
                                       npt.NDArray[np.int64], npt.NDArray[np.int32],
                                       npt.NDArray[np.int32]]:
    """Sorted pages as the kernel's columns: one segment per run of (label, guest)."""
    hashes = np.array([p[2] for p in pages], np.uint64)
    frames = np.array([p[3] for p in pages], np.int32)
    pairs = np.array([p[:2] for p in pages], np.int32).reshape(-1, 2)
    first = np.ones(len(pages), bool)
    first[1:] = np.any(pairs[1:] != pairs[:-1], axis=1)
    starts = np.append(np.flatnonzero(first), len(pages)).astype(np.int64)
    return hashes, frames, starts, pairs[first, 0], pairs[first, 1]


def check(pages: list[Page], **options: int) -> DedupCounts:
    pages = sorted(pages, key=lambda p: p[:2])
    counted = count_segments(*arrays(pages), ZERO, **options)
    assert counted.total()._asdict() == slow_counts(pages, ZERO)
    twins = {
        (int(label), int(guest)): tuple(int(n) for n in row[Column.TWINS :])
        for label, guest, row in zip(*counted, strict=True) if row[Column.NEW : Column.TWINS].any()
    }
    assert twins == slow_twins(pages, ZERO)
    return counted.total()


#: Few contents and frames, so that they meet; extreme values beside small ones.
HASHES = st.one_of(st.integers(0, 6), st.sampled_from([ZERO, ZERO ^ 1, 2**64 - 1, 2**63]),
                   st.integers(0, 2**64 - 1))
PAGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), HASHES,
                           st.one_of(st.just(-1), st.integers(0, 5))), max_size=60)


@settings(max_examples=30 if IS_SLOW else 300, deadline=None)
@given(PAGES, st.integers(1, 3))
def test_counts_equal_the_oracle_in_dicts(pages: list[Page], n_threads: int) -> None:
    check(pages, n_threads=n_threads)


def generated(n_pages: int, n_contents: int, seed: int) -> list[Page]:
    """Pages with zero pages, shared frames across guests and labels, and skewed copies."""
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, 2**64, n_contents, dtype=np.uint64)
    contents[0] = ZERO
    chosen = contents[(n_contents * rng.random(n_pages) ** 3).astype(np.int64)]
    frames = np.where(rng.random(n_pages) < 0.2, rng.integers(0, n_pages // 10 + 1, n_pages), -1)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(
        rng.integers(0, 4, n_pages), rng.integers(0, 6, n_pages), chosen, frames, strict=True)]


@pytest.mark.parametrize("n_contents", [1, 2, 40, 3000])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_larger_inputs_equal_the_oracle(n_contents: int, n_threads: int) -> None:
    n_pages = 500 if IS_SLOW else 20_000
    check(generated(n_pages, n_contents, seed=n_contents), n_threads=n_threads)


def test_no_page_counts_nothing() -> None:
    assert set(check([])) == {0}
    starts = np.zeros(4, np.int64)
    labels = np.array([0, 0, 1], np.int32)
    counted = count_segments(np.empty(0, np.uint64), np.empty(0, np.int32), starts, labels,
                             np.array([1, 2, 0], np.int32), ZERO)
    assert counted.counts.shape == (3, len(Column))
    assert not counted.counts.any()


def test_one_page_is_unique() -> None:
    counts = check([(0, 0, 7, -1)])
    assert (counts.n_frames, counts.n_unique, counts.n_duplicates) == (1, 1, 0)


def test_one_zero_page_is_no_content() -> None:
    counts = check([(0, 0, ZERO, -1)])
    assert (counts.n_contents, counts.n_zero, counts.n_zero_duplicates) == (0, 1, 0)


def test_a_hash_of_zero_is_a_content_like_another() -> None:
    assert check([(0, 0, 0, -1), (0, 1, 0, -1)]).n_duplicates == 1


def test_all_equal_pages_split_by_guest_and_label() -> None:
    pages = [(label, guest, 99, -1) for label in range(2) for guest in range(3) for _ in range(4)]
    counts = check(pages)
    assert counts.n_contents == counts.n_shared == 1
    assert counts.n_duplicates == 23
    assert (counts.n_same_guest, counts.n_same_label, counts.n_other_label) == (18, 4, 1)
    assert (counts.n_shared_in_label, counts.n_duplicates_in_label) == (2, 22)
    assert (counts.n_shared_in_guest, counts.n_duplicates_in_guest) == (6, 18)


def test_all_distinct_pages_share_nothing() -> None:
    counts = check([(0, i % 3, 1000 + i, -1) for i in range(300)])
    assert counts.n_contents == counts.n_unique == 300
    assert counts.n_duplicates == counts.n_shared == 0


def test_a_frame_shared_across_labels_is_no_saving_and_belongs_to_the_first() -> None:
    pages = [(0, 0, 5, 3), (1, 1, 5, 3), (1, 2, 5, -1)]
    counts = check(pages)
    assert (counts.n_frames, counts.n_already_shared, counts.n_duplicates) == (2, 1, 1)
    assert counts.n_other_label == 1
    rows = count_segments(*arrays(pages), ZERO).counts
    assert rows[:, Column.ALREADY_SHARED].tolist() == [0, 1, 0]
    assert rows[:, Column.TWINS].tolist() == [1, 0, 1]


def test_one_guest_under_two_labels_is_cut_by_the_boundary() -> None:
    counts = check([(0, 7, 5, -1), (0, 7, 5, -1), (1, 7, 5, -1)])
    assert (counts.n_same_guest, counts.n_same_label, counts.n_other_label) == (1, 0, 1)


def test_segments_may_lie_anywhere_in_the_array() -> None:
    pages = sorted(generated(400, 30, seed=4), key=lambda p: p[:2])
    hashes, frames, starts, label, guest = arrays(pages)
    expected = count_duplicates(hashes, frames, starts, label, guest, ZERO)
    lengths = np.diff(starts)
    order = np.random.default_rng(1).permutation(len(lengths))
    gap = 3  # pages that no segment holds
    new_starts = np.empty(len(lengths), np.int64)
    new_starts[order] = np.concatenate([[0], np.cumsum(lengths[order] + gap)[:-1]])
    moved = np.full(len(pages) + gap * len(lengths), 12345, np.uint64)
    moved_frames = np.full(len(moved), -1, np.int32)
    for old, new, n in zip(starts[:-1], new_starts, lengths, strict=True):
        moved[new : new + n] = hashes[old : old + n]
        moved_frames[new : new + n] = frames[old : old + n]
    assert count_duplicates(moved, moved_frames, new_starts, label, guest, ZERO,
                            segment_ends=new_starts + lengths) == expected


@pytest.mark.parametrize("n_guests", [600, 2000])
def test_more_guests_than_the_least_number_of_buckets_make_more_buckets(n_guests: int) -> None:
    check(many_guests(n_guests), n_threads=2)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_more_guests_than_a_word_has_room_for_are_counted_in_windows(
        monkeypatch: pytest.MonkeyPatch, n_threads: int) -> None:
    n_guests = 3000 if IS_SLOW else 20_000
    if IS_SLOW:
        monkeypatch.setattr(dedup, "_MAX_BUCKET_BITS", dedup._MIN_BUCKET_BITS)
    assert n_guests > 2 << dedup._MAX_BUCKET_BITS
    assert check(many_guests(n_guests), n_threads=n_threads).n_other_label > 0


def many_guests(n_guests: int) -> list[Page]:
    rng = np.random.default_rng(3)
    return [(guest // 10, guest, int(h), -1) for guest in range(n_guests)
            for h in rng.integers(0, 500, 3)]


def test_contents_that_crowd_one_bucket_are_counted() -> None:
    n_pages = 600 if IS_SLOW else 30_000
    inverse = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    pages = []
    for i in range(n_pages):
        # Undo the mixing for words that all fall into bucket 3 of 512.
        mixed = 3 << 55 | (i % (n_pages * 2 // 3)) << 8 | 1
        x = mixed * inverse & (1 << 64) - 1
        pages.append((i // 7 % 3, i % 5, x ^ x >> 32 ^ ZERO, -1))
    assert check(pages, n_threads=2).n_contents == n_pages * 2 // 3


def test_counts_do_not_depend_on_the_number_of_threads() -> None:
    pages = sorted(generated(500 if IS_SLOW else 30_000, 2000, seed=8), key=lambda p: p[:2])
    columns = arrays(pages)
    one = count_segments(*columns, ZERO, n_threads=1).counts
    for n_threads in (2, 3, 7):
        np.testing.assert_array_equal(
            count_segments(*columns, ZERO, n_threads=n_threads).counts, one)


def test_counters_hold_more_than_32_bits() -> None:
    # Counters are added to what they hold: start them where 32 bits would overflow.
    start = 2**31 - 2
    hashes = np.array([1, 1, 1, 1], np.uint64)
    starts, ends = np.array([0], np.int64), np.array([4], np.int64)
    group = np.zeros(1, np.int64)
    bits = np.uint64(8)
    no_repeats = np.empty(0, np.uint8)
    sizes = np.zeros(256, np.int64)
    counts = np.full((1, 3), start, np.int64)
    with np.errstate(over="ignore"):
        dedup._histogram(hashes, no_repeats, starts, ends, group, np.uint64(0), bits, sizes,
                         counts)
        words = np.empty(4, np.uint64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        dedup._scatter(hashes, no_repeats, starts, ends, group, np.uint64(0), bits, np.int64(0),
                       offsets[:-1].copy(), words)
        relation = np.full(8, 2 * start, np.int64)
        credit = np.full(8, 2 * start, np.int64)
        dedup._count_sorted(words, bits, np.zeros(1, np.int64), relation, credit)
    assert counts[0, 0] == start + 4 > 2**31
    assert relation[7] == 2 * start + 3 == 2**32 - 1
    assert credit[7] == 2 * start + 1
    # And sums over groups are 64-bit too.
    rows = np.full((5, len(Column)), 2**31, np.int64)
    labels = np.arange(5, dtype=np.int32)
    assert dedup.SegmentCounts(labels, labels, rows).total().n_pages == 5 * 2**31


@pytest.mark.parametrize(("change", "message"), [
    ({"frame_ids": np.zeros(3, np.int32)}, "frame_ids must be empty or as long"),
    ({"segment_starts": np.array([0, 1], np.int64)}, "one entry more"),
    ({"segment_guest": np.zeros(1, np.int32)}, "differ in length"),
    ({"segment_starts": np.array([0, 3, 5], np.int64)}, "within the pages"),
    ({"segment_label": np.array([1, 0], np.int32)}, "ascend"),
    ({"segment_guest": np.array([1, 0], np.int32)}, "ascend"),
    ({"zero_hash": -1}, "unsigned 64-bit"),
    ({"n_threads": 0}, "positive"),
])
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, object],
                                                     message: str) -> None:
    arguments: dict[str, object] = {
        "hashes": np.arange(4, dtype=np.uint64), "frame_ids": np.empty(0, np.int32),
        "segment_starts": np.array([0, 2, 4], np.int64),
        "segment_label": np.zeros(2, np.int32), "segment_guest": np.array([0, 1], np.int32),
        "zero_hash": ZERO}
    with pytest.raises(ValueError, match=message):
        count_duplicates(**{**arguments, **change})


def run_lane(**variables: str) -> None:
    names = ("oracle", "no_page", "one_page", "zero", "all_equal", "all_distinct", "frame_shared",
             "windows", "crowd")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__,
         "-k", " or ".join(names)],
        env={**os.environ, **variables}, capture_output=True, text=True,
        cwd=Path(__file__).parent.parent, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(IS_SLOW, reason="this is that lane")
def test_kernels_count_the_same_without_the_compiler() -> None:
    run_lane(NUMBA_DISABLE_JIT="1")


@pytest.mark.skipif(IS_SLOW or "NUMBA_BOUNDSCHECK" in os.environ, reason="this is a lane")
def test_kernels_stay_within_their_arrays(tmp_path: Path) -> None:
    # Compiled anew: the cache does not know about the switch.
    run_lane(NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
