"""Counting equal pages in dicts and loops, straight from the definitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def slow_counts(pages: Iterable[tuple[int, int, int, int]], zero_hash: int) -> dict[str, int]:
    """Counts over (label, guest, hash, frame id or -1), in ascending (label, guest) order."""
    seen: set[int] = set()
    copies: dict[int, dict[int, dict[int, int]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(int)))
    n_pages = n_already_shared = 0
    for label, guest, page_hash, frame in pages:
        n_pages += 1
        if frame >= 0 and frame in seen:
            n_already_shared += 1
            continue
        seen.add(frame)
        copies[page_hash][label][guest] += 1
    zero = copies.pop(zero_hash, {})

    def total(content: dict[int, dict[int, int]]) -> int:
        return sum(sum(guests.values()) for guests in content.values())

    def n_pairs(content: dict[int, dict[int, int]]) -> int:
        return sum(len(guests) for guests in content.values())

    contents = list(copies.values())
    per_label = [sum(guests.values()) for content in contents for guests in content.values()]
    per_guest = [n for content in contents for guests in content.values()
                 for n in guests.values()]
    return {
        "n_pages": n_pages,
        "n_frames": n_pages - n_already_shared,
        "n_already_shared": n_already_shared,
        "n_contents": len(contents),
        "n_unique": sum(total(c) == 1 for c in contents),
        "n_shared": sum(total(c) > 1 for c in contents),
        "n_duplicates": sum(total(c) - 1 for c in contents),
        "n_same_guest": sum(total(c) - n_pairs(c) for c in contents),
        "n_same_label": sum(n_pairs(c) - len(c) for c in contents),
        "n_other_label": sum(len(c) - 1 for c in contents),
        "n_shared_in_label": sum(n > 1 for n in per_label),
        "n_duplicates_in_label": sum(n - 1 for n in per_label),
        "n_shared_in_guest": sum(n > 1 for n in per_guest),
        "n_duplicates_in_guest": sum(n - 1 for n in per_guest),
        "n_zero": total(zero),
        "n_zero_guests": n_pairs(zero),
        "n_zero_labels": len(zero),
        "n_zero_duplicates": max(total(zero) - 1, 0),
        "n_zero_same_guest": total(zero) - n_pairs(zero),
        "n_zero_same_label": n_pairs(zero) - len(zero),
        "n_zero_other_label": max(len(zero) - 1, 0),
    }


def slow_twins(pages: Iterable[tuple[int, int, int, int]],
               zero_hash: int) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Per (label, guest): non-zero frames with another copy anywhere, in the label, the guest."""
    frames: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    for label, guest, page_hash, frame in pages:
        if page_hash != zero_hash and not (frame >= 0 and frame in seen):
            frames.append((label, guest, page_hash))
        seen.add(frame)
    anywhere: dict[object, int] = defaultdict(int)
    for label, guest, page_hash in frames:
        for key in ((page_hash,), (page_hash, label), (page_hash, label, guest)):
            anywhere[key] += 1
    twins: dict[tuple[int, int], tuple[int, int, int]] = {}
    for label, guest, page_hash in frames:
        a, b, c = twins.get((label, guest), (0, 0, 0))
        twins[label, guest] = (
            a + (anywhere[page_hash,] > 1), b + (anywhere[page_hash, label] > 1),
            c + (anywhere[page_hash, label, guest] > 1))
    return twins
