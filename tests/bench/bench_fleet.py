"""Fleets: how cost grows with hosts, pages and strategies, and the run that is the target.

    pytest tests/bench/bench_fleet.py --benchmark-only -o python_files='bench_*.py'
    python tests/bench/bench_fleet.py target    # 1,000 hosts of 256 GiB, minutes
    python tests/bench/bench_fleet.py check     # a sample against every page of 20 hosts
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from planner.executor import versions_here
from planner.forecast.work import HostTask, SurveyTask, work
from planner.metrics import Result
from planner.report.text import render_text
from planner.runner import load_scenario, run
from planner.scenario.spec import to_json

TRACE = Path(__file__).resolve().parents[2] / "traces" / "qemu-guests"
POLICIES = (
    "{name: never, merge: never}",
    "{name: ksmd, merge: {ksmd: {pages_to_scan: 1000}}}",
    "{name: advisor, merge: {ksmd: {advisor_mode: scan-time}}}",
    "{name: domain, partition_by: domain, merge: {ksmd: {pages_to_scan: 1000}}}",
    "{name: domain-sync, partition_by: domain, merge: {sync: {at: [boot, {every: 1h}]}}}",
)


def fleet(folder: Path, *, hosts: int = 4, guests_per_host: int = 58, memory: str = "4GiB",
          host_memory: str = "256GiB", horizon: str = "3d", sample_every: str = "1h",
          replicates: int = 1, precision: str = "exact", n_policies: int = 5,
          placement: str = "first-fit") -> Any:
    """A scenario of guests like those in traces/qemu-guests, `memory` each, filled alike."""
    lines = "\n".join(f"  - {policy}" for policy in POLICIES[:n_policies])
    path = folder / "fleet.yaml"
    path.write_text(f"""
planner: 1
name: fleet
seed: 42
horizon: {horizon}
replicates: {replicates}
precision: {precision}
placement: {placement}
hosts:
  - {{name: host, count: {hosts}, memory: {host_memory}, cores: 32}}
workloads:
  - name: guests
    trace: {TRACE}
    domain: {{label: tenant}}
    count: {hosts * guests_per_host}
    memory: {memory}
    fill: proportional
policies:
{lines}
output: {{folder: results, sample_every: {sample_every}}}
""")
    return load_scenario(path)


def _host(benchmark: BenchmarkFixture, scenario: Any, share: float) -> None:
    """Time one machine under every policy; what all machines share is found before."""
    text, versions = json.dumps(to_json(scenario)), tuple(versions_here().items())
    benchmark.pedantic(work, (HostTask(text, versions, 0, 1, share, (0,)),), rounds=2,
                       warmup_rounds=1)


@pytest.mark.parametrize("share", [0.0000075, 0.000015, 0.00003])
def test_a_host_grows_with_its_pages(benchmark: BenchmarkFixture, tmp_path: Path,
                                     share: float) -> None:
    _host(benchmark, fleet(tmp_path), share)


@pytest.mark.parametrize("n_policies", [1, 2, 5])
def test_a_host_grows_with_strategies(benchmark: BenchmarkFixture, tmp_path: Path,
                                      n_policies: int) -> None:
    _host(benchmark, fleet(tmp_path, n_policies=n_policies), 0.000015)


@pytest.mark.parametrize("n_hosts", [10, 100, 1000])
def test_a_survey_grows_with_hosts(benchmark: BenchmarkFixture, tmp_path: Path,
                                   n_hosts: int) -> None:
    """24 times, 5 strategies, 58 guests a host."""
    scenario = fleet(tmp_path, hosts=n_hosts)
    text, versions = json.dumps(to_json(scenario)), tuple(versions_here().items())
    times = tuple(range(0, scenario.horizon_ns, scenario.horizon_ns // 24))
    benchmark.pedantic(work, (SurveyTask(text, versions, 0, times),), rounds=2, warmup_rounds=1)


# ---- the target ---------------------------------------------------------------------------------


def target() -> None:
    """1,000 hosts x 256 GiB x 3 days x 5 strategies x 5 replicates, 1 % error, 2 processes."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = fleet(Path(folder), hosts=1000, replicates=5, precision="1%")
        started = time.perf_counter()
        result = run(scenario, workers=2, progress=_told)
        _tell(result, time.perf_counter() - started)


def check() -> None:
    """The sample that 1 % asks for, against every page of 20 hosts."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hosts": 20, "guests_per_host": 8, "memory": "128MiB", "host_memory": "3GiB",
                 "horizon": "30min", "sample_every": "1min", "placement": "spread"}
        found: dict[str, dict[str, Any]] = {}
        for precision in ("exact", "1%", "{contents: 10%, hosts: 10}"):
            started = time.perf_counter()
            result = run(fleet(Path(folder), precision=precision, **sizes),
                         workers=2)
            _tell(result, time.perf_counter() - started)
            found[precision] = {row["policy"]: row for row in result.replicates.to_pylist()
                                if row["resample"] < 0}
        exact = found.pop("exact")
        for precision, rows in found.items():
            for policy, row in rows.items():
                if exact[policy]["saved_bytes"]:
                    print(f"precision {precision}, {policy}: {_against(row, exact[policy])}")


def _against(row: dict[str, Any], exact: dict[str, Any]) -> str:
    truth = exact["saved_bytes"]
    saved, cpu, cow = (row[name] / exact[name] - 1
                       for name in ("saved_bytes", "merge_cpu_ns", "cow_breaks"))
    return (f"saved {saved:+.2%} of the exact, stated {row['saved_error_bytes'] / truth:.2%}; "
            f"merge CPU {cpu:+.1%}, COW breaks {cow:+.1%}")


def _told(what: str, share: float) -> None:
    print(f"{share:6.1%} {what}", file=sys.stderr, flush=True)


def _tell(result: Result, elapsed_s: float) -> None:
    sampling = result.run["sampling"]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    mine = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{elapsed_s:.0f} s, CPU {children.ru_utime + children.ru_stime + mine.ru_utime:.0f} s; "
          f"largest process {max(children.ru_maxrss, mine.ru_maxrss) / 1024:.0f} MiB; "
          f"{sampling['n_hosts_of_replicates']} of {sampling['n_hosts_with_guests']} hosts, "
          f"{sampling['content_share']:.3g} of contents")
    for each in sampling["errors"]:
        print(f"  replicate {each['replicate']}, {each['policy']}: stated error "
              f"{each['error_share'] or 0:.2%}")
    print(render_text(result, width=100, colour=False).split("\n\n")[1])


if __name__ == "__main__":
    {"target": target, "check": check}[sys.argv[1]]()
