"""The dashboard: what is served and, where there is a Chromium, what a real browser makes of it."""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import browser
from feeding import Feeder
from ports import free_ports
from trimtab import config, dashboard
from trimtab.config import Config

TIMEOUT = 30.0  # seconds; nothing here takes long, but the machine may be busy
TOKEN = "correct-horse-battery"

needs_browser = pytest.mark.skipif(browser.BINARY is None, reason=browser.WHY_NOT)


@dataclass
class Server:
    """A `trimtab serve`, which can be killed and started again."""

    directory: Path
    config: Config
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the admin address."""
        return self.config.policy.admin_listen

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trimtab", "serve", "--config", self.config.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + TIMEOUT
        while True:
            try:
                self.get("/healthz")
            except OSError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """Kill -9."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def get(self, path: str) -> tuple[http.client.HTTPResponse, bytes]:
        """One GET: the answer and its body."""
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def events(self, count: int) -> list[tuple[str, Any]]:
        """The first events of /events."""
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        found: list[tuple[str, Any]] = []
        kind = ""
        while len(found) < count:
            line = answer.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
        connection.close()
        return found


def configure(directory: Path, peers: int) -> Config:
    """Two classes on the same peers, quick to observe and decide."""
    policy, admin = free_ports(2)
    (directory / "token").write_text(TOKEN + "\n")
    os.chmod(directory / "token", 0o600)
    text = [
        f'[policy]\nlisten = "127.0.0.1:{policy}"\nadmin_listen = "127.0.0.1:{admin}"',
        f'state_directory = "{directory / "state"}"\ntoken_file = "{directory / "token"}"',
        "interval_seconds = 0.1\ntime_to_live_seconds = 5",
        "[learning]\nobserve_seconds = 1\ndecision_seconds = 1\nclusters = 2",
    ]
    for name in ("compose", "home"):
        text.append(f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"')
        text += [
            f'[[upstream.peer]]\naddress = "10.0.0.{n + 1}:80"\nslots = 2' for n in range(peers)
        ]
    path = directory / "trimtab.toml"
    path.write_text("\n".join(text))
    return config.load(path)


@contextmanager
def running(directory: Path, peers: int) -> Iterator[tuple[Server, Feeder]]:
    """A policy server and a balancer that reports to it."""
    server = Server(directory, configure(directory, peers))
    try:
        server.start()
        with Feeder(server.config) as feeder:
            yield server, feeder
    finally:
        server.kill()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Feeder]]:
    """A server with three peers, for tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("three"), 3) as parts:
        yield parts


def test_the_page_is_whole_and_its_policy_strict(three: tuple[Server, Feeder]) -> None:
    """One document, nothing from elsewhere, and a policy that allows its own hashes alone."""
    answer, body = three[0].get("/")
    page = body.decode()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    policy = str(answer.getheader("Content-Security-Policy"))
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        allowed = re.search(rf"{directive} ([^;]*)", policy)
        assert allowed
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [
            "'sha256-" + base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() + "'"
            for b in blocks
        ]
        assert blocks
        assert allowed[1].split() == hashes
    outside = re.findall(r"""(?:src|href)=["'](?!data:)([^"']+)""", page)
    assert set(outside) == {"status.json", "metrics", "healthz"}
    assert not re.search(r"""\son\w+=|\sstyle=|innerHTML|/\* \w+\.(js|css) \*/""", page)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_page_is_package_data() -> None:
    """It needs no file but those beside the module."""
    body, policy = dashboard.page()
    assert body.startswith(b"<!doctype html>")
    assert policy.count("sha256-") == 4


def test_events_bring_status_and_journal(three: tuple[Server, Feeder]) -> None:
    """The first events are a status with every part of the page, and the journal."""
    got = three[0].events(2)
    assert [kind for kind, _ in got] == ["status", "journal"]
    status, journal = got[0][1], got[1][1]
    assert list(status["upstreams"]) == ["compose", "home"]
    peer = status["upstreams"]["compose"]["peers"]["10.0.0.1:80"]
    assert set(peer) == set("wark") | set("dphsnt")
    assert status["control"] is True
    assert journal[0]["time"] >= journal[-1]["time"]
    assert journal[-1]["kind"] == "start"


def test_history_is_served(three: tuple[Server, Feeder]) -> None:
    """A page that is opened late has the last minutes at once."""
    until = time.monotonic() + TIMEOUT
    while not (points := json.loads(three[0].get("/history.json")[1])["points"]):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert set(points[0]["classes"]) == {"compose", "home"}


ROWS = "document.querySelectorAll('#servers tbody tr').length"
LINK = "document.getElementById('link').textContent"


@needs_browser
def test_a_browser_shows_pins_drains_and_survives_a_restart(tmp_path: Path) -> None:
    """In a real browser: live numbers, orders with the token, a name that is no HTML, kill -9 of
    the server and its return, all without an error of the script or a blocked resource."""
    with running(tmp_path, 3) as (server, feeder), browser.browsing() as page:
        page.size(1440, 1000)
        page.go(f"http://{server.address}/")
        page.until(f"{LINK} === 'live' && {ROWS} === 3")
        page.until("document.querySelectorAll('#chart-art path').length === 2")
        page.until("document.querySelectorAll('.class').length === 2")
        tile = "document.querySelector('#tiles .tile:nth-child(2) b').textContent"
        assert float(page.until(f"parseFloat({tile}) > 0 && {tile}")) > 0

        # An order asks for the token first, and a wrong one again.
        page.js("document.querySelector('#servers tbody tr').click()")
        page.until("document.getElementById('peer').open")
        page.until("document.querySelectorAll('#peer-table tbody tr').length === 2")
        page.js("document.getElementById('why').value = '<img src=x onerror=alert(1)>'")
        page.js("document.getElementById('drain').click()")
        for token in ("wrong-horse-battery", TOKEN):
            page.until(
                "document.getElementById('ask').open && document.getElementById('token').value==''"
            )
            page.js(
                f"document.getElementById('token').value = {token!r};"
                "document.getElementById('name').value = 'ada';"
                "document.querySelector('#ask form').requestSubmit()"
            )
        page.until("document.getElementById('answer').textContent.includes('is drained')")
        page.until("document.querySelector('#servers tbody tr').className === 'drained'")
        page.until(
            "[...document.querySelectorAll('#journal p')].some(p => p.textContent.includes("
            "'drained 10.0.0.1:80: <img src=x') && p.textContent.includes('by ada'))"
        )
        assert page.js("document.querySelectorAll('#journal img').length") == 0
        page.js("document.getElementById('pin-weight').value = '1.25'")
        page.js("document.getElementById('pin').click()")
        page.until("document.querySelector('#servers .tag.pin')?.textContent === 'pin'")
        page.js("document.getElementById('peer').close()")
        page.js("document.getElementById('shadow').click()")
        page.until("!document.getElementById('shadowed').hidden")

        feeder.down = {"10.0.0.3:80"}
        page.until("document.querySelectorAll('#servers tr.down').length === 1")
        tag = page.js("document.querySelector('#servers tr.down .tag.bad').textContent")
        assert tag == "ejected: stall"

        epoch = json.loads(server.get("/status.json")[1])["epoch"]
        server.kill()
        page.until(f"{LINK} === 'reconnecting' || {LINK}.startsWith('no data')")
        page.until("document.body.className === 'stale'")
        server.start()
        page.until(f"{LINK} === 'live' && {ROWS} === 3")
        pid = server.process.pid if server.process else 0
        page.until(f"document.getElementById('version').textContent.endsWith('pid {pid}')")
        assert json.loads(server.get("/status.json")[1])["epoch"] == epoch
        # A connection that was refused is what the restart is; nothing else may have gone wrong.
        assert [e for e in page.console if "ERR_" not in e and "401" not in e] == []


@needs_browser
def test_a_browser_shows_a_hundred_servers_at_any_size(tmp_path: Path) -> None:
    """At 100 peers, desktop or phone, light or dark, all are there and nothing overflows."""
    with running(tmp_path, 100) as (server, _), browser.browsing() as page:
        page.go(f"http://{server.address}/")
        colours = set()
        for width, phone in ((1440, False), (390, True)):
            page.size(width, 900, phone=phone)
            for dark in (False, True):
                page.dark(dark)
                page.until(f"{LINK} === 'live' && {ROWS} === 100")
                # The decisions are within reach: the servers scroll in a box of their own.
                box = "document.querySelector('#servers').parentElement"
                assert page.js(f"{box}.scrollHeight > 2 * {box}.clientHeight")
                assert page.js("document.documentElement.scrollWidth <= innerWidth")
                colours.add(page.js("getComputedStyle(document.body).backgroundColor"))
                picture = tmp_path / f"{width}-{dark}.png"
                page.picture(picture)
                assert picture.read_bytes().startswith(b"\x89PNG")
        assert len(colours) == 2
        page.js(
            "document.getElementById('filter').value = '10.0.0.77';"
            "document.getElementById('filter').dispatchEvent(new Event('input'))"
        )
        page.until(f"{ROWS} === 1")
        assert page.console == []
