"""OpenStack: `openstack server list --all-projects --long -f json`, with the flavors
(`openstack flavor list --all -f json`) and hosts (`openstack hypervisor list --long -f json`).

Projects become domains where the listing has them (`-c` adds the column Project ID).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.importers.inventory import Found, clean_labels, memory_of, positive, text_of
from planner.importers.textfile import Source, fault, parse_json, shown
from planner.inventory import InventoryRow

__all__ = ["read"]

_OWN = frozenset({"ID", "Name", "Status", "Networks", "Image Name", "Flavor Name", "Flavor",
                  "Host", "Task State", "Power State", "Pinned Availability Zone", "Image ID",
                  "Properties", "Image"})


def read(sources: Sequence[Source], host: str | None) -> Found:
    """Hosts of the hypervisor list, guests of the server list with their flavors' sizes."""
    found = Found()
    servers: list[tuple[Source, int, Mapping[str, Any]]] = []
    flavors: dict[str, tuple[int | None, int | None]] = {}
    for source in sources:
        document = parse_json(source)
        if not isinstance(document, list):
            raise fault(source, "expected a list", instead="use -f json")
        for index, item in enumerate(document):
            if not isinstance(item, dict):
                raise fault(source, f"entry {index} is {shown(item)}, expected an object")
            if "Hypervisor Hostname" in item:
                _host(source, index, item, found)
            elif "RAM" in item and "VCPUs" in item:
                size = (memory_of(source, item["RAM"], f"entry {index}: RAM", 1 << 20),
                        positive(source, item["VCPUs"], f"entry {index}: VCPUs"))
                flavors |= {str(item[key]): size for key in ("ID", "Name") if key in item}
            else:
                servers.append((source, index, item))
    for source, index, item in servers:
        _server(source, index, item, host, flavors, found)
    if servers and not flavors:
        found.notes.append("no flavors given: memory and CPUs of guests stay unknown; add the "
                           "output of openstack flavor list --all -f json")
    if servers and not any(row.domain for row in found.rows):
        found.notes.append("the server list has no project: list it with the column Project ID, "
                           "or each guest is a domain of its own")
    return found


def _host(source: Source, index: int, item: Mapping[str, Any], found: Found) -> None:
    name = text_of(item["Hypervisor Hostname"])
    if name is None:
        raise fault(source, f"entry {index}: a hypervisor without a name")
    labels = {"type": item.get("Hypervisor Type"), "state": item.get("State")}
    found.add(source, InventoryRow(
        True, name, None, memory_of(source, item.get("Memory MB"), f"entry {index}: Memory MB",
                                    1 << 20),
        positive(source, item.get("vCPUs"), f"entry {index}: vCPUs"),
        labels=clean_labels(found, labels)))


def _server(source: Source, index: int, item: Mapping[str, Any], host: str | None,
            flavors: Mapping[str, tuple[int | None, int | None]], found: Found) -> None:
    name = text_of(item.get("Name"))
    if name is None:
        raise fault(source, f"entry {index}: a server without a name")
    if item.get("Status") not in (None, "ACTIVE"):
        found.skipped["guest that does not run"] += 1
        return
    flavor = text_of(item.get("Flavor Name") or item.get("Flavor") or item.get("Flavor ID"))
    memory_bytes, cpus = flavors.get(flavor or "", (None, None))
    rest = {key: value for key, value in item.items()
            if key not in _OWN and not isinstance(value, dict | list)}
    properties = item.get("Properties")
    labels = clean_labels(found, {
        **(properties if isinstance(properties, dict) else {}), **rest,
        "id": item.get("ID"), "flavor": flavor})
    domain = next((text_of(item[key]) for key in ("Project Name", "Project ID", "project_id")
                   if item.get(key)), None)
    image = text_of(item.get("Image Name") or item.get("Image") or item.get("Image ID"))
    if image is not None and image.startswith("N/A"):
        image = None  # booted from a volume
    found.add(source, InventoryRow(False, name, text_of(item.get("Host")) or host, memory_bytes,
                                   cpus, domain, image, None, labels))
