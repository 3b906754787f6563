"""Fleets from traces to results: the same wherever it is done, resumable, honest about samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.cases import CaseFolder, pack, unpack
from planner.cli import main
from planner.errors import DataError, UsageError
from planner.executor import Case, open_pool
from planner.explain import explain
from planner.exporters import export_settings
from planner.forecast.cases import Cases
from planner.forecast.fleet import run_fleet
from planner.forecast.work import HostTask, SurveyTask, work
from planner.forecast.world import replicate_of, seed_of
from planner.metrics import HOSTS, Result
from planner.runner import build_hosts, load_scenario, run, run_digest
from planner.scenario.spec import to_json
from tests.local_cluster import local_cluster
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

SCENARIO = """
planner: 1
name: tiny
seed: 3
horizon: 60s
warm_up: 20s
replicates: 2
hosts:
  - {{name: host, memory: 512MiB, reserved: 0B, count: 3, cores: 2}}
workloads:
  - name: guests
    trace: {trace}
    domain: {{label: tenant}}
    count: 12
    mergeable: all
policies:
  - name: off
    merge: never
  - name: ksmd
    merge: {{ksmd: {{pages_to_scan: 20}}}}
  - name: domain
    partition_by: domain
    merge: {{sync: {{at: [boot, {{every: 15s}}]}}}}
output: {{folder: results, sample_every: 5s}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trace of three guests that share an image, and a scenario."""
    found = tmp_path_factory.mktemp("fleet")
    guests = []
    for number, tenant in enumerate(("red", "red", "blue")):
        own = 1000 * (number + 1)
        first = [*range(100, 130), 0, 0, *range(own, own + 20)]
        second = [*range(100, 125), *range(own + 50, own + 55), 0, 0, *range(own, own + 20)]
        guests.append(GuestPlan(f"web-{number}", {"tenant": tenant},
                                [MmPlan([pages_of(first), pages_of(second), pages_of(first)])]))
    trace = build_trace(found / "web.trace", guests, every_ns=10_000_000_000)
    (found / "tiny.yaml").write_text(SCENARIO.format(trace=trace))
    return found


def ran(folder: Path, overrides: tuple[str, ...] = (), **where: Any) -> Result:
    return run(load_scenario(folder / "tiny.yaml", overrides), **where)


def same(first: Result, second: Result) -> bool:
    """Whether two results hold the same tables and the same plan."""
    names = ("summary", "hosts", "partitions", "events", "replicates", "series")
    return all(getattr(first, name).equals(getattr(second, name)) for name in names) \
        and first.plan == second.plan


@pytest.fixture(scope="module")
def here(folder: Path) -> Result:
    """The result of one process."""
    return ran(folder)


# ---- what comes out -----------------------------------------------------------------------------


def test_a_fleet_is_planned_from_a_few_captured_guests(here: Result) -> None:
    rows = here.replicates.to_pylist()
    assert [(row["policy"], row["replicate"]) for row in rows if row["resample"] < 0] == [
        (policy, replicate) for replicate in (0, 1) for policy in ("off", "ksmd", "domain")]
    saved = {row["policy"]: row["saved_bytes"] for row in here.summary.to_pylist()}
    assert saved["off"] == 0 < saved["domain"] < saved["ksmd"]
    assert all(row["n_machines"] == 3 and row["n_guests"] == 12 for row in rows)
    assert {row["host"] for row in here.hosts.to_pylist()} == {
        "host-0001", "host-0002", "host-0003"}
    assert here.run["sampling"]["is_sampled"] is False
    assert all(row["saved_error_bytes"] == 0 for row in rows)
    assert all(row["hosts_needed"] == 3 for row in rows if row["policy"] == "off")
    assert here.plan is not None
    assert here.plan["n_replicates"] == 2
    assert here.plan["n_resamples"] == 20
    assert any("x4" in note for note in here.plan["notes"])


def test_what_replays_only_can_do_says_so_of_a_fleet(here: Result) -> None:
    with pytest.raises(UsageError, match="guests of a fleet are drawn"):
        explain(here, "domain")
    with pytest.raises(UsageError, match="guests of a fleet are drawn"):
        export_settings(here, "domain", "selective-ksm")
    text = export_settings(here, "ksmd", "sysfs")
    assert "Expected over time, from 20.0 s to 60.0 s, on 3 hosts in all: " in text
    assert "Saved in 2 replicates: " in text
    assert "One run" not in text


def test_policies_meet_the_same_guests_and_replicates_others(here: Result) -> None:
    memory = {(row["policy"], row["replicate"]): row["guest_memory_bytes"]
              for row in here.replicates.to_pylist() if row["resample"] < 0}
    assert len({memory[policy, 0] for policy in ("off", "ksmd", "domain")}) == 1
    first, second = (replicate_of(_text(here), number) for number in (0, 1))
    assert first.requests.name == second.requests.name
    hosts = [each.build(0, 1.0) for each in (first, second)]
    assert hosts[0].event_time_ns.tolist() != hosts[1].event_time_ns.tolist()


def _text(result: Result) -> str:
    return json.dumps(result.scenario)


def test_guests_that_find_no_room_are_told(folder: Path) -> None:
    result = ran(folder, ("hosts.host.count=2", "replicates=1"))
    assert result.run["replicates"][0]["n_rejected"] == 4
    assert len(result.run["replicates"][0]["rejected"]) == 4
    assert any("the fleet is too small: 33.3 % of all guests" in text
               for text in result.run["warnings"])
    assert result.replicates.to_pylist()[0]["rejected_guests"] == 4


def test_one_captured_guest_is_enough_with_a_warning(folder: Path, tmp_path: Path) -> None:
    pages = pages_of([*range(100, 130), *range(1000, 1020)])
    trace = build_trace(tmp_path / "one.trace",
                        [GuestPlan("web", {"tenant": "red"}, [MmPlan([pages])])])
    (tmp_path / "tiny.yaml").write_text(SCENARIO.format(trace=trace))
    result = ran(tmp_path, ("replicates=1",))
    assert any("WARNING" in note for note in (result.plan or {})["notes"])


def test_fleets_have_machines_to_look_at(folder: Path) -> None:
    from planner.runner import TraceStore

    hosts = build_hosts(load_scenario(folder / "tiny.yaml"), TraceStore())
    assert [host.spec.name for host in hosts] == ["host-0001", "host-0002", "host-0003"]
    assert all(host.content_share == 1.0 and len(host.site_mm) for host in hosts)


# ---- wherever it is done ------------------------------------------------------------------------


def test_two_processes_give_what_one_gives(folder: Path, here: Result) -> None:
    assert same(here, ran(folder, workers=2))


def test_replicates_of_a_replay_are_cases_of_their_own(folder: Path) -> None:
    replay = ("replicates=1", "hosts.host.count=1", "warm_up=0s")
    path = folder / "replay.yaml"
    path.write_text("".join(
        line for line in (folder / "tiny.yaml").read_text().splitlines(keepends=True)
        if "count: 12" not in line).replace("horizon: 60s", "horizon: captured"))
    alone = run(load_scenario(path, replay))
    several = run(load_scenario(path, (*replay, "replicates=3")))
    for name in ("summary", "hosts", "partitions", "events"):
        assert getattr(alone, name).equals(getattr(several, name)), name
    rows = [row for row in several.replicates.to_pylist() if row["policy"] == "ksmd"]
    assert [row["replicate"] for row in rows] == [0, 1, 2]
    scenario = load_scenario(path, replay)
    assert seed_of(scenario, 0) == scenario.seed
    assert len({seed_of(scenario, number) for number in range(5)}) == 5


def test_a_run_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, here: Result,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cases"
    done: list[str] = []

    def stop(what: str, share: float) -> None:
        done.append(what)
        if len(done) == 5:
            raise KeyboardInterrupt

    from planner.errors import InterruptedRunError

    with pytest.raises(InterruptedRunError, match=r"5 finished cases are kept in .*; run again"):
        ran(folder, cases=kept, progress=stop)
    assert len(CaseFolder(kept).finished()) == 5
    before = len(done)
    again = ran(folder, cases=kept, progress=lambda what, share: done.append(what))
    assert same(here, again)
    n_all = len(CaseFolder(kept).finished())
    assert len(done) - before == n_all - 5
    monkeypatch.setattr("planner.forecast.cases.work", None)  # nothing is left to be done
    assert same(here, ran(folder, cases=kept))


def test_cases_of_other_runs_are_not_mistaken_for_ones_own(folder: Path, tmp_path: Path) -> None:
    kept = CaseFolder(tmp_path / "cases")
    first = ran(folder, ("replicates=1",), cases=kept.path)
    n_first = len(kept.finished())
    other = ran(folder, ("replicates=1", "seed=4"), cases=kept.path)
    assert len(kept.finished()) == 2 * n_first
    assert not same(first, other)


def test_a_task_refuses_a_trace_that_was_changed(folder: Path) -> None:
    scenario = to_json(load_scenario(folder / "tiny.yaml"))
    scenario["workloads"][0]["trace_digest"] = "0" * 64
    from planner.executor import versions_here

    with pytest.raises(DataError, match="not the one that the scenario was resolved with"):
        work(SurveyTask(json.dumps(scenario), tuple(versions_here().items()), 0, (0,)))
    with pytest.raises(DataError, match=r"worker .* has numpy .*, this program has 0\.1"):
        work(HostTask(json.dumps(scenario), (("numpy", "0.1"),), 0, 0))


def test_payloads_come_back_as_they_were() -> None:
    table = HOSTS.schema.empty_table()
    facts, tables = unpack(pack({"a": [1, 2.5, None, "x"]}, {"one": table, "two": table}))
    assert facts == {"a": [1, 2.5, None, "x"]}
    assert list(tables) == ["one", "two"]
    assert tables["two"].equals(table)


# ---- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as made:
        yield made


def test_a_cluster_that_loses_a_worker_midway_gives_what_one_process_gives(
        folder: Path, here: Result, cluster: Any) -> None:
    pids = [worker.process.pid for worker in cluster.workers.values()]
    killed: list[int] = []

    def kill_one(what: str, share: float) -> None:
        if not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    found = ran(folder, cluster=cluster.scheduler_address, progress=kill_one)
    assert killed
    assert same(here, found)


# ---- samples ------------------------------------------------------------------------------------


def test_a_sample_of_hosts_states_an_error_that_holds(folder: Path) -> None:
    larger = ("hosts.host.count=20", "workloads.guests.count=80", "horizon=30s", "warm_up=5s")
    exact = ran(folder, larger)
    sampled = ran(folder, (*larger, "precision={hosts: 8}"))
    assert sampled.run["sampling"]["is_sampled"] is True
    assert sampled.run["sampling"]["n_hosts"] == 8
    assert any("99 % of hosts" in text for text in sampled.run["assumptions"])
    whole = {(row["policy"], row["replicate"]): row for row in exact.replicates.to_pylist()
             if row["resample"] < 0}
    for row in sampled.replicates.to_pylist():
        if row["resample"] < 0 and row["policy"] != "off":
            truth = whole[row["policy"], row["replicate"]]["saved_bytes"]
            assert 0 < row["saved_error_bytes"] < 0.02 * truth
            assert abs(row["saved_bytes"] - truth) < 3.5 * row["saved_error_bytes"]
            assert row["n_hosts"] == 8


def test_exact_is_every_host_of_every_replicate(folder: Path) -> None:
    found = ran(folder, ("hosts.host.count=40", "placement=spread", "workloads.guests.count=2",
                         "workloads.guests.arrivals=20/min", "replicates=5", "horizon=30s",
                         "warm_up=5s"))
    rows = [row for row in found.replicates.to_pylist() if row["resample"] < 0]
    assert max(row["hosts_used"] for row in rows) > rows[0]["hosts_used"]
    assert all(row["n_hosts"] == row["hosts_used"] for row in rows)
    assert all(row["saved_error_bytes"] == 0 for row in rows)


def test_the_memory_of_sampled_hosts_is_known_at_each_time(folder: Path, here: Result) -> None:
    sampled = ran(folder, ("precision={contents: 40%}",))
    assert sampled.run["sampling"]["is_sampled"] is True
    exact, rows = ({(row["host"], row["time_ns"]): row for row in each.hosts.to_pylist()
                    if row["policy"] == "off"} for each in (here, sampled))
    assert exact.keys() == rows.keys()
    for name in ("guest_memory_bytes", "eligible_bytes"):
        assert [row[name] for row in rows.values()] == [row[name] for row in exact.values()]


def test_a_wanted_error_chooses_the_hosts(folder: Path) -> None:
    overrides = ("hosts.host.count=30", "workloads.guests.count=120", "replicates=1",
                 "horizon=30s", "warm_up=5s")
    loose = ran(folder, (*overrides, "precision=20%")).run["sampling"]
    strict = ran(folder, (*overrides, "precision=0.01%")).run["sampling"]
    assert loose["n_hosts"] < strict["n_hosts"] <= 30
    assert loose["n_hosts_with_guests"] == 30
    assert all(each["error_share"] <= 0.2 for each in loose["errors"])


def test_the_estimate_is_the_exact_figure_where_nothing_is_left_out(folder: Path) -> None:
    scenario = load_scenario(folder / "tiny.yaml", ("precision=50%",))
    with open_pool(1) as pool:
        found = run_fleet(scenario, run_digest(scenario), pool)
    assert found.sampling["is_sampled"] is False
    assert all(each.row["saved_error_bytes"] == 0 for each in found.outcomes)


def test_keys_of_cases_name_what_decides_them(folder: Path) -> None:
    scenario = load_scenario(folder / "tiny.yaml")
    with open_pool(1) as pool:
        run_of = Cases(scenario, "d1", pool)
        other = Cases(scenario, "d2", pool)
        task = HostTask(run_of.text, run_of.versions, 0, 1, 0.5, (0,))
        keys = {each.key for each in (
            run_of.case(task, "a"), other.case(task, "a"),
            run_of.case(HostTask(run_of.text, run_of.versions, 0, 1, 0.25, (0,)), "a"),
            run_of.case(HostTask(run_of.text, run_of.versions, 1, 1, 0.5, (0,)), "a"),
            run_of.case(SurveyTask(run_of.text, run_of.versions, 0, (0,)), "a"))}
    assert len(keys) == 5
    assert isinstance(run_of.case(task, "b"), Case)
    assert run_of.case(task, "b").key in keys


# ---- the command line ---------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    return main(["run", *arguments])


def test_run_says_what_it_would_do(folder: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(str(folder / "tiny.yaml"), "-o", str(tmp_path), "--plan", "--workers", "2") == 0
    told = capsys.readouterr().out
    assert "3 policies, 2 replicate(s), 3 of 3 machines each" in told
    assert "in 2 processes" in told
    assert list(tmp_path.iterdir()) == []
    assert cli(str(folder / "tiny.yaml"), "-o", str(tmp_path), "--plan", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "planner.run-plan"
    assert document["jobs"][0]["n_replicates"] == 2
    assert document["jobs"][0]["has_result"] is False


def test_run_writes_a_fleet_and_forgets_its_cases(folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(str(folder / "tiny.yaml"), "-o", str(tmp_path), "--workers", "1") == 0
    assert "tiny: 12 guests on 3 hosts" in capsys.readouterr().out
    (made,) = tmp_path.iterdir()
    assert {"plan.json", "replicates.parquet", "series.parquet", "report.html"} <= {
        path.name for path in made.iterdir()}
    assert cli(str(folder / "tiny.yaml"), "-o", str(tmp_path), "--plan") == 0
    assert "run before" in capsys.readouterr().out


def test_a_requirement_that_fails_is_an_exit_code(folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "require.yaml"
    path.write_text((folder / "tiny.yaml").read_text() + """
require:
  - {policy: ksmd, metric: saved, at_least: 1KiB}
  - {policy: domain, metric: saved, at_least: 1TiB}
""")
    assert cli(str(path), "-o", str(tmp_path), "--workers", "1") == 4
    assert cli(str(path), "-o", str(tmp_path), "--workers", "1") == 4  # kept results, too
    capsys.readouterr()


def test_a_sweep_runs_every_case(folder: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "sweep.yaml"
    path.write_text((folder / "tiny.yaml").read_text() + """
sweep:
  hosts.host.count: [3, 4]
""")
    assert cli(str(path), "-o", str(tmp_path), "--workers", "1", "--set", "replicates=1") == 0
    assert "count" in capsys.readouterr().out
    (made,) = tmp_path.iterdir()
    assert made.name.startswith("tiny-sweep-")
    document = json.loads((made / "sweep.json").read_text())
    assert {row["inputs"]["hosts.host.count"] for row in document["cases"]} == {3, 4}
    folders = [each for each in made.iterdir() if each.is_dir()]
    assert len(folders) == 2
    # The report made anew holds the sweep, too.
    before = (folders[0] / "report.html").read_text()
    page = tmp_path / "again.html"
    assert main(["report", str(folders[0]), "--format", "html", "-o", str(page)]) == 0
    assert page.read_text() == before
    (made / "sweep.json").write_text("{}")
    assert main(["report", str(folders[0]), "--format", "html", "-o", str(page)]) == 3
    assert cli(str(path), "-o", str(tmp_path / "one"), "--workers", "1", "--no-sweep",
               "--set", "replicates=1") == 0
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_an_interrupt_ends_the_workers_and_keeps_their_cases(folder: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "planner", "run", str(folder / "tiny.yaml"), "-o",
               str(tmp_path), "--workers", "2", "--set", "replicates=2000"]
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": root},
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.cases/*.case")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "finished cases are kept in" in told
    assert "run again to go on" in told
    assert list(tmp_path.glob("*.cases/*.case"))
