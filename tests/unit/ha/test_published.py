"""Published weights come back as they were, or not at all."""

import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest

import serving
from trimtab import config
from trimtab.envelope import pack, unpack
from trimtab.errors import ConfigError, DependencyError, StateError
from trimtab.ha import published
from trimtab.journal import Entry, Journal

WEIGHTS = replace(serving.weights(serving.configuration(), generation=7), reason="estimates")


def test_weights_come_back() -> None:
    """What was written is read again, number for number."""
    assert published.read(published.write(WEIGHTS)) == WEIGHTS


def test_weights_of_an_older_version_queue() -> None:
    """Version 0.1 did not say which servers share their slots: they are taken for queues."""
    body = unpack(published.write(WEIGHTS), "")
    for upstream in body["upstreams"].values():
        upstream["peers"] = {a: row[:5] for a, row in upstream["peers"].items()}
    assert published.read(pack(body, "")) == WEIGHTS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("generation",), 0),
        (("generation",), 2**60),
        (("epoch",), True),
        (("upstreams",), {}),
        (("upstreams", "u0", "peers"), {}),
        (("upstreams", "u0", "deadline_seconds"), -1.0),
        (("upstreams", "u0", "peers", "10.0.0.1:80"), [0.0, 1.0, 1.0, None, False]),
        (("upstreams", "u0", "peers", "10.0.0.1:80"), [1.0, 1.0, 1e9, None, False]),
        (("upstreams", "u0", "peers", "10.0.0.1:80"), [1.0, 1.0, 1.0, None]),
        (("upstreams", "u0", "peers", "10.0.0.1:80"), [1.0, 1.0, 1.0, None, 1]),
        (("upstreams", "u0", "peers", "10.0.0.1:80"), [1.0, 1.0, 1.0, None, False, 1]),
        (("upstreams", "u0", "peers", "a\nb"), [1.0, 1.0, 1.0, None, False]),
    ],
)
def test_weights_out_of_bounds_are_refused(path: tuple[str, ...], value: Any) -> None:
    """A checksum that fits does not help numbers and names that cannot be."""
    body = unpack(published.write(WEIGHTS), "")
    at = body
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(StateError, match="the weights in Redis"):
        published.read(pack(body, ""))


def test_damage_is_refused() -> None:
    """One changed digit, or a missing end, and the whole is refused."""
    raw = published.write(WEIGHTS)
    with pytest.raises(StateError, match="checksum"):
        published.read(raw.replace(b'"generation": 7', b'"generation": 8'))
    with pytest.raises(StateError, match="truncated"):
        published.read(raw[:-10])


def test_what_is_not_finite_is_not_written() -> None:
    """NaN never gets into an envelope."""
    with pytest.raises(StateError, match="not finite"):
        pack({"x": math.nan}, "it")


def test_the_journal_comes_back() -> None:
    """Entries of before stand before those of now, and count nothing."""
    before, now = Journal(), Journal()
    entry = Entry(time=1.0, generation=3, state=None, action="neutral", reason="x", kind="operator")
    before.add(entry)
    now.add(replace(entry, time=2.0))
    now.restore(Journal.entries_of(json.loads(json.dumps(before.to_state()))))
    assert [e.time for e in now.entries()] == [1.0, 2.0]
    assert now.counts()["operator"] == 1
    for wrong in ([{"kind": "x"}], [{**before.to_state()[0], "time": "x"}]):
        with pytest.raises((TypeError, ValueError)):
            Journal.entries_of(wrong)


UPSTREAM = '[[upstream]]\nname = "a"\nlocation = "/"\n[[upstream.peer]]\naddress = "127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[state]\nurl = "http://x"\n', "url in .state. is"),
        ('[state]\nurl = "redis://127.0.0.1:1/0"\nlease_seconds = 5\n', "at most a third of"),
        ('[state]\nurl = "redis://127.0.0.1:1/0"\n[nginx]\nmode = "stock"\n', 'for mode = "lua"'),
    ],
)
def test_contradictions_are_refused(text: str, told: str) -> None:
    """A URL of another kind, a lease as long as weights live, stock mode."""
    with pytest.raises(ConfigError, match=told):
        config.parse(text + UPSTREAM)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package redis the error says what installs it."""
    for name in [n for n in sys.modules if n.startswith(("redis", "trimtab.ha."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(DependencyError, match=r"pip install 'trimtab\[redis\]'"):
        import trimtab.ha.redis_store  # noqa: F401
