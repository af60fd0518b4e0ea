"""A small HTTP/1.1 server connection: keep-alive, bodies read and dropped, one request at a time.

What to answer is the owner's business: it gets each whole request and calls `respond`, now or
later. Requests that a client pipelines wait here for the answer before them.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools

__all__ = ["Connection", "Request"]

# Bounds on what a client can make us keep.
MAX_PIPELINED: Final = 16
MAX_HEADERS: Final = 200
MAX_KEPT_BODY_BYTES: Final = 65536

REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    500: b"Internal Server Error",
}


class Request:
    """One request: the method, the path without its query, and the headers in lower case.

    `body` keeps the first MAX_KEPT_BODY_BYTES only.
    """

    __slots__ = ("body", "headers", "keep_alive", "method", "old", "path")

    def __init__(self) -> None:
        self.method = b"GET"
        self.path = b"/"
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True
        self.old = False  # HTTP/1.0


class Connection(asyncio.Protocol):
    """One client connection. `closed` is True from the moment the client is gone."""

    __slots__ = ("_busy", "_handle", "_known", "_parser", "_request", "_transport", "_waiting")

    def __init__(
        self, handle: Callable[["Connection", Request], None], known: set["Connection"]
    ) -> None:
        self._handle = handle
        self._known = known
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = Request()
        self._waiting: deque[Request] = deque()
        self._busy: Request | None = None

    @property
    def closed(self) -> bool:
        """Whether nobody reads the answer any more."""
        return self._transport is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._known.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by the loop."""
        self._transport = None
        self._waiting.clear()
        self._known.discard(self)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse()
        except httptools.HttpParserError:
            self._refuse()

    def _refuse(self) -> None:
        """Answer 400 (after nothing: what was asked before is dropped) and close."""
        if self._transport is not None:
            self._waiting.clear()
            self._busy = Request()
            self._busy.keep_alive = False
            self.respond(400, b"Bad request\n")

    # Called by the parser.

    def on_message_begin(self) -> None:  # noqa: D102
        self._request = Request()

    def on_url(self, url: bytes) -> None:  # noqa: D102
        # Absolute-form request lines (http://host/path) are valid HTTP/1.1.
        path = httptools.parse_url(url).path if not url.startswith(b"/") else url
        self._request.path = (path or b"/").partition(b"?")[0]

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if len(self._request.headers) < MAX_HEADERS:
            self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:  # noqa: D102
        expects = self._request.headers.get(b"expect", b"").lower() == b"100-continue"
        if expects and self._busy is None and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:  # noqa: D102
        room = MAX_KEPT_BODY_BYTES - len(self._request.body)
        if room > 0:
            self._request.body += body[:room]

    def on_message_complete(self) -> None:  # noqa: D102
        request = self._request
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.old = self._parser.get_http_version() == "1.0"
        if self._busy is None:
            self._busy = request
            self._handle(self, request)
        elif len(self._waiting) < MAX_PIPELINED:
            self._waiting.append(request)
        else:
            self.reset()

    def respond(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Answer the request in hand; `headers` are whole lines. Does nothing when closed."""
        request, self._busy = self._busy, None
        if self._transport is None or request is None:
            return
        if not request.keep_alive:
            headers += b"Connection: close\r\n"
        elif request.old:
            headers += b"Connection: keep-alive\r\n"
        head = b"HTTP/1.1 %d %b\r\nContent-Length: %d\r\n%b\r\n" % (
            status,
            REASONS[status],
            len(body),
            headers,
        )
        self._transport.write(head if request.method == b"HEAD" else head + body)
        if not request.keep_alive:
            self._transport.close()
        elif self._waiting:
            self._busy = self._waiting.popleft()
            self._handle(self, self._busy)

    def reset(self) -> None:
        """Cut the connection with a TCP reset, as a crashed server does."""
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
