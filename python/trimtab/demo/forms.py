"""Form-encoded arguments, read as nginx reads them.

DeathStarBench's clients write compose bodies by hand: the text goes in unescaped, with spaces,
`@names` and `http://` in it, and the media lists as raw JSON. So the rules are nginx's: split at
`&`, then at the first `=`; `+` is a space; a `%` that no two hexadecimal digits follow stands for
itself; the content type does not matter.
"""

import json
import re
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["BadArgumentError", "IncompleteError", "need", "parse", "strings", "whole"]

# nginx's Lua module reads at most 100 arguments by default; the original stands behind it.
MAX_ARGUMENTS: Final = 100

# User and post ids are signed 64-bit in the original's interface and in SQLite.
MAX_ID: Final = 2**63 - 1

_DIGITS: Final = re.compile(r"[0-9]{1,19}\Z")


class IncompleteError(Exception):
    """An argument is missing or empty."""


class BadArgumentError(Exception):
    """An argument makes no sense; the message says which and what is allowed."""


def parse(raw: bytes) -> dict[str, str]:
    """Arguments by name, the first of each name; bytes that are no UTF-8 become U+FFFD."""
    arguments: dict[str, str] = {}
    for pair in raw.split(b"&", MAX_ARGUMENTS)[:MAX_ARGUMENTS]:
        name, _, value = pair.partition(b"=")
        arguments.setdefault(_decoded(name), _decoded(value))
    return arguments


def _decoded(raw: bytes) -> str:
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "replace")


def need(arguments: dict[str, str], *names: str) -> tuple[str, ...]:
    """The values of `names`, in that order. Raises IncompleteError when one is absent or empty."""
    values = tuple(arguments.get(name, "") for name in names)
    if not all(values):
        raise IncompleteError
    return values


def whole(name: str, value: str, most: int = MAX_ID) -> int:
    """`value` as a whole number from 0 to `most`. Raises BadArgumentError."""
    if not _DIGITS.match(value) or int(value) > most:
        raise BadArgumentError(f"{name} must be a whole number from 0 to {most}")
    return int(value)


def strings(name: str, value: str, most: int) -> list[str]:
    """A JSON array of at most `most` strings or whole numbers; "" is an empty one.

    Raises BadArgumentError.
    """
    if not value:
        return []
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) > most:
        raise BadArgumentError(f"{name} must be a JSON array of at most {most} items")
    if not all(isinstance(item, str) or type(item) is int for item in found):
        raise BadArgumentError(f"{name} must hold strings or whole numbers only")
    return [str(item) for item in found]
