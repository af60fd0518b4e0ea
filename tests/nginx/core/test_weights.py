"""Weights and reports where the data plane itself decides: drain, reload, and the counters sent.

The link to the policy server is tested in tests/nginx/test_policy_link.py.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, hooked, load, until
from nginx.policy_server import PolicyServer, policy_server
from peers import Peer, Peers, peers
from ports import free_ports


@pytest.fixture
def group() -> Iterator[Peers]:
    """Two peers."""
    with peers(Peer(), Peer()) as group:
        yield group


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    """A policy server."""
    with policy_server(free_ports(1)[0]) as server:
        yield server


@pytest.fixture
def nginx(tmp_path: Path, group: Peers, server: PolicyServer) -> Iterator[Hooked]:
    """Two workers and a class, with slots and weights not configured."""
    each = [{"address": a} for a in group.addresses]
    with hooked(tmp_path, {"a": each}, workers=2, policy=f"127.0.0.1:{server.port}") as nginx:
        yield nginx


def answer(group: Peers, generation: int, **peer: Any) -> dict[str, Any]:
    """An answer for the upstream a that lasts a minute."""
    each = {"weight": 1.0, "affinity": 1.0, "rate": 1.0, "slots": 4.0, **peer}
    return {
        "epoch": 7,
        "generation": generation,
        "time_to_live": 60.0,
        "refresh_interval": 0.1,
        "upstreams": [
            {"upstream": "a", "peers": [{"address": a, **each} for a in group.addresses]}
        ],
    }


def source(nginx: Hooked) -> tuple[str, int]:
    """What is in force: learned or static, and the generation that is held."""
    weights = nginx.snapshot()["weights"]
    return weights["source"], weights["generation"]


def test_when_all_are_drained_nginx_answers(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """An answer from a drained peer is better than none: nginx's own balancer picks it."""
    server.set(weights=answer(group, 1, drain=True))
    until(lambda: source(nginx) == ("learned", 1))
    until(lambda: all(a["down"] for a in nginx.snapshot()["addresses"]))
    assert {nginx.get("/a")[0] for _ in range(8)} == {200}
    until(lambda: nginx.snapshot()["upstreams"][0]["unplaced"] > 0)
    until(nginx.is_at_rest)


def test_an_undrained_server_starts_slowly_where_the_class_wants_that(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """A server that is no longer drained begins with a tenth of its weight, the other keeps all."""
    nginx.reload(health={"slow_start_seconds": 600})
    drained = answer(group, 1)
    drained["upstreams"][0]["peers"][0]["drain"] = True
    server.set(weights=drained)
    until(lambda: nginx.pairs("a")[group[0].address]["drain"])
    server.set(weights=answer(group, 2))
    until(lambda: not nginx.pairs("a")[group[0].address]["drain"])
    parts = [nginx.pairs("a")[p.address]["slow_start"] for p in group]
    assert parts == [pytest.approx(0.1, abs=0.02), 1]


def test_reports_tell_ejections_and_retries(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """A server that fails is reported as ejected, why and until when, and as down; where its
    requests went, the retries."""
    nginx.reload(health={"eject_failures": 1, "eject_seconds": 60, "tries": 2})
    group[0].fault = "500"
    reports: list[dict[str, Any]] = []

    def shown() -> dict[str, Any]:
        # Old workers, which eject nobody, may answer for a moment.
        asyncio.run(load(nginx.port, ["/a"], concurrency=8, count=16, headers="X-Work: 0.01\r\n"))
        reports.extend(r["request"] for r in server.set() if r["method"] == "ReportStats")
        found = {a["address"]: a for a in reports[-1]["addresses"]} if reports else {}
        return dict(found.get(group[0].address, {}))

    until(lambda: shown().get("ejections", 0) >= 1)
    failing = shown()
    assert (failing["ejection"], failing["down"]) == ("failures", True)
    assert 0 < failing["ejection_seconds"] <= 66
    until(nginx.is_at_rest)
    pairs = nginx.pairs("a")
    assert pairs[group[1].address]["retries"] == pairs[group[0].address]["failures"] >= 1
    assert sum(p.get("retries", 0) for p in reports[-1]["upstreams"][0]["peers"]) >= 1


def test_slots_from_the_policy_server_yield_to_configured_ones(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """Slots that the operator gave are believed; where there are none, the policy server's."""
    server.set(weights=answer(group, 1))
    first, second = group.addresses
    nginx.reload(upstreams={"a": [{"address": first, "slots": 2}, {"address": second}]})
    until(
        lambda: (
            {a["address"]: a["slots"] for a in nginx.snapshot()["addresses"]}
            == {first: 2, second: 4}
        )
    )


def test_the_discipline_is_the_policy_servers_where_none_is_configured(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """A server that is found to share its slots does so from the next answer on, and is a queue
    again when that is taken back; one that the operator calls a queue stays one."""
    first, second = group.addresses
    server.set(weights=answer(group, 1, sharing=True))
    nginx.reload(upstreams={"a": [{"address": first, "discipline": "fifo"}, {"address": second}]})

    def sharing() -> dict[str, bool]:
        return {a["address"]: a["sharing"] for a in nginx.snapshot()["addresses"]}

    until(lambda: sharing() == {first: False, second: True})
    server.set(weights=answer(group, 2, sharing=False))
    until(lambda: sharing() == {first: False, second: False})


def test_a_configuration_of_other_peers_asks_anew(
    nginx: Hooked, group: Peers, server: PolicyServer
) -> None:
    """Weights for other names are not passed off as these: the first question says "none"."""
    server.set(weights=answer(group, 1))
    until(lambda: source(nginx) == ("learned", 1))
    server.set(weights=answer(group, 1))
    nginx.reload(upstreams={"a": [{"address": group.addresses[1]}]})
    asked: list[int] = []

    def has_asked() -> bool:
        asked.extend(
            r["request"].get("generation", 0)
            for r in server.set(weights=answer(group, 1))
            if r["method"] == "GetWeights"
        )
        return 0 in asked

    until(has_asked)


def test_reports_tell_the_counters(nginx: Hooked, group: Peers, server: PolicyServer) -> None:
    """Reports have rising sequences and clocks, one start, and the counters of all workers, also
    when the worker that reports is replaced."""
    reports: list[dict[str, Any]] = []

    def requests() -> int:
        new = [r["request"] for r in server.set() if r["method"] == "ReportStats"]
        reports.extend(new)
        return sum(p.get("requests", 0) for p in reports[-1]["upstreams"][0]["peers"])

    got = asyncio.run(load(nginx.port, ["/a"], concurrency=4, count=200))
    assert got.statuses == {200: 200}
    until(lambda: requests() == 200)
    nginx.reload()
    count = len(reports)
    until(lambda: requests() == 200 and len(reports) > count + 3)

    assert len({r["start"] for r in reports}) == 1
    assert abs(reports[0]["start"] / 1000 - time.time()) < 60
    for earlier, later in itertools.pairwise(reports):
        assert earlier["sequence"] < later["sequence"]
        assert earlier["clock_seconds"] <= later["clock_seconds"]
    for peer in reports[-1]["upstreams"][0]["peers"]:
        assert peer["responses"] == [0, peer["requests"], 0, 0, 0]
        assert sum(peer["response_time_buckets"]) == peer["requests"]
    addresses = reports[-1]["addresses"]
    assert sorted(a["address"] for a in addresses) == sorted(group.addresses)
    assert sum(sum(a["completions_at"]) for a in addresses) == 200
    assert all(a["rate"] > 0 and not a.get("down") for a in addresses)
    assert reports[-1]["connections"]["active"] >= 1
