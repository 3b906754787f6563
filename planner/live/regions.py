"""A child process with memory of known contents, for ksmd to scan and calibration to time.

The child runs the standard library alone, so that little else of it changes while it is
measured. Each region is private anonymous memory, aligned to 2 MiB, with or without huge pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from planner.errors import MachineError

__all__ = ["Region", "RegionProcess"]

#: Executes JSON lines from its standard input and answers each with one.
PROGRAM = r"""
import ctypes, json, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, CHUNK, HUGE = 4096, 256, 2 << 20
DONTNEED, MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE = 4, 12, 13, 14, 15

def advise(address, n_bytes, advice):
    if libc.madvise(address, n_bytes, advice):
        raise OSError(ctypes.get_errno(), "madvise %d" % advice)

def new_map(n_pages, is_huge):
    n_bytes = n_pages * PAGE
    raw = libc.mmap(None, n_bytes + 2 * HUGE, 3, 0x4022, -1, 0)
    address = (raw + HUGE - 1) & -HUGE
    libc.munmap(raw, address - raw)
    end = -(-(address + n_bytes) // HUGE) * HUGE
    libc.munmap(end, raw + n_bytes + 2 * HUGE - end)
    advise(address, n_bytes, HUGEPAGE if is_huge else NOHUGEPAGE)
    return address

def fill(address, n_pages, step, source):
    # Every `step`-th page of the range, in blocks when they are all.
    if step == 1:
        for at in range(0, n_pages, CHUNK):
            n = min(CHUNK, n_pages - at)
            ctypes.memmove(address + at * PAGE, source(n), n * PAGE)
    else:
        for at in range(0, n_pages, step):
            ctypes.memmove(address + at * PAGE, source(1), PAGE)

def do(order):
    kind, address, n_pages = order["do"], order.get("address"), order.get("n_pages")
    if kind == "map":
        return new_map(n_pages, order["is_huge"])
    if kind == "unique":
        fill(address, n_pages, order["step"], lambda n: os.urandom(n * PAGE))
    elif kind == "same":
        page = bytes.fromhex(order["page"]) * (PAGE * 2 // len(order["page"]))
        fill(address, n_pages, order["step"], lambda n: page * n)
    elif kind == "copy":
        ctypes.memmove(order["to"], address, n_pages * PAGE)
    elif kind == "advise":
        advise(address, n_pages * PAGE, MERGEABLE)
    elif kind == "unmap":
        libc.munmap(address, n_pages * PAGE)
    elif kind == "drop":
        for at in range(0, n_pages, order["step"]):
            advise(address + at * PAGE, PAGE, DONTNEED)
    elif kind in ("touch", "unmerge"):
        began = time.thread_time_ns()
        if kind == "unmerge":
            advise(address, n_pages * PAGE, UNMERGEABLE)
        else:
            stamp = os.urandom(8)
            memmove = ctypes.memmove
            for page in range(address, address + n_pages * PAGE, PAGE):
                memmove(page, stamp, 8)
        return time.thread_time_ns() - began
    return 0

for line in sys.stdin:
    try:
        print(json.dumps({"value": do(json.loads(line))}), flush=True)
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Region:
    """`n_pages` pages from `address` on in the child."""

    address: int
    n_pages: int

    def part(self, first: int, n_pages: int) -> Region:
        """The pages `[first, first + n_pages)` of it."""
        return Region(self.address + first * _PAGE_BYTES, n_pages)


class RegionProcess:
    """The child; a context manager that ends it. Raises MachineError when it fails."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def __enter__(self) -> RegionProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child; its memory goes with it."""
        self._process.kill()
        self._process.communicate()

    def _do(self, what: str, **order: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **order}) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        except (OSError, ValueError) as error:  # its end closes the pipes
            answer = {"error": str(error)}
        if "error" in answer:
            raise MachineError(f"the process that holds test memory failed: {answer['error']}",
                               instead="check the free memory")
        return int(answer["value"])

    def map(self, n_pages: int, *, is_huge: bool = False) -> Region:
        """New memory, nothing in it yet."""
        return Region(self._do("map", n_pages=n_pages, is_huge=is_huge), n_pages)

    def fill_unique(self, region: Region, *, step: int = 1) -> None:
        """Random bytes in every `step`-th page: no two pages are equal."""
        self._do("unique", address=region.address, n_pages=region.n_pages, step=step)

    def fill_same(self, region: Region, word: bytes, *, step: int = 1) -> None:
        """`word` (8 bytes) over and over in every `step`-th page."""
        self._do("same", address=region.address, n_pages=region.n_pages, page=word.hex(),
                 step=step)

    def copy(self, source: Region, to: Region) -> None:
        """Make the contents of `to` those of `source`, of the same length."""
        self._do("copy", address=source.address, to=to.address, n_pages=source.n_pages)

    def advise(self, region: Region) -> None:
        """MADV_MERGEABLE."""
        self._do("advise", address=region.address, n_pages=region.n_pages)

    def drop(self, region: Region, *, step: int = 1) -> None:
        """MADV_DONTNEED of every `step`-th page: a hole."""
        self._do("drop", address=region.address, n_pages=region.n_pages, step=step)

    def unmap(self, region: Region) -> None:
        """Give the memory back."""
        self._do("unmap", address=region.address, n_pages=region.n_pages)

    def touch(self, region: Region) -> int:
        """Write eight random bytes into each page; the CPU time that took, ns."""
        return self._do("touch", address=region.address, n_pages=region.n_pages)

    def unmerge(self, region: Region) -> int:
        """MADV_UNMERGEABLE; the CPU time that took, ns."""
        return self._do("unmerge", address=region.address, n_pages=region.n_pages)
