"""What a plan says, for the terminal: strategies with intervals, hosts, money, requirements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from planner.escape import clean
from planner.measures import METRICS
from planner.report.columns import GREEN, RED, YELLOW, Column, sgr, short_count
from planner.report.facts import Facts, MemoryUnit, Strategy, memory_unit, recommended
from planner.units import format_count, format_duration, format_share, format_size

__all__ = ["bound_text", "confidence_text", "found_text", "is_told", "metric_text",
           "plan_closing", "plan_columns", "plan_definitions", "plan_notes", "requirement_lines",
           "sampled_text"]

Plan = Mapping[str, Any]
#: Requirements and remarks listed at most; plan.json has all.
MAX_LINES = 40


def is_told(plan: Plan | None) -> bool:
    """Whether there is more to say than of one replay."""
    return plan is not None and (bool(plan["is_drawn"]) or plan["n_replicates"] > 1)


def metric_text(metric: str, value: float | None, is_share: bool = False) -> str:
    """A value of a metric with its unit; shares in per cent."""
    if value is None:
        return "not known"
    if is_share:
        return format_share(value)
    unit = METRICS[metric].unit if metric in METRICS else "ratio"
    if unit == "bytes":
        return format_size(round(value))
    if unit == "ns":
        return format_duration(round(value))
    return format_count(round(value)) if unit == "count" else f"{value:.3g}"


def _by_policy(plan: Plan) -> dict[str, Plan]:
    return {each["policy"]: each for each in plan["policies"]}


def plan_columns(facts: Facts, plan: Plan, policy_width: int) -> list[Column]:
    """The table of strategies with intervals; columns that nothing is known of are left out."""
    policies = _by_policy(plan)
    strategies = [s for s in facts.strategies if s.name in policies]
    n_machines = max(int(plan["n_machines"]), 1)
    unit = _unit(policies, n_machines)
    per = "/host" if n_machines > 1 else ""
    chosen = recommended(facts)

    def column(head: tuple[str, ...], cell: Callable[[Strategy, Plan], str],
               style: Callable[[Strategy, Plan], str] = lambda *_: "",
               is_left: bool = False) -> Column:
        return Column(head, tuple(cell(s, policies[s.name]) for s in strategies),
                      tuple(style(s, policies[s.name]) for s in strategies), is_left)

    def amount(value: float | None) -> str:
        return unit.figures(None if value is None else round(value / n_machines))

    def spread(each: Plan, metric: str, write: Callable[[float | None], str]) -> str:
        found = each["metrics"][metric]
        text = write(found["median"])
        return text if found.get("low") is None or found["low"] == found["high"] == 0 \
            else f"{text} [{write(found['low'])}, {write(found['high'])}]"

    def chosen_style(strategy: Strategy, _: Plan) -> str:
        return GREEN if strategy is chosen else ""

    def captured(each: Plan) -> str:
        bounds = each.get("saved_capture_interval_bytes")
        if bounds is None or not any(bounds):
            return "–"
        return f"[{amount(bounds[0])}, {amount(bounds[1])}]"

    def share(each: Plan, metric: str) -> str:
        found = each["metrics"][metric].get("share")
        return "–" if found is None else format_share(found["median"])

    columns = [
        column(("", "POLICY"), lambda s, _: clean(s.label, policy_width), chosen_style,
               is_left=True),
        column(("SAVED", unit.name + per), lambda _, p: spread(p, "saved", amount), chosen_style),
        column(("FROM THE", "CAPTURE"), lambda _, p: captured(p)),
        column(("OF", "MEMORY"), lambda _, p: share(p, "saved")),
        column(("ZERO", unit.name + per),
               lambda _, p: amount(p["metrics"]["saved_zero"]["median"])),
        column(("HOSTS",), lambda _, p: "–" if p["hosts"]["needed"] is None
               else str(p["hosts"]["needed"])),
        column((_currency(policies), "A YEAR"), lambda _, p: _money(p)),
        column(("MERGE", "CPU"), lambda _, p: share(p, "merge_cpu")),
        column(("MERGED", "IN"), lambda _, p: _known(p, "time_to_merge", format_duration)),
        column(("COW/s", "worst"), lambda _, p: short_count(
            round(p["metrics"]["cow_rate"]["median"] or 0))),
        column(("CROSS-", "DOMAIN", "pages"), lambda s, p: _cross(p, facts),
               lambda s, p: _cross_style(p)),
        column(("HEADROOM", unit.name), lambda _, p: _headroom(p, unit),
               lambda _, p: RED if _is_short(p) else ""),
    ]
    return [columns[0], *(each for each in columns[1:] if set(each.cells) - {"–"})]


def _unit(policies: Mapping[str, Plan], n_machines: int) -> MemoryUnit:
    saved = [abs(each["metrics"]["saved"]["median"] or 0) for each in policies.values()]
    return memory_unit(int(max(saved, default=0) / n_machines))


def _currency(policies: Mapping[str, Plan]) -> str:
    return next((clean(each["money"]["currency"], 8) for each in policies.values()
                 if each.get("money")), "MONEY")


def _money(each: Plan) -> str:
    net = (each.get("money") or {}).get("net")
    return "–" if net is None else format_count(round(net))


def _known(each: Plan, metric: str, write: Callable[[int], str]) -> str:
    value = each["metrics"][metric]["median"]
    return "–" if value is None else write(round(value))


def _cross(each: Plan, facts: Facts) -> str:
    pages = round(each["metrics"]["cross_domain_pages"]["median"] or 0)
    sensitive = round(each["metrics"]["cross_domain_sensitive_pages"]["median"] or 0)
    text = short_count(pages)
    return f"{text} ({short_count(sensitive)})" if pages and facts.has_sensitive else text


def _cross_style(each: Plan) -> str:
    if not each["metrics"]["cross_domain_pages"]["high"] \
            and not each["metrics"]["cross_domain_pages"]["median"]:
        return ""
    return RED if each["metrics"]["cross_domain_sensitive_pages"]["median"] else YELLOW


def _is_short(each: Plan) -> bool:
    found = each.get("headroom")
    return found is not None and found["worst_bytes"] < 0


def _headroom(each: Plan, unit: MemoryUnit) -> str:
    found = each.get("headroom")
    if found is None:
        return "–"
    middle = each["metrics"]["unmerge_headroom_p50"]["median"]
    text = f"{unit.figures(round(middle))}, worst {unit.figures(found['worst_bytes'])}"
    return f"{text} !" if _is_short(each) else text


def plan_definitions(facts: Facts, plan: Plan) -> str:
    """What the table's headings mean."""
    policies, n = plan["policies"], plan["n_replicates"]

    def is_known(metric: str) -> bool:
        return any(each["metrics"][metric]["median"] is not None for each in policies)

    sensitive = ", in brackets those with a sensitive domain" if facts.has_sensitive else ""
    when = "over time after the warm-up" if plan["is_drawn"] else "at the end"
    texts = [
        ("", True, f"[ ] = 90 % of {n} replicates" if n > 1 else "One replicate: no interval"),
        ("SAVED", True, "frames freed of non-zero content, minus all of KSM's own records, "
         f"{when}"),
        ("FROM THE CAPTURE", plan["n_resamples"] > 1,
         f"90 % by {plan['n_resamples']} refits on resampled guests"),
        ("OF MEMORY", True, "of what guests use"),
        ("ZERO", True, "freed by merging zero pages, apart"),
        ("HOSTS", is_known("hosts_needed"),
         f"fewest whole hosts that will be enough at {confidence_text(plan)}, counting only on "
         "what is safely saved"),
        ("A YEAR", any((each.get("money") or {}).get("net") is not None for each in policies),
         "against the baseline, less what is known of CPU"),
        ("MERGE CPU", True, "of all cores"),
        ("MERGED IN", is_known("time_to_merge"), "95 % of guests, from their start"),
        ("COW/s", True, "on the worst host"),
        ("CROSS-DOMAIN", True, f"guest pages on merged frames of more than one domain{sensitive}"),
        ("HEADROOM", is_known("unmerge_headroom"),
         "free memory left if every merge were undone within a minute, median and worst host"),
    ]
    return "; ".join(f"{head}: {text}" if head else text
                     for head, is_shown, text in texts if is_shown) + "."


def confidence_text(plan: Plan) -> str:
    """The confidence of hosts needed: what was asked for, or what so few replicates bear out."""
    wanted = format_share(plan["confidence"])
    worth = min((each["hosts"]["confidence"] for each in plan["policies"]
                 if not each["hosts"]["is_backed"]), default=None)
    return f"{wanted} confidence" if worth is None else \
        f"{format_share(worth)} confidence (too few replicates for {wanted})"


def plan_notes(facts: Facts, plan: Plan) -> list[str]:
    """Sentences below the table: what is sampled, what differs for sure, what hurts."""
    notes = []
    if plan.get("is_sampled"):
        notes.append(sampled_text(plan))
    notes += _differences(facts, plan)
    for each in plan["policies"]:
        notes += _storm(facts, each) + _huge(facts, each)
    return notes[:MAX_LINES]


def _label(facts: Facts, policy: str) -> str:
    return facts.labels.get(policy) or clean(policy)


def sampled_text(plan: Plan) -> str:
    """How much of the fleet was simulated, and the stated error."""
    errors = [each["saved_error_bytes"] / each["metrics"]["saved"]["median"]
              for each in plan["policies"]
              if each["metrics"]["saved"]["median"] and each.get("saved_error_bytes")]
    error = f"; standard error of what is saved at most {format_share(max(errors))}" if errors \
        else ""
    n_hosts, n_used = format_count(plan["n_hosts"]), format_count(plan["n_hosts_used"])
    share = format_share(plan.get("content_share", 1.0))
    return (f"Simulated: {n_hosts} of {n_used} hosts with guests, {share} of contents{error}. The "
            "worst host, and what 99 % of hosts have, are of those simulated.")


def _differences(facts: Facts, plan: Plan) -> list[str]:
    """Each strategy against the next best in saving, paired by replicate."""
    by_pair = {(each["first"], each["second"]): each for each in plan["differences"]
               if each["metric"] == "saved" and each.get("low") is not None}
    ranked = sorted((each for each in plan["policies"] if each["metrics"]["saved"]["median"]),
                    key=lambda each: -float(each["metrics"]["saved"]["median"]))
    lines = []
    for better, worse in pairwise(ranked):
        names = better["policy"], worse["policy"]
        found, sign = (by_pair[names], 1) if names in by_pair else \
            (by_pair.get((names[1], names[0])), -1)
        if found is None:
            continue
        low, high = sorted((sign * found["low"], sign * found["high"]))
        what = "" if found["verdict"] != "no difference shown" else " (no difference shown)"
        lines.append(f"{_label(facts, names[0])} saves {format_size(round(sign * found['mean']))} "
                     f"[{format_size(round(low))}, {format_size(round(high))}] more than "
                     f"{_label(facts, names[1])}, by replicate at 95 %{what}.")
    return lines


def _storm(facts: Facts, each: Plan) -> list[str]:
    listed = each["storms"].get("listed") or []
    if not listed:
        return []
    worst = listed[0]
    return [f"{_label(facts, each['policy'])}: storm of COW breaks on {clean(worst['host'])} at "
            f"{format_duration(worst['start_ns'])} for "
            f"{format_duration(worst['end_ns'] - worst['start_ns'])}, "
            f"{format_count(worst['n_breaks'])} breaks, up to "
            f"{format_count(round(worst['peak_per_s']))} a second."]


def _huge(facts: Facts, each: Plan) -> list[str]:
    found = each.get("huge_pages")
    slower = (found or {}).get("slowdown_share")
    if not found or not (found["n_split"] or slower):
        return []
    cost = f"; guests run {format_share(slower)} slower by the scenario's figure" if slower else ""
    return [f"{_label(facts, each['policy'])} splits {format_count(found['n_split'])} huge pages "
            f"({format_size(found['split_bytes'])}){cost}."]


def requirement_lines(facts: Facts, plan: Plan, colour: bool) -> list[str]:
    """One line a requirement with a tick or a cross, and one for what only fits while merged."""
    verdicts = plan["requirements"][:MAX_LINES]
    heads = [(_label(facts, each["policy"]), bound_text(each)) for each in verdicts]
    widths = [max((len(head[i]) for head in heads), default=0) for i in (0, 1)]
    lines = []
    for each, (policy, bound) in zip(verdicts, heads, strict=True):
        mark = sgr("✓", GREEN, colour) if each["is_held"] else sgr("✗", RED, colour)
        lines.append(f"  {mark} {policy.ljust(widths[0])}  {bound.ljust(widths[1])}  "
                     f"{found_text(each)}".rstrip())
    if len(plan["requirements"]) > MAX_LINES:
        lines.append(f"  and {len(plan['requirements']) - MAX_LINES} more, in plan.json")
    lines += [sgr(f"! {_label(facts, each['policy'])} {short}", RED, colour)
              for each in plan["policies"] if (short := _short(each))]
    return lines


def _short(each: Plan) -> str:
    """What to say where memory does not suffice."""
    free = each.get("free")
    if free is not None and free["worst_bytes"] < 0:
        return f"leaves guests without the memory that they use ({_where(free)})."
    return f"could not undo its merges within free memory ({_where(each['headroom'])})." \
        if _is_short(each) else ""


def bound_text(verdict: Mapping[str, Any]) -> str:
    """What a verdict asks for, such as `saved >= 10.0 %`."""
    sign, bound = (">=", verdict["at_least"]) if verdict["at_least"] is not None \
        else ("<=", verdict["at_most"])
    return f"{clean(verdict['metric'])} {sign} " \
           f"{metric_text(verdict['metric'], bound, verdict['is_share'])}"


def found_text(verdict: Mapping[str, Any]) -> str:
    """What a verdict found: the value, and how sure it is or how often it failed."""
    def text(value: float | None) -> str:
        return metric_text(verdict["metric"], value, verdict["is_share"])

    n = verdict["n_replicates"]
    if not n:
        return "not run"
    if verdict["is_held"]:
        if n == 1:
            return text(verdict["value"])
        sign = ">=" if verdict["at_least"] is not None else "<="
        # Of n replicates the next one may be beyond them all with probability 1 / (n + 1).
        how = f"{format_share(verdict['confidence'])} sure of" \
            if n / (n + 1) >= verdict["confidence"] - 1e-9 else f"in {n} replicates"
        return f"{text(verdict['value'])} ({how} {sign} {text(verdict['sure_of'])})"
    if n == 1:
        return text(verdict["worst"]) + _place(verdict["worst_host"], verdict["worst_time_ns"])
    return (f"{text(verdict['worst'])} at worst, failed in {n - verdict['n_held']} of {n} "
            f"replicates{_place(verdict['worst_host'], verdict['worst_time_ns'])}")


def _place(host: str | None, time_ns: int | None) -> str:
    return (f", {clean(host)}" if host else "") + \
        (f", at {format_duration(time_ns)}" if time_ns is not None else "")


def _where(headroom: Mapping[str, Any]) -> str:
    return f"{format_size(headroom['worst_bytes'])}" \
           f"{_place(headroom['host'], headroom['time_ns'])}"


def plan_closing(plan: Plan) -> str:
    """One countable sentence."""
    n, n_required = len(plan["policies"]), len(plan["requirements"])
    text = f"{n} {'policy' if n == 1 else 'policies'} compared"
    if not n_required:
        return f"{text}."
    n_failed = sum(not each["is_held"] for each in plan["requirements"])
    if n_required == 1:
        return f"{text}, its requirement {'failed' if n_failed else 'held'}."
    return f"{text}, {n_failed} of {n_required} requirements failed." if n_failed \
        else f"{text}, all {n_required} requirements held."
