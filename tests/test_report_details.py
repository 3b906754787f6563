"""What a report says beside the tables: who shares with whom, kept with the result by the CLI."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planner
from planner.cli import main
from planner.details import FILE_NAME, details_of, read_details
from planner.errors import DataError
from planner.fleet import FleetHost
from planner.runner import TraceStore, build_hosts
from planner.sharing import MAX_MEMBERS, sharing_matrices
from tests.report_data import make_validation
from tests.scenario_builder import NEVER, SMALL_YAML, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

PAGE = 4096

@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result of two tenants, with its details; its trace and scenario in the same folder."""
    build_trace(tmp_path / "trace", [
        GuestPlan("a", {"tenant": "red"}, [MmPlan([pages_of([1, 2, 0]), pages_of([1, 5, 0])])]),
        GuestPlan("b", {"tenant": "red"}, [MmPlan([pages_of([1, 3, 0])] * 2)]),
        GuestPlan("c", {"tenant": "blue"}, [MmPlan([pages_of([1, 5, 4])] * 2)])])
    (tmp_path / "small.yaml").write_text(SMALL_YAML)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "small.yaml"]) == 0
    return next(Path("results").iterdir())


def by_hand(host: FleetHost, names: list[str], value_of: Any) -> list[list[int]]:
    """The cells of one host in pages, counted with sets."""
    content, frame = host.site_content.tolist(), host.site_frame.tolist()
    for site, c, f in zip(host.event_site.tolist(), host.event_content.tolist(),
                          host.event_frame.tolist(), strict=True):
        content[site], frame[site] = c, f
    frames: dict[str, dict[int, int]] = defaultdict(dict)
    for site, c in enumerate(content):
        if c >= 0 and host.site_eligible[site] and not host.content_is_zero[c]:
            member = value_of(host.guests[host.mms[host.site_mm[site]].guest])
            frames[member].setdefault(frame[site], c)
    held = {name: list(frames[name].values()) for name in names}
    cells = [[0] * len(names) for _ in names]
    for i, name in enumerate(names):
        cells[i][i] = len(held[name]) - len(set(held[name]))
    for i, j in combinations(range(len(names)), 2):
        cells[i][j] = cells[j][i] = len(set(held[names[i]]) & set(held[names[j]]))
    return cells


def test_matrices_are_what_sets_give(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    guests = []
    for index in range(9):
        mms = []
        for _ in range(2):
            contents = random.integers(0, 30, 40).tolist()
            mms.append(MmPlan([pages_of(contents), pages_of(
                [c if random.random() < 0.7 else None if random.random() < 0.3
                 else int(random.integers(0, 30)) for c in contents])]))
        guests.append(GuestPlan(f"g{index}", {"tenant": "abcd"[index % 4], "os": "xy"[index % 2],
                                              "same": "abcd"[index % 4], "rack": "r"}, mms))
    path = build_trace(tmp_path / "trace", guests)
    scenario = scenario_for(path, (NEVER,))
    hosts = build_hosts(scenario, TraceStore())
    found = {matrix.key: matrix for matrix in sharing_matrices(scenario, hosts)}
    # `same` divides like the domains, `rack` does not divide, and there is one workload.
    assert list(found) == ["domain", "label os"]
    for key, value_of in (("domain", lambda guest: guest.domain),
                          ("label os", lambda guest: guest.labels["os"])):
        matrix = found[key]
        (host,) = hosts
        assert [[n // PAGE for n in row] for row in matrix.cells] == by_hand(
            host, list(matrix.members), value_of)
        assert matrix.n_left_out == 0
    assert found["domain"].is_apart == tuple(
        tuple(i != j for j in range(4)) for i in range(4))
    # Each system has guests of two domains: merging it even with itself crosses a boundary.
    assert found["label os"].is_apart == ((True, True), (True, True))


def test_frames_that_fork_shares_count_once(tmp_path: Path) -> None:
    forked = pages_of([7, 8], frames=[3, 4])
    path = build_trace(tmp_path / "trace", [
        GuestPlan("a", {"tenant": "red"}, [MmPlan([forked]), MmPlan([forked]),
                                           MmPlan([pages_of([7])])]),
        GuestPlan("b", {"tenant": "blue"}, [MmPlan([pages_of([8, 8, 9])])])])
    scenario = scenario_for(path, (NEVER,))
    (matrix,) = sharing_matrices(scenario, build_hosts(scenario, TraceStore()))
    assert matrix.members == ("blue", "red")
    assert [[n // PAGE for n in row] for row in matrix.cells] == [[1, 1], [1, 1]]
    assert [n // PAGE for n in matrix.held_bytes] == [3, 3]


def test_of_many_members_those_that_hold_most_are_shown(tmp_path: Path) -> None:
    n = MAX_MEMBERS + 3
    path = build_trace(tmp_path / "trace", [
        GuestPlan(f"g{i:02}", {"tenant": f"t{i:02}"}, [MmPlan([pages_of(
            [1, *range(100 * i + 100, 100 * i + 100 + i)])])]) for i in range(n)])
    scenario = scenario_for(path, (NEVER,))
    (matrix,) = sharing_matrices(scenario, build_hosts(scenario, TraceStore()))
    assert matrix.members == tuple(f"t{i:02}" for i in range(3, n))
    assert matrix.n_left_out == 3
    assert {c for i, row in enumerate(matrix.cells) for j, c in enumerate(row) if i != j} == {PAGE}


def test_run_keeps_the_details_and_shows_them(result: Path) -> None:
    details = json.loads((result / FILE_NAME).read_text())
    assert [each["policy"] for each in details["waterfalls"]] == ["ksmd", "domain"]
    assert details["sharing"][0]["members"] == ["blue", "red"]
    # Red holds 1 and 5 of blue in the end; 1 is there twice.
    assert details["sharing"][0]["cells"] == [[0, 2 * PAGE], [2 * PAGE, PAGE]]
    assert details["diagnosis"][0]["n_bytes"] == 9 * PAGE
    page = (result / "report.html").read_text()
    assert "Where the memory went under domain" in page
    loaded = planner.load(result)
    assert details == json.loads(json.dumps(details_of(loaded)))
    assert read_details(result, loaded.run["digest"]) == details


def test_a_report_made_again_is_the_same_bytes(result: Path) -> None:
    assert main(["report", str(result), "--format", "html", "-o", "again.html"]) == 0
    assert Path("again.html").read_bytes() == (result / "report.html").read_bytes()


def test_details_can_be_left_out_and_made_later_from_a_moved_trace(result: Path) -> None:
    whole = (result / "report.html").read_bytes()
    shutil.rmtree(result)
    assert main(["run", "small.yaml", "--no-details"]) == 0
    assert not (result / FILE_NAME).exists()
    assert "planner report RESULT --details" in (result / "report.html").read_text()
    Path("trace").rename("moved")
    assert main(["report", str(result), "--details"]) == 3
    assert main(["report", str(result), "--details", "--trace", "moved", "--format", "html",
                 "-o", "again.html"]) == 0
    made = Path("again.html").read_bytes()
    # The date of the run is in the header alone.
    assert [line for line in made.splitlines() if b"run 20" not in line] \
        == [line for line in whole.splitlines() if b"run 20" not in line]


@pytest.mark.parametrize("damage", [
    "not json", "[]", '{"kind": "planner.details", "format_version": 2}', None,
    {"digest": "x"}, {"waterfalls": [{"policy": 1}]}, {"sharing": None},
    {"waterfalls": [{"policy": "ksmd", "steps": [{"key": "saved"}], "memos": []}]}])
def test_damaged_details_are_refused_by_name(result: Path, damage: Any,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    path = result / FILE_NAME
    if isinstance(damage, str):
        path.write_text(damage)
    elif damage is None:
        path.write_text(path.read_text()[:100])
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    capsys.readouterr()
    assert main(["report", str(result), "--format", "html", "-o", "x.html"]) == 3
    err = capsys.readouterr().err
    assert FILE_NAME in err
    assert "--details" in err
    with pytest.raises(DataError):
        read_details(result, planner.load(result).run["digest"])


def test_report_makes_static_and_redacted_pages(result: Path) -> None:
    assert main(["report", str(result), "--static", "-o", "static.html"]) == 0
    static = Path("static.html").read_text()
    assert "<svg" in static
    assert "<script" not in static
    assert main(["report", str(result), "--static", "--redact", "-o", "red.html"]) == 0
    assert "blue" not in Path("red.html").read_text()
    assert "domain-1" in Path("red.html").read_text()


@pytest.mark.parametrize("form", ["text", "md"])
def test_text_can_be_redacted_too(result: Path, form: str,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((result / "run.json").read_text())
    record["warnings"] = ["KSM had merged pages of blue."]
    (result / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    for command in (["report", str(result), "--format", form], ["report", str(result), "--json"]):
        assert main(command) == 0
        assert "pages of blue" in capsys.readouterr().out
        assert main([*command, "--redact"]) == 0
        out = capsys.readouterr().out
        assert "pages of blue" not in out
        assert "pages of domain-" in out


def test_a_validation_is_shown_and_a_wrong_file_refused(
        result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.json").write_text(json.dumps(make_validation()))
    assert main(["report", str(result), "--format", "html", "--validation", "v.json",
                 "-o", "v.html"]) == 0
    assert "Not validated on your hardware" not in Path("v.html").read_text()
    for name, text in (("missing.json", None), ("list.json", "[]"), ("other.json", "{}")):
        if text is not None:
            Path(name).write_text(text)
        assert main(["report", str(result), "--format", "html", "--validation", name,
                     "-o", "w.html"]) == 3
    assert not Path("w.html").exists()
    assert main(["report", str(result), "--validation", "v.json"]) == 2
    assert "add --format html" in capsys.readouterr().err


def test_the_commands_in_the_docs_work(result: Path) -> None:
    text = (Path(__file__).parent.parent / "docs/report.md").read_text()
    (block,) = re.findall(r"```sh\n(planner report .*?)```", text, re.DOTALL)
    commands = [line.partition("#")[0].split()[1:] for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        assert re.fullmatch(r"results/quickstart-[0-9a-f]{6}", command[1])
        assert main([command[0], str(result), *command[2:]]) == 0
    assert all(Path(name).stat().st_size for name in ("report.html", "static.html", "out.html"))
