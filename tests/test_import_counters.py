"""Counters of this host and of monitoring systems, and forecasts held against them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.backtest import PAIRS, backtest
from planner.capture.counters import capture_counters, sample_counters
from planner.cli import main
from planner.counters import Sample, read_counters, write_counters
from planner.errors import DataError, MachineError, PlannerError, UsageError
from planner.importers.counters import FORMATS, Options, import_metrics, iso_time_ns, read_metrics
from planner.runner import load_scenario, run
from planner.trace import open_trace
from tests.fuzzing import n_examples
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

DATA = Path(__file__).parent / "data" / "inventory"
SECOND = 10**9
METRICS = ("node_exporter.txt", "query_range.json", "telegraf.txt", "metricbeat.ndjson",
           "ksmtuned.log")


def imported(tmp_path: Path, name: str, **options: Any) -> dict[str, Sample]:
    report = import_metrics([DATA / name], out=tmp_path / "c.parquet", options=Options(**options))
    return {sample.counter: sample for sample in read_counters(report.path).samples}


def refused(tmp_path: Path, text: str | bytes, format_name: str = "auto", **options: Any) -> str:
    path = tmp_path / "input"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        import_metrics([path], out=tmp_path / "c.parquet", format_name=format_name,
                       options=Options(**options))
    assert not (tmp_path / "c.parquet").exists()
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- formats --------------------------------------------------------------------------------


def test_node_exporter_gives_kernel_names_and_milliseconds(tmp_path: Path) -> None:
    found = imported(tmp_path, "node_exporter.txt", host="pve03")
    assert {sample.host for sample in found.values()} == {"pve03"}
    assert {name: sample.value for name, sample in found.items()} == {
        "full_scans": 1234, "merge_across_nodes": 1, "pages_shared": 1_234_500,
        "pages_sharing": 56_789_012, "pages_to_scan": 100, "pages_unshared": 0,
        "pages_volatile": 17, "run": 1, "sleep_millisecs": 20, "general_profit": -4096,
        "cow_ksm": 767374, "ksmd_cpu_ns": 12_500_000_000}
    assert found["run"].time_ns == (DATA / "node_exporter.txt").stat().st_mtime_ns


def test_query_range_gives_series_by_instance(tmp_path: Path) -> None:
    report = import_metrics([DATA / "query_range.json"], out=tmp_path / "c.parquet")
    table = read_counters(report.path)
    times, values = table.series("pve03", "pages_sharing")
    assert times.tolist() == [1_800_000_000 * SECOND, 1_800_000_060_500_000_000]
    assert values.tolist() == [100, 250]
    assert table.series("pve03", "sleep_millisecs")[1].tolist() == [20]
    assert report.skipped == {"value that is not finite": 1, "metric that is no KSM counter": 1}


def test_what_node_exporter_and_prometheus_wrote_themselves_agrees(tmp_path: Path) -> None:
    one = imported(tmp_path, "real/node_exporter.txt")
    assert {name: one[name].value for name in ("pages_shared", "pages_sharing", "run",
                                               "sleep_millisecs", "full_scans")} == {
        "pages_shared": 263, "pages_sharing": 3826, "run": 1, "sleep_millisecs": 20,
        "full_scans": 51}
    report = import_metrics([DATA / "real/query_range.json"], out=tmp_path / "series.parquet")
    assert report.hosts == ["127.0.0.1"]
    times, values = read_counters(report.path).series("127.0.0.1", "full_scans")
    assert np.diff(times).tolist() == [2 * SECOND] * 12
    assert values.tolist() == [0, 0, 0, 1, 4, 8, 13, 18, 23, 30, 35, 40, 48]


def test_a_log_that_ksmtuned_wrote_itself_is_read(tmp_path: Path) -> None:
    report = import_metrics([DATA / "real/ksmtuned.log"], out=tmp_path / "series.parquet")
    _, pages = read_counters(report.path).series("host", "pages_to_scan")
    assert pages.tolist() == [300, 600, 900, 1200, 1250, 1250]
    _, is_running = read_counters(report.path).series("host", "run")
    assert is_running.tolist() == [1] * 6 + [0] * 6


def test_telegraf_lines_are_read_with_their_host(tmp_path: Path) -> None:
    found = imported(tmp_path, "telegraf.txt")
    assert found["pages_sharing"] == Sample(1_800_000_000 * SECOND, "pve 03", "pages_sharing", 21)
    assert found["cow_ksm"].value == 12
    assert found["ksm_swpin_copy"].value == 0
    assert "boot_time" not in found


def test_metricbeat_events_are_read(tmp_path: Path) -> None:
    found = imported(tmp_path, "metricbeat.ndjson")
    assert len(found) == 7
    assert found["full_scans"] == Sample(1_800_000_000_853_000_000, "pve03", "full_scans", 2000)


def test_ksmtuned_logs_become_decisions_over_time(tmp_path: Path) -> None:
    report = import_metrics([DATA / "ksmtuned.log"], out=tmp_path / "c.parquet",
                            options=Options("pve03"))
    table = read_counters(report.path)
    times, run_values = table.series("pve03", "run")
    assert (times - 1_800_000_000 * SECOND).tolist() == [60 * SECOND, 120 * SECOND]
    assert run_values.tolist() == [1, 0]
    assert table.series("pve03", "pages_to_scan")[1].tolist() == [400]
    assert table.series("pve03", "sleep_millisecs")[1].tolist() == [10]
    assert table.series("pve03", "ksmtuned_free_bytes")[1].tolist() == [
        9_000_000 << 10, 30_000_000 << 10]


def test_ksmtuned_dates_of_other_zones_need_their_offset(tmp_path: Path) -> None:
    text = "Fri Jan 15 09:01:00 CET 2027: KSMCTL start 400 10\n"
    assert ":1: time zone 'CET' names no offset; give it as --utc-offset" in refused(tmp_path, text)
    american = "Fri 15 Jan 2027 09:01:00 AM CET: KSMCTL start 400 10\n"
    for form in (text, american):
        (tmp_path / "log").write_text(form)
        found = read_metrics([tmp_path / "log"], Options("h", timedelta(hours=1)))
        assert found.samples[0].time_ns == (1_800_000_000 + 60) * SECOND
    assert "run ksmtuned with LC_ALL=C" in refused(
        tmp_path, "Fr 15. Jan 09:01:00 CET 2027: KSMCTL start 400 10\n", "ksmtuned")


@pytest.mark.parametrize(("text", "time_ns"), [
    ("2027-01-15T08:00:00Z", 1_800_000_000 * SECOND),
    ("2027-01-15T09:00:00.5+01:00", 1_800_000_000 * SECOND + SECOND // 2),
    ("2027-01-15T08:00:00.123456789Z", 1_800_000_000_123_456_000),
    ("2027-01-15T08:00:00", None), ("1970-01-01T00:00:00Z", None), ("yesterday", None),
    (7, None)])
def test_times_are_exact_and_carry_an_offset(text: object, time_ns: int | None) -> None:
    assert iso_time_ns(text) == time_ns


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "format_name", "said"), [
    ("", "auto", "not recognised"),
    (b"\xff\xfen\x00", "auto", ":1: byte 0xff is not UTF-8"),
    ("node_load1 7\n", "node_exporter", "no KSM counter in it"),
    ("\nnode_ksmd_run many\n", "node_exporter", ":2: node_ksmd_run is 'many'"),
    ("node_ksmd_run 1\nnode_ksmd_run 1\n", "node_exporter", ":2: node_ksmd_run is given twice"),
    ("node_ksmd_run{a=b} 1\n", "node_exporter", ":1: labels are malformed"),
    ('node_ksmd_run{a="b",a="c"} 1\n', "node_exporter", ":1: label a is given twice"),
    ("node_ksmd_run 1e999\n", "node_exporter", ":1: node_ksmd_run is '1e999'"),
    ("node_ksmd_run 1 17\n", "node_exporter", ":1: time 17 is not in milliseconds"),
    ("node_ksmd_run 1 2 3\n", "node_exporter", ":1: expected"),
    ('{"status":"error"}', "prometheus", "not a successful answer"),
    ('{"status":"success","data":{"resultType":"scalar","result":[]}}', "prometheus",
     "resultType is 'scalar'"),
    ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":'
     '"node_ksmd_run"},"values":[[1,"2"]]}]}}', "prometheus", "data.result[0].values[0]"),
    ("[" * 100_000, "prometheus", "nested too deep"),
    ("kernel,host=a ksm_run=1i\n", "telegraf", ":1: expected `measurement"),
    ("kernel,host=a ksm_run=1i 17\n", "telegraf", ":1: time '17' is not in ns"),
    ("kernel,host=a ksm_run=xi 1800000000000000000\n", "telegraf", ":1: ksm_run is 'xi'"),
    ("kernel,host=a ksm_run=1i,ksm_run=1i 1800000000000000000\n", "telegraf", "given twice"),
    ("kernel,host=a ksm_run 1800000000000000000\n", "telegraf", ":1: expected key=value"),
    ('{"linux":{"ksm":{"stats":{"full_scans":1}}}}', "metricbeat", ":1: @timestamp is 'None'"),
    ('\n{"@timestamp":"2027-01-15T08:00:00Z","linux":{"ksm":{"stats":{"full_scans":1.5}}}}',
     "metricbeat", ":2: full_scans is '1.5'"),
    ("{}\n{", "metricbeat", ":2: not JSON"),
    ("Fri Feb 31 08:00:00 UTC 2027: KSMCTL start 1 1\n", "ksmtuned", "is no date"),
    ("Fri Jan 15 08:00:00 UTC 1977: KSMCTL start 1 1\n", "ksmtuned", "between 2000 and 2200"),
    ("nonsense\n", "ksmtuned", ":1: expected `DATE: TEXT`"),
])
def test_bad_metrics_are_refused_with_file_and_line(tmp_path: Path, text: str | bytes,
                                                    format_name: str, said: str) -> None:
    assert said in refused(tmp_path, text, format_name)


@settings(max_examples=n_examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(METRICS), start=st.integers(0, 1500), length=st.integers(0, 60),
       noise=st.binary(max_size=8), format_name=st.sampled_from(["auto", *FORMATS]))
def test_no_damaged_metrics_make_an_importer_stumble(
        tmp_path: Path, name: str, start: int, length: int, noise: bytes,
        format_name: str) -> None:
    data = (DATA / name).read_bytes()
    path = tmp_path / "input"
    path.write_bytes(data[:start] + noise + data[start + length:])
    said = str(path)
    try:
        read_metrics([path], Options(), format_name)
    except PlannerError as error:
        said = str(error)
    assert str(path) in said


# ---- this host ------------------------------------------------------------------------------


@pytest.fixture
def fake_root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    ksm = root / "sys/kernel/mm/ksm"
    ksm.mkdir(parents=True)
    for name, text in {"pages_shared": "7", "pages_sharing": "21", "general_profit": "-64",
                       "advisor_mode": "none [scan-time]", "odd": "text"}.items():
        (ksm / name).write_text(text + "\n")
    for pid, comm, command, files in (
            ("37", "ksmd", "", {"schedstat": "123456 7 8\n"}),
            ("90", "ksmd", "an impostor", {"schedstat": "9 9 9\n"}),
            ("91", "qemu", "qemu", {"ksm_stat": "ksm_rmap_items 5\nksm_zero_pages 0\n"
                                                "ksm_process_profit -320\n"})):
        (root / "proc" / pid).mkdir(parents=True)
        for name, text in {"comm": comm + "\n", "cmdline": command, **files}.items():
            (root / "proc" / pid / name).write_text(text)
    (root / "proc/vmstat").write_text("pgfault 5\ncow_ksm 12\nksm_swpin_copy 3\n")
    return root


def test_all_counters_of_the_host_are_sampled(fake_root: Path) -> None:
    found = {sample.counter: sample for sample in sample_counters("h", processes=True,
                                                                  root=fake_root)}
    assert {name: sample.value for name, sample in found.items()} == {
        "pages_shared": 7, "pages_sharing": 21, "general_profit": -64, "advisor_mode": 1,
        "cow_ksm": 12, "ksm_swpin_copy": 3, "ksmd_cpu_ns": 123456, "ksm_rmap_items": 5,
        "ksm_process_profit": -320}
    assert found["ksm_rmap_items"].process == "91"
    assert found["cow_ksm"].process is None


def test_counters_are_captured_at_a_steady_pace(fake_root: Path, tmp_path: Path) -> None:
    naps: list[float] = []
    report = capture_counters(tmp_path / "c.parquet", host="h", every_ns=10 * SECOND, count=3,
                              root=fake_root, sleep=naps.append)
    assert report.n_times == 3
    assert len(naps) == 2
    assert 19 < naps[1] <= 20
    table = read_counters(report.path)
    assert table.series("h", "pages_sharing")[1].tolist() == [21, 21, 21]
    assert report.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists"):
        capture_counters(report.path, host="h", every_ns=1, count=1, root=fake_root)


def test_an_interrupted_capture_keeps_what_it_has(fake_root: Path, tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    report = capture_counters(tmp_path / "c.parquet", host="h", every_ns=SECOND, count=3,
                              root=fake_root, sleep=interrupt)
    assert report.is_interrupted
    assert len(read_counters(report.path).series("h", "pages_shared")[0]) == 1


def test_a_host_without_ksm_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="CONFIG_KSM"):
        sample_counters("h", root=tmp_path)


@pytest.mark.skipif(not os.path.isdir("/sys/kernel/mm/ksm"), reason="a kernel without KSM")
def test_the_command_samples_this_host(tmp_path: Path) -> None:
    out = tmp_path / "c.parquet"
    assert main(["capture", "counters", "--every", "10ms", "--count", "2", "-o", str(out)]) == 0
    table = read_counters(out)
    assert {"pages_shared", "pages_sharing", "full_scans", "run"} <= {
        sample.counter for sample in table.samples}
    assert len({sample.time_ns for sample in table.samples}) == 2


# ---- back-testing ---------------------------------------------------------------------------

SCENARIO = """\
planner: 1
name: small
hosts:
  - {name: pve03, memory: 1GiB}
workloads:
  - {name: all, trace: trace}
policies:
  - {name: off, merge: never}
  - {name: ksmd, merge: {ksmd: {pages_to_scan: 1000}}}
output: {sample_every: 1s}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_trace(tmp_path / "trace", [
        GuestPlan(name, {}, [MmPlan([pages_of([1, 2, 0, 4 + number]), pages_of([1, 9, 0, 7])])])
        for number, name in enumerate("abc")])
    (tmp_path / "small.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(folder: Path, *, factor: float = 1.0, shift_ns: int = 0) -> Path:
    """A table that a host would give whose counters are the forecast's times `factor`."""
    result = run(load_scenario(folder / "small.yaml"))
    start_ns = open_trace(folder / "trace").snapshots[0].start_ns + shift_ns
    samples = [
        Sample(start_ns + row["time_ns"], "pve03", counter, round(factor * row[column]))
        for row in result.hosts.to_pylist() if row["policy"] == "ksmd"
        for counter, column, _ in PAIRS]
    write_counters(folder / "c.parquet", samples, {}, force=True)
    return folder / "c.parquet"


def test_a_forecast_that_came_true_has_no_error(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder)
    assert main(["validate", "metrics", "small.yaml", "--policy", "ksmd", "--metrics",
                 "c.parquet", "--within", "1%", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["aligned_by"] == "the time of the capture"
    assert set(document["counters"]) == {counter for counter, _, _ in PAIRS}
    assert document["counters"]["pages_sharing"]["simulated_last"] > 0
    for counter in document["counters"].values():
        assert counter["error"] == 0
    assert json.loads((folder / "validation/pve03.json").read_text()) == document


def test_error_and_bias_are_shares_of_what_was_measured(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder, factor=2.0, shift_ns=-10**15)
    assert main(["validate", "metrics", "small.yaml", "--policy", "ksmd", "--metrics",
                 "c.parquet", "--within", "10%", "-o", "v.json"]) == 4
    captured = capsys.readouterr()
    counters = json.loads((folder / "v.json").read_text())["counters"]
    assert counters["pages_sharing"]["error"] == pytest.approx(0.5)
    assert counters["pages_sharing"]["bias"] == pytest.approx(-0.5)
    assert "aligned by the first sample" in captured.err
    assert "beyond 10%: pages_shared" in captured.err
    assert "pages_sharing" in captured.out
    assert "-50" in captured.out


def test_rising_counters_are_compared_by_what_they_rose(folder: Path) -> None:
    path = measured(folder)
    table = read_counters(path)
    write_counters(path, [
        sample._replace(value=sample.value + (10**9 if sample.counter == "full_scans" else 0))
        for sample in table.samples if sample.counter != "cow_ksm"], {}, force=True)
    result = run(load_scenario(folder / "small.yaml"))
    start_ns = open_trace(folder / "trace").snapshots[0].start_ns
    found = backtest(result, "ksmd", "pve03", read_counters(path), "pve03",
                     capture_start_ns=start_ns)
    scans = next(each for each in found.comparisons if each.counter == "full_scans")
    assert scans.error == 0
    assert scans.measured_last < 10**9
    assert found.missing == ("cow_ksm",)
    assert np.isfinite([each.simulated_mean for each in found.comparisons]).all()


def test_metrics_of_another_time_are_not_stretched(folder: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    measured(folder)
    base = ["validate", "metrics", "small.yaml", "--policy", "ksmd", "--metrics", "c.parquet"]
    assert main([*base, "--start", "2001-01-01T00:00:00Z"]) == 3
    assert "fewer than two samples" in capsys.readouterr().err
    for wrong, said in ((["--start", "soon"], "is not a time"), (["--host", "x"], "no host is"),
                        (["--metrics-host", "x"], "no samples of host 'x'")):
        assert main([*base, *wrong]) in (2, 3)
        assert said in capsys.readouterr().err
    assert main([*base[:3], "--policy", "none", *base[5:]]) == 2
    assert "no policy is named 'none'" in capsys.readouterr().err
    assert not (folder / "validation").exists()


class _Answer(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/api") else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_metrics_are_fetched_from_an_address(
        folder: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_counters(measured(folder, shift_ns=1_800_000_000 * SECOND))
    times, values = table.series("pve03", "pages_sharing")
    _Answer.body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [
        {"metric": {"__name__": "node_ksmd_pages_sharing", "instance": "pve03:9100"},
         "values": [[time / SECOND, str(value)]
                    for time, value in zip(times.tolist(), values.tolist(), strict=True)]}]}},
    ).encode()
    command = ["validate", "metrics", "small.yaml", "--policy", "ksmd", "--metrics"]
    assert main([*command, f"{address}/api/v1/query_range?query=x"]) == 0
    assert "pages_sharing" in capsys.readouterr().out
    assert main([*command, f"{address}/nowhere"]) == 3
    assert "cannot be fetched: HTTP Error 404" in capsys.readouterr().err
