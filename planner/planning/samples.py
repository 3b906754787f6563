"""Samples of simulated hosts as arrays, and the fleet they stand for.

Hosts are sampled at times of their own: between two samples of a host the earlier one holds, the
last one until the end. A simulated host stands for `weight` machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Fleet", "HostSamples", "read_samples", "weighted_quantile"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What one replicate is like under every policy.

    `weights` gives by simulated host how many machines it stands for (1.0 each where all are
    simulated), `available_bytes` what its guests may have (memory without what is reserved),
    `n_cores` the cores of all machines together. `starts` lists (host, guest, start in ns) of the
    guests whose time to merge is told. `is_drawn`: guests were drawn, so figures are means over
    time after the warm-up; a replay tells the state at its end.
    """

    n_machines: int
    n_cores: int
    weights: Mapping[str, float]
    available_bytes: Mapping[str, int]
    warm_up_ns: int
    horizon_ns: int
    sample_every_ns: int
    is_drawn: bool
    confidence: float = 0.95
    content_share: float = 1.0
    n_guests: int = 0
    rejected_guests: int = 0
    hosts_used: int = 0
    starts: tuple[tuple[str, str, int], ...] = field(default=(), repr=False)

    @property
    def window_ns(self) -> int:
        """The time that is counted."""
        return max(0, self.horizon_ns - self.warm_up_ns)


@dataclass(frozen=True, slots=True, eq=False)
class HostSamples:
    """Rows sorted by host, then time; all arrays have shape (n_rows,) unless said.

    `host` indexes `hosts`; `until_ns` is when the next sample of that host was taken, or the
    horizon; `weight` (n_hosts,) machines each host stands for. `first` and `last` (n_hosts,) are
    the rows at which each host starts and ends.
    """

    hosts: tuple[str, ...]
    host: I64
    time_ns: I64
    until_ns: I64
    weight: F64
    first: I64
    last: I64
    columns: Mapping[str, I64 | None]

    def __getitem__(self, name: str) -> I64:
        values = self.columns[name]
        if values is None:
            raise KeyError(name)
        return values

    def has(self, name: str) -> bool:
        """Whether every sample has this column."""
        return self.columns[name] is not None

    def held_ns(self, start_ns: int, end_ns: int) -> I64:
        """For how long each row held within [start, end)."""
        held = np.minimum(self.until_ns, end_ns) - np.maximum(self.time_ns, start_ns)
        return np.asarray(np.maximum(held, 0), np.int64)

    def at(self, name: str, time_ns: int) -> I64:
        """The column of each host at a time (n_hosts,); 0 before its first sample."""
        return self.grid(name, np.array([time_ns], np.int64))[:, 0]

    def grid(self, name: str, times_ns: I64) -> I64:
        """The column of each host at ascending times: shape (n_hosts, n_times)."""
        values, out = self[name], np.zeros((len(self.hosts), len(times_ns)), np.int64)
        for index, (first, last) in enumerate(zip(self.first, self.last, strict=True)):
            place = np.searchsorted(self.time_ns[first:last + 1], times_ns, side="right") - 1
            out[index] = np.where(place >= 0, values[first + np.maximum(place, 0)], 0)
        return out

    def mean(self, name: str, start_ns: int, end_ns: int) -> float:
        """Mean over time of the fleet's total."""
        if end_ns <= start_ns:
            return self.end(name)
        held = self.held_ns(start_ns, end_ns).astype(np.float64)
        return float(np.sum(self[name] * held * self.weight[self.host]) / (end_ns - start_ns))

    def end(self, name: str) -> float:
        """The fleet's total at the end."""
        return float(np.sum(self[name][self.last] * self.weight))

    def risen(self, name: str, start_ns: int) -> float:
        """By how much a total that only rises rose from `start_ns` to the end."""
        at_start = self.at(name, start_ns) if start_ns > 0 else 0
        return float(np.sum((self[name][self.last] - at_start) * self.weight))

    def totals(self, name: str) -> tuple[I64, F64]:
        """Times at which any host was sampled, and the fleet's total at each."""
        values = self[name] * self.weight[self.host]
        change = np.diff(values, prepend=0.0)
        change[self.first] = values[self.first]
        order = np.argsort(self.time_ns, kind="stable")
        times = self.time_ns[order]
        total = np.cumsum(change[order])
        is_last = np.append(np.diff(times) > 0, True)
        return times[is_last], total[is_last]


def read_samples(table: pa.Table, weights: Mapping[str, float], horizon_ns: int) -> HostSamples:
    """The rows of one policy of a `planner.result.hosts` table; `weights` by host (default 1)."""
    names = np.asarray(table.column("host").to_pylist(), dtype=object)
    hosts, host = _numbered(names)
    time_ns = _integers(table, "time_ns")
    assert time_ns is not None, "time_ns is never null"
    order = np.lexsort((time_ns, host))
    host, time_ns = host[order], time_ns[order]
    is_first = np.diff(host, prepend=-1) != 0
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(host)) - 1
    until = np.append(time_ns[1:], horizon_ns)
    until[last] = np.maximum(horizon_ns, time_ns[last])
    columns: dict[str, I64 | None] = {}
    for name in table.column_names:
        if name not in ("policy", "host", "time_ns"):
            values = _integers(table, name)
            columns[name] = None if values is None else values[order]
    weight = np.array([weights.get(name, 1.0) for name in hosts], np.float64)
    return HostSamples(hosts, host, time_ns, until, weight, first.astype(np.int64),
                       last.astype(np.int64), columns)


def _numbered(names: NDArray[Any]) -> tuple[tuple[str, ...], I64]:
    """Distinct names in order of appearance, and the number of each."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return tuple(numbers), index


def _integers(table: pa.Table, name: str) -> I64 | None:
    column = table.column(name)
    if column.null_count:
        return None
    return np.asarray(column.to_numpy(), np.int64)


def weighted_quantile(values: NDArray[Any], weights: NDArray[Any], share: float) -> float:
    """The smallest value that has at least `share` of the weight at or below it.

    The inverse of the weighted distribution function, without interpolation: it is always a value
    that occurred. Rows without weight do not count; raises ValueError where none has any.
    """
    counted = np.asarray(weights) > 0
    if not counted.any():
        raise ValueError("nothing has weight")
    values, weights = np.asarray(values)[counted], np.asarray(weights, np.float64)[counted]
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    place = np.searchsorted(total, share * total[-1] * (1 - 1e-12), side="left")
    return float(values[order][min(int(place), len(order) - 1)])
