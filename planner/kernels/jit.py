"""The project's compiler switch: the only module that imports numba.

numba by default keeps compiled code in `__pycache__` beside the installed file, which fails on
read-only installations and leaves stray files behind. So the cache goes to
`$XDG_CACHE_HOME/planner/numba` unless `NUMBA_CACHE_DIR` says otherwise, and where that directory
cannot be written kernels are compiled in memory on each start.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar, overload

__all__ = ["IS_CACHED", "njit", "prange"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _choose_cache_directory() -> bool:
    """Point numba at a writable cache directory; False when there is none."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(base, "planner", "numba")
    # expanduser leaves "~" when there is no home: a relative path would litter the work folder.
    if not os.path.isabs(folder) and "NUMBA_CACHE_DIR" not in os.environ:
        return False
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return False
    os.environ["NUMBA_CACHE_DIR"] = folder
    return True


#: Whether compiled kernels are kept on disk for the next start.
IS_CACHED = _choose_cache_directory()

from numba import njit as _numba_njit  # noqa: E402 - numba reads the variable when imported
from numba import prange  # noqa: E402


@overload
def njit(function: _Function, /) -> _Function: ...
@overload
def njit(**options: Any) -> Callable[[_Function], _Function]: ...
def njit(function: Any = None, /, **options: Any) -> Any:
    """Compile a kernel: `@njit` or `@njit(parallel=True)`.

    Defaults: kept on disk when possible, the GIL released, no fast-math (results must not depend
    on the compiler's mood). Options of `numba.njit` override them, except that `cache=True` cannot
    be forced where no directory is writable.
    """
    settings: dict[str, Any] = {"nogil": True, **options}
    settings["cache"] = bool(settings.get("cache", True)) and IS_CACHED

    def decorate(kernel: Any) -> Any:
        try:
            return _numba_njit(**settings)(kernel)
        except RuntimeError:
            # numba finds no place for code without a source file (standard input, a frozen app).
            if not settings["cache"]:
                raise
            return _numba_njit(**{**settings, "cache": False})(kernel)

    return decorate if function is None else decorate(function)
