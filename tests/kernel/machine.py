"""A Debian kernel in QEMU with this environment's Python, the package and the module inside.

    a disk image: the interpreter and the libraries the package needs    kept from run to run
    an initramfs: busybox, drivers, ksm_planner.ko, planner/ and tests/
    QEMU (TCG, no KVM) -> what the program in it prints, and the kernel's messages

Kernels, headers and busybox come from kmod/tests/run.py, and so does the place for what is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent.parent
#: What a capture imports, with what that needs.
DISTRIBUTIONS = ("numpy", "numba", "pyarrow", "typer", "xxhash")
#: Drivers that Debian's kernels have as modules (or built in: then nothing is loaded).
DRIVERS = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "lzo-rle", "zram")
#: Without AVX: with QEMU 7.2's, numpy's argsort of 64-bit integers is wrong. And without "rep
#: movsb", at which TCG is slow.
_CPU = "max,-avx,-avx2,-f16c,-fma,-erms,-fsrm"
_LEFT_OUT = re.compile(r"/(test|tests|idlelib|lib2to3|ensurepip|turtledemo|config-[^/]*)(/|$)|\.a$")

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
$b stty -onlcr -F /dev/ttyS1
for module in $($b cat /lib/order); do $b insmod /lib/$module; done
$b mount -t ext4 /dev/vda /root || echo "no disk"
$b echo 256M >/sys/block/zram0/disksize
$b mkswap /dev/zram0 >/dev/null && $b swapon /dev/zram0
$b insmod /lib/ksm_planner.ko && echo "insmod ok"
for folder in proc sys dev tmp bin SITE; do $b mkdir -p /root/$folder; done
$b cp /bin/busybox /root/bin/busybox
$b cp /run-program /root/run-program
$b cp -a /site/. /root/SITE
$b mount -t proc proc /root/proc
$b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev
$b mkdir -p /root/dev/shm && $b mount -t tmpfs shm /root/dev/shm
$b chroot /root /bin/busybox sh /run-program
echo "exit $?"
$b rmmod ksm_planner && echo "rmmod ok"
echo "taint $($b cat /proc/sys/kernel/tainted)"
echo "done"
$b poweroff -f
"""


def load_runner() -> ModuleType:
    """kmod/tests/run.py as a module."""
    folder = str(REPOSITORY / "kmod" / "tests")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("run")
    finally:
        sys.path.remove(folder)


@dataclass(frozen=True)
class Outcome:
    """What a machine printed (the program's output) and its kernel's messages."""

    output: str
    console: str
    seconds: float


def _required(names: tuple[str, ...]) -> list[importlib.metadata.Distribution]:
    """Distributions and what they need, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            # Needed on other systems or Python versions only.
            continue
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                queue.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    return list(found.values())


def _python_files() -> set[Path]:
    """The interpreter, its standard library, and the distributions."""
    standard = Path(sysconfig.get_path("stdlib"))
    files = {path for path in standard.rglob("*")
             if "site-packages" not in path.parts and "dist-packages" not in path.parts}
    files.add(Path(sys.executable).resolve())
    for distribution in _required(DISTRIBUTIONS):
        for file in distribution.files or ():
            files.add(Path(str(distribution.locate_file(file))))
    return {path for path in files if path.is_file() and not _LEFT_OUT.search(str(path))}


def _libraries(files: set[Path]) -> set[Path]:
    """Shared libraries that these files need, and the loader."""
    interpreter = Path(sys.executable).resolve()
    elf = [str(path) for path in files if ".so" in path.name or path == interpreter]
    output = subprocess.run(["ldd", *elf], capture_output=True, text=True, check=False).stdout
    found = {Path(name) for name in re.findall(r"(?:=> |^\t)(/\S+) \(0x", output, re.MULTILINE)}
    return found | {Path(name).resolve() for name in found}


@contextlib.contextmanager
def _made_once(path: Path) -> Iterator[Path | None]:
    """A folder to make `path` in, unless it is there; others of its kind are removed."""
    with (path.parent / "lock").open("w") as lock:
        # Two runs at once make it once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        for old in path.parent.glob(path.name.rpartition("-")[0] + "-*"):
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield Path(folder)


def python_disk() -> Path:
    """An ext4 image with this Python; its files stand where they stand here."""
    names = [f"{d.name} {d.version}" for d in _required(DISTRIBUTIONS)]
    digest = hashlib.sha256(repr((sys.version, sys.prefix, sorted(names))).encode()).hexdigest()
    path: Path = load_runner().cache_folder() / f"python-{digest[:12]}"
    with _made_once(path) as folder:
        if folder is not None:
            files = _python_files()
            files |= _libraries(files)
            tree = folder / "tree"
            for file in sorted(files):
                place = tree / str(file)[1:]
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
            used = sum(file.stat().st_size for file in files)
            image = folder / "image"
            with image.open("wb") as stream:
                stream.truncate(used * 5 // 4 + (64 << 20))
            subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, image],
                           check=True, capture_output=True)
            image.rename(path)
    return path


#: In the machine and where kernels are compiled for it: its processor is not this one.
_NUMBA = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
_COMPILE = """
import numpy as np
from planner.capture.pages import FrameIds
from planner.kernels.pagehash import PAGE_BYTES, hash_pages, key_words
FrameIds().of(np.ones(3000, np.uint64), np.ones(3000, np.uint64))
hash_pages(np.zeros((1, PAGE_BYTES), np.uint8), key_words(bytes(16)))
"""


def package_site() -> Path:
    """A copy of planner/ and tests/ with its kernels compiled for the machine.

    Compiled code is found again by the path, size and time of its source: the copy has the same
    path in the machine, and its files are of 1970 in both.
    """
    files = {file.relative_to(REPOSITORY): file.read_bytes() for name in ("planner", "tests")
             for file in sorted((REPOSITORY / name).rglob("*.py"))}
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    path: Path = load_runner().cache_folder() / f"site-{digest[:12]}"
    with _made_once(path) as folder:
        if folder is not None:
            for name, content in files.items():
                place = path / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
                os.utime(place, (0, 0))
            try:
                subprocess.run([sys.executable, "-c", _COMPILE], check=True, cwd=path, env={
                    **os.environ, **_NUMBA, "NUMBA_CACHE_DIR": str(path / "numba"),
                    "PYTHONPATH": str(path)})
            except BaseException:
                shutil.rmtree(path)
                raise
    return path


def program(arguments: str) -> str:
    """A shell script that runs Python in the machine with the package found."""
    site = package_site()
    settings = {"HOME": "/tmp", "PYTHONPATH": f"{site}:{sysconfig.get_path('purelib')}",
                "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": f"{site}/numba", **_NUMBA}
    lines = [f"export {name}='{value}'" for name, value in settings.items()]
    return "\n".join([*lines, f"cd {site}",
                      f"exec {Path(sys.executable).resolve()} {arguments}"]) + "\n"


def run_machine(series: str, script: str, folder: Path, *, memory_mib: int = 1536,
                timeout: float = 300) -> Outcome:
    """Build the module for a kernel, boot it, run a shell script, and return what it printed."""
    runner = load_runner()
    kernel = runner.get_kernel(series)
    module = runner.build_module(kernel, folder / "module")
    drivers = runner._kernel_modules(kernel, DRIVERS)
    site = package_site()
    entries = [(name, 0o040755, b"") for name in ("bin", "lib", "dev", "site")]
    entries += [("bin/busybox", 0o100755, runner.get_busybox().read_bytes()),
                ("init", 0o100755, INIT.replace("SITE", str(site)[1:]).encode()),
                ("run-program", 0o100755, script.encode()),
                ("lib/ksm_planner.ko", 0o100644, module.read_bytes()),
                ("lib/order", 0o100644, "".join(f"{name}.ko\n" for name in drivers).encode())]
    entries += [(f"lib/{name}.ko", 0o100644, content) for name, content in drivers.items()]
    for path in sorted(site.rglob("*")):
        name = f"site/{path.relative_to(site)}"
        entries.append((name, 0o040755, b"") if path.is_dir()
                       else (name, 0o100644, path.read_bytes()))
    initramfs = folder / "initramfs"
    initramfs.write_bytes(runner._cpio(entries))
    console, output = folder / "console.log", folder / "output.log"
    started = time.monotonic()
    machine = subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "pc,accel=tcg,mem-merge=off", "-cpu", _CPU,
         "-m", str(memory_mib), "-smp", "1", "-kernel", kernel.image, "-initrd", initramfs,
         "-append", "console=ttyS0 oops=panic panic=-1 transparent_hugepage=madvise loglevel=7",
         "-drive", f"file={python_disk()},format=raw,if=virtio,snapshot=on", "-no-reboot",
         "-display", "none", "-monitor", "none", "-nic", "none", "-serial", f"file:{console}",
         "-serial", f"file:{output}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = machine.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        errors = "timed out"
    finally:
        # Also on Ctrl-C: no machine outlives this function.
        machine.kill()
        machine.wait()
    assert console.exists(), errors
    return Outcome(output.read_text(errors="replace"), console.read_text(errors="replace"),
                   time.monotonic() - started)
