"""The shipped traces are whole, real enough, small enough, and say where they come from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from planner.cli import main
from planner.trace import PageFlag, Trace, open_trace
from planner.traceinfo import trace_info

TRACES = Path(__file__).resolve().parent.parent / "traces"
SCENARIOS = TRACES.parent / "scenarios"
NAMES = ("qemu-guests", "container-host", "kmod-host")


@pytest.fixture(params=NAMES)
def trace(request: pytest.FixtureRequest) -> Trace:
    return open_trace(TRACES / request.param)


def test_it_is_complete_and_says_where_it_comes_from(trace: Trace) -> None:
    assert trace.status == "complete"
    assert not any(snapshot.is_partial for snapshot in trace.snapshots)
    assert len(trace.snapshots) >= 4
    assert trace.span_ns >= 180 * 10**9
    is_by_module = trace.path.name == "kmod-host"
    assert trace.provenance["source"] == ("kmod" if is_by_module else "proc")
    assert trace.provenance.get("abi") == ([1, 0] if is_by_module else None)
    assert {"software", "kernel", "transparent_hugepage", "ksm"} <= trace.provenance.keys()
    assert "/" not in json.dumps(trace.provenance)


def test_nothing_was_merged_while_it_was_captured(trace: Trace) -> None:
    assert {snapshot.counters["pages_sharing"] for snapshot in trace.snapshots} == {0}
    for _, pages in trace.iter_mm_pages(0):
        assert not (pages.flags & int(PageFlag.KSM)).any()


def test_a_first_snapshot_takes_at_most_9_bytes_a_page(trace: Trace) -> None:
    first = trace.path / "pages-0000.parquet"
    assert first.stat().st_size / trace.snapshots[0].n_pages <= 9


def test_later_snapshots_hold_changes_only(trace: Trace) -> None:
    for snapshot in trace.snapshots[1:]:
        assert 0 < snapshot.n_stored < snapshot.n_pages / 2


def test_the_guests_are_twelve_of_three_roles_and_three_tenants() -> None:
    trace = open_trace(TRACES / "qemu-guests")
    assert {guest.kind for guest in trace.guests} == {"vm"}
    roles = Counter(guest.labels["role"] for guest in trace.guests)
    assert len(trace.guests) == 12
    assert len(roles) >= 3
    assert min(roles.values()) >= 4
    assert len({guest.labels["tenant"] for guest in trace.guests}) >= 3
    assert all(guest.memory_bytes == 128 << 20 for guest in trace.guests)


def test_only_the_module_tells_accessed_and_dirty_pages_apart(trace: Trace) -> None:
    flags = np.concatenate([pages.flags for _, pages in trace.iter_mm_pages(0)])
    advisory = {flag.name: float((flags & np.uint32(flag) != 0).mean())
                for flag in (PageFlag.YOUNG, PageFlag.DIRTY, PageFlag.WRITABLE)}
    if trace.path.name == "kmod-host":
        assert all(0.2 < share <= 1 for share in advisory.values())
    else:
        assert set(advisory.values()) == {0}


@pytest.mark.parametrize("name", ["container-host", "kmod-host"])
def test_the_containers_hold_twenty_processes_or_more(name: str) -> None:
    trace = open_trace(TRACES / name)
    assert {guest.kind for guest in trace.guests} == {"container"}
    assert len(trace.mm_ids(0)) >= 20
    assert {"db", "cache", "web"} <= {guest.labels["role"] for guest in trace.guests}


def test_all_traces_have_one_key_and_fit_in_12_megabytes() -> None:
    assert len({open_trace(TRACES / name).hash_info for name in NAMES}) == 1
    n_bytes = sum(file.stat().st_size for file in TRACES.rglob("*") if file.is_file())
    assert n_bytes <= 12_000_000


def test_the_readme_of_the_traces_lists_them_all() -> None:
    text = (TRACES / "README.md").read_text()
    assert {path.parent.name for path in TRACES.glob("*/index.parquet")} == set(NAMES)
    for name in NAMES:
        trace = open_trace(TRACES / name)
        assert f"`{name}`" in text
        assert trace.digest[:12] in text


def test_every_shipped_scenario_passes_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(SCENARIOS.glob("*.yaml"))
    assert {"quickstart.yaml", "containers.yaml"} <= {file.name for file in files}
    for file in files:
        assert main(["check", str(file)]) == 0
        assert "ok." in capsys.readouterr().out
        assert file.read_text().startswith("# "), "a scenario opens with the question it answers"


@pytest.mark.parametrize(("name", "snapshot", "at", "rest", "tolerance"), [
    # Merging at the very end sees exactly the last snapshot. Two passes: of a page that fork
    # shares, the first may leave a mapping behind (its twin was met only afterwards).
    ("container-host", 5, "{boot: {after: 297s}}, {boot: {after: 298750ms}}",
     "output: {sample_every: 10s}", 0.005),
    # Some pages change while the merge goes on.
    ("kmod-host", 0, "{boot: {after: 1ms}}", "horizon: 4s\noutput: {sample_every: 1s}", 0.03)])
def test_one_merge_space_frees_what_a_plain_count_of_a_snapshot_says(
        tmp_path: Path, name: str, snapshot: int, at: str, rest: str, tolerance: float
) -> None:
    import planner

    scenario = tmp_path / "s.yaml"
    scenario.write_text(f"""\
planner: 1
name: count
hosts: [{{name: host, memory: 64GiB}}]
workloads: [{{name: all, trace: {TRACES / name}}}]
policies:
  - name: one
    merge: {{sync: {{at: [{at}]}}}}
{rest}
""")
    info = trace_info(open_trace(TRACES / name), snapshot=snapshot, advised_only=True).to_json()
    summary = planner.run(planner.load_scenario(scenario)).summary.to_pylist()[0]
    freed = summary["saved_bytes"] + summary["metadata_bytes"]
    assert freed / 4096 == pytest.approx(info["counts"]["n_duplicates"], rel=tolerance)
