"""The emulated servers of a scenario as a child process, and free ports for everything."""

import json
import random
import socket
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from trimtab.children import Child
from trimtab.config import split_address
from trimtab.demo.scenario import Scenario
from trimtab.errors import TrimtabError

__all__ = ["Stage", "free_ports", "listens"]

# Below the range from which Linux takes the ports of outgoing connections (32768 on), or one of
# ours might be taken between two runs.
_PORTS: Final = range(15000, 32000)
_TRIES: Final = 200
_START_SECONDS: Final = 30.0


def free_ports(count: int) -> int:
    """The first of `count` ports in a row on which nobody listens on loopback."""
    for _ in range(_TRIES):
        first = random.choice(_PORTS[: len(_PORTS) - count])  # noqa: S311 -- not a secret
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    probe = held.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise TrimtabError(f"found no {count} free ports in a row on 127.0.0.1 in {_TRIES} tries")


def listens(address: str) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection(split_address(address), timeout=1.0).close()
    except OSError:
        return False
    return True


class Stage:
    """A scenario's servers, serving; use as a context manager. `servers` are their addresses."""

    def __init__(self, scenario: Scenario, log: Path) -> None:
        count = len(scenario.servers)
        first = free_ports(count + 1)
        self.servers = tuple(f"127.0.0.1:{first + n}" for n in range(1, count + 1))
        self._control = f"http://127.0.0.1:{first}/trimtab-emulator"
        argv = [
            *(sys.executable, "-P", "-m", "trimtab", "demo"),
            *("--scenario", scenario.path, "--port", str(first)),
        ]
        self._child = Child("the emulated servers", argv, log=log)

    def __enter__(self) -> "Stage":
        try:
            self._child.wait_until(self._answers, seconds=_START_SECONDS)
        except BaseException:
            self._child.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._control}/status", timeout=2):  # noqa: S310 -- ours
                return True
        except OSError:
            return False

    def _call(self, command: str, body: bytes | None = None) -> dict[str, Any]:
        self._child.check()
        url = f"{self._control}/{command}"
        try:
            with urllib.request.urlopen(url, data=body, timeout=10) as answer:  # noqa: S310 -- ours
                data: dict[str, Any] = json.load(answer)
        except (OSError, ValueError) as error:
            raise TrimtabError(f"the emulated servers do not answer {url}: {error}") from None
        return data

    def prepare(self, seed: int, seconds: float) -> None:
        """Empty and healthy servers; the run begins with the first request."""
        self._call("reset", json.dumps({"seed": seed, "duration_seconds": seconds}).encode())

    def lateness_p99_seconds(self) -> float:
        """The 99th percentile of how late answers were since `prepare`."""
        return float(self._call("status")["lateness_seconds"]["p99"])
