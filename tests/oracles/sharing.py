"""Slow twins of planner/kernels/sharing.py and planner/search: contents as Python sets."""

from __future__ import annotations

from collections.abc import Sequence


def saved(contents: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> int:
    """Pages minus distinct contents of each group; `contents[m]` are the pages of member m."""
    total = 0
    for group in groups:
        pages = [content for member in group for content in contents[member]]
        total += len(pages) - len(set(pages))
    return total


def exposed(domains: Sequence[str], groups: Sequence[Sequence[int]]) -> int:
    """Pairs of distinct domains in one group; `domains[m]` is the domain of member m."""
    return len({frozenset((domains[a], domains[b])) for group in groups for a in group
                for b in group if domains[a] != domains[b]})


def join_gain(contents: Sequence[Sequence[int]], one: Sequence[int], other: Sequence[int]) -> int:
    """Contents that two groups have in common."""
    return len({c for m in one for c in contents[m]} & {c for m in other for c in contents[m]})


def set_partitions(items: list[int]) -> list[list[list[int]]]:
    """Every way to put items into groups."""
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found = []
    for partition in set_partitions(rest):
        found.append([[first], *partition])
        found += [[*partition[:i], [first, *partition[i]], *partition[i + 1:]]
                  for i in range(len(partition))]
    return found
