"""Merge spaces against their slow twin, and what the twin takes for granted."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.errors import UsageError
from planner.kernels import ksmcalls
from planner.kernels import ksmstate as k
from planner.ksm import (
    BUILTIN_UNMEASURED,
    EventTable,
    Knobs,
    Machine,
    MergeSpaces,
    SiteTable,
)
from planner.ksm.records import UNSEEN
from tests.ksm_worlds import compare, random_world, site_table

PROGRAM = Path(__file__).parent / "ksm_worlds.py"
MS = 1_000_000


def spaces_of(
    sites: SiteTable,
    is_zero: list[bool],
    events: EventTable | None = None,
    n: int = 1,
    **options: object,
) -> MergeSpaces:
    return MergeSpaces(
        sites,
        events or EventTable.empty(),
        n_partitions=n,
        content_is_zero=is_zero,
        domain_is_sensitive=[False] * 8,
        **options,
    )


def writes(*rows: tuple[int, int, int, int]) -> EventTable:
    """Events of (time, site, content, frame)."""
    table = np.array(rows, np.int64)
    return EventTable(table[:, 0], *(table[:, i].astype(np.int32) for i in (1, 2, 3)))


def test_random_scripts_agree_with_the_slow_twin_step_by_step() -> None:
    total: dict[str, int] = {}
    for seed in range(150):
        for what, count in compare(seed).items():
            total[what] = total.get(what, 0) + count
    # The scripts are worth something only if everything happened.
    assert all(count > 10 for count in total.values()), total


def test_random_scripts_agree_when_every_index_is_checked(tmp_path: Path) -> None:
    # numpy checks indices where numba does not.
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(PROGRAM), "0", "300"], env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", range(6))
def test_with_exact_trees_huge_pages_are_split_as_on_a_machine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_mms, n = 3, 1024
    share = float(rng.choice([0.3, 0.9]))
    raw = np.where(rng.random(n_mms * n) < share, 0, rng.integers(1, 1500, n_mms * n)).tolist()
    sites, is_zero = site_table([0] * len(raw), raw, mm=np.repeat(range(n_mms), n).tolist())
    sites = replace(sites, vpn=512 + np.arange(n_mms * n) % n, is_huge=np.ones(len(raw), np.uint8))
    ids = dict(zip(raw, sites.content.tolist(), strict=True))
    spaces = MergeSpaces(sites, EventTable.empty(), n_partitions=1, content_is_zero=is_zero,
                         domain_is_sensitive=[False] * 3, trees="exact")
    keys = spaces.world.keys
    machine = Machine("6.18", key=lambda content: int(keys[ids.get(content, 0)]))
    for p in range(1, n_mms + 1):
        machine.spawn(p)
        machine.map(p, 512, n, True)
        machine.write(p, 512, raw[(p - 1) * n : p * n])
        machine.advise(p, 512, n)
    spaces.start_scanner(0, Knobs(pages_to_scan=10**9))
    blocked = 0
    for scan in range(12):
        while not spaces.advance(spaces.now_ns + MS):
            pass
        machine.full_scan()
        now, real = spaces.counters(), machine.counters()
        real.pop("general_profit")
        assert {name: getattr(now, name) for name in real} == real
        assert now.frames == machine.physical_frames()
        blocked = max(blocked, now.pages_volatile) if scan else 0
    assert blocked > 100  # the searches that ended at a vanished page


def test_exact_trees_give_way_to_tables_that_go_on_alike() -> None:
    rng = np.random.default_rng(1)
    raw = np.where(rng.random(2048) < 0.5, 0, rng.integers(1, 1500, 2048)).tolist()
    sites, is_zero = site_table([0] * 2048, raw)
    sites = replace(sites, is_huge=(np.arange(2048) < 1024).astype(np.uint8))
    seen = []
    for trees in ("exact", "auto"):
        spaces = spaces_of(sites, is_zero, trees=trees)
        spaces.start_scanner(0, Knobs(pages_to_scan=300))
        scans = spaces.advance(10_000 * MS)
        assert len(scans) > 40
        seen.append((scans, spaces.counters()))
        assert bool(spaces.world.host[k.H_EXACT]) == (trees == "exact")
    assert seen[0] == seen[1]


def test_a_difference_from_the_twin_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ksmcalls.break_range

    def forgetful(p: int, first: int, last: int, world: object) -> int:
        return int(real(p, first, max(first, last - 1), world))

    monkeypatch.setattr(ksmcalls, "break_range", forgetful)
    with pytest.raises(AssertionError, match="seed"):
        all(compare(seed) for seed in range(20))


def test_time_may_pass_in_any_steps() -> None:
    for seed in range(20):
        world = random_world(seed)
        at_once, in_steps = (
            MergeSpaces(world.sites, world.events, **world.options) for _ in range(2)
        )
        for spaces in (at_once, in_steps):
            for p, knobs in enumerate(world.knobs):
                spaces.start_scanner(p, replace(knobs, pages_to_scan=3, sleep_millisecs=7))
        steps = [scan for t in range(401) for scan in in_steps.advance(t * 5 * MS)]
        assert at_once.advance(2000 * MS) == steps
        assert at_once.partition_counters() == in_steps.partition_counters()


def test_the_fast_forward_takes_over_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        world = random_world(seed)
        ways = []
        for after_visits in (1 << 60, 50):
            monkeypatch.setattr("planner.ksm.space._FAST_AFTER_VISITS", after_visits)
            spaces = MergeSpaces(world.sites, world.events, **world.options)
            for p, knobs in enumerate(world.knobs):
                spaces.start_scanner(p, replace(knobs, pages_to_scan=7))
            seen: list[object] = []
            for step in range(12):
                seen += [spaces.advance(spaces.now_ns + 200 * MS), spaces.partition_counters()]
                if step == 5:
                    spaces.start_scanner(0, replace(world.knobs[0], pages_to_scan=3))
                if step == 9:
                    seen.append(spaces.merge_range(0, int(world.sites.mm[0]), 0, 600))
            ways.append(seen)
        assert ways[0] == ways[1]


def test_more_full_scans_than_the_log_holds_are_all_reported() -> None:
    sites, is_zero = site_table([0] * 3, [1, 2, 3])
    spaces = spaces_of(sites, is_zero, hz=1000)
    spaces.start_scanner(0, Knobs(pages_to_scan=10, sleep_millisecs=1))
    scans = spaces.advance(10_000 * MS)
    assert [scan.seq for scan in scans] == list(range(1, 5001))  # one batch every 2 ms
    assert spaces.counters().full_scans == 5000


def test_the_scanned_page_of_a_pair_keeps_its_frame_and_a_write_gives_a_new_one() -> None:
    sites, is_zero = site_table([0, 0, 0], [1, 1, 1])
    events = writes((50 * MS, 1, 1, 3), (60 * MS, 2, -1, 0))
    spaces = spaces_of(sites, [*is_zero, False], events)
    assert spaces.merge_range(0, 0, 0, 2).merged_pages == 1
    after = spaces.counters()
    assert (after.base_frames, after.frames, after.saved_frames) == (3, 2, 1)
    assert spaces.merge_range(0, 0, 2, 3).merged_pages == 1
    assert spaces.counters().saved_frames == 2
    spaces.advance(50 * MS)
    broken = spaces.counters()
    # The counters lag: nobody has passed the written page yet.
    assert (broken.cow_breaks, broken.saved_frames, broken.pages_sharing) == (1, 1, 2)
    assert broken.cow_cpu_ns == BUILTIN_UNMEASURED.cow_break_ns
    assert broken.rmap_items == 3
    spaces.advance(60 * MS)
    gone = spaces.counters()
    assert (gone.base_frames, gone.frames, gone.saved_frames, gone.rmap_items) == (2, 2, 0, 3)
    assert (gone.pages_shared, gone.pages_sharing, gone.unmerge_frames) == (1, 2, 0)
    spaces.merge_range(0, 0, 0, 3)
    passed = spaces.counters()
    assert (passed.rmap_items, passed.pages_unshared, passed.saved_frames) == (2, 1, 0)
    assert (passed.pages_shared, passed.pages_sharing, passed.stable_nodes) == (1, 0, 1)


@pytest.mark.parametrize(("absence", "is_old", "splits"), [(-1, False, 2), (UNSEEN, True, 1)])
def test_a_page_that_leaves_a_sample_comes_back_as_it_was(
        absence: int, is_old: bool, splits: int) -> None:
    # Site 0 is part of a huge page and merges with 1 and 2; 3 is alone. 0 and 3 are away for 20 s.
    sites, is_zero = site_table([0] * 4, [1, 1, 1, 2], mm=[0, 1, 2, 3])
    sites = replace(sites, is_huge=np.array([1, 0, 0, 0], np.uint8))
    events = writes((20_000 * MS, 0, absence, 0), (20_000 * MS, 3, absence, 0),
                    (40_000 * MS, 0, 0, 4), (40_000 * MS, 3, 1, 5))
    spaces = spaces_of(sites, is_zero, events)
    spaces.start_scanner(0, Knobs(pages_to_scan=1000, sleep_millisecs=1000))
    spaces.advance(39_000 * MS)
    away = spaces.counters()
    assert (away.base_frames, away.eligible_pages, away.rmap_items) == (2, 2, 2)
    spaces.advance(49_000 * MS)
    # An old page is looked at every ninth time, a new one thrice first.
    assert (spaces.counters().pages_skipped - away.pages_skipped > 9) is is_old
    spaces.advance(70_000 * MS)
    back = spaces.counters()
    assert (back.pages_sharing, back.huge_splits, back.rmap_items) == (2, splits, 4)


@pytest.mark.parametrize(("away_ms", "is_kept"), [(3000, True), (12_000, False)])
def test_a_checksum_lasts_while_nobody_comes_to_the_page(away_ms: int, is_kept: bool) -> None:
    # It leaves the sample at the beginning of a pause of 8 scans, and returns as it was before.
    sites, is_zero = site_table([0], [1])
    knobs = Knobs(pages_to_scan=1000, sleep_millisecs=1000)
    probe = spaces_of(sites, is_zero)
    probe.start_scanner(0, knobs)
    left_ms = next(ms for ms in range(30_000, 60_000, 100) if probe.advance(ms * MS) is not None
                   and probe.world.sites[0, k.S_META] >> k.SKIPS_SHIFT & 0xFF == 8)
    spaces = spaces_of(sites, is_zero, writes((left_ms * MS, 0, UNSEEN, 0),
                                              ((left_ms + away_ms) * MS, 0, 0, 1)))
    spaces.start_scanner(0, knobs)
    spaces.advance((left_ms + away_ms) * MS)
    assert spaces.counters().rmap_items == 0
    assert bool(spaces.world.sites[0, k.S_OLD] == 0) is is_kept


@pytest.mark.parametrize("away_s", [1, 5, 17, 60, 200])
def test_a_page_grows_old_outside_the_sample(away_s: int) -> None:
    # One page is outside from the start, its twin is there with contents that nobody else has.
    sites, is_zero = site_table([0] * 2, [1, 2], mm=[0, 1])
    sites = replace(sites, content=np.array([UNSEEN, 1], np.int32))
    events = writes((away_s * 1000 * MS, 0, 0, 2))
    spaces = spaces_of(sites, is_zero, events)
    spaces.start_scanner(0, Knobs(pages_to_scan=1000, sleep_millisecs=1000))
    visits = {}
    for second in range(away_s, away_s + 40):
        before = spaces.world.sites[:, k.S_META].copy()
        spaces.advance(second * 1000 * MS)
        visits[second] = (before & k.SKIPS_MASK).tolist()
    # Both are in the same pause at each scan.
    assert all(one == other for one, other in list(visits.values())[4:]), visits


def test_an_mm_of_unseen_pages_is_registered_in_its_place() -> None:
    sites, is_zero = site_table([0] * 2, [1, 1], mm=[0, 1])
    sites = replace(sites, content=np.array([UNSEEN, 0], np.int32))
    spaces = spaces_of(sites, is_zero, writes((10 * MS, 0, 0, 0)))
    spaces.start_scanner(0, Knobs(pages_to_scan=1))
    spaces.advance(1)
    # The scan has passed the unseen page, and counts what comes after it.
    assert (spaces.counters().pages_scanned, spaces.counters().eligible_pages) == (1, 1)
    spaces.advance(1000 * MS)
    assert spaces.counters().pages_sharing == 1


def test_what_fork_shares_is_not_a_saving() -> None:
    # Sites 0-3 in mm 0, forked into mm 1.
    sites, is_zero = site_table(
        [0] * 8, [1, 2, 3, 3] * 2, mm=[0] * 4 + [1] * 4, frame=[0, 1, 2, 3] * 2
    )
    spaces = spaces_of(replace(sites, vpn=np.arange(8) % 4), is_zero)
    assert spaces.counters().base_frames == 4
    spaces.merge_range(0, 0, 0, 4)
    spaces.merge_range(0, 1, 0, 4)
    now = spaces.counters()
    # Of the four sites of content 3 all are merged, but two frames were one saving.
    assert (now.pages_shared, now.pages_sharing, now.saved_frames) == (1, 3, 1)
    assert now.unmerge_frames == 3


def test_a_page_that_fork_shares_across_partitions_never_becomes_the_frame_of_both() -> None:
    # Site 0 (partition 0) and site 3 (partition 1) share frame 0; 1, 2 and 4, 5 have copies.
    sites, is_zero = site_table(
        [0, 0, 0, 1, 1, 1], [1] * 6, mm=[0, 1, 2, 3, 4, 5], frame=[0, 1, 2, 0, 4, 5]
    )
    spaces = spaces_of(sites, is_zero, n=2)
    for mm in (1, 0, 2):  # site 0 is scanned second: it would become the KSM page
        spaces.merge_range(0, mm, 0, 9)
    for mm in (4, 3, 5):
        spaces.merge_range(1, mm, 0, 9)
    now = spaces.counters()
    assert (now.pages_shared, now.pages_sharing) == (2, 4)
    # Five frames were live (one shared by fork); two KSM pages remain, shared by no two partitions.
    assert (now.base_frames, now.frames, now.saved_frames) == (5, 2, 3)
    assert now.cross_domain_pages == 0
    spaces.unmerge_range(0, 0, 0, 9)
    assert spaces.counters().frames == 3


def test_pages_that_cross_domains_are_counted_with_their_first_page() -> None:
    sites, is_zero = site_table([0] * 5, [1, 1, 2, 2, 2], mm=[0, 1, 0, 1, 2][:5], domain=[0] * 5)
    sites = replace(
        sites,
        mm=np.array([0, 0, 1, 1, 2], np.int32),
        domain=np.array([0, 0, 0, 0, 1], np.int32),
        vpn=np.array([0, 1, 0, 1, 0]),
    )
    for sensitive, expected in ([False, False], 0), ([False, True], 3), ([True, False], 3):
        spaces = MergeSpaces(
            sites,
            EventTable.empty(),
            n_partitions=1,
            content_is_zero=is_zero,
            domain_is_sensitive=sensitive,
        )
        for mm in range(3):
            spaces.merge_range(0, mm, 0, 9)
        now = spaces.counters()
        assert (now.pages_shared, now.pages_sharing) == (2, 3)
        assert now.cross_domain_pages == 3
        assert now.cross_domain_sensitive_pages == expected


def test_zero_pages_are_counted_apart() -> None:
    sites, is_zero = site_table([0] * 7, [0, 0, 0, 0, 1, 1, 2])
    spaces = spaces_of(sites, is_zero)
    spaces.merge_range(0, 0, 0, 7)
    now = spaces.counters()
    assert (now.saved_frames, now.saved_zero_frames) == (1, 3)
    assert now.metadata_bytes == 7 * 64 + 2 * 64 + 48


def test_pages_merging_may_not_touch_are_left_but_counted_as_memory() -> None:
    sites, is_zero = site_table([0] * 4, [1] * 4, eligible=[1, 0, 1, 0])
    spaces = spaces_of(sites, is_zero)
    counts = spaces.merge_range(0, 0, 0, 4)
    assert (counts.requested_pages, counts.tried_pages, counts.merged_pages) == (4, 2, 1)
    now = spaces.counters()
    assert (now.base_frames, now.frames, now.eligible_pages, now.rmap_items) == (4, 3, 2, 2)


def test_a_synchronous_merge_reports_every_page_it_tried() -> None:
    sites, is_zero = site_table([0] * 6, [1, 1, 2, 3, -1, 1], frame=[0, 1, 2, 3, 0, 5])
    spaces = spaces_of(sites, is_zero)
    first = spaces.merge_range(0, 0, 0, 6)
    assert (first.requested_pages, first.tried_pages) == (6, 5)
    assert (first.merged_pages, first.candidate_pages, first.already_pages) == (2, 3, 0)
    again = spaces.merge_range(0, 0, 0, 6)
    assert (again.merged_pages, again.candidate_pages, again.already_pages) == (0, 2, 3)
    assert 0 < again.cost_ns < first.cost_ns
    assert spaces.counters().merge_cpu_ns == first.cost_ns + again.cost_ns


def test_unmerging_a_range_gives_frames_back_and_is_no_write() -> None:
    sites, is_zero = site_table([0] * 4, [1, 1, 1, 2])
    spaces = spaces_of(sites, is_zero)
    spaces.merge_range(0, 0, 0, 4)
    assert spaces.counters().unmerge_frames == 2
    assert spaces.unmerge_range(0, 0, 0, 2).unmerged_pages == 2
    now = spaces.counters()
    assert (now.saved_frames, now.frames, now.cow_breaks, now.rmap_items) == (0, 4, 0, 2)
    spaces.merge_range(0, 0, 0, 4)
    assert spaces.counters().saved_frames == 2
    spaces.reset_partition(0)
    empty = spaces.counters()
    assert (empty.frames, empty.rmap_items, empty.metadata_bytes) == (4, 0, 0)


def test_a_background_scanner_costs_what_its_visits_cost() -> None:
    cost = replace(
        BUILTIN_UNMEASURED,
        name="t",
        first_sight_ns=1000,
        unique_ns=10,
        stable_level_ns=7,
        unstable_level_ns=100,
        batch_ns=5,
        cold_percent=50,
        cold_pages=3,
        hole_ns=2,
    )
    sites, is_zero = site_table([0] * 5, [1, 2, 3, 4, -1])
    spaces = spaces_of(sites, is_zero, cost=cost)
    spaces.start_scanner(0)
    scan = spaces.advance(1)[0]
    assert scan.time_ns == 4000 + 2 + 3000 * 50 // 100 + 5
    spaces.advance(25 * MS)
    # The unstable tree grows to 1, 2, 3, 4 nodes: 1, 2, 2, 3 levels.
    second = 4 * 10 + 800 + 2 + (3 * 10 + 500) * 50 // 100 + 5
    assert spaces.counters().merge_cpu_ns == scan.time_ns + second


def test_a_cost_model_refuses_figures_that_are_no_times() -> None:
    for change in ({"quick_ns": -1}, {"batch_ns": 0}, {"merge_ns": 1.5}, {"hole_ns": True}):
        with pytest.raises(UsageError, match="cost model builtin:unmeasured"):
            replace(BUILTIN_UNMEASURED, **change)


def test_the_builtin_costs_are_near_what_one_kernel_was_seen_to_need() -> None:
    n = 100_000
    sites, is_zero = site_table([0] * n, list(range(1, n + 1)))
    spaces = spaces_of(sites, is_zero)
    spaces.start_scanner(0, Knobs(pages_to_scan=1000, smart_scan=False))
    while not (done := spaces.advance(spaces.now_ns + 24 * MS)):
        pass
    first_pass = spaces.counters().merge_cpu_ns / n
    assert 1300 < first_pass < 1700
    while not (done := spaces.advance(spaces.now_ns + 24 * MS)):
        pass
    assert done[0].seq == 2
    assert 6000 < spaces.counters().merge_cpu_ns / n - first_pass < 8900


def test_tables_that_do_not_fit_together_are_refused() -> None:
    sites, is_zero = site_table([0, 0], [1, 2])
    i32 = np.int32
    bad: list[tuple[SiteTable, EventTable, str]] = [
        (replace(sites, content=np.array([0, 2], i32)), EventTable.empty(), "sites.content"),
        (replace(sites, content=np.array([0], i32)), EventTable.empty(), "sites.content"),
        (replace(sites, frame=np.array([0, -1], i32)), EventTable.empty(), "sites.frame"),
        (replace(sites, partition=np.array([0, 1], i32)), EventTable.empty(), "sites.partition"),
        (replace(sites, domain=np.array([0, 9], i32)), EventTable.empty(), "sites.domain"),
        (replace(sites, vpn=np.array([1, 1])), EventTable.empty(), "sites.vpn"),
        (replace(sites, vpn=np.array([0.5, 1])), EventTable.empty(), "sites.vpn"),
        (sites, writes((0, 2, 0, 0)), "events.site"),
        (sites, writes((0, 0, 5, 0)), "events.content"),
        (sites, writes((0, 0, 0, -1)), "events.frame"),
        (sites, writes((5, 0, 0, 0), (4, 0, 0, 0)), "events.time_ns"),
        (sites, writes((-5, 0, 0, 0)), "events.time_ns"),
    ]
    for table, events, where in bad:
        with pytest.raises(UsageError, match=where):
            spaces_of(table, is_zero, events)
    apart, is_zero = site_table([0] * 3, [1, 2, 3], mm=[0, 1, 0])
    with pytest.raises(UsageError, match="together"):
        spaces_of(apart, is_zero)


def test_calls_that_make_no_sense_are_refused() -> None:
    sites, is_zero = site_table([0, 0], [1, 1])
    spaces = spaces_of(sites, is_zero)
    with pytest.raises(UsageError, match="no partition 1"):
        spaces.merge_range(1, 0, 0, 1)
    with pytest.raises(UsageError, match="no mm 7"):
        spaces.merge_range(0, 7, 0, 1)
    with pytest.raises(UsageError, match="range of pages"):
        spaces.unmerge_range(0, 0, 2, 1)
    with pytest.raises(UsageError, match="sleep_millisecs"):
        spaces.start_scanner(0, Knobs(sleep_millisecs=-1))
    with pytest.raises(UsageError, match="at least 2"):
        spaces.set_max_page_sharing(0, 1)
    spaces.merge_range(0, 0, 0, 2)
    with pytest.raises(UsageError, match="while pages are merged"):
        spaces.set_max_page_sharing(0, 5)
    spaces.advance(5)
    with pytest.raises(UsageError, match="go back"):
        spaces.advance(4)


def test_a_host_without_pages_is_a_host() -> None:
    sites, is_zero = site_table([], [])
    spaces = spaces_of(sites, is_zero, n=2)
    spaces.start_scanner(0)
    assert spaces.advance(10**12) == []
    assert spaces.counters().base_frames == 0
    assert len(spaces.partition_counters()) == 2


def test_a_stopped_scanner_leaves_what_is_merged_and_goes_on_where_it_was() -> None:
    sites, is_zero = site_table([0] * 10, [1] * 10)
    spaces = spaces_of(sites, is_zero)
    spaces.start_scanner(0, Knobs(pages_to_scan=5))
    spaces.advance(4 * 24 * MS)  # batches at 0, 24, 48 (empty: ends the scan) and 72 ms
    spaces.stop_scanner(0)
    half = spaces.counters()
    assert (half.full_scans, half.pages_shared, half.pages_sharing) == (1, 1, 4)
    spaces.advance(1000 * MS)
    assert spaces.counters() == half
    spaces.start_scanner(0, Knobs(pages_to_scan=5))
    spaces.advance(1001 * MS)
    assert spaces.counters().pages_sharing == 9
