"""Partition policies: which merge partition each site class of a host belongs to.

Explicit partitions come first; what matches none of them is mapped by the values of its
`partition_by` keys: classes with equal values share a partition. Neither is the mainline kernel:
one merge space per host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost, SiteClass
from planner.scenario.spec import Cooperation, Labels, Merge, PolicySpec

__all__ = ["PartitionMap", "class_value", "is_mainline", "kernel_names", "merges_of",
           "partition_classes", "partition_name", "partition_text"]

#: The value of a class that lacks a label: such classes form a partition of their own per guest,
#: since nothing says that they may share with anybody.
UNLABELLED = "unlabelled"
#: What matches no explicit partition, where `partition_by` says nothing.
REST = "rest"
_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, eq=False)
class PartitionMap:
    """Partitions of one host under one policy.

    `names` are for people and unique; `rules` gives each partition's index into the policy's
    explicit partitions, -1 where it follows from `partition_by`. `of_class` i32 gives each class's
    partition, -1 where the policy keeps the class out of merging.
    """

    names: tuple[str, ...]
    rules: tuple[int, ...]
    of_class: npt.NDArray[np.int32]

    def merge_of(self, policy: PolicySpec, partition: int) -> Merge:
        """When the partition merges: as its rule says, else as the policy does."""
        rule = self.rules[partition]
        own = policy.partitions[rule].merge if rule >= 0 else None
        return policy.merge if own is None else own


def class_value(host: FleetHost, site_class: SiteClass, key: str) -> str:
    """The value of a `partition_by`, `match` or `exclude` key for a class of sites."""
    value = site_class.labels.get(key)
    return f"{UNLABELLED}:{host.guests[site_class.guest].name}" if value is None else value


def is_mainline(policy: PolicySpec) -> bool:
    """Whether the policy has one merge space a host, as a mainline kernel."""
    return not policy.partition_by and not policy.partitions


def merges_of(policy: PolicySpec) -> tuple[Merge, ...]:
    """The policy's own merge timing, then those of its explicit partitions that have one."""
    return (policy.merge, *(rule.merge for rule in policy.partitions if rule.merge is not None))


def partition_classes(host: FleetHost, policy: PolicySpec) -> PartitionMap:
    """Map every class of `host` to a partition of `policy`; only guests and classes are read."""
    # One merge space is there even when everything is excluded from it.
    ids: dict[tuple[int, tuple[str, ...]], int] = {(-1, ()): 0} if is_mainline(policy) else {}
    of_class = np.full(len(host.classes), -1, np.int32)
    for index, site_class in enumerate(host.classes):
        if not _is_named(site_class.labels, policy.cooperation) \
                or _matches(host, site_class, policy.exclude):
            continue
        rule = next((number for number, each in enumerate(policy.partitions)
                     if _matches(host, site_class, each.match)), -1)
        values = () if rule >= 0 else tuple(class_value(host, site_class, key)
                                            for key in policy.partition_by)
        of_class[index] = ids.setdefault((rule, values), len(ids))
    return PartitionMap(_names(policy, ids), tuple(rule for rule, _ in ids), of_class)


def _names(policy: PolicySpec, ids: Iterable[tuple[int, tuple[str, ...]]]) -> tuple[str, ...]:
    """Names for people: an explicit partition's own, and another number where two are alike."""
    taken: dict[str, None] = {}
    for rule, values in ids:
        if rule >= 0:
            name = policy.partitions[rule].name
        else:
            name = partition_name(values) if values or not policy.partitions else REST
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name} ({number})", number + 1
        taken[candidate] = None
    return tuple(taken)


def partition_name(values: Sequence[str]) -> str:
    """The name, for people, of the partition of these values of `partition_by`."""
    return " + ".join(values) or "all"


def kernel_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names that `ksm_open` accepts (no slash, at most 63 bytes), unique and in the same order."""
    taken: dict[str, None] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:_NAME_BYTES] or "partition"
        candidate, number = plain, 2
        while candidate in taken:
            suffix = f"-{number}"
            candidate, number = plain[:_NAME_BYTES - len(suffix)] + suffix, number + 1
        taken[candidate] = None
    return tuple(taken)


def _matches(host: FleetHost, site_class: SiteClass, entries: Sequence[Labels]) -> bool:
    return any(all(class_value(host, site_class, key) == value for key, value in entry)
               for entry in entries)


def _is_named(labels: Mapping[str, str], cooperation: Cooperation) -> bool:
    """Whether the guest names regions with these labels: all of them where it names none."""
    if cooperation.kind == "none" or not cooperation.ranges:
        return True
    return any(all(labels.get(key) == value for key, value in entry)
               for entry in cooperation.ranges)


def partition_text(policy: PolicySpec) -> str:
    """The partitions in words, with what is kept out."""
    by_labels = " + ".join(policy.partition_by)
    explicit = ", ".join(rule.name for rule in policy.partitions)
    text = f"{explicit}, else {by_labels or REST}" if explicit else by_labels or "none"
    if policy.exclude:
        text += f", without {_entries_text(policy.exclude)}"
    cooperation = policy.cooperation
    if cooperation.kind != "none" and cooperation.ranges:
        text += f", only {_entries_text(cooperation.ranges)}"
    if cooperation.kind == "full":
        text += ", guests leave out free and volatile pages"
    return text


def _entries_text(entries: Sequence[Labels]) -> str:
    return "; ".join(" and ".join(f"{key}={value}" for key, value in entry) for entry in entries)
