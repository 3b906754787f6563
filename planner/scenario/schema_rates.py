"""Values of a scenario file that are so much of one thing for each of another.

Such as `50/h` guests, `1.25GB/s` of memory, `0.24/kWh` and `3.10/GiB` of money. Every parser
raises ValueError with a sentence that says what to write instead.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from planner.scenario.schema_values import scalar
from planner.scenario.words import what_is
from planner.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_share, parse_size

__all__ = [
    "ArrivalRate",
    "ByteRate",
    "ByteYield",
    "CpuPrice",
    "ElectricityPrice",
    "Lifespan",
    "MemoryPrice",
    "Money",
    "Number",
    "Power",
    "Ratio",
]

_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_HOUR_S = 3600
#: Seconds of the units that a rate may be for.
_TIMES_S = {"s": 1, "min": 60, "h": _HOUR_S, "hour": _HOUR_S, "d": 86400}
_RATE = re.compile(rf"({_NUMBER}) ?/ ?(s|min|h|d)", re.ASCII)
_CORE = re.compile(r"(.+?) ?/ ?core-(s|min|h|hour)", re.ASCII)
_PER_KWH = re.compile(rf"({_NUMBER}) ?/ ?kWh", re.ASCII)
_PER_SIZE = re.compile(rf"({_NUMBER}) ?/ ?([KMGTP]i?B)", re.ASCII)
_POWER = re.compile(rf"({_NUMBER}) ?(W|kW)", re.ASCII)
_YEARS = re.compile(rf"({_NUMBER}) ?y", re.ASCII)
_PER_SECOND = re.compile(r"(.+?) ?/ ?s", re.ASCII)
_YEAR_NS = 365 * 86400 * 10**9
_GIB = 1 << 30


def _matched(pattern: re.Pattern[str], value: object, kind: str, example: str) -> re.Match[str]:
    text = str(scalar(value, f"{kind} such as {example}"))
    match = pattern.fullmatch(text) if len(text) <= 64 else None
    if match is None:
        raise ValueError(f"{what_is(value)} is not {kind}; write {example}")
    return match


def _size(text: str, value: object, kind: str, example: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError(f"{what_is(value)} is not {kind}; write {example}") from None


def _arrival_rate(value: object) -> float:
    number, unit = _matched(_RATE, value, "a rate", "50/h").groups()
    if float(number) == 0:
        raise ValueError("must be more than none an hour; leave the key out for no arrivals")
    return float(number) * (_HOUR_S / _TIMES_S[unit])


def _byte_rate(value: object) -> int:
    match = _matched(_PER_SECOND, value, "a speed", "1.25GB/s")
    speed = _size(match[1], value, "a speed", "1.25GB/s")
    if speed == 0:
        raise ValueError("must be faster than nothing a second")
    return speed


def _byte_yield(value: object) -> int:
    size, unit = _matched(_CORE, value, "a saving for CPU time", "1GiB/core-s").groups()
    found = _size(size, value, "a saving for CPU time", "1GiB/core-s") // _TIMES_S[unit]
    if found == 0:
        raise ValueError(f"{what_is(value)} is less than a byte a CPU second")
    return found


def _cpu_price(value: object) -> float:
    number, unit = _matched(_CORE, value, "a price of CPU time", "0.011/core-hour").groups()
    if not re.fullmatch(_NUMBER, number, re.ASCII):
        raise ValueError(f"{what_is(value)} is not a price of CPU time; write 0.011/core-hour")
    return float(number) * (_HOUR_S / _TIMES_S[unit])


def _electricity_price(value: object) -> float:
    return float(_matched(_PER_KWH, value, "a price of electricity", "0.24/kWh")[1])


def _memory_price(value: object) -> float:
    number, unit = _matched(_PER_SIZE, value, "a price of memory", "3.10/GiB").groups()
    return float(number) * _GIB / parse_size(f"1{unit}")


def _power(value: object) -> float:
    number, unit = _matched(_POWER, value, "a power", "420W").groups()
    return float(number) * (1000 if unit == "kW" else 1)


def _lifespan(value: object) -> int:
    match = _YEARS.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        span_ns = round(float(match[1]) * _YEAR_NS)
        if not 0 < span_ns < 2**63:
            raise ValueError(f"{what_is(value)} is no time that a machine lives; write 4y")
        return span_ns
    try:
        span_ns = parse_duration(scalar(value, "a time such as 4y"))
    except ValueError as error:
        raise ValueError(str(error).replace("write 20ms, 90s, 15min, 6h or 3d",
                                            "write 4y or 1500d")) from None
    if span_ns == 0:
        raise ValueError("must be longer than zero")
    return span_ns


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {what_is(value)}")
    if abs(value) > 1e15:
        raise ValueError(f"{value} is too large")
    return float(value)


def _money(value: object) -> float:
    amount = _number(value)
    if amount < 0:
        raise ValueError(f"must be at least 0, got {what_is(value)}")
    return amount


def _positive(value: object) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError(f"must be more than 0, got {what_is(value)}")
    return number


def _ratio(value: object) -> float:
    if isinstance(value, str) and "%" in value:
        ratio = parse_share(value)
    elif isinstance(value, str):
        raise ValueError(f"{what_is(value)} is not a ratio; write 1.5 or 150%")
    else:
        ratio = _number(value)
    if not 1 <= ratio <= 100:
        raise ValueError(f"must be from 1 (no more than there is) to 100, got {what_is(value)}")
    return ratio


def _text_schema(kind: str, pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", "x-type": kind,
                           "examples": [example]})


_NUMBER_SCHEMA: dict[str, Any] = {"type": "number", "x-type": "number"}

ArrivalRate = Annotated[float, BeforeValidator(_arrival_rate),
                        _text_schema("number a time", _RATE.pattern, "50/h")]
ByteRate = Annotated[int, BeforeValidator(_byte_rate),
                     _text_schema("size a second", SIZE_PATTERN[1:-1] + " ?/ ?s", "1.25GB/s")]
ByteYield = Annotated[
    int, BeforeValidator(_byte_yield),
    _text_schema("size for CPU time", SIZE_PATTERN[1:-1] + " ?/ ?core-(s|min|h|hour)",
                 "1GiB/core-s"),
]
CpuPrice = Annotated[
    float, BeforeValidator(_cpu_price),
    _text_schema("price of CPU time", _NUMBER + " ?/ ?core-(s|min|h|hour)", "0.011/core-hour"),
]
ElectricityPrice = Annotated[float, BeforeValidator(_electricity_price),
                             _text_schema("price of energy", _PER_KWH.pattern, "0.24/kWh")]
MemoryPrice = Annotated[float, BeforeValidator(_memory_price),
                        _text_schema("price of memory", _PER_SIZE.pattern, "3.10/GiB")]
Power = Annotated[float, BeforeValidator(_power), _text_schema("power", _POWER.pattern, "420W")]
Lifespan = Annotated[
    int, BeforeValidator(_lifespan),
    _text_schema("years or duration", f"({_YEARS.pattern}|{DURATION_PATTERN[1:-1]})", "4y"),
]
Money = Annotated[float, BeforeValidator(_money),
                  WithJsonSchema({**_NUMBER_SCHEMA, "minimum": 0, "examples": [14500]})]
Number = Annotated[float, BeforeValidator(_positive),
                   WithJsonSchema({**_NUMBER_SCHEMA, "exclusiveMinimum": 0})]
Ratio = Annotated[
    float, BeforeValidator(_ratio),
    WithJsonSchema({
        "anyOf": [{"type": "number", "minimum": 1, "maximum": 100},
                  {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?%$"}],
        "x-type": "ratio or share", "examples": [1.5, "150%"],
    }),
]
