"""Why memory would not merge and what it is, in traces and on a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.capture.usage import diagnose_host
from planner.diagnosis import OBSTACLES, Diagnosis, content_of, region_obstacle
from planner.doctor import examine
from planner.trace import PageFlag, Region, RegionFlag, open_trace
from planner.traceinfo import trace_info
from tests.fakeproc import FakeProc
from tests.trace_builder import ANON, GuestPlan, MmPlan, build_trace, pages_of

ADVISED = int(RegionFlag.ADVISED)


def diagnose(path: Path, plans: list[GuestPlan]) -> Diagnosis:
    return trace_info(open_trace(build_trace(path / "t", plans))).diagnosis


def obstacles(found: Diagnosis) -> dict[str, int]:
    return {part.key: part.n_bytes // 4096 for part in found.obstacles}


def contents(found: Diagnosis) -> dict[str, int]:
    return {part.key: part.n_bytes // 4096 for part in found.contents}


def one(name: str, pages: list[int], flags: int = ADVISED, **more: object) -> GuestPlan:
    return GuestPlan(name, {}, [MmPlan([pages_of(pages, **more)] * 2,
                                       region_flags=flags)])


def test_each_kind_of_mapping_is_told_with_its_share(tmp_path: Path) -> None:
    found = diagnose(tmp_path, [
        one("plain", [1, 2, 3]), one("quiet", [4, 5], 0),
        one("memfd", [6], int(RegionFlag.SHARED | RegionFlag.MAYSHARE) | ADVISED),
        one("huge", [7, 8, 9], int(RegionFlag.HUGETLB)), one("device", [10],
                                                             int(RegionFlag.PFNMAP))])
    assert obstacles(found) == {"hugetlb": 3, "shared": 1, "device": 1, "not_advised": 2}
    assert found.n_bytes == 10 * 4096
    assert next(part.share for part in found.obstacles if part.key == "hugetlb") == 0.3
    assert contents(found) == {"anon": 5}


def test_huge_pages_zero_waste_and_locked_memory_are_counted(tmp_path: Path) -> None:
    thp = ANON | PageFlag.THP
    found = diagnose(tmp_path, [
        one("thp", [0, 0, 1], flags=ADVISED | int(RegionFlag.GUEST_RAM)),
        GuestPlan("g", {}, [MmPlan([pages_of([0, 0, 5], flags=[thp | PageFlag.ZERO] * 2 + [thp])]
                                   * 2, region_flags=ADVISED | int(RegionFlag.GUEST_RAM))]),
        GuestPlan("l", {}, [MmPlan([pages_of([9], flags=[ANON | PageFlag.LOCKED])] * 2,
                                   region_labels={},
                                   region_flags=ADVISED | int(RegionFlag.HEAP))])])
    assert obstacles(found) == {"thp": 3, "locked": 1}
    assert contents(found)["zero-thp"] == 2
    assert contents(found)["heap"] == 1
    assert sum(contents(found).values()) == 7
    assert sum(part.share for part in found.contents) == pytest.approx(1)


def test_pages_without_a_known_content_are_told_apart(tmp_path: Path) -> None:
    swapped, unread = ANON | PageFlag.SWAPPED, ANON | PageFlag.UNREADABLE
    found = diagnose(tmp_path, [GuestPlan("g", {}, [MmPlan([pages_of(
        [5, 6, 7, 1], flags=[swapped, swapped, unread, ANON])] * 2)])])
    assert obstacles(found) == {"swapped": 2, "not_read": 1}


def test_what_changed_since_the_snapshot_before_is_churn(tmp_path: Path) -> None:
    plans = [GuestPlan("g", {}, [MmPlan([pages_of([1, 2, 3, 4]), pages_of([1, 2, 8, 9])])])]
    assert obstacles(diagnose(tmp_path, plans)) == {"churn": 2}


def test_one_snapshot_says_that_it_does_not_tell_changes(tmp_path: Path) -> None:
    found = diagnose(tmp_path, [GuestPlan("g", {}, [MmPlan([pages_of([1, 2])])])])
    assert obstacles(found) == {}
    assert any("One snapshot alone" in note for note in found.notes)


def test_a_machine_without_zero_pages_or_twins_is_taken_for_encrypted(tmp_path: Path) -> None:
    found = diagnose(tmp_path, [
        GuestPlan("sev", {}, [MmPlan([pages_of(range(1, 5001))] * 2)], kind="vm"),
        GuestPlan("plain", {}, [MmPlan([pages_of([0, *range(9001, 14001)])] * 2)], kind="vm")])
    assert obstacles(found)["encrypted"] == 5000


def test_a_label_content_says_what_the_memory_is() -> None:
    def region(flags: int, **labels: str) -> Region:
        return Region(0, 0, 0, 1, flags, "", labels, 0, 1)

    assert content_of(region(int(RegionFlag.GUEST_RAM), content="guest-page-cache")) == \
        "guest-page-cache"
    assert content_of(region(int(RegionFlag.STACK))) == "stack"
    assert content_of(region(0)) == "anon"
    assert region_obstacle(int(RegionFlag.HUGETLB | RegionFlag.SHARED)) == "hugetlb"
    assert region_obstacle(ADVISED) is None


SMAPS = """\
7f0000000000-7f0040000000 rw-p 00000000 00:00 0
Rss:             1048576 kB
Anonymous:       1048576 kB
AnonHugePages:    524288 kB
Locked:                0 kB
VmFlags: rd wr mr mw me ac mg
7f1000000000-7f1000100000 rw-s 00000000 00:01 77                         /memfd:ram (deleted)
Rss:                1024 kB
Anonymous:             0 kB
VmFlags: rd wr sh mr mw me ms
7f2000000000-7f2000200000 rw-p 00000000 00:0f 78                         /anon_hugepage (deleted)
Rss:                   0 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr mr mw me de ht
7f3000000000-7f3000100000 rw-p 00000000 00:00 0
Rss:                1024 kB
Anonymous:           512 kB
Swap:                256 kB
VmFlags: rd wr mr mw me ac
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Rss:                   0 kB
VmFlags: ex
"""


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def add(fake: FakeProc, pid: int, *, cmdline: tuple[str, ...] = ("demo",), pin_kb: int = 0) -> None:
    fake.add(pid, [], cmdline=cmdline)
    folder = fake.root.proc / str(pid)
    (folder / "smaps").write_text(SMAPS)
    (folder / "status").write_text(f"Name:\tdemo\nVmPin:\t{pin_kb} kB\n")


def test_a_host_is_told_by_the_sums_of_its_mappings(fake: FakeProc) -> None:
    add(fake, 10)
    usage = diagnose_host(fake.root)
    kib = {part.key: part.n_bytes // 1024 for part in usage.diagnosis.obstacles}
    assert kib == {"hugetlb": 2048, "shared": 1024, "thp": 524288, "not_advised": 512,
                   "file": 512, "swapped": 256}
    assert usage.diagnosis.n_bytes == (1048576 + 1024 + 2048 + 1024) * 1024
    assert (usage.n_processes, usage.n_seen) == (1, 1)


def test_pinned_and_encrypted_guests_are_seen(fake: FakeProc) -> None:
    add(fake, 10, pin_kb=4096)
    add(fake, 11, cmdline=("qemu-system-x86_64", "-machine", "confidential-guest-support=sev0"))
    kib = {part.key: part.n_bytes // 1024 for part in diagnose_host(fake.root).diagnosis.obstacles}
    assert kib["pinned"] == 4096
    assert kib["encrypted"] == 1048576 + 512


def test_a_process_that_may_not_be_read_or_is_cut_short_is_left_out(
        fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    add(fake, 10)
    add(fake, 11)
    (fake.root.proc / "11" / "smaps").write_text(SMAPS[:SMAPS.index("Swap:")])
    add(fake, 12)
    inner = Path.read_text

    def denied(path: Path, *args: object, **kwargs: object) -> str:
        if path.name == "smaps" and path.parent.name == "12":
            raise PermissionError
        return inner(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", denied)
    usage = diagnose_host(fake.root)
    assert (usage.n_processes, usage.n_seen) == (3, 1)
    assert any("run as root" in note for note in usage.diagnosis.notes)


def test_doctor_tells_the_shares_and_gives_them_as_numbers(fake: FakeProc) -> None:
    add(fake, 10)
    found = examine(fake.root)
    told = [finding.text for finding in found.findings if finding.name == "would not merge"]
    assert told[0].endswith("in hugetlb pages, which never merge")
    assert any(text.startswith("49.8 % in transparent huge pages") and "ksmd splits" in text
               for text in told)
    assert [part["key"] for part in found.facts["memory"]["obstacles"]] == [
        "hugetlb", "shared", "not_advised", "thp", "file", "swapped"]
    assert not any(finding.is_problem for finding in found.findings
                   if finding.name == "would not merge")


def test_every_obstacle_that_can_be_avoided_says_how() -> None:
    assert all(instead for key, (_, instead) in OBSTACLES.items()
               if key not in ("device", "file", "swapped", "not_read"))
