"""What happened to guests after they came, and the stays that follow from it."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from planner.timeline.records import Cause, Requests

__all__ = ["Moves", "Stays"]


class Stays(TypedDict):
    """The stay columns of a Timeline."""

    stay_guest: npt.NDArray[np.int32]
    stay_host: npt.NDArray[np.int32]
    stay_start_ns: npt.NDArray[np.int64]
    stay_end_ns: npt.NDArray[np.int64]
    stay_cause: npt.NDArray[np.int8]


class Moves:
    """Guests that left a host for another (or for none) before their end, in order of time."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._moves: list[tuple[int, int, int, Cause]] = []
        self._counts: dict[int, int] = {}

    def add(self, guest: int, time_ns: int, host: int, cause: Cause) -> None:
        """A guest goes on at `host` (-1: nowhere) from this time on."""
        self._moves.append((guest, time_ns, host, cause))
        self._counts[guest] = self.count(guest) + 1

    def count(self, guest: int) -> int:
        """How often a guest has moved."""
        return self._counts.get(guest, 0)

    def lost(self) -> npt.NDArray[np.int32]:
        """Guests that went nowhere, ascending."""
        return np.array(sorted(guest for guest, _, host, _ in self._moves if host < 0), np.int32)

    def stays(self, first_host: npt.NDArray[np.int32]) -> Stays:
        """All stays, by ascending (host, start, guest).

        `first_host` i32 (n,): where each guest was put when it came, -1 nowhere. A stay ends with
        the guest's next move or the guest; stays of no length are left out.
        """
        came = np.flatnonzero(first_host >= 0).astype(np.int32)
        moved = np.array(self._moves, np.int64).reshape(-1, 4)
        guest = np.concatenate([came, moved[:, 0]]).astype(np.int32)
        start_ns = np.concatenate([self._requests.start_ns[came], moved[:, 1]])
        host = np.concatenate([first_host[came], moved[:, 2]]).astype(np.int32)
        cause = np.concatenate([
            np.where(self._requests.is_restored[came], Cause.RESTORE, Cause.BOOT),
            moved[:, 3]]).astype(np.int8)
        # Moves are in the order of time already, also those of one moment.
        order = np.lexsort((np.arange(len(guest)), start_ns, guest))
        guest, start_ns, host, cause = guest[order], start_ns[order], host[order], cause[order]
        end_ns = self._requests.end_ns[guest]
        is_followed = guest[:-1] == guest[1:]
        end_ns[:-1][is_followed] = start_ns[1:][is_followed]
        kept = np.flatnonzero((host >= 0) & (end_ns > start_ns))
        kept = kept[np.lexsort((guest[kept], start_ns[kept], host[kept]))]
        return Stays(stay_guest=guest[kept], stay_host=host[kept], stay_start_ns=start_ns[kept],
                     stay_end_ns=end_ns[kept], stay_cause=cause[kept])
