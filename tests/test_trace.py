"""The trace format: what is written is read back, and damage is told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import (
    DataError,
    NotATraceError,
    TraceAlteredError,
    TraceTooNewError,
    TraceTooOldError,
    TraceTruncatedError,
    UsageError,
)
from planner.trace import HashInfo, PageColumns, PageFlag, RegionInput, TraceWriter, open_trace
from planner.trace.reader import apply_changes
from planner.trace.schema import INDEX, PAGES, SCHEMA_VERSION
from planner.trace.writer import changes_between
from tests.trace_builder import ANON, ZERO_HASH, GuestPlan, MmPlan, build_trace, pages_of

INFO = HashInfo("xxh64-siphash24", 64, "0badcafe", ZERO_HASH)


def columns_equal(one: PageColumns, two: PageColumns) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name))
               for name in ("vpn", "hash", "flags", "frame_id", "numa_node"))


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    first = pages_of([1, 2, 0, 4], frames=[-1, 0, -1, -1])
    second = pages_of([1, 3, 0, None, 5], frames=[-1, 0, -1, -1, -1])
    return build_trace(tmp_path / "trace", [
        GuestPlan("a", {"tenant": "red"}, [MmPlan([first, second]), MmPlan([first, None])]),
        GuestPlan("b", {"tenant": "blue"}, [MmPlan([second, second])]),
    ])


def test_snapshots_read_back_as_they_were_written(trace_path: Path) -> None:
    trace = open_trace(trace_path)
    assert [guest.name for guest in trace.guests] == ["a", "b"]
    assert trace.guests[0].labels == {"tenant": "red"}
    assert trace.hash_info == INFO
    assert trace.span_ns == 60 * 10**9
    assert columns_equal(trace.mm_pages(1, 0), pages_of([1, 3, 0, None, 5],
                                                        frames=[-1, 0, -1, -1, -1]))
    assert [mm_id for mm_id, _ in trace.iter_mm_pages(0)] == [0, 1, 2]
    assert [mm_id for mm_id, _ in trace.iter_mm_pages(1)] == [0, 2]
    assert len(trace.mm_pages(1, 1)) == 0
    assert trace.mm_regions(1, 0)[0].labels == {"content": "anon"}


def test_later_snapshots_store_only_what_changed(trace_path: Path) -> None:
    trace = open_trace(trace_path)
    rows = trace.stored_rows(1, 0)
    assert rows.vpn.tolist() == [0x1001, 0x1003, 0x1004]
    assert (rows.flags & np.uint32(PageFlag.GONE)).astype(bool).tolist() == [False, True, False]
    assert len(trace.stored_rows(1, 2)) == 0
    assert [snapshot.n_stored for snapshot in trace.snapshots] == [12, 3]
    assert [snapshot.n_pages for snapshot in trace.snapshots] == [12, 8]


def test_a_page_without_a_hash_is_a_record_that_says_so(tmp_path: Path) -> None:
    pages = pages_of([7, 8, 9], flags=[ANON, ANON | PageFlag.SWAPPED, ANON | PageFlag.UNREADABLE])
    trace = open_trace(build_trace(tmp_path / "t", [GuestPlan("a", {}, [MmPlan([pages])])]))
    read = trace.mm_pages(0, 0)
    assert read.has_hash.tolist() == [True, False, False]
    assert read.hash.tolist() == [7, 0, 0]


def test_advisory_flags_alone_make_no_change_record() -> None:
    before = pages_of([1, 2])
    after = pages_of([1, 2], flags=[ANON | PageFlag.YOUNG, ANON | PageFlag.KSM])
    assert changes_between(before, after).vpn.tolist() == [0x1001]


PAGES_STRATEGY = st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=12).map(
    lambda contents: pages_of(contents))


@given(PAGES_STRATEGY, PAGES_STRATEGY)
def test_changes_applied_to_the_snapshot_before_give_the_one_after(
        before: PageColumns, after: PageColumns) -> None:
    changes = changes_between(before, after)
    assert columns_equal(apply_changes(before, changes), after)
    old = dict(zip(before.vpn.tolist(), before.hash.tolist(), strict=True))
    new = dict(zip(after.vpn.tolist(), after.hash.tolist(), strict=True))
    assert changes.vpn.tolist() == sorted(
        vpn for vpn in old.keys() | new.keys() if old.get(vpn) != new.get(vpn))


def test_an_mm_may_span_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.writer._ROW_GROUP_PAGES", 5)
    plans = [GuestPlan("a", {}, [MmPlan([pages_of(range(1, n + 1))]) for n in (3, 13, 4)])]
    trace = open_trace(build_trace(tmp_path / "t", plans))
    assert [len(pages) for _, pages in trace.iter_mm_pages(0)] == [3, 13, 4]
    assert trace.mm_pages(0, 1).hash.tolist() == list(range(1, 14))


def test_writer_refuses_what_breaks_the_format(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", hash_info=INFO, provenance={}) as writer:
        mm_id = writer.add_mm(writer.add_guest("a", "vm", {}), 1, "x")
        writer.begin_snapshot(0)
        backwards = pages_of([1, 2]).take(np.array([1, 0]))
        with pytest.raises(ValueError, match="ascend strictly"):
            writer.write_mm(mm_id, backwards, [])
        with pytest.raises(ValueError, match="overlap"):
            writer.write_mm(mm_id, pages_of([1]), [RegionInput(1, 5, 0), RegionInput(4, 6, 0)])
        with pytest.raises(ValueError, match="kind"):
            writer.add_guest("b", "toaster", {})
        writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_writer_removes_its_work_after_an_exception(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path / "t", hash_info=INFO, provenance={}) as writer:
            writer.begin_snapshot(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_finish_drops_a_snapshot_that_was_not_ended(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", hash_info=INFO, provenance={}) as writer:
        guest_id = writer.add_guest("a", "vm", {})
        one, two = writer.add_mm(guest_id, 1, "x"), writer.add_mm(guest_id, 2, "y")
        writer.begin_snapshot(0)
        writer.write_mm(one, pages_of([1]), [RegionInput(0x1000, 0x1001, 1)])
        writer.end_snapshot(1, skipped={}, counters={})
        writer.begin_snapshot(2)
        writer.write_mm(one, pages_of([2]), [RegionInput(0x1000, 0x1002, 1)])
        writer.write_mm(two, pages_of([3]), [RegionInput(0x1000, 0x1001, 1)])
        path = writer.finish("partial")
    trace = open_trace(path)
    assert trace.status == "partial"
    assert len(trace.snapshots) == 1
    assert [mm.mm_id for mm in trace.mms] == [one]
    assert [(region.end_vpn, region.end_snapshot) for region in trace.regions] == [(0x1001, 1)]


def test_an_existing_trace_is_replaced_only_when_forced(trace_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        TraceWriter(trace_path, hash_info=INFO, provenance={})
    other = tmp_path / "not-a-trace"
    other.mkdir()
    (other / "precious").write_text("data")
    with TraceWriter(other, hash_info=INFO, provenance={}, force=True) as writer, \
            pytest.raises(UsageError, match="not a trace folder"):
        writer.finish()
    assert (other / "precious").read_text() == "data"


def test_trace_files_are_private(trace_path: Path) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in trace_path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert trace_path.stat().st_mode & 0o777 == 0o700


# --- damage ---------------------------------------------------------------------------------


def rewrite_version(path: Path, version: list[int]) -> None:
    table = pq.read_table(path)
    document = json.loads(table.schema.metadata[b"planner"])
    document["schema_version"] = version
    pq.write_table(table.replace_schema_metadata({"planner": json.dumps(document)}), path)


def test_too_old_and_too_new_are_different_errors_with_a_next_step(trace_path: Path) -> None:
    rewrite_version(trace_path / "index.parquet", [0, 9])
    with pytest.raises(TraceTooOldError, match=r"0\.9 is older .*capture again"):
        open_trace(trace_path)
    rewrite_version(trace_path / "index.parquet", [2, 0])
    with pytest.raises(TraceTooNewError, match=r"2\.0 is newer .*upgrade ksm-planner"):
        open_trace(trace_path)


def test_a_newer_minor_with_more_columns_is_read(tmp_path: Path, trace_path: Path) -> None:
    file = tmp_path / "pages.parquet"
    table = pq.read_table(trace_path / "pages-0000.parquet")
    more = table.append_column("novelty", pa.array([1] * table.num_rows))
    more = more.replace_schema_metadata(table.schema.metadata)
    pq.write_table(more, file)
    rewrite_version(file, [1, 7])
    from planner.tables import read_table
    assert read_table(file, PAGES)[0].column_names == PAGES.schema.names


def test_truncated_files_are_told_apart_from_altered_ones(trace_path: Path) -> None:
    for name in ("pages-0000.parquet", "mms.parquet", "index.parquet"):
        copy = trace_path.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(trace_path, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(TraceTruncatedError) as caught:
            open_trace(copy)
        assert name in str(caught.value)
        (copy / name).write_bytes(data)
        flipped = bytearray(data)
        flipped[len(data) // 3] ^= 0x40
        (copy / name).write_bytes(flipped)
        if name != "index.parquet":  # the index has no digest outside itself: see below
            with pytest.raises(TraceAlteredError):
                open_trace(copy)


def test_a_missing_file_is_reported_as_missing(trace_path: Path) -> None:
    (trace_path / "pages-0001.parquet").unlink()
    with pytest.raises(TraceTruncatedError, match=r"pages-0001.parquet: the file is missing"):
        open_trace(trace_path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory,
                                       data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip")
    build_trace(folder / "t", [GuestPlan("a", {"role": "x"}, [MmPlan([pages_of([1, 2, 0])])])])
    file = data.draw(st.sampled_from(sorted((folder / "t").iterdir())))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        trace = open_trace(folder / "t")
    except DataError:
        return
    # Bits of index.parquet that no reader looks at (padding, writer's name) may flip unseen.
    assert file.name == "index.parquet"
    assert trace.mm_pages(0, 0).hash.tolist() == [1, 2, ZERO_HASH]


def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such trace"):
        open_trace(tmp_path / "absent")
    with pytest.raises(NotATraceError, match=r"a folder with an index\.parquet"):
        open_trace(tmp_path)
    (tmp_path / "index.parquet").write_text("hello")
    with pytest.raises(NotATraceError, match="not a Parquet file"):
        open_trace(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(NotATraceError, match="not written by planner"):
        open_trace(tmp_path)


def test_schema_version_is_bumped_on_purpose() -> None:
    # Written again by hand: changing the format means changing this line and adding a file of
    # the new version to tests/data/old-traces.
    assert SCHEMA_VERSION == (1, 0)
    assert INDEX.kind == "planner.trace.index"


def test_every_published_version_is_still_read() -> None:
    folder = Path(__file__).parent / "data" / "old-traces"
    published = sorted(folder.iterdir())
    assert [path.name for path in published] == ["1.0"]
    for path in published:
        trace = open_trace(path)
        assert [guest.name for guest in trace.guests] == ["a", "b"]
        assert [len(trace.mm_pages(1, mm.mm_id)) for mm in trace.mms] == [4, 0, 4]
        assert trace.mm_pages(1, 0).hash.tolist() == [1, 3, ZERO_HASH, 5]
