"""What a pass over the memory costs under a partitioning, by the costs of page visits.

A pass looks at every page that may merge, once. In a partition with D distinct non-zero contents,
P of which are in two frames or more, and F frames of non-zero content:

- D pages are the first with their content: hash, search both trees, insert (`unique_ns`)
- P pages are the second with theirs: hash, search both trees, merge both (`pair_merge_ns`)
- F - D - P pages are further ones, and all Z zero frames, which merge as any other content does:
  hash, search the stable tree, merge (`merge_ns`)
- K pages share one of these frames by fork with a page that came before: hash, search both trees,
  find the own frame (`unique_ns`)

and each search costs its levels, in a stable tree of P nodes and an unstable tree of D, both as
large as they become. A further pass over memory that nobody wrote to hashes and searches for what
is still alone (D - P pages, `unique_ns`), and only glances at the rest (`quick_ns`).

Fixed costs of batches and calls, cold caches, writes and the splitting of huge pages are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.kernels import ksmstate as k
from planner.ksm.cost import CostModel
from planner.search.sharing import Sharing

__all__ = ["PassCost", "mean_model", "pass_cost"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PassCost:
    """Of all machines together, mean over the moments: pages that a pass looks at, CPU time of the
    pass that merges everything, and of a further pass where nothing changed."""

    n_pages: int
    merge_ns: int
    again_ns: int


def mean_model(models: Sequence[CostModel]) -> CostModel:
    """The mean of each figure of several cost models, rounded; the model itself where all agree."""
    if len(set(models)) == 1:
        return models[0]
    rows = [model.costs_ns() for model in models]
    names = sorted({model.name for model in models})
    return CostModel(f"mean of {', '.join(names)}", **{
        field: round(sum(row[field] for row in rows) / len(rows)) for field in rows[0]})


def pass_cost(sharing: Sharing, groups: Sequence[Sequence[int]], model: CostModel) -> PassCost:
    """What a pass costs when each of `groups` (a partition of the members) is a partition."""
    n_groups = len(groups)
    label = np.empty(len(sharing.members), np.int64)
    for number, group in enumerate(groups):
        label[list(group)] = number

    def of_groups(counts: npt.NDArray[np.int64]) -> F64:
        totals: F64 = np.bincount(label, counts.sum(axis=0), n_groups).astype(np.float64)
        return totals

    weight = sharing.weight.sum(axis=0)
    frames, zeros, forked = (of_groups(counts) for counts in (
        sharing.frames, sharing.zeros, sharing.forked))
    # Which group holds a set's contents with how many members; no row where none does.
    set_of, holder = np.nonzero(sharing.holders)
    place, n_holders = np.unique(set_of * n_groups + label[holder], return_counts=True)
    times = weight[place // n_groups]
    group = place % n_groups
    distinct = of_groups(sharing.distinct) - np.bincount(group, times * (n_holders - 1), n_groups)
    # Repeated in a group: held by two of its members, or by one alone who has it twice. Who has
    # it twice among several is not counted again.
    set_id, member, count = sharing.set_repeats.T
    is_again = n_holders[np.searchsorted(place, set_id * n_groups + label[member])] >= 2
    repeated = (of_groups(sharing.repeated)
                + np.bincount(group, times * (n_holders >= 2), n_groups)
                - np.bincount(label[member[is_again]], count[is_again], n_groups))
    # Trees are a host's; sums are over moments, hosts and a sample.
    per_host = 1 / (sharing.n_moments * sharing.n_hosts * sharing.content_share)
    costs = model.as_array()
    stable_ns = costs[k.COST_STABLE + _levels(repeated * per_host)]
    both_ns = stable_ns + costs[k.COST_UNSTABLE + _levels(distinct * per_host)]
    alone = distinct - repeated
    merge_ns = ((distinct + forked) * (model.unique_ns + both_ns)
                + repeated * (model.pair_merge_ns + both_ns)
                + (frames - distinct - repeated + zeros) * (model.merge_ns + stable_ns))
    again_ns = (alone * (model.unique_ns + both_ns)
                + (frames + zeros + forked - alone) * model.quick_ns)
    scale = sharing.scale / sharing.n_moments
    n_pages, merged, again = (round(float(total.sum()) * scale) for total in (
        frames + zeros + forked, merge_ns, again_ns))
    return PassCost(n_pages, merged, again)


def _levels(n_nodes: F64) -> npt.NDArray[np.int64]:
    """Levels of trees of so many nodes: `n.bit_length()`."""
    return np.array([min(int(n).bit_length(), k.MAX_LEVELS - 1) for n in n_nodes], np.int64)
