"""The policy server process: builds the parts, serves until a signal comes, stops in order.

The composition root: the one place that knows which source, actuator and store there are.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol, runtime_checkable

import uvloop

from trimtab import __version__, assembly, bearer, controller, tls, traces
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.config import Config, Policy, load
from trimtab.control import Control, Operator
from trimtab.errors import ConfigError, TrimtabError
from trimtab.listen import claim
from trimtab.loop import Controls, Loop
from trimtab.metrics import Metrics
from trimtab.notify import Notify
from trimtab.parts import parts
from trimtab.server import PolicyServer, Secrets, Shared
from trimtab.sources.reported import Reported

__all__ = ["Build", "run", "serve"]

_log: Final = logging.getLogger(__name__)


class Brain(Controls, Operator, Protocol):
    """What the process needs of a controller."""

    def close(self) -> None:
        """Let go of the state directory, without saving."""
        ...


@runtime_checkable
class Ensemble(Brain, Shared, Protocol):
    """What it needs besides of one of several policy servers; `ha.ensemble.Ensemble`."""

    def trouble(self) -> str | None:
        """Why it is of no use to a balancer."""
        ...

    def described(self) -> str:
        """Its role in words."""
        ...

    def availability(self) -> dict[str, Any]:
        """Its role, for JSON."""
        ...


# Makes the controller for a source and an actuator; puts the first weights up.
Build = Callable[[Config, controller.Source, controller.Actuator], Brain]

# No service manager.
NOBODY: Final = Notify({})


async def serve(
    config: Config,
    stopping: asyncio.Event,
    build: Build,
    notify: Notify = NOBODY,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run the policy server until `stopping` is set. Raises TrimtabError if it cannot start, and
    calls `started` when it has.

    The weights that `build` puts up are served at once; the loop then steps every interval.
    """
    board = Board()
    reported = Reported(config)
    chosen = parts(config, board, reported)
    source = chosen.source
    metrics = Metrics(source, board)
    policy = config.policy
    token = bearer.token(policy)
    secrets = Secrets(token=bearer.balancer_token(policy), tls=_credentials(policy))
    spans = traces.traces(policy)

    def called(method: str, code: str, seconds: float) -> None:
        metrics.called(method, code, seconds)
        spans.called(method, code, seconds)

    # Before the state is locked and read: the usual mistake gets its own message.
    claim(policy.listen, "listen")
    claim(policy.admin_listen, "admin_listen")
    brain = await asyncio.to_thread(build, config, source, chosen.actuator)
    shared = brain if isinstance(brain, Ensemble) else None
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
        traces=spans,
    )
    began = time.monotonic()

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
                "uptime_seconds": round(time.monotonic() - began, 3),
                "interval_seconds": policy.interval_seconds,
                "failed_steps": loop.failures,
                "trouble": trouble(),
            },
            "availability": shared.availability() if shared else {"role": "alone"},
        }

    def trouble() -> str | None:
        return loop.trouble() or (shared.trouble() if shared else None)

    server = PolicyServer(config, reported, board, called, secrets, shared)
    admin = Admin(
        config, status, trouble, metrics, brain, control, shared.described if shared else str
    )
    async with AsyncExitStack() as stack:
        stack.callback(brain.close)
        # In a thread, as what is left is sent.
        stack.push_async_callback(asyncio.to_thread, spans.close)
        await server.start()
        stack.push_async_callback(server.stop)
        await admin.start()
        stack.push_async_callback(admin.stop)
        _log.info(
            "serving gRPC on %s (%s), admin on %s, generation %d, %d upstreams, version %s",
            policy.listen,
            secrets.described,
            policy.admin_listen,
            _generation(board),
            len(config.upstreams),
            __version__,
        )
        started()
        watchdog = asyncio.create_task(notify.watch(lambda: not loop.stuck))
        stack.callback(watchdog.cancel)
        await loop.run(stopping)


def _credentials(policy: Policy) -> tls.Credentials | None:
    found = tls.credentials(policy)
    if found is not None and found.days_left < tls.WARN_DAYS:
        _log.warning(
            "tls_certificate %s expires in %.1f days; put a new one there and send SIGHUP",
            policy.tls_certificate,
            found.days_left,
        )
    return found


def _generation(board: Board) -> int:
    weights = board.current()
    return weights.generation if weights else 0


def build(config: Config, source: controller.Source, actuator: controller.Actuator) -> Brain:
    """The production controller, with its state in `state_directory`, or that of several policy
    servers with it in Redis. Raises TrimtabError."""
    if config.state.url is not None:
        # Its library is not for a server that does not need it.
        from trimtab.ha import ensemble

        assert isinstance(source, Reported)  # noqa: S101 - the configuration allows lua mode only
        assert isinstance(actuator, Board)  # noqa: S101
        return ensemble.Ensemble(config, source, actuator)
    return assembly.build(config, source, actuator, config.policy.state_directory)


class _Configurations:
    """The configuration in use, and the one that a SIGHUP put in its place.

    A new one is read and checked while the old one serves. To put it to use the parts stop (saving)
    and start again within the process; balancers keep their weights meanwhile. One that cannot
    start gives way to the old one.
    """

    def __init__(self, config: Config) -> None:
        self.current = config
        self._before: Config | None = None

    def reload(self) -> bool:
        """Read the file again; False, and nothing has changed, when it is wrong."""
        try:
            fresh = load(self.current.path)
            bearer.token(fresh.policy)
            bearer.balancer_token(fresh.policy)
            tls.credentials(fresh.policy)
        except ConfigError as error:
            _log.error("%s; keeping the configuration in use", error)
            return False
        # Of several in a row the first one's predecessor is what is known to start.
        self._before = self._before or self.current
        self.current = fresh
        return True

    def settled(self) -> None:
        """The present one has started."""
        self._before = None

    def back(self, error: TrimtabError) -> bool:
        """Take the one before; False when there is none."""
        if self._before is None:
            return False
        _log.error("%s; going back to the configuration before", error)
        self.current, self._before = self._before, None
        return True


def run(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; give the exit status, 128 and the signal's number.

    A second signal ends the process at once, without saving. SIGHUP reads the configuration file
    again: see `_Configurations`.
    """
    got: list[int] = []
    configurations = _Configurations(config)
    notify = Notify()

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def started() -> None:
            configurations.settled()
            policy = configurations.current.policy
            notify.ready(f"gRPC on {policy.listen}, admin on {policy.admin_listen}")

        def reload() -> None:
            # While one reload is on its way another finds the event set, and its file is read.
            if not got and configurations.reload():
                _log.info("SIGHUP: putting %s to use", configurations.current.path)
                notify.reloading()
                stopping.set()

        def stop(number: int) -> None:
            if got:
                _log.error("a second signal: ending at once, what was learned is not saved")
                os._exit(128 + number)
            got.append(number)
            _log.info("%s: stopping", signal.Signals(number).name)
            notify.stopping()
            stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGHUP, reload)
        while not got:
            stopping.clear()
            try:
                await serve(configurations.current, stopping, build, notify, started)
            except TrimtabError as error:
                if not configurations.back(error):
                    raise

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    _log.info("stopped")
    return 128 + got[0]
