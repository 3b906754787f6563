# SPDX-License-Identifier: GPL-2.0
"""What the tests need of Debian's packages: downloaded and unpacked into a cache, never installed.

The folder is $XDG_CACHE_HOME/ksm-planner/kmod; each package is unpacked whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Kernel series and the package that depends on its newest headers.
SERIES = {"6.1": ("linux-headers-cloud-amd64", "linux-headers-6.1-cloud-amd64"),
          "6.12": ("linux-headers-6.12-cloud-amd64", "linux-headers-cloud-amd64")}
#: What checkpatch.pl reads; of its folder.
CHECKPATCH = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")


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


@contextlib.contextmanager
def _made_once(root: Path) -> Iterator[Path | None]:
    """A folder that becomes `root` at the end; None where that is there. One maker at a time."""
    with (cache_folder() / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            yield None
            return
        part = root.with_name(root.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.rename(root)


def _download(package: str, folder: Path) -> Path:
    run("apt-get", "download", package, cwd=folder)
    [file] = folder.glob("*.deb")
    return file


def _unpack(packages: Iterable[str], folder: Path) -> None:
    """Download packages and unpack them into a folder."""
    for package in packages:
        file = _download(package, folder)
        run("dpkg", "-x", file, folder)
        file.unlink()


def _unpacked(package: str) -> Path:
    """Where a package is unpacked, from the cache if it was before."""
    root = cache_folder() / package
    with _made_once(root) as part:
        if part is not None:
            _unpack([package], part)
    return root


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
    with _made_once(root) as part:
        if part is not None:
            wanted = [headers, f"linux-image-{release}"]
            wanted += [name for name in _depends(headers)
                       if re.fullmatch(r"linux-headers-.*-common|linux-kbuild-.*", name)]
            _unpack(wanted, part)
            # The headers name their other half by its place after installation.
            makefile = part / kernel.headers.relative_to(root) / "Makefile"
            makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    return kernel


def get_busybox() -> Path:
    """A static busybox."""
    return _unpacked("busybox-static") / "bin" / "busybox"


def get_sparse() -> Path:
    """The static checker."""
    installed = shutil.which("sparse")
    return Path(installed) if installed else _unpacked("sparse") / "usr" / "bin" / "sparse"


def get_checkpatch() -> Path:
    """The kernel's own style checker: no header package has it, so from a kernel's source.

    The package has 140 MB, all but three files of which are left out.
    """
    root = cache_folder() / "checkpatch"
    with _made_once(root) as part:
        if part is not None:
            # linux-source depends on the newest one.
            [package] = _depends("linux-source")[:1] or ["linux-source"]
            file = _download(package, part)
            _extract_scripts(file, part)
            file.unlink()
    return root / CHECKPATCH[0]


def _extract_scripts(package: Path, folder: Path) -> None:
    """The files of CHECKPATCH from the archive within the package."""
    missing = {f"{package.name.split('_')[0]}/scripts/{name}" for name in CHECKPATCH}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as deb, \
            tarfile.open(fileobj=deb.stdout, mode="r|") as outer:
        for archive in outer:
            content = outer.extractfile(archive) if ".tar." in archive.name else None
            if content is None:
                continue
            with tarfile.open(fileobj=content, mode="r|*") as inner:
                for member in inner:
                    if member.name in missing:
                        missing.remove(member.name)
                        data = inner.extractfile(member)
                        assert data is not None
                        (folder / Path(member.name).name).write_bytes(data.read())
                    if not missing:
                        # The rest of a kernel is not worth unpacking.
                        deb.kill()
                        return
    raise RunnerError(f"{package.name} lacks {', '.join(sorted(missing))}")
