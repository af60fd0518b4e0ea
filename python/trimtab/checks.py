"""Checks of the configuration's values: what an address, a file, a URL, a name may be.

Each takes a value from TOML and gives what stands in the `Config`, or raises ValueError with what
is allowed. General ones (numbers, choices) are in `tables`; which key has which is in `config`.
"""

import ipaddress
import re
import socket
from pathlib import Path
from typing import Any, Final

from trimtab.tables import MAX_NAME_BYTES, integer

__all__ = [
    "BINARY",
    "CHECK_PATH",
    "DNS_NAME",
    "LOCATION",
    "NAME",
    "VARIABLE",
    "address",
    "addresses",
    "argv",
    "clusters",
    "directory",
    "file",
    "hostname",
    "is_loopback",
    "split_address",
    "url",
    "urls",
    "workers",
]

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
CHECK_PATH: Final = re.compile(r"/[A-Za-z0-9_.~%/+:@,=?&-]*\Z")
LOCATION: Final = re.compile(r"/[A-Za-z0-9_.~%/+:@,=-]*\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}\.?)*\Z")
_UNIX: Final = re.compile(r"unix:(/[A-Za-z0-9_.,+@=-]+)+\Z")
BINARY: Final = re.compile(r"[A-Za-z0-9_./+-]+\Z")
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# As it stands in a certificate; without wildcards.
DNS_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}\.?)*\Z")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[IPv6]:PORT"; ("unix:/path", 0) for a unix socket.

    Raises ValueError with what is allowed.
    """
    meaning = '"HOST:PORT", "[IPv6]:PORT" or "unix:/absolute/path"'
    if len(address) > MAX_NAME_BYTES:
        raise ValueError(meaning)
    if address.startswith("unix:"):
        if not _UNIX.match(address):
            raise ValueError(meaning)
        return address, 0
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(meaning)
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(meaning) from None
    elif not _HOST.match(host):
        raise ValueError(meaning)
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`: a unix socket, localhost, 127.0.0.0/8, ::1."""
    host = split_address(address)[0].strip("[]")
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(value: Any) -> str:
    """ "HOST:PORT", "[IPv6]:PORT" or "unix:/path"."""
    if not isinstance(value, str):
        raise ValueError('"HOST:PORT" or "unix:/absolute/path"')
    split_address(value)
    return value


def addresses(value: Any) -> tuple[str, ...]:
    """A list of them."""
    if not isinstance(value, list) or not value:
        raise ValueError('a list of addresses, as ["127.0.0.1:18080"]')
    return tuple(address(v) for v in value)


def workers(value: Any) -> int | str:
    """1 to 512, or "auto"."""
    if value == "auto":
        return "auto"
    try:
        return integer(1, 512)(value)
    except ValueError:
        raise ValueError('a whole number from 1 to 512, or "auto"') from None


def clusters(value: Any) -> int | str:
    """1 to 256, or "bic"."""
    if value == "bic":
        return "bic"
    try:
        return integer(1, 256)(value)
    except ValueError:
        raise ValueError('a whole number from 1 to 256, or "bic"') from None


def directory(value: Any) -> Path:
    """A path."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a directory")
    return Path(value)


def file(value: Any) -> Path:
    """A path that does not end with a slash."""
    if not isinstance(value, str) or not value or "\0" in value or value.endswith("/"):
        raise ValueError("a file")
    return Path(value)


def urls(value: Any) -> tuple[str, ...]:
    """One URL or a list of different ones."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(
        isinstance(v, str) and re.match(r"https?://\S+\Z", v) for v in values
    ):
        raise ValueError('a URL, as "http://127.0.0.1:18081/status/format/json", or a list of them')
    if len(set(values)) < len(values):
        raise ValueError("a list of different URLs")
    return tuple(values)


def redis_url(value: Any) -> str:
    """Of a Redis server."""
    if (
        not isinstance(value, str)
        or len(value) > 1024
        or not re.match(r"(rediss?://[!-~]+|unix://(\S*@)?/[!-~]+)\Z", value)
    ):
        raise ValueError('"redis://HOST:PORT/0", "rediss://HOST:PORT/0" or "unix:///path?db=0"')
    return value


def url(value: Any) -> str:
    """One URL."""
    if not isinstance(value, str) or not re.match(r"https?://[!-~]+\Z", value):
        raise ValueError('a URL, as "http://127.0.0.1:4318/v1/traces"')
    return value


def argv(value: Any) -> tuple[str, ...]:
    """A command and its arguments."""
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise ValueError('a list of words, as ["sudo", "-n", "/usr/sbin/nginx", "-s", "reload"]')
    return tuple(value)


def hostname() -> str:
    """The machine's name, with what names may not have replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "localhost"
