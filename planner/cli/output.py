"""Where a command's answer goes: a file written aside and renamed, JSON, or standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from planner.escape import printable

__all__ = ["FORMAT_VERSION", "document", "emit", "say", "tell", "write_text"]

#: Of the documents that `document` and `emit` print.
FORMAT_VERSION = 1


def emit(text: str, output: Path | None, as_json: bool, kind: str,
         facts: Mapping[str, Any]) -> None:
    """Write `text` to `output` or standard output; as JSON under the key `text`, with `facts`."""
    if as_json:
        document = {"format_version": FORMAT_VERSION, "kind": kind, **facts, "text": text}
        text = json.dumps(document, indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        tell(f"{output}: written")


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it; raises DataError where that fails."""
    from planner.errors import DataError

    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", where=str(path)[:400],
                        instead="check the folder and its permissions") from None
    finally:
        partial.unlink(missing_ok=True)


def document(kind: str, **facts: Any) -> None:
    """Print `facts` as one JSON document that names its kind and its version."""
    typer.echo(json.dumps({"format_version": FORMAT_VERSION, "kind": kind, **facts}, indent=1))


def say(text: str) -> None:
    """A line of the answer on standard output, without characters that could drive a terminal."""
    typer.echo(printable(text))


def tell(text: str) -> None:
    """A remark on standard error, without characters that could drive the terminal."""
    typer.echo(printable(text), err=True)
