"""Scripts on Debian's kernels in QEMU: the driver in a file system of its own, and nothing else.

Kernels and busybox come from kmod/tests/run.py. What the driver tells is written to a disk, since
a serial line is slow in an emulated machine.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.conformance.driver import CannotServeError, Outcome, build_driver, compiled, outcomes
from tests.conformance.live import QUIET_KHUGEPAGED
from tests.conformance.script import Script
from tests.kernel.machine import load_runner

SERIES = ("6.1", "6.12")
_DISK_BYTES = 1 << 30
_DRIVERS = ("virtio_pci", "virtio_blk")
_INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
echo "init reached"
for module in $($b cat /lib/order); do $b insmod /lib/$module; done
huge=/sys/kernel/mm/transparent_hugepage
echo madvise >$huge/enabled
echo madvise >$huge/defrag
{"".join(f"echo {value} >$huge/khugepaged/{name};" for name, value in QUIET_KHUGEPAGED.items())}
/driver /scripts /told
echo "exit $?"
$b cat /told /end >/dev/vda
$b sync
echo "told"
$b poweroff -f
"""
#: After the last line on the disk.
_END = b"end of what was told\n"


def run_in_machine(series: str, scripts: Sequence[Script], *, memory_mib: int = 1024,
                   timeout_s: float = 300) -> list[Outcome]:
    """Boot the newest Debian kernel of a series, run scripts in it, and return their outcomes.

    Boots once more if init was not reached. CannotServeError when the machine did not do its
    work; its message has the end of the kernel's messages.
    """
    source = compiled(scripts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        initramfs = _initramfs(series, source, folder)
        for _ in range(2):
            output = _boot(series, initramfs, folder, memory_mib, timeout_s)
            # QEMU now and then loses a machine while its kernel patches itself at start.
            if "init reached" in output:
                break
        if "exit 0\n" not in output or "told\n" not in output:
            console = (folder / "console.log").read_text(errors="replace")
            raise CannotServeError(f"the machine with {series} did not finish: {output.strip()}\n"
                              + "\n".join(console.splitlines()[-15:]))
        with (folder / "disk").open("rb") as disk:
            told = disk.read(_DISK_BYTES).partition(_END)[0]
        return outcomes(told.decode(), len(scripts))


def _initramfs(series: str, source: str, folder: Path) -> Path:
    runner = load_runner()
    drivers = runner._kernel_modules(runner.get_kernel(series), _DRIVERS)
    entries = [(name, 0o040755, b"") for name in ("bin", "lib", "dev")]
    entries += [("bin/busybox", 0o100755, runner.get_busybox().read_bytes()),
                ("init", 0o100755, _INIT.encode()),
                ("driver", 0o100755, build_driver().read_bytes()),
                ("scripts", 0o100644, source.encode()),
                ("end", 0o100644, _END),
                ("lib/order", 0o100644, "".join(f"{name}.ko\n" for name in drivers).encode())]
    entries += [(f"lib/{name}.ko", 0o100644, content) for name, content in drivers.items()]
    path = folder / "initramfs"
    path.write_bytes(runner._cpio(entries))
    return path


def _boot(series: str, initramfs: Path, folder: Path, memory_mib: int, timeout_s: float) -> str:
    """Boot once; what the machine printed."""
    kernel = load_runner().get_kernel(series)
    disk, console, output = folder / "disk", folder / "console.log", folder / "output.log"
    with disk.open("wb") as stream:
        stream.truncate(_DISK_BYTES)
    for path in (console, output):
        path.unlink(missing_ok=True)
    try:
        machine = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "pc,accel=tcg,mem-merge=off", "-cpu", "max",
             "-m", str(memory_mib), "-smp", "1", "-kernel", kernel.image, "-initrd", initramfs,
             "-append", "console=ttyS0 oops=panic panic=-1 loglevel=5",
             "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe", "-no-reboot",
             "-display", "none", "-monitor", "none", "-nic", "none",
             "-serial", f"file:{console}", "-serial", f"file:{output}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise CannotServeError("qemu-system-x86_64 is not installed") from error
    try:
        _, errors = machine.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        errors = "timed out"
    finally:
        # Also on Ctrl-C: no machine outlives this function.
        machine.kill()
        machine.wait()
    if not console.exists():
        raise CannotServeError(f"qemu: {errors}")
    return (output.read_text(errors="replace") if output.exists() else "") + errors
