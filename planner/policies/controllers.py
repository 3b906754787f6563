"""Daemons that steer a host's ksmd by its free memory: what they decide, as their sources do.

Each is a small class with a pure `decide`: what it sees and what stands in the files of
/sys/kernel/mm/ksm now gives what it writes. The arithmetic is that of the sources, whole numbers
of kB and all. When they look, and what the files do then, is the engine's matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from planner.scenario.spec import Ksmtuned, KubeVirt

__all__ = ["Controller", "HostMemory", "KsmtunedLoop", "KubeVirtLoop", "Settings",
           "controller_of"]

_GIB_16_KB = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What a daemon reads of the host, in kB.

    `total_kb`: MemTotal. `free_kb`: MemFree with buffers and page cache, which is what is left to
    give away, so MemAvailable too. `committed_kb`: the resident size of all guests, in which a
    merged page counts for everyone who maps it.
    """

    total_kb: int
    free_kb: int
    committed_kb: int


@dataclass(frozen=True, slots=True)
class Settings:
    """The files run, pages_to_scan and sleep_millisecs, and the page count the daemon keeps."""

    is_running: bool = False
    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    npages: int = 0


class Controller(Protocol):
    """A daemon: when it looks first, how often then, and what it decides."""

    @property
    def first_ns(self) -> int:
        """The time of the first look."""

    @property
    def every_ns(self) -> int:
        """From one look to the next."""

    def decide(self, memory: HostMemory, now: Settings) -> Settings:
        """The settings after a look."""


@dataclass(frozen=True, slots=True)
class KsmtunedLoop:
    """`adjust` of ksmtuned (Debian 4.20150326), which first waits one interval.

    Its KSM_THRES_CONST is in kB, despite the manuals. Stopping writes run 0: what is merged stays
    merged, and the page count is kept for the next start.
    """

    spec: Ksmtuned

    @property
    def first_ns(self) -> int:
        """After one interval."""
        return self.every_ns

    @property
    def every_ns(self) -> int:
        """KSM_MONITOR_INTERVAL."""
        return self.spec.monitor_interval_s * 10**9

    def decide(self, memory: HostMemory, now: Settings) -> Settings:
        """`adjust`, with what the script computes when it starts."""
        spec, total = self.spec, memory.total_kb
        sleep = max(10, spec.sleep_msec * _GIB_16_KB // total)
        threshold = max(total * spec.thres_coef // 100, spec.thres_const)
        if memory.committed_kb + threshold < total and memory.free_kb > threshold:
            return replace(now, is_running=False)
        step = spec.npages_boost if memory.free_kb < threshold else spec.npages_decay
        npages = now.npages + step
        # As the script: nothing holds a minimum above the maximum down.
        if npages < spec.npages_min:
            npages = spec.npages_min
        elif npages > spec.npages_max:
            npages = spec.npages_max
        return Settings(True, npages, sleep, npages)


@dataclass(frozen=True, slots=True)
class KubeVirtLoop:
    """`calculateNewRunSleepAndPages` of KubeVirt's virt-handler, which looks at once.

    pages_to_scan is read back from the file, so it goes on from what stands there while running,
    and starts from `pages_init`. Stopping writes run 0 only. Comparisons are in 32-bit floats.
    """

    spec: KubeVirt

    @property
    def first_ns(self) -> int:
        """When the daemon starts."""
        return 0

    @property
    def every_ns(self) -> int:
        """The ticker's interval."""
        return self.spec.interval_ns

    def decide(self, memory: HostMemory, now: Settings) -> Settings:
        """One turn of the loop."""
        spec = self.spec
        used_kb = max(1, memory.total_kb - memory.free_kb)
        sleep = max(spec.sleep_ms_baseline // 10, spec.sleep_ms_baseline * _GIB_16_KB // used_kb)
        is_free = bool(np.float32(memory.free_kb)
                       > np.float32(memory.total_kb) * np.float32(spec.free_percent))
        if is_free:
            pages = now.pages_to_scan + spec.pages_decay
            if not now.is_running or pages < spec.pages_min:
                return replace(now, is_running=False)
        elif now.is_running:
            pages = min(now.pages_to_scan + spec.pages_boost, spec.pages_max)
        else:
            pages = spec.pages_init
        return replace(now, is_running=True, pages_to_scan=pages, sleep_millisecs=sleep)


def controller_of(merge: Ksmtuned | KubeVirt) -> Controller:
    """The daemon of a merge timing."""
    return KsmtunedLoop(merge) if isinstance(merge, Ksmtuned) else KubeVirtLoop(merge)
