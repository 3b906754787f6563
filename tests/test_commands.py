"""The commands around a result: init, report, sql, completion; hostile names, other versions."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import planner
from planner.cli import app, main
from planner.cli.progress import ProgressLine
from planner.escape import clean, file_name, printable, quoted
from planner.inventory import InventoryRow, write_inventory
from planner.results import load, save
from planner.runner import load_scenario, run
from tests.report_data import make_result
from tests.scenario_builder import SMALL_YAML
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a trace, the scenario small.yaml and its result results/small."""
    build_trace(tmp_path / "trace", [
        GuestPlan("a", {"tenant": "red"}, [MmPlan([pages_of([1, 2, 0]), pages_of([1, 5, 0])])]),
        GuestPlan("b", {"tenant": "red"}, [MmPlan([pages_of([1, 3, 0])] * 2)]),
        GuestPlan("c", {"tenant": "blue"}, [MmPlan([pages_of([1, 2, 4])] * 2)])])
    (tmp_path / "small.yaml").write_text(SMALL_YAML)
    monkeypatch.chdir(tmp_path)
    save(run("small.yaml"), Path("results/small"), texts={"scenario.yaml": SMALL_YAML})
    return tmp_path


# ---- the library ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["planner.runner", "planner.results", "planner.trace.reader"])
def test_the_examples_of_the_library_work(folder: Path, module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module), raise_on_error=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("name", ["run", "load", "load_scenario", "open_trace"])
def test_each_public_function_has_an_example(name: str) -> None:
    assert ">>> import planner" in (getattr(planner, name).__doc__ or "")


# ---- init -----------------------------------------------------------------------------------


def test_init_writes_a_scenario_that_passes_its_check_and_runs(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "trace", "-o", "my.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "my.yaml: written\n"
    assert "next: look at hosts and domain in it, then planner run my.yaml" in captured.err
    text = Path("my.yaml").read_text()
    assert 'domain: {label: "tenant"}' in text
    assert 'such as ["blue"]' in text
    assert main(["check", "my.yaml"]) == 0
    assert main(["run", "my.yaml", "--json"]) == 0
    found = {row["policy"]: row["pages_sharing"] for row in json.loads(
        capsys.readouterr().out.split("\n", 1)[1])["policies"]}
    assert found["ksmd-fast"] > found["domain-at-boot"] > found["never"] == 0
    assert main(["init", "trace", "-o", "my.yaml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", "trace", "-o", "my.yaml", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "my.yaml"


def test_init_takes_hosts_and_labels_from_an_inventory(folder: Path) -> None:
    write_inventory(Path("fleet.parquet"), [
        InventoryRow(True, "pve1", memory_bytes=64 << 30, cpus=8),
        InventoryRow(True, "pve2", memory_bytes=32 << 30, cpus=8),
        *(InventoryRow(False, name, host=f"pve{1 + (name == 'c')}", domain=f"d-{name}")
          for name in "abc")], {})
    assert main(["init", "trace", "fleet.parquet", "-o", "sub.yaml"]) == 0
    scenario = load_scenario("sub.yaml")
    assert [(host.name, host.memory_bytes) for host in scenario.hosts] == [
        ("pve1", 64 << 30), ("pve2", 32 << 30)]
    placed = {guest.name: (workload.host, guest.domain) for workload in scenario.workloads
              for guest in workload.guests}
    assert placed == {"a": ("pve1", "d-a"), "b": ("pve1", "d-b"), "c": ("pve2", "d-c")}


def test_init_serves_unadvised_memory_and_several_traces(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_trace(folder / "plain", [GuestPlan("x", {}, [MmPlan([pages_of([1, 2])] * 2,
                                                             region_flags=0)])])
    Path("deep").mkdir()
    assert main(["init", "plain", "-o", "deep/one.yaml"]) == 0
    text = Path("deep/one.yaml").read_text()
    assert "mergeable: all" in text
    assert "# domain: tenant-{1..3}" in text
    assert '"../plain"' in text
    assert main(["run", "deep/one.yaml"]) == 0
    capsys.readouterr()
    assert main(["init", "trace", "trace", "-o", "two.yaml"]) == 3
    assert "makes no scenario by itself" in capsys.readouterr().err
    assert list(folder.glob("*two*")) == list(folder.glob(".two*")) == []
    build_trace(folder / "single", [GuestPlan("x", {}, [MmPlan([pages_of([1, 2])])])])
    assert main(["init", "single"]) == 3
    assert "capture at least two snapshots" in capsys.readouterr().err
    build_trace(folder / "other", [GuestPlan("y", {"tenant": "red"}, [
        MmPlan([pages_of([1, 2])] * 2)])])
    assert main(["init", "trace", "other", "-o", "three.yaml"]) == 0
    assert len(load_scenario("three.yaml").workloads) == 2


@pytest.mark.parametrize("name", ["qemu-guests", "container-host"])
def test_init_passes_check_on_the_shipped_traces(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    assert main(["init", str(ROOT / "traces" / name), "-o", str(path)]) == 0
    assert main(["check", str(path)]) == 0


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["nowhere"], 3, "there is no such file or folder"),
    (["small.yaml"], 3, "not a Parquet file"),
    (["results"], 3, "a trace is a folder"),
    (["fleet.parquet"], 2, "a scenario needs a trace"),
    (["trace", "fleet.parquet", "fleet2.parquet"], 2, "import all listings into one"),
])
def test_init_says_what_else_it_needs(folder: Path, capsys: pytest.CaptureFixture[str],
                                      arguments: list[str], code: int, message: str) -> None:
    for name in ("fleet.parquet", "fleet2.parquet"):
        write_inventory(Path(name), [InventoryRow(True, "h", memory_bytes=1 << 34)], {})
    if arguments == ["small.yaml"]:
        arguments = ["trace", "small.yaml"]
    assert main(["init", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not Path("trace.yaml").exists()


# ---- report, sql, schema --------------------------------------------------------------------


def test_report_gives_what_run_gave_in_every_form(folder: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml"]) == 0
    first = capsys.readouterr().out
    assert main(["report", "results/small"]) == 0
    assert first.startswith(capsys.readouterr().out)
    assert main(["report", "results/small", "--format", "html", "-o", "r.html"]) == 0
    assert "default-src 'none'" in Path("r.html").read_text()
    capsys.readouterr()
    assert main(["report", "results/small", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# small\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert len({line.count("|") for line in rows}) == 1
    assert main(["report", "results/small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format_version"] == 1
    assert main(["report", "results/small", "--format", "pdf"]) == 2


def test_sql_answers_and_can_neither_read_nor_write_files(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb", reason="the extra sql is not installed")
    ask = "select policy, pages_sharing from summary order by pages_sharing desc"
    assert main(["sql", "results/small", ask]) == 0
    assert capsys.readouterr().out.split() == ["policy", "pages_sharing", "ksmd", "3", "domain",
                                               "2", "off", "0"]
    assert main(["sql", "results/small", ask, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0] == {"policy": "ksmd",
                                                              "pages_sharing": 3}
    for statement in ("select * from 'trace/guests.parquet'", "copy summary to 'x.csv'",
                      "selec", "select * from nothing", "install httpfs", "load httpfs",
                      "attach 'x.db' as x"):
        assert main(["sql", "results/small", statement]) == 2, statement
        assert "describe summary" in capsys.readouterr().err
    assert main(["sql", "results/small", ""]) == 2
    assert "write a select" in capsys.readouterr().err
    assert not Path("x.csv").exists()
    assert main(["sql", "results/small", "select count(*) n from hosts"]) == 0


def test_sql_without_duckdb_says_what_to_install(
        folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert main(["sql", "results/small", "select 1"]) == 3
    assert "pip install 'ksm-planner[sql]'" in capsys.readouterr().err


def test_schema_explains_a_single_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "policies.merge.ksmd.pages_to_scan"]) == 0
    out = capsys.readouterr().out
    assert "kernel file: /sys/kernel/mm/ksm/pages_to_scan" in out
    assert "default: 100" in out
    assert main(["schema", "policies.merge.ksmd.pages_to_scam"]) == 2
    assert "did you mean 'policies.merge.ksmd.pages_to_scan'?" in capsys.readouterr().err


# ---- every command --------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The names of all commands, groups opened."""
    found = []
    for command in app.registered_commands:
        found.append([str(command.name)])
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            callback = command.callback
            found.append([str(group.name), command.name or getattr(callback, "__name__", "")])
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str],
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Example: planner {' '.join(command)}" in out \
        or f"Example: sudo planner {' '.join(command)}" in out


@pytest.mark.parametrize("command", [c for c in commands() if c not in (
    ["schema"],  # prints the JSON Schema itself, or words
    ["trace", "export"],  # has formats of its own
)], ids=" ".join)
def test_every_command_has_a_json_form(command: list[str],
                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_shells_complete_commands_and_options() -> None:
    for words, wanted in (("planner co", "compare"), ("planner export set", "settings"),
                          ("planner explain --pol", "--policy")):
        done = subprocess.run(
            [sys.executable, "-m", "planner"], capture_output=True, text=True, check=False,
            env={**os.environ, "_PLANNER_COMPLETE": "complete_bash", "COMP_WORDS": words,
                 "COMP_CWORD": str(len(words.split()) - 1)})
        assert wanted in done.stdout.split()
    assert main(["--show-completion", "bash"]) == 0


def test_progress_is_silent_off_a_terminal_and_tells_the_time_left_on_one(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("planner.cli.progress.time.monotonic", lambda: float(next(clock)))
    line.update("x", 0.5)
    line.done()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine()
    line.update("policy\x1b[31m", 0.5)
    assert "50%, 5 s left" in capsys.readouterr().err.replace("\r", "")
    line.update("policy\x1b[31m", 0.6)
    assert "\x1b" not in capsys.readouterr().err


# ---- hostile names --------------------------------------------------------------------------

NASTY = {
    "path": "../../../tmp/x", "html": "<script>alert(1)</script>", "control": "a\x1b]0;t\x07\x00b",
    "long": "n" * 10_000, "turn": "\u202eevil\u2028", "shell": "$(id)`id`;'\"\\|&",
}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    text: str = captured.out + captured.err
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
           and c not in "\n\t"]
    assert odd == []
    assert max(map(len, text.splitlines()), default=0) <= 30_000
    return text


@pytest.mark.parametrize("kind", NASTY)
def test_a_trace_with_such_names_sends_nothing_to_the_terminal_or_outside_its_folders(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    nasty = NASTY[kind]
    monkeypatch.chdir(tmp_path)
    # Surrogates and NUL cannot be in a trace's texts at all; the rest can.
    build_trace(tmp_path / "trace", [
        GuestPlan(nasty + str(i), {"tenant": nasty, nasty: nasty, "vmid": nasty}, [
            MmPlan([pages_of([1, 2, 0]), pages_of([1, 2, 7])],
                   region_labels={"content": nasty})]) for i in range(3)])
    Path("s.yaml").write_text(SMALL_YAML)
    codes = {}
    for command in (
            ["trace", "info", "trace"], ["trace", "check", "trace"], ["init", "trace"],
            ["check", "s.yaml"], ["run", "s.yaml", "-o", "results"],
            ["run", "s.yaml", "-o", "results", "--set", f"name={nasty}"],
            ["check", "s.yaml", "--set", f"policies.off.name={nasty}"]):
        codes[" ".join(command[:2])] = main(command)
        said(capsys)
    results = sorted(Path("results").glob("small-*"))
    for result in results:
        page = (result / "report.html").read_text()
        assert "<script>alert" not in page
        assert "\x1b" not in page
        for command in (
                ["explain", str(result), "--policy", "domain"],
                ["explain", str(result), "--policy", nasty],
                ["compare", str(result), str(result)],
                ["compare", str(result), str(result), "--format", "md"],
                ["report", str(result)], ["report", str(result), "--format", "md"],
                ["sql", str(result), "select * from partitions"],
                ["sql", str(result), f"select '{kind}' as x, '{nasty}'"],
                ["export", "metrics", str(result)],
                *(["export", "settings", str(result), "--policy", "domain" if
                   export == "selective-ksm" else "ksmd", "--as", export]
                  for export in ("sysfs", "libvirt", "proxmox", "ansible", "selective-ksm",
                                 "alerts"))):
            codes[" ".join(command[:2])] = main(command)
            assert "<script" not in said(capsys) or "--format" not in command
    assert 1 not in codes.values(), codes  # nothing is a bug of ours
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".yaml") in (
        ["results", "trace"], ["trace"])
    assert not any(path.name.startswith("x") for path in tmp_path.parent.iterdir())


@pytest.mark.parametrize("kind", NASTY)
def test_such_arguments_are_answered_without_control_characters(
        kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = NASTY[kind].replace("\x00", "")
    for command in ([nasty], ["run", nasty], ["check", nasty], ["explain", nasty, "--policy", "x"],
                    ["compare", nasty, nasty], ["report", nasty], ["sql", nasty, "select 1"],
                    ["trace", "info", nasty], ["init", nasty], ["schema", nasty],
                    ["export", "settings", "results/small", "--policy", nasty, "--as", "sysfs"],
                    ["export", "settings", "results/small", "--policy", "ksmd", "--as", nasty],
                    ["export", "settings", "results/small", "--policy", "ksmd", "--as", "ksmtuned",
                     "--host", nasty],
                    ["report", "results/small", "--format", nasty],
                    ["export", "metrics", "results/small", "--start", nasty],
                    ["import", "inventory", nasty, "-o", "f.parquet"]):
        assert main(command) in (2, 3), command
        assert "Traceback" not in said(capsys)


def test_one_place_escapes_for_every_target() -> None:
    for nasty in NASTY.values():
        assert printable(nasty).isprintable()
        assert len(printable(nasty)) <= 2000
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", file_name(nasty))
        assert ".." not in file_name(nasty)[:3]
        assert json.loads(quoted(nasty)).isprintable()
        assert len(clean(nasty)) <= 48
    assert file_name("...") == "unnamed"
    assert quoted("a\nb\tc") == '"a\\nb\\tc"'


# ---- results that are not whole -------------------------------------------------------------


def altered(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return alter


def newer_table(folder: Path) -> None:
    path = folder / "summary.parquet"
    table = pq.read_table(path)
    document = json.loads(table.schema.metadata[b"planner"])
    document["schema_version"] = [9, 0]
    pq.write_table(table.replace_schema_metadata({b"planner": json.dumps(document)}), path)


def without_a_policy(folder: Path) -> None:
    result = load(folder)
    rows = [{**row, "policy": "stranger"} for row in result.summary.to_pylist()]
    table = pa.Table.from_pylist(rows, schema=pq.read_table(folder / "summary.parquet").schema)
    pq.write_table(table, folder / "summary.parquet")


@pytest.mark.parametrize(("damage", "place", "what"), [
    (altered("run.json", lambda d: d.update(format_version=7)), "run.json", "format_version is 7"),
    (altered("run.json", lambda d: d.pop("digest")), "run.json", "digest is missing"),
    (altered("run.json", lambda d: d.update(warnings="x")), "run.json", "warnings is no list"),
    (altered("scenario.resolved.json", lambda d: d.pop("policies")), "scenario.resolved.json",
     "policies is missing"),
    (lambda folder: (folder / "run.json").write_text('{"digest": '), "run.json", "cannot be read"),
    (lambda folder: (folder / "run.json").write_text("[]"), "run.json", "is not a JSON object"),
    (lambda folder: (folder / "summary.parquet").write_bytes(b"PAR1"), "summary.parquet",
     "cannot be read"),
    (lambda folder: (folder / "hosts.parquet").unlink(), "hosts.parquet", "the file is missing"),
    (newer_table, "summary.parquet", "upgrade ksm-planner"),
    (without_a_policy, "summary.parquet", "not those of scenario.resolved.json"),
])
def test_a_damaged_result_is_told_with_file_place_and_next_step(
        folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object],
        place: str, what: str) -> None:
    damage(Path("results/small"))
    for command in (["report", "results/small"], ["compare", "results/small", "results/small"],
                    ["explain", "results/small", "--policy", "domain"],
                    ["export", "metrics", "results/small"],
                    ["export", "settings", "results/small", "--policy", "ksmd", "--as", "sysfs"],
                    ["sql", "results/small", "select 1"]):
        assert main(command) == 3, command
        err = capsys.readouterr().err
        assert place in err
        assert what in err
        assert ";" in err  # what to do


def test_a_resolved_scenario_that_was_altered_is_told(folder: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    altered("scenario.resolved.json", lambda d: d["policies"][1].update(merge="maybe"))(
        Path("results/small"))
    for command in (["explain", "results/small", "--policy", "ksmd"],
                    ["export", "settings", "results/small", "--policy", "ksmd", "--as", "sysfs"]):
        assert main(command) == 3
        err = capsys.readouterr().err
        assert "scenario.resolved.json: cannot be used" in err
        assert "run the scenario again" in err


def test_folders_that_are_no_results_are_told_apart(folder: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    for path, what in (("nowhere", "no such folder"), ("trace", "this is a trace"),
                       ("results", "name one, such as results/small"),
                       ("small.yaml", "no results folder")):
        assert main(["report", path]) == 3
        assert what in capsys.readouterr().err
    assert main(["report", "results/small/summary.parquet"]) == 0


def test_a_partial_result_can_be_read(folder: Path) -> None:
    result = make_result(status="partial")
    path = save(result, folder / "p-partial", texts={})
    assert load(path).run["status"] == "partial"
    assert main(["report", str(path)]) == 0
