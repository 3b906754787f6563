"""How hand-written scripts are written down: steps, and what must be seen after each scan.

What is expected is worked out by hand from the semantics, so that a model and a kernel that are
wrong alike are found too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.script import COUNTERS, ZERO_PAGE, Observation, Script, slot

#: Short names of what is expected most; the others go by the kernel's own names.
SHORT = {"shared": "pages_shared", "sharing": "pages_sharing", "unshared": "pages_unshared",
         "volatile": "pages_volatile", "scanned": "pages_scanned", "skipped": "pages_skipped",
         "profit": "general_profit", "chains": "stable_node_chains", "dups": "stable_node_dups",
         "cow": "cow_ksm", "zero": "ksm_zero_pages", "items": "ksm_rmap_items",
         "merging": "ksm_merging_pages"}


def summary(seen: Observation) -> dict[str, Any]:
    """An observation as values by name.

    The counters and cow_ksm; `frames`, the number of page frames in use; `zero_ptes`, the number
    of mappings of the zero page; `errors`; ksm_rmap_items and ksm_merging_pages by process.
    """
    pages = [frame for frames in seen["frames"].values() for frame in frames.values()]
    by_process: dict[str, dict[int, int]] = {
        name: {p: counters[name] for p, counters in seen["processes"].items()}
        for name in ("ksm_rmap_items", "ksm_merging_pages")}
    return {**seen["counters"], "cow_ksm": seen["cow_ksm"], "errors": seen["errors"],
            "frames": len({frame for frame in pages if frame >= 0}),
            "zero_ptes": pages.count(ZERO_PAGE), **by_process}


class Case:
    """A script for a kernel with what must be seen, a dict for each observation."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        #: Linux 6.1: no smart scan, no counters of scanned and zero pages, and other paths.
        self.is_old = kernel == "6.1"
        self.steps: list[list[Any]] = []
        self.expected: list[dict[str, Any]] = []

    def do(self, *step: Any) -> None:
        """Add a step that observes nothing."""
        self.steps.append(list(step))

    def smart(self, value: int) -> None:
        """Set smart_scan where there is one."""
        if not self.is_old:
            self.do("knob", "smart_scan", value)

    def process(self, p: int, contents: Sequence[int], r: int = 0, kind: str = "small") -> None:
        """Start a process with one mergeable region, in slot r, of these contents."""
        self.do("spawn", p)
        self.region(p, contents, r, kind)

    def region(self, p: int, contents: Sequence[int], r: int = 0, kind: str = "small") -> None:
        """Give a process a mergeable region, in slot r, of these contents."""
        self.do("map", p, slot(r), len(contents), kind)
        self.do("write", p, slot(r), list(contents))
        self.do("advise", p, slot(r), len(contents))

    def seen(self, *step: Any, **expected: Any) -> None:
        """Add a step that observes, and what it must show (names of SHORT or the kernel's)."""
        self.do(*step)
        wanted = {SHORT.get(name, name): value for name, value in expected.items()}
        if self.is_old:
            for name in ("pages_scanned", "pages_skipped", "ksm_zero_pages", "general_profit"):
                wanted.pop(name, None)
        self.expected.append(wanted)

    def scan(self, **expected: Any) -> None:
        """One full scan."""
        self.seen("scan", **expected)

    def scan_pages(self, n: int, **expected: Any) -> None:
        """One batch of n pages."""
        self.seen("scan_pages", n, **expected)

    def check(self, **expected: Any) -> None:
        """No scan."""
        self.seen("check", **expected)

    def scans(self, n: int) -> None:
        """Scans that nothing special is expected of."""
        for _ in range(n):
            self.scan()


Write = Callable[[Case], None]


def written(write: Write, kernel: str) -> tuple[Script, list[dict[str, Any]]]:
    """The script of a case for a kernel, and what must be seen."""
    case = Case(kernel)
    write(case)
    return case.steps, case.expected


def unexpected(observed: Sequence[Observation], expected: Sequence[dict[str, Any]]) -> str | None:
    """How observations differ from what a case expects; None when they do not."""
    for number, (seen, wanted) in enumerate(zip(observed, expected, strict=True)):
        values = summary(seen)
        for name, value in wanted.items():
            if name not in values and name in COUNTERS:
                return f"observation {number}: this kernel has no {name}"
            if values[name] != value:
                return (f"observation {number} (step {seen['step']}): {name} is {values[name]}, "
                        f"expected {value}")
    return None
