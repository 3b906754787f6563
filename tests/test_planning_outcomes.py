"""What replicates came to, against figures worked out by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.metrics import PARTITIONS, REPLICATES, SERIES, SUMMARY, summarise
from planner.planning import outcome, summary_row
from planner.planning.merging import Merged, distribution, merged_after
from planner.planning.samples import read_samples
from planner.planning.storms import storms
from tests.planning_data import GIB, HOUR, PAGE, SECOND, fleet, sample, samples, simple_outcome
from tests.report_data import table


def test_a_mean_is_over_time_after_the_warm_up() -> None:
    # Host a saves 1 GiB from 0 and 3 GiB from the middle of the counted hour; host b comes with
    # 2 GiB in the middle.
    rows = samples(
        sample("a", 0, saved_bytes=GIB, guest_memory_bytes=8 * GIB),
        sample("a", HOUR, saved_bytes=3 * GIB, guest_memory_bytes=8 * GIB),
        sample("b", HOUR, saved_bytes=2 * GIB, guest_memory_bytes=4 * GIB))
    row = outcome("p", 0, fleet(), rows).row
    assert row["saved_bytes"] == (1 + 3) * GIB / 2 + 2 * GIB / 2
    assert row["guest_memory_bytes"] == 8 * GIB + 4 * GIB / 2
    assert row["saved_share"] == pytest.approx(3 / 10)
    assert row["saved_end_bytes"] == row["saved_peak_bytes"] == 5 * GIB
    assert row["time_to_90_ns"] == HOUR
    replay = outcome("p", 0, fleet(is_drawn=False), rows).row
    assert replay["saved_bytes"] == 5 * GIB


def test_counters_are_what_they_rose_by_and_hosts_stand_for_others() -> None:
    rows = samples(
        sample("a", 0, merge_cpu_ns=0, cow_breaks=0, scanner_cpu_ns=0),
        sample("a", HOUR // 2, merge_cpu_ns=10, cow_breaks=100, scanner_cpu_ns=5),
        sample("a", HOUR, merge_cpu_ns=40, cow_breaks=700, scanner_cpu_ns=25))
    row = outcome("p", 0, fleet(weights={"a": 3.0}, n_machines=3, n_cores=12), rows).row
    assert row["merge_cpu_ns"] == 90
    assert row["cow_breaks"] == 1800
    assert row["scanner_cpu_ns"] == 60
    assert row["caller_cpu_ns"] is None
    assert row["core_time_ns"] == 12 * HOUR


def test_headroom_is_what_is_left_on_the_worst_host_at_its_worst_moment() -> None:
    rows = samples(
        sample("a", 0, guest_memory_bytes=12 * GIB, saved_bytes=9 * GIB, unmerge_bytes=9 * GIB),
        sample("a", HOUR // 2, guest_memory_bytes=9 * GIB, saved_bytes=2 * GIB,
               unmerge_bytes=2 * GIB),
        sample("b", HOUR // 2, guest_memory_bytes=4 * GIB, saved_bytes=GIB, unmerge_bytes=GIB),
        sample("b", HOUR, guest_memory_bytes=11 * GIB, saved_bytes=3 * GIB,
               saved_zero_bytes=GIB, unmerge_bytes=4 * GIB))
    row = outcome("p", 0, fleet(), rows).row
    # What came before the warm-up was over (host a held 12 GiB) does not count.
    assert row["headroom_worst_bytes"] == (10 - (11 - 3 - 1) - 4) * GIB == -GIB
    assert (row["headroom_worst_host"], row["headroom_worst_time_ns"]) == ("b", HOUR)
    assert row["free_worst_bytes"] == 3 * GIB
    assert (row["free_worst_host"], row["free_worst_time_ns"]) == ("a", HOUR // 2)
    assert row["headroom_p50_bytes"] == GIB
    assert row["headroom_p99_bytes"] == -GIB
    assert (row["unmerge_p50_bytes"], row["unmerge_worst_bytes"]) == (2 * GIB, 4 * GIB)
    unknown = outcome("p", 0, fleet(available_bytes={}), rows).row
    assert unknown["headroom_worst_bytes"] is None
    pressed = samples(*({**each, "available_bytes": 9 * GIB} for each in rows.to_pylist()))
    assert outcome("p", 0, fleet(), pressed).row["headroom_worst_bytes"] == -2 * GIB


def test_what_is_safe_is_what_nearly_every_machine_saves_nearly_always() -> None:
    rows = samples(*(sample(host, time_ns, guest_memory_bytes=10 * GIB, saved_bytes=saved * GIB)
                     for host, time_ns, saved in (
                         ("a", 0, 0), ("a", HOUR // 2, 4), ("b", HOUR // 2, 5), ("b", HOUR, 2))))
    # After the warm-up: 4/10 for an hour, 5/10 and 2/10 for half an hour each.
    assert outcome("p", 0, fleet(), rows).row["safe_share"] == pytest.approx(0.2)
    half = outcome("p", 0, fleet(confidence=0.5), rows).row
    assert half["safe_share"] == pytest.approx(0.4)
    assert half["safe_overcommit"] == pytest.approx(1 / 0.6)
    # An almost empty machine counts as little as it holds.
    lone = samples(*rows.to_pylist(), sample("c", 0, guest_memory_bytes=GIB // 2))
    assert outcome("p", 0, fleet(), lone).row["safe_share"] == pytest.approx(0.2)
    empty = samples(sample("a", 0))
    assert outcome("p", 0, fleet(), empty).row["safe_share"] == 0


def test_a_storm_is_told_of_whole_intervals_in_a_row() -> None:
    # One per cent of 10 GiB a minute are 437 pages a second.
    step = 600 * SECOND
    breaks = [0, 0, 300_000, 900_000, 900_000, 1_000_000]
    rows = samples(*(sample("a", i * step, cow_breaks=n) for i, n in enumerate(breaks)),
                   sample("a", step + 1, cow_breaks=100),
                   sample("b", 0))
    where = fleet(warm_up_ns=0, horizon_ns=5 * step, sample_every_ns=step)
    found = storms(read_samples(rows, {}, where.horizon_ns), where)
    assert found.worst_per_s == 1000
    assert (found.worst_host, found.worst_time_ns) == ("a", 2 * step)
    assert found.storm_ns == 2 * step
    assert [(s.host, s.start_ns, s.end_ns, s.n_breaks, s.peak_per_s) for s in found.listed] == [
        ("a", step, 3 * step, 900_000, 1000.0)]


def test_domains_count_as_exposed_only_where_something_crossed() -> None:
    rows = samples(sample("a", 0, cross_domain_pages=5), sample("a", HOUR, cross_domain_pages=3))
    partitions = [{"host": "a", "cross_domain_pages": 3, "domains": ["x", "y", "z"]},
                  {"host": "b", "cross_domain_pages": 1, "domains": ["x", "y"]},
                  {"host": "b", "cross_domain_pages": 0, "domains": ["u", "v"]}]
    row = outcome("p", 0, fleet(), rows, partitions=partitions).row
    assert row["exposed_domain_pairs"] == 3
    assert row["cross_domain_pages"] == 5
    assert outcome("p", 0, fleet(), rows).row["exposed_domain_pairs"] is None
    # Guests that left shared pages while they were there.
    gone = [{**row, "cross_domain_pages": 0, "most_cross_domain_pages": row["cross_domain_pages"]}
            for row in partitions]
    assert outcome("p", 0, fleet(), rows, partitions=gone).row["exposed_domain_pairs"] == 3


def test_what_was_split_before_the_warm_up_is_split() -> None:
    # Four guests of 1 GiB, one after another on each host; each has half of it split at its start.
    def rows(host: str) -> list[dict[str, object]]:
        return [sample(host, HOUR * 3 // 8 * i, guest_memory_bytes=GIB, n_guests=1,
                       huge_splits=256 * (i + 1)) for i in range(4)]

    starts = tuple((host, f"g{host}{i}", HOUR * 3 // 8 * i) for host in "ab" for i in range(4))
    row = outcome("p", 0, fleet(starts=starts), samples(*rows("a"), *rows("b"))).row
    assert row["huge_split_share"] == pytest.approx(0.5)
    assert row["huge_splits"] == 2 * 2 * 256
    # All at the start, long before anything counts.
    still = [sample("a", 0, guest_memory_bytes=2 * GIB, n_guests=2, huge_splits=512)]
    one = outcome("p", 0, fleet(starts=(("a", "x", 0), ("a", "y", 0))), samples(*still)).row
    assert (one["huge_split_share"], one["huge_splits"]) == (0.5, 0)
    assert outcome("p", 0, fleet(), samples(*still)).row["huge_split_share"] is None


def event(kind: str, time_ns: int, *, guest: str = "", partition: str = "all",
          cpu_ns: int = 0) -> dict[str, object]:
    return {"kind": kind, "host": "a", "time_ns": time_ns, "guest": guest,
            "partition": partition, "cpu_ns": cpu_ns}


def test_a_guest_is_merged_when_its_first_call_is_done() -> None:
    where = fleet(starts=(("a", "one", 100), ("a", "two", 0), ("b", "one", 0)))
    found = merged_after([event("sync_merge", 50, guest="one"),
                          event("sync_merge", 120, guest="one", cpu_ns=7),
                          event("sync_merge", 150, guest="two", cpu_ns=50)], where)
    assert found.after_ns.tolist() == [27, 200, -1]
    assert not found.is_bound
    assert found.quantile(1 / 3) == 27
    assert found.quantile(0.5) == 200
    assert found.quantile(0.95) is None


def test_ksmd_has_merged_a_guest_by_the_second_scan_of_the_slowest_partition() -> None:
    where = fleet(starts=(("a", "one", 100), ("a", "late", 390)))
    scans = [event("full_scan", t) for t in (90, 200, 300, 400)] \
        + [event("full_scan", t, partition="slow") for t in (150, 360)]
    found = merged_after(scans, where)
    assert found.after_ns.tolist() == [260, -1]
    assert found.is_bound
    told = merged_after([*scans, event("guest_merged", 130, guest="one")], where)
    assert told.after_ns.tolist() == [30, -1]
    assert not told.is_bound


def test_guests_that_were_never_merged_count_in_the_distribution() -> None:
    nobody = np.array([], np.int64)
    found = distribution([Merged(np.array([30, 10, 20, -1]), np.full(4, 99), False),
                          Merged(nobody, nobody, False)])
    assert found is not None
    assert (found["n_guests"], found["n_merged"]) == (4, 3)
    by_share = dict(map(tuple, found["quantiles"]))
    assert by_share[0.25] == 10
    assert by_share[0.75] == 30
    assert max(by_share) == 0.75
    assert distribution([]) is None


def test_guests_that_came_too_late_to_be_merged_say_nothing_of_later() -> None:
    # Of five guests one was merged after 10; one was seen for 15 only; of the three left one is
    # merged at 20 and one at 30: 1 - 4/5 x 2/3 x 1/2.
    found = Merged(np.array([10, -1, 20, 30, -1]), np.array([50, 15, 50, 50, 40]), False)
    times, merged = found.curve()
    assert times.tolist() == [10, 20, 30]
    assert merged.tolist() == pytest.approx([1 / 5, 1 - 8 / 15, 1 - 4 / 15])
    assert found.quantile(0.2) == 10
    assert found.quantile(0.7) == 30
    assert found.quantile(0.8) is None


def test_an_outcome_has_the_columns_of_its_tables_and_travels() -> None:
    found = pickle.loads(pickle.dumps(simple_outcome("p", 3, GIB)))
    assert set(found.row) == set(REPLICATES.schema.names)
    assert all(set(row) == set(SERIES.schema.names) for row in found.series)
    assert [row["time_ns"] for row in found.series] == [0, HOUR // 2, HOUR, HOUR + HOUR // 2]
    assert {row["saved_bytes"] for row in found.series} == {2 * GIB}
    with pytest.raises(ValueError, match="no columns"):
        found.with_columns(saved=1)


def test_a_better_estimate_of_the_saving_carries_its_error() -> None:
    found = simple_outcome("p", 0, GIB).with_saved(4 * GIB, 5)
    assert found.row["saved_share"] == pytest.approx(4 / 16)
    assert found.row["saved_error_bytes"] == 5
    # 72 s of CPU are a fiftieth of a core-hour.
    assert found.row["saved_per_core_hour_bytes"] == 4 * GIB * 50


def test_a_fleets_summary_is_the_median_of_its_replicates() -> None:
    outcomes = [simple_outcome("p", i, saved * PAGE) for i, saved in enumerate((10, 30, 20))]
    outcomes.append(simple_outcome("p", 0, 999 * PAGE, resample=0))
    row = summary_row({"policy": "p", "merge": "never", "partition_by": "none"}, outcomes, HOUR)
    assert set(row) == set(SUMMARY.schema.names)
    assert row["saved_bytes"] == 40 * PAGE
    assert row["merge_cpu_share"] == pytest.approx(72 / 3600)
    with pytest.raises(ValueError, match="no replicate"):
        summary_row({"policy": "p", "merge": "", "partition_by": ""}, [], HOUR)


def test_a_policy_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        outcome("p", 0, fleet(), samples())


STATES = ("guest_memory_bytes", "eligible_bytes", "saved_bytes", "saved_zero_bytes",
          "metadata_bytes", "pages_shared", "pages_sharing")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(-50, 500)),
                max_size=12, unique_by=lambda each: each[:2]))
def test_one_replay_is_told_as_the_summary_tells_it(
        drawn: list[tuple[str, int, int]]) -> None:
    rows = [sample(host, 0) for host in "ab"]
    for number, (host, quarter, value) in enumerate(sorted(drawn)):
        rows.append(sample(host, quarter * HOUR // 4, merge_cpu_ns=number,
                           **dict.fromkeys(STATES, value)))
    ended = samples(*rows, sample("a", HOUR, saved_bytes=7), sample("b", HOUR, saved_bytes=9))
    where = fleet(warm_up_ns=0, horizon_ns=HOUR, is_drawn=False)
    texts = {"policy": "p", "merge": "m", "partition_by": "none"}
    expected = summarise(texts, ended, table(PARTITIONS, []), HOUR)
    found = summary_row(texts, [outcome("p", 0, where, ended)], HOUR)
    # The last sample counts for no time; what may hurt is the most of any time, not the last.
    for name in ("guest_memory_bytes", "saved_bytes", "saved_zero_bytes", "saved_peak_bytes",
                 "saved_mean_bytes", "merge_cpu_ns", "time_to_90_ns", "metadata_bytes"):
        assert found[name] == expected[name], name
