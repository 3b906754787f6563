"""The frames of a capture agent's stream, whole and checked.

A stream is `PLNAGNT1` and then frames: kind (4 bytes), payload bytes u32, number u64 (from 0), the
payload, and 8 bytes of BLAKE2b over all of it; little-endian. docs/importing.md lists the kinds.
A stream that was cut is read up to its last whole frame; one that was altered is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from planner.errors import DataError

__all__ = ["Frame", "clean", "counts_of", "damaged", "frames_of", "head_document", "int_of",
           "json_of", "text_of", "unpacked"]

_MAGIC = b"PLNAGNT1"
_FORMAT = 1
_HEADER = struct.Struct("<4sIQ")
_SUM_BYTES = 8
_MAX_PAYLOAD_BYTES = 4 << 20
_AGAIN = "copy the stream again, or capture again"


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame; `where` is its file and byte offset, for errors; `end` is behind it."""

    kind: bytes
    payload: bytes
    where: str
    end: int

    def document(self) -> dict[str, Any]:
        """The JSON object that it holds; raises DataError."""
        document = json_of(self)
        if not isinstance(document, dict):
            damaged(self.where, "not a JSON object")
        return document


def damaged(where: str, what: str) -> NoReturn:
    """Raise the DataError of an altered stream at `where` (file and byte)."""
    raise DataError(f"the stream is damaged: {what}", where=where, instead=_AGAIN)


def json_of(frame: Frame) -> Any:
    """The JSON value that a frame holds; raises DataError."""

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON")

    try:
        return json.loads(frame.payload.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        damaged(frame.where, "not JSON")


def frames_of(path: Path, descriptor: int) -> Iterator[Frame]:
    """The whole frames from the start; ends at the end of the file, also amid a frame.

    Raises DataError for what is no stream, and for a frame whose number or checksum is wrong.
    """
    with io.FileIO(descriptor, "rb", closefd=False) as raw, \
            io.BufferedReader(raw, 1 << 20) as stream:
        stream.seek(0)
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise DataError("not a stream of the capture agent", where=str(path),
                            instead="name a file that agent.pyz wrote")
        at, number = len(_MAGIC), 0
        while True:
            where = f"{path}:byte {at}"
            head = stream.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return
            kind, n_bytes, found = _HEADER.unpack(head)
            if n_bytes > _MAX_PAYLOAD_BYTES or found != number:
                damaged(where, "no frame begins here")
            body = stream.read(n_bytes + _SUM_BYTES)
            if len(body) < n_bytes + _SUM_BYTES:
                return
            total = hashlib.blake2b(head, digest_size=_SUM_BYTES)
            total.update(memoryview(body)[:n_bytes])
            if total.digest() != body[n_bytes:]:
                damaged(where, "a checksum does not fit")
            at += _HEADER.size + len(body)
            number += 1
            yield Frame(kind, body[:n_bytes], where, at)


def int_of(document: Mapping[str, Any], name: str, where: str, *, least: int = 0,
         most: int = (1 << 63) - 1) -> int:
    """The whole number `name` of a document, within bounds; raises DataError."""
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        damaged(where, f"{name} is no number from {least} to {most}")
    return value


def clean(text: str) -> str:
    """At most 200 printable characters (no lone surrogates, no control characters)."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def text_of(document: Mapping[str, Any], name: str, where: str) -> str:
    """The text `name` of a document, made printable; raises DataError."""
    value = document.get(name)
    if not isinstance(value, str):
        damaged(where, f"{name} is no text")
    return clean(value)


def counts_of(document: Mapping[str, Any], name: str, where: str) -> dict[str, int]:
    """The table of whole numbers `name` of a document; raises DataError."""
    value = document.get(name)
    if not isinstance(value, dict) or len(value) > 1000:
        damaged(where, f"{name} is no table of numbers")
    return {clean(key): int_of(value, key, where, least=-(1 << 63)) for key in value}


def head_document(frame: Frame | None, path: Path, kind: str, instead: str) -> dict[str, Any]:
    """The description that a stream of `kind` begins with; raises DataError for any other."""
    if frame is None:
        raise DataError("the stream was cut before its first frame", where=str(path),
                        instead=_AGAIN)
    if frame.kind != b"HEAD":
        damaged(frame.where, "it does not begin with its description")
    document = frame.document()
    form = int_of(document, "format", frame.where)
    if form != _FORMAT:
        raise DataError(f"a stream of format {form}; this version reads {_FORMAT}",
                        where=str(path), instead="use the agent and the planner of one version")
    found = text_of(document, "kind", frame.where)
    if found != kind:
        raise DataError(f"a stream of kind {found}, not {kind}", where=str(path), instead=instead)
    return document


def unpacked(data: memoryview, n_bytes: int, where: str) -> bytes:
    """Exactly `n_bytes` from zlib data, whatever it claims."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, n_bytes + 1)
    except zlib.error:
        damaged(where, "packed data cannot be unpacked")
    if len(raw) != n_bytes or not unpacker.eof or unpacker.unused_data:
        damaged(where, "packed data has another length")
    return raw
