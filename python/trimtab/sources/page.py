"""Fetches one page over HTTP, again and again, bounded in time and size.

`http://…`, `https://…` (checked against the system's authorities, or a file of one's own), with
user and password in the URL if need be, and `http://unix:/path/of/socket:/uri` as nginx writes it.
Proxies of the environment and .netrc are not used: a status page is near.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from trimtab.errors import ConfigError, SourceError

__all__ = ["MAX_BYTES", "Page"]

# A server takes about 3.5 kB of a VTS page, a third of it per class: this is room for 9000.
MAX_BYTES: Final = 32 * 1024 * 1024
CONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 2.0
# For the whole answer: one that drips in must not stop the readings for longer.
WHOLE_SECONDS: Final = 5.0

_UNIX: Final = re.compile(r"http://unix:(/[^:?#]+)(?::(/.*))?\Z")


class _Flying(threading.local):
    """The connections that requests of this thread use, for the watchdog of `Page.read`."""

    def __init__(self) -> None:
        self.connections: list[HTTPConnection] = []


_flying: Final = _Flying()


class _Noted(HTTPConnection):
    """A connection that is known while it is used."""

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request."""
        _flying.connections.append(self)
        super().request(*arguments, **options)


class _NotedTls(HTTPSConnection):
    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request."""
        _flying.connections.append(self)
        super().request(*arguments, **options)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Noted


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _NotedTls


class _Adapter(HTTPAdapter):
    """Connections that are noted; to a unix socket when there is a `path`."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Called by the base class."""
        super().init_poolmanager(*arguments, **options)
        pools: dict[str, Any] = {"http": _Pool, "https": _TlsPool}
        if self._path:
            path = self._path

            class Unix(_Noted):
                def _new_conn(self) -> socket.socket:
                    connection = socket.socket(socket.AF_UNIX)
                    try:
                        connection.settimeout(CONNECT_SECONDS)
                        connection.connect(path)
                    except OSError as error:
                        connection.close()
                        raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
                    return connection

            pools["http"] = type("UnixPool", (_Pool,), {"ConnectionCls": Unix})
        self.poolmanager.pool_classes_by_scheme = pools


class Page:
    """One page. For one thread at a time; close it, or use it in `with`.

    Args:
        url: what to fetch.
        ca_file: authorities for https, instead of the system's.
        agent: the User-Agent.

    Raises ConfigError for a URL of another kind, or a `ca_file` that is not there.
    """

    def __init__(self, url: str, *, ca_file: Path | None = None, agent: str = "trimtab") -> None:
        self.shown = _without_password(url)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update({"User-Agent": agent, "Accept-Encoding": "identity"})
        unix = _UNIX.match(url)
        self._url = f"http://localhost{unix[2] or '/'}" if unix else url
        adapter = _Adapter(unix[1] if unix else "")
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        if not re.match(r"https?://[^/]", self._url):
            raise ConfigError(f"the URL {self.shown!r} must begin with http:// or https://")
        if ca_file is not None:
            if not ca_file.is_file():
                raise ConfigError(f"there is no file {ca_file} of authorities for {self.shown}")
            self._session.verify = str(ca_file)

    def read(self) -> bytes:
        """The page's body.

        Raises SourceError with one sentence for anything else: no connection, a timeout, a
        redirect, an HTTP error, an answer too large or too slow.
        """
        with _cut_after(WHOLE_SECONDS) as late:
            try:
                body = self._fetch()
                # A head that ends early may pass for one with an empty body.
                if late.is_set():
                    raise self._too_slow()
                return body
            except SourceError:
                raise
            except Exception as error:
                if late.is_set():
                    raise self._too_slow() from None
                raise self._failed(error) from None

    def _too_slow(self) -> SourceError:
        return SourceError(f"{self.shown} takes more than {WHOLE_SECONDS:g} s to answer")

    def _failed(self, error: Exception) -> SourceError:
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return SourceError(f"{self.shown} does not answer in time")
        if isinstance(error, requests.exceptions.SSLError):
            return SourceError(f"{self.shown}: TLS: {_reason(error)}")
        if isinstance(error, requests.ConnectionError):
            return SourceError(f"{self.shown}: {_reason(error)}")
        known = requests.RequestException | urllib3.exceptions.HTTPError | OSError | ValueError
        if isinstance(error, known):
            return SourceError(f"{self.shown}: {str(error).replace(self._url, self.shown):.200}")
        raise error

    def _fetch(self) -> bytes:
        give_up = time.monotonic() + WHOLE_SECONDS
        with self._session.get(
            self._url,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            stream=True,
            allow_redirects=False,
        ) as answer:
            if answer.is_redirect:
                to = _without_password(answer.headers["Location"])
                raise SourceError(f"{self.shown} redirects to {to:.200}: name that")
            if answer.status_code != 200:
                hint = " (user and password go into the URL)" if answer.status_code == 401 else ""
                raise SourceError(
                    f"{self.shown} answers {answer.status_code} {answer.reason:.80}{hint}"
                )
            # read1 gives what has come; read would wait for the whole piece while a body drips.
            # urllib3 has it from 2.1 on.
            some = getattr(answer.raw, "read1", answer.raw.read)
            body = bytearray()
            while piece := some(65536):
                body += piece
                if len(body) > MAX_BYTES:
                    raise SourceError(f"{self.shown} answers more than {MAX_BYTES} bytes")
                if time.monotonic() > give_up:
                    raise self._too_slow()
        return bytes(body)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _cut_after(seconds: float) -> Iterator[threading.Event]:
    """Cut the connections of this thread's requests after some time; the event tells that.

    The read timeout holds for each read: an answer whose head drips would go on for hours.
    """
    connections = _flying.connections = []
    late = threading.Event()

    def cut() -> None:
        late.set()
        for connection in connections:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        _flying.connections = []


def _without_password(url: str) -> str:
    """A URL to show: who logs in is nobody's business."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/]*@", "//", url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _reason(error: BaseException) -> str:
    """What the operating system said, out of the layers that requests and urllib3 wrap it in."""
    inner: BaseException | None = error
    for _ in range(8):  # they nest three or four deep
        if inner is None:
            break
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        reason = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        first = inner.args[0] if inner.args else None
        inner = reason if isinstance(reason, BaseException) else first
        if not isinstance(inner, BaseException):
            break
    return "no connection"
