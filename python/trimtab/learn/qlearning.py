"""Tabular Q-learning over states and profiles, with a default that others must prove better than.

STATE   s: the identity of a cluster (`clusters`), a small integer
ACTION  a: the index of a profile (`actions`); 0 is neutral
REWARD  r: `reward` of the decision window
Update  Q(s,a) += α·(r + γ·max_a′ Q(s′,a′) − Q(s,a)),  α = max(1/(n+1), 0.05), n visits before

γ is near 0: a decision window (a minute) outlasts whatever queues the last action left behind, so
there is hardly anything to plan for. The first visit takes the target whole (α = 1), so no
starting value remains. Rewards depend on the load more than on the profile, so that plain ε-greedy
would chase whichever profile met the lightest load. Therefore: the greedy choice is neutral, until
another has, in this state or over all states, a mean advantage over neutral larger than z standard
errors. Over all states, advantages are taken against Q(s, neutral) of the state that they were
met in. By the same measure an action can be surely worse than neutral: then exploring it is a
waste (action elimination), which is for the trials to say.
Transitions: n(s, s′ | a) are counted; p(s′|s,a) = (n + κ/S) / (Σ n + κ) with κ = 1.
Source: Watkins and Dayan (1992), "Q-learning".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from trimtab.learn.actions import NEUTRAL
from trimtab.learn.clusters import Clusters

__all__ = ["Choice", "QTable"]

# Step sizes do not fall below this: the world changes.
LEAST_STEP: Final = 0.05

# Two standard errors: one mistaken promotion in forty, and the guard watches for it.
PROOF_ERRORS: Final = 2.0

# Fewer visits give no standard error worth the name.
PROOF_VISITS: Final = 4

# One imaginary transition spread over all states: nothing is impossible.
SMOOTHING: Final = 1.0

# −log(0.01 + ART per request) lies between −30 and 5; what is far beyond is a fault.
MOST_REWARD: Final = 1000.0

# Visits beyond this no longer make the variance surer: it forgets like the mean.
MOST_VISITS: Final = round(1 / LEAST_STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chosen action, and whether to learn about it or because it is thought best."""

    action: int
    exploring: bool
    reason: str


@dataclass(slots=True)
class _Cell:
    """Mean and variance of one action's targets in one state, or of its advantages over all."""

    visits: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, target: float) -> None:
        step = max(1 / (self.visits + 1), LEAST_STEP)
        error = target - self.mean
        self.mean += step * error
        self.variance = (1 - step) * (self.variance + step * error * error)
        self.visits += 1

    def error2(self) -> float:
        """Squared standard error of the mean."""
        n = min(self.visits, MOST_VISITS)
        return self.variance / (n - 1) if n > 1 else math.inf


@dataclass(slots=True)
class _State:
    cells: list[_Cell]
    # action -> next state -> count
    next: dict[int, dict[int, float]] = field(default_factory=dict)


class QTable:
    """Q(s, a), visit counts and transition counts.

    Args:
        actions: names of the actions, the first neutral; saved with the table.
        exploration_ratio: ε, the chance that a decision tries an action at random.
        gamma: discount of the next state's value.
        seed: of the choices.
    """

    def __init__(
        self,
        actions: Sequence[str],
        *,
        exploration_ratio: float = 0.1,
        gamma: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._actions = tuple(actions)
        self._epsilon = exploration_ratio
        self._gamma = gamma
        self._random = Random(seed)  # noqa: S311 -- choices need a seed, not secrecy
        self._states: dict[int, _State] = {}
        self._overall = [_Cell() for _ in self._actions]

    def _state(self, state: int) -> _State:
        return self._states.setdefault(state, _State([_Cell() for _ in self._actions]))

    def value(self, state: int, action: int) -> float | None:
        """Q(s, a); None before the first visit."""
        cell = self._states[state].cells[action] if state in self._states else _Cell()
        return cell.mean if cell.visits else None

    def cell(self, state: int, action: int) -> tuple[int, float]:
        """Visits of an action in a state, and their mean target."""
        found = self._states[state].cells[action] if state in self._states else _Cell()
        return found.visits, found.mean

    def describe(self, clusters: Clusters) -> None:
        """What the states look like, after each fit. A table does not care."""

    def proven(self, state: int) -> tuple[int, str]:
        """The greedy action in a state and why: neutral unless another has proven itself."""
        best, advantage, reason = NEUTRAL, 0.0, "nothing has proven better than neutral"
        for action in range(1, len(self._actions)):
            for gain, error, where in self._gains(state, action):
                if gain > max(advantage, PROOF_ERRORS * error):
                    best, advantage = action, gain
                    reason = f"better than neutral by {gain:.2f} ± {error:.2f} {where}"
        return best, reason

    def worse(self, state: int, action: int) -> str:
        """By how much an action is surely worse than neutral, "" where it is not. What is sure in
        the state outranks what is so over all."""
        for gain, error, where in self._gains(state, action):
            if gain > PROOF_ERRORS * error:
                return ""
            if -gain > PROOF_ERRORS * error:
                return f"worse than neutral by {-gain:.2f} ± {error:.2f} {where}"
        return ""

    def _gains(self, state: int, action: int) -> Iterator[tuple[float, float, str]]:
        """Mean gains over neutral from enough visits, their standard errors, and where."""
        if state in self._states:
            cells = self._states[state].cells
            mine, neutral = cells[action], cells[NEUTRAL]
            if min(mine.visits, neutral.visits) >= PROOF_VISITS:
                error = math.sqrt(mine.error2() + neutral.error2())
                yield mine.mean - neutral.mean, error, f"in state {state}"
        over = self._overall[action]
        if over.visits >= 2 * PROOF_VISITS:
            yield over.mean, math.sqrt(over.error2()), "over all states"

    def choose(self, state: int) -> Choice:
        """ε-greedy: the proven action, or with chance ε any of the others."""
        best, reason = self.proven(state)
        if len(self._actions) > 1 and self._random.random() < self._epsilon:
            others = [a for a in range(len(self._actions)) if a != best]
            action = self._random.choice(others)
            return Choice(action=action, exploring=True, reason="exploring")
        return Choice(action=best, exploring=False, reason=reason)

    def learn(self, state: int, action: int, reward: float, next_state: int) -> None:
        """Take one transition in. A reward that is no number, or an absurd one, is ignored."""
        if not abs(reward) <= MOST_REWARD:
            return
        entry = self._state(state)
        after = self._states.get(next_state)
        values = [c.mean for c in after.cells if c.visits] if after else []
        target = reward + (self._gamma * max(values) if values else 0.0)
        entry.cells[action].add(target)
        if action != NEUTRAL and entry.cells[NEUTRAL].visits:
            self._overall[action].add(target - entry.cells[NEUTRAL].mean)
        counts = entry.next.setdefault(action, {})
        counts[next_state] = counts.get(next_state, 0.0) + 1

    def prefill(self, state: int, action: int, mean: float, variance: float, visits: int) -> None:
        """Put in what is known beforehand (from the twin), as if `visits` had shown it."""
        cell = self._state(state).cells[action]
        cell.mean, cell.variance, cell.visits = mean, variance, visits

    def forget(self, states: Sequence[int]) -> None:
        """Drop states whose identity ended, as a source and as a destination."""
        for gone in states:
            self._states.pop(gone, None)
            for entry in self._states.values():
                for counts in entry.next.values():
                    counts.pop(gone, None)

    def transitions(self, state: int, action: int, states: Sequence[int]) -> dict[int, float]:
        """p(s′|s,a) over `states`, smoothed; sums to 1."""
        entry = self._states.get(state)
        counts = entry.next.get(action, {}) if entry else {}
        total = sum(counts.get(s, 0.0) for s in states) + SMOOTHING
        share = SMOOTHING / len(states) if states else 0.0
        return {s: (counts.get(s, 0.0) + share) / total for s in states}

    def status(self) -> dict[str, Any]:
        """Values, visits and transition counts by state and action, for JSON."""
        return {
            str(s): {
                name: {
                    "value": c.mean,
                    "visits": c.visits,
                    "next": {str(n): k for n, k in entry.next.get(a, {}).items()},
                }
                for a, (name, c) in enumerate(zip(self._actions, entry.cells, strict=True))
                if c.visits
            }
            for s, entry in sorted(self._states.items())
        }

    def to_state(self) -> dict[str, Any]:
        """The table as JSON-able data; actions by name, so that their list may change."""
        rows = [
            [s, self._actions[a], c.visits, c.mean, c.variance, sorted(e.next.get(a, {}).items())]
            for s, e in self._states.items()
            for a, c in enumerate(e.cells)
            if c.visits
        ]
        overall = [
            [name, c.visits, c.mean, c.variance]
            for name, c in zip(self._actions, self._overall, strict=True)
            if c.visits
        ]
        return {"rows": rows, "overall": overall}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave; actions that no longer exist are dropped.

        Raises KeyError, TypeError or ValueError for data of another shape, and has changed
        nothing then.
        """
        states: dict[int, _State] = {}
        for s, name, visits, mean, variance, counts in state["rows"]:
            if name not in self._actions:
                continue
            action = self._actions.index(name)
            entry = states.setdefault(int(s), _State([_Cell() for _ in self._actions]))
            entry.cells[action] = _cell(visits, mean, variance)
            entry.next[action] = {int(n): _number(k) for n, k in counts}
        overall = [_Cell() for _ in self._actions]
        for name, visits, mean, variance in state["overall"]:
            if name in self._actions:
                overall[self._actions.index(name)] = _cell(visits, mean, variance)
        self._states, self._overall = states, overall


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _cell(visits: Any, mean: Any, variance: Any) -> _Cell:
    cell = _Cell(int(visits), _number(mean), _number(variance))
    if cell.visits < 0 or cell.variance < 0:
        raise ValueError(f"visits {visits!r}, variance {variance!r}: not negative")
    return cell
