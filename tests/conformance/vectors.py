"""Nine vectors: what Linux shows after every scan, worked out by hand from its source.

6.1 has no smart scan, and searches the stable tree before it hashes.
"""

from __future__ import annotations

from tests.conformance.casebook import Case, Write
from tests.conformance.script import slot


def a(case: Case) -> None:
    """1000 identical pages, one process."""
    case.process(1, [7] * 1000)
    case.scan(shared=0, sharing=0, unshared=0, volatile=1000, profit=-64000)
    case.scan(shared=4, sharing=996, unshared=0, volatile=0, profit=4015616, chains=1, dups=4,
              frames=4)


def b(case: Case) -> None:
    """1000 unique pages with smart scan."""
    case.process(1, range(1, 1001))
    visited = (1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0)
    scanned = 0
    for number, is_visited in enumerate(visited):
        is_visited = 1 if case.is_old else is_visited
        scanned += 1000 * is_visited
        unshared = 1000 * is_visited if number else 0
        case.scan(scanned=scanned, unshared=unshared, volatile=1000 - unshared, shared=0)
    case.check(skipped=9000, scanned=7000, full_scans=17)


def c(case: Case) -> None:
    """The same without."""
    case.smart(0)
    case.process(1, range(1, 1001))
    case.scan(unshared=0, volatile=1000)
    for number in range(2, 6):
        case.scan(unshared=1000, volatile=0, scanned=1000 * number, skipped=0)


def d(case: Case) -> None:
    """Two processes with 500 equal pairs."""
    for p in (1, 2):
        case.process(p, range(1, 501))
    case.scan(shared=0, sharing=0, volatile=1000)
    case.scan(shared=500, sharing=500, unshared=0, volatile=0, profit=1984000, frames=500,
              merging={1: 500, 2: 500})


def e(case: Case) -> None:
    """A third equal process comes: it merges at its second visit, on 6.1 at its first."""
    d(case)
    case.scan(shared=500, sharing=500)
    case.process(3, range(1, 501))
    if case.is_old:
        case.scan(shared=500, sharing=1000, volatile=0)
    else:
        case.scan(shared=500, sharing=500, volatile=500)
    case.scan(shared=500, sharing=1000, volatile=0, frames=500)


def f(case: Case) -> None:
    """300 identical pages of which 10 are rewritten: age stood still while they were merged."""
    case.process(1, [7] * 300)
    case.scan()
    for _ in range(3):
        case.scan(shared=2, sharing=298, volatile=0)
    case.do("write", 1, slot(0), list(range(100, 110)))
    case.check(shared=2, sharing=298, cow=10, frames=12)
    case.scan(shared=2, sharing=288, volatile=10, unshared=0)
    case.scan(shared=2, sharing=288, volatile=0, unshared=10)
    if case.is_old:
        case.scan(volatile=0, unshared=10)
    else:
        case.scan(volatile=10, unshared=0, skipped=10)


def g(case: Case) -> None:
    """A fork of a process with 100 merged pages: more sharing, no more memory."""
    for p in (1, 2):
        case.process(p, range(1, 101))
    case.scan()
    case.scan(shared=100, sharing=100, frames=100)
    case.do("fork", 1, 3)
    case.check(shared=100, sharing=100, frames=100)
    case.scan(shared=100, sharing=200, frames=100)


def h(case: Case) -> None:
    """100 unique pages that two processes share by fork."""
    case.smart(0)
    case.process(1, range(1, 101))
    case.do("fork", 1, 2)
    case.scan(unshared=0, volatile=200, frames=100)
    for _ in range(3):
        case.scan(unshared=100, volatile=100, shared=0, frames=100)


def i(case: Case) -> None:
    """100 zero pages with use_zero_pages."""
    case.do("knob", "use_zero_pages", 1)
    case.process(1, [0] * 100)
    case.scan(volatile=100, zero=0, zero_ptes=0, frames=100)
    case.scan(volatile=100, zero=100, zero_ptes=100, frames=0, items={1: 100})
    case.scan(volatile=0, zero=100, items={1: 0}, profit=409600, cow=0)


VECTORS: dict[str, Write] = {"A": a, "B": b, "C": c, "D": d, "E": e, "F": f, "G": g, "H": h, "I": i}
