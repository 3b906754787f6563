"""Whom to capture: processes, cgroups (v1 or v2) and QEMU machines, and their labels.

A target becomes one guest of the trace; its processes become the guest's mms.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from planner.capture.procfs import ProcRoot, TargetExitedError, Vma, start_ticks
from planner.errors import MachineError, UsageError
from planner.trace.schema import PAGE_BYTES, RegionFlag, is_ksm_compatible

__all__ = ["Process", "Target", "guest_ram", "processes_of", "qemu_id", "qemu_targets",
           "resolve_targets"]

_QEMU = re.compile(r"qemu-system-.+|qemu-kvm|kvm")
_IDENTITY = ("pid", "cgroup", "name")
#: QEMU's own default for -m.
_QEMU_DEFAULT_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one with its pid by its start time in clock ticks."""

    pid: int
    start_ticks: int
    comm: str


@dataclass(frozen=True, slots=True)
class Target:
    """One guest to capture: a process (`pids`) or all processes of a `cgroup` folder."""

    name: str
    kind: str
    pids: tuple[int, ...] = ()
    cgroup: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a labels file."""

    line: int
    pid: int | None
    cgroup: str
    name: str
    labels: dict[str, str]


def resolve_targets(root: ProcRoot, *, pids: Sequence[int] = (), cgroups: Sequence[str] = (),
                    qemu: bool = False, labels_csv: Path | None = None) -> list[Target]:
    """The guests a request names, in its order, each once.

    With a labels file and nothing else named, its rows are the targets. Raises UsageError when
    nothing or nonsense is named, MachineError when a process or cgroup does not exist.
    """
    rows = _read_labels(labels_csv) if labels_csv is not None else []
    if not (pids or cgroups or qemu):
        if not rows:
            raise UsageError("nothing to capture is named",
                             instead="pass --pid, --cgroup, --qemu or a guests file")
        pids = [row.pid for row in rows if row.pid is not None]
        cgroups = [row.cgroup for row in rows if row.pid is None]
        if "" in cgroups:
            line = next(row.line for row in rows if row.pid is None and not row.cgroup)
            raise UsageError("neither pid nor cgroup", where=f"{labels_csv}:{line}",
                             instead="give one of them, or name the targets with options")
    targets: list[Target] = []
    for pid in dict.fromkeys(pids):
        targets.append(_process_target(root, pid))
    if qemu:
        machines = [each for each in qemu_targets(root) if each.pids[0] not in pids]
        if not machines and not targets and not cgroups:
            raise MachineError("no QEMU process runs here (looked for qemu-system-*, qemu-kvm)",
                               instead="start the machines, or name processes with --pid")
        targets.extend(machines)
    folders = dict.fromkeys(_cgroup_folder(root, cgroup) for cgroup in cgroups)
    for folder in folders:
        # Two cgroups of the same name are told apart by their parents.
        same = [other for other in folders if other.name == folder.name]
        name = folder.name if len(same) == 1 else f"{folder.parent.name}/{folder.name}"
        targets.append(Target(name, "container", cgroup=folder))
    if os.getpid() in [pid for target in targets for pid in target.pids]:
        raise UsageError("the capture cannot capture itself", where=f"--pid {os.getpid()}",
                         instead="name other processes")
    return _labelled(root, targets, rows, labels_csv)


def qemu_targets(root: ProcRoot) -> list[Target]:
    """Every QEMU machine of the host, by pid."""
    return [_process_target(root, pid) for pid in _all_pids(root) if _is_qemu(root, pid)]


def qemu_id(root: ProcRoot, pid: int) -> str | None:
    """The number that Proxmox gives a machine with `-id`, None where there is none."""
    return _option(_arguments(root, pid), "-id", "--id")


def _process_target(root: ProcRoot, pid: int) -> Target:
    try:
        process = _process(root, pid)
    except TargetExitedError:
        raise MachineError("no such process", where=f"--pid {pid}",
                           instead="check the number; it may have exited") from None
    if not _is_qemu(root, pid):
        return Target(f"{process.comm}-{pid}", "process", (pid,))
    arguments = _arguments(root, pid)
    name = _qemu_name(arguments) or f"{process.comm}-{pid}"
    return Target(name, "vm", (pid,), memory_bytes=_qemu_memory_bytes(arguments))


def _process(root: ProcRoot, pid: int) -> Process:
    ticks = start_ticks(root, pid)
    try:
        comm = root.of(pid, "comm").read_text(errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetExitedError from None
    return Process(pid, ticks, comm)


def processes_of(root: ProcRoot, target: Target) -> list[Process]:
    """The living processes of a target now, by pid; never the capturing process itself."""
    pids: Iterable[int] = target.pids
    if target.cgroup is not None:
        pids = sorted(_cgroup_pids(target.cgroup) - {os.getpid()})
    processes = []
    for pid in pids:
        try:
            processes.append(_process(root, pid))
        except TargetExitedError:
            continue
    return processes


def _all_pids(root: ProcRoot) -> list[int]:
    return sorted(int(name) for name in os.listdir(root.proc) if name.isdigit())


def _arguments(root: ProcRoot, pid: int) -> list[str]:
    try:
        raw = root.of(pid, "cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")]


def _is_qemu(root: ProcRoot, pid: int) -> bool:
    arguments = _arguments(root, pid)
    return bool(arguments) and _QEMU.fullmatch(os.path.basename(arguments[0])) is not None


def _option(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option; the last one counts, as for QEMU."""
    value = None
    for i, argument in enumerate(arguments[:-1]):
        if argument in names:
            value = arguments[i + 1]
    return value


def _properties(text: str, first: str) -> dict[str, str]:
    """`guest=a,process=b` or `a,process=b` as a mapping; a value without key is `first`'s."""
    found: dict[str, str] = {}
    # QEMU writes a comma inside a value as two.
    for i, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            found[key] = value
        elif i == 0:
            found[first] = key
    return found


def _qemu_name(arguments: Sequence[str]) -> str:
    return _properties(_option(arguments, "-name", "--name") or "", "guest").get("guest", "")


def _qemu_memory_bytes(arguments: Sequence[str]) -> int:
    """Bytes of -m: a bare number is MiB; k, M, G, T are binary."""
    text = _properties(_option(arguments, "-m", "--m") or "", "size").get("size", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgtBKMGT]?)", text)
    if match is None:
        return _QEMU_DEFAULT_BYTES
    power = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "": 20}[match[2].lower()]
    return int(float(match[1]) * (1 << power))


def guest_ram(vmas: Sequence[Vma], memory_bytes: int | None) -> Vma | None:
    """The mapping of a machine's memory: private, anonymous, advised if any is, closest to -m.

    None when nothing fits: memory that is shared (memfd, vhost-user) or hugetlb cannot be merged
    and is not looked for.
    """
    fitting = [vma for vma in vmas
               if is_ksm_compatible(vma.flags) and vma.flags & RegionFlag.WRITE
               and not vma.flags & (RegionFlag.FILE | RegionFlag.HEAP | RegionFlag.STACK)]
    if not fitting:
        return None
    advised = [vma for vma in fitting if vma.flags & RegionFlag.ADVISED] or fitting
    if memory_bytes is None:
        return max(advised, key=lambda vma: vma.n_pages)
    wanted = memory_bytes // PAGE_BYTES
    # The kernel may split a mapping, or join neighbours: half and twice are still its memory.
    near = [vma for vma in advised if wanted <= 2 * vma.n_pages <= 4 * wanted]
    return min(near, key=lambda vma: abs(vma.n_pages - wanted)) if near else None


def _cgroup_folder(root: ProcRoot, name: str) -> Path:
    """The folder of a cgroup given as a path, or as a name below the cgroup hierarchies."""
    base = root.sys / "fs" / "cgroup"
    tried = [Path(name)] if os.path.isabs(name) else []
    relative = name.lstrip("/")
    tried.append(base / relative)
    with contextlib.suppress(OSError):
        tried.extend(path / relative for path in sorted(base.iterdir()) if path.is_dir())
    for path in tried:
        if (path / "cgroup.procs").exists():
            # Its own name: the hierarchy may be reached through links and with a slash behind.
            return Path(os.path.realpath(path))
    raise MachineError("no such cgroup", where=f"--cgroup {name}",
                       instead=f"name a folder below {base} that has a cgroup.procs file")


def _cgroup_pids(folder: Path) -> set[int]:
    """Processes of a cgroup and of those below it; empty when it is gone."""
    pids: set[int] = set()
    for place, _, files in os.walk(folder):
        if "cgroup.procs" in files:
            try:
                text = (Path(place) / "cgroup.procs").read_text()
            except OSError:
                # Removed meanwhile, or threaded (its processes are listed at the domain above).
                continue
            pids.update(int(word) for word in text.split())
    return pids


def _read_labels(path: Path) -> list[_Row]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            lines = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except OSError as error:
        raise UsageError(f"cannot read the guests file: {error.strerror}", where=str(path),
                         instead="check its path and permissions") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"not a CSV file: {error}", where=str(path),
                         instead="write lines of comma-separated values in UTF-8") from error
    if not set(columns) & set(_IDENTITY):
        raise UsageError("the first line names none of the columns pid, cgroup and name",
                         where=str(path), instead="add one of them; other columns become labels")
    if "" in columns or len(set(columns)) < len(columns):
        raise UsageError("a column has no name, or two have the same", where=str(path),
                         instead="give each column its own name")
    rows = []
    for line, row in lines:
        where = f"{path}:{line}"
        # DictReader puts surplus values under None and fills up missing ones with None.
        if None in row or None in row.values():
            raise UsageError(f"not {len(columns)} values, as the first line has", where=where,
                             instead="quote values that hold commas")
        text = (row.get("pid") or "").strip()
        if text and not text.isdecimal():
            raise UsageError(f"pid {text!r} is not a number", where=where,
                             instead="write the process id in digits")
        labels = {key: value for key, value in row.items() if key not in _IDENTITY and value}
        rows.append(_Row(line, int(text) if text else None, (row.get("cgroup") or "").strip(),
                         (row.get("name") or "").strip(), labels))
    return rows


def _labelled(root: ProcRoot, targets: list[Target], rows: list[_Row],
              path: Path | None) -> list[Target]:
    """Targets with the names and labels of their rows, found by pid, cgroup or name."""
    by_pid = {row.pid: row for row in rows if row.pid is not None}
    by_cgroup = {_cgroup_folder(root, row.cgroup): row for row in rows if row.cgroup}
    by_name = {row.name: row for row in rows if row.pid is None and not row.cgroup}
    labelled = []
    for target in targets:
        row = by_cgroup.get(target.cgroup) if target.cgroup else by_pid.get(target.pids[0])
        row = row or by_name.get(target.name)
        if row is not None:
            target = replace(target, name=row.name or target.name, labels=row.labels)
        labelled.append(target)
    if rows and not any(target.labels for target in labelled) and any(r.labels for r in rows):
        raise UsageError("no row matches a captured guest by pid, cgroup or name",
                         where=str(path), instead="check that the file belongs to these guests")
    return labelled
