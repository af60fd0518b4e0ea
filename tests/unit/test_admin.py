"""The admin endpoint: health, status and metrics, bounded, and changing nothing."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import operators
import serving
from trimtab import admin
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.errors import TrimtabError
from trimtab.metrics import Metrics
from trimtab.model import Snapshot
from trimtab.sources.reported import Reported


class Parts:
    """An admin endpoint on a unix socket and what it shows."""

    def __init__(self, directory: Path) -> None:
        self.config = serving.configuration(admin_listen=f"unix:{directory / 'admin'}")
        self.board = Board()
        self.source = Reported(self.config)
        self.metrics = Metrics(self.source, self.board)
        self.trouble: str | None = None
        self.status: Callable[[], dict] = lambda: {"generation": 3}
        self.orders = operators.Orders()
        self.admin = Admin(
            self.config,
            lambda: self.status(),
            lambda: self.trouble,
            self.metrics,
            self.orders,
            operators.control(self.config, self.metrics, self.orders),
        )

    def run(self, scenario: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
        """Start, run `scenario` with a client, stop."""

        async def whole() -> None:
            await self.admin.start()
            try:
                path = self.config.policy.admin_listen.removeprefix("unix:")
                connector = aiohttp.UnixConnector(path)
                timeout = aiohttp.ClientTimeout(serving.TIMEOUT)
                async with aiohttp.ClientSession(
                    "http://admin", connector=connector, timeout=timeout
                ) as client:
                    await scenario(client)
            finally:
                await self.admin.stop()

        asyncio.run(whole())

    def get(self, path: str) -> tuple[int, str, str]:
        """Status, content type and body of one GET."""
        answers: list[tuple[int, str, str]] = []

        async def scenario(client: aiohttp.ClientSession) -> None:
            async with client.get(path) as answer:
                answers.append((answer.status, answer.content_type, await answer.text()))

        self.run(scenario)
        return answers[0]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A fresh endpoint, not started."""
    return Parts(tmp_path)


def test_health_is_ok_while_the_loop_runs(parts: Parts) -> None:
    """A healthy control loop is 200."""
    assert parts.get("/healthz") == (200, "text/plain", "ok\n")


def test_health_says_what_is_wrong(parts: Parts) -> None:
    """A stale control loop is 503 with its reason."""
    parts.trouble = "the control loop made no step for 12.0 s"
    assert parts.get("/healthz")[::2] == (503, "the control loop made no step for 12.0 s\n")


def test_status_is_json(parts: Parts) -> None:
    """The status comes as it is; what JSON cannot hold becomes null."""
    nan, inf = float("nan"), float("inf")
    parts.status = lambda: {"state": 3, "rates": (1.5, nan), "by": {"u0": [-inf, None, "x"]}}
    status, kind, body = parts.get("/status.json")
    assert (status, kind) == (200, "application/json")
    assert body == '{"state": 3, "rates": [1.5, null], "by": {"u0": [null, null, "x"]}}'


def test_status_that_fails_is_an_error_and_nothing_else(parts: Parts) -> None:
    """A fault in the status is a 500 without its insides; health still answers."""

    def fault() -> dict:
        raise RuntimeError("secret detail")

    parts.status = fault

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get("/status.json") as answer:
            assert answer.status == 500
            assert "secret" not in await answer.text()
        async with client.get("/healthz") as answer:
            assert answer.status == 200

    parts.run(scenario)


def test_metrics_are_valid_prometheus_text(parts: Parts) -> None:
    """The scrape parses and has the values of board, source, calls and steps."""
    parts.board.apply(serving.weights(parts.config, generation=7))
    parts.source.put(
        Snapshot(instance="a", start=1, clock_seconds=0, pairs={}, generation=6), sequence=1
    )
    parts.metrics.called("GetWeights", "OK", 0.0002)
    parts.metrics.called("GetWeights", "NOT_FOUND", 0.0002)
    parts.metrics.stepped(0.01, failed=True)
    parts.metrics.skipped(2)
    status, kind, body = parts.get("/metrics")
    assert (status, kind) == (200, "text/plain")
    samples = {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(body)
        for s in family.samples
    }
    assert samples["trimtab_generation",] == 7
    assert samples["trimtab_epoch",] == 5
    assert samples["trimtab_instances",] == 1
    assert samples["trimtab_instances_behind",] == 1
    assert samples["trimtab_grpc_calls_total", "GetWeights", "OK"] == 1
    assert samples["trimtab_grpc_calls_total", "GetWeights", "NOT_FOUND"] == 1
    assert samples["trimtab_grpc_call_seconds_count", "GetWeights"] == 2
    assert samples["trimtab_steps_total", "failed"] == 1
    assert samples["trimtab_steps_total", "done"] == 0
    assert samples["trimtab_steps_skipped_total",] == 2
    assert samples["process_resident_memory_bytes",] > 1e6
    assert any(name[0] == "trimtab_build_info" for name in samples)


def test_two_servers_have_metrics_of_their_own(parts: Parts, tmp_path: Path) -> None:
    """Nothing is registered globally."""
    parts.metrics.called("GetWeights", "OK", 0.1)
    assert b'GetWeights"' not in Parts(tmp_path).metrics.text()


@pytest.mark.parametrize("path", ["/", "/events", "/healthz", "/status.json", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(parts: Parts, method: str, path: str) -> None:
    """What shows takes nothing."""

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.request(method, path, data=b"x") as answer:
            assert answer.status == 405

    parts.run(scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:18291", 200),
        ("localhost:18291", 200),
        ("LOCALHOST", 200),
        ("[::1]:18291", 200),
        ("[::1]", 200),
        ("127.0.0.1", 200),
        ("rebound.example:18291", 403),
        ("rebound.example", 403),
        ("127.0.0.1.rebound.example", 403),
    ],
)
def test_a_name_that_was_made_to_point_here_reads_nothing(
    tmp_path: Path, host: str, status: int
) -> None:
    """On a loopback address only addresses and localhost are answered, also for events."""
    parts = Parts(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    parts.config = serving.configuration(admin_listen=f"127.0.0.1:{port}")
    control = operators.control(parts.config, parts.metrics, parts.orders)
    endpoint = Admin(parts.config, parts.status, lambda: None, parts.metrics, parts.orders, control)

    async def ask() -> None:
        await endpoint.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
                for path in ("/status.json", "/events"):
                    async with client.get(path, headers={"Host": host}) as answer:
                        assert answer.status == status
        finally:
            await endpoint.stop()

    asyncio.run(ask())


def test_unknown_path_is_not_found(parts: Parts) -> None:
    """Other paths are 404."""
    assert parts.get("/nothing")[0] == 404


def test_answers_are_not_cached(parts: Parts) -> None:
    """What is shown is of now."""

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get("/status.json") as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    parts.run(scenario)


def test_a_status_that_hangs_holds_nobody_else(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a status hangs, it times out as 503, and health and metrics still answer."""
    monkeypatch.setattr(admin, "ANSWER_SECONDS", 0.05)
    parts.trouble = "the loop is stuck"
    release = threading.Event()
    parts.status = lambda: {"released": release.wait(serving.TIMEOUT)}

    async def scenario(client: aiohttp.ClientSession) -> None:
        try:
            async with client.get("/status.json") as answer:
                assert answer.status == 503
                assert "no answer within 0.05 s: the loop is stuck" in await answer.text()
            for path in ("/healthz", "/metrics"):
                async with client.get(path) as answer:
                    assert answer.status in (200, 503)
        finally:
            release.set()

    parts.run(scenario)


def test_requests_under_way_are_bounded(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request too many is told so at once."""
    monkeypatch.setattr(admin, "MAX_REQUESTS", 1)
    entered, release = threading.Event(), threading.Event()

    def status() -> dict:
        entered.set()
        return {"released": release.wait(serving.TIMEOUT)}

    parts.status = status

    async def scenario(client: aiohttp.ClientSession) -> None:
        first = asyncio.ensure_future(client.get("/status.json"))
        try:
            await asyncio.to_thread(entered.wait, serving.TIMEOUT)
            async with client.get("/metrics") as answer:
                assert (answer.status, await answer.text()) == (
                    503,
                    "1 requests are under way; try again\n",
                )
        finally:
            release.set()
        async with await first as answer:
            assert answer.status == 200

    parts.run(scenario)


def test_taken_address_is_named(parts: Parts, tmp_path: Path) -> None:
    """A second endpoint on the same address says which key to change."""
    second = Parts(tmp_path)

    async def scenario(_: aiohttp.ClientSession) -> None:
        with pytest.raises(TrimtabError, match=r"admin_listen = .* another server answers"):
            await second.admin.start()

    parts.run(scenario)
