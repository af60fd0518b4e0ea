"""Speaks with the admin address of a policy server: for the commands that ask or order.

Not a command itself. Standard library only.
"""

import argparse
import getpass
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from trimtab import bearer, config
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["add_order_arguments", "add_where", "address", "get", "order"]

# The server answers in milliseconds, or gives up itself after five seconds.
TIMEOUT_SECONDS: Final = 6.0

# 16384 pairs at about 300 bytes, several times over: what is larger is not ours.
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024


def add_where(parser: argparse.ArgumentParser) -> None:
    """Declare --config and --admin."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--config",
        default="trimtab.toml",
        metavar="FILE",
        help="the policy server's TOML file, for admin_listen (%(default)s)",
    )
    where.add_argument(
        "--admin", metavar="URL", help='its admin address: "HOST:PORT", "http://…" or "unix:/path"'
    )


def add_order_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every order takes: where, the token, and why."""
    add_where(parser)
    parser.add_argument("--why", default="", metavar="TEXT", help="the reason, for the journal")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"the token (default: ${bearer.VARIABLE}, or what the --config file names)",
    )
    parser.epilog = (
        "The order holds from the policy server's next step on, an interval at most, and over its\n"
        "restarts. The journal tells who ordered it and why."
    )


def address(arguments: argparse.Namespace) -> str:
    """The admin address that the arguments name. Raises ConfigError."""
    return str(arguments.admin or config.load(arguments.config).policy.admin_listen)


def get(admin: str, path: str) -> Any:
    """The JSON at a path. Raises TrimtabError, also with the server's own words."""
    return _answer(admin, "GET", path, None, {})


def order(arguments: argparse.Namespace, action: str, body: dict[str, Any]) -> int:
    """Send an order and print what was done; 0. Raises TrimtabError."""
    token = _token(arguments)
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body["who"] = _who()
    if arguments.why:
        body["why"] = arguments.why
    told = _answer(address(arguments), "POST", f"/control/{action}", body, headers)
    print(told.get("done", "done"))
    return 0


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token_file:
        return bearer.read_file(arguments.token_file, "--token-file")
    if given := os.environ.get(bearer.VARIABLE):
        return bearer.checked(given.strip(), f"${bearer.VARIABLE}")
    if arguments.admin:
        return None  # the server's answer says what is missing
    return bearer.token(config.load(arguments.config).policy)


def _who() -> str:
    """user@host, as the journal shows it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    name = f"{user}@{socket.gethostname()}"
    return "".join(c for c in name if c.isprintable())[:64]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(admin: str) -> http.client.HTTPConnection:
    if admin.startswith("unix:/"):
        return _UnixConnection(admin.removeprefix("unix:"))
    url = urlsplit(admin if "://" in admin else f"http://{admin}")
    try:
        port = url.port
    except ValueError:
        port = None
    if url.scheme != "http" or not url.hostname or port is None or url.path not in ("", "/"):
        raise ConfigError(
            f"--admin is {admin!r}; it must be HOST:PORT, http://HOST:PORT or unix:/path"
        )
    return http.client.HTTPConnection(url.hostname, port, timeout=TIMEOUT_SECONDS)


def _answer(
    admin: str, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
) -> Any:
    connection = _connection(admin)
    sent = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, sent, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        raw = answer.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise TrimtabError(
            f"no policy server answers at {admin}: {error or type(error).__name__}; "
            "`trimtab serve` starts one (balancers go on with their static weights meanwhile)"
        ) from None
    finally:
        connection.close()
    try:
        told = json.loads(raw)
    except ValueError:
        told = None
    if answer.status == 200:
        return told
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        text = told["error"]
        # A name or number of the caller's: as any wrong argument.
        raise (ConfigError if answer.status in (400, 404) else TrimtabError)(text)
    reason = raw[:300].decode("utf-8", "replace").strip()
    raise TrimtabError(f"the server at {admin} answered {answer.status}: {reason}")
