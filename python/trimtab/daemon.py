"""The policy server process: builds the parts, serves until a signal comes, stops in order.

The composition root: the one place that knows which source, actuator and store there are.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import uvloop

from trimtab import __version__, bearer, controller
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.config import Config
from trimtab.control import Control, Operator
from trimtab.listen import claim
from trimtab.loop import Controls, Loop
from trimtab.metrics import Metrics
from trimtab.parts import parts
from trimtab.server import PolicyServer
from trimtab.sources.reported import Reported

__all__ = ["Build", "log_to_stderr", "run", "serve"]

_log: Final = logging.getLogger(__name__)


class Brain(Controls, Operator, Protocol):
    """What the process needs of a controller."""


# Makes the controller for a source and an actuator; puts the first weights up.
Build = Callable[[Config, controller.Source, controller.Actuator], Brain]


class _OneLine(logging.Formatter):
    """`2026-01-31T12:00:00.000Z error loop: a step failed …`, tracebacks in the same line."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(where)s: %(message)s")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        record.level = record.levelname.lower()
        record.where = record.name.removeprefix("trimtab.")
        return super().format(record).replace("\n", " | ")


def log_to_stderr(level: str) -> None:
    """One line a record on standard error, from `level` ("debug" to "error") on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


async def serve(
    config: Config,
    stopping: asyncio.Event,
    build: Build,
) -> None:
    """Run the policy server until `stopping` is set. Raises TrimtabError if it cannot start.

    The weights that `build` puts up are served at once; the loop then steps every interval.
    """
    board = Board()
    reported = Reported(config)
    chosen = parts(config, board, reported)
    source = chosen.source
    metrics = Metrics(source, board)
    policy = config.policy
    token = bearer.token(policy)
    # Before the state is locked and read: the usual mistake gets its own message.
    claim(policy.listen, "listen")
    claim(policy.admin_listen, "admin_listen")
    brain = await asyncio.to_thread(build, config, source, chosen.actuator)
    control = Control(config, brain, token, lambda: _generation(board), metrics.controlled)
    loop = Loop(
        chosen.around(brain),
        board,
        metrics,
        interval_seconds=policy.interval_seconds,
        # As long as a balancer would use weights that nobody renews.
        stale_seconds=policy.time_to_live_seconds,
        # Nothing is learned without a report, and nothing set without an order.
        stamp=lambda: (source.accepted, _generation(board), control.done),
    )
    started = time.monotonic()

    def status() -> dict[str, Any]:
        return {
            **brain.status(),
            **chosen.status(),
            "instances": [
                {
                    "name": i.name,
                    "age_seconds": round(i.age_seconds, 3),
                    "generation": i.generation,
                    "sequence": i.sequence,
                }
                for i in source.instances()
            ],
            "server": {
                "version": __version__,
                "pid": os.getpid(),
                "uptime_seconds": round(time.monotonic() - started, 3),
                "interval_seconds": policy.interval_seconds,
                "failed_steps": loop.failures,
                "trouble": loop.trouble(),
            },
        }

    server = PolicyServer(config, reported, board, metrics.called)
    admin = Admin(config, status, loop.trouble, metrics, brain, control)
    await server.start()
    try:
        await admin.start()
        try:
            _log.info(
                "serving gRPC on %s, admin on %s, generation %d, %d upstreams, version %s",
                policy.listen,
                policy.admin_listen,
                _generation(board),
                len(config.upstreams),
                __version__,
            )
            await loop.run(stopping)
        finally:
            await admin.stop()
    finally:
        await server.stop()


def _generation(board: Board) -> int:
    weights = board.current()
    return weights.generation if weights else 0


def build(config: Config, source: controller.Source, actuator: controller.Actuator) -> Brain:
    """The production controller, with its state in `state_directory`. Raises TrimtabError."""
    return controller.build(config, source, actuator, config.policy.state_directory)


def run(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; give the exit status, 128 and the signal's number.

    A second signal ends the process at once, without saving.
    """
    got: list[int] = []

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if got:
                _log.error("a second signal: ending at once, what was learned is not saved")
                os._exit(128 + number)
            got.append(number)
            _log.info("%s: stopping", signal.Signals(number).name)
            stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        await serve(config, stopping, build)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    _log.info("stopped")
    return 128 + got[0]
