"""The observation at the start: how long there was traffic, and the deadlines that follow from it.

Until `observe_seconds` of traffic were seen the policy only collects; then it fits its states, and
each class gets the deadline that its response times make, as soon as it was seen enough. What the
operator gave stands. No clock here: time is what the windows say.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from trimtab.config import Config, Upstream
from trimtab.deciding import Policy
from trimtab.estimate import deadline_seconds
from trimtab.learn.features import features
from trimtab.model import Window
from trimtab.sums import accumulate, class_total

__all__ = ["Observation"]

# Requests of a class before its mean and standard deviation make a deadline.
DEADLINE_REQUESTS: Final = 30


class Observation:
    """See the module. `deadlines` are those known, by upstream; `seconds` of traffic so far."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._config = config
        self._policy = policy
        self._names = [u.name for u in config.upstreams]
        self._addresses = list({p.address: None for u in config.upstreams for p in u.peers})
        self.deadlines = self._given()
        self.seconds = 0.0
        self._observed: Window | None = None  # while a class lacks its deadline

    def _given(self) -> dict[str, float]:
        upstreams = self._config.upstreams
        return {u.name: u.deadline_seconds for u in upstreams if u.deadline_seconds is not None}

    @property
    def done(self) -> bool:
        """Whether there was enough traffic."""
        return self.seconds >= self._config.learning.observe_seconds

    def take(self, window: Window) -> list[str]:
        """Features to the policy; deadlines and states at the end of the observation. Gives what
        is worth telling."""
        self.seconds += window.seconds
        told = [
            self._policy.observe(features(window, self._names, self._addresses), window.seconds)
        ]
        missing = [u for u in self._config.upstreams if u.name not in self.deadlines]
        if missing:
            self._observed = accumulate([self._observed, window] if self._observed else [window])
        if self.done:
            if not self._policy.fitted:
                told.append(self._policy.fit())
            told += [self._set_deadline(upstream) for upstream in missing]
            if all(u.name in self.deadlines for u in missing):
                self._observed = None
        return [each for each in told if each]

    def _set_deadline(self, upstream: Upstream) -> str:
        """From the observation, once the class was seen enough."""
        if self._observed is None:
            return ""
        total = class_total(self._observed, upstream.name)
        deadline = deadline_seconds(total, upstream.priority)
        if deadline is None or total.requests < DEADLINE_REQUESTS:
            return ""
        self.deadlines[upstream.name] = deadline
        return f"deadline of {upstream.name}: {deadline:.4g} s, as observed"

    def to_state(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"observed_seconds": self.seconds, "deadlines": self.deadlines}

    def parsed(self, state: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """What `to_state` gave, checked, for `restore`. Raises KeyError, TypeError, ValueError or
        AttributeError for another shape."""
        observed = float(state["observed_seconds"])
        deadlines = {str(n): float(d) for n, d in state["deadlines"].items()}
        if not all(math.isfinite(v) and v > 0 for v in (observed + 1, *deadlines.values())):
            raise ValueError("a time of the saved state is not finite and positive")
        return observed, deadlines

    def restore(self, parsed: tuple[float, dict[str, float]]) -> None:
        """Take that in, for the upstreams that there are."""
        self.seconds, deadlines = parsed
        self.deadlines = {n: d for n, d in deadlines.items() if n in self._names} | self._given()
