"""Classes of pages for `planner.kernels.fastforward`, which says what they are and what for.

The rows of BULK and SINGLE pages are behind: checksum, age, remaining skips and UNSTABLE flag
follow from the bitmaps and the scan in which their page comes next (`materialize`). Counters,
frames, nodes and the contents of pages are always exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planner.kernels import ksmpages
from planner.kernels import ksmstate as k
from planner.kernels.jit import helper, kernel
from planner.kernels.ksmstate import Array, World

__all__ = ["Marks", "can_fast_forward", "prepare", "settle"]

OLD_AGE = 9  # from here on smart scan visits every PERIOD scans
PERIOD = 9
# Before that a page is in the stage of how many processed visits it has had, 1 to 5 (0: old).
N_STAGES = 6
STAGE_OF_AGE = (0, 1, 2, 3, 4, 4, 5, 5, 5, 0)
AGE_AFTER = (OLD_AGE, 1, 2, 3, 4, 6)  # the visit that led to a stage
SKIPS_AFTER = (0, 0, 0, 0, 1, 2)
SCANS_AFTER = (0, 1, 1, 2, 3, 5)  # from the visit that ends a stage to the next visit
HUGE_PAGES = 512

# marks
W_BULK, W_CHANGED, W_UNSTABLE, W_SINGLE, W_EACH, W_QUICK, W_VALID = range(7)
N_BITMAPS = 8

# groups
(
    G_WORD, G_PART, G_PASSED, G_BULK, G_SINGLE, G_EACH, G_QUICK, G_UNSTABLE, G_YOUNG, G_DUE,
) = range(10)
GROUP_FIELDS = G_DUE + PERIOD

_0 = np.uint64(0)
_1 = np.uint64(1)
_2 = np.uint64(2)
_4 = np.uint64(4)
_56 = np.uint64(56)
_PAIRS = np.uint64(0x5555555555555555)
_NIBBLES = np.uint64(0x3333333333333333)
_BYTES = np.uint64(0x0F0F0F0F0F0F0F0F)
_SUM = np.uint64(0x0101010101010101)


class Marks(NamedTuple):
    """What fast-forward keeps beside a `World`; about 8 bytes a page.

    Places number the pages of all slots in the order of `World.order`, each slot starting at a
    multiple of 64; place i is bit i & 63 of word i >> 6.
    """

    words: Array  # uint64 (n_words, 8): a bitmap per column
    due: Array  # uint64 (9, n_words): BULK and SINGLE pages by next processed scan, modulo 9
    stage: Array  # uint64 (3, n_words): binary digits of the stages of BULK pages
    word_slot: Array  # int32 (n_words,): the slot a word belongs to
    groups: Array  # int64 (n_slots, 19): per slot, first word, partition, counts of bits
    place: Array  # int32 (n_sites,): -1 where no slot has the site
    live: Array  # int32 (n_rows, 2): pages that have a content, exclusive or of their places
    touched: Array  # int32 (1024, 2): scratch of `_visit_huge`: site and content before


def can_fast_forward(w: World) -> bool:
    """Whether `prepare` may be called: trees are tables, and no page lies in two slots."""
    if w.host[k.H_EXACT] or len(w.order) == 0:
        return False
    uses = np.bincount(w.order, minlength=len(w.sites))
    return bool(uses.max() == 1)


def prepare(w: World) -> Marks:
    """Sort all pages of a world; once more whenever others than `advance` have changed it.

    Others are calls (merge, unmerge), knobs and writes made elsewhere; call `settle` first.
    """
    n_slots = len(w.slots)
    counts = w.slots[:, k.L_COUNT].astype(np.int64)
    n_words = (counts + 63) // 64
    first_word = np.cumsum(n_words) - n_words
    total = int(n_words.sum())
    groups = np.zeros((n_slots, GROUP_FIELDS), dtype=np.int64)
    groups[:, G_WORD] = first_word
    marks = Marks(
        words=np.zeros((total, N_BITMAPS), dtype=np.uint64),
        due=np.zeros((PERIOD, total), dtype=np.uint64),
        stage=np.zeros((3, total), dtype=np.uint64),
        word_slot=np.repeat(np.arange(n_slots, dtype=np.int32), n_words),
        groups=groups,
        place=np.full(len(w.sites), -1, dtype=np.int32),
        live=np.zeros((len(w.contents), 2), dtype=np.int32),
        touched=np.zeros((2 * HUGE_PAGES, 2), dtype=np.int32),
    )
    sort_all(w, marks)
    return marks


@helper
def count_bits(bits: Any) -> int:
    """Set bits of a uint64."""
    x = np.uint64(bits)
    x = x - ((x >> _1) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> _2) & _NIBBLES)
    x = (x + (x >> _4)) & _BYTES
    return int(np.int64((x * _SUM) >> _56))


@helper
def nth_bit(bits: Any, n: int) -> int:
    """Position of the n-th set bit of a uint64, n counted from 1."""
    x = np.uint64(bits)
    position = 0
    width = 32
    while width:
        low = x & ((_1 << np.uint64(width)) - _1)
        c = count_bits(low)
        if c < n:
            n -= c
            x >>= np.uint64(width)
            position += width
        else:
            x = low
        width >>= 1
    return position


@helper
def bit(place: int) -> Any:
    """The bit of a place in its word: a uint64."""
    return _1 << np.uint64(place & 63)


@helper
def next_scan(place: int, w: World, m: Marks) -> int:
    """The P_EPOCH of the scan that passes a place next."""
    slot = m.word_slot[place >> 6]
    p = m.groups[slot, G_PART]
    epoch = w.parts[p, k.P_EPOCH]
    at = w.parts[p, k.P_SLOT]
    if at == w.parts[p, k.P_HEAD]:
        return int(epoch + 1)
    if at == slot:
        return int(epoch + (place - (m.groups[slot, G_WORD] << 6) < w.parts[p, k.P_INDEX]))
    return int(epoch + (m.groups[slot, G_PASSED] == epoch))


@helper
def _site(place: int, w: World, m: Marks) -> int:
    slot = m.word_slot[place >> 6]
    return int(w.order[w.slots[slot, k.L_START] + place - (m.groups[slot, G_WORD] << 6)])


@helper
def stage_of(place: int, m: Marks) -> int:
    """The stage of a BULK page."""
    i = place >> 6
    b = bit(place)
    stage = 1 if m.stage[0, i] & b else 0
    stage += 2 if m.stage[1, i] & b else 0
    return stage + (4 if m.stage[2, i] & b else 0)


@helper
def _comes_later(a: int, b: int, p: int, w: World, m: Marks) -> bool:
    """Whether a scan passes place a after place b."""
    slot_a = m.word_slot[a >> 6]
    slot_b = m.word_slot[b >> 6]
    if slot_a == slot_b:
        return a > b
    head = w.parts[p, k.P_HEAD]
    slot = w.slots[head, k.L_NEXT]
    while slot != head:
        if slot == slot_a:
            return False
        if slot == slot_b:
            return True
        slot = w.slots[slot, k.L_NEXT]
    return False


@helper
def materialize(s: int, scan: int, w: World, m: Marks) -> None:
    """Make the row of s exact, and the unstable tree's entry of its content; `scan` comes next."""
    place = m.place[s]
    i = place >> 6
    b = bit(place)
    is_bulk = m.words[i, W_BULK] & b != _0
    if not is_bulk and m.words[i, W_SINGLE] & b == _0:
        return
    sites = w.sites
    p = m.groups[m.word_slot[i], G_PART]
    if is_bulk and m.words[i, W_CHANGED] & b == _0:
        sites[s, k.S_OLD] = sites[s, k.S_CONTENT]
    meta = sites[s, k.S_META] & ~k.M_UNSTABLE
    if m.words[i, W_UNSTABLE] & b:
        inserted = scan - 1
        meta |= k.M_UNSTABLE
        sites[s, k.S_SEQ] = inserted
        old = sites[s, k.S_OLD]
        if is_bulk and old < w.host[k.H_N_ROWS]:
            row = old + w.parts[p, k.P_CONTENT_OFFSET]
            t = w.contents[row, k.C_SITE]
            e = w.contents[row, k.C_EPOCH]
            # Of several pages inserted under one content in a scan (all but one were written
            # since) the last is the entry; none is when that one has left the tree again.
            if e < inserted or (
                e == inserted and t >= 0 and t != s and _comes_later(place, m.place[t], p, w, m)
            ):
                w.contents[row, k.C_SITE] = s
                w.contents[row, k.C_EPOCH] = inserted
    if w.parts[p, k.P_SMART_SCAN]:
        skips = 0
        phase = scan % PERIOD
        while m.due[phase, i] & b == _0:
            skips += 1
            phase = phase + 1 if phase < PERIOD - 1 else 0
        age = meta & k.AGE_MASK
        if is_bulk:
            stage = stage_of(place, m)
            age = AGE_AFTER[stage] + (SKIPS_AFTER[stage] - skips if stage else 0)
        elif age < OLD_AGE:
            age = min(OLD_AGE, age + ((meta & k.SKIPS_MASK) >> k.SKIPS_SHIFT) - skips)
        meta = (meta & ~(k.SKIPS_MASK | k.AGE_MASK)) | (skips << k.SKIPS_SHIFT) | age
    sites[s, k.S_META] = meta


@helper
def clear(place: int, m: Marks) -> None:
    """Take a page out of its class."""
    i = place >> 6
    b = bit(place)
    words = m.words
    group = m.groups[m.word_slot[i]]
    if (words[i, W_BULK] | words[i, W_SINGLE]) & b:
        group[G_BULK if words[i, W_BULK] & b else G_SINGLE] -= 1
        if words[i, W_UNSTABLE] & b:
            group[G_UNSTABLE] -= 1
        for phase in range(PERIOD):
            if m.due[phase, i] & b:
                m.due[phase, i] &= ~b
                group[G_DUE + phase] -= 1
                break
        if (m.stage[0, i] | m.stage[1, i] | m.stage[2, i]) & b:
            group[G_YOUNG] -= 1
            for digit in range(3):
                m.stage[digit, i] &= ~b
        words[i, W_BULK] &= ~b
        words[i, W_SINGLE] &= ~b
        words[i, W_CHANGED] &= ~b
        words[i, W_UNSTABLE] &= ~b
    elif words[i, W_EACH] & b:
        words[i, W_EACH] &= ~b
        group[G_EACH] -= 1
    elif words[i, W_QUICK] & b:
        words[i, W_QUICK] &= ~b
        group[G_QUICK] -= 1


@helper
def is_alone(s: int, content: int, p: int, w: World, m: Marks) -> bool:
    """Whether no visit can find an equal of the page of s: no other page, node or tree entry."""
    if ksmpages.is_zero(content, w):
        return False
    if content >= w.host[k.H_N_ROWS]:
        return True
    row = content + w.parts[p, k.P_CONTENT_OFFSET]
    if m.live[row, 0] != 1 or w.contents[row, k.C_HEAD] >= 0 or w.contents[row, k.C_CHAIN] >= 0:
        return False
    t = w.contents[row, k.C_SITE]
    return bool(t < 0 or t == s or w.contents[row, k.C_EPOCH] != w.parts[p, k.P_EPOCH])


@helper
def classify(s: int, scan: int, w: World, m: Marks) -> None:
    """Sort s, whose row is exact, into its class; scan `scan` passes it next."""
    place = m.place[s]
    clear(place, m)
    i = place >> 6
    b = bit(place)
    slot = m.word_slot[i]
    p = m.groups[slot, G_PART]
    sites, words = w.sites, m.words
    group = m.groups[slot]
    meta = sites[s, k.S_META]
    content = sites[s, k.S_CONTENT]
    has_item = meta & k.M_ITEM != 0
    if content < 0 or not meta & k.M_VMA:
        if has_item:
            words[i, W_EACH] |= b
            group[G_EACH] += 1
        return
    if sites[s, k.S_PART] == p and meta & k.QUICK_FLAGS == k.QUICK_FLAGS:
        words[i, W_QUICK] |= b
        group[G_QUICK] += 1
        return
    f = sites[s, k.S_FRAME]
    if (
        not has_item
        or meta & k.M_STABLE
        or sites[s, k.S_PART] != p
        or w.frames[f, k.F_NODE] != k.NO_NODE
        or w.frames[f, k.F_PHYS] != 1
        or w.slots[slot, k.L_STATE] != k.REGISTERED
    ):
        words[i, W_EACH] |= b
        group[G_EACH] += 1
        return
    is_smart = w.parts[p, k.P_SMART_SCAN] != 0
    phase = (scan + ((meta & k.SKIPS_MASK) >> k.SKIPS_SHIFT)) % PERIOD
    m.due[phase, i] |= b
    group[G_DUE + phase] += 1
    if meta & k.M_UNSTABLE:
        words[i, W_UNSTABLE] |= b
        group[G_UNSTABLE] += 1
    if (
        (meta & k.AGE_MASK or not is_smart)
        and w.frames[sites[s, k.S_BASE], k.F_SITE] == s
        and w.frames[sites[s, k.S_BASE], k.F_BASE] == 1
        and is_alone(s, content, p, w, m)
    ):
        words[i, W_BULK] |= b
        group[G_BULK] += 1
        stage = STAGE_OF_AGE[meta & k.AGE_MASK] if is_smart else 0
        if stage:
            group[G_YOUNG] += 1
            for digit in range(3):
                if stage >> digit & 1:
                    m.stage[digit, i] |= b
        if sites[s, k.S_OLD] != content:
            words[i, W_CHANGED] |= b
    else:
        words[i, W_SINGLE] |= b
        group[G_SINGLE] += 1


@helper
def count_live(s: int, content: int, by: int, w: World, m: Marks) -> None:
    """One page more or less that has a content; the page that was alone with it is so no more."""
    if content < 0 or content >= w.host[k.H_N_ROWS]:
        return
    place = m.place[s]
    row = content + w.parts[m.groups[m.word_slot[place >> 6], G_PART], k.P_CONTENT_OFFSET]
    m.live[row, 0] += by
    m.live[row, 1] ^= place
    if by > 0 and m.live[row, 0] == 2:
        demote(m.live[row, 1] ^ place, w, m)


@helper
def demote(place: int, w: World, m: Marks) -> None:
    """Sort a BULK page anew."""
    if m.words[place >> 6, W_BULK] & bit(place):
        scan = next_scan(place, w, m)
        s = _site(place, w, m)
        materialize(s, scan, w, m)
        classify(s, scan, w, m)


@kernel
def sort_all(w: World, m: Marks) -> None:
    for slot in range(len(w.slots)):
        group = m.groups[slot]
        first = w.slots[slot, k.L_START]
        count = w.slots[slot, k.L_COUNT]
        if count == 0:
            continue
        p = w.sites[w.order[first], k.S_PART]
        group[G_PART] = p
        group[G_PASSED] = w.parts[p, k.P_EPOCH]
        place = group[G_WORD] << 6
        for i in range(count):
            s = w.order[first + i]
            m.place[s] = place + i
            m.words[(place + i) >> 6, W_VALID] |= bit(place + i)
            content = w.sites[s, k.S_CONTENT]
            if 0 <= content < w.host[k.H_N_ROWS]:
                row = content + w.parts[p, k.P_CONTENT_OFFSET]
                m.live[row, 0] += 1
                m.live[row, 1] ^= place + i
    for p in range(1, len(w.parts)):
        slot = w.parts[p, k.P_SLOT]
        head = w.parts[p, k.P_HEAD]
        while slot != head:
            m.groups[slot, G_PASSED] = w.parts[p, k.P_EPOCH] - 1
            slot = w.slots[slot, k.L_NEXT]
    for i in range(len(w.order)):
        s = w.order[i]
        if m.place[s] >= 0:
            classify(s, next_scan(m.place[s], w, m), w, m)


@kernel
def settle(w: World, m: Marks) -> None:
    """Make every row exact, as `ksm.advance` would have left it. The marks stay as they are."""
    for i in range(len(w.order)):
        s = w.order[i]
        place = m.place[s]
        if place >= 0:
            materialize(s, next_scan(place, w, m), w, m)


@helper
def sort_anew(s: int, w: World, m: Marks) -> None:
    """Sort a page into its class, if it is in a slot at all."""
    if m.place[s] >= 0:
        scan = next_scan(m.place[s], w, m)
        materialize(s, scan, w, m)
        classify(s, scan, w, m)
