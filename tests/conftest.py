"""Shared fixtures; tests marked `kernel` run only when asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Timing belongs in benchmarks: a slow machine must not fail a property test.
settings.register_profile("planner", settings(deadline=None))
settings.load_profile("planner")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("PLANNER_KERNEL_TESTS") != "1":
        reason = "drives the real kernel or boots machines; set PLANNER_KERNEL_TESTS=1"
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _plain_terminal() -> None:
    os.environ["NO_COLOR"] = "1"
