from __future__ import annotations

import os
from pathlib import Path

import pytest

from planner.capture.procfs import Vma
from planner.capture.targets import Target, guest_ram, processes_of, resolve_targets
from planner.errors import MachineError, UsageError
from planner.trace import RegionFlag
from tests.fakeproc import FakeProc

RW = int(RegionFlag.READ | RegionFlag.WRITE)


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    fake = FakeProc(tmp_path)
    fake.add(10, [], comm="redis")
    fake.add(20, [], comm="qemu-system-x86", cmdline=(
        "/usr/bin/qemu-system-x86_64", "-name", "guest=web-1,debug-threads=on", "-m", "192"))
    fake.add(30, [], comm="kvm", cmdline=("/usr/bin/kvm", "-m", "size=1.5G,slots=2"))
    fake.add(40, [], comm="editor", cmdline=("vi", "qemu-system-x86_64"))
    return fake


def make_cgroup(fake: FakeProc, name: str, *pids: int) -> Path:
    folder = fake.root.sys / "fs/cgroup" / name
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_processes_and_machines_become_guests_of_their_kind(fake: FakeProc) -> None:
    assert resolve_targets(fake.root, pids=[10, 10, 20]) == [
        Target("redis-10", "process", (10,)),
        Target("web-1", "vm", (20,), memory_bytes=192 << 20),
    ]


def test_qemu_finds_all_machines_and_only_them(fake: FakeProc) -> None:
    found = resolve_targets(fake.root, qemu=True)
    assert [(t.name, t.kind, t.pids, t.memory_bytes) for t in found] == [
        ("web-1", "vm", (20,), 192 << 20),
        ("kvm-30", "vm", (30,), 1536 << 20),
    ]
    assert [t.pids for t in resolve_targets(fake.root, pids=[30], qemu=True)] == [(30,), (20,)]


@pytest.mark.parametrize(
    ("arguments", "name", "memory_mib"),
    [
        (("-name", "a,,b,process=x"), "a,b", 128),
        (("-m", "512M", "-name", "one", "-m", "1G"), "one", 1024),
        (("-m", "4194304k"), "", 4096),
        (("-m", "0.5g"), "", 512),
        (("-m", "nonsense"), "", 128),
        (("-m",), "", 128),
    ],
)
def test_name_and_memory_follow_the_syntax_of_qemu(
    fake: FakeProc, arguments: tuple[str, ...], name: str, memory_mib: int
) -> None:
    fake.add(50, [], comm="q", cmdline=("qemu-system-aarch64", *arguments))
    target, = resolve_targets(fake.root, pids=[50])
    assert target.name == (name or "q-50")
    assert target.memory_bytes == memory_mib << 20


def test_a_cgroup_is_one_guest_with_all_processes_below_it(fake: FakeProc) -> None:
    folder = make_cgroup(fake, "memory/app/web", 40, 10)
    make_cgroup(fake, "memory/app/web/inner", 20, 999, os.getpid())
    for name in (str(folder), "memory/app/web", "app/web", "/app/web/"):
        target, = resolve_targets(fake.root, cgroups=[name])
        assert (target.name, target.kind, target.cgroup) == ("web", "container", folder)
    processes = processes_of(fake.root, target)
    assert [(p.pid, p.comm) for p in processes] == [
        (10, "redis"), (20, "qemu-system-x86"), (40, "editor")]
    (folder / "inner/cgroup.procs").unlink()
    assert [p.pid for p in processes_of(fake.root, target)] == [10, 40]


def test_cgroups_of_one_name_are_told_apart_by_their_parents(fake: FakeProc) -> None:
    make_cgroup(fake, "a/web", 10)
    make_cgroup(fake, "b/web", 20)
    assert [t.name for t in resolve_targets(fake.root, cgroups=["a/web", "b/web", "a/web"])] == [
        "a/web", "b/web"]


def test_processes_that_are_gone_are_left_out(fake: FakeProc) -> None:
    assert processes_of(fake.root, Target("x", "process", (10, 11))) == processes_of(
        fake.root, Target("x", "process", (10,)))


def test_labels_are_matched_by_pid_cgroup_and_name(fake: FakeProc, tmp_path: Path) -> None:
    folder = make_cgroup(fake, "app/db", 40)
    table = write(tmp_path / "guests.csv", (
        "pid,cgroup,name,role,tenant\n"
        "10,,cache,redis,t1\n"
        f",{folder},database,postgres,\n"
        ',,web-1,nginx,"t2, blue"\n'
        "4000,,someone else,x,t9\n"))
    found = resolve_targets(fake.root, pids=[10], qemu=True, cgroups=["app/db"], labels_csv=table)
    assert [(t.name, t.labels) for t in found] == [
        ("cache", {"role": "redis", "tenant": "t1"}),
        ("web-1", {"role": "nginx", "tenant": "t2, blue"}),
        ("kvm-30", {}),
        ("database", {"role": "postgres"}),
    ]


def test_a_guests_file_alone_names_the_targets(fake: FakeProc, tmp_path: Path) -> None:
    table = write(tmp_path / "guests.csv",
                  "pid,name,role,memory\n20,one,nginx,192MiB\n30,two,redis,1\n")
    found = resolve_targets(fake.root, labels_csv=table)
    assert [(t.name, t.pids, t.labels) for t in found] == [
        ("one", (20,), {"role": "nginx", "memory": "192MiB"}),
        ("two", (30,), {"role": "redis", "memory": "1"}),
    ]
    make_cgroup(fake, "app/db", 40)
    table = write(tmp_path / "guests.csv", "name,cgroup,role\ndb,app/db,postgres\n")
    target, = resolve_targets(fake.root, labels_csv=table)
    assert (target.name, target.kind, target.labels) == ("db", "container", {"role": "postgres"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("role,tenant\nx,y\n", "names none of the columns pid, cgroup and name"),
        ("", "names none of the columns"),
        ("pid,role\n10,a,b\n", "guests.csv:2: not 2 values"),
        ("pid,role\n10\n", "guests.csv:2: not 2 values"),
        ("pid,role\n10,a\nten,b\n", "guests.csv:3: pid 'ten' is not a number"),
        ("pid,role,role\n10,a,b\n", "two have the same"),
        ("pid,role\n999999,a\n", "no row matches a captured guest"),
        ("pid,role\n10,\xff\0\"\n", "guests.csv"),
    ],
)
def test_a_damaged_guests_file_is_refused_with_its_line(
    fake: FakeProc, tmp_path: Path, text: str, message: str
) -> None:
    table = tmp_path / "guests.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        resolve_targets(fake.root, pids=[10], labels_csv=table)


def test_a_guests_file_alone_must_say_where_each_guest_is(fake: FakeProc, tmp_path: Path) -> None:
    table = write(tmp_path / "guests.csv", "pid,name,role\n20,one,nginx\n,two,redis\n")
    with pytest.raises(UsageError, match=r"guests\.csv:3: neither pid nor cgroup"):
        resolve_targets(fake.root, labels_csv=table)
    with pytest.raises(UsageError, match="cannot read the guests file: No such file"):
        resolve_targets(fake.root, labels_csv=tmp_path / "none.csv")


def test_targets_that_are_not_there_are_errors_with_a_next_step(
    fake: FakeProc, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nothing to capture is named; pass --pid"):
        resolve_targets(fake.root)
    with pytest.raises(MachineError, match="--pid 11: no such process"):
        resolve_targets(fake.root, pids=[11])
    with pytest.raises(MachineError, match="--cgroup nowhere: no such cgroup; name a folder"):
        resolve_targets(fake.root, cgroups=["nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MachineError, match="no QEMU process runs here"):
        resolve_targets(FakeProc(tmp_path / "empty").root, qemu=True)
    fake.add(os.getpid(), [])
    with pytest.raises(UsageError, match="cannot capture itself"):
        resolve_targets(fake.root, pids=[os.getpid()])


def vma(n_pages: int, *flags: RegionFlag) -> Vma:
    return Vma(n_pages << 8, (n_pages << 8) + n_pages, RW | sum(map(int, flags)), "")


def test_guest_memory_is_the_advised_private_mapping_closest_to_its_size() -> None:
    ram, video = vma(49152, RegionFlag.ADVISED), vma(4096, RegionFlag.ADVISED)
    cache = vma(262144)
    shared = vma(49153, RegionFlag.SHARED)
    assert guest_ram([cache, video, ram, shared], 192 << 20) is ram
    assert guest_ram([cache, video, ram, shared], None) is ram
    # Without KSM advice anywhere, the size alone tells.
    plain = vma(49150)
    assert guest_ram([cache, plain], 192 << 20) is plain


def test_no_mapping_is_called_guest_memory_when_none_fits() -> None:
    assert guest_ram([vma(4096, RegionFlag.ADVISED)], 192 << 20) is None
    assert guest_ram([vma(49152, RegionFlag.SHARED), vma(49152, RegionFlag.HUGETLB)],
                     192 << 20) is None
    assert guest_ram([vma(49152, RegionFlag.HEAP)], 192 << 20) is None
