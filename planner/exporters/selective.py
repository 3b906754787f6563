"""A plan for Selective KSM: which partitions there are, who is in them, when they merge.

docs/settings.md documents the file. The interface is a proposal: whoever applies the plan must
test for it first, and can do nothing where it is not there.
"""

from __future__ import annotations

import json
from typing import Any

from planner.exporters.common import Export, is_guest_label, knobs
from planner.policies.partition import UNLABELLED, kernel_names, partition_name, partition_text
from planner.scenario.spec import OWN_LABELS, FreePages, GuestSpec, Ksmd, Never, Sync

__all__ = ["FORMAT_VERSION", "KIND", "render"]

KIND = "planner.selective-ksm"
#: Minor things are added, major ones raise it: readers refuse a number they do not know.
FORMAT_VERSION = 1
#: Of the run's last state of a partition.
_EXPECTED = ("saved_bytes", "saved_zero_bytes", "pages_shared", "pages_sharing")


def render(export: Export) -> str:
    """The plan as JSON."""
    policy = export.policy
    if isinstance(policy.merge, Never):
        export.refuse("it never merges", "use --as sysfs, which stops ksmd and undoes its merges")
    if isinstance(policy.merge, Ksmd) and not policy.partition_by:
        export.refuse("it is what a mainline kernel does already: one merge space, one ksmd",
                      "use --as sysfs or --as tmpfiles")
    _check_known(export)
    for key in policy.partition_by:
        if not is_guest_label(export.scenario, key):
            export.refuse(f"it separates by {key!r}, a label of regions, and a plan names whole "
                          "guests", "separate by a label of guests")
    row, run = export.row, export.result.run
    document: dict[str, Any] = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "scenario": export.scenario.name,
        "policy": policy.name,
        "run_digest": export.digest,
        "planner": str(run["versions"].get("planner", "")),
        "is_validated": bool(run["validated"]),
        "partition_by": list(policy.partition_by),
        "partitions_in_words": partition_text(policy),
        "expected": {name: row[name] for name in (
            "saved_bytes", "saved_zero_bytes", "saved_share", "merge_cpu_ns",
            "cross_domain_pages", "unmerge_bytes")} | {"horizon_ns": export.scenario.horizon_ns},
        "current": dict(export.current.values) if export.current is not None else None,
        "undo": "ksm_unmerge every member's memory, then ksm_unlink every partition; needs up to "
                "expected.unmerge_bytes of free memory",
        **_members(export),
        "triggers": _triggers(policy.merge),
    }
    return json.dumps(document, indent=1) + "\n"


def _check_known(export: Export) -> None:
    """Refuse what the format has no place for."""
    policy, merge = export.policy, export.policy.merge
    if export.scenario.is_fleet:
        export.refuse("the guests of a fleet are drawn: nobody of their names runs anywhere",
                      "export it from a replay of your own guests (planner init CAPTURE)")
    if policy.partitions or policy.cooperation.kind != "none":
        export.refuse("a plan has no explicit partitions and knows nothing of cooperating guests",
                      "separate by a label of guests, without cooperation")
    if isinstance(merge, FreePages):
        export.refuse_free_pages()
    if not isinstance(merge, Sync | Ksmd):
        export.refuse("nobody steers partitions by free memory", "export a policy with merge: sync")
    if isinstance(merge, Sync) and (
            merge.longest_call_ns or merge.stagger_ns or merge.advisor is not None
            or any(trigger.kind not in ("boot", "every") for trigger in merge.at)):
        export.refuse("a plan's triggers are boot and every, without limits of calls, and nobody "
                      "advises them", "export a policy with these triggers")


def _members(export: Export) -> dict[str, Any]:
    """`partitions` with their members, and `excluded` guests."""
    policy = export.policy
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    excluded = []
    for guest, host, may_merge in export.guests():
        labels = {key: value for key, value in guest.labels if key not in OWN_LABELS}
        member = {"guest": guest.name, "host": host, "domain": guest.domain, "labels": labels}
        if not may_merge:
            excluded.append(member)
            continue
        values = tuple(_value(guest, key) for key in policy.partition_by)
        groups.setdefault(values, []).append(member)
    titles = [partition_name(values) for values in groups]
    expected = _expected(export)
    mode = ({"mode": "sync"} if isinstance(policy.merge, Sync) else
            {"mode": "ksmd", "ksmd": knobs(policy.merge) if isinstance(policy.merge, Ksmd) else {}})
    partitions = [{
        "name": name, "title": title, "values": dict(zip(policy.partition_by, values, strict=True)),
        **mode, "domains": sorted({member["domain"] for member in members}),
        "expected": expected.get(title), "members": members,
    } for name, title, (values, members) in zip(kernel_names(titles), titles, groups.items(),
                                                strict=True)]
    return {"partitions": partitions, "excluded": excluded}


def _value(guest: GuestSpec, key: str) -> str:
    return dict(guest.labels).get(key, f"{UNLABELLED}:{guest.name}")


def _expected(export: Export) -> dict[str, dict[str, int]]:
    """What each partition saved at the end of the run, by its title."""
    found: dict[str, dict[str, int]] = {}
    for row in export.result.partitions.to_pylist():
        if row["policy"] == export.policy.name and export.host_name in (None, row["host"]):
            sums = found.setdefault(row["partition"], dict.fromkeys(_EXPECTED, 0))
            for name in sums:
                sums[name] += int(row[name])
    return found


def _triggers(merge: object) -> list[dict[str, Any]]:
    if not isinstance(merge, Sync):
        return []
    return [{"kind": trigger.kind,
             **({"after_ns": trigger.after_ns} if trigger.kind == "boot" else
                {"every_ns": trigger.every_ns})}
            for trigger in merge.at]
