"""The hook and its policy server: weights arrive, outlive it, expire, and come back.

The nginx is real, with the whole hook; the policy server is a real gRPC server on the generated
code (policy_server.py), which does what a test tells it.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, Load, hooked, load, until
from nginx.policy_server import PolicyServer, policy_server
from nginx.wire import golden
from peers import Peer, Peers, peers
from ports import free_ports
from trimtab import packed
from trimtab.v1 import policy_pb2

EPOCH = 1_767_225_600_000
# Long enough for a kill and a look on a busy machine, short enough to wait for.
TIME_TO_LIVE = 1.5


@pytest.fixture(scope="module")
def group() -> Iterator[Peers]:
    """Two peers."""
    with peers(Peer(), Peer()) as group:
        yield group


@pytest.fixture
def policy_port() -> int:
    """A port for a policy server."""
    return free_ports(1)[0]


@pytest.fixture
def nginx(tmp_path: Path, group: Peers, policy_port: int) -> Iterator[Hooked]:
    """An nginx whose upstream `a` has a static weight of 3 to 1, and asks at every 0.1 s."""
    weights = zip(group.addresses, (3, 1), strict=True)
    each = [{"address": address, "weight": weight} for address, weight in weights]
    with hooked(tmp_path, {"a": each}, policy=f"127.0.0.1:{policy_port}") as nginx:
        yield nginx


def answer(
    group: Peers, generation: int, *values: float, epoch: int = EPOCH, ttl: float = TIME_TO_LIVE
) -> dict[str, Any]:
    """A GetWeightsResponse that gives the peers of `a` these weights."""
    return {
        "epoch": epoch,
        "generation": generation,
        "time_to_live": ttl,
        "refresh_interval": 0.1,
        "upstreams": [
            {
                "upstream": "a",
                "deadline": 0.25,
                "service_time": 0.02,
                "peers": [
                    {"address": a, "weight": w, "affinity": 1.0, "rate": 1.0, "slots": 4.0}
                    for a, w in zip(group.addresses, values, strict=True)
                ],
            }
        ],
    }


def in_force(nginx: Hooked, group: Peers) -> tuple[str, list[float]]:
    """("learned" or "static", the weights that the rule uses)."""
    snapshot = nginx.snapshot()
    pairs = {p["address"]: p["weight"] for p in snapshot["upstreams"][0]["peers"]}
    return snapshot["weights"]["source"], [pairs[a] for a in group.addresses]


def held(nginx: Hooked) -> tuple[int, int]:
    """Epoch and generation that the hook has."""
    weights = nginx.snapshot()["weights"]
    return int(weights["epoch"]), int(weights["generation"])


def learned(nginx: Hooked, group: Peers, *values: float) -> None:
    """Wait until these weights are in force."""
    until(lambda: in_force(nginx, group) == ("learned", list(values)), 5)


def asked(server: PolicyServer, behaviour: dict[str, Any], times: int = 3) -> list[dict[str, Any]]:
    """Set the behaviour, wait until the hook has met it; the GetWeights requests since."""
    server.set(**behaviour)
    requests: list[dict[str, Any]] = []

    def has_met() -> bool:
        seen = server.set(**behaviour)
        requests.extend(r["request"] for r in seen if r["method"] == "GetWeights")
        return len(requests) >= times

    until(has_met, 10)
    return requests


def test_weights_arrive_within_an_interval_and_change_the_shares(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Static weights serve until the policy server is there; then its weights are in force.

    No request is needed for that, and with W = 1 : 9 the second peer gets most of them.
    """
    assert in_force(nginx, group) == ("static", [1.5, 0.5])
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 1, 0.5, 1.5))
        learned(nginx, group, 0.5, 1.5)

        server.set(weights=answer(group, 2, 1.8, 0.2))
        until(lambda: in_force(nginx, group)[1] == [1.8, 0.2])
        snapshot = nginx.snapshot()
        assert snapshot["upstreams"][0]["deadline_seconds"] == 0.25
        assert snapshot["upstreams"][0]["service_time_seconds"] == 0.02
        assert [a["slots"] for a in snapshot["addresses"]] == [4, 4]

        done = asyncio.run(load(nginx.port, ["/a"], concurrency=2, count=200))
        assert done.statuses == {200: 200}
        assert done.peers[group.addresses[0]] > 150


def test_the_policy_server_hears_who_asks_and_what_was_counted(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Requests carry instance, upstreams and what is held; reports carry counters and generation.

    Sequence numbers rise, also when nothing happens.
    """
    with policy_server(policy_port) as server:
        behaviour = {"weights": answer(group, 7, 1.0, 1.0)}
        requests = asked(server, behaviour)
        assert requests[0]["instance"] == "test"
        assert requests[0]["upstreams"] == ["a"]
        assert (requests[0]["epoch"], requests[0]["generation"]) == (0, 0)
        assert (requests[-1]["epoch"], requests[-1]["generation"]) == (EPOCH, 7)

        asyncio.run(load(nginx.port, ["/a"], concurrency=2, count=30))
        reports: list[dict[str, Any]] = []

        def has_all() -> bool:
            seen = server.set(**behaviour)
            reports.extend(r["request"] for r in seen if r["method"] == "ReportStats")
            return bool(reports) and counted(reports[-1]) == 30

        until(has_all, 5)
        last = reports[-1]
        assert last["instance"] == "test"
        assert last["start"] > 0
        assert last["generation"] == 7
        assert [a["address"] for a in last["addresses"]] == group.addresses
        assert last["connections"]["active"] >= 1
        sequences = [r["sequence"] for r in reports]
        assert sequences == sorted(set(sequences))


def counted(report: dict[str, Any]) -> int:
    """Requests in a report."""
    return sum(p["requests"] for u in report["upstreams"] for p in u["peers"])


def test_one_call_an_interval_where_the_policy_server_knows_it(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Told that columns are read, nginx reports by column and asks in the report: the counters are
    those of a report by row, new weights arrive, and GetWeights is called no more."""
    weights = answer(group, 1, 1.0, 1.0) | {"reads_columns": True}
    with policy_server(policy_port) as server:
        server.set(weights=weights)
        until(lambda: nginx.snapshot()["weights"]["generation"] == 1)
        asyncio.run(load(nginx.port, ["/a"], concurrency=2, count=30))
        reports: list[dict[str, Any]] = []
        asked: list[str] = []

        def all_counted() -> bool:
            for seen in server.set(weights=weights):
                asked.append(seen["method"])
                if seen["method"] == "ReportStats" and "address_columns" in seen["request"]:
                    reports.append(spread(seen["request"]))
            return bool(reports) and counted(reports[-1]) == 30

        until(all_counted)
        asked.clear()
        server.set(weights=answer(group, 2, 2.0, 0.5) | {"reads_columns": True})
        until(lambda: nginx.snapshot()["weights"]["generation"] == 2)
        calls = [seen["method"] for seen in server.set(weights=weights, answers_reports=False)]
        assert "ReportStats" in calls
        assert "GetWeights" not in calls
        assert nginx.snapshot()["weights"]["policy_server"] == "ok"
        snapshot = nginx.snapshot()
        # Without weights in the answer they are asked for by themselves.
        until(lambda: "GetWeights" in {s["method"] for s in server.set(answers_reports=False)})
    last = reports[-1]
    pairs = {p["address"]: p for p in snapshot["upstreams"][0]["peers"]}
    for peer in last["upstreams"][0]["peers"]:
        for name in ("requests", "responses", "response_time_buckets", "out_bytes", "unqueued"):
            assert peer[name] == pairs[peer["address"]][name], name
    servers = {a["address"]: a for a in snapshot["addresses"]}
    for server_row in last["addresses"]:
        for name in ("completions_at", "down", "ejections"):
            assert server_row[name] == servers[server_row["address"]][name], name
        assert len(server_row["seconds_at"]) == 32
        assert server_row["rate"] > 0


def spread(request: dict[str, Any]) -> dict[str, Any]:
    """A report by column in the shape of one by row."""
    message: Any = golden.fill(policy_pb2.ReportStatsRequest(), request)
    packed.spread(message)
    return golden.table(message)


@pytest.mark.usefixtures("nginx")
def test_a_report_without_traffic_names_the_generation_in_force(
    group: Peers, policy_port: int
) -> None:
    """An nginx that serves nobody says all the same which weights it has put in force."""
    with policy_server(policy_port) as server:
        behaviour = {"weights": answer(group, 5, 0.5, 1.5)}
        generations: list[int] = []

        def reported() -> bool:
            seen = server.set(**behaviour)
            generations.extend(
                r["request"]["generation"] for r in seen if r["method"] == "ReportStats"
            )
            return bool(generations) and generations[-1] == 5

        until(reported, 5)


def test_a_killed_policy_server_costs_no_request(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """kill -9 under load: nothing fails, the weights live on, expire, and come back.

    The learned weights stay until their time to live is over, then the static ones are in force,
    with what was said of the servers; a new policy server with a larger generation is followed
    again.
    """
    first = answer(group, 1, 0.5, 1.5)
    first["upstreams"][0]["peers"][0] |= {"affinity": 2.0, "rate": 0.5, "drain": True}
    done: list[Load] = []
    loading = threading.Thread(
        target=lambda: done.append(
            asyncio.run(load(nginx.port, ["/a"], concurrency=2, seconds=4.0, pause=0.005))
        )
    )
    with policy_server(policy_port) as server:
        server.set(weights=first)
        learned(nginx, group, 0.5, 1.5)
        until(lambda: "to report to the policy server works" in nginx.log)
        before = len(nginx.log)
        loading.start()
        time.sleep(0.3)
        server.kill()
    killed = time.monotonic()
    try:
        assert in_force(nginx, group) == ("learned", [0.5, 1.5])
        until(lambda: in_force(nginx, group)[0] == "static", 6)
        # The last answer came up to an interval, and a call, before the kill.
        assert time.monotonic() - killed > TIME_TO_LIVE - 0.5
        assert in_force(nginx, group) == ("static", [1.5, 0.5])
        upstream, addresses = nginx.snapshot()["upstreams"][0], nginx.snapshot()["addresses"]
        assert upstream["deadline_seconds"] == 0.25
        assert upstream["service_time_seconds"] == 0.02
        peers_of = {p["address"]: p for p in upstream["peers"]}
        assert [peers_of[a]["affinity"] for a in group.addresses] == [2.0, 1.0]
        assert [a["slots"] for a in addresses] == [4, 4]
        assert {a["address"]: a["down"] for a in addresses} == {
            group.addresses[0]: True, group.addresses[1]: False
        }  # fmt: skip

        with policy_server(policy_port) as server:
            server.set(weights=answer(group, 2, 0.25, 1.75))
            learned(nginx, group, 0.25, 1.75)
            assert held(nginx) == (EPOCH, 2)
            log = nginx.log[before:]
    finally:
        loading.join()
    assert set(done[0].statuses) == {200}
    assert done[0].statuses[200] > 100
    assert log.count("failed to get weights from the policy server") == 1
    assert log.count("failed to report to the policy server") == 1


def test_a_policy_server_that_hangs_costs_no_request(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Stopped under load, its connections open and silent: no request fails or waits for it, the
    weights expire, the rule goes on with its own estimates; continued, it is followed again."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 1, 0.5, 1.5))
        learned(nginx, group, 0.5, 1.5)
        server.process.send_signal(signal.SIGSTOP)
        try:
            got = asyncio.run(
                load(
                    nginx.port, ["/a"], concurrency=2, seconds=TIME_TO_LIVE + 1.0, pause=0.005,
                    headers="X-Work: 0.002\r\n",
                )
            )  # fmt: skip
            assert set(got.statuses) == {200}
            # Two clients that each waited for calls that time out would have had a handful.
            assert got.statuses[200] > 100
            assert in_force(nginx, group) == ("static", [1.5, 0.5])
            assert all(0.05 < a["rate"] < 20 for a in nginx.snapshot()["addresses"])
            assert nginx.snapshot()["weights"]["policy_server"] == "failing"
        finally:
            server.process.send_signal(signal.SIGCONT)
        learned(nginx, group, 0.5, 1.5)


def test_without_static_weights_w_is_one_when_the_weights_expire(
    tmp_path: Path, group: Peers, policy_port: int
) -> None:
    """No weight is configured: after the time to live W = 1 for each peer."""
    each = [{"address": address} for address in group.addresses]
    with hooked(tmp_path, {"a": each}, policy=f"127.0.0.1:{policy_port}") as nginx:
        with policy_server(policy_port) as server:
            server.set(weights=answer(group, 1, 0.5, 1.5, ttl=0.5))
            learned(nginx, group, 0.5, 1.5)
        until(lambda: in_force(nginx, group) == ("static", [1.0, 1.0]), 6)


def test_unchanged_keeps_the_weights_alive(nginx: Hooked, group: Peers, policy_port: int) -> None:
    """A server that answers "unchanged" prolongs the time to live, for as long as it does."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 3, 0.5, 1.5, ttl=0.8))
        learned(nginx, group, 0.5, 1.5)
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            assert in_force(nginx, group)[0] == "learned"
            time.sleep(0.05)


def test_an_older_generation_or_epoch_is_ignored_while_the_weights_live(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Smaller generations and epochs change nothing; a larger epoch does, from any generation."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 10, 0.5, 1.5, ttl=60.0))
        learned(nginx, group, 0.5, 1.5)

        asked(server, {"weights": answer(group, 9, 1.9, 0.1, ttl=60.0)})
        assert in_force(nginx, group) == ("learned", [0.5, 1.5])
        asked(server, {"weights": answer(group, 99, 1.9, 0.1, epoch=EPOCH - 1, ttl=60.0)})
        assert in_force(nginx, group) == ("learned", [0.5, 1.5])
        assert held(nginx) == (EPOCH, 10)

        server.set(weights=answer(group, 1, 1.2, 0.8, epoch=EPOCH + 1, ttl=60.0))
        learned(nginx, group, 1.2, 0.8)
        assert held(nginx) == (EPOCH + 1, 1)


def test_an_older_epoch_is_taken_once_the_weights_have_expired(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """What is dead binds nobody: after the time to live any epoch is taken."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 10, 0.5, 1.5, ttl=0.5))
        learned(nginx, group, 0.5, 1.5)
        server.set(weights=answer(group, 4, 1.2, 0.8, epoch=EPOCH - 5, ttl=60.0))
        learned(nginx, group, 1.2, 0.8)
        assert held(nginx) == (EPOCH - 5, 4)


WRONG = {
    "rubbish": {"raw": "ff" * 40},
    "truncated": {"raw": "08d0f0"},
    "empty": {"raw": ""},
    "refused": {"code": "INVALID_ARGUMENT", "message": "upstreams[0]: no"},
    "not-found": {"code": "NOT_FOUND", "message": 'upstream "a" is not configured'},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_ignored_and_logged_once(
    nginx: Hooked, group: Peers, policy_port: int, what: str
) -> None:
    """The weights held stay in force, the log has one line, and a right answer mends it."""
    with policy_server(policy_port) as server:
        right = {"weights": answer(group, 1, 0.5, 1.5, ttl=60.0)}
        server.set(**right)
        learned(nginx, group, 0.5, 1.5)
        before = len(nginx.log)

        asked(server, WRONG[what], times=4)
        assert in_force(nginx, group) == ("learned", [0.5, 1.5])
        assert nginx.get("/a")[0] == 200
        log = nginx.log[before:]
        assert log.count("failed to get weights from the policy server") == 1
        assert "keeping generation 1 for " in log

        server.set(weights=answer(group, 2, 1.2, 0.8, ttl=60.0))
        learned(nginx, group, 1.2, 0.8)
        assert nginx.log[before:].count("to get weights from the policy server works") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0.0),
        ("weight", -1.0),
        ("weight", 1e300),
        ("affinity", 0.0),
        ("rate", 0.0),
        ("slots", -1.0),
        ("slots", 1e9),
    ],
)
def test_a_number_out_of_bounds_makes_the_whole_answer_void(
    nginx: Hooked, group: Peers, policy_port: int, field: str, value: float
) -> None:
    """One impossible number and nothing of that answer is put in force."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 1, 0.5, 1.5, ttl=60.0))
        learned(nginx, group, 0.5, 1.5)
        wrong = answer(group, 2, 1.9, 0.1, ttl=60.0)
        wrong["upstreams"][0]["peers"][1][field] = value
        asked(server, {"weights": wrong})
        assert in_force(nginx, group) == ("learned", [0.5, 1.5])
        assert held(nginx) == (EPOCH, 1)


def test_names_that_are_not_configured_here_are_passed_over(
    nginx: Hooked, group: Peers, policy_port: int
) -> None:
    """Other upstreams and other peers in an answer change nothing; peers left out are static."""
    weights = answer(group, 1, 0.5, 1.5)
    stranger = {"address": "10.9.9.9:1", "weight": 1.0, "affinity": 1.0, "rate": 1.0}
    weights["upstreams"][0]["peers"] = [stranger, weights["upstreams"][0]["peers"][1]]
    weights["upstreams"].insert(0, {"upstream": "other", "peers": [stranger]})
    with policy_server(policy_port) as server:
        server.set(weights=weights)
        learned(nginx, group, 1.5, 1.5)


def test_a_drained_peer_gets_no_request(nginx: Hooked, group: Peers, policy_port: int) -> None:
    """With `drain` all requests go to the other peer, whichever of them is drained."""
    with policy_server(policy_port) as server:
        for drained in (0, 1):
            weights = answer(group, 1 + drained, 1.0, 1.0)
            weights["upstreams"][0]["peers"][drained]["drain"] = True
            server.set(weights=weights)
            until(lambda expected=(EPOCH, 1 + drained): held(nginx) == expected)
            done = asyncio.run(load(nginx.port, ["/a"], concurrency=4, count=40))
            assert done.peers == {group.addresses[1 - drained]: 40}
            downs = [a["down"] for a in nginx.snapshot()["addresses"]]
            assert downs == [drained == 0, drained == 1]


def test_weights_survive_a_reload(nginx: Hooked, group: Peers, policy_port: int) -> None:
    """A reload while the policy server is away keeps the learned weights in force."""
    with policy_server(policy_port) as server:
        server.set(weights=answer(group, 6, 0.5, 1.5, ttl=60.0))
        learned(nginx, group, 0.5, 1.5)
    nginx.reload()
    learned(nginx, group, 0.5, 1.5)
    assert held(nginx) == (EPOCH, 6)


def test_all_workers_follow_one_leader(tmp_path: Path, group: Peers, policy_port: int) -> None:
    """With three workers one asks and all follow; when the leader is killed another asks."""
    each = [{"address": a} for a in group.addresses]
    with (
        policy_server(policy_port) as server,
        hooked(tmp_path, {"a": each}, policy=f"127.0.0.1:{policy_port}", workers=3) as nginx,
    ):
        server.set(weights=answer(group, 1, 0.5, 1.5))
        until(lambda: all_follow(nginx, group, [0.5, 1.5]), 8)
        leaders = [w["pid"] for w in nginx.snapshot()["workers"] if w["leader"]]
        assert len(leaders) == 1

        os.kill(leaders[0], signal.SIGKILL)
        server.set(weights=answer(group, 2, 1.6, 0.4))
        until(lambda: all_follow(nginx, group, [1.6, 0.4]), 12)
        after = [w["pid"] for w in nginx.snapshot()["workers"] if w["leader"]]
        assert len(after) == 1
        assert after != leaders


def all_follow(nginx: Hooked, group: Peers, values: list[float]) -> bool:
    """Whether twenty looks, which meet workers at random, all show these weights."""
    return all(in_force(nginx, group) == ("learned", values) for _ in range(20))
