"""A status page that shows recorded answers of nginx-module-vts, for tests without the module."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

from trimtab import config
from trimtab.config import Config

__all__ = ["CAPTURES", "Replay", "configuration", "replay"]

CAPTURES = Path(__file__).parent / "data" / "vts"
GROUPS = ("compose_backend", "home_read_backend", "user_read_backend")


class Replay:
    """What the page answers: `body`, or a capture by name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.body = b""

    def show(self, name: str) -> None:
        """Answer with a capture from now on."""
        self.body = (CAPTURES / f"{name}.json").read_bytes()


@contextlib.contextmanager
def replay() -> Iterator[Replay]:
    """A page on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = shown.body
            self.send_response(200 if body else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        shown = Replay(f"http://127.0.0.1:{server.server_address[1]}/status/format/json")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield shown
        finally:
            server.shutdown()
            thread.join()


def configuration(
    *urls: str,
    groups: tuple[str, ...] = GROUPS,
    peers: tuple[str, ...] = ("127.0.0.1:19811", "127.0.0.1:19812", "127.0.0.1:19813"),
) -> Config:
    """Stock mode with the upstreams and servers of the captures."""
    listed = ", ".join(f'"{url}"' for url in urls)
    text = f'[nginx]\nmode = "stock"\ninstance = "edge"\n[stock]\nvts_url = [{listed}]\n'
    for name in groups:
        text += f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"\n'
        text += "".join(f'[[upstream.peer]]\naddress = "{address}"\n' for address in peers)
    return config.parse(text)
