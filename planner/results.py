"""Results folders: `<folder>/<name>-<digest>/`, written aside and renamed when whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import DataError
from planner.metrics import EVENTS, HOSTS, PARTITIONS, RESULT_VERSION, SUMMARY, Result
from planner.tables import TableKind, read_table, write_table

__all__ = ["load", "result_path", "save", "scenario_digest"]

_RENAME_ATTEMPTS = 32
TABLES: dict[str, TableKind] = {"summary": SUMMARY, "hosts": HOSTS, "partitions": PARTITIONS,
                                "events": EVENTS}


def scenario_digest(scenario: Mapping[str, Any], version: str) -> str:
    """SHA-256 in hex of everything that decides a result.

    That is the resolved scenario without its places in the file system (traces count by their
    digests), and the version of the program.
    """
    workloads = [{key: value for key, value in workload.items() if key != "trace"}
                 for workload in scenario["workloads"]]
    body = {**scenario, "workloads": workloads,
            "output": {"sample_every_ns": scenario["output"]["sample_every_ns"]}}
    text = json.dumps([version, RESULT_VERSION, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def result_path(folder: Path, name: str, digest: str) -> Path:
    """Where the result of a scenario belongs."""
    return folder / f"{name}-{digest[:6]}"


def save(result: Result, path: Path, *, texts: Mapping[str, str]) -> Path:
    """Write a result folder at `path`, replacing one that is there.

    `texts` are further files by name (`report.html`, `scenario.yaml`).
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another run of the same scenario may be writing, too.
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial",
                                        dir=path.parent))
        partial.chmod(0o777 & ~_umask())
        for name, kind in TABLES.items():
            write_table(partial / f"{name}.parquet", kind, getattr(result, name), {})
        for name, document in (("scenario.resolved.json", result.scenario),
                               ("run.json", result.run)):
            (partial / name).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        for name, text in texts.items():
            (partial / name).write_text(text, "utf-8")
        _replace(path, partial)
    except OSError as error:
        raise DataError(f"cannot write the result ({error.strerror or error})",
                        where=str(error.filename or path),
                        instead="choose another folder with -o") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _replace(path: Path, partial: Path) -> None:
    """Rename `partial` to `path`; an older result moves aside first and goes last.

    Another run may put its result there in between: then it is that one which moves aside.
    """
    for attempt in range(_RENAME_ATTEMPTS):
        aside = partial.with_name(f"{partial.name}.old{attempt}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) \
                    or attempt + 1 == _RENAME_ATTEMPTS:
                if aside.exists() and not path.exists():
                    aside.rename(path)
                raise
        else:
            return
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def load(path: Path | str) -> Result:
    """Open a results folder. Raises DataError and its children where it is not whole."""
    path = Path(path)
    if not (path / "run.json").is_file():
        partial = path.name.endswith(".partial") or path.with_name(path.name + ".partial").exists()
        raise DataError("this is no results folder" + (" (an unfinished run)" if partial else ""),
                        where=str(path), instead="name a folder that `planner run` made, or run "
                                                 "the scenario again")
    documents = []
    for name in ("scenario.resolved.json", "run.json"):
        try:
            document = json.loads((path / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot be read ({error})", where=str(path / name),
                            instead="run the scenario again") from error
        if not isinstance(document, dict):
            raise DataError("is not a JSON object", where=str(path / name),
                            instead="run the scenario again")
        documents.append(document)
    tables = {name: read_table(path / f"{name}.parquet", kind)[0]
              for name, kind in TABLES.items()}
    return Result(documents[0], documents[1], **tables)
