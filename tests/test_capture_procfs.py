from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.capture.procfs import (
    FrameTable,
    NumaMap,
    Pagemap,
    ProcRoot,
    TargetExitedError,
    ksm_counters,
    marks_ksm_exactly,
    parse_smaps,
    read_vmas,
    start_ticks,
)
from planner.errors import MachineError
from planner.trace import RegionFlag
from tests.fakeproc import N_FRAMES, PRESENT, FakeProc, FakeVma

# Cut from a real process: only the lines that matter are kept of most mappings.
SMAPS = """\
56238e7d7000-56238e87a000 r-xp 00002000 fe:00 1048590                    /opt/some where/demo
Size:                652 kB
KernelPageSize:        4 kB
THPeligible:           0
VmFlags: rd ex mr mw me sd
5623a0000000-5623a0021000 rw-p 00000000 00:00 0                          [heap]
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me dd ac sd hg mg
7f1000000000-7f1000001000 rw-s 00000000 00:01 2053                       /memfd:pool (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f2000000000-7f2000200000 rw-p 00000000 00:10 31                         /anon_hugepage (deleted)
VmFlags: rd wr mr mw me de ht sd
7f3000000000-7f3000001000 ---p 00000000 00:00 0                          [anon:guard]
VmFlags: mr mw me nr lo wf dp um nh sd
7ffc1a000000-7ffc1a021000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
7ffc1a1d0000-7ffc1a1d4000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd sd
7ffc1a1d4000-7ffc1a1d6000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de sd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
"""


def test_smaps_gives_extent_name_and_flags_of_every_mapping() -> None:
    f = RegionFlag
    found = [(v.name, v.n_pages, v.flags) for v in parse_smaps(SMAPS)]
    assert found == [
        ("demo", 163, f.READ | f.EXEC | f.FILE),
        ("[heap]", 33, f.READ | f.WRITE | f.HEAP),
        ("", 32768, f.READ | f.WRITE | f.HUGEPAGE | f.ADVISED),
        ("memfd:pool", 1, f.READ | f.WRITE | f.SHARED | f.MAYSHARE | f.FILE),
        ("anon_hugepage", 512, f.READ | f.WRITE | f.DONTEXPAND | f.HUGETLB | f.FILE),
        ("[anon:guard]", 1,
         f.LOCKED | f.WIPEONFORK | f.DROPPABLE | f.USERFAULTFD | f.NOHUGEPAGE),
        ("[stack]", 33, f.READ | f.WRITE | f.STACK),
        ("[vvar]", 4, f.READ | f.PFNMAP | f.IO | f.DONTEXPAND),
        ("[vdso]", 2, f.READ | f.EXEC | f.DONTEXPAND),
    ]
    assert parse_smaps(SMAPS)[2].start_vpn == 0x7F0000000
    assert parse_smaps(SMAPS)[2].end_vpn == 0x7F0008000


def test_smaps_that_ends_within_a_mapping_is_refused() -> None:
    for lines in range(1, 5):
        with pytest.raises(ValueError, match="56238e7d7000 has no VmFlags"):
            parse_smaps("\n".join(SMAPS.splitlines()[:lines - 1 or 1]))


def test_smaps_tells_how_much_is_merged_where_the_kernel_does() -> None:
    first, second, *_ = SMAPS.splitlines()[:2]
    known = f"{first}\n{second}\nKSM:                  12 kB\nVmFlags: rd wr\n"
    unknown = f"7f4000000000-7f4000001000 rw-p 00000000 00:00 0\n{second}\nVmFlags: rd wr\n"
    assert [vma.ksm_bytes for vma in parse_smaps(known + unknown)] == [12288, None]


def test_smaps_of_this_process_covers_its_own_memory() -> None:
    here = id(object()) >> 12
    vmas = read_vmas(ProcRoot(), os.getpid())
    assert [v for v in vmas if v.start_vpn <= here < v.end_vpn and v.flags & RegionFlag.WRITE]
    assert all(a.end_vpn <= b.start_vpn for a, b in itertools.pairwise(vmas))


def test_a_process_without_memory_counts_as_gone(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(7, [])
    with pytest.raises(TargetExitedError):
        read_vmas(fake.root, 7)
    with pytest.raises(TargetExitedError):
        read_vmas(fake.root, 8)
    with pytest.raises(TargetExitedError):
        Pagemap(fake.root, 8)


@pytest.mark.parametrize("comm", ["demo", "a b", ") S 1", "x) Z 2 ("])
def test_start_time_survives_any_command_name(tmp_path: Path, comm: str) -> None:
    fake = FakeProc(tmp_path)
    fake.add(7, [], comm=comm, ticks=4711)
    assert start_ticks(fake.root, 7) == 4711


def test_a_zombie_counts_as_gone(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(7, [])
    stat = fake.root.of(7, "stat")
    stat.write_text(stat.read_text().replace(" S ", " Z "))
    with pytest.raises(TargetExitedError):
        start_ticks(fake.root, 7)


def test_hidden_frame_numbers_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(7, [FakeVma(16, [0, PRESENT | 5, PRESENT])])
    with Pagemap(fake.root, 7) as pagemap:
        assert pagemap.read(16, 18).tolist() == [0, PRESENT | 5]
        with pytest.raises(MachineError, match="hides frame numbers; run as root"):
            pagemap.read(16, 19)
        with pytest.raises(TargetExitedError):
            pagemap.read(16, 20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, N_FRAMES + 40), max_size=80))
def test_frames_read_by_runs_equal_frames_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, pfns: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("proc")
    fake = FakeProc(folder)
    fake.flags[:] = np.arange(N_FRAMES) * 3 + 1
    fake.counts[:] = np.arange(N_FRAMES) * 5 + 2
    fake.write_frames()
    with FrameTable(fake.root) as frames:
        wanted = np.array(pfns, np.uint64)
        assert frames.flags(wanted).tolist() == [
            pfn * 3 + 1 if pfn < N_FRAMES else 0 for pfn in pfns]
        assert frames.n_mappings(wanted).tolist() == [
            pfn * 5 + 2 if pfn < N_FRAMES else 0 for pfn in pfns]


def test_near_frames_share_one_read_and_far_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = os.pread

    def pread(fd: int, n_bytes: int, offset: int) -> bytes:
        reads.append((offset // 8, n_bytes // 8))
        return real(fd, n_bytes, offset)

    with FrameTable(FakeProc(tmp_path).root) as frames:
        monkeypatch.setattr(os, "pread", pread)
        frames.flags(np.array([900, 100, 103, 101, 100, 1000], np.uint64))
    assert reads == [(100, 4), (900, 1), (1000, 1)]


@pytest.mark.parametrize("marked", [True, False])
def test_a_kernel_that_calls_every_anonymous_page_merged_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    fake = FakeProc(tmp_path)
    fake.add(os.getpid(), [])
    entry = fake.frame(77, "anon", "anon_exclusive", *(["ksm"] if marked else []))
    monkeypatch.setattr(Pagemap, "read", lambda self, start, end: np.array([entry], np.uint64))
    with FrameTable(fake.root) as frames:
        assert marks_ksm_exactly(fake.root, frames) == (not marked)


def test_the_page_looked_at_is_there_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeProc(tmp_path)
    fake.add(os.getpid(), [])
    entry = fake.frame(77, "anon")
    asked: list[int] = []
    real = FrameTable.flags

    def pages_at(vpn: int) -> bool:
        maps = Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split()[0].split("-") for line in maps]
        return any(int(a, 16) <= vpn << 12 < int(b, 16) for a, b in spans)

    def read(self: Pagemap, start: int, end: int) -> np.ndarray:
        asked.append(start)
        return np.array([entry], np.uint64)

    def flags(self: FrameTable, pfns: np.ndarray) -> np.ndarray:
        assert pages_at(asked[-1])
        return real(self, pfns)

    monkeypatch.setattr(Pagemap, "read", read)
    monkeypatch.setattr(FrameTable, "flags", flags)
    with FrameTable(fake.root) as frames:
        assert marks_ksm_exactly(fake.root, frames)
    assert len(asked) == 1


def test_a_kernel_without_frame_files_is_an_error(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    (fake.root.proc / "kpagecount").unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MachineError, match="CONFIG_PROC_PAGE_MONITOR"):
        FrameTable(fake.root)
    assert len(os.listdir("/proc/self/fd")) == before


ZONEINFO = """\
Node 0, zone      DMA
  pages free     3840
        spanned  4095
        present  3999
  start_pfn:           1
Node 0, zone   Normal
        spanned  1000
  start_pfn:           4096
Node 0, zone  Movable
        spanned  0
  start_pfn:           0
Node 1, zone   Normal
        spanned  1000
  start_pfn:           8192
"""


def test_frames_belong_to_the_node_whose_zone_spans_them(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    (fake.root.proc / "zoneinfo").write_text(ZONEINFO)
    numa = NumaMap(fake.root)
    pfns = np.array([0, 1, 4095, 4096, 5095, 5096, 8191, 8192, 9191, 9192], np.uint64)
    assert numa.node_of(pfns).tolist() == [-1, 0, 0, 0, 0, -1, -1, 1, 1, -1]
    assert numa.n_nodes == 2


def test_nodes_that_interleave_or_are_not_known_are_not_claimed(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    pfns = np.array([1, 5000], np.uint64)
    assert NumaMap(fake.root).node_of(pfns).tolist() == [-1, -1]
    (fake.root.proc / "zoneinfo").write_text(ZONEINFO.replace("8192", "5000"))
    assert NumaMap(fake.root).node_of(pfns).tolist() == [-1, -1]


def test_counters_are_the_integers_of_sysfs_and_the_cow_breaks(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    assert ksm_counters(fake.root) == {"run": 1, "pages_sharing": 5, "cow_ksm": 7}
    assert ksm_counters(ProcRoot(tmp_path / "none", tmp_path / "none")) == {}
