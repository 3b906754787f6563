"""The engine: what policies do to hosts whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from planner.engine.spaces import first_equal
from planner.metrics import Result
from planner.policies.timing import merge_text
from planner.policies.triggers import Stay, timed_rounds
from planner.report import render_html, render_text
from planner.runner import run
from planner.scenario.spec import Kernel, Ksmd, PolicySpec, Sync, Trigger
from planner.trace import PageColumns, PageFlag
from tests.scenario_builder import NEVER, SECOND, scenario_for
from tests.trace_builder import ANON, GuestPlan, MmPlan, build_trace, pages_of

FAST = Ksmd(pages_to_scan=1000, sleep_millisecs=20)
AT_BOOT = Sync((Trigger("boot", 5 * SECOND, 0),))
METADATA = {"rmap_item": 64, "stable_node": 64, "mm_slot": 48}


def guests(*snapshots_of_each: list[PageColumns]) -> list[GuestPlan]:
    tenants = ("red", "red", "blue", "green")
    return [GuestPlan(f"g{index}", {"tenant": tenants[index]}, [MmPlan(snapshots)])
            for index, snapshots in enumerate(snapshots_of_each)]


def run_on(path: Path, *policies: PolicySpec, **options: object) -> Result:
    return run(scenario_for(path, (NEVER, *policies), **options))


def row(result: Result, policy: str) -> dict[str, object]:
    return next(r for r in result.summary.to_pylist() if r["policy"] == policy)


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """Three guests of two tenants that share contents 1..100 and never change."""
    def pages(own: int) -> list[PageColumns]:
        return [pages_of([*range(1, 101), *range(own, own + 50)])] * 2

    return build_trace(tmp_path / "still", guests(pages(1000), pages(2000), pages(3000)))


def test_never_saves_nothing_and_costs_nothing(still: Path) -> None:
    off = row(run_on(still), "off")
    assert off["guest_memory_bytes"] == 450 * 4096
    assert [off[name] for name in ("saved_bytes", "saved_zero_bytes", "metadata_bytes",
                                   "pages_sharing", "merge_cpu_ns", "unmerge_bytes")] == [0] * 6
    assert off["time_to_90_ns"] is None


def test_nodes_share_nothing_when_told_so(tmp_path: Path) -> None:
    def on_node(node: int, own: int) -> list[PageColumns]:
        pages = pages_of([*range(1, 101), *range(own, own + 50)])
        return [dataclasses.replace(pages, numa_node=np.full(150, node, np.int8))] * 2

    trace = build_trace(tmp_path / "nodes", guests(on_node(0, 1000), on_node(0, 2000),
                                                   on_node(1, 3000), on_node(1, 4000)))
    result = run_on(trace, PolicySpec("across", (), (), FAST), PolicySpec(
        "within", (), (), dataclasses.replace(FAST, merge_across_nodes=False)))
    assert [row(result, "across")[name] for name in ("pages_shared", "pages_sharing")] == [100, 300]
    assert [row(result, "within")[name] for name in ("pages_shared", "pages_sharing")] == [200, 200]


def test_one_merge_space_finds_every_duplicate(still: Path) -> None:
    found = row(run_on(still, PolicySpec("ksmd", (), (), FAST)), "ksmd")
    assert (found["pages_shared"], found["pages_sharing"]) == (100, 200)
    assert found["pages_unshared"] + found["pages_volatile"] == 150
    assert found["metadata_bytes"] == 450 * 64 + 100 * 64 + 3 * 48
    assert found["saved_bytes"] == 200 * 4096 - (450 * 64 + 100 * 64 + 3 * 48)
    assert found["general_profit_bytes"] == 200 * 4096 - 450 * 64
    assert found["cross_domain_pages"] == 300
    assert found["unmerge_bytes"] == 200 * 4096


def test_a_boundary_loses_what_was_shared_across_it(still: Path) -> None:
    result = run_on(still, PolicySpec("domain", ("domain",), (), AT_BOOT),
                    PolicySpec("guest", ("guest",), (), AT_BOOT))
    domain, guest = row(result, "domain"), row(result, "guest")
    assert (domain["pages_shared"], domain["pages_sharing"]) == (100, 100)
    assert domain["cross_domain_pages"] == 0
    assert guest["pages_sharing"] == 0
    assert domain["n_partitions"] == 2
    by_partition = {(r["policy"], r["partition"]): r for r in result.partitions.to_pylist()}
    assert by_partition["domain", "red"]["pages_sharing"] == 100
    assert by_partition["domain", "red"]["domains"] == ["red"]
    assert by_partition["domain", "blue"]["pages_sharing"] == 0


def test_ksmd_in_partitions_reaches_what_synchronous_merging_does(still: Path) -> None:
    result = run_on(still, PolicySpec("sync", ("domain",), (), AT_BOOT),
                    PolicySpec("ksmd", ("domain",), (), FAST))
    sync, ksmd = row(result, "sync"), row(result, "ksmd")
    assert (sync["pages_shared"], sync["pages_sharing"]) == (
        ksmd["pages_shared"], ksmd["pages_sharing"])


def test_exposure_of_sensitive_domains_stands_apart(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", guests(
        [pages_of([1, 2, 3])], [pages_of([1, 9, 8])], [pages_of([1, 2, 7])],
        [pages_of([7, 6, 5])]))
    found = row(run_on(path, PolicySpec("sync", (), (), Sync((Trigger("boot", 0, 0),))),
                       sensitive=("green",), horizon_ns=SECOND), "sync")
    # Content 1: red, red, blue; 2: red, blue; 7: blue, green. Only 7 exposes green.
    assert found["cross_domain_pages"] == 7
    assert found["cross_domain_sensitive_pages"] == 2


def test_zero_pages_are_counted_apart(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", guests([pages_of([0, 0, 0, 1])] * 2,
                                              [pages_of([0, 1, 2, 3])] * 2))
    found = row(run_on(path, PolicySpec("sync", (), (), AT_BOOT)), "sync")
    assert found["saved_zero_bytes"] == 3 * 4096
    assert found["saved_bytes"] == 4096 - found["metadata_bytes"]


@pytest.mark.parametrize(("kernel", "vanished"), [("6.1", False), ("6.12", True), ("6.18", True)])
def test_zeroes_of_a_huge_page_are_freed_by_its_split(
    tmp_path: Path, kernel: Kernel, vanished: bool
) -> None:
    # 512 pages from a multiple of 512: the first two are equal to two of the other guest.
    huge = pages_of([1, 2, *[0] * 510], flags=[ANON | PageFlag.THP, ANON | PageFlag.THP,
                                            *[ANON | PageFlag.THP | PageFlag.ZERO] * 510])
    path = build_trace(tmp_path / "t", guests([huge] * 2, [pages_of([1, 2])] * 2))
    found = row(run_on(path, PolicySpec("ksmd", (), (), FAST), kernel=kernel), "ksmd")
    assert found["saved_zero_bytes"] == (510 if vanished else 508) * 4096
    assert found["ksm_zero_pages"] == 0
    assert found["pages_sharing"] == (2 if vanished else 2 + 508)


def test_a_policy_may_set_what_the_kernel_lets_be_set(still: Path) -> None:
    smart, plain, advised = (
        PolicySpec(name, (), (), Ksmd(1000, 20, **settings))
        for name, settings in (("smart", {}), ("plain", {"smart_scan": False}),
                               ("advised", {"advisor_mode": "scan-time",
                                            "advisor_min_pages_to_scan": 50})))
    result = run_on(still, smart, plain, advised)
    assert row(result, "smart")["pages_skipped"] > 0
    assert row(result, "plain")["pages_skipped"] == 0
    assert row(result, "plain")["pages_unshared"] == 150
    sizes = [r["pages_to_scan"] for r in result.hosts.to_pylist() if r["policy"] == "advised"]
    assert sizes[0] == 50
    assert len(set(sizes)) > 1
    old = row(run_on(still, smart, kernel="6.1"), "smart")
    assert (old["pages_skipped"], old["pages_unshared"]) == (0, 150)


def test_what_fork_shares_already_is_not_a_saving(tmp_path: Path) -> None:
    shared = pages_of([1, 2, 3], frames=[0, 1, 2])
    path = build_trace(tmp_path / "t", [
        GuestPlan("a", {}, [MmPlan([shared] * 2), MmPlan([shared] * 2)])])
    found = row(run_on(path, PolicySpec("ksmd", (), (), FAST)), "ksmd")
    assert found["guest_memory_bytes"] == 3 * 4096
    assert found["saved_bytes"] == -found["metadata_bytes"]
    assert found["pages_sharing"] == 0


def test_pages_merged_by_ksm_when_captured_are_replayed_unmerged(tmp_path: Path) -> None:
    flags = [ANON | PageFlag.KSM] * 2
    merged = pages_of([1, 2], frames=[0, 1], flags=flags)
    path = build_trace(tmp_path / "t", guests([merged] * 2, [merged] * 2, [merged] * 2))
    result = run_on(path, PolicySpec("one", (), (), Sync((Trigger("boot", 0, 0),))),
                    PolicySpec("domain", ("domain",), (), Sync((Trigger("boot", 0, 0),))))
    assert row(result, "off")["guest_memory_bytes"] == 6 * 4096
    assert row(result, "one")["pages_sharing"] == 4
    assert row(result, "one")["cross_domain_pages"] == 6
    assert row(result, "domain")["pages_sharing"] == 2
    assert row(result, "domain")["cross_domain_pages"] == 0
    assert result.run["hosts"][0]["premerged_bytes"] == 4 * 4096
    warning, = result.run["warnings"]
    assert "saved 16.0 KiB there" in warning
    assert warning[:40] in render_text(result, width=200, colour=False)
    assert warning[:40] in render_html(result)


def test_writes_break_merges_and_are_counted(tmp_path: Path) -> None:
    before, after = pages_of(range(1, 101)), pages_of([*range(1, 51), *range(501, 551)])
    path = build_trace(tmp_path / "t", guests([before, after], [before, before]))
    found = row(run_on(path, PolicySpec("sync", (), (), Sync((Trigger("boot", 0, 0),)))), "sync")
    assert found["cow_breaks"] == 50
    # 50 pages are shared still; the counters say 100 until somebody visits the pages again.
    assert found["pages_sharing"] == 100
    assert found["saved_bytes"] + found["metadata_bytes"] == 50 * 4096
    assert found["unmerge_bytes"] == 50 * 4096
    assert found["saved_peak_bytes"] > found["saved_bytes"]


def test_merging_again_finds_what_appeared_meanwhile(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", guests(
        [pages_of([1, 2]), pages_of([1, 7])], [pages_of([1, 3]), pages_of([1, 7])]))
    once = PolicySpec("once", (), (), Sync((Trigger("boot", 0, 0),)))
    often = PolicySpec("often", (), (), Sync((Trigger("every", 0, 59 * SECOND // 2),)))
    result = run_on(path, once, often)
    assert row(result, "once")["pages_sharing"] == 1
    assert row(result, "often")["pages_sharing"] == 2
    calls = [e for e in result.events.to_pylist() if e["policy"] == "often"]
    assert [e["kind"] for e in calls] == ["sync_merge"] * 4  # two mms at 29.5 s and 59 s
    assert calls[0]["time_ns"] == 59 * SECOND // 2
    assert calls[1]["time_ns"] == calls[0]["time_ns"] + calls[0]["cpu_ns"]


def test_excluded_guests_never_merge(still: Path) -> None:
    policy = PolicySpec("sync", (), ((("tenant", "blue"),),), AT_BOOT)
    found = row(run_on(still, policy), "sync")
    assert (found["pages_shared"], found["pages_sharing"]) == (100, 100)
    assert found["eligible_bytes"] == 300 * 4096
    everything = PolicySpec("none", (), ((("tenant", "blue"),), (("tenant", "red"),)), FAST)
    assert row(run_on(still, everything), "none")["pages_sharing"] == 0


def test_time_to_90_is_the_sample_that_reached_it(still: Path) -> None:
    policy = PolicySpec("sync", (), (), AT_BOOT)
    found = row(run_on(still, policy), "sync")["time_to_90_ns"]
    # There is a sample right after the calls, not only every second.
    assert 5 * SECOND < found < 5.1 * SECOND


def test_full_scans_are_events_and_samples_cover_the_horizon(still: Path) -> None:
    result = run_on(still, PolicySpec("ksmd", (), (), Ksmd(100, 20)), horizon_ns=2 * SECOND)
    scans = [e for e in result.events.to_pylist() if e["kind"] == "full_scan"]
    assert len(scans) == row(result, "ksmd")["full_scans"]
    # 450 pages at 100 a batch: 5 batches a scan, 24 ms apart at 250 Hz.
    assert scans[1]["time_ns"] - scans[0]["time_ns"] == pytest.approx(5 * 24e6, rel=0.05)
    times = [r["time_ns"] for r in result.hosts.to_pylist() if r["policy"] == "ksmd"]
    assert times == [0, SECOND, 2 * SECOND]


def test_the_same_scenario_gives_the_same_tables(still: Path) -> None:
    policies = (PolicySpec("ksmd", (), (), FAST), PolicySpec("sync", ("domain",), (), AT_BOOT))
    one, two = run_on(still, *policies), run_on(still, *policies)
    for name in ("summary", "hosts", "partitions", "events"):
        assert getattr(one, name).equals(getattr(two, name))


def test_the_last_sample_and_the_partitions_are_of_one_moment(still: Path) -> None:
    every = Sync((Trigger("every", 0, 5 * SECOND),))
    for sample_every_ns in (SECOND, 4 * SECOND, 30 * SECOND):
        result = run_on(still, PolicySpec("sync", ("domain",), (), every),
                        PolicySpec("ksmd", ("domain",), (), FAST), horizon_ns=10 * SECOND,
                        sample_every_ns=sample_every_ns)
        for policy in ("sync", "ksmd"):
            mine = [p for p in result.partitions.to_pylist() if p["policy"] == policy]
            for column in ("pages_sharing", "saved_bytes", "merge_cpu_ns"):
                assert sum(p[column] for p in mine) == row(result, policy)[column], column
            times = [s["time_ns"] for s in result.hosts.to_pylist() if s["policy"] == policy]
            assert times == sorted(set(times))
            assert times[-1] == 10 * SECOND
        assert all(event["time_ns"] < 10 * SECOND for event in result.events.to_pylist()
                   if event["kind"] == "sync_merge")


def test_triggers_fire_when_they_say() -> None:
    stays = (Stay(0, 2**62, False), Stay(0, 2**62, False))

    def times(sync: Sync, horizon_ns: int) -> tuple[int, ...]:
        return tuple(each.time_ns for each in timed_rounds(sync, stays, horizon_ns))

    sync = Sync((Trigger("boot", 60 * SECOND, 0), Trigger("every", 0, 50 * SECOND)))
    assert times(sync, 160 * SECOND) == tuple(t * SECOND for t in (50, 60, 100, 150))
    assert times(sync, 10 * SECOND) == ()
    # A call at the very end would free nothing in time.
    assert times(sync, 150 * SECOND) == tuple(t * SECOND for t in (50, 60, 100))
    assert merge_text(sync) == "sync boot + 60.0 s, every 50.0 s"
    assert merge_text(FAST) == "ksmd 1000 pages / 20 ms"


@pytest.mark.parametrize("n", [0, 1, 50, 3000])
def test_contents_are_numbered_alike_by_table_and_by_sort(n: int) -> None:
    values = np.random.default_rng(n).integers(0, max(1, n // 2), n)
    by_table, by_sort = first_equal(values, max(1, n)), first_equal(values, 10**9)
    assert (by_table == by_sort).all()
    assert by_table.tolist() == [values.tolist().index(value) for value in values.tolist()]
