"""Drawn guests as sites and events: what they hold and when, where they are, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.engine import simulate_host
from planner.fleet import FleetHost
from planner.ksm.cost import BUILTIN_UNMEASURED
from planner.ksm.records import UNSEEN
from planner.metrics import HOSTS, Recorder
from planner.population.at_rest import at_rest_of_host, at_rest_saved
from planner.population.guests import guests_of, in_part
from planner.population.hosts import HostBuilder, build_drawn_host
from planner.population.model import Clock, ContentKind, Population
from planner.population.walk import epochs_of
from planner.scenario.spec import DrawSpec, Ksmd, PolicySpec, Scenario
from planner.timeline import Cause, Pressure, Timeline
from tests.drawn_worlds import (
    ABSENT,
    FIRST,
    SECOND,
    ZERO,
    Stay,
    population,
    scenario,
    template,
    timeline,
    two_templates,
)
from tests.oracles.drawn_hosts import Guest, Identity

TOGETHER = PolicySpec("ksmd", (), (), Ksmd(pages_to_scan=1000))


def guest_sites(host: FleetHost, guest: int) -> list[int]:
    """The sites of a guest in scan order."""
    of_mm = [mm.guest for mm in host.mms]
    return [site for site, mm in enumerate(host.site_mm) if of_mm[mm] == guest]


def same_pattern(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether equal entries of one are where equal entries of the other are."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def histories(host: FleetHost, guest: int) -> list[list[tuple[int, int, int]]]:
    """Each site's (time, content group, whether it is there), changes only."""
    sites = guest_sites(host, guest)
    groups = np.append(host.content_group, 255)
    found = {site: [(0, int(groups[host.site_content[site]]), int(host.site_content[site] >= 0))]
             for site in sites}
    for time_ns, site, content in zip(host.event_time_ns.tolist(), host.event_site.tolist(),
                                      host.event_content.tolist(), strict=True):
        if site in found:
            found[site].append((time_ns, int(groups[content]), int(content >= 0)))
    return list(found.values())


def test_guests_hold_what_their_templates_do_at_the_end_of_every_epoch() -> None:
    model, spec = two_templates(), scenario()
    stays = timeline(spec, [Stay(guest, 0) for guest in range(6)])
    host = build_drawn_host(model, spec, stays, 0, 0)
    drawn = guests_of(model, spec, stays.requests, 0)
    assert set(drawn.template.tolist()) == {0, 1}
    clock = model.workloads[0].clock
    seen: dict[int, Identity] = {}
    for index, guest in enumerate(host.guests):
        like = model.templates[int(drawn.template[index])]
        passes, snapshots = clock.at(int(drawn.phase_ns[index]), 0)
        twin = Guest(model.contents, like, guest.name, 0, int(passes), int(snapshots))
        sites = guest_sites(host, index)
        for epoch in [None, *clock.epochs(int(drawn.phase_ns[index]), spec.horizon_ns)]:
            if epoch is not None and epoch.end_ns > spec.horizon_ns:
                break
            written = [] if epoch is None else twin.pass_to(epoch.before, epoch.after,
                                                            epoch.after_pass)
            (content, frame), = host.memory_at([0 if epoch is None else epoch.end_ns])
            assert same_pattern(content[sites].tolist(), twin.content)
            assert same_pattern(frame[sites].tolist(), twin.frame)
            for number, held in zip(content[sites].tolist(), twin.content, strict=True):
                # One number is one content on the whole host, whoever holds it and when.
                assert seen.setdefault(number, held) == held
                if number >= 0:
                    assert bool(host.content_is_zero[number]) == (held == ("zero",))
            if epoch is not None:
                inside = (host.event_time_ns >= epoch.start_ns) & (
                    host.event_time_ns < epoch.end_ns) & np.isin(host.event_site, sites)
                assert sorted(host.event_site[inside].tolist()) == [sites[at] for at in written]
    identities = [held for held in seen.values() if held is not None]
    assert len(set(identities)) == len(identities)
    # Every pass had private contents of its own.
    assert len({each[4] for each in identities if each[0] == "own" and len(each) == 5}) > 4


def test_epochs_as_arrays_are_those_of_the_clock() -> None:
    clock = Clock.of([0, 20, 60])
    for phase_ns in (0, 19, 20, 60, 89):
        for end_ns in (0, 1, 29, 30, 31, 500):
            listed = clock.epochs(phase_ns, end_ns)
            arrays = epochs_of(clock, phase_ns, end_ns)
            assert list(zip(arrays.before, arrays.after, arrays.after_pass, arrays.start_ns,
                            arrays.end_ns, strict=True)) == [
                (each.before, each.after, each.after_pass, each.start_ns, each.end_ns)
                for each in listed]
    assert len(epochs_of(Clock.of([0]), 0, 1000).before) == 0


def test_writes_of_a_fork_shared_frame_keep_equal_contents() -> None:
    model, spec = two_templates(), scenario()
    host = build_drawn_host(model, spec, timeline(spec, [Stay(g, 0) for g in range(6)]), 0, 0)
    of_frame: dict[int, set[int]] = {}
    for frame, content in [*zip(host.site_frame.tolist(), host.site_content.tolist(), strict=True),
                           *zip(host.event_frame.tolist(), host.event_content.tolist(),
                                strict=True)]:
        if content >= 0:
            of_frame.setdefault(frame, set()).add(content)
    assert all(len(contents) == 1 for contents in of_frame.values())
    assert max(of_frame) < host.n_frames
    shared = Counter(host.site_frame[host.site_content >= 0].tolist())
    assert max(shared.values()) == 2


def test_the_same_guests_and_writes_are_drawn_again_and_others_in_another_replicate() -> None:
    model, spec = two_templates(), scenario()
    stays = timeline(spec, [Stay(guest, 0) for guest in range(4)])
    one, again, other = (build_drawn_host(model, spec, stays, 0, number) for number in (0, 0, 1))
    assert (one.event_time_ns == again.event_time_ns).all()
    assert (one.event_content == again.event_content).all()
    assert one.event_time_ns.tolist() != other.event_time_ns.tolist()
    assert one.spec.name == "host-0001"
    assert one.spec.names == ("host-0001",)


def test_a_guest_that_migrates_is_found_on_the_new_host_as_it_would_have_gone_on() -> None:
    model, spec = two_templates(), scenario()
    others = [Stay(1, 0), Stay(2, 1)]
    stayed = timeline(spec, [Stay(0, 0), *others])
    moved = timeline(spec, [Stay(0, 0, 0, 200), Stay(0, 1, 200, None, Cause.MIGRATION), *others])
    whole = histories(build_drawn_host(model, spec, stayed, 0, 0), 0)
    before = histories(build_drawn_host(model, spec, moved, 0, 0), 0)
    new_host = build_drawn_host(model, spec, moved, 1, 0)
    assert [guest.name for guest in new_host.guests] == ["web-3", "web-1"]
    after = histories(new_host, 1)
    moment = 200 * SECOND
    for full, old, new in zip(whole, before, after, strict=True):
        past = [each for each in full if each[0] < moment]
        held = past[-1][1:]
        assert old == [*past, (moment, 255, 0)]
        begun = [(moment, *held)] if held[1] else []
        assert new == [(0, 255, 0), *begun, *(each for each in full if each[0] >= moment)]
    assert new_host.guest_start_ns.tolist() == [0, moment]
    lives_on = np.iinfo(np.int64).max
    assert new_host.guest_end_ns.tolist() == [lives_on] * 2
    assert new_host.guest_cause.tolist() == [Cause.BOOT, Cause.MIGRATION]


def test_a_guest_that_restarts_has_fresh_private_contents_and_its_common_ones() -> None:
    kinds = [ContentKind.ZERO, *[ContentKind.COMMON_IMAGE] * 40, *[ContentKind.PRIVATE] * 40]
    model = population([template([range(81)])], [0], kinds)
    spec = scenario()
    stays = timeline(spec, [Stay(0, 0, 0, 100), Stay(0, 1, 100, None, Cause.RESTART)],
                     memory_pages=81)
    first = histories(build_drawn_host(model, spec, stays, 0, 0), 0)
    second = histories(build_drawn_host(model, spec, stays, 1, 0), 0)
    groups = [(one[0][1], other[-1][1]) for one, other in zip(first, second, strict=True)]
    assert all(one == other for one, other in groups[:41])
    assert sum(one != other for one, other in groups[41:]) > 20
    assert [one[-1] for one in first] == [(100 * SECOND, 255, 0)] * 81
    assert all(one[0] == (0, 255, 0) for one in second)
    moves = timeline(spec, [Stay(0, 0, 0, 100), Stay(0, 1, 100, None, Cause.MIGRATION)],
                     memory_pages=81)
    moved = histories(build_drawn_host(model, spec, moves, 1, 0), 0)
    assert [each[-1][1] for each in moved] == [each[0][1] for each in first]


def test_guests_come_and_go_with_all_their_pages() -> None:
    model, spec = two_templates(), scenario()
    stays = timeline(spec, [Stay(0, 0, 50, 150), Stay(1, 0, 0, 60)])
    host = build_drawn_host(model, spec, stays, 0, 0)
    assert [guest.name for guest in host.guests] == ["web-2", "web-1"]
    early, late = guest_sites(host, 0), guest_sites(host, 1)
    moments = [0, 49, 50, 59, 60, 149, 150, 500]
    found = host.memory_at([moment * SECOND for moment in moments])
    there = [(bool((content[early] >= 0).any()), bool((content[late] >= 0).any()))
             for content, _ in found]
    assert there == [(True, False)] * 2 + [(True, True)] * 2 + [(False, True)] * 2 + [
        (False, False)] * 2
    assert (np.diff(host.event_time_ns) >= 0).all()
    assert int(host.event_time_ns.max()) <= 150 * SECOND


def test_labels_groups_classes_and_pids_are_the_drawn_guests_own() -> None:
    model = two_templates()
    spec = scenario(draw=DrawSpec(count=3, image="debian"))
    host = build_drawn_host(model, spec, timeline(spec, [Stay(g, 0) for g in range(3)]), 0, 0)
    assert [(each.domain, each.group) for each in host.guests] == [
        ("red", "both"), ("blue", "both"), ("green", "green")]
    assert host.domains == ("blue", "green", "red")
    assert len({mm.pid for mm in host.mms}) == len(host.mms)
    for site_class in host.classes:
        guest = host.guests[site_class.guest]
        assert site_class.labels["domain"] == guest.domain == guest.labels["domain"]
        assert site_class.labels["guest"] == guest.name
        assert site_class.labels["image"] == "debian"
        assert site_class.labels["content"] in ("data", "heap")
    order = np.stack([host.site_mm.astype(np.int64), host.site_vpn])
    assert np.lexsort(order[::-1]).tolist() == list(range(len(host.site_mm)))
    for index, mm in enumerate(host.mms):
        vpn = host.site_vpn[host.site_mm == index]
        assert mm.start_vpn <= vpn.min() <= vpn.max() < mm.end_vpn
        assert [host.classes[c].guest for c in host.site_class[host.site_mm == index]] \
            == [mm.guest] * len(vpn)


def test_a_host_knows_when_its_own_memory_is_needed_otherwise() -> None:
    spec = scenario()
    needs = (Pressure(1, 5, 9, 4096), Pressure(0, 7, 8, 8192))
    stays = replace(timeline(spec, [Stay(0, 0)]), pressure=needs)
    hosts = [build_drawn_host(two_templates(), spec, stays, index, 0) for index in range(2)]
    assert [host.pressure for host in hosts] == [needs[1:], needs[:1]]


def test_an_empty_host_has_no_guests_and_no_sites() -> None:
    spec = scenario()
    host = build_drawn_host(two_templates(), spec, timeline(spec, [Stay(0, 0)]), 1, 0)
    assert (host.guests, host.mms, len(host.site_mm), len(host.event_site)) == ((), (), 0, 0)


@pytest.mark.parametrize(("fill", "n_pages"), [("none", 10), ("private", 35),
                                               ("proportional", 35)])
def test_memory_beyond_the_captured_is_filled_as_asked(fill: str, n_pages: int) -> None:
    model = population([template(FIRST[:1], n_mms=2)], [0])
    spec = scenario(draw=DrawSpec(count=2, fill=fill))
    stays = timeline(spec, [Stay(0, 0), Stay(1, 0)], memory_pages=35)
    host = build_drawn_host(model, spec, stays, 0, 0)
    sizes = [len(guest_sites(host, guest)) for guest in range(2)]
    n_part = int(in_part(model.templates[0], 0.5).sum())
    assert sizes == ([30 + n_part] * 2 if fill == "proportional" else [n_pages] * 2)
    content = [host.site_content[guest_sites(host, guest)] for guest in range(2)]
    n_zero = [int(host.content_is_zero[each[each >= 0]].sum()) for each in content]
    common = set(content[0][content[0] >= 0].tolist()) & set(content[1].tolist())
    if fill == "proportional":
        # Copies of a common content are contents of their own that both guests have.
        assert len(common) > 3 * 3
        assert n_zero[0] >= 3
        copies = [each[:5][each[:5] >= 0] for each in content]
        assert set(copies[0].tolist()) <= common
    else:
        assert (len(common), n_zero) == (4, [1, 1])
    if fill == "private":
        assert len(set(content[0].tolist())) == 1 + 7 + 25
    assert len(np.unique(np.stack([host.site_mm, host.site_vpn]), axis=1)[0]) == sum(sizes)


def test_guests_of_a_workload_without_a_memory_are_as_large_as_their_templates() -> None:
    model = population([template([range(10)]), template([range(4)])], [0])
    spec = scenario(draw=DrawSpec(count=8, fill="private"))
    stays = timeline(spec, [Stay(guest, 0) for guest in range(8)], memory_pages=10)
    host = build_drawn_host(model, spec, stays, 0, 0)
    sizes = [len(guest_sites(host, guest)) for guest in range(8)]
    drawn = guests_of(model, spec, stays.requests, 0)
    assert sizes == [(10, 4)[number] for number in drawn.template]
    assert set(sizes) == {4, 10}
    asked = scenario(draw=DrawSpec(count=8, fill="private", memory_bytes=10 * 4096))
    host = build_drawn_host(model, asked, stays, 0, 0)
    assert [len(guest_sites(host, guest)) for guest in range(8)] == [10] * 8


def test_a_guest_smaller_than_the_captured_has_a_part_of_its_pages() -> None:
    contents = [[ZERO] * 200]
    model, spec = population([template(contents)], [0]), scenario()
    stays = timeline(spec, [Stay(0, 0), Stay(1, 0)], memory_pages=50)
    host = build_drawn_host(model, spec, stays, 0, 0)
    sizes = [len(guest_sites(host, guest)) for guest in range(2)]
    assert sizes[0] == sizes[1] == int(in_part(model.templates[0], 0.25).sum())
    assert 25 < sizes[0] < 80


def test_a_share_of_the_blocks_is_huge_when_asked() -> None:
    model = population([template([[ZERO] * 512 * 200])], [0])
    shares = []
    for asked in (None, 0.0, 0.4, 1.0):
        spec = scenario(draw=DrawSpec(count=1, huge_share=asked))
        host = build_drawn_host(model, spec, timeline(spec, [Stay(0, 0)],
                                                      memory_pages=512 * 200), 0, 0)
        blocks: dict[int, int] = {}
        for block, huge in zip((host.site_vpn >> 9).tolist(), host.site_huge.tolist(),
                               strict=True):
            assert blocks.setdefault(block, huge) == huge
        shares.append(sum(blocks.values()) / len(blocks))
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(0.4, abs=0.12)
    assert shares[3] == 1


def large(n_sites: int = 3000, n_snapshots: int = 1) -> tuple[list[list[int]], list[int]]:
    """Contents of a guest: zero pages, commons once and twice, repeated and private ones."""
    kinds: list[int] = [ContentKind.ZERO]
    row = [0] * (n_sites // 5)
    while len(row) < n_sites:
        turn = len(kinds) % 4
        kinds.append((ContentKind.COMMON_IMAGE, ContentKind.COMMON_ACROSS,
                      ContentKind.REPEATED_PRIVATE, ContentKind.PRIVATE)[turn])
        row += [len(kinds) - 1] * (1 + turn % 3)
    rows = [row[:n_sites]]
    for _ in range(1, n_snapshots):
        rows.append([rows[-1][-1], *rows[-1][:-1]])
    return rows, kinds


def static_fleet(n_hosts: int = 4, per_host: int = 6) -> tuple[Population, Scenario, Timeline]:
    rows, kinds = large()
    model = population([template(rows)], [0], kinds)
    spec = scenario(n_hosts=n_hosts)
    stays = timeline(spec, [Stay(number, number // per_host)
                            for number in range(n_hosts * per_host)], memory_pages=3000)
    return model, spec, stays


def test_a_sample_holds_contents_with_all_their_copies_and_pages_at_the_share() -> None:
    model, spec, stays = static_fleet()
    share = 0.2
    whole, sample = (HostBuilder(model, spec, stays, 0, each) for each in (1.0, share))
    n_common, n_kept, pages = 0, 0, []
    kept_everywhere: list[set[int]] = []
    for number in range(4):
        full, part = whole.build(number), sample.build(number)
        assert part.content_share == share
        assert len(part.mms) == len(full.mms)
        at = {(mm, vpn): site for site, (mm, vpn) in enumerate(
            zip(full.site_mm.tolist(), full.site_vpn.tolist(), strict=True))}
        sites = np.array([at[key] for key in zip(part.site_mm.tolist(), part.site_vpn.tolist(),
                                                 strict=True)])
        assert same_pattern(part.site_content.tolist(), full.site_content[sites].tolist())
        held = Counter(full.site_content[sites].tolist())
        copies = Counter(full.site_content.tolist())
        zero = int(np.flatnonzero(full.content_is_zero)[0])
        assert 0.15 < held.pop(zero) / copies.pop(zero) < 0.25
        # Whatever else is in the sample is there whole.
        assert all(copies[content] == n_pages for content, n_pages in held.items())
        common = {content for content, n_pages in copies.items() if n_pages >= 6}
        n_common += len(common)
        n_kept += len(common & set(held))
        kept_everywhere.append({int(site) % 3000 for site in sites
                                if int(full.site_content[site]) in common})
        pages.append(len(sites) / len(full.site_mm))
    assert n_kept / n_common == pytest.approx(share, abs=0.05)
    assert np.mean(pages) == pytest.approx(share, abs=0.02)
    # Every host has a sample of its own.
    assert any(sites != kept_everywhere[0] for sites in kept_everywhere)


def test_the_estimate_from_samples_is_right_in_the_mean() -> None:
    model, spec, stays = static_fleet(n_hosts=1)
    policy = replace(TOGETHER, partition_by=("domain",))
    exact = at_rest_saved(model, spec, stays, policy, [0], 0)
    assert exact is not None
    share = 0.25
    found = []
    for replicate in range(60):
        host = build_drawn_host(model, spec, stays, 0, replicate, share)
        rest = at_rest_of_host(host, policy, [0])
        found.append((rest.saved[0, 0] / share, rest.zero[0, 0] / share))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert abs(mean[0] - exact.saved[0, 0]) < 4 * error[0]
    # The zero page in three partitions: too little by 1 / share - 1 each.
    assert abs(mean[1] - (exact.zero[0, 0] - 3 * (1 / share - 1))) < 4 * error[1]


def pages_at(host: FleetHost, time_ns: int) -> dict[tuple[int, int], int]:
    """Content of each page (mm, vpn) then."""
    (content, _), = host.memory_at([time_ns])
    return dict(zip(zip(host.site_mm.tolist(), host.site_vpn.tolist(), strict=True),
                    content.tolist(), strict=True))


def test_pages_outside_the_sample_are_unseen_not_gone() -> None:
    rows, kinds = large(400, n_snapshots=3)
    rows[1][::7] = [-1] * len(rows[1][::7])
    model = population([template(rows)], kinds=kinds)
    spec = scenario(horizon_s=400)
    stays = timeline(spec, [Stay(0, 0, 150), Stay(1, 0, 0, 250)], memory_pages=400)
    share = 0.3
    kept = []
    for replicate in range(8):
        part = build_drawn_host(model, spec, stays, 0, replicate, share)
        whole = build_drawn_host(model, spec, stays, 0, replicate)
        assert min(whole.site_content.min(), whole.event_content.min()) == ABSENT
        for second in (0, 149, 151, 240, 251, 399):
            some = pages_at(part, second * SECOND)
            assert (UNSEEN in some.values()) == (max(some.values()) >= 0)
        # As their stays begin, guests are in the same snapshot in both; writes of an epoch are not
        # drawn alike.
        for second, guest in ((0, 0), (150, 1)):
            some, every = (pages_at(host, second * SECOND) for host in (part, whole))
            mine = [key for key in some if part.mms[key[0]].guest == guest]
            assert [some[key] == ABSENT for key in mine] == [every[key] == ABSENT for key in mine]
            seen = [key for key in mine if some[key] >= 0]
            assert same_pattern([some[key] for key in seen], [every[key] for key in seen])
            kept.append(len(seen) / sum(content >= 0 for (mm, _), content in every.items()
                                        if whole.mms[mm].guest == guest))
    assert np.mean(kept) == pytest.approx(share, abs=0.03)


def test_a_page_that_leaves_the_sample_is_written_before() -> None:
    rows, kinds = large(400, n_snapshots=3)
    model = population([template(rows)], kinds=kinds)
    spec = scenario(horizon_s=200)
    stays = timeline(spec, [Stay(0, 0)], memory_pages=400)
    whole = build_drawn_host(model, spec, stays, 0, 0)
    part = build_drawn_host(model, spec, stays, 0, 0, 0.3)
    content = part.site_content.tolist()
    n_left = n_back = 0
    previous = (-1, -1, 0)
    for time_ns, site, after in zip(part.event_time_ns.tolist(), part.event_site.tolist(),
                                    part.event_content.tolist(), strict=True):
        assert after >= 0 or content[site] >= 0
        if after < 0:
            assert after == UNSEEN
            assert previous[:2] == (time_ns, site)
            assert previous[2] >= 0
            n_left += 1
        n_back += content[site] == UNSEEN
        content[site], previous = after, (time_ns, site, after)
    assert min(n_left, n_back) > 20
    # Besides those that leave and come back, the sample has its share of all writes.
    assert 0.2 < (len(part.event_site) - n_left - n_back / 2) / len(whole.event_site) < 0.5


def test_an_engine_finds_at_the_end_what_is_saved_at_rest() -> None:
    model, spec = two_templates(), scenario(horizon_s=60)
    static = replace(model, templates=tuple(
        replace(each, content=each.content[:1], frame=each.frame[:1])
        for each in model.templates), workloads=(
            replace(model.workloads[0], clock=Clock.of([0])),))
    stays = timeline(spec, [Stay(guest, 0, 0, 30 if guest == 5 else None) for guest in range(6)])
    recorder = Recorder()
    host = build_drawn_host(static, spec, stays, 0, 0)
    simulate_host(host, TOGETHER, sensitive=(), horizon_ns=spec.horizon_ns,
                  sample_every_ns=10 * SECOND, cost=BUILTIN_UNMEASURED,
                  recorder=recorder)
    rows = recorder.table(HOSTS).to_pylist()
    rest = at_rest_saved(static, spec, stays, TOGETHER, [29 * SECOND, 59 * SECOND], 0)
    assert rest is not None
    for time_s, column in ((20, 0), (60, 1)):
        row = next(each for each in rows if each["time_ns"] == time_s * SECOND)
        saved = row["saved_bytes"] + row["metadata_bytes"]
        assert (saved, row["saved_zero_bytes"]) == (
            4096 * rest.saved[0, column], 4096 * rest.zero[0, column])
    assert rest.saved[0, 0] > rest.saved[0, 1] > 0
