"""What all processes on one simulated host share: its clock, its spaces, who is there, samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simpy

from planner.fleet import FleetHost
from planner.ksm.knobs import Knobs
from planner.ksm.records import BYTES_PER_PAGE
from planner.ksm.space import MergeSpaces
from planner.metrics import EVENTS, Recorder
from planner.policies.controllers import HostMemory
from planner.policies.partition import PartitionMap
from planner.policies.triggers import Stay
from planner.scenario.spec import PolicySpec
from planner.timeline.records import Cause

__all__ = ["NAMES_A_CALL", "Stage", "call_cost_ns"]

#: Ranges that one call can name (UIO_MAXIOV of process_madvise).
NAMES_A_CALL = 1024


@dataclass(slots=True)
class Stage:
    """One host under one policy while time passes.

    `partition_of_site` i32: -1 where the policy keeps the page out of merging. `sample` records
    the host's counters now, `knobs` translates what a scanner gets.
    """

    host: FleetHost
    policy: PolicySpec
    map: PartitionMap
    partition_of_site: npt.NDArray[np.int32]
    spaces: MergeSpaces
    env: simpy.Environment
    recorder: Recorder
    advance: Callable[[], None]
    sample: Callable[[], int]
    knobs: Callable[[Knobs], Knobs]
    stays: tuple[Stay, ...] = field(init=False)

    def __post_init__(self) -> None:
        host = self.host
        if not len(host.guest_start_ns):
            self.stays = (Stay(0, np.iinfo(np.int64).max, False),) * len(host.guests)
            return
        self.stays = tuple(
            Stay(start, end, cause == Cause.RESTORE) for start, end, cause in zip(
                host.guest_start_ns.tolist(), host.guest_end_ns.tolist(),
                host.guest_cause.tolist(), strict=True))

    @property
    def now_ns(self) -> int:
        """The time."""
        return int(self.env.now)

    def is_there(self, guest: int) -> bool:
        """Whether the guest is on the host now."""
        return self.stays[guest].start_ns <= self.now_ns < self.stays[guest].end_ns

    def n_guests(self) -> int:
        """Guests on the host now."""
        return sum(map(self.is_there, range(len(self.stays))))

    def available_bytes(self) -> int:
        """Memory that guests may have now."""
        spec = self.host.spec
        return spec.memory_bytes - spec.reserved_bytes - sum(
            need.bytes for need in self.host.pressure
            if need.start_ns <= self.now_ns < need.end_ns)

    def memory(self) -> HostMemory:
        """The host's memory now, as its /proc/meminfo and ps tell it.

        Free is what the host does not reserve, nobody else needs and no guest's frame takes;
        KSM's own records and the page cache are left out. A merged page is resident for everyone
        who maps it, what fork shares counts once.
        """
        spec, scale = self.host.spec, 1.0 / self.host.content_share
        base, frames = self.spaces.live_frames()
        free = self.available_bytes() - round(frames * BYTES_PER_PAGE * scale)
        committed = round(base * BYTES_PER_PAGE * scale)
        return HostMemory(spec.memory_bytes // 1024, max(0, free) // 1024, committed // 1024)

    def record(self, kind: str, *, partition: str = "", guest: str = "", tried_pages: int = 0,
               merged_pages: int = 0, candidate_pages: int = 0, cpu_ns: int = 0,
               time_ns: int | None = None) -> None:
        """Record an event, of now unless told otherwise."""
        self.recorder.add(EVENTS, {
            "policy": self.policy.name, "host": self.host.spec.name,
            "time_ns": self.now_ns if time_ns is None else time_ns, "kind": kind,
            "partition": partition, "guest": guest, "tried_pages": tried_pages,
            "merged_pages": merged_pages, "candidate_pages": candidate_pages, "cpu_ns": cpu_ns})


def call_cost_ns(stage: Stage, n_ranges: int) -> int:
    """What a guest's process pays for naming so many ranges: calls of `NAMES_A_CALL` at most."""
    cost = stage.spaces.cost
    return -(-n_ranges // NAMES_A_CALL) * cost.call_ns + n_ranges * cost.quick_ns
