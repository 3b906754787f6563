"""A shell script that sets ksmd's knobs, keeps what was there, and can put it back."""

from __future__ import annotations

from planner.exporters.common import NEEDS_UNMERGED, Export, is_advised, knobs

__all__ = ["render", "settings_of"]

_ON_EVERY_KERNEL = (*NEEDS_UNMERGED, "pages_to_scan", "sleep_millisecs")


def settings_of(export: Export) -> list[tuple[str, str, bool]]:
    """(file, text, whether it may be missing) in the order in which they are to be written.

    A policy that never merges only stops ksmd and undoes its merges.
    """
    ksmd = export.ksmd_without_exclusions()
    if export.run_value == "0":
        return [("run", "2", False), ("run", "0", False)]
    # What the run took for the kernel's default, somebody may have changed on the host.
    is_old = all(host.kernel == "6.1" for host in export.hosts())
    wanted = {"advisor_mode": "none", "smart_scan": "0" if is_old else "1", **knobs(ksmd)}
    first = [name for name in NEEDS_UNMERGED if name in wanted]
    middle = sorted(set(wanted) - {*first, "advisor_mode"})
    if is_advised(ksmd):
        # The advisor starts from what its files hold, and the kernel refuses pages_to_scan then.
        ordered = [*first, *(name for name in middle if name != "pages_to_scan"), "advisor_mode"]
    else:
        ordered = [*first, "advisor_mode", *middle]
    return [*((name, wanted[name], name not in _ON_EVERY_KERNEL) for name in ordered),
            ("run", "1", False)]


def render(export: Export) -> str:
    """The script. `sh FILE apply`, `show` and `undo`."""
    lines = "\n".join(f"{name} {value} {'optional' if optional else 'needed'}"
                      for name, value, optional in settings_of(export))
    short = export.digest[:12]
    head = export.comment(
        "Undo: sh THIS undo. Apply: sh THIS apply. Look: sh THIS show.",
        "Changing max_page_sharing or merge_across_nodes, and undoing, first unmerge everything:",
        "that needs free memory, which is checked (FORCE=1 does it all the same).")
    return f"#!/bin/sh\n{head}" + _BODY.replace("@SHORT@", short).replace("@SETTINGS@", lines)


_BODY = """\
set -eu

ksm=${KSM_FOLDER:-/sys/kernel/mm/ksm}
saved=${KSM_SAVED:-/run/ksm-planner-@SHORT@.saved}
settings='@SETTINGS@'

read_setting() { # the value of one file; of "[none] scan-time" the word in brackets
  sed -e 's/.*\\[\\(.*\\)\\].*/\\1/' "$ksm/$1"
}

check() {
  printf '%s\\n' "$settings" | while read -r name _ need; do
    if [ "$need" = needed ] && [ ! -e "$ksm/$name" ]; then
      echo "$ksm/$name is not there: this kernel cannot do it; nothing was changed" >&2
      exit 3
    fi
  done
}

show() {
  printf '%s\\n' "$settings" | while read -r name value _; do
    [ -e "$ksm/$name" ] || continue
    printf '%-24s now %s, wanted %s\\n' "$name" "$(read_setting "$name")" "$value"
  done
}

unmerge() { # run=2 gives every merged page a frame of its own
  [ "$(read_setting pages_shared)" = 0 ] && return 0
  need_kb=$(( $(read_setting pages_sharing) * 4 ))
  free_kb=$(awk '/^MemAvailable:/ {print $2}' "${MEMINFO:-/proc/meminfo}")
  if [ "$need_kb" -gt "$free_kb" ] && [ "${FORCE:-0}" != 1 ]; then
    echo "unmerging needs $need_kb kB, $free_kb kB are available; nothing was changed" >&2
    echo "(FORCE=1 does it all the same, and may wake the OOM killer)" >&2
    exit 3
  fi
  echo 2 > "$ksm/run"
}

write_all() { # lines "name value need" on standard input
  while read -r name value need; do
    if [ ! -e "$ksm/$name" ]; then
      if [ "$need" = needed ]; then exit 3; else continue; fi
    fi
    [ "$(read_setting "$name")" = "$value" ] || printf '%s\\n' "$value" > "$ksm/$name"
  done
}

must_unmerge() { # whether a setting changes that can change only while nothing is merged
  printf '%s\\n' "$1" | while read -r name value _; do
    case $name in
      max_page_sharing | merge_across_nodes)
        if [ -e "$ksm/$name" ] && [ "$(read_setting "$name")" != "$value" ]; then echo yes; fi ;;
      run) if [ "$value" = 2 ]; then echo yes; fi ;;
    esac
  done
}

apply() {
  check
  if [ -n "$(must_unmerge "$settings")" ]; then unmerge; fi
  if [ ! -e "$saved" ]; then
    printf '%s\\n' "$settings" | while read -r name _; do
      # The advisor's own, and refused while it is on.
      if [ "$name" = pages_to_scan ] && [ -e "$ksm/advisor_mode" ] &&
          [ "$(read_setting advisor_mode)" != none ]; then continue; fi
      if [ -e "$ksm/$name" ]; then echo "$name $(read_setting "$name") needed"; fi
    done | awk '!seen[$1]++' > "$saved.partial"
    mv "$saved.partial" "$saved"
  fi
  printf '%s\\n' "$settings" | write_all
  show
}

undo() {
  if [ ! -e "$saved" ]; then
    echo "$saved is not there: nothing was applied since the last boot" >&2
    exit 3
  fi
  before=$(cat "$saved")
  if [ -n "$(must_unmerge "$before")" ] || printf '%s\\n' "$before" | grep -q '^run 0 '; then
    unmerge
  fi
  printf '%s\\n' "$before" | write_all
  rm "$saved"
}

case ${1:-} in
  apply) apply ;;
  show) show ;;
  undo) undo ;;
  *) echo "usage: sh $0 apply|show|undo" >&2; exit 2 ;;
esac
"""
