"""Scenarios whose guests are drawn: strategies, incidents, prices, requirements and sweeps."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from planner.cli import main
from planner.errors import DataError, ScenarioError
from planner.measures import METRICS
from planner.scenario import (
    ArrivalsSpec,
    Cooperation,
    CostsSpec,
    DrawSpec,
    FleetSpec,
    FreePages,
    IncidentSpec,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    LifetimeSpec,
    LoadSpec,
    Never,
    PartitionRule,
    PrecisionSpec,
    RequireSpec,
    Scenario,
    Sync,
    SyncAdvisor,
    TraceFacts,
    Trigger,
    load_cases,
    load_scenario,
    to_json,
)
from planner.scenario.load import parse_scenario
from planner.scenario.resolve import from_json, resolve
from planner.scenario.schema import describe
from planner.scenario.sweep import Case, cases_of
from tests.scenario_facts import GIB, arrivals_of, facts_of
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

VALID = Path(__file__).parent / "cases" / "valid"
SECOND, MINUTE, HOUR, DAY = (10**9 * n for n in (1, 60, 3600, 86400))
SMALL = (VALID / "drawn-smallest.yaml").read_text()


@pytest.fixture(scope="module")
def drawn() -> Scenario:
    """The scenario that has every key."""
    return load_scenario(VALID / "drawn.yaml", facts_of, arrivals_of=arrivals_of)


def load(text: str, *overrides: str, notes: list[str] | None = None) -> Scenario:
    return resolve(parse_scenario(text.encode(), "s.yaml", Path("/base"), overrides), facts_of,
                   None, notes, arrivals_of)


def cases(text: str, *overrides: str, notes: list[str] | None = None) -> list[Case]:
    return cases_of(parse_scenario(text.encode(), "s.yaml", Path("/base"), overrides), facts_of,
                    None, notes, arrivals_of)


def fault(text: str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load(text, *overrides)
    return str(caught.value)


# ---- every key ------------------------------------------------------------------------------


def test_the_smallest_fleet_gets_every_default() -> None:
    scenario = load(SMALL)
    assert scenario.is_fleet
    assert scenario.fleet == FleetSpec("first-fit", 1.0, 0.95, None, (), 1_250_000_000)
    assert (scenario.replicates, scenario.warm_up_ns) == (5, 0)
    assert (scenario.precision, scenario.costs, scenario.require) == (
        PrecisionSpec(), CostsSpec(), ())
    assert scenario.hosts[0].names == ("h-0001", "h-0002")
    (workload,) = scenario.workloads
    assert (workload.draw, workload.host) == (DrawSpec(count=12), "")
    assert [guest.name for guest in workload.guests] == [f"vm-{i}" for i in range(6)]


def test_hosts_and_the_fleet_are_as_written(drawn: Scenario) -> None:
    r750, old = drawn.hosts
    assert (r750.count, r750.load) == (40, LoadSpec(0.1, 0.6, DAY))
    assert (old.count, old.load, old.names) == (1, LoadSpec(0.0, 0.05, 12 * HOUR), ("old",))
    assert drawn.fleet == FleetSpec(
        "pack-by-domain", 1.5, 0.99,
        ArrivalsSpec(str(VALID / "day.parquet"), "da" * 32, HOUR, 0.5, 500),
        (IncidentSpec("drain", 6 * HOUR, HOUR, "r750-0007"),
         IncidentSpec("fail", DAY, n_hosts=2),
         IncidentSpec("pressure", 2 * DAY, 30 * MINUTE, bytes=64 * GIB),
         IncidentSpec("migrate", 90 * MINUTE, n_hosts=0, n_guests=10)),
        2_500_000_000)
    assert (drawn.replicates, drawn.warm_up_ns, drawn.horizon_ns) == (20, 6 * HOUR, 3 * DAY)
    assert drawn.precision == PrecisionSpec(0.01, 0.125, 4)


def test_drawn_workloads_are_as_written(drawn: Scenario) -> None:
    assert [workload.draw for workload in drawn.workloads] == [
        DrawSpec(900, lifetime=LifetimeSpec(9 * HOUR, 3 * DAY), memory_bytes=4 * GIB,
                 fill="proportional", domains=tuple(f"tenant-{i}" for i in range(1, 31)),
                 image="debian13"),
        DrawSpec(5, 1800.0, lifetime=LifetimeSpec(12 * MINUTE, 40 * MINUTE),
                 domains=("ci", "runner-01", "runner-02"), huge_share=0.4, is_restored=True),
        DrawSpec(table_share=1.0, fill="none"),
        DrawSpec(1, domains=("solo",)),
    ]
    assert {workload.host for workload in drawn.workloads} == {""}
    # The captured guests that others are drawn like: two workloads may take the same ones.
    assert [len(workload.guests) for workload in drawn.workloads] == [2, 2, 6, 1]
    assert dict(drawn.workloads[0].guests[0].labels)["image"] == "debian13"


def test_strategies_are_as_written(drawn: Scenario) -> None:
    policies = {policy.name: policy for policy in drawn.policies}
    # The file, a key beside it, and the defaults of the script.
    assert policies["ksmtuned"].merge == Ksmtuned(30, 20, 300, -100, 128, 2500, 20, 2048)
    assert policies["ksmtuned-default"].merge == Ksmtuned()
    assert policies["kubevirt"].merge == KubeVirt(
        sleep_ms_baseline=10, free_percent=0.3, interval_ns=180 * SECOND)
    assert policies["reporting"].merge == FreePages("reporting")
    assert policies["balloon"].merge == FreePages("balloon", 300 * SECOND)
    assert policies["by-tenant"].partitions == (
        PartitionRule("databases", ((("role", "postgres"),),), Never()),
        PartitionRule("kernels", ((("content", "guest-ram"), ("role", "nginx")),
                                  (("content", "guest-ram"), ("role", "redis"))), Ksmd(50)),
        PartitionRule("heaps", ((("content", "heap"),),)))
    assert policies["by-tenant"].cooperation == Cooperation(
        "ranges", ((("content", "guest-ram"),), (("content", "heap"),)))
    assert policies["by-tenant"].merge == Sync(
        (Trigger("boot", 60 * SECOND), Trigger("restore"), Trigger("restore", 5 * SECOND),
         Trigger("every", every_ns=30 * MINUTE), Trigger("pressure", share=0.12),
         Trigger("pressure", every_ns=MINUTE, share=0.05), Trigger("idle", share=0.6),
         Trigger("idle", every_ns=HOUR, share=0.9)),
        250_000_000, 10_000_000, SyncAdvisor(MINUTE, 2 * HOUR, GIB, 5))
    told = policies["all-told"]
    assert told.cooperation == Cooperation("full")
    assert isinstance(told.merge, Sync)
    assert told.merge.advisor == SyncAdvisor(30 * SECOND, HOUR, GIB, 3)
    assert policies["heaps-told"].cooperation == Cooperation("full", ((("content", "heap"),),))


def test_prices_and_requirements_are_in_base_units(drawn: Scenario) -> None:
    assert drawn.costs == CostsSpec("CHF", 14500.0, 4 * 365 * DAY, 420.0, 0.24, 0.011, 3.10, 0.05)
    assert drawn.require == (
        RequireSpec("by-tenant", "saved", at_least=0.1, is_share=True),
        RequireSpec("by-tenant", "cross_domain_pages", at_most=0.0, confidence=0.99),
        RequireSpec("by-tenant", "unmerge_headroom", at_least=16.0 * GIB),
        RequireSpec("ksmtuned", "time_to_merge", at_most=90.0 * MINUTE),
        RequireSpec("ksmtuned", "safe_overcommit", at_least=1.25))


def test_every_field_of_a_drawn_workload_can_be_written(drawn: Scenario) -> None:
    """What no scenario file sets would be a promise that nobody can use."""
    for spec, given in ((DrawSpec, [w.draw for w in drawn.workloads]), (FleetSpec, [drawn.fleet]),
                        (PrecisionSpec, [drawn.precision]), (CostsSpec, [drawn.costs])):
        for each in fields(spec):
            assert any(getattr(one, each.name) != each.default for one in given), each.name


def test_the_resolved_form_of_a_replay_is_what_it_was() -> None:
    """Keys that came later stand only where they say something."""
    form = to_json(load_scenario(VALID / "smallest.yaml", facts_of))
    assert list(form) == ["resolved", "planner", "name", "seed", "horizon_ns", "hosts",
                          "workloads", "domains", "policies", "output"]
    assert list(form["hosts"][0]) == ["name", "memory_bytes", "reserved_bytes", "cores", "hz",
                                      "timings", "kernel"]
    assert list(form["workloads"][0]) == ["name", "trace", "trace_digest", "host", "select",
                                          "mergeable", "guests"]
    assert list(form["policies"][0]) == ["name", "partition_by", "exclude", "merge"]


def test_a_resolved_fleet_is_held_against_table_and_fleet(drawn: Scenario) -> None:
    form = to_json(drawn)
    assert from_json(json.loads(json.dumps(form))) == drawn
    form["fleet"]["arrivals"]["digest"] = "00" * 32
    form["fleet"]["incidents"][0]["host"] = "r750-0041"
    form["fleet"]["incidents"][1]["at_ns"] = 9 * DAY
    form["require"][0]["metric"] = "unmerge"
    form["precision"]["n_hosts"] = 42
    text = fault(json.dumps(form, indent=1))
    assert "the table's digest is dadadadadadadada now" in text
    assert "no machine is named 'r750-0041'; did you mean 'r750-0040'?" in text
    assert "is not before the end of the simulation, 3d00h" in text
    assert "'unmerge' is a share of nothing" in text
    assert "42 hosts are more than the 41 there are" in text
    del form["workloads"][2]["draw"]
    assert "workload 'rented' does not say how its guests are drawn" in fault(json.dumps(form))
    del form["fleet"]
    assert "workload 'web' draws its guests, but no fleet" in fault(json.dumps(form))


# ---- replay or draw -------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    "placement: spread", "overcommit: 1.5", "confidence: 90%", "migration_rate: 1GB/s",
    "incidents: [{migrate: {guests: 1, at: 5min}}]",
])
def test_one_setting_of_a_fleet_makes_guests_drawn(line: str) -> None:
    text = SMALL.replace(", count: 2}", "}")
    assert not load(text.replace("1h", "5min").replace("count: 12", "count: 2")).is_fleet
    scenario = load(text + line + "\n")
    assert scenario.is_fleet
    assert scenario.workloads[0].draw == DrawSpec(count=12)


@pytest.mark.parametrize("setting", [
    "arrivals: 50/h", "lifetime: {median: 1h, p95: 2h}", "memory: 1GiB", "fill: none",
    "huge_pages: 0%", "start: boot",
])
def test_one_setting_of_a_drawn_workload_makes_guests_drawn(setting: str) -> None:
    text = SMALL.replace(", count: 2}", "}").replace("count: 12", f"count: 12, {setting}")
    assert load(text).is_fleet


def test_as_recorded_says_replay() -> None:
    text = (VALID / "smallest.yaml").read_text()
    assert load(text + "placement: as-recorded\n") == load(text)
    assert load(text + "precision: exact\n") == load(text)


def test_a_single_workload_takes_the_whole_table() -> None:
    text = SMALL.replace(", count: 12}", "}") + "arrivals: {table: day.parquet, from: 1h}\n"
    assert load(text).workloads[0].draw == DrawSpec(table_share=1.0)


def test_domains_of_a_table_are_known_by_the_table_only() -> None:
    text = (SMALL.replace(", count: 12}", "}") + "arrivals: {table: day.parquet, from: 1h}\n"
            "domains: {sensitive: [table-7]}\n")
    assert load(text).domains.sensitive == ("table-7",)
    assert "no workload has a domain 'table-7'" in fault(
        text.replace("trace: fleet}", 'trace: fleet, domain: "tenant-{1..3}"}'))


def test_a_table_that_cannot_be_read_is_a_data_error_at_its_line() -> None:
    text = SMALL.replace("count: 12", "share: 100%") + "arrivals: {table: night.parquet}\n"
    with pytest.raises(DataError, match=r"^s.yaml:10:19: night.parquet: not an arrival table; "):
        load(text)
    raw = parse_scenario(text.encode(), "s.yaml", Path("/base"))
    with pytest.raises(ScenarioError, match="no arrival table can be read here"):
        resolve(raw, facts_of)


def test_what_a_reader_should_know_is_noted() -> None:
    notes: list[str] = []
    load(SMALL.replace("trace: fleet", "trace: single, domain: a"), notes=notes)
    assert [note.split(":")[0] for note in notes] == [
        "workload 'all' is drawn from one captured guest",
        "workload 'all' is drawn from one snapshot"]
    notes.clear()
    load(SMALL.replace("merge: never", "partition_by: tenant, merge: {ksmd: {}}").replace(
        "policies:", "  - {name: more, trace: copy, count: 2, domain: x}\npolicies:"), notes=notes)
    assert notes == ["policy 'off': 1 of 8 captured guests have no label 'tenant' (more/vm-0); "
                     "each of them gets a partition of its own"]
    notes.clear()
    load(SMALL.replace("count: 12", "share: 100%")
         + "arrivals: {table: day.parquet, from: 1h}\n", notes=notes)
    assert notes == ["/base/day.parquet: rows of more memory than any host has for guests "
                     "(7.36 GiB) are left out; the largest has 64.0 GiB"]


# ---- --set and sweeps -----------------------------------------------------------------------


def test_overrides_reach_hosts_by_name_and_by_position() -> None:
    for path in ("hosts.h.count", "hosts.0.count", "hosts[0].count"):
        assert load(SMALL, f"{path}=7").hosts[0].count == 7
    assert load(SMALL, "workloads[0].domain=[ci, \"t-{1..2}\"]").workloads[0].draw == DrawSpec(
        12, domains=("ci", "t-1", "t-2"))
    assert fault(SMALL, "hosts[3].count=7").startswith(
        "--set:1:7: error: there is no entry 3; the list has 1, counted from 0")
    assert fault(SMALL, "policies[0].merg=7").startswith(
        "--set:1:13: error: unknown setting 'merg'; did you mean 'merge'?")


SWEEP = SMALL + """\
sweep:
  hosts.h.count: [2, 3]
  workloads[0].memory: [1GiB, "2 GiB"]
  policies.off.merge: [never, {ksmd: {pages_to_scan: 7}}]
"""


def test_every_combination_of_a_sweep_is_a_case() -> None:
    found = cases(SWEEP, "seed=5")
    assert [(case.scenario.hosts[0].count,
             case.scenario.workloads[0].draw and case.scenario.workloads[0].draw.memory_bytes,
             case.scenario.policies[0].merge) for case in found] == [
        (count, memory * GIB, merge) for count in (2, 3) for memory in (1, 2)
        for merge in (Never(), Ksmd(7))]
    assert found[1].name == ('hosts.h.count=2, workloads[0].memory=1GiB, '
                             'policies.off.merge={"ksmd": {"pages_to_scan": 7}}')
    assert found[1].overrides[0] == "seed=5"
    # The texts alone make the same scenario: a worker needs the file and them.
    for case in found:
        assert load(SMALL, *case.overrides) == case.scenario


def test_a_scenario_without_a_sweep_is_one_case() -> None:
    assert cases(SMALL) == [Case("", (), load(SMALL))]


def test_a_sweep_looks_at_each_trace_once_and_tells_notes_once(tmp_path: Path) -> None:
    asked: list[Path] = []

    def counting(path: Path) -> TraceFacts:
        asked.append(path)
        return facts_of(path)

    file = tmp_path / "s.yaml"
    file.write_text(SWEEP.replace("trace: fleet", "trace: single, domain: a"))
    notes: list[str] = []
    assert len(load_cases(file, counting, notes=notes)) == 8
    assert (asked, len(notes)) == ([tmp_path / "single"], 2)
    notes.clear()
    load_scenario(file, facts_of, notes=notes)
    assert "the values of sweep are left out here" in notes[0]


def case_fault(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        cases(text)
    return str(caught.value)


@pytest.mark.parametrize(("line", "message"), [
    ("hosts.hh.count: [4]", "s.yaml:11:9: error: no entry is named 'hh'; did you mean 'h'?"),
    ("hosts.h.cuont: [4]", "s.yaml:11:11: error: unknown setting 'cuont'; did you mean 'count'?"),
    ("horizn: [4d]", "s.yaml:11:3: error: unknown setting 'horizn'; did you mean 'horizon'?"),
    ("hosts.h.memory.size: [4GiB]",
     "s.yaml:11:18: error: '8GiB' has no settings of its own"),
    ("hosts.h.memory: [4GiB, 4G]",
     "s.yaml:11:26: error: '4G' is ambiguous; write 4GiB (binary) or 4GB (decimal) "
     "(in case hosts.h.memory=4G)"),
    ("hosts.h.memory: [4GiB, 2GiB, 1GiB, 100MiB]",
     "s.yaml:7:5: error: a guest of 192 MiB fits no host: the largest has 92.0 MiB for guests "
     "(in case hosts.h.memory=100MiB)"),
    ("workloads.all.memory: [1MiB, 2MiB]",
     "s.yaml:11:26: error: 1.00 MiB is less than the 192 MiB of a captured guest; give "
     "more, or leave memory out for as captured (in case workloads.all.memory=1MiB)"),
])
def test_a_fault_of_a_sweep_is_told_at_its_line(line: str, message: str) -> None:
    assert case_fault(SMALL + f"sweep:\n  {line}\n").startswith(message)


def test_a_fault_of_every_case_is_told_once() -> None:
    text = case_fault(SWEEP.replace("name: off", "name: off, partition_by: rack"))
    assert text.count("error:") == 1
    assert "(in case" not in text


def test_a_fault_of_some_cases_names_the_first_of_them() -> None:
    text = case_fault(SWEEP.replace("[2, 3]", "[2, 0]"))
    assert text.count("error:") == 1
    assert ("'count' must be at least 1, got 0 (in case hosts.h.count=0, "
            "workloads[0].memory=1GiB, policies.off.merge=never and 3 more)") in text


def test_too_large_a_sweep_is_refused() -> None:
    text = SMALL + "sweep:\n  seed: [" + ", ".join(map(str, range(1001))) + "]\n"
    assert case_fault(text).startswith("s.yaml:10:1: error: 1001 cases; at most 1000, so sweep "
                                       "fewer values")


# ---- help -----------------------------------------------------------------------------------


def test_help_lists_every_metric_with_what_its_bounds_are_written_in() -> None:
    text = describe("require.metric")
    listed = re.findall(r"^    (\w+) +\S.* \((?:a size|a duration|a count|a number)"
                        r"( or a share)?\)$", text, re.MULTILINE)
    assert [name for name, _ in listed] == list(METRICS)
    assert {name for name, share in listed if share} == {
        name for name, measure in METRICS.items() if measure.whole_column}


def test_help_of_a_partitions_merge_goes_on_as_that_of_the_policy() -> None:
    assert describe("policies.partitions.merge.ksmd.pages_to_scan").splitlines()[1:] == describe(
        "policies.merge.ksmd.pages_to_scan").splitlines()[1:]


# ---- planner check --------------------------------------------------------------------------


@pytest.fixture
def fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small fleet with a sweep over a trace of three guests, in the working directory."""
    build_trace(tmp_path / "trace", [
        GuestPlan(f"g{i}", {"tenant": ("red", "red", "blue")[i]},
                  [MmPlan([pages_of([1, 2, 10 + i])] * 2)]) for i in range(3)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(
        SMALL.replace("trace: fleet, count: 12", "trace: trace, count: 12, arrivals: 30/min")
        + "sweep: {hosts.h.count: [2, 3]}\n")
    return tmp_path / "fleet.yaml"


def test_check_counts_what_is_drawn_and_every_case(
        fleet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", fleet_file.name]) == 0
    captured = capsys.readouterr()
    assert captured.out == ("fleet.yaml: ok. 1 policies, 2 host(s), drawn guests: 12 at the start "
                            "and 1800 an hour, 60.0 min, 5 replicates\n")
    assert "note: a sweep of 2 cases; what follows is the first of them, hosts.h.count=2" \
        in captured.err
    assert main(["check", "--json", fleet_file.name]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == ["hosts.h.count=2", "hosts.h.count=3"]
    assert main(["check", "--resolved", fleet_file.name]) == 0
    resolved = capsys.readouterr().out
    assert from_json(json.loads(resolved)).hosts[0].count == 2


def test_check_tells_the_faults_of_every_case(
        fleet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet_file.write_text(fleet_file.read_text().replace("[2, 3]", "[2, many]"))
    assert main(["check", fleet_file.name]) == 2
    assert "expected a whole number, got 'many' (in case hosts.h.count=many)" \
        in capsys.readouterr().err


def test_a_first_scenario_becomes_a_fleet_by_what_its_comment_says(
        fleet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "trace", "-o", "first.yaml"]) == 0
    assert "# count: 100" in Path("first.yaml").read_text()
    assert main(["check", "first.yaml", "--set", "placement=first-fit", "--set", "horizon=1d",
                 "--set", "workloads[0].count=100", "--set", "hosts[0].count=5"]) == 0
    assert "5 host(s), drawn guests: 100 at the start, 24h00min" in capsys.readouterr().out
