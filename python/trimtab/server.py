"""The gRPC server: PolicyService and the standard health service.

It answers from the board and takes reports into the source; it decides nothing. Messages come and
go as bytes: `messages` decodes them with every bound, so that a damaged one is INVALID_ARGUMENT
(generated deserialisers would make it INTERNAL), and serialised weights are kept, not made anew.
"""

import asyncio
import contextlib
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from trimtab import messages
from trimtab.actuators.board import Board
from trimtab.answers import Answers, encode_report_answer
from trimtab.bounds import MessageError
from trimtab.config import MAX_MESSAGE_BYTES, Config, Policy
from trimtab.errors import DependencyError, SourceError, TrimtabError
from trimtab.listen import claim, socket_mode
from trimtab.sources.reported import Reported
from trimtab.tls import Credentials
from trimtab.unparsed import UNCOUNTED_BYTES

__all__ = ["NO_SECRETS", "SERVICE", "Observe", "PolicyServer", "Secrets", "Shared"]

_log: Final = logging.getLogger(__name__)

SERVICE: Final = "trimtab.v1.PolicyService"

# Called once a call with method, status code name and seconds; for metrics.
Observe = Callable[[str, str, float], None]

# A probe that is not answered in this time ends the connection.
KEEPALIVE_TIMEOUT_SECONDS: Final = 20.0

# A connection past its age lets its calls end for this long; they take milliseconds.
AGE_GRACE_SECONDS: Final = 10.0


def _options(policy: Policy) -> list[tuple[str, int]]:
    """The arguments of the gRPC channel: limits, and what keeps connections honest."""
    options = [
        # Two servers on one port would share the balancers' calls at random: refuse instead.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", policy.max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Identity only: the size limit holds before decompression, so a compressed message of a
        # few kilobytes could fill the memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", policy.max_streams),
        ("grpc.keepalive_time_ms", _milliseconds(policy.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_SECONDS)),
        # Clients may ping every 10 s without being taken for a flood.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_idle_ms", 600_000),
        # nginx drops an idle connection on which anything arrives, so no pings to learn its speed.
        ("grpc.http2.bdp_probe", 0),
    ]
    if policy.max_connection_age_seconds is not None:
        options += [
            ("grpc.max_connection_age_ms", _milliseconds(policy.max_connection_age_seconds)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(AGE_GRACE_SECONDS)),
        ]
    return options


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


# Calls under way at once, over all connections: a thousand balancers that ask and report in the
# same instant, twice over. More get RESOURCE_EXHAUSTED and ask again.
MAX_CALLS: Final = 4096

# Calls under way when the server stops get this long; they take milliseconds.
STOP_GRACE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What the server must know and never tells: the balancers' token and the TLS keys; None for
    what is not used."""

    token: str | None = None
    tls: Credentials | None = None

    @property
    def described(self) -> str:
        """Which of them there are, for the log."""
        kind = "plaintext"
        if self.tls is not None:
            kind = "TLS" if self.tls.client_ca is None else "mutual TLS"
        return f"{kind}, token" if self.token else kind

    def __repr__(self) -> str:
        return f"Secrets({self.described})"


class _RefusedError(Exception):
    """A call that is answered with a status other than OK; the text is for the caller."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


NO_SECRETS: Final = Secrets()


def _ignore(method: str, code: str, seconds: float) -> None:
    """Observe nothing."""


class Shared(Protocol):
    """What the service needs of one of several policy servers; `ha.ensemble.Ensemble`."""

    def remaining(self) -> float:
        """Seconds for which the weights on the board may be answered."""
        ...

    def catch_up(self, epoch: int, generation: int) -> None:
        """Fetch weights if those on the board are older; called in a thread."""
        ...

    def relay(self, name: str, start: int, sequence: int, raw: bytes) -> None:
        """Pass a report on to the leader, some time soon."""
        ...


class PolicyServer:
    """PolicyService on `config.policy.listen`. Used within one event loop."""

    def __init__(
        self,
        config: Config,
        source: Reported,
        board: Board,
        observe: Observe = _ignore,
        secrets: Secrets = NO_SECRETS,
        shared: Shared | None = None,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._bearing = f"Bearer {secrets.token}".encode() if secrets.token else None
        self._source = source
        self._shared = shared
        self._board = board
        self._observe = observe
        self._known = {u.name: frozenset(p.address for p in u.peers) for u in config.upstreams}
        self._layouts: dict[Any, Any] = {}
        self._answers: Answers | None = None
        # One large report is decoded at a time: its memory is bounded, that of many is not.
        self._large = asyncio.Semaphore(1)
        self._health = health.aio.HealthServicer()
        self._server: Any = None

    async def start(self) -> None:
        """Listen and serve. Raises TrimtabError when the address cannot be had, DependencyError
        when reflection is wanted and not installed."""
        policy = self._config.policy
        listen = policy.listen
        claim(listen, "listen")
        server = grpc.aio.server(options=_options(policy), maximum_concurrent_rpcs=MAX_CALLS)
        server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if policy.reflection:
            _reflect(server)
        try:
            with socket_mode():
                self._add_port(server, listen)
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

    def _add_port(self, server: Any, listen: str) -> None:
        secret = self._secrets.tls
        if secret is None:
            server.add_insecure_port(listen)
            return
        shown = grpc.ssl_server_credentials(
            [(secret.key, secret.certificate)],
            root_certificates=secret.client_ca,
            require_client_auth=secret.client_ca is not None,
        )
        server.add_secure_port(listen, shown)

    def _admit(self, context: Any) -> None:
        """Refuse a call without the balancers' token, where there is one."""
        if self._bearing is None:
            return
        for name, value in context.invocation_metadata():
            if name == "authorization":
                # The time that the comparison takes tells nothing of the token.
                if hmac.compare_digest(value.encode("utf-8", "replace"), self._bearing):
                    return
                raise _RefusedError(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "the token is not that of this policy server (balancer_token_file in "
                    "[policy]); render nginx's configuration again and reload it",
                )
        raise _RefusedError(
            grpc.StatusCode.UNAUTHENTICATED,
            "a token is needed: metadata 'authorization: Bearer …' (balancer_token_file in "
            "[policy]); render nginx's configuration again and reload it",
        )

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
                self._admit(context)
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
        return await self._answer(messages.decode_query(raw))

    async def _answer(self, query: messages.Query) -> bytes:
        left = None
        weights = self._board.current()
        if self._shared is not None:
            left = self._shared.remaining()
            asked = (query.epoch, query.generation)
            if weights is None or left <= 0 or (weights.epoch, weights.generation) < asked:
                # The leader has told the balancer already what has not come here yet.
                await asyncio.to_thread(self._shared.catch_up, *asked)
                left = self._shared.remaining()
                weights = self._board.current()
            if weights is None or left <= 0 or (weights.epoch, weights.generation) < asked:
                raise _RefusedError(
                    grpc.StatusCode.UNAVAILABLE,
                    "this policy server follows, and has no weights that are confirmed and as "
                    "late as the caller's; ask again in a second",
                )
        if weights is None:
            raise _RefusedError(
                grpc.StatusCode.UNAVAILABLE, "no weights are in force yet; ask again in a second"
            )
        if self._answers is None or self._answers.weights is not weights:
            policy = self._config.policy
            self._answers = Answers(weights, policy.time_to_live_seconds, policy.interval_seconds)
        try:
            return self._answers.answer(query, left)
        except KeyError as error:
            raise _RefusedError(
                grpc.StatusCode.NOT_FOUND,
                f"the upstream {error.args[0]!r} is not in this policy server's configuration "
                f"({self._config.path})",
            ) from None

    async def _report_stats(self, raw: bytes) -> bytes:
        if len(raw) > UNCOUNTED_BYTES:
            async with self._large:
                report = await asyncio.to_thread(
                    messages.decode_report, raw, self._known, self._layouts
                )
        else:
            report = messages.decode_report(raw, self._known, self._layouts)
        try:
            accepted = self._source.put(report.snapshot, report.sequence)
        except SourceError as error:
            raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        if accepted and self._shared is not None:
            self._shared.relay(
                report.snapshot.instance, report.snapshot.start, report.sequence, raw
            )
        weights = None
        if report.wanted is not None:
            # Whoever gets none asks by GetWeights, and is told why.
            with contextlib.suppress(_RefusedError):
                weights = await self._answer(report.wanted)
        return encode_report_answer(accepted, report.unknown, weights)


def _reflect(server: Any) -> None:
    """Let clients ask what services there are. Raises DependencyError."""
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        raise DependencyError(
            "reflection in [policy] needs a package that is not installed: "
            "pip install 'trimtab[reflection]'"
        ) from None
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
