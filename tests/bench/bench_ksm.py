r"""Speed of the KSM model: the visit loop page by page, and a day of ksmd by fast-forward.

    pytest tests/bench/bench_ksm.py --benchmark-only -o python_files='bench_*.py' \
        --benchmark-timer=time.process_time

As a program it runs the day once and says what happened and how long each part took; with `check`
minutes it then runs as much of it with the visit loop and compares all counters after each scan:

    python tests/bench/bench_ksm.py --hours 24 --smart-scan 1 --duplicates 0 --check 0
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from planner.kernels import fastforward, ksm
from planner.kernels import ksmstate as k
from planner.ksm import CostModel, EventTable, Knobs, MergeSpaces, SiteTable

N_PAGES = 4_000_000
N_MMS = 64
PAGES_TO_SCAN = 4000
PAGE_NS = 7_000
WRITES_PER_MINUTE = 0.02
MINUTE_NS = 60 * 10**9


def spaces(n: int, *, is_smart: bool, duplicates: float = 0.0) -> MergeSpaces:
    """`n` pages in 64 mms under a ksmd; a part of them has contents that about 8 pages share."""
    rng = np.random.default_rng(1)
    content = np.arange(n)
    of_many = rng.random(n) < duplicates
    content[of_many] = rng.integers(0, max(1, int(n * duplicates / 8)), of_many.sum())
    _, content = np.unique(content, return_inverse=True)
    zeros = np.zeros(n, np.int32)
    table = SiteTable(
        mm=(np.arange(n) * N_MMS // n).astype(np.int32), vpn=np.arange(n, dtype=np.int64),
        domain=zeros, partition=zeros, is_eligible=np.ones(n, np.uint8),
        content=content.astype(np.int32), frame=np.arange(n, dtype=np.int32))
    cost = CostModel("7 us", 0, 0, *[PAGE_NS] * 7, split_ns=0, stable_level_ns=0,
                     unstable_level_ns=0, stable_far_ns=0, unstable_far_ns=0, batch_ns=1,
                     scan_ns=0, call_ns=0, unmerge_ns=0, cow_break_ns=0, cold_percent=0,
                     cold_pages=0)
    host = MergeSpaces(table, EventTable.empty(), n_partitions=1, domain_is_sensitive=[False],
                       content_is_zero=np.zeros(int(content.max()) + 1, bool), cost=cost)
    host.start_scanner(0, Knobs.of_kernel("6.18", pages_to_scan=PAGES_TO_SCAN, smart_scan=is_smart,
                                          sleep_millisecs=20))
    return host


def writes(n: int, first_content: int, n_minutes: int) -> Iterator[tuple[int, np.ndarray,
                                                                         np.ndarray]]:
    """Per 10 minutes: their end, times and rows (site, fresh content, its frame) of writes.

    One page in ten is hot: it takes a tenth of 80 % of the writes, spread evenly over memory.
    """
    rng = np.random.default_rng(2)
    content = first_content
    for start in range(0, n_minutes, 10):
        minutes = min(10, n_minutes - start)
        m = int(n * WRITES_PER_MINUTE * minutes)
        hot = rng.integers(0, n // 10, m) * 10 + 3
        cold = rng.integers(0, n - n // 10, m)
        cold = cold // 9 * 10 + cold % 9 + (cold % 9 >= 3)
        rows = np.empty((m, 3), np.int32)
        rows[:, 0] = rows[:, 2] = np.where(rng.random(m) < 0.8, hot, cold)
        rows[:, 1] = np.arange(content, content + m)
        content += m
        times = start * MINUTE_NS + np.arange(1, m + 1) * (minutes * MINUTE_NS) // m
        yield (start + minutes) * MINUTE_NS, times, rows


def scans(host: MergeSpaces, n_minutes: int, *, is_fast: bool,
          seconds: dict[str, float] | None = None) -> Iterator[np.ndarray]:
    """Let time pass; after each full scan of partition 1, its row of counters and the time.

    Without `seconds`: the log is filled as fast as possible, one row of counters each 10 minutes.
    """
    w = host._w  # the tables themselves: a day of writes does not fit into memory at once
    if seconds is None:
        w = w._replace(log=np.zeros((1, 3), np.int64))
    begin = time.process_time()
    marks = fastforward.prepare(w) if is_fast else None
    if seconds is not None:
        seconds["prepare"] = time.process_time() - begin
    for until_ns, times, rows in writes(len(w.sites), len(w.zero), n_minutes):
        w = w._replace(event_time=times, events=rows)
        w.host[k.H_EVENT] = 0
        begin = time.process_time()
        while True:
            n = fastforward.advance(until_ns, w, marks) if is_fast else ksm.advance(until_ns, w)
            if n < len(w.log):
                break
            if seconds is None:
                yield np.append(w.parts[1], w.log[0])
        if seconds is not None:
            seconds["advance"] = seconds.get("advance", 0.0) + time.process_time() - begin
            yield w.parts[1].copy()


@pytest.mark.parametrize("is_smart", [True, False])
def test_a_day_of_ksmd_over_4_million_pages(benchmark: BenchmarkFixture, is_smart: bool) -> None:
    def setup() -> tuple[tuple[MergeSpaces], dict[str, object]]:
        return (spaces(N_PAGES, is_smart=is_smart),), {}

    def day(host: MergeSpaces) -> None:
        for _ in scans(host, 24 * 60, is_fast=True, seconds={}):
            pass

    day(spaces(1000, is_smart=is_smart))  # compiles
    benchmark.pedantic(day, setup=setup, rounds=1)


@pytest.mark.parametrize("duplicates", [0.0, 0.5])
@pytest.mark.parametrize("is_smart", [True, False])
def test_visits_one_by_one(benchmark: BenchmarkFixture, is_smart: bool,
                           duplicates: float) -> None:
    """Ten minutes of memory at rest, after half an hour; `extra_info` has ns a page passed."""
    host = spaces(N_PAGES, is_smart=is_smart, duplicates=duplicates)
    marks = fastforward.prepare(host._w)
    fastforward.advance(30 * MINUTE_NS, host._w, marks)
    fastforward.settle(host._w, marks)
    part = host._w.parts[1]
    before = int(part[k.P_SCANNED] + part[k.P_SKIPPED])
    benchmark.pedantic(ksm.advance, (40 * MINUTE_NS, host._w), rounds=1)
    n = int(part[k.P_SCANNED] + part[k.P_SKIPPED]) - before
    benchmark.extra_info["ns_per_page"] = benchmark.stats.stats.mean * 1e9 / n


def main() -> None:
    """One day, told in lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=N_PAGES)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--smart-scan", type=int, default=1)
    parser.add_argument("--duplicates", type=float, default=0.0)
    parser.add_argument("--check", type=int, default=0, help="minutes to compare")
    options = parser.parse_args()

    def host(n: int) -> MergeSpaces:
        return spaces(n, is_smart=bool(options.smart_scan), duplicates=options.duplicates)

    for is_fast in (True, False):  # compiles
        for _ in scans(host(1000), 10, is_fast=is_fast):
            pass
    world = host(options.pages)
    seconds: dict[str, float] = {}
    begin = time.process_time()
    for _ in scans(world, int(options.hours * 60), is_fast=True, seconds=seconds):
        pass
    part = world._w.parts[1]
    print(f"CPU time {time.process_time() - begin:.1f} s: sorting {seconds['prepare']:.2f} s, "
          f"fast-forward {seconds['advance']:.1f} s, the rest makes the writes")
    for name in ("FULL_SCANS", "SCANNED", "SKIPPED", "SHARED", "SHARING", "UNSHARED", "COW"):
        print(f"{name.lower():12}{int(part[getattr(k, 'P_' + name)]):>16,}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if options.check:
        del world
        begin = time.process_time()
        fast = list(scans(host(options.pages), options.check, is_fast=True))
        middle = time.process_time()
        plain = list(scans(host(options.pages), options.check, is_fast=False))
        end = time.process_time()
        is_equal = len(fast) == len(plain) and bool(np.array_equal(fast, plain))
        print(f"{options.check} minutes, {len(plain)} full scans: counters "
              f"{'equal' if is_equal else 'DIFFER'} after each; visit loop {end - middle:.1f} s, "
              f"fast-forward {middle - begin:.1f} s")
        sys.exit(not is_equal)


if __name__ == "__main__":
    main()
