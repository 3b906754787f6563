"""Drives /sys/kernel/mm/ksm and starts processes with known memory; puts everything back."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.processes import ProcessMaker

KSM = Path("/sys/kernel/mm/ksm")
#: Set back in this order after everything is unmerged (some refuse while pages are merged).
KNOBS = ("advisor_mode", "max_page_sharing", "merge_across_nodes", "use_zero_pages", "smart_scan",
         "stable_node_chains_prune_millisecs", "pages_to_scan", "sleep_millisecs")


class Ksm:
    """Reads and writes the knobs of this kernel's KSM, one full scan at a time if wanted.

    `lock` is the descriptor that holds KSM's lock meanwhile.
    """

    def __init__(self, lock: int = -1) -> None:
        self.lock = lock

    def __getitem__(self, name: str) -> int:
        return int((KSM / name).read_text())

    def __setitem__(self, name: str, value: int | str) -> None:
        (KSM / name).write_text(f"{value}\n")

    def counters(self) -> dict[str, int]:
        """All counters, and cow_ksm."""
        names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile",
                 "full_scans", "ksm_zero_pages", "stable_node_chains", "stable_node_dups")
        vmstat = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return {name: self[name] for name in names} | {"cow_ksm": int(vmstat["cow_ksm"])}

    def start_stepping(self) -> None:
        """Let each batch be one full scan and then sleep long; `full_scan` wakes it for the next.

        With smart_scan off every page is visited on every scan.
        """
        self["smart_scan"] = 0
        self["pages_to_scan"] = 10_000_000
        self["sleep_millisecs"] = 3_600_000
        self["run"] = 1
        self._wait_for_scan(0)

    def full_scan(self) -> None:
        """One full scan of all mergeable memory; returns when it is over."""
        before = self["full_scans"]
        # Any other value wakes the scanner at once.
        self["sleep_millisecs"] = 3_600_000 + self["sleep_millisecs"] % 2 + 1
        self._wait_for_scan(before)

    def _wait_for_scan(self, before: int) -> None:
        end = time.monotonic() + 30
        while self["full_scans"] <= before:
            assert time.monotonic() < end, "ksmd did not finish a scan in 30 s"
            time.sleep(0.01)


def advised_processes() -> list[int]:
    """Processes whose memory KSM would scan."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ksm_stat").exists():
                text = (folder / "ksm_stat").read_text()
                # Since 6.14; before, the file tells of merged memory only.
                is_advised = "ksm_mergeable: yes" in text
                is_known = "ksm_mergeable" in text
            else:
                is_advised = is_known = False
            if not is_known:
                is_advised = bool(re.search(r"^VmFlags:.* mg\b", (folder / "smaps").read_text(),
                                            re.MULTILINE))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if is_advised:
            found.append(int(folder.name))
    return found


@pytest.fixture
def ksm() -> Iterator[Ksm]:
    """KSM, unmerged and stopped at first, and as it was found afterwards, whatever happens."""
    assert os.access(KSM / "run", os.W_OK), "these tests need root and a kernel with KSM"
    # One user at a time, also among test runs.
    lock = os.open(KSM, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + 60
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(lock)
                pytest.skip("another user of KSM holds its lock")
            time.sleep(0.2)
    control = Ksm(lock)
    found = {name: (KSM / name).read_text().strip() for name in (*KNOBS, "run")
             if (KSM / name).exists()}
    advised = advised_processes()
    if found["run"] == "1" or control["pages_shared"] or advised:
        os.close(lock)
        # Stepping would merge memory that is not the test's.
        pytest.skip(f"KSM is in use here, or has been advised by others ({len(advised)} processes)")
    if "[" in found.get("advisor_mode", ""):
        found["advisor_mode"] = found["advisor_mode"].split("[")[1].split("]")[0]
    try:
        control["run"] = 2
        control["run"] = 0
        yield control
    finally:
        try:
            # Unmerges all and waits for it; only then may the other knobs be set.
            control["run"] = 2
            for name in KNOBS:
                if name in found:
                    control[name] = found[name]
        finally:
            control["run"] = found["run"]
            os.close(lock)


@pytest.fixture
def processes() -> Iterator[ProcessMaker]:
    """Makes processes with known memory; ends them all."""
    maker = ProcessMaker()
    try:
        yield maker
    finally:
        maker.close()
