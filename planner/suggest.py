"""From a scenario to partitionings worth looking at: the frontier, and policies to run.

Savings are those of memory at rest, merged once over, at each snapshot of the traces: a bound that
`planner run` then tests with timing, writes and the kernel's limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.errors import UsageError
from planner.escape import quoted
from planner.fleet import FleetHost
from planner.forecast.world import replicate_of
from planner.ksm.cost import BUILTIN_UNMEASURED, CostModel
from planner.scenario.spec import Scenario, to_json
from planner.search.cost import PassCost, mean_model, pass_cost
from planner.search.partitions import Constraints, Partitioning, frontier
from planner.search.sharing import Sharing, fleet_sharing, saved_frames

__all__ = ["Suggestion", "Wishes", "drawn_machines", "suggest"]

_PAGE_BYTES = 4096
_MOMENTS = 5
#: Of a fleet of drawn guests: machines and pages that are looked at.
_MACHINES = 40
_PAGES = 8_000_000


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks for, by names of members.

    `by`: the key whose values may be joined. `alone`, `apart`, `most_exposed_pairs`: see
    planner.search.partitions. `most_unmerge_bytes`: no more memory merged than could be given
    back at once. `most_merge_ns`: no more CPU time for the pass that merges everything, over all
    hosts. Members with memory of a sensitive domain are alone unless `may_join_sensitive`.
    """

    by: str = "domain"
    alone: tuple[str, ...] = ()
    apart: tuple[tuple[str, ...], ...] = ()
    most_exposed_pairs: int | None = None
    most_unmerge_bytes: int | None = None
    most_merge_ns: int | None = None
    may_join_sensitive: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion:
    """The frontier by ascending exposure; `saved_bytes` (lowest, mean, highest over the moments)
    of each and the `costs` of a pass over it, and what one merge space over all would save
    whatever it exposes. `sensitive`: the scenario's sensitive domains. `cost_name`: the cost model
    (docs/calibration.md). `n_hosts` of `n_machines` were counted, with `content_share` of their
    contents, and all figures are scaled up from there. `title`: the scenario's name."""

    title: str
    by: str
    members: tuple[str, ...]
    n_hosts: int
    n_machines: int
    content_share: float
    n_moments: int
    partitionings: tuple[Partitioning, ...]
    saved_bytes: tuple[tuple[int, int, int], ...]
    costs: tuple[PassCost, ...]
    cost_name: str
    one_space_bytes: int
    one_space_cost: PassCost
    one_space_pairs: int
    alone: tuple[str, ...]
    sensitive: tuple[str, ...]

    def groups(self, index: int) -> list[list[str]]:
        """Names of the members of each group of a partitioning."""
        return [[self.members[member] for member in group]
                for group in self.partitionings[index].groups]

    def to_json(self) -> dict[str, Any]:
        """A document of plain values."""
        return {
            "title": self.title, "by": self.by, "members": list(self.members),
            "n_hosts": self.n_hosts, "n_machines": self.n_machines,
            "content_share": self.content_share,
            "n_moments": self.n_moments, "alone": list(self.alone), "costs": self.cost_name,
            "one_merge_space": {"saved_bytes": self.one_space_bytes,
                                "exposed_domain_pairs": self.one_space_pairs,
                                **_cost_json(self.one_space_cost)},
            "frontier": [
                {"exposed_domain_pairs": item.n_exposed_pairs, "groups": self.groups(index),
                 "saved_bytes": {"lowest": low, "mean": mean, "highest": high},
                 **_cost_json(cost)}
                for index, (item, (low, mean, high), cost) in enumerate(
                    zip(self.partitionings, self.saved_bytes, self.costs, strict=True))]}

    def policy_yaml(self, index: int) -> str:
        """Lines for a scenario that run a partitioning: of domains as groups, of the values of
        any other key as explicit partitions."""
        joined = {f"joined-{number}": group for number, group in enumerate(
            (group for group in self.groups(index) if len(group) > 1), start=1)}
        is_grouped = bool(joined) and self.by == "domain"
        lines = ["domains:"] if is_grouped or self.sensitive else []
        if is_grouped:
            lines += ["  groups:", *(f"    {name}: {_yaml_list(group)}"
                                     for name, group in joined.items())]
        if self.sensitive:
            lines.append(f"  sensitive: {_yaml_list(self.sensitive)}")
        lines += ["policies:", "  - name: suggested",
                  f"    partition_by: {'group' if is_grouped else quoted(self.by)}"]
        if joined and not is_grouped:
            lines.append("    partitions:")
            for name, group in joined.items():
                entries = ", ".join(f"{{{quoted(self.by)}: {quoted(value)}}}" for value in group)
                lines.append(f"      - {{name: {name}, match: [{entries}]}}")
        return "\n".join([*lines, "    merge: {sync: {at: [boot]}}", ""])


def _cost_json(cost: PassCost) -> dict[str, int]:
    return {"looked_at_bytes": cost.n_pages * _PAGE_BYTES, "merge_cpu_ns": cost.merge_ns,
            "further_pass_cpu_ns": cost.again_ns}


def _yaml_list(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(quoted, names)) + "]"


def drawn_machines(scenario: Scenario) -> tuple[Iterator[FleetHost], int]:
    """Machines of a scenario whose guests are drawn (its first replicate), one after another, and
    how many there are.

    At most `_MACHINES`, spread evenly over them, with a share of their contents such that no more
    than about `_PAGES` pages are looked at. Raises DataError where a trace does not fit.
    """
    replicate = replicate_of(json.dumps(to_json(scenario)), 0)
    n_machines = len(replicate.timeline.hosts)
    chosen = np.unique(np.linspace(0, n_machines - 1, min(_MACHINES, n_machines)).astype(int))
    is_chosen = np.isin(replicate.timeline.stay_host, chosen)
    stays = replicate.timeline.stay_guest[is_chosen]
    n_pages = int(replicate.requests.memory_bytes[stays].sum()) // _PAGE_BYTES
    share = min(1.0, _PAGES / max(n_pages, 1))
    return (replicate.build(host, share) for host in chosen.tolist()), n_machines


def suggest(scenario: Scenario, hosts: Iterable[FleetHost], wishes: Wishes,
            costs: Mapping[str, CostModel] | None = None, n_machines: int | None = None
            ) -> Suggestion:
    """Search the partitionings of the scenario's fleet.

    `hosts`: its machines, or some of `n_machines`; each is looked at and let go. `costs`: cost
    models by the names that hosts give theirs (planner.runner.costs_of); without,
    BUILTIN_UNMEASURED for all. Where they differ, the mean over the machines counts. Raises
    UsageError for wishes that name nothing or cannot be met.
    """
    times = np.linspace(scenario.warm_up_ns, scenario.horizon_ns, _MOMENTS).astype(
        np.int64).tolist()
    sharing = fleet_sharing(hosts, wishes.by, times, n_machines)
    alone = _alone(sharing, wishes, scenario.domains.sensitive)
    index = {name: position for position, name in enumerate(sharing.members)}
    frame_bytes = _PAGE_BYTES * sharing.scale
    most = None if wishes.most_unmerge_bytes is None else wishes.most_unmerge_bytes // _PAGE_BYTES
    model = BUILTIN_UNMEASURED if costs is None else mean_model(
        [costs[spec.timings] for spec in scenario.hosts for _ in range(spec.count)])
    constraints = Constraints(
        frozenset(index[name] for name in alone), frozenset(_pairs(index, wishes.apart)),
        wishes.most_exposed_pairs, most, wishes.most_merge_ns, model)
    found = frontier(sharing, constraints)
    everything = [tuple(range(len(sharing.members)))]
    together = sharing.domains_of.any(axis=0)
    n_domains = int(together.sum())
    saved = []
    for item in found:
        moments = saved_frames(sharing, item.groups) * frame_bytes
        saved.append((int(moments.min()), int(moments.mean()), int(moments.max())))
    return Suggestion(
        scenario.name, wishes.by, sharing.members, sharing.n_hosts, sharing.n_machines,
        sharing.content_share, len(times),
        tuple(found), tuple(saved),
        tuple(pass_cost(sharing, item.groups, model) for item in found), model.name,
        int(saved_frames(sharing, everything).mean() * frame_bytes),
        pass_cost(sharing, everything, model),
        n_domains * (n_domains - 1) // 2, tuple(alone), tuple(scenario.domains.sensitive))


def _alone(sharing: Sharing, wishes: Wishes, sensitive: Sequence[str]) -> list[str]:
    unknown = sorted({*wishes.alone, *(name for pair in wishes.apart for name in pair)}
                     - set(sharing.members))
    if unknown:
        raise UsageError(f"no {wishes.by} named {', '.join(unknown)}",
                         where="--alone and --never-together",
                         instead="choose from " + ", ".join(sharing.members[:12]))
    alone = set(wishes.alone)
    if not wishes.may_join_sensitive:
        watched = np.array([domain in sensitive for domain in sharing.domains], np.bool_)
        alone |= {name for name, domains in zip(sharing.members, sharing.domains_of, strict=True)
                  if (domains & watched).any()}
    return sorted(alone)


def _pairs(index: Mapping[str, int], apart: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    return [(index[one], index[other]) for names in apart
            for position, one in enumerate(names) for other in names[position + 1:]]
