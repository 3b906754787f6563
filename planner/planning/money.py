"""What a strategy is worth in a year: whole hosts and their power, or memory, less CPU.

A part whose price is missing is not told. Hosts and memory are the same gain twice: where the hosts
it saves can be counted and priced they count, else the memory does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planner.scenario.spec import CostsSpec

__all__ = ["HOURS_PER_YEAR", "Money", "Use", "money", "slowdown_share"]

HOURS_PER_YEAR = 8766.0
_YEAR_NS = HOURS_PER_YEAR * 3_600_000_000_000
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Use:
    """What a strategy saves and takes. `hosts_saved`: fewer than the baseline needs, None where
    that is not known. CPU times are over `window_ns` and all machines. `split_share`: of the
    guests' memory, in 2 MiB pages that merging split; None where that is not known."""

    hosts_saved: int | None
    saved_bytes: int
    merge_cpu_ns: int
    core_time_ns: float
    window_ns: int
    split_share: float | None


@dataclass(frozen=True, slots=True)
class Money:
    """Amounts a year; gains are positive, costs negative, None where a price is missing.

    `net` adds the gain that counts and the costs that are known; None without a gain.
    """

    currency: str
    hosts: float | None
    power: float | None
    memory: float | None
    cpu: float | None
    slowdown: float | None
    net: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


def slowdown_share(costs: CostsSpec, use: Use) -> float | None:
    """The share of guests' CPU time lost with split huge pages; None without the input.

    `huge_page_slowdown` is how much slower a guest runs with none of its memory in 2 MiB
    mappings; with a part of it split, that part of the slowdown.
    """
    if costs.huge_page_slowdown is None or use.split_share is None:
        return None
    return costs.huge_page_slowdown * min(1.0, use.split_share)


def money(costs: CostsSpec, use: Use) -> Money | None:
    """The amounts a year, or None where no price is given that says anything."""
    years = costs.host_lifetime_ns / _YEAR_NS if costs.host_lifetime_ns else None
    hosts = power = memory = cpu = slowdown = None
    if costs.host_price is not None and years and use.hosts_saved is not None:
        hosts = use.hosts_saved * costs.host_price / years
    if costs.host_power_w is not None and costs.electricity_price is not None \
            and use.hosts_saved is not None:
        power = (use.hosts_saved * costs.host_power_w / 1000 * HOURS_PER_YEAR
                 * costs.electricity_price)
    if costs.memory_price is not None and years:
        memory = use.saved_bytes / _GIB * costs.memory_price / years
    if costs.cpu_price is not None and use.window_ns:
        hourly = costs.cpu_price * HOURS_PER_YEAR / use.window_ns
        cpu = -use.merge_cpu_ns * hourly or 0.0
        lost = slowdown_share(costs, use)
        if lost is not None:
            slowdown = -lost * use.core_time_ns * hourly or 0.0
    gains = [each for each in (hosts, power) if each is not None] \
        or [each for each in (memory,) if each is not None]
    if not gains and cpu is None:
        return None
    net = sum(gains) + (cpu or 0.0) + (slowdown or 0.0) if gains else None
    return Money(costs.currency, hosts, power, memory, cpu, slowdown, net)
