"""Answers known in closed form, and the vectors seen on or derived from the kernel."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.ksm import (
    Counters,
    EventTable,
    KernelVersion,
    Knobs,
    MergeSpaces,
    next_wake_ns,
)
from tests.ksm_worlds import site_table
from tests.oracles.kernel_ksm.advisor import ScanTimeAdvisor

MS = 1_000_000


def host(
    partitions: list[int],
    raw: list[int],
    *,
    limit: int = 256,
    mm: list[int] | None = None,
    frame: list[int] | None = None,
    events: EventTable | None = None,
    huge: bool = False,
    kernel: KernelVersion = "6.18",
    **knobs: Any,
) -> MergeSpaces:
    """A scanner per partition; one batch is one full scan, every 24 ms, unless `knobs` say else."""
    sites, is_zero = site_table(partitions, raw, mm=mm, frame=frame)
    if huge:
        sites = replace(sites, is_huge=np.ones(len(raw), np.uint8))
    n = max(partitions, default=0) + 1
    spaces = MergeSpaces(
        sites,
        events or EventTable.empty(),
        n_partitions=n,
        content_is_zero=is_zero,
        domain_is_sensitive=[False] * n,
        kernel=kernel,
    )
    changes = {"pages_to_scan": 10**9, "smart_scan": False, "max_page_sharing": limit, **knobs}
    for p in range(n):
        spaces.start_scanner(p, Knobs(**changes))
    return spaces


def after_scans(spaces: MergeSpaces, n_scans: int) -> Counters:
    while spaces.partition_counters()[0].full_scans < n_scans:
        spaces.advance(spaces.now_ns + 4 * MS)
    return spaces.counters()


def four(counters: Counters) -> tuple[int, int, int, int]:
    return (
        counters.pages_shared,
        counters.pages_sharing,
        counters.pages_unshared,
        counters.pages_volatile,
    )


@pytest.mark.parametrize(
    ("n", "limit", "shared", "sharing", "unshared"),
    [
        (1, 256, 0, 0, 1),
        (2, 256, 1, 1, 0),
        (256, 256, 1, 255, 0),
        (257, 256, 1, 255, 1),
        (258, 256, 2, 256, 0),
        (512, 256, 2, 510, 0),
        (513, 256, 2, 510, 1),
        (514, 256, 3, 511, 0),
        (1000, 256, 4, 996, 0),
        (7, 2, 3, 3, 1),
    ],
)
def test_equal_pages_fill_stable_nodes_up_to_max_page_sharing(
    n: int, limit: int, shared: int, sharing: int, unshared: int
) -> None:
    assert four(after_scans(host([0] * n, [1] * n, limit=limit), 3)) == (
        shared,
        sharing,
        unshared,
        0,
    )


@given(st.integers(1, 400), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_the_closed_form_of_max_page_sharing_holds(n: int, limit: int) -> None:
    rest = n % limit
    shared = n // limit + (rest >= 2)
    unshared = int(rest == 1)
    now = after_scans(host([0] * n, [1] * n, limit=limit), 2)
    assert four(now) == (shared, n - shared - unshared, unshared, 0)
    assert now.stable_nodes == shared
    assert now.stable_node_chains == int(shared > 1)


def test_vector_a_of_1000_equal_pages_holds() -> None:
    spaces = host([0] * 1000, [1] * 1000)
    first = after_scans(spaces, 1)
    assert four(first) == (0, 0, 0, 1000)
    assert first.general_profit_bytes == -64_000
    second = after_scans(spaces, 2)
    assert four(second) == (4, 996, 0, 0)
    assert second.general_profit_bytes == 4_015_616
    assert (second.stable_node_chains, second.stable_node_dups) == (1, 4)
    assert four(after_scans(spaces, 6)) == (4, 996, 0, 0)


def test_vector_c_of_1000_unique_pages_holds() -> None:
    spaces = host([0] * 1000, list(range(1, 1001)))
    assert four(after_scans(spaces, 1)) == (0, 0, 0, 1000)
    for scan in (2, 3, 10):
        assert four(after_scans(spaces, scan)) == (0, 0, 1000, 0)


def test_vector_d_of_500_pairs_in_two_mms_holds() -> None:
    spaces = host([0] * 1000, list(range(1, 501)) * 2, mm=[0] * 500 + [1] * 500)
    now = after_scans(spaces, 2)
    assert four(now) == (500, 500, 0, 0)
    assert now.general_profit_bytes == 1_984_000


def test_vector_b_of_unique_pages_is_processed_ever_more_seldom() -> None:
    spaces = host([0] * 1000, list(range(1, 1001)), smart_scan=True)
    processed = []
    scanned = 0
    for scan in range(1, 17):
        now = after_scans(spaces, scan)
        processed.append((now.pages_scanned - scanned) // 1000)
        scanned = now.pages_scanned
        n = 0 if scan == 1 else 1000 * processed[-1]
        assert four(now) == (0, 0, n, 1000 - n)
    assert processed == [1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert now.pages_skipped == 9000


def test_vector_i_of_zero_pages_costs_no_items_in_the_end() -> None:
    spaces = host([0] * 100, [0] * 100, use_zero_pages=True)
    second = after_scans(spaces, 2)
    assert (second.ksm_zero_pages, second.pages_volatile, second.rmap_items) == (100, 100, 100)
    third = after_scans(spaces, 3)
    assert (third.ksm_zero_pages, third.pages_volatile, third.rmap_items) == (100, 0, 0)
    assert third.general_profit_bytes == 409_600
    assert (third.saved_zero_frames, third.saved_frames, third.frames) == (100, 0, 0)
    assert third.unmerge_frames == 100


#: Scans from the first sight of the second copy to the merge, by how many scans it is later.
PHASES = {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 3, 6: 2, 7: 1, 8: 5, 9: 13, 10: 3, 11: 2, 12: 1,
          13: None, 14: 8, 15: None, 16: None, 17: 5, 18: 13, 19: 3, 20: 2, 21: 1, 22: None,
          23: 8, 24: None, 25: None, 26: 5, 27: 13, 28: 3, 29: 2, 30: 1, 31: None}


@pytest.mark.parametrize(("distance", "entry"), PHASES.items())
def test_smart_scan_decides_by_their_phases_when_two_pages_merge(
    distance: int, entry: int | None
) -> None:
    late = EventTable(
        np.array([max(0, distance * 24 * MS - 12 * MS)]),
        *(np.array([value], np.int32) for value in (1, 0, 1)),
    )
    spaces = host([0, 0], [1, -1], events=late, smart_scan=True)
    for scan in range(1, 130):
        if after_scans(spaces, scan).pages_sharing:
            assert scan - 1 - distance == entry
            return
    assert entry is None


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_splitting_a_huge_page_gives_its_zeroes_back_outside_all_counters(
    kernel: KernelVersion,
) -> None:
    # One huge page: two equal pages, 10 others, 500 of zeroes.
    raw = [1, 1, *range(2, 12), *[0] * 500]
    now = after_scans(host([0] * 512, raw, huge=True, kernel=kernel, limit=1000), 6)
    if kernel == "6.1":
        assert (now.pages_shared, now.pages_sharing) == (2, 500)
        assert (now.saved_frames, now.saved_zero_frames) == (1, 499)
    else:
        assert (now.pages_shared, now.pages_sharing, now.ksm_zero_pages) == (1, 1, 0)
        assert (now.saved_frames, now.saved_zero_frames, now.rmap_items) == (1, 500, 12)
    assert now.frames == now.base_frames - now.saved_frames - now.saved_zero_frames


def test_a_huge_page_that_nothing_merges_with_stays_whole() -> None:
    raw = [*range(1, 512), 0]
    now = after_scans(host([0] * 512, raw, huge=True), 5)
    assert (now.frames, now.saved_zero_frames, now.pages_unshared) == (512, 0, 512)


def test_the_advisor_settles_where_its_arithmetic_says() -> None:
    n = 20_000
    spaces = host([0] * n, list(range(1, n + 1)), advisor_mode="scan-time",
                  advisor_target_scan_time=10)
    oracle = ScanTimeAdvisor(target_scan_time=10)
    oracle.switch_on()
    started_ns = spaces.now_ns
    for seq in range(1, 12):
        (scan,) = next(found for _ in range(10**6) if (
            found := spaces.advance(spaces.now_ns + 4 * MS)))
        assert scan.seq == seq
        oracle.start(started_ns)
        assert spaces.counters().pages_to_scan == oracle.stop(
            scan.time_ns, spaces.counters().merge_cpu_ns)
        started_ns = next_wake_ns(scan.time_ns, 20, 250)
    assert spaces.counters().pages_to_scan != 500


def test_on_6_1_a_new_copy_merges_with_a_stable_page_at_its_first_visit() -> None:
    births = EventTable(
        np.array([70 * MS]), *(np.array([value], np.int32) for value in (2, 0, 2)))
    for kernel, scan in ("6.1", 4), ("6.12", 5), ("6.18", 5):
        spaces = host([0] * 3, [1, 1, -1], events=births, kernel=kernel)
        assert after_scans(spaces, scan - 1).pages_sharing == 1
        assert after_scans(spaces, scan).pages_sharing == 2


def test_an_mm_that_comes_during_a_scan_waits_for_the_next_one() -> None:
    # mm 0 and 1 from the start, mm 2 comes after the first of five batches.
    births = EventTable(
        np.full(10, 12 * MS), np.arange(20, 30, dtype=np.int32), np.full(10, 5, np.int32),
        np.arange(20, 30, dtype=np.int32))
    raw = [*range(1, 21), *[-1] * 10]
    spaces = host([0] * 30, raw, mm=[0] * 10 + [1] * 10 + [2] * 10, events=births,
                  pages_to_scan=5)
    first = after_scans(spaces, 1)
    assert first.pages_scanned == 20
    spaces.advance(spaces.now_ns + 24 * MS)
    # It stands before mm 0, where the cursor was, so it comes first.
    assert spaces.partition_counters()[0].pages_scanned == 25
    assert spaces.counters().rmap_items == 25


def test_vector_e_of_a_third_equal_mm_merges_at_its_second_visit() -> None:
    births = EventTable(
        np.full(500, 70 * MS),
        np.arange(1000, 1500, dtype=np.int32),
        np.arange(500, dtype=np.int32),
        np.arange(1500, 2000, dtype=np.int32),
    )
    raw = list(range(1, 501)) * 2 + [-1] * 500
    spaces = host([0] * 1500, raw, mm=[0] * 500 + [1] * 500 + [2] * 500, events=births)
    assert four(after_scans(spaces, 3)) == (500, 500, 0, 0)  # at 0, 24 and 48 ms
    assert four(after_scans(spaces, 4)) == (500, 500, 0, 500)
    assert four(after_scans(spaces, 5)) == (500, 1000, 0, 0)


def test_vector_f_of_rewritten_pages_holds() -> None:
    events = EventTable(
        np.full(10, 90 * MS),  # before the fifth scan, at 96 ms
        np.arange(10, dtype=np.int32),
        np.arange(1, 11, dtype=np.int32),
        np.arange(300, 310, dtype=np.int32),
    )
    sites, _ = site_table([0] * 300, [1] * 300)
    spaces = MergeSpaces(
        sites,
        events,
        n_partitions=1,
        content_is_zero=[False] * 11,
        domain_is_sensitive=[False],
    )
    spaces.start_scanner(0, Knobs(pages_to_scan=10**6))
    assert four(after_scans(spaces, 4)) == (2, 298, 0, 0)
    assert four(after_scans(spaces, 5)) == (2, 288, 0, 10)
    after = after_scans(spaces, 6)
    assert four(after) == (2, 288, 10, 0)
    assert after.cow_breaks == 10


def test_vector_g_of_a_fork_after_merging_frees_no_memory() -> None:
    # mm 0 and mm 1 hold 100 equal pairs; mm 2 is forked from mm 1 once they are merged.
    forks = EventTable(
        np.full(100, 50 * MS),
        np.arange(200, 300, dtype=np.int32),
        np.arange(100, dtype=np.int32),
        np.arange(100, 200, dtype=np.int32),
    )
    raw = list(range(1, 101)) * 2 + [-1] * 100
    spaces = host([0] * 300, raw, mm=[0] * 100 + [1] * 100 + [2] * 100, events=forks)
    before = after_scans(spaces, 2)
    assert four(before) == (100, 100, 0, 0)
    after = after_scans(spaces, 5)
    assert four(after) == (100, 200, 0, 0)
    assert before.saved_frames == after.saved_frames == 100
    assert before.frames == after.frames == 100


def test_vector_h_of_fork_shared_unique_pages_stays_half_volatile() -> None:
    spaces = host(
        [0] * 200, list(range(1, 101)) * 2, mm=[0] * 100 + [1] * 100, frame=list(range(100)) * 2
    )
    for scan in (2, 3, 8):
        now = after_scans(spaces, scan)
        assert four(now) == (0, 0, 100, 100)
        assert now.saved_frames == 0


@pytest.mark.parametrize("n_partitions", [1, 2, 5])
def test_equal_pages_leave_one_stable_node_per_partition(n_partitions: int) -> None:
    spaces = host([i * n_partitions // 60 for i in range(60)], [1] * 60)
    assert four(after_scans(spaces, 2)) == (n_partitions, 60 - n_partitions, 0, 0)


def test_distinct_pages_share_nothing_and_cost_metadata() -> None:
    now = after_scans(host([0] * 300, list(range(1, 301)), mm=[0] * 100 + [1] * 200), 4)
    assert now.saved_frames == now.saved_zero_frames == now.pages_sharing == 0
    assert now.metadata_bytes == 300 * 64 + 2 * 48
    assert now.general_profit_bytes == -300 * 64


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_one_partition_per_domain_never_saves_more_than_one_shared(
    pages: list[tuple[int, int]],
) -> None:
    pages = sorted(pages, key=lambda page: page[0])
    raw = [content for _, content in pages]
    spaces = host([domain for domain, _ in pages], raw)
    spaces.advance(100 * MS)
    apart = spaces.counters()
    shared = after_scans(host([0] * len(raw), raw), 3)
    saved = shared.saved_frames + shared.saved_zero_frames
    assert apart.saved_frames + apart.saved_zero_frames <= saved
    assert saved == len(raw) - len(set(raw))
    assert apart.pages_sharing == len(raw) - len(set(pages))
    assert shared.saved_zero_frames == max(0, Counter(raw)[0] - 1)


def test_the_first_full_scan_merges_nothing_and_later_ones_change_only_the_work() -> None:
    rng = np.random.default_rng(3)
    raw = rng.integers(1, 200, 500).tolist()
    spaces = host([0] * 500, raw, pages_to_scan=37)
    first = after_scans(spaces, 1)
    assert first.saved_frames == 0
    second = after_scans(spaces, 2)
    assert second.saved_frames == 500 - len(set(raw))
    third = after_scans(spaces, 3)
    assert four(third)[:3] == (four(second)[0], four(second)[1], four(third)[2])
    assert third.frames == second.frames
    assert third.merge_cpu_ns > second.merge_cpu_ns
    assert third.pages_scanned == 1500


def test_shared_sharing_unshared_and_volatile_add_up_to_the_rmap_items() -> None:
    rng = np.random.default_rng(4)
    n = 400
    times = np.sort(rng.integers(0, 900 * MS, 600))
    events = EventTable(
        times,
        rng.integers(0, n, 600).astype(np.int32),
        rng.integers(-1, 20, 600).astype(np.int32),
        np.arange(n, n + 600, dtype=np.int32),
    )
    raw = rng.integers(1, 100, n)
    assert len(set(raw.tolist())) > 20  # the writes use contents 0 to 19
    spaces = host([0] * n, raw.tolist(), events=events, pages_to_scan=90)
    for _ in range(100):
        spaces.advance(spaces.now_ns + 10 * MS)
        now = spaces.counters()
        assert sum(four(now)) == now.rmap_items
        assert min(four(now)) >= 0
        assert now.saved_frames + now.saved_zero_frames == now.base_frames - now.frames
        # Nothing is shared by fork here; counters may lag behind.
        assert now.unmerge_frames == now.saved_frames + now.saved_zero_frames


@pytest.mark.parametrize(("hz", "period_ms"), [(250, 24), (1000, 21), (100, 30)])
def test_the_default_sleep_gives_the_period_of_the_timer_wheel(hz: int, period_ms: int) -> None:
    sites, is_zero = site_table([0] * 1000, list(range(1, 1001)))
    spaces = MergeSpaces(
        sites,
        EventTable.empty(),
        n_partitions=1,
        content_is_zero=is_zero,
        domain_is_sensitive=[False],
        hz=hz,
    )
    spaces.start_scanner(0, Knobs(smart_scan=False))
    for batch in range(1, 8):
        spaces.advance((batch - 1) * period_ms * MS)
        assert spaces.counters().pages_scanned == (batch - 1) * 100
        spaces.advance((batch - 1) * period_ms * MS + 1)
        assert spaces.counters().pages_scanned == batch * 100


@pytest.mark.parametrize(
    ("armed_ms", "sleep_ms", "hz", "fires_ms"),
    [
        (0.0, 20, 250, 24),
        (3.9, 20, 250, 24),
        (4.0, 20, 250, 28),  # one jiffy later
        (1.0, 50, 250, 56),
        (1.0, 5, 250, 12),
        (0.0, 62, 1000, 63),
        (0.0, 63, 1000, 64),  # from here on multiples of 8 jiffies
        (2.0, 70, 1000, 80),
        (0.0, 503, 1000, 504),
        (0.0, 504, 1000, 512),  # multiples of 64
        (9.0, 504, 1000, 576),
        (0.0, 60_000, 250, 61_440),  # 15000 jiffies: multiples of 512, of 2048 ms
        (7.3, 0, 250, 7.3),
    ],
)
def test_a_sleep_ends_where_the_timer_wheel_puts_it(
    armed_ms: float, sleep_ms: int, hz: int, fires_ms: float
) -> None:
    assert next_wake_ns(round(armed_ms * MS), sleep_ms, hz) == round(fires_ms * MS)


@pytest.mark.parametrize(("n", "budget"), [(10, 3), (12, 3), (2, 3), (3, 3), (10, 1)])
def test_a_full_scan_takes_one_batch_more_than_its_whole_batches(n: int, budget: int) -> None:
    spaces = host([0] * n, list(range(1, n + 1)), pages_to_scan=budget)
    n_batches = n // budget + 1
    spaces.advance((3 * n_batches - 1) * 24 * MS)
    assert spaces.counters().full_scans == 2
    spaces.advance((3 * n_batches - 1) * 24 * MS + 1)
    assert spaces.counters().full_scans == 3


def test_ksmd_sleeps_until_the_first_mm_is_registered() -> None:
    birth = EventTable(
        np.array([1000 * MS]), *(np.array([value], np.int32) for value in (0, 0, 0)))
    sites, _ = site_table([0], [-1])
    spaces = MergeSpaces(sites, birth, n_partitions=1, content_is_zero=[False],
                         domain_is_sensitive=[False])
    spaces.start_scanner(0)
    assert spaces.advance(1000 * MS) == []
    (scan,) = spaces.advance(1000 * MS + 1)
    assert scan.time_ns > 1000 * MS
    assert spaces.counters().merge_cpu_ns == scan.time_ns - 1000 * MS


def test_a_batch_longer_than_a_jiffy_delays_the_next_by_whole_jiffies() -> None:
    n = 60_000
    spaces = host([0] * n, list(range(1, n + 1)), pages_to_scan=1000)
    after_scans(spaces, 2)
    start_ns, scanned = spaces.now_ns, spaces.counters().pages_scanned
    spaces.advance(start_ns + 1000 * MS)
    rate = spaces.counters().pages_scanned - scanned
    # 1000 pages take about two jiffies of 4 ms: a period of 28 or 32 ms was seen as 30.8.
    assert 1_000_000 / 32.1 < rate < 1_000_000 / 27.9
