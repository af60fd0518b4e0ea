"""Checked TOML tables: a frozen dataclass's fields are the keys, and each key has its check.

A file format (`config`, `demo.scenario`) declares its sections as dataclasses whose fields are
made by `key`; `section` turns a table into their keyword arguments, or raises a ConfigError that
names file, section, key, and what is allowed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from typing import Any, Final

from trimtab.errors import ConfigError

__all__ = [
    "boolean",
    "integer",
    "key",
    "matching",
    "number",
    "one_of",
    "section",
    "tables",
]

# As the bounds of the gRPC messages (proto/trimtab/v1/policy.proto).
MAX_NAME_BYTES: Final = 255


def key(check: Callable[[Any], Any], **kwargs: Any) -> Any:
    """A field whose value from TOML goes through `check`, which returns it or raises ValueError."""
    return field(metadata={"check": check}, **kwargs)


def number(low: float, high: float) -> Callable[[Any], float]:
    """A check for a finite number in [low, high], as float."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"a number from {low:g} to {high:g}")
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def integer(low: int, high: int) -> Callable[[Any], int]:
    """A check for a whole number in [low, high]."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def boolean(value: Any) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def one_of(*allowed: str) -> Callable[[Any], str]:
    """A check for one of the allowed words."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(" or ".join(f'"{a}"' for a in allowed))
        return str(value)

    return check


def matching(pattern: re.Pattern[str], meaning: str) -> Callable[[Any], str]:
    """A check for a text that matches `pattern`; `meaning` says in words what is allowed."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > MAX_NAME_BYTES or not pattern.match(value):
            raise ValueError(meaning)
        return value

    return check


def section(cls: type[Any], table: Any, where: str, path: str, ignore: str = "") -> dict[str, Any]:
    """The checked keys of one TOML table, as keyword arguments of `cls`."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: {where} must be a table")
    checks = {f.name: f for f in fields(cls) if "check" in f.metadata}
    for name in table:
        if name not in checks and name != ignore:
            close = get_close_matches(name, checks, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            allowed = ", ".join([*checks, *([ignore] if ignore else [])])
            raise ConfigError(f"{path}: unknown key {name!r} in {where}{hint}; allowed: {allowed}")
    values = {}
    for name, f in checks.items():
        if name in table:
            try:
                values[name] = f.metadata["check"](table[name])
            except ValueError as error:
                raise ConfigError(
                    f"{path}: {name} in {where} is {table[name]!r}; it must be {error}"
                ) from None
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{path}: {where} lacks the key {name!r}")
    return values


def tables(value: Any, where: str, path: str) -> list[Any]:
    """The list of tables that TOML's double brackets make."""
    if not isinstance(value, list):
        raise ConfigError(f"{path}: write {where} with double brackets, once an entry")
    return value
