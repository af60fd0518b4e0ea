"""Reading a status page: real answers, and everything that is not one."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.errors import SourceError
from trimtab.sources import page, vts
from trimtab.sources.page import Page

DATA = Path(__file__).parents[2] / "data" / "vts"


def capture(name: str) -> bytes:
    """A real answer."""
    return (DATA / f"{name}.json").read_bytes()


@pytest.mark.parametrize("version", ["v0.1.18", "v0.2.7-head"])
def test_a_loaded_page_is_read(version: str) -> None:
    """Groups, servers, counters, weights and connections come out as they are in the answer."""
    status = vts.parse(capture(f"{version}.03-loaded"))
    assert list(status.groups) == ["compose_backend", "home_read_backend", "user_read_backend"]
    compose = status.groups["compose_backend"]
    assert [s.server for s in compose] == [f"127.0.0.1:1981{k}" for k in (1, 2, 3)]
    assert sum(s.numbers["requestCounter"] for s in compose) == 120
    assert [s.numbers["weight"] for s in compose] == [1, 3, 5]
    assert sum(s.responses["2xx"] for s in compose) == 120
    assert compose[0].flags == {"backup": False, "down": False}
    assert status.connections["active"] == 1
    assert status.load_msec is not None
    assert status.now_msec is not None
    assert status.now_msec > status.load_msec


def test_a_server_that_is_down_is_seen() -> None:
    """The flags of a server are read."""
    status = vts.parse(capture("v0.1.18.16-first-server-down"))
    assert [s.flags["down"] for s in status.groups["compose_backend"]] == [True, False, False]


def test_pseudo_servers_and_groups_are_kept() -> None:
    """What VTS lists beside real servers is read as it stands: it is not judged here."""
    status = vts.parse(capture("v0.2.7-head.21-mixed-loaded"))
    assert "::nogroups" in status.groups
    names = [s.server for s in status.groups["retry500_backend"]]
    assert "retry500_backend" in names
    assert any(s.server.startswith("unix:") for s in status.groups["mixed_backend"])


def test_the_hooks_keys_are_read() -> None:
    """Requests in flight, which Trimtab's hook adds, are kept."""
    body = b'{"connections": {}, "upstreamZones": {"g": [{"server": "s", "inFlight": 3}]}}'
    status = vts.parse(body)
    assert status.groups["g"][0].numbers == {"inFlight": 3}
    assert status.load_msec is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (capture("v0.2.7-head.26-stats-by-upstream-off"), "does not answer JSON"),
        (b"<html>", "does not answer JSON"),
        (b"", "does not answer JSON"),
        (b"[" * 100_000, "does not answer JSON"),
        (b"\xff\xfe", "does not answer JSON"),
        (b"[]", "not a VTS status"),
        (b"{}", "not a VTS status"),
        (b'{"connections": {}, "upstreamZones": []}', "not a VTS status"),
        (b'{"connections": 5}', "connections is not an object"),
        (b'{"connections": {"active": "x"}}', "connections 'active' is 'x'"),
        (b'{"connections": {}, "upstreamZones": {"g": {}}}', "group 'g' is not a list"),
        (b'{"connections": {}, "upstreamZones": {"g": [{}]}}', "without a server's name"),
        (
            b'{"connections": {}, "upstreamZones": {"g": [{"server": "s", "inBytes": -1}]}}',
            "group 'g', server 's': inBytes is -1",
        ),
        (b'{"connections": {"active": 1e400}}', "connections 'active' is inf"),
        (b'{"connections": {"active": 1' + b"0" * 400 + b"}}", "not a number from 0 to 2.64"),
        (
            b'{"connections": {}, "upstreamZones": {"g": [{"server": "s", "inBytes": NaN}]}}',
            "NaN is not JSON",
        ),
        (
            b'{"connections": {}, "upstreamZones": {"g": [{"server": "s", "down": 1}]}}',
            "down is neither true nor false",
        ),
    ],
)
def test_what_is_no_status_is_refused(body: bytes, message: str) -> None:
    """An answer of another shape is one sentence that says what is wrong and where."""
    with pytest.raises(SourceError, match=message):
        vts.parse(body, "http://x/")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer by path."""
        if self.path == "/status":
            body = capture("v0.2.7-head.03-loaded")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/status")
            self.end_headers()
        elif self.path in ("/huge", "/drip"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.over.is_set():  # type: ignore[attr-defined]
                    self.wfile.write(b" " * (1 << 20 if self.path == "/huge" else 1))
                    if self.path == "/drip":
                        time.sleep(0.02)
        else:
            self.send_response(503)
            self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that misbehaves by path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listening:
        listening.over = threading.Event()  # type: ignore[attr-defined]
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.over.set()  # type: ignore[attr-defined]
        listening.shutdown()
        thread.join()


def test_a_page_is_fetched(server: str) -> None:
    """A status page is read over HTTP."""
    with Page(f"{server}/status") as one:
        assert len(vts.read(one).groups) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/moved", "redirects to /status"),
        ("/absent", "answers 503"),
        ("/huge", "more than 33554432 bytes"),
        ("/drip", "takes more than 0.2 s"),
    ],
)
def test_bad_answers_are_bounded(
    server: str, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirects, errors, endless and dripping bodies end in one sentence, soon."""
    monkeypatch.setattr(page, "WHOLE_SECONDS", 0.2 if path == "/drip" else 10.0)
    with Page(f"{server}{path}") as one, pytest.raises(SourceError, match=message):
        one.read()


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is given up on."""
    monkeypatch.setattr(page, "READ_SECONDS", 0.1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with Page(url) as one, pytest.raises(SourceError, match="does not answer in time"):
            one.read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/", "Connection refused"),
        ("http://nowhere.invalid/", "Name or service not known|Temporary failure"),
        ("http://[::", "not a valid host or port"),
    ],
)
def test_no_connection_is_one_sentence(url: str, message: str) -> None:
    """Why there is no connection is said in the system's words, without the layers around them."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        one = Page(url.format(port=unused.getsockname()[1]))
        with one, pytest.raises(SourceError, match=message) as error:
            one.read()
    assert len(str(error.value)) < 120


def test_the_captures_are_json_but_one() -> None:
    """The data of these tests is as served: one file is invalid on purpose."""
    broken = []
    for path in sorted(DATA.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            broken.append(path.name)
    assert broken == ["v0.2.7-head.26-stats-by-upstream-off.json"]
