"""Short scripts in which kernels do what is seldom written of them, and what they show at the end.

Each was seen on live kernels 6.1.192, 6.12.117 and 6.18.44; docs/ksm-model.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.script import Script, slot

V = slot(0)


@dataclass(frozen=True)
class Surprise:
    """`at_end`: by kernel, values of the last observation: counters, `cow_ksm`, and over all
    pages the number of `frames` in use and of `zero_ptes`.
    """

    script: Script
    at_end: dict[str, dict[str, int]]


def _since_6_12(old: dict[str, int], new: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"6.1": old, "6.12": new, "6.18": new}


def _always(values: dict[str, int]) -> dict[str, dict[str, int]]:
    return dict.fromkeys(("6.1", "6.12", "6.18"), values)


def _region(p: int, n: int, kind: str, contents: list[int]) -> Script:
    return (("spawn", p), ("map", p, V, n, kind), ("write", p, V, contents), ("advise", p, V, n))


SCAN = ("scan",)

SURPRISES: dict[str, Surprise] = {
    # Splitting a huge page frees its zero-filled pages, outside all counters.
    "split_gives_zero_pages_back": Surprise(
        (*_region(1, 512, "huge", [1, 1]), SCAN, SCAN),
        _since_6_12({"pages_shared": 2, "pages_sharing": 508, "zero_ptes": 0, "frames": 4},
                    {"pages_shared": 0, "pages_sharing": 0, "pages_unshared": 1,
                     "zero_ptes": 510, "frames": 2})),
    # use_zero_pages counts nothing of a huge page: the split is quicker than the merge.
    "zero_pages_of_a_huge_page_are_not_counted": Surprise(
        (("knob", "use_zero_pages", 1), *_region(1, 512, "huge", [1]), SCAN, SCAN, SCAN),
        _since_6_12({"zero_ptes": 511, "frames": 1, "pages_unshared": 1},
                    {"zero_ptes": 511, "frames": 1, "pages_unshared": 1, "ksm_zero_pages": 0})),
    # The page whose merge split the huge page is in the unstable tree, and mapped no more.
    "a_ghost_is_unshared": Surprise(
        (("knob", "use_zero_pages", 1), *_region(1, 512, "huge", [1]), SCAN, SCAN),
        _since_6_12({"pages_unshared": 1, "pages_volatile": 511},
                    {"pages_unshared": 2, "pages_volatile": 0})),
    # cow_ksm rises though nobody wrote: the first page of a pair was made a KSM page in vain.
    "copy_on_write_without_a_write": Surprise(
        (*_region(1, 512, "huge", [0, *range(1, 512)]), *_region(2, 1, "small", [0]), SCAN, SCAN),
        _since_6_12({"cow_ksm": 0, "pages_shared": 1, "zero_ptes": 0},
                    {"cow_ksm": 1, "pages_shared": 0, "zero_ptes": 1})),
    # That page stays a KSM page where a fork had it too, and no kernel merges a KSM page.
    "a_page_whose_partner_vanished_never_merges": Surprise(
        (("spawn", 1), ("map", 1, V, 512, "huge"), ("write", 1, V, [0]), ("advise", 1, V + 511, 1),
         *_region(2, 1, "small", [0]), SCAN, ("fork", 2, 3), *[SCAN] * 30),
        _since_6_12({"pages_shared": 1, "pages_sharing": 2},
                    {"pages_shared": 0, "pages_sharing": 0, "cow_ksm": 1, "frames": 2})),
    # Two equal pages of one huge page split it, and merge a scan later.
    "twins_in_a_huge_page_wait_a_scan": Surprise(
        (*_region(1, 512, "huge", [1, 1, *range(2, 512)]), SCAN, SCAN),
        _always({"pages_shared": 0, "pages_unshared": 511, "pages_volatile": 1, "frames": 512})),
    # One page that went away in mid-scan keeps all others out of the unstable tree below it.
    "a_dropped_page_blocks_the_unstable_tree": Surprise(
        (*_region(1, 3, "small", [1, 2, 3]), SCAN, ("scan_pages", 1), ("dontneed", 1, V, 1), SCAN),
        _always({"pages_unshared": 1, "pages_volatile": 2, "frames": 2})),
    # Chains and dups outlive every page they ever had.
    "a_chain_of_nothing": Surprise(
        (("knob", "smart_scan", 0), ("knob", "max_page_sharing", 2),
         *_region(1, 4, "small", [3] * 4), *_region(2, 1, "small", [1]), SCAN, SCAN,
         ("fork", 1, 3), ("exit", 1), ("scan_pages", 1), ("exit", 3), SCAN),
        _always({"pages_shared": 0, "pages_sharing": 0, "stable_node_chains": 1,
                 "stable_node_dups": 2, "frames": 1})),
    # The first search that passes it ends it.
    "a_chain_of_nothing_is_found_by_a_search": Surprise(
        (("knob", "smart_scan", 0), ("knob", "max_page_sharing", 2),
         *_region(1, 4, "small", [3] * 4), *_region(2, 1, "small", [1]), SCAN, SCAN,
         ("fork", 1, 3), ("exit", 1), ("scan_pages", 1), ("exit", 3), SCAN, SCAN),
        _always({"stable_node_chains": 0, "stable_node_dups": 0})),
    # Two equal pages first seen 13 scans apart are never processed in one scan.
    "some_pairs_never_merge": Surprise(
        (*_region(1, 2, "small", [1]), *[SCAN] * 13, ("write", 1, V + 1, [1]), *[SCAN] * 40),
        _since_6_12({"pages_shared": 1, "pages_sharing": 1}, {"pages_shared": 0})),
    # 6.1 leaves zero pages that ksmd placed where they are.
    "run_2_leaves_zero_pages_on_6_1": Surprise(
        (("knob", "use_zero_pages", 1), *_region(1, 4, "small", [0] * 4), SCAN, SCAN, ("run", 2),
         ("check",)),
        _since_6_12({"zero_ptes": 4, "frames": 0}, {"zero_ptes": 0, "frames": 4})),
    # A fork doubles ksm_zero_pages at once, and pages_sharing when ksmd comes by.
    "fork_counts_zero_pages_at_once": Surprise(
        (("knob", "use_zero_pages", 1), *_region(1, 4, "small", [0] * 4), SCAN, SCAN,
         ("fork", 1, 2), ("check",)),
        _since_6_12({"zero_ptes": 8, "frames": 0},
                    {"zero_ptes": 8, "frames": 0, "ksm_zero_pages": 8})),
}
