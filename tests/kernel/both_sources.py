"""Runs inside the test machine: the module and /proc give one trace of quiet processes.

    python -m tests.kernel.both_sources SEED N_ROUNDS

Each round starts processes with random memory of every kind (forked, huge, merged, swapped, in the
swap cache, locked, shared, zero), lets it settle, captures it through both sources and compares.
Prints TAP; the first differences follow a `not ok` as comments.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.capture import CaptureRequest, capture
from planner.capture.procfs import FrameTable, ProcRoot, marks_ksm_exactly
from planner.doctor import examine
from planner.sitekey import SiteKey, key_id_of
from planner.trace import PageColumns, PageFlag, Region, RegionFlag, Trace, open_trace
from tests.kernel.processes import Mapping, Process, ProcessMaker, content
from tests.oracles.pagehash import page_hash

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")
SITE_KEY = SiteKey(KEY, key_id_of(KEY), Path("site.key"))
KSM = Path("/sys/kernel/mm/ksm")
KHUGEPAGED = Path("/sys/kernel/mm/transparent_hugepage/khugepaged")
#: What both sources can tell (docs/capture.md).
COMMON = np.uint32(int(
    PageFlag.ANON | PageFlag.FILE | PageFlag.SHMEM | PageFlag.ZERO | PageFlag.ZERO_PAGE
    | PageFlag.THP | PageFlag.KSM | PageFlag.SWAPPED | PageFlag.UNREADABLE | PageFlag.MIGRATION
    | PageFlag.SWAPCACHE | PageFlag.LOCKED | PageFlag.COMPOUND | PageFlag.EXCLUSIVE))
KSM_FLAG = np.uint32(int(PageFlag.KSM))
#: Each of these must have been met in every round, or the comparison says little.
WANTED = (PageFlag.THP, PageFlag.KSM, PageFlag.SWAPPED, PageFlag.ZERO_PAGE, PageFlag.SHMEM,
          PageFlag.FILE, PageFlag.LOCKED, PageFlag.SWAPCACHE, PageFlag.EXCLUSIVE)

Seeds = dict[int, int | str | None]


class Round:
    """The processes of one round: pids, and the mappings whose content is known."""

    def __init__(self, rng: random.Random, make: ProcessMaker) -> None:
        self.rng, self.make = rng, make
        self.pids: list[int] = []
        self.known: list[tuple[int, Mapping]] = []

    def build(self) -> None:
        """Memory of every kind, in random amounts; then merging and paging out."""
        processes = [self.make() for _ in range(3)]
        self.pids = [process.pid for process in processes]
        for process in processes:
            self._small(process)
            self._huge(process)
            self._merged(process)
            self._shared(process)
        swapped = [self._swapped(process) for process in processes]
        child = processes[0].fork()
        self.pids.append(child)
        self._write_some(processes[0])
        if self.rng.random() < 0.5:
            processes[1].fork()
            # It leaves pages that are mapped once and not marked exclusive.
            processes[1].do("reap")
        merge()
        for process, mapping in zip(processes, swapped, strict=True):
            # What a fork has as well comes back through the swap cache and stays there.
            process.do("write", address=mapping.address,
                       pages=[(i, "touch") for i in self.rng.sample(range(200), 60)])

    def _seeds(self, n_pages: int) -> Seeds:
        """Random contents of some of n pages; few contents, zero and untouched among them."""
        rng = self.rng
        kinds: list[int | str | None] = [None, "touch", *range(1, 40)]
        share = rng.random()
        return {i: rng.choice(kinds) for i in range(n_pages) if rng.random() < share}

    def _keep(self, process: Process, mapping: Mapping) -> None:
        self.known.append((process.pid, mapping))

    def _small(self, process: Process) -> None:
        n_pages = self.rng.randrange(50, 700)
        mapping = process.map(n_pages, self._seeds(n_pages))
        self._keep(process, mapping)
        locked = process.map(40, {i: i for i in range(0, 40, 1 + self.rng.randrange(3))})
        process.do("lock", address=locked.address, n_pages=40)
        self._keep(process, locked)

    def _huge(self, process: Process) -> None:
        n_pages = 512 * self.rng.randrange(1, 3)
        self._keep(process, process.map(n_pages, {
            i: self.rng.randrange(1, 99) for i in range(0, n_pages, self.rng.randrange(1, 64))},
            huge=True))
        # Read only: the huge zero page, where the kernel has one.
        self._keep(process, process.map(512, {self.rng.randrange(512): "touch"}, huge=True))

    def _merged(self, process: Process) -> None:
        seeds: Seeds = {i: i % self.rng.randrange(2, 60) + 1 for i in range(300)}
        self._keep(process, process.map(320, seeds, mergeable=True))

    def _shared(self, process: Process) -> None:
        process.map(64, {i: i for i in range(0, 64, 1 + self.rng.randrange(3))}, shared=True)

    def _write_some(self, process: Process) -> None:
        for index, (pid, mapping) in enumerate(self.known):
            if pid == process.pid and mapping.seeds:
                pages = {i: 7000 + i for i in self.rng.sample(
                    sorted(mapping.seeds), min(9, len(mapping.seeds)))}
                process.do("write", address=mapping.address, pages=list(pages.items()))
                self.known[index] = (pid, Mapping(mapping.address, mapping.n_pages,
                                                  mapping.seeds | pages))

    def _swapped(self, process: Process) -> Mapping:
        mapping = process.map(256, {i: 500 + i for i in range(256)})
        process.do("pageout", address=mapping.address, n_pages=200)
        self._keep(process, mapping)
        return mapping


def merge() -> None:
    """Some full scans of ksmd, then stopped: merged pages stay."""
    (KSM / "pages_to_scan").write_text("100000\n")
    (KSM / "sleep_millisecs").write_text("1\n")
    first = int((KSM / "full_scans").read_text())
    (KSM / "run").write_text("1\n")
    end = time.monotonic() + 60
    while int((KSM / "full_scans").read_text()) < first + 4:
        assert time.monotonic() < end, "ksmd does not scan"
        time.sleep(0.02)
    (KSM / "run").write_text("0\n")


def take(pids: list[int], source: str, include: str) -> Trace:
    """A capture of one snapshot."""
    return open_trace(capture(CaptureRequest(
        key=SITE_KEY, out=Path(f"/tmp/{source}"), pids=tuple(pids), include=include,
        source=source, force=True)))


def differences(one: Trace, other: Trace, *, is_ksm_exact: bool = True) -> Iterator[str]:
    """Where two traces of one snapshot each differ, as far as both sources can tell.

    Without `is_ksm_exact`, the second may call what fork shares merged in a mapping that has
    merged pages (docs/capture.md).
    """
    frames: dict[int, int] = {}
    back: dict[int, int] = {}
    if [mm.pid for mm in one.mms] != [mm.pid for mm in other.mms]:
        yield f"mms {one.mms} and {other.mms}"
        return
    if one.hash_info != other.hash_info:
        yield f"{one.hash_info} and {other.hash_info}"
    for mm in one.mms:
        where = f"pid {mm.pid}"
        mine, its = ([(r.start_vpn, r.end_vpn, RegionFlag(r.flags), r.name, r.labels)
                      for r in trace.mm_regions(0, mm.mm_id)] for trace in (one, other))
        yield from (f"{where} region {a} and {b}" for a, b in zip(mine, its, strict=False)
                    if a != b)
        if len(mine) != len(its):
            yield f"{where}: {len(mine)} and {len(its)} regions"
        a, b = one.mm_pages(0, mm.mm_id), other.mm_pages(0, mm.mm_id)
        if not is_ksm_exact:
            b = replace(b, flags=_without_false_ksm(a, b, one.mm_regions(0, mm.mm_id)))
        yield from (f"{where} {line}" for line in page_differences(a, b, frames, back))


def _without_false_ksm(a: PageColumns, b: PageColumns, regions: Sequence[Region]
                       ) -> npt.NDArray[np.uint32]:
    """Flags of `b`, KSM taken from `a` for shared frames of regions where `a` has merged pages."""
    flags = b.flags.copy()
    for region in regions:
        bounds = [region.start_vpn, region.end_vpn]
        in_a, in_b = slice(*np.searchsorted(a.vpn, bounds)), slice(*np.searchsorted(b.vpn, bounds))
        if (a.flags[in_a] & KSM_FLAG).any() and np.array_equal(a.vpn[in_a], b.vpn[in_b]):
            is_shared = (b.frame_id[in_b] >= 0) & (flags[in_b] & KSM_FLAG != 0)
            flags[in_b] = np.where(is_shared, flags[in_b] & ~KSM_FLAG | a.flags[in_a] & KSM_FLAG,
                                   flags[in_b])
    return flags


def page_differences(a: PageColumns, b: PageColumns, frames: dict[int, int],
                     back: dict[int, int]) -> Iterator[str]:
    """The same for the pages of one mm; `frames` maps frame ids both ways, over all mms."""
    for vpn in np.setdiff1d(a.vpn, b.vpn).tolist():
        flags = PageFlag(int(a.flags[np.searchsorted(a.vpn, vpn)]))
        yield f"vpn {vpn:#x} {flags!r} is only in the first"
    for vpn in np.setdiff1d(b.vpn, a.vpn).tolist():
        flags = PageFlag(int(b.flags[np.searchsorted(b.vpn, vpn)]))
        yield f"vpn {vpn:#x} {flags!r} is only in the second"
    both = np.intersect1d(a.vpn, b.vpn)
    a, b = a.take(np.searchsorted(a.vpn, both)), b.take(np.searchsorted(b.vpn, both))
    for i in np.flatnonzero((a.hash != b.hash) | ((a.flags ^ b.flags) & COMMON != 0)
                            | (a.numa_node != b.numa_node)).tolist():
        yield (f"vpn {int(a.vpn[i]):#x}: {int(a.hash[i]):x} {PageFlag(int(a.flags[i]))!r} node "
               f"{a.numa_node[i]} and {int(b.hash[i]):x} {PageFlag(int(b.flags[i]))!r} node "
               f"{b.numa_node[i]}")
    for vpn, mine, its in zip(a.vpn.tolist(), a.frame_id.tolist(), b.frame_id.tolist(),
                              strict=True):
        if (mine < 0) != (its < 0) or (mine >= 0 and (
                frames.setdefault(mine, its) != its or back.setdefault(its, mine) != mine)):
            yield f"vpn {vpn:#x}: frames {mine} and {its}"


def unmet(trace: Trace) -> list[str]:
    """Kinds of pages that should be in a trace and are not."""
    flags = np.concatenate([trace.mm_pages(0, mm.mm_id).flags for mm in trace.mms])
    frame_ids = np.concatenate([trace.mm_pages(0, mm.mm_id).frame_id for mm in trace.mms])
    missing = [str(flag.name) for flag in WANTED if not (flags & np.uint32(flag)).any()]
    is_forked = (frame_ids >= 0) & (flags & np.uint32(PageFlag.ANON) != 0) & (
        flags & np.uint32(PageFlag.KSM) == 0)
    return missing + ([] if is_forked.any() else ["forked"])


def wrong_hashes(trace: Trace, known: list[tuple[int, Mapping]]) -> Iterator[str]:
    """Pages whose hash is not that of what was written there, by an independent function."""
    hashes: dict[object, int] = {}
    mm_ids = {mm.pid: mm.mm_id for mm in trace.mms}
    n_seen = 0
    for pid, mapping in known:
        pages = trace.mm_pages(0, mm_ids[pid])
        listed = {int(v): i for i, v in enumerate(pages.vpn)}
        has_hash = pages.has_hash
        for index, seed in mapping.seeds.items():
            at = listed.get(mapping.start_vpn + index)
            if at is None:
                yield f"pid {pid} page {index} of {mapping.start_vpn:#x} is missing"
            elif has_hash[at]:
                n_seen += 1
                if seed not in hashes:
                    hashes[seed] = page_hash(content(seed), KEY)
                if int(pages.hash[at]) != hashes[seed]:
                    yield f"pid {pid} page {index} of {mapping.start_vpn:#x} seed {seed}"
    if n_seen < 500:
        yield f"only {n_seen} pages were compared"


class Tap:
    """Counts checks and prints them."""

    def __init__(self) -> None:
        self.n = 0

    def check(self, what: str, problems: Iterator[str] | list[str]) -> None:
        """One check: ok when there are no problems; the first ones are shown."""
        self.n += 1
        found = list(islice(problems, 12))
        print(f"{'not ok' if found else 'ok'} {self.n} - {what}", flush=True)
        for problem in found:
            print(f"# {problem}", flush=True)


def run_round(tap: Tap, seed: int, is_ksm_exact: bool) -> None:
    """Build, capture, compare."""
    make = ProcessMaker()
    try:
        world = Round(random.Random(seed), make)
        world.build()
        for include in ("all", "anon", "advised"):
            began = time.monotonic()
            kmod = take(world.pids, "kmod", include)
            middle = time.monotonic()
            proc = take(world.pids, "proc", include)
            end = time.monotonic()
            again = take(world.pids, "kmod", include)
            n_pages = kmod.snapshots[0].n_pages
            print(f"# seed {seed}, {include}: {n_pages} pages; kmod {middle - began:.2f} s, "
                  f"proc {end - middle:.2f} s", flush=True)
            tap.check(f"seed {seed}, {include}: module and /proc agree",
                      differences(kmod, proc, is_ksm_exact=is_ksm_exact))
            tap.check(f"seed {seed}, {include}: and the module with itself, after /proc",
                      differences(kmod, again))
            if include == "all":
                tap.check(f"seed {seed}: every kind of page was met", unmet(kmod))
                tap.check(f"seed {seed}: hashes are those of what was written",
                          wrong_hashes(kmod, world.known))
    finally:
        make.close()


def main() -> int:
    """All rounds; 0 also when checks failed, which the lines tell."""
    seed, n_rounds = int(sys.argv[1]), int(sys.argv[2])
    # Only what the round itself does may change its memory.
    (KHUGEPAGED / "scan_sleep_millisecs").write_text("3600000\n")
    tap = Tap()
    tap.check("planner doctor finds both sources",
              [] if examine().sources == ("kmod", "proc") else [str(examine().document())])
    with FrameTable(ProcRoot()) as table:
        is_ksm_exact = marks_ksm_exactly(ProcRoot(), table)
    # The kernel of which it is known; the others of these tests are right.
    tap.check("whether kpageflags tells merged pages is found out",
              [] if is_ksm_exact == (not os.uname().release.startswith("6.12.")) else
              [f"{os.uname().release}: {is_ksm_exact}"])
    for i in range(n_rounds):
        run_round(tap, seed + i, is_ksm_exact)
    print(f"1..{tap.n}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        code = 1
    sys.stdout.flush()
    os._exit(code)
