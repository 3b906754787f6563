"""The product's machine against the plain-Python twin of the kernel, after every scan."""

from __future__ import annotations

import pytest

from planner.kernels import ksmstate as k
from planner.ksm import KernelVersion, Machine
from tests.conformance.random_scripts import random_scripts
from tests.conformance.script import content_key, first_difference, run_script
from tests.oracles.kernel_ksm import Machine as Twin
from tests.oracles.kernel_ksm.surprises import SURPRISES

KERNELS: tuple[KernelVersion, ...] = ("6.1", "6.12", "6.18")
SEED = 4


def machine(kernel: KernelVersion) -> Machine:
    return Machine(kernel, key=content_key)


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_scripts_show_the_same_on_both_after_every_scan(kernel: KernelVersion) -> None:
    seen: dict[str, int] = {}
    for number, script in enumerate(random_scripts(SEED, 200)):
        observations = run_script(machine(kernel), script)
        difference = first_difference(observations, run_script(Twin(kernel), script))
        assert difference is None, f"script {number} of seed {SEED}: {difference}"
        for observation in observations:
            for name, value in observation["counters"].items():
                seen[name] = max(seen.get(name, 0), value)
    # The scripts are worth something only if everything happened.
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SURPRISES)
def test_what_is_seldom_written_of_kernels_happens(name: str, kernel: KernelVersion) -> None:
    script, wanted = SURPRISES[name].script, SURPRISES[name].at_end[kernel]
    last = run_script(machine(kernel), script)[-1]
    frames = [frame for of_process in last["frames"].values() for frame in of_process.values()]
    shown = {**last["counters"], "cow_ksm": last["cow_ksm"], "zero_ptes": frames.count(-2),
             "frames": len({frame for frame in frames if frame >= 0})}
    assert {key: shown[key] for key in wanted} == wanted


def test_physical_frames_are_those_that_are_mapped() -> None:
    for script in random_scripts(SEED + 1, 40):
        made = machine("6.18")
        last = run_script(made, script)[-1]
        frames = {frame for of_process in last["frames"].values() for frame in of_process.values()}
        assert made.physical_frames() == len(frames - {-1, -2})


def test_a_machine_keeps_32_bytes_of_state_a_page() -> None:
    assert k.SITE_FIELDS * 4 == 32


def test_a_knob_that_a_kernel_lacks_or_refuses_is_an_errno() -> None:
    old, new = machine("6.1"), machine("6.18")
    assert old.set_knob("smart_scan", 1) == "ENOENT"
    assert new.set_knob("smart_scan", 2) == "EINVAL"
    assert new.set_knob("max_page_sharing", 1) == "EINVAL"
    assert new.set_run(3) == "EINVAL"
    new.spawn(1)
    new.map(1, 512, 4, False)
    new.write(1, 512, [1, 1, 1, 1])
    new.advise(1, 512, 4)
    new.full_scan()
    new.full_scan()
    assert new.counters()["pages_sharing"] == 3
    assert new.set_knob("max_page_sharing", 5) == "EBUSY"
    assert new.set_run(2) is None
    assert new.set_knob("max_page_sharing", 5) is None
    assert new.cow_ksm == 4


def test_chains_are_pruned_after_their_time() -> None:
    chains = []
    for waits_ms in (1000, 3000):
        made = machine("6.1")
        made.set_knob("max_page_sharing", 2)
        made.spawn(1)
        made.map(1, 512, 5, False)
        made.write(1, 512, [1, 1, 1, 1, 2])
        made.advise(1, 512, 5)
        made.full_scan()
        made.full_scan()
        assert made.counters()["stable_node_chains"] == 1
        made.dontneed(1, 512, 3)
        made.full_scan()  # the dups are gone but one, which has room again
        made.wait(waits_ms)
        made.full_scan()  # 6.1 dissolves a chain only while it prunes
        chains.append(made.counters()["stable_node_chains"])
    assert chains == [1, 0]
