"""KubeVirt: which nodes its virt-handler runs KSM on, and at what pace."""

from __future__ import annotations

import json
import shlex

from planner.escape import file_name
from planner.exporters.common import Export, is_advised

__all__ = ["render"]

_LABEL = "ksm-planner/policy"
_GIB_16 = 16 << 30
_MIN_SLEEP_MS = 10


def render(export: Export) -> str:
    """A script of kubectl commands with `apply`, `show` and `undo`."""
    ksmd = export.ksmd_without_exclusions()
    host = export.host()
    if is_advised(ksmd):
        export.refuse("it leaves the pace to the kernel's advisor, and virt-handler sets the pace "
                      "itself", "use --as tmpfiles on the nodes, and leave KubeVirt's KSM off")
    if 0 < ksmd.sleep_millisecs < _MIN_SLEEP_MS or (
            ksmd.sleep_millisecs == 0 and export.run_value == "1"):
        export.refuse(f"it sleeps {ksmd.sleep_millisecs} ms, and virt-handler never less than "
                      "10 ms", "use --as tmpfiles on the nodes")
    selector = {"matchLabels": {_LABEL: file_name(export.policy.name, limit=63)}}
    patch = {"spec": {"configuration": {"ksmConfiguration": {
        "nodeLabelSelector": selector if export.run_value == "1" else None}}}}
    # virt-handler sleeps baseline * 16 GiB / memory in use.
    n_hosts = len(export.scenario.hosts)
    used = host.reserved_bytes + (
        int(export.row["guest_memory_bytes"]) - int(export.row["saved_bytes"])) // n_hosts
    baseline = max(1, round(ksmd.sleep_millisecs * used / _GIB_16))
    annotations = {
        "kubevirt.io/ksm-pages-init-override": ksmd.pages_to_scan,
        "kubevirt.io/ksm-pages-min-override": ksmd.pages_to_scan,
        "kubevirt.io/ksm-pages-max-override": ksmd.pages_to_scan,
        "kubevirt.io/ksm-pages-boost-override": 0,
        "kubevirt.io/ksm-pages-decay-override": 0,
        "kubevirt.io/ksm-sleep-ms-baseline-override": baseline,
        "kubevirt.io/ksm-free-percent-override": "1.0",
    }
    label = f"{_LABEL}={selector['matchLabels'][_LABEL]}"
    head = export.comment(
        "Label the nodes first: kubectl label node NODE " + label,
        "Where the HyperConverged operator is installed, put the same nodeLabelSelector into the "
        "HyperConverged",
        "object instead: it reverts edits of the KubeVirt object. No selector: no node; an empty "
        "one: all nodes.",
        f"virt-handler sleeps longer the less memory is in use: {ksmd.sleep_millisecs} ms with "
        f"{used >> 20} MiB in use. It looks every 10 minutes.",
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
