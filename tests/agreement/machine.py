"""Programs on a Debian kernel in QEMU with the module loaded, and nothing else running.

Kernels, busybox and the module's build come from kmod/tests/run.py.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.agreement.script import ModelRun, Operation, written
from tests.conformance.live import QUIET_KHUGEPAGED
from tests.kernel.machine import REPOSITORY, load_runner

HERE = Path(__file__).resolve().parent
_INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /tmp
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
$b stty -onlcr -F /dev/ttyS1
echo "init reached"
huge=/sys/kernel/mm/transparent_hugepage
echo madvise >$huge/enabled
echo madvise >$huge/defrag
{"".join(f"echo {value} >$huge/khugepaged/{name};" for name, value in QUIET_KHUGEPAGED.items())}
$b insmod /lib/ksm_planner.ko && echo "insmod ok"
/program /input
echo "exit $?"
$b rmmod ksm_planner && echo "rmmod ok"
echo "taint $($b cat /proc/sys/kernel/tainted)"
$b sync
$b poweroff -f
"""


class MachineFailedError(Exception):
    """The machine did not finish, or its kernel complained."""


def build(source: Path, folder: Path) -> Path:
    """Compile a program of this folder, static, with the C library of Selective KSM."""
    program = folder / source.stem
    kmod = REPOSITORY / "kmod"
    subprocess.run(["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror",
                    "-static", f"-I{kmod}/include/uapi", f"-I{kmod}/lib", "-o", program, source,
                    kmod / "lib" / "libksm.c"], check=True)
    return program


def run_program(series: str, program: Path, files: Mapping[str, bytes], *, memory_mib: int = 512,
                timeout_s: float = 300) -> str:
    """What a program prints that is given /input of `files`; MachineFailedError with the reason."""
    runner = load_runner()
    kernel = runner.get_kernel(series)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Kbuild knows no spaces in names, and may be built for two kernels at once.
        with runner.build_folder("agreement") as place:
            module = runner.build_module(kernel, place / "module").read_bytes()
        entries = [(each, 0o040755, b"") for each in ("bin", "lib", "dev")]
        entries += [("bin/busybox", 0o100755, runner.get_busybox().read_bytes()),
                    ("init", 0o100755, _INIT.encode()),
                    ("lib/ksm_planner.ko", 0o100644, module),
                    ("program", 0o100755, program.read_bytes())]
        entries += [(each, 0o100644, content) for each, content in files.items()]
        initramfs = folder / "initramfs"
        initramfs.write_bytes(runner._cpio(entries))
        for _ in range(2):
            output, console = _boot(kernel.image, initramfs, folder, memory_mib, timeout_s)
            # QEMU now and then loses a machine while its kernel patches itself at start.
            if "init reached" in output:
                break
    complaints = [line for line in console.splitlines()
                  if runner._COMPLAINTS.search(line) and not runner._HARMLESS.search(line)]
    told = output.partition("insmod ok\n")[2].partition("exit ")[0]
    wanted = ("init reached", "insmod ok", "exit 0", "rmmod ok", f"taint {runner.TAINT}")
    missing = [line for line in wanted if line not in output.splitlines()]
    if complaints or missing:
        raise MachineFailedError("\n".join([*(f"missing: {line}" for line in missing), *complaints,
                                       *output.splitlines()[-5:], *console.splitlines()[-5:]]))
    return told


def _boot(image: Path, initramfs: Path, folder: Path, memory_mib: int,
          timeout_s: float) -> tuple[str, str]:
    output, console = folder / "output.log", folder / "console.log"
    machine = subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "pc,accel=tcg,mem-merge=off", "-cpu", "max",
         "-m", str(memory_mib), "-smp", "1", "-kernel", image, "-initrd", initramfs,
         "-append", "console=ttyS0 oops=panic panic=-1 slub_debug=FZP loglevel=7 "
         # A machine that gets no time is not a fault of the module's.
         "rcupdate.rcu_cpu_stall_suppress=1", "-no-reboot",
         "-display", "none", "-monitor", "none", "-nic", "none",
         "-serial", f"file:{console}", "-serial", f"file:{output}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        machine.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also on Ctrl-C: no machine outlives this function.
        machine.kill()
        machine.wait()
    return (output.read_text(errors="replace") if output.exists() else "",
            console.read_text(errors="replace") if console.exists() else "")


def run_scripts(series: str, scripts: Sequence[list[Operation]], *,
                timeout_s: float = 300) -> list[list[str]]:
    """The driver's lines for each script; fewer lists than scripts where it gave up."""
    with tempfile.TemporaryDirectory() as name:
        driver = build(HERE / "driver.c", Path(name))
        told = run_program(series, driver, {"input": "".join(map(written, scripts)).encode()},
                           timeout_s=timeout_s)
    answers: list[list[str]] = [[]]
    for line in told.splitlines():
        if line == "end":
            answers.append([])
        else:
            answers[-1].append(line)
    return answers[:-1]


def differences(script: list[Operation], answers: list[str]) -> list[str]:
    """Where the module did something else than the model: the operation and both answers."""
    model = ModelRun()
    found = []
    for number, operation in enumerate(script):
        expected = model(operation)
        answer = answers[number] if number < len(answers) else "no answer"
        if answer != expected:
            found.append(f"{number}: {' '.join(map(str, operation))[:200]}\n  model:  {expected}\n"
                         f"  module: {answer}")
    return found
