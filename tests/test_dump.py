from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.capture.dump import Dump, DumpDecoder
from planner.capture.procfs import Vma
from planner.errors import DataError
from planner.trace import PageFlag, RegionFlag
from tests.dump_builder import DumpBuilder, name, page, vma

RW = int(RegionFlag.READ | RegionFlag.WRITE)


def decode(raw: bytes, *cuts: int) -> Dump:
    """The dump of `raw`, fed in the pieces that `cuts` make."""
    decoder = DumpDecoder("test")
    at = 0
    for cut in (*sorted(cuts), len(raw)):
        decoder.feed(raw[at:cut])
        at = cut
    return decoder.finish()


def rows(dump: Dump) -> list[tuple[int, ...]]:
    pages = dump.pages
    return [tuple(int(x) for x in row) for row in zip(
        pages.vpn, pages.hash, pages.flags, pages.frame_id, pages.numa_node, strict=True)]


def everything(dump: Dump) -> tuple[Any, ...]:
    """A dump as one comparable value."""
    rest = {f.name: getattr(dump, f.name) for f in dataclasses.fields(dump) if f.name != "pages"}
    return rows(dump), rest


def example() -> DumpBuilder:
    """Four mappings: with a long name, empty, one that changed while it was walked."""
    f = PageFlag
    return DumpBuilder(skipped={0: 512, 7: 3}, flags=6).map(
        0x10000, 0x20000,
        page(0x10000, 2**64 - 1, f.ANON | f.EXCLUSIVE, 0, 1),
        page(0x13000, 0, f.ANON | f.SWAPPED, 0, 0xFFFF),
        page(0x1F000, 3, f.ANON | f.KSM | f.YOUNG | f.WRITABLE, 2**63 + 9, 200),
        flags=RW | RegionFlag.ADVISED, text=b"anon_inode:" + b"x" * 50,
    ).map(0x30000, 0x40000, flags=RW | RegionFlag.FILE, text=b"a\xffb\n.so").map(
        0x50000, 0x90000, page(0x50000), page(0x5F000), text=b"[heap]", flags=RW,
    ).map(0x60000, 0xA0000, page(0x60000), page(0x9F000), flags=RW)


def test_a_dump_is_read_as_the_header_describes_it() -> None:
    dump = decode(example().build())
    assert dump.header.abi == (1, 0)
    assert (dump.header.key_id, dump.header.zero_hash) == ("0958525d", 0xB57E91CF4CD4465D)
    assert (dump.header.session_id, dump.header.mm_id, dump.header.pid, dump.header.flags) == (
        77, 5, 7, 6)
    assert dump.vmas == (
        Vma(0x10, 0x20, RW | RegionFlag.ADVISED, "anon_inode:" + "x" * 50),
        Vma(0x30, 0x40, RW | RegionFlag.FILE, "a\ufffdb\n.so"),
        Vma(0x50, 0x60, RW, "[heap]"),  # cut where the rest of the changed mapping begins
        Vma(0x60, 0xA0, RW, ""),
    )
    f = PageFlag
    assert rows(dump) == [
        (0x10, 2**64 - 1, f.ANON | f.EXCLUSIVE, 0, 1),
        (0x13, 0, f.ANON | f.SWAPPED, 0, -1),
        (0x1F, 3, f.ANON | f.KSM | f.YOUNG | f.WRITABLE, 2**63 + 9, -1),
        (0x50, 1, 1, 0, 0), (0x5F, 1, 1, 0, 0), (0x60, 1, 1, 0, 0), (0x9F, 1, 1, 0, 0),
    ]
    assert dump.is_complete
    assert dump.skipped == {"hugetlb": 512, "device": 3}
    assert (dump.lock_max_ns, dump.lock_total_ns, dump.n_locks) == (160_000, 400_000, 9)
    assert dump.end_ns - dump.header.start_ns == 100_000_000
    assert dump.walked_to == 1 << 47


def test_a_process_without_memory_to_list_gives_an_empty_dump() -> None:
    dump = decode(DumpBuilder(status=1, walked_to=0).build())
    assert not dump.is_complete
    assert len(dump.pages) == 0
    assert dump.vmas == ()


def test_any_cut_into_pieces_gives_the_same_dump() -> None:
    raw = example().build()
    whole = everything(decode(raw))
    for cut in range(len(raw) + 1):
        assert everything(decode(raw, cut)) == whole
    assert everything(decode(raw, *range(len(raw)))) == whole


def test_feed_tells_how_many_pages_it_completed() -> None:
    raw = example().build()
    decoder = DumpDecoder()
    assert sum(decoder.feed(raw[at:at + 7]) for at in range(0, len(raw), 7)) == 7
    assert len(decoder.finish().pages) == 7


@pytest.mark.parametrize("longer", [(32, 0, 0), (0, 32, 192 + 64), (64, 0, 32), (128, 96, 64)])
def test_a_newer_minor_is_read_and_what_it_appends_is_skipped(longer: tuple[int, int, int]
                                                             ) -> None:
    header, slot, trailer = longer
    # Whole slots, as the format demands.
    header += -(128 + header) % (32 + slot)
    trailer += -(192 + trailer) % (32 + slot)
    builder = example()
    builder.slots.insert(1 + 3, struct.pack("<24sIHH", b"?" * 24, 9, 17, 9))
    builder.abi, builder.longer = (1, 3), (header, slot, trailer)
    builder.flags |= 1 << 20
    builder.header_reserved = builder.trailer_reserved = 1
    builder.slots[-1] = page(0x9F000, 1, 1 | 1 << 25)
    dump, plain = decode(builder.build()), decode(example().build())
    assert rows(dump) == rows(plain)
    assert dump.vmas == plain.vmas
    assert dump.skipped == plain.skipped
    assert dump.header.abi == (1, 3)


@pytest.mark.parametrize(("major", "side"), [(0, "the module"), (2, "ksm-planner")])
def test_another_major_is_refused_and_says_which_side_to_upgrade(major: int, side: str) -> None:
    with pytest.raises(DataError, match=rf"ABI {major}\.5; this version reads 1\.x; upgrade "
                                        rf"{side}"):
        decode(dataclasses.replace(example(), abi=(major, 5)).build())


def test_every_dump_that_is_cut_short_is_refused() -> None:
    raw = example().build()
    for length in range(len(raw)):
        with pytest.raises(DataError, match="cut short: it has no end mark; take it again"):
            decode(raw[:length])


def test_a_cut_that_leaves_whole_slots_and_looks_like_an_end_is_seen_by_the_counts() -> None:
    builder = example()
    lost = builder.slots.pop()
    raw = dataclasses.replace(builder, off={"n_pages": 1, "n_hashed": 1}).build()
    assert lost
    with pytest.raises(DataError, match="its end says n_pages 7, it has 6"):
        decode(raw)


def replaced(index: int, slot: bytes) -> DumpBuilder:
    builder = example()
    builder.slots[index] = slot
    return builder


def without(*indices: int) -> DumpBuilder:
    builder = example()
    builder.slots = [slot for i, slot in enumerate(builder.slots) if i not in indices]
    return builder


# Slots of the example: 0 mapping, 1-3 name, 4-6 pages, 7 mapping, 8 name, 9 mapping, 10 name,
# 11-12 pages, 13 mapping, 14-15 pages.
@pytest.mark.parametrize(("builder", "message"), [
    (dataclasses.replace(example(), magic=b"PAGEHASX"), "not a page-hash dump"),
    (dataclasses.replace(example(), longer=(32, 0, 0)), "sizes of header"),
    (dataclasses.replace(example(), longer=(0, 32, 0)), "sizes of header"),
    (dataclasses.replace(example(), longer=(0, -32, 0)), "sizes of header"),
    (dataclasses.replace(example(), abi=(1, 1), longer=(8, 0, 0)), "sizes of header"),
    (dataclasses.replace(example(), abi=(1, 1), longer=(-32, 0, 0)), "sizes of header"),
    (dataclasses.replace(example(), abi=(1, 1), longer=(0, 0, 1 << 17)), "sizes of header"),
    (dataclasses.replace(example(), algorithm=2), "hash algorithm 2 of 64 bits"),
    (dataclasses.replace(example(), hash_bits=32), "hash algorithm 1 of 32 bits"),
    (dataclasses.replace(example(), page_bytes=16384), "over 16384 bytes is not known"),
    (dataclasses.replace(example(), start=0x1001), "range"),
    (dataclasses.replace(example(), start=1 << 48), "range"),
    (dataclasses.replace(example(), flags=16), "bits of the header"),
    (dataclasses.replace(example(), header_reserved=1), "bits of the header"),
    (dataclasses.replace(example(), end_magic=b"PHASHENX"), "cut short"),
    (dataclasses.replace(example(), trailer_type=1), "cut short"),
    (dataclasses.replace(example(), status=2), "status 2"),
    (dataclasses.replace(example(), trailer_reserved=1), "bits of the trailer"),
    (dataclasses.replace(example(), skipped={9: 1}), "bits of the trailer"),
    (dataclasses.replace(example(), skipped={0: 1 << 63}), "a count of skipped pages"),
    (dataclasses.replace(example(), walked_to=0x9F000), "pages beyond where it says it ends"),
    (dataclasses.replace(example(), walked_to=0xA0001), "it goes to 0xa0001"),
    (dataclasses.replace(example(), off={"n_pages": -1}), "n_pages 6, it has 7"),
    (dataclasses.replace(example(), off={"n_vmas": 1}), "n_vmas 5, it has 4"),
    (dataclasses.replace(example(), off={"n_names": 1}), "n_names 6, it has 5"),
    (dataclasses.replace(example(), off={"n_hashed": 1}), "n_hashed 7, it has 6"),
    (replaced(4, page(0x9000)), "address 0x9000 is out of order"),
    (replaced(5, page(0x10000)), "address 0x10000 is out of order"),
    (replaced(5, page(0x1F000)), "address 0x1f000 is out of order"),
    (replaced(6, page(0x20000)), "a page that is not in its mapping"),
    (replaced(6, page(0x1F800)), "a page that is not in its mapping"),
    (replaced(6, page(1 << 63)), "out of order"),
    (replaced(6, page(0x1F000, 1, 1 << 31)), "a flag that it cannot have"),
    (replaced(6, page(0x1F000, 1, 1 << 13)), "a flag that it cannot have"),
    (replaced(6, page(0x1F000, 1, 1 << 19)), "a flag that it cannot have"),
    (replaced(6, page(0x1F000, 1, 1 << 7)), "was not hashed and has a hash"),
    (replaced(6, struct.pack("<24sIHH", b"", 0, 9, 0)), "a slot of type 9"),
    (replaced(6, struct.pack("<24sIHH", b"", 0, 0, 0)), "a slot of type 0"),
    (replaced(6, struct.pack("<24sIHH", b"", 0, 4, 0)), "a slot of type 4"),
    (replaced(7, vma(0x1F000, 0x40000, n_names=1)), "out of order"),
    (replaced(7, vma(0x30000, 0x30000, n_names=1)), "a mapping 0x30000-0x30000"),
    (replaced(7, vma(0x30000, 0x40800, n_names=1)), "a mapping 0x30000-0x40800"),
    (replaced(7, vma(0x30000, 1 << 48, n_names=1)), "a mapping"),
    (replaced(7, vma(0x30000, 0x40000, 1 << 22, n_names=1)), "bits of a mapping"),
    (replaced(13, vma(0x50000, 0x60000)), "address 0x50000 is out of order"),
    (without(0, 1, 2, 3), "a page before the first mapping"),
    (without(0), "a name that belongs to no mapping"),
    (without(3), "a page where the rest of a name should be"),
    (without(8), "a mapping where the rest of a name should be"),
    (replaced(7, vma(0x30000, 0x40000)), "a name that belongs to no mapping"),
    (replaced(2, name(b"y" * 61)[0]), "the parts of a name do not belong together"),
    (replaced(2, name(b"y" * 60)[1]), "the parts of a name do not belong together"),
    (replaced(8, struct.pack("<24sIHH", b"", 0, 3, 0)), "a name of 0 bytes in 1 slots"),
    (replaced(8, struct.pack("<24sIHH", b"x" * 24, 25, 3, 0)), "a name of 25 bytes in 1 slots"),
    (replaced(8, struct.pack("<24sIHH", b"x" * 24, 5, 3, 0)), "a name is not whole"),
])
def test_a_damaged_dump_says_what_is_wrong_and_what_to_do(
    builder: DumpBuilder, message: str
) -> None:
    raw = builder.build()
    for cuts in ((), range(0, len(raw), 32)):
        with pytest.raises(DataError, match=message) as caught:
            decode(raw, *cuts)
        assert caught.value.where == "test"
        assert caught.value.instead


@st.composite
def dumps(draw: st.DrawFn) -> DumpBuilder:
    """Well-formed dumps: mappings in order with pages in them."""
    builder = DumpBuilder(start_ns=draw(st.integers(0, 2**63)), flags=draw(st.integers(0, 15)))
    at = 0
    for _ in range(draw(st.integers(0, 5))):
        at += draw(st.integers(1, 20))
        length = draw(st.integers(1, 30))
        pages = []
        for index in sorted(draw(st.sets(st.integers(0, length - 1)))):
            flags = draw(st.integers(0, 0x7FFFF)) & ~int(PageFlag.HUGETLB)
            digest = 0 if flags & 0x8380 else draw(st.integers(0, 2**64 - 1))
            pages.append(page((at + index) << 12, digest, flags, draw(st.integers(0, 2**64 - 1)),
                              draw(st.integers(0, 0xFFFF))))
        text = draw(st.binary(max_size=80).map(lambda raw: raw.replace(b"\0", b"n")))
        builder.map(at << 12, (at + length) << 12, *pages, flags=draw(st.integers(0, 0x3FFFFF)),
                    text=text)
        at += length
    return builder


@given(dumps(), st.data())
@settings(max_examples=200, deadline=None)
def test_well_formed_dumps_come_back_as_they_were_written(builder: DumpBuilder, data: Any) -> None:
    raw = builder.build()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=6))
    dump = decode(raw, *cuts)
    expected = [struct.unpack("<QQQIHH", slot) for slot in builder.slots]
    pages = [slot for slot in expected if slot[4] == 1]
    assert rows(dump) == [(a >> 12, h, f, i, n if n <= 127 else -1)
                          for a, h, i, f, _, n in pages]
    assert [(v.start_vpn << 12, v.end_vpn << 12, v.flags) for v in dump.vmas] == [
        (slot[0], slot[1], slot[3]) for slot in expected if slot[4] == 2]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damage_gives_a_clear_error_or_a_dump_that_keeps_the_rules(data: Any) -> None:
    raw = bytearray(example().build())
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["byte", "cut", "double", "swap", "noise"]))
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        if kind == "byte" and raw:
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[at:at + data.draw(st.integers(1, 64))]
        elif kind == "double":
            at -= at % 32
            raw[at:at] = raw[at:at + 32]
        elif kind == "swap":
            at -= at % 32
            raw[at:at + 64] = raw[at + 32:at + 64] + raw[at:at + 32]
        else:
            raw[at:at] = data.draw(st.binary(max_size=40))
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=3))
    dump, error = None, None
    try:
        dump = decode(bytes(raw), *cuts)
    except DataError as raised:
        error = raised
    if dump is None:
        assert error is not None
        assert error.what
        assert error.where == "test"
        assert error.instead
        return
    vpns = dump.pages.vpn.tolist()
    assert vpns == sorted(set(vpns))
    for before, after in zip(dump.vmas, dump.vmas[1:], strict=False):
        assert before.start_vpn < before.end_vpn <= after.start_vpn
    for vpn, digest, flags, _, _ in rows(dump):
        assert any(v.start_vpn <= vpn < v.end_vpn for v in dump.vmas)
        assert not digest or not flags & 0x8380
        assert not flags & PageFlag.GONE


@given(st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_noise_is_never_a_dump(noise: bytes) -> None:
    with pytest.raises(DataError):
        decode(noise)
    header = example().header()
    with pytest.raises(DataError):
        decode(header + noise)
