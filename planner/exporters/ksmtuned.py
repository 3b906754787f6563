"""/etc/ksmtuned.conf: the daemon of many distributions, held at the pace of the policy."""

from __future__ import annotations

from planner.exporters.common import Export, is_advised
from planner.scenario.spec import Ksmtuned

__all__ = ["assignments", "render"]

#: KSM_SLEEP_MSEC is for a host of this many kB (ksmtuned 4.20150326).
_BASE_KB = 16 * 1024 * 1024
_MIN_SLEEP_MS = 10


def assignments(export: Export) -> list[str]:
    """Lines of shell assignments; refuses what the daemon cannot do."""
    merge = export.policy.merge
    if isinstance(merge, Ksmtuned):
        export.check_one_space()
        return _keys(merge)
    ksmd = export.ksmd()
    if export.run_value == "0":
        export.refuse("it never merges, and ksmtuned is there to merge",
                      "stop and disable ksmtuned, and use --as sysfs")
    if ksmd.sleep_millisecs < _MIN_SLEEP_MS:
        export.refuse(f"it sleeps {ksmd.sleep_millisecs} ms, and ksmtuned never less than 10 ms",
                      "use --as tmpfiles and disable ksmtuned")
    if is_advised(ksmd):
        export.refuse("it leaves the pace to the kernel's advisor, with which ksmtuned would "
                      "collide", "use --as tmpfiles and disable ksmtuned")
    total_kb = export.host().memory_bytes // 1024
    # The daemon computes KSM_SLEEP_MSEC * 16 GiB / total in integers; the least that gives it.
    sleep = -(-ksmd.sleep_millisecs * total_kb // _BASE_KB)
    got = max(_MIN_SLEEP_MS, sleep * _BASE_KB // total_kb)
    return [
        f"KSM_NPAGES_MIN={ksmd.pages_to_scan}",
        f"KSM_NPAGES_MAX={ksmd.pages_to_scan}",
        f"# gives a sleep of {got} ms on a host of {total_kb} kB; the policy's is "
        f"{ksmd.sleep_millisecs} ms",
        f"KSM_SLEEP_MSEC={sleep}",
        "# a threshold of all memory: ksmd runs always, as it did in the run",
        "KSM_THRES_COEF=100",
        "# KSM_THRES_CONST is in kB, despite the manuals: with the coefficient above it never "
        "binds",
        "KSM_THRES_CONST=2048",
        "KSM_MONITOR_INTERVAL=60",
    ]


def _keys(merge: Ksmtuned) -> list[str]:
    """The daemon's own settings, as the policy has them."""
    return [
        f"KSM_MONITOR_INTERVAL={merge.monitor_interval_s}",
        f"KSM_SLEEP_MSEC={merge.sleep_msec}",
        f"KSM_NPAGES_BOOST={merge.npages_boost}",
        f"KSM_NPAGES_DECAY={merge.npages_decay}",
        f"KSM_NPAGES_MIN={merge.npages_min}",
        f"KSM_NPAGES_MAX={merge.npages_max}",
        f"KSM_THRES_COEF={merge.thres_coef}",
        "# in kB, despite the manuals",
        f"KSM_THRES_CONST={merge.thres_const}",
    ]


def render(export: Export) -> str:
    """The file."""
    body = assignments(export)
    export.check_no_exclusions()
    notes = ["Put into /etc/ksmtuned.conf, then: systemctl restart ksmtuned",
             "Undo: put back the file from before, restart ksmtuned (merged pages stay merged;",
             "  echo 2 > /sys/kernel/mm/ksm/run unmerges them, and needs the memory to do so).",
             "ksmtuned sets pages_to_scan, sleep_millisecs and run only; --as tmpfiles has the "
             "rest."]
    return export.comment(*notes) + "\n".join(body) + "\n"
