"""A real headless Chromium over its DevTools protocol, for tests of the dashboard."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
WHY_NOT = "no chromium here: `apt-get install chromium` runs the dashboard in a real browser"

TIMEOUT = 40.0  # seconds; the first start of a browser on a busy machine takes a few

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One page: where it is, what its script says, what it looks like."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop = loop
        self._socket = socket
        self._number = 0
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result."""
        future = asyncio.run_coroutine_threadsafe(self._send(method, parameters), self._loop)
        return future.result(TIMEOUT)

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        """Remember errors: uncaught ones, and what the browser blocked."""
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.console.append(parameters["entry"]["text"])

    def go(self, url: str) -> None:
        """Open a page."""
        self.send("Page.navigate", url=url)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The window."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def dark(self, on: bool) -> None:
        """The colours that the user prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        told = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true; its value."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                value = self.js(expression)
            except AssertionError:
                value = None
            if value:
                return value
            assert time.monotonic() < deadline, (expression, self.console)
            time.sleep(0.05)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot as PNG."""
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def browsing() -> Iterator[Page]:
    """A browser with one empty page; gone at the end with all its processes."""
    assert BINARY is not None
    with tempfile.TemporaryDirectory(
        prefix="trimtab-chromium-", ignore_cleanup_errors=True
    ) as home:
        process = subprocess.Popen(
            [BINARY, *_FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
        )
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        session: aiohttp.ClientSession | None = None
        try:
            port = _port(Path(home), process)

            async def connect() -> tuple[aiohttp.ClientSession, Any]:
                client = aiohttp.ClientSession()
                async with client.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [p for p in await answer.json() if p["type"] == "page"]
                url = pages[0]["webSocketDebuggerUrl"]
                return client, await client.ws_connect(url, max_msg_size=0)

            session, socket = asyncio.run_coroutine_threadsafe(connect(), loop).result(TIMEOUT)
            yield Page(loop, socket)
        finally:
            if session is not None:
                asyncio.run_coroutine_threadsafe(session.close(), loop).result(TIMEOUT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(TIMEOUT)
            loop.close()


def _port(home: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that the browser chose, once it listens."""
    deadline = time.monotonic() + TIMEOUT
    path = home / "DevToolsActivePort"
    while time.monotonic() < deadline:
        assert process.poll() is None, "chromium ended"
        if path.exists() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("chromium did not open its port")
