"""Guests give zero-filled pages back to the host, without KSM: a baseline for the zero part.

It is the best that free-page reporting or a balloon could do: every zero-filled page counts as
free (a trace cannot tell them apart), and reporting, which works in blocks of 2 MiB, is taken to
reach each page at once. Nothing is shared, so nothing is exposed. Giving a page back costs
`quick_ns` and each inflation a call; a page that is used again faults, which its guest pays
(`cow_break_ns`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from planner.engine.stage import Stage
from planner.scenario.spec import FreePages

__all__ = ["GivenBack"]

#: Of contents: the page goes with its guest or process. (One that leaves a sample is written.)
_GONE = -1


class GivenBack:
    """The pages of some partitions that are given back now, and what that has cost so far."""

    def __init__(self, stage: Stage, spec: FreePages, mine: Sequence[int]) -> None:
        self._stage = stage
        self._spec = spec
        host = stage.host
        self._candidate = (host.site_eligible != 0) & np.isin(stage.partition_of_site, mine)
        self._content = host.site_content.copy()
        self._frame = host.site_frame.copy()
        self._is_given = np.zeros(len(self._content), bool)
        self._at = 0
        self.n_returned = 0
        if spec.kind == "reporting":
            self._give(self._candidate & self._is_zero(self._content))

    def process(self) -> Generator[simpy.Event, Any, None]:
        """The balloon, inflated every so often; reporting needs no clock."""
        while self._spec.kind == "balloon":
            yield self._stage.env.timeout(self._spec.every_ns)
            self.update()
            n_given = self._give(self._candidate & self._is_zero(self._content))
            self._stage.record("pages_given_back", tried_pages=n_given)

    def update(self) -> None:
        """Follow the writes up to now."""
        host = self._stage.host
        end = int(np.searchsorted(host.event_time_ns, self._stage.now_ns, side="right"))
        site = host.event_site[self._at:end]
        if not len(site):
            return
        after = host.event_content[self._at:end]
        frame = host.event_frame[self._at:end]
        self._at = end
        # Writes to one page follow each other in time: what each found is what the last one left.
        order = np.argsort(site, kind="stable")
        of_site, written = site[order], after[order]
        is_first = np.append(True, of_site[1:] != of_site[:-1])
        found = np.where(is_first, self._content[of_site], np.roll(written, 1))
        mine = self._candidate[of_site]
        zero_before, zero_after = self._is_zero(found), self._is_zero(written)
        is_used = written != _GONE
        if self._spec.kind == "reporting":
            given = np.bincount(self._stage.partition_of_site[
                of_site[mine & zero_after & ~zero_before]], minlength=len(self._stage.map.names))
            self._book(given)
            self.n_returned += int((mine & zero_before & is_used & ~zero_after).sum())
        else:
            self.n_returned += int((self._is_given[of_site] & is_first & is_used).sum())
        self._content[site], self._frame[site] = after, frame
        if self._spec.kind == "reporting":
            self._is_given[site] = self._candidate[site] & self._is_zero(self._content[site])
        else:
            self._is_given[site] = False

    def freed_frames(self) -> npt.NDArray[np.int64]:
        """Frames given back now, by partition: those that nobody who has them keeps."""
        present = self._content >= 0
        n_frames = self._stage.host.n_frames
        kept = np.bincount(self._frame[present & ~self._is_given], minlength=n_frames)
        given = np.flatnonzero(self._is_given)
        given = given[kept[self._frame[given]] == 0]
        first = given[np.unique(self._frame[given], return_index=True)[1]]
        freed: npt.NDArray[np.int64] = np.bincount(
            self._stage.partition_of_site[first], minlength=len(self._stage.map.names))
        return freed

    @property
    def fault_ns(self) -> int:
        """What guests paid for pages that they used again."""
        return self.n_returned * self._stage.spaces.cost.cow_break_ns

    def _give(self, chosen: npt.NDArray[np.bool_]) -> int:
        """Give these pages back, mm by mm; returns how many were not given before."""
        new = chosen & ~self._is_given
        self._is_given |= chosen
        partition = self._stage.partition_of_site
        n_names = len(self._stage.map.names)
        self._book(np.bincount(partition[new], minlength=n_names))
        if self._spec.kind == "balloon":
            calls = np.unique(self._stage.host.site_mm[new].astype(np.int64) * n_names
                              + partition[new])
            for pair in calls.tolist():
                self._stage.spaces.book(pair % n_names, self._stage.spaces.cost.call_ns)
        return int(new.sum())

    def _book(self, n_pages: npt.NDArray[np.int64]) -> None:
        for partition in np.flatnonzero(n_pages).tolist():
            self._stage.spaces.book(
                partition, int(n_pages[partition]) * self._stage.spaces.cost.quick_ns)

    def _is_zero(self, content: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        zero: npt.NDArray[np.bool_] = (content >= 0) \
            & (self._stage.host.content_is_zero[np.maximum(content, 0)] != 0)
        return zero
