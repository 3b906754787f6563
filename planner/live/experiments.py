"""Regions of known contents for ksmd to scan, each scan timed: the rows that costs are fitted to.

What a scan finds is known beforehand, because every page of a region was prepared alike. A scan
is stepped (one batch is one full scan) or made at the batch sizes that will run. How many levels
a descent has follows the model: the bit length of the tree's size after the visit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from planner.capture.procfs import ProcRoot
from planner.errors import MachineError
from planner.live.control import KsmControl, driven
from planner.live.fit import Row
from planner.live.observe import ksmd_pid, ksmd_times_ns
from planner.live.regions import RegionProcess

__all__ = ["FAR_LEVEL", "Bench", "all_experiments", "check_experiment"]

#: Levels beyond this one cost more (as in planner.ksm.cost).
FAR_LEVEL = 10
_STEP_SLEEP_MS = 3_600_000
_ALL_PAGES = 2**31
_TIMEOUT_S = 60.0
_RHYTHM_S = 1.5
_WORD = b"\x5a\xa5\x00\xff\x12\x34\x56\x78"


def _levels(prefix: str, sizes: Sequence[int] | range, times: float = 1) -> Counter[str]:
    """The levels of descents in trees of these sizes."""
    bits = np.array([0], np.int64) if not len(sizes) else \
        np.floor(np.log2(np.maximum(np.asarray(sizes), 1))).astype(np.int64) + 1
    return Counter({f"{prefix}_level_ns": float(bits.sum()) * times,
                    f"{prefix}_far_ns": float(np.maximum(bits - FAR_LEVEL, 0).sum()) * times})


class Bench:
    """ksmd to oneself and a child with memory: steps scans, times them, keeps the rows."""

    def __init__(self, control: KsmControl, child: RegionProcess, rows: list[Row]) -> None:
        self.control = control
        self.child = child
        self._rows = rows
        self._root = ProcRoot()
        self._ksmd = ksmd_pid(self._root)

    def cpu_ns(self) -> int:
        """ksmd's CPU time since boot, read while it sleeps."""
        time.sleep(0.01)
        return ksmd_times_ns(self._root, self._ksmd)[0]

    def start_stepping(self, *, smart_scan: int = 0) -> None:
        """From now on a batch is a full scan and waits for the next `step`."""
        self.control["run"] = 0
        self.control.apply({"pages_to_scan": _ALL_PAGES})
        self._wake()  # a scanner that still sleeps long would not notice run=1
        if self.control.has("smart_scan"):
            self.control["smart_scan"] = smart_scan

    def _wake(self) -> None:
        """Any other value of it ends the scanner's sleep at once."""
        self.control["sleep_millisecs"] = _STEP_SLEEP_MS + \
            (self.control["sleep_millisecs"] + 1) % 2

    def step(self, label: str | None, counts: Counter[str], n_visits: int) -> int:
        """One full scan; its time becomes a row of what it met, unless `label` is None."""
        before_ns, before = self.cpu_ns(), self.control["full_scans"]
        if self.control["run"] == 1:
            self._wake()
        else:
            self.control["run"] = 1
        self._wait(lambda: self.control["full_scans"] > before)
        ns = self.cpu_ns() - before_ns
        if label is not None:
            self.add(label, ns, counts + Counter({"batch_ns": 1.0, "scan_ns": 1.0}), [n_visits])
        return ns

    def _wait(self, is_over: Callable[[], bool]) -> None:
        end = time.monotonic() + _TIMEOUT_S
        while not is_over():
            if time.monotonic() > end:
                raise MachineError("ksmd did not come so far in a minute",
                                   instead="calibrate on a quiet machine")
            time.sleep(0.005)

    def add(self, label: str, ns: int, counts: Counter[str], batches: Sequence[int]) -> None:
        """Keep a row."""
        self._rows.append(Row(label, max(ns, 1), dict(counts), tuple(batches)))

    def rhythm(self, label: str, pages_to_scan: int, sleep_millisecs: int,
               counts_of: Callable[[int, int], Counter[str]], n_pages: int) -> None:
        """Scan in batches for a while, from the middle of a full scan on.

        Trees are large then, as they mostly are. `counts_of(first, end)` says what the visits
        `[first, end)` of a full scan meet, and `n_pages` how many visits one has.
        """
        control = self.control
        half = n_pages // 2
        self.start_stepping()
        control["pages_to_scan"] = half
        before = control["pages_scanned"]
        control["run"] = 1
        self._wait(lambda: control["pages_scanned"] >= before + half)
        control["run"] = 0
        control.apply({"pages_to_scan": pages_to_scan, "sleep_millisecs": sleep_millisecs})
        before_ns, before = self.cpu_ns(), control["pages_scanned"]
        control["run"] = 1
        time.sleep(_RHYTHM_S)
        control["run"] = 0
        ns, n_visits = self.cpu_ns() - before_ns, control["pages_scanned"] - before
        counts: Counter[str] = Counter()
        n_scans = 0
        batches: list[int] = []
        at = half
        while n_visits > 0:
            n = min(n_visits, n_pages - at)
            counts += counts_of(at, at + n)
            batches += [pages_to_scan] * (n // pages_to_scan)
            if n % pages_to_scan:
                batches.append(n % pages_to_scan)
            n_visits, at = n_visits - n, (at + n) % n_pages
            n_scans += at == 0
        counts += Counter({"scan_ns": n_scans, "batch_ns": len(batches)})
        self.add(label, ns, counts, batches)
        # To the end of the scan, for whatever comes next.
        self.start_stepping()
        self.step(None, Counter(), 0)


@contextmanager
def _bench(rows: list[Row], *, force: bool, announce: Callable[[str], None]) -> Iterator[Bench]:
    with RegionProcess() as child, driven({child.pid}, force=force, announce=announce) as control:
        if not control.has("pages_scanned"):
            raise MachineError("this kernel does not count the pages that ksmd scans",
                               where=str(control.folder), instead="calibrate on Linux 6.6 or later")
        control.apply({"max_page_sharing": 256, "merge_across_nodes": 1, "use_zero_pages": 0})
        try:
            yield Bench(control, child, rows)
        finally:
            child.close()  # nothing mergeable is left when KSM is given back


def _uniques(n_stable: int = 0) -> Callable[[int, int], Counter[str]]:
    def counts(first: int, end: int) -> Counter[str]:
        return (Counter({"unique_ns": float(end - first)})
                + _levels("unstable", range(first + 1, end + 1))
                + _levels("stable", [n_stable] if n_stable else [], end - first))

    return counts


def unique_pages(bench: Bench, n_pages: int, rhythms: Sequence[tuple[int, int]]) -> None:
    """First sight, search, change and skip of pages found nowhere else."""
    child, tag = bench.child, f"{n_pages} unique pages"
    region = child.map(n_pages)
    child.fill_unique(region)
    child.advise(region)
    unique = _uniques()
    bench.start_stepping()
    bench.step(f"{tag}: first sight", Counter({"first_sight_ns": n_pages}), n_pages)
    for _ in range(2):
        bench.step(f"{tag}: searched", unique(0, n_pages), n_pages)
    for pages_to_scan, sleep_millisecs in rhythms:
        bench.rhythm(f"{tag}: {pages_to_scan} every {sleep_millisecs} ms", pages_to_scan,
                     sleep_millisecs, unique, n_pages)
    child.touch(region)
    bench.step(f"{tag}: changed", Counter({"volatile_ns": n_pages}), n_pages)
    if not bench.control.has("smart_scan"):
        return
    bench.control["smart_scan"] = 1
    for _ in range(12):
        before = bench.control["pages_skipped"]
        ns = bench.step(None, Counter(), 0)
        if bench.control["pages_skipped"] - before == n_pages:
            bench.add(f"{tag}: skipped", ns, Counter(
                {"skip_ns": float(n_pages), "batch_ns": 1.0, "scan_ns": 1.0}), [])


def merged_pages(bench: Bench, n_pages: int, rhythms: Sequence[tuple[int, int]]) -> None:
    """Pairs, merges into merged pages, visits of merged pages, and searches of both trees."""
    child, tag = bench.child, f"{n_pages} shared pages"
    first, second = child.map(n_pages), child.map(n_pages)
    child.fill_unique(first)
    child.copy(first, second)
    child.advise(first)
    child.advise(second)
    bench.start_stepping()
    bench.step(None, Counter(), 0)
    # The stable tree grows by one with each pair, and the unstable one shrinks.
    pairs = (Counter({"unique_ns": float(n_pages), "pair_merge_ns": float(n_pages)})
             + _levels("unstable", range(1, n_pages + 1))
             + _levels("unstable", range(n_pages))
             + _levels("stable", range(1, n_pages + 1), 2))
    bench.step(f"{tag}: paired", pairs, 2 * n_pages)
    bench.step(f"{tag}: merged already", Counter({"quick_ns": 2.0 * n_pages}), 2 * n_pages)
    for pages_to_scan, sleep_millisecs in rhythms:
        bench.rhythm(f"{tag}: {pages_to_scan} every {sleep_millisecs} ms", pages_to_scan,
                     sleep_millisecs, lambda a, b: Counter({"quick_ns": float(b - a)}),
                     2 * n_pages)
    third = child.map(n_pages)
    child.copy(first, third)
    child.advise(third)
    quick = Counter({"quick_ns": 2.0 * n_pages})
    bench.step(None, Counter(), 0)
    bench.step(f"{tag}: merged", quick + Counter({"merge_ns": float(n_pages)})
               + _levels("stable", [n_pages], n_pages), 3 * n_pages)
    fourth = child.map(n_pages)
    child.fill_unique(fourth)
    child.advise(fourth)
    bench.step(None, Counter(), 0)
    quick = Counter({"quick_ns": 3.0 * n_pages})
    for _ in range(2):
        bench.step(f"{tag}: others searched", quick + _uniques(n_pages)(0, n_pages), 4 * n_pages)


def equal_pages(bench: Bench, n_pages: int) -> None:
    """Many copies of one content: merges without a descent to speak of, then zero pages."""
    child, tag = bench.child, f"{n_pages} equal pages"
    region = child.map(n_pages)
    child.fill_same(region, _WORD)
    child.advise(region)
    bench.start_stepping()
    bench.step(f"{tag}: first sight", Counter({"first_sight_ns": float(n_pages)}), n_pages)
    bench.step(f"{tag}: merged", Counter({"merge_ns": float(n_pages)})
               + _levels("stable", [1], n_pages), n_pages)
    child.unmap(region)
    if not bench.control.has("ksm_zero_pages"):
        return
    bench.step(None, Counter(), 0)
    zeros = child.map(n_pages)
    child.fill_same(zeros, bytes(8))
    child.advise(zeros)
    bench.control["use_zero_pages"] = 1
    bench.step(None, Counter(), 0)
    bench.step(f"{tag}: zero", Counter({"zero_merge_ns": float(n_pages)}), n_pages)
    bench.step(None, Counter(), 0)
    bench.step(f"{tag}: holes", Counter({"hole_ns": float(n_pages)}), 0)
    bench.control["use_zero_pages"] = 0


def huge_pages(bench: Bench, n_huge: int) -> None:
    """One mergeable page in each of many huge pages: each merge splits one."""
    child, n_sub = bench.child, 512
    small, huge = child.map(n_huge), child.map(n_huge * n_sub, is_huge=True)
    child.fill_unique(small)
    child.fill_unique(huge)
    for index in range(n_huge):
        page = huge.part(index * n_sub, 1)
        child.copy(small.part(index, 1), page)
        child.advise(page)
    child.advise(small)
    bench.start_stepping()
    bench.step(None, Counter(), 0)
    # Which of the two lies first does not matter: either is split when the second is met.
    bench.step(f"{n_huge} huge pages: split", Counter(
        {"unique_ns": float(n_huge), "pair_merge_ns": float(n_huge), "split_ns": float(n_huge)})
        + _levels("unstable", range(1, n_huge + 1)) + _levels("unstable", range(n_huge))
        + _levels("stable", range(1, n_huge + 1), 2), 2 * n_huge)


def few_pages(bench: Bench) -> None:
    """Short scans and short batches: what a scan and a batch cost without their pages."""
    child = bench.child
    region = child.map(1000)
    child.fill_unique(region)
    child.advise(region.part(0, 10))
    unique = _uniques()
    bench.start_stepping()
    bench.step(None, Counter(), 0)
    bench.rhythm("10 unique pages: short scans", 1000, 4, unique, 10)
    child.advise(region)
    bench.step(None, Counter(), 0)
    bench.rhythm("1000 unique pages: 5 every 4 ms", 5, 4, unique, 1000)


def writers(bench: Bench, n_pages: int) -> tuple[float, float]:
    """What a write to a merged page and an unmerge cost their caller, ns a page."""
    child = bench.child
    region, plain = child.map(n_pages), child.map(n_pages)
    child.fill_unique(plain)
    child.fill_same(region, _WORD)
    child.advise(region)
    bench.start_stepping()
    for _ in range(2):
        bench.step(None, Counter(), 0)
    half = n_pages // 2
    child.touch(plain)
    base_ns = child.touch(plain) / n_pages
    cow_ns = child.touch(region.part(0, half)) / half - base_ns
    unmerge_ns = child.unmerge(region.part(half, n_pages - half)) / (n_pages - half)
    return max(cow_ns, 0.0), unmerge_ns


def all_experiments(rows: list[Row], rhythms: Sequence[tuple[int, int]], *, force: bool,
                    announce: Callable[[str], None],
                    progress: Callable[[str, float], None]) -> tuple[float, float]:
    """Run each experiment once, KSM given back between them; returns what `writers` found."""
    found: list[tuple[float, float]] = []
    plan: list[tuple[str, Callable[[Bench], object]]] = [
        ("unique pages", lambda b: unique_pages(b, 1_000, ())),
        ("unique pages", lambda b: unique_pages(b, 8_000, ())),
        ("unique pages", lambda b: unique_pages(b, 50_000, rhythms)),
        ("shared pages", lambda b: merged_pages(b, 2_000, ())),
        ("shared pages", lambda b: merged_pages(b, 25_000, rhythms)),
        ("equal pages", lambda b: equal_pages(b, 20_000)),
        ("huge pages", lambda b: huge_pages(b, 100)),
        ("few pages", few_pages),
        ("writes", lambda b: found.append(writers(b, 8_000))),
    ]
    for index, (what, experiment) in enumerate(plan):
        progress(what, index / len(plan))
        with _bench(rows, force=force, announce=announce) as bench:
            experiment(bench)
    return found[0]


def check_experiment(rows: list[Row], rhythms: Sequence[tuple[int, int]], *, force: bool,
                     announce: Callable[[str], None]) -> None:
    """A mix of merged and unique pages at other batch sizes, for a check and not for the fit."""
    n = 12_000
    with _bench(rows, force=force, announce=announce) as bench:
        child = bench.child
        shared, copy, own = child.map(n), child.map(n), child.map(n)
        child.fill_unique(shared)
        child.copy(shared, copy)
        child.fill_unique(own)
        for region in (shared, copy, own):
            child.advise(region)
        bench.start_stepping()
        for _ in range(3):
            bench.step(None, Counter(), 0)
        # Addresses fall as regions are mapped, so which comes first is looked up.
        order = sorted((shared, copy, own), key=lambda region: region.address)
        before = order.index(own) * n

        def counts(first: int, end: int) -> Counter[str]:
            inner = range(max(first - before, 0), max(min(end - before, n), 0))
            n_own = len(inner)
            return (Counter({"quick_ns": float(end - first - n_own)})
                    + (_uniques(n)(inner.start, inner.stop) if n_own else Counter()))

        for pages_to_scan, sleep_millisecs in rhythms:
            bench.rhythm(f"mix of {3 * n} pages: {pages_to_scan} every {sleep_millisecs} ms",
                         pages_to_scan, sleep_millisecs, counts, 3 * n)
