"""The emulated servers over real sockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from trimtab.demo.emulator import Emulator, run
from trimtab.demo.scenario import parse
from trimtab.errors import ConfigError, TrimtabError

SCENARIO = """
duration_seconds = 1000
[load]
requests_per_second = 100
[[server]]
slots = 1
affinity = { slow = 3.0 }
[[server]]
slots = 1
speed = 4.0
[[class]]
name = "quick"
share = 0.5
service_seconds = 0.001
law = "fixed"
deadline_seconds = 0.01
response_bytes = 17
[[class]]
name = "slow"
share = 0.5
service_seconds = 0.01
deadline_seconds = 0.1
path = "/a/slow/one"
"""


def within(scenario: str, act: Callable[[Emulator, aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """What `act` returns, given a running emulator and a client."""

    async def go() -> Any:
        async with (
            Emulator(parse(scenario), port_base=0) as emulator,
            aiohttp.ClientSession() as client,
        ):
            return await asyncio.wait_for(act(emulator, client), 20)

    return asyncio.run(go())


async def fetch(
    client: aiohttp.ClientSession, address: str, path: str = "/quick", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; x_work = "0.1" sends X-Trimtab-Work."""
    named = {"X-Trimtab-" + k.removeprefix("x_").title(): v for k, v in headers.items()}
    async with client.get(f"http://{address}{path}", headers=named) as answer:
        return answer.status, dict(answer.headers), await answer.read()


async def control(client: aiohttp.ClientSession, emulator: Emulator, command: str, **body: Any):
    """A control command; status and answer."""
    url = f"http://{emulator.control_address}/trimtab-emulator/{command}"
    method = "GET" if command == "status" else "POST"
    async with client.request(method, url, json=body or None) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if answer.status == 200 else text


def test_work_speed_and_affinity_make_the_service_time() -> None:
    """Service is work × affinity / speed, by class header or path; the answer says who served."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> None:
        one, two = emulator.addresses
        status, headers, body = await fetch(client, one, x_work="0.004")
        assert (status, headers["X-Trimtab-Peer"], body) == (200, one, b"x" * 17)
        assert float(headers["X-Trimtab-Service"]) == pytest.approx(0.004, abs=2e-6)
        _, headers, _ = await fetch(client, one, "/a/slow/one?x=1", x_work="0.004")
        assert float(headers["X-Trimtab-Service"]) == pytest.approx(0.012, abs=2e-6)
        _, headers, _ = await fetch(client, two, "/other", x_work="0.004", x_class="slow")
        assert float(headers["X-Trimtab-Service"]) == pytest.approx(0.001, abs=2e-6)
        _, headers, _ = await fetch(client, two)
        assert float(headers["X-Trimtab-Service"]) == pytest.approx(0.00025, abs=2e-6)

    within(SCENARIO, act)


def test_one_slot_serves_in_turn() -> None:
    """Three requests at once on one slot: the queueing times are about 0, 1 and 2 services."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> list[float]:
        address = emulator.addresses[0]
        answers = await asyncio.gather(*(fetch(client, address, x_work="0.05") for _ in range(3)))
        return sorted(float(headers["X-Trimtab-Queued"]) for _, headers, _ in answers)

    queued = within(SCENARIO, act)
    assert queued[0] == pytest.approx(0.0, abs=1e-5)
    # They arrive some milliseconds apart, by so much less they queue.
    assert 0 < queued[1] <= 0.05
    assert 0.05 < queued[2] <= 0.1


def test_bad_requests_get_one_sentence() -> None:
    """Work that is no time is refused with 400, an unknown class with 404; nothing is queued."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> None:
        address = emulator.addresses[0]
        for work in ("nan", "-1", "inf", "1e9", "soon"):
            assert (await fetch(client, address, x_work=work))[0] == 400
        assert (await fetch(client, address, "/unknown"))[0] == 404
        assert (await fetch(client, address, x_class="unknown"))[0] == 404
        assert sum(s["served"] for s in emulator.status()["servers"]) == 0

    within(SCENARIO, act)


EVENTS = """
[[event]]
kind = "error"
server = 1
to_ratio = 0.5
[[event]]
kind = "slow"
server = 2
factor = 8
to_ratio = 0.5
"""


def test_events_follow_the_start_signal_and_reset_undoes_them() -> None:
    """In the first half server 1 answers 500 at once and server 2 is 8 times slower."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> None:
        one, two = emulator.addresses
        assert (await control(client, emulator, "start", seed=3))[0] == 200
        assert (await fetch(client, one, x_work="0.002"))[0] == 500
        _, headers, _ = await fetch(client, two, x_work="0.002")
        assert float(headers["X-Trimtab-Service"]) == pytest.approx(0.004, abs=2e-6)
        # A run that started 600 s ago is in its second half.
        status, state = await control(client, emulator, "status")
        assert status == 200
        before = asyncio.get_running_loop().time() - 600
        _, state = await control(client, emulator, "start", at=before)
        assert state["elapsed_seconds"] > 600
        assert (await fetch(client, one, x_work="0.002"))[0] == 200
        _, state = await control(client, emulator, "reset")
        assert state["elapsed_seconds"] is None
        assert [s["served"] for s in state["servers"]] == [0, 0]

    within(SCENARIO + EVENTS, act)


def test_crash_resets_and_refuses_then_the_server_returns() -> None:
    """A crash cuts a request in service; new connections are refused until the end of it."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> None:
        one = emulator.addresses[0]
        pending = asyncio.create_task(fetch(client, one, x_work="500"))
        while emulator.status()["servers"][0]["present"] == 0:
            await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        emulator.start(loop.time() - 500.0)  # in the crash, which begins at half
        with pytest.raises(aiohttp.ClientError):
            await pending
        with pytest.raises(aiohttp.ClientConnectorError):
            await fetch(client, one)
        assert emulator.status()["servers"][0]["lost"] == 1
        emulator.start(loop.time() - 999.0)  # after it
        while True:
            try:
                status, _, _ = await fetch(client, one, x_work="0")
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.001)
        assert status == 200

    crash = '[[event]]\nkind = "crash"\nserver = 1\nfrom_ratio = 0.5\nto_ratio = 0.99\n'
    within(SCENARIO + crash, act)


def test_bodies_pipelines_and_old_clients_are_understood() -> None:
    """A POST body in pieces, two requests in one segment, HTTP/1.0 and rubbish on raw sockets."""

    async def exchange(address: str, *pieces: bytes) -> bytes:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
        writer.close()
        return answer

    async def act(emulator: Emulator, _: aiohttp.ClientSession) -> None:
        one = emulator.addresses[0]
        head = b"POST /quick HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n"
        answer = await exchange(one, head + b"\r\n01234", b"56789", head + b"Connection: close",
                                b"\r\n\r\n0123456789")  # fmt: skip
        assert answer.count(b"200 OK") == 2
        assert answer.count(b"x" * 17) == 2
        get = b"GET http://h/quick HTTP/1.1\r\nHost: h\r\n"
        answer = await exchange(one, get + b"\r\n" + get + b"Connection: close\r\n\r\n")
        assert answer.count(b"200 OK") == 2
        answer = await exchange(one, b"GET /quick HTTP/1.0\r\n\r\n")
        assert b"200 OK" in answer
        assert b"Connection: close" in answer
        assert (await exchange(one, b"rubbish\r\n\r\n")).startswith(b"HTTP/1.1 400 ")

    within(SCENARIO, act)


def test_a_client_that_goes_away_is_served_all_the_same() -> None:
    """Its work occupies the slot to the end, as on most real servers, and counts as abandoned."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> float:
        one = emulator.addresses[0]
        leaving = asyncio.create_task(fetch(client, one, x_work="0.1"))
        while emulator.status()["servers"][0]["present"] == 0:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        _, headers, _ = await fetch(client, one, x_work="0.001")
        assert emulator.status()["servers"][0]["abandoned"] == 1
        return float(headers["X-Trimtab-Queued"])

    assert within(SCENARIO, act) > 0


@pytest.mark.parametrize(
    "body", [b"[]", b'{"seeds": 1}', b'{"seed": 1.5}', b'{"at": -1}', b"{", b'{"at": true}']
)
def test_bad_start_options_are_refused(body: bytes) -> None:
    """The control port answers 400 with the reason, and the run does not start."""

    async def act(emulator: Emulator, client: aiohttp.ClientSession) -> None:
        url = f"http://{emulator.control_address}/trimtab-emulator/start"
        async with client.post(url, data=body) as answer:
            assert answer.status == 400
        assert emulator.started_at is None

    within(SCENARIO, act)


def test_a_taken_port_is_one_sentence() -> None:
    """The message names server, address and remedy, and what was opened before is closed."""

    async def act(emulator: Emulator, _: aiohttp.ClientSession) -> None:
        taken = int(emulator.control_address.split(":")[1])
        with pytest.raises(TrimtabError, match=r"server 1 cannot listen.*--port"):
            async with Emulator(parse(SCENARIO), port_base=taken - 1):
                pass

    within(SCENARIO, act)


def test_a_missing_file_is_a_configuration_error(tmp_path) -> None:
    """`run` refuses before it opens a port."""
    with pytest.raises(ConfigError, match="no such scenario file"):
        run(tmp_path / "absent.toml")
