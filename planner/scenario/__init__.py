"""Scenarios: the file a person writes, checked and resolved into plain dataclasses.

`spec` holds the resolved form and imports nothing; `schema` the models of both file forms,
`load` the YAML reading, `resolve` defaults, references and cross-checks, `reference` the page of
all keys. Only those four import pydantic and ruamel.yaml, and only when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from planner.scenario.spec import (
    DomainsSpec,
    FleetFacts,
    FleetHost,
    GuestFacts,
    GuestSpec,
    HostSpec,
    Ksmd,
    Labels,
    Merge,
    Never,
    OutputSpec,
    PolicySpec,
    Scenario,
    Sync,
    TraceFacts,
    Trigger,
    WorkloadSpec,
    to_json,
)

__all__ = [
    "DomainsSpec",
    "FleetFacts",
    "FleetHost",
    "GuestFacts",
    "GuestSpec",
    "HostSpec",
    "Ksmd",
    "Labels",
    "Merge",
    "Never",
    "OutputSpec",
    "PolicySpec",
    "Scenario",
    "Sync",
    "TraceFacts",
    "Trigger",
    "WorkloadSpec",
    "load_scenario",
    "to_json",
]


def load_scenario(
    path: str | Path,
    facts_of: Callable[[Path], TraceFacts],
    overrides: Sequence[str] = (),
    fleet_of: Callable[[Path], FleetFacts] | None = None,
    notes: list[str] | None = None,
) -> Scenario:
    """The resolved scenario of a file; see `planner.scenario.resolve.load_scenario`."""
    from planner.scenario.resolve import load_scenario as load

    return load(path, facts_of, overrides, fleet_of, notes)
