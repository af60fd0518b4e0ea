"""A server whose answers are scripted by the request's path, for tests of the load generator.

It runs in the test's own event loop:

    /ok             200 with a body, keep-alive
    /delay/0.02     the same after that many seconds
    /status/503     that status
    /close          200 that says "Connection: close", and closes
    /reset          a TCP reset before any byte of an answer
    /drop           an orderly close before any byte of an answer
    /short          half of the announced body, then an orderly close
    /half-reset     half of the announced body, then a TCP reset
    /hang           no answer
    /trickle        the head, then no body
    /garbage        not HTTP
    /upgrade        101
    /chunked        200 in chunks
    /eof            200 whose body ends with the connection
    /continue       100, then 103, then 200
    /surplus        200, followed by bytes that nobody asked for
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

__all__ = ["Scripted", "scripted"]

_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Trimtab-Peer: %b\r\n\r\nok"
_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf."
_FINAL = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "drop": b"",
    "short": _LONG,
    "garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
    "upgrade": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "eof": b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "surplus": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 Unasked\r\n",
}
_KEPT = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n",
}


@dataclass
class Scripted:
    """What the server has seen."""

    url: str = ""
    name: bytes = b"server-1"
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        self.connections += 1
        self.writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        self.writers.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))
        _, what, *argument = head.split()[1].decode().split("/")
        if what in ("reset", "half-reset"):
            if what == "half-reset":
                writer.write(_LONG)
                await asyncio.sleep(0.05)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        if what in ("hang", "trickle"):
            writer.write(_LONG if what == "trickle" else b"")
            await reader.read()
            return False
        if what in _FINAL:
            writer.write(_FINAL[what])
            await writer.drain()
            return False
        if what == "delay":
            await asyncio.sleep(float(argument[0]))
        if what == "status":
            writer.write(b"HTTP/1.1 %b No\r\nContent-Length: 0\r\n\r\n" % argument[0].encode())
        elif what == "chunked":
            writer.write(_KEPT[what])
        else:
            writer.write(_KEPT.get(what, b"") + _PLAIN % self.name)
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """Serve on a free port of loopback."""
    state = Scripted()
    server = await asyncio.start_server(state.serve, "127.0.0.1", 0, backlog=1024)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        server.close()
        for writer in tuple(state.writers):
            writer.transport.abort()
        await server.wait_closed()
        # The handlers see the abort in the next turns of the loop.
        while state.writers:
            await asyncio.sleep(0.001)
