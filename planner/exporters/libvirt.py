"""libvirt: `virsh node-memory-tune`, and domains that keep out of merging."""

from __future__ import annotations

import shlex

from planner.escape import printable
from planner.exporters.common import Export, is_advised, knobs

__all__ = ["XML", "render"]

#: What a domain that must not merge has in its XML.
XML = "<memoryBacking><nosharepages/></memoryBacking>"
_TUNED = {"pages_to_scan": "--shm-pages-to-scan", "sleep_millisecs": "--shm-sleep-millisecs",
          "merge_across_nodes": "--shm-merge-across-nodes"}


def render(export: Export) -> str:
    """A script with `apply`, `show` and `undo`, to be run on the host."""
    ksmd = export.ksmd()
    wanted = knobs(ksmd)
    if is_advised(ksmd):
        export.refuse("it leaves the pace to the kernel's advisor, which virsh cannot set",
                      "use --as tmpfiles")
    kept_out = [guest for guest, _, may_merge in export.guests() if not may_merge]
    tune = " ".join(f"{option} {wanted[name]}" for name, option in _TUNED.items()
                    if name in wanted)
    left = [f"{name}={value}" for name, value in wanted.items() if name not in _TUNED]
    head = export.comment(
        f"{len(kept_out)} domain(s) are kept out of merging; a domain takes that up when it is "
        "next started. In its XML:",
        f"  {XML}",
        "virsh cannot set " + ", ".join(left) + "; --as tmpfiles does." if left else "",
        "Apply: bash THIS apply. Look: bash THIS show. Undo: bash THIS undo. Merged pages stay "
        "merged until they",
        "are written to, or until: echo 2 > /sys/kernel/mm/ksm/run (which needs the memory).")
    names = [printable(guest.name) for guest in kept_out]

    def edit(value: str) -> str:
        # A name that looks like an option would be taken for one.
        return "".join(
            f"    # by hand: {name}\n" if name.startswith("-") else
            f"    virt-xml {shlex.quote(name)} --edit --memorybacking nosharepages={value} "
            "--define\n" for name in names)

    run = export.run_value
    start = f"    virsh node-memory-tune {tune}\n" if run == "1" else ""
    return f"""#!/bin/bash
{head}set -eu

ksm=${{KSM_FOLDER:-/sys/kernel/mm/ksm}}
saved=${{KSM_SAVED:-/run/ksm-planner-{export.digest[:12]}.saved}}

case ${{1:-}} in
  apply)
    if [ ! -e "$saved" ]; then
      cat "$ksm/pages_to_scan" "$ksm/sleep_millisecs" "$ksm/run" > "$saved"
    fi
{start}{edit("yes")}    echo {run} > "$ksm/run"
    ;;
  show)
    virsh node-memory-tune
    ;;
  undo)
    {{ read -r pages; read -r sleep; read -r run; }} < "$saved"
    virsh node-memory-tune --shm-pages-to-scan "$pages" --shm-sleep-millisecs "$sleep"
{edit("no")}    echo "$run" > "$ksm/run"
    rm "$saved"
    ;;
  *)
    echo "usage: bash $0 apply|show|undo" >&2
    exit 2
    ;;
esac
"""
