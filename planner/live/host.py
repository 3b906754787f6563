"""What host this is: kernel, timer frequency, processors. Nothing that names its owner."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

__all__ = ["facts", "timer_hz"]

#: include/uapi/linux/time.h; Python does not name it.
_CLOCK_MONOTONIC_COARSE = 6


def timer_hz() -> int:
    """The kernel's timer frequency HZ: the coarse clock advances once a tick."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def facts() -> dict[str, Any]:
    """Name, kernel, machine, HZ, CPUs and their model, memory in bytes."""
    return {
        "name": platform.node() or "host", "kernel": platform.release(),
        "machine": platform.machine(), "hz": timer_hz(), "n_cpus": os.cpu_count() or 0,
        "cpu": _cpu_model(), "memory_bytes":
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"
