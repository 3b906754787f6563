"""Published results again: runs the scenarios beside this file and prints paper, ours, difference.

    python scenarios/reproductions/reproduce.py [NAME ...] [--json]

Synthetic traces are made anew below `traces/` first. docs/reproductions.md explains each line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import synthesise

import planner

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Figure:
    """One figure of a publication and ours, in `unit`."""

    result: str
    figure: str
    paper: float
    ours: float
    unit: str


Rows = dict[str, dict[str, Any]]


def run(name: str, *overrides: str) -> tuple[Rows, planner.Result]:
    """Summary rows by policy of a scenario beside this file."""
    scenario = planner.load_scenario(HERE / f"{name}.yaml", list(overrides))
    result = planner.run(scenario)
    return {row["policy"]: row for row in result.summary.to_pylist()}, result


def cmd() -> Iterator[Figure]:
    """Comparisons by the height of the trees, and the sharing that is kept."""
    rows, _ = run("cmd")

    def per_visit(row: dict[str, Any]) -> float:
        return float(row["merge_cpu_ns"] / row["pages_scanned"])

    one = rows["one-tree"]
    for name, text in (("by-kind-of-region", "trees by kind of region"),
                       ("by-image", "trees by image"), ("by-guest", "trees by guest")):
        row = rows[name]
        yield Figure("CMD", f"fewer comparisons, {text}", 68.5,
                     100 * (1 - per_visit(row) / per_visit(one)), "%")
        yield Figure("CMD", f"sharing kept, {text}", 98.0,
                     100 * row["pages_sharing"] / one["pages_sharing"], "%")


def barker() -> Iterator[Figure]:
    """Sharing without zero pages, and the part of it inside a guest, over similarity."""
    mixes = (
        ("18 containers of 9 images", ["workloads.0.trace=../../traces/container-host"]),
        ("12 guests of one distribution, 3 roles", []),
        ("4 guests of one image", ["workloads.0.select={role: nginx}"]),
    )
    for text, overrides in mixes:
        rows, _ = run("barker", *overrides)
        everything, inside = rows["all"], rows["inside"]
        # Frames freed, before KSM's own records: what the paper counts.
        freed = everything["saved_bytes"] + everything["metadata_bytes"]
        own = inside["saved_bytes"] + inside["metadata_bytes"]
        yield Figure("Barker", f"sharing, {text} (at most)", 15.0,
                     100 * freed / everything["guest_memory_bytes"], "%")
        yield Figure("Barker", f"of it inside one, {text} (at least)", 90.0, 100 * own / freed, "%")


def smart_scan() -> Iterator[Figure]:
    """Pages a pass and CPU with and without smart_scan; 1 page stands for 1,000."""
    rows, _ = run("smart-scan")
    plain, smart = rows["all-pages"], rows["smart-scan"]
    yield Figure("smart_scan", "visits a full scan without it (more than)", 20.0,
                 plain["pages_scanned"] / plain["full_scans"] / 1000, "M")
    yield Figure("smart_scan", "visits a full scan with it (less than)", 15.0,
                 smart["pages_scanned"] / smart["full_scans"] / 1000, "M")
    yield Figure("smart_scan", "less CPU at the same pace", 25.0,
                 100 * (1 - smart["merge_cpu_ns"] / plain["merge_cpu_ns"]), "%")


def instagram() -> Iterator[Figure]:
    """The published counters; 1 page stands for 100."""
    rows, result = run("instagram")
    row = rows["ksmd"]
    for name, paper in (("pages_shared", synthesise.PAGES_SHARED),
                        ("pages_sharing", synthesise.PAGES_SHARING),
                        ("pages_unshared", synthesise.PAGES_UNSHARED),
                        ("pages_volatile", synthesise.PAGES_VOLATILE)):
        yield Figure("Instagram", name, paper / 1e6, row[name] * 100 / 1e6, "M")
    yield Figure("Instagram", "general_profit", 20_158_298_048 / 1e9,
                 row["general_profit_bytes"] * 100 / 1e9, "GB")
    samples = [each for each in result.hosts.to_pylist() if each["policy"] == "ksmd"]
    reached = next(each["time_ns"] for each in samples if each["pages_sharing"] * 100 >= 4e6)
    yield Figure("Instagram", "4 M pages_sharing after (at least)", 30.0,
                 reached / SECOND / 60, "min")


def xlh() -> Iterator[Figure]:
    """What merging at once brings over the scanner, as means over time."""
    rows, _ = run("xlh")
    scanned, at_once = rows["ksmd"], rows["synchronous"]
    yield Figure("XLH", "mean saving, merged at once over scanned", 290 / 75,
                 at_once["saved_mean_bytes"] / scanned["saved_mean_bytes"], "x")
    yield Figure("XLH", "time to find the sharing, scanned (about)", 5.0,
                 scanned["time_to_90_ns"] / SECOND / 60, "min")
    yield Figure("XLH", "time to find the sharing, at once", 0.0,
                 at_once["time_to_90_ns"] / SECOND / 60, "min")


def upm() -> Iterator[Figure]:
    """Sixteen of a kind, each merged when it starts."""
    kinds = (
        ("16 small Python services", []),
        ("16 VMs of one image", ["workloads.0.trace=../../traces/qemu-guests",
                                 "workloads.0.select={role: redis}"]),
    )
    for text, overrides in kinds:
        rows, _ = run("upm", *overrides)
        row = rows["at-start"]
        yield Figure("UPM", f"less memory, {text} (up to)", 55.0, 100 * row["saved_share"], "%")
        share = (row["saved_bytes"] + row["saved_zero_bytes"]) / row["guest_memory_bytes"]
        yield Figure("UPM", f"with zero pages, {text}", 55.0, 100 * share, "%")


def para_ksm() -> Iterator[Figure]:
    """The share of a core that ksmd takes, at the bounds of ksmtuned and under it."""
    rows, _ = run("para-ksm")
    for name, text in (("most", "2048 pages every 20 ms"), ("least", "64 pages every 20 ms"),
                       ("ksmtuned", "ksmtuned")):
        row = rows[name]
        yield Figure("Para-ksm", f"of one core, {text}", 48.2, 100 * row["merge_cpu_share"], "%")


ALL: dict[str, Callable[[], Iterator[Figure]]] = {
    "cmd": cmd, "barker": barker, "smart-scan": smart_scan, "instagram": instagram, "xlh": xlh,
    "upm": upm, "para-ksm": para_ksm}


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| result | figure | paper | ours | difference |", "|---|---|---:|---:|---:|"]
    for each in figures:
        lines.append(f"| {each.result} | {each.figure} | {each.paper:.3g} {each.unit} | "
                     f"{each.ours:.3g} {each.unit} | {each.ours - each.paper:+.3g} {each.unit} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(ALL))
    if unknown:
        parser.error(f"no result named {', '.join(unknown)}; there are {', '.join(ALL)}")
    synthesise.make(HERE / "traces")
    figures = [figure for name in arguments.names or ALL for figure in ALL[name]()]
    print(json.dumps([asdict(each) for each in figures], indent=1) if arguments.json
          else table(figures))


if __name__ == "__main__":
    main()
