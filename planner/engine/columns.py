"""The columns of result tables that counters give."""

from __future__ import annotations

from planner.ksm.records import BYTES_PER_PAGE, Counters

__all__ = ["sample_columns"]

#: Counters that are columns as they are.
_SAME = (
    "metadata_bytes", "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile",
    "general_profit_bytes", "pages_scanned", "pages_skipped", "ksm_zero_pages",
    "stable_node_chains", "stable_node_dups", "pages_to_scan", "full_scans", "merge_cpu_ns",
    "scanner_cpu_ns", "caller_cpu_ns", "merging_cpu_ns", "split_cpu_ns", "unmerge_cpu_ns",
    "cow_cpu_ns", "huge_splits", "cow_breaks", "cross_domain_pages",
    "cross_domain_sensitive_pages",
)


def sample_columns(counters: Counters, freed_frames: int, fault_ns: int) -> dict[str, int]:
    """The columns of HOSTS (policy, host, time and what the host's guests are apart).

    `freed_frames`: what guests gave back; `fault_ns`: what they paid to get pages of them again.
    """
    columns = {name: int(getattr(counters, name)) for name in _SAME}
    columns["cow_cpu_ns"] += fault_ns
    return columns | {
        "guest_memory_bytes": counters.base_frames * BYTES_PER_PAGE,
        "eligible_bytes": counters.eligible_pages * BYTES_PER_PAGE,
        "saved_bytes": counters.saved_frames * BYTES_PER_PAGE - counters.metadata_bytes,
        "saved_zero_bytes": (counters.saved_zero_frames + freed_frames) * BYTES_PER_PAGE,
        "unmerge_bytes": (counters.unmerge_frames + freed_frames) * BYTES_PER_PAGE,
    }
