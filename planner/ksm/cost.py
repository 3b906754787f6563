"""What a visit of a page costs in CPU time, per kind of visit.

The kinds follow the paths of `cmp_and_merge_page` (mm/ksm.c): most of ksmd's time goes into the
descents of the two trees, so a visit costs a base plus so much per level, and a tree of n nodes
has `n.bit_length()` levels (measured insertion order gives log2(n) + 0.45). All figures are
integer nanoseconds, so that a run is reproducible to the nanosecond.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.kernels import ksmstate as k

__all__ = ["BUILTIN_UNMEASURED", "NEAR_LEVELS", "CostModel"]

#: Levels of a tree that are as good as always in the caches.
NEAR_LEVELS = 10


@dataclass(frozen=True, slots=True)
class CostModel:
    """Nanoseconds per kind of visit, integers, none negative.

    - `hole_ns`: a page that is not there (page-table step only; costs no scan budget)
    - `skip_ns`: a page that smart_scan passes over (no budget either)
    - `quick_ns`: an already merged page, and a merged page inherited by fork: no hash
    - `first_sight_ns`: allocate a rmap item and hash the page
    - `volatile_ns`: hash a page whose content changed since its last visit
    - `unique_ns`: hash, search both trees, insert (also a page that meets its own frame)
    - `merge_ns`: hash, search the stable tree, merge into a KSM page
    - `pair_merge_ns`: hash, search both trees, merge two pages, insert into the stable tree
    - `zero_merge_ns`: hash, put the shared zero page in place (use_zero_pages)
    - `split_ns`: split one huge page, beside the visit that needs it
    - `stable_level_ns`, `unstable_level_ns`: added per level of the tree that is searched;
      `stable_far_ns`, `unstable_far_ns`: in addition per level beyond the first `NEAR_LEVELS`,
      which miss the caches
    - `batch_ns`: fixed cost of a batch of ksmd, at least 1 (a batch that finds nothing must
      still take time); `scan_ns`: fixed cost of a full scan, at its start
    - `call_ns`: fixed cost of a synchronous merge or unmerge call
    - `unmerge_ns`: copy one merged page out, in the caller's context
    - `cow_break_ns`: a write to a merged page, paid by the writer and never part of ksmd's time
    - `cold_percent`, `cold_pages`: the first `cold_pages` visits after a sleep (or of a call)
      cost so many per cent more, because the caches are cold (holes, skipped pages and splits
      do not)

    Raises `UsageError` for a negative or non-integer field, or `batch_ns` below 1.
    """

    name: str
    hole_ns: int
    skip_ns: int
    quick_ns: int
    first_sight_ns: int
    volatile_ns: int
    unique_ns: int
    merge_ns: int
    pair_merge_ns: int
    zero_merge_ns: int
    split_ns: int
    stable_level_ns: int
    unstable_level_ns: int
    stable_far_ns: int
    unstable_far_ns: int
    batch_ns: int
    scan_ns: int
    call_ns: int
    unmerge_ns: int
    cow_break_ns: int
    cold_percent: int
    cold_pages: int

    def __post_init__(self) -> None:
        for name, value in self.costs_ns().items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"expected nanoseconds as an integer of at least 0, got {value!r}",
                    where=f"cost model {self.name}: {name}",
                )
        if self.batch_ns < 1:
            raise UsageError(
                "a batch costs at least 1 ns", where=f"cost model {self.name}: batch_ns"
            )

    def costs_ns(self) -> dict[str, int]:
        """The figures by the names of their fields, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name != "name"}

    def as_array(self) -> NDArray[np.int64]:
        """The figures in the order the kernels read them: int64, shape (COST_FIELDS,)."""
        out = np.zeros(k.COST_FIELDS, dtype=np.int64)
        out[k.HOLE] = self.hole_ns
        out[k.SKIPPED] = self.skip_ns
        out[[k.FOREIGN, k.QUICK, k.INHERITED]] = self.quick_ns
        out[k.FIRST] = self.first_sight_ns
        out[k.VOLATILE] = self.volatile_ns
        out[[k.UNIQUE, k.TWIN, k.GAVE_UP, k.FAILED]] = self.unique_ns
        out[k.ZEROED] = self.zero_merge_ns
        out[k.MERGED] = self.merge_ns
        out[k.PAIRED] = self.pair_merge_ns
        out[k.COST_SPLIT] = self.split_ns
        out[k.COST_BATCH] = self.batch_ns
        out[k.COST_SCAN] = self.scan_ns
        out[k.COST_CALL] = self.call_ns
        out[k.COST_UNMERGE] = self.unmerge_ns
        out[k.COST_COW] = self.cow_break_ns
        out[k.COST_COLD_PERCENT] = self.cold_percent
        out[k.COST_COLD_PAGES] = self.cold_pages
        levels = np.arange(k.MAX_LEVELS)
        far = np.maximum(levels - NEAR_LEVELS, 0)
        out[k.COST_STABLE : k.COST_STABLE + k.MAX_LEVELS] = (
            levels * self.stable_level_ns + far * self.stable_far_ns)
        out[k.COST_UNSTABLE : k.COST_UNSTABLE + k.MAX_LEVELS] = (
            levels * self.unstable_level_ns + far * self.unstable_far_ns)
        return out


#: Not measured on the user's host. The figures are in line with one 6.18 kernel on an AMD EPYC
#: guest: about 1.5 us a page in the first pass, 7 to 9 us a page in bursts and 5.5 us without
#: sleeping once 10^5 candidates are in the unstable tree. Expect errors of 50 % elsewhere.
BUILTIN_UNMEASURED = CostModel(
    name="builtin:unmeasured",
    hole_ns=5,
    skip_ns=250,
    quick_ns=350,
    first_sight_ns=1_100,
    volatile_ns=1_000,
    unique_ns=1_300,
    merge_ns=4_000,
    pair_merge_ns=7_000,
    zero_merge_ns=3_000,
    split_ns=30_000,
    stable_level_ns=120,
    unstable_level_ns=240,
    stable_far_ns=0,
    unstable_far_ns=0,
    batch_ns=15_000,
    scan_ns=0,
    call_ns=50_000,
    unmerge_ns=2_500,
    cow_break_ns=2_500,
    cold_percent=40,
    cold_pages=4_096,
)
