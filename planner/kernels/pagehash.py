"""The page hash: XXH64 of 4096 bytes under a secret seed, finished with SipHash-2-4.

Defined, with test vectors, in docs/page-hash.md. XXH64 follows the xxHash specification 0.1.1
(and lib/xxhash.c, `xxh64`), SipHash-2-4 the paper of Aumasson and Bernstein (and lib/siphash.c).
All arithmetic is modulo 2^64; hashes are opaque: compared and grouped, never computed with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.kernels.jit import njit

__all__ = ["ALGORITHM", "HASH_BITS", "PAGE_BYTES", "hash_pages", "key_words", "zero_hash"]

#: Name of the algorithm in a trace.
ALGORITHM = "xxh64-siphash24"
HASH_BITS = 64
PAGE_BYTES = 4096

_WORDS_PER_PAGE = PAGE_BYTES // 8
_LENGTH = np.uint64(PAGE_BYTES)

# Constants of XXH64.
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_ZERO = np.uint64(0)

# Constants of SipHash: "somepseudorandomlygeneratedbytes".
_S0 = np.uint64(0x736F6D6570736575)
_S1 = np.uint64(0x646F72616E646F6D)
_S2 = np.uint64(0x6C7967656E657261)
_S3 = np.uint64(0x7465646279746573)
_FF = np.uint64(0xFF)

# numba turns "unsigned op Python int" into signed or float arithmetic: shifts are unsigned, too.
_U1, _U7, _U12, _U18, _U31 = (np.uint64(n) for n in (1, 7, 12, 18, 31))
_U13, _U16, _U17, _U21, _U32 = (np.uint64(n) for n in (13, 16, 17, 21, 32))
_U29, _U33, _U56, _U64 = (np.uint64(n) for n in (29, 33, 56, 64))


@njit
def _rotl(x: np.uint64, n: np.uint64) -> np.uint64:
    return (x << n) | (x >> (_U64 - n))


@njit
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotl(lane + word * _P2, _U31) * _P1


@njit
def _merge(h: np.uint64, lane: np.uint64) -> np.uint64:
    return (h ^ _round(_ZERO, lane)) * _P1 + _P4


@njit
def _xxh64_page(words: npt.NDArray[np.uint64], seed: np.uint64) -> np.uint64:
    """XXH64 of one page; `words` is u64[512]. No tail: 4096 is a multiple of the 32-byte stripe."""
    a = seed + _P1 + _P2
    b = seed + _P2
    c = seed + _ZERO
    d = seed - _P1
    for i in range(0, _WORDS_PER_PAGE, 4):
        a = _round(a, words[i])
        b = _round(b, words[i + 1])
        c = _round(c, words[i + 2])
        d = _round(d, words[i + 3])
    h = _rotl(a, _U1) + _rotl(b, _U7) + _rotl(c, _U12) + _rotl(d, _U18)
    h = _merge(_merge(_merge(_merge(h, a), b), c), d)
    h += _LENGTH
    h = (h ^ (h >> _U33)) * _P2
    h = (h ^ (h >> _U29)) * _P3
    return h ^ (h >> _U32)


@njit
def _siphash_words(
    k0: np.uint64, k1: np.uint64, words: npt.NDArray[np.uint64], n_words: int
) -> np.uint64:
    """SipHash-2-4 of the little-endian bytes of `words[:n_words]` (no odd tail is ever needed)."""
    v0 = k0 ^ _S0
    v1 = k1 ^ _S1
    v2 = k0 ^ _S2
    v3 = k1 ^ _S3
    for i in range(n_words + 2):
        # Two rounds a word; then the closing word (length in the top byte); then four rounds.
        if i < n_words:
            word = words[i]
        elif i == n_words:
            word = np.uint64(n_words * 8) << _U56
        else:
            word = _ZERO
            v2 ^= _FF
        v3 ^= word
        for _ in range(2 if i <= n_words else 4):
            v0 += v1
            v1 = _rotl(v1, _U13) ^ v0
            v0 = _rotl(v0, _U32)
            v2 += v3
            v3 = _rotl(v3, _U16) ^ v2
            v0 += v3
            v3 = _rotl(v3, _U21) ^ v0
            v2 += v1
            v1 = _rotl(v1, _U17) ^ v2
            v2 = _rotl(v2, _U32)
        v0 ^= word
    return v0 ^ v1 ^ v2 ^ v3


@njit
def _hash_pages(
    words: npt.NDArray[np.uint64],
    keys: npt.NDArray[np.uint64],
    hashes: npt.NDArray[np.uint64],
    is_zero: npt.NDArray[np.bool_],
) -> None:
    """Fill `hashes` u64[n] and `is_zero` bool[n] from `words` u64[n, 512]."""
    finish = np.empty(1, np.uint64)
    for page in range(words.shape[0]):
        i = 0
        while i < _WORDS_PER_PAGE and words[page, i] == _ZERO:
            i += 1
        if i == _WORDS_PER_PAGE:
            is_zero[page] = True
            hashes[page] = keys[3]
        else:
            is_zero[page] = False
            finish[0] = _xxh64_page(words[page], keys[2])
            hashes[page] = _siphash_words(keys[0], keys[1], finish, 1)


@njit
def _derive(keys: npt.NDArray[np.uint64], label: npt.NDArray[np.uint64]) -> None:
    """From the key halves in `keys` u64[4], fill in the seed and the hash of the zero page."""
    finish = np.empty(1, np.uint64)
    keys[2] = _siphash_words(keys[0], keys[1], label, 2)
    finish[0] = _xxh64_page(np.zeros(_WORDS_PER_PAGE, np.uint64), keys[2])
    keys[3] = _siphash_words(keys[0], keys[1], finish, 1)


def key_words(key: bytes) -> npt.NDArray[np.uint64]:
    """What the kernels need of a 16-byte key, u64[4]: its halves, the seed, the zero hash.

    The seed of XXH64 is SipHash-2-4 of the 16 bytes `pagehash-v1-seed` under the key.
    Raises ValueError unless the key has 16 bytes.
    """
    if len(key) != 16:
        raise ValueError(f"a site key has 16 bytes, not {len(key)}")
    words = np.zeros(4, np.uint64)
    words[:2] = np.frombuffer(key, "<u8")
    label = np.frombuffer(b"pagehash-v1-seed", "<u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        _derive(words, label)
    return words


def zero_hash(keys: npt.NDArray[np.uint64]) -> int:
    """Hash of 4096 zero bytes under `keys` (of `key_words`)."""
    return int(keys[3])


def hash_pages(
    pages: npt.NDArray[np.uint8], keys: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Hash pages: contiguous u8[n, 4096] or u8[n * 4096] -> (hashes u64[n], is_zero bool[n]).

    `keys` comes from `key_words`. Raises ValueError when the bytes are not whole pages.
    """
    if pages.dtype != np.uint8 or pages.size % PAGE_BYTES:
        raise ValueError(f"not whole {PAGE_BYTES}-byte pages: {pages.dtype}[{pages.size}]")
    # Little-endian words on every machine; no copy where the machine is little-endian itself.
    flat = np.ascontiguousarray(pages).reshape(-1).view("<u8").astype(np.uint64, copy=False)
    words = flat.reshape(-1, _WORDS_PER_PAGE)
    hashes = np.empty(words.shape[0], np.uint64)
    is_zero = np.empty(words.shape[0], np.bool_)
    with np.errstate(over="ignore"):
        _hash_pages(words, keys, hashes, is_zero)
    return hashes, is_zero
