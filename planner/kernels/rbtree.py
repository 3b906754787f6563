"""Red-black trees as link tables, rebalanced as Linux does (lib/rbtree.c).

A tree is an int32 table (n, 4) of left child, right child, parent and "is red", -1 for none; node
ids are rows. Functions return the root, which changes. Shapes are those of the kernel's trees
after the same insertions and removals.
"""

from __future__ import annotations

from planner.kernels.jit import helper
from planner.kernels.ksmstate import T_LEFT, T_PARENT, T_RED, T_RIGHT, Array

__all__ = ["erase", "insert"]


@helper
def _replace_child(t: Array, root: int, parent: int, old: int, new: int) -> int:
    """Let `new` hang below `parent` where `old` does; returns the root."""
    if parent < 0:
        return new
    t[parent, T_LEFT if t[parent, T_LEFT] == old else T_RIGHT] = new
    return root


@helper
def _rotate(t: Array, root: int, node: int, side: int) -> int:
    """Rotate `node` towards `side` (0 left, 1 right): its other child takes its place."""
    child = t[node, 1 - side]
    inner = t[child, side]
    t[node, 1 - side] = inner
    if inner >= 0:
        t[inner, T_PARENT] = node
    parent = t[node, T_PARENT]
    t[child, T_PARENT] = parent
    root = _replace_child(t, root, parent, node, child)
    t[child, side] = node
    t[node, T_PARENT] = child
    return root


@helper
def insert(t: Array, root: int, node: int, parent: int, side: int) -> int:
    """Link `node` as the child of `parent` (-1: as the root) on `side`; returns the root."""
    t[node, T_LEFT] = -1
    t[node, T_RIGHT] = -1
    t[node, T_PARENT] = parent
    t[node, T_RED] = 1
    if parent < 0:
        t[node, T_RED] = 0
        return node
    t[parent, side] = node
    while True:
        parent = t[node, T_PARENT]
        if parent < 0:
            t[node, T_RED] = 0
            return root
        if t[parent, T_RED] == 0:
            return root
        grand = t[parent, T_PARENT]
        at = 0 if t[grand, T_LEFT] == parent else 1
        uncle = t[grand, 1 - at]
        if uncle >= 0 and t[uncle, T_RED] == 1:
            t[uncle, T_RED] = 0
            t[parent, T_RED] = 0
            t[grand, T_RED] = 1
            node = grand
            continue
        if t[parent, 1 - at] == node:
            root = _rotate(t, root, parent, at)
            parent = node
        t[parent, T_RED] = 0
        t[grand, T_RED] = 1
        return _rotate(t, root, grand, 1 - at)


@helper
def erase(t: Array, root: int, node: int) -> int:
    """Take `node` out; returns the root."""
    left = t[node, T_LEFT]
    right = t[node, T_RIGHT]
    if left >= 0 and right >= 0:
        heir = right  # the next in order takes the node's place
        while t[heir, T_LEFT] >= 0:
            heir = t[heir, T_LEFT]
        is_red = t[heir, T_RED] == 1
        child = t[heir, T_RIGHT]
        if heir == right:
            above = heir
        else:
            above = t[heir, T_PARENT]
            t[above, T_LEFT] = child
            if child >= 0:
                t[child, T_PARENT] = above
            t[heir, T_RIGHT] = right
            t[right, T_PARENT] = heir
        t[heir, T_LEFT] = left
        t[left, T_PARENT] = heir
        parent = t[node, T_PARENT]
        t[heir, T_PARENT] = parent
        t[heir, T_RED] = t[node, T_RED]
        root = _replace_child(t, root, parent, node, heir)
    else:
        is_red = t[node, T_RED] == 1
        child = left if left >= 0 else right
        above = t[node, T_PARENT]
        if child >= 0:
            t[child, T_PARENT] = above
        root = _replace_child(t, root, above, node, child)
    if is_red:
        return root
    # One black is missing on the paths through `child`.
    while above >= 0 and (child < 0 or t[child, T_RED] == 0):
        at = 0 if t[above, T_LEFT] == child else 1
        other = t[above, 1 - at]
        if t[other, T_RED] == 1:
            t[other, T_RED] = 0
            t[above, T_RED] = 1
            root = _rotate(t, root, above, at)
            other = t[above, 1 - at]
        near = t[other, at]
        far = t[other, 1 - at]
        if (near < 0 or t[near, T_RED] == 0) and (far < 0 or t[far, T_RED] == 0):
            t[other, T_RED] = 1
            child = above
            above = t[child, T_PARENT]
            continue
        if far < 0 or t[far, T_RED] == 0:
            t[near, T_RED] = 0
            t[other, T_RED] = 1
            root = _rotate(t, root, other, 1 - at)
            other = near
            far = t[other, 1 - at]
        t[other, T_RED] = t[above, T_RED]
        t[above, T_RED] = 0
        t[far, T_RED] = 0
        return _rotate(t, root, above, at)
    if child >= 0:
        t[child, T_RED] = 0
    return root
