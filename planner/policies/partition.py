"""Partition policies: which merge partition each site class of a host belongs to.

A policy maps the values of its `partition_by` keys to a partition: classes with equal values
share one. No key is the mainline kernel: one merge space per host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost, SiteClass
from planner.scenario.spec import PolicySpec

__all__ = ["PartitionMap", "class_value", "partition_classes", "partition_text"]

#: The value of a class that lacks a label: such classes form a partition of their own per guest,
#: since nothing says that they may share with anybody.
UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True, eq=False)
class PartitionMap:
    """Partitions of one host under one policy.

    `names` are for people and unique; `of_class` i32 gives each class's partition, -1 where the
    policy excludes the class from merging.
    """

    names: tuple[str, ...]
    of_class: npt.NDArray[np.int32]


def class_value(host: FleetHost, site_class: SiteClass, key: str) -> str:
    """The value of a `partition_by` or `exclude` key for a class of sites."""
    value = site_class.labels.get(key)
    return f"{UNLABELLED}:{host.guests[site_class.guest].name}" if value is None else value


def partition_classes(host: FleetHost, policy: PolicySpec) -> PartitionMap:
    """Map every class of `host` to a partition of `policy`."""
    # One merge space is there even when everything is excluded from it.
    ids: dict[tuple[str, ...], int] = {} if policy.partition_by else {(): 0}
    of_class = np.full(len(host.classes), -1, np.int32)
    for index, site_class in enumerate(host.classes):
        if _is_excluded(host, site_class, policy.exclude):
            continue
        values = tuple(class_value(host, site_class, key) for key in policy.partition_by)
        of_class[index] = ids.setdefault(values, len(ids))
    return PartitionMap(tuple(" + ".join(values) or "all" for values in ids), of_class)


def _is_excluded(host: FleetHost, site_class: SiteClass,
                 exclude: Sequence[Sequence[tuple[str, str]]]) -> bool:
    return any(all(class_value(host, site_class, key) == value for key, value in entry)
               for entry in exclude)


def partition_text(policy: PolicySpec) -> str:
    """`partition_by` in words, with what is excluded."""
    text = " + ".join(policy.partition_by) or "none"
    if policy.exclude:
        entries = (" and ".join(f"{key}={value}" for key, value in entry)
                   for entry in policy.exclude)
        text += f", without {'; '.join(entries)}"
    return text
