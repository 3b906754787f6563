from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from planner.errors import DataError, NotATraceError, ScenarioError, UsageError
from planner.scenario import (
    Ksmd,
    Never,
    Scenario,
    Sync,
    TraceFacts,
    Trigger,
    load_scenario,
    to_json,
)
from planner.scenario.load import did_you_mean, parse_scenario
from planner.scenario.resolve import from_json, resolve
from planner.scenario.schema import describe, json_schema
from tests.scenario_facts import GIB, arrivals_of, facts_of, refuse

CASES = Path(__file__).parent / "cases"
VALID = sorted((CASES / "valid").glob("*.yaml"))
INVALID = sorted((CASES / "invalid").glob("*.yaml"))
SECOND_NS = 10**9
ids = lambda path: path.stem  # noqa: E731


def load_text(text: str | bytes, *overrides: str) -> Scenario:
    data = text.encode() if isinstance(text, str) else text
    return resolve(parse_scenario(data, "s.yaml", Path("/base"), overrides), facts_of,
                   arrivals_of=arrivals_of)


def fault(text: str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load_text(text, *overrides)
    return str(caught.value)


SMALLEST = (CASES / "valid" / "smallest.yaml").read_text()
FULL = (CASES / "valid" / "full.yaml").read_text()
DRAWN = (CASES / "valid" / "drawn.yaml").read_text()


# ---- valid files ----------------------------------------------------------------------------


def test_the_smallest_scenario_gets_every_default() -> None:
    scenario = load_text(SMALLEST)
    (host,), (workload,), (policy,) = scenario.hosts, scenario.workloads, scenario.policies
    assert (scenario.seed, scenario.horizon_ns) == (0, 600 * SECOND_NS)
    assert (host.memory_bytes, host.reserved_bytes) == (8 * GIB, 8 * GIB * 8 // 100)
    assert (host.cores, host.hz, host.timings) == (2, 250, "builtin:unmeasured")
    assert (workload.trace, workload.host, workload.select) == ("/base/fleet", "h", ())
    assert (workload.trace_digest, workload.mergeable) == ("f1" * 32, "captured")
    assert [guest.name for guest in workload.guests] == [f"vm-{i}" for i in range(6)]
    assert [guest.domain for guest in workload.guests] == ["tenant-1", "tenant-2", "tenant-3"] * 2
    assert workload.guests[0].labels == (
        ("domain", "tenant-1"), ("group", "tenant-1"), ("guest", "vm-0"), ("image", "debian12"),
        ("role", "nginx"), ("tenant", "tenant-1"),
    )
    assert (policy.partition_by, policy.exclude, policy.merge) == ((), (), Never())
    assert (scenario.output.folder, scenario.output.sample_every_ns) == ("results", 5 * SECOND_NS)


def test_every_key_of_the_format_reaches_the_resolved_scenario() -> None:
    scenario = load_text(FULL)
    assert scenario.name == "full_scenario-1.0"
    assert (scenario.seed, scenario.horizon_ns) == (42, 570 * SECOND_NS)
    big, small = scenario.hosts
    assert (big.memory_bytes, big.reserved_bytes, big.cores, big.hz) == (
        512 * GIB, 24 * GIB, 64, 1000)
    assert (small.memory_bytes, small.reserved_bytes) == (16 * 10**9, 2 * 10**9)
    web, cache, database, other = scenario.workloads
    assert [(g.name, g.domain, g.group) for g in web.guests] == [
        ("web/vm-0", "tenant-01", "trusted"), ("vm-1", "tenant-02", "rest")]
    assert dict(web.guests[0].labels)["image"] == "debian13"
    assert dict(web.guests[0].labels)["rack"] == "7"
    assert [(g.trace_guest_id, g.domain, g.group) for g in cache.guests] == [
        (2, "shared", "trusted")]
    assert [(g.trace_guest_id, g.domain) for g in database.guests] == [(5, "tenant-3")]
    assert [(g.name, g.domain) for g in other.guests] == [
        ("other/vm-0", "other/vm-0"), ("solo", "blue")]
    assert [w.mergeable for w in scenario.workloads] == ["captured", "all", "none", "captured"]
    assert [w.host for w in scenario.workloads] == ["r750", "r750", "small", "small"]
    assert scenario.domains.groups == (
        ("trusted", ("tenant-01", "shared")), ("rest", ("tenant-02",)))
    assert scenario.domains.sensitive == ("tenant-3", "blue")
    merges = [policy.merge for policy in scenario.policies]
    assert merges == [
        Never(), Ksmd(), Ksmd(5000, 0, 2), Sync((Trigger("boot", 60 * SECOND_NS, 0),)),
        Sync((Trigger("boot", 10 * SECOND_NS, 0), Trigger("boot", 60 * SECOND_NS, 0),
              Trigger("every", 0, 120 * SECOND_NS))),
        Sync((Trigger("every", 0, 3600 * SECOND_NS), Trigger("boot", 60 * SECOND_NS, 0))),
        Ksmd(100, 20, 256, 1000, True, False, "scan-time", 40, 60, 200, 9000),
    ]
    assert [policy.partition_by for policy in scenario.policies] == [
        (), (), (), ("domain",), ("group", "content", "rack"), ("guest",), ()]
    assert scenario.policies[3].exclude == ((("role", "postgres"),),)
    assert scenario.policies[4].exclude == (
        (("content", "heap"), ("tenant", "tenant-1")), (("library", "anything"),),
        (("domain", "shared"),))
    assert scenario.output.sample_every_ns == SECOND_NS // 2


@pytest.mark.parametrize("path", VALID, ids=ids)
def test_resolving_twice_changes_nothing(path: Path, tmp_path: Path) -> None:
    scenario = load_scenario(path, facts_of, arrivals_of=arrivals_of)
    form = to_json(scenario)
    assert form["resolved"] == 1
    for text in (json.dumps(form), json.dumps(form, indent=2), json.dumps(form, indent="\t")):
        stored = tmp_path / "scenario.resolved.json"
        stored.write_text(text)
        again = load_scenario(stored, facts_of, arrivals_of=arrivals_of)
        assert again == scenario
        assert to_json(again) == form
    assert from_json(form) == scenario


def test_the_resolved_form_reads_back_as_yaml_too(tmp_path: Path) -> None:
    scenario = load_text(FULL)
    stored = tmp_path / "resolved.yaml"
    with stored.open("w") as file:
        YAML().dump(to_json(scenario), file)
    assert load_scenario(stored, facts_of) == scenario


def test_a_resolved_form_is_held_against_its_traces() -> None:
    form = to_json(load_text(SMALLEST))
    form["workloads"][0]["trace_digest"] = "00" * 32
    form["workloads"][0]["guests"][1]["trace_guest_id"] = 77
    form["workloads"][0]["guests"][2]["group"] = "elsewhere"
    form["workloads"][0]["guests"][3]["name"] = "vm-4"
    text = fault(json.dumps(form, indent=1))
    assert "the trace's digest is f1f1f1f1f1f1f1f1 now" in text
    assert "the trace has no guest 77" in text
    assert "domain 'tenant-3' belongs to 'tenant-3', not to 'elsewhere'" in text
    assert text.count("more than one guest is named 'vm-4'") == 2


@pytest.mark.parametrize("key", ["seed", "horizon_ns", "hosts", "domains", "output"])
def test_a_resolved_form_leaves_nothing_to_guess(key: str) -> None:
    form = to_json(load_text(SMALLEST))
    del form[key]
    with pytest.raises(ScenarioError, match=f"missing setting '{key}'"):
        from_json(form)


def test_a_stored_form_may_be_larger_than_a_file() -> None:
    form = to_json(load_text(SMALLEST))
    guest = form["workloads"][0]["guests"][0]
    form["workloads"][0]["guests"] = [
        {**guest, "trace_guest_id": i, "name": f"vm-{i}"} for i in range(20_000)]
    assert to_json(from_json(form)) == form


def test_the_human_form_is_not_taken_for_a_resolved_one() -> None:
    with pytest.raises(ScenarioError, match="marked `resolved: 1`"):
        from_json(YAML(typ="safe", pure=True).load(SMALLEST))


def test_yaml_one_point_two_keeps_words_and_times_as_text() -> None:
    scenario = load_text(SMALLEST.replace("{name: off,", "{name: no,"))
    assert scenario.policies[0].name == "no"
    text = SMALLEST.replace("trace: fleet", "trace: fleet, labels: {a: 12:30, b: 2026-01-02}")
    labels = dict(load_text(text).workloads[0].guests[0].labels)
    assert (labels["a"], labels["b"]) == ("12:30", "2026-01-02")


def test_a_number_with_a_leading_zero_is_decimal() -> None:
    assert load_text(SMALLEST + "seed: 010\n").seed == 10


# ---- invalid files --------------------------------------------------------------------------


@pytest.mark.parametrize("path", INVALID, ids=ids)
def test_an_invalid_file_gives_exactly_the_expected_message(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path.name, facts_of, arrivals_of=arrivals_of)
    assert str(caught.value) + "\n" == path.with_suffix(".expected").read_text()
    assert caught.value.exit_code == 2


def test_every_expected_message_belongs_to_a_case() -> None:
    assert {p.stem for p in (CASES / "invalid").glob("*.expected")} == {p.stem for p in INVALID}
    assert len(INVALID) > 200


def test_messages_are_in_file_order_and_name_every_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES / "invalid")
    with pytest.raises(ScenarioError) as caught:
        load_scenario("several-at-once.yaml", facts_of)
    places = [(problem.line, problem.column) for problem in caught.value.problems]
    assert places == sorted(places)
    assert len(places) == 7


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is a folder; name the scenario file in it"):
        load_scenario(tmp_path, facts_of)
    with pytest.raises(ScenarioError, match=r"no-such.yaml: error: no such file"):
        load_scenario(tmp_path / "no-such.yaml", facts_of)
    with pytest.raises(ScenarioError, match="cannot be read: "):
        load_scenario(tmp_path / ("x" * 300), facts_of)
    with pytest.raises(ScenarioError, match="cannot be read: "):
        load_scenario("nul\0byte", facts_of)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ScenarioError, match="larger than 1 MiB"):
        load_scenario(large, facts_of)


def test_many_problems_are_counted_not_listed() -> None:
    text = fault(SMALLEST + "".join(f"k{i}: 1\n" for i in range(500)))
    assert text.count("error:") == 51
    assert "and 450 more problems" in text


def test_a_trace_that_cannot_be_read_is_a_data_error_at_its_line() -> None:
    with pytest.raises(NotATraceError) as caught:
        load_text(SMALLEST.replace("fleet", "nowhere"))
    assert caught.value.exit_code == 3
    assert str(caught.value) == "s.yaml:4:32: nowhere: no trace here; capture one first"
    with pytest.raises(DataError, match=r"^s.yaml:4:32: .*the trace holds no guest"):
        load_text(SMALLEST.replace("fleet", "empty"))


def test_scenario_faults_come_before_data_faults() -> None:
    text = fault(SMALLEST.replace("fleet", "nowhere").replace("seed", "x") + "seed: -1\n")
    assert "'seed' must be at least 0" in text
    assert "nowhere" not in text


def test_a_trace_is_looked_at_once() -> None:
    asked: list[Path] = []

    def counting(path: Path) -> TraceFacts:
        asked.append(path)
        return facts_of(path)

    resolve(parse_scenario(FULL.encode(), "s.yaml", Path("/base")), counting)
    assert asked == [Path("/base/fleet"), Path("/base/copy")]


def test_an_operating_system_error_of_a_trace_is_a_data_error() -> None:
    def denied(path: Path) -> TraceFacts:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(DataError, match=r"s.yaml:4:32: /base/fleet: cannot be read: Permission"):
        resolve(parse_scenario(SMALLEST.encode(), "s.yaml", Path("/base")), denied)


def test_did_you_mean_offers_only_near_words() -> None:
    assert did_you_mean("polices", ["policies", "hosts"]) == "; did you mean 'policies'?"
    assert did_you_mean("zebra", ["policies", "hosts"]) == "; known: hosts, policies"
    assert did_you_mean("zebra", []) == ""


# ---- --set ----------------------------------------------------------------------------------


def test_overrides_reach_entries_by_name_and_by_position() -> None:
    scenario = load_text(
        FULL,
        "policies.ksmd-fast.merge.ksmd.pages_to_scan=200",
        "policies.1.merge.ksmd.sleep_millisecs=5",
        "hosts.r750.memory=1 TiB".replace("1 TiB", "1TiB"),
        "output.folder=elsewhere",
        "policies.per-domain.partition_by=[tenant, role]",
        "policies.off.merge={ksmd: {}}",
    )
    assert scenario.policies[2].merge == Ksmd(200, 0, 2)
    assert scenario.policies[1].merge == Ksmd(100, 5, 256)
    assert scenario.hosts[0].memory_bytes == 1024 * GIB
    assert scenario.output.folder == "elsewhere"
    assert scenario.policies[3].partition_by == ("tenant", "role")
    assert scenario.policies[0].merge == Ksmd()


def test_an_override_of_an_aliased_value_changes_one_place_only() -> None:
    text = (CASES / "valid" / "anchors.yaml").read_text()
    scenario = load_text(text, "policies.slow.merge.ksmd.pages_to_scan=7")
    assert scenario.policies[1].merge == Ksmd(7)
    assert scenario.policies[2].merge == Ksmd(100)


def test_overrides_make_missing_settings_and_find_names_with_dots() -> None:
    scenario = load_text(
        SMALLEST.replace("{name: off,", "{name: v1.0-off,"),
        "domains.groups.both=[tenant-1, tenant-2]",
        "policies.v1.0-off.exclude.role=nginx",
    )
    assert scenario.domains.groups == (("both", ("tenant-1", "tenant-2")),)
    assert scenario.policies[0].exclude == ((("role", "nginx"),),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "policies.off.merge.ksmd.pages_to_scan=lots",
            "--set:1:20: error: 'never' has no settings of its own\n",
        ),
        (
            "policies.of.merge=never",
            "--set:1:10: error: no entry is named 'of'; did you mean 'off'?\n"
            "     1 | policies.of.merge=never\n       |          ^",
        ),
        ("policies.4.merge=never", "--set:1:10: error: there is no entry 4; the list has 1,"),
        ("horizn=5min", "--set:1:1: error: unknown setting 'horizn'; did you mean 'horizon'?\n"),
        (
            "hosts.h.memory=lots",
            "--set:1:16: error: 'lots' is not a size; write 512GiB (or 512GB for decimal, 512Gi "
            "as in Kubernetes)\n     1 | hosts.h.memory=lots\n       |                ^",
        ),
        ("hosts.h.cores", "--set:1:1: error: expected KEY=VALUE, such as policies.NAME"),
        ("=5", "--set:1:1: error: expected KEY=VALUE"),
        ("seed=", "--set:1:6: error: the value is empty"),
        ("seed=[1", "--set:1:6: error: not valid YAML"),
        ("seed=\0", "--set:1:1: error: holds character U+0000"),
        ("workloads.all.host=x", "--set:1:20: error: no host is named 'x'"),
    ],
)
def test_a_wrong_override_is_shown_with_its_place(override: str, message: str) -> None:
    assert fault(SMALLEST, override).startswith(message)


def test_faults_of_file_and_override_are_told_together() -> None:
    text = fault(SMALLEST + "nope: 1\n", "seed=1", "hosts.h.cores=many")
    assert "s.yaml: error: --set hosts.h.cores=many: expected a whole number, got 'many'" in text
    assert "s.yaml:6:1: error: unknown setting 'nope'" in text


# ---- schema and help ------------------------------------------------------------------------


def plain(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


@pytest.mark.parametrize("path", VALID, ids=ids)
def test_the_json_schema_accepts_the_valid_cases(path: Path) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(plain(path))


STRUCTURAL = [
    "unknown-key", "unknown-key-nested", "missing-key", "missing-top-key", "null-value",
    "null-in-list", "format-unknown", "format-not-a-number", "name-not-safe", "name-is-a-number",
    "seed-negative", "seed-is-a-boolean", "horizon-without-unit", "horizon-ambiguous-unit",
    "horizon-words", "size-bad-unit", "size-ambiguous", "size-power", "size-zero",
    "reserved-share-without-percent", "host-count-zero", "hz-unknown", "hosts-empty",
    "hosts-not-a-list", "select-empty", "select-value-not-text", "count-is-text",
    "domain-list-empty", "domain-list-in-list", "mergeable-word", "mergeable-number",
    "group-empty", "sensitive-is-text",
    "partition-empty", "partition-is-a-mapping", "merge-word", "merge-two", "merge-empty",
    "merge-unknown", "merge-missing", "knob-with-unit", "knob-zero", "knob-too-large",
    "knob-sharing-below-two", "trigger-word", "trigger-not-a-list", "trigger-empty-list",
    "trigger-bad-duration", "trigger-two", "trigger-unknown", "no-policy", "too-many-policies",
    "not-supported-yet", "placement-word", "load-without-percent", "arrivals-without-time",
    "lifetime-incomplete", "memory-without-unit", "fill-word", "start-word",
    "overcommit-text", "migration-rate-without-time", "arrivals-table-missing-key",
    "arrivals-speed", "incident-unknown", "incident-without-time", "incident-two",
    "replicates-none", "precision-word", "precision-number", "trigger-share-without-percent",
    "trigger-limit-without-share", "advisor-target", "ksmtuned-unknown-key",
    "ksmtuned-decay-rises", "kubevirt-share", "free-pages-settings", "partition-unnamed",
    "partition-merge-word", "cooperation-word", "cooperation-ranges-empty", "costs-units",
    "costs-unknown-key", "require-unknown-metric", "require-missing-metric", "sweep-not-a-list",
    "sweep-empty-list",
]  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURAL)
def test_the_json_schema_refuses_structural_mistakes(case: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert not validator.is_valid(plain(CASES / "invalid" / f"{case}.yaml"))


def key_paths(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every key of the schema with the path `describe` knows it by."""
    found: dict[str, dict[str, Any]] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item, path)
        elif isinstance(node, dict):
            if "x-as" in node:
                return  # the same keys as elsewhere
            if "$ref" in node:
                walk(schema["$defs"][node["$ref"].rpartition("/")[2]], path)
            for key, value in node.get("properties", {}).items():
                found[f"{path}.{key}".lstrip(".")] = value
                walk(value, f"{path}.{key}")
            for inner in ("anyOf", "oneOf", "items"):
                walk(node.get(inner), path)

    walk(schema, "")
    return found


def test_every_key_is_described_with_title_type_and_text() -> None:
    schema = json_schema()
    paths = key_paths(schema)
    assert {"seed", "hosts.memory", "policies.merge.ksmd.pages_to_scan",
            "policies.merge.sync.at.boot.after", "workloads.domain.label"} <= set(paths)
    for path, node in paths.items():
        assert len(node.get("description", "")) > 10, path
        assert node.get("title"), path
        text = describe(path)
        assert text.startswith(f"{path}\n  {node['description']}\n  type: "), path
        assert "type: value" not in text, path


def test_the_help_text_of_a_kernel_knob_names_its_file() -> None:
    assert describe("policies.merge.ksmd.max_page_sharing") == (
        "policies.merge.ksmd.max_page_sharing\n"
        "  Sites that may share one KSM page; a further site starts a duplicate on the page's "
        "chain.\n"
        "  type: whole number, 2 to 2147483647\n"
        "  default: 256\n"
        "  kernel file: /sys/kernel/mm/ksm/max_page_sharing"
    )
    assert describe("policies[0].merge.ksmd") == describe("policies.merge.ksmd")
    assert "required" in describe("hosts.memory")
    assert "  policies " in describe("")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("policies.merge.kmsd", "policies.merge: unknown setting 'kmsd'; did you mean "
                                "'policies.merge.ksmd'?"),
        ("zebra", "unknown setting 'zebra'; known here: planner, name"),
        ("seed.x", "seed: unknown setting 'x'; 'seed' has no keys of its own"),
    ],
)
def test_an_unknown_help_path_says_what_is_near(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        describe(path)


def test_the_defaults_of_the_schema_are_those_of_the_resolved_form() -> None:
    keys = key_paths(json_schema())
    knobs = {name.rpartition(".")[2]: node["default"] for name, node in keys.items()
             if name.startswith("policies.merge.ksmd.") and "default" in node}
    assert knobs == to_json(load_text(FULL))["policies"][1]["merge"]["ksmd"]


def test_the_resolved_scenario_needs_neither_pydantic_nor_yaml() -> None:
    code = ("import sys, planner.scenario, planner.scenario.spec; "
            "print([m for m in ('pydantic', 'ruamel', 'numpy') if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_a_policy_does_not_say_is_left_to_the_kernel_of_the_host() -> None:
    given = {policy.name: policy.merge.given() for policy in load_text(FULL).policies
             if isinstance(policy.merge, Ksmd)}
    assert given["ksmd-default"] == {
        "pages_to_scan": 100, "sleep_millisecs": 20, "max_page_sharing": 256,
        "stable_node_chains_prune_millisecs": 2000, "use_zero_pages": False}
    assert given["ksmd-advised"] == {
        "pages_to_scan": 100, "sleep_millisecs": 20, "max_page_sharing": 256,
        "stable_node_chains_prune_millisecs": 1000, "use_zero_pages": True, "smart_scan": False,
        "advisor_mode": "scan-time", "advisor_max_cpu": 40, "advisor_target_scan_time": 60,
        "advisor_min_pages_to_scan": 200, "advisor_max_pages_to_scan": 9000}
    assert [host.kernel for host in load_text(FULL).hosts] == ["6.12", "6.18"]


def test_a_knob_that_a_hosts_kernel_lacks_is_refused_with_its_line() -> None:
    with pytest.raises(ScenarioError, match=r"kernel 6.1 of host 'r750' has no smart_scan"):
        load_text(FULL.replace('kernel: "6.12"', 'kernel: "6.1"'))


def test_a_switch_may_be_written_as_the_kernels_file_is() -> None:
    for text, value in ("0", False), ("1", True), ("false", False):
        changed = FULL.replace("smart_scan: false", f"smart_scan: {text}")
        assert load_text(changed).policies[-1].merge.smart_scan is value
    with pytest.raises(ScenarioError, match="expected true or false, or 0 or 1"):
        load_text(FULL.replace("smart_scan: false", "smart_scan: 2"))


def test_a_kernel_without_quotes_says_what_to_write() -> None:
    with pytest.raises(ScenarioError, match="quoted version"):
        load_text(FULL.replace('kernel: "6.12"', "kernel: 6.12"))


# ---- whatever is in the file ----------------------------------------------------------------

FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
WORDS = [*re.findall(r"[\w-]+|[^\w\s]", FULL + DRAWN), "\n", "\n  ", "\n    - ", " ", ": ", "&a",
         "*a", "null", "!!x", "'", '"', "|", ">", "\t", "%", "1e999", "0x10", ".nan", "9" * 40,
         "<<"]


def survives(data: bytes, *overrides: str) -> None:
    try:
        scenario = resolve(parse_scenario(data, "s.yaml", CASES / "valid", overrides), facts_of,
                           arrivals_of=arrivals_of)
    except (ScenarioError, DataError) as error:
        str(error).encode()
    else:
        assert from_json(json.loads(json.dumps(to_json(scenario)))) == scenario


@FUZZ
@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"planner: 1\r\nname: x\r")
@example(b'a: "\\U7fffffff"')
def test_no_bytes_give_anything_but_a_scenario_error(data: bytes) -> None:
    survives(data)


@FUZZ
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_no_yaml_text_gives_anything_but_a_scenario_error(words: list[str]) -> None:
    survives("".join(words).encode())


@FUZZ
@given(st.data())
def test_no_damaged_scenario_gives_anything_but_its_errors(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([FULL, SMALLEST, DRAWN]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(WORDS) | st.text(max_size=3)) + text[end:]
    survives(text.encode("utf-8", "replace"))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["never", "boot", "5min", "8GiB", "fleet", "domain", "tenant-1"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "ksmd", "at", "label", "boot", "x"]), inner,
                      max_size=3),
    max_leaves=5,
)


@functools.cache
def forms() -> list[str]:
    """Both forms of the scenarios that have every key, as JSON."""
    paths = [CASES / "valid" / name for name in ("full.yaml", "drawn.yaml")]
    return [json.dumps(form) for path in paths for form in (
        plain(path), to_json(load_scenario(path, facts_of, arrivals_of=arrivals_of)))]


@FUZZ
@given(st.data())
def test_no_value_in_place_of_another_gives_anything_but_its_errors(data: st.DataObject) -> None:
    form = json.loads(data.draw(st.sampled_from(forms())))
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = form
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and data.draw(st.booleans()):
                node = node[key]
                continue
            node[key] = data.draw(JUNK)
            break
    survives(json.dumps(form).encode())


@FUZZ
@given(st.lists(st.sampled_from([*WORDS, ".", "=", "0", "-1"]), max_size=12))
def test_no_override_gives_anything_but_its_errors(words: list[str]) -> None:
    survives(SMALLEST.encode(), "".join(words), "seed=" + "".join(words))


def test_a_bad_trace_never_hides_a_crash() -> None:
    with pytest.raises(DataError, match="not for this test"):
        resolve(parse_scenario(SMALLEST.encode(), "s.yaml", Path("/base")), refuse)


def test_relative_scenario_paths_resolve_traces_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "s.yaml").write_text(SMALLEST.replace("fleet", "../data/fleet"))
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(os.path.join("deep", "s.yaml"), facts_of)
    assert scenario.workloads[0].trace == str(tmp_path / "data" / "fleet")
