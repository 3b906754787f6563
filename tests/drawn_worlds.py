"""Small populations, fleets and timelines for tests, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.fleet import FleetGuest
from planner.population.model import (
    Clock,
    ContentKind,
    Contents,
    Population,
    Template,
    WorkloadModel,
)
from planner.scenario.spec import (
    DomainsSpec,
    DrawSpec,
    FleetSpec,
    HostSpec,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
    WorkloadSpec,
)
from planner.timeline import Cause, Requests, Timeline

SECOND = 1_000_000_000
PAGE = 4096
ABSENT = -1
#: Contents of `population`: zero, commons, repeated and private ones.
ZERO, IMAGE, LIBRARY, RARE, OWN_TWICE, OWN, PASSING, FLIPPED, OTHER_OWN, OTHER_TWICE = range(10)
KINDS = (ContentKind.ZERO, ContentKind.COMMON_IMAGE, ContentKind.COMMON_ACROSS,
         ContentKind.RARE_COMMON, ContentKind.REPEATED_PRIVATE, ContentKind.PRIVATE,
         ContentKind.PRIVATE, ContentKind.PRIVATE, ContentKind.PRIVATE,
         ContentKind.REPEATED_PRIVATE)
#: What the templates hold at snapshots 0, 20 and 60 s: a row a snapshot, a column a site.
FIRST = ((ZERO, IMAGE, IMAGE, LIBRARY, RARE, OWN_TWICE, OWN_TWICE, OWN, PASSING, ABSENT),
         (ZERO, IMAGE, LIBRARY, LIBRARY, RARE, OWN_TWICE, ABSENT, OWN, FLIPPED, ZERO),
         (ZERO, IMAGE, IMAGE, LIBRARY, RARE, OWN_TWICE, OWN_TWICE, OWN, FLIPPED, ABSENT))
SECOND_GUEST = ((IMAGE, LIBRARY, OTHER_OWN, OTHER_TWICE, OTHER_TWICE, ZERO),
                (IMAGE, LIBRARY, OTHER_OWN, OTHER_TWICE, OTHER_TWICE, ZERO),
                (IMAGE, ABSENT, OTHER_OWN, OTHER_TWICE, OTHER_TWICE, ABSENT))


def template(contents: Sequence[Sequence[int]], *, name: str = "captured", workload: int = 0,
             shared: Sequence[tuple[int, int]] = (), n_mms: int = 1,
             not_eligible: Sequence[int] = ()) -> Template:
    """A template that holds these contents; sites of a pair in `shared` have one frame.

    A site has a new frame whenever its content changes. Sites are dealt to mms in equal runs; the
    last mm's are of region class "heap", the others' "data".
    """
    content = np.array(contents, np.int32)
    n_sites = content.shape[1]
    frame = np.full(content.shape, -1, np.int32)
    n_frames = 0
    for snapshot, row in enumerate(content):
        for site, value in enumerate(row):
            if value < 0:
                continue
            if snapshot and content[snapshot - 1, site] == value:
                frame[snapshot, site] = frame[snapshot - 1, site]
            else:
                frame[snapshot, site], n_frames = n_frames, n_frames + 1
    for one, other in shared:
        assert (content[:, one] == content[:, other]).all()
        frame[:, other] = frame[:, one]
    mm = (np.arange(n_sites) * n_mms // n_sites).astype(np.int32)
    vpn = 0x1000 + np.arange(n_sites, dtype=np.int64)
    eligible = np.ones(n_sites, np.uint8)
    eligible[list(not_eligible)] = 0
    labels = {"role": name, "domain": "captured", "group": "captured", "guest": name}
    return Template(
        workload, FleetGuest(name, "captured", "captured", labels), n_sites * PAGE,
        np.array([vpn[mm == number][0] for number in range(n_mms)]),
        np.array([vpn[mm == number][-1] + 1 for number in range(n_mms)]),
        tuple({"content": content, **labels} for content in ("data", "heap")), mm, vpn,
        (mm == n_mms - 1).astype(np.int32), eligible, np.zeros(n_sites, np.uint8),
        np.zeros(n_sites, np.int8), content, frame, n_frames)


def population(templates: Sequence[Template], offsets_ns: Sequence[int] = (
        0, 20 * SECOND, 60 * SECOND), kinds: Sequence[int] = KINDS) -> Population:
    """One workload of these templates, equally weighted."""
    n_contents = len(kinds)
    is_lasting = np.zeros(n_contents, bool)
    for each in templates:
        held = (each.content[0] >= 0) & (each.content[0] == each.content[-1])
        is_lasting[each.content[0][held]] = True
    hashes = np.random.default_rng(5).integers(1, 2**63, n_contents).astype(np.uint64)
    contents = Contents(hashes, np.array(kinds, np.uint8), np.ones((1, n_contents), np.int16),
                        is_lasting)
    weights = np.full(len(templates), 1 / len(templates))
    return Population((WorkloadModel("web", tuple(range(len(templates))), weights,
                                     Clock.of(offsets_ns), 0.0, 0.0),),
                      tuple(templates), contents)


def two_templates() -> Population:
    """The population of `FIRST` and `SECOND_GUEST`; the former's twice-held content is shared."""
    return population([template(FIRST, name="a", n_mms=2, not_eligible=[4]),
                       template(SECOND_GUEST, name="b", shared=[(3, 4)])])


@dataclass(frozen=True)
class Stay:
    """A stay in a timeline."""

    guest: int
    host: int
    start_s: float = 0
    end_s: float | None = None
    cause: Cause = Cause.BOOT


def scenario(*, horizon_s: float = 600, n_hosts: int = 2, draw: DrawSpec | None = None,
             seed: int = 1, policies: Sequence[PolicySpec] = (
                 PolicySpec("off", (), (), Never()),)) -> Scenario:
    """A fleet of one kind of host, with the group `both` of domains red and blue."""
    return Scenario(
        1, "test", seed, int(horizon_s * SECOND),
        (HostSpec("host", 1 << 34, 1 << 30, 2, 250, "builtin:unmeasured", count=n_hosts),),
        (WorkloadSpec("web", "trace", "", "", (), (), "captured",
                      draw or DrawSpec(count=1, fill="none")),),
        DomainsSpec((("both", ("red", "blue")),), ()), tuple(policies),
        OutputSpec("results", SECOND), fleet=FleetSpec())


def timeline(spec: Scenario, stays: Sequence[Stay], *, memory_pages: int = 10) -> Timeline:
    """These stays; guest k has the domain red, blue or green in turn."""
    horizon_s = spec.horizon_ns / SECOND
    ordered = sorted(stays, key=lambda stay: (stay.host, stay.start_s, stay.guest))
    n_guests = max(stay.guest for stay in stays) + 1
    ends = [horizon_s if stay.end_s is None else stay.end_s for stay in ordered]
    none = np.empty(0, np.int32)
    return Timeline(
        Requests(tuple(f"web-{number + 1}" for number in range(n_guests)),
                 np.zeros(n_guests, np.int32), (np.arange(n_guests) % 3).astype(np.int32),
                 ("red", "blue", "green"), np.full(n_guests, memory_pages * PAGE, np.int64),
                 np.zeros(n_guests, np.int64), np.full(n_guests, spec.horizon_ns, np.int64),
                 np.zeros(n_guests, bool), np.full(n_guests, -1, np.int32)),
        spec.hosts[0].names, np.zeros(spec.hosts[0].count, np.int32),
        np.array([stay.guest for stay in ordered], np.int32),
        np.array([stay.host for stay in ordered], np.int32),
        np.array([stay.start_s * SECOND for stay in ordered], np.int64),
        np.array([end * SECOND for end in ends], np.int64),
        np.array([stay.cause for stay in ordered], np.int8), none, none, (), ())
