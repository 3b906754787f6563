"""YAML text to nodes with line and column; the only file that imports a YAML parser.

The YAML is read from the parser's events, not through a constructor: so every duplicate key is
reported, scalars follow the YAML 1.2 core schema (`off`, `12:30` and dates stay text, `010` is
ten), nothing is built that was not asked for, and depth, size and alias expansion are bounded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
)

__all__ = ["FORBIDDEN", "MAX_FILE_BYTES", "Found", "Node", "Part", "Place", "ReadError",
           "build_nodes", "child_of", "decode", "plain_of"]

MAX_FILE_BYTES = 1 << 20
_MAX_VALUES = 50_000
_MAX_DEPTH = 40

Part = str | int
_INT = re.compile(r"[-+]?[0-9]{1,30}|0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,6})?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    re.ASCII,
)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False,
          "FALSE": False}
#: Characters YAML does not allow in a file, and line separators that would confuse line numbers.
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
)


class Place(NamedTuple):
    """Line and column from 1. `override` is the number of the `--set`, 0 for the file."""

    line: int
    column: int
    override: int = 0


@dataclass(slots=True)
class Node:
    """A value of the file: mappings and lists hold nodes, scalars plain Python values."""

    value: Any
    place: Place
    raw: str = ""
    key_places: dict[str, Place] = field(default_factory=dict)
    n_values: int = 1


class ReadError(Exception):
    """Carries the problem that ends the reading."""

    def __init__(self, what: str, place: Place) -> None:
        self.what, self.place = what, place


class Found(NamedTuple):
    """A problem and where it is, if it has a place."""

    what: str
    place: Place | None


def child_of(node: Node, part: Part) -> Node | None:
    """The value under a key or list position, if there is one."""
    found: Node | None = None
    if isinstance(node.value, dict):
        found = node.value.get(part)
    elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        found = node.value[part]
    return found


def decode(data: bytes) -> str:
    """The text of a file; raises ReadError where it cannot be one of a scenario."""
    if len(data) > MAX_FILE_BYTES:
        raise ReadError("larger than 1 MiB; a scenario is a few hundred lines", Place(0, 0))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        raise ReadError(
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8",
            Place(before.count(b"\n") + 1, column),
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    match = FORBIDDEN.search(text)
    if match is not None:
        start = match.start()
        name = "a NUL byte" if match.group() == "\0" else f"character U+{ord(match.group()):04X}"
        raise ReadError(
            f"holds {name}, which does not belong in a scenario",
            Place(text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)),
        )
    return text


def _events(text: str, origin: Place) -> Iterator[Any]:
    """Parser events; every fault of the parser becomes a ReadError with its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = (error.problem or error.context or "no reason given").strip()
            if "'\\t'" in what:
                what = "a tab cannot start a value; indent with spaces"
            elif error.context and error.context != what:
                what = f"{what} {error.context.strip()}"
                start = error.context_mark
                if start is not None and re.search("end of stream|<stream end>", what):
                    mark = start  # the end of the file is no help
                elif start is not None and mark is not None and start.line != mark.line:
                    what += f" that starts on line {start.line + origin.line}"
            place = origin if mark is None else _shift(mark, origin)
            raise ReadError(f"not valid YAML: {what}", place) from None
        except YAMLError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise ReadError(f"not valid YAML: {first_line}", origin) from None
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError,
                AssertionError, NotImplementedError, RecursionError) as error:
            # The parser lets faults of its own out on some malformed texts.
            raise ReadError(f"not valid YAML: {error}", origin) from None


def _shift(mark: Any, origin: Place) -> Place:
    column = mark.column + (origin.column if mark.line == 0 else 1)
    return Place(mark.line + origin.line, column, origin.override)


@dataclass(slots=True)
class _Frame:
    node: Node
    anchor: str | None
    key: str | None = None
    #: True while the value under way belongs to no key (it was refused).
    is_dropped: bool = False
    is_key_next: bool = True


def build_nodes(text: str, found: list[Found], origin: Place) -> Node | None:
    """Nodes of the one document in `text`; None where there is none."""
    stack: list[_Frame] = []
    anchors: dict[str, Node | None] = {}
    root: Node | None = None
    n_documents = 0

    def add(node: Node, is_plain_key: bool) -> None:
        nonlocal root
        if not stack:
            root = node
            return
        frame = stack[-1]
        parent = frame.node
        parent.n_values += node.n_values
        if parent.n_values > _MAX_VALUES:
            raise ReadError(f"more than {_MAX_VALUES} values, aliases counted where they are used",
                        node.place)
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif frame.is_key_next:
            frame.is_key_next, frame.is_dropped = False, True
            if not is_plain_key:
                found.append(Found("a key must be a single word", node.place))
            elif node.raw == "<<":
                found.append(Found("merge keys (<<) are not supported; write the settings out",
                                    node.place))
            elif node.raw in parent.key_places:
                first = parent.key_places[node.raw]
                found.append(Found(f"{node.raw!r} is given twice; first on line {first.line}",
                                    node.place))
            else:
                parent.key_places[node.raw] = node.place
                frame.key, frame.is_dropped = node.raw, False
        else:
            if not frame.is_dropped and frame.key is not None:
                parent.value[frame.key] = node
            frame.key, frame.is_key_next, frame.is_dropped = None, True, False

    for n_events, event in enumerate(_events(text, origin)):
        place = _shift(event.start_mark, origin)
        if n_events > 2 * _MAX_VALUES:
            raise ReadError(f"more than {_MAX_VALUES} values", place)
        if isinstance(event, DocumentStartEvent):
            n_documents += 1
            if n_documents > 1:
                raise ReadError("a second document starts here; a scenario is one document", place)
        elif isinstance(event, CollectionEndEvent):
            frame = stack.pop()
            if frame.anchor:
                anchors[frame.anchor] = frame.node
            add(frame.node, False)
        elif isinstance(event, AliasEvent):
            name = str(event.anchor)
            target = anchors.get(name)
            if target is None:
                fault = "refers to itself" if name in anchors else "is not defined above"
                raise ReadError(f"alias *{name} {fault}", place)
            add(target, isinstance(target.value, str))
        elif isinstance(event, CollectionStartEvent | ScalarEvent):
            if event.tag is not None:
                found.append(Found(f"tag {str(event.tag)[:40]!r} is not supported; "
                                    "write the plain value", place))
            anchor = str(event.anchor) if event.anchor else None
            if isinstance(event, ScalarEvent):
                is_plain = bool(event.implicit[0]) and event.style in (None, "")
                node = _scalar(str(event.value), is_plain, place, found)
                if anchor:
                    anchors[anchor] = node
                add(node, True)
            else:
                if len(stack) >= _MAX_DEPTH:
                    raise ReadError(f"nested more than {_MAX_DEPTH} levels deep", place)
                if anchor:
                    anchors[anchor] = None
                value: Any = {} if isinstance(event, MappingStartEvent) else []
                stack.append(_Frame(Node(value, place), anchor))
    return root


def _scalar(text: str, is_plain: bool, place: Place, found: list[Found]) -> Node:
    """A scalar by the YAML 1.2 core schema; quoted and block text stays text."""
    if not is_plain:
        # JSON writes characters beyond the basic plane as two escapes: join them.
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            found.append(Found("an escape gives half a character", place))
            text = text.encode("utf-8", "replace").decode("utf-8")
        return Node(text, place, text)
    value: Any = text
    if text in _NULLS:
        value = None
    elif text in _BOOLS:
        value = _BOOLS[text]
    elif _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        value = int(text, base)
    elif _FLOAT.fullmatch(text):
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return Node(value, place, text)


def plain_of(node: Node, path: tuple[Part, ...], nulls: list[tuple[Part, ...]]) -> Any:
    """Plain values of a node; the paths of empty ones are added to `nulls`."""
    if isinstance(node.value, dict):
        return {key: plain_of(item, (*path, key), nulls) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain_of(item, (*path, i), nulls) for i, item in enumerate(node.value)]
    if node.value is None:
        nulls.append(path)
    return node.value
