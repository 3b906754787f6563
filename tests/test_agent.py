from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.capture import CaptureRequest, capture
from planner.cli import main
from planner.cli.agent import packed_agent
from planner.errors import DataError, UsageError
from planner.importers.agent import import_agent, key_id_of
from planner.importers.common import ImportReport, LabelSource
from planner.importers.guest_classes import join_classes, read_classes
from planner.sitekey import SiteKey
from planner.sitekey import key_id_of as xxh64_key_id
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from tests.fakeproc import EXCLUSIVE, FILE, KPF, PRESENT, SWAP, FakeProc, FakeVma, page
from tests.fuzzing import n_examples
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

KEY = bytes(range(16))
SOURCE = Path(__file__).resolve().parent.parent / "planner" / "agent" / "agent.py"


def digest(content: bytes) -> int:
    """The page hash as docs/page-hash.md defines it."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=KEY).digest(), "little")


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    (tmp_path / "fake").mkdir()
    return FakeProc(tmp_path / "fake")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "site.key"
    path.write_text(KEY.hex() + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    path.write_bytes(packed_agent())
    return path


@pytest.fixture
def source() -> ModuleType:
    """The agent as a module, to look inside."""
    spec = importlib.util.spec_from_file_location("agent_source", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Agent:
    """Runs the zipapp as a user would, on a crafted /proc."""

    def __init__(self, pyz: Path, fake: FakeProc, folder: Path, key_file: Path) -> None:
        self.pyz, self.fake, self.folder, self.key_file = pyz, fake, folder, key_file
        self.stream = folder / "host.stream"

    def run(self, *arguments: str, key: Path | None = None, output: str | None = None
            ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(self.pyz), "-o", output or str(self.stream),
             "--key", str(key or self.key_file), "--proc", str(self.fake.root.proc), "--sys",
             str(self.fake.root.sys), *arguments], capture_output=True, timeout=60)

    def take(self, *arguments: str) -> Trace:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return open_trace(self.read().path)

    def read(self) -> ImportReport:
        return import_stream(self.stream, self.folder / "agent-trace", force=True)


def import_stream(stream: Path, out: Path, *, force: bool = False, key: SiteKey | None = None,
                  labels: LabelSource | None = None) -> ImportReport:
    return import_agent([stream], out=out, labels=labels or LabelSource(), key=key, force=force,
                        progress=None)


@pytest.fixture
def agent(pyz: Path, fake: FakeProc, tmp_path: Path, key_file: Path) -> Agent:
    return Agent(pyz, fake, tmp_path, key_file)


def rows(trace: Trace, mm_id: int = 0, snapshot: int = 0) -> list[tuple[int, int, PageFlag, int]]:
    pages = trace.mm_pages(snapshot, mm_id)
    return [(int(v), int(h), PageFlag(int(f)), int(i)) for v, h, f, i in zip(
        pages.vpn, pages.hash, pages.flags, pages.frame_id, strict=True)]


def every_kind(fake: FakeProc) -> None:
    """Processes, a machine and a cgroup with a page of every kind."""
    entries = [
        fake.frame(10, "anon", "anon_exclusive"), 0, fake.frame(11, "anon", count=3),
        fake.frame(12, "anon", "ksm", count=2), fake.frame(13, "zero_page", count=0),
        fake.frame(14, "anon", "thp", "head", "mlocked"), SWAP | 5 << 5, SWAP | 25, SWAP | 31,
        fake.frame(15, "anon", "swapcache"), fake.frame(16, "swapbacked") | FILE,
        fake.frame(12, "anon", "ksm", count=2), fake.frame(17, "anon", "ksm"),
    ]
    content = {0: page(1), 2: page(2), 3: page(3), 5: page(0), 9: page(4), 10: page(5),
               11: page(3), 12: page(6)}
    fake.add(7, [
        FakeVma(100, entries, "rd wr mg ac", content=content),
        FakeVma(200, [fake.frame(20, "anon")], "rd wr", "[heap]", content={0: page(9)}),
        FakeVma(300, [fake.frame(21) | FILE], "rd ex", "/lib/x.so", 5, {0: page(8)}),
        FakeVma(400, [fake.frame(22, "swapbacked", count=2) | FILE], "rd wr sh ms",
                "/dev/shm/pool", 6, {0: page(7)}),
        FakeVma(500, [fake.frame(23)], "rd pf io de", "[vvar]", 0, {0: page(7)}),
        FakeVma(200_000, [0] * 70_000 + [fake.frame(24, "anon")], "rd wr", "[stack]", 0,
                {70_000: page(2)}),
    ])
    fake.add(8, [FakeVma(100, [fake.frame(11, "anon", count=3)] * 2, content={
        0: page(2), 1: page(2)})], comm="child \x1b[2J")
    fake.add(9, [FakeVma(16, [fake.frame(30, "anon")], "rd wr mg", content={0: page(1)}),
                 FakeVma(1024, [fake.frame(31, "anon")] + [0] * 255, "rd wr mg",
                         content={0: page(1)})],
             comm="qemu", cmdline=("qemu-system-x86_64", "-name", "guest=web,,1,process=x",
                                   "-m", "1"))
    folder = fake.root.sys / "fs/cgroup/pod/web"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("8\n")


def test_the_agent_is_one_file_for_python_3_9_without_imports_of_ours() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    names = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree)
              if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names | {"__future__"}
    # What came with Python 3.10 or later and could slip in.
    text = SOURCE.read_text()
    for newer in ("strict=", "pairwise", "slots=True", "kw_only", "removesuffix(b", "file_digest",
                  "match text", "ExceptionGroup", "anext(", "bit_count"):
        assert newer not in text.replace("(strict= came", "")


def test_the_command_writes_the_same_agent_each_time(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["capture", "agent"]) == 0
    written = capfdbinary.readouterr().out
    assert written == packed_agent()
    assert main(["capture", "agent", "-o", str(tmp_path / "a.pyz")]) == 0
    assert (tmp_path / "a.pyz").read_bytes() == written
    assert os.access(tmp_path / "a.pyz", os.X_OK)
    assert main(["capture", "agent", "-o", str(tmp_path / "a.pyz")]) == 2
    assert main(["capture", "agent", "--pid", "1"]) == 2
    assert len(written) < 40_000


def test_key_ids_and_hashes_match_the_test_vectors_of_the_page() -> None:
    text = (SOURCE.parents[2] / "docs/page-hash.md").read_text()
    section = text[text.index("## blake2b-64"):]
    found = [[cell.strip(" `") for cell in line.split("|")[1:-1]]
             for line in section.splitlines() if line.startswith("| `")]
    pages = {"zero": bytes(4096), "ones": b"\xff" * 4096,
             "i & 255": bytes(i & 255 for i in range(4096))}
    assert len(found) >= 8
    for key_hex, what, value in found:
        key = bytes.fromhex(key_hex)
        if what == "key id":
            assert key_id_of(key) == value
        else:
            state = hashlib.blake2b(pages[what], digest_size=8, key=key)
            assert f"{int.from_bytes(state.digest(), 'little'):016x}" == value


def test_every_kind_of_page_gets_its_flags_hash_and_frame(agent: Agent) -> None:
    f = PageFlag
    every_kind(agent.fake)
    trace = agent.take("--pid", "7", "--include", "advised")
    assert rows(trace) == [
        (100, digest(page(1)), f.ANON | f.EXCLUSIVE, -1),
        (102, digest(page(2)), f.ANON, 0),
        (103, digest(page(3)), f.ANON | f.KSM, 1),
        (104, digest(page(0)), f.ZERO | f.ZERO_PAGE, -1),
        (105, digest(page(0)),
         f.ANON | f.ZERO | f.THP | f.COMPOUND | f.LOCKED | f.EXCLUSIVE, -1),
        (106, 0, f.ANON | f.SWAPPED, -1),
        (107, 0, f.ANON | f.MIGRATION, -1),
        (109, digest(page(4)), f.ANON | f.SWAPCACHE | f.EXCLUSIVE, -1),
        (111, digest(page(3)), f.ANON | f.KSM, 1),
        (112, digest(page(6)), f.ANON | f.KSM | f.EXCLUSIVE, -1),
    ]
    assert trace.hash_info.algorithm == "blake2b-64"
    assert trace.hash_info.key_id == key_id_of(KEY)
    assert trace.hash_info.zero_hash == digest(page(0))
    assert stat.S_IMODE(agent.stream.stat().st_mode) == 0o600


@pytest.mark.parametrize("include", ["advised", "anon", "all"])
def test_the_agent_sees_what_a_capture_sees(agent: Agent, tmp_path: Path, include: str) -> None:
    every_kind(agent.fake)
    mine = agent.take("--pid", "7", "--qemu", "--cgroup", "/pod/web", "--include", include)
    request = CaptureRequest(
        key=SiteKey(KEY, xxh64_key_id(KEY), Path("k")), out=tmp_path / "capture", pids=(7,),
        cgroups=("/pod/web",), qemu=True, include=include)
    its = open_trace(capture(request, root=agent.fake.root))
    assert mine.guests == its.guests
    assert [(m.guest_id, m.pid) for m in mine.mms] == [(m.guest_id, m.pid) for m in its.mms]
    assert mine.regions == its.regions
    assert any(r.flags & RegionFlag.GUEST_RAM for r in mine.regions)
    assert mine.snapshots[0].counters == its.snapshots[0].counters
    other: dict[int, int] = {}
    for mm in its.mms:
        a, b = mine.mm_pages(0, mm.mm_id), its.mm_pages(0, mm.mm_id)
        for column in ("vpn", "flags", "frame_id", "numa_node", "has_hash"):
            assert np.array_equal(getattr(a, column), getattr(b, column)), column
        for x, y in zip(a.hash.tolist(), b.hash.tolist(), strict=True):
            assert other.setdefault(x, y) == y
    # Equal pages under one hash are equal under the other, and only those.
    assert len(set(other.values())) == len(other) > 2
    for name in ("kernel", "ksm", "memory_bytes", "include", "every_ns"):
        if name != "every_ns":
            assert mine.provenance[name] == its.provenance[name]


def test_absent_pages_between_present_ones_are_never_read(
    fake: FakeProc, source: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    key_file: Path
) -> None:
    present = {0, 1, 5, 6, 7, 600, 5000, 5001, 140_000}
    entries = [0] * 140_001
    for index in present:
        entries[index] = fake.frame(200 + index % 1000, "anon", "anon_exclusive")
    fake.add(7, [FakeVma(16, entries, content={140_000: page(3)})])
    touched: list[int] = []
    real = os.preadv

    def watch(fd: int, buffers: list[memoryview], offset: int) -> int:
        n_bytes = sum(len(buffer) for buffer in buffers)
        touched.extend(range(offset // 4096, (offset + n_bytes) // 4096))
        return real(fd, buffers, offset)

    monkeypatch.setattr(source.os, "preadv", watch)
    assert source.main(["--pid", "7", "-o", str(tmp_path / "s"), "--key", str(key_file), "--proc",
                        str(fake.root.proc), "--sys", str(fake.root.sys)]) == 0
    assert sorted(touched) == sorted(16 + index for index in present)
    assert "process_vm_readv" not in SOURCE.read_text()


def test_a_page_that_moves_each_time_is_unreadable_and_one_that_moves_once_is_read_again(
    fake: FakeProc, source: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    key_file: Path
) -> None:
    entry = [fake.frame(40 + i, "anon") for i in range(6)]
    fake.add(7, [FakeVma(16, entry[:3], content={0: page(1), 1: page(2), 2: page(3)})])
    n_reads = 0
    real = source.Pagemap.read

    def moving(self: object, start: int, end: int) -> bytes:
        nonlocal n_reads
        raw = bytearray(real(self, start, end))
        # Page 0 moves each time, page 1 after the first look, page 2 is unmapped after it.
        raw[0:8] = struct.pack("=Q", entry[n_reads % 2])
        if n_reads:
            raw[8:16] = struct.pack("=Q", entry[4])
            raw[16:24] = bytes(8)
        n_reads += 1
        return bytes(raw)

    monkeypatch.setattr(source.Pagemap, "read", moving)
    stream = tmp_path / "s"
    assert source.main(["--pid", "7", "-o", str(stream), "--key", str(key_file), "--proc",
                        str(fake.root.proc), "--sys", str(fake.root.sys)]) == 0
    report = import_stream(stream, tmp_path / "t")
    assert rows(open_trace(report.path)) == [
        (16, 0, PageFlag.ANON | PageFlag.UNREADABLE, -1),
        (17, digest(page(2)), PageFlag.ANON | PageFlag.EXCLUSIVE, -1)]
    assert report.skipped == {"moved_pages": 1}


def one_page(fake: FakeProc, pid: int = 7, byte: int = 1, **options: object) -> None:
    fake.add(pid, [FakeVma(16, [fake.frame(10 + pid, "anon")], content={0: page(byte)})],
             **options)


def test_a_stream_is_gone_on_with_by_resume(agent: Agent) -> None:
    one_page(agent.fake, 7, 1)
    one_page(agent.fake, 8, 2)
    assert agent.run("--pid", "7", "--pid", "8", "--snapshots", "2", "--every", "20ms"
                     ).returncode == 0
    before = agent.stream.read_bytes()
    # A cut amid a third snapshot, and what a crash may leave behind it.
    agent.stream.write_bytes(before[:-40] + b"\0" * 1000)
    one_page(agent.fake, 8, 3)
    trace = agent.take("--pid", "7", "--pid", "8", "--snapshots", "4", "--every", "20ms",
                       "--resume")
    assert [len(trace.mm_pages(k, 0)) for k in range(4)] == [1, 1, 1, 1]
    assert [rows(trace, 1, k)[0][1] for k in range(4)] == [
        digest(page(n)) for n in (2, 2, 3, 3)]
    assert trace.status == "complete"
    assert [(m.pid, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [
        (7, 0, 4), (8, 0, 4)]
    done = agent.run("--pid", "7", "--snapshots", "4", "--resume")
    assert done.returncode == 2
    assert b"it holds 4 snapshots already; ask for more with --snapshots" in done.stderr


def test_a_reused_pid_is_a_new_address_space_when_resumed(agent: Agent) -> None:
    one_page(agent.fake, 7, 1, ticks=1000)
    assert agent.run("--pid", "7").returncode == 0
    one_page(agent.fake, 7, 2, ticks=2000)
    trace = agent.take("--pid", "7", "--resume", "--snapshots", "2")
    assert [(m.pid, m.first_snapshot, m.end_snapshot) for m in trace.mms] == [(7, 0, 1), (7, 1, 2)]
    assert len(trace.guests) == 1


def test_a_cut_stream_is_imported_up_to_its_last_whole_snapshot(agent: Agent) -> None:
    one_page(agent.fake)
    assert agent.run("--pid", "7", "--snapshots", "3", "--every", "20ms").returncode == 0
    whole = agent.stream.read_bytes()
    seen = set()
    for length in (*range(0, len(whole), 17), len(whole) - 1):
        agent.stream.write_bytes(whole[:length])
        try:
            report = agent.read()
        except DataError:
            seen.add(0)
            continue
        seen.add(report.n_snapshots)
        assert "the stream ends early" in report.notes[0]
        assert open_trace(report.path).status == "partial"
    assert seen == {0, 1, 2, 3}


def test_an_interrupted_agent_keeps_whole_snapshots_and_says_how_to_go_on(agent: Agent) -> None:
    one_page(agent.fake)
    with subprocess.Popen(
            [sys.executable, "-I", "-S", str(agent.pyz), "-o", str(agent.stream), "--key",
             str(agent.key_file), "--proc", str(agent.fake.root.proc), "--sys",
             str(agent.fake.root.sys), "--pid", "7", "--snapshots", "9", "--every", "1h"],
            stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"snapshot 1" in process.stderr.readline()
        process.terminate()
        message = process.stderr.read()
        assert process.wait(30) == 130
    assert b"1 of 9 snapshots are kept; pass --resume to go on" in message
    report = agent.read()
    assert report.n_snapshots == 1
    assert open_trace(report.path).status == "partial"


def test_a_stream_may_go_through_a_pipe(agent: Agent, tmp_path: Path) -> None:
    one_page(agent.fake)
    done = agent.run("--pid", "7", output="-")
    assert done.returncode == 0
    piped = tmp_path / "piped"
    piped.write_bytes(done.stdout)
    assert import_stream(piped, tmp_path / "t").n_pages == 1


def test_a_target_that_has_gone_is_told_and_the_others_go_on(agent: Agent) -> None:
    one_page(agent.fake, 7)
    one_page(agent.fake, 8)
    agent.fake.root.of(8, "smaps").write_text("")
    trace = agent.take("--pid", "7", "--pid", "8")
    assert [m.pid for m in trace.mms] == [7]
    assert trace.snapshots[0].is_partial
    assert trace.snapshots[0].skipped == {"exited_processes": 1}
    agent.stream.unlink()
    done = agent.run("--pid", "8")
    assert done.returncode == 3
    assert b"every target ended before a snapshot was finished" in done.stderr
    assert not agent.stream.exists()


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ((), 2, "nothing to capture is named"),
    (("--pid", "99"), 3, "--pid 99: no such process"),
    (("--qemu",), 3, "no QEMU process runs here"),
    (("--cgroup", "/none"), 3, "no such cgroup"),
    (("--pid", "7", "--cpu-limit", "0%"), 2, "not a share"),
    (("--pid", "7", "--every", "20"), 2, "not a duration"),
    (("--pid", "7", "--snapshots", "0"), 2, "not a positive number"),
    (("--pid", "7", "--guest-classes"), 2, "takes neither targets nor"),
    (("--pid", "7", "--resume"), 3, "cannot write: No such file"),
])
def test_the_agent_refuses_with_a_sentence(
    agent: Agent, arguments: tuple[str, ...], code: int, message: str
) -> None:
    one_page(agent.fake)
    done = agent.run(*arguments)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not agent.stream.exists()


@pytest.mark.parametrize(("text", "mode", "message"), [
    (KEY.hex(), 0o640, "others may access the site key (mode 0640); run chmod 600"),
    ("", 0o600, "the site key file is empty"),
    ("0" * 31, 0o600, "damaged: not one line of 32 hex digits"),
    ("0" * 40, 0o600, "damaged: not one line of 32 hex digits"),
])
def test_a_bad_key_file_is_refused_as_everywhere(
    agent: Agent, tmp_path: Path, text: str, mode: int, message: str
) -> None:
    one_page(agent.fake)
    path = tmp_path / "bad.key"
    path.write_text(text)
    path.chmod(mode)
    done = agent.run("--pid", "7", key=path)
    assert done.returncode == 3
    assert message in done.stderr.decode()
    assert not agent.stream.exists()


def test_a_key_is_made_on_first_use_and_serves_again(agent: Agent, tmp_path: Path) -> None:
    one_page(agent.fake)
    path = tmp_path / "new" / "site.key"
    assert agent.run("--pid", "7", key=path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_trace(agent.read().path).hash_info.key_id == key_id_of(
        bytes.fromhex(path.read_text()))
    assert os.listdir(path.parent) == ["site.key"]
    assert agent.run("--pid", "7", "--resume", "--snapshots", "2", key=path).returncode == 0


def test_outputs_that_are_there_or_no_files_are_refused(agent: Agent, tmp_path: Path) -> None:
    one_page(agent.fake)
    agent.stream.write_bytes(b"mine")
    done = agent.run("--pid", "7")
    assert (done.returncode, agent.stream.read_bytes()) == (2, b"mine")
    assert b"it exists already; pass --resume" in done.stderr
    done = agent.run("--pid", "7", "--resume")
    assert (done.returncode, agent.stream.read_bytes()) == (2, b"mine")
    assert b"not a stream of this agent" in done.stderr
    os.mkfifo(tmp_path / "fifo")
    assert b"not a regular file" in agent.run("--pid", "7", "--resume",
                                              output=str(tmp_path / "fifo")).stderr
    (tmp_path / "link").symlink_to(agent.stream)
    assert agent.run("--pid", "7", "--resume", output=str(tmp_path / "link")).returncode == 3
    assert agent.stream.read_bytes() == b"mine"


@pytest.mark.parametrize("frame", [
    (b"HEAD", b"[]"), (b"HEAD", b"{}"), (b"HEAD", b"x"), (b"GUST", b"{}"), (b"MMBG", b"[1]"),
    (b"MMBG", b'{"guest":"a","pid":[],"start_ticks":0,"mm":0}'), (b"SNEN", b"[" * 100_000)])
def test_resuming_what_is_no_stream_of_it_is_refused_and_changes_nothing(
    agent: Agent, source: ModuleType, frame: tuple[bytes, bytes]
) -> None:
    one_page(agent.fake)
    assert agent.run("--pid", "7").returncode == 0
    with agent.stream.open("rb") as stream:
        stream.seek(len(source.MAGIC))
        frames = [(kind, payload) for kind, payload, _ in source.frames_of(stream)]
    agent.stream.write_bytes(packed(source, [*frames[:1], frame, *frames[1:]]))
    before = agent.stream.read_bytes()
    done = agent.run("--pid", "7", "--resume", "--snapshots", "2")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"error: " in done.stderr
    assert agent.stream.read_bytes() == before


def test_resuming_with_another_key_is_refused(agent: Agent, tmp_path: Path) -> None:
    one_page(agent.fake)
    assert agent.run("--pid", "7").returncode == 0
    before = agent.stream.read_bytes()
    done = agent.run("--pid", "7", "--resume", "--snapshots", "2", key=tmp_path / "other.key")
    assert done.returncode == 2
    assert b"name the same key with --key" in done.stderr
    assert agent.stream.read_bytes() == before


def test_hidden_frame_numbers_are_an_error(agent: Agent) -> None:
    agent.fake.add(7, [FakeVma(16, [PRESENT | EXCLUSIVE], content={0: page(1)})])
    done = agent.run("--pid", "7")
    assert done.returncode == 3
    assert b"the kernel hides frame numbers; run as root" in done.stderr
    assert not agent.stream.exists()


@pytest.mark.parametrize("limit", [0.1, 0.5, None])
def test_the_cpu_limit_is_kept(
    source: ModuleType, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    class Clock:
        used = now = slept = 0.0

        def process_time(self) -> float:
            return self.used

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.slept += seconds
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(source, "time", clock)
    pace = source.Pace(limit)
    for _ in range(50):
        clock.used += 0.004
        clock.now += 0.004
        pace.wait()
    if limit is None:
        assert clock.slept == 0
    else:
        assert clock.used / clock.now == pytest.approx(limit, rel=0.02)


def test_labels_and_the_key_are_looked_at_when_importing(
    agent: Agent, tmp_path: Path
) -> None:
    every_kind(agent.fake)
    assert agent.run("--pid", "7", "--qemu").returncode == 0
    labels = LabelSource({"site": "x"}, {"web,1": {"tenant": "a"}, "nobody": {"tenant": "b"}})
    report = import_stream(agent.stream, tmp_path / "t", labels=labels,
                           key=SiteKey(KEY, "", Path("k")))
    assert [dict(g.labels) for g in open_trace(report.path).guests] == [
        {"site": "x"}, {"site": "x", "tenant": "a"}]
    assert any("nobody" in note for note in report.notes)
    with pytest.raises(UsageError, match="made with the key"):
        import_stream(agent.stream, tmp_path / "u", key=SiteKey(bytes(16), "", Path("k")))
    with pytest.raises(UsageError, match="one stream at a time"):
        import_agent([agent.stream] * 2, out=tmp_path / "u", labels=LabelSource(), key=None,
                     force=False, progress=None)
    with pytest.raises(UsageError, match="exists already"):
        import_stream(agent.stream, tmp_path / "t")
    assert main(["trace", "import", "--format", "agent", str(agent.stream), "-o",
                 str(tmp_path / "v"), "--label", "tenant=a"]) == 0
    assert open_trace(tmp_path / "v").guests[0].labels == {"tenant": "a"}


def test_a_key_that_is_only_compared_with_is_never_made(agent: Agent, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    one_page(agent.fake)
    assert agent.run("--pid", "7").returncode == 0
    missing = tmp_path / "wrong-path.key"
    assert main(["trace", "import", "--format", "agent", str(agent.stream), "--key", str(missing),
                 "-o", str(tmp_path / "t")]) == 3
    assert "there is no site key file" in capsys.readouterr().err
    assert not missing.exists()
    assert not (tmp_path / "t").exists()



def test_the_commands_of_the_documentation_work(
    fake: FakeProc, source: ModuleType, tmp_path: Path, key_file: Path,
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = (SOURCE.parents[2] / "docs/importing.md").read_text()
    section = text[text.index("\n## The agent"):]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
                for line in block.splitlines()]
    assert len(commands) == 8
    fake.add(9, [FakeVma(1024, [fake.frame(31, "anon")] + [0] * 255, "rd wr mg",
                         content={0: page(1)})],
             comm="qemu", cmdline=("qemu-kvm", "-name", "web1", "-m", "1"))
    (fake.root.proc / "iomem").write_text("00000000-000fffff : System RAM\n")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.split()
        if words[:3] == ["sudo", "python3", "agent.pyz"]:
            done = subprocess.run(
                [sys.executable, "-I", "-S", *words[2:], "--proc", str(fake.root.proc), "--sys",
                 str(fake.root.sys)], capture_output=True, timeout=60)
            assert done.returncode == 0, done.stderr
        else:
            assert words[0] == "planner"
            capfdbinary.readouterr()
            if ">" in words:
                assert main(words[1:words.index(">")]) == 0
                Path(words[-1]).write_bytes(capfdbinary.readouterr().out)
            else:
                assert main(words[1:]) == 0
    assert len(open_trace(tmp_path / "traces/host1").snapshots) == 3
    joined = open_trace(tmp_path / "traces/host1-classes")
    assert joined.guests[0].labels == {"site": "north"}
    assert {r.labels["content"] for r in joined.regions} == {"guest-anon", "guest-unflagged"}
    for name in source.CLASSES:
        assert f"`{name}`" in section


# ---------------------------------------------------------------- damage


def sample(source: ModuleType) -> list[tuple[bytes, bytes]]:
    """The frames of a small stream: kind and payload."""
    out = io.BytesIO()
    stream = source.Stream(out)
    chunk = source.Chunk([16, 17, 40], [PRESENT | 1] * 3)
    chunk.hashes, chunk.flags = [5, 6, 0], [1, 1, int(PageFlag.SWAPPED)]
    stream.document(b"HEAD", {
        "format": 1, "kind": "capture", "algorithm": "blake2b-64", "bits": 64,
        "key_id": "00000001", "zero_hash": "0" * 16, "boot": "", "provenance": {"kernel": "6"}})
    stream.document(b"SNAP", {"snapshot": 0, "start_ns": 10, "counters": {"run": 1}})
    stream.document(b"GUST", {"guest": 0, "name": "a", "kind": "vm", "memory_bytes": 4096})
    stream.document(b"MMBG", {"mm": 0, "guest": 0, "pid": 7, "comm": "c", "start_ticks": 3})
    stream.document(b"REGN", [[16, 48, 1, "", "anon"]])
    stream.pages(chunk)
    stream.document(b"MMEN", {"mm": 0, "n_pages": 3})
    stream.document(b"SNEN", {"snapshot": 0, "end_ns": 20, "is_partial": False, "n_pages": 3,
                              "skipped": {}})
    stream.document(b"DONE", {"status": "complete", "n_snapshots": 1})
    out.seek(len(source.MAGIC))
    return [(kind, payload) for kind, payload, _ in source.frames_of(out)]


def packed(source: ModuleType, frames: list[tuple[bytes, bytes]]) -> bytes:
    out = io.BytesIO()
    stream = source.Stream(out)
    for kind, payload in frames:
        stream.write(kind, payload)
    return out.getvalue()


def must_fail_well(path: Path, out: Path) -> bool:
    """Import; True when it was refused, naming the file, with nothing left behind.

    Any other exception passes through and fails the test.
    """
    error: DataError | None = None
    try:
        import_stream(path, out, force=True)
    except DataError as caught:
        error = caught
    if error is None:
        open_trace(out)
        return False
    assert str(path) in str(error)
    assert not list(out.parent.glob("*.partial"))
    return True


def test_the_sample_is_a_stream(source: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(packed(source, sample(source)))
    assert not must_fail_well(tmp_path / "s", tmp_path / "t")
    assert [row[:2] for row in rows(open_trace(tmp_path / "t"))] == [(16, 5), (17, 6), (40, 0)]


def test_every_flipped_bit_is_noticed(source: ModuleType, tmp_path: Path) -> None:
    whole = packed(source, sample(source))
    path = tmp_path / "s"
    chosen = random.Random(1)
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(broken)
        if not must_fail_well(path, tmp_path / "t"):
            # The last frame's length may reach beyond the end: it is a cut stream then.
            assert open_trace(tmp_path / "t").status == "partial"


BAD_FRAMES = [
    (0, b'{"format":2}', "a stream of format 2"),
    (0, b"[]", "not a JSON object"),
    (0, b"[" * 100_000, "not JSON"),
    (0, b'{"format":1,"kind":"guest-classes"}', "of kind guest-classes"),
    (1, b'{"start_ns":-1,"counters":{}}', "start_ns is no number"),
    (1, b'{"start_ns":NaN,"counters":{}}', "not JSON"),
    (1, b'{"start_ns":1,"counters":{"run":' + b"9" * 30 + b"}}", "run is no number"),
    (1, b'{"start_ns":1,"counters":{"run":' + b"9" * 5000 + b"}}", "not JSON"),
    (2, b'{"guest":0,"name":"a","kind":"planet"}', "of no known kind"),
    (2, b'{"guest":0,"name":7,"kind":"vm"}', "name is no text"),
    (3, b'{"mm":0,"guest":5,"pid":1,"comm":""}', "guest 5 is not described"),
    (4, b"[[16,16,0,\"\",\"\"]]", "regions must ascend"),
    (4, b"[[16,17,0]]", "a region has not five values"),
    (5, b"", "too short"),
    (5, struct.pack("<IQ", 1 << 31, 0), "no such number of pages"),
    (5, struct.pack("<IQ", 1, 0) + bytes(8) + b"xx", "cannot be unpacked"),
    (5, struct.pack("<IQ", 1, 0) + bytes(8) + zlib.compress(bytes(50_000_000)), "another length"),
    (5, struct.pack("<IQ", 2, 0) + bytes(16) + zlib.compress(bytes(22)), "do not ascend"),
    (6, b'{"mm":0,"n_pages":4}', "pages are missing"),
    (7, b'{"end_ns":20,"n_pages":9,"skipped":{}}', "pages are missing"),
    (7, b'{"end_ns":20,"n_pages":3,"skipped":[]}', "skipped is no table"),
]


@pytest.mark.parametrize(("number", "payload", "message"), BAD_FRAMES)
def test_frames_that_make_no_sense_are_refused_with_file_and_byte(
    source: ModuleType, tmp_path: Path, number: int, payload: bytes, message: str
) -> None:
    frames = sample(source)
    frames[number] = (frames[number][0], payload)
    path = tmp_path / "s"
    path.write_bytes(packed(source, frames))
    with pytest.raises(DataError, match=message) as caught:
        import_stream(path, tmp_path / "t")
    assert str(path) in caught.value.where
    assert sorted(os.listdir(tmp_path)) == ["s"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=n_examples(150))
@given(st.data())
def test_frames_changed_under_right_checksums_never_break_the_reader(
    source: ModuleType, tmp_path: Path, data: st.DataObject
) -> None:
    frames = sample(source)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frames) - 1))
        kind, payload = frames[at]
        how = data.draw(st.sampled_from(["drop", "twice", "swap", "bytes", "value", "kind"]))
        if how == "drop" and len(frames) > 1:
            del frames[at]
        elif how == "twice":
            frames.insert(at, frames[at])
        elif how == "swap":
            frames[at], frames[0] = frames[0], frames[at]
        elif how == "bytes":
            raw = bytearray(payload or b"x")
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            frames[at] = (kind, bytes(raw))
        elif how == "kind":
            frames[at] = (data.draw(st.sampled_from([b"PAGE", b"SNEN", b"XXXX"])), payload)
        elif payload[:1] == b"{":
            try:
                document = json.loads(payload)
            except ValueError:
                continue
            if isinstance(document, dict) and document:
                name = data.draw(st.sampled_from(sorted(document)))
                document[name] = data.draw(st.one_of(
                    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.text(),
                    st.lists(st.integers()), st.dictionaries(st.text(), st.integers())))
                frames[at] = (kind, json.dumps(document).encode())
    path = tmp_path / "s"
    path.write_bytes(packed(source, frames))
    must_fail_well(path, tmp_path / "t")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=n_examples(100))
@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_stream_are_refused(
    source: ModuleType, tmp_path: Path, raw: bytes, has_magic: bool
) -> None:
    path = tmp_path / "s"
    path.write_bytes((source.MAGIC if has_magic else b"") + raw)
    assert must_fail_well(path, tmp_path / "t")
    with pytest.raises(DataError):
        read_classes(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null", ".", "none"):
        with pytest.raises(DataError):
            import_stream(tmp_path / name, tmp_path / "t")
        with pytest.raises(DataError):
            read_classes(tmp_path / name)


# ---------------------------------------------------------------- guest classes


def classes_stream(source: ModuleType, path: Path, numbers: bytes, *, done: bool = True) -> Path:
    """A classes stream of these class numbers by frame."""
    out = io.BytesIO()
    stream = source.Stream(out)
    stream.document(b"HEAD", {"format": 1, "kind": "guest-classes", "page_bytes": 4096,
                              "classes": list(source.CLASSES), "start_ns": 5,
                              "n_frames": len(numbers), "provenance": {}})
    for at in range(0, len(numbers), 1 << 16):
        part = numbers[at:at + (1 << 16)]
        stream.write(b"CLAS", struct.pack("<QI", at, len(part)) + zlib.compress(part))
    if done:
        stream.document(b"DONE", {"status": "complete"})
    path.write_bytes(out.getvalue())
    return path


def test_guest_classes_come_from_page_flags_and_the_memory_map(
    agent: Agent, source: ModuleType
) -> None:
    names = source.CLASSES
    wanted = {
        1: (1 << 10, "free"), 2: (1 << 7, "slab"), 3: (1 << 26, "page-tables"),
        4: (1 << 5 | 1 << 3, "page-cache"), 5: (1 << 5 | 1 << 14, "shmem"),
        6: (KPF["anon"] | 1 << 5 | 1 << 14, "anon"), 7: (KPF["huge"], "hugetlb"),
        8: (KPF["zero_page"], "zero-page"), 9: (1 << 23, "offline"), 10: (1 << 32, "reserved"),
        11: (1 << 20, "absent"), 12: (0, "unflagged"), 13: (1 << 3, "kernel-other"),
        14: (1 << 7, "kernel-text"), 15: (0, "kernel-rodata"), 16: (0, "kernel-data"),
        18: (1 << 11 | 1 << 3, "page-cache"), 19: (1 << 19, "offline")}
    for pfn, (kpf, _) in wanted.items():
        agent.fake.flags[pfn] = kpf
    agent.fake.flags[17] = 1 << 10
    agent.fake.write_frames()
    (agent.fake.root.proc / "iomem").write_text(
        "00001000-00010fff : System RAM\n  0000e000-0000efff : Kernel code\n"
        "  0000f000-0000ffff : Kernel rodata\n  00010000-00010fff : Kernel data\n"
        "00012000-00013fff : System RAM\n")
    done = agent.run("--guest-classes")
    assert done.returncode == 0, done.stderr
    classes = read_classes(agent.stream)
    assert classes.is_complete
    assert stat.S_IMODE(agent.stream.stat().st_mode) == 0o600
    found = {pfn: classes.names[number] for pfn, number in enumerate(classes.numbers)}
    # Frames 0 and 17 are outside of the guest's RAM, whatever their flags say.
    assert found == {0: "absent", 17: "absent"} | {k: name for k, (_, name) in wanted.items()}
    assert names == classes.names


def test_a_hidden_memory_map_is_told(agent: Agent) -> None:
    (agent.fake.root.proc / "iomem").write_text("00000000-00000000 : System RAM\n")
    (agent.fake.root.proc / "zoneinfo").write_text(
        "Node 0, zone   DMA\n        spanned  32\n  start_pfn:           0\n")
    done = agent.run("--guest-classes")
    assert done.returncode == 0
    assert b"kernel text is not told apart" in done.stderr
    assert len(read_classes(agent.stream).numbers) == 32


@pytest.fixture
def host(agent: Agent, tmp_path: Path) -> Trace:
    """A host's trace: machine `web` with 1 MiB of RAM at page 1024, of which 4 pages are there."""
    entries = [agent.fake.frame(50 + i, "anon") for i in range(4)] + [0] * 252
    agent.fake.add(9, [FakeVma(16, [agent.fake.frame(49, "anon")], content={0: page(9)}),
                       FakeVma(1024, entries, "rd wr mg",
                               content={i: page(i) for i in range(4)})],
                   comm="qemu", cmdline=("qemu-kvm", "-name", "web", "-m", "1"))
    return agent.take("--qemu", "--snapshots", "2", "--every", "20ms")


def test_joining_splits_the_memory_of_a_guest_by_class(
    host: Trace, source: ModuleType, tmp_path: Path
) -> None:
    number = {name: i for i, name in enumerate(source.CLASSES)}
    numbers = bytes([number["kernel-text"]] * 2 + [number["anon"]] * 2 + [number["free"]] * 200)
    stream = classes_stream(source, tmp_path / "c", numbers)
    out = tmp_path / "joined"
    assert main(["trace", "join", str(host.path), str(stream), "--guest", "web", "-o",
                 str(out)]) == 0
    joined = open_trace(out)
    assert [(r.start_vpn, r.end_vpn, r.labels["content"], r.first_snapshot, r.end_snapshot)
            for r in joined.regions] == [
        (16, 17, "anon", 0, 2), (1024, 1026, "guest-kernel-text", 0, 2),
        (1026, 1028, "guest-anon", 0, 2), (1028, 1228, "guest-free", 0, 2),
        (1228, 1280, "guest-ram", 0, 2)]
    assert all(r.flags & RegionFlag.GUEST_RAM for r in joined.regions[1:])
    assert [rows(joined, 0, k) for k in range(2)] == [rows(host, 0, k) for k in range(2)]
    assert [s.start_ns for s in joined.snapshots] == [s.start_ns for s in host.snapshots]
    assert joined.provenance["guest_classes"] == {"web": {"start_ns": 5, "n_frames": 204}}
    report = join_classes(host.path, "web", stream, tmp_path / "again")
    assert report.notes == ["4 of 4 frames that the guest uses (100.0%) are in the host's trace; "
                            "4 regions"]
    wrong = join_classes(host.path, "web", classes_stream(
        source, tmp_path / "d", bytes([number["anon"]] * 256)), tmp_path / "wrong")
    assert "4 of 256 frames" in wrong.notes[0]
    assert "check that both are of one run" in wrong.notes[0]


def test_joins_that_cannot_be_are_refused(
    host: Trace, source: ModuleType, tmp_path: Path
) -> None:
    stream = classes_stream(source, tmp_path / "c", bytes([1] * 256))
    with pytest.raises(UsageError, match="no guest"):
        join_classes(host.path, "db", stream, tmp_path / "o")
    with pytest.raises(DataError, match="RAM up to frame 300"):
        join_classes(host.path, "web", classes_stream(source, tmp_path / "d", bytes([1] * 300)),
                     tmp_path / "o")
    with pytest.raises(UsageError, match="no offset"):
        join_classes(host.path, "web", stream, tmp_path / "o", offset_bytes=4096)
    with pytest.raises(DataError, match="of kind capture"):
        join_classes(host.path, "web", tmp_path / "host.stream", tmp_path / "o")
    joined = join_classes(host.path, "web", stream, tmp_path / "j").path
    with pytest.raises(DataError, match="joined before"):
        join_classes(joined, "web", stream, tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.partial").exists()
    plain = build_trace(tmp_path / "plain", [GuestPlan("web", {}, [MmPlan([pages_of([1, 2])])])])
    with pytest.raises(DataError, match="no region guest-ram"):
        join_classes(plain, "web", stream, tmp_path / "o")


def test_memory_above_four_gib_goes_on_behind_the_hole(source: ModuleType) -> None:
    from planner.importers.guest_classes import GuestClasses, _split
    from planner.trace import Guest, Region

    gib = 1 << 18
    numbers = np.zeros(4 * gib + 5 * gib, np.uint8)
    numbers[:3 * gib], numbers[4 * gib:] = 1, 9
    classes = GuestClasses(source.CLASSES, numbers, 0, True)
    guest = Guest(0, "big", "vm", {}, 8 << 30)
    region = Region(0, 0, 100, 100 + 8 * gib, 0, "", {"content": "guest-ram"}, 0, 1)
    parts = _split(region, classes, guest, None, Path("c"))
    assert [(p.start_vpn, p.end_vpn, p.labels["content"]) for p in parts] == [
        (100, 100 + 3 * gib, "guest-free"), (100 + 3 * gib, 100 + 8 * gib, "guest-anon")]
    larger = Region(0, 0, 100, 100 + 8 * gib + 512, 0, "", {"content": "guest-ram"}, 0, 1)
    with pytest.raises(DataError, match="say it with --offset"):
        _split(larger, classes, guest, None, Path("c"))
    parts = _split(larger, classes, guest, 512 * 4096, Path("c"))
    assert [(p.start_vpn, p.labels["content"]) for p in parts] == [
        (100, "guest-ram"), (612, "guest-free"), (612 + 3 * gib, "guest-anon")]


def test_a_cut_classes_stream_is_joined_with_a_notice(
    host: Trace, source: ModuleType, tmp_path: Path
) -> None:
    stream = classes_stream(source, tmp_path / "c", bytes([1] * 256), done=False)
    assert "was cut" in join_classes(host.path, "web", stream, tmp_path / "o").notes[0]


def test_every_cut_of_a_classes_stream_is_read_or_refused(
    source: ModuleType, tmp_path: Path
) -> None:
    path = classes_stream(source, tmp_path / "c", bytes([1] * 70_000))
    whole = path.read_bytes()
    lengths: Iterator[int] = iter(range(len(whole)))
    seen = set()
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            classes = read_classes(path)
        except DataError:
            seen.add(0)
        else:
            assert not classes.is_complete
            seen.add(len(classes.numbers))
    assert seen == {0, 65536, 70_000}
    began = time.monotonic()
    path.write_bytes(packed(source, [(b"HEAD", json.dumps({
        "format": 1, "kind": "guest-classes", "page_bytes": 4096, "classes": ["absent"],
        "start_ns": 0, "n_frames": 1 << 32, "provenance": {}}).encode()),
        (b"CLAS", struct.pack("<QI", 0, 1 << 16) + zlib.compress(bytes(1 << 26)))]))
    with pytest.raises(DataError, match="another length"):
        read_classes(path)
    assert time.monotonic() - began < 5
