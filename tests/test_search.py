"""The search for partitions: exact where all are tried, close to it where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import UsageError
from planner.kernels.sharing import join_gain_row, join_gains, move_gains
from planner.ksm.cost import BUILTIN_UNMEASURED
from planner.runner import TraceStore, build_hosts, load_scenario
from planner.search.cost import mean_model, pass_cost
from planner.search.partitions import Constraints, frontier
from planner.search.sharing import Sharing, fleet_sharing, saved_frames
from tests.oracles import sharing as oracle


def sharing_of(contents: list[list[int]], domains: list[str] | None = None,
               zeros: list[int] | None = None, forked: list[int] | None = None) -> Sharing:
    """The sharing of members with these pages (and zero pages, and pages that share a frame with
    one of them), each a domain of its own unless told."""
    members = [f"m{index}" for index in range(len(contents))]
    owners = domains or members
    names = sorted(set(owners))
    holders: dict[tuple[bool, ...], int] = {}
    repeats: dict[tuple[tuple[bool, ...], int], int] = {}
    for content in {c for pages in contents for c in pages}:
        held = tuple(content in pages for pages in contents)
        if sum(held) > 1:
            holders[held] = holders.get(held, 0) + 1
            for member, pages in enumerate(contents):
                if pages.count(content) > 1:
                    repeats[held, member] = repeats.get((held, member), 0) + 1
    order = list(holders)
    return Sharing(
        tuple(members), tuple(names), np.array([[n == o for n in names] for o in owners]),
        np.array([[len(pages) for pages in contents]]),
        np.array([[len(set(pages)) for pages in contents]]),
        np.array([[sum(pages.count(c) > 1 for c in set(pages)) for pages in contents]]),
        np.array([zeros or [0] * len(contents)]), np.array([forked or [0] * len(contents)]),
        np.array(order, np.bool_).reshape(-1, len(contents)),
        np.array([list(holders.values())], np.int64).reshape(1, -1),
        np.array([[order.index(held), member, count] for (held, member), count
                  in repeats.items()], np.int64).reshape(-1, 3))


CONTENTS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=14), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.data())
def test_savings_of_a_grouping_equal_a_count_of_its_pages(
    contents: list[list[int]], data: st.DataObject
) -> None:
    sharing = sharing_of(contents)
    groups = data.draw(st.sampled_from(oracle.set_partitions(list(range(len(contents))))))
    assert saved_frames(sharing, groups).tolist() == [oracle.saved(contents, groups)]


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.data())
def test_the_frontier_of_few_members_is_that_of_every_partition(
    contents: list[list[int]], data: st.DataObject
) -> None:
    domains = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(contents),
                                 max_size=len(contents)))
    best: dict[int, int] = {}
    for groups in oracle.set_partitions(list(range(len(contents)))):
        exposed = oracle.exposed(domains, groups)
        best[exposed] = max(best.get(exposed, 0), oracle.saved(contents, groups))
    expected, most = [], -1
    for exposed in sorted(best):
        if best[exposed] > most:
            most = best[exposed]
            expected.append((exposed, most))
    found = frontier(sharing_of(contents, domains), Constraints())
    assert [(item.n_exposed_pairs, item.saved_frames) for item in found] == expected
    for item in found:
        assert oracle.saved(contents, item.groups) == item.saved_frames
        assert oracle.exposed(domains, item.groups) == item.n_exposed_pairs


def random_contents(seed: int, n_members: int) -> list[list[int]]:
    """Members of three images with common, half-common and private contents."""
    random = np.random.default_rng(seed)
    contents = []
    for _ in range(n_members):
        image = int(random.integers(3))
        common = 1000 * image + random.integers(0, 300, 200)
        contents.append([*common.tolist(), *random.integers(5000, 5080, 30).tolist(),
                         *random.integers(10**6, 10**9, 100).tolist()])
    return contents


@pytest.mark.parametrize("seed", range(8))
def test_the_greedy_search_comes_within_two_per_cent_of_the_best(seed: int) -> None:
    contents = random_contents(seed, 7)
    sharing = sharing_of(contents)
    best = frontier(sharing, Constraints(), is_exhaustive=True)
    found = frontier(sharing, Constraints(), is_exhaustive=False)
    alone, everything = best[0].saved_frames, best[-1].saved_frames
    assert found[-1] == best[-1]
    for item in best:
        reached = max(other.saved_frames for other in found
                      if other.n_exposed_pairs <= item.n_exposed_pairs)
        # Of what joining can gain at all.
        assert item.saved_frames - reached <= 0.02 * (everything - alone)


@settings(max_examples=40, deadline=None)
@given(CONTENTS, st.data())
def test_gains_of_joins_and_moves_are_differences_of_savings(
    contents: list[list[int]], data: st.DataObject
) -> None:
    n = len(contents)
    label = np.array(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)), np.int64)
    sharing = sharing_of(contents)
    holders = sharing.holders.astype(np.uint8)
    count = np.zeros((len(holders), n + 1), np.int16)
    for member, group in enumerate(label):
        count[:, group] += holders[:, member]
    groups = [np.flatnonzero(label == group).tolist() for group in range(n + 1)]
    gains = join_gains(count, sharing.weight[0])
    for one in range(n + 1):
        assert join_gain_row(count, sharing.weight[0], one).tolist() == gains[one].tolist()
        for other in range(n + 1):
            if one != other:
                # Contents of one member only are in no set, and in no two groups.
                assert gains[one, other] == oracle.join_gain(contents, groups[one], groups[other])
    moves = move_gains(holders, count, sharing.weight[0], label)
    now = oracle.saved(contents, groups)
    for member in range(n):
        for group in range(n + 1):
            moved = [[m for m in g if m != member] for g in groups]
            moved[group] = [*moved[group], member]
            assert moves[member, group] == oracle.saved(contents, moved) - now


@pytest.mark.parametrize("is_exhaustive", [True, False])
def test_members_alone_and_apart_stay_so_and_limits_hold(is_exhaustive: bool) -> None:
    contents = random_contents(3, 7)
    constraints = Constraints(alone=frozenset({0}), apart=frozenset({(1, 2), (3, 4)}),
                              most_exposed_pairs=6)
    found = frontier(sharing_of(contents), constraints, is_exhaustive=is_exhaustive)
    assert len(found) > 2
    for item in found:
        assert item.n_exposed_pairs <= 6
        for group in item.groups:
            assert group == (0,) or 0 not in group
            assert not {1, 2} <= set(group)
            assert not {3, 4} <= set(group)


def test_no_more_is_merged_than_could_be_unmerged() -> None:
    contents = random_contents(1, 6)
    sharing = sharing_of(contents)
    free = frontier(sharing, Constraints())
    limit = int(free[-1].saved_frames) - 1
    bound = frontier(sharing, Constraints(most_saved_frames=limit))
    assert bound[-1].saved_frames <= limit
    with pytest.raises(UsageError, match="even with every member alone"):
        frontier(sharing, Constraints(most_saved_frames=int(free[0].saved_frames) - 1))


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.data())
def test_the_cost_of_a_pass_is_that_of_its_visits(
    contents: list[list[int]], data: st.DataObject
) -> None:
    groups = data.draw(st.sampled_from(oracle.set_partitions(list(range(len(contents))))))
    zeros, forked = (data.draw(st.lists(st.integers(0, 3), min_size=len(contents),
                                        max_size=len(contents))) for _ in range(2))
    model = replace(BUILTIN_UNMEASURED, unstable_far_ns=17, stable_far_ns=5)
    found = pass_cost(sharing_of(contents, zeros=zeros, forked=forked), groups, model)
    expected = oracle.pass_ns(contents, zeros, forked, groups, model)
    assert (found.merge_ns, found.again_ns) == expected
    assert found.n_pages == sum(map(len, contents)) + sum(zeros) + sum(forked)


@pytest.mark.parametrize("is_exhaustive", [True, False])
def test_no_pass_takes_longer_than_it_may(is_exhaustive: bool) -> None:
    sharing = sharing_of(random_contents(5, 7))
    free = frontier(sharing, Constraints(), is_exhaustive=is_exhaustive)
    costs = [pass_cost(sharing, item.groups, BUILTIN_UNMEASURED).merge_ns for item in free]
    limit = int(np.median(costs))
    bound = frontier(sharing, Constraints(most_merge_ns=max(limit, costs[0])),
                     is_exhaustive=is_exhaustive)
    assert {item.groups for item in bound} != {item.groups for item in free}
    assert all(pass_cost(sharing, item.groups, BUILTIN_UNMEASURED).merge_ns <= max(
        limit, costs[0]) for item in bound)
    with pytest.raises(UsageError, match=r"even with every member alone, merging takes .* at most"):
        frontier(sharing, Constraints(most_merge_ns=costs[0] - 1))


def test_hosts_of_several_calibrations_count_by_their_mean() -> None:
    twice = replace(BUILTIN_UNMEASURED, name="other", merge_ns=3 * BUILTIN_UNMEASURED.merge_ns)
    mean = mean_model([BUILTIN_UNMEASURED, twice])
    assert mean.merge_ns == 2 * BUILTIN_UNMEASURED.merge_ns
    assert mean.unique_ns == BUILTIN_UNMEASURED.unique_ns
    assert mean_model([twice, twice]) is twice


def test_sharing_of_shipped_guests_counts_pages_and_contents_exactly() -> None:
    store = TraceStore()
    scenario = load_scenario("scenarios/containers.yaml", store=store)
    (host,) = build_hosts(scenario, store)
    sharing = fleet_sharing([host], "domain", [0])
    contents: dict[str, list[int]] = {}
    zeros: dict[str, list[int]] = {}
    forked: dict[str, int] = {}
    seen = set()
    for site in np.flatnonzero((host.site_eligible != 0) & (host.site_content >= 0)):
        content = int(host.site_content[site])
        domain = host.guests[host.classes[host.site_class[site]].guest].domain
        frame = (domain, int(host.site_frame[site]))
        if frame in seen:
            forked[domain] = forked.get(domain, 0) + 1
        else:
            seen.add(frame)
            kept = zeros if host.content_is_zero[content] else contents
            kept.setdefault(domain, []).append(content)
    pages = [contents[name] for name in sharing.members]
    n_zeros = [len(zeros.get(name, ())) for name in sharing.members]
    n_forked = [forked.get(name, 0) for name in sharing.members]
    assert sum(n_forked) > 0
    for groups in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2, 3]]):
        assert saved_frames(sharing, groups).tolist() == [oracle.saved(pages, groups)]
        found = pass_cost(sharing, groups, BUILTIN_UNMEASURED)
        assert (found.merge_ns, found.again_ns) == oracle.pass_ns(
            pages, n_zeros, n_forked, groups, BUILTIN_UNMEASURED)


def test_hosts_hold_their_contents_apart() -> None:
    store = TraceStore()
    scenario = load_scenario("scenarios/containers.yaml", store=store)
    (host,) = build_hosts(scenario, store)
    renamed = tuple(replace(guest, domain=f"{guest.domain}-2") for guest in host.guests)
    other = replace(host, guests=renamed, classes=tuple(
        replace(item, labels={**item.labels, "domain": renamed[item.guest].domain})
        for item in host.classes))
    one = fleet_sharing([host], "domain", [0, 10**10])
    same = fleet_sharing(iter([host, host]), "domain", [0, 10**10])
    assert same.members == one.members
    both = fleet_sharing([host, other], "domain", [0, 10**10])
    assert len(both.members) == 2 * len(one.members)
    everything = [range(len(one.members))]
    alone = [[member] for member in everything[0]]
    for groups, twice in ((alone, [[member] for member in range(len(both.members))]),
                          (everything, [range(len(both.members))])):
        saved, cost = saved_frames(one, groups), pass_cost(one, groups, BUILTIN_UNMEASURED)
        for sharing, parts in ((same, groups), (both, twice)):
            # What is equal on two hosts does not merge: twice the saving, and no more.
            assert saved_frames(sharing, parts).tolist() == (2 * saved).tolist()
            assert pass_cost(sharing, parts, BUILTIN_UNMEASURED).merge_ns == pytest.approx(
                2 * cost.merge_ns, rel=0.06)
    assert pass_cost(same, alone, BUILTIN_UNMEASURED).merge_ns == 2 * pass_cost(
        one, alone, BUILTIN_UNMEASURED).merge_ns
