"""One keep-alive connection: writes a request, parses the answer, says how it ended.

It carries one request at a time. When requests are sent, and what is recorded, is in `client`.
"""

import asyncio
from typing import Any, Final, Protocol

import httptools

from trimtab.load.records import Ending

__all__ = ["Connection", "Owner"]

PEER_HEADER: Final = b"x-trimtab-peer"


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def first_byte(self, index: int) -> None:
        """The first bytes of the answer to request `index` are here."""

    def peer(self, index: int, name: bytes) -> None:
        """The answer to request `index` names the server that gave it."""

    def ended(self, connection: "Connection", ending: Ending, status: int) -> None:
        """The request of this connection ended; `connection.index` is still its number."""

    def idle(self, connection: "Connection") -> None:
        """This connection may carry another request."""

    def gone(self, connection: "Connection") -> None:
        """This connection is closed."""


class Connection(asyncio.Protocol):
    """A connection and the request that it carries, number `index` (-1: none)."""

    __slots__ = (
        "_answered", "_framed", "_keeps_alive", "_owner", "_parser", "_status", "_surplus",
        "_unsent", "closed", "index", "opening", "received", "transport",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser: Any = httptools.HttpResponseParser(self)
        self.transport: Any = None
        self.opening: asyncio.Task[None] | None = None
        self.closed = False
        self.index = -1
        self.received = 0  # bytes of the answer
        self._unsent = b""
        self._answered = False  # the whole answer is here
        self._framed = False  # the answer says where it ends
        self._keeps_alive = False
        self._surplus = False  # bytes beyond the answer came
        self._status = 0

    def send(self, index: int, data: bytes) -> None:
        """Send request `index`, at once or as soon as the connection is made."""
        self.index = index
        self.received = 0
        self._answered = self._framed = self._surplus = False
        if self.transport is None:
            self._unsent = data
        else:
            self.transport.write(data)

    def abandon(self, ending: Ending) -> None:
        """End the request under way like this, and close."""
        self._end(ending)
        self.close()

    def close(self) -> None:
        """Close at once, also while it is still being opened."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def _end(self, ending: Ending, status: int = 0) -> None:
        self._owner.ended(self, ending, status)
        self.index = -1

    def _end_answered(self) -> None:
        self._end(Ending.OK if 200 <= self._status < 300 else Ending.STATUS, self._status)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write the request that waited for the connection."""
        self.transport = transport
        if self.closed:
            self.transport.abort()
            return
        self.transport.write(self._unsent)
        self._unsent = b""

    def data_received(self, data: bytes) -> None:
        """Parse; an answer to nothing, or bytes after an answer, cost the connection."""
        index = self.index
        if index < 0:
            self.close()
            return
        if not self.received:
            self._owner.first_byte(index)
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._answered:
                self._end_answered()
            else:
                self._end(Ending.MALFORMED)
            self.close()
            return
        if self._answered:
            self._end_answered()
            if self._keeps_alive and not self._surplus:
                self._owner.idle(self)
            else:
                self.close()

    def eof_received(self) -> None:
        """The server closes: nothing more may be sent here."""
        self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request under way by how far its answer had come."""
        self.closed = True
        self._owner.gone(self)
        self._parser = None  # it points back here: without this only the collector frees both
        if self.index < 0:
            return
        if not self.received:
            self._end(Ending.RESET)
        elif exc is None and not self._framed and self._status >= 200:
            self._end_answered()  # such an answer ends where the connection does
        else:
            self._end(Ending.SHORT)

    # httptools

    def on_message_begin(self) -> None:
        """Another answer begins: after a 1xx, or beyond the one asked for."""
        self._surplus = self._answered
        self._framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note who answers, and whether the answer says where it ends."""
        if self._answered:
            return
        lower = name.lower()
        if lower == PEER_HEADER:
            self._owner.peer(self.index, value)
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """Note the status."""
        if not self._answered:
            self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """A 1xx only announces the answer; anything else is it."""
        if self._status >= 200 and not self._answered:
            self._answered = True
            self._keeps_alive = self._parser.should_keep_alive()
