"""What a plan is to tell: how exact, at what prices, and what it must fulfil."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from planner.measures import METRICS
from planner.scenario.schema_rates import (
    CpuPrice,
    ElectricityPrice,
    Lifespan,
    MemoryPrice,
    Money,
    Power,
)
from planner.scenario.schema_values import (
    Confidence,
    PositiveShare,
    Share,
    Strict,
    Text,
    share_of,
)
from planner.scenario.words import what_is

__all__ = ["CostsModel", "PrecisionChoice", "PrecisionModel", "RequireModel"]


def _exact_or_error(value: object) -> object:
    """The word, or the wanted error: exact, or a share such as 1%."""
    if value == "exact":
        return value
    if not isinstance(value, str) or "%" not in value:
        raise ValueError("expected exact, a share such as 1%, or {error: 1%, contents: 10%, hosts: "
                         f"20}}, got {what_is(value)}")
    share = share_of(value)
    if share == 0:
        raise ValueError("must be more than 0%; write exact for every page of every host")
    return share


class PrecisionModel(Strict):
    """The sample by hand, or by the error it may have."""

    error: PositiveShare | None = Field(
        default=None, title="Wanted error",
        description="Standard error of the fleet's total saving; the sample is chosen for it. "
        "Default: none, every page of every host but for what is given here.",
        json_schema_extra={"examples": ["1%"]},
    )
    contents: PositiveShare | None = Field(
        default=None, title="Share of contents",
        description="Share of all page contents that is simulated.",
    )
    hosts: int | None = Field(
        default=None, ge=1, title="Number of hosts",
        description="How many hosts are simulated page by page.",
    )


PrecisionChoice = Annotated[
    Annotated[
        float | Literal["exact"],
        BeforeValidator(_exact_or_error),
        WithJsonSchema({
            "anyOf": [{"const": "exact"}, {"type": "string", "pattern": "%$"}],
            "x-type": "exact, or share",
        }),
        Tag("<text>"),
    ]
    | Annotated[PrecisionModel, Tag("<precision>")],
    Discriminator(lambda value: "<precision>" if isinstance(value, dict | PrecisionModel)
                  else "<text>"),
]


def _currency(value: str) -> str:
    if len(value) > 8:
        raise ValueError(f"{value[:64]!r} is too long for a currency; write EUR")
    return value


Currency = Annotated[
    Text,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 8, "x-type": "text",
                    "examples": ["EUR"]}),
]


class HostCostsModel(Strict):
    """What a host costs."""

    price: Money | None = Field(
        default=None, title="Price", description="What one host costs to buy.")
    lifetime: Lifespan | None = Field(
        default=None, title="Service life",
        description="How long a host serves; its price is spread over it.",
    )
    power: Power | None = Field(
        default=None, title="Power", description="Electric power that one host takes.")


class CostsModel(Strict):
    """Prices; what is not given is not told."""

    currency: Currency = Field(
        default="EUR", title="Currency", description="Currency of all prices.")
    host: HostCostsModel = Field(
        default=HostCostsModel(), title="Hosts", description="Price, service life and power of "
        "one host.")
    electricity: ElectricityPrice | None = Field(
        default=None, title="Electricity", description="Price of a kilowatt-hour.")
    cpu: CpuPrice | None = Field(
        default=None, title="CPU time", description="Price of the CPU time that merging takes.")
    memory: MemoryPrice | None = Field(
        default=None, title="Memory", description="Price of memory, for the hosts' service life.")
    huge_page_slowdown: Share | None = Field(
        default=None, title="Slowdown of split huge pages",
        description="CPU time that guests need more where all of their huge pages are split.",
    )


def _bound(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number with its unit, got {what_is(value)}")
    return value


#: Read when the metric, and with it the unit, is known.
Bound = Annotated[
    int | float | str,
    BeforeValidator(_bound),
    WithJsonSchema({
        "anyOf": [{"type": "number"}, {"type": "string", "minLength": 1}],
        "x-type": "number, size, duration or share",
        "examples": ["10%", "0GiB"],
    }),
]


class RequireModel(Strict):
    """One requirement, looked at after the run."""

    policy: Text = Field(
        title="Policy", description="Name of the policy that must fulfil it.")
    metric: Annotated[
        Text, WithJsonSchema({"enum": list(METRICS), "x-type": "metric", "examples": ["saved"]}),
    ] = Field(
        title="Metric", description="What is required; planner schema require.metric lists all.",
    )
    at_least: Bound | None = Field(
        default=None, title="Lower bound", description="The least it may be, in the unit of the "
        "metric, or as a share of its whole.")
    at_most: Bound | None = Field(
        default=None, title="Upper bound", description="The most it may be, in the unit of the "
        "metric, or as a share of its whole.")
    confidence: Confidence = Field(
        default=0.95, title="Confidence",
        description="Share of the replicates in which it must hold.",
        json_schema_extra={"default": "95%"},
    )
