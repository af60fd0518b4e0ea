"""The waiting room in a real nginx: order, bounds, and how requests leave it."""

import asyncio
import functools
import socket
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from hooked import Load, hooked, load, until
from http2_raw import Http2
from nginx.policy_server import policy_server
from peers import Peer, peers
from ports import free_ports
from waiting_room import HELD, Client, finished, full, known, refused, waiting


def test_the_urgent_class_goes_first_and_each_in_order(tmp_path: Path) -> None:
    """Requests of a class with a near deadline overtake those of one with a far deadline, none its
    own class; and no server ever has more than its slots."""
    names = ("slow", "quick")
    deadline = {"slow": 10.0, "quick": 0.2}
    with full(tmp_path, names=names, deadline=deadline) as (nginx, group):
        clients = {}
        for kind, number in (("slow", 1), ("slow", 2), ("quick", 1), ("quick", 2)):
            clients[f"{kind} {number}"] = Client(nginx.port, f"/{kind}", 0.03)
            until(lambda: waiting(nginx) == len(clients))
        assert nginx.in_flight() == 1
        address = nginx.snapshot()["addresses"][0]
        service = nginx.snapshot()["upstreams"][0]["service_time_seconds"]
        assert address["work_seconds"] == pytest.approx(service, rel=0.5)
        assert group[0].in_flight == 1
        assert finished(clients) == ["quick 1", "quick 2", "slow 1", "slow 2"]
        levels = nginx.snapshot()["addresses"][0]["seconds_at"]
        assert sum(levels[1:]) == 0


def test_a_request_waits_for_the_fast_server_but_not_for_long(tmp_path: Path) -> None:
    """With the fast server busy for as long as a slow one takes, a request takes the free slow one
    after a service time of its class, and does not wait for ever."""
    with (
        peers(Peer(slots=1, speed=10), Peer(slots=1, speed=1)) as group,
        hooked(tmp_path, {"a": known(group)}, hold=HELD, deadline=0.5) as nginx,
    ):
        # Services of over 20 ms on the fast one too, which then has no more than its slots.
        asyncio.run(load(nginx.port, ["/a"], concurrency=2, count=60, headers="X-Work: 0.3\r\n"))
        until(nginx.is_at_rest)
        rates = [a["rate"] for a in nginx.snapshot()["addresses"]]
        assert rates[0] > 2 * rates[1]
        long = Client(nginx.port, "/a", 20.0)
        until(lambda: group[0].in_flight + group[1].in_flight == 1)
        fast, slow = (group if group[0].in_flight else group[::-1])[:2]
        clients = [Client(nginx.port, "/a", 0.05) for _ in range(2)]
        assert [c.wait().getheader("X-Trimtab-Peer") for c in clients] == [slow.address] * 2
        assert fast.in_flight == 1
        long.leave()
        until(nginx.is_at_rest)


def test_beyond_the_bound_requests_are_refused(tmp_path: Path) -> None:
    """The request after max_waiting gets 503 with Retry-After at once, those before are served."""
    hold = {**HELD, "max_waiting": 3}
    with full(tmp_path, hold=hold) as (nginx, _):
        clients = [Client(nginx.port, "/a", 0.01) for _ in range(3)]
        until(lambda: waiting(nginx) == 3)
        answer = Client(nginx.port, "/a").wait()
        assert answer.status == 503
        assert int(answer.getheader("Retry-After", "0")) >= 1
        assert [c.wait().status for c in clients] == [200] * 3
        until(nginx.is_at_rest)
        assert refused(nginx) == 1


def test_nobody_waits_longer_than_the_bound(tmp_path: Path) -> None:
    """With no slot in sight a request is refused after max_wait_seconds."""
    with full(tmp_path, work=2.0, hold={**HELD, "max_wait_seconds": 0.2}) as (nginx, _):
        start = time.monotonic()
        answer = Client(nginx.port, "/a").wait()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
        assert 0.2 <= time.monotonic() - start < 2
        assert waiting(nginx) == 0


def test_one_stall_is_not_taken_for_the_pace(tmp_path: Path) -> None:
    """Forty clients at a server of milliseconds, and one request of a second: those that come
    after it with dozens waiting are not refused, as it will soon be their turn."""
    with (
        peers(Peer(slots=1)) as group,
        hooked(tmp_path, {"a": known(group)}, hold={**HELD, "max_wait_seconds": 3}) as nginx,
    ):

        async def both() -> Load:
            crowd = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=40, seconds=3, headers="X-Work: 0.002\r\n")
            )
            await asyncio.sleep(1)
            long = Client(nginx.port, "/a", 1.5)
            got = await crowd
            assert long.wait().status == 200
            return got

        got = asyncio.run(both())
        assert got.statuses.keys() == {200}
        assert refused(nginx) == 0
        until(nginx.is_at_rest)


def test_clients_that_go_away_leave_the_room(tmp_path: Path) -> None:
    """Requests whose clients hang up while they wait never reach a server."""
    with full(tmp_path) as (nginx, group):
        clients = [Client(nginx.port, "/a") for _ in range(20)]
        until(lambda: waiting(nginx) == 20)
        seen = group[0].seen
        for client in clients[::2]:
            client.leave()
        until(lambda: waiting(nginx) == 10)
        assert [c.wait().status for c in clients[1::2]] == [200] * 10
        assert group[0].seen == seen + 10


def test_a_waiting_upload_holds_no_slot(tmp_path: Path) -> None:
    """A request whose body is still coming neither waits nor is in flight."""
    with (
        full(tmp_path) as (nginx, _),
        socket.create_connection(("127.0.0.1", nginx.port)) as slow,
    ):
        slow.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        client = Client(nginx.port, "/a", body=b"y" * 100)
        assert client.wait().status == 200
        until(lambda: nginx.in_flight() == 0)
        assert waiting(nginx) == 0
        slow.sendall(b"x" * 500)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")


def test_http_2_streams_wait_singly(tmp_path: Path) -> None:
    """Streams of one connection wait, and are served one by one in their order; those that the
    client takes back leave the room."""
    (port,) = free_ports(1)
    with (
        full(tmp_path, work=1.0, server=f"listen 127.0.0.1:{port} http2;") as (nginx, group),
        Http2(port) as client,
    ):
        streams = [client.ask("/a", 0.03) for _ in range(8)]
        until(lambda: waiting(nginx) == 8)
        seen = group[0].seen
        for stream in streams[::2]:
            client.reset(stream)
        until(lambda: waiting(nginx) == 4)
        assert client.answers(4) == streams[1::2]
        assert group[0].seen == seen + 4


def test_a_failed_try_is_retried_at_once(tmp_path: Path) -> None:
    """A bound request whose server fails goes to another one without waiting again."""
    with (
        peers(Peer(slots=1, fault="close"), Peer(slots=1)) as group,
        hooked(tmp_path, {"a": known(group)}, hold={"hold": "on"}) as nginx,
    ):
        got = asyncio.run(load(nginx.port, ["/a"], concurrency=6, count=60))
        assert got.statuses == {200: 60}
        assert set(got.peers) == {group[1].address}
        until(nginx.is_at_rest)


@pytest.mark.parametrize("hold", ["auto", "on", "off"])
def test_unknown_slots_hold_nobody(tmp_path: Path, hold: str) -> None:
    """Where no slots are known all is dispatched at once, in every mode."""
    with (
        peers(Peer(slots=1)) as group,
        hooked(tmp_path, {"a": [{"address": group[0].address}]}, hold={"hold": hold}) as nginx,
    ):
        clients = [Client(nginx.port, "/a", 0.1) for _ in range(5)]
        until(lambda: nginx.in_flight() == 5)
        assert waiting(nginx) == 0
        assert not nginx.snapshot()["upstreams"][0]["is_holding"]
        assert [c.wait().status for c in clients] == [200] * 5


def test_auto_steps_aside_for_unknown_slots(tmp_path: Path) -> None:
    """With the slots of one of two peers unknown, auto holds nobody, and "on" does."""
    with peers(Peer(), Peer()) as group:
        each = [{"address": group[0].address, "slots": 1}, {"address": group[1].address}]
        for hold in ("auto", "on"):
            with hooked(tmp_path / hold, {"a": each}, hold={"hold": hold}) as nginx:
                assert nginx.snapshot()["upstreams"][0]["is_holding"] == (hold == "on")


def test_auto_holds_as_soon_as_the_policy_server_says_all_slots(tmp_path: Path) -> None:
    """Nothing is configured: with slots for one of two peers auto holds nobody, with slots for both
    requests wait beyond them, and no longer when they are unknown again."""
    (port,) = free_ports(1)
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": [{"address": a} for a in group.addresses]},
            policy=f"127.0.0.1:{port}",
            hold=HELD,
        ) as nginx,
        policy_server(port) as server,
    ):

        def told(generation: int, *slots: float) -> None:
            known_slots = dict(zip(group.addresses, slots, strict=False))
            each = [
                {"address": a, "weight": 1.0, "affinity": 1.0, "rate": 1.0}
                | ({"slots": known_slots[a]} if a in known_slots else {})
                for a in group.addresses
            ]
            server.set(
                weights={
                    "epoch": 7, "generation": generation, "time_to_live": 60.0,
                    "refresh_interval": 0.1, "upstreams": [{"upstream": "a", "peers": each}],
                }
            )  # fmt: skip
            until(lambda: nginx.snapshot()["weights"]["generation"] == generation)

        def is_holding() -> bool:
            return bool(nginx.snapshot()["upstreams"][0]["is_holding"])

        told(1, 1.0)
        assert not is_holding()
        told(2, 1.0, 1.0)
        until(is_holding)
        # Two more at each where slots are an estimate, one second in eight.
        clients = [Client(nginx.port, "/a", 0.3) for _ in range(9)]
        until(lambda: waiting(nginx) >= 3)
        assert [c.wait().status for c in clients] == [200] * 9
        told(3)
        until(lambda: not is_holding())


def test_the_wait_counts_as_response_time(tmp_path: Path) -> None:
    """What a request waited is in its response time, and not in its time in flight."""
    with full(tmp_path) as (nginx, _):
        client = Client(nginx.port, "/a", 0.02)
        until(lambda: waiting(nginx) == 1)
        time.sleep(0.2)
        assert client.wait().status == 200
        until(nginx.is_at_rest)
        (pair,) = nginx.pairs("a").values()
        assert pair["response_time_seconds"] > pair["in_flight_seconds"] + 0.2


def test_no_class_starves_and_goodput_stays_in_overload(tmp_path: Path) -> None:
    """At three times what the server can do, with a class that the ATC index would never serve:
    the server is never idle, every request is served or refused within the bound, and both
    classes are served."""
    hold = {**HELD, "max_wait_seconds": 1.0}
    deadline = {"urgent": 0.02, "long": 0.5}
    with (
        peers(Peer(slots=4)) as group,
        hooked(
            tmp_path,
            {"urgent": known(group, 4), "long": known(group, 4)},
            hold=hold,
            deadline=deadline,
        ) as nginx,
    ):
        seconds = 4.0

        async def one(name: str, work: float, gap: float) -> Load:
            return await load(
                nginx.port, [f"/{name}"], concurrency=150, seconds=seconds, pause=gap,
                headers=f"X-Work: {work}\r\n",
            )  # fmt: skip

        async def both() -> list[Load]:
            return list(await asyncio.gather(one("urgent", 0.02, 0.3), one("long", 0.1, 1.0)))

        urgent, long = asyncio.run(both())
        assert set(urgent.statuses) | set(long.statuses) <= {200, 503}
        assert urgent.statuses[200] > 0
        assert long.statuses[200] > 0
        done = urgent.statuses[200] * 0.02 + long.statuses[200] * 0.1
        assert done > 0.8 * 4 * seconds
        assert max(urgent.times + long.times) < 2.5
        until(nginx.is_at_rest)


def test_goodput_is_the_capacity_at_half_as_much_again(tmp_path: Path) -> None:
    """At 1.5 times what the server can do, sent whether it answers or not: all slots are taken for
    95% of the time, what is answered waited no longer than the bound, the rest is refused."""
    hold = {**HELD, "max_wait_seconds": 0.5}
    slots, seconds = 4, 4.0
    offered = {"short": (0.02, 1.5 * 2 / 0.02), "long": (0.1, 1.5 * 2 / 0.1)}
    with (
        peers(Peer(slots=slots)) as group,
        hooked(
            tmp_path,
            {name: known(group, slots) for name in offered},
            hold=hold,
            deadline={"short": 0.1, "long": 0.5},
        ) as nginx,
    ):
        full_seconds = []

        async def send(name: str, work: float, rate: float, into: list[Load]) -> None:
            one = functools.partial(load, nginx.port, [f"/{name}"], concurrency=1, count=1)
            async with asyncio.TaskGroup() as group:
                start = time.monotonic()
                for n in range(int(rate * seconds)):
                    await asyncio.sleep(max(0.0, start + n / rate - time.monotonic()))
                    task = group.create_task(one(headers=f"X-Work: {work}\r\n"))
                    task.add_done_callback(lambda done: into.append(done.result()))

        async def measured() -> None:
            # A window in which the machine does something else is one of several.
            for after in (1.0, *[(seconds - 1.5) / 5] * 5):
                await asyncio.sleep(after)
                snapshot = await asyncio.to_thread(nginx.snapshot)
                levels = snapshot["addresses"][0]["seconds_at"]
                full_seconds.append((snapshot["clock_seconds"], sum(levels[slots - 1 :])))

        async def all_of_it() -> dict[str, list[Load]]:
            got: dict[str, list[Load]] = {name: [] for name in offered}
            sending = [send(name, *offered[name], got[name]) for name in offered]
            await asyncio.gather(measured(), *sending)
            return got

        got = asyncio.run(all_of_it())
        until(nginx.is_at_rest)
        shares = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(full_seconds)]
        assert median(shares) > 0.95
        for name, each in got.items():
            statuses = sum((g.statuses for g in each), Counter())
            assert set(statuses) <= {200, 503}, name
            assert statuses[200] > 0.3 * len(each), name
        assert refused(nginx) > 0
        waited = max(p["waited_seconds"] for u in nginx.snapshot()["upstreams"] for p in u["picks"])
        assert waited < hold["max_wait_seconds"] + 0.1
