"""Who holds what: contents of a fleet, reduced to the sets of members that hold them.

A *member* is what may be joined: the pages of one value of a `partition_by` key (a domain, a
group, an image, any label). What a partitioning saves depends on a content only through the set
of members that hold it, so contents with equal sets are counted together: the search is exact on
the captured hashes, and its work does not grow with the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.errors import UsageError
from planner.fleet import FleetHost
from planner.policies.partition import class_value

__all__ = ["Sharing", "fleet_sharing", "saved_frames"]


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Members and the sets of them that hold contents, over hosts and moments.

    `members`: their names. `domains`: all security domains. `domains_of` bool
    (n_members, n_domains): whose pages a member's are. `frames` i64 (n_moments, n_members):
    frames of non-zero content that a member has. `distinct` likewise: contents, counted once a
    member and host; `repeated`: those of them that the member has in two frames or more;
    `zeros`: frames of zero content; `forked`: pages beyond one of each such frame, which its
    mms share by fork. `holders` bool (n_sets, n_members): sets of at least two
    members, distinct. `weight` i64 (n_moments, n_sets): how many contents each set holds at each
    moment; one content on two hosts counts twice, since nothing merges across hosts.
    `set_repeats` i64 (k, 3), distinct in its first two: a set, one of its members, and how many
    of the set's contents, summed over the moments, that member has in two frames or more.

    `n_hosts`: hosts that were counted, of `n_machines`. `content_share`: the share of all contents
    that they hold a sample of. All counts are of these hosts and this sample.
    """

    members: tuple[str, ...]
    domains: tuple[str, ...]
    domains_of: npt.NDArray[np.bool_]
    frames: npt.NDArray[np.int64]
    distinct: npt.NDArray[np.int64]
    repeated: npt.NDArray[np.int64]
    zeros: npt.NDArray[np.int64]
    forked: npt.NDArray[np.int64]
    holders: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.int64]
    set_repeats: npt.NDArray[np.int64]
    n_hosts: int = 1
    n_machines: int = 1
    content_share: float = 1.0

    @property
    def scale(self) -> float:
        """Counts times this are those of all machines and contents."""
        return self.n_machines / (self.n_hosts * self.content_share)

    @property
    def n_moments(self) -> int:
        """How many moments were looked at."""
        return len(self.weight)


def fleet_sharing(hosts: Iterable[FleetHost], key: str, times_ns: Sequence[int],
                  n_machines: int | None = None) -> Sharing:
    """The sharing of eligible, non-zero memory between the values of `key` at `times_ns`.

    Frames that a member's own pages share by fork count once. Each host is looked at and let go;
    `n_machines` is how many there are, where these are only some.
    Raises UsageError where nothing is eligible, no guest has that label, or hosts hold samples of
    different shares.
    """
    found: list[Sharing] = []
    has_key, shares = False, set()
    for host in hosts:
        has_key = has_key or any(key in item.labels for item in host.classes)
        shares.add(host.content_share)
        found.append(_host_sharing(host, key, times_ns))
    if not has_key:
        raise UsageError(f"no guest and no region has a label {key!r}", where="--by",
                         instead="choose guest, domain, group or a label of the traces")
    if len(shares) > 1:
        raise UsageError("hosts hold samples of different shares of the contents",
                         where="the scenario", instead="ask for one precision for all hosts")
    whole = _joined(found, len(times_ns), n_machines or len(found), shares.pop())
    if not whole.frames.any():
        raise UsageError("no page of non-zero content may be merged", where="the scenario",
                         instead="see planner trace info for what is eligible")
    return whole


def _host_sharing(host: FleetHost, key: str, times_ns: Sequence[int]) -> Sharing:
    """The sharing on one host, between the members that are there."""
    values = [class_value(host, item, key) for item in host.classes]
    members = sorted(set(values))
    domains = sorted({guest.domain for guest in host.guests})
    of_class = np.array([members.index(value) for value in values], np.int64)
    member = of_class[host.site_class]
    n_members = len(members)
    domains_of = np.zeros((n_members, len(domains)), np.bool_)
    for item, index in zip(host.classes, of_class, strict=True):
        domains_of[index, domains.index(host.guests[item.guest].domain)] = True
    frames = np.zeros((len(times_ns), n_members), np.int64)
    distinct, repeated, zeros, forked = (np.zeros_like(frames) for _ in range(4))
    sets, repeats = [np.empty((0, n_members), np.bool_)], [np.empty((0, n_members), np.bool_)]
    moments = [np.empty(0, np.int64)]
    if members:
        for moment, (content, frame) in enumerate(host.memory_at(times_ns)):
            is_used = (host.site_eligible != 0) & (content >= 0)
            owner, content, frame = member[is_used], content[is_used], frame[is_used]
            forked[moment] = np.bincount(owner, minlength=n_members)
            # One row a member and frame: pages that share it by fork are one.
            _, first = np.unique(owner * (1 + int(host.n_frames)) + frame, return_index=True)
            owner, content = owner[first], content[first].astype(np.int64)
            forked[moment] -= np.bincount(owner, minlength=n_members)
            is_zero = host.content_is_zero[content] != 0
            zeros[moment] = np.bincount(owner[is_zero], minlength=n_members)
            owner, content = owner[~is_zero], content[~is_zero]
            frames[moment] = np.bincount(owner, minlength=n_members)
            held, n_frames = np.unique(content * n_members + owner, return_counts=True)
            holder, is_repeated = held % n_members, n_frames > 1
            distinct[moment] = np.bincount(holder, minlength=n_members)
            repeated[moment] = np.bincount(holder[is_repeated], minlength=n_members)
            found, own = _holder_sets(held // n_members, holder, is_repeated,
                                      len(host.content_is_zero), n_members)
            sets.append(found)
            repeats.append(own)
            moments.append(np.full(len(found), moment, np.int64))
    rows, inverse = _distinct_rows(np.concatenate(sets))
    weight = np.zeros((len(times_ns), len(rows)), np.int64)
    np.add.at(weight, (np.concatenate(moments), inverse), 1)
    row, holder = np.nonzero(np.concatenate(repeats))
    return Sharing(tuple(members), tuple(domains), domains_of, frames, distinct, repeated, zeros,
                   forked, rows, weight, _summed(inverse[row], holder, np.ones_like(row)),
                   content_share=host.content_share)


def _joined(parts: Sequence[Sharing], n_moments: int, n_machines: int, content_share: float
            ) -> Sharing:
    """The sharing over several hosts; each holds sets of its own."""
    members = sorted({name for part in parts for name in part.members})
    domains = sorted({name for part in parts for name in part.domains})
    member_ids = {name: index for index, name in enumerate(members)}
    domain_ids = {name: index for index, name in enumerate(domains)}
    domains_of = np.zeros((len(members), len(domains)), np.bool_)
    frames, distinct, repeated, zeros, forked = (
        np.zeros((n_moments, len(members)), np.int64) for _ in range(5))
    wide = [np.empty((0, len(members)), np.bool_)]
    columns: list[npt.NDArray[np.int64]] = []
    for part in parts:
        own = np.array([member_ids[name] for name in part.members], np.int64)
        columns.append(own)
        of_part = np.array([domain_ids[name] for name in part.domains], np.int64)
        domains_of[np.ix_(own, of_part)] |= part.domains_of
        for total, counts in ((frames, part.frames), (distinct, part.distinct),
                              (repeated, part.repeated), (zeros, part.zeros),
                              (forked, part.forked)):
            total[:, own] += counts
        rows = np.zeros((len(part.holders), len(members)), np.bool_)
        rows[:, own] = part.holders
        wide.append(rows)
    holders, inverse = _distinct_rows(np.concatenate(wide))
    weight = np.zeros((n_moments, len(holders)), np.int64)
    triplets = [np.empty((0, 3), np.int64)]
    start = 0
    for part, own in zip(parts, columns, strict=True):
        to = inverse[start:start + len(part.holders)]
        start += len(part.holders)
        # The sets of a host are distinct, so none is named twice.
        weight[:, to] += part.weight
        set_id, member, count = part.set_repeats.T
        triplets.append(np.column_stack([to[set_id], own[member], count]))
    return Sharing(tuple(members), tuple(domains), domains_of, frames, distinct, repeated, zeros,
                   forked, holders, weight, _summed(*np.concatenate(triplets).T), len(parts),
                   n_machines, content_share)


def saved_frames(sharing: Sharing, groups: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Frames that merging inside each of `groups` (a partition of the members) frees, a moment.

    Frames minus contents per group: what is left when each content of a group has one frame
    (KSM's max_page_sharing and the kernel's own records are left out). i64 (n_moments,).
    """
    saved: npt.NDArray[np.int64] = (sharing.frames - sharing.distinct).sum(axis=1)
    for group in groups:
        n_holders = sharing.holders[:, list(group)].sum(axis=1)
        # A content that h members of the group hold was counted h times in `distinct`.
        saved = saved + sharing.weight @ np.maximum(n_holders - 1, 0)
    return saved


def _holder_sets(content: npt.NDArray[np.int64], member: npt.NDArray[np.int64],
                 is_repeated: npt.NDArray[np.bool_], n_contents: int, n_members: int
                 ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """One row a content that at least two members hold: who does, and who does in two frames or
    more; pairs of content and member are distinct."""
    n_holders = np.bincount(content, minlength=n_contents)
    is_shared = n_holders[content] > 1
    rows, row = np.unique(content[is_shared], return_inverse=True)
    found, own = np.zeros((2, len(rows), n_members), np.bool_)
    found[row, member[is_shared]] = True
    own[row, member[is_shared]] = is_repeated[is_shared]
    return found, own


def _distinct_rows(rows: npt.NDArray[np.bool_]
                   ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The distinct rows, and which of them each row is."""
    if not len(rows):
        return rows, np.empty(0, np.int64)
    _, first, inverse = np.unique(np.packbits(rows, axis=1), axis=0, return_index=True,
                                  return_inverse=True)
    return rows[first], inverse.ravel().astype(np.int64)


def _summed(set_id: npt.NDArray[np.int64], member: npt.NDArray[np.int64],
            count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`Sharing.set_repeats` of counts by set and member, which may come several times."""
    pairs, inverse = np.unique(np.column_stack([set_id, member]), axis=0, return_inverse=True)
    total = np.zeros(len(pairs), np.int64)
    np.add.at(total, inverse.ravel(), count)
    return np.column_stack([pairs, total]).astype(np.int64)
