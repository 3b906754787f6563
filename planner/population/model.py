"""What a population is: contents with their kinds, captured guests as templates, their clock.

A guest that is drawn from a population is like one captured guest, its *template*, chosen by the
drawn guest's own random numbers. Contents that guests of the population have in common stay what
they are; private contents are replaced by fresh ones for every drawn guest, and for every pass
through the capture where they come and go (`Clock`). So no guest is ever replayed twice with the
same private contents.

Plain data; `planner.population.fit` makes it from traces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetGuest

__all__ = ["Clock", "ContentKind", "Contents", "Epoch", "Population", "Template",
           "WorkloadModel"]


class ContentKind(IntEnum):
    """What a content is to guests that are drawn. Up to `RARE_COMMON` it is *kept*: every guest
    drawn from a template that holds it holds this very content. The others are *private*: each
    drawn guest has a fresh content in its place.

    `ZERO`: the zero page. `COMMON_IMAGE`: seen in two captured guests or more, all of one image.
    `COMMON_ACROSS`: the same, of different images. `RARE_COMMON`: seen in one captured guest, but
    taken to be held by others of the population. `REPEATED_PRIVATE`: private, on two pages or more
    of its guest in one snapshot. `PRIVATE`: private, on one page.
    """

    ZERO = 0
    COMMON_IMAGE = 1
    COMMON_ACROSS = 2
    RARE_COMMON = 3
    REPEATED_PRIVATE = 4
    PRIVATE = 5


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """All contents of a population, one numbering over all workloads, by ascending hash.

    `hash` u64[n]; `kind` u8[n] (ContentKind); `incidence` i16[n_workloads, n]: in how many
    captured guests of each workload it was seen, in any snapshot; `is_lasting` bool[n]: some site
    holds it in the first and in the last snapshot. A private content that is not lasting is fresh
    in every pass through the capture, a lasting one is the same in all passes of one guest.
    """

    hash: npt.NDArray[np.uint64]
    kind: npt.NDArray[np.uint8]
    incidence: npt.NDArray[np.int16]
    is_lasting: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hash)

    @property
    def is_zero(self) -> npt.NDArray[np.bool_]:
        """bool[n]: the zero page's content (one for each page hash key)."""
        zero: npt.NDArray[np.bool_] = self.kind == ContentKind.ZERO
        return zero

    @property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """bool[n]: drawn guests hold this very content (zero, common and rare common)."""
        kept: npt.NDArray[np.bool_] = self.kind <= ContentKind.RARE_COMMON
        return kept


@dataclass(frozen=True, slots=True)
class Epoch:
    """Part of a guest's life in which it goes from snapshot `before` to `after`.

    `[start_ns, end_ns)` in the guest's own time (0: its start). `number` counts passes through
    the capture; `after_pass` is `number`, or `number + 1` where `after` is the first snapshot
    again.
    """

    number: int
    before: int
    after: int
    after_pass: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """When a guest is in which snapshot: the capture is passed through again and again.

    `offset_ns` i64[n_snapshots]: ends of the snapshots after the end of the first (first 0).
    `period_ns`: length of a pass: from the first snapshot to the last, and as long again as an
    epoch is on average, for the way back to the first. On that way only pages that differ are
    written. 0 for a single snapshot: such guests never change.

    A guest of phase p is, at its own time t, as far as p + t into its passes.
    """

    offset_ns: npt.NDArray[np.int64]
    period_ns: int

    @classmethod
    def of(cls, offset_ns: Sequence[int]) -> Clock:
        """The clock of a capture with snapshots at these offsets, the first 0, ascending."""
        offsets = np.asarray(offset_ns, np.int64)
        last, n_epochs = int(offsets[-1]), len(offsets) - 1
        return cls(offsets, last + last // n_epochs if n_epochs else 0)

    def at(self, phase_ns: npt.ArrayLike, time_ns: npt.ArrayLike
           ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(pass, snapshot) that guests of these phases have reached at their own times.

        Arrays broadcast; both results are i64. Changes of the current epoch count as not begun.
        """
        into = np.asarray(phase_ns, np.int64) + np.asarray(time_ns, np.int64)
        if not self.period_ns:
            return np.zeros_like(into), np.zeros_like(into)
        number, within = np.divmod(into, self.period_ns)
        return number, np.searchsorted(self.offset_ns, within, side="right") - 1

    def epochs(self, phase_ns: int, end_ns: int) -> list[Epoch]:
        """The epochs of a guest that begin before `end_ns` of its own time.

        At its start a guest is in the snapshot that `at` says; what differs between `before` and
        `after` changes at times within the epoch, all of the first one's after the start.
        The last one may end after `end_ns`: its changes are spread over all of it.
        """
        if not self.period_ns or end_ns <= 0:
            return []
        n_snapshots = len(self.offset_ns)
        bounds = [*self.offset_ns.tolist(), self.period_ns]
        passes, snapshots = self.at(phase_ns, 0)
        number, before = int(passes), int(snapshots)
        found = []
        start_ns = 0
        while start_ns < end_ns:
            next_ns = number * self.period_ns + bounds[before + 1] - phase_ns
            is_last = before + 1 == n_snapshots
            after, after_pass = (0, number + 1) if is_last else (before + 1, number)
            found.append(Epoch(number, before, after, after_pass, start_ns, next_ns))
            number, before, start_ns = after_pass, after, next_ns
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """One captured guest at its snapshots; n sites in scan order (mm, then vpn), s snapshots.

    `workload`: index into the population's. `guest`: as the scenario resolved it. `memory_bytes`:
    of the captured guest, what it holds where the trace does not say.
    `mm_start_vpn`, `mm_end_vpn` i64[n_mms]: bounds of each mm's sites.
    `class_labels`: labels of the region with the guest's on top, as in SiteClass; a drawn guest's
    own labels go on top of those.
    Sites: `site_mm` i32[n], `site_vpn` i64[n], `site_class` i32[n] (into `class_labels`),
    `site_eligible` u8[n], `site_huge` u8[n], `site_node` i8[n], as in FleetHost.
    `content` i32[s, n]: index into the population's contents, -1 absent. `frame` i32[s, n]: frames
    of this template, 0 to `n_frames`, -1 absent; equal ids are one frame (shared by fork). A site
    is written between two snapshots exactly where its content or its frame differs.
    """

    workload: int
    guest: FleetGuest
    memory_bytes: int
    mm_start_vpn: npt.NDArray[np.int64]
    mm_end_vpn: npt.NDArray[np.int64]
    class_labels: tuple[Mapping[str, str], ...]
    site_mm: npt.NDArray[np.int32]
    site_vpn: npt.NDArray[np.int64]
    site_class: npt.NDArray[np.int32]
    site_eligible: npt.NDArray[np.uint8]
    site_huge: npt.NDArray[np.uint8]
    site_node: npt.NDArray[np.int8]
    content: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]
    n_frames: int

    @property
    def n_sites(self) -> int:
        """How many sites any snapshot holds."""
        return len(self.site_vpn)

    def written(self, before: int, after: int) -> npt.NDArray[np.int64]:
        """Sites whose content or frame differs between two snapshots, ascending."""
        return np.flatnonzero((self.content[before] != self.content[after])
                              | (self.frame[before] != self.frame[after]))


@dataclass(frozen=True, slots=True, eq=False)
class WorkloadModel:
    """One workload class: `name`; `templates`, indices into the population's, one each captured
    guest; `weights` f64[k], with which guests are drawn from them (sum 1); `clock`;
    `rare_share`: share of the contents seen in one guest that is taken to be common all the same,
    and `rare_share_error`, its standard error.
    """

    name: str
    templates: tuple[int, ...]
    weights: npt.NDArray[np.float64]
    clock: Clock
    rare_share: float
    rare_share_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """Any number of guests of each workload class; `workloads` in the scenario's order."""

    workloads: tuple[WorkloadModel, ...]
    templates: tuple[Template, ...]
    contents: Contents

    @property
    def n_free(self) -> int:
        """Degrees of freedom of what resamples of the captured guests show: with so few of them
        an interval is Student's, not as wide as the resamples alone."""
        return sum(len(workload.templates) - 1 for workload in self.workloads)

    def draw(self, seed: int, replicate: int, workload: int, names: Sequence[str]
             ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Template (index into `templates`, i32[n]) and phase (i64[n], ns) of guests by name.

        They depend on nothing but seed, replicate and the guest's own name.
        """
        model = self.workloads[workload]
        uniform = _uniform_pairs(seed, replicate, names)
        edges = np.cumsum(model.weights)
        at = np.minimum(np.searchsorted(edges, uniform[:, 0] * edges[-1], side="right"),
                        len(edges) - 1)
        phase_ns = (uniform[:, 1] * model.clock.period_ns).astype(np.int64)
        return np.array(model.templates, np.int32)[at], phase_ns


def _uniform_pairs(seed: int, replicate: int, names: Sequence[str]
                   ) -> npt.NDArray[np.float64]:
    """Two uniform numbers in [0, 1) for each name, f64[n, 2], tied to the identity.

    A digest instead of a generator each: a fleet has 100,000 guests.
    """
    base = hashlib.blake2b(f"population\x1f{seed}\x1f{replicate}\x1f".encode(), digest_size=16)
    digests = []
    for name in names:
        each = base.copy()
        each.update(name.encode())
        digests.append(each.digest())
    bits = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
