"""The retry budget, in a real nginx: what goes to another server, and what does not."""

import asyncio
import http.client
from pathlib import Path

import pytest

from hooked import hooked, load, until
from nginxes import toml
from peers import Peer, peers
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.config import split_address

BUDGET = {"tries": 3, "retry_ratio": 0.2, "retries_per_second": 0}


def test_within_the_budget_every_peer_is_tried(tmp_path: Path) -> None:
    """A full budget lets a request fail at each of three peers, and counts two retries."""
    with (
        peers(Peer(), Peer(), Peer()) as group,
        hooked(tmp_path, {"a": [{"address": a} for a in group.addresses]}, health=BUDGET) as nginx,
    ):
        assert nginx.get("/a", X_Fault="500")[0] == 500
        assert [p.seen for p in group] == [1, 1, 1]
        until(nginx.is_at_rest)
        (upstream,) = nginx.snapshot()["upstreams"]
        assert (upstream["retries"], upstream["retries_refused"]) == (2, 0)


def test_beyond_the_budget_the_first_answer_goes_through(tmp_path: Path) -> None:
    """Where every request fails everywhere, at most a fifth of them is tried again beyond the
    bucket, and the others get the answer of the one peer that was asked."""
    with (
        peers(Peer(), Peer(), Peer()) as group,
        hooked(tmp_path, {"a": [{"address": a} for a in group.addresses]}, health=BUDGET) as nginx,
    ):
        got = asyncio.run(
            load(nginx.port, ["/a"], concurrency=1, count=200, headers="X-Fault: 503\r\n")
        )
        assert got.statuses == {503: 200}
        until(nginx.is_at_rest)
        (upstream,) = nginx.snapshot()["upstreams"]
        # The bucket holds ten; a request that may be tried again is so twice at most.
        assert 40 <= upstream["retries"] <= 10 + 0.2 * 200 + 2
        assert sum(p.seen for p in group) == 200 + upstream["retries"]
        assert upstream["retries_refused"] >= 200 - upstream["retries"]


def test_the_minimum_comes_back_with_time(tmp_path: Path) -> None:
    """Some seconds after the budget was used up a request is tried again."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": [{"address": a} for a in group.addresses]},
            workers=1,
            health={"tries": 2, "retry_ratio": 0, "retries_per_second": 2},
        ) as nginx,
    ):
        asyncio.run(load(nginx.port, ["/a"], concurrency=1, count=60, headers="X-Fault: 500\r\n"))
        used_up = nginx.snapshot()["upstreams"][0]["retries"]
        assert 20 <= used_up < 30
        until(
            lambda: (
                nginx.get("/a", X_Fault="500")[0] == 500
                and nginx.snapshot()["upstreams"][0]["retries"] > used_up
            )
        )


def test_a_silent_server_is_given_up_early_where_the_class_wants_that(tmp_path: Path) -> None:
    """With a try timeout a GET gets its answer from the next server, a POST and a last try have
    all the time that there is."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": [{"address": a} for a in group.addresses]},
            extra="proxy_read_timeout 20s; proxy_next_upstream error timeout;",
            health=BUDGET
            | {
                "tries": 2,
                "try_timeout_seconds": 0.1,
                "timeout_seconds": 20,
                "retry_non_idempotent": False,
            },
        ) as nginx,
    ):
        # Each of the two is given 0.3 s of work: the first is given up, the last is not.
        assert nginx.get("/a", X_Work="0.3")[0] == 200
        assert [p.seen for p in group] == [1, 1]
        assert nginx.get("/a", method="POST", X_Work="0.3")[0] == 200
        assert sum(p.seen for p in group) == 3
        until(nginx.is_at_rest)
        assert sum(p["failures"] for p in nginx.pairs("a").values()) == 1


def test_held_requests_have_the_same_budget(tmp_path: Path) -> None:
    """A request that late binding has placed is not tried again beyond the budget either."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": [{"address": a, "slots": 2} for a in group.addresses]},
            hold={"hold": "on"},
            health=BUDGET | {"tries": 2, "retry_ratio": 0},
        ) as nginx,
    ):
        got = asyncio.run(
            load(nginx.port, ["/a"], concurrency=1, count=60, headers="X-Fault: 500\r\n")
        )
        assert got.statuses == {500: 60}
        assert sum(p.seen for p in group) == 60 + 10


@pytest.mark.parametrize("fault", ["500", "502", "503", "504", "close", "hang", "404"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_as_rendered_only_what_may_be_sent_twice_is(
    tmp_path: Path, method: str, fault: str
) -> None:
    """With the rendered configuration a GET goes to another server after an error, a timeout, and
    an answer of 500 and 502 to 504; a POST, and one after a 404, to one server alone."""
    with peers(Peer(), Peer()) as group:
        text = toml(tmp_path, peers=group.addresses)
        checked = config.parse(text.replace("timeout_seconds = 2", "timeout_seconds = 0.3"))
        _, port = split_address(checked.nginx.listen[0])
        with NginxProcess.rendered(tmp_path, checked):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, "/read", b"x" * 10, {"X-Fault": fault})
            status = connection.getresponse().status
            connection.close()
        tries = 2 if method == "GET" and fault != "404" else 1
        assert [p.seen for p in group].count(1) == tries
        assert sum(p.seen for p in group) == tries
        assert status == (int(fault) if fault.isdigit() else {"close": 502, "hang": 504}[fault])
