"""mm slots of merge spaces: which pages of an mm a partition has, in the order of its scanner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.kernels import ksmstate as k
from planner.ksm.records import I32, I64

__all__ = ["close_ring", "slots_of", "with_arrivals"]


def close_ring(slots: I32, members: NDArray[np.int64], offset: int = 0) -> None:
    """Link these rows of `slots` in a ring, the first being its head; registered, all but it."""
    slots[members, k.L_NEXT] = np.roll(members, -1) + offset
    slots[members, k.L_PREV] = np.roll(members, 1) + offset
    slots[members[1:], k.L_STATE] = k.REGISTERED


def slots_of(order: I32, served: NDArray[np.generic], mm: I32, n_partitions: int
             ) -> tuple[I32, I32]:
    """mm slots per partition and mm, after the heads of the rings; and each order entry's slot."""
    n_heads = n_partitions + 1
    key = served[order].astype(np.int64) * 2**32 + mm[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    slots = np.zeros((n_heads + len(starts), k.SLOT_FIELDS), dtype=np.int32)
    slots[:n_heads, k.L_NEXT] = slots[:n_heads, k.L_PREV] = np.arange(n_heads)
    slots[n_heads:, k.L_START] = starts
    counts = np.diff(np.append(starts, len(order)))
    slots[n_heads:, k.L_COUNT] = slots[n_heads:, k.L_MERGEABLE] = counts
    slots[n_heads:, k.L_MM] = mm[order[starts]]
    return slots, np.repeat(np.arange(n_heads, len(slots), dtype=np.int32), counts)


def with_arrivals(slots: I32, slot_of: I32, order: I32, served: NDArray[np.generic],
                  content: I32, event_time: I64, events: I32) -> tuple[I64, I32]:
    """The events with those of mms that register: each before its first page appears.

    mms with a page at time 0 are registered from the start, in order.
    """
    n_heads = len(slots) - len(np.unique(slot_of))
    present = np.unique(slot_of[content[order] != k.ABSENT])
    part_of_slot = np.zeros(len(slots), np.int64)
    part_of_slot[slot_of] = served[order].astype(np.int64) + 1
    for row in range(1, n_heads):
        close_ring(slots, np.append(row, present[part_of_slot[present] == row]))
    is_late = np.zeros(len(slots) + 1, bool)  # with one more for sites that nobody serves
    is_late[slot_of] = True
    is_late[present] = False
    if not is_late.any():
        return event_time, events
    slot_of_site = np.full(len(served), len(slots), np.int32)
    slot_of_site[order] = slot_of
    at = np.flatnonzero((events[:, 1] != k.ABSENT) & is_late[slot_of_site[events[:, 0]]])
    late, first = np.unique(slot_of_site[events[at, 0]], return_index=True)
    first = at[first]
    arrivals = np.column_stack([~late, np.full(len(late), k.REGISTERED), part_of_slot[late]])
    return (np.insert(event_time, first, event_time[first]),
            np.ascontiguousarray(np.insert(events, first, arrivals, axis=0), dtype=np.int32))
