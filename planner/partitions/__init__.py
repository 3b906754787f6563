"""Selective KSM on this machine: the partitions of the kernel module, by their four calls."""

from __future__ import annotations

from planner.partitions.abi import KSM_CREAT, KSM_EXCL, KSM_SYNC, Cost, Refusal
from planner.partitions.device import (
    REFUSAL_RULES,
    CallCounts,
    InterruptedCallError,
    PartitionCounters,
    PartitionDevice,
)

__all__ = [
    "KSM_CREAT",
    "KSM_EXCL",
    "KSM_SYNC",
    "REFUSAL_RULES",
    "CallCounts",
    "Cost",
    "InterruptedCallError",
    "PartitionCounters",
    "PartitionDevice",
    "Refusal",
]
