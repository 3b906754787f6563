"""A share of contents, a part of the hosts: same pace, same totals within the stated error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cases import unpack
from planner.executor import versions_here
from planner.fleet import FleetHost
from planner.forecast.work import HostTask, work
from planner.forecast.world import replicate_of
from planner.kernels import ksmstate as k
from planner.ksm.cost import BUILTIN_UNMEASURED
from planner.ksm.knobs import Knobs
from planner.ksm.space import next_wake_ns
from planner.metrics import EVENTS, HOSTS
from planner.runner import load_scenario
from planner.sampling import (
    Design,
    FullSizeRecorder,
    Groups,
    Observed,
    Scale,
    Total,
    choose,
    estimate_total,
    first_design,
    sampled_hosts,
    scale_of,
    scaled_cost,
    scaled_knobs,
    scaled_policy,
)
from planner.scenario.spec import Ksmd, PolicySpec, Sync, SyncAdvisor, to_json

TIMES = tuple(range(0, 600 * 10**9 + 1, 60 * 10**9))
TRACES = Path(__file__).parent.parent / "traces"

SCENARIO = f"""
planner: 1
name: sampled
seed: 11
horizon: 10min
hosts:
  - {{name: host, memory: 8GiB, count: 2}}
workloads:
  - name: guests
    trace: {TRACES / "qemu-guests"}
    domain: {{label: tenant}}
    count: 8
policies:
  - name: never
    merge: never
  - name: ksmd
    merge: {{ksmd: {{pages_to_scan: 1000}}}}
  - name: advisor
    merge: {{ksmd: {{advisor_mode: scan-time, advisor_target_scan_time: 20}}}}
  - name: domain-sync
    partition_by: domain
    merge: {{sync: {{at: [boot, {{every: 2min}}]}}}}
output: {{folder: results, sample_every: 1min}}
"""


# ---- the pace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [100, 1000, 64])
@pytest.mark.parametrize("sleep_ms", [0, 10, 20, 200])
@pytest.mark.parametrize("share", [0.37, 0.05, 0.004])
def test_batches_of_a_sample_pass_its_pages_in_the_time_of_the_whole_host(
        pages: int, sleep_ms: int, share: float) -> None:
    host = _host(n_sites=20_000, share=share)
    policy = PolicySpec("p", (), (), Ksmd(pages_to_scan=pages, sleep_millisecs=sleep_ms))
    scale = scale_of(host, policy)
    knobs = scaled_knobs(Knobs(pages_to_scan=pages, sleep_millisecs=sleep_ms), scale)
    cost_ns = 3_000

    def pages_a_second(n: int, sleep: int, hz: int, visit_ns: float, each: float) -> float:
        now = 0
        for _ in range(50):
            now = next_wake_ns(now + round(n * visit_ns), sleep, hz)
        return 50 * n * each / now

    real = pages_a_second(pages, sleep_ms, 250, cost_ns, 1.0)
    sampled = pages_a_second(knobs.pages_to_scan, knobs.sleep_millisecs, scale.hz,
                             cost_ns / share, 1 / share)
    assert knobs.pages_to_scan >= 1
    assert sampled == pytest.approx(real, rel=0.02)


def test_batches_stay_short_where_partitions_are_small() -> None:
    host = _host(n_sites=4_000, share=0.01)
    scale = scale_of(host, PolicySpec("p", (), (), Ksmd(pages_to_scan=1000)))
    assert scaled_knobs(Knobs(pages_to_scan=1000), scale).pages_to_scan <= 200
    alone = scale_of(host, PolicySpec("p", (), (), Ksmd(pages_to_scan=10)))
    assert scaled_knobs(Knobs(pages_to_scan=10), alone).pages_to_scan >= 1
    assert alone.n_batches > 5


def test_nothing_is_scaled_where_all_contents_are_there() -> None:
    host = _host(n_sites=100, share=1.0)
    policy = PolicySpec("p", (), (), Ksmd())
    scale = scale_of(host, policy)
    assert scale == Scale(1.0, 250, 250)
    assert scaled_knobs(Knobs(), scale) is not None
    assert scaled_knobs(Knobs(), scale) == Knobs()
    assert scaled_policy(policy, scale) is policy
    assert scaled_cost(BUILTIN_UNMEASURED, scale) is BUILTIN_UNMEASURED


def test_what_scans_nothing_goes_on_scanning_nothing() -> None:
    scale = Scale(0.01, 250, 250)
    assert scaled_knobs(Knobs(pages_to_scan=0), scale).pages_to_scan == 0
    assert scaled_knobs(Knobs(pages_to_scan=3), scale).pages_to_scan == 1


def test_costs_of_a_sample_are_those_of_the_whole_trees() -> None:
    share = 2.0**-6
    real = BUILTIN_UNMEASURED.as_array()
    sampled = scaled_cost(BUILTIN_UNMEASURED, Scale(share, 25, 250)).as_array()
    assert sampled[k.UNIQUE] == 64 * real[k.UNIQUE]
    # A tree of 2^12 pages here has 2^18 in the whole host, and its visits stand for 64 each.
    assert sampled[k.COST_STABLE + 12] == 64 * real[k.COST_STABLE + 18]
    assert sampled[k.COST_UNSTABLE + 5] == 64 * real[k.COST_UNSTABLE + 11]
    assert sampled[k.COST_STABLE] == 0  # an empty tree is empty
    assert sampled[k.COST_BATCH] == 10 * real[k.COST_BATCH]
    assert sampled[k.COST_CALL] == real[k.COST_CALL]
    # Of 512 pages nearly every huge page has some in the sample: it is split once, not 64 times.
    assert real[k.COST_SPLIT] <= sampled[k.COST_SPLIT] < 1.01 * real[k.COST_SPLIT]


def test_an_advisor_asks_for_as_much_a_cpu_second_as_a_sample_can_show() -> None:
    advisor = SyncAdvisor(1, 2, 1_000_000)
    policy = PolicySpec("p", (), (), Sync((), advisor=advisor))
    merge = scaled_policy(policy, Scale(0.01, 250, 250)).merge
    assert isinstance(merge, Sync)
    assert merge.advisor is not None
    assert merge.advisor.target_bytes_per_cpu_s == 10_000


def test_rows_are_recorded_at_full_size() -> None:
    recorder = FullSizeRecorder(Scale(0.1, 25, 250))
    row: dict[str, Any] = {field.name: 0 for field in HOSTS.schema if not field.nullable}
    recorder.add(HOSTS, {**row, "policy": "p", "host": "h", "time_ns": 7, "saved_bytes": 41,
                         "pages_to_scan": 30, "full_scans": 3, "merge_cpu_ns": 99,
                         "cow_breaks": 5, "n_guests": 2, "available_bytes": 1000,
                         "huge_splits": 4})
    found = recorder.table(HOSTS).to_pylist()[0]
    assert {name: found[name] for name in (
        "time_ns", "saved_bytes", "pages_to_scan", "full_scans", "merge_cpu_ns", "cow_breaks",
        "n_guests", "available_bytes", "huge_splits")} == {
        "time_ns": 7, "saved_bytes": 410, "pages_to_scan": 30, "full_scans": 3,
        "merge_cpu_ns": 99, "cow_breaks": 50, "n_guests": 2, "available_bytes": 1000,
        "huge_splits": 4}
    event = {"policy": "p", "host": "h", "time_ns": 7, "kind": "sync_merge", "partition": "x",
             "guest": "g", "tried_pages": 10, "merged_pages": 2, "candidate_pages": 8, "cpu_ns": 3}
    recorder.add(EVENTS, event)
    recorder.add(EVENTS, {**event, "kind": "ranges_named"})
    first, second = recorder.table(EVENTS).to_pylist()
    assert (first["tried_pages"], first["merged_pages"], first["cpu_ns"]) == (100, 20, 3)
    assert (second["tried_pages"], second["candidate_pages"]) == (10, 80)


def _host(n_sites: int, share: float) -> FleetHost:
    """A host of one class, all of whose sites are eligible, as far as the pace looks at it."""
    host = replicate_of(_text(), 0).build(0, 1.0)
    return replace(
        host, content_share=share, site_class=np.zeros(n_sites, np.int32),
        site_eligible=np.ones(n_sites, np.uint8), classes=host.classes[:1])


def _text() -> str:
    if not _text_of:
        _text_of.append(json.dumps(to_json(load_scenario(_written()))))
    return _text_of[0]


_text_of: list[str] = []
_folder: list[Path] = []


def _written() -> Path:
    path = _folder[0] / "sampled.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module", autouse=True)
def _folder_of_scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    _folder.append(tmp_path_factory.mktemp("sampling"))
    yield
    _folder.clear()
    _text_of.clear()


# ---- sampled against unsampled ------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> dict[float, tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]]:
    """Facts, and rows of the host by policy, of one host at different shares."""
    found = {}
    for share in (1.0, 0.3):
        facts, tables = unpack(work(HostTask(_text(), tuple(versions_here().items()), 0, 0, share,
                                             TIMES)))
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in tables["hosts"].to_pylist():
            rows.setdefault(row["policy"], []).append(row)
        found[share] = facts, rows
    return found


def test_a_sample_estimates_what_the_whole_host_saves_within_its_stated_error(
        runs: dict[float, Any]) -> None:
    whole, sampled = runs[1.0], runs[0.3]
    for index, policy in enumerate(("ksmd", "advisor", "domain-sync"), start=1):
        # Calls are followed by samples of their own.
        values = [[row["saved_bytes"] for row in facts_rows[policy] if row["time_ns"] in TIMES]
                  for _, facts_rows in (whole, sampled)]
        exact, seen = (np.array([each], np.float64) for each in values)
        at_rest = [np.array([facts["policies"][index]["at_rest"]]) for facts, _ in (whole, sampled)]
        groups = sampled[0]["policies"][index]["groups"]
        weights = np.full(exact.shape[1], 1 / exact.shape[1])
        total = estimate_total(
            Observed(seen, at_rest[1], (Groups(np.array(groups["saved"]),
                                               np.array(groups["at_rest"])),), 0.3),
            at_rest[0], weights)
        truth = float((exact[0] * weights).sum())
        assert total.host_error == 0
        assert 0 < total.error < 0.05 * truth
        # Three standard errors, and the 1 % that the model of the pace is known to.
        assert abs(total.mean - truth) < 3 * total.error + 0.01 * truth, policy


def test_a_sample_scans_and_costs_as_the_whole_host_does(runs: dict[float, Any]) -> None:
    whole, sampled = (rows for _, rows in runs.values())
    for policy, names in {"ksmd": ("pages_scanned", "merge_cpu_ns"),
                          "advisor": ("pages_scanned", "merge_cpu_ns"),
                          "domain-sync": ("merge_cpu_ns", "caller_cpu_ns")}.items():
        for name in names:
            # The advisor's integers are rounded twice.
            assert sampled[policy][-1][name] == pytest.approx(
                whole[policy][-1][name], rel=0.1 if policy == "advisor" else 0.05), (policy, name)
        memory = [rows[policy][-1]["guest_memory_bytes"] for rows in (whole, sampled)]
        assert memory[1] == pytest.approx(memory[0], rel=0.02)


def test_contents_at_rest_of_a_sample_are_those_of_the_host(runs: dict[float, Any]) -> None:
    for index in (1, 3):
        exact, seen = (np.array(facts["policies"][index]["at_rest"]) for facts, _ in runs.values())
        assert seen == pytest.approx(exact, rel=0.1)


# ---- estimates ----------------------------------------------------------------------------------


def _fleet(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Savings of n hosts at 3 times, and an auxiliary variable that goes with them."""
    stream = np.random.default_rng(seed)
    auxiliary = stream.gamma(4.0, 10.0, (n, 1)) * np.array([[1.0, 1.5, 2.0]])
    return auxiliary * stream.normal(0.8, 0.08, (n, 1)), auxiliary


def test_totals_are_right_on_average_and_their_errors_cover_the_truth() -> None:
    values, auxiliary = _fleet(1)
    weights = np.array([0.5, 0.25, 0.25])
    truth = float((values.sum(axis=0) * weights).sum())
    hosts = np.arange(len(values))
    found = []
    for draw in range(300):
        some = sampled_hosts(draw, 0, hosts, 20)
        found.append(estimate_total(Observed(values[some], auxiliary[some], (), 1.0), auxiliary,
                                    weights))
    means = np.array([total.mean for total in found])
    errors = np.array([total.error for total in found])
    assert means.mean() == pytest.approx(truth, rel=0.003)
    assert errors.mean() == pytest.approx(means.std(), rel=0.15)
    covered = np.abs(means - truth) < 1.96 * errors
    assert 0.88 < covered.mean() < 0.99
    # By hosts alone the spread is that of the hosts, many times as large.
    plain = [values[sampled_hosts(draw, 0, hosts, 20)].mean() for draw in range(300)]
    assert means.std() / truth < 0.3 * np.std(plain) / np.mean(plain)


def test_all_hosts_leave_no_error() -> None:
    values, auxiliary = _fleet(2)
    weights = np.array([0.0, 0.0, 1.0])
    total = estimate_total(Observed(values, auxiliary, (), 1.0), auxiliary, weights)
    assert total.error == 0
    assert total.mean == pytest.approx(values[:, 2].sum())
    assert total.series == pytest.approx(values.sum(axis=0))


def test_one_host_of_several_has_no_stated_error() -> None:
    values, auxiliary = _fleet(3)
    total = estimate_total(Observed(values[:1], auxiliary[:1], (), 1.0), auxiliary,
                           np.array([1.0, 0.0, 0.0]))
    assert math.isinf(total.error)


def test_where_nothing_is_saved_at_rest_hosts_count_alike() -> None:
    values, _ = _fleet(4)
    zero = np.zeros_like(values)
    total = estimate_total(Observed(values[:50], zero[:50], (), 1.0), zero, np.full(3, 1 / 3))
    assert total.series == pytest.approx(values[:50].mean(axis=0) * 200)
    assert total.error > 0


def test_the_error_of_contents_covers_the_truth() -> None:
    """2,000 contents with few or many copies; what is merged of each differs by content."""
    stream = np.random.default_rng(5)
    n, share = 20_000, 0.1
    at_rest = stream.zipf(2.5, n).clip(max=40).astype(np.float64)
    saved = at_rest * stream.uniform(0.5, 1.0, n)
    truth = saved.sum()
    group = stream.integers(0, 32, n)
    inside = []
    errors = []
    for _ in range(300):
        taken = stream.random(n) < share
        groups = Groups(np.bincount(group[taken], saved[taken], 32) / share,
                        np.bincount(group[taken], at_rest[taken], 32) / share)
        total = estimate_total(
            Observed(np.array([[groups.saved.sum()]]), np.array([[groups.at_rest.sum()]]),
                     (groups,), share), np.array([[at_rest.sum()]]), np.ones(1))
        inside.append(abs(total.mean - truth) < 1.96 * total.error)
        errors.append(total.error / truth)
    assert 0.9 < np.mean(inside) < 0.99
    assert np.mean(errors) < 0.02


# ---- designs ------------------------------------------------------------------------------------


def _total(host_error: float, content_error: float, mean: float = 100.0) -> Total:
    return Total(np.array([mean]), mean, host_error, content_error)


def test_a_design_reaches_the_wanted_error_with_the_least_work() -> None:
    done = Design(8, 0.01)
    found = choose([_total(4.0, 3.0)], done, 1000, 1e6, 0.01)
    # Errors of the pilot: 4 % by hosts, 3 % by contents; the wanted one is 1 % of both together.
    by_hosts = 4.0**2 * (1 / found.n_hosts - 1 / 1000) / (1 / 8 - 1 / 1000)
    by_contents = 3.0**2 * ((1 - found.share) / found.share) / ((1 - 0.01) / 0.01) \
        * 8 / found.n_hosts
    assert by_hosts + by_contents <= 1.0 + 1e-9
    assert found.n_hosts < 1000
    assert found.share < 1
    work = found.n_hosts * (found.share * 1e6 + 2**15)
    assert work < 1000 * (0.2 * 1e6 + 2**15)


def test_a_design_that_is_good_enough_stays() -> None:
    done = Design(8, 0.01)
    assert choose([_total(0.2, 0.2)], done, 1000, 1e6, 0.01) == done
    assert choose([], done, 1000, 1e6, 0.01) == done


def test_what_is_fixed_stays_fixed() -> None:
    done = Design(8, 0.01)
    found = choose([_total(40.0, 30.0)], done, 1000, 1e6, 0.01, fixed_hosts=8, fixed_share=0.01)
    assert found == done
    assert choose([_total(40.0, 0.0)], done, 1000, 1e6, 0.01, fixed_share=0.01).n_hosts > 500


def test_small_fleets_are_simulated_whole() -> None:
    assert first_design(3, 1000.0) == Design(3, 1.0)
    assert choose([_total(0.0, 0.0)], Design(3, 1.0), 3, 1000.0, 0.01) == Design(3, 1.0)


def test_a_strategy_that_saves_next_to_nothing_decides_nothing() -> None:
    done = Design(8, 0.01)
    large, small = _total(0.5, 0.5), _total(0.05, 0.05, mean=0.1)
    assert choose([large, small], done, 1000, 1e6, 0.01) == choose([large], done, 1000, 1e6, 0.01)


def test_more_hosts_keep_those_that_were_simulated() -> None:
    hosts = np.array([3, 5, 8, 13, 21, 34])
    few, more = (sampled_hosts(1, 2, hosts, n) for n in (2, 4))
    assert len(few) == 2
    assert set(few) < set(more) < set(hosts)
    assert sampled_hosts(1, 2, hosts, 9).tolist() == hosts.tolist()
    assert sampled_hosts(1, 3, hosts, 4).tolist() != more.tolist() or sampled_hosts(
        1, 4, hosts, 4).tolist() != more.tolist()
