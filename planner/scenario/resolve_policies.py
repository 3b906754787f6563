"""Policies of either file form as the resolved scenario holds them."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from planner.scenario.load import Part, RawScenario
from planner.scenario.schema_policies import (
    CooperationModel,
    KsmtunedModel,
    MergeModel,
    PolicyModel,
    RepeatedShare,
    SyncModel,
    TriggerModel,
)
from planner.scenario.schema_resolved import (
    ResolvedLimit,
    ResolvedMerge,
    ResolvedPolicy,
    ResolvedSync,
    ResolvedTrigger,
)
from planner.scenario.spec import (
    Cooperation,
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    Labels,
    Merge,
    Never,
    PartitionRule,
    PolicySpec,
    Sync,
    SyncAdvisor,
    Trigger,
)
from planner.scenario.words import did_you_mean

__all__ = ["labels_of", "policy_of", "resolved_policy"]

Path = tuple[Part, ...]
_BOOT = Trigger("boot", 60_000_000_000)
_RESTORE = Trigger("restore")
_MAX_CONF_BYTES = 1 << 16
_ASSIGNMENT = re.compile(r"\s*([A-Z_][A-Z0-9_]*)=(?:\"([^\"]*)\"|'([^']*)'|(\S*))\s*(?:#.*)?",
                         re.ASCII)
#: Keys of ksmtuned.conf that say nothing of its pace.
_IDLE_KEYS = frozenset({"LOGFILE", "DEBUG"})


def labels_of(mapping: Mapping[str, str]) -> Labels:
    """Labels sorted by key."""
    return tuple(sorted(mapping.items()))


def policy_of(raw: RawScenario, index: int, policy: PolicyModel) -> PolicySpec:
    """A policy that a person wrote; a ksmtuned.conf that it names is read here."""
    at: Path = ("policies", index)
    return PolicySpec(
        policy.name, tuple(policy.partition_by), tuple(map(labels_of, policy.exclude)),
        _merge(raw, (*at, "merge"), policy.merge),
        tuple(
            PartitionRule(
                rule.name, tuple(map(labels_of, rule.match)),
                None if rule.merge is None
                else _merge(raw, (*at, "partitions", number, "merge"), rule.merge))
            for number, rule in enumerate(policy.partitions)),
        _cooperation(policy.cooperation))


def _cooperation(given: str | CooperationModel) -> Cooperation:
    if isinstance(given, CooperationModel):
        if given.full is not None:
            return Cooperation("full", tuple(map(labels_of, given.full.ranges or ())))
        return Cooperation("ranges", tuple(map(labels_of, given.ranges or ())))
    return Cooperation("full" if given == "full" else "none")


def _merge(raw: RawScenario, at: Path, merge: str | MergeModel) -> Merge:
    if isinstance(merge, str):
        return Never()
    if merge.ksmd is not None:
        return Ksmd(**merge.ksmd.model_dump())
    if merge.sync is not None:
        return _sync(merge.sync)
    if merge.ksmtuned is not None:
        return _ksmtuned(raw, (*at, "ksmtuned"), merge.ksmtuned)
    if merge.kubevirt is not None:
        values = merge.kubevirt.model_dump()
        return KubeVirt(**{key: value for key, value in values.items() if key != "interval"},
                        interval_ns=merge.kubevirt.interval)
    if merge.balloon is not None:
        return FreePages("balloon", merge.balloon.every)
    return FreePages("reporting")


def _sync(sync: SyncModel) -> Sync:
    advisor = sync.advisor
    return Sync(
        tuple(map(_trigger, sync.at)), sync.longest_call or 0, sync.stagger or 0,
        None if advisor is None else SyncAdvisor(advisor.shortest, advisor.longest, advisor.target,
                                                 advisor.drop_after))


def _trigger(trigger: str | TriggerModel) -> Trigger:
    if isinstance(trigger, str):
        return _RESTORE if trigger == "restore" else _BOOT
    if trigger.boot is not None:
        return Trigger("boot", trigger.boot.after)
    if trigger.restore is not None:
        return Trigger("restore", trigger.restore.after)
    if trigger.every is not None:
        return Trigger("every", every_ns=trigger.every)
    if trigger.when_free_below is not None:
        share, every_ns = _limit(trigger.when_free_below)
        return Trigger("pressure", every_ns=every_ns, share=share)
    share, every_ns = _limit(trigger.when_idle_above or 0.0)
    return Trigger("idle", every_ns=every_ns, share=share)


def _limit(limit: float | RepeatedShare) -> tuple[float, int]:
    if isinstance(limit, RepeatedShare):
        return limit.share, limit.every or 0
    return limit, 0


# ---- ksmtuned.conf --------------------------------------------------------------------------


def _ksmtuned(raw: RawScenario, at: Path, model: KsmtunedModel) -> Ksmtuned:
    """Defaults, then the file's keys, then those beside it."""
    aliases = {str(each.alias): name for name, each in KsmtunedModel.model_fields.items()
               if name != "file"}
    values = {} if model.file is None else _conf(raw, (*at, "file"), model.file, aliases)
    values |= model.model_dump(exclude={"file"}, exclude_none=True)
    return replace(Ksmtuned(), **values)


def _conf(raw: RawScenario, at: Path, name: str, aliases: Mapping[str, str]) -> dict[str, int]:
    """Values by field of the assignments in a ksmtuned.conf; faults are told at its name."""
    path = os.path.abspath(raw.base / name)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_CONF_BYTES + 1)
        if len(data) > _MAX_CONF_BYTES:
            raise ValueError("larger than 64 KiB; a ksmtuned.conf is a few lines")
        lines = data.decode().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raw.doubt(at, f"{name!r} cannot be read: {reason}")
        return {}
    values: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        where = f"line {number} of {name!r}"
        if match is None:
            raw.doubt(at, f"{where} is not KEY=VALUE: {line.strip()[:64]!r}")
            continue
        key = match[1]
        value = next((text for text in match.groups()[1:] if text is not None), "")
        if key in aliases:
            fault = _conf_fault(key, value)
            if fault:
                raw.doubt(at, f"{where}: {fault}")
            else:
                values[aliases[key]] = int(value)
        elif key not in _IDLE_KEYS:
            raw.doubt(at, f"{where}: unknown key {key!r}{did_you_mean(key, aliases)}")
    return values


def _conf_fault(key: str, text: str) -> str:
    """What is wrong with a value of the file, by the limits of the same key in a scenario."""
    if not re.fullmatch(r"-?[0-9]{1,16}", text, re.ASCII):
        return f"{key} must be a whole number, got {text[:64]!r}"
    try:
        KsmtunedModel.model_validate({key: int(text)})
    except ValueError:
        return f"{key}={text} is out of range"
    return ""


# ---- the resolved form ----------------------------------------------------------------------


def resolved_policy(policy: ResolvedPolicy) -> PolicySpec:
    """A policy of the resolved form."""
    cooperation = policy.cooperation
    return PolicySpec(
        policy.name, tuple(policy.partition_by), tuple(map(labels_of, policy.exclude)),
        _resolved_merge(policy.merge),
        tuple(PartitionRule(rule.name, tuple(map(labels_of, rule.match)),
                            None if rule.merge is None else _resolved_merge(rule.merge))
              for rule in policy.partitions),
        Cooperation() if cooperation is None
        else Cooperation(cooperation.kind, tuple(map(labels_of, cooperation.ranges))))


def _resolved_merge(merge: str | ResolvedMerge) -> Merge:
    if isinstance(merge, str):
        return Never()
    if merge.ksmd is not None:
        return Ksmd(**merge.ksmd.model_dump())
    if merge.sync is not None:
        return _resolved_sync(merge.sync)
    if merge.ksmtuned is not None:
        return Ksmtuned(**merge.ksmtuned.model_dump())
    if merge.kubevirt is not None:
        return KubeVirt(**merge.kubevirt.model_dump())
    if merge.balloon is not None:
        return FreePages("balloon", merge.balloon.every_ns)
    return FreePages("reporting")


def _resolved_sync(sync: ResolvedSync) -> Sync:
    advisor = None if sync.advisor is None else SyncAdvisor(**sync.advisor.model_dump())
    return Sync(tuple(map(_resolved_trigger, sync.at)), sync.longest_call_ns, sync.stagger_ns,
                advisor)


def _resolved_trigger(trigger: ResolvedTrigger) -> Trigger:
    if trigger.boot is not None:
        return Trigger("boot", trigger.boot.after_ns)
    if trigger.restore is not None:
        return Trigger("restore", trigger.restore.after_ns)
    if trigger.every_ns is not None:
        return Trigger("every", every_ns=trigger.every_ns)
    if trigger.pressure is not None:
        return _resolved_limit("pressure", trigger.pressure)
    return _resolved_limit("idle", trigger.idle or ResolvedLimit(share=0, every_ns=0))


def _resolved_limit(kind: Literal["pressure", "idle"], limit: ResolvedLimit) -> Trigger:
    return Trigger(kind, every_ns=limit.every_ns, share=limit.share)
