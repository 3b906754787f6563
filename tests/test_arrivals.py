"""Tables of arrivals, and the records they are imported from."""

from __future__ import annotations

import io
import json
import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.arrivals import (
    ARRIVALS,
    ArrivalTable,
    arrival_table,
    read_arrivals,
    write_arrivals,
)
from planner.cli import main
from planner.errors import DataError, UsageError
from planner.importers.arrivals import import_arrivals
from tests.fuzzing import n_examples

ROOT = Path(__file__).parent.parent
#: Where the public record is, for the tests that read all of it.
AZURE = Path(os.environ.get("PLANNER_AZURE2017",
                            ROOT.parent / "shared" / "data" / "azure2017-arrivals"))
SECOND = 10**9
MIB = 1 << 20
GIB = 1 << 30

CSV = """time,duration,memory,cores,tenant,flavour
0s,1h30min,4GiB,2,acme,big
10s,,512MiB,0.5,acme,
10s,20s,1GiB,,,small
"""


def columns(n: int = 3, **changes: Any) -> dict[str, Any]:
    return {"time_ns": np.arange(n) * SECOND, "duration_ns": np.full(n, SECOND),
            "censored_ns": np.full(n, -1), "memory_bytes": np.full(n, GIB),
            "cores": np.ones(n), "tenant": np.arange(n), "flavour": np.zeros(n, int)} | changes


def table_of(**changes: Any) -> ArrivalTable:
    return arrival_table("made.parquet", columns(**changes), ["any"], {})[0]


def imported(path: Path, tmp_path: Path, **options: Any) -> ArrivalTable:
    return import_arrivals(path, out=tmp_path / "out.parquet", force=True, **options).table


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    made, n_late = arrival_table("made", columns(
        time_ns=[30, 10, 20], duration_ns=[5, -1, 7], censored_ns=[-1, 9, -1],
        flavour=[0, 1, 0]), ["z", "a", "never"], {"source": "test"})
    assert n_late == 1
    path = tmp_path / "table.parquet"
    write_arrivals(path, made)
    found = read_arrivals(path)
    assert found.time_ns.tolist() == [10, 20, 30]
    assert found.duration_ns.tolist() == [-1, 7, 5]
    assert found.is_censored.tolist() == [True, False, False]
    assert [found.flavours[number] for number in found.flavour] == ["a", "z", "z"]
    assert found.flavours == made.flavours == ("a", "z")
    assert found.digest == made.digest != table_of().digest
    assert found.provenance == {"source": "test"}
    assert (found.tenant.dtype, found.cores.dtype) == (np.int32, np.float64)
    assert path.stat().st_mode & 0o777 == 0o600
    raw = pq.read_table(path)
    assert raw["duration_ns"].to_pylist() == [None, 7, 5]
    assert raw["censored_ns"].to_pylist() == [9, None, None]


@pytest.mark.parametrize(("changes", "words"), [
    ({"time_ns": [0, -5, 1]}, "row 0: time_ns -5 is negative"),
    ({"duration_ns": [1, 0, 1]}, "row 1: duration_ns 0 is not positive"),
    ({"duration_ns": [1, 1, -1]}, "row 2: duration_ns -1 is not positive"),
    ({"censored_ns": [-1, 5, -1]}, "row 1: duration_ns 1000000000 is given, and censored_ns"),
    ({"time_ns": [0, 1, 2**63 - 2]}, "leave 64 bits"),
    ({"memory_bytes": [1, 1, 0]}, "row 2: memory_bytes 0 is not between"),
    ({"cores": [1, float("nan"), 1]}, "row 1: cores nan is not between"),
    ({"tenant": [0, -2, 0]}, "row 1: tenant -2 is below -1"),
])
def test_rows_that_cannot_be_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        table_of(**changes)
    assert words in str(caught.value)


def test_an_empty_or_unsorted_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"

    def written(**changes: Any) -> None:
        values = {name: pa.array(value) for name, value in (columns() | changes).items()}
        values["flavour"] = pa.array(["any"] * len(values["time_ns"]), pa.string())
        values["censored_ns"] = pa.nulls(len(values["time_ns"]), pa.int64())
        schema = ARRIVALS.schema.with_metadata(ARRIVALS.metadata({}))
        pq.write_table(pa.table(values).select(schema.names).cast(schema), path)

    written()
    assert len(read_arrivals(path)) == 3
    written(time_ns=[3, 2, 1])
    with pytest.raises(DataError, match=r"2 row\(s\) come before the row above"):
        read_arrivals(path)
    written(duration_ns=[1, -1, 1])
    with pytest.raises(DataError, match="duration_ns is negative; leave it null"):
        read_arrivals(path)
    written(**{name: values[:0] for name, values in columns().items()})
    with pytest.raises(DataError, match="holds no arrivals"):
        read_arrivals(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError):
        read_arrivals(path)


def test_a_long_span_without_arrivals_is_warned_of() -> None:
    steady = np.arange(200) * SECOND
    assert table_of(**columns(200)).warnings == ()
    torn = np.where(np.arange(200) < 120, steady, steady + 3600 * SECOND)
    table = table_of(**columns(200, time_ns=torn))
    assert table.gaps().tolist() == [[119 * SECOND, 3720 * SECOND]]
    (warning,) = table.warnings
    assert "1 span(s) without arrivals, the longest of 60.0 min, 119 s after" in warning
    # Chance does not make gaps: the warning would be worthless.
    random = np.random.default_rng(3)
    chance = np.cumsum(random.exponential(SECOND, 20_000)).astype(np.int64)
    assert len(table_of(**columns(20_000, time_ns=chance)).gaps()) == 0


# ---- CSV ------------------------------------------------------------------------------------


def test_the_csv_is_read_with_units_batches_and_open_ends(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text(CSV)
    table = imported(path, tmp_path)
    assert table.time_ns.tolist() == [0, 10 * SECOND, 10 * SECOND]
    assert table.duration_ns.tolist() == [5400 * SECOND, -1, 20 * SECOND]
    # To the last time that the file names.
    assert table.censored_ns.tolist() == [-1, 5390 * SECOND, -1]
    assert table.memory_bytes.tolist() == [4 * GIB, 512 * MIB, GIB]
    assert table.cores.tolist() == [2, 0.5, 0]
    assert table.tenant.tolist() == [0, 0, -1]
    assert [table.flavours[number] for number in table.flavour] == ["big", "", "small"]


def test_the_csv_takes_dates_seconds_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text("time,duration_s,running_for,memory_bytes,note\n"
                    "2026-03-01T10:00:00+01:00,1.5,,4096,x\n2026-03-01T08:00,,2h,4096,y\n")
    report = import_arrivals(path, out=tmp_path / "o.parquet")
    table = report.table
    assert table.time_ns.tolist() == [1772352000 * SECOND, 1772355600 * SECOND]
    assert table.duration_ns.tolist() == [-1, 3 * SECOND // 2]
    assert table.censored_ns.tolist() == [7200 * SECOND, -1]
    assert any("1 row(s) came before" in note for note in report.notes)
    assert any("no use for column(s) 'note'" in note for note in report.notes)


@pytest.mark.parametrize(("text", "words"), [
    ("", "no column 'time' or 'time_s'"),
    ("time,duration\n", "no column 'memory' or 'memory_bytes'"),
    ("time,time_s,duration,memory\n", "both time and time_s"),
    ("time,duration,memory,memory\n", "column 4 has no name of its own"),
    ("time,duration,memory\n", "holds no arrivals"),
    ("time,duration,memory\n1s,1s\n", ":2: 2 cells, but 3 columns"),
    ("time,duration,memory\n5,1s,1GiB\n", ":2: '5' has no unit"),
    ("time,duration,memory\n1s,0s,1GiB\n", ":2: the duration is 0"),
    ("time,duration,memory\n1s,-1s,1GiB\n", ":2: duration: '-1s' is not a duration"),
    ("time,duration,memory\n1s,1s,1G\n", ":2: memory: '1G' is ambiguous"),
    ("time,duration,memory\n1s,1s,0GiB\n", ":2: the memory is 0"),
    ("time,duration,memory\n1s,1s,\n", ":2: memory: '' is not a size"),
    ("time,duration,memory\n1s,1s,1GiB\n2026-01-01,1s,1GiB\n", ":3: time '2026-01-01': dates"),
    ("time,duration,memory\n2026-13-01,1s,1GiB\n", ":2: time '2026-13-01' is no date"),
    ("time,duration,memory\n1969-01-01,1s,1GiB\n", ":2: time '1969-01-01' is no date"),
    ("time_s,duration_s,memory\n-1,1,1GiB\n", ":2: time_s is '-1'"),
    ("time_s,duration_s,memory\n1,inf,1GiB\n", ":2: duration_s is 'inf'"),
    ("time_s,duration_s,memory\n9223372036,9223372036,1GiB\n", "leave 64 bits"),
    ("time_s,duration_s,memory_bytes\n1,1,x\n", ":2: memory_bytes is 'x'"),
    ("time_s,duration_s,memory,cores\n1,1,1GiB,-1\n", ":2: cores is '-1'"),
    ("time_s,duration,running_for,memory\n1,1s,1s,1GiB\n", "both a duration and running_for"),
    ('time_s,duration_s,memory\n1,1,"1GiB\n', "not CSV"),
    ("time_s,duration_s,memory,tenant\n1,1,1GiB,a\x07b\n", ":2: tenant holds a character"),
])
def test_faults_of_a_csv_name_the_line(tmp_path: Path, text: str, words: str,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "day.csv", tmp_path / "out.parquet"
    path.write_text(text)
    assert main(["import", "arrivals", str(path), "-o", str(out)]) == 3
    assert words in capsys.readouterr().err
    assert not out.exists()


# ---- the Azure record -----------------------------------------------------------------------


def azure_folder(folder: Path, **changes: str) -> Path:
    """A record of five guests from second 900 to 2100; bins begin at 0, 300, 600 and 1200 s."""
    files = {
        "v1.x.txt": "900 a,a,|,b,|\n1200 \n1500 b,|,a,|\n",
        "v1.x.c2100.txt": "900 U1,U2,|,C3,|\n1200 \n1500 U0,|,C2,|\n",
        "flav_map.txt": "1,0.75 a\n4,7 b\n",
        "v1.interval_map.txt": "0 0\n300 1\n600 2\n900 2\n1200 3\n1500 3\n",
    } | {name.replace("__", "."): text for name, text in changes.items()}
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_the_azure_record_gives_batches_flavours_and_middles_of_bins(tmp_path: Path) -> None:
    table = imported(azure_folder(tmp_path / "azure"), tmp_path)
    # Two batches a line, at a quarter and three quarters of its 300 s.
    assert (table.time_ns / SECOND).tolist() == [975, 975, 1125, 1575, 1725]
    assert table.tenant.tolist() == [0, 0, 1, 2, 3]
    # Bin 1 is [300, 600), bin 2 [600, 1200); the last guest that ended did so before 2100.
    assert (table.duration_ns / SECOND).tolist() == [450, 862.5, -1e-9, 150, -1e-9]
    assert (table.censored_ns[[2, 4]] / SECOND).tolist() == [975, 375]
    assert table.memory_bytes.tolist() == [768 * MIB, 768 * MIB, 7 * GIB, 7 * GIB, 768 * MIB]
    assert table.flavours == ("1vcpu-0.75gib", "4vcpu-7gib")
    assert (table.time_ns + np.maximum(table.duration_ns, table.censored_ns)).max() \
        <= 2100 * SECOND


def test_lines_that_are_missing_are_told(tmp_path: Path) -> None:
    folder = azure_folder(tmp_path / "azure", v1__x__txt="900 a,|\n1500 b,|\n",
                          v1__x__c2100__txt="900 U1,|\n1500 U0,|\n")
    report = import_arrivals(folder / "v1.x.txt", out=tmp_path / "o.parquet",
                             format_name="azure2017")
    assert report.notes[0] == "1 line(s) of 300 s are missing between the first and the last"


@pytest.mark.parametrize(("changes", "words"), [
    ({"v1__x__txt": "900 a,q,|,b,|\n1200 \n1500 b,|,a,|\n"}, "v1.x.txt:1: no flavour 'q'"),
    ({"v1__x__c2100__txt": "900 U1,U2,|,C3,|\n1200 \n1500 U9,|,C2,|\n"},
     "v1.x.c2100.txt:3: 'U9' is no duration"),
    ({"v1__x__c2100__txt": "900 U1,|,C3,|\n1200 \n1500 U0,|,C2,|\n"},
     "v1.x.c2100.txt:1: 4 items for 5"),
    ({"v1__x__c2100__txt": "900 U1,U2,|,C3,|\n1200 \n"}, "no line for line 3"),
    ({"v1__x__txt": "900 a,a,|,b,|\n1200 \n"}, "v1.x.c2100.txt:3: a line more"),
    ({"v1__x__txt": "900 a,a,|,b,|\n1200 \n1400 b,|,a,|\n",
      "v1__x__c2100__txt": "900 U1,U2,|,C3,|\n1200 \n1400 U0,|,C2,|\n"},
     "v1.x.txt:3: second 1400 after 1200"),
    ({"v1__x__txt": "900 a,a,|,b\n1200 \n1500 b,|,a,|\n",
      "v1__x__c2100__txt": "900 U1,U2,|,C3\n1200 \n1500 U0,|,C2,|\n"},
     "v1.x.txt:1: the line does not end with the end of a batch"),
    ({"v1__x__txt": "900 |,a,a,|\n1200 \n1500 b,|,a,|\n",
      "v1__x__c2100__txt": "900 |,U1,U1,|\n1200 \n1500 U0,|,C2,|\n"}, "a batch of no guests"),
    ({"v1__x__txt": "900 a,a,|,b,|\n1200 \n1800 b,|,a,|\n"}, "second '1500' where line 3"),
    ({"v1__x__txt": "nine a,|\n", "v1__x__c2100__txt": "nine U1,|\n"}, "'nine' is no second"),
    ({"v1__x__c2100__txt": "900 U1,U2,|,C3,|\n1200 \n1500 U3,|,C2,|\n"},
     "has bin 3, longer than to the end"),
    ({"flav_map__txt": "1,0.75 a\n4,7 a\n"}, "flav_map.txt:2: flavour 'a' is taken"),
    ({"flav_map__txt": "4,0 a\n"}, "no memory"),
    ({"flav_map__txt": "a lot\n"}, "flav_map.txt:1: 'a lot' is not"),
    ({"v1__interval_map__txt": "0 0\n300 2\n"}, "interval_map.txt:2: seconds or bins"),
    ({"v1__interval_map__txt": ""}, "no bin begins at second 0"),
    ({"v1__interval_map__txt": "x\n"}, "interval_map.txt:1: 'x' is not"),
    ({"v1__y__txt": "", "v1__y__c9__txt": ""}, "several records: v1.x.txt, v1.y.txt"),
])
def test_damage_to_the_azure_record_names_file_and_line(
        tmp_path: Path, changes: dict[str, str], words: str,
        capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = azure_folder(tmp_path / "azure", **changes), tmp_path / "out.parquet"
    assert main(["import", "arrivals", "--from", "azure2017", str(folder), "-o", str(out)]) == 3
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_a_record_is_refused(tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.parquet"
    (tmp_path / "empty").mkdir()
    assert main(["import", "arrivals", str(tmp_path / "empty"), "-o", str(out)]) == 3
    assert "no arrivals X.txt with durations" in capsys.readouterr().err
    assert main(["import", "arrivals", "--from", "azure2017", str(tmp_path / "no" / "where"),
                 "-o", str(out)]) == 3
    assert "No such file" in capsys.readouterr().err


@pytest.mark.skipif(not AZURE.is_dir(),
                    reason="the Azure 2017 record is not there; name it in PLANNER_AZURE2017")
def test_the_whole_azure_record_is_read(tmp_path: Path) -> None:
    began = time.process_time()
    table = imported(AZURE, tmp_path, format_name="azure2017")
    assert time.process_time() - began < 5
    assert (len(table), table.n_batches) == (410_276, 82_946)
    assert int(table.is_censored.sum()) == 23_311
    assert table.warnings == ()
    end_ns = 2_591_400 * SECOND
    assert (table.time_ns[0] // SECOND // 300 * 300, table.time_ns[-1] // SECOND // 300 * 300) \
        == (2_100_000, 2_591_100)
    # Nobody who ended did so after the record; who did not was there to its end.
    ends_ns = table.time_ns + np.maximum(table.duration_ns, table.censored_ns)
    assert ends_ns.max() == end_ns
    assert (ends_ns[table.is_censored] == end_ns).all()
    # `awk -F'[ ,]' '{for(i=2;i<=NF;i++) if($i=="o") n++} END{print n}' v1.test.txt`
    assert int((table.flavour == table.flavours.index("8vcpu-56gib")).sum()) == 15_018
    assert read_arrivals(tmp_path / "out.parquet").digest == table.digest


# ---- OpenDC ---------------------------------------------------------------------------------


def opendc(path: Path, **columns_: Any) -> Path:
    pq.write_table(pa.table(columns_), path)
    return path


def opendc_tasks(path: Path, **changes: Any) -> Path:
    """Three tasks after the fourth version of OpenDC's schema."""
    return opendc(path, **({
        "id": pa.array([1, 2, 3], pa.int32()), "name": ["a", "b", "c"],
        "submission_time": pa.array([1_700_000_060_000, 1_700_000_000_000, 1_700_000_001_500],
                                    pa.timestamp("ms", "UTC")),
        "duration": pa.array([60_000, 1, 500], pa.int64()),
        "cpu_count": pa.array([1, 2, 2], pa.int32()), "cpu_capacity": [2400.0, 2400.0, 2400.0],
        "mem_capacity": pa.array([1024, 2048, 2048], pa.int64()),
        "host": ["h", "h", None]} | changes))


def test_tasks_of_opendc_are_read(tmp_path: Path) -> None:
    table = imported(opendc_tasks(tmp_path / "tasks.parquet"), tmp_path)
    assert (table.time_ns - 1_700_000_000 * SECOND).tolist() == [
        0, 3 * SECOND // 2, 60 * SECOND]
    assert table.duration_ns.tolist() == [10**6, 5 * 10**8, 60 * SECOND]
    assert table.memory_bytes.tolist() == [2 * GIB, 2 * GIB, GIB]
    assert table.flavours == ("1vcpu-1024mib", "2vcpu-2048mib")
    assert table.tenant.tolist() == [-1, -1, -1]
    assert imported(tmp_path, tmp_path, memory_unit="1MB").memory_bytes.tolist() == [
        2048 * 10**6, 2048 * 10**6, 1024 * 10**6]


@pytest.mark.parametrize("old", [
    {"id": ["1"], "submissionTime": pa.array([5], pa.timestamp("us")),
     "duration": pa.array([7], pa.int64()), "maxCores": pa.array([2], pa.int32()),
     "requiredMemory": pa.array([1024], pa.int64())},
    {"id": ["1"], "start_time": pa.array([5000], pa.timestamp("ns")),
     "stop_time": pa.array([7_005_000], pa.timestamp("ns")),
     "cpu_count": pa.array([2], pa.int64()), "mem_capacity": pa.array([1024.0])},
], ids=["2.0", "start and stop"])
def test_older_schemas_of_opendc_are_read(tmp_path: Path, old: dict[str, Any]) -> None:
    table = imported(opendc(tmp_path / "meta.parquet", **old), tmp_path)
    assert (table.time_ns[0], table.duration_ns[0]) == (5000, 7 * 10**6)
    assert (table.memory_bytes[0], table.cores[0]) == (GIB, 2)


def test_tasks_without_memory_or_time_are_left_out_and_counted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = opendc_tasks(tmp_path / "t.parquet", duration=pa.array([60_000, 0, 500], pa.int64()),
                        mem_capacity=pa.array([1024, 2048, 0], pa.int64()))
    assert main(["import", "arrivals", str(path), "--json", "-o", str(tmp_path / "o")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_arrivals"] == 1
    assert document["skipped"] == {"task that takes no time": 1, "task without memory": 1}


@pytest.mark.parametrize(("changes", "words"), [
    ({"duration": pa.array([1, -1, 1], pa.int64())}, "row 1: duration -1000000 is negative"),
    ({"duration": pa.array([1, None, 1], pa.int64())}, "row 1: duration is empty"),
    ({"duration": pa.array([1, 2**62, 1], pa.int64())}, "duration holds times beyond 64 bits"),
    ({"duration": ["1", "2", "3"]}, "duration is string, expected a time"),
    ({"mem_capacity": ["1", "2", "3"]}, "mem_capacity is string, expected a number"),
    ({"mem_capacity": [1.0, float("nan"), 1.0]}, "row 1: mem_capacity is nan"),
    ({"mem_capacity": [1e12, 1.0, 1.0]}, "row 0: memory 1e+12 would be more than"),
    ({"mem_capacity": [1.0, 1e305, 1.0]}, "row 1: memory 1e+305 would be more than"),
    ({"cpu_count": [1.0, 1e300, 1.0]}, "is not between 0 and"),
    ({"mem_capacity": [0, 0, 0]}, "no task has both memory and a duration"),
    ({"submission_time": pa.array([-1, 1, 1], pa.int64())}, "submission time -1000000 is"),
])
def test_faults_of_tasks_are_named(tmp_path: Path, changes: dict[str, Any], words: str,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    path, out = opendc_tasks(tmp_path / "tasks.parquet", **changes), tmp_path / "out.parquet"
    assert main(["import", "arrivals", str(path), "-o", str(out)]) == 3
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_fragments_are_told_from_tasks(tmp_path: Path) -> None:
    path = opendc(tmp_path / "fragments.parquet", id=[1], duration=[1], cpu_usage=[0.5])
    with pytest.raises(DataError, match="no column submission_time or submissionTime"):
        imported(path, tmp_path)


# ---- the shipped table, and the command -----------------------------------------------------


def test_the_shipped_day_is_what_its_script_makes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "scenarios" / "tables"
    runpy.run_path(str(folder / "make_day.py"), run_name="__main__")
    text = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    out = tmp_path / "day.parquet"
    assert main(["import", "arrivals", "--from", "csv", "-", "-o", str(out)]) == 0
    shipped, made = read_arrivals(folder / "day.parquet"), read_arrivals(out)
    assert made.digest == shipped.digest
    assert made.provenance == shipped.provenance
    assert shipped.warnings == ()
    assert 300 < len(shipped) < 1000
    assert shipped.n_batches < len(shipped) / 3
    assert 0 < shipped.is_censored.sum() < len(shipped) / 4


def test_the_command_keeps_what_is_there_and_refuses_what_it_does_not_know(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "day.csv", tmp_path / "out.parquet"
    path.write_text(CSV)
    out.write_text("mine")
    assert main(["import", "arrivals", str(path), "-o", str(out)]) == 2
    assert out.read_text() == "mine"
    assert main(["import", "arrivals", str(path), "-o", str(out), "--from", "gwf"]) == 2
    assert "use auto, azure2017, opendc, csv" in capsys.readouterr().err
    assert main(["import", "arrivals", str(path), "-o", str(out), "--force",
                 "--memory-unit", "M"]) == 2
    assert main(["import", "arrivals", str(path), "-o", str(out), "--force",
                 "--memory-unit", "0B"]) == 2
    assert out.read_text() == "mine"
    assert main(["import", "arrivals", str(path), "-o", str(out), "--force"]) == 0
    captured = capsys.readouterr()
    assert "3 arrivals in 1 batches over 10.0 s, 1 of them still running" in captured.out
    assert main(["import", "arrivals", str(tmp_path / "none.csv"), "-o", str(tmp_path / "x")]) == 3


def test_every_command_of_the_documentation_works(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "importing.md").read_text()
    (section,) = [part for part in text.split("\n## ") if part.startswith("Arrivals")]
    commands = [line.split() for block in section.split("```sh\n")[1:]
                for line in block.partition("```")[0].splitlines() if line.startswith("planner ")]
    monkeypatch.chdir(tmp_path)
    azure_folder(tmp_path / "azure2017-arrivals")
    (tmp_path / "workload").mkdir()
    opendc_tasks(tmp_path / "workload" / "tasks.parquet")
    (csv_text,) = [block.partition("```")[0] for block in section.split("```csv\n")[1:]]
    (tmp_path / "day.csv").write_text(csv_text)
    for words in commands:
        assert main(words[1:]) == 0, " ".join(words)
        assert len(read_arrivals(Path(words[words.index("-o") + 1]))) >= 3
    assert len(commands) == 3


# ---- whatever comes in ----------------------------------------------------------------------


def survives(path: Path, folder: Path, **options: Any) -> None:
    """An import gives a table that reads back, or an error of ours and no file."""
    out = folder / "out.parquet"
    out.unlink(missing_ok=True)
    try:
        table = import_arrivals(path, out=out, **options).table
    except (UsageError, DataError):
        assert not out.exists()
    else:
        assert read_arrivals(out).digest == table.digest


FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def changed(text: str, start: int, length: int, put: str) -> str:
    start %= len(text) + 1
    return text[:start] + put + text[start + length:]


@settings(max_examples=n_examples(120), **FUZZ)
@given(start=st.integers(0, 400), length=st.integers(0, 40),
       put=st.one_of(st.text(max_size=12), st.sampled_from(
           ["\n", ",", '"', "9" * 30, "1e308", "nan", "-", "2026-01-01", "\x00", "\ud800"])))
def test_any_csv_gives_a_table_or_an_error(tmp_path: Path, start: int, length: int, put: str
                                           ) -> None:
    path = tmp_path / "day.csv"
    path.write_bytes(changed(CSV, start, length, put).encode("utf-8", "surrogatepass"))
    survives(path, tmp_path)


@settings(max_examples=n_examples(120), **FUZZ)
@given(name=st.sampled_from(["v1.x.txt", "v1.x.c2100.txt", "flav_map.txt",
                             "v1.interval_map.txt"]),
       start=st.integers(0, 80), length=st.integers(0, 20),
       put=st.one_of(st.text(max_size=8), st.sampled_from(
           ["|,", "\n", "C3,", "U0,", "a,", " ", "9" * 20, ",", "0,1 c\n", "\x00"])))
def test_any_azure_record_gives_a_table_or_an_error(
        tmp_path: Path, name: str, start: int, length: int, put: str) -> None:
    folder = azure_folder(tmp_path / "azure")
    path = folder / name
    path.write_text(changed(path.read_text(), start, length, put))
    survives(folder, tmp_path, format_name="azure2017")


@settings(max_examples=n_examples(100), **FUZZ)
@given(data=st.data())
def test_any_parquet_gives_a_table_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = opendc_tasks(tmp_path / "whole.parquet").read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    other = bytes([whole[position] ^ data.draw(st.integers(1, 255))])
    path = tmp_path / "tasks.parquet"
    path.write_bytes(whole[:position] if cut else whole[:position] + other
                     + whole[position + 1:])
    survives(path, tmp_path, format_name="opendc")


@settings(max_examples=n_examples(60), **FUZZ)
@given(times=st.lists(st.integers(-5, 2**62), min_size=1, max_size=6), data=st.data())
def test_any_tasks_give_a_table_or_an_error(tmp_path: Path, times: list[int],
                                            data: st.DataObject) -> None:
    def column(draw: Callable[[], st.SearchStrategy[Any]]) -> list[Any]:
        return data.draw(st.lists(draw(), min_size=len(times), max_size=len(times)))

    path = opendc(
        tmp_path / "tasks.parquet",
        submission_time=pa.array(times, data.draw(st.sampled_from(
            [pa.int64(), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns")]))),
        duration=pa.array(column(lambda: st.integers(-1, 2**62)), data.draw(st.sampled_from(
            [pa.int64(), pa.duration("ms"), pa.duration("ns")]))),
        cpu_count=column(lambda: st.floats(0, 1e9)),
        mem_capacity=column(lambda: st.one_of(st.floats(), st.none())))
    survives(path, tmp_path)
