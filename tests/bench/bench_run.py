"""What users wait for: the help text, the main job, and the KSM model under it.

    pytest tests/bench/bench_run.py --benchmark-only -o python_files='bench_*.py'
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.ksm.knobs import Knobs
from planner.ksm.records import EventTable, SiteTable
from planner.ksm.space import MergeSpaces
from planner.runner import TraceStore, load_scenario, run

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = REPOSITORY / "scenarios" / "quickstart.yaml"
N_SITES = 500_000


def _command(*arguments: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-m", "planner", *arguments], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY,
                   env={**os.environ, **environment})


def test_help(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(_command, ("--help",), rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("cache", ["empty", "warm"])
def test_quickstart_as_a_command(benchmark: BenchmarkFixture, tmp_path: Path,
                                 cache: str) -> None:
    caches = iter(range(1000))

    def fresh() -> tuple[tuple[str, ...], dict[str, str]]:
        name = f"cache{next(caches)}" if cache == "empty" else "cache"
        return ("run", str(QUICKSTART), "--again", "-o", str(tmp_path)), {
            "NUMBA_CACHE_DIR": str(tmp_path / name)}

    benchmark.pedantic(_command, setup=fresh, rounds=3, warmup_rounds=int(cache == "warm"))


def test_quickstart_in_the_library(benchmark: BenchmarkFixture) -> None:
    store = TraceStore()
    scenario = load_scenario(QUICKSTART, store=store)
    benchmark.pedantic(run, (scenario,), {"store": store}, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("n_writes", [0, 500_000])
def test_ksmd_over_500_000_pages_for_4_minutes(benchmark: BenchmarkFixture,
                                               n_writes: int) -> None:
    """4000 pages every 20 ms, 40 % duplicates; writes have fresh contents."""
    rng = np.random.default_rng(1)
    content = rng.integers(0, int(N_SITES * 0.6), N_SITES).astype(np.int32)
    _, content = np.unique(content, return_inverse=True)
    n_contents = int(content.max()) + 1
    zeros = np.zeros(N_SITES, np.int32)
    sites = SiteTable(np.repeat(np.arange(10, dtype=np.int32), N_SITES // 10),
                      np.tile(np.arange(N_SITES // 10), 10), zeros, zeros,
                      np.ones(N_SITES, np.uint8), content.astype(np.int32),
                      np.arange(N_SITES, dtype=np.int32))
    order = np.arange(n_writes, dtype=np.int32)
    events = EventTable(np.sort(rng.integers(0, 240_000_000_000, n_writes)),
                        rng.integers(0, N_SITES, n_writes).astype(np.int32),
                        order + n_contents, order + N_SITES)

    def spaces() -> tuple[tuple[MergeSpaces], dict[str, object]]:
        made = MergeSpaces(sites, events, n_partitions=1, domain_is_sensitive=[0],
                           content_is_zero=np.zeros(n_contents + n_writes, np.uint8))
        made.start_scanner(0, Knobs(pages_to_scan=4000, smart_scan=False))
        return (made,), {}

    def advance(made: MergeSpaces) -> None:
        made.advance(240_000_000_000)
        assert made.counters().pages_scanned > 10_000_000

    spaces()[0][0].advance(1)  # compiled before it is timed
    benchmark.pedantic(advance, setup=spaces, rounds=3)
