from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from planner import traceinfo
from planner.errors import DataError, TraceAlteredError, UsageError
from planner.trace import (
    HashInfo,
    PageColumns,
    PageFlag,
    RegionFlag,
    RegionInput,
    Trace,
    TraceWriter,
    is_ksm_compatible,
    open_trace,
)
from planner.traceinfo import trace_info

REPOSITORY = Path(__file__).resolve().parent.parent
ZERO_HASH = 0x0123_4567_89AB_CDEF
SECOND = 1_000_000_000
ADVISED = int(RegionFlag.ADVISED | RegionFlag.READ | RegionFlag.WRITE)
PLAIN = int(RegionFlag.READ | RegionFlag.WRITE)
SHARED = PLAIN | int(RegionFlag.SHARED | RegionFlag.MAYSHARE)


def generate(path: Path, seed: int = 5, n_guests: int = 5) -> Path:
    """A trace with everything in it: two mms a guest, labels on guests and regions, frames shared
    within and across guests, pages without a hash, regions that never merge, two snapshots."""
    rng = np.random.default_rng(seed)
    contents = rng.integers(1, 2**64, 300, dtype=np.uint64)
    contents[0] = ZERO_HASH
    frame_content = rng.integers(0, 300, 40)
    with TraceWriter(path, hash_info=HashInfo("xxh64-siphash24", 64, "0badcafe", ZERO_HASH),
                     provenance={"source": "generated"}) as writer:
        mms = []
        for guest in range(n_guests):
            labels = {"tenant": f"t{guest % 2}", "role": f"r{guest % 3}"}
            if guest == 1:
                del labels["role"]
            guest_id = writer.add_guest(f"g{guest}", "vm", labels, 1 << 27)
            mms += [writer.add_mm(guest_id, 10 * guest + k, "x") for k in range(2)]
        pages: dict[int, PageColumns] = {}
        for snapshot in range(2):
            writer.begin_snapshot(snapshot * 90 * SECOND)
            for mm_id in mms:
                if snapshot:
                    old = pages[mm_id]
                    hashes = old.hash.copy()
                    changed = rng.random(len(old)) < 0.1
                    changed &= old.has_hash & (old.frame_id < 0)
                    hashes[changed] = contents[rng.integers(0, 300, int(changed.sum()))]
                    pages[mm_id] = PageColumns(old.vpn, hashes, old.flags, old.frame_id,
                                               old.numa_node)
                else:
                    pages[mm_id] = some_pages(rng, contents, frame_content)
                writer.write_mm(mm_id, pages[mm_id], [
                    RegionInput(0, 200, ADVISED, "[heap]", {"content": "heap"}),
                    RegionInput(200, 300, PLAIN, "", {"content": "anon", "tenant": "ignored"}),
                    RegionInput(320, 400, SHARED, "/dev/shm/x"),
                    RegionInput(400, 450, ADVISED | int(RegionFlag.HUGETLB | RegionFlag.SHARED)),
                    RegionInput(450, 600, ADVISED, "[heap]", {"content": "heap"}),
                ])
            writer.end_snapshot(snapshot * 90 * SECOND + SECOND, skipped={}, counters={})
        return writer.finish()


def some_pages(rng: np.random.Generator, contents: npt.NDArray[np.uint64],
               frame_content: npt.NDArray[np.int64]) -> PageColumns:
    n = 500
    vpn = np.sort(rng.choice(600, n, replace=False)).astype(np.int64)
    which = (300 * rng.random(n) ** 2).astype(np.int64)
    frame = np.where(rng.random(n) < 0.15, rng.integers(0, 40, n), -1).astype(np.int32)
    which[frame >= 0] = frame_content[frame[frame >= 0]]
    kind = rng.choice([int(PageFlag.ANON), int(PageFlag.ANON | PageFlag.THP),
                       int(PageFlag.FILE), int(PageFlag.SWAPPED | PageFlag.ANON),
                       int(PageFlag.ZERO_PAGE | PageFlag.ANON), int(PageFlag.NOT_HASHED)],
                      n, p=[0.6, 0.2, 0.05, 0.05, 0.05, 0.05]).astype(np.uint32)
    frame[(kind & np.uint32(PageFlag.ANON)) == 0] = -1
    return PageColumns(vpn, contents[which], kind, frame, np.full(n, -1, np.int8))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("traces") / "generated")


def shipped_traces() -> list[Path]:
    return sorted(path.parent for path in (REPOSITORY / "traces").glob("*/index.parquet"))


def counted_pages(trace: Trace, snapshot_id: int, *, advised_only: bool = False,
                  ) -> list[tuple[dict[str, str], int, npt.NDArray[np.uint64],
                                  npt.NDArray[np.int32]]]:
    """(labels, guest, hashes, frames) of each region whose pages KSM could merge."""
    found = []
    wanted = PageFlag.ANON
    for mm in trace.mms:
        pages = trace.mm_pages(snapshot_id, mm.mm_id)
        for region in trace.mm_regions(snapshot_id, mm.mm_id):
            if not is_ksm_compatible(region.flags):
                continue
            if advised_only and not region.flags & RegionFlag.ADVISED:
                continue
            inside = (pages.vpn >= region.start_vpn) & (pages.vpn < region.end_vpn)
            inside &= pages.has_hash
            inside &= (pages.flags & np.uint32(PageFlag.ANON | PageFlag.ZERO_PAGE)) == wanted
            labels = {**region.labels, **trace.guests[mm.guest_id].labels}
            found.append((labels, mm.guest_id, pages.hash[inside], pages.frame_id[inside]))
    return found


def numpy_count(trace: Trace, key: str, snapshot_id: int, **options: bool) -> dict[str, int]:
    """The independent count: frames by (hash, label value) with np.unique."""
    parts = counted_pages(trace, snapshot_id, **options)
    value = [str(guest) if key == "guest" else labels.get(key, "\0none")
             for labels, guest, _, _ in parts]
    order = sorted(range(len(parts)), key=lambda i: (value[i] == "\0none", value[i], parts[i][1])
                   if key != "guest" else (False, "", parts[i][1]))
    hashes = np.concatenate([parts[i][2] for i in order])
    frames = np.concatenate([parts[i][3] for i in order])
    names = np.concatenate([np.full(len(parts[i][2]), value[i]) for i in order])
    first = np.unique(frames, return_index=True)[1]
    owned = frames < 0
    owned[first] = True
    hashes, names = hashes[owned], names[owned]
    zero = hashes == np.uint64(trace.hash_info.zero_hash)
    copies = np.unique(hashes[~zero], return_counts=True)[1]
    codes = np.unique(names, return_inverse=True)[1].astype(np.uint64)
    pairs = np.stack([hashes[~zero], codes[~zero]], axis=1)
    per_label = np.unique(pairs, axis=0, return_counts=True)[1]
    return {
        "n_pages": len(frames), "n_frames": len(hashes), "n_zero": int(zero.sum()),
        "n_contents": len(copies), "n_unique": int((copies == 1).sum()),
        "n_duplicates": int((copies - 1).sum()), "n_shared": int((copies > 1).sum()),
        "n_duplicates_in_label": int((per_label - 1).sum()),
        "n_shared_in_label": int((per_label > 1).sum()),
        "n_other_label": len(per_label) - len(copies),
        "n_zero_labels": len(np.unique(names[zero])),
    }


def check_against_numpy(trace: Trace, document: dict[str, Any], snapshot_id: int,
                        **options: bool) -> None:
    labels = {key for guest in trace.guests for key in guest.labels}
    labels.update(key for region in trace.regions for key in region.labels)
    assert [b["label"] for b in document["boundaries"]] == ["guest", *sorted(labels - {"guest"})]
    for boundary in document["boundaries"]:
        expected = numpy_count(trace, boundary["label"], snapshot_id, **options)
        assert {name: boundary["counts"][name] for name in expected} == expected
        assert boundary["n_duplicates_kept"] == expected["n_duplicates_in_label"]
        assert boundary["n_duplicates_lost"] == expected["n_other_label"]


@pytest.mark.parametrize("snapshot_id", [0, 1])
@pytest.mark.parametrize("advised_only", [False, True])
def test_the_document_equals_an_independent_numpy_count(generated: Path, snapshot_id: int,
                                                        advised_only: bool) -> None:
    trace = open_trace(generated)
    info = trace_info(trace, snapshot=snapshot_id, advised_only=advised_only)
    document = json.loads(json.dumps(info.to_json()))
    check_against_numpy(trace, document, snapshot_id, advised_only=advised_only)
    assert document["total"]["n_counted"] > 500
    assert document["boundaries"][0]["n_duplicates_lost"] > 0


@pytest.mark.parametrize("path", [None, *shipped_traces()], ids=lambda p: p and p.name)
def test_the_document_of_a_whole_trace_equals_an_independent_numpy_count(
        path: Path | None, generated: Path) -> None:
    trace = open_trace(path or generated)
    document = trace_info(trace).to_json()
    check_against_numpy(trace, document, len(trace.snapshots) - 1)
    assert document["total"]["n_counted"] > 0



@pytest.mark.parametrize("memory_bytes", [0, 20_000, 100_000])
def test_spilling_to_files_gives_the_same_document(
        generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        memory_bytes: int) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trace = open_trace(generated)
    in_memory = trace_info(trace)
    spilled = trace_info(trace, memory_bytes=memory_bytes)
    assert spilled.is_out_of_core
    assert not in_memory.is_out_of_core
    assert spilled.to_json() == in_memory.to_json()
    assert not list(tmp_path.iterdir())


def test_the_number_of_files_follows_the_memory(monkeypatch: pytest.MonkeyPatch,
                                                generated: Path) -> None:
    sizes: list[int] = []
    chunks = traceinfo._OutOfCore.chunks

    def spy(store: Any, runs: Any) -> Any:
        for chunk in chunks(store, runs):
            sizes.append(len(chunk.hashes))
            yield chunk

    monkeypatch.setattr(traceinfo._OutOfCore, "chunks", spy)
    trace = open_trace(generated)
    trace_info(trace, memory_bytes=60_000)
    few = sizes.copy()
    sizes.clear()
    trace_info(trace, memory_bytes=3_000)
    assert 2 <= len(few) < len(sizes)
    assert max(sizes) < max(few)


def test_pages_fall_into_one_class_each(generated: Path) -> None:
    trace = open_trace(generated)
    info = trace_info(trace)
    e = info.eligibility
    assert e.n_pages == trace.snapshots[-1].n_pages == info.total.n_pages
    assert e.n_pages == (e.n_advised + e.n_not_advised + e.n_not_anonymous + e.n_zero_page
                         + sum(e.no_hash.values()) + sum(e.incompatible.values()))
    assert set(e.incompatible) == {"shared", "hugetlb", "no_region"}
    assert set(e.no_hash) == {"swapped", "not_hashed"}
    assert e.n_advised == info.total.n_advised
    assert e.n_advised + e.n_not_advised == info.total.n_counted
    advised = trace_info(trace, advised_only=True)
    assert advised.total.n_counted == e.n_advised
    assert advised.eligibility == e


def test_each_guest_is_counted_on_its_own_and_with_the_others(generated: Path) -> None:
    trace = open_trace(generated)
    info = trace_info(trace)
    # Frames of all guests, owned by the first guest that maps them.
    seen: set[int] = set()
    frames: list[tuple[int, int, str]] = []
    for labels, guest, hashes, ids in sorted(counted_pages(trace, 1), key=lambda part: part[1]):
        for page_hash, frame in zip(hashes.tolist(), ids.tolist(), strict=True):
            if frame < 0 or frame not in seen:
                frames.append((page_hash, guest, labels["tenant"]))
            seen.add(frame)
    zero = trace.hash_info.zero_hash
    for guest_id, (name, kind, labels, sums) in enumerate(info.guests):
        own = [f for f in frames if f[1] == guest_id]
        content = [f for f in own if f[0] != zero]
        hashes = [f[0] for f in frames]
        assert (name, kind) == (f"g{guest_id}", "vm")
        assert sums.n_frames == len(own)
        assert sums.n_zero == len(own) - len(content)
        assert sums.n_unique == sum(hashes.count(f[0]) == 1 for f in content)
        assert sums.n_twins == sum(hashes.count(f[0]) > 1 for f in content)
        assert sums.n_twins_in_guest == sum(
            sum(g[:2] == f[:2] for g in own) > 1 for f in content)
        assert sums.n_twins_in_guest <= sums.n_twins_in_label["tenant"] <= sums.n_twins
        assert labels["tenant"] == f"t{guest_id % 2}"


def test_changes_are_a_share_per_minute(generated: Path) -> None:
    trace = open_trace(generated)
    n_compared = n_changed = 0
    for mm in trace.mms:
        before, after = (trace.mm_pages(s, mm.mm_id) for s in (0, 1))
        same = before.has_hash & ((before.flags & np.uint32(0b10001)) == 1)
        n_compared += int(same.sum())
        n_changed += int((same & (before.hash != after.hash)).sum())
    total = trace_info(trace).total
    assert (total.n_compared, total.n_changed) == (n_compared, n_changed)
    assert total.changed_per_minute == pytest.approx(n_changed / n_compared / 1.5)
    assert total.n_changed > 0


def test_values_of_a_boundary_add_up(generated: Path) -> None:
    info = trace_info(open_trace(generated))
    for boundary in info.boundaries:
        values = boundary.values
        assert sum(v.n_counted for v in values) == info.total.n_counted
        assert sum(v.n_frames for v in values) == boundary.counts.n_frames
        assert sum(v.n_zero for v in values) == boundary.counts.n_zero
        assert sum(v.n_duplicates_kept for v in values) == boundary.n_duplicates_kept
        assert boundary.n_duplicates_kept + boundary.n_duplicates_lost \
            == boundary.counts.n_duplicates
    roles = {b.label: [v.value for v in b.values] for b in info.boundaries}
    assert roles == {"guest": ["g0", "g1", "g2", "g3", "g4"], "content": ["anon", "heap"],
                     "role": ["r0", "r1", "r2", None], "tenant": ["t0", "t1"]}


def test_only_the_labels_asked_for_are_counted(generated: Path) -> None:
    info = trace_info(open_trace(generated), labels=["role"])
    assert [b.label for b in info.boundaries] == ["guest", "role"]
    assert list(info.total.n_twins_in_label) == ["role"]
    assert [b.label for b in trace_info(open_trace(generated), labels=[]).boundaries] == ["guest"]


def test_frames_whose_pages_disagree_have_the_first_hash() -> None:
    hashes = traceinfo._FrameHashes()
    first = np.array([1, 2, 3, 4], np.uint64)
    hashes.settle(first, np.array([7, -1, 7, 2000], np.int32))
    assert first.tolist() == [1, 2, 1, 4]
    second = np.array([9, 8, 5], np.uint64)
    hashes.settle(second, np.array([2000, -1, 7], np.int32))
    assert second.tolist() == [4, 8, 1]


def empty_trace(path: Path, *, n_snapshots: int) -> Trace:
    with TraceWriter(path, hash_info=HashInfo("xxh64-siphash24", 64, "0badcafe", ZERO_HASH),
                     provenance={}) as writer:
        writer.add_guest("g", "process", {"tenant": "t"})
        for snapshot in range(n_snapshots):
            writer.begin_snapshot(snapshot)
            writer.end_snapshot(snapshot, skipped={}, counters={})
        writer.finish()
    return open_trace(path)


def test_a_trace_without_snapshots_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no snapshot; capture it again"):
        trace_info(empty_trace(tmp_path / "t", n_snapshots=0))


@pytest.mark.parametrize("memory_bytes", [-1, 1 << 30])
def test_a_snapshot_without_pages_counts_nothing(tmp_path: Path, memory_bytes: int) -> None:
    document = trace_info(empty_trace(tmp_path / "t", n_snapshots=1),
                          memory_bytes=memory_bytes).to_json()
    assert document["total"]["n_frames"] == 0
    assert document["total"]["changed_per_minute"] is None
    assert [b["values"] for b in document["boundaries"]] == [[], []]


def test_a_snapshot_or_label_that_is_not_there_is_a_usage_error(generated: Path) -> None:
    trace = open_trace(generated)
    with pytest.raises(UsageError, match="no snapshot 2; choose 0 to 1"):
        trace_info(trace, snapshot=2)
    with pytest.raises(UsageError, match="'colour'; choose from content, role, tenant"):
        trace_info(trace, labels=["colour"])


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_snapshot_with_other_pages_than_written_is_an_error(
        generated: Path, monkeypatch: pytest.MonkeyPatch, difference: int) -> None:
    trace = open_trace(generated)
    info = trace.snapshots[-1]
    altered = type(info)(**{name: getattr(info, name) for name in info.__slots__}
                         | {"n_pages": info.n_pages + difference})
    monkeypatch.setattr(trace, "snapshots", (trace.snapshots[0], altered))
    with pytest.raises(TraceAlteredError, match="does not hold"):
        trace_info(trace)
