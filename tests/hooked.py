"""A private nginx with the Trimtab hook, and a small client, for tests of the data plane."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_ports
from trimtab.paths import lua_directory

__all__ = ["Hooked", "Load", "hooked", "load", "until"]

MODULES = Path("/usr/share/nginx/modules")

# Everything below works in time, but the machine may be busy.
PATIENCE_SECONDS = 20.0

NO_HEALTH = {"eject_failures": 0, "eject_error_ratio": 1, "eject_stall_seconds": 0}

_CONFIG = """
{user}
worker_processes {workers};
worker_shutdown_timeout 10s;
error_log logs/error.log notice;
pid nginx.pid;
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
events {{ worker_connections 12288; }}
http {{
    access_log off;
    client_body_temp_path tmp_body; proxy_temp_path tmp_proxy; fastcgi_temp_path tmp_fastcgi;
    uwsgi_temp_path tmp_uwsgi; scgi_temp_path tmp_scgi;
    lua_package_path "{lua}/?.lua;;";
    lua_shared_dict trimtab 8m;
    lua_socket_log_errors off;
    lua_check_client_abort on;
    init_by_lua_block {{
        trimtab = require("resty.trimtab")
        trimtab.init("{directory}/trimtab.json")
    }}
    init_worker_by_lua_block {{ trimtab.init_worker() }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_next_upstream error timeout http_500 http_502 http_503 http_504 non_idempotent;
    keepalive_requests 100000;
{upstreams}
    {http}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        {server}
{locations}
    }}
    server {{
        listen 127.0.0.1:{internal};
        location / {{ return 404; }}
        location = /snapshot {{ content_by_lua_block {{
            local t = require("resty.trimtab").snapshot()
            t.records = require("resty.trimtab").records()
            ngx.print(require("cjson").encode(t))
        }} }}
        location = /trimtab/status {{
            content_by_lua_block {{ trimtab.status() }}
        }}
        {bridge}
    }}
}}
"""

_BRIDGE = """
        location /trimtab.v1.PolicyService/ {{
            grpc_pass grpc://{policy};
            grpc_set_header TE trailers;
            grpc_connect_timeout 1s;
        }}
"""

_UPSTREAM = """
    upstream {name} {{
{servers}
        {balancer}
        keepalive 64;
    }}
"""

_BALANCER = 'balancer_by_lua_block {{ trimtab.balance("{name}") }}'

_LOCATION = """
        location /{name} {{
            access_by_lua_block {{ trimtab.access("{name}") }}
            proxy_pass http://{name};
            {extra}
            log_by_lua_block {{ trimtab.log("{name}") }}
        }}
"""


def until(true: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until it is true; how many seconds that took. AssertionError when it does not come."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() < start + seconds, f"still not so after {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - start


@dataclass
class Hooked:
    """A running nginx."""

    directory: Path
    port: int
    internal: int
    process: subprocess.Popen[bytes]
    write: Callable[..., None]
    used: dict[str, Any] = field(default_factory=dict)
    http2_port: int = 0  # where a test's own configuration listens for HTTP/2

    def get(
        self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, str]:
        """Status and body. `x_work="0.1"` is the header X-Work."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            names = {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def snapshot(self) -> dict[str, Any]:
        """What the hook says of itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.internal, timeout=5)
        try:
            connection.request("GET", "/snapshot")
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def pairs(self, name: str) -> dict[str, dict[str, Any]]:
        """The peers of an upstream, by address."""
        upstream = next(u for u in self.snapshot()["upstreams"] if u["upstream"] == name)
        return {p["address"]: p for p in upstream["peers"]}

    def total(self, name: str, what: str) -> float:
        """A counter of an upstream over its peers."""
        return float(sum(p[what] for p in self.pairs(name).values()))

    def in_flight(self) -> float:
        """Over all addresses."""
        return float(sum(a["in_flight"] for a in self.snapshot()["addresses"]))

    def is_at_rest(self) -> bool:
        """Whether every gauge is zero and no record is held."""
        s = self.snapshot()
        gauges = [a[g] for a in s["addresses"] for g in ("in_flight", "work_seconds", "claims")]
        gauges += [u["in_flight"] + u["waiting"] for u in s["upstreams"]]
        gauges += [p["in_flight"] for u in s["upstreams"] for p in u["peers"]]
        return not any(gauges) and s["records"]["live"] == 0 and s["records"]["limbo"] == 0

    def workers(self) -> list[int]:
        """Process ids of the workers that have a row."""
        return [int(w["pid"]) for w in self.snapshot()["workers"]]

    def reload(self, **changes: Any) -> None:
        """Reload, with these arguments of `hooked` changed, and wait for the new workers."""
        before = self.snapshot()["configurations"]
        self.used.update(changes)
        self.write(**self.used)
        self.process.send_signal(signal.SIGHUP)
        workers = self.used.get("workers", 1)

        def is_done() -> bool:
            snapshot = self.snapshot()
            new = [w for w in snapshot["workers"] if w["generation"] > before]
            return len(new) == workers

        until(is_done)

    @property
    def log(self) -> str:
        """The error log."""
        return (self.directory / "logs" / "error.log").read_text()


@contextlib.contextmanager
def hooked(
    directory: Path,
    upstreams: dict[str, Sequence[dict[str, Any]]],
    **options: Any,
) -> Iterator[Hooked]:
    """Run an nginx with the hook over these upstreams: name -> peers as in trimtab.json.

    Options: workers=1, balance=True, policy="host:port" of a policy server, interval=0.1,
    extra="" for each location, server="" and http="" for those blocks, deadline=None,
    lua=True (False: the upstreams have no balancer block), parameters="max_fails=0" for each server
    line, hold={...} for the keys of trimtab.json
    about waiting (without it nobody waits), health={...} for those about ejections and retries
    (without it nobody is ejected, and nothing bounds retries).
    """
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    port, internal = free_ports(2)

    def write(
        upstreams: dict[str, Sequence[dict[str, Any]]],
        workers: int = 1,
        balance: bool = True,
        policy: str = "127.0.0.1:1",
        interval: float = 0.1,
        extra: str = "",
        server: str = "",
        http: str = "",
        deadline: float | dict[str, float] | None = None,
        lua: bool = True,
        parameters: str = "max_fails=0",
        hold: dict[str, Any] | None = None,
        health: dict[str, Any] | None = None,
    ) -> None:
        settings = {
            "format": 1,
            "instance": "test",
            "interval_seconds": interval,
            "bridge": f"127.0.0.1:{internal}",
            "balance": balance,
            "upstreams": [
                {
                    "name": n,
                    "priority": 1,
                    "deadline_seconds": deadline.get(n) if isinstance(deadline, dict) else deadline,
                    "peers": list(p),
                    **(hold or {"hold": "off"}),
                    **({**NO_HEALTH, "retry_non_idempotent": True} | (health or {})),
                }
                for n, p in upstreams.items()
            ],
        }
        (directory / "trimtab.json").write_text(json.dumps(settings))
        blocks = []
        for name, each in upstreams.items():
            blocks.append(
                _UPSTREAM.format(
                    name=name,
                    servers="\n".join(f"server {p['address']} {parameters};" for p in each),
                    balancer=_BALANCER.format(name=name) if lua else "",
                )
            )
        (directory / "nginx.conf").write_text(
            _CONFIG.format(
                # As root the workers would become nobody, who may not read the test's directory.
                user="user root;" if os.geteuid() == 0 else "",
                workers=workers,
                modules=MODULES,
                lua=lua_directory(),
                directory=directory,
                upstreams="".join(blocks),
                server=server,
                http=http,
                locations="".join(_LOCATION.format(name=n, extra=extra) for n in upstreams),
                port=port,
                internal=internal,
                bridge=_BRIDGE.format(policy=policy),
            )
        )

    used = {"upstreams": upstreams, **options}
    write(**used)
    command = ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]
    command += ["-e", "logs/error.log", "-g", "daemon off;"]
    with (directory / "logs" / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        running = Hooked(directory, port, internal, process, write, used)

        def is_up() -> bool:
            text = (directory / "logs" / "stderr").read_text()
            assert process.poll() is None, text + running.log
            try:
                return len(running.workers()) == used.get("workers", 1)
            except (OSError, http.client.HTTPException):
                return False

        until(is_up)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Load:
    """What a load got: statuses (0: no answer), and the answering peer of each 200, in order."""

    statuses: Counter[int] = field(default_factory=Counter)
    peers: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)


async def _one(port: int, head: bytes, into: Load, streams: list[Any], retried: bool) -> None:
    start = time.monotonic()
    is_reused = bool(streams)
    try:
        if not streams:
            streams.extend(await asyncio.open_connection("127.0.0.1", port))
        reader, writer = streams
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:]) if k}
        await reader.readexactly(int(headers.get("content-length", 0)))
        status = int(lines[0].split()[1])
        if headers.get("connection") == "close":
            writer.close()
            streams.clear()
    except (ConnectionError, asyncio.IncompleteReadError):
        if streams:
            streams[1].close()
        streams.clear()
        if is_reused and not retried:
            # nginx closes idle connections when it reloads; a client tries again.
            return await _one(port, head, into, streams, True)
        into.statuses[0] += 1
        return None
    into.statuses[status] += 1
    into.times.append(time.monotonic() - start)
    if status == 200:
        into.peers[headers.get("x-trimtab-peer", "")] += 1
    return None


async def load(
    port: int,
    paths: Sequence[str],
    *,
    concurrency: int = 8,
    count: int = 0,
    seconds: float = 0.0,
    pause: float = 0.0,
    headers: str = "",
) -> Load:
    """A closed loop over the paths in turn, until `count` requests or `seconds`."""
    into = Load()
    end = time.monotonic() + (seconds or 3600)
    left = count or 10**9

    async def client(first: int) -> None:
        nonlocal left
        streams: list[Any] = []
        n = first
        while left > 0 and time.monotonic() < end:
            left -= 1
            path = paths[n % len(paths)]
            n += 1
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
            await asyncio.wait_for(_one(port, head, into, streams, False), PATIENCE_SECONDS)
            if pause:
                await asyncio.sleep(pause)
        if streams:
            streams[1].close()

    await asyncio.gather(*(client(c) for c in range(concurrency)))
    return into


def abort(port: int, path: str, after: float, headers: str = "") -> None:
    """Send a request and go away after so many seconds."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        time.sleep(after)
