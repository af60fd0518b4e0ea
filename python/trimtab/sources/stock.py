"""The source of stock mode: snapshots from nginx-module-vts, one nginx after another.

What the pages say is in `vts`, arithmetic between snapshots in `window`. Here the rows of a page
become the pairs of the configuration, and it is told when counters began anew:

* A reload leaves them, a restart or another zone zeroes them (a new `start`), the control
  interface zeroes groups or servers (`window` sees those go back).
* A restart with vhost_traffic_status_dump brings back old counts: one reading is left out, so that
  nothing is counted twice.
* Removed servers stay with weight 0, vanish, or come back with their old counts (`window.Meter`).
* A group's own name among its servers stands for requests that found no live server; that pair is
  kept, as they failed. `::nogroups` and groups that are not configured are left out.
* Newer versions count every try at its own server, v0.2.2 a request at its last server, v0.1.18 at
  its first, so with retries sums over servers exceed the clients' requests in newer ones alone.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from trimtab.config import Config, split_address
from trimtab.errors import SourceError
from trimtab.model import BUCKET_BOUNDS_SECONDS, Connections, PairCounters, Snapshot
from trimtab.sources import vts
from trimtab.sources.buckets import spread
from trimtab.sources.names import Names
from trimtab.sources.page import Page
from trimtab.sources.reported import Instance
from trimtab.sources.vts import STATUS_CLASSES, ServerStatus, Status, Zone

__all__ = ["Vts", "page_urls"]

_log: Final = logging.getLogger(__name__)

# More tries a request than this are rare (Trimtab renders three at most): after a restart more
# upstream requests than that times the clients' requests were not counted since.
MOST_TRIES: Final = 4

# nginx's clock and ours may differ by what a page takes; more means that one was set.
CLOCK_SLACK_SECONDS: Final = 5.0

# A slab page, and its share of the zone's table of pages.
_SLAB_PAGE_BYTES: Final = 4096
# Pages that the zone's own small structures take.
_SLAB_OVERHEAD_PAGES: Final = 2

_READERS: Final = 8  # pages fetched at the same time
_NO_BUCKETS: Final = (0,) * (len(BUCKET_BOUNDS_SECONDS) + 1)


def page_urls(config: Config) -> tuple[str, ...]:
    """The status pages: `vts_url`, or that of the internal server."""
    if config.stock.vts_url:
        return config.stock.vts_url
    listen = config.nginx.internal_listen
    host, port = split_address(listen)
    if host.startswith("unix:"):
        return (f"http://{host}:/status/format/json",)
    here = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104
    return (f"http://{here}:{port}/status/format/json",)


@dataclass(slots=True)
class _Nginx:
    """One page, and what the last reading of it said."""

    page: Page
    name: str
    host: str = ""
    start: int = 0
    clock_seconds: float = 0.0
    now_msec: int = 0
    read_at: float = 0.0
    load_msec: int = 0
    requests: int = 0
    zone: tuple[str, int] = ("", 0)
    servers: Mapping[tuple[str, str], frozenset[str]] | None = None  # None before the first
    trouble: str = ""
    readings: int = 0


class Vts:
    """Snapshots of every nginx of the configuration. Safe to use from any thread.

    Args:
        config: upstreams and peers to look for, and where.
        clock: monotonic seconds.
        generation: what nginx serves now, as far as that is known.

    Raises ConfigError for a URL or a file of authorities that cannot be used.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        generation: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config = config
        self._clock = clock
        self._generation = generation
        self._names = Names(config, clock)
        urls = page_urls(config)
        self._nginxes = [
            _Nginx(
                page=Page(url, ca_file=config.stock.vts_ca_file),
                name=config.nginx.instance if len(urls) == 1 else _name(url),
            )
            for url in urls
        ]
        self._lock = threading.Lock()
        # A thread for each page: the slowest tells how long a reading takes.
        self._pool = (
            ThreadPoolExecutor(min(len(urls), _READERS), thread_name_prefix="vts")
            if len(urls) > 1
            else None
        )

    @property
    def accepted(self) -> int:
        """Readings taken in so far."""
        return sum(nginx.readings for nginx in self._nginxes)

    def instances(self) -> tuple[Instance, ...]:
        """Every nginx that has been read, by name."""
        now, generation = self._clock(), self._generation()
        return tuple(
            Instance(
                name=nginx.name,
                start=nginx.start,
                sequence=nginx.readings,
                generation=generation,
                age_seconds=now - nginx.read_at,
            )
            for nginx in sorted(self._nginxes, key=lambda n: n.name)
            if nginx.readings
        )

    def read(self) -> tuple[Snapshot, ...]:
        """A snapshot of each nginx that answers; those that do not are told in the log.

        An nginx is left out of one reading when nothing can be said of what it counted since the
        last. Raises SourceError when none answers.
        """
        with self._lock:
            if self._pool is None:
                found = [self._one(self._nginxes[0])]
            else:
                found = list(self._pool.map(self._one, self._nginxes))
            failed = [f for f in found if isinstance(f, SourceError)]
            if len(failed) == len(found):
                raise failed[0]
            return tuple(f for f in found if isinstance(f, Snapshot))

    def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for nginx in self._nginxes:
            nginx.page.close()

    def _one(self, nginx: _Nginx) -> Snapshot | SourceError | None:
        try:
            snapshot = self.snapshot(nginx, vts.read(nginx.page))
        except SourceError as error:
            if len(self._nginxes) > 1 and str(error) != nginx.trouble:
                _log.warning("%s; going on without it", error)
            nginx.trouble = str(error)
            return error
        if len(self._nginxes) > 1 and nginx.trouble:
            _log.warning("%s answers again", nginx.page.shown)
        nginx.trouble = ""
        return snapshot

    def snapshot(self, nginx: _Nginx, status: Status) -> Snapshot | None:
        """The snapshot of a page's reading; None when it can only be the next one's baseline.

        Raises SourceError for a page that lacks what is configured, or whose zone is full.
        """
        shown = nginx.page.shown
        pairs, servers = self._pairs(status, shown)
        _refuse_full(status.zone, pairs, shown)
        read_at = self._clock()
        load, now = status.load_msec or 0, status.now_msec or 0
        served = status.connections.get("requests", 0)
        zone = (status.zone.name, status.zone.size_bytes) if status.zone else ("", 0)
        first = nginx.servers is None
        restarted = load != nginx.load_msec and served < nginx.requests
        emptied = restarted or zone != nginx.zone
        # Requests of clients since the counters would have begun.
        since = served if restarted else served - nginx.requests
        counted = sum(p.requests for peers in pairs.values() for p in peers.values())
        known = nginx.servers or {}
        baseline = (
            first
            or status.host != nginx.host
            or (emptied and counted > MOST_TRIES * max(since, 0))
            # A host name stands for other servers than before: its sum is another's.
            or any(servers.get(key, known[key]) != known[key] for key in known)
        )
        if first or emptied or baseline:
            nginx.start = max(load, nginx.start + 1)
        nginx.clock_seconds += _passed(nginx, now, read_at)
        nginx.host, nginx.zone, nginx.requests = status.host, zone, served
        nginx.load_msec, nginx.now_msec, nginx.read_at = load, now, read_at
        nginx.servers = {**known, **servers}
        nginx.readings += 1
        if baseline and not first:
            _log.warning(
                "%s: its counters are not those of the last reading; one reading is left out", shown
            )
            return None
        gauges = ("active", "reading", "writing", "waiting")
        return Snapshot(
            instance=nginx.name,
            start=nginx.start,
            clock_seconds=nginx.clock_seconds,
            pairs=pairs,
            connections=Connections(**{g: status.connections.get(g, 0) for g in gauges}),
            generation=self._generation(),
            loaded_seconds=max(now - load, 0) / 1000 if load and now else None,
        )

    def _pairs(
        self, status: Status, shown: str
    ) -> tuple[dict[str, dict[str, PairCounters]], dict[tuple[str, str], frozenset[str]]]:
        """Counters by upstream and configured address, and which servers these are."""
        pairs: dict[str, dict[str, PairCounters]] = {}
        servers: dict[tuple[str, str], frozenset[str]] = {}
        for upstream in self._config.upstreams:
            name = upstream.name
            rows = status.groups.get(name)
            if rows is None:
                there = ", ".join(list(status.groups)[:8]) or "none"
                raise SourceError(
                    f"{shown} has no group {name!r} (it has: {there}); is there such an upstream "
                    "in nginx, and is vhost_traffic_status_stats_by_upstream on?"
                )
            counters: dict[str, PairCounters] = {}
            # A server that is listed twice has its one node shown twice.
            for server in {row.server: row for row in rows}.values():
                address = (
                    name if server.server == name else self._names.configured(name, server.server)
                )
                if address is None:
                    continue
                one = _counters(server, f"{shown}: group {name!r}, server {server.server!r}")
                counters[address] = _sum(counters[address], one) if address in counters else one
                servers[name, address] = servers.get((name, address), frozenset()) | {server.server}
            if not counters.keys() - {name}:
                there = ", ".join(row.server for row in rows[:8]) or "none"
                raise SourceError(
                    f"{shown}: none of the servers configured for {name!r} is in that group (it "
                    f"has: {there}); is include_file included?"
                )
            pairs[name] = counters
        return pairs, servers


def _name(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] + parts.path.partition("/status")[0]


def _passed(nginx: _Nginx, now_msec: int, read_at: float) -> float:
    """Seconds since the last reading: by nginx's clock, unless that was set."""
    if nginx.servers is None:
        return 0.0
    here = read_at - nginx.read_at
    there = (now_msec - nginx.now_msec) / 1000
    return there if there >= 0 and abs(there - here) <= CLOCK_SLACK_SECONDS else here


def _refuse_full(
    zone: Zone | None, pairs: Mapping[str, Mapping[str, PairCounters]], shown: str
) -> None:
    """A full zone shows servers without room as zeros, for ever."""
    if zone is None or not zone.nodes:
        return
    silent = sum(not p.requests for peers in pairs.values() for p in peers.values())
    if zone.free_bytes is not None:
        full = zone.free_bytes < _SLAB_PAGE_BYTES
    else:
        # Older versions do not tell: a node takes a page, or several.
        a_node = -(-zone.used_bytes // zone.nodes // _SLAB_PAGE_BYTES)
        pages = zone.size_bytes // _SLAB_PAGE_BYTES - 1
        full = zone.nodes * a_node >= pages - _SLAB_OVERHEAD_PAGES
    if full and silent:
        raise SourceError(
            f"{shown}: the zone {zone.name!r} of {zone.size_bytes} bytes is full, and "
            f"{silent} servers have no counters; enlarge vhost_traffic_status_zone"
        )


def _counters(server: ServerStatus, where: str) -> PairCounters:
    numbers = server.numbers
    one, two, three, four, five = (server.responses.get(c, 0) for c in STATUS_CLASSES)
    requests = int(numbers.get("requestCounter", 0))
    # Before its first request a server has no buckets yet.
    buckets: tuple[int, ...] = () if requests else _NO_BUCKETS
    if server.buckets is not None:
        bounds = [bound / 1000 for bound in server.buckets.bounds_msec]
        try:
            buckets = spread(bounds, server.buckets.counters, requests)
        except ValueError as error:
            raise SourceError(f"{where}: responseBuckets: {error}") from None
    return PairCounters(
        in_flight=float(numbers.get("inFlight", 0)),
        requests=requests,
        responses=(one, two, three, four, five),
        failures=five,
        in_bytes=int(numbers.get("inBytes", 0)),
        out_bytes=int(numbers.get("outBytes", 0)),
        response_time_seconds=numbers.get("responseMsecCounter", 0) / 1000,
        buckets=buckets,
    )


def _sum(a: PairCounters, b: PairCounters) -> PairCounters:
    """One peer that nginx resolved to two servers."""
    one, two, three, four, five = (x + y for x, y in zip(a.responses, b.responses, strict=True))
    return replace(
        a,
        in_flight=a.in_flight + b.in_flight,
        requests=a.requests + b.requests,
        responses=(one, two, three, four, five),
        failures=a.failures + b.failures,
        in_bytes=a.in_bytes + b.in_bytes,
        out_bytes=a.out_bytes + b.out_bytes,
        response_time_seconds=a.response_time_seconds + b.response_time_seconds,
        buckets=(
            tuple(x + y for x, y in zip(a.buckets, b.buckets, strict=True))
            if len(a.buckets) == len(b.buckets)
            else ()
        ),
    )
