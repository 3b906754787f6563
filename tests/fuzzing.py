"""How many inputs a fuzz test of an importer tries: few in CI, as many as asked for by hand."""

from __future__ import annotations

import os


def n_examples(usual: int) -> int:
    """`usual`, or what PLANNER_FUZZ_EXAMPLES says."""
    return int(os.environ.get("PLANNER_FUZZ_EXAMPLES", usual))
