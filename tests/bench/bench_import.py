"""Rates of `planner trace import` on one core, from file to finished trace.

    pytest tests/bench/bench_import.py --benchmark-only -o python_files='bench_*.py'

Times are CPU seconds of the process (user and system), so that other load matters less; files
are in the page cache. `extra_info` holds GiB of memory per second (hash lists: million lines).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.importers.avml import import_avml
from planner.importers.common import LabelSource
from planner.importers.elf import import_qemu
from planner.importers.hashlist import import_hashlist
from planner.importers.images import import_raw
from planner.importers.lime import import_lime
from planner.sitekey import SiteKey, key_id_of
from tests.test_import_images import avml_range, elf_core, lime_range

KEY = SiteKey(bytes(range(16)), key_id_of(bytes(range(16))), Path("site.key"))
GIB = 1 << 30
N_LINES = 4_000_000


def memory(n_bytes: int) -> bytes:
    """A third of the pages zero, the rest 16-bit numbers in 64-bit words, a third of them zero."""
    words = np.random.default_rng(1).integers(0, 1 << 16, n_bytes // 8, dtype=np.int64)
    words[::3] = 0
    pages = words.reshape(-1, 512)
    pages[::3] = 0
    return words.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("import")
    yield path
    for file in path.glob("*.img"):
        file.unlink()


def measure(benchmark: BenchmarkFixture, function: Callable[..., Any], path: Path) -> float:
    """Import `path` three times after a warm-up; returns the best CPU time in seconds."""
    def once() -> None:
        function([path], out=path.with_suffix(".trace"), labels=LabelSource(), key=KEY,
                 force=True, progress=None)

    once()
    benchmark.pedantic(once, rounds=3)
    return float(benchmark.stats.stats.min)


cpu_time = pytest.mark.benchmark(timer=time.process_time)


@cpu_time
@pytest.mark.parametrize("form", ["raw", "qemu", "lime", "avml compressed"])
def test_gib_of_memory(benchmark: BenchmarkFixture, folder: Path, form: str) -> None:
    n_bytes = GIB // 4 if form == "avml compressed" else GIB
    data = memory(n_bytes)
    function: Callable[..., Any]
    if form == "raw":
        function, raw = import_raw, data
    elif form == "qemu":
        function, raw = import_qemu, elf_core([(0, data, 0)])
    elif form == "lime":
        function, raw = import_lime, lime_range(0, data)
    else:
        function, raw = import_avml, avml_range(0, data)
    path = folder / f"{form.replace(' ', '-')}.img"
    path.write_bytes(raw)
    del data, raw
    best = measure(benchmark, function, path)
    benchmark.extra_info["gib_per_s"] = round(n_bytes / GIB / best, 2)
    benchmark.extra_info["file_mib"] = path.stat().st_size >> 20
    path.unlink()


@cpu_time
def test_gib_of_holes(benchmark: BenchmarkFixture, folder: Path) -> None:
    path = folder / "holes.img"
    with path.open("wb") as stream:
        stream.write(memory(64 << 20))
        stream.truncate(64 * GIB)
    best = measure(benchmark, import_raw, path)
    benchmark.extra_info["gib_per_s"] = round(64 / best, 2)


@cpu_time
def test_lines_of_a_hash_list(benchmark: BenchmarkFixture, folder: Path) -> None:
    path = folder / "VM1.img"
    values = np.random.default_rng(1).integers(0, 1 << 32, N_LINES, dtype=np.int64)
    path.write_text("\n".join(map(str, values.tolist())) + "\n")
    best = measure(benchmark, import_hashlist, path)
    benchmark.extra_info["million_lines_per_s"] = round(N_LINES / 1e6 / best, 2)
