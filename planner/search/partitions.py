"""The frontier of saving against exposure over all ways to join members.

Few members are searched exhaustively. Otherwise groups are joined greedily, by saving gained per
domain pair newly exposed, and stages are improved by moving members between groups, some of them
at random; what is kept is what no other found partitioning beats in both saving and exposure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.errors import UsageError
from planner.kernels import sharing as kernels
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.search.cost import pass_cost
from planner.search.sharing import Sharing
from planner.units import format_duration

__all__ = ["EXHAUSTIVE_MEMBERS", "Constraints", "Partitioning", "frontier"]

#: Up to so many members all set partitions are tried (Bell number of 8: 4140).
EXHAUSTIVE_MEMBERS = 8
#: Bounds of the local search, so that hundreds of members take seconds.
_MAX_MOVES = 200
_MAX_TRIED = 400
_RUNGS = 40
_SHAKES = 400

Groups = tuple[tuple[int, ...], ...]
#: Joining groups that exposes nobody comes first.
_ALMOST_NONE = 1e-9


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a partitioning must keep to.

    `alone`: members that join nobody. `apart`: pairs of members never in one group.
    `most_exposed_pairs`: unordered pairs of distinct domains that share a group; None for any.
    `most_saved_frames`: no more merged frames than could be unmerged again; None for any.
    `most_merge_ns`: CPU time of the pass that merges everything, by `cost`; None for any.
    """

    alone: frozenset[int] = frozenset()
    apart: frozenset[tuple[int, int]] = frozenset()
    most_exposed_pairs: int | None = None
    most_saved_frames: int | None = None
    most_merge_ns: int | None = None
    cost: CostModel = BUILTIN_UNMEASURED


@dataclass(frozen=True, slots=True)
class Partitioning:
    """Members in groups (ascending), the mean saving over the moments on all machines, and
    exposure."""

    groups: Groups
    saved_frames: float
    n_exposed_pairs: int


def frontier(sharing: Sharing, constraints: Constraints, *, is_exhaustive: bool | None = None
             ) -> list[Partitioning]:
    """Partitionings that no other found one beats, by ascending exposure.

    The first has every member alone. `is_exhaustive` forces or forbids trying them all (default:
    up to EXHAUSTIVE_MEMBERS). Raises UsageError where even members alone break a constraint.
    """
    n_members = len(sharing.members)
    if is_exhaustive is None:
        is_exhaustive = n_members <= EXHAUSTIVE_MEMBERS
    search = _Search(sharing, constraints)
    alone = search.measured(np.arange(n_members))
    problem = search.problem(alone)
    if problem:
        raise UsageError(f"even with every member alone, {problem}", where="the constraints",
                         instead="loosen that constraint")
    found = ([search.measured(label) for label in _set_partitions(n_members)
              if search.may(label)] if is_exhaustive else search.greedy())
    return _undominated([alone, *(item for item in found if not search.problem(item))])


def _undominated(found: Sequence[Partitioning]) -> list[Partitioning]:
    kept: list[Partitioning] = []
    for item in sorted(found, key=lambda one: (one.n_exposed_pairs, -one.saved_frames,
                                               one.groups)):
        if not kept or item.saved_frames > kept[-1].saved_frames:
            kept.append(item)
    return kept


def _set_partitions(n_members: int) -> Iterator[npt.NDArray[np.int64]]:
    """Every partition of n members as labels (restricted growth strings)."""
    label = [0] * n_members

    def place(position: int, n_groups: int) -> Iterator[npt.NDArray[np.int64]]:
        if position == n_members:
            yield np.array(label, np.int64)
            return
        for group in range(n_groups + 1):
            label[position] = group
            yield from place(position + 1, max(n_groups, group + 1))

    yield from place(0, 0)


class _Search:
    """Measures partitionings and climbs. A labelling `label` i64 (n_members,) names groups by
    numbers below n_members + 1."""

    def __init__(self, sharing: Sharing, constraints: Constraints) -> None:
        self._sharing = sharing
        self._constraints = constraints
        self._holders = np.ascontiguousarray(sharing.holders, np.uint8)
        # Sums over the moments: what is largest for them is largest for their mean.
        self._weight = sharing.weight.sum(axis=0)
        self._own = int((sharing.frames - sharing.distinct).sum())
        n_members = len(sharing.members)
        self._apart = np.zeros((n_members, n_members), np.int64)
        for one, other in constraints.apart:
            self._apart[one, other] = self._apart[other, one] = 1
        for one in constraints.alone:
            self._apart[one] = self._apart[:, one] = 1
        np.fill_diagonal(self._apart, 0)

    def measured(self, label: npt.NDArray[np.int64]) -> Partitioning:
        """Saving (mean over moments) and exposure of a labelling."""
        n_holders = self._count(label).astype(np.int64)
        saved = self._own + int(self._weight @ np.maximum(n_holders - 1, 0).sum(axis=1))
        groups = tuple(sorted(tuple(np.flatnonzero(label == group).tolist())
                              for group in np.unique(label)))
        scale = self._sharing.scale / self._sharing.n_moments
        return Partitioning(groups, saved * scale, self._exposure(label))

    def may(self, label: npt.NDArray[np.int64]) -> bool:
        """No two members of a group must stay apart."""
        return not bool((self._apart * (label[:, None] == label)).any())

    def problem(self, item: Partitioning) -> str:
        """Which limit a measured partitioning breaks; empty for none."""
        limit = self._constraints.most_exposed_pairs
        if limit is not None and item.n_exposed_pairs > limit:
            return f"{item.n_exposed_pairs} domain pairs are exposed, at most {limit} may be"
        most = self._constraints.most_saved_frames
        if most is not None and item.saved_frames > most:
            return (f"{item.saved_frames:.0f} frames are merged, and only {most} could be "
                    "unmerged")
        longest_ns = self._constraints.most_merge_ns
        if longest_ns is not None:
            merge_ns = pass_cost(self._sharing, item.groups, self._constraints.cost).merge_ns
            if merge_ns > longest_ns:
                return (f"merging takes {format_duration(merge_ns)} of CPU time, at most "
                        f"{format_duration(longest_ns)} may be")
        return ""

    def greedy(self) -> list[Partitioning]:
        """Stages of two agglomerations (best ratio, best gain), improved on a ladder of
        exposures: each rung starts from the best stage under it and from the rung below."""
        stages = [*self._agglomeration(by_ratio=True), *self._agglomeration(by_ratio=False)]
        if not stages:
            return []
        top = max(stage.n_exposed_pairs for _, stage in stages)
        rungs = np.unique(np.linspace(min(1, top), top, _RUNGS).astype(np.int64)).tolist()
        found = [stage for _, stage in stages]
        random = np.random.Generator(np.random.Philox(key=len(self._sharing.members)))
        below = np.arange(len(self._sharing.members))
        for most in rungs:
            under = [(stage.saved_frames, index) for index, (_, stage) in enumerate(stages)
                     if stage.n_exposed_pairs <= most]
            starts = [stages[max(under)[1]][0]] if under else []
            best, best_label = None, below
            for start in (*starts, below):
                tried = self._improved(start.copy(), most)
                if best is None or tried[1].saved_frames > best.saved_frames:
                    best_label, best = tried
            assert best is not None
            for _ in range(_SHAKES // len(below)):
                tried = self._improved(self._shaken(best_label, most, random), most)
                if tried[1].saved_frames > best.saved_frames:
                    best_label, best = tried
            found.append(best)
            below = best_label
        return found

    def _shaken(self, label: npt.NDArray[np.int64], most: int, random: np.random.Generator
                ) -> npt.NDArray[np.int64]:
        """The labelling with a few members put out of their groups, and two put together."""
        shaken = label.copy()
        for member in random.permutation(len(label))[:int(random.integers(1, 4))]:
            shaken[member] = np.setdiff1d(np.arange(len(label) + 1), shaken)[0]
        # And two members put together that were not, so that another core can grow.
        one, other = random.permutation(len(label))[:2]
        tried = shaken.copy()
        tried[one] = tried[other]
        if self.may(tried) and self._exposure(tried) <= most:
            return tried
        return shaken if self._exposure(shaken) <= most else label.copy()

    def _count(self, label: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
        """How many members of each group hold a set, (n_sets, n_members + 1)."""
        count = np.zeros((len(self._holders), len(label) + 1), np.int16)
        for member, group in enumerate(label):
            count[:, group] += self._holders[:, member]
        return count

    def _agglomeration(self, *, by_ratio: bool
                       ) -> Iterator[tuple[npt.NDArray[np.int64], Partitioning]]:
        """Labellings from members alone upwards: always the best pair of groups is joined."""
        n_members = len(self._sharing.members)
        label = np.arange(n_members)
        count = self._count(label)[:, :n_members]
        gain = kernels.join_gains(count, self._weight)
        blocked = self._apart + np.eye(n_members, dtype=np.int64)
        while True:
            value = np.where(blocked > 0, 0, gain).astype(np.float64)
            if by_ratio:
                value /= _ALMOST_NONE + self._new_pairs(label)
            one, other = sorted(divmod(int(np.argmax(value)), n_members))
            if value[one, other] <= 0:
                return
            label[label == other] = one
            count[:, one] += count[:, other]
            count[:, other] = 0
            blocked[one] |= blocked[other]
            blocked[:, one] |= blocked[:, other]
            gain[one] = gain[:, one] = kernels.join_gain_row(count, self._weight, one)
            gain[other] = gain[:, other] = 0
            stage = self.measured(label)
            limit = self._constraints.most_exposed_pairs
            if limit is not None and stage.n_exposed_pairs > limit:
                return
            yield label.copy(), stage

    def _group_domains(self, label: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Whether a group holds memory of a domain, (n_members + 1, n_domains)."""
        found = np.zeros((len(label) + 1, len(self._sharing.domains)), np.int64)
        np.bitwise_or.at(found, label, self._sharing.domains_of.astype(np.int64))
        return found

    def _new_pairs(self, label: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Domain pairs that joining two groups would newly expose, (n_members, n_members)."""
        domains = self._group_domains(label)[:-1]
        together = (domains.T @ domains) > 0
        np.fill_diagonal(together, True)
        # Domains a of one group and b of the other: were both in both, they would be together.
        new: npt.NDArray[np.int64] = domains @ (~together).astype(np.int64) @ domains.T
        return new

    def _exposure(self, label: npt.NDArray[np.int64]) -> int:
        domains = self._group_domains(label)
        return int(np.triu((domains.T @ domains) > 0, 1).sum())

    def _improved(self, label: npt.NDArray[np.int64], most: int
                  ) -> tuple[npt.NDArray[np.int64], Partitioning]:
        """Move members one at a time while saving grows, with at most `most` exposed pairs."""
        count = self._count(label)
        for _ in range(_MAX_MOVES):
            move = self._best_move(label, count, most)
            if move is None:
                break
            member, group = move
            count[:, label[member]] -= self._holders[:, member]
            count[:, group] += self._holders[:, member]
            label[member] = group
        return label, self.measured(label)

    def _best_move(self, label: npt.NDArray[np.int64], count: npt.NDArray[np.int16], most: int
                   ) -> tuple[int, int] | None:
        """The member and the group (or an empty one) that gain most without more than `most`
        exposed pairs; None where no move gains."""
        better = kernels.move_gains(self._holders, count, self._weight, label)
        member = np.zeros((len(label), len(label) + 1), np.int64)
        member[np.arange(len(label)), label] = 1
        better[(self._apart @ member) > 0] = 0
        flat = np.flatnonzero(better > 0)
        # Exposure is looked at for the moves that gain, best first.
        order = flat[np.argsort(better.ravel()[flat], kind="stable")[::-1]]
        for position in order[:_MAX_TRIED]:
            one, group = divmod(int(position), better.shape[1])
            tried = label.copy()
            tried[one] = group
            if self._exposure(tried) <= most:
                return one, group
        return None
