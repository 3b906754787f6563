"""The agent on live processes: right hashes, the same pages as a capture, nothing changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.capture import CaptureRequest, capture
from planner.cli.agent import packed_agent
from planner.importers.agent import import_agent
from planner.importers.common import LabelSource
from planner.importers.guest_classes import read_classes
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, Trace, open_trace
from tests.kernel.conftest import Ksm
from tests.kernel.processes import Mapping, ProcessMaker, content, frames
from tests.kernel.test_capture_live import changes, pages_of, state

pytestmark = pytest.mark.kernel

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")


def run_agent(tmp_path: Path, *arguments: str) -> Path:
    """Run the zipapp; returns its stream."""
    pyz, key, stream = tmp_path / "agent.pyz", tmp_path / "site.key", tmp_path / "stream"
    pyz.write_bytes(packed_agent())
    key.write_text(KEY.hex())
    key.chmod(0o600)
    stream.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-I", "-S", str(pyz), "--key", str(key), "-o",
                           str(stream), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return stream


def take(tmp_path: Path, *pids: int, include: str = "anon") -> Trace:
    named = [text for pid in pids for text in ("--pid", str(pid))]
    stream = run_agent(tmp_path, *named, "--include", include)
    report = import_agent([stream], out=tmp_path / "agent", labels=LabelSource(), key=None,
                          force=True, progress=None)
    return open_trace(report.path)


def independent_hash(page: bytes) -> int:
    """The page hash of docs/page-hash.md, section blake2b-64."""
    return int.from_bytes(hashlib.blake2b(page, digest_size=8, key=KEY).digest(), "little")


def assert_hashes(found: dict[int, tuple[int, PageFlag, int]], mapping: Mapping) -> None:
    assert sorted(found) == sorted(mapping.seeds)
    for index, (digest, flags, _) in found.items():
        page = content(mapping.seeds[index])
        assert digest == independent_hash(page)
        assert bool(flags & PageFlag.ZERO) == (not any(page))


def test_the_agents_stream_equals_a_capture_and_a_slow_reading(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    seeds: dict[int, int | str | None] = {i: i // 3 + 1 for i in range(0, 4000, 2)}
    seeds |= {4001: None, 4002: "touch", 4003: 77, 9000: 5, 9001: 5}
    mapping = process.map(10_000, seeds)
    child = process.fork()
    process.do("write", address=mapping.address, pages=[(i, i) for i in range(0, 200, 2)])
    mine = Mapping(mapping.address, 10_000, seeds | {i: i for i in range(0, 200, 2)})
    places = ((process.pid, mine), (child, mapping))
    before = state(*places)
    trace = take(tmp_path, process.pid, child, include="all")
    assert changes(before, *places) == {}
    assert_hashes(pages_of(trace, process.pid, mine), mine)
    assert_hashes(pages_of(trace, child, mapping), mapping)
    its = open_trace(capture(CaptureRequest(
        key=SiteKey(KEY, key_id_of(KEY), Path("k")), out=tmp_path / "capture",
        pids=(process.pid, child), include="all")))
    assert changes(before, *places) == {}
    # The same lists, flags and sharing, page for page.
    assert [(g.name, g.kind) for g in trace.guests] == [(g.name, g.kind) for g in its.guests]
    assert trace.regions == its.regions
    n_pages = 0
    digests: dict[int, int] = {}
    for pid in (process.pid, child):
        mm, = [mm.mm_id for mm in trace.mms if mm.pid == pid]
        a, b = trace.mm_pages(0, mm), its.mm_pages(0, mm)
        n_pages += len(a)
        for column in ("vpn", "numa_node"):
            assert np.array_equal(getattr(a, column), getattr(b, column)), column
        # How often a library's page is mapped changes with every process of the machine.
        of_file = (a.flags & np.uint32(PageFlag.FILE)) != 0
        looked_at = np.where(of_file, np.uint32(~int(PageFlag.EXCLUSIVE) & 0xFFFFFFFF),
                             np.uint32(0xFFFFFFFF))
        assert np.array_equal(a.flags & looked_at, b.flags & looked_at)
        assert np.array_equal((a.frame_id < 0)[~of_file], (b.frame_id < 0)[~of_file])
        # Every page, of all mappings, read once more through /proc/PID/mem.
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
            for vpn, digest, flags in zip(a.vpn.tolist(), a.hash.tolist(), a.flags.tolist(),
                                          strict=True):
                if not flags & PageFlag.UNREADABLE:
                    assert digest == independent_hash(os.pread(mem.fileno(), 4096, vpn * 4096))
        for x, y in zip(a.hash.tolist(), b.hash.tolist(), strict=True):
            assert digests.setdefault(x, y) == y
    assert n_pages > 4000


def test_fork_and_huge_pages_stay_as_they_are(processes: ProcessMaker, tmp_path: Path) -> None:
    process = processes()
    huge = process.map(1024, {i: i + 1 for i in range(1024)}, huge=True)
    plain = process.map(300, {i: 1000 + i for i in range(300)})
    child = process.fork()
    places = tuple((pid, mapping) for pid in (process.pid, child) for mapping in (huge, plain))
    before = state(*places)
    trace = take(tmp_path, process.pid, child)
    assert changes(before, *places) == {}
    for mapping in (huge, plain):
        mine, its = (pages_of(trace, pid, mapping) for pid in (process.pid, child))
        assert_hashes(mine, mapping)
        assert [page[2] for page in mine.values()] == [page[2] for page in its.values()]
        assert all(page[2] >= 0 for page in mine.values())


def test_merged_pages_stay_merged(ksm: Ksm, processes: ProcessMaker, tmp_path: Path) -> None:
    process = processes()
    mapping = process.map(200, {i: 42 + i // 100 for i in range(200)}, mergeable=True)
    # ksmd rests while nothing is advised.
    ksm.start_stepping()
    for _ in range(4):
        ksm.full_scan()
    before, counters = state((process.pid, mapping)), ksm.counters()
    assert counters["pages_sharing"] >= 190
    trace = take(tmp_path, process.pid)
    assert changes(before, (process.pid, mapping)) == {}
    after = ksm.counters()
    for name in ("pages_shared", "pages_sharing", "cow_ksm"):
        assert after[name] == counters[name], name
    found = pages_of(trace, process.pid, mapping)
    assert_hashes(found, mapping)
    assert sum(bool(flags & PageFlag.KSM) for _, flags, _ in found.values()) >= 190


def test_guest_classes_tell_anonymous_memory_and_kernel_text(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    mapping = process.map(500, {i: i + 1 for i in range(500)})
    classes = read_classes(run_agent(tmp_path, "--guest-classes"))
    assert classes.is_complete
    own = [frame for frame in frames(process.pid, mapping) if frame is not None]
    assert len(own) == 500
    assert {classes.names[classes.numbers[frame]] for frame in own} == {"anon"}
    text = classes.numbers == classes.names.index("kernel-text")
    found, = [line.split(" : ")[0].strip().split("-")
              for line in Path("/proc/iomem").read_text().splitlines()
              if line.endswith(" : Kernel code")]
    start, end = int(found[0], 16) // 4096, -(-(int(found[1], 16) + 1) // 4096)
    assert np.array_equal(np.flatnonzero(text), np.arange(start, end))
