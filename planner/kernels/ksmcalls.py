"""What is done to pages by others than ksmd: calls that merge or unmerge, and counting."""

from __future__ import annotations

from planner.kernels import ksmstate as k
from planner.kernels.jit import kernel
from planner.kernels.ksm import book_visit, leave, register, split_ns, visit
from planner.kernels.ksmpages import break_page, is_merged
from planner.kernels.ksmstate import Array, World
from planner.kernels.ksmtrees import drop_chain, forget, remove_node

__all__ = ["break_range", "enter_mm", "exit_mm", "forget_range", "leave_out", "merge",
           "remove_all_nodes", "sample"]


@kernel
def merge(
    p: int, first: int, last: int, limit_ns: int, outcomes: Array, w: World
) -> tuple[int, int]:
    """Visit the sites order[first:last] without checksum gate.

    Stops after the page with which the CPU time reaches `limit_ns`, if that is not 0. Returns the
    CPU time in ns and the index after the last site it came to. Adds to `outcomes` int64
    (k.N_OUTCOMES,) how many visits came to what.
    """
    cost = w.cost
    ns = 0
    cold_ns = 0
    processed = 0
    n_splits = w.host[k.H_SPLITS]
    i = first
    while i < last and (limit_ns == 0 or ns + cold_ns * cost[k.COST_COLD_PERCENT] // 100
                        + cost[k.COST_CALL] < limit_ns):
        s = w.order[i]
        i += 1
        if w.sites[s, k.S_CONTENT] < 0 or not w.sites[s, k.S_META] & k.M_VMA:
            forget(s, w)
            ns += cost[k.HOLE]
            outcomes[k.HOLE] += 1
            continue
        outcome = visit(s, p, False, w)
        outcomes[outcome] += 1
        visit_cost = book_visit(outcome, p, w)
        ns += visit_cost
        processed += 1
        if processed <= cost[k.COST_COLD_PAGES]:
            cold_ns += visit_cost
    ns += cold_ns * cost[k.COST_COLD_PERCENT] // 100 + cost[k.COST_CALL]
    ns += split_ns(n_splits, p, w)
    w.parts[p, k.P_SCANNED] += processed
    w.parts[p, k.P_CPU_NS] += ns
    w.parts[p, k.P_CALL_NS] += ns
    return int(ns), i


@kernel
def leave_out(sites: Array, is_out: bool, w: World) -> int:
    """Take pages out of mergeable memory, or put them back; returns how many changed.

    `sites` int32. Pages that are merged stay as they are; items of others are freed at once.
    """
    n = 0
    for i in range(len(sites)):
        s = sites[i]
        meta = w.sites[s, k.S_META]
        if not is_out:
            n += meta & k.M_VMA == 0
            w.sites[s, k.S_META] = meta | k.M_VMA
            continue
        is_page = w.sites[s, k.S_CONTENT] >= 0
        if not meta & k.M_VMA or meta & k.M_KSM_ZERO or (
            is_page and w.frames[w.sites[s, k.S_FRAME], k.F_NODE] != k.NO_NODE
        ):
            continue
        forget(s, w)
        w.sites[s, k.S_META] &= ~k.M_VMA
        n += 1
    return n


@kernel
def enter_mm(slot: int, p: int, now_ns: int, w: World) -> None:
    """`register`, for callers outside kernels."""
    register(slot, p, now_ns, w)


@kernel
def exit_mm(slot: int, p: int, w: World) -> None:
    """`leave`, for callers outside kernels."""
    leave(slot, p, w)


@kernel
def forget_range(p: int, first: int, last: int, w: World) -> None:
    """Free the items of partition p of the sites order[first:last]."""
    for i in range(first, last):
        if w.sites[w.order[i], k.S_PART] == p:
            forget(w.order[i], w)


@kernel
def break_range(p: int, first: int, last: int, w: World) -> int:
    """Give merged pages of order[first:last] in mergeable mappings frames of their own.

    Returns how many KSM pages were copied; zero pages that KSM placed (from 6.6) are not in it.
    """
    n_broken = 0
    for i in range(first, last):
        s = w.order[i]
        if w.sites[s, k.S_META] & k.M_VMA and is_merged(s, p, w):
            n_broken += w.sites[s, k.S_CONTENT] >= 0
            break_page(s, w)
    return n_broken


@kernel
def remove_all_nodes(p: int, w: World) -> bool:
    """`remove_all_stable_nodes` (with H_EXACT): from the root, until one is mapped; all gone?"""
    while w.parts[p, k.P_STABLE_ROOT] >= 0:
        row = w.parts[p, k.P_STABLE_ROOT]
        is_chain = w.contents[row, k.C_CHAIN] >= 0
        n = w.contents[row, k.C_HEAD]
        while n >= 0:
            after = w.nodes[n, k.N_NEXT]
            if w.nodes[n, k.N_FRAME] != k.STALE:
                return False
            remove_node(n, w)
            n = after
        if is_chain:
            drop_chain(row, p, w)
    return True


@kernel
def sample(
    is_eligible: Array,
    domain: Array,
    is_sensitive: Array,
    node_domain: Array,
    node_flags: Array,
    last_mm: Array,
    out: Array,
    w: World,
) -> None:
    """Count what is not kept while running, per row of `parts`; row 0 has the host's mm slots.

    `node_domain` int32, `node_flags` uint8 (n_nodes) and `last_mm` int64 (n_parts) are scratch.
    """
    sites, frames, nodes, parts = w.sites, w.frames, w.nodes, w.parts
    node_flags[:] = 0
    last_mm[:] = -(2**40)
    out[:, :] = 0
    for s in range(len(sites)):
        p = sites[s, k.S_PART]
        meta = sites[s, k.S_META]
        if meta & k.M_ITEM:
            if last_mm[p] != w.mm[s]:
                last_mm[p] = w.mm[s]
                out[p, k.OUT_MM_SLOTS] += 1
            if last_mm[0] != w.mm[s]:
                last_mm[0] = w.mm[s]
                out[0, k.OUT_MM_SLOTS] += 1
        if meta & k.M_KSM_ZERO:
            out[p, k.OUT_UNMERGE] += 1
        if sites[s, k.S_CONTENT] == k.ABSENT:
            continue
        if is_eligible[s]:
            out[parts[p, k.P_PLAN], k.OUT_ELIGIBLE] += 1
        n = frames[sites[s, k.S_FRAME], k.F_NODE] if sites[s, k.S_CONTENT] >= 0 else -1
        if n >= 0:
            if node_flags[n] == 0:
                node_flags[n] = 1
                node_domain[n] = domain[s]
            elif node_domain[n] != domain[s]:
                node_flags[n] |= 2
            if is_sensitive[domain[s]]:
                node_flags[n] |= 4
    for n in range(w.host[k.H_NODE_TOP]):
        if node_flags[n]:
            p = nodes[n, k.N_PART]
            n_maps = frames[nodes[n, k.N_FRAME], k.F_PHYS]
            out[p, k.OUT_UNMERGE] += n_maps - 1
            if node_flags[n] & 2:
                out[p, k.OUT_CROSS] += n_maps
                if node_flags[n] & 4:
                    out[p, k.OUT_CROSS_SENSITIVE] += n_maps
