"""The store of the social network: one SQLite database that all nodes share, in WAL mode.

A `Store` is one connection, used by one thread. Every operation is one short transaction. What
is kept is bounded by constant work in each compose: the newest `RETAINED_POSTS` posts, and about
the newest `TIMELINE_POSTS` of each home timeline (see docs/social-network.md). Making a database
that is not there yet is `build`'s work.
"""

import hashlib
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from trimtab.demo.posts import TOKEN_ALPHABET, TOKEN_LENGTH, Post, document, mentions

__all__ = [
    "BUSY_SECONDS",
    "PAGE_BYTES",
    "PASSWORD_COST",
    "RETAINED_POSTS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "TIMELINE_POSTS",
    "Store",
    "StoreError",
    "hashed",
]

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """\
CREATE TABLE users (
    user_id INTEGER PRIMARY KEY, username TEXT NOT NULL UNIQUE,
    first_name TEXT NOT NULL, last_name TEXT NOT NULL, password TEXT NOT NULL);
CREATE TABLE follows (
    followee_id INTEGER NOT NULL, follower_id INTEGER NOT NULL,
    PRIMARY KEY (followee_id, follower_id)) WITHOUT ROWID;
CREATE TABLE posts (
    post_id INTEGER PRIMARY KEY, author_id INTEGER NOT NULL, document TEXT NOT NULL);
CREATE INDEX posts_by_author ON posts (author_id, post_id);
CREATE TABLE home (
    user_id INTEGER NOT NULL, post_id INTEGER NOT NULL,
    PRIMARY KEY (user_id, post_id)) WITHOUT ROWID;
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

# DeathStarBench's readers ask for ten posts from the first hundred; twice that is plenty.
TIMELINE_POSTS: Final = 200

# About 40 MB of posts of two kilobytes: the newest 5 to 10 minutes at 50 composes a second.
RETAINED_POSTS: Final = 20_000

# How long a writer waits for another one before its request fails with "database is locked".
BUSY_SECONDS: Final = 5.0

# Pages of 1 KiB. A compose writes one row into each of some 40 timelines, which lie on as many
# pages, and the log takes whole pages: small ones keep a compose near 50 KB.
PAGE_BYTES: Final = 1024

# Copy the log back after 8 MiB of it: rarely enough that a compose seldom pays for it.
CHECKPOINT_PAGES: Final = 8192

# scrypt's N. 2^10 costs some 3 ms and 1 MiB: enough for accounts that hold nothing.
PASSWORD_COST: Final = 2**10


class StoreError(Exception):
    """The request failed; the message is the reason, for the client to read."""


def hashed(password: str, salt: bytes, cost: int = PASSWORD_COST) -> str:
    """`scrypt$cost$salt$hash`, salt and hash in hexadecimal."""
    digest = hashlib.scrypt(password.encode(), salt=salt, n=cost, r=8, p=1, dklen=32)
    return f"scrypt${cost}${salt.hex()}${digest.hex()}"


class Store:
    """One connection to the database at `path`, which exists. For the thread that made it."""

    def __init__(
        self,
        path: Path,
        *,
        busy_seconds: float = BUSY_SECONDS,
        clock: Callable[[], float] = time.time,
        draw: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._draw = draw or random.Random()  # noqa: S311
        self._database = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=busy_seconds,
        )
        # NORMAL: a power cut may lose the last posts, never the database.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def register(
        self, user_id: int, username: str, first_name: str, last_name: str, password: str
    ) -> None:
        """Add a user. Raises StoreError when the id or the name is taken."""
        secret = hashed(password, secrets.token_bytes(16))
        with self._transaction(write=True) as execute:
            taken = execute(
                "SELECT username = ? FROM users WHERE username = ? OR user_id = ?",
                (username, username, user_id),
            ).fetchone()
            if taken:
                what = f"user {username}" if taken[0] else f"user id {user_id}"
                raise StoreError(f"{what} is already registered")
            execute(
                "INSERT INTO users (user_id, username, first_name, last_name, password)"
                " VALUES (?, ?, ?, ?, ?)",
                (user_id, username, first_name, last_name, secret),
            )

    def user_id(self, username: str) -> int:
        """The id of a user. Raises StoreError when the name is not registered."""
        with self._transaction() as execute:
            row = execute("SELECT user_id FROM users WHERE username = ?", (username,)).fetchone()
        if row is None:
            raise StoreError(f"user {username} is not registered")
        return int(row[0])

    def follow(self, user_id: int, followee_id: int) -> None:
        """Let one user follow another; following twice is following once.

        Raises StoreError when one of them is not registered.
        """
        with self._transaction(write=True) as execute:
            self._registered(execute, user_id, followee_id)
            execute(
                "INSERT OR IGNORE INTO follows (followee_id, follower_id) VALUES (?, ?)",
                (followee_id, user_id),
            )

    def unfollow(self, user_id: int, followee_id: int) -> None:
        """Undo `follow`; nothing to undo is fine. Raises StoreError as `follow` does."""
        with self._transaction(write=True) as execute:
            self._registered(execute, user_id, followee_id)
            execute(
                "DELETE FROM follows WHERE followee_id = ? AND follower_id = ?",
                (followee_id, user_id),
            )

    def compose(self, post: Post) -> int:
        """Store a post, put it on the home timelines of followers and mentioned; the post id.

        As in the original, the author need not be registered, and unknown names are no mentions.
        """
        mentioned = self._mentioned(mentions(post.text))
        complete = document(post, mentioned, self._token)
        with self._transaction(write=True) as execute:
            post_id = int(execute("SELECT coalesce(max(post_id), 0) + 1 FROM posts").fetchone()[0])
            execute(
                "INSERT INTO posts (post_id, author_id, document) VALUES (?, ?, ?)",
                (post_id, post.user_id, complete(post_id, int(self._clock() * 1000))),
            )
            execute(
                "INSERT OR IGNORE INTO home (user_id, post_id)"
                " SELECT follower_id, ? FROM follows WHERE followee_id = ?",
                (post_id, post.user_id),
            )
            for user_id, _ in mentioned:
                execute(
                    "INSERT OR IGNORE INTO home (user_id, post_id) VALUES (?, ?)",
                    (user_id, post_id),
                )
            execute("DELETE FROM posts WHERE post_id <= ?", (post_id - RETAINED_POSTS,))
            self._trim_next(execute, post_id)
        return post_id

    def home_timeline(self, user_id: int, start: int, stop: int) -> str:
        """Posts number `start` up to, not including, `stop`, newest first, as a JSON array."""
        return self._timeline(
            "SELECT document FROM"
            " (SELECT post_id FROM home WHERE user_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?)"
            " JOIN posts USING (post_id) ORDER BY post_id DESC",
            user_id,
            start,
            stop,
        )

    def user_timeline(self, user_id: int, start: int, stop: int) -> str:
        """The same of the user's own posts."""
        return self._timeline(
            "SELECT document FROM posts WHERE author_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?",
            user_id,
            start,
            stop,
        )

    def _timeline(self, query: str, user_id: int, start: int, stop: int) -> str:
        count = min(stop, TIMELINE_POSTS) - start
        if start < 0 or count <= 0:
            return "[]"
        with self._transaction() as execute:
            rows = execute(query, (user_id, count, start)).fetchall()
        return f"[{','.join([row[0] for row in rows])}]"

    def _mentioned(self, names: Sequence[str]) -> list[tuple[int, str]]:
        if not names:
            return []
        found: list[tuple[int, str]] = []
        with self._transaction() as execute:
            for name in names:
                row = execute("SELECT user_id FROM users WHERE username = ?", (name,)).fetchone()
                if row:
                    found.append((int(row[0]), name))
        return found

    def _trim_next(self, execute: Callable[..., sqlite3.Cursor], newest: int) -> None:
        """Cut one home timeline, the next in turn: in the long run as much as composes add."""
        row = execute(
            "SELECT min(user_id) FROM home"
            " WHERE user_id > (SELECT value FROM state WHERE name = 'trimmed')"
        ).fetchone()
        turn = -1 if row[0] is None else int(row[0])
        execute("UPDATE state SET value = ? WHERE name = 'trimmed'", (turn,))
        execute(
            "DELETE FROM home WHERE user_id = ?1 AND post_id <= max(?2, coalesce("
            " (SELECT post_id FROM home WHERE user_id = ?1"
            "  ORDER BY post_id DESC LIMIT 1 OFFSET ?3), -1))",
            (turn, newest - RETAINED_POSTS, TIMELINE_POSTS),
        )

    @staticmethod
    def _registered(execute: Callable[..., sqlite3.Cursor], *user_ids: int) -> None:
        for user_id in user_ids:
            if not execute("SELECT 1 FROM users WHERE user_id = ?", (user_id,)).fetchone():
                raise StoreError(f"user id {user_id} is not registered")

    def _token(self) -> str:
        return "".join(self._draw.choices(TOKEN_ALPHABET, k=TOKEN_LENGTH))

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run statements; a writing transaction takes the write lock first, so it cannot
        fail half-way because another one wrote. Any failure leaves the database as it was."""
        execute = self._database.execute
        try:
            if write:
                execute("BEGIN IMMEDIATE")
            yield execute
            if write:
                execute("COMMIT")
        except BaseException as error:
            if self._database.in_transaction:
                with suppress(sqlite3.Error):
                    execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"the database failed: {error}") from error
            raise
