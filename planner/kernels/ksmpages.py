"""Pages and frames of the KSM model: mapping, splitting huge pages, writes.

What happens here leaves rmap items, stable nodes and their counters alone: bookkeeping is lazy,
as the kernel's, and follows when ksmd (or a call) passes.
"""

from __future__ import annotations

from planner.kernels import ksmstate as k
from planner.kernels.jit import helper, kernel
from planner.kernels.ksmstate import Array, World

__all__ = ["aged", "break_page", "frame_gains", "frame_loses", "initialize", "is_merged", "is_zero",
           "map_zero_page", "move", "pool_frame", "split", "write"]


@helper
def is_zero(content: int, w: World) -> bool:
    """Whether a content is all zero; those beyond the table are not."""
    return bool(0 <= content < len(w.zero) and w.zero[content] != 0)


@helper
def frame_gains(f: int, zero: bool, w: World) -> None:
    """One mapping more, of a page that is all zero or not."""
    frames = w.frames
    if frames[f, k.F_PHYS] == 0:
        owner = frames[f, k.F_OWNER]
        w.parts[owner, k.P_LIVE_PHYS] += 1
        if zero:
            frames[f, k.F_FLAGS] |= k.FLAG_PHYS_ZERO
            w.parts[owner, k.P_LIVE_PHYS_ZERO] += 1
        else:
            frames[f, k.F_FLAGS] &= ~k.FLAG_PHYS_ZERO
    frames[f, k.F_PHYS] += 1


@helper
def frame_loses(f: int, w: World) -> None:
    """One mapping less; a frame without mappings is free, and its stable node stale."""
    frames = w.frames
    frames[f, k.F_PHYS] -= 1
    if frames[f, k.F_PHYS] > 0:
        return
    owner = frames[f, k.F_OWNER]
    w.parts[owner, k.P_LIVE_PHYS] -= 1
    if frames[f, k.F_FLAGS] & k.FLAG_PHYS_ZERO:
        w.parts[owner, k.P_LIVE_PHYS_ZERO] -= 1
    n = frames[f, k.F_NODE]
    frames[f, k.F_NODE] = k.NO_NODE
    if n >= 0:
        w.nodes[n, k.N_FRAME] = k.STALE
    if f >= w.host[k.H_N_BASE]:
        frames[f, k.F_SITE] = w.host[k.H_POOL_FREE]
        w.host[k.H_POOL_FREE] = f


@helper
def pool_frame(s: int, w: World) -> int:
    """A fresh frame for site s, not yet mapped."""
    frames = w.frames
    f = w.host[k.H_POOL_FREE]
    if f >= 0:
        w.host[k.H_POOL_FREE] = frames[f, k.F_SITE]
    else:
        f = w.host[k.H_POOL_TOP]
        w.host[k.H_POOL_TOP] = f + 1
    frames[f, k.F_BASE] = 0
    frames[f, k.F_PHYS] = 0
    frames[f, k.F_NODE] = k.NO_NODE
    frames[f, k.F_SITE] = -1
    frames[f, k.F_OWNER] = w.parts[w.sites[s, k.S_PART], k.P_PLAN]
    frames[f, k.F_FLAGS] = 0
    frames[f, k.F_FOLIO] = f
    return int(f)


@helper
def move(s: int, f: int, w: World) -> None:
    """Map site s to frame f instead of its own; the content stays what it is."""
    old = w.sites[s, k.S_FRAME]
    frame_gains(f, is_zero(w.sites[s, k.S_CONTENT], w), w)
    w.sites[s, k.S_FRAME] = f
    frame_loses(old, w)


@helper
def map_zero_page(s: int, is_by_ksm: bool, w: World) -> None:
    """Map the shared zero page in place of the page of s; k.S_FRAME keeps its content."""
    sites = w.sites
    frame_loses(sites[s, k.S_FRAME], w)
    sites[s, k.S_FRAME] = sites[s, k.S_CONTENT]
    sites[s, k.S_CONTENT] = k.ZERO_MAPPED
    sites[s, k.S_META] &= ~(k.M_MERGED | k.M_HUGE)
    if is_by_ksm:
        sites[s, k.S_META] |= k.M_KSM_ZERO
        w.parts[sites[s, k.S_PART], k.P_ZERO] += 1


@helper
def split(s: int, w: World) -> None:
    """`split_huge_page` of the huge page that s is part of.

    From 6.12 its zero-filled sub-pages are replaced by the shared zero page (in every mm that
    maps them). The tables of a replay know a huge page by its place in the mm.
    """
    sites = w.sites
    w.host[k.H_SPLITS] += 1
    first = s
    last = s + 1
    folio = -1
    if w.host[k.H_FOLIOS]:
        folio = w.frames[sites[s, k.S_FRAME], k.F_FOLIO]
        first = 0
        last = len(sites)
    else:
        block = w.vpn[s] >> 9
        while first > 0 and w.mm[first - 1] == w.mm[s] and w.vpn[first - 1] >> 9 == block:
            first -= 1
        while last < len(sites) and w.mm[last] == w.mm[s] and w.vpn[last] >> 9 == block:
            last += 1
    for t in range(first, last):
        if not sites[t, k.S_META] & k.M_HUGE:
            continue
        if folio >= 0 and w.frames[sites[t, k.S_FRAME], k.F_FOLIO] != folio:
            continue
        sites[t, k.S_META] &= ~k.M_HUGE
        if w.host[k.H_SPLIT_ZEROES] and is_zero(sites[t, k.S_CONTENT], w):
            map_zero_page(t, False, w)


@helper
def is_merged(s: int, p: int, w: World) -> bool:
    """Whether s maps a KSM page of partition p, or (from 6.6) a zero page that KSM put there."""
    if w.sites[s, k.S_CONTENT] >= 0:
        n = w.frames[w.sites[s, k.S_FRAME], k.F_NODE]
        if n >= 0:
            return bool(w.nodes[n, k.N_PART] == p)
        return bool(n == k.ORPHAN and w.sites[s, k.S_PART] == p)
    is_by_ksm = w.sites[s, k.S_META] & k.M_KSM_ZERO != 0
    return bool(is_by_ksm and w.sites[s, k.S_PART] == p and w.host[k.H_HASH_FIRST] != 0)


@helper
def break_page(s: int, w: World) -> None:
    """`break_ksm`: the merged page s gets a frame of its own, of the same content."""
    sites = w.sites
    if sites[s, k.S_CONTENT] >= 0:
        sites[s, k.S_META] &= ~k.M_MERGED
        move(s, pool_frame(s, w), w)
        return
    sites[s, k.S_CONTENT] = sites[s, k.S_FRAME]
    sites[s, k.S_FRAME] = pool_frame(s, w)
    frame_gains(sites[s, k.S_FRAME], True, w)
    sites[s, k.S_META] &= ~k.M_KSM_ZERO
    w.parts[sites[s, k.S_PART], k.P_ZERO] -= 1


@helper
def aged(meta: int) -> tuple[int, bool]:
    """`should_skip_rmap_item` on S_META of a page that is no KSM page: the next one, and "skip".

    Ages beyond 9 make no difference, so they stop there.
    """
    age = meta & k.AGE_MASK
    if age < 9:
        meta += 1
    if age < 3:
        return meta, False
    if meta & k.SKIPS_MASK:
        return meta - (1 << k.SKIPS_SHIFT), True
    skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
    return meta | (skips << k.SKIPS_SHIFT), False


@helper
def _return(s: int, meta: int, w: World) -> int:
    """S_META of a page that comes back into the sample; forgets its checksum if ksmd took another.

    ksmd came to it in the scans that began since it left: not while its item is there still, and
    once at least if it is not there any more.
    """
    if meta & k.M_ITEM:
        return meta
    p = w.sites[s, k.S_PART]
    n_scans = w.parts[p, k.P_EPOCH] + 2 + w.sites[s, k.S_BASE]
    if w.sites[s, k.S_OLD] >= 0:
        n_scans = max(1, n_scans)
    is_visited = n_scans > 0
    if w.parts[p, k.P_SMART_SCAN]:
        is_visited = False
        # Old ages go round in 9 scans.
        for _ in range(n_scans if n_scans < 40 else 40 + (n_scans - 40) % 9):
            meta, is_skipped = aged(meta)
            is_visited |= not is_skipped
    if is_visited:
        w.sites[s, k.S_OLD] = -1
    return meta


@helper
def write(s: int, content: int, g: int, w: World) -> None:
    """The page of site s is written, appears, or goes (content -1); base frame g afterwards.

    The item of s, its stable node and the counters stay what they are until ksmd passes. A page
    that leaves the sample (content UNSEEN) goes too, but it comes back as old as the scans that
    began meanwhile make it, and part of a huge page only if it still is.
    """
    sites, frames, parts = w.sites, w.frames, w.parts
    old_content = sites[s, k.S_CONTENT]
    p = sites[s, k.S_PART]
    meta = sites[s, k.S_META]
    was_unseen = meta & k.M_UNSEEN != 0
    if content == k.UNSEEN:
        if old_content == k.ABSENT and not was_unseen:
            sites[s, k.S_BASE] = -2 - parts[p, k.P_EPOCH]
            if meta & k.M_BORN_HUGE:
                meta |= k.M_HUGE
        meta |= k.M_UNSEEN
    else:
        meta &= ~k.M_UNSEEN
    if old_content == k.ABSENT and content < 0:
        if content != k.UNSEEN:
            meta &= ~k.M_HUGE
            sites[s, k.S_BASE] = -1
            if was_unseen and not meta & k.M_ITEM:
                meta &= ~(k.AGE_MASK | k.SKIPS_MASK)
                sites[s, k.S_OLD] = -1
        sites[s, k.S_META] = meta
        return
    if was_unseen:
        meta = _return(s, meta, w)
    old_base = sites[s, k.S_BASE]
    old_frame = sites[s, k.S_FRAME]
    is_ksm = False
    if old_content >= 0:
        is_ksm = frames[old_frame, k.F_NODE] != k.NO_NODE
        if is_ksm and content >= 0:
            parts[p, k.P_COW] += 1
            parts[p, k.P_COW_NS] += w.cost[k.COST_COW]
    elif meta & k.M_KSM_ZERO:
        parts[p, k.P_ZERO] -= 1
    meta &= ~(k.M_MERGED | k.M_KSM_ZERO)
    if content < 0 and content != k.UNSEEN:
        meta &= ~k.M_HUGE
    elif old_content == k.ABSENT and not was_unseen and meta & k.M_BORN_HUGE:
        meta |= k.M_HUGE
    sites[s, k.S_META] = meta
    if content >= 0:
        zero = is_zero(content, w)
        f = -1
        is_zero_mapped = False
        h = frames[g, k.F_SITE]
        is_hint = h >= 0 and h != s and sites[h, k.S_BASE] == g
        if is_hint:
            # Born by fork, or written together: the physical page of the other one.
            is_cross = parts[sites[h, k.S_PART], k.P_PLAN] != parts[p, k.P_PLAN]
            if sites[h, k.S_CONTENT] == k.ZERO_MAPPED:
                is_zero_mapped = zero and not is_cross and old_content == k.ABSENT
            elif is_cross:
                if frames[sites[h, k.S_FRAME], k.F_NODE] == k.NO_NODE:
                    f = sites[h, k.S_FRAME]
                    frames[f, k.F_FLAGS] |= k.FLAG_CROSS
            elif sites[h, k.S_CONTENT] == content:
                f = sites[h, k.S_FRAME]
        else:
            frames[g, k.F_SITE] = s
        sites[s, k.S_BASE] = g
        if is_zero_mapped:
            sites[s, k.S_CONTENT] = k.ZERO_MAPPED
            sites[s, k.S_FRAME] = content
            sites[s, k.S_META] &= ~k.M_HUGE
            if sites[h, k.S_META] & k.M_KSM_ZERO:
                sites[s, k.S_META] |= k.M_KSM_ZERO
                parts[p, k.P_ZERO] += 1
        else:
            if f < 0:
                if g == old_base and not is_ksm and old_content >= 0:
                    f = old_frame
                elif frames[g, k.F_NODE] == k.NO_NODE:
                    f = g
                else:
                    f = pool_frame(s, w)
            sites[s, k.S_CONTENT] = content
            sites[s, k.S_FRAME] = f
            frame_gains(f, zero, w)
            owner = frames[f, k.F_OWNER]
            was_zero = (frames[f, k.F_FLAGS] & k.FLAG_PHYS_ZERO) != 0
            if zero and not was_zero:  # written in place
                frames[f, k.F_FLAGS] |= k.FLAG_PHYS_ZERO
                parts[owner, k.P_LIVE_PHYS_ZERO] += 1
            elif was_zero and not zero:
                frames[f, k.F_FLAGS] &= ~k.FLAG_PHYS_ZERO
                parts[owner, k.P_LIVE_PHYS_ZERO] -= 1
        owner = frames[g, k.F_OWNER]
        if frames[g, k.F_BASE] == 0:
            parts[owner, k.P_LIVE_BASE] += 1
            frames[g, k.F_FLAGS] &= ~k.FLAG_BASE_ZERO
        frames[g, k.F_BASE] += 1
        was_zero = (frames[g, k.F_FLAGS] & k.FLAG_BASE_ZERO) != 0
        if zero and not was_zero:
            frames[g, k.F_FLAGS] |= k.FLAG_BASE_ZERO
            parts[owner, k.P_LIVE_BASE_ZERO] += 1
        elif was_zero and not zero:
            frames[g, k.F_FLAGS] &= ~k.FLAG_BASE_ZERO
            parts[owner, k.P_LIVE_BASE_ZERO] -= 1
    else:
        sites[s, k.S_CONTENT] = k.ABSENT
        sites[s, k.S_BASE] = -2 - parts[p, k.P_EPOCH] if content == k.UNSEEN else -1
        sites[s, k.S_FRAME] = -1
    if old_content != k.ABSENT:
        frames[old_base, k.F_BASE] -= 1
        if frames[old_base, k.F_BASE] == 0:
            owner = frames[old_base, k.F_OWNER]
            parts[owner, k.P_LIVE_BASE] -= 1
            if frames[old_base, k.F_FLAGS] & k.FLAG_BASE_ZERO:
                parts[owner, k.P_LIVE_BASE_ZERO] -= 1
    if old_content >= 0:
        frame_loses(old_frame, w)


@kernel
def initialize(first: Array, w: World) -> None:
    """Decide whose each base frame is, then let the pages of time 0 appear.

    `first` int32 (n_sites, 2): content and frame at time 0. A frame belongs to the partition of
    the first site that ever has it, and is marked when sites of several partitions have it.
    """
    sites, frames, events = w.sites, w.frames, w.events
    n_sites = len(first)
    for i in range(n_sites + len(events)):
        if i < n_sites:
            s, content, g = i, first[i, 0], first[i, 1]
        else:
            j = i - n_sites
            s, content, g = events[j, 0], events[j, 1], events[j, 2]
        if s < 0 or content < 0 or sites[s, k.S_PART] == 0:
            continue
        p = sites[s, k.S_PART]
        if frames[g, k.F_OWNER] == 0:
            frames[g, k.F_OWNER] = p
        elif frames[g, k.F_OWNER] != p:
            frames[g, k.F_FLAGS] |= k.FLAG_CROSS
    for s in range(n_sites):
        if first[s, 0] >= 0 or first[s, 0] == k.UNSEEN:
            write(s, first[s, 0], first[s, 1], w)
