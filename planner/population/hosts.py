"""One machine of a fleet with the guests that stay on it, as arrays of sites and events.

A drawn guest is like its template, shifted in phase. Common contents are what they are; private
ones are the guest's own, and new in every pass through the capture unless they last through it
(`Contents.is_lasting`). Nothing depends on the host or the policy: a guest that moves is found on
the new host with the same pages and the same writes to come, in a new mm, nothing merged. One that
restarts after a failure has fresh private contents, and its own time begins anew.

A guest's pages all appear when its stay begins (how a guest fills its memory while it boots is
not what was captured) and go when it ends. Private pages that fill memory beyond the captured are
never written again. Left out: swap, and pages in flight during a migration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetGuest, FleetHost, FleetMm, SiteClass, random_stream
from planner.kernels.ksmstate import UNSEEN
from planner.population.guests import drawn_guest, guest_key, guests_of, lives_of, mix64
from planner.population.model import ContentKind, Contents, Population, Template
from planner.population.sample import (
    Chosen,
    Sampler,
    TemplateFacts,
    content_bits,
    draw_some,
    template_facts,
)
from planner.population.walk import Walk, epochs_of, walk
from planner.scenario.spec import HostSpec, Scenario
from planner.timeline import Timeline

__all__ = ["HostBuilder", "build_drawn_host"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Table = dict[str, list[npt.NDArray[Any]]]
_HUGE_SHIFT = 9  # 512 pages of 4 KiB are a huge page
_HUGE_PAGES = 1 << _HUGE_SHIFT
_GROUP_SHIFT = np.uint64(59)
#: Codes of contents while a host is built: negative ones as in FleetHost, common ones below this,
#: private ones from it on.
_PRIVATE_BASE = 1 << 60
#: More passes through a capture than any life has.
_PASSES = 1 << 24
_SITE_COLUMNS: dict[str, type[np.generic]] = {
    "mm": np.int32, "vpn": np.int64, "class": np.int32, "eligible": np.uint8,
    "content": np.int64, "frame": np.int32, "huge": np.uint8, "node": np.int8}
_EVENT_COLUMNS: dict[str, type[np.generic]] = {
    "time_ns": np.int64, "site": np.int32, "content": np.int64, "frame": np.int32}


def build_drawn_host(population: Population, scenario: Scenario, timeline: Timeline, host: int,
                     replicate: int, content_share: float = 1.0) -> FleetHost:
    """The machine `host` (index into the timeline's) with its stays, over the horizon.

    With `content_share` below 1 the arrays hold a sample of the pages, each standing for
    `1 / content_share` (`planner.population.sample` says what that estimates, and its bias); mms
    are all there. A host on which nobody ever stays has no guests and no sites.
    """
    return HostBuilder(population, scenario, timeline, replicate, content_share).build(host)


class HostBuilder:
    """Builds the hosts of one replicate; what they have in common is found once."""

    def __init__(self, population: Population, scenario: Scenario, timeline: Timeline,
                 replicate: int, content_share: float = 1.0) -> None:
        self._population = population
        self._scenario = scenario
        self._timeline = timeline
        self._replicate = replicate
        self._share = content_share
        self._guests = guests_of(population, scenario, timeline.requests, replicate)
        self._lives = lives_of(timeline)
        self._sampler = Sampler(population, timeline, self._guests, seed=scenario.seed,
                                replicate=replicate, content_share=content_share)

    def build(self, host: int) -> FleetHost:
        """The machine `host`, an index into the timeline's."""
        timeline = self._timeline
        horizon_ns = self._scenario.horizon_ns
        arrays = _Arrays(self._population.contents)
        self._sampler.begin(host)
        stays = timeline.stays_on(host)
        for stay in range(stays.start, stays.stop):
            self._add_stay(arrays, stay)
        spec = replace(self._scenario.hosts[int(timeline.host_spec[host])],
                       name=timeline.hosts[host], count=1)
        return replace(arrays.finish(spec),
                       guest_start_ns=timeline.stay_start_ns[stays].astype(np.int64),
                       # Who is there at the horizon lives on: its memory is in the last sample.
                       guest_end_ns=np.where(
                           timeline.stay_end_ns[stays] < horizon_ns,
                           timeline.stay_end_ns[stays], np.iinfo(np.int64).max).astype(np.int64),
                       guest_cause=timeline.stay_cause[stays].astype(np.int8),
                       content_share=self._share,
                       pressure=tuple(need for need in timeline.pressure if need.host == host))

    def _add_stay(self, arrays: _Arrays, stay: int) -> None:
        timeline, guests, scenario = self._timeline, self._guests, self._scenario
        guest = int(timeline.stay_guest[stay])
        index = int(guests.template[guest])
        template = self._population.templates[index]
        facts = template_facts(self._population.contents, template)
        name, number = timeline.requests.name[guest], int(self._lives.number[stay])
        chosen = self._sampler.choose(index, int(guests.n_copies[guest]),
                                      float(guests.part[guest]), name=name, number=number)
        origin_ns = int(self._lives.origin_ns[stay])
        end_ns = min(int(timeline.stay_end_ns[stay]), scenario.horizon_ns)
        clock = self._population.workloads[template.workload].clock
        phase_ns = int(guests.phase_ns[guest])
        passes, snapshots = clock.at(phase_ns, 0)
        writes = walk(
            epochs_of(clock, phase_ns, end_ns - origin_ns), facts.is_written[:, chosen.site],
            random_stream(scenario.seed, "writes", self._replicate, name, number))
        draw = scenario.workloads[int(timeline.requests.workload[guest])].draw
        pages = _Pages(
            template, facts, chosen,
            draw_some(random_stream(scenario.seed, "fill", self._replicate, name, number),
                      int(guests.n_fill[guest]), self._share),
            int(guests.n_copies[guest]) + 1, int(guests.n_fill[guest]),
            guest_key(scenario.seed, "guest", self._replicate, name, number))
        place = arrays.add_guest(drawn_guest(scenario, timeline.requests, guest, template), pages,
                                 None if draw is None else draw.huge_share)
        _add_life(arrays, pages, place, writes, (int(passes), int(snapshots)), origin_ns,
                  int(timeline.stay_start_ns[stay]), end_ns,
                  is_leaving=end_ns < scenario.horizon_ns)


@dataclass(frozen=True, slots=True, eq=False)
class _Pages:
    """The pages of one guest: `chosen` of its template, then `fill` (numbers of filled pages).

    `n_levels`: copies of the template for which there are addresses. `n_fill`: filled pages, in
    the sample or not. `key`: what tells the guest's private contents from others.
    """

    template: Template
    facts: TemplateFacts
    chosen: Chosen
    fill: I64
    n_levels: int
    n_fill: int
    key: np.uint64

    def __len__(self) -> int:
        return len(self.chosen.site) + len(self.fill)


@dataclass(slots=True)
class _Arrays:
    """What a host holds so far; `finish` joins the parts and numbers contents densely.

    Contents are coded: negative as in FleetHost; below `_PRIVATE_BASE` a common one, `copy * n +
    content`; from there on private, in the order they were met.
    """

    contents: Contents
    guests: list[FleetGuest] = field(default_factory=list)
    mms: list[FleetMm] = field(default_factory=list)
    classes: list[SiteClass] = field(default_factory=list)
    sites: Table = field(default_factory=dict)
    events: Table = field(default_factory=dict)
    private_groups: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    n_sites: int = 0
    n_frames: int = 0
    n_private: int = 0
    #: The one content that stands for all zero pages, whatever the key of their hash; -1: none.
    zero: int = field(init=False)

    def __post_init__(self) -> None:
        self.zero = int(np.append(np.flatnonzero(self.contents.is_zero), -1)[0])

    def add_guest(self, guest: FleetGuest, pages: _Pages, huge_share: float | None) -> I64:
        """Add a guest with its mms, classes and sites; returns each page's site.

        The first copy has the captured addresses, further ones and the filled pages follow in the
        same mm. Filled pages lie where most of the captured ones do.
        """
        template, site, copy = pages.template, pages.chosen.site, pages.chosen.copy
        n_mms = len(template.mm_start_vpn)
        first_mm, first_class = len(self.mms), len(self.classes)
        # Copies keep their place within huge pages.
        start = template.mm_start_vpn & -_HUGE_PAGES
        stride = (template.mm_end_vpn - start + _HUGE_PAGES - 1) & -_HUGE_PAGES
        model = pages.facts.usual_site
        size = stride * pages.n_levels
        fill_mm = int(template.site_mm[model]) if template.n_sites else 0
        mm = np.concatenate([template.site_mm[site],
                             np.full(len(pages.fill), fill_mm)]).astype(np.int64)
        fill_vpn = pages.fill + (int((start + size)[fill_mm]) if n_mms else 0)
        vpn = np.concatenate([
            template.site_vpn[site] + copy * stride[template.site_mm[site]], fill_vpn])
        order = np.lexsort((vpn, mm))
        like = np.concatenate([site, np.full(len(pages.fill), model, np.int64)])[order]
        for number in range(n_mms):
            end = int(template.mm_end_vpn[number])
            if pages.n_levels > 1:
                end = int(start[number] + size[number])
            if pages.n_fill and number == fill_mm:
                end = int(start[number] + size[number]) + pages.n_fill
            self.mms.append(FleetMm(len(self.guests), 1000 + len(self.mms),
                                    int(template.mm_start_vpn[number]), end))
        self.classes += [SiteClass(len(self.guests), {**labels, **guest.labels})
                         for labels in template.class_labels]
        self.guests.append(guest)
        mm, vpn = mm[order], vpn[order]
        huge = template.site_huge[like]
        if huge_share is not None:
            block = mix64((vpn >> _HUGE_SHIFT).astype(np.uint64) ^ mix64(
                mm.astype(np.uint64) ^ pages.key))
            huge = _is_below(block, huge_share).astype(np.uint8)
        _add(self.sites, {
            "mm": mm + first_mm, "vpn": vpn, "class": template.site_class[like] + first_class,
            "eligible": template.site_eligible[like], "huge": huge,
            "node": template.site_node[like]})
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(self.n_sites, self.n_sites + len(order))
        self.n_sites += len(order)
        return place

    def private_codes(self, identity: I64, key: np.uint64) -> I64:
        """Codes of one guest's private contents, equal where `identity` is."""
        found, dense = np.unique(identity, return_inverse=True)
        bits = mix64(found.astype(np.uint64) ^ key)
        self.private_groups.append((bits >> _GROUP_SHIFT).astype(np.uint8))
        codes: I64 = dense.astype(np.int64) + (_PRIVATE_BASE + self.n_private)
        self.n_private += len(found)
        return codes

    def new_frames(self, n_frames: int) -> I64:
        """Frames that nobody has yet."""
        first = self.n_frames
        self.n_frames += n_frames
        return np.arange(first, first + n_frames, dtype=np.int64)

    def finish(self, spec: HostSpec) -> FleetHost:
        """The host; when its guests come and go is left to the caller."""
        sites, events = _joined(self.sites, _SITE_COLUMNS), _joined(self.events, _EVENT_COLUMNS)
        order = np.argsort(events["time_ns"], kind="stable")
        events = {name: column[order] for name, column in events.items()}
        codes = np.concatenate([sites["content"], events["content"]])
        is_private = codes >= _PRIVATE_BASE
        is_common = (codes >= 0) & ~is_private
        commons, dense = np.unique(codes[is_common], return_inverse=True)
        content = np.full(len(codes), -1, np.int32)
        content[is_common] = dense
        content[is_private] = codes[is_private] - (_PRIVATE_BASE - len(commons))
        content[codes == UNSEEN] = UNSEEN
        copy, index = np.divmod(commons, max(len(self.contents), 1))
        bits = content_bits(self.contents, index, copy)
        is_zero = np.zeros(len(commons) + self.n_private, np.uint8)
        is_zero[:len(commons)] = self.contents.is_zero[index]
        return FleetHost(
            spec=spec, guests=tuple(self.guests), mms=tuple(self.mms),
            classes=tuple(self.classes),
            domains=tuple(sorted({guest.domain for guest in self.guests})),
            site_mm=sites["mm"], site_vpn=sites["vpn"], site_class=sites["class"],
            site_eligible=sites["eligible"], site_content=content[:self.n_sites],
            site_frame=sites["frame"], site_huge=sites["huge"], site_node=sites["node"],
            content_is_zero=is_zero, event_time_ns=events["time_ns"], event_site=events["site"],
            event_content=content[self.n_sites:], event_frame=events["frame"],
            n_frames=self.n_frames, n_premerged_frames=0,
            content_group=np.concatenate([(bits >> _GROUP_SHIFT).astype(np.uint8),
                                          *self.private_groups]))


def _add_life(arrays: _Arrays, pages: _Pages, place: I64, writes: Walk, first: tuple[int, int],
              origin_ns: int, start_ns: int, end_ns: int, *, is_leaving: bool) -> None:
    """What the pages hold from `start_ns` to `end_ns`; `place` gives their sites.

    `first`: (pass, snapshot) in which the guest was when its own time began, at `origin_ns`.
    """
    chosen, n_chosen = pages.chosen, len(pages.chosen.site)
    number = np.full(n_chosen, first[0])
    snapshot = np.full(n_chosen, first[1])
    # A guest that migrated in was written to elsewhere before; the last write stays.
    is_past = writes.time_ns < start_ns - origin_ns
    snapshot[writes.page[is_past]] = writes.after[is_past]
    number[writes.page[is_past]] = writes.after_pass[is_past]
    is_here = ~is_past & (writes.time_ns < end_ns - origin_ns)
    page, before, after = writes.page[is_here], writes.before[is_here], writes.after[is_here]
    every = np.arange(n_chosen)
    content, frame = _states(arrays, pages, np.concatenate([every, page]),
                             np.concatenate([snapshot, after]),
                             np.concatenate([number, writes.after_pass[is_here]]))
    filled = content[:len(pages.fill)]
    content, frame = content[len(pages.fill):], frame[len(pages.fill):]
    # What a page is that is not of the sample.
    outside = np.where(pages.template.content[:, chosen.site] < 0, -1, UNSEEN)
    _begin(arrays, place,
           np.concatenate([np.where(chosen.is_kept[snapshot, every], content[:n_chosen],
                                    outside[snapshot, every]), filled]),
           np.concatenate([frame[:n_chosen], arrays.new_frames(len(filled))]), start_ns)
    was_kept, is_kept = chosen.is_kept[before, page], chosen.is_kept[after, page]
    became = outside[after, page]
    _write(arrays, writes.time_ns[is_here] + origin_ns, place[page], content[n_chosen:],
           frame[n_chosen:], became, is_kept=is_kept,
           is_leaver=was_kept & ~is_kept & (became == UNSEEN),
           is_told=was_kept | is_kept | (outside[before, page] != became))
    if is_leaving:
        absent = np.full(len(place), -1, np.int64)
        _add(arrays.events, {"time_ns": np.full(len(place), end_ns), "site": np.sort(place),
                             "content": absent, "frame": absent})


def _write(arrays: _Arrays, time_ns: I64, site: I64, content: I64, frame: I64, became: I64, *,
           is_kept: Bools, is_leaver: Bools, is_told: Bools) -> None:
    """Writes as events, if they are told at all: pages that were never of the sample are not.

    A page whose new content is not of the sample, a leaver, is written and leaves then: so what
    the write of a merged page costs is counted. `became`: -1 or UNSEEN, what else is not kept.
    """
    events = np.sort(np.concatenate([np.flatnonzero(is_told), np.flatnonzero(is_leaver)]),
                     kind="stable")
    is_second = np.append(False, np.diff(events) == 0)[:len(events)]
    is_there = is_kept[events] | (is_leaver[events] & ~is_second)
    _add(arrays.events, {
        "time_ns": time_ns[events], "site": site[events],
        "content": np.where(is_there, content[events], became[events]),
        "frame": np.where(is_there, frame[events], -1)})


def _begin(arrays: _Arrays, place: I64, content: I64, frame: I64, start_ns: int) -> None:
    """The pages as a stay begins: there from time 0 on, or absent until then."""
    order = np.argsort(place)
    content, frame = content[order], np.where(content >= 0, frame, -1)[order]
    if start_ns <= 0:
        _add(arrays.sites, {"content": content, "frame": frame})
        return
    absent = np.full(len(order), -1, np.int64)
    _add(arrays.sites, {"content": absent, "frame": absent})
    is_there = content != -1
    _add(arrays.events, {
        "time_ns": np.full(int(is_there.sum()), start_ns), "site": place[order][is_there],
        "content": content[is_there], "frame": frame[is_there]})


def _states(arrays: _Arrays, pages: _Pages, page: I64, snapshot: I64, number: I64
            ) -> tuple[I64, I64]:
    """Codes of contents, and frames, of the filled pages (no frames), then of chosen ones.

    `page`, `snapshot`, `number`: which of the chosen, as in which snapshot, in which pass.
    """
    contents, template, facts = arrays.contents, pages.template, pages.facts
    site, copy = pages.chosen.site[page], pages.chosen.copy[page]
    n_fill = len(pages.fill)
    content = template.content[snapshot, site].astype(np.int64)
    kind = np.where(content >= 0, contents.kind[content], np.uint8(ContentKind.PRIVATE))
    codes = np.full(n_fill + len(page), -1, np.int64)
    is_common = (content >= 0) & (kind <= ContentKind.RARE_COMMON)
    codes[n_fill:][is_common] = np.where(
        kind[is_common] == ContentKind.ZERO, arrays.zero,
        copy[is_common] * len(contents) + content[is_common])
    is_own = (content >= 0) & ~is_common
    own = content[is_own]
    identity = (copy[is_own] * len(contents) + own) * _PASSES + np.where(
        contents.is_lasting[own], 0, number[is_own] + 1)
    is_own = np.concatenate([np.ones(n_fill, bool), is_own])
    codes[is_own] = arrays.private_codes(np.concatenate([-1 - pages.fill, identity]), pages.key)
    frame = template.frame[snapshot, site].astype(np.int64)
    frames = arrays.new_frames(len(page))
    is_shared = (frame >= 0) & facts.frame_is_shared[frame] if len(facts.frame_is_shared) else (
        np.zeros(len(frame), bool))
    if is_shared.any():
        shared = frame[is_shared]
        _, dense = np.unique((copy[is_shared] * template.n_frames + shared) * _PASSES + np.where(
            facts.frame_is_lasting[shared], 0, number[is_shared] + 1), return_inverse=True)
        frames[is_shared] = arrays.new_frames(int(dense.max()) + 1)[dense]
    return codes, np.concatenate([np.full(n_fill, -1, np.int64), frames])


def _is_below(bits: npt.NDArray[np.uint64], share: float) -> Bools:
    if share >= 1.0:
        return np.ones(len(bits), bool)
    below: Bools = bits < np.uint64(share * 2.0**64)
    return below


def _add(table: Table, columns: dict[str, npt.NDArray[Any]]) -> None:
    for name, values in columns.items():
        table.setdefault(name, []).append(values)


def _joined(table: Table, columns: dict[str, type[np.generic]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([np.empty(0, dtype), *table.get(name, [])]).astype(
        dtype, copy=False) for name, dtype in columns.items()}
