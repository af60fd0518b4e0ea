"""Where the files that ship with the package lie: templates, Lua and proto.

In a wheel they are package data; in a checkout they are the top-level directories.
"""

from pathlib import Path
from typing import Final

from trimtab.errors import DependencyError

__all__ = ["lua_directory", "proto_directory", "templates_directory"]

_PACKAGE: Final = Path(__file__).resolve().parent
_CHECKOUT: Final = _PACKAGE.parents[1]


def _find(packaged: str, checkout: str) -> Path:
    for path in (_PACKAGE / "data" / packaged, _CHECKOUT / checkout):
        if path.is_dir():
            return path
    raise DependencyError(
        f"the {packaged} files are not in {_PACKAGE / 'data'} nor in {_CHECKOUT / checkout}: "
        "install trimtab anew (pip install --force-reinstall .)"
    )


def lua_directory() -> Path:
    """The directory to put on nginx's `lua_package_path`, which holds `resty/trimtab.lua`."""
    return _find("lua", "nginx/lua")


def templates_directory() -> Path:
    """The directory of the Jinja2 templates."""
    return _find("conf-templates", "conf-templates")


def proto_directory() -> Path:
    """The directory that holds `trimtab/v1/policy.proto`."""
    return _find("proto", "proto")
