"""Counts over the life of workers: killed, reloaded, more, fewer, and of other configurations."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, Load, hooked, load, until
from peers import Peer, Peers, peers


def known(group: Peers) -> list[dict[str, Any]]:
    """The peers as trimtab.json has them."""
    return [{"address": a, "slots": 8} for a in group.addresses]


@contextmanager
def loaded(nginx: Hooked, **options: Any) -> Iterator[Load]:
    """A closed loop beside the block, ended with it; what it got is whole after the block."""
    into = Load()

    async def loop() -> None:
        into.statuses.clear()
        while not done.is_set():
            got = await load(nginx.port, ["/a", "/b"], count=64, **options)
            into.statuses.update(got.statuses)
            into.peers.update(got.peers)

    done = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(loop()))
    thread.start()
    try:
        yield into
    finally:
        done.set()
        thread.join(30)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_leaves_nothing_in_flight(tmp_path: Path, workers: int) -> None:
    """SIGKILL with long requests in flight: the counts are right again within a second, though
    the peers still work, and what had been counted stays counted."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}, workers=workers) as nginx,
    ):
        asyncio.run(load(nginx.port, ["/a"], concurrency=4, count=40))
        until(nginx.is_at_rest)
        before = nginx.snapshot()

        async def hold() -> None:
            await load(nginx.port, ["/a"], concurrency=16, count=16, headers="X-Work: 8\r\n")

        holding = threading.Thread(target=lambda: asyncio.run(hold()), daemon=True)
        holding.start()
        until(lambda: nginx.in_flight() == 16)
        for pid in nginx.workers():
            os.kill(pid, signal.SIGKILL)

        def is_right() -> bool:
            try:
                return nginx.in_flight() == 0 and len(nginx.workers()) == workers
            except OSError:
                return False

        print(f"\nin-flight counts right after {until(is_right, 5):.2f} s")
        after = nginx.snapshot()
        assert after["start"] == before["start"]
        assert after["sequence"] >= before["sequence"]
        counted = [sum(p["requests"] for p in s["upstreams"][0]["peers"]) for s in (before, after)]
        assert counted == [40, 40]
        holding.join(10)


def test_one_killed_worker_of_many_keeps_the_others_counts(tmp_path: Path) -> None:
    """When one of two workers is killed under load, the sum at rest is zero, not below."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}, workers=2) as nginx,
    ):
        with loaded(nginx, concurrency=16, headers="X-Work: 0.01\r\n") as got:
            until(lambda: nginx.total("a", "requests") > 100)
            victim = nginx.workers()[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in nginx.workers() and len(nginx.workers()) == 2)
        until(nginx.is_at_rest, 3)
        assert got.statuses[200] > 100
        assert set(got.statuses) <= {200, 0}


def test_reload_under_load_keeps_counts_and_requests(tmp_path: Path) -> None:
    """Reloads under load fail no request; new workers see what old ones hold; the counters go on,
    a removed peer gets nothing, and a new one is used."""
    with (
        peers(Peer(), Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group)[:2], "b": known(group)[:2]}, workers=2) as nginx,
    ):
        start = nginx.snapshot()["start"]
        # More than one peer has slots for, so that a new one is needed.
        with loaded(nginx, concurrency=24, headers="X-Work: 0.005\r\n") as got:
            for _ in range(5):
                nginx.reload()
            before = nginx.total("a", "requests")
            nginx.reload(upstreams={"a": known(group)[1:], "b": known(group)[1:]})
            # Old workers, which do not know the new peer, may answer for a moment.
            until(lambda: nginx.pairs("a").get(group[2].address, {}).get("requests", 0) > 20)
        assert set(got.statuses) == {200}
        until(nginx.is_at_rest, 15)
        after = nginx.snapshot()
        assert after["start"] == start
        assert after["configurations"] == 7
        assert nginx.total("a", "requests") > 0 < before
        until(lambda: len(nginx.workers()) == 2)
        seen = group[0].seen
        asyncio.run(load(nginx.port, ["/a", "/b"], concurrency=8, count=50))
        assert group[0].seen == seen


def test_new_workers_see_what_old_ones_hold(tmp_path: Path) -> None:
    """After a reload the requests that old workers still hold are in the sum, and leave it."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}) as nginx,
    ):

        async def hold() -> None:
            await load(nginx.port, ["/a"], concurrency=6, count=6, headers="X-Work: 1.5\r\n")

        holding = threading.Thread(target=lambda: asyncio.run(hold()))
        holding.start()
        until(lambda: nginx.in_flight() == 6)
        old = nginx.workers()
        nginx.reload()
        until(lambda: set(nginx.workers()) > set(old))
        assert nginx.in_flight() == 6
        holding.join(20)
        until(nginx.is_at_rest)
        until(lambda: not set(nginx.workers()) & set(old))
        assert nginx.total("a", "requests") == 6


def test_many_reloads_while_old_workers_drain(tmp_path: Path) -> None:
    """Six reloads with requests held all the while: rows are never shared, the sum stays right."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}) as nginx,
    ):

        async def hold() -> None:
            await load(nginx.port, ["/a"], concurrency=3, count=3, headers="X-Work: 4\r\n")

        holding = threading.Thread(target=lambda: asyncio.run(hold()))
        holding.start()
        until(lambda: nginx.in_flight() == 3)
        for _ in range(6):
            nginx.reload()
            assert nginx.get("/b")[0] == 200
            until(lambda: nginx.in_flight() == 3, 1)
        rows = [w["row"] for w in nginx.snapshot()["workers"]]
        assert len(rows) == len(set(rows))
        holding.join(20)
        until(nginx.is_at_rest)


def test_more_and_fewer_workers(tmp_path: Path) -> None:
    """A reload may change the number of workers, and all of them count."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}) as nginx,
    ):
        for workers in (4, 1, 3):
            nginx.reload(workers=workers)
            until(lambda count=workers: len(nginx.workers()) == count)
            before = nginx.total("a", "requests")
            asyncio.run(load(nginx.port, ["/a"], concurrency=8, count=40))
            until(nginx.is_at_rest)
            assert nginx.total("a", "requests") == before + 40


def test_a_configuration_beyond_the_room_is_refused(tmp_path: Path) -> None:
    """A reload with more workers than there are rows for is refused with the reason, and nginx
    goes on with the configuration that it has."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": known(group), "b": known(group)}) as nginx,
    ):
        nginx.used["workers"] = 64
        nginx.write(**nginx.used)
        nginx.process.send_signal(signal.SIGHUP)
        until(lambda: "have rows for 16 workers, the configuration has 64" in nginx.log)
        assert nginx.get("/a")[0] == 200
        assert nginx.snapshot()["configurations"] == 1
