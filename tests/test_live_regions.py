"""The child whose memory ksmd is timed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import MachineError
from planner.live.regions import Region, RegionProcess

PAGE = 4096


def pages(child: RegionProcess, region: Region) -> list[bytes]:
    with Path(f"/proc/{child.pid}/mem").open("rb") as memory:
        memory.seek(region.address)
        data = memory.read(region.n_pages * PAGE)
    return [data[at:at + PAGE] for at in range(0, len(data), PAGE)]


def test_regions_hold_what_was_asked_for() -> None:
    with RegionProcess() as child:
        unique, copy, same = child.map(300), child.map(300), child.map(10)
        child.fill_unique(unique)
        child.copy(unique, copy)
        child.fill_same(same, b"12345678")
        assert unique.address % (2 << 20) == 0
        assert len(set(pages(child, unique))) == 300
        assert pages(child, copy) == pages(child, unique)
        assert pages(child, same) == [b"12345678" * 512] * 10
        assert child.touch(unique) > 0
        assert pages(child, copy) != pages(child, unique)


def test_the_child_ends_once_and_says_so_when_asked_again() -> None:
    with RegionProcess() as child:
        child.close()
        child.close()
        with pytest.raises(MachineError, match="test memory failed"):
            child.map(1)
    assert not Path(f"/proc/{child.pid}").exists()


def test_what_the_kernel_refuses_is_reported() -> None:
    with RegionProcess() as child, pytest.raises(MachineError, match="madvise"):
        child.advise(Region(1, 1))
