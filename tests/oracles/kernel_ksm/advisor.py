"""ksmd's sleep (kernel/time/timer.c) and its scan-time advisor (mm/ksm.c, 6.8+), in integers."""

from __future__ import annotations

from dataclasses import dataclass

#: EWMA_WEIGHT, KSM_ADVISOR_MIN_CPU, DEFAULT_PAGES_TO_SCAN.
EWMA_WEIGHT = 30
MIN_CPU = 10
DEFAULT_PAGES_TO_SCAN = 100

#: kernel/time/timer.c: a wheel level has 64 slots, each 8 times coarser than the one below.
LEVEL_SLOTS, LEVEL_SHIFT = 64, 3


def jiffies_of_ms(ms: int, hz: int) -> int:
    """msecs_to_jiffies for an hz that divides 1000: rounded up."""
    return -(-ms * hz // 1000)


def timer_expiry(jiffy: int, sleep_ms: int, hz: int) -> int:
    """The jiffy in which a sleep armed during `jiffy` ends (schedule_timeout, calc_wheel_index).

    A level holds timeouts of less than 63 of its slots' widths times 8; an expiry is put into the
    next slot of its level, so it is never early.
    """
    delta = jiffies_of_ms(sleep_ms, hz)
    level = 0
    while delta >= (LEVEL_SLOTS - 1) << (LEVEL_SHIFT * level):
        level += 1
    shift = LEVEL_SHIFT * level
    return (((jiffy + delta) >> shift) + 1) << shift


def sleep_period_ns(sleep_ms: int, batch_ns: int, hz: int) -> int:
    """Time from one batch's start to the next one's, for sleeps of less than 63 jiffies.

    ksmd wakes on a tick, works `batch_ns`, and arms the timer in the jiffy where it ends.
    """
    jiffy_ns = 10**9 // hz
    if sleep_ms == 0:
        return batch_ns
    end = batch_ns // jiffy_ns
    assert jiffies_of_ms(sleep_ms, hz) < LEVEL_SLOTS - 1
    return timer_expiry(end, sleep_ms, hz) * jiffy_ns


@dataclass
class ScanTimeAdvisor:
    """scan_time_advisor: `pages_to_scan` after each full scan. Times are given, not measured."""

    target_scan_time: int = 200
    max_cpu: int = 70
    min_pages_to_scan: int = 500
    max_pages_to_scan: int = 30000
    pages_to_scan: int = DEFAULT_PAGES_TO_SCAN
    start_scan_ns: int = 0
    scan_time: int = 0
    change: int = 0
    cpu_time_ns: int = 0

    def switch_on(self) -> None:
        """set_advisor_defaults for scan-time: nothing is remembered."""
        self.start_scan_ns = self.scan_time = self.change = self.cpu_time_ns = 0
        self.pages_to_scan = self.min_pages_to_scan

    def start(self, now_ns: int) -> None:
        """advisor_start_scan."""
        self.start_scan_ns = now_ns

    def stop(self, now_ns: int, cpu_time_ns: int) -> int:
        """advisor_stop_scan; `cpu_time_ns` is all CPU time ksmd ever used."""
        scan_time = max(1, (now_ns - self.start_scan_ns) // 10**6 // 1000)
        cpu_ms = (cpu_time_ns - self.cpu_time_ns) // 1000 // 1000
        self.cpu_time_ns = cpu_time_ns
        return self.evaluate(scan_time, max(1, cpu_ms * 100 // (scan_time * 1000)))

    def evaluate(self, scan_time: int, cpu_percent: int) -> int:
        """What the tracepoint ksm_advisor shows: whole seconds, percent of a CPU."""
        last_scan_time = self.scan_time or scan_time
        factor = max(1, self.target_scan_time * 100 // scan_time)
        change = max(1, scan_time * 100 // last_scan_time)
        change = ((100 - EWMA_WEIGHT) * self.change + EWMA_WEIGHT * change) // 100
        pages = self.pages_to_scan * 100 // factor
        pages = pages * change // 100
        per_page_cost = max(1, self.pages_to_scan // cpu_percent)
        pages = min(pages, per_page_cost * self.max_cpu)
        pages = max(pages, per_page_cost * MIN_CPU)
        pages = min(pages, self.max_pages_to_scan)
        self.change, self.scan_time, self.pages_to_scan = change, scan_time, pages
        return pages
