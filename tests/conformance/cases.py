"""Hand-written scripts, a few for each part of what KSM does.

The order of processes and the cursor, fork, exit, advice, holes, copy-on-write breaks, chains and
their limit, zero pages, smart scan, `run`, batches, huge pages. Each says what must be seen.
"""

from __future__ import annotations

from tests.conformance.casebook import Case, Write
from tests.conformance.script import slot
from tests.conformance.undone_pairs import UNDONE_PAIRS
from tests.oracles.kernel_ksm.surprises import SURPRISES

V = slot(0)
#: Scans from the first sight of a page to its merge with an equal one first seen d scans before
#: it, both alone and under smart scan; None: never. From d = 13 on it repeats every 9.
_MERGE_AFTER: tuple[int | None, ...] = (1, 1, 1, 2, 1, 3, 2, 1, 5, 13, 3, 2, 1)
_MERGE_AFTER_LATE: tuple[int | None, ...] = (None, 8, None, None, 5, 13, 3, 2, 1)


# Order and cursor.


def a_script_may_end_within_a_scan(case: Case) -> None:
    """And the next one begins with a batch as large: whatever drives both must set it anew."""
    case.process(1, range(1, 21))
    case.scan_pages(10, volatile=10, full_scans=1)


def processes_are_visited_in_the_order_of_their_first_advice(case: Case) -> None:
    for p in (1, 2, 3):
        case.do("spawn", p)
        case.do("map", p, V, 10, "small")
        case.do("write", p, V, list(range(10 * p, 10 * p + 10)))
    for p in (3, 1, 2):
        case.do("advise", p, V, 10)
    case.scan_pages(10, items={1: 0, 2: 0, 3: 10})
    case.scan_pages(1, items={1: 1, 2: 0, 3: 10})
    case.scan(items={1: 10, 2: 10, 3: 10}, volatile=30)


def pages_are_visited_in_ascending_order_whatever_was_mapped_first(case: Case) -> None:
    case.process(1, [1] * 5, r=3)
    case.region(1, [2] * 5, r=1)
    case.do("knob", "max_page_sharing", 2)
    case.scan()
    # The second scan gets to the pages of slot 1 first: two pairs, and one is left.
    case.scan_pages(5, shared=2, sharing=2, unshared=1, volatile=5)
    case.scan(shared=4, sharing=4, unshared=2, volatile=0, chains=2, dups=4)


def who_registers_in_mid_scan_is_visited_in_the_next(case: Case) -> None:
    case.process(1, range(1, 21))
    case.process(2, range(21, 41))
    case.scan_pages(5)
    case.process(3, range(41, 61))
    case.scan(items={1: 20, 2: 20, 3: 0}, full_scans=2)
    # It stands before the process the cursor was in.
    case.scan_pages(1, items={1: 20, 2: 20, 3: 1})


def a_child_forked_in_mid_scan_is_visited_in_the_next(case: Case) -> None:
    case.process(1, range(1, 21))
    case.scan_pages(5)
    case.do("fork", 1, 2)
    # 6.1 copies the parent's number.
    copied = 5 if case.is_old else 0
    case.scan(items={1: 20, 2: copied}, volatile=20)
    case.scan_pages(1, items={1: 20, 2: copied + 1})


def a_batch_ends_with_the_scan(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 101))
    case.scan_pages(50, scanned=50, full_scans=1, volatile=50)
    case.scan_pages(50, scanned=100, full_scans=1, volatile=100)
    # All pages are done, and yet one more batch is needed to find that out.
    case.scan_pages(50, scanned=100, full_scans=2)
    case.scan_pages(70, scanned=170, full_scans=2, unshared=70, volatile=30)
    case.scan_pages(70, scanned=200, full_scans=3, unshared=100)


def skipped_pages_cost_no_budget(case: Case) -> None:
    case.process(1, range(1, 41))
    case.scans(4)
    # The fifth visit is skipped.
    if case.is_old:
        case.scan_pages(10, full_scans=5)
    else:
        case.scan_pages(10, full_scans=6, scanned=160, skipped=40)


# Fork.


def the_other_side_of_a_fork_follows_a_scan_later(case: Case) -> None:
    case.process(1, [5])
    case.do("fork", 1, 2)
    case.process(3, [5])
    case.scan(volatile=3, frames=2)
    # The first process now has the page of the third; the second still has its own.
    case.scan(shared=1, sharing=1, volatile=1, frames=2, merging={1: 1, 2: 0, 3: 1})
    case.scan(shared=1, sharing=2, volatile=0, frames=1)


def merged_pages_outlive_the_parent(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("fork", 1, 2)
    case.scan(shared=1, sharing=19, frames=1)
    case.do("exit", 1)
    case.check(shared=1, sharing=19, frames=1)
    case.scan(shared=1, sharing=9, frames=1, cow=0)


def fork_passes_the_limit(case: Case) -> None:
    case.do("knob", "max_page_sharing", 2)
    case.process(1, [5] * 2)
    case.scans(2)
    case.do("fork", 1, 2)
    case.do("fork", 1, 3)
    case.scan(shared=1, sharing=5, chains=0, dups=0)


def a_child_that_writes_leaves_the_parent_merged(case: Case) -> None:
    case.process(1, [5] * 4)
    case.scans(2)
    case.do("fork", 1, 2)
    case.do("write", 2, V, [9, 9])
    # The child has no items yet: nothing to take away.
    case.check(shared=1, sharing=3, cow=2, frames=3)
    case.scan(shared=1, sharing=5, volatile=2)


# Exit.


def _two_processes(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 21))
    case.process(2, range(21, 41))


def exit_of_the_process_at_the_cursor(case: Case) -> None:
    _two_processes(case)
    case.scan_pages(5)
    case.do("exit", 1)
    case.check(volatile=5)
    case.scan(volatile=20, items={2: 20})


def exit_of_a_process_after_the_cursor(case: Case) -> None:
    _two_processes(case)
    case.scan()
    case.scan_pages(5, unshared=5, volatile=35)
    case.do("exit", 2)
    case.check(unshared=5, volatile=35)
    case.scan(unshared=20, volatile=0)


def exit_of_a_process_before_the_cursor_is_seen_in_the_same_scan(case: Case) -> None:
    _two_processes(case)
    case.scan()
    case.scan_pages(25, unshared=25, volatile=15)
    case.do("exit", 1)
    case.check(unshared=25, volatile=15)
    # The pages still to come find one of the dead at the root of the unstable tree, and give up.
    case.scan(unshared=5, volatile=15)
    case.scan(unshared=20, volatile=0)


def exit_between_scans_is_seen_by_the_next(case: Case) -> None:
    case.process(1, [5] * 6)
    case.process(2, [5] * 6)
    case.scans(2)
    case.do("exit", 2)
    case.check(shared=1, sharing=11)
    case.scan(shared=1, sharing=5)
    case.do("exit", 1)
    case.check(shared=1, sharing=5)
    case.scan(shared=0, sharing=0, volatile=0, chains=0, dups=0)


def exit_while_stopped_changes_nothing_until_run_is_1(case: Case) -> None:
    case.process(1, [5] * 6)
    case.scans(2)
    case.do("run", 0)
    case.do("exit", 1)
    case.check(shared=1, sharing=5)
    case.do("run", 1)
    case.scan(shared=0, sharing=0, full_scans=4)


# Advice, holes.


def unadvise_copies_at_once_and_counts_later(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("unadvise", 1, V, 4)
    case.check(shared=1, sharing=9, cow=4, frames=5)
    case.scan(shared=1, sharing=5, volatile=0, frames=5, items={1: 6})


def a_process_without_mergeable_memory_is_forgotten_and_comes_back(case: Case) -> None:
    case.process(1, [5] * 4)
    case.scans(2)
    case.do("unadvise", 1, V, 4)
    case.scan(shared=0, sharing=0, items={1: 0}, cow=4)
    case.do("advise", 1, V, 4)
    case.scan(volatile=4, items={1: 4})
    case.scan(shared=1, sharing=3, frames=1)


def unmapped_pages_are_counted_until_the_next_scan(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("unmap", 1, V + 3, 4)
    case.check(shared=1, sharing=9)
    case.scan(shared=1, sharing=5, cow=0, items={1: 6})
    case.do("unmap", 1, V, 3)
    case.do("unmap", 1, V + 7, 3)
    case.check(shared=1, sharing=5, frames=0)
    case.scan(shared=0, sharing=0, items={1: 0})


def dropped_pages_are_counted_until_the_next_scan(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("dontneed", 1, V, 4)
    case.check(shared=1, sharing=9, frames=1)
    case.scan(shared=1, sharing=5, items={1: 6})
    case.do("write", 1, V, [5] * 4)
    if case.is_old:
        case.scan(shared=1, sharing=9)
    else:
        case.scan(shared=1, sharing=5, volatile=4)
    case.scan(shared=1, sharing=9, volatile=0)


def a_page_dropped_and_written_between_scans_is_the_same_item(case: Case) -> None:
    case.smart(0)
    case.process(1, [5, 6])
    case.scans(2)
    case.do("dontneed", 1, V, 2)
    case.do("write", 1, V, [5, 7])
    # Same content, same checksum: it is not volatile.
    case.scan(unshared=1, volatile=1, items={1: 2})


def pages_never_touched_or_only_read_have_no_items(case: Case) -> None:
    case.do("spawn", 1)
    case.do("map", 1, V, 100, "small")
    case.do("read", 1, V, 50)
    case.do("write", 1, V + 60, [3, 4])
    case.do("advise", 1, V, 100)
    case.scan(volatile=2, items={1: 2}, zero_ptes=50, frames=2)
    case.do("write", 1, V + 10, [8])
    case.scan(volatile=1, unshared=2, items={1: 3}, zero_ptes=49, cow=0)


def mremap_copies_first(case: Case) -> None:
    case.process(1, [5] * 4)
    case.scans(2)
    case.do("mremap", 1, V, 2, slot(3))
    case.check(shared=1, sharing=3, cow=2, frames=3)
    if case.is_old:
        case.scan(shared=1, sharing=3, frames=1)
    else:
        case.scan(shared=1, sharing=1, volatile=2, frames=3)
    case.scan(shared=1, sharing=3, volatile=0, frames=1)


# Copy-on-write breaks, and content.


def a_write_copies_even_the_last_mapping(case: Case) -> None:
    case.process(1, [5, 5])
    case.scans(2)
    case.do("write", 1, V, [6])
    case.check(shared=1, sharing=1, cow=1, frames=2)
    case.scan(shared=1, sharing=0, volatile=1)
    case.do("write", 1, V + 1, [7])
    case.check(shared=1, sharing=0, cow=2, frames=2)
    case.scan(shared=0, sharing=0)


def a_page_written_with_what_it_had_is_copied_and_merges_again(case: Case) -> None:
    case.smart(0)
    case.process(1, [5] * 4)
    case.scans(2)
    case.do("write", 1, V, [5])
    case.check(shared=1, sharing=3, cow=1, frames=2)
    # Its checksum is that of before: it merges at its first visit.
    case.scan(shared=1, sharing=3, frames=1)


def pages_that_change_between_scans_stay_volatile(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 11))
    for number in range(2, 6):
        case.scan(volatile=10, unshared=0)
        case.do("write", 1, V, [number * 100 + i for i in range(10)])
    case.do("write", 1, V, [1] * 10)
    case.scan(volatile=10)
    case.scan(shared=1, sharing=9)


def pages_of_one_process_merge_with_each_other_and_with_others(case: Case) -> None:
    case.process(1, [1, 2, 1, 2, 3])
    case.process(2, [3, 2, 4])
    case.scan(volatile=8)
    case.scan(shared=3, sharing=4, unshared=1, volatile=0, frames=4,
              merging={1: 5, 2: 2}, items={1: 5, 2: 3})


# Chains.


def _closed_form(n: int, limit: int) -> Write:
    """n equal pages that are all first seen in one scan."""
    def write(case: Case) -> None:
        case.smart(0)
        if limit != 256:
            case.do("knob", "max_page_sharing", limit)
        case.process(1, [7] * n)
        rest = n % limit
        shared = n // limit + (rest >= 2)
        left = int(rest == 1)
        in_chain = shared if shared > 1 else 0
        case.scan(volatile=n)
        for _ in range(2):
            case.scan(shared=shared, sharing=n - shared - left, unshared=left, volatile=0,
                      chains=int(in_chain > 0), dups=in_chain, frames=shared + left)
    return write


def a_chain_with_one_page_left_is_dissolved_by_a_search(case: Case) -> None:
    case.smart(0)
    case.do("knob", "max_page_sharing", 2)
    case.do("knob", "stable_node_chains_prune_millisecs", 0)
    case.process(1, [5] * 4)
    case.scans(1)
    case.scan(shared=2, sharing=2, chains=1, dups=2)
    case.do("unmap", 1, V, 2)
    # Nobody searches for the content here.
    case.scan(shared=1, sharing=1, chains=1, dups=1)
    case.process(2, [5])
    case.scan(volatile=1)
    left = int(case.is_old)
    # 6.1 keeps a chain whose only page is full.
    case.scan(shared=1, sharing=1, unshared=1, chains=left, dups=left)


def a_place_that_falls_free_in_a_full_page_is_taken(case: Case) -> None:
    case.smart(0)
    case.do("knob", "max_page_sharing", 3)
    case.process(1, [5] * 7)
    case.scan()
    case.scan(shared=2, sharing=4, unshared=1, chains=1, dups=2)
    case.do("write", 1, V, [9])
    # The seventh page comes after the first has left its place.
    case.scan(shared=2, sharing=4, unshared=0, volatile=1, chains=1, dups=2)


def the_limit_cannot_change_while_pages_are_merged(case: Case) -> None:
    case.process(1, [5] * 4)
    case.scans(2)
    case.do("knob", "max_page_sharing", 3)
    case.do("knob", "merge_across_nodes", 0)
    case.check(errors=["EBUSY", "EBUSY"], shared=1, sharing=3)
    case.do("run", 2)
    case.do("knob", "max_page_sharing", 3)
    case.do("run", 1)
    case.scan(errors=[])
    case.scan(shared=1, sharing=2, unshared=1)


def values_out_of_range_are_refused(case: Case) -> None:
    case.do("knob", "max_page_sharing", 1)
    case.do("knob", "max_page_sharing", 0)
    case.do("knob", "use_zero_pages", 2)
    case.do("knob", "smart_scan", 2)
    case.do("knob", "merge_across_nodes", 2)
    case.check(errors=["EINVAL", "EINVAL", "EINVAL", "ENOENT" if case.is_old else "EINVAL",
                       "EINVAL"])


def one_node_is_one_tree(case: Case) -> None:
    case.do("knob", "merge_across_nodes", 0)
    case.process(1, [5] * 4)
    case.scan(errors=[])
    case.scan(shared=1, sharing=3)
    case.do("run", 2)
    case.do("knob", "merge_across_nodes", 1)
    case.check(errors=[], shared=0, sharing=0)


# Zero pages.


def zero_pages_without_use_zero_pages_are_like_others(case: Case) -> None:
    case.process(1, [0] * 10)
    case.scan(volatile=10)
    case.scan(shared=1, sharing=9, zero=0, zero_ptes=0, frames=1)


def a_write_to_a_zero_page_counts_at_once_and_is_no_break(case: Case) -> None:
    case.do("knob", "use_zero_pages", 1)
    case.process(1, [0] * 10)
    case.scans(3)
    case.do("write", 1, V, [5, 6, 7])
    case.check(zero=7, zero_ptes=7, cow=0, volatile=0)
    case.scan(zero=7, volatile=3, items={1: 3})
    case.do("unmap", 1, V + 3, 2)
    case.check(zero=5)
    case.do("exit", 1)
    case.check(zero=0)
    case.scan(volatile=0)


def unadvise_gives_zero_pages_back(case: Case) -> None:
    case.do("knob", "use_zero_pages", 1)
    case.process(1, [0] * 10)
    case.scans(2)
    case.do("unadvise", 1, V, 10)
    # 6.1 does not know which it placed.
    case.check(zero=0, cow=0, zero_ptes=10 if case.is_old else 0,
               frames=0 if case.is_old else 10)


def zero_pages_placed_by_reading_are_not_counted(case: Case) -> None:
    case.do("knob", "use_zero_pages", 1)
    case.do("spawn", 1)
    case.do("map", 1, V, 20, "small")
    case.do("write", 1, V, [0] * 10)
    case.do("read", 1, V + 10, 10)
    case.do("advise", 1, V, 20)
    case.scan(zero=0, zero_ptes=10)
    case.scan(zero=10, zero_ptes=20, frames=0)


def zero_pages_merged_before_stay_merged(case: Case) -> None:
    case.process(1, [0] * 4)
    case.scans(2)
    case.do("knob", "use_zero_pages", 1)
    case.scan(shared=1, sharing=3, zero=0)
    case.do("write", 1, V, [0])
    # Its checksum is that of before, so it goes to the zero page at once; 6.1 finds the others
    # first.
    for _ in range(2):
        case.scan(shared=1, sharing=3 if case.is_old else 2, zero=1,
                  zero_ptes=int(not case.is_old))


# Smart scan.


def pairs_of_all_distances(case: Case) -> None:
    """Two equal pages of which the second is first seen d scans after the first, d = 0 ... 32."""
    n_distances, n_scans = 33, 75
    case.process(1, range(1, n_distances + 1))
    case.do("spawn", 2)
    case.do("map", 2, V, n_distances, "small")
    case.do("advise", 2, V, n_distances)
    merges = []
    for distance in range(n_distances):
        late = _MERGE_AFTER_LATE[(distance - 13) % 9]
        after = 1 if case.is_old else _MERGE_AFTER[distance] if distance < 13 else late
        if after is not None:
            merges.append(distance + after)
    for number in range(n_scans):
        if number < n_distances:
            case.do("write", 2, V + number, [number + 1])
        n_merged = sum(when <= number for when in merges)
        case.scan(shared=n_merged, sharing=n_merged)


def smart_scan_can_be_turned_off_and_on(case: Case) -> None:
    case.process(1, range(1, 11))
    case.scans(4)
    case.smart(0)
    case.scan(unshared=10, skipped=0, scanned=50)
    case.scan(unshared=10, skipped=0, scanned=60)
    case.smart(1)
    # Turned off it does not even count: the sixth visit is to the smart scan the fourth skip's.
    case.scan(skipped=0 if case.is_old else 10)


def a_merged_page_is_not_skipped(case: Case) -> None:
    case.process(1, [5] * 10)
    for number in range(1, 9):
        case.scan(scanned=10 * number, skipped=0)


# run.


def run_2_undoes_all_and_memory_stays_mergeable(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("run", 2)
    case.check(shared=0, sharing=0, unshared=0, volatile=0, full_scans=0, cow=10, frames=10,
               items={1: 0}, merging={1: 0}, scanned=20)
    case.do("run", 1)
    case.scan(volatile=10, full_scans=1)
    case.scan(shared=1, sharing=9, full_scans=2)


def run_0_keeps_what_is_merged(case: Case) -> None:
    case.process(1, [5] * 10)
    case.scans(2)
    case.do("run", 0)
    case.do("write", 1, V, [6])
    case.check(shared=1, sharing=9, cow=1, frames=2)
    case.do("run", 1)
    case.scan(shared=1, sharing=8, volatile=1)


def run_2_in_mid_scan_begins_anew(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 21))
    case.scan()
    case.scan_pages(5, unshared=5)
    case.do("run", 2)
    case.do("run", 1)
    case.scan_pages(8, volatile=8, unshared=0, full_scans=0)


# Huge pages.


def a_huge_page_of_unique_pages_stays_whole(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 513), kind="huge")
    case.scan(volatile=512)
    case.scan(unshared=512, frames=512)
    case.scan(unshared=512, frames=512)


def a_huge_page_merges_with_small_pages(case: Case) -> None:
    case.smart(0)
    case.process(1, range(1, 513), kind="huge")
    case.process(2, [1, 2])
    case.scan(volatile=514)
    case.scan(shared=2, sharing=2, unshared=510, frames=512)


def a_small_page_given_first_is_replaced_by_one_of_a_huge_page(case: Case) -> None:
    case.smart(0)
    case.process(1, [1, 2])
    case.process(2, range(1, 513), kind="huge")
    case.scan(volatile=514)
    case.scan(shared=2, sharing=2, unshared=510, frames=512)


def two_equal_huge_pages_become_one(case: Case) -> None:
    case.smart(0)
    for p in (1, 2):
        case.process(p, range(1, 513), kind="huge")
    case.scan(volatile=1024)
    case.scan(shared=512, sharing=512, frames=512)


_WRITERS: tuple[Write, ...] = (
    a_script_may_end_within_a_scan,
    processes_are_visited_in_the_order_of_their_first_advice,
    pages_are_visited_in_ascending_order_whatever_was_mapped_first,
    who_registers_in_mid_scan_is_visited_in_the_next,
    a_child_forked_in_mid_scan_is_visited_in_the_next,
    a_batch_ends_with_the_scan,
    skipped_pages_cost_no_budget,
    the_other_side_of_a_fork_follows_a_scan_later,
    merged_pages_outlive_the_parent,
    fork_passes_the_limit,
    a_child_that_writes_leaves_the_parent_merged,
    exit_of_the_process_at_the_cursor,
    exit_of_a_process_after_the_cursor,
    exit_of_a_process_before_the_cursor_is_seen_in_the_same_scan,
    exit_between_scans_is_seen_by_the_next,
    exit_while_stopped_changes_nothing_until_run_is_1,
    unadvise_copies_at_once_and_counts_later,
    a_process_without_mergeable_memory_is_forgotten_and_comes_back,
    unmapped_pages_are_counted_until_the_next_scan,
    dropped_pages_are_counted_until_the_next_scan,
    a_page_dropped_and_written_between_scans_is_the_same_item,
    pages_never_touched_or_only_read_have_no_items,
    mremap_copies_first,
    a_write_copies_even_the_last_mapping,
    a_page_written_with_what_it_had_is_copied_and_merges_again,
    pages_that_change_between_scans_stay_volatile,
    pages_of_one_process_merge_with_each_other_and_with_others,
    a_chain_with_one_page_left_is_dissolved_by_a_search,
    a_place_that_falls_free_in_a_full_page_is_taken,
    the_limit_cannot_change_while_pages_are_merged,
    values_out_of_range_are_refused,
    one_node_is_one_tree,
    zero_pages_without_use_zero_pages_are_like_others,
    a_write_to_a_zero_page_counts_at_once_and_is_no_break,
    unadvise_gives_zero_pages_back,
    zero_pages_placed_by_reading_are_not_counted,
    zero_pages_merged_before_stay_merged,
    pairs_of_all_distances,
    smart_scan_can_be_turned_off_and_on,
    a_merged_page_is_not_skipped,
    run_2_undoes_all_and_memory_stays_mergeable,
    run_0_keeps_what_is_merged,
    run_2_in_mid_scan_begins_anew,
    a_huge_page_of_unique_pages_stays_whole,
    a_huge_page_merges_with_small_pages,
    a_small_page_given_first_is_replaced_by_one_of_a_huge_page,
    two_equal_huge_pages_become_one,
    *UNDONE_PAIRS,
)

_LIMITS = ((1, 256), (2, 256), (255, 256), (256, 256), (257, 256), (258, 256), (512, 256),
           (513, 256), (514, 256), (2, 2), (3, 2), (4, 2), (7, 2), (3, 3), (4, 3), (5, 3), (8, 3))


def _surprise(name: str) -> Write:
    def write(case: Case) -> None:
        surprise = SURPRISES[name]
        n = sum(step[0] in ("scan", "scan_pages", "check") for step in surprise.script)
        for step in surprise.script:
            if case.is_old and step[:2] == ("knob", "smart_scan"):
                continue
            if step[0] not in ("scan", "scan_pages", "check"):
                case.do(*step)
                continue
            n -= 1
            case.seen(*step, **({} if n else surprise.at_end[case.kernel]))
    return write


CASES: dict[str, Write] = (
    {write.__name__: write for write in _WRITERS}
    | {f"{n}_equal_pages_with_at_most_{limit}": _closed_form(n, limit) for n, limit in _LIMITS}
    | {name: _surprise(name) for name in SURPRISES})
