"""The state of memory merging as flat integer tables: their columns and how they hang together.

All tables are C-ordered; callers check shapes and ranges. A `World` holds them all.

    sites    int32 (n_sites, 8)     one row (32 bytes) per virtual page; pages of one mm together
    frames   int32 (n_frames, 7)    base frames first, then a pool
    contents int32 (n_rows, 5)      per (partition, content): stable nodes, chain, unstable entry
    nodes    int32 (n_nodes, 6)     stable nodes, doubly linked per content
    slots    int32 (n_slots, 7)     mm slots of a partition in a ring, and the ring's head
    parts    int64 (n_parts, 64)    per partition: counters, cursor, knobs; row 0 is "no partition"
    host     int64 (16,)            cursors, free lists, what the kernel version does
    order    int32                  site ids, each slot's together and by ascending vpn
    zero     uint8 (n_contents,)    content is all zero
    cost     int64 (COST_FIELDS,)   nanoseconds, see planner.ksm.cost

Trees are tables indexed by content id: searching one costs a look-up here and the simulated time
of a descent. With `H_EXACT` they are the kernel's red-black trees, in the byte order of contents,
so that a descent meets exactly the nodes that the kernel's meets (`tree` and `keys`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

# sites; S_FRAME of a ZERO_MAPPED page: the content it had; S_BASE of an UNSEEN one: -2 less the
# P_EPOCH in which it left the sample
S_CONTENT, S_OLD, S_FRAME, S_NODE, S_SEQ, S_META, S_BASE, S_PART = range(8)
SITE_FIELDS = 8
ABSENT = -1  # of S_CONTENT: no page
ZERO_MAPPED = -2  # of S_CONTENT: the shared zero page
UNSEEN = -3  # of contents that are written: the page is there, but no part of a sample of pages
AGE_MASK = 0xFF
SKIPS_SHIFT = 8
SKIPS_MASK = 0xFF << SKIPS_SHIFT
M_ITEM = 1 << 16  # has a rmap item
M_UNSTABLE = 1 << 17  # ... flagged UNSTABLE, perhaps of the scan before
M_STABLE = 1 << 18  # ... on the stable node S_NODE
M_MERGED = 1 << 19  # ... whose page is still mapped: neither written nor unmapped since
M_VMA = 1 << 20  # lies in a mergeable mapping
M_HUGE = 1 << 21  # part of a huge page (not split)
M_KSM_ZERO = 1 << 22  # ZERO_MAPPED by KSM
M_BORN_HUGE = 1 << 23  # is part of a huge page whenever it appears
M_UNSEEN = 1 << 24  # ABSENT because it is UNSEEN: what ksmd knows of the page stays known
QUICK_FLAGS = M_STABLE | M_MERGED

# frames; F_SITE: the page others are born from, or the next of the free list; F_NODE of a KSM
# page: its stable node, or ORPHAN
F_BASE, F_PHYS, F_NODE, F_SITE, F_OWNER, F_FLAGS, F_FOLIO = range(7)
FRAME_FIELDS = 7
NO_NODE = -1  # of F_NODE: no KSM page
ORPHAN = -2  # of F_NODE: a KSM page without a stable node, of a merge that failed half-way
FLAG_BASE_ZERO = 1
FLAG_PHYS_ZERO = 2
FLAG_CROSS = 4  # pages of several partitions were born on it: never a KSM page

# contents; C_CHAIN: -1 or the jiffy in which this content's chain was pruned last
C_HEAD, C_NODES, C_CHAIN, C_SITE, C_EPOCH = range(5)
CONTENT_FIELDS = 5

# nodes
N_ITEMS, N_FRAME, N_ROW, N_NEXT, N_PREV, N_PART = range(6)
NODE_FIELDS = 6
STALE = -1  # of N_FRAME: its page is gone, which nobody has noticed
REMOVED = -2  # of N_FRAME: out of the tree; only items that were on it still name it

# slots
L_NEXT, L_PREV, L_START, L_COUNT, L_STATE, L_MERGEABLE, L_MM = range(7)
SLOT_FIELDS = 7
UNREGISTERED, REGISTERED, EXITED = range(3)

# tree (H_EXACT): links of a red-black tree; column 0 the left child, 1 the right one
T_LEFT, T_RIGHT, T_PARENT, T_RED = range(4)
TREE_FIELDS = 4

# parts
(
    P_ITEMS,
    P_SHARED,
    P_SHARING,
    P_UNSHARED,
    P_ZERO,
    P_CHAINS,
    P_DUPS,
    P_NODES,
    P_TREE_STABLE,
    P_TREE_UNSTABLE,
    P_SCANNED,
    P_SKIPPED,
    P_FULL_SCANS,
    P_CPU_NS,
    P_COW,
    P_COW_NS,
    P_LIVE_BASE,
    P_LIVE_BASE_ZERO,
    P_LIVE_PHYS,
    P_LIVE_PHYS_ZERO,
    P_EPOCH,
    P_HEAD,
    P_SLOT,
    P_INDEX,
    P_PLAN,
    P_CONTENT_OFFSET,
    P_STABLE_ROOT,
    P_UNSTABLE_ROOT,
    P_IS_RUNNING,
    P_NEXT_NS,
    P_PAGES,
    P_SLEEP_JIFFIES,
    P_PRUNE_JIFFIES,
    P_MAX_SHARING,
    P_SMART_SCAN,
    P_USE_ZERO,
    P_ADVISOR,
    P_MAX_CPU,
    P_TARGET_S,
    P_MAX_PAGES,
    P_SCAN_START_NS,
    P_ADVISOR_SCAN_S,
    P_ADVISOR_CHANGE,
    P_ADVISOR_CPU_NS,
    P_MERGING_NS,  # part of P_CPU_NS: visits that merged a page, cold caches apart
    P_SPLITS,  # huge pages split by visits
    P_CALL_NS,  # part of P_CPU_NS: calls that merge
    P_UNMERGE_NS,  # part of P_CPU_NS: calls that unmerge
    P_BOOKED_NS,  # other calls that concern the partition, not in P_CPU_NS
    P_HAS_SCANNER,  # a ksmd serves it, or did: that frees what exited mms leave
) = range(50)
PART_FIELDS = 64
NEVER_NS = 2**62  # of P_NEXT_NS: sleeps until an mm is registered

# host
(
    H_EVENT,
    H_NODE_TOP,
    H_NODE_FREE,
    H_POOL_TOP,
    H_POOL_FREE,
    H_N_BASE,
    H_JIFFY_NS,
    H_N_ROWS,
    H_EXACT,
    H_HASH_FIRST,  # 6.11 and later: checksum before stable tree, chains dissolved early
    H_SPLIT_ZEROES,
    H_NOW_JIFFY,
    H_SPLITS,
    H_FOLIOS,  # huge pages are known by F_FOLIO, not by their place in the mm
) = range(14)
HOST_FIELDS = 16

# what a visit came to; also the index of its cost
(
    HOLE,
    SKIPPED,
    FOREIGN,
    QUICK,
    INHERITED,
    FIRST,
    VOLATILE,
    UNIQUE,
    TWIN,
    GAVE_UP,
    FAILED,
    ZEROED,
    MERGED,
    PAIRED,
    COST_SPLIT,
    COST_BATCH,
    COST_SCAN,
    COST_CALL,
    COST_UNMERGE,
    COST_COW,
    COST_COLD_PERCENT,
    COST_COLD_PAGES,
) = range(22)
N_OUTCOMES = 14
MAX_LEVELS = 40
COST_STABLE = 22  # a descent of L levels costs cost[COST_STABLE + L]
COST_UNSTABLE = COST_STABLE + MAX_LEVELS
COST_FIELDS = COST_UNSTABLE + MAX_LEVELS

# columns of what `sample` fills
(
    OUT_ELIGIBLE,
    OUT_MM_SLOTS,
    OUT_CROSS,
    OUT_CROSS_SENSITIVE,
    OUT_UNMERGE,
) = range(5)
OUT_FIELDS = 5

Array = Any  # numba sees the arrays; numpy's generics would not survive the decorator


class World(NamedTuple):
    """All tables of one host, as kernels take them; see the module."""

    sites: Array
    frames: Array
    contents: Array
    nodes: Array
    slots: Array
    parts: Array
    host: Array
    order: Array
    zero: Array
    cost: Array
    mm: Array  # int32 (n_sites,)
    vpn: Array  # int64 (n_sites,)
    event_time: Array  # int64 (n_events,)
    events: Array  # int32 (n_events, 3): site, content, frame; or ~slot, a state of L_STATE, 0
    log: Array  # int64 (n, 3): time, partition row and number of finished full scans
    unstable_tree: Array  # int32 (n_sites, 4) with H_EXACT
    stable_tree: Array  # int32 (n_rows, 4) with H_EXACT
    keys: Array  # uint64 (n_contents,) with H_EXACT: orders contents as memcmp does
