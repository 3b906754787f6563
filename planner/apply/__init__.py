"""From a plan to practice: what a plan of partitions does on a host with the kernel module."""

from __future__ import annotations

from planner.apply.compare import PlanComparison, compare_plan, read_report
from planner.apply.members import Extent, Member, find_members
from planner.apply.plan import Plan, PlannedMember, PlannedPartition, read_plan
from planner.apply.work import (
    CallReport,
    Calls,
    PartitionReport,
    Report,
    carry_out,
    split_huge_pages,
    steps_of,
    undo,
    write_settings,
)

__all__ = [
    "CallReport",
    "Calls",
    "Extent",
    "Member",
    "PartitionReport",
    "Plan",
    "PlanComparison",
    "PlannedMember",
    "PlannedPartition",
    "Report",
    "carry_out",
    "compare_plan",
    "find_members",
    "read_plan",
    "read_report",
    "split_huge_pages",
    "steps_of",
    "undo",
    "write_settings",
]
