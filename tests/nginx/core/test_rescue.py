"""Requests that a silent server has caught are tried on another one, in a real nginx."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, Load, hooked, load, until
from peers import Peer, Peers, peers

HEALTH = {
    "eject_stall_seconds": 0.1,
    "eject_seconds": 0.2,
    "eject_max_seconds": 0.4,
    "tries": 3,
    "timeout_seconds": 60,
    "retry_non_idempotent": False,
}


def known(group: Peers, slots: int = 2) -> list[dict[str, Any]]:
    """The peers as trimtab.json has them."""
    return [{"address": a, "slots": slots} for a in group.addresses]


def run(nginx: Hooked, *, seconds: float = 0.0, count: int = 0, headers: str = "") -> Load:
    """A closed loop of services of 10 ms, of more clients than two servers have slots."""
    headers = headers or "X-Work: 0.01\r\n"
    return asyncio.run(
        load(nginx.port, ["/a"], concurrency=5, seconds=seconds, count=count, headers=headers)
    )


def post(nginx: Hooked) -> threading.Thread:
    """A POST that is under way."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            nginx.get("/a", method="POST")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def get(nginx: Hooked, headers: str, count: int = 1) -> None:
    """GETs that are under way, all at once."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            asyncio.run(load(nginx.port, ["/a"], concurrency=count, count=count, headers=headers))

    threading.Thread(target=ask, daemon=True).start()


def retries(nginx: Hooked) -> int:
    """Tries that were not the first of their request."""
    return sum(int(u["retries"]) for u in nginx.snapshot()["upstreams"])


def ejections(nginx: Hooked, peer: Peer) -> int:
    """How often the server was ejected."""
    (found,) = (a for a in nginx.snapshot()["addresses"] if a["address"] == peer.address)
    return int(found["ejections"])


@pytest.mark.parametrize(("hold", "workers"), [("off", 2), ("on", 1), ("on", 2)])
def test_what_a_hanging_server_has_caught_is_answered_by_others(
    tmp_path: Path, hold: str, workers: int
) -> None:
    """A server that never answers again keeps no client waiting, those that try it included; when
    it answers it is back."""
    with (
        peers(Peer(slots=2), Peer(slots=2), Peer(slots=2)) as group,
        hooked(
            tmp_path, {"a": known(group)}, workers=workers, hold={"hold": hold}, health=HEALTH
        ) as nginx,
    ):
        run(nginx, count=400)
        assert retries(nginx) == 0
        silent = group[1]
        silent.fault = "hang"
        # Until it has been tried again in vain.
        until(lambda: run(nginx, seconds=0.3).statuses.keys() == {200} and silent.seen > 0, 10)
        until(lambda: run(nginx, seconds=0.3).statuses.keys() == {200} and retries(nginx) >= 3, 10)
        assert "(stall)" in nginx.log
        silent.fault = ""
        silent.slots = 2
        for _ in range(2):
            group.loop.call_soon_threadsafe(silent._free.release)  # type: ignore[union-attr]
        until(lambda: run(nginx, seconds=0.2).peers[silent.address] > 3, 10)
        until(nginx.is_at_rest)


def test_what_may_not_be_repeated_stays(tmp_path: Path) -> None:
    """A POST at the silent server waits for it, while GETs beside it are answered by another."""
    with (
        peers(Peer(slots=4), Peer(slots=4)) as group,
        hooked(tmp_path, {"a": known(group, 4)}, health=HEALTH) as nginx,
    ):
        run(nginx, count=400)
        silent = group[0]
        silent.fault = "hang"
        while silent.in_flight < 1:
            post(nginx).join(0.05)
        caught = silent.in_flight
        until(
            lambda: (
                run(nginx, count=10).statuses == {200: 10}
                and nginx.pairs("a")[silent.address]["ejected"]
                and nginx.pairs("a")[silent.address]["in_flight"] == caught
            )
        )


def test_an_answer_that_has_begun_is_not_given_up(tmp_path: Path) -> None:
    """A server whose answers pause after their heads for longer than any before is not silent, and
    what is on its way is here whole."""
    with (
        peers(Peer(), Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH) as nginx,
    ):
        run(nginx, count=400)
        slow = group[2]
        slow.fault = "pause:0.8"
        got = run(nginx, seconds=0.6)
        assert got.statuses.keys() == {200}
        assert ejections(nginx, slow) == 0
        assert got.peers[slow.address] >= 1
        assert retries(nginx) == 0


def test_a_class_whose_answers_may_take_long_is_waited_for(tmp_path: Path) -> None:
    """Where one answer in a hundred takes a second, a silence of less than that moves nobody."""
    with (
        peers(Peer(slots=2), Peer(slots=2), Peer(slots=2)) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH) as nginx,
    ):
        run(nginx, count=6, headers="X-Work: 1\r\n")
        got = run(nginx, count=200)
        # Whom the rule likes.
        ((liked, _),) = got.peers.most_common(1)
        (silent,) = (p for p in group if p.address == liked)
        silent.fault = "hang"
        caught = threading.Thread(target=lambda: run(nginx, seconds=0.5), daemon=True)
        caught.start()
        time.sleep(0.5)
        assert silent.in_flight > 0
        assert retries(nginx) == 0
        # It is given up in the end.
        until(lambda: retries(nginx) > 0)
        caught.join(10)
        assert not caught.is_alive()


def test_no_more_are_moved_than_the_budget_has(tmp_path: Path) -> None:
    """With a bucket of ten and nothing that fills it, ten of twenty are tried elsewhere."""
    with (
        peers(Peer(slots=64), Peer(slots=64)) as group,
        hooked(
            tmp_path,
            {"a": known(group, 4)},
            health=HEALTH | {"retry_ratio": 0, "retries_per_second": 0},
        ) as nginx,
    ):
        run(nginx, count=400)
        group[0].fault = "hang"

        get(nginx, "X-Work: 0.2\r\n", count=60)
        until(lambda: retries(nginx) >= 10)
        until(lambda: group[1].in_flight == 0)
        assert retries(nginx) == 10
        assert group[0].in_flight > 10


def test_a_class_may_ask_to_wait(tmp_path: Path) -> None:
    """With retry_stalled = false what is caught waits for its server."""
    with (
        peers(Peer(slots=2), Peer(slots=2)) as group,
        hooked(
            tmp_path,
            {"a": known(group)},
            health=HEALTH | {"retry_stalled": False, "eject_max_seconds": 60},
        ) as nginx,
    ):
        run(nginx, count=400)
        group[0].fault = "hang"
        for _ in range(4):
            get(nginx, "X-Work: 0.01\r\n")
        until(lambda: ejections(nginx, group[0]) > 0)
        # Longer than until they would have been given up.
        for _ in range(20):
            assert nginx.get("/a", X_Work="0.01")[0] == 200
        assert retries(nginx) == 0
        assert group[0].in_flight > 0
