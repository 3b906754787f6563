"""Numbers for keys in order of first appearance: an open-addressing table over arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.kernels.jit import njit

__all__ = ["EMPTY", "number_keys"]

#: A free place in the table.
EMPTY = -1

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


@njit
def number_keys(
    keys: npt.NDArray[np.uint64],
    table_keys: npt.NDArray[np.uint64],
    table_ids: npt.NDArray[np.int32],
    known_keys: npt.NDArray[np.uint64],
    known_ids: npt.NDArray[np.int32],
    next_id: int,
    ids: npt.NDArray[np.int32],
) -> int:
    """Fill `ids` i32[n] with the numbers of `keys` u64[n]; returns the next free number.

    `table_keys` u64[t] and `table_ids` i32[t] (EMPTY where free) are the table, t a power of two
    with room for all keys; it is added to. A key that is new to it gets the number it has in the
    table `known_keys` u64[k], `known_ids` i32[k], which is only read, else `next_id`, and so on.
    """
    mask = len(table_keys) - 1
    known_mask = len(known_keys) - 1
    for i in range(len(keys)):
        key = keys[i]
        mixed = np.int64((key * _MIX) >> _SHIFT)
        at = mixed & mask
        while table_ids[at] != EMPTY and table_keys[at] != key:
            at = (at + 1) & mask
        if table_ids[at] == EMPTY:
            known = mixed & known_mask
            while known_ids[known] != EMPTY and known_keys[known] != key:
                known = (known + 1) & known_mask
            table_keys[at] = key
            if known_ids[known] == EMPTY:
                table_ids[at] = next_id
                next_id += 1
            else:
                table_ids[at] = known_ids[known]
        ids[i] = table_ids[at]
    return next_id
