"""The store: what readers get, what is kept, what failures leave behind."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.demo import build, store
from trimtab.demo.posts import Post
from trimtab.demo.store import PASSWORD_COST, TIMELINE_POSTS, Store, StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty network with users 1 to 9, nobody following anybody."""
    path = tmp_path / "social.db"
    build.ensure(path, users=0).release()
    with sqlite3.connect(path) as database:
        database.executemany(
            "INSERT INTO users VALUES (?, ?, 'f', 'l', '')",
            ((i, f"username_{i}") for i in range(1, 10)),
        )
    database.close()
    return path


@pytest.fixture
def network(path: Path) -> Iterator[Store]:
    """A store over it."""
    store = Store(path, busy_seconds=0.0)
    yield store
    store.close()


def compose(network: Store, user_id: int, text: str) -> int:
    """A plain post."""
    return network.compose(
        Post(user_id=user_id, username=f"username_{user_id}", req_id=1, text=text)
    )


def home(network: Store, user_id: int, start: int = 0, stop: int = 100) -> list[Any]:
    """Texts of a home timeline."""
    return [post["text"] for post in json.loads(network.home_timeline(user_id, start, stop))]


def own(network: Store, user_id: int, start: int = 0, stop: int = 100) -> list[Any]:
    """Texts of a user's timeline."""
    return [post["text"] for post in json.loads(network.user_timeline(user_id, start, stop))]


def query(path: Path, sql: str) -> Any:
    """One value, read by another connection."""
    database = sqlite3.connect(path)
    try:
        return database.execute(sql).fetchone()[0]
    finally:
        database.close()


def test_fan_out(network: Store) -> None:
    """A post reaches the author's timeline and the homes of followers and mentioned, no other."""
    network.follow(2, 1)
    network.follow(3, 1)

    compose(network, 1, "hi @username_3 @username_4 @nobody")

    texts = ["hi @username_3 @username_4 @nobody"]
    assert own(network, 1) == texts
    assert [home(network, u) for u in (1, 2, 3, 4, 5)] == [[], texts, texts, texts, []]
    (post,) = json.loads(network.home_timeline(2, 0, 1))
    assert [m["user_id"] for m in post["user_mentions"]] == ["3", "4"]


def test_unfollow(network: Store) -> None:
    """After unfollowing, new posts stay away and old ones stay."""
    network.follow(2, 1)
    compose(network, 1, "old")

    network.unfollow(2, 1)
    network.unfollow(2, 1)
    compose(network, 1, "new")

    assert home(network, 2) == ["old"]


def test_following_twice(network: Store) -> None:
    """Following twice brings each post once."""
    network.follow(2, 1)
    network.follow(2, 1)
    compose(network, 1, "once")

    assert home(network, 2) == ["once"]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 2, ["p4", "p3"]),
        (1, 4, ["p3", "p2", "p1"]),
        (3, 100, ["p1", "p0"]),
        (5, 10, []),
        (2, 2, []),
        (3, 1, []),
        (-1, 3, []),
        (0, 2**31 - 1, ["p4", "p3", "p2", "p1", "p0"]),
    ],
)
def test_ranges(network: Store, start: int, stop: int, expected: list[str]) -> None:
    """Posts number start up to, not including, stop, counted from the newest."""
    network.follow(2, 1)
    for i in range(5):
        compose(network, 1, f"p{i}")

    assert own(network, 1, start, stop) == expected
    assert home(network, 2, start, stop) == expected


def test_unregistered_author(network: Store) -> None:
    """As in the original, the author of a post need not be registered."""
    compose(network, 2**62, "hello")

    assert own(network, 2**62) == ["hello"]


def test_register(network: Store, path: Path) -> None:
    """A password is kept as a salted hash, and equal passwords are kept differently."""
    network.register(10, "username_10", "first", "last", "secret")
    network.register(11, "username_11", "first", "last", "secret")

    kept = query(path, "SELECT password FROM users WHERE user_id = 10")
    assert "secret" not in kept
    kind, cost, salt, digest = kept.split("$")
    assert (kind, int(cost), len(salt)) == ("scrypt", PASSWORD_COST, 32)
    again = hashlib.scrypt(b"secret", salt=bytes.fromhex(salt), n=int(cost), r=8, p=1, dklen=32)
    assert digest == again.hex()
    assert kept != query(path, "SELECT password FROM users WHERE user_id = 11")
    assert network.user_id("username_11") == 11


def test_refusals_say_why(network: Store) -> None:
    """A taken name or id and an unknown user are refused with the reason."""
    with pytest.raises(StoreError, match="user username_3 is already registered"):
        network.register(77, "username_3", "f", "l", "p")
    with pytest.raises(StoreError, match="user id 3 is already registered"):
        network.register(3, "somebody", "f", "l", "p")
    with pytest.raises(StoreError, match="user id 99 is not registered"):
        network.follow(1, 99)
    with pytest.raises(StoreError, match="user id 98 is not registered"):
        network.unfollow(98, 1)
    with pytest.raises(StoreError, match="user nobody is not registered"):
        network.user_id("nobody")


def test_timelines_are_trimmed(network: Store, path: Path) -> None:
    """A home timeline keeps its newest posts and little more; a reader sees them all."""
    network.follow(2, 1)

    for i in range(TIMELINE_POSTS + 100):
        compose(network, 1, f"p{i}")

    # One user is trimmed at each compose, and here there is only one with a home timeline; every
    # other turn starts over.
    assert query(path, "SELECT count(*) FROM home") <= TIMELINE_POSTS + 2
    texts = home(network, 2, 0, 10_000)
    assert texts == [f"p{TIMELINE_POSTS + 99 - i}" for i in range(TIMELINE_POSTS)]


def test_every_timeline_gets_its_turn(
    network: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many followers all home timelines stay near the limit."""
    monkeypatch.setattr(store, "TIMELINE_POSTS", 10)
    for user in range(2, 10):
        network.follow(user, 1)

    for i in range(100):
        compose(network, 1, f"p{i}")

    # Eight timelines and one turn to start over: none waits longer than nine composes.
    longest = query(path, "SELECT max(n) FROM (SELECT count(*) n FROM home GROUP BY user_id)")
    assert 10 <= longest <= 10 + 9


def test_old_posts_go(network: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps a fixed number of posts, and no timeline shows a post that is gone."""
    monkeypatch.setattr(store, "RETAINED_POSTS", 20)
    network.follow(2, 1)

    for i in range(50):
        compose(network, 1, f"p{i}")

    assert query(path, "SELECT count(*) FROM posts") == 20
    assert home(network, 2) == own(network, 1) == [f"p{49 - i}" for i in range(20)]


def test_locked(network: Store, path: Path) -> None:
    """While another process holds the write lock, writing fails with the reason and reading
    goes on; afterwards writing works again."""
    compose(network, 1, "before")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="the database failed: database is locked"):
        compose(network, 1, "refused")

    assert own(network, 1) == ["before"]
    other.close()
    compose(network, 1, "after")
    assert own(network, 1) == ["after", "before"]


def test_full_disk(network: Store) -> None:
    """When no page can be added, the post fails with the reason and leaves no trace."""
    network.follow(2, 1)
    compose(network, 1, "before")
    pages = network._database.execute("PRAGMA page_count").fetchone()[0]
    network._database.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreError, match="the database failed: database or disk is full"):
        compose(network, 1, "x" * 16_000)
    kept = own(network, 1)

    network._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    compose(network, 1, "after")
    assert own(network, 1) == ["after", *kept]
    assert home(network, 2) == own(network, 1)
    assert kept[-1] == "before"
