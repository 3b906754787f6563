"""A result without the names of its guests, domains and hosts: stable labels instead.

The same scenario always gives the same labels, in the order in which it names things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from planner.metrics import Result

__all__ = ["redacted", "redacted_sweep"]

Document = Mapping[str, Any]


def _numbered(kind: str, names: Iterable[object]) -> dict[str, str]:
    return {name: f"{kind}-{number}"
            for number, name in enumerate(dict.fromkeys(map(str, names)), 1)}


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels by name, for each kind of thing; `text` replaces names wherever words end."""

    hosts: Mapping[str, str]
    guests: Mapping[str, str]
    domains: Mapping[str, str]
    groups: Mapping[str, str]
    workloads: Mapping[str, str]
    values: Mapping[str, str]
    policies: Mapping[str, str]
    traces: Mapping[str, str]
    pattern: re.Pattern[str] | None

    def text(self, text: object) -> str:
        """`text` with every name in it replaced."""
        if self.pattern is None:
            return str(text)
        kinds = (self.traces, self.hosts, self.guests, self.domains, self.groups, self.workloads,
                 self.values)

        def label(match: re.Match[str]) -> str:
            return next(kind[match[0]] for kind in kinds if match[0] in kind)

        return self.pattern.sub(label, str(text))


def _hosts(result: Result) -> tuple[dict[str, str], dict[str, str]]:
    """Labels of hosts by name, and apart from them of machines of one kind: they keep their
    numbers."""
    specs = result.scenario["hosts"]
    kinds = _numbered("host", [host["name"] for host in specs])
    machines = {f"{host['name']}-{number:04d}": f"{kinds[str(host['name'])]}-{number:04d}"
                for host in specs if int(host.get("count", 1)) > 1
                for number in range(1, int(host["count"]) + 1)}
    in_tables = [name for name in result.hosts.column("host").to_pylist() if name not in machines]
    return _numbered("host", [*kinds, *in_tables]), machines


def _labels(result: Result) -> _Labels:
    scenario = result.scenario
    workloads = scenario["workloads"]
    guests = [guest for workload in workloads for guest in workload.get("guests", ())]
    draws = [workload["draw"] for workload in workloads if workload.get("draw")]
    groups = (scenario.get("domains") or {}).get("groups") or {}
    members = [domain for found in dict(groups).values() for domain in found]
    sensitive = (scenario.get("domains") or {}).get("sensitive") or ()
    in_tables = [domain for row in result.partitions.column("domains").to_pylist()
                 for domain in row]
    domains = _numbered("domain", [
        *(guest["domain"] for guest in guests if "domain" in guest), *members, *sensitive,
        *(domain for draw in draws for domain in draw.get("domains", ())), *in_tables])
    hosts, machines = _hosts(result)
    found = {
        "hosts": hosts | machines,
        "guests": _numbered("guest", (guest["name"] for guest in guests)),
        "domains": domains,
        "groups": _numbered("group", groups),
        "workloads": _numbered("workload", (workload["name"] for workload in workloads)),
        "values": _numbered("value", [
            *(value for guest in guests for value in dict(guest.get("labels", {})).values()),
            *(value for workload in workloads
              for value in dict(workload.get("select", {})).values()),
            *(draw["image"] for draw in draws if draw.get("image")),
            *(value for policy in scenario["policies"] for entry in policy.get("exclude", ())
              for value in dict(entry).values())]),
        "traces": _numbered("trace", (trace["path"] for trace in result.run["traces"])),
    }
    # A machine of many is its kind and a number: in texts the kind is enough.
    names = {name for kind in found.values() for name in kind
             if name.strip() and name not in machines}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)") \
        if names else None
    labels = _Labels(**found, policies={}, pattern=pattern)
    policies = result.summary.column("policy").to_pylist()
    renamed: dict[str, str] = {}
    for name in policies:
        label, n = labels.text(name), 1
        while label in renamed.values():
            n += 1
            label = f"{labels.text(name)}~{n}"
        renamed[name] = label
    return replace(labels, policies=renamed)


def _mapped(table: pa.Table, column: str, change: Callable[[Any], Any]) -> pa.Table:
    """`table` with `change` applied to each value of a column."""
    import pyarrow

    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    values = [change(value) for value in table.column(column).to_pylist()]
    return table.set_column(index, field, pyarrow.array(values, field.type))


def _tables(result: Result, labels: _Labels) -> dict[str, pa.Table]:
    names = dict.fromkeys(result.partitions.column("partition").to_pylist())
    partitions = _numbered("partition", (name for name in names if name != "all")) | {"all": "all"}

    def policy(name: str) -> str:
        return labels.policies.get(name, name)

    def host(name: str) -> str:
        return labels.hosts.get(name, "host")

    summary = _mapped(_mapped(result.summary, "policy", policy), "partition_by", labels.text)
    changed = {"summary": summary}
    changed["series"] = _mapped(result.series, "policy", policy)
    changed["replicates"] = _mapped(result.replicates, "policy", policy)
    for name in (name for name in result.replicates.schema.names if name.endswith("_host")):
        changed["replicates"] = _mapped(
            changed["replicates"], name, lambda found: None if found is None else host(found))
    for name in ("hosts", "partitions", "events"):
        changed[name] = _mapped(_mapped(getattr(result, name), "policy", policy), "host", host)
    changed["partitions"] = _mapped(
        _mapped(changed["partitions"], "partition", partitions.__getitem__), "domains",
        lambda found: [labels.domains[domain] for domain in found])
    drawn = _numbered("drawn", (name for name in result.events.column("guest").to_pylist()
                                if name and name not in labels.guests))
    changed["events"] = _mapped(
        _mapped(changed["events"], "partition", lambda name: partitions.get(name, "")), "guest",
        lambda name: labels.guests.get(name) or drawn.get(name, ""))
    return changed


def _scenario(scenario: Document, labels: _Labels) -> dict[str, Any]:
    """As much of the scenario as a report reads; the rest is left out."""
    domains = scenario.get("domains") or {}
    return {
        "name": labels.text(scenario.get("name", "")),
        "horizon_ns": scenario.get("horizon_ns", 0),
        "hosts": [{**host, "name": labels.hosts[str(host["name"])]}
                  for host in scenario["hosts"]],
        "workloads": [{"name": labels.workloads[str(workload["name"])],
                       "guests": [{"name": labels.guests[str(guest["name"])]}
                                  for guest in workload.get("guests", ())]}
                      for workload in scenario["workloads"]],
        "domains": {"sensitive": [labels.domains[str(domain)]
                                  for domain in domains.get("sensitive") or ()]},
        "policies": [{"name": labels.policies.get(policy["name"], "")}
                     for policy in scenario["policies"]],
        "costs": scenario.get("costs") or {},
    }


#: Keys of documents that name a policy.
_POLICY_KEYS = frozenset({"policy", "first", "second", "baseline"})


def _renamed(value: Any, labels: _Labels) -> Any:
    """A document of a plan with labels where it names policies and hosts, and in its notes."""
    if isinstance(value, list | tuple):
        return [_renamed(item, labels) for item in value]
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key in _POLICY_KEYS:
            found[key] = labels.policies.get(str(item), labels.text(item))
        elif key == "host" or key.endswith("_host"):
            found[key] = item if not item else labels.hosts.get(str(item), "host")
        elif key == "notes":
            found[key] = [labels.text(note) for note in item]
        else:
            found[key] = _renamed(item, labels)
    return found


def _replicates(run: Document, labels: _Labels) -> list[dict[str, Any]]:
    """What befell the fleet, without names of guests."""
    return [{key: _renamed(value, labels) for key, value in each.items() if key != "rejected"}
            for each in run.get("replicates") or ()]


def redacted_sweep(document: Document, result: Result) -> dict[str, Any]:
    """The document of a sweep with the labels of `result`, one of its cases, as it was before."""
    labels = _labels(result)
    found: dict[str, Any] = _renamed(document, labels)
    for case in found.get("cases", ()):
        case["inputs"] = {labels.text(key): labels.text(value) if isinstance(value, str) else value
                          for key, value in case["inputs"].items()}
    for effect in found.get("effects", ()):
        for key in ("input", "low_at", "high_at"):
            if isinstance(effect[key], str):
                effect[key] = labels.text(effect[key])
    return found


def _details(details: Document | None, labels: _Labels) -> dict[str, Any] | None:
    if details is None:
        return None
    by_key = {"workload": labels.workloads, "domain": labels.domains}
    return {
        **details,
        "waterfalls": [{**each, "policy": labels.policies.get(each["policy"], each["policy"])}
                       for each in details["waterfalls"]],
        "sharing": [{**each, "members": [
            by_key.get(each["key"], labels.values).get(name, "unlabelled")
            for name in each["members"]]} for each in details["sharing"]],
        "diagnosis": [{**each, "trace": labels.traces.get(each["trace"], "trace")}
                      for each in details["diagnosis"]],
    }


def _validation(document: Document, labels: _Labels, number: int) -> dict[str, Any]:
    """A validation whose host has a number, without the words of people."""
    found = {key: value for key, value in document.items()
             if key not in ("workload", "metrics_host", "notes", "timings")}
    host = document.get("host")
    if isinstance(host, Mapping):
        found["host"] = {"name": f"validated-host-{number}", "kernel": host.get("kernel", "")}
    else:
        found["host"] = found["metrics_host"] = f"validated-host-{number}"
    if "policy" in found:
        found["policy"] = labels.policies.get(str(found["policy"]), "")
    return found


def redacted(result: Result, details: Document | None, validation: Sequence[Document],
             ) -> tuple[Result, dict[str, Any] | None, list[dict[str, Any]]]:
    """The three with labels such as `guest-3` and `domain-1` instead of names.

    Names of workloads, groups, partitions, traces and values of labels go, too. Titles and names
    of strategies stay but for the names in them. What holds more than a report reads (the whole
    scenario, the record of the run) is left out.
    """
    labels = _labels(result)
    run: dict[str, Any] = {
        **{key: result.run[key] for key in ("format_version", "digest", "created", "seed",
                                            "validated", "versions", "assumptions")
           if key in result.run},
        "warnings": [labels.text(text) for text in result.run["warnings"]],
        "timings": [name if name.startswith("builtin:") else "a calibration"
                    for name in result.run["timings"]],
        "traces": [{**trace, "path": labels.traces[trace["path"]]}
                   for trace in result.run["traces"]],
        "replicates": _replicates(result.run, labels),
        "sampling": _renamed(result.run.get("sampling"), labels),
    }
    changed = replace(result, scenario=_scenario(result.scenario, labels), run=run,
                      plan=_renamed(result.plan, labels), **_tables(result, labels))
    return changed, _details(details, labels), [
        _validation(each, labels, number) for number, each in enumerate(validation, 1)]
