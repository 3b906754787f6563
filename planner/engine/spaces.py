"""The merge spaces of a host under a policy: sites and events as the KSM model wants them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost
from planner.ksm.cost import CostModel
from planner.ksm.records import UNSEEN, EventTable, SiteTable
from planner.ksm.space import MergeSpaces, Trees

__all__ = ["first_equal", "merge_spaces"]


def merge_spaces(host: FleetHost, partition_of_site: npt.NDArray[np.int32], *,
                 is_by_node: npt.NDArray[np.bool_], sensitive: tuple[str, ...], cost: CostModel,
                 trees: Trees) -> MergeSpaces:
    """The spaces of partitions 0..len(is_by_node)-1, contents numbered in each.

    In a partition of which `is_by_node` is true (merge_across_nodes 0) the same content is another
    one on each NUMA node: each node has trees of its own.
    """
    space_of_site = partition_of_site
    if is_by_node.any():
        n_nodes = int(host.site_node.max(initial=0)) + 1
        node = np.where(is_by_node[partition_of_site], host.site_node, 0)
        space_of_site = np.where(partition_of_site >= 0, partition_of_site * n_nodes + node,
                                 -1).astype(np.int32)
    content, zero = _contents_in_spaces(host, space_of_site)
    domain_ids = {domain: index for index, domain in enumerate(host.domains)}
    domain_of_mm = np.array([domain_ids[host.guests[mm.guest].domain] for mm in host.mms],
                            np.int32)
    n_sites = len(host.site_mm)
    return MergeSpaces(
        SiteTable(host.site_mm, host.site_vpn, domain_of_mm[host.site_mm], partition_of_site,
                  np.where(partition_of_site >= 0, host.site_eligible, 0).astype(np.uint8),
                  content[:n_sites], host.site_frame, host.site_huge),
        EventTable(host.event_time_ns, host.event_site, content[n_sites:], host.event_frame),
        n_partitions=len(is_by_node), content_is_zero=zero,
        domain_is_sensitive=np.array([domain in sensitive for domain in host.domains], np.uint8),
        kernel=host.spec.kernel, hz=host.spec.hz, cost=cost, trees=trees,
        exits={index: int(host.guest_end_ns[mm.guest]) for index, mm in enumerate(host.mms)}
        if len(host.guest_end_ns) else None)


def _contents_in_spaces(host: FleetHost, space_of_site: npt.NDArray[np.int32],
                        ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Dense ids of (space, content) for sites, then events, and whether each is zero.

    Ids count in the order of first appearance, which is scan order for the sites.
    """
    content = np.concatenate([host.site_content, host.event_content]).astype(np.int64)
    space = np.concatenate([space_of_site, space_of_site[host.event_site]])
    present = content >= 0
    n_contents = len(host.content_is_zero)
    pair = (space[present].astype(np.int64) + 1) * n_contents + content[present]
    first = first_equal(pair, (int(space.max(initial=-1)) + 2) * n_contents)
    is_first = first == np.arange(len(pair))
    rank = np.cumsum(is_first, dtype=np.int32) - 1
    ids = np.where(content == UNSEEN, UNSEEN, -1).astype(np.int32)
    ids[present] = rank[first]
    zero = np.asarray(host.content_is_zero[pair[is_first] % n_contents], np.uint8)
    return ids, zero


def first_equal(values: npt.NDArray[np.int64], n_values: int) -> npt.NDArray[np.int64]:
    """Where each of the values, from 0 to `n_values`, stands first."""
    if n_values <= 8 * len(values) + (1 << 20):  # a table is no larger than what a sort takes
        at = np.full(n_values, -1, np.int64)
        at[values[::-1]] = np.arange(len(values) - 1, -1, -1)
        return np.asarray(at[values])
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])
