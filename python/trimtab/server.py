"""The gRPC server: PolicyService and the standard health service.

It answers from the board and takes reports into the source; it decides nothing. Messages come and
go as bytes: `messages` decodes them with every bound, so that a damaged one is INVALID_ARGUMENT
(generated deserialisers would make it INTERNAL), and serialised weights are kept, not made anew.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from trimtab import messages
from trimtab.actuators.board import Board
from trimtab.bounds import MessageError
from trimtab.config import Config
from trimtab.errors import SourceError, TrimtabError
from trimtab.listen import claim, socket_mode
from trimtab.sources.reported import Reported

__all__ = ["SERVICE", "Observe", "PolicyServer"]

_log: Final = logging.getLogger(__name__)

SERVICE: Final = "trimtab.v1.PolicyService"

# Called once a call with method, status code name and seconds; for metrics.
Observe = Callable[[str, str, float], None]

_OPTIONS: Final = (
    # Two servers on one port would share the balancers' calls at random: refuse instead.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", messages.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", messages.MAX_MESSAGE_BYTES),
    # Identity only: the size limit holds before decompression, so a compressed message of a few
    # kilobytes could fill the memory.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_metadata_size", 16 * 1024),
    # What HTTP/2 servers usually allow a connection; a balancer needs two.
    ("grpc.max_concurrent_streams", 128),
    # A peer that vanished without a word is noticed within 80 s, and its connection closed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ping every 10 s without being taken for a flood.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
)

# Calls under way at once, over all connections: a thousand balancers that ask and report in the
# same instant, twice over. More get RESOURCE_EXHAUSTED and ask again.
MAX_CALLS: Final = 4096

# Calls under way when the server stops get this long; they take milliseconds.
STOP_GRACE_SECONDS: Final = 2.0


class _RefusedError(Exception):
    """A call that is answered with a status other than OK; the text is for the caller."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def _ignore(method: str, code: str, seconds: float) -> None:
    """Observe nothing."""


class PolicyServer:
    """PolicyService on `config.policy.listen`. Used within one event loop."""

    def __init__(
        self, config: Config, source: Reported, board: Board, observe: Observe = _ignore
    ) -> None:
        self._config = config
        self._source = source
        self._board = board
        self._observe = observe
        self._known = {u.name: frozenset(p.address for p in u.peers) for u in config.upstreams}
        self._answers: messages.Answers | None = None
        # One large report is decoded at a time: its memory is bounded, that of many is not.
        self._large = asyncio.Semaphore(1)
        self._health = health.aio.HealthServicer()
        self._server: Any = None

    async def start(self) -> None:
        """Listen and serve. Raises TrimtabError when the address cannot be had."""
        listen = self._config.policy.listen
        claim(listen, "listen")
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            with socket_mode():
                server.add_insecure_port(listen)
        except RuntimeError as error:
            raise TrimtabError(f"cannot listen on listen = {listen!r}: {error}") from None
        await server.start()
        self._server = server
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls under way end, and close."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE_SECONDS)
        self._server = None

    def _handlers(self) -> Any:
        def unary(name: str, behaviour: Callable[[bytes], Awaitable[bytes]]) -> Any:
            # No serialisers: bytes in, bytes out.
            return grpc.unary_unary_rpc_method_handler(self._guarded(name, behaviour))

        handlers = {
            "GetWeights": unary("GetWeights", self._get_weights),
            "ReportStats": unary("ReportStats", self._report_stats),
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, method: str, behaviour: Callable[[bytes], Awaitable[bytes]]) -> Any:
        """`behaviour` with its refusals as gRPC statuses, timed and counted."""

        async def handle(raw: bytes, context: Any) -> bytes:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            text = ""
            answer = b""
            try:
                answer = await behaviour(raw)
            except MessageError as error:
                code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
            except _RefusedError as error:
                code, text = error.code, str(error)
            except Exception:
                # Ours to mend: the caller learns only that, the log has the rest.
                _log.exception("%s failed", method)
                code, text = grpc.StatusCode.INTERNAL, f"{method} failed; see the server's log"
            self._observe(method, code.name, time.perf_counter() - started)
            if code is not grpc.StatusCode.OK:
                await context.abort(code, text)
            return answer

        return handle

    async def _get_weights(self, raw: bytes) -> bytes:
        query = messages.decode_query(raw)
        weights = self._board.current()
        if weights is None:
            raise _RefusedError(
                grpc.StatusCode.UNAVAILABLE, "no weights are in force yet; ask again in a second"
            )
        if self._answers is None or self._answers.weights is not weights:
            policy = self._config.policy
            self._answers = messages.Answers(
                weights, policy.time_to_live_seconds, policy.interval_seconds
            )
        try:
            return self._answers.answer(query)
        except KeyError as error:
            raise _RefusedError(
                grpc.StatusCode.NOT_FOUND,
                f"the upstream {error.args[0]!r} is not in this policy server's configuration "
                f"({self._config.path})",
            ) from None

    async def _report_stats(self, raw: bytes) -> bytes:
        if len(raw) > messages.UNCOUNTED_BYTES:
            async with self._large:
                report = await asyncio.to_thread(messages.decode_report, raw, self._known)
        else:
            report = messages.decode_report(raw, self._known)
        try:
            accepted = self._source.put(report.snapshot, report.sequence)
        except SourceError as error:
            raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        return messages.encode_report_answer(accepted, report.unknown)
