"""The state store of one term of leadership: everything in Redis, every write fenced."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from trimtab.envelope import pack, unpack
from trimtab.errors import StateError
from trimtab.ha.redis_store import Claim, RedisStore

__all__ = ["Term"]

_log: Final = logging.getLogger(__name__)


class Term:
    """A `store.StateStore` for as long as one server leads.

    Args:
        redis: where it is.
        claim: the lease that every write must still be under.
        epoch: of the generations.
        copy: the envelope of what was learned before, if anything was.
        saved: told id and envelope of each save.
    """

    def __init__(
        self, redis: RedisStore, claim: Claim, epoch: int, copy: bytes | None,
        saved: Callable[[str, bytes], None],
    ) -> None:  # fmt: skip
        self._redis = redis
        self._claim = claim
        self._copy = copy
        self._saved = saved
        self._saves = 0
        self.epoch = epoch

    def next_generation(self) -> int:
        """One more, counted in Redis. Raises AwayError, FencedError."""
        return self._redis.next_generation(self._claim)

    def load(self) -> dict[str, Any] | None:
        """What was learned, from the copy; None when there is none that is whole."""
        if self._copy is None:
            return None
        try:
            return unpack(self._copy, "the state in Redis")
        except StateError as error:
            self.set_aside("state", str(error))
            return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace it in Redis. Raises StateError, AwayError, FencedError."""
        body = pack(state, "the state for Redis")
        self._saves += 1
        name = f"{self._claim.token}:{self._saves}"
        self._redis.put_state(self._claim, name, body)
        self._saved(name, body)

    def set_aside(self, name: str, why: str) -> None:
        """Log; the next save replaces it."""
        _log.error("%s: %s; starting fresh", name, why)

    def close(self) -> None:
        """Nothing is held: the lease is the ensemble's."""
