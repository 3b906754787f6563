"""`planner explain` for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from planner.escape import clean
from planner.report.columns import BOLD, GREEN, sgr
from planner.report.facts import MemoryUnit, memory_unit
from planner.units import format_share

__all__ = ["render_waterfall", "waterfall_sentence"]


def render_waterfall(document: Mapping[str, Any], *, width: int, colour: bool) -> str:
    """The document of `planner.explain.Waterfall.to_json` as lines of figures and words."""
    steps = document["steps"]
    sizes = {step["key"]: step["n_bytes"] for step in steps}
    unit = memory_unit(max(abs(step["n_bytes"]) for step in steps[1:]))
    in_use = sizes["in_use"]
    lines = [f"Where the memory went under {clean(document['policy'])}, at the end of the run, "
             f"in {unit.name} and as a share of what guests use:", ""]
    for step in steps:
        lines.append(_line(step, unit, in_use, colour))
    lines += ["", "Beside the sum:"]
    lines += [_line(step, unit, in_use, colour) for step in document["memos"]]
    lines.append("")
    lines += textwrap.wrap(waterfall_sentence(document), width)
    return "\n".join(lines) + "\n"


def _line(step: Mapping[str, Any], unit: MemoryUnit, in_use: int, colour: bool) -> str:
    n_bytes, is_total = step["n_bytes"], step["is_total"]
    size = unit.figures(n_bytes)
    is_of_use = step["key"] not in ("host_memory", "cow_broken") and in_use
    share = format_share(abs(n_bytes) / in_use) if is_of_use else ""
    indent = "" if is_total else "  "
    text = f"{size:>9} {share:>8}  {indent}{step['text']}"
    style = GREEN if step["key"] == "saved" else BOLD if is_total else ""
    return sgr(text, style, colour)


#: What would bring a step's memory back; what is not here no policy can change.
_ADVICE = {
    "cannot_merge": "back guests with private anonymous memory to let KSM see it",
    "not_advised": "advise it (MADV_MERGEABLE, PR_SET_MEMORY_MERGE, or QEMU's mem-merge=on); "
                   "mergeable: all in the scenario says what that would save",
    "other_partition": "partition_by: domain would let these merge",
    "other_domain": "that is what keeping domains apart costs; partition_by: group lets domains "
                    "that trust one another share",
    "written": "merging more often finds what settles, for more CPU",
    "never": "merging could bring that back at best, before KSM's own records",
    "not_merged": "scan faster, merge more often, or raise max_page_sharing",
    "metadata": "advise less of the memory that never merges",
}


def waterfall_sentence(document: Mapping[str, Any]) -> str:
    """What the policy saves, the largest loss that another policy could change, and how."""
    steps = document["steps"]
    sizes = {step["key"]: step["n_bytes"] for step in steps}
    unit = memory_unit(max(abs(step["n_bytes"]) for step in steps[1:]))
    saves = f"{clean(document['policy'])} saves {unit.text(sizes['saved'])}"
    losses = [step for step in document["steps"] if step["n_bytes"] < 0
              and step["key"] in _ADVICE]
    if not losses:
        return f"{saves}."
    most = min(losses, key=lambda step: int(step["n_bytes"]))
    return (f"{saves}. Most of what another policy could change is {unit.text(-most['n_bytes'])}, "
            f"{most['text']}; {_ADVICE[most['key']]}.")
