"""Small random hosts for the merge spaces, and the step-by-step comparison with the slow twin.

Run as a program it compares the given seeds: `python tests/ksm_worlds.py 0 20`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from planner.ksm import CostModel, EventTable, KernelVersion, Knobs, MergeSpaces, SiteTable
from tests.oracles.ksm import SlowSpaces


@dataclass
class World:
    sites: SiteTable
    events: EventTable
    options: dict[str, Any]
    knobs: list[Knobs]


def random_knobs(rng: np.random.Generator, kernel: KernelVersion, limit: int) -> Knobs:
    """Settings of a scanner that may run on `kernel`."""
    changes: dict[str, Any] = {
        "pages_to_scan": int(rng.choice([0, 1, 2, 3, 5, 17, 1000], p=[0.04] + [0.16] * 6)),
        "sleep_millisecs": int(rng.choice([0, 3, 20, 70, 300, 600])),
        "max_page_sharing": limit,
        "use_zero_pages": bool(rng.random() < 0.3),
        "stable_node_chains_prune_millisecs": int(rng.choice([0, 50, 2000])),
    }
    if kernel != "6.1":
        changes["smart_scan"] = bool(rng.random() < 0.6)
        changes["advisor_mode"] = str(rng.choice(["none", "scan-time"], p=[0.8, 0.2]))
        changes["advisor_target_scan_time"] = int(rng.choice([1, 2, 200]))
        changes["advisor_min_pages_to_scan"] = int(rng.choice([1, 5, 500]))
        changes["advisor_max_pages_to_scan"] = int(rng.choice([3, 30, 30000]))
    return Knobs.of_kernel(kernel, **changes)


def dense_contents(pairs: list[tuple[int, int]]) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Ids of (partition, raw content) in order of first sight; raw content -1 = absent."""
    ids: dict[tuple[int, int], int] = {}
    out = [-1 if raw < 0 else ids.setdefault((p, raw), len(ids)) for p, raw in pairs]
    return out, {number: pair for pair, number in ids.items()}


def site_table(
    partitions: list[int],
    raw: list[int],
    *,
    mm: list[int] | None = None,
    domain: list[int] | None = None,
    frame: list[int] | None = None,
    eligible: list[int] | None = None,
) -> tuple[SiteTable, list[bool]]:
    """Sites of vpn 0, 1, ... with raw contents (0 = the zero page) and whether ids are zero."""
    n = len(raw)
    contents, pairs = dense_contents(list(zip(partitions, raw, strict=True)))
    mm = mm or [0] * n
    table = SiteTable(
        mm=np.array(mm, np.int32),
        vpn=np.arange(n, dtype=np.int64),
        domain=np.array(domain or partitions, np.int32),
        partition=np.array(partitions, np.int32),
        is_eligible=np.array(eligible or [1] * n, np.uint8),
        content=np.array(contents, np.int32),
        frame=np.array(frame or range(n), np.int32),
    )
    return table, [pairs[i][1] == 0 for i in range(len(pairs))]


def random_cost(rng: np.random.Generator) -> CostModel:
    figures = {one.name: int(rng.integers(1, 3_000_000)) for one in fields(CostModel)}
    figures |= {"cold_percent": int(rng.integers(0, 90)), "cold_pages": int(rng.integers(1, 12))}
    return CostModel(**{**figures, "name": "test"})


def random_world(seed: int) -> World:
    """A host of up to 60 sites in which everything the spaces know about happens."""
    rng = np.random.default_rng(seed)
    leaving = np.random.default_rng([seed, 2])
    n_partitions = int(rng.integers(1, 4))
    n_contents = int(rng.integers(2, 7))
    mm: list[int] = []
    vpn: list[int] = []
    domain: list[int] = []
    partition: list[int] = []
    eligible: list[int] = []
    huge: list[int] = []
    huge_share = float(rng.choice([0.0, 0.0, 0.5, 1.0]))
    raw: list[int] = []
    frame: list[int] = []
    next_frame = 0
    fork_share = float(rng.random())
    for m in rng.permutation(int(rng.integers(1, 5))):
        own_domain = int(rng.integers(0, 4))
        own_partition = int(rng.integers(0, n_partitions))
        parent = int(rng.choice(mm)) if mm and rng.random() < 0.6 else None
        for v in np.sort(rng.choice(np.r_[:20, 512:532], int(rng.integers(1, 16)), replace=False)):
            mm.append(int(m))
            vpn.append(int(v))
            domain.append(own_domain)
            is_stray = rng.random() < 0.1
            partition.append(int(rng.integers(-1, n_partitions)) if is_stray else own_partition)
            eligible.append(int(rng.random() < 0.9))
            huge.append(int(rng.random() < huge_share))
            twin = [i for i in range(len(raw)) if mm[i] == parent and raw[i] >= 0]
            if twin and rng.random() < fork_share:
                i = int(rng.choice(twin))
                raw.append(raw[i])
                frame.append(frame[i])
            else:
                raw.append(int(rng.integers(-1, n_contents)))
                frame.append(next_frame)
                next_frame += 1
    n = len(raw)
    first = [(partition[i], raw[i]) for i in range(n)]
    first_frame = list(frame)

    times: list[int] = []
    changed: list[int] = []
    written: list[tuple[int, int]] = []
    new_frames: list[int] = []

    def emit(time_ns: int, s: int, content: int, base: int) -> None:
        times.append(time_ns)
        changed.append(s)
        written.append((partition[s], content))
        new_frames.append(base if content >= 0 else int(rng.integers(-5, 5)))
        raw[s], frame[s] = content, base if content >= 0 else -1

    time_ns = 0
    for _ in range(int(rng.integers(0, 60))):
        time_ns += int(rng.integers(0, 60_000_000)) * int(rng.random() < 0.8)
        s = int(rng.integers(0, n))
        content = int(rng.integers(0, n_contents))
        kind = rng.random()
        present = [i for i in range(n) if raw[i] >= 0 and i != s]
        if kind < 0.15:
            emit(time_ns, s, -1, -1)
        elif kind < 0.3 and raw[s] >= 0:  # in place, as all that share the frame see it
            for i in [i for i in range(n) if frame[i] == frame[s]]:
                emit(time_ns, i, content, frame[s])
        elif kind < 0.55 and raw[s] < 0 and present:
            parent = int(rng.choice(present))
            emit(time_ns, s, raw[parent], frame[parent])
        elif kind < 0.7 and present:
            emit(time_ns, s, content, next_frame)
            emit(time_ns, int(rng.choice(present)), content, next_frame)
            next_frame += 1
        else:
            emit(time_ns, s, raw[s] if raw[s] >= 0 and kind < 0.75 else content, next_frame)
            next_frame += 1

    exits: dict[int, int] = {}
    for m in sorted(set(mm)):
        if leaving.random() < 0.4:
            time_ns += int(leaving.integers(0, 400_000_000)) * int(leaving.random() < 0.8)
            for s in [i for i in range(n) if mm[i] == m and raw[i] >= 0]:
                emit(time_ns, s, -1, -1)
            exits[m] = time_ns

    ids, pairs = dense_contents(first + written)
    sites = SiteTable(
        mm=np.array(mm, np.int32),
        vpn=np.array(vpn, np.int64),
        domain=np.array(domain, np.int32),
        partition=np.array(partition, np.int32),
        is_eligible=np.array(eligible, np.uint8),
        content=np.array(ids[:n], np.int32),
        frame=np.array(first_frame, np.int32),
        is_huge=np.array(huge, np.uint8),
    )
    events = EventTable(
        time_ns=np.array(times, np.int64),
        site=np.array(changed, np.int32),
        content=np.array(ids[n:], np.int32),
        frame=np.array(new_frames, np.int32),
    )
    options = {
        "n_partitions": n_partitions,
        "content_is_zero": [pairs[i][1] == 0 for i in range(len(pairs))],
        "domain_is_sensitive": [False, True, False, False],
        "kernel": str(rng.choice(["6.1", "6.12", "6.18"])),
        "hz": int(rng.choice([100, 250, 300, 1000])),
        "cost": random_cost(rng),
        "exits": exits,
    }
    knobs = [random_knobs(rng, options["kernel"], int(limit))
             for limit in rng.integers(2, 5, n_partitions)]
    return World(sites, events, options, knobs)


def compare(seed: int) -> dict[str, int]:
    """Run one random script on both; returns how often what happened, or fails at a difference."""
    world = random_world(seed)
    rng = np.random.default_rng([seed, 1])
    fast = MergeSpaces(world.sites, world.events, **world.options)
    slow = SlowSpaces(world.sites, world.events, **world.options)
    limits = [knobs.max_page_sharing for knobs in world.knobs]
    for p, limit in enumerate(limits):
        fast.set_max_page_sharing(p, limit)
        slow.set_max_page_sharing(p, limit)
    seen = {"cow": 0, "merged": 0, "scans": 0, "cross": 0, "chains": 0, "zero": 0}
    seen |= {"twin": 0, "refused": 0, "unmerged": 0, "failed": 0}
    seen |= dict.fromkeys(("pages_skipped", "ksm_zero_pages", "stable_node_dups"), 0)
    mms = sorted({int(m) for m in world.sites.mm})
    kinds = rng.dirichlet(np.ones(6))
    for step in range(30):
        p = int(rng.integers(0, len(limits)))
        kind = int(rng.choice(6, p=kinds)) if step else 0
        mm = int(rng.choice(mms))
        a, b = sorted(int(v) for v in rng.choice(np.r_[:21, 512:533], 2))
        results: list[object] = []
        if kind == 0:
            knobs = random_knobs(rng, world.options["kernel"], limits[p])
            for spaces in (fast, slow):
                spaces.start_scanner(p, knobs)
        elif kind == 1:
            longest_ns = (0, 0, 0, 20_000_000)[step % 4]
            results = [spaces.merge_range(p, mm, a, b, longest_ns) for spaces in (fast, slow)]
        elif kind == 2:
            results = [spaces.unmerge_range(p, mm, a, b) for spaces in (fast, slow)]
        elif kind == 3 and rng.random() < 0.3:
            for spaces in (fast, slow):
                spaces.stop_scanner(p)
        elif kind == 4 and rng.random() < 0.3:
            results = [spaces.reset_partition(p) for spaces in (fast, slow)]
        elif kind == 5 and rng.random() < 0.3 and len(limits) < 6 and not world.options["exits"]:
            results = [spaces.renew_partition(p) for spaces in (fast, slow)]
            for spaces in (fast, slow):
                spaces.set_max_page_sharing(len(limits), limits[p])
            limits.append(limits[p])
        until_ns = fast.now_ns + int(rng.integers(0, 200_000_000)) * int(rng.random() < 0.8)
        action = f"seed {seed} step {step} kind {kind} until {until_ns}"
        if results:
            assert results[0] == results[1], (action, *results)
        assert fast.counters() == slow.counters(), (action, differences(fast, slow))
        scans = fast.advance(until_ns)
        assert scans == slow.advance(until_ns), action
        now = fast.counters()
        assert now == slow.counters(), (action, differences(fast, slow))
        assert fast.partition_counters() == slow.partition_counters(), action
        seen["scans"] += len(scans)
        seen["cow"] = now.cow_breaks
        seen["merged"] += now.pages_sharing
        seen["cross"] += now.cross_domain_pages
        seen["chains"] += now.stable_node_chains
        for what in ("pages_skipped", "ksm_zero_pages", "stable_node_dups"):
            seen[what] += getattr(now, what)
        seen["zero"] += now.saved_zero_frames
        for what in ("twin", "refused", "unmerged", "failed"):
            seen[what] += getattr(results[0], f"{what}_pages", 0) if results else 0
    return seen


def differences(fast: MergeSpaces, slow: SlowSpaces) -> dict[str, tuple[int, int]]:
    left, right = asdict(fast.counters()), asdict(slow.counters())
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


if __name__ == "__main__":
    total: dict[str, int] = {}
    for one in range(int(sys.argv[1]), int(sys.argv[2])):
        for what, count in compare(one).items():
            total[what] = total.get(what, 0) + count
    print(total)
