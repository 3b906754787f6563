"""systemd: `MemoryKSM=` drop-ins, which offer the memory of whole services to ksmd."""

from __future__ import annotations

import re

from planner.exporters.common import Export
from planner.exporters.tmpfiles import PLACE, lines
from planner.scenario.spec import GuestSpec

__all__ = ["render"]

_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]{0,200}\.(service|scope|slice)", re.ASCII)
_DROP_IN = "50-ksm-planner.conf"


def _unit(guest: GuestSpec) -> str:
    labels = dict(guest.labels)
    for name in (labels.get("unit", ""), guest.name):
        if _UNIT.fullmatch(name):
            return name
    return ""


def render(export: Export) -> str:
    """A script with `apply` and `undo`, to be run on the host."""
    export.ksmd()
    units: dict[str, bool] = {}
    for guest, _, may_merge in export.guests():
        unit = _unit(guest)
        if unit:
            units[unit] = units.get(unit, True) and may_merge and export.run_value == "1"
    if not units:
        export.refuse("no guest of it is a unit of systemd",
                      "label guests with unit=NAME.service (labels: in the scenario, or planner "
                      "capture --labels); for virtual machines use --as libvirt or proxmox")
    pace = "" if export.policy.exclude else "\n".join(lines(export)) + "\n"
    head = export.comment(
        "MemoryKSM= needs systemd 254 and Linux 6.4; it is taken up when a unit is next started.",
        f"{sum(units.values())} unit(s) are offered to ksmd, {len(units) - sum(units.values())} "
        "kept out. The pace goes into " + PLACE + "." if pace else
        "The pace is not in here, as a policy that excludes guests sets it per host: --as libvirt.",
        "Apply: bash THIS apply. Undo: bash THIS undo.")
    writes = "".join(
        f"    mkdir -p \"$folder/{unit}.d\"\n"
        f"    printf '[Service]\\nMemoryKSM={'yes' if merges else 'no'}\\n' "
        f"> \"$folder/{unit}.d/{_DROP_IN}\"\n" for unit, merges in sorted(units.items()))
    removes = "".join(f"    rm -f \"$folder/{unit}.d/{_DROP_IN}\"\n" for unit in sorted(units))
    set_pace = (f"    cat > \"$tmpfiles\" <<'TMPFILES'\n{pace}TMPFILES\n"
                '    systemd-tmpfiles --create "$tmpfiles"\n' if pace else "")
    return f"""#!/bin/bash
{head}set -eu

folder=${{UNIT_FOLDER:-/etc/systemd/system}}
tmpfiles=${{TMPFILES_CONF:-{PLACE}}}

case ${{1:-}} in
  apply)
{writes}{set_pace}    systemctl daemon-reload
    ;;
  undo)
{removes}    rm -f "$tmpfiles"
    systemctl daemon-reload
    ;;
  *)
    echo "usage: bash $0 apply|undo" >&2
    exit 2
    ;;
esac
"""
