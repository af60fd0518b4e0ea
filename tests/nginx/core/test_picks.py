"""Whom the hook picks, over classes, workers, slowdowns, dead peers and configurations."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hooked import Load, hooked, load, until
from peers import Peer, Peers, peers
from ports import free_ports
from trimtab.cli import main


def known(group: Peers, slots: int | None = 2, **more: Any) -> list[dict[str, Any]]:
    """The peers as trimtab.json has them."""
    return [{"address": a, "slots": slots, **more} for a in group.addresses]


def run(port: int, paths: Sequence[str], **options: Any) -> Load:
    """A closed loop, to its end."""
    return asyncio.run(load(port, paths, **options))


def share(got: Load, peer: Peer) -> float:
    """The part of the answers that came from this peer."""
    return got.peers[peer.address] / got.peers.total()


def test_requests_of_one_class_are_seen_by_the_other(tmp_path: Path) -> None:
    """While a class fills two of three servers, the other class goes to the third."""
    with (
        peers(Peer(slots=2), Peer(slots=2), Peer(slots=2)) as group,
        hooked(tmp_path, {"a": known(group)[:2], "b": known(group)}) as nginx,
    ):

        async def both() -> Load:
            long = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=8, count=8, headers="X-Work: 0.3\r\n")
            )
            while nginx.in_flight() < 8:
                await asyncio.sleep(0.01)
            short = await load(nginx.port, ["/b"], concurrency=1, count=20)
            await long
            return short

        got = asyncio.run(both())
        assert share(got, group[2]) == 1
        until(nginx.is_at_rest)


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_peers_share_equally(tmp_path: Path, workers: int) -> None:
    """Two classes in a closed loop below the slots: no peer is ever given more than it has room
    for by more than the other workers' picks of the same instant."""
    with (
        peers(Peer(slots=4), Peer(slots=4), Peer(slots=4)) as group,
        hooked(tmp_path, {"a": known(group, 4), "b": known(group, 4)}, workers=workers) as nginx,
    ):
        got = run(nginx.port, ["/a", "/b"], concurrency=12, count=600, headers="X-Work: 0.01\r\n")
        assert got.statuses == {200: 600}
        for peer in group:
            assert share(got, peer) == pytest.approx(1 / 3, abs=0.1)
        until(nginx.is_at_rest)
        levels = [sum(a["seconds_at"][5:]) for a in nginx.snapshot()["addresses"]]
        busy = sum(a["busy_seconds"] for a in nginx.snapshot()["addresses"])
        assert sum(levels) < 0.1 * busy


def test_all_workers_count_together(tmp_path: Path) -> None:
    """Requests that other workers hold are in the sum that every worker sees."""
    with (
        peers(Peer(slots=64)) as group,
        hooked(tmp_path, {"a": known(group, 64)}, workers=4) as nginx,
    ):
        assert len(nginx.workers()) == 4

        async def held() -> float:
            long = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=24, count=24, headers="X-Work: 0.3\r\n")
            )
            most = 0.0
            while not long.done():
                most = max(most, nginx.in_flight())
                await asyncio.sleep(0.01)
            return most

        assert asyncio.run(held()) == 24
        until(nginx.is_at_rest)


@pytest.mark.parametrize("slots", [2, None])
def test_shares_follow_the_speed_and_a_slowdown(tmp_path: Path, slots: int | None) -> None:
    """Speeds 1, 2 and 4 are found without being told; slowed four times the fastest loses its
    share within seconds, and has it back after, with slots known and unknown."""
    with (
        peers(Peer(slots=2), Peer(slots=2, speed=2), Peer(slots=2, speed=4)) as group,
        hooked(tmp_path, {"a": known(group, slots), "b": known(group, slots)}) as nginx,
    ):

        def shares(seconds: float) -> list[float]:
            got = run(
                nginx.port,
                ["/a", "/b"],
                concurrency=8,
                seconds=seconds,
                headers="X-Work: 0.02\r\n",
            )
            assert set(got.statuses) == {200}
            return [share(got, p) for p in group]

        shares(0.7)
        before = shares(0.8)
        group[2].speed = 1
        shares(1)
        slowed = shares(0.8)
        group[2].speed = 4
        shares(1)
        after = shares(0.8)

        assert before[0] < before[1] < before[2]
        assert before[2] > 0.42
        assert slowed[2] < 0.36
        assert after[2] > 0.42


def test_static_weights_serve_without_a_policy_server(tmp_path: Path) -> None:
    """Weights 1 and 3 on equal peers of unknown slots: the heavier one holds more, from the
    first request on, and one line in the log says that the policy server is away."""
    with peers(Peer(), Peer()) as group:
        each = [{"address": group[0].address}, {"address": group[1].address, "weight": 3}]
        with hooked(tmp_path, {"a": each}) as nginx:
            got = run(nginx.port, ["/a"], concurrency=12, count=600, headers="X-Work: 0.01\r\n")
            assert got.statuses == {200: 600}
            assert share(got, group[1]) > 0.6
            weights = nginx.snapshot()["weights"]
            assert (weights["source"], weights["policy_server"]) == ("static", "failing")
            assert nginx.log.count("trimtab: failed to get weights") == 1
            assert "the static weights are in force" in nginx.log


def test_a_dead_peer_beside_a_living_one_costs_no_request(tmp_path: Path) -> None:
    """Refused tries go on to the peer that lives, and errors keep most from trying again."""
    with peers(Peer()) as group:
        dead = {"address": f"127.0.0.1:{free_ports(1)[0]}", "weight": 4}
        with hooked(tmp_path, {"a": [dead, *known(group)]}) as nginx:
            assert run(nginx.port, ["/a"], concurrency=2, count=100).statuses == {200: 100}
            until(nginx.is_at_rest)
            pairs = nginx.pairs("a")
            assert pairs[group[0].address]["requests"] == 100
            assert 1 <= pairs[dead["address"]]["failures"] < 30


def test_other_kinds_of_addresses(tmp_path: Path) -> None:
    """A peer on a unix socket and one on IPv6 loopback get requests as any other."""
    echo = """
    server { listen [::1]:%d; listen unix:%s/echo; location / { return 200 $server_port; } }
    """
    port = free_ports(1)[0]
    addresses = [f"[::1]:{port}", f"unix:{tmp_path}/echo"]
    with hooked(
        tmp_path,
        {"a": [{"address": addresses[0]}], "b": [{"address": addresses[1]}]},
        http=echo % (port, tmp_path),
    ) as nginx:
        assert nginx.get("/a") == (200, str(port))
        assert nginx.get("/b")[0] == 200
        until(nginx.is_at_rest)
        assert [nginx.total(u, "requests") for u in "ab"] == [1, 1]
        assert [u["unplaced"] for u in nginx.snapshot()["upstreams"]] == [0, 0]


def test_host_names_are_left_to_nginx(tmp_path: Path) -> None:
    """A peer given by name is served by nginx's own balancer, and the log says so."""
    with peers(Peer()) as group:
        each = [{"address": f"localhost:{group[0].port}"}]
        with hooked(tmp_path, {"a": each}) as nginx:
            assert nginx.get("/a")[0] == 200
            assert "has peers that are host names" in nginx.log
            until(lambda: nginx.snapshot()["upstreams"][0]["unplaced"] == 1)


@pytest.mark.parametrize("lua", [False, True])
def test_counting_only_leaves_the_pick_to_nginx(tmp_path: Path, lua: bool) -> None:
    """With "balance": false nginx picks in turn, and requests, times and failed tries count."""
    with (
        peers(Peer(), Peer(), Peer(fault="close")) as group,
        hooked(tmp_path, {"a": known(group)}, balance=False, lua=lua) as nginx,
    ):
        got = run(nginx.port, ["/a"], concurrency=3, count=90, headers="X-Work: 0.02\r\n")
        assert got.statuses == {200: 90}
        until(nginx.is_at_rest)
        pairs = nginx.pairs("a")
        assert nginx.total("a", "requests") == 90
        assert pairs[group[0].address]["requests"] == pytest.approx(45, abs=10)
        assert pairs[group[2].address]["failures"] >= 20
        assert pairs[group[2].address]["requests"] == 0
        assert 0.02 <= nginx.total("a", "response_time_seconds") / 90 < 1
        assert nginx.total("a", "in_flight_seconds") > 90 * 0.02
        assert nginx.snapshot()["upstreams"][0]["unplaced"] == 90


def test_counting_only_shows_the_class_in_flight(tmp_path: Path) -> None:
    """With "balance": false the gauge of the class counts from arrival to end."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, balance=False) as nginx,
    ):

        async def held() -> float:
            long = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=5, count=5, headers="X-Work: 0.3\r\n")
            )
            most = 0.0
            while not long.done():
                most = max(most, nginx.snapshot()["upstreams"][0]["in_flight"])
                await asyncio.sleep(0.01)
            return most

        assert asyncio.run(held()) == 5
        until(nginx.is_at_rest)


def test_the_last_picks_tell_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The status page has the peer, the wait, and each candidate's score and requests in flight of
    the last picks, the newest first and 16 at most; `trimtab explain --picks` draws them."""
    with (
        peers(Peer(slots=1), Peer(slots=1)) as group,
        hooked(tmp_path, {"a": known(group, 1)}, workers=2) as nginx,
    ):
        long = Load()

        async def one_after_the_other() -> None:
            nonlocal long
            task = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=1, count=1, headers="X-Work: 0.5\r\n")
            )
            await asyncio.sleep(0.25)
            await load(nginx.port, ["/a"], concurrency=1, count=1)
            long = await task

        asyncio.run(one_after_the_other())
        newest, first = nginx.snapshot()["upstreams"][0]["picks"]
        (busy,) = long.peers
        assert first["address"] == busy
        assert {c["in_flight"] for c in first["candidates"]} == {0}
        seen = {c["address"]: c for c in newest["candidates"]}
        assert seen[busy]["in_flight"] == 1
        assert newest["address"] != busy
        assert seen[busy]["score_seconds"] > seen[newest["address"]]["score_seconds"]
        assert newest["age_seconds"] < first["age_seconds"]

        run(nginx.port, ["/a"], concurrency=4, seconds=3, pause=0.05)
        assert 13 <= len(nginx.snapshot()["upstreams"][0]["picks"]) <= 16
        internal = f"127.0.0.1:{nginx.internal}"
        assert main(["explain", "a", "--picks", internal]) == 0
        said = capsys.readouterr().out
        assert said.count(group[0].address) >= 13
        assert main(["explain", "b", "--picks", internal]) == 2
