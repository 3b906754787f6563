"""Capacity planner for Linux memory deduplication: KSM, Selective KSM, merge partitions."""

__version__ = "0.1.0"
