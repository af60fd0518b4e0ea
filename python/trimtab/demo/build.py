"""Making the shared database, once, however many nodes start at the same time.

Two lock files beside the database, as two questions are settled. Who builds: `.building.lock`,
held alone by one process at a time while it looks, builds and claims. Who uses it: `.lock`, held
shared by each node for as long as it runs. (One lock for both cannot do it: a node that waits to
build would wait for nodes that run.) The database is built under another name, in WAL mode and
synced, and then renamed: a crash at any point leaves either none or a whole one.
"""

import fcntl
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Final

from trimtab.demo.graph import USERS, first_posts, friendships, username
from trimtab.demo.posts import Post, document, mentions
from trimtab.demo.store import (
    PAGE_BYTES,
    SCHEMA,
    SCHEMA_VERSION,
    TIMELINE_POSTS,
    hashed,
)
from trimtab.errors import ConfigError, StateError

__all__ = ["Claim", "ensure"]

# The passwords of the seeded users are known to everybody: the least cost that scrypt has.
SEEDED_PASSWORD_COST: Final = 2

# Time between two first posts, so that they lie in the past in the right order.
FIRST_POST_SPACING_MILLISECONDS: Final = 1000


class Claim:
    """A database in use: the shared lock, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def ensure(path: Path, *, seed: int = 1, users: int = USERS, fresh: bool = False) -> Claim:
    """See that the database at `path` exists, building it when it does not, and claim it.

    `fresh` deletes what is there first. Raises ConfigError when it is in use then, StateError
    when it cannot be made or is not a database of this version.
    """
    turn = _opened(path.with_name(path.name + ".building.lock"))
    try:
        in_use = _opened(path.with_name(path.name + ".lock"))
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if fresh:
                _alone(in_use, path)
                path.unlink(missing_ok=True)
            if not path.exists():
                _build(path, seed, users)
            fcntl.flock(in_use, fcntl.LOCK_SH)
            _check(path)
        except BaseException as error:
            os.close(in_use)
            if isinstance(error, OSError | sqlite3.Error):
                raise StateError(f"cannot make the database {path}: {error}") from error
            raise
    finally:
        os.close(turn)
    return Claim(in_use)


def _opened(lock: Path) -> int:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StateError(
            f"cannot make {lock}: {error.strerror}; give a path that can be written (--database)"
        ) from error


def _alone(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"the database {path} is in use by another demo: stop that, or give another --database"
        ) from None


def _check(path: Path) -> None:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    except sqlite3.DatabaseError as error:
        raise StateError(
            f"{path} is no database of the demo ({error}): delete it, or give another --database"
        ) from error
    finally:
        database.close()
    if version != SCHEMA_VERSION or mode != "wal":
        raise StateError(
            f"{path} is a database of version {version} in mode {mode}, not of version "
            f"{SCHEMA_VERSION} in mode wal: delete it (or use --fresh), or give another --database"
        )


def _build(path: Path, seed: int, users: int) -> None:
    building = path.with_name(path.name + ".building")
    # Left-overs of a crash, or of a database that somebody deleted without its log.
    for left in (
        building,
        *(Path(f"{p}-{end}") for p in (building, path) for end in ("wal", "shm")),
    ):
        left.unlink(missing_ok=True)
    database = sqlite3.connect(building, isolation_level=None)
    try:
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(SCHEMA)
        database.execute("BEGIN")
        _fill(database, seed, users)
        database.execute("COMMIT")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        database.close()
    if mode != "wal":
        raise StateError(
            f"the file system of {path} does not allow SQLite's WAL mode: give a --database on a "
            "local disk"
        )
    with building.open("rb") as file:
        os.fsync(file.fileno())
    building.rename(path)


def _fill(database: sqlite3.Connection, seed: int, users: int) -> None:
    database.executemany(
        "INSERT INTO users (user_id, username, first_name, last_name, password)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            (
                user,
                username(user),
                f"first_name_{user}",
                f"last_name_{user}",
                hashed(f"password_{user}", f"{seed}.{user}".encode(), SEEDED_PASSWORD_COST),
            )
            for user in range(1, users + 1)
        ),
    )
    pairs = friendships(seed, users)
    followers: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        followers[a].append(b)
        followers[b].append(a)
    database.executemany(
        "INSERT INTO follows (followee_id, follower_id) VALUES (?, ?)",
        ((user, follower) for user in sorted(followers) for follower in sorted(followers[user])),
    )

    _fill_posts(database, list(first_posts(seed, users)), followers)
    database.execute("INSERT INTO state (name, value) VALUES ('trimmed', -1), ('seed', ?)", (seed,))


def _fill_posts(
    database: sqlite3.Connection, posts: Sequence[Post], followers: Mapping[int, Sequence[int]]
) -> None:
    tokens = count(1)
    first = int(time.time() * 1000) - len(posts) * FIRST_POST_SPACING_MILLISECONDS
    home: defaultdict[int, list[int]] = defaultdict(list)
    rows: list[tuple[int, int, str]] = []
    for post_id, post in enumerate(posts, start=1):
        mentioned = [(int(name.rpartition("_")[2]), name) for name in mentions(post.text)]
        complete = document(post, mentioned, lambda: f"{next(tokens):010d}")
        milliseconds = first + post_id * FIRST_POST_SPACING_MILLISECONDS
        rows.append((post_id, post.user_id, complete(post_id, milliseconds)))
        for reader in {*followers.get(post.user_id, ()), *(user for user, _ in mentioned)}:
            home[reader].append(post_id)
    database.executemany("INSERT INTO posts (post_id, author_id, document) VALUES (?, ?, ?)", rows)
    database.executemany(
        "INSERT INTO home (user_id, post_id) VALUES (?, ?)",
        ((user, post_id) for user in sorted(home) for post_id in home[user][-TIMELINE_POSTS:]),
    )
