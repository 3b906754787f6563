"""Processes with known memory, and what the kernel says of it, read without the package."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRESENT, EXCLUSIVE, FRAME = 1 << 63, 1 << 56, (1 << 55) - 1

#: Runs in a fresh interpreter: maps memory, executes steps sent as JSON lines, answers each.
PROGRAM = r"""
import ctypes, json, mmap, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
for name in ("madvise", "mprotect", "mlock2"):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
children = []

def fill(address, index, seed):
    if seed is None:
        page = bytes(4096)
    elif seed == "touch":
        ctypes.string_at(address + index * 4096, 1)
        return
    else:
        page = seed.to_bytes(8, "little") * 512
    ctypes.memmove(address + index * 4096, page, 4096)

def step(order):
    kind = order["do"]
    if kind == "map":
        n_bytes = order["n_pages"] * 4096
        # Aligned to 2 MiB with room to spare, for huge pages.
        kind = 0x21 if order.get("shared") else 0x22
        raw = libc.mmap(None, n_bytes + (4 << 20), 3, kind, -1, 0)
        address = (raw + (2 << 20) - 1) & -(2 << 20)
        assert libc.madvise(address, n_bytes, 14 if order.get("huge") else 15) == 0
        if order.get("mergeable"):
            assert libc.madvise(address, n_bytes, 12) == 0
        for index, seed in order["pages"]:
            fill(address, index, seed)
        if order.get("bulk"):
            block = os.urandom(1 << 20)
            for at in range(0, n_bytes, len(block)):
                ctypes.memmove(address + at, block, min(len(block), n_bytes - at))
        return address
    if kind == "fork":
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
        return pid
    if kind == "reap":
        pid = children.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    elif kind == "write":
        for index, seed in order["pages"]:
            fill(order["address"], index, seed)
    elif kind == "protect":
        assert libc.mprotect(order["address"], order["n_pages"] * 4096, 0) == 0
    elif kind == "lock":
        # MLOCK_ONFAULT: what is absent stays so.
        assert libc.mlock2(order["address"], order["n_pages"] * 4096, 1) == 0
    elif kind == "pageout":
        assert libc.madvise(order["address"], order["n_pages"] * 4096, 21) == 0
    elif kind == "serve":
        # Touches one page after another and times each; answers with nanoseconds, sorted.
        n, end, times = order["n_pages"], time.monotonic() + order["seconds"], []
        i = 0
        while time.monotonic() < end:
            began = time.perf_counter_ns()
            for _ in range(64):
                page = order["address"] + i % n * 4096
                ctypes.string_at(page, 64) if order["is_reading"] else ctypes.memset(page, i, 64)
                i += 37
            times.append(time.perf_counter_ns() - began)
            time.sleep(0.0005)
        return sorted(times)

for line in sys.stdin:
    print(json.dumps(step(json.loads(line))), flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""


@dataclass(frozen=True)
class Mapping:
    """A mapping of a process: address and length; `seeds` are the contents of its pages.

    A page filled from a seed repeats its eight bytes; None is all zero, "touch" was only read.
    """

    address: int
    n_pages: int
    seeds: dict[int, int | str | None] = field(default_factory=dict)

    @property
    def start_vpn(self) -> int:
        return self.address // 4096


def content(seed: int | str | None) -> bytes:
    """The bytes of a page filled from `seed`."""
    return bytes(4096) if seed is None or isinstance(seed, str) else (
        seed.to_bytes(8, "little") * 512)


class Process:
    """One such process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def send(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        settle(self.pid)
        return json.loads(line)

    def do(self, what: str, **order: Any) -> Any:
        self.send(do=what, **order)
        return self.answer()

    def fork(self) -> int:
        """A child that sleeps and shares all memory; its pid."""
        child: int = self.do("fork")
        settle(child)
        return child

    def map(self, n_pages: int, seeds: dict[int, int | str | None], *, huge: bool = False,
            mergeable: bool = False, shared: bool = False) -> Mapping:
        address = self.do("map", n_pages=n_pages, pages=list(seeds.items()), huge=huge,
                          mergeable=mergeable, shared=shared)
        return Mapping(address, n_pages, seeds)

    def fill(self, n_pages: int, *, huge: bool = False) -> Mapping:
        """A mapping full of random bytes that repeat each MiB."""
        return Mapping(self.do("map", n_pages=n_pages, pages=[], huge=huge, bulk=True), n_pages)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.communicate("")


def settle(pid: int) -> None:
    """Wait until a process sleeps and takes no more page faults."""
    seen, n_same, end = "", 0, time.monotonic() + 10
    while n_same < 4:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        now = " ".join([fields[0], fields[7], fields[11], fields[12]])
        n_same = n_same + 1 if now == seen and fields[0] == "S" else 0
        seen = now
        assert time.monotonic() < end, f"process {pid} does not come to rest"
        time.sleep(0.005)


class ProcessMaker:
    """Starts processes and ends them all."""

    def __init__(self) -> None:
        self._processes: list[Process] = []

    def __call__(self) -> Process:
        self._processes.append(Process())
        return self._processes[-1]

    def close(self) -> None:
        for process in self._processes:
            process.close()


def pagemap(pid: int, mapping: Mapping) -> list[int]:
    """The raw pagemap entries of a mapping."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as stream:
        stream.seek(mapping.start_vpn * 8)
        return list(struct.unpack(f"={mapping.n_pages}Q", stream.read(mapping.n_pages * 8)))


def frames(pid: int, mapping: Mapping) -> list[int | None]:
    """The frame of each page of a mapping, None where there is none."""
    return [entry & FRAME if entry & PRESENT else None for entry in pagemap(pid, mapping)]


def resident(pid: int) -> dict[str, int]:
    """Resident, swapped and huge kB of a process (not Pss: others' mappings change it)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {name: fields[name] for name in ("Rss", "Anonymous", "AnonHugePages", "Swap")}
