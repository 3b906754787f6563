"""Sums over sets of holders: what joining groups, or moving a member, would save.

`count` i16 (n_sets, n_groups): how many members of a group hold a set's contents. `weight` i64
(n_sets,): how many contents the set stands for. Plain-Python twins: tests/oracles/sharing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.kernels.jit import njit

__all__ = ["join_gain_row", "join_gains", "move_gains"]

Array = Any


@njit
def join_gain_row(count: Array, weight: Array, group: int) -> Array:
    """Contents that `group` has in common with each group, i64 (n_groups,)."""
    n_sets, n_groups = count.shape
    out = np.zeros(n_groups, np.int64)
    for s in range(n_sets):
        if count[s, group] > 0:
            for g in range(n_groups):
                if count[s, g] > 0:
                    out[g] += weight[s]
    return out


@njit
def join_gains(count: Array, weight: Array) -> Array:
    """`join_gain_row` of every group, i64 (n_groups, n_groups)."""
    n_sets, n_groups = count.shape
    out = np.zeros((n_groups, n_groups), np.int64)
    held = np.empty(n_groups, np.int64)
    for s in range(n_sets):
        n = 0
        for g in range(n_groups):
            if count[s, g] > 0:
                held[n] = g
                n += 1
        for i in range(n):
            for j in range(n):
                out[held[i], held[j]] += weight[s]
    return out


@njit
def move_gains(holders: Array, count: Array, weight: Array, label: Array) -> Array:
    """What moving each member to each group would save, i64 (n_members, n_groups).

    `holders` u8 (n_sets, n_members), `label` i64 (n_members,): the group a member is in. A move
    into a group gains the contents that it has there already, and loses those that the member
    leaves behind in its own; the entry of the own group is 0.
    """
    n_sets, n_members = holders.shape
    n_groups = count.shape[1]
    out = np.zeros((n_members, n_groups), np.int64)
    held = np.empty(n_groups, np.int64)
    for s in range(n_sets):
        n = 0
        for g in range(n_groups):
            if count[s, g] > 0:
                held[n] = g
                n += 1
        for m in range(n_members):
            if holders[s, m]:
                for i in range(n):
                    out[m, held[i]] += weight[s]
                if count[s, label[m]] == 1:
                    # Nothing is left behind: the entry of the own group holds what is lost.
                    out[m, label[m]] -= weight[s]
    for m in range(n_members):
        loss = out[m, label[m]]
        for g in range(n_groups):
            out[m, g] -= loss
    return out
