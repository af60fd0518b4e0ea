"""The board: the weights in force, where the gRPC service reads what the controller decided.

The actuator of lua mode. It holds one reference; balancers fetch it when they ask. Nothing is
computed and nothing is stored on disk here.
"""

import threading

from trimtab.errors import StateError
from trimtab.model import Weights

__all__ = ["Board"]


class Board:
    """The latest `Weights`; a generation never goes back. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: Weights | None = None

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force.

        Raises StateError, and keeps what is in force, when (epoch, generation) is not larger than
        that in force, or when the weights are still a proposal (generation 0): a balancer that
        holds a generation must be able to rely on what it stands for.
        """
        if weights.generation < 1:
            raise StateError("weights without a generation are a proposal and cannot be put up")
        with self._lock:
            old = self._weights
            if old and (weights.epoch, weights.generation) <= (old.epoch, old.generation):
                raise StateError(
                    f"generation {weights.generation} of epoch {weights.epoch} is not later than "
                    f"generation {old.generation} of epoch {old.epoch}, which stays in force"
                )
            self._weights = weights

    def clear(self) -> None:
        """Forget weights whose time to live is over."""
        with self._lock:
            self._weights = None

    def current(self) -> Weights | None:
        """The weights in force; None before the first ones."""
        # Reading one reference is atomic in Python: no lock.
        return self._weights
