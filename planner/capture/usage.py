"""What the processes of this host hold, by what would keep it from merging.

Reads the kernel's own sums (/proc/PID/smaps, status, cmdline); no page is looked at, nothing is
written. Only mappings are told apart, so what changes, and what the memory is, stays open.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass

from planner.capture.procfs import ProcRoot, TargetExitedError, parse_smaps
from planner.diagnosis import Diagnosis, parts_of, region_obstacle
from planner.trace import RegionFlag

__all__ = ["Usage", "diagnose_host"]

#: Processes looked at, the largest first, and for how long: doctor is to be quick.
MAX_PROCESSES = 256
MAX_SECONDS = 5.0
_PAGE_BYTES = 4096
_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
#: What QEMU is told for a guest whose memory the host cannot read.
_ENCRYPTED = re.compile(rb"\b(sev-guest|sev-snp-guest|tdx-guest|confidential-guest-support=)")


@dataclass(frozen=True, slots=True)
class Usage:
    """The diagnosis, and of how many processes with memory of how many it is."""

    diagnosis: Diagnosis
    n_processes: int
    n_seen: int


def diagnose_host(root: ProcRoot) -> Usage:
    """Add up what the largest processes hold; what may not be read is left out and noted.

    Shared memory counts once for each process that maps it.
    """
    sizes = sorted(_resident(root), reverse=True)
    n_bytes: Counter[str] = Counter()
    n_seen = n_denied = 0
    until = time.monotonic() + MAX_SECONDS
    for _, pid in sizes[:MAX_PROCESSES]:
        if n_seen and time.monotonic() > until:
            break
        try:
            n_bytes += _process(root, pid)
            n_seen += 1
        except PermissionError:
            n_denied += 1
        except (OSError, TargetExitedError, ValueError):
            continue  # gone meanwhile
    notes = ["What changes, and what the memory holds, only a capture tells (planner trace info)."]
    if n_denied:
        notes.append(f"{n_denied} process(es) of other users could not be looked at: run as root.")
    total = n_bytes.pop("total", 0)
    return Usage(Diagnosis(total, parts_of(n_bytes, total), notes=tuple(notes)), len(sizes), n_seen)


def _resident(root: ProcRoot) -> list[tuple[int, int]]:
    """(resident pages, pid) of every process with an address space, this one apart."""
    found = []
    for folder in root.proc.glob("[0-9]*"):
        try:
            resident = int((folder / "statm").read_text().split()[1])
            if resident and folder.name.isdecimal():
                found.append((resident, int(folder.name)))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _process(root: ProcRoot, pid: int) -> Counter[str]:
    """Bytes of one process by obstacle, with their `total`."""
    text = root.of(pid, "smaps").read_text(errors="replace")
    found: Counter[str] = Counter()
    anonymous_bytes = 0
    for flags, sizes in _mappings(text):
        huge = sizes.get("Shared_Hugetlb", 0) + sizes.get("Private_Hugetlb", 0)
        resident = sizes.get("Rss", 0) + huge
        found["total"] += resident
        found["swapped"] += sizes.get("Swap", 0)
        reason = region_obstacle(flags)
        if reason is not None:
            found[reason] += resident
            continue
        anonymous = sizes.get("Anonymous", 0)
        anonymous_bytes += anonymous
        found["file"] += resident - anonymous
        found["thp"] += min(sizes.get("AnonHugePages", 0), anonymous)
        found["locked"] += min(sizes.get("Locked", 0), anonymous)
        if not flags & RegionFlag.ADVISED:
            found["not_advised"] += anonymous
    found["pinned"] += min(_pinned(root, pid), anonymous_bytes)
    if _ENCRYPTED.search(root.of(pid, "cmdline").read_bytes()):
        found["encrypted"] += anonymous_bytes
    return found


def _mappings(text: str) -> list[tuple[int, dict[str, int]]]:
    """RegionFlag bits and sizes in bytes of each mapping of a smaps file."""
    sizes: list[dict[str, int]] = []
    gates: list[dict[str, int]] = []  # no mapping, and left out by parse_smaps as well
    for line in text.splitlines():
        if _HEADER.match(line):
            sizes.append({})
            if line.endswith("[vsyscall]"):
                gates.append(sizes[-1])
            continue
        name, _, rest = line.partition(":")
        words = rest.split()
        if sizes and len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            sizes[-1][name] = int(words[0]) * 1024
    sizes = [found for found in sizes if all(found is not gate for gate in gates)]
    vmas = parse_smaps(text)
    return [(vma.flags, found) for vma, found in zip(vmas, sizes, strict=True)]


def _pinned(root: ProcRoot, pid: int) -> int:
    """VmPin of a process in bytes."""
    try:
        for line in root.of(pid, "status").read_text(errors="replace").splitlines():
            if line.startswith("VmPin:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
