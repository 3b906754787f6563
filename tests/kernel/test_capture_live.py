"""Capturing live processes: the hashes are right, and nothing about the targets changes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from planner.capture import CaptureRequest, capture
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from tests.kernel.conftest import Ksm
from tests.kernel.processes import (
    Mapping,
    Process,
    ProcessMaker,
    content,
    frames,
    pagemap,
    resident,
)
from tests.oracles.pagehash import seed_of, siphash24

pytestmark = pytest.mark.kernel

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")
SITE_KEY = SiteKey(KEY, key_id_of(KEY), Path("site.key"))


def independent_hash(page: bytes) -> int:
    """The page hash by another implementation of each half."""
    inner = xxhash.xxh64_intdigest(page, seed_of(KEY))
    return siphash24(KEY, inner.to_bytes(8, "little"))


def take(tmp_path: Path, *pids: int, **options: Any) -> Trace:
    request = CaptureRequest(key=SITE_KEY, out=tmp_path / "trace", pids=pids, force=True,
                             **options)
    return open_trace(capture(request))


def pages_of(trace: Trace, pid: int, mapping: Mapping) -> dict[int, tuple[int, PageFlag, int]]:
    """Page index in the mapping -> hash, flags, frame id."""
    mm, = [mm for mm in trace.mms if mm.pid == pid]
    pages = trace.mm_pages(0, mm.mm_id)
    first, last = np.searchsorted(pages.vpn, [mapping.start_vpn,
                                              mapping.start_vpn + mapping.n_pages])
    return {int(pages.vpn[i]) - mapping.start_vpn: (
        int(pages.hash[i]), PageFlag(int(pages.flags[i])), int(pages.frame_id[i]))
        for i in range(first, last)}


def state(*places: tuple[int, Mapping]) -> dict[object, int]:
    """Everything a capture must leave alone: every pagemap entry, and resident memory."""
    found: dict[object, int] = {}
    for pid, mapping in places:
        found |= {(pid, name): kilobytes for name, kilobytes in resident(pid).items()}
        found |= {(pid, mapping.start_vpn + index): entry
                  for index, entry in enumerate(pagemap(pid, mapping))}
    return found


def changes(before: dict[object, int], *places: tuple[int, Mapping]) -> dict[object, str]:
    """What of a `state` is different now."""
    after = state(*places)
    return {key: f"{before[key]:#x} -> {after[key]:#x}"
            for key in before if before[key] != after[key]}


def assert_hashes(found: dict[int, tuple[int, PageFlag, int]], mapping: Mapping) -> None:
    assert sorted(found) == sorted(mapping.seeds)
    for index, (digest, flags, _) in found.items():
        page = content(mapping.seeds[index])
        assert digest == independent_hash(page)
        assert bool(flags & PageFlag.ZERO) == (not any(page))


def test_hashes_are_right_and_absent_pages_stay_absent(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    seeds: dict[int, int | str | None] = {i: i // 3 + 1 for i in range(0, 4000, 2)}
    seeds |= {4001: None, 4002: "touch", 4003: 77, 9000: 5, 9001: 5}
    mapping = process.map(10_000, seeds)
    before = state((process.pid, mapping))
    trace = take(tmp_path, process.pid)
    assert changes(before, (process.pid, mapping)) == {}
    found = pages_of(trace, process.pid, mapping)
    assert_hashes(found, mapping)
    assert {index: flags for index, (_, flags, _) in found.items()
            if flags != PageFlag.ANON | PageFlag.EXCLUSIVE} == {
        4001: PageFlag.ANON | PageFlag.EXCLUSIVE | PageFlag.ZERO,
        4002: PageFlag.ZERO | PageFlag.ZERO_PAGE}
    assert {frame_id for _, _, frame_id in found.values()} == {-1}
    assert trace.snapshots[0].skipped == {}


def test_memory_shared_by_fork_stays_shared_and_has_frame_ids(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    seeds: dict[int, int | str | None] = {i: 1000 + i for i in range(300)}
    mapping = process.map(400, seeds)
    child = process.fork()
    process.do("write", address=mapping.address, pages=[(i, i) for i in range(256, 300)])
    mapping = Mapping(mapping.address, 400, seeds | {i: i for i in range(256, 300)})
    in_child = Mapping(mapping.address, 400, seeds)
    places = ((process.pid, mapping), (child, in_child))
    before = state(*places)
    trace = take(tmp_path, process.pid, child)
    assert changes(before, *places) == {}
    mine, its = pages_of(trace, process.pid, mapping), pages_of(trace, child, in_child)
    assert_hashes(mine, mapping)
    assert_hashes(its, in_child)
    shared = [mine[i][2] for i in range(256)]
    assert shared == [its[i][2] for i in range(256)]
    assert -1 not in shared
    assert len(set(shared)) == 256
    assert all(not flags & PageFlag.EXCLUSIVE for _, flags, _ in list(mine.values())[:256])
    for pages in (mine, its):
        assert {pages[i][2] for i in range(256, 300)} == {-1}
        assert all(pages[i][1] & PageFlag.EXCLUSIVE for i in range(256, 300))


def read_by_pinning(pid: int, mapping: Mapping) -> None:
    """What the capture must not do: process_vm_readv over a whole mapping."""
    buffer = np.zeros(mapping.n_pages * 4096, np.uint8)
    local = np.array([buffer.ctypes.data, buffer.nbytes], np.uint64)
    remote = np.array([mapping.address, buffer.nbytes], np.uint64)
    read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    read.restype = ctypes.c_ssize_t
    n_bytes = read(pid, ctypes.c_void_p(local.ctypes.data), ctypes.c_ulong(1),
                   ctypes.c_void_p(remote.ctypes.data), ctypes.c_ulong(1), ctypes.c_ulong(0))
    assert n_bytes == buffer.nbytes


def test_pinning_shared_memory_is_seen_to_unshare_it(processes: ProcessMaker) -> None:
    """The checks of the test above can fail: reading by pinning alone does change the frames."""
    process = processes()
    mapping = process.map(256, {i: 1000 + i for i in range(256)})
    child = process.fork()
    before = frames(child, mapping)
    assert before == frames(process.pid, mapping)
    read_by_pinning(child, mapping)
    assert not set(frames(child, mapping)) & set(before)


def test_pages_a_gone_fork_has_left_keep_their_frames(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    small = process.map(300, {i: 2000 + i for i in range(300)})
    huge = process.map(1024, dict.fromkeys(range(1024), 9), huge=True)
    process.fork()
    process.do("reap")
    places = ((process.pid, small), (process.pid, huge))
    before = state(*places)
    trace = take(tmp_path, process.pid)
    assert changes(before, *places) == {}
    assert_hashes(pages_of(trace, process.pid, small), small)
    assert_hashes(pages_of(trace, process.pid, huge), huge)


def test_huge_pages_stay_huge(processes: ProcessMaker, tmp_path: Path) -> None:
    process = processes()
    mapping = process.map(2048, {i: i % 7 for i in range(2048)}, huge=True)
    if not resident(process.pid)["AnonHugePages"]:
        pytest.skip("this kernel gives no transparent huge pages")
    child = process.fork()
    process.do("write", address=mapping.address, pages=[(0, 12345)])
    mine = Mapping(mapping.address, 2048, mapping.seeds | {0: 12345})
    places = ((process.pid, mine), (child, mapping))
    before = state(*places)
    trace = take(tmp_path, process.pid, child)
    assert changes(before, *places) == {}
    found, its = pages_of(trace, process.pid, mine), pages_of(trace, child, mapping)
    assert_hashes(found, mine)
    assert_hashes(its, mapping)
    # The writer's first huge page was split by its write; frames tell who shares what.
    here, there = frames(process.pid, mine), frames(child, mapping)
    for index in range(2048):
        is_shared = here[index] == there[index]
        assert (found[index][2] != -1) == (its[index][2] != -1) == is_shared
        assert (found[index][2] == its[index][2]) or not is_shared
    assert sum(bool(flags & PageFlag.THP) for _, flags, _ in its.values()) >= 1536


def merged_pair(ksm: Ksm, processes: ProcessMaker
                ) -> tuple[list[tuple[int, Mapping]], dict[str, int]]:
    """Two processes with 200 contents in common (40 of them twice) and 50 each of their own."""
    seeds: dict[int, int | str | None] = {i: i + 1 for i in range(200)}
    seeds |= {200 + i: i + 1 for i in range(40)}
    places: list[tuple[int, Mapping]] = []
    for own in (1, 2):
        process: Process = processes()
        private = {300 + i: own * 10_000 + i for i in range(50)}
        places.append((process.pid, process.map(400, seeds | private, mergeable=True)))
    ksm.start_stepping()
    for _ in range(4):
        ksm.full_scan()
    counters = ksm.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (200, 280)
    return places, counters


def test_merged_memory_stays_merged(
    ksm: Ksm, processes: ProcessMaker, tmp_path: Path
) -> None:
    places, counters = merged_pair(ksm, processes)
    before = state(*places)
    trace = take(tmp_path, *(pid for pid, _ in places))
    assert changes(before, *places) == {}
    assert ksm.counters() == counters
    recorded = trace.snapshots[0].counters
    assert {name: recorded[name] for name in counters} == counters
    by_frame: dict[int | None, set[int]] = {}
    for pid, mapping in places:
        found = pages_of(trace, pid, mapping)
        assert_hashes(found, mapping)
        for index, frame in enumerate(frames(pid, mapping)):
            if index not in found:
                assert frame is None
                continue
            is_merged = index < 240
            assert bool(found[index][1] & PageFlag.KSM) == is_merged
            assert (found[index][2] >= 0) == is_merged
            if is_merged:
                by_frame.setdefault(frame, set()).add(found[index][2])
        region, = [r for r in trace.mm_regions(0, trace.mms[0].mm_id)
                   if r.start_vpn <= places[0][1].start_vpn < r.end_vpn]
        assert region.flags & RegionFlag.ADVISED
    # One id a frame, and no id for two frames.
    assert len(by_frame) == 200
    assert all(len(ids) == 1 for ids in by_frame.values())
    assert len(set().union(*by_frame.values())) == 200
    # And once more: what was merged is still merged after the scan that follows.
    ksm.full_scan()
    after = ksm.counters()
    assert {n: after[n] for n in ("pages_shared", "pages_sharing", "cow_ksm")} == {
        n: counters[n] for n in ("pages_shared", "pages_sharing", "cow_ksm")}


def test_pinning_merged_memory_is_seen_to_unmerge_it(ksm: Ksm, processes: ProcessMaker) -> None:
    """The checks of the test above can fail, too."""
    places, counters = merged_pair(ksm, processes)
    pid, mapping = places[0]
    before = frames(pid, mapping)[:240]
    read_by_pinning(pid, Mapping(mapping.address, 240))
    # pages_sharing itself only follows when ksmd next looks at the pages.
    assert ksm.counters()["cow_ksm"] >= counters["cow_ksm"] + 240
    assert not set(frames(pid, mapping)[:240]) & set(before)


def test_pages_merged_into_the_zero_page_are_recorded_as_such(
    ksm: Ksm, processes: ProcessMaker, tmp_path: Path
) -> None:
    ksm["use_zero_pages"] = 1
    process = processes()
    mapping = process.map(100, dict.fromkeys(range(100), None), mergeable=True)
    ksm.start_stepping()
    for _ in range(4):
        ksm.full_scan()
    assert ksm["ksm_zero_pages"] == 100
    counters = ksm.counters()
    before = state((process.pid, mapping))
    trace = take(tmp_path, process.pid)
    assert changes(before, (process.pid, mapping)) == {}
    assert ksm.counters() == counters
    assert {(digest, flags, frame_id) for digest, flags, frame_id in pages_of(
        trace, process.pid, mapping).values()} == {
        (independent_hash(bytes(4096)), PageFlag.ZERO | PageFlag.ZERO_PAGE, -1)}


def test_memory_without_access_rights_is_read_all_the_same(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    mapping = process.map(64, {i: i for i in range(64)})
    process.do("protect", address=mapping.address, n_pages=64)
    before = state((process.pid, mapping))
    trace = take(tmp_path, process.pid)
    assert changes(before, (process.pid, mapping)) == {}
    assert_hashes(pages_of(trace, process.pid, mapping), mapping)


@pytest.fixture
def swap_space(tmp_path: Path) -> Iterator[None]:
    """Swap space: what the machine has, else a file of 64 MiB for the time of the test."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    file = tmp_path / "swap"
    file.touch(0o600)
    file.write_bytes(bytes(64 << 20))
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    if subprocess.run(["swapon", file], check=False, capture_output=True).returncode:
        pytest.skip("this machine has no swap space and cannot swap to a file")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)


@pytest.mark.usefixtures("swap_space")
def test_swapped_pages_stay_swapped(processes: ProcessMaker, tmp_path: Path) -> None:
    process = processes()
    mapping = process.map(512, {i: 3000 + i for i in range(512)})
    process.do("pageout", address=mapping.address, n_pages=256)
    entries = pagemap(process.pid, mapping)
    swapped = [i for i, entry in enumerate(entries) if entry >> 62 == 1]
    assert len(swapped) > 128, "the kernel did not page out"
    before = state((process.pid, mapping))
    found = pages_of(take(tmp_path, process.pid), process.pid, mapping)
    assert changes(before, (process.pid, mapping)) == {}
    assert [i for i, page in found.items() if page[1] & PageFlag.SWAPPED] == swapped
    assert {found[i] for i in swapped} == {(0, PageFlag.ANON | PageFlag.SWAPPED, -1)}
    for index in set(range(512)) - set(swapped):
        assert found[index][0] == independent_hash(content(3000 + index))


def test_a_process_that_ends_while_captured_does_not_spoil_the_others(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    short, long = processes(), processes()
    doomed = short.map(30_000, {i: i for i in range(30_000)})
    mapping = long.map(16, {i: i for i in range(16)})

    def end_it(what: str, share: float) -> None:
        if share > 0.3:
            short.close()

    request = CaptureRequest(key=SITE_KEY, out=tmp_path / "trace", pids=(short.pid, long.pid))
    trace = open_trace(capture(request, end_it))
    info, = trace.snapshots
    assert info.is_partial
    assert info.skipped == {"exited_processes": 1}
    assert 0 < len(pages_of(trace, short.pid, doomed)) < 30_000
    assert_hashes(pages_of(trace, long.pid, mapping), mapping)


def test_without_permission_the_error_says_what_to_run(
    processes: ProcessMaker, tmp_path: Path
) -> None:
    process = processes()
    code = (
        "import sys; from pathlib import Path\n"
        "from planner.capture import CaptureRequest, capture\n"
        "from planner.errors import MachineError\n"
        "from planner.sitekey import SiteKey\n"
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "key = SiteKey(bytes(16), '0', Path('k'))\n"
        "try:\n"
        f"    capture(CaptureRequest(key=key, out=Path('trace'), pids=({process.pid},)))\n"
        "except MachineError as error:\n"
        "    print(error)\n"
    )
    tmp_path.chmod(0o777)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=False)
    assert "no permission to read it; run as root, or with CAP_SYS_PTRACE" in done.stdout, (
        done.stderr)
    assert "trace" not in "".join(os.listdir(tmp_path))
