"""How many hosts, and which share of their contents, a wanted standard error needs.

A pilot of few hosts and contents gives the variance of one host and of one content. Contents are
drawn anew on every host, so errors go with 1 / sqrt(n) over hosts and 1 / sqrt(n * c) over
contents; of all designs that reach the wanted error the cheapest is taken. Work goes with the pages
that are simulated and the writes to them, and a fixed part a host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.fleet import random_stream
from planner.sampling.estimate import Total

__all__ = ["Design", "choose", "first_design", "sampled_hosts", "work_pages"]

#: Hosts of a pilot.
PILOT_HOSTS = 8
#: Pages of a host in a pilot, and the most that are simulated of one where errors are chosen.
PILOT_PAGES = 1 << 16
MOST_PAGES = 1 << 20
#: A write costs about as much as so many pages.
_WRITE_PAGES = 1 / 24
#: What a host costs beside its pages, in pages.
_HOST_PAGES = 1 << 13
#: A strategy that saves little is held to the wanted share of so much of what the best one saves.
_LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Design:
    """`n_hosts` of the hosts that have guests, `share` of their contents."""

    n_hosts: int
    share: float


def first_design(n_hosts: int, pages_per_host: float) -> Design:
    """The pilot for a fleet of `n_hosts` with guests. `pages_per_host` as `work_pages` gives."""
    share = min(1.0, PILOT_PAGES / max(pages_per_host, 1.0))
    return Design(min(n_hosts, PILOT_HOSTS), share)


def work_pages(pages: float, writes: float) -> float:
    """A host's pages and the writes to them, as pages of equal work."""
    return pages + writes * _WRITE_PAGES


def choose(totals: Sequence[Total], done: Design, n_hosts: int, pages_per_host: float,
           error: float, *, fixed_hosts: int = 0, fixed_share: float | None = None) -> Design:
    """The cheapest design with a standard error of at most `error`, as a share of each total.

    `totals`: one a policy, as `done` gave them, over a fleet of `n_hosts` hosts with guests.
    What is fixed stays. Never less than what is done: a design only grows.
    """
    floor = _LEAST_SHARE * max((abs(total.mean) for total in totals), default=0.0)
    host_variance = content_variance = 0.0
    n, share = done.n_hosts, done.share
    for total in totals:
        size = max(abs(total.mean), floor)
        if size <= 0:
            continue
        if n < n_hosts and math.isfinite(total.host_error):
            host_variance = max(host_variance,
                                (total.host_error / size) ** 2 * n / (1 - n / n_hosts))
        if share < 1:
            content_variance = max(content_variance, (total.content_error / size) ** 2
                                   * n * share / (1 - share))
    found: list[tuple[float, Design]] = []
    for each in _shares(share, pages_per_host, fixed_share):
        by_content = content_variance * (1 - each) / each
        # (V + C) / n - V / N = error^2
        n_needed = min(n_hosts, fixed_hosts) if fixed_hosts else math.ceil(
            (host_variance + by_content) / (error**2 + host_variance / n_hosts) or 1)
        n_needed = min(n_hosts, max(n_needed, n))
        missed = max(0.0, by_content / n_needed
                     + host_variance * (1 / n_needed - 1 / n_hosts) - error**2)
        work = n_needed * (each * pages_per_host + _HOST_PAGES)
        # What misses the error is worse than anything that reaches it.
        found.append((work if missed <= 1e-12 else 1e18 * (1 + missed), Design(n_needed, each)))
    return min(found, key=lambda each: each[0])[1]


def _shares(done: float, pages_per_host: float, fixed: float | None) -> list[float]:
    if fixed is not None:
        return [fixed]
    most = min(1.0, max(done, MOST_PAGES / max(pages_per_host, 1.0)))
    steps = max(0, math.ceil(math.log2(most / done) * 4)) if done < most else 0
    return [min(most, done * 2 ** (step / 4)) for step in range(steps + 1)]


def sampled_hosts(seed: int, replicate: int, hosts: npt.NDArray[np.int64], n: int
                  ) -> npt.NDArray[np.int64]:
    """`n` of these hosts, ascending: drawn without replacement, every one as likely.

    A larger `n` keeps those that a smaller one gave.
    """
    if n >= len(hosts):
        return np.sort(hosts)
    order = random_stream(seed, "sampled hosts", replicate).permutation(len(hosts))
    return np.sort(hosts[order[:n]])
