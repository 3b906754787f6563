"""Storms of COW breaks: whole sampling intervals in which merges are undone fast.

Each break takes a frame of its own. The line is stated as memory: breaks that take more than
`STORM_SHARE_PER_MINUTE` of what a host's guests may have in a minute are a storm there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner.planning.samples import Fleet, HostSamples, weighted_quantile

__all__ = ["MAX_STORMS", "STORM_SHARE_PER_MINUTE", "Storm", "Storms", "storms"]

STORM_SHARE_PER_MINUTE = 0.01
#: Storms kept of one policy and replicate: those that took most memory.
MAX_STORMS = 10
_BYTES_PER_PAGE = 4096
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Storm:
    """Intervals in a row above the line on one host: [start_ns, end_ns)."""

    host: str
    start_ns: int
    end_ns: int
    n_breaks: int
    peak_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Storms:
    """COW breaks a second over hosts and intervals after the warm-up.

    `storm_ns` is host-time in storms, over all machines that the hosts stand for.
    """

    p99_per_s: float
    worst_per_s: float
    worst_host: str | None
    worst_time_ns: int | None
    storm_ns: int
    listed: tuple[Storm, ...]


def storms(samples: HostSamples, fleet: Fleet) -> Storms:
    """Rates between times one sampling interval apart: samples in between would show one event
    as a storm. A run shorter than an interval is one interval."""
    start_ns, end_ns = fleet.warm_up_ns, fleet.horizon_ns
    if end_ns <= start_ns or not len(samples.hosts):
        return Storms(0.0, 0.0, None, None, 0, ())
    step_ns = min(max(1, fleet.sample_every_ns), end_ns - start_ns)
    times = np.append(np.arange(start_ns, end_ns, step_ns, dtype=np.int64), end_ns)
    if len(times) > 2 and times[-1] - times[-2] < step_ns:
        # A short rest belongs to the interval before it.
        times = np.delete(times, -2)
    broken = np.diff(samples.grid("cow_breaks", times), axis=1)
    spans = np.diff(times)
    rates = broken * _SECOND / spans
    weights = samples.weight[:, None] * spans[None, :].astype(np.float64)
    worst = np.unravel_index(int(np.argmax(rates)), rates.shape)
    is_any = bool(rates[worst] > 0)
    is_storm = rates > _lines(samples, fleet)[:, None]
    return Storms(
        weighted_quantile(rates.ravel(), weights.ravel(), 0.99), float(rates[worst]),
        samples.hosts[int(worst[0])] if is_any else None,
        int(times[int(worst[1])]) if is_any else None,
        round(float(np.sum(weights[is_storm]))),
        _listed(samples.hosts, times, broken, rates, is_storm))


def _lines(samples: HostSamples, fleet: Fleet) -> Any:
    """Breaks a second that make a storm, by host."""
    room = np.array([fleet.available_bytes.get(host, 0) for host in samples.hosts], np.float64)
    guests = np.maximum.reduceat(samples["guest_memory_bytes"], samples.first)
    room = np.where(room > 0, room, guests)
    return STORM_SHARE_PER_MINUTE * room / _BYTES_PER_PAGE / 60


def _listed(hosts: tuple[str, ...], times: Any, broken: Any, rates: Any, is_storm: Any,
            ) -> tuple[Storm, ...]:
    found = []
    for index in np.flatnonzero(is_storm.any(axis=1)):
        edges = np.diff(is_storm[index].astype(np.int8), prepend=0, append=0)
        for first, end in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
            found.append(Storm(hosts[index], int(times[first]), int(times[end]),
                               int(broken[index, first:end].sum()),
                               float(rates[index, first:end].max())))
    found.sort(key=lambda storm: (-storm.n_breaks, storm.start_ns, storm.host))
    return tuple(found[:MAX_STORMS])
