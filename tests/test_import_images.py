"""Imports of memory images and hash lists: exact pages, real tools, bad input."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.capture import CaptureRequest, capture
from planner.cli import main
from planner.errors import DataError, PlannerError, UsageError
from planner.importers import FORMATS
from planner.importers.avml import import_avml
from planner.importers.common import LabelSource, guest_files, load_labels
from planner.importers.elf import import_elf, import_qemu
from planner.importers.hashlist import import_hashlist, superfasthash_zeros
from planner.importers.images import import_firecracker, import_raw
from planner.importers.lime import import_lime
from planner.report.text import render_trace_info
from planner.runner import TraceStore
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageFlag, RegionFlag, Trace, open_trace
from planner.traceinfo import trace_info
from tests.fuzzing import n_examples
from tests.oracles import pagehash

KEY = bytes(range(16))
SITE_KEY = SiteKey(KEY, key_id_of(KEY), Path("site.key"))
PAGE = 4096
MIB = 1 << 20

Import = Callable[..., Any]


def page_hash(data: bytes) -> int:
    return pagehash.page_hash(data, KEY)


def page(byte: int) -> bytes:
    return bytes([byte]) * PAGE


def do_import(function: Import, *files: Path | str, labels: LabelSource | None = None,
              out: Path | None = None, force: bool = False) -> tuple[Trace, Any]:
    first = Path(str(files[0]).rpartition("=")[2])
    report = function([Path(file) for file in files], out=out or first.parent / "trace",
                      labels=labels or LabelSource(), key=SITE_KEY, force=force, progress=None)
    return open_trace(report.path), report


def pages_of(trace: Trace, mm_id: int = 0, snapshot: int = 0) -> dict[int, int]:
    columns = trace.mm_pages(snapshot, mm_id)
    return dict(zip(columns.vpn.tolist(), columns.hash.tolist(), strict=True))


def expected(content: dict[int, bytes]) -> dict[int, int]:
    return {vpn: page_hash(data) for vpn, data in content.items()}


# Writers of the formats, from their definitions.

def lime_range(first: int, data: bytes, last: int | None = None) -> bytes:
    """LiME: packed {u32 magic, u32 version, u64 s_addr, u64 e_addr inclusive, u8 reserved[8]}."""
    last = first + len(data) - 1 if last is None else last
    return struct.pack("<IIQQ8x", 0x4C694D45, 1, first, last) + data


def snappy_stream(data: bytes, *, plain_every: int = 3, chunk: int = 65536) -> bytes:
    """Snappy framing: identifier, then chunks, every third of them stored plain."""
    parts = [b"\xff\x06\x00\x00sNaPpY"]
    for index, at in enumerate(range(0, len(data), chunk)):
        piece = data[at:at + chunk]
        kind = 1 if index % plain_every == 1 else 0
        body = bytes(4) + (piece if kind else pa.Codec("snappy").compress(piece, asbytes=True))
        parts.append(b"\xfe\x03\x00\x00pad")
        parts.append(bytes([kind]) + len(body).to_bytes(3, "little") + body)
    return b"".join(parts)


def avml_range(first: int, data: bytes, **options: int) -> bytes:
    stream = snappy_stream(data, **options)
    return struct.pack("<IIQQ8x", int.from_bytes(b"AVML", "little"), 2, first,
                       first + len(data) - 1) + stream + struct.pack("<Q", len(stream))


def elf_core(loads: list[tuple[int, bytes, int]], *, note: bytes | None = b"QEMU",
             order: str = "<", bits: int = 64, physical: bool = True) -> bytes:
    """An ET_CORE file of PT_LOAD segments (address, bytes, extra memory bytes)."""
    wide = bits == 64
    notes = b"" if note is None else struct.pack(order + "III", len(note) + 1, 4, 1) \
        + (note + b"\0").ljust((len(note) + 4) // 4 * 4, b"\0") + b"desc"
    head_bytes, entry_bytes = (64, 56) if wide else (52, 32)
    n_entries = len(loads) + 1
    at = head_bytes + entry_bytes * n_entries
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), 4, 62, 1, 0,
                         head_bytes, 0, 0, head_bytes, entry_bytes, n_entries, 0, 0, 0)

    def entry(kind: int, offset: int, address: int, n_bytes: int, extra: int) -> bytes:
        virtual, real = (0, address) if physical else (address, 0)
        if wide:
            return struct.pack(order + "IIQQQQQQ", kind, 6, offset, virtual, real, n_bytes,
                               n_bytes + extra, 0)
        return struct.pack(order + "IIIIIIII", kind, offset, virtual, real, n_bytes,
                           n_bytes + extra, 6, 0)

    table, body = entry(4, at, 0, len(notes), 0), notes
    for address, data, extra in loads:
        table += entry(1, at + len(body), address, len(data), extra)
        body += data
    return ident + header + table + body


CONTENT = {0: page(1), 1: page(0), 2: page(3), 0x100: page(1), 0x101: page(5)}
LOW, HIGH = page(1) + page(0) + page(3), page(1) + page(5)

SAMPLES: dict[str, tuple[Import, bytes]] = {
    "qemu": (import_qemu, elf_core([(0, LOW, 0), (0x100000, HIGH, 0)])),
    "qemu-32-bit-big-endian": (import_qemu, elf_core([(0x100000, HIGH, 0), (0, LOW, 0)],
                                                     order=">", bits=32)),
    "elf": (import_elf, elf_core([(0, LOW, 0), (0x100000, HIGH, 0)], note=b"VMCOREINFO")),
    "elf-process": (import_elf, elf_core([(0, LOW, 0), (0x100000, HIGH, 8192)], note=b"CORE",
                                         physical=False)),
    "lime": (import_lime, lime_range(0, LOW) + lime_range(0x100000, HIGH)),
    "lime-unordered": (import_lime, lime_range(0x100000, HIGH) + lime_range(0, LOW)),
    "avml-1": (import_avml, lime_range(0, LOW) + lime_range(0x100000, HIGH)),
    "avml-2": (import_avml, avml_range(0x100000, HIGH, chunk=1000) + avml_range(0, LOW)),
    "avml-mixed": (import_avml, lime_range(0, LOW) + avml_range(0x100000, HIGH)),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_format_gives_the_same_pages(name: str, tmp_path: Path) -> None:
    function, raw = SAMPLES[name]
    (tmp_path / "vm1.img").write_bytes(raw)
    trace, report = do_import(function, tmp_path / "vm1.img")
    assert pages_of(trace) == expected(CONTENT)
    columns = trace.mm_pages(0, 0)
    is_zero = (columns.flags & np.uint32(PageFlag.ZERO)) != 0
    assert columns.vpn[is_zero].tolist() == [1]
    assert bool(np.all(columns.flags & np.uint32(PageFlag.ANON)))
    assert (report.n_guests, report.n_snapshots, report.n_pages) == (1, 1, 5)
    assert [guest.name for guest in trace.guests] == ["vm1"]
    regions = [(r.start_vpn, r.end_vpn) for r in trace.mm_regions(0, 0)]
    extra = 2 if name == "elf-process" else 0
    assert regions == [(0, 3), (0x100, 0x102 + extra)]
    assert all(r.flags & RegionFlag.ADVISED for r in trace.regions)
    assert trace.guests[0].kind == ("process" if extra else "vm")
    assert trace.guests[0].memory_bytes == (None if extra else 5 * PAGE)
    assert report.skipped.get("pages_not_in_file", 0) == extra
    assert trace.provenance["source"] == "import"
    assert trace.provenance["files"] == {"vm1.img": len(raw)}


@pytest.mark.parametrize("function", [import_raw, import_firecracker])
def test_raw_memory_is_hashed_page_by_page(function: Import, tmp_path: Path) -> None:
    (tmp_path / "a.mem").write_bytes(LOW + HIGH)
    trace, _ = do_import(function, tmp_path / "a.mem")
    assert pages_of(trace) == expected(dict(enumerate(
        [page(1), page(0), page(3), page(1), page(5)])))


def test_holes_of_a_sparse_file_are_absent_and_zero_data_is_present(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as stream:
        stream.write(page(7))
        stream.seek(3 * MIB)
        stream.write(page(0) + page(8))
        stream.truncate(1 << 40)
    started = time.monotonic()
    trace, report = do_import(import_raw, path)
    assert time.monotonic() - started < 20  # a TiB of holes is not read
    present = pages_of(trace)
    content = {0: page(7), 768: page(0), 769: page(8)}
    # A file system may allocate in blocks larger than a page; what it adds is zero.
    assert expected(content).items() <= present.items()
    zero = page_hash(page(0))
    assert all(present[vpn] == zero for vpn in present.keys() - content.keys())
    assert len(present) < 1000
    assert report.skipped["hole_pages"] == (1 << 28) - len(present)
    assert trace.guests[0].memory_bytes == 1 << 40


def test_many_small_pieces_of_a_fragmented_file_are_all_found(tmp_path: Path) -> None:
    path = tmp_path / "pieces.raw"
    wanted = {}
    with path.open("wb") as stream:
        for index in range(3000):
            vpn = index * 3 + index // 700
            data = struct.pack("<Q", index + 1) * 512
            stream.seek(vpn * PAGE)
            stream.write(data)
            wanted[vpn] = page_hash(data)
    trace, report = do_import(import_raw, path)
    found = pages_of(trace)
    zero = page_hash(page(0))
    assert wanted.items() <= found.items()
    assert all(found[vpn] == zero for vpn in found.keys() - wanted.keys())
    assert report.skipped["hole_pages"] + len(found) == path.stat().st_size // PAGE


def test_a_segment_at_an_odd_offset_of_a_sparse_core_keeps_every_byte(tmp_path: Path) -> None:
    data = bytearray(2 * MIB)
    data[MIB - 5:MIB + 5] = b"0123456789"
    raw = elf_core([(0x100000, bytes(data), 0)])
    path = tmp_path / "a.elf"
    with path.open("wb") as stream:
        for at in range(0, len(raw), PAGE):
            piece = raw[at:at + PAGE]
            if any(piece):
                stream.seek(at)
                stream.write(piece)
        stream.truncate(len(raw))
    trace, _ = do_import(import_qemu, path)
    found = pages_of(trace)
    whole = {0x100 + i: page_hash(bytes(data[i * PAGE:(i + 1) * PAGE])) for i in range(512)}
    zero = page_hash(page(0))
    assert found.items() <= whole.items()
    assert {vpn: h for vpn, h in whole.items() if h != zero}.items() <= found.items()


def test_ranges_that_overlap_or_end_within_a_page_lose_only_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.lime").write_bytes(
        lime_range(0x1000, page(1) + b"x" * 100) + lime_range(0x2800, b"y" * 0x800 + page(2))
        + lime_range(0x3000, page(9) + page(4)))
    trace, report = do_import(import_lime, tmp_path / "a.lime")
    assert pages_of(trace) == expected({1: page(1), 3: page(2), 4: page(4)})
    assert report.skipped == {"partial_pages": 2, "repeated_pages": 1}


def test_large_compressed_ranges_cross_buffers(tmp_path: Path) -> None:
    data = np.random.default_rng(3).integers(0, 4, 5 * MIB, dtype=np.uint8).tobytes()
    (tmp_path / "a.avml").write_bytes(avml_range(0x1800, data))
    trace, report = do_import(import_avml, tmp_path / "a.avml")
    n_pages = (0x1800 + len(data)) // PAGE - 2
    assert pages_of(trace) == expected({
        2 + i: data[0x800 + i * PAGE:0x800 + (i + 1) * PAGE] for i in range(n_pages)})
    assert report.skipped == {"partial_pages": 2}


def test_files_become_guests_and_snapshots(tmp_path: Path) -> None:
    for index, name in enumerate(("a@3.raw", "b@3.raw", "a@7.raw", "c@7.raw")):
        (tmp_path / name).write_bytes(page(index + 1))
        os.utime(tmp_path / name, ns=(0, 10**18 + index))
    trace, _ = do_import(import_raw, *(tmp_path / name for name in
                                       ("c@7.raw", "a@7.raw", "b@3.raw", "a@3.raw")))
    assert [(s.start_ns, s.end_ns) for s in trace.snapshots] == \
        [(10**18, 10**18 + 1), (10**18 + 2, 10**18 + 3)]
    found = {(snapshot, trace.guests[trace.mms[mm].guest_id].name): pages_of(trace, mm, snapshot)
             for snapshot in (0, 1) for mm in trace.mm_ids(snapshot)}
    assert found == {(0, "a"): expected({0: page(1)}), (0, "b"): expected({0: page(2)}),
                     (1, "a"): expected({0: page(3)}), (1, "c"): expected({0: page(4)})}


def test_named_files_of_one_time_are_a_minute_apart(tmp_path: Path) -> None:
    for index in (1, 2):
        (tmp_path / f"{index}.raw").write_bytes(page(index))
        os.utime(tmp_path / f"{index}.raw", ns=(0, 10**18))
    trace, report = do_import(import_raw, f"web={tmp_path / '2.raw'}", f"web={tmp_path / '1.raw'}")
    assert [guest.name for guest in trace.guests] == ["web"]
    assert trace.span_ns == 60 * 10**9
    assert pages_of(trace, 0, 0) == expected({0: page(2)})
    assert trace.provenance["snapshot_times"] == "assumed"
    assert any("60 s apart" in note for note in report.notes)


def test_two_plain_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both guest 'a'"):
        guest_files([tmp_path / "a.raw", tmp_path / "x" / "a.raw"])


@pytest.mark.parametrize("name", ["..", "a\\b", " ", "x" * 300])
def test_names_that_are_paths_or_nothing_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no guest name"):
        guest_files([Path(f"{name}={tmp_path}")])


def test_control_characters_do_not_reach_a_guest_name() -> None:
    assert guest_files([Path("a\x1b[31m\n.raw")])[0].name == "a?[31m?"


def test_labels_come_from_the_csv_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,tenant,image\na,t1,deb\nz,t2,\n")
    (tmp_path / "a.raw").write_bytes(page(1))
    labels = load_labels(tmp_path / "labels.csv", ["site=x", "tenant=other"])
    trace, report = do_import(import_raw, tmp_path / "a.raw", labels=labels)
    assert dict(trace.guests[0].labels) == {"site": "x", "tenant": "t1", "image": "deb"}
    assert any("no imported guest: z" in note for note in report.notes)


@pytest.mark.parametrize("pair", ["tenant", "=a", " =a", "tenant=\udcff"])
def test_a_label_that_is_no_pair_or_no_text_is_refused(pair: str) -> None:
    with pytest.raises(UsageError, match="not KEY=VALUE"):
        load_labels(None, [pair])


def test_file_names_that_are_not_utf_8_and_strange_times_do_not_matter(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.raw"))
    path.write_bytes(page(1))
    os.utime(path, (0, -5))
    trace, _ = do_import(import_raw, path)
    assert [guest.name for guest in trace.guests] == ["a?"]
    assert trace.snapshots[0].start_ns == 0


@pytest.mark.parametrize(("text", "line", "what"), [
    (b"", "", "empty"), (b"vm,tenant\n", ":1", "no column name"),
    (b"name,a,a\n", ":1", "two have one name"), (b"name,a\nx,1,2\n", ":2", "3 cells"),
    (b"name,a\nx,1\nx,2\n", ":3", "second row"), (b"name,a\n\nx,\xff\n", ":3", "UTF-8"),
    (b'name,a\n"x"y,1\n', ":2", "not CSV"), (b"name,a\n,1\n", ":2", "empty"),
    (b"name,a\nx," + b"y" * 200_000 + b"\n", ":2", "not CSV"),
])
def test_a_bad_labels_file_is_an_error_with_its_line(text: bytes, line: str, what: str,
                                                     tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        load_labels(path, ())
    assert caught.value.where == f"{path}{line}"


def test_superfasthash_of_zeros_agrees_with_its_definition() -> None:
    def reference(data: bytes) -> int:  # Hsieh's C code, remainder-free
        value = len(data)
        for at in range(0, len(data), 4):
            low, high = struct.unpack_from("<HH", data, at)
            value = (value + low) & 0xFFFFFFFF
            value = ((value << 16) ^ ((high << 11) ^ value)) & 0xFFFFFFFF
            value = (value + (value >> 11)) & 0xFFFFFFFF
        value ^= (value << 3) & 0xFFFFFFFF
        value = (value + (value >> 5)) & 0xFFFFFFFF
        value ^= (value << 4) & 0xFFFFFFFF
        value = (value + (value >> 17)) & 0xFFFFFFFF
        value ^= (value << 25) & 0xFFFFFFFF
        return (value + (value >> 6)) & 0xFFFFFFFF

    for n_bytes in (4, 64, 4096):
        assert superfasthash_zeros(n_bytes) == reference(bytes(n_bytes))


def test_hash_lists_compare_contents_and_refuse_replay(tmp_path: Path) -> None:
    zero = superfasthash_zeros(PAGE)
    (tmp_path / "VM1.txt0").write_text(f"5\n{zero}\n4294967295\n5")
    (tmp_path / "VM1.txt1").write_bytes(b"6\r\n\r\n5\r\n")
    (tmp_path / "VM2.txt0").write_text("7\n")
    one, report = do_import(import_hashlist, tmp_path / "VM1.txt0", tmp_path / "VM2.txt0",
                            out=tmp_path / "one")
    assert list(pages_of(one).values()) == [5, zero, 4294967295, 5]
    assert one.hash_info.algorithm == "superfasthash-32"
    assert one.hash_info.bits == 32
    assert one.provenance["page_ids"] is False
    assert one.mm_pages(0, 0).flags.tolist() == [1, 9, 1, 1]
    assert not any("commonest" in note for note in report.notes)
    assert TraceStore().facts(tmp_path / "one").n_snapshots == 1
    two, _ = do_import(import_hashlist, tmp_path / "VM1.txt0", tmp_path / "VM1.txt1",
                       out=tmp_path / "two")
    assert list(pages_of(two, 0, 1).values()) == [6, 5]
    with pytest.raises(DataError, match="no page ids"):
        TraceStore().facts(tmp_path / "two")
    info = trace_info(two).to_json()
    assert info["total"]["changed_per_minute"] is None
    assert "what changed between snapshots is not known" in " ".join(
        render_trace_info(info, width=100).split())
    _, report = do_import(import_hashlist, tmp_path / "VM2.txt0", out=tmp_path / "three")
    assert any("commonest hash is 7 (1 pages)" in note for note in report.notes)


@pytest.mark.parametrize(("text", "line", "what"), [
    (b"1\n2\n-3\n", 3, "b'-' is no part"), (b"1\n0x12\n", 2, "b'x' is no part"),
    (b"1\n\n4294967296\n", 3, "4294967296 is no 32-bit"), (b"12345678901\n", 1, "11 digits"),
    (b"9" * 5_000_000, 1, "more than 64 bytes"), (b"\xff\xfe1\x00\n\x00", 1, "is no part"),
    (b"1\n2 3\n", 2, "b' ' is no part"), (b"1\n" * 3_000_000 + b"x\n", 3_000_001, "b'x'"),
])
def test_a_bad_hash_list_is_an_error_with_its_line(text: bytes, line: int, what: str,
                                                   tmp_path: Path) -> None:
    path = tmp_path / "VM1.txt0"
    path.write_bytes(text)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        do_import(import_hashlist, path)
    assert caught.value.where == f"{path}:{line}"


BAD: dict[str, tuple[Import, bytes, str]] = {
    "raw that ends within a page": (import_raw, b"x" * 5000, "4096 bytes (byte 5000)"),
    "empty": (import_raw, b"", "empty"),
    "raw that is a core": (import_raw, SAMPLES["qemu"][1], "not raw memory but an ELF file"),
    "core cut short": (import_qemu, SAMPLES["qemu"][1][:-1], "the file ends early"),
    "core without its table": (import_qemu, SAMPLES["qemu"][1][:70], "the file ends early"),
    "core of a process": (import_qemu, SAMPLES["elf-process"][1], "has no QEMU note"),
    "core that is a program": (import_elf, SAMPLES["qemu"][1][:16] + b"\x02\0"
                               + SAMPLES["qemu"][1][18:], "type 2, not a core"),
    "core of a strange class": (import_elf, b"\x7fELF\x09\x01\x01" + bytes(100), "damaged ELF"),
    "kdump": (import_qemu, b"KDUMP   " + bytes(100), "kdump-compressed"),
    "libvirt save": (import_elf, b"LibvirtQemudSave" + bytes(100), "libvirt save"),
    "core past the end of memory": (import_elf, elf_core([(2**64 - 4096, HIGH, 0)]),
                                    "passes the end of memory"),
    "core without memory": (import_elf, elf_core([]), "holds no memory"),
    "lime cut short": (import_lime, SAMPLES["lime"][1][:-1], "the file ends early"),
    "lime of a huge range": (import_lime, lime_range(0, LOW, 2**64 - 1), "the file ends early"),
    "lime turned round": (import_lime, lime_range(0x5000, LOW, 0), "a range from 0x5000 to 0x0"),
    "lime in big-endian": (import_lime, struct.pack(">IIQQ8x", 0x4C694D45, 1, 0, 4095) + page(1),
                           "not a file of LiME ranges"),
    "lime with a tail": (import_lime, SAMPLES["lime"][1] + bytes(40), "no range header"),
    "lime that is avml": (import_lime, SAMPLES["avml-2"][1], "an AVML file"),
    "avml cut short": (import_avml, SAMPLES["avml-2"][1][:-9], "the file ends early"),
    "avml of a wrong length": (import_avml, SAMPLES["avml-2"][1][:-8] + bytes(8),
                               "says that it has 0"),
    "avml of a huge range": (import_avml, struct.pack("<IIQQ8x", int.from_bytes(b"AVML", "little"),
                             2, 0, 2**64 - 1) + snappy_stream(LOW), "the file ends early"),
    "avml without a stream": (import_avml, struct.pack(
        "<IIQQ8x", int.from_bytes(b"AVML", "little"), 2, 0, 4095) + bytes(64), "no Snappy stream"),
    "avml of a page twice": (import_avml, avml_range(0, LOW) + avml_range(0, LOW), "there twice"),
}


def test_cores_made_to_cost_much_end_soon(tmp_path: Path) -> None:
    # 100,000 segments of the same bytes, and 20,000 note segments of the same 8 MiB of notes.
    path = tmp_path / "a.elf"
    for kind, n_entries, n_bytes in ((1, 100_000, 8 * MIB), (4, 20_000, 8 * MIB)):
        at = 64 + 56 * (n_entries + 1) + 64
        head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
            "<HHIQQQIHHHHHH", 4, 62, 1, 0, 128, 64, 0, 64, 56, 0xFFFF, 64, 1, 0)
        section = bytes(44) + struct.pack("<I", n_entries + 1) + bytes(16)
        table = b"".join(struct.pack("<IIQQQQQQ", kind, 6, at, index * n_bytes, 0, n_bytes,
                                     n_bytes, 0) for index in range(n_entries))
        table += struct.pack("<IIQQQQQQ", 1, 6, at, 1 << 60, 0, n_bytes, n_bytes, 0)
        note = struct.pack("<III", 0, 0, 1)
        path.write_bytes(head + section + table + note * (n_bytes // 12) + bytes(8))
        started = time.process_time()
        if kind == 1:
            with pytest.raises(DataError, match="share bytes of the file"):
                do_import(import_elf, path)
        else:
            assert do_import(import_elf, path)[1].n_pages == n_bytes // PAGE
        assert time.process_time() - started < 30


def test_the_header_writer_agrees_with_the_formats_published_bytes() -> None:
    """The example of LiME's and AVML's headers for the range 0x1000 to 0x20000."""
    data = bytes(0x20000 - 0x1000 + 1)
    ends = "0010000000000000" "0000020000000000" "0000000000000000"
    assert lime_range(0x1000, data)[:32].hex() == "454d694c01000000" + ends
    assert avml_range(0x1000, data)[:32].hex() == "41564d4c02000000" + ends


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_an_error_with_its_place(name: str, tmp_path: Path) -> None:
    function, raw, what = BAD[name]
    (tmp_path / "a.img").write_bytes(raw)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        do_import(function, tmp_path / "a.img")
    assert caught.value.where == str(tmp_path / "a.img")
    assert caught.value.instead
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img"]


def test_fifos_devices_directories_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, what in (("fifo", "a FIFO"), ("link", "a character device"), (".", "a directory"),
                       ("none", "No such file"), ("loop", "symbolic links"), ("a\0b", "name")):
        with pytest.raises(DataError, match=what):
            import_raw([Path(f"g={tmp_path}/{name}")], out=tmp_path / "trace",
                       labels=LabelSource(), key=SITE_KEY, force=False, progress=None)
    assert not (tmp_path / "trace").exists()


def test_a_trace_is_replaced_only_on_demand_and_only_by_a_whole_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.raw", tmp_path / "bad.raw"
    good.write_bytes(page(1))
    bad.write_bytes(b"x")
    first, _ = do_import(import_raw, good)
    with pytest.raises(UsageError, match="exists already"):
        do_import(import_raw, good)
    with pytest.raises(DataError, match="whole page"):
        do_import(import_raw, bad, force=True)
    assert open_trace(tmp_path / "trace").digest == first.digest
    good.write_bytes(page(2))
    second, _ = do_import(import_raw, good, force=True)
    assert second.digest != first.digest


def test_the_command_imports_and_says_what_it_left_out(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.lime").write_bytes(lime_range(0, LOW) + lime_range(0x9000, b"x" * 100))
    out = tmp_path / "trace"
    arguments = ["trace", "import", "--format", "lime", str(tmp_path / "a.lime"), "-o", str(out),
                 "--label", "tenant=a", "--key", str(tmp_path / "site.key")]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "1 guests, 1 snapshot(s), 3 page records" in shown.out
    assert "skipped: 1 partial_pages" in shown.err
    assert "advised" in shown.err
    assert dict(open_trace(out).guests[0].labels) == {"tenant": "a"}
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments[:3], "zip", *arguments[4:]]) == 2
    assert "choose one of raw, qemu" in capsys.readouterr().err


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_names_a_function(form: str) -> None:
    module, _, function = FORMATS[form].partition(":")
    assert (Path(__file__).parent.parent / (module.replace(".", "/") + ".py")).exists()
    assert f"def {function}(" in \
        (Path(__file__).parent.parent / (module.replace(".", "/") + ".py")).read_text()


def documented_commands() -> list[str]:
    """The commands of the section on memory images in docs/importing.md."""
    text = (Path(__file__).parent.parent / "docs" / "importing.md").read_text()
    section = text.split("## Memory images")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "importing.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    Path("labels.csv").write_text(re.findall(r"```csv\n(.*?)```", text, re.DOTALL)[0])
    for name in ("web1", "web2", "monday", "tuesday", "web@1", "db@1", "web@2", "db@2"):
        Path(f"{name}.raw").write_bytes(LOW)
    Path("uvm.mem").write_bytes(LOW)
    Path("web1.elf").write_bytes(SAMPLES["qemu"][1])
    Path("core.4711").write_bytes(SAMPLES["elf-process"][1])
    Path("web1.lime").write_bytes(SAMPLES["lime"][1])
    Path("web1.avml").write_bytes(SAMPLES["avml-2"][1])
    for name in ("VM1.txt0", "VM1.txt1", "VM2.txt0"):
        Path(name).write_text("1\n2\n")
    commands = documented_commands()
    assert {word for line in commands for word in line.split()} >= \
        set(FORMATS) - {"agent"}
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    named = open_trace(Path("traces/named"))
    assert ([guest.name for guest in named.guests], len(named.snapshots)) == (["web"], 2)
    assert dict(open_trace(Path("traces/raw")).guests[1].labels)["tenant"] == "b"


def test_memory_of_an_import_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with (tmp_path / "large.raw").open("wb") as stream:
        for value in range(128):
            stream.write(bytes([value]) * MIB)
    do_import(import_raw, tmp_path / "large.raw")
    tracemalloc.start()
    try:
        do_import(import_raw, tmp_path / "large.raw", force=True)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12 * MIB


# Damage: whatever the bytes, a trace or an error with a reason; never anything else.

FUZZED = {**SAMPLES, "raw": (import_raw, LOW), "hashlist": (import_hashlist, b"12\n0\n77\n")}


def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        # Headers lie at the front and between ranges: that is where damage matters most.
        at = draw(st.one_of(st.integers(0, min(len(data), 600)), st.integers(0, len(data))))
        kind = draw(st.sampled_from(("set", "word", "cut", "insert", "repeat")))
        if kind == "set":
            data[at:at + 1] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "word":
            word = draw(st.sampled_from((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)))
            data[at:at + 8] = struct.pack(draw(st.sampled_from("<>")) + "Q", word)
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        else:
            data += data[at:]
    return bytes(data[:1 << 18])


@st.composite
def damaged_samples(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(FUZZED)))
    raw = draw(st.one_of(st.just(FUZZED[name][1]), st.binary(max_size=200)))
    return name, damaged(draw, raw)


@settings(max_examples=n_examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged_samples())
def test_damaged_files_give_a_trace_or_a_reason(tmp_path: Path, sample: tuple[str, bytes]) -> None:
    name, raw = sample
    path = tmp_path / "a.img"
    path.write_bytes(raw)
    shutil.rmtree(tmp_path / "trace", ignore_errors=True)
    try:
        trace, report = do_import(FUZZED[name][0], path)
    except PlannerError as error:
        reason = error
    else:
        reason = None
    if reason is not None:
        assert str(path) in reason.where
        assert not (tmp_path / "trace").exists()
    else:
        # A byte of Snappy makes at most 22 bytes of memory, a line of a list one page.
        assert 0 < report.n_pages * (1 if name == "hashlist" else PAGE / 22) <= len(raw)
        assert len(trace.mm_pages(0, 0)) == report.n_pages


@settings(max_examples=n_examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(
    lambda text: ("name,a\n" + text).encode("utf-8", "surrogatepass"))))
def test_damaged_labels_give_labels_or_a_reason(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(raw)
    try:
        labels = load_labels(path, ())
    except DataError as error:
        place = error.where
    else:
        place = str(path)
        assert all(labels.by_name)
    assert place.startswith(str(path))


# Real tools.

class Monitor:
    """QEMU's machine protocol over a socket."""

    def __init__(self, path: Path, is_alive: Callable[[], bool]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self._stream = self._socket.makefile("rw")
        self._stream.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        for line in self._stream:
            answer = json.loads(line)
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]
        raise AssertionError("QEMU closed its monitor")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@contextmanager
def paused_guest(folder: Path, *options: str) -> Iterator[tuple[int, Monitor, bytes]]:
    """A QEMU machine of 32 MiB that never runs: (pid, monitor, content from 2 MiB on)."""
    content = np.random.default_rng(5).integers(0, 256, 8 * MIB, dtype=np.uint8)
    content[3 * MIB:5 * MIB] = 0
    content[6 * MIB:7 * MIB] = content[:MIB]
    content.tofile(folder / "fill.bin")
    process = subprocess.Popen(
        ["qemu-system-x86_64", *(options or ("-M", "pc")), "-accel", "tcg", "-m", "32M",
         "-display", "none", "-nodefaults", "-S", "-name", "tiny", "-device",
         f"loader,file={folder / 'fill.bin'},addr=0x200000,force-raw=on",
         "-qmp", f"unix:{folder / 'q'},server=on,wait=off"])
    try:
        monitor = Monitor(folder / "q", lambda: process.poll() is None)
        try:
            yield process.pid, monitor, content.tobytes()
        finally:
            monitor.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.kernel
def test_a_qemu_dump_equals_the_capture_of_the_same_paused_guest(tmp_path: Path) -> None:
    with paused_guest(tmp_path) as (pid, monitor, content):
        captured = open_trace(capture(CaptureRequest(
            key=SITE_KEY, out=tmp_path / "captured", pids=(pid,))))
        monitor("dump-guest-memory", paging=False, protocol=f"file:{tmp_path / 'tiny.elf'}")
        monitor("pmemsave", val=0, size=32 * MIB, filename=str(tmp_path / "tiny.raw"))
    ram = [r for r in captured.regions if r.flags & RegionFlag.GUEST_RAM]
    assert len(ram) == 1
    # Below 3 GiB, offset k of QEMU's RAM is guest frame k.
    host = {vpn - ram[0].start_vpn: value for vpn, value in pages_of(captured).items()
            if ram[0].start_vpn <= vpn < ram[0].end_vpn}
    zero = page_hash(page(0))
    n_frames = 32 * MIB // PAGE
    # Frames 0xa0 to 0xff (video memory, BIOS) show devices and ROM in place of the RAM behind.
    legacy = set(range(0xA0, 0x100))
    for function, name in ((import_qemu, "tiny.elf"), (import_elf, "tiny.elf"),
                           (import_raw, "tiny.raw")):
        trace, _ = do_import(function, tmp_path / name, out=tmp_path / "imported", force=True)
        dumped = pages_of(trace)
        compared = 0
        for frame in set(range(n_frames)) - legacy:
            assert dumped.get(frame, zero) == host.get(frame, zero), (name, frame)
            compared += frame in dumped and frame in host
        assert compared >= 1536  # the filled pages that are not zero
        for index in range(0, 8 * MIB // PAGE, 37):
            assert dumped[512 + index] == page_hash(content[index * PAGE:][:PAGE])


@pytest.mark.kernel
def test_a_memory_backend_file_of_qemu_equals_its_pmemsave(tmp_path: Path) -> None:
    with paused_guest(
            tmp_path, "-M", "pc,memory-backend=ram", "-object",
            f"memory-backend-file,id=ram,size=32M,share=on,mem-path={tmp_path / 'ram.mem'}",
            ) as (_, monitor, content):
        monitor("pmemsave", val=0, size=32 * MIB, filename=str(tmp_path / "tiny.raw"))
        backed, report = do_import(import_raw, tmp_path / "ram.mem", out=tmp_path / "backed")
    saved = pages_of(do_import(import_raw, tmp_path / "tiny.raw")[0])
    present = pages_of(backed)
    zero = page_hash(page(0))
    assert report.skipped["hole_pages"] > 1000
    # Frames 0xa0 to 0xff show devices and ROM in place of the RAM behind.
    for frame in set(range(32 * MIB // PAGE)) - set(range(0xA0, 0x100)):
        assert present.get(frame, zero) == saved[frame]
    assert present[512] == page_hash(content[:PAGE])


@pytest.mark.kernel
def test_a_core_of_gcore_holds_the_pages_of_the_process(tmp_path: Path) -> None:
    code = ("import mmap, random, sys, time\n"
            "m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
            "m[:65536] = random.Random(7).randbytes(65536)\n"
            "import ctypes\n"
            "print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)\n"
            "time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            start_vpn = int(process.stdout.readline()) // PAGE
            subprocess.run(["gcore", "-o", str(tmp_path / "core"), str(process.pid)], check=True,
                           capture_output=True, timeout=120)
        finally:
            process.kill()
    data = random.Random(7).randbytes(65536)
    trace, _ = do_import(import_elf, f"python={tmp_path / f'core.{process.pid}'}")
    found = pages_of(trace)
    for index in range(16):
        assert found[start_vpn + index] == page_hash(data[index * PAGE:][:PAGE])
    region = [r for r in trace.mm_regions(0, 0) if r.start_vpn <= start_vpn < r.end_vpn]
    assert region[0].flags & RegionFlag.ADVISED
    assert not region[0].flags & RegionFlag.FILE
    files = [r for r in trace.regions if r.flags & RegionFlag.FILE]
    assert files
    assert trace.guests[0].kind == "process"
    with pytest.raises(DataError, match="no QEMU note"):
        do_import(import_qemu, tmp_path / f"core.{process.pid}", out=tmp_path / "other")
