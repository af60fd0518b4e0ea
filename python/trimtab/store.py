"""What survives a restart: the learned state, and the promise that generations never go back.

A state directory holds

    state.json        what was learned; written now and then, may be lost without harm
    generations.json  epoch and the largest generation that may have been given out
    lock              held by the one policy server that uses the directory

Generations are reserved ahead: before any of a block of 1000 is given out, the block's end is on
disk. After a crash, counting goes on behind it, so no generation is ever given out twice, and
a write happens once in 1000 changes. If generations.json is lost, a new epoch begins.

Each file is an `envelope` and is replaced atomically: written beside, synced, renamed, the
directory synced. A file that fails its check is kept aside as NAME.corrupt-TIME. Several policy
servers that share a state keep it in Redis instead: `ha.redis_store`.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from trimtab.envelope import MOST_BYTES, pack, unpack
from trimtab.errors import StateError

__all__ = ["StateStore", "Store"]

_log: Final = logging.getLogger(__name__)

# Generations in a block: a change a second then writes each quarter of an hour.
BLOCK: Final = 1000

# With fewer left than this the next block is reserved, while there is still time to fail.
EARLY: Final = 100


class StateStore(Protocol):
    """What a controller needs of where its state is kept: a directory (`Store`), or Redis."""

    @property
    def epoch(self) -> int:
        """The lineage of the generations."""
        ...

    def next_generation(self) -> int:
        """A generation larger than any given out in this epoch. Raises StateError."""
        ...

    def load(self) -> dict[str, Any] | None:
        """The learned state; None when there is none that is whole."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the learned state. Raises StateError; the old one is whole then."""
        ...

    def set_aside(self, name: str, why: str) -> None:
        """Make sure that what is of no use is not read again, and log why."""
        ...

    def close(self) -> None:
        """Let go of it, without saving."""
        ...


class Store:
    """One state directory, locked for the life of this object.

    Raises StateError when the directory cannot be made, written or locked.

    Args:
        directory: made if it is missing, readable by its owner only.
        wall: seconds since 1970; names a new epoch.
    """

    def __init__(self, directory: str | Path, wall: Callable[[], float] = time.time) -> None:
        self._directory = Path(directory)
        self._wall = wall
        self._lock = -1
        self._failing = False
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(
                self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise StateError(
                f"{directory}: cannot be used as state directory: {error.strerror}; set "
                "state_directory in [policy] to one that this user can write"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise StateError(
                f"{directory}: another trimtab policy server uses this state directory; stop it, "
                "or set another state_directory in [policy]"
            ) from None
        try:
            self._epoch, self._given = self._resume()
            self._reserved = self._given
            self._reserve()
        except BaseException:
            self.close()
            raise

    @property
    def epoch(self) -> int:
        """The lineage of the generations: milliseconds since 1970 when it began."""
        return self._epoch

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self._directory

    def close(self) -> None:
        """Let go of the lock. The files stay."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        self.close()

    def next_generation(self) -> int:
        """A generation larger than any that was given out in this epoch, before or after crashes.

        Raises StateError when none is reserved and none can be (a full disk).
        """
        left = self._reserved - self._given
        if left <= EARLY:
            try:
                self._reserve()
            except StateError as error:
                if left <= 0:
                    raise
                if not self._failing:
                    _log.warning("%s; %d reserved generations are left", error, left)
                self._failing = True
        self._given += 1
        return self._given

    def load(self) -> dict[str, Any] | None:
        """The learned state; None when there is none, or a damaged one, which is kept aside."""
        try:
            return self._read("state.json")
        except StateError as error:
            self.set_aside("state.json", str(error))
            return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the learned state. Raises StateError; the old one is whole then."""
        self._write("state.json", state)

    def set_aside(self, name: str, why: str) -> None:
        """Rename a file that is of no use to NAME.corrupt-TIME, replacing no other, and log."""
        path = self._directory / name
        aside = path.with_name(f"{name}.corrupt-{int(self._wall() * 1000)}")
        try:
            path.rename(aside)
        except OSError as error:
            _log.error("%s; it could not be kept aside: %s; starting fresh", why, error)
            return
        _log.error("%s; kept aside as %s; starting fresh", why, aside)

    def _resume(self) -> tuple[int, int]:
        """Epoch and the generation to count on from."""
        fresh = int(self._wall() * 1000)
        try:
            body = self._read("generations.json")
            if body is None:
                return fresh, 0
            epoch, reserved = body["epoch"], body["reserved"]
            if not (_natural(epoch) and _natural(reserved)):
                raise StateError(
                    f"{self._directory / 'generations.json'}: epoch {epoch!r} and reserved "
                    f"{reserved!r} are not whole numbers of 64 bits"
                )
        except KeyError as error:
            self.set_aside(
                "generations.json", f"{self._directory / 'generations.json'}: lacks {error}"
            )
            return fresh, 0
        except StateError as error:
            self.set_aside("generations.json", str(error))
            return fresh, 0
        return epoch, reserved

    def _reserve(self) -> None:
        end = self._given + BLOCK
        self._write("generations.json", {"epoch": self._epoch, "reserved": end})
        self._reserved = end
        self._failing = False

    def _read(self, name: str) -> dict[str, Any] | None:
        """The checked body of a file; None when there is no file."""
        path = self._directory / name
        try:
            with path.open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}") from None
        return unpack(raw, str(path))

    def _write(self, name: str, body: Mapping[str, Any]) -> None:
        path = self._directory / name
        beside = path.with_name(f"{name}.new")
        raw = pack(body, str(path))
        try:
            with open(beside, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StateError(f"{path}: cannot be written: {error.strerror}") from None


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
