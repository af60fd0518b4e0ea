"""Configurations and backends for tests that run a private nginx."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ports import free_ports
from trimtab import config
from trimtab.config import Config

__all__ = ["answering", "configuration", "toml"]


def toml(directory: Path, *, peers: list[str] | None = None) -> str:
    """A configuration of two classes, all on free ports, with its state below `directory`."""
    grpc, admin, listen, internal = free_ports(4)
    upstreams = [
        f'[[upstream]]\nname = "{name}"\nlocation = "{location}"\ntimeout_seconds = 2\n'
        + "".join(
            f'[[upstream.peer]]\naddress = "{address}"\nslots = 2\n'
            for address in peers or ["127.0.0.1:9", "127.0.0.2:9"]
        )
        for name, location in (("reads", "/read"), ("writes", "/write"))
    ]
    return (
        f'[policy]\nlisten = "127.0.0.1:{grpc}"\nadmin_listen = "127.0.0.1:{admin}"\n'
        f'interval_seconds = 0.1\nstate_directory = "{directory}/state"\n'
        f'[nginx]\nlisten = ["127.0.0.1:{listen}"]\ninternal_listen = "127.0.0.1:{internal}"\n'
        'instance = "test"\n' + "".join(upstreams)
    )


def configuration(directory: Path, *, peers: list[str] | None = None) -> Config:
    """The same, checked."""
    return config.parse(toml(directory, peers=peers))


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with what nginx has made of the request."""
        body = f"{self.headers.get('Host')} {self.headers.get('Connection')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """A backend on loopback that answers every GET; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
