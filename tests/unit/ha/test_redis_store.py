"""What is shared in Redis: one leader at a time, and nobody else's writes."""

from collections.abc import Iterator

import pytest

import certificates
import redis_server
from trimtab.config import State
from trimtab.errors import ConfigError
from trimtab.ha.lease import Lease
from trimtab.ha.redis_store import AwayError, FencedError, RedisStore

LEASE = 30.0  # never over within a test: what ends is deleted


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Redis]:
    """One for all tests here."""
    with redis_server.running() as running:
        yield running


@pytest.fixture
def pair(server: redis_server.Redis) -> Iterator[tuple[RedisStore, RedisStore]]:
    """Two servers that share an empty Redis."""
    with server.client() as client:
        client.flushall()
    config = State(url=server.url, lease_seconds=LEASE)
    stores = RedisStore(config, "aa one 127.0.0.1:1"), RedisStore(config, "bb two 127.0.0.1:2")
    yield stores
    for store in stores:
        store.close()


def expire(server: redis_server.Redis) -> None:
    """Let the lease be over."""
    with server.client() as client:
        client.delete("trimtab:lease")


def test_one_leads_and_tokens_only_grow(server: redis_server.Redis, pair: tuple) -> None:
    """The lease is one's until it is over; each new one has a larger token, also after the loss of
    Redis's data, as far as the servers remember."""
    one, two = pair
    assert one.acquire(LEASE, 0)[0]
    taken, found = two.acquire(LEASE, 0)
    assert not taken
    assert (found.name, found.token) == ("one", 1)
    expire(server)
    taken, second = two.acquire(LEASE, 0)
    assert taken
    assert second.token == 2
    with server.client() as client:
        client.flushall()
    assert one.acquire(LEASE, second.token)[1].token == 3


def test_a_leader_of_before_writes_nothing(server: redis_server.Redis, pair: tuple) -> None:
    """Once another one leads, no operation of the former leader changes anything."""
    one, two = pair
    _, old = one.acquire(LEASE, 0)
    one.begin(old, 1000, (0, 0))
    one.put_weights(old, "1000:1", b"first", 10)
    expire(server)
    _, new = two.acquire(LEASE, 0)
    two.put_weights(new, "1000:2", b"second", 10)
    two.put_state(new, "2:1", b"learned")
    two.mail({"nginx": (1, 1, b"report")}, 10)
    for refused in (
        lambda: one.renew(old, LEASE, 10),
        lambda: one.put_weights(old, "1000:3", b"stale", 10),
        lambda: one.put_state(old, "1:9", b"stale"),
        lambda: one.next_generation(old),
        lambda: one.begin(old, 9999, (9999, 9)),
        lambda: list(one.take(old)),
        lambda: one.release(old),
    ):
        with pytest.raises(FencedError):
            refused()
    look = one.look("", "")
    assert (look.weights, look.state, look.lease) == (b"second", b"learned", new)
    assert list(two.take(new)) == [b"report"]


def test_generations_never_go_back(server: redis_server.Redis, pair: tuple) -> None:
    """A leader goes on behind the one before, and behind what it knows when Redis knows less."""
    one, two = pair
    _, claim = one.acquire(LEASE, 0)
    assert one.begin(claim, 1000, (0, 0)) == (1000, False)
    assert [one.next_generation(claim) for _ in range(2)] == [1, 2]
    expire(server)
    _, claim = two.acquire(LEASE, 0)
    assert two.begin(claim, 2000, (1000, 2)) == (1000, False)
    assert two.next_generation(claim) == 3
    with server.client() as client:
        client.flushall()
    _, claim = one.acquire(LEASE, 0)
    assert one.begin(claim, 3000, (1000, 2)) == (1000, True)
    # The other one may have given out some that this one does not know.
    assert one.next_generation(claim) == 1003


def test_bodies_come_once(pair: tuple) -> None:
    """Who has a body already is told its id alone."""
    one, two = pair
    _, claim = one.acquire(LEASE, 0)
    one.put_weights(claim, "5:1", b"w", 10)
    first = two.look("", "")
    assert (first.weights_id, first.weights, first.state_id, first.state) == ("5:1", b"w", "", None)
    assert 9 < first.left_seconds <= 10
    again = two.look("5:1", "")
    assert (again.weights_id, again.weights) == ("5:1", None)


def test_the_newest_report_stands(server: redis_server.Redis, pair: tuple) -> None:
    """Of one balancer's reports the latest is kept, each is taken once, damaged ones never."""
    one, two = pair
    _, claim = one.acquire(LEASE, 0)
    two.mail({"a": (7, 10, b"tenth"), "b": (1, 1, b"other")}, 10)
    two.mail({"a": (7, 9, b"ninth")}, 10)
    with server.client() as client:
        client.hset("trimtab:reports", "c", b"0" * 80)
        assert client.pttl("trimtab:reports") > 0
    assert sorted(one.take(claim)) == [b"other", b"tenth"]
    assert list(one.take(claim)) == []


def test_reports_are_bounded(pair: tuple) -> None:
    """More balancers than there is room for are left out and counted."""
    one, _ = pair
    many = {f"n{n}": (1, 1, b"") for n in range(4100)}
    assert one.mail(many, 10) == 4


def test_who_is_paused_leads_no_more() -> None:
    """A leader stops at 0.9 of its lease by itself, counted from when it asked."""
    now = [100.0]

    class Redis:
        def acquire(self, _seconds: float, _floor: int) -> tuple:
            now[0] += 1.0  # the answer takes a second
            return True, claim

    claim = RedisStoreClaim
    lease = Lease(Redis(), 10.0, 30.0, clock=lambda: now[0])  # type: ignore[arg-type]
    lease.tend()
    now[0] = 108.9
    assert lease.claim is claim
    now[0] = 109.1
    assert lease.claim is None


class RedisStoreClaim:
    """A claim."""

    token = 1


def test_away_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that is not there is one message, however often it is asked, without a password."""
    config = State(url="redis://:secret@127.0.0.1:1/0", lease_seconds=3)
    store = RedisStore(config, "aa one x")
    with pytest.raises(AwayError, match=r"redis://127.0.0.1:1/0 does not answer"):
        store.look("", "")
    lease = Lease(store, 3.0, 10.0)
    with caplog.at_level("INFO"):
        lease.tend()
        lease.tend()
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    store.close()


def test_password_file_must_be_readable(tmp_path) -> None:
    """A missing password file is a ConfigError with its name."""
    with pytest.raises(ConfigError, match=r"none in \[state\] cannot be read"):
        RedisStore(State(url="redis://127.0.0.1:1/0", password_file=tmp_path / "none"), "a b c")


def test_tls_and_a_password(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """rediss:// checks the server's certificate against the authorities of ssl_ca_certs, and the
    password comes from its file; another authority or password is said, and gets nothing."""
    file = tmp_path / "password"
    file.write_text("open sesame\n")
    other = certificates.authority(tmp_path, "other")
    with redis_server.running_with_tls(tmp_path, "open sesame") as address:
        url = f"rediss://{address}/0?ssl_ca_certs={tmp_path}/authority.pem"
        store = RedisStore(State(url=url, password_file=file, lease_seconds=LEASE), "aa one x")
        assert store.acquire(LEASE, 0)[0]
        store.close()
        wrong = url.replace(f"{tmp_path}/authority.pem", str(other.certificate))
        store = RedisStore(State(url=wrong, password_file=file, lease_seconds=LEASE), "bb two x")
        with pytest.raises(AwayError, match=r"(?i)certificate"):
            store.look("", "")
        store.close()
        file.write_text("guess\n")
        store = RedisStore(State(url=url, password_file=file, lease_seconds=LEASE), "cc three x")
        with pytest.raises(AwayError, match=r"(?i)password"):
            store.look("", "")
        assert "guess" not in caplog.text
        store.close()
