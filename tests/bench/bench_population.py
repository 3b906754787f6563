"""Drawn hosts and savings at rest: how cost grows with the share of pages, guests and hosts.

    pytest tests/bench/bench_population.py --benchmark-only -o python_files='bench_*.py' \
        --benchmark-columns=min,median,rounds --benchmark-sort=name

Guests of 4 GiB from the shipped QEMU guests of 128 MiB, the rest filled with private pages, for
three days, 64 on a host. Compare the column "min": other work on the machine only ever adds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.population.at_rest import at_rest_saved
from planner.population.fit import fit_population
from planner.population.hosts import HostBuilder
from planner.population.model import Population
from planner.population.sketches import guest_sketches
from planner.scenario.spec import DrawSpec, FleetSpec, PolicySpec, Scenario
from planner.timeline import Timeline
from planner.trace import open_trace
from tests.drawn_worlds import Stay, timeline
from tests.scenario_builder import NEVER, SECOND, scenario_for

TRACE = Path(__file__).parent.parent.parent / "traces" / "qemu-guests"
DAYS_NS = 3 * 86_400 * SECOND
GUEST_PAGES = 1 << 20
POLICIES = {by: replace(NEVER, name=by, partition_by=() if by == "none" else (by,))
            for by in ("none", "role", "domain", "guest")}


@cache
def fleet(n_hosts: int, per_host: int = 64) -> tuple[Population, Scenario, Timeline]:
    spec = scenario_for(TRACE, horizon_ns=DAYS_NS, mergeable="all")
    draw = DrawSpec(count=1, memory_bytes=GUEST_PAGES * 4096)
    workload = replace(spec.workloads[0], host="", draw=draw)
    spec = replace(spec, workloads=(workload,), fleet=FleetSpec(),
                   hosts=(replace(spec.hosts[0], count=n_hosts),))
    population = fit_population(spec, {workload.trace: open_trace(TRACE)})
    stays = timeline(spec, [Stay(number, number // per_host)
                            for number in range(n_hosts * per_host)], memory_pages=GUEST_PAGES)
    return population, spec, stays


@pytest.mark.parametrize("per_mille", [1, 2, 4])
def test_bench_a_host_of_64_guests_by_content_share(benchmark: BenchmarkFixture,
                                                    per_mille: int) -> None:
    population, spec, stays = fleet(4)
    builder = HostBuilder(population, spec, stays, 0, per_mille / 1000)
    builder.build(0)
    host = benchmark.pedantic(builder.build, args=(1,), rounds=3)
    benchmark.extra_info["sites"] = len(host.site_mm)
    benchmark.extra_info["events"] = len(host.event_site)


@pytest.mark.parametrize("per_host", [16, 32, 64])
def test_bench_a_host_by_guests(benchmark: BenchmarkFixture, per_host: int) -> None:
    population, spec, stays = fleet(4, per_host)
    builder = HostBuilder(population, spec, stays, 0, 0.001)
    builder.build(0)
    benchmark.pedantic(builder.build, args=(1,), rounds=3)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n_hosts", [100, 1000])
def test_bench_savings_at_rest_of_all_hosts_at_10_times(
        benchmark: BenchmarkFixture, n_hosts: int, policy: str) -> None:
    population, spec, stays = fleet(n_hosts)
    times_ns = np.linspace(0, DAYS_NS, 10).astype(np.int64).tolist()
    found = benchmark.pedantic(at_rest_saved, args=(
        population, spec, stays, POLICIES[policy], times_ns, 0), rounds=3, warmup_rounds=1)
    assert found is not None
    assert found.saved.shape == (n_hosts, 10)


def test_bench_sketches_of_64000_guests(benchmark: BenchmarkFixture) -> None:
    population, spec, stays = fleet(1000)
    policy = PolicySpec("domain", ("domain",), (), NEVER.merge)
    benchmark.pedantic(guest_sketches, args=(population, spec, stays.requests, policy, 0),
                       rounds=3, warmup_rounds=1)
