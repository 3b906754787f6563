"""Metricbeat's NDJSON: events of the metricset linux.ksm, one JSON object a line."""

from __future__ import annotations

from planner.counters import Sample
from planner.importers.counters import Options, Read, counter_of, iso_time_ns
from planner.importers.textfile import Source, fault, parse_json, shown, whole_number

__all__ = ["read"]


def read(source: Source, options: Options) -> Read:
    """Samples of all linux.ksm events; other events are left out and counted."""
    found = Read()
    for number, line in source.lines():
        if not line.strip():
            continue
        event = parse_json(source, line, number)
        if not isinstance(event, dict):
            raise fault(source, "expected one JSON object a line", number)
        node: object = event
        for key in ("linux", "ksm", "stats"):
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            found.skipped["event of another metricset"] += 1
            continue
        time_ns = iso_time_ns(event.get("@timestamp"))
        if time_ns is None:
            raise fault(source, f"@timestamp is {shown(event.get('@timestamp'))}, expected a time "
                        "such as 2026-01-31T12:00:00.000Z", number)
        host = event.get("host") or event.get("agent")
        name = host.get("name") or host.get("hostname") if isinstance(host, dict) else None
        for key, value in node.items():
            counter = counter_of(key)
            if counter is None:
                found.skipped["field that is no KSM counter"] += 1
                continue
            whole = whole_number(value) if isinstance(value, int) else None
            if whole is None:
                raise fault(source, f"{key} is {shown(value)}, expected a whole number", number)
            found.add(source, Sample(time_ns, str(name or options.host), counter, whole), number)
    return found
