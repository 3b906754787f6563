"""Sites and events: what the snapshots of a trace become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.errors import DataError
from planner.fleet import FleetHost, build_host, random_stream
from planner.policies.partition import partition_classes
from planner.scenario.spec import Never, PolicySpec
from planner.trace import PageColumns, PageFlag, RegionFlag, open_trace
from tests.scenario_builder import scenario_for
from tests.trace_builder import ANON, SECOND, GuestPlan, MmPlan, build_trace, pages_of


def host_of(path: Path, **options: object) -> FleetHost:
    scenario = scenario_for(path, **options)
    return build_host(scenario, scenario.hosts[0], {str(path): open_trace(path)})


def contents(host: FleetHost) -> list[int]:
    return host.site_content.tolist()


def test_equal_hashes_are_one_content_and_zero_is_known(tmp_path: Path) -> None:
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([pages_of([5, 6, 0])])]),
        GuestPlan("b", {}, [MmPlan([pages_of([6, 0, 7])])])]))
    first = contents(host)
    assert first[1] == first[3]
    assert first[2] == first[4]
    assert len(set(first)) == 4
    assert host.content_is_zero[first[2]] == 1
    assert host.content_is_zero.sum() == 1
    assert host.site_mm.tolist() == [0, 0, 0, 1, 1, 1]


def test_changes_between_snapshots_become_events_within_the_epoch(tmp_path: Path) -> None:
    snapshots = [pages_of([1, 2, 3]), pages_of([1, 9, None, 4]), pages_of([1, 9, None, 4])]
    host = host_of(build_trace(tmp_path / "t", [GuestPlan("a", {}, [MmPlan(snapshots)])]))
    assert host.site_vpn.tolist() == [0x1000, 0x1001, 0x1002, 0x1003]
    assert contents(host)[3] == -1
    assert sorted(host.event_site.tolist()) == [1, 2, 3]
    # Snapshot 0 ends at 1 s, snapshot 1 starts at 60 s: writes lie in [0 s, 59 s) from then on.
    assert host.event_time_ns.min() >= 0
    assert host.event_time_ns.max() < 59 * SECOND
    assert (np.diff(host.event_time_ns) >= 0).all()
    by_site = dict(zip(host.event_site.tolist(), host.event_content.tolist(), strict=True))
    assert by_site[2] == -1
    assert by_site[1] not in contents(host)


def test_an_mm_that_exits_loses_its_pages(tmp_path: Path) -> None:
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([pages_of([1, 2]), None]), MmPlan([pages_of([3])] * 2)])]))
    assert host.event_site.tolist() in ([0, 1], [1, 0])
    assert host.event_content.tolist() == [-1, -1]


def test_an_mm_that_starts_later_appears_by_events(tmp_path: Path) -> None:
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([pages_of([3])] * 2), MmPlan([None, pages_of([3])])])]))
    assert contents(host)[1] == -1
    assert host.event_content.tolist() == [contents(host)[0]]


def test_fork_shared_pages_have_one_frame_and_writes_leave_it(tmp_path: Path) -> None:
    shared = pages_of([1, 2, 3], frames=[0, 1, -1])
    written = pages_of([8, 2, 3], frames=[-1, 1, -1])
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([shared, written]), MmPlan([shared, shared])])]))
    frames = host.site_frame.tolist()
    assert frames[0] == frames[3]
    assert frames[1] == frames[4]
    assert frames[2] != frames[5]
    assert host.event_site.tolist() == [0]
    assert host.event_frame[0] not in frames


def test_a_page_born_by_fork_joins_the_frame_of_its_parent(tmp_path: Path) -> None:
    host = host_of(build_trace(tmp_path / "t", [GuestPlan("a", {}, [
        MmPlan([pages_of([1, 2]), pages_of([1, 2], frames=[4, -1])]),
        MmPlan([None, pages_of([1], frames=[4])])])]))
    assert host.event_site.tolist() == [2]
    assert host.event_frame[0] == host.site_frame[0]


def test_pages_that_leave_a_shared_frame_unchanged_were_written(tmp_path: Path) -> None:
    # Page 0: all three part. Page 1: the third leaves. Page 2: all move to another frame together
    # (migration). Page 3: shared with a process that was not captured, which exits.
    def frames(*ids: int) -> PageColumns:
        return pages_of([1, 2, 3, 4], frames=list(ids))

    host = host_of(build_trace(tmp_path / "t", [GuestPlan("a", {}, [
        MmPlan([frames(0, 1, 2, 3), frames(-1, 1, 9, -1)]),
        MmPlan([frames(0, 1, 2, -1), frames(-1, 1, 9, -1)]),
        MmPlan([frames(0, 1, 2, -1), frames(-1, -1, 9, -1)])])]))
    assert sorted(host.event_site.tolist()) == [4, 8, 9]
    assert [host.site_content[site] for site in host.event_site] == host.event_content.tolist()
    assert len({*host.event_frame.tolist(), *host.site_frame.tolist()}) == 5 + 1 + 3


def test_what_only_ksm_changed_was_not_written(tmp_path: Path) -> None:
    # Page 0 is merged, page 1 (all zero) maps the zero page after its huge page was split, page 2
    # was dropped and read again, page 3 was merged and written. All were shared by fork.
    zero = ANON | PageFlag.ZERO
    before = pages_of([5, 0, 6, 7], frames=[0, 1, 2, 3], flags=[ANON, zero, ANON, ANON])
    after = pages_of([5, 0, 0, 8], frames=[9, -1, -1, -1], flags=[
        ANON | PageFlag.KSM, zero | PageFlag.ZERO_PAGE, zero | PageFlag.ZERO_PAGE, ANON])
    host = host_of(build_trace(tmp_path / "t", [GuestPlan("a", {}, [
        MmPlan([before, after]), MmPlan([before, before])])]))
    assert sorted(host.event_site.tolist()) == [2, 3]
    by_site = dict(zip(host.event_site.tolist(), host.event_content.tolist(), strict=True))
    assert by_site[2] == -1
    assert by_site[3] not in contents(host)


def test_a_page_found_unmerged_with_its_content_was_written(tmp_path: Path) -> None:
    merged, alone = ANON | PageFlag.KSM, ANON
    snapshots = [pages_of([5, 6], frames=[1, 2], flags=[merged, merged]),
                 pages_of([5, 6], frames=[-1, 2], flags=[alone, merged])]
    host = host_of(build_trace(tmp_path / "t", [GuestPlan("a", {}, [MmPlan(snapshots)])]))
    assert host.event_site.tolist() == [0]
    assert host.event_content[0] == host.site_content[0]
    assert host.event_frame[0] not in host.site_frame


def test_eligibility_follows_the_region_and_the_workload(tmp_path: Path) -> None:
    flags = int(RegionFlag.READ | RegionFlag.WRITE)
    path = build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([pages_of([1])], region_flags=flags)]),
        GuestPlan("b", {}, [MmPlan([pages_of([1])], region_flags=flags | RegionFlag.SHARED)]),
        GuestPlan("c", {}, [MmPlan([pages_of([1])])])])
    assert host_of(path).site_eligible.tolist() == [0, 0, 1]
    assert host_of(path, mergeable="all").site_eligible.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="no page on host 'host' is eligible"):
        host_of(path, mergeable="none")


def test_pages_without_a_hash_or_a_frame_of_their_own_are_no_sites(tmp_path: Path) -> None:
    flags = [ANON, ANON | PageFlag.SWAPPED, ANON | PageFlag.ZERO_PAGE, PageFlag.FILE]
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([pages_of([1, 2, 0, 4], flags=flags)])])]))
    assert host.site_vpn.tolist() == [0x1000]


def test_writes_depend_on_seed_and_identity_only(tmp_path: Path) -> None:
    red = GuestPlan("red", {}, [MmPlan([pages_of(range(1, 50)), pages_of(range(101, 150))])])
    blue = GuestPlan("blue", {}, [MmPlan([pages_of(range(1, 9)), pages_of(range(11, 19))])])
    alone = host_of(build_trace(tmp_path / "alone", [red]))
    beside = host_of(build_trace(tmp_path / "beside", [blue, red]))
    mine = beside.event_site >= 8
    assert np.array_equal(np.sort(alone.event_time_ns), np.sort(beside.event_time_ns[mine]))
    other = host_of(build_trace(tmp_path / "other", [red]), seed=2)
    assert not np.array_equal(alone.event_time_ns, other.event_time_ns)
    assert random_stream(1, "a", 2).integers(1 << 40) == random_stream(1, "a", 2).integers(1 << 40)


def test_partitions_follow_guests_labels_and_regions(tmp_path: Path) -> None:
    host = host_of(build_trace(tmp_path / "t", [
        GuestPlan("a", {"tenant": "red", "role": "web"}, [
            MmPlan([pages_of([1])], {"content": "heap"}),
            MmPlan([pages_of([1])], {"content": "stack"})]),
        GuestPlan("b", {"tenant": "blue", "role": "web"}, [
            MmPlan([pages_of([1])], {"content": "heap"})]),
        GuestPlan("c", {"tenant": "blue"}, [MmPlan([pages_of([1])], {"content": "heap"})])]))

    def names(*keys: str, exclude: tuple[tuple[tuple[str, str], ...], ...] = ()) -> list[str]:
        found = partition_classes(host, PolicySpec("p", keys, exclude, Never()))
        of_site = found.of_class[host.site_class]
        return [found.names[index] if index >= 0 else "-" for index in of_site]

    assert names() == ["all"] * 4
    assert names("domain") == ["red", "red", "blue", "blue"]
    assert names("guest") == ["a", "a", "b", "c"]
    assert names("tenant", "content") == ["red + heap", "red + stack", "blue + heap",
                                          "blue + heap"]
    # Nothing says that an unlabelled guest may share with another.
    assert names("role") == ["web", "web", "web", "unlabelled:c"]
    assert names(exclude=((("content", "stack"),), (("guest", "b"), ("role", "web")))) == [
        "all", "-", "-", "all"]
