"""Which merge partition each drawn guest of a fleet is in, where guests are not divided.

Guests of one template and domain differ in their names only, so most policies are asked once for
each of those, not for every guest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetGuest, FleetHost, SiteClass
from planner.policies.partition import PartitionMap, partition_classes
from planner.population.guests import drawn_guest, guests_of
from planner.population.model import Population
from planner.scenario.spec import PolicySpec, Scenario
from planner.timeline import Requests

__all__ = ["GuestPartitions", "guest_partitions"]


@dataclass(frozen=True, slots=True, eq=False)
class GuestPartitions:
    """The partition of every guest.

    `partition` i64 (n_guests,): guests that may merge have equal numbers, -1 merges with nobody.
    `variant` i32 (n_guests,): index into `variants`, pairs of a template's index and which of its
    classes take part, bool (n_classes,).
    """

    partition: npt.NDArray[np.int64]
    variant: npt.NDArray[np.int32]
    variants: tuple[tuple[int, npt.NDArray[np.bool_]], ...]


def guest_partitions(population: Population, scenario: Scenario, requests: Requests,
                     policy: PolicySpec, replicate: int) -> GuestPartitions | None:
    """The partitions of all guests under a policy; None where it divides a guest's regions."""
    template = guests_of(population, scenario, requests, replicate).template
    named = {key for entries in (policy.exclude, policy.cooperation.ranges,
                                 *(rule.match for rule in policy.partitions))
             for entry in entries for key, _ in entry}
    kind = (requests.workload.astype(np.int64) * len(population.templates)
            + template) * len(requests.domains) + requests.domain
    if "guest" in named:
        kind = np.arange(len(requests))
    _, first, of_kind = np.unique(kind, return_index=True, return_inverse=True)
    models = [(int(template[guest]), drawn_guest(scenario, requests, int(guest),
                                                 population.templates[int(template[guest])]))
              for guest in first]
    classes = [[SiteClass(index, {**labels, **guest.labels})
                for labels in population.templates[number].class_labels]
               for index, (number, guest) in enumerate(models)]
    mapped = partition_classes(
        _labels_only(scenario, [guest for _, guest in models],
                     [each for some in classes for each in some]), policy)
    used = [np.isin(np.arange(len(each.class_labels)), each.site_class[each.site_eligible != 0])
            for each in population.templates]
    ends = np.cumsum([len(some) for some in classes])
    partition = np.full(len(models), -1, np.int64)
    is_own = np.zeros(len(models), bool)
    variant = np.zeros(len(models), np.int32)
    variants: dict[tuple[int, bytes], tuple[int, npt.NDArray[np.bool_]]] = {}
    for index, ((number, _), some, end) in enumerate(zip(models, classes, ends, strict=True)):
        of_class = mapped.of_class[end - len(some):end]
        # Classes without a page that may merge have no say.
        included = (of_class >= 0) & used[number]
        found = np.unique(of_class[included])
        if len(found) > 1:
            return None
        if len(found):
            partition[index] = found[0]
            is_own[index] = _is_own(mapped, int(found[0]), policy, [
                each for each, is_included in zip(some, included, strict=True) if is_included])
        key = (number, included.tobytes())
        variants.setdefault(key, (number, included))
        variant[index] = list(variants).index(key)
    # Partitions of one guest each are counted on from the common ones.
    own = len(mapped.names) + np.arange(len(requests))
    return GuestPartitions(np.where(is_own[of_kind], own, partition[of_kind]), variant[of_kind],
                           tuple(variants.values()))


def _is_own(mapped: PartitionMap, partition: int, policy: PolicySpec,
            classes: list[SiteClass]) -> bool:
    """Whether the partition is the guest's alone: by its name, or for want of a label."""
    return mapped.rules[partition] < 0 and any(
        key == "guest" or any(key not in each.labels for each in classes)
        for key in policy.partition_by)


def _labels_only(scenario: Scenario, guests: list[FleetGuest], classes: list[SiteClass]
                 ) -> FleetHost:
    """A host of which only guests and classes are known."""
    i8, u8 = np.empty(0, np.int8), np.empty(0, np.uint8)
    i32, i64 = np.empty(0, np.int32), np.empty(0, np.int64)
    return FleetHost(
        spec=scenario.hosts[0], guests=tuple(guests), mms=(), classes=tuple(classes), domains=(),
        site_mm=i32, site_vpn=i64, site_class=i32, site_eligible=u8, site_content=i32,
        site_frame=i32, site_huge=u8, site_node=i8, content_is_zero=u8, event_time_ns=i64,
        event_site=i32, event_content=i32, event_frame=i32, n_frames=0, n_premerged_frames=0)
