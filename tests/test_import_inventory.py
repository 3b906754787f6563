"""Inventories of cluster tools: what is read, what is refused, and what scenarios make of them."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.cli import main
from planner.errors import DataError, NotATraceError, PlannerError, ScenarioError, UsageError
from planner.importers.inventory import FORMATS, import_inventory
from planner.importers.kubernetes import quantity
from planner.inventory import InventoryRow, read_inventory, write_inventory
from planner.runner import load_scenario
from planner.scenario.resolve import from_json
from planner.scenario.schema import describe, json_schema
from planner.scenario.spec import to_json
from tests.fuzzing import n_examples
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

DATA = Path(__file__).parent / "data" / "inventory"
GIB = 1 << 30


def imported(tmp_path: Path, *names: str, host: str | None = None) -> dict[str, InventoryRow]:
    report = import_inventory([DATA / name for name in names], out=tmp_path / "fleet.parquet",
                              host=host)
    rows = read_inventory(report.path).rows
    assert (report.n_hosts, report.n_guests) == (
        sum(row.is_host for row in rows), sum(not row.is_host for row in rows))
    return {row.name: row for row in rows}


def refused(tmp_path: Path, text: str | bytes, name: str = "input", **options: str) -> str:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises((DataError, UsageError)) as caught:
        import_inventory([path], out=tmp_path / "fleet.parquet",
                         format_name=options.get("format_name", "auto"))
    assert not (tmp_path / "fleet.parquet").exists()
    return str(caught.value)


# ---- formats --------------------------------------------------------------------------------


def test_proxmox_gives_hosts_and_running_guests_with_their_configuration(tmp_path: Path) -> None:
    rows = imported(tmp_path, "proxmox-resources.json", "101.conf")
    assert set(rows) == {"pve03", "web-1", "db-1", "proxy"}
    assert (rows["pve03"].memory_bytes, rows["pve03"].cpus) == (67430232064, 16)
    web = rows["web-1"]
    assert (web.host, web.memory_bytes, web.cpus, web.domain) == ("pve03", 4 * GIB, 2, "acme")
    assert web.mergeable is False
    assert dict(web.labels)["ostype"] == "l26"
    assert rows["db-1"].domain == "cobalt"
    assert rows["db-1"].mergeable is None


def test_libvirt_joins_statistics_xml_and_the_node(tmp_path: Path) -> None:
    rows = imported(tmp_path, "domstats.txt", "web-1.xml", "nodeinfo.txt", host="h1")
    assert set(rows) == {"h1", "web-1", "db-1"}
    assert (rows["h1"].memory_bytes, rows["h1"].cpus) == (65849836 << 10, 16)
    web = rows["web-1"]
    assert (web.memory_bytes, web.cpus, web.host, web.mergeable) == (4 * GIB, 2, "h1", False)
    assert web.image == "/var/lib/libvirt/images/debian12-base.qcow2"
    assert rows["db-1"].mergeable is None


def test_kubernetes_gives_nodes_machines_and_pods_without_launchers(tmp_path: Path) -> None:
    rows = imported(tmp_path, "kubectl.json")
    assert set(rows) == {"worker-1", "shop/web-7d4b9c", "shop_vm1", "bank_vm2"}
    assert rows["worker-1"].labels["kubevirt.io/ksm-enabled"] == "true"
    assert rows["shop/web-7d4b9c"].memory_bytes == 192 << 20
    vm = rows["shop_vm1"]
    assert (vm.domain, vm.memory_bytes, vm.cpus, vm.mergeable) == ("shop", 4 * GIB, 2, True)
    assert vm.image == "quay.io/containerdisks/debian:12"
    assert rows["bank_vm2"].mergeable is False


def test_openstack_takes_sizes_from_flavors_and_domains_from_projects(tmp_path: Path) -> None:
    rows = imported(tmp_path, "servers.json", "flavors.json", "hypervisors.json")
    assert set(rows) == {"compute-1", "web-1", "db-1"}
    assert rows["compute-1"].memory_bytes == 128512 << 20
    web = rows["web-1"]
    assert (web.memory_bytes, web.cpus, web.domain, web.host) == (
        2 * GIB, 1, "acme0001", "compute-1")
    assert web.labels["role"] == "web"
    assert rows["db-1"].image is None


def test_csv_keeps_columns_that_it_does_not_know_as_labels(tmp_path: Path) -> None:
    rows = imported(tmp_path, "fleet.csv")
    assert rows["h1"] == InventoryRow(True, "h1", None, 512 * GIB, 64, labels={"rack": "r7"})
    assert rows["web-1"].all_labels() == {
        "domain": "acme", "image": "debian12", "host": "h1", "mergeable": "true"}
    assert rows["db-1"].mergeable is False


@pytest.mark.parametrize(("text", "value"), [
    ("32827812Ki", 32827812 << 10), ("1500m", 2), ("1e9", 10**9), ("2G", 2 * 10**9), ("0.5", 1),
    ("4Gi", 4 * GIB), ("x", None), ("-1", None), (True, None), ("9" * 19 + "Ei", None)])
def test_kubernetes_quantities_are_read_exactly(text: object, value: int | None) -> None:
    assert quantity(text) == value


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    report = import_inventory([DATA / "proxmox-resources.json"], out=tmp_path / "f.parquet")
    assert report.skipped == {"guest that does not run": 1, "template": 1,
                              "resource that is neither node nor guest": 1}
    assert read_inventory(report.path).provenance["files"] == [
        {"name": "proxmox-resources.json", "format": "proxmox"}]
    assert report.path.stat().st_mode & 0o777 == 0o600


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "said"), [
    ("", "not recognised"),
    ("\x00\x01", ":1: holds a NUL byte"),
    (b"name,memory\n\xff\xfe\n", ":2: byte 0xff is not UTF-8"),
    ('{"apiVersion": "v1", "apiVersion": "v1"}', "'apiVersion' is given twice"),
    ('[{"type": "node", "node": "a", "maxmem": NaN}]', "NaN is not a JSON number"),
    ('[{"type": "node", "node": "a", "maxmem": 1e400}]', "entry 0: maxmem is 'inf'"),
    ('[{"type": "node", "node": "a", "maxmem": ' + "9" * 5000 + "}]", "limit"),
    ('[{"type": "node", "node": "a", "maxmem": "many"}]', "entry 0: maxmem is 'many'"),
    ('[{"type": "node", "node": "a",\n"maxmem": }]', ":2: not JSON"),
    ("[" * 100_000, "nested too deep"),
    ("name,memory\nweb,4 Gigs\n", ":2: '4 Gigs' is not a size"),
    ("name,memory\nweb\n", ":2: 1 cells, but 2 columns"),
    ("name,name\nweb,web\n", ":1: column 2 has no name of its own"),
    ("name,mergeable\nweb,perhaps\n", ":2: mergeable is 'perhaps'"),
    ('name\n"web\n', "not CSV"),
    ("Domain: 'a'\n  state.state=1\nnonsense\n", ":3: expected Domain"),
    ("Domain: 'a'\nDomain: 'a'\n", ":2: domain 'a' is listed twice"),
    ("Domain: 'a'\n  balloon.maximum=" + "9" * 25, ":2: balloon.maximum is"),
    ("memory: 1\nmemory: 2\n", ":2: memory is given twice"),
    ("<domain>\n<name>a</nam>\n</domain>", ":2: not XML: mismatched tag"),
    ("<domain/>", ":1: the domain has no <name>"),
    ("<domain><name>a</name>\n<memory unit='parsec'>1</memory></domain>", ":2: memory unit"),
    ("<a>" * 100 + "</a>" * 100, "nested too deep"),
    ("<!DOCTYPE d [<!ENTITY a 'aaaa'>]>\n<domain><name>&a;</name></domain>",
     ":1: a document type declaration"),
    ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>", "a document type declaration"),
])
def test_bad_input_is_refused_with_file_and_line(tmp_path: Path, text: str | bytes,
                                                 said: str) -> None:
    message = refused(tmp_path, text)
    assert str(tmp_path / "input") in message
    assert said in message


def test_pipes_folders_devices_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/zero")
    for name in ("pipe", "null", "."):
        with pytest.raises(DataError, match="not a regular file"):
            import_inventory([tmp_path / name], out=tmp_path / "f.parquet")
    with pytest.raises(DataError, match="no such file"):
        import_inventory([tmp_path / "none"], out=tmp_path / "f.parquet")


def test_an_inventory_without_end_is_refused(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.importers.inventory.MAX_ROWS", 3)
    assert ":5: more than 3 hosts and guests" in refused(tmp_path, "name\na\nb\nc\nd\n")
    monkeypatch.setattr("planner.importers.textfile.MAX_TEXT_BYTES", 10)
    assert "larger than" in refused(tmp_path, "name\n" + "a\n" * 10)


def test_an_inventory_is_replaced_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        import_inventory([DATA / "fleet.csv"], out=out)
    assert out.read_text() == "mine"
    import_inventory([DATA / "fleet.csv"], out=out, force=True)
    assert len(read_inventory(out).rows) == 3


def test_an_inventory_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_text("no")
    with pytest.raises(NotATraceError):
        read_inventory(path)
    with pytest.raises(DataError, match="cannot be printed"):
        write_inventory(tmp_path / "g.parquet", [InventoryRow(True, "a\x1b[2J")], {})
    write_inventory(tmp_path / "h.parquet", [InventoryRow(True, "a"), InventoryRow(True, "a")], {})
    with pytest.raises(DataError, match="listed twice"):
        read_inventory(tmp_path / "h.parquet")


_SAMPLES = sorted(path for path in DATA.iterdir() if path.suffix in (
    ".json", ".conf", ".txt", ".xml", ".csv"))


_LEAVES: tuple[object, ...] = (
    None, True, False, 0, -1, 2**70, 1.5, 1e400, float("nan"), "", "x", "4Gi", "9" * 400,
    "\x1b[2J", "\ud83d\ude00" * 200, [], {}, [[]], {"a": {"b": []}}, [None], "nan", "1e999")


def mutated(document: Any, at: int, leaf: object) -> Any:
    """`document` with its value number `at`, counted from the root, replaced by `leaf`."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        for key in (node if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    owner, key = places[at % len(places)]
    owner[key] = leaf
    return document


@settings(max_examples=n_examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=st.sampled_from([path for path in _SAMPLES if path.suffix == ".json"]),
       at=st.lists(st.integers(0, 999), min_size=1, max_size=3), leaf=st.sampled_from(_LEAVES),
       format_name=st.sampled_from(["auto", "proxmox", "kubernetes", "openstack"]))
def test_no_odd_value_makes_an_importer_stumble(tmp_path: Path, sample: Path, at: list[int],
                                                leaf: object, format_name: str) -> None:
    document = json.loads(sample.read_text())
    for position in at:
        document = mutated(document, position, copy.deepcopy(leaf))
    path = tmp_path / "input"
    path.write_text(json.dumps(document))
    said = str(path)
    try:
        import_inventory([path, DATA / "fleet.csv"] if format_name == "auto" else [path],
                         out=tmp_path / "f.parquet", format_name=format_name, force=True)
    except PlannerError as error:
        said = str(error)
    assert str(tmp_path) in said


@settings(max_examples=n_examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=st.sampled_from(_SAMPLES), start=st.integers(0, 4000), length=st.integers(0, 60),
       noise=st.binary(max_size=8), format_name=st.sampled_from(["auto", *FORMATS]))
def test_no_damaged_sample_makes_an_importer_stumble(
        tmp_path: Path, sample: Path, start: int, length: int, noise: bytes,
        format_name: str) -> None:
    data = sample.read_bytes()
    path = tmp_path / "101.conf"
    path.write_bytes(data[:start] + noise + data[start + length:])
    said = str(tmp_path)
    try:
        import_inventory([path], out=tmp_path / "f.parquet", format_name=format_name, host="h",
                         force=True)
    except PlannerError as error:
        said = str(error)
    assert str(tmp_path) in said


# ---- scenarios ------------------------------------------------------------------------------

SCENARIO = """\
planner: 1
name: small
hosts: {from: fleet.parquet}
workloads:
  - {name: all, trace: trace, host: h1}
policies:
  - {name: off, merge: never}
  - {name: domain, partition_by: [domain, image], merge: {sync: {at: [{boot: {after: 1s}}]}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_trace(tmp_path / "trace", [
        GuestPlan("web-1", {"tenant": "red"}, [MmPlan([pages_of([1, 2, 0])] * 2)]),
        GuestPlan("db-1", {"tenant": "red"}, [MmPlan([pages_of([1, 3, 0])] * 2)]),
        GuestPlan("solo", {"image": "own"}, [MmPlan([pages_of([1, 2, 4])] * 2)])])
    (tmp_path / "fleet.csv").write_text(
        (DATA / "fleet.csv").read_text() + "guest,elsewhere,h1,,,,,,\nguest,twin,h1,1GiB,,,,,\n"
        "guest,twin,h2,2GiB,,,,,\n")
    (tmp_path / "small.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    assert main(["import", "inventory", "fleet.csv", "-o", "fleet.parquet"]) == 0
    return tmp_path


def test_a_scenario_takes_hosts_and_labels_from_an_inventory(folder: Path) -> None:
    notes: list[str] = []
    scenario = load_scenario("small.yaml", notes=notes)
    (host,) = scenario.hosts
    assert (host.name, host.memory_bytes, host.cores, host.hz) == ("h1", 512 * GIB, 64, 250)
    assert host.reserved_bytes == int(512 * GIB * 0.08)
    guests = {guest.name: guest for guest in scenario.workloads[0].guests}
    assert guests["web-1"].domain == "acme"
    assert dict(guests["web-1"].labels)["image"] == "debian12"
    assert dict(guests["db-1"].labels)["mergeable"] == "false"
    assert guests["solo"].domain == "solo"
    assert notes[0].endswith("1 host(s); 2 captured guest(s) take labels from it")
    assert any("1 listed guest(s) were not captured" in note for note in notes)
    assert any("2 listed guest(s) share a name" in note for note in notes)
    assert from_json(to_json(scenario)) == scenario


def test_the_resolved_form_stands_without_the_inventory(folder: Path) -> None:
    scenario = load_scenario("small.yaml")
    (folder / "resolved.json").write_text(json.dumps(to_json(scenario)))
    (folder / "fleet.parquet").unlink()
    assert load_scenario("resolved.json") == scenario


def test_a_run_with_an_inventory_ends_in_a_report(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml"]) == 0
    captured = capsys.readouterr()
    assert "note: 1 listed guest(s) were not captured" in captured.err
    assert "Report:" in captured.out


def test_editors_and_terminals_know_the_reference() -> None:
    schema = json_schema()["properties"]["hosts"]
    validator = jsonschema.Draft202012Validator({**schema, "$defs": json_schema()["$defs"]})
    assert validator.is_valid({"from": "fleet.parquet"})
    assert validator.is_valid([{"name": "h", "memory": "8GiB"}])
    for wrong in ({"form": "fleet.parquet"}, {}, [], {"from": 7}, {"from": "a", "hz": 250}):
        assert not validator.is_valid(wrong)
    assert "planner import inventory" in describe("hosts.from")
    assert "Installed memory" in describe("hosts.memory")


@pytest.mark.parametrize(("before", "after", "said"), [
    ("{from: fleet.parquet}", "{form: fleet.parquet}",
     "small.yaml:3:9: error: unknown setting 'form'; did you mean 'from'?"),
    ("{from: fleet.parquet}", "{}", "small.yaml:3:8: error: missing setting 'from'"),
    ("{from: fleet.parquet}", "{from: 7}", "small.yaml:3:15: error: expected text"),
    ("{from: fleet.parquet}", "{from: none.parquet}", "small.yaml:3:15: "),
    ("{from: fleet.parquet}", "{from: fleet.csv}", "not a Parquet file"),
    ("{from: fleet.parquet}", "{name: h, memory: 8GiB}", "small.yaml:3:8: error: expected a list"),
    ("{from: fleet.parquet}", "[{name: h1, memroy: 8GiB}]", "did you mean 'memory'?"),
    ("host: h1", "host: h7", "no host is named 'h7'; known: h1"),
])
def test_a_fault_around_an_inventory_is_told_with_its_place(
        folder: Path, before: str, after: str, said: str) -> None:
    (folder / "small.yaml").write_text(SCENARIO.replace(before, after))
    with pytest.raises((ScenarioError, DataError)) as caught:
        load_scenario("small.yaml")
    assert said in str(caught.value)


def test_hosts_without_memory_or_with_unusable_names_are_faults(folder: Path) -> None:
    write_inventory(folder / "fleet.parquet",
                    [InventoryRow(True, "h1"), InventoryRow(True, "a b", None, GIB)], {},
                    force=True)
    with pytest.raises(ScenarioError) as caught:
        load_scenario("small.yaml")
    assert "small.yaml:3:15: error: the memory of host 'h1' is not in" in str(caught.value)
    assert "host 'a b' of the inventory is not a name" in str(caught.value)
    write_inventory(folder / "fleet.parquet", [InventoryRow(False, "g")], {}, force=True)
    with pytest.raises(ScenarioError, match="lists no host"):
        load_scenario("small.yaml")


# ---- documentation --------------------------------------------------------------------------


def test_every_command_of_the_documentation_works(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "importing.md").read_text()
    sections = [section for section in text.split("\n## ")
                if section.startswith(("Inventories", "Counters"))]
    assert len(sections) == 2
    commands = [line.split() for section in sections for block in section.split("```sh\n")[1:]
                for line in block.partition("```")[0].splitlines() if line.startswith("planner ")]
    if not os.path.isdir("/sys/kernel/mm/ksm"):
        commands = [words for words in commands if words[1] != "capture"]
    shutil.copytree(DATA, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for words in commands:
        assert main(words[1:]) == 0, " ".join(words)
        assert Path(words[words.index("-o") + 1]).is_file()
    assert len(commands) >= 9


def test_a_listing_is_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                               ) -> None:
    text = b"name,memory,domain\nweb1,4GiB,acme\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    out = tmp_path / "fleet.parquet"
    assert main(["import", "inventory", "-", "-o", str(out)]) == 0
    (row,) = read_inventory(out).rows
    assert (row.name, row.memory_bytes, row.domain) == ("web1", 4 * GIB, "acme")


def test_faults_of_standard_input_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    out = tmp_path / "fleet.parquet"
    assert main(["import", "inventory", "-", "-o", str(out)]) == 3
    assert "standard input:1" in capsys.readouterr().err
    assert not out.exists()


def test_what_virsh_wrote_itself_is_read(tmp_path: Path) -> None:
    rows = imported(tmp_path, "real/domstats.txt", "real/test.xml", "real/nodeinfo.txt",
                    host="pve03")
    assert (rows["pve03"].is_host, rows["pve03"].memory_bytes, rows["pve03"].cpus) == (
        True, 3 * GIB, 16)
    assert (rows["test"].host, rows["test"].memory_bytes, rows["test"].cpus) == (
        "pve03", 8 * GIB, 2)
