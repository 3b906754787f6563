"""What the page tells of fleets and replicates: plain texts, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planner.measures import METRICS
from planner.report.chart_base import look, time_unit
from planner.report.facts import Facts, Strategy, clean, is_short, recommended, refused
from planner.report.plan_charts import INPUT_NAMES, plan_frontier
from planner.report.plan_text import (
    bound_text,
    confidence_text,
    found_text,
    metric_text,
    sampled_text,
)
from planner.report.plan_view import Band, PlanView, spread_of
from planner.report.sweep_section import elasticity_text
from planner.units import format_count, format_duration, format_share, format_size

__all__ = ["plan_page", "requirement_rows", "sampling_part"]

Plan = Mapping[str, Any]
Row = dict[str, Any]
_UNKNOWN = "–"
#: Differences shown beside the saving, where they are known.
_COMPARED = ("hosts_needed", "merge_cpu", "unmerge_headroom")
#: Shares of guests of which the time to merge is told first.
_MERGED = (0.5, 0.9, 0.95, 0.99)
_MAX_NOTE = 1000
_YEAR_NS = 365 * 24 * 3600 * 10**9
_MAX_INCIDENTS = 40


def plan_page(view: PlanView) -> dict[str, Any]:
    """All sections of a plan; those without data are empty."""
    plan = view.plan
    return {
        "is_drawn": bool(plan["is_drawn"]),
        "n_replicates": view.facts.n_replicates,
        "n_resamples": int(plan["n_resamples"]) if plan["n_resamples"] > 1 else 0,
        "warm_up": format_duration(view.warm_up_ns) if view.warm_up_ns else "",
        "is_fleet": view.n_machines > 1,
        "unit": view.unit.name,
        "confidence": confidence_text(plan),
        "notes": _unique(clean(note, _MAX_NOTE) for note in plan["notes"]),
        "sampled": sampled_text(plan) if plan.get("is_sampled") else "",
        "strategies": _strategies(view),
        "requirements": requirement_rows(view.facts),
        "over_time": _over_time(view),
        "differences": _differences(view),
        "hosts": _hosts(view),
        "money": _money(view),
        "prices": _prices(view.costs),
        "cpu": _cpu(view),
        "merged": _merged(view),
        "merged_shares": [_share(share) for share in _MERGED],
        "ecdf": _ecdf(view),
        "rates": _rates(view),
        "storms": _storms(view),
        "headroom": _headroom(view),
        "sensitivity": _sensitivity(view),
        "huge": _huge(view),
        "cgroups": _cgroups(view),
        "incidents": _incidents(view),
    }


def _unique(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))


def _named(strategy: Strategy) -> Row:
    return {"label": strategy.label, "colour": look(strategy.index).colour}


def _interval(found: Mapping[str, Any], write: Callable[[float], str]) -> str:
    """`[low, high]`; empty of one replicate, or where both read alike."""
    if found.get("low") is None:
        return ""
    low, high = write(found["low"]), write(found["high"])
    return "" if low == high else f"[{low}, {high}]"


def _text(found: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    return _UNKNOWN if found is None or found.get("median") is None else write(found["median"])


def _count(value: float) -> str:
    return format_count(round(value))


def _size(value: float) -> str:
    return format_size(round(value))


def _rate(value: float) -> str:
    return format_count(round(value)) if value >= 100 else f"{value:.3g}"


def _share(value: float) -> str:
    """A round share, as in headings."""
    return f"{100 * value:.3g} %"


def _duration(value: float) -> str:
    return format_duration(round(value))


def _strategies(view: PlanView) -> list[Row]:
    chosen, best, against = recommended(view.facts), plan_frontier(view), refused(view.facts)
    failed = [each["policy"] for each in view.plan["requirements"] if not each["is_held"]]
    required = [each["policy"] for each in view.plan["requirements"]]

    def amount(value: float) -> str:
        return view.unit.figures(round(value))

    rows = []
    for strategy, each in view.policies:
        metrics, captured = each["metrics"], each.get("saved_capture_interval_bytes")
        saved, headroom = metrics["saved"], each.get("headroom")
        net = (each.get("money") or {}).get("net")
        rows.append({
            **_named(strategy),
            "is_baseline": strategy.index == 0, "is_recommended": strategy is chosen,
            "is_refused": strategy.name in against, "is_on_frontier": strategy.label in best,
            "is_safe": strategy.is_safe,
            "merge": clean(strategy.row["merge"], 80),
            "partition_by": clean(strategy.row["partition_by"], 80),
            "saved": _text(saved, amount), "interval": _interval(saved, amount),
            "captured": "" if captured is None or not any(captured)
            else f"[{amount(captured[0])}, {amount(captured[1])}]",
            "share": _text(saved.get("share"), format_share),
            "per_host": _UNKNOWN if saved["median"] is None
            else _size(saved["median"] / view.n_machines),
            "zero": _text(metrics["saved_zero"], amount),
            "hosts": _UNKNOWN if each["hosts"]["needed"] is None
            else format_count(each["hosts"]["needed"]),
            "money": _UNKNOWN if net is None else _amount(net),
            "is_loss": net is not None and round(net) < 0,
            "cpu": _text(metrics["merge_cpu"].get("share"), format_share),
            "cpu_time": _text(metrics["merge_cpu"], _duration),
            "merged": _text(metrics["time_to_merge"], _duration),
            "cow": _text(metrics["cow_rate"], _count),
            "cross": _text(metrics["cross_domain_pages"], _count),
            "cross_interval": _interval(metrics["cross_domain_pages"], _count),
            "sensitive": _text(metrics["cross_domain_sensitive_pages"], _count),
            "is_sensitive_shared": bool(metrics["cross_domain_sensitive_pages"]["median"]),
            "pairs": _count(metrics["exposed_domain_pairs"]["median"] or 0)
            if not strategy.is_safe else "",
            "headroom": _UNKNOWN if headroom is None
            else _text(metrics["unmerge_headroom_p50"], _size),
            "headroom_worst": "" if headroom is None else format_size(headroom["worst_bytes"]),
            "is_short": is_short(each),
            "n_required": required.count(strategy.name),
            "n_failed": failed.count(strategy.name),
        })
    return rows


def _amount(money: float) -> str:
    return format_count(round(money))


def _strategy_of(facts: Facts, policy: str) -> Row:
    found = next((s for s in facts.strategies if s.name == policy), None)
    return {"label": clean(policy), "colour": "transparent"} if found is None else _named(found)


def requirement_rows(facts: Facts) -> list[Row]:
    """What the scenario requires, held against the replicates; also of a single replay."""
    return [{**_strategy_of(facts, each["policy"]), "is_held": bool(each["is_held"]),
             "bound": bound_text(each), "found": found_text(each),
             "confidence": format_share(each["confidence"]),
             "text": METRICS[each["metric"]].text if each["metric"] in METRICS else ""}
            for each in (facts.plan or {}).get("requirements", ())]


def sampling_part(run: Mapping[str, Any], facts: Facts) -> Row | None:
    """How much of a fleet was simulated, and the stated errors; None where nothing says it."""
    found = run.get("sampling")
    if not found:
        return None
    share = format_share(float(found["content_share"]))
    what = (f"Simulated: {format_count(found['n_hosts'])} of "
            f"{format_count(found['n_hosts_with_guests'])} hosts with guests in each replicate, "
            f"{share} of contents" if found["is_sampled"]
            else "Every host with guests was simulated with all contents")
    return {"text": f"{what}: {format_count(found['n_pages_simulated'])} pages in all.",
            "rows": [{**_strategy_of(facts, each["policy"]),
                      "replicate": int(each["replicate"]) + 1,
                      "share": _UNKNOWN if each["error_share"] is None
                      else format_share(each["error_share"]),
                      **{name: _UNKNOWN if each[f"{key}_error_bytes"] is None
                         else _size(each[f"{key}_error_bytes"])
                         for name, key in (("hosts", "host"), ("contents", "content"))}}
                     for each in found["errors"] if found["is_sampled"]]}


def _over_time(view: PlanView) -> Row:
    """The figures of the charts over time: a row a time, a column a policy."""
    name, unit_ns = time_unit(view.horizon_ns)

    def table(times: list[int], bands: Mapping[str, list[Band]], write: Callable[[float], str],
              ) -> list[list[str]]:
        def cell(band: Band) -> str:
            text = write(band.median)
            return text if band.low == band.high else \
                f"{text} [{write(band.low)}, {write(band.high)}]"

        return [[f"{t / unit_ns:.2f}".rstrip("0").rstrip("."),
                 *(cell(found[index]) for found in bands.values())]
                for index, t in enumerate(times)]

    saved_times, saved = view.bands("saved_bytes")
    cow_times, cow = view.rates("cow_breaks")
    return {"unit": name,
            "names": [_named(s) for s, _ in view.policies if s.label in saved],
            "saved": table(saved_times, saved, lambda value: view.unit.figures(round(value))),
            "undone": table(cow_times, cow, _rate)}


def _differences(view: PlanView) -> list[Row]:
    """Each strategy against the baseline and against the one that saves most, by replicate."""
    found = {(each["first"], each["second"], each["metric"]): each
             for each in view.plan["differences"]}
    names = {strategy.name: strategy for strategy, _ in view.policies}
    baseline = view.plan["baseline"]
    most = max(view.policies, key=lambda pair: (
        float(pair[1]["metrics"]["saved"]["median"] or 0), -pair[0].index), default=None)
    against = list(dict.fromkeys([baseline, *([most[0].name] if most else ())]))
    rows = []
    for strategy, _ in view.policies:
        for other in against:
            if strategy.name in (other, baseline) or other not in names:
                continue
            saved = _paired(found, strategy.name, other, "saved")
            if saved is not None:
                rows.append({**_named(strategy), "other": names[other].label,
                             "saved": _difference_text(saved, "saved"),
                             "verdict": saved["verdict"],
                             "more": [_difference_text(_paired(found, strategy.name, other, name),
                                                       name) for name in _COMPARED]})
    return rows


def _paired(found: Mapping[tuple[str, str, str], Plan], first: str, second: str, metric: str,
            ) -> Row | None:
    """The difference first minus second, turned round where it was told the other way."""
    if (first, second, metric) in found:
        return dict(found[first, second, metric])
    each = found.get((second, first, metric))
    if each is None:
        return None
    turned = {"better": "worse", "worse": "better"}
    low, high = each.get("low"), each.get("high")
    return {**each, "mean": -each["mean"], "low": None if high is None else -high,
            "high": None if low is None else -low,
            "verdict": turned.get(each["verdict"], each["verdict"])}


def _difference_text(each: Row | None, metric: str) -> str:
    if each is None:
        return _UNKNOWN

    def write(value: float) -> str:
        if METRICS[metric].unit == "ns":
            return f"{'-' if value < 0 else ''}{format_duration(abs(round(value)))}"
        return metric_text(metric, value)

    return f"{write(each['mean'])} {_interval(each, write)}".rstrip()


def _hosts(view: PlanView) -> list[Row]:
    rows = []
    for strategy, each in view.policies:
        found = each["hosts"]
        if found["needed"] is not None:
            rows.append({
                **_named(strategy), "needed": format_count(found["needed"]),
                "used": _text(view.metric(each, "hosts_used"), _count),
                "rejected": _text(view.metric(each, "rejected_guests"), _count),
                "safe": format_share(found["safe_share"]),
                "overcommit": f"{found['safe_overcommit']:.2f}",
                "confidence": format_share(found["confidence"]),
                "is_backed": bool(found["is_backed"]),
                "fit": ", ".join(f"{format_count(int(n))}: {format_share(float(share))}"
                                 for n, share in found["fit"])})
    return rows


def _money(view: PlanView) -> Row | None:
    known = [(strategy, each["money"]) for strategy, each in view.policies if each.get("money")]
    if not known:
        return None

    def write(value: float | None) -> str:
        return _UNKNOWN if value is None else _amount(value)

    return {"currency": clean(known[0][1]["currency"], 8),
            "rows": [{**_named(strategy),
                      "hosts_saved": _UNKNOWN if found["hosts_saved"] is None
                      else format_count(found["hosts_saved"]),
                      **{name: write(found[name]) for name in (
                          "hosts", "power", "memory", "cpu", "slowdown", "net")},
                      "is_loss": found["net"] is not None and round(found["net"]) < 0}
                     for strategy, found in known]}


def _prices(costs: Plan) -> list[str]:
    """The inputs of the money, in words."""
    currency = clean(costs.get("currency", ""), 8)

    def price(value: float) -> str:
        return f"{value:.10g} {currency}".strip()

    texts: dict[str, Callable[[float], str]] = {
        "host_price": lambda value: f"a host: {price(value)}",
        "host_lifetime_ns": lambda value: f"written off over {value / _YEAR_NS:.3g} years",
        "host_power_w": lambda value: f"a host's power: {value:.10g} W",
        "electricity_price": lambda value: f"electricity: {price(value)} per kWh",
        "cpu_price": lambda value: f"CPU: {price(value)} per core-hour",
        "memory_price": lambda value: f"memory: {price(value)} per GiB",
        "huge_page_slowdown": lambda value: "guests without 2 MiB mappings run "
                                            f"{format_share(value)} slower",
    }
    return [write(float(costs[name])) for name, write in texts.items()
            if costs.get(name) is not None]


def _cpu(view: PlanView) -> list[Row]:
    def write(value: float | None) -> str:
        return _UNKNOWN if value is None else format_duration(round(value))

    return [{**_named(strategy),
             "kinds": [write(each["cpu"].get(f"{kind}_cpu_ns"))
                       for kind in ("scanner", "caller", "merging", "split", "cow", "unmerge")],
             "share": _text(each["metrics"]["merge_cpu"].get("share"), format_share),
             "interval": _interval(each["metrics"]["merge_cpu"].get("share") or {}, format_share),
             "per_core_hour": _text(each["metrics"]["saved_per_core_hour"], _size),
             "per_interval": _interval(each["metrics"]["saved_per_core_hour"], _size)}
            for strategy, each in view.policies]


def _merged(view: PlanView) -> list[Row]:
    rows = []
    for strategy, each in view.policies:
        found = each.get("time_to_merge")
        if found and found["n_merged"]:
            by_share = {round(float(share), 2): ns for share, ns in found["quantiles"]}
            rows.append({
                **_named(strategy), "is_bound": bool(found["is_bound"]),
                "n_guests": format_count(found["n_guests"]),
                "merged": format_share(found["n_merged"] / found["n_guests"]),
                "times": [format_duration(by_share[share]) if share in by_share else "never"
                          for share in _MERGED]})
    return rows


def _ecdf(view: PlanView) -> Row | None:
    """The distribution that the chart draws: a row a share of the guests."""
    known = [(strategy, {float(share): ns for share, ns in each["time_to_merge"]["quantiles"]})
             for strategy, each in view.policies
             if (each.get("time_to_merge") or {}).get("n_merged")]
    shares = sorted({share for _, found in known for share in found})
    if not shares:
        return None
    return {"names": [_named(strategy) for strategy, _ in known],
            "rows": [[_share(share), *(
                format_duration(found[share]) if share in found else "never"
                for _, found in known)] for share in shares]}


def _rates(view: PlanView) -> list[Row]:
    rows = []
    for strategy, each in view.policies:
        p99, worst = (view.column(strategy, name) for name in ("cow_p99_per_s", "cow_worst_per_s"))
        if any(worst):
            rows.append({
                **_named(strategy), "breaks": _text(each["metrics"]["cow_breaks"], _count),
                "p99": _rate(spread_of(p99).median), "worst": _rate(max(worst)),
                "storms": _duration(each["storms"].get("storm_ns") or 0)})
    return rows


def _storms(view: PlanView) -> list[Row]:
    return [{**_named(strategy), "host": clean(storm["host"]),
             "replicate": int(storm["replicate"]) + 1,
             "start": format_duration(storm["start_ns"]),
             "span": format_duration(storm["end_ns"] - storm["start_ns"]),
             "n": format_count(storm["n_breaks"]), "memory": format_size(storm["n_breaks"] * 4096),
             "peak": _count(storm["peak_per_s"])}
            for strategy, each in view.policies for storm in each["storms"].get("listed") or ()]


def _headroom(view: PlanView) -> list[Row]:
    rows = []
    for strategy, each in view.policies:
        found = each.get("headroom")
        if found is None:
            continue
        rows.append({
            **_named(strategy),
            "needed": [_of_replicates(view, strategy, f"unmerge_{name}_bytes", max)
                       for name in ("p50", "p99", "worst")],
            "left": [_of_replicates(view, strategy, f"headroom_{name}_bytes", min)
                     for name in ("p50", "p99", "worst")],
            "free": _UNKNOWN if not each.get("free") else format_size(each["free"]["worst_bytes"]),
            "is_lost": bool(each.get("free")) and each["free"]["worst_bytes"] < 0,
            "host": clean(found["host"]), "time": format_duration(found["time_ns"]),
            "replicate": int(found["replicate"]) + 1,
            "n_short": int(found["n_short"]), "is_short": is_short(each)})
    return rows


def _of_replicates(view: PlanView, strategy: Strategy, column: str,
                   worst: Callable[[Sequence[float]], float]) -> str:
    """The median over replicates; of the worst host the worst of any replicate."""
    values = view.column(strategy, column)
    if not values:
        return _UNKNOWN
    return _size(worst(values) if "_worst_" in column else spread_of(values).median)


def _sensitivity(view: PlanView) -> list[Row]:
    writes: dict[str, Callable[[float], str]] = {
        "copies": lambda value: f"{value:.3g}",
        "write_rate_per_s": lambda value: f"{value * 3600:.3g} an hour",
        "merge_delay_s": lambda value: format_duration(round(value * 1e9)),
    }
    rows = []
    for effect in view.plan.get("sensitivity", ()):
        write = writes.get(effect["input"], format_share)
        rows.append({
            **_strategy_of(view.facts, effect["policy"]),
            "input": INPUT_NAMES.get(effect["input"], clean(effect["input"], 40)),
            "low_at": write(effect["low_at"]), "high_at": write(effect["high_at"]),
            "low": _size(effect["low"]), "high": _size(effect["high"]),
            "swing": _size(effect["swing"]),
            "elasticity": elasticity_text(effect["elasticity"])})
    return rows


def _huge(view: PlanView) -> list[Row]:
    return [{**_named(strategy), "n": format_count(found["n_split"]),
             "size": format_size(found["split_bytes"]),
             "slowdown": _UNKNOWN if found.get("slowdown_share") is None
             else format_share(found["slowdown_share"])}
            for strategy, each in view.policies
            if (found := each.get("huge_pages")) and found["n_split"]]


def _cgroups(view: PlanView) -> list[Row]:
    return [{**_named(strategy), "charged": format_size(found["charged_bytes"]),
             "uncharged": format_size(found["uncharged_bytes"]),
             "is_across": bool(found["is_across_domains"])}
            for strategy, each in view.policies
            if (found := each.get("cgroups")) and found["charged_bytes"]]


def _incidents(view: PlanView) -> Row | None:
    if not view.incidents:
        return None
    shown = view.incidents[:_MAX_INCIDENTS]
    return {"n_left_out": len(view.incidents) - len(shown),
            "rows": [{"time": format_duration(each.time_ns), "what": clean(each.what, 40),
                      "host": clean(each.host) if each.host else "the fleet",
                      "n_guests": format_count(each.n_guests),
                      "n_left": format_count(each.n_left)} for each in shown]}
