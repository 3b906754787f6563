"""Merge timing in words."""

from __future__ import annotations

from planner.policies.partition import merges_of
from planner.scenario.spec import (
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Merge,
    Never,
    PolicySpec,
    Sync,
    Trigger,
)
from planner.units import format_duration, format_share

__all__ = ["merge_text", "merges_nothing", "timing_text"]


def merges_nothing(policy: PolicySpec) -> bool:
    """Whether the policy leaves every page unmerged."""
    return all(isinstance(merge, Never | FreePages) for merge in merges_of(policy))


def timing_text(policy: PolicySpec) -> str:
    """The merge timing of a policy in words, with those of its explicit partitions."""
    own = [f"{rule.name}: {merge_text(rule.merge)}" for rule in policy.partitions
           if rule.merge is not None]
    return "; ".join([merge_text(policy.merge), *own])


def merge_text(merge: Merge) -> str:
    """A merge timing in words, such as `ksmd 100 pages / 20 ms`."""
    match merge:
        case Never():
            return "never"
        case Ksmd():
            return f"ksmd {merge.pages_to_scan} pages / {merge.sleep_millisecs} ms"
        case Ksmtuned():
            return (f"ksmtuned {merge.npages_min} to {merge.npages_max} pages / "
                    f"{merge.monitor_interval_s} s")
        case KubeVirt():
            return (f"KubeVirt {merge.pages_min} to {merge.pages_max} pages / "
                    f"{format_duration(merge.interval_ns)}")
        case FreePages():
            return ("free pages by balloon every " + format_duration(merge.every_ns)
                    if merge.kind == "balloon" else "free page reporting")
        case Sync():
            return _sync_text(merge)


def _sync_text(sync: Sync) -> str:
    words = [_trigger_text(trigger) for trigger in sync.at]
    if sync.longest_call_ns:
        words.append(f"at most {format_duration(sync.longest_call_ns)} a call")
    if sync.stagger_ns:
        words.append(f"guests {format_duration(sync.stagger_ns)} apart")
    if sync.advisor is not None:
        words.append(f"advised {format_duration(sync.advisor.shortest_ns)} to "
                     f"{format_duration(sync.advisor.longest_ns)}")
    return "sync " + ", ".join(words)


def _trigger_text(trigger: Trigger) -> str:
    match trigger.kind:
        case "boot" | "restore":
            return f"{trigger.kind} + {format_duration(trigger.after_ns)}"
        case "every":
            return f"every {format_duration(trigger.every_ns)}"
        case "pressure":
            text = f"free memory below {format_share(trigger.share)}"
        case "idle":
            text = f"idle above {format_share(trigger.share)}"
    return text + (f" (every {format_duration(trigger.every_ns)})" if trigger.every_ns else "")
