"""The admin endpoint: health, status and metrics over HTTP. Read-only.

It shows what others know and changes nothing. Every request is bounded in time and number, so a
slow reader or a stuck control loop takes no more than one thread.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trimtab import __version__
from trimtab.actuators.board import Board
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.listen import claim, socket_mode
from trimtab.sources.reported import Reported

__all__ = ["Admin", "Metrics"]

# What a page may take. The status of 16384 pairs takes well under a second; a scraper gives up
# after ten by default.
ANSWER_SECONDS: Final = 5.0

# Requests under way at once; an operator, a few dashboards and a scraper need less.
MAX_REQUESTS: Final = 16

# A kept-alive connection without a request is closed after this.
IDLE_SECONDS: Final = 30.0

# A GetWeights takes under a millisecond, a large report a tenth of a second.
_CALL_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)

# A step takes milliseconds, one that fits the states seconds.
_STEP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """The server's own metrics, in a registry of their own. Safe to use from any thread."""

    def __init__(self, source: Reported, board: Board) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "trimtab_grpc_calls",
            "gRPC calls by method and status.",
            ["method", "code"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "trimtab_grpc_call_seconds",
            "Time to answer a gRPC call, without the transport.",
            ["method"],
            registry=self.registry,
            buckets=_CALL_BUCKETS,
        )
        self._steps = Counter(
            "trimtab_steps",
            "Steps of the control loop by outcome: done, or failed (the weights stay).",
            ["outcome"],
            registry=self.registry,
        )
        self._step_seconds = Histogram(
            "trimtab_step_seconds",
            "Time that a step of the control loop took.",
            registry=self.registry,
            buckets=_STEP_BUCKETS,
        )
        self._late = Counter(
            "trimtab_steps_skipped",
            "Intervals in which no step was begun, because the one before still ran.",
            registry=self.registry,
        )
        # A series that appears only with the first failure cannot be alerted on.
        for outcome in ("done", "failed"):
            self._steps.labels(outcome)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gauges(source, board))

    def called(self, method: str, code: str, seconds: float) -> None:
        """Count a gRPC call."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def stepped(self, seconds: float, *, failed: bool) -> None:
        """Count a step of the control loop."""
        self._steps.labels("failed" if failed else "done").inc()
        self._step_seconds.observe(seconds)

    def skipped(self, intervals: int) -> None:
        """Count intervals in which no step was begun."""
        self._late.inc(intervals)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is read from board and source at the moment of the scrape."""

    def __init__(self, source: Reported, board: Board) -> None:
        self._source = source
        self._board = board
        self._started = time.time()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of now."""
        build = GaugeMetricFamily("trimtab_build_info", "Always 1.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        weights = self._board.current()
        yield GaugeMetricFamily(
            "trimtab_generation",
            "Generation of the weights in force; 0 before the first.",
            weights.generation if weights else 0,
        )
        yield GaugeMetricFamily(
            "trimtab_epoch",
            "Epoch of the weights in force: when this lineage of generations began, in ms.",
            weights.epoch if weights else 0,
        )
        instances = self._source.instances()
        yield GaugeMetricFamily(
            "trimtab_instances", "Balancers that report statistics.", len(instances)
        )
        yield GaugeMetricFamily(
            "trimtab_instances_behind",
            "Balancers whose last report was not of the generation in force.",
            sum(i.generation != (weights.generation if weights else 0) for i in instances),
        )
        yield GaugeMetricFamily(
            "trimtab_report_age_seconds",
            "Age of the oldest of the balancers' last reports.",
            max((i.age_seconds for i in instances), default=0),
        )


class Admin:
    """The HTTP server on `config.policy.admin_listen`.

    Args:
        config: for the address.
        status: gives what /status.json shows; called in a thread.
        trouble: why the control loop is not healthy, or None; called in the event loop.
        metrics: what /metrics shows.
    """

    def __init__(
        self,
        config: Config,
        status: Callable[[], dict[str, Any]],
        trouble: Callable[[], str | None],
        metrics: Metrics,
    ) -> None:
        self._listen = config.policy.admin_listen
        self._status = status
        self._trouble = trouble
        self._metrics = metrics
        self._under_way = 0
        # One thread: a status that hangs on a stuck loop holds this one and no other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="admin")
        app = web.Application(middlewares=[self._bounded], client_max_size=1024)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/status.json", self._status_json)
        app.router.add_get("/metrics", self._metrics_text)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=1.0
        )

    async def start(self) -> None:
        """Listen and serve. Raises TrimtabError when the address cannot be had."""
        claim(self._listen, "admin_listen")
        await self._runner.setup()
        site: web.BaseSite
        if self._listen.startswith("unix:"):
            site = web.UnixSite(self._runner, self._listen.removeprefix("unix:"))
        else:
            host, _, port = self._listen.rpartition(":")
            site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        try:
            with socket_mode():
                await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise TrimtabError(
                f"cannot listen on admin_listen = {self._listen!r}: {error}"
            ) from None

    async def stop(self) -> None:
        """Close, and leave no socket behind."""
        listening = bool(self._runner.addresses)
        await self._runner.cleanup()
        if listening and self._listen.startswith("unix:"):
            Path(self._listen.removeprefix("unix:")).unlink(missing_ok=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._under_way >= MAX_REQUESTS:
            return _text(503, f"{MAX_REQUESTS} requests are under way; try again")
        self._under_way += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                response: web.StreamResponse = await handler(request)
        except TimeoutError:
            response = _text(503, f"no answer within {ANSWER_SECONDS:g} s: {self._trouble()}")
        finally:
            self._under_way -= 1
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        trouble = self._trouble()
        return _text(503, trouble) if trouble else _text(200, "ok")

    async def _status_json(self, _: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._thread, lambda: _json(self._status()))
        return web.Response(text=text, content_type="application/json")

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


def _json(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")
