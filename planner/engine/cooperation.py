"""What guests tell the host of their memory, and what telling costs.

Naming ranges: once, when a guest comes. Full cooperation: besides, every `TELL_NS` a guest leaves
out pages that are free (zero-filled, which is what a trace can tell of free pages) and pages that
it wrote in the last two intervals, and takes back those that have been quiet since. It knows no
more than what it has seen by then, so a page that is written for the first time is a candidate
until the guest's next word. Pages that are merged already stay merged.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.engine.stage import Stage, call_cost_ns

__all__ = ["TELL_NS", "name_ranges", "tell_free_and_volatile"]

#: How often guests tell which pages are free or volatile.
TELL_NS = 60_000_000_000
_LONG_AGO_NS = -(2**62)


def name_ranges(stage: Stage) -> Generator[simpy.Event, Any, None]:
    """Each guest names its ranges when it comes: a call for every run of regions it names."""
    candidate = (stage.partition_of_site >= 0) & (stage.host.site_eligible != 0)
    runs = _runs(stage, candidate)
    guest_of_mm = np.array([mm.guest for mm in stage.host.mms], np.int64)
    guest = guest_of_mm[stage.host.site_mm[runs]]
    n_left_out = np.bincount(guest_of_mm[stage.host.site_mm[
        ~candidate & (stage.host.site_eligible != 0)]], minlength=len(stage.host.guests))
    coming = sorted(range(len(stage.stays)), key=lambda each: (stage.stays[each].start_ns, each))
    for each in coming:
        if stage.stays[each].start_ns > stage.now_ns:
            yield stage.env.timeout(stage.stays[each].start_ns - stage.now_ns)
        cpu_ns = _book(stage, runs[guest == each])
        stage.record("ranges_named", guest=stage.host.guests[each].name,
                     tried_pages=int((guest == each).sum()),
                     candidate_pages=int(n_left_out[each]), cpu_ns=cpu_ns)


def tell_free_and_volatile(stage: Stage) -> Generator[simpy.Event, Any, None]:
    """The guests' word at 0 and every `TELL_NS` from then on."""
    host = stage.host
    candidate = (stage.partition_of_site >= 0) & (host.site_eligible != 0)
    content = host.site_content.copy()
    written_ns = np.full(len(content), _LONG_AGO_NS, np.int64)
    is_out = np.zeros(len(content), bool)
    at = 0
    while True:
        now_ns = stage.now_ns
        end = int(np.searchsorted(host.event_time_ns, now_ns, side="right"))
        site = host.event_site[at:end]
        content[site] = host.event_content[at:end]
        written_ns[site] = host.event_time_ns[at:end]
        at = end
        is_free = (content >= 0) & (host.content_is_zero[np.maximum(content, 0)] != 0)
        should_be_out = candidate & (content >= 0) \
            & (is_free | (written_ns > now_ns - 2 * TELL_NS))
        stage.advance()
        cpu_ns = n_ranges = 0
        for goes_out in (True, False):
            changed = (should_be_out if goes_out else ~should_be_out) & (is_out != goes_out)
            if changed.any():
                stage.spaces.leave_out(np.flatnonzero(changed).astype(np.int32), goes_out)
                runs = _runs(stage, changed)
                n_ranges += len(runs)
                cpu_ns += _book(stage, runs)
        is_out = should_be_out
        if n_ranges:
            stage.record("ranges_named", tried_pages=n_ranges,
                         candidate_pages=int(is_out.sum()), cpu_ns=cpu_ns)
        yield stage.env.timeout(TELL_NS)


def _runs(stage: Stage, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The first site of each run of chosen sites of one mm with no other site between them."""
    mm = stage.host.site_mm
    before = np.append(False, chosen[:-1]) & (np.diff(mm, prepend=mm[:1]) == 0)
    runs: npt.NDArray[np.int64] = np.flatnonzero(chosen & ~before)
    return runs


def _book(stage: Stage, runs: npt.NDArray[np.int64]) -> int:
    """Book the calls that name these runs to their partitions, mm by mm; returns the CPU time."""
    cpu_ns = 0
    key = stage.host.site_mm[runs].astype(np.int64) * len(stage.map.names) \
        + stage.partition_of_site[runs]
    for pair, n_ranges in zip(*np.unique(key, return_counts=True), strict=True):
        ns = call_cost_ns(stage, int(n_ranges))
        stage.spaces.book(int(pair % len(stage.map.names)), ns)
        cpu_ns += ns
    return cpu_ns
