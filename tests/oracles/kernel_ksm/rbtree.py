"""The kernel's red-black tree (lib/rbtree.c), rotation by rotation.

Its exact shape matters: a descent deletes the stale nodes it meets and gives up at pages it cannot
get, so which nodes lie on the way decides counters.
"""

from __future__ import annotations


class RbNode:
    """struct rb_node: what is put into a tree derives from it."""

    rb_left: RbNode | None = None
    rb_right: RbNode | None = None
    rb_parent: RbNode | None = None
    rb_is_red: bool = False


def _is_black(node: RbNode | None) -> bool:
    return node is None or not node.rb_is_red


class RbTree:
    """struct rb_root. Searching is the owner's business: it compares, then links."""

    def __init__(self) -> None:
        self.root: RbNode | None = None

    def link(self, node: RbNode, parent: RbNode | None, is_left: bool) -> None:
        """rb_link_node and rb_insert_color: hang `node` below `parent` and balance."""
        node.rb_parent, node.rb_left, node.rb_right, node.rb_is_red = parent, None, None, True
        if parent is None:
            self.root = node
        elif is_left:
            parent.rb_left = node
        else:
            parent.rb_right = node
        self._insert_color(node)

    def _change_child(self, old: RbNode, new: RbNode | None, parent: RbNode | None) -> None:
        if parent is None:
            self.root = new
        elif parent.rb_left is old:
            parent.rb_left = new
        else:
            parent.rb_right = new

    def _rotate_set_parents(self, old: RbNode, new: RbNode, is_red: bool) -> None:
        """`new` takes the place and colour of `old`, whose parent and colour become new's."""
        parent = old.rb_parent
        new.rb_parent, new.rb_is_red = parent, old.rb_is_red
        old.rb_parent, old.rb_is_red = new, is_red
        self._change_child(old, new, parent)

    def _insert_color(self, node: RbNode) -> None:
        parent = node.rb_parent
        while True:
            if parent is None:
                node.rb_is_red = False
                return
            if not parent.rb_is_red:
                return
            grand = parent.rb_parent
            assert grand is not None
            is_left = parent is grand.rb_left
            uncle = grand.rb_right if is_left else grand.rb_left
            if uncle is not None and uncle.rb_is_red:
                uncle.rb_is_red = parent.rb_is_red = False
                grand.rb_is_red = True
                node, parent = grand, grand.rb_parent
                continue
            if is_left:
                inner = parent.rb_right
                if node is inner:
                    inner = node.rb_left
                    parent.rb_right, node.rb_left = inner, parent
                    if inner is not None:
                        inner.rb_parent, inner.rb_is_red = parent, False
                    parent.rb_parent, parent.rb_is_red = node, True
                    parent = node
                    inner = node.rb_right
                grand.rb_left, parent.rb_right = inner, grand
            else:
                inner = parent.rb_left
                if node is inner:
                    inner = node.rb_right
                    parent.rb_left, node.rb_right = inner, parent
                    if inner is not None:
                        inner.rb_parent, inner.rb_is_red = parent, False
                    parent.rb_parent, parent.rb_is_red = node, True
                    parent = node
                    inner = node.rb_left
                grand.rb_right, parent.rb_left = inner, grand
            if inner is not None:
                inner.rb_parent, inner.rb_is_red = grand, False
            self._rotate_set_parents(grand, parent, True)
            return

    def replace(self, victim: RbNode, new: RbNode) -> None:
        """rb_replace_node: `new` takes the victim's place, unseen by the others."""
        new.rb_left, new.rb_right = victim.rb_left, victim.rb_right
        new.rb_parent, new.rb_is_red = victim.rb_parent, victim.rb_is_red
        for child in (new.rb_left, new.rb_right):
            if child is not None:
                child.rb_parent = new
        self._change_child(victim, new, victim.rb_parent)

    def erase(self, node: RbNode) -> None:
        """rb_erase."""
        rebalance = self._unlink(node)
        if rebalance is not None:
            self._erase_color(rebalance)

    def _unlink(self, node: RbNode) -> RbNode | None:
        """__rb_erase_augmented: take `node` out; where to balance from, if needed."""
        child, left, parent = node.rb_right, node.rb_left, node.rb_parent
        if left is None:
            self._change_child(node, child, parent)
            if child is not None:
                child.rb_parent, child.rb_is_red = parent, node.rb_is_red
                return None
            return None if node.rb_is_red else parent
        if child is None:
            left.rb_parent, left.rb_is_red = parent, node.rb_is_red
            self._change_child(node, left, parent)
            return None
        successor: RbNode = child
        if successor.rb_left is None:
            above, below = successor, successor.rb_right
        else:
            above = successor
            while successor.rb_left is not None:
                above, successor = successor, successor.rb_left
            below = successor.rb_right
            above.rb_left, successor.rb_right = below, child
            child.rb_parent = successor
        successor.rb_left = left
        left.rb_parent = successor
        self._change_child(node, successor, parent)
        rebalance: RbNode | None = None
        if below is not None:
            below.rb_parent, below.rb_is_red = above, False
        elif not successor.rb_is_red:
            rebalance = above
        successor.rb_parent, successor.rb_is_red = parent, node.rb_is_red
        return rebalance

    def _erase_color(self, parent: RbNode) -> None:
        node: RbNode | None = None
        while True:
            sibling = parent.rb_right
            if node is not sibling:
                assert sibling is not None
                if sibling.rb_is_red:
                    near = sibling.rb_left
                    assert near is not None
                    parent.rb_right, sibling.rb_left = near, parent
                    near.rb_parent, near.rb_is_red = parent, False
                    self._rotate_set_parents(parent, sibling, True)
                    sibling = near
                far = sibling.rb_right
                if _is_black(far):
                    near = sibling.rb_left
                    if _is_black(near):
                        sibling.rb_is_red = True
                        if not parent.rb_is_red and parent.rb_parent is not None:
                            node, parent = parent, parent.rb_parent
                            continue
                        parent.rb_is_red = False
                        return
                    assert near is not None
                    inner = near.rb_right
                    sibling.rb_left, near.rb_right, parent.rb_right = inner, sibling, near
                    if inner is not None:
                        inner.rb_parent, inner.rb_is_red = sibling, False
                    far, sibling = sibling, near
                inner = sibling.rb_left
                parent.rb_right, sibling.rb_left = inner, parent
            else:
                sibling = parent.rb_left
                assert sibling is not None
                if sibling.rb_is_red:
                    near = sibling.rb_right
                    assert near is not None
                    parent.rb_left, sibling.rb_right = near, parent
                    near.rb_parent, near.rb_is_red = parent, False
                    self._rotate_set_parents(parent, sibling, True)
                    sibling = near
                far = sibling.rb_left
                if _is_black(far):
                    near = sibling.rb_right
                    if _is_black(near):
                        sibling.rb_is_red = True
                        if not parent.rb_is_red and parent.rb_parent is not None:
                            node, parent = parent, parent.rb_parent
                            continue
                        parent.rb_is_red = False
                        return
                    assert near is not None
                    inner = near.rb_left
                    sibling.rb_right, near.rb_left, parent.rb_left = inner, sibling, near
                    if inner is not None:
                        inner.rb_parent, inner.rb_is_red = sibling, False
                    far, sibling = sibling, near
                inner = sibling.rb_right
                parent.rb_left, sibling.rb_right = inner, parent
            assert far is not None
            far.rb_parent, far.rb_is_red = sibling, False
            if inner is not None:
                inner.rb_parent = parent
            self._rotate_set_parents(parent, sibling, False)
            return
