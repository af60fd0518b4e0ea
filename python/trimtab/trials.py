"""Trials: what a profile must show on live traffic before it stays in force, and to stay there.

A profile that the policy wants is a *candidate*. It goes *on trial*: decision windows of neutral
and of the profile take turns (A/B/A, a switchback), and each window B is compared with the mean of
the neutral ones beside it, so that a load that rises or falls steadily cancels. When the mean gain
in reward is above 0 with confidence it is *promoted*; when it is not after some switchbacks, it is
*reverted* and rests. A promoted profile stays measured: one window in so many is held back
(neutral), and compared with those beside it; a gain that is surely negative reverts it, and so do
two bad windows in a row, or a single one that is hopeless before it is over. Until it is promoted
its windows also end when it has cost what trials may cost (`allowance`), and count as bad then.

What was measured here outranks what the policy believes, which may be noise: a trial that began is
brought to its end, whatever the policy wants meanwhile. While one profile is promoted, the last to
be so takes neutral's part for the others: in their trials (who wins is better than it), and where
the policy wants what may not be in force. Where the policy wants neutral again, that is a doubt:
the promoted profile and neutral take turns, and it is reverted unless its mean gain stays above 0.
What the policy knows to be worse than neutral, from the twin or from here, is not explored.

    gain of a switchback   g = r(B) − (r(A₁) + r(A₂))/2; held back: (r(B₁) + r(B₂))/2 − r(A)
    promoted when          mean(g) − t(f)·s·√(4/3)/√n > 0, from the third switchback on
    s²                     ((n − 1)·var(g) + m·1.5·v)/f,  f = n − 1 + m

v is the variance of neutral's windows and m + 1 how many of them it is from: a gain of windows of
variance v has 1.5·v, which says more than the first few gains do. Switchbacks that follow one
another share a neutral window: their covariance is v/4, so their mean varies by up to 1 + 2/6 = 4/3
times what n independent ones would. t is Student's 97.5% point; looking again after each switchback
raises the one mistake in forty to about one in fifteen, and the holdback watches for it.

Pure: rewards in, choices and reasons out. No I/O, no clock; a decision is a unit of time.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trimtab.allowance import OWED, Allowance
from trimtab.learn.qlearning import MOST_REWARD

__all__ = ["PROMOTED", "STAGES", "Trials"]

# In the order of a profile's life; after its rest a reverted one is a candidate again.
STAGES: Final = ("candidate", "on trial", "promoted", "reverted")

# What the journal says of the last step but one begins with the profile and this.
PROMOTED: Final = " promoted: "

# A decision window is bad when its reward lies this many standard deviations of neutral's rewards
# below their mean, and at least the margin (ART 28% up): two in a row are rarely chance.
BAD_DEVIATIONS: Final = 1.0
BAD_MARGIN: Final = 0.25
BAD_WINDOWS: Final = 2

# Hopeless: even if nothing more were late until the window's end, its ART would be twice neutral's
# and its reward further down than one window of neutral in a hundred.
HOPELESS_DEVIATIONS: Final = 2.5
HOPELESS_MARGIN: Final = 0.7

# Neutral windows before there is anything to compare with.
BASELINE_WINDOWS: Final = 3

# Neutral's rewards are remembered over about this many windows: loads change.
BASELINE_MEMORY: Final = 20

# A reverted profile rests for this many decisions, doubled each time up to the most.
REST_DECISIONS: Final = 20
MOST_REST_DECISIONS: Final = 640

# Of the last decisions at most this share may be explorations beyond the configured ratio's own
# chance: bad luck of the dice does not become a bad hour.
EXPLORATION_MEMORY: Final = 20

# Fewer switchbacks give no deviation worth the name; after so many a gain that is not proven is
# too small to be worth more windows of a trial. As many are remembered: under the usual holdback
# four hours of decisions of a minute.
LEAST_SWITCHBACKS: Final = 3
MOST_SWITCHBACKS: Final = 12

# A trial whose windows are broken off again and again has no verdict; after twice the turns that
# the longest takes the policy may want something else.
MOST_TURNS: Final = 4 * MOST_SWITCHBACKS

# Of a gain, in variances of a window: one, and half of one for the mean of two.
GAIN_VARIANCE: Final = 1.5

# Of the mean of gains that share their neutral windows: see above.
SHARED: Final = math.sqrt(4 / 3)

# Student's 97.5% point is 1.96·(1 + STUDENT/(f − 1.1)) within 1% from 4 degrees of freedom on, and
# above it for fewer.
NORMAL: Final = 1.96
STUDENT: Final = 1.21


@dataclass(slots=True)
class _Trial:
    """What is known of one profile."""

    stage: str = "candidate"
    gains: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_SWITCHBACKS))
    bad: int = 0  # windows in a row
    rest: int = 0  # decisions left of it
    reverts: int = 0  # since it was last promoted
    turns: int = 0  # decisions of the present trial

    def gain(self, variance: float, degrees: int) -> tuple[float, float]:
        """Mean gain, and half the width of its interval; of neutral's windows the variance and its
        degrees of freedom."""
        n = len(self.gains)
        mean = sum(self.gains) / n if n else 0.0
        if n < LEAST_SWITCHBACKS:
            return mean, math.inf
        squares = sum((g - mean) ** 2 for g in self.gains)
        free = n - 1 + degrees
        pooled = (squares + degrees * GAIN_VARIANCE * variance) / free
        student = NORMAL * (1 + STUDENT / (free - 1.1))
        return mean, student * SHARED * math.sqrt(pooled / n)


class Trials:
    """See the module.

    Args:
        neutral: the profile that others are compared with.
        exploration_ratio: how often the policy tries something.
        holdback_ratio: share of windows that stays neutral under a promoted profile.
        prove: whether a trial comes first; without, only the bad windows count.
    """

    def __init__(
        self, neutral: str, *, exploration_ratio: float, holdback_ratio: float, prove: bool = True
    ) -> None:
        self._neutral = neutral
        self._epsilon = exploration_ratio
        self._holdback = round(1 / holdback_ratio) if holdback_ratio > 0 else 0
        self._prove = prove
        self._windows = 0  # of neutral
        self._mean = 0.0
        self._variance = 0.0
        self._trials: dict[str, _Trial] = {}
        self._won: list[str] = []  # those that are promoted, the last one last
        self._doubted = False  # whether the policy wanted neutral all the same
        self._explored: list[bool] = []
        self._chain: deque[tuple[str, float]] = deque(maxlen=3)  # the last windows, unbroken
        self._since_neutral = 0  # decisions
        self.allowance = Allowance()

    # Choices

    def permit(
        self, profile: str, exploring: bool = False, outside: str = "", worse: str = ""
    ) -> tuple[str, str]:
        """The profile to use for the next decision window when the policy chose `profile`, and why
        it is another one or on trial ("" when there is nothing to say). Call once a decision.

        `outside`: why the present state is none of those that were learned in, or "".
        `worse`: why exploring the profile would only cost, or "".
        """
        for trial in self._trials.values():
            trial.rest = max(0, trial.rest - 1)
            if trial.stage == "reverted" and not trial.rest:
                trial.stage = "candidate"
        use, reason = self._permit(profile, exploring, outside, worse)
        explored = exploring and use == profile != self._neutral
        self._explored.append(explored and self._stage(profile) == "candidate")
        del self._explored[:-EXPLORATION_MEMORY]
        self._since_neutral = 0 if use == self._neutral else self._since_neutral + 1
        return use, reason

    def _permit(self, profile: str, exploring: bool, outside: str, worse: str) -> tuple[str, str]:
        neutral, base = self._neutral, self._base
        self._doubted = False
        on = self._on_trial(profile)
        if outside:
            wanted = next((p for p in (profile, on, base) if p and p != neutral), "")
            return neutral, f"not {wanted}: {outside}" if wanted else ""
        if on and self._prove:
            return self._turn(on)
        if profile == neutral:
            self._doubted = base != neutral and not exploring
            return self._doubt() if self._doubted else (neutral, "")
        trial = self._trials.setdefault(profile, _Trial())
        if trial.stage == "reverted":
            return self._instead(f"{profile} was reverted, rests for {trial.rest} decisions more")
        if self._windows < BASELINE_WINDOWS and (exploring or self._prove):
            return neutral, (
                f"{profile} is a candidate, but neutral was measured {self._windows} times only"
            )
        if trial.stage == "promoted" and self._prove:
            return self._hold_back(profile)
        if exploring:
            return self._explore(profile, worse)
        if not self._prove:
            return profile, ""
        trial.stage, trial.turns = "on trial", 0
        return self._turn(profile)

    def _on_trial(self, wanted: str) -> str:
        """The profile that is on trial, "" when none is."""
        on = next((p for p, t in self._trials.items() if t.stage == "on trial"), "")
        if on and on != wanted and (self._trials[on].turns >= MOST_TURNS or not self._prove):
            # What was measured is kept for the next time.
            self._trials[on].stage = "candidate"
            return ""
        return on

    def _turn(self, profile: str) -> tuple[str, str]:
        trial, base = self._trials[profile], self._base
        trial.turns += 1
        if self.allowance.owed:
            return base, f"the trial of {profile} rests: {OWED}"
        if self._chain and self._chain[-1][0] == base:
            return profile, f"on trial, switchback {len(trial.gains) + 1}"
        return base, f"its turn in the trial of {profile}"

    def _doubt(self) -> tuple[str, str]:
        base = self._base
        why = f"{base} was measured to be better, but the policy wants {self._neutral}: in turns"
        if self._chain and self._chain[-1][0] == base:
            return self._neutral, why
        return base, why

    def _instead(self, why: str) -> tuple[str, str]:
        """What is in force when the policy wants what may not be."""
        if self._base == self._neutral:
            return self._neutral, why
        use, held = self._hold_back(self._base)
        return use, f"{why}; {held}" if held else why

    def _hold_back(self, promoted: str) -> tuple[str, str]:
        if self._holdback and self._since_neutral + 1 >= self._holdback:
            return self._neutral, (
                f"held back, one window in {self._holdback}, to measure {promoted} against it"
            )
        return promoted, ""

    def _explore(self, profile: str, worse: str) -> tuple[str, str]:
        against = worse or (OWED if self.allowance.owed else "")
        if self._prove and against:
            return self._instead(f"not exploring {profile}: {against}")
        # Twice the mean, and one: above it the dice were unlucky.
        allowed = 1 + 2 * self._epsilon * EXPLORATION_MEMORY
        if sum(self._explored) >= allowed:
            count = sum(self._explored)
            return self._instead(f"explored {count} of the last {EXPLORATION_MEMORY} times")
        return profile, ""

    # Rewards

    def judge(
        self, profile: str, reward: float, *, hopeless: bool = False, costly: bool = False
    ) -> str:
        """Take the reward of a decision window in, of a profile that was in force through it; what
        it changed, for the journal, or "". `hopeless`, `costly`: it was broken off, see there."""
        if not abs(reward) <= MOST_REWARD:
            self.interrupt()
            return ""
        self._chain.append((profile, reward))
        if profile == self._neutral:
            self._baseline(reward)
        elif self._windows >= BASELINE_WINDOWS:
            trial = self._trials.setdefault(profile, _Trial())
            margin = self._margin(BAD_MARGIN, BAD_DEVIATIONS)
            trial.bad = trial.bad + 1 if costly or reward < self._mean - margin else 0
            if hopeless or trial.bad >= BAD_WINDOWS:
                return self._revert(
                    profile,
                    trial,
                    ("a hopeless window, broken off" if hopeless else "2 bad windows in a row")
                    + f": reward {reward:.2f}, neutral {self._mean:.2f} less {margin:.2f} allowed",
                )
        measured, gain = self._switchback()
        if not measured:
            return ""
        trial = self._trials.setdefault(measured, _Trial())
        trial.gains.append(gain)
        return self._verdict(measured, trial)

    def hopeless(self, profile: str, most: float) -> bool:
        """Whether a window that cannot come to more than the reward `most` need not go on."""
        if profile == self._neutral or self._windows < BASELINE_WINDOWS:
            return False
        return most < self._mean - self._margin(HOPELESS_MARGIN, HOPELESS_DEVIATIONS)

    def costly(self, profile: str, tardiness: float, requests: float) -> bool:
        """Whether a profile that has not won has cost all that it may: see `allowance`."""
        return self._unproven(profile) and self.allowance.exceeded(tardiness, requests)

    def count(self, profile: str, tardiness: float, requests: float) -> None:
        """Take the tardiness of a decision window in that has ended."""
        if profile == self._neutral:
            self.allowance.earn(tardiness, requests)
        elif self._unproven(profile):
            self.allowance.pay(tardiness, requests)

    def _unproven(self, profile: str) -> bool:
        return self._prove and profile != self._neutral and self._stage(profile) != "promoted"

    def forget(self) -> None:
        """The profiles are others now, though of the same names: only neutral stays known."""
        self._trials, self._won = {}, []
        self.interrupt()

    def interrupt(self) -> None:
        """The next window does not follow the last one: no switchback goes over the gap."""
        self._chain.clear()

    def _margin(self, least: float, deviations: float) -> float:
        return max(least, deviations * math.sqrt(self._variance))

    def _baseline(self, reward: float) -> None:
        self._windows += 1
        step = max(1 / self._windows, 1 / BASELINE_MEMORY)
        away = reward - self._mean
        self._mean += step * away
        self._variance = (1 - step) * (self._variance + step * away * away)

    def _switchback(self) -> tuple[str, float]:
        """The profile that the last three windows measure, and its gain; "" for none."""
        if len(self._chain) < 3:
            return "", 0.0
        (first, a), (middle, b), (last, c) = self._chain
        if first != last or middle == first:
            return "", 0.0
        gain = b - (a + c) / 2
        if middle == self._neutral:
            return (first, -gain) if self._stage(first) == "promoted" else ("", 0.0)
        # Each window of a trial would count twice: as the middle, and as the sides.
        if first == self._base and self._stage(middle) != "promoted":
            return middle, gain
        return "", 0.0

    def _verdict(self, profile: str, trial: _Trial) -> str:
        count = len(trial.gains)
        mean, error = self._gain(trial)
        said = f"gain {mean:.2f} ± {error:.2f} in {count} switchbacks"
        if count < LEAST_SWITCHBACKS or not self._prove:
            return ""
        if trial.stage == "promoted":
            lost = mean + error < 0 or (self._doubted and mean <= 0)
            return self._revert(profile, trial, said) if lost else ""
        if trial.stage == "reverted":
            return ""
        if mean - error > 0:
            return self._promote(profile, trial, said)
        if mean <= 0 or count >= MOST_SWITCHBACKS:
            return self._revert(profile, trial, f"no sure {said}")
        return ""

    def _gain(self, trial: _Trial) -> tuple[float, float]:
        return trial.gain(self._variance, max(0, min(self._windows, BASELINE_MEMORY) - 1))

    @property
    def _base(self) -> str:
        """What others are compared with: neutral, or the last that was promoted."""
        return self._won[-1] if self._won and self._prove else self._neutral

    def _rebase(self) -> None:
        """Another base: what others gained over the last one says nothing of it."""
        for trial in self._trials.values():
            if trial.stage != "promoted":
                trial.gains.clear()

    def _promote(self, profile: str, trial: _Trial, said: str) -> str:
        over = "" if self._base == self._neutral else f" over {self._base}"
        if over:
            # From here on its gain is over neutral.
            trial.gains.clear()
        trial.stage, trial.reverts, trial.bad = "promoted", 0, 0
        self._won.append(profile)
        self._rebase()
        return f"{profile}{PROMOTED}{said}{over}"

    def _revert(self, profile: str, trial: _Trial, why: str) -> str:
        if profile in self._won:
            self._won.remove(profile)
            self._rebase()
        trial.stage = "reverted"
        trial.gains.clear()
        trial.bad = 0
        trial.rest = min(REST_DECISIONS * 2 ** min(trial.reverts, 10), MOST_REST_DECISIONS)
        trial.reverts += 1
        return f"{profile} reverted for {trial.rest} decisions, back to {self._base}: {why}"

    def _stage(self, profile: str) -> str:
        return self._trials[profile].stage if profile in self._trials else "candidate"

    # State

    @property
    def promoted(self) -> tuple[str, ...]:
        """The profiles that have won, the last one last."""
        return tuple(self._won)

    def status(self) -> dict[str, Any]:
        """For JSON: {"neutral_reward": mean or None, "neutral_windows", "suspended": {profile:
        decisions left}, "trials": {profile: {"stage": one of STAGES, "gain": mean in reward or
        None, "error": half its interval or None, "switchbacks"}}}."""
        trials = {}
        for profile, trial in self._trials.items():
            mean, error = self._gain(trial)
            trials[profile] = {
                "stage": trial.stage,
                "gain": mean if trial.gains else None,
                "error": error if math.isfinite(error) else None,
                "switchbacks": len(trial.gains),
            }
        return {
            "neutral_reward": self._mean if self._windows else None,
            "neutral_windows": self._windows,
            "suspended": {p: t.rest for p, t in self._trials.items() if t.rest},
            "trials": trials,
        }

    def to_state(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "neutral": [self._windows, self._mean, self._variance],
            "allowance": self.allowance.to_state(),
            "won": list(self._won),
            "profiles": {
                p: [t.stage, list(t.gains), t.bad, t.rest, t.reverts]
                for p, t in self._trials.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave. Raises KeyError, TypeError or ValueError for another
        shape, and has changed nothing then. A profile on trial goes on with its gains."""
        windows, mean, variance = state["neutral"]
        windows, mean, variance = int(windows), float(mean), float(variance)
        if not (abs(mean) <= MOST_REWARD and 0 <= variance < math.inf and windows >= 0):
            raise ValueError(f"neutral rewards {state['neutral']!r}")
        # Absent in states of version 0.1.
        allowance = Allowance.of_state(state.get("allowance", (0.0, 0.0, 0.0, 0.0)))
        trials = {}
        for profile, (stage, gains, *counts) in state["profiles"].items():
            bad, rest, reverts = (int(n) for n in counts)
            numbers = [float(g) for g in gains]
            sane = stage in STAGES and min(bad, rest, reverts) >= 0 and rest <= MOST_REST_DECISIONS
            if not (sane and all(abs(g) <= 2 * MOST_REWARD for g in numbers)):
                raise ValueError(f"the trial of {profile!r}: {stage!r}, {gains!r}, {counts!r}")
            trials[str(profile)] = _Trial(
                stage, deque(numbers, MOST_SWITCHBACKS), bad, rest, reverts
            )
        # Likewise.
        order = [str(p) for p in state.get("won", ())]
        won = [p for p, t in trials.items() if t.stage == "promoted"]
        won.sort(key=lambda p: order.index(p) if p in order else -1)
        self._windows, self._mean, self._variance = windows, mean, variance
        self._trials, self._won = trials, won
        self.allowance = allowance
        self.interrupt()
