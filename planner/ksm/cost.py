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
from planner.kernels import ksm as kernels

__all__ = ["BUILTIN_UNMEASURED", "CostModel"]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Nanoseconds per kind of visit, integers, none negative.

    - `hole_ns`: a page that is not there (page-table step only; costs no scan budget)
    - `quick_ns`: an already merged page, and a merged page inherited by fork: no hash
    - `first_sight_ns`: allocate a rmap item and hash the page
    - `volatile_ns`: hash a page whose content changed since its last visit
    - `unique_ns`: hash, search both trees, insert (also a page that meets its own frame)
    - `merge_ns`: hash, search the stable tree, merge into a KSM page
    - `pair_merge_ns`: hash, search both trees, merge two pages, insert into the stable tree
    - `stable_level_ns`, `unstable_level_ns`: added per level of the tree that is searched
    - `batch_ns`: fixed cost of a batch of ksmd, at least 1 (a batch that finds nothing must
      still take time)
    - `call_ns`: fixed cost of a synchronous merge or unmerge call
    - `unmerge_ns`: copy one merged page out, in the caller's context
    - `cow_break_ns`: a write to a merged page, paid by the writer and never part of ksmd's time
    - `cold_percent`, `cold_pages`: the first `cold_pages` visits after a sleep (or of a call)
      cost so many per cent more, because the caches are cold

    Raises `UsageError` for a negative or non-integer field, or `batch_ns` below 1.
    """

    name: str
    hole_ns: int
    quick_ns: int
    first_sight_ns: int
    volatile_ns: int
    unique_ns: int
    merge_ns: int
    pair_merge_ns: int
    stable_level_ns: int
    unstable_level_ns: int
    batch_ns: int
    call_ns: int
    unmerge_ns: int
    cow_break_ns: int
    cold_percent: int
    cold_pages: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"expected nanoseconds as an integer of at least 0, got {value!r}",
                    where=f"cost model {self.name}: {field.name}",
                )
        if self.batch_ns < 1:
            raise UsageError(
                "a batch costs at least 1 ns", where=f"cost model {self.name}: batch_ns"
            )

    def as_array(self) -> NDArray[np.int64]:
        """The figures in the order the kernels read them: int64, shape (`COST_FIELDS`,)."""
        out = np.zeros(kernels.COST_FIELDS, dtype=np.int64)
        out[kernels.HOLE] = self.hole_ns
        out[kernels.FOREIGN] = self.quick_ns
        out[kernels.QUICK] = self.quick_ns
        out[kernels.INHERITED] = self.quick_ns
        out[kernels.FIRST] = self.first_sight_ns
        out[kernels.VOLATILE] = self.volatile_ns
        out[kernels.UNIQUE] = self.unique_ns
        out[kernels.TWIN] = self.unique_ns
        out[kernels.MERGED] = self.merge_ns
        out[kernels.PAIRED] = self.pair_merge_ns
        out[kernels.COST_STABLE_LEVEL] = self.stable_level_ns
        out[kernels.COST_UNSTABLE_LEVEL] = self.unstable_level_ns
        out[kernels.COST_BATCH] = self.batch_ns
        out[kernels.COST_CALL] = self.call_ns
        out[kernels.COST_UNMERGE] = self.unmerge_ns
        out[kernels.COST_COW] = self.cow_break_ns
        out[kernels.COST_COLD_PERCENT] = self.cold_percent
        out[kernels.COST_COLD_PAGES] = self.cold_pages
        return out


#: Not measured on the user's host. The figures are in line with one 6.18 kernel on an AMD EPYC
#: guest: about 1.5 us a page in the first pass, 7 to 9 us a page in bursts and 5.5 us without
#: sleeping once 10^5 candidates are in the unstable tree. Expect errors of 50 % elsewhere.
BUILTIN_UNMEASURED = CostModel(
    name="builtin:unmeasured",
    hole_ns=5,
    quick_ns=350,
    first_sight_ns=1_100,
    volatile_ns=1_000,
    unique_ns=1_300,
    merge_ns=4_000,
    pair_merge_ns=7_000,
    stable_level_ns=120,
    unstable_level_ns=240,
    batch_ns=15_000,
    call_ns=50_000,
    unmerge_ns=2_500,
    cow_break_ns=2_500,
    cold_percent=40,
    cold_pages=4_096,
)
