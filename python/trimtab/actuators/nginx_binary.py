"""Which nginx there is and what it can do: version, modules, and a user for its workers.

What is missing is a DependencyError that names the command which installs it.
"""

import grp
import os
import pwd
import re
import resource
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab import paths
from trimtab.actuators.nginx_conf import MAX_OPEN_FILES, TEMP_PATHS, Machine
from trimtab.errors import DependencyError

__all__ = [
    "ROOT_WORKERS",
    "Installation",
    "find",
    "machine",
    "reachable",
    "temp_paths",
    "worker_user",
]

# Where nginx may be when root's directories are not on a user's PATH.
_MORE_PATH: Final = (
    "/usr/sbin:/usr/local/sbin:/usr/local/openresty/nginx/sbin:/usr/local/nginx/sbin"
)

# keepalive_timeout in upstream blocks came with 1.15.3.
_OLDEST: Final = (1, 15, 3)

_INSTALL: Final = (
    "apt-get update && apt-get install --no-install-recommends "
    "nginx libnginx-mod-http-lua lua-cjson"
)

# In this order: the Lua module needs the symbols of the development kit.
_LUA_FILES: Final = ("ndk_http_module.so", "ngx_http_lua_module.so")
_VTS_FILE: Final = "ngx_http_vhost_traffic_status_module.so"

# Users without rights that distributions have, the usual one for nginx first.
_WORKER_USERS: Final = ("www-data", "nginx", "nobody")

# To be said when `worker_user` finds nobody better than root.
ROOT_WORKERS: Final = (
    "nginx's workers run as root, as no user without rights can go into the directories that "
    "they need; keep them where everybody may enter (as /opt or /srv), or do not run as root"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An nginx binary and what `nginx -V` says of it."""

    path: str
    version: tuple[int, ...]
    name: str  # "nginx/1.22.1", "openresty/1.25.3.1"
    arguments: tuple[str, ...]  # of its configure script

    def argument(self, name: str) -> str:
        """Value of a configure argument `--name=value`; "" when not given."""
        return next((a.partition("=")[2] for a in self.arguments if a.startswith(f"{name}=")), "")

    def built_in(self, pattern: str) -> bool:
        """Whether a module whose source directory matches is built in."""
        return any(a.startswith("--add-module=") and re.search(pattern, a) for a in self.arguments)

    def module_directory(self) -> Path:
        """Where its dynamic modules lie; those of other directories may not fit this binary."""
        prefix = self.argument("--prefix") or "/usr/local/nginx"
        return Path(self.argument("--modules-path") or f"{prefix}/modules")


def find(binary: str) -> Installation:
    """The nginx of this name or path. Raises DependencyError: absent, broken or too old."""
    path = shutil.which(binary, path=f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATH}")
    if path is None:
        raise DependencyError(
            f"there is no program {binary!r} (binary in [nginx]); install it: {_INSTALL}"
        )
    try:
        done = subprocess.run(
            [path, "-V"], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DependencyError(f"`{path} -V` failed: {error}; install it anew: {_INSTALL}") from None
    found = re.search(r"version: (\S+/(\d+)\.(\d+)\.(\d+)\S*)", done.stderr)
    if done.returncode != 0 or not found:
        told = (done.stderr or done.stdout).strip()[:300] or "nothing"
        raise DependencyError(f"`{path} -V` does not answer as nginx does, but: {told}")
    version = tuple(int(n) for n in found.group(2, 3, 4))
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise DependencyError(f"{path} is {found[1]}; Trimtab needs {oldest} or newer: {_INSTALL}")
    line = re.search(r"^configure arguments:(.*)$", done.stderr, re.MULTILINE)
    return Installation(
        path=path,
        version=version,
        name=found[1],
        arguments=tuple(shlex.split(line[1])) if line else (),
    )


def _lua_modules(installation: Installation) -> tuple[str, ...]:
    """What to load for Lua; nothing when built in, as in OpenResty."""
    if "--with-http_v2_module" not in installation.arguments:
        raise DependencyError(
            f"{installation.path} lacks the HTTP/2 module, which carries gRPC; use the "
            f"distribution's: {_INSTALL}"
        )
    if installation.built_in(r"ngx_lua|lua-nginx-module"):
        return ()
    directory = installation.module_directory()
    files = [directory / name for name in _LUA_FILES]
    # The development kit may be built in where Lua is not.
    wanted = files[1:] if installation.built_in("ngx_devel_kit") else files
    absent = [file.name for file in wanted if not file.is_file()]
    if absent:
        raise DependencyError(
            f"{installation.path} ({installation.name}) has no Lua module: no {absent[0]} in "
            f"{directory}; install it: {_INSTALL}\n"
            '  or use an OpenResty (binary in [nginx]), or mode = "stock"'
        )
    return tuple(str(file) for file in wanted)


def _vts_modules(installation: Installation, vts_module: Path | None) -> tuple[str, ...]:
    if vts_module is not None:
        return (str(vts_module),)
    file = installation.module_directory() / _VTS_FILE
    if installation.built_in("vts|vhost-traffic-status") or not file.is_file():
        # Not here, but it may be where the configuration goes: the check tells.
        return ()
    return (str(file),)


def reachable(path: Path, uid: int, gids: frozenset[int]) -> bool:
    """Whether a user may go down to `path`, or to the part of it that exists (by mode bits)."""
    path = path.resolve()
    for directory in (*reversed(path.parents), path):
        try:
            status = directory.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in gids else 0
        if directory.is_dir() and not status.st_mode >> shift & 1:
            return False
    return True


def worker_user(*directories: Path) -> tuple[str, str] | None:
    """User and group for the workers of an nginx that we start.

    None when we are not root: nginx then runs as we do. As root, the first user without rights who
    can go down to the directories. When none can (a checkout in /root) it is root.
    """
    if os.geteuid() != 0:
        return None
    for name in _WORKER_USERS:
        try:
            user = pwd.getpwnam(name)
            group = grp.getgrgid(user.pw_gid)
        except KeyError:
            continue
        gids = frozenset({user.pw_gid})
        if all(reachable(directory, user.pw_uid, gids) for directory in directories):
            return user.pw_name, group.gr_name
    return "root", "root"


def _open_files() -> int:
    """What nginx may ask for: more than the hard limit needs rights that containers take away."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)


def temp_paths(installation: Installation) -> tuple[str, ...]:
    """The kinds of temporary files that this nginx was built with."""
    return tuple(
        kind for kind in TEMP_PATHS if f"--without-http_{kind}_module" not in installation.arguments
    )


def machine(
    installation: Installation, directory: Path, mode: str, *, vts_module: Path | None = None
) -> Machine:
    """What a rendered configuration needs to know of this machine.

    Args:
        installation: the nginx that will run it.
        directory: where the configuration will lie.
        mode: "lua", "stock", or "plain" for neither module.
        vts_module: file of the VTS module, for stock mode; found when None.

    Raises:
        DependencyError: lua mode without the Lua module.
    """
    lua_directory = paths.lua_directory() if mode == "lua" else None
    modules: tuple[str, ...] = ()
    if mode == "lua":
        modules = _lua_modules(installation)
    elif mode == "stock":
        modules = _vts_modules(installation, vts_module)
    return Machine(
        load_modules=modules,
        temp_paths=temp_paths(installation),
        open_files=_open_files(),
        user=worker_user(directory, *([lua_directory] if lua_directory else [])),
        lua_directory=str(lua_directory or ""),
    )
