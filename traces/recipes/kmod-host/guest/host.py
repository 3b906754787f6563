"""Runs in the host: starts the containers, lets them work, captures them through the module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

RECIPE = Path("/opt/recipe")
WORK = Path("/work")
OUT = Path("/out")
DEVICE = "/dev/vdb"

sys.path.insert(0, str(RECIPE / "container-host"))

import run as containers  # noqa: E402 - found by the line above


def say(text: str) -> None:
    print(f"RECIPE {text}", flush=True)


def planner(*arguments: str) -> str:
    """Run the command of the package; its output."""
    done = subprocess.run([sys.executable, "-m", "planner", *arguments], text=True,
                          capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": "/opt/planner"})
    if done.returncode:
        raise SystemExit(f"planner {' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """All of it; raises where something fails."""
    settings = dict(line.split("=", 1) for line in (RECIPE / "settings").read_text().splitlines())
    os.environ |= {name: value for name, value in settings.items() if name.startswith("NUMBA_")}
    # An emulated processor is some twenty times slower.
    containers.READY_TIMEOUT_S = 900.0
    options = containers.Options(workdir=WORK, install=False, port=18080,
                                 rate=float(settings["rate"]), seconds=0.0, cgroup_mount=None)
    began = time.monotonic()
    containers.start(options)
    say(f"containers answer after {time.monotonic() - began:.0f} s")
    time.sleep(int(settings["settle"]))
    say("doctor: " + "; ".join(
        f"{f['name']}: {f['text']}" for f in json.loads(planner("doctor", "--json"))["findings"]))
    OUT.mkdir()
    began = time.monotonic()
    shown = planner("capture", "--labels", str(WORK / "guests.csv"), "--source", "kmod",
                    "--snapshots", settings["snapshots"], "--every", settings["every"],
                    "--key", str(RECIPE / "site.key"), "-o", str(OUT / "trace"))
    say(f"{shown.strip()} in {time.monotonic() - began:.0f} s")
    containers.status(containers.Options(workdir=WORK, seconds=5.0))
    load = json.loads((WORK / "load.json").read_text())
    say(f"load: {load['requests']} requests, {load['errors']} errors, p50 {load['p50_ms']} ms")
    (OUT / "provenance.json").write_text((WORK / "provenance.json").read_text())
    (OUT / "host.json").write_text(json.dumps({"load": load, "settings": {
        name: settings[name] for name in ("snapshots", "every", "rate", "settle")}}, indent=1))
    with open(DEVICE, "r+b") as device, tarfile.open(fileobj=device, mode="w") as archive:
        archive.add(OUT, arcname=".")
    containers.empty_cgroups(WORK)


if __name__ == "__main__":
    main()
