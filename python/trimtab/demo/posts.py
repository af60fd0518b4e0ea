"""What a post is: its mentions, its shortened URLs, and the JSON document that readers get.

Pure text work, done before the store's transaction begins.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["Post", "document", "mentions", "shorten", "url_count"]

# The original's pattern for mentions. Its pattern for URLs stops at the first slash or question
# mark after the host; ours takes the whole URL, but not the punctuation of a sentence after it.
_MENTION: Final = re.compile(r"@([A-Za-z0-9_-]+)")
_URL: Final = re.compile(
    r"https?://[A-Za-z0-9](?:[A-Za-z0-9_!~*'().&=+$%/?#:@,;-]*[A-Za-z0-9_~=&+$%/#-])?"
)

SHORT_HOST: Final = "http://short-url/"
TOKEN_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"  # noqa: S105
TOKEN_LENGTH: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A post as its author sent it, checked; ids are whole numbers."""

    user_id: int
    username: str
    req_id: int
    text: str
    media: tuple[tuple[str, str], ...] = ()  # (media_id, media_type)
    post_type: int = 0


def mentions(text: str) -> list[str]:
    """The user names after an `@`, each once, in order of appearance."""
    return list(dict.fromkeys(_MENTION.findall(text)))


def url_count(text: str) -> int:
    """How many URLs `shorten` would find."""
    return sum(1 for _ in _URL.finditer(text))


def shorten(text: str, token: Callable[[], str]) -> tuple[str, list[tuple[str, str]]]:
    """`text` with each URL replaced by a short one, and the pairs (shortened, expanded).

    `token` makes the last part of a short URL.
    """
    urls: list[tuple[str, str]] = []

    def replaced(match: re.Match[str]) -> str:
        urls.append((SHORT_HOST + token(), match.group()))
        return urls[-1][0]

    return _URL.sub(replaced, text), urls


def document(
    post: Post, mentioned: Iterable[tuple[int, str]], token: Callable[[], str]
) -> Callable[[int, int], str]:
    """The post as JSON, but for its id and its time: they exist only inside the transaction.

    `mentioned` are (user id, user name). The result takes the post id and the time in
    milliseconds since 1970, and gives the document. Every id in it is a string, as is the time.
    """
    text, urls = shorten(post.text, token)
    rest = json.dumps(
        {
            "creator": {"user_id": str(post.user_id), "username": post.username},
            "req_id": str(post.req_id),
            "text": text,
            "user_mentions": [{"user_id": str(i), "username": n} for i, n in mentioned],
            "media": [{"media_id": i, "media_type": t} for i, t in post.media],
            "urls": [{"shortened_url": s, "expanded_url": e} for s, e in urls],
            "post_type": post.post_type,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return lambda post_id, milliseconds: (
        f'{{"post_id":"{post_id}","timestamp":"{milliseconds}",{rest[1:]}'
    )
