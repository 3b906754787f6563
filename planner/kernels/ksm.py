"""Visits of pages by KSM: sites, frames, stable nodes and trees as flat integer tables.

All tables are C-ordered; the constants below name their columns. Callers check shapes and ranges.

    sites    int32 (n_sites, 8)     one row (32 bytes) per virtual page, in scan order
    frames   int32 (n_frames, 6)    base frames first, then a pool of n_sites + 1
    contents int32 (n_contents, 4)  per (partition, content): stable nodes, unstable entry
    nodes    int32 (n_sites + 1, 6) stable nodes, doubly linked per content (a chain when two)
    parts    int64 (n_rows, 32)     per partition; row 0 is "no partition"
    host     int64 (8,)             cursors and free lists
    order    int32                  site ids by partition, each partition's in scan order
    zero     uint8 (n_contents,)    content is all zero
    cost     int64 (COST_FIELDS,)   nanoseconds, see planner.ksm.cost

The algorithm is `cmp_and_merge_page` of Linux 6.12 (mm/ksm.c): quick path, checksum gate, stable
tree, unstable tree. Trees are tables indexed by content id: searching one costs a look-up here
and the simulated time of a descent.
"""

from __future__ import annotations

import math
from typing import Any

from planner.kernels.jit import njit

__all__ = ["advance", "initialize", "merge", "next_wake", "sample", "unmerge"]

# sites
S_CONTENT, S_BASE, S_PHYS, S_OLD, S_NODE, S_META, S_PART, S_DOMAIN = range(8)
SITE_FIELDS = 8
META_ITEM = 1  # has a rmap item
META_UNSTABLE = 2  # ... which is flagged UNSTABLE (perhaps of an earlier scan)

# frames
F_BASE, F_PHYS, F_NODE, F_SITE, F_OWNER, F_FLAGS = range(6)
FRAME_FIELDS = 6
FLAG_BASE_ZERO = 1
FLAG_PHYS_ZERO = 2
FLAG_CROSS = 4  # pages of several partitions were born on it: never a KSM page

# contents
C_HEAD, C_NODES, C_SITE, C_EPOCH = range(4)
CONTENT_FIELDS = 4

# nodes
N_ITEMS, N_FRAME, N_ROW, N_NEXT, N_PREV, N_PART = range(6)
NODE_FIELDS = 6

# parts
(
    P_ITEMS,
    P_SHARED,
    P_SHARING,
    P_UNSHARED,
    P_TREE_STABLE,
    P_TREE_UNSTABLE,
    P_NODES,
    P_CHAINS,
    P_EPOCH,
    P_CURSOR,
    P_FULL_SCANS,
    P_SCANNED,
    P_CPU_NS,
    P_COW,
    P_COW_NS,
    P_LIVE_BASE,
    P_LIVE_BASE_ZERO,
    P_LIVE_PHYS,
    P_LIVE_PHYS_ZERO,
    P_START,
    P_COUNT,
    P_PLAN,
    P_CONTENT_OFFSET,
    P_MAX_SHARING,
    P_IS_RUNNING,
    P_NEXT_NS,
    P_PAGES,
    P_JIFFIES,
) = range(28)
PART_FIELDS = 32

# host
H_EVENT, H_NODE_TOP, H_NODE_FREE, H_POOL_TOP, H_POOL_FREE, H_N_BASE, H_JIFFY_NS = range(7)
HOST_FIELDS = 8

# what a visit came to; also the index of its cost
(
    HOLE,
    FOREIGN,
    QUICK,
    INHERITED,
    FIRST,
    VOLATILE,
    UNIQUE,
    TWIN,
    MERGED,
    PAIRED,
    COST_STABLE_LEVEL,
    COST_UNSTABLE_LEVEL,
    COST_BATCH,
    COST_CALL,
    COST_UNMERGE,
    COST_COW,
    COST_COLD_PERCENT,
    COST_COLD_PAGES,
) = range(18)
COST_FIELDS = 18
N_OUTCOMES = 10

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


@njit
def next_wake(end_ns: int, n_jiffies: int, jiffy_ns: int) -> int:
    """When a timer of `n_jiffies` armed at `end_ns` fires (calc_wheel_index, kernel/time/timer.c).

    A zero sleep is none. Level k of the wheel serves 63 * 8^(k-1) jiffies and more, in steps of
    8^k jiffies.
    """
    if n_jiffies == 0:
        return end_ns
    shift = 0
    limit = 63
    while n_jiffies >= limit and shift < 24:
        shift += 3
        limit <<= 3
    return ((((end_ns // jiffy_ns + n_jiffies) >> shift) + 1) << shift) * jiffy_ns


@njit
def _frame_gains(f: int, is_zero: int, frames: Array, parts: Array) -> None:
    if frames[f, F_PHYS] == 0:
        owner = frames[f, F_OWNER]
        parts[owner, P_LIVE_PHYS] += 1
        if is_zero:
            frames[f, F_FLAGS] |= FLAG_PHYS_ZERO
            parts[owner, P_LIVE_PHYS_ZERO] += 1
        else:
            frames[f, F_FLAGS] &= ~FLAG_PHYS_ZERO
    frames[f, F_PHYS] += 1


@njit
def _frame_loses(
    f: int, contents: Array, nodes: Array, frames: Array, parts: Array, host: Array
) -> None:
    """One mapping less; a frame without mappings is free, and with it its stable node."""
    frames[f, F_PHYS] -= 1
    if frames[f, F_PHYS] > 0:
        return
    owner = frames[f, F_OWNER]
    parts[owner, P_LIVE_PHYS] -= 1
    if frames[f, F_FLAGS] & FLAG_PHYS_ZERO:
        parts[owner, P_LIVE_PHYS_ZERO] -= 1
    n = frames[f, F_NODE]
    if n >= 0:
        frames[f, F_NODE] = -1
        p = nodes[n, N_PART]
        row = nodes[n, N_ROW]
        after = nodes[n, N_NEXT]
        before = nodes[n, N_PREV]
        if before >= 0:
            nodes[before, N_NEXT] = after
        else:
            contents[row, C_HEAD] = after
        if after >= 0:
            nodes[after, N_PREV] = before
        contents[row, C_NODES] -= 1
        if contents[row, C_NODES] == 0:
            parts[p, P_TREE_STABLE] -= 1
        elif contents[row, C_NODES] == 1:
            parts[p, P_CHAINS] -= 1
        parts[p, P_NODES] -= 1
        nodes[n, N_NEXT] = host[H_NODE_FREE]
        host[H_NODE_FREE] = n
    if f >= host[H_N_BASE]:
        frames[f, F_SITE] = host[H_POOL_FREE]
        host[H_POOL_FREE] = f


@njit
def _pool_frame(s: int, sites: Array, frames: Array, parts: Array, host: Array) -> int:
    """A fresh frame for site s, not yet mapped."""
    f = host[H_POOL_FREE]
    if f >= 0:
        host[H_POOL_FREE] = frames[f, F_SITE]
    else:
        f = host[H_POOL_TOP]
        host[H_POOL_TOP] = f + 1
    frames[f, F_BASE] = 0
    frames[f, F_PHYS] = 0
    frames[f, F_NODE] = -1
    frames[f, F_SITE] = -1
    frames[f, F_OWNER] = parts[sites[s, S_PART], P_PLAN]
    frames[f, F_FLAGS] = 0
    return int(f)


@njit
def _move(
    s: int,
    f: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    zero: Array,
) -> None:
    """Map site s to frame f instead of its own; the content stays what it is."""
    old = sites[s, S_PHYS]
    _frame_gains(f, zero[sites[s, S_CONTENT]], frames, parts)
    sites[s, S_PHYS] = f
    _frame_loses(old, contents, nodes, frames, parts, host)


@njit
def _append(s: int, n: int, sites: Array, nodes: Array, parts: Array) -> None:
    """`stable_tree_append`: the item of s joins node n."""
    p = nodes[n, N_PART]
    sites[s, S_NODE] = n
    nodes[n, N_ITEMS] += 1
    if nodes[n, N_ITEMS] > 1:
        parts[p, P_SHARING] += 1
    else:
        parts[p, P_SHARED] += 1


@njit
def _leave_trees(s: int, sites: Array, contents: Array, nodes: Array, parts: Array) -> None:
    """`remove_rmap_item_from_tree`: the item of s becomes a plain one."""
    if sites[s, S_META] & META_UNSTABLE:
        p = sites[s, S_PART]
        sites[s, S_META] &= ~META_UNSTABLE
        parts[p, P_UNSHARED] -= 1
        row = sites[s, S_CONTENT] + parts[p, P_CONTENT_OFFSET]
        if contents[row, C_SITE] == s:
            contents[row, C_SITE] = -1
            if contents[row, C_EPOCH] == parts[p, P_EPOCH]:
                parts[p, P_TREE_UNSTABLE] -= 1
    n = sites[s, S_NODE]
    if n >= 0:
        sites[s, S_NODE] = -1
        nodes[n, N_ITEMS] -= 1
        if nodes[n, N_ITEMS] > 0:
            parts[nodes[n, N_PART], P_SHARING] -= 1
        else:
            parts[nodes[n, N_PART], P_SHARED] -= 1


@njit
def _forget(s: int, sites: Array, contents: Array, nodes: Array, parts: Array) -> None:
    """Free the rmap item of s, if it has one."""
    if sites[s, S_META] & META_ITEM:
        _leave_trees(s, sites, contents, nodes, parts)
        sites[s, S_META] &= ~META_ITEM
        sites[s, S_OLD] = -1
        parts[sites[s, S_PART], P_ITEMS] -= 1


@njit
def _candidate(row: int, limit: int, contents: Array, nodes: Array) -> int:
    """`stable_node_dup` without pruning: the first node of the chain with room, or -1.

    Put at the head if it can take two more, so that the next search finds it at once.
    """
    n = contents[row, C_HEAD]
    while n >= 0 and not 0 < nodes[n, N_ITEMS] < limit:
        n = nodes[n, N_NEXT]
    if n >= 0 and nodes[n, N_PREV] >= 0 and nodes[n, N_ITEMS] + 1 < limit:
        before = nodes[n, N_PREV]
        after = nodes[n, N_NEXT]
        head = contents[row, C_HEAD]
        nodes[before, N_NEXT] = after
        if after >= 0:
            nodes[after, N_PREV] = before
        nodes[n, N_PREV] = -1
        nodes[n, N_NEXT] = head
        nodes[head, N_PREV] = n
        contents[row, C_HEAD] = n
    return int(n)


@njit
def _pair(
    s: int,
    t: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    zero: Array,
) -> None:
    """`try_to_merge_two_pages`: the scanned page s becomes the KSM page, t's own is dropped."""
    p = sites[s, S_PART]
    row = sites[s, S_CONTENT] + parts[p, P_CONTENT_OFFSET]
    _leave_trees(t, sites, contents, nodes, parts)
    if frames[sites[s, S_PHYS], F_FLAGS] & FLAG_CROSS:
        own = _pool_frame(s, sites, frames, parts, host)
        _move(s, own, sites, contents, nodes, frames, parts, host, zero)
    f = sites[s, S_PHYS]
    n = host[H_NODE_FREE]
    if n >= 0:
        host[H_NODE_FREE] = nodes[n, N_NEXT]
    else:
        n = host[H_NODE_TOP]
        host[H_NODE_TOP] = n + 1
    head = contents[row, C_HEAD]
    nodes[n, N_ITEMS] = 0
    nodes[n, N_FRAME] = f
    nodes[n, N_ROW] = row
    nodes[n, N_NEXT] = head
    nodes[n, N_PREV] = -1
    nodes[n, N_PART] = p
    frames[f, F_NODE] = n
    contents[row, C_HEAD] = n
    contents[row, C_NODES] += 1
    if head >= 0:
        nodes[head, N_PREV] = n
    if contents[row, C_NODES] == 1:
        parts[p, P_TREE_STABLE] += 1
    elif contents[row, C_NODES] == 2:
        parts[p, P_CHAINS] += 1
    parts[p, P_NODES] += 1
    _move(t, f, sites, contents, nodes, frames, parts, host, zero)
    _append(t, n, sites, nodes, parts)
    _append(s, n, sites, nodes, parts)


@njit
def _visit(
    s: int,
    p: int,
    is_gated: bool,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    zero: Array,
) -> int:
    """`cmp_and_merge_page` for the present page of site s in partition p; returns the outcome."""
    if sites[s, S_NODE] >= 0:
        return QUICK if sites[s, S_PART] == p else FOREIGN
    phys = sites[s, S_PHYS]
    n = frames[phys, F_NODE]
    if n >= 0 and nodes[n, N_PART] != p:
        return FOREIGN
    if sites[s, S_PART] != p:
        _forget(s, sites, contents, nodes, parts)
        sites[s, S_PART] = p
    is_new = not sites[s, S_META] & META_ITEM
    if is_new:
        sites[s, S_META] |= META_ITEM
        parts[p, P_ITEMS] += 1
    elif sites[s, S_META] & META_UNSTABLE:
        _leave_trees(s, sites, contents, nodes, parts)
    if n >= 0:
        _append(s, n, sites, nodes, parts)
        return INHERITED
    content = sites[s, S_CONTENT]
    if sites[s, S_OLD] != content:
        sites[s, S_OLD] = content
        if is_gated:
            return FIRST if is_new else VOLATILE
    row = content + parts[p, P_CONTENT_OFFSET]
    if contents[row, C_HEAD] >= 0:
        n = _candidate(row, parts[p, P_MAX_SHARING], contents, nodes)
        if n >= 0:
            f = nodes[n, N_FRAME]
            _move(s, f, sites, contents, nodes, frames, parts, host, zero)
            _append(s, n, sites, nodes, parts)
            return MERGED
    t = contents[row, C_SITE]
    if t >= 0 and contents[row, C_EPOCH] == parts[p, P_EPOCH]:
        if sites[t, S_PHYS] == phys:
            return TWIN
        _pair(s, t, sites, contents, nodes, frames, parts, host, zero)
        return PAIRED
    contents[row, C_SITE] = s
    contents[row, C_EPOCH] = parts[p, P_EPOCH]
    parts[p, P_TREE_UNSTABLE] += 1
    parts[p, P_UNSHARED] += 1
    sites[s, S_META] |= META_UNSTABLE
    return UNIQUE


@njit
def _levels(n: int) -> int:
    """Levels of a tree of n nodes: the bit length of n, which is what frexp calls exponent."""
    return math.frexp(float(n))[1]


@njit
def _visit_ns(outcome: int, p: int, parts: Array, cost: Array) -> int:
    """Cost of a visit, with the trees as large as they are after it."""
    ns = cost[outcome]
    if outcome >= UNIQUE:
        stable_ns = cost[COST_STABLE_LEVEL] * _levels(parts[p, P_TREE_STABLE])
        ns += stable_ns
        if outcome == PAIRED:  # inserting the new node is a second descent
            ns += stable_ns
        if outcome != MERGED:
            ns += cost[COST_UNSTABLE_LEVEL] * _levels(parts[p, P_TREE_UNSTABLE])
    return int(ns)


@njit
def _write(
    s: int,
    content: int,
    g: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    zero: Array,
    cost: Array,
) -> None:
    """The page of site s is written, appears, or goes (content -1); base frame g afterwards."""
    old_content = sites[s, S_CONTENT]
    if old_content < 0 and content < 0:
        return
    p = sites[s, S_PART]
    old_base = sites[s, S_BASE]
    old_phys = sites[s, S_PHYS]
    is_ksm = False
    if old_content >= 0:
        is_ksm = frames[old_phys, F_NODE] >= 0
        if content < 0:
            _forget(s, sites, contents, nodes, parts)
        else:
            _leave_trees(s, sites, contents, nodes, parts)
            if is_ksm:
                parts[p, P_COW] += 1
                parts[p, P_COW_NS] += cost[COST_COW]
    if content >= 0:
        is_zero = zero[content]
        f = -1
        h = frames[g, F_SITE]
        is_hint = h >= 0 and h != s and sites[h, S_CONTENT] >= 0 and sites[h, S_BASE] == g
        if is_hint:
            # Born by fork, or written together: the physical page of the other one.
            is_cross = parts[sites[h, S_PART], P_PLAN] != parts[p, P_PLAN]
            if is_cross:
                if frames[sites[h, S_PHYS], F_NODE] < 0:
                    f = sites[h, S_PHYS]
                    frames[f, F_FLAGS] |= FLAG_CROSS
            elif sites[h, S_CONTENT] == content:
                f = sites[h, S_PHYS]
        else:
            frames[g, F_SITE] = s
        if f < 0:
            if g == old_base and not is_ksm:
                f = old_phys
            elif frames[g, F_NODE] < 0:
                f = g
            else:
                f = _pool_frame(s, sites, frames, parts, host)
        sites[s, S_CONTENT] = content
        sites[s, S_BASE] = g
        sites[s, S_PHYS] = f
        _frame_gains(f, is_zero, frames, parts)
        owner = frames[f, F_OWNER]
        was_zero = (frames[f, F_FLAGS] & FLAG_PHYS_ZERO) != 0
        if is_zero and not was_zero:  # written in place
            frames[f, F_FLAGS] |= FLAG_PHYS_ZERO
            parts[owner, P_LIVE_PHYS_ZERO] += 1
        elif was_zero and not is_zero:
            frames[f, F_FLAGS] &= ~FLAG_PHYS_ZERO
            parts[owner, P_LIVE_PHYS_ZERO] -= 1
        owner = frames[g, F_OWNER]
        if frames[g, F_BASE] == 0:
            parts[owner, P_LIVE_BASE] += 1
            frames[g, F_FLAGS] &= ~FLAG_BASE_ZERO
        frames[g, F_BASE] += 1
        was_zero = (frames[g, F_FLAGS] & FLAG_BASE_ZERO) != 0
        if is_zero and not was_zero:
            frames[g, F_FLAGS] |= FLAG_BASE_ZERO
            parts[owner, P_LIVE_BASE_ZERO] += 1
        elif was_zero and not is_zero:
            frames[g, F_FLAGS] &= ~FLAG_BASE_ZERO
            parts[owner, P_LIVE_BASE_ZERO] -= 1
    else:
        sites[s, S_CONTENT] = -1
        sites[s, S_BASE] = -1
        sites[s, S_PHYS] = -1
    if old_content >= 0:
        frames[old_base, F_BASE] -= 1
        if frames[old_base, F_BASE] == 0:
            owner = frames[old_base, F_OWNER]
            parts[owner, P_LIVE_BASE] -= 1
            if frames[old_base, F_FLAGS] & FLAG_BASE_ZERO:
                parts[owner, P_LIVE_BASE_ZERO] -= 1
        _frame_loses(old_phys, contents, nodes, frames, parts, host)


@njit
def initialize(
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    zero: Array,
    cost: Array,
    first: Array,
    events: Array,
) -> None:
    """Decide whose each base frame is, then let the pages of time 0 appear.

    `first` int32 (n_sites, 2): content and frame at time 0; `events` int32 (n_events, 3): site,
    content, frame. A frame belongs to the partition of the first site that ever has it, and is
    marked when sites of several partitions have it.
    """
    n_sites = len(first)
    for i in range(n_sites + len(events)):
        if i < n_sites:
            s, content, g = i, first[i, 0], first[i, 1]
        else:
            j = i - n_sites
            s, content, g = events[j, 0], events[j, 1], events[j, 2]
        p = sites[s, S_PART]
        if content < 0 or p == 0:
            continue
        if frames[g, F_OWNER] == 0:
            frames[g, F_OWNER] = p
        elif frames[g, F_OWNER] != p:
            frames[g, F_FLAGS] |= FLAG_CROSS
    for s in range(n_sites):
        if first[s, 0] >= 0:
            _write(
                s,
                first[s, 0],
                first[s, 1],
                sites,
                contents,
                nodes,
                frames,
                parts,
                host,
                zero,
                cost,
            )


@njit
def advance(
    until_ns: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    order: Array,
    zero: Array,
    cost: Array,
    event_time: Array,
    events: Array,
    log: Array,
) -> int:
    """Writes at times <= until_ns and batches that start before it, in order of time.

    Fills `log` int64 (rows, 3) with (time, partition row, seq) of completed full scans and
    returns their number; stops early when the log is full.
    """
    n_log = 0
    jiffy_ns = host[H_JIFFY_NS]
    while n_log < len(log):
        p = -1
        start_ns = until_ns
        for q in range(1, len(parts)):
            if parts[q, P_IS_RUNNING] != 0 and parts[q, P_NEXT_NS] < start_ns:
                p = q
                start_ns = parts[q, P_NEXT_NS]
        e = host[H_EVENT]
        while e < len(event_time) and event_time[e] <= start_ns:
            _write(
                events[e, 0],
                events[e, 1],
                events[e, 2],
                sites,
                contents,
                nodes,
                frames,
                parts,
                host,
                zero,
                cost,
            )
            e += 1
        host[H_EVENT] = e
        if p < 0:
            break
        # One batch (`ksm_do_scan`): the end of a full scan ends it too.
        start = parts[p, P_START]
        count = parts[p, P_COUNT]
        cursor = parts[p, P_CURSOR]
        budget = parts[p, P_PAGES]
        cold_pages = cost[COST_COLD_PAGES]
        if cursor == 0:  # the unstable tree starts empty; old entries are of another epoch
            parts[p, P_EPOCH] += 1
            parts[p, P_TREE_UNSTABLE] = 0
        epoch = parts[p, P_EPOCH]
        offset = parts[p, P_CONTENT_OFFSET]
        stable_ns = _levels(parts[p, P_TREE_STABLE]) * cost[COST_STABLE_LEVEL]
        n_unstable = parts[p, P_TREE_UNSTABLE]
        n_levels = _levels(n_unstable)
        ns = 0
        cold_ns = 0
        processed = 0
        while processed < budget and cursor < count:
            s = order[start + cursor]
            cursor += 1
            content = sites[s, S_CONTENT]
            if content < 0:
                ns += cost[HOLE]
                continue
            # Two short cuts, nearly all visits of memory at rest: a merged page, and a candidate
            # that goes back to its place in the new unstable tree. `_visit` would do the same.
            if sites[s, S_PART] == p and sites[s, S_NODE] >= 0:
                ns += cost[QUICK]
            elif (
                sites[s, S_META] & META_UNSTABLE
                and sites[s, S_PART] == p
                and contents[content + offset, C_SITE] == s
                and contents[content + offset, C_HEAD] < 0
                and contents[content + offset, C_EPOCH] != epoch
                and frames[sites[s, S_PHYS], F_NODE] < 0
            ):
                contents[content + offset, C_EPOCH] = epoch
                n_unstable += 1
                n_levels += n_unstable >> n_levels
                ns += cost[UNIQUE] + stable_ns + n_levels * cost[COST_UNSTABLE_LEVEL]
            else:
                parts[p, P_TREE_UNSTABLE] = n_unstable
                outcome = _visit(s, p, True, sites, contents, nodes, frames, parts, host, zero)
                ns += _visit_ns(outcome, p, parts, cost)
                stable_ns = _levels(parts[p, P_TREE_STABLE]) * cost[COST_STABLE_LEVEL]
                n_unstable = parts[p, P_TREE_UNSTABLE]
                n_levels = _levels(n_unstable)
            processed += 1
            if processed == cold_pages:
                cold_ns = ns
        parts[p, P_TREE_UNSTABLE] = n_unstable
        if processed < cold_pages:
            cold_ns = ns
        if parts[p, P_JIFFIES] > 0:
            ns += cold_ns * cost[COST_COLD_PERCENT] // 100
        ns += cost[COST_BATCH]
        end_ns = start_ns + ns
        parts[p, P_SCANNED] += processed
        parts[p, P_CPU_NS] += ns
        if processed < budget:
            cursor = 0
            parts[p, P_FULL_SCANS] += 1
            log[n_log, 0] = end_ns
            log[n_log, 1] = p
            log[n_log, 2] = parts[p, P_FULL_SCANS]
            n_log += 1
        parts[p, P_CURSOR] = cursor
        parts[p, P_NEXT_NS] = next_wake(end_ns, parts[p, P_JIFFIES], jiffy_ns)
    return n_log


@njit
def merge(
    p: int,
    first: int,
    last: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    order: Array,
    zero: Array,
    cost: Array,
    outcomes: Array,
) -> int:
    """Visit the sites order[first:last] without checksum gate; returns the CPU time in ns.

    Adds to `outcomes` int64 (N_OUTCOMES,) how many visits came to what.
    """
    ns = 0
    cold_ns = 0
    processed = 0
    cold_pages = cost[COST_COLD_PAGES]
    for i in range(first, last):
        s = order[i]
        if sites[s, S_CONTENT] < 0:
            ns += cost[HOLE]
            outcomes[HOLE] += 1
            continue
        outcome = _visit(s, p, False, sites, contents, nodes, frames, parts, host, zero)
        outcomes[outcome] += 1
        ns += _visit_ns(outcome, p, parts, cost)
        processed += 1
        if processed == cold_pages:
            cold_ns = ns
    if processed < cold_pages:
        cold_ns = ns
    ns += cold_ns * cost[COST_COLD_PERCENT] // 100 + cost[COST_CALL]
    parts[p, P_SCANNED] += processed
    parts[p, P_CPU_NS] += ns
    return int(ns)


@njit
def unmerge(
    p: int,
    first: int,
    last: int,
    sites: Array,
    contents: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    order: Array,
    zero: Array,
) -> int:
    """Give the merged pages of order[first:last] own frames, free their items; returns how many."""
    n_unmerged = 0
    for i in range(first, last):
        s = order[i]
        if sites[s, S_CONTENT] < 0:
            continue
        n = frames[sites[s, S_PHYS], F_NODE]
        if sites[s, S_PART] == p:
            _forget(s, sites, contents, nodes, parts)
        if n >= 0 and nodes[n, N_PART] == p:
            f = _pool_frame(s, sites, frames, parts, host)
            _move(s, f, sites, contents, nodes, frames, parts, host, zero)
            n_unmerged += 1
    return n_unmerged


@njit
def sample(
    sites: Array,
    nodes: Array,
    frames: Array,
    parts: Array,
    host: Array,
    site_mm: Array,
    is_eligible: Array,
    is_sensitive: Array,
    node_domain: Array,
    node_flags: Array,
    last_mm: Array,
    out: Array,
) -> None:
    """Count what is not kept while running, per row of `parts`; row 0 has the host's mm slots.

    `node_domain` int32, `node_flags` uint8 (n_nodes) and `last_mm` int64 (n_rows) are scratch.
    """
    node_flags[:] = 0
    last_mm[:] = -(2**40)
    out[:, :] = 0
    for s in range(len(sites)):
        if sites[s, S_CONTENT] < 0 or not is_eligible[s]:
            continue
        p = sites[s, S_PART]
        out[parts[p, P_PLAN], OUT_ELIGIBLE] += 1
        if sites[s, S_META] & META_ITEM:
            mm = site_mm[s]
            if last_mm[p] != mm:
                last_mm[p] = mm
                out[p, OUT_MM_SLOTS] += 1
            if last_mm[0] != mm:
                last_mm[0] = mm
                out[0, OUT_MM_SLOTS] += 1
            n = sites[s, S_NODE]
            if n >= 0:
                domain = sites[s, S_DOMAIN]
                if node_flags[n] == 0:
                    node_flags[n] = 1
                    node_domain[n] = domain
                elif node_domain[n] != domain:
                    node_flags[n] |= 2
                if is_sensitive[domain]:
                    node_flags[n] |= 4
    # Every sharer of a node is one of its items, so items and flags say it all.
    for n in range(host[H_NODE_TOP]):
        items = nodes[n, N_ITEMS]
        if items > 0:
            p = nodes[n, N_PART]
            out[p, OUT_UNMERGE] += items
            if frames[nodes[n, N_FRAME], F_PHYS] == items:
                out[p, OUT_UNMERGE] -= 1
            if node_flags[n] & 2:
                out[p, OUT_CROSS] += items
                if node_flags[n] & 4:
                    out[p, OUT_CROSS_SENSITIVE] += items
