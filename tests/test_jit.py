from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = """
from planner.kernels import jit

@jit.njit
def twice(x):
    return 2 * x

@jit.njit(cache=False)
def thrice(x):
    return 3 * x
"""
SHOW = "import kernel, os; print(kernel.twice(21), kernel.thrice(14), kernel.jit.IS_CACHED)"


def run_kernel(folder: Path, code: str = SHOW, **variables: str) -> str:
    """Run `code` beside a kernel.py in a fresh interpreter with only these cache variables."""
    (folder / "kernel.py").write_text(KERNEL)
    names = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), env.get("PYTHONPATH", "")])
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def compiled_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.nbc"))


def test_compiled_code_goes_to_the_cache_home_of_the_user(tmp_path: Path) -> None:
    code, cache = tmp_path / "code", tmp_path / "cache"
    code.mkdir()
    assert run_kernel(code, XDG_CACHE_HOME=str(cache)) == "42 42 True"
    names = [path.name for path in compiled_files(cache / "planner" / "numba")]
    assert len(names) == 1
    assert "twice" in names[0]
    assert compiled_files(code) == []


def test_a_cache_directory_chosen_by_the_user_wins(tmp_path: Path) -> None:
    code, cache = tmp_path / "code", tmp_path / "mine"
    code.mkdir()
    run_kernel(code, XDG_CACHE_HOME=str(tmp_path / "other"), NUMBA_CACHE_DIR=str(cache))
    assert len(compiled_files(cache)) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("home", ["/dev/null", ""])
def test_without_a_writable_home_kernels_still_run(tmp_path: Path, home: str) -> None:
    variables = {"HOME": home, "XDG_CACHE_HOME": "/dev/null/cache"} if home else {
        "XDG_CACHE_HOME": "relative/cache"
    }
    assert run_kernel(tmp_path, **variables) == "42 42 False"
    assert compiled_files(tmp_path) == []


def test_code_without_a_source_file_compiles_in_memory(tmp_path: Path) -> None:
    assert run_kernel(tmp_path, KERNEL + "print(twice(4))", XDG_CACHE_HOME=str(tmp_path)) == "8"


def test_kernels_release_the_global_lock_and_keep_exact_arithmetic(tmp_path: Path) -> None:
    code = SHOW + "; print(kernel.twice.targetoptions)"
    options = run_kernel(tmp_path, code, XDG_CACHE_HOME=str(tmp_path)).splitlines()[1]
    assert "'nogil': True" in options
    assert "fastmath" not in options
