"""The scenario reference as Markdown: docs/scenario.md, made from the schema and nothing else."""

from __future__ import annotations

from typing import Any

from planner.scenario.schema import alternatives_of, json_schema, type_of

__all__ = ["reference_markdown"]

_HEAD = """\
# The scenario file, format 1

Made from the schema by `planner schema --format md`; a test holds this page and the schema
together. `planner schema KEY` explains a key in the terminal, `planner schema` prints the JSON
Schema for editors, `planner init TRACE` writes a first file with comments, `planner check FILE`
names every fault at once with line and column, and `planner check --resolved FILE` shows every
default. Unknown keys are faults. Folders of traces and files are relative to the scenario.

Sizes (`512GiB`, `24 GB`), durations (`15min`, `1h 30min`) and shares (`8%`) carry their unit.
Knobs of the kernel are bare numbers with the kernel's own names. `--set KEY=VALUE` of `planner run`
replaces a value, with the names of hosts, workloads and policies in the path:
`policies.ksmd-fast.merge.ksmd.pages_to_scan=4000`. Terms: [glossary](glossary.md); examples:
[quickstart](../scenarios/quickstart.yaml), [containers](../scenarios/containers.yaml).
"""


def reference_markdown() -> str:
    """The whole page: a section for each key that holds mappings, a table row for each key."""
    schema = json_schema()
    parts = [_HEAD]
    _add_sections(schema, schema, [], parts)
    return "\n".join(parts)


def _add_sections(schema: dict[str, Any], node: dict[str, Any], path: list[str],
                  parts: list[str]) -> None:
    """The section of a node, one table for each kind of mapping, then those of its keys."""
    mappings = [each for each in alternatives_of(schema, node) if "properties" in each]
    if not mappings:
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
