"""The forecast as OpenMetrics text, so that forecast and reality share one panel.

Names are those of node_exporter's ksmd collector where it has one, with `ksm_planner_forecast`
in place of `node`. All are gauges: a forecast's counters start anew with every run.
"""

from __future__ import annotations

from planner.errors import UsageError
from planner.escape import printable
from planner.metrics import Result
from planner.results import policy_row

__all__ = ["export_metrics"]

#: Column of the hosts table to name, unit (OpenMetrics wants the name to end in it) and help.
_GAUGES = {
    "saved_bytes": ("saved_bytes", "bytes", "Frames freed of non-zero content, minus metadata."),
    "saved_zero_bytes": ("saved_zero_bytes", "bytes", "Freed by merging zero pages."),
    "guest_memory_bytes": ("guest_memory_bytes", "bytes", "Memory of the guests, unmerged."),
    "metadata_bytes": ("metadata_bytes", "bytes", "KSM's own records."),
    "unmerge_bytes": ("unmerge_bytes", "bytes", "Needed if every merge were undone."),
    "general_profit_bytes": ("ksmd_general_profit_bytes", "bytes", "As the kernel counts it."),
    "pages_shared": ("ksmd_pages_shared", "", "As in /sys/kernel/mm/ksm."),
    "pages_sharing": ("ksmd_pages_sharing", "", "As in /sys/kernel/mm/ksm."),
    "pages_unshared": ("ksmd_pages_unshared", "", "As in /sys/kernel/mm/ksm."),
    "pages_volatile": ("ksmd_pages_volatile", "", "As in /sys/kernel/mm/ksm."),
    "full_scans": ("ksmd_full_scans", "", "Full scans since the start of the run."),
    "cow_breaks": ("cow_ksm", "", "Writes to merged pages since the start of the run."),
    "merge_cpu_ns": ("merge_cpu_seconds", "seconds", "CPU time of merging since the start."),
    "cross_domain_pages": ("cross_domain_pages", "",
                           "Guest pages on frames that several domains share."),
}
_NS_PER_S = 1_000_000_000


def _label(text: str) -> str:
    escaped = printable(text, 200).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def export_metrics(result: Result, policy: str | None = None, *,
                   start_ns: int | None = None) -> str:
    """The forecast of `policy`, or of all policies, as OpenMetrics text.

    Without `start_ns` the values at the end of the run, without times. With it (Unix time of
    the run's start) every sample with its time, for `promtool tsdb create-blocks-from
    openmetrics`. Raises UsageError for a policy that is not there.
    """
    if policy is not None:
        policy_row(result, policy)
    if start_ns is not None and start_ns < 0:
        raise UsageError("a time before 1970", where="--start", instead="write a later time")
    rows = [row for row in result.hosts.to_pylist() if policy in (None, row["policy"])]
    rows.sort(key=lambda row: (row["policy"], row["host"], row["time_ns"]))
    if start_ns is None:
        last = {(row["policy"], row["host"]): row for row in rows}
        rows = list(last.values())
    digest = str(result.run["digest"])[:12]
    lines = []
    for column, (name, unit, what) in _GAUGES.items():
        full = f"ksm_planner_forecast_{name}"
        lines.append(f"# TYPE {full} gauge")
        if unit:
            lines.append(f"# UNIT {full} {unit}")
        lines.append(f"# HELP {full} {what}")
        for row in rows:
            value = row[column] / _NS_PER_S if column.endswith("_ns") else row[column]
            time = "" if start_ns is None else f" {(start_ns + row['time_ns']) / _NS_PER_S:.3f}"
            lines.append(f"{full}{{host={_label(row['host'])},policy={_label(row['policy'])},"
                         f"run={_label(digest)}}} {value}{time}")
    return "\n".join([*lines, "# EOF"]) + "\n"
