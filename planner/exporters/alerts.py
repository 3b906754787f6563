"""Prometheus rules that tell when reality leaves the forecast."""

from __future__ import annotations

from itertools import pairwise

from planner.escape import quoted
from planner.exporters.common import Export
from planner.policies.timing import merges_nothing
from planner.scenario.spec import Ksmd

__all__ = ["render"]

#: A saving below this share of the forecast is told.
_UNDER = 0.8
#: So many times the highest rate of the run is a storm.
_STORM = 2.0
_MIN_RATE = 100.0


def render(export: Export) -> str:
    """A rules file for `rule_files:`."""
    if merges_nothing(export.policy):
        export.refuse("it never merges, so there is no forecast to hold anything against",
                      "export the policy that the hosts run")
    sharing, rate = _least_sharing(export), _highest_cow_rate(export)
    wait_s = max(900, 2 * (int(export.row["time_to_90_ns"] or 0) // 10**9))
    storm = max(_MIN_RATE, _STORM * rate)
    labels = f"policy: {quoted(export.policy.name)}\n          run: {quoted(export.digest[:12])}"
    head = export.comment(
        "Put into a folder that rule_files: names, then: promtool check rules THIS; reload "
        "Prometheus. Undo: remove it.",
        "Needs node_exporter with --collector.ksmd, and cow_ksm among its vmstat fields "
        "(--collector.vmstat.fields).",
        f"Least pages_sharing of a host in the run: {sharing}; most COW breaks a second: "
        f"{rate:.0f}.")
    running = "" if not isinstance(export.policy.merge, Ksmd) else f"""
      - alert: KsmNotRunning
        expr: node_ksmd_run != 1
        for: 15m
        labels:
          severity: info
          {labels}
        annotations:
          summary: "ksmd does not run, and the forecast was made with it running\""""
    return f"""{head}groups:
  - name: ksm-planner
    rules:
      - alert: KsmSavesLessThanForecast
        expr: node_ksmd_pages_sharing < {int(_UNDER * sharing)}
        for: {wait_s}s
        labels:
          severity: info
          {labels}
        annotations:
          summary: "KSM shares fewer pages than {_UNDER:.0%} of the forecast"
      - alert: KsmCowStorm
        expr: rate(node_vmstat_cow_ksm[5m]) > {storm:.0f}
        for: 5m
        labels:
          severity: warning
          {labels}
        annotations:
          summary: "merged pages are written to more than {_STORM:g} times as often as forecast"
      - alert: KsmNoRoomToUnmerge
        expr: node_memory_MemAvailable_bytes < node_ksmd_pages_sharing * 4096
        for: 5m
        labels:
          severity: warning
          {labels}
        annotations:
          summary: "less memory is available than undoing all merges would need"{running}
"""


def _least_sharing(export: Export) -> int:
    """`pages_sharing` at the end of the run, of the host where it is least."""
    return min((int(rows[-1]["pages_sharing"]) for rows in export.samples().values()), default=0)


def _highest_cow_rate(export: Export) -> float:
    """The most COW breaks a second between two samples of any host."""
    rates = [1e9 * (after["cow_breaks"] - before["cow_breaks"])
             / (after["time_ns"] - before["time_ns"])
             for rows in export.samples().values() for before, after in pairwise(rows)
             if after["time_ns"] > before["time_ns"]]
    return max(rates, default=0.0)
