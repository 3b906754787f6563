from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.kernels.pagehash import hash_pages, key_words, zero_hash
from planner.sitekey import key_id_of, siphash24
from tests.oracles import pagehash as oracle

DOC = Path(__file__).parent.parent / "docs" / "page-hash.md"
PUBLISHED_KEY = bytes(range(16))

PAGES = {
    "zero": bytes(4096),
    "ones": b"\xff" * 4096,
    "first byte 1": b"\1" + bytes(4095),
    "last byte 1": bytes(4095) + b"\1",
    "i & 255": bytes(i & 255 for i in range(4096)),
    "i * i & 255": bytes(i * i & 255 for i in range(4096)),
    "i >> 4 & 255": bytes(i >> 4 & 255 for i in range(4096)),
}


def table(*header: str) -> list[list[str]]:
    """Rows of the table of the documentation that has this header."""
    lines = DOC.read_text().splitlines()
    at = lines.index("| " + " | ".join(header) + " |") + 2
    rows = []
    while at < len(lines) and lines[at].startswith("|"):
        rows.append([cell.strip().strip("`") for cell in lines[at].strip("|").split("|")])
        at += 1
    return rows


def hash_one(page: bytes, key: bytes) -> int:
    return int(hash_pages(np.frombuffer(page, np.uint8), key_words(key))[0][0])


def test_published_xxh64_vectors_hold_for_the_twin_and_the_package() -> None:
    rows = table("input", "seed", "XXH64")
    assert len(rows) == 4
    for text, seed, digest in rows:
        data = b"" if text == "(empty)" else text.encode()
        assert oracle.xxh64(data, int(seed, 16)) == int(digest, 16)
        assert xxhash.xxh64_intdigest(data, int(seed, 16)) == int(digest, 16)


def test_published_siphash_vectors_hold_for_both_implementations() -> None:
    rows = table("n", "SipHash-2-4")
    assert len(rows) == 4
    for n, digest in rows:
        assert oracle.siphash24(PUBLISHED_KEY, bytes(range(int(n)))) == int(digest, 16)
        assert siphash24(PUBLISHED_KEY, bytes(range(int(n)))) == int(digest, 16)


def test_documented_keys_have_the_documented_seed_and_id() -> None:
    rows = table("key", "seed", "key id")
    assert len(rows) == 4
    for key_text, seed, key_id in rows:
        key = bytes.fromhex(key_text)
        assert int(key_words(key)[2]) == oracle.seed_of(key) == int(seed, 16)
        assert key_id_of(key) == oracle.key_id_of(key) == key_id


def test_documented_page_vectors_hold_for_kernel_twin_and_xxhash() -> None:
    rows = table("key", "page", "XXH64(page, seed)", "hash")
    assert len(rows) == 4 * len(PAGES)
    assert {name for _, name, _, _ in rows} == set(PAGES)
    for key_text, name, inner, digest in rows:
        key, page = bytes.fromhex(key_text), PAGES[name]
        assert xxhash.xxh64_intdigest(page, oracle.seed_of(key)) == int(inner, 16)
        assert oracle.xxh64(page, oracle.seed_of(key)) == int(inner, 16)
        assert oracle.page_hash(page, key) == int(digest, 16)
        assert hash_one(page, key) == int(digest, 16)


@pytest.mark.parametrize("n_pages", [0, 1, 2, 63])
def test_kernel_equals_xxhash_and_siphash_on_random_pages(n_pages: int) -> None:
    rng = np.random.default_rng(n_pages)
    key = rng.bytes(16)
    pages = rng.integers(0, 256, (n_pages, 4096), dtype=np.uint8)
    pages[::3] = 0
    hashes, is_zero = hash_pages(pages, key_words(key))
    assert hashes.dtype == np.uint64
    assert hashes.shape == is_zero.shape == (n_pages,)
    for page, digest in zip(pages, hashes, strict=True):
        inner = xxhash.xxh64_intdigest(page.tobytes(), oracle.seed_of(key))
        assert int(digest) == oracle.siphash24(key, inner.to_bytes(8, "little"))
    assert is_zero.tolist() == [i % 3 == 0 for i in range(n_pages)]


@settings(max_examples=25, deadline=None)
@given(
    key=st.binary(min_size=16, max_size=16),
    edits=st.dictionaries(st.integers(0, 4095), st.integers(0, 255), max_size=6),
)
def test_kernel_equals_its_plain_twin(key: bytes, edits: dict[int, int]) -> None:
    page = np.zeros(4096, np.uint8)
    for at, value in edits.items():
        page[at] = value
    hashes, is_zero = hash_pages(page, key_words(key))
    assert int(hashes[0]) == oracle.page_hash(page.tobytes(), key)
    assert bool(is_zero[0]) == (not any(edits.values()))


@pytest.mark.parametrize("at", [0, 7, 8, 31, 32, 2047, 2048, 4088, 4095])
def test_one_bit_anywhere_makes_a_page_neither_zero_nor_equal(at: int) -> None:
    pages = np.zeros((2, 4096), np.uint8)
    pages[1, at] = 0x80
    hashes, is_zero = hash_pages(pages, key_words(PUBLISHED_KEY))
    assert is_zero.tolist() == [True, False]
    assert hashes[0] != hashes[1]
    assert int(hashes[0]) == zero_hash(key_words(PUBLISHED_KEY))


def test_flat_and_shaped_and_strided_input_agree() -> None:
    pages = np.random.default_rng(1).integers(0, 256, (6, 4096), dtype=np.uint8)
    keys = key_words(PUBLISHED_KEY)
    expected = hash_pages(pages, keys)[0]
    assert (hash_pages(pages.reshape(-1), keys)[0] == expected).all()
    assert (hash_pages(pages[::2], keys)[0] == expected[::2]).all()


def test_partial_pages_and_short_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole 4096-byte pages"):
        hash_pages(np.zeros(4095, np.uint8), key_words(PUBLISHED_KEY))
    with pytest.raises(ValueError, match="not whole 4096-byte pages"):
        hash_pages(np.zeros(512, np.uint64), key_words(PUBLISHED_KEY))
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        key_words(bytes(15))


def test_pages_can_be_made_to_collide_under_half_of_all_seeds_as_documented() -> None:
    mask = (1 << 64) - 1
    correction = (1 << 30) * oracle.P1 * pow(oracle.P2, -1, 1 << 64) & mask
    rng = np.random.default_rng(2)
    one = rng.bytes(4096)
    first, second = int.from_bytes(one[:8], "little"), int.from_bytes(one[32:40], "little")
    other = (
        (first ^ 1 << 63).to_bytes(8, "little")
        + one[8:32]
        + ((second - correction) & mask).to_bytes(8, "little")
        + one[40:]
    )
    assert one != other
    keys = [rng.bytes(16) for _ in range(400)]
    n_equal = sum(hash_one(one, key) == hash_one(other, key) for key in keys)
    assert 140 < n_equal < 260


def test_collision_budget_table_follows_its_formula() -> None:
    rows = table("different contents", "memory", "expected false pairs", "at least one")
    assert len(rows) == 6
    for contents, memory, expected, at_least_one in rows:
        n = 2 ** int(contents.removeprefix("2^"))
        amount, unit = memory.split()
        assert n * 4096 == int(amount) * {"GiB": 2**30, "TiB": 2**40}[unit]
        pairs = n * (n - 1) / 2**64
        assert float(expected) == pytest.approx(pairs, rel=0.02)
        share = -np.expm1(-pairs) * 100
        assert float(at_least_one.removesuffix(" %")) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("switch", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_kernel_gives_the_same_without_compiler_and_with_bounds_checks(
    switch: str, tmp_path: Path
) -> None:
    code = (
        "import numpy as np\n"
        "from planner.kernels.pagehash import hash_pages, key_words\n"
        "pages = (np.arange(3 * 4096) % 4093 % 256).astype(np.uint8)\n"
        "pages[4096:8192] = 0\n"
        "hashes, zero = hash_pages(pages, key_words(bytes(range(16))))\n"
        "print([int(h) for h in hashes], zero.tolist())\n"
    )
    # A cache of its own: numba does not tell bounds-checked code from other code there.
    env = {**os.environ, switch: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = (np.arange(3 * 4096) % 4093 % 256).astype(np.uint8)
    pages[4096:8192] = 0
    expected = [oracle.page_hash(page.tobytes(), PUBLISHED_KEY) for page in pages.reshape(3, 4096)]
    assert [int(n) for n in re.findall(r"\d+", done.stdout)] == expected
    assert "[False, True, False]" in done.stdout
