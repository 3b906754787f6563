"""Plain-Python twin of the page hash, from the specifications; imports nothing of the package."""

from __future__ import annotations

MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = (
    11400714785074694791,
    14029467366897019727,
    1609587929392839161,
    9650029242287828579,
    2870177450012600261,
)


def rotl(x: int, n: int) -> int:
    return (x << n | x >> (64 - n)) & MASK


def xxh64(data: bytes, seed: int) -> int:
    """XXH64 of any number of bytes."""

    def step(lane: int, word: int) -> int:
        return rotl((lane + word * P2) & MASK, 31) * P1 & MASK

    def word_at(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    at = 0
    if len(data) >= 32:
        lanes = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while at + 32 <= len(data):
            for i in range(4):
                lanes[i] = step(lanes[i], word_at(at + 8 * i, 8))
            at += 32
        h = sum(rotl(lane, n) for lane, n in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            h = ((h ^ step(0, lane)) * P1 + P4) & MASK
    else:
        h = (seed + P5) & MASK
    h = (h + len(data)) & MASK
    while at + 8 <= len(data):
        h = (rotl(h ^ step(0, word_at(at, 8)), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= len(data):
        h = (rotl(h ^ (word_at(at, 4) * P1 & MASK), 23) * P2 + P3) & MASK
        at += 4
    while at < len(data):
        h = rotl(h ^ (data[at] * P5 & MASK), 11) * P1 & MASK
        at += 1
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def siphash24(key: bytes, data: bytes) -> int:
    """SipHash-2-4 of any number of bytes under a 16-byte key, as a little-endian integer."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    ]

    def rounds(n: int) -> None:
        for _ in range(n):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotl(v[1], 13) ^ v[0]
            v[0] = rotl(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotl(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotl(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotl(v[1], 17) ^ v[2]
            v[2] = rotl(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def seed_of(key: bytes) -> int:
    return siphash24(key, b"pagehash-v1-seed")


def key_id_of(key: bytes) -> str:
    return f"{siphash24(key, b'pagehash-v1-kyid') & 0xFFFFFFFF:08x}"


def page_hash(page: bytes, key: bytes) -> int:
    """The page hash of 4096 bytes."""
    assert len(page) == 4096
    return siphash24(key, xxh64(page, seed_of(key)).to_bytes(8, "little"))
