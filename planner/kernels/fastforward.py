"""The visit loop of `planner.kernels.ksm`, with work that follows changes instead of visits.

Nearly all visits of memory at rest come to nothing new: a merged page is passed on the quick
path, a page that is alone with its content goes back into the new unstable tree, a page in its
smart-scan pause is skipped. What such a pass does to counters, cost and the batch's budget follows
from how many pages of each kind it meets. So pages are sorted into classes, one bit each:

    BULK    alone with a content that has no stable node, and the only user of an unshared frame
    SINGLE  any other page with an item that is no KSM page and has a frame of its own
    QUICK   merged and still mapped
    EACH    whatever else there is to do: pages without an item yet, items whose page was written
            after a merge or is gone, pages whose frame others map too

A pass takes 64 pages at a time; it stops at EACH pages and at SINGLE pages that are due, which go
through `ksm.visit` and are sorted anew. Everything else is counted, not visited. Which pages
are due stands in nine bitmaps, one for each scan modulo nine: a page of age 9 and more comes back
to the bitmap it was in, younger ones move on together. A write to a BULK page costs two stores
and a bit, unless its new content may exist elsewhere.

The rows of BULK and SINGLE pages are behind, until `settle` writes them; counters, frames, nodes
and contents of pages are always exact. The result is that of `ksm.advance` to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.kernels import ksm, ksmpages, ksmtrees
from planner.kernels import ksmstate as k
from planner.kernels.ff_marks import (
    G_BULK,
    G_DUE,
    G_EACH,
    G_PART,
    G_PASSED,
    G_QUICK,
    G_SINGLE,
    G_UNSTABLE,
    G_WORD,
    G_YOUNG,
    N_STAGES,
    PERIOD,
    SCANS_AFTER,
    W_BULK,
    W_CHANGED,
    W_EACH,
    W_QUICK,
    W_SINGLE,
    W_UNSTABLE,
    W_VALID,
    Marks,
    can_fast_forward,
    classify,
    count_bits,
    count_live,
    demote,
    materialize,
    next_scan,
    nth_bit,
    prepare,
    settle,
    sort_anew,
)
from planner.kernels.jit import helper, kernel
from planner.kernels.ksmstate import Array, World

__all__ = ["Marks", "advance", "can_fast_forward", "prepare", "settle"]

_0 = np.uint64(0)
_1 = np.uint64(1)
_ALL = np.uint64(2**64 - 1)


# ---- writes -----------------------------------------------------------------------------------


@helper
def _write_anew(s: int, content: int, g: int, w: World, m: Marks) -> None:
    """`ksmpages.write`, for any page and content."""
    place = m.place[s]
    sites = w.sites
    if place >= 0:
        materialize(s, next_scan(place, w, m), w, m)
    before = sites[s, k.S_CONTENT]
    sharer = w.frames[g, k.F_SITE] if content >= 0 else -1
    ksmpages.write(s, content, g, w)
    if sharer >= 0 and sharer != s:  # born by fork: the page it was born from now has sharers
        sort_anew(sharer, w, m)
    if place < 0:
        return
    after = sites[s, k.S_CONTENT]
    if after != before:
        count_live(s, before, -1, w, m)
        count_live(s, after, 1, w, m)
    classify(s, next_scan(place, w, m), w, m)
    # A tree's page that cannot be read is a dead end for whoever is alone with that content now.
    p = m.groups[m.word_slot[place >> 6], G_PART]
    is_in_tree = sites[s, k.S_META] & k.M_UNSTABLE and sites[s, k.S_SEQ] == w.parts[p, k.P_EPOCH]
    if after < 0 and is_in_tree and 0 <= sites[s, k.S_OLD] < w.host[k.H_N_ROWS]:
        row = sites[s, k.S_OLD] + w.parts[p, k.P_CONTENT_OFFSET]
        if m.live[row, 0] == 1:
            demote(m.live[row, 1], w, m)


@helper
def _apply_arrival(e: int, w: World, m: Marks) -> None:
    """An mm slot comes or goes."""
    slot = ~w.events[e, 0]
    first = w.slots[slot, k.L_START]
    count = w.slots[slot, k.L_COUNT]
    for i in range(first, first + count):
        materialize(w.order[i], next_scan(m.place[w.order[i]], w, m), w, m)
    ksm.apply_event(e, w)
    m.groups[slot, G_PASSED] = w.parts[m.groups[slot, G_PART], k.P_EPOCH]
    for i in range(first, first + count):
        classify(w.order[i], next_scan(m.place[w.order[i]], w, m), w, m)


@helper
def _apply_events(until_ns: int, w: World, m: Marks) -> bool:
    """Events up to and at a time, or to the first that concerns a slot; whether that stopped it.

    All in one loop, because a call with so many tables costs more than most writes: those of BULK
    pages that get, in place or in a fresh frame, a content that nobody else has.
    """
    sites, frames, contents, parts = w.sites, w.frames, w.contents, w.parts
    event_time, events, place_of, words, live = w.event_time, w.events, m.place, m.words, m.live
    n_rows = w.host[k.H_N_ROWS]
    n_zero = len(w.zero)
    e = w.host[k.H_EVENT]
    is_slot = False
    while e < len(event_time) and event_time[e] <= until_ns and not is_slot:
        s = events[e, 0]
        content = events[e, 1]
        g = events[e, 2]
        e += 1
        if s < 0:
            _apply_arrival(e - 1, w, m)
            is_slot = True
            continue
        place = place_of[s]
        i = place >> 6
        b = _1 << np.uint64(place & 63)
        is_quick = place >= 0 and content >= 0 and words[i, W_BULK] & b != _0
        is_quick = is_quick and (content >= n_zero or w.zero[content] == 0)
        is_in_place = False
        if is_quick:
            is_in_place = sites[s, k.S_BASE] == g
            is_quick = is_in_place or (
                frames[g, k.F_SITE] < 0 and frames[g, k.F_PHYS] == 0 and frames[g, k.F_NODE] < 0
            )
        offset = 0
        if is_quick:
            p = sites[s, k.S_PART]
            offset = parts[p, k.P_CONTENT_OFFSET]
            if content < n_rows:
                row = content + offset
                is_quick = (
                    live[row, 0] == 0
                    and contents[row, k.C_HEAD] < 0
                    and contents[row, k.C_CHAIN] < 0
                    and contents[row, k.C_EPOCH] != parts[p, k.P_EPOCH]
                )
                if is_quick:
                    live[row, 0] = 1
                    live[row, 1] = place
        if not is_quick:
            _write_anew(s, content, g, w, m)
            continue
        before = sites[s, k.S_CONTENT]
        if before < n_rows:
            live[before + offset, 0] -= 1
            live[before + offset, 1] ^= place
        if words[i, W_CHANGED] & b == _0:
            sites[s, k.S_OLD] = before
            words[i, W_CHANGED] |= b
        elif sites[s, k.S_OLD] == content:
            words[i, W_CHANGED] &= ~b
        if is_in_place:  # the frame is its own, and neither content is zero: that is all
            sites[s, k.S_CONTENT] = content
        else:
            ksmpages.write(s, content, g, w)
    w.host[k.H_EVENT] = e
    return is_slot


# ---- passing pages ----------------------------------------------------------------------------


@helper
def _pass_page(s: int, p: int, w: World) -> int:
    """What `ksm.batch` does at one page: forget the item of a page that is gone, or visit."""
    meta = w.sites[s, k.S_META]
    if w.sites[s, k.S_CONTENT] < 0 or not meta & k.M_VMA:
        if meta & k.M_ITEM:
            ksmtrees.forget(s, w)
        return k.HOLE
    return ksm.visit(s, p, True, w)


@helper
def _touch_block(s: int, n: int, w: World, m: Marks) -> int:
    """Note the pages of the huge page of s, after n others; returns how many are noted now."""
    first = s
    block = w.vpn[s] >> 9
    while first > 0 and w.mm[first - 1] == w.mm[s] and w.vpn[first - 1] >> 9 == block:
        first -= 1
    t = first
    while t < len(w.sites) and w.mm[t] == w.mm[s] and w.vpn[t] >> 9 == block:
        if t != s and m.place[t] >= 0 and w.sites[t, k.S_META] & k.M_HUGE:
            materialize(t, next_scan(m.place[t], w, m), w, m)
            m.touched[n, 0] = t
            m.touched[n, 1] = w.sites[t, k.S_CONTENT]
            n += 1
        t += 1
    return n


@helper
def _visit_alone(s: int, p: int, w: World, m: Marks) -> int:
    """The cursor, which stands at s, passes that page; returns the outcome."""
    sites, contents = w.sites, w.contents
    epoch = w.parts[p, k.P_EPOCH]
    materialize(s, epoch, w, m)
    content = sites[s, k.S_CONTENT]
    t = -1
    can_merge = False
    if 0 <= content < w.host[k.H_N_ROWS]:
        row = content + w.parts[p, k.P_CONTENT_OFFSET]
        if contents[row, k.C_EPOCH] == epoch:
            t = contents[row, k.C_SITE]
            if t >= 0 and t != s and sites[t, k.S_CONTENT] == content:
                materialize(t, next_scan(m.place[t], w, m), w, m)
            else:
                t = -1
        can_merge = t >= 0 or contents[row, k.C_HEAD] >= 0 or contents[row, k.C_CHAIN] >= 0
        can_merge |= w.parts[p, k.P_USE_ZERO] != 0 and ksmpages.is_zero(content, w)
    n = 0
    if can_merge:
        # The merge of a sub-page splits its huge page, whose zero-filled sub-pages may go.
        if sites[s, k.S_META] & k.M_HUGE:
            n = _touch_block(s, n, w, m)
        if t >= 0 and sites[t, k.S_META] & k.M_HUGE:
            is_same = w.mm[s] == w.mm[t] and w.vpn[s] >> 9 == w.vpn[t] >> 9
            if n == 0 or not is_same:
                n = _touch_block(t, n, w, m)
    outcome = _pass_page(s, p, w)
    if sites[s, k.S_CONTENT] != content:
        count_live(s, content, -1, w, m)
    classify(s, epoch + 1, w, m)
    if t >= 0:
        if sites[t, k.S_CONTENT] != content:
            count_live(t, content, -1, w, m)
        classify(t, next_scan(m.place[t], w, m), w, m)
    for i in range(n):
        u = m.touched[i, 0]
        if u != s and u != t:
            if sites[u, k.S_CONTENT] != m.touched[i, 1]:
                count_live(u, m.touched[i, 1], -1, w, m)
            classify(u, next_scan(m.place[u], w, m), w, m)
    return outcome


@helper
def _grow_older(j: int, visited: Any, phase: int, group: Array, m: Marks) -> None:
    """BULK pages of word j were processed, in phase `phase`: young ones enter their next stage."""
    low, middle, high = m.stage[0, j], m.stage[1, j], m.stage[2, j]
    young = np.uint64(visited) & (low | middle | high)
    if not young:
        return
    for stage in range(1, N_STAGES):
        of_stage = young
        of_stage &= low if stage & 1 else ~low
        of_stage &= middle if stage & 2 else ~middle
        of_stage &= high if stage & 4 else ~high
        if of_stage:
            n = count_bits(of_stage)
            after = (phase + SCANS_AFTER[stage]) % PERIOD
            m.due[phase, j] &= ~of_stage
            m.due[after, j] |= of_stage
            group[G_DUE + phase] -= n
            group[G_DUE + after] += n
            now = stage + 1
            if now == N_STAGES:
                now = 0
                group[G_YOUNG] -= n
            for digit in range(3):
                if now >> digit & 1:
                    m.stage[digit, j] |= of_stage
                else:
                    m.stage[digit, j] &= ~of_stage


@helper
def _pass_slot(
    slot: int, i: int, budget: int, p: int, w: World, m: Marks
) -> tuple[int, int, int, int]:
    """Pass the pages of slot slot from index i until `budget` were processed, or to its end.

    Returns the index, how many were processed, the ns of their visits and those of the others.
    """
    parts, cost, words = w.parts, w.cost, m.words
    group = m.groups[slot]
    count = w.slots[slot, k.L_COUNT]
    is_smart = parts[p, k.P_SMART_SCAN] != 0
    phase = parts[p, k.P_EPOCH] % PERIOD
    if (
        i == 0
        and group[G_EACH] == 0
        and group[G_QUICK] == 0
        and group[G_UNSTABLE] == 0
        and (group[G_DUE + phase] == 0 if is_smart else group[G_BULK] + group[G_SINGLE] == 0)
    ):
        n_skipped = group[G_BULK] + group[G_SINGLE]
        parts[p, k.P_SKIPPED] += n_skipped
        return count, 0, 0, n_skipped * cost[k.SKIPPED] + (count - n_skipped) * cost[k.HOLE]
    left = budget
    visit_ns = 0
    n_skipped = n_holes = n_quick = n_changed = 0
    n_tree = parts[p, k.P_TREE_UNSTABLE]
    n_unstable = 0  # less those before
    stable_ns = cost[k.COST_STABLE + ksm.levels(parts[p, k.P_TREE_STABLE])]
    late_ns = 0 if w.host[k.H_HASH_FIRST] else stable_ns
    level = ksm.levels(n_tree + 1)
    has_young = is_smart and group[G_YOUNG] > 0
    j = group[G_WORD] + (i >> 6)
    last = group[G_WORD] + ((count + 63) >> 6)
    rest = words[j, W_VALID] & (_ALL << np.uint64(i & 63)) if i < count else _0
    while j < last:
        bulk = words[j, W_BULK]
        single = words[j, W_SINGLE]
        quick = words[j, W_QUICK]
        due = m.due[phase, j] if is_smart else bulk | single
        special = (words[j, W_EACH] | (single & due)) & rest
        lowest = special & (~special + _1)
        now = rest & (lowest - _1)  # all of the rest when nothing is special
        visited = ((bulk & due) | quick) & now
        c = count_bits(visited)
        is_full = c >= left
        if is_full:
            end = nth_bit(visited, left)
            now &= _ALL >> np.uint64(63 - end)
            c = left
        if now:
            left -= c
            unchanged = bulk & due & now & ~words[j, W_CHANGED]
            n_unchanged = count_bits(unchanged)
            q = count_bits(quick & now)
            n_quick += q
            n_changed += c - q - n_unchanged
            paused = (bulk | single) & now
            n_holes += count_bits(now) - count_bits(paused) - q
            n_skipped += count_bits(paused & ~due)
            was = words[j, W_UNSTABLE]
            n_unstable += n_unchanged - count_bits(was & now)
            words[j, W_UNSTABLE] = (was & ~now) | unchanged
            words[j, W_CHANGED] &= ~(bulk & due & now)
            if has_young:
                _grow_older(j, bulk & due & now, phase, group, m)
            if n_unchanged:
                ns = cost[k.UNIQUE] + stable_ns
                if n_tree + n_unchanged < 1 << level:
                    visit_ns += n_unchanged * (ns + cost[k.COST_UNSTABLE + level])
                    n_tree += n_unchanged
                else:
                    for _ in range(n_unchanged):
                        n_tree += 1
                        if n_tree >= 1 << level:
                            level += 1
                        visit_ns += ns + cost[k.COST_UNSTABLE + level]
        if is_full:
            i = ((j - group[G_WORD]) << 6) + end + 1
            break
        if special:
            end = count_bits(lowest - _1)
            i = ((j - group[G_WORD]) << 6) + end
            visit_ns += n_changed * (cost[k.VOLATILE] + late_ns)
            n_changed = 0
            parts[p, k.P_TREE_UNSTABLE] = n_tree
            parts[p, k.P_UNSHARED] += n_unstable
            group[G_UNSTABLE] += n_unstable
            n_unstable = 0
            parts[p, k.P_SLOT] = slot
            parts[p, k.P_INDEX] = i
            outcome = _visit_alone(w.order[w.slots[slot, k.L_START] + i], p, w, m)
            i += 1
            if outcome == k.HOLE:
                n_holes += 1
            elif outcome == k.SKIPPED:
                n_skipped += 1
            else:
                left -= 1
                visit_ns += ksm.book_visit(outcome, p, w)
            n_tree = parts[p, k.P_TREE_UNSTABLE]
            stable_ns = cost[k.COST_STABLE + ksm.levels(parts[p, k.P_TREE_STABLE])]
            late_ns = 0 if w.host[k.H_HASH_FIRST] else stable_ns
            level = ksm.levels(n_tree + 1)
            has_young = is_smart and group[G_YOUNG] > 0
            if left == 0:
                break
            rest &= ~(lowest | (lowest - _1))
            if rest:
                continue
        j += 1
        if j < last:
            rest = words[j, W_VALID]
    if left > 0:
        i = count
    parts[p, k.P_TREE_UNSTABLE] = n_tree
    parts[p, k.P_UNSHARED] += n_unstable
    group[G_UNSTABLE] += n_unstable
    parts[p, k.P_SKIPPED] += n_skipped
    visit_ns += n_quick * cost[k.QUICK] + n_changed * (cost[k.VOLATILE] + late_ns)
    return i, budget - left, visit_ns, n_skipped * cost[k.SKIPPED] + n_holes * cost[k.HOLE]


@helper
def _forget_slot(slot: int, w: World, m: Marks) -> None:
    first = w.slots[slot, k.L_START]
    for i in range(first, first + w.slots[slot, k.L_COUNT]):
        s = w.order[i]
        scan = next_scan(m.place[s], w, m)
        materialize(s, scan, w, m)
        ksmtrees.forget(s, w)
        classify(s, scan, w, m)


@helper
def _batch(p: int, start_ns: int, w: World, m: Marks) -> int:
    """`ksm.batch`: its end if it ended a full scan, else -1."""
    slots, parts, cost = w.slots, w.parts, w.cost
    head = parts[p, k.P_HEAD]
    if slots[head, k.L_NEXT] == head:
        parts[p, k.P_NEXT_NS] = k.NEVER_NS
        return -1
    w.host[k.H_NOW_JIFFY] = start_ns // w.host[k.H_JIFFY_NS]
    ns = cost[k.COST_BATCH]
    if parts[p, k.P_SLOT] == head:
        ksm.begin_scan(p, start_ns, w)
        ns += cost[k.COST_SCAN]
    at = parts[p, k.P_SLOT]
    i = parts[p, k.P_INDEX]
    budget = parts[p, k.P_PAGES]
    n_cold = cost[k.COST_COLD_PAGES] if parts[p, k.P_SLEEP_JIFFIES] > 0 else 0
    cold_ns = 0
    processed = 0
    is_end = False
    n_splits = w.host[k.H_SPLITS]
    while processed < budget:
        if at == head:
            is_end = True
            break
        count = slots[at, k.L_COUNT]
        is_leaving = slots[at, k.L_STATE] == k.EXITED or (i == 0 and slots[at, k.L_MERGEABLE] == 0)
        if is_leaving:
            parts[p, k.P_SLOT] = at
            parts[p, k.P_INDEX] = i
            _forget_slot(at, w, m)
            i = count
        while i < count and processed < budget:
            limit = budget - processed
            is_cold = processed < n_cold
            if is_cold:
                limit = min(limit, n_cold - processed)
            i, n_visits, visit_ns, other_ns = _pass_slot(at, i, limit, p, w, m)
            processed += n_visits
            ns += visit_ns + other_ns
            if is_cold:
                cold_ns += visit_ns
        if processed == budget:
            break
        m.groups[at, G_PASSED] = parts[p, k.P_EPOCH]
        after = slots[at, k.L_NEXT]
        if is_leaving:
            ksm.unlink_slot(at, w)
            slots[at, k.L_STATE] = k.UNREGISTERED
        at = after
        i = 0
    ns += cold_ns * cost[k.COST_COLD_PERCENT] // 100
    ns += ksm.split_ns(n_splits, p, w)
    end_ns = int(start_ns + ns)
    parts[p, k.P_SLOT] = at
    parts[p, k.P_INDEX] = i
    parts[p, k.P_SCANNED] += processed
    return ksm.end_batch(p, end_ns, ns, is_end, w)


@kernel
def advance(until_ns: int, w: World, m: Marks) -> int:
    """`ksm.advance`: same arguments beside the marks, same log, same world, but see `settle`."""
    n_log = 0
    while n_log < len(w.log):
        p, start_ns = ksm.next_batch(until_ns, w)
        if _apply_events(start_ns, w, m):
            continue
        if p < 0:
            break
        end_ns = _batch(p, start_ns, w, m)
        if end_ns >= 0:
            ksm.log_scan(n_log, p, end_ns, w)
            n_log += 1
    return n_log
