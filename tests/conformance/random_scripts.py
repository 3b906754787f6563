"""Random scripts, the same for the same seed.

Few contents and small limits, so that everything meets everything: duplicates, chains, stale
nodes, forked KSM pages, huge pages, knobs changed midway, batches that end within a scan.

Left out, because a kernel does not do them alike twice: pruning of chains after a time (only
always or never), pages freshly dropped from a huge block and written again (script.py), a huge
region that is read (the huge zero page), and everything that runs beside ksmd: scripts only do
something while it sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.conformance.script import (
    N_SLOTS,
    PROCESSES,
    PRUNE_NEVER_MS,
    Layout,
    Region,
    Script,
    ScriptError,
    Step,
    n_scans,
    slot,
)

MAX_PROCESSES = 5
MAX_PAGES = 600
#: With huge regions there are more pages, most of them zero.
MAX_PAGES_HUGE = 2200


class _Writer:
    """Writes one script, keeping to what can be done."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.layout = Layout()
        self.layout.regions[0] = []
        self.steps: list[Step] = []
        self.n_contents = rng.choice((2, 4, 8, 30))
        self.next_fresh = 1000
        self.has_huge = rng.random() < 0.2
        self.max_pages = MAX_PAGES_HUGE if self.has_huge else rng.choice((60, 200, MAX_PAGES))

    def do(self, *step: object) -> bool:
        """Add a step if it can be done."""
        try:
            self.layout.do(step)
        except ScriptError:
            return False
        self.steps.append(list(step))
        return True

    def living(self) -> list[int]:
        return [p for p in self.layout.regions if p]

    def n_pages(self) -> int:
        return sum(one.end - one.start for p in self.living() for one in self.layout.regions[p])

    def a_region(self) -> tuple[int, Region] | None:
        every = [(p, region) for p in self.living() for region in self.layout.regions[p]]
        return self.rng.choice(every) if every else None

    def a_range(self) -> tuple[int, int, int] | None:
        """A process and a stretch of one of its regions, often all of it."""
        found = self.a_region()
        if found is None:
            return None
        p, region = found
        size = region.end - region.start
        if self.rng.random() < 0.4:
            return p, region.start, size
        n = self.rng.randint(1, size)
        if self.rng.random() < 0.5:
            n = min(n, self.rng.randint(1, 8))
        return p, region.start + self.rng.randint(0, size - n), n

    def contents(self, n: int) -> list[int]:
        """What n pages get."""
        rng = self.rng
        kind = rng.choice(("same", "same", "mixed", "mixed", "fresh", "zero", "sparse", "run"))
        if kind == "same":
            return [rng.randint(1, self.n_contents)] * n
        if kind == "mixed":
            return [rng.randint(0, self.n_contents) for _ in range(n)]
        if kind == "zero":
            return [0] * n
        if kind == "sparse":
            return [rng.randint(1, self.n_contents) if rng.random() < 0.2 else 0 for _ in range(n)]
        if kind == "run":
            # The same contents in the same places of several processes.
            return [2000 + i for i in range(n)]
        self.next_fresh += n
        return list(range(self.next_fresh - n, self.next_fresh))

    # Kinds of steps.

    def spawn(self) -> None:
        if len(self.living()) < MAX_PROCESSES:
            p = self.rng.choice([p for p in PROCESSES if p not in self.layout.regions][:8])
            self.do("spawn", p)
            for _ in range(self.rng.randint(1, 3)):
                self.map(p)

    def map(self, p: int | None = None) -> None:
        rng = self.rng
        if p is None:
            if not self.living():
                return
            p = rng.choice(self.living())
        room = self.max_pages - self.n_pages()
        if room < 1:
            return
        start = slot(rng.randrange(8))
        kind = "small"
        n = rng.randint(1, min(room, rng.choice((4, 20, 60, 300))))
        if self.has_huge and rng.random() < 0.6 and room >= 512:
            kind = "huge"
            n = rng.choice((512, 512, 700, 1024)) if room >= 1024 else 512
            start += rng.choice((0, 0, 0, 100))
        if self.do("map", p, start, n, kind):
            if rng.random() < 0.9:
                first = rng.randint(0, n - 1) if rng.random() < 0.2 else 0
                count = rng.randint(1, n - first) if rng.random() < 0.5 else n - first
                self.do("write", p, start + first, self.contents(count))
            if rng.random() < 0.9:
                self.do("advise", p, start, n)

    def write(self) -> None:
        found = self.a_range()
        if found is not None:
            p, vpn, n = found
            self.do("write", p, vpn, self.contents(n))

    def on_range(self, op: str) -> Callable[[], None]:
        def step() -> None:
            found = self.a_range()
            if found is not None:
                self.do(op, *found)
        return step

    def fork(self) -> None:
        living = self.living()
        if living and len(living) < MAX_PROCESSES:
            parent = self.rng.choice(living)
            pages = sum(one.end - one.start for one in self.layout.regions[parent])
            if self.n_pages() + pages <= self.max_pages * 2:
                child = self.rng.choice([p for p in PROCESSES if p not in living][:8])
                self.do("fork", parent, child)

    def exit(self) -> None:
        if len(self.living()) > 1:
            self.do("exit", self.rng.choice(self.living()))

    def mremap(self) -> None:
        found = self.a_range()
        if found is not None:
            p, vpn, n = found
            r = self.rng.randrange(8, N_SLOTS)
            self.do("mremap", p, vpn, n, slot(r) + (vpn - slot(0)) % 512)

    def knob(self) -> None:
        name, values = self.rng.choice((
            ("use_zero_pages", (0, 1)), ("smart_scan", (0, 1)),
            ("max_page_sharing", (0, 2, 3, 5, 9)),
            ("stable_node_chains_prune_millisecs", (0, PRUNE_NEVER_MS))))
        self.do("knob", name, self.rng.choice(values))

    def run(self) -> None:
        value = self.rng.choice((0, 2))
        self.do("run", value)
        if value == 2 and self.rng.random() < 0.5:
            self.do("check")
        if self.rng.random() < 0.3:
            self.write()
        self.do("run", 1)

    def script(self, length: int) -> Script:
        rng = self.rng
        # Processes that come and go in mid-scan leave stable nodes with nothing behind them.
        is_churning = rng.random() < 0.25
        if rng.random() < 0.6 or is_churning:
            self.do("knob", "max_page_sharing", rng.choice((2, 3, 4, 7, 16)))
        if rng.random() < 0.3:
            self.do("knob", "use_zero_pages", 1)
        if rng.random() < 0.4:
            self.do("knob", "smart_scan", 0)
        if rng.random() < 0.5:
            self.do("knob", "stable_node_chains_prune_millisecs", 0)
        for _ in range(rng.randint(1, 3)):
            self.spawn()
        kinds: list[tuple[int, Callable[[], None]]] = [
            (30, self.write), (6, self.on_range("read")), (8, self.on_range("dontneed")),
            (6, self.on_range("unmap")), (4, self.on_range("advise")),
            (6, self.on_range("unadvise")), (8, self.fork), (7, self.exit), (5, self.spawn),
            (6, self.map), (4, self.mremap), (5, self.knob), (3, self.run)]
        weights = [weight for weight, _ in kinds]
        if is_churning:
            weights[6], weights[7] = 40, 40
        is_batched = is_churning or rng.random() < 0.3
        for _ in range(length):
            # Several scans without a change let things settle, which has its own paths.
            if rng.random() < 0.7:
                for _ in range(rng.randint(1, 4)):
                    rng.choices([step for _, step in kinds], weights)[0]()
                    if rng.random() < 0.1:
                        self.do("check")
            if is_batched and rng.random() < 0.5:
                self.do("scan_pages", rng.randint(1, max(2, self.n_pages())))
            else:
                self.do("scan")
        return self.steps


def random_script(seed: int, number: int) -> Script:
    """Script `number` of a seed: 5 to 12 scans, sometimes 20 to 40 (old age of smart scan)."""
    rng = random.Random(f"{seed}/{number}")
    return _Writer(rng).script(rng.randint(20, 40) if rng.random() < 0.1 else rng.randint(5, 12))


def random_scripts(seed: int, at_least: int) -> Iterator[Script]:
    """Scripts of a seed from number 0 on, until they make that many scans."""
    done = number = 0
    while done < at_least:
        script = random_script(seed, number)
        yield script
        done += n_scans(script)
        number += 1
