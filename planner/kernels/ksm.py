"""Visits of pages by KSM: `cmp_and_merge_page` of Linux 6.1, 6.12 and 6.18 (mm/ksm.c) on tables.

Bookkeeping is lazy, as the kernel's: a write or a page that goes changes frames at once, but
items, stable nodes and their counters only when ksmd (or a call) passes. `planner.kernels.ksmstate`
says what the tables hold.
"""

from __future__ import annotations

import math

from planner.kernels import ksmstate as k
from planner.kernels.jit import helper, kernel, njit
from planner.kernels.ksmpages import (
    aged,
    is_zero,
    map_zero_page,
    move,
    pool_frame,
    split,
    write,
)
from planner.kernels.ksmstate import World
from planner.kernels.ksmtrees import (
    append,
    forget,
    leave_trees,
    stable_insert,
    stable_search,
    unstable_search_insert,
)

__all__ = ["advance", "apply_event", "apply_events", "batch", "begin_scan", "book_visit",
           "end_scan",
           "leave", "levels", "link_slot", "may_skip", "next_wake", "process", "register",
           "split_ns", "unlink_slot", "visit"]

# ---- time -------------------------------------------------------------------------------------


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


@helper
def levels(n: int) -> int:
    """Levels of a tree of n nodes: the bit length of n, which is what frexp calls exponent."""
    return math.frexp(float(n))[1]


# ---- a visit ----------------------------------------------------------------------------------


@helper
def may_skip(s: int, w: World) -> bool:
    """`should_skip_rmap_item` for a page that is no KSM page; ages it."""
    meta, is_skipped = aged(w.sites[s, k.S_META])
    w.sites[s, k.S_META] = meta
    return is_skipped


@helper
def _is_mergeable(s: int, w: World) -> bool:
    """`try_to_merge_one_page` up to its write protection: whether the page of s can be replaced.

    Its huge page is split, by which it may be lost. Of a KSM page `write_protect_page` cannot find
    the address (no anon_vma), so it fails.
    """
    if w.sites[s, k.S_META] & k.M_HUGE:
        split(s, w)
    return bool(
        w.sites[s, k.S_CONTENT] >= 0
        and w.frames[w.sites[s, k.S_FRAME], k.F_NODE] == k.NO_NODE
    )


@helper
def _undo_pair(s: int, p: int, w: World) -> None:
    """`break_cow`: s, a KSM page already, is copied; who else maps that page keeps it so."""
    f = w.sites[s, k.S_FRAME]
    w.parts[p, k.P_COW] += 1
    move(s, pool_frame(s, w), w)
    if w.frames[f, k.F_PHYS] > 0 and not w.frames[f, k.F_FLAGS] & k.FLAG_CROSS:
        w.frames[f, k.F_NODE] = k.ORPHAN


@helper
def _merge_into(s: int, n: int, w: World) -> int:
    """`try_to_merge_with_ksm_page` and `stable_tree_append`."""
    if not _is_mergeable(s, w):
        return k.FAILED
    move(s, w.nodes[n, k.N_FRAME], w)
    append(s, n, w)
    return k.MERGED


@helper
def _pair(s: int, t: int, content: int, p: int, w: World) -> int:
    """`try_to_merge_two_pages`: the scanned page s becomes the KSM page, t's own is dropped."""
    sites = w.sites
    if sites[s, k.S_META] & k.M_HUGE and sites[t, k.S_META] & k.M_HUGE:
        if w.host[k.H_FOLIOS]:
            is_same = (
                w.frames[sites[s, k.S_FRAME], k.F_FOLIO] == w.frames[sites[t, k.S_FRAME], k.F_FOLIO]
            )
        else:
            is_same = w.mm[s] == w.mm[t] and w.vpn[s] >> 9 == w.vpn[t] >> 9
        if is_same:  # cannot be split while both are held; afterwards it is
            split(s, w)
            return k.FAILED
    if not _is_mergeable(s, w):
        return k.FAILED
    if not _is_mergeable(t, w):
        _undo_pair(s, p, w)
        return k.FAILED
    leave_trees(t, w)
    if w.frames[sites[s, k.S_FRAME], k.F_FLAGS] & k.FLAG_CROSS:
        move(s, pool_frame(s, w), w)
    f = sites[s, k.S_FRAME]
    n = stable_insert(f, content, p, w)
    move(t, f, w)
    append(t, n, w)
    append(s, n, w)
    return k.PAIRED


@helper
def process(s: int, p: int, is_gated: bool, is_new: bool, w: World) -> int:
    """`cmp_and_merge_page` for a page with an item that is not merged; returns the outcome."""
    sites, parts = w.sites, w.parts
    f = sites[s, k.S_FRAME]
    n = w.frames[f, k.F_NODE]
    if n >= 0:
        leave_trees(s, w)
        append(s, n, w)
        return k.INHERITED
    content = sites[s, k.S_CONTENT]
    is_hash_first = w.host[k.H_HASH_FIRST] != 0
    if is_hash_first or not is_gated:
        leave_trees(s, w)
        if sites[s, k.S_OLD] != content:
            sites[s, k.S_OLD] = content
            if is_gated:
                return k.FIRST if is_new else k.VOLATILE
        if parts[p, k.P_USE_ZERO] and is_zero(content, w) and _is_mergeable(s, w):
            map_zero_page(s, True, w)
            return k.ZEROED
    n = stable_search(content, p, w)
    leave_trees(s, w)
    if n >= 0:
        return _merge_into(s, n, w)
    if not is_hash_first and is_gated:
        if sites[s, k.S_OLD] != content:
            sites[s, k.S_OLD] = content
            return k.FIRST if is_new else k.VOLATILE
        if parts[p, k.P_USE_ZERO] and is_zero(content, w) and _is_mergeable(s, w):
            map_zero_page(s, True, w)
            return k.ZEROED
    t = unstable_search_insert(s, content, f, p, w)
    if t < 0:
        return -1 - t
    return _pair(s, t, content, p, w)


@helper
def visit(s: int, p: int, is_gated: bool, w: World) -> int:
    """ksmd (or, not gated, a call) comes to the present page of s in partition p."""
    sites = w.sites
    meta = sites[s, k.S_META]
    if meta & k.QUICK_FLAGS == k.QUICK_FLAGS:
        return k.QUICK if sites[s, k.S_PART] == p else k.FOREIGN
    n = w.frames[sites[s, k.S_FRAME], k.F_NODE]
    if sites[s, k.S_PART] != p:
        if n >= 0 and w.nodes[n, k.N_PART] != p:
            return k.FOREIGN
        forget(s, w)
        sites[s, k.S_PART] = p
        meta = sites[s, k.S_META]
    if meta & k.M_STABLE and n >= 0 and sites[s, k.S_NODE] == n:  # mapped again by fork
        sites[s, k.S_META] = meta | k.M_MERGED
        return k.QUICK
    is_new = not meta & k.M_ITEM
    if is_new:
        sites[s, k.S_META] |= k.M_ITEM
        w.parts[p, k.P_ITEMS] += 1
    if is_gated and n == k.NO_NODE and w.parts[p, k.P_SMART_SCAN] and may_skip(s, w):
        leave_trees(s, w)
        return k.SKIPPED
    return process(s, p, is_gated, is_new, w)


@helper
def visit_ns(outcome: int, p: int, w: World) -> int:
    """Cost of a visit, with the trees as large as they are after it."""
    ns = w.cost[outcome]
    is_late = not w.host[k.H_HASH_FIRST] and (outcome == k.FIRST or outcome == k.VOLATILE)
    if outcome >= k.UNIQUE or is_late:
        stable_ns = w.cost[k.COST_STABLE + levels(w.parts[p, k.P_TREE_STABLE])]
        if outcome != k.ZEROED:
            ns += stable_ns
        if outcome == k.PAIRED:  # inserting the new node is a second descent
            ns += stable_ns
        if k.UNIQUE <= outcome < k.ZEROED or outcome == k.PAIRED:
            ns += w.cost[k.COST_UNSTABLE + levels(w.parts[p, k.P_TREE_UNSTABLE])]
    return int(ns)


@helper
def book_visit(outcome: int, p: int, w: World) -> int:
    """`visit_ns`, noted apart where the visit merged a page."""
    ns = visit_ns(outcome, p, w)
    if outcome >= k.ZEROED or outcome == k.INHERITED:
        w.parts[p, k.P_MERGING_NS] += ns
    return ns


@helper
def split_ns(n_splits: int, p: int, w: World) -> int:
    """Cost of the splits of huge pages since there were `n_splits`; counts them."""
    n = w.host[k.H_SPLITS] - n_splits
    w.parts[p, k.P_SPLITS] += n
    return int(n * w.cost[k.COST_SPLIT])


# ---- mm slots ---------------------------------------------------------------------------------


@helper
def unlink_slot(slot: int, w: World) -> None:
    """Take a slot out of its ring."""
    slots = w.slots
    slots[slots[slot, k.L_PREV], k.L_NEXT] = slots[slot, k.L_NEXT]
    slots[slots[slot, k.L_NEXT], k.L_PREV] = slots[slot, k.L_PREV]


@helper
def link_slot(slot: int, before: int, w: World) -> None:
    """Put a slot into the ring, before another one."""
    slots = w.slots
    after = slots[before, k.L_PREV]
    slots[slot, k.L_PREV] = after
    slots[slot, k.L_NEXT] = before
    slots[after, k.L_NEXT] = slot
    slots[before, k.L_PREV] = slot


@helper
def register(slot: int, p: int, now_ns: int, w: World) -> None:
    """`__ksm_enter`: before the slot ksmd is at, so the last one it comes to. Wakes ksmd."""
    link_slot(slot, w.parts[p, k.P_SLOT], w)
    w.slots[slot, k.L_STATE] = k.REGISTERED
    if w.parts[p, k.P_NEXT_NS] == k.NEVER_NS:
        w.parts[p, k.P_NEXT_NS] = now_ns


@helper
def leave(slot: int, p: int, w: World) -> None:
    """`__ksm_exit`: a slot without items goes at once, another is the next that ksmd handles."""
    at = w.parts[p, k.P_SLOT]
    w.slots[slot, k.L_STATE] = k.EXITED
    if at == slot:
        return
    unlink_slot(slot, w)
    first = w.slots[slot, k.L_START]
    for i in range(first, first + w.slots[slot, k.L_COUNT]):
        if w.sites[w.order[i], k.S_META] & k.M_ITEM:
            link_slot(slot, w.slots[at, k.L_NEXT], w)
            return
    w.slots[slot, k.L_STATE] = k.UNREGISTERED


@helper
def _exit(slot: int, p: int, w: World) -> None:
    """An mm exits. Where no ksmd would ever pass, its items are freed at once."""
    if w.slots[slot, k.L_STATE] != k.REGISTERED:
        return
    if w.parts[p, k.P_HAS_SCANNER]:
        leave(slot, p, w)
        return
    first = w.slots[slot, k.L_START]
    for i in range(first, first + w.slots[slot, k.L_COUNT]):
        forget(w.order[i], w)
    unlink_slot(slot, w)
    w.slots[slot, k.L_STATE] = k.UNREGISTERED


@helper
def apply_event(e: int, w: World) -> None:
    """Row e of the events: a write, birth or death of a page, or an mm that comes or goes."""
    s = w.events[e, 0]
    if s >= 0:
        write(s, w.events[e, 1], w.events[e, 2], w)
    elif w.events[e, 1] == k.REGISTERED:
        register(~s, w.events[e, 2], w.event_time[e], w)
    else:
        _exit(~s, w.events[e, 2], w)


# ---- ksmd -------------------------------------------------------------------------------------


@helper
def begin_scan(p: int, start_ns: int, w: World) -> None:
    """A full scan starts: the unstable tree is empty; old items keep their flag."""
    parts = w.parts
    parts[p, k.P_EPOCH] += 1
    parts[p, k.P_TREE_UNSTABLE] = 0
    parts[p, k.P_UNSTABLE_ROOT] = -1
    parts[p, k.P_SCAN_START_NS] = start_ns
    parts[p, k.P_SLOT] = w.slots[parts[p, k.P_HEAD], k.L_NEXT]
    parts[p, k.P_INDEX] = 0


@helper
def _advise(p: int, end_ns: int, cpu_ns: int, w: World) -> None:
    """`scan_time_advisor`, in the kernel's truncating arithmetic."""
    parts = w.parts
    scan_s = max(1, (end_ns - parts[p, k.P_SCAN_START_NS]) // 1_000_000_000)
    cpu_ms = (cpu_ns - parts[p, k.P_ADVISOR_CPU_NS]) // 1_000_000
    cpu_percent = max(1, cpu_ms * 100 // (scan_s * 1000))
    last_s = parts[p, k.P_ADVISOR_SCAN_S]
    if last_s == 0:
        last_s = scan_s
    factor = max(1, parts[p, k.P_TARGET_S] * 100 // scan_s)
    change = max(1, scan_s * 100 // last_s)
    change = (70 * parts[p, k.P_ADVISOR_CHANGE] + 30 * change) // 100
    pages = parts[p, k.P_PAGES] * 100 // factor
    pages = pages * change // 100
    per_percent = max(1, parts[p, k.P_PAGES] // cpu_percent)
    pages = min(pages, per_percent * parts[p, k.P_MAX_CPU])
    pages = max(pages, per_percent * 10)
    parts[p, k.P_PAGES] = min(pages, parts[p, k.P_MAX_PAGES])
    parts[p, k.P_ADVISOR_SCAN_S] = scan_s
    parts[p, k.P_ADVISOR_CHANGE] = change
    parts[p, k.P_ADVISOR_CPU_NS] = cpu_ns


@helper
def end_scan(p: int, end_ns: int, cpu_ns: int, w: World) -> None:
    """A full scan is done at `end_ns`, when ksmd has run for `cpu_ns` in all."""
    if w.parts[p, k.P_ADVISOR]:
        _advise(p, end_ns, cpu_ns, w)
    w.parts[p, k.P_FULL_SCANS] += 1


@helper
def end_batch(p: int, end_ns: int, ns: int, is_end: bool, w: World) -> int:
    """Book the `ns` of a batch and when ksmd wakes next; its end if a full scan ended, else -1."""
    parts = w.parts
    parts[p, k.P_CPU_NS] += ns
    if is_end:
        end_scan(p, end_ns, parts[p, k.P_CPU_NS], w)
    parts[p, k.P_NEXT_NS] = next_wake(end_ns, parts[p, k.P_SLEEP_JIFFIES], w.host[k.H_JIFFY_NS])
    return end_ns if is_end else -1


@helper
def batch(p: int, start_ns: int, w: World) -> int:
    """`ksm_do_scan`: one batch, whole at its start; its end if it ended a full scan, else -1.

    Moves the cursor, books CPU time and sets when ksmd wakes next.
    """
    sites, slots, parts, cost, order = w.sites, w.slots, w.parts, w.cost, w.order
    head = parts[p, k.P_HEAD]
    if slots[head, k.L_NEXT] == head:
        parts[p, k.P_NEXT_NS] = k.NEVER_NS
        return -1
    w.host[k.H_NOW_JIFFY] = start_ns // w.host[k.H_JIFFY_NS]
    ns = 0
    if parts[p, k.P_SLOT] == head:
        begin_scan(p, start_ns, w)
        ns += cost[k.COST_SCAN]
    at = parts[p, k.P_SLOT]
    i = parts[p, k.P_INDEX]
    frames, contents = w.frames, w.contents
    is_plain = w.host[k.H_EXACT] == 0
    is_smart = parts[p, k.P_SMART_SCAN] != 0
    use_zero = parts[p, k.P_USE_ZERO] != 0
    epoch = parts[p, k.P_EPOCH]
    offset = parts[p, k.P_CONTENT_OFFSET]
    n_rows = w.host[k.H_N_ROWS]
    stable_ns = cost[k.COST_STABLE + levels(parts[p, k.P_TREE_STABLE])]
    n_levels = levels(parts[p, k.P_TREE_UNSTABLE])
    budget = parts[p, k.P_PAGES]
    cold_pages = cost[k.COST_COLD_PAGES] if parts[p, k.P_SLEEP_JIFFIES] > 0 else 0
    cold_ns = 0
    processed = 0
    n_skipped = 0
    is_end = False
    n_splits = w.host[k.H_SPLITS]
    while processed < budget:
        if at == head:
            is_end = True
            break
        is_leaving = slots[at, k.L_STATE] == k.EXITED or (i == 0 and slots[at, k.L_MERGEABLE] == 0)
        first = slots[at, k.L_START]
        count = slots[at, k.L_COUNT]
        if is_leaving:
            for j in range(first, first + count):
                forget(order[j], w)
            stable_ns = cost[k.COST_STABLE + levels(parts[p, k.P_TREE_STABLE])]
            n_levels = levels(parts[p, k.P_TREE_UNSTABLE])
            i = count
        while i < count:
            s = order[first + i]
            i += 1
            meta = sites[s, k.S_META]
            if sites[s, k.S_CONTENT] < 0 or not meta & k.M_VMA:
                if meta & k.M_ITEM:
                    forget(s, w)
                    stable_ns = cost[k.COST_STABLE + levels(parts[p, k.P_TREE_STABLE])]
                    n_levels = levels(parts[p, k.P_TREE_UNSTABLE])
                ns += cost[k.HOLE]
                continue
            if meta & k.QUICK_FLAGS == k.QUICK_FLAGS and sites[s, k.S_PART] == p:
                visit_cost = cost[k.QUICK]
            elif (
                # Nearly all others in memory at rest, written out (calls take their time): a page
                # in its pause, and one that goes back to its place in the new unstable tree.
                is_plain
                and meta & (k.M_ITEM | k.M_STABLE) == k.M_ITEM
                and sites[s, k.S_PART] == p
                and frames[sites[s, k.S_FRAME], k.F_NODE] == k.NO_NODE
                and (not meta & k.M_UNSTABLE or sites[s, k.S_SEQ] != epoch)
            ):
                if is_smart:
                    meta, is_skipped = aged(meta)
                    if is_skipped:
                        if meta & k.M_UNSTABLE:
                            meta &= ~k.M_UNSTABLE
                            parts[p, k.P_UNSHARED] -= 1
                        sites[s, k.S_META] = meta
                        n_skipped += 1
                        ns += cost[k.SKIPPED]
                        continue
                content = sites[s, k.S_CONTENT]
                row = content + offset
                has_row = content < n_rows
                sites[s, k.S_META] = meta
                if (
                    sites[s, k.S_OLD] == content
                    and not (use_zero and is_zero(content, w))
                    and not (has_row and (contents[row, k.C_HEAD] >= 0
                                          or contents[row, k.C_CHAIN] >= 0
                                          or contents[row, k.C_EPOCH] == epoch))
                ):
                    if not meta & k.M_UNSTABLE:
                        sites[s, k.S_META] = meta | k.M_UNSTABLE
                        parts[p, k.P_UNSHARED] += 1
                    sites[s, k.S_SEQ] = epoch
                    if has_row:
                        contents[row, k.C_SITE] = s
                        contents[row, k.C_EPOCH] = epoch
                    n_unstable = parts[p, k.P_TREE_UNSTABLE] + 1
                    parts[p, k.P_TREE_UNSTABLE] = n_unstable
                    n_levels += n_unstable >> n_levels
                    visit_cost = cost[k.UNIQUE] + stable_ns + cost[k.COST_UNSTABLE + n_levels]
                else:
                    visit_cost = book_visit(process(s, p, True, False, w), p, w)
                    stable_ns = cost[k.COST_STABLE + levels(parts[p, k.P_TREE_STABLE])]
                    n_levels = levels(parts[p, k.P_TREE_UNSTABLE])
            else:
                outcome = visit(s, p, True, w)
                stable_ns = cost[k.COST_STABLE + levels(parts[p, k.P_TREE_STABLE])]
                n_levels = levels(parts[p, k.P_TREE_UNSTABLE])
                if outcome == k.SKIPPED:
                    n_skipped += 1
                    ns += cost[k.SKIPPED]
                    continue
                visit_cost = book_visit(outcome, p, w)
            ns += visit_cost
            processed += 1
            if processed <= cold_pages:
                cold_ns += visit_cost
            if processed == budget:
                break
        if processed == budget:
            break
        after = slots[at, k.L_NEXT]
        if is_leaving:
            unlink_slot(at, w)
            slots[at, k.L_STATE] = k.UNREGISTERED
        at = after
        i = 0
    ns += cold_ns * cost[k.COST_COLD_PERCENT] // 100 + cost[k.COST_BATCH]
    ns += split_ns(n_splits, p, w)
    end_ns = int(start_ns + ns)
    parts[p, k.P_SLOT] = at
    parts[p, k.P_INDEX] = i
    parts[p, k.P_SCANNED] += processed
    parts[p, k.P_SKIPPED] += n_skipped
    return end_batch(p, end_ns, ns, is_end, w)


@kernel
def apply_events(until_ns: int, w: World) -> None:
    """Events at times <= until_ns, where no ksmd runs."""
    e = w.host[k.H_EVENT]
    while e < len(w.event_time) and w.event_time[e] <= until_ns:
        apply_event(e, w)
        e += 1
    w.host[k.H_EVENT] = e


@helper
def next_batch(until_ns: int, w: World) -> tuple[int, int]:
    """The ksmd that wakes first before `until_ns`, and when; -1 and `until_ns` where none does."""
    p = -1
    start_ns = until_ns
    for q in range(1, len(w.parts)):
        if w.parts[q, k.P_IS_RUNNING] != 0 and w.parts[q, k.P_NEXT_NS] < start_ns:
            p = q
            start_ns = w.parts[q, k.P_NEXT_NS]
    return p, start_ns


@helper
def log_scan(row: int, p: int, end_ns: int, w: World) -> None:
    """Row `row` of the log: partition p ended a full scan."""
    w.log[row, 0] = end_ns
    w.log[row, 1] = p
    w.log[row, 2] = w.parts[p, k.P_FULL_SCANS]


@kernel
def advance(until_ns: int, w: World) -> int:
    """Events at times <= until_ns and batches that start before it, in order of time.

    Fills the log with completed full scans and returns their number; stops early when it is full.
    """
    n_log = 0
    while n_log < len(w.log):
        p, start_ns = next_batch(until_ns, w)
        e = w.host[k.H_EVENT]
        is_woken = False
        while e < len(w.event_time) and w.event_time[e] <= start_ns and not is_woken:
            is_woken = w.events[e, 0] < 0
            apply_event(e, w)
            e += 1
        w.host[k.H_EVENT] = e
        if is_woken:
            continue
        if p < 0:
            break
        end_ns = batch(p, start_ns, w)
        if end_ns >= 0:
            log_scan(n_log, p, end_ns, w)
            n_log += 1
    return n_log
