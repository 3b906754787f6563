"""A made-up day of arrivals, as CSV on standard output: the source of `day.parquet`.

    python make_day.py | planner import arrivals --from csv - -o day.parquet

Tenants come in batches, twice as often at noon as at midnight. Most batches are one or two
guests and a few are dozens; guests of a batch are of one flavour and stay about equally long.
Most stay under an hour, some for the day; who would stay beyond midnight is still running when
the record ends. All of it is assumed, after the shape of public records, and measured nowhere.
"""

from __future__ import annotations

import csv
import math
import random
import sys

SEED = 2017
DAY_S = 86_400
#: Flavour: memory, cores, share of the batches.
FLAVOURS = (("tiny", "512MiB", 1, 0.40), ("small", "1GiB", 1, 0.30),
            ("medium", "2GiB", 2, 0.20), ("large", "8GiB", 4, 0.10))
#: Of batches: mean stay, share.
STAYS = ((900, 0.45), (3_600, 0.35), (21_600, 0.15), (172_800, 0.05))
#: Batches an hour, on average over the day.
BATCHES_PER_HOUR = 6.0
LARGEST_BATCH = 32


def picked(draw: random.Random, shares: list[float]) -> int:
    """An index, each with its share."""
    left = draw.random()
    for index, share in enumerate(shares):
        left -= share
        if left < 0:
            return index
    return len(shares) - 1


def batches(draw: random.Random) -> list[tuple[int, int]]:
    """Second and size of each batch: a Poisson process, thinned to the hour of the day."""
    found = []
    highest = BATCHES_PER_HOUR * 4 / 3
    time_s = 0.0
    while True:
        time_s -= math.log(1 - draw.random()) * 3_600 / highest
        if time_s >= DAY_S:
            return found
        level = 1 - math.cos(2 * math.pi * time_s / DAY_S) / 3
        if draw.random() < level * 3 / 4:
            # A Pareto tail: one guest in half of the batches, eight or more in one of seven.
            size = min(LARGEST_BATCH, int((1 - draw.random()) ** -1.06))
            found.append((int(time_s), size))


def main() -> None:
    """Write the rows."""
    # Only random() is drawn from: its values are the same in every version of Python.
    draw = random.Random(SEED)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["time_s", "duration_s", "memory", "cores", "tenant", "flavour"])
    for number, (time_s, size) in enumerate(batches(draw)):
        name, memory, cores, _ = FLAVOURS[picked(draw, [row[3] for row in FLAVOURS])]
        mean_s = STAYS[picked(draw, [row[1] for row in STAYS])][0]
        stay_s = -math.log(1 - draw.random()) * mean_s
        for _ in range(size):
            length_s = 60 + int(stay_s * (0.9 + 0.2 * draw.random()))
            is_seen = time_s + length_s <= DAY_S
            out.writerow([time_s, length_s if is_seen else "", memory, cores,
                          f"batch-{number}", name])


if __name__ == "__main__":
    main()
