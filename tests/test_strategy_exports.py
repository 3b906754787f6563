"""Policies of every kind in the steps after a run: explained, put into words, exported."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from planner.errors import UsageError
from planner.explain import explain
from planner.exporters import export_settings
from planner.metrics import Result
from planner.runner import run
from planner.scenario.spec import (
    Cooperation,
    FreePages,
    Ksmd,
    Ksmtuned,
    KubeVirt,
    PartitionRule,
    PolicySpec,
    Sync,
    SyncAdvisor,
    Trigger,
)
from planner.trace import PageColumns
from tests.scenario_builder import NEVER, SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

FAST = Ksmd(1000, 20)
BOOT = Trigger("boot", 5 * SECOND)
POLICIES = (
    NEVER,
    PolicySpec("tuned", (), (), Ksmtuned(10, thres_coef=100, sleep_msec=33)),
    PolicySpec("kubevirt", (), (), KubeVirt(free_percent=1.0, sleep_ms_baseline=7)),
    PolicySpec("named", ("domain",), (), Sync((BOOT,)),
               (PartitionRule("reds", ((("tenant", "red"),),), FAST),)),
    PolicySpec("ranges", (), (), FAST, (), Cooperation("ranges", ((("content", "heap"),),))),
    PolicySpec("full", (), (), FAST, (), Cooperation("full")),
    PolicySpec("advised", ("domain",), (), Sync((BOOT,), 10**7, SECOND,
                                                SyncAdvisor(SECOND, 9 * SECOND, 1 << 20))),
    PolicySpec("pressed", (), (), Sync((Trigger("pressure", share=0.99),
                                        Trigger("idle", every_ns=SECOND, share=0.5)))),
    PolicySpec("reporting", (), (), FreePages("reporting")),
    PolicySpec("balloon", (), (), FreePages("balloon", 10 * SECOND)),
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Three guests of two tenants that share half of their heaps; some of each changes."""
    def heap(own: int) -> list[PageColumns]:
        return [pages_of([*range(1, 101), *range(own + turn, own + turn + 50), *[0] * 10])
                for turn in range(2)]

    path = build_trace(tmp_path_factory.mktemp("all") / "t", [
        GuestPlan(f"g{i}", {"tenant": ("red", "red", "blue")[i]},
                  [MmPlan(heap(1000 * (i + 1)), {"content": "heap"}),
                   MmPlan([pages_of(range(1, 21))] * 2, {"content": "stack"})])
        for i in range(3)])
    return run(scenario_for(path, POLICIES, horizon_ns=60 * SECOND))


@pytest.mark.parametrize("name", [policy.name for policy in POLICIES])
def test_every_saving_can_be_taken_apart(result: Result, name: str) -> None:
    found = explain(result, name)
    steps = {step.key: step.n_bytes for step in found.steps}
    gave_back = "gave back" in next(memo.text for memo in found.memos if memo.key == "saved_zero")
    assert gave_back == (name in ("reporting", "balloon"))
    row = next(row for row in result.summary.to_pylist() if row["policy"] == name)
    assert steps["saved"] == row["saved_bytes"]
    assert steps["in_use"] == row["guest_memory_bytes"]
    assert steps["eligible"] == row["eligible_bytes"]
    merges = name not in ("off", "reporting", "balloon")
    assert (row["saved_bytes"] > 0) == merges
    assert ("never" in steps) == (not merges)


def test_policies_are_put_into_words(result: Result) -> None:
    words = {row["policy"]: (row["partition_by"], row["merge"])
             for row in result.summary.to_pylist()}
    assert words["ranges"][0] == "none, only content=heap"
    assert words["full"][0] == "none, guests leave out free and volatile pages"
    assert words["named"][0] == "reds, else domain"
    assert words["pressed"][1] == \
        "sync free memory below 99.0 %, idle above 50.0 % (every 1.00 s)"
    assert words["advised"][1] == \
        "sync boot + 5.00 s, at most 10.0 ms a call, guests 1.00 s apart, advised 1.00 s to 9.00 s"
    assert words["balloon"][1] == "free pages by balloon every 10.0 s"


def test_a_daemons_policy_gives_that_daemons_settings(result: Result, tmp_path: Path) -> None:
    conf = tmp_path / "ksmtuned.conf"
    conf.write_text(export_settings(result, "tuned", "ksmtuned"))
    done = subprocess.run(["sh", "-c", f". {conf}; echo $KSM_MONITOR_INTERVAL $KSM_SLEEP_MSEC "
                           "$KSM_NPAGES_BOOST $KSM_NPAGES_DECAY $KSM_NPAGES_MIN $KSM_NPAGES_MAX "
                           "$KSM_THRES_COEF $KSM_THRES_CONST"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10", "33", "300", "-50", "64", "1250", "100", "2048"]
    script = export_settings(result, "kubevirt", "kubevirt")
    assert re.findall(r"kubevirt.io/(\S+?)-override=(\S+)", script) == [
        ("ksm-pages-init", "100"), ("ksm-pages-min", "64"), ("ksm-pages-max", "1250"),
        ("ksm-pages-boost", "300"), ("ksm-pages-decay", "-50"), ("ksm-sleep-ms-baseline", "7"),
        ("ksm-free-percent", "1.0")]


@pytest.mark.parametrize(("policy", "kind", "why", "instead"), [
    ("tuned", "sysfs", "a daemon sets ksmd's pace", "--as ksmtuned"),
    ("kubevirt", "tmpfiles", "a daemon sets ksmd's pace", "--as kubevirt"),
    ("tuned", "kubevirt", "a daemon sets ksmd's pace", "--as ksmtuned"),
    ("named", "sysfs", "merges on request", "--as selective-ksm"),
    ("named", "selective-ksm", "no explicit partitions", "label of guests"),
    ("full", "sysfs", "guests choose what may merge", "without cooperation"),
    ("ranges", "ksmtuned", "guests choose what may merge", "without cooperation"),
    ("reporting", "sysfs", "give free pages back", "free-page reporting"),
    ("balloon", "selective-ksm", "give free pages back", "free-page reporting"),
    ("balloon", "alerts", "never merges", "export the policy"),
    ("advised", "selective-ksm", "boot and every", "these triggers"),
    ("pressed", "selective-ksm", "boot and every", "these triggers"),
    ("tuned", "selective-ksm", "nobody steers partitions", "merge: sync")])
def test_what_settings_cannot_say_is_refused(result: Result, policy: str, kind: str, why: str,
                                             instead: str) -> None:
    with pytest.raises(UsageError) as refused:
        export_settings(result, policy, kind)
    assert why in str(refused.value)
    assert instead in str(refused.value)
