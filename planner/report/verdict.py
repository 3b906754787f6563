"""The verdict: a few plain sentences on what to enable, if anything, at what price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.escape import clean
from planner.report.facts import (
    MIN_SAVED_SHARE,
    Facts,
    Strategy,
    best,
    is_lacking,
    is_short,
    memory_unit,
    recommended,
    refused,
)
from planner.report.plan_text import bound_text, confidence_text, found_text, is_told
from planner.units import format_count, format_duration, format_share, format_size

__all__ = ["verdict"]

Plan = Mapping[str, Any]

#: What `facts.refused` says, in words.
_REFUSED = {"requirement": "fails a requirement", "money": "costs more than it brings"}


def verdict(facts: Facts) -> tuple[str, ...]:
    """Plain sentences: what to enable if anything, at what price, what fails or is unknown.

    One to three of a single replay; of fleets and replicates also hosts and money, requirements
    that failed, and what fits only while merged.
    """
    if not facts.strategies:
        return ("Nothing was compared.",)
    safe = recommended(facts) or best(s for s in facts.strategies if s.is_safe)
    unsafe = best(s for s in facts.strategies if not s.is_safe)
    top = best(s for s in (safe, unsafe) if s is not None)
    chosen = recommended(facts)
    sentences: list[str] = []
    if top is None or top.saved_share < MIN_SAVED_SHARE:
        sentences += _nothing_worth(facts, top)
    elif safe is None or safe.saved_share < MIN_SAVED_SHARE:
        found = "no strategy that keeps domains apart saves any memory" if safe is None else \
            f"the best strategy that keeps them apart, {safe.label}, saves only " \
            f"{_saves(facts, safe)}"
        sentences.append(f"Do not enable merging unless domains may share pages: {found}.")
        sentences.append(f"{top.label} saves {_saves(facts, top)}, but shares {_exposure(top)}.")
    else:
        if chosen is None and safe.name in refused(facts):
            sentences.append(f"Do not enable merging as planned: {safe.label}, the best strategy "
                             f"that keeps domains apart, {_REFUSED[refused(facts)[safe.name]]}.")
        sentences.append(f"{safe.label} saves {_saves(facts, safe)} and shares no page across "
                         f"domains, for {_cpu(facts, safe)}.")
        sentences += _hosts(facts, safe)
        sentences.append(_unsafe_adds(facts, safe, unsafe))
    sentences += _failed(facts, safe)
    sentences += does_it_fit(facts)
    sentences.append(_unknown(facts, chosen))
    return tuple(sentences)


def _nothing_worth(facts: Facts, top: Strategy | None) -> list[str]:
    found = "no strategy saves any memory" if top is None else \
        f"the best strategy, {top.label}, saves only {_saves(facts, top)}"
    sentences = [f"Do not enable merging here: {found}."]
    zero = max(facts.strategies, key=lambda s: int(s.row["saved_zero_bytes"]))
    zero_bytes = int(zero.row["saved_zero_bytes"])
    if zero_bytes > MIN_SAVED_SHARE * int(zero.row["guest_memory_bytes"]):
        sentences.append(
            f"Zero pages would give back {_size(facts, zero_bytes)} under {zero.label}, "
            "which ballooning or free-page reporting returns without merging.")
    return sentences


def _cpu(facts: Facts, strategy: Strategy) -> str:
    if not is_told(facts.plan):
        return f"{format_duration(int(strategy.row['merge_cpu_ns']))} of merge CPU in " \
               f"{format_duration(facts.horizon_ns)}"
    found = (facts.plan_of(strategy) or {}).get("metrics", {}).get("merge_cpu", {}).get("share")
    return f"{format_share(found['median'])} of all cores" if found else \
        f"{format_duration(int(strategy.row['merge_cpu_ns']))} of merge CPU"


def _unsafe_adds(facts: Facts, safe: Strategy, unsafe: Strategy | None) -> str:
    if unsafe is None:
        return "No strategy compared here shares pages across domains."
    if unsafe.saved_bytes <= safe.saved_bytes:
        return (f"Sharing across domains would not pay: {unsafe.label}, the best that does, saves "
                f"{_size(facts, unsafe.saved_bytes)} and shares {_exposure(unsafe)}.")
    return (f"{unsafe.label} would save {_size(facts, unsafe.saved_bytes - safe.saved_bytes)} "
            f"more, but shares {_exposure(unsafe)}.")


def _hosts(facts: Facts, strategy: Strategy) -> list[str]:
    """Whole hosts against the baseline, and a year's money where it is told."""
    plan, baseline = facts.plan, facts.strategies[0]
    mine, other = facts.plan_of(strategy), facts.plan_of(baseline)
    if plan is None or mine is None or other is None or not is_told(plan):
        return []
    parts = []
    needed, before = mine["hosts"]["needed"], other["hosts"]["needed"]
    if needed is not None and before is not None:
        parts.append(f"{format_count(needed)} {_hosts_word(needed)} enough at "
                     f"{confidence_text(plan)} where {baseline.label} needs "
                     f"{format_count(before)}" if needed < before else
                     f"No whole host is saved at {confidence_text(plan)}: it needs "
                     f"{format_count(needed)}, {baseline.label} {format_count(before)}")
    net = (mine.get("money") or {}).get("net")
    if net is not None:
        parts.append(f"it {'brings' if net >= 0 else 'costs'} {format_count(abs(round(net)))} "
                     f"{clean(mine['money']['currency'], 8)} a year")
    text = ", and ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."] if parts else []


def _hosts_word(n: int) -> str:
    return "host is" if n == 1 else "hosts are"


def _failed(facts: Facts, safe: Strategy | None) -> list[str]:
    """The requirements that failed, in one sentence that names one: of `safe`, if any."""
    verdicts = (facts.plan or {}).get("requirements", ())
    failed = sorted((each for each in verdicts if not each["is_held"]),
                    key=lambda each: safe is None or each["policy"] != safe.name)
    if not failed:
        return []
    first = failed[0]
    policy = facts.labels.get(first["policy"]) or clean(first["policy"])
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return [f"{len(failed)} of {len(verdicts)} "
            f"{'requirement' if len(verdicts) == 1 else 'requirements'} failed: {policy} "
            f"{bound_text(first)} ({found_text(first)}){more}."]


def does_it_fit(facts: Facts) -> list[str]:
    """Names every strategy under which some host could not undo its merges, or has too little
    memory even while merged. Nothing of single replays: their page tells it."""
    planned = [(strategy, each) for strategy in facts.strategies
               if (each := facts.plan_of(strategy)) is not None] if is_told(facts.plan) else []
    never = [(strategy.label, each["free"]) for strategy, each in planned
             if is_lacking(each)]
    merged = [(strategy.label, each["headroom"]) for strategy, each in planned
              if is_short(each) and strategy.label not in dict(never)]
    what = "fleet" if facts.n_hosts > 1 else "host"
    return [*_lacking(never, f"the {what} does not fit: at its worst"),
            *_lacking(merged, f"the {what} fits only while merged: if every merge broke,")]


def _lacking(found: Sequence[tuple[str, Plan]], what: str) -> list[str]:
    if not found:
        return []
    worst = min((each for _, each in found), key=lambda each: int(each["worst_bytes"]))
    names = ", ".join(label for label, _ in found[:4]) + (
        f" and {len(found) - 4} more" if len(found) > 4 else "")
    return [f"! Under {names} {what} {clean(worst['host'])} would lack "
            f"{format_size(-int(worst['worst_bytes']))}."]


def _size(facts: Facts, n_bytes: int) -> str:
    """Fleets run from MiB to TiB; the sizes of one replay are all in one unit."""
    return format_size(n_bytes) if is_told(facts.plan) else facts.unit.text(n_bytes)


def _saves(facts: Facts, strategy: Strategy) -> str:
    found = (facts.plan_of(strategy) or {}).get("metrics", {}).get("saved", {})
    # As in the table: the median of the replicates' shares.
    share = found["share"]["median"] if is_told(facts.plan) and found.get("share") \
        else strategy.saved_share
    interval = f" [{format_size(round(found['low']))}, {format_size(round(found['high']))}]" \
        if is_told(facts.plan) and found.get("low") is not None else ""
    return (f"{_size(facts, strategy.saved_bytes)}{interval} "
            f"({format_share(share)}) of the "
            f"{_memory(facts, strategy)} its guests use")


def _memory(facts: Facts, strategy: Strategy) -> str:
    n_bytes = int(strategy.row["guest_memory_bytes"])
    return format_size(n_bytes) if is_told(facts.plan) else memory_unit(n_bytes).text(n_bytes)


def _exposure(strategy: Strategy) -> str:
    pages = int(strategy.row["cross_domain_pages"])
    text = f"{format_count(pages)} guest pages across domains" if pages else \
        f"up to {format_count(strategy.most_cross)} guest pages across domains"
    sensitive = int(strategy.row["cross_domain_sensitive_pages"])
    return f"{text}, {format_count(sensitive)} of them with a sensitive domain" if sensitive \
        else text


def _unknown(facts: Facts, chosen: Strategy | None) -> str:
    unknown = ["the spread between runs (this is one run)"] if facts.n_replicates == 1 else []
    if not facts.is_measured:
        unknown.insert(0, "CPU and times on your machine (its timings were not measured)")
    if not facts.has_validation:
        unknown.insert(0, "how close the model is to your hosts (not validated there)")
    listed = " and ".join([*([", ".join(unknown[:-1])] if unknown[1:] else []), *unknown[-1:]])
    if chosen is None:
        return f"Not known: {listed}." if unknown else "Measured and validated on your hosts."
    return f"{_undone(facts, chosen)}{'; not known: ' if unknown else ''}{listed}."


def _undone(facts: Facts, chosen: Strategy) -> str:
    found = (facts.plan_of(chosen) or {}).get("headroom")
    if found is not None and is_told(facts.plan) and found["worst_bytes"] >= 0:
        return (f"If every merge of {chosen.label} were undone at once, the worst host "
                f"({clean(found['host'])}) would have {format_size(int(found['worst_bytes']))} "
                "left")
    return (f"If every merge of {chosen.label} were undone at once, "
            f"{_size(facts, int(chosen.row['unmerge_bytes']))} of free memory would be needed")
