"""Captures through the module, with a device played by the test; the real one: tests/kernel."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from planner.capture import CaptureRequest, capture
from planner.capture import device as device_module
from planner.capture.device import PagehashDevice
from planner.capture.procfs import TargetExitedError
from planner.errors import DataError, MachineError, UsageError
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from tests.dump_builder import DumpBuilder, page
from tests.fakeproc import FakeProc, FakeVma
from tests.fakeproc import page as content
from tests.oracles.pagehash import page_hash

KEY = bytes(range(16))
SITE_KEY = SiteKey(KEY, key_id_of(KEY), Path("site.key"))
SECOND = 1_000_000_000
RW = int(RegionFlag.READ | RegionFlag.WRITE)
ZERO_HASH = page_hash(bytes(4096), KEY)


@dataclass
class FakeDevice:
    """Answers START and read() with prepared dumps, in short reads."""

    dumps: dict[int, DumpBuilder | bytes | Exception]
    path: Path = Path("/dev/ksm_planner")
    abi: tuple[int, int] = (1, 0)
    step: int = 100
    on_start: Callable[[int], None] = lambda pid: None
    started: list[tuple[int, int]] = field(default_factory=list)
    is_open: bool = False
    _left: bytes = b""

    def __enter__(self) -> FakeDevice:
        self.is_open = True
        return self

    def __exit__(self, *args: object) -> None:
        self.is_open = False

    def start(self, pid: int, key: bytes, flags: int = 0) -> None:
        assert self.is_open
        assert key == KEY
        self.started.append((pid, flags))
        self.on_start(pid)
        dump = self.dumps[pid]
        if isinstance(dump, Exception):
            raise dump
        self._left = dump if isinstance(dump, bytes) else dump.build()

    def read(self, n_bytes: int) -> bytes:
        n_bytes = min(n_bytes, self.step)
        data, self._left = self._left[:n_bytes], self._left[n_bytes:]
        return data


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    (tmp_path / "fake").mkdir()
    return FakeProc(tmp_path / "fake")


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, fake: FakeProc) -> Callable[..., FakeDevice]:
    """Makes a device appear whose dumps are given by pid."""
    def make(dumps: dict[int, DumpBuilder | bytes | Exception], **options: object) -> FakeDevice:
        made = FakeDevice(dumps, **options)
        fake.root.device.touch()
        monkeypatch.setattr(device_module, "PagehashDevice", lambda path: made)
        for pid in dumps:
            fake.add(pid, [])
        return made

    return make


def dump(mm_id: int, *pages: bytes, **options: object) -> DumpBuilder:
    builder = DumpBuilder(mm_id=mm_id, zero_hash=ZERO_HASH, key_id=int(key_id_of(KEY), 16),
                          **options)
    return builder.map(0x10000, 0x90000, *pages, flags=RW | RegionFlag.ADVISED, text=b"[heap]")


def run(fake: FakeProc, tmp_path: Path, *pids: int, on: object = None, **options: object) -> Trace:
    request = replace(CaptureRequest(key=SITE_KEY, out=tmp_path / "trace", pids=pids, force=True),
                      **options)
    return open_trace(capture(request, on, root=fake.root))


def rows(trace: Trace, mm_id: int = 0, snapshot: int = 0) -> list[tuple[int, ...]]:
    pages = trace.mm_pages(snapshot, mm_id)
    return [tuple(int(x) for x in row) for row in zip(
        pages.vpn, pages.hash, pages.flags, pages.frame_id, pages.numa_node, strict=True)]


def test_a_dump_becomes_a_snapshot_and_frame_ids_join_processes(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    f = PageFlag
    plug({
        7: dump(1, page(0x10000, 11, f.ANON | f.EXCLUSIVE, 0, 1),
                page(0x11000, 12, f.ANON, 2**63 + 5),
                page(0x12000, 0, f.ANON | f.SWAPPED, 0, 65535),
                page(0x13000, 13, f.ANON | f.KSM | f.YOUNG, 900)),
        8: dump(2, page(0x20000, 13, f.ANON | f.KSM, 900), page(0x21000, 12, f.ANON, 2**63 + 5)),
    })
    trace = run(fake, tmp_path, 7, 8)
    assert rows(trace, 0) == [
        (16, 11, f.ANON | f.EXCLUSIVE, -1, 1), (17, 12, f.ANON, 0, 0),
        (18, 0, f.ANON | f.SWAPPED, -1, -1), (19, 13, f.ANON | f.KSM | f.YOUNG, 1, 0)]
    assert rows(trace, 1) == [(32, 13, f.ANON | f.KSM, 1, 0), (33, 12, f.ANON, 0, 0)]
    region, = trace.mm_regions(0, 0)
    assert (region.start_vpn, region.end_vpn, region.name, region.labels) == (
        16, 144, "[heap]", {"content": "anon"})
    assert trace.provenance["source"] == "kmod"
    assert trace.provenance["abi"] == [1, 0]
    assert trace.hash_info.zero_hash == ZERO_HASH
    assert trace.snapshots[0].counters == {"run": 1, "pages_sharing": 5, "cow_ksm": 7}
    assert not trace.snapshots[0].is_partial


def test_unchanged_pages_make_no_record_in_the_next_snapshot(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, *(page(0x10000 + 4096 * i, i, 1, i) for i in range(50)))})
    trace = run(fake, tmp_path, 7, snapshots=3, every_ns=SECOND // 100)
    assert [s.n_stored for s in trace.snapshots] == [50, 0, 0]


@pytest.mark.parametrize(("include", "flags"), [("all", 0), ("anon", 6), ("advised", 14)])
def test_what_is_included_is_asked_of_the_module(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path, include: str, flags: int
) -> None:
    device = plug({7: dump(1, page(0x10000))})
    run(fake, tmp_path, 7, include=include)
    assert device.started == [(7, flags)]
    assert not device.is_open


def test_auto_takes_the_module_where_it_is_and_proc_elsewhere(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    entry = fake.frame(10, "anon", "anon_exclusive")
    device = plug({7: dump(1, page(0x10000))})
    fake.add(7, [FakeVma(16, [entry], content={0: content(3)})])
    assert run(fake, tmp_path, 7).provenance["source"] == "kmod"
    assert run(fake, tmp_path, 7, source="proc").provenance["source"] == "proc"
    assert len(device.started) == 1
    fake.root.device.unlink()
    assert run(fake, tmp_path, 7).provenance["source"] == "proc"


def test_a_module_that_cannot_be_used_is_an_error_and_no_silent_change_of_source(
    fake: FakeProc, tmp_path: Path
) -> None:
    fake.add(7, [])
    with pytest.raises(MachineError, match=r"not loaded; load it \(kmod/README.md\), or capture "
                                           r"with --source proc"):
        run(fake, tmp_path, 7, source="kmod")
    fake.root.device.touch()
    for source in ("auto", "kmod"):
        with pytest.raises(MachineError, match="not the device of the module"):
            run(fake, tmp_path, 7, source=source)
    with pytest.raises(UsageError, match="--source: 'ebpf' is none of auto, kmod, proc"):
        run(fake, tmp_path, 7, source="ebpf")


def test_two_processes_of_one_address_space_are_captured_once(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, page(0x10000)), 8: dump(1, page(0x10000)), 9: dump(3, page(0x10000))})
    trace = run(fake, tmp_path, 7, 8, 9, snapshots=2, every_ns=SECOND // 50)
    assert [mm.pid for mm in trace.mms] == [7, 9]
    assert [s.skipped["shared_mms"] for s in trace.snapshots] == [1, 1]
    assert not any(s.is_partial for s in trace.snapshots)


def test_a_process_that_ends_while_dumped_keeps_its_pages_and_marks_the_snapshot(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    ended = dump(1, page(0x10000), status=1, walked_to=0x20000)
    plug({7: ended, 8: dump(2, page(0x10000)), 9: dump(3, status=1, walked_to=0),
          10: TargetExitedError()})
    trace = run(fake, tmp_path, 7, 8, 9, 10, snapshots=2, every_ns=SECOND // 50)
    assert [(m.pid, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [(7, 0, 1), (8, 0, 2)]
    assert [s.is_partial for s in trace.snapshots] == [True, True]
    assert trace.snapshots[0].skipped == {"exited_processes": 3}


def test_a_pid_given_away_between_listing_and_dump_is_not_captured(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, page(0x10000)), 8: dump(2, page(0x10000))},
         on_start=lambda pid: fake.add(7, [], ticks=2000) if pid == 7 else None)
    trace = run(fake, tmp_path, 7, 8)
    assert [mm.pid for mm in trace.mms] == [8]
    assert trace.snapshots[0].skipped == {"exited_processes": 1}


def test_what_the_module_left_out_is_counted(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, page(0x10000), skipped={i: i + 1 for i in range(9)}),
          8: dump(2, page(0x10000), skipped={8: 100})})
    assert run(fake, tmp_path, 7, 8).snapshots[0].skipped == {
        "hugetlb_pages": 1, "secret_pages": 3, "special_pages": 7, "device_pages": 8,
        "busy_pages": 109}


@pytest.mark.parametrize("change", [{"zero_hash": 1}, {"key_id": 1}])
def test_a_module_that_hashes_otherwise_is_not_believed(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path, change: dict[str, int]
) -> None:
    plug({7: replace(dump(1, page(0x10000)), **change)})
    with pytest.raises(DataError, match="hashes otherwise than ksm-planner"):
        run(fake, tmp_path, 7)
    assert "trace" not in os.listdir(tmp_path)


def test_a_dump_that_is_cut_short_ends_the_capture_and_leaves_nothing(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, page(0x10000)).build()[:-32]})
    with pytest.raises(DataError, match=r"process 7: the dump is cut short"):
        run(fake, tmp_path, 7)
    assert os.listdir(tmp_path) == ["fake"]


@pytest.mark.parametrize(("answer", "kind", "message"), [
    (dump(2, page(0x10000)).build()[:-32], DataError, "process 8: the dump is cut short"),
    (b"\1" + dump(2, page(0x10000)).build()[1:], DataError, "process 8: .*; 2 of 9 snapshots"),
    (MachineError("the module refuses", where="here", instead="do that"), MachineError,
     "here: the module refuses; 2 of 9"),
    (OSError(errno.EIO, "Input/output error"), MachineError, "Input/output error; 2 of 9"),
])
def test_when_the_module_fails_later_the_finished_snapshots_are_kept(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path, answer: bytes | Exception,
    kind: type[Exception], message: str,
) -> None:
    def break_third(pid: int) -> None:
        if pid == 8 and len(device.started) == 6:
            device.dumps[8] = answer

    device = plug({7: dump(1, page(0x10000)), 8: dump(2, page(0x10000))}, on_start=break_third)
    with pytest.raises(kind, match=message) as raised:
        run(fake, tmp_path, 7, 8, snapshots=9, every_ns=SECOND // 50)
    assert f"2 of 9 snapshots are kept in {tmp_path / 'trace'}" in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["fake", "trace"]
    trace = open_trace(tmp_path / "trace")
    assert trace.status == "partial"
    assert len(trace.snapshots) == 2
    assert not any(snapshot.is_partial for snapshot in trace.snapshots)
    assert [(m.pid, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [(7, 0, 2), (8, 0, 2)]
    assert rows(trace, 1, 1) == rows(trace, 1, 0) != []


def test_progress_and_the_cpu_limit_are_looked_at_after_each_read(
    fake: FakeProc, plug: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    plug({7: dump(1, *(page(0x10000 + 4096 * i) for i in range(100)))}, step=32)
    shares: list[float] = []
    run(fake, tmp_path, 7, on=lambda what, share: shares.append(share))
    assert len(shares) >= 100
    assert shares == sorted(shares)
    assert shares[-1] <= 1


# The device itself.


class FakeIoctl:
    """fcntl.ioctl with prepared answers; keeps the arguments of START."""

    def __init__(self, abi_word: int = 0x10000, problem: int = 0) -> None:
        self.abi_word, self.problem = abi_word, problem
        self.given: list[bytes] = []
        self.buffers: list[bytearray] = []

    def __call__(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        if request == 0xB900:
            return self.abi_word
        assert request == 0xB901
        assert isinstance(argument, bytearray)
        self.given.append(bytes(argument))
        self.buffers.append(argument)
        if self.problem:
            raise OSError(self.problem, os.strerror(self.problem))
        return 0


@pytest.fixture
def device_file(tmp_path: Path) -> Path:
    path = tmp_path / "ksm_planner"
    path.write_bytes(b"the dump")
    return path


def test_start_sends_the_argument_of_the_header_and_forgets_the_key(
    device_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ioctl = FakeIoctl(0x1_0003)
    monkeypatch.setattr(device_module.fcntl, "ioctl", ioctl)
    with PagehashDevice(device_file) as device:
        assert device.abi == (1, 3)
        device.start(4711, KEY, 6)
        assert device.read(100) == b"the dump"
        assert device.read(100) == b""
    assert ioctl.given == [struct.pack("<IIIIQQ16sQQ", 64, 6, 4711, 0, 0, 2**64 - 4096, KEY, 0, 0)]
    assert ioctl.buffers == [bytearray(64)]


def test_a_signal_does_not_end_a_start(
    device_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ioctl = FakeIoctl(problem=errno.EINTR)
    real = FakeIoctl.__call__

    def once(fd: int, request: int, argument: bytearray | int = 0) -> int:
        if ioctl.given:
            ioctl.problem = 0
        return real(ioctl, fd, request, argument)

    monkeypatch.setattr(device_module.fcntl, "ioctl", once)
    with PagehashDevice(device_file) as device:
        device.start(7, KEY)
    assert len(ioctl.given) == 2
    assert ioctl.given[0] == ioctl.given[1]


@pytest.mark.parametrize(("problem", "error", "message"), [
    (errno.ESRCH, TargetExitedError, None),
    (errno.EINVAL, TargetExitedError, None),
    (errno.EPERM, MachineError, "no CAP_SYS_PTRACE.*or the kernel is locked down; run as root"),
    (errno.E2BIG, MachineError, "refuses to dump process 7: E2BIG.*--source proc"),
])
def test_what_start_refuses_is_told_apart(
    device_file: Path, monkeypatch: pytest.MonkeyPatch, problem: int,
    error: type[Exception], message: str | None
) -> None:
    ioctl = FakeIoctl(problem=problem)
    monkeypatch.setattr(device_module.fcntl, "ioctl", ioctl)
    with PagehashDevice(device_file) as device, pytest.raises(error, match=message):
        device.start(7, KEY)
    assert ioctl.buffers == [bytearray(64)]


@pytest.mark.parametrize(("word", "side"), [(0x2_0000, "ksm-planner"), (0x0_0009, "the module")])
def test_a_module_of_another_major_is_refused(
    device_file: Path, monkeypatch: pytest.MonkeyPatch, word: int, side: str
) -> None:
    monkeypatch.setattr(device_module.fcntl, "ioctl", FakeIoctl(word))
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MachineError, match=rf"ABI {word >> 16}\.{word & 9}, this version of "
                                           rf"ksm-planner speaks 1\.x; upgrade {side}, or"):
        PagehashDevice(device_file)
    assert len(os.listdir("/proc/self/fd")) == n_open


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's rights")
def test_without_permission_the_device_says_to_run_as_root() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ksm_planner"
        path.touch(0o600)
        Path(folder).chmod(0o755)
        code = ("import os, sys; from pathlib import Path\n"
                "from planner.capture.device import PagehashDevice\n"
                "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                f"PagehashDevice(Path({str(path)!r}))\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=False)
    assert "no permission to open it; run as root" in done.stderr


def test_the_device_code_is_loaded_only_for_the_device() -> None:
    code = ("import sys; sys.modules['fcntl'] = None\n"
            "import planner.capture, planner.capture.sources\n"
            "print('planner.capture.device' in sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "False"
