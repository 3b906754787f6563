"""Guests that come and go on hosts with room: which host takes which guest.

The choice is the host of the greatest weight among those that take guests and have room, the
first of equals. Weights that ask who is on a host already (`KIN`, `OVERLAP`) are kept in *slots*:
one for each (host, group) that has guests, in a list of its group, so that choosing looks at the
hosts of the guest's own group only. Plain-Python twins: tests/oracles/placing.py.

Host arrays: `free` i64 bytes (negative where pressure takes more than is free), `n_closed` i32 (0:
takes guests), `used` u8 (ever held a guest). Guest arrays: `need` i64 bytes, `start` and `end` i64
ns, `group` i32 (-1: of no group), `template` i32, `host` i32 (-1: on none), `slot` i32,
`first_host` i32 (where it was put when it came; -1). `by_end` i32: guests by ascending end.
Slots: `head` i32 (n_groups,), `next`, `previous`, `slot_host`, `slot_group`, `slot_guests` i32;
free slots are a list through `next`. Per slot and template: `slot_templates` i32 (guests of the
template), `overlap` i32 (contents that a guest of the template has in common with the slot, -1:
to be counted). `union` u64 (n_slots, n_words): the contents that the slot's guests hold. `cursor`
i64: next arrival, next departure, first free slot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planner.kernels.jit import kernel, njit

__all__ = ["EMPTIEST", "FIRST", "FULLEST", "KIN", "OVERLAP", "PlacingState", "choose", "enter",
           "leave", "run_until"]

Array = Any

#: Weights: none; least room; most room; guests of the same group; contents in common with it.
FIRST, FULLEST, EMPTIEST, KIN, OVERLAP = range(5)

ARRIVAL, DEPARTURE, FREE_SLOT = range(3)


class PlacingState(NamedTuple):
    """All arrays of a fleet; see the module."""

    free: Array
    n_closed: Array
    used: Array
    need: Array
    start: Array
    end: Array
    group: Array
    template: Array
    host: Array
    slot: Array
    first_host: Array
    by_end: Array
    head: Array
    next: Array
    previous: Array
    slot_host: Array
    slot_group: Array
    slot_guests: Array
    slot_templates: Array
    overlap: Array
    union: Array
    bits: Array
    cursor: Array


@njit
def _ones(word: Any) -> Any:
    """How many bits are set (Warren, Hacker's Delight, 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = ((word & np.uint64(0x3333333333333333))
            + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333)))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit
def _overlap(state: PlacingState, slot: int, template: int) -> Any:
    found = state.overlap[slot, template]
    if found < 0:
        found = 0
        for w in range(state.bits.shape[1]):
            found += _ones(state.bits[template, w] & state.union[slot, w])
        state.overlap[slot, template] = found
    return found


@kernel
def choose(state: PlacingState, weight: int, guest: int, except_host: int) -> int:
    """The host for a guest, -1 where none has room; `except_host` is not asked (-1: all are)."""
    need, group = state.need[guest], state.group[guest]
    best, best_weight = -1, -1
    if weight >= KIN and group >= 0:
        slot = state.head[group]
        while slot >= 0:
            host = state.slot_host[slot]
            if host != except_host and state.n_closed[host] == 0 and state.free[host] >= need:
                if weight == KIN:
                    found = state.slot_guests[slot]
                else:
                    found = _overlap(state, slot, state.template[guest])
                # A list is in no order of hosts.
                if found > 0 and (found > best_weight or (found == best_weight and host < best)):
                    best, best_weight = host, found
            slot = state.next[slot]
        if best >= 0:
            return best
    for host in range(len(state.free)):
        free = state.free[host]
        if host == except_host or state.n_closed[host] != 0 or free < need:
            continue
        if weight == FULLEST:
            if best < 0 or free < best_weight:
                best, best_weight = host, free
        elif weight == EMPTIEST:
            if best < 0 or free > best_weight:
                best, best_weight = host, free
        else:
            return host
    return best


@kernel
def enter(state: PlacingState, guest: int, host: int) -> None:
    """Put a guest on a host."""
    state.free[host] -= state.need[guest]
    state.used[host] = 1
    state.host[guest] = host
    group = state.group[guest]
    if group < 0:
        return
    slot = state.head[group]
    while slot >= 0 and state.slot_host[slot] != host:
        slot = state.next[slot]
    if slot < 0:
        slot = state.cursor[FREE_SLOT]
        state.cursor[FREE_SLOT] = state.next[slot]
        state.slot_host[slot] = host
        state.slot_group[slot] = group
        first = state.head[group]
        state.next[slot] = first
        state.previous[slot] = -1
        if first >= 0:
            state.previous[first] = slot
        state.head[group] = slot
    state.slot[guest] = slot
    state.slot_guests[slot] += 1
    if len(state.bits):
        template = state.template[guest]
        state.slot_templates[slot, template] += 1
        if state.slot_templates[slot, template] == 1:
            for w in range(state.bits.shape[1]):
                state.union[slot, w] |= state.bits[template, w]
            state.overlap[slot, :] = -1


@kernel
def leave(state: PlacingState, guest: int) -> None:
    """Take a guest off its host."""
    state.free[state.host[guest]] += state.need[guest]
    state.host[guest] = -1
    if state.group[guest] < 0:
        return
    slot = state.slot[guest]
    state.slot[guest] = -1
    state.slot_guests[slot] -= 1
    if len(state.bits):
        template = state.template[guest]
        state.slot_templates[slot, template] -= 1
        if state.slot_templates[slot, template] == 0:
            state.overlap[slot, :] = -1
            state.union[slot, :] = 0
            if state.slot_guests[slot] > 0:
                for other in range(len(state.bits)):
                    if state.slot_templates[slot, other] > 0:
                        for w in range(state.bits.shape[1]):
                            state.union[slot, w] |= state.bits[other, w]
    if state.slot_guests[slot] == 0:
        before, after = state.previous[slot], state.next[slot]
        if before >= 0:
            state.next[before] = after
        else:
            state.head[state.slot_group[slot]] = after
        if after >= 0:
            state.previous[after] = before
        state.next[slot] = state.cursor[FREE_SLOT]
        state.cursor[FREE_SLOT] = slot


@kernel
def run_until(state: PlacingState, weight: int, until_ns: int, most_rejected: int) -> int:
    """Arrivals before `until_ns` and departures up to it, in the order of time.

    At one time guests leave before others come. Returns how many of the guests that came found no
    room; it ends early where they are more than `most_rejected`.
    """
    n, n_rejected = len(state.need), 0
    arrival, departure = state.cursor[ARRIVAL], state.cursor[DEPARTURE]
    while True:
        now = until_ns
        if arrival < n and state.start[arrival] < until_ns:
            now = state.start[arrival]
        while departure < n and state.end[state.by_end[departure]] <= now:
            guest = state.by_end[departure]
            if state.host[guest] >= 0:
                leave(state, guest)
            departure += 1
        if now == until_ns:
            break
        host = choose(state, weight, arrival, -1)
        if host >= 0:
            enter(state, arrival, host)
            state.first_host[arrival] = host
        else:
            n_rejected += 1
        arrival += 1
        if n_rejected > most_rejected:
            break
    state.cursor[ARRIVAL], state.cursor[DEPARTURE] = arrival, departure
    return n_rejected
