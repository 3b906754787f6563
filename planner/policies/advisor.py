"""An advisor for Selective KSM: how often a partition is merged, and which of its ranges.

It knows only what calls return: pages merged and CPU time. The scan-time advisor of ksmd has a
full scan's length for its target; calls have none, so the target here is worth: bytes freed per
second of CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.scenario.spec import SyncAdvisor

__all__ = ["PartitionAdvisor"]


class PartitionAdvisor:
    """The advisor's state for one partition of `n_ranges` ranges.

    The interval starts at the shortest. After a round of calls that freed more than the target a
    CPU second it is halved, else doubled, within its bounds. A range that freed nothing
    `drop_after` times in a row is left out; all are back once the interval is the longest, so
    that nothing is left out for ever.
    """

    def __init__(self, spec: SyncAdvisor, n_ranges: int) -> None:
        self._spec = spec
        self._n_idle = [0] * n_ranges
        self.interval_ns = spec.shortest_ns

    def ranges(self) -> list[int]:
        """Indices of the ranges to call now, ascending."""
        return [index for index, n_idle in enumerate(self._n_idle)
                if n_idle < self._spec.drop_after]

    def learn(self, found: Sequence[tuple[int, int, int]]) -> None:
        """What the calls of a round came to: (range, bytes freed, CPU ns) of each."""
        spec = self._spec
        freed = sum(n_bytes for _, n_bytes, _ in found)
        cpu_ns = sum(ns for _, _, ns in found)
        for index, n_bytes, _ in found:
            self._n_idle[index] = 0 if n_bytes else self._n_idle[index] + 1
        if freed * 10**9 > spec.target_bytes_per_cpu_s * cpu_ns:
            self.interval_ns = max(spec.shortest_ns, self.interval_ns // 2)
        else:
            self.interval_ns = min(spec.longest_ns, self.interval_ns * 2)
        if self.interval_ns >= spec.longest_ns:
            self._n_idle = [0] * len(self._n_idle)
