"""KubeVirt: which nodes its virt-handler runs KSM on, and at what pace."""

from __future__ import annotations

import json
import shlex

from planner.escape import file_name
from planner.exporters.common import Export, is_advised
from planner.scenario.spec import KubeVirt
from planner.units import format_duration

__all__ = ["render"]

_LABEL = "ksm-planner/policy"
_PREFIX = "kubevirt.io/ksm"
_GIB_16 = 16 << 30
_MIN_SLEEP_MS = 10


def render(export: Export) -> str:
    """A script of kubectl commands with `apply`, `show` and `undo`."""
    annotations, note = _annotations(export)
    selector = {"matchLabels": {_LABEL: file_name(export.policy.name, limit=63)}}
    patch = {"spec": {"configuration": {"ksmConfiguration": {
        "nodeLabelSelector": selector if export.run_value == "1" else None}}}}
    label = f"{_LABEL}={selector['matchLabels'][_LABEL]}"
    head = export.comment(
        "Label the nodes first: kubectl label node NODE " + label,
        "Where the HyperConverged operator is installed, put the same nodeLabelSelector into the "
        "HyperConverged",
        "object instead: it reverts edits of the KubeVirt object. No selector: no node; an empty "
        "one: all nodes.",
        note,
        "Apply: bash THIS apply. Look: bash THIS show. Undo: bash THIS undo.")
    sets = " ".join(shlex.quote(f"{key}={value}") for key, value in annotations.items())
    removes = " ".join(f"{key}-" for key in annotations)
    node = f"kubectl annotate node -l {shlex.quote(label)} --overwrite"
    off = json.dumps({"spec": {"configuration": {"ksmConfiguration": None}}})
    apply_patch = f'kubectl patch kubevirt "$name" -n "$namespace" --type=merge -p ' \
                  f"{shlex.quote(json.dumps(patch))}"
    undo_patch = f'kubectl patch kubevirt "$name" -n "$namespace" --type=merge -p ' \
                 f"{shlex.quote(off)}"
    annotate = f"    {node} {sets}\n" if export.run_value == "1" else ""
    return (f"#!/bin/bash\n{head}set -eu\n\n"
            "namespace=${KUBEVIRT_NAMESPACE:-kubevirt}\nname=${KUBEVIRT_NAME:-kubevirt}\n\n"
            'case ${1:-} in\n'
            f"  apply)\n{annotate}    {apply_patch}\n    ;;\n"
            '  show)\n    kubectl get kubevirt "$name" -n "$namespace" '
            "-o 'jsonpath={.spec.configuration.ksmConfiguration}'\n"
            f"    kubectl get node -l {shlex.quote(label)} -o yaml | grep kubevirt.io/ksm- || :\n"
            "    ;;\n"
            f"  undo)\n    {undo_patch}\n    {node} {removes}\n    ;;\n"
            '  *)\n    echo "usage: bash $0 apply|show|undo" >&2\n    exit 2\n    ;;\nesac\n')


def _annotations(export: Export) -> tuple[dict[str, int | str], str]:
    """Overrides of virt-handler's constants, and what there is to say of its loop.

    A policy of the loop itself gives its own; ksmd's knobs are held whatever memory is free.
    """
    merge = export.policy.merge
    if isinstance(merge, KubeVirt):
        export.check_one_space()
        export.check_no_exclusions()
        return {
            f"{_PREFIX}-pages-init-override": merge.pages_init,
            f"{_PREFIX}-pages-min-override": merge.pages_min,
            f"{_PREFIX}-pages-max-override": merge.pages_max,
            f"{_PREFIX}-pages-boost-override": merge.pages_boost,
            f"{_PREFIX}-pages-decay-override": merge.pages_decay,
            f"{_PREFIX}-sleep-ms-baseline-override": merge.sleep_ms_baseline,
            f"{_PREFIX}-free-percent-override": str(merge.free_percent),
        }, (f"The run looked every {format_duration(merge.interval_ns)}; how often virt-handler "
            "does is fixed in its version.")
    ksmd = export.ksmd_without_exclusions()
    host = export.host()
    if is_advised(ksmd):
        export.refuse("it leaves the pace to the kernel's advisor, and virt-handler sets the pace "
                      "itself", "use --as tmpfiles on the nodes, and leave KubeVirt's KSM off")
    if 0 < ksmd.sleep_millisecs < _MIN_SLEEP_MS or (
            ksmd.sleep_millisecs == 0 and export.run_value == "1"):
        export.refuse(f"it sleeps {ksmd.sleep_millisecs} ms, and virt-handler never less than "
                      "10 ms", "use --as tmpfiles on the nodes")
    # virt-handler sleeps baseline * 16 GiB / memory in use.
    n_hosts = sum(each.count for each in export.scenario.hosts)
    used = host.reserved_bytes + (
        int(export.row["guest_memory_bytes"]) - int(export.row["saved_bytes"])) // n_hosts
    baseline = max(1, round(ksmd.sleep_millisecs * used / _GIB_16))
    return {
        f"{_PREFIX}-pages-init-override": ksmd.pages_to_scan,
        f"{_PREFIX}-pages-min-override": ksmd.pages_to_scan,
        f"{_PREFIX}-pages-max-override": ksmd.pages_to_scan,
        f"{_PREFIX}-pages-boost-override": 0,
        f"{_PREFIX}-pages-decay-override": 0,
        f"{_PREFIX}-sleep-ms-baseline-override": baseline,
        f"{_PREFIX}-free-percent-override": "1.0",
    }, (f"virt-handler sleeps longer the less memory is in use: {ksmd.sleep_millisecs} ms with "
        f"{used >> 20} MiB in use. It looks every 10 minutes.")
