"""Which inputs matter most.

From the cases of a sweep: the main effect of every input that was varied, over all else. From one
simulated outcome: inputs turned up and down one at a time in a closed-form estimate of the
saving (`AtRest`), which costs nothing and ranks what is worth capturing better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

__all__ = ["AtRest", "Effect", "Point", "at_rest_effects", "at_rest_of", "effects"]

_BYTES_PER_PAGE = 4096
_RMAP_ITEM_BYTES = 64
_STABLE_NODE_BYTES = 64
#: Inputs of AtRest that are turned, and by which share of their value.
_INPUTS = ("common_share", "copies", "write_rate_per_s", "merge_delay_s", "huge_share")
VARIATION = 0.25


@dataclass(frozen=True, slots=True)
class Point:
    """One case of a sweep: what was set (dotted key to value), and a figure by policy."""

    inputs: Mapping[str, Any]
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Effect:
    """What turning one input does to the figure of one policy.

    `low` and `high` are the figure's least and greatest mean over the levels of the input, at
    `low_at` and `high_at`. `elasticity`: per cent of the figure per per cent of the input, None
    where either is no positive number.
    """

    policy: str
    input: str
    low_at: Any
    high_at: Any
    low: float
    high: float
    elasticity: float | None

    @property
    def swing(self) -> float:
        """How far the input moves the figure."""
        return self.high - self.low

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings, with the swing."""
        return {**asdict(self), "swing": self.swing}


def effects(points: Sequence[Point]) -> list[Effect]:
    """Main effects of all inputs with more than one level, greatest swing first by policy."""
    found: list[Effect] = []
    for policy in dict.fromkeys(name for point in points for name in point.values):
        mine = [point for point in points if policy in point.values]
        keys = dict.fromkeys(key for point in mine for key in point.inputs)
        ranked = [effect for effect in (_effect(policy, key, mine) for key in keys) if effect]
        found += sorted(ranked, key=lambda effect: -effect.swing)
    return found


def _effect(policy: str, key: str, points: Sequence[Point]) -> Effect | None:
    levels: dict[Any, list[float]] = defaultdict(list)
    shown: dict[Any, Any] = {}
    for point in points:
        if key in point.inputs:
            level = point.inputs[key]
            shown[repr(level)] = level
            levels[repr(level)].append(point.values[policy])
    if len(levels) < 2:
        return None
    means = {level: fmean(values) for level, values in levels.items()}
    low, high = min(means, key=lambda k: means[k]), max(means, key=lambda k: means[k])
    return Effect(policy, key, shown[low], shown[high], means[low], means[high],
                  _elasticity([(shown[level], mean) for level, mean in means.items()]))


def _elasticity(points: Sequence[tuple[Any, float]]) -> float | None:
    """Slope of least squares through the logarithms."""
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 and y > 0
               for x, y in points):
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    x_mean, y_mean = fmean(xs), fmean(ys)
    across = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / across \
        if across else None


@dataclass(frozen=True, slots=True)
class AtRest:
    """The saving of a fleet in closed form, where nothing changes but what is written.

    Of `memory_bytes` the share `huge_share` lies in huge pages that stay whole. Of the rest,
    `common_share` has contents that `copies` guests hold on average: of each, one stays. A merged
    page is written `write_rate_per_s` times a second and is merged again `merge_delay_s` later,
    so it is merged 1 / (1 + rate x delay) of the time. Records cost 64 bytes a candidate page and
    64 a content.
    """

    memory_bytes: float
    common_share: float
    copies: float
    write_rate_per_s: float
    merge_delay_s: float
    huge_share: float

    @property
    def saved_bytes(self) -> float:
        """Frames freed minus records."""
        offered = self.memory_bytes * (1 - min(max(self.huge_share, 0.0), 1.0))
        copies = max(self.copies, 1.0)
        common = offered * min(max(self.common_share, 0.0), 1.0)
        merged = common / (1 + self.write_rate_per_s * self.merge_delay_s)
        records = (offered * _RMAP_ITEM_BYTES
                   + common / copies * _STABLE_NODE_BYTES) / _BYTES_PER_PAGE
        return merged * (1 - 1 / copies) - records


def at_rest_of(row: Mapping[str, Any], window_ns: int) -> AtRest | None:
    """The estimate that agrees with one row of the table of replicates; None where there is none,
    as where nothing merged.

    What was not offered for merging stands for huge pages that are not split; `common_share` is
    what makes the saving agree.
    """
    sharing, shared = row["pages_sharing"], row["pages_shared"]
    memory = row["guest_memory_bytes"]
    if min(sharing, shared, memory, row["saved_bytes"], window_ns) <= 0:
        return None
    delay_ns = row["merged_after_p50_ns"] or row["time_to_90_ns"] or 0
    rate = row["cow_breaks"] / (sharing + shared) / (window_ns / 1e9)
    copies = (sharing + shared) / shared
    found = AtRest(float(memory), 0.0, copies, rate, delay_ns / 1e9,
                   1 - min(row["eligible_bytes"] / memory, 1.0))
    if replace(found, common_share=1.0).saved_bytes < row["saved_bytes"]:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_below = replace(found, common_share=middle).saved_bytes < row["saved_bytes"]
        low, high = (middle, high) if is_below else (low, middle)
    return replace(found, common_share=(low + high) / 2)


def at_rest_effects(policy: str, base: AtRest, variation: float = VARIATION) -> list[Effect]:
    """Each input of the estimate turned down and up by `variation` of its value, ranked."""
    points = []
    for name in _INPUTS:
        value = getattr(base, name)
        if not value:
            continue
        for turned in (value * (1 - variation), value, value * (1 + variation)):
            saved = replace(base, **{name: turned}).saved_bytes
            points.append(Point({name: turned}, {policy: saved}))
    return effects(points)
