"""Scenarios: the file a person writes, checked and resolved into plain dataclasses.

`spec` and `spec_policies` hold the resolved form and import nothing; `schema` and the modules
named like it the models of both file forms, `nodes` the YAML reading, `overrides` what replaces
values, `load` the checked file, `resolve` defaults and references, `checks` the cross-checks,
`sweep` the cases, `reference` the page of all keys. pydantic and ruamel.yaml are imported only
when a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.scenario.spec import (
    ArrivalFacts,
    ArrivalsSpec,
    Cooperation,
    CostsSpec,
    DomainsSpec,
    DrawSpec,
    FleetFacts,
    FleetHost,
    FleetSpec,
    FreePages,
    GuestFacts,
    GuestSpec,
    HostSpec,
    IncidentSpec,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Labels,
    LifetimeSpec,
    LoadSpec,
    Merge,
    Never,
    OutputSpec,
    PartitionRule,
    PolicySpec,
    PrecisionSpec,
    RequireSpec,
    Scenario,
    Sync,
    SyncAdvisor,
    TraceFacts,
    Trigger,
    WorkloadSpec,
    to_json,
)

if TYPE_CHECKING:
    from planner.scenario.sweep import Case

__all__ = [
    "ArrivalFacts",
    "ArrivalsSpec",
    "Cooperation",
    "CostsSpec",
    "DomainsSpec",
    "DrawSpec",
    "FleetFacts",
    "FleetHost",
    "FleetSpec",
    "FreePages",
    "GuestFacts",
    "GuestSpec",
    "HostSpec",
    "IncidentSpec",
    "Ksmd",
    "Ksmtuned",
    "KubeVirt",
    "Labels",
    "LifetimeSpec",
    "LoadSpec",
    "Merge",
    "Never",
    "OutputSpec",
    "PartitionRule",
    "PolicySpec",
    "PrecisionSpec",
    "RequireSpec",
    "Scenario",
    "Sync",
    "SyncAdvisor",
    "TraceFacts",
    "Trigger",
    "WorkloadSpec",
    "load_cases",
    "load_scenario",
    "to_json",
]


def load_scenario(
    path: str | Path,
    facts_of: Callable[[Path], TraceFacts],
    overrides: Sequence[str] = (),
    fleet_of: Callable[[Path], FleetFacts] | None = None,
    notes: list[str] | None = None,
    arrivals_of: Callable[[Path], ArrivalFacts] | None = None,
) -> Scenario:
    """The resolved scenario of a file; see `planner.scenario.resolve.load_scenario`."""
    from planner.scenario.resolve import load_scenario as load

    return load(path, facts_of, overrides, fleet_of, notes, arrivals_of)


def load_cases(
    path: str | Path,
    facts_of: Callable[[Path], TraceFacts],
    overrides: Sequence[str] = (),
    fleet_of: Callable[[Path], FleetFacts] | None = None,
    notes: list[str] | None = None,
    arrivals_of: Callable[[Path], ArrivalFacts] | None = None,
) -> list[Case]:
    """The scenario of a file in every case of its sweep; see `planner.scenario.sweep`."""
    from planner.scenario.sweep import load_cases as load

    return load(path, facts_of, overrides, fleet_of, notes, arrivals_of)
