"""Finding the processes of a plan's members on this host, and the memory of theirs to merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.apply.plan import PlannedMember
from planner.capture import targets
from planner.capture.procfs import ProcRoot, TargetExitedError, read_vmas
from planner.capture.targets import Target, guest_ram, processes_of
from planner.errors import MachineError, UsageError
from planner.trace.schema import PAGE_BYTES, RegionFlag, is_ksm_compatible

__all__ = ["Extent", "Member", "find_members"]

#: Labels by which a member is found, where it has them.
_VMID, _UNIT = "vmid", "unit"


@dataclass(frozen=True, slots=True)
class Extent:
    """Memory of a process: `size` bytes from `start`."""

    pid: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member that runs here: what is merged of it."""

    guest: str
    extents: tuple[Extent, ...]

    @property
    def n_pages(self) -> int:
        """Pages of all extents, present or not."""
        return sum(extent.size // PAGE_BYTES for extent in self.extents)


def find_members(root: ProcRoot, planned: Sequence[PlannedMember], given: Mapping[str, str], *,
                 skip_missing: bool = False) -> dict[str, Member]:
    """The members that run here, by guest.

    `given` maps guests to a pid or a cgroup. Others are QEMU machines by their `-name` or, with a
    label `vmid`, their `-id`; with a label `unit`, the service's cgroup. Raises UsageError for a
    guest in `given` that the plan does not have, MachineError that names all members that are not
    running, unless `skip_missing`.
    """
    unknown = sorted(set(given) - {each.guest for each in planned})
    if unknown:
        raise UsageError(f"the plan has no member {unknown[0]!r}", where="--member",
                         instead="its members are "
                                 + ", ".join(sorted(each.guest for each in planned))[:300])
    machines = {} if all(each.guest in given for each in planned) else _machines(root)
    found: dict[str, Member] = {}
    for each in planned:
        target = _given(root, each.guest, given[each.guest]) if each.guest in given else \
            _found(root, each, machines)
        if target is not None:
            extents = tuple(_extents(root, target))
            if extents:
                found[each.guest] = Member(each.guest, extents)
    missing = [each.guest for each in planned if each.guest not in found]
    if missing and not skip_missing:
        raise MachineError(
            f"{len(missing)} of {len(planned)} members are not running here: "
            + ", ".join(missing)[:1000],
            instead="start them, name them with --member GUEST=PID or GUEST=CGROUP, or leave them "
                    "out with --skip-missing")
    return found


def _given(root: ProcRoot, guest: str, place: str) -> Target | None:
    pids, cgroups = ([int(place)], []) if place.isdecimal() else ([], [place])
    try:
        [target] = targets.resolve_targets(root, pids=pids, cgroups=cgroups)
    except MachineError:
        return None
    return replace(target, name=guest)


def _machines(root: ProcRoot) -> dict[str, Target]:
    """QEMU machines by name, and by `vmid:` and their number."""
    found: dict[str, Target] = {}
    for target in targets.qemu_targets(root):
        found[target.name] = target
        number = targets.qemu_id(root, target.pids[0])
        if number is not None:
            found[f"{_VMID}:{number}"] = target
    return found


def _found(root: ProcRoot, member: PlannedMember, machines: Mapping[str, Target]) -> Target | None:
    if _VMID in member.labels:
        return machines.get(f"{_VMID}:{member.labels[_VMID]}")
    if _UNIT in member.labels:
        return _given(root, member.guest, f"system.slice/{member.labels[_UNIT]}")
    return machines.get(member.guest)


def _extents(root: ProcRoot, target: Target) -> list[Extent]:
    """A machine's memory, or all private anonymous mappings of all processes."""
    found = []
    for process in processes_of(root, target):
        try:
            vmas = read_vmas(root, process.pid)
        except TargetExitedError:
            continue
        if target.kind == "vm":
            ram = guest_ram(vmas, target.memory_bytes)
            wanted = [] if ram is None else [ram]
        else:
            wanted = [vma for vma in vmas if is_ksm_compatible(vma.flags)
                      and not vma.flags & RegionFlag.FILE and vma.name not in _KERNELS_OWN]
        found += [Extent(process.pid, vma.start_vpn * PAGE_BYTES, vma.n_pages * PAGE_BYTES)
                  for vma in wanted]
    return found


_KERNELS_OWN = ("[vvar]", "[vdso]", "[vvar_vclock]", "[uprobes]")
