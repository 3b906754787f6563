"""Counting equal page contents: how many copies there are, and who holds them.

Pages come as *segments*: runs of pages of one (label, guest), in ascending (label, guest) order.
A label is whatever a merge space may follow (tenant, image, content class, the guest itself); it
need not nest guests, since regions carry labels too. Wherever a guest has pages of two labels
"same guest" below means the same guest *under the same label*: a merge space per label would
separate the two parts of that guest, so a duplicate between them counts as `other_label`.

Method: the hashes are mixed by a bijection and partitioned by their top bits, in order, into
buckets that fit a core's L2 cache. The bits that a bucket implies make room for the page's
(label, guest) in the same word, so that sorting a bucket (numpy's vectorised sort) brings the
pages of one content together in ascending (label, guest) order, and one pass counts distinct
contents, labels and guests exactly by comparing each word with the one before. No count is kept
for a content, and all counters are 64-bit: multiplicities cannot overflow. Nothing depends on
how hashes are distributed but the balance between threads. Memory: 8 bytes a page beside the
input. With more pairs (label, guest) than a word has room for (8192) buckets are sorted in a
slower way.

A frame seen again (forked, or merged by KSM already) is not a copy: it counts in
`n_already_shared` for the segment where it is seen again, and belongs to the first page that
maps it in (label, guest) order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from planner.kernels.jit import njit

__all__ = [
    "Column",
    "DedupCounts",
    "SegmentCounts",
    "count_duplicates",
    "count_segments",
]

_I64 = npt.NDArray[np.int64]
_I32 = npt.NDArray[np.int32]
_U64 = npt.NDArray[np.uint64]

#: Buckets: 2^9, which a first-level cache can write to side by side; 2^10 above this many pages,
#: to keep a bucket near a second-level cache; more to make room for all pairs (label, guest).
_MIN_BUCKET_BITS = 9
_MAX_BUCKET_BITS = 13
_MANY_PAGES = 1 << 26
#: Bits for the group where a word of a bucket has no room for it.
_WIDE_GROUP_BITS = 32
#: Fewer pages than this are counted in one thread.
_THREAD_PAGES = 1 << 20
_MAX_THREADS = 8


class Column(IntEnum):
    """Columns of `SegmentCounts.counts`; frames unless said, and of non-zero content from NEW on.

    Each distinct frame of non-zero content is exactly one of NEW (first copy of its content),
    OTHER_LABEL (a copy is in an earlier label, none in this one so far), SAME_LABEL (a copy is in
    this label, none in this guest so far), SAME_GUEST. TWINS have another copy anywhere, and
    TWINS_IN_LABEL, TWINS_IN_GUEST another one there, whichever came first.
    """

    PAGES = 0  # pages, not frames
    ALREADY_SHARED = 1  # pages on a frame seen before
    ZERO = 2
    NEW = 3
    OTHER_LABEL = 4
    SAME_LABEL = 5
    SAME_GUEST = 6
    TWINS = 7
    TWINS_IN_LABEL = 8
    TWINS_IN_GUEST = 9


class DedupCounts(NamedTuple):
    """Sums over all pages. A content is a distinct non-zero hash, a copy a distinct frame of it.

    `n_frames` = `n_pages` - `n_already_shared` = `n_zero` + `n_contents` + `n_duplicates`.
    Per content with c copies under l labels and p pairs (label, guest): `n_duplicates` sums c - 1
    (what one merge space frees) and splits into `n_same_guest` (c - p), `n_same_label` (p - l)
    and `n_other_label` (l - 1). `n_unique` contents have one copy, `n_shared` more.

    With a merge space per label `n_shared_in_label` (content, label) pairs have two copies or
    more and `n_duplicates_in_label` frames are freed; likewise per (label, guest) `_in_guest`.
    Zero pages stand apart: `n_zero` frames of which one would stay in a single merge space, one
    a label (`n_zero_labels`) or one a pair (`n_zero_guests`); duplicates split the same way.
    """

    n_pages: int
    n_frames: int
    n_already_shared: int
    n_contents: int
    n_unique: int
    n_shared: int
    n_duplicates: int
    n_same_guest: int
    n_same_label: int
    n_other_label: int
    n_shared_in_label: int
    n_duplicates_in_label: int
    n_shared_in_guest: int
    n_duplicates_in_guest: int
    n_zero: int
    n_zero_guests: int
    n_zero_labels: int
    n_zero_duplicates: int
    n_zero_same_guest: int
    n_zero_same_label: int
    n_zero_other_label: int


class SegmentCounts(NamedTuple):
    """Counts per (label, guest) pair, in ascending order.

    `label` i32[g], `guest` i32[g], `counts` i64[g, 10], whose columns are those of `Column`.
    Neighbouring segments of one pair are one row. Counts of disjoint sets of contents over the
    same segments add up.
    """

    label: _I32
    guest: _I32
    counts: _I64

    def total(self) -> DedupCounts:
        """The sums over all pairs."""
        sums = [int(n) for n in self.counts.sum(axis=0)]
        pages, already, zero, new, other, same_label, same_guest, twins, twins_label, twins_guest \
            = sums
        has_zero = self.counts[:, Column.ZERO] > 0
        zero_guests = int(has_zero.sum())
        zero_labels = len(np.unique(self.label[has_zero]))
        duplicates = other + same_label + same_guest
        return DedupCounts(
            n_pages=pages,
            n_frames=pages - already,
            n_already_shared=already,
            n_contents=new,
            n_unique=new + duplicates - twins,
            n_shared=twins - duplicates,
            n_duplicates=duplicates,
            n_same_guest=same_guest,
            n_same_label=same_label,
            n_other_label=other,
            n_shared_in_label=twins_label - same_label - same_guest,
            n_duplicates_in_label=same_label + same_guest,
            n_shared_in_guest=twins_guest - same_guest,
            n_duplicates_in_guest=same_guest,
            n_zero=zero,
            n_zero_guests=zero_guests,
            n_zero_labels=zero_labels,
            n_zero_duplicates=max(zero - 1, 0),
            n_zero_same_guest=zero - zero_guests,
            n_zero_same_label=zero_guests - zero_labels,
            n_zero_other_label=max(zero_labels - 1, 0),
        )


@njit
def _mark_repeats(frame_ids: _I32, starts: _I64, ends: _I64, seen: npt.NDArray[np.uint8],
                  repeat: npt.NDArray[np.uint8]) -> None:
    """Set the bit of each page in `repeat` whose frame was seen before, in segment order."""
    for s in range(len(starts)):
        for i in range(starts[s], ends[s]):
            frame = frame_ids[i]
            if frame >= 0:
                byte = frame >> 3
                bit = 1 << (frame & 7)
                if seen[byte] & bit:
                    repeat[i >> 3] |= 1 << (i & 7)
                else:
                    seen[byte] |= bit


@njit
def _histogram(hashes: _U64, repeat: npt.NDArray[np.uint8], starts: _I64, ends: _I64, group: _I64,
               zero: np.uint64, bucket_bits: np.uint64, sizes: _I64, counts: _I64) -> None:
    """Bucket sizes, and pages, repeats and zero frames per group, of some segments."""
    shift = np.uint64(64) - bucket_bits
    has_repeats = len(repeat) > 0
    for s in range(len(starts)):
        n_repeats = np.int64(0)
        n_zero = np.int64(0)
        start = starts[s]
        pages = hashes[start : ends[s]]
        for i in range(len(pages)):
            if has_repeats and repeat[start + i >> 3] >> (start + i & 7) & 1:
                n_repeats += 1
                continue
            x = pages[i] ^ zero
            n_zero += np.int64(x == np.uint64(0))
            # Bijective, and zero stays zero. Real hashes are uniform; this guards against others.
            x = (x ^ (x >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
            sizes[x >> shift] += 1
        # Zero pages were all counted in bucket 0.
        sizes[0] -= n_zero
        counts[group[s], 0] += ends[s] - starts[s]
        counts[group[s], 1] += n_repeats
        counts[group[s], 2] += n_zero


@njit
def _scatter(hashes: _U64, repeat: npt.NDArray[np.uint8], starts: _I64, ends: _I64, group: _I64,
             zero: np.uint64, bucket_bits: np.uint64, base: np.int64, cursor: _I64,
             words: _U64) -> None:
    """Write each page's word, hash << bucket_bits | group - base, to its bucket."""
    shift = np.uint64(64) - bucket_bits
    has_repeats = len(repeat) > 0
    for s in range(len(starts)):
        local_group = np.uint64(group[s] - base)
        start = starts[s]
        pages = hashes[start : ends[s]]
        for i in range(len(pages)):
            if has_repeats and repeat[start + i >> 3] >> (start + i & 7) & 1:
                continue
            x = pages[i] ^ zero
            if x != np.uint64(0):
                x = (x ^ (x >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
                bucket = x >> shift
                at = cursor[bucket]
                words[np.uint64(at)] = (x << bucket_bits) | local_group
                cursor[bucket] = at + 1


@njit
def _count_sorted(words: _U64, group_bits: np.uint64, label_floor: _I64, relation: _I64,
                  credit: _I64) -> None:
    """Count one bucket's sorted words, content << group_bits | group.

    `relation[g << 3 | r]` counts frames of group g by their relation r to earlier copies of the
    content: bit 0 there is one, bit 1 one in this label, bit 2 one in this guest.
    `credit[g << 3 | c]` counts earlier copies in g that were alone so far, and now have a twin
    anywhere (bit 0), in their label (1), in their guest (2); c = 0 means nothing.
    `label_floor[g]` is the first group of g's label << 3.

    Arithmetic in place of branches: whether a content is new is anyone's guess. Unsigned
    indices spare numba's test for negative ones.
    """
    low = (np.uint64(1) << group_bits) - np.uint64(1)
    last = ~words[0]
    before = np.int64(0)  # the last group << 3 | its relation
    for i in range(len(words)):
        word = words[i]
        known = np.int64((word ^ last) >> group_bits == np.uint64(0))
        group = word & low
        here = np.int64(group) << 3
        # Groups ascend: at least `here` if the last copy is in this group, at least the label's
        # first group if it is in this label.
        reach = before | 7
        now = ((~(reach - here) >> 63 & 4) | (~(reach - label_floor[group]) >> 63 & 2) | 1) & -known
        relation[np.uint64(here | now)] += 1
        credit[np.uint64((before & -8) | (now & ~before))] += 1
        before = here | now
        last = word


def _checked_segments(n_pages: int, starts: _I64, ends: _I64 | None, label: _I32,
                      guest: _I32) -> tuple[_I64, _I64]:
    if ends is None:
        if len(starts) != len(label) + 1:
            raise ValueError("segment_starts must have one entry more than segment_label")
        starts, ends = starts[:-1], starts[1:]
    if not len(starts) == len(ends) == len(label) == len(guest):
        raise ValueError("segment arrays differ in length")
    if np.any(starts < 0) or np.any(ends < starts) or np.any(ends > n_pages):
        raise ValueError("segments must lie within the pages")
    step = np.diff(label.astype(np.int64))
    if np.any(step < 0) or np.any((step == 0) & (np.diff(guest.astype(np.int64)) < 0)):
        raise ValueError("segments must ascend by (label, guest)")
    return starts, ends


def _pieces(starts: _I64, ends: _I64, group: _I64, n_threads: int,
            window: int) -> list[tuple[_I64, _I64, _I64, int]]:
    """Cut the segments, in order, into work of like size, each within one window of groups.

    A piece is (starts, ends, group, base): its groups are in `[base, base + window)`.
    """
    kept = ends > starts
    starts, ends, group = starts[kept], ends[kept], group[kept]
    if not len(starts):
        return []
    # Position of each segment when all are laid end to end; cuts in these positions.
    position = np.concatenate([[0], np.cumsum(ends - starts)])
    n_pages = int(position[-1])
    cuts = {n_pages * t // n_threads for t in range(1, n_threads)}
    cuts.update(position[1:-1][np.diff(group // window) != 0].tolist())
    edges = sorted(cuts - {0, n_pages})
    pieces = []
    for begin, end in zip([0, *edges], [*edges, n_pages], strict=True):
        first = int(np.searchsorted(position, begin, side="right")) - 1
        last = int(np.searchsorted(position, end, side="left"))
        piece_starts, piece_ends = starts[first:last].copy(), ends[first:last].copy()
        piece_starts[0] += begin - position[first]
        piece_ends[-1] -= position[last] - end
        base = int(group[first]) // window * window
        pieces.append((piece_starts, piece_ends, group[first:last].copy(), base))
    return pieces


def _widened(words: _U64, bucket_bits: np.uint64, bases: list[int], lengths: _I64) -> _U64:
    """A bucket's words, sorted, with a dense number for the content and the whole group."""
    content = words >> bucket_bits
    low = (np.uint64(1) << bucket_bits) - np.uint64(1)
    group = (words & low) + np.repeat(np.array(bases, np.uint64), lengths)
    order = np.argsort(content, kind="stable")  # pieces, hence groups, ascend
    content = content[order]
    number = np.cumsum(content[1:] != content[:-1], dtype=np.uint64)
    wide = group[order]
    wide[1:] |= number << np.uint64(_WIDE_GROUP_BITS)
    return wide


def _run(n_threads: int, task: Callable[[int], Any], n_tasks: int) -> None:
    def quietly(index: int) -> None:
        # Unsigned arithmetic wraps on purpose; numpy would say so when kernels are not compiled.
        with np.errstate(over="ignore"):
            task(index)

    if n_threads == 1:
        for index in range(n_tasks):
            quietly(index)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(quietly, range(n_tasks)):
            pass


def _available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this operating system
        return os.cpu_count() or 1


def count_segments(
    hashes: _U64,
    frame_ids: _I32,
    segment_starts: _I64,
    segment_label: _I32,
    segment_guest: _I32,
    zero_hash: int,
    *,
    segment_ends: _I64 | None = None,
    n_threads: int | None = None,
) -> SegmentCounts:
    """Count copies per (label, guest).

    `hashes` u64[n] and `frame_ids` i32[n] (-1 = own frame; small ids, equal on one frame; an
    empty array when no frame is shared) of pages that have a hash and are eligible. Segment s
    holds pages `[segment_starts[s], segment_starts[s + 1])`, or up to `segment_ends[s]` where
    given, so that segments need not lie in the array in their order; `segment_label` i32[k] and
    `segment_guest` i32[k] ascend by (label, guest). `zero_hash` is the hash of an all-zero page.
    All pages of a frame are taken to have the hash of its first page. `n_threads`: by default
    the cores of this process for large inputs. The result does not depend on it.

    Raises ValueError when the arrays do not fit together.
    """
    hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    frame_ids = np.ascontiguousarray(frame_ids, dtype=np.int32)
    label = np.ascontiguousarray(segment_label, dtype=np.int32)
    guest = np.ascontiguousarray(segment_guest, dtype=np.int32)
    starts = np.ascontiguousarray(segment_starts, dtype=np.int64)
    if segment_ends is not None:
        segment_ends = np.ascontiguousarray(segment_ends, dtype=np.int64)
    if len(frame_ids) not in (0, len(hashes)):
        raise ValueError("frame_ids must be empty or as long as hashes")
    if not 0 <= zero_hash < 1 << 64:
        raise ValueError("zero_hash must be an unsigned 64-bit number")
    if n_threads is not None and n_threads < 1:
        raise ValueError("n_threads must be positive")
    starts, ends = _checked_segments(len(hashes), starts, segment_ends, label, guest)

    is_first = np.ones(len(label), bool)
    is_first[1:] = (np.diff(label) != 0) | (np.diff(guest) != 0)
    group = np.cumsum(is_first) - 1
    group_label, group_guest = label[is_first], guest[is_first]
    n_groups = len(group_label)
    label_floor = np.searchsorted(group_label, group_label, side="left").astype(np.int64) << 3
    counts = np.zeros((n_groups, len(Column)), np.int64)

    n_pages = int((ends - starts).sum())
    if n_threads is None:
        n_threads = min(_available_cores(), _MAX_THREADS) if n_pages >= _THREAD_PAGES else 1
    bits = _MIN_BUCKET_BITS + (n_pages > _MANY_PAGES)
    bits = min(max(bits, (n_groups - 1).bit_length()), _MAX_BUCKET_BITS)
    n_buckets = 1 << bits
    bucket_bits, zero = np.uint64(bits), np.uint64(zero_hash)
    pieces = _pieces(starts, ends, group, n_threads, n_buckets)
    n_pieces = len(pieces)
    if not n_pieces:
        return SegmentCounts(group_label, group_guest, counts)

    repeat = np.empty(0, np.uint8)
    if len(frame_ids):
        repeat = np.zeros(len(hashes) // 8 + 1, np.uint8)
        seen = np.zeros(max(int(frame_ids.max()), 0) // 8 + 1, np.uint8)
        _mark_repeats(frame_ids, starts, ends, seen, repeat)

    sizes = np.zeros((n_pieces, n_buckets), np.int64)
    # Pieces may share a group at their common edge: each counts by itself.
    piece_counts = [np.zeros((int(p[2][-1] - p[2][0]) + 1, 3), np.int64) for p in pieces]

    def histogram(p: int) -> None:
        piece_starts, piece_ends, piece_group, _ = pieces[p]
        _histogram(hashes, repeat, piece_starts, piece_ends, piece_group - piece_group[0], zero,
                   bucket_bits, sizes[p], piece_counts[p])

    _run(n_threads, histogram, n_pieces)
    for (_, _, piece_group, _), rows in zip(pieces, piece_counts, strict=True):
        counts[piece_group[0]:piece_group[-1] + 1, :3] += rows

    # Within a bucket the pieces follow each other: that keeps the order of the segments.
    offsets = np.zeros(n_buckets * n_pieces + 1, np.int64)
    np.cumsum(sizes.T, out=offsets[1:])
    words = np.empty(int(offsets[-1]), np.uint64)
    cursors = offsets[:-1].reshape(n_buckets, n_pieces).T.copy()

    def scatter(p: int) -> None:
        piece_starts, piece_ends, piece_group, base = pieces[p]
        _scatter(hashes, repeat, piece_starts, piece_ends, piece_group, zero, bucket_bits,
                 np.int64(base), cursors[p], words)

    _run(n_threads, scatter, n_pieces)

    bases = [base for *_, base in pieces]
    fits = n_groups <= n_buckets
    group_bits = bucket_bits if fits else np.uint64(_WIDE_GROUP_BITS)
    edges = offsets[::n_pieces]
    # Threads take buckets of about as many pages; they sort and count while a bucket is cached.
    shares = np.searchsorted(edges, [len(words) * t // n_threads for t in range(n_threads + 1)])
    relation = np.zeros((n_threads, n_groups * 8), np.int64)
    credit = np.zeros((n_threads, n_groups * 8), np.int64)

    def count(t: int) -> None:
        for bucket in range(int(shares[t]), int(shares[t + 1])):
            part = words[edges[bucket] : edges[bucket + 1]]
            if not len(part):
                continue
            if fits:
                part.sort()
            else:
                first = bucket * n_pieces
                part = _widened(part, bucket_bits, bases,
                                np.diff(offsets[first : first + n_pieces + 1]))
            _count_sorted(part, group_bits, label_floor, relation[t], credit[t])

    _run(n_threads, count, n_threads)

    by_relation = relation.sum(axis=0).reshape(n_groups, 8)
    by_credit = credit.sum(axis=0).reshape(n_groups, 8)
    new, other, in_label, in_guest = (by_relation[:, r] for r in (0, 1, 3, 7))
    # A later copy has a twin where its relation says, an earlier one where it got credit.
    credited = [by_credit[:, [c for c in range(8) if c >> bit & 1]].sum(axis=1)
                for bit in range(3)]
    for column, values in (
        (Column.NEW, new), (Column.OTHER_LABEL, other), (Column.SAME_LABEL, in_label),
        (Column.SAME_GUEST, in_guest), (Column.TWINS, other + in_label + in_guest + credited[0]),
        (Column.TWINS_IN_LABEL, in_label + in_guest + credited[1]),
        (Column.TWINS_IN_GUEST, in_guest + credited[2]),
    ):
        counts[:, column] = values
    return SegmentCounts(group_label, group_guest, counts)


def count_duplicates(
    hashes: _U64,
    frame_ids: _I32,
    segment_starts: _I64,
    segment_label: _I32,
    segment_guest: _I32,
    zero_hash: int,
    *,
    segment_ends: _I64 | None = None,
    n_threads: int | None = None,
) -> DedupCounts:
    """The sums of `count_segments`, which see for the parameters."""
    return count_segments(hashes, frame_ids, segment_starts, segment_label, segment_guest,
                          zero_hash, segment_ends=segment_ends, n_threads=n_threads).total()
