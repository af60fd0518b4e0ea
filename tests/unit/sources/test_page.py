"""Fetching a page: sockets, passwords, TLS, and what drips."""

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.errors import ConfigError, SourceError
from trimtab.sources import page
from trimtab.sources.page import Page

PEM = Path(__file__).parents[2] / "data" / "tls" / "localhost.pem"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@contextlib.contextmanager
def listening(
    answer: Callable[[socket.socket, bytes], None], listener: socket.socket | None = None
) -> Iterator[str]:
    """A server that gives each connection's first request to `answer`; yields host:port."""
    if listener is None:
        listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                answer(connection, connection.recv(65536))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        name = listener.getsockname()
        yield name if isinstance(name, str) else f"{name[0]}:{name[1]}"
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_unix_sockets_are_read_in_nginx_s_notation(tmp_path: Path) -> None:
    """A status page on a unix socket needs no port, and its URI follows the path."""
    asked = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request.split()[1])
        connection.sendall(OK)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    with listening(answer, listener) as path, Page(f"http://unix:{path}:/status") as one:
        assert one.read() == b"hi"
    assert asked == [b"/status"]
    with (
        Page(f"http://unix:{tmp_path}/none:/") as absent,
        pytest.raises(SourceError, match="No such file"),
    ):
        absent.read()


def test_user_and_password_are_sent_and_never_shown() -> None:
    """Basic authentication comes from the URL; messages leave it out."""

    def answer(connection: socket.socket, request: bytes) -> None:
        right = base64.b64encode(b"me:se cret") in request
        connection.sendall(OK if right else b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

    with listening(answer) as address:
        with Page(f"http://me:se%20cret@{address}/") as one:
            assert one.read() == b"hi"
        with (
            Page(f"http://me:wrong@{address}/") as one,
            pytest.raises(SourceError, match=r"401 No .*into the URL") as error,
        ):
            one.read()
    assert "wrong" not in str(error.value)
    with Page("http://me:wrong@127.0.0.1:1/") as one, pytest.raises(SourceError) as error:
        one.read()
    assert "wrong" not in str(error.value)


def test_redirects_do_not_tell_passwords() -> None:
    """Where a page redirects to is said, without who logs in there."""

    def answer(connection: socket.socket, request: bytes) -> None:
        del request
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://me:wrong@x/\r\n\r\n")

    with (
        listening(answer) as address,
        Page(f"http://{address}/") as one,
        pytest.raises(SourceError, match="redirects to http://x/: name that"),
    ):
        one.read()


def test_tls_is_checked_against_the_given_authorities() -> None:
    """An unknown certificate is refused with the reason; with its authority it is accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)

    def answer(connection: socket.socket, request: bytes) -> None:
        del request
        connection.sendall(OK)

    listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
    with listening(answer, listener) as address:
        with Page(f"https://{address}/", ca_file=PEM) as one:
            assert one.read() == b"hi"
        with Page(f"https://{address}/") as one, pytest.raises(SourceError, match="certificate"):
            one.read()
    with pytest.raises(ConfigError, match="no file /none"):
        Page("https://x/", ca_file=Path("/none"))


def test_heads_that_drip_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole answer has its time, although each byte comes within that of a read."""
    monkeypatch.setattr(page, "WHOLE_SECONDS", 0.3)
    over = threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        del request
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not over.wait(0.02):
            connection.sendall(b"x")

    with listening(answer) as address, Page(f"http://{address}/") as one:
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"more than 0\.3 s"):
            one.read()
        took = time.monotonic() - began
        over.set()
    assert took >= 0.3


def test_an_answer_cut_short_is_no_page() -> None:
    """Fewer bytes than announced are an error, not a page."""

    def answer(connection: socket.socket, request: bytes) -> None:
        del request
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")

    with (
        listening(answer) as address,
        Page(f"http://{address}/") as one,
        pytest.raises(SourceError, match=f"http://{address}/: "),
    ):
        one.read()


@pytest.mark.parametrize("url", ["ftp://x/", "status", "", "http:///x", "http://unix:relative:/"])
def test_other_urls_are_refused(url: str) -> None:
    """A page has an http or https URL with a host, or a socket's absolute path."""
    with pytest.raises((ConfigError, SourceError)), Page(url) as one:
        one.read()
