"""Strategies on hosts whose answer is known: partitions, timings, daemons, cooperation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.engine import simulate_host
from planner.fleet import FleetHost, build_host
from planner.ksm import BUILTIN_UNMEASURED, EventTable, Knobs, MergeSpaces, SiteTable
from planner.metrics import EVENTS, HOSTS, PARTITIONS, Recorder
from planner.policies.partition import partition_classes, partition_text
from planner.policies.timing import merges_nothing, timing_text
from planner.scenario.spec import (
    Cooperation,
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    LoadSpec,
    Merge,
    Never,
    PartitionRule,
    PolicySpec,
    Sync,
    SyncAdvisor,
    Trigger,
)
from planner.timeline.records import Pressure
from planner.trace import PageColumns, open_trace
from tests.scenario_builder import SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

MINUTE = 60 * SECOND
FAST = Ksmd(pages_to_scan=1000, sleep_millisecs=20)
AT_BOOT = Sync((Trigger("boot", 5 * SECOND),))
COST = BUILTIN_UNMEASURED
#: On a host of 2 MB: its threshold is no more than the memory, and it sleeps 7 s.
TUNED = Ksmtuned(sleep_msec=1, thres_const=0)


@dataclass
class Rows:
    """What was recorded."""

    hosts: list[dict[str, Any]]
    partitions: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def last(self) -> dict[str, Any]:
        return self.hosts[-1]

    def at(self, time_ns: int) -> dict[str, Any]:
        return next(row for row in self.hosts if row["time_ns"] == time_ns)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def simulate(host: FleetHost, policy: PolicySpec, horizon_ns: int = 10 * MINUTE,
             every_ns: int = 10 * SECOND) -> Rows:
    recorder = Recorder()
    simulate_host(host, policy, sensitive=(), horizon_ns=horizon_ns, sample_every_ns=every_ns,
                  cost=COST, recorder=recorder)
    return Rows(recorder.table(HOSTS).to_pylist(),
                {row["partition"]: row for row in recorder.table(PARTITIONS).to_pylist()},
                recorder.table(EVENTS).to_pylist())


def one(merge: Merge, **options: Any) -> PolicySpec:
    return PolicySpec("p", (), (), merge, **options)


def host_of(path: Path, plans: list[GuestPlan]) -> FleetHost:
    trace = build_trace(path, plans)
    scenario = scenario_for(trace, horizon_ns=10**15)
    return build_host(scenario, scenario.hosts[0], {str(trace): open_trace(trace)})


def guest(name: str, tenant: str, image: str, *mms: tuple[str, list[PageColumns]]) -> GuestPlan:
    return GuestPlan(name, {"tenant": tenant, "image": image},
                     [MmPlan(pages, {"content": content}) for content, pages in mms])


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> FleetHost:
    """Three guests of two tenants that share contents 1..100 and never change: 450 pages."""
    def pages(own: int) -> list[PageColumns]:
        return [pages_of([*range(1, 101), *range(own, own + 50)])] * 2

    return host_of(tmp_path_factory.mktemp("still") / "t", [
        guest("a", "red", "web", ("anon", pages(1000))),
        guest("b", "red", "db", ("anon", pages(2000))),
        guest("c", "blue", "web", ("anon", pages(3000)))])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> FleetHost:
    """Two guests with heap, stack and zero pages; half of each stack changes every minute."""
    def heap(own: int) -> list[PageColumns]:
        return [pages_of([*range(1, 101), *range(own, own + 20), *[0] * 40])] * 6

    def stack(own: int) -> list[PageColumns]:
        return [pages_of([*range(200, 230), *range(own + 1000 * turn, own + 1000 * turn + 30)])
                for turn in range(6)]

    return host_of(tmp_path_factory.mktemp("mixed") / "t", [
        guest("a", "red", "web", ("heap", heap(10_000)), ("stack", stack(20_000))),
        guest("b", "blue", "web", ("heap", heap(30_000)), ("stack", stack(40_000)))])


def small(host: FleetHost, memory_kb: int, **options: Any) -> FleetHost:
    """The same host with so little memory, of which nothing is reserved."""
    return replace(host, spec=replace(host.spec, memory_bytes=memory_kb * 1024, reserved_bytes=0,
                                      **options))


# ---- partitions -------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "shared"), [
    ((), {"all": (100, 200)}), (("image",), {"web": (100, 100), "db": (0, 0)}),
    (("tenant", "image"), {"red + web": (0, 0), "red + db": (0, 0), "blue + web": (0, 0)}),
    (("content",), {"anon": (100, 200)}),
    (("content", "tenant"), {"anon + red": (100, 100), "anon + blue": (0, 0)})])
def test_any_labels_of_guests_and_regions_make_partitions(
        still: FleetHost, keys: tuple[str, ...], shared: dict[str, tuple[int, int]]) -> None:
    found = simulate(still, PolicySpec("p", keys, (), AT_BOOT), MINUTE).partitions
    assert {name: (row["pages_shared"], row["pages_sharing"]) for name, row in found.items()
            if row["eligible_pages"]} == shared


def test_explicit_partitions_come_first_and_keep_their_own_time(still: FleetHost) -> None:
    policy = PolicySpec("p", ("tenant",), (), Sync((Trigger("boot", 5 * SECOND),)), (
        PartitionRule("webs", ((("image", "web"),),), FAST),
        PartitionRule("quiet", ((("image", "db"), ("tenant", "red")),), Never())))
    partitions = partition_classes(still, policy)
    assert partitions.names == ("webs", "quiet")
    assert partitions.merge_of(policy, 0) == FAST
    found = simulate(still, policy, MINUTE)
    assert (found.partitions["webs"]["pages_shared"], found.partitions["quiet"]["pages_shared"]) \
        == (100, 0)
    assert {event["partition"] for event in found.of_kind("full_scan")} == {"webs"}
    assert found.of_kind("sync_merge") == []
    assert partition_text(policy) == "webs, quiet, else tenant"
    assert timing_text(policy) == "sync boot + 5.00 s; webs: ksmd 1000 pages / 20 ms; quiet: never"


def test_what_no_rule_takes_follows_the_policy(still: FleetHost) -> None:
    policy = PolicySpec("p", (), (), AT_BOOT, (
        PartitionRule("blues", ((("tenant", "blue"),), (("tenant", "green"),)),
                      Sync((Trigger("every", 0, 20 * SECOND),))),))
    found = simulate(still, policy, MINUTE)
    assert list(found.partitions) == ["rest", "blues"]
    assert found.partitions["rest"]["pages_sharing"] == 100
    times = {name: [event["time_ns"] for event in found.of_kind("sync_merge")
                    if event["partition"] == name] for name in found.partitions}
    assert times["blues"] == [20 * SECOND, 40 * SECOND]
    assert times["rest"][0] == 5 * SECOND
    assert len(times["rest"]) == 2


def test_each_partition_has_a_scanner_with_its_own_knobs(still: FleetHost) -> None:
    def fastest(tenant: str) -> PartitionRule:
        return PartitionRule(tenant, ((("tenant", tenant),),), FAST)

    found = simulate(still, PolicySpec("p", ("tenant",), (), Ksmd(10, 200), (fastest("blue"),)),
                     MINUTE)
    scans = {name: sum(event["partition"] == name for event in found.of_kind("full_scan"))
             for name in ("red", "blue")}
    # 30 batches of 10 pages every 200 ms for red, one every 20 ms for blue.
    assert 5 <= scans["red"] <= 12
    assert scans["blue"] > 1000


def test_explicit_and_other_partitions_of_one_name_are_told_apart(still: FleetHost) -> None:
    policy = PolicySpec("p", ("tenant",), (), AT_BOOT,
                        (PartitionRule("red", ((("image", "web"),),)),))
    assert partition_classes(still, policy).names == ("red", "red (2)")


# ---- daemons ----------------------------------------------------------------------------------


def test_ksmtuned_runs_ksmd_under_pressure_and_stops_it_afterwards(still: FleetHost) -> None:
    # 1800 kB of 2250 are in use, and 20 % of them is exactly what is left.
    host = small(still, 2250)
    found = simulate(host, one(TUNED))
    assert [(event["kind"], event["time_ns"]) for event in found.events
            if event["kind"].startswith("scanner")] == [("scanner_started", MINUTE)]
    # So much is committed that it runs, but free memory is not below the threshold: no boost.
    assert found.last["pages_to_scan"] == 64
    assert found.at(MINUTE)["pages_scanned"] == 0
    assert (found.last["pages_shared"], found.last["pages_sharing"]) == (100, 200)
    boosted = simulate(small(still, 2200), one(TUNED))
    assert [row["pages_to_scan"] for row in boosted.hosts[6:20:6]] == [300, 250, 200]
    # Much room and nothing committed: it never starts.
    idle = simulate(small(still, 1 << 20), one(Ksmtuned()))
    assert (idle.last["pages_scanned"], idle.last["merge_cpu_ns"]) == (0, 0)


def test_what_ksmtuned_stops_stays_merged(still: FleetHost) -> None:
    # The third guest leaves after six minutes, and with it the need.
    host = small(still, 2250)
    gone = np.flatnonzero(host.site_mm == 2).astype(np.int32)
    left = replace(
        host, event_time_ns=np.full(len(gone), 6 * MINUTE, np.int64), event_site=gone,
        event_content=np.full(len(gone), -1, np.int32),
        event_frame=np.full(len(gone), -1, np.int32),
        guest_start_ns=np.zeros(3, np.int64), guest_cause=np.zeros(3, np.int8),
        guest_end_ns=np.array([2**62, 2**62, 6 * MINUTE], np.int64))
    found = simulate(left, one(TUNED))
    stopped, = found.of_kind("scanner_stopped")
    assert stopped["time_ns"] == 6 * MINUTE
    assert found.last["saved_bytes"] + found.last["metadata_bytes"] == 100 * 4096
    scanned = found.at(6 * MINUTE)["pages_scanned"]
    assert found.last["pages_scanned"] == scanned > 0
    assert [found.at(t)["n_guests"] for t in (5 * MINUTE, 6 * MINUTE)] == [3, 2]


def test_kubevirt_looks_at_once_and_winds_down(still: FleetHost) -> None:
    # 1800 of 2200 kB used: pressure; merged 1000 kB: none. It sleeps long on so small a host.
    loop = KubeVirt(interval_ns=MINUTE, sleep_ms_baseline=3)
    found = simulate(small(still, 2200), one(loop))
    steps = [(event["kind"], event["time_ns"]) for event in found.events
             if event["kind"] in ("scanner_started", "scanner_stopped", "knobs_changed")]
    assert steps[0] == ("scanner_started", 0)
    assert steps[-1] == ("scanner_stopped", 8 * MINUTE)
    # 100 pages in the first minute (after the sample at 0), 400 in the next, then 50 less a minute.
    assert [found.at(t * MINUTE)["pages_to_scan"] for t in range(9)] \
        == [0, 400, 350, 300, 250, 200, 150, 100, 100]
    assert found.last["pages_sharing"] == 200
    assert found.of_kind("full_scan")[-1]["time_ns"] < steps[-1][1] + SECOND


def test_daemons_see_the_memory_that_a_sample_stands_for(still: FleetHost) -> None:
    def started(share: float) -> int:
        host = replace(small(still, 2200 * 4), content_share=share)
        return len(simulate(host, one(TUNED), 3 * MINUTE)
                   .of_kind("scanner_started"))

    assert (started(0.25), started(1.0)) == (1, 0)


# ---- triggers ---------------------------------------------------------------------------------


def test_pressure_triggers_merging_when_memory_runs_short(still: FleetHost) -> None:
    policy = one(Sync((Trigger("pressure", share=0.2),)))
    found = simulate(small(still, 2200), policy)
    assert [event["time_ns"] for event in found.of_kind("trigger_pressure")] == [0]
    assert found.last["pages_sharing"] == 200
    assert simulate(small(still, 2300), policy).events == []
    # After merging there is room: with `every` it would fire on only while pressure lasts.
    again = one(Sync((Trigger("pressure", every_ns=MINUTE, share=0.2),)))
    assert len(simulate(small(still, 2200), again).of_kind("trigger_pressure")) == 1
    assert len(simulate(small(still, 1200), again).of_kind("trigger_pressure")) == 10


def test_idle_triggers_merging_when_the_host_is_idle(still: FleetHost) -> None:
    host = replace(still, spec=replace(still.spec, load=LoadSpec(0.9, 0.1, 8 * MINUTE)))
    found = simulate(host, one(Sync((Trigger("idle", share=0.5),))), 20 * MINUTE)
    times = [event["time_ns"] for event in found.of_kind("trigger_idle")]
    assert len(times) == 3  # the load falls under a half every 8 minutes, first after 2
    assert all(0 <= time - wanted * MINUTE <= 10 * SECOND
               for time, wanted in zip(times, (2, 10, 18), strict=True))
    assert simulate(still, one(Sync((Trigger("idle", share=0.5),)))) \
        .of_kind("trigger_idle")[0]["time_ns"] == 0


def coming(host: FleetHost, start_s: list[int], end_s: list[int], cause: list[int]) -> FleetHost:
    """The guests of `host` come and go at these times."""
    start = np.array(start_s, np.int64) * SECOND
    end = np.array(end_s, np.int64) * SECOND
    guest_of_site = np.array([mm.guest for mm in host.mms])[host.site_mm]
    late = np.flatnonzero(start[guest_of_site] > 0).astype(np.int32)
    site = np.concatenate([late, np.arange(len(guest_of_site), dtype=np.int32)])
    times = np.concatenate([start[guest_of_site[late]], end[guest_of_site]])
    content = np.concatenate([host.site_content[late], np.full(len(guest_of_site), -1, np.int32)])
    frame = np.concatenate([host.site_frame[late], np.full(len(guest_of_site), -1, np.int32)])
    order = np.argsort(times, kind="stable")
    first = np.where(start[guest_of_site] > 0, -1, host.site_content)
    return replace(
        host, site_content=first.astype(np.int32), event_time_ns=times[order],
        event_site=site[order], event_content=content[order].astype(np.int32),
        event_frame=frame[order].astype(np.int32), guest_start_ns=start, guest_end_ns=end,
        guest_cause=np.array(cause, np.int8))


def test_each_guest_boots_at_its_own_time_and_is_not_called_when_gone(still: FleetHost) -> None:
    host = coming(still, [0, 100, 200], [10_000, 150, 10_000], [0, 2, 1])
    sync = Sync((Trigger("boot", 10 * SECOND), Trigger("every", 0, 160 * SECOND)))
    found = simulate(host, one(sync))
    calls = [(event["guest"], event["time_ns"] // SECOND) for event in found.of_kind("sync_merge")]
    # c was restored from a snapshot, which is no boot; b is gone before the first round of all.
    assert calls == [("a", 10), ("b", 110), ("a", 160), ("a", 320), ("c", 320), ("a", 480),
                     ("c", 480)]
    restored = simulate(host, one(Sync((Trigger("restore", 30 * SECOND),))))
    assert [(event["guest"], event["time_ns"] // SECOND)
            for event in restored.of_kind("sync_merge")] == [("c", 230)]
    assert [restored.at(t * SECOND)["n_guests"] for t in (90, 100, 150, 200)] == [1, 2, 1, 2]
    # ksmd copes with the same host.
    assert simulate(host, one(FAST)).last["pages_sharing"] == 100


def test_means_over_time_know_when_guests_come_and_go(still: FleetHost) -> None:
    # b comes at 100 s, is called at 110 s and leaves at 150 s: samples each minute alone would
    # let it stay until 180 s.
    host = coming(still, [0, 100, 200], [10_000, 150, 10_000], [0, 0, 0])
    memory = {}
    for name, merge in (("called", Sync((Trigger("boot", 10 * SECOND),))), ("never", Never())):
        rows = simulate(host, one(merge), every_ns=MINUTE).hosts
        times = [row["time_ns"] // SECOND for row in rows if row["time_ns"] % SECOND == 0]
        assert {100, 150, 200} < set(times)
        memory[name] = sum(row["guest_memory_bytes"] * (after["time_ns"] - row["time_ns"])
                           for row, after in itertools.pairwise(rows))
    assert memory["called"] == memory["never"] == 150 * 4096 * (600 + 50 + 400) * SECOND


def test_what_guests_leave_behind_is_freed(still: FleetHost) -> None:
    host = coming(still, [0, 0, 0], [10_000, 100, 100], [0, 0, 0])
    called = simulate(host, one(AT_BOOT))
    assert called.at(90 * SECOND)["metadata_bytes"] == 450 * 64 + 100 * 64 + 3 * 48
    # Nobody passes again: it is freed when they exit.
    assert called.at(100 * SECOND)["metadata_bytes"] == 150 * 64 + 100 * 64 + 48
    for merge in (FAST, AT_BOOT, Sync((Trigger("every", 0, 10 * SECOND),))):
        empty = simulate(coming(still, [0, 0, 0], [100, 100, 100], [0, 0, 0]), one(merge))
        assert empty.at(90 * SECOND)["pages_sharing"] == 200
        for name in ("metadata_bytes", "pages_shared", "pages_sharing", "guest_memory_bytes"):
            assert empty.at(110 * SECOND)[name] == 0, (merge, name)
        # An empty list is not scanned, and nobody is called.
        assert [empty.last[name] for name in ("full_scans", "merge_cpu_ns")] \
            == [empty.at(110 * SECOND)[name] for name in ("full_scans", "merge_cpu_ns")]


def test_what_guests_shared_before_they_left_is_told(still: FleetHost) -> None:
    host = coming(still, [0, 0, 0], [100, 100, 100], [0, 0, 0])
    for merge in (FAST, AT_BOOT):
        row = simulate(host, one(merge)).partitions["all"]
        assert (row["cross_domain_pages"], row["most_cross_domain_pages"]) == (0, 300)
    apart = simulate(host, PolicySpec("p", ("domain",), (), FAST)).partitions
    assert [row["most_cross_domain_pages"] for row in apart.values()] == [0, 0]


def test_memory_needed_otherwise_is_pressure(still: FleetHost) -> None:
    policy = one(Sync((Trigger("pressure", share=0.2),)))
    host = replace(small(still, 4000), pressure=(
        Pressure(0, 200 * SECOND, 300 * SECOND, 1500 * 1024),))
    found = simulate(host, policy)
    assert [event["time_ns"] for event in found.of_kind("trigger_pressure")] == [200 * SECOND]
    assert [found.at(t * SECOND)["available_bytes"] // 1024 for t in (190, 200, 290, 300)] \
        == [4000, 2500, 2500, 4000]


def test_a_stopped_call_goes_on_where_it_was(still: FleetHost) -> None:
    every = Trigger("every", 0, 5 * SECOND)
    whole = simulate(still, one(Sync((every,))), MINUTE)
    parts = simulate(still, one(Sync((every,), longest_call_ns=400_000)), MINUTE)
    per_call = [event["tried_pages"] for event in parts.of_kind("sync_merge")
                if event["guest"] == "a"]
    assert per_call[0] < 150  # stopped
    assert all(event["cpu_ns"] < 450_000 for event in parts.of_kind("sync_merge"))
    # They go on, come to the end of the guest and begin anew.
    n_first = next(n for n in range(1, len(per_call)) if sum(per_call[:n]) >= 150)
    assert sum(per_call[:n_first]) == 150
    assert len(per_call) > n_first
    assert parts.at(10 * SECOND)["pages_sharing"] < whole.at(10 * SECOND)["pages_sharing"]
    assert parts.last["pages_sharing"] == whole.last["pages_sharing"] == 200


def test_staggered_guests_are_called_one_after_another(still: FleetHost) -> None:
    found = simulate(still, one(Sync((Trigger("boot", 5 * SECOND),), stagger_ns=20 * SECOND)))
    assert [(event["guest"], event["time_ns"] // SECOND) for event in found.events] \
        == [("a", 5), ("b", 25), ("c", 45)]


def test_the_advisor_calls_memory_at_rest_ever_more_rarely(still: FleetHost) -> None:
    advisor = SyncAdvisor(10 * SECOND, 160 * SECOND, 1 << 20)
    found = simulate(still, PolicySpec("p", ("tenant",), (), Sync((), advisor=advisor)))
    calls = [event["time_ns"] // SECOND for event in found.of_kind("sync_merge")
             if event["partition"] == "blue"]
    # Alone, blue never gains: 10, 20, 40, 80, 160 s apart; left out from the third time on
    # until the interval is the longest.
    assert calls == [10, 30, 70, 310, 470]
    assert found.partitions["red"]["pages_sharing"] == 100
    often = simulate(still, PolicySpec("p", ("tenant",), (), Sync((Trigger("every", 0,
                                                                          10 * SECOND),))))
    assert found.last["merge_cpu_ns"] < often.last["merge_cpu_ns"] / 3


# ---- cooperation ------------------------------------------------------------------------------


def test_guests_that_name_ranges_have_less_scanned(mixed: FleetHost) -> None:
    heaps = Cooperation("ranges", ((("content", "heap"),),))
    alone = simulate(mixed, one(FAST), 5 * MINUTE)
    named = simulate(mixed, one(FAST, cooperation=heaps), 5 * MINUTE)
    assert named.last["eligible_bytes"] == 2 * 160 * 4096
    assert named.last["pages_sharing"] == alone.last["pages_sharing"] - 30
    assert named.last["scanner_cpu_ns"] < alone.last["scanner_cpu_ns"]
    told = named.of_kind("ranges_named")
    assert [(event["guest"], event["tried_pages"], event["candidate_pages"]) for event in told] \
        == [("a", 1, 60), ("b", 1, 60)]
    assert [event["cpu_ns"] for event in told] == [COST.call_ns + COST.quick_ns] * 2
    assert named.last["caller_cpu_ns"] == 2 * (COST.call_ns + COST.quick_ns)
    assert named.last["merge_cpu_ns"] == \
        named.last["scanner_cpu_ns"] + named.last["caller_cpu_ns"]
    assert partition_text(one(FAST, cooperation=heaps)) == "none, only content=heap"


def test_guests_that_cooperate_fully_leave_out_free_and_volatile_pages(mixed: FleetHost) -> None:
    alone = simulate(mixed, one(FAST), 5 * MINUTE)
    full = simulate(mixed, one(FAST, cooperation=Cooperation("full")), 5 * MINUTE)
    assert alone.last["saved_zero_bytes"] > 0
    assert full.last["saved_zero_bytes"] == 0
    assert full.last["pages_sharing"] == 130  # all that is at rest and not zero
    told = full.of_kind("ranges_named")
    # At first the zero pages of both heaps; from then on the pages that stacks wrote.
    assert [(event["guest"], event["time_ns"]) for event in told[:3]] \
        == [("a", 0), ("b", 0), ("", 0)]
    assert told[2]["candidate_pages"] == 80
    assert told[-1]["candidate_pages"] > 80
    assert full.last["pages_scanned"] < alone.last["pages_scanned"]
    assert full.last["caller_cpu_ns"] == sum(event["cpu_ns"] for event in told)
    # Nobody knows beforehand which pages will be written: early on they are tried.
    sync = simulate(mixed, one(Sync((Trigger("every", 0, 90 * SECOND),)),
                               ), 5 * MINUTE)
    careful = simulate(mixed, one(Sync((Trigger("every", 0, 90 * SECOND),)),
                                  cooperation=Cooperation("full")), 5 * MINUTE)
    tried = [[sum(event["tried_pages"] for event in rows.of_kind("sync_merge")
                  if event["time_ns"] // SECOND // 90 == turn) for turn in (1, 3)]
             for rows in (sync, careful)]
    assert tried[0] == [2 * 220, 2 * 220]
    assert tried[1][1] < tried[0][1] - 80


def test_pages_left_out_are_no_candidates_and_merged_ones_stay() -> None:
    n = 4
    spaces = MergeSpaces(
        SiteTable(np.zeros(n, np.int32), np.arange(n, dtype=np.int64), np.zeros(n, np.int32),
                  np.zeros(n, np.int32), np.ones(n, np.uint8), np.array([0, 0, 1, 1], np.int32),
                  np.arange(n, dtype=np.int32)), EventTable.empty(), n_partitions=1,
        content_is_zero=[0, 0], domain_is_sensitive=[0])
    everyone = np.arange(n, dtype=np.int32)
    assert spaces.merge_range(0, 0, 0, 3).candidate_pages == 2
    assert spaces.counters().rmap_items == 3
    # The pair of content 0 is merged; 2 is a candidate, whose item goes; 3 was never seen.
    assert spaces.leave_out(everyone, True) == 2
    assert spaces.counters().rmap_items == 2
    again = spaces.merge_range(0, 0, 0, n)
    assert (again.tried_pages, again.already_pages, again.merged_pages) == (2, 2, 0)
    assert spaces.counters().pages_sharing == 1
    assert spaces.leave_out(everyone, False) == 2
    assert spaces.merge_range(0, 0, 0, n).merged_pages == 1
    assert spaces.counters().pages_sharing == 2


# ---- baselines --------------------------------------------------------------------------------


def test_free_page_reporting_gives_the_zero_part_without_merging(mixed: FleetHost) -> None:
    policy = one(FreePages("reporting"))
    found = simulate(mixed, policy, 5 * MINUTE)
    assert found.last["saved_zero_bytes"] == 80 * 4096  # not even one page stays
    assert found.last["saved_bytes"] == found.last["cross_domain_pages"] == 0
    assert found.last["unmerge_bytes"] == 80 * 4096
    assert found.last["merge_cpu_ns"] == 80 * COST.quick_ns
    assert found.partitions["all"]["saved_zero_bytes"] == 80 * 4096
    assert merges_nothing(policy)
    assert timing_text(policy) == "free page reporting"
    without = replace(policy, exclude=((("tenant", "red"),),))
    assert simulate(mixed, without, MINUTE).last["saved_zero_bytes"] == 40 * 4096


def zeroed_and_used(host: FleetHost) -> FleetHost:
    """Ten pages of the first guest become zero after 30 s; 5 zero pages are used after 90 s."""
    zero = int(host.site_content[np.flatnonzero(
        host.content_is_zero[np.maximum(host.site_content, 0)] != 0)[0]])
    is_zero = host.site_content == zero
    written = np.flatnonzero(~is_zero & (host.site_mm == 0))[:10].astype(np.int32)
    used = np.flatnonzero(is_zero)[:5].astype(np.int32)
    n = len(written) + len(used)
    return replace(
        host, event_time_ns=np.repeat([30 * SECOND, 90 * SECOND], [10, 5]).astype(np.int64),
        event_site=np.concatenate([written, used]),
        event_content=np.concatenate([np.full(10, zero), np.full(5, 3)]).astype(np.int32),
        event_frame=np.arange(host.n_frames, host.n_frames + n, dtype=np.int32),
        n_frames=host.n_frames + n)


def test_pages_given_back_follow_the_writes(mixed: FleetHost) -> None:
    host = zeroed_and_used(mixed)

    def zero_pages(rows: Rows) -> list[int]:
        return [rows.at(t * SECOND)["saved_zero_bytes"] // 4096 for t in (0, 30, 60, 90, 120)]

    reporting = simulate(host, one(FreePages("reporting")), 3 * MINUTE)
    assert zero_pages(reporting) == [80, 90, 90, 85, 85]
    assert reporting.last["merge_cpu_ns"] == 90 * COST.quick_ns
    assert reporting.last["cow_cpu_ns"] == 5 * COST.cow_break_ns
    balloon = simulate(host, one(FreePages("balloon", MINUTE)), 3 * MINUTE)
    assert zero_pages(balloon) == [0, 0, 90, 85, 85]
    assert [event["tried_pages"] for event in balloon.of_kind("pages_given_back")] == [90, 0]
    assert balloon.last["merge_cpu_ns"] == 90 * COST.quick_ns + 2 * COST.call_ns


def test_a_zero_frame_that_fork_shares_is_freed_once(tmp_path: Path) -> None:
    shared = pages_of([0, 0, 7], frames=[0, 1, 2])
    host = host_of(tmp_path / "t", [
        guest("a", "red", "web", ("heap", [shared] * 2), ("heap", [shared] * 2))])
    found = simulate(host, one(FreePages("reporting")), MINUTE)
    assert found.last["guest_memory_bytes"] == 3 * 4096
    assert found.last["saved_zero_bytes"] == 2 * 4096


def test_merging_within_guests_only_loses_all_that_guests_share(still: FleetHost) -> None:
    inside = simulate(still, PolicySpec("p", ("guest",), (), FAST), MINUTE)
    assert (inside.last["pages_sharing"], inside.last["cross_domain_pages"]) == (0, 0)
    assert inside.last["merge_cpu_ns"] > 0


# ---- what all have in common ------------------------------------------------------------------


MERGES: tuple[Merge, ...] = (
    Never(), FAST, AT_BOOT, TUNED, KubeVirt(interval_ns=MINUTE),
    Sync((Trigger("every", 0, MINUTE), Trigger("pressure", every_ns=MINUTE, share=0.9),
          Trigger("idle", share=0.3)), 1_000_000, SECOND,
         SyncAdvisor(10 * SECOND, MINUTE, 1 << 25)),
    FreePages("reporting"), FreePages("balloon", MINUTE))


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: type(merge).__name__)
@pytest.mark.parametrize("keys", [(), ("tenant",)])
def test_cpu_time_adds_up_and_every_run_is_the_same(mixed: FleetHost, merge: Merge,
                                                    keys: tuple[str, ...]) -> None:
    host = small(mixed, 2200)
    policy = PolicySpec("p", keys, (), merge, (
        PartitionRule("stacks", ((("content", "stack"),),), FAST),),
        Cooperation("full"))
    found = simulate(host, policy, 4 * MINUTE)
    assert found == simulate(host, policy, 4 * MINUTE)
    for row in found.hosts:
        assert row["merge_cpu_ns"] == row["scanner_cpu_ns"] + row["caller_cpu_ns"] \
            + row["unmerge_cpu_ns"]
    assert sum(row["merge_cpu_ns"] for row in found.partitions.values()) \
        == found.last["merge_cpu_ns"]
    assert found.last["cow_cpu_ns"] >= found.last["cow_breaks"] * COST.cow_break_ns
    calls = sum(event["cpu_ns"] for event in found.events
                if event["kind"] in ("sync_merge", "ranges_named"))
    if not isinstance(merge, FreePages):
        assert found.last["caller_cpu_ns"] == calls


@pytest.mark.parametrize(("merge", "keys"), [
    (FAST, ()), (FAST, ("tenant",)), (TUNED, ()), (KubeVirt(sleep_ms_baseline=3), ("tenant",))])
def test_knobs_are_translated_before_any_scanner_gets_them(
        still: FleetHost, merge: Merge, keys: tuple[str, ...]) -> None:
    ends = []

    def scanned(knobs: Callable[[Knobs], Knobs] | None) -> int:
        recorder = Recorder()
        simulate_host(small(still, 2200), PolicySpec("p", keys, (), merge), sensitive=(),
                      horizon_ns=3 * MINUTE, sample_every_ns=MINUTE, cost=COST, recorder=recorder,
                      knobs=knobs, at_end=lambda spaces: ends.append(spaces.now_ns))
        return int(recorder.table(HOSTS).to_pylist()[-1]["pages_scanned"])

    given: list[Knobs] = []

    def slower(knobs: Knobs) -> Knobs:
        given.append(knobs)
        return replace(knobs, pages_to_scan=1)

    assert scanned(slower) < scanned(None) / 10
    assert {knobs.pages_to_scan for knobs in given} & {1000, 300, 100}
    assert ends == [3 * MINUTE] * 2
