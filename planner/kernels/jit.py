"""The project's compiler switch: the only module that imports numba.

numba by default keeps compiled code in `__pycache__` beside the installed file, which fails on
read-only installations and leaves stray files behind. So the cache goes to
`$XDG_CACHE_HOME/planner/numba` unless `NUMBA_CACHE_DIR` says otherwise, and where that directory
cannot be written kernels are compiled in memory on each start. numba looks only at the file of a
kernel to see whether it is up to date, not at what that file imports; so each state of this
package has a folder of its own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast, overload

__all__ = ["IS_CACHED", "helper", "kernel", "njit", "prange"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _sources_digest() -> str:
    """A short digest of all kernels' sources, or "any" where there are none to read."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
    except OSError:
        return "any"
    return digest.hexdigest()


def _choose_cache_directory() -> bool:
    """Point numba at a writable cache directory; False when there is none."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(base, "planner", "numba", _sources_digest())
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
from numba import prange, types  # noqa: E402


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


def kernel(function: _Function) -> _Function:
    """Compile a kernel that takes many arrays in a NamedTuple: arrays are not reference-counted.

    Counting would cost more than the work of small functions. Such a kernel must not allocate
    arrays.
    """
    return njit(_nrt=False)(function)


def helper(function: _Function) -> _Function:
    """Compile a function that only a `kernel` calls: once, and without an entry from Python.

    numba would compile it anew for each width of an integer and each constant that it is called
    with; here every integer is an int64.
    """
    compiled: Any = njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    if not hasattr(compiled, "get_call_template"):  # NUMBA_DISABLE_JIT
        return function
    of_exact_types = compiled.get_call_template

    def of_widest_types(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return of_exact_types(tuple(_widest(arg) for arg in args), kws)

    compiled.get_call_template = of_widest_types
    return cast(_Function, compiled)


def _widest(kind: Any) -> Any:
    if isinstance(kind, types.Boolean | types.BooleanLiteral):
        return types.boolean
    return types.int64 if isinstance(kind, types.Integer) else kind
