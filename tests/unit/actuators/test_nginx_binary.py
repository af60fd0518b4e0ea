"""Finding nginx: its version and modules, what is said when one is missing, whom workers run as."""

import os
import pwd
import resource
from pathlib import Path

import pytest

from trimtab.actuators import nginx_binary
from trimtab.actuators.nginx_binary import find, machine, reachable, worker_user
from trimtab.errors import DependencyError

HTTP2 = "--with-http_v2_module"


def fake(
    directory: Path,
    arguments: str = "",
    *,
    says: str = "nginx version: nginx/1.22.1",
    status: int = 0,
) -> str:
    """A program that answers -V as an nginx with these configure arguments; its path."""
    path = directory / "nginx"
    path.write_text(
        f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nconfigure arguments: {arguments}\nEND\n"
        f"exit {status}\n"
    )
    path.chmod(0o755)
    return str(path)


def modules(directory: Path, *names: str) -> Path:
    """A modules directory with these (empty) files."""
    path = directory / "modules"
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_the_real_nginx_has_lua() -> None:
    """The distribution's nginx is found with ndk before lua, as files that exist."""
    found = find("nginx")
    assert found.version >= (1, 15, 3)
    loaded = machine(found, Path("/srv/x"), "lua").load_modules
    assert [Path(file).name for file in loaded] == ["ndk_http_module.so", "ngx_http_lua_module.so"]
    assert all(Path(file).is_file() for file in loaded)


def test_it_is_found_in_sbin_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose PATH lacks /usr/sbin has nginx all the same."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Path(find("nginx").path).is_absolute()


def test_no_nginx_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing binary is a DependencyError with the whole apt-get command."""
    monkeypatch.setattr(nginx_binary, "_MORE_PATH", "/nonexistent")
    command = "apt-get install --no-install-recommends nginx libnginx-mod-http-lua lua-cjson"
    with pytest.raises(DependencyError, match=command):
        find("nginx-that-is-not-there")


def test_configure_arguments_are_read_as_the_shell_does(tmp_path: Path) -> None:
    """Quoted arguments with blanks are one argument."""
    found = find(fake(tmp_path, f"--with-cc-opt='-g -O2' --modules-path=/m {HTTP2}"))
    assert found.arguments == ("--with-cc-opt=-g -O2", "--modules-path=/m", HTTP2)
    assert found.module_directory() == Path("/m")


def test_without_a_modules_path_it_is_below_the_prefix(tmp_path: Path) -> None:
    """nginx's own defaults hold when configure was not told."""
    assert find(fake(tmp_path)).module_directory() == Path("/usr/local/nginx/modules")
    assert find(fake(tmp_path, "--prefix=/opt/n")).module_directory() == Path("/opt/n/modules")


@pytest.mark.parametrize(
    ("present", "absent"),
    [((), "ndk_http_module.so"), (("ndk_http_module.so",), "ngx_http_lua_module.so")],
)
def test_a_missing_lua_module_names_file_and_package(
    present: tuple[str, ...], absent: str, tmp_path: Path
) -> None:
    """The message says which file is missing where, and what installs it."""
    directory = modules(tmp_path, *present)
    found = find(fake(tmp_path, f"--modules-path={directory} {HTTP2}"))
    with pytest.raises(DependencyError, match=f"no {absent} in {directory}") as told:
        machine(found, tmp_path, "lua")
    assert "libnginx-mod-http-lua" in str(told.value)


def test_openresty_needs_no_module(tmp_path: Path) -> None:
    """With Lua built in nothing is loaded."""
    path = fake(
        tmp_path,
        f"--add-module=../ngx_devel_kit-0.3.3 --add-module=../ngx_lua-0.10.26 {HTTP2}",
        says="nginx version: openresty/1.25.3.1",
    )
    found = find(path)
    assert found.name == "openresty/1.25.3.1"
    assert found.version == (1, 25, 3)
    assert machine(found, tmp_path, "lua").load_modules == ()


def test_lua_mode_needs_http2_for_grpc(tmp_path: Path) -> None:
    """An nginx that cannot speak gRPC is refused before it is started."""
    with pytest.raises(DependencyError, match="HTTP/2"):
        machine(find(fake(tmp_path)), tmp_path, "lua")


def test_other_modes_need_no_lua_module(tmp_path: Path) -> None:
    """Stock mode and plain nginx run without any module."""
    found = find(fake(tmp_path, f"--modules-path={modules(tmp_path)}"))
    assert machine(found, tmp_path, "stock").load_modules == ()
    assert machine(found, tmp_path, "plain").load_modules == ()


def test_the_vts_module_is_found_or_named(tmp_path: Path) -> None:
    """Stock mode loads the module beside nginx's others, or the file that the user names."""
    directory = modules(tmp_path, "ngx_http_vhost_traffic_status_module.so")
    found = find(fake(tmp_path, f"--modules-path={directory}"))
    own = str(directory / "ngx_http_vhost_traffic_status_module.so")
    assert machine(found, tmp_path, "stock").load_modules == (own,)
    named = machine(found, tmp_path, "stock", vts_module=Path("/x/vts.so"))
    assert named.load_modules == ("/x/vts.so",)


def test_modules_left_out_have_no_temp_path(tmp_path: Path) -> None:
    """A directive of a module that was not built would be an error."""
    found = find(fake(tmp_path, "--without-http_scgi_module --without-http_uwsgi_module"))
    assert machine(found, tmp_path, "plain").temp_paths == ("client_body", "proxy", "fastcgi")


@pytest.mark.parametrize(
    ("says", "status", "told"),
    [
        ("nginx version: nginx/1.14.2", 0, "needs 1.15.3 or newer"),
        ("GNU bash, version 5", 0, "does not answer as nginx does"),
        ("nginx version: nginx/1.22.1", 1, "does not answer as nginx does"),
    ],
)
def test_what_is_no_usable_nginx_is_refused(
    says: str, status: int, told: str, tmp_path: Path
) -> None:
    """Too old, another program, or failing: one message each."""
    with pytest.raises(DependencyError, match=told):
        find(fake(tmp_path, says=says, status=status))


def test_a_directory_is_reachable_by_those_who_may_enter_it(tmp_path: Path) -> None:
    """Mode bits of owner, group and others decide, and every parent counts."""
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for parent in tmp_path.parents[:-2]:
        # pytest keeps its directories to the owner.
        if parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)
    tmp_path.chmod(0o711)
    me = os.getuid()
    stranger, none = 54321, frozenset[int]()
    outer.chmod(0o711)
    inner.chmod(0o755)
    assert reachable(inner, stranger, none)
    assert reachable(inner / "not" / "yet", stranger, none)
    outer.chmod(0o700)
    assert not reachable(inner, stranger, none)
    assert reachable(inner, me, none)
    outer.chmod(0o710)
    assert reachable(inner, stranger, frozenset({outer.stat().st_gid}))
    assert not reachable(inner, stranger, none)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses a user")
def test_root_gives_the_workers_a_user_without_rights(tmp_path: Path) -> None:
    """Workers do not run as root, unless nobody else can enter the directories."""
    user = worker_user(Path("/usr/share"))
    assert user is not None
    assert pwd.getpwnam(user[0]).pw_uid != 0
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert worker_user(Path("/usr/share"), closed) == ("root", "root")


def test_who_is_not_root_runs_workers_as_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root there is no user directive, which nginx would warn about."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert worker_user(Path("/usr/share")) is None


@pytest.mark.parametrize(
    ("hard", "asked"), [(resource.RLIM_INFINITY, 40_000), (1_048_576, 40_000), (4096, 4096)]
)
def test_nginx_asks_for_no_more_files_than_it_may_have(
    hard: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard limit bounds what is asked for, so that nginx has nothing to complain about."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    assert machine(find(fake(tmp_path)), tmp_path, "plain").open_files == asked
