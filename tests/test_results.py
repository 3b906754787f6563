"""Results folders of other versions: read, or refused with what to do instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from planner.errors import TraceTooNewError, TraceTooOldError
from planner.metrics import HOSTS, RESULT_VERSION, SUMMARY, Recorder
from planner.results import load, save
from planner.tables import write_table
from tests.report_data import make_result


def test_a_result_of_an_older_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(make_result(), tmp_path / "old", texts={})
    n_old = SUMMARY.schema.get_field_index("saved_mean_bytes") + 1
    older = replace(SUMMARY, major=2, oldest_major=2,
                    schema=pa.schema(list(SUMMARY.schema)[:n_old]))
    write_table(path / "summary.parquet", older, make_result().summary, {})
    with pytest.raises(TraceTooOldError) as caught:
        load(path)
    assert "2.0 is older" in str(caught.value)
    assert caught.value.instead.startswith("run the scenario again")
    assert caught.value.exit_code == 3


def test_a_result_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = save(make_result(), tmp_path / "new", texts={})
    newer = replace(SUMMARY, major=RESULT_VERSION[0] + 1)
    write_table(path / "summary.parquet", newer, make_result().summary, {})
    with pytest.raises(TraceTooNewError):
        load(path)


def test_what_was_not_counted_is_null_and_what_must_be_there_is_missed() -> None:
    row = {field.name: "x" if pa.types.is_string(field.type) else 1
           for field in HOSTS.schema if not field.nullable}
    recorder = Recorder()
    recorder.add(HOSTS, row)
    assert recorder.table(HOSTS).to_pylist()[0]["huge_splits"] is None
    with pytest.raises(ValueError, match="saved_bytes"):
        recorder.add(HOSTS, {name: value for name, value in row.items() if name != "saved_bytes"})
    with pytest.raises(ValueError, match="profit"):
        recorder.add(HOSTS, {**row, "profit": 1})
