"""Values put in place of those of a file: `--set KEY=VALUE`, and the cases of a sweep."""

from __future__ import annotations

import re
from dataclasses import replace

from planner.scenario.nodes import FORBIDDEN, Found, Node, Place, ReadError, build_nodes
from planner.scenario.words import did_you_mean, what_is

__all__ = ["override", "replaced"]


def override(root: Node, text: str, number: int, found: list[Found]) -> Node:
    """The tree with one `key.path=value` applied; faults are added to `found`."""
    key_path, equals, value_text = text.partition("=")
    start = Place(1, 1, number)
    if not equals or not key_path.strip():
        found.append(Found(
            "expected KEY=VALUE, such as policies.NAME.merge.ksmd.pages_to_scan=200", start))
        return root
    match = FORBIDDEN.search(text)
    if match is not None:
        found.append(Found(f"holds character U+{ord(match.group()):04X}", start))
        return root
    place = Place(1, len(key_path) + 2, number)
    try:
        node = build_nodes(value_text, found, place)
        if node is None:
            raise ReadError("the value is empty", place)
        return replaced(root, key_path.strip(), node, start)
    except ReadError as stop:
        found.append(Found(stop.what, stop.place))
        return root


def replaced(node: Node, path: str, new: Node, place: Place) -> Node:
    """A copy of the tree with the value at `path` replaced; shared nodes stay as they are.

    `path` as `--set` takes it, such as `hosts.r750.count` or `hosts[0].count`; `place` is where it
    stands. Raises ReadError where it leads nowhere.
    """
    return _replaced(node, _steps(path, place), new)


#: A part of a path and where it stands.
_Step = tuple[str, Place]


def _steps(path: str, place: Place) -> list[_Step]:
    steps = []
    column = place.column
    for piece in path.split("."):
        match = re.fullmatch(r"([^][]+)((?:\[[0-9]{1,6}\])+)", piece, re.ASCII)
        name = match[1] if match else piece
        steps.append((name, place._replace(column=column)))
        for index in re.finditer(r"[0-9]+", match[2] if match else "", re.ASCII):
            steps.append((index[0], place._replace(column=column + len(name) + index.start())))
        column += len(piece) + 1
    return steps


def _replaced(node: Node, steps: list[_Step], new: Node) -> Node:
    if not steps:
        return new
    key, here = steps[0]
    if isinstance(node.value, list):
        index, n_steps = _list_index(node, steps)
        items = list(node.value)
        items[index] = _replaced(items[index], steps[n_steps:], new)
        return replace(node, value=items)
    if not isinstance(node.value, dict):
        raise ReadError(f"{what_is(node.value)} has no settings of its own", here)
    changed = _replaced(node.value.get(key, Node({}, here)), steps[1:], new)
    return replace(
        node,
        value={**node.value, key: changed},
        key_places={**node.key_places, key: here if key not in node.value else
                    node.key_places[key] if steps[1:] else here},
    )


def _list_index(node: Node, steps: list[_Step]) -> tuple[int, int]:
    """Which entry `steps` name, by number or by `name` (which may hold dots)."""
    names = [item.value["name"].raw if isinstance(item.value, dict) and "name" in item.value
             else "" for item in node.value]
    for n_steps in range(len(steps), 0, -1):
        name = ".".join(step for step, _ in steps[:n_steps])
        if name and name in names:
            return names.index(name), n_steps
    key, here = steps[0]
    if re.fullmatch(r"[0-9]{1,6}", key, re.ASCII):
        if int(key) < len(names):
            return int(key), 1
        raise ReadError(f"there is no entry {key}; the list has {len(names)}, counted from 0", here)
    raise ReadError(f"no entry is named {key!r}{did_you_mean(key, filter(None, names))}", here)
