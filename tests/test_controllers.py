"""Daemons, triggers and the advisor: what they decide, held against their sources."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from planner.policies.advisor import PartitionAdvisor
from planner.policies.controllers import (
    Controller,
    HostMemory,
    KsmtunedLoop,
    KubeVirtLoop,
    Settings,
    controller_of,
)
from planner.policies.triggers import Round, Stay, Watch, idle_share, timed_rounds
from planner.scenario.spec import Ksmtuned, KubeVirt, LoadSpec, Sync, SyncAdvisor, Trigger
from tests.oracles.controllers import KSMTUNED_SH, KsmtunedScript, VirtHandler

SECOND = 1_000_000_000
GIB_KB = 1024 * 1024


def looks(rng: np.random.Generator, total_kb: int) -> list[tuple[int, int]]:
    """Free and committed kB at successive looks: free memory goes down and up around a fifth."""
    share = 0.2 + 0.15 * np.sin(np.linspace(0, rng.uniform(3, 40), 120)) + rng.normal(0, 0.02, 120)
    free = (np.clip(share, 0.001, 1) * total_kb).astype(int).tolist()
    return [(each, int(total_kb * rng.uniform(0.3, 1.2)) if rng.random() < 0.3
             else total_kb - each) for each in free]


def decisions(loop: Controller, total_kb: int, seen: list[tuple[int, int]]) -> list[list[int]]:
    now, made = Settings(), []
    for free_kb, committed_kb in seen:
        now = loop.decide(HostMemory(total_kb, free_kb, committed_kb), now)
        made.append([int(now.is_running), now.pages_to_scan, now.sleep_millisecs])
    return made


def ksmtuned_cases() -> list[tuple[Ksmtuned, int, list[tuple[int, int]]]]:
    cases = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        spec = Ksmtuned() if seed < 10 else Ksmtuned(
            sleep_msec=int(rng.choice([1, 10, 100, 333])), npages_boost=int(rng.integers(0, 900)),
            npages_decay=-int(rng.integers(0, 500)), npages_min=int(rng.integers(1, 300)),
            npages_max=int(rng.integers(250, 3000)), thres_coef=int(rng.integers(1, 60)),
            thres_const=int(rng.choice([2048, 2 * GIB_KB])))
        total_kb = int(rng.choice([1, 4, 16, 250, 2000]) * GIB_KB * rng.uniform(0.9, 1.0))
        # Exactly at the thresholds too.
        edge = total_kb * spec.thres_coef // 100
        cases.append((spec, total_kb, [*looks(rng, total_kb), (edge, total_kb - edge),
                                       (edge + 1, total_kb - edge - 1), (edge, 0), (edge - 1, 0)]))
    return cases


def conf_of(spec: Ksmtuned) -> dict[str, int]:
    return {"KSM_SLEEP_MSEC": spec.sleep_msec, "KSM_NPAGES_BOOST": spec.npages_boost,
            "KSM_NPAGES_DECAY": spec.npages_decay, "KSM_NPAGES_MIN": spec.npages_min,
            "KSM_NPAGES_MAX": spec.npages_max, "KSM_THRES_COEF": spec.thres_coef,
            "KSM_THRES_CONST": spec.thres_const}


def test_ksmtuned_decides_as_its_script_does() -> None:
    ran = 0
    for spec, total_kb, seen in ksmtuned_cases():
        script = KsmtunedScript(total_kb, conf_of(spec))
        wanted = []
        for free, committed in seen:
            script.adjust(free, committed)
            wanted.append(list(script.files.values()))
        assert decisions(KsmtunedLoop(spec), total_kb, seen) == wanted
        ran += len({tuple(each) for each in wanted})
    assert ran > 300  # settings that differed, or nothing was tested


@pytest.mark.skipif(shutil.which("sh") is None, reason="sh is not installed")
def test_ksmtuned_decides_as_a_shell_computes() -> None:
    for spec, total_kb, seen in ksmtuned_cases()[::4]:
        head = "".join(f"{name}={value}\n" for name, value in
                       {**conf_of(spec), "total": total_kb}.items())
        done = subprocess.run(["sh", "-c", head + KSMTUNED_SH], text=True, capture_output=True,
                              check=True, input="".join(f"{a} {b}\n" for a, b in seen))
        wanted = [list(map(int, line.split())) for line in done.stdout.splitlines()]
        assert decisions(KsmtunedLoop(spec), total_kb, seen) == wanted


def test_ksmtuned_on_hosts_of_today() -> None:
    loop = controller_of(Ksmtuned())
    assert (loop.first_ns, loop.every_ns) == (60 * SECOND, 60 * SECOND)
    total_kb = 256 * GIB_KB
    low = HostMemory(total_kb, 10 * GIB_KB, 240 * GIB_KB)
    first = loop.decide(low, Settings())
    assert first == Settings(True, 300, 10, 300)
    assert loop.decide(low, first).pages_to_scan == 600
    enough = HostMemory(total_kb, 200 * GIB_KB, 56 * GIB_KB)
    stopped = loop.decide(enough, first)
    # The files keep what stands in them.
    assert stopped == Settings(False, 300, 10, 300)
    # Much committed, much free (merged already, say): it runs, and ever more slowly.
    saved = HostMemory(total_kb, 100 * GIB_KB, 250 * GIB_KB)
    assert loop.decide(saved, first).pages_to_scan == 250
    assert loop.decide(saved, Settings(True, 64, 10, 64)).pages_to_scan == 64
    # A host of 4 GiB sleeps four times as long as one of 16 GiB.
    assert loop.decide(HostMemory(4 * GIB_KB, 1, 4 * GIB_KB), Settings()).sleep_millisecs == 40


def test_kubevirt_decides_as_virt_handler_does() -> None:
    ran = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        spec = KubeVirt() if seed < 10 else KubeVirt(
            int(rng.integers(0, 900)), -int(rng.integers(0, 500)), int(rng.integers(1, 300)),
            int(rng.integers(300, 3000)), int(rng.integers(50, 500)),
            int(rng.choice([10, 100, 64])), float(rng.uniform(0.05, 0.5)))
        handler = VirtHandler(spec.pages_boost, spec.pages_decay, spec.pages_min, spec.pages_max,
                              spec.pages_init, spec.sleep_ms_baseline, spec.free_percent)
        total_kb = int(rng.choice([1, 4, 16, 250, 2000]) * GIB_KB)
        seen = [*looks(rng, total_kb),
                *((int(total_kb * spec.free_percent) + step, 0) for step in (-1, 0, 1, 2))]
        wanted = []
        for free, _ in seen:
            handler.spin(total_kb, free)
            wanted.append(list(handler.files.values()))
        assert decisions(KubeVirtLoop(spec), total_kb, seen) == wanted
        ran += len({tuple(each) for each in wanted})
    assert ran > 300


def test_kubevirt_starts_at_its_first_pages_and_stops_below_the_least() -> None:
    loop = controller_of(KubeVirt())
    assert (loop.first_ns, loop.every_ns) == (0, 600 * SECOND)
    low, enough = (HostMemory(100 * GIB_KB, free * GIB_KB, 0) for free in (10, 50))
    started = loop.decide(low, Settings(False, 700, 20))
    assert (started.is_running, started.pages_to_scan, started.sleep_millisecs) == (True, 100, 17)
    slower = loop.decide(enough, started)
    # 100 - 50 is under 64: stopped, and the files keep what stands in them.
    assert (slower.is_running, slower.pages_to_scan) == (False, 100)


def test_rounds_name_the_guests_whose_time_it_is() -> None:
    stays = (Stay(0, 2**62, False), Stay(100 * SECOND, 2**62, False),
             Stay(100 * SECOND, 105 * SECOND, False), Stay(50 * SECOND, 2**62, True))
    sync = Sync((Trigger("boot", 10 * SECOND), Trigger("restore"), Trigger("every", 0,
                                                                         55 * SECOND)))
    rounds = timed_rounds(sync, stays, 200 * SECOND)
    assert rounds == (
        Round(10 * SECOND, frozenset({0})), Round(50 * SECOND, frozenset({3})),
        Round(55 * SECOND, None),
        # One that ends before its time is never called; all together where both fall on one time.
        Round(110 * SECOND, None), Round(165 * SECOND, None))
    alone = timed_rounds(Sync((Trigger("boot", 10 * SECOND),)), stays, 200 * SECOND)
    assert [each.guests for each in alone] == [frozenset({0}), frozenset({1})]


def test_a_watch_fires_when_its_state_begins_and_again_as_long_as_told() -> None:
    free = [0.5, 0.09, 0.08, 0.11, 0.09, 0.13, 0.09]
    once = Watch(Trigger("pressure", share=0.1))
    assert [once.fires(at, share) for at, share in enumerate(free)] \
        == [False, True, False, False, False, False, True]
    again = Watch(Trigger("pressure", every_ns=2, share=0.1))
    assert [again.fires(at, share) for at, share in enumerate(free)] \
        == [False, True, False, True, False, False, True]
    idle = Watch(Trigger("idle", share=0.6))
    assert [idle.fires(at, share) for at, share in enumerate([0.7, 0.61, 0.59, 0.5, 0.61])] \
        == [True, False, False, False, True]


def test_load_is_a_cosine_from_low_to_high_and_back() -> None:
    load = LoadSpec(0.2, 0.8, 24 * SECOND)
    assert [round(1 - idle_share(load, hour * SECOND), 6) for hour in (0, 6, 12, 18, 24, 36)] \
        == [0.2, 0.5, 0.8, 0.5, 0.2, 0.8]
    assert idle_share(None, 5) == 1.0


def test_the_advisor_comes_sooner_where_it_pays_and_leaves_out_what_gives_nothing() -> None:
    spec = SyncAdvisor(10 * SECOND, 80 * SECOND, 1 << 30, drop_after=2)
    advisor = PartitionAdvisor(spec, 3)
    assert (advisor.interval_ns, advisor.ranges()) == (10 * SECOND, [0, 1, 2])
    rich, poor = (2 << 30, SECOND), (1 << 29, SECOND)
    advisor.learn([(0, *rich), (1, 0, 0), (2, *poor)])
    assert advisor.interval_ns == 10 * SECOND  # never below the shortest
    advisor.learn([(0, *poor), (1, 0, 1), (2, *poor)])
    # Range 1 gave nothing twice.
    assert (advisor.interval_ns, advisor.ranges()) == (20 * SECOND, [0, 2])
    advisor.learn([(0, *rich), (2, *rich)])
    assert advisor.interval_ns == 10 * SECOND
    for _ in range(3):
        advisor.learn([(0, *poor), (2, *poor)])
    # At the longest interval everything gets another chance.
    assert (advisor.interval_ns, advisor.ranges()) == (80 * SECOND, [0, 1, 2])
    advisor.learn([])
    assert advisor.interval_ns == 80 * SECOND
