"""The DQN, where torch is installed: what it learns, and that numpy computes the same."""

import json
from random import Random

import numpy as np
import pytest

from trimtab.learn.clusters import Clusters, fit
from trimtab.learn.features import Features
from trimtab.learn.network import dump, load

torch = pytest.importorskip("torch", reason="the extra dqn is not installed")

ACTIONS = ("neutral", "spread", "twin")


def clusters() -> Clusters:
    """Nine states from 1 to 32 in flight."""
    return fit(
        [
            Features(names=("in_flight",), values=(2 ** (level / 2) * (1 + n % 5 / 100),))
            for level in range(9)
            for n in range(40)
        ],
        9,
    )


def in_flight(of: Clusters) -> dict[int, float]:
    """Of each state."""
    return {s: means["in_flight"] for s, means in of.readable_means().items()}


def learned(seed: int, states: Clusters, met: list[int], count: int = 200):
    """A DQN in a world where "twin" is better by 2 in busy states and worse by 2 in calm ones,
    "spread" always worse, and rewards are noisy; it meets only those states."""
    from trimtab.learn.dqn import DQN

    random = Random(seed)
    load_of = in_flight(states)
    agent = DQN(ACTIONS, exploration_ratio=0.0, seed=seed)
    agent.describe(states)
    for _ in range(count):
        state, action = random.choice(met), random.randrange(3)
        busy = load_of[state] > 6
        gain = (0.0, -1.0, 2.0 if busy else -2.0)[action]
        agent.learn(state, action, 1.0 + gain + random.gauss(0, 0.5), random.choice(met))
    return agent


@pytest.mark.parametrize("seed", range(3))
def test_best_action_is_learned_also_for_states_not_met(seed: int) -> None:
    """Over seeds: the right action where it was met, and in the busiest and calmest states, which
    were not; a table knows nothing there."""
    states = clusters()
    order = sorted(in_flight(states), key=in_flight(states).get)
    agent = learned(seed, states, order[1:-1])
    assert agent.choose(order[-1]).action == 2
    assert agent.choose(order[0]).action == 0
    assert agent.choose(order[-2]).action == 2
    assert agent.value(order[-1], 2) is None


def test_numpy_computes_what_torch_does() -> None:
    """The exported network gives torch's values to single precision, through its file too."""
    states = clusters()
    agent = learned(0, states, list(in_flight(states)), count=40)
    network = load(dump(agent.network))
    for means in states.readable_means().values():
        x = torch.tensor(network.scaling.inputs(means), dtype=torch.float32)
        want = agent._online(x).detach().numpy()
        assert np.allclose(network.values(means), want, atol=1e-4)
    assert [w.shape for w, _ in network.layers] == [(30, 1), (30, 30), (3, 30)]


def test_target_follows_by_steps() -> None:
    """Between two synchronisations the target network stands still, then it equals the other."""
    from trimtab.learn import dqn

    states = clusters()
    agent = learned(0, states, list(in_flight(states)), count=dqn.LEAST_TRANSITIONS)

    def weights(of) -> np.ndarray:
        return of[0].weight.detach().numpy().copy()

    before = weights(agent._target)
    while agent._steps % dqn.TARGET_STEPS != dqn.TARGET_STEPS - 1:
        agent._step()
        assert (weights(agent._target) == before).all()
    agent._step()
    assert (weights(agent._target) == weights(agent._online)).all()
    assert not (weights(agent._target) == before).all()


def test_the_target_network_values_what_the_other_chose() -> None:
    """Double Q-learning: y = r + γ·Q′(s′, argmax Q(s′, ·)), by hand, and not the maximum of Q′."""
    from trimtab.learn import dqn

    states = clusters()
    agent = learned(0, states, list(in_flight(states)), count=dqn.LEAST_TRANSITIONS)
    with torch.no_grad():
        # Where the two disagree most: the target likes best what the other likes least.
        agent._target[-1].weight.copy_(-agent._online[-1].weight)
        agent._target[-1].bias.copy_(-agent._online[-1].bias)
    batch = list(agent._replay)
    _, wanted = agent._compared(batch)
    for (_, _, reward, then), y in zip(batch, wanted.tolist(), strict=True):
        online = agent._online(torch.tensor(then)).detach().numpy()
        target = agent._target(torch.tensor(then)).detach().numpy()
        assert y == pytest.approx(reward + dqn.GAMMA * target[online.argmax()], abs=1e-4)
        assert target[online.argmax()] < target.max()


def test_state_survives_as_json() -> None:
    """Saved and restored, the replay is the same, and so is what is learned from it."""
    from trimtab.learn.dqn import DQN

    states = clusters()
    agent = learned(1, states, list(in_flight(states)), count=60)
    again = DQN(ACTIONS, exploration_ratio=0.0, seed=1)
    again.restore(json.loads(json.dumps(agent.to_state())))
    again.describe(states)
    assert len(again._replay) == 60
    for means in states.readable_means().values():
        assert again.network.values(means) == pytest.approx(agent.network.values(means), abs=1.0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e9])
def test_garbage_rewards_are_not_learned(reward: float) -> None:
    """What is no reward enters neither the table nor the replay."""
    states = clusters()
    agent = learned(0, states, list(in_flight(states)), count=0)
    agent.learn(0, 1, reward, 0)
    assert not agent._replay
    assert agent.value(0, 1) is None
