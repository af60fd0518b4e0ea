"""The status pages: Trimtab's own document, and the one in the shape of nginx-module-vts."""

import asyncio
import http.client
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import load, until
from nginx.wire.harness import LUA, get, post_json, serving
from nginxes import configuration
from peers import Peer, Peers, peers
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.config import Config, split_address
from trimtab.sources import vts

REAL = Path(__file__).parents[2] / "data" / "vts" / "v0.2.7-head.03-loaded.json"

PAGE = {
    "version": "0.1.0",
    "nginx_version": "1.22.1",
    "host_name": "host",
    "now_seconds": 1_767_225_600.25,
    "connections": {
        "active": 3,
        "reading": 0,
        "writing": 1,
        "waiting": 2,
        "accepted": 9,
        "handled": 9,
        "requests": 120,
    },
    "zone": {"name": "trimtab", "size_bytes": 8388608, "free_bytes": 8000000},
}


def snapshot() -> dict[str, Any]:
    """A snapshot of one upstream: one busy peer, and one that was never used."""
    counts = [0] * 36
    counts[1], counts[2], counts[10], counts[35] = 1, 2, 95, 2
    idle = {
        "address": "127.0.0.1:9002",
        "in_flight": 0,
        "requests": 0,
        "responses": [0] * 5,
        "failures": 0,
        "in_bytes": 0,
        "out_bytes": 0,
        "response_time_seconds": 0,
        "response_time_buckets": [0] * 36,
        "configured_weight": 1,
        "static_weight": 0.5,
        "weight": 0.5,
        "affinity": 1,
        "effective_weight": 0.5,
        "drain": True,
    }
    busy = idle | {
        "address": "127.0.0.1:9001",
        "in_flight": 3,
        "requests": 100,
        "responses": [0, 97, 0, 2, 1],
        "in_bytes": 5000,
        "out_bytes": 2**52 + 1,
        "response_time_seconds": 1.2345,
        "response_time_buckets": counts,
        "configured_weight": 3,
        "static_weight": 1.5,
        "weight": 1.25,
        "effective_weight": 2.5,
        "drain": False,
    }
    return {
        "instance": "edge-1",
        "start": 1_767_225_500_123,
        "weights": {"source": "learned", "epoch": 6, "generation": 41},
        "workers": [],
        "upstreams": [{"upstream": "compose_backend", "waiting": 7, "peers": [busy, idle]}],
        "addresses": [
            {"address": "127.0.0.1:9001", "rate": 1.9, "slots": 2, "error_ratio": 0.25},
            {"address": "127.0.0.1:9002", "rate": 1, "slots": 0, "error_ratio": 0},
        ],
    }


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs status_checks.lua."""
    with serving(tmp_path_factory.mktemp("status"), LUA / "serve_checks.lua") as port:
        yield port


def refuse(constant: str) -> Any:
    """For json.loads: NaN and infinity are no JSON."""
    raise AssertionError(constant)


def make(port: int, document: str, **request: Any) -> Any:
    """The document that Lua makes of a snapshot."""
    request = {"document": document, "snapshot": snapshot(), "page": PAGE} | request
    text = post_json(port, "/status/make", request)["text"]
    return json.loads(text, parse_constant=refuse)


def lacking(real: Any, ours: Any, where: str = "") -> list[str]:
    """The keys and types that `real` has and `ours` lacks."""
    if isinstance(real, dict):
        if not isinstance(ours, dict):
            return [f"{where} is no object"]
        found = [f"{where}.{key}" for key in real if key not in ours]
        return found + [
            line
            for key in real
            if key in ours
            for line in lacking(real[key], ours[key], f"{where}.{key}")
        ]
    if isinstance(real, list):
        if not isinstance(ours, list):
            return [f"{where} is no array"]
        return lacking(real[0], ours[0], f"{where}[0]") if real and ours else []
    kinds = (bool,) if isinstance(real, bool) else (str,) if isinstance(real, str) else (int,)
    return [] if type(ours) in kinds else [f"{where} is {ours!r}, not {kinds}"]


def test_the_vts_document_has_the_shape_of_the_module_s(port: int) -> None:
    """Every key of a real answer is there, with the same type: object, array, whole number."""
    real = json.loads(REAL.read_text())
    ours = make(port, "vts")
    real["upstreamZones"] = {"compose_backend": real["upstreamZones"]["compose_backend"]}
    real["serverZones"] = {}
    assert lacking(real, ours) == []


def test_the_vts_document_says_what_was_counted(port: int) -> None:
    """Counters, milliseconds and buckets are those of the snapshot."""
    document = make(port, "vts")
    assert document["loadMsec"] == 1_767_225_500_123
    assert document["nowMsec"] == 1_767_225_600_250
    assert document["sharedZones"]["usedSize"] == 388608
    busy, idle = document["upstreamZones"]["compose_backend"]
    assert busy["server"] == "127.0.0.1:9001"
    assert busy["requestCounter"] == 100
    assert busy["outBytes"] == 2**52 + 1
    assert busy["responses"] == {"1xx": 0, "2xx": 97, "3xx": 0, "4xx": 2, "5xx": 1}
    assert busy["responseMsecCounter"] == busy["requestMsecCounter"] == 1235
    assert busy["responseMsec"] == 12
    assert busy["weight"] == 3
    assert (busy["down"], idle["down"]) == (False, True)
    assert busy["inFlight"] == 3
    assert busy["learnedWeight"] == 1.25
    assert idle["responseMsec"] == 0


def test_the_vts_document_says_who_is_ejected_and_why(port: int) -> None:
    """A peer that is left out is down; one that is ejected but used says why, and is not."""
    shown = snapshot()
    busy, idle = shown["upstreams"][0]["peers"]
    busy |= {"ejected": True, "ejection": "stall"}
    idle |= {"drain": False, "ejected": False, "ejection": "errors"}
    peers = make(port, "vts", snapshot=shown)["upstreamZones"]["compose_backend"]
    assert [(p["down"], p["ejection"]) for p in peers] == [(True, "stall"), (False, "errors")]


def test_the_vts_document_says_what_the_hook_estimates(port: int) -> None:
    """Rate, slots and errors of each peer, who waits by class, and which weights are in use."""
    document = make(port, "vts")
    busy, idle = document["upstreamZones"]["compose_backend"]
    assert (busy["rate"], busy["slots"], busy["errorRatio"]) == (1.9, 2, 0.25)
    assert (idle["rate"], idle["slots"], idle["errorRatio"]) == (1, 0, 0)
    own = {"source": "learned", "epoch": 6, "generation": 41}
    assert document["trimtab"] == own | {"waiting": {"compose_backend": 7}}


def test_buckets_are_cumulative_at_whole_milliseconds(port: int) -> None:
    """The bounds are 1, 2, 4 … 65536 ms; each counts all that took no longer."""
    busy = make(port, "vts")["upstreamZones"]["compose_backend"][0]
    buckets = dict(
        zip(busy["responseBuckets"]["msecs"], busy["responseBuckets"]["counters"], strict=True)
    )
    assert list(buckets) == [2**n for n in range(17)]
    # Bucket b of the counters ends at 0.5 ms * 2^(b/2): b = 2 at 1 ms, b = 10 at 16 ms.
    assert [buckets[ms] for ms in (1, 2, 8, 16, 65536)] == [3, 3, 3, 98, 98]


def test_numbers_that_are_none_do_not_break_the_document(port: int) -> None:
    """NaN and infinity become null, and a gauge below zero 0: still a document that parses."""
    busy = make(port, "vts", broken=True)["upstreamZones"]["compose_backend"][0]
    assert busy["effectiveWeight"] is None
    assert busy["learnedWeight"] is None
    assert busy["inFlight"] == 0


def test_trimtab_s_own_document_is_the_snapshot_and_its_place(port: int) -> None:
    """Everything in the snapshot is there, empty lists as lists."""
    document = make(port, "document")
    assert document["format"] == 1
    assert document["host_name"] == "host"
    assert document["now_seconds"] == 1_767_225_600.25
    assert document["workers"] == []
    assert document["upstreams"][0]["peers"][0]["response_time_seconds"] == 1.2345
    assert document["weights"]["source"] == "learned"


def test_json_holds_every_value(port: int) -> None:
    """Empty arrays and objects differ, numbers come back as they were, text is escaped."""
    values = post_json(port, "/status/values", {})
    assert values["empty_object"] == "{}"
    assert values["empty_array"] == "[]"
    assert values["nested"] == '{"a":[],"b":[{},[1]]}'
    assert values["nan"] == "[null,null,null]"
    numbers = json.loads(values["numbers"])
    expected = [0, 0, 1, -5, 0.1, 1 / 3, 1e300, 1e-7, 2**53 - 1, 123456789012345678.0]
    assert numbers == expected
    assert str(2**53 - 1) in values["numbers"]
    assert json.loads(values["text"]) == 'a"b\\c/\n\x01\x7fÃ¤'
    assert values["others"] == "[true,false,null]"


@pytest.fixture(scope="module")
def group() -> Iterator[Peers]:
    """Two peers."""
    with peers(Peer(), Peer()) as group:
        yield group


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, group: Peers) -> Iterator[Config]:
    """The configuration of a running nginx, rendered as for users, after 60 requests."""
    directory = tmp_path_factory.mktemp("served")
    checked = configuration(directory, peers=group.addresses)
    with NginxProcess.rendered(directory, checked):
        _, port = split_address(checked.nginx.listen[0])
        done = asyncio.run(load(port, ["/read", "/write", "/read"], concurrency=3, count=60))
        assert done.statuses == {200: 60}
        until(lambda: sum(p["requests"] for p in all_peers(checked)) == 60)
        yield checked


def page(checked: config.Config, path: str) -> bytes:
    """The body of a page of the internal server."""
    _, port = split_address(checked.nginx.internal_listen)
    status, body = get(port, path)
    assert status == 200, body
    return body


def all_peers(checked: config.Config) -> list[dict[str, Any]]:
    """The peers of all upstreams in /trimtab/status."""
    document = json.loads(page(checked, "/trimtab/status"))
    return [peer for upstream in document["upstreams"] for peer in upstream["peers"]]


def test_a_vts_reader_reads_the_live_page(served: Config, group: Peers) -> None:
    """Trimtab's own reader of nginx-module-vts takes the page that the hook serves."""
    body = page(served, "/status/format/json")
    assert (
        lacking(
            json.loads(REAL.read_text()) | {"serverZones": {}, "upstreamZones": {}},
            json.loads(body),
        )
        == []
    )
    status = vts.parse(body)
    assert set(status.groups) == {"reads", "writes"}
    assert [s.server for s in status.groups["reads"]] == group.addresses
    assert sum(s.numbers["requestCounter"] for s in status.groups["reads"]) == 40
    assert sum(s.responses["2xx"] for s in status.groups["writes"]) == 20
    assert status.connections["accepted"] >= 3
    assert status.connections["requests"] >= 60


def test_the_live_status_page_shows_the_hook(served: Config) -> None:
    """/trimtab/status has instance, worker, weights, connections and finite numbers."""
    document = json.loads(page(served, "/trimtab/status"), parse_constant=refuse)
    assert document["instance"] == "test"
    assert document["nginx_version"].count(".") == 2
    assert len(document["workers"]) == 1
    assert document["weights"]["source"] == "static"
    assert (document["weights"]["generation"], document["weights"]["epoch"]) == (0, 0)
    assert document["connections"]["active"] >= 1
    assert [u["waiting"] for u in document["upstreams"]] == [0, 0]
    addresses = {a["address"]: a for a in document["addresses"]}
    assert sum(sum(a["completions_at"]) for a in addresses.values()) == 60
    for address in addresses.values():
        assert address["in_flight"] == address["work_seconds"] == address["claims"] == 0
        assert address["rate"] > 0
        assert (address["slots"], address["error_ratio"]) == (2, 0)
    for peer in all_peers(served):
        assert math.isfinite(peer["effective_weight"])
        assert sum(peer["response_time_buckets"]) == peer["requests"]
        assert peer["configured_weight"] == 1


def test_the_vts_page_has_the_estimates_of_the_hook_s_own(served: Config) -> None:
    """What both pages show of a peer is the same."""
    document = json.loads(page(served, "/trimtab/status"))
    addresses = {a["address"]: a for a in document["addresses"]}
    vts_page = json.loads(page(served, "/status/format/json"))
    for zone in vts_page["upstreamZones"].values():
        for peer in zone:
            address = addresses[peer["server"]]
            assert (peer["slots"], peer["errorRatio"]) == (2, 0)
            assert peer["rate"] == pytest.approx(address["rate"], rel=0.2)
    assert vts_page["trimtab"]["waiting"] == {"reads": 0, "writes": 0}
    assert vts_page["trimtab"]["generation"] == document["weights"]["generation"]


def test_the_pages_are_for_loopback_alone(served: Config) -> None:
    """From another address than 127.0.0.1 it is 403, and the clients' port has no such page."""
    _, internal = split_address(served.nginx.internal_listen)
    _, port = split_address(served.nginx.listen[0])
    for path in ("/trimtab/status", "/status/format/json"):
        connection = http.client.HTTPConnection(
            "127.0.0.1", internal, timeout=5, source_address=("127.0.0.2", 0)
        )
        connection.request("GET", path)
        assert connection.getresponse().status == 403
        connection.close()
        assert get(port, path)[0] == 404
