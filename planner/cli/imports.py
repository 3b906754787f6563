"""`planner trace import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import document, say, tell


def import_trace(
    files: Annotated[list[str], typer.Argument(
        help="The files; NAME=FILE names the guest, and once more NAME is its next snapshot.",
        metavar="FILE...")],
    form: Annotated[str, typer.Option(
        "--format", help="raw, qemu, firecracker, elf, lime, avml, hashlist or agent.",
        metavar="FORMAT")],
    output: Annotated[Path, typer.Option(
        "-o", "--output", help="The trace folder to make.", metavar="DIR")] = Path("trace"),
    labels: Annotated[Path | None, typer.Option(
        "--labels", help="CSV with a column name (the guest's) and one column a label.",
        metavar="FILE")] = None,
    label: Annotated[list[str] | None, typer.Option(
        "--label", help="A label for every guest; several times for several.",
        metavar="KEY=VALUE")] = None,
    key: Annotated[Path | None, typer.Option(
        "--key", help="Site key file; default: ~/.config/planner/site.key, made on first use.",
        metavar="FILE")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a trace that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Make a trace of memory images, hash lists or an agent's stream.

    Memory is hashed while it is read; only keyed hashes are written. docs/importing.md has one
    section a format.

    Example: planner trace import --format qemu web1.elf web2.elf --label tenant=a -o traces/web
    """
    from importlib import import_module

    from planner.cli.progress import ProgressLine
    from planner.errors import UsageError
    from planner.importers import FORMATS, KEYED_FORMATS
    from planner.importers.common import load_labels
    from planner.sitekey import load_site_key

    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", where="--format",
                         instead=f"choose one of {', '.join(FORMATS)}")
    source = load_labels(labels, label or ())
    # Where a key is only compared with, making one would hide a wrong path.
    is_keyed = form in KEYED_FORMATS
    site_key = (load_site_key(key, create=is_keyed) if key is not None or is_keyed else None)
    module, _, function = FORMATS[form].partition(":")
    run_import = getattr(import_module(module), function)
    line = ProgressLine()
    try:
        report = run_import([Path(file) for file in files], out=output, labels=source,
                            key=site_key, force=force, progress=line.update)
    finally:
        line.done()
    if as_json:
        document("planner.trace-import", path=str(report.path), n_guests=report.n_guests,
                 n_snapshots=report.n_snapshots, n_pages=report.n_pages,
                 skipped=dict(report.skipped), notes=list(report.notes))
        return 0
    say(f"{report.path}: {report.n_guests} guests, {report.n_snapshots} snapshot(s), "
               f"{report.n_pages} page records, mode 0600")
    for reason, count in sorted(report.skipped.items()):
        if count:
            tell(f"skipped: {count} {reason}")
    for note in report.notes:
        tell(f"note: {note}")
    tell(f"next: planner trace info {report.path}")
    return 0
