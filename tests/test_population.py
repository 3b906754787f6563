"""The population model: kinds of contents, guests drawn from templates, and how right it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from planner.errors import DataError
from planner.population import Captured, Population, capture_population, fit_population, notes
from planner.population.model import Clock, ContentKind
from planner.scenario.spec import DrawSpec, GuestSpec, Scenario
from planner.timeline import Requests
from planner.trace import PageColumns, Trace, open_trace
from planner.units import format_count
from tests import leave_out
from tests.fuzzing import n_examples
from tests.oracles import population as twin
from tests.scenario_builder import SECOND, scenario_for
from tests.trace_builder import ZERO_HASH, GuestPlan, MmPlan, build_trace, pages_of

TRACES = Path(__file__).resolve().parents[1] / "traces"
KIND_NAMES = {ContentKind.ZERO: "zero", ContentKind.COMMON_IMAGE: "image",
              ContentKind.COMMON_ACROSS: "across", ContentKind.RARE_COMMON: "rare",
              ContentKind.REPEATED_PRIVATE: "repeated", ContentKind.PRIVATE: "private"}


def drawn_scenario(path: Path, roles: Mapping[str, Sequence[int]], count: int = 0) -> Scenario:
    """A workload for each role, drawn from the guests of these ids."""
    whole = scenario_for(path)
    captured = whole.workloads[0]

    def of(ids: Sequence[int]) -> tuple[GuestSpec, ...]:
        return tuple(guest for guest in captured.guests if guest.trace_guest_id in ids)

    return replace(whole, workloads=tuple(
        replace(captured, name=role, host="", guests=of(ids), draw=DrawSpec(count=count))
        for role, ids in roles.items()))


def fitted(path: Path, roles: Mapping[str, Sequence[int]], *, resample: int | None = None
           ) -> Population:
    scenario = drawn_scenario(path, roles)
    return fit_population(scenario, {str(path): open_trace(path)}, resample=resample)


def plans(*guests: Sequence[Sequence[int | None]], image: str = "a") -> list[GuestPlan]:
    """Guests of one mm, each a list of snapshots."""
    return [GuestPlan(f"g{number}", {"image": image}, [MmPlan([pages_of(s) for s in snapshots])])
            for number, snapshots in enumerate(guests)]


def kinds(population: Population) -> dict[int, str]:
    contents = population.contents
    return {value: KIND_NAMES[ContentKind(kind)] for value, kind in
            zip(contents.hash.tolist(), contents.kind.tolist(), strict=True)}


def random_trace(path: Path, rng: np.random.Generator) -> Path:
    """Five guests of two images with zero pages, forks, gone pages and churn."""
    guests = []
    for number in range(5):
        mms = []
        shared = rng.integers(0, 2, 8)
        states = [rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 100 * number + 10, 100 * number + 11], 8)]
        for _ in range(2):
            state = states[-1].copy()
            changed = rng.random(8) < 0.4
            state[changed] = rng.choice([0, 3, 8, 9, 100 * number + 12, 100 * number + 13],
                                        int(changed.sum()))
            states.append(state)
        for child in range(2):  # the second mm shares some frames with the first, as after fork
            snapshots: list[PageColumns | None] = []
            for state in states:
                mine = [int(value) if child == 0 or shared[at] else int(value) + 50
                        for at, value in enumerate(state)]
                frames = [8 * number + at if shared[at] else -1 for at in range(8)]
                gone = rng.random() < 0.3
                snapshots.append(pages_of([None if gone and at == 7 and not shared[at] else value
                                           for at, value in enumerate(mine)], frames=frames))
            mms.append(MmPlan(snapshots))
        guests.append(GuestPlan(f"g{number}", {"image": "ab"[number % 2]}, mms))
    return build_trace(path, guests)


def test_contents_are_told_apart_as_a_plain_count_of_pages_does(tmp_path: Path) -> None:
    seen = set()
    for example in range(n_examples(12)):
        path = random_trace(tmp_path / str(example), np.random.default_rng(example))
        roles = {"web": [0, 2, 4], "db": [1, 3, 4]}  # guest 4 is in both
        scenario, traces = drawn_scenario(path, roles), {str(path): open_trace(path)}
        captured = capture_population(scenario, traces)
        plain = twin.classes(scenario, traces)
        contents = captured.contents
        assert kinds(captured.population()) == {
            value: "rare" if found == "rare" else plain.kind[value]
            for value, found in kinds(captured.population()).items()}
        assert set(contents.hash.tolist()) == set(plain.kind)
        for workload, name in enumerate(roles):
            held = np.flatnonzero(contents.incidence[workload])
            assert plain.incidence[name] == dict(zip(
                contents.hash[held].tolist(), contents.incidence[workload][held].tolist(),
                strict=True))
            spans = [("one", False), ("some", False), ("all", False),
                     ("one", True), ("some", True), ("all", True)]
            assert captured.estimates[workload].share == pytest.approx(
                [plain.shares[name][span] for span in spans])
        assert set(contents.hash[contents.is_lasting].tolist()) == plain.lasting
        seen |= set(plain.kind.values())
    assert seen == {"zero", "image", "across", "repeated", "private"}


def test_a_content_seen_by_two_guests_at_different_times_is_common(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans([[5, 10], [6, 10]], [[7, 20], [5, 20]]))
    assert kinds(fitted(path, {"web": [0, 1]})) == {
        5: "image", 6: "private", 7: "private", 10: "private", 20: "private"}


def test_a_captured_guest_of_two_workloads_has_nothing_in_common_with_itself(tmp_path: Path
                                                                             ) -> None:
    path = build_trace(tmp_path / "t", plans([[5, 10, 10, 0]], [[5, 20, 21, 0]]))
    both = fitted(path, {"web": [0], "shop": [0], "db": [1]})
    assert kinds(both) == {5: "image", 10: "repeated", 20: "private", 21: "private",
                           ZERO_HASH: "zero"}


def test_templates_hold_what_the_snapshots_hold(tmp_path: Path) -> None:
    path = random_trace(tmp_path / "t", np.random.default_rng(7))
    trace = open_trace(path)
    population = fitted(path, {"web": range(5)})
    for guest, template in enumerate(population.templates):
        mms = [mm for mm in trace.mms if mm.guest_id == guest]
        for snapshot in range(3):
            content = template.content[snapshot]
            here = content >= 0
            found = {(int(mm), int(vpn)): value for mm, vpn, value in zip(
                template.site_mm[here], template.site_vpn[here],
                population.contents.hash[content[here]].tolist(), strict=True)}
            frames = set()
            expected = {}
            for number, mm in enumerate(mms):
                pages = trace.mm_pages(snapshot, mm.mm_id)
                for vpn, value, frame in zip(pages.vpn.tolist(), pages.hash.tolist(),
                                             pages.frame_id.tolist(), strict=True):
                    expected[number, vpn] = value
                    frames.add(frame if frame >= 0 else (number, vpn))
            assert found == expected
            assert len(np.unique(template.frame[snapshot][here])) == len(frames)
            assert (template.frame[snapshot][~here] == -1).all()
        assert template.site_eligible.all()
        assert template.memory_bytes == 1 << 27


def test_a_guest_that_came_late_or_left_is_always_there_when_drawn(tmp_path: Path) -> None:
    first, second = pages_of([1, 2]), pages_of([1, 3])
    path = build_trace(tmp_path / "t", [
        GuestPlan("late", {}, [MmPlan([None, first, second, second])]),
        GuestPlan("gone", {}, [MmPlan([first, second, None, None])]),
        GuestPlan("always", {}, [MmPlan([first, first, first, second])])])
    population = fitted(path, {"web": range(3)})
    held = [[sorted(population.contents.hash[row[row >= 0]].tolist()) for row in template.content]
            for template in population.templates]
    assert held == [[[1, 2], [1, 2], [1, 3], [1, 3]], [[1, 2], [1, 3], [1, 3], [1, 3]],
                    [[1, 2], [1, 2], [1, 2], [1, 3]]]


def test_an_ineligible_workload_is_refused_by_name_unless_it_says_so(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", [GuestPlan("g", {}, [
        MmPlan([pages_of([1, 2])], region_flags=0)])])
    with pytest.raises(DataError, match=r"workload 'web'.*no page"):
        fitted(path, {"web": [0]})
    scenario = drawn_scenario(path, {"web": [0]})
    off = replace(scenario, workloads=(replace(scenario.workloads[0], mergeable="none"),))
    template = fit_population(off, {str(path): open_trace(path)}).templates[0]
    assert template.n_sites == 2
    assert not template.site_eligible.any()


def test_nobody_left_to_draw_from_is_an_error(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans([[1]], [[2]]))
    scenario, traces = drawn_scenario(path, {"web": [0, 1]}), {str(path): open_trace(path)}
    left = fit_population(scenario, traces, leave={"web": ["g0"]})
    assert [template.guest.name for template in left.templates] == ["g1"]
    with pytest.raises(DataError, match="'web' has no captured guest"):
        fit_population(scenario, traces, leave={"web": ["g0", "g1"]})


def test_a_guest_passes_through_the_capture_again_and_again() -> None:
    clock = Clock.of([0, 60, 120])
    assert clock.period_ns == 180
    number, snapshot = clock.at(np.array([0, 59, 60, 170, 180, 400]), 0)
    assert number.tolist() == [0, 0, 0, 0, 1, 2]
    assert snapshot.tolist() == [0, 0, 1, 2, 0, 0]
    told = [(e.number, e.before, e.after, e.after_pass, e.start_ns, e.end_ns)
            for e in clock.epochs(100, 250)]
    assert told == [(0, 1, 2, 0, 0, 20), (0, 2, 0, 1, 20, 80), (1, 0, 1, 1, 80, 140),
                    (1, 1, 2, 1, 140, 200), (1, 2, 0, 2, 200, 260)]
    for epoch in clock.epochs(100, 250):
        for time_ns in (epoch.start_ns, epoch.end_ns - 1):
            at = clock.at(100, time_ns)
            assert (int(at[0]), int(at[1])) == (epoch.number, epoch.before)


def test_guests_of_one_snapshot_never_change() -> None:
    clock = Clock.of([0])
    assert clock.period_ns == 0
    assert clock.epochs(0, 10**15) == []
    assert [int(part) for part in clock.at(0, 10**15)] == [0, 0]


def test_a_drawn_guest_depends_on_its_name_alone(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans([[1], [2]], [[3], [4]], [[5], [6]]))
    population = fitted(path, {"web": [0, 1, 2]})
    names = [f"web-{number}" for number in range(600)]
    template, phase_ns = population.draw(1, 0, 0, names)
    some = population.draw(1, 0, 0, names[100:200])
    assert (some[0] == template[100:200]).all()
    assert (some[1] == phase_ns[100:200]).all()
    assert np.bincount(template, minlength=3) == pytest.approx(200, abs=50)
    period_ns = population.workloads[0].clock.period_ns
    assert period_ns == 120 * SECOND
    assert np.histogram(phase_ns, 4, (0, period_ns))[0] == pytest.approx(150, abs=45)
    other = population.draw(1, 1, 0, names)
    assert (other[0] != template).any()
    assert (other[1] != phase_ns).any()


def test_resamples_weigh_the_captured_guests_anew(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans(*([[number * 10 + 1, 7]] for number in range(4))))
    scenario, traces = drawn_scenario(path, {"web": range(4)}), {str(path): open_trace(path)}
    captured = capture_population(scenario, traces)
    assert captured.population().workloads[0].weights == pytest.approx([0.25] * 4)
    weights = np.array([captured.population(b).workloads[0].weights for b in range(800)])
    assert weights.sum(axis=1) == pytest.approx(1)
    assert set(np.unique(np.rint(weights * 3))) == {0, 1, 2, 3}
    # The variance of a mean of four: each weight's is p (1 - p) / 3.
    assert weights.var(axis=0) == pytest.approx(0.25 * 0.75 / 3, rel=0.15)
    again = fit_population(scenario, traces, resample=7).workloads[0].weights
    assert (again == weights[7]).all()
    only = fitted(path, {"web": [0, 1], "rest": range(4)}, resample=7)
    assert (only.workloads[0].weights == captured_weights(path, {"web": [0, 1]}, 7)).all()
    drawn = captured.population(7).draw(1, 0, 0, [f"g{n}" for n in range(50)])[0]
    assert set(drawn.tolist()) <= set(np.flatnonzero(weights[7]).tolist())


def captured_weights(path: Path, roles: Mapping[str, Sequence[int]], resample: int
                     ) -> npt.NDArray[np.float64]:
    return fitted(path, roles, resample=resample).workloads[0].weights


def test_the_rare_share_is_twice_over_once_and_kept_by_hash(tmp_path: Path) -> None:
    # 20 contents of each pair of guests, 100 of each guest alone, 50 of all three.
    common = list(range(1000, 1050))
    pairs = {pair: [10_000 * sum(pair) + n for n in range(20)]
             for pair in itertools.combinations((1, 2, 3), 2)}
    guests = [[common + [c for pair, held in pairs.items() if guest in pair for c in held]
               + [100_000 * guest + n for n in range(100)]] for guest in (1, 2, 3)]
    path = build_trace(tmp_path / "t", plans(*guests))
    population = fitted(path, {"web": range(3)})
    assert population.workloads[0].rare_share == pytest.approx(60 / 300)
    found = list(kinds(population).values())
    assert (found.count("image"), found.count("rare") + found.count("private")) == (110, 300)
    assert found.count("rare") == pytest.approx(60, abs=25)
    rare = {value for value, kind in kinds(population).items() if kind == "rare"}
    by_share = sorted((fitted(path, {"web": range(3)}, resample=b) for b in range(6)),
                      key=lambda one: one.workloads[0].rare_share)
    sets = [{value for value, kind in kinds(one).items() if kind == "rare"} for one in by_share]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(sets))
    assert any(one != rare for one in sets)


def _partly_shared(n_guests: int) -> list[list[int]]:
    """Guests with 40 contents of all, up to 30 of some of them, and 40 of their own."""
    rng = np.random.default_rng(3)
    return [[*range(1000, 1040), *(2000 + np.flatnonzero(rng.random(30) < 0.5)).tolist(),
             *range(10_000 * guest, 10_000 * guest + 40)] for guest in range(1, n_guests + 1)]


def test_two_guests_alone_are_wide_of_error(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans(*([guest] for guest in _partly_shared(2))))
    alone = fitted(path, {"web": [0, 1]}).workloads[0]
    assert alone.rare_share == 0
    assert alone.rare_share_error > 0.05
    draws = [fitted(path, {"web": [0, 1]}, resample=b).workloads[0].rare_share for b in range(8)]
    assert max(draws) - min(draws) > 0.2


@pytest.mark.parametrize("n_few", [1, 2])
def test_few_guests_borrow_what_as_few_of_another_workload_would_show(tmp_path: Path,
                                                                      n_few: int) -> None:
    guests = _partly_shared(4)
    few = [[5_000_000 + 1000 * guest + n for n in range(30)] for guest in range(n_few)]
    if n_few == 2:  # no more than what both hold is possible
        few = [[*range(6_000_000, 6_000_100), *guest] for guest in few]
    path = build_trace(tmp_path / "t", plans(*([guest] for guest in guests + few)))
    population = fitted(path, {"web": range(4), "few": range(4, 4 + n_few)})
    own_share = population.workloads[0].rare_share
    once = common = 0.0
    for subset in itertools.combinations(range(4), n_few):
        for content in {content for guest in guests for content in guest}:
            holders = {at for at, guest in enumerate(guests) if content in guest}
            if len(holders & set(subset)) == 1:
                once += 1
                common += 1 if len(holders) > 1 else own_share
    assert population.workloads[1].rare_share == pytest.approx(common / once)
    assert 0.1 < common / once < 0.9


def test_notes_tell_how_far_a_fleet_goes_beyond_its_capture(tmp_path: Path) -> None:
    path = build_trace(tmp_path / "t", plans([[1], [2]], [[3], [4]], [[5], [6]]))
    scenario = replace(drawn_scenario(path, {"web": [0], "db": [1, 2], "idle": [0, 1, 2]}),
                       horizon_ns=3600 * SECOND)
    population = fit_population(scenario, {str(path): open_trace(path)})
    n_guests = 4000
    workload = np.array([0] * 3900 + [1] * 100, np.int32)
    requests = Requests(
        tuple(f"g{n}" for n in range(n_guests)), workload, np.zeros(n_guests, np.int32), ("d",),
        np.where(workload == 0, 1 << 30, 1 << 27), np.zeros(n_guests, np.int64),
        np.full(n_guests, 3600 * SECOND), np.zeros(n_guests, bool), np.full(n_guests, -1, np.int32))
    found = notes(population, scenario, requests)
    assert found[0] == (f"web: x{format_count(3900)} from 1 captured guest of 128 MiB over "
                        f"60.0 s: they stand for {format_count(3900)}")
    assert "WARNING: from one captured guest" in found[1]
    assert found[2].startswith("web: x60 in time: guests live up to 60.0 min")
    assert found[3].startswith("web: x8.0 in size: guests of up to 1.00 GiB")
    assert found[4].startswith("db: x50 from 2 captured guests of 128 MiB")
    assert "WARNING: two captured guests" in found[5]
    assert not any(line.startswith("idle") for line in found)


def _generated(rng: np.random.Generator, prevalence: npt.NDArray[np.float64],
               fresh: itertools.count[int]) -> list[int]:
    """A guest: an image, contents that only some guests hold, its own, one page repeated."""
    own = 100_000_000 + next(fresh) * 100_000
    return [*range(1_000_000, 1_000_100),
            *(2_000_000 + np.flatnonzero(rng.random(len(prevalence)) < prevalence)).tolist(),
            *range(own, own + int(150 * rng.lognormal(0, 0.25))),
            *[own + 50_000] * int(rng.integers(5, 25))]


def _saved(guests: Sequence[Sequence[int]]) -> int:
    return sum(map(len, guests)) - len({content for guest in guests for content in guest})


@pytest.mark.parametrize(("n_captured", "n_drawn"), [(3, 5), (4, 40)])
def test_a_known_population_is_predicted_and_covered(tmp_path: Path, n_captured: int,
                                                     n_drawn: int) -> None:
    errors, n_covered, n_worlds = [], 0, n_examples(30)
    for world in range(n_worlds):
        rng, fresh = np.random.default_rng(world), itertools.count()
        prevalence = rng.random(60)
        path = build_trace(tmp_path / str(world), plans(*(
            [_generated(rng, prevalence, fresh)] for _ in range(n_captured))))
        truth = float(np.mean([_saved([_generated(rng, prevalence, fresh)
                                       for _ in range(n_drawn)]) for _ in range(5)]))
        captured = capture_population(
            drawn_scenario(path, {"web": range(n_captured)}, count=n_drawn),
            {str(path): open_trace(path)})
        predicted, low, high = _predicted(captured, n_drawn)
        errors.append(predicted / truth - 1)
        n_covered += low <= truth <= high
    print(f"{n_drawn} guests from {n_captured}: mean error {np.mean(errors):+.2%}, "
          f"standard deviation {np.std(errors):.2%}, {n_covered} of {n_worlds} intervals hold")
    assert np.mean(errors) == pytest.approx(0, abs=0.015)
    # Intervals are of 90 %: that fewer than 22 of 30 hold the truth has a chance of 1 in 500.
    assert n_covered >= 22 / 30 * n_worlds


def _predicted(captured: Captured, n_drawn: int) -> tuple[float, float, float]:
    rest, best = leave_out.AtRest(captured), captured.population()
    populations = [best] * 10 + [captured.population(number) for number in range(40)]
    saved = [rest.saved(leave_out.spaces_of(leave_out.draw(one, [n_drawn], number), "one"),
                        rest.split(one.contents.is_kept))
             for number, one in enumerate(populations)]
    estimate = float(np.mean(saved[:10]))
    return estimate, *leave_out.interval(estimate, saved[10:], best.n_free)


@pytest.fixture(scope="module")
def qemu() -> tuple[Scenario, dict[str, Trace]]:
    path = TRACES / "qemu-guests"
    return (leave_out.role_scenario(path, "role", 3), {str(path): open_trace(path)})


def test_three_of_four_captured_guests_foretell_all_four(
        qemu: tuple[Scenario, dict[str, Trace]]) -> None:
    scenario, traces = qemu
    nginx = replace(scenario, workloads=scenario.workloads[:1])
    found = list(leave_out.cases(nginx, traces, n_draws=60, n_resamples=30))
    assert len(found) == 4 * len(leave_out.SPACES)
    for case in found:
        if case.spaces == "one":
            assert abs(case.error) < 0.03
        assert case.is_covered
