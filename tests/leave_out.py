"""The population model held against captured guests that it has not seen.

    python -m tests.leave_out traces/qemu-guests
    python -m tests.leave_out traces/container-host --by image
    python -m tests.leave_out traces/qemu-guests --leave 2 --alone

Of the guests of each role one is left out, in every combination; a population is fitted to the
others, and as many guests as were captured are drawn from it. What merging would save at rest
(frames of non-zero content less different contents, among eligible pages, in each merge space) is
compared with that of all captured guests, those left out included. Merge spaces: one for all, one
a role, one a guest.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.planning.intervals import SPREAD_LEVEL, student_quantile
from planner.population.fit import Captured, capture_population
from planner.population.model import Population
from planner.scenario.spec import DrawSpec, GuestSpec, Scenario
from planner.trace import Trace, open_trace
from tests.scenario_builder import scenario_for

SPACES = ("one", "role", "guest")
#: A drawn guest at rest: template and snapshot.
Drawn = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Kept contents by pattern: `patterns` bool[p, columns] of who holds them, `kept` i64[p] how
    many there are. `private` i64[columns]: private contents of each."""

    patterns: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.int64]
    private: npt.NDArray[np.int64]


class AtRest:
    """What guests of a capture save at rest, from who holds which content in which snapshot."""

    def __init__(self, captured: Captured) -> None:
        templates, is_zero = captured.templates, captured.contents.is_zero
        self.n_snapshots = len(templates[0].content)
        n_columns = len(templates) * self.n_snapshots
        held = np.zeros((len(is_zero), n_columns), bool)
        self.frames = np.zeros(n_columns, np.int64)
        for number, template in enumerate(templates):
            for snapshot in range(self.n_snapshots):
                content, frame = template.content[snapshot], template.frame[snapshot]
                use = (content >= 0) & (template.site_eligible != 0)
                use[use] = ~is_zero[content[use]]
                column = self.column((number, snapshot))
                held[content[use], column] = True
                self.frames[column] = len(np.unique(frame[use]))
        packed = np.packbits(held, axis=1)
        patterns, self._pattern_of = np.unique(packed, axis=0, return_inverse=True)
        self._patterns = np.unpackbits(patterns, axis=1, count=n_columns).astype(bool)

    def column(self, guest: Drawn) -> int:
        return guest[0] * self.n_snapshots + guest[1]

    def split(self, is_kept: npt.NDArray[np.bool_]) -> Split:
        """The contents that guests share where both hold them, and those that nobody shares."""
        kept, private = (np.bincount(self._pattern_of[which], minlength=len(self._patterns))
                         for which in (is_kept, ~is_kept))
        return Split(self._patterns[kept > 0], kept[kept > 0], private @ self._patterns)

    def saved(self, spaces: Sequence[Sequence[Drawn]], split: Split) -> int:
        """Frames saved by guests that share what is kept, and nothing else, within a space."""
        saved = 0
        for space in spaces:
            columns = [self.column(guest) for guest in space]
            union = split.kept[split.patterns[:, list(set(columns))].any(axis=1)].sum()
            saved += int(self.frames[columns].sum() - union - split.private[columns].sum())
        return saved


def role_scenario(path: Path, key: str, at_least: int) -> Scenario:
    """A workload for each value of the label `key` that at least so many guests have."""
    whole = scenario_for(path)
    by_role: dict[str, list[GuestSpec]] = {}
    for guest in whole.workloads[0].guests:
        by_role.setdefault(dict(guest.labels).get(key, ""), []).append(guest)
    workloads = tuple(
        replace(whole.workloads[0], name=role, host="", guests=tuple(guests),
                draw=DrawSpec(count=len(guests)))
        for role, guests in by_role.items() if len(guests) >= at_least)
    return replace(whole, workloads=workloads)


def spaces_of(guests: Sequence[Sequence[Drawn]], kind: str) -> list[list[Drawn]]:
    """Merge spaces of guests by role."""
    if kind == "one":
        return [[guest for role in guests for guest in role]]
    if kind == "role":
        return [list(role) for role in guests]
    return [[guest] for role in guests for guest in role]


def draw(population: Population, counts: Sequence[int], seed: int) -> list[list[Drawn]]:
    """Guests of each workload at their phases, as a fleet draws them."""
    drawn = []
    for workload, count in enumerate(counts):
        names = [f"{population.workloads[workload].name}-{n}" for n in range(count)]
        template, phase_ns = population.draw(seed, 0, workload, names)
        snapshot = population.workloads[workload].clock.at(phase_ns, 0)[1]
        drawn.append(list(zip(template.tolist(), snapshot.tolist(), strict=True)))
    return drawn


@dataclass(frozen=True, slots=True)
class Case:
    """One fit: of which roles, who was left out, and what came out, in frames.

    `truth`: mean over the snapshots; `at_snapshots`: in each. `low`, `high`: the interval.
    """

    roles: tuple[str, ...]
    left: tuple[tuple[str, ...], ...]
    spaces: str
    truth: float
    at_snapshots: tuple[int, ...]
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Predicted over true, less one; 0 where nothing is saved and nothing predicted."""
        if not self.truth:
            return 0.0 if not self.predicted else float("inf")
        return self.predicted / self.truth - 1

    @property
    def is_covered(self) -> bool:
        """Whether the truth lies in the interval."""
        return self.low <= self.truth <= self.high


def cases(scenario: Scenario, traces: Mapping[str, Trace], *, n_draws: int, n_resamples: int,
          n_left: int = 1) -> Iterator[Case]:
    """Every combination of guests left out, `n_left` of each workload of the scenario."""
    whole = AtRest(everything := capture_population(scenario, traces))
    counts = [len(workload.guests) for workload in scenario.workloads]
    own = [[number for number, template in enumerate(everything.templates)
            if template.workload == index] for index in range(len(counts))]
    everyone = whole.split(np.ones(len(everything.contents), bool))
    truths = {kind: tuple(
        whole.saved(spaces_of([[(number, snapshot) for number in role] for role in own], kind),
                    everyone)
        for snapshot in range(whole.n_snapshots)) for kind in SPACES}
    roles = tuple(workload.name for workload in scenario.workloads)
    for left in itertools.product(*(
            itertools.combinations([guest.name for guest in workload.guests], n_left)
            for workload in scenario.workloads)):
        captured = capture_population(scenario, traces,
                                      leave=dict(zip(roles, left, strict=True)))
        rest = AtRest(captured)
        best = captured.population()
        split = rest.split(best.contents.is_kept)
        draws = [draw(best, counts, number) for number in range(n_draws)]
        others = []
        for number in range(n_resamples):
            one = captured.population(number)
            others.append((draw(one, counts, number), rest.split(one.contents.is_kept)))
        for kind in SPACES:
            predicted = float(np.mean([rest.saved(spaces_of(guests, kind), split)
                                       for guests in draws]))
            scatter = [rest.saved(spaces_of(guests, kind), its) for guests, its in others]
            low, high = interval(predicted, scatter, best.n_free)
            yield Case(roles, left, kind, float(np.mean(truths[kind])), truths[kind], predicted,
                       low, high)


def hits(scenario: Scenario, traces: Mapping[str, Trace]) -> tuple[float, float]:
    """Of a workload alone: contents of a guest left out that just one of the others shows.

    As foretold from those others and as seen, on the mean of all guests. Of k guests that show R
    contents twice and as many rare common ones once, the next one holds 2 / (k + 2) of the latter.
    """
    everything = capture_population(scenario, traces)
    held = np.zeros((len(everything.templates), len(everything.contents)), np.int64)
    held[everything.seen.template, everything.seen.content] = 1
    workload, foretold, seen = scenario.workloads[0], [], []
    for number, guest in enumerate(workload.guests):
        estimate = capture_population(
            scenario, traces, leave={workload.name: [guest.name]}).estimates[0]
        n_rest = len(workload.guests) - 1
        foretold.append(float((estimate.share * estimate.n_once).sum()) * 2 / (n_rest + 2))
        others = held.sum(axis=0) - held[number]
        seen.append(int(((others == 1) & (held[number] == 1)).sum()))
    return float(np.mean(foretold)), float(np.mean(seen))


def interval(estimate: float, scatter: Sequence[float], n_free: int) -> tuple[float, float]:
    """The estimate's interval at SPREAD_LEVEL from what resamples gave: Student's."""
    half = student_quantile((1 + SPREAD_LEVEL) / 2, max(n_free, 1)) * float(np.std(scatter, ddof=1))
    return estimate - half, estimate + half


def table(found: Sequence[Case]) -> list[str]:
    """Rows of a Markdown table, one a set of roles and merge spaces."""
    rows = []
    for key in dict.fromkeys((case.roles, case.spaces) for case in found):
        some = [case for case in found if (case.roles, case.spaces) == key]
        errors = np.array([case.error for case in some])
        moments = np.array([case.predicted / value - 1 for case in some
                            for value in case.at_snapshots if value])
        width = np.mean([(case.high - case.low) / 2 / max(case.truth, 1) for case in some])
        worst = errors[np.argmax(np.abs(errors))]
        rows.append(
            f"| {' + '.join(key[0])} | {key[1]} | {len(some)} | {some[0].truth:,.0f} | "
            f"{errors.mean():+.1%} | {worst:+.1%} | {np.mean(np.abs(errors) <= 0.03):.0%} | "
            f"{moments[np.argmax(np.abs(moments))] if len(moments) else 0:+.1%} | "
            f"{width:.1%} | {sum(case.is_covered for case in some)} of {len(some)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--by", default="role", help="label that tells the roles apart")
    parser.add_argument("--at-least", type=int, default=3, help="guests of a role")
    parser.add_argument("--leave", type=int, default=1, help="guests left out of each role")
    parser.add_argument("--alone", action="store_true", help="each role by itself, not together")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=100)
    given = parser.parse_args()
    for path in given.traces:
        scenario = role_scenario(path, given.by, given.at_least)
        traces = {scenario.workloads[0].trace: open_trace(path)}
        alone = [replace(scenario, workloads=(workload,)) for workload in scenario.workloads]
        together = [] if given.alone or len(alone) == 1 else [scenario]
        found = [case for one in [*alone, *together]
                 for case in cases(one, traces, n_draws=given.draws, n_left=given.leave,
                                   n_resamples=given.resamples)
                 if len(one.workloads) > 1 or case.spaces != "role"]
        print(f"\n{path.name}\n")
        print("| roles | merge spaces | fits | saved | mean error | worst | within 3 % | "
              f"worst at a snapshot | interval | holds the truth |\n|{'---|' * 10}")
        print("\n".join(table(found)))
        # Three others at least: two do not tell the rare from the image's.
        told = [(one.workloads[0].name, *hits(one, traces)) for one in alone
                if len(one.workloads[0].guests) > 3]
        if told:
            print("\n| roles | contents that one of the others has: foretold | seen |\n"
                  "|---|---|---|")
            print("\n".join(f"| {name} | {foretold:,.0f} | {seen:,.0f} |"
                            for name, foretold, seen in told))


if __name__ == "__main__":
    main()
