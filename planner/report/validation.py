"""Records of validations, as `planner validate` writes them, made ready for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.errors import DataError
from planner.report.facts import clean
from planner.units import format_count, format_duration, format_share

__all__ = ["validation_view"]

#: What compares a forecast or a replay, by the key its counters stand under.
_COMPARED = {"forecast": "forecast", "replay": "replay of what was captured",
             "counters": "simulated run"}


def _number(value: object) -> str:
    return format_count(round(value)) if isinstance(value, int | float) else "–"


def _signed(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return ("+" if value > 0 else "-" if value < 0 else "") + format_share(abs(value))


def _rows(document: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for key, what in _COMPARED.items():
        counters = document.get(key)
        if not isinstance(counters, Mapping):
            continue
        for counter, found in counters.items():
            measured = found.get("measured_last")
            model = found.get("model_last", found.get("simulated_last"))
            at_end = found.get("last_error")
            if at_end is None and isinstance(model, int | float) and measured:
                at_end = (model - measured) / abs(measured)
            mean = found.get("error")
            show = format_duration if str(counter).endswith("_ns") else format_count
            rows.append({
                "what": what, "counter": clean(counter),
                "measured": "–" if measured is None else show(round(measured)),
                "model": "–" if model is None else show(round(model)),
                "at_end": _signed(at_end), "bias": _signed(found.get("bias")),
                "mean": format_share(mean) if isinstance(mean, int | float) else "–",
                "n_samples": _number(found.get("n_samples"))})
    return rows


def _texts(value: object) -> list[str]:
    return [clean(text, 400) for text in value] \
        if isinstance(value, Sequence) and not isinstance(value, str) else []


def validation_view(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one record: `host`, `facts`, `rows` and `notes`, as text.

    Takes records of `planner validate live` and `planner validate metrics`. Raises DataError for
    anything else.
    """
    kind = document.get("kind")
    if not str(kind).startswith("planner.validation.") or document.get("format_version") != 1:
        raise DataError(f"is no validation that this planner reads (kind {clean(kind)}, "
                        f"format_version {clean(document.get('format_version'))})",
                        where="--validation", instead="name a file that planner validate wrote")
    try:
        host = document["host"]
        facts = []
        if isinstance(host, Mapping):
            name = clean(host.get("name", host.get("hostname", "host")))
            facts.append(f"Linux {clean(host.get('kernel', 'of unknown version'), 80)}")
        else:
            name = clean(document.get("metrics_host", host))
            facts.append(f"policy {clean(document['policy'])}")
        workload = document.get("workload")
        if isinstance(workload, Mapping) and workload.get("description"):
            facts.append(clean(workload["description"], 120))
        knobs = document.get("knobs")
        if isinstance(knobs, Mapping) and knobs:
            facts.append(", ".join(f"{clean(key)} {clean(value)}" for key, value in knobs.items()))
        facts += [f"{label} {clean(document[key], 120)}" for key, label in (
            ("timings", "timings"), ("created", "made"), ("aligned_by", "aligned by"))
            if document.get(key)]
        if document.get("status", "complete") != "complete":
            facts.append(clean(document["status"]))
        rows = _rows(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"lacks or misstates {error}", where="--validation",
                        instead="validate again") from error
    missing = _texts(document.get("missing"))
    notes = _texts(document.get("notes"))
    if missing:
        notes.insert(0, f"not measured: {', '.join(missing)}")
    if not rows:
        notes.insert(0, "nothing was compared")
    return {"host": name, "facts": "; ".join(facts), "rows": rows, "notes": notes}
