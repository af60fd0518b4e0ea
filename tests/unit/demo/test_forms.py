"""Form arguments: as nginx reads them, checked."""

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.demo.forms import (
    MAX_ARGUMENTS,
    MAX_ID,
    BadArgumentError,
    IncompleteError,
    need,
    parse,
    strings,
    whole,
)


def test_unescaped_compose_body() -> None:
    """A body as wrk's scripts write it keeps spaces, mentions, URLs and JSON as they are."""
    body = (
        b"username=username_7&user_id=7&text=Abc @username_3 http://qwe:80/x?y"
        b'&media_ids=["123","456"]&media_types=["png","png"]&post_type=0'
    )

    assert parse(body) == {
        "username": "username_7",
        "user_id": "7",
        "text": "Abc @username_3 http://qwe:80/x?y",
        "media_ids": '["123","456"]',
        "media_types": '["png","png"]',
        "post_type": "0",
    }


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"t=a+b%20c%2B", "a b c+"),
        (b"t=100%&u=1", "100%"),
        (b"t=%zz%4", "%zz%4"),
        (b"t=x=y", "x=y"),
        (b"t=caf%C3%A9 \xc3\xa9", "café é"),
        (b"t=\xff%FF", "\ufffd\ufffd"),
        (b"t=first&t=second", "first"),
        (b"&&t=1&", "1"),
        (b"u", None),
    ],
)
def test_decoding(raw: bytes, text: str | None) -> None:
    """Plus is a space, what is no escape stands for itself, the first of a name counts."""
    assert parse(raw).get("t") == text


def test_arguments_are_bounded() -> None:
    """Arguments beyond the hundredth are not read."""
    raw = b"&".join(b"a%d=1" % i for i in range(MAX_ARGUMENTS + 50))

    assert list(parse(raw)) == [f"a{i}" for i in range(MAX_ARGUMENTS)]


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=8))
def test_what_libraries_encode_is_read_back(arguments: dict[str, str]) -> None:
    """Any arguments that urllib encodes come back the same."""
    assert (parse(urlencode(arguments).encode()) if arguments else {}) == arguments


@given(st.binary(max_size=300))
def test_any_bytes_are_arguments(raw: bytes) -> None:
    """No bytes make the parser fail, and what it gives can be encoded again."""
    for name, value in parse(raw).items():
        (name + value).encode()


def test_need() -> None:
    """Absent and empty are both incomplete."""
    assert need({"a": "1", "b": "2"}, "b", "a") == ("2", "1")
    for arguments in ({"a": "1"}, {"a": "1", "b": ""}):
        with pytest.raises(IncompleteError):
            need(arguments, "a", "b")


@pytest.mark.parametrize("value", ["0", "962", str(MAX_ID), "007"])
def test_whole(value: str) -> None:
    """Ids are whole numbers of 63 bits."""
    assert whole("user_id", value) == int(value)


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "1.5", "1e3", "0x10", " 1", "1\n", "٣", str(MAX_ID + 1), "9" * 400]
)
def test_no_whole_number(value: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(BadArgumentError, match="user_id must be a whole number"):
        whole("user_id", value)


def test_strings() -> None:
    """A JSON array of strings or whole numbers; nothing at all is an empty one."""
    assert strings("media_ids", "", 3) == []
    assert strings("media_ids", "[]", 3) == []
    assert strings("media_ids", '["1", 22]', 3) == ["1", "22"]


@pytest.mark.parametrize(
    "value", ["[", "{}", '"1"', "[1.5]", "[null]", "[true]", "[[1]]", "[1,2,3,4]", "[" * 5000]
)
def test_no_strings(value: str) -> None:
    """Other JSON, too much, and what is no JSON are refused by name."""
    with pytest.raises(BadArgumentError, match="media_ids must"):
        strings("media_ids", value, 3)
