"""Partition policies: which merge partition each site class of a host belongs to.

A policy maps the values of its `partition_by` keys to a partition: classes with equal values
share one. No key is the mainline kernel: one merge space per host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost, SiteClass
from planner.scenario.spec import PolicySpec

__all__ = ["PartitionMap", "class_value", "kernel_names", "partition_classes",
           "partition_name", "partition_text"]

#: The value of a class that lacks a label: such classes form a partition of their own per guest,
#: since nothing says that they may share with anybody.
UNLABELLED = "unlabelled"
_NAME_BYTES = 63


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
    return PartitionMap(tuple(map(partition_name, ids)), of_class)


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
