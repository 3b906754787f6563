"""The whole chain against the real kernel: capture, predict, let ksmd run, compare."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.capture import CaptureRequest, capture
from planner.runner import run
from planner.scenario.spec import Ksmd, PolicySpec
from planner.sitekey import SiteKey, key_id_of
from tests.kernel.conftest import Ksm
from tests.scenario_builder import NEVER, scenario_for

pytestmark = pytest.mark.kernel

PR_SET_THP_DISABLE = 41
PR_SET_MEMORY_MERGE = 67
KEY = bytes(range(16))
#: One full scan is a few batches, so a handful of seconds holds many scans.
KNOBS = Ksmd(pages_to_scan=20_000, sleep_millisecs=20)

#: Real interpreters with real libraries and data: some contents are the same in every process
#: (text read from the library, zeroed buffers), some the same twice in one, most are private.
WORKLOAD = """
import asyncio, decimal, email, http.client, json, mmap, pathlib, random, sqlite3, sys, xml.dom
kind, seed = sys.argv[1], int(sys.argv[2])
text = b"".join(sorted(p.read_bytes() for p in pathlib.Path(json.__file__).parent.glob("*.py")))
text *= 12
held = mmap.mmap(-1, (len(text) // 4096 + 1) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.write(text)
rng = random.Random(seed)
private = bytearray(rng.randbytes(4 << 20))
zeros = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for offset in range(0, 1 << 20, 4096):
    zeros[offset] = 0
if kind == "sql":
    base = sqlite3.connect(":memory:")
    base.execute("create table t (a, b)")
    base.executemany("insert into t values (?, ?)", ((i, "row %d" % i) for i in range(60000)))
else:
    rows = [{"id": i, "name": "row %d" % i} for i in range(40000)]
print("ready", flush=True)
sys.stdin.read()
"""


def _prepare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for option in (PR_SET_THP_DISABLE, PR_SET_MEMORY_MERGE):
        if libc.prctl(option, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")


@pytest.fixture
def interpreters() -> Iterator[list[subprocess.Popen[str]]]:
    started = [subprocess.Popen(
        [sys.executable, "-c", WORKLOAD, kind, str(seed)], preexec_fn=_prepare, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": "1"})
        for seed, kind in enumerate(("sql", "sql", "rows", "rows", "rows", "sql"))]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_predicted_pages_shared_and_sharing_are_within_2_percent(
        ksm: Ksm, interpreters: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    pids = tuple(process.pid for process in interpreters)
    trace = capture(CaptureRequest(
        key=SiteKey(KEY, key_id_of(KEY), tmp_path / "key"), out=tmp_path / "trace", pids=pids,
        snapshots=2, every_ns=4_000_000_000))
    predicted = run(scenario_for(trace, (NEVER, PolicySpec("ksmd", (), (), KNOBS))))
    forecast = predicted.summary.to_pylist()[1]
    assert forecast["full_scans"] >= 3

    ksm["smart_scan"] = 0
    ksm["pages_to_scan"] = KNOBS.pages_to_scan
    ksm["sleep_millisecs"] = KNOBS.sleep_millisecs
    started_at = ksm["full_scans"]
    ksm["run"] = 1
    end = time.monotonic() + 60
    while ksm["full_scans"] < started_at + 4:
        assert time.monotonic() < end, "ksmd did not finish four scans in a minute"
        time.sleep(0.05)
    measured = ksm.counters()
    figures = {name: (forecast[name], measured[name])
               for name in ("pages_shared", "pages_sharing", "pages_unshared")}
    print("forecast, measured:", figures)
    assert measured["pages_sharing"] > 1000
    for name in ("pages_shared", "pages_sharing"):
        assert forecast[name] == pytest.approx(measured[name], rel=0.02), figures
