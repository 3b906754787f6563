"""The stable and the unstable tree of the KSM model (mm/ksm.c): nodes, chains, searches.

Without `H_EXACT` a tree is a table by content: a search meets the nodes of its own content only,
where the kernel's descents also notice stale nodes on the way. With it they are the kernel's
red-black trees, ordered by the bytes of pages.
"""

from __future__ import annotations

from planner.kernels import ksmstate as k
from planner.kernels import rbtree
from planner.kernels.jit import helper
from planner.kernels.ksmstate import World

__all__ = ["append", "drop_chain", "forget", "leave_trees", "remove_node", "stable_insert",
           "stable_search", "unstable_search_insert"]

_GONE = -3  # a stale node was removed: search again
_FULL = -2  # there is a node, but none with room
_NONE = -1


@helper
def _free_node(n: int, w: World) -> None:
    w.nodes[n, k.N_NEXT] = w.host[k.H_NODE_FREE]
    w.host[k.H_NODE_FREE] = n


@helper
def _drop_entry(row: int, p: int, w: World) -> None:
    """The stable tree's entry of a content goes."""
    w.parts[p, k.P_TREE_STABLE] -= 1
    if w.host[k.H_EXACT]:
        w.parts[p, k.P_STABLE_ROOT] = rbtree.erase(
            w.stable_tree, int(w.parts[p, k.P_STABLE_ROOT]), row
        )


@helper
def _unlink(n: int, w: World) -> None:
    nodes = w.nodes
    after = nodes[n, k.N_NEXT]
    before = nodes[n, k.N_PREV]
    if before >= 0:
        nodes[before, k.N_NEXT] = after
    else:
        w.contents[nodes[n, k.N_ROW], k.C_HEAD] = after
    if after >= 0:
        nodes[after, k.N_PREV] = before


@helper
def _link(n: int, row: int, w: World) -> None:
    """At the head of the content's nodes."""
    head = w.contents[row, k.C_HEAD]
    w.nodes[n, k.N_NEXT] = head
    w.nodes[n, k.N_PREV] = -1
    if head >= 0:
        w.nodes[head, k.N_PREV] = n
    w.contents[row, k.C_HEAD] = n


@helper
def remove_node(n: int, w: World) -> None:
    """`remove_node_from_stable_tree`: all of its items become plain ones.

    They find out by themselves (k.REMOVED), the last one frees the row. A chain head stays.
    """
    nodes, parts = w.nodes, w.parts
    row = nodes[n, k.N_ROW]
    p = nodes[n, k.N_PART]
    if nodes[n, k.N_ITEMS] > 0:
        parts[p, k.P_SHARED] -= 1
        parts[p, k.P_SHARING] -= nodes[n, k.N_ITEMS] - 1
    _unlink(n, w)
    w.contents[row, k.C_NODES] -= 1
    parts[p, k.P_NODES] -= 1
    if w.contents[row, k.C_CHAIN] >= 0:
        parts[p, k.P_DUPS] -= 1
    else:
        _drop_entry(row, p, w)
    nodes[n, k.N_FRAME] = k.REMOVED
    if nodes[n, k.N_ITEMS] == 0:
        _free_node(n, w)


@helper
def drop_chain(row: int, p: int, w: World) -> None:
    """`free_stable_node_chain`."""
    w.contents[row, k.C_CHAIN] = -1
    w.parts[p, k.P_CHAINS] -= 1
    _drop_entry(row, p, w)


@helper
def append(s: int, n: int, w: World) -> None:
    """`stable_tree_append`: the item of s joins node n, whose page s maps."""
    p = w.nodes[n, k.N_PART]
    w.sites[s, k.S_NODE] = n
    w.sites[s, k.S_META] |= k.M_STABLE | k.M_MERGED
    w.nodes[n, k.N_ITEMS] += 1
    if w.nodes[n, k.N_ITEMS] > 1:
        w.parts[p, k.P_SHARING] += 1
    else:
        w.parts[p, k.P_SHARED] += 1


@helper
def leave_trees(s: int, w: World) -> None:
    """`remove_rmap_item_from_tree`: the item of s becomes a plain one."""
    sites, nodes, parts = w.sites, w.nodes, w.parts
    meta = sites[s, k.S_META]
    if meta & k.M_STABLE:
        n = sites[s, k.S_NODE]
        sites[s, k.S_NODE] = -1
        sites[s, k.S_META] = meta & ~(k.M_STABLE | k.M_MERGED)
        if nodes[n, k.N_FRAME] == k.STALE:
            remove_node(n, w)
        nodes[n, k.N_ITEMS] -= 1
        if nodes[n, k.N_FRAME] == k.REMOVED:
            if nodes[n, k.N_ITEMS] == 0:
                _free_node(n, w)
        elif nodes[n, k.N_ITEMS] > 0:
            parts[nodes[n, k.N_PART], k.P_SHARING] -= 1
        else:
            parts[nodes[n, k.N_PART], k.P_SHARED] -= 1
    elif meta & k.M_UNSTABLE:
        p = sites[s, k.S_PART]
        sites[s, k.S_META] = meta & ~k.M_UNSTABLE
        parts[p, k.P_UNSHARED] -= 1
        if sites[s, k.S_SEQ] == parts[p, k.P_EPOCH]:
            parts[p, k.P_TREE_UNSTABLE] -= 1
            if w.host[k.H_EXACT]:
                parts[p, k.P_UNSTABLE_ROOT] = rbtree.erase(
                    w.unstable_tree, int(parts[p, k.P_UNSTABLE_ROOT]), s
                )
            elif sites[s, k.S_OLD] < w.host[k.H_N_ROWS]:
                row = sites[s, k.S_OLD] + parts[p, k.P_CONTENT_OFFSET]
                if w.contents[row, k.C_SITE] == s:
                    w.contents[row, k.C_SITE] = -1


@helper
def forget(s: int, w: World) -> None:
    """Free the rmap item of s, if it has one; that of an unseen page is as old when it returns."""
    if w.sites[s, k.S_META] & k.M_ITEM:
        leave_trees(s, w)
        w.sites[s, k.S_META] &= ~k.M_ITEM
        if not w.sites[s, k.S_META] & k.M_UNSEEN:
            w.sites[s, k.S_META] &= ~(k.AGE_MASK | k.SKIPS_MASK)
            w.sites[s, k.S_OLD] = -1
        w.parts[w.sites[s, k.S_PART], k.P_ITEMS] -= 1


@helper
def _sweep(w: World) -> None:
    """Notice all stale nodes without items: more than two nodes a page can only be so many."""
    for n in range(len(w.nodes)):
        if w.nodes[n, k.N_FRAME] == k.STALE and w.nodes[n, k.N_ITEMS] == 0:
            remove_node(n, w)


@helper
def _has_room(n: int, more: int, p: int, w: World) -> bool:
    """`__is_page_sharing_candidate`."""
    items = w.nodes[n, k.N_ITEMS]
    return bool(items > 0 and items + more < w.parts[p, k.P_MAX_SHARING])


@helper
def _meet(row: int, p: int, may_prune: bool, w: World) -> int:
    """What a descent does at a content's entry (`chain_prune`, `chain`): a node, _GONE or _FULL.

    Stale nodes met are removed; a chain may be dissolved, or the node found put at its head.
    """
    nodes, contents, parts = w.nodes, w.contents, w.parts
    is_old = not w.host[k.H_HASH_FIRST]  # up to 6.10
    if contents[row, k.C_CHAIN] < 0:
        n = contents[row, k.C_HEAD]
        if nodes[n, k.N_FRAME] == k.STALE:
            remove_node(n, w)
            return _GONE
        return int(n) if not is_old or _has_room(n, 0, p, w) else _FULL
    now = w.host[k.H_NOW_JIFFY]
    is_pruning = may_prune and now >= contents[row, k.C_CHAIN] + parts[p, k.P_PRUNE_JIFFIES]
    if is_pruning:
        contents[row, k.C_CHAIN] = now
    found = _NONE
    n_live = 0
    n = contents[row, k.C_HEAD]
    while n >= 0:
        after = nodes[n, k.N_NEXT]
        if nodes[n, k.N_FRAME] == k.STALE:
            remove_node(n, w)
            n = after
            continue
        n_live += 1
        has_room = _has_room(n, 0, p, w)
        if found < 0:
            is_better = has_room or not is_old
        else:
            is_better = has_room and (
                not _has_room(found, 0, p, w) or nodes[n, k.N_ITEMS] > nodes[found, k.N_ITEMS]
            )
        if is_better:
            found = n
            if has_room and not is_pruning:
                break
        n = after
    if contents[row, k.C_HEAD] < 0:
        drop_chain(row, p, w)
        return _GONE
    if found < 0:
        return _FULL
    if contents[row, k.C_NODES] == 1 and (not is_old or (is_pruning and n_live == 1)):
        contents[row, k.C_CHAIN] = -1
        parts[p, k.P_CHAINS] -= 1
        parts[p, k.P_DUPS] -= 1
    elif nodes[found, k.N_PREV] >= 0 and _has_room(found, 1, p, w):
        _unlink(found, w)
        _link(found, row, w)
    return int(found)


@helper
def stable_search(content: int, p: int, w: World) -> int:
    """`stable_tree_search`: a node of this content that has room, or _NONE."""
    if content >= w.host[k.H_N_ROWS]:
        return _NONE
    offset = w.parts[p, k.P_CONTENT_OFFSET]
    row = content + offset
    if not w.host[k.H_EXACT]:
        while w.contents[row, k.C_HEAD] >= 0 or w.contents[row, k.C_CHAIN] >= 0:
            n = _meet(row, p, True, w)
            if n != _GONE:
                return n if n >= 0 and _has_room(n, 0, p, w) else _NONE
        return _NONE
    at = w.parts[p, k.P_STABLE_ROOT]
    while at >= 0:
        n = _meet(at, p, True, w)
        if n == _GONE:
            at = w.parts[p, k.P_STABLE_ROOT]
        elif at == row:
            return n if n >= 0 and _has_room(n, 0, p, w) else _NONE
        elif w.keys[content] < w.keys[at - offset]:
            at = w.stable_tree[at, k.T_LEFT]
        else:
            at = w.stable_tree[at, k.T_RIGHT]
    return _NONE


@helper
def stable_insert(f: int, content: int, p: int, w: World) -> int:
    """`stable_tree_insert`: a new node for the KSM page f; the first equal one makes a chain."""
    nodes, contents, parts = w.nodes, w.contents, w.parts
    offset = parts[p, k.P_CONTENT_OFFSET]
    row = content + offset
    if w.host[k.H_NODE_FREE] < 0 and w.host[k.H_NODE_TOP] == len(nodes):
        _sweep(w)
    has_entry = False
    if w.host[k.H_EXACT]:
        at = parts[p, k.P_STABLE_ROOT]
        parent = -1
        side = k.T_LEFT
        while at >= 0:
            if _meet(at, p, False, w) == _GONE:
                at = parts[p, k.P_STABLE_ROOT]
                parent = -1
                continue
            if at == row:
                has_entry = True
                break
            side = k.T_LEFT if w.keys[content] < w.keys[at - offset] else k.T_RIGHT
            parent = at
            at = w.stable_tree[at, side]
        if not has_entry:
            parts[p, k.P_STABLE_ROOT] = rbtree.insert(
                w.stable_tree, int(parts[p, k.P_STABLE_ROOT]), row, int(parent), side
            )
    else:
        while contents[row, k.C_HEAD] >= 0 or contents[row, k.C_CHAIN] >= 0:
            if _meet(row, p, False, w) != _GONE:
                has_entry = True
                break
    n = w.host[k.H_NODE_FREE]
    if n >= 0:
        w.host[k.H_NODE_FREE] = nodes[n, k.N_NEXT]
    else:
        n = w.host[k.H_NODE_TOP]
        w.host[k.H_NODE_TOP] = n + 1
    nodes[n, k.N_ITEMS] = 0
    nodes[n, k.N_FRAME] = f
    nodes[n, k.N_ROW] = row
    nodes[n, k.N_PART] = p
    w.frames[f, k.F_NODE] = n
    parts[p, k.P_NODES] += 1
    if not has_entry:
        parts[p, k.P_TREE_STABLE] += 1
    else:
        if contents[row, k.C_CHAIN] < 0:
            contents[row, k.C_CHAIN] = w.host[k.H_NOW_JIFFY]
            parts[p, k.P_CHAINS] += 1
            parts[p, k.P_DUPS] += 1
        parts[p, k.P_DUPS] += 1
    _link(n, row, w)
    contents[row, k.C_NODES] += 1
    return int(n)


@helper
def _insert_unstable(s: int, content: int, p: int, w: World) -> None:
    w.sites[s, k.S_META] |= k.M_UNSTABLE
    w.sites[s, k.S_SEQ] = w.parts[p, k.P_EPOCH]
    w.parts[p, k.P_TREE_UNSTABLE] += 1
    w.parts[p, k.P_UNSHARED] += 1
    if not w.host[k.H_EXACT] and content < w.host[k.H_N_ROWS]:
        row = content + w.parts[p, k.P_CONTENT_OFFSET]
        w.contents[row, k.C_SITE] = s
        w.contents[row, k.C_EPOCH] = w.parts[p, k.P_EPOCH]


@helper
def _can_read(t: int, w: World) -> bool:
    """`get_mergeable_page`: there is still a page, in a mergeable mapping."""
    return bool(w.sites[t, k.S_CONTENT] >= 0 and w.sites[t, k.S_META] & k.M_VMA != 0)


@helper
def unstable_search_insert(s: int, content: int, f: int, p: int, w: World) -> int:
    """`unstable_tree_search_insert`: the item found, -1 - outcome where there is none."""
    sites = w.sites
    if not w.host[k.H_EXACT]:
        if content < w.host[k.H_N_ROWS]:
            row = content + w.parts[p, k.P_CONTENT_OFFSET]
            t = w.contents[row, k.C_SITE]
            # Pages written since they were inserted stand in the wrong place: not found.
            if t >= 0 and w.contents[row, k.C_EPOCH] == w.parts[p, k.P_EPOCH]:
                if not _can_read(t, w):
                    return -1 - k.GAVE_UP
                if sites[t, k.S_CONTENT] == content:
                    return -1 - k.TWIN if sites[t, k.S_FRAME] == f else int(t)
        _insert_unstable(s, content, p, w)
        return -1 - k.UNIQUE
    at = w.parts[p, k.P_UNSTABLE_ROOT]
    parent = -1
    side = k.T_LEFT
    while at >= 0:
        if not _can_read(at, w):
            return -1 - k.GAVE_UP
        if sites[at, k.S_FRAME] == f:
            return -1 - k.TWIN
        if sites[at, k.S_CONTENT] == content:
            return int(at)
        side = k.T_LEFT if w.keys[content] < w.keys[sites[at, k.S_CONTENT]] else k.T_RIGHT
        parent = at
        at = w.unstable_tree[at, side]
    w.parts[p, k.P_UNSTABLE_ROOT] = rbtree.insert(
        w.unstable_tree, int(w.parts[p, k.P_UNSTABLE_ROOT]), s, int(parent), side
    )
    _insert_unstable(s, content, p, w)
    return -1 - k.UNIQUE
