"""Decisions: windows are put together to decision windows; at the end of each the profile that was
in force gets its reward, and the next one is chosen.

    windows → decision window → reward → Policy.learn, Trials.judge → Policy.decide → Trials.permit

The policy says what it thinks best, the trials what may be in force. A decision window ends early
when it is hopeless already, when an unproven profile has cost what it may, or when the present
state is none of those that were learned in: then neutral follows at once. Windows whose tardiness
is no number are left out; after as many in a row as make a decision window neutral follows, as what
cannot be measured is not to be in force. No I/O, no clock: time is what the windows say.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

from trimtab.estimate import Estimates
from trimtab.learn.actions import NEUTRAL, PROFILES
from trimtab.learn.features import Features
from trimtab.learn.reward import art_per_request, reward, reward_at_most
from trimtab.model import Weights, Window
from trimtab.policy import Decision
from trimtab.sums import accumulate
from trimtab.trials import Trials

__all__ = ["NEUTRAL_NAME", "Deciding", "Policy"]

NEUTRAL_NAME: Final = PROFILES[NEUTRAL].name


class Policy(Protocol):
    """What proposes weights; see `policy.Learned`, which says more of each."""

    @property
    def fitted(self) -> bool:
        """Whether the states are known, or none are needed."""
        ...

    @property
    def outside(self) -> str:
        """Why the present state is none of those that were learned in, or ""."""
        ...

    def observe(self, features: Features, seconds: float) -> str:
        """Take one interval in; gives what is worth a line in the journal, or ""."""
        ...

    def fit(self) -> str:
        """Fit the states to what was observed; gives what came out."""
        ...

    def decide(self) -> Decision:
        """The profile for the next decision window."""
        ...

    def learn(self, profile: str, reward: float) -> None:
        """Take the reward of the window since the last `decide` in."""
        ...

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """Weights to be admitted."""
        ...

    def status(self) -> dict[str, Any]:
        """For JSON."""
        ...

    def to_state(self) -> dict[str, Any]:
        """For the store."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """From the store. Raises KeyError, TypeError or ValueError and has changed nothing."""
        ...


class Deciding:
    """See the module.

    `decision` is the policy's last, `profile` what the trials made of it; `reward` and
    `art_per_1000` are of the last decision window, None before it.

    Args:
        policy, trials: who chooses, and who permits.
        length_seconds: of a decision window.
    """

    def __init__(self, policy: Policy, trials: Trials, length_seconds: float) -> None:
        self._policy = policy
        self._trials = trials
        self._length = length_seconds
        self._window: Window | None = None  # the decision window so far
        self._shadow: bool | None = None  # as it began
        self._blind = 0.0  # seconds since a window could be measured
        self.decision = Decision(profile=NEUTRAL_NAME, state=None, exploring=False, reason="start")
        self.profile = NEUTRAL_NAME
        self.reward: float | None = None
        self.art_per_1000: float | None = None

    def in_force(self, *, shadow: bool) -> str:
        """The profile whose weights are in force: in shadow neutral."""
        return NEUTRAL_NAME if shadow else self.profile

    def take(self, window: Window, deadlines: Mapping[str, float], *, shadow: bool) -> str:
        """Take a window in. Gives what was decided and why when that ends a decision window, else
        "". In shadow neutral was in force, so neutral gets the reward."""
        if shadow != self._shadow:
            # What was measured under both tells of neither.
            self._shadow = shadow
            self._break_off()
        used, outside = self.in_force(shadow=shadow), self._policy.outside
        if outside and used != NEUTRAL_NAME:
            self._break_off()
            self.profile = NEUTRAL_NAME
            return f"{NEUTRAL_NAME} at once: {outside}"
        art = art_per_request(window, deadlines)
        if art is not None and not math.isfinite(art):
            return self._unmeasured(window, used)
        self._blind = 0.0
        done = accumulate([self._window, window] if self._window else [window])
        most = reward_at_most(done, deadlines, self._length)
        hopeless = most is not None and self._trials.hopeless(used, most)
        costly = not hopeless and self._costly(used, done, deadlines)
        if done.seconds < self._length and not (hopeless or costly):
            self._window = done
            return ""
        self._window = None
        gained = most if hopeless else reward(done, deadlines)
        art = art_per_request(done, deadlines)
        if gained is None or art is None:
            return ""  # too little traffic to say anything: go on with the profile
        self.reward, self.art_per_1000 = gained, 1000 * art
        self._trials.count(used, art * done.requests, done.requests)
        reason = self._next(used, gained, outside, hopeless=hopeless, costly=costly)
        return f"shadow, W stays 1; would be {reason}" if shadow else reason

    def _unmeasured(self, window: Window, used: str) -> str:
        self._blind += window.seconds
        if self._blind < self._length or used == NEUTRAL_NAME:
            return ""
        self._break_off()
        self.profile = NEUTRAL_NAME
        return f"{NEUTRAL_NAME} at once: nothing could be measured for {self._blind:.0f} s"

    def _costly(self, used: str, done: Window, deadlines: Mapping[str, float]) -> bool:
        art = art_per_request(done, deadlines)
        return art is not None and self._trials.costly(used, art * done.requests, done.requests)

    def _next(self, used: str, gained: float, outside: str, *, hopeless: bool, costly: bool) -> str:
        self._policy.learn(used, gained)
        judged = self._trials.judge(used, gained, hopeless=hopeless, costly=costly)
        self.decision = self._policy.decide()
        self.profile, instead = self._trials.permit(
            self.decision.profile, self.decision.exploring, outside, self.decision.worse
        )
        cost = f"{used} broken off: it has cost all that trials may" if costly else ""
        why = "; ".join(filter(None, (cost, judged, instead))) or self.decision.reason
        return f"{self.profile}: {why}"

    def _break_off(self) -> None:
        self._window = None
        self._trials.interrupt()
