"""What the timeline of a fleet is made of: who asks for room, and who stood where and when.

Plain numpy arrays; no random numbers, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Cause", "Incident", "Pressure", "Requests", "Sketches", "Timeline"]


class Cause(IntEnum):
    """Why a stay began.

    BOOT and RESTORE: the guest came. MIGRATION: it moved while running, its merges are lost.
    RESTART: its host failed, and it boots anew elsewhere.
    """

    BOOT = 0
    RESTORE = 1
    MIGRATION = 2
    RESTART = 3


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """The guests that ask for room, by ascending `start_ns`; arrays have one entry a guest.

    `workload` i32 (index into scenario.workloads), `domain` i32 (index into `domains`),
    `memory_bytes` i64, `start_ns` and `end_ns` i64 (half open; the horizon where a guest lives
    on), `is_restored` bool, `batch` i32 (guests of one tenant that come together; -1 none).
    Names are unique and are the guests' identity: they do not change when other workloads, hosts
    or policies do. `notes` say what the arrival table did not give.
    """

    name: tuple[str, ...]
    workload: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int32]
    domains: tuple[str, ...]
    memory_bytes: npt.NDArray[np.int64]
    start_ns: npt.NDArray[np.int64]
    end_ns: npt.NDArray[np.int64]
    is_restored: npt.NDArray[np.bool_]
    batch: npt.NDArray[np.int32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.name)


class Sketches(Protocol):
    """What sharing-aware placement knows of guests' contents.

    `bits` u64 (n_templates, n_words): which of the sampled common contents a template holds.
    `template` i32 (n_requests,): the template of each guest. `partition` i32 (n_requests,):
    guests of equal numbers may merge with one another; -1 merges with nobody.
    """

    @property
    def bits(self) -> npt.NDArray[np.uint64]:
        """Contents of each template."""

    @property
    def template(self) -> npt.NDArray[np.int32]:
        """The template of each guest."""

    @property
    def partition(self) -> npt.NDArray[np.int32]:
        """The merge partition of each guest."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """`bytes` of a host's memory (index into the timeline's hosts) are needed otherwise."""

    host: int
    start_ns: int
    end_ns: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Incident:
    """What befell a host (index; -1: the whole fleet); `n_guests` were moved or restarted by it.

    `n_left` could not be: they stay where they are (drain, migrate) or are lost (fail).
    """

    kind: str
    time_ns: int
    host: int
    n_guests: int
    n_left: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """Which guest is on which host from when to when.

    `hosts` are machine names, `host_spec` i32 their kind (index into scenario.hosts). Stays, by
    ascending (host, start, guest): `stay_guest` i32 (index into `requests`), `stay_host` i32,
    `stay_start_ns` and `stay_end_ns` i64 (half open), `stay_cause` i8 (`Cause`).
    `rejected` i32: guests that found no room when they came, ascending; `lost` i32: guests that
    found none after their host failed. `pressure` and `incidents` by time. `warnings` are
    sentences.
    """

    requests: Requests
    hosts: tuple[str, ...]
    host_spec: npt.NDArray[np.int32]
    stay_guest: npt.NDArray[np.int32]
    stay_host: npt.NDArray[np.int32]
    stay_start_ns: npt.NDArray[np.int64]
    stay_end_ns: npt.NDArray[np.int64]
    stay_cause: npt.NDArray[np.int8]
    rejected: npt.NDArray[np.int32]
    lost: npt.NDArray[np.int32]
    pressure: tuple[Pressure, ...]
    incidents: tuple[Incident, ...]
    warnings: tuple[str, ...] = ()

    def stays_on(self, host: int) -> slice:
        """Where the stays on `host` (an index) are."""
        first, end = np.searchsorted(self.stay_host, [host, host + 1])
        return slice(int(first), int(end))
