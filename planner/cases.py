"""Finished cases of a run: their outcomes as bytes, and a folder that keeps them.

A run that was stopped goes on with what the folder holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from planner.errors import DataError

__all__ = ["CaseFolder", "pack", "unpack"]

_SUFFIX = ".case"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8


def pack(facts: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> bytes:
    """JSON-able facts and tables as bytes: the length of a JSON header, that, Arrow streams."""
    streams: dict[str, pa.Buffer] = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        streams[name] = sink.getvalue()
    header = json.dumps({"facts": facts, "tables": {
        name: stream.size for name, stream in streams.items()}}).encode()
    return b"".join([len(header).to_bytes(_LENGTH_BYTES, "little"), header,
                     *(stream.to_pybytes() for stream in streams.values())])


def unpack(payload: bytes) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """What `pack` was given."""
    start = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "little")
    header = json.loads(payload[_LENGTH_BYTES:start])
    tables: dict[str, pa.Table] = {}
    whole = pa.py_buffer(payload)
    for name, size in header["tables"].items():
        with pa.ipc.open_stream(whole.slice(start, size)) as reader:
            tables[name] = reader.read_all()
        start += size
    return header["facts"], tables


class CaseFolder:
    """Payloads by key. Each file holds the SHA-256 of its payload, then the payload.

    The folder appears with its first case. Keys must be good as file names; what they name must
    follow from the key alone, since whatever was kept under it is used again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> bytes | None:
        """The payload kept under `key`; None where there is none, or it is not whole."""
        try:
            found = (self.path / f"{key}{_SUFFIX}").read_bytes()
        except OSError:
            return None
        payload = found[_DIGEST_BYTES:]
        is_whole = hashlib.sha256(payload).digest() == found[:_DIGEST_BYTES]
        return payload if is_whole else None

    def put(self, key: str, payload: bytes) -> None:
        """Keep `payload`: written aside and renamed. Raises DataError where that fails."""
        partial: Path | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A name of its own: another run of the same scenario may be writing, too.
            handle, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=self.path)
            partial = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest())
                file.write(payload)
            partial.replace(self.path / f"{key}{_SUFFIX}")
        except OSError as error:
            raise DataError(f"cannot keep a finished case ({error.strerror or error})",
                            where=str(self.path),
                            instead="choose another folder with -o") from error
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)

    def finished(self) -> set[str]:
        """Keys of everything that is kept, whole or not."""
        with contextlib.suppress(OSError):
            return {path.stem for path in self.path.glob(f"*{_SUFFIX}")}
        return set()

    def remove(self) -> None:
        """Forget everything: the run is finished, or is to be done anew."""
        shutil.rmtree(self.path, ignore_errors=True)
