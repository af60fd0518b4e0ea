"""The requests of the social network: from arguments to one job for the store.

Paths, argument names and answers are those of DeathStarBench's `wrk2-api`. Everything that a
client sends is checked here, before the request takes a slot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimtab.demo.forms import BadArgumentError, need, strings, whole
from trimtab.demo.posts import Post, mentions, url_count
from trimtab.demo.store import Store

__all__ = ["ENDPOINTS", "MAX_BODY_BYTES", "Endpoint"]

Arguments = dict[str, str]
Job = Callable[[Store, int], str]

# The benchmark's longest text has 900 characters. Sixteen thousand, each percent-encoded from
# three bytes of UTF-8, is 144 KB.
MAX_TEXT: Final = 16_384
MAX_BODY_BYTES: Final = 192 * 1024
MAX_NAME: Final = 64
MAX_PASSWORD: Final = 256

# Mentions, URLs and media of a post: ten times what the benchmark sends.
MAX_PARTS: Final = 64

# POST, REPOST, REPLY, DM in the original's interface.
MAX_POST_TYPE: Final = 3

# The original takes 32-bit positions.
MAX_POSITION: Final = 2**31 - 1

UPLOADED: Final = "Successfully upload post\n"
SUCCESS: Final = "Success!\n"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One request type.

    `prepare` checks the arguments and gives a job; the job does the store's work, given a number
    for the request, and gives the answer's text. `failure` begins the answer when it fails.
    """

    method: str
    path: str
    kind: str
    failure: str
    prepare: Callable[[Arguments], Job]
    content_type: str = "text/plain"


def _short(name: str, value: str, most: int) -> str:
    if len(value) > most:
        raise BadArgumentError(f"{name} must have at most {most} characters")
    return value


def _register(arguments: Arguments) -> Job:
    names = ("username", "first_name", "last_name", "password", "user_id")
    username, first, last, password, user_id = need(arguments, *names)
    for name, value in zip(names[:3], (username, first, last), strict=True):
        _short(name, value, MAX_NAME)
    _short("password", password, MAX_PASSWORD)
    number = whole("user_id", user_id)

    def job(store: Store, _: int) -> str:
        store.register(number, username, first, last, password)
        return SUCCESS

    return job


def _relation(change: Callable[[Store, int, int], None]) -> Callable[[Arguments], Job]:
    """Follow or unfollow: by two ids, or else by two names."""

    def prepare(arguments: Arguments) -> Job:
        if arguments.get("user_id") and arguments.get("followee_id"):
            user = whole("user_id", arguments["user_id"])
            followee = whole("followee_id", arguments["followee_id"])

            def by_id(store: Store, _: int) -> str:
                change(store, user, followee)
                return SUCCESS

            return by_id
        user_name, followee_name = need(arguments, "user_name", "followee_name")
        _short("user_name", user_name, MAX_NAME)
        _short("followee_name", followee_name, MAX_NAME)

        def by_name(store: Store, _: int) -> str:
            change(store, store.user_id(user_name), store.user_id(followee_name))
            return SUCCESS

        return by_name

    return prepare


def _compose(arguments: Arguments) -> Job:
    username, user_id, text, post_type = need(arguments, "username", "user_id", "text", "post_type")
    _short("username", username, MAX_NAME)
    _short("text", text, MAX_TEXT)
    if len(mentions(text)) > MAX_PARTS or url_count(text) > MAX_PARTS:
        raise BadArgumentError(f"text must hold at most {MAX_PARTS} mentions and {MAX_PARTS} URLs")
    author = whole("user_id", user_id)
    kind = whole("post_type", post_type, MAX_POST_TYPE)
    media: tuple[tuple[str, str], ...] = ()
    # As in the original: media count only when both lists are there.
    if arguments.get("media_ids") and arguments.get("media_types"):
        ids = strings("media_ids", arguments["media_ids"], MAX_PARTS)
        types = strings("media_types", arguments["media_types"], MAX_PARTS)
        if len(ids) != len(types):
            raise BadArgumentError("media_ids and media_types must have the same length")
        for media_id, media_type in zip(ids, types, strict=True):
            whole("each of media_ids", media_id)
            _short("each of media_types", media_type, MAX_NAME)
        media = tuple(zip(ids, types, strict=True))

    def job(store: Store, request_id: int) -> str:
        store.compose(
            Post(
                user_id=author,
                username=username,
                req_id=request_id,
                text=text,
                media=media,
                post_type=kind,
            )
        )
        return UPLOADED

    return job


def _read(timeline: Callable[[Store, int, int, int], str]) -> Callable[[Arguments], Job]:
    def prepare(arguments: Arguments) -> Job:
        user_id, start, stop = need(arguments, "user_id", "start", "stop")
        user = whole("user_id", user_id)
        # A negative start gives an empty timeline in the original.
        first = -1 if start.startswith("-") else whole("start", start, MAX_POSITION)
        beyond = -1 if stop.startswith("-") else whole("stop", stop, MAX_POSITION)
        return lambda store, _: f"{timeline(store, user, first, beyond)}\n"

    return prepare


ENDPOINTS: Final = (
    Endpoint("POST", "/wrk2-api/user/register", "register", "User registration failure", _register),
    Endpoint("POST", "/wrk2-api/user/follow", "follow", "Follow Failed", _relation(Store.follow)),
    Endpoint(
        "POST", "/wrk2-api/user/unfollow", "follow", "Unfollow Failed", _relation(Store.unfollow)
    ),
    Endpoint("POST", "/wrk2-api/post/compose", "compose", "compose_post failure", _compose),
    Endpoint(
        "GET",
        "/wrk2-api/home-timeline/read",
        "home",
        "Get home-timeline failure",
        _read(Store.home_timeline),
        "application/json",
    ),
    Endpoint(
        "GET",
        "/wrk2-api/user-timeline/read",
        "user",
        "Get user-timeline failure",
        _read(Store.user_timeline),
        "application/json",
    ),
)
