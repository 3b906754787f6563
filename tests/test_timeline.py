"""Who comes to a fleet when, and what befalls guests and hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.arrivals import ArrivalTable, arrival_table
from planner.errors import DataError
from planner.scenario.spec import (
    ArrivalsSpec,
    DomainsSpec,
    DrawSpec,
    FleetSpec,
    GuestSpec,
    HostSpec,
    IncidentSpec,
    LifetimeSpec,
    OutputSpec,
    PolicySpec,
    Scenario,
    WorkloadSpec,
)
from planner.timeline import Cause, Incident, Pressure, Requests, Timeline, draw_requests, place
from planner.timeline.lifetimes import FOREVER_NS, log_normal, residual_lives, survival
from planner.timeline.placement import PLACEMENTS
from tests.oracles import placing as oracle
from tests.scenario_builder import NEVER, SECOND
from tests.test_placement import guests_of, requests_of, sketch_of

HOUR = 3600 * SECOND
GIB = 1 << 30


def workload(name: str, captured: Sequence[str] = ("a", "b"), **draw: Any) -> WorkloadSpec:
    """A drawn workload; `captured` are the domains of its captured guests."""
    guests = tuple(GuestSpec(k, f"{name}-captured-{k}", domain, domain, ())
                   for k, domain in enumerate(captured))
    return WorkloadSpec(name, f"traces/{name}", "", "", (), guests, "captured", DrawSpec(**draw))


def scenario(*workloads: WorkloadSpec, horizon_ns: int = 100 * HOUR, seed: int = 1,
             hosts: Sequence[HostSpec] = (), policies: Sequence[PolicySpec] = (NEVER,),
             **fleet: Any) -> Scenario:
    return Scenario(
        1, "test", seed, horizon_ns, tuple(hosts) or (host(16 * GIB, count=4),), workloads,
        DomainsSpec((), ()), tuple(policies), OutputSpec("results", SECOND),
        fleet=FleetSpec(**fleet))


def host(room: int, *, count: int = 1, name: str = "h") -> HostSpec:
    """A kind of host with this much room for guests."""
    return HostSpec(name, room + GIB, GIB, 2, 250, "builtin:unmeasured", count=count)


def draw(spec: Scenario, table: ArrivalTable | None = None, replicate: int = 0) -> Requests:
    return draw_requests(spec, [GIB] * len(spec.workloads), replicate, table)


def facts(requests: Requests) -> dict[str, tuple[Any, ...]]:
    """All that was drawn for each guest, by its name."""
    return {name: (requests.domains[requests.domain[k]], *(
        int(column[k]) for column in (requests.memory_bytes, requests.start_ns, requests.end_ns,
                                      requests.is_restored, requests.batch)))
        for k, name in enumerate(requests.name)}


def table_of(rows: Sequence[tuple[int, int, int, int, int]]) -> ArrivalTable:
    """Rows of (time, duration or -1, seen running or -1, memory, tenant)."""
    time, duration, censored, memory, tenant = zip(*rows, strict=True)
    table, n_late = arrival_table("table", {
        "time_ns": time, "duration_ns": duration, "censored_ns": censored,
        "memory_bytes": memory, "cores": [1.0] * len(rows), "tenant": tenant,
        "flavour": [0] * len(rows)}, ["small"], {})
    assert n_late == 0
    return table


def from_table(**values: Any) -> ArrivalsSpec:
    return ArrivalsSpec("table", "", **values)


# Requests


def test_guests_are_there_at_the_start_with_domains_dealt_in_turn() -> None:
    requests = draw(scenario(
        workload("web", count=5, domains=("x", "y", "z"), memory_bytes=4 * GIB),
        workload("db", count=3, is_restored=True)))
    assert requests.name == ("web-1", "web-2", "web-3", "web-4", "web-5", "db-1", "db-2", "db-3")
    assert [requests.domains[k] for k in requests.domain] == [
        "x", "y", "z", "x", "y", "a", "b", "a"]
    assert requests.workload.tolist() == [0] * 5 + [1] * 3
    assert requests.memory_bytes.tolist() == [4 * GIB] * 5 + [GIB] * 3
    assert requests.is_restored.tolist() == [False] * 5 + [True] * 3
    assert set(requests.start_ns.tolist()) == {0}
    assert set(requests.end_ns.tolist()) == {100 * HOUR}
    assert set(requests.batch.tolist()) == {-1}


def test_lives_have_the_median_and_the_percentile_that_were_asked_for() -> None:
    stream = np.random.default_rng(1)
    lives = log_normal(LifetimeSpec(9 * HOUR, 72 * HOUR), 40_000, stream)
    assert np.median(lives) == pytest.approx(9 * HOUR, rel=0.03)
    assert np.quantile(lives, 0.95) == pytest.approx(72 * HOUR, rel=0.05)
    assert set(log_normal(LifetimeSpec(HOUR, HOUR), 3, stream).tolist()) == {HOUR}
    assert (log_normal(None, 2, stream) >= FOREVER_NS).all()


def test_poisson_arrivals_have_their_rate_and_independent_spans() -> None:
    requests = draw(scenario(workload("web", arrivals_per_hour=200.0)))
    n = len(requests)
    assert n == pytest.approx(20_000, abs=5 * 20_000**0.5)
    spans = np.diff(requests.start_ns)
    assert spans.std() == pytest.approx(spans.mean(), rel=0.05)
    assert abs(np.corrcoef(spans[:-1], spans[1:])[0, 1]) < 0.05
    assert 0 <= requests.start_ns.min() <= requests.start_ns.max() < 100 * HOUR


def test_other_workloads_hosts_policies_and_a_longer_time_change_nobodys_numbers() -> None:
    lifetime = LifetimeSpec(5 * HOUR, 50 * HOUR)
    web = workload("web", count=20, arrivals_per_hour=2.0, lifetime=lifetime)
    day = facts(draw(scenario(web)))
    table = table_of([(k * HOUR, -1, k, GIB, k // 3) for k in range(30)])
    more = scenario(
        workload("ci", count=7, arrivals_per_hour=3.0, lifetime=lifetime, table_share=1.0), web,
        hosts=[host(64 * GIB), host(16 * GIB, count=9, name="other")],
        policies=[NEVER, replace(NEVER, name="again")], placement="spread",
        arrivals=from_table(), incidents=(IncidentSpec("fail", HOUR),))
    assert day["web-1"][3] not in {fact[3] - fact[2] for name, fact in day.items()
                                   if "later" in name}
    assert day.items() <= facts(draw(more, table)).items()
    counted = replace(web, draw=replace(web.draw, count=25))
    assert day.items() <= facts(draw(scenario(counted))).items()
    longer = facts(draw(scenario(web, horizon_ns=150 * HOUR)))
    assert set(day) < set(longer)
    for name, (domain, memory, start, end, *_) in day.items():
        assert longer[name][:3] == (domain, memory, start)
        assert min(longer[name][3], 100 * HOUR) == end


def test_which_rows_come_changes_nobodys_numbers() -> None:
    rng = np.random.default_rng(5)
    rows = [(k * HOUR, int(rng.integers(HOUR, 9 * HOUR)), -1, GIB, k // 2) for k in range(60)]
    rows += [(60 * HOUR, -1, HOUR, GIB, 90)] * 3
    both = [workload("web", table_share=0.5), workload("db", table_share=0.5)]
    whole = draw(scenario(*both, arrivals=from_table()), table_of(rows))
    later = draw(scenario(*both, arrivals=from_table(from_ns=30 * HOUR, limit=20)), table_of(rows))
    early = {name: fact[:2] for name, fact in facts(whole).items()}
    assert len(later) == 20
    for name, fact in facts(later).items():
        assert early[name] == fact[:2]


def test_replicates_and_seeds_are_different_draws() -> None:
    web = workload("web", count=30, arrivals_per_hour=2.0, lifetime=LifetimeSpec(HOUR, 9 * HOUR))
    ends = {tuple(draw(scenario(web, seed=seed), replicate=replicate).end_ns[:30].tolist())
            for seed in (1, 2) for replicate in (0, 1)}
    assert len(ends) == 4


def test_rows_of_a_table_come_on_the_scenarios_clock() -> None:
    table = table_of([(HOUR, HOUR, -1, GIB, 1), (2 * HOUR, 3 * HOUR, -1, 2 * GIB, 1),
                      (3 * HOUR, 4 * HOUR, -1, 99 * GIB, 2), (4 * HOUR, HOUR, -1, 3 * GIB, -1),
                      (999 * HOUR, HOUR, -1, GIB, 3)])
    web = workload("web", table_share=1.0)
    requests = draw(scenario(web, arrivals=from_table(from_ns=2 * HOUR, speed=2.0)), table)
    assert facts(requests) == {
        "web-row-1": ("tenant-1", 2 * GIB, 0, 3 * HOUR // 2, 0, 1),
        "web-row-3": ("tenant-of-row-3", 3 * GIB, HOUR, 3 * HOUR // 2, 0, -1)}
    assert requests.notes == ("1 of 3 arrivals of the table need more memory than any host has "
                              "for guests (16.0 GiB) and do not come",)
    limited = draw(scenario(web, arrivals=from_table(limit=2)), table)
    assert limited.name == ("web-row-0", "web-row-1")


def test_a_tenants_batch_is_of_one_workload_and_one_domain() -> None:
    table = table_of([(k // 4 * SECOND, SECOND, -1, GIB, k // 4) for k in range(8000)])
    requests = draw(scenario(
        workload("web", table_share=0.75), workload("other", count=1),
        workload("db", table_share=0.25, domains=("x", "y", "z")), arrivals=from_table()), table)
    of_table = requests.batch >= 0
    kinds = {(batch, kind, requests.domains[domain]) for batch, kind, domain in zip(
        requests.batch[of_table].tolist(), requests.workload[of_table].tolist(),
        requests.domain[of_table].tolist(), strict=True)}
    assert len(kinds) == 2000
    counts = Counter(kind for _, kind, _ in kinds)
    assert counts[0] == pytest.approx(1500, abs=5 * (2000 * 0.75 * 0.25)**0.5)
    assert set(counts) == {0, 2}
    assert all(domain == f"tenant-{batch}" for batch, kind, domain in kinds if kind == 0)
    dealt = [domain for _, kind, domain in sorted(kinds) if kind == 2]
    assert dealt == (["x", "y", "z"] * len(dealt))[:len(dealt)]


def test_survival_is_the_textbooks() -> None:
    """Remission times of Freireich et al. (1963), the example of Kaplan and Meier's estimate."""
    ended = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23], np.int64)
    censored = np.array([6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35], np.int64)
    times, alive = survival(ended, censored)
    assert times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert alive.round(3).tolist() == [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    # Whoever was seen until 20 lives past 22 with probability 0.538 / 0.627 = 6 / 7.
    lives = [int(residual_lives(ended, censored, np.full(12, uniform))[6])
             for uniform in (0.99, 0.86, 0.85, 0.10)]
    assert lives == [22, 22, 23, FOREVER_NS]
    # A life cut off at 6 outlasts the three that ended then: past 7 with 0.807 / 0.857.
    assert [int(residual_lives(ended, censored, np.full(12, uniform))[0])
            for uniform in (0.95, 0.93)] == [7, 10]


def test_censored_lives_are_completed_without_making_lives_shorter() -> None:
    rng = np.random.default_rng(2)
    true = rng.exponential(1000, 40_000).astype(np.int64) + 1
    seen = rng.integers(1, 6000, 40_000)
    is_cut = seen < true
    lives = true.copy()
    lives[is_cut] = residual_lives(true[~is_cut], seen[is_cut], rng.random(int(is_cut.sum())))
    assert (lives[is_cut] > seen[is_cut]).all()
    assert is_cut.mean() > 0.1
    assert true[~is_cut].mean() < 0.9 * true.mean()
    for share in (0.5, 0.9, 0.95):
        assert np.quantile(lives, share) == pytest.approx(np.quantile(true, share), rel=0.04)


def test_a_table_without_any_end_leaves_lives_to_the_workload() -> None:
    table = table_of([(0, -1, HOUR, GIB, k) for k in range(2000)])
    arrivals = from_table()
    lives = draw(scenario(workload("web", table_share=1.0, lifetime=LifetimeSpec(HOUR, 3 * HOUR)),
                          arrivals=arrivals), table).end_ns
    assert np.median(lives) == pytest.approx(HOUR, rel=0.1)
    stay = draw(scenario(workload("web", table_share=1.0), arrivals=arrivals), table)
    assert set(stay.end_ns.tolist()) == {100 * HOUR}


@pytest.mark.parametrize(("spec", "message"), [
    (scenario(workload("web", table_share=1.0)), "there is none"),
    (scenario(workload("web", count=0)), "no guest comes"),
    (scenario(workload("web", count=1, memory_bytes=0)), "is not known"),
    (scenario(workload("web", arrivals_per_hour=1.0), workload("web-later", count=1)),
     "'web-later-1'"),
    (scenario(workload("web", table_share=1.0), arrivals=from_table(from_ns=3 * HOUR)),
     "none of its 1 arrivals"),
    (scenario(workload("web", table_share=1.0), arrivals=from_table(), hosts=[host(GIB // 2)]),
     "none of its 1 arrivals"),
])
def test_what_cannot_be_drawn_is_an_error(spec: Scenario, message: str) -> None:
    has_table = spec.fleet is not None and spec.fleet.arrivals is not None
    with pytest.raises(DataError, match=message):
        draw(spec, table_of([(HOUR, HOUR, -1, GIB, 0)]) if has_table else None)


# The clock

Stay = tuple[str, str, float, float, str]


def requests_from(*guests: tuple[int, float, float], is_restored: bool = False) -> Requests:
    """Guests a, b, ... of (GiB, from, to) in seconds."""
    memory, start, end = zip(*guests, strict=True)
    n = len(guests)
    return Requests(
        tuple(chr(97 + k) for k in range(n)), np.zeros(n, np.int32), np.arange(n, dtype=np.int32),
        tuple(f"d{k}" for k in range(n)), np.array(memory, np.int64) * GIB,
        (np.array(start) * SECOND).astype(np.int64), (np.array(end) * SECOND).astype(np.int64),
        np.full(n, is_restored), np.full(n, -1, np.int32))


def fleet(rooms: Sequence[int], incidents: Sequence[IncidentSpec] = (), **values: Any) -> Scenario:
    """Hosts h0, h1, ... with so many GiB, 100 s, migrations at 1 GiB/s."""
    return scenario(
        horizon_ns=100 * SECOND, incidents=tuple(incidents), migration_bytes_per_s=GIB,
        hosts=[host(room * GIB, name=f"h{k}") for k, room in enumerate(rooms)], **values)


def stays(timeline: Timeline) -> list[Stay]:
    """By guest and time, in seconds."""
    return sorted((timeline.requests.name[g], timeline.hosts[h], start / SECOND, end / SECOND,
                   Cause(cause).name)
                  for g, h, start, end, cause in zip(
                      timeline.stay_guest.tolist(), timeline.stay_host.tolist(),
                      timeline.stay_start_ns.tolist(), timeline.stay_end_ns.tolist(),
                      timeline.stay_cause.tolist(), strict=True))


def incident(kind: str, at: float, to: float = 0, **values: Any) -> IncidentSpec:
    return IncidentSpec(kind, int(at * SECOND),
                        int((to - at) * SECOND) if to else 0, **values)


def test_guests_leave_before_others_come() -> None:
    timeline = place(fleet([4]), requests_from((4, 0, 10), (4, 10, 20), (4, 19, 30)), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 10, "BOOT"), ("b", "h0", 10, 20, "BOOT")]
    assert timeline.rejected.tolist() == [2]
    assert timeline.warnings == ("1 of 3 guests found no room when they came: c",)


def test_stays_are_in_order_and_found_by_host() -> None:
    timeline = place(fleet([4, 4], placement="spread"),
                     requests_from((1, 0, 10), (1, 0, 9), (2, 5, 50), (1, 6, 20)), None, 0)
    assert timeline.hosts == ("h0", "h1")
    assert timeline.host_spec.tolist() == [0, 1]
    assert timeline.stay_guest[timeline.stays_on(0)].tolist() == [0, 2]
    assert timeline.stay_guest[timeline.stays_on(1)].tolist() == [1, 3]
    assert timeline.stay_cause.dtype == np.int8
    assert timeline.stay_guest.dtype == timeline.stay_host.dtype == np.int32


def test_who_finds_no_room_at_the_start_is_named() -> None:
    timeline = place(fleet([2]), requests_from(*[(1, 0, 100)] * 6), None, 0)
    assert timeline.rejected.tolist() == [2, 3, 4, 5]
    assert timeline.warnings == ("4 of 6 guests found no room at the start: c, d, e, ...",)


def test_restored_guests_begin_by_it() -> None:
    timeline = place(fleet([2]), requests_from((1, 0, 5), is_restored=True), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 5, "RESTORE")]


def test_guests_of_a_failed_host_start_anew_elsewhere_or_are_lost() -> None:
    timeline = place(fleet([6, 5], [incident("fail", 10, 20, host="h0")]),
                     requests_from((2, 0, 100), (4, 0, 100), (2, 1, 30), (1, 10, 100),
                                   (4, 20, 100)), None, 0)
    assert stays(timeline) == [
        ("a", "h0", 0, 10, "BOOT"), ("a", "h1", 10, 100, "RESTART"), ("b", "h0", 0, 10, "BOOT"),
        ("c", "h1", 1, 30, "BOOT"), ("d", "h1", 10, 100, "BOOT"), ("e", "h0", 20, 100, "BOOT")]
    assert timeline.lost.tolist() == [1]
    assert timeline.incidents == (Incident("fail", 10 * SECOND, 0, 1, 1),)
    assert timeline.warnings == ("1 of 5 guests found no room after their host had failed: b",)


def test_a_drained_hosts_guests_migrate_one_after_another_and_it_comes_back_empty() -> None:
    timeline = place(fleet([6, 8], [incident("drain", 10, 30, host="h0")]),
                     requests_from((2, 0, 100), (3, 0, 100), (1, 0, 12.5), (1, 29, 100),
                                   (1, 30, 100)), None, 0)
    assert stays(timeline) == [
        ("a", "h0", 0, 12, "BOOT"), ("a", "h1", 12, 100, "MIGRATION"),
        ("b", "h0", 0, 15, "BOOT"), ("b", "h1", 15, 100, "MIGRATION"),
        # c ends while it waits for its turn, d comes while the host takes nobody.
        ("c", "h0", 0, 12.5, "BOOT"), ("d", "h1", 29, 100, "BOOT"), ("e", "h0", 30, 100, "BOOT")]
    assert timeline.incidents == (Incident("drain", 10 * SECOND, 0, 2),)
    assert timeline.warnings == ()


def test_a_drain_that_takes_longer_than_it_was_given_ends_when_it_is_done() -> None:
    timeline = place(fleet([20, 20], [incident("drain", 10, 11, host="h0")]),
                     requests_from((20, 0, 100), (1, 29, 100), (1, 30, 100)), None, 0)
    assert stays(timeline)[1:] == [
        ("a", "h1", 30, 100, "MIGRATION"), ("c", "h0", 30, 100, "BOOT")]
    # On h1 the room was held for the migration.
    assert timeline.rejected.tolist() == [1]


def test_a_drain_without_room_leaves_the_guest_and_says_so() -> None:
    timeline = place(fleet([6, 2], [incident("drain", 10, host="h0")]),
                     requests_from((4, 0, 100), (2, 0, 100)), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 100, "BOOT"), ("b", "h0", 0, 12, "BOOT"),
                               ("b", "h1", 12, 100, "MIGRATION")]
    assert timeline.incidents == (Incident("drain", 10 * SECOND, 0, 1, 1),)
    assert timeline.warnings == (
        "drain of h0: 1 guest(s) could not move, they stay where they are",)


def test_a_guest_that_ends_while_it_migrates_ends_where_it_is() -> None:
    timeline = place(fleet([6, 4], [incident("drain", 10, host="h0")]),
                     requests_from((4, 0, 12), (4, 14, 20)), None, 0)
    # The room that was held for a is free again.
    assert stays(timeline) == [("a", "h0", 0, 12, "BOOT"), ("b", "h1", 14, 20, "BOOT")]


def test_a_target_that_fails_meanwhile_is_given_up_for_another() -> None:
    timeline = place(fleet([6, 4, 6], [incident("drain", 10, host="h0"),
                                       incident("fail", 12, host="h1")]),
                     requests_from((4, 0, 100)), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 18, "BOOT"), ("a", "h2", 18, 100, "MIGRATION")]


def test_a_source_that_fails_meanwhile_ends_the_migration() -> None:
    timeline = place(fleet([6, 4, 6], [incident("drain", 10, host="h0"),
                                       incident("fail", 12, host="h0")]),
                     requests_from((4, 0, 100), (4, 20, 100), (2, 20, 100)), None, 0)
    # The room held on h1 is no room for the restart; it is free afterwards.
    assert stays(timeline) == [
        ("a", "h0", 0, 12, "BOOT"), ("a", "h2", 12, 100, "RESTART"),
        ("b", "h1", 20, 100, "BOOT"), ("c", "h2", 20, 100, "BOOT")]
    assert timeline.incidents[0] == Incident("drain", 10 * SECOND, 0, 0)


def test_a_guest_that_failed_away_can_be_drained_again_at_once() -> None:
    timeline = place(fleet([4, 4, 4, 4], [
        incident("drain", 10, host="h0"), incident("fail", 11, host="h0"),
        incident("drain", 12, host="h2")]), requests_from((4, 0, 100)), None, 0)
    # From h1's held room to h2, and from there, while the first migration's copy still runs.
    assert stays(timeline) == [
        ("a", "h0", 0, 11, "BOOT"), ("a", "h2", 11, 16, "RESTART"),
        ("a", "h3", 16, 100, "MIGRATION")]


def test_a_migration_that_a_failure_ended_does_not_go_on() -> None:
    timeline = place(fleet([4, 4, 4], [
        incident("migrate", 10, host="h0", n_guests=1), incident("fail", 11, 12, host="h0"),
        incident("fail", 13, host="h2")]), requests_from((4, 0, 100)), None, 0)
    # At 14 s the guest is where the migration began, but it is another start of it.
    assert stays(timeline) == [
        ("a", "h0", 0, 11, "BOOT"), ("a", "h0", 13, 100, "RESTART"),
        ("a", "h2", 11, 13, "RESTART")]
    assert timeline.incidents[0] == Incident("migrate", 10 * SECOND, 0, 0, 1)


def test_a_guest_moves_once_at_a_time() -> None:
    twice = place(fleet([9, 9, 9], [incident("drain", 10, host="h0")] * 2),
                  requests_from((4, 0, 100), (2, 0, 100), (1, 0, 100)), None, 0)
    moved = [stay for stay in stays(twice) if stay[4] == "MIGRATION"]
    assert [(name, start) for name, _, start, *_ in moved] == [("a", 14), ("b", 12), ("c", 13)]
    # What is left of a migration that failed does not free the guest's next one for a third.
    requests = requests_from((4, 0, 100), (4, 15.5, 100))
    third = place(fleet([4, 4, 4, 4, 4], [
        incident("drain", 10, host="h0"), incident("fail", 11, host="h0"),
        incident("drain", 12, host="h2"), incident("migrate", 15, host="h2", n_guests=1),
        incident("pressure", 14.5, host="h1", bytes=4 * GIB)]), requests, None, 0)
    assert stays(third)[-2:] == [("a", "h3", 16, 100, "MIGRATION"),
                                 ("b", "h4", 15.5, 100, "BOOT")]


def test_incidents_end_before_others_begin() -> None:
    timeline = place(fleet([4, 4], [incident("fail", 20, host="h1"),
                                    incident("fail", 10, 20, host="h0")]),
                     requests_from((4, 0, 100)), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 10, "BOOT"), ("a", "h0", 20, 100, "RESTART"),
                               ("a", "h1", 10, 20, "RESTART")]


@pytest.mark.parametrize("policy", PLACEMENTS)
def test_nobody_comes_to_a_host_that_is_drained(policy: str) -> None:
    requests = replace(requests_from((6, 0, 100), (2, 11, 100)),
                       domain=np.zeros(2, np.int32))
    sketches = sketch_of([oracle.Guest(0, 1, 1, contents=frozenset({1}))] * 2)
    timeline = place(fleet([16, 8], [incident("drain", 10, host="h0")], placement=policy),
                     requests, sketches, 0)
    assert timeline.stay_host[timeline.stay_guest == 1].tolist() == [1]


def test_what_comes_to_a_draining_host_by_a_running_migration_goes_elsewhere() -> None:
    timeline = place(fleet([4, 4, 8], [incident("drain", 10, host="h0"),
                                       incident("drain", 11, host="h1")]),
                     requests_from((4, 0, 100)), None, 0)
    assert stays(timeline) == [("a", "h0", 0, 18, "BOOT"), ("a", "h2", 18, 100, "MIGRATION")]


def test_pressure_is_recorded_and_takes_room_while_it_lasts() -> None:
    timeline = place(fleet([6], [incident("pressure", 10, 20, host="h0", bytes=5 * GIB),
                                 incident("pressure", 50, host="h0", bytes=GIB)]),
                     requests_from((2, 0, 100), (1, 10, 100), (1, 20, 100)), None, 0)
    assert [name for name, *_ in stays(timeline)] == ["a", "c"]
    assert timeline.pressure == (Pressure(0, 10 * SECOND, 20 * SECOND, 5 * GIB),
                                 Pressure(0, 50 * SECOND, 100 * SECOND, GIB))


def test_drawn_guests_migrate_to_other_hosts() -> None:
    requests = requests_from(*[(1, 0, 100)] * 8)
    found = place(fleet([8, 8], [incident("migrate", 10, n_guests=3)]), requests, None, 0)
    moved = [stay for stay in stays(found) if stay[4] == "MIGRATION"]
    assert sorted(start for _, _, start, _, _ in moved) == [11, 12, 13]
    assert {where for _, where, *_ in moved} == {"h1"}
    assert found.incidents == (Incident("migrate", 10 * SECOND, -1, 3),)
    named = place(fleet([8, 8], [incident("migrate", 10, n_guests=3, host="h1")]), requests,
                  None, 0)
    assert named.incidents == (Incident("migrate", 10 * SECOND, 1, 0),)
    crowded = place(fleet([8, 1], [incident("migrate", 10, n_guests=3)]), requests, None, 0)
    assert crowded.incidents == (Incident("migrate", 10 * SECOND, -1, 1, 2),)
    assert "migrate of the fleet: 2 guest(s) could not move" in crowded.warnings[0]


def test_which_hosts_fail_is_drawn_by_seed_and_replicate_alone() -> None:
    def failed(n_hosts: int = 50, *, replicate: int = 0, seed: int = 1,
               placement: str = "first-fit") -> list[int]:
        spec = replace(fleet([4] * n_hosts, [incident("fail", 10, n_hosts=5)],
                             placement=placement), seed=seed)
        found = place(spec, requests_from((1, 0, 100)), None, replicate)
        return [what.host for what in found.incidents]

    first = failed()
    assert len(set(first)) == 5
    assert failed(placement="spread") == first
    assert failed(replicate=1) != first
    assert failed(seed=2) != first
    # One host more is drawn by its own lot, the others' lots stay.
    assert len(set(failed(51)) & set(first)) >= 4


def test_two_equal_incidents_are_two_draws() -> None:
    found = place(fleet([4] * 50, [incident("fail", 10, n_hosts=5)] * 2),
                  requests_from((1, 0, 100)), None, 0)
    hosts = [what.host for what in found.incidents]
    assert set(hosts[:5]) != set(hosts[5:])


def test_charges_let_more_guests_in() -> None:
    requests = requests_from(*[(2, 0, 100)] * 6)
    assert len(place(fleet([8]), requests, None, 0).rejected) == 2
    charge = np.full(6, 3 * GIB // 2, np.int64)
    assert len(place(fleet([8]), requests, None, 0, charge).rejected) == 1
    assert len(place(fleet([8], overcommit=1.5), requests, None, 0).rejected) == 0


@pytest.mark.parametrize(("spec", "message"), [
    (fleet([2]), r"1 guest\(s\) fit no host even when it is empty: the first, b"),
    (fleet([8], [incident("fail", 1, host="h9")]), "no machine 'h9'"),
    (fleet([8], [incident("drain", 1, n_hosts=2)]), "a drain of 2 hosts, and there are 1"),
    (replace(fleet([8]), fleet=None), "are replayed"),
])
def test_what_cannot_be_placed_is_an_error(spec: Scenario, message: str) -> None:
    with pytest.raises(DataError, match=message):
        place(spec, requests_from((1, 0, 100), (3, 0, 100)), None, 0)


@pytest.mark.parametrize("policy", PLACEMENTS)
@pytest.mark.parametrize("seed", range(4))
def test_failures_and_pressure_are_those_of_the_plain_twin(policy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    guests = guests_of(seed, 120, span_ns=60)
    rooms = rng.integers(10, 40, 8).tolist()
    incidents = [(("fail", "pressure")[rng.integers(2)], int(rng.integers(8)),
                  int(start := rng.integers(60)), int(start + rng.integers(1, 40)),
                  int(rng.integers(1, 30))) for _ in range(6)]
    spec = scenario(
        horizon_ns=100, placement=policy,
        hosts=[host(room, name=f"h{k}") for k, room in enumerate(rooms)],
        incidents=tuple(IncidentSpec(
            kind, start, end - start, f"h{where}",
            bytes=n_bytes) for kind, where, start, end, n_bytes in incidents))
    requests = requests_of(guests)
    requests = replace(requests, end_ns=np.minimum(requests.end_ns, 100))
    found = place(spec, requests, sketch_of(guests), 0)
    for guest in guests:
        guest.end_ns = min(guest.end_ns, 100)
    world = oracle.simulate(guests, rooms, policy, 100, incidents)
    assert sorted(zip(found.stay_guest.tolist(), found.stay_host.tolist(),
                      found.stay_start_ns.tolist(), found.stay_end_ns.tolist(),
                      [Cause(cause).name for cause in found.stay_cause], strict=True)
                  ) == sorted(stay for stay in world.stays if stay[2] < stay[3])
    assert found.rejected.tolist() == world.rejected
    assert found.lost.tolist() == sorted(world.lost)
    assert any(stay[4] == "RESTART" for stay in world.stays)


kinds = st.sampled_from(["drain", "fail", "pressure", "migrate"])
incidents_of = st.lists(st.builds(
    lambda kind, at, length, where, n: incident(
        kind, at, at + length if length else 0,
        host=f"h{where}" if where >= 0 else "", n_guests=n, bytes=n * GIB, n_hosts=1 + n % 2),
    kinds, st.integers(0, 60), st.integers(0, 30), st.integers(-1, 3), st.integers(1, 5)),
    max_size=8)


@settings(max_examples=80, deadline=None)
@given(incidents=incidents_of, seed=st.integers(0, 10**6), policy=st.sampled_from(list(PLACEMENTS)))
def test_whatever_happens_nobody_is_lost_or_in_two_places_and_no_host_overfull(
        incidents: list[IncidentSpec], seed: int, policy: str) -> None:
    guests = guests_of(seed, 30, span_ns=60, most=4)
    base = requests_of(guests)
    requests = replace(base, memory_bytes=base.memory_bytes * GIB, start_ns=base.start_ns * SECOND,
                       end_ns=np.minimum(base.end_ns * SECOND, 100 * SECOND))
    found = place(fleet([9, 9, 12, 9], incidents, placement=policy), requests, sketch_of(guests), 0)
    by_guest: dict[int, list[tuple[int, int]]] = {}
    for guest, start, end in sorted(zip(found.stay_guest.tolist(), found.stay_start_ns.tolist(),
                                        found.stay_end_ns.tolist(), strict=True),
                                    key=lambda stay: stay[:2]):
        by_guest.setdefault(guest, []).append((start, end))
    # A guest that was lost at the moment it came has no stay of any length, and is named.
    assert set(by_guest) == set(range(30)) - set(found.rejected.tolist())
    for guest, spans in by_guest.items():
        assert spans[0][0] == requests.start_ns[guest]
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        assert (spans[-1][1] == requests.end_ns[guest]) == (guest not in found.lost)
    rooms = np.array([9, 9, 12, 9]) * GIB
    for time in np.unique(found.stay_start_ns):
        is_there = (found.stay_start_ns <= time) & (found.stay_end_ns > time)
        used = np.bincount(found.stay_host[is_there], minlength=4,
                           weights=requests.memory_bytes[found.stay_guest[is_there]])
        assert (used <= rooms).all()


def test_times_stay_whole_numbers() -> None:
    timeline = place(fleet([4], [incident("fail", 10)]), requests_from((1, 0.5, 99)), None, 0)
    assert all(isinstance(what.time_ns, int) for what in timeline.incidents)
    assert timeline.stay_start_ns.dtype == timeline.stay_end_ns.dtype == np.int64
