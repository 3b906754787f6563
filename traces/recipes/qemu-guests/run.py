#!/usr/bin/env python3
"""Build, start and stop a small fleet of QEMU guests, as the host of a memory capture.

    run.py build  WORK      make the kernel, the initial ramdisk and one disk image per role
    run.py start  WORK      boot the guests in turn, write WORK/guests.csv when all are ready
    run.py status WORK      memory and CPU of the running guests
    run.py stop   WORK      end the guests

Guests are emulated (TCG, no KVM needed). See README.md beside this file. Needs Debian 12, root
(for the Debian bootstrap), and the packages in PACKAGES below; `run.py build --install` installs
those missing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
#: Debian packages of the machine that builds and runs the guests, with one command of each.
PACKAGES = {
    "qemu-system-x86": "qemu-system-x86_64",
    "qemu-utils": "qemu-img",
    "mmdebstrap": "mmdebstrap",
    "e2fsprogs": "mke2fs",
    "cpio": "cpio",
    "kmod": "depmod",
}
#: Debian packages of every guest.
COMMON = ["systemd-sysv", "udev", "dbus", "procps", "kmod", "iproute2", "curl", "cron"]
COMMON += ["libpam-systemd", "less"]
#: Role -> its own Debian packages.
ROLES = {
    "nginx": ["nginx"],
    "redis": ["redis-server"],
    "postgres": ["postgresql"],
}
TENANTS = ("acme", "borealis", "cobalt")
READY = "FLEET-READY "
#: Modules of the initial ramdisk; all others are on the guest's disk and loaded by udev.
BOOT_MODULES = ("virtio_pci", "virtio_blk")


class RecipeError(Exception):
    """Something that whoever runs the recipe has to know or do; its message is all they see."""


@dataclass(frozen=True)
class Guest:
    """One guest: the labels that a capture gives it, and where its files are."""

    name: str
    role: str
    tenant: str
    folder: Path

    @property
    def image(self) -> str:
        return f"debian12-{self.role}"

    @property
    def serial(self) -> Path:
        return self.folder / "serial.log"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command, return its output; RecipeError with the end of its messages if it fails."""
    text = [str(part) for part in command]
    done = subprocess.run(text, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RecipeError(f"{' '.join(text)}\nended with {done.returncode}:\n{tail}")
    return done.stdout


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, flush=True)


def fleet(work: Path, per_role: int, roles: Sequence[str]) -> list[Guest]:
    """Every tenant has guests of several roles, and every role guests of several tenants."""
    return [
        Guest(name := f"{role}-{n + 1}", role, TENANTS[(r + n) % len(TENANTS)], work / "run" / name)
        for n in range(per_role)
        for r, role in enumerate(roles)
    ]


# ------------------------------------------------------------ build


def need_packages(install: bool) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    os.environ["PATH"] = path
    missing = [name for name, tool in PACKAGES.items() if shutil.which(tool, path=path) is None]
    if not missing:
        return
    if not install:
        names = " ".join(missing)
        raise RecipeError(f"packages missing: apt-get install {names}   (or: build --install)")
    call("apt-get", "install", "-y", "--no-install-recommends", *missing)


def apt_sources(given: str | None) -> str:
    """The mirror: the option, else the variable FLEET_MIRROR, else what apt here uses."""
    if given or os.environ.get("FLEET_MIRROR"):
        return given or os.environ["FLEET_MIRROR"]
    for name in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if Path(name).is_file():
            return name
    raise RecipeError("no Debian source in apt's configuration: give --mirror or FLEET_MIRROR")


def build_root(role: str, target: Path, sources: str) -> None:
    """A Debian root folder with the role's packages and the recipe's files and services."""
    unneeded = ("doc", "man", "locale", "info")
    drop = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unneeded]
    call(
        "mmdebstrap", "--variant=minbase", f"--include={','.join([*COMMON, *ROLES[role]])}",
        *drop, "--skip=output/dev", SUITE, target, sources,
    )  # fmt: skip
    for part in ("common", role):
        # never through a link of the target: an absolute one would lead out of it
        source = f"{HERE / 'guest' / part}/."
        call("cp", "-r", "--preserve=mode", "--remove-destination", source, target)
    services = ("fleet-setup", "fleet-load", "fleet-ready")
    call("chroot", target, "systemctl", "enable", *services)
    timers = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer")
    call("chroot", target, "systemctl", "mask", *timers)
    # empty: systemd makes a new identity at every first boot, without first-boot presets
    (target / "etc/machine-id").write_text("")
    (target / "etc/fstab").write_text("/dev/vda / ext4 rw,relatime 0 1\n")
    (target / "etc/resolv.conf").unlink(missing_ok=True)
    # the guests have no network, and the mirror is nobody's business
    (target / "etc/apt/sources.list").unlink(missing_ok=True)
    shutil.rmtree(target / "etc/apt/sources.list.d", ignore_errors=True)


def build_kernel(work: Path, kernel_deb: Path | None) -> Path:
    """Debian's cloud kernel, unpacked and not installed; returns the folder with its files."""
    out = work / "kernel"
    if (out / "vmlinuz").exists():
        return out
    raw = work / "kernel.new"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    packages = ["busybox-static"]
    if kernel_deb is None:
        depends = call("apt-cache", "depends", "linux-image-cloud-amd64").split()
        named = [word for word in depends if word.startswith("linux-image-6.1.")]
        if not named:
            raise RecipeError("apt here does not know Debian 12's kernel: give --kernel-deb")
        packages.append(named[0])
    else:
        call("dpkg", "-x", kernel_deb, raw / "root")
    call("apt-get", "download", *packages, cwd=raw)
    for deb in raw.glob("*.deb"):
        call("dpkg", "-x", deb, raw / "root")
        deb.unlink()
    root = raw / "root"
    release = next((root / "lib/modules").iterdir()).name
    call("depmod", "-b", root, release)
    (raw / "vmlinuz").write_bytes((root / f"boot/vmlinuz-{release}").read_bytes())
    (raw / "release").write_text(release + "\n")
    build_initrd(raw, release)
    raw.rename(out)
    say(f"kernel {release}")
    return out


def build_initrd(raw: Path, release: str) -> None:
    """busybox, the disk driver's modules in loading order, and guest/init."""
    tree = raw / "initrd"
    for name in ("bin", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(raw / "root/bin/busybox", tree / "bin/busybox")
    shutil.copy2(HERE / "guest/init", tree / "init")
    order: list[str] = []
    for module in BOOT_MODULES:
        show = ("modprobe", "-d", raw / "root", "-S", release, "--show-depends", module)
        for line in call(*show).splitlines():
            path = Path(line.split()[1])
            if line.startswith("insmod") and path.name not in order:
                order.append(path.name)
                shutil.copy2(path, tree / "modules" / path.name)
    (tree / "modules/order").write_text("".join(f"{name}\n" for name in order))
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
    archive = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
        cwd=tree,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    (raw / "initrd.img").write_bytes(archive)


def build(work: Path, args: argparse.Namespace) -> None:
    """Kernel and one raw ext4 image per role under `work`; what is there already stays."""
    need_packages(args.install)
    if os.geteuid() != 0:
        raise RecipeError("build needs root (Debian bootstrap and file owners)")
    work.mkdir(parents=True, exist_ok=True)
    kernel = build_kernel(work, args.kernel_deb)
    release = (kernel / "release").read_text().strip()
    for role in args.roles:
        image = work / "images" / f"{role}.ext4"
        if image.exists():
            continue
        image.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        root = work / f"root-{role}"
        shutil.rmtree(root, ignore_errors=True)
        build_root(role, root, apt_sources(args.mirror))
        modules = root / "usr/lib/modules" / release
        shutil.copytree(kernel / "root/lib/modules" / release, modules, symlinks=True)
        new = image.with_suffix(".new")
        new.unlink(missing_ok=True)
        # -d fills the file system from the folder: nothing is mounted
        call("mke2fs", "-q", "-t", "ext4", "-m", "0", "-J", "size=16", "-d", root, new, "1536M")
        shutil.rmtree(root)
        new.rename(image)
        size_mib = image.stat().st_blocks * 512 / 2**20
        say(f"image {role}: {size_mib:.0f} MiB, {time.monotonic() - started:.0f} s")


# ------------------------------------------------------------ run


def start_guest(guest: Guest, work: Path, args: argparse.Namespace) -> int:
    """Give the guest a fresh disk over its role's image and boot it; returns the process id."""
    shutil.rmtree(guest.folder, ignore_errors=True)
    guest.folder.mkdir(parents=True)
    image = (work / "images" / f"{guest.role}.ext4").resolve()
    call("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, guest.disk)
    words = {
        "name": guest.name, "role": guest.role, "tenant": guest.tenant,
        "seed": f"{args.seed}-{guest.name}", "period": args.period,
    }  # fmt: skip
    append = " ".join(["console=ttyS0 quiet", *(f"fleet.{k}={v}" for k, v in words.items())])
    command: list[str] = [
        "qemu-system-x86_64", "-name", guest.name,
        "-machine", "q35,mem-merge=on,hpet=off",
        "-accel", f"tcg,tb-size={args.tb_size}", "-cpu", args.cpu,
        "-smp", "1", "-m", str(args.memory), "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", str(work / "kernel/vmlinuz"), "-initrd", str(work / "kernel/initrd.img"),
        "-append", append,
        # the disks are thrown away: the guests' flushes need not reach the host's disk
        "-drive", f"file={guest.disk},if=none,id=disk,format=qcow2,cache=unsafe",
        "-device", "virtio-blk-pci,drive=disk",
        # entropy of its own: address-space layout and keys differ in every guest
        "-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
        "-serial", f"file:{guest.serial}",
    ]  # fmt: skip
    with (guest.folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    guest.pid_file.write_text(f"{process.pid}\n")
    return process.pid


def is_ours(guest: Guest) -> int | None:
    """The process id of the running guest, or None; never another process with an old id."""
    try:
        pid = int(guest.pid_file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    name = guest.name.encode()
    here = os.fsencode(str(guest.disk))
    return pid if name in words and any(here in word for word in words) else None


def is_alive(pid: int) -> bool:
    """Whether a process still holds memory; its command line, and its first thread, end earlier."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (OSError, IndexError):
        return False


def ready_line(guest: Guest) -> str | None:
    if not guest.serial.exists():
        return None
    lines = guest.serial.read_text(errors="replace").splitlines()
    return next((line[line.index(READY) :] for line in lines if READY in line), None)


def last_rounds(guest: Guest) -> str:
    """The number in the guest's last report of good rounds of load, `-` before the first."""
    text = guest.serial.read_text(errors="replace") if guest.serial.exists() else ""
    lines = [line for line in text.splitlines() if "FLEET-ROUNDS " in line]
    return lines[-1].split()[-1] if lines else "-"


def known_guests(work: Path) -> list[Guest]:
    """All guests that have a folder under `work`, whatever options they were started with."""
    folders = sorted(path for path in (work / "run").glob("*") if path.is_dir())
    return [Guest(path.name, "", "", path) for path in folders]


def start(work: Path, args: argparse.Namespace) -> None:
    """Boot the guests, `boots_at_once` at a time, and write guests.csv when all are ready."""
    build(work, args)
    if any(is_ours(guest) for guest in known_guests(work)):
        raise RecipeError("guests are running already: stop them first")
    shutil.rmtree(work / "run", ignore_errors=True)
    table = work / "guests.csv"
    table.unlink(missing_ok=True)
    guests = fleet(work, args.per_role, args.roles)
    waiting, booting, pids = list(guests), dict[str, tuple[Guest, float]](), dict[str, int]()
    began = time.monotonic()
    while waiting or booting:
        while waiting and len(booting) < args.boots_at_once:
            guest = waiting.pop(0)
            pids[guest.name] = start_guest(guest, work, args)
            booting[guest.name] = (guest, time.monotonic())
        time.sleep(1)
        for guest, since in list(booting.values()):
            taken = time.monotonic() - since
            line = ready_line(guest)
            if line is not None:
                say(f"{line.strip()} boot={taken:.0f}s")
                del booting[guest.name]
            elif (is_ours(guest) is None and taken > 5) or taken > args.timeout:
                logs = [path for path in (guest.folder / "qemu.log", guest.serial) if path.exists()]
                tail = "\n".join(path.read_text(errors="replace")[-1500:] for path in logs)
                raise RecipeError(
                    f"{guest.name} did not come up in {taken:.0f} s; its last lines:\n{tail}\n"
                    "Other guests still run: see `stop`."
                )
    write_provenance(work, args)
    part = table.with_suffix(".new")
    with part.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["pid", "name", "role", "tenant", "image", "memory"])
        for guest in guests:
            labels = [guest.name, guest.role, guest.tenant, guest.image, f"{args.memory}MiB"]
            rows.writerow([pids[guest.name], *labels])
    part.rename(table)
    say(f"{len(guests)} guests ready after {time.monotonic() - began:.0f} s: {table}")


def write_provenance(work: Path, args: argparse.Namespace) -> None:
    """WORK/provenance.json: what ran and with which options."""
    facts = {
        "qemu": call("qemu-system-x86_64", "--version").splitlines()[0],
        "guest_kernel": (work / "kernel/release").read_text().strip(),
        "guest_debian": SUITE,
        "host_kernel": os.uname().release,
        "host_huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
        "memory_mib": args.memory,
        "cpu": args.cpu,
        "load_period_s": args.period,
        "seed": args.seed,
    }
    (work / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")


def stop(work: Path) -> None:
    """End the guests of this folder: SIGTERM, and SIGKILL after ten seconds."""
    running = {pid: guest for guest in known_guests(work) if (pid := is_ours(guest))}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, guest in running.items():
            if is_ours(guest) == pid:
                os.kill(pid, number)
        end = time.monotonic() + 10
        while time.monotonic() < end and any(is_alive(pid) for pid in running):
            time.sleep(0.2)
    (work / "guests.csv").unlink(missing_ok=True)
    say(f"{len(running)} guests ended")


def memory_pages(pid: int) -> tuple[int, int, int]:
    """4 KiB pages of a process: (anonymous, those of mergeable ranges, those in huge pages)."""
    anonymous = mergeable = huge = here = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, _, rest = line.partition(":")
        if field == "Anonymous":
            here = int(rest.split()[0]) // 4
            anonymous += here
        elif field == "AnonHugePages":
            huge += int(rest.split()[0]) // 4
        elif field == "VmFlags" and "mg" in rest.split():
            mergeable += here
    return anonymous, mergeable, huge


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(work: Path, seconds: float) -> None:
    """4 KiB pages, CPU share (over `seconds`) and rounds of load of each running guest; sums."""
    running = [(guest, pid) for guest in known_guests(work) if (pid := is_ours(guest))]
    before = {pid: cpu_seconds(pid) for _, pid in running}
    began = time.monotonic()
    time.sleep(seconds)
    taken = time.monotonic() - began
    row = "{:<14}{:>8}{:>10.0f}{:>11.0f}{:>10.0f}{:>8.1%}{:>8}"
    print("guest              pid      anon  mergeable      huge     CPU  rounds")
    totals = [0.0, 0.0, 0.0, 0.0]
    for guest, pid in running:
        values = (*memory_pages(pid), (cpu_seconds(pid) - before[pid]) / taken)
        print(row.format(guest.name, pid, *values, last_rounds(guest)))
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    print(row.format(f"all {len(running)}", "", *totals, ""))


def arguments(given: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "start", "status", "stop"):
        sub = commands.add_parser(name)
        add = sub.add_argument
        add("work", type=Path, help="folder for images, disks, logs and guests.csv")
        if name == "status":
            add("--seconds", type=float, default=20, help="how long to measure CPU (20)")
        if name not in ("build", "start"):
            continue
        add("--install", action="store_true", help="install missing packages through apt")
        add("--mirror", help="Debian mirror or sources file (else FLEET_MIRROR, else apt's own)")
        add("--kernel-deb", type=Path, help="a kernel package other than Debian 12's newest")
        add("--roles", type=lambda text: text.split(","), default=list(ROLES), help=",".join(ROLES))
        if name == "start":
            add("--per-role", type=int, default=4, help="guests of each role (4)")
            add("--memory", type=int, default=128, help="MiB of each guest (128)")
            add("--period", type=int, default=5, help="seconds between rounds of load (5)")
            add("--boots-at-once", type=int, default=2, help="guests booting together (2)")
            add("--timeout", type=int, default=900, help="seconds for a guest to be ready (900)")
            add("--seed", default="1", help="seed of the guests' own data (1)")
            add("--cpu", default="max,la57=off", help="QEMU CPU model")
            add("--tb-size", type=int, default=24, help="MiB of translated code per QEMU (24)")
    options = parser.parse_args(list(given))
    for role in getattr(options, "roles", []):
        if role not in ROLES:
            parser.error(f"unknown role {role!r}; there are {', '.join(ROLES)}")
    return options


def main() -> int:
    options = arguments(sys.argv[1:])
    work = options.work.resolve()
    try:
        if options.command == "build":
            build(work, options)
        elif options.command == "start":
            start(work, options)
        elif options.command == "status":
            status(work, options.seconds)
        else:
            stop(work)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; guests that were started still run: see `stop`", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
