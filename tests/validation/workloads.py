"""Starts real programs with mergeable memory and ends them; each is a context with their pids."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

APPS = Path(__file__).resolve().parent / "apps"
PR_SET_THP_DISABLE, PR_SET_MEMORY_MERGE = 41, 67
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
GUEST_ROLES = ("nginx", "redis", "postgres")


def _mergeable() -> None:
    """In the child, before the exec: inherited by all that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_MEMORY_MERGE")


@contextlib.contextmanager
def _programs(commands: Sequence[Sequence[str]], *, user: str | None = None) -> Iterator[list[int]]:
    """Run commands until each says it is ready."""
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen(
                command, preexec_fn=_mergeable, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, user=user,
                env={**os.environ, "PYTHONHASHSEED": "1"}))
        for process in started:
            assert process.stdout is not None
            if "ready" not in process.stdout.readline():
                raise RuntimeError(f"{process.args!r} did not come up")
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def python(rate: float = 20.0, n: int = 6) -> contextlib.AbstractContextManager[list[int]]:
    """Python services, half with sqlite, half with dictionaries."""
    return _programs([[sys.executable, str(APPS / "service.py"), ("sql", "rows")[seed % 2],
                       str(seed), str(rate)] for seed in range(n)])


def node(rate: float = 20.0, n: int = 4) -> contextlib.AbstractContextManager[list[int]]:
    """Node services."""
    return _programs([["node", str(APPS / "service.js"), str(seed), str(rate)]
                      for seed in range(n)])


def jvm(rate: float = 20.0, n: int = 3) -> contextlib.AbstractContextManager[list[int]]:
    """JVM services, compiled once."""
    target = Path(tempfile.gettempdir()) / "planner-validation-java"
    if not (target / "Service.class").exists():
        subprocess.run(["javac", "-d", str(target), str(APPS / "Service.java")], check=True)
    return _programs([["java", "-Xmx192m", "-XX:+UseSerialGC", "-cp", str(target), "Service",
                       str(seed), str(rate)] for seed in range(n)])


@contextlib.contextmanager
def postgres(clients: int = 6, rate: int = 60) -> Iterator[list[int]]:
    """One server whose clients run pgbench's mixed transactions."""
    folder = Path(tempfile.mkdtemp(prefix="planner-pg-"))
    shutil.chown(folder, "postgres")
    data, run = folder / "data", {"user": "postgres", "check": True, "stdout": subprocess.DEVNULL,
                                  "stderr": subprocess.DEVNULL, "cwd": folder}
    programs = POSTGRES[-1]
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust"], **run)
    # Autovacuum's workers would come and go as processes that nobody named.
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
         "-c", "autovacuum=off", "-c", "shared_buffers=64MB", "-c", "fsync=off"],
        preexec_fn=_mergeable, user="postgres", stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=folder)
    bench = None
    try:
        _until(lambda: (folder / ".s.PGSQL.5432").exists(), "postgres")
        time.sleep(1)
        subprocess.run([programs / "pgbench", "-h", folder, "-i", "-s", "5", "postgres"], **run)
        bench = subprocess.Popen(
            [programs / "pgbench", "-h", folder, "-c", str(clients), "-R", str(rate),
             "-T", "600", "postgres"],
            user="postgres", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        _until(lambda: len(children.read_text().split()) >= clients + 4, "pgbench's clients")
        time.sleep(3)
        yield [server.pid, *map(int, children.read_text().split())]
    finally:
        for process in filter(None, (bench, server)):
            process.kill()
            process.wait()
        # Backends see the end of their server and go by themselves.
        time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mix() -> Iterator[list[int]]:
    """Some of each."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for part in (python(n=2), node(n=2), jvm(n=1), postgres(clients=3)):
            found += stack.enter_context(part)
        yield found


class Guests:
    """QEMU guests (TCG) with huge pages; their memory becomes mergeable when asked."""

    def __init__(self, work: Path, roles: Sequence[str], memory_mib: int = 320) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="planner-guests-"))
        self._processes = [self._boot(work, role, index, memory_mib)
                           for index, role in enumerate(roles)]

    def _boot(self, work: Path, role: str, index: int, memory_mib: int) -> subprocess.Popen[bytes]:
        name = f"{role}-{index}"
        disk = self._folder / f"{name}.qcow2"
        image = (work / "images" / f"{role}.ext4").resolve()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, disk],
                       check=True)
        words = " ".join(f"fleet.{key}={value}" for key, value in (
            ("name", name), ("role", role), ("tenant", "acme"), ("seed", f"1-{name}"),
            ("period", "5")))
        return subprocess.Popen([
            "qemu-system-x86_64", "-name", name, "-machine",
            "q35,mem-merge=off,hpet=off,memory-backend=ram",
            "-object", f"memory-backend-ram,id=ram,size={memory_mib}M,merge=off",
            "-accel", "tcg,tb-size=64", "-cpu", "max", "-smp", "1", "-m", str(memory_mib),
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(work / "kernel/vmlinuz"), "-initrd", str(work / "kernel/initrd.img"),
            "-append", f"console=ttyS0 quiet {words}",
            "-drive", f"file={disk},if=none,id=disk,format=qcow2,cache=unsafe",
            "-device", "virtio-blk-pci,drive=disk",
            "-object", "rng-random,filename=/dev/urandom,id=rng",
            "-device", "virtio-rng-pci,rng=rng",
            "-serial", f"file:{self._folder / name}.log",
            "-qmp", f"unix:{self._folder / name}.qmp,server=on,wait=off",
        ], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self, timeout_s: float = 400.0) -> None:
        """Until every guest says that it is ready."""
        for log in self._folder.glob("*.log"):
            _until(lambda log=log: b"FLEET-READY " in log.read_bytes(),
                   log.name, timeout_s)

    @contextlib.contextmanager
    def mergeable(self) -> Iterator[list[int]]:
        """Guest memory advised as QEMU's mem-merge=on does; withdrawn at the end."""
        try:
            self._set_merge(True)
            yield [process.pid for process in self._processes]
        finally:
            self._set_merge(False)

    def _set_merge(self, value: bool) -> None:
        for path in sorted(self._folder.glob("*.qmp")):
            with socket.socket(socket.AF_UNIX) as qmp:
                qmp.connect(str(path))
                stream = qmp.makefile("rw")
                stream.readline()
                for order in ({"execute": "qmp_capabilities"},
                              {"execute": "qom-set", "arguments": {
                                  "path": "/objects/ram", "property": "merge", "value": value}}):
                    stream.write(json.dumps(order) + "\n")
                    stream.flush()
                    while True:
                        answer = json.loads(stream.readline())
                        if "error" in answer:
                            raise RuntimeError(str(answer))
                        if "return" in answer:
                            break

    def close(self) -> None:
        """End them all."""
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _until(is_so: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up in {timeout_s:.0f} s")
        time.sleep(0.2)
