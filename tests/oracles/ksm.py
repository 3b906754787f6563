"""Slow twin of `planner.ksm.space.MergeSpaces`: objects, dicts and loops, nothing incremental.

Written from what mm/ksm.c does (and planner/ksm/space.py says of a replay), not from the kernels:
counters are counted anew from the objects each time they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.ksm.cost import NEAR_LEVELS, CostModel
from planner.ksm.knobs import Knobs
from planner.ksm.records import (
    Counters,
    EventTable,
    FullScan,
    MergeCounts,
    SiteTable,
    UnmergeCounts,
)
from tests.oracles.kernel_ksm.advisor import ScanTimeAdvisor

#: When a scanner without an mm runs next.
NEVER = 2**62


@dataclass(eq=False)
class Frame:
    """A physical frame. `owner`: plan index its cost is booked to.

    A KSM page has a `node`, or `is_orphan`: a pair was undone by a copy, and others still map it.
    """

    owner: int
    node: Node | None = None
    is_cross: bool = False
    is_orphan: bool = False

    @property
    def is_ksm(self) -> bool:
        return self.is_orphan or self.node is not None


@dataclass(eq=False)
class Node:
    """A stable node; `frame` is None once its page is gone, which nobody may have noticed."""

    space: Space
    content: int
    frame: Frame | None
    items: list[Site] = field(default_factory=list)


@dataclass
class Entry:
    """What the stable tree has of a content; `pruned_at` is the jiffy of a chain's pruning."""

    nodes: list[Node]
    pruned_at: int | None = None


@dataclass(eq=False)
class Item:
    space: Space
    old: int | None = None
    inserted: int | None = None  # flagged UNSTABLE: the scan it was inserted in
    node: Node | None = None
    age: int = 0
    skips: int = 0


@dataclass(eq=False)
class Site:
    """A page. Without content it is absent; `zero` names the content the zero page stands for."""

    number: int
    mm: int
    vpn: int
    domain: int
    plan: int
    is_eligible: bool
    is_born_huge: bool
    space: Space | None = None
    content: int | None = None
    zero: int | None = None
    is_ksm_zero: bool = False
    is_huge: bool = False
    base: int | None = None
    frame: Frame | None = None
    item: Item | None = None


@dataclass(eq=False)
class Space:
    """One partition: its trees, scanner and sums."""

    plan: int
    limit: int = 256
    knobs: Knobs = field(default_factory=Knobs)
    stable: dict[int, Entry] = field(default_factory=dict)
    unstable: dict[int, Site] = field(default_factory=dict)
    scan: int = 0
    is_running: bool = False
    has_scanner: bool = False
    pages_to_scan: int = 0
    next_ns: int = 0
    mms: list[int] = field(default_factory=list)
    at_mm: int | None = None
    passed: int = 0
    full_scans: int = 0
    scanned: int = 0
    skipped: int = 0
    cpu_ns: int = 0
    call_ns: int = 0
    unmerge_ns: int = 0
    merging_ns: int = 0
    n_splits: int = 0
    started_ns: int = 0
    advisor: tuple[int, int, int] = (0, 0, 0)  # seconds of the scan, change, CPU so far


class SlowSpaces:
    def __init__(
        self,
        sites: SiteTable,
        events: EventTable,
        *,
        n_partitions: int,
        content_is_zero: list[bool],
        domain_is_sensitive: list[bool],
        kernel: str,
        hz: int,
        cost: CostModel,
        exits: Mapping[int, int] | None = None,
    ) -> None:
        self.exits = sorted((time_ns, mm) for mm, time_ns in (exits or {}).items())
        self.exited: set[int] = set()
        self.hz, self.cost, self.n_partitions = hz, cost, n_partitions
        self.is_old = kernel == "6.1"
        self.is_zero, self.is_sensitive = content_is_zero, domain_is_sensitive
        self.now_ns = 0
        self.jiffy = 0
        self.n_splits = 0
        self.spaces = [Space(plan) for plan in range(n_partitions)]
        self.cow_breaks = dict.fromkeys(range(-1, n_partitions), 0)
        self.cow_ns = dict.fromkeys(range(-1, n_partitions), 0)
        self.events = [
            (int(t), int(s), int(c), int(f))
            for t, s, c, f in zip(
                events.time_ns, events.site, events.content, events.frame, strict=True
            )
        ]
        huge = sites.is_huge if sites.is_huge is not None else [0] * len(sites)
        self.sites = [
            Site(
                i,
                int(sites.mm[i]),
                int(sites.vpn[i]),
                int(sites.domain[i]),
                int(sites.partition[i]),
                bool(sites.is_eligible[i]),
                bool(huge[i]),
            )
            for i in range(len(sites))
        ]
        for site in self.sites:
            site.space = self.spaces[site.plan] if site.plan >= 0 else None
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
                self.arrive(self.sites[s])
                self.write(self.sites[s], content, base)

    # ---- mms ----------------------------------------------------------------------------------

    def arrive(self, site: Site, now_ns: int = 0) -> None:
        """The mm of a page is registered with the scanner of the plan, if it is not yet."""
        if site.plan < 0 or not site.is_eligible:
            return
        space = self.spaces[site.plan]
        if site.mm not in space.mms:
            if space.at_mm is None:
                space.mms.append(site.mm)
            else:
                space.mms.insert(space.mms.index(space.at_mm), site.mm)
            if space.next_ns == NEVER:
                space.next_ns = now_ns

    def exit(self, mm: int) -> None:
        """`__ksm_exit` in every plan: the scanner that comes to the mm next frees its items."""
        self.exited.add(mm)
        for space in self.spaces:
            if mm not in space.mms:
                continue
            mine = [site for site in self.members(space) if site.mm == mm]
            if not space.has_scanner:
                for site in mine:
                    self.forget(site)
            if space.at_mm == mm and space.has_scanner:
                continue
            space.mms.remove(mm)
            if space.has_scanner and any(site.item is not None for site in mine):
                at = 0 if space.at_mm is None else space.mms.index(space.at_mm) + 1
                space.mms.insert(at, mm)

    # ---- frames -------------------------------------------------------------------------------

    def mappers(self, frame: Frame) -> list[Site]:
        return [site for site in self.sites if site.frame is frame]

    def remap(self, site: Site, frame: Frame | None) -> None:
        old, site.frame = site.frame, frame
        if old is not None and old is not frame and not self.mappers(old):
            if old.node:
                old.node.frame = None
            old.node, old.is_orphan = None, False

    def to_zero_page(self, site: Site, is_by_ksm: bool) -> None:
        site.zero, site.content, site.is_ksm_zero = site.content, None, is_by_ksm
        site.is_huge = False
        self.remap(site, None)

    def split(self, site: Site) -> None:
        self.n_splits += 1
        for other in self.sites:
            if other.is_huge and other.mm == site.mm and other.vpn // 512 == site.vpn // 512:
                other.is_huge = False
                assert other.content is not None
                if not self.is_old and self.is_zero[other.content]:
                    self.to_zero_page(other, False)

    def write(self, site: Site, content: int, base: int) -> None:
        is_there = site.content is not None or site.zero is not None
        if content < 0 and not is_there:
            return
        was_ksm = site.frame is not None and site.frame.is_ksm
        was_content = site.content
        site.is_ksm_zero, site.zero = False, None
        if content < 0:
            site.content, site.base, site.is_huge = None, None, False
            self.remap(site, None)
            return
        if not is_there and site.is_born_huge:
            site.is_huge = True
        if was_ksm:
            self.cow_breaks[site.plan] += 1
            self.cow_ns[site.plan] += self.cost.cow_break_ns
        own = self.base_frames[base]
        new: Frame | None = None
        first = self.first_on.get(base)
        if first is not None and first is not site and first.base == base:
            if first.zero is not None:
                if first.plan == site.plan and self.is_zero[content] and not is_there:
                    site.base, site.zero, site.is_huge = base, content, False
                    site.is_ksm_zero = first.is_ksm_zero
                    return
            elif first.plan == site.plan:
                if first.content == content:
                    new = first.frame
            elif first.frame is not None and not first.frame.is_ksm:
                new = first.frame
                new.is_cross = True
        else:
            self.first_on[base] = site
        if new is None:
            if base == site.base and not was_ksm and was_content is not None:
                new = site.frame
            elif not own.is_ksm:
                new = own
            else:
                new = Frame(site.plan)
        site.content, site.base = content, base
        self.remap(site, new)

    # ---- trees --------------------------------------------------------------------------------

    def entry_goes(self, node: Node) -> None:
        """A stale node leaves the stable tree; its items are plain ones."""
        entry = node.space.stable[node.content]
        entry.nodes.remove(node)
        for site in node.items:
            assert site.item is not None
            site.item.node = None
        node.items = []
        if not entry.nodes and entry.pruned_at is None:
            del node.space.stable[node.content]

    def leave_trees(self, site: Site) -> None:
        item = site.item
        if item is None:
            return
        if item.node is not None:
            node = item.node
            if node.frame is None:
                self.entry_goes(node)
            else:
                node.items.remove(site)
                item.node = None
        elif item.inserted is not None:
            tree = item.space.unstable
            if item.inserted == item.space.scan and tree.get(item.old or 0) is site:
                del tree[item.old or 0]
            item.inserted = None

    def forget(self, site: Site) -> None:
        self.leave_trees(site)
        site.item = None

    def append(self, site: Site, node: Node) -> None:
        assert site.item is not None
        node.items.append(site)
        site.item.node = node

    def has_room(self, node: Node, more: int = 0) -> bool:
        return bool(node.items) and len(node.items) + more < node.space.limit

    def meet(self, space: Space, content: int, may_prune: bool) -> Node | None:
        """The node that a search gets at a content's entry, removing what is stale."""
        while content in space.stable:
            entry = space.stable[content]
            if entry.pruned_at is None:
                (node,) = entry.nodes
                if node.frame is None:
                    self.entry_goes(node)
                    continue
                return node
            wait = -(-space.knobs.stable_node_chains_prune_millisecs * self.hz // 1000)
            is_pruning = may_prune and self.jiffy >= entry.pruned_at + wait
            if is_pruning:
                entry.pruned_at = self.jiffy
            found: Node | None = None
            for node in list(entry.nodes):
                if node.frame is None:
                    self.entry_goes(node)
                    continue
                if found is None:
                    is_better = self.has_room(node) or not self.is_old
                else:
                    is_better = self.has_room(node) and (
                        not self.has_room(found) or len(node.items) > len(found.items)
                    )
                if is_better:
                    found = node
                    if self.has_room(node) and not is_pruning:
                        break
            if not entry.nodes:
                del space.stable[content]
                continue
            if found is not None:
                if entry.nodes == [found] and (is_pruning or not self.is_old):
                    entry.pruned_at = None
                elif self.has_room(found, 1):
                    entry.nodes.remove(found)
                    entry.nodes.insert(0, found)
            return found
        return None

    # ---- a page -------------------------------------------------------------------------------

    def visit(self, site: Site, space: Space, *, is_gated: bool) -> tuple[str, int]:
        """What came of it and the time it took."""
        cost = self.cost
        splits = self.n_splits
        outcome, is_new = self.outcome(site, space, is_gated)
        late = 1 if self.is_old and is_gated else 0
        ns = {
            "skipped": cost.skip_ns,
            "quick": cost.quick_ns,
            "foreign": cost.quick_ns,
            "inherited": cost.quick_ns,
            "volatile": (cost.first_sight_ns if is_new else cost.volatile_ns)
            + self.levels_ns(space, late, 0),
            "unique": cost.unique_ns + self.levels_ns(space, 1, 1),
            "twin": cost.unique_ns + self.levels_ns(space, 1, 1),
            "stuck": cost.unique_ns + self.levels_ns(space, 1, 1),
            "failed": cost.unique_ns + self.levels_ns(space, 1, 1),
            "zeroed": cost.zero_merge_ns,
            "merged": cost.merge_ns + self.levels_ns(space, 1, 0),
            "paired": cost.pair_merge_ns + self.levels_ns(space, 2, 1),
        }[outcome]
        self.split_ns += (self.n_splits - splits) * cost.split_ns
        space.n_splits += self.n_splits - splits
        if outcome in ("inherited", "zeroed", "merged", "paired"):
            space.merging_ns += ns
        return outcome, ns

    split_ns = 0

    def levels_ns(self, space: Space, stable: int, unstable: int) -> int:
        cost = self.cost
        in_tree = sum(
            site.item is not None and site.item.space is space
            and site.item.inserted == space.scan for site in self.sites
        )
        s, u = len(space.stable).bit_length(), in_tree.bit_length()
        return stable * (
            s * cost.stable_level_ns + max(0, s - NEAR_LEVELS) * cost.stable_far_ns
        ) + unstable * (
            u * cost.unstable_level_ns + max(0, u - NEAR_LEVELS) * cost.unstable_far_ns
        )

    def is_merged(self, site: Site) -> bool:
        """Its item is on the stable node of the page it maps."""
        return (site.item is not None and site.item.node is not None and site.frame is not None
                and site.item.node is site.frame.node)

    def outcome(self, site: Site, space: Space, is_gated: bool) -> tuple[str, bool]:
        assert site.frame is not None
        node = site.frame.node
        if self.is_merged(site):
            assert site.item is not None
            return ("quick" if site.item.space is space else "foreign"), False
        if site.space is not space:
            if node is not None and node.space is not space:
                return "foreign", False
            self.forget(site)
            site.space = space
        is_new = site.item is None
        item = site.item = site.item or Item(space)
        if is_gated and not site.frame.is_ksm and space.knobs.smart_scan and not self.is_old:
            age, item.age = item.age, item.age + 1
            if age >= 3:
                if item.skips:
                    item.skips -= 1
                    self.leave_trees(site)
                    return "skipped", is_new
                item.skips = 1 if age == 3 else 2 if age <= 5 else 4 if age <= 8 else 8
        return self.process(site, item, space, is_gated), is_new

    def process(self, site: Site, item: Item, space: Space, is_gated: bool) -> str:
        frame = site.frame
        assert frame is not None
        if frame.node is not None:  # a KSM page that fork gave us
            self.leave_trees(site)
            self.append(site, frame.node)
            return "inherited"
        content = site.content
        assert content is not None
        is_late = self.is_old and is_gated
        if not is_late:
            self.leave_trees(site)
            gate = self.gate(site, item, content, space, is_gated)
            if gate is not None:
                return gate
        node = self.meet(space, content, may_prune=True)
        if node is not None and not self.has_room(node):
            node = None
        self.leave_trees(site)
        if node is not None:
            if not self.can_merge(site):
                return "failed"
            self.remap(site, node.frame)
            self.append(site, node)
            return "merged"
        if is_late:
            gate = self.gate(site, item, content, space, is_gated)
            if gate is not None:
                return gate
        other = space.unstable.get(content)
        if other is not None:
            if other.content is None or not other.is_eligible:
                return "stuck"
            if other.content == content:
                return "twin" if other.frame is frame else self.pair(site, other, content, space)
        space.unstable[content] = site
        item.inserted = space.scan
        return "unique"

    def gate(self, site: Site, item: Item, content: int, space: Space, is_gated: bool
             ) -> str | None:
        had, item.old = item.old, content
        if is_gated and had != content:
            return "volatile"
        if space.knobs.use_zero_pages and self.is_zero[content] and self.can_merge(site):
            self.to_zero_page(site, True)
            return "zeroed"
        return None

    def can_merge(self, site: Site) -> bool:
        """Whether its page can be replaced, after its huge page was split: still there, not KSM."""
        if site.is_huge:
            self.split(site)
        return site.content is not None and site.frame is not None and not site.frame.is_ksm

    def pair(self, site: Site, other: Site, content: int, space: Space) -> str:
        if (site.is_huge and other.is_huge and site.mm == other.mm
                and site.vpn // 512 == other.vpn // 512):
            self.split(site)
            return "failed"
        if not self.can_merge(site):
            return "failed"
        assert site.frame is not None
        if not self.can_merge(other):
            self.cow_breaks[site.plan] += 1
            undone = site.frame
            self.remap(site, Frame(site.plan))
            undone.is_orphan = not undone.is_cross and bool(self.mappers(undone))
            return "failed"
        self.leave_trees(other)
        if site.frame.is_cross:
            self.remap(site, Frame(site.plan))
        self.meet(space, content, may_prune=False)
        node = Node(space, content, site.frame)
        site.frame.node = node
        entry = space.stable.get(content)
        if entry is None:
            space.stable[content] = Entry([node])
        else:
            if entry.pruned_at is None:
                entry.pruned_at = self.jiffy
            entry.nodes.insert(0, node)
        self.remap(other, site.frame)
        self.append(other, node)
        self.append(site, node)
        return "paired"

    # ---- ksmd ---------------------------------------------------------------------------------

    def start_scanner(self, partition: int, knobs: Knobs) -> None:
        space = self.spaces[partition]
        if not space.is_running or space.next_ns < self.now_ns:
            space.next_ns = self.now_ns
        if knobs.advisor_mode == "none":
            space.pages_to_scan = knobs.pages_to_scan
        elif space.knobs.advisor_mode == "none":
            space.pages_to_scan, space.advisor = knobs.advisor_min_pages_to_scan, (0, 0, 0)
        space.knobs = knobs
        space.limit = knobs.max_page_sharing
        space.is_running = space.pages_to_scan > 0
        space.has_scanner = True

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
            woken = False
            while not woken:
                time_ns = self.events[0][0] if self.events else NEVER
                if self.exits and self.exits[0][0] <= limit and self.exits[0][0] < time_ns:
                    self.exit(self.exits.pop(0)[1])
                    continue
                if not self.events or time_ns > limit:
                    break
                time_ns, s, content, base = self.events.pop(0)
                sleeping = [one for one in self.spaces if one.next_ns == NEVER]
                if content >= 0:
                    self.arrive(self.sites[s], time_ns)
                self.write(self.sites[s], content, base)
                woken = any(one.next_ns != NEVER for one in sleeping)
            if woken:
                continue
            if space is None:
                break
            before = space.full_scans
            end_ns = self.batch(space)
            if space.full_scans > before:
                scans.append(FullScan(end_ns, space.plan, space.full_scans))
        self.now_ns = until_ns
        return scans

    def batch(self, space: Space) -> int:
        start_ns = space.next_ns
        if not space.mms:
            space.next_ns = NEVER
            return start_ns
        self.jiffy = start_ns // (10**9 // self.hz)
        members = self.members(space)
        ns = cold_ns = n_processed = 0
        self.split_ns = 0
        if space.at_mm is None:
            space.scan += 1
            space.unstable = {}  # items keep their flag until they are visited
            space.at_mm, space.passed = space.mms[0], 0
            space.started_ns = start_ns
            ns += self.cost.scan_ns
        is_end = False
        while n_processed < space.pages_to_scan:
            if space.at_mm is None:
                is_end = True
                break
            mine = [site for site in members if site.mm == space.at_mm]
            is_leaving = space.at_mm in self.exited
            if is_leaving:
                for site in mine:
                    self.forget(site)
            if is_leaving or space.passed == len(mine):
                at = space.mms.index(space.at_mm)
                after = space.mms[at + 1 :][:1]
                if is_leaving:
                    del space.mms[at]
                space.at_mm = after[0] if after else None
                space.passed = 0
                continue
            site = mine[space.passed]
            space.passed += 1
            if site.content is None:
                ns += self.cost.hole_ns
                self.forget(site)
                continue
            outcome, took_ns = self.visit(site, space, is_gated=True)
            ns += took_ns
            if outcome == "skipped":
                space.skipped += 1
                continue
            n_processed += 1
            if n_processed <= self.cost.cold_pages:
                cold_ns += took_ns
        if space.knobs.sleep_millisecs * self.hz > 0:
            ns += cold_ns * self.cost.cold_percent // 100
        ns += self.cost.batch_ns + self.split_ns
        space.scanned += n_processed
        space.cpu_ns += ns
        end_ns = start_ns + ns
        if is_end:
            if space.knobs.advisor_mode != "none":
                self.advise(space, end_ns)
            space.full_scans += 1
        space.next_ns = self.wake_ns(end_ns, space.knobs.sleep_millisecs)
        return end_ns

    def advise(self, space: Space, end_ns: int) -> None:
        knobs = space.knobs
        last, change, cpu_ns = space.advisor
        advisor = ScanTimeAdvisor(
            knobs.advisor_target_scan_time, knobs.advisor_max_cpu,
            knobs.advisor_min_pages_to_scan, knobs.advisor_max_pages_to_scan,
            space.pages_to_scan, space.started_ns, last, change, cpu_ns)
        space.pages_to_scan = advisor.stop(end_ns, space.cpu_ns)
        space.advisor = (advisor.scan_time, advisor.change, advisor.cpu_time_ns)

    # ---- calls --------------------------------------------------------------------------------

    def in_range(self, space: Space, mm: int, start_vpn: int, end_vpn: int) -> list[Site]:
        return [s for s in self.members(space) if s.mm == mm and start_vpn <= s.vpn < end_vpn]

    def merge_range(
        self, partition: int, mm: int, start_vpn: int, end_vpn: int, longest_ns: int = 0
    ) -> MergeCounts:
        space = self.spaces[partition]
        self.jiffy = self.now_ns // (10**9 // self.hz)
        self.split_ns = 0
        came_to: list[str] = []
        ns = cold_ns = 0
        next_vpn = end_vpn
        for site in self.in_range(space, mm, start_vpn, end_vpn):
            so_far_ns = ns + cold_ns * self.cost.cold_percent // 100 + self.cost.call_ns
            if longest_ns and so_far_ns >= longest_ns:
                next_vpn = site.vpn
                break
            if site.content is None:
                ns += self.cost.hole_ns
                self.forget(site)
                continue
            outcome, took_ns = self.visit(site, space, is_gated=False)
            came_to.append(outcome)
            ns += took_ns
            if len(came_to) <= self.cost.cold_pages:
                cold_ns += took_ns
        ns += cold_ns * self.cost.cold_percent // 100 + self.cost.call_ns + self.split_ns
        space.scanned += len(came_to)
        space.cpu_ns += ns
        space.call_ns += ns
        return MergeCounts(
            end_vpn - start_vpn,
            len(came_to),
            sum(came_to.count(o) for o in ("merged", "paired", "inherited", "zeroed")),
            came_to.count("unique"),
            came_to.count("quick"),
            came_to.count("twin"),
            came_to.count("foreign"),
            came_to.count("failed") + came_to.count("stuck"),
            ns,
            next_vpn,
        )

    def unmerge_range(self, partition: int, mm: int, start_vpn: int, end_vpn: int) -> UnmergeCounts:
        space = self.spaces[partition]
        sites = self.in_range(space, mm, start_vpn, end_vpn)
        return self.unmerge(space, sites, end_vpn - start_vpn)

    def unmerge(self, space: Space, sites: list[Site], requested: int) -> UnmergeCounts:
        n = 0
        for site in sites:
            if site.is_ksm_zero and not self.is_old and site.space is space:
                site.content, site.zero, site.is_ksm_zero = site.zero, None, False
                self.remap(site, Frame(site.plan))
                n += 1
            elif site.frame is not None and site.frame.is_ksm and (
                site.space if site.frame.node is None else site.frame.node.space
            ) is space:
                self.remap(site, Frame(site.plan))
                n += 1
        for site in sites:
            if site.space is space:
                self.forget(site)
        ns = self.cost.call_ns + n * self.cost.unmerge_ns
        space.cpu_ns += ns
        space.unmerge_ns += ns
        return UnmergeCounts(requested, n, ns)

    def reset_partition(self, partition: int) -> UnmergeCounts:
        space = self.spaces[partition]
        space.is_running = False
        space.at_mm, space.passed = None, 0
        members = self.members(space)
        return self.unmerge(space, members, len(members))

    def renew_partition(self, partition: int) -> int:
        old = self.spaces[partition]
        mms = list(dict.fromkeys(site.mm for site in self.members(old)))
        self.spaces.append(Space(old.plan, mms=mms))
        return len(self.spaces) - 1

    # ---- counters -----------------------------------------------------------------------------

    def counters(self) -> Counters:
        return self.count(set(range(-1, self.n_partitions)), is_host=True)

    def partition_counters(self) -> list[Counters]:
        return [self.count({plan}, is_host=False) for plan in range(self.n_partitions)]

    def count(self, plans: set[int], *, is_host: bool) -> Counters:
        spaces = [s for s in self.spaces if s.plan in plans]
        base = {
            site.base: site.content if site.content is not None else site.zero
            for site in self.sites
            if site.base is not None and self.base_owner[site.base] in plans
        }
        frames = {
            site.frame: site.content
            for site in self.sites
            if site.frame is not None and site.frame.owner in plans
        }
        zero_base = sum(self.is_zero[c] for c in base.values() if c is not None)
        zero_frames = sum(self.is_zero[c] for c in frames.values() if c is not None)
        with_item = [s for s in self.sites if s.item is not None and s.item.space in spaces]
        entries = [e for s in spaces for e in s.stable.values()]
        nodes = [n for e in entries for n in e.nodes]
        chains = [e for e in entries if e.pruned_at is not None]
        shared = sum(bool(n.items) for n in nodes)
        sharing = sum(len(n.items) - 1 for n in nodes if n.items)
        unshared = sum(s.item is not None and s.item.inserted is not None for s in with_item)
        placed = [s for s in self.sites if s.is_ksm_zero and s.space in spaces]
        cross = cross_sensitive = needed = 0
        for node in nodes:
            sharers = self.mappers(node.frame) if node.frame is not None else []
            domains = {site.domain for site in sharers}
            needed += max(0, len(sharers) - 1)
            if len(domains) > 1:
                cross += len(sharers)
                if any(self.is_sensitive[d] for d in domains):
                    cross_sensitive += len(sharers)
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
                (s.content is not None or s.zero is not None) and s.is_eligible
                and s.plan in plans for s in self.sites
            ),
            pages_shared=shared,
            pages_sharing=sharing,
            pages_unshared=unshared,
            pages_volatile=len(with_item) - shared - sharing - unshared,
            pages_scanned=sum(s.scanned for s in spaces),
            pages_skipped=sum(s.skipped for s in spaces),
            full_scans=sum(s.full_scans for s in spaces),
            ksm_zero_pages=len(placed),
            general_profit_bytes=4096 * (sharing + len(placed)) - 64 * len(with_item),
            pages_to_scan=max((s.pages_to_scan for s in spaces), default=0),
            rmap_items=len(with_item),
            stable_nodes=len(nodes),
            stable_node_chains=len(chains),
            stable_node_dups=sum(len(e.nodes) for e in chains),
            mm_slots=mm_slots,
            metadata_bytes=64 * (len(with_item) + len(nodes) + len(chains)) + 48 * mm_slots,
            merge_cpu_ns=sum(s.cpu_ns for s in spaces),
            cow_breaks=sum(self.cow_breaks[plan] for plan in plans),
            cow_cpu_ns=sum(self.cow_ns[plan] for plan in plans),
            cross_domain_pages=cross,
            cross_domain_sensitive_pages=cross_sensitive,
            unmerge_frames=needed + len(placed),
            scanner_cpu_ns=sum(s.cpu_ns - s.call_ns - s.unmerge_ns for s in spaces),
            caller_cpu_ns=sum(s.call_ns for s in spaces),
            merging_cpu_ns=sum(s.merging_ns for s in spaces),
            split_cpu_ns=sum(s.n_splits for s in spaces) * self.cost.split_ns,
            unmerge_cpu_ns=sum(s.unmerge_ns for s in spaces),
            huge_splits=sum(s.n_splits for s in spaces),
        )
