"""Captured guests as templates: the sites of a replay, cut at the snapshots.

What a page is, which of them share a frame and what KSM had merged is known to the replay
(`planner.fleet`); a template is a replayed guest at each moment of a snapshot.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.errors import DataError
from planner.fleet import FleetHost, build_host
from planner.population.model import Clock, Template
from planner.scenario.spec import HostSpec, Scenario, WorkloadSpec
from planner.trace import PAGE_BYTES, Trace

__all__ = ["CapturedWorkload", "capture_workload"]


@dataclass(frozen=True, slots=True, eq=False)
class CapturedWorkload:
    """The captured guests of a workload. `hash` u64[n] ascending and `is_zero` bool[n] of its own
    numbering of contents, which `templates` use; `sources`: (trace digest, guest id) of each
    template, the same where two workloads have the same guest.
    """

    templates: tuple[Template, ...]
    sources: tuple[tuple[str, int], ...]
    clock: Clock
    hash: npt.NDArray[np.uint64]
    is_zero: npt.NDArray[np.bool_]


def capture_workload(scenario: Scenario, index: int, trace: Trace, leave: Collection[str]
                     ) -> CapturedWorkload:
    """The templates of the scenario's workload `index`, guests named in `leave` left out.

    Raises DataError when no guest is left, none has a page, or no page is eligible (unless the
    workload says `mergeable: none`).
    """
    workload = scenario.workloads[index]
    guests = tuple(guest for guest in workload.guests if guest.name not in leave)
    if not guests:
        raise DataError(f"workload {workload.name!r} has no captured guest to draw from",
                        where="traces", instead="capture one at least, better three or more")
    host = _replay(scenario, replace(workload, guests=guests), trace)
    origin_ns = trace.snapshots[0].end_ns
    # Before the first event, and when all events of the epochs before a snapshot have happened.
    memory = host.memory_at([-1, *(s.start_ns - origin_ns for s in trace.snapshots[1:])])
    content = np.stack([part[0] for part in memory])
    frame = np.stack([part[1] for part in memory])
    guest_of_site = np.array([mm.guest for mm in host.mms], np.int64)[host.site_mm]
    known = {guest.guest_id: guest.memory_bytes for guest in trace.guests}
    templates = []
    for number, guest in enumerate(guests):
        site = np.flatnonzero(guest_of_site == number)
        moment = _moments(content[:, site])
        own = _template(host, index, number, site, content[np.ix_(moment, site)],
                        frame[np.ix_(moment, site)])
        held_bytes = int((own.content >= 0).sum(axis=1).max()) * PAGE_BYTES
        is_off = workload.mergeable == "none"
        templates.append(replace(
            own, memory_bytes=known[guest.trace_guest_id] or max(held_bytes, PAGE_BYTES),
            site_eligible=own.site_eligible * np.uint8(not is_off)))
    clock = Clock.of([snapshot.end_ns - origin_ns for snapshot in trace.snapshots])
    return CapturedWorkload(tuple(templates),
                            tuple((trace.digest, guest.trace_guest_id) for guest in guests),
                            clock, host.content_hash, host.content_is_zero.astype(bool))


def _replay(scenario: Scenario, workload: WorkloadSpec, trace: Trace) -> FleetHost:
    """The workload's guests as they were captured, on one machine, over all snapshots."""
    spec = HostSpec(workload.name, memory_bytes=0, reserved_bytes=0, cores=1, hz=250,
                    timings="builtin:unmeasured")
    is_off = workload.mergeable == "none"
    alone = replace(workload, host=spec.name, mergeable="all" if is_off else workload.mergeable)
    try:
        return build_host(replace(scenario, workloads=(alone,), horizon_ns=2**62), spec,
                          {workload.trace: trace})
    except DataError as error:
        raise DataError(f"workload {workload.name!r}: {error.what}", where=error.where,
                        instead=error.instead) from error


def _moments(content: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """The snapshot that stands for each one: itself, where the guest is there.

    A guest that came late is what it was first, one that left what it was last: drawn guests
    come and go when their scenario says.
    """
    present = np.flatnonzero((content >= 0).any(axis=1))
    every = np.arange(len(content))
    if not len(present):
        return every
    before: npt.NDArray[np.intp] = present[
        np.maximum(np.searchsorted(present, every, side="right") - 1, 0)]
    return before


def _template(host: FleetHost, workload: int, guest: int, site: npt.NDArray[np.int64],
              content: npt.NDArray[np.int32], frame: npt.NDArray[np.int32]) -> Template:
    """The guest's sites, with its mms, classes and frames numbered from 0."""
    mms, site_mm = np.unique(host.site_mm[site], return_inverse=True)
    classes, site_class = np.unique(host.site_class[site], return_inverse=True)
    has_frame = content >= 0
    frames, dense = np.unique(frame[has_frame], return_inverse=True)
    own_frame = np.full(frame.shape, -1, np.int32)
    own_frame[has_frame] = dense
    return Template(
        workload=workload, guest=host.guests[guest], memory_bytes=0,
        mm_start_vpn=np.array([host.mms[mm].start_vpn for mm in mms], np.int64),
        mm_end_vpn=np.array([host.mms[mm].end_vpn for mm in mms], np.int64),
        class_labels=tuple(host.classes[one].labels for one in classes),
        site_mm=site_mm.astype(np.int32), site_vpn=host.site_vpn[site],
        site_class=site_class.astype(np.int32), site_eligible=host.site_eligible[site],
        site_huge=host.site_huge[site], site_node=host.site_node[site],
        content=content, frame=own_frame, n_frames=len(frames))
