"""How kernels are compiled, and where their machine code is cached.

Numba's own cache watches the file of a function only, but these functions inline one another across
files. So their cache is a folder named by a digest of every file of this package and of the
versions of what compiles it: after any edit, all are compiled anew.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
import numpy
import scipy
from numba import extending
from numba.core import config as numba_config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from resnet_limits.files import write_atomic

Function = TypeVar("Function", bound=Callable[..., Any])

PREFIX = "resnet-limits-"  # of cache folders, which may stand among other packages'
OTHERS_KEPT = 7  # cache folders of other sources or versions, such as another branch's

config: Any = numba_config  # the names in it are made at run time
# Numba has no types here; this one lets mypy check whatever is decorated.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic


def jit(*, parallel: bool = False, forceinline: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function when it is first called with new types.

    Sums and products may fuse, which only removes roundings; nothing else of IEEE arithmetic is
    given up, so that a diverged run yields inf or nan as it should. The options are numba's.
    """
    compiled = numba.njit(
        fastmath={"contract"},
        error_model="numpy",
        nogil=True,
        parallel=parallel,
        forceinline=forceinline,
    )

    def decorate(function: Function) -> Function:
        dispatcher: Any = compiled(function)
        if CACHE:
            dispatcher._cache = _Cache(function, CACHE)  # where its enable_caching puts numba's own
        return cast("Function", dispatcher)

    return decorate


class _Cache(NullCache):
    """Cached machine code of one function, one file for each signature and processor.

    Numba's cache has an index beside such files, which processes that write at once can make point
    to the code of another signature.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self._folder = folder
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, signature: Any, context: Any) -> Any:
        context.refresh()
        try:
            code = self._file(signature, context.codegen()).read_bytes()
        except OSError:
            return None
        return CompileResult._rebuild(context, *pickle.loads(code))

    def save_overload(self, signature: Any, result: Any) -> None:
        code = dumps(result._reduce())
        # The disk may be full, or another process may just have removed the folder as stale.
        with suppress(OSError):
            write_atomic(self._file(signature, result.codegen), code)

    def _file(self, signature: Any, codegen: Any) -> Path:
        key = repr((signature, codegen.magic_tuple()))
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pickle"


def _digest() -> str:
    """Return a digest of all that machine code depends on, besides types and processor."""
    packages = (llvmlite, numba, numpy, scipy)  # the last two fit constants
    parts = [sys.implementation.cache_tag]
    parts += [f"{package.__name__} {package.__version__}" for package in packages]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        parts.append(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cache_folder(name: str) -> Path | None:
    """Create the cache folder where that is possible, and remove those long unused."""
    for parent in _parents():
        folder = parent / name
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # Fails where nothing can be written; otherwise marks the folder as used now.
            tempfile.NamedTemporaryFile(dir=folder).close()
            _remove_stale(folder)
            return folder
    warnings.warn(
        "no folder for compiled code can be written: every process will compile it anew. "
        "Set NUMBA_CACHE_DIR to a folder that can.",
        stacklevel=2,
    )
    return None


def _parents() -> Iterator[Path]:
    """Yield the folders where numba, too, would look for room."""
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR).absolute()
    yield Path(__file__).parent / "__pycache__"
    user = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    if user.is_absolute():  # it starts with ~ for a user without a home
        yield user


def _remove_stale(folder: Path) -> None:
    """Remove the sibling folders used least recently.

    A process that still uses one loses nothing but time: it compiles what it no longer finds.
    """
    with suppress(OSError):  # another process may remove them at the same time
        others = [path for path in folder.parent.glob(f"{PREFIX}*") if path != folder]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[OTHERS_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


CACHE = _cache_folder(PREFIX + _digest())
