"""Which servers are ejected, tried again and brought back: the decisions, and a real nginx."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, Load, abort, hooked, load, until
from nginx.wire.harness import nginx, post_json
from peers import Peer, Peers, peers
from ports import free_port

FAILURES, ERRORS, STALL, CHECK = 1, 2, 3, 4


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Plays calls on one health: a list of [answer, the health after it]."""
    port = free_port()
    http = f"""
    server {{
        listen 127.0.0.1:{port};
        location / {{ content_by_lua_file {Path(__file__).parent}/health_checks.lua; }}
    }}"""
    with nginx(tmp_path_factory.mktemp("health"), http, port):
        yield lambda *calls: post_json(port, "/", list(calls))


def test_a_streak_ejects_and_a_success_breaks_it(play: Callable[..., list[Any]]) -> None:
    """The fifth failure in a row is one too many; four are not."""
    failed = ["failed", "health", 0.3, 0.0, 5, 1]
    assert [answer for answer, _ in play(*[failed] * 5)] == [None] * 4 + [FAILURES]


def test_a_ratio_ejects_and_one_means_never(play: Callable[..., list[Any]]) -> None:
    """An error ratio of the bound is too much; with a bound of 1, and of 0 failures, nothing is."""
    answers = play(
        ["failed", "health", 0.49, 0.0, 0, 0.5],
        ["failed", "health", 0.5, 0.0, 0, 0.5],
        *[["failed", "health", 1.0, 0.0, 0, 1]] * 50,
    )
    assert [answer for answer, _ in answers] == [None, ERRORS] + [None] * 50


def test_where_all_fail_alike_nobody_is_ejected(play: Callable[..., list[Any]]) -> None:
    """A peer is ejected only while another fails less than half as often."""
    answers = play(
        ["failed", "health", 0.6, 0.3, 1, 0.5],
        ["failed", "health", 0.6, 0.29, 1, 0.5],
        ["failed", "health", 0.6, "huge", 1, 0.5],
    )
    assert [answer for answer, _ in answers] == [None, FAILURES, None]


def test_the_back_off_doubles_to_a_bound_and_is_forgotten(play: Callable[..., list[Any]]) -> None:
    """1, 2, 4, 5, 5 s while it fails again and again; 1 s when it was well for ten back-offs."""
    answers = play(
        ["eject", "health", FAILURES, 100, 1, 5, 0.0],
        ["extend", "health", 101, 5, 0.0],
        ["restore", "health", 103],
        ["eject", "health", FAILURES, 104, 1, 5, 0.0],
        ["extend", "health", 108, 5, 0.0],
        ["extend", "health", 113, 5, 0.0],
        ["restore", "health", 118],
        ["eject", "health", ERRORS, 168, 1, 5, 0.999],
    )
    states = [state for _, state in answers]
    assert [s["backoff"] for s in states] == [1, 2, 2, 4, 5, 5, 5, 1]
    assert [s["back"] for s in states[:2]] == [101, 103]
    assert 169 < states[-1]["back"] < 169.1
    assert [s["reason"] for s in states] == [1, 1, 0, 1, 1, 1, 0, ERRORS]
    assert states[-1]["ejections"] == 3


def test_half_open_is_one_request_after_the_back_off(play: Callable[..., list[Any]]) -> None:
    """Before the back-off is over nobody tries it, then one request at a time."""
    answers = play(
        ["is_half_open", "health", 0.0, 100, 0, 0, 5],
        ["eject", "health", FAILURES, 100, 1, 5, 0.0],
        ["is_half_open", "health", 0.3, 100.9, 0, 0, 5],
        ["is_half_open", "health", 0.3, 101, 0, 3, 5],
        ["is_half_open", "health", 0.3, 101, 1, 1, 5],
        ["eject", "health", CHECK, 102, 1, 5, 0.0],
        ["is_half_open", "health", 0.3, 1e9, 0, 0, 5],
    )
    assert [a for n, (a, _) in enumerate(answers) if n not in (1, 5)] == [
        False, False, True, False, False,
    ]  # fmt: skip


def test_what_a_silent_server_has_tries_it(play: Callable[..., list[Any]]) -> None:
    """After a stall nobody is sent there while it has requests, up to the longest back-off."""
    answers = play(
        ["eject", "health", STALL, 100, 1, 60, 0.0],
        ["is_half_open", "health", 0.0, 102, 0, 1, 60],
        ["is_half_open", "health", 0.0, 102, 0, 0, 60],
        ["is_half_open", "health", 0.0, 160, 0, 1, 60],
    )
    assert [a for a, _ in answers[1:]] == [False, True, True]


def test_a_suspect_is_tried_and_acquitted(play: Callable[..., list[Any]]) -> None:
    """A server that is in with 5% errors is tried like one that is out; one with 1% is not. Each
    success halves its error ratio."""
    answers = play(
        ["is_half_open", "health", 0.05, 100, 0, 0, 5],
        ["is_half_open", "health", 0.05, 100, 1, 1, 5],
        ["is_half_open", "health", 0.01, 100, 0, 0, 5],
        ["acquit", 0.05],
    )
    assert [a for a, _ in answers] == [True, False, False, 0.025]


@pytest.mark.parametrize(
    ("asked", "now", "n", "work", "rate", "longest", "seconds", "stalled"),
    [
        (1, 1.24, 2, 0.02, 1, "huge", 0.25, False),
        (1, 1.26, 2, 0.02, 1, "huge", 0.25, True),
        (1, 1.26, 1, 0.01, 1, "huge", 0.25, False),
        (0, 9.0, 2, 0.02, 1, "huge", 0.25, False),
        (1, 9.0, 2, 0.02, 1, "huge", 0, False),
        (1, 3.9, 2, 0.4, 1, "huge", 0.25, False),
        (1, 4.1, 2, 0.4, 1, "huge", 0.25, True),
        (1, 4.1, 2, 0.4, 0.5, "huge", 0.25, False),
        (1, 1.9, 2, 0.4, 1, 1.0, 0.25, False),
        (1, 2.1, 2, 0.4, 1, 1.0, 0.25, False),
        (1, 4.1, 2, 0.4, 1, 1.0, 0.25, True),
        (1, 1.5, 2, 0.02, 1, 0.6, 0.25, False),
        (1, 1.7, 2, 0.02, 1, 0.6, 0.25, True),
        (1, 1.2, 2, 0.02, 1, "huge", 0.1, False),
        (1, 1.2, 2, 0.02, 1, 0.15, 0.1, True),
        (1, 1.2, 2, 0.4, 1, 0.1, 0.25, False),
        (1, 9.0, 1, 0.01, 1, "huge", 0.25, False),
        (1, 1.5, 1, 0.01, 1, 0.2, 0.25, False),
        (1, 1.7, 1, 0.01, 1, 0.2, 0.25, True),
    ],
)
def test_a_stall_is_silence_for_fifteen_services_and_the_longest_wait(
    play: Callable[..., list[Any]],
    asked: float,
    now: float,
    n: int,
    work: float,
    rate: float,
    longest: float | str,
    seconds: float,
    stalled: bool,
) -> None:
    """Silence counts beyond the configured time, fifteen services, and what no answer has taken (a
    quarter of a second where that is not known); where one request waits, three times the latter,
    which must be known."""
    call = ["is_stalled", asked, now, n, work, rate, longest, seconds]
    assert play(call)[0][0] is stalled


@pytest.mark.parametrize(
    ("asked", "reason", "alone"),
    [
        ([1, 0, 0], [0, 0, 0], True),
        ([1, 1.1, 1.2], [0, 0, 0], False),
        ([1, 1.1, 1.6], [0, 0, 0], True),
        ([1, 1.1, 1.6], [0, 0, STALL], False),
        ([1], [0], False),
    ],
)
def test_where_all_are_silent_nobody_is_at_fault(
    play: Callable[..., list[Any]], asked: list[float], reason: list[int], alone: bool
) -> None:
    """A silent server is ejected while another that is in has owed an answer for half as long."""
    assert play(["is_alone", 0, 1, 2, asked, reason])[0][0] is alone


def test_a_back_off_after_a_stall_is_as_short_as_the_stall(play: Callable[..., list[Any]]) -> None:
    """Twice the silence, and no longer than any first back-off."""
    answers = play(["stall_backoff", 10, 10.2, 1], ["stall_backoff", 10, 13, 1])
    assert [a for a, _ in answers] == [pytest.approx(0.4), 1]


def test_the_cap_leaves_most_peers(play: Callable[..., list[Any]]) -> None:
    """One of two, two of five, none of one, none with a ratio of 0."""
    answers = play(*[["most_ejected", *c] for c in ((2, 0.1), (5, 0.5), (1, 1), (4, 0))])
    assert [a for a, _ in answers] == [1, 2, 0, 0]


def test_a_slow_start_rises_to_the_whole(play: Callable[..., list[Any]]) -> None:
    """A tenth at once, a half after half of the time, all after all of it, and without one."""
    answers = play(
        *[["share", 100, now, 10] for now in (100, 105, 110)], ["share", 100, 100, 0],
        ["share", 0, 100, 10],
    )  # fmt: skip
    assert [a for a, _ in answers] == [0.1, 0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("drain", "since", "most", "filled"),
    [
        ([0, 0, 0], [0, 5, 0], 1, [1, 0, 1, 0]),
        ([0, 0, 0, 0], [9, 5, 7, 0], 2, [2, 1, 0, 1, 0]),
        ([0, 0, 0], [3, 5, 4], 2, [0, 0, 0, 0]),
        ([1, 0, 0], [0, 5, 4], 2, [0, 1, 0, 0]),
        ([1, 0, 0], [5, 5, 0], 1, [1, 1, 1, 0]),
    ],
)
def test_ejected_peers_are_left_out_up_to_the_cap_and_never_all(
    play: Callable[..., list[Any]],
    drain: list[int],
    since: list[int],
    most: int,
    filled: list[int],
) -> None:
    """Those whose conviction is the newest; where all that are not drained are ejected, none."""
    assert play(["fill", drain, since, most])[0][0] == filled


def address(nginx: Hooked, peer: Peer) -> dict[str, Any]:
    """What the snapshot has of this server."""
    (found,) = (a for a in nginx.snapshot()["addresses"] if a["address"] == peer.address)
    return dict(found)


def run(nginx: Hooked, seconds: float, paths: tuple[str, ...] = ("/a",), clients: int = 6) -> Load:
    """A closed loop of services of 10 ms."""
    return asyncio.run(
        load(nginx.port, paths, concurrency=clients, seconds=seconds, headers="X-Work: 0.01\r\n")
    )


def known(group: Peers) -> list[dict[str, Any]]:
    """The peers as trimtab.json has them."""
    return [{"address": a, "slots": 4} for a in group.addresses]


HEALTH = {
    "eject_failures": 3,
    "eject_error_ratio": 0.5,
    "eject_stall_seconds": 0.25,
    "eject_seconds": 0.3,
    "eject_max_seconds": 0.6,
}


@pytest.mark.parametrize(("hold", "workers"), [("off", 2), ("on", 1)])
def test_a_failing_server_is_ejected_and_comes_back(
    tmp_path: Path, hold: str, workers: int
) -> None:
    """A server that answers 500 to everything fails no request; it is ejected in both classes for
    all workers, a request at a time tries it, and when it is well it has its share again."""
    with (
        peers(Peer(slots=4), Peer(slots=4), Peer(slots=4)) as group,
        hooked(
            tmp_path,
            {"a": known(group), "b": known(group)},
            workers=workers,
            hold={"hold": hold},
            health=HEALTH,
        ) as nginx,
    ):
        run(nginx, 0.3)
        bad = group[0]
        bad.fault = "500"
        statuses: set[int] = set()

        def is_out() -> bool:
            # More than the others have slots for, so that it is tried.
            statuses.update(run(nginx, 0.2, clients=11).statuses)
            return bool(address(nginx, bad)["down"])

        until(is_out, 5)
        assert statuses == {200}
        shown = address(nginx, bad)
        assert shown["ejection"] in ("failures", "errors")
        assert shown["ejection_seconds"] <= 0.7
        assert nginx.pairs("b")[bad.address]["ejected"]
        assert "trimtab: ejected" in nginx.log
        seen = bad.seen
        got = run(nginx, 0.8, ("/a", "/b"))
        assert set(got.statuses) == {200}
        # At 0.3 s and then every 0.6 s, with some patience.
        assert 1 <= bad.seen - seen <= 4
        bad.fault = ""
        until(lambda: bool(run(nginx, 0.1)) and not address(nginx, bad)["down"], 5)
        # More than the others have slots for.
        got = run(nginx, 0.6, clients=11)
        assert got.peers[bad.address] / got.peers.total() > 0.2
        assert "ejection" not in address(nginx, bad)
        assert address(nginx, bad)["ejections"] >= 1
        until(nginx.is_at_rest)


def test_a_server_is_ejected_for_its_error_ratio(tmp_path: Path) -> None:
    """Where a streak does not count the ratio does, though the rule sends it next to nothing."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": known(group)},
            health={"eject_failures": 0, "eject_error_ratio": 0.15, "eject_seconds": 0.02},
        ) as nginx,
    ):
        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1)) and "(errors)" in nginx.log, 5)


@pytest.mark.parametrize(
    ("results", "verdicts"),
    [
        ("--", [None, False]),
        ("-+-", [None, None, None]),
        ("--+-++", [None, False, None, None, None, True]),
    ],
)
def test_checks_count_in_a_row(
    play: Callable[..., list[Any]], results: str, verdicts: list[bool | None]
) -> None:
    """Two failures in a row eject and two successes bring back; one between them counts anew."""
    run: float = 0
    found = []
    for result in results:
        ((run, verdict),) = (a for a, _ in play(["check", run, result == "+", 2, 2]))
        found.append({-1: False, 0: None, 1: True}[verdict])
    assert found == verdicts


@pytest.mark.parametrize("fault", ["503", "close", "hang"])
def test_a_server_that_fails_its_checks_is_ejected_without_traffic(
    tmp_path: Path, fault: str
) -> None:
    """Nobody sends a request, and a server that answers its checks with errors, nothing, or not in
    time is ejected; no request tries it; when it succeeds again it is back."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": known(group), "b": known(group)},
            workers=2,
            health={
                "check_path": "/healthz?full=1",
                "check_interval_seconds": 0.1,
                "check_timeout_seconds": 0.1,
                "check_failures": 2,
            },
        ) as nginx,
    ):
        until(lambda: all(p.seen >= 2 for p in group))
        assert not any(a["down"] for a in nginx.snapshot()["addresses"])
        group[1].fault = fault
        until(lambda: address(nginx, group[1]).get("ejection") == "check")
        assert "ejection_seconds" not in address(nginx, group[1])
        assert nginx.pairs("a")[group[1].address]["ejected"]
        got = run(nginx, 0.2)
        assert got.peers.keys() == {group[0].address}
        assert nginx.pairs("a")[group[1].address]["requests"] == 0
        group[1].fault = ""
        until(lambda: not address(nginx, group[1])["down"])
        group[1].fault = fault
        until(lambda: address(nginx, group[1])["down"])
        # Without checks nobody could bring it back.
        nginx.reload(health={})
        until(lambda: not address(nginx, group[1])["down"])


def test_when_all_are_ejected_all_are_used(tmp_path: Path) -> None:
    """Both servers fail, one after the other, with a cap of 1: each of them still gets requests."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": known(group)},
            health=HEALTH | {"eject_max_ratio": 1, "eject_seconds": 60, "eject_max_seconds": 60},
        ) as nginx,
    ):
        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1, clients=8)) and address(nginx, group[0])["down"], 5)
        group[1].fault = "500"
        got = run(nginx, 0.3)
        assert set(got.statuses) == {500}
        group[0].fault = group[1].fault = ""
        assert run(nginx, 0.3).statuses[200] > 5
        # The first that succeeds is back, long before its back-off is over.
        assert not all("ejection" in address(nginx, p) for p in group)
        until(nginx.is_at_rest)


def test_who_fails_now_is_out_rather_than_who_failed_before(tmp_path: Path) -> None:
    """With one of three out for a minute, and well again, another one that fails is left out in
    its place: the first is used and back with its first answer, and no client sees an error."""
    with (
        peers(Peer(), Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": known(group)},
            health=HEALTH | {"eject_seconds": 60, "eject_max_seconds": 60},
        ) as nginx,
    ):
        before, now = group[:2]
        statuses: set[int] = set()

        def out(peer: Peer) -> bool:
            statuses.update(run(nginx, 0.1, clients=14).statuses)
            return bool(address(nginx, peer)["down"])

        before.fault = "500"
        until(lambda: out(before), 5)
        before.fault = ""
        now.fault = "500"
        until(lambda: out(now), 5)
        until(lambda: not out(before), 5)
        assert out(now)
        assert statuses == {200}
        until(nginx.is_at_rest)


def test_a_lone_server_is_never_ejected(tmp_path: Path) -> None:
    """A server without a peer is used whatever it answers."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH) as nginx,
    ):
        group[0].fault = "500"
        run(nginx, 0.3)
        assert not address(nginx, group[0])["down"]
        assert address(nginx, group[0])["ejections"] == 0


@pytest.mark.parametrize("hold", ["off", "on"])
def test_a_silent_server_is_left_until_it_answers(tmp_path: Path, hold: str) -> None:
    """While a server hangs it is ejected for a stall, and gets no more than it had; the answers
    to what it had bring it back, with its share."""
    with (
        peers(Peer(slots=2), Peer(slots=2), Peer(slots=2)) as group,
        hooked(
            tmp_path,
            {"a": [p | {"slots": 2} for p in known(group)]},
            hold={"hold": hold},
            health=HEALTH | {"eject_seconds": 0.1, "eject_max_seconds": 60},
        ) as nginx,
    ):
        run(nginx, 0.4)
        silent = group[2]

        async def hang() -> Load:
            # The slots of the server, taken away: it accepts, and does not answer.
            assert silent._free is not None
            free = silent._free
            for _ in range(2):
                await asyncio.wrap_future(
                    asyncio.run_coroutine_threadsafe(free.acquire(), group.loop)
                )
            more = asyncio.create_task(
                load(nginx.port, ["/a"], concurrency=10, seconds=1.1, headers="X-Work: 0.01\r\n")
            )
            await asyncio.sleep(0.6)
            assert address(nginx, silent)["ejection"] == "stall"
            seen = silent.seen
            await asyncio.sleep(0.2)
            assert silent.seen == seen
            for _ in range(2):
                group.loop.call_soon_threadsafe(free.release)
            return await more

        got = asyncio.run(hang())
        assert set(got.statuses) == {200}
        assert not address(nginx, silent)["down"]
        got = run(nginx, 0.5, clients=6)
        assert got.peers[silent.address] / got.peers.total() > 0.2
        until(nginx.is_at_rest)


def test_a_server_that_was_ejected_comes_back_slowly(tmp_path: Path) -> None:
    """Back from an ejection it begins with a tenth of its weight, gets less than the other, and
    has the whole when the time is over."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH | {"slow_start_seconds": 4}) as nginx,
    ):

        def started(peer: Peer) -> float:
            return float(nginx.pairs("a")[peer.address]["slow_start"])

        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1)) and address(nginx, group[0])["down"], 5)
        group[0].fault = ""
        until(lambda: bool(run(nginx, 0.1)) and not address(nginx, group[0])["down"], 5)
        assert started(group[0]) < 0.5
        assert started(group[1]) == 1
        got = run(nginx, 0.4)
        assert got.peers[group[0].address] < got.peers[group[1].address]
        until(lambda: bool(run(nginx, 0.1)) and started(group[0]) == 1, 10)


def test_a_slow_start_gives_a_new_server_less(tmp_path: Path) -> None:
    """A server that a reload brings begins with part of its weight, others of the same age with
    all of it; at the first start of nginx nobody begins slowly."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path, {"a": known(group)[:1]}, health=HEALTH | {"slow_start_seconds": 600}
        ) as nginx,
    ):
        assert nginx.pairs("a")[group[0].address]["slow_start"] == 1
        nginx.reload(upstreams={"a": known(group)})
        until(lambda: group[1].address in nginx.pairs("a"))
        run(nginx, 0.2)
        assert nginx.pairs("a")[group[0].address]["slow_start"] == 1
        assert nginx.pairs("a")[group[1].address]["slow_start"] == pytest.approx(0.1, abs=0.02)


def test_a_killed_worker_takes_its_try_of_a_server_along(tmp_path: Path) -> None:
    """When the worker dies whose request tries a server, another request tries it."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH | {"eject_seconds": 0.05}) as nginx,
    ):
        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1, clients=8)) and address(nginx, group[0])["down"], 5)
        group[0].fault = ""
        time.sleep(0.65)
        seen = group[0].seen
        caught = threading.Thread(
            target=lambda: asyncio.run(
                load(nginx.port, ["/a"], concurrency=1, count=1, headers="X-Work: 9\r\n")
            ),
            daemon=True,
        )
        caught.start()
        until(lambda: group[0].seen == seen + 1)
        assert nginx.get("/a")[0] == 200
        assert group[0].seen == seen + 1
        (pid,) = nginx.workers()
        os.kill(pid, signal.SIGKILL)
        until(lambda: nginx.workers() not in ([], [pid]))
        assert nginx.get("/a")[0] == 200
        assert group[0].seen == seen + 2
        until(lambda: not address(nginx, group[0])["down"])
        caught.join(10)


def test_a_post_tries_no_ejected_server(tmp_path: Path) -> None:
    """Only requests that nginx would repeat elsewhere try whether a server is well."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": known(group)},
            health=HEALTH | {"retry_non_idempotent": False, "eject_seconds": 0.05},
        ) as nginx,
    ):
        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1, clients=8)) and address(nginx, group[0])["down"], 5)
        group[0].fault = ""
        time.sleep(0.65)
        seen = group[0].seen
        for _ in range(5):
            assert nginx.get("/a", method="POST")[0] == 200
        assert group[0].seen == seen
        assert nginx.get("/a")[0] == 200
        assert group[0].seen == seen + 1


def test_a_client_that_leaves_while_it_tries_leaves_no_trace(tmp_path: Path) -> None:
    """The request that tries an ejected server may be aborted: the next one tries it."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(tmp_path, {"a": known(group)}, health=HEALTH | {"eject_seconds": 0.05}) as nginx,
    ):
        group[0].fault = "500"
        until(lambda: bool(run(nginx, 0.1, clients=8)) and address(nginx, group[0])["down"], 5)
        group[0].fault = ""
        time.sleep(0.65)
        seen = group[0].seen
        abort(nginx.port, "/a", 0.1, "X-Work: 3\r\n")
        until(nginx.is_at_rest)
        assert group[0].seen == seen + 1
        assert address(nginx, group[0])["down"]
        assert nginx.get("/a")[0] == 200
        until(lambda: not address(nginx, group[0])["down"])
