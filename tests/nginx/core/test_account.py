"""What nginx's structs say of a request, read where nginx keeps it, and by variables elsewhere."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import hooked, until
from nginx.wire.harness import serving
from peers import Peer, peers
from trimtab.actuators.nginx_binary import find

# More than account.lua compares with the variables.
REQUESTS = 130


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs account_checks.lua."""
    with serving(
        tmp_path_factory.mktemp("account"), Path(__file__).parent / "account_checks.lua"
    ) as port:
        yield port


def read(port: int, shift: int) -> dict[str, Any]:
    """The answer to a POST of 1000 bytes where variables say `shift` more."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", f"/?shift={shift}", body=b"x" * 1000)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert answer["own"] > 0
    return answer


def test_a_known_nginx_is_not_asked_for_the_length(port: int) -> None:
    """Debian 12's keeps it where account.lua looks; others are asked by variable."""
    answer = read(port, 0)
    assert answer["length"] == answer["own"]
    assert answer["asked"] == (0 if find("nginx").version[:2] == (1, 22) else 1)


def test_where_struct_and_variable_differ_the_variable_counts(port: int) -> None:
    """A layout that is not as expected is not read."""
    answer = read(port, 7)
    assert (answer["length"], answer["asked"]) == (answer["own"] + 7, 1)


def test_lengths_are_right_when_variables_are_no_longer_compared(tmp_path: Path) -> None:
    """Bytes in are those that were sent, and an answer shorter than announced is a failure, of
    the first requests as of later ones."""
    with (
        peers(Peer()) as group,
        hooked(tmp_path, {"a": [{"address": a} for a in group.addresses]}) as node,
    ):
        heads = []
        for number in range(1, REQUESTS + 1):
            before = node.total("a", "in_bytes") if number in (1, REQUESTS) else 0
            assert node.get("/a", method="POST", body=b"x" * number)[0] == 200
            if number in (1, REQUESTS):
                until(node.is_at_rest)
                heads.append(node.total("a", "in_bytes") - before - number)
        # The head's Content-Length has two digits more.
        assert heads[1] == heads[0] + 2
        for failures in (1, 2):
            with pytest.raises(http.client.IncompleteRead):
                node.get("/a", X_Fault="half")
            until(node.is_at_rest)
            assert sum(p["failures"] for p in node.pairs("a").values()) == failures
        assert "in another form" not in node.log
