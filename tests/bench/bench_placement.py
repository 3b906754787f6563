"""Placing guests that come and go: how cost grows with arrivals and hosts, for every policy.

    pytest tests/bench/bench_placement.py --benchmark-only -o python_files='bench_*.py' \
        --benchmark-columns=min,median,rounds --benchmark-sort=name

Arrivals are made up: three days, batches of tenants, flavours of 1 to 16 GiB, log-normal lives of
4 hours (median) and 2 days (95th percentile), templates of 4,096 sampled contents in partitions by
tenant or in one. Hosts have room for 1.1 times the most memory that is asked for at one time,
however many they are. `BENCH_ARRIVALS` names a table (`planner import arrivals`) to take instead.
Compare the column "min": other work on the machine only ever adds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.arrivals import ArrivalTable, arrival_table, read_arrivals
from planner.scenario.spec import (
    ArrivalsSpec,
    DomainsSpec,
    DrawSpec,
    FleetSpec,
    GuestSpec,
    HostSpec,
    OutputSpec,
    Scenario,
    WorkloadSpec,
)
from planner.timeline import Requests, Timeline, draw_requests, fewest_hosts, place
from planner.timeline.placement import PLACEMENTS
from tests.scenario_builder import NEVER, SECOND
from tests.test_placement import Sketch

HOUR = 3600 * SECOND
GIB = 1 << 30
N_ARRIVALS, N_HOSTS = 100_000, 1000
POLICIES = tuple(PLACEMENTS)


@cache
def table() -> ArrivalTable:
    if path := os.environ.get("BENCH_ARRIVALS"):
        return read_arrivals(Path(path))
    rng = np.random.default_rng(1)
    n = 4 * N_ARRIVALS
    tenant = np.repeat(np.arange(n), rng.geometric(0.2, n))[:n]
    time_ns = np.sort(rng.integers(0, 72 * HOUR, n))[np.searchsorted(tenant, tenant)]
    life_ns = (4 * HOUR * np.exp(1.5 * rng.standard_normal(n))).astype(np.int64) + SECOND
    seen_ns = 72 * HOUR - time_ns
    is_cut = life_ns >= seen_ns
    return arrival_table("made up", {
        "time_ns": time_ns, "duration_ns": np.where(is_cut, -1, life_ns),
        "censored_ns": np.where(is_cut, seen_ns, -1),
        "memory_bytes": rng.choice([1, 2, 4, 8, 16], n) * GIB, "cores": np.ones(n),
        "tenant": tenant, "flavour": np.zeros(n, np.int32)}, ["made up"], {})[0]


def scenario(n_arrivals: int, n_hosts: int, room: int, policy: str) -> Scenario:
    guest = GuestSpec(0, "captured", "captured", "captured", ())
    workloads = tuple(
        WorkloadSpec(name, name, "", "", (), (guest,), "captured", DrawSpec(table_share=share))
        for name, share in (("web", 0.7), ("db", 0.3)))
    return Scenario(
        1, "bench", 1, 72 * HOUR,
        (HostSpec("host", room, 0, 64, 250, "builtin:unmeasured", count=n_hosts),), workloads,
        DomainsSpec((), ()), (NEVER,), OutputSpec("results", HOUR),
        fleet=FleetSpec(placement=policy,
                        arrivals=ArrivalsSpec("table", "", table().origin_ns, limit=n_arrivals)))


@cache
def drawn(n_arrivals: int) -> Requests:
    return draw_requests(scenario(n_arrivals, 1, 1 << 60, "first-fit"), [GIB, GIB], 0, table())


@cache
def room(n_arrivals: int, n_hosts: int) -> int:
    """Of each host."""
    requests = drawn(n_arrivals)
    times = np.concatenate([requests.end_ns, requests.start_ns])
    change = np.concatenate([-requests.memory_bytes, requests.memory_bytes])
    peak = int(np.cumsum(change[np.argsort(times, kind="stable")]).max())
    return max(int(1.1 * peak / n_hosts), int(requests.memory_bytes.max()))


@cache
def sketch(n_arrivals: int, n_templates: int = 12, by: str = "none") -> Sketch:
    requests, rng = drawn(n_arrivals), np.random.default_rng(2)
    bits = rng.integers(0, 2**64, (n_templates, 64), dtype=np.uint64)
    partition = np.zeros(len(requests), np.int32) if by == "none" else requests.domain
    return Sketch(bits, rng.integers(0, n_templates, len(requests)).astype(np.int32), partition)


def placing(n_arrivals: int, n_hosts: int, policy: str, **sketches: Any) -> Callable[[], Timeline]:
    spec = scenario(n_arrivals, n_hosts, room(n_arrivals, n_hosts), policy)
    requests, known = drawn(n_arrivals), sketch(n_arrivals, **sketches)
    return lambda: place(spec, requests, known, 0)


def measure(benchmark: BenchmarkFixture, task: Callable[[], Timeline], n_arrivals: int) -> None:
    found = benchmark.pedantic(task, rounds=5, warmup_rounds=1)
    assert len(found.stay_guest) + len(found.rejected) == n_arrivals
    assert len(found.rejected) < 0.2 * n_arrivals
    benchmark.extra_info["rejected"] = len(found.rejected)


@pytest.mark.benchmark(group="placing: arrivals, on 1,000 hosts")
@pytest.mark.parametrize("n_arrivals", [25_000, 100_000, 400_000])
@pytest.mark.parametrize("policy", POLICIES)
def test_arrivals(benchmark: BenchmarkFixture, policy: str, n_arrivals: int) -> None:
    measure(benchmark, placing(n_arrivals, N_HOSTS, policy), n_arrivals)


@pytest.mark.benchmark(group="placing: hosts, 100,000 arrivals")
@pytest.mark.parametrize("n_hosts", [250, 1000, 4000])
@pytest.mark.parametrize("policy", POLICIES)
def test_hosts(benchmark: BenchmarkFixture, policy: str, n_hosts: int) -> None:
    measure(benchmark, placing(N_ARRIVALS, n_hosts, policy), N_ARRIVALS)


@pytest.mark.benchmark(group="placing: sharing-aware, 100,000 arrivals on 1,000 hosts")
@pytest.mark.parametrize("by", ["none", "tenant"])
@pytest.mark.parametrize("n_templates", [4, 64, 256])
def test_templates(benchmark: BenchmarkFixture, n_templates: int, by: str) -> None:
    measure(benchmark, placing(N_ARRIVALS, N_HOSTS, "sharing-aware", n_templates=n_templates,
                               by=by), N_ARRIVALS)


@pytest.mark.benchmark(group="drawing guests from a table")
@pytest.mark.parametrize("n_arrivals", [25_000, 100_000, 400_000])
def test_draw(benchmark: BenchmarkFixture, n_arrivals: int) -> None:
    spec = scenario(n_arrivals, N_HOSTS, 1 << 60, "first-fit")
    found = benchmark.pedantic(draw_requests, (spec, [GIB, GIB], 0, table()), rounds=3,
                               warmup_rounds=1)
    assert len(found) == n_arrivals


@pytest.mark.benchmark(group="the fewest hosts, 100,000 arrivals")
@pytest.mark.parametrize("policy", POLICIES)
def test_fewest(benchmark: BenchmarkFixture, policy: str) -> None:
    requests, known = drawn(N_ARRIVALS), sketch(N_ARRIVALS)
    spec = HostSpec("host", room(N_ARRIVALS, N_HOSTS), 0, 64, 250, "builtin:unmeasured")
    found = benchmark.pedantic(fewest_hosts, (requests, spec, policy), {"sketches": known},
                               rounds=3, warmup_rounds=1)
    benchmark.extra_info["hosts"] = found
    assert found >= 1 / 1.1 * N_HOSTS - 1


def test_the_azure_target(benchmark: BenchmarkFixture) -> None:
    """100,000 arrivals drawn and placed on 1,000 hosts by sharing, in 10 s with everything."""
    spec = scenario(N_ARRIVALS, N_HOSTS, room(N_ARRIVALS, N_HOSTS), "sharing-aware")
    known = sketch(N_ARRIVALS)

    def all_of_it() -> Timeline:
        return place(spec, draw_requests(spec, [GIB, GIB], 0, table()), known, 0)

    benchmark.pedantic(all_of_it, rounds=3, warmup_rounds=1)
    assert benchmark.stats.stats.max < 10
