"""mm/ksm.c, function by function, for kernels 6.1 and 6.12 to 6.18.

Names are the kernel's. `Ksm.is_m61` tells the two generations apart: 6.1 searches the stable tree
before it looks at the checksum, and handles full stable nodes and chains differently; it has no
smart scan. Locks always succeed and no page is pinned or in an LRU batch. One NUMA node.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.oracles.kernel_ksm.memory import Memory, Mm, Page, Vma
from tests.oracles.kernel_ksm.rbtree import RbNode, RbTree

#: sizeof(struct ksm_rmap_item) on x86-64.
RMAP_ITEM_BYTES = 64
PAGE_BYTES = 4096


class RmapItem(RbNode):
    """struct ksm_rmap_item. UNSTABLE_FLAG is `is_unstable`, STABLE_FLAG is `is_stable`."""

    def __init__(self, mm: Mm, vpn: int) -> None:
        self.mm, self.vpn = mm, vpn
        self.rmap_list: RmapItem | None = None
        self.oldchecksum = 0
        self.age = 0
        self.remaining_skips = 0
        self.is_unstable = False
        self.is_stable = False
        self.seqnr = 0
        self.head: StableNode | None = None


class StableNode(RbNode):
    """struct ksm_stable_node with a page: in the tree, or a dup of `chain`.

    `hlist` holds its rmap_items, newest first.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hlist: list[RmapItem] = []
        self.chain: StableChain | None = None


class StableChain(RbNode):
    """struct ksm_stable_node with STABLE_NODE_CHAIN: dups of one content, newest first."""

    def __init__(self, now_ms: int) -> None:
        self.dups: list[StableNode] = []
        self.prune_time_ms = now_ms


class MmSlot:
    """struct ksm_mm_slot: the head of a singly linked list of rmap_items sorted by address."""

    def __init__(self, mm: Mm) -> None:
        self.mm = mm
        self.rmap_list: RmapItem | None = None


class Ksm:
    """The global state of mm/ksm.c on top of a Memory.

    `checksum` and `order` give a content's 32-bit checksum and its place in memcmp's order.
    `now_ms` is the clock that chains are pruned by.
    """

    def __init__(self, memory: Memory, *, checksum: Callable[[int], int],
                 order: Callable[[int], int]) -> None:
        self.memory = memory
        self.checksum, self.order = checksum, order
        self.is_m61 = memory.kernel < (6, 12)
        self.zero_checksum = checksum(0)
        self.mm_slots: list[MmSlot] = []
        # struct ksm_scan; no slot is &ksm_mm_head, and rmap_list is what points to the next item
        self.cursor: MmSlot | None = None
        self.address = 0
        self.rmap_list: MmSlot | RmapItem | None = None
        self.seqnr = 0
        self.stable_tree = RbTree()
        self.unstable_tree = RbTree()
        self.now_ms = 0
        self.run = 0
        self.max_page_sharing = 256
        self.use_zero_pages = 0
        self.smart_scan = 0 if self.is_m61 else 1
        self.prune_ms = 2000
        self.rmap_items = 0
        self.pages_shared = 0
        self.pages_sharing = 0
        self.pages_unshared = 0
        self.pages_scanned = 0
        self.pages_skipped = 0
        self.n_chains = 0
        self.n_dups = 0

    # ---- stable nodes and chains --------------------------------------------------------------

    def stable_node_chain_add_dup(self, dup: StableNode, chain: StableChain) -> None:
        chain.dups.insert(0, dup)
        dup.chain = chain
        self.n_dups += 1

    def stable_node_dup_del(self, dup: StableNode) -> None:
        if dup.chain is None:
            self.stable_tree.erase(dup)
        else:
            dup.chain.dups.remove(dup)
            dup.chain = None
            self.n_dups -= 1

    def alloc_stable_node_chain(self, dup: StableNode) -> StableChain:
        chain = StableChain(self.now_ms)
        self.n_chains += 1
        self.stable_tree.replace(dup, chain)
        self.stable_node_chain_add_dup(dup, chain)
        return chain

    def free_stable_node_chain(self, chain: StableChain) -> None:
        self.stable_tree.erase(chain)
        self.n_chains -= 1

    def remove_node_from_stable_tree(self, node: StableNode) -> None:
        for item in node.hlist:
            if item is node.hlist[-1]:
                self.pages_shared -= 1
            else:
                self.pages_sharing -= 1
            item.mm.ksm_merging_pages -= 1
            item.is_stable = False
        node.hlist = []
        self.stable_node_dup_del(node)

    def ksm_get_folio(self, node: StableNode) -> Page | None:
        """The node's page; if that is gone, the node goes too."""
        if not node.page.is_free and node.page.node is node:
            return node.page
        self.remove_node_from_stable_tree(node)
        return None

    def is_page_sharing_candidate(self, node: StableNode, offset: int = 0) -> bool:
        return bool(node.hlist) and len(node.hlist) + offset < self.max_page_sharing

    # ---- rmap_items ---------------------------------------------------------------------------

    def remove_rmap_item_from_tree(self, item: RmapItem) -> None:
        if item.is_stable:
            node = item.head
            assert node is not None
            if self.ksm_get_folio(node) is None:
                return
            node.hlist.remove(item)
            if node.hlist:
                self.pages_sharing -= 1
            else:
                self.pages_shared -= 1
            item.mm.ksm_merging_pages -= 1
            item.head = None
            item.is_stable = False
        elif item.is_unstable:
            age = (self.seqnr - item.seqnr) & 0xFF
            assert age <= 1
            if age == 0:
                self.unstable_tree.erase(item)
            self.pages_unshared -= 1
            item.is_unstable = False

    def remove_trailing_rmap_items(self, link: MmSlot | RmapItem) -> None:
        while link.rmap_list is not None:
            self._drop_next_item(link)

    def _drop_next_item(self, link: MmSlot | RmapItem) -> None:
        item = link.rmap_list
        assert item is not None
        link.rmap_list = item.rmap_list
        self.remove_rmap_item_from_tree(item)
        self.rmap_items -= 1
        item.mm.ksm_rmap_items -= 1

    def get_next_rmap_item(self, slot: MmSlot, link: MmSlot | RmapItem, vpn: int) -> RmapItem:
        while link.rmap_list is not None:
            item = link.rmap_list
            if item.vpn == vpn:
                return item
            if item.vpn > vpn:
                break
            self._drop_next_item(link)
        item = RmapItem(slot.mm, vpn)
        self.rmap_items += 1
        slot.mm.ksm_rmap_items += 1
        item.rmap_list = link.rmap_list
        link.rmap_list = item
        return item

    def should_skip_rmap_item(self, page: Page, item: RmapItem) -> bool:
        if not self.smart_scan or page.is_ksm:
            return False
        age = item.age
        if age != 255:
            item.age += 1
        if age < 3:
            return False
        if item.remaining_skips == 0:
            item.remaining_skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        self.pages_skipped += 1
        item.remaining_skips -= 1
        self.remove_rmap_item_from_tree(item)
        return True

    # ---- merging ------------------------------------------------------------------------------

    def find_mergeable_vma(self, mm: Mm, vpn: int) -> Vma | None:
        vma = None if mm.is_exited else mm.vma_at(vpn)
        if vma is None or not vma.is_mergeable or vma.anon_vma is None:
            return None
        return vma

    def get_mergeable_page(self, item: RmapItem) -> Page | None:
        if self.find_mergeable_vma(item.mm, item.vpn) is None:
            return None
        return item.mm.page_at(item.vpn)

    def break_cow(self, item: RmapItem) -> None:
        if self.find_mergeable_vma(item.mm, item.vpn) is not None:
            self.memory.break_ksm(item.mm, item.vpn)

    def try_to_merge_one_page(self, item: RmapItem, page: Page, kpage: Page | None,
                              n_refs: int = 1, *, is_zero_page: bool = False) -> bool:
        """Replace the page by `kpage` in this one PTE; by the zero page if `is_zero_page`;
        without either, make it a KSM page. `n_refs`: references ksmd holds on the folio.
        """
        if page is kpage:
            return True
        if page.is_ksm:
            return False  # write_protect_page: a KSM page has no anon_vma to find its address by
        if page.folio.is_large and not self.memory.split_folio(page.folio, n_refs):
            return False
        pte = item.mm.pte_at(item.vpn)
        if pte is None or pte.page is not page:
            return False  # write_protect_page does not find it
        page.is_exclusive = False
        if is_zero_page:
            if page.content != 0:
                return False
            pte.page = None
            if self.memory.kernel >= (6, 6):
                pte.is_ksm_zero = True
                self.memory.ksm_zero_pages += 1
                item.mm.ksm_zero_pages += 1
        elif kpage is None:
            page.is_ksm = True
            return True
        else:
            if page.content != kpage.content:
                return False
            pte.page = kpage
            kpage.n_pte_maps += 1
        self.memory.unmap_pte(page)
        return True

    def try_to_merge_with_ksm_page(self, item: RmapItem, page: Page, kpage: Page | None,
                                   n_refs: int = 1) -> bool:
        if self.find_mergeable_vma(item.mm, item.vpn) is None:
            return False
        if not self.try_to_merge_one_page(item, page, kpage, n_refs):
            return False
        self.remove_rmap_item_from_tree(item)
        return True

    def try_to_merge_two_pages(self, item: RmapItem, page: Page, tree_item: RmapItem,
                               tree_page: Page) -> bool:
        n_refs = 2 if page.folio is tree_page.folio else 1
        if not self.try_to_merge_with_ksm_page(item, page, None, n_refs):
            return False
        if self.try_to_merge_with_ksm_page(tree_item, tree_page, page):
            return True
        self.break_cow(item)
        return False

    def try_to_merge_with_zero_page(self, item: RmapItem, page: Page) -> bool:
        """Whether this page needs no more care: merged, or its VMA is gone."""
        if not self.use_zero_pages or item.oldchecksum != self.zero_checksum:
            return False
        if self.find_mergeable_vma(item.mm, item.vpn) is None:
            return True
        return self.try_to_merge_one_page(item, page, None, is_zero_page=True)

    # ---- the stable tree ----------------------------------------------------------------------

    def stable_node_dup(self, chain: StableChain, is_pruning: bool
                        ) -> tuple[StableNode | None, StableNode | StableChain]:
        """The dup to use and what then stands in the tree: the chain, or its only dup.

        No dup means: (6.12) there is none left alive and the chain is freed; (6.1) none can take
        another page.
        """
        if not is_pruning or self.now_ms < chain.prune_time_ms + self.prune_ms:
            is_pruning = False
        else:
            chain.prune_time_ms = self.now_ms
        found: StableNode | None = None
        found_len = n_live = 0
        for dup in list(chain.dups):
            if self.ksm_get_folio(dup) is None:
                continue
            n_live += 1
            is_candidate = self.is_page_sharing_candidate(dup)
            if self.is_m61:
                is_better = is_candidate and (found is None or len(dup.hlist) > found_len)
            else:
                is_better = found is None or (is_candidate and (
                    not self.is_page_sharing_candidate(found) or len(dup.hlist) > found_len))
            if is_better:
                found, found_len = dup, len(dup.hlist)
                if not is_pruning and is_candidate:
                    break
        if found is None:
            if not self.is_m61:
                self.free_stable_node_chain(chain)
            return None, chain
        if (is_pruning and n_live == 1) if self.is_m61 else chain.dups == [found]:
            self.stable_tree.replace(chain, found)
            found.chain = None
            self.n_chains -= 1
            self.n_dups -= 1
            return found, found
        if chain.dups[0] is not found and self.is_page_sharing_candidate(found, 1):
            chain.dups.remove(found)
            chain.dups.insert(0, found)
        return found, chain

    def chain(self, node: RbNode, is_pruning: bool
              ) -> tuple[Page | None, StableNode | None, StableNode | StableChain]:
        """chain and chain_prune: the page to compare with, the dup to use, what is in the tree.

        No page: something was deleted, and the search must start again. Without a dup (6.1) the
        page only serves to compare.
        """
        assert isinstance(node, StableNode | StableChain)
        dup: StableNode | None
        if isinstance(node, StableChain):
            dup, node = self.stable_node_dup(node, is_pruning)
        elif self.is_m61 and not self.is_page_sharing_candidate(node):
            dup = None
        else:
            return self.ksm_get_folio(node), node, node
        if dup is not None:
            return dup.page, dup, node
        if not self.is_m61:
            return None, None, node
        if isinstance(node, StableChain):  # stable_node_dup_any
            if not node.dups:
                self.free_stable_node_chain(node)
                return None, None, node
            return self.ksm_get_folio(node.dups[0]), None, node
        return self.ksm_get_folio(node), None, node

    def stable_tree_search(self, page: Page) -> Page | None:
        if page.node is not None:
            return page
        order = self.order(page.content)
        at = self.stable_tree.root
        while at is not None:
            tree_page, dup, node = self.chain(at, is_pruning=True)
            if tree_page is None:
                at = self.stable_tree.root
                continue
            tree_order = self.order(tree_page.content)
            if order == tree_order:
                if dup is None or not self.is_page_sharing_candidate(dup):
                    return None
                return dup.page
            at = node.rb_left if order < tree_order else node.rb_right
        return None

    def stable_tree_insert(self, kpage: Page) -> StableNode:
        order = self.order(kpage.content)
        parent: RbNode | None = None
        is_left = False
        twin: StableNode | StableChain | None = None
        at = self.stable_tree.root
        while at is not None:
            tree_page, _, node = self.chain(at, is_pruning=False)
            if tree_page is None:
                parent, at = None, self.stable_tree.root
                continue
            tree_order = self.order(tree_page.content)
            if order == tree_order:
                twin = node
                break
            parent, is_left = node, order < tree_order
            at = node.rb_left if is_left else node.rb_right
        new = StableNode(kpage)
        if twin is None:
            self.stable_tree.link(new, parent, is_left)
        else:
            chain = self.alloc_stable_node_chain(twin) if isinstance(twin, StableNode) else twin
            self.stable_node_chain_add_dup(new, chain)
        kpage.node = new
        return new

    def stable_tree_append(self, item: RmapItem, node: StableNode) -> None:
        item.head = node
        item.is_stable = True
        node.hlist.insert(0, item)
        if len(node.hlist) > 1:
            self.pages_sharing += 1
        else:
            self.pages_shared += 1
        item.mm.ksm_merging_pages += 1

    # ---- the unstable tree --------------------------------------------------------------------

    def unstable_tree_search_insert(self, item: RmapItem, page: Page
                                    ) -> tuple[RmapItem, Page] | None:
        order = self.order(page.content)
        parent: RbNode | None = None
        is_left = False
        at = self.unstable_tree.root
        while at is not None:
            assert isinstance(at, RmapItem)
            tree_page = self.get_mergeable_page(at)
            if tree_page is None or tree_page is page:
                return None
            tree_order = self.order(tree_page.content)
            if order == tree_order:
                return at, tree_page
            parent, is_left = at, order < tree_order
            at = at.rb_left if is_left else at.rb_right
        item.is_unstable = True
        item.seqnr = self.seqnr & 0xFF
        self.unstable_tree.link(item, parent, is_left)
        self.pages_unshared += 1
        return None

    # ---- one page -----------------------------------------------------------------------------

    def cmp_and_merge_page(self, page: Page, item: RmapItem) -> None:
        node = page.node
        if node is not None and item.head is node:
            return
        if node is None and not self.is_m61:
            self.remove_rmap_item_from_tree(item)
            if not self._is_unchanged(page, item) or self.try_to_merge_with_zero_page(item, page):
                return
        kpage = self.stable_tree_search(page)
        self.remove_rmap_item_from_tree(item)
        if kpage is not None:
            if self.try_to_merge_with_ksm_page(item, page, kpage):
                assert kpage.node is not None
                self.stable_tree_append(item, kpage.node)
            return
        if self.is_m61 and (not self._is_unchanged(page, item)
                            or self.try_to_merge_with_zero_page(item, page)):
            return
        found = self.unstable_tree_search_insert(item, page)
        if found is None:
            return
        tree_item, tree_page = found
        if self.try_to_merge_two_pages(item, page, tree_item, tree_page):
            new = self.stable_tree_insert(page)
            self.stable_tree_append(tree_item, new)
            self.stable_tree_append(item, new)
        elif page.folio.is_large and page.folio is tree_page.folio:
            self.memory.split_folio(page.folio, 1)

    def _is_unchanged(self, page: Page, item: RmapItem) -> bool:
        checksum = self.checksum(page.content)
        if item.oldchecksum == checksum:
            return True
        item.oldchecksum = checksum
        return False

    # ---- scanning -----------------------------------------------------------------------------

    def scan_get_next_rmap_item(self) -> tuple[RmapItem, Page] | None:
        if not self.mm_slots:
            return None
        if self.cursor is None:
            self.unstable_tree = RbTree()
            self._enter_slot(self.mm_slots[0])
        while self.cursor is not None:
            slot, mm = self.cursor, self.cursor.mm
            if not mm.is_exited:
                found = self._next_in_slot(slot)
                if found is not None:
                    return found
            else:
                self.address, self.rmap_list = 0, slot
            assert self.rmap_list is not None
            self.remove_trailing_rmap_items(self.rmap_list)
            following = self._slot_after(slot)
            if self.address == 0:
                self.mm_slots.remove(slot)
                mm.slot = None
                mm.is_registered = False
            if following is None:
                self.cursor = None
            else:
                self._enter_slot(following)
        self.seqnr += 1
        return None

    def _enter_slot(self, slot: MmSlot) -> None:
        self.cursor, self.address, self.rmap_list = slot, 0, slot

    def _slot_after(self, slot: MmSlot) -> MmSlot | None:
        at = self.mm_slots.index(slot) + 1
        return self.mm_slots[at] if at < len(self.mm_slots) else None

    def _next_in_slot(self, slot: MmSlot) -> tuple[RmapItem, Page] | None:
        mm = slot.mm
        for vma in mm.vmas:
            if vma.end <= self.address or not vma.is_mergeable:
                continue
            self.address = max(self.address, vma.start)
            if vma.anon_vma is None:
                self.address = vma.end
            while self.address < vma.end:
                here = mm.first_page(self.address, vma.end)
                if here is None:
                    self.address = vma.end
                    break
                self.address, page = here
                assert self.rmap_list is not None
                item = self.get_next_rmap_item(slot, self.rmap_list, self.address)
                self.rmap_list = item
                self.address += 1
                if not self.should_skip_rmap_item(page, item):
                    return item, page
        return None

    def ksm_do_scan(self, n_pages: int) -> bool:
        """One batch; whether it ended a full scan (or nothing is registered)."""
        for _ in range(n_pages):
            found = self.scan_get_next_rmap_item()
            if found is None:
                return True
            item, page = found
            self.cmp_and_merge_page(page, item)
            self.pages_scanned += 1
        return False

    # ---- registration -------------------------------------------------------------------------

    def ksm_enter(self, mm: Mm) -> None:
        slot = MmSlot(mm)
        mm.slot = slot
        mm.is_registered = True
        if self.run & 2 or self.cursor is None:
            self.mm_slots.append(slot)
        else:
            self.mm_slots.insert(self.mm_slots.index(self.cursor), slot)

    def ksm_fork(self, child: Mm, parent: Mm) -> None:
        """The child's counters begin as copies (dup_mm's memcpy); since 6.4 a registered child's
        are cleared, and its zero pages are counted.
        """
        child.ksm_merging_pages = parent.ksm_merging_pages
        child.ksm_rmap_items = parent.ksm_rmap_items
        child.ksm_zero_pages = parent.ksm_zero_pages
        child.is_merge_any = parent.is_merge_any
        if parent.is_registered:
            if not self.is_m61:
                child.ksm_merging_pages = child.ksm_rmap_items = 0
                self.memory.ksm_zero_pages += child.ksm_zero_pages
            self.ksm_enter(child)

    def ksm_exit(self, mm: Mm) -> None:
        """__ksm_exit: `mm.is_exited` is set by now; its pages go after this."""
        slot = mm.slot
        if slot is None or slot is self.cursor:
            return
        self.mm_slots.remove(slot)
        if slot.rmap_list is None:
            mm.slot = None
            mm.is_registered = False
        else:
            at = 0 if self.cursor is None else self.mm_slots.index(self.cursor) + 1
            self.mm_slots.insert(at, slot)

    def unmerge_ksm_pages(self, vma: Vma, mm: Mm, start: int, end: int) -> None:
        if vma.is_mergeable and vma.anon_vma is not None:
            for vpn in range(start, end):
                self.memory.break_ksm(mm, vpn)

    # ---- run 2 and what it allows -------------------------------------------------------------

    def unmerge_and_remove_all_rmap_items(self) -> None:
        for slot in list(self.mm_slots):
            mm = slot.mm
            if not mm.is_exited:
                for vma in mm.vmas:
                    self.unmerge_ksm_pages(vma, mm, vma.start, vma.end)
            self.remove_trailing_rmap_items(slot)
            if mm.is_exited:
                self.mm_slots.remove(slot)
                mm.slot = None
                mm.is_registered = False
        self.cursor = None
        self.remove_all_stable_nodes()
        self.seqnr = 0

    def _remove_stable_node(self, node: StableNode) -> bool:
        """Whether it is gone: a node whose page is mapped stays."""
        return self.ksm_get_folio(node) is None

    def remove_all_stable_nodes(self) -> bool:
        """Whether none is left."""
        while self.stable_tree.root is not None:
            top = self.stable_tree.root
            if isinstance(top, StableChain):
                if not all(self._remove_stable_node(dup) for dup in list(top.dups)):
                    return False
                self.free_stable_node_chain(top)
            else:
                assert isinstance(top, StableNode)
                if not self._remove_stable_node(top):
                    return False
        return True
