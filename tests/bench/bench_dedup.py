"""Counting copies against DuckDB and numpy's sort, in one run on the same hashes.

    pytest tests/bench/bench_dedup.py --benchmark-only -o python_files='bench_*.py' \
        --benchmark-columns=min,median,max,rounds

40 million hashes with 40 % duplicates, 48 guests under 12 labels; `BENCH_PAGES` changes the
number. Compare the columns "min": other work on the machine only ever adds. The test at the end
prints the ratios of interleaved rounds, which is what docs/performance.md quotes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.kernels.dedup import count_duplicates

N_PAGES = int(os.environ.get("BENCH_PAGES", 40_000_000))
N_GUESTS = 48
ROUNDS = 5

Columns = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int32],
                npt.NDArray[np.int32]]


def some_hashes(n_pages: int, duplicate_share: float = 0.4) -> npt.NDArray[np.uint64]:
    """Hashes in random order, of which this share repeats one of the others."""
    rng = np.random.default_rng(1)
    n_contents = int(n_pages * (1 - duplicate_share))
    hashes = rng.integers(0, 2**64, n_pages, dtype=np.uint64)
    hashes[n_contents:] = hashes[rng.integers(0, n_contents, n_pages - n_contents)]
    rng.shuffle(hashes)
    return hashes


def with_segments(hashes: npt.NDArray[np.uint64], n_guests: int = N_GUESTS) -> Columns:
    guests = np.arange(n_guests, dtype=np.int32)
    starts = np.linspace(0, len(hashes), n_guests + 1).astype(np.int64)
    return hashes, starts, guests // 4, guests


def count(columns: Columns, **options: Any) -> Any:
    hashes, starts, label, guest = columns
    return count_duplicates(hashes, np.empty(0, np.int32), starts, label, guest, 1, **options)


@pytest.fixture(scope="module")
def columns() -> Columns:
    columns = with_segments(some_hashes(N_PAGES))
    count(with_segments(columns[0][:1000]))  # compiled, or read from the cache
    return columns


def duckdb_count(hashes: npt.NDArray[np.uint64], threads: int | None) -> Callable[[], Any]:
    """The same question without the splits: contents, unique ones, shared ones, duplicates."""
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    if threads:
        connection.execute(f"SET threads = {threads}")
    connection.register("arrow_pages", pa.table({"hash": hashes}))
    connection.execute("CREATE TABLE pages AS SELECT hash FROM arrow_pages")
    query = """SELECT count(*), count(*) FILTER (copies = 1), count(*) FILTER (copies > 1),
                      sum(copies - 1)
               FROM (SELECT count(*) AS copies FROM pages GROUP BY hash)"""
    return lambda: connection.execute(query).fetchone()


@pytest.mark.benchmark(group="count copies of page contents")
class TestCount:
    def test_planner(self, benchmark: BenchmarkFixture, columns: Columns) -> None:
        benchmark.pedantic(count, (columns,), rounds=ROUNDS, warmup_rounds=1)

    def test_planner_one_thread(self, benchmark: BenchmarkFixture, columns: Columns) -> None:
        benchmark.pedantic(count, (columns,), {"n_threads": 1}, rounds=ROUNDS, warmup_rounds=1)

    def test_numpy_sort(self, benchmark: BenchmarkFixture, columns: Columns) -> None:
        benchmark.pedantic(np.sort, (columns[0],), rounds=ROUNDS, warmup_rounds=1)

    def test_duckdb(self, benchmark: BenchmarkFixture, columns: Columns) -> None:
        benchmark.pedantic(duckdb_count(columns[0], None), rounds=2)

    def test_duckdb_one_thread(self, benchmark: BenchmarkFixture, columns: Columns) -> None:
        benchmark.pedantic(duckdb_count(columns[0], 1), rounds=2)


def hostile(kind: str, n_pages: int) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(2)
    hashes = some_hashes(n_pages)
    if kind == "all equal":
        hashes[:] = 42
    elif kind == "100 contents":
        hashes = hashes[rng.integers(0, 100, n_pages)]
    elif kind == "half one content":
        hashes[rng.random(n_pages) < 0.5] = 42
    elif kind == "sorted":
        hashes.sort()
    elif kind == "small numbers":
        hashes = rng.integers(0, n_pages, n_pages).astype(np.uint64)
    elif kind == "all distinct":
        hashes = rng.integers(0, 2**64, n_pages, dtype=np.uint64)
    else:
        assert kind == "40 % duplicates"
    return hashes


@pytest.mark.benchmark(group="count copies: distributions")
@pytest.mark.parametrize("kind", ["40 % duplicates", "all distinct", "all equal", "100 contents",
                                  "half one content", "sorted", "small numbers"])
def test_distribution(benchmark: BenchmarkFixture, kind: str) -> None:
    columns = with_segments(hostile(kind, N_PAGES // 4))
    benchmark.pedantic(count, (columns,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="count copies: many guests")
@pytest.mark.parametrize("n_guests", [1, 1000, 100_000])
def test_guests(benchmark: BenchmarkFixture, n_guests: int) -> None:
    columns = with_segments(some_hashes(N_PAGES // 4), n_guests)
    benchmark.pedantic(count, (columns,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="count copies: frames")
def test_shared_frames(benchmark: BenchmarkFixture) -> None:
    hashes, starts, label, guest = with_segments(some_hashes(N_PAGES // 4))
    rng = np.random.default_rng(3)
    frames = np.full(len(hashes), -1, np.int32)
    shared = rng.random(len(hashes)) < 0.2
    frames[shared] = rng.integers(0, len(hashes) // 20, int(shared.sum()))
    benchmark.pedantic(count_duplicates, (hashes, frames, starts, label, guest, 1),
                       rounds=ROUNDS, warmup_rounds=1)


_MEMORY = """
import json, resource, sys, time
import numpy as np
from tests.bench.bench_dedup import count, some_hashes, with_segments

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

count(with_segments(some_hashes(1000)))
base = peak()
n_pages = int(sys.argv[1])
# Made in place, so that making it is not the peak that is measured.
hashes = np.random.default_rng(1).integers(0, 2**64, n_pages, dtype=np.uint64)
hashes[n_pages * 6 // 10:] = hashes[:n_pages - n_pages * 6 // 10]
made = peak()
start = time.perf_counter()
counts = count(with_segments(hashes))
print(json.dumps({"seconds": time.perf_counter() - start, "input": hashes.nbytes,
                  "made": made - base, "peak": peak() - base, **counts._asdict()}))
"""


def measured(n_pages: int) -> dict[str, Any]:
    """Peak memory of a count, above that of the imports, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(n_pages)], capture_output=True,
                          text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("n_pages", [N_PAGES, 134_217_728])
def test_memory_stays_below_three_times_the_hashes(n_pages: int,
                                                    benchmark: BenchmarkFixture) -> None:
    """134 217 728 pages are 512 GiB."""
    found = benchmark.pedantic(measured, (n_pages,), rounds=1)
    benchmark.extra_info.update(found)
    print(f"\n{n_pages} pages: {found['seconds']:.2f} s, peak "
          f"{found['peak'] / found['input']:.2f} times the hashes")
    n_contents = n_pages * 6 // 10
    assert found["n_pages"] == n_pages
    assert found["n_contents"] == n_contents
    assert found["n_duplicates"] == n_pages - n_contents
    assert found["made"] <= 1.2 * found["input"]
    assert found["peak"] <= 3 * found["input"]


def test_ratios_in_one_run(columns: Columns, benchmark: BenchmarkFixture) -> None:
    """Interleaved rounds, so that other work on the machine meets all alike; the best of each."""
    tasks: dict[str, Callable[[], Any]] = {
        "planner": lambda: count(columns),
        "planner, 1 thread": lambda: count(columns, n_threads=1),
        "numpy sort": lambda: np.sort(columns[0]),
        "duckdb": duckdb_count(columns[0], None),
        "duckdb, 1 thread": duckdb_count(columns[0], 1),
    }
    best = dict.fromkeys(tasks, float("inf"))
    answers: dict[str, Any] = {}

    def rounds() -> None:
        for number in range(3 * ROUNDS):
            for name, task in tasks.items():
                if name.startswith("duckdb") and number >= 3:
                    continue
                start = time.perf_counter()
                answers[name] = task()
                best[name] = min(best[name], time.perf_counter() - start)

    benchmark.pedantic(rounds, rounds=1)
    counts = answers["planner"]
    for name in ("duckdb", "duckdb, 1 thread"):
        assert answers[name] == (counts.n_contents, counts.n_unique, counts.n_shared,
                                 counts.n_duplicates)
    print()
    for name, seconds in best.items():
        print(f"{name:20s} {seconds:7.3f} s   {seconds / best['planner']:6.2f} times planner")
    benchmark.extra_info.update(best)
    assert best["duckdb"] >= 8 * best["planner"]
    assert best["numpy sort"] >= 1.5 * best["planner"]
