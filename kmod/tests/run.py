#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Builds ksm_planner for a Debian kernel, boots that kernel in QEMU, runs the tests, judges.

    kmod/tests/run.py 6.1 6.12               all suites on both kernels
    kmod/tests/run.py 6.12 --tests t_abi     one program
    kmod/tests/run.py 6.12 --faults          seeded faults: each must be caught
    kmod/tests/run.py 6.1 6.12 --build-only  compile with -Werror, and no more
    kmod/tests/run.py 6.12 --sparse          the static checker, while compiling

Needs gcc, make, qemu-system-x86_64, apt-get and dpkg (any user; nothing is installed). Packages go
to $XDG_CACHE_HOME/ksm-planner/kmod, and so does what is built. No KVM: QEMU translates (TCG), so
that this runs anywhere. Nothing is ever loaded into the kernel this runs on.

    this script --> headers, kernel, busybox (apt-get download)
                --> ksm_planner.ko, static test programs --> initramfs
                --> QEMU: kernel messages -> ttyS0 -> console.log
                          TAP             -> ttyS1 -> tap.log
                --> judge(): what is wrong, line by line; empty means passed
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import io
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faults
import partition_faults
from packages import (
    SERIES,
    Kernel,
    RunnerError,
    cache_folder,
    get_busybox,
    get_kernel,
    get_sparse,
    run,
)

HERE = Path(__file__).resolve().parent
KMOD = HERE.parent

#: What an out-of-tree (4096), unsigned (8192) module leaves, and nothing else.
TAINT = 12288
#: Modules of the kernel's own that the tests use, where it has them as modules.
KERNEL_MODULES = ("lzo-rle", "zram")

#: Programs, by the machine they run in. A machine is booted once.
FUNCTIONAL = ("t_content", "t_undisturbed", "t_abi", "t_races", "t_leak", "t_key", "t_unload",
              "t_lockdown")
STRESS = ("t_stress",)
#: After this time a machine that is made to hang is taken for one that hangs.
HANG_SECONDS = 15
#: The same for Selective KSM.
PARTITION = ("p_calls", "p_merge", "p_refuse", "p_scan", "p_killed", "p_unload")
PARTITION_STRESS = ("p_stress",)
#: The same with guests in the machine: a QEMU of its own is in the file system.
PARTITION_GUEST = ("p_guest",)
ALL = FUNCTIONAL + STRESS + PARTITION + PARTITION_STRESS + PARTITION_GUEST
FAULTS = faults.FAULTS + partition_faults.FAULTS
#: What runs with a module that was built without Selective KSM.
DUMP_ONLY = ("t_abi", "p_absent")


@dataclass(frozen=True)
class Boot:
    """What a machine left: kernel messages, output of the tests, and whether it was cut off."""

    console: str
    tap: str
    is_timed_out: bool
    seconds: float


# Building.


def _copy_sources(sources: Path, folder: Path, fault: faults.Fault | None) -> None:
    """Make the sources in a build folder those of a module; what is the same is not built again."""
    wanted = [sources / "Kbuild", *sources.glob("*.c"), *sources.glob("*.h")]
    for name in ("probe", "include"):
        wanted += (path for path in (sources / name).rglob("*") if path.is_file())
    for source in wanted:
        if source.name.endswith(".mod.c"):
            continue
        text = source.read_text()
        if fault is not None and source == sources / fault.file:
            text = fault.seed(text)
        copy = folder / source.relative_to(sources)
        if not copy.exists() or copy.read_text() != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)


def build_module(kernel: Kernel, folder: Path, sources: Path = KMOD, *, sparse: bool = False,
                 fault: faults.Fault | None = None, options: tuple[str, ...] = (),
                 to: Path | None = None) -> Path:
    """Compile the module of `sources` for a kernel in `folder`, with warnings as errors.

    The folder may be one where it was compiled before. The module is put into `to` (by default a
    folder in there). With `sparse`, raise RunnerError for what the checker says of these sources.
    """
    _copy_sources(sources, folder, fault)
    # What the probes of the folder's first build found is true of the next.
    before = folder / ".main.o.cmd"
    probed = re.findall(r"-DPLANNER_HAVE_\w+", before.read_text()) if before.exists() else []
    # The kernel's type information needs one more tool, and the module works without it.
    command: list[str | Path] = ["make", "-C", kernel.headers, f"M={folder}",
                                 "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules", *options]
    if probed:
        command.append(f"PLANNER_HAVE={' '.join(dict.fromkeys(probed))}")
    if sparse:
        command += ["C=2", f"CHECK={get_sparse()}"]
    output = run(*command)
    if sparse:
        findings = [line for line in output.splitlines() if line.startswith(f"{folder}/")]
        if findings:
            raise RunnerError("sparse:\n" + "\n".join(findings))
    [built] = folder.glob("*.ko")
    module = (to or folder / "stripped") / built.name
    module.parent.mkdir(parents=True, exist_ok=True)
    run("strip", "--strip-debug", "-o", module, built)
    return module


def build_tests(folder: Path) -> list[Path]:
    """Compile the test programs, static."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = []
    for source in sorted(HERE.glob("[tp]_*.c")):
        program = folder / source.stem
        run("gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror",
            "-static", "-pthread", f"-I{KMOD}/include/uapi", f"-I{KMOD}/lib", "-o", program, source,
            HERE / "client.c", KMOD / "lib" / "libksm.c")
        programs.append(program)
    return programs


def guest_files(folder: Path) -> dict[str, bytes]:
    """A QEMU with its libraries and a guest for it, by their places in the test machine."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise RunnerError("qemu-system-x86_64 is not installed")
    source = HERE / "guest"
    elf, image = folder / "guest.elf", folder / "guest.bin"
    run("gcc", "-m32", "-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
        "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-nostdlib", "-static",
        "-Wall", "-Wextra", "-Werror", f"-Wl,-T,{source / 'guest.ld'}", "-Wl,--build-id=none",
        "-o", elf, source / "guest.c")
    run("objcopy", "-O", "binary", elf, image)
    files = {"guest/qemu": Path(qemu).read_bytes(), "guest/guest.bin": image.read_bytes()}
    for library in re.findall(r"(/\S+) \(0x", run("ldd", qemu)):
        files[library.lstrip("/")] = Path(library).read_bytes()
    # Debian's QEMU loads its translator when it needs it.
    for part in Path("/usr/lib").glob("*/qemu/accel-tcg-x86_64.so"):
        files[f"guest/{part.name}"] = part.read_bytes()
    return files


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive (newc) of (name, mode, content)."""
    out = io.BytesIO()

    def put(name: str, mode: int, content: bytes, inode: int) -> None:
        n_links = 2 if mode & 0o040000 else 1
        fields = (inode, mode, 0, 0, n_links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + "".join(f"{field:08x}" for field in fields).encode())
        out.write(name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4))
        out.write(content)
        out.write(b"\0" * (-out.tell() % 4))

    for inode, (name, mode, content) in enumerate(entries, 1):
        put(name, mode, content, inode)
    put("TRAILER!!!", 0, b"", 0)
    return out.getvalue()


def _kernel_modules(kernel: Kernel, names: Iterable[str]) -> dict[str, bytes]:
    """Modules with those they depend on, in the order to load them; built-in ones are left out."""
    found: dict[str, bytes] = {}
    for name in names:
        # In file names, "-" and "_" are one.
        pattern = re.sub(r"[-_]", "[-_]", name)
        for path in (kernel.root / "lib" / "modules").rglob(f"{pattern}.ko*"):
            content = path.read_bytes()
            if path.suffix == ".xz":
                content = lzma.decompress(content)
            depends = re.search(rb"\0depends=([^\0]*)\0", content)
            before = depends[1].decode().split(",") if depends and depends[1] else []
            found |= {key: value for key, value in _kernel_modules(kernel, before).items()
                      if key not in found}
            found.setdefault(name, content)
    return found


def make_initramfs(kernel: Kernel, modules: Iterable[Path], programs: Iterable[Path],
                   path: Path, files: dict[str, bytes] | None = None) -> None:
    """Write the file system of the test machine, with more `files` by their places."""
    files = files or {}

    def entries() -> Iterator[tuple[str, int, bytes]]:
        for folder in ("bin", "lib", "dev", "tests"):
            yield folder, 0o040755, b""
        yield "bin/busybox", 0o100755, get_busybox().read_bytes()
        yield "init", 0o100755, (HERE / "init").read_bytes()
        for module in modules:
            yield f"lib/{module.name}", 0o100644, module.read_bytes()
        others = _kernel_modules(kernel, KERNEL_MODULES)
        yield "lib/order", 0o100644, "".join(f"{name}.ko\n" for name in others).encode()
        for name, content in others.items():
            yield f"lib/{name}.ko", 0o100644, content
        for program in programs:
            yield f"tests/{program.name}", 0o100755, program.read_bytes()
        folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
        for folder in sorted(folders - {"lib"}):
            yield folder, 0o040755, b""
        for name, content in files.items():
            yield name, 0o100755, content

    path.write_bytes(_cpio(entries()))


# Running.


def boot(kernel: Kernel, initramfs: Path, tests: Iterable[str], *, n_cpus: int = 1,
         memory_mib: int = 768, timeout: float = 240, arguments: str = "") -> Boot:
    """Boot a machine that runs `tests` and stops; once more if it did not reach its init."""
    for _ in range(2):
        result = _boot_once(kernel, initramfs, tests, n_cpus, memory_mib, timeout, arguments)
        # QEMU 7.2 now and then loses a machine while its kernel patches itself at start.
        if "init reached" in result.tap:
            break
    return result


def _boot_once(kernel: Kernel, initramfs: Path, tests: Iterable[str], n_cpus: int, memory_mib: int,
               timeout: float, arguments: str) -> Boot:
    command_line = " ".join((
        "console=ttyS0 oops=panic panic=-1 slub_debug=FZP secretmem.enable=1 "
        "loglevel=7",
        f"planner.tests={','.join(tests)}", arguments))
    # One kernel with four levels of page tables, one with five. TCG is slow at "rep movsb", which
    # a kernel then does without.
    cpu = "qemu64" if kernel.series == "6.1" else "max,-erms,-fsrm"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        console, tap = Path(name) / "console.log", Path(name) / "tap.log"
        command: list[str | Path] = [
            # Its memory is nothing for the KSM of the machine this runs on.
            "qemu-system-x86_64", "-machine", "pc,accel=tcg,mem-merge=off", "-cpu", cpu,
            "-m", str(memory_mib), "-smp", str(n_cpus), "-kernel", kernel.image,
            "-initrd", initramfs, "-append", command_line, "-no-reboot", "-display", "none",
            "-monitor", "none", "-nic", "none", "-serial", f"file:{console}",
            "-serial", f"file:{tap}"]
        is_timed_out = False
        try:
            machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise RunnerError(f"{command[0]} is not installed") from error
        with machine:
            try:
                _, errors = machine.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                is_timed_out = True
            finally:
                # Also on Ctrl-C: no machine outlives this function.
                machine.kill()
        if not console.exists():
            raise RunnerError(f"qemu: {errors}")
        return Boot(console.read_text(errors="replace"), tap.read_text(errors="replace"),
                    is_timed_out, time.monotonic() - start)


#: Kernel messages that mean something is broken. WARN and BUG print the first two.
_COMPLAINTS = re.compile(
    r"WARNING: |BUG[: ]|kernel BUG at|Oops|Bad page|bad rss-counter|Bad rss|Kernel panic"
    r"|general protection fault|unable to handle|Call Trace|double free"
    r"|rcu: INFO|soft lockup|blocked for more than|still has objects|Objects remaining"
    r"|non-zero pgtables_bytes|list_(add|del) corruption|stack (is corrupted|guard page)|[Rr]edzone"
    r"|Poison overwritten|refcount_t:|scheduling while|sleeping function|memory leak"
    r"|ksm_planner: .*(unknown|[Uu]nsupported)")
#: A line that repeats what was asked for.
_HARMLESS = re.compile(r"[Cc]ommand line: ")


def judge(result: Boot, tests: Iterable[str], *, taint: int = TAINT) -> list[str]:
    """What is wrong with a run, a line each: empty when all is well."""
    problems = []
    tests = list(tests)
    if result.is_timed_out:
        problems.append("the machine did not stop in time")
    for line in result.console.splitlines():
        if _COMPLAINTS.search(line) and not _HARMLESS.search(line):
            problems.append(f"kernel: {line.strip()}")
    lines = result.tap.splitlines()
    for wanted in ("init reached", "swap on", "insmod ok", "rmmod ok", "done"):
        if wanted not in lines:
            problems.append(f"no '{wanted}'")
    problems += _judge_tap(lines, tests)
    taints = [line.split()[1] for line in lines if re.fullmatch(r"taint \d+", line)]
    if taints != [str(taint)]:
        problems.append(f"taint is {' '.join(taints) or 'unknown'}, expected {taint}")
    return problems


def _judge_tap(lines: list[str], tests: list[str]) -> list[str]:
    problems = []
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        if line.startswith("test "):
            current = sections.setdefault(line.removeprefix("test "), [])
        elif line.startswith("exit "):
            _, name, code = line.split()
            if code != "0":
                problems.append(f"{name}: exit code {code}")
            current = None
        elif current is not None:
            current.append(line)
    for name in tests:
        section = sections.get(name)
        if section is None:
            problems.append(f"{name}: did not run")
            continue
        n_ok = 0
        for at, line in enumerate(section):
            if line.startswith("not ok"):
                because = section[at + 1] if section[at + 1:at + 2] and section[at + 1][:1] == "#" \
                    else ""
                problems.append(f"{name}: {line} {because}".rstrip())
            n_ok += bool(re.match(r"(not )?ok \d+", line))
        plans = [line for line in section if re.fullmatch(r"1\.\.\d+", line)]
        if plans != [f"1..{n_ok}"] or not n_ok:
            problems.append(f"{name}: {n_ok} checks, plan {' '.join(plans) or 'missing'}")
    return problems


def judge_group(result: Boot, parts: dict[str, tuple[str, tuple[str, ...]]]
                ) -> dict[str, list[str]]:
    """Problems of several modules that ran in one machine, by name.

    `parts` has what each is called in the output, and its tests. What is wrong with the machine as
    a whole is a problem of each: the kernel must be as good for the last as for the first.
    """
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in result.tap.splitlines():
        if line.startswith("module "):
            current = sections.setdefault(line.removeprefix("module "), [])
        current.append(line)
    damage = [f"kernel: {line.strip()}" for line in result.console.splitlines()
              if _COMPLAINTS.search(line) and not _HARMLESS.search(line)]
    if result.is_timed_out or "done" not in result.tap.splitlines():
        damage.append("the machine did not stop in time")
    problems = {}
    for name, (part, tests) in parts.items():
        lines = sections.get(part, [])
        missing = [f"no '{wanted}'" for wanted in ("insmod ok", "rmmod ok") if wanted not in lines]
        problems[name] = damage + missing if damage or missing else _judge_tap(lines, list(tests))
    return problems


def machines(tests: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Groups of tests that share a machine."""
    tests = tuple(tests)
    for group in (FUNCTIONAL, STRESS, PARTITION, PARTITION_STRESS, PARTITION_GUEST):
        names = tuple(name for name in group if name in tests)
        if names:
            yield names


class Bench:
    """Builds once what several machines need, in a folder; may be used by several threads."""

    def __init__(self, folder: Path, *, logs: Path | None = None, verbose: bool = False) -> None:
        self.folder = folder
        self.logs = logs
        self.verbose = verbose
        self._lock = threading.Lock()
        self._kernels: dict[str, Kernel] = {}
        self._modules: dict[str, Path] = {}
        self._programs: list[Path] = []

    def _get(self, series: str) -> tuple[Kernel, Path, list[Path]]:
        """A kernel, the module for it, and the test programs."""
        with self._lock:
            if series not in self._kernels:
                kernel = get_kernel(series)
                self._modules[series] = build_module(kernel, self.folder / f"module-{series}")
                self._kernels[series] = kernel
            if not self._programs:
                self._programs = build_tests(self.folder / "programs")
            return self._kernels[series], self._modules[series], self._programs

    def _boot(self, kernel: Kernel, name: str, modules: list[Path], tests: Iterable[str],
              programs: list[Path], timeout: float, arguments: str = "") -> Boot:
        """Boot a machine with what it needs; `tests` are run with ksm_planner.ko."""
        tests = tuple(tests)
        initramfs = self.folder / f"initramfs-{kernel.series}-{name}"
        make_initramfs(kernel, modules, programs, initramfs,
                       self._guest() if tests == PARTITION_GUEST else None)
        is_stress = tests in (STRESS, PARTITION_STRESS)
        result = boot(kernel, initramfs, tests, n_cpus=2 if is_stress else 1,
                      memory_mib=512 if is_stress else 768, timeout=timeout, arguments=arguments)
        initramfs.unlink()
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.logs / f"{kernel.series}-{name}.console").write_text(result.console)
            (self.logs / f"{kernel.series}-{name}.tap").write_text(result.tap)
        if self.verbose:
            print(result.tap, end="")
        n_ok = sum(line.startswith("ok ") for line in result.tap.splitlines())
        print(f"{kernel.release}: {name}: {n_ok} ok, {result.seconds:.1f} s", flush=True)
        return result

    def check(self, series: str, sources: Path = KMOD) -> None:
        """Compile again, with the static checker; RunnerError for what it or the compiler says."""
        kernel, _, _ = self._get(series)
        with self._lock:
            build_module(kernel, self.folder / f"module-{series}", sources, sparse=True,
                         to=self.folder / "checked")

    def _guest(self) -> dict[str, bytes]:
        with self._lock:
            return guest_files(self.folder)

    def suite(self, series: str, tests: tuple[str, ...]) -> list[str]:
        """Problems of the module as it is."""
        kernel, module, programs = self._get(series)
        needed = [path for path in programs if path.name in tests]
        return judge(self._boot(kernel, tests[0], [module], tests, needed, 300), tests)

    def dump_only(self, series: str) -> list[str]:
        """Problems of a module without Selective KSM."""
        kernel, _, programs = self._get(series)
        module = build_module(kernel, self.folder / f"dump-only-{series}",
                              options=("CONFIG_SELECTIVE_KSM=n",))
        needed = [path for path in programs if path.name in DUMP_ONLY]
        return judge(self._boot(kernel, "dump-only", [module], DUMP_ONLY, needed, 120), DUMP_ONLY)

    def seeded(self, series: str, group: Sequence[faults.Fault]) -> dict[str, list[str]]:
        """Problems of the module with each fault of a group that can share a machine, by name."""
        kernel, _, programs = self._get(series)
        # In order of files: what is as it was for the last one is not compiled again.
        modules = {}
        for fault in sorted(group, key=lambda fault: fault.file):
            name = f"fault-{FAULTS.index(fault)}"
            with self._lock:
                modules[fault] = build_module(
                    kernel, self.folder / f"module-{series}", fault=fault,
                    to=self.folder / f"{series}-{name}")
        wanted = {test for fault in group for test in fault.tests}
        needed = [path for path in programs if path.name in wanted]
        if len(group) == 1:
            [fault] = group
            result = self._boot(kernel, modules[fault].parent.name, [modules[fault]], fault.tests,
                                needed, 120)
            return {fault.name: judge(result, fault.tests)}
        renamed = []
        for fault in group:
            renamed.append(modules[fault].with_name(f"{modules[fault].parent.name}.ko"))
            shutil.copyfile(modules[fault], renamed[-1])
        steps = ",".join(f"{path.stem}:{'+'.join(fault.tests)}"
                         for path, fault in zip(renamed, group, strict=True))
        result = self._boot(kernel, f"{renamed[0].stem}-and-others", renamed, (), needed, 240,
                            f"planner.faults={steps} TAP_STOP=1")
        return judge_group(result, {fault.name: (path.stem, fault.tests)
                                    for path, fault in zip(renamed, group, strict=True)})

    def breakage(self, series: str, *how: str) -> list[str]:
        """Problems of a machine that is broken on purpose in some ways, or not ("not")."""
        kernel, module, _ = self._get(series)
        with self._lock:
            broken = build_module(kernel, self.folder / f"broken-{series}", HERE / "broken")
        return judge(self._boot(kernel, f"broken-{how[0]}", [module, broken], (), [],
                                HANG_SECONDS if "hang" in how else 120,
                                f"planner.break={','.join(how)}"), ())


@dataclass(frozen=True)
class Job:
    """Work that finds problems, by name; it has a result for each of its names."""

    names: tuple[str, ...]
    work: Callable[[], dict[str, list[str]]]


def in_parallel(jobs: Iterable[Job], n_workers: int = 2) -> dict[str, list[str]]:
    """Results of jobs by name; an exception becomes a problem."""
    def guarded(job: Job) -> dict[str, list[str]]:
        try:
            return job.work()
        except (RunnerError, OSError, ValueError) as error:
            return {name: [f"runner: {error}"] for name in job.names}

    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        return {name: problems for result in pool.map(guarded, jobs)
                for name, problems in result.items()}


def suite_jobs(bench: Bench, series: Iterable[str], tests: Iterable[str]) -> list[Job]:
    """A job for each machine of each kernel."""
    def suite(name: str, kernel: str, group: tuple[str, ...]) -> dict[str, list[str]]:
        return {name: bench.suite(kernel, group)}

    def dump_only(name: str, kernel: str) -> dict[str, list[str]]:
        return {name: bench.dump_only(kernel)}

    tests, series = tuple(tests), tuple(series)
    jobs = []
    for group in reversed(list(machines(tests))):
        for kernel in series:
            name = f"{kernel}: {group[0]}"
            jobs.append(Job((name,), functools.partial(suite, name, kernel, group)))
    if set(tests) >= set(ALL):
        for kernel in series:
            name = f"{kernel}: dump only"
            jobs.append(Job((name,), functools.partial(dump_only, name, kernel)))
    return jobs


def fault_groups(n_groups: int = 2) -> list[list[faults.Fault]]:
    """Faults by machine: what breaks the kernel has one of its own, what spoils it comes last."""
    whole = [fault for fault in FAULTS if fault.leaves == "whole"]
    spent = [fault for fault in FAULTS if fault.leaves == "spent"]
    shared = [whole[i::n_groups] + spent[i::n_groups] for i in range(n_groups)]
    return shared + [[fault] for fault in FAULTS if fault.leaves == "broken"]


def fault_jobs(bench: Bench, series: str) -> list[Job]:
    """Jobs for all faults, whose problem is that they were not caught; and so for breakages."""
    def caught(group: list[faults.Fault]) -> dict[str, list[str]]:
        found = bench.seeded(series, group)
        return {f"fault: {fault.name}":
                [] if fault.is_caught(found[fault.name]) and "no 'insmod ok'" not in
                found[fault.name] else [f"not caught: {found[fault.name][:3]}"] for fault in group}

    def noticed(group: tuple[str, ...]) -> dict[str, list[str]]:
        problems = bench.breakage(series, *group)
        return {f"broken: {how}": [] if any(re.search(faults.BREAKAGES[how], problem)
                                            for problem in problems)
                else [f"not noticed: {problems[:3]}"] for how in group}

    def unbroken() -> dict[str, list[str]]:
        return {"not broken": bench.breakage(series, "not")}

    # The long ones first; the hanging one waits, mostly.
    groups = sorted(faults.BREAKAGE_GROUPS, key=lambda group: "hang" not in group)
    jobs = [Job(tuple(f"fault: {fault.name}" for fault in group), functools.partial(caught, group))
            for group in fault_groups()]
    jobs[2:2] = [Job(tuple(f"broken: {how}" for how in group), functools.partial(noticed, group))
                 for group in groups]
    return [*jobs, Job(("not broken",), unbroken)]


@contextlib.contextmanager
def build_folder(name: str) -> Iterator[Path]:
    """A folder for one run's build, gone afterwards."""
    parent = cache_folder() / "build"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as folder:
        yield Path(folder)


def main() -> int:
    """Command line; the exit code is 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description="Tests of the kernel module in QEMU.")
    parser.add_argument("series", nargs="+", choices=sorted(SERIES))
    parser.add_argument("--tests", default=",".join(ALL),
                        help="programs, comma-separated (default: all)")
    parser.add_argument("--faults", action="store_true",
                        help="seeded faults instead: each must be caught")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--sparse", action="store_true", help="build and check")
    parser.add_argument("--jobs", type=int, default=2, help="machines at a time (default: 2)")
    parser.add_argument("--logs", type=Path, help="folder for what the machines print")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    results: dict[str, list[str]] = {}
    with build_folder("run") as folder:
        if options.build_only or options.sparse:
            for series in options.series:
                try:
                    kernel = get_kernel(series)
                    build_module(kernel, folder / series, sparse=options.sparse)
                    print(f"{kernel.release}: built")
                except RunnerError as error:
                    results[series] = [str(error)]
        else:
            bench = Bench(folder, logs=options.logs, verbose=options.verbose)
            if options.faults:
                for series in options.series:
                    results |= {f"{series}: {name}": problems for name, problems in
                                in_parallel(fault_jobs(bench, series), options.jobs).items()}
            else:
                results = in_parallel(
                    suite_jobs(bench, options.series, options.tests.split(",")), options.jobs)
    for name, problems in results.items():
        for problem in problems:
            print(f"FAIL {name}: {problem}")
    print(f"{sum(map(bool, results.values()))} of {len(results)} failed" if results else "done")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
