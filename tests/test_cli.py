"""The command line: what people type, what they see, which code it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.csv as pa_csv
import pytest

import planner
from planner.cli import main, printable
from planner.ksm.cost import BUILTIN_UNMEASURED
from planner.ksm.timings import FORMAT_VERSION, KIND
from planner.results import load, save
from planner.runner import run_digest
from tests.scenario_builder import SMALL_YAML
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a trace of two tenants and a scenario; it is the current one."""
    build_trace(tmp_path / "trace", [
        GuestPlan("a", {"tenant": "red"}, [MmPlan([pages_of([1, 2, 0]), pages_of([1, 5, 0])])]),
        GuestPlan("b", {"tenant": "red"}, [MmPlan([pages_of([1, 3, 0])] * 2)]),
        GuestPlan("c", {"tenant": "blue"}, [MmPlan([pages_of([1, 2, 4])] * 2)])])
    (tmp_path / "small.yaml").write_text(SMALL_YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_prints_a_table_and_writes_a_report(folder: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("off", "ksmd", "domain", "SAVED"))
    path = Path(out.rsplit("Report: ", 1)[1].strip())
    assert path.parent.parent == Path("results")
    assert path.parent.name.startswith("small-")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "details.json", "events.parquet", "hosts.parquet", "partitions.parquet", "plan.json",
        "replicates.parquet", "report.html", "run.json", "scenario.resolved.json",
        "scenario.yaml", "series.parquet", "summary.parquet"]
    assert (path.parent / "scenario.yaml").read_text() == SMALL_YAML
    result = planner.load(path.parent)
    assert result.summary.column("policy").to_pylist() == ["off", "ksmd", "domain"]
    assert result.run["traces"][0]["digest"] == planner.open_trace("trace").digest


def test_run_json_is_one_document_and_nothing_else(folder: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml", "--json", "-o", "elsewhere"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format_version"] == 1
    assert [Path(p).parent.name for p in map(str, Path("elsewhere").iterdir())] == ["elsewhere"]


def test_the_same_scenario_is_not_simulated_twice(folder: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml"]) == 0
    first = capsys.readouterr()
    created = next(Path("results").iterdir()) / "run.json"
    before = created.read_text()
    assert main(["run", "small.yaml"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "was run before" in second.err
    assert created.read_text() == before
    assert main(["run", "small.yaml", "--again"]) == 0
    assert main(["run", "small.yaml", "--set", "seed=7"]) == 0
    assert len(list(Path("results").iterdir())) == 2


def test_an_earlier_result_counts_only_if_it_is_whole_and_of_this_scenario(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "small.yaml"]) == 0
    capsys.readouterr()
    path = next(Path("results").iterdir())
    for damage in ("report.html", "summary.parquet", "run.json"):
        (path / damage).unlink()
        assert main(["run", "small.yaml"]) == 0
        assert "simulating again" in capsys.readouterr().err
        assert (path / damage).is_file()
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**record, "digest": record["digest"][:6] + "00"}))
    assert main(["run", "small.yaml"]) == 0
    assert "simulating again" in capsys.readouterr().err
    assert [file.name for file in Path("results").iterdir()] == [path.name]


def test_a_calibration_prices_the_run_and_is_part_of_its_digest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = BUILTIN_UNMEASURED.costs_ns()

    def run_with(first_sight_ns: int) -> tuple[Path, int]:
        (folder / "host.json").write_text(json.dumps({
            "kind": KIND, "format_version": FORMAT_VERSION,
            "costs_ns": {**costs, "first_sight_ns": first_sight_ns}}))
        assert main(["run", "small.yaml", "--set", "hosts.host.timings=host.json"]) == 0
        path = Path(capsys.readouterr().out.rsplit("Report: ", 1)[1].strip()).parent
        result = planner.load(path)
        assert result.run["timings"] == [str(folder / "host.json")]
        return path, result.summary.to_pylist()[1]["merge_cpu_ns"]

    cheap, cheap_ns = run_with(1_000)
    dear, dear_ns = run_with(1_000_000)
    assert cheap != dear
    # Nine pages are seen for the first time.
    assert dear_ns - cheap_ns == pytest.approx(9 * 999_000, rel=0.5)
    assert main(["compare", str(cheap), str(dear)]) == 0
    out = capsys.readouterr().out
    assert "host.json.first_sight_ns" in out
    assert "1.00 us -> 1.00 ms" in out
    # The same costs from another file are the same scenario.
    (folder / "moved").mkdir()
    (folder / "host.json").rename(folder / "moved" / "lab.json")
    assert main(["run", "small.yaml", "--set", "hosts.host.timings=moved/lab.json"]) == 0
    assert "was run before" in capsys.readouterr().err
    # What the file says now, or that it is gone, changes no explanation.
    assert main(["explain", str(cheap), "--policy", "ksmd"]) == 0
    capsys.readouterr()
    record = json.loads((cheap / "run.json").read_text())
    assert record["costs_ns"] == {str(folder / "host.json"): {**costs, "first_sight_ns": 1_000}}
    (folder / "host.json").write_text("{}")
    assert main(["run", "small.yaml", "--set", "hosts.host.timings=host.json"]) == 3
    assert "is no calibration" in capsys.readouterr().err


def test_labels_named_like_settings_still_make_another_scenario(folder: Path) -> None:
    build_trace(folder / "labelled", [
        GuestPlan(name, {"output": name, "trace": name}, [MmPlan([pages_of([1, 2])] * 2)])
        for name in "ab"])
    digests = set()
    for key, value in (("output", "a"), ("output", "b"), ("trace", "a"), ("trace", "b")):
        Path("x.yaml").write_text(SMALL_YAML.replace("trace: trace", "trace: labelled").replace(
            "partition_by: domain", f"partition_by: domain, exclude: {{{key}: {value}}}"))
        digests.add(run_digest(planner.load_scenario("x.yaml")))
    assert len(digests) == 4


def test_check_refuses_what_run_refuses(folder: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    build_trace(folder / "unadvised", [GuestPlan("a", {}, [
        MmPlan([pages_of([1])] * 2, region_flags=0)])])
    Path("u.yaml").write_text(SMALL_YAML.replace("trace: trace", "trace: unadvised"))
    assert main(["check", "u.yaml"]) == main(["run", "u.yaml"]) == 3
    assert capsys.readouterr().err.count("is eligible for merging") == 2


def test_runs_of_one_scenario_at_the_same_time_do_not_disturb_each_other(folder: Path) -> None:
    result = planner.run(planner.load_scenario("small.yaml"))
    path = folder / "results" / "small"
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(save, result, path, texts={"report.html": str(i)})
                     for i in range(24)]:
            done.result()
    assert load(path).summary.equals(result.summary)
    assert [file.name for file in path.parent.iterdir()] == ["small"]


def test_a_resolved_scenario_gives_the_same_result(folder: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--resolved", "small.yaml"]) == 0
    resolved = capsys.readouterr().out
    Path("again.yaml").write_text(resolved)
    assert main(["check", "--resolved", "again.yaml"]) == 0
    assert capsys.readouterr().out == resolved
    assert main(["run", "small.yaml"]) == 0
    assert main(["run", "again.yaml"]) == 0
    assert "was run before" in capsys.readouterr().err


def test_scenario_faults_are_all_shown_and_end_with_2(folder: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(SMALL_YAML.replace("1GiB", "1 Gigs").replace(
        "pages_to_scan", "pages_to_scann"))
    assert main(["run", "bad.yaml"]) == 2
    err = capsys.readouterr().err
    assert "bad.yaml:4:26: error: '1 Gigs' is not a size" in err
    assert "did you mean 'pages_to_scan'?" in err
    assert not Path("results").exists()


def test_more_guests_than_captured_is_a_scenario_error(folder: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.yaml").write_text(SMALL_YAML.replace("trace: trace", "trace: trace, count: 30"))
    assert main(["run", "many.yaml"]) == 2
    assert "duplicates" in capsys.readouterr().err


@pytest.mark.parametrize(("damage", "message"), [
    (lambda trace: (trace / "pages-0001.parquet").unlink(), "the file is missing"),
    (lambda trace: (trace / "mms.parquet").write_bytes(b"PAR1"), "of"),
])
def test_a_damaged_trace_ends_with_3(folder: Path, capsys: pytest.CaptureFixture[str],
                                     damage: object, message: str) -> None:
    damage(folder / "trace")
    for command in (["run", "small.yaml"], ["trace", "check", "trace"],
                    ["trace", "info", "trace"]):
        assert main(command) == 3
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err


def test_guests_without_an_eligible_page_end_with_3(folder: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    build_trace(folder / "unadvised", [GuestPlan("a", {}, [
        MmPlan([pages_of([1])] * 2, region_flags=0)])])
    Path("u.yaml").write_text(SMALL_YAML.replace("trace: trace", "trace: unadvised"))
    assert main(["run", "u.yaml"]) == 3
    assert "mergeable: all" in capsys.readouterr().err
    assert list(folder.glob("results*")) == []


def test_an_empty_trace_ends_with_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_trace(folder / "empty", [GuestPlan("a", {}, [MmPlan([pages_of([])] * 2)])])
    Path("e.yaml").write_text(SMALL_YAML.replace("trace: trace", "trace: empty"))
    assert main(["run", "e.yaml"]) == 3
    assert "no captured page" in capsys.readouterr().err
    assert main(["trace", "info", "empty"]) == 0


def test_trace_check_reads_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "check", "trace"]) == 0
    assert "3 guests, 2 snapshots" in capsys.readouterr().out


def test_trace_export_writes_every_page(folder: Path, capsysbinary: object) -> None:
    assert main(["trace", "export", "trace", "-o", "pages.csv", "--snapshot", "1"]) == 0
    table = pa_csv.read_csv("pages.csv")
    assert table.num_rows == 9
    assert table.column("guest").to_pylist()[:3] == ["a"] * 3
    assert table.column("hash").to_pylist()[1] == 5
    assert main(["trace", "export", "trace", "-o", "pages.arrow", "--format", "arrow"]) == 0
    assert Path("pages.arrow").stat().st_size > 0
    assert list(folder.glob("*.partial")) == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["trace", "export", "trace", "--format", "xml"], "choose csv or arrow"),
    (["trace", "export", "trace", "--snapshot", "9"], "choose 0 to 1"),
    (["trace", "info", "trace", "--snapshot", "9"], "choose 0 to 1"),
    (["trace", "info", "trace", "--memory", "lots"], "is not a size"),
    (["capture"], "give --pid, --cgroup or --qemu"),
    (["capture", "--qemu", "--every", "soon"], "is not a duration"),
    (["capture", "--qemu", "--cpu-limit", "half"], "is not a share"),
    (["run"], "Missing argument"),
    (["fly"], "No such command"),
])
def test_usage_faults_end_with_2_and_say_what_instead(
        folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
        message: str) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_bug_of_ours_ends_with_1_and_no_traceback(
        folder: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("planner.runner.load_cases", broken)
    assert main(["run", "small.yaml"]) == 1
    err = capsys.readouterr().err
    assert "internal error: RuntimeError: boom" in err
    assert "--debug" in err
    with pytest.raises(RuntimeError):
        main(["--debug", "run", "small.yaml"])


def test_an_unwritable_output_folder_is_said(folder: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(["run", "small.yaml", "-o", "file"]) == 3
    assert "choose another folder" in capsys.readouterr().err


def test_ctrl_c_keeps_the_policies_that_are_finished(folder: Path) -> None:
    code = ("import os, signal, sys, planner.cli, planner.runner as runner\n"
            "inner, seen = runner._run_policy, []\n"
            "def counted(scenario, policy, *rest):\n"
            "    if len(seen) == int(sys.argv[1]):\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "    seen.append(policy)\n"
            "    return inner(scenario, policy, *rest)\n"
            "runner._run_policy = counted\n"
            "sys.exit(planner.cli.main(['run', 'small.yaml']))\n")

    def interrupted_at(policy: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, str(policy)], capture_output=True,
                              text=True, check=False)

    first = interrupted_at(0)
    assert (first.returncode, first.stderr) == (
        130, "error: interrupted before the first policy was finished; nothing was written\n")
    assert list(folder.glob("results/*")) == []
    second = interrupted_at(1)
    assert second.returncode == 130
    assert "interrupted after 1 of 3 policies; their results are in results/" in second.stderr
    kept, = folder.glob("results/*")
    assert kept.name.endswith("-partial")
    result = load(kept)
    assert result.run["status"] == "partial"
    assert result.summary.column("policy").to_pylist() == ["off"]
    assert set(result.hosts.column("policy").to_pylist()) == {"off"}


def test_results_that_are_not_whole_are_told(folder: Path) -> None:
    assert main(["run", "small.yaml"]) == 0
    path = next(Path("results").iterdir())
    (path / "hosts.parquet").unlink()
    with pytest.raises(planner.PlannerError, match=r"hosts\.parquet: the file is missing"):
        load(path)
    with pytest.raises(planner.PlannerError, match="no results folder"):
        load(folder)


def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "check", "schema", "capture"):
        assert main([command, "--help"]) == 0
        assert "Example:" in capsys.readouterr().out
    for command in ("info", "check", "export"):
        assert main(["trace", command, "--help"]) == 0
        assert "Example:" in capsys.readouterr().out


def test_schema_prints_json_or_explains_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"
    assert main(["schema", "policies.merge.ksmd"]) == 0
    assert "pages_to_scan" in capsys.readouterr().out


def test_the_public_names_are_all_there() -> None:
    for name in planner.__all__:
        assert getattr(planner, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        planner.nonsense  # noqa: B018 - the attribute access is the test


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07") == "a\ufffd[31mb\ufffd"
