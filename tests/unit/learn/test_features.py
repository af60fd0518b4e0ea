"""Features: named numbers of a window, without the control."""

import math

from trimtab.learn.features import MOST_ADDRESSES, features
from trimtab.model import Connections, PairCounters, Window

WINDOW = Window(
    seconds=2.0,
    pairs={
        "a": {
            "s1:1": PairCounters(
                in_flight=1.5, requests=10, failures=1, response_time_seconds=0.2, in_bytes=40
            ),
            "s9:1": PairCounters(in_flight=9.0, requests=10, response_time_seconds=0.6),
        },
        "b": {"s1:1": PairCounters(in_flight=0.5)},
    },
    waiting={"a": 3.0, "b": 1.0},
    connections=Connections(active=12),
)


def test_values_in_the_units_of_their_names() -> None:
    """In flight is summed over classes, rates are per second, ratios per request."""
    found = features(WINDOW, ["a", "b"], ["s1:1", "s2:1"])
    values = dict(zip(found.names, found.values, strict=True))
    assert values["in_flight/s1:1"] == 2.0
    assert values["in_flight/s2:1"] == 0.0
    assert values["response_time_seconds/a"] == 0.8 / 20
    assert values["requests_per_second/a"] == 10.0
    assert values["error_ratio/a"] == 0.05
    assert values["in_bytes_per_second/a"] == 20.0
    assert values["waiting"] == 4.0
    assert values["connections"] == 12.0


def test_what_is_not_known_is_nan() -> None:
    """A class without requests has no response time and no error ratio, but a rate of zero."""
    values = dict(zip(*_row(features(WINDOW, ["b"], [])), strict=True))
    assert math.isnan(values["response_time_seconds/b"])
    assert math.isnan(values["error_ratio/b"])
    assert values["requests_per_second/b"] == 0.0


def test_names_depend_on_the_configuration_alone() -> None:
    """An empty window has the same columns."""
    empty = Window(seconds=1.0, pairs={})
    assert features(empty, ["a"], ["s1:1"]).names == features(WINDOW, ["a"], ["s1:1"]).names


def test_weights_are_no_feature() -> None:
    """The control is not part of the state."""
    assert not any("weight" in n for n in features(WINDOW, ["a"], ["s1:1"]).names)


def test_many_servers_are_summarised() -> None:
    """Beyond a dozen servers in flight is told by mean, largest and deviation."""
    addresses = [f"s{n}:1" for n in range(MOST_ADDRESSES + 1)]
    values = dict(zip(*_row(features(WINDOW, [], addresses)), strict=True))
    assert values["in_flight/max"] == 9.0
    assert values["in_flight/mean"] == 11.0 / len(addresses)
    assert len(values) == 5


def _row(found):
    return found.names, found.values
