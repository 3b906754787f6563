"""libvirt: `virsh domstats --raw`, domain XML (`virsh dumpxml`) and `virsh nodeinfo`.

XML is read with the expat parser of the standard library; a document type declaration is
refused, and with it every entity beyond XML's own five.
"""

from __future__ import annotations

import re
import xml.parsers.expat as expat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.errors import DataError
from planner.importers.inventory import Found, clean_labels, memory_of, positive
from planner.importers.textfile import Source, fault, shown
from planner.inventory import InventoryRow

__all__ = ["read"]

_MAX_DEPTH = 64
_MAX_NODES = 200_000
#: Units of libvirt's scaled integers; bare is KiB for memory.
_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 10**6, "M": 1 << 20,
          "MiB": 1 << 20, "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40,
          "TiB": 1 << 40}
_STAT = re.compile(r"\s+([a-z][A-Za-z0-9_.-]{0,200})=(.*)")
_INFO = re.compile(r"([A-Z][A-Za-z0-9() ]{0,40}):\s+(.{0,200})")


def read(sources: Sequence[Source], host: str | None) -> Found:
    """Guests of domstats and XML joined by name; the host of `virsh nodeinfo`, named `host`."""
    found = Found()
    guests: dict[str, InventoryRow] = {}
    for source in sources:
        text = source.text.lstrip()
        if text.startswith("<"):
            rows = [_from_xml(source, found)]
        elif re.search(r"^Memory size:", text, re.MULTILINE):
            _nodeinfo(source, host, found)
            continue
        else:
            rows = _domstats(source, found)
        for row in rows:
            guests[row.name] = _joined(guests[row.name], row) if row.name in guests else row
    for row in guests.values():
        found.add(sources[0], replace(row, host=host))
    if guests and host is None:
        found.notes.append("libvirt names no host: give --host NAME, and the output of virsh "
                           "nodeinfo for its memory")
    return found


def _joined(one: InventoryRow, other: InventoryRow) -> InventoryRow:
    return replace(
        one, memory_bytes=one.memory_bytes or other.memory_bytes, cpus=one.cpus or other.cpus,
        image=one.image or other.image,
        mergeable=one.mergeable if one.mergeable is not None else other.mergeable,
        labels={**other.labels, **one.labels})


def _domstats(source: Source, found: Found) -> list[InventoryRow]:
    stats: dict[str, dict[str, tuple[str, int]]] = {}
    current: dict[str, tuple[str, int]] | None = None
    for number, line in source.lines():
        if not line.strip():
            continue
        if line.startswith("Domain: "):
            name = line.removeprefix("Domain: ").strip().strip("'")
            if name in stats:
                raise fault(source, f"domain {shown(name)} is listed twice", number)
            current = stats.setdefault(name, {})
            continue
        match = _STAT.fullmatch(line)
        if match is None or current is None:
            raise fault(source, f"expected Domain: 'NAME' or `  key=value`, got {shown(line)}",
                        number, "use virsh domstats --raw")
        if match[1] in current:
            raise fault(source, f"{match[1]} is given twice for one domain", number)
        current[match[1]] = (match[2], number)
    rows = []
    for name, values in stats.items():
        if values.get("state.state", ("1", 0))[0] != "1":
            found.skipped["guest that does not run"] += 1
            continue
        memory, memory_line = values.get("balloon.maximum", ("", 0))
        cpus, cpus_line = values.get("vcpu.current", ("", 0))
        rows.append(InventoryRow(
            False, name,
            memory_bytes=memory_of(source, memory, "balloon.maximum", 1024, memory_line),
            cpus=positive(source, cpus, "vcpu.current", cpus_line)))
    return rows


def _nodeinfo(source: Source, host: str | None, found: Found) -> None:
    values: dict[str, tuple[str, int]] = {}
    for number, line in source.lines():
        match = _INFO.fullmatch(line.strip()) if len(line) < 1000 else None
        if match is None:
            if line.strip():
                raise fault(source, f"expected `Name: value`, got {shown(line)}", number)
            continue
        values[match[1]] = (match[2].strip(), number)
    if host is None:
        raise fault(source, "nodeinfo does not name its host", instead="give --host NAME")
    memory, memory_line = values.get("Memory size", ("", 0))
    number_text, _, unit = memory.partition(" ")
    memory_bytes = memory_of(source, number_text, "Memory size", _UNITS.get(unit or "KiB", 1024),
                             memory_line)
    cpus, cpus_line = values.get("CPU(s)", ("", 0))
    found.add(source, InventoryRow(
        True, host, None, memory_bytes, positive(source, cpus, "CPU(s)", cpus_line),
        labels=clean_labels(found, {"cpu_model": values.get("CPU model", ("", 0))[0]})))


# ---- domain XML -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def find(self, path: str) -> _Element | None:
        """The first element below along `a/b/c`."""
        node: _Element | None = self
        for tag in path.split("/"):
            if node is None:
                break
            node = next((child for child in node.children if child.tag == tag), None)
        return node

    def walk(self) -> list[_Element]:
        """This element and all below it, in the order of the file."""
        result, waiting = [], [self]
        while waiting:
            node = waiting.pop()
            result.append(node)
            waiting.extend(reversed(node.children))
        return result


def _parse(source: Source) -> _Element:
    parser = expat.ParserCreate()
    root = _Element("", {}, 0)
    stack = [root]
    n_nodes = 0

    def refuse(*_: object) -> None:
        raise fault(source, "a document type declaration, which libvirt never writes",
                    parser.CurrentLineNumber)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal n_nodes
        n_nodes += 1
        if len(stack) > _MAX_DEPTH or n_nodes > _MAX_NODES:
            raise fault(source, "nested too deep, or too many elements", parser.CurrentLineNumber)
        node = _Element(tag.rpartition(":")[2], attributes, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def characters(text: str) -> None:
        if len(stack[-1].text) < 4096:
            stack[-1].text += text

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _tag: stack.pop()
    parser.CharacterDataHandler = characters
    try:
        # Encoded anew: the text was read as UTF-8, whatever the declaration says.
        text = re.sub(r"\A\s*<\?xml[^>]*\?>", "", source.text)
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise fault(source, f"not XML: {expat.ErrorString(error.code)}", error.lineno) from None
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise fault(source, f"not XML: {error}") from None
    return root


def _from_xml(source: Source, found: Found) -> InventoryRow:
    root = _parse(source)
    domain = root.find("domain") or root.find("domstatus/domain")
    if domain is None:
        raise fault(source, "no <domain> element", instead="use virsh dumpxml NAME")
    name = domain.find("name")
    if name is None or not name.text.strip():
        raise fault(source, "the domain has no <name>", domain.line)
    memory = domain.find("memory")
    memory_bytes = None
    if memory is not None:
        unit = memory.attributes.get("unit", "KiB")
        if unit not in _UNITS:
            raise fault(source, f"memory unit {shown(unit)} is not known", memory.line)
        memory_bytes = memory_of(source, memory.text.strip(), "memory", _UNITS[unit], memory.line)
    vcpu = domain.find("vcpu")
    cpus = None if vcpu is None else positive(source, vcpu.text.strip(), "vcpu", vcpu.line)
    huge = domain.find("memoryBacking/hugepages") is not None
    forbidden = domain.find("memoryBacking/nosharepages") is not None
    disks = [node for node in domain.walk() if node.tag == "disk"
             and node.attributes.get("device", "disk") == "disk"]
    backing = [node.attributes for disk in disks[:1] for node in disk.walk()
               if node.tag == "source" and len(disk.walk()) < 1000]
    # The last source of the chain is the base image that clones share.
    image = next((a[key] for a in reversed(backing) for key in ("file", "name", "dev", "volume")
                  if key in a), None)
    systems = [node.attributes.get("id", "") for node in domain.walk()
               if node.tag == "os" and "id" in node.attributes]
    uuid = domain.find("uuid")
    labels = clean_labels(found, {
        "uuid": uuid.text.strip() if uuid is not None else None,
        "os": systems[0] if systems else None, "hugepages": "true" if huge else None,
        "image": image})
    return InventoryRow(False, name.text.strip(), None, memory_bytes, cpus,
                        image=labels.pop("image", None), mergeable=not (huge or forbidden),
                        labels=labels)
