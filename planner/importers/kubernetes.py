"""Kubernetes and KubeVirt: `kubectl get nodes,pods,vmi -A -o json`.

Nodes become hosts, VirtualMachineInstances and pods guests, namespaces domains. The pod that
runs a virtual machine (virt-launcher) is left out: the machine itself is listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from planner.importers.inventory import Found, clean_labels, text_of
from planner.importers.textfile import Source, fault, parse_json, shown
from planner.inventory import InventoryRow

__all__ = ["quantity", "read"]

_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,12})?)([eE][0-9]{1,2}|m|k|Ki|[MGTPE]i?)?")
_SCALE = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000), "Ki": Decimal(1024)}
for _power, _letter in enumerate("MGTPE", start=2):
    _SCALE[_letter] = Decimal(1000) ** _power
    _SCALE[_letter + "i"] = Decimal(1024) ** _power


def quantity(text: object) -> int | None:
    """A resource quantity such as 32827812Ki, 1500m or 1e9, rounded up; None for no quantity."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or isinstance(text, bool):
        return None
    number, unit = match[1], match[2] or ""
    scale = Decimal(10) ** int(unit[1:]) if unit[:1] in "eE" and unit[1:].isdecimal() \
        else _SCALE[unit]
    value = Decimal(number) * scale
    whole = int(value) + (value != int(value))
    return whole if whole < 2**63 else None


def read(sources: Sequence[Source], host: str | None) -> Found:
    """Rows of every List or object in the sources."""
    found = Found()
    for source in sources:
        document = parse_json(source)
        if not isinstance(document, dict):
            raise fault(source, "expected an object",
                        instead="use kubectl get nodes,pods,vmi -A -o json")
        items = document.get("items") if "items" in document else [document]
        if not isinstance(items, list):
            raise fault(source, f"items is {shown(items)}, expected a list")
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                raise fault(source, f"items[{index}] is {shown(item)}, expected an object")
            _item(source, item, f"items[{index}]", host, found)
    return found


def _get(item: Any, *path: str) -> Any:
    """The value along `path`; None where there is none."""
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def _amount(source: Source, value: Any, where: str) -> int | None:
    if value is None:
        return None
    number = quantity(value)
    if number is None:
        raise fault(source, f"{where} is {shown(value)}, expected a quantity such as 4Gi")
    return number or None


def _item(source: Source, item: dict[str, Any], where: str, host: str | None,
          found: Found) -> None:
    kind, name = item.get("kind"), text_of(_get(item, "metadata", "name"))
    if kind not in ("Node", "Pod", "VirtualMachineInstance"):
        found.skipped["object that is neither node, pod nor vmi"] += 1
        return
    if name is None:
        raise fault(source, f"{where} has no metadata.name")
    labels = clean_labels(found, _get(item, "metadata", "labels"))
    namespace = text_of(_get(item, "metadata", "namespace")) or "default"
    if kind == "Node":
        capacity = _get(item, "status", "capacity")
        annotations = _get(item, "metadata", "annotations")
        if isinstance(annotations, dict):
            labels |= clean_labels(found, {key: value for key, value in annotations.items()
                                           if str(key).startswith("kubevirt.io/ksm")})
        found.add(source, InventoryRow(
            True, name, None,
            _amount(source, _get(capacity, "memory"), f"{where}.status.capacity.memory"),
            _amount(source, _get(capacity, "cpu"), f"{where}.status.capacity.cpu"),
            labels=labels))
        return
    phase = _get(item, "status", "phase")
    if phase in ("Succeeded", "Failed"):
        found.skipped["guest that does not run"] += 1
        return
    if kind == "Pod":
        if labels.get("kubevirt.io") == "virt-launcher":
            found.skipped["virt-launcher pod; its vmi is the guest"] += 1
            return
        _pod(source, item, where, namespace, name, host, labels, found)
        return
    domain = _get(item, "spec", "domain")
    huge = _get(domain, "memory", "hugepages") is not None
    memory = _get(domain, "memory", "guest") or _get(domain, "resources", "requests", "memory")
    cpu = [_amount(source, _get(domain, "cpu", key), f"{where}.spec.domain.cpu.{key}") or 1
           for key in ("cores", "sockets", "threads")]
    volumes = _get(item, "spec", "volumes")
    images = [text_of(_get(volume, "containerDisk", "image"))
              for volume in volumes] if isinstance(volumes, list) else []
    # libvirt's name of the machine, which is what a capture on the node sees.
    found.add(source, InventoryRow(
        False, f"{namespace}_{name}", text_of(_get(item, "status", "nodeName")) or host,
        _amount(source, memory, f"{where}: memory"), cpu[0] * cpu[1] * cpu[2], namespace,
        next((image for image in images if image), None), not huge,
        {**labels, "namespace": namespace, "kind": "vmi"}))


def _pod(source: Source, item: dict[str, Any], where: str, namespace: str, name: str,
         host: str | None, labels: dict[str, str], found: Found) -> None:
    containers = _get(item, "spec", "containers")
    containers = containers if isinstance(containers, list) else []
    memory_bytes = sum(
        _amount(source, _get(container, "resources", "requests", "memory"),
                f"{where}: memory request") or 0 for container in containers)
    found.add(source, InventoryRow(
        False, f"{namespace}/{name}", text_of(_get(item, "spec", "nodeName")) or host,
        memory_bytes or None, None, namespace,
        text_of(_get(containers[0], "image")) if containers else None, None,
        {**labels, "namespace": namespace, "kind": "pod"}))
