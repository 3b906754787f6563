"""Crafted procfs and sysfs folders: processes whose memory the test lays out page by page."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.capture.procfs import ProcRoot

PRESENT, SWAP, FILE, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56
KPF = {
    "anon": 1 << 12, "swapcache": 1 << 13, "swapbacked": 1 << 14, "head": 1 << 15,
    "tail": 1 << 16, "huge": 1 << 17, "unevictable": 1 << 18, "ksm": 1 << 21, "thp": 1 << 22,
    "zero_page": 1 << 24, "mlocked": 1 << 33, "anon_exclusive": 1 << 34,
}  # fmt: skip
N_FRAMES = 4096

SMAPS_FIELDS = "Size:                  4 kB\nRss:                   4 kB\nAnonymous:      0 kB\n"


@dataclass
class FakeVma:
    """Pages from `start_vpn`; `entries` are pagemap entries, `content` page index -> byte."""

    start_vpn: int
    entries: list[int]
    vm_flags: str = "rd wr mr mw me ac sd"
    name: str = ""
    inode: int = 0
    content: dict[int, bytes] = field(default_factory=dict)
    ksm_kb: int | None = None


class FakeProc:
    """Writes the folders; frames are numbered by the test and have flags and mapping counts."""

    def __init__(self, folder: Path) -> None:
        self.root = ProcRoot(folder / "proc", folder / "sys", folder / "ksm_planner")
        self.root.proc.mkdir()
        (self.root.sys / "kernel/mm/ksm").mkdir(parents=True)
        (self.root.sys / "fs/cgroup").mkdir(parents=True)
        self.flags = np.zeros(N_FRAMES, "<u8")
        self.counts = np.zeros(N_FRAMES, "<u8")
        (self.root.proc / "vmstat").write_text("nr_free_pages 1\ncow_ksm 7\n")
        (self.root.proc / "meminfo").write_text("MemTotal:       1000 kB\n")
        for name, text in (("run", "1\n"), ("pages_sharing", "5\n"), ("advisor_mode", "[none]\n")):
            (self.root.sys / "kernel/mm/ksm" / name).write_text(text)
        self.write_frames()

    def write_frames(self) -> None:
        self.flags.tofile(self.root.proc / "kpageflags")
        self.counts.tofile(self.root.proc / "kpagecount")

    def frame(self, pfn: int, *names: str, count: int = 1) -> int:
        """Describe a frame; returns the pagemap entry of a page that maps it."""
        self.flags[pfn] = sum(KPF[name] for name in names)
        self.counts[pfn] = count
        self.write_frames()
        return PRESENT | pfn | (EXCLUSIVE if count == 1 else 0)

    def add(self, pid: int, vmas: list[FakeVma], *, comm: str = "demo",
            cmdline: tuple[str, ...] = ("demo",), ticks: int = 1000) -> None:
        folder = self.root.proc / str(pid)
        folder.mkdir(exist_ok=True)
        fields = " ".join(["S", "1", *["0"] * 17, str(ticks), "0"])
        (folder / "stat").write_text(f"{pid} ({comm}) {fields}\n")
        (folder / "comm").write_text(comm + "\n")
        (folder / "cmdline").write_bytes(b"".join(a.encode() + b"\0" for a in cmdline))
        (folder / "statm").write_text("100 50 10 1 0 80 0\n")
        smaps = []
        with (folder / "pagemap").open("wb") as pagemap, (folder / "mem").open("wb") as mem:
            for vma in vmas:
                start, end = vma.start_vpn << 12, vma.start_vpn + len(vma.entries) << 12
                smaps.append(f"{start:08x}-{end:08x} rw-p 00000000 fe:00 {vma.inode}"
                             f"                  {vma.name}".rstrip() + "\n" + SMAPS_FIELDS
                             + ("" if vma.ksm_kb is None else f"KSM: {vma.ksm_kb} kB\n")
                             + f"VmFlags: {vma.vm_flags} \n")
                os.pwrite(pagemap.fileno(), np.array(vma.entries, "<u8").tobytes(),
                          vma.start_vpn * 8)
                os.ftruncate(mem.fileno(), end)
                for index, page in vma.content.items():
                    os.pwrite(mem.fileno(), page, start + index * 4096)
        (folder / "smaps").write_text("".join(smaps))


def page(byte: int) -> bytes:
    """A page filled with one byte."""
    return bytes([byte]) * 4096
