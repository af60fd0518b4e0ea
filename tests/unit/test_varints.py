"""Runs of varints as arrays: what protobuf writes comes back, and nothing else passes."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trimtab.varints import decode

NUMBERS = st.lists(
    st.integers(0, 62).flatmap(lambda b: st.integers(0, 2 ** (b + 1) - 1)), min_size=1
)


def varint(value: int, padding: int = 0) -> bytes:
    """As protobuf writes it, with needless bytes where asked for."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 128
        out.append(0)
    return bytes(out)


def run(values: list[int]) -> bytes:
    """A packed field."""
    return b"".join(map(varint, values))


@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_what_was_written_is_read(groups: list[list[int]]) -> None:
    """Numbers of up to 63 bits come back from runs of any number and length."""
    read = decode([run(group) for group in groups], [len(group) for group in groups])
    assert read.dtype == np.int64
    assert read.tolist() == [value for group in groups for value in group]


@given(NUMBERS, NUMBERS)
def test_a_run_of_another_length_is_refused(one: list[int], two: list[int]) -> None:
    """Each run has its own number of varints: what one lacks another cannot have too many."""
    runs, counts = [run(one), run(two)], [len(one), len(two)]
    assert decode(runs, [counts[0] + 1, counts[1]]) is None
    assert decode(runs, [counts[0], counts[1] + 1]) is None
    assert decode(runs, [counts[0] + 1, counts[1] - 1]) is None


def test_damaged_runs_are_refused() -> None:
    """A last varint cut short, one of ten bytes, and one that goes on in the next run."""
    assert decode([run([1, 2, 300])[:-1]], [3]) is None
    assert decode([varint(2**63)], [1]) is None
    assert decode([b"\x80" * 9 + b"\x01"], [1]) is None
    assert decode([b"\x05\x80", b"\x01\x05"], [2, 1]) is None
    assert decode([b""], [1]) is None


def test_needless_bytes_are_read() -> None:
    """A varint longer than it need be, which protobuf allows, is the same number."""
    rng = random.Random(1)
    values = [rng.getrandbits(rng.randrange(1, 40)) for _ in range(200)]
    read = decode([b"".join(varint(v, rng.randrange(4)) for v in values)], [200])
    assert read.tolist() == values


def test_no_runs_are_no_numbers() -> None:
    """Nothing in, nothing out."""
    assert decode([], []).tolist() == []
