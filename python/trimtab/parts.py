"""What a policy server is made of in each mode: where statistics come from, where weights go.

In lua mode balancers report over gRPC and fetch from the board. In stock mode pages of
nginx-module-vts are read and nginx's upstream file is changed; the board holds the weights too, for
whoever asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trimtab.actuators.board import Board
from trimtab.config import Config
from trimtab.loop import Controls
from trimtab.model import Snapshot, Weights
from trimtab.sources.reported import Instance, Reported

if TYPE_CHECKING:
    from trimtab.actuators.stock import Stock

__all__ = ["Parts", "parts"]


class Source(Protocol):
    """Statistics, and the balancers that they come from."""

    @property
    def accepted(self) -> int:
        """Readings or reports taken in so far."""
        ...

    def read(self) -> tuple[Snapshot, ...]:
        """The newest snapshot of each balancer. Raises SourceError."""
        ...

    def instances(self) -> tuple[Instance, ...]:
        """The balancers, by name."""
        ...


class Actuator(Protocol):
    """What puts weights in force."""

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force. Raises TrimtabError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one mode. `around` makes of a controller what the loop calls; `status` is what
    the mode adds to the status."""

    source: Source
    actuator: Actuator
    around: Callable[[Controls], Controls]
    status: Callable[[], dict[str, Any]]


class _Applied:
    """Weights go to nginx, and when it has them or will, to the board."""

    def __init__(self, nginx: "Stock", board: Board) -> None:
        self._nginx = nginx
        self._board = board

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force. Raises TrimtabError, and the old ones are."""
        self._nginx.apply(weights)
        self._board.apply(weights)


class _Ticking:
    """A controller after whose steps nginx gets what had to wait for its reload."""

    def __init__(self, controller: Controls, nginx: "Stock") -> None:
        self._controller = controller
        self._nginx = nginx

    def step(self) -> None:
        """One step. Raises what either raises."""
        self._controller.step()
        self._nginx.tick()

    def status(self) -> dict[str, Any]:
        """The controller's."""
        return self._controller.status()

    def save(self) -> None:
        """Write the state."""
        self._controller.save()


def parts(config: Config, board: Board, reported: Reported) -> Parts:
    """The parts for the configuration's mode. Raises ConfigError, DependencyError."""
    if config.nginx.mode != "stock":
        return Parts(
            source=reported, actuator=board, around=lambda controller: controller, status=dict
        )
    # Their libraries (requests, jinja2) are not for a server that does not need them.
    from trimtab.actuators.stock import Stock
    from trimtab.sources.stock import Vts

    nginx = Stock(config)
    return Parts(
        source=Vts(config, generation=lambda: nginx.generation),
        actuator=_Applied(nginx, board),
        around=lambda controller: _Ticking(controller, nginx),
        status=lambda: {"stock": nginx.status()},
    )
