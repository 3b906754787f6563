r"""Scripts: steps on processes and their pages that run alike on a live kernel and on a model.

    steps --> validate() --> run_script(machine, steps)     a model (Machine)     --> observations
                         \-> compile_script(steps)          a kernel (driver.c)   --> observations
    first_difference(observed, expected)                    None when they are equal

Pages are named by (process number p, vpn). Slot r of a process begins at `slot(r)`; one region
lies in one slot, so that no two VMAs of different regions ever merge. Content c is a number: 0 is
the zero page, any other one is `content_word(c)` 512 times.

Every script begins with the PREAMBLE, on both sides: process 0 has one mergeable page it never
touches, so that ksmd always has something registered; `run` is 1, one scan has been done, and
chains are pruned never (a script sets `stable_node_chains_prune_millisecs` 0 to prune always).
Differences of counters count from the end of the preamble.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict

import xxhash

Step = Sequence[Any]
Script = Sequence[Step]

BASE = 0x100000
SLOT_PAGES = 0x4000
N_SLOTS = 64
#: Process numbers a script may use; 0 is the preamble's.
PROCESSES = range(1, 48)
MAX_CONTENT = 1 << 32
PRUNE_NEVER_MS = 86_400_000

KNOBS = ("use_zero_pages", "smart_scan", "max_page_sharing", "merge_across_nodes",
         "stable_node_chains_prune_millisecs")
#: Counters that a kernel never resets: given as differences since the end of the preamble.
CUMULATIVE = ("pages_scanned", "pages_skipped")
COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned",
            "pages_skipped", "full_scans", "ksm_zero_pages", "general_profit",
            "stable_node_chains", "stable_node_dups")
PROCESS_COUNTERS = ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages", "ksm_process_profit")

PREAMBLE: Script = (
    ("knob", "stable_node_chains_prune_millisecs", PRUNE_NEVER_MS),
    ("spawn", 0), ("map", 0, BASE, 1, "small"), ("advise", 0, BASE, 1), ("run", 1), ("scan",))

#: Frame ids that are not frames.
ABSENT, ZERO_PAGE = -1, -2


class Observation(TypedDict):
    """What is seen after a scan or check.

    counters: those of COUNTERS that the kernel has. processes: by process number, those of
    PROCESS_COUNTERS that the kernel has. frames: by process number and vpn, for every mapped page:
    ABSENT, ZERO_PAGE or a frame's number in the order of first appearance. errors: names of errnos
    of knob and run writes refused since the observation before. step: index of the step.
    """

    counters: dict[str, int]
    cow_ksm: int
    processes: dict[int, dict[str, int]]
    frames: dict[int, dict[int, int]]
    errors: list[str]
    step: int


class Machine(Protocol):
    """A model of a kernel's KSM and as much of its memory as that needs.

    `set_knob` and `set_run` return the name of the errno the kernel would refuse with, ENOENT for
    a knob the kernel does not have.
    """

    def spawn(self, p: int) -> None: ...
    def map(self, p: int, vpn: int, n: int, huge: bool) -> None: ...
    def write(self, p: int, vpn: int, contents: Sequence[int]) -> None: ...
    def read(self, p: int, vpn: int, n: int) -> None: ...
    def unmap(self, p: int, vpn: int, n: int) -> None: ...
    def dontneed(self, p: int, vpn: int, n: int) -> None: ...
    def advise(self, p: int, vpn: int, n: int) -> None: ...
    def unadvise(self, p: int, vpn: int, n: int) -> None: ...
    def fork(self, parent: int, child: int) -> None: ...
    def exit(self, p: int) -> None: ...
    def mremap(self, p: int, vpn: int, n: int, new_vpn: int) -> object: ...
    def set_knob(self, name: str, value: int) -> str | None: ...
    def set_run(self, value: int) -> str | None: ...
    def full_scan(self) -> None: ...
    def scan_pages(self, n: int) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def process_counters(self, p: int) -> dict[str, int]: ...
    def frames(self, p: int, vpn: int, n: int) -> list[int]: ...
    @property
    def cow_ksm(self) -> int: ...


class ScriptError(ValueError):
    """A step that cannot be done where it stands."""


def slot(r: int) -> int:
    """The first vpn of region slot r."""
    return BASE + r * SLOT_PAGES


def content_word(c: int) -> int:
    """The 64-bit word (splitmix64) of which a page of content c > 0 is 512 copies."""
    if c == 0:
        return 0
    mask = (1 << 64) - 1
    z = (c + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def content_bytes(c: int) -> bytes:
    """The page, uint8[4096]."""
    return content_word(c).to_bytes(8, "little") * 512


def content_key(c: int) -> int:
    """A number that orders contents as the kernel's memcmp does (the word, big-endian)."""
    return int.from_bytes(content_word(c).to_bytes(8, "little"), "big")


def checksum(c: int) -> int:
    """The kernel's 32-bit checksum of content c: the low half of XXH64 with seed 0."""
    return int(xxhash.xxh64_intdigest(content_bytes(c)) & 0xFFFFFFFF)


class Region:
    """A stretch of mapped pages, [start, end)."""

    __slots__ = ("end", "is_huge", "start")

    def __init__(self, start: int, end: int, is_huge: bool) -> None:
        self.start, self.end, self.is_huge = start, end, is_huge


class Layout:
    """Which processes live and which pages they have mapped; says what a step may do."""

    def __init__(self) -> None:
        self.regions: dict[int, list[Region]] = {}
        self.run = 1
        #: Huge blocks of 2 MiB (process, block) some pages of which were dropped.
        self.dropped: set[tuple[int, int]] = set()

    def copy(self) -> Layout:
        """An independent copy."""
        other = Layout()
        other.run = self.run
        other.dropped = set(self.dropped)
        other.regions = {p: _cloned(regions) for p, regions in self.regions.items()}
        return other

    def do(self, step: Step) -> None:
        """Account for a step; ScriptError if it cannot be done here. Nothing changed then."""
        if not step or not isinstance(step[0], str) or step[0] not in _CHECKS:
            raise ScriptError(f"unknown step {step!r}")
        n_arguments, check = _CHECKS[step[0]]
        if len(step) != 1 + n_arguments:
            raise ScriptError(f"{step!r}: {n_arguments} arguments expected")
        check(self, *step[1:])

    def alive(self, p: int) -> list[Region]:
        """The regions of a living process."""
        if p not in self.regions:
            raise ScriptError(f"process {p} is not alive")
        return self.regions[p]

    def covered(self, p: int, vpn: int, n: int) -> list[Region]:
        """The regions over [vpn, vpn + n), which must be mapped throughout."""
        found = []
        if n < 1:
            raise ScriptError(f"{n} pages")
        at = vpn
        for region in self.alive(p):
            if region.start <= at < region.end:
                found.append(region)
                at = min(region.end, vpn + n)
                if at == vpn + n:
                    return found
        raise ScriptError(f"process {p} has not mapped [{vpn:#x}, {vpn + n:#x}) throughout")

    def insert(self, p: int, region: Region) -> None:
        """Add a region: inside one slot that is otherwise empty."""
        first = (region.start - BASE) // SLOT_PAGES
        if not (0 <= first < N_SLOTS and region.start < region.end <= slot(first + 1)):
            raise ScriptError(f"[{region.start:#x}, {region.end:#x}) is not inside one slot")
        if any(other.start < slot(first + 1) and slot(first) < other.end
               for other in self.alive(p)):
            raise ScriptError(f"process {p} has slot {first} mapped already")
        self.regions[p].append(region)
        self.regions[p].sort(key=lambda one: one.start)

    def cut(self, p: int, vpn: int, n: int) -> None:
        """Take pages out."""
        kept = []
        for region in self.regions[p]:
            for start, end in ((region.start, min(region.end, vpn)),
                               (max(region.start, vpn + n), region.end)):
                if start < end:
                    kept.append(Region(start, end, region.is_huge))
        self.regions[p] = kept

    def forget_blocks(self, p: int) -> None:
        """Pages were unmapped: whole slots that are empty now count as never used."""
        used = {(one.start - BASE) // SLOT_PAGES for one in self.regions[p]}
        self.dropped = {(other, block) for other, block in self.dropped
                        if other != p or (block * 512 - BASE) // SLOT_PAGES in used}


def _cloned(regions: list[Region]) -> list[Region]:
    return [Region(one.start, one.end, one.is_huge) for one in regions]


def _spawn(layout: Layout, p: int) -> None:
    if p in layout.regions:
        raise ScriptError(f"process {p} is alive already")
    if p != 0 and p not in PROCESSES:
        raise ScriptError(f"process number {p} is out of range")
    layout.regions[p] = []


def _map(layout: Layout, p: int, vpn: int, n: int, kind: str) -> None:
    if kind not in ("small", "huge"):
        raise ScriptError(f"a region is small or huge, not {kind!r}")
    layout.insert(p, Region(vpn, vpn + n, kind == "huge"))


def _write(layout: Layout, p: int, vpn: int, contents: Sequence[int]) -> None:
    layout.covered(p, vpn, len(contents))
    if any((p, block) in layout.dropped
           for block in range(vpn // 512, (vpn + len(contents) - 1) // 512 + 1)):
        # Whether it may become a huge page again depends on a page table that may be gone or not.
        raise ScriptError("a huge block that pages were dropped from is not written again")
    if any(not 0 <= c < MAX_CONTENT for c in contents):
        raise ScriptError("a content is out of range")


def _read(layout: Layout, p: int, vpn: int, n: int) -> None:
    if any(region.is_huge for region in layout.covered(p, vpn, n)):
        # It would map the huge zero page.
        raise ScriptError("a huge region is not read")


def _touch(layout: Layout, p: int, vpn: int, n: int) -> None:
    layout.covered(p, vpn, n)


def _dontneed(layout: Layout, p: int, vpn: int, n: int) -> None:
    for region in layout.covered(p, vpn, n):
        if region.is_huge:
            first, end = max(vpn, region.start), min(vpn + n, region.end)
            layout.dropped |= {(p, block) for block in range(first // 512, (end - 1) // 512 + 1)}


def _unmap(layout: Layout, p: int, vpn: int, n: int) -> None:
    layout.covered(p, vpn, n)
    layout.cut(p, vpn, n)
    layout.forget_blocks(p)


def _fork(layout: Layout, parent: int, child: int) -> None:
    regions = _cloned(layout.alive(parent))
    _spawn(layout, child)
    layout.regions[child] = regions
    layout.dropped |= {(child, block) for p, block in layout.dropped if p == parent}


def _exit(layout: Layout, p: int) -> None:
    layout.alive(p)
    if p == 0:
        raise ScriptError("process 0 stays")
    del layout.regions[p]
    layout.dropped = {(other, block) for other, block in layout.dropped if other != p}


def _mremap(layout: Layout, p: int, vpn: int, n: int, new_vpn: int) -> None:
    regions = layout.covered(p, vpn, n)
    if len(regions) > 1:
        raise ScriptError("mremap moves pages of one region")
    if vpn < new_vpn + n and new_vpn < vpn + n:
        raise ScriptError("mremap moves pages over themselves")
    if (new_vpn - vpn) % 512:
        raise ScriptError("mremap keeps the place within a huge page")
    before = layout.regions[p]
    layout.cut(p, vpn, n)
    try:
        layout.insert(p, Region(new_vpn, new_vpn + n, regions[0].is_huge))
    except ScriptError:
        layout.regions[p] = before
        raise
    layout.dropped |= {(p, block + (new_vpn - vpn) // 512) for other, block in layout.dropped
                       if other == p and vpn // 512 <= block <= (vpn + n - 1) // 512}
    layout.forget_blocks(p)


def _knob(layout: Layout, name: str, value: int) -> None:
    if name not in KNOBS or value < 0:
        raise ScriptError(f"{name} {value} is not a knob of scripts")


def _run(layout: Layout, value: int) -> None:
    if value not in (0, 1, 2):
        raise ScriptError(f"run {value}")
    layout.run = value


def _scan(layout: Layout) -> None:
    if layout.run != 1:
        raise ScriptError("no scan unless run is 1")


def _scan_pages(layout: Layout, n: int) -> None:
    _scan(layout)
    if n < 1:
        raise ScriptError(f"a batch of {n} pages")


def _check(layout: Layout) -> None:
    pass


_CHECKS: dict[str, tuple[int, Any]] = {
    "spawn": (1, _spawn), "map": (4, _map), "write": (3, _write), "read": (3, _read),
    "unmap": (3, _unmap), "dontneed": (3, _dontneed), "advise": (3, _touch),
    "unadvise": (3, _touch), "fork": (2, _fork), "exit": (1, _exit), "mremap": (4, _mremap),
    "knob": (2, _knob), "run": (1, _run), "scan": (0, _scan), "scan_pages": (1, _scan_pages),
    "check": (0, _check)}
OBSERVING = ("scan", "scan_pages", "check")


def _preamble_layout() -> Layout:
    layout = Layout()
    for step in PREAMBLE:
        if step[0] in ("spawn", "map"):
            layout.do(step)
    return layout


def validate(script: Script) -> None:
    """Raise ScriptError for the first step that cannot be done, or contents that look alike."""
    layout = _preamble_layout()
    for index, step in enumerate(script):
        try:
            layout.do(step)
        except ScriptError as error:
            raise ScriptError(f"step {index} {step!r}: {error}") from None
    used = {c for step in script if step[0] == "write" for c in step[2 + 1]}
    checksums: dict[int, int] = {}
    for c in used:
        other = checksums.setdefault(checksum(c), c)
        if other != c:
            raise ScriptError(f"contents {other} and {c} have the same checksum")


def repaired(script: Script) -> list[Step]:
    """The steps that can be done, in order: what is left of a script some steps were taken from."""
    layout = _preamble_layout()
    kept = []
    for step in script:
        try:
            layout.do(step)
        except ScriptError:
            continue
        kept.append(step)
    return kept


def n_observations(script: Script) -> int:
    """How many observations a script makes."""
    return sum(step[0] in OBSERVING for step in script)


def n_scans(script: Script) -> int:
    """How many scans, or batches of one, a script makes."""
    return sum(step[0] in ("scan", "scan_pages") for step in script)


def dense_frames(raw: dict[int, list[tuple[int, list[int]]]]) -> dict[int, dict[int, int]]:
    """Frames by process and vpn, renumbered by first appearance, from (vpn, ids) stretches."""
    numbers: dict[int, int] = {}
    frames: dict[int, dict[int, int]] = {}
    for p in sorted(raw):
        frames[p] = {}
        for vpn, ids in raw[p]:
            for offset, name in enumerate(ids):
                frames[p][vpn + offset] = (
                    name if name < 0 else numbers.setdefault(name, len(numbers)))
    return frames


def _do(machine: Machine, step: Step) -> str | None:
    """Do one step that does not observe; the name of the errno that refused it."""
    op, *arguments = step
    if op == "map":
        p, vpn, n, kind = arguments
        machine.map(p, vpn, n, kind == "huge")
    elif op == "knob":
        return machine.set_knob(*arguments)
    elif op == "run":
        return machine.set_run(*arguments)
    else:
        getattr(machine, op)(*arguments)
    return None


def run_script(machine: Machine, script: Script) -> list[Observation]:
    """Run the preamble and a script on a fresh machine; what it shows after each scan or check."""
    layout = _preamble_layout()
    for step in PREAMBLE:
        if step[0] == "scan":
            machine.full_scan()
        else:
            _do(machine, step)
    base = machine.counters()
    base_cow = machine.cow_ksm
    observations: list[Observation] = []
    errors: list[str] = []
    for index, step in enumerate(script):
        layout.do(step)
        if step[0] not in OBSERVING:
            error = _do(machine, step)
            if error is not None:
                errors.append(error)
            continue
        if step[0] == "scan":
            machine.full_scan()
        elif step[0] == "scan_pages":
            machine.scan_pages(step[1])
        now = machine.counters()
        living = [p for p in layout.regions if p != 0]
        observations.append({
            "counters": {name: now[name] - (base[name] if name in CUMULATIVE else 0)
                         for name in COUNTERS if name in now},
            "cow_ksm": machine.cow_ksm - base_cow,
            "processes": {p: {name: value for name, value in machine.process_counters(p).items()
                              if name in PROCESS_COUNTERS} for p in living},
            "frames": dense_frames({
                p: [(region.start, machine.frames(p, region.start, region.end - region.start))
                    for region in layout.regions[p]] for p in living}),
            "errors": errors, "step": index})
        errors = []
    return observations


def _differences(observed: Any, expected: Any, path: str, is_partial: bool) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(observed, dict):
        for key in expected:
            name = f"{path}.{key:#x}" if path.startswith("frames.") else f"{path}.{key}"
            name = name.lstrip(".")
            if key not in observed:
                yield f"{name}: missing, expected {expected[key]!r}"
            else:
                yield from _differences(observed[key], expected[key], name, is_partial)
        if not is_partial:
            for key in observed:
                if key not in expected:
                    yield f"{path}.{key}: {observed[key]!r}, not expected".lstrip(".")
    elif observed != expected:
        yield f"{path}: observed {observed!r}, expected {expected!r}"


def first_difference(observed: Sequence[Observation], expected: Sequence[Any], *,
                     is_partial: bool = False, most: int = 6) -> str | None:
    """What differs in the first observation that differs, or None.

    With `is_partial`, only what `expected` holds is compared (hand-written expectations).
    """
    for number, (seen, wanted) in enumerate(zip(observed, expected, strict=False)):
        found = list(_differences(seen, wanted, "", is_partial))
        if found:
            more = f"; and {len(found) - most} more" if len(found) > most else ""
            return (f"observation {number} (step {seen['step']}): "
                    + "; ".join(found[:most]) + more)
    if len(observed) != len(expected):
        return f"{len(observed)} observations, {len(expected)} expected"
    return None


def _compiled_contents(contents: Sequence[int]) -> str:
    """Contents as words `c`, `cxN` (N copies) and `c+N` (c, c + 1, ... c + N - 1)."""
    words = []
    at = 0
    while at < len(contents):
        for sign, slope in (("x", 0), ("+", 1)):
            end = at + 1
            while end < len(contents) and contents[end] - contents[end - 1] == slope:
                end += 1
            if end - at > 1:
                words.append(f"{contents[at]}{sign}{end - at}")
                break
        else:
            words.append(str(contents[at]))
        at = end
    return " ".join(words)


def compile_script(script: Script, name: str) -> str:
    """A valid script in the driver's language: a line a step, from `script NAME` to `end`."""
    lines = [f"script {name}"]
    for index, step in enumerate(script):
        op, *arguments = step
        if op == "write":
            p, vpn, contents = arguments
            lines.append(f"{index} write {p} {vpn} {len(contents)} {_compiled_contents(contents)}")
        else:
            lines.append(" ".join(map(str, (index, op, *arguments))))
    lines.append("end")
    return "\n".join(lines) + "\n"
