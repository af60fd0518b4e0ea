"""A controller from its configuration: which policy, guard and store it has.

The controller itself knows none of the policies.
"""

import time
from collections.abc import Callable
from pathlib import Path

from trimtab.config import Config
from trimtab.controller import Actuator, Controller, Source
from trimtab.guard import Guard
from trimtab.learn.trained import load as load_trained
from trimtab.model import Weights
from trimtab.policy import Learned, Neutral
from trimtab.store import StateStore, Store

__all__ = ["assemble", "build"]


def build(
    config: Config,
    source: Source,
    actuator: Actuator,
    store_path: str | Path,
    clock: Callable[[], float] = time.monotonic,
) -> Controller:
    """The controller of a policy server, with its state in the directory `store_path`.

    Its first weights are in force when this returns. Raises StateError when the directory cannot
    be used or the trained file is damaged or of other servers, ConfigError and the like when the
    first weights cannot be put in force.
    """
    return assemble(config, source, actuator, lambda: Store(store_path), clock)


def assemble(
    config: Config,
    source: Source,
    actuator: Actuator,
    store: StateStore | Callable[[], StateStore],
    clock: Callable[[], float] = time.monotonic,
    in_force: Weights | None = None,
) -> Controller:
    """The same with its state in any store (or what opens one); `in_force` are weights of its
    epoch that stay in force where nothing is to be changed."""
    trained = None
    if config.learning.enabled and config.learning.trained:
        trained = load_trained(config.learning.trained, config)
    if callable(store):
        store = store()
    return Controller(
        config,
        source,
        Learned(config, trained) if config.learning.enabled else Neutral(config),
        Guard(config, store.epoch, store.next_generation),
        actuator,
        store,
        clock,
        in_force=in_force,
    )
