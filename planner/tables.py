"""Versioned Arrow tables: every Parquet file names itself.

A file carries one metadata key, `planner`, holding JSON `{"kind", "schema_version": [major,
minor], ...}`. Reading checks kind, version, column names, types and nulls, and tells a file
that is too old from one that is too new, cut short, or changed. Writing goes to a temporary
name and is renamed when whole.

pyarrow enforces `nullable=False` neither in `pa.table` nor in `validate`, so nulls are
checked here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.errors import (
    DataError,
    NotATraceError,
    TraceAlteredError,
    TraceTooNewError,
    TraceTooOldError,
    TraceTruncatedError,
)

__all__ = ["METADATA_KEY", "UNREADABLE", "TableKind", "check_version", "open_private",
           "open_table", "read_metadata", "read_table", "unreadable", "write_table"]

METADATA_KEY = b"planner"
#: What pyarrow raises over damaged bytes: its own errors, and whatever its wrappers stumble over.
UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError,
              OverflowError)


@dataclass(frozen=True, slots=True)
class TableKind:
    """What a Parquet file of one kind holds.

    `oldest_major` is the oldest major version that this code still reads.
    """

    kind: str
    major: int
    minor: int
    schema: pa.Schema
    oldest_major: int = 1
    #: columns written with DELTA_BINARY_PACKED (ascending or repeating integers)
    delta_columns: tuple[str, ...] = ()
    #: columns written as they are (page hashes do not compress)
    plain_columns: tuple[str, ...] = ()

    def metadata(self, extra: Mapping[str, Any]) -> dict[bytes, bytes]:
        """The `planner` key of a file of this kind."""
        document = {"kind": self.kind, "schema_version": [self.major, self.minor], **extra}
        return {METADATA_KEY: json.dumps(document, sort_keys=True).encode()}

    def parquet_options(self) -> dict[str, Any]:
        """Keyword arguments for `pyarrow.parquet.ParquetWriter`."""
        encodings = dict.fromkeys(self.delta_columns, "DELTA_BINARY_PACKED")
        encodings.update(dict.fromkeys(self.plain_columns, "PLAIN"))
        dictionary = [name for name in self.schema.names if name not in encodings]
        return {
            "compression": "zstd",
            "compression_level": 9,
            "use_dictionary": dictionary or False,
            "column_encoding": encodings or None,
            "write_page_checksum": True,
            "write_statistics": True,
        }


def check_version(path: Path, kind: TableKind, metadata: Mapping[str, Any]) -> None:
    """Refuse a file of another kind, or of a version that this code does not read."""
    found = metadata.get("kind")
    if found != kind.kind:
        raise NotATraceError(f"this is a {found!r} file where a {kind.kind!r} file is expected",
                             where=str(path), instead="name a folder written by planner")
    version = metadata.get("schema_version")
    if (not isinstance(version, list) or len(version) != 2
            or not all(isinstance(part, int) for part in version)):
        raise TraceAlteredError(f"schema_version is {version!r}", where=str(path),
                                instead="restore the file from where it came")
    major, minor = version
    if major < kind.oldest_major:
        raise TraceTooOldError(
            f"{kind.kind} schema {major}.{minor} is older than the oldest that this planner reads "
            f"({kind.oldest_major}.0)", where=str(path),
            instead=f"convert it with a planner that reads schema {major}, or capture again")
    if major > kind.major:
        raise TraceTooNewError(
            f"{kind.kind} schema {major}.{minor} is newer than this planner reads "
            f"({kind.major}.{kind.minor})", where=str(path), instead="upgrade ksm-planner")


def open_table(path: Path, kind: TableKind) -> pq.ParquetFile:
    """Open one Parquet file of `kind` and check all that its footer says.

    Raises NotATraceError, TraceTooOldError, TraceTooNewError, TraceTruncatedError or
    TraceAlteredError.
    """
    try:
        handle = pq.ParquetFile(path, page_checksum_verification=True)
        schema = handle.schema_arrow
    except FileNotFoundError:
        raise TraceTruncatedError("the file is missing", where=str(path),
                                  instead="restore it from where the trace came") from None
    except UNREADABLE as error:
        raise _broken(path, error) from error
    try:
        metadata = read_metadata(path, schema)
        check_version(path, kind, metadata)
        _check_columns(path, kind, schema)
    except DataError:
        handle.close()
        raise
    return handle


def _broken(path: Path, error: Exception) -> DataError:
    """Tell a file that ends early from one that never was Parquet or was changed."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(max(0, size_bytes - 4))
            tail = stream.read(4)
    except OSError as problem:
        return DataError(problem.strerror or str(problem), where=str(path),
                         instead="check the path and its permissions")
    if head == b"PAR1" and tail != b"PAR1":
        return TraceTruncatedError(f"the file ends early ({size_bytes} bytes, no Parquet footer)",
                                   where=str(path), instead="copy or capture it again")
    if head != b"PAR1":
        return NotATraceError("this is not a Parquet file", where=str(path),
                              instead="name a folder written by planner")
    return TraceAlteredError(f"the Parquet footer cannot be read ({_first_line(error)})",
                             where=str(path), instead="restore the file from where it came")


def unreadable(path: Path, error: Exception) -> TraceAlteredError:
    """The error for data that pyarrow cannot make sense of."""
    return TraceAlteredError(f"the data cannot be read ({_first_line(error)})", where=str(path),
                             instead="restore the file from where it came")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """The JSON under the `planner` key of a Parquet file's schema."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise NotATraceError("this Parquet file was not written by planner (no `planner` key in "
                             "its metadata)", where=str(path),
                             instead="name a folder written by planner")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TraceAlteredError("the `planner` metadata is not a JSON object", where=str(path),
                                instead="restore the file from where it came")
    return document


def _check_columns(path: Path, kind: TableKind, found: pa.Schema) -> None:
    """The known columns lead, with their names and types; a newer minor may append more."""
    for position, field in enumerate(kind.schema):
        actual = found.field(position) if position < len(found) else None
        if actual is None or actual.name != field.name or not actual.type.equals(field.type):
            shown = f"{actual.name} {actual.type}" if actual is not None else "nothing"
            raise TraceAlteredError(
                f"column {position} is {shown}, expected {field.name} {field.type}",
                where=str(path), instead="restore the file from where it came")


def check_nulls(path: Path, kind: TableKind, table: pa.Table) -> None:
    """Refuse nulls in columns that are declared without."""
    for field in kind.schema:
        if not field.nullable and field.name in table.column_names \
                and table.column(field.name).null_count:
            raise TraceAlteredError(f"column {field.name} has nulls", where=str(path),
                                    instead="restore the file from where it came")


def read_table(path: Path, kind: TableKind) -> tuple[pa.Table, dict[str, Any]]:
    """One whole table of `kind` and its metadata; extra columns of a newer minor are left out."""
    with open_table(path, kind) as handle:
        metadata = read_metadata(path, handle.schema_arrow)
        try:
            table = handle.read(columns=kind.schema.names)
        except UNREADABLE as error:
            raise unreadable(path, error) from error
    check_nulls(path, kind, table)
    return table, metadata


def write_table(path: Path, kind: TableKind, table: pa.Table, extra: Mapping[str, Any], *,
                mode: int = 0o666) -> None:
    """Write `table` aside and rename it to `path`; `mode` is the file's mode before umask."""
    schema = kind.schema.with_metadata(kind.metadata(extra))
    table = table.select(kind.schema.names).cast(kind.schema).replace_schema_metadata(
        schema.metadata)
    check_nulls(path, kind, table)
    partial = path.with_name(path.name + ".partial")
    try:
        with open_private(partial, mode) as stream, \
                pq.ParquetWriter(stream, schema, **kind.parquet_options()) as writer:
            writer.write_table(table)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def open_private(path: Path, mode: int) -> Any:
    """A new binary file at `path` made with `mode` from the start (never readable in between)."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb")
