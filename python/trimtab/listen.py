"""Where a server may listen: says clearly when an address is taken, and clears a stale socket.

Used for the gRPC and the admin address alike; the listening itself is done by their libraries.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trimtab.config import split_address
from trimtab.errors import TrimtabError

__all__ = ["SOCKET_MODE", "claim", "socket_mode"]

# Owner and group: who may steer the balancer is decided by membership in the group.
SOCKET_MODE = 0o660


def claim(address: str, key: str, section: str = "[policy]") -> None:
    """Make sure that nobody listens on `address`, the value of `key` in `section`.

    A unix socket that nobody answers on is removed: a server killed with -9 leaves one behind.
    Anything else at that path is left alone. Raises TrimtabError.
    """
    host, port = split_address(address)
    if host.startswith("unix:"):
        _claim_path(Path(host.removeprefix("unix:")), key, section)
        return
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TrimtabError(f"{key} = {address!r}: no such address: {error}") from None
    family, kind, protocol, _, where = found[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        # As the servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
            probe.listen(1)
        except OSError as error:
            raise TrimtabError(
                f"cannot listen on {key} = {address!r}: {error.strerror}; stop what uses it "
                f"(`ss -ltnp 'sport = :{port}'` names it), or set another {key} in {section}"
            ) from None


def _claim_path(path: Path, key: str, section: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise TrimtabError(
                f"cannot listen on {key} = 'unix:{path}': no directory {path.parent}; create it"
            ) from None
        return
    except OSError as error:
        raise TrimtabError(f"cannot listen on {key} = 'unix:{path}': {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise TrimtabError(
            f"cannot listen on {key} = 'unix:{path}': it exists and is not a socket; "
            f"remove it, or set another {key} in {section}"
        )
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        # A full backlog must not hold us up: whoever has one is alive.
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise TrimtabError(
                f"cannot listen on {key} = 'unix:{path}': {error}; is another server there?"
            ) from None
    raise TrimtabError(
        f"cannot listen on {key} = 'unix:{path}': another server answers there; stop it, "
        f"or set another {key} in {section}"
    )


@contextmanager
def socket_mode() -> Iterator[None]:
    """Within it, new unix sockets get mode 0660 from the start. Not for use beside threads."""
    old = os.umask(0o777 & ~SOCKET_MODE)
    try:
        yield
    finally:
        os.umask(old)
