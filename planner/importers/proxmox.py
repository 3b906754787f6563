"""Proxmox VE: `pvesh get /cluster/resources --output-format json` and guests' configurations.

Configurations are the text of `qm config ID` in a file named after the ID (`101.conf`), or the
JSON of `pvesh get /nodes/NODE/qemu/ID/config`. Pools, else tags, become domains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from planner.importers.inventory import Found, clean_labels, memory_of, positive, text_of
from planner.importers.textfile import Source, fault, parse_json, shown
from planner.inventory import InventoryRow

__all__ = ["read"]

#: Keys of a configuration that tell guests apart for merging; disks and networks do not.
_CONFIG_LABELS = ("ostype", "machine", "cpu", "tags", "hugepages", "balloon")
_VOLATILE = frozenset({"cpu", "disk", "diskread", "diskwrite", "mem", "memhost", "netin", "netout",
                       "uptime", "id", "maxdisk", "maxmem", "maxcpu", "name", "node", "type",
                       "status", "pool", "vmid", "template", "level", "cgroup-mode"})


def read(sources: Sequence[Source], host: str | None) -> Found:
    """Hosts and guests (QEMU and LXC); templates and stopped guests are left out."""
    found = Found()
    configs: dict[str, tuple[Source, Mapping[str, Any]]] = {}
    guests: dict[str, InventoryRow] = {}
    for source in sources:
        if source.text.lstrip()[:1] == "[":
            _resources(source, parse_json(source), found, guests)
        else:
            config = _config(source)
            match = re.search(r"([0-9]+)$", source.stem)
            vmid = match.group(1) if match else str(config.get("vmid", ""))
            if not vmid:
                raise fault(source, "which guest is this the configuration of?",
                            instead="name the file after its ID, such as 101.conf")
            configs[vmid] = (source, config)
    for vmid, (source, config) in configs.items():
        known = guests.get(vmid)
        if known is None and guests:
            found.skipped["configuration of a guest that is not listed"] += 1
            continue
        name = text_of(config.get("name")) or f"vm-{vmid}"
        row = known or InventoryRow(False, name, host, labels={"vmid": vmid})
        guests[vmid] = _configured(source, row, config, found)
    for row in guests.values():
        found.add(sources[0], row)
    return found


def _resources(source: Source, document: Any, found: Found,
               guests: dict[str, InventoryRow]) -> None:
    if not isinstance(document, list):
        raise fault(source, "expected a list of resources",
                    instead="use pvesh get /cluster/resources --output-format json")
    for index, item in enumerate(document):
        where = f"entry {index}"
        if not isinstance(item, dict):
            raise fault(source, f"{where} is {shown(item)}, expected an object")
        kind = item.get("type")
        memory_bytes = memory_of(source, item.get("maxmem"), f"{where}: maxmem")
        cpus = positive(source, item.get("maxcpu"), f"{where}: maxcpu")
        if kind == "node":
            name = text_of(item.get("node"))
            if name is None:
                raise fault(source, f"{where}: a node without a name")
            found.add(source, InventoryRow(
                True, name, None, memory_bytes, cpus,
                labels=clean_labels(found, {"status": item.get("status")})))
        elif kind in ("qemu", "lxc"):
            vmid = text_of(item.get("vmid"))
            if vmid is None:
                raise fault(source, f"{where}: a guest without a vmid")
            if item.get("template") in (1, True):
                found.skipped["template"] += 1
            elif item.get("status") not in (None, "running"):
                found.skipped["guest that does not run"] += 1
            else:
                rest = {key: value for key, value in item.items()
                        if key not in _VOLATILE and not key.startswith("pressure")
                        and not isinstance(value, dict | list)}
                labels = clean_labels(found, {**rest, "vmid": vmid, "kind": kind,
                                              "pool": item.get("pool")})
                domain = labels.get("pool") or labels.get("tags")
                guests[vmid] = InventoryRow(
                    False, text_of(item.get("name")) or f"vm-{vmid}", text_of(item.get("node")),
                    memory_bytes, cpus, domain, labels=labels)
        else:
            found.skipped["resource that is neither node nor guest"] += 1


def _config(source: Source) -> Mapping[str, Any]:
    if source.text.lstrip()[:1] == "{":
        document = parse_json(source)
        if not isinstance(document, dict):
            raise fault(source, "expected an object")
        return document
    config: dict[str, str] = {}
    for number, line in source.lines():
        if line.startswith("["):
            break  # snapshots follow; the current settings stand first
        if not line.strip() or line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key.strip()):
            raise fault(source, f"expected `key: value`, got {shown(line)}", number)
        if key.strip() in config:
            raise fault(source, f"{key.strip()} is given twice", number)
        config[key.strip()] = value.strip()
    return config


def _configured(source: Source, row: InventoryRow, config: Mapping[str, Any],
                found: Found) -> InventoryRow:
    """`row` with what the guest's configuration adds: huge pages and allow-ksm."""
    labels = clean_labels(found, {key: config.get(key) for key in _CONFIG_LABELS})
    # `current=4096` since the memory property string of Proxmox VE 8.
    memory = str(config.get("memory", "")).removeprefix("current=")
    cores = positive(source, config.get("cores"), "cores")
    sockets = positive(source, config.get("sockets"), "sockets") or 1
    forbids = str(config.get("allow-ksm", "1")) in ("0", "False") or "hugepages" in config
    return replace(
        row,
        memory_bytes=row.memory_bytes or memory_of(source, memory, "memory", 1 << 20),
        cpus=row.cpus or (cores * sockets if cores else None),
        domain=row.domain or labels.get("tags"),
        mergeable=not forbids,
        labels={**row.labels, **labels})
