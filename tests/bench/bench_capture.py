"""Seconds per GiB of a capture on one core, and what a target notices of it. Needs root.

    PLANNER_KERNEL_TESTS=1 pytest tests/bench/bench_capture.py --benchmark-only \\
        -o python_files='bench_*.py'

Times are CPU seconds of the capturing process (user and system), so that other load matters
less. `extra_info` holds seconds per GiB and, for the latency runs, percentiles of a request that
touches 64 pages of the target.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.capture import CaptureRequest, capture
from planner.capture.pages import FrameIds, PageCapture
from planner.capture.procfs import FrameTable, NumaMap, Pagemap, ProcRoot, read_vmas
from planner.capture.reader import PageReader
from planner.kernels.pagehash import hash_pages, key_words
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageColumns
from tests.kernel.processes import ProcessMaker

GIB_PAGES = 1 << 18
KEY = bytes(range(16))

cpu_time = pytest.mark.benchmark(timer=time.process_time, min_rounds=5, warmup=False)


@pytest.fixture(scope="module")
def made() -> Iterator[ProcessMaker]:
    maker = ProcessMaker()
    yield maker
    maker.close()


@cpu_time
def test_hash_of_a_gib_in_the_cache(benchmark: BenchmarkFixture) -> None:
    keys = key_words(KEY)
    pages = np.random.default_rng(1).integers(0, 256, (256, 4096), dtype=np.uint8)
    hash_pages(pages, keys)
    benchmark.pedantic(lambda: [hash_pages(pages, keys) for _ in range(1024)], rounds=5)
    benchmark.extra_info["s_per_gib"] = round(benchmark.stats.stats.min, 3)


@pytest.mark.kernel
@cpu_time
@pytest.mark.parametrize("kind", ["exclusive", "exclusive huge", "shared", "shared huge"])
def test_pages_of_a_gib(benchmark: BenchmarkFixture, kind: str) -> None:
    """smaps, pagemap twice, frame flags and counts, reading, hashing: all but the trace file."""
    maker = ProcessMaker()
    process = maker()
    process.fill(GIB_PAGES, huge="huge" in kind)
    if "shared" in kind:
        process.fork()
    root, keys = ProcRoot(), key_words(KEY)
    parts: list[PageColumns] = []

    with FrameTable(root) as frames:
        def run() -> None:
            parts.clear()
            pages = PageCapture(frames, NumaMap(root), FrameIds(), keys, "anon", lambda n: None)
            vmas = read_vmas(root, process.pid)
            with Pagemap(root, process.pid) as pagemap, \
                    PageReader(root, process.pid, may_pin=True) as reader:
                pages.capture(pagemap, reader, vmas, parts)

        run()
        benchmark.pedantic(run, rounds=7)
    n_pages = sum(map(len, parts))
    assert n_pages >= GIB_PAGES
    benchmark.extra_info["s_per_gib"] = round(benchmark.stats.stats.min * GIB_PAGES / n_pages, 3)
    maker.close()


@pytest.mark.kernel
@cpu_time
def test_whole_capture_of_a_gib(
    benchmark: BenchmarkFixture, made: ProcessMaker, tmp_path: Path
) -> None:
    """The same with the trace written."""
    process = made()
    process.fill(GIB_PAGES)
    request = CaptureRequest(key=SiteKey(KEY, key_id_of(KEY), Path("k")), out=tmp_path / "trace",
                             pids=(process.pid,), force=True)
    benchmark.pedantic(lambda: capture(request), rounds=3)
    benchmark.extra_info["s_per_gib"] = round(benchmark.stats.stats.min, 3)


@pytest.mark.kernel
@pytest.mark.parametrize("cpu_limit", ["not captured", None, 0.1])
@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_latency_of_a_target_while_captured(
    benchmark: BenchmarkFixture, made: ProcessMaker, tmp_path: Path, kind: str,
    cpu_limit: str | float | None,
) -> None:
    """Requests of a target with 512 MiB while snapshots of it follow one another for 8 s."""
    process = made()
    mapping = process.fill(GIB_PAGES // 2)
    if kind == "shared":
        process.fork()
    stop = Event()

    def snapshots() -> None:
        request = CaptureRequest(
            key=SiteKey(KEY, key_id_of(KEY), Path("k")), out=tmp_path / "trace",
            pids=(process.pid,), force=True,
            cpu_limit=None if cpu_limit is None else float(cpu_limit))
        while not stop.is_set():
            capture(request)

    thread = Thread(target=snapshots)

    def serve() -> list[int]:
        # Shared pages are only read, or they would not stay shared.
        times: list[int] = process.do("serve", address=mapping.address, n_pages=mapping.n_pages,
                                      seconds=8, is_reading=kind == "shared")
        return times

    if cpu_limit != "not captured":
        thread.start()
    times = benchmark.pedantic(serve, rounds=1)
    stop.set()
    if thread.is_alive():
        thread.join()
    for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
        benchmark.extra_info[name] = round(times[int(len(times) * share)] / 1000, 1)
    benchmark.extra_info["n_requests"] = len(times)
