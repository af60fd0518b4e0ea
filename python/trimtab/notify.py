"""systemd's notification socket: ready, reloading, stopping, and the watchdog's heartbeat.

The protocol is a datagram of KEY=VALUE lines to $NOTIFY_SOCKET (sd_notify(3)). Without that
variable nothing is sent.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["Notify"]

_log: Final = logging.getLogger(__name__)


class Notify:
    """Tells the service manager, if there is one.

    Args:
        environment: for NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with "@" for its zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        wanted = mine and microseconds.isdecimal() and self._address
        self._watchdog_seconds = int(microseconds) / 1e6 if wanted else 0.0

    @property
    def watchdog_seconds(self) -> float:
        """How long the service manager waits for a heartbeat; 0 for no watchdog."""
        return self._watchdog_seconds

    def ready(self, status: str) -> None:
        """It serves; `status` is a line for `systemctl status`."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A new configuration is being put to use; `ready` ends it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It ends."""
        self._say("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._say(f"STATUS={text}")

    async def watch(self, alive: Callable[[], bool]) -> None:
        """Send a heartbeat twice in the watchdog's time while `alive`; until cancelled."""
        while self._watchdog_seconds:
            if alive():
                self._say("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                # Its queue may be full; a heartbeat is not worth waiting for.
                one.setblocking(False)
                one.sendto(text.encode(), self._address)
        except OSError as error:
            _log.warning("the service manager was not told %s: %s", lines[0], error)
