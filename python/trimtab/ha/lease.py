"""The lease: who leads, and from when on nobody may rely on it any more.

Timing. Let L be the lease (`lease_seconds`). The leader renews every L/3, and waits at most L/3
for an answer. Redis counts L from when it *executed* a renewal, the leader from when it *sent* it,
which is earlier; and the leader stops at 0.9 L. So it stops deciding before Redis lets another
one start, as long as its clock and Redis's run at rates that differ by less than 10% over L
(quartz differs by 0.01%). Its clock is CLOCK_BOOTTIME, which goes on while a process is stopped
and a machine sleeps. Two renewals in a row may fail before the lease is lost: 0.9 L > 2 · L/3.

A process may be paused between a look at the clock and what it does next; no clock helps there.
So every write carries the lease with its token, and a script in Redis refuses one that is not
the present lease (`redis_store`). Weights come into force at the leader only after they were
written. What a paused leader can do is compute, and answer with weights that it had published.

Redis expires keys by its wall clock: one set forward by L ends a lease early. Then two may believe
to lead for up to L/3, and the scripts let only the new one write.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from trimtab.errors import StateError
from trimtab.ha.redis_store import AwayError, Claim, FencedError

__all__ = ["Lease", "boottime"]

_log: Final = logging.getLogger(__name__)

# See the module.
RENEWALS: Final = 3
SAFE_RATIO: Final = 0.9

# Leases for which one that cannot lead lets others try.
BACK_OFF_LEASES: Final = 3


def boottime() -> float:
    """Seconds of a clock that goes on through stops and sleep, and never back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leasing(Protocol):
    """What the lease needs of Redis; see `redis_store.RedisStore`."""

    def acquire(self, seconds: float, floor: int) -> tuple[bool, Claim | None]:
        """Take it if it is free."""
        ...

    def renew(self, claim: Claim, seconds: float, live_seconds: float) -> None:
        """Lengthen it."""
        ...

    def release(self, claim: Claim) -> None:
        """Give it up."""
        ...


class Lease:
    """Takes the lease when it is free and keeps it, in a thread of its own after `start`.

    Args:
        redis: where it is.
        seconds: its length L.
        live_seconds: time to live of weights, renewed with it.
        able: whether this server can lead at present; asked before the lease is taken or renewed.
        clock: see `boottime`.
    """

    def __init__(
        self,
        redis: Leasing,
        seconds: float,
        live_seconds: float,
        able: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._redis = redis
        self.seconds = seconds
        self._live_seconds = live_seconds
        self._able = able
        self._clock = clock
        self._lock = threading.Lock()
        self._claim: Claim | None = None
        self._until = 0.0
        self._floor = 0
        self._not_before = 0.0
        self._away = ""
        self._answered_at = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def claim(self) -> Claim | None:
        """Our claim while it is certain that nobody else leads; else None."""
        with self._lock:
            return self._claim if self._claim and self._clock() < self._until else None

    @property
    def away(self) -> str:
        """Why Redis does not answer; "" when it does."""
        return self._away

    @property
    def silent_seconds(self) -> float:
        """Since Redis last answered a question of the lease."""
        return self._clock() - self._answered_at

    def start(self) -> None:
        """Begin to try."""
        self._thread.start()

    def stop(self) -> None:
        """Stop trying, and give the lease up if it is ours."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self.seconds)
        self.give_up()

    def give_up(self, back_off: bool = False) -> None:
        """Let another one lead; with `back_off` do not try oneself for a while."""
        with self._lock:
            claim, self._claim = self._claim, None
            if back_off:
                self._not_before = self._clock() + BACK_OFF_LEASES * self.seconds
        if claim is not None:
            try:
                self._redis.release(claim)
            except StateError:
                return  # it ends by itself

    def lost(self) -> None:
        """A script has refused us: whoever leads, it is not us."""
        with self._lock:
            self._claim = None

    def tend(self) -> None:
        """One round: renew the lease if we have it, else try to take it. Never raises."""
        claim = self._claim
        sent = self._clock()
        try:
            if claim is not None and sent < self._until:
                if self._able():
                    self._redis.renew(claim, self.seconds, self._live_seconds)
                    self._hold(claim, sent)
            elif self._able() and sent >= self._not_before:
                taken, found = self._redis.acquire(self.seconds, self._floor)
                if found is not None:
                    self._floor = max(self._floor, found.token)
                if taken and found is not None:
                    self._hold(found, sent)
                    _log.info("leading, with token %d", found.token)
            self._answered("")
        except FencedError:
            self.lost()
            self._answered("")
        except AwayError as error:
            self._answered(str(error))

    def _hold(self, claim: Claim, sent: float) -> None:
        with self._lock:
            # Given up meanwhile: stays given up.
            if self._claim is None and sent < self._not_before:
                return
            self._claim, self._until = claim, sent + SAFE_RATIO * self.seconds

    def _answered(self, away: str) -> None:
        if away and not self._away:
            _log.error("%s", away)
        elif self._away and not away:
            _log.warning("Redis answers again")
        self._away = away
        if not away:
            self._answered_at = self._clock()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.tend()
            # Followers do not try in step; a leader's renewals come no later for it.
            pause = self.seconds / RENEWALS * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
            self._stopping.wait(pause)
