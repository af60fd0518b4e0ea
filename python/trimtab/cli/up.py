"""`trimtab up`: the policy server and an nginx of its own, in the foreground until interrupted."""

import argparse
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from trimtab import bearer, config, tls
from trimtab.actuators import nginx_binary, nginx_conf
from trimtab.actuators.nginx_process import STOP_SECONDS, NginxProcess
from trimtab.children import Child
from trimtab.config import Config
from trimtab.errors import ConfigError, TrimtabError
from trimtab.listen import claim

__all__ = ["Backoff", "add_arguments", "run"]

# How often to look after the children: the policy server's absence costs nothing for seconds.
_LOOK_SECONDS: Final = 0.1

# SIGTERM makes the policy server save what it has learned.
_POLICY_STOP_SECONDS: Final = 10.0

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Backoff:
    """How long to wait before a program that has died is started again.

    Half a second at first, twice as long each time, at most half a minute; from the start again
    after it has lived for a minute, as what killed it then is something else.
    """

    FIRST_SECONDS: Final = 0.5
    MOST_SECONDS: Final = 30.0
    LIVED_SECONDS: Final = 60.0

    def __init__(self) -> None:
        self._next_seconds = self.FIRST_SECONDS

    def after(self, lived_seconds: float) -> float:
        """Seconds to wait, for a program that has died after `lived_seconds`."""
        if lived_seconds >= self.LIVED_SECONDS:
            self._next_seconds = self.FIRST_SECONDS
        wait = self._next_seconds
        self._next_seconds = min(self.MOST_SECONDS, 2 * wait)
        return wait


class _PolicyServer:
    """The policy server as a child that is started again when it dies."""

    def __init__(self, path: str, log: Path) -> None:
        self._argv = [sys.executable, "-P", "-m", "trimtab", "serve", "--config", path]
        self._log = log
        self._backoff = Backoff()
        self._child: Child | None = None
        self._started_at = 0.0
        self._start_at = 0.0

    def look(self, now: float) -> None:
        """Start it if it is time; say so if it has died. `now` is monotonic seconds."""
        if self._child is None:
            if now >= self._start_at:
                self._child = Child("the policy server", self._argv, log=self._log)
                self._started_at = now
            return
        try:
            self._child.check()
        except TrimtabError as error:
            self._child = None
            wait = self._backoff.after(now - self._started_at)
            self._start_at = now + wait
            _say(f"{error}\n  nginx goes on by itself; starting it again in {wait:g} s")

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.stop(grace_seconds=_POLICY_STOP_SECONDS)
            self._child = None


def _say(text: str) -> None:
    print(f"trimtab: {text}", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", default="trimtab.toml", metavar="FILE", help="the TOML file (%(default)s)"
    )
    parser.epilog = (
        "Ctrl-C, SIGTERM or SIGHUP let requests end and stop both; a second one cuts them.\n"
        "Everything is written below state_directory. If the policy server dies nginx goes on\n"
        "and it is started again; if nginx dies all ends with exit status 1."
    )


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the state directory: a second `trimtab up` would overwrite a running nginx's files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TrimtabError(f"state_directory: cannot write {directory}: {error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise TrimtabError(
            f"another `trimtab up` uses {directory}; stop it, or set another state_directory "
            "in [policy]"
        ) from None
    finally:
        os.close(lock)


def _addresses(checked: Config) -> str:
    def shown(address: str) -> str:
        return address if address.startswith("unix:") else f"http://{address}"

    listen = " ".join(shown(address) for address in checked.nginx.listen)
    return (
        f"listening on {listen}\n"
        f"  status     {shown(checked.nginx.internal_listen)}/trimtab/status\n"
        f"  admin      {shown(checked.policy.admin_listen)}/\n"
        f"  gRPC       {checked.policy.listen}"
    )


def _render(checked: Config, prefix: Path) -> NginxProcess:
    installation = nginx_binary.find(checked.nginx.binary)
    nginx_conf.write({}, prefix)
    machine = nginx_binary.machine(installation, prefix, "lua")
    if machine.user and machine.user[0] == "root":
        _say(nginx_binary.ROOT_WORKERS)
    token = bearer.balancer_token(checked.policy)
    files = nginx_conf.render(checked, prefix, machine=machine, balancer_token=token)
    nginx_conf.write(files, prefix)
    return NginxProcess(prefix, checked, installation=installation)


def _watch(nginx: NginxProcess, policy: _PolicyServer, stop: threading.Event) -> None:
    """Look after both until told to stop. Raises TrimtabError when nginx dies."""
    while not stop.wait(_LOOK_SECONDS):
        policy.look(time.monotonic())
        if not nginx.running:
            raise TrimtabError(
                f"nginx has died; {nginx.error_log} may say why. Everything has been stopped"
            )


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal comes; the exit status is then 128 + its number."""
    checked = config.load(arguments.config)
    if checked.nginx.mode != "lua":
        raise ConfigError(
            f"{arguments.config}: mode in [nginx] is 'stock'; `trimtab up` runs lua mode. For an "
            "nginx of your own use `trimtab render` and `trimtab serve`"
        )
    directory = checked.policy.state_directory.absolute()
    stop = threading.Event()
    got: list[int] = []
    nginx: NginxProcess | None = None

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        got.append(number)
        stop.set()
        if len(got) > 1 and nginx is not None:
            nginx.cut()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        with _only_one(directory):
            tls.check_balancer(checked)
            claim(checked.policy.listen, "listen")
            claim(checked.policy.admin_listen, "admin_listen")
            nginx = _render(checked, directory / "nginx")
            nginx.claim()
            policy = _PolicyServer(arguments.config, directory / "logs" / "policy.log")
            try:
                policy.look(time.monotonic())
                nginx.start()
                _say(f"{nginx.installation.name}, {_addresses(checked)}")
                _say(f"logs in {directory}/nginx/logs and {directory}/logs; Ctrl-C stops")
                _watch(nginx, policy, stop)
                _say(f"{signal.Signals(got[0]).name}: stopping")
            finally:
                nginx.stop(STOP_SECONDS if got else 0.0)
                policy.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _say("stopped")
    return 128 + got[0]
