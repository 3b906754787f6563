"""A first scenario for a trace, as text with comments: what `planner init` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.escape import clean, file_name, quoted
from planner.scenario.spec import FleetFacts, TraceFacts
from planner.units import format_duration

__all__ = ["Source", "draft_scenario"]

#: Labels that tell a security domain, the likeliest first.
_DOMAIN_LABELS = ("domain", "tenant", "pool", "project", "namespace", "customer")
_NS_PER_S = 1_000_000_000
_GIB = 1 << 30
_PAGE_BYTES = 4096
_MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A trace to take guests from: `path` as the scenario is to name it.

    `host_bytes` and `n_cpus` are of the captured machine where known; `is_advised` says whether
    any memory was offered to KSM when it was captured.
    """

    path: str
    facts: TraceFacts
    host_bytes: int | None
    n_cpus: int | None
    is_advised: bool


def draft_scenario(name: str, sources: Sequence[Source], fleet: FleetFacts | None = None,
                   fleet_path: str = "") -> str:
    """The text of a scenario over all guests of the traces; `fleet_path` as it is to be named.

    Every trace must span some time, which a scenario replays.
    """
    span_ns = min(source.facts.span_ns for source in sources)
    lines = [
        "# yaml-language-server: $schema=./scenario.schema.json",
        "# (planner schema > scenario.schema.json, and the editor completes and explains keys)",
        "#",
        "# A first scenario: guests exactly as captured, compared under the strategies below.",
        "# Look first at hosts, domain and sensitive; then:",
        "#   planner check THIS      every fault at once",
        "#   planner run THIS        the table and the report",
        "#   planner schema KEY      what a key means, such as policies.merge.ksmd.pages_to_scan",
        "planner: 1                        # format of this file",
        f"name: {file_name(name, 'scenario')}",
        "seed: 42                          # all policies meet the same writes at the same times",
    ]
    lines.append(f"horizon: captured                 # all that was captured: "
                 f"{format_duration(span_ns)}")
    lines += ["", *_hosts(sources, fleet, fleet_path), "", *_workloads(sources, fleet), "",
              *_domains(sources, fleet), "", *_policies(span_ns), "",
              "output:",
              "  folder: results                 # results/<name>-<digest>/"]
    return "\n".join(map(_aligned, lines)) + "\n"


def _aligned(line: str) -> str:
    """The comment after a setting in one column with the others."""
    code, mark, note = line.rpartition("  # ")
    return f"{code.rstrip():<33} # {note}" if mark and code.strip() else line


def _hosts(sources: Sequence[Source], fleet: FleetFacts | None, fleet_path: str) -> list[str]:
    if fleet is not None:
        return ["hosts:", f"  from: {quoted(fleet_path)}   # {len(fleet.hosts)} host(s); captured "
                "guests get its labels"]
    known = [source.host_bytes for source in sources if source.host_bytes]
    guests = sum(guest.memory_bytes or guest.n_pages * _PAGE_BYTES
                 for source in sources for guest in source.facts.guests)
    size = max([*known, guests + guests // 4 if not known else 0])
    whence = "as captured" if known else "a guess from the guests; write what is installed"
    cores = max((source.n_cpus or 0 for source in sources), default=0)
    lines = ["hosts:", "  - name: host",
             f"    memory: {-(-size // _GIB)}GiB                  # {whence}",
             "    reserved: 8%                  # what the host itself needs"]
    if cores:
        lines.append(f"    cores: {cores}")
    return lines


def _labels_of_all(sources: Sequence[Source], fleet: FleetFacts | None) -> dict[str, list[str]]:
    """Labels that every captured guest has, with their values in order of appearance."""
    listed = dict(fleet.guests) if fleet is not None else {}
    guests = [{**guest.labels, **listed.get(guest.name, {})}
              for source in sources for guest in source.facts.guests]
    common = set(guests[0]).intersection(*guests) if guests else set()
    return {key: list(dict.fromkeys(labels[key] for labels in guests)) for key in sorted(common)
            if _is_usable(key)}


def _is_usable(text: str) -> bool:
    return bool(text.strip()) and text.isprintable() and len(text) <= 256


def _domain_label(labels: dict[str, list[str]]) -> str | None:
    return next((key for key in _DOMAIN_LABELS if key in labels
                 and all(map(_is_usable, labels[key]))), None)


def _workloads(sources: Sequence[Source], fleet: FleetFacts | None) -> list[str]:
    labels = _labels_of_all(sources, fleet)
    domain = _domain_label(labels)
    listed = dict(fleet.guests) if fleet is not None else {}
    lines = ["workloads:                        # guests, by the trace they come from"]
    for number, source in enumerate(sources):
        name = "guests" if len(sources) == 1 else f"guests-{number + 1}"
        places: list[str | None] = [None]
        if fleet is not None and len(fleet.hosts) > 1:
            found = {str(listed.get(guest.name, {}).get("host", "")) or fleet.hosts[0].name
                     for guest in source.facts.guests}
            places = [host.name for host in fleet.hosts if host.name in found]
        for place in places:
            suffix = "" if place is None or len(places) == 1 else f"-{places.index(place) + 1}"
            lines += [f"  - name: {name}{suffix}",
                      f"    trace: {quoted(source.path)}   # {len(source.facts.guests)} guests, "
                      f"{source.facts.n_snapshots} snapshot(s)"]
            if place is not None:
                lines.append(f"    host: {place}")
                if len(places) > 1:
                    lines.append(f"    select: {{host: {quoted(place)}}}")
            if domain is not None:
                lines.append(f"    domain: {{label: {quoted(domain)}}}   # the security domain "
                             "of each guest")
            else:
                lines += ["    # domain: tenant-{1..3}       # no label tells a domain: each guest "
                          "is one of its own;",
                          "    #                             # name one, deal out a pattern, or "
                          "say {label: KEY}"]
            if not source.is_advised:
                lines.append("    mergeable: all                # nothing was advised when "
                             "captured: as if all were")
    lines += ["    # count: 100                  # with placement: first-fit and a horizon such as "
              "1d above:",
              "    #                             # a hundred guests drawn like these, on hosts "
              "with a count"]
    if labels:
        shown = [f"{clean(key)} ({', '.join(clean(value, 24) for value in values[:4])}"
                 + (", ...)" if len(values) > 4 else ")") for key, values in labels.items()]
        lines.append(f"    # labels of the guests: {'; '.join(shown[:_MAX_SHOWN])}")
    return lines


def _domains(sources: Sequence[Source], fleet: FleetFacts | None) -> list[str]:
    labels = _labels_of_all(sources, fleet)
    key = _domain_label(labels)
    values = labels[key] if key is not None else []
    shown = ", ".join(quoted(value) for value in values[:2]) or "tenant-1, tenant-2"
    last = quoted(values[-1]) if values else "tenant-3"
    return ["domains:",
            f"  sensitive: []                   # such as [{last}]: exposure to these is reported "
            "apart",
            f"  # groups: {{partners: [{shown}]}}",
            "  #                               # these trust one another: partition_by: group"]


def _policies(span_ns: int) -> list[str]:
    span_s = span_ns // _NS_PER_S
    after_ns = 60 * _NS_PER_S if span_s >= 200 else span_ns // 4
    every_ns = (span_s // 2 // 30 * 30 or span_s // 2) * _NS_PER_S
    lines = ["policies:                         # compared side by side; the first is the baseline",
             "  - name: never",
             "    merge: never",
             "",
             "  - name: ksmd-default            # mainline: one merge space, the kernel's default "
             "pace",
             "    merge:",
             "      ksmd: {pages_to_scan: 100, sleep_millisecs: 20}",
             "",
             "  - name: ksmd-fast               # mainline, ten times as fast",
             "    merge:",
             "      ksmd: {pages_to_scan: 1000, sleep_millisecs: 20}",
             "",
             "  - name: domain-at-boot          # Selective KSM: a partition a domain, merged once",
             "    partition_by: domain",
             "    merge:",
             f"      sync: {{at: [{{boot: {{after: {_exact(after_ns)}}}}}]}}"]
    if every_ns:
        lines += ["",
                  "  - name: domain-repeated         # and again every so often",
                  "    partition_by: domain",
                  "    merge:",
                  f"      sync: {{at: [{{boot: {{after: {_exact(after_ns)}}}}}, "
                  f"{{every: {_exact(every_ns)}}}]}}"]
    return lines


def _exact(n_ns: int) -> str:
    """A duration as a scenario writes it, in whole seconds, or milliseconds below ten."""
    if n_ns >= 10 * _NS_PER_S:
        return f"{n_ns // _NS_PER_S}s"
    return f"{max(1, n_ns // 1_000_000)}ms"
