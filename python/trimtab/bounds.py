"""Checks that messages are in bounds, each with a text that names field, value and bound.

No protobuf here: values and bytes come in, nothing or a MessageError comes out. Which field has
which bound is in `messages`. Reports have hundreds of checked values, so a check takes a whole
tuple, and puts a field's name together only for a message.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from trimtab.tables import MAX_NAME_BYTES

__all__ = [
    "MAX_COUNT",
    "MessageError",
    "check_counts",
    "check_doubles",
    "check_exactly",
    "check_length",
    "check_text",
    "check_unique",
    "wire_fields",
]

# What Lua and every other client can hold in a signed 64-bit integer.
MAX_COUNT: Final = 2**63 - 1

# Names of values: one for each, or that of the array whose entries they are.
Names = Sequence[str] | str


class MessageError(ValueError):
    """A message out of bounds. The text says which field, what it is, and what it must be."""


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= 40 else f"{text[:40]!a}… ({len(text)} characters)"


def _name(names: Names, n: int) -> str:
    return f"{names}[{n}]" if isinstance(names, str) else names[n]


def check_text(value: str, field: str) -> None:
    """A name or address is 1 to 255 bytes of printable ASCII."""
    if not (0 < len(value) <= MAX_NAME_BYTES and value.isascii() and value.isprintable()):
        raise MessageError(
            f"{field} is {_shown(value)}; it must be 1 to {MAX_NAME_BYTES} bytes of printable ASCII"
        )


def check_length(values: Sequence[Any], field: str, most: int) -> None:
    """A list has at most so many entries."""
    if len(values) > most:
        raise MessageError(f"{field} has {len(values)} entries; at most {most} are allowed")


def check_exactly(values: Sequence[Any], field: str, size: int) -> None:
    """An array has all its entries, or none."""
    if len(values) not in (0, size):
        raise MessageError(f"{field} has {len(values)} entries; it must have {size}, or none")


def check_unique(values: Sequence[str], field: str) -> None:
    """No name comes twice."""
    if len(set(values)) < len(values):
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise MessageError(f"{field} has {_shown(value)} twice")
            seen.add(value)


def check_counts(values: Sequence[int], names: Names) -> None:
    """Counts (uint64) fit a signed 64-bit integer."""
    if values and max(values) > MAX_COUNT:
        n = next(n for n, value in enumerate(values) if value > MAX_COUNT)
        raise MessageError(f"{_name(names, n)} is {values[n]}; it must be at most {MAX_COUNT}")


def check_doubles(values: Sequence[float], names: Names) -> None:
    """Doubles are finite and not negative."""
    # The sum is finite only if every part is; where finite parts overflow it, the loop acquits.
    if values and not (min(values) >= 0.0 and sum(values) < math.inf):
        for n, value in enumerate(values):
            if not 0.0 <= value < math.inf:
                raise MessageError(
                    f"{_name(names, n)} is {value:g}; it must be finite and not negative"
                )


def wire_fields(raw: bytes, at: int, end: int, budget: list[int]) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of a protobuf message that has a length.

    The message is `raw[at:end]`; other fields are stepped over. Each field takes one from
    `budget[0]`, and the last one that it allows is the last that is read. Raises MessageError
    for too many fields and for bytes that are no message.
    """
    broken = f"{len(raw)} bytes that are not a report: "
    try:
        while at < end:
            if budget[0] == 0:
                raise MessageError("a report with more fields than any report in bounds can have")
            budget[0] -= 1
            tag, at = _varint(raw, at)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(raw, at)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind == 2:
                size, at = _varint(raw, at)
                if at + size > end:
                    raise MessageError(broken + "it is cut short")
                yield tag >> 3, at, at + size
                at += size
            else:
                raise MessageError(f"{broken}wire type {kind}")
    except IndexError:
        raise MessageError(broken + "it is cut short") from None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Value and next position; IndexError when there is none."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
