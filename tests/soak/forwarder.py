"""A TCP forwarder that can be told to misbehave: the network between nginx and policy server."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

__all__ = ["Forwarder", "Link", "forwarding"]

# As much as is read at once; a control message has less.
CHUNK_BYTES = 65536


class Link(Enum):
    """What becomes of connections."""

    UP = "up"
    REFUSED = "refused"  # connections are closed at once
    SILENT = "silent"  # taken, and nothing comes through
    SLOW = "slow"  # every chunk is late by SLOW_SECONDS
    GARBLED = "garbled"  # some bytes of the answers are others


SLOW_SECONDS = 0.3

# So that nearly every answer has one, in the framing, the message or a number of it.
GARBLED_BYTES_RATIO = 0.02


class Forwarder:
    """Forwards `listen_port` to `port`, both on loopback; `link` may be set from any thread."""

    def __init__(self, listen_port: int, port: int, seed: int = 0) -> None:
        self.listen_port = listen_port
        self.link = Link.UP
        self._port = port
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Forward until `stop`."""
        server = await asyncio.start_server(self._take, "127.0.0.1", self.listen_port)
        started.set()
        async with server:
            await stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            if self.link is Link.REFUSED:
                writer.transport.abort()
                return
            onward, back = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(back):
                await asyncio.gather(
                    self._pass(reader, back, False), self._pass(onward, writer, True)
                )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.link is Link.REFUSED:
                writer.transport.abort()
                return
            while self.link is Link.SILENT:
                await asyncio.sleep(0.02)
            if self.link is Link.SLOW:
                await asyncio.sleep(SLOW_SECONDS)
            if self.link is Link.GARBLED and answers:
                data = self._garbled(data)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _garbled(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(max(1, int(GARBLED_BYTES_RATIO * len(data)))):
            changed[self._random.randrange(len(changed))] = self._random.randrange(256)
        return bytes(changed)


@contextmanager
def forwarding(listen_port: int, port: int, seed: int = 0) -> Iterator[Forwarder]:
    """A forwarder in a thread of its own."""
    forwarder = Forwarder(listen_port, port, seed)
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(forwarder.serve(started, stop)), daemon=True
    )
    thread.start()
    try:
        if not started.wait(10):
            raise OSError(f"the forwarder does not listen on port {listen_port}")
        yield forwarder
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
