"""Proxmox VE: its ksmtuned, and `qm set` for the guests that must not merge."""

from __future__ import annotations

import shlex

from planner.escape import printable
from planner.exporters.common import Export
from planner.exporters.ksmtuned import assignments

__all__ = ["render"]


def render(export: Export) -> str:
    """A script with `apply` and `undo`, to be run on the node."""
    body = "\n".join(assignments(export))
    kept_out = [guest for guest, _, may_merge in export.guests() if not may_merge]
    calls = []
    for guest in kept_out:
        vmid = dict(guest.labels).get("vmid", "")
        which = vmid if vmid.isdecimal() else f'"$(id_of {shlex.quote(printable(guest.name))})"'
        calls.append(f"  allow_ksm {which} \"$1\"  # {printable(guest.name, 120)}")
    head = export.comment(
        f"{len(kept_out)} guest(s) are kept out of merging; a guest takes that up when it is next "
        "started.",
        "Apply: bash THIS apply. Undo: bash THIS undo. Merged pages stay merged until they are "
        "written to,",
        "or until: echo 2 > /sys/kernel/mm/ksm/run (which needs the memory to do so).")
    guests = "\n".join(calls) or "  :"
    id_of = ("id_of() { # the VM of this name\n"
             "  qm list | awk -v name=\"$1\" '$2 == name {print $1}'\n}\n\n"
             if "$(id_of" in guests else "")
    allow = 'allow_ksm() {\n  qm set "$1" --allow-ksm "$2"\n}\n\n' if calls else ""
    return f"""#!/bin/bash
{head}set -eu

conf=${{KSMTUNED_CONF:-/etc/ksmtuned.conf}}

{id_of}{allow}guests() {{ # $1: 0 keeps them out, 1 lets them merge (the default)
{guests}
}}

case ${{1:-}} in
  apply)
    if [ -e "$conf" ] && [ ! -e "$conf.before-planner" ]; then
      cp -p "$conf" "$conf.before-planner"
    fi
    cat > "$conf.partial" <<'KSMTUNED'
{body}
KSMTUNED
    mv "$conf.partial" "$conf"
    guests 0
    systemctl restart ksmtuned
    ;;
  undo)
    guests 1
    if [ -e "$conf.before-planner" ]; then mv "$conf.before-planner" "$conf"; else rm -f "$conf"; fi
    systemctl restart ksmtuned
    ;;
  *)
    echo "usage: bash $0 apply|undo" >&2
    exit 2
    ;;
esac
"""
