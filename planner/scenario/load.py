"""Scenario text to checked values with line and column; the only file that imports a YAML parser.

`read_scenario` gives a `RawScenario`: the model of the file (`planner.scenario.schema`), every
problem found so far, and `place_of` to find where a value stands. The YAML is read from the
parser's events, not through a constructor: so every duplicate key is reported, scalars follow
the YAML 1.2 core schema (`off`, `12:30` and dates stay text, `010` is ten), nothing is built
that was not asked for, and depth, size and alias expansion are bounded.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
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

from planner.errors import Problem, ScenarioError
from planner.scenario.schema import ResolvedDocument, ScenarioDocument, Strict, what_is

__all__ = ["Part", "RawScenario", "check_values", "did_you_mean", "parse_scenario",
           "read_scenario"]

MAX_FILE_BYTES = 1 << 20
_MAX_VALUES = 50_000
_MAX_DEPTH = 40
_MAX_PROBLEMS = 50
_MAX_SHOWN_COLUMNS = 160

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
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
)


class Place(NamedTuple):
    """Line and column from 1. `override` is the number of the `--set`, 0 for the file."""

    line: int
    column: int
    override: int = 0


@dataclass(slots=True)
class _Node:
    """A value of the file: mappings and lists hold nodes, scalars plain Python values."""

    value: Any
    place: Place
    raw: str = ""
    key_places: dict[str, Place] = field(default_factory=dict)
    n_values: int = 1


class _Stop(Exception):  # noqa: N818 - carries the problem that ends the reading
    def __init__(self, what: str, place: Place) -> None:
        self.what, self.place = what, place


class _Found(NamedTuple):
    what: str
    place: Place | None


def _child(node: _Node, part: Part) -> _Node | None:
    """The value under a key or list position, if there is one."""
    found: _Node | None = None
    if isinstance(node.value, dict):
        found = node.value.get(part)
    elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        found = node.value[part]
    return found


@dataclass(slots=True)
class RawScenario:
    """A scenario file after its own checks, before defaults and references are resolved.

    `document` is None where too little is right to go on. `doubtful` holds the paths of
    values that were wrong and replaced by something harmless, so that the rest can still be
    checked; `problems()` is empty only for a file without faults.
    """

    path: str
    base: Path
    lines: list[str]
    overrides: tuple[str, ...]
    root: _Node
    document: ScenarioDocument | ResolvedDocument | None = None
    doubtful: set[tuple[Part, ...]] = field(default_factory=set)
    found: list[_Found] = field(default_factory=list)

    def is_doubtful(self, *path: Part) -> bool:
        """Whether the value at `path`, a part of it or something around it was replaced."""
        return any(
            other[: len(path)] == path or path[: len(other)] == other for other in self.doubtful
        )

    def fault(self, path: Sequence[Part], what: str, *, at_key: bool = False) -> None:
        """Add a problem at the value (or the key) that `path` leads to."""
        self.found.append(_Found(what, self._place_of(path, at_key)))

    def doubt(self, path: tuple[Part, ...], what: str, *, at_key: bool = False) -> None:
        """Like `fault`, and checks that depend on the value are to be left out."""
        self.fault(path, what, at_key=at_key)
        self.doubtful.add(path)

    def place_of(self, path: Sequence[Part]) -> str:
        """`file:line:col` of the value that `path` leads to."""
        place = self._place_of(path, False)
        if place.override:
            return f"--set {self.overrides[place.override - 1]}"
        return f"{self.path}:{place.line}:{place.column}"

    def _place_of(self, path: Sequence[Part], at_key: bool) -> Place:
        # Parts that are not there (a missing key, one entry written without its list) are
        # passed over: the nearest value around them is the place.
        node, place = self.root, self.root.place
        for part in path:
            inner = _child(node, part)
            if inner is not None:
                place = node.key_places[str(part)] if at_key and part in node.key_places \
                    else inner.place
                node = inner
        return place

    def error(self) -> ScenarioError:
        """All problems as one error."""
        return _error(self.path, self.lines, self.overrides, self.found)


def read_scenario(path: str | Path, overrides: Sequence[str] = ()) -> RawScenario:
    """Read and check one file; raises ScenarioError where it cannot be read as YAML at all."""
    shown = str(path)
    try:
        if Path(path).is_dir():
            raise ScenarioError(shown, [Problem("is a folder; name the scenario file in it")])
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        base = Path(path).absolute().parent
    except FileNotFoundError:
        raise ScenarioError(shown, [Problem("no such file")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(shown, [Problem(f"cannot be read: {reason}")]) from None
    return parse_scenario(data, shown, base, overrides)


def parse_scenario(
    data: bytes, path: str, base: Path, overrides: Sequence[str] = ()
) -> RawScenario:
    """Check the text of a scenario. `path` is shown in errors, traces are relative to `base`."""
    found: list[_Found] = []
    lines: list[str] = []
    try:
        if len(data) <= MAX_FILE_BYTES:
            lines = data.decode("utf-8-sig", "replace").splitlines()
        text = _decode(data)
        lines = text.split("\n")
        root = _build(text, found, Place(1, 1))
        if root is None or (root.value is None and not root.raw):
            raise _Stop("the file is empty; see `planner schema` for what belongs in it",
                        Place(1, 1))
        for number, override in enumerate(overrides, start=1):
            root = _override(root, override, number, found)
    except _Stop as stop:
        found.append(_Found(stop.what, stop.place))
        raise _error(path, lines, overrides, found) from None
    raw = RawScenario(path, base, lines, tuple(overrides), root, found=found)
    if not isinstance(root.value, dict):
        raw.fault((), f"expected settings such as `planner: 1`, got {what_is(root.value)}")
        return raw
    _validate(raw)
    return raw


def check_values(values: Any, path: str) -> RawScenario:
    """Like `parse_scenario` for values that are no text; problems then have no place."""

    def node_of(value: Any) -> _Node:
        nowhere = Place(0, 0)
        if isinstance(value, dict):
            children = {str(key): node_of(item) for key, item in value.items()}
            return _Node(children, nowhere, key_places=dict.fromkeys(children, nowhere))
        if isinstance(value, list | tuple):
            return _Node([node_of(item) for item in value], nowhere)
        return _Node(value, nowhere, str(value))

    raw = RawScenario(path, Path(), [], (), node_of(values))
    if isinstance(raw.root.value, dict):
        _validate(raw)
    return raw


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, or else what is known."""
    names = sorted(set(known))
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold()[:80], by_folded, n=1)
    if close:
        return f"; did you mean {by_folded[close[0]]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12])
    return f"; known: {shown}{', ...' if len(names) > 12 else ''}"


# ---- text to nodes --------------------------------------------------------------------------


def _decode(data: bytes) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise _Stop("larger than 1 MiB; a scenario is a few hundred lines", Place(0, 0))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        raise _Stop(
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8",
            Place(before.count(b"\n") + 1, column),
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    match = _FORBIDDEN.search(text)
    if match is not None:
        start = match.start()
        name = "a NUL byte" if match.group() == "\0" else f"character U+{ord(match.group()):04X}"
        raise _Stop(
            f"holds {name}, which does not belong in a scenario",
            Place(text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)),
        )
    return text


def _events(text: str, origin: Place) -> Iterator[Any]:
    """Parser events; every fault of the parser becomes a _Stop with its place."""
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
            raise _Stop(f"not valid YAML: {what}", place) from None
        except YAMLError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise _Stop(f"not valid YAML: {first_line}", origin) from None
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError,
                AssertionError, NotImplementedError, RecursionError) as error:
            # The parser lets faults of its own out on some malformed texts.
            raise _Stop(f"not valid YAML: {error}", origin) from None


def _shift(mark: Any, origin: Place) -> Place:
    column = mark.column + (origin.column if mark.line == 0 else 1)
    return Place(mark.line + origin.line, column, origin.override)


@dataclass(slots=True)
class _Frame:
    node: _Node
    anchor: str | None
    key: str | None = None
    #: True while the value under way belongs to no key (it was refused).
    is_dropped: bool = False
    is_key_next: bool = True


def _build(text: str, found: list[_Found], origin: Place) -> _Node | None:
    """Nodes of the one document in `text`; None where there is none."""
    stack: list[_Frame] = []
    anchors: dict[str, _Node | None] = {}
    root: _Node | None = None
    n_documents = 0

    def add(node: _Node, is_plain_key: bool) -> None:
        nonlocal root
        if not stack:
            root = node
            return
        frame = stack[-1]
        parent = frame.node
        parent.n_values += node.n_values
        if parent.n_values > _MAX_VALUES:
            raise _Stop(f"more than {_MAX_VALUES} values, aliases counted where they are used",
                        node.place)
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif frame.is_key_next:
            frame.is_key_next, frame.is_dropped = False, True
            if not is_plain_key:
                found.append(_Found("a key must be a single word", node.place))
            elif node.raw == "<<":
                found.append(_Found("merge keys (<<) are not supported; write the settings out",
                                    node.place))
            elif node.raw in parent.key_places:
                first = parent.key_places[node.raw]
                found.append(_Found(f"{node.raw!r} is given twice; first on line {first.line}",
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
            raise _Stop(f"more than {_MAX_VALUES} values", place)
        if isinstance(event, DocumentStartEvent):
            n_documents += 1
            if n_documents > 1:
                raise _Stop("a second document starts here; a scenario is one document", place)
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
                raise _Stop(f"alias *{name} {fault}", place)
            add(target, isinstance(target.value, str))
        elif isinstance(event, CollectionStartEvent | ScalarEvent):
            if event.tag is not None:
                found.append(_Found(f"tag {str(event.tag)[:40]!r} is not supported; "
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
                    raise _Stop(f"nested more than {_MAX_DEPTH} levels deep", place)
                if anchor:
                    anchors[anchor] = None
                value: Any = {} if isinstance(event, MappingStartEvent) else []
                stack.append(_Frame(_Node(value, place), anchor))
    return root


def _scalar(text: str, is_plain: bool, place: Place, found: list[_Found]) -> _Node:
    """A scalar by the YAML 1.2 core schema; quoted and block text stays text."""
    if not is_plain:
        # JSON writes characters beyond the basic plane as two escapes: join them.
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            found.append(_Found("an escape gives half a character", place))
            text = text.encode("utf-8", "replace").decode("utf-8")
        return _Node(text, place, text)
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
    return _Node(value, place, text)


# ---- --set ----------------------------------------------------------------------------------


def _override(root: _Node, text: str, number: int, found: list[_Found]) -> _Node:
    """The tree with one `key.path=value` applied; faults are added to `found`."""
    key_path, equals, value_text = text.partition("=")
    start = Place(1, 1, number)
    if not equals or not key_path.strip():
        found.append(_Found(
            "expected KEY=VALUE, such as policies.NAME.merge.ksmd.pages_to_scan=200", start))
        return root
    match = _FORBIDDEN.search(text)
    if match is not None:
        found.append(_Found(f"holds character U+{ord(match.group()):04X}", start))
        return root
    place = Place(1, len(key_path) + 2, number)
    try:
        node = _build(value_text, found, place)
        if node is None:
            raise _Stop("the value is empty", place)
        return _replaced(root, key_path.strip().split("."), node, Place(1, 1, number))
    except _Stop as stop:
        found.append(_Found(stop.what, stop.place))
        return root


def _replaced(node: _Node, parts: list[str], new: _Node, place: Place) -> _Node:
    """A copy of the path to `parts` with the value there replaced; shared nodes stay as is."""
    if not parts:
        return new
    here = Place(1, place.column, place.override)
    if isinstance(node.value, list):
        index, n_parts = _list_index(node, parts, here)
        items = list(node.value)
        behind = place.column + len(".".join(parts[:n_parts])) + 1
        items[index] = _replaced(items[index], parts[n_parts:], new, place._replace(column=behind))
        return replace(node, value=items)
    if not isinstance(node.value, dict):
        raise _Stop(f"{what_is(node.value)} has no settings of its own", here)
    key = parts[0]
    inner = node.value.get(key, _Node({}, here))
    behind = place.column + len(key) + 1
    changed = _replaced(inner, parts[1:], new, place._replace(column=behind))
    return replace(
        node,
        value={**node.value, key: changed},
        key_places={**node.key_places, key: here if key not in node.value else
                    node.key_places[key] if parts[1:] else here},
    )


def _list_index(node: _Node, parts: list[str], place: Place) -> tuple[int, int]:
    """Which entry `parts` names, by number or by `name` (which may hold dots)."""
    names = [item.value["name"].raw if isinstance(item.value, dict) and "name" in item.value
             else "" for item in node.value]
    for n_parts in range(len(parts), 0, -1):
        name = ".".join(parts[:n_parts])
        if name and name in names:
            return names.index(name), n_parts
    if re.fullmatch(r"[0-9]{1,6}", parts[0], re.ASCII):
        if int(parts[0]) < len(names):
            return int(parts[0]), 1
        raise _Stop(f"there is no entry {parts[0]}; the list has {len(names)}, counted from 0",
                    place)
    raise _Stop(f"no entry is named {parts[0]!r}{did_you_mean(parts[0], filter(None, names))}",
                place)


# ---- nodes to the model ---------------------------------------------------------------------


def _validate(raw: RawScenario) -> None:
    """Fill `raw.document`; every fault is added to `raw.found`."""
    nulls: list[tuple[Part, ...]] = []
    plain = _plain(raw.root, (), nulls)
    for path in nulls:
        if path and isinstance(path[-1], str):
            raw.fault(path, f"{path[-1]!r} has no value; give one or leave the key out",
                      at_key=True)
        else:
            raw.fault(path, "an empty entry; give a value or remove it")
    model: type[Strict] = ResolvedDocument if "resolved" in plain else ScenarioDocument
    document: Any = None
    try:
        document = model.model_validate(plain)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=True)
        for fault in faults:
            path, is_key = _path_of(fault["loc"])
            if not any(path[: len(null)] == null for null in nulls):
                # Beyond what is shown only the number counts; looking for near words is slow.
                is_shown = len(raw.found) <= 2 * _MAX_PROBLEMS
                raw.fault(path, _words(model, fault, path, raw) if is_shown else fault["type"],
                          at_key=is_key or fault["type"] == "extra_forbidden")
        if model is ScenarioDocument:
            document = _salvaged(raw, plain, faults)
    raw.document = document
    raw.doubtful.update(nulls)


def _plain(node: _Node, path: tuple[Part, ...], nulls: list[tuple[Part, ...]]) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(item, (*path, key), nulls) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(item, (*path, i), nulls) for i, item in enumerate(node.value)]
    if node.value is None:
        nulls.append(path)
    return node.value


def _path_of(loc: tuple[Part, ...]) -> tuple[tuple[Part, ...], bool]:
    """The path of a pydantic location, without union tags; whether it means the key."""
    path = tuple(part for part in loc if not re.fullmatch(r"<.*>|\[key\]", str(part)))
    return path, bool(loc) and loc[-1] == "[key]"


def _models_in(annotation: Any, is_entry: bool = False) -> list[tuple[type[Strict], bool]]:
    """Models that an annotation names, and whether they are entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, is_entry)] if issubclass(annotation, Strict) else []
    is_entry = is_entry or get_origin(annotation) is list
    return [found for inner in get_args(annotation) for found in _models_in(inner, is_entry)]


def _keys(model: type[Strict]) -> list[str]:
    """The keys of a model as they are written."""
    return [each.alias or name for name, each in model.model_fields.items()]


def _model_at(model: type[Strict], path: Sequence[Part]) -> type[Strict] | None:
    """The model whose keys stand at `path`."""
    current: list[type[Strict]] = [model]
    for index, part in enumerate(path):
        if isinstance(part, str):
            fields = [each.model_fields[part] for each in current if part in each.model_fields]
            found = [inner for each in fields for inner in _models_in(each.annotation)]
            # A list and a mapping may both be allowed: a number says that a list is meant.
            is_entry = index + 1 < len(path) and isinstance(path[index + 1], int)
            current = [inner for inner, is_listed in
                       sorted(found, key=lambda pair: pair[1] is not is_entry)]
    return current[0] if current else None


_EXPECTED = {
    "merge": "never, ksmd: {...} or sync: {at: [...]}",
    "at": "boot, boot: {after: 10s} or every: 30min",
    "mergeable": "captured, all, none, true or false",
    "hz": "100, 250, 300 or 1000",
    "kernel": 'one of "6.1", "6.12" and "6.18", in quotes',
    "advisor_mode": "none or scan-time",
    "horizon": "a duration such as 15min, or captured",
}


def _words(model: type[Strict], fault: Any, path: tuple[Part, ...], raw: RawScenario) -> str:
    """One pydantic error as a sentence of ours."""
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        if owner is not None and key in owner.later:
            return f"{key!r} is not supported by this version"
        return f"unknown setting {key!r}{did_you_mean(key, _keys(owner) if owner else ())}"
    if kind == "missing":
        return f"missing setting {key!r}"
    if kind == "literal_error":
        if key in ("planner", "resolved"):
            return f"format {what_is(given)} is not known to this version; it reads {key}: 1"
        expected = _EXPECTED.get(key, str(context.get("expected", "")))
        hint = ""
        if isinstance(given, str):
            words = [word for word in re.findall(r"[a-z]{3,}", expected) if word != "after"]
            close = difflib.get_close_matches(given.casefold()[:80], words, n=1)
            hint = f"; did you mean {close[0]!r}?" if close and close[0] != given else ""
        return f"expected {expected}, got {what_is(given)}{hint}"
    if kind == "string_type":
        if isinstance(given, int | float):
            written = _raw_at(raw.root, path) or str(given)
            return f'expected text, got {written}; write "{written}" in quotes'
        return f"expected text, got {what_is(given)}"
    if kind in ("int_type", "int_from_float"):
        return f"expected a whole number, got {what_is(given)}"
    if kind in ("list_type", "tuple_type"):
        hint = f"; write [{given}]" if isinstance(given, str | int | float) else ""
        return f"expected a list, got {what_is(given)}{hint if len(hint) < 80 else ''}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        owner = _model_at(model, path)
        keys = f" with {', '.join(_keys(owner))}" if owner else ""
        return f"expected a mapping{keys}, got {what_is(given)}"
    if kind == "too_short":
        return f"{key!r} needs at least one entry"
    if kind == "too_long":
        return f"{context.get('actual_length')} {key}; at most {context.get('max_length')}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = "at least" if kind.startswith("greater") else "at most"
        limit = context.get("ge", context.get("le"))
        return f"{key!r} must be {bound} {limit}, got {what_is(given)}"
    return str(fault["msg"])


def _raw_at(node: _Node, path: Sequence[Part]) -> str:
    for part in path:
        node = _child(node, part) or node
    return node.raw


#: What stands in for a required value that is wrong, so that the rest can be checked.
_STAND_INS: dict[str, Any] = {
    "planner": 1, "name": "unnamed", "memory": 2**62, "trace": "unknown", "merge": "never",
    "at": ["boot"],
}


def _salvaged(raw: RawScenario, plain: Any, faults: Sequence[Any]) -> ScenarioDocument | None:
    """The document with every wrong value left out or replaced; None where that fails.

    References and traces can then be checked in the same go. `raw.doubtful` names what was
    touched, for the checks that depend on it.
    """
    for _ in range(8):
        for fault in faults:
            path, _is_key = _path_of(fault["loc"])
            if fault["type"] == "missing":
                if path[-1] in _STAND_INS:
                    _put(plain, path)
                    raw.doubtful.add(path)
                    continue
                path = path[:-1]
            removed = _remove(plain, path)
            if not removed:
                return None
            if fault["type"] != "extra_forbidden":
                raw.doubtful.add(removed)
        try:
            return ScenarioDocument.model_validate(plain)
        except ValidationError as error:
            faults = error.errors(include_url=False)
    return None


def _put(plain: Any, path: tuple[Part, ...]) -> None:
    """Set the stand-in at `path`, unless what it belongs to has been removed."""
    for part in path[:-1]:
        if isinstance(plain, dict) and part not in plain:
            return
        plain = plain[part]
    plain[path[-1]] = _STAND_INS[str(path[-1])]


def _remove(plain: Any, path: tuple[Part, ...]) -> tuple[Part, ...]:
    """Remove the innermost key on `path`; list entries go with their list, to keep places."""
    keys: list[tuple[Any, Part, tuple[Part, ...]]] = []
    for index, part in enumerate(path):
        if isinstance(plain, dict) and part in plain:
            keys.append((plain, part, path[: index + 1]))
            plain = plain[part]
        elif isinstance(plain, list) and isinstance(part, int) and part < len(plain):
            plain = plain[part]
    if not keys:
        return path  # removed before, with something around it
    owner, key, removed = keys[-1]
    del owner[key]
    return removed


# ---- problems -------------------------------------------------------------------------------


def _error(
    path: str, lines: list[str], overrides: Sequence[str], found: Sequence[_Found]
) -> ScenarioError:
    unique = list(dict.fromkeys(found))
    unique.sort(key=lambda f: (f.place.override, *f.place[:2]) if f.place else (0, 0, 0))
    is_only_overrides = all(f.place is not None and f.place.override for f in unique)
    problems = []
    for what, place in unique[:_MAX_PROBLEMS]:
        if place is None or place.line == 0:
            problems.append(Problem(what))
        elif place.override and not is_only_overrides:
            problems.append(Problem(f"--set {overrides[place.override - 1]}: {what}"))
        elif place.override:
            shown = _shown(overrides[place.override - 1], place.column)
            problems.append(Problem(what, place.override, place.column, shown))
        else:
            source = lines[place.line - 1] if place.line <= len(lines) else ""
            problems.append(Problem(what, place.line, place.column, _shown(source, place.column)))
    if len(unique) > _MAX_PROBLEMS:
        last = problems[-1]
        problems.append(Problem(f"and {len(unique) - _MAX_PROBLEMS} more problems", last.line,
                                last.column))
    return ScenarioError("--set" if is_only_overrides else path, problems)


def _shown(source: str, column: int) -> str:
    """The line for the caret; none where the column lies far out."""
    if column > _MAX_SHOWN_COLUMNS:
        return ""
    shown = "".join(c if c.isprintable() else " " for c in source[:_MAX_SHOWN_COLUMNS])
    return shown.rstrip()
