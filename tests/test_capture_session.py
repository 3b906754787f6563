from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.capture import CaptureRequest, capture
from planner.capture.pages import FrameIds
from planner.capture.procfs import Pagemap, TargetExitedError
from planner.capture.reader import PageReader
from planner.errors import InterruptedRunError, MachineError, UsageError
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from tests.fakeproc import EXCLUSIVE, FILE, PRESENT, SWAP, FakeProc, FakeVma, page
from tests.oracles.pagehash import page_hash

KEY = bytes(range(16))
SITE_KEY = SiteKey(KEY, key_id_of(KEY), Path("site.key"))
SECOND = 1_000_000_000


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    (tmp_path / "fake").mkdir()
    return FakeProc(tmp_path / "fake")


def request(tmp_path: Path, *pids: int, **options: object) -> CaptureRequest:
    return replace(CaptureRequest(key=SITE_KEY, out=tmp_path / "trace", pids=pids), **options)


def run(fake: FakeProc, wanted: CaptureRequest,
        progress: Callable[[str, float], None] | None = None) -> Trace:
    return open_trace(capture(wanted, progress, root=fake.root))


def rows(trace: Trace, mm_id: int = 0, snapshot: int = 0) -> list[tuple[int, int, PageFlag, int]]:
    pages = trace.mm_pages(snapshot, mm_id)
    return [(int(v), int(h), PageFlag(int(f)), int(i)) for v, h, f, i in zip(
        pages.vpn, pages.hash, pages.flags, pages.frame_id, strict=True)]


def one_page_process(fake: FakeProc, pid: int, pfn: int, byte: int, **options: object) -> None:
    entry = fake.frame(pfn, "anon", "anon_exclusive")
    fake.add(pid, [FakeVma(16, [entry], content={0: page(byte)})], **options)


def test_every_kind_of_page_gets_its_flags_hash_and_frame(fake: FakeProc, tmp_path: Path) -> None:
    f = PageFlag
    entries = [
        fake.frame(10, "anon", "anon_exclusive"),
        0,
        fake.frame(11, "anon", count=3),
        fake.frame(12, "anon", "ksm", count=2),
        fake.frame(13, "zero_page", count=0),
        fake.frame(14, "anon", "thp", "head", "mlocked"),
        SWAP | 5 << 5,  # swap file 0, slot 5
        SWAP | 25,  # a migration entry
        SWAP | 31,  # a marker: no page
        fake.frame(15, "anon", "swapcache"),
        fake.frame(16, "swapbacked") | FILE,  # a file's page in a private mapping
        fake.frame(12, "anon", "ksm", count=2),
        fake.frame(17, "anon", "ksm"),  # the last sharer of a merged page
    ]
    content = {0: page(1), 2: page(2), 3: page(3), 5: page(0), 9: page(4), 10: page(5),
               11: page(3), 12: page(6)}
    fake.add(7, [FakeVma(100, entries, vm_flags="rd wr mg ac", content=content)])
    trace = run(fake, request(tmp_path, 7))
    assert rows(trace) == [
        (100, page_hash(page(1), KEY), f.ANON | f.EXCLUSIVE, -1),
        (102, page_hash(page(2), KEY), f.ANON, 0),
        (103, page_hash(page(3), KEY), f.ANON | f.KSM, 1),
        (104, page_hash(page(0), KEY), f.ZERO | f.ZERO_PAGE, -1),
        (105, page_hash(page(0), KEY),
         f.ANON | f.ZERO | f.THP | f.COMPOUND | f.LOCKED | f.EXCLUSIVE, -1),
        (106, 0, f.ANON | f.SWAPPED, -1),
        (107, 0, f.ANON | f.MIGRATION, -1),
        (109, page_hash(page(4), KEY), f.ANON | f.SWAPCACHE | f.EXCLUSIVE, -1),
        (111, page_hash(page(3), KEY), f.ANON | f.KSM, 1),
        (112, page_hash(page(6), KEY), f.ANON | f.KSM | f.EXCLUSIVE, -1),
    ]
    everything = run(fake, request(tmp_path, 7, include="all", force=True))
    assert rows(everything)[8] == (110, page_hash(page(5), KEY), f.SHMEM | f.EXCLUSIVE, -1)
    assert len(rows(everything)) == 11


def test_the_huge_zero_page_is_listed_though_pagemap_takes_it_for_a_file_s(
    fake: FakeProc, tmp_path: Path
) -> None:
    f = PageFlag
    zero = fake.frame(20, "zero_page", "thp", "tail", count=0) | FILE
    other = fake.frame(21) | FILE
    fake.add(7, [FakeVma(512, [zero, other]),
                 FakeVma(1024, [other], name="/lib/x.so", inode=5, content={0: page(1)})])
    assert rows(run(fake, request(tmp_path, 7))) == [
        (512, page_hash(page(0), KEY), f.ZERO | f.ZERO_PAGE | f.THP | f.COMPOUND, -1)]
    everything = rows(run(fake, request(tmp_path, 7, include="all", force=True)))
    assert [(row[0], row[2]) for row in everything] == [
        (512, f.ZERO | f.ZERO_PAGE | f.THP | f.COMPOUND), (513, f.FILE | f.EXCLUSIVE | f.ZERO),
        (1024, f.FILE | f.EXCLUSIVE)]


def test_where_the_kernel_calls_every_page_merged_those_that_cannot_be_are_not(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [fake.frame(10, "anon", "ksm", "anon_exclusive"),
               fake.frame(11, "anon", "ksm", count=2),
               fake.frame(12, "anon", "ksm", "thp", "head"),
               fake.frame(13, "anon", "ksm")]
    content = {i: page(i + 1) for i in range(4)}
    fake.add(7, [FakeVma(16, entries, content=content, ksm_kb=8),
                 FakeVma(32, entries, content=content, ksm_kb=0),
                 FakeVma(48, entries, content=content)])

    def merged(is_exact: bool) -> list[int]:
        monkeypatch.setattr("planner.capture.sources.marks_ksm_exactly", lambda *_: is_exact)
        trace = run(fake, request(tmp_path, 7, force=True))
        return [row[0] for row in rows(trace) if row[2] & PageFlag.KSM]

    assert merged(True) == [16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51]
    assert merged(False) == [17, 19, 49, 51]


def test_every_mapping_is_a_region_and_only_mergeable_ones_are_read(
    fake: FakeProc, tmp_path: Path
) -> None:
    vmas = []
    for i, (vm_flags, name, inode) in enumerate([
        ("rd wr", "", 0), ("rd wr", "[heap]", 0), ("rd ex", "/lib/x.so", 5),
        ("rd wr sh ms", "/dev/shm/pool", 6), ("rd wr sh ms", "", 0), ("rd wr de ht", "", 0),
        ("rd pf io de", "[vvar]", 0), ("rd wr", "[stack]", 0), ("rd wr mm", "", 0),
    ]):
        entry = fake.frame(100 + i, "anon")
        vmas.append(FakeVma(16 * (i + 1), [entry], vm_flags, name, inode, {0: page(i + 1)}))
    fake.add(7, vmas)
    trace = run(fake, request(tmp_path, 7))
    assert [(r.name, r.labels["content"]) for r in trace.mm_regions(0, 0)] == [
        ("", "anon"), ("[heap]", "heap"), ("x.so", "file-private"), ("pool", "file-shared"),
        ("", "shmem"), ("", "hugetlb"), ("[vvar]", "special"), ("[stack]", "stack"), ("", "anon")]
    assert [row[0] for row in rows(trace)] == [16, 32, 48, 128]
    everything = run(fake, request(tmp_path, 7, include="all", force=True))
    assert [row[0] for row in rows(everything)] == [16, 32, 48, 64, 80, 96, 128, 144]


def test_absent_pages_between_present_ones_are_never_read(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = {0, 1, 5, 6, 7, 600, 5000, 5001, 140_000}
    entries = [0] * 140_001
    for index in present:
        entries[index] = fake.frame(200 + index % 1000, "anon", "anon_exclusive")
    fake.add(7, [FakeVma(16, entries, content={i: page(i % 255 + 1) for i in present})])
    read: list[tuple[int, int]] = []
    real = os.preadv
    memory = str(fake.root.of(7, "mem"))

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == memory:
            read.append((offset // 4096 - 16, len(buffers[0]) // 4096))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    trace = run(fake, request(tmp_path, 7))
    assert read == [(0, 2), (5, 3), (600, 1), (5000, 2), (140_000, 1)]
    assert [row[0] - 16 for row in rows(trace)] == sorted(present)
    assert all(row[1] == page_hash(page((row[0] - 16) % 255 + 1), KEY) for row in rows(trace))


class Moving:
    """Changes pagemap entries after the n-th read of them, as a live process would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, changes: dict[int, dict[int, int]]) -> None:
        self.n_reads = 0
        real = Pagemap.read

        def read(pagemap: Pagemap, start_vpn: int, end_vpn: int) -> np.ndarray:
            entries = real(pagemap, start_vpn, end_vpn).copy()
            for at, change in changes.items():
                if self.n_reads >= at:
                    for index, entry in change.items():
                        entries[index] = entry
            self.n_reads += 1
            return entries

        monkeypatch.setattr(Pagemap, "read", read)


def test_a_page_that_moves_once_is_read_again_and_one_that_leaves_is_dropped(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [fake.frame(pfn, "anon", "anon_exclusive") for pfn in (10, 11, 12, 13)]
    fake.frame(20, "anon", "ksm", count=2)
    fake.add(7, [FakeVma(16, entries, content={i: page(i + 1) for i in range(4)})])
    Moving(monkeypatch, {1: {1: PRESENT | 20, 2: 0, 3: SWAP | 1 << 5}})
    f = PageFlag
    trace = run(fake, request(tmp_path, 7))
    assert rows(trace) == [
        (16, page_hash(page(1), KEY), f.ANON | f.EXCLUSIVE, -1),
        (17, page_hash(page(2), KEY), f.ANON | f.KSM, 0),
        (19, 0, f.ANON | f.SWAPPED, -1),
    ]
    assert trace.snapshots[0].skipped == {}


def test_a_page_that_keeps_moving_is_listed_as_unreadable(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [fake.frame(pfn, "anon", count=2) for pfn in (10, 11, 30, 31)]
    fake.add(7, [FakeVma(16, entries[:2], content={0: page(1), 1: page(2)})])
    Moving(monkeypatch, {1: {1: entries[2]}, 2: {1: entries[3]}})
    trace = run(fake, request(tmp_path, 7))
    assert rows(trace) == [
        (16, page_hash(page(1), KEY), PageFlag.ANON, 0),
        (17, 0, PageFlag.ANON | PageFlag.UNREADABLE, -1),
    ]
    assert trace.snapshots[0].skipped == {"moved_pages": 1}


def test_a_page_that_cannot_be_read_is_listed_without_hash(
    fake: FakeProc, tmp_path: Path
) -> None:
    entries = [fake.frame(pfn, "anon") for pfn in (10, 11, 12)]
    fake.add(7, [FakeVma(16, entries, content={0: page(1), 1: page(2)})])
    os.truncate(fake.root.of(7, "mem"), 18 << 12)
    trace = run(fake, request(tmp_path, 7))
    assert [(row[1], row[2] & PageFlag.UNREADABLE) for row in rows(trace)] == [
        (page_hash(page(1), KEY), 0), (page_hash(page(2), KEY), 0), (0, PageFlag.UNREADABLE)]
    assert trace.snapshots[0].skipped == {"unreadable_pages": 1}


def test_pinning_is_asked_only_for_pages_that_cannot_be_unshared_by_it(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        fake.frame(10, "anon", "anon_exclusive"),
        fake.frame(11, "anon"),  # mapped once, but still marked shared: its fork has exited
        fake.frame(12, "anon", "anon_exclusive", count=2),
        fake.frame(13, "anon", "ksm"),
        fake.frame(14, "anon", "ksm", "anon_exclusive"),
        fake.frame(15, "swapbacked", "anon_exclusive"),
        fake.frame(16, "anon", "anon_exclusive") & ~EXCLUSIVE,
    ]
    content = {i: page(i + 1) for i in range(len(entries))}
    fake.add(7, [FakeVma(16, entries, content=content),
                 FakeVma(64, entries[:1], vm_flags="wr", content={0: page(9)})])
    asked: dict[bool, list[int]] = {True: [], False: []}
    real = PageReader.read

    def read(reader: PageReader, vpns: np.ndarray, out: np.ndarray, *, pin: bool) -> np.ndarray:
        asked[pin] += vpns.tolist()
        return real(reader, vpns, out, pin=pin)

    monkeypatch.setattr(PageReader, "read", read)
    run(fake, request(tmp_path, 7))
    assert asked == {True: [16], False: [17, 18, 19, 20, 21, 22, 64]}


def test_frame_ids_join_processes_and_stay_from_snapshot_to_snapshot(
    fake: FakeProc, tmp_path: Path
) -> None:
    shared = [fake.frame(pfn, "anon", count=2) for pfn in (10, 11)]
    fake.add(7, [FakeVma(16, shared, content={0: page(1), 1: page(2)})])
    fake.add(8, [FakeVma(32, shared[::-1], content={0: page(2), 1: page(1)})])
    trace = run(fake, request(tmp_path, 7, 8, snapshots=3, every_ns=1_000_000))
    for snapshot in range(3):
        assert [row[3] for row in rows(trace, 0, snapshot)] == [0, 1]
        assert [row[3] for row in rows(trace, 1, snapshot)] == [1, 0]
    assert [s.n_stored for s in trace.snapshots] == [4, 0, 0]


def oracle_ids(batches: Iterable[Iterable[list[tuple[int, int]]]]) -> list[list[int]]:
    """Frame ids by dicts: per snapshot, per call."""
    before: dict[tuple[int, int], int] = {}
    n_given, answers = 0, []
    for calls in batches:
        now: dict[tuple[int, int], int] = {}
        for call in calls:
            ids = []
            for key in call:
                if key not in now:
                    now[key] = before.get(key, n_given)
                    n_given += now[key] == n_given
                ids.append(now[key])
            answers.append(ids)
        before = now
    return answers


def test_frame_ids_equal_those_of_a_dict_over_growing_tables() -> None:
    rng = np.random.default_rng(3)
    batches = [
        [[(int(p), int(h)) for p, h in zip(rng.integers(0, span, n), rng.integers(0, 3, n),
                                           strict=True)] for n in sizes]
        for span, sizes in [(50, [0, 10, 100]), (4000, [5000, 5000]), (4000, [1, 20_000, 3]),
                            (9, []), (60, [100])]
    ]
    frame_ids, answers = FrameIds(), []
    for calls in batches:
        frame_ids.begin_snapshot()
        for call in calls:
            pfns, hashes = np.array(call, np.uint64).reshape(-1, 2).T
            answers.append(frame_ids.of(np.ascontiguousarray(pfns), hashes.copy()).tolist())
    assert answers == oracle_ids(batches)


def test_a_frame_used_again_for_other_content_is_another_frame() -> None:
    frame_ids = FrameIds()
    ids = frame_ids.of(np.array([5, 5, 5], np.uint64), np.array([1, 2, 1], np.uint64))
    assert ids.tolist() == [0, 1, 0]


def test_a_cgroup_is_one_guest_whose_processes_come_and_go(
    fake: FakeProc, tmp_path: Path
) -> None:
    folder = fake.root.sys / "fs/cgroup/app/web"
    folder.mkdir(parents=True)
    for pid in (7, 8, 9):
        one_page_process(fake, pid, pid, pid, comm=f"w{pid}", ticks=pid)
    members = [(7, 8), (7, 9), (9,)]
    (folder / "cgroup.procs").write_text("7 8")

    def on_wait(what: str, share: float) -> None:
        if what.startswith("waiting"):
            pids = members[int(what.split()[3]) - 1]
            (folder / "cgroup.procs").write_text(" ".join(map(str, pids)))

    trace = run(fake, request(tmp_path, cgroups=("app/web",), snapshots=3,
                              every_ns=SECOND), on_wait)
    assert [(g.name, g.kind) for g in trace.guests] == [("web", "container")]
    assert [(m.comm, m.guest_id, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [
        ("w7", 0, 0, 2), ("w8", 0, 0, 1), ("w9", 0, 1, 3)]
    assert [s.skipped.get("exited_processes", 0) for s in trace.snapshots] == [0, 1, 1]
    assert not any(s.is_partial for s in trace.snapshots)
    assert trace.status == "complete"


def test_a_pid_given_to_another_process_is_another_mm(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1, comm="first", ticks=100)

    def on_wait(what: str, share: float) -> None:
        if what.startswith("waiting"):
            one_page_process(fake, 7, 10, 1, comm="second", ticks=200)

    trace = run(fake, request(tmp_path, 7, snapshots=2, every_ns=SECOND), on_wait)
    assert [(m.comm, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [
        ("first", 0, 1), ("second", 1, 2)]


def exits_while_captured(monkeypatch: pytest.MonkeyPatch, fake: FakeProc, pid: int) -> None:
    """The process is gone from the second chunk of its memory on."""
    real = Pagemap.read

    def read(pagemap: Pagemap, start_vpn: int, end_vpn: int) -> np.ndarray:
        if start_vpn >= 64 and not fake.root.of(pid, "pagemap").exists():
            raise TargetExitedError
        return real(pagemap, start_vpn, end_vpn)

    monkeypatch.setattr(Pagemap, "read", read)


def test_a_target_that_exits_while_captured_keeps_its_pages_and_marks_the_snapshot(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fake.frame(10, "anon")
    fake.add(7, [FakeVma(16, [entry], content={0: page(1)}),
                 FakeVma(64, [entry], content={0: page(2)})])
    one_page_process(fake, 8, 11, 3)
    exits_while_captured(monkeypatch, fake, 7)

    def on_page(what: str, share: float) -> None:
        for name in ("pagemap", "stat"):
            fake.root.of(7, name).unlink(missing_ok=True)

    trace = run(fake, request(tmp_path, 7, 8, snapshots=2, every_ns=SECOND // 20), on_page)
    assert [row[0] for row in rows(trace, 0)] == [16]
    assert [row[0] for row in rows(trace, 1)] == [16]
    assert [(m.first_snapshot, m.end_snapshot) for m in trace.mms] == [(0, 1), (0, 2)]
    assert [s.is_partial for s in trace.snapshots] == [True, True]
    assert trace.snapshots[0].skipped == {"exited_processes": 1}
    # On a busy machine it may be late as well.
    assert trace.snapshots[1].skipped.keys() - {"late_ns"} == {"exited_guests"}
    assert trace.status == "complete"


def test_when_the_last_target_exits_the_finished_snapshots_are_kept(
    fake: FakeProc, tmp_path: Path
) -> None:
    one_page_process(fake, 7, 10, 1)

    def on_wait(what: str, share: float) -> None:
        if what.startswith("waiting for snapshot 3"):
            fake.root.of(7, "stat").unlink()

    trace = run(fake, request(tmp_path, 7, snapshots=5, every_ns=SECOND), on_wait)
    assert trace.status == "partial"
    assert len(trace.snapshots) == 2


def test_nothing_is_left_when_every_target_exits_at_once(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)
    fake.root.of(7, "smaps").write_text("")
    with pytest.raises(MachineError, match="every target ended before a snapshot was finished"):
        capture(request(tmp_path, 7), root=fake.root)
    assert os.listdir(tmp_path) == ["fake"]


def test_ctrl_c_keeps_finished_snapshots_and_says_so(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)

    def interrupt(what: str, share: float) -> None:
        if what == "snapshot 3 of 9":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="interrupted; 2 of 9 snapshots are kept") as e:
        capture(request(tmp_path, 7, snapshots=9, every_ns=SECOND // 20), interrupt,
                root=fake.root)
    assert e.value.exit_code == 130
    trace = open_trace(tmp_path / "trace")
    assert trace.status == "partial"
    assert len(trace.snapshots) == 2
    assert rows(trace, 0, 1) == [
        (16, page_hash(page(1), KEY), PageFlag.ANON | PageFlag.EXCLUSIVE, -1)]


def test_ctrl_c_in_the_first_snapshot_leaves_nothing(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)

    def interrupt(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match=r"before the first.*nothing was kept"):
        capture(request(tmp_path, 7), interrupt, root=fake.root)
    assert os.listdir(tmp_path) == ["fake"]


def test_a_fault_of_ours_leaves_no_trace_either(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)

    def fail(what: str, share: float) -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        capture(request(tmp_path, 7), fail, root=fake.root)
    assert os.listdir(tmp_path) == ["fake"]


def test_snapshots_start_on_schedule_and_say_when_they_are_late(
    fake: FakeProc, tmp_path: Path
) -> None:
    one_page_process(fake, 7, 10, 1)
    every_ns = SECOND

    def slow(what: str, share: float) -> None:
        if what == "snapshot 2 of 4":
            time.sleep(1.25)

    trace = run(fake, request(tmp_path, 7, snapshots=4, every_ns=every_ns), slow)
    starts = [s.start_ns - trace.snapshots[0].start_ns for s in trace.snapshots]
    late = [s.skipped.get("late_ns", 0) for s in trace.snapshots]
    assert [n > 0 for n in late] == [False, False, True, False]
    # Late by what the second one overran; the fourth is on the first one's schedule again.
    assert late[2] == pytest.approx(starts[2] - 2 * every_ns, abs=SECOND // 5)
    assert starts[3] == pytest.approx(3 * every_ns, abs=SECOND // 2)
    assert trace.snapshots[1].end_ns - trace.snapshots[1].start_ns >= 5 * SECOND // 4


class Clock:
    """Each look at the CPU time finds 4 ms more of it used; sleeping only lets time pass."""

    def __init__(self) -> None:
        self.used = self.now = self.slept = 0.0

    def process_time(self) -> float:
        self.used += 0.004
        self.now += 0.004
        return self.used

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)


@pytest.mark.parametrize("limit", [0.1, 0.5, 1.0, None])
def test_the_cpu_limit_is_kept(
    fake: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    entries = [fake.frame(1, "anon")] * 60_000
    fake.add(7, [FakeVma(16, entries, content={59_999: page(1)})])
    clock = Clock()
    monkeypatch.setattr("planner.capture.session.time", clock)
    run(fake, request(tmp_path, 7, cpu_limit=limit))
    if limit is None:
        assert clock.slept == 0
    else:
        assert clock.used > 0.05
        # The first look starts the count.
        assert (clock.used - 0.004) / (clock.now - 0.004) == pytest.approx(limit, rel=0.02)


def test_the_caller_is_told_of_each_finished_snapshot(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 10, 20, 1)
    told: list[int] = []
    capture(request(tmp_path, 10, snapshots=3, every_ns=1), root=fake.root,
            after_snapshot=told.append)
    assert told == [1, 2, 3]


def test_guest_memory_of_a_machine_is_marked(fake: FakeProc, tmp_path: Path) -> None:
    entry = fake.frame(10, "anon")
    n_pages = (1 << 20) // 4096
    fake.add(7, [
        FakeVma(16, [entry], "rd wr mg", content={0: page(1)}),
        FakeVma(1024, [entry] + [0] * (n_pages - 1), "rd wr mg", content={0: page(1)}),
        FakeVma(4096, [0] * 999, "rd wr"),
    ], comm="qemu", cmdline=("qemu-system-x86_64", "-name", "g1", "-m", "1"))
    trace = run(fake, request(tmp_path, qemu=True))
    guest, = trace.guests
    assert (guest.name, guest.kind, guest.memory_bytes) == ("g1", "vm", 1 << 20)
    regions = trace.mm_regions(0, 0)
    assert [bool(r.flags & RegionFlag.GUEST_RAM) for r in regions] == [False, True, False]
    assert [r.labels["content"] for r in regions] == ["anon", "guest-ram", "anon"]


def test_a_trace_tells_where_it_comes_from_but_not_from_whom(
    fake: FakeProc, tmp_path: Path
) -> None:
    one_page_process(fake, 7, 10, 1)
    trace = run(fake, request(tmp_path, 7))
    provenance = trace.provenance
    assert provenance["source"] == "proc"
    assert provenance["page_bytes"] == 4096
    assert provenance["memory_bytes"] == 1_024_000
    assert provenance["ksm"] == {"run": 1}
    text = str(provenance)
    assert os.uname().nodename not in text.replace(provenance["kernel"], "")
    assert str(tmp_path) not in text
    assert KEY.hex() not in text
    assert trace.hash_info.key_id == key_id_of(KEY)
    assert trace.hash_info.zero_hash == page_hash(bytes(4096), KEY)
    assert trace.snapshots[0].counters == {"run": 1, "pages_sharing": 5, "cow_ksm": 7}
    for path in (tmp_path / "trace").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert KEY not in path.read_bytes()


def test_progress_grows_to_the_end(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)
    shown: list[tuple[str, float]] = []
    run(fake, request(tmp_path, 7, snapshots=2, every_ns=SECOND),
        lambda what, share: shown.append((what, share)))
    assert [what for what, _ in shown] == [
        "snapshot 1 of 2", "waiting for snapshot 2 of 2", "snapshot 2 of 2"]
    shares = [share for _, share in shown]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": 0}, "--snapshots: 0 snapshots; ask for at least 1"),
        ({"snapshots": 2}, "--every: several snapshots need a time between them"),
        ({"every_ns": -1}, "--every"),
        ({"cpu_limit": 0.0}, "--cpu-limit: 0 % of one CPU"),
        ({"cpu_limit": 1.5}, "--cpu-limit: 150 % of one CPU"),
        ({"include": "most"}, "--include: 'most' is none of advised, anon, all"),
    ],
)
def test_requests_that_cannot_be_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        request(tmp_path, 7, **options)


def test_a_trace_that_is_there_is_not_replaced_unasked(fake: FakeProc, tmp_path: Path) -> None:
    one_page_process(fake, 7, 10, 1)
    first = run(fake, request(tmp_path, 7))
    with pytest.raises(UsageError, match="exists already"):
        capture(request(tmp_path, 7), root=fake.root)
    assert open_trace(first.path).digest == first.digest


def test_an_output_that_cannot_be_written_is_an_error_with_a_next_step(
    fake: FakeProc, tmp_path: Path
) -> None:
    one_page_process(fake, 7, 10, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"the capture failed: Not a directory.*check"):
        capture(request(tmp_path, 7, out=tmp_path / "file" / "trace"), root=fake.root)


