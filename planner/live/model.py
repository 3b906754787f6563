"""The model of one host, run over captured contents and read at given times.

Two questions are put to it. The *forecast* knows only what was captured before ksmd started: the
last contents stay, except that pages which changed between those snapshots go on changing at
that pace, each time to a content found nowhere else. The *replay* knows the snapshots taken
along the way, too, so that what is left of its error is the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost, build_host, random_stream
from planner.ksm import CostModel, EventTable, MergeSpaces, SiteTable
from planner.ksm.knobs import KernelVersion, Knobs
from planner.scenario.spec import (
    DomainsSpec,
    GuestSpec,
    HostSpec,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
    WorkloadSpec,
)
from planner.trace import Trace

__all__ = ["SERIES", "Setting", "forecast_host", "host_of", "kernel_of", "replay_host",
           "run_model", "warm_up_ns"]

I64 = npt.NDArray[np.int64]
#: What `run_model` reads, by the names of the kernel's files where it has them.
SERIES = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned",
          "pages_skipped", "full_scans", "ksm_zero_pages", "frames", "base_frames",
          "ksmd_cpu_ns", "cow_breaks")
_SEED = 1
#: Full scans after which smart_scan skips as much as it ever will.
_SETTLED_SCANS = 14
_WARM_UP_LIMIT_NS = 4 * 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Setting:
    """How ksmd runs: the kernel's behaviour, its settings, what a visit costs."""

    kernel: KernelVersion
    knobs: Knobs
    cost: CostModel

    @classmethod
    def of_files(cls, kernel: KernelVersion, files: Mapping[str, int | str],
                 cost: CostModel) -> Setting:
        """From the files of /sys/kernel/mm/ksm by name; those that steer nothing are left out."""
        known = {each.name for each in fields(Knobs)} & set(files)
        is_flag = {"smart_scan", "use_zero_pages", "merge_across_nodes"}
        changes: dict[str, Any] = {name: bool(files[name]) if name in is_flag else files[name]
                                   for name in known}
        return cls(kernel, Knobs.of_kernel(kernel, **changes), cost)


def kernel_of(release: str) -> KernelVersion:
    """The modelled kernel that behaves as `release` (such as 6.12.38) does, or comes closest.

    Hashing before the search, and zero-filled parts of split huge pages that go to the zero page,
    came between 6.1 and 6.12; docs/ksm-model.md lists what differs.
    """
    match = re.match(r"(\d+)\.(\d+)", release)
    number = (int(match[1]), int(match[2])) if match else (6, 18)
    return "6.1" if number < (6, 11) else "6.12" if number < (6, 13) else "6.18"


@dataclass(frozen=True, slots=True)
class _State:
    """Contents and base frames of all sites at one time, i32[n_sites] each."""

    content: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]


def host_of(trace: Trace, hz: int) -> FleetHost:
    """All guests of a trace on one host; time 0 is the end of the first snapshot.

    Raises DataError when none of their pages is mergeable.
    """
    guests = tuple(GuestSpec(guest.guest_id, guest.name, guest.name, guest.name, ())
                   for guest in trace.guests)
    scenario = Scenario(
        1, "live", _SEED, trace.span_ns,
        (HostSpec("host", 1 << 40, 0, 1, hz, "builtin:unmeasured"),),
        (WorkloadSpec("all", str(trace), trace.digest, "host", (), guests, "captured"),),
        DomainsSpec((), ()), (PolicySpec("off", (), (), Never()),),
        OutputSpec("results", 1_000_000_000))
    return build_host(scenario, scenario.hosts[0], {str(trace): trace})


def _state_at(host: FleetHost, n_events: int) -> _State:
    content, frame = host.site_content.copy(), host.site_frame.copy()
    site = host.event_site[:n_events]
    # Of several writes to a site the last one in the order of time stays.
    last = len(site) - 1 - np.unique(site[::-1], return_index=True)[1]
    content[site[last]] = host.event_content[last]
    frame[site[last]] = host.event_frame[last]
    return _State(content, frame)


def replay_host(host: FleetHost, start_ns: int) -> FleetHost:
    """The host from `start_ns` on, as its time 0, with all later events."""
    n_before = int(np.searchsorted(host.event_time_ns, start_ns, side="right"))
    state = _state_at(host, n_before)
    return replace(
        host, site_content=state.content, site_frame=state.frame,
        event_time_ns=host.event_time_ns[n_before:] - start_ns,
        event_site=host.event_site[n_before:], event_content=host.event_content[n_before:],
        event_frame=host.event_frame[n_before:])


def forecast_host(host: FleetHost, start_ns: int, *, before_ns: int, duration_ns: int) -> FleetHost:
    """The host from `start_ns` on as foretold from its events in `[0, before_ns]`.

    A page that was written n times in that time is written n times in each time as long from
    then on, at random, until `duration_ns`; every content is new and its own.
    """
    n_before = int(np.searchsorted(host.event_time_ns, before_ns, side="right"))
    state = _state_at(host, n_before)
    writes = host.event_site[:n_before][host.event_content[:n_before] >= 0]
    # What appeared is there to stay; what was there and was written is churn.
    writes = writes[(host.site_content[writes] >= 0) & (state.content[writes] >= 0)]
    site, time_ns = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    if before_ns > 0 and len(writes):
        stream = random_stream(_SEED, "forecast", len(writes))
        for first_ns in range(0, duration_ns, before_ns):
            drawn = first_ns + (stream.random(len(writes)) * before_ns).astype(np.int64)
            site.append(writes.astype(np.int32))
            time_ns.append(drawn)
    sites, times = np.concatenate(site), np.concatenate(time_ns)
    order = np.argsort(times, kind="stable")
    sites, times = sites[order], times[order]
    keep = times < duration_ns
    sites, times = sites[keep], times[keep]
    n_contents = len(host.content_is_zero)
    return replace(
        host, site_content=state.content, site_frame=state.frame, event_time_ns=times,
        event_site=sites,
        event_content=np.arange(n_contents, n_contents + len(sites), dtype=np.int32),
        event_frame=np.arange(host.n_frames, host.n_frames + len(sites), dtype=np.int32),
        content_is_zero=np.concatenate(
            [host.content_is_zero, np.zeros(len(sites), np.uint8)]),
        n_frames=host.n_frames + len(sites))


def _spaces(host: FleetHost, setting: Setting) -> MergeSpaces:
    n_sites = len(host.site_mm)
    zeros = np.zeros(n_sites, np.int32)
    spaces = MergeSpaces(
        SiteTable(host.site_mm, host.site_vpn, zeros, zeros, host.site_eligible,
                  host.site_content, host.site_frame, host.site_huge),
        EventTable(host.event_time_ns, host.event_site, host.event_content, host.event_frame),
        n_partitions=1, content_is_zero=host.content_is_zero,
        domain_is_sensitive=np.zeros(1, np.uint8), kernel=setting.kernel, hz=host.spec.hz,
        cost=setting.cost, trees="auto")
    spaces.start_scanner(0, setting.knobs)
    return spaces


def warm_up_ns(host: FleetHost, setting: Setting) -> int:
    """How long ksmd takes over the host's first contents until it has settled, ns."""
    still = replace(host, event_time_ns=host.event_time_ns[:0], event_site=host.event_site[:0],
                    event_content=host.event_content[:0], event_frame=host.event_frame[:0])
    spaces = _spaces(still, setting)
    step_ns = 1_000_000_000
    while spaces.now_ns < _WARM_UP_LIMIT_NS and spaces.counters().full_scans < _SETTLED_SCANS:
        spaces.advance(spaces.now_ns + step_ns)
        step_ns = min(2 * step_ns, 600 * 10**9)
    return spaces.now_ns


def run_model(host: FleetHost, setting: Setting, times_ns: I64) -> dict[str, I64]:
    """The model's counters (SERIES) at rising `times_ns` (i64[n]); ksmd starts at 0."""
    spaces = _spaces(host, setting)
    rows = []
    for time_ns in times_ns.tolist():
        spaces.advance(time_ns)
        found = spaces.counters()
        rows.append([int(getattr(found, name)) if name != "ksmd_cpu_ns" else found.merge_cpu_ns
                     for name in SERIES])
    table = np.array(rows, np.int64).reshape(len(rows), len(SERIES))
    return {name: table[:, index] for index, name in enumerate(SERIES)}
