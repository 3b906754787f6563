"""The file form of a scenario, its JSON Schema and its help text.

Allowed keys, types, ranges and descriptions come from the models below, and those of the
`schema_*` modules beside it, and from nowhere else: `load` finds unknown keys with them,
`json_schema` feeds editors, `describe` the terminal. Knobs of the kernel are bare integers with
the kernel's own names; everything else carries a unit (`planner.units`).
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from planner.errors import UsageError
from planner.measures import METRICS, Measure
from planner.scenario.schema_fleet import (
    ArrivalsModel,
    DomainsModel,
    HostsChoice,
    IncidentModel,
    WorkloadModel,
)
from planner.scenario.schema_planning import CostsModel, PrecisionChoice, RequireModel
from planner.scenario.schema_policies import PolicyModel
from planner.scenario.schema_rates import ByteRate, Ratio
from planner.scenario.schema_values import (
    INT64_MAX,
    MAX_POLICIES,
    MAX_REPLICATES,
    Box,
    Confidence,
    Duration,
    Format,
    Horizon,
    Name,
    PositiveDuration,
    Strict,
    Text,
)

__all__ = ["ScenarioDocument", "alternatives_of", "describe", "json_schema", "measure_text",
           "type_of"]


class OutputModel(Strict):
    """Where results go."""

    later: ClassVar[frozenset[str]] = frozenset({"keep", "report"})

    folder: Text = Field(
        default="results", title="Results folder",
        description="Results go to FOLDER/<name>-<digest>/, relative to the working directory.",
    )
    sample_every: PositiveDuration | None = Field(
        default=None, title="Sampling interval",
        description="How often hosts are sampled for the time series; default about a "
        "hundredth of the horizon.",
    )


class ScenarioDocument(Strict):
    """A scenario of the KSM planner: hosts, guests from traces, and policies to compare."""

    model_config = ConfigDict(title="KSM planner scenario")
    later: ClassVar[frozenset[str]] = frozenset({"include"})

    planner: Format = Field(
        title="Format", description="Version of the scenario format; must be 1.",
    )
    name: Name = Field(
        title="Scenario name", description="Names the scenario and its results folder.",
    )
    seed: int = Field(
        default=0, ge=0, le=INT64_MAX, title="Seed",
        description="Seed of every random choice; all policies meet the same ones.",
    )
    horizon: Horizon = Field(
        default="captured", title="Simulated time",
        description="How long to simulate; captured is the longest time all traces cover, which "
        "is the most for replayed guests and no answer for drawn ones.",
    )
    warm_up: Duration = Field(
        default=0, title="Warm-up",
        description="Time at the start that is simulated and not counted.",
        json_schema_extra={"default": "0s"},
    )
    replicates: int | None = Field(
        default=None, ge=1, le=MAX_REPLICATES, title="Replicates",
        description="How many times everything is drawn and simulated anew; default 1 for "
        "replayed guests, 5 for drawn ones.",
    )
    precision: PrecisionChoice | None = Field(
        default=None, title="Precision",
        description="exact: every page of every host. A share: the wanted standard error of the "
        "fleet's total saving, by which a sample is chosen. Or a mapping. Default exact.",
    )
    hosts: HostsChoice = Field(
        title="Hosts",
        description="The machines guests run on: a list, or {from: FILE} to take them from an "
        "inventory.",
    )
    placement: Literal["as-recorded", "first-fit", "best-fit", "spread", "pack-by-domain",
                       "sharing-aware"] | None = Field(
        default=None, title="Placement",
        description="as-recorded: captured guests are replayed where workloads say. Else guests "
        "are drawn like the captured ones and placed: on the first host with room, the fullest, "
        "the emptiest, one with guests of their domain, or where most of their pages are already. "
        "Default: first-fit for drawn guests.",
    )
    overcommit: Ratio | None = Field(
        default=None, title="Overcommit",
        description="How many times the memory of a host its guests may have; default 1.",
    )
    confidence: Confidence | None = Field(
        default=None, title="Confidence",
        description="Of what placement and plan take as safe; default 95%.",
    )
    migration_rate: ByteRate | None = Field(
        default=None, title="Migration rate",
        description="How fast the memory of a migrating guest moves; default 1.25GB/s.",
    )
    arrivals: ArrivalsModel | None = Field(
        default=None, title="Arrivals from a table",
        description="Guests come and go as a record of a real cluster says.",
    )
    incidents: list[IncidentModel] = Field(
        default=[], title="Incidents",
        description="What befalls hosts: drain, fail, pressure, migrate.",
    )
    workloads: list[WorkloadModel] = Field(
        min_length=1, title="Workloads", description="The guests, by the trace they come from.",
    )
    domains: DomainsModel = Field(
        default=DomainsModel(), title="Security domains",
        description="Groups of domains that trust one another, and sensitive domains.",
    )
    policies: list[PolicyModel] = Field(
        min_length=1, max_length=MAX_POLICIES, title="Policies",
        description="Strategies compared side by side; the first is the baseline.",
    )
    output: OutputModel = Field(
        default=OutputModel(), title="Output",
        description="Where results go and how often hosts are sampled.",
    )
    costs: CostsModel = Field(
        default=CostsModel(), title="Costs", description="Prices, to tell what is saved in money.")
    require: list[RequireModel] = Field(
        default=[], title="Requirements",
        description="What policies must fulfil; the exit code is 4 if one does not.",
    )
    sweep: Annotated[
        dict[Text, Annotated[list[Any], Field(min_length=1)]],
        WithJsonSchema({
            "type": "object", "minProperties": 1,
            "additionalProperties": {"type": "array", "minItems": 1},
            "x-type": "mapping of paths to lists of values",
            "examples": [{"hosts.r750.count": [32, 40]}],
        }),
    ] = Field(
        default={}, title="Sweep",
        description="Values to try, by the path that --set takes; every combination becomes a "
        "case with a result of its own.",
    )


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the form people write, with a description per key."""
    return copy.deepcopy(_schema())


@functools.cache
def _schema() -> dict[str, Any]:
    schema = _without_null(ScenarioDocument.model_json_schema(by_alias=True))
    assert isinstance(schema, dict)
    for definition in schema["$defs"].values():
        definition.pop("title", None)  # the class names of this module
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null(node: Any) -> Any:
    """Nulls are never accepted: drop them from the schema of optional keys."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _without_null(value) for key, value in node.items()
              if not (key == "default" and value is None)}
    choices = [choice for choice in result.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1 and len(choices) < len(result["anyOf"]):
        del result["anyOf"]
        result = {**choices[0], **result}
    elif choices:
        result["anyOf"] = choices
    if result.get("title") in {box.__name__ for box in Box.__subclasses__()}:
        result |= {"minProperties": 1, "maxProperties": 1}
    return result


def describe(key_path: str) -> str:
    """What a key such as `policies.merge.ksmd` means: text, type, default, kernel file, keys.

    List positions and names are left out (`policies[0].merge` is read as `policies.merge`);
    an empty path describes the whole file. Raises UsageError for an unknown key.
    """
    schema = _schema()
    parts = [part for part in re.sub(r"\[[^\]]*\]", "", key_path).split(".") if part]
    node: dict[str, Any] = schema
    for position, part in enumerate(parts):
        keys = _properties(schema, node)
        if part not in keys:
            place = ".".join(parts[:position])
            close = difflib.get_close_matches(part, keys, n=1)
            if close:
                instead = f"did you mean {'.'.join([*parts[:position], close[0]])!r}?"
            elif keys:
                instead = f"known here: {', '.join(keys)}"
            else:
                instead = f"{place!r} has no keys of its own"
            raise UsageError(f"unknown setting {part!r}", where=place, instead=instead)
        node = keys[part]
    lines = [".".join(parts) or "scenario", f"  {node.get('description', '')}"]
    if parts:
        lines.append(f"  type: {type_of(schema, node)}")
        is_required = parts[-1] in _required(schema, parts[:-1])
        if "default" in node and not isinstance(node["default"], dict | list):
            lines.append(f"  default: {node['default']}")
        elif is_required:
            lines.append("  required")
    if "examples" in node:
        lines.append(f"  example: {', '.join(map(str, node['examples']))}")
    if node.get("x-type") == "metric":
        width = max(map(len, METRICS))
        lines.append("  metrics:")
        lines += [f"    {name:{width}}  {measure_text(METRICS[name])}" for name in METRICS]
    if "x-kernel-file" in node:
        lines.append(f"  kernel file: {node['x-kernel-file']}")
    keys = _properties(schema, node)
    if keys:
        lines.append("  keys:")
        width = max(map(len, keys))
        lines += [f"    {key:{width}}  {keys[key].get('description', '')}" for key in keys]
    return "\n".join(lines)


def measure_text(measure: Measure) -> str:
    """What a metric is, what its bounds are written in, and what a share is a share of."""
    unit = {"bytes": "a size", "ns": "a duration", "count": "a count", "ratio": "a number"}
    share = " or a share" if measure.whole_column else ""
    return f"{measure.text} ({unit[measure.unit]}{share})"


def alternatives_of(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """A node and all it refers to: references, alternatives and list items."""
    found = [node]
    if "$ref" in node:
        found += alternatives_of(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    for choice in [*node.get("anyOf", []), *node.get("oneOf", [])]:
        found += alternatives_of(schema, choice)
    if isinstance(node.get("items"), dict):
        found += alternatives_of(schema, node["items"])
    return found


def _properties(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for choice in alternatives_of(schema, node):
        found |= choice.get("properties", {})
    return found


def _required(schema: dict[str, Any], parts: list[str]) -> set[str]:
    node = schema
    for part in parts:
        node = _properties(schema, node)[part]
    return {key for choice in alternatives_of(schema, node) for key in choice.get("required", [])}


def type_of(schema: dict[str, Any], node: dict[str, Any]) -> str:
    """The type of a node in words: "duration", "whole number, 1 to 9", "list of: text"."""
    if "x-type" in node:
        return str(node["x-type"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return " or ".join(map(str, node["enum"]))
    if "$ref" in node:
        return type_of(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    if "anyOf" in node or "oneOf" in node:
        choices = node.get("anyOf") or node["oneOf"]
        return " or ".join(dict.fromkeys(type_of(schema, choice) for choice in choices))
    if node.get("type") == "array":
        return f"list of: {type_of(schema, node['items'])}"
    if node.get("type") == "integer":
        low, high = node.get("minimum"), node.get("maximum")
        return f"whole number{f', {low}' if low is not None else ''}" + (
            f" to {high}" if high is not None else " or more" if low is not None else ""
        )
    if node.get("type") == "object":
        return "mapping"
    return {"string": "text", "boolean": "true or false"}.get(str(node.get("type")), "value")
