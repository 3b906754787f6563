"""`planner capture agent` and `planner trace join`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell


def write_agent(output: Path | None, *, force: bool) -> int:
    """Write the capture agent, one executable zipapp, to `output` or standard output."""
    from planner.errors import UsageError

    packed = packed_agent()
    if output is None:
        if sys.stdout.isatty():
            raise UsageError("the agent cannot go to a terminal", where="planner capture agent",
                             instead="write planner capture agent > agent.pyz")
        sys.stdout.buffer.write(packed)
        sys.stdout.buffer.flush()
        return 0
    if output.exists() and not force:
        raise UsageError("it exists already", where=str(output),
                         instead="choose another name or pass --force to replace it")
    aside = output.with_name(output.name + ".partial")
    try:
        aside.write_bytes(packed)
        aside.chmod(0o755)
        aside.rename(output)
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=str(output),
                         instead="choose another file") from error
    finally:
        aside.unlink(missing_ok=True)
    tell(f"{output}: {len(packed)} bytes; run it as root with python3 (3.9 or later)")
    return 0


def packed_agent() -> bytes:
    """The zipapp: the same bytes for the same source."""
    import io
    import zipfile

    import planner

    # Read and never imported: it is another program, for other machines.
    source = (Path(planner.__file__).parent / "agent" / "agent.py").read_bytes()
    stream = io.BytesIO()
    stream.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(stream, "a") as archive:
        entry = zipfile.ZipInfo("__main__.py", (1980, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, source, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def join(
    trace: Annotated[Path, typer.Argument(help="The trace of the host.", metavar="TRACE")],
    classes: Annotated[Path, typer.Argument(
        help="What agent.pyz --guest-classes wrote in the guest.", metavar="STREAM")],
    guest: Annotated[str, typer.Option(
        "--guest", help="The guest's name in the trace.", metavar="NAME")],
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The trace folder to make.", metavar="DIR")],
    offset: Annotated[str | None, typer.Option(
        "--offset", help="Where in its mapping the guest's memory begins, such as 0 or 2MiB; "
                         "only needed where the mapping is larger than the memory.")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a trace that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Label the memory of a guest by what the guest uses it for (kernel text, page cache, ...).

    Example: planner trace join traces/host1 web1.classes --guest web1 -o traces/host1-classes
    """
    from planner.errors import UsageError
    from planner.importers.guest_classes import join_classes
    from planner.units import parse_size

    try:
        offset_bytes = None if offset is None else parse_size(offset)
    except ValueError as error:
        raise UsageError(str(error), where="--offset") from None
    report = join_classes(trace, guest, classes, output, offset_bytes=offset_bytes, force=force)
    if as_json:
        document("planner.trace-join", path=str(report.path), n_guests=report.n_guests,
                 n_snapshots=report.n_snapshots, n_pages=report.n_pages,
                 notes=list(report.notes))
        return 0
    say(f"{report.path}: {report.n_guests} guests, {report.n_snapshots} snapshot(s), "
               f"{report.n_pages} page records, mode 0600")
    for note in report.notes:
        tell(f"note: {note}")
    tell(f"next: planner trace info {report.path}")
    return 0
