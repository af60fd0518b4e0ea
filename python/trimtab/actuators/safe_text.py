"""Values made safe to write into nginx's configuration, into Lua in it, and into systemd units.

Each filter returns a `Safe` string that cannot break out of its place, or raises ConfigError. A
template may write nothing else (`only_safe`), so one that forgets a filter fails for every input.
`config` has checked its values already; this holds for those that did not come from there too.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from trimtab.config import split_address
from trimtab.errors import ConfigError

__all__ = ["FILTERS", "Safe", "only_safe"]

# Every character without a meaning to nginx's lexer, in any place: no blank ; { } " ' \ $ #
_BARE: Final = re.compile(r"[A-Za-z0-9_.~%/+:@,=\[\]-]+\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Safe(str):
    """Text that may go into a configuration as it is."""

    __slots__ = ()


def _bare(value: object) -> Safe:
    text = str(value)
    if not _BARE.match(text):
        raise ConfigError(f"{text!r} cannot stand in an nginx configuration")
    return Safe(text)


def _name(value: str) -> Safe:
    """Of an upstream group or a user: nothing that a URL or a path would split."""
    if not _NAME.match(value):
        raise ConfigError(f"the name {value!r} may have letters, digits, '_', '.' and '-' only")
    return Safe(value)


def _words(values: Sequence[object]) -> Safe:
    return Safe(" ".join(_bare(value) for value in values))


def _location(value: str) -> Safe:
    if not value.startswith("/"):
        raise ConfigError(f"the location {value!r} does not begin with '/'")
    return _bare(value)


def _address(value: str) -> Safe:
    try:
        split_address(value)
    except ValueError as error:
        raise ConfigError(f"the address {value!r} must be {error}") from None
    return _bare(value)


def _printable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{value!r} is not valid UTF-8") from None
    if _CONTROL.search(value):
        raise ConfigError(f"{value!r} has control characters")
    return value


def _double_quoted(value: str) -> str:
    return '"' + _printable(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted(value: str) -> Safe:
    if "$" in value:
        raise ConfigError(f"{value!r} has a '$', which nginx would take for a variable")
    return Safe(_double_quoted(value))


def _lua(value: str) -> Safe:
    return Safe(_double_quoted(value))


def _exec(value: str) -> Safe:
    """One argument in a systemd ExecStart line."""
    return Safe(_double_quoted(value).replace("%", "%%").replace("$", "$$"))


def _unit_path(value: str) -> Safe:
    """A path in a systemd unit, as PathChanged= takes it."""
    if not re.match(r"/[A-Za-z0-9_./+@=-]*\Z", value):
        raise ConfigError(f"the path {value!r} may have letters, digits and _ . / + @ = - only")
    return Safe(value)


def _seconds(value: float) -> Safe:
    """Nginx's notation, rounded up to whole milliseconds."""
    if not (math.isfinite(value) and 0 <= value < 1e9):
        raise ConfigError(f"{value!r} is not a number of seconds")
    milliseconds = math.ceil(round(value * 1000, 6))
    return Safe(f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s")


def _whole(value: int) -> Safe:
    if not isinstance(value, int):
        raise ConfigError(f"{value!r} is not a whole number")
    return Safe(f"{value:d}")


def _comment(value: str) -> Safe:
    # nginx gives up on lines longer than its buffer of 4096 bytes, comments too.
    shown = _CONTROL.sub("?", value).encode(errors="replace").decode()
    return Safe(shown[:500])


def only_safe(value: object) -> object:
    """The value that a template writes; TypeError unless a filter has made it."""
    if not isinstance(value, Safe):
        raise TypeError(f"a template writes {value!r} without a filter")
    return value


# The name of a filter in a template is that of its function here, without the underscore.
FILTERS: Final[Mapping[str, Callable[[Any], Safe]]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _address,
        _bare,
        _comment,
        _exec,
        _location,
        _lua,
        _name,
        _quoted,
        _seconds,
        _unit_path,
        _whole,
        _words,
    )
}
