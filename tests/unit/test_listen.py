"""Taking an address: a taken one is named with its key, a stale socket is cleared."""

import os
import socket
import stat
from pathlib import Path

import pytest

from trimtab.errors import TrimtabError
from trimtab.listen import claim, socket_mode


def test_taken_port_is_named_with_its_key() -> None:
    """The message has key, address, reason, and how to find who has it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(TrimtabError) as caught:
            claim(f"127.0.0.1:{port}", "admin_listen")
    text = str(caught.value)
    assert text.startswith(f"cannot listen on admin_listen = '127.0.0.1:{port}': Address already")
    assert f"sport = :{port}" in text


def test_free_port_stays_free() -> None:
    """Claiming does not hold the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    claim(f"127.0.0.1:{port}", "listen")
    socket.create_server(("127.0.0.1", port)).close()


def test_address_of_another_machine_is_refused() -> None:
    """An address that this machine does not have is named too (TEST-NET-1)."""
    with pytest.raises(TrimtabError, match=r"listen = '192\.0\.2\.1:18290'.*Cannot assign"):
        claim("192.0.2.1:18290", "listen")


def test_stale_socket_is_removed(tmp_path: Path) -> None:
    """A socket that nobody answers on is what a killed server left: it goes."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    claim(f"unix:{path}", "listen")
    assert not path.exists()


def test_live_socket_stays(tmp_path: Path) -> None:
    """A socket that another server answers on is left alone."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(TrimtabError, match="another server answers there"):
            claim(f"unix:{path}", "listen")
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    """A file, a directory and a link at the path are never removed."""
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrimtabError, match="it exists and is not a socket; remove it"):
        claim(f"unix:{path}", "listen")
    assert os.path.lexists(path)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """A path in a directory that is not there says so."""
    with pytest.raises(TrimtabError, match=f"no directory {tmp_path}/none; create it"):
        claim(f"unix:{tmp_path}/none/socket", "listen")


def test_new_sockets_are_for_owner_and_group(tmp_path: Path) -> None:
    """Sockets bound within it have mode 0660 from the start; the umask comes back."""
    before = os.umask(0o022)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            with socket_mode():
                server.bind(str(tmp_path / "socket"))
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o660
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
