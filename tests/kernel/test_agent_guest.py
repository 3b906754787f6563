"""The agent in a real guest: its classes joined to the host's capture of the same guest.

Boots QEMU without KVM with the kernel that PLANNER_GUEST_KERNEL names (a bzImage with an initial
RAM disk, a serial console and CONFIG_PROC_PAGE_MONITOR; distributions' cloud kernels have them).
The RAM disk holds this machine's Python and the agent.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from planner.cli.agent import packed_agent
from planner.importers.agent import import_agent
from planner.importers.common import LabelSource
from planner.importers.guest_classes import join_classes
from planner.trace import PAGE_BYTES, open_trace

pytestmark = pytest.mark.kernel

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")
N_PAGES = 500

#: Known anonymous pages, and a known file (page cache, as the root is a ramfs); then the classes
#: over the second serial port, and rest.
INIT = r"""#!/python
import base64, ctypes, mmap, os, subprocess, time
libc = ctypes.CDLL(None)
for place in (b"/proc", b"/sys", b"/dev"):
    os.makedirs(place, exist_ok=True)
libc.mount(b"proc", b"/proc", b"proc", 0, None)
libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None)
libc.mount(b"devtmpfs", b"/dev", b"devtmpfs", 0, None)
area = mmap.mmap(-1, 500 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(500):
    area[i * 4096:(i + 1) * 4096] = b"anon%012d" % i * 256
with open("/file", "wb") as stream:
    for i in range(500):
        stream.write(b"file%012d" % i * 256)
done = subprocess.run(["/python", "-I", "-S", "/agent.pyz", "--guest-classes", "-o", "/classes"],
                      capture_output=True)
with open("/dev/ttyS1", "wb") as port:
    port.write(b"BEGIN " + base64.b64encode(open("/classes", "rb").read()
               if os.path.exists("/classes") else b"") + b" " + base64.b64encode(done.stderr)
               + b" END\n")
while True:
    time.sleep(1000)
"""


def ram_disk(folder: Path) -> Path:
    """An initramfs with Python, the standard library's modules and the agent."""
    root = folder / "root"
    stdlib = Path(sysconfig.get_path("stdlib"))
    # Where Python was built to look for it.
    library = root / str(stdlib).lstrip("/")
    shutil.copytree(stdlib, library, ignore=shutil.ignore_patterns(
        "test", "tests", "__pycache__", "site-packages", "dist-packages", "idlelib", "tkinter",
        "ensurepip", "lib2to3", "config-*", "turtledemo", "*.a", "pydoc_data"))
    python = Path(os.path.realpath(sys.executable))
    shutil.copy(python, root / "python")
    wanted = [python, *library.glob("lib-dynload/*.so")]
    found = subprocess.run(["ldd", *map(str, wanted)], capture_output=True, text=True).stdout
    for word in set(found.split()):
        if word.startswith("/") and not word.endswith(":") and Path(word).is_file():
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    (root / "agent.pyz").write_bytes(packed_agent())
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    image = folder / "initramfs"
    with image.open("wb") as stream:
        subprocess.run("find . | cpio -o -H newc --quiet", shell=True, cwd=root, stdout=stream,
                       check=True)
    return image


def wait_for_port(port: Path, process: subprocess.Popen[bytes], seconds: float
                  ) -> tuple[bytes, str]:
    """The classes stream and the agent's words, when the guest has written them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "QEMU has ended"
        text = port.read_bytes() if port.exists() else b""
        if text.rstrip().endswith(b" END"):
            _, stream, said, _ = text[text.index(b"BEGIN "):].split(b" ")
            return base64.b64decode(stream), base64.b64decode(said).decode()
        time.sleep(0.5)
    raise AssertionError(f"the guest said nothing in {seconds} s")


def test_classes_of_a_guest_fit_the_capture_of_its_host(tmp_path: Path) -> None:
    kernel = os.environ.get("PLANNER_GUEST_KERNEL")
    if not kernel or not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs QEMU, and PLANNER_GUEST_KERNEL")
    key, port, stream = tmp_path / "key", tmp_path / "port", tmp_path / "stream"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "pc,accel=tcg,mem-merge=off", "-cpu", "max", "-m",
         "512", "-name", "web1", "-kernel", kernel, "-initrd", str(ram_disk(tmp_path)), "-append",
         "console=ttyS0 panic=-1", "-no-reboot", "-display", "none", "-monitor", "none", "-nic",
         "none", "-serial", f"file:{tmp_path}/console", "-serial", f"file:{port}"])
    try:
        classes, said = wait_for_port(port, process, 240)
        assert "next: planner trace join" in said, said
        (tmp_path / "classes").write_bytes(classes)
        agent = tmp_path / "agent.pyz"
        agent.write_bytes(packed_agent())
        done = subprocess.run([sys.executable, "-I", "-S", str(agent), "--pid", str(process.pid),
                               "--key", str(key), "-o", str(stream)], capture_output=True)
        assert done.returncode == 0, done.stderr
    finally:
        process.kill()
        process.wait()
    host = import_agent([stream], out=tmp_path / "host", labels=LabelSource(), key=None,
                        force=False, progress=None).path
    report = join_classes(host, "web1", tmp_path / "classes", tmp_path / "joined")
    joined = open_trace(report.path)
    pages = joined.mm_pages(0, 0)
    where: dict[int, set[str]] = {}
    for region in joined.regions:
        first, last = pages.vpn.searchsorted([region.start_vpn, region.end_vpn])
        for value in pages.hash[first:last].tolist():
            where.setdefault(value, set()).add(region.labels["content"])

    def contents(text: str) -> list[set[str]]:
        return [where.get(int.from_bytes(hashlib.blake2b(
            (b"%s%012d" % (text.encode(), i)) * (PAGE_BYTES // 16), digest_size=8, key=KEY,
        ).digest(), "little"), set()) for i in range(N_PAGES)]

    # What the guest wrote lies where the guest says its kind of memory is.
    assert sum("guest-anon" in kinds for kinds in contents("anon")) == N_PAGES
    assert sum(bool({"guest-page-cache", "guest-shmem"} & kinds)
               for kinds in contents("file")) == N_PAGES
    assert "check that both" not in report.notes[0], report.notes
