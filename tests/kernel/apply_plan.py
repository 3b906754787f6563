"""In the machine: containers of two tenants, a plan carried out on them, and frame by frame what
became of their memory. `python -m tests.kernel.apply_plan PLAN TENANT-PROGRAM`.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
from array import array
from pathlib import Path

from planner.cli import main as planner

TENANTS, N_CONTAINERS = ("red", "blue"), 3
_PAGE, _PRESENT, _FRAME = 4096, 1 << 63, (1 << 55) - 1
_ALLOW = Path("/sys/module/ksm_planner/parameters/allow_merge")


def contents_of(tenant: str, container: int) -> list[int]:
    """Content numbers of a container's pages: an image that all tenants run, data that its tenant
    shares, repeats of its own, zeroes, and what nobody else has.
    """
    draw = random.Random(f"{tenant} {container}")
    of_tenant = 100_000 * (1 + TENANTS.index(tenant))
    pages = list(range(1, 601))
    pages += range(of_tenant, of_tenant + 400)
    own = of_tenant + 1000 * (10 + container)
    pages += draw.choices(range(own, own + 20), k=100)
    pages += [0] * 60
    pages += range(own + 100, own + 400)
    draw.shuffle(pages)
    return pages


def name_of(tenant: str, container: int) -> str:
    """The guest's name."""
    return f"{tenant}-{container}"


class Container:
    """A running container: its process in a cgroup of its own."""

    def __init__(self, tenant: str, number: int, program: str) -> None:
        self.tenant, self.name = tenant, name_of(tenant, number)
        self.contents = contents_of(tenant, number)
        file = Path("/tmp") / self.name
        file.write_bytes(array("I", self.contents).tobytes())
        self.process = subprocess.Popen([program, str(file)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.start = int(self.process.stdout.readline(), 16)
        self.cgroup = Path("/sys/fs/cgroup") / self.name
        self.cgroup.mkdir()
        (self.cgroup / "cgroup.procs").write_text(str(self.process.pid))

    def frames(self) -> list[int]:
        """The frame of each page of its memory."""
        with open(f"/proc/{self.process.pid}/pagemap", "rb") as stream:
            stream.seek(self.start // _PAGE * 8)
            entries = array("Q", stream.read(8 * len(self.contents)))
        assert all(entry & _PRESENT for entry in entries)
        return [entry & _FRAME for entry in entries]

    def is_intact(self) -> bool:
        """Whether every page has the content that it was given."""
        with open(f"/proc/{self.process.pid}/mem", "rb") as stream:
            stream.seek(self.start)
            memory = stream.read(_PAGE * len(self.contents))
        # Some numbers of each page; a merge with a page of another content would change all.
        words = memoryview(memory).cast("Q")
        return all(words[i * 512 + at] == (number and number << 32 | at)
                   for i, number in enumerate(self.contents) for at in (0, 1, 255, 511))


_n_checks = 0


def check(is_ok: bool, what: str) -> None:
    """A line of TAP."""
    global _n_checks
    _n_checks += 1
    print(f"{'ok' if is_ok else 'not ok'} {_n_checks} - {what}", flush=True)


def call(*arguments: str) -> tuple[int, str]:
    """Run the planner; its code, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err:
        code = planner(list(arguments))
    return code, out.getvalue() + err.getvalue()


def frames_by_tenant(containers: list[Container]) -> dict[str, list[int]]:
    """All frames of each tenant, with repeats."""
    return {tenant: [frame for each in containers if each.tenant == tenant
                     for frame in each.frames()] for tenant in TENANTS}


def main(plan: str, program: str) -> int:
    """Print TAP; 0."""
    subprocess.run(["/bin/busybox", "mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    containers = [Container(tenant, number, program) for tenant in TENANTS
                  for number in range(N_CONTAINERS)]
    options = [word for each in containers for word in ("--member", f"{each.name}={each.cgroup}")]
    code, text = call("apply", plan, *options, "--dry-run")
    check(code == 0 and "merge 3 of 3 members" in text, "a dry run tells the steps")
    code, text = call("apply", plan, *options)
    check(code == 3 and "allow_merge=1" in text, "without allow_merge it says what to do")
    _ALLOW.write_text("1")
    before = frames_by_tenant(containers)
    check(all(len(set(frames)) == len(frames) for frames in before.values()),
          "each page has a frame of its own")
    report = "/tmp/report.json"
    code, text = call("apply", plan, *options, "-o", report)
    print(text)
    check(code == 0, "the plan is carried out")
    check(all(each.is_intact() for each in containers), "contents are as they were")
    merged = frames_by_tenant(containers)
    check(set(merged["red"]).isdisjoint(merged["blue"]), "no frame is in two tenants")
    code, text = call("validate", "plan", plan, report, "--within", "1%")
    print(text)
    check(code == 0, "what is freed is within 1 % of the prediction")
    for part in json.loads(Path(report).read_text())["partitions"]:
        frames = merged[part["name"]]
        freed = len(frames) - len(set(frames))
        print(f"# {part['name']}: expected {part['expected_pages']}, by its counter "
              f"{part['pages_sharing']}, by frames of the containers' data {freed}")
        check(abs(freed - part["expected_pages"]) <= part["expected_pages"] // 100 and freed > 0,
              f"{part['name']}: and so are the frames")
    code, text = call("apply", plan, *options, "--undo")
    check(code == 0, "and undone")
    after = frames_by_tenant(containers)
    check(all(len(set(frames)) == len(frames) for frames in after.values()),
          "each page has a frame of its own again")
    check(all(each.is_intact() for each in containers), "contents are still as they were")
    for each in containers:
        each.process.kill()
        each.process.wait()
    print(f"1..{_n_checks}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
