"""`trimtab explain` in sentences: which cause it names."""

from typing import Any

import pytest

from trimtab.cli.plainly import sentences

PEER: dict[str, Any] = {
    "rank": 1, "drain": False, "down": False, "ejection": "", "score": 0.01, "weight": 1.0,
    "affinity": 1.0, "rate": 1.0, "error_ratio": 0.0, "in_flight": 0, "own_seconds": 0.01,
    "wait_seconds": 0.0,
}  # fmt: skip


def said(*, one: bool = False, **peers: dict[str, Any]) -> str:
    """What is said of these peers."""
    told = {"instance": "n", "peers": {a: PEER | facts for a, facts in peers.items()}}
    return " ".join(sentences(told, one=one))


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ({"rate": 0.5, "own_seconds": 0.02}, "it is slower (rate 0.50 against 1.00)"),
        ({"error_ratio": 0.05}, "its error ratio is 5%"),
        ({"weight": 0.5}, "its weight W is 0.50 against 1.00"),
        ({"affinity": 2.0, "own_seconds": 0.02}, "the class suits it less (a 2.00 against 1.00)"),
        ({"wait_seconds": 0.01}, "a slot is free there only in 10.0 ms"),
    ],
)
def test_what_makes_the_next_best_worse_is_named(other: dict[str, Any], cause: str) -> None:
    """Of rate, errors, weight, affinity and wait the one that makes the most of it."""
    text = said(best={}, other=other | {"rank": 2, "score": 0.02})

    assert text == (
        "The next request goes to best, where it should take 10.0 ms. "
        f"Next best is other, whose score is 2.0 times as large: {cause}."
    )


def test_ties_and_the_lack_of_others_are_told() -> None:
    """Two that are alike are drawn; one alone, or none, is said to be."""
    assert "as good; such ties are drawn." in said(best={}, other={"rank": 2})
    drained = {"rank": None, "drain": True}
    assert said(best={}, other=drained).endswith("No other server may be picked.")
    assert said(other=drained).startswith("No server may be picked")


def test_a_single_server_is_told_where_it_stands() -> None:
    """Its place and what counts; drained, or ejected and why."""
    slow = {"rank": 3, "rate": 0.5, "error_ratio": 0.02, "wait_seconds": 0.005}
    assert said(one=True, a=slow) == (
        "Server a is number 3 in line: it should take 15.0 ms, 5.0 ms of that waiting for a slot; "
        "it is slow (rate 0.50; the mean server is 1); errors make that count 1.4 times."
    )
    assert "an operator drained it" in said(one=True, a={"rank": None, "drain": True})
    ejected = {"rank": None, "down": True, "ejection": "errors"}
    assert "it is ejected (errors)" in said(one=True, a=ejected)


def test_without_a_balancer_nothing_is_claimed() -> None:
    """Where nothing in flight is known there is no next request."""
    assert not list(sentences({"instance": None, "peers": {"a": PEER}}, one=False))
