"""The state of memory merging on one host: merge spaces, ksmd, Selective KSM, CPU cost."""

from __future__ import annotations

from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.ksm.knobs import KERNELS, KernelVersion, Knobs
from planner.ksm.machine import Machine
from planner.ksm.partition_memory import ModuleMemory
from planner.ksm.partition_rules import ModuleKsm, partition_object
from planner.ksm.records import (
    Counters,
    EventTable,
    FullScan,
    MergeCounts,
    SiteTable,
    UnmergeCounts,
)
from planner.ksm.selective import KSM_CREAT, KSM_EXCL, KSM_SYNC, Credentials, SelectiveKsm
from planner.ksm.space import MergeSpaces, next_wake_ns

__all__ = [
    "BUILTIN_UNMEASURED",
    "KERNELS",
    "KSM_CREAT",
    "KSM_EXCL",
    "KSM_SYNC",
    "CostModel",
    "Counters",
    "Credentials",
    "EventTable",
    "FullScan",
    "KernelVersion",
    "Knobs",
    "Machine",
    "MergeCounts",
    "MergeSpaces",
    "ModuleKsm",
    "ModuleMemory",
    "SelectiveKsm",
    "SiteTable",
    "UnmergeCounts",
    "next_wake_ns",
    "partition_object",
]
