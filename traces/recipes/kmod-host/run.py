#!/usr/bin/env python3
"""Boot a host in QEMU, load ksm_planner in it, run services in cgroups, capture, bring it out.

    run.py WORK TRACE        build what is missing under WORK, boot, capture into the folder TRACE

The services are those of ../container-host, the capture is `planner capture --source kmod`, both
in the machine. Emulated (TCG, no KVM needed); nothing is loaded into the kernel this runs on.
Needs Debian 12, root (for the Debian bootstrap) and the packages in PACKAGES. See README.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
SUITE = "bookworm"
#: Debian packages of the machine that builds and runs the host, with one command of each.
PACKAGES = {"qemu-system-x86": "qemu-system-x86_64", "mmdebstrap": "mmdebstrap",
            "e2fsprogs": "mke2fs", "gcc": "gcc", "make": "make"}
#: Debian packages of the host: what ../container-host needs, and tools.
INSIDE = ["iproute2", "procps", "redis-server", "redis-tools", "nginx-light", "apache2-bin",
          "nodejs", "default-jdk-headless", "python3", "python3-flask", "gunicorn",
          "python3-psycopg2", "python3-redis", "postgresql"]
SERIES = "6.12"
DRIVERS = ("virtio_pci", "virtio_blk", "ext4")
#: Without AVX: with QEMU 7.2's, numpy's argsort of 64-bit integers is wrong.
CPU = "max,-avx,-avx2,-f16c,-fma"
OUT_BYTES = 64 << 20
#: Compiled once while the image is built, for the processor that QEMU shows.
NUMBA = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
         "NUMBA_CACHE_DIR": "/opt/planner-numba"}
COMPILE = """
import numpy as np
from planner.capture.pages import FrameIds
from planner.kernels.pagehash import key_words
FrameIds().of(np.ones(3000, np.uint64), np.ones(3000, np.uint64))
key_words(bytes(16))
"""
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /lib/order); do $b insmod /lib/$module; done
$b mount -t ext4 /dev/vda /root
$b cp -a /recipe/. /root/
$b cp /bin/busybox /root/opt/recipe/
$b insmod /root/opt/recipe/ksm_planner.ko
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
exec $b switch_root /root /bin/sh /opt/recipe/init
"""


class RecipeError(Exception):
    """Something that whoever runs the recipe has to know or do."""


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, flush=True)


def call(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command; RecipeError with the end of its messages if it fails."""
    done = subprocess.run([str(word) for word in command], env=env, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RecipeError(f"{command[0]} ended with {done.returncode}:\n{tail}")


def module_runner() -> ModuleType:
    """kmod/tests/run.py: fetches kernels, builds the module."""
    sys.path.insert(0, str(REPOSITORY / "kmod" / "tests"))
    return importlib.import_module("run")


def apt_sources() -> str:
    for name in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if Path(name).is_file():
            return name
    raise RecipeError("no Debian source in apt's configuration: give --mirror")


def install_planner(root: Path) -> None:
    """The package of this checkout and what it needs, below /opt/planner."""
    target = root / "opt" / "planner"
    wheels = root / "opt" / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "-w", wheels, REPOSITORY)
    needs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    call(*pip, "install", "--target", target, "--no-deps", *wheels.glob("*.whl"))
    call(*pip, "install", "--target", target, "--python-version", "3.11", "--only-binary=:all:",
         "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64",
         "--platform", "any", *needs)
    shutil.rmtree(wheels)
    # Compiled kernels are found again by the time of their source, and the image keeps seconds.
    for path in (target / "planner").rglob("*.py"):
        os.utime(path, (0, 0))
    call("chroot", root, "/usr/bin/env", "PYTHONPATH=/opt/planner",
         *(f"{name}={value}" for name, value in NUMBA.items()), "python3", "-c", COMPILE)


def build_image(work: Path, mirror: str | None) -> Path:
    """The host's disk: Debian with the services' programs and the package."""
    image = work / "host.ext4"
    if image.exists():
        return image
    started = time.monotonic()
    root = work / "root"
    shutil.rmtree(root, ignore_errors=True)
    drop = [f"--dpkgopt=path-exclude=/usr/share/{name}/*"
            for name in ("doc", "man", "locale", "info")]
    call("mmdebstrap", "--variant=minbase", f"--include={','.join(INSIDE)}", *drop,
         # Java's packages link manual pages into this folder.
         "--essential-hook=mkdir -p $1/usr/share/man/man1", "--skip=output/dev",
         SUITE, root, mirror or apt_sources())
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    shutil.rmtree(root / "etc/apt/sources.list.d", ignore_errors=True)
    install_planner(root)
    new = image.with_suffix(".new")
    new.unlink(missing_ok=True)
    # -d fills the file system from the folder: nothing is mounted.
    call("mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", root, new, "4G")
    shutil.rmtree(root)
    new.rename(image)
    say(f"image: {image.stat().st_blocks * 512 >> 20} MiB, {time.monotonic() - started:.0f} s")
    return image


def recipe_files(options: argparse.Namespace) -> list[tuple[str, int, bytes]]:
    """What changes from run to run: an archive that the host unpacks over its disk."""
    files = [("opt/recipe/init", 0o755, (HERE / "guest" / "init").read_bytes()),
             ("opt/recipe/host.py", 0o644, (HERE / "guest" / "host.py").read_bytes()),
             ("opt/recipe/site.key", 0o600, options.key.read_bytes())]
    settings = "".join(f"{name}={getattr(options, name)}\n"
                       for name in ("snapshots", "every", "rate", "settle"))
    settings += "".join(f"{name}={value}\n" for name, value in NUMBA.items())
    files.append(("opt/recipe/settings", 0o644, settings.encode()))
    source = HERE.parent / "container-host"
    files += [(f"opt/recipe/container-host/{path.relative_to(source)}", 0o644, path.read_bytes())
              for path in sorted(source.rglob("*")) if path.is_file()]
    return files


def make_initrd(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Drivers, the module and the recipe's files; returns the kernel and the archive."""
    runner = module_runner()
    kernel = runner.get_kernel(SERIES)
    module = runner.build_module(kernel, work / "module")
    drivers = runner._kernel_modules(kernel, DRIVERS)
    recipe = [*recipe_files(options), ("opt/recipe/ksm_planner.ko", 0o644, module.read_bytes())]
    folders = {str(parent) for name, _, _ in recipe for parent in Path("recipe", name).parents}
    entries = [(name, 0o040755, b"") for name in ("bin", "lib", "dev", "proc", "sys", "root")]
    entries += [(name, 0o040755, b"") for name in sorted(folders - {"."})]
    entries += [("bin/busybox", 0o100755, runner.get_busybox().read_bytes()),
                ("init", 0o100755, INIT.encode()),
                ("lib/order", 0o100644, "".join(f"{name}.ko\n" for name in drivers).encode())]
    entries += [(f"lib/{name}.ko", 0o100644, content) for name, content in drivers.items()]
    entries += [(f"recipe/{name}", 0o100000 | mode, content) for name, mode, content in recipe]
    initrd = work / "initrd"
    initrd.write_bytes(runner._cpio(entries))
    return kernel.image, initrd


def boot(work: Path, image: Path, options: argparse.Namespace) -> Path:
    """Run the machine to its end; returns the disk that it wrote the trace's archive to."""
    kernel, initrd = make_initrd(work, options)
    out, log = work / "out.tar", work / "serial.log"
    with out.open("wb") as stream:
        stream.truncate(OUT_BYTES)
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", CPU,
               "-m", str(options.memory), "-smp", str(options.cpus), "-kernel", kernel,
               "-initrd", initrd, "-append",
               "console=ttyS0 panic=-1 oops=panic transparent_hugepage=madvise quiet",
               "-drive", f"file={image},format=raw,if=virtio,snapshot=on",
               "-drive", f"file={out},format=raw,if=virtio", "-no-reboot", "-display", "none",
               "-monitor", "none", "-nic", "none", "-serial", f"file:{log}"]
    log.unlink(missing_ok=True)
    started = time.monotonic()
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        shown = 0
        while machine.poll() is None:
            if time.monotonic() - started > options.timeout:
                raise RecipeError(f"not finished after {options.timeout} s, see {log}")
            time.sleep(2)
            lines = [line for line in log.read_text(errors="replace").splitlines()
                     if "RECIPE " in line] if log.exists() else []
            for line in lines[shown:]:
                say(line.partition("RECIPE ")[2])
            shown = len(lines)
    finally:
        machine.kill()
        machine.wait()
    if not re.search(r"^RECIPE done", log.read_text(errors="replace"), re.MULTILINE):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RecipeError(f"the host failed:\n{tail}")
    say(f"the machine ran {time.monotonic() - started:.0f} s")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("trace", type=Path, help="folder to make")
    parser.add_argument("--key", type=Path, required=True, help="site key file for the capture")
    parser.add_argument("--memory", type=int, default=2048, help="MiB (default: 2048)")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--snapshots", type=int, default=5)
    parser.add_argument("--every", default="60s")
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second")
    parser.add_argument("--settle", type=int, default=60, help="seconds of load before")
    parser.add_argument("--timeout", type=int, default=2400, help="seconds for the machine")
    parser.add_argument("--mirror", help="sources file or mirror of Debian 12")
    options = parser.parse_args()
    try:
        path = os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        missing = [name for name, tool in PACKAGES.items() if not shutil.which(tool, path=path)]
        if missing:
            raise RecipeError(f"packages missing: apt-get install {' '.join(missing)}")
        if os.geteuid() != 0:
            raise RecipeError("needs root (Debian bootstrap and file owners)")
        if options.trace.exists():
            raise RecipeError(f"{options.trace} exists already")
        work = options.work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        out = boot(work, build_image(work, options.mirror), options)
        with tarfile.open(out) as archive:
            archive.extractall(work / "extracted", filter="data")
        shutil.move(work / "extracted" / "trace", options.trace)
        for name in ("provenance.json", "host.json"):
            shutil.move(work / "extracted" / name, work / name)
        say(f"{options.trace}; {work / 'provenance.json'}, {work / 'host.json'}")
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the machine is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
