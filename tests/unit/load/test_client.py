"""Sending over real sockets: clock, kinds of failure, connections."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import numpy as np
import pytest
import uvloop

from load_servers import Scripted, scripted
from trimtab.errors import ConfigError
from trimtab.load.client import Progress, run
from trimtab.load.drive import Drive
from trimtab.load.plan import plan, target
from trimtab.load.records import Ending
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, Schedule, build
from trimtab.load.workloads import Request, Work

# The machine may be busy: no test here judges lag, so none may fail for it.
ANY_LAG = 1e9


def once(path: str, *, method: str = "GET", body: bytes = b"", count: int = 1) -> Schedule:
    """`count` requests for `path`, 20 ms apart."""
    load = ClassLoad(
        name="x", rate_per_second=50, law="fixed", request=Request(path, method, (), body)
    )
    return build([load], seconds=count / 50, seed=1)


async def send(schedule: Schedule, url: str, timeout_seconds: float = 10.0) -> Result:
    """Run it from this loop."""
    return await run(schedule, url, timeout_seconds=timeout_seconds, max_lag_seconds=ANY_LAG)


def serve(test: Callable[[Scripted], Awaitable[None]], factory: object = None) -> None:
    """Run `test` beside a scripted server, in one loop."""

    async def body() -> None:
        async with scripted() as server:
            await test(server)

    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
        runner.run(body())


ENDINGS = {
    "/ok": (Ending.OK, 200),
    "/chunked": (Ending.OK, 200),
    "/eof": (Ending.OK, 200),
    "/continue": (Ending.OK, 200),
    "/close": (Ending.OK, 200),
    "/surplus": (Ending.OK, 200),
    "/status/204": (Ending.OK, 204),
    "/status/302": (Ending.STATUS, 302),
    "/status/404": (Ending.STATUS, 404),
    "/status/503": (Ending.STATUS, 503),
    "/reset": (Ending.RESET, 0),
    "/drop": (Ending.RESET, 0),
    "/short": (Ending.SHORT, 0),
    "/half-reset": (Ending.SHORT, 0),
    "/hang": (Ending.TIMEOUT, 0),
    "/trickle": (Ending.TIMEOUT, 0),
    "/garbage": (Ending.MALFORMED, 0),
    "/upgrade": (Ending.MALFORMED, 0),
}


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("path", ENDINGS)
def test_every_ending_is_told_apart(path: str, factory: object) -> None:
    """Whatever a server does with a request, each one is recorded, by its kind."""

    async def test(server: Scripted) -> None:
        result = await send(once(path, count=3), server.url, timeout_seconds=0.3)
        ending, status = ENDINGS[path]
        assert result.records.ending.tolist() == [ending] * 3
        assert result.records.status.tolist() == [status] * 3
        assert not np.isnan(result.records.end).any()
        assert len(server.heads) == 3

    serve(test, factory)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_refused_connections_are_counted(factory: object) -> None:
    """Requests to a port nobody listens on end as refused, at once, and are all there."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
            result = runner.run(send(once("/", count=4), url))
    assert result.summary().failures == {"refused": 4}


def test_an_unknown_host_is_refused() -> None:
    """A name that cannot be looked up is a ConfigError, before anything is sent."""
    with pytest.raises(ConfigError, match=r"cannot look up 'nowhere\.invalid'"):
        asyncio.run(send(once("/"), "http://nowhere.invalid:1/"))


def test_times_are_those_of_the_server() -> None:
    """Against a server of known delay: service time is the delay, within what the loops add."""

    async def test(server: Scripted) -> None:
        result = await send(once("/delay/0.05", count=10), server.url)
        service = result.records.service_seconds
        assert service.min() >= 0.05
        assert np.median(service) < 0.05 + 0.05
        first = result.records.first_byte - result.records.send
        assert (first >= 0.05).all()
        assert (result.records.end >= result.records.first_byte).all()

    serve(test)


def test_nothing_is_sent_early() -> None:
    """No request leaves before its time, and times intended are those of the schedule."""

    async def test(server: Scripted) -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=400)], seconds=0.5, seed=3)
        result = await send(schedule, server.url)
        assert np.array_equal(result.records.intended, schedule.times)
        assert (result.records.send_lag_seconds >= 0).all()

    serve(test)


def test_a_late_generator_does_not_rebase() -> None:
    """After a stall what was due is sent at once, and response times count from when it was due."""

    async def test(server: Scripted) -> None:
        schedule = build(
            [ClassLoad(name="x", rate_per_second=200, law="fixed")], seconds=1.0, seed=1
        )
        asyncio.get_running_loop().call_later(0.3, time.sleep, 0.25)
        result = await send(schedule, server.url)
        records = result.records
        assert len(records) == 200  # nothing skipped
        assert np.array_equal(records.intended, schedule.times)
        # Who was due early in the stall waited for most of it, and that is in the response time.
        lag = records.send_lag_seconds
        stalled = (records.intended > 0.31) & (records.intended < 0.5)
        assert stalled.sum() > 30
        assert (lag[stalled] >= 0.549 - records.intended[stalled]).all()
        assert (records.response_seconds[stalled] >= lag[stalled]).all()
        # A re-based clock would leave all that follows at least 0.25 s late.
        assert lag[records.intended > 0.6].min() < 0.2
        assert not Result.of(
            schedule, records, url="", started_at=0, processes=1, sent=np.ones(200, dtype=bool)
        ).valid

    serve(test)


def test_a_slow_server_does_not_slow_the_sends() -> None:
    """Open loop: with answers after 0.4 s all is sent in time, each on a connection of its own."""

    async def test(server: Scripted) -> None:
        load = ClassLoad(name="x", rate_per_second=500, law="fixed", request=Request("/delay/0.4"))
        result = await send(build([load], seconds=0.4, seed=1), server.url)
        assert result.summary().succeeded == 200
        assert result.records.send.max() < 0.8
        assert server.connections >= 190
        assert not result.records.reused[:150].any()

    serve(test)


def test_connections_are_kept_alive() -> None:
    """Requests that follow each other share a connection, unless the server closes it."""

    async def test(server: Scripted) -> None:
        kept = await send(once("/ok", count=10), server.url)
        assert server.connections <= 3
        assert kept.records.reused.sum() == 10 - server.connections
        server.connections = 0
        closed = await send(once("/close", count=5), server.url)
        assert server.connections == 5
        assert not closed.records.reused.any()
        assert closed.summary().succeeded == 5

    serve(test)


def test_a_connection_with_surplus_bytes_is_not_used_again() -> None:
    """An answer nobody asked for never becomes the answer to the next request."""

    async def test(server: Scripted) -> None:
        result = await send(once("/surplus", count=5), server.url)
        assert server.connections == 5
        assert set(result.records.status.tolist()) == {200}

    serve(test)


def test_the_request_is_sent_as_it_is() -> None:
    """Line, Host and body arrive byte for byte, and the work in its header."""

    async def test(server: Scripted) -> None:
        load = ClassLoad(
            name="x",
            rate_per_second=50,
            request=Request("/ok?a=b", "POST", (("X-A", "1"),), b"raw @ body"),
            work=Work("exp", 0.01),
        )
        schedule = build([load], seconds=0.2, seed=1)
        await send(schedule, server.url)
        host = server.url.removeprefix("http://").encode()
        assert len(server.heads) == len(schedule)
        work = []
        for head in server.heads:
            lines = head.split(b"\r\n")
            assert lines[:3] == [b"POST /ok?a=b HTTP/1.1", b"Host: " + host, b"X-A: 1"]
            assert lines[4].startswith(b"X-Trimtab-Work: ")
            work.append(float(lines[4].split(b": ")[1]))
        assert np.sort(work) == pytest.approx(np.sort(schedule.work_seconds), rel=1e-6)
        assert set(server.bodies) == {b"raw @ body"}

    serve(test)


def test_the_peer_is_who_the_server_says() -> None:
    """The header X-Trimtab-Peer names the peer of an answer; answers without it have none."""

    async def test(server: Scripted) -> None:
        named = await send(once("/ok", count=2), server.url)
        assert named.summary().peers == {"server-1": 2}
        unnamed = await send(once("/chunked", count=2), server.url)
        assert unnamed.summary().peers == {}
        assert unnamed.records.peer.tolist() == [-1, -1]

    serve(test)


def test_a_stop_cuts_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop nothing is sent; what has not ended within the grace is cut, not failed."""
    monkeypatch.setattr("trimtab.load.drive.GRACE_SECONDS", 0.1)

    async def test(server: Scripted) -> None:
        load = ClassLoad(name="x", rate_per_second=100, law="fixed", request=Request("/hang"))
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stop.set)
        result = await run(
            build([load], seconds=60, seed=1), server.url, stop=stop, max_lag_seconds=ANY_LAG
        )
        assert result.interrupted
        assert result.not_sent > 5000
        assert 10 < len(result.records) < 300
        assert result.summary().failures == {"cut": len(result.records)}
        assert result.summary().failed == 0
        assert result.summary().response.count == 0

    serve(test)


def test_progress_is_told() -> None:
    """The last progress of a run has everything sent and done."""

    async def test(server: Scripted) -> None:
        told: list[Progress] = []
        schedule = once("/ok", count=5)
        await run(schedule, server.url, on_progress=told.append)
        assert (told[-1].sent, told[-1].done, told[-1].total) == (5, 5, 5)
        assert told[-1].in_flight == told[-1].failed == 0

    serve(test)


def test_an_empty_schedule_ends_at_once() -> None:
    """Nothing to send is a run without records, which is not valid."""

    async def test(server: Scripted) -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=0)], seconds=60)
        result = await send(schedule, server.url)
        assert len(result.records) == 0
        assert not result.valid

    serve(test)


def test_a_cancelled_run_leaves_nothing_open() -> None:
    """Cancelling closes every connection, also those that are just being opened."""

    async def test(server: Scripted) -> None:
        load = ClassLoad(name="x", rate_per_second=300, request=Request("/hang"))
        schedule = build([load], seconds=60, seed=1)
        drive = Drive(plan(schedule, target(server.url)))
        task = asyncio.ensure_future(drive.run(target(server.url), start=time.monotonic()))
        while server.connections < 20:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            while server.writers:
                await asyncio.sleep(0.01)

    serve(test)
