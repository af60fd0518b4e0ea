"""A node over HTTP: a real server, a real database, requests byte for byte."""

import asyncio
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from http_raw import TIMEOUT, Answer, exchange, get, post, post_bytes, receive
from ports import free_port
from trimtab.demo import capacity, social
from trimtab.demo.social import Node, NodeSettings, check_slowness, loopback
from trimtab.errors import ConfigError, TrimtabError

COMPOSE = "/wrk2-api/post/compose"
HOME = "/wrk2-api/home-timeline/read"
USER = "/wrk2-api/user-timeline/read"
FOLLOW = "/wrk2-api/user/follow"
UNFOLLOW = "/wrk2-api/user/unfollow"
REGISTER = "/wrk2-api/user/register"

INSTANT = "X-Trimtab-Work: 0"


class Running:
    """A node in a thread of its own."""

    def __init__(self, settings: NodeSettings) -> None:
        self.address = settings.address
        self.database = settings.database
        self._loop = uvloop.new_event_loop()  # as `trimtab demo` does
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings,))
        self._thread.start()
        self._ready.wait()
        if self._error:
            self._thread.join()
            raise self._error

    def _run(self, settings: NodeSettings) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(settings))

    async def _serve(self, settings: NodeSettings) -> None:
        self._stop = asyncio.Event()
        try:
            async with Node(settings):
                self._ready.set()
                await self._stop.wait()
        except TrimtabError as error:
            self._error = error
            self._ready.set()

    def begin_stop(self) -> None:
        """Ask it to stop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Stop it and wait."""
        self.begin_stop()
        self._thread.join()

    def status(self) -> Any:
        """Its own account."""
        return json.loads(get(self.address, "/trimtab-demo/status").body)

    def until(self, condition: Callable[[Any], bool]) -> None:
        """Wait until its status fulfils a condition."""
        end = time.monotonic() + TIMEOUT
        while not condition(self.status()):
            assert time.monotonic() < end, f"this did not come about: {self.status()}"
            time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts nodes with a database of 20 users; stops them."""
    running: list[Running] = []

    def make(**options: Any) -> Running:
        settings = {
            "address": f"127.0.0.1:{free_port()}",
            "database": tmp_path / "social.db",
            "users": 20,
            **options,
        }
        running.append(Running(NodeSettings(**settings)))
        return running[-1]

    yield make
    for node in running:
        node.stop()


@pytest.fixture
def node(start: Callable[..., Running]) -> Running:
    """One node."""
    return start(slowness=0.01)


def posts(answer: Answer) -> Any:
    """The posts in an answer."""
    assert (answer.status, answer.headers["content-type"]) == (
        200,
        "application/json; charset=utf-8",
    )
    return json.loads(answer.body)


def lock(path: Path) -> sqlite3.Connection:
    """Hold the database's write lock: composes keep their slots until it is closed."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def plain(user_id: int, text: str) -> str:
    """A compose body without media."""
    return f"username=username_{user_id}&user_id={user_id}&text={text}&post_type=0"


def test_compose_and_read(node: Running) -> None:
    """A post written as wrk's script writes it comes back complete, newest first."""
    body = (
        "username=username_7&user_id=7&text=Qw3rty @username_3 @username_3 @nobody"
        ' http://AbC123 end&media_ids=["111111111111111111","2"]&media_types=["png","jpg"]'
        "&post_type=0"
    )

    answer = post(node.address, COMPOSE, body)

    assert (answer.status, answer.body) == (200, b"Successfully upload post\n")
    for timeline, user in ((USER, 7), (HOME, 3)):
        newest, *older = posts(get(node.address, f"{timeline}?user_id={user}&start=0&stop=100"))
        short = newest["urls"][0]["shortened_url"]
        assert short.startswith("http://short-url/")
        assert newest["creator"] == {"user_id": "7", "username": "username_7"}
        assert newest["text"] == f"Qw3rty @username_3 @username_3 @nobody {short} end"
        assert newest["user_mentions"] == [{"user_id": "3", "username": "username_3"}]
        assert newest["media"] == [
            {"media_id": "111111111111111111", "media_type": "png"},
            {"media_id": "2", "media_type": "jpg"},
        ]
        assert newest["urls"][0]["expanded_url"] == "http://AbC123"
        assert newest["post_type"] == 0
        assert all(newest[key].isdigit() for key in ("post_id", "req_id", "timestamp"))
        ids = [int(p["post_id"]) for p in (newest, *older)]
        assert ids == sorted(ids, reverse=True)


def test_register_follow_unfollow(node: Running) -> None:
    """A new user follows by name and by id, gets posts, and unfollows."""
    body = "first_name=A&last_name=B+C&username=new_user&password=s%20e&user_id=4711"
    home = f"{HOME}?user_id=4711&start=0&stop=10"

    for target, form in (
        (REGISTER, body),
        (FOLLOW, "user_name=new_user&followee_name=username_1"),
        (FOLLOW, "user_id=4711&followee_id=2"),
    ):
        answer = post(node.address, target, form)
        assert (answer.status, answer.body) == (200, b"Success!\n")
    post(node.address, COMPOSE, plain(1, "one"))
    post(node.address, COMPOSE, plain(2, "two"))
    assert post(node.address, UNFOLLOW, "user_id=4711&followee_id=1").body == b"Success!\n"
    answer = post(node.address, UNFOLLOW, "user_name=new_user&followee_name=username_2")
    assert (answer.status, answer.body) == (200, b"Success!\n")
    post(node.address, COMPOSE, plain(1, "three"))
    post(node.address, COMPOSE, plain(2, "four"))

    assert [p["text"] for p in posts(get(node.address, home))] == ["two", "one"]


def test_absolute_form(node: Running) -> None:
    """Request lines with a whole URL, as wrk's scripts send them, are served."""
    read = get(
        node.address,
        f"http://10.68.61.101:8080{HOME}?user_id=3&start=0&stop=10",
        "Content-Type: application/x-www-form-urlencoded",
    )
    written = post(node.address, f"http://localhost:8080{COMPOSE}", plain(7, "Abc @username_3"))

    assert len(posts(read)) == 10
    assert (written.status, written.body) == (200, b"Successfully upload post\n")


def test_any_text_survives(node: Running) -> None:
    """Escaped, unescaped and broken text: no form makes a request fail or the answer no JSON."""
    for text, expected in (
        ("a+b%26c%3Dd%2B", "a b&c=d+"),
        ("100% sure %zz", "100% sure %zz"),
        ("café \u2603 %F0%9F%98%80", "café \u2603 \U0001f600"),
        ('"quoted\\" {}[]<>|^`', '"quoted\\" {}[]<>|^`'),
        ("a=b?c#d;e", "a=b?c#d;e"),
        ("line%0D%0Aend%00%7F", "line\r\nend\x00\x7f"),
    ):
        assert post(node.address, COMPOSE, plain(7, text)).status == 200
        assert posts(get(node.address, f"{USER}?user_id=7&start=0&stop=1"))[0]["text"] == expected
    raw = plain(7, "x\udcff").encode("utf-8", "surrogateescape")
    assert post(node.address, COMPOSE, raw).status == 200
    assert posts(get(node.address, f"{USER}?user_id=7&start=0&stop=1"))[0]["text"] == "x\ufffd"


def test_content_type_does_not_matter(node: Running) -> None:
    """As behind nginx, a body is a form whatever its content type says."""
    body = plain(7, "typed").encode()
    raw = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (
        COMPOSE.encode(),
        len(body),
    )

    assert exchange(node.address, raw + body).body == b"Successfully upload post\n"


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (REGISTER, "first_name=a&last_name=b&username=c&password=d&user_id=100"),
        (FOLLOW, "user_id=1&followee_id=2"),
        (FOLLOW, "user_name=username_1&followee_name=username_2"),
        (UNFOLLOW, "user_id=1&followee_id=2"),
        (COMPOSE, "username=username_1&user_id=1&text=t&post_type=0"),
        (HOME, "user_id=1&start=0&stop=10"),
        (USER, "user_id=1&start=0&stop=10"),
    ],
)
def test_incomplete(node: Running, target: str, arguments: str) -> None:
    """Each argument is needed: absent or empty, the answer is 400 `Incomplete arguments`."""
    pairs = arguments.split("&")
    for i, pair in enumerate(pairs):
        for changed in ([], [pair.split("=")[0] + "="]):
            form = "&".join(pairs[:i] + changed + pairs[i + 1 :])
            if target in (HOME, USER):
                answer = get(node.address, f"{target}?{form}")
            else:
                answer = post(node.address, target, form)
            assert (answer.status, answer.body) == (400, b"Incomplete arguments\n")
            assert answer.headers["x-trimtab-peer"] == node.address
    complete = f"{target}?{arguments}", arguments
    answer = (
        get(node.address, complete[0])
        if target in (HOME, USER)
        else post(node.address, target, complete[1])
    )
    assert answer.status == 200


@pytest.mark.parametrize(
    ("target", "arguments", "reason"),
    [
        (HOME, "user_id=x&start=0&stop=10", "user_id must be a whole number"),
        (USER, "user_id=1&start=0.5&stop=10", "start must be a whole number"),
        (USER, "user_id=1&start=0&stop=99999999999", "stop must be a whole number"),
        (HOME, f"user_id={2**63}&start=0&stop=1", "user_id must be a whole number"),
        (COMPOSE, plain(1, "x" * 16_385), "text must have at most 16384 characters"),
        (COMPOSE, plain(1, " ".join(f"@u{i}" for i in range(65))), "at most 64 mentions"),
        (COMPOSE, plain(1, " ".join(f"http://u{i}" for i in range(65))), "at most 64 mentions"),
        (COMPOSE, plain(1, "t") + "&media_ids=[1&media_types=[]", "media_ids must be a JSON"),
        (COMPOSE, plain(1, "t") + '&media_ids=["1"]&media_types=[]', "the same length"),
        (COMPOSE, plain(1, "t") + '&media_ids=["a"]&media_types=["b"]', "each of media_ids"),
        (COMPOSE, plain(1, "t").replace("post_type=0", "post_type=4"), "from 0 to 3"),
        (FOLLOW, "user_id=1&followee_id=-2", "followee_id must be a whole number"),
        (
            REGISTER,
            f"first_name=a&last_name=b&username={'c' * 65}&password=d&user_id=1",
            "username must have at most 64 characters",
        ),
    ],
)
def test_bad_arguments(node: Running, target: str, arguments: str, reason: str) -> None:
    """Arguments that make no sense or go beyond a bound: 400 that names them."""
    if target in (HOME, USER):
        answer = get(node.address, f"{target}?{arguments}")
    else:
        answer = post(node.address, target, arguments)

    assert answer.status == 400
    assert answer.body.decode().startswith("Bad arguments: ")
    assert reason in answer.body.decode()


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (
            REGISTER,
            "first_name=a&last_name=b&username=username_1&password=d&user_id=100",
            "User registration failure: user username_1 is already registered\n",
        ),
        (
            FOLLOW,
            "user_name=username_1&followee_name=nobody",
            "Follow Failed: user nobody is not registered\n",
        ),
        (
            UNFOLLOW,
            "user_id=1&followee_id=999",
            "Unfollow Failed: user id 999 is not registered\n",
        ),
    ],
)
def test_failures(node: Running, target: str, arguments: str, message: str) -> None:
    """What the store refuses is 500 with the reason."""
    answer = post(node.address, target, arguments)

    assert (answer.status, answer.body.decode()) == (500, message)
    assert answer.headers["x-trimtab-peer"] == node.address


def test_ranges(node: Running) -> None:
    """`start` to `stop`, newest first; an empty or negative range is an empty timeline."""
    for i in range(5):
        post(node.address, COMPOSE, plain(1, f"p{i}"))

    def texts(start: int, stop: int) -> list[str]:
        answer = get(node.address, f"{USER}?user_id=1&start={start}&stop={stop}")
        return [p["text"] for p in posts(answer)]

    assert texts(0, 3) == ["p4", "p3", "p2"]
    assert texts(2, 4) == ["p2", "p1"]
    assert texts(3, 3) == texts(4, 2) == texts(-1, 5) == texts(0, -1) == []
    assert get(node.address, f"{HOME}?user_id=999999&start=0&stop=9").body == b"[]\n"


def test_other_requests(node: Running) -> None:
    """Health, unknown paths, wrong methods and oversized bodies have their statuses; all are
    signed."""
    for answer, status in (
        (get(node.address, "/healthz"), 200),
        (get(node.address, "/nothing"), 404),
        (get(node.address, COMPOSE), 405),
        (post(node.address, HOME, "user_id=1&start=0&stop=1"), 405),
        (post(node.address, COMPOSE, plain(1, "x" * 200_000)), 413),
    ):
        assert answer.status == status
        assert answer.headers["x-trimtab-peer"] == node.address


def test_rubbish_does_no_harm(node: Running) -> None:
    """What is no HTTP is refused or dropped, and the node goes on."""
    host, port = node.address.split(":")
    for raw in (b"\x16\x03\x01\x00\xff" * 20, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\0"):
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert get(node.address, "/healthz").body == b"ok\n"


def test_two_slots_serve_two_requests(start: Callable[..., Running]) -> None:
    """Of six requests two are served at once and four wait; all are answered in the end."""
    node = start(slots=2)
    held = lock(node.database)

    with ThreadPoolExecutor(6) as pool:
        answers = [
            pool.submit(post, node.address, COMPOSE, plain(1, f"p{i}"), INSTANT) for i in range(6)
        ]
        try:
            node.until(lambda status: (status["busy"], status["waiting"]) == (2, 4))
            assert get(node.address, "/healthz").status == 200  # takes no slot
        finally:
            held.close()
        assert [a.result().status for a in answers] == [200] * 6
    assert node.status()["served"] == {"compose": 6}


def test_too_many_wait(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound on waiting requests the answer is 503 with the reason."""
    monkeypatch.setattr(capacity, "MAX_WAITING", 1)
    node = start(slots=1)
    held = lock(node.database)

    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(post, node.address, COMPOSE, plain(1, "a"), INSTANT)
            node.until(lambda status: status["busy"] == 1)
            second = pool.submit(post, node.address, COMPOSE, plain(1, "b"), INSTANT)
            node.until(lambda status: status["waiting"] == 1)
            refused = post(node.address, COMPOSE, plain(1, "c"))
        finally:
            held.close()
        assert (first.result().status, second.result().status) == (200, 200)
    assert (refused.status, refused.body) == (
        503,
        b"compose_post failure: 1 requests are waiting already\n",
    )


def test_slow_upload_holds_no_slot(start: Callable[..., Running]) -> None:
    """While a body is still on its way, the only slot serves others."""
    node = start(slots=1, slowness=0.01)
    host, port = node.address.split(":")
    raw = post_bytes(COMPOSE, plain(1, "slow"))

    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
        connection.sendall(raw[:-3])
        other = get(node.address, f"{USER}?user_id=1&start=0&stop=1")
        connection.sendall(raw[-3:])
        assert receive(connection).body == b"Successfully upload post\n"
    assert other.status == 200


def test_work_on_request(node: Running) -> None:
    """A request may bring its own service time; nonsense is refused."""
    target = f"{USER}?user_id=1&start=0&stop=1"
    before = node.status()["occupied_seconds"]

    # Slowness 0.01 makes 200 ms of 20 s.
    assert get(node.address, target, "X-Trimtab-Work: 20").status == 200

    assert node.status()["occupied_seconds"] - before >= 0.2
    for value in ("-1", "61", "nan", "inf", "x", ""):
        answer = get(node.address, target, f"X-Trimtab-Work: {value}")
        assert (answer.status, answer.body.startswith(b"Bad arguments: X-Trimtab-Work")) == (
            400,
            True,
        )


def test_slowness_at_run_time(node: Running) -> None:
    """The knob changes the slowness from the next request on and refuses nonsense."""
    assert post(node.address, "/trimtab-demo/slowness", "factor=4").body == b"slowness 4\n"
    assert node.status()["slowness"] == 4

    for form in ("", "factor=", "factor=0", "factor=nan", "factor=inf", "factor=-1", "factor=x"):
        answer = post(node.address, "/trimtab-demo/slowness", form)
        assert answer.status == 400
        assert answer.body == b"factor must be a number from 0.01 to 1000\n"
    assert node.status()["slowness"] == 4


def test_knob_is_for_loopback() -> None:
    """Only loopback addresses count as near."""
    near = ("127.0.0.1", "127.8.8.8", "::1")
    far = ("10.0.0.1", "::ffff:10.0.0.1", "", None, "somewhere")

    assert [social._from_loopback(a) for a in near] == [True] * 3
    assert [social._from_loopback(a) for a in far] == [False] * 5


def test_locked_database(start: Callable[..., Running]) -> None:
    """A database that stays locked: writes are 500 with the reason, reads and the node go on."""
    node = start(slowness=0.01, busy_seconds=0.05)
    held = lock(node.database)
    try:
        refused = post(node.address, COMPOSE, plain(1, "refused"))
        read = get(node.address, f"{HOME}?user_id=1&start=0&stop=1")
    finally:
        held.close()

    assert (refused.status, refused.body) == (
        500,
        b"compose_post failure: the database failed: database is locked\n",
    )
    assert read.status == 200
    assert post(node.address, COMPOSE, plain(1, "after")).status == 200


def test_graceful_stop(start: Callable[..., Running]) -> None:
    """Stopping answers the requests in progress, those that wait for a slot too."""
    node = start(slots=1)
    held = lock(node.database)

    with ThreadPoolExecutor(2) as pool:
        try:
            answers = [
                pool.submit(post, node.address, COMPOSE, plain(1, f"p{i}"), INSTANT)
                for i in range(2)
            ]
            node.until(lambda status: (status["busy"], status["waiting"]) == (1, 1))
            node.begin_stop()
            _until_refused(node.address)
        finally:
            held.close()
        assert [a.result().status for a in answers] == [200, 200]
    node.stop()


def _until_refused(address: str) -> None:
    host, port = address.split(":")
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=TIMEOUT).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it stopped listening while this one was not accepted yet
        time.sleep(0.01)
    raise AssertionError(f"{address} still listens")


def test_two_nodes_share_the_store(start: Callable[..., Running]) -> None:
    """What one node writes, another one reads; both sign with their own address."""
    one, other = start(slowness=0.01), start(slowness=0.01)

    written = post(one.address, COMPOSE, plain(1, "shared"))
    read = get(other.address, f"{USER}?user_id=1&start=0&stop=1")

    assert posts(read)[0]["text"] == "shared"
    assert (written.headers["x-trimtab-peer"], read.headers["x-trimtab-peer"]) == (
        one.address,
        other.address,
    )


def test_port_in_use(node: Running, start: Callable[..., Running]) -> None:
    """A taken port is one message with what to do, and nothing stays behind."""
    threads = threading.active_count()

    with pytest.raises(TrimtabError, match=rf"{node.address} is in use: .*--node or --port"):
        start(address=node.address)

    assert threading.active_count() == threads


@pytest.mark.parametrize("address", ["127.0.0.1:80", "localhost:8080", "[::1]:9", "127.9.9.9:1"])
def test_loopback_addresses(address: str) -> None:
    """Loopback in all its spellings."""
    host, port = loopback(address)

    assert f":{port}" in address
    assert "[" not in host


@pytest.mark.parametrize(
    "address", ["0.0.0.0:80", "10.0.0.1:80", "example.org:80", "[::]:80", "19001", "unix:/x", ""]
)
def test_other_addresses(address: str) -> None:
    """A node listens on loopback only."""
    with pytest.raises(ConfigError, match="give a loopback address"):
        loopback(address)


def test_slowness_factors() -> None:
    """Factors are positive and bounded."""
    assert [check_slowness(t) for t in ("1", "0.01", "1e3")] == [1.0, 0.01, 1000.0]
    for text in ("0", "-1", "nan", "inf", "", "x", "1001"):
        with pytest.raises(ValueError, match="a number from"):
            check_slowness(text)
