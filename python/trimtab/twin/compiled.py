"""`compiled`: machine code by numba where it is installed (the extra `sim`), else as it is.

Functions that use it are plain loops over numpy arrays, so both ways give the same numbers; the
difference is a factor of about a hundred in time.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Final, TypeVar, cast

__all__ = ["AVAILABLE", "compiled"]

F = TypeVar("F", bound=Callable[..., object])

_numba: ModuleType | None
try:
    _numba = importlib.import_module("numba")
except ImportError:
    _numba = None

AVAILABLE: Final = _numba is not None


def compiled(function: F) -> F:
    """The function compiled at its first call; the machine code is kept on disk."""
    if _numba is None:
        return function
    return cast(F, _numba.njit(cache=True)(function))
