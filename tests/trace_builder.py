"""Builds small traces for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.trace import (
    HashInfo,
    PageColumns,
    PageFlag,
    RegionFlag,
    RegionInput,
    TraceWriter,
)

ZERO_HASH = 0x1111_2222_3333_4444
ANON = int(PageFlag.ANON | PageFlag.EXCLUSIVE)
SECOND = 1_000_000_000


def pages_of(contents: Sequence[int | None], *, start_vpn: int = 0x1000,
             frames: Sequence[int] | None = None,
             flags: Sequence[int] | None = None) -> PageColumns:
    """Pages with these hashes from `start_vpn` on; None leaves the page out, 0 is the zero page."""
    kept = [index for index, content in enumerate(contents) if content is not None]
    hashes = [ZERO_HASH if contents[index] == 0 else contents[index] for index in kept]
    given = flags or [ANON | (PageFlag.ZERO if content == 0 else 0) for content in contents]
    return PageColumns(
        np.array([start_vpn + index for index in kept], np.int64),
        np.array(hashes, np.uint64),
        np.array([int(given[index]) for index in kept], np.uint32),
        np.array([frames[index] if frames else -1 for index in kept], np.int32),
        np.full(len(kept), -1, np.int8))


@dataclass
class MmPlan:
    """One mm: its pages per snapshot (None: the mm is not there)."""

    snapshots: Sequence[PageColumns | None]
    region_labels: Mapping[str, str] = field(default_factory=lambda: {"content": "anon"})
    region_flags: int = int(RegionFlag.ADVISED | RegionFlag.READ | RegionFlag.WRITE)


@dataclass
class GuestPlan:
    """One guest with its labels and mms."""

    name: str
    labels: Mapping[str, str]
    mms: Sequence[MmPlan]
    kind: str = "vm"


def build_trace(path: Path, guests: Sequence[GuestPlan], *, every_ns: int = 60 * SECOND,
                key_id: str = "0badcafe") -> Path:
    """Write a trace whose snapshot k starts at k * every_ns and takes one second."""
    n_snapshots = max(len(mm.snapshots) for guest in guests for mm in guest.mms)
    with TraceWriter(path, hash_info=HashInfo("xxh64-siphash24", 64, key_id, ZERO_HASH),
                     provenance={"source": "test"}) as writer:
        ids = []
        for guest in guests:
            guest_id = writer.add_guest(guest.name, guest.kind, guest.labels, 1 << 27)
            ids.append([writer.add_mm(guest_id, 100, "test") for _ in guest.mms])
        for snapshot in range(n_snapshots):
            writer.begin_snapshot(snapshot * every_ns)
            for guest, mm_ids in zip(guests, ids, strict=True):
                for mm, mm_id in zip(guest.mms, mm_ids, strict=True):
                    pages = mm.snapshots[snapshot] if snapshot < len(mm.snapshots) else None
                    if pages is not None:
                        writer.write_mm(mm_id, pages, [RegionInput(
                            0x1000, 0x100000, mm.region_flags, "", mm.region_labels)])
            writer.end_snapshot(snapshot * every_ns + SECOND, skipped={}, counters={})
        return writer.finish()
