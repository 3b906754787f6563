"""From a run to a host: what a policy is predicted to free, and what the module then frees."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from planner.exporters import export_settings
from planner.runner import run
from planner.scenario.spec import PolicySpec, Sync, Trigger
from tests.kernel.apply_plan import N_CONTAINERS, TENANTS, contents_of, name_of
from tests.kernel.machine import load_runner, program, run_machine
from tests.scenario_builder import SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

HERE = Path(__file__).resolve().parent


def planned(folder: Path) -> dict[str, Any]:
    """A plan with what the planner's run expects of each tenant's partition."""
    trace = build_trace(folder / "two.trace", [
        GuestPlan(name_of(tenant, i), {"tenant": tenant},
                  [MmPlan([pages_of(contents_of(tenant, i))] * 3)], "container")
        for tenant in TENANTS for i in range(N_CONTAINERS)])
    policy = PolicySpec("by-domain", ("domain",), (), Sync((Trigger("boot", SECOND, 0),)))
    result = run(scenario_for(trace, [policy]))
    plan: dict[str, Any] = json.loads(export_settings(result, "by-domain", "selective-ksm"))
    return plan


def test_the_prediction_counts_what_a_tenant_has_twice(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    for partition in plan["partitions"]:
        pages = [page for i in range(N_CONTAINERS) for page in contents_of(partition["name"], i)]
        by_hand = len(pages) - len(set(pages))
        # The kernel keeps at most 256 mappings of a frame: the zeroes are 180.
        assert partition["expected"]["pages_sharing"] == by_hand > 2000


@pytest.mark.kernel
@pytest.mark.parametrize("series", ["6.12"])
def test_a_plan_frees_what_was_predicted_and_keeps_tenants_apart(tmp_path: Path,
                                                                 series: str) -> None:
    tenant = tmp_path / "tenant"
    subprocess.run(["gcc", "-O2", "-static", "-o", tenant, HERE / "tenant.c"], check=True)
    subprocess.run(["strip", tenant], check=True)
    files = {"/tmp/tenant": tenant.read_bytes(),
             "/tmp/plan.json": json.dumps(planned(tmp_path)).encode()}
    script = "".join(f"/bin/busybox base64 -d >{path} <<END\n"
                     f"{base64.encodebytes(content).decode()}END\n"
                     for path, content in files.items())
    script += "/bin/busybox chmod +x /tmp/tenant\n"
    script += program("-m tests.kernel.apply_plan /tmp/plan.json /tmp/tenant")
    outcome = run_machine(series, script, tmp_path)
    print(outcome.output)
    lines = outcome.output.splitlines()
    assert [line for line in lines if line.startswith("not ok")] == []
    runner = load_runner()
    for wanted in ("1..12", "insmod ok", "exit 0", "rmmod ok", f"taint {runner.TAINT}", "done"):
        assert wanted in lines
    assert [line for line in outcome.console.splitlines()
            if runner._COMPLAINTS.search(line) and not runner._HARMLESS.search(line)] == []
