"""Protobuf's varints by the thousand, as arrays.

A packed field of whole numbers is a run of varints: seven bits a byte, the lowest first, the top
bit set in all bytes but the last. Here many such runs become one array of int64 in about a dozen
passes over all of them.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np

__all__ = ["decode"]

# Nine bytes of seven bits: what an int64 holds without a sign.
MOST_BYTES: Final = 9

# A word of memory holds the first bytes of a varint; one of nine has one more.
WORD_BYTES: Final = 8

# By length in bytes: the bits of a word that are a varint's own, without the top ones.
_OWN: Final = np.array(
    [0x7F7F7F7F7F7F7F7F & ((1 << 8 * min(n, WORD_BYTES)) - 1) for n in range(MOST_BYTES + 1)], "<u8"
)

# To join each two neighbours: by how many bits the upper one moves down, which bits of the lower
# one stay, and where the upper one's come to be.
_LANES: Final = tuple(
    (np.uint64(by), np.uint64(lower), np.uint64(upper))
    for by, lower, upper in (
        (1, 0x007F007F007F007F, 0x3F803F803F803F80),
        (2, 0x00003FFF00003FFF, 0x0FFFC0000FFFC000),
        (4, 0x000000000FFFFFFF, 0x00FFFFFFF0000000),
    )
)


def decode(runs: Sequence[bytes], counts: Sequence[int]) -> Any:
    """An int64 array of all numbers of all runs, one after the other; None unless each run has as
    many varints as `counts` says (at least one), each of at most nine bytes."""
    if not runs:
        return np.zeros(0, np.int64)
    # Behind the last one there is a word to read, too.
    padded = b"".join((*runs, bytes(WORD_BYTES)))
    size = len(padded) - WORD_BYTES
    read = np.frombuffer(padded, np.uint8, size)
    last = read < 0x80
    ends = last.nonzero()[0]
    beyond = list(accumulate(counts))
    if len(ends) != beyond[-1]:
        return None
    # The last varint of each run ends it.
    if (ends[np.array(beyond) - 1] + 1).tolist() != list(accumulate(map(len, runs))):
        return None
    # Most numbers are small: what has more than a byte is put in where it ends.
    values = read.astype(np.int64)
    steps = last[1:] != last[:-1]
    edges = steps.nonzero()[0] + 1
    if not last[0]:
        edges = np.concatenate(([0], edges))
    if len(edges):
        starts, stops = edges[::2], edges[1::2]
        found = _long(padded, starts, stops - starts + 1)
        if found is None:
            return None
        values[stops] = found
    return values[ends]


def _long(padded: bytes, starts: Any, lengths: Any) -> Any:
    """Varints of several bytes, by where they start and how long they are; None if too long."""
    longest = int(lengths.max())
    if longest > MOST_BYTES:
        return None
    words = np.ndarray((len(padded) - WORD_BYTES,), "<u8", padded, strides=(1,))[starts]
    words &= _OWN[lengths]
    # Seven bits of eight, 14 of 16, 28 of 32, and then all 56 side by side.
    for by, lower, upper in _LANES:
        moved = words >> by
        moved &= upper
        words &= lower
        words |= moved
    if longest == MOST_BYTES:
        nine = (lengths == MOST_BYTES).nonzero()[0]
        ninth = np.frombuffer(padded, np.uint8)[starts[nine] + WORD_BYTES]
        words[nine] |= ninth.astype(np.uint64) << np.uint64(7 * WORD_BYTES)
    return words.view(np.int64)
