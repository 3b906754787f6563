"""Slow twin of `planner.ksm.space.MergeSpaces`: objects, dicts and loops, nothing incremental.

Written from the semantics (mm/ksm.c of Linux 6.12 as documented in planner/ksm/space.py), not from
the kernels: counters are counted anew from the objects each time they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.ksm.cost import CostModel
from planner.ksm.space import (
    Counters,
    EventTable,
    FullScan,
    MergeCounts,
    SiteTable,
    UnmergeCounts,
)


@dataclass(eq=False)
class Frame:
    """A physical frame. `owner`: plan index its cost is booked to; `node` if it is a KSM page."""

    owner: int
    node: Node | None = None
    is_cross: bool = False


@dataclass(eq=False)
class Node:
    space: Space
    content: int
    frame: Frame
    items: list[Site] = field(default_factory=list)


@dataclass(eq=False)
class Item:
    space: Space
    old: int | None = None
    is_unstable: bool = False
    node: Node | None = None


@dataclass(eq=False)
class Site:
    number: int
    mm: int
    vpn: int
    domain: int
    plan: int
    is_eligible: bool
    content: int = -1
    base: int | None = None
    frame: Frame | None = None
    item: Item | None = None


@dataclass(eq=False)
class Space:
    """One partition: its trees, scanner and sums."""

    plan: int
    limit: int = 256
    stable: dict[int, list[Node]] = field(default_factory=dict)
    unstable: dict[int, Site] = field(default_factory=dict)
    is_running: bool = False
    pages_to_scan: int = 0
    sleep_millisecs: int = 0
    next_ns: int = 0
    cursor: int = 0
    full_scans: int = 0
    scanned: int = 0
    cpu_ns: int = 0


class SlowSpaces:
    def __init__(
        self,
        sites: SiteTable,
        events: EventTable,
        *,
        n_partitions: int,
        content_is_zero: list[bool],
        domain_is_sensitive: list[bool],
        hz: int,
        cost: CostModel,
    ) -> None:
        self.hz, self.cost, self.n_partitions = hz, cost, n_partitions
        self.is_zero, self.is_sensitive = content_is_zero, domain_is_sensitive
        self.now_ns = 0
        self.spaces = [Space(plan) for plan in range(n_partitions)]
        self.cow_breaks = dict.fromkeys(range(-1, n_partitions), 0)
        self.events = [
            (int(t), int(s), int(c), int(f))
            for t, s, c, f in zip(
                events.time_ns, events.site, events.content, events.frame, strict=True
            )
        ]
        self.sites = [
            Site(
                i,
                int(sites.mm[i]),
                int(sites.vpn[i]),
                int(sites.domain[i]),
                int(sites.partition[i]),
                bool(sites.is_eligible[i]),
            )
            for i in range(len(sites))
        ]
        births = [(i, int(sites.content[i]), int(sites.frame[i])) for i in range(len(sites))]
        self.base_frames: dict[int, Frame] = {}
        for s, content, base in births + [event[1:] for event in self.events]:
            if content >= 0:
                plan = self.sites[s].plan
                frame = self.base_frames.setdefault(base, Frame(plan))
                if frame.owner == -1:
                    frame.owner = plan
                elif plan not in (-1, frame.owner):
                    frame.is_cross = True
        self.base_owner = {base: frame.owner for base, frame in self.base_frames.items()}
        self.first_on: dict[int, Site] = {}  # which page fork copies from
        for s, content, base in births:
            if content >= 0:
                self.write(self.sites[s], content, base)

    # ---- frames -------------------------------------------------------------------------------

    def mappers(self, frame: Frame) -> list[Site]:
        return [site for site in self.sites if site.frame is frame]

    def remap(self, site: Site, frame: Frame | None) -> None:
        old, site.frame = site.frame, frame
        if old is not None and old is not frame and not self.mappers(old) and old.node:
            chain = old.node.space.stable[old.node.content]
            chain.remove(old.node)
            if not chain:
                del old.node.space.stable[old.node.content]
            old.node = None

    def write(self, site: Site, content: int, base: int) -> None:
        if content < 0 and site.content < 0:
            return
        was_ksm = site.frame is not None and site.frame.node is not None
        self.leave_trees(site)
        if content < 0:
            site.item = None
            site.content = -1
            site.base = None
            self.remap(site, None)
            return
        if was_ksm:
            self.cow_breaks[site.plan] += 1
        own = self.base_frames[base]
        new: Frame | None = None
        first = self.first_on.get(base)
        if first is not None and first is not site and first.base == base and first.content >= 0:
            assert first.frame is not None
            if first.plan == site.plan:
                if first.content == content:
                    new = first.frame
            elif first.frame.node is None:
                new = first.frame
                new.is_cross = True
        else:
            self.first_on[base] = site
        if new is None:
            if base == site.base and not was_ksm:
                new = site.frame
            elif own.node is None:
                new = own
            else:
                new = Frame(site.plan)
        site.content, site.base = content, base
        self.remap(site, new)

    # ---- trees --------------------------------------------------------------------------------

    def leave_trees(self, site: Site) -> None:
        item = site.item
        if item is None:
            return
        if item.is_unstable:
            item.is_unstable = False
            if item.space.unstable.get(site.content) is site:
                del item.space.unstable[site.content]
        if item.node is not None:
            item.node.items.remove(site)
            item.node = None

    def append(self, site: Site, node: Node) -> None:
        assert site.item is not None
        node.items.append(site)
        site.item.node = node

    def visit(self, site: Site, space: Space, *, is_gated: bool) -> tuple[str, int]:
        """What came of it and the time it took."""
        cost = self.cost
        assert site.frame is not None
        node = site.frame.node
        if site.item is not None and site.item.node is not None:
            return ("quick" if site.item.space is space else "foreign"), cost.quick_ns
        if node is not None and node.space is not space:
            return "foreign", cost.quick_ns
        if site.item is not None and site.item.space is not space:
            self.leave_trees(site)
            site.item = None
        is_new = site.item is None
        if site.item is None:
            site.item = Item(space)
        self.leave_trees(site)
        item = site.item
        if node is not None:  # a KSM page that fork gave us
            self.append(site, node)
            return "inherited", cost.quick_ns
        had, item.old = item.old, site.content
        if is_gated and had != site.content:
            return ("first", cost.first_sight_ns) if is_new else ("volatile", cost.volatile_ns)
        chain = space.stable.get(site.content, [])
        room = [n for n in chain if 0 < len(n.items) < space.limit]
        if room:
            node = room[0]
            if len(node.items) + 1 < space.limit:
                chain.remove(node)
                chain.insert(0, node)
            self.remap(site, node.frame)
            self.append(site, node)
            return "merged", cost.merge_ns + self.levels_ns(space, stable=1, unstable=0)
        other = space.unstable.get(site.content)
        if other is None:
            space.unstable[site.content] = site
            item.is_unstable = True
            return "unique", cost.unique_ns + self.levels_ns(space)
        assert other.frame is not None
        if other.frame is site.frame:
            return "twin", cost.unique_ns + self.levels_ns(space)
        self.leave_trees(other)
        if site.frame.is_cross:
            self.remap(site, Frame(site.plan))
        node = Node(space, site.content, site.frame)
        site.frame.node = node
        space.stable.setdefault(site.content, []).insert(0, node)
        self.remap(other, site.frame)
        self.append(other, node)
        self.append(site, node)
        return "paired", cost.pair_merge_ns + self.levels_ns(space, stable=2)

    def levels_ns(self, space: Space, stable: int = 1, unstable: int = 1) -> int:
        return (
            stable * self.cost.stable_level_ns * len(space.stable).bit_length()
            + unstable * self.cost.unstable_level_ns * len(space.unstable).bit_length()
        )

    # ---- ksmd ---------------------------------------------------------------------------------

    def start_scanner(
        self, partition: int, *, pages_to_scan: int, sleep_millisecs: int, max_page_sharing: int
    ) -> None:
        space = self.spaces[partition]
        if not space.is_running or space.next_ns < self.now_ns:
            space.next_ns = self.now_ns
        space.pages_to_scan, space.sleep_millisecs = pages_to_scan, sleep_millisecs
        space.limit = max_page_sharing
        space.is_running = pages_to_scan > 0 and bool(self.members(space))

    def set_max_page_sharing(self, partition: int, max_page_sharing: int) -> None:
        self.spaces[partition].limit = max_page_sharing

    def stop_scanner(self, partition: int) -> None:
        self.spaces[partition].is_running = False

    def members(self, space: Space) -> list[Site]:
        return [site for site in self.sites if site.plan == space.plan and site.is_eligible]

    def wake_ns(self, end_ns: int, sleep_millisecs: int) -> int:
        jiffy_ns = 10**9 // self.hz
        n = (sleep_millisecs * self.hz + 999) // 1000
        if n == 0:
            return end_ns
        now = end_ns // jiffy_ns
        for step, below in ((1, 63), (8, 504), (64, 4032), (512, 32256)):
            if n < below:
                return ((now + n) // step + 1) * step * jiffy_ns
        raise AssertionError("a longer sleep than the tests use")

    def advance(self, until_ns: int) -> list[FullScan]:
        scans = []
        while True:
            ready = [s for s in self.spaces if s.is_running and s.next_ns < until_ns]
            space = min(ready, key=lambda s: s.next_ns) if ready else None
            limit = space.next_ns if space else until_ns
            while self.events and self.events[0][0] <= limit:
                _, s, content, base = self.events.pop(0)
                self.write(self.sites[s], content, base)
            if space is None:
                break
            end_ns = self.batch(space)
            if space.cursor == 0:
                scans.append(FullScan(end_ns, space.plan, space.full_scans))
        self.now_ns = until_ns
        return scans

    def batch(self, space: Space) -> int:
        members = self.members(space)
        if space.cursor == 0:
            space.unstable = {}  # items keep their flag until they are visited
        times = []
        n_processed = n_cold = 0
        while n_processed < space.pages_to_scan and space.cursor < len(members):
            site = members[space.cursor]
            space.cursor += 1
            if site.content < 0:
                times.append(self.cost.hole_ns)
                continue
            times.append(self.visit(site, space, is_gated=True)[1])
            n_processed += 1
            if n_processed == self.cost.cold_pages:
                n_cold = len(times)
        if n_processed < self.cost.cold_pages:
            n_cold = len(times)
        ns = sum(times)
        if space.sleep_millisecs:
            ns += sum(times[:n_cold]) * self.cost.cold_percent // 100
        ns += self.cost.batch_ns
        space.scanned += n_processed
        space.cpu_ns += ns
        if n_processed < space.pages_to_scan:
            space.cursor = 0
            space.full_scans += 1
        end_ns = space.next_ns + ns
        space.next_ns = self.wake_ns(end_ns, space.sleep_millisecs)
        return end_ns

    # ---- calls --------------------------------------------------------------------------------

    def in_range(self, space: Space, mm: int, start_vpn: int, end_vpn: int) -> list[Site]:
        return [s for s in self.members(space) if s.mm == mm and start_vpn <= s.vpn < end_vpn]

    def merge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> MergeCounts:
        space = self.spaces[partition]
        came_to: list[str] = []
        ns = cold_ns = 0
        for site in self.in_range(space, mm, start_vpn, end_vpn):
            if site.content < 0:
                ns += self.cost.hole_ns
                continue
            outcome, took_ns = self.visit(site, space, is_gated=False)
            came_to.append(outcome)
            ns += took_ns
            if len(came_to) == self.cost.cold_pages:
                cold_ns = ns
        if len(came_to) < self.cost.cold_pages:
            cold_ns = ns
        ns += cold_ns * self.cost.cold_percent // 100 + self.cost.call_ns
        space.scanned += len(came_to)
        space.cpu_ns += ns
        return MergeCounts(
            end_vpn - start_vpn,
            len(came_to),
            sum(came_to.count(o) for o in ("merged", "paired", "inherited")),
            came_to.count("unique"),
            came_to.count("quick"),
            came_to.count("twin"),
            came_to.count("foreign"),
            ns,
        )

    def unmerge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> UnmergeCounts:
        space = self.spaces[partition]
        sites = self.in_range(space, mm, start_vpn, end_vpn)
        return self.unmerge(space, sites, end_vpn - start_vpn)

    def unmerge(self, space: Space, sites: list[Site], requested: int) -> UnmergeCounts:
        n = 0
        for site in sites:
            if site.frame is None:
                continue
            node = site.frame.node
            if site.item is not None and site.item.space is space:
                self.leave_trees(site)
                site.item = None
            if node is not None and node.space is space:
                self.remap(site, Frame(site.plan))
                n += 1
        ns = self.cost.call_ns + n * self.cost.unmerge_ns
        space.cpu_ns += ns
        return UnmergeCounts(requested, n, ns)

    def reset_partition(self, partition: int) -> UnmergeCounts:
        space = self.spaces[partition]
        space.is_running = False
        space.cursor = 0
        members = self.members(space)
        return self.unmerge(space, members, len(members))

    def renew_partition(self, partition: int) -> int:
        self.spaces.append(Space(self.spaces[partition].plan))
        return len(self.spaces) - 1

    # ---- counters -----------------------------------------------------------------------------

    def counters(self) -> Counters:
        return self.count(set(range(-1, self.n_partitions)), is_host=True)

    def partition_counters(self) -> list[Counters]:
        return [self.count({plan}, is_host=False) for plan in range(self.n_partitions)]

    def count(self, plans: set[int], *, is_host: bool) -> Counters:
        spaces = [s for s in self.spaces if s.plan in plans]
        base = {
            site.base: site.content
            for site in self.sites
            if site.base is not None and self.base_owner[site.base] in plans
        }
        frames = {
            site.frame: site.content
            for site in self.sites
            if site.frame is not None and site.frame.owner in plans
        }
        zero_base = sum(self.is_zero[c] for c in base.values())
        zero_frames = sum(self.is_zero[c] for c in frames.values())
        with_item = [s for s in self.sites if s.item is not None and s.item.space in spaces]
        nodes = [n for s in spaces for chain in s.stable.values() for n in chain]
        chains = sum(len(chain) > 1 for s in spaces for chain in s.stable.values())
        shared = sum(bool(n.items) for n in nodes)
        sharing = sum(len(n.items) - 1 for n in nodes if n.items)
        unshared = sum(s.item is not None and s.item.is_unstable for s in with_item)
        cross = cross_sensitive = needed = 0
        for node in nodes:
            domains = {site.domain for site in node.items}
            if len(domains) > 1:
                cross += len(node.items)
                if any(self.is_sensitive[d] for d in domains):
                    cross_sensitive += len(node.items)
            if node.items:
                is_alone = len(self.mappers(node.frame)) == len(node.items)
                needed += len(node.items) - is_alone
        if is_host:
            mm_slots = len({s.mm for s in with_item})
        else:
            mm_slots = len({(s.mm, s.item.space) for s in with_item if s.item})
        saved = len(base) - len(frames)
        return Counters(
            base_frames=len(base),
            frames=len(frames),
            saved_frames=saved - (zero_base - zero_frames),
            saved_zero_frames=zero_base - zero_frames,
            eligible_pages=sum(
                s.content >= 0 and s.is_eligible and s.plan in plans for s in self.sites
            ),
            pages_shared=shared,
            pages_sharing=sharing,
            pages_unshared=unshared,
            pages_volatile=len(with_item) - shared - sharing - unshared,
            pages_scanned=sum(s.scanned for s in spaces),
            full_scans=sum(s.full_scans for s in spaces),
            general_profit_bytes=4096 * sharing - 64 * len(with_item),
            rmap_items=len(with_item),
            stable_nodes=len(nodes),
            stable_chains=chains,
            mm_slots=mm_slots,
            metadata_bytes=64 * (len(with_item) + len(nodes) + chains) + 48 * mm_slots,
            merge_cpu_ns=sum(s.cpu_ns for s in spaces),
            cow_breaks=sum(self.cow_breaks[plan] for plan in plans),
            cow_cpu_ns=self.cost.cow_break_ns * sum(self.cow_breaks[plan] for plan in plans),
            cross_domain_pages=cross,
            cross_domain_sensitive_pages=cross_sensitive,
            unmerge_frames=needed,
        )
