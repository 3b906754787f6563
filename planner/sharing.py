"""Who holds the same contents: matrices of memory between workloads, domains and labels.

Members of a matrix are the values of one key; a page belongs to the member its guest is in. All
figures are of the last moment of the run, of the pages that KSM was offered, without zero pages,
and before KSM's own records. Nothing merges across hosts, so hosts are counted apart and added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.fleet import FleetHost
from planner.scenario.spec import Scenario

__all__ = ["MAX_MEMBERS", "Matrix", "sharing_matrices"]

#: Members in a matrix; of more, those that hold most frames.
MAX_MEMBERS = 16
_MAX_LABELS = 3
_PAGE_BYTES = 4096
#: Contents multiplied at once: as float32 over all members this stays small.
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Matrix:
    """What members of `key` would free by merging, in bytes.

    `cells[i][j]` is what letting i and j merge with one another frees beside what each frees
    within itself (one frame a content that both hold), `cells[i][i]` what i frees within itself.
    `is_apart[i][j]`: the guests of i and j are of more than one trust group.
    `n_left_out` members hold fewer frames than all that are shown.
    """

    key: str
    members: tuple[str, ...]
    held_bytes: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]
    is_apart: tuple[tuple[bool, ...], ...]
    n_left_out: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {"key": self.key, "members": list(self.members),
                "held_bytes": list(self.held_bytes), "cells": [list(row) for row in self.cells],
                "is_apart": [list(row) for row in self.is_apart], "n_left_out": self.n_left_out}


def sharing_matrices(scenario: Scenario, hosts: Sequence[FleetHost]) -> tuple[Matrix, ...]:
    """One matrix by workload and one by domain, where there are two; then by labels of guests.

    A label is shown where it has 2 to `MAX_MEMBERS` values and divides the guests in a way that
    no matrix before it does; at most three are.
    """
    workload_of = {guest.name: workload.name for workload in scenario.workloads
                   for guest in workload.guests}
    keys: list[tuple[str, Callable[[FleetHost, int], str]]] = [
        ("workload", lambda host, guest: workload_of.get(host.guests[guest].name, "")),
        ("domain", lambda host, guest: host.guests[guest].domain)]
    labels = sorted({key for host in hosts for guest in host.guests for key in guest.labels}
                    - {"workload", "domain", "group", "guest"})
    keys += [(f"label {key}", partial(_label, key)) for key in labels]
    found: list[Matrix] = []
    seen: set[tuple[int, ...]] = set()
    for key, value_of in keys:
        values = [value_of(host, guest) for host in hosts for guest in range(len(host.guests))]
        division = tuple(values.index(value) for value in values)
        is_label = key.startswith("label ")
        if len(set(values)) < 2 or division in seen or (is_label and (
                len(set(values)) > MAX_MEMBERS or "" in values
                or sum(each.key.startswith("label ") for each in found) >= _MAX_LABELS)):
            continue
        seen.add(division)
        found.append(_matrix(key, hosts, value_of))
    return tuple(found)


def _label(key: str, host: FleetHost, guest: int) -> str:
    return host.guests[guest].labels.get(key, "")


def _matrix(key: str, hosts: Sequence[FleetHost],
            value_of: Callable[[FleetHost, int], str]) -> Matrix:
    names = sorted({value_of(host, guest) for host in hosts for guest in range(len(host.guests))})
    ids = {name: index for index, name in enumerate(names)}
    groups: list[set[str]] = [set() for _ in names]
    pairs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    held = np.zeros(len(names), np.int64)
    for host in hosts:
        member_of_guest = np.array([ids[value_of(host, guest)]
                                    for guest in range(len(host.guests))], np.int64)
        for guest, member in zip(host.guests, member_of_guest.tolist(), strict=True):
            groups[member].add(guest.group)
        member, content = _held(host, member_of_guest)
        held += np.bincount(member, minlength=len(names))
        pairs.append((member, content))
    order = np.argsort(-held, kind="stable")[:MAX_MEMBERS]
    shown = np.sort(order)
    cells = sum((_cells(member, content, shown) for member, content in pairs),
                np.zeros((len(shown), len(shown)), np.int64)) * _PAGE_BYTES
    return Matrix(
        key, tuple(names[index] for index in shown),
        tuple(int(held[index]) * _PAGE_BYTES for index in shown),
        tuple(tuple(row) for row in cells.tolist()),
        tuple(tuple(len(groups[i] | groups[j]) > 1 for j in shown) for i in shown),
        len(names) - len(shown))


def _held(host: FleetHost, member_of_guest: npt.NDArray[np.int64],
          ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Member and content of every frame at the end that a member holds, once a member."""
    content, frame = host.memory_at_the_end()
    site = np.flatnonzero((host.site_eligible != 0) & (content >= 0))
    site = site[host.content_is_zero[content[site]] == 0]
    guest = np.array([mm.guest for mm in host.mms], np.int64)[host.site_mm[site]]
    member = member_of_guest[guest]
    first = np.unique(np.stack([member, frame[site].astype(np.int64)]), axis=1,
                      return_index=True)[1]
    return member[first], content[site[first]].astype(np.int64)


def _cells(member: npt.NDArray[np.int64], content: npt.NDArray[np.int64],
           shown: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Frames of one host that merging frees: within a member, and beside that between two."""
    rank = np.full(int(max(member.max(initial=0), shown.max(initial=0))) + 1, -1, np.int64)
    rank[shown] = np.arange(len(shown))
    is_shown = rank[member] >= 0
    member, content = rank[member[is_shown]], content[is_shown]
    distinct = np.unique(np.stack([content, member]), axis=1)
    cells = np.zeros((len(shown), len(shown)), np.int64)
    # Only contents of two members or more have anything between members.
    _, place, n_members = np.unique(distinct[0], return_inverse=True, return_counts=True)
    is_common = n_members[place] > 1
    common, holder = np.unique(place[is_common], return_inverse=True)[1], distinct[1][is_common]
    for start in range(0, int(common.max(initial=-1)) + 1, _CHUNK):
        here = (common >= start) & (common < start + _CHUNK)
        holds = np.zeros((_CHUNK, len(shown)), np.float32)
        holds[common[here] - start, holder[here]] = 1
        cells += np.rint(holds.T @ holds).astype(np.int64)
    frames = np.bincount(member, minlength=len(shown))
    np.fill_diagonal(cells, frames - np.bincount(distinct[1], minlength=len(shown)))
    return cells
