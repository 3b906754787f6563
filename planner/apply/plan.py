"""Reading a plan of `planner export settings --as selective-ksm` (docs/settings.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.errors import DataError, UsageError

__all__ = ["FORMAT_VERSION", "KIND", "Plan", "PlannedMember", "PlannedPartition", "read_plan"]

KIND = "planner.selective-ksm"
FORMAT_VERSION = 1
_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,63}")
#: Settings of a scanner that a partition of the module has.
_SCANNER_SETTINGS = ("pages_to_scan", "sleep_millisecs")


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """A guest of the scenario, and the labels to find it by."""

    guest: str
    host: str
    domain: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedPartition:
    """A partition: `scanner` has its settings unless it merges by calls (`is_sync`).

    `expected_pages` is how many frames the plan expects to be freed at the end of the run, None
    where it does not tell; `is_net` whether metadata is taken off that number.
    """

    name: str
    title: str
    is_sync: bool
    members: tuple[PlannedMember, ...]
    scanner: Mapping[str, int] = field(default_factory=dict)
    expected_pages: int | None = None
    is_net: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan; `digest` tells the file from others, `triggers` are words for people."""

    scenario: str
    policy: str
    digest: str
    partitions: tuple[PlannedPartition, ...]
    triggers: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that members are on, sorted."""
        return tuple(sorted({member.host for each in self.partitions for member in each.members}))

    def on_host(self, host: str | None) -> Plan:
        """What concerns one host; it must be named where there are several. UsageError."""
        if host is None:
            if len(self.hosts) > 1:
                raise UsageError(f"the plan spans {len(self.hosts)} hosts", where="--host",
                                 instead="name this one: " + ", ".join(self.hosts))
            return self
        if host not in self.hosts:
            raise UsageError(f"the plan has no host {host!r}", where="--host",
                             instead="it has " + ", ".join(self.hosts))
        several = len(self.hosts) > 1
        partitions = []
        for each in self.partitions:
            members = tuple(member for member in each.members if member.host == host)
            if members:
                # What several hosts are expected to save together says nothing of one.
                partitions.append(replace(each, members=members, expected_pages=(
                    None if several and len(members) < len(each.members)
                    else each.expected_pages)))
        return replace(self, partitions=tuple(partitions))


def read_plan(path: Path) -> Plan:
    """Read and check a plan; DataError says what is wrong and where."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path),
                        instead="give a file of `planner export settings --as selective-ksm`"
                        ) from error
    try:
        document = json.loads(raw)
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise DataError("it is not a plan of Selective KSM", where=str(path),
                            instead="make one: planner export settings RESULT --policy NAME "
                                    "--as selective-ksm")
        if document.get("format_version") != FORMAT_VERSION:
            raise DataError(f"its format is {document.get('format_version')!r}, this version "
                            f"reads {FORMAT_VERSION}", where=str(path),
                            instead="export it again with this version")
        plan = Plan(_text(document, "scenario"), _text(document, "policy"),
                    hashlib.sha256(raw).hexdigest(),
                    tuple(map(_partition, document["partitions"])),
                    tuple(map(_trigger, document["triggers"])))
        _check_unique(plan)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"the plan is damaged: {what}"[:400], where=str(path),
                        instead="export it again") from error
    return plan


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _partition(row: Mapping[str, Any]) -> PlannedPartition:
    name, mode = _text(row, "name"), _text(row, "mode")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a partition")
    if mode not in ("sync", "ksmd"):
        raise ValueError(f"mode {mode[:80]!r} of partition {name}")
    settings = row.get("ksmd") or {}
    scanner = {key: int(settings[key]) for key in _SCANNER_SETTINGS if key in settings}
    members = tuple(PlannedMember(_text(each, "guest"), _text(each, "host"),
                                  _text(each, "domain"), dict(each.get("labels") or {}))
                    for each in row["members"])
    expected, is_net = _expected(row.get("expected"))
    return PlannedPartition(name, _text(row, "title"), mode == "sync", members,
                            scanner if mode == "ksmd" else {}, expected, is_net)


def _expected(row: Mapping[str, Any] | None) -> tuple[int | None, bool]:
    """Frames freed: by KSM's counters where the plan has them, else by bytes, net of metadata.

    Pages of zeroes are in pages_sharing, unless `use_zero_pages` had them mapped to the zero page.
    """
    if row is None:
        return None, False
    if "pages_sharing" in row:
        return int(row["pages_sharing"]) + int(row.get("ksm_zero_pages", 0)), False
    return (int(row["saved_bytes"]) + int(row["saved_zero_bytes"])) // 4096, True


def _trigger(row: Mapping[str, Any]) -> str:
    kind = _text(row, "kind")
    key = {"boot": "after_ns", "every": "every_ns"}[kind]
    seconds = f"{int(row[key]) / 1e9:g} s"
    return f"{seconds} after a member starts" if kind == "boot" else f"every {seconds}"


def _check_unique(plan: Plan) -> None:
    names = [each.name for each in plan.partitions]
    members = [(member.host, member.guest) for each in plan.partitions for member in each.members]
    if len(set(names)) < len(names):
        raise ValueError("two partitions have one name")
    if len(set(members)) < len(members):
        raise ValueError("a member is in two partitions")
