"""Who holds what: contents of a fleet, reduced to the sets of members that hold them.

A *member* is what may be joined: the pages of one value of a `partition_by` key (a domain, a
group, an image, any label). What a partitioning saves depends on a content only through the set
of members that hold it, so contents with equal sets are counted together: the search is exact on
the captured hashes, and its work does not grow with the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    `n_hosts`: hosts that were counted. `content_share`: the share of all contents that they hold
    a sample of; all counts are of the sample.
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
    content_share: float = 1.0

    @property
    def n_moments(self) -> int:
        """How many moments were looked at."""
        return len(self.weight)


def fleet_sharing(hosts: Sequence[FleetHost], key: str, times_ns: Sequence[int]) -> Sharing:
    """The sharing of eligible, non-zero memory between the values of `key` at `times_ns`.

    Frames that a member's own pages share by fork count once. Raises UsageError where nothing is
    eligible, no guest has that label, or hosts hold samples of different shares.
    """
    shares = {host.content_share for host in hosts}
    if len(shares) > 1:
        raise UsageError("hosts hold samples of different shares of the contents",
                         where="the scenario", instead="ask for one precision for all hosts")
    members = sorted({class_value(host, item, key) for host in hosts for item in host.classes})
    if not any(key in item.labels for host in hosts for item in host.classes):
        raise UsageError(f"no guest and no region has a label {key!r}", where="--by",
                         instead="choose guest, domain, group or a label of the traces")
    domains = sorted({guest.domain for host in hosts for guest in host.guests})
    member_ids = {name: index for index, name in enumerate(members)}
    domain_ids = {name: index for index, name in enumerate(domains)}
    domains_of = np.zeros((len(members), len(domains)), np.bool_)
    frames = np.zeros((len(times_ns), len(members)), np.int64)
    distinct, repeated, zeros, forked = (np.zeros_like(frames) for _ in range(4))
    sets: list[npt.NDArray[np.bool_]] = []
    repeats: list[npt.NDArray[np.bool_]] = []
    moments: list[npt.NDArray[np.int64]] = []
    for host in hosts:
        of_class = np.array([member_ids[class_value(host, item, key)] for item in host.classes],
                            np.int64)
        member = of_class[host.site_class]
        for item, index in zip(host.classes, of_class, strict=True):
            domains_of[index, domain_ids[host.guests[item.guest].domain]] = True
        for moment, (content, frame) in enumerate(host.memory_at(times_ns)):
            is_used = (host.site_eligible != 0) & (content >= 0)
            owner, content, frame = member[is_used], content[is_used], frame[is_used]
            forked[moment] += np.bincount(owner, minlength=len(members))
            # One row a member and frame: pages that share it by fork are one.
            _, first = np.unique(owner * (1 + int(host.n_frames)) + frame, return_index=True)
            owner, content = owner[first], content[first].astype(np.int64)
            forked[moment] -= np.bincount(owner, minlength=len(members))
            is_zero = host.content_is_zero[content] != 0
            zeros[moment] += np.bincount(owner[is_zero], minlength=len(members))
            owner, content = owner[~is_zero], content[~is_zero]
            frames[moment] += np.bincount(owner, minlength=len(members))
            held, n_frames = np.unique(content * len(members) + owner, return_counts=True)
            holder, is_repeated = held % len(members), n_frames > 1
            distinct[moment] += np.bincount(holder, minlength=len(members))
            repeated[moment] += np.bincount(holder[is_repeated], minlength=len(members))
            found, own = _holder_sets(held // len(members), holder, is_repeated,
                                      len(host.content_is_zero), len(members))
            sets.append(found)
            repeats.append(own)
            moments.append(np.full(len(found), moment, np.int64))
    if not frames.any():
        raise UsageError("no page of non-zero content may be merged", where="the scenario",
                         instead="see planner trace info for what is eligible")
    holders, weight, set_repeats = _counted(np.concatenate(sets), np.concatenate(repeats),
                                            np.concatenate(moments), len(times_ns))
    return Sharing(tuple(members), tuple(domains), domains_of, frames, distinct, repeated, zeros,
                   forked, holders, weight, set_repeats, len(hosts), shares.pop())


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


def _counted(rows: npt.NDArray[np.bool_], repeats: npt.NDArray[np.bool_],
             moment: npt.NDArray[np.int64], n_moments: int
             ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct rows, how often each occurs at each moment, and `Sharing.set_repeats`."""
    packed = np.packbits(rows, axis=1)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    weight = np.zeros((n_moments, len(first)), np.int64)
    np.add.at(weight, (moment, inverse), 1)
    row, member = np.nonzero(repeats)
    pairs, count = np.unique(np.column_stack([inverse[row], member]), axis=0, return_counts=True)
    return rows[first], weight, np.column_stack([pairs, count]).astype(np.int64)
