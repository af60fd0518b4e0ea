"""An operator's counterpart that remembers its orders, and the control over it, for tests."""

from typing import Any

from trimtab.config import Config
from trimtab.control import Control
from trimtab.errors import ConfigError
from trimtab.metrics import Metrics

TOKEN = "correct-horse-battery"


class Orders:
    """Remembers what was ordered; refuses a weight beyond 3 as the guard does."""

    def __init__(self) -> None:
        self.given: list[tuple] = []
        self.points: list[dict[str, Any]] = []

    def pin(
        self, upstream: str, address: str, weight: float | None, who: str = "", why: str = ""
    ) -> None:
        """Remember."""
        if weight is not None and weight > 3:
            raise ConfigError(f"a weight of {weight!r}: it must be from 1/3 to 3")
        self.given.append(("pin", upstream, address, weight, who, why))

    def drain(self, address: str, on: bool = True, who: str = "", why: str = "") -> None:
        """Remember."""
        self.given.append(("drain", address, on, who, why))

    def shadow(self, on: bool, who: str = "", why: str = "") -> None:
        """Remember."""
        self.given.append(("shadow", on, who, why))

    def explain(
        self, upstream: str, address: str | None = None, instance: str | None = None
    ) -> dict[str, Any]:
        """What was asked."""
        if upstream == "absent":
            raise ConfigError("no upstream is called 'absent'")
        return {"upstream": upstream, "peer": address, "instance": instance}

    def history(self) -> dict[str, Any]:
        """The points that were set."""
        return {"point_seconds": 2.0, "points": self.points}


def control(
    config: Config, metrics: Metrics, orders: Orders | None = None, token: str | None = TOKEN
) -> Control:
    """The control routes over `orders`, with generation 7 in force."""
    return Control(config, orders or Orders(), token, lambda: 7, metrics.controlled)
