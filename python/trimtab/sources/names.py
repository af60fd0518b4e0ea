"""Which configured peer a server of a status page is: nginx shows addresses, not host names."""

import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Final

from trimtab.config import Config, split_address

__all__ = ["Names", "canonical"]

# nginx itself resolves the names of its configuration only when it loads it.
RESOLVE_SECONDS: Final = 60.0


def canonical(address: str) -> str | None:
    """An address as nginx shows it; None for a host name."""
    host, port = split_address(address)
    if host.startswith("unix:"):
        return address
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def _resolve(host: str, port: int) -> tuple[str, ...]:
    """Addresses of a host name, as nginx shows them; none when it does not resolve."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(
        f"[{where[0]}]:{port}" if family == socket.AF_INET6 else f"{where[0]}:{port}"
        for family, _, _, _, where in found
    )


class Names:
    """Configured addresses by what nginx shows. Host names are resolved when a server appears
    that nothing else explains, and not more often than once a minute.

    Args:
        config: upstreams and their peers.
        clock: monotonic seconds.
        resolve: host and port to addresses as nginx shows them.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        resolve: Callable[[str, int], tuple[str, ...]] = _resolve,
    ) -> None:
        self._clock = clock
        self._resolve = resolve
        self._resolved_at = -RESOLVE_SECONDS
        self._known: dict[tuple[str, str], str] = {}
        self._hosts: list[tuple[str, str]] = []
        for upstream in config.upstreams:
            for peer in upstream.peers:
                shown = canonical(peer.address)
                # Some servers of a status page keep the name.
                self._known[upstream.name, peer.address] = peer.address
                if shown is None:
                    self._hosts.append((upstream.name, peer.address))
                else:
                    self._known[upstream.name, shown] = peer.address

    def configured(self, upstream: str, server: str) -> str | None:
        """The configured address of a server that nginx shows in an upstream; None: it is not
        configured."""
        known = self._known.get((upstream, server))
        if known is None and any(name == upstream for name, _ in self._hosts):
            self._look_up()
            known = self._known.get((upstream, server))
        return known

    def _look_up(self) -> None:
        now = self._clock()
        if now - self._resolved_at < RESOLVE_SECONDS:
            return
        self._resolved_at = now
        for upstream, address in self._hosts:
            for shown in self._resolve(*split_address(address)):
                # What nginx resolved earlier stays: it may still use it.
                self._known.setdefault((upstream, shown), address)
