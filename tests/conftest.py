"""Shared fixtures; tests marked `kernel` or `machine` run only when asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Timing belongs in benchmarks: a slow machine must not fail a property test.
settings.register_profile("planner", settings(deadline=None))
settings.load_profile("planner")


#: Tests that run only when asked for, and the variable that asks.
ASKED_FOR = {
    "kernel": ("PLANNER_KERNEL_TESTS", "drives the real kernel"),
    "machine": ("PLANNER_MACHINE_TESTS", "boots machines for minutes"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (variable, what) in ASKED_FOR.items():
            if item.get_closest_marker(marker) and os.environ.get(variable) != "1":
                item.add_marker(pytest.mark.skip(reason=f"{what}; set {variable}=1"))


@pytest.fixture(autouse=True, scope="session")
def _plain_terminal() -> None:
    os.environ["NO_COLOR"] = "1"
