"""Scenario text to checked values with line and column.

`read_scenario` gives a `RawScenario`: the model of the file (`planner.scenario.schema`), every
problem found so far, and `place_of` to find where a value stands.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from planner.errors import Problem, ScenarioError
from planner.scenario.nodes import (
    MAX_FILE_BYTES,
    Found,
    Node,
    Part,
    Place,
    ReadError,
    build_nodes,
    child_of,
    decode,
    plain_of,
)
from planner.scenario.overrides import override
from planner.scenario.schema import ScenarioDocument
from planner.scenario.schema_resolved import ResolvedDocument
from planner.scenario.schema_values import Strict
from planner.scenario.words import did_you_mean, what_is

__all__ = ["Part", "RawScenario", "check_values", "parse_scenario", "read_scenario"]

_MAX_PROBLEMS = 50
_MAX_SHOWN_COLUMNS = 160


@dataclass(slots=True)
class RawScenario:
    """A scenario file after its own checks, before defaults and references are resolved.

    `document` is None where too little is right to go on. `doubtful` holds the paths of
    values that were wrong and replaced by something harmless, so that the rest can still be
    checked; `found` is empty only for a file without faults, and begins with the `n_in_text` of its
    text.
    """

    path: str
    base: Path
    lines: list[str]
    overrides: tuple[str, ...]
    root: Node
    document: ScenarioDocument | ResolvedDocument | None = None
    doubtful: set[tuple[Part, ...]] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)
    n_in_text: int = 0

    def with_root(self, root: Node) -> RawScenario:
        """The same file with other values, checked anew."""
        raw = RawScenario(self.path, self.base, self.lines, self.overrides, root,
                          found=self.found[: self.n_in_text], n_in_text=self.n_in_text)
        _validate(raw)
        return raw

    def is_doubtful(self, *path: Part) -> bool:
        """Whether the value at `path`, a part of it or something around it was replaced."""
        return any(
            other[: len(path)] == path or path[: len(other)] == other for other in self.doubtful
        )

    def fault(self, path: Sequence[Part], what: str, *, at_key: bool = False) -> None:
        """Add a problem at the value (or the key) that `path` leads to."""
        self.found.append(Found(what, self._place_of(path, at_key)))

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

    def place_of_key(self, path: Sequence[Part]) -> Place:
        """Where the key that `path` leads to stands."""
        return self._place_of(path, True)

    def _place_of(self, path: Sequence[Part], at_key: bool) -> Place:
        # Parts that are not there (a missing key, one entry written without its list) are
        # passed over: the nearest value around them is the place.
        node, place = self.root, self.root.place
        for part in path:
            inner = child_of(node, part)
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
    found: list[Found] = []
    lines: list[str] = []
    try:
        if len(data) <= MAX_FILE_BYTES:
            lines = data.decode("utf-8-sig", "replace").splitlines()
        source = decode(data)
        lines = source.split("\n")
        root = build_nodes(source, found, Place(1, 1))
        if root is None or (root.value is None and not root.raw):
            raise ReadError("the file is empty; see `planner schema` for what belongs in it",
                        Place(1, 1))
        for number, text in enumerate(overrides, start=1):
            root = override(root, text, number, found)
    except ReadError as stop:
        found.append(Found(stop.what, stop.place))
        raise _error(path, lines, overrides, found) from None
    raw = RawScenario(path, base, lines, tuple(overrides), root, found=found,
                      n_in_text=len(found))
    if not isinstance(root.value, dict):
        raw.fault((), f"expected settings such as `planner: 1`, got {what_is(root.value)}")
        return raw
    _validate(raw)
    return raw


def check_values(values: Any, path: str) -> RawScenario:
    """Like `parse_scenario` for values that are no text; problems then have no place."""

    def node_of(value: Any) -> Node:
        nowhere = Place(0, 0)
        if isinstance(value, dict):
            children = {str(key): node_of(item) for key, item in value.items()}
            return Node(children, nowhere, key_places=dict.fromkeys(children, nowhere))
        if isinstance(value, list | tuple):
            return Node([node_of(item) for item in value], nowhere)
        return Node(value, nowhere, str(value))

    raw = RawScenario(path, Path(), [], (), node_of(values))
    if isinstance(raw.root.value, dict):
        _validate(raw)
    return raw


# ---- nodes to the model ---------------------------------------------------------------------


def _validate(raw: RawScenario) -> None:
    """Fill `raw.document`; every fault is added to `raw.found`."""
    nulls: list[tuple[Part, ...]] = []
    plain = plain_of(raw.root, (), nulls)
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
    "at": "boot, boot: {after: 10s}, restore or every: 30min",
    "cooperation": "none, full or ranges: [{LABEL: VALUE}]",
    "placement": "as-recorded, first-fit, best-fit, spread, pack-by-domain or sharing-aware",
    "start": "boot or restored",
    "fill": "private, proportional or none",
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
            words = [word for word in re.findall(r"[a-z][a-z-]{2,}", expected) if word != "after"]
            close = difflib.get_close_matches(given.casefold()[:80], words, n=1)
            hint = f"; did you mean {close[0]!r}?" if close and close[0] != given else ""
        return f"expected {expected}, got {what_is(given)}{hint}"
    if kind == "string_type":
        if isinstance(given, int | float):
            written = _raw_at(raw.root, path) or str(given)
            return f'expected text, got {written}; write "{written}" in quotes'
        return f"expected text, got {what_is(given)}"
    if kind in ("float_type", "finite_number"):
        return f"expected a number, got {what_is(given)}"
    if kind in ("int_type", "int_from_float"):
        return f"expected a whole number, got {what_is(given)}"
    if kind in ("list_type", "tuple_type"):
        is_entry = isinstance(given, str | int | float) and (
            key in _EXPECTED or _model_at(model, path) is None)
        hint = f"; write [{given}]" if is_entry else ""
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


def _raw_at(node: Node, path: Sequence[Part]) -> str:
    for part in path:
        node = child_of(node, part) or node
    return node.raw


#: What stands in for a required value that is wrong, so that the rest can be checked.
_STAND_INS: dict[str, Any] = {
    "planner": 1, "name": "unnamed", "memory": 2**62, "trace": "unknown", "merge": "never",
    "at": ["boot"], "median": "1h", "p95": "2h", "low": "0%", "high": "0%", "table": "unknown",
    "policy": "unknown", "metric": "saved", "match": [{"unknown": "unknown"}], "guests": 1,
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
    path: str, lines: list[str], overrides: Sequence[str], found: Sequence[Found]
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
