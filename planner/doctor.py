"""What this machine can do: kernel, memory, KSM, the module, and the rights a capture needs.

Only looks: nothing is written, no page of another process is read.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.capture.abi import StartFlag
from planner.capture.procfs import (
    PM_FRAME,
    FrameTable,
    Pagemap,
    ProcRoot,
    TargetExitedError,
    ksm_counters,
    read_int,
)
from planner.capture.usage import diagnose_host
from planner.errors import MachineError
from planner.units import format_share, format_size

__all__ = ["Diagnosis", "Finding", "examine"]

#: Settings of KSM in the order they are shown; a kernel may lack the later ones.
_KSM_SETTINGS = ("run", "pages_to_scan", "sleep_millisecs", "max_page_sharing",
                 "merge_across_nodes", "use_zero_pages", "smart_scan")
_MODULE = "ksm_planner"
_AS_ROOT = "run as root"
_CAP_SYS_PTRACE = 19
#: What holds less of the memory needs no advice.
_WORTH_TELLING = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis; `instead` is what to do about a problem, else empty."""

    name: str
    text: str
    instead: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether something that a capture wants is missing."""
        return bool(self.instead)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings; `sources` are those a capture can use now, the one of `auto` first.

    `facts` holds what was found as numbers and words, for programs; its keys stay.
    """

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    sources: tuple[str, ...]

    @property
    def can_capture(self) -> bool:
        """Whether `planner capture` would work here, with one source at least."""
        return bool(self.sources)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": "planner.doctor", "format_version": 1, "version": 1,
            "can_capture": self.can_capture,
            "sources": list(self.sources), "facts": dict(self.facts),
            "findings": [{"name": f.name, "text": f.text, "is_problem": f.is_problem,
                          "instead": f.instead} for f in self.findings],
        }


def examine(root: ProcRoot | None = None) -> Diagnosis:
    """Look at this machine; `root` is for tests. Raises nothing for what is missing."""
    root = root or ProcRoot()
    facts: dict[str, Any] = {"system": platform.system(), "kernel": platform.release(),
                             "machine": platform.machine(), "n_cpus": os.cpu_count() or 0}
    if facts["system"] != "Linux":
        system = Finding("system", f"{facts['system']} {facts['kernel']}: captures need Linux; "
                                   "traces can be read and scenarios run here",
                         "capture on the Linux host and copy the trace here")
        return Diagnosis((system,), facts, ())
    findings = [_system(root, facts), _ksm(root, facts), _counters(root, facts),
                _huge_pages(root, facts)]
    findings += _memory(root, facts)
    module, has_module = _module(root, facts)
    rights = list(_rights(root, facts))
    findings += [module, *rights]
    sources = [name for name, works in (
        ("kmod", has_module), ("proc", not any(right.is_problem for right in rights))) if works]
    if sources:
        text = "possible, source " + " or ".join(sources)
        if sources == ["proc"] and module.is_problem:
            text += " (with --source proc)"
        findings.append(Finding("capture", text))
    else:
        findings.append(Finding("capture", "not possible here", _AS_ROOT))
    return Diagnosis(tuple(findings), facts, tuple(sources))


def _meminfo(root: ProcRoot) -> dict[str, int]:
    """Bytes of the entries of /proc/meminfo that are sizes."""
    found = {}
    with contextlib.suppress(OSError):
        for line in (root.proc / "meminfo").read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) == 3 and words[1].isdigit() and words[2] == "kB":
                found[words[0]] = int(words[1]) * 1024
    return found


def _chosen(path: Path) -> str | None:
    """The word in brackets of a setting such as `always [madvise] never`."""
    try:
        text = path.read_text()
    except OSError:
        return None
    before, _, rest = text.partition("[")
    return rest.partition("]")[0] if rest else before.strip() or None


def _system(root: ProcRoot, facts: dict[str, Any]) -> Finding:
    memory = _meminfo(root)
    facts["memory_bytes"] = memory.get("MemTotal")
    facts["available_bytes"] = memory.get("MemAvailable")
    text = f"Linux {facts['kernel']}, {facts['machine']}, {facts['n_cpus']} CPUs"
    if facts["memory_bytes"] is not None:
        text += f", {format_size(facts['memory_bytes'])} memory"
    if facts["available_bytes"] is not None:
        text += f" ({format_size(facts['available_bytes'])} available)"
    return Finding("system", text)


def _ksm(root: ProcRoot, facts: dict[str, Any]) -> Finding:
    folder = root.sys / "kernel" / "mm" / "ksm"
    settings: dict[str, int | str] = {
        name: value for name in _KSM_SETTINGS if (value := read_int(folder / name)) is not None}
    advisor = _chosen(folder / "advisor_mode")
    if advisor is not None:
        settings["advisor_mode"] = advisor
    facts["ksm"] = settings or None
    if "run" not in settings:
        return Finding("KSM", "not in this kernel (CONFIG_KSM): what it would merge can be "
                              "captured and simulated all the same")
    return Finding("KSM", ", ".join(f"{name}={value}" for name, value in settings.items()))


def _counters(root: ProcRoot, facts: dict[str, Any]) -> Finding:
    counters = ksm_counters(root)
    for name in ("general_profit", "cow_ksm"):
        facts[f"has_{name}"] = name in counters
    merged = counters.get("pages_sharing", 0)
    facts["pages_sharing"] = counters.get("pages_sharing")
    said = [f"{name} {'present' if name in counters else 'absent'}"
            for name in ("general_profit", "cow_ksm")]
    return Finding("KSM counters", f"{', '.join(said)}, pages_sharing {merged}")


def _huge_pages(root: ProcRoot, facts: dict[str, Any]) -> Finding:
    setting = _chosen(root.sys / "kernel/mm/transparent_hugepage/enabled")
    memory = _meminfo(root)
    anon, huge = memory.get("AnonPages", 0), memory.get("AnonHugePages", 0)
    share = huge / anon if anon else 0.0
    facts["transparent_hugepage"] = setting
    facts["huge_share_of_anon"] = share
    if setting is None:
        return Finding("huge pages", "no transparent huge pages in this kernel")
    return Finding("huge pages", f"transparent huge pages {setting}; {format_share(share)} of "
                                 "anonymous memory is huge (KSM splits what it merges)")


def _memory(root: ProcRoot, facts: dict[str, Any]) -> Iterator[Finding]:
    """What the host's processes hold, and what of it would not merge."""
    usage = diagnose_host(root)
    found = usage.diagnosis
    facts["memory"] = {**found.to_json(), "n_processes": usage.n_processes,
                       "n_seen": usage.n_seen}
    if not usage.n_seen:
        return
    yield Finding("memory held", f"{format_size(found.n_bytes)} by {usage.n_seen} of "
                                 f"{usage.n_processes} processes; shares may overlap")
    for part in found.obstacles:
        advice = f" ({part.instead})" if part.instead and part.share >= _WORTH_TELLING else ""
        yield Finding("would not merge", f"{format_share(part.share)} {part.text}{advice}")


def _module(root: ProcRoot, facts: dict[str, Any]) -> tuple[Finding, bool]:
    """The module's line, and whether a capture can use it."""
    name = f"module {_MODULE}"
    is_loaded = (root.sys / "module" / _MODULE).exists()
    facts["module_loaded"] = is_loaded
    facts["module_abi"] = None
    if not is_loaded and not root.device.exists():
        return Finding(name, "not loaded: a capture goes through /proc, and sets the accessed "
                             "bits of what it reads (kmod/README.md)"), False
    # Needs Linux, like the device itself.
    from planner.capture.device import PagehashDevice

    try:
        with PagehashDevice(root.device) as device:
            facts["module_abi"] = list(device.abi)
            # Of this process, listing only, and never read: whether it would be allowed.
            device.start(os.getpid(), bytes(16), StartFlag.NO_HASH)
    except MachineError as error:
        return Finding(name, f"loaded, not usable: {error.what}", error.instead), False
    except TargetExitedError:
        return Finding(name, "loaded, not usable: it does not find this process",
                       "capture with --source proc"), False
    return Finding(name, "loaded, ABI {}.{}".format(*device.abi)), True


def _rights(root: ProcRoot, facts: dict[str, Any]) -> Iterator[Finding]:
    """What a capture through /proc needs, one finding each."""
    for key, name, check in (("can_see_frames", "pagemap", _sees_frames),
                             ("can_read_kpageflags", "kpageflags", _reads_frames),
                             ("can_read_memory", "process memory", _reads_memory)):
        try:
            text, instead = check(root), ""
        except (MachineError, OSError, TargetExitedError) as error:
            if isinstance(error, MachineError):
                text, instead = f"{error.what}: {error.where}", error.instead
            else:
                reason = getattr(error, "strerror", None) or "not as expected"
                text, instead = f"cannot be read: {reason}", _AS_ROOT
        facts[key] = not instead
        yield Finding(name, text, instead)


def _sees_frames(root: ProcRoot) -> str:
    # Written to, so that it is there.
    page = np.ones(1, np.uint8)
    vpn = page.ctypes.data >> 12
    with Pagemap(root, os.getpid()) as pagemap:
        entry = pagemap.read(vpn, vpn + 1)[0]
    if not entry & PM_FRAME:
        raise MachineError("the kernel hides frame numbers", where=str(root.proc),
                           instead="run as root or with CAP_SYS_ADMIN")
    return "frame numbers are shown"


def _reads_frames(root: ProcRoot) -> str:
    with FrameTable(root) as frames:
        frames.flags(np.ones(1, np.uint64))
        frames.n_mappings(np.ones(1, np.uint64))
    return "readable, and kpagecount"


def _reads_memory(root: ProcRoot) -> str:
    # The capability, not a try: what else guards a process is that process's own matter.
    for line in (root.proc / "self" / "status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1:
            return "readable (CAP_SYS_PTRACE)"
    raise MachineError("no permission to read other users' processes",
                       where=str(root.proc / "PID" / "mem"),
                       instead="run as root or with CAP_SYS_PTRACE")
