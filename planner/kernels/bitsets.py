"""Unions of bit sets over groups of guests.

`bits` u64 (n_rows, n_words): sets. A member of a group has the set `whole[m]` on its first
`n_copies[m]` levels and, where `part[m]` is not -1, the set `part[m]` on the level after them.
Levels hold different elements. Plain-Python twins: tests/oracles/bitsets.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.kernels.jit import njit

__all__ = ["popcount", "union_sizes"]

Array = Any


@njit
def popcount(word: Any) -> Any:
    """How many bits of a u64 are set."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit
def union_sizes(bits: Array, starts: Array, whole: Array, part: Array, n_copies: Array) -> Array:
    """Elements of the union of each group's sets, over all levels, i64 (n_groups,).

    `starts` i64 (n_groups + 1,): where each group's members are in `whole`, `part` i32 and
    `n_copies` i64.
    """
    n_rows, n_words = bits.shape
    n_groups = len(starts) - 1
    out = np.zeros(n_groups, np.int64)
    size = np.full(n_rows, -1, np.int64)
    seen = np.full(n_rows, -1, np.int64)
    union = np.zeros(n_words, np.uint64)
    stamp = 0
    for g in range(n_groups):
        level = 0
        while True:
            # The levels from here to `end` have the same sets.
            end = -1
            n_sets = 0
            last = -1
            for m in range(starts[g], starts[g + 1]):
                row = -1
                until = level + 1
                if n_copies[m] > level:
                    row = whole[m]
                    until = n_copies[m]
                elif n_copies[m] == level:
                    row = part[m]
                if row < 0:
                    continue
                if end < 0 or until < end:
                    end = until
                if seen[row] != stamp:
                    seen[row] = stamp
                    if n_sets == 1:
                        for w in range(n_words):
                            union[w] = bits[last, w]
                    if n_sets > 0:
                        for w in range(n_words):
                            union[w] |= bits[row, w]
                    n_sets += 1
                    last = row
            stamp += 1
            if n_sets == 0:
                break
            total = 0
            if n_sets == 1:
                if size[last] < 0:
                    size[last] = 0
                    for w in range(n_words):
                        size[last] += popcount(bits[last, w])
                total = size[last]
            else:
                for w in range(n_words):
                    total += popcount(union[w])
            out[g] += total * (end - level)
            level = end
    return out
