"""A tmpfiles.d file: the settings are written at every boot, or by `systemd-tmpfiles --create`."""

from __future__ import annotations

from planner.exporters.common import Export
from planner.exporters.sysfs import settings_of

__all__ = ["PLACE", "lines", "render"]

#: Where the file goes.
PLACE = "/etc/tmpfiles.d/ksm-planner.conf"


def lines(export: Export) -> list[str]:
    """The file's entries: `w` writes only where the file is there."""
    return [f"w /sys/kernel/mm/ksm/{name} - - - - {value}"
            for name, value, _ in settings_of(export)]


def render(export: Export) -> str:
    """The file."""
    head = export.comment(
        f"Put into {PLACE}; applied at boot, or now: systemd-tmpfiles --create {PLACE}",
        "On a host where pages are merged already, max_page_sharing and merge_across_nodes change "
        "only after",
        "  echo 2 > /sys/kernel/mm/ksm/run   (unmerges everything, and needs the memory to do so)",
        f"Undo: rm {PLACE}, and write back the values from before (above), or reboot.")
    return head + "\n".join(lines(export)) + "\n"
