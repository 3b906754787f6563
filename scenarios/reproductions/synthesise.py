"""Synthetic traces for published results whose data is not public: made from published numbers.

`make(folder)` writes them; every number comes from the text named beside it, the rest from a seeded
generator.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.ksm.cost import BUILTIN_UNMEASURED
from planner.trace import HashInfo, PageColumns, PageFlag, RegionFlag, RegionInput, TraceWriter

#: The counters of the Instagram host (cover letter of "mm: process/cgroup ksm support", 2023).
PAGES_SHARED = 129_547
PAGES_SHARING = 5_119_146
PAGES_UNSHARED = 1_760_924
PAGES_VOLATILE = 10_761_341
CHAINS = 167
DUPS = 2_751
MAX_PAGE_SHARING = 256

SECOND = 1_000_000_000
_START_VPN = 0x100000
_ANON = int(PageFlag.ANON | PageFlag.EXCLUSIVE)


def _copies(share: float) -> list[int]:
    """How many pages each merged content has, at `share` of the host: chains first."""
    n_chains = max(round(CHAINS * share), 1)
    dups = max(round(DUPS * share / n_chains), 2)
    chains = [dups * MAX_PAGE_SHARING] * n_chains
    n_plain = round((PAGES_SHARED - DUPS) * share)
    left = round((PAGES_SHARED + PAGES_SHARING) * share) - sum(chains)
    plain = [left // n_plain + (index < left % n_plain) for index in range(n_plain)]
    return chains + plain


def instagram(folder: Path, name: str, share: float, *, n_snapshots: int, every_ns: int) -> Path:
    """One process whose pages are merged, alone and volatile in the published proportions.

    A volatile page is another one in every snapshot. Pages lie in random order.
    """
    stream = np.random.Generator(np.random.Philox(key=2023))
    merged = np.repeat(np.arange(len(_copies(share)), dtype=np.uint64), _copies(share))
    n_alone = round(PAGES_UNSHARED * share)
    n_volatile = round(PAGES_VOLATILE * share)
    n_pages = len(merged) + n_alone + n_volatile
    place = stream.permutation(n_pages)
    fresh = np.uint64(1 << 40)
    contents: npt.NDArray[np.uint64] = np.concatenate(
        [merged, fresh + np.arange(n_alone + n_volatile, dtype=np.uint64)])
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    zero_hash = (1 << 63) + 1
    with TraceWriter(path, hash_info=HashInfo("xxh64-siphash24", 64, "00000000", zero_hash),
                     provenance={"source": "synthetic", "made_by": "reproduce.py"}) as writer:
        guest = writer.add_guest("web", "process", {}, n_pages * 4096)
        mm = writer.add_mm(guest, 1, "web")
        for snapshot in range(n_snapshots):
            contents[len(merged) + n_alone:] = fresh + np.uint64(
                n_alone + (snapshot + 1) * n_volatile) + np.arange(n_volatile, dtype=np.uint64)
            hashes = np.empty(n_pages, np.uint64)
            hashes[place] = contents
            writer.begin_snapshot(snapshot * every_ns)
            writer.write_mm(mm, PageColumns(
                np.arange(_START_VPN, _START_VPN + n_pages, dtype=np.int64), hashes,
                np.full(n_pages, _ANON, np.uint32), np.full(n_pages, -1, np.int32),
                np.full(n_pages, -1, np.int8)),
                [RegionInput(_START_VPN, _START_VPN + n_pages,
                             int(RegionFlag.ADVISED | RegionFlag.READ | RegionFlag.WRITE), "",
                             {"content": "anon"})])
            writer.end_snapshot(snapshot * every_ns, skipped={}, counters={})
        return writer.finish()


def costs(name: str) -> dict[str, int]:
    """Costs (ns by kind of visit) of the files beside this one, made from the built-in ones.

    `comparisons`: a nanosecond a level of a tree, so CPU time counts comparisons. `hundredfold`:
    a visit stands for a hundred, what is paid once a batch does not.
    """
    built_in = BUILTIN_UNMEASURED.costs_ns()
    if name == "comparisons":
        return {**dict.fromkeys(built_in, 0), "batch_ns": 1, "stable_level_ns": 1,
                "unstable_level_ns": 1}
    once = ("batch_ns", "scan_ns", "cold_percent")
    return {**{kind: value if kind in once else 100 * value for kind, value in built_in.items()},
            "cold_pages": max(built_in["cold_pages"] // 100, 1)}


def make(folder: Path) -> None:
    """Write all traces below `folder`, replacing those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    instagram(folder, "instagram", 1 / 1000, n_snapshots=81, every_ns=SECOND // 2)
    # A full scan of the whole host takes about 100 s: every volatile page changes once a minute.
    instagram(folder, "instagram-rest", 1 / 100, n_snapshots=31, every_ns=60 * SECOND)
