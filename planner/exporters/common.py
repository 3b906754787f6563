"""What all exporters share: the policy with its forecast, what a host has now, the header."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from planner.errors import UsageError
from planner.escape import clean, printable
from planner.metrics import Result
from planner.policies.partition import is_mainline, partition_text
from planner.policies.timing import merges_nothing, timing_text
from planner.results import policy_row, scenario_of
from planner.scenario.spec import (
    FreePages,
    GuestSpec,
    HostSpec,
    Ksmd,
    Ksmtuned,
    Never,
    PolicySpec,
    Scenario,
    Sync,
)
from planner.units import format_duration, format_share, format_size

__all__ = ["Current", "Export", "current_settings", "is_advised", "is_guest_label", "knobs",
           "prepare"]

KSM_FOLDER = Path("/sys/kernel/mm/ksm")
#: Changed only while nothing is merged; written first.
NEEDS_UNMERGED = ("max_page_sharing", "merge_across_nodes")


@dataclass(frozen=True, slots=True)
class Current:
    """Settings of KSM that a host has now: file name to text."""

    host: str
    values: Mapping[str, str]


def current_settings(folder: Path = KSM_FOLDER) -> Current | None:
    """What this machine has now; None where it has no KSM."""
    values = {}
    for name in ("run", *(field.name for field in fields(Ksmd))):
        path = folder / name
        if path.is_file() and os.access(path, os.R_OK):
            values[path.name] = _chosen(path.read_text().strip())
    return Current(clean(platform.node()), values) if "run" in values else None


def _chosen(text: str) -> str:
    """The word in brackets of `[none] scan-time`."""
    before, _, rest = text.partition("[")
    return rest.partition("]")[0] if rest else before


def knobs(ksmd: Ksmd) -> dict[str, str]:
    """File name and text of every knob of the scanner that is not left to the kernel."""
    return {name: str(int(value) if isinstance(value, bool) else value)
            for name, value in ksmd.given().items()}


def is_advised(ksmd: Ksmd) -> bool:
    """Whether the kernel's advisor sets the pace; no kernel's default is that it does."""
    return ksmd.advisor_mode not in (None, "none")


@dataclass(frozen=True, slots=True)
class Export:
    """A policy ready to be exported as `kind`. `row` is its row of the summary table."""

    kind: str
    result: Result
    scenario: Scenario
    policy: PolicySpec
    row: Mapping[str, Any]
    current: Current | None
    host_name: str | None

    @property
    def digest(self) -> str:
        """The digest of the run."""
        return printable(str(self.result.run["digest"]), 80)

    def refuse(self, why: str, instead: str) -> NoReturn:
        """This kind cannot express the policy."""
        raise UsageError(f"policy {self.policy.name!r} cannot be expressed: {why}",
                         where=f"--as {self.kind}", instead=instead)

    def ksmd(self) -> Ksmd:
        """The scanner's knobs of a policy that a host's one ksmd can carry out; or refuses."""
        merge = self.policy.merge
        if isinstance(merge, Sync):
            self.refuse("it merges on request, and ksmd of a mainline kernel only scans",
                        "use --as selective-ksm, or export a policy with merge: ksmd")
        self.check_one_space()
        if isinstance(merge, Never):
            return Ksmd()
        if isinstance(merge, FreePages):
            self.refuse_free_pages()
        if not isinstance(merge, Ksmd):
            daemon = "ksmtuned" if isinstance(merge, Ksmtuned) else "kubevirt"
            self.refuse("a daemon sets ksmd's pace by free memory", f"use --as {daemon}")
        return merge

    def refuse_free_pages(self) -> NoReturn:
        """Nothing of KSM can express what guests do by themselves."""
        self.refuse("its guests give free pages back, and nothing merges",
                    "set up free-page reporting or balloons where guests are defined")

    def check_one_space(self) -> None:
        """Refuse what needs more than a host's one ksmd and what the host sees by itself."""
        policy = self.policy
        if not is_mainline(policy):
            apart = policy.partition_by or [rule.name for rule in policy.partitions]
            self.refuse(f"it keeps {' and '.join(apart)} apart, and ksmd of a "
                        "mainline kernel has one merge space a host",
                        "use --as selective-ksm, or keep tenants apart by placing them on hosts "
                        "of their own")
        if policy.cooperation.kind != "none":
            self.refuse("its guests choose what may merge, and these settings are the host's",
                        "export a policy without cooperation")

    def ksmd_without_exclusions(self) -> Ksmd:
        """The same for kinds that set whole hosts and cannot keep guests out."""
        ksmd = self.ksmd()
        self.check_no_exclusions()
        return ksmd

    def check_no_exclusions(self) -> None:
        """Refuse a policy that keeps guests out."""
        if self.policy.exclude:
            self.refuse("it excludes some guests, and these settings are for whole hosts",
                        "use --as proxmox or --as libvirt, which also keep guests out")

    @property
    def run_value(self) -> str:
        """What goes into /sys/kernel/mm/ksm/run."""
        return "0" if merges_nothing(self.policy) else "1"

    def hosts(self) -> tuple[HostSpec, ...]:
        """The hosts to export for: `--host`, else all."""
        return tuple(host for host in self.scenario.hosts
                     if self.host_name in (None, host.name))

    def host(self) -> HostSpec:
        """The host to export for: `--host`, else any where all have the same memory."""
        hosts = self.scenario.hosts
        if self.host_name is not None:
            for host in hosts:
                if host.name == self.host_name:
                    return host
            raise UsageError(f"no host is named {self.host_name[:80]!r}", where="--host",
                             instead="it has " + ", ".join(host.name for host in hosts[:12]))
        if len({host.memory_bytes for host in hosts}) > 1:
            raise UsageError("the hosts differ in memory, which these settings depend on",
                             where=f"--as {self.kind}", instead="choose one with --host: "
                             + ", ".join(host.name for host in hosts[:12]))
        return hosts[0]

    def guests(self) -> Iterator[tuple[GuestSpec, str, bool]]:
        """Guests of the chosen host, or of all: the guest, its host, whether it may merge."""
        for workload in self.scenario.workloads:
            if self.host_name in (None, workload.host):
                for guest in workload.guests:
                    may_merge = workload.mergeable != "none" and not self.excludes(guest)
                    yield guest, workload.host, may_merge

    def excludes(self, guest: GuestSpec) -> bool:
        """Whether the policy keeps this guest out; refuses exclusions of single regions."""
        labels = dict(guest.labels)
        for entry in self.policy.exclude:
            for key, _ in entry:
                if not is_guest_label(self.scenario, key):
                    self.refuse(f"it excludes regions by the label {key!r}, and these settings "
                                "know whole guests only", "exclude guests by a label of theirs")
            if all(labels.get(key) == value for key, value in entry):
                return True
        return False

    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the hosts table under the policy, by host, in order of time."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.result.hosts.to_pylist():
            if row["policy"] == self.policy.name and self.host_name in (None, row["host"]):
                found.setdefault(row["host"], []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: int(row["time_ns"]))
        return found

    def header(self) -> list[str]:
        """What is changed, from which run, what to expect and how sure that is; without marks."""
        run, row, policy = self.result.run, self.row, self.policy
        name = clean(self.scenario.name)
        n_hosts = sum(host.count for host in self.scenario.hosts)
        where = "" if n_hosts == 1 else f" on {n_hosts} hosts in all"
        share = format_share(float(row["saved_share"]))
        lines = [
            f"Policy {policy.name} of scenario {name}: {timing_text(policy)}, partitions: "
            f"{clean(partition_text(policy), 120)}.",
            f"Run digest {self.digest}, planner {clean(run['versions'].get('planner', '?'))}.",
            f"Expected {self._when()}{where}: "
            f"{format_size(int(row['saved_bytes']))} saved ({share} of the guests' memory) and "
            f"{format_size(int(row['saved_zero_bytes']))} of zero pages,",
            f"for {format_duration(int(row['merge_cpu_ns']))} of merge CPU; "
            f"{row['cross_domain_pages']} guest pages shared across security domains;",
            f"{format_size(int(row['unmerge_bytes']))} of free memory needed if every merge were "
            "undone at once.",
            self._spread()
            + ("Validated on hosts of yours." if run["validated"] else
               "The model was not validated on your hosts."),
        ]
        if self.current is not None:
            now = ", ".join(f"{key}={value}" for key, value in self.current.values.items())
            lines.append(f"Now on {clean(self.current.host)}, where this was written: "
                         f"{printable(now, 400)}.")
        else:
            lines.append("Present values: not known (this was not written on a host with KSM).")
        return lines

    def _when(self) -> str:
        """What time the figures are of: of fleets they are means over time."""
        horizon = format_duration(self.scenario.horizon_ns)
        if not self.scenario.is_fleet:
            return f"after {horizon}"
        warm_up_ns = self.scenario.warm_up_ns
        return "over time" if not warm_up_ns else \
            f"over time, from {format_duration(warm_up_ns)} to {horizon},"

    def _spread(self) -> str:
        """How far replicates of the saving lie apart."""
        plan = self.result.plan or {}
        saved: dict[str, Any] = next((
            each["metrics"]["saved"] for each in plan.get("policies", ())
            if each["policy"] == self.policy.name), {})
        if saved.get("low") is None:
            return "One run: the spread between runs is not known. "
        return (f"Saved in {saved['n']} replicates: {format_size(round(saved['low']))} to "
                f"{format_size(round(saved['high']))}. ")

    def comment(self, *more: str, mark: str = "# ") -> str:
        """The header, and further lines, as comments; no foreign text can leave them."""
        return "".join((mark + printable(line, 600)).rstrip() + "\n"
                       for line in (*self.header(), *more))


def is_guest_label(scenario: Scenario, key: str) -> bool:
    """Whether any guest has this label (else it is one of regions, or nobody's)."""
    return any(key in dict(guest.labels) for workload in scenario.workloads
               for guest in workload.guests)


def prepare(result: Result, policy: str, kind: str, current: Current | None = None,
            host_name: str | None = None) -> Export:
    """What the exporters work on. Raises UsageError for a policy or a host that is not there."""
    row = policy_row(result, policy)
    scenario = scenario_of(result)
    spec = next(each for each in scenario.policies if each.name == policy)
    export = Export(kind, result, scenario, spec, row, current, host_name)
    if host_name is not None:
        export.host()
    return export
