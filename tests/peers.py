"""Small HTTP peers with slots and a speed, in one thread, for tests of balancers.

A request's `X-Work` is its service time in seconds at speed 1 (0 without it). `X-Fault` asks for a
misdeed (with `X-Fault-Path` only on that path); `Peer.fault` sets one for all requests of a peer:

    500, 404, 200 …   answer with this status
    close             close the connection instead of an answer
    half              announce ten bytes more than are sent, then close
    hang              never answer
    pause:S           wait so many seconds between the head of the answer and its body
    101               switch protocols, and send back what comes
    accel:/path       answer with X-Accel-Redirect
    size:BYTES        answer with a body of so many bytes

Answers carry `X-Trimtab-Peer` and, as their body, the peer's port.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Peer", "Peers", "peers"]


@dataclass
class Peer:
    """One server. Attributes may be changed while it serves; they apply to the next request."""

    slots: int = 64
    speed: float = 1.0
    fault: str = ""
    port: int = 0
    seen: int = 0
    in_flight: int = 0
    _free: asyncio.Semaphore | None = None

    @property
    def address(self) -> str:
        """IP:PORT."""
        return f"127.0.0.1:{self.port}"

    async def serve(self) -> asyncio.Server:
        """Begin to listen."""
        self._free = asyncio.Semaphore(self.slots)
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        line, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines) if k}
        await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen += 1
        fault = self.fault
        path = line.split()[1]
        if headers.get("x-fault-path", path) == path:
            fault = headers.get("x-fault", "") or fault
        self.in_flight += 1
        try:
            assert self._free is not None
            async with self._free:
                if work := float(headers.get("x-work", 0)):
                    await asyncio.sleep(work / self.speed)
                if fault == "101":
                    return await self._echo(reader, writer)
                return await self._answer(writer, fault, line.startswith("HEAD "))
        finally:
            self.in_flight -= 1

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        while data := await reader.read(1000):
            writer.write(data)
        return False

    async def _answer(self, writer: asyncio.StreamWriter, fault: str, is_head: bool) -> bool:
        if fault == "close":
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        status, extra = 200, ""
        pause = float(fault[6:]) if fault.startswith("pause:") else 0.0
        if fault.startswith("accel:"):
            extra = f"X-Accel-Redirect: {fault[6:]}\r\n"
        elif fault.isdigit():
            status = int(fault)
        body = str(self.port).encode()
        if fault.startswith("size:"):
            body = b"x" * int(fault[5:])
        length = len(body) + (10 if fault == "half" else 0)
        writer.write(
            f"HTTP/1.1 {status} Any\r\nContent-Length: {length}\r\n"
            f"X-Trimtab-Peer: {self.address}\r\n{extra}\r\n".encode()
        )
        if pause:
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(b"" if is_head or status in (204, 304) else body)
        await writer.drain()
        return fault != "half"


class Peers(list[Peer]):
    """The peers of `peers`, and the loop that they run in."""

    loop: asyncio.AbstractEventLoop

    @property
    def addresses(self) -> list[str]:
        """Of all of them."""
        return [p.address for p in self]


@contextlib.contextmanager
def peers(*each: Peer) -> Iterator[Peers]:
    """Serve with these peers until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers: list[asyncio.Server] = []

    async def start() -> None:
        servers.extend([await peer.serve() for peer in each])

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        group = Peers(each)
        group.loop = loop
        yield group
    finally:

        async def stop() -> None:
            for server in servers:
                server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Closed transports say so in the next round of the loop.
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
