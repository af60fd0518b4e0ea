"""A real policy server (gRPC) on a unix socket, in a thread of its own, for tests."""

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from trimtab import config
from trimtab.actuators.board import Board
from trimtab.model import PeerWeight, UpstreamWeights, Weights
from trimtab.server import NO_SECRETS, PolicyServer, Secrets
from trimtab.sources.reported import Reported
from trimtab.v1 import policy_pb2_grpc

TIMEOUT = 20.0  # seconds; no call here takes one, but the machine may be busy


def configuration(
    *,
    upstreams: int = 3,
    peers: int = 2,
    listen: str = "127.0.0.1:1",
    admin_listen: str = "127.0.0.1:2",
    policy: str = "",
) -> config.Config:
    """Upstreams u0, u1, … that share the peers 10.0.0.1:80, 10.0.0.2:80, …"""
    lines = ["[policy]", f'listen = "{listen}"', f'admin_listen = "{admin_listen}"', policy]
    for u in range(upstreams):
        lines += ["[[upstream]]", f'name = "u{u}"', f'location = "/u{u}"']
        for p in range(peers):
            lines += ["[[upstream.peer]]", f'address = "{address(p)}"']
    return config.parse("\n".join(lines), "test.toml")


def address(peer: int) -> str:
    """The address of peer number `peer`."""
    return f"10.0.{peer // 250}.{peer % 250 + 1}:80"


def weights(of: config.Config, *, epoch: int = 5, generation: int = 1) -> Weights:
    """Weights for every upstream of a configuration, each peer with its own value."""
    return Weights(
        epoch=epoch,
        generation=generation,
        upstreams={
            u.name: UpstreamWeights(
                deadline_seconds=0.15,
                service_time_seconds=0.0125,
                peers={
                    p.address: PeerWeight(weight=1 + n / 7, affinity=0.5, rate=2.0, slots=3.0)
                    for n, p in enumerate(u.peers)
                },
            )
            for u in of.upstreams
        },
    )


@dataclass
class Serving:
    """A running server, what it reads and writes, and a client's channel to it."""

    config: config.Config
    board: Board
    source: Reported
    channel: grpc.Channel
    calls: list[tuple[str, str]]
    server: PolicyServer
    loop: asyncio.AbstractEventLoop

    @property
    def stub(self) -> policy_pb2_grpc.PolicyServiceStub:
        """The generated client."""
        return policy_pb2_grpc.PolicyServiceStub(self.channel)

    def raw(self, method: str) -> grpc.UnaryUnaryMultiCallable:
        """A method that takes and gives bytes."""
        return self.channel.unary_unary(f"/trimtab.v1.PolicyService/{method}")

    def stop(self) -> Future[None]:
        """Begin to stop the server, gracefully."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop)


@contextmanager
def serving(
    *,
    upstreams: int = 3,
    peers: int = 2,
    generation: int = 1,
    options: tuple = (),
    policy: str = "",
    secrets: Secrets = NO_SECRETS,
    credentials: grpc.ChannelCredentials | None = None,
) -> Iterator[Serving]:
    """A server with `generation` in force; 0 for none. Stopped at the end in any case.

    `policy` has more lines of [policy]; with `credentials` the client speaks TLS, to "localhost".
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-") as directory:
        listen = f"unix:{Path(directory) / 'policy'}"
        checked = configuration(upstreams=upstreams, peers=peers, listen=listen, policy=policy)
        board = Board()
        if generation:
            board.apply(weights(checked, generation=generation))
        source = Reported(checked)
        calls: list[tuple[str, str]] = []
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def start() -> PolicyServer:
            server = PolicyServer(
                checked,
                source,
                board,
                lambda method, code, _: calls.append((method, code)),
                secrets,
            )
            await server.start()
            return server

        try:
            server = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT)
            try:
                if credentials is None:
                    opened = grpc.insecure_channel(listen, options=options)
                else:
                    named = (*options, ("grpc.ssl_target_name_override", "localhost"))
                    opened = grpc.secure_channel(listen, credentials, options=named)
                with opened as channel:
                    yield Serving(checked, board, source, channel, calls, server, loop)
            finally:
                asyncio.run_coroutine_threadsafe(server.stop(), loop).result(TIMEOUT)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(TIMEOUT)
            loop.close()
