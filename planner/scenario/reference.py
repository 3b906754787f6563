"""The scenario reference as Markdown: docs/scenario.md, made from the schema and nothing else."""

from __future__ import annotations

from typing import Any

from planner.measures import METRICS
from planner.scenario.schema import alternatives_of, json_schema, measure_text, type_of

__all__ = ["reference_markdown"]

_HEAD = """\
# The scenario file, format 1

Made from the schema by `planner schema --format md`; a test holds this page and the schema
together. `planner schema KEY` explains a key in the terminal, `planner schema` prints the JSON
Schema for editors, `planner init TRACE` writes a first file with comments, `planner check FILE`
names every fault at once with line and column, and `planner check --resolved FILE` shows every
default. Unknown keys are faults. Folders of traces and files are relative to the scenario.

Sizes (`512GiB`, `24 GB`), durations (`15min`, `1h 30min`), shares (`8%`), rates (`50/h`) and
prices (`0.24/kWh`) carry their unit. Knobs of the kernel and of controllers are bare numbers with
their own names. `--set KEY=VALUE` of `planner run` replaces a value, with the names of hosts,
workloads and policies in the path: `policies.ksmd-fast.merge.ksmd.pages_to_scan=4000`, or the
position from 0: `hosts[0].memory=1TiB`. `sweep` tries several values at such paths, every
combination as a case of its own. Terms: [glossary](glossary.md); examples:
[quickstart](../scenarios/quickstart.yaml), [containers](../scenarios/containers.yaml).

There are two kinds of scenario. A *replay* has the captured guests as they are, each on the host
its workload names, for as long as was captured. A *fleet* draws any number of guests like the
captured ones and places them: a scenario is one as soon as it says `placement` (but
`as-recorded`), `overcommit`, `confidence`, `arrivals`, `incidents` or `migration_rate`, has a host
with a `count` above 1, or a workload with `arrivals`, `share`, `lifetime`, `start`, `memory`,
`fill` or `huge_pages`. In a fleet every workload says how many guests it has (`count`, `arrivals`
or `share`), none names a host, and `horizon` is a time. Braces within a list need quotes:
`domain: [ci, "tenant-{1..30}"]`.
"""


def reference_markdown() -> str:
    """The whole page: a section for each key that holds mappings, a table row for each key."""
    schema = json_schema()
    parts = [_HEAD]
    _add_sections(schema, schema, [], parts)
    parts.append("\n".join([
        "## Metrics", "",
        "What `require.metric` may name, of one policy in one replicate.", "",
        "| metric | what it is | good side |", "|---|---|---|",
        *(f"| {_code(name)} | {_text(measure_text(measure))} | "
          f"{'more' if measure.is_more_better else 'less'} |" for name, measure in METRICS.items()),
        ""]))
    return "\n".join(parts)


def _add_sections(schema: dict[str, Any], node: dict[str, Any], path: list[str],
                  parts: list[str]) -> None:
    """The section of a node, one table for each kind of mapping, then those of its keys."""
    mappings = [each for each in alternatives_of(schema, node) if each.get("properties")]
    if not mappings or "x-as" in node:
        return
    lines = [f"## {_code('.'.join(path)) if path else 'The file'}", ""]
    if path:
        lines += [_text(node["description"]), ""]
    for mapping in mappings:
        if len(mappings) > 1:
            lines += [f"**{_text(mapping['description'])}**", ""]
        if mapping.get("maxProperties") == 1:
            lines += ["Exactly one of:", ""]
        lines += [*_table(schema, mapping), ""]
    parts.append("\n".join(lines))
    for mapping in mappings:
        for name, key in mapping["properties"].items():
            _add_sections(schema, key, [*path, name], parts)


def _table(schema: dict[str, Any], mapping: dict[str, Any]) -> list[str]:
    lines = ["| key | what it says | type | default |", "|---|---|---|---|"]
    for name, key in mapping["properties"].items():
        text = _text(key["description"])
        if "x-as" in key:
            text += f" Keys: as {_code(key['x-as'])}."
        if "examples" in key:
            text += f" Example: {', '.join(_code(_yaml(value)) for value in key['examples'])}."
        if "x-kernel-file" in key:
            text += f" {_code(key['x-kernel-file'])}"
        cells = (_code(name), text, type_of(schema, key),
                 _default(name, key, mapping.get("required", [])))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _default(name: str, key: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    value = key.get("default")
    return "" if value is None or isinstance(value, dict | list) else _code(_yaml(value))


def _yaml(value: object) -> str:
    """A value as it stands in a scenario, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    is_number_like = isinstance(value, str) and value.replace(".", "").isdecimal()
    return f'"{text}"' if is_number_like else text


def _text(text: str) -> str:
    """Words of the schema, without what Markdown would take for HTML."""
    return text.replace("<", "\\<")


def _code(text: str) -> str:
    return f"`{text}`"
