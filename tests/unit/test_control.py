"""The control routes: token, other web sites, bounds, and what an order must look like."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
import serving
from trimtab import admin, bearer, config, events
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.control import ACTIONS, MOST_BODY_BYTES
from trimtab.errors import ConfigError
from trimtab.events import digest
from trimtab.metrics import Metrics
from trimtab.sources.reported import Reported

RIGHT = {"Authorization": f"Bearer {operators.TOKEN}"}
DRAIN = {"peer": "10.0.0.1:80"}


class Parts:
    """An admin endpoint with control on a unix socket."""

    def __init__(self, directory: Path, token: str | None = operators.TOKEN) -> None:
        self.config = serving.configuration(admin_listen=f"unix:{directory / 'admin'}")
        self.orders = operators.Orders()
        self.metrics = Metrics(Reported(self.config), Board())
        self.status: Callable[[], dict[str, Any]] = lambda: {"generation": 3, "journal": []}
        self.admin = Admin(
            self.config,
            lambda: self.status(),
            lambda: None,
            self.metrics,
            self.orders,
            operators.control(self.config, self.metrics, self.orders, token),
        )

    def run(self, scenario: Callable[[aiohttp.ClientSession], Any]) -> None:
        """Start, run `scenario` with a client, stop."""

        async def whole() -> None:
            await self.admin.start()
            try:
                connector = aiohttp.UnixConnector(
                    self.config.policy.admin_listen.removeprefix("unix:")
                )
                timeout = aiohttp.ClientTimeout(serving.TIMEOUT)
                async with aiohttp.ClientSession(
                    "http://admin", connector=connector, timeout=timeout
                ) as client:
                    await scenario(client)
            finally:
                await self.admin.stop()

        asyncio.run(whole())

    def post(self, action: str, **request: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of one control call."""
        answers: list[tuple[int, dict[str, Any]]] = []

        async def scenario(client: aiohttp.ClientSession) -> None:
            async with client.post(f"/control/{action}", **request) as answer:
                assert answer.content_type == "application/json"
                assert answer.headers["Cache-Control"] == "no-store"
                assert "Access-Control-Allow-Origin" not in answer.headers
                answers.append((answer.status, await answer.json()))

        self.run(scenario)
        return answers[0]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A fresh endpoint, not started."""
    return Parts(tmp_path)


def test_an_order_with_the_token_is_carried_out(parts: Parts) -> None:
    """It reaches the operator with who and why, and the answer names the generation."""
    body = {"upstream": "u1", "peer": "10.0.0.2:80", "weight": 2, "who": "ada", "why": "warm"}
    status, answer = parts.post("pin", json=body, headers=RIGHT)
    assert (status, answer) == (
        200,
        {"done": "10.0.0.2:80 in u1 is pinned at W 2", "generation": 7},
    )
    assert parts.orders.given == [("pin", "u1", "10.0.0.2:80", 2, "ada", "warm")]
    assert b'trimtab_control_calls_total{action="pin",code="200"} 1.0' in parts.metrics.text()


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "a token is needed"),
        ({"Authorization": "Bearer wrong"}, 401, "the token is wrong"),
        ({"Authorization": f"Basic {operators.TOKEN}"}, 401, "the token is wrong"),
        ({"Authorization": f"Bearer {operators.TOKEN}x"}, 401, "the token is wrong"),
        ({"Authorization": "Bearer \u00e9"}, 401, "the token is wrong"),
        ({**RIGHT, "Origin": "http://evil.example"}, 403, "another web site"),
        ({**RIGHT, "Origin": "null"}, 403, "another web site"),
        ({**RIGHT, "Sec-Fetch-Site": "cross-site"}, 403, "another web site"),
        ({**RIGHT, "Sec-Fetch-Site": "same-site"}, 403, "another web site"),
        ({**RIGHT, "Content-Type": "text/plain"}, 415, "must be JSON"),
    ],
)
def test_who_may_not_order_changes_nothing(
    parts: Parts, headers: dict[str, str], status: int, message: str
) -> None:
    """Without the token, from another site, or as a form would send it: refused."""
    content = {"Content-Type": "application/json", **headers}
    answer = parts.post("drain", data=json.dumps(DRAIN), headers=content)
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert parts.orders.given == []


def test_own_page_may_order(parts: Parts) -> None:
    """The dashboard's own origin is no foreign one."""
    own = {**RIGHT, "Origin": "http://admin", "Sec-Fetch-Site": "same-origin"}
    assert parts.post("drain", json=DRAIN, headers=own)[0] == 200


def test_without_a_token_control_is_off(tmp_path: Path) -> None:
    """403 with the key to set, whatever the caller bears."""
    parts = Parts(tmp_path, token=None)
    status, answer = parts.post("drain", json=DRAIN, headers={"Authorization": "Bearer "})
    assert status == 403
    assert "set token_file (or token_variable) in [policy] of test.toml" in answer["error"]
    assert parts.orders.given == []


@pytest.mark.parametrize(
    ("action", "body", "status", "message"),
    [
        ("dran", DRAIN, 404, "did you mean 'drain'?"),
        ("drain", {}, 400, "drain needs peer, an address"),
        ("drain", {"peer": 3}, 400, "peer must be an address"),
        ("drain", {"peer": "10.0.0.9:80"}, 404, "did you mean '10.0.0.2:80'?"),
        ("drain", {**DRAIN, "force": 1}, 400, "unknown key 'force' for drain; allowed: peer, who"),
        ("drain", {**DRAIN, "who": "a\nb"}, 400, "who must be at most 64 printable"),
        ("drain", {**DRAIN, "why": "x" * 201}, 400, "why must be at most 200 printable"),
        ("drain", [1], 400, "must be a JSON object"),
        ("pin", {"upstream": "u9", "peer": "x", "weight": 1}, 404, "no upstream is called 'u9'"),
        ("pin", {"upstream": "u0", "peer": "x", "weight": 1}, 404, "no peer of u0 is called 'x'"),
        (
            "pin",
            {"upstream": "u0", "peer": "10.0.0.1:80", "weight": "2"},
            400,
            "weight must be a number",
        ),
        (
            "pin",
            {"upstream": "u0", "peer": "10.0.0.1:80", "weight": 9},
            400,
            "it must be from 1/3 to 3",
        ),
        ("shadow", {"on": 1}, 400, "on must be true or false"),
    ],
)
def test_a_wrong_order_says_what_is_right(
    parts: Parts, action: str, body: Any, status: int, message: str
) -> None:
    """Every wrong body is refused in words, and changes nothing."""
    answer = parts.post(action, json=body, headers=RIGHT)
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert parts.orders.given == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 4000, 400),
        (b'{"peer": "\xff"}', 400),
        (b" " * (MOST_BODY_BYTES + 1), 413),
        (b'{"weight": NaN}', 400),
    ],
)
def test_a_body_that_is_no_json_or_too_long(parts: Parts, body: bytes, status: int) -> None:
    """Refused before anything is looked at."""
    headers = {**RIGHT, "Content-Type": "application/json"}
    assert parts.post("drain", data=body, headers=headers)[0] == status


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "upstream": st.sampled_from(["u0", "u9"]) | JSON,
        "peer": st.sampled_from(["10.0.0.1:80", "x"]) | JSON,
        **dict.fromkeys(("weight", "on", "who", "why"), JSON),
    },
)


def test_no_body_makes_a_fault(parts: Parts) -> None:
    """Whatever JSON comes, the answer is an order carried out or a refusal in words."""
    bodies: list[Any] = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.tuples(st.sampled_from(ACTIONS), FIELDS | JSON))
    def collect(body: Any) -> None:
        bodies.append(body)

    collect()

    content = {**RIGHT, "Content-Type": "application/json"}

    async def scenario(client: aiohttp.ClientSession) -> None:
        for action, body in bodies:
            data = json.dumps(body)
            async with client.post(f"/control/{action}", data=data, headers=content) as answer:
                assert answer.status in (200, 400, 404), (action, body)
                assert set(await answer.json()) in ({"error"}, {"done", "generation"})

    parts.run(scenario)
    for given_order in parts.orders.given:
        assert given_order[-1].isprintable()


def test_nan_is_no_weight(parts: Parts) -> None:
    """A number that JSON allows in Python only is refused too."""
    body = b'{"upstream": "u0", "peer": "10.0.0.1:80", "weight": NaN}'
    headers = {**RIGHT, "Content-Type": "application/json"}
    status, answer = parts.post("pin", data=body, headers=headers)
    assert (status, answer["error"]) == (400, "weight must be a number from 1/3 to 3")


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        (
            "/explain.json?upstream=u0&peer=10.0.0.1:80&balancer=b",
            200,
            {"upstream": "u0", "peer": "10.0.0.1:80", "instance": "b"},
        ),
        ("/explain.json?upstream=absent", 404, {"error": "no upstream is called 'absent'"}),
        ("/history.json", 200, {"point_seconds": 2.0, "points": []}),
    ],
)
def test_what_is_asked_needs_no_token(parts: Parts, path: str, status: int, answer: Any) -> None:
    """Explanations and history are read-only."""

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get(path) as got:
            assert (got.status, await got.json()) == (status, answer)

    parts.run(scenario)


# Events


async def next_event(answer: aiohttp.ClientResponse) -> tuple[str, Any]:
    """The next event of a stream."""
    kind = ""
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            kind = text.removeprefix("event: ")
        elif text.startswith("data: "):
            return kind, json.loads(text.removeprefix("data: "))
    raise AssertionError("the stream ended")


def test_listeners_get_the_newest_status_and_a_changed_journal(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status each time, the journal only when it changed; a second listener at once too."""
    monkeypatch.setattr(events, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(events, "IDLE_FACTOR", 0.0)
    calls = [0]

    def status() -> dict[str, Any]:
        calls[0] += 1
        return {"generation": calls[0], "journal": [{"reason": f"r{calls[0] // 1000}"}]}

    parts.status = status

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get("/events") as one, client.get("/events") as two:
            kinds = [(await next_event(one))[0] for _ in range(5)]
            assert kinds == ["status", "journal", "status", "status", "status"]
            kind, first = await next_event(two)
            assert (kind, first["control"]) == ("status", True)
        seen = calls[0]
        for _ in range(3):
            async with client.get("/healthz"):
                pass
        assert calls[0] <= seen + 1  # nobody listens: nothing is made

    parts.run(scenario)


def test_listeners_are_bounded_and_let_go_at_the_end(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dashboard too many is told so; stopping the server ends the others' streams."""
    monkeypatch.setattr(events, "MOST_LISTENERS", 1)
    ended: list[bytes] = []

    async def scenario(client: aiohttp.ClientSession) -> None:
        one = await client.get("/events")
        await next_event(one)
        async with client.get("/events") as two:
            assert (two.status, two.headers["Retry-After"]) == (503, "10")
        await parts.admin.stop()
        ended.append(await one.content.read())
        one.close()

    parts.run(scenario)
    assert ended


def test_a_listener_that_takes_nothing_is_let_go(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that hangs fills its connection and is dropped; others go on."""
    monkeypatch.setattr(events, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(events, "IDLE_FACTOR", 0.0)
    monkeypatch.setattr(events, "SEND_SECONDS", 0.2)
    parts.status = lambda: {"reason": "x" * 1_000_000, "journal": []}

    async def scenario(client: aiohttp.ClientSession) -> None:
        path = parts.config.policy.admin_listen.removeprefix("unix:")
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: admin\r\n\r\n")
        await reader.readline()
        feeding = parts.admin._events
        async with asyncio.timeout(serving.TIMEOUT):
            while feeding.listeners:
                await asyncio.sleep(0.01)
            # What had been sent is there, then the connection's end.
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 20):
                    pass
        writer.close()
        async with client.get("/events") as answer:
            assert (await answer.content.readline()).startswith(b"retry: ")

    parts.run(scenario)


def test_a_stuck_status_still_beats(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no status to send, the stream says at least that it lives."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(admin, "ANSWER_SECONDS", 0.01)

    def fault() -> dict[str, Any]:
        raise RuntimeError("no status today")

    parts.status = fault

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get("/events") as answer:
            lines = [(await answer.content.readline()).decode() for _ in range(4)]
        assert lines[0].startswith("retry: ")
        assert ": heartbeat\n" in lines

    parts.run(scenario)


def test_digest_marks_pins_drains_and_withheld_weights() -> None:
    """A pair's figures come from control, window and guard."""
    peer = {"weight": 1.0, "affinity": 0.5, "rate": 2.0, "slots": None, "drain": True}
    told = digest(
        {
            "generation": 4,
            "guard": {"shadow": True, "pins": [["u", "a:1", 1.5]], "withheld": {"u": {"a:1": 2.0}}},
            "upstreams": {"u": {"deadline_seconds": 0.1, "peers": {"a:1": peer}}},
            "window": {"u": {"shares": {"a:1": 0.25}, "peers": {"a:1": {"in_flight": 2.0}}}},
            "instances": [{"name": str(n)} for n in range(60)],
            "clusters": ["large"],
        }
    )
    pair = told["upstreams"]["u"]["peers"]["a:1"]
    assert (pair["d"], pair["p"], pair["h"], pair["s"], pair["n"]) == (True, True, 2.0, 0.25, 2.0)
    assert (len(told["instances"]), told["instance_count"]) == (50, 60)
    assert "clusters" not in told


# The token


def policy(text: str) -> config.Policy:
    """A [policy] with these lines."""
    peer = '[[upstream]]\nname="u"\nlocation="/"\n[[upstream.peer]]\naddress="a:1"'
    return config.parse(f"[policy]\n{text}\n{peer}").policy


def test_token_is_read_from_a_file_or_a_variable(tmp_path: Path) -> None:
    """Either, without the line's end; neither is none."""
    path = tmp_path / "token"
    path.write_text(operators.TOKEN + "\n")
    assert bearer.token(policy(f'token_file = "{path}"')) == operators.TOKEN
    given = {"MY_TOKEN": operators.TOKEN}
    assert bearer.token(policy('token_variable = "MY_TOKEN"'), given) == operators.TOKEN
    assert bearer.token(policy("")) is None


@pytest.mark.parametrize("content", [b"", b"short", b"two words of it here", b"\xff" * 30])
def test_what_is_no_token_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    """Empty, short, or anything else: the message says how to make one, not what was there."""
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="16 to 512 printable ASCII") as raised:
        bearer.token(policy(f'token_file = "{path}"'))
    assert not content or content.decode("ascii", "replace") not in str(raised.value)


def test_absent_token_file_is_a_wrong_configuration(tmp_path: Path) -> None:
    """The message has the command that makes one, and it makes one that is right."""
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="make one: ") as raised:
        bearer.token(policy(f'token_file = "{path}"'))
    command = str(raised.value).partition("make one: ")[2]
    assert os.system(command) == 0  # noqa: S605
    assert bearer.token(policy(f'token_file = "{path}"'))
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_places_for_the_token_are_one_too_many() -> None:
    """The configuration names one."""
    with pytest.raises(ConfigError, match="both set"):
        policy('token_file = "a"\ntoken_variable = "B"')
