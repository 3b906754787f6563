"""Savings at rest from bits, against machines built page by page and counted one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.fleet import FleetHost, Memory
from planner.kernels.bitsets import popcount, union_sizes
from planner.policies.partition import partition_classes
from planner.population.at_rest import at_rest_of_host, at_rest_saved
from planner.population.guests import guests_of, lives_of
from planner.population.hosts import build_drawn_host
from planner.population.model import Population
from planner.population.sketches import guest_sketches
from planner.scenario.spec import DrawSpec, Ksmd, PartitionRule, PolicySpec, Scenario
from planner.timeline import Cause, Timeline
from tests.drawn_worlds import (
    FIRST,
    SECOND,
    Stay,
    population,
    scenario,
    template,
    timeline,
    two_templates,
)
from tests.oracles.bitsets import union_size


def policy(*by: str, exclude: Sequence[tuple[tuple[str, str], ...]] = (),
           partitions: Sequence[PartitionRule] = ()) -> PolicySpec:
    """A policy that partitions by these keys."""
    return PolicySpec("tested", by, tuple(exclude), Ksmd(), tuple(partitions))


POLICIES = {
    "none": policy(), "guest": policy("guest"), "domain": policy("domain"),
    "group": policy("group"), "role": policy("role"), "two": policy("role", "domain"),
    "unlabelled": policy("nothing"),
    "without a domain": policy("group", exclude=[(("domain", "blue"),)]),
    "without regions": policy(exclude=[(("content", "heap"),)]),
    "without regions of some": policy("role", exclude=[(("content", "data"), ("domain", "red"))]),
    "without a guest": policy(exclude=[(("guest", "web-2"),)]),
    "explicit": policy("guest", partitions=[
        PartitionRule("some", ((("domain", "red"),), (("guest", "web-3"),)))]),
}
sets = st.frozensets(st.integers(0, 99), max_size=30)


@given(st.integers(0, 2**64 - 1))
def test_popcount_counts_bits(word: int) -> None:
    assert popcount(np.uint64(word)) == word.bit_count()


@given(st.lists(sets, min_size=1, max_size=6),
       st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 5), st.integers(0, 4)),
                         max_size=5), max_size=4))
def test_unions_of_levels_are_those_of_plain_sets(
        rows: list[frozenset[int]], groups: list[list[tuple[int, int, int]]]) -> None:
    bits = np.zeros((len(rows), 128), bool)
    for row, elements in enumerate(rows):
        bits[row, list(elements)] = True
    words = np.packbits(bits, axis=1).view(np.uint64)
    groups = [[(min(whole, len(rows) - 1), min(part, len(rows) - 1), n)
               for whole, part, n in group] for group in groups]
    members = [member for group in groups for member in group]
    starts = np.cumsum([0, *map(len, groups)])
    whole, part, n_copies = (np.array([m[i] for m in members], np.int64) for i in range(3))
    assert union_sizes(words, starts, whole, part, n_copies).tolist() == [
        union_size([(rows[whole], None if part < 0 else rows[part], n)
                    for whole, part, n in group]) for group in groups]


def counted(host: FleetHost, rule: PolicySpec, content: Sequence[int], frame: Sequence[int]
            ) -> tuple[int, int]:
    """Frames minus contents, and zero frames beyond one a partition, page by page."""
    of_class = partition_classes(host, rule).of_class
    frames, contents, zeros = set(), set(), set()
    for site, (held, its_frame) in enumerate(zip(content, frame, strict=True)):
        partition = int(of_class[host.site_class[site]])
        if held < 0 or partition < 0 or not host.site_eligible[site]:
            continue
        if host.content_is_zero[held]:
            zeros.add((partition, its_frame))
        else:
            frames.add((partition, its_frame))
            contents.add((partition, held))
    return len(frames) - len(contents), len(zeros) - len({partition for partition, _ in zeros})


def plain(memory: Memory) -> tuple[list[int], list[int]]:
    """Contents and frames as lists."""
    return memory[0].tolist(), memory[1].tolist()


def present(stays: Timeline, host: int, time_ns: int) -> list[Stay]:
    """Who is on a host then, as if he had been there since his own time began."""
    lives = lives_of(stays)
    where = stays.stays_on(host)
    return [Stay(int(stays.stay_guest[stay]), 0, int(lives.origin_ns[stay]) / SECOND)
            for stay in range(where.start, where.stop)
            if stays.stay_start_ns[stay] <= time_ns < stays.stay_end_ns[stay]]


def as_last_passed(host: FleetHost, model: Population, spec: Scenario, stays: Timeline,
                   time_ns: int) -> tuple[list[int], list[int]]:
    """Contents and frames of host 0 with each guest as in the snapshot it passed last."""
    drawn = guests_of(model, spec, stays.requests, 0)
    clock = model.workloads[0].clock
    content, frame = [-1] * len(host.site_mm), [-1] * len(host.site_mm)
    for number, guest in enumerate(stays.stay_guest[stays.stays_on(0)].tolist()):
        passed_ns = start_ns = int(stays.stay_start_ns[number])
        for epoch in clock.epochs(int(drawn.phase_ns[guest]), time_ns - start_ns + 1):
            passed_ns = start_ns + epoch.start_ns
        (held, frames), = host.memory_at([passed_ns])
        for site, mm in enumerate(host.site_mm.tolist()):
            if host.mms[mm].guest == number:
                content[site], frame[site] = int(held[site]), int(frames[site])
    return content, frame


STAYS = (
    *(Stay(guest, 0) for guest in range(5)), Stay(5, 0, 40, 300), Stay(6, 1), Stay(7, 1, 0, 100),
    Stay(7, 0, 100, 200, Cause.MIGRATION), Stay(7, 1, 200, None, Cause.RESTART))


@pytest.mark.parametrize("name", POLICIES)
def test_savings_at_rest_are_those_of_machines_built_and_counted(name: str) -> None:
    model, spec = two_templates(), scenario()
    stays = timeline(spec, STAYS)
    times_ns = [0, 45 * SECOND, 150 * SECOND, 230 * SECOND, 590 * SECOND]
    found = at_rest_saved(model, spec, stays, POLICIES[name], times_ns, 0)
    assert found is not None
    for index in range(2):
        for column, time_ns in enumerate(times_ns):
            here = timeline(spec, [*present(stays, index, time_ns), Stay(7, 1)])
            host = build_drawn_host(model, spec, here, 0, 0)
            held = as_last_passed(host, model, spec, here, time_ns)
            assert (found.saved[index, column], found.zero[index, column]) == counted(
                host, POLICIES[name], *held)
    assert found.saved[0].max() > 0


@pytest.mark.parametrize("fill", ["none", "private", "proportional"])
@pytest.mark.parametrize("memory_pages", [5, 10, 34])
def test_savings_at_rest_of_larger_and_smaller_guests(fill: str, memory_pages: int) -> None:
    model = population([template(FIRST[:1], name="a", n_mms=2, not_eligible=[4])], [0])
    spec = scenario(draw=DrawSpec(count=4, fill=fill))
    stays = timeline(spec, [Stay(guest, guest // 4) for guest in range(6)],
                     memory_pages=memory_pages)
    stays.requests.memory_bytes[1::2] += 9 * 4096
    for rule in POLICIES.values():
        found = at_rest_saved(model, spec, stays, rule, [7], 0)
        assert found is not None
        for index in range(2):
            host = build_drawn_host(model, spec, stays, index, 0)
            from_arrays = at_rest_of_host(host, rule, [7])
            both = (found.saved[index, 0], found.zero[index, 0])
            assert both == counted(host, rule, *plain(host.memory_at([7])[0]))
            assert both == (from_arrays.saved[0, 0], from_arrays.zero[0, 0])


def test_a_policy_that_parts_regions_is_left_to_the_arrays() -> None:
    model, spec = two_templates(), scenario()
    stays = timeline(spec, STAYS)
    rule = policy("content")
    assert at_rest_saved(model, spec, stays, rule, [0], 0) is None
    host = build_drawn_host(model, spec, stays, 0, 0)
    rest = at_rest_of_host(host, rule, [0, 77 * SECOND])
    for column, held in enumerate(host.memory_at([0, 77 * SECOND])):
        assert (rest.saved[0, column], rest.zero[0, column]) == counted(host, rule, *plain(held))
    assert rest.saved.min() > 0


def test_sketches_tell_templates_and_who_may_merge() -> None:
    model, spec = two_templates(), scenario()
    requests = timeline(spec, STAYS).requests
    sketches = guest_sketches(model, spec, requests, POLICIES["domain"], 0)
    # Of zero, three commons and private contents only the commons that stay are there.
    assert sketches.bits.shape == (2, 64)
    assert [sum(int(word).bit_count() for word in row) for row in sketches.bits] == [2, 2]
    assert sum(int(word).bit_count() for word in sketches.bits[0] & sketches.bits[1]) == 2
    assert sketches.contents_per_bit == 1
    assert sketches.template.tolist() == guests_of(model, spec, requests, 0).template.tolist()
    assert same(sketches.partition.tolist(), requests.domain.tolist())
    assert set(guest_sketches(model, spec, requests, POLICIES["guest"], 0).partition) == {-1}
    without = guest_sketches(model, spec, requests, POLICIES["without a domain"], 0).partition
    assert [number == -1 for number in without] == [guest % 3 == 1 for guest in range(8)]
    assert same(guest_sketches(model, spec, requests, policy("content"), 0).partition.tolist(),
                requests.domain.tolist())


def same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two numberings group alike."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))
