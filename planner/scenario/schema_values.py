"""Values of a scenario file: text with units in, plain numbers out, and what mappings share.

Every parser raises ValueError with a sentence that says what to write instead.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    WithJsonSchema,
    model_validator,
)

from planner.scenario.words import what_is
from planner.units import (
    DURATION_PATTERN,
    SHARE_PATTERN,
    SIZE_PATTERN,
    parse_duration,
    parse_share,
    parse_size,
)

__all__ = [
    "INT64_MAX",
    "LABELS_SCHEMA",
    "MAX_POLICIES",
    "MAX_REPLICATES",
    "NAME_PATTERN",
    "SYSFS",
    "Box",
    "Confidence",
    "Duration",
    "Format",
    "Fraction",
    "Horizon",
    "KernelName",
    "LabelMap",
    "Name",
    "NotEmptyLabelMap",
    "NotNegative",
    "Positive",
    "PositiveDuration",
    "PositiveShare",
    "Reserved",
    "Share",
    "Size",
    "Strict",
    "Text",
    "TimerHz",
    "box_or",
    "flag",
    "knob",
    "listed",
    "not_true",
    "scalar",
    "share_of",
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAX_POLICIES = 64
MAX_REPLICATES = 10_000
_MAX_TEXT = 256
INT64_MAX = 2**63 - 1
SYSFS = "/sys/kernel/mm/ksm/"


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("expected text, got an empty one")
    if len(value) > _MAX_TEXT:
        raise ValueError(f"text of {len(value)} characters; at most {_MAX_TEXT} are accepted")
    if not value.isprintable():
        raise ValueError(f"{value!r} holds a character that cannot be printed")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(NAME_PATTERN[1:-1], value, re.ASCII):
        raise ValueError(
            f"{value[:80]!r} is not a name; use up to 64 letters, digits, '-', '_' and '.', "
            "starting with a letter or digit"
        )
    return value


def scalar(value: object, kind: str) -> int | str:
    """Text or a whole number as written; raises ValueError that names the `kind` expected."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return str(value)
    raise ValueError(f"expected {kind}, got {what_is(value)}")


def _duration(value: object) -> int:
    # A bare number is refused by parse_duration, which says what unit to write.
    return parse_duration(scalar(value, "a duration such as 15min"))


def _positive_duration(value: object) -> int:
    duration_ns = _duration(value)
    if duration_ns == 0:
        raise ValueError("must be longer than zero")
    return duration_ns


def _horizon(value: object) -> int | str:
    if value == "captured":
        return "captured"
    try:
        return _positive_duration(value)
    except ValueError as error:
        hint = ", or captured" if "write" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None


def _size(value: object) -> int:
    size_bytes = parse_size(scalar(value, "a size such as 512GiB"))
    if size_bytes == 0:
        raise ValueError("must be larger than zero")
    return size_bytes


def _reserved(value: object) -> int | float:
    if isinstance(value, str) and "%" in value:
        share = parse_share(value)
        if share >= 1:
            raise ValueError(f"{value!r} leaves nothing for guests; write less than 100%")
        return share
    try:
        return parse_size(scalar(value, "a size such as 24GiB"))
    except ValueError as error:
        raise ValueError(f"{error}, or a share such as 8%") from None


def not_true(value: object) -> object:
    """A value but for true and 1.0, which Python takes for 1 and a file means otherwise."""
    if isinstance(value, bool | float):
        raise ValueError(f"expected a whole number, got {what_is(value)}")
    return value


def knob(value: object) -> object:
    """Kernel knobs: a bare integer, as written to sysfs."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.match(r"[0-9]+", str(value)) if isinstance(value, str | float) else None
    hint = f"; write {match.group()}" if match else ""
    raise ValueError(
        f"expected a whole number without a unit, as in {SYSFS[:-1]}, got {what_is(value)}{hint}"
    )


def flag(value: object) -> object:
    """Kernel switches: true or false, or 0 or 1 as written to sysfs."""
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError(f"expected true or false, or 0 or 1 as in {SYSFS[:-1]}, got {what_is(value)}")


def _kernel(value: object) -> object:
    # Unquoted in YAML 6.1 is a number, and 6.10 the same as 6.1.
    if isinstance(value, float):
        raise ValueError(f'expected a quoted version, such as "6.18", got {what_is(value)}')
    return value


def listed(value: object) -> object:
    """One text or mapping where a list is meant."""
    return [value] if isinstance(value, str | dict) else value


def share_of(value: object) -> float:
    """The fraction of a share such as `12%`, at most the whole."""
    share = parse_share(str(scalar(value, "a share such as 12%")))
    if share > 1:
        raise ValueError(f"{value!r} is more than the whole; write at most 100%")
    return share


def _positive_share(value: object) -> float:
    share = share_of(value)
    if share == 0:
        raise ValueError("must be more than 0%")
    return share


def _confidence(value: object) -> float:
    share = share_of(value)
    if not 0.5 <= share < 1:
        raise ValueError(f"{value!r} is no confidence; write at least 50% and less than 100%")
    return share


_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": SIZE_PATTERN},
    ],
    "x-type": "size",
    "examples": ["512GiB"],
}
_DURATION_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": DURATION_PATTERN,
    "x-type": "duration",
    "examples": ["15min"],
}

Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN, "x-type": "name"}),
]
Text = Annotated[
    str,
    AfterValidator(_text),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _MAX_TEXT}),
]
Format = Annotated[Literal[1], BeforeValidator(not_true)]
TimerHz = Annotated[Literal[100, 250, 300, 1000], BeforeValidator(not_true)]
KernelName = Annotated[Literal["6.1", "6.12", "6.18"], BeforeValidator(_kernel)]
Size = Annotated[int, BeforeValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Duration = Annotated[int, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
PositiveDuration = Annotated[
    int, BeforeValidator(_positive_duration), WithJsonSchema(_DURATION_SCHEMA)
]
_SHARE_SCHEMA: dict[str, Any] = {
    "type": "string", "pattern": SHARE_PATTERN, "x-type": "share", "examples": ["12%"],
}
Share = Annotated[float, BeforeValidator(share_of), WithJsonSchema(_SHARE_SCHEMA)]
PositiveShare = Annotated[float, BeforeValidator(_positive_share), WithJsonSchema(_SHARE_SCHEMA)]
Confidence = Annotated[
    float, BeforeValidator(_confidence), WithJsonSchema({**_SHARE_SCHEMA, "examples": ["95%"]}),
]
Horizon = Annotated[
    int | Literal["captured"],
    BeforeValidator(_horizon),
    WithJsonSchema({
        "anyOf": [{"const": "captured"}, _DURATION_SCHEMA],
        "x-type": "duration, or captured",
        "examples": ["captured", "15min"],
    }),
]
Reserved = Annotated[
    int | float,
    BeforeValidator(_reserved),
    WithJsonSchema({
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": SIZE_PATTERN},
            {"type": "string", "pattern": SHARE_PATTERN},
        ],
        "x-type": "size or share",
        "examples": ["24GiB", "8%"],
    }),
]
LABELS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "string", "minLength": 1, "maxLength": _MAX_TEXT},
    "minProperties": 1,
    "x-type": "mapping of label keys to values",
    "examples": [{"role": "database"}],
}
LabelMap = Annotated[dict[Text, Text], WithJsonSchema(LABELS_SCHEMA)]
NotEmptyLabelMap = Annotated[LabelMap, Field(min_length=1)]


#: Numbers of the resolved form.
Positive = Annotated[int, Field(ge=1, le=INT64_MAX)]
NotNegative = Annotated[int, Field(ge=0, le=INT64_MAX)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def box_or(text: str, tag: str) -> Any:
    """A discriminator: mappings go to the box, everything else is compared with `text`."""

    def tag_of(value: object) -> str:
        return tag if isinstance(value, dict | Box) else f"<{text}>"

    return Discriminator(tag_of)


class Strict(BaseModel):
    """No unknown keys, no conversions. `later`: keys this version knows of but cannot serve."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()


class Box(Strict):
    """A mapping of which exactly one key is given."""

    @model_validator(mode="after")
    def _one_key(self) -> Box:
        if len(self.model_fields_set) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one of: {names}")
        return self

