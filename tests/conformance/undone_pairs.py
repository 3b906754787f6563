"""Hand-written scripts in which ksmd undoes a pair half-way; what becomes of its first page.

The second page is a zero page that the split of its huge page gives back. The first one is a KSM
page by then, and stays one where a fork has it too. 6.1 keeps the zero page, and merges the pair.
"""

from __future__ import annotations

from tests.conformance.casebook import Case, Write
from tests.conformance.script import slot

V = slot(0)


def _undone_pair(case: Case) -> None:
    """Process 2 has a copy of its zero page after it, and its child 3 the KSM page."""
    case.do("spawn", 1)
    case.do("map", 1, V, 512, "huge")
    case.do("write", 1, V, [0])
    case.do("advise", 1, V + 511, 1)
    case.process(2, [0])
    case.scan(volatile=2)
    case.do("fork", 2, 3)
    if case.is_old:
        case.scan(shared=1, sharing=2, volatile=0, cow=0)
    else:
        case.scan(shared=0, unshared=1, volatile=2, cow=1, frames=2)


def a_page_left_by_an_undone_pair_merges_after_a_write(case: Case) -> None:
    _undone_pair(case)
    case.scan(**{} if case.is_old else {"shared": 0, "unshared": 1, "volatile": 1, "cow": 1})
    # Though nobody else maps it, it is copied: it is a KSM page.
    case.do("write", 3, V, [0])
    case.check(cow=1 if case.is_old else 2)
    case.scan(shared=1, sharing=2 if case.is_old else 1)


def a_page_left_by_an_undone_pair_undoes_pairs_and_is_never_skipped(case: Case) -> None:
    _undone_pair(case)
    case.do("exit", 2)
    case.process(4, [0])
    case.scan(**{} if case.is_old else {"shared": 0, "unshared": 1, "volatile": 1, "cow": 1})
    # It stands in the unstable tree, where the page of 4 finds it, is made a KSM page, and copied.
    # Smart scan skips that one only: in the 4th, 6th and 7th of these scans.
    for cow, skipped in ((2, 0), (3, 0), (4, 0), (4, 1), (5, 1), (5, 2), (5, 3), (6, 3)):
        case.scan(**{} if case.is_old else {"shared": 0, "unshared": 1, "cow": cow,
                                            "skipped": skipped})


def a_page_left_by_an_undone_pair_is_no_zero_page_and_undone_by_run_2(case: Case) -> None:
    _undone_pair(case)
    case.do("knob", "use_zero_pages", 1)
    if case.is_old:
        case.scan()
    else:
        # The item of 2, whose page is the zero page now, goes in the next scan.
        case.scan(zero=1, shared=0, unshared=1, volatile=1, cow=1, frames=1)
    case.do("run", 2)
    case.check(**{} if case.is_old else {"zero": 0, "cow": 2, "frames": 2, "volatile": 0})
    case.do("run", 1)
    case.scan(volatile=3 if case.is_old else 2)
    case.scan(**{} if case.is_old else {"zero": 2, "frames": 0, "volatile": 2})


def a_page_left_by_an_undone_pair_is_copied_by_unadvise_and_kept_by_fork(case: Case) -> None:
    _undone_pair(case)
    case.do("fork", 3, 4)
    case.scans(2)
    case.scan(**{} if case.is_old else {"shared": 0, "cow": 1, "frames": 2})
    case.do("unadvise", 3, V, 1)
    case.check(**{} if case.is_old else {"cow": 2, "frames": 3})
    case.do("unadvise", 4, V, 1)
    case.check(**{} if case.is_old else {"cow": 3, "frames": 3})


UNDONE_PAIRS: tuple[Write, ...] = (
    a_page_left_by_an_undone_pair_merges_after_a_write,
    a_page_left_by_an_undone_pair_undoes_pairs_and_is_never_skipped,
    a_page_left_by_an_undone_pair_is_no_zero_page_and_undone_by_run_2,
    a_page_left_by_an_undone_pair_is_copied_by_unadvise_and_kept_by_fork,
)
