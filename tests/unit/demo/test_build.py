"""Making the database: once, whole, or with a message."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from trimtab.demo import build
from trimtab.demo.graph import friendships
from trimtab.demo.store import Store
from trimtab.errors import ConfigError, StateError


def test_seeded_network(tmp_path: Path) -> None:
    """Each friendship is followed both ways, and timelines hold what the graph says."""
    path = tmp_path / "new" / "social.db"

    build.ensure(path, seed=3, users=60).release()

    with closing(sqlite3.connect(path)) as database:
        follows = set(database.execute("SELECT follower_id, followee_id FROM follows"))
        posts = dict(database.execute("SELECT post_id, author_id FROM posts"))
        documents = dict(database.execute("SELECT post_id, document FROM posts"))
        home = set(database.execute("SELECT user_id, post_id FROM home"))
    pairs = friendships(3, 60)
    assert follows == {pair for a, b in pairs for pair in ((a, b), (b, a))}
    followers: dict[int, set[int]] = {}
    for follower, followee in follows:
        followers.setdefault(followee, set()).add(follower)
    expected = set()
    for post_id, author in posts.items():
        post = json.loads(documents[post_id])
        mentioned = {int(m["user_id"]) for m in post["user_mentions"]}
        expected |= {(user, post_id) for user in followers[author] | mentioned}
    newest = {
        (user, post_id)
        for user in {u for u, _ in expected}
        for post_id in sorted((p for u, p in expected if u == user), reverse=True)[:200]
    }
    assert home == newest
    assert len(posts) > 60


def test_whole_network_serves_everybody(tmp_path: Path) -> None:
    """In the full network every one of the 962 users has a home timeline from the start."""
    path = tmp_path / "social.db"
    build.ensure(path).release()

    with closing(Store(path)) as store:
        assert all(store.home_timeline(user, 0, 10) != "[]" for user in range(1, 963))
        assert store.user_id("username_962") == 962


def test_one_builds_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight that start at once build one database, and none waits for those that run already."""
    built = []
    original = build._build

    def counted(path: Path, seed: int, users: int) -> None:
        built.append(path)
        original(path, seed, users)

    monkeypatch.setattr(build, "_build", counted)
    path = tmp_path / "social.db"

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: build.ensure(path, users=50), range(8)))

    for claim in claims:
        claim.release()
    assert built == [path]


def test_leftovers_of_a_crash(tmp_path: Path) -> None:
    """Half a database and the logs of a deleted one do no harm."""
    path = tmp_path / "social.db"
    for end in (".building", ".building-wal", ".building-shm", "-wal", "-shm"):
        path.with_name(path.name + end).write_bytes(b"rubbish" * 1000)

    build.ensure(path, users=10).release()

    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM users").fetchone() == (10,)
    assert not path.with_name("social.db.building").exists()


def test_database_is_kept(tmp_path: Path) -> None:
    """A database that is there is used as it is; `fresh` builds it anew."""
    path = tmp_path / "social.db"
    build.ensure(path, users=10).release()
    build.ensure(path, users=20).release()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM users").fetchone() == (10,)

    build.ensure(path, users=20, fresh=True).release()

    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM users").fetchone() == (20,)


def test_fresh_does_not_pull_the_database_away(tmp_path: Path) -> None:
    """A database in use is not deleted."""
    path = tmp_path / "social.db"
    claim = build.ensure(path, users=10)

    with pytest.raises(ConfigError, match=r"social\.db is in use by another demo"):
        build.ensure(path, fresh=True)

    claim.release()
    assert path.exists()


def test_no_database(tmp_path: Path) -> None:
    """A file that is something else is named, and kept."""
    path = tmp_path / "social.db"
    path.write_text("my thesis " * 100)

    with pytest.raises(StateError, match=r"social\.db is no database of the demo"):
        build.ensure(path)

    assert path.read_text().startswith("my thesis")


def test_other_version(tmp_path: Path) -> None:
    """A database of another version is named, with the way out."""
    path = tmp_path / "social.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 7")

    with pytest.raises(StateError, match=r"of version 7 in mode delete.*--fresh"):
        build.ensure(path)


def test_no_directory(tmp_path: Path) -> None:
    """A path that cannot be is named."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StateError, match=r"cannot make .*social\.db\.building\.lock"):
        build.ensure(tmp_path / "file" / "social.db")
