"""Groups of stock mode: what nginx is told of learned weights."""

import pytest

from trimtab import config
from trimtab.actuators.groups import stock_groups
from trimtab.estimate import Estimates
from trimtab.learn.actions import LEVELS
from trimtab.policy import Learned

TOML = """
[nginx]
mode = "stock"
[[upstream]]
name = "a"
location = "/a"
deadline_seconds = 0.1
[[upstream.peer]]
address = "10.0.0.1:80"
[[upstream.peer]]
address = "10.0.0.2:80"
[[upstream.peer]]
address = "10.0.0.3:80"
"""


@pytest.mark.parametrize(
    ("rates", "weights"),
    [
        ((0.5, 1.0, 2.0), [1, 3, 5]),
        ((1.0, 1.0, 1.0), [1, 1, 1]),
        ((3.0, 0.9, 3.1), [5, 1, 5]),
    ],
)
def test_levels_are_the_weights_that_nginx_is_told(
    rates: tuple[float, ...], weights: list[int]
) -> None:
    """1, 3 and 5 by speed, whatever the estimates make of the weights otherwise."""
    given = config.parse(TOML)
    addresses = [p.address for p in given.upstreams[0].peers]
    estimates = Estimates(rates=dict(zip(addresses, rates, strict=True)))
    proposed = Learned(given).propose(estimates, {}, LEVELS.name)
    (group,) = stock_groups(given, proposed)
    assert [s["weight"] for s in group["servers"]] == weights
