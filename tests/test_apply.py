"""Plans of Selective KSM carried out: on the model of the module, and by the command line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from planner.apply import (
    Extent,
    Member,
    Plan,
    carry_out,
    compare_plan,
    find_members,
    read_plan,
    read_report,
    split_huge_pages,
    steps_of,
    undo,
    write_settings,
)
from planner.cli import main
from planner.errors import DataError, MachineError, UsageError
from planner.ksm.partition_memory import ModuleMemory
from planner.ksm.partition_rules import ModuleKsm, RangeCounts
from planner.partitions import CallCounts, InterruptedCallError, PartitionCounters, Refusal
from tests.fakeproc import FakeProc, FakeVma

PAGE = 4096
BASE = 0x7F00_0000_0000


class Device:
    """The binding's calls on the model of the module; `fail` names calls and what they raise."""

    def __init__(self, memory: ModuleMemory) -> None:
        self.ksm = ModuleKsm(memory)
        self.fail: dict[str, OSError] = {}
        self.made: list[str] = []

    def ksm_open(self, name: str, flags: int, mode: int = 0o600) -> int:
        self._begin("open")
        return self.ksm.ksm_open(name, flags, mode)

    def ksm_unlink(self, name: str) -> None:
        self._begin("unlink")
        self.ksm.ksm_unlink(name)

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        self._begin("merge")
        return counts_of(self.ksm.ksm_merge(fd, pid, addr, size))

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        self._begin("unmerge")
        return counts_of(self.ksm.ksm_unmerge(fd, pid, addr, size))

    def ksm_attach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        self._begin("attach")
        self.ksm.ksm_attach(fd, pid, addr, size)
        return counts_of(RangeCounts())

    def ksm_detach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        self._begin("detach")
        self.ksm.ksm_detach(fd, pid, addr, size)
        return counts_of(RangeCounts())

    def close(self, fd: int) -> None:
        self.ksm.close(fd)

    def counters(self, fd: int) -> PartitionCounters:
        values = dict.fromkeys(PartitionCounters.__slots__, 0)
        values |= {name: number for name, number in self.ksm.counters(fd).items()
                   if name in values}
        return PartitionCounters(**values)

    def _begin(self, name: str) -> None:
        self.made.append(name)
        if name in self.fail:
            raise self.fail[name]


def counts_of(counts: RangeCounts) -> CallCounts:
    return CallCounts(
        0, counts.n_requested, counts.n_absent, counts.n_already, counts.n_merged,
        counts.n_candidates, counts.n_volatile, counts.n_partners, counts.n_unmerged, 0, 1000,
        {Refusal[reason.upper()]: number for reason, number in counts.refused.items()}, {})


def document(**changes: Any) -> dict[str, Any]:
    """A plan for two tenants of two guests each."""
    def partition(tenant: str, mode: str = "sync") -> dict[str, Any]:
        return {"name": tenant, "title": tenant, "values": {"domain": tenant}, "mode": mode,
                "domains": [tenant],
                "expected": {"saved_bytes": 8 * PAGE, "saved_zero_bytes": PAGE,
                             "pages_sharing": 7, "ksm_zero_pages": 1},
                "members": [{"guest": f"{tenant}-{i}", "host": "host-1", "domain": tenant,
                             "labels": {}} for i in (1, 2)]}

    return {"kind": "planner.selective-ksm", "format_version": 1, "scenario": "two",
            "policy": "by-domain", "partitions": [partition("red"), partition("blue")],
            "triggers": [{"kind": "boot", "after_ns": 60_000_000_000},
                         {"kind": "every", "every_ns": 600_000_000_000}], **changes}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(document(**changes)))
    return path


def tenants() -> tuple[ModuleMemory, dict[str, Member]]:
    """Four processes with the same 8 contents, one of them zeroes; guests by name."""
    memory = ModuleMemory()
    members = {}
    for pid, guest in enumerate(("red-1", "red-2", "blue-1", "blue-2"), start=100):
        memory.spawn(pid)
        memory.map(pid, BASE // PAGE, 10)
        memory.write(pid, BASE // PAGE, range(8))
        members[guest] = Member(guest, (Extent(pid, BASE, 10 * PAGE),))
    return memory, members


def frames(memory: ModuleMemory, pid: int) -> set[int]:
    return {id(place.frame) for place in memory.processes[pid].places.values() if place.frame}


def no_settings(name: str, settings: Mapping[str, int]) -> None:
    raise AssertionError(f"{name} has no scanner, but {settings} were set")


def applied(plan: Plan, device: Device, members: Mapping[str, Member]) -> Any:
    return carry_out(plan, members, device, set_scanner=no_settings)


def test_what_is_predicted_merges_and_no_frame_is_in_two_tenants(tmp_path: Path) -> None:
    memory, members = tenants()
    plan = read_plan(written(tmp_path))
    report = applied(plan, Device(memory), members)
    assert report.failures == []
    assert [(part.merged_pages, part.pages_shared, part.pages_sharing)
            for part in report.partitions] == [(16, 8, 8)] * 2
    assert frames(memory, 100) == frames(memory, 101)
    assert frames(memory, 100).isdisjoint(frames(memory, 102))
    rows = compare_plan(plan, report)
    assert [(row.expected_pages, row.measured_pages, row.error) for row in rows] == [(8, 8, 0)] * 2
    assert all(row.is_within(0) for row in rows)


def test_an_undo_gives_every_page_its_own_frame_and_takes_the_names(tmp_path: Path) -> None:
    memory, members = tenants()
    plan, device = read_plan(written(tmp_path)), Device(memory)
    applied(plan, device, members)
    report = undo(plan, members, device)
    assert report.failures == []
    assert [part.unmerged_pages for part in report.partitions] == [16, 16]
    assert [part.pages_sharing for part in report.partitions] == [0, 0]
    assert device.ksm.partition_names == ()
    assert len({frame for pid in memory.processes for frame in frames(memory, pid)}) == 32
    # Nothing is left to undo.
    assert undo(plan, members, device).failures == []


def test_applying_twice_finds_everything_merged(tmp_path: Path) -> None:
    memory, members = tenants()
    plan, device = read_plan(written(tmp_path)), Device(memory)
    applied(plan, device, members)
    again = applied(plan, device, members)
    assert [part.merged_pages for part in again.partitions] == [0, 0]
    assert sum(call.already_pages for call in again.partitions[0].calls) == 16


def test_a_failed_call_shows_what_was_done_before_it(tmp_path: Path) -> None:
    memory, members = tenants()
    device = Device(memory)
    counts = counts_of(RangeCounts(n_requested=3, n_merged=2, n_candidates=1))
    device.fail["merge"] = InterruptedCallError(errno.EINTR, "interrupted", counts)
    report = applied(read_plan(written(tmp_path)), device, members)
    red = report.partitions[0]
    assert [call.merged_pages for call in red.calls] == [2]
    assert report.failures[0] == ("partition red: merge of red-1 (process 100): "
                                  "EINTR: Interrupted system call")
    assert report.partitions[1].calls, "the other partition is not given up"


def test_an_interrupt_leaves_a_report_of_what_was_done(tmp_path: Path) -> None:
    memory, members = tenants()
    device = Device(memory)
    calls = iter((None, None, KeyboardInterrupt()))

    def merge(fd: int, pid: int, addr: int, size: int) -> CallCounts:
        problem = next(calls)
        if problem is not None:
            raise problem
        return counts_of(device.ksm.ksm_merge(fd, pid, addr, size))

    device.ksm_merge = merge
    report = applied(read_plan(written(tmp_path)), device, members)
    assert report.is_interrupted
    assert [part.merged_pages for part in report.partitions] == [16, 0]
    assert report.failures == ["partition blue: interrupted"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        device.close(3)


def test_huge_pages_are_split_first_where_that_is_asked_for(tmp_path: Path) -> None:
    memory, members = tenants()
    debug = tmp_path / "kernel/debug"
    debug.mkdir(parents=True)
    (debug / "split_huge_pages").touch()
    split = []

    def split_one(extent: Extent) -> None:
        split_huge_pages(tmp_path, extent)
        split.append((debug / "split_huge_pages").read_text())
        if len(split) == 2:
            raise OSError(errno.ENOENT, "gone")

    report = carry_out(read_plan(written(tmp_path)), members, Device(memory),
                       set_scanner=no_settings, split=split_one)
    assert split[0] == "100,0x7f0000000000,0x7f000000a000"
    assert len(split) == 4
    assert report.failures == ["partition red: split of red-2 (process 101): "
                               "ENOENT: No such file or directory"]
    assert [part.merged_pages for part in report.partitions] == [16, 16]


def test_without_allow_merge_nothing_is_tried_further(tmp_path: Path) -> None:
    memory, members = tenants()
    device = Device(memory)
    device.ksm.is_merging_allowed = False
    report = applied(read_plan(written(tmp_path)), device, members)
    assert device.made == ["open"]
    assert report.failures == ["partition red: open: EPERM: Operation not permitted"]


def test_a_member_that_ended_meanwhile_does_not_stop_the_others(tmp_path: Path) -> None:
    memory, members = tenants()
    memory.exit(100)
    report = applied(read_plan(written(tmp_path)), Device(memory), members)
    assert report.failures == ["partition red: merge of red-1 (process 100): "
                               "ESRCH: No such process"]
    assert [part.merged_pages for part in report.partitions] == [0, 16]


def test_a_scanner_gets_its_settings_and_its_members(tmp_path: Path) -> None:
    memory, members = tenants()
    [red, _] = document()["partitions"]
    red |= {"mode": "ksmd", "ksmd": {"pages_to_scan": "500", "sleep_millisecs": "10",
                                     "max_page_sharing": "256"}}
    plan, device = read_plan(written(tmp_path, partitions=[red])), Device(memory)
    settings = []
    report = carry_out(plan, members, device,
                       set_scanner=lambda name, knobs: settings.append((name, dict(knobs))))
    assert settings == [("red", {"pages_to_scan": 500, "sleep_millisecs": 10})]
    assert [call.call for call in report.partitions[0].calls] == ["attach", "attach"]
    device.ksm.scan("red")
    assert device.ksm.files("red")["pages_sharing"] == 8
    report = undo(plan, members, device)
    assert report.failures == []
    assert device.ksm.partition_names == ()
    assert frames(memory, 100) == frames(memory, 101), "a scanner's merges stay"


def test_the_settings_of_a_scanner_are_written_below_sys(tmp_path: Path) -> None:
    folder = tmp_path / "kernel/ksm_partition/red"
    folder.mkdir(parents=True)
    write_settings(tmp_path, "red", {"pages_to_scan": 7})
    assert (folder / "pages_to_scan").read_text() == "7"
    with pytest.raises(OSError, match="No such file"):
        write_settings(tmp_path, "blue", {"pages_to_scan": 7})


def test_steps_say_what_each_partition_will_do(tmp_path: Path) -> None:
    _, members = tenants()
    plan = read_plan(written(tmp_path))
    del members["blue-2"]
    assert list(steps_of(plan, members, is_undo=False)) == [
        "red: open it with KSM_SYNC, merge 2 of 2 members, 20 pages of address space",
        "blue: open it with KSM_SYNC, merge 1 of 2 members, 10 pages of address space"]
    assert list(steps_of(plan, members, is_undo=True))[1] == (
        "blue: unmerge 1 of 2 members, 10 pages of address space; unlink it")


def test_a_report_survives_its_file_and_is_of_one_plan_only(tmp_path: Path) -> None:
    memory, members = tenants()
    plan = read_plan(written(tmp_path))
    report = applied(plan, Device(memory), members)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()))
    assert read_report(path) == report
    with pytest.raises(DataError, match="another plan"):
        compare_plan(read_plan(written(tmp_path, policy="other")), report)


def test_a_partition_that_lacks_members_has_no_expectation(tmp_path: Path) -> None:
    memory, members = tenants()
    del members["red-2"]
    plan = read_plan(written(tmp_path))
    [red, blue] = compare_plan(plan, applied(plan, Device(memory), members))
    assert red.error is None
    assert not red.is_within(1.0)
    assert blue.is_within(0)


def test_a_plan_without_the_counter_is_compared_net_of_metadata(tmp_path: Path) -> None:
    [red, _] = document()["partitions"]
    del red["expected"]["pages_sharing"]
    [planned] = read_plan(written(tmp_path, partitions=[red])).partitions
    assert (planned.expected_pages, planned.is_net) == (9, True)


@pytest.mark.parametrize(("changes", "what"), [
    ({"kind": "something"}, "not a plan"),
    ({"format_version": 2}, "its format is 2"),
    ({"partitions": 3}, "damaged"),
    ({"partitions": [{"name": "../x", "mode": "sync"}]}, "no name of a partition"),
    ({"partitions": [{"name": "..", "mode": "sync"}]}, "no name of a partition"),
    ({"partitions": [{"name": "x", "mode": "later"}]}, "mode 'later'"),
    ({"partitions": [{"name": "x", "mode": "sync", "title": "x"}]}, "no 'members'"),
    ({"partitions": document()["partitions"][:1] * 2}, "two partitions have one name"),
    ({"triggers": [{"kind": "never"}]}, "no 'never'"),
])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any],
                                        what: str) -> None:
    with pytest.raises(DataError, match=what):
        read_plan(written(tmp_path, **changes))


def test_one_host_of_several_has_to_be_named(tmp_path: Path) -> None:
    plan = document()
    plan["partitions"][1]["members"][0]["host"] = "host-2"
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="spans 2 hosts"):
        read_plan(path).on_host(None)
    [red, blue] = read_plan(path).on_host("host-1").partitions
    assert (red.expected_pages, blue.expected_pages) == (8, None)
    with pytest.raises(UsageError, match="no host 'host-3'"):
        read_plan(path).on_host("host-3")


def vma(start: int, n: int, **options: Any) -> FakeVma:
    return FakeVma(start, [0] * n, **options)


def test_members_are_found_by_name_number_unit_and_as_given(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    ram = [vma(0x1000, 100), vma(0x9000, 1 << 15)]
    fake.add(10, ram, cmdline=("/usr/bin/qemu-system-x86_64", "-name", "guest=red-1", "-m", "128"))
    fake.add(11, ram, cmdline=("kvm", "-id", "101", "-name", "other", "-m", "128"))
    fake.add(12, [vma(0x10, 4), vma(0x20, 4, inode=5), vma(0x30, 4, vm_flags="rd wr sh")])
    fake.add(13, [vma(0x10, 4)])
    unit = fake.root.sys / "fs/cgroup/system.slice/web.service"
    unit.mkdir(parents=True)
    (unit / "cgroup.procs").write_text("12\n")
    plan = document()
    for member, labels in zip([member for each in plan["partitions"] for member in each["members"]],
                              ({}, {"vmid": "101"}, {"unit": "web.service"}, {}), strict=True):
        member["labels"] = labels
    planned = [member for each in read_plan(written(tmp_path, **plan)).partitions
               for member in each.members]
    found = find_members(fake.root, planned, {"blue-2": "13"})
    assert {guest: member.extents for guest, member in found.items()} == {
        "red-1": (Extent(10, 0x9000 * PAGE, PAGE << 15),),
        "red-2": (Extent(11, 0x9000 * PAGE, PAGE << 15),),
        "blue-1": (Extent(12, 0x10 * PAGE, 4 * PAGE),),
        "blue-2": (Extent(13, 0x10 * PAGE, 4 * PAGE),)}


def test_members_that_do_not_run_are_named(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(13, [vma(0x10, 4)])
    planned = [member for each in read_plan(written(tmp_path)).partitions
               for member in each.members]
    given = {"red-1": "13", "red-2": "14"}
    with pytest.raises(MachineError, match=r"3 of 4 members .*: red-2, blue-1, blue-2;"):
        find_members(fake.root, planned, given)
    assert list(find_members(fake.root, planned, given, skip_missing=True)) == ["red-1"]
    with pytest.raises(UsageError, match="no member 'green'"):
        find_members(fake.root, planned, {"green": "13"})


def test_the_command_tells_its_steps_and_asks_for_the_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = str(written(tmp_path))
    assert main(["apply", plan, "--dry-run"]) == 3
    assert "4 of 4 members are not running here: red-1" in capsys.readouterr().err
    here = f"red-1={os.getppid()}"
    assert main(["apply", plan, "--dry-run", "--skip-missing", "--member", here]) == 0
    told = capsys.readouterr()
    assert "red: open it with KSM_SYNC, merge 1 of 2 members" in told.out
    assert "run this at each" in told.out
    assert "blue-2 is not running here" in told.err
    assert main(["apply", plan, "--dry-run", "--skip-missing", "--member", "red-1"]) == 2
    assert main(["apply", plan, "--dry-run", "--undo", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert steps["missing"] == ["red-1", "red-2", "blue-1", "blue-2"]
    monkeypatch.setattr("planner.partitions.PartitionDevice.__init__", _no_device)
    assert main(["apply", plan, "--skip-missing", "--member", here]) == 3
    assert "load the module" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["apply"], ["validate", "plan"]):
        assert main([*command, "--help"]) == 0
        assert "Example:" in capsys.readouterr().out


def _no_device(self: object, path: Path = Path("absent")) -> None:
    raise MachineError("there is no Selective KSM here", where=str(path),
                       instead="load the module ksm_planner")


def test_the_command_reports_and_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, members = tenants()
    plan, report = str(written(tmp_path)), tmp_path / "report.json"
    device = Device(memory)

    class Opened:
        def __enter__(self) -> Device:
            return device

        def __exit__(self, *about: object) -> None:
            pass

    monkeypatch.setattr("planner.partitions.PartitionDevice", Opened)
    monkeypatch.setattr("planner.apply.find_members", lambda *_, **__: members)
    assert main(["apply", plan, "-o", str(report)]) == 0
    told = capsys.readouterr().out
    assert "red: 16 pages merged, 2 calls" in told
    assert "8 pages freed (8 expected)" in told
    assert main(["validate", "plan", plan, str(report), "--within", "1%"]) == 0
    assert "+0.0%" in capsys.readouterr().out
    memory.write(100, BASE // PAGE, [50])
    undo(read_plan(Path(plan)), members, device)
    assert main(["apply", plan, "-o", str(report), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["partitions"][0]["pages_sharing"] == 7
    assert main(["validate", "plan", plan, str(report), "--within", "1%"]) == 4
    assert "red" in capsys.readouterr().err
    device.fail["merge"] = PermissionError(errno.EPERM, "no")
    assert main(["apply", plan]) == 3
    told_all = capsys.readouterr()
    assert "EPERM" in told_all.out
    assert "run it as root" in told_all.err
