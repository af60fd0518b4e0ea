"""Targets, and the schedule as bytes."""

import socket

import numpy as np
import pytest

from trimtab.errors import ConfigError
from trimtab.load.plan import plan, probe, target
from trimtab.load.schedule import ClassLoad, build
from trimtab.load.workloads import Request, home


def test_a_url_names_a_target() -> None:
    """Host, port and Host header come from the URL, the port with its default."""
    found = target("http://127.0.0.1:18080/a?b=c")
    assert (found.host, found.port, found.authority, found.path) == (
        "127.0.0.1", 18080, "127.0.0.1:18080", "/a?b=c",
    )  # fmt: skip
    assert target("http://example.org").port == 80
    assert target("http://[::1]:8080/").host == "::1"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80", "ftp://x/", "https://x/", "http://", "http://x:99999/", "http://x:0/",
        "http://u:p@x/", "http://x/a b", "http://x/\r\nX: y", "http://x/#f", "",
    ],
)  # fmt: skip
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    """Anything but http://HOST[:PORT][/PATH] is a ConfigError that quotes it."""
    with pytest.raises(ConfigError):
        target(url)


def test_a_target_nobody_listens_on_is_refused() -> None:
    """Before anything is sent, one connection shows that somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = target(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        with pytest.raises(ConfigError, match="refused; nothing was sent"):
            probe(where)
        listener.listen()
        probe(where)


def test_each_row_points_to_its_own_request() -> None:
    """Rows of a plan carry the bytes of their class's variant, in the schedule's order."""
    schedule = build(
        [
            ClassLoad(name="a", rate_per_second=50, request=Request("/a")),
            ClassLoad(name="h", rate_per_second=50, request=home),
        ],
        seconds=5,
    )
    found = plan(schedule, target("http://h:1/"))
    assert len(found.payloads) == 1025
    for row in range(len(schedule)):
        number = schedule.class_index[row]
        request = schedule.requests[number][schedule.variant[row]]
        assert found.payloads[found.payload[row]] == request.parts("h:1")


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_parts_together_are_the_whole(processes: int) -> None:
    """However many processes share a plan, each request belongs to one of them, unchanged."""
    schedule = build([ClassLoad(name="h", rate_per_second=99, request=home)], seconds=3)
    whole = plan(schedule, target("http://h/"))
    parts = [whole.part(np.arange(p, len(whole), processes)) for p in range(processes)]
    assert sum(map(len, parts)) == len(whole)
    for p, part in enumerate(parts):
        assert np.array_equal(part.times, whole.times[p::processes])
        assert np.array_equal(part.payload, whole.payload[p::processes])
