"""A private nginx for the tests of the Lua modules: started in a directory, stopped by its pid."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ports import free_port
from trimtab.paths import lua_directory

LUA = Path(__file__).parent / "lua"
MODULES = Path("/usr/share/nginx/modules")

_CONFIG = """
{user}
worker_processes 1;
error_log logs/error.log info;
pid nginx.pid;
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path tmp_body; proxy_temp_path tmp_proxy; fastcgi_temp_path tmp_fastcgi;
    uwsgi_temp_path tmp_uwsgi; scgi_temp_path tmp_scgi;
    client_max_body_size 16m;
    client_body_buffer_size 16m;
    lua_package_path "{lua}/?.lua;{tests}/?.lua;;";
    lua_socket_log_errors off;
    {http}
}}
"""


def wait_for_port(port: int, seconds: float = 10.0) -> None:
    """Return when something listens on the port."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after {seconds:g} s")
        time.sleep(0.01)


@contextlib.contextmanager
def nginx(directory: Path, http: str, port: int) -> Iterator[int]:
    """Run an nginx with `http` in its http block; yields the master's process id.

    `port` is one that it listens on. On the way out it gets SIGTERM and is waited for.
    """
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    config = directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            # As root the workers would become nobody, who may not read the test's directory.
            user="user root;" if os.geteuid() == 0 else "",
            modules=MODULES,
            lua=lua_directory(),
            tests=LUA,
            http=http,
        )
    )
    command = ["nginx", "-p", str(directory), "-c", str(config), "-e", "logs/error.log"]
    with (directory / "logs" / "stderr").open("wb") as stderr:
        process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=stderr)
    try:
        try:
            wait_for_port(port)
        except TimeoutError:
            raise AssertionError((directory / "logs" / "stderr").read_text()) from None
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def serving(directory: Path, script: Path) -> Iterator[int]:
    """Run an nginx that answers everything by that Lua file; yields the port."""
    port = free_port()
    http = f"""
    server {{
        listen 127.0.0.1:{port};
        location / {{ content_by_lua_file {script}; }}
    }}"""
    with nginx(directory, http, port):
        yield port


def get(port: int, path: str, timeout: float = 60.0) -> tuple[int, bytes]:
    """Status and body of a GET on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post_json(port: int, path: str, value: Any, timeout: float = 60.0) -> Any:
    """The JSON answer to a POST of JSON; AssertionError with the body when it is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(value).encode())
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    assert response.status == 200, body.decode(errors="replace")
    return json.loads(body)


def encoded(data: bytes) -> str:
    """Bytes as base64 text, for JSON."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """What `encoded` took."""
    return base64.b64decode(text)
