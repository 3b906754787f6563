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
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faults
import partition_faults

HERE = Path(__file__).resolve().parent
KMOD = HERE.parent

#: Kernel series and the package that depends on its newest headers.
SERIES = {"6.1": ("linux-headers-cloud-amd64", "linux-headers-6.1-cloud-amd64"),
          "6.12": ("linux-headers-6.12-cloud-amd64", "linux-headers-cloud-amd64")}
#: What an out-of-tree (4096), unsigned (8192) module leaves, and nothing else.
TAINT = 12288
#: Modules of the kernel's own that the tests use, where it has them as modules.
KERNEL_MODULES = ("lzo-rle", "zram")

#: Programs, by the machine they run in. A machine is booted once.
FUNCTIONAL = ("t_content", "t_undisturbed", "t_abi", "t_races", "t_leak", "t_key", "t_unload",
              "t_lockdown")
STRESS = ("t_stress",)
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
class Kernel:
    """An unpacked Debian kernel with its headers."""

    series: str
    release: str
    root: Path

    @property
    def headers(self) -> Path:
        """The folder to build modules against."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    @property
    def image(self) -> Path:
        """The kernel to boot."""
        return self.root / "boot" / f"vmlinuz-{self.release}"


@dataclass(frozen=True)
class Boot:
    """What a machine left: kernel messages, output of the tests, and whether it was cut off."""

    console: str
    tap: str
    is_timed_out: bool
    seconds: float


class RunnerError(Exception):
    """Something the runner needs is missing or failed."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; RunnerError with the output when it fails."""
    try:
        done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except FileNotFoundError as error:
        raise RunnerError(f"{command[0]} is not installed") from error
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise RunnerError(f"{words}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def cache_folder() -> Path:
    """Where packages and builds are kept; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "ksm-planner" / "kmod"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Packages.


def _depends(package: str) -> list[str]:
    try:
        text = run("apt-cache", "depends", package)
    except RunnerError:
        return []
    return re.findall(r"^ *\|?Depends: (\S+)$", text, re.MULTILINE)


def _newest_headers(series: str) -> str | None:
    """The header package of the newest cloud kernel of a series that apt offers."""
    for package in SERIES[series]:
        for name in _depends(package):
            if name.startswith(f"linux-headers-{series}."):
                return name
    return None


def _unpack(packages: Iterable[str], root: Path) -> None:
    """Download packages and unpack them into a new folder, all or nothing."""
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for package in packages:
        run("apt-get", "download", package, cwd=part)
    for file in sorted(part.glob("*.deb")):
        run("dpkg", "-x", file, part)
        file.unlink()
    part.rename(root)


def get_kernel(series: str) -> Kernel:
    """The newest kernel of a series, downloaded if it is not in the cache."""
    folder = cache_folder()
    headers = _newest_headers(series)
    if headers is None:
        cached = sorted(folder.glob(f"linux-{series}.*"), key=lambda path: path.stat().st_mtime)
        if not cached:
            raise RunnerError(f"apt offers no cloud kernel {series}: run apt-get update, or add "
                              "the distribution that has it")
        release = cached[-1].name.removeprefix("linux-")
        return Kernel(series, release, cached[-1])
    release = headers.removeprefix("linux-headers-")
    root = folder / f"linux-{release}"
    kernel = Kernel(series, release, root)
    if not root.exists():
        wanted = [headers, f"linux-image-{release}"]
        wanted += [name for name in _depends(headers)
                   if re.fullmatch(r"linux-headers-.*-common|linux-kbuild-.*", name)]
        _unpack(wanted, root)
        # The headers name their other half by its place after installation.
        makefile = kernel.headers / "Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    return kernel


def get_busybox() -> Path:
    """A static busybox."""
    root = cache_folder() / "busybox"
    if not root.exists():
        _unpack(["busybox-static"], root)
    return root / "bin" / "busybox"


def get_sparse() -> Path:
    """The static checker."""
    installed = shutil.which("sparse")
    if installed:
        return Path(installed)
    root = cache_folder() / "sparse"
    if not root.exists():
        _unpack(["sparse"], root)
    return root / "usr" / "bin" / "sparse"


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
                 fault: faults.Fault | None = None, options: tuple[str, ...] = ()) -> Path:
    """Compile the module of `sources` for a kernel in `folder`, with warnings as errors.

    The folder may be one where it was compiled before. With `sparse`, raise RunnerError for what
    the checker says of these sources.
    """
    _copy_sources(sources, folder, fault)
    # The kernel's type information needs one more tool, and the module works without it.
    command: list[str | Path] = ["make", "-C", kernel.headers, f"M={folder}",
                                 "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules", *options]
    if sparse:
        command += ["C=2", f"CHECK={get_sparse()}"]
    output = run(*command)
    if sparse:
        findings = [line for line in output.splitlines() if line.startswith(f"{folder}/")]
        if findings:
            raise RunnerError("sparse:\n" + "\n".join(findings))
    [built] = folder.glob("*.ko")
    module = folder / "stripped" / built.name
    module.parent.mkdir(exist_ok=True)
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
    # One kernel with four levels of page tables, one with five.
    cpu = "qemu64" if kernel.series == "6.1" else "max"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        console, tap = Path(name) / "console.log", Path(name) / "tap.log"
        command: list[str | Path] = [
            "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", cpu, "-m", str(memory_mib),
            "-smp", str(n_cpus), "-kernel", kernel.image, "-initrd", initramfs,
            "-append", command_line, "-no-reboot", "-display", "none", "-monitor", "none",
            "-nic", "none", "-serial", f"file:{console}", "-serial", f"file:{tap}"]
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

    def _boot(self, kernel: Kernel, name: str, modules: list[Path], programs: list[Path],
              tests: tuple[str, ...], timeout: float, arguments: str = "") -> list[str]:
        initramfs = self.folder / f"initramfs-{kernel.series}-{name}"
        make_initramfs(kernel, modules, [path for path in programs if path.name in tests],
                       initramfs, self._guest() if tests == PARTITION_GUEST else None)
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
        return judge(result, tests)

    def _guest(self) -> dict[str, bytes]:
        with self._lock:
            return guest_files(self.folder)

    def suite(self, series: str, tests: tuple[str, ...]) -> list[str]:
        """Problems of the module as it is."""
        kernel, module, programs = self._get(series)
        return self._boot(kernel, tests[0], [module], programs, tests, 300)

    def dump_only(self, series: str) -> list[str]:
        """Problems of a module without Selective KSM."""
        kernel, _, programs = self._get(series)
        module = build_module(kernel, self.folder / f"dump-only-{series}",
                              options=("CONFIG_SELECTIVE_KSM=n",))
        return self._boot(kernel, "dump-only", [module], programs, DUMP_ONLY, 120)

    def fault(self, series: str, fault: faults.Fault) -> list[str]:
        """Problems of the module with a fault: empty means that it was not caught."""
        kernel, _, programs = self._get(series)
        name = re.sub(r"\W+", "-", fault.name)
        # A folder for each thread: only the file with the fault is compiled again.
        folder = self.folder / f"faulty-{series}-{threading.get_ident()}"
        module = build_module(kernel, folder, fault=fault)
        return self._boot(kernel, name, [module], programs, fault.tests, 60)

    def breakage(self, series: str, how: str) -> list[str]:
        """Problems of a machine that is broken on purpose, or not ("not")."""
        kernel, module, _ = self._get(series)
        with self._lock:
            broken = build_module(kernel, self.folder / f"broken-{series}", HERE / "broken")
        return self._boot(kernel, f"broken-{how}", [module, broken], [], (),
                          15 if how == "hang" else 60, f"planner.break={how}")


def in_parallel(jobs: dict[str, Callable[[], list[str]]], n_workers: int = 2
                ) -> dict[str, list[str]]:
    """Results of jobs by name; an exception becomes a problem."""
    def guarded(job: Callable[[], list[str]]) -> list[str]:
        try:
            return job()
        except (RunnerError, OSError, ValueError) as error:
            return [f"runner: {error}"]

    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        futures = {name: pool.submit(guarded, job) for name, job in jobs.items()}
        return {name: future.result() for name, future in futures.items()}


def suite_jobs(bench: Bench, series: Iterable[str], tests: Iterable[str]
               ) -> dict[str, Callable[[], list[str]]]:
    """A job for each machine of each kernel."""
    tests = tuple(tests)
    series = tuple(series)
    jobs = {f"{name}: {group[0]}": functools.partial(bench.suite, name, group)
            for group in reversed(list(machines(tests))) for name in series}
    if set(tests) >= set(ALL):
        jobs |= {f"{name}: dump only": functools.partial(bench.dump_only, name)
                 for name in series}
    return jobs


def fault_jobs(bench: Bench, series: str) -> dict[str, Callable[[], list[str]]]:
    """A job for each fault, whose problem is that it was not caught; and so for each breakage."""
    def caught(fault: faults.Fault) -> list[str]:
        problems = bench.fault(series, fault)
        if any(problem.startswith("runner:") for problem in problems):
            return problems
        return [] if fault.is_caught(problems) else [f"not caught: {problems[:3]}"]

    def noticed(how: str, pattern: str) -> list[str]:
        problems = bench.breakage(series, how)
        is_noticed = any(re.search(pattern, problem) for problem in problems)
        return [] if is_noticed else [f"not noticed: {problems[:3]}"]

    jobs: dict[str, Callable[[], list[str]]] = {}
    for fault in FAULTS:
        jobs[f"fault: {fault.name}"] = functools.partial(caught, fault)
    jobs["not broken"] = functools.partial(bench.breakage, series, "not")
    for how, pattern in faults.BREAKAGES.items():
        jobs[f"broken: {how}"] = functools.partial(noticed, how, pattern)
    return jobs


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
            jobs: dict[str, Callable[[], list[str]]] = {}
            if options.faults:
                for series in options.series:
                    jobs |= {f"{series}: {name}": job
                             for name, job in fault_jobs(bench, series).items()}
            else:
                jobs = suite_jobs(bench, options.series, options.tests.split(","))
            results = in_parallel(jobs, options.jobs)
    for name, problems in results.items():
        for problem in problems:
            print(f"FAIL {name}: {problem}")
    print(f"{sum(map(bool, results.values()))} of {len(results)} failed" if results else "done")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
