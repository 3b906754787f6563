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
    member and host. `holders` bool (n_sets, n_members): sets of at least two members, distinct.
    `weight` i64 (n_moments, n_sets): how many contents each set holds at each moment; one content
    on two hosts counts twice, since nothing merges across hosts.
    """

    members: tuple[str, ...]
    domains: tuple[str, ...]
    domains_of: npt.NDArray[np.bool_]
    frames: npt.NDArray[np.int64]
    distinct: npt.NDArray[np.int64]
    holders: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.int64]

    @property
    def n_moments(self) -> int:
        """How many moments were looked at."""
        return len(self.weight)


def fleet_sharing(hosts: Sequence[FleetHost], key: str, times_ns: Sequence[int]) -> Sharing:
    """The sharing of eligible, non-zero memory between the values of `key` at `times_ns`.

    Frames that a member's own pages share by fork count once. Raises UsageError where nothing is
    eligible or no guest has that label.
    """
    members = sorted({class_value(host, item, key) for host in hosts for item in host.classes})
    if not any(key in item.labels for host in hosts for item in host.classes):
        raise UsageError(f"no guest and no region has a label {key!r}", where="--by",
                         instead="choose guest, domain, group or a label of the traces")
    domains = sorted({guest.domain for host in hosts for guest in host.guests})
    member_ids = {name: index for index, name in enumerate(members)}
    domain_ids = {name: index for index, name in enumerate(domains)}
    domains_of = np.zeros((len(members), len(domains)), np.bool_)
    frames = np.zeros((len(times_ns), len(members)), np.int64)
    distinct = np.zeros_like(frames)
    sets: list[npt.NDArray[np.bool_]] = []
    moments: list[npt.NDArray[np.int64]] = []
    for host in hosts:
        of_class = np.array([member_ids[class_value(host, item, key)] for item in host.classes],
                            np.int64)
        member = of_class[host.site_class]
        for item, index in zip(host.classes, of_class, strict=True):
            domains_of[index, domain_ids[host.guests[item.guest].domain]] = True
        for moment, (content, frame) in enumerate(host.memory_at(times_ns)):
            use = (host.site_eligible != 0) & (content >= 0)
            use[use] = host.content_is_zero[content[use]] == 0
            pairs = np.unique(member[use] * (1 + int(host.n_frames)) + frame[use])
            frames[moment] += np.bincount(pairs // (1 + int(host.n_frames)),
                                          minlength=len(members))
            n_contents = len(host.content_is_zero)
            held = np.unique(content[use].astype(np.int64) * len(members) + member[use])
            distinct[moment] += np.bincount(held % len(members), minlength=len(members))
            found = _holder_sets(held // len(members), held % len(members), n_contents,
                                 len(members))
            sets.append(found)
            moments.append(np.full(len(found), moment, np.int64))
    if not frames.any():
        raise UsageError("no page of non-zero content may be merged", where="the scenario",
                         instead="see planner trace info for what is eligible")
    holders, weight = _counted(np.concatenate(sets), np.concatenate(moments), len(times_ns))
    return Sharing(tuple(members), tuple(domains), domains_of, frames, distinct, holders, weight)


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


def _holder_sets(content: npt.NDArray[np.int64], member: npt.NDArray[np.int64], n_contents: int,
                 n_members: int) -> npt.NDArray[np.bool_]:
    """One row a content that at least two members hold; pairs are distinct."""
    n_holders = np.bincount(content, minlength=n_contents)
    is_shared = n_holders[content] > 1
    rows, row = np.unique(content[is_shared], return_inverse=True)
    found = np.zeros((len(rows), n_members), np.bool_)
    found[row, member[is_shared]] = True
    return found


def _counted(rows: npt.NDArray[np.bool_], moment: npt.NDArray[np.int64], n_moments: int
             ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Distinct rows, and how often each occurs at each moment."""
    packed = np.packbits(rows, axis=1)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    weight = np.zeros((n_moments, len(first)), np.int64)
    np.add.at(weight, (moment, inverse.ravel()), 1)
    return rows[first], weight
