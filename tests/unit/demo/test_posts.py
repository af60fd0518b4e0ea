"""Posts: mentions, URLs, documents."""

import json
from itertools import count

from trimtab.demo.posts import Post, document, mentions, shorten, url_count


def test_mentions() -> None:
    """Each name after an @ once, in order, up to what cannot be in a name."""
    assert mentions("x@a_1 @b-2, @a_1 @ @c.d") == ["a_1", "b-2", "c"]


def test_urls_are_shortened_in_place() -> None:
    """Each URL gives way to a short one, and text around and after it stays."""
    numbers = count(1)

    text, urls = shorten("see http://a.b/c?d=1. And https://d, ok", lambda: f"t{next(numbers)}")

    assert text == "see http://short-url/t1. And http://short-url/t2, ok"
    assert urls == [
        ("http://short-url/t1", "http://a.b/c?d=1"),
        ("http://short-url/t2", "https://d"),
    ]
    assert url_count("see http://a.b?c=1 and https://d, ok http://") == 2


def test_document() -> None:
    """The document has the original's fields, ids and time as strings, and any text survives."""
    post = Post(
        user_id=7,
        username="username_7",
        req_id=99,
        text='"quoted" é \\ @username_3 http://x',
        media=(("123", "png"),),
        post_type=2,
    )

    made = document(post, [(3, "username_3")], lambda: "token")(2**60, 1_700_000_000_000)

    assert json.loads(made) == {
        "post_id": str(2**60),
        "creator": {"user_id": "7", "username": "username_7"},
        "req_id": "99",
        "text": '"quoted" é \\ @username_3 http://short-url/token',
        "user_mentions": [{"user_id": "3", "username": "username_3"}],
        "media": [{"media_id": "123", "media_type": "png"}],
        "urls": [{"shortened_url": "http://short-url/token", "expanded_url": "http://x"}],
        "timestamp": "1700000000000",
        "post_type": 2,
    }
