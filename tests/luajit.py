"""nginx's own LuaJIT without nginx: Lua states in this process, by ctypes.

The library is the one that nginx's Lua module is linked with, so machine code is what it is there.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.paths import lua_directory

__all__ = ["LuaError", "run"]

_LIBRARY = "libluajit-5.1.so.2"


class LuaError(Exception):
    """An error that Lua code has raised."""


def _library() -> Any:
    lua = ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)
    lua.luaL_newstate.restype = ctypes.c_void_p
    lua.lua_tolstring.restype = ctypes.c_char_p
    return lua


def run(file: Path, arguments: Sequence[object]) -> list[str]:
    """Call the function that `file` returns, in a new state, with numbers and booleans.

    Returns its results as text. Raises LuaError.
    """
    given = ", ".join(str(a).lower() if isinstance(a, bool) else repr(a) for a in arguments)
    code = f"""
        package.path = "{lua_directory()}/?.lua;" .. package.path
        local results = {{ dofile("{file}")({given}) }}
        for r = 1, #results do results[r] = tostring(results[r]) end
        return table.concat(results, " ")
    """
    lua = _library()
    state = ctypes.c_void_p(lua.luaL_newstate())
    try:
        lua.luaL_openlibs(state)
        failed = lua.luaL_loadstring(state, code.encode()) or lua.lua_pcall(state, 0, 1, 0)
        text = (lua.lua_tolstring(state, -1, None) or b"").decode()
        if failed:
            raise LuaError(text)
        return text.split()
    finally:
        lua.lua_close(state)
