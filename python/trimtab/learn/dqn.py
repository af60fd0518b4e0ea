"""DQN: the value network of `network`, learned with torch while the controller runs in the twin.

STATE   the mean features of the cluster that was seen most in the decision window (`network`)
ACTION  the index of a profile (`actions`); 0 is neutral
REWARD  `reward` of the decision window
Target  y = r + γ·Q′(s′, argmax_a Q(s′, a)), Q′ a copy of Q that is renewed every TARGET_STEPS
        gradient steps; loss (Q(s, a) − y)², Huber beyond 1
Source: Mnih et al. (2015); van Hasselt et al. (2016), "Deep reinforcement learning with double
Q-learning"; the founding notebook's size.

The only module that needs torch (the extra `dqn`). The server never imports it: it evaluates what
`exported` gives with numpy.
"""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from trimtab.learn.clusters import Clusters
from trimtab.learn.network import Network, NetworkTable, Scaling
from trimtab.learn.qlearning import MOST_REWARD

__all__ = ["DQN"]

# The founding notebook's two hidden layers.
HIDDEN: Final = (30, 30)

# Adam's usual step.
LEARNING_RATE: Final = 1e-3

# Decision windows; at one a minute a week.
REPLAY: Final = 10_000
BATCH: Final = 32

# A decision window is dear (a minute) and a gradient step cheap (a millisecond).
STEPS_A_TRANSITION: Final = 16

# The target follows after some ten transitions.
TARGET_STEPS: Final = 160

# Nothing is learned from fewer: the first few rewards would be learned by heart.
LEAST_TRANSITIONS: Final = 16

# A decision window outlasts its queues, see `qlearning`; not 0, so that a state that leads into a
# worse one is a little worse.
GAMMA: Final = 0.1

# Against learning by heart, with hundreds of windows and a thousand parameters.
WEIGHT_DECAY: Final = 1e-3

Transition = tuple[list[float], int, float, list[float]]


class DQN(NetworkTable):
    """A table with a network that learns; the interface of `QTable`.

    Args:
        actions: names of the actions, the first neutral.
        exploration_ratio: ε.
        seed: of the first weights, the batches and the choices.
    """

    def __init__(
        self, actions: Sequence[str], *, exploration_ratio: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(actions, exploration_ratio=exploration_ratio, seed=seed)
        self._names = tuple(actions)
        self._seed = seed
        self._draw = Random(seed)  # noqa: S311 -- batches need a seed, not secrecy
        self._scaling: Scaling | None = None
        self._online: nn.Module | None = None
        self._target: nn.Module | None = None
        self._optimiser: torch.optim.Optimizer | None = None
        self._replay: deque[Transition] = deque(maxlen=REPLAY)
        self._steps = 0
        # Layers of thirty: more threads would only wait for each other.
        torch.set_num_threads(1)

    def describe(self, clusters: Clusters) -> None:
        """What the states look like. The first ones give the scaling of the inputs; later ones do
        not change it."""
        super().describe(clusters)
        if self._scaling is None and clusters.names:
            self._scaling = Scaling(
                names=clusters.names,
                units=clusters.units,
                centers=clusters.centers,
                spreads=clusters.spreads,
            )

    def learn(self, state: int, action: int, reward: float, next_state: int) -> None:
        """Take one transition in, and make some gradient steps."""
        super().learn(state, action, reward, next_state)
        if not abs(reward) <= MOST_REWARD or self._scaling is None:
            return
        if state not in self._means or next_state not in self._means:
            return
        now, then = (self._scaling.inputs(self._means[s]).tolist() for s in (state, next_state))
        self._replay.append((now, action, reward, then))
        if len(self._replay) >= LEAST_TRANSITIONS:
            for _ in range(STEPS_A_TRANSITION):
                self._step()
            self.network = self.exported()

    def _built(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Both networks and the optimiser, made when the inputs are known."""
        if self._online is None or self._target is None or self._optimiser is None:
            if self._scaling is None:
                raise ValueError("the inputs are not known: describe() first")
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                sizes = (len(self._scaling.names), *HIDDEN, len(self._names))
                self._online, self._target = _mlp(sizes), _mlp(sizes)
            # Around the mean reward from the start, instead of at 0.
            last = self._online[-1]
            with torch.no_grad():
                last.bias += float(np.mean([t[2] for t in self._replay] or [0.0]))
            self._target.load_state_dict(self._online.state_dict())
            self._optimiser = torch.optim.AdamW(
                self._online.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
        return self._online, self._target, self._optimiser

    def _step(self) -> None:
        """One gradient step on a batch of the replay."""
        online, target, optimiser = self._built()
        got, wanted = self._compared(self._draw.choices(self._replay, k=BATCH))
        loss = nn.functional.smooth_l1_loss(got, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self._steps += 1
        if self._steps % TARGET_STEPS == 0:
            target.load_state_dict(online.state_dict())

    def _compared(self, batch: Sequence[Transition]) -> tuple[torch.Tensor, torch.Tensor]:
        """Q(s, a) and the target of each transition."""
        online, target, _ = self._built()
        now, then = (torch.tensor([t[n] for t in batch]) for n in (0, 3))
        actions = torch.tensor([t[1] for t in batch])
        rewards = torch.tensor([t[2] for t in batch])
        with torch.no_grad():
            chosen = online(then).argmax(dim=1, keepdim=True)
            wanted = rewards + GAMMA * target(then).gather(1, chosen).squeeze(1)
        return online(now).gather(1, actions[:, None]).squeeze(1), wanted

    def exported(self) -> Network | None:
        """The network as it is now, for numpy; None before anything was learned."""
        if self._online is None or self._scaling is None:
            return None
        layers = tuple(
            (m.weight.detach().double().numpy().copy(), m.bias.detach().double().numpy().copy())
            for m in self._online
            if isinstance(m, nn.Linear)
        )
        visits = np.bincount([t[1] for t in self._replay], minlength=len(self._names))
        with torch.no_grad():
            got, wanted = self._compared(list(self._replay))
        return Network(
            scaling=self._scaling,
            actions=self._names,
            layers=layers,
            error=math.sqrt(float(nn.functional.mse_loss(got, wanted))),
            visits=visits.astype(np.float64),
        )

    def to_state(self) -> dict[str, Any]:
        """The table, and what the network was made from: the replay. JSON-able."""
        scaling = self._scaling
        return super().to_state() | {
            "replay": [list(t) for t in self._replay],
            "scaling": (
                [list(scaling.names), *(v.tolist() for v in _arrays(scaling))] if scaling else None
            ),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave, the network learned again from the replay."""
        super().restore(state)
        if not state.get("scaling"):
            return
        names, *arrays = state["scaling"]
        units, centers, spreads = (np.array(a, dtype=float) for a in arrays)
        self._scaling = Scaling(names=tuple(names), units=units, centers=centers, spreads=spreads)
        replay = [(list(s), int(a), float(r), list(t)) for s, a, r, t in state["replay"]]
        self._replay = deque(replay, maxlen=REPLAY)
        self._online = None
        if len(replay) >= LEAST_TRANSITIONS:
            for _ in range(STEPS_A_TRANSITION * len(replay)):
                self._step()
            self.network = self.exported()


def _arrays(scaling: Scaling) -> tuple[Any, Any, Any]:
    return scaling.units, scaling.centers, scaling.spreads


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of those sizes with ReLU between."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
