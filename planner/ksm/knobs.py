"""The files of /sys/kernel/mm/ksm that steer merging, with each kernel's own defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from planner.errors import UsageError

__all__ = ["KERNELS", "KernelVersion", "Knobs"]

KernelVersion = Literal["6.1", "6.12", "6.18"]
#: Kernels whose behaviour is modelled.
KERNELS: tuple[KernelVersion, ...] = ("6.1", "6.12", "6.18")

#: Files that 6.1 does not have.
_SINCE_6_12 = ("smart_scan", "advisor_mode", "advisor_max_cpu", "advisor_target_scan_time",
               "advisor_min_pages_to_scan", "advisor_max_pages_to_scan")
_UINT_MAX = 2**32 - 1
_INT_MAX = 2**31 - 1
#: Smallest and largest value of each number.
_RANGES = {
    "pages_to_scan": (0, _UINT_MAX),
    "sleep_millisecs": (0, _UINT_MAX),
    "max_page_sharing": (2, _INT_MAX),
    "stable_node_chains_prune_millisecs": (0, _UINT_MAX),
    "advisor_max_cpu": (0, _UINT_MAX),
    "advisor_target_scan_time": (1, _UINT_MAX),
    "advisor_min_pages_to_scan": (0, _UINT_MAX),
    "advisor_max_pages_to_scan": (0, _UINT_MAX),
}


@dataclass(frozen=True, slots=True)
class Knobs:
    """Values under the names of the kernel's files; the defaults are those of 6.7 and later.

    `pages_to_scan` counts only until the advisor decides (`advisor_mode` "scan-time", which starts
    from `advisor_min_pages_to_scan`). Raises `UsageError` for values the kernel would refuse.
    """

    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    max_page_sharing: int = 256
    smart_scan: bool = True
    use_zero_pages: bool = False
    merge_across_nodes: bool = True
    stable_node_chains_prune_millisecs: int = 2000
    advisor_mode: Literal["none", "scan-time"] = "none"
    advisor_max_cpu: int = 70
    advisor_target_scan_time: int = 200
    advisor_min_pages_to_scan: int = 500
    advisor_max_pages_to_scan: int = 30_000

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                expected = f"at least {low}" if value < low else f"at most {high}"
                raise UsageError(f"expected {expected}, got {value}", where=name)
        if self.advisor_mode not in ("none", "scan-time"):
            raise UsageError(f"expected none or scan-time, got {self.advisor_mode}",
                             where="advisor_mode")

    @classmethod
    def of_kernel(cls, kernel: KernelVersion, **changes: Any) -> Knobs:
        """The defaults of a kernel with some files written; `UsageError` for a file it lacks."""
        check_kernel(kernel)
        if kernel == "6.1":
            for name in changes:
                if name in _SINCE_6_12:
                    raise UsageError(f"Linux {kernel} has no such file", where=name)
            changes["smart_scan"] = False
        known = {field.name for field in fields(cls)}
        for name in changes:
            if name not in known:
                raise UsageError("no such file of /sys/kernel/mm/ksm", where=name)
        return cls(**changes)


def check_kernel(kernel: str) -> None:
    """Raise `UsageError` unless the kernel is one that is modelled."""
    if kernel not in KERNELS:
        raise UsageError(f"expected one of {', '.join(KERNELS)}, got {kernel}", where="kernel")
