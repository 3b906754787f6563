"""Telegraf's line protocol: measurements `kernel` (inputs.kernel, collect = ["ksm"]), `ksm`, and
`kernel_vmstat`. Times are ns since 1970, as Telegraf writes them."""

from __future__ import annotations

import re

from planner.counters import Sample
from planner.importers.counters import Options, Read, counter_of, unix_ns
from planner.importers.textfile import Source, fault, shown, whole_number

__all__ = ["read"]

_ESCAPED = re.compile(r"\\([,= \\])")


def _split(text: str, mark: str) -> list[str]:
    """`text` split at each `mark` that is neither escaped nor within quotes."""
    parts, start, is_quoted, is_escaped = [], 0, False, False
    for position, character in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"':
            is_quoted = not is_quoted
        elif character == mark and not is_quoted:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def read(source: Source, options: Options) -> Read:
    """Samples of all lines of a KSM measurement."""
    found = Read()
    for number, line in source.lines():
        if not line.strip() or line.startswith("#"):
            continue
        if not re.match(r"(kernel|ksm|kernel_ksm|kernel_vmstat)[, ]", line):
            found.skipped["measurement that holds no KSM counter"] += 1
            continue
        parts = [part for part in _split(line, " ") if part]
        if len(parts) != 3:
            raise fault(source, "expected `measurement,tags fields time`", number)
        head, fields, stamp = parts
        time_ns = unix_ns(stamp, 10**9) if re.fullmatch(r"[0-9]{1,20}", stamp) else None
        if time_ns is None:
            raise fault(source, f"time {shown(stamp)} is not in ns since 1970", number)
        measurement, *tag_texts = _split(head, ",")
        tags = dict(_pair(source, tag, number) for tag in tag_texts)
        seen: set[str] = set()
        for text in _split(fields, ","):
            key, written = _pair(source, text, number)
            counter = counter_of(key if measurement == "kernel_vmstat"
                                 else key.removeprefix("ksm_"))
            if counter is None and key == "ksm_swpin_copy":
                counter = key
            if counter is None:
                found.skipped["field that is no KSM counter"] += 1
                continue
            value = whole_number(written.removesuffix("i").removesuffix("u"))
            if value is None:
                raise fault(source, f"{key} is {shown(written)}, expected a whole number", number)
            if counter in seen:
                raise fault(source, f"{key} is given twice", number)
            seen.add(counter)
            found.add(source, Sample(time_ns, tags.get("host", options.host), counter, value),
                      number)
    return found


def _pair(source: Source, text: str, line: int) -> tuple[str, str]:
    parts = _split(text, "=")
    if len(parts) != 2 or not parts[0]:
        raise fault(source, f"expected key=value, got {shown(text)}", line)
    return _ESCAPED.sub(r"\1", parts[0]), _ESCAPED.sub(r"\1", parts[1])
