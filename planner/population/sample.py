"""Which pages of a drawn guest are in a sample by content.

Every page is in the sample with the same probability, the content share, so every page of the
sample stands for `1 / share` pages. Common contents are drawn by a hash of content and host: with
all their copies there. Other hosts have others, since merging is within a host, and independent
samples add up to a more exact one. Contents that repeat inside a guest only are drawn by guest and
content. Private pages are drawn by guest and site, so that a page that is written again and again
stays in the sample. *Frequent* contents (the zero page; those with more than about `16 / share`
copies on a host) are all taken, but only a share of their pages is, drawn by site: a sample of
whole contents would have a huge variance from a few of them.

What the sample saves, `pages - contents`, divided by the share estimates what all pages save. It
is unbiased but for frequent contents: of one with m pages the sample holds about `m * share`, so
it yields `m - 1 / share` instead of `m - 1`, too little by less than 1/16 of it. What happened to
2 MiB pages cannot be scaled: few of them have more than one page in a small sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from planner.fleet import random_stream
from planner.population.guests import Guests, distinct, guest_key, in_part, mix64
from planner.population.model import ContentKind, Contents, Population, Template
from planner.timeline import Requests, Timeline

__all__ = ["Chosen", "Sampler", "TemplateFacts", "content_bits", "draw_some", "ranges",
           "template_facts"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
#: A frequent content has more than this many sampled pages on a host.
_FREQUENT_PAGES = 16
_COPY_STEP = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True, slots=True, eq=False)
class TemplateFacts:
    """What is worth knowing of a template before guests are drawn from it.

    `is_written` bool (s, n): whether a site changes on the way from a snapshot to the next (from
    the last to the first). `frame_is_shared`, `frame_is_lasting` bool (n_frames,): held by several
    sites ever; by some site in the first and the last snapshot. `common`, `repeated`: pairs
    (content, site) i64 (2, k), distinct, by content, of contents that are kept, and of those that
    repeat. `mean_pages` f64 (k,) of `contents` i64 (k,): pages of each non-private content in a
    snapshot. `usual_site`: a site of the mm, class and eligibility that most sites have.
    """

    is_written: Bools
    frame_is_shared: Bools
    frame_is_lasting: Bools
    common: I64
    repeated: I64
    contents: I64
    mean_pages: npt.NDArray[np.float64]
    usual_site: int


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Pages of a guest in the sample: `copy` and `site` i64 (k,), by mm, copy and site.

    `is_kept` bool (s, k): whether the page belongs to the sample while it is as in a snapshot.
    """

    copy: I64
    site: I64
    is_kept: Bools


@lru_cache(maxsize=256)
def template_facts(contents: Contents, template: Template) -> TemplateFacts:
    """The facts of a template; remembered."""
    content, frame = template.content, template.frame
    is_written = (content != np.roll(content, -1, 0)) | (frame != np.roll(frame, -1, 0))
    held = frame >= 0
    pairs = distinct(frame[held].astype(np.int64) * template.n_sites + np.nonzero(held)[1])
    is_shared = np.bincount(pairs // max(template.n_sites, 1), minlength=template.n_frames) > 1
    is_lasting = np.zeros(template.n_frames, bool)
    is_lasting[frame[0][held[0] & (frame[0] == frame[-1])]] = True
    present = content >= 0
    kind = np.where(present, contents.kind[content], np.uint8(ContentKind.PRIVATE))
    found, n_pages = np.unique(content[kind < ContentKind.PRIVATE], return_counts=True)
    return TemplateFacts(
        is_written, is_shared, is_lasting,
        _pairs(content, (kind <= ContentKind.RARE_COMMON) & (kind != ContentKind.ZERO)),
        _pairs(content, kind == ContentKind.REPEATED_PRIVATE),
        found.astype(np.int64), n_pages / len(content), _usual_site(template))


def _usual_site(template: Template) -> int:
    if not template.n_sites:
        return 0
    key = (template.site_mm.astype(np.int64) * len(template.class_labels)
           + template.site_class) * 2 + (template.site_eligible != 0)
    _, first, n_sites = np.unique(key, return_index=True, return_counts=True)
    return int(first[np.argmax(n_sites)])


def _pairs(content: npt.NDArray[np.int32], is_wanted: Bools) -> I64:
    n_sites = content.shape[1]
    codes = distinct(content[is_wanted].astype(np.int64) * n_sites + np.nonzero(is_wanted)[1])
    return np.stack(np.divmod(codes, max(n_sites, 1)))


def content_bits(contents: Contents, content: I64, copy: I64) -> U64:
    """64 random-looking bits of each copy of a content, the same in all fleets, u64."""
    return mix64(contents.hash[content] + copy.astype(np.uint64) * _COPY_STEP)


class Sampler:
    """Draws the pages of guests; knows which contents are frequent in this fleet.

    `content_share` in (0, 1]. The sample depends on seed, replicate, share and host (which is said
    by `begin`); which contents are frequent follows from all hosts together.
    """

    def __init__(self, population: Population, timeline: Timeline, guests: Guests, *, seed: int,
                 replicate: int, content_share: float) -> None:
        self._contents = population.contents
        self._templates = population.templates
        self._share = content_share
        self._seed, self._replicate = seed, replicate
        self._limit = np.uint64(min(int(content_share * 2.0**64), 2**64 - 1))
        self.begin(0)
        self._is_frequent = np.zeros(len(population.contents), bool)
        if content_share < 1.0:
            self._is_frequent = self._find_frequent(timeline, guests)

    def begin(self, host: int) -> None:
        """Draw guests of this host from now on."""
        self._salt = guest_key(self._seed, self._replicate, "content sample", host)
        self._common: dict[int, tuple[int, I64]] = {}

    def _find_frequent(self, timeline: Timeline, guests: Guests) -> Bools:
        """Contents with more copies than the limit on a host, as a mean of those that have any.

        Each workload counts with the mean of the hosts where it is found at all.
        """
        requests: Requests = timeline.requests
        expected = np.zeros(len(self._contents))
        span_ns = max(int(timeline.stay_end_ns.max(initial=0)), 1)
        for workload in np.unique(requests.workload[timeline.stay_guest]):
            mine = requests.workload[timeline.stay_guest] == workload
            n_hosts = len(np.unique(timeline.stay_host[mine]))
            share_of_span = (timeline.stay_end_ns[mine] - timeline.stay_start_ns[mine]) / span_ns
            n_guests = np.bincount(guests.template[timeline.stay_guest[mine]],
                                   weights=share_of_span) / n_hosts
            for index in np.flatnonzero(n_guests):
                facts = template_facts(self._contents, self._templates[index])
                expected[facts.contents] += n_guests[index] * facts.mean_pages
        is_frequent: Bools = self._contents.is_zero | (
            expected * self._share > _FREQUENT_PAGES)
        return is_frequent

    def choose(self, template_index: int, n_copies: int, part: float, *,
               name: str, number: int) -> Chosen:
        """The pages of one guest: of `n_copies` whole copies and a part of one more.

        `name` and `number` (of its life) tell the guest from others.
        """
        template = self._templates[template_index]
        n_sites = template.n_sites
        n_levels = n_copies + (part > 0)
        if self._share >= 1.0:
            codes = np.arange(n_levels * n_sites, dtype=np.int64)
        else:
            stream = random_stream(self._seed, "sample", self._replicate, name, number)
            by_site = draw_some(stream, n_levels * n_sites, self._share)
            key = guest_key(self._seed, "repeated", self._replicate, name, number)
            codes = distinct(np.concatenate([
                by_site, self._common_codes(template_index, n_levels),
                self._repeated_codes(template, n_levels, key)]))
        copy, site = np.divmod(codes, max(n_sites, 1))
        if part > 0:
            inside = (copy < n_copies) | in_part(template, part)[site]
            copy, site, codes = copy[inside], site[inside], codes[inside]
        is_kept = template.content[:, site] >= 0
        if self._share < 1.0:
            is_kept &= self._is_kept(template, copy, site, np.isin(codes, by_site), key)
            used = is_kept.any(axis=0)
            copy, site, is_kept = copy[used], site[used], is_kept[:, used]
        order = np.lexsort((site, copy, template.site_mm[site]))
        return Chosen(copy[order], site[order], is_kept[:, order])

    def _is_kept(self, template: Template, copy: I64, site: I64, is_by_site: Bools,
                 key: np.uint64) -> Bools:
        content = template.content[:, site].astype(np.int64)
        kind = self._contents.kind[content]
        is_common = (kind <= ContentKind.RARE_COMMON) & ~self._is_frequent[content]
        is_repeated = (kind == ContentKind.REPEATED_PRIVATE) & ~self._is_frequent[content]
        kept = np.broadcast_to(is_by_site, content.shape).copy()
        copies = np.broadcast_to(copy, content.shape)
        kept[is_common] = self._is_drawn(content[is_common], copies[is_common], self._salt)
        kept[is_repeated] = self._is_drawn(content[is_repeated], copies[is_repeated], key)
        return kept

    def _is_drawn(self, content: I64, copy: I64, salt: np.uint64) -> Bools:
        drawn: Bools = mix64(content_bits(self._contents, content, copy) ^ salt) < self._limit
        return drawn

    def _common_codes(self, template_index: int, n_levels: int) -> I64:
        """Codes `copy * n_sites + site` of pages that ever hold a common content of the sample."""
        template = self._templates[template_index]
        known, codes = self._common.get(template_index, (-1, np.empty(0, np.int64)))
        if known < n_levels:
            content, site = template_facts(self._contents, template).common
            usable = ~self._is_frequent[content]
            codes = np.sort(self._drawn_codes(content[usable], site[usable], n_levels,
                                              template.n_sites, self._salt))
            self._common[template_index] = n_levels, codes
        return codes[:np.searchsorted(codes, n_levels * template.n_sites)]

    def _repeated_codes(self, template: Template, n_levels: int, key: np.uint64) -> I64:
        content, site = template_facts(self._contents, template).repeated
        usable = ~self._is_frequent[content]
        return self._drawn_codes(content[usable], site[usable], n_levels, template.n_sites, key)

    def _drawn_codes(self, content: I64, site: I64, n_levels: int, n_sites: int, salt: np.uint64
                     ) -> I64:
        if not len(content) or not n_levels:
            return np.empty(0, np.int64)
        starts = np.flatnonzero(np.diff(content, prepend=-1))
        n_pages = np.diff(np.append(starts, len(content)))
        copy = np.repeat(np.arange(n_levels, dtype=np.int64), len(starts))
        hit = np.flatnonzero(self._is_drawn(np.tile(content[starts], n_levels), copy, salt))
        which, copy = hit % len(starts), copy[hit]
        pages = ranges(starts[which], n_pages[which])
        return np.repeat(copy, n_pages[which]) * n_sites + site[pages]


def ranges(starts: I64, counts: I64) -> I64:
    """`starts[i], starts[i] + 1, ...`, `counts[i]` numbers each, one after another."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


def draw_some(stream: np.random.Generator, n_items: int, share: float) -> I64:
    """Each of `n_items` numbers from 0 with probability `share`, ascending, i64.

    How many they are is as good as fixed: that memory is in use is known, not to be estimated.
    """
    if share >= 1.0:
        return np.arange(n_items, dtype=np.int64)
    n_drawn = int(n_items * share + stream.random())
    return np.sort(stream.choice(n_items, n_drawn, replace=False, shuffle=False))
