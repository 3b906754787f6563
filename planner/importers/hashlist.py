"""Lists of page hashes: one decimal 32-bit hash per line, one file a guest and snapshot.

Tracers of the Memory Buddies kind write these (`VM1.txt0`, `VM1.txt1`, ...): SuperFastHash of
each page, in no order that means anything. There are no page ids, so such a trace answers what
is equal to what, and nothing about which page changed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner.importers.common import GuestFile, ImportReport, LabelSource, guest_files
from planner.importers.images import (
    RAM_NOTE,
    Layout,
    Progress,
    Source,
    bare_pages,
    ram_region,
    write_snapshots,
)
from planner.sitekey import SiteKey
from planner.trace import PAGE_BYTES, HashInfo, PageColumns, PageFlag

__all__ = ["ALGORITHM", "import_hashlist", "superfasthash_zeros"]

#: Name of the algorithm in a trace: 32 bits, no key.
ALGORITHM = "superfasthash-32"
#: Such a trace has no key; its hashes compare with those of every other.
KEY_ID = "none"

_NUMBERED = re.compile(r"(?P<name>.+)\.txt(?P<snapshot>[0-9]{1,9})")
_MASK = (1 << 32) - 1
_MAX_DIGITS = 10
_BLOCK_BYTES = 4 << 20
_PAGE_IDS_NOTE = ("hash lists have no page ids: contents are compared within a snapshot; several "
                  "snapshots cannot be replayed as writes")
_WIDTH_NOTE = ("32-bit hashes take about n * n / 2^33 pairs of n different pages for equal: "
               "512 MiB of them at 128 GiB")


def superfasthash_zeros(n_bytes: int) -> int:
    """SuperFastHash (Hsieh) of `n_bytes` zero bytes, a multiple of four."""
    value = n_bytes & _MASK
    for _ in range(n_bytes // 4):
        value = ((value << 16) ^ value) & _MASK
        value = (value + (value >> 11)) & _MASK
    for left, right in ((3, 5), (4, 17), (25, 6)):
        value ^= (value << left) & _MASK
        value = (value + (value >> right)) & _MASK
    return value


def _line_error(source: Source, line: int, what: str) -> Exception:
    error = source.error(what, 0, "give one decimal 32-bit hash a line")
    error.what, error.where = what, f"{source.path}:{line}"
    return error


def _parse(source: Source, block: bytes, line: int) -> npt.NDArray[np.uint64]:
    """The hashes of whole lines, the first of which is line `line`; blank lines hold none."""
    wrong = block.translate(None, b"0123456789\n")
    if wrong:
        before = block[:block.index(wrong[:1])]
        raise _line_error(source, line + before.count(b"\n"),
                          f"{wrong[:1]!r} is no part of a decimal number")
    raw = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    lengths = np.diff(ends, prepend=-1) - 1
    if len(lengths) and lengths.max() > _MAX_DIGITS:
        raise _line_error(source, line + int(lengths.argmax()),
                          f"a number of {int(lengths.max())} digits is no 32-bit hash")
    values = np.fromstring(block, np.uint64, sep="\n") if block.strip() else \
        np.empty(0, np.uint64)
    large = np.flatnonzero(values > _MASK)
    if len(large):
        numbered = np.flatnonzero(lengths > 0)
        raise _line_error(source, line + int(numbered[large[0]]),
                          f"{int(values[large[0]])} is no 32-bit hash")
    return values


def _hashes(source: Source) -> npt.NDArray[np.uint64]:
    parts: list[npt.NDArray[np.uint64]] = []
    rest = b""
    line = 1
    offset = 0
    while block := os.pread(source.descriptor, _BLOCK_BYTES, offset):
        offset += len(block)
        rest += block
        cut = rest.rfind(b"\n") + 1
        if not cut and len(rest) > 64:
            raise _line_error(source, line, "a line of more than 64 bytes")
        whole, rest = rest[:cut].replace(b"\r\n", b"\n"), rest[cut:]
        parts.append(_parse(source, whole, line))
        line += whole.count(b"\n")
        source.advance(offset)
    if rest.strip():
        parts.append(_parse(source, rest.rstrip(b"\r") + b"\n", line))
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def import_hashlist(files: Sequence[Path], *, out: Path, labels: LabelSource,
                    key: SiteKey | None, force: bool, progress: Progress | None) -> ImportReport:
    """Import hash lists: `NAME.txtK` is snapshot K of guest NAME (or `NAME=FILE`).

    The pages of a snapshot are numbered as they come; the trace's provenance says `page_ids`
    false. No key is used. Raises UsageError, or DataError with file and line.
    """
    del key
    zero = superfasthash_zeros(PAGE_BYTES)
    commonest: Counter[int] = Counter()
    n_zero = 0

    def one(item: GuestFile, source: Source) -> tuple[PageColumns, Layout]:
        nonlocal n_zero
        hashes = _hashes(source)
        if not len(hashes):
            raise source.error("the file holds no hash", 0, "give one decimal hash a line")
        is_zero = hashes == zero
        n_zero += int(is_zero.sum())
        values, counts = np.unique(hashes, return_counts=True)
        top = int(counts.argmax())
        commonest[int(values[top])] += int(counts[top])
        flags = np.where(is_zero, np.uint32(PageFlag.ANON | PageFlag.ZERO),
                         np.uint32(PageFlag.ANON))
        pages = bare_pages(np.arange(len(hashes), dtype=np.int64), hashes, flags)
        return pages, Layout([ram_region(0, len(hashes))], "vm", len(hashes) * PAGE_BYTES)

    report = write_snapshots(
        guest_files(files, numbered=_NUMBERED), one, form="hashlist",
        info=HashInfo(ALGORITHM, 32, KEY_ID, zero), out=out, labels=labels, force=force,
        progress=progress, notes=(RAM_NOTE, _PAGE_IDS_NOTE, _WIDTH_NOTE),
        provenance={"page_ids": False})
    if not n_zero:
        value, count = commonest.most_common(1)[0]
        report.notes.append(f"no page has SuperFastHash's value for a page of zeros ({zero}): zero "
                            f"pages are not told apart; the commonest hash is {value} "
                            f"({count} pages)")
    return report
