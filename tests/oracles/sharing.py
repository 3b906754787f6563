"""Slow twins of planner/kernels/sharing.py and planner/search: contents as Python sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planner.ksm.cost import NEAR_LEVELS, CostModel


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


def pass_ns(contents: Sequence[Sequence[int]], zeros: Sequence[int],
            forked: Sequence[int], groups: Sequence[Sequence[int]], model: CostModel
            ) -> tuple[int, int]:
    """CPU time of the pass that merges all, and of a further one, visit by visit.

    `zeros[m]`: zero pages of member m; `forked[m]`: pages that share a frame with another of its
    pages. Trees are as large as they become.
    """
    first_ns = again_ns = 0
    for group in groups:
        found = Counter(content for member in group for content in contents[member])
        n_twice = sum(n > 1 for n in found.values())
        stable_ns = _descent_ns(n_twice, model.stable_level_ns, model.stable_far_ns)
        unstable_ns = _descent_ns(len(found), model.unstable_level_ns, model.unstable_far_ns)
        visits = [visit for n in found.values() for visit in range(n)]
        for visit in visits + [2] * sum(zeros[member] for member in group):
            first_ns += stable_ns + (model.unique_ns + unstable_ns, model.pair_merge_ns
                                     + unstable_ns, model.merge_ns)[min(visit, 2)]
        for n in found.values():
            again_ns += (model.unique_ns + stable_ns + unstable_ns if n == 1
                         else n * model.quick_ns)
        for member in group:
            first_ns += forked[member] * (model.unique_ns + stable_ns + unstable_ns)
            again_ns += (zeros[member] + forked[member]) * model.quick_ns
    return first_ns, again_ns


def _descent_ns(n_nodes: int, level_ns: int, far_ns: int) -> int:
    levels = n_nodes.bit_length()
    return levels * level_ns + max(levels - NEAR_LEVELS, 0) * far_ns


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
