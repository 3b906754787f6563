"""Slow twins of planner/kernels/bitsets.py: sets as Python sets."""

from __future__ import annotations

from collections.abc import Sequence

#: A member: its set on whole levels, its set on the level after them (or None), whole levels.
Member = tuple[frozenset[int], frozenset[int] | None, int]


def union_size(members: Sequence[Member]) -> int:
    """Pairs (level, element) that any member has."""
    held: set[tuple[int, int]] = set()
    for whole, part, n_copies in members:
        for level in range(n_copies):
            held |= {(level, element) for element in whole}
        held |= {(n_copies, element) for element in part or ()}
    return len(held)
