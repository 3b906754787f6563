"""The plain-Python twin of the kernel's KSM against what is known of the kernel on paper."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest

from tests.conformance.script import run_script, validate
from tests.oracles.kernel_ksm import Machine
from tests.oracles.kernel_ksm.advisor import ScanTimeAdvisor, sleep_period_ns, timer_expiry
from tests.oracles.kernel_ksm.rbtree import RbNode, RbTree
from tests.oracles.kernel_ksm.surprises import SURPRISES

BASE = 0x100000
KERNELS = ("6.1", "6.12", "6.18")
M612 = KERNELS[1:]
PAIR_COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")


def machine_of(kernel: str = "6.18", **knobs: int) -> Machine:
    machine = Machine(kernel)
    for name, value in knobs.items():
        assert machine.set_knob(name, value) is None
    machine.set_run(1)
    return machine


def add(machine: Machine, p: int, contents: Iterable[int], *, huge: bool = False,
        n: int = 0) -> None:
    """A process with one mergeable region of these contents."""
    pages = list(contents)
    machine.spawn(p)
    machine.map(p, BASE, n or len(pages), huge)
    machine.advise(p, BASE, n or len(pages))
    machine.write(p, BASE, pages)


def scan(machine: Machine) -> tuple[int, ...]:
    """Shared, sharing, unshared and volatile after one more full scan."""
    machine.full_scan()
    return tuple(machine.counters()[name] for name in PAIR_COUNTERS)


# ---- vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_thousand_equal_pages_make_four_shared_ones(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [5] * 1000)
    assert scan(machine) == (0, 0, 0, 1000)
    if kernel != "6.1":
        assert machine.counters()["general_profit"] == -64000
    assert scan(machine) == (4, 996, 0, 0)
    counters = machine.counters()
    assert (counters["stable_node_chains"], counters["stable_node_dups"]) == (1, 4)
    if kernel != "6.1":
        assert counters["general_profit"] == 4015616


@pytest.mark.parametrize("kernel", M612)
def test_smart_scan_processes_unique_pages_at_1_2_3_4_6_9_14(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, range(1, 1001))
    processed, unshared = [], []
    for _ in range(16):
        before = machine.counters()["pages_scanned"]
        _, _, n_unshared, n_volatile = scan(machine)
        assert n_volatile == 1000 - n_unshared
        processed.append(machine.counters()["pages_scanned"] - before)
        unshared.append(n_unshared)
    assert [number for number, n in enumerate(processed, 1) if n] == [1, 2, 3, 4, 6, 9, 14]
    assert unshared == [0, *processed[1:]]
    assert machine.counters()["pages_skipped"] == 9000


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_smart_scan_unique_pages_are_unshared_from_the_second_scan(kernel: str) -> None:
    machine = machine_of(kernel) if kernel == "6.1" else machine_of(kernel, smart_scan=0)
    add(machine, 1, range(1, 1001))
    assert [scan(machine)[2] for _ in range(5)] == [0, 1000, 1000, 1000, 1000]


@pytest.mark.parametrize(("kernel", "first"), [("6.1", (500, 1000, 0, 0)),
                                               ("6.12", (500, 500, 0, 500)),
                                               ("6.18", (500, 500, 0, 500))])
def test_a_copy_of_a_shared_page_merges_at_once_on_6_1_and_one_scan_later_since(
        kernel: str, first: tuple[int, ...]) -> None:
    machine = machine_of(kernel)
    add(machine, 1, range(1, 501))
    add(machine, 2, range(1, 501))
    assert [scan(machine) for _ in range(3)][1:] == [(500, 500, 0, 0)] * 2
    if kernel != "6.1":
        assert machine.counters()["general_profit"] == 1984000
    add(machine, 3, range(1, 501))
    assert scan(machine) == first
    assert scan(machine) == (500, 1000, 0, 0)


@pytest.mark.parametrize("kernel", M612)
def test_rewritten_shared_pages_are_seen_skipped_by_their_old_age(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [7] * 300)
    for _ in range(4):
        scan(machine)
    machine.write(1, BASE, range(100, 110))
    assert machine.cow_ksm == 10
    assert machine.counters()["pages_sharing"] == 298
    assert scan(machine) == (2, 288, 0, 10)
    assert scan(machine) == (2, 288, 10, 0)
    assert scan(machine) == (2, 288, 0, 10)
    assert machine.counters()["pages_skipped"] == 10


@pytest.mark.parametrize("kernel", KERNELS)
def test_forked_shared_pages_raise_pages_sharing_and_free_nothing(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, range(1, 101))
    add(machine, 2, range(1, 101))
    for _ in range(3):
        scan(machine)
    frames = machine.physical_frames()
    assert frames == 100
    machine.fork(1, 3)
    assert scan(machine) == (100, 200, 0, 0)
    assert machine.physical_frames() == frames


@pytest.mark.parametrize("kernel", KERNELS)
def test_fork_shared_pages_never_merge_with_themselves(kernel: str) -> None:
    machine = machine_of(kernel) if kernel == "6.1" else machine_of(kernel, smart_scan=0)
    add(machine, 1, range(1, 101))
    machine.fork(1, 2)
    assert scan(machine) == (0, 0, 0, 200)
    assert {scan(machine) for _ in range(5)} == {(0, 0, 100, 100)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_zero_pages_leave_ksm_one_scan_after_they_are_merged(kernel: str) -> None:
    machine = machine_of(kernel, use_zero_pages=1)
    add(machine, 1, [0] * 100)
    scan(machine)
    assert scan(machine) == (0, 0, 0, 100)
    assert machine.frames(1, BASE, 100) == [-2] * 100
    assert scan(machine) == (0, 0, 0, 0)
    if kernel != "6.1":
        assert machine.counters()["ksm_zero_pages"] == 100
        assert machine.counters()["general_profit"] == 409600
        assert machine.process_counters(1) == {
            "ksm_rmap_items": 0, "ksm_merging_pages": 0, "ksm_zero_pages": 100,
            "ksm_process_profit": 409600}
        machine.write(1, BASE, [1, 0])
        assert machine.counters()["ksm_zero_pages"] == 98
    assert machine.cow_ksm == 0


# ---- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 3, 7, 256])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_pages_fill_shared_pages_as_the_closed_form_says(kernel: str, limit: int) -> None:
    for n in range(1, 40) if limit < 256 else (255, 256, 257, 258, 512, 513, 514):
        machine = machine_of(kernel, max_page_sharing=limit,
                             stable_node_chains_prune_millisecs=86_400_000)
        add(machine, 1, [9] * n)
        scan(machine)
        rest = n % limit
        n_shared = n // limit + (rest >= 2)
        assert scan(machine) == (n_shared, n - n_shared - (rest == 1), int(rest == 1), 0), n


#: Scans from the second copy's first sight to the merge, by the distance of the two first sights.
SCANS_TO_MERGE = [1, 1, 1, 2, 1, 3, 2, 1, 5, 13, 3, 2, 1, None, 8, None, None, 5, 13, 3, 2, 1,
                  None, 8, None, None, 5, 13, 3, 2, 1, None]


def test_some_distances_of_equal_pages_never_merge_under_smart_scan() -> None:
    found: list[int | None] = []
    for distance in range(len(SCANS_TO_MERGE)):
        machine = machine_of()
        add(machine, 1, [1], n=2)
        for _ in range(distance):
            scan(machine)
        machine.write(1, BASE + 1, [1])
        found.append(next((number for number in range(60) if scan(machine)[0]), None))
    assert found == SCANS_TO_MERGE


def test_age_and_skips_follow_the_visits_0_1_2_3_5_8_13_22_31() -> None:
    machine = machine_of()
    add(machine, 1, [1])
    processed = []
    for number in range(330):
        before = machine.counters()["pages_scanned"]
        scan(machine)
        if machine.counters()["pages_scanned"] > before:
            processed.append(number)
    assert processed[:7] == [0, 1, 2, 3, 5, 8, 13]
    assert {later - earlier for earlier, later in pairwise(processed[6:])} == {9}


@pytest.mark.parametrize(("n", "n_batches"), [(0, 1), (99, 1), (100, 2), (250, 3)])
def test_a_scan_of_n_pages_takes_n_over_p_plus_one_batches(n: int, n_batches: int) -> None:
    machine = machine_of()
    add(machine, 1, range(1, n + 1), n=max(n, 1))
    taken = 0
    while machine.counters()["full_scans"] == 0:
        machine.scan_pages(100)
        taken += 1
    assert taken == n_batches


# ---- cursor, registration, lifetimes ----------------------------------------------------------


def test_who_registers_in_mid_scan_is_visited_in_the_next_one() -> None:
    machine = machine_of(smart_scan=0)
    add(machine, 1, range(1, 11))
    add(machine, 2, range(11, 21))
    machine.scan_pages(5)
    add(machine, 3, range(21, 31))
    machine.full_scan()
    assert machine.counters()["pages_scanned"] == 20
    assert scan(machine) == (0, 0, 20, 10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_counters_wait_for_ksmd_after_exit_and_run_2_clears_all(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, range(1, 11))
    add(machine, 2, range(1, 11))
    add(machine, 3, range(1, 11))
    for _ in range(2):
        scan(machine)
    machine.exit(3)
    machine.exit(2)
    assert machine.counters()["pages_sharing"] == 20
    assert scan(machine) == (10, 0, 0, 0)
    assert machine.set_knob("max_page_sharing", 5) == "EBUSY"
    assert machine.set_run(2) is None
    assert [machine.counters()[name] for name in (*PAIR_COUNTERS, "full_scans")] == [0] * 5
    assert machine.cow_ksm == 10
    assert machine.set_knob("max_page_sharing", 5) is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_remaining_mapping_of_a_shared_page_is_copied_when_written(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [4, 4])
    for _ in range(2):
        scan(machine)
    machine.write(1, BASE, [5])
    frame = machine.frames(1, BASE + 1, 1)
    machine.write(1, BASE + 1, [6])
    assert machine.cow_ksm == 2
    assert machine.frames(1, BASE + 1, 1) != frame
    assert machine.physical_frames() == 2


def test_unmerging_copies_at_once_and_frees_items_later() -> None:
    for kernel in KERNELS:
        machine = machine_of(kernel)
        add(machine, 1, [8] * 6)
        for _ in range(2):
            scan(machine)
        machine.unadvise(1, BASE, 3)
        assert machine.cow_ksm == 3
        assert machine.physical_frames() == 4
        assert machine.counters()["pages_sharing"] == 5
        assert scan(machine) == (1, 2, 0, 0)


def test_6_1_copies_the_counters_of_a_process_into_its_fork() -> None:
    for kernel, inherited in (("6.1", 4), ("6.12", 0), ("6.18", 0)):
        machine = machine_of(kernel)
        add(machine, 1, [8] * 4)
        for _ in range(2):
            scan(machine)
        machine.fork(1, 2)
        assert machine.process_counters(2)["ksm_merging_pages"] == inherited
        assert machine.process_counters(2)["ksm_rmap_items"] == inherited


# ---- huge pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SURPRISES)
def test_the_twin_shows_what_live_kernels_showed(name: str, kernel: str) -> None:
    surprise = SURPRISES[name]
    validate(surprise.script)
    last = run_script(Machine(kernel), surprise.script)[-1]
    frames = [frame for pages in last["frames"].values() for frame in pages.values()]
    shown = {**last["counters"], "cow_ksm": last["cow_ksm"], "zero_ptes": frames.count(-2),
             "frames": len({frame for frame in frames if frame >= 0})}
    expected = surprise.at_end[kernel]
    assert {key: shown[key] for key in expected} == expected


@pytest.mark.parametrize("kernel", KERNELS)
def test_frames_of_a_huge_page_stay_until_it_is_split_or_gone(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [1], huge=True, n=512)
    machine.dontneed(1, BASE + 1, 511)
    assert machine.physical_frames() == 512
    assert frames_of(machine, [1], 512) == set(machine.frames(1, BASE, 1))
    machine.unmap(1, BASE, 512)
    assert machine.physical_frames() == 0


@pytest.mark.parametrize(("kernel", "n_frames"), [("6.1", 1), ("6.12", 1), ("6.18", 512)])
def test_a_block_dropped_whole_is_huge_again_only_where_its_page_table_is_freed(
        kernel: str, n_frames: int) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [1], huge=True, n=512)
    machine.dontneed(1, BASE, 1)
    machine.dontneed(1, BASE, 512)
    machine.write(1, BASE, [2])
    assert machine.physical_frames() == n_frames


@pytest.mark.parametrize(("kernel", "n_frames"), [("6.1", 1), ("6.12", 1), ("6.18", 512)])
def test_a_write_into_the_huge_zero_page_makes_a_huge_page_since_6_18(
        kernel: str, n_frames: int) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [], huge=True, n=512)
    machine.read(1, BASE, 1)
    assert machine.frames(1, BASE, 512) == [-2] * 512
    machine.write(1, BASE + 5, [7])
    assert machine.physical_frames() == n_frames


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_huge_page_shared_by_fork_is_copied_page_by_page_until_it_is_alone(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [1, 2, 3], huge=True, n=512)
    machine.fork(1, 2)
    machine.write(1, BASE, [4])
    assert machine.physical_frames() == 513
    shared = machine.frames(1, BASE + 1, 511)
    assert machine.frames(2, BASE + 1, 511) == shared
    machine.exit(1)
    machine.write(2, BASE, [5])
    assert machine.physical_frames() == 512


# ---- the whole process ------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", M612)
def test_a_process_may_merge_all_its_memory_and_its_children_inherit_that(kernel: str) -> None:
    machine = machine_of(kernel)
    machine.spawn(1)
    assert machine.prctl(1, 1) is None
    machine.map(1, BASE, 4, False)
    machine.write(1, BASE, [1, 1, 2, 3])
    for _ in range(2):
        scan(machine)
    assert scan(machine)[:2] == (1, 1)
    machine.fork(1, 2)
    assert scan(machine)[:2] == (1, 3)
    assert machine.prctl(2, 0) is None
    assert machine.cow_ksm == 2
    assert scan(machine)[:2] == (1, 1)
    assert machine.ksm_stat_flags(1) == (
        {"ksm_merge_any": True, "ksm_mergeable": True} if kernel == "6.18" else {})
    machine.exec(1)
    assert machine.frames(1, BASE, 4) == [-1] * 4
    machine.map(1, BASE, 2, False)
    machine.write(1, BASE, [8, 8])
    for _ in range(2):
        scan(machine)
    assert machine.process_counters(1)["ksm_merging_pages"] == 2


def test_6_1_has_no_merging_of_whole_processes() -> None:
    machine = machine_of("6.1")
    machine.spawn(1)
    assert machine.prctl(1, 1) == "EINVAL"


@pytest.mark.parametrize("kernel", KERNELS)
def test_mremap_copies_shared_pages_and_ksmd_begins_anew(kernel: str) -> None:
    machine = machine_of(kernel)
    add(machine, 1, [1, 1, 2, 2])
    for _ in range(2):
        scan(machine)
    frames = machine.frames(1, BASE, 4)
    assert machine.mremap(1, BASE, 4, BASE + 1) == "EINVAL"
    assert machine.mremap(1, BASE, 4, BASE + 1024) is None
    assert machine.cow_ksm == 4
    assert not set(frames) & set(machine.frames(1, BASE + 1024, 4))
    assert scan(machine) == (0, 0, 0, 4)
    machine.unadvise(1, BASE + 1024, 1)
    assert machine.mremap(1, BASE + 1024, 4, BASE) is None
    assert machine.frames(1, BASE + 1024, 4) == [-1] * 4
    assert scan(machine) == (0, 0, 0, 3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_knobs_are_refused_as_the_kernel_does(kernel: str) -> None:
    machine = machine_of(kernel)
    assert machine.set_knob("max_page_sharing", 1) == "EINVAL"
    assert machine.set_knob("use_zero_pages", 2) == "EINVAL"
    assert machine.set_knob("merge_across_nodes", 2) == "EINVAL"
    assert machine.set_knob("smart_scan", 0) == ("ENOENT" if kernel == "6.1" else None)
    assert machine.set_run(3) == "EINVAL"
    with pytest.raises(ValueError, match="not modelled"):
        machine.set_knob("advisor_mode", 1)


@pytest.mark.parametrize(("waited_ms", "joined"), [(1999, "head"), (2000, "largest")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_search_takes_the_first_dup_with_room_or_after_two_seconds_the_largest(
        kernel: str, waited_ms: int, joined: str) -> None:
    machine = machine_of(kernel, max_page_sharing=4)
    add(machine, 1, [3] * 8)
    for _ in range(2):
        scan(machine)
    largest, head = machine.frames(1, BASE, 1), machine.frames(1, BASE + 7, 1)
    assert machine.frames(1, BASE, 8) == largest * 4 + head * 4
    machine.dontneed(1, BASE, 1)
    machine.dontneed(1, BASE + 4, 3)
    add(machine, 2, [3])
    if kernel != "6.1":  # which searches at the first visit
        scan(machine)
    machine.wait(waited_ms)
    scan(machine)
    assert machine.frames(2, BASE, 1) == (head if joined == "head" else largest)
    assert machine.counters()["pages_sharing"] == 3


# ---- the red-black tree -----------------------------------------------------------------------


class Number(RbNode):
    def __init__(self, value: int) -> None:
        self.value = value


def black_height(node: RbNode | None, low: float, high: float) -> int:
    """Black nodes on each way down; fails unless it is a red-black search tree."""
    if node is None:
        return 0
    assert isinstance(node, Number)
    assert low < node.value < high
    for child in (node.rb_left, node.rb_right):
        if child is not None:
            assert child.rb_parent is node
            assert not (node.rb_is_red and child.rb_is_red)
    left = black_height(node.rb_left, low, node.value)
    assert left == black_height(node.rb_right, node.value, high)
    return left + (not node.rb_is_red)


def test_the_tree_stays_red_black_through_random_inserts_erases_and_replaces() -> None:
    rng = random.Random(7)
    tree = RbTree()
    nodes: dict[int, Number] = {}
    for _ in range(4000):
        value = rng.randrange(200)
        if value in nodes:
            if rng.random() < 0.2:
                new = Number(value)
                tree.replace(nodes[value], new)
                nodes[value] = new
            else:
                tree.erase(nodes.pop(value))
        else:
            parent, at = None, tree.root
            is_left = False
            while at is not None:
                assert isinstance(at, Number)
                parent, is_left = at, value < at.value
                at = at.rb_left if is_left else at.rb_right
            nodes[value] = Number(value)
            tree.link(nodes[value], parent, is_left)
        black_height(tree.root, -1, 200)
        assert tree.root is None or not tree.root.rb_is_red


# ---- sleep and advisor ------------------------------------------------------------------------


@pytest.mark.parametrize(("hz", "ms"), [(250, 24), (1000, 21), (100, 30)])
def test_a_sleep_of_20_ms_takes_a_tick_more(hz: int, ms: int) -> None:
    assert sleep_period_ns(20, 0, hz) == ms * 10**6


@pytest.mark.parametrize(("jiffy", "sleep_ms", "expiry"), [
    (0, 62, 63), (5, 63, 72), (1, 70, 72), (2, 70, 80), (0, 503, 504), (0, 504, 512),
    (100, 504, 640), (0, 4032, 4096)])
def test_long_sleeps_end_at_the_next_slot_of_the_timer_wheel(
        jiffy: int, sleep_ms: int, expiry: int) -> None:
    assert timer_expiry(jiffy, sleep_ms, 1000) == expiry


def changes_of(advisor: ScanTimeAdvisor, scan_ns: int, cpu_ns: int, n: int) -> list[int]:
    now = cpu = 0
    found = []
    for _ in range(n):
        advisor.start(now)
        now, cpu = now + scan_ns, cpu + cpu_ns
        advisor.stop(now, cpu)
        found.append(advisor.change)
    return found


def test_the_advisors_change_creeps_up_and_sticks_at_97() -> None:
    advisor = ScanTimeAdvisor()
    advisor.switch_on()
    assert changes_of(advisor, 30 * 10**9, 3 * 10**9, 13) == [
        30, 51, 65, 75, 82, 87, 90, 93, 95, 96, 97, 97, 97]


def settled(n_pages: int, n_scans: int = 60) -> tuple[int, int]:
    """pages_to_scan and seconds of a scan, at 3 us a page, 20 ms sleeps, 250 Hz."""
    advisor = ScanTimeAdvisor()
    advisor.switch_on()
    now = cpu = 0
    for _ in range(n_scans):
        advisor.start(now)
        batches = n_pages // advisor.pages_to_scan + 1
        now += batches * sleep_period_ns(20, advisor.pages_to_scan * 3000, 250)
        cpu += n_pages * 3000
        advisor.stop(now, cpu)
    return advisor.pages_to_scan, advisor.scan_time


@pytest.mark.parametrize(("n_pages", "expected"), [
    (10**5, (710, 3)), (10**6, (830, 28)), (5 * 10**6, (830, 144))])
def test_the_advisor_settles_at_ten_percent_of_a_cpu_below_its_minimum_or_above(
        n_pages: int, expected: tuple[int, int]) -> None:
    assert settled(n_pages) == expected


#: Linux 6.18.44, tracepoint ksm_advisor: 60,000 unique pages, smart_scan 0, target 3 s, from the
#: mode's switching on: (scan time, cpu percent, pages_to_scan).
TRACED = [(1, 13075, 49), (14, 1, 1027), (2, 5, 2134), (2, 10, 3526), (2, 9, 4770), (1, 13, 3660),
          (1, 8, 4570), (1, 8, 5710), (1, 8, 7130), (1, 8, 8910), (1, 8, 11130), (1, 9, 12360),
          (1, 9, 13730), (1, 8, 17160), (1, 9, 19060), (1, 9, 21170)]


def test_the_advisor_takes_the_steps_that_a_kernel_was_traced_to_take() -> None:
    advisor = ScanTimeAdvisor(target_scan_time=3)
    advisor.switch_on()
    assert [advisor.evaluate(seconds, percent) for seconds, percent, _ in TRACED] == [
        pages for _, _, pages in TRACED]


def test_switched_on_in_mid_scan_the_advisor_takes_uptime_for_the_scan() -> None:
    advisor = ScanTimeAdvisor()
    advisor.switch_on()
    assert advisor.stop(20_000 * 10**9, 60 * 10**9) == 15_000
    assert advisor.scan_time == 20_000


def frames_of(machine: Machine, processes: Sequence[int], n: int) -> set[int]:
    return {frame for p in processes for frame in machine.frames(p, BASE, n) if frame >= 0}


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_writes_forks_and_exits_keep_frames_and_counters_consistent(kernel: str) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        machine = machine_of(kernel, max_page_sharing=rng.choice([2, 3, 256]),
                             use_zero_pages=rng.randrange(2))
        add(machine, 1, [rng.randrange(6) for _ in range(24)])
        alive, born = [1], 1
        for _ in range(60):
            p = rng.choice(alive)
            step = rng.randrange(8)
            if step < 3:
                machine.write(p, BASE + rng.randrange(24), [rng.randrange(6)])
            elif step == 3:
                machine.scan_pages(rng.randrange(1, 30))
            elif step == 4 and len(alive) < 5:
                born += 1
                machine.fork(p, born)
                alive.append(born)
            elif step == 5 and len(alive) > 1:
                alive.remove(p)
                machine.exit(p)
            elif step == 6:
                machine.dontneed(p, BASE + rng.randrange(24), 1)
            else:
                machine.full_scan()
            assert machine.physical_frames() == len(frames_of(machine, alive, 24))
            counters = machine.counters()
            assert all(counters[name] >= 0 for name in PAIR_COUNTERS)
        for _ in range(2):
            machine.full_scan()
        if kernel != "6.1":
            counters = machine.counters()
            assert sum(machine.process_counters(p)["ksm_merging_pages"] for p in alive) == (
                counters["pages_shared"] + counters["pages_sharing"])
