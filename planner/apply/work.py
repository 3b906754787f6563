"""Carrying a plan out, and undoing it, through the calls of Selective KSM.

One pass: what a trigger of the plan does. Whatever fails, the report has every call that was made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from planner.apply.members import Extent, Member
from planner.apply.plan import Plan, PlannedPartition
from planner.errors import DataError
from planner.partitions import (
    KSM_CREAT,
    KSM_SYNC,
    CallCounts,
    InterruptedCallError,
    PartitionCounters,
)

__all__ = ["FORMAT_VERSION", "KIND", "CallReport", "Calls", "PartitionReport", "Report",
           "carry_out", "report_of", "split_huge_pages", "steps_of", "undo", "write_settings"]

KIND = "planner.selective-ksm-report"
FORMAT_VERSION = 1
_MODE = 0o600
#: Where the module has its directory, and where if that cannot be had.
_DIRECTORIES = ("kernel/mm/ksm/partition", "kernel/ksm_partition")


#: Told what is done and which share of all was done before.
Progress = Callable[[str, float], None]


def _silent(what: str, share: float) -> None:
    del what, share


class Calls(Protocol):
    """What is used of `planner.partitions.PartitionDevice`."""

    def ksm_open(self, name: str, flags: int, mode: int = ...) -> int:
        """Open or make a partition; a descriptor."""
        ...

    def ksm_unlink(self, name: str) -> None:
        """Take away its name."""
        ...

    def ksm_merge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Merge a range."""
        ...

    def ksm_unmerge(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Undo that."""
        ...

    def ksm_attach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Let the scanner look at a range."""
        ...

    def ksm_detach(self, fd: int, pid: int, addr: int, size: int) -> CallCounts:
        """Let it no longer."""
        ...

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        ...

    def counters(self, fd: int) -> PartitionCounters:
        """The partition's counters."""
        ...


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call: its range, what it did in pages, and its time by the module's clock.

    `error` is the errno's name and words where it failed; the counts are what it had done.
    """

    call: str
    guest: str
    pid: int
    start: int
    size: int
    merged_pages: int = 0
    partner_pages: int = 0
    already_pages: int = 0
    candidate_pages: int = 0
    unmerged_pages: int = 0
    absent_pages: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    total_ns: int = 0
    error: str | None = None


@dataclass(slots=True)
class PartitionReport:
    """A partition: its calls, and its counters after the last (None when it is gone)."""

    name: str
    title: str
    mode: str
    expected_pages: int | None
    is_net: bool
    members: list[str]
    calls: list[CallReport] = field(default_factory=list)
    pages_shared: int | None = None
    pages_sharing: int | None = None
    error: str | None = None

    @property
    def merged_pages(self) -> int:
        """Pages that these calls merged, partners with them."""
        return sum(call.merged_pages + call.partner_pages for call in self.calls)

    @property
    def unmerged_pages(self) -> int:
        """Pages that these calls unmerged."""
        return sum(call.unmerged_pages for call in self.calls)

    @property
    def total_ns(self) -> int:
        """Time of all calls."""
        return sum(call.total_ns for call in self.calls)

    @property
    def refused(self) -> dict[str, int]:
        """Refused pages by reason, most first."""
        sums: dict[str, int] = {}
        for call in self.calls:
            for reason, number in call.refused.items():
                sums[reason] = sums.get(reason, 0) + number
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(slots=True)
class Report:
    """What was done of a plan; `missing` are members that do not run here.

    After Ctrl-C (`is_interrupted`) it has what was done until then.
    """

    action: str
    plan_digest: str
    policy: str
    partitions: list[PartitionReport]
    missing: list[str] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        found = []
        for each in self.partitions:
            if each.error:
                found.append(f"partition {each.name}: {each.error}")
            found += [f"partition {each.name}: {call.call} of {call.guest} (process {call.pid}): "
                      f"{call.error}" for call in each.calls if call.error]
        return found

    def to_json(self) -> dict[str, Any]:
        """The document that `--json` prints and `read_report` reads."""
        return {"kind": KIND, "format_version": FORMAT_VERSION, **asdict(self),
                "failures": self.failures}


def steps_of(plan: Plan, members: Mapping[str, Member], *, is_undo: bool) -> Iterator[str]:
    """What `carry_out`, or `undo`, will do, a line each."""
    for each in plan.partitions:
        here = [members[member.guest] for member in each.members if member.guest in members]
        size = sum(member.n_pages for member in here)
        whom = f"{len(here)} of {len(each.members)} members, {size} pages of address space"
        if is_undo:
            what = f"unmerge {whom}" if each.is_sync else f"detach {whom}; merged pages stay merged"
            yield f"{each.name}: {what}; unlink it"
        elif each.is_sync:
            yield f"{each.name}: open it with KSM_SYNC, merge {whom}"
        else:
            settings = " ".join(f"{key}={value}" for key, value in each.scanner.items())
            yield f"{each.name}: open it with a scanner ({settings or 'defaults'}), attach {whom}"


def carry_out(plan: Plan, members: Mapping[str, Member], device: Calls, *,
              set_scanner: Callable[[str, Mapping[str, int]], None],
              split: Callable[[Extent], None] | None = None,
              progress: Progress = _silent) -> Report:
    """Open every partition and merge, or attach, its members' memory once.

    `set_scanner(name, settings)` writes a scanner's settings, `split` splits the huge pages of a
    member's memory beforehand; both may raise OSError. After a failed call the others of
    its partition are still made, unless it concerns all of them (no permission, no memory).
    """
    report = _report("apply", plan, members)
    for index, (planned, part) in enumerate(zip(plan.partitions, report.partitions, strict=True)):
        progress(f"partition {planned.name}", index / len(report.partitions))
        sync = KSM_SYNC if planned.is_sync else 0
        try:
            fd = device.ksm_open(planned.name, os.O_RDWR | KSM_CREAT | sync, _MODE)
        except OSError as error:
            part.error = f"open: {_words(error)}"
            if error.errno == errno.EPERM:
                break
            continue
        try:
            if planned.scanner:
                set_scanner(planned.name, planned.scanner)
            if split is not None:
                _split(part, split, planned, members)
            call = device.ksm_merge if planned.is_sync else device.ksm_attach
            _each(part, "merge" if planned.is_sync else "attach", call, fd, planned, members)
            _count(part, device, fd)
        except OSError as error:
            part.error = _words(error)
        except KeyboardInterrupt:
            part.error, report.is_interrupted = "interrupted", True
            break
        finally:
            device.close(fd)
    return report


def undo(plan: Plan, members: Mapping[str, Member], device: Calls, *,
         progress: Progress = _silent) -> Report:
    """Unmerge what `carry_out` has merged of members that run, and unlink the partitions.

    A partition that is not there is passed over. One whose unmerging failed keeps its name, so
    that this can be repeated. What a scanner has merged stays merged until it is written.
    """
    report = _report("undo", plan, members)
    for index, (planned, part) in enumerate(zip(plan.partitions, report.partitions, strict=True)):
        progress(f"partition {planned.name}", index / len(report.partitions))
        try:
            fd = device.ksm_open(planned.name, os.O_RDWR | (KSM_SYNC if planned.is_sync else 0))
        except FileNotFoundError:
            continue
        except OSError as error:
            part.error = f"open: {_words(error)}"
            continue
        try:
            call = device.ksm_unmerge if planned.is_sync else device.ksm_detach
            _each(part, "unmerge" if planned.is_sync else "detach", call, fd, planned, members)
            _count(part, device, fd)
            if not any(call.error for call in part.calls):
                device.ksm_unlink(planned.name)
        except OSError as error:
            part.error = _words(error)
        except KeyboardInterrupt:
            part.error, report.is_interrupted = "interrupted", True
            break
        finally:
            device.close(fd)
    return report


def split_huge_pages(sys: Path, extent: Extent) -> None:
    """Have the kernel split the huge pages of a range, by its debugfs below /sys; OSError."""
    (sys / "kernel/debug/split_huge_pages").write_text(
        f"{extent.pid},{extent.start:#x},{extent.start + extent.size:#x}")


def write_settings(sys: Path, name: str, settings: Mapping[str, int]) -> None:
    """Write settings of a partition's scanner below /sys; OSError."""
    folders = [sys / place / name for place in _DIRECTORIES]
    folder = next((each for each in folders if each.is_dir()), folders[0])
    for key, value in settings.items():
        (folder / key).write_text(str(value))


def _report(action: str, plan: Plan, members: Mapping[str, Member]) -> Report:
    partitions = [PartitionReport(
        each.name, each.title, "sync" if each.is_sync else "ksmd", each.expected_pages,
        each.is_net, [member.guest for member in each.members if member.guest in members])
        for each in plan.partitions]
    missing = [member.guest for each in plan.partitions for member in each.members
               if member.guest not in members]
    return Report(action, plan.digest, plan.policy, partitions, missing)


def _each(part: PartitionReport, name: str, call: Callable[[int, int, int, int], CallCounts],
          fd: int, planned: PlannedPartition, members: Mapping[str, Member]) -> None:
    for member in planned.members:
        for extent in members[member.guest].extents if member.guest in members else ():
            done = _call(name, call, fd, member.guest, extent)
            part.calls.append(done)
            if done.error and done.error.partition(":")[0] in ("EPERM", "EACCES", "ENOMEM",
                                                               "EOPNOTSUPP", "EINTR"):
                return


def _split(part: PartitionReport, split: Callable[[Extent], None], planned: PlannedPartition,
           members: Mapping[str, Member]) -> None:
    for member in planned.members:
        for extent in members[member.guest].extents if member.guest in members else ():
            try:
                split(extent)
            except OSError as error:
                part.calls.append(CallReport("split", member.guest, extent.pid, extent.start,
                                             extent.size, error=_words(error)))


def _call(name: str, call: Callable[[int, int, int, int], CallCounts], fd: int, guest: str,
          extent: Extent) -> CallReport:
    counts, problem = None, None
    try:
        counts = call(fd, extent.pid, extent.start, extent.size)
    except InterruptedCallError as error:
        counts, problem = error.counts, _words(error)
    except OSError as error:
        problem = _words(error)
    if counts is None:
        return CallReport(name, guest, extent.pid, extent.start, extent.size, error=problem)
    return CallReport(
        name, guest, extent.pid, extent.start, extent.size, counts.merged_pages,
        counts.partner_pages, counts.already_pages, counts.candidate_pages, counts.unmerged_pages,
        counts.absent_pages, {reason.name.lower(): n for reason, n in counts.refused.items()},
        counts.total_ns, problem)


def _count(part: PartitionReport, device: Calls, fd: int) -> None:
    counters = device.counters(fd)
    part.pages_shared, part.pages_sharing = counters.pages_shared, counters.pages_sharing


def _words(error: OSError) -> str:
    number = error.errno or 0
    name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, "error")
    return f"{name}: {os.strerror(number)}"


def report_of(document: Mapping[str, Any]) -> Report:
    """The report in a document of `Report.to_json`; DataError when it is none."""
    if document.get("kind") != KIND or document.get("format_version") != FORMAT_VERSION:
        raise DataError("it is not a report of `planner apply`", instead="write one with --json")
    try:
        partitions = [PartitionReport(**{**part, "calls": [CallReport(**call)
                                                           for call in part["calls"]]})
                      for part in document["partitions"]]
        return Report(str(document["action"]), str(document["plan_digest"]),
                      str(document["policy"]), partitions, list(document["missing"]),
                      bool(document["is_interrupted"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the report is damaged: {error}"[:400],
                        instead="write it again with --json") from error
