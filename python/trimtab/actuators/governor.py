"""How often nginx may be reloaded: each reload cuts idle connections and costs tail latency."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Governor"]

_HOUR_SECONDS: Final = 3600.0


class Governor:
    """A minimum of seconds between reloads, and a budget an hour. Failed attempts count too.

    Args:
        least_seconds: from one reload to the next.
        per_hour: in any hour.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        least_seconds: float,
        per_hour: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._least = least_seconds
        self._clock = clock
        self._spent: deque[float] = deque(maxlen=per_hour)
        self.count = 0

    def spend(self) -> None:
        """Note a reload."""
        self.remember(0.0)
        self.count += 1

    def remember(self, seconds_ago: float) -> None:
        """Note one of before our time, which is not in `count`."""
        self._spent.append(self._clock() - seconds_ago)

    def wait_seconds(self) -> float:
        """Until the next reload is allowed; 0 when it is now."""
        if not self._spent:
            return 0.0
        now = self._clock()
        wait = self._spent[-1] + self._least - now
        if len(self._spent) == self._spent.maxlen:
            wait = max(wait, self._spent[0] + _HOUR_SECONDS - now)
        return max(wait, 0.0)
