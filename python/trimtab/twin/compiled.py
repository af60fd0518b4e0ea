"""`compiled`: machine code by numba where it is installed (the extra `sim`), else as it is.

Functions that use it are plain loops over numpy arrays, so both ways give the same numbers; the
difference is a factor of about a hundred in time.

The machine code is kept on disk. Numba looks only at the file of a function to tell whether it
has changed, not at those of the functions that it calls; so each state of this directory's sources
has a cache of its own.
"""

import hashlib
import importlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final, TypeVar, cast

__all__ = ["AVAILABLE", "bare", "compiled", "compiled_module", "inlined"]

F = TypeVar("F", bound=Callable[..., object])
Array = TypeVar("Array")


def _cache_directory() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        digest.update(path.read_bytes())
    return str(here / "__pycache__" / f"numba-{digest.hexdigest()[:16]}")


_numba: ModuleType | None
try:
    _numba = importlib.import_module("numba")
except ImportError:
    _numba = None
else:
    try:
        directory = Path(_cache_directory())
        directory.mkdir(parents=True, exist_ok=True)
        _numba.config.CACHE_DIR = str(directory)
    except OSError:
        # Read-only: numba takes a directory of the user, which the module's age keeps apart.
        pass

AVAILABLE: Final = _numba is not None


def compiled(function: F) -> F:
    """The function compiled at its first call; the machine code is kept on disk."""
    if _numba is None:
        return function
    return cast(F, _numba.njit(cache=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """As `compiled`, but put into its callers by numba: where tuples of many arrays are handed on,
    a call costs more than what it does."""
    if _numba is None:
        return function
    return cast(F, _numba.njit(cache=True, error_model="numpy", inline="always")(function))


def _bare() -> Callable[[Array], Array]:
    """`bare`, see below."""
    if _numba is None:
        return lambda array: array
    numba = _numba
    extending = importlib.import_module("numba.extending")
    ir = importlib.import_module("llvmlite.ir")

    def pointer(_context: Any, source: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

        return numba.types.voidptr(source), generate

    as_pointer, carray = extending.intrinsic(pointer), numba.carray

    def unmanaged(array: Any) -> Any:
        return carray(as_pointer(array.ctypes.data), array.shape, array.dtype)

    return cast(Callable[[Array], Array], numba.njit(unmanaged))


# In compiled code: the same memory as an array that nobody counts references to; the caller keeps
# the array itself. Counting them in a loop over tuples of arrays costs more than the loop: a
# factor of four. Elsewhere it is the array.
bare: Final = _bare()


def compiled_module(module: ModuleType, names: Sequence[str]) -> Any:
    """The named functions of a module of plain Python, compiled, as attributes; a function comes
    after those that it calls. The module itself stays as it is."""
    if _numba is None:
        return module
    scope = dict(vars(module))
    for name in names:
        plain = vars(module)[name]
        copy = types.FunctionType(plain.__code__, scope, name, plain.__defaults__)
        copy.__module__, copy.__qualname__ = module.__name__, plain.__qualname__
        scope[name] = compiled(copy)
    return SimpleNamespace(**{name: scope[name] for name in names})
