"""The cases of a sweep: every combination of its values put into the file, each checked."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import DataError
from planner.scenario.load import RawScenario, read_scenario
from planner.scenario.nodes import Found, Node, Place, ReadError, build_nodes, child_of, plain_of
from planner.scenario.overrides import replaced
from planner.scenario.resolve import ArrivalsOf, FactsOf, FleetOf, attempt, resolve
from planner.scenario.spec import Scenario

__all__ = ["Case", "cases_of", "load_cases"]

_MAX_CASES = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """One combination of a sweep: `name` such as `hosts.r750.count=32`, several joined by `, `.

    `overrides` are the same as `KEY=VALUE` texts that `--set` takes, behind those the file was
    loaded with. A scenario without a sweep is one case without a name.
    """

    name: str
    overrides: tuple[str, ...]
    scenario: Scenario


def load_cases(
    path: str | Path, facts_of: FactsOf, overrides: Sequence[str] = (),
    fleet_of: FleetOf | None = None, notes: list[str] | None = None,
    arrivals_of: ArrivalsOf | None = None,
) -> list[Case]:
    """All cases of a scenario file, in the order of the sweep's values, the last key fastest.

    Arguments and errors are those of `planner.scenario.load_scenario`; every fault of every case is
    told at once, and each trace is looked at once.
    """
    return cases_of(read_scenario(path, overrides), facts_of, fleet_of, notes, arrivals_of)


def cases_of(
    raw: RawScenario, facts_of: FactsOf, fleet_of: FleetOf | None = None,
    notes: list[str] | None = None, arrivals_of: ArrivalsOf | None = None,
) -> list[Case]:
    """The cases of a file that was read; see `load_cases`."""
    sweep = child_of(raw.root, "sweep")
    if sweep is None or raw.document is None or raw.is_doubtful("sweep") or not sweep.value:
        return [Case("", raw.overrides, resolve(raw, facts_of, fleet_of, notes, arrivals_of))]
    base = replace(raw.root, value={key: node for key, node in raw.root.value.items()
                                    if key != "sweep"})
    choices = [[(key, node) for node in values.value] for key, values in sweep.value.items()]
    n_cases = 1
    for values in choices:
        n_cases *= len(values)
    if n_cases > _MAX_CASES:
        raw.fault(("sweep",), f"{n_cases} cases; at most {_MAX_CASES}, so sweep fewer values",
                  at_key=True)
        raise raw.error()
    facts_once = functools.cache(facts_of)
    fleet_once = None if fleet_of is None else functools.cache(fleet_of)
    arrivals_once = None if arrivals_of is None else functools.cache(arrivals_of)
    cases: list[Case] = []
    faults: list[tuple[str, list[Found]]] = []
    errors: list[DataError] = []
    told: dict[str, None] = {}
    for combination in itertools.product(*choices):
        texts = [f"{key}={_text(node)}" for key, node in combination]
        name = ", ".join(texts)
        case, found = _with_values(raw, base, combination)
        scenario, error, case_notes = attempt(
            case, facts_once, fleet_once, arrivals_once) \
            if case is not None else (None, None, [])
        found += case.found if case is not None else []
        faults.append((name, found))
        told.update(dict.fromkeys(case_notes))
        if error is not None:
            errors.append(error)
        elif scenario is not None and not found:
            cases.append(Case(name, (*raw.overrides, *texts), scenario))
    raw.found = _told_once(faults)
    if raw.found:
        raise raw.error()
    if errors:
        raise errors[0]
    if notes is not None:
        notes += told
    return cases


def _with_values(raw: RawScenario, base: Node, combination: Sequence[tuple[str, Node]],
                 ) -> tuple[RawScenario | None, list[Found]]:
    """The file with the values of a combination; else what is wrong with their paths."""
    root, found = base, []
    for key, node in combination:
        try:
            root = replaced(root, key, node, raw.place_of_key(("sweep", key)))
        except ReadError as stop:
            found.append(Found(stop.what, stop.place))
    return (None, found) if found else (raw.with_root(root), [])


def _told_once(faults: Sequence[tuple[str, list[Found]]]) -> list[Found]:
    """Each fault once; those that only some cases have name the first of them."""
    counts = Counter(fault for _, found in faults for fault in dict.fromkeys(found))
    first: dict[Found, str] = {}
    for name, found in faults:
        for fault in found:
            first.setdefault(fault, name)
    told = []
    for fault, name in first.items():
        others = f" and {counts[fault] - 1} more" if counts[fault] > 1 else ""
        which = "" if counts[fault] == len(faults) else f" (in case {name}{others})"
        told.append(fault._replace(what=fault.what + which))
    return told


def _text(node: Node) -> str:
    """A value as `--set` takes it."""
    plain = plain_of(node, (), [])
    if not isinstance(plain, str):
        return json.dumps(plain) if isinstance(plain, dict | list | bool) else node.raw
    return plain if _is_plain(plain) else json.dumps(plain)


def _is_plain(text: str) -> bool:
    """Whether YAML reads the text without quotes as itself."""
    try:
        found: list[Found] = []
        node = build_nodes(text, found, Place(1, 1))
    except ReadError:
        return False
    return not found and node is not None and node.value == text
