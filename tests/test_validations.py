"""validation.json: written by `planner validate live`, quoted by reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cli import main
from planner.errors import DataError
from planner.validations import (
    FORMAT_VERSION,
    KIND,
    find_validations,
    read_validation,
    write_json,
)


def document(**changes: Any) -> dict[str, Any]:
    row = {"counter": "pages_sharing", "n_samples": 3, "measured_last": 200, "model_last": 198,
           "last_error": -0.01, "error": 0.02, "bias": -0.005}
    zero = {**row, "last_error": None, "error": None}
    return {"format_version": FORMAT_VERSION, "kind": KIND, "status": "complete",
            "created": "2026-01-02T03:04:05+00:00", "host": {"kernel": "6.18.1"},
            "workload": {"description": "6 Python services"}, "timings": "calibration/a.json",
            "forecast": {"pages_sharing": row, "ksm_zero_pages": zero},
            "replay": {"pages_sharing": {**row, "last_error": 0.004}}} | changes


def test_a_validation_becomes_a_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "v.json", document())
    record = read_validation(tmp_path / "v.json")
    assert record.forecast["pages_sharing"] == (-0.01, 0.02)
    assert record.forecast["ksm_zero_pages"] == (None, None)
    assert record.sentence() == (
        "6 Python services on Linux 6.18.1: forecast at rest: pages_sharing -1.0%; replay at "
        "rest: pages_sharing +0.4%")
    write_json(tmp_path / "v.json", document(status="partial"))
    assert "(partial)" in read_validation(tmp_path / "v.json").sentence()


def test_a_folder_gives_its_validations_oldest_first(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", document(created="2026-02-01T00:00:00+00:00"))
    write_json(tmp_path / "b.json", document(created="2026-01-01T00:00:00+00:00"))
    write_json(tmp_path / "other.json", {"kind": "planner.validation.metrics"})
    (tmp_path / "broken.json").write_text("{")
    found = find_validations(tmp_path)
    assert [Path(record.path).name for record in found] == ["b.json", "a.json"]
    assert find_validations(tmp_path / "none") == ()


@pytest.mark.parametrize(("text", "said"), [
    ("{", "cannot be read"), ("[]", "no record"), ('{"kind": "x"}', "no record"),
    (json.dumps(document(format_version=99)), "format_version 99"),
    (json.dumps({"kind": KIND, "format_version": FORMAT_VERSION}), "lacks or misstates"),
    (json.dumps(document(replay=[1])), "lacks or misstates"),
])
def test_what_is_no_validation_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_validation(tmp_path / "v.json")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_json(tmp_path / "file" / "v.json", {})


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "nothing to watch"),
    (["--pid", "1", "--for", "soon"], "--for"),
    (["--pid", "1", "--for", "5s", "--every", "10s"], "--every"),
    (["--pid", "1", "--knob", "pages_to_scan=5"], "add --drive-ksm"),
    (["--pid", "1", "--drive-ksm", "--knob", "pages=5"], "no setting of ksmd"),
    (["--pid", "1", "--drive-ksm", "--knob", "pages_to_scan=many"], "not a whole number"),
    (["--pid", "1", "--within", "close"], "--within"),
])
def test_requests_that_cannot_be_are_refused_before_anything_is_touched(
        arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "live", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_timings_that_are_missing_end_with_3(tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", "live", "--pid", "1", "--timings", str(tmp_path / "none.json")])
    assert code == 3
    assert "planner calibrate" in capsys.readouterr().err
