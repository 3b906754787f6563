"""Exported settings: what real parsers and real shells make of them, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from planner.cli import main
from planner.errors import PlannerError, UsageError
from planner.exporters import KINDS, Current, current_settings, export_settings
from planner.exporters.metrics import export_metrics
from planner.metrics import Result
from planner.policies.partition import kernel_names
from planner.results import save
from planner.runner import run
from planner.scenario.spec import HostSpec, Ksmd, PolicySpec, Scenario, Sync, Trigger
from tests.scenario_builder import NEVER, SECOND, scenario_for
from tests.trace_builder import GuestPlan, MmPlan, build_trace, pages_of

NOW = Current("node1", {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20"})
POLICIES = (
    NEVER,
    PolicySpec("ksmd", (), (), Ksmd(pages_to_scan=1250, sleep_millisecs=30)),
    PolicySpec("domain", ("domain",), (), Sync((Trigger("boot", 5 * SECOND, 0),
                                                Trigger("every", 0, 20 * SECOND)))),
    PolicySpec("scanners", ("domain",), (), Ksmd()),
    PolicySpec("without-db", (), ((("role", "db"),),), Ksmd()),
    PolicySpec("by-region", ("content",), (), Sync((Trigger("boot", 0, 0),))),
    PolicySpec("few", (), (), Ksmd(max_page_sharing=16)),
)
EVIL = "x'\"`$(touch /tmp/evil)` KSMTUNED {{ lookup('pipe', 'id') }} \u2603 \U0001f600"


def make(path: Path, names: tuple[str, ...] = ("web.service", "db.service", "c"), *,
         labels: dict[str, str] | None = None,
         change: Callable[[Scenario], Scenario] = lambda scenario: scenario) -> Result:
    """A result over three guests: web and db of red, one of blue."""
    roles = ("web", "db", "web")
    plans = [GuestPlan(name, {"tenant": ("red", "red", "blue")[i], "role": roles[i],
                              "vmid": str(101 + i), **(labels or {})},
                       [MmPlan([pages_of([*range(1, 200), 0, 0, 300 + i])] * 2)])
             for i, name in enumerate(names)]
    return run(change(scenario_for(build_trace(path, plans), POLICIES)))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make(tmp_path_factory.mktemp("export") / "trace")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Names, labels and domains that a shell, a template or a terminal would act upon."""
    return make(tmp_path_factory.mktemp("evil") / "trace",
                (EVIL, "../../etc/passwd", "-rf"),
                labels={"tenant": EVIL, "vmid": "1; touch /tmp/evil", "unit": EVIL})


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)


def policy_for(kind: str) -> str:
    return "domain" if kind == "selective-ksm" else "ksmd"


# ---- every kind -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_run_saving_present_values_and_undo(result: Result, kind: str) -> None:
    text = export_settings(result, policy_for(kind), kind, current=NOW)
    assert result.run["digest"] in text
    row = next(r for r in result.summary.to_pylist() if r["policy"] == policy_for(kind))
    if kind == "selective-ksm":
        document = json.loads(text)
        assert document["expected"]["saved_bytes"] == row["saved_bytes"]
        assert document["current"] == dict(NOW.values)
        assert "ksm_unlink" in document["undo"]
    else:
        assert "B saved" in text
        assert "Now on node1, where this was written: run=0, pages_to_scan=100" in text
        assert "ndo" in text
        assert "One run" in text
    assert export_settings(result, policy_for(kind), kind, current=NOW) == text
    assert "Present values: not known" in export_settings(result, policy_for(kind), kind) or \
        kind == "selective-ksm"


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_lets_a_name_out_of_its_comment_or_quotes(evil: Result, kind: str) -> None:
    now = Current(EVIL, {"run": EVIL})
    if kind == "systemd":  # no unit has such a name
        with pytest.raises(UsageError, match=r"unit=NAME\.service"):
            export_settings(evil, "ksmd", kind, current=now)
        return
    text = export_settings(evil, policy_for(kind), kind, current=now)
    assert "\x1b" not in text
    if kind == "selective-ksm":
        names = [partition["name"] for partition in json.loads(text)["partitions"]]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", name) for name in names)
        return
    for line in text.splitlines():
        if "touch /tmp/evil" in line:
            assert line.startswith(("#", "  allow_ksm", '        content: !unsafe "'))


@pytest.mark.parametrize(("policy", "kind", "reason", "instead"), [
    ("domain", "sysfs", "merges on request", "--as selective-ksm"),
    ("scanners", "tmpfiles", "one merge space a host", "--as selective-ksm"),
    ("scanners", "alerts", "", ""),
    ("without-db", "sysfs", "excludes some guests", "--as proxmox"),
    ("without-db", "ksmtuned", "excludes some guests", "--as libvirt"),
    ("without-db", "kubevirt", "excludes some guests", "--as proxmox"),
    ("without-db", "ansible", "excludes some guests", "--as proxmox"),
    ("ksmd", "selective-ksm", "mainline kernel does already", "--as sysfs"),
    ("off", "selective-ksm", "never merges", "--as sysfs"),
    ("off", "ksmtuned", "never merges", "disable ksmtuned"),
    ("off", "alerts", "never merges", "the policy that the hosts run"),
    ("off", "overcommit", "saves too little", "saves more"),
    ("by-region", "selective-ksm", "a label of regions", "a label of guests"),
    ("domain", "systemd", "merges on request", "--as selective-ksm"),
])
def test_what_cannot_be_expressed_is_refused_with_a_way_out(
        result: Result, policy: str, kind: str, reason: str, instead: str) -> None:
    if not reason:
        assert export_settings(result, policy, kind)
        return
    with pytest.raises(UsageError) as caught:
        export_settings(result, policy, kind)
    assert reason in str(caught.value)
    assert instead in caught.value.instead
    assert caught.value.where == f"--as {kind}"


def test_unknown_kinds_policies_and_hosts_are_usage_errors(result: Result) -> None:
    with pytest.raises(UsageError, match="choose one of sysfs, tmpfiles"):
        export_settings(result, "ksmd", "puppet")
    with pytest.raises(UsageError, match="did you mean 'ksmd'"):
        export_settings(result, "ksm", "sysfs")
    with pytest.raises(UsageError, match="it has host"):
        export_settings(result, "ksmd", "ksmtuned", host="other")


def test_hosts_of_different_memory_need_a_choice(tmp_path: Path) -> None:
    def two(scenario: Scenario) -> Scenario:
        other = HostSpec("big", 1 << 36, 1 << 30, 2, 250, "builtin:unmeasured")
        workload = scenario.workloads[0]
        return replace(scenario, hosts=(*scenario.hosts, other), workloads=(
            replace(workload, name="w0", guests=workload.guests[:2]),
            replace(workload, name="w1", guests=workload.guests[2:], host="big")))

    found = make(tmp_path / "trace", change=two)
    with pytest.raises(UsageError, match="choose one with --host: host, big"):
        export_settings(found, "ksmd", "ksmtuned")
    assert "KSM_SLEEP_MSEC=30\n" in export_settings(found, "ksmd", "ksmtuned", host="host")
    assert "KSM_SLEEP_MSEC=120\n" in export_settings(found, "ksmd", "ksmtuned", host="big")
    plan = json.loads(export_settings(found, "domain", "selective-ksm", host="big"))
    assert [p["name"] for p in plan["partitions"]] == ["blue"]


# ---- shell scripts --------------------------------------------------------------------------

SCRIPTS = ("sysfs", "kubevirt", "proxmox", "libvirt", "systemd")


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("policy", ["ksmd", "without-db", "off", "few"])
def test_scripts_are_accepted_by_shells_and_shellcheck(
        result: Result, evil: Result, tmp_path: Path, kind: str, policy: str) -> None:
    for source in (result, evil):
        try:
            text = export_settings(source, policy, kind, current=NOW)
        except UsageError:
            continue
        script = tmp_path / "script"
        script.write_text(text)
        for shell in ("bash", *(("sh",) if kind == "sysfs" else ())):
            done = call(tool(shell), "-n", str(script))
            assert (done.returncode, done.stderr) == (0, "")
        if shutil.which("shellcheck"):
            done = call("shellcheck", str(script))
            assert done.returncode == 0, done.stdout


def ksm_folder(path: Path, **values: str) -> Path:
    path.mkdir()
    for name, value in {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20",
                        "max_page_sharing": "256", "advisor_mode": "[none] scan-time",
                        "smart_scan": "1", "use_zero_pages": "0", "merge_across_nodes": "1",
                        "pages_shared": "0", "pages_sharing": "0", **values}.items():
        (path / name).write_text(value + "\n")
    return path


def settings_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in folder.iterdir()
            if not path.name.startswith("pages_sh")}


class Script:
    """The sysfs script, run on a made-up folder."""

    def __init__(self, tmp_path: Path, text: str, **values: str) -> None:
        self.folder = ksm_folder(tmp_path / "ksm", **values)
        self.saved = tmp_path / "saved"
        self.meminfo = tmp_path / "meminfo"
        self.meminfo.write_text("MemAvailable:   1000 kB\n")
        self.path = tmp_path / "script"
        self.path.write_text(text)

    def __call__(self, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return call(tool("sh"), str(self.path), verb, env={
            **os.environ, "KSM_FOLDER": str(self.folder), "KSM_SAVED": str(self.saved),
            "MEMINFO": str(self.meminfo), **environment})


def test_the_sysfs_script_applies_shows_and_undoes(result: Result, tmp_path: Path) -> None:
    script = Script(tmp_path, export_settings(result, "ksmd", "sysfs"))
    before = settings_in(script.folder)
    assert "now 100, wanted 1250" in script("show").stdout
    assert settings_in(script.folder) == before
    done = script("apply")
    assert (done.returncode, done.stderr) == (0, "")
    after = settings_in(script.folder)
    assert (after["run"], after["pages_to_scan"], after["sleep_millisecs"]) == ("1", "1250", "30")
    assert script("apply").returncode == 0  # a second time keeps what was there before the first
    done = script("undo")
    assert (done.returncode, done.stderr) == (0, "")
    assert settings_in(script.folder) == before
    assert not script.saved.exists()
    assert script("undo").returncode == 3
    assert script("dance").returncode == 2


def test_the_sysfs_script_unmerges_only_where_memory_allows(result: Result,
                                                             tmp_path: Path) -> None:
    script = Script(tmp_path, export_settings(result, "few", "sysfs"), run="1",
                    pages_shared="10", pages_sharing="300")
    before = settings_in(script.folder)
    done = script("apply")
    assert done.returncode == 3
    assert "unmerging needs 1200 kB, 1000 kB are available; nothing was changed" in done.stderr
    assert settings_in(script.folder) == before
    done = script("apply", FORCE="1")
    assert done.returncode == 0, done.stderr
    assert settings_in(script.folder)["max_page_sharing"] == "16"


def test_the_sysfs_script_changes_nothing_on_a_kernel_that_lacks_a_file(result: Result,
                                                                        tmp_path: Path) -> None:
    script = Script(tmp_path, export_settings(result, "ksmd", "sysfs"))
    (script.folder / "sleep_millisecs").unlink()
    before = settings_in(script.folder)
    done = script("apply")
    assert done.returncode == 3
    assert "this kernel cannot do it" in done.stderr
    assert settings_in(script.folder) == before


def test_a_policy_that_never_merges_stops_and_unmerges(result: Result, tmp_path: Path) -> None:
    script = Script(tmp_path, export_settings(result, "off", "sysfs"), run="1",
                    pages_shared="1", pages_sharing="1")
    assert script("apply").returncode == 0
    assert settings_in(script.folder)["run"] == "0"


def test_what_is_left_to_the_kernel_is_set_to_what_the_run_took_for_it(
    tmp_path: Path, result: Result
) -> None:
    script = Script(tmp_path, export_settings(result, "ksmd", "sysfs"), smart_scan="0",
                    advisor_mode="none [scan-time]", pages_to_scan="777")
    assert script("apply").returncode == 0
    after = settings_in(script.folder)
    assert (after["smart_scan"], after["advisor_mode"], after["pages_to_scan"]) == (
        "1", "none", "1250")
    # The kernel refuses pages_to_scan once its advisor is on again.
    assert "pages_to_scan" not in script.saved.read_text()
    assert script("undo").returncode == 0
    before = settings_in(script.folder)
    assert (before["smart_scan"], before["advisor_mode"]) == ("0", "scan-time")
    old = make(tmp_path / "old", change=lambda scenario: replace(
        scenario, hosts=(replace(scenario.hosts[0], kernel="6.1"),)))
    assert "\nsmart_scan 0 optional\n" in export_settings(old, "ksmd", "sysfs")


def test_an_advised_policy_starts_the_advisor_last_and_from_its_own_files(tmp_path: Path) -> None:
    advised = PolicySpec("advised", (), (), Ksmd(
        advisor_mode="scan-time", advisor_min_pages_to_scan=800, smart_scan=False))
    result = make(tmp_path / "trace", change=lambda scenario: replace(
        scenario, policies=(NEVER, advised)))
    text = export_settings(result, "advised", "sysfs")
    settings = text.partition("settings='")[2].partition("'")[0].splitlines()
    assert settings[-2:] == ["advisor_mode scan-time optional", "run 1 needed"]
    assert "advisor_min_pages_to_scan 800 optional" in settings
    assert "smart_scan 0 optional" in settings
    assert not any(line.startswith("pages_to_scan") for line in settings)
    for kind in ("ksmtuned", "kubevirt", "libvirt"):
        with pytest.raises(UsageError, match="advisor"):
            export_settings(result, "advised", kind)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_value_is_none(result: Result, kind: str) -> None:
    assert "None" not in export_settings(result, policy_for(kind), kind)


def test_an_older_kernel_without_advisor_is_served(result: Result, tmp_path: Path) -> None:
    script = Script(tmp_path, export_settings(result, "ksmd", "sysfs"))
    (script.folder / "advisor_mode").unlink()
    assert script("apply").returncode == 0
    assert script("undo").returncode == 0


def fake_commands(folder: Path, *names: str) -> dict[str, str]:
    """Programs that only write down how they were called."""
    folder.mkdir()
    for name in names:
        path = folder / name
        path.write_text(f'#!/bin/sh\nfor a in {name} "$@"; do printf "%s|" "$a"; done '
                        f'>> "{folder}/log"\necho >> "{folder}/log"\n')
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_proxmox_script_keeps_guests_out_and_undoes(result: Result, tmp_path: Path) -> None:
    environment = fake_commands(tmp_path / "bin", "qm", "systemctl")
    environment["KSMTUNED_CONF"] = str(tmp_path / "ksmtuned.conf")
    (tmp_path / "ksmtuned.conf").write_text("# mine\n")
    script = tmp_path / "script"
    script.write_text(export_settings(result, "without-db", "proxmox"))
    assert call(tool("bash"), str(script), "apply", env=environment).returncode == 0
    log = (tmp_path / "bin" / "log").read_text()
    assert log == "qm|set|102|--allow-ksm|0|\nsystemctl|restart|ksmtuned|\n"
    assert "KSM_NPAGES_MIN=100" in (tmp_path / "ksmtuned.conf").read_text()
    assert call(tool("bash"), str(script), "undo", env=environment).returncode == 0
    assert "qm|set|102|--allow-ksm|1|" in (tmp_path / "bin" / "log").read_text()
    assert (tmp_path / "ksmtuned.conf").read_text() == "# mine\n"


def test_the_libvirt_script_calls_virsh_and_restores(result: Result, tmp_path: Path) -> None:
    environment = fake_commands(tmp_path / "bin", "virsh", "virt-xml")
    folder = ksm_folder(tmp_path / "ksm")
    environment |= {"KSM_FOLDER": str(folder), "KSM_SAVED": str(tmp_path / "saved")}
    script = tmp_path / "script"
    script.write_text(export_settings(result, "without-db", "libvirt"))
    done = call(tool("bash"), str(script), "apply", env=environment)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "bin" / "log").read_text().splitlines()
    assert log == [
        "virsh|node-memory-tune|--shm-pages-to-scan|100|--shm-sleep-millisecs|20|",
        "virt-xml|db.service|--edit|--memorybacking|nosharepages=yes|--define|"]
    assert settings_in(folder)["run"] == "1"
    assert call(tool("bash"), str(script), "undo", env=environment).returncode == 0
    assert settings_in(folder)["run"] == "0"


def test_the_xml_for_guests_to_keep_out_is_well_formed() -> None:
    from planner.exporters.libvirt import XML

    done = call(tool("xmllint"), "--noout", "-", input=XML)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_reach_the_commands_of_scripts_as_single_words(evil: Result, tmp_path: Path) -> None:
    environment = fake_commands(tmp_path / "bin", "virsh", "virt-xml")
    environment |= {"KSM_FOLDER": str(ksm_folder(tmp_path / "ksm")),
                    "KSM_SAVED": str(tmp_path / "saved")}
    script = tmp_path / "script"
    script.write_text(export_settings(evil, "without-db", "libvirt"))
    done = call(tool("bash"), str(script), "apply", env=environment)
    assert done.returncode == 0, done.stderr
    assert "virt-xml|../../etc/passwd|--edit|" in (tmp_path / "bin" / "log").read_text()
    assert not Path("/tmp/evil").exists()


def test_the_kubevirt_script_gives_kubectl_valid_json(result: Result, tmp_path: Path) -> None:
    environment = fake_commands(tmp_path / "bin", "kubectl")
    script = tmp_path / "script"
    script.write_text(export_settings(result, "ksmd", "kubevirt"))
    for verb in ("apply", "undo"):
        assert call(tool("bash"), str(script), verb, env=environment).returncode == 0
    lines = [line.split("|") for line in (tmp_path / "bin" / "log").read_text().splitlines()]
    patches = [json.loads(words[words.index("-p") + 1]) for words in lines if "-p" in words]
    key = "ksmConfiguration"
    assert patches[0]["spec"]["configuration"][key] == {
        "nodeLabelSelector": {"matchLabels": {"ksm-planner/policy": "ksmd"}}}
    assert patches[1]["spec"]["configuration"][key] is None
    assert "kubevirt.io/ksm-pages-init-override=1250" in lines[0]
    assert "kubevirt.io/ksm-pages-init-override-" in lines[3]


def test_the_systemd_script_writes_drop_ins(result: Result, tmp_path: Path) -> None:
    environment = fake_commands(tmp_path / "bin", "systemctl", "systemd-tmpfiles")
    environment |= {"UNIT_FOLDER": str(tmp_path / "units"),
                    "TMPFILES_CONF": str(tmp_path / "ksm.conf")}
    script = tmp_path / "script"
    script.write_text(export_settings(result, "ksmd", "systemd"))
    done = call(tool("bash"), str(script), "apply", env=environment)
    assert done.returncode == 0, done.stderr
    drop_in = tmp_path / "units" / "web.service.d" / "50-ksm-planner.conf"
    assert drop_in.read_text() == "[Service]\nMemoryKSM=yes\n"
    assert "pages_to_scan - - - - 1250" in (tmp_path / "ksm.conf").read_text()
    script.write_text(export_settings(result, "without-db", "systemd"))
    assert call(tool("bash"), str(script), "apply", env=environment).returncode == 0
    assert "MemoryKSM=no" in (drop_in.parent.parent / "db.service.d" / drop_in.name).read_text()
    assert call(tool("bash"), str(script), "undo", env=environment).returncode == 0
    assert not drop_in.exists()


# ---- other parsers --------------------------------------------------------------------------


def test_systemd_tmpfiles_writes_the_values_in_a_root_of_its_own(result: Result,
                                                                  tmp_path: Path) -> None:
    program = tool("systemd-tmpfiles")
    root = tmp_path / "root"
    (root / "sys/kernel/mm").mkdir(parents=True)
    folder = ksm_folder(root / "sys/kernel/mm/ksm")
    (folder / "advisor_mode").unlink()  # an older kernel: the line is passed over
    (root / "etc/tmpfiles.d").mkdir(parents=True)
    (root / "etc/tmpfiles.d/ksm-planner.conf").write_text(
        export_settings(result, "ksmd", "tmpfiles", current=NOW))
    done = call(program, f"--root={root}", "--create", "ksm-planner.conf")
    assert (done.returncode, done.stderr) == (0, "")
    after = settings_in(folder)
    assert (after["run"], after["pages_to_scan"], after["sleep_millisecs"]) == ("1", "1250", "30")


@pytest.mark.parametrize("which", ["result", "evil"])
def test_ansible_accepts_the_playbook(which: str, tmp_path: Path,
                                      request: pytest.FixtureRequest) -> None:
    program = tool("ansible-playbook")
    playbook = tmp_path / "ksm.yml"
    playbook.write_text(export_settings(request.getfixturevalue(which), "ksmd", "ansible"))
    done = call(program, "--syntax-check", "-i", "localhost,", str(playbook), env={
        **os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
        "ANSIBLE_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("which", ["result", "evil"])
@pytest.mark.parametrize("policy", ["ksmd", "domain"])
def test_promtool_accepts_the_rules(which: str, policy: str, tmp_path: Path,
                                    request: pytest.FixtureRequest) -> None:
    program = tool("promtool")
    rules = tmp_path / "rules.yml"
    rules.write_text(export_settings(request.getfixturevalue(which), policy, "alerts"))
    done = call(program, "check", "rules", str(rules))
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {4 if policy == 'ksmd' else 3} rules found" in done.stdout


def test_the_ksmtuned_file_sets_what_the_daemon_reads(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "ksmtuned.conf"
    path.write_text(export_settings(result, "ksmd", "ksmtuned"))
    # As the daemon does: read it, then compute the sleep and the threshold.
    done = call(tool("bash"), "-c", f". {path}; total=16777216; "
                "echo $[KSM_SLEEP_MSEC * 16 * 1024 * 1024 / total] $KSM_NPAGES_MIN "
                "$KSM_NPAGES_MAX $[total * KSM_THRES_COEF / 100]")
    assert done.stdout.split() == ["30", "1250", "1250", "16777216"]


@pytest.mark.parametrize("saved", [None, 0.1152])  # 1.13 times 100 is 112.99... in floats
def test_the_overcommit_ratio_is_rounded_down(result: Result, saved: float | None) -> None:
    if saved is not None:
        result = replace(result, **{name: pa.Table.from_pylist(
            [{**row, "saved_bytes": int(saved * row["guest_memory_bytes"])} for row in
             table.to_pylist()], schema=table.schema)
            for name, table in (("hosts", result.hosts), ("summary", result.summary))})
    text = export_settings(result, "ksmd", "overcommit")
    row = next(r for r in result.summary.to_pylist() if r["policy"] == "ksmd")
    exact = row["guest_memory_bytes"] / (row["guest_memory_bytes"] - row["saved_bytes"])
    ratio = float(re.search(r"ram_allocation_ratio = ([0-9.]+)", text)[1])
    assert exact - 0.01 < ratio <= exact
    assert f"memoryOvercommit: {round(ratio * 100)}" in text


# ---- the plan -------------------------------------------------------------------------------


def test_the_plan_names_partitions_members_modes_and_triggers(result: Result) -> None:
    plan = json.loads(export_settings(result, "domain", "selective-ksm"))
    assert (plan["kind"], plan["format_version"]) == ("planner.selective-ksm", 1)
    assert plan["partition_by"] == ["domain"]
    red, blue = plan["partitions"]
    assert (red["name"], red["mode"], red["values"]) == ("red", "sync", {"domain": "red"})
    assert [member["guest"] for member in red["members"]] == ["web.service", "db.service"]
    assert blue["members"][0]["labels"]["vmid"] == "103"
    assert plan["triggers"] == [{"kind": "boot", "after_ns": 5 * SECOND},
                                {"kind": "every", "every_ns": 20 * SECOND}]
    saved = {row["partition"]: row["saved_bytes"] for row in result.partitions.to_pylist()
             if row["policy"] == "domain"}
    assert red["expected"]["saved_bytes"] == saved["red"]
    scanners = json.loads(export_settings(result, "scanners", "selective-ksm"))
    assert scanners["triggers"] == []
    assert {p["mode"] for p in scanners["partitions"]} == {"ksmd"}
    assert scanners["partitions"][0]["ksmd"]["pages_to_scan"] == "100"


def test_partition_names_are_what_the_proposal_accepts_and_unique() -> None:
    names = kernel_names(["a/b", "a b", "../x", "", "é" * 200, "a" * 200, "a" * 201])
    assert len(set(names)) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}", name) for name in names)


# ---- the forecast ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["result", "evil"])
def test_the_forecast_is_open_metrics(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    text = export_metrics(found)
    assert text.endswith("# EOF\n")
    assert "\x1b" not in text
    row = next(r for r in found.summary.to_pylist() if r["policy"] == "ksmd")
    assert f'policy="ksmd",run="{found.run["digest"][:12]}"}} {row["saved_bytes"]}\n' in text
    if shutil.which("promtool"):
        done = call("promtool", "check", "metrics", input=text)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_forecast_with_times_can_be_loaded_into_prometheus(result: Result,
                                                               tmp_path: Path) -> None:
    path = tmp_path / "forecast.prom"
    path.write_text(export_metrics(result, "ksmd", start_ns=1_795_000_000 * SECOND))
    samples = [line for line in path.read_text().splitlines()
               if line.startswith("ksm_planner_forecast_saved_bytes{")]
    assert len(samples) == sum(r["policy"] == "ksmd" for r in result.hosts.to_pylist())
    assert samples[0].endswith(" 1795000000.000")
    done = call(tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(path),
                str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr


# ---- the commands ---------------------------------------------------------------------------


def test_the_commands_print_or_write_and_have_json(
        result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(result, tmp_path / "r", texts={}))
    assert main(["export", "settings", path, "--policy", "ksmd", "--as", "tmpfiles"]) == 0
    out = capsys.readouterr().out
    assert "w /sys/kernel/mm/ksm/run - - - - 1\n" in out
    target = tmp_path / "ksm.conf"
    assert main(["export", "settings", path, "--policy", "ksmd", "--as", "tmpfiles", "-o",
                 str(target)]) == 0
    assert target.read_text() == out
    assert not list(tmp_path.glob("*.partial"))
    capsys.readouterr()
    assert main(["export", "settings", path, "--policy", "ksmd", "--as", "alerts", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format_version"], document["as"]) == (1, "alerts")
    assert main(["export", "metrics", path, "--start", "2026-01-31T12:00:00Z"]) == 0
    assert capsys.readouterr().out.endswith("# EOF\n")
    assert main(["export", "metrics", path, "--start", "noon"]) == 2
    assert main(["export", "settings", path, "--policy", "domain", "--as", "sysfs"]) == 2
    assert "use --as selective-ksm" in capsys.readouterr().err
    assert main(["export", "metrics", path, "--policy", "nobody"]) == 2
    assert main(["export", "metrics", path, "-o", str(tmp_path / "no" / "file")]) == 3


def test_present_values_are_read_from_sysfs(tmp_path: Path) -> None:
    folder = ksm_folder(tmp_path / "ksm", run="1", advisor_mode="none [scan-time]")
    found = current_settings(folder)
    assert found is not None
    assert (found.values["run"], found.values["advisor_mode"]) == ("1", "scan-time")
    assert current_settings(tmp_path / "none") is None


def test_every_refusal_is_an_error_of_ours(result: Result) -> None:
    refused = []
    for policy in POLICIES:
        for kind in KINDS:
            try:
                export_settings(result, policy.name, kind)
            except PlannerError as error:
                refused.append((policy.name, kind, error.instead))
    assert len(refused) > 20
    assert [each for each in refused if not each[2]] == []
