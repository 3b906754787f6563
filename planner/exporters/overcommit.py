"""How far memory may be overcommitted, as far as one run supports it."""

from __future__ import annotations

from planner.exporters.common import Export
from planner.units import format_size

__all__ = ["render", "supported_ratio"]


def supported_ratio(export: Export) -> tuple[float, str]:
    """Memory guests use per byte of memory they need merged, and the host where it is least."""
    last = {host: rows[-1] for host, rows in export.samples().items()}
    ratios = [(row["guest_memory_bytes"] / (row["guest_memory_bytes"] - row["saved_bytes"]), host)
              for host, row in last.items() if row["guest_memory_bytes"] > row["saved_bytes"]]
    return min(ratios, default=(1.0, "no host"))


def render(export: Export) -> str:
    """Settings of three schedulers with the same ratio, as comments and lines."""
    exact, host = supported_ratio(export)
    percent = int(exact * 100)  # down: what is not there cannot be given away
    ratio = percent / 100
    if percent <= 100:
        export.refuse(f"it saves too little on host {host} to give more memory away than there is",
                      "export a policy that saves more")
    unmerge = format_size(int(export.row["unmerge_bytes"]))
    head = export.comment(
        f"Ratio {ratio:.2f}: guests use {exact:.3f} times what they need when merged (host {host}, "
        "where that is least).",
        "No confidence is stated: this is one run. It holds for guests like those captured, and "
        "only while pages are merged:",
        f"if every merge were undone, {unmerge} more would be needed. Keep that in swap or "
        "reserve, or use a part of the ratio.",
        "Undo: put back the values that were there before (Nova's default is 1.5, KubeVirt's 100).")
    return f"""{head}
# OpenStack Nova, /etc/nova/nova.conf on the compute nodes:
[DEFAULT]
ram_allocation_ratio = {ratio:.2f}

# KubeVirt, in the KubeVirt object:
#   spec:
#     configuration:
#       developerConfiguration:
#         memoryOvercommit: {percent}

# Proxmox VE has no such setting: the sum of the guests' memory on a node of memory M may go up to
#   {ratio:.2f} * (M - what the node itself needs)
"""
