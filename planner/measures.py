"""The figures that requirements, sweeps and sensitivities may name, and what they are shares of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Measure"]

#: What a bound is written in: sizes (`16GiB`), durations (`10min`), counts, or plain ratios.
Unit = Literal["bytes", "ns", "count", "ratio"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a policy in one replicate.

    `column` of the table of replicates holds it, in `unit`. `whole_column` holds what a share
    (`10 %`) is a share of; empty: shares make no sense. `is_more_better` tells the good side.
    """

    column: str
    unit: Unit
    whole_column: str
    is_more_better: bool
    text: str


_MEMORY = "guest_memory_bytes"

#: By the name that scenarios use.
METRICS: dict[str, Measure] = {
    "saved": Measure("saved_bytes", "bytes", _MEMORY, True,
                     "frames freed of non-zero content minus all metadata"),
    "saved_zero": Measure("saved_zero_bytes", "bytes", _MEMORY, True,
                          "freed by merging zero pages"),
    "metadata": Measure("metadata_bytes", "bytes", _MEMORY, False, "KSM's own records"),
    "saved_per_core_hour": Measure("saved_per_core_hour_bytes", "bytes", "", True,
                                   "saved bytes per core-hour of merge CPU"),
    "merge_cpu": Measure("merge_cpu_ns", "ns", "core_time_ns", False,
                         "CPU time of scanning and merging; share: of all cores of the hosts"),
    "time_to_90": Measure("time_to_90_ns", "ns", "", False,
                          "from the start to 90 % of the last saving"),
    "time_to_merge": Measure("merged_after_p95_ns", "ns", "", False,
                             "from a guest's start until it was merged, 95 % of guests"),
    "cow_breaks": Measure("cow_breaks", "count", "", False, "merged pages written to"),
    "cow_rate": Measure("cow_worst_per_s", "ratio", "", False,
                        "COW breaks a second in the worst interval of the worst host"),
    "cross_domain_pages": Measure("cross_domain_pages", "count", "guest_pages", False,
                                  "guest pages on merged frames of more than one domain"),
    "cross_domain_sensitive_pages": Measure(
        "cross_domain_sensitive_pages", "count", "guest_pages", False,
        "those with a sensitive domain among the sharers"),
    "exposed_domain_pairs": Measure("exposed_domain_pairs", "count", "", False,
                                    "pairs of domains that shared a partition in which pages of "
                                    "more than one domain were merged"),
    "unmerge": Measure("unmerge_worst_bytes", "bytes", "", False,
                       "memory needed if every merge were undone, worst host"),
    "unmerge_headroom": Measure("headroom_worst_bytes", "bytes", "", True,
                                "free memory left if every merge were undone, worst host"),
    "unmerge_headroom_p99": Measure("headroom_p99_bytes", "bytes", "", True,
                                    "the same, what 99 % of hosts have at least"),
    "unmerge_headroom_p50": Measure("headroom_p50_bytes", "bytes", "", True,
                                    "the same, the median host"),
    "free_memory": Measure("free_worst_bytes", "bytes", "", True,
                           "free memory while merged, worst host at its worst moment"),
    "hosts_used": Measure("hosts_used", "count", "n_machines", False,
                          "most hosts with a guest at one time"),
    "hosts_needed": Measure("hosts_needed", "count", "n_machines", False,
                            "fewest hosts that take every guest, counting on the safe saving"),
    "safe_overcommit": Measure("safe_overcommit", "ratio", "", True,
                               "guest memory per byte of host memory that is safe"),
    "rejected_guests": Measure("rejected_guests", "count", "n_guests", False,
                               "guests that no host could take"),
    "huge_splits": Measure("huge_splits", "count", "", False, "huge pages split by merging"),
}
